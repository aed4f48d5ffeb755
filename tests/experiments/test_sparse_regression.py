"""The experiments on sparse regression: pesme2021, even2023 and papazov2024.

Their reports and figures are tested on made-up results, because the runs are slow.
"""

import dataclasses
import json
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import lintensor_jax as lt
from lintensor_jax import cli
from lintensor_jax.cli import reproduce
from lintensor_jax.config import ConfigError
from lintensor_jax.experiments import find, framework
from lintensor_jax.experiments.even2023 import configuration as even
from lintensor_jax.experiments.even2023.results import FULL, STOCHASTIC, StepRun
from lintensor_jax.experiments.even2023.results import Result as EvenResult
from lintensor_jax.experiments.papazov2024 import configuration as papazov
from lintensor_jax.experiments.papazov2024.results import MassRun, MomentumRun
from lintensor_jax.experiments.papazov2024.results import Result as PapazovResult
from lintensor_jax.experiments.pesme2021 import configuration as pesme
from lintensor_jax.experiments.pesme2021.results import Course, NoiseRun
from lintensor_jax.experiments.pesme2021.results import Result as PesmeResult
from lintensor_jax.experiments.sparse_regression.configuration import Data
from lintensor_jax.experiments.sparse_regression.results import (
    Baseline,
    Ends,
    baseline_of,
    ends_of,
)
from lintensor_jax.experiments.sparse_regression.setup import (
    log_scale,
    small_start,
    sparse_problem,
)
from lintensor_jax.networks.effective_start import EffectiveStart

BASELINE = Baseline(np.array([0.5, 0.5]), distance=0.5, l1_norm=1.5, least_l1_norm=1.0)


def made_up(distance, shrinkage, error=1e-12, residual: Any = 1e-12):
    """Made-up ends of runs, one for each distance."""
    distance = np.asarray(distance, float)
    beta = np.tile([1.0, 0.0], (len(distance), 1))
    return Ends(
        coefficients=beta + error,
        predicted=beta,
        residual=np.broadcast_to(np.asarray(residual, float), distance.shape),
        shrinkage=np.asarray(shrinkage, float),
        distance=distance,
        l1_norm=1 + distance,
    )


def of_pesme():
    config = pesme.Configuration(problems=1, paths=2, noises=(0.1, 0.4))
    runs = tuple(
        NoiseRun(
            problem=0,
            noise=noise,
            ends=made_up([0.45 - noise / 2, 0.4 - noise / 2], [noise, 1.5 * noise]),
            spent=np.array([noise, 1.5 * noise]),
            scale_error=np.full(2, 1e-13),
            ended_by="2 StopAtResidual",
            most_steps=100,
        )
        for noise in config.noises
    )
    times = np.geomspace(0.1, 10, 9)
    courses = tuple(
        Course(label, times, np.exp(-times), 1 / (1 + times))
        for label in ("gradient flow", "noise 0.1", "noise 0.4")
    )
    return PesmeResult(config, (), (BASELINE,), runs, courses)


def of_even():
    config = even.Configuration(problems=1)
    sizes, runs = np.geomspace(0.05, 0.8, 9), []
    for method, slope in ((FULL, 0.3), (STOCHASTIC, -0.3)):
        residual = np.where(sizes > 0.7, np.inf, 1e-12)
        runs.append(
            StepRun(
                problem=0,
                method=method,
                sizes=sizes,
                ends=made_up(0.5 + slope * sizes**2, sizes, residual=residual),
                gains=np.stack([sizes, 0.1 * sizes], axis=1),
                diverged=sizes > 0.7,
                off_gradient_share=np.full(9, 1e-16),
            )
        )
    return EvenResult(config, (), (BASELINE,), np.array([[True, False]]), tuple(runs))


def of_papazov():
    config = papazov.Configuration(problems=1, masses=(0.1, 0.3, 3.0))
    ends = made_up([0.45, 0.4, 0.6], [0.1, 0.2, 0.3])
    run = MassRun(0, ends, ("", "", "u + v in [0], bound to at time 1"), np.full(3, 1e-12))
    momenta = tuple(
        MomentumRun(beta, 0.4 * (1 - beta) ** 2, 100, 0.1 * (1 - beta), 1e-9)
        for beta in (0.5, 0.75)
    )
    return PapazovResult(config, (), (BASELINE,), (run,), momenta)


MADE_UP = {"pesme2021": of_pesme, "even2023": of_even, "papazov2024": of_papazov}


def _failed(name, result):
    return [check.name for check in find(name).report(result).checks if not check.passed]


@pytest.mark.parametrize("name", MADE_UP)
def test_the_command_writes_tables_and_figures(name, tmp_path, monkeypatch, capsys):
    result = MADE_UP[name]()
    finished = dataclasses.replace(find(name), run=lambda *_: result)
    monkeypatch.setattr(framework, "find", {name: finished}.__getitem__)
    monkeypatch.setattr(reproduce, "configure_jax", lambda: None)
    assert cli.main(["reproduce", name, "--json", "--out", str(tmp_path)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["passed"] is True
    # The made-up results agree with the papers.
    verdicts = [row["verdict"] for row in printed["tables"]["comparison"]]
    assert verdicts == ["agrees"] * len(verdicts)
    (figure,) = find(name).report(result).captions
    with Image.open(tmp_path / f"{figure}.png") as picture:
        assert min(picture.size) > 400
        colours = picture.convert("RGB").getcolors(1 << 20)
    assert colours is not None
    assert len(colours) > 50


def test_checks_and_verdicts_can_fail():
    off = made_up([0.6, 0.7], [0.2, 0.1], error=1e-6)
    pesme_result = of_pesme()
    first, second = pesme_result.runs
    wrong = dataclasses.replace(second, ends=off, scale_error=np.full(2, 1e-6))
    changed = dataclasses.replace(pesme_result, runs=(first, wrong))
    assert _failed("pesme2021", pesme_result) == []
    assert _failed("pesme2021", changed) == [
        "end of a path minus its prediction",
        "log mu minus its prediction",
    ]
    table = {t.name: t for t in find("pesme2021").report(changed).tables}["comparison"]
    assert [row["verdict"] for row in table.rows] == ["DIFFERS"] * 3
    nothing = dataclasses.replace(second, ends=made_up([0.1, 0.1], [0.0, 0.0], residual=1.0))
    failed = _failed("pesme2021", dataclasses.replace(pesme_result, runs=(first, nothing)))
    assert "noises without a path that fits the data" in failed

    even_result = of_even()
    full, stochastic = even_result.runs
    far = dataclasses.replace(full.ends, coefficients=full.ends.predicted + 1e-6)
    crooked = dataclasses.replace(full, ends=far, off_gradient_share=np.full(9, 1e-3))
    assert _failed("even2023", dataclasses.replace(even_result, runs=(crooked, stochastic))) == [
        "end of a run minus its prediction",
        "share of the steps that is not along the gradient",
    ]

    papazov_result = of_papazov()
    (run,) = papazov_result.runs
    far = dataclasses.replace(run.ends, coefficients=run.ends.predicted + 1e-6)
    leaky = dataclasses.replace(run, ends=far, energy_drift=np.full(3, 1e-3))
    assert _failed("papazov2024", dataclasses.replace(papazov_result, runs=(leaky,))) == [
        "end of a flow minus its prediction",
        "energy balance off by",
    ]


def test_the_largest_step_is_that_below_the_first_that_does_not_fit():
    run = of_even().runs[0]
    assert run.largest == run.sizes[-2]
    holes = np.where(np.arange(9) == 3, 1.0, 1e-12)
    gap = dataclasses.replace(run, ends=made_up(np.ones(9), np.ones(9), residual=holes))
    assert gap.largest == run.sizes[2]
    none = dataclasses.replace(run, ends=made_up(np.ones(9), np.ones(9), residual=1.0))
    assert none.largest == 0
    whole = dataclasses.replace(run, ends=made_up(np.ones(9), np.ones(9)))
    assert whole.largest == run.sizes[-1]


def test_the_setting():
    problem, truth = sparse_problem(5, 12, 2, 0)
    assert np.sum(truth != 0) == 2
    np.testing.assert_allclose(problem.X @ truth, problem.y, atol=1e-14)
    network = small_start(12, 0.3)
    np.testing.assert_allclose(log_scale(network), np.log(0.09), rtol=1e-12)
    np.testing.assert_array_equal(network.linear_coefficients(), 0)


@pytest.mark.slow
def test_runs_without_any_training_end_where_the_flow_does():
    problem, truth = sparse_problem(5, 12, 2, 0)
    network = small_start(12, 0.3)
    base = baseline_of(network, problem, truth)
    # Without training the effective start is the start, so both runs end at the flow's limit.
    start = EffectiveStart(None, jnp.tile(log_scale(network), (2, 1)), jnp.zeros((2, 12)), "none")
    beta = np.stack([base.flow, np.full(12, np.nan)])
    ends = ends_of(beta, start, network, problem, truth)
    np.testing.assert_array_equal(ends.fits, [True, False])
    assert ends.error[0] < 1e-9
    assert np.isnan(ends.error[1])
    np.testing.assert_allclose(ends.distance, base.distance, rtol=1e-7)
    np.testing.assert_allclose(ends.shrinkage, 0, atol=1e-12)
    assert base.least_l1_norm < base.l1_norm


@pytest.mark.parametrize(
    ("build", "key", "message"),
    [
        (lambda: Data(num_samples=30), "num_samples", "< dimension = 30, got 30"),
        (lambda: Data(support=31), "support", "<= dimension = 30, got 31"),
        (lambda: pesme.Configuration(noises=(0.1, 0.1)), "noises", "different numbers"),
        (lambda: even.Steps(smallest=2.0), "largest", "> smallest = 2, got 1"),
        (
            lambda: even.Configuration(stochastic=even.StochasticSteps(batch_size=11)),
            "stochastic.batch_size",
            "<= data.num_samples = 10, got 11",
        ),
        (lambda: papazov.Momentum(momenta=(0.5, 1.0)), "momenta", "ascending numbers < 1"),
        (lambda: papazov.Configuration(masses=(2.0, 1.0)), "masses", "ascending"),
    ],
)
def test_mistakes_in_the_configuration(build, key, message):
    with pytest.raises(ConfigError) as caught:
        build()
    assert caught.value.key == key
    assert message in str(caught.value)


@pytest.mark.parametrize("name", MADE_UP)
def test_quick_has_fewer_problems_and_says_so(name):
    experiment = find(name)
    quick, notes = experiment.reduce(experiment.Configuration())
    assert quick.problems < experiment.Configuration().problems
    assert len(notes) == 1
    assert experiment.reduce(quick) == (quick, ())


# The runs, at a small size.

SMALL = {
    "pesme2021": pesme.Configuration(problems=1, paths=3, noises=(0.1, 0.4), num_times=5),
    "even2023": even.Configuration(
        problems=1,
        full=even.Steps(largest=4.0, count=8),  # the largest step sizes diverge for certain
        stochastic=even.StochasticSteps(count=6, runs=2),
    ),
    "papazov2024": papazov.Configuration(problems=1, masses=(0.1, 3.2)),
}


@pytest.fixture(scope="module", params=SMALL)
def run(request):
    jobs = []

    def track(all_jobs):
        for job in all_jobs:
            jobs.append(str(job))
            yield job

    found = find(request.param).run(SMALL[request.param], (), track)
    assert jobs
    return request.param, found


@pytest.mark.slow
def test_all_checks_pass(run):
    name, found = run
    assert _failed(name, found) == []
    # Training has an effect: no limit is that of the flow.
    if name == "even2023":
        rows = {t.name: t for t in find(name).report(found).tables}["methods"].rows
        assert min(row["flow_error"] for row in rows) > 1e-3
        assert any(row["diverged"] for row in rows)


@pytest.mark.slow
def test_the_solution_says_what_is_predicted():
    """One path, one descent, one heavy ball: `ends_of` is `effective_limit`."""
    problem, truth = sparse_problem(4, 6, 1, 0)
    network = small_start(6, 0.5)
    flow = lt.heavy_ball_flow(network, problem, 0.05)
    start: Any = flow.effective_start
    start = dataclasses.replace(start, measured=())
    lanes = EffectiveStart(None, start.log_scale[None], start.angle[None], start.theorem)
    ends = ends_of(np.asarray(flow.coefficients[-1:]), lanes, network, problem, truth)
    limit = lt.effective_limit(flow, problem).limit
    assert limit is not None
    np.testing.assert_allclose(ends.predicted[0], limit, atol=1e-12)

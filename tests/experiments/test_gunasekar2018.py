"""Implicit bias by architecture and depth: the experiment at a small shape."""

import dataclasses
import json
import tomllib
from pathlib import Path

import numpy as np
import pytest

from lintensor_jax.config import ConfigError, load
from lintensor_jax.experiments import find
from lintensor_jax.experiments.gunasekar2018.results import (
    Descent,
    RandomNetworks,
    Result,
    Run,
    moduli_of,
    participation_ratio,
)
from lintensor_jax.experiments.gunasekar2018.run import random_networks
from lintensor_jax.experiments.gunasekar2018.setup import ARCHITECTURES, separable_data

experiment = find("gunasekar2018")
SMALL = experiment.Configuration(
    depths=(2, 3), dimension=5, num_samples=3, starts=1, random_networks=4
)
E1, E2 = np.eye(4)[:2]
WAVE = np.cos(np.pi / 2 * np.arange(4)) / np.sqrt(2)


@pytest.fixture(scope="module")
def result():
    """A run of all architectures at two depths."""
    jobs = []

    def track(all_jobs):
        for job in all_jobs:
            jobs.append(str(job))
            yield job

    found = experiment.run(SMALL, ("small shapes",), track)
    assert jobs == [f"{name}, {depth}" for depth in (2, 3) for name in ARCHITECTURES]
    return found


def _run(architecture, depth, direction, **changes):
    """A limit that keeps every check."""
    descent = Descent(
        step=np.arange(0, 40, 10),
        log_loss=-np.arange(4.0),
        direction=np.full(4, 0.5),
        distance=np.array([1.0, 0.3, 0.2, 0.1]),
        lag=np.array([0.0, 0.01, 0.005, 0.001]),
    )
    cost = depth * np.sum(np.abs(direction) ** (2 / depth))
    if architecture == "convolutional":
        cost = depth / 4 * np.sum(np.abs(np.fft.fft(direction)) ** (2 / depth))
    settings = {
        "architecture": architecture,
        "depth": depth,
        "start": 0,
        "direction": direction,
        "convex": direction,
        "reference": direction,
        "status": "stationary",
        "reason": "a certified KKT point, reached from the flow's end",
        "certified": True,
        "parameter_residual": 1e-15,
        "predictor_residual": 1e-15,
        "support": np.array([0, 2]),
        "moved": 0.1,
        "descent": descent,
        "coefficients": direction,
        "squared_norm": cost,
        "regularizer": cost,
        "convex_regularizer": cost,
        "minimal_squared_norm": cost,
        "minimal_error": 1e-16,
    }
    return Run(**{**settings, **changes})


def _made_up(**changes):
    """A made-up result, without flows: limits are sparser at depth 3 than at depth 2."""
    shapes = {
        ("diagonal", 2): (E1 + E2) / np.sqrt(2),
        ("diagonal", 3): E1,
        ("convolutional", 2): E1,
        ("convolutional", 3): WAVE,
    }
    runs = {shape: [_run(*shape, direction)] for shape, direction in shapes.items()}
    random = {shape: RandomNetworks(*shape, np.ones(3), np.full(3, 0.9)) for shape in shapes}
    config = dataclasses.replace(SMALL, dimension=4, architectures=("diagonal", "convolutional"))
    made = Result(config, (), runs, random)
    for part, (shape, values) in changes.items():
        parts = dict(getattr(made, part))
        parts[shape] = (
            [dataclasses.replace(parts[shape][0], **values)]
            if part == "runs"
            else dataclasses.replace(parts[shape], **values)
        )
        made = dataclasses.replace(made, **{part: parts})
    return made


def _rows(report, name):
    return next(table.rows for table in report.tables if table.name == name)


def test_participation_ratio():
    assert participation_ratio(np.array([0, 2.0, 0, 2.0, 2.0])) == 3
    assert participation_ratio(np.array([1.0, 0.01, 0.0])) == pytest.approx(1, abs=1e-3)
    # A delta is flat among the frequencies, a wave is a pair of them.
    np.testing.assert_allclose(moduli_of(3 * E1, "frequency"), 1)
    assert participation_ratio(moduli_of(WAVE, "frequency")) == pytest.approx(2)
    np.testing.assert_allclose(moduli_of(-3 * E1, "signal"), E1)


def test_made_up_numbers_pass_and_are_shown():
    report = experiment.report(_made_up())
    assert report.passed, [str(check) for check in report.checks if not check.passed]
    sparsity = {(row["architecture"], row["depth"]): row for row in _rows(report, "sparsity")}
    assert sparsity["diagonal", 2]["signal_count"] == 2
    assert sparsity["diagonal", 3]["signal_count"] == 1
    assert sparsity["convolutional", 2]["frequency_count"] == 4
    assert sparsity["convolutional", 3]["frequency_count"] == 2
    assert [row["reference"] for row in _rows(report, "limits")] == [
        "l1",
        "l2/3",
        "l1 of the DFT",
        "l2/3 of the DFT",
    ]
    assert "diagonal | 2 | 1 | 1 |" in report.markdown()
    json.dumps(report.as_json(), allow_nan=False)


DEEP = ("diagonal", 3)
SHALLOW = ("diagonal", 2)
DESCENT = _run(*DEEP, E1).descent


@pytest.mark.parametrize(
    ("name", "part", "shape", "values"),
    [
        ("not certified", "runs", DEEP, {"certified": False}),
        ("Theorem 4", "runs", DEEP, {"parameter_residual": 1e-9}),
        ("in predictor space", "runs", DEEP, {"predictor_residual": np.nan}),
        ("zeros are zero", "runs", DEEP, {"direction": E1 + 1e-8 * E2}),
        ("conic programs", "runs", SHALLOW, {"reference": E1}),
        ("conic programs", "runs", DEEP, {"reference": E2}),
        (
            "flow at its loss",
            "runs",
            DEEP,
            {"descent": dataclasses.replace(DESCENT, lag=np.full(4, 0.1))},
        ),
        (
            "over that after a tenth",
            "runs",
            DEEP,
            {"descent": dataclasses.replace(DESCENT, distance=DESCENT.distance[::-1])},
        ),
        ("R at the limit", "runs", DEEP, {"squared_norm": 3 * (1 + 2e-8)}),
        ("its norm squared", "runs", DEEP, {"minimal_squared_norm": 3 * (1 + 2e-8)}),
        ("its coefficients", "runs", DEEP, {"minimal_error": 1e-7}),
        ("random networks", "random", DEEP, {"regularizers": np.array([0.5, 1 + 1e-9, 0.5])}),
    ],
)
def test_each_check_can_fail(name, part, shape, values):
    checks = experiment.report(_made_up(**{part: (shape, values)})).checks
    failed = [check for check in checks if not check.passed]
    assert any(name in check.name for check in failed), failed
    assert all("diagonal" in check.row for check in failed)


def test_a_denser_deep_limit_fails():
    denser = {"direction": np.full(4, 0.5)}
    failed = [
        c.name for c in experiment.report(_made_up(runs=(DEEP, denser))).checks if not c.passed
    ]
    assert [name for name in failed if name.startswith("deeper")] == [
        "deeper is sparser: change of the count from depth 2",
        "deeper is sparser: change of the participation from depth 2",
    ]


def test_a_limit_that_kept_the_printed_constant_would_show():
    shape = ("convolutional", 3)
    cost = 3 * np.sum(np.abs(np.fft.fft(WAVE)) ** (2 / 3))
    changed = {"squared_norm": cost, "regularizer": cost, "minimal_squared_norm": cost}
    failed = [c for c in experiment.report(_made_up(runs=(shape, changed))).checks if not c.passed]
    assert ["erratum" in check.name for check in failed] == [True]


@pytest.mark.slow_beyond(1)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_random_networks_cost_no_less_than_the_regularizer(architecture):
    found = random_networks(architecture, 3, SMALL)
    ratios = found.regularizers / found.squared_norms
    assert ratios.shape == (20,)
    # Networks are near the minimum and far from it. 1e-14 allows rounding of sums of 15 squares.
    assert np.all(ratios < 1 + 1e-14)
    assert ratios.max() > 0.999
    assert ratios.min() < 0.9


def test_figures():
    made = _made_up()
    figures = experiment.figures(made)
    assert list(figures) == ["directions", "sparsity", "induced_regularizer"]
    grid = figures["directions"].axes
    assert len(grid) == 2 * 2 * 2  # architectures, domains, depths
    assert grid[0].get_title() == "$L = 2$"
    # Entries at depth 3, and the half of the spectrum that determines the other.
    np.testing.assert_allclose(grid[1].lines[0].get_ydata(), E1)
    np.testing.assert_allclose(grid[7].lines[0].get_ydata(), [0, 1, 0], rtol=0, atol=1e-15)
    means = [line.get_ydata() for line in figures["sparsity"].axes[0].lines]
    assert any(np.allclose(values, [2, 1]) for values in means)
    assert len(figures["induced_regularizer"].axes) == 2


def test_all_checks_pass(result):
    report = experiment.report(result)
    assert len(report.checks) == 14
    for check in report.checks:
        assert check.passed, str(check)
    for row in _rows(report, "runs"):
        assert row["status"] in ("stationary", "continued")
        if row["architecture"] == "fully-connected":
            assert row["distance"] < 1e-10
    assert "small shapes" in report.markdown()
    json.dumps(report.as_json(), allow_nan=False)


def test_the_tables_say_what_the_arrays_hold(result):
    report = experiment.report(result)
    assert list(result.runs) == [(name, depth) for name in ARCHITECTURES for depth in (2, 3)]
    for row in _rows(report, "descent"):
        descent = result.runs[row["architecture"], row["depth"]][0].descent
        assert row["distance"] == descent.distance[-1]
        assert descent.distance[-1] > 1e-3  # descent has not arrived; the limit is certified
        assert descent.step[-1] == row["num_steps"] == 100_000
    problem = separable_data(SMALL)
    for (_, depth), (run,) in result.runs.items():
        # The costs are those of the network with smallest margin 1.
        assert float(problem.margins(run.coefficients).min()) == pytest.approx(1, abs=1e-12)
        assert run.depth == depth


def test_the_example_configuration_holds_the_defaults():
    path = Path(__file__).parents[2] / "configs" / "gunasekar2018.toml"
    assert load(path, experiment.Configuration) == experiment.Configuration()
    entries = tomllib.loads(path.read_text(encoding="utf-8"))
    assert set(entries) == {field.name for field in dataclasses.fields(experiment.Configuration)}


def test_reduced_runs_keep_the_checks():
    full = experiment.Configuration()
    quick, notes = experiment.reduce(full)
    assert quick.depths == (2, 4)
    assert quick.starts == 1
    assert (quick.residual, quick.agreement) == (full.residual, full.agreement)
    assert len(notes) == 2
    assert experiment.reduce(quick) == (quick, ())


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"architectures": ["rnn"]}, ["architectures[0]", "diagonal", "rnn"]),
        ({"depths": [2, 2]}, ["depths", "different", "[2, 2]"]),
        ({"depths": [1, 2]}, ["depths[0]", ">= 2"]),
        ({"descent_num_steps": 1001}, ["descent_num_steps", "multiple of 10", "1001"]),
        ({"threshold": 0.5}, ["threshold", "< 0.1", "0.5"]),
        ({"margin": 100.0}, ["margin", "1e4", "100"]),
        ({"dimension": 2, "num_samples": 0}, ["num_samples", ">= 1"]),
    ],
)
def test_mistakes_in_the_configuration(values, words):
    with pytest.raises(ConfigError) as caught:
        experiment.Configuration(**values)
    assert all(word in str(caught.value) for word in words), caught.value

"""The experiment `pesme-flammarion2023`: its path, its flows, its checks, its figure."""

import dataclasses
import itertools

import numpy as np
import pytest

from lintensor_jax.config import ConfigError
from lintensor_jax.experiments import find
from lintensor_jax.experiments.pesme_flammarion2023.configuration import Configuration
from lintensor_jax.experiments.pesme_flammarion2023.results import Path, Result, ScaleRun

experiment = find("pesme-flammarion2023")
TIMES = np.array([1.0, 2.0])
POINTS = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, 1.0]])
LOSSES = np.array([1.0, 0.4, 0.0])


def made_up(digits, constant=0.5):
    """A flow whose jumps are late by a constant."""
    unit = digits * np.log(10)
    times = np.linspace(0, 2.5, 50)
    places = np.searchsorted(TIMES, times)
    return ScaleRun(
        digits=digits,
        times=times,
        losses=LOSSES[places],
        coefficients=POINTS[places],
        jumps=TIMES + constant / unit,
        nearest=np.full(3, 1e-9),
        status="residual",
    )


def result():
    path = Path(TIMES, POINTS, LOSSES, np.full(3, 1e-16), POINTS[-1])
    config = Configuration(digits=(20, 70, 140))
    return Result(config, (), path, tuple(map(made_up, config.digits)))


def _failed(found):
    return [check.name for check in experiment.report(found).checks if not check.passed]


def test_checks_and_verdicts():
    found = result()
    assert _failed(found) == []
    np.testing.assert_allclose(found.slopes, TIMES, atol=1e-13)
    rows = {t.name: t.rows for t in experiment.report(found).tables}
    verdicts = [row["verdict"] for row in rows["comparison"]]
    assert verdicts == ["agrees"] * 3 + ["not compared", "agrees"]
    assert [row["came"] for row in rows["points"]] == ["", "0", "1"]
    assert [row["digits"] for row in rows["scales"]] == [20, 70, 140]
    assert set(experiment.figures(found)) == set(experiment.report(found).captions)


def test_each_check_can_fail():
    found = result()
    *others, last = found.runs
    changes = {
        "points that the flow misses by 1e-6": {"nearest": np.array([0, 0, 1e-3])},
        # The delay grows with log(1/alpha), so the scaled times have another limit.
        "slope of the jump times minus the algorithm's": {"jumps": last.jumps + 0.1},
    }
    for name, change in changes.items():
        wrong = dataclasses.replace(last, **change)
        assert name in _failed(dataclasses.replace(found, runs=(*others, wrong)))
    early = made_up(20, constant=5.0)
    failed = _failed(dataclasses.replace(found, runs=(early, *found.runs[1:])))
    assert failed == ["error of a jump time times log(1/alpha), over the last scale's"]
    path = dataclasses.replace(found.path, slack=np.full(3, 1e-3), l1_solution=np.zeros(2))
    assert _failed(dataclasses.replace(found, path=path)) == [
        "end of the algorithm minus the l1 solution",
        "gradient on a point's support",
    ]


def test_mistakes_in_the_configuration():
    for digits in ((70, 20), (20,), (20, 20)):
        with pytest.raises(ConfigError, match="digits must be 2 to 6 ascending"):
            Configuration(digits=digits)
    assert experiment.reduce(Configuration()) == (Configuration(), ())


@pytest.fixture(scope="module")
def run():
    return experiment.run(Configuration(), (), lambda jobs: jobs)


@pytest.mark.slow
def test_the_flow_follows_the_algorithm(run):
    assert _failed(run) == []
    late = [np.max(np.abs(flow.jumps - run.path.times)) for flow in run.runs]
    assert all(a > b for a, b in itertools.pairwise(late))

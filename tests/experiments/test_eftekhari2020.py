"""The experiment `eftekhari2020`: its checks, that they can fail, its figures and configuration."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lintensor_jax import cli
from lintensor_jax.cli import reproduce
from lintensor_jax.config import ConfigError, load
from lintensor_jax.experiments import find, framework
from lintensor_jax.experiments.eftekhari2020 import configuration
from lintensor_jax.experiments.eftekhari2020.setup import far_start, near_start, whitened

experiment = find("eftekhari2020")


@pytest.fixture(scope="module")
def result():
    """A run with one depth in each part, and few starts."""
    small = experiment.Configuration(
        figure=configuration.FigureTask(depths=(3,)),
        bound=configuration.BoundTask(depths=(3,), starts=6),
        nearby=configuration.NearbyTask(depths=(3,)),
    )
    jobs = []

    def track(all_jobs):
        for job in all_jobs:
            jobs.append(str(job))
            yield job

    found = experiment.run(small, ("one depth",), track)
    assert jobs == ["Figure 1, N = 3", "Theorem 20, N = 3", "nearby rates, N = 3", "landscape"]
    return found


def _failed(result):
    return {check.name: check for check in experiment.report(result).checks if not check.passed}


def test_all_checks_pass(result):
    report = experiment.report(result)
    assert len(report.checks) == 8
    assert not _failed(result)
    assert {table.name: len(table.rows) for table in report.tables} == {
        "figure1": 6,
        "flows": 1,
        "theorem20": 1,
        "nearby": 6,
        "landscape": 11,
        "comparison": 9,
    }


def test_figure_1_starts_and_ends_as_stated(result):
    run = result.figure[0]
    # |Z - beta(0)| for |beta(0)| = 10 |Z| at 30 degrees.
    expected = np.sqrt(1 + 100 - 20 * np.cos(np.radians(30)))
    np.testing.assert_allclose(run.induced[0] / run.target_size, expected, rtol=1e-10)
    assert run.induced[-1] < 1e-5 * run.induced[0]
    assert np.all(np.diff(run.induced) < 0)


def test_each_check_can_fail(result):
    run = result.bounds[0]
    above = dataclasses.replace(run, log_distance=run.log_bound + 1e-3)
    assert "Theorem 20: log(distance^2 / bound)" in _failed(
        dataclasses.replace(result, bounds=(above, *result.bounds[1:]))
    )
    outside = dataclasses.replace(run, slack=run.slack - 1, nearby=-1.0)
    assert list(_failed(dataclasses.replace(result, bounds=(outside,)))) == [
        "Theorem 20: does not apply",
        "Lemmas 15, 19: flows that leave the stable set",
    ]
    slow = dataclasses.replace(result.nearby[0], measured=result.nearby[0].predicted * 1.01)
    assert list(_failed(dataclasses.replace(result, nearby=(slow,)))) == [
        "nearby rate - linearisation, relative"
    ]
    point = result.landscape[0]
    wrong = dataclasses.replace(point, expected="strict", least_eigenvalue=-1.0)
    assert list(_failed(dataclasses.replace(result, landscape=(wrong,)))) == [
        "landscape: wrong verdicts",
        "landscape: known eigenvalue, relative error",
    ]
    figure = dataclasses.replace(result.figure[0], difference=1e-7, end=point.found)
    assert list(_failed(dataclasses.replace(result, figure=(figure,)))) == [
        "end-to-end flow - layered flow, relative",
        "Figure 1's flows not ending at the minimum",
    ]


def test_the_command_line_writes_tables_and_figures(result, monkeypatch, tmp_path, capsys):
    finished = dataclasses.replace(experiment, run=lambda *_: result)
    monkeypatch.setattr(framework, "find", {finished.name: finished}.__getitem__)
    monkeypatch.setattr(reproduce, "configure_jax", lambda: None)
    assert cli.main(["reproduce", "eftekhari2020", "--json", "--out", str(tmp_path)]) == 0
    printed = json.loads(capsys.readouterr().out)
    names = ["table.md", "results.json"]
    for name in ("figure1", "theorem20", "nearby_rates"):
        names += [f"{name}.png", f"{name}.pdf"]
    assert printed["wrote"] == [str(tmp_path / name) for name in names]
    assert printed["passed"] is True
    for name in ("figure1", "theorem20", "nearby_rates"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert min(picture.size) > 600
            colours = picture.convert("RGB").getcolors(1 << 20)
        assert colours is not None
        # The figure has black and a colour, so it is not blank.
        assert {(0, 0, 0), (204, 121, 167)} <= {colour for _, colour in colours}


def test_quick_and_the_configuration_file():
    default = experiment.Configuration()
    quick, notes = experiment.reduce(default)
    assert quick.figure.depths == (2, 10)
    assert quick.bound.starts == 15
    assert len(notes) == 4
    assert experiment.reduce(quick) == (quick, ())
    path = Path(__file__).parents[2] / "configs" / "eftekhari2020.toml"
    assert load(path, experiment.Configuration) == default


def test_the_data_are_as_stated():
    rng = np.random.default_rng(0)
    X = whitened(20, 4, rng)
    np.testing.assert_allclose(X.T @ X, 20 * np.eye(4), rtol=0, atol=1e-13)
    task = configuration.FigureTask()
    problem, target, beta = far_start(task, rng)
    np.testing.assert_allclose(target, np.asarray(problem.X.T @ problem.y) / 50, rtol=0, atol=1e-14)
    cosine = beta @ target / np.linalg.norm(beta) / np.linalg.norm(target)
    np.testing.assert_allclose(np.degrees(np.arccos(cosine)), 30, rtol=1e-10)
    problem, target, beta = near_start(configuration.NearbyTask(), 3, 0.3, rng)
    Z = np.asarray(problem.X.T @ problem.y) / 20
    sizes = np.linalg.svd(Z, compute_uv=False)
    np.testing.assert_allclose(sizes[:2], [0.3, 0.15], rtol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(Z - target, 2), sizes[1], rtol=1e-12)
    assert np.linalg.matrix_rank(beta) == 1


@pytest.mark.parametrize(
    ("build", "key", "message"),
    [
        (lambda: configuration.FigureTask(num_samples=4), "num_samples", ">= dimension = 5, got 4"),
        (lambda: configuration.FigureTask(degrees=90.0), "degrees", "must be < 90, got 90"),
        (lambda: configuration.FigureTask(depths=(2, 2)), "depths", "at most 5 different depths"),
        (lambda: configuration.NearbyTask(gap=1.0), "gap", "must be < 1, got 1"),
        (lambda: configuration.BoundTask(depths=(1,)), "depths[0]", ">= 2, got 1"),
    ],
)
def test_mistakes_in_the_configuration(build, key, message):
    with pytest.raises(ConfigError) as caught:
        build()
    assert caught.value.key == key
    assert message in str(caught.value)

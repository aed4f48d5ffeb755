"""Limit directions of classification: the experiment at small shapes."""

import dataclasses
import json
import tomllib
from pathlib import Path

import numpy as np
import pytest

from lintensor_jax.config import ConfigError, load
from lintensor_jax.experiments import find
from lintensor_jax.experiments.yun2021.classification import configuration

experiment = find("yun2021-classification")


@pytest.fixture(scope="module")
def result():
    """A run with one shape in each part."""
    small = configuration.Configuration(
        theorems=configuration.TheoremsTask(
            architectures=("diagonal",), depths=(2,), dimension=4, num_samples=6, alphas=(0.1,)
        ),
        one_sample=configuration.OneSampleTask(filter_sizes=(2,), dimension=4),
        finite_loss=configuration.FiniteLossTask(
            depths=(2,), mus=(0.1, 1.0), log_inverse_losses=(1e2, 1e3), grid=9
        ),
        side_by_side=configuration.SideBySideTask(
            architectures=("diagonal",), descent_num_steps=4_000
        ),
    )
    jobs = []

    def track(all_jobs):
        for job in all_jobs:
            jobs.append(str(job))
            yield job

    found = experiment.run(small, ("small shapes",), track)
    assert jobs == [
        "theorems, diagonal, 2",
        "one sample, 2",
        "finite loss, 2",
        "side by side, diagonal",
    ]
    return found


def _rows(report, name):
    return next(table.rows for table in report.tables if table.name == name)


def test_all_checks_pass(result):
    report = experiment.report(result)
    assert len(report.checks) == 12
    for check in report.checks:
        assert check.passed, str(check)
    assert [row["start"] for row in _rows(report, "flows")] == ["alpha = 0.1", "ahead"]
    assert len(_rows(report, "finite_loss")) == 4
    text = report.markdown()
    assert "small shapes" in text
    json.dumps(report.as_json(), allow_nan=False)


def test_the_tables_say_what_the_arrays_hold(result):
    report = experiment.report(result)
    path = result.paths["diagonal", 2]["alpha = 0.1"]
    row = _rows(report, "flows")[0]
    assert path.log_loss[-1] <= -1e6
    assert row["end_error"] == path.error[-1] < row["paper_error"]
    # The error at loss 1e-5 is between those of the two saved times around it.
    after = int(np.argmax(path.log_loss < np.log(1e-5)))
    assert path.error[after] <= row["paper_error"] <= path.error[after - 1]
    # On the toy data descent remains far away; in physical time no loss is below 1e-308.
    toy = {row["method"]: row for row in _rows(report, "side_by_side")}
    ours = toy["flow, log-arc-length"]
    assert ours["log_loss"] < -1e8
    assert -709 < toy["flow in physical time"]["log_loss"] < -650
    for method in ("gradient descent", "normalised gradient descent", "flow in physical time"):
        assert toy[method]["distance"] > 100 * ours["distance"]
        assert toy[method]["num_steps"] > ours["num_steps"]


def test_each_check_can_fail(result):
    key, paths = next(iter(result.paths.items()))
    path = paths["ahead"]

    def with_path(**changes):
        changed = {**paths, "ahead": dataclasses.replace(path, **changes)}
        return dataclasses.replace(result, paths={key: changed})

    single, finite = result.one_sample[0], result.finite_loss[2]
    ours = result.side_by_side[-1]
    worse = {
        "certified": with_path(limit_status="not_converged"),
        "limit against predict": with_path(limit=path.limit + 1e-5),
        "KKT residual": with_path(parameter_residual=1e-9),
        "eq. 8 at the limit": with_path(limit_singular_residual=np.nan),
        "residual at the flow's end": with_path(singular_residuals=path.singular_residuals[::-1]),
        "smoothed margin": with_path(smoothed_margin_drop=1e-4),
        "corrected bound": with_path(log_loss=path.log_loss + 0.1),
        "printed bound": with_path(log_printed_bound=path.log_bound + 1),
        "Corollary 4": dataclasses.replace(
            result,
            one_sample=[dataclasses.replace(single, corollary_4=-single.corollary_4)],
        ),
        "Theorem 3": dataclasses.replace(
            result,
            one_sample=[
                dataclasses.replace(
                    single, path=dataclasses.replace(single.path, predicted=single.path.limit + 1)
                )
            ],
        ),
        "finite loss": dataclasses.replace(
            result,
            finite_loss={2: dataclasses.replace(finite, path_errors=finite.path_errors + 1)},
        ),
        "toy data": dataclasses.replace(
            result, side_by_side=[dataclasses.replace(ours, distance=0.01)]
        ),
    }
    for name, changed in worse.items():
        failed = [check.name for check in experiment.report(changed).checks if not check.passed]
        assert len(failed) == 1, (name, failed)
        assert name in failed[0]


def test_figures(result):
    figures = experiment.figures(result)
    assert list(figures) == ["direction_error", "loss_bound", "finite_loss"]
    for figure in figures.values():
        assert all(axes.lines for axes in figure.axes)


def test_the_example_configuration_holds_the_defaults():
    path = Path(__file__).parents[2] / "configs" / "yun2021-classification.toml"
    assert load(path, configuration.Configuration) == configuration.Configuration()
    entries = tomllib.loads(path.read_text(encoding="utf-8"))
    for name, field in entries.items():
        task = getattr(configuration.Configuration(), name)
        assert set(field) == {f.name for f in dataclasses.fields(task)}


def test_reduced_runs_keep_the_checks():
    quick, notes = experiment.reduce(configuration.Configuration())
    assert quick.theorems.depths == (2,)
    assert quick.theorems.log_inverse_loss == 1e6
    assert quick.side_by_side.descent_num_steps == 20_000
    assert len(notes) == 6
    assert experiment.reduce(quick) == (quick, ())


@pytest.mark.parametrize(
    ("task", "values", "words"),
    [
        ("TheoremsTask", {"architectures": ["rnn"]}, ["architectures[0]", "diagonal", "rnn"]),
        ("TheoremsTask", {"ahead_loss": 1.0}, ["ahead_loss", "< 1"]),
        ("TheoremsTask", {"depths": [2, 2]}, ["depths", "different", "[2, 2]"]),
        ("TheoremsTask", {"alphas": [1, 2, 3, 4]}, ["alphas", "at most 3"]),
        ("TheoremsTask", {"log_inverse_loss": 1e9}, ["log_inverse_loss", "1e+09"]),
        ("OneSampleTask", {"filter_sizes": [3]}, ["filter_sizes", "Corollary 4", "[3]"]),
        ("FiniteLossTask", {"log_inverse_losses": [1, 2, 3, 4, 5]}, ["at most 4"]),
        ("SideBySideTask", {"y": [1, 1], "X": [[1, 0], [-1, 0]]}, ["X", "separable"]),
        ("SideBySideTask", {"y": [1, 2]}, ["y", "fit"]),
    ],
)
def test_mistakes_in_the_configuration(task, values, words):
    with pytest.raises(ConfigError) as caught:
        getattr(configuration, task)(**values)
    assert all(word in str(caught.value) for word in words), caught.value

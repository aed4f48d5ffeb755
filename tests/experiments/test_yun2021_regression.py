"""Limits of regression against the initial scale: the experiment, its curves, the benchmark."""

import dataclasses
import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from scipy.optimize import linprog

from lintensor_jax import cli
from lintensor_jax.cli import reproduce
from lintensor_jax.config import ConfigError
from lintensor_jax.experiments import find, framework
from lintensor_jax.experiments.yun2021.regression import configuration
from lintensor_jax.experiments.yun2021.regression.setup import (
    interpolation_setups,
    theorem_7_directions,
    theorem_7_slack,
)
from lintensor_jax.figures import style
from lintensor_jax.figures.curves import Curve, CurvePanel, curve_figure

experiment = find("yun2021-regression")


@pytest.fixture(scope="module")
def result():
    """A run with one depth and few scales; at the smallest one rotated sensors are unstable."""
    small = configuration.Configuration(
        depths=(3,),
        interpolation=configuration.InterpolationTask(
            alphas_per_decade=4, flow_alphas=(3e-2, 1.0, 10.0)
        ),
        fully_connected=configuration.FullyConnectedTask(alphas=(1e-2, 3e-2, 1.0)),
        noncommuting=configuration.NoncommutingTask(alphas=(1e-2, 1.0)),
    )
    jobs = []

    def track(all_jobs):
        for job in all_jobs:
            jobs.append(str(job))
            yield job

    found = experiment.run(small, ("few scales",), track)
    assert jobs == [
        f"{name}, L = 3"
        for name in (
            "diagonal",
            "convolutional",
            "commuting sensors",
            "fully-connected",
            "non-commuting sensors",
        )
    ]
    return found


def _rows(report, name):
    return next(table.rows for table in report.tables if table.name == name)


def test_all_checks_pass(result):
    report = experiment.report(result)
    assert len(report.checks) == 9
    for check in report.checks:
        assert check.passed, str(check)
    flows = _rows(report, "flows")
    assert len(flows) == 9
    assert all(row["mirror_agreement"] is not None for row in flows)


def test_the_ends_are_the_solutions_of_a_linear_and_a_quadratic_program(result):
    config = result.config
    setup = interpolation_setups(6, 3, config.seed)["diagonal"]
    X, y = np.asarray(setup.problem.X), np.asarray(setup.problem.y)
    eta = np.asarray(setup.equations(3)[1])
    # Remark 4: weights 1/|eta|^(L-2) for l1; squares over eta^(2L-2) for l2.
    both = np.concatenate([1 / np.abs(eta)] * 2)
    solved = linprog(both, A_eq=np.hstack([X, -X]), b_eq=y)
    l1 = solved.x[:6] - solved.x[6:]
    l2 = eta**4 * (X.T @ np.linalg.solve((X * eta**4) @ X.T, y))
    runs = result.interpolation["diagonal", 3]
    # The limits are approached as alpha^3 = 1e-12 and alpha^-6 = 1e-12, times moderate constants.
    np.testing.assert_allclose(runs.limits[0], l1, rtol=0, atol=1e-9)
    np.testing.assert_allclose(runs.limits[-1], l2, rtol=0, atol=1e-9)
    # At scales between them the limit is neither.
    middle = runs.limits[np.argmin(np.abs(runs.alphas - 1))]
    assert min(np.max(np.abs(middle - end)) for end in (l1, l2)) > 0.01


@pytest.mark.parametrize("architecture", ["diagonal", "convolutional", "commuting sensors"])
def test_limits_interpolate_the_data(result, architecture):
    problem = interpolation_setups(6, 3, result.config.seed)[architecture].problem
    runs = result.interpolation[architecture, 3]
    for limit in (*runs.limits, *(flow.reached for flow in runs.flows)):
        # After the finish only rounding is left; coefficients are of order one.
        np.testing.assert_allclose(problem.predictions(limit), problem.y, rtol=0, atol=1e-10)


def test_fully_connected_networks_approach_the_l2_solution_as_alpha(result):
    runs = result.fully_connected[3]
    distance = [np.linalg.norm(flow.reached - runs.reference) for flow in runs.flows]
    assert distance[0] < 0.01
    # |P W_1(0) W_2 ... w_L| with W_1(0) = alpha Wbar_1; the rest changes by O(alpha).
    np.testing.assert_allclose(distance[1] / distance[0], 3, rtol=0.05)
    assert distance[2] > 0.1


def test_commuting_sensors_in_another_basis_are_unstable_in_rounded_arithmetic(result):
    report = experiment.report(result)
    rotated = _rows(report, "rotated")
    in_eigenbasis = [r for r in _rows(report, "flows") if r["architecture"] == "commuting sensors"]
    assert [row["alpha"] for row in rotated] == [row["alpha"] for row in in_eigenbasis]
    # At 3e-2 a rounding of 1e-16 has grown by ten orders; at 1 and 10 it has not.
    assert rotated[0]["agreement"] > 1e3 * in_eigenbasis[0]["agreement"]
    assert rotated[0]["mixing"] > 1e-9
    assert all(row["agreement"] < 1e-8 for row in rotated[1:])


def test_a_wrong_limit_fails_its_check_by_name(result):
    key = ("convolutional", 3)
    runs = result.interpolation[key]
    moved = dataclasses.replace(runs.flows[1], reached=runs.flows[1].reached * (1 + 1e-6))
    wrong = dataclasses.replace(runs, flows=(runs.flows[0], moved, runs.flows[2]))
    broken = dataclasses.replace(result, interpolation={**result.interpolation, key: wrong})
    failed = [check for check in experiment.report(broken).checks if not check.passed]
    assert [check.row for check in failed] == ["convolutional, L = 3, alpha = 1"] * 2
    assert failed[0].name.startswith("flow - Theorem 5")


def test_a_flow_that_does_not_end_and_a_wrong_rate_fail(result):
    runs = result.fully_connected[3]
    first = dataclasses.replace(runs.flows[0], status="max_steps", reached=2 * runs.reference)
    wrong = dataclasses.replace(runs, flows=(first, *runs.flows[1:]), condition=-0.1)
    report = experiment.report(dataclasses.replace(result, fully_connected={3: wrong}))
    failed = {check.name: check for check in report.checks if not check.passed}
    assert list(failed) == [
        "flows not stopped by their residual",
        "Theorem 7: rate to l2 - theory",
        "Theorem 7: conditions, violated by",
    ]
    assert math.isclose(failed["Theorem 7: conditions, violated by"].worst, 0.1)


def test_the_command_line_writes_tables_and_figures(result, monkeypatch, tmp_path, capsys):
    finished = dataclasses.replace(experiment, run=lambda *_: result)
    monkeypatch.setattr(framework, "find", {finished.name: finished}.__getitem__)
    monkeypatch.setattr(reproduce, "configure_jax", lambda: None)
    assert cli.main(["reproduce", "yun2021-regression", "--json", "--out", str(tmp_path)]) == 0
    printed = json.loads(capsys.readouterr().out)
    names = ["table.md", "results.json"]
    names += [f"{n}.{kind}" for n in ("l1_to_l2", "alpha_to_zero") for kind in ("png", "pdf")]
    assert printed["wrote"] == [str(tmp_path / name) for name in names]
    assert printed["passed"] is True
    # 4 scales per decade over six decades, in three architectures.
    assert len(printed["tables"]["limits"]) == 3 * 25
    text = (tmp_path / "table.md").read_text()
    assert text.count("- passed: ") == 9
    assert "Outside the theorems" in text
    with Image.open(tmp_path / "l1_to_l2.png") as picture:
        assert min(picture.size) > 600
        colours = picture.convert("RGB").getcolors(1 << 20)
    assert colours is not None
    # The figure has the colours of both quantities, so it is not blank.
    assert {(204, 121, 167), (10, 92, 140)} <= {colour for _, colour in colours}


def test_quick_leaves_out_the_slow_flows_and_says_so():
    quick, notes = experiment.reduce(configuration.Configuration())
    assert quick.depths == (2, 3)
    assert min(quick.interpolation.flow_alphas) == 0.1
    assert quick.interpolation.smallest_alpha == 1e-4
    assert notes[0] == "depths 2, 3 instead of 2, 3, 4"
    assert len(notes) == 2
    assert experiment.reduce(quick) == (quick, ())


@pytest.mark.parametrize(
    ("build", "key", "message"),
    [
        (lambda: configuration.InterpolationTask(num_samples=6), "num_samples", "< dimension = 6"),
        (
            lambda: configuration.InterpolationTask(largest_alpha=1e-5),
            "largest_alpha",
            "> smallest_alpha = 0.0001, got 1e-05",
        ),
        (lambda: configuration.FullyConnectedTask(num_samples=5), "num_samples", "got 5"),
        (lambda: configuration.FullyConnectedTask(alphas=(1, 1)), "alphas", "two different scales"),
        (lambda: configuration.NoncommutingTask(num_samples=10), "num_samples", "= 10, got 10"),
        (lambda: configuration.Configuration(depths=(1,)), r"depths[0]", ">= 2, got 1"),
        (lambda: configuration.Configuration(depths=(2, 2)), "depths", "different depths"),
    ],
)
def test_mistakes_in_the_configuration(build, key, message):
    with pytest.raises(ConfigError) as caught:
        build()
    assert caught.value.key == key
    assert message in str(caught.value)


@pytest.mark.parametrize("depth", [2, 3, 4, 6])
def test_theorem_7s_conditions(depth):
    directions = theorem_7_directions(depth, 5, np.random.default_rng(depth))
    assert [w.shape for w in directions] == [(5, 5)] * (depth - 1) + [(5,)]
    assert theorem_7_slack(directions) > 0.05
    # A last layer as long as the matrix before it breaks the last condition.
    assert theorem_7_slack([*directions[:-1], 4 * directions[-1]]) < 0
    if depth > 2:
        assert theorem_7_slack([*directions[:-1][::-1], directions[-1]]) < 0


# Curves.

X = np.geomspace(1e-2, 1e2, 9)


def _figure():
    curves = [
        Curve(X, X**2, "rising", "a"),
        Curve(X, 1 / X, "falling", "a"),
        Curve(X, np.where(X > 1, X, 0), "rising", "b"),
        Curve(X[::4], X[::4] ** 2, "rising", "a", "measured"),
    ]
    panel = CurvePanel("Panel", curves, "x", "y", guides=[(2.0, 1.0, 0.1, "slope 2")])
    return curve_figure([panel, dataclasses.replace(panel, curves=curves[:2], guides=())])


def test_colours_are_quantities_and_line_styles_are_series():
    axes, other = _figure().axes
    lines = axes.get_lines()
    assert lines[0].get_color() == lines[2].get_color() != lines[1].get_color()
    assert lines[0].get_linestyle() == lines[1].get_linestyle() != lines[2].get_linestyle()
    assert lines[3].get_marker() == "o"
    assert lines[3].get_markeredgecolor() == lines[0].get_color()
    assert [line.get_color() for line in other.get_lines()] == [
        line.get_color() for line in lines[:2]
    ]
    assert axes.get_xscale() == axes.get_yscale() == "log"
    # Zeros have no logarithm.
    np.testing.assert_array_equal(lines[2].get_xdata(), X[X > 1])
    # The guide: slope 2 through (1, 0.1).
    ends = np.asarray(lines[4].get_xydata())
    np.testing.assert_allclose(ends[:, 1], 0.1 * ends[:, 0] ** 2)
    assert not {lines[0].get_color(), lines[1].get_color()} & set(style.COLOURS.values())


def test_the_legend_has_a_column_for_each_kind():
    figure = _figure()
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["rising", "falling", "a", "b", "measured", " "]
    figure.canvas.draw()
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1


def test_more_series_than_line_styles_are_refused():
    curves = [Curve(X, X, "q", str(k)) for k in range(5)]
    with pytest.raises(ValueError, match="at most 4 series can be distinguished"):
        curve_figure([CurvePanel("Panel", curves, "x", "y")])


@pytest.mark.slow
def test_curves_import_nothing_else_of_the_package():
    program = (
        "import sys; import lintensor_jax; before = set(sys.modules);"
        "import lintensor_jax.figures.curves;"
        "print(sorted(m for m in set(sys.modules) - before if m.startswith('lintensor_jax')))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    names = ["lintensor_jax.figures.curves", "lintensor_jax.figures.style"]
    assert done.stdout.strip() == str(names), done.stderr


# The benchmark: a sample of one shape.


@pytest.fixture(scope="module")
def benchmark():
    path = Path(__file__).parents[2] / "benchmarks" / "regression_limits.py"
    spec = importlib.util.spec_from_file_location("regression_limits", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    assert jax.config.read("jax_enable_x64")
    yield module
    del sys.modules[spec.name]


@pytest.mark.slow
def test_full_flow_mirror_flow_and_theorem_5_agree(benchmark):
    cases = [benchmark.draw(index, 8, 3, 3) for index in (0, 2, 5)]
    assert len({np.sign(case.eta).sum() for case in cases}) > 1
    assert min(case.alpha for case in cases) < 0.05
    for case in cases:
        outcome = benchmark.compare(case)
        assert not outcome.failed, outcome
        assert outcome.mirror is not None


def test_the_benchmark_counts_failures(benchmark):
    good = benchmark.Outcome("case", 1e-9, 1e-10, "residual", "residual", 9, 0, 3, True)
    assert not good.failed
    for change in (
        {"theory": 2e-7},
        {"theory": math.nan},
        {"mirror": 2e-8},
        {"status": "max_steps"},
        {"mirror_status": "solver_failed"},
        {"converged": False},
    ):
        assert dataclasses.replace(good, **change).failed
    assert not dataclasses.replace(good, mirror=None, mirror_status="refused").failed
    shapes = {(c.dimension, c.num_samples, c.depth) for c in benchmark.cases(200)}
    assert max(shape[0] for shape in shapes) == 64
    assert max(shape[1] for shape in shapes) == 16
    assert {shape[2] for shape in shapes} == {2, 3, 4, 5}

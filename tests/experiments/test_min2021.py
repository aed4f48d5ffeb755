"""The experiment `min2021`: its reduction, checks, figures; and the benchmark of its bounds."""

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from scipy.integrate import solve_ivp

import lintensor_jax as lt
from lintensor_jax import cli, theory
from lintensor_jax.config import ConfigError
from lintensor_jax.experiments import find, framework
from lintensor_jax.experiments.min2021 import configuration
from lintensor_jax.experiments.min2021.results import PowerLaw, meaningful, power_law
from lintensor_jax.experiments.min2021.setup import (
    Reduction,
    factorization,
    gaussian_data,
    measured_rate,
    whitened_data,
)

experiment = find("min2021")
SMALL = experiment.Configuration(
    num_times=13,
    rates=configuration.RateTask(
        inputs=6, outputs=3, spectrum_outputs=(3,), spectrum_widths=(9, 200), widths=(9, 200)
    ),
    imbalance=configuration.ImbalanceTask(dimension=20, num_samples=6, width=30, duration=3.0),
    width=configuration.WidthTask(dimension=20, num_samples=4, widths=(20, 60, 200, 600), runs=4),
)


@pytest.fixture(scope="module")
def result():
    return experiment.run(SMALL)


def test_bounds_hold(result):
    report = experiment.report(result)
    assert report.passed, [str(check) for check in report.checks if not check.passed]
    for run in [*result.rates, *result.imbalance]:
        kept = meaningful(run)
        assert kept.sum() > 5
        assert np.all(run.rate[kept] >= run.proposition_1[kept] * (1 - 1e-9))
        assert np.all(run.excess_loss[kept] <= run.loss_bound[kept] * (1 + 1e-6))
    # A wider network has a higher level, less spread and a tighter bound (Min et al. 2021, A.1).
    narrow, wide = result.spectra
    assert wide.level > 2 * narrow.level
    assert wide.positive_spread < narrow.positive_spread
    # The balanced start is the slowest, and the most imbalanced one the fastest (A.2).
    finals = [run.rate[0] for run in result.imbalance]
    assert finals[3] < min(finals[:3])
    assert finals[1] == max(finals)
    assert result.imbalance[3].corollary_4 < 1e-12


def test_checks_can_fail(result):
    first = result.rates[0]
    wrong = {
        "Proposition 1": {"rates": (dataclasses.replace(first, rate=0.9 * first.proposition_1),)},
        "loss over": {"rates": (dataclasses.replace(first, theorem_3=10.0),)},
        "balanced start": {"imbalance": result.imbalance[:-1]},
        "distance over": {
            "widths": tuple(dataclasses.replace(r, deviation_bound=1e-3) for r in result.widths)
        },
        "slope off": {
            "widths": tuple(
                dataclasses.replace(r, distance=r.width**-0.7 * (1 + 1e-3 * r.index))
                for r in result.widths
            )
        },
        "flows of": {
            "widths": (dataclasses.replace(result.widths[0], status="time"), *result.widths[1:])
        },
    }
    for name, change in wrong.items():
        failed = [
            c.name
            for c in experiment.report(dataclasses.replace(result, **change)).checks
            if not c.passed
        ]
        assert any(n.startswith(name) for n in failed), (name, failed)


def test_the_command_writes_tables_and_figures(result, tmp_path, monkeypatch, capsys):
    finished = dataclasses.replace(experiment, run=lambda *_: result)
    monkeypatch.setattr(framework, "find", {finished.name: finished}.__getitem__)
    assert cli.main(["reproduce", "min2021", "--json", "--out", str(tmp_path)]) == 0
    printed = json.loads(capsys.readouterr().out)
    figures = ("figure2_4", "figure5", "figure3_6", "figure7")
    names = ["table.md", "results.json"]
    names += [f"{name}.{kind}" for name in figures for kind in ("png", "pdf")]
    assert printed["wrote"] == [str(tmp_path / name) for name in names]
    assert len(printed["tables"]["widths"]) == 4
    assert len(printed["tables"]["imbalance"]) == 4
    for name in figures:
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert min(picture.size) > 400
            colours = picture.convert("RGB").getcolors(1 << 20)
        assert colours is not None
        # The figure has the colours of two lines, so it is not blank.
        assert {(204, 121, 167), (10, 92, 140)} <= {colour for _, colour in colours}


def integrate(network, problem, time):
    """The flow's end, by SciPy."""
    X, y = np.asarray(problem.X), np.asarray(problem.y)
    shapes = [w.shape for w in network.weights]
    size = int(np.prod(shapes[0]))

    def field(_, theta):
        u, v = theta[:size].reshape(shapes[0]), theta[size:].reshape(shapes[1])
        slope = X.T @ (X @ (u @ v) - y)
        outer = np.outer(slope, v) if v.ndim == 1 else slope @ v.T
        return -np.concatenate([outer.ravel(), (u.T @ slope).ravel()])

    start = np.concatenate([np.asarray(w).ravel() for w in network.weights])
    theta = solve_ivp(field, (0, time), start, "DOP853", rtol=1e-11, atol=1e-13).y[:, -1]
    parts = theta[:size].reshape(shapes[0]), theta[size:].reshape(shapes[1])
    return lt.FullyConnectedNetwork(parts)


@pytest.mark.parametrize(
    ("n", "d", "h", "m"),
    [(3, 7, 15, None), (3, 7, 4, None), (3, 6, 12, 2), (5, 4, 9, 2)],
    ids=["wide", "narrow", "outputs", "n > d"],
)
def test_the_reduction_is_exact(n, d, h, m):
    rng = np.random.default_rng([n, d, h])
    outputs = () if m is None else (m,)
    network = lt.FullyConnectedNetwork(
        [0.5 * rng.standard_normal((d, h)), 0.5 * rng.standard_normal((h, *outputs))]
    )
    X = rng.standard_normal((n, d))
    if n > d:
        X[:, -1] = X[:, 0]  # without full column rank
    problem = lt.Regression(X, rng.standard_normal((n, *outputs)))
    reduction = Reduction.of(network, problem)
    r = np.linalg.matrix_rank(X)
    assert reduction.network.weights[0].shape == (r, min(h, r + (m or 1)))
    np.testing.assert_allclose(
        reduction.coefficients(reduction.network), network.linear_coefficients(), rtol=0, atol=1e-13
    )
    for time in (0.3, 2.0):
        whole = integrate(network, problem, time)
        part = integrate(reduction.network, reduction.problem, time)
        # Both integrations have rtol 1e-11.
        np.testing.assert_allclose(
            reduction.coefficients(part), whole.linear_coefficients(), rtol=0, atol=1e-8
        )


@pytest.mark.slow
def test_the_reduction_keeps_every_bound():
    network, problem = factorization(4, 2, 9, 0)
    problem = lt.Regression(np.asarray(problem.X)[:3], np.asarray(problem.y)[:3])
    reduction = Reduction.of(network, problem)
    full, less, narrow = (
        lt.convergence_rate_bound(*pair)
        for pair in (
            (network, problem),
            (reduction.network, reduction.problem),
            (reduction.narrow, problem),
        )
    )
    for name in ("instantaneous", "guaranteed", "asymptotic", "error_norm"):
        expected = getattr(full, name)
        np.testing.assert_allclose(getattr(less, name), expected, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(getattr(narrow, name), expected, rtol=1e-9, atol=1e-12)
    away = theory.distance_from_invariant_set(network, problem)
    np.testing.assert_allclose(
        theory.distance_from_invariant_set(reduction.narrow, problem), away, rtol=1e-10
    )


@pytest.mark.slow
def test_the_reduced_flow_is_the_full_flow():
    """`gradient_flow` of both networks is compared, up to the limit."""
    problem = gaussian_data(12, 4, 1)
    like = lt.FullyConnectedNetwork.zeros((12, 20))
    network = lt.initialization.width_scaled(like, jax.random.key(0))
    reduction = Reduction.of(network, problem)
    whole = lt.gradient_flow(network, problem, rtol=1e-10)
    part = lt.gradient_flow(reduction.network, reduction.problem, rtol=1e-10, finish=None)
    np.testing.assert_allclose(
        reduction.coefficients(part.network), whole.coefficients[-1], rtol=0, atol=1e-8
    )


def test_setups():
    whitened, gaussian = whitened_data(30, 10, 0), gaussian_data(300, 50, 0)
    np.testing.assert_allclose(np.linalg.svd(whitened.X)[1], 1, rtol=1e-12)
    # 15,000 entries of variance 1 / 300.
    np.testing.assert_allclose(np.var(gaussian.X), 1 / 300, rtol=0.1)


@pytest.mark.slow
def test_factorization_and_its_rate():
    problems = [factorization(20, 5, width, 0)[1] for width in (30, 50)]
    np.testing.assert_array_equal(problems[0].y, problems[1].y)
    np.testing.assert_allclose(problems[1].X, np.eye(20) / np.sqrt(250), rtol=1e-12)
    # The measured rate of the scalar network of section 3.1: 2 (u^2 + v^2) times the loss.
    network = lt.FullyConnectedNetwork([[[0.7]], [0.4]])
    problem = lt.Regression([[1.0]], [2.0])
    loss = (2 - 0.28) ** 2 / 2
    np.testing.assert_allclose(
        measured_rate(network, problem), 2 * (0.7**2 + 0.4**2) * loss, rtol=1e-13
    )


def test_power_laws():
    x = np.repeat([500.0, 1000, 3000, 10_000], 5)
    noise = 0.03 * np.random.default_rng(0).standard_normal(len(x))
    exact = PowerLaw.through(x, 3 * x**-0.5 * np.exp(-20 / x), True)
    np.testing.assert_allclose([exact.slope, exact.correction], [-0.5, -20], rtol=1e-9)
    np.testing.assert_allclose(exact(x), 3 * x**-0.5 * np.exp(-20 / x), rtol=1e-9)
    # Without the correction the exponent is off, by more than its error bar.
    plain = PowerLaw.through(x, 3 * x**-0.5 * np.exp(-20 / x), False)
    assert abs(plain.slope + 0.5) > plain.error_bar
    assert plain.correction == 0
    noisy = PowerLaw.through(x, 3 * x**-0.5 * np.exp(noise), False)
    columns = np.stack([np.log(x), np.ones_like(x)], axis=1)
    slope, rest = np.linalg.lstsq(columns, np.log(3 * x**-0.5) + noise, rcond=None)[:2]
    error = np.sqrt(rest[0] / (len(x) - 2) / np.sum((np.log(x) - np.log(x).mean()) ** 2))
    np.testing.assert_allclose([noisy.slope, noisy.error_bar], [slope[0], 2 * error], rtol=1e-9)


def test_two_widths_are_a_line(result):
    few = dataclasses.replace(result, widths=tuple(r for r in result.widths if r.width > 100))
    assert power_law(few).correction == 0
    assert power_law(result).correction != 0


def test_quick_leaves_out_the_widest_networks_and_says_so():
    quick, notes = experiment.reduce(experiment.Configuration())
    assert max(quick.width.widths) == 5000
    assert notes == ("Figure 7: widths up to 5000 instead of 10000",)
    assert quick.rates == experiment.Configuration().rates
    assert experiment.reduce(quick) == (quick, ())


@pytest.mark.parametrize(
    ("build", "key", "message"),
    [
        (
            lambda: configuration.RateTask(widths=(9,)),
            "widths",
            ">= min(inputs, outputs) = 10, got 9",
        ),
        (lambda: configuration.RateTask(spectrum_widths=(4,)), "spectrum_widths", "= 5, got 4"),
        (lambda: configuration.RateTask(widths=tuple(range(30, 37))), "widths", "at most 6"),
        (lambda: configuration.ImbalanceTask(num_samples=500), "num_samples", "< dimension = 500"),
        (lambda: configuration.ImbalanceTask(first_scales=(0.1,)), "last_scales", "same product"),
        (
            lambda: configuration.ImbalanceTask(first_scales=(1, 2), last_scales=(1, 1)),
            "last_scales",
            "one end-to-end matrix",
        ),
        (lambda: configuration.WidthTask(num_samples=600), "num_samples", "got 600"),
        (lambda: configuration.WidthTask(widths=(500, 500)), "widths", "two different widths"),
        (lambda: configuration.WidthTask(exponent=0.6), "exponent", "<= 0.5 (Theorem 12), got 0.6"),
        (lambda: configuration.WidthTask(exponent=0.25), "exponent", "> 0.25"),
    ],
)
def test_mistakes_in_the_configuration(build, key, message):
    with pytest.raises(ConfigError) as caught:
        build()
    assert caught.value.key == key
    assert message in str(caught.value)


# The benchmark: a sample of one shape.


@pytest.fixture(scope="module")
def benchmark():
    path = Path(__file__).parents[2] / "benchmarks" / "convergence_rates.py"
    spec = importlib.util.spec_from_file_location("convergence_rates", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_the_benchmark_finds_violations(benchmark):
    """An outcome fails if an excess is 1.1 times the allowed one, or if nothing is compared."""
    good = benchmark.Outcome("case", "r = m", "time", 9, 0.3, 0.0, (1.0, 2.0), None, True)
    assert not good.failed
    for change in ({"rate_excess": 1.1}, {"loss_excess": 1.1}, {"num_times": 0}):
        assert dataclasses.replace(good, **change).failed
    assert dataclasses.replace(good, rate_excess=np.nan).failed
    bias = benchmark.Bias("problem", 1e-12, 0.5, 0.3)
    assert not bias.failed
    for change in ({"inside": 1e-9}, {"half_inside": 1e-9}, {"resting": 0.0}):
        assert dataclasses.replace(bias, **change).failed
    drawn = list(benchmark.cases(200))
    assert {case.regime for case in drawn} == {"r < m", "r = m", "r > m"}
    sizes = [np.linalg.norm(case.first) for case in drawn]
    assert min(sizes) < 1e-2
    assert max(sizes) > 1e3


@pytest.mark.slow
def test_a_sample_of_the_benchmark(benchmark):
    cases = [benchmark.draw(index, benchmark.SHAPES[7]) for index in range(8)]
    outcomes = [benchmark.compare(case) for case in cases]
    assert not [outcome for outcome in outcomes if outcome.failed]
    assert sum(outcome.guaranteed for outcome in outcomes) > 2
    assert all(x >= 1 - 1e-9 for outcome in outcomes for x in outcome.tightness)
    assert not benchmark.bias(0).failed


@pytest.mark.slow
def test_the_benchmark_would_see_a_wrong_bound(benchmark, monkeypatch):
    """Doubled bounds are violated in scalar flows, for which Proposition 1 is an equality."""
    cases = [benchmark.draw(index, benchmark.SHAPES[13]) for index in range(6)]
    assert not any(benchmark.compare(case).failed for case in cases)
    along = benchmark._along

    def doubled(weights, problem):
        bounds, slopes = along(weights, problem)
        double = dataclasses.replace(
            bounds, instantaneous=2 * bounds.instantaneous, guaranteed=2 * bounds.guaranteed
        )
        return double, slopes

    monkeypatch.setattr(benchmark, "_along", doubled)
    outcomes = [benchmark.compare(case) for case in cases]
    assert any(outcome.rate_excess > 1 for outcome in outcomes)
    assert any(outcome.loss_excess > 1 for outcome in outcomes)

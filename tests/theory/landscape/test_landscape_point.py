"""Verdicts at known points, against dense Hessians; stable sets and Theorem 20; both errata."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import lintensor_jax as lt
from lintensor_jax import initialization, theory
from lintensor_jax.experiments.eftekhari2020.configuration import BoundTask
from lintensor_jax.experiments.eftekhari2020.setup import landscape_cases, random_starts
from lintensor_jax.networks import AssumptionFails
from lintensor_jax.theory.landscape.lanczos import extreme_eigenvalues

CASES = list(landscape_cases(np.random.default_rng(5)))


def _dense(network, problem):
    """The Hessian by jax.hessian, which uses neither Hessian-vector products nor Lanczos."""
    flat, unravel = ravel_pytree(network)
    return np.asarray(
        jax.hessian(lambda theta: problem.loss(unravel(theta).linear_coefficients()))(flat)
    )


# At N = 2 zero is a strict saddle: the erratum to Eftekhari 2020, after Theorem 8, whose printed
# form (spurious for N >= 2) fails there and holds from N = 3 on.
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case[0], marks=[pytest.mark.slow] if "N = 4" in case[0] else [])
        for case in CASES
    ],
)
def test_known_points(case):
    _, expected, known, network, problem = case
    point = lt.landscape_point(network, problem)
    assert point.kind == expected
    values = np.linalg.eigvalsh(_dense(network, problem))
    scale = max(np.max(np.abs(values)), 1e-300)
    np.testing.assert_allclose(point.smallest_eigenvalue, values[0], rtol=0, atol=1e-12 * scale)
    np.testing.assert_allclose(point.largest_eigenvalue, values[-1], rtol=0, atol=1e-12 * scale)
    assert point.lower_bound <= values[0] + 1e-12 * scale
    np.testing.assert_allclose(
        theory.hessian(network, problem), _dense(network, problem), rtol=0, atol=1e-9
    )
    if known is not None:
        np.testing.assert_allclose(values[0], known, rtol=0, atol=1e-12 * scale)
    assert expected in str(point)
    if expected == "strict saddle":
        # The loss falls along the escape direction, in second order.
        step = jax.tree.map(lambda w, v: w + 1e-3 * v, network, point.escape_direction)
        fall = problem.loss(step.linear_coefficients()) - point.loss
        np.testing.assert_allclose(fall, 0.5e-6 * values[0], rtol=0.05)


def test_zero_is_spurious_for_three_layers_and_not_for_two():
    verdicts = {case[0]: lt.landscape_point(case[3], case[4]) for case in CASES[:1] + CASES[3:4]}
    two, three = verdicts["zero, N = 2"], verdicts["zero, N = 3"]
    printed = lt.PointKind.SPURIOUS
    assert two.kind is lt.PointKind.STRICT_SADDLE is not printed
    assert three.kind is printed
    assert two.smallest_eigenvalue < -1
    assert three.smallest_eigenvalue == three.largest_eigenvalue == 0
    assert two.is_stationary
    assert not two.is_second_order
    assert three.is_second_order
    assert three.rank == 0
    assert three.largest_rank == 2


@pytest.mark.parametrize("width", [1, 2, 3, 5])
def test_the_least_loss_is_that_of_the_best_approximation(width):
    rng = np.random.default_rng(width)
    X, y = rng.standard_normal((9, 4)), rng.standard_normal((9, 3))
    X[:, 3] = X[:, 2]  # X is rank-deficient
    # Y P_X and its best approximation of rank r, eq. (12).
    fitted = X @ np.linalg.pinv(X) @ y
    U, s, Vt = np.linalg.svd(fitted, full_matrices=False)
    best = (U[:, :width] * s[:width]) @ Vt[:width]
    network = lt.FullyConnectedNetwork.zeros((4, width, 5), 3)
    found = theory.least_loss(network, lt.Regression(X, y))
    assert found is not None
    np.testing.assert_allclose(found, 0.5 * np.sum((y - best) ** 2), rtol=1e-12)


@pytest.mark.slow
def test_every_kind_of_network_and_problem():
    rng = np.random.default_rng(8)
    X, y = rng.standard_normal((6, 4)), rng.standard_normal(6)
    regression, labels = lt.Regression(X, y), lt.Classification(X, np.sign(y))
    kind = lt.PointKind
    cases = [
        (lt.DiagonalNetwork.zeros(2, 4), regression, kind.STRICT_SADDLE),
        (lt.DiagonalNetwork.zeros(3, 4), labels, kind.SPURIOUS),
        (
            lt.ConvolutionalNetwork([np.zeros(2), np.zeros(4), np.zeros(4)]),
            labels,
            kind.SECOND_ORDER,
        ),
        (
            lt.MatrixFactorizationNetwork([np.eye(2), np.eye(2)]),
            _identity_is_best(),
            kind.GLOBAL_MINIMUM,
        ),
        (
            initialization.gaussian(lt.DiagonalNetwork.zeros(2, 4), jax.random.key(0)),
            labels,
            kind.NOT_STATIONARY,
        ),
    ]
    for network, problem, expected in cases:
        assert lt.landscape_point(network, problem).kind is expected


def _identity_is_best():
    sensors = np.random.default_rng(0).standard_normal((3, 2, 2))
    return lt.MatrixSensing(sensors, np.trace(sensors, axis1=1, axis2=2))


def test_lanczos_against_a_dense_spectrum_with_multiple_eigenvalues():
    rng = np.random.default_rng(0)
    values = np.concatenate([[-2.0] * 5, np.linspace(-1, 1, 60), [3.0] * 4, np.zeros(40)])
    basis = np.linalg.qr(rng.standard_normal((values.size,) * 2))[0]
    matrix = jnp.asarray((basis * values) @ basis.T)
    found = extreme_eigenvalues(
        lambda v, a: a @ v, matrix, matrix[0], jax.random.key(3), max_steps=109, tolerance=1e-10
    )
    assert abs(found.smallest + 2) <= found.smallest_error + 1e-12
    assert abs(found.largest - 3) <= found.largest_error + 1e-12
    assert max(found.smallest_error, found.largest_error) < 1e-9
    assert found.num_products < 109
    np.testing.assert_allclose(matrix @ found.direction, -2 * found.direction, rtol=0, atol=1e-8)
    # If Lanczos stops early, it reports this; the true values are within its errors and bound.
    early = extreme_eigenvalues(
        lambda v, a: a @ v, matrix, matrix[0], jax.random.key(3), max_steps=8, tolerance=1e-10
    )
    assert early.smallest > -2
    assert early.smallest_error > 1e-3
    assert early.lower_bound <= -2


@pytest.mark.slow
def test_a_hundred_thousand_parameters():
    rng = np.random.default_rng(0)
    problem = lt.Regression(rng.standard_normal((150, 190)), rng.standard_normal((150, 190)))
    like = lt.FullyConnectedNetwork.zeros((190, 180, 180), 190)
    point = lt.landscape_point(like, problem)
    assert point.kind is lt.PointKind.SPURIOUS
    saddle = lt.FullyConnectedNetwork.zeros((190, 270), 190)
    point = lt.landscape_point(saddle, problem)
    assert sum(w.size for w in saddle.weights) > 1e5
    expected = -np.linalg.norm(np.asarray(problem.X.T @ problem.y), 2)
    # The extreme eigenvalue is simple up to the width, and converges to the tolerance of Lanczos.
    np.testing.assert_allclose(point.smallest_eigenvalue, expected, rtol=1e-8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tolerance": 0.0}, r"tolerance: must lie in \(0, 1\), got 0.0"),
        ({"max_products": 0}, "max_products: must be a positive int, got 0"),
        ({"problem": lt.Regression(np.eye(3), np.ones(3))}, r"Regression needs shape \(3,\)"),
        ({"problem": "data"}, "problem: must be an object such as"),
    ],
)
def test_bad_input(change, message):
    arguments = {"network": lt.DiagonalNetwork.zeros(2, 4), "problem": None, **change}
    arguments["problem"] = change.get("problem", lt.Regression(np.eye(4), np.ones(4)))
    with pytest.raises(ValueError, match=message):
        lt.landscape_point(**arguments)


# Stable sets and Theorem 20.


def _spiked(size=0.1, gap=0.0, n=20, seed=0):
    rng = np.random.default_rng(seed)
    X = np.sqrt(n) * np.linalg.qr(rng.standard_normal((n, 4)))[0]
    U = np.linalg.qr(rng.standard_normal((4, 4)))[0]
    V = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    Z = (U[:, :3] * (size * np.array([1, gap, gap / 2]))) @ V.T
    return lt.Regression(X, X @ Z), U, V


def test_the_target():
    problem, U, V = _spiked(0.3, 0.4)
    target = theory.rank_one_target(problem)
    np.testing.assert_allclose(target.matrix, 0.3 * np.outer(U[:, 0], V[:, 0]), rtol=0, atol=1e-14)
    np.testing.assert_allclose([target.size, target.gap, target.scale], [0.3, 0.4, 20])
    with pytest.raises(AssumptionFails, match="X\\^T X is a multiple of the identity"):
        theory.rank_one_target(lt.Regression(problem.X[:9], problem.y[:9]))
    with pytest.raises(AssumptionFails, match="s_2/s_1"):
        theory.rank_one_target(_spiked(1.0, 1.0)[0])


def test_membership_condition_by_condition():
    problem, U, V = _spiked(2.0, 0.1)
    found = theory.stable_set(problem, 0.5, 3.0)
    unbounded = theory.stable_set(problem, 0.5)

    def beta(s, cosine):
        u = cosine * U[:, 0] + math.sqrt(1 - cosine**2) * U[:, 1]
        return 2.0 * s * np.outer(u, V[:, 0])

    assert found.contains(theory.rank_one_target(problem).matrix)
    assert found.contains(beta(0.41, 0.51))
    assert not found.contains(beta(0.39, 0.51))
    assert not found.contains(beta(0.41, 0.49))
    assert not found.contains(beta(1.0, -0.9))
    assert found.contains(beta(2.99, 0.9))
    assert not found.contains(beta(3.01, 0.9))
    assert unbounded.contains(beta(3.01, 0.9))
    np.testing.assert_allclose(found.slack(beta(0.41, 0.9)), 0.01, rtol=1e-10)
    # Not of rank one.
    assert not found.contains(beta(1.0, 0.9) + 1e-3 * np.outer(U[:, 1], V[:, 1]))
    stack = np.stack([beta(0.41, 0.51), beta(0.39, 0.51)])
    np.testing.assert_array_equal(found.slack(stack) > 0, [True, False])
    for alpha in (0.05, 1.0):
        with pytest.raises(ValueError, match=r"alpha: must lie in \(gamma_Z, 1\) = \(0.1, 1\)"):
            theory.stable_set(problem, alpha)
    with pytest.raises(ValueError, match="upper: must be > 1"):
        theory.stable_set(problem, 0.5, 1.0)
    with pytest.raises(ValueError, match="coefficients: must have shape"):
        found.contains(np.ones((3, 4)))


def _far_flow(problem, U, V, depth=3):
    """A balanced flow from the stable set, from s = 8 s_Z."""
    size = float(theory.rank_one_target(problem).size)
    u = np.cos(0.3) * U[:, 0] + np.sin(0.3) * U[:, 1]
    beta = 8 * size * np.outer(u, V[:, 0])
    end = 5 / theory.nearby_rates(problem, depth)["slow"]
    times = np.concatenate([[0.0], np.geomspace(1e-5, 1, 60) * end])
    flow = lt.induced_flow(
        beta, problem, depth, rank=1, saveat=times, stop=lt.StopAtTime(float(end))
    )
    return times, np.asarray(flow.coefficients)[: len(times)]


@pytest.mark.slow
def test_theorem_20_and_its_misprint():
    problem, U, V = _spiked(0.1, 1e-4)
    times, beta = _far_flow(problem, U, V)
    bound = theory.convergence_bound(problem, 3, 0.8, 10.0)
    assert bound.holds
    assert "applies" in str(bound)
    assert bound.set.contains(beta[0])
    assert np.min(bound.set.slack(beta)) > 0  # Lemma 19
    logs = 2 * np.log(np.asarray(bound.set.target.distance(beta)))
    # The distance has a relative error of 1e-8 at the end.
    assert np.max(logs - np.asarray(bound.log_bound(times, beta))) < 1e-6
    # (38) as printed has s_Z^(-2/L) in place of s_Z^(2-2/L): a hundred times the rate here.
    printed = dataclasses.replace(bound, faraway=bound.faraway / 0.1**2)
    assert np.max(logs - np.asarray(printed.log_bound(times, beta))) > 1
    # At tau the rate changes: the slope of the bound is `faraway` before, and `nearby` after.
    slopes = -np.diff(np.asarray(bound.log_bound(times, beta))) / np.diff(times)
    np.testing.assert_allclose(slopes[0], bound.faraway, rtol=1e-6)
    np.testing.assert_allclose(slopes[-1], bound.nearby, rtol=1e-6)


def test_theorem_20_does_not_apply_at_a_small_gap():
    problem, *_ = _spiked(1.0, 0.3)
    bound = theory.convergence_bound(problem, 4, 0.6, 2.0)
    assert not bound.holds
    assert "does not apply (a rate is not positive)" in str(bound)
    p = 1.5
    np.testing.assert_allclose(bound.faraway, 20 * 4 * (0.3**p - 0.6 * 2**p), rtol=1e-12)
    np.testing.assert_allclose(bound.nearby, 20 * (0.6 * 0.3**p - 2.4 * 2**p), rtol=1e-12)


@pytest.mark.parametrize("depth", [2, 3, 6])
def test_nearby_rates_are_the_spectrum_of_the_flow_at_its_limit(depth):
    size, gap, n = 0.4, 0.3, 20
    problem, U, V = _spiked(size, gap)
    limit = theory.rank_one_target(problem).matrix
    d, m = limit.shape
    X, y = np.asarray(problem.X), np.asarray(problem.y)

    def velocity(u, s, v):
        """Eq. (17) at the rank-one matrix u s v^T, by hand."""
        beta = s * np.outer(u, v)
        G = X.T @ (X @ beta - y)
        p = s ** (2 - 2 / depth)
        inner = (depth - 2) * (u @ G @ v) * np.outer(u, v)
        return -p * (G @ np.outer(v, v) + np.outer(u, u) @ G + inner)

    # Charts of the rank-one matrices: central differences in s, u and v, in tangent coordinates.
    tangents = [np.outer(U[:, 0], V[:, 0])]
    tangents += [np.outer(U[:, i], V[:, 0]) for i in range(1, d)]
    tangents += [np.outer(U[:, 0], V[:, j]) for j in range(1, m)]

    def moved(k, h):
        u, s, v = U[:, 0], size, V[:, 0]
        if k == 0:
            s = s + h
        elif k < d:
            u = u + h / size * U[:, k]
            s, u = s * np.linalg.norm(u), u / np.linalg.norm(u)
        else:
            v = v + h / size * V[:, k - d + 1]
            s, v = s * np.linalg.norm(v), v / np.linalg.norm(v)
        return velocity(u, s, v)

    h = 1e-5
    jacobian = np.array(
        [
            [np.vdot(t, moved(k, h) - moved(k, -h)) / (2 * h) for k in range(len(tangents))]
            for t in tangents
        ]
    )
    spectrum = -np.linalg.eigvals(jacobian).real / (n * size ** (2 - 2 / depth))
    # The pairs of the two smaller singular values, the fourth left vector, and the size.
    expected = [depth, 1 - gap, 1 + gap, 1 - gap / 2, 1 + gap / 2, 1]
    np.testing.assert_allclose(np.sort(spectrum), np.sort(expected), rtol=1e-7)
    rates = theory.nearby_rates(problem, depth)
    unit = n * size ** (2 - 2 / depth)
    found = {key: rates[key] / unit for key in ("size", "slow", "fast", "kernel")}
    assert found == pytest.approx({"size": depth, "slow": 0.7, "fast": 1.3, "kernel": 1.0})


@pytest.mark.parametrize("depth", [2, 6])
def test_random_starts_are_members_at_which_the_theorem_applies(depth):
    for start in random_starts(BoundTask(starts=10), depth, np.random.default_rng(1)):
        bound = theory.convergence_bound(start.problem, depth, start.alpha, start.upper)
        target = bound.set.target
        assert bound.holds
        assert bound.set.contains(start.coefficients)
        np.testing.assert_allclose([target.size, target.gap], [start.size, start.gap])


@pytest.mark.slow
def test_balanced_flows_from_the_set_of_theorem_16_end_at_global_minima():
    rng = np.random.default_rng(2)
    problem, U, V = _spiked(1.5, 0.4)
    found = theory.stable_set(problem, 0.45)
    for _ in range(6):
        u = U[:, 0] + 0.5 * rng.standard_normal(4) * [0, 1, 1, 1] @ U.T
        beta = rng.uniform(0.3, 20) * np.outer(u / np.linalg.norm(u), V[:, 0])
        if not found.contains(beta):
            continue
        layers = initialization.balanced(
            lt.FullyConnectedNetwork.zeros((4, 1, 1), 3), jnp.asarray(beta)
        )
        flow = lt.gradient_flow(layers, problem, rtol=1e-11, finish=None)
        point = lt.landscape_point(flow.network, problem, tolerance=1e-6)
        assert point.kind is lt.PointKind.GLOBAL_MINIMUM
        assert point.rank == 1  # Lemma 15

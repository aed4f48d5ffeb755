"""Rates from the imbalance (Min et al. 2021), against NumPy and flows integrated by SciPy."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

import lintensor_jax as lt
from lintensor_jax import theory

# (n, d, h, m, rank of X): r < m, r = m, r > m; widths from min(m, r); fewer and more samples than
# inputs; X without full rank.
SHAPES = {
    "r < m, h = r": (2, 4, 2, 3, 2),
    "r < m": (2, 4, 7, 3, 2),
    "r = m, h = m": (3, 5, 3, 3, 3),
    "r = m": (3, 5, 9, 3, 3),
    "r > m, h = m": (4, 6, 2, 2, 4),
    "r > m": (4, 6, 8, 2, 4),
    "n > d": (7, 4, 5, 2, 4),
    "X of rank 2": (4, 5, 4, 3, 2),
    "one output": (3, 5, 6, None, 3),
}


# Each shape is a compilation. The ordinary tests have every regime, and the slow ones every edge.
ORDINARY = ("r < m, h = r", "r = m", "r > m", "X of rank 2", "one output")
EVERY = [
    name if name in ORDINARY else pytest.param(name, marks=pytest.mark.slow) for name in SHAPES
]


def draw(name, seed=0, first=1.0, last=1.0):
    n, d, h, m, rank = SHAPES[name]
    rng = np.random.default_rng([seed, n, d, h])
    X = rng.standard_normal((n, rank)) @ rng.standard_normal((rank, d))
    if rank == min(n, d):
        X = rng.standard_normal((n, d))
    outputs = () if m is None else (m,)
    weights = [
        first * rng.standard_normal((d, h)),
        last * rng.standard_normal((h, *outputs)),
    ]
    return lt.FullyConnectedNetwork(weights), lt.Regression(X, rng.standard_normal((n, *outputs)))


def reference(name, network, problem):
    """All quantities by their definitions, in NumPy with dense matrices."""
    _, _, h, m, r = SHAPES[name]
    X, y = np.asarray(problem.X), np.asarray(problem.y).reshape(len(problem.y), -1)
    U, V = np.asarray(network.weights[0]), np.asarray(network.weights[1]).reshape(h, -1).T
    m = V.shape[0]
    left, sizes, right = np.linalg.svd(X)
    U1, s, Y1 = right[:r] @ U, sizes[:r], left[:, :r].T @ y
    D = U1.T @ U1 - V.T @ V

    def eigenvalue(matrix, k):
        values = np.sort(np.linalg.eigvalsh(matrix))[::-1]
        return max(values[k - 1], 0) if k <= h else 0

    def singular(matrix, k):
        values = np.linalg.svd(matrix, compute_uv=False)
        return values[k - 1] if k <= len(values) else 0

    plus = eigenvalue(D, 1) - eigenvalue(D, r)
    minus = eigenvalue(-D, 1) - eigenvalue(-D, m)
    level = eigenvalue(D, r) + eigenvalue(-D, m)
    E = Y1 - s[:, None] * (U1 @ V.T)

    def c(a, b):
        roots = np.sqrt((plus + level) ** 2 + 4 * a**2), np.sqrt((minus + level) ** 2 + 4 * b**2)
        return s[-1] ** 2 * (-plus + roots[0] - minus + roots[1])

    def margin(k):
        return max(singular(Y1, k) - np.linalg.norm(E), 0) / s[0]

    # The exact rate: minus dL/dt is the squared norm of the gradient.
    slope = X.T @ (X @ U @ V.T - y)
    gradient = np.sum((slope @ V) ** 2) + np.sum((slope.T @ U) ** 2)
    return {
        "matrix": D,
        "spreads": (plus, minus, level),
        "instantaneous": c(singular(U1 @ V.T, m), singular(U1 @ V.T, r)),
        "guaranteed": c(margin(m), margin(r)),
        "asymptotic": c(singular(Y1, m) / s[0], singular(Y1, r) / s[0]),
        "excess": np.linalg.norm(E) ** 2 / 2,
        "rate": 2 * gradient / np.linalg.norm(E) ** 2,
    }


@pytest.mark.parametrize("name", EVERY)
def test_imbalance_and_bounds_by_definition(name):
    network, problem = draw(name)
    expected = reference(name, network, problem)
    bound = lt.convergence_rate_bound(network, problem)
    found = bound.imbalance
    # Rounding of eigenvalues and singular values of matrices of size about ten.
    np.testing.assert_allclose(found.matrix, expected["matrix"], rtol=0, atol=1e-12)
    values = np.sort(np.linalg.eigvalsh(expected["matrix"]))[::-1]
    np.testing.assert_allclose(found.eigenvalues, values, rtol=0, atol=1e-12)
    spreads = (found.positive_spread, found.negative_spread, found.level)
    np.testing.assert_allclose(spreads, expected["spreads"], rtol=0, atol=1e-12)
    assert int(found.rank) == SHAPES[name][-1]
    for key in ("instantaneous", "guaranteed", "asymptotic"):
        np.testing.assert_allclose(getattr(bound, key), expected[key], rtol=1e-10, atol=1e-11)
    np.testing.assert_allclose(bound.excess_loss, expected["excess"], rtol=1e-12)
    total = problem.loss(network.linear_coefficients())
    np.testing.assert_allclose(bound.excess_loss + bound.optimal_loss, total, rtol=1e-12)
    assert bound.instantaneous <= expected["rate"]
    ascending = np.array([bound.by_imbalance, bound.guaranteed, bound.instantaneous])
    assert np.all(ascending[:-1] <= ascending[1:] * (1 + 1e-12))


def flow(network, problem, times):
    """States at increasing times, by SciPy."""
    X, y = np.asarray(problem.X), np.asarray(problem.y)
    shapes = [w.shape for w in network.weights]
    size = int(np.prod(shapes[0]))

    def parts(theta):
        return theta[:size].reshape(shapes[0]), theta[size:].reshape(shapes[1])

    def field(_, theta):
        u, v = parts(theta)
        slope = X.T @ (X @ (u @ v) - y)
        outer = np.outer(slope, v) if v.ndim == 1 else slope @ v.T
        return -np.concatenate([outer.ravel(), (u.T @ slope).ravel()])

    start = np.concatenate([np.asarray(w).ravel() for w in network.weights])
    # With rtol 1e-10, losses that fall by less than eight orders keep enough digits.
    solved = solve_ivp(field, (0, times[-1]), start, "DOP853", t_eval=times, rtol=1e-10, atol=1e-12)
    assert solved.success
    return [lt.FullyConnectedNetwork(parts(theta)) for theta in solved.y.T]


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize(("first", "last"), [(0.4, 0.4), (1.0, 0.1), (0.1, 1.0)])
def test_bounds_along_flows(name, first, last):
    """Proposition 1 at every time, Theorem 3 from the start, Corollary 6 from every time."""
    network, problem = draw(name, 1, first, last)
    start = reference(name, network, problem)
    times = np.array([0, 0.03, 0.1, 0.3, 1.0, 2.0]) * 4 / start["rate"]
    states = flow(network, problem, times)
    bounds = [lt.convergence_rate_bound(state, problem) for state in states]
    conserved = np.array([bound.imbalance.matrix for bound in bounds])
    assert np.max(np.abs(conserved - conserved[0])) < 1e-8
    losses = np.array([float(bound.excess_loss) for bound in bounds])
    assert losses[-1] < losses[0]
    for k, bound in enumerate(bounds):
        decay = np.exp(-float(bound.guaranteed) * (times[k:] - times[k]))
        assert np.all(losses[k:] <= losses[k] * decay * (1 + 1e-6))
    for state, bound in zip(states, bounds, strict=True):
        rate = reference(name, state, problem)["rate"]
        # Eigenvalues carry the rounding of the largest one.
        assert bound.instantaneous <= rate * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_scalar_networks_have_exactly_that_rate(seed):
    """Eq. (14): 2 sqrt(d^2 + 4 (u v)^2)."""
    u, v, y = np.random.default_rng(seed).standard_normal(3)
    network = lt.FullyConnectedNetwork([[[u]], [v]])
    bound = lt.convergence_rate_bound(network, lt.Regression([[1.0]], [y]))
    exact = 2 * np.hypot(u**2 - v**2, 2 * u * v)
    np.testing.assert_allclose(bound.instantaneous, exact, rtol=1e-13)
    np.testing.assert_allclose(exact, 2 * (u**2 + v**2), rtol=1e-13)


def test_no_digits_are_lost_between_spreads_and_level():
    """-D_+ + sqrt((D_+ + D_u)^2 + 4 s^2) is about 1e-12 of D_+: naively, four digits are left."""
    first, last = np.diag([1e3, 1e-3]), np.zeros((2, 1))
    problem = lt.Regression(np.eye(2), np.ones((2, 1)))
    bound = lt.convergence_rate_bound(lt.FullyConnectedNetwork([first, last]), problem)
    # D = diag(1e6, 1e-6): both brackets are D_u = 1e-6.
    np.testing.assert_allclose(bound.instantaneous, 2e-6, rtol=1e-12)
    spread = float(bound.imbalance.positive_spread)
    naive = -spread + np.sqrt((spread + float(bound.imbalance.level)) ** 2)
    assert abs(naive / 1e-6 - 1) > 1e-6


def test_under_jit_and_vmap():
    pairs = [draw("r > m", seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *pairs)
    together = eqx.filter_jit(eqx.filter_vmap(lt.convergence_rate_bound))(*stacked)
    for index, pair in enumerate(pairs):
        alone = lt.convergence_rate_bound(*pair)
        for field in dataclasses.fields(alone):
            if field.name != "imbalance":
                batch = getattr(together, field.name)[index]
                np.testing.assert_allclose(batch, getattr(alone, field.name), rtol=1e-9, atol=1e-9)


def test_wide_networks_need_no_matrix_of_their_width():
    """D would have 4e10 entries."""
    network = lt.FullyConnectedNetwork.zeros((3, 200_000))
    network = lt.initialization.width_scaled(network, jax.random.key(0))
    found = lt.imbalance(network, lt.Regression(np.eye(3)[:2], np.ones(2)))
    assert found.eigenvalues.shape == (200_000,)
    # U_1 has two rows and V one, of length about 1.
    np.testing.assert_allclose(found.eigenvalues[:2], 1, rtol=0, atol=0.05)
    np.testing.assert_allclose(found.eigenvalues[-1], -1, rtol=0, atol=0.05)
    np.testing.assert_allclose(found.level, 2, rtol=0, atol=0.05)


def bounds_of(network, problem):
    return {bound.theorem: bound for bound in theory.rate_bounds(network, problem)}


def test_bounds_say_whether_they_apply():
    problem = lt.Regression(np.eye(2), [[2.0, 0], [0, 2.0]])
    balanced = lt.FullyConnectedNetwork([np.eye(2), np.eye(2)])
    found = bounds_of(balanced, problem)
    assert [found[f"Corollary {k}"].holds for k in (4, 5, 6)] == [False, True, True]
    # |E|_F = sqrt(2): a margin of 2 - sqrt(2), so 4 (2 - sqrt(2)).
    np.testing.assert_allclose(found["Theorem 3"].value, 4 * (2 - np.sqrt(2)), rtol=1e-12)
    np.testing.assert_allclose(found["Proposition 1"].value, 4, rtol=1e-12)
    np.testing.assert_allclose(found["Corollary 6"].value, 8, rtol=1e-12)
    decay = found["Theorem 3"].decay
    assert decay is not None
    np.testing.assert_allclose(decay(0.0), 1.0, rtol=1e-12)
    np.testing.assert_allclose(decay(1.0), np.exp(-found["Theorem 3"].value), rtol=1e-12)
    assert "[FAILS] the level of imbalance D_u is positive: 0" in str(found["Corollary 4"])
    away = lt.FullyConnectedNetwork([np.eye(2), -np.eye(2)])
    found = bounds_of(away, problem)
    assert [found[f"Corollary {k}"].holds for k in (4, 5, 6)] == [False, False, None]
    assert found["Theorem 3"].value == 0
    narrow = lt.FullyConnectedNetwork([np.ones((2, 1)), np.ones((1, 2))])
    assert bounds_of(narrow, problem)["Proposition 1"].holds is False


@pytest.mark.parametrize("seed", range(2))
def test_deviation_from_the_min_norm_solution(seed):
    network, problem = draw("one output", seed)
    bound = theory.deviation_bound(network, problem)
    assert bound.holds
    rate = float(lt.convergence_rate_bound(network, problem).guaranteed)
    end = flow(network, problem, [0, 30 / rate])[-1]
    solution = lt.min_norm(problem, lt.L2Norm()).coefficients
    distance = np.linalg.norm(end.linear_coefficients() - solution)
    assert 1e-3 < distance <= bound.value
    inside = lt.initialization.invariant(network, problem, jax.random.key(seed))
    assert theory.deviation_bound(inside, problem).value == 0


def test_lemma_11_and_theorem_12():
    """Both hold in at least 1 - delta of all draws; in these in all, as they are not tight."""
    problem = lt.Regression([[1.0, 0.5]], [0.7])
    delta, width = 0.5, 400
    level, orthogonality, product = theory.lemma_11(problem, width, failure_probability=delta)
    distance = theory.theorem_12(problem, width, failure_probability=delta)
    assert level.holds
    assert distance.holds
    solution = lt.min_norm(problem, lt.L2Norm()).coefficients
    failures = np.zeros(4)
    for seed in range(4):
        network = lt.initialization.width_scaled(
            lt.FullyConnectedNetwork.zeros((2, width)), jax.random.key(seed)
        )
        found = lt.convergence_rate_bound(network, problem)
        end = flow(network, problem, [0, 25 / float(found.guaranteed)])[-1]
        away = jnp.linalg.norm(end.linear_coefficients() - solution)
        at = found.imbalance
        failures += [
            at.level <= level.value,
            theory.distance_from_invariant_set(network, problem) > orthogonality.value,
            jnp.linalg.norm(at.first @ at.last.T) > product.value,
            away > distance.value,
        ]
    assert not failures.any()
    narrow = theory.theorem_12(problem, 30)
    assert narrow.holds is False
    assert narrow.assumptions[0].value == 30


def test_theorem_12_scales_as_the_root_of_the_width():
    problem = lt.Regression([[1.0, 0.5]], [0.7])
    values = [theory.theorem_12(problem, width).value for width in (100, 10_000)]
    np.testing.assert_allclose(values[0] / values[1], 10, rtol=1e-12)
    # At width 10,000 the bound with exponent 0.3 is weaker than that with the default exponent 1/2.
    assert theory.theorem_12(problem, 10_000, 0.3).value > values[1]


def test_yuns_rates_are_those_of_predict():
    problem = lt.Regression([[1.0, 2.0, 0.5], [0.0, 1.0, -1.0]], [1.0, 0.4])
    last = 0.3 * np.random.default_rng(0).standard_normal(3)
    network = lt.FullyConnectedNetwork([np.diag([1.0, 1.2, 1.5]), last])
    bound = theory.yun_rate_bound(network, problem)
    prediction = lt.predict(network, problem)
    assert prediction.rate is not None
    assert bound.theorem == prediction.theorem == "Theorem 7"
    assert bound.value == prediction.rate.value > 0
    assert bound.decay is not None
    assert bound.holds
    with pytest.raises(ValueError, match="with a rate must apply, got violated"):
        theory.yun_rate_bound(lt.DiagonalNetwork(np.ones((3, 3))), problem)


@pytest.mark.slow
def test_theorem_5s_rate():
    problem = lt.Regression([[1.0, 2.0, 0.5], [0.0, 1.0, -1.0]], [1.0, 0.4])
    network = lt.DiagonalNetwork([[0.7, 0.9, 1.0]] * 2 + [[0.0] * 3])
    bound = theory.yun_rate_bound(network, problem)
    assert bound.theorem == "Theorem 5 (Corollary 5)"
    smallest = np.linalg.svd(problem.X)[1][-1]
    np.testing.assert_allclose(bound.value, 2 * 0.7**4 * smallest**2, rtol=1e-12)


def test_theorem_7_and_corollary_4_agree_where_both_speak():
    """W_1^T W_1 - w w^T >= lambda I for a square W_1: D_u = lambda if X has rank d."""
    rng = np.random.default_rng(3)
    network = lt.FullyConnectedNetwork([np.diag([1.0, 1.2, 1.5]), 0.3 * rng.standard_normal(3)])
    problem = lt.Regression(rng.standard_normal((3, 3)), rng.standard_normal(3))
    theorem_7 = theory.yun_rate_bound(network, problem)
    assert theorem_7.decay is not None
    assert "Theorem 7" in theorem_7.decay.source
    by_imbalance = lt.convergence_rate_bound(network, problem).by_imbalance
    np.testing.assert_allclose(by_imbalance, theorem_7.value, rtol=1e-12)


ANY: Any = lt  # of type Any, as its functions are called with wrong arguments on purpose


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda n, p: ANY.imbalance(lt.DiagonalNetwork(np.ones((2, 5))), p),
            "two layers, got Diag",
        ),
        (
            lambda n, p: lt.imbalance(lt.FullyConnectedNetwork.zeros((5, 4, 3)), p),
            "two layers, got 3 layers",
        ),
        (
            lambda n, p: ANY.convergence_rate_bound(n, lt.Classification(p.X, np.ones(3))),
            "must be a Regression, got Classification",
        ),
        (
            lambda n, p: lt.convergence_rate_bound(n, lt.Regression(p.X, np.ones((3, 2)))),
            r"got coefficients of shape \(5,\) and data for \(5, 2\)",
        ),
        (lambda n, p: lt.imbalance(n, lt.Regression(0 * p.X, p.y)), "X must not be zero"),
        (lambda n, p: theory.lemma_11(p, 0), "width must be >= 1, got 0"),
        (lambda n, p: theory.lemma_11(p, 9, 0.25), r"exponent must lie in \(1/4, 1/2\], got 0.25"),
        (lambda n, p: theory.theorem_12(p, 9, 0.5, 1.0), r"must lie in \(0, 1\), got 1.0"),
        (lambda n, p: theory.theorem_12(n, 9), "problem must be a Regression"),
    ],
)
def test_bad_input_is_named(call, words):
    network, problem = draw("one output")
    with pytest.raises(ValueError, match=words):
        call(network, problem)

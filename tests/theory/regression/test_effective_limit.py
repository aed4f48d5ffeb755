"""Runs that are no gradient flow end at the Bregman projection of their effective start.

The runs are plain loops of steps (`gradient_descent`, which other tests check against NumPy). The
projection is a convex program; of the runs it uses only the sums.
"""

from types import SimpleNamespace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lintensor_jax as lt
from lintensor_jax.networks import two_layers_of

N, D = 3, 8
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(N, D)) / np.sqrt(D), RNG.normal(size=N)
PROBLEM = lt.Regression(X, Y)
FIRST, SECOND = RNG.normal(size=D), 0.3 * RNG.normal(size=D)
KEY = jax.random.key(0)


def orthogonal():
    S = RNG.normal(size=(D + 1, D)) / np.sqrt(D)
    bases = [np.linalg.qr(RNG.normal(size=(k, D + 1)))[0] for k in (D + 1, D + 2)]
    return lt.OrthogonalNetwork(S, bases, [RNG.normal(size=len(u)) for u in bases])


class Own(eqx.Module):
    """A user's diagonal network, which states this by a decomposition."""

    u: Any
    v: Any
    depth = 2

    def linear_coefficients(self):
        return self.u * self.v

    @property
    def factors(self):
        return self.u, self.v

    def with_factors(self, factors):
        return Own(*factors)

    def orthogonal_decomposition(self):
        return lt.OrthogonalDecomposition(jnp.eye(D), (jnp.eye(D),) * 2)


NETWORKS = {
    "diagonal": lambda: lt.DiagonalNetwork(np.stack([FIRST, SECOND])),
    "orthogonal": orthogonal,
    "differential": lambda: lt.DifferentialDiagonalNetwork(0.5 * FIRST, 0.4 * FIRST[::-1], 2),
    "own": lambda: Own(jnp.asarray(FIRST), jnp.asarray(SECOND)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_large_steps_end_where_the_effective_start_says(name):
    network = NETWORKS[name]()
    solution = lt.gradient_descent(network, PROBLEM, optax.sgd(0.15), 20_000, batch_size=1, key=KEY)
    limit = lt.effective_limit(solution, PROBLEM)
    assert limit.kind == "exact"
    assert limit.theorem is not None
    assert limit.limit is not None
    assert "Even et al. 2023" in limit.theorem
    assert all(a.holds for a in limit.assumptions)
    # The error is the rounding of 20,000 steps; measured: 5e-13.
    np.testing.assert_allclose(limit.limit, solution.coefficients[-1], rtol=0, atol=1e-9)
    # The length of the steps has an effect: the flow from the same start ends elsewhere.
    start = two_layers_of(network)
    assert start is not None
    flow = lt.theory.two_layer_limit(start.S, X, Y, start.first, start.second)
    assert np.abs(flow.coefficients - limit.limit).max() > 1e-3


def test_predict_takes_the_solution_of_a_training():
    network = NETWORKS["diagonal"]()
    solution = lt.gradient_descent(network, PROBLEM, optax.sgd(0.15), 3_000, batch_size=1, key=KEY)
    found, expected = lt.predict(solution, PROBLEM), lt.effective_limit(solution, PROBLEM)
    assert found.limit is not None
    assert found.theorem == expected.theorem
    np.testing.assert_array_equal(found.limit, expected.limit)
    assert "DescentSolution" in str(found)
    with pytest.raises(ValueError, match="theorems are about networks, got some with a DescentSol"):
        lt.predict(solution, PROBLEM, theorems=[lambda network, problem: ()])
    # The solution of a gradient flow has a network, and no effective start.
    with pytest.raises(ValueError, match="of a gradient flow holds its end"):
        lt.predict(SimpleNamespace(network=network), PROBLEM)  # pyright: ignore


def _random_runs(count, seed):
    """Problems, starts and keys."""
    rng = np.random.default_rng(seed)
    problems = lt.Regression(X, Y)
    problems = eqx.tree_at(
        lambda p: (p.X, p.y),
        problems,
        (jnp.asarray(rng.normal(size=(count, N, D))), jnp.asarray(rng.normal(size=(count, N)))),
    )
    layers = rng.normal(size=(count, 2, D)) * 10.0 ** rng.uniform(-1, 0.3, size=(count, 1, 1))
    return problems, jnp.asarray(layers), jax.random.split(jax.random.key(seed), count)


def _stepped(num_steps, **options):
    def run(problem, weights, key, step):
        network = eqx.tree_at(lambda n: n.weights, lt.DiagonalNetwork.zeros(2, D), weights)
        keyed = {**options, "key": key} if options else {}
        solution = lt.gradient_descent(network, problem, optax.sgd(step), num_steps, **keyed)
        start = solution.effective_start
        assert start is not None
        return solution.coefficients[-1], start.log_scale, start.coefficients, solution.diverged

    return jax.jit(jax.vmap(run))


def _step_of_divergence(run, problems, layers, keys):
    """The largest step of a geometric grid below which no run diverges."""
    low, high = jnp.full(len(layers), 1e-4), jnp.full(len(layers), 100.0)
    for _ in range(12):
        middle = jnp.sqrt(low * high)
        _, _, _, diverged = run(problems, layers, keys, middle)
        low, high = jnp.where(diverged, low, middle), jnp.where(diverged, middle, high)
    return low


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"batch_size": 1}], ids=["full batch", "batch size 1"])
def test_every_run_that_fits_the_data_ends_there(options):
    count = 100
    problems, layers, keys = _random_runs(count, 1)
    run = _stepped(8_000, **options)
    largest = _step_of_divergence(run, problems, layers, keys)
    shares = jnp.asarray(np.geomspace(0.05, 0.9, count))
    beta, log_scale, start, _ = run(problems, layers, keys, shares * largest)
    limit = jax.vmap(lambda p, m, b: lt.theory.bregman_projection(p.X, p.y, m, b))(
        problems, jnp.exp(log_scale), start
    ).coefficients
    residual = jnp.einsum("knd,kd->kn", problems.X, beta) - problems.y
    fits = np.asarray(jnp.max(jnp.abs(residual), axis=1)) < 1e-11
    error = np.asarray(jnp.max(jnp.abs(limit - beta), axis=1))
    assert fits.mean() > 0.7, fits.mean()
    assert error[fits].max() < 1e-9


def _solution(optimizer=None, num_steps=50, network=None, problem: Any = PROBLEM, **options):
    network = NETWORKS["diagonal"]() if network is None else network
    return lt.gradient_descent(network, problem, optimizer, num_steps, **options)


@pytest.mark.parametrize(
    ("solve", "statement"),
    [
        (lambda: _solution(optax.sgd(0.1, momentum=0.5)), "every step is a multiple"),
        (lambda: _solution(optax.sgd(0.1), weight_decay=0.1), "every step is a multiple"),
        (lambda: _solution(optax.sgd(1e3)), "the run fits the data"),
        (
            lambda: _solution(network=lt.DiagonalNetwork(np.stack([FIRST, FIRST]))),
            "no coordinate of the two layers is balanced",
        ),
        (
            lambda: _solution(network=lt.DiagonalNetwork(np.stack([FIRST] * 3))),
            "two layers with a real orthogonal decomposition",
        ),
    ],
    ids=["momentum", "weight decay", "divergence", "balanced", "three layers"],
)
def test_a_run_that_the_theorem_is_not_about_is_refused_with_the_reason(solve, statement):
    limit = lt.effective_limit(solve(), PROBLEM)
    assert limit.theorem is None
    assert limit.limit is None
    assert any(statement in a.statement for a in limit.violated)


@pytest.mark.parametrize("samples", [4, 12])
def test_dependent_data_that_agree_are_as_good_as_independent_ones(samples):
    # More samples than directions, and more samples than coefficients.
    mixing = RNG.normal(size=(samples, N)) / np.sqrt(samples)
    problem = lt.Regression(mixing @ X, mixing @ Y)
    solution = _solution(optax.sgd(0.1), 20_000, problem=problem)
    limit = lt.effective_limit(solution, problem)
    assert limit.limit is not None
    np.testing.assert_allclose(limit.limit, solution.coefficients[-1], rtol=0, atol=1e-9)


def test_a_run_that_has_not_ended_leaves_its_fit_open():
    solution = _solution(optax.sgd(0.01))
    limit = lt.effective_limit(solution, PROBLEM)
    assert [a.holds for a in limit.assumptions if "fits the data" in a.statement] == [None]
    assert limit.kind == "open"
    assert "which is open: " in str(limit)
    assert limit.limit is not None
    # Later steps change the sums only in second order.
    end = _solution(optax.sgd(0.01), 20_000).coefficients[-1]
    np.testing.assert_allclose(limit.limit, end, rtol=0, atol=2e-2)
    assert np.abs(solution.coefficients[-1] - end).max() > 0.1


def test_classification_has_no_effective_limit():
    problem = lt.Classification(X, [1.0, -1.0, 1.0])
    limit = lt.effective_limit(_solution(problem=problem), problem)
    assert limit.theorem is None
    assert any("a loss of residuals" in a.statement for a in limit.violated)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: lt.effective_limit(PROBLEM, PROBLEM),
            "must state an effective_start.* Regression",
        ),
        (lambda: lt.effective_limit(_solution(), X), "problem: must be an object such as"),
        (
            lambda: lt.effective_limit(_solution(), lt.Regression(X[:, 1:], Y)),
            r"agree on the shape of the coefficients, got \(8,\) and \(7,\)",
        ),
        (
            lambda: jax.jit(lambda s: lt.effective_limit(s, PROBLEM).limit)(_solution()),
            "must hold concrete arrays",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_coordinates_far_below_and_above_what_a_product_of_floats_holds():
    start = lt.EffectiveStart(
        None, jnp.array([-900.0, 0.0, -1.0]), jnp.array([890.0, 1e-9, -2.0]), ""
    )
    expected = [0.5 * np.exp(-10.0), np.sinh(1e-9), -np.exp(-1) * np.sinh(2)]
    np.testing.assert_allclose(start.coefficients, expected, rtol=1e-13)

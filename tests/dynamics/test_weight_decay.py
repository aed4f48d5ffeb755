"""Weight decay: limits are those of penalised problems, by solvers without flows (G6)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lintensor_jax as lt
from lintensor_jax.initialization import balanced, gaussian
from lintensor_jax.sweeps import Axis, Grid

D, N = 6, 4


def lasso(X, y, penalty, sweeps=100_000):
    """argmin 1/2 |X b - y|^2 + penalty |b|_1, by coordinate descent to rounding."""
    b, squares = np.zeros(X.shape[1]), np.sum(X**2, axis=0)
    residual = y.copy()
    for _ in range(sweeps):
        largest = 0.0
        for j in range(len(b)):
            z = X[:, j] @ residual + squares[j] * b[j]
            new = np.sign(z) * max(abs(z) - penalty, 0.0) / squares[j]
            residual -= X[:, j] * (new - b[j])
            largest, b[j] = max(largest, abs(new - b[j])), new
        if largest < 1e-15:
            return b
    raise AssertionError("coordinate descent did not converge")


def by_proximal_gradient(X, y, prox, steps=200_000):
    """argmin 1/2 |X b - y|_F^2 + R(b), prox(b, h) of h R, by gradient steps to rounding."""
    h = 1 / np.linalg.norm(X, 2) ** 2
    b = np.zeros((X.shape[1], *y.shape[1:]))
    for _ in range(steps):
        new = prox(b - h * X.T @ (X @ b - y), h)
        if np.abs(new - b).max() < 1e-16:
            return new
        b = new
    raise AssertionError("proximal gradient steps did not converge")


def data(seed, n=N, d=D, outputs=None):
    rng = np.random.default_rng(seed)
    shape = (n,) if outputs is None else (n, outputs)
    return rng.standard_normal((n, d)), rng.standard_normal(shape), rng


def penalties(X, y, rng):
    """Penalties between 2% and 60% of the least one at which the lasso is zero."""
    return float(np.abs(X.T @ y).max() * rng.uniform(0.02, 0.6))


def test_two_diagonal_layers_end_at_the_lasso():
    """50 problems as one batch, each lane with its own data, weight decay and start."""
    lanes = [data(seed) for seed in range(50)]
    X, y = (np.stack([lane[i] for lane in lanes]) for i in (0, 1))  # pyright: ignore[reportArgumentType, reportCallIssue]
    decay = np.array([penalties(*lane) for lane in lanes])
    starts = np.stack([0.5 * lane[2].standard_normal((2, D)) for lane in lanes])
    problems = jax.vmap(lambda X, y: lt.Regression(X, y))(X, y)
    flows = lt.batched_flow(
        jax.vmap(lt.DiagonalNetwork)(jnp.asarray(starts)),
        problems,
        shared_problem=False,
        weight_decay=decay,
        max_steps=100_000,
    )
    assert flows.counted() == "balance 50"
    expected = np.stack([lasso(*pair) for pair in zip(X, y, decay, strict=True)])
    np.testing.assert_allclose(flows.coefficients, expected, atol=1e-7)
    assert float(jnp.max(flows.invariant_drift)) < 1e-6


@pytest.mark.slow_beyond(1)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_single_flow_and_its_gaps(seed):
    X, y, rng = data(seed)
    penalty = penalties(X, y, rng)
    network = lt.DiagonalNetwork(rng.standard_normal((2, D)))
    times = [0.1, 0.5, 1.0]
    flow = lt.gradient_flow(
        network, lt.Regression(X, y), weight_decay=penalty, saveat=times, observe=lambda n: n
    )
    assert flow.status == lt.FlowStatus.balance
    np.testing.assert_allclose(flow.coefficients[-1], lasso(X, y, penalty), atol=1e-7)
    # u^2 - v^2 decays as exp(-2 lambda t); the drift is the deviation from this.
    gaps = flow.observed.weights[:3, 0] ** 2 - flow.observed.weights[:3, 1] ** 2
    start = network.weights[0] ** 2 - network.weights[1] ** 2
    np.testing.assert_allclose(
        gaps, np.exp(-2 * penalty * np.array(times))[:, None] * start[None], atol=1e-6
    )
    assert float(flow.invariant_drift[-1]) < 1e-6
    assert "weight decay" in str(flow)


@pytest.mark.slow
def test_other_architectures_end_at_their_penalties():
    """Group lasso: l2, nuclear norm, Fourier l1; all of them with n >= d, so that they converge."""
    X, y, rng = data(2, n=8)
    penalty = 0.3 * penalties(X, y, rng)

    def l2(b, h):
        size = np.linalg.norm(b)
        return b * max(1 - h * penalty / size, 0.0) if size > 0 else b

    def fourier(b, h):
        f = np.fft.fft(b) / np.sqrt(D)  # penalty (lambda/d) sum |fft(b)| = lambda/sqrt(d) sum |f|
        sizes = np.maximum(np.abs(f), 1e-300)
        return (
            np.fft.ifft(f * np.maximum(1 - h * penalty / np.sqrt(D) / sizes, 0)) * np.sqrt(D)
        ).real

    def nuclear(b, h):
        u, s, vt = np.linalg.svd(b, full_matrices=False)
        return (u * np.maximum(s - h * penalty, 0)) @ vt

    several = np.random.default_rng(9).standard_normal((8, 2))
    for like, targets, prox in (
        (lt.FullyConnectedNetwork.zeros((D, D)), y, l2),
        (lt.ConvolutionalNetwork.zeros(D, (D, D)), y, fourier),
        (lt.FullyConnectedNetwork.zeros((D, 3), 2), several, nuclear),
    ):
        network = gaussian(like, jax.random.key(0), 0.7)
        flow = lt.gradient_flow(network, lt.Regression(X, targets), weight_decay=penalty)
        expected = by_proximal_gradient(X, targets, prox)
        np.testing.assert_allclose(flow.coefficients[-1], expected, atol=1e-7)
        predicted: Any = lt.predict(network, lt.Regression(X, targets), weight_decay=penalty)
        np.testing.assert_allclose(predicted.limit, expected, atol=1e-9)


def test_a_start_that_shrinks_at_first_is_not_at_its_end():
    """u and v are small, with the wrong signs: b decays first, then a grows to the lasso."""
    problem = lt.Regression(np.array([[1.0]]), np.array([1.0]))
    network = lt.DiagonalNetwork(1e-11 * np.array([[1.0], [-0.9]]))
    flow = lt.gradient_flow(network, problem, weight_decay=0.1)
    np.testing.assert_allclose(flow.coefficients[-1], [0.9], atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("depth", [3, 4])
def test_deeper_layers_end_at_stationary_points_and_zero_is_one(depth):
    X, y, _ = data(3)
    penalty, like = 0.05, lt.DiagonalNetwork.zeros(depth, D)
    problem = lt.Regression(X, y)
    # Two coordinates start so small that the decay is stronger than the gradient: they end at 0.
    begin = np.where(np.arange(D) < 2, 1e-6, np.linalg.pinv(X) @ y)
    away = lt.gradient_flow(balanced(like, begin), problem, weight_decay=penalty)  # pyright: ignore[reportArgumentType]
    beta = np.asarray(away.coefficients[-1])
    kept = np.abs(beta) > 1e-6
    assert 0 < kept.sum() < D
    # lambda/2 R = lambda L/2 sum |b|^(2/L): its slope is lambda sign(b) |b|^(2/L - 1).
    slope = X.T @ (X @ beta - y) + penalty * np.sign(beta) * np.abs(beta) ** (2 / depth - 1)
    assert np.abs(slope[kept]).max() < 1e-7
    assert np.abs(beta[~kept]).max() < 1e-12
    small = balanced(like, 1e-4 * np.ones(D))  # pyright: ignore[reportArgumentType]
    zero = lt.gradient_flow(small, problem, weight_decay=penalty)
    assert zero.status == lt.FlowStatus.balance
    assert float(jnp.abs(zero.coefficients[-1]).max()) < 1e-12


@pytest.mark.slow
def test_classification_with_decay_has_a_limit():
    X, y = np.array([[1.0, 2.0], [-0.5, 1.0]]), np.array([1.0, 1.0])
    problem = lt.Classification(X, y, lt.LogisticLoss())
    network = lt.FullyConnectedNetwork((0.5 * np.eye(2), np.array([0.3, 0.4])))
    flow = lt.gradient_flow(network, problem, weight_decay=0.1)
    beta = np.asarray(flow.coefficients[-1])
    slope = -(y / (1 + np.exp(y * (X @ beta)))) @ X + 0.1 * beta / np.linalg.norm(beta)
    assert np.abs(slope).max() < 1e-8


def test_weight_decay_is_an_axis_of_sweeps(tmp_path):
    X, y, rng = data(4)
    start = lt.DiagonalNetwork(rng.standard_normal((2, D)))
    decays = [0.0, 0.1, 0.5]
    grid = Grid(
        (Axis("weight_decay", decays),),
        lambda point: start,
        lambda point: lt.Penalized(lt.Regression(X, y), point.weight_decay),
    )
    results = lt.sweep(grid, tmp_path / "s", max_steps=100_000)
    for decay, beta in zip(decays[1:], np.asarray(results.limit)[1:], strict=True):
        np.testing.assert_allclose(beta, lasso(X, y, decay), atol=1e-7)
    np.testing.assert_allclose(X @ np.asarray(results.limit[0]), y, atol=1e-8)


def test_mistakes_are_refused_before_any_compile():
    X, y, _ = data(0)
    problem, network = lt.Regression(X, y), lt.DiagonalNetwork.zeros(2, D)
    for value in (-0.1, np.nan, "much"):
        with pytest.raises(ValueError, match="weight_decay: must be finite and not negative"):
            lt.gradient_flow(network, problem, weight_decay=value)  # pyright: ignore
    decaying = lt.Penalized(problem, 0.1)
    with pytest.raises(ValueError, match="without weight decay"):
        lt.Penalized(decaying, 0.1)
    with pytest.raises(ValueError, match="mirror_flow knows no problem with weight decay"):
        lt.mirror_flow(network, decaying)
    with pytest.raises(ValueError, match="GaussNewton solves for a residual of 0"):
        lt.gradient_flow(network, decaying, finish=lt.GaussNewton())
    with pytest.raises(ValueError, match="StopAtBalance is for flows with weight decay"):
        lt.gradient_flow(network, problem, stop=lt.StopAtBalance(1e-8))
    labels = lt.Classification(X, np.sign(y))
    with pytest.raises(ValueError, match="flows without weight decay"):
        lt.gradient_flow(network, labels, weight_decay=0.1, clock=lt.LogArcLength())
    both = jax.tree.map(lambda x: jnp.stack([x, x]), network)
    with pytest.raises(ValueError, match=r"one a lane, of shape \(2,\), got shape \(3,\)"):
        lt.batched_flow(both, problem, weight_decay=np.ones(3))
    with pytest.raises(AttributeError):
        decaying.absent  # noqa: B018

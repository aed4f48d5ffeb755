"""Eftekhari 2020: Lemma 18, and Figure 1 by the paper's own Euler run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lintensor_jax as lt
from lintensor_jax.dynamics import EndToEndMatrix

RNG = np.random.default_rng(8)


def test_lemma_18_along_rank_one_matrices():
    """Eq. (35): the decay of 1/2 |Z_1 - W|^2 is the sum of two terms, at random points."""
    samples, depth = 12, 3
    X = np.sqrt(samples) * np.linalg.qr(RNG.normal(size=(samples, 4)))[0]
    left, right = (np.linalg.qr(RNG.normal(size=(k, k)))[0] for k in (4, 3))
    sizes = np.array([1.3, 0.2, 0.1])
    Z = (left[:, :3] * sizes) @ right.T
    problem = lt.Regression(X, X @ Z)
    target = lt.theory.rank_one_target(problem)
    gap, Z1 = float(target.gap), np.asarray(target.matrix)
    power = 2 - 2 / depth
    for _ in range(30):
        u, v = left[:, 0] + 0.5 * RNG.normal(size=4), right[:, 0] + 0.5 * RNG.normal(size=3)
        u, v, s = u / np.linalg.norm(u), v / np.linalg.norm(v), RNG.uniform(0.3, 3)
        W = s * np.outer(u, v)
        gradient = problem.adjoint(problem.residual(jnp.asarray(W)))
        moved, _ = EndToEndMatrix(jnp.asarray(W), depth, 1).metric(gradient)
        decay = -np.sum((W - Z1) * np.asarray(moved))
        overlap = u @ Z1 @ v
        first, second = 0.5 * (s - overlap) ** 2, sizes[0] - overlap
        if overlap < 0:
            continue
        bound = -2 * depth * first - 2 * overlap * second
        bound += np.sqrt(2) * depth * gap * np.sqrt(first) * second + 2 * sizes[1] * second
        assert decay <= samples * s**power * bound + 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("depth", [2, 4])
def test_the_papers_euler_run_of_figure_1(depth):
    """10^5 steps of 10^-6 from |W| = 10 |Z|, 30 degrees off; m = 50, d_x = 5, d_y = 1."""
    samples, dimension, step = 50, 5, 1e-6
    X = np.sqrt(samples) * np.linalg.qr(RNG.normal(size=(samples, dimension)))[0]
    problem = lt.Regression(X, RNG.normal(size=samples))
    Z = X.T @ np.asarray(problem.y) / samples
    unit = Z / np.linalg.norm(Z)
    across = RNG.normal(size=dimension)
    across -= unit * (unit @ across)
    across /= np.linalg.norm(across)
    start = 10 * np.linalg.norm(Z) * (np.cos(np.pi / 6) * unit + np.sin(np.pi / 6) * across)

    def euler(_, w):
        size = jnp.sqrt(w @ w)
        gradient = samples * (w - Z)
        radial = (depth - 1) * size ** (-2 / depth) * (w @ gradient) * w
        return w - step * (size ** (2 - 2 / depth) * gradient + radial)

    w = jax.lax.fori_loop(0, 100_000, euler, jnp.asarray(start))
    flow = lt.induced_flow(start, problem, depth, saveat=[0.1], stop=lt.StopAtTime(0.1))
    exact = np.asarray(flow.coefficients[0])
    # Euler's error is of first order in the step times the rate, some N m s^(2-2/N) = 1e2 to 1e3.
    assert np.linalg.norm(np.asarray(w) - exact) <= 0.02 * np.linalg.norm(exact - Z) + 1e-4

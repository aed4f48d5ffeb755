"""Data, starts and known points of the experiment on Eftekhari 2020."""

import dataclasses
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from ...initialization import balanced
from ...networks import FullyConnectedNetwork
from ...problems import Regression

_SADDLE = "strict saddle"
_MINIMUM = "second-order stationary: global minimum"
_SPURIOUS = "second-order stationary: spurious"


@dataclasses.dataclass(frozen=True)
class Start:
    """An instance of Theorem 20: whitened data, alpha and beta of the set, and a point of it."""

    problem: Regression
    depth: int
    alpha: float
    upper: float  # beta of N_{alpha,beta}
    size: float  # s_Z
    gap: float  # gamma_Z
    coefficients: np.ndarray  # (d, m)


def whitened(num_samples: int, dimension: int, rng: np.random.Generator) -> np.ndarray:
    """Random X (n, d) with X^T X = n I."""
    return np.sqrt(num_samples) * np.linalg.qr(rng.standard_normal((num_samples, dimension)))[0]


def far_start(task, rng: np.random.Generator) -> tuple[Regression, np.ndarray, np.ndarray]:
    """Figure 1: normal data, Z = X^T y / n, and beta(0) rotated and stretched."""
    X = whitened(task.num_samples, task.dimension, rng)
    problem = Regression(X, rng.standard_normal(task.num_samples))
    target = X.T @ np.asarray(problem.y) / task.num_samples
    beta = task.length * np.linalg.norm(target) * _tilted(target, np.radians(task.degrees), rng)
    return problem, target, beta


def near_start(
    task, outputs: int, size: float, rng: np.random.Generator
) -> tuple[Regression, np.ndarray, np.ndarray]:
    """Data with s_Z = `size` and s_Z2 = gap `size`, Z_1 (d, m), and a rank-one beta(0) near it.

    Every size draws the same random numbers, so that flows of different sizes can be compared.
    """
    sizes = size * np.array([1.0, task.gap, *[0.2 * task.gap] * task.outputs])[:outputs]
    problem, left, right = _spiked(task, sizes, rng)
    u, v = _tilted(left[:, 0], 0.5, rng), right[:, 0]
    if outputs > 1:
        v = _tilted(v, 0.5, rng)
    target = size * np.outer(left[:, 0], right[:, 0])
    return problem, target, 1.3 * size * np.outer(u, v)


def random_starts(task, depth: int, rng: np.random.Generator) -> Iterator[Start]:
    """Random instances of Theorem 20: s_Z in [0.1, 10], alpha, beta, a gap, a point of the set."""
    power = 2 - 2 / depth
    for _ in range(task.starts):
        alpha = rng.uniform(0.3, 0.95)
        # Every second instance reaches the faraway regime, s > sqrt(6) s_Z.
        upper = rng.choice([rng.uniform(1.2, 2.4), rng.uniform(3.0, 20.0)])

        def applies(gap, alpha=alpha, upper=upper):
            lower = max(alpha - gap, 0.0) ** power
            return alpha * lower > 2 * depth * gap * upper**power

        low, high = 0.0, alpha
        for _ in range(60):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if applies(middle) else (low, middle)
        gap = low * rng.uniform(0.05, 0.95)
        size = 10 ** rng.uniform(-1, 1)
        sizes = size * np.array([1.0, gap, *[0.5 * gap] * task.outputs])[: task.outputs]
        problem, left, right = _spiked(task, sizes, rng)
        # <u, u_Z> <v, v_Z> is above alpha, in some instances by little. The length is anywhere in
        # its interval.
        cosine = alpha + (1 - alpha) * rng.uniform(0.001, 0.999)
        share = rng.uniform()
        u = _tilted(left[:, 0], np.arccos(cosine**share), rng)
        v = _tilted(right[:, 0], np.arccos(cosine ** (1 - share)), rng)
        s = size * np.exp(rng.uniform(np.log(1.001 * (alpha - gap)), np.log(0.999 * upper)))
        yield Start(problem, depth, alpha, upper, size, gap, s * np.outer(u, v))


def landscape_cases(rng: np.random.Generator) -> Iterator[tuple]:
    """Points whose kind is known: (name, kind, smallest eigenvalue or None, network, problem)."""
    d, m, n, width = 4, 3, 12, 2
    X, y = rng.standard_normal((n, d)), rng.standard_normal((n, m))
    problem = Regression(X, y)
    left, sizes, right = np.linalg.svd(X, full_matrices=False)
    inner, values, outer = np.linalg.svd(left.T @ y, full_matrices=False)

    def stationary(like, chosen):
        """Balanced layers whose X beta is y projected on `chosen` singular vectors of U^T y."""
        fit = (inner[:, chosen] * values[chosen]) @ outer[chosen]
        return balanced(like, jnp.asarray(right.T @ (fit / sizes[:, None])))

    for depth in (2, 3, 4):
        like = FullyConnectedNetwork.zeros((d, *[width] * (depth - 1)), m)
        at_zero = (_SADDLE, -np.linalg.norm(X.T @ y, 2)) if depth == 2 else (_SPURIOUS, 0.0)
        yield f"zero, N = {depth}", *at_zero, like, problem
        yield f"best rank 2, N = {depth}", _MINIMUM, None, stationary(like, [0, 1]), problem
        yield f"other rank 2, N = {depth}", _SADDLE, None, stationary(like, [0, 2]), problem
        if depth > 2:
            # All layers but the last one are zero. With N = 3 the first two form a saddle.
            last = rng.standard_normal((width, m))
            curvature = -np.linalg.norm(X.T @ y @ last.T, 2)
            kind = (_SADDLE, curvature) if depth == 3 else (_SPURIOUS, 0.0)
            network = FullyConnectedNetwork((*like.weights[:-1], jnp.asarray(last)))
            yield f"zero but W_{depth}, N = {depth}", *kind, network, problem


def _spiked(task, sizes, rng):
    """Whitened X and y = X Z, Z = X^T y / n = left diag(sizes) right^T; and `left`, `right`."""
    X = whitened(task.num_samples, task.dimension, rng)
    left = np.linalg.qr(rng.standard_normal((task.dimension, task.dimension)))[0]
    right = np.linalg.qr(rng.standard_normal((len(sizes), len(sizes))))[0]
    Z = (left[:, : len(sizes)] * sizes) @ right.T
    return Regression(X, X @ Z), left, right


def _tilted(direction, angle, rng):
    """A unit vector at `angle` (radians) to `direction`, otherwise random."""
    unit = direction / np.linalg.norm(direction)
    other = rng.standard_normal(unit.shape)
    other -= (other @ unit) * unit
    return np.cos(angle) * unit + np.sin(angle) * other / np.linalg.norm(other)

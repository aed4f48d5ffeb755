"""Two linear layers on whitened data: the whole trajectory, from a matrix Riccati equation."""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Scalar

from ...lapack_calls import in_turn
from ...messages import in_words
from ...networks import AssumptionFails, FullyConnectedNetwork
from ...problems import Regression, named
from ..assumptions import rounding


class RiccatiTrajectory(eqx.Module):
    """A two-layer flow at T times, as `riccati_trajectory` predicts it.

    - `time` (T,): physical time.
    - `gram` (T, d + m, d + m): Q Q^T with Q = [W_1; W_2^T]. It determines the layers up to a
      rotation of the hidden units. Its blocks are W_1 W_1^T, beta, W_2^T W_2.
    - `coefficients` (T, d, m), or (T, d) for a scalar output: beta = W_1 W_2.
    - `imbalance`: lambda, with W_2 W_2^T - W_1^T W_1 = lambda I.
    """

    time: Float[Array, " T"]
    gram: Float[Array, "T k k"]
    coefficients: Float[Array, "T d ..."]
    imbalance: Scalar


def riccati_trajectory(
    network: FullyConnectedNetwork,
    problem: Regression,
    times: Sequence[float] | Float[ArrayLike, " T"],
) -> RiccatiTrajectory:
    """Gradient flow of two lambda-balanced layers on whitened data, at any times.

    With X^T X = c I, S = y^T X / c and time in units of 1/c the flow of Q = [W_1; W_2^T] is

        (Q Q^T)' = F Q Q^T + Q Q^T F - (Q Q^T)^2,   F = [[-lambda/2 I, S^T], [S, lambda/2 I]],

    a matrix Riccati equation, solved by

        Q Q^T(t) = e^{Ft} Q_0 [I + Q_0^T G Q_0]^{-1} Q_0^T e^{Ft},   G = int_0^t e^{2Fs} ds.

    It is evaluated by the eigenvalues of F and a QR decomposition of [G^{1/2} Q_0; I], with sorted
    rows and pivoted columns. So slow modes keep their accuracy beside fast ones.

    **Arguments**

    - `network`: two layers, W_1 (d, h) and W_2 (h, m) or (h,), with W_2 W_2^T - W_1^T W_1 =
      lambda I for a number lambda (`initialization.lambda_balanced`; zero for balanced layers).
    - `problem`: `Regression` with X^T X a multiple of the identity.
    - `times`: T physical times >= 0.

    **Raises** `AssumptionFails` (a ValueError) if the layers or the data are not of this kind;
    ValueError for another architecture, negative times, and times so long that the ratio of two
    modes exceeds the range of floating point (1e300; the fastest mode has converged long before).

    Source: Fukumizu 1998; Braun et al. 2022 (lambda = 0) and Domine et al. 2025 (any lambda). For
    one mode and lambda = 0 it is the sigmoid of Saxe et al. 2014.
    """
    _require_two_layers(network)
    first, last = network.weights[0], network.weights[1].reshape(network.weights[0].shape[1], -1)
    if not isinstance(problem, Regression) or not problem.has_squared_loss:
        raise ValueError(
            f"problem: riccati_trajectory needs Regression, got {named(problem)}; use "
            "gradient_flow."
        )
    scale = whitening_scale(problem)
    imbalance = _lambda_of(first, last)
    times = _times(times)
    cross = (problem.X.T @ problem.y).reshape(first.shape[0], -1) / scale
    speed = float(scale * (0.5 * abs(imbalance) + jnp.linalg.norm(cross, 2)))
    if speed * float(jnp.max(times, initial=0)) > _LONGEST:
        raise ValueError(
            f"times: must be at most {_LONGEST / speed:.3g} here, got {float(jnp.max(times)):.3g}; "
            "at longer times the fastest mode, which has converged before, overflows; use "
            "gradient_flow for slower modes."
        )
    gram = _gram(first, last, cross, imbalance, scale * times)
    d = first.shape[0]
    beta = gram[:, :d, d:].reshape(-1, *problem.coefficient_shape)
    return RiccatiTrajectory(times, gram, beta, imbalance)


# exp(2 * 340) is below the largest float64. The exponents of two modes differ by 2 * 340 at most.
_LONGEST = 340.0


@jax.jit
def _gram(first, last, cross, imbalance, times):
    """Q Q^T at times in units of 1/c."""
    half = 0.5 * imbalance
    d, m = cross.shape
    forward = jnp.block([[-half * jnp.eye(d), cross], [cross.T, half * jnp.eye(m)]])
    rates, modes = jnp.linalg.eigh(forward)
    start = modes.T @ jnp.concatenate([first, last.T])
    factors = jax.vmap(lambda time: modes @ _factor(start, rates, time))(times)
    return factors @ jnp.swapaxes(factors, 1, 2)


def _factor(start, rates, time):
    """Z with Q Q^T = Z Z^T in the eigenbasis: E Q_0 R^{-1}, where I + Q_0^T G Q_0 = R^T R."""
    x = 2 * rates * time
    # int_0^t e^{2fs} ds = t (e^x - 1)/x.
    size = jnp.abs(x)
    mean = jnp.where(size > 0, -jnp.expm1(-size) / jnp.where(size > 0, size, 1.0), 1.0)
    root = jnp.sqrt(time * mean)
    stacked = jnp.concatenate(
        [(jnp.exp(0.5 * jnp.maximum(x, 0)) * root)[:, None] * start, jnp.eye(start.shape[1])]
    )
    # Householder's QR is stable row by row if large rows come first and columns are pivoted.
    order = jnp.argsort(-jnp.max(jnp.abs(stacked), axis=1))
    Q, R, pivots = jax.scipy.linalg.qr(stacked[order], mode="economic", pivoting=True)
    # Late, the modes differ so much in size that R is ill-conditioned. So the factor comes from
    # Q = G^{1/2} Q_0 R^{-1} instead of a division by R. Early, G may be zero, and R is divided by.
    grown = (jnp.exp(0.5 * jnp.minimum(x, 0)) / jnp.where(root > 0, root, 1.0))[:, None]
    late = grown * Q[jnp.argsort(order)[: start.shape[0]]]
    moved = jnp.exp(jnp.minimum(rates * time, 1.0))[:, None] * start[:, pivots]
    R = in_turn(R, Q)
    early = jax.scipy.linalg.solve_triangular(R, moved.T, trans=1).T
    return jnp.where(jnp.max(x) > 2, late, early)


def _require_two_layers(network):
    if not isinstance(network, FullyConnectedNetwork) or network.depth != 2:
        shown = f"{type(network).__name__} of depth {getattr(network, 'depth', None)}"
        raise ValueError(
            "network: riccati_trajectory needs a FullyConnectedNetwork with two layers, got "
            f"{shown}; use gradient_flow."
        )


def whitening_scale(problem: Regression) -> Scalar:
    """c with X^T X = c I; `AssumptionFails` for other data."""
    X, d = np.asarray(problem.X), problem.X.shape[1]  # by NumPy: each operation is a program of JAX
    second_moments = X.T @ X
    scale = np.trace(second_moments) / d
    deviation = float(np.max(np.abs(second_moments - scale * np.eye(d))) / scale)
    if not deviation <= rounding(problem.X):
        raise AssumptionFails(
            "X^T X is a multiple of the identity, relative deviation",
            deviation,
            "Whiten the data (X (X^T X)^(-1/2)), or use gradient_flow.",
        )
    return jnp.asarray(scale)


def _lambda_of(first, last):
    gap = last @ last.T - first.T @ first
    imbalance = jnp.trace(gap) / gap.shape[0]
    size = jnp.sum(last**2) + jnp.sum(first**2)
    deviation = float(jnp.max(jnp.abs(gap - imbalance * jnp.eye(gap.shape[0]))) / size)
    if not deviation <= rounding(first):
        raise AssumptionFails(
            "W_2 W_2^T - W_1^T W_1 is a multiple of the identity, relative deviation",
            deviation,
            "Start from initialization.lambda_balanced or balanced, or use gradient_flow.",
        )
    return imbalance


def _times(times):
    times = jnp.asarray(times, float)
    if times.ndim != 1 or not bool((np.isfinite(times) & (times >= 0)).all()):
        raise ValueError(
            f"times: must be a vector of finite physical times >= 0, got {in_words(times)}; pass a "
            "list."
        )
    return times

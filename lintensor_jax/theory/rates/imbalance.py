"""Rates of two-layer linear networks from their imbalance (Min et al. 2021).

The paper's U (n, h) is our first layer W_1 (d, h), its V (m, h) our last layer transposed, so that
U V^T = W_1 W_2. Its loss 1/2 |Y - X U V^T|_F^2 is that of `Regression`, with the same factor: rates
and times need no conversion. (Its experiments average over n samples and omit the 1/2: the flow of
|Y - X U V^T|_F^2 / n is this one with time multiplied by 2/n.)

With the singular value decomposition X = W [S 0] [Phi_1 Phi_2]^T, r = rank X, Sigma = S^2:
U_1 = Phi_1^T U changes along the flow, U_2 = Phi_2^T U is constant. The loss exceeds its least
value L* by 1/2 |E|_F^2, E = W^T Y - S U_1 V^T. l_k is the k-th eigenvalue and s_k the k-th
singular value in decreasing order, zero beyond the last.

`bounds.py` checks the assumptions of each bound.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int, Scalar

from ...eager_programs import eager_program
from ...lapack_calls import in_turn
from ...networks import FullyConnectedNetwork
from ...networks.pair import coefficients_like
from ...problems import Regression, named

MIN = "Min et al. 2021"


class Imbalance(eqx.Module):
    """The imbalance D = U_1^T U_1 - V^T V, conserved by gradient flow; unit: squared parameters.

    - `first` (k, h): U_1, with zero rows beyond the rank, k = min(n, d); `last` (m, h): V.
    - `rank`: r.
    - `eigenvalues` (h,): those of D, decreasing.
    - `positive_spread`: D_+ = pos(l_1(D)) - pos(l_r(D)).
    - `negative_spread`: D_- = pos(l_1(-D)) - pos(l_m(-D)).
    - `level`: D_u = pos(l_r(D)) + pos(l_m(-D)), the effective level of imbalance.

    Source: Min et al. 2021, eq. (16), (18)-(20).
    """

    first: Float[Array, "k h"]
    last: Float[Array, "m h"]
    rank: Int[Array, ""]
    eigenvalues: Float[Array, " h"]
    positive_spread: Scalar
    negative_spread: Scalar
    level: Scalar

    @property
    def matrix(self) -> Float[Array, "h h"]:
        """D, shape (h, h). For wide layers all other arrays of this class have fewer entries."""
        return self.first.T @ self.first - self.last.T @ self.last


def imbalance(network: FullyConnectedNetwork, problem: Regression) -> Imbalance:
    """Measure the imbalance of a two-layer network on a problem's data.

    Only the part of layer 1 in the range of X^T counts: D is the difference of the Gram matrices
    of both layers only if X has rank d. The cost is O(h (r + m)^2), because the spectrum of D
    follows from r + m vectors. Traceable by `jax.jit` and `jax.vmap`, and usable in
    `gradient_flow(..., observe=...)`.

    **Arguments**

    - `network`: two layers, (d, h) and (h,) or (h, m).
    - `problem`: X of shape (n, d), not zero, and y of shape (n,) or (n, m).

    **Raises** ValueError for another network, another problem, or shapes that do not fit.
    """
    require_two_layers("imbalance", network, problem)
    return _imbalance_of(network, problem)


class ConvergenceRateBound(eqx.Module):
    """Lower bounds on the rate at which the excess loss L~ = L - L* decays, in units of 1/time.

    - `instantaneous`: Proposition 1, -dL~/dt / L~ >= `instantaneous` at this point.
    - `guaranteed`: Theorem 3, L~(t) <= exp(-guaranteed t) L~(0) along the whole flow from here. At
      a point reached at t_0 it is Corollary 6: L~(t) <= exp(-guaranteed (t - t_0)) L~(t_0).
    - `by_imbalance`: Corollary 4, 2 l_r(Sigma) D_u: the part of `guaranteed` that needs no margin.
    - `asymptotic`: eq. (22), the limit of `guaranteed` along a flow whose loss tends to L*.
    - `margins` (2,): pos(s_k(W^T Y) - |E|_F) for k = m and k = r, in units of y.
    - `error_norm`: |E|_F; `optimal_loss`: L*.
    - `smallest_eigenvalue`, `largest_eigenvalue`: l_r(Sigma) and l_1(Sigma).
    - `imbalance`: an `Imbalance`.
    """

    instantaneous: Scalar
    guaranteed: Scalar
    by_imbalance: Scalar
    asymptotic: Scalar
    margins: Float[Array, " 2"]
    error_norm: Scalar
    optimal_loss: Scalar
    smallest_eigenvalue: Scalar
    largest_eigenvalue: Scalar
    imbalance: Imbalance

    @property
    def excess_loss(self) -> Scalar:
        """L~ = 1/2 |E|_F^2."""
        return self.error_norm**2 / 2


def convergence_rate_bound(
    network: FullyConnectedNetwork, problem: Regression
) -> ConvergenceRateBound:
    """Proposition 1 and Theorem 3 at a network's current parameters.

    With c(a, b) = -D_+ + sqrt((D_+ + D_u)^2 + 4 a^2) - D_- + sqrt((D_- + D_u)^2 + 4 b^2):

    * Proposition 1: l_r(Sigma) c(s_m(U_1 V^T), s_r(U_1 V^T));
    * Theorem 3: the same with pos(s_k(W^T Y) - |E|_F) / sqrt(l_1(Sigma)) for s_k(U_1 V^T).

    Both hold for h >= min(m, r) and any y. For narrower layers they are zero. For inconsistent
    data they bound the decay of the loss above its minimum. Traceable. Arguments and errors are
    those of `imbalance`.

    Source: Min et al. 2021, Proposition 1 and Theorem 3.
    """
    require_two_layers("convergence_rate_bound", network, problem)
    return _rates_of(network, problem)


@eager_program()  # without jit each of its forty operations would be compiled separately
def _rates_of(network, problem):
    at = _Coordinates.of(network, problem)
    found = _imbalance(at)
    smallest = jnp.min(jnp.where(at.sizes > 0, at.sizes, jnp.inf)) ** 2
    largest = at.sizes[0] ** 2
    error = at.targets - at.sizes[:, None] * (at.first @ at.last.T)
    size = jnp.linalg.norm(error)

    def both(values):
        """The m-th and the r-th of decreasing `values`, as an array of shape (2,)."""
        return jnp.stack([_kth(values, at.last.shape[0]), _kth(values, at.rank)])

    products = _singular_values(in_turn(at.first @ at.last.T, found.level))
    targets = both(_singular_values(in_turn(at.targets, products)))
    products = both(products)
    margins = jnp.maximum(targets - size, 0)

    def rate(at_m_and_r):
        return smallest * _rate_factor(found, at_m_and_r)

    return ConvergenceRateBound(
        instantaneous=rate(products),
        guaranteed=rate(margins / at.sizes[0]),
        by_imbalance=2 * smallest * found.level,
        asymptotic=rate(targets / at.sizes[0]),
        margins=margins,
        error_norm=size,
        optimal_loss=at.optimal_loss,
        smallest_eigenvalue=smallest,
        largest_eigenvalue=largest,
        imbalance=found,
    )


class _Coordinates(NamedTuple):
    """Network and data in the singular coordinates of X; rows beyond the rank are zero."""

    first: Array  # (k, h), U_1
    last: Array  # (m, h), V
    sizes: Array  # (k,), the diagonal of S
    targets: Array  # (k, m), W^T Y
    rank: Array
    optimal_loss: Array

    @staticmethod
    def of(network, problem):
        first, last = (
            network.weights[0],
            network.weights[1].reshape(network.weights[1].shape[0], -1),
        )
        y = problem.y.reshape(problem.y.shape[0], -1)
        left, sizes, right = jnp.linalg.svd(problem.X, full_matrices=False)
        kept = sizes > max(problem.X.shape) * jnp.finfo(sizes.dtype).eps * sizes[0]
        targets = kept[:, None] * (left.T @ y)
        return _Coordinates(
            first=kept[:, None] * (right @ first),
            last=last.T,
            sizes=kept * sizes,
            targets=targets,
            rank=jnp.sum(kept),
            optimal_loss=jnp.sum((y - left @ targets) ** 2) / 2,
        )


@eager_program()
def _imbalance_of(network, problem):
    return _imbalance(_Coordinates.of(network, problem))


def _imbalance(at):
    rows = jnp.concatenate([at.first, at.last])
    signs = jnp.concatenate([jnp.ones(len(at.first)), -jnp.ones(len(at.last))]).astype(rows.dtype)
    width = rows.shape[1]
    if len(rows) < width:
        # D = Q (R J R^T) Q^T, where Q R is the transpose of `rows` and J the diagonal of `signs`.
        rows = jnp.linalg.qr(rows.T, mode="r").T
    gram = rows.T @ (signs[:, None] * rows)
    values = jnp.linalg.eigvalsh((gram + gram.T) / 2)
    values = jnp.sort(jnp.pad(values, (0, width - len(values))))[::-1]
    outputs = at.last.shape[0]
    tops = [jnp.maximum(_kth(values, k), 0) for k in (1, at.rank)]
    bottoms = [jnp.maximum(_kth(-values[::-1], k), 0) for k in (1, outputs)]
    return Imbalance(
        first=at.first,
        last=at.last,
        rank=at.rank,
        eigenvalues=values,
        positive_spread=tops[0] - tops[1],
        negative_spread=bottoms[0] - bottoms[1],
        level=tops[1] + bottoms[1],
    )


def _rate_factor(found, at_m_and_r):
    """c(a, b): both brackets without the cancellation of -p + sqrt((p + u)^2 + 4 s^2)."""
    u = found.level
    spreads = jnp.stack([found.positive_spread, found.negative_spread])
    roots = jnp.sqrt((spreads + u) ** 2 + 4 * at_m_and_r**2)
    numerators = u * (2 * spreads + u) + 4 * at_m_and_r**2
    sums = spreads + roots
    return jnp.sum(jnp.where(sums > 0, numerators / jnp.where(sums > 0, sums, 1), 0))


def _kth(values, k):
    """The k-th of decreasing values, counted from 1; zero beyond the last. k may be traced."""
    size = values.shape[0]
    return jnp.where(k <= size, values[jnp.clip(k, 1, size) - 1], 0)


def _singular_values(matrix):
    return jnp.linalg.svd(matrix, compute_uv=False)


def require_two_layers(owner: str, network: Any, problem: Any) -> None:
    """Raise ValueError unless `network` is fully connected with two layers, and fits the data."""
    if not isinstance(network, FullyConnectedNetwork) or network.depth != 2:
        got = type(network).__name__
        if isinstance(network, FullyConnectedNetwork):
            got = f"{network.depth} layers"
        raise ValueError(
            f"{owner}: network must be a FullyConnectedNetwork of two layers, got {got}; the "
            "imbalance of Min et al. 2021 is that of U and V in U V^T (for deeper networks see "
            "lintensor_jax.conserved_quantities)."
        )
    if not isinstance(problem, Regression) or not problem.has_squared_loss:
        raise ValueError(
            f"{owner}: problem must be a Regression, got {named(problem)}; the rates are "
            "those of the squared loss."
        )
    expected = coefficients_like(network).shape
    if expected != problem.coefficient_shape:
        raise ValueError(
            f"{owner}: network and problem must fit, got coefficients of shape {expected} and data "
            f"for {problem.coefficient_shape}; X is (n, d) and y (n,) or (n, m)."
        )
    if not isinstance(problem.X, Tracer) and not np.any(np.asarray(problem.X)):
        raise ValueError(f"{owner}: X must not be zero; without data no parameter moves.")

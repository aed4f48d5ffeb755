"""The losses at the critical points of a fully connected network: a flow below them converges.

With the singular value decomposition X = W S Phi^T, T = W^T y and M = S Phi^T beta the loss is
1/2 |T - M|^2 plus a constant. At a critical point the gradients of the first and of the last layer
vanish: (M - T) M^T = 0 and M^T (M - T) = 0. So M = P T with the projection P on the range of M,
and P commutes with T T^T. At a critical point of any depth L >= 2, M equals T on some of the
singular vectors of T and is 0 on the others. (Baldi & Hornik 1989 for two layers.)

The loss along a flow decreases, and a flow converges to a critical point (it is bounded, because
the layers' differences are conserved; Bah et al. 2021; Eftekhari 2020, Lemma 9). So a flow that
starts below the lowest of the critical levels that are no global minimum ends at a global minimum.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from .assumptions import Assumption, rounding
from .row_space import RowSpace

_SOURCE = "this package, from the critical points of Baldi & Hornik 1989"


class Levels(NamedTuple):
    """Losses at a network's critical points, minus the least loss over all beta.

    - `least`: at the global minimum over the matrices whose rank the network can have.
    - `lowest_saddle`: at the lowest of the other critical points; infinite if there are none.
    - `rank`: that of M at the global minimum. `is_unique`: whether all global minima have one M.
    - `wanted`: the rank of T, that is of the targets in the range of X.
    """

    least: float
    lowest_saddle: float
    rank: int
    is_unique: bool
    wanted: int


def critical_levels(weights: Any, data: RowSpace) -> Levels:
    """The levels of a fully connected network with these `weights`, for the squared loss."""
    sizes = np.linalg.svd(data.projected(), compute_uv=False)
    scale = float(sizes[0]) if sizes.size else 0.0
    # Singular values that may be rounding errors count as zero.
    zero = 4 * rounding(data.sizes) * max(data.shape) * scale
    wanted = int(np.sum(sizes > zero))
    width = min((w.shape[0] for w in weights[1:]), default=wanted)
    rank = min(width, wanted)
    squares = np.append(sizes**2, np.zeros(2))
    if rank == 0:
        return Levels(0.0, np.inf, 0, True, wanted)
    least = 0.5 * float(squares[rank:].sum())
    # The next level replaces the k-th singular vector by the (k+1)-th; without one it drops the
    # k-th.
    other = 0.5 * float(squares[rank - 1] + squares[rank + 1 :].sum())
    is_unique = rank == wanted or sizes[rank - 1] - sizes[rank] > zero
    return Levels(least, other if is_unique else least, rank, bool(is_unique), wanted)


def below_the_saddles(network: Any, problem: Any, data: RowSpace) -> Assumption | None:
    """That the loss at the start is below that of every saddle; None if it is not.

    Saddles are all critical points but the global minima. `network`: fully connected, at a start
    that is no critical point. For losses other than the squared one the saddles are known for a
    single output only: there they have beta = 0, at every depth.
    """
    beta = network.linear_coefficients()
    levels = critical_levels(network.weights, data)
    if problem.has_squared_loss:
        flat = np.asarray(beta).reshape(beta.shape[0], -1)
        excess = 0.5 * float(
            np.sum((data.sizes[:, None] * (data.basis @ flat) - data.projected()) ** 2)
        )
        level = levels.lowest_saddle
        if not levels.is_unique:
            return None
    elif beta.ndim == 1:
        excess, level = (float(problem.loss(b)) for b in (beta, jnp.zeros_like(beta)))
    else:
        return None
    goal = data.goal
    if beta.ndim > 1 and levels.rank < levels.wanted:
        goal = f"the loss tends to its least value over the matrices of rank {levels.rank}"
    # Equality is enough: the loss of a start that is not critical decreases at once.
    if not excess <= level * (1 + rounding(data.sizes)):
        return None
    return Assumption(
        f"{goal}: the start lies below every critical point that is no global minimum, "
        "loss over the lowest loss of these (both above the least loss)",
        excess / level if level else 0.0,
        True,
        _SOURCE,
    )

"""Both ends of the spectrum of a symmetric operator that is given by products with vectors."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

_CHUNK = 20  # steps between two computations of the Ritz values


class Extremes(NamedTuple):
    """The smallest and the largest Ritz value, a Ritz vector, and bounds on the errors.

    - `smallest`, `largest`: Rayleigh quotients, so that the true ends lie outside or on them.
    - `smallest_error`, `largest_error`: residual norms: an eigenvalue lies within this distance.
    - `direction`: a unit vector with Rayleigh quotient `smallest`.
    - `lower_bound`: no eigenvalue lies below, with probability 1 - 1e-6 over the random start.
    - `num_products`: products with the operator.
    """

    smallest: float
    smallest_error: float
    largest: float
    largest_error: float
    direction: Float[Array, " p"]
    lower_bound: float
    num_products: int


def extreme_eigenvalues(
    product: Callable[[Float[Array, " p"], Any], Float[Array, " p"]],
    args: Any,
    like: Float[Array, " p"],
    key: PRNGKeyArray,
    *,
    max_steps: int,
    tolerance: float,
) -> Extremes:
    """Lanczos' method with full reorthogonalisation from a random start.

    It ends when both residual norms are below `tolerance` times the largest absolute Ritz value,
    when the Krylov space is exhausted, or after `max_steps` products. The memory is `max_steps`
    vectors.

    **Arguments**

    - `product`: (v, args) -> A v, compiled once for each function and shape.
    - `like`: any vector of A's size and dtype.

    Source: Golub & Van Loan, Matrix Computations, section 10.3; for `lower_bound` Kuczynski &
    Wozniakowski 1992, Theorem 4.2: after k products the gap to an end of the spectrum is more than
    eps (largest - smallest) with a probability of at most 1.648 sqrt(p) exp(-sqrt(eps) (2k - 1)).
    """
    size = like.size
    steps = min(max_steps, size)
    start = jax.random.normal(key, (size,), like.dtype)
    rows = _CHUNK * (steps // _CHUNK + 1)  # more than `steps`
    basis = jnp.zeros((rows, size), like.dtype).at[0].set(start / jnp.linalg.norm(start))
    diagonal, beyond = jnp.zeros(steps, like.dtype), jnp.zeros(steps, like.dtype)
    eps = float(jnp.finfo(like.dtype).eps)
    done = 0
    while True:
        count = min(_CHUNK, steps - done)
        basis, diagonal, beyond = _extend(
            product, args, basis, diagonal, beyond, jnp.asarray(done), jnp.asarray(done + count)
        )
        done += count
        a, b = np.asarray(diagonal[:done]), np.asarray(beyond[:done])
        largest = np.max(np.abs(a)) + np.max(b)
        # If the remainder is only rounding, the Krylov space is invariant. It then contains a
        # vector of every eigenspace, because a random start is orthogonal to none.
        broken = np.flatnonzero(b <= 10 * math.sqrt(size) * eps * largest)
        used = int(broken[0]) + 1 if broken.size else done
        exhausted = bool(broken.size) or done == size
        values, vectors = np.linalg.eigh(
            np.diag(a[:used]) + np.diag(b[: used - 1], 1) + np.diag(b[: used - 1], -1)
        )
        last = 0.0 if exhausted else b[used - 1]
        rounding = 10 * eps * largest
        errors = np.abs(last * vectors[-1, [0, -1]]) + rounding
        if exhausted or done == steps or max(errors) <= tolerance * np.max(np.abs(values)):
            break
    width = values[-1] - values[0]
    unseen = (math.log(1.648e6 * math.sqrt(size)) / (2 * used - 1)) ** 2
    # (largest - true smallest) (1 - unseen) <= largest - smallest.
    gap = math.inf if unseen >= 1 else width * unseen / (1 - unseen)
    return Extremes(
        smallest=float(values[0]),
        smallest_error=float(errors[0]),
        largest=float(values[-1]),
        largest_error=float(errors[1]),
        direction=jnp.asarray(vectors[:, 0], like.dtype) @ basis[:used],
        lower_bound=float(values[0] - (errors[0] if exhausted else gap)),
        num_products=done,
    )


@eqx.filter_jit
def _extend(product, args, basis, diagonal, beyond, first, end):
    """Steps `first` to `end` of the three-term recurrence."""

    def project(basis, block, vector):
        # Block by block, so that only vectors in use are read; those beyond k are zero.
        rows = jax.lax.dynamic_slice_in_dim(basis, block * _CHUNK, _CHUNK)
        return vector - (rows @ vector) @ rows

    def step(k, carry):
        basis, diagonal, beyond = carry
        vector = product(basis[k], args)
        diagonal = diagonal.at[k].set(jnp.vdot(basis[k], vector))
        blocks, off_block = k // _CHUNK + 1, functools.partial(project, basis)
        for _ in range(2):  # twice is enough (Parlett)
            vector = jax.lax.fori_loop(0, blocks, off_block, vector)
        norm = jnp.linalg.norm(vector)
        basis = basis.at[k + 1].set(vector / jnp.where(norm > 0, norm, 1.0))
        return basis, diagonal, beyond.at[k].set(norm)

    return jax.lax.fori_loop(first, end, step, (basis, diagonal, beyond))

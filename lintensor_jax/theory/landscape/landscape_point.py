"""The kind of point at which a network is: stationary of first or second order, or neither.

Gradient and Hessian are those of the loss with respect to the layers. Lanczos' method uses products
with the Hessian only, and takes seconds for 1e5 parameters; the Hessian is never formed.
"""

import enum
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray

from ...arguments import as_number
from ...eager_programs import eager_program
from ...networks import split
from ...networks.closed_forms import closed_form
from ...networks.pair import check_pair
from ...problems import AbstractProblem, Regression
from .lanczos import extreme_eigenvalues


class PointKind(enum.StrEnum):
    """What a point of the landscape is (Eftekhari 2020, Definitions 1 to 3)."""

    NOT_STATIONARY = "not stationary"
    #: A first-order stationary point with a direction of negative curvature.
    STRICT_SADDLE = "strict saddle"
    GLOBAL_MINIMUM = "second-order stationary: global minimum"
    #: No negative curvature, and yet no global minimum: a non-strict saddle or a local minimum.
    SPURIOUS = "second-order stationary: spurious"
    #: No negative curvature; the global minimum of this architecture is not known.
    SECOND_ORDER = "second-order stationary: global minimum unknown"


class LandscapePoint(eqx.Module):
    """The verdict of `landscape_point`, and the numbers behind it.

    - `kind`: a `PointKind`, which equals its own text.
    - `gradient_norm`: |grad L|; `gradient_scale`: the scale that `tolerance` multiplies.
    - `smallest_eigenvalue`, `largest_eigenvalue`: of the Hessian, as Rayleigh quotients: the true
      ends lie outside or on them. An eigenvalue lies within `smallest_error`, `largest_error`.
    - `lower_bound`: no eigenvalue lies below, with probability 1 - 1e-6 over Lanczos' start; -inf
      after too few products for a bound.
    - `escape_direction`: a network-shaped pytree of unit norm with the curvature
      `smallest_eigenvalue`: at a strict saddle the loss decreases along it to second order.
    - `rank`: the numerical rank of beta as a matrix (d, m); `largest_rank`: of any beta of this
      architecture, the r of Theorem 8; 0 if not known.
    - `loss`, `least_loss`: L, and its global minimum (Eckart & Young: the best approximation of
      rank r); None if it is not known in closed form.
    - `num_products`: products with the Hessian.
    """

    kind: PointKind = eqx.field(static=True)
    gradient_norm: float = eqx.field(static=True)
    gradient_scale: float = eqx.field(static=True)
    smallest_eigenvalue: float = eqx.field(static=True)
    smallest_error: float = eqx.field(static=True)
    largest_eigenvalue: float = eqx.field(static=True)
    largest_error: float = eqx.field(static=True)
    lower_bound: float = eqx.field(static=True)
    escape_direction: Any
    rank: int = eqx.field(static=True)
    largest_rank: int = eqx.field(static=True)
    loss: float = eqx.field(static=True)
    least_loss: float | None = eqx.field(static=True)
    num_products: int = eqx.field(static=True)

    @property
    def is_stationary(self) -> bool:
        """Of first order: the gradient vanishes."""
        return self.kind is not PointKind.NOT_STATIONARY

    @property
    def is_second_order(self) -> bool:
        """Stationary without negative curvature."""
        return self.is_stationary and self.kind is not PointKind.STRICT_SADDLE

    def __str__(self) -> str:
        """The kind of the point, then one line for each number."""
        least = "unknown" if self.least_loss is None else f"{self.least_loss:.9g}"
        return "\n".join(
            [
                str(self.kind),
                f"  |gradient|   {self.gradient_norm:.3e} (scale {self.gradient_scale:.3e})",
                f"  Hessian      from {self.smallest_eigenvalue:.6g} (+- {self.smallest_error:.1e})"
                f" to {self.largest_eigenvalue:.6g} (+- {self.largest_error:.1e})",
                f"               none below {self.lower_bound:.3g} with probability 1 - 1e-6",
                f"  rank of beta {self.rank} of at most {self.largest_rank}",
                f"  loss         {self.loss:.9g} (global minimum {least})",
                f"  products     {self.num_products} with the Hessian",
            ]
        )


def landscape_point(
    network: eqx.Module,
    problem: AbstractProblem,
    *,
    tolerance: float | None = None,
    max_products: int = 200,
    key: PRNGKeyArray | None = None,
) -> LandscapePoint:
    """First- and second-order stationarity of the loss at a network's parameters.

    * The gradient counts as zero at |grad L| <= tolerance sqrt(h) (|y| + |r|), h the largest
      absolute Hessian eigenvalue (sqrt(h) is the size of d(predictions)/d(Theta)).
    * Curvature counts as negative below -tolerance h. A strict saddle is certain, since its escape
      direction is known. The absence of negative curvature is certain down to `lower_bound`.
    * A second-order point is the global minimum if grad L(beta) vanishes (the loss is convex in
      beta), or if its loss is the least one of rank r. By Theorem 8 it is so if beta has rank
      r <= rank(X X^+ y). For lower ranks the theorem states nothing: zero is spurious for L >= 3.
      Relative differences of the loss below 1e4 tolerance^2 are not resolved.

    Erratum: Eftekhari 2020, after Theorem 8, calls zero a spurious second-order point for L >= 2.
    At L = 2 it is a strict saddle, with smallest Hessian eigenvalue -s_1(X^T y).

    **Arguments**

    - `network`: any network, or an `equinox.Module` with `linear_coefficients()`.
    - `problem`: any problem.
    - `tolerance`: relative, default sqrt(eps). A point taken from a flow is stationary to about the
      residual at which the flow stopped.
    - `max_products`: the most products with the Hessian; also the most vectors kept in memory.
    - `key`: for the random start of Lanczos' method; default `jax.random.key(0)`.

    ValueError for coefficients whose shape is not that of the problem, and for a bad tolerance.

    Source: Eftekhari 2020, section 2; Achour et al. 2021 for the order of saddles.
    """
    _check(network, problem, tolerance, max_products)
    parameters, rest = split(network)
    theta, unravel = ravel_pytree(parameters)
    if tolerance is None:
        tolerance = float(jnp.finfo(theta.dtype).eps ** 0.5)
    args = (parameters, rest, problem)
    beta, *numbers = _first_order(*args)
    loss, norm, beta_gradient_norm, size, data_norm = map(float, numbers)
    found = extreme_eigenvalues(
        _product,
        args,
        theta,
        jax.random.key(0) if key is None else key,
        max_steps=max_products,
        tolerance=0.1 * tolerance,
    )
    largest = max(abs(found.smallest), abs(found.largest))
    scale = largest**0.5 * size
    matrix = np.asarray(beta).reshape(beta.shape[0], -1)
    sizes = np.linalg.svd(matrix, compute_uv=False)
    most = _largest_rank(network, min(matrix.shape))
    least = least_loss(network, problem)
    if not norm <= tolerance * scale:
        kind = PointKind.NOT_STATIONARY
    elif found.smallest < -tolerance * largest:
        kind = PointKind.STRICT_SADDLE
    elif beta_gradient_norm <= tolerance * data_norm * size:
        kind = PointKind.GLOBAL_MINIMUM
    elif most == min(matrix.shape):  # the network reaches every beta; the loss is convex in beta
        kind = PointKind.SPURIOUS
    elif least is None:
        kind = PointKind.SECOND_ORDER
    elif loss - least <= 1e4 * tolerance**2 * size**2:
        kind = PointKind.GLOBAL_MINIMUM
    else:
        kind = PointKind.SPURIOUS
    return LandscapePoint(
        kind=kind,
        gradient_norm=norm,
        gradient_scale=scale,
        smallest_eigenvalue=found.smallest,
        smallest_error=found.smallest_error,
        largest_eigenvalue=found.largest,
        largest_error=found.largest_error,
        lower_bound=found.lower_bound,
        escape_direction=eqx.combine(unravel(found.direction), rest),
        rank=int((sizes > tolerance * sizes[0]).sum()) if sizes[0] > 0 else 0,
        largest_rank=most,
        loss=loss,
        least_loss=least,
        num_products=found.num_products,
    )


def least_loss(network: eqx.Module, problem: AbstractProblem) -> float | None:
    """The smallest squared loss of any parameters of this architecture, or None if not known.

    For fully-connected networks and matrix factorizations of width r that is the error of the best
    approximation of rank r: with X = U S V^T of rank k and the first k columns of U,
    1/2 |y - U U^T y|^2 + 1/2 sum_{i > r} s_i(U^T y)^2 (Eckart & Young; Eftekhari 2020, Lemma 5).
    Diagonal networks and full-length convolutions reach every beta: the second term is zero.
    """
    if not isinstance(problem, Regression) or not problem.has_squared_loss:
        return None
    if not _largest_rank(network, 1):
        return None
    X, y = np.asarray(problem.X), np.asarray(problem.y)
    targets = y.reshape(y.shape[0], -1)
    left, sizes, _ = np.linalg.svd(X, full_matrices=False)
    left = left[:, sizes > max(X.shape) * np.finfo(X.dtype).eps * sizes[0]]
    reached = left.T @ targets
    rank = _largest_rank(network, min(X.shape[1], targets.shape[1]))
    lost = np.linalg.svd(reached, compute_uv=False)[rank:]
    return float(0.5 * (np.sum((targets - left @ reached) ** 2) + np.sum(lost**2)))


def hessian(network: eqx.Module, problem: AbstractProblem) -> Float[Array, "p p"]:
    """The whole Hessian of the loss, shape (p, p), for a network's p parameters in flat order.

    For small p only: it takes p products and p^2 numbers of memory.
    """
    parameters, rest = split(network)
    size = ravel_pytree(parameters)[0].size
    return jax.vmap(lambda v: _product(v, (parameters, rest, problem)))(jnp.eye(size))


def _product(vector, args):
    """The Hessian of Theta -> L(beta(Theta)) times `vector`."""
    parameters, rest, problem = args
    theta, unravel = ravel_pytree(parameters)

    def loss(theta):
        return problem.loss(eqx.combine(unravel(theta), rest).linear_coefficients())

    return jax.jvp(jax.grad(loss), (theta,), (vector,))[1]


@eager_program()
def _first_order(parameters, rest, problem):
    """beta, L, |grad L|, |grad L(beta)|, |y| + |r|, and the size of the map to predictions."""
    beta, vjp = jax.vjp(lambda p: eqx.combine(p, rest).linear_coefficients(), parameters)
    residual = problem.residual(beta)
    beta_gradient = problem.adjoint(residual)
    norm = jnp.linalg.norm(ravel_pytree(vjp(beta_gradient)[0])[0])
    size = jnp.linalg.norm(problem.y) + jnp.linalg.norm(residual)
    # A normal vector g has E|X g|^2 = |X|_F^2. As a scale for a tolerance one draw is enough.
    probe = jax.random.normal(jax.random.key(0), beta.shape, beta.dtype)
    data_norm = jnp.linalg.norm(problem.predictions(probe))
    return beta, problem.loss(beta), norm, jnp.linalg.norm(beta_gradient), size, data_norm


def _largest_rank(network, most):
    """The r of Eftekhari 2020, eq. (9), at most `most`; 0 if the network does not state it."""
    largest = closed_form(network, "largest_rank")
    return 0 if largest is None else min(most, largest)


def _check(network, problem, tolerance, max_products):
    check_pair(network, problem)
    if tolerance is not None and not 0 < as_number(tolerance, "tolerance", "landscape_point") < 1:
        raise ValueError(
            f"tolerance: must lie in (0, 1), got {tolerance!r}; leave it out for sqrt(eps)."
        )
    if isinstance(max_products, bool) or not isinstance(max_products, int) or max_products < 1:
        raise ValueError(f"max_products: must be a positive int, got {max_products!r}.")

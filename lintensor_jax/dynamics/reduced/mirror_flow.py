"""Mirror flow: orthogonally decomposable networks, integrated in n instead of p dimensions.

With Assumption 1 the flow of every coordinate of eta_l = U_l^T v_l depends on the data only
through zeta = S X^T nu, nu = -int r dt, and has a closed form in it. So d nu/dt = -r(nu) is the
whole flow (Yun, Krishnan & Mobahi 2021, proofs of Theorems 5 and 6), and every coordinate keeps
its relative accuracy however small it becomes.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Scalar

from ...networks.mirror_coordinates import AbstractMirrorCoordinates
from ...networks.pair import check_pair, same_dtype
from ...penalized import require_no_decay
from ...problems import AbstractProblem, AbstractRegressionProblem
from ..gauss_newton import GaussNewton
from ..options import fill_options
from ..solution import FlowSolution, run
from .mirror_coordinates import coordinates_of


class DualSystem(eqx.Module):
    """A `System` whose parameter vector is nu: the same flow in n dimensions."""

    coordinates: AbstractMirrorCoordinates
    problem: AbstractRegressionProblem
    depth: int = eqx.field(static=True)

    @property
    def initial(self) -> Float[Array, " n"]:
        """nu = 0."""
        return jnp.zeros_like(self.problem.y)

    def _zeta(self, nu):
        return self.coordinates.S @ jnp.ravel(self.problem.adjoint(nu))

    def network(self, theta: Float[Array, " n"]) -> Any:
        """The network at nu."""
        return self.coordinates.network(self._zeta(theta))

    def coefficients(self, theta: Float[Array, " n"]) -> Array:
        """beta at nu."""
        rho = self.coordinates.rho(self._zeta(theta))
        return (self.coordinates.S.T @ rho).reshape(self.problem.coefficient_shape)

    def velocity(self, theta: Float[Array, " n"]) -> Float[Array, " n"]:
        """d nu/dt = -r; for another loss than the squared one -l'(r)."""
        return -self.problem.residual(self.coefficients(theta))

    def gradient_norm(self, theta: Float[Array, " n"]) -> tuple[Array, Scalar]:
        """r, and sqrt(r^T K r) with K = d(predictions)/d(nu), the tangent kernel."""
        residual = self.problem.residual(self.coefficients(theta))
        zeta, direction = jax.jvp(self._zeta, (theta,), (residual,))
        _, slope = jax.jvp(self.coordinates.rho, (zeta,), (direction,))
        return residual, jnp.sqrt(jnp.vdot(direction, slope))

    def finish_step(self, theta: Float[Array, " n"], size: Scalar, gradient: Scalar) -> Scalar:
        """Zero: Newton's method in nu stays on the flow's own manifold, so any step is exact."""
        return jnp.zeros_like(size)


def mirror_flow(
    network: eqx.Module, problem: AbstractProblem, *, finish: Any = ..., **options: Any
) -> FlowSolution:
    """Gradient flow of an orthogonally decomposable network, integrated in the n dual variables.

    The same trajectory, the same physical time and the same `FlowSolution` as `gradient_flow`, for
    networks and initializations whose flow is a function of nu = -int r dt in closed form:

    * two layers with a real orthogonal decomposition, from *any* initialization;
    * any depth with a real decomposition, from equal first layers U_l^T v_l and a zero last one;
    * full-length convolutions with even data and even filters (Corollary 6), as either of these;
    * matrix factorizations with commuting sensors and layers diagonal in their common basis;
    * differential diagonal networks with positive entries (Woodworth et al. 2020);
    * a user's own network with `orthogonal_decomposition()`, `factors` and `with_factors`, as the
      first two of these, or with `mirror_coordinates(problem)` (see `AbstractNetwork`).

    **Arguments**: those of `gradient_flow`, for losses of residuals with y of shape (n,). `finish`
    is Newton's method in nu, which leads exactly to the flow's limit.

    **Raises** `AssumptionFails` (a ValueError) with the property that fails and its measured value;
    ValueError where nu cannot hold the answer: for L >= 3 a relative error eps in nu becomes one of
    about eps / alpha^(L-2) in rho (initial scale alpha), and more than 1e-10 is refused, so that
    rho keeps 1e-8: alpha >= 2e-6 for L = 3, 1.5e-3 for L = 4 in float64.

    Source: Yun et al. 2021, Theorem 5 and its proof (appendix F); for the differential network
    Woodworth et al. 2020.
    """
    check_pair(network, problem)
    require_no_decay(problem, "mirror_flow")
    if not problem.has_residuals or problem.y.ndim != 1:  # pyright: ignore
        raise ValueError(
            "problem: mirror_flow needs a loss of residuals with one target per sample, got "
            f"{type(problem).__name__} with y of shape {problem.y.shape}; use gradient_flow."  # pyright: ignore
        )
    leaves = jax.tree.leaves((network, problem))
    if any(isinstance(leaf, Tracer) for leaf in leaves):
        raise ValueError(
            "network: mirror_flow checks its initialization and is not for jax.jit or jax.vmap; "
            "loop over it, or use gradient_flow."
        )
    network, problem = same_dtype(network, problem)
    coordinates = coordinates_of(network, problem)
    depth = network.depth  # pyright: ignore[reportAttributeAccessIssue]
    system: Any = DualSystem(coordinates, problem, depth)  # pyright: ignore[reportArgumentType]
    if finish is ...:
        finish = GaussNewton(max_relative_step=1e-2, max_iterations=12)
    _set_tolerances(system, options)
    throw = options.pop("throw", True)
    return run(system, fill_options(system, finish=finish, **options), throw=throw)  # pyright: ignore


def _set_tolerances(system, options):
    """Tolerances for nu that keep rho to `rtol`, in `options`; or a refusal."""
    dtype = system.initial.dtype
    eps = float(jnp.finfo(dtype).eps)
    rtol = (1e-8 if eps < 1e-12 else 1e-5) if options.get("rtol") is None else options["rtol"]
    sensors = np.asarray(jax.vmap(system._zeta)(jnp.eye(system.initial.size, dtype=dtype)))
    growth, angle = _sensitivity(system, sensors)
    if 100 * eps * growth > 1e-8:
        factor = (1e10 * eps * growth) ** (1 / (system.depth - 2))
        raise ValueError(
            "network: from so small an initialization a rounding of the dual variable nu changes "
            f"rho by {eps * growth:.0e} (its limit sits at the boundary of the mirror map), and at "
            f"most 1e-10 is accepted; take the initial layers {factor:.3g} times as large, or "
            "integrate by gradient_flow."
        )
    options["rtol"] = max(rtol / growth, 64 * eps)
    if options.get("atol") is None:
        largest = np.linalg.norm(sensors, 2)
        options["atol"] = min(options["rtol"] * angle / max(largest, 1e-300), 0.5)


def _sensitivity(system, sensors):
    """(relative change of rho) / (relative change of nu) near the limit, and the size of zeta."""
    known = getattr(system.coordinates, "sensitivity", None)
    if known is None:
        return 1.0, 1.0
    # rho is as large as the min-norm one.
    rho = np.linalg.lstsq(sensors, np.asarray(system.problem.y))[0]
    return known(np.max(np.abs(rho)))

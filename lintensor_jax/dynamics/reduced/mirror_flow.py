"""Mirror flow: orthogonally decomposable networks, integrated in n instead of p dimensions.

With Assumption 1 the flow of every coordinate of eta_l = U_l^T v_l depends on the data only
through zeta = S X^T nu, nu = -int r dt, and has a closed form in it. Therefore d nu/dt = -r(nu) is
the whole flow (Yun, Krishnan & Mobahi 2021, proofs of Theorems 5 and 6). Every coordinate keeps
its relative accuracy at any size.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Scalar

from ...eager_programs import eager_program
from ...networks.mirror_coordinates import AbstractMirrorCoordinates
from ...networks.pair import check_pair, same_dtype
from ...penalized import require_no_decay
from ...problems import AbstractProblem, AbstractRegressionProblem
from ..gauss_newton import GaussNewton
from ..options import fill_options
from ..solution import FlowError, FlowSolution, run
from ..statuses import FlowStatus, code_of
from .mirror_coordinates import coordinates_of


def most_rounding(like: Array) -> float:
    """The largest relative error of rho from the rounding of nu that is accepted: sqrt(eps)."""
    return float(jnp.finfo(like.dtype).eps) ** 0.5


class DualSystem(eqx.Module):
    """A `System` whose parameter vector is nu: the same flow in n dimensions, or in r.

    With an orthonormal `basis` (n, r), nu = basis q, and q is the parameter vector. The basis spans
    the part of nu on which S X^T nu depends. On data that no beta fits, the rest would grow in
    proportion to time, and its rounding would become larger than this part.
    """

    coordinates: AbstractMirrorCoordinates
    problem: AbstractRegressionProblem
    depth: int = eqx.field(static=True)
    lengths: Float[Array, " m"]  # |S X^T nu|_j <= lengths_j |nu|
    basis: Float[Array, "n r"] | None = None
    ties_are_exact: ClassVar[bool] = True  # nu has no layers

    @property
    def initial(self) -> Float[Array, " r"]:
        """nu = 0."""
        y = self.problem.y
        return jnp.zeros_like(y) if self.basis is None else jnp.zeros_like(self.basis[0])

    def _nu(self, theta):
        return theta if self.basis is None else self.basis @ theta

    def _zeta(self, theta):
        return self.coordinates.S @ jnp.ravel(self.problem.adjoint(self._nu(theta)))

    def network(self, theta: Float[Array, " r"]) -> Any:
        """The network at nu."""
        return self.coordinates.network(self._zeta(theta))

    def coefficients(self, theta: Float[Array, " r"]) -> Array:
        """beta at nu."""
        rho = self.coordinates.rho(self._zeta(theta))
        return (self.coordinates.S.T @ rho).reshape(self.problem.coefficient_shape)

    def counted(self, theta: Float[Array, " r"]) -> Float[Array, " r"]:
        """theta: there is no bias here, and no weight decay."""
        return theta

    def velocity(self, theta: Float[Array, " r"]) -> Float[Array, " r"]:
        """d nu/dt = -r, or -l'(r) for a loss that is not squared; 0 where rounding hides nu.

        If a coordinate decays to 0 while the data still pull on it, nu grows in proportion to time.
        From some time on zeta is a difference of large numbers. Then either the network stands
        still, or `mirror_flow` refuses the flow (see `_with_rest_required`).
        """
        seen = self._seen(self.problem.residual(self.coefficients(theta)))
        return jnp.where(self.rounding(theta) < most_rounding(theta), -seen, 0.0)

    def _seen(self, residual):
        return residual if self.basis is None else self.basis.T @ residual

    def rounding(self, theta: Float[Array, " r"]) -> Scalar:
        """The relative error of rho that the rounding of nu causes in the sums S X^T nu."""
        zeta = self._zeta(theta)
        rho, slope = _rho_and_slope(self.coordinates, zeta)
        error = jnp.finfo(theta.dtype).eps * self.lengths * jnp.linalg.norm(theta)
        size = jnp.max(jnp.abs(rho))
        worst = jnp.max(jnp.where(jnp.isfinite(slope), jnp.abs(slope), 0.0) * error)
        return jnp.where(size > 0, worst / jnp.where(size > 0, size, 1.0), 0.0)

    def gradient_norm(self, theta: Float[Array, " r"]) -> tuple[Array, Scalar]:
        """r, and sqrt(r^T K r), where K = d(predictions)/d(nu) is the tangent kernel."""
        residual = self.problem.residual(self.coefficients(theta))
        zeta, direction = jax.jvp(self._zeta, (theta,), (self._seen(residual),))
        _, slope = jax.jvp(self.coordinates.rho, (zeta,), (direction,))
        return residual, jnp.sqrt(jnp.maximum(jnp.vdot(direction, slope), 0.0))

    def finish_step(self, theta: Float[Array, " n"], size: Scalar, gradient: Scalar) -> Scalar:
        """Zero: Newton's method in nu stays on the manifold of the flow, so any step is exact."""
        return jnp.zeros_like(size)


def mirror_flow(
    network: eqx.Module, problem: AbstractProblem, *, finish: Any = ..., **options: Any
) -> FlowSolution:
    """Gradient flow of an orthogonally decomposable network, integrated in the n dual variables.

    Trajectory, physical time and `FlowSolution` are the same as those of `gradient_flow`. It is for
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

    **Raises** `AssumptionFails` (a ValueError) with the property that fails and its measured value.
    ValueError if nu is not accurate enough: for L >= 3 and the initial scale alpha, a relative
    error eps in nu becomes an error of about eps / alpha^(L-2) in rho. More than 1e-10 is refused,
    so that rho is accurate to 1e-8: alpha >= 2e-6 for L = 3, 1.5e-3 for L = 4 in float64.
    `FlowError` if a coordinate decays to 0 while the data pull on it, nu has grown so far that its
    rounding changes rho by sqrt(eps), and the network still moves.

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
    system, sensors = _dual_system(network, problem)
    if finish is ...:
        finish = GaussNewton(max_relative_step=1e-2, max_iterations=12)
    _set_tolerances(system, sensors, options)
    throw = options.pop("throw", True)
    filled = fill_options(system, finish=finish, **options)  # pyright: ignore
    return _with_rest_required(run(system, filled, throw=throw), sensors, throw)


def _dual_system(network, problem) -> tuple[Any, np.ndarray]:
    """The system, and the rows (r, m) whose combinations, with weights nu, are zeta."""
    coordinates = coordinates_of(network, problem)
    depth: Any = network.depth
    count, dtype = problem.y.shape[0], problem.y.dtype
    sensors, lengths = _sensors(coordinates.S, problem, np.eye(count, dtype=dtype))
    sensors = np.asarray(sensors)
    left, sizes, right = np.linalg.svd(sensors, full_matrices=False)
    kept = sizes > max(sensors.shape) * np.finfo(sizes.dtype).eps * sizes[0]
    basis = None
    if 0 < int(kept.sum()) < count:
        basis = jnp.asarray(left[:, kept])
        sensors = sizes[kept, None] * right[kept]
    system: Any = DualSystem(coordinates, problem, depth, lengths, basis)
    return system, sensors


@eager_program()  # without such programs the first flow would compile some fifty small ones
def _sensors(S, problem, units):
    """S X^T nu for the rows nu of `units`, and the lengths of the columns."""
    sensors = jax.vmap(lambda v: S @ jnp.ravel(problem.adjoint(v)))(units)
    return sensors, jnp.linalg.norm(sensors, axis=0)


@eager_program()
def _rho_and_slope(coordinates, zeta):
    """rho and its derivatives: each coordinate of rho depends on its own zeta only."""
    return jax.jvp(coordinates.rho, (zeta,), (jnp.ones_like(zeta),))


@eager_program()
def _rounding(system: DualSystem, theta: Array) -> Scalar:
    return system.rounding(theta)


def _with_rest_required(solution, sensors, throw):
    """The solution, if its end is that of the flow; otherwise a failure.

    If the rounding of nu hides the motion of zeta, nu no longer changes. That is correct if the
    network stands still: the remaining motion of rho is no larger than that rounding, and no
    coordinate that has decayed to 0 grows again. Otherwise the flow is refused.
    """
    system: Any = solution.system
    theta = solution.state.theta
    limit = most_rounding(theta)
    if not float(_rounding(system, theta)) >= limit or _stands_still(system, theta, sensors, limit):
        return solution
    failed = eqx.tree_at(lambda s: s.code, solution, jnp.asarray(code_of(FlowStatus.non_finite)))
    if not throw:
        return failed
    raise FlowError(
        "the flow did not end: nu has grown so far that its rounding changes beta by more than "
        f"{limit:.0e}, relatively, and beta still moves (its end is at a log time of about "
        f"{float(solution.log_time[-1]):.6g}). Advice: integrate by gradient_flow.\n{solution}",
        failed,
    )


def _stands_still(system, theta, sensors, limit):
    zeta = system._zeta(theta)
    rho, slope = _rho_and_slope(system.coordinates, zeta)
    seen = np.asarray(system._seen(system.problem.residual(system.coefficients(theta))))
    rho, slope, zeta = (np.asarray(part) for part in (rho, slope, zeta))
    size = float(np.max(np.abs(rho)))
    push = -sensors.T @ seen
    kernel = (sensors * slope) @ sensors.T
    # The step to where the moving coordinates come to rest. Slow directions count as well.
    step = -np.linalg.pinv(kernel, rcond=512 * float(np.finfo(kernel.dtype).eps)) @ seen
    moved = float(np.max(np.abs(slope * (sensors.T @ step))))
    is_stuck = (
        np.abs(slope) * np.linalg.norm(sensors, axis=0) * np.linalg.norm(seen) <= limit * size
    )
    may_grow_again = is_stuck & (zeta * push < 0) & (np.abs(rho) < limit * size)
    pushed = np.abs(push) > limit * np.linalg.norm(sensors, axis=0) * np.linalg.norm(seen)
    return moved <= 10 * limit * size and not np.any(may_grow_again & pushed)


def _set_tolerances(system, sensors, options):
    """Write tolerances for nu into `options` that keep rho accurate to rtol.

    ValueError if nu cannot be accurate enough.
    """
    dtype = system.initial.dtype
    eps = float(jnp.finfo(dtype).eps)
    rtol = (1e-8 if eps < 1e-12 else 1e-5) if options.get("rtol") is None else options["rtol"]
    growth, angle = _sensitivity(system, sensors)
    if 100 * eps * growth > 1e-8:
        factor = (1e10 * eps * growth) ** (1 / (system.depth - 2))
        raise ValueError(
            "network: from so small an initialization a rounding of the dual variable nu changes "
            f"rho by {eps * growth:.0e} (its limit is at the boundary of the mirror map), and at "
            f"most 1e-10 is accepted; take the initial layers {factor:.3g} times as large, or "
            "integrate by gradient_flow."
        )
    options["rtol"] = max(rtol / growth, 64 * eps)
    if options.get("atol") is None:
        largest = np.linalg.norm(sensors, 2)
        options["atol"] = min(options["rtol"] * angle / max(largest, 1e-300), 0.5)


def _sensitivity(system, sensors):
    """(relative change of rho) / (relative change of nu) near the limit, and the size of zeta.

    The size of zeta is taken as 1, which changes rho of two layers by a constant factor. If it is
    smaller, it is the zeta that changes rho by its own size: from a large start, zeta stays small.
    """
    # rho is taken to be as large as that of the minimum-norm solution.
    least = np.linalg.lstsq(sensors, np.asarray(system._seen(system.problem.y)))[0]
    largest = float(np.max(np.abs(least)))
    known = getattr(system.coordinates, "sensitivity", None)
    growth, angle = (1.0, 1.0) if known is None else known(largest)
    zero = np.zeros(sensors.shape[1], system.initial.dtype)
    start, slope = (np.asarray(part) for part in _rho_and_slope(system.coordinates, zero))
    steepest = float(np.max(np.where(np.isfinite(slope), np.abs(slope), 0.0)))
    largest = max(largest, float(np.max(np.abs(start))))
    if steepest > 0 and largest > 0:
        angle = min(angle, largest / steepest)
    return growth, angle if angle > 0 else 1.0

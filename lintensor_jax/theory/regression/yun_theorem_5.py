"""Theorem 5 of Yun, Krishnan & Mobahi 2021: limits between weighted l1 and weighted l2."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Scalar

from ...eager_programs import eager_program
from ...networks import ConvolutionalNetwork, DiagonalNetwork, mirror_map
from ...problems import Regression, named
from .dual_newton import MirrorSolution, minimize
from .power_mirror import PowerMirror

# An initial condition of a theorem holds up to this many roundings of the largest parameter (or
# data entry): the rounding errors of a computed network or of computed data.
_TOLERANCE_ULPS = 256


class InterpolationLimit(eqx.Module):
    """The limit of a regression flow, as `limit_point` and its relatives predict it.

    - `coefficients` (d,): beta = S^T rho at the limit.
    - `rho` (m,): the minimiser of the potential.
    - `dual` (n,): its multipliers nu, the time integral of -r along the flow.
    - `coordinate` (m,): rho in the coordinate z = asinh(q) of `lintensor_jax.potential`.
    - `potential`, `log_potential`: the value of the potential at rho, and its natural logarithm.
    - `residual` (n,): X beta - y.
    - `stationarity`: max_j |slope_j - [S X^T nu]_j| / max_j |slope_j|, the other KKT residual.
    - `boundary_distance`: the smallest 1 - |t_j| / c_L. If it is near rounding (2e-16), nu alone
      does not determine rho; `coordinate` does. 1 for L = 2, where c_L = inf.
    - `num_iterations`, `converged`: of Newton's method, over all continuation steps.
    """

    coefficients: Float[Array, " d"]
    rho: Float[Array, " m"]
    dual: Float[Array, " n"]
    coordinate: Float[Array, " m"]
    potential: Scalar
    log_potential: Scalar
    residual: Float[Array, " n"]
    stationarity: Scalar
    boundary_distance: Scalar
    num_iterations: Int[Array, ""]
    converged: Bool[Array, ""]


def limit_point(
    S: Float[ArrayLike, "m d"] | None,
    X: Float[ArrayLike, "n d"],
    y: Float[ArrayLike, " n"],
    depth: int,
    alpha: ArrayLike,
    eta: Float[ArrayLike, " m"],
) -> InterpolationLimit:
    """The limit of the flow of an orthogonally decomposable network in regression.

    Source: Yun et al. 2021, Theorem 5: from v_l = alpha U_l eta (l < L) and v_L = 0, the linear
    coefficients converge to S^T rho, with rho the minimiser of Q_{L,alpha,eta} subject to
    X S^T rho = y. It is computed by a primal-dual Newton iteration in (z, nu) along decreasing
    alpha: about 30 factorisations at most down to alpha = 1e-50 for generic data.

    **Arguments**

    - `S`: real, shape (m, d), of Assumption 1; None for the identity (diagonal networks).
    - `X`, `y`: shapes (n, d), (n,). Dependent rows are allowed; equations that contradict each
      other are solved in the least-squares sense, as by the flow.
    - `depth`: L >= 2, static. `alpha` > 0: a scalar (`jax.vmap` over several). `eta`: shape (m,),
      no entry zero; signs do not matter.

    Works under `jax.jit` and `jax.vmap`; implicit first derivatives in every array argument,
    forward and reverse. ValueError for wrong shapes and, outside transformations, wrong values.

    For L >= 3 and a very small alpha the slopes of the active coordinates are within rounding of
    c_L (see `boundary_distance`). Then the result is exact for weights of the l1 norm that are off
    by a few roundings. This matters only if the weighted l1 problem is (nearly) not unique.
    """
    X, y, eta = (real(*v) for v in ((X, "X", 2), (y, "y", 1), (eta, "eta", 1)))
    alpha = real(alpha, "alpha", 0)
    S = None if S is None else real(S, "S", 2)
    require_depth(depth)
    wide = (X.shape[1], X.shape[1]) if S is None else S.shape
    if (eta.shape[0], X.shape[1]) != wide or y.shape != X.shape[:1]:
        raise ValueError(
            "S, X, y, eta must have shapes (m, d), (n, d), (n,), (m,), got "
            f"{'the identity' if S is None else S.shape}, {X.shape}, {y.shape}, {eta.shape}; "
            "samples are rows of X."
        )
    require(lambda v: v > 0, "alpha", "> 0", alpha, "pass e.g. 1e-50 for alpha -> 0")
    nonzero = "nonzero in every entry"
    require(lambda v: v != 0, "eta", nonzero, eta, "Theorem 5 needs eta_j^2 >= lambda")
    return _limit_point(S, X, y, int(depth), alpha, eta)


@eager_program(lambda S, X, y, depth, alpha, eta: X.size + (0 if S is None else S.size))
def _limit_point(S, X, y, depth, alpha, eta):
    log_alpha = jnp.log(alpha)
    mirror = PowerMirror(log_alpha, jnp.log(jnp.abs(eta)), depth)
    found = minimize(mirror, X if S is None else X @ S.T, y)
    distance = jnp.ones(())
    if depth > 2:
        largest = jnp.max(jnp.abs(found.z))
        distance = mirror_map.boundary_distance_of_z(largest, depth) / mirror_map.boundary(depth)
    return as_limit(
        found,
        coefficients=found.rho if S is None else S.T @ found.rho,
        X=X,
        y=y,
        dual=found.nu * jnp.exp((2 - depth) * log_alpha),
        potential=mirror_map.Q(found.rho, depth, alpha, eta),
        log_potential=mirror_map.log_Q(found.rho, depth, alpha, eta),
        boundary_distance=distance,
    )


def as_limit(found: MirrorSolution, *, X, y, coefficients, **others) -> InterpolationLimit:
    """An `InterpolationLimit` from the solution of `minimize` and the fields in `others`."""
    return InterpolationLimit(
        coefficients=coefficients,
        rho=found.rho,
        coordinate=found.z,
        residual=X @ coefficients - y,
        stationarity=found.stationarity,
        num_iterations=found.num_iterations,
        converged=found.converged,
        **others,
    )


def commuting_sensing_limit(
    eigenvalues: Float[ArrayLike, "n d"], y: Float[ArrayLike, " n"], depth: int, alpha: ArrayLike
) -> InterpolationLimit:
    """The limit of deep matrix sensing with commuting symmetric sensors, W_l(0) = alpha I, W_L = 0.

    Source: Yun et al. 2021, Corollary 7 (proof: F.5). `coefficients` are the eigenvalues of the
    product W_1 ... W_L in the sensors' common eigenbasis.

    **Arguments**

    - `eigenvalues`: shape (n, d): row i holds A_i's eigenvalues. All rows are in the order of *one*
      common eigenbasis, not sorted row by row.
    - `y`, `depth`, `alpha`: as in `limit_point`.
    """
    eigenvalues = real(eigenvalues, "eigenvalues", 2)
    return limit_point(None, eigenvalues, y, depth, alpha, jnp.ones(eigenvalues.shape[1]))


def small_scale_weights(depth: int, eta: Float[ArrayLike, " m"]) -> Float[Array, " m"]:
    """The w of lim Q ~ sum_j w_j |rho_j| as alpha -> 0: |eta_j|^(2-L), for `L1Norm(w)`.

    Source: Yun et al. 2021, Remark 4. The norm is of rho = S^-T beta. The distance from the limit
    is O(alpha^L) for L >= 3. For L = 2, where w = 1, it is O(alpha^(2 (1 - u))), with u < 1 the
    largest |dual slope| of a coordinate that vanishes (if the l1 solution is unique).
    """
    return jnp.abs(jnp.asarray(eta)) ** (2.0 - depth)


def large_scale_weights(depth: int, eta: Float[ArrayLike, " m"]) -> Float[Array, " m"]:
    """The w of lim Q ~ sum_j (w_j rho_j)^2 as alpha -> inf: |eta_j|^(1-L), for `WeightedL2Norm(w)`.

    Source: Yun et al. 2021, Remark 4. The norm is of rho = S^-T beta. The distance from the limit
    is O(alpha^(-2L)).
    """
    return jnp.abs(jnp.asarray(eta)) ** (1.0 - depth)


@dataclasses.dataclass(frozen=True)
class InitialCondition:
    """How far parameters are from v_l = alpha U_l eta (l < L), v_L = 0, as plain numbers.

    All are relative to the largest entry of the parameters (or of the data).

    - `layer_difference`: max |v_l - v_1| over l < L. `last_layer`: max |v_L|.
    - `smallest_eta`: min_j |eta_j| / max_j |eta_j|; Theorem 5 needs it positive.
    - `odd_parameters`, `odd_data`: the largest odd part, max |x_j - x_{d-j}| / 2; 0 for networks
      that the theorem does not require to be even.
    - `tolerance`: values up to this one count as zero.
    """

    layer_difference: float
    last_layer: float
    smallest_eta: float
    odd_parameters: float
    odd_data: float
    tolerance: float

    @property
    def violations(self) -> tuple[str, ...]:
        """One sentence for each assumption that does not hold; empty if all hold."""
        rules = (
            ("the first L-1 layers must be equal", self.layer_difference, "largest difference"),
            ("the last layer must be zero", self.last_layer, "largest entry"),
            ("the layers must be even", self.odd_parameters, "largest odd part"),
            ("the data must be even", self.odd_data, "largest odd part"),
        )
        broken = [
            f"{rule}, but its {what} is {value:.6g} of the largest entry"
            for rule, value, what in rules
            if not value <= self.tolerance
        ]
        if not self.smallest_eta > self.tolerance:
            broken.append(
                "no component eta_j of the initial direction may vanish, but the smallest is "
                f"{self.smallest_eta:.6g} of the largest"
            )
        return tuple(broken)


def diagonal_condition(network: DiagonalNetwork) -> InitialCondition:
    """How far a diagonal network is from the start of Corollary 5 (Yun et al. 2021)."""
    return _condition(np.asarray(network.weights), np.asarray(network.weights[0]), 0.0, 0.0)


def even_convolution_condition(
    network: ConvolutionalNetwork, problem: Regression
) -> InitialCondition:
    """How far a convolutional network and its data are from Corollary 6 (Yun et al. 2021).

    ValueError if a filter is shorter than d.
    """
    if not network.is_full_length:
        raise ValueError(
            "network: Corollary 6 (Yun et al. 2021) is about filters of full length d = "
            f"{network.dimension}, got lengths {[w.shape[0] for w in network.filters]}; simulate."
        )
    filters = np.stack([np.asarray(w) for w in network.filters])
    eta = np.asarray(_even_basis(network.dimension)).T @ np.fft.fft(filters[0], norm="ortho").real
    return _condition(filters, eta, _odd_part(filters), _odd_part(np.asarray(problem.X)))


def diagonal_limit(network: DiagonalNetwork, problem: Regression) -> InterpolationLimit:
    """The limit of gradient flow from a diagonal network: Yun et al. 2021, Corollary 5.

    alpha wbar is the network's first layer. ValueError naming the assumption and its measured value
    if the first L-1 layers are not equal, the last is not zero, or a weight vanishes: these are
    `diagonal_condition(network)`. For any start of two layers see `two_layer_limit`.
    """
    require_network("Corollary 5", network, DiagonalNetwork, problem)
    _require_condition("Corollary 5", diagonal_condition(network))
    return limit_point(None, problem.X, problem.y, network.depth, *_split(network.weights[0]))


def even_convolution_limit(
    network: ConvolutionalNetwork, problem: Regression
) -> InterpolationLimit:
    """The limit of gradient flow from an even full-length convolutional network on even data.

    Source: Yun et al. 2021, Corollary 6 (erratum: the objective is Q(d^((1-L)/2) F z), not Q(F z)).
    On even vectors the network is orthogonally decomposable with real matrices: in an orthonormal
    basis B (d, m) of them, m = d // 2 + 1, U_l = B (B^T F B) and S = diag(d^((L-1)/2) c^((1-L)/2))
    (B^T F B) B^T, with c_k the number of frequencies (1 or 2) that share entry k. `rho` and `eta` =
    B^T F wbar refer to that basis.

    ValueError naming the assumption and its measured value if a filter is short or odd, the data
    are odd, or the start is not Corollary 6's: these are `even_convolution_condition`.
    """
    require_network("Corollary 6", network, ConvolutionalNetwork, problem)
    _require_condition("Corollary 6", even_convolution_condition(network, problem))
    S, eta = even_decomposition(network.filters[0], network.depth)
    return limit_point(S, problem.X, problem.y, network.depth, *_split(eta))


def even_decomposition(
    w: Float[Array, " d"], depth: int
) -> tuple[Float[Array, "m d"], Float[Array, " m"]]:
    """(S, eta) of `even_convolution_limit` for an even filter w, m = d // 2 + 1."""
    d = w.shape[0]
    basis = _even_basis(d)
    transform = jnp.fft.fft(basis, axis=0, norm="ortho").real
    shared = jnp.asarray([1.0 if 2 * k % d == 0 else 2.0 for k in range(basis.shape[1])])
    weights = (d / shared) ** ((depth - 1) / 2)
    return weights[:, None] * (basis.T @ transform @ basis.T), basis.T @ (transform @ (basis.T @ w))


def _even_basis(d):
    k = np.arange(d // 2 + 1)
    basis = np.zeros((d, k.size))
    basis[k, k] = 1
    basis[-k, k] = 1
    return jnp.asarray(basis / np.linalg.norm(basis, axis=0))


def _odd_part(rows):
    mirrored = rows[:, -np.arange(rows.shape[1])]
    return _relative(np.max(np.abs(rows - mirrored)) / 2, rows)


def _relative(value, array):
    largest = np.max(np.abs(array))
    return float(value / largest) if largest > 0 else 0.0


def _condition(layers, eta, odd_parameters, odd_data):
    first, last = layers[:-1], layers[-1]
    return InitialCondition(
        layer_difference=_relative(np.max(np.abs(first - first[0])), layers),
        last_layer=_relative(np.max(np.abs(last)), layers),
        smallest_eta=_relative(np.min(np.abs(eta)), eta),
        odd_parameters=odd_parameters,
        odd_data=odd_data,
        tolerance=_TOLERANCE_ULPS * float(np.finfo(layers.dtype).eps),
    )


def _split(start):
    # alpha is the largest modulus, so that eta is of order one and its powers do not overflow.
    alpha = jnp.max(jnp.abs(start))
    return alpha, start / alpha


def require_network(theorem: str, network: Any, kind: type, problem: Any) -> None:
    """Raise ValueError unless `network` is a `kind` and `problem` a Regression that fits it."""
    is_regression = isinstance(problem, Regression) and problem.y.ndim == 1
    fits = is_regression and problem.residual_loss.is_convex_with_minimum_at_zero
    if not isinstance(network, kind) or not fits:
        raise ValueError(
            f"network, problem: {theorem} (Yun et al. 2021) is about a {kind.__name__} and a "
            "Regression with y of shape (n,) and a convex loss with its only minimum at zero, got "
            f"{type(network).__name__} and {named(problem)}."
        )
    if network.factors[-1].shape != problem.coefficient_shape:
        raise ValueError(
            f"network, problem: the input dimensions must agree, got {network.factors[-1].shape} "
            f"and X of shape {problem.X.shape}; change one of the two."
        )


def _require_condition(theorem, condition: InitialCondition):
    if condition.violations:
        raise ValueError(
            f"network, problem: outside {theorem} (Yun et al. 2021): "
            f"{'; '.join(condition.violations)}. Simulate with lintensor_jax.gradient_flow."
        )


def real(value: Any, name: str, ndim: int) -> Array:
    """`value` as a real floating array of `ndim` axes, or a ValueError that names it."""
    array = jnp.asarray(value)
    if jnp.issubdtype(array.dtype, jnp.complexfloating) or array.ndim != ndim or 0 in array.shape:
        raise ValueError(
            f"{name} must be real with {ndim} axes, got dtype {array.dtype} and shape {array.shape}"
            "; Theorem 5 needs real S (on even data take even_convolution_limit)."
        )
    array = array.astype(jnp.result_type(array.dtype, float))
    require(np.isfinite, name, "finite", array, "check the values it was built from")
    return array


def require(holds: Callable, name: str, rule: str, value: Any, fix: str) -> None:
    """Raise ValueError unless `holds` is true of all entries; traced values are not checked."""
    if isinstance(value, Tracer):
        return
    numbers = np.asarray(value)  # by NumPy, since JAX would compile a program for every operation
    if not np.all(holds(numbers)):
        raise ValueError(f"{name} must be {rule}, got {numbers}; {fix}.")


def require_depth(depth: Any) -> None:
    """Raise ValueError unless `depth` is an integer >= 2."""
    if not isinstance(depth, int | np.integer) or isinstance(depth, bool) or depth < 2:
        raise ValueError(
            f"depth must be a Python int >= 2 (the number of layers), got {depth!r}; under jax.jit "
            "mark it as static."
        )

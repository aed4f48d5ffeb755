"""Mirror flow: orthogonally decomposable networks, integrated in n instead of p dimensions.

With Assumption 1 the flow of every coordinate of eta_l = U_l^T v_l depends on the data only
through zeta = S X^T nu, nu = -int r dt, and has a closed form in it. So d nu/dt = -r(nu) is the
whole flow (Yun, Krishnan & Mobahi 2021, proofs of Theorems 5 and 6), and every coordinate keeps
its relative accuracy however small it becomes.
"""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Scalar

from ..networks import (
    AbstractNetwork,
    ConvolutionalNetwork,
    DifferentialDiagonalNetwork,
    MatrixFactorizationNetwork,
    mirror_map,
)
from ..networks.decomposition import AssumptionFails, OrthogonalDecomposition, decomposition_of
from ..networks.factorization import sensing_decomposition
from ..problems import AbstractProblem, AbstractSquaredProblem, MatrixSensing
from .finish import GaussNewton
from .options import check_pair, fill_options, same_dtype
from .solution import FlowSolution, run

# Initial layers count as equal, zero, positive or even up to this, relative to the largest entry.
_SLACK = 1e-12


class AbstractCoordinates(eqx.Module):
    """The flow of a network in closed form, as a function of zeta = S X^T nu, shape (m,)."""

    S: eqx.AbstractVar[Float[Array, "m q"]]  # q: the size of beta, raveled

    @abc.abstractmethod
    def rho(self, zeta: Float[Array, " m"]) -> Float[Array, " m"]:
        """beta = S^T rho."""

    @abc.abstractmethod
    def network(self, zeta: Float[Array, " m"]) -> Any:
        """The network's parameters."""


class TwoLayerCoordinates(AbstractCoordinates):
    """L = 2, any initialization: eta_1, eta_2 turn hyperbolically by the angle zeta.

    Source: Yun et al. 2021, eq. (75).
    """

    S: Float[Array, "m q"]
    first: Float[Array, " m"]
    second: Float[Array, " m"]
    rebuild: Any

    def rho(self, zeta: Float[Array, " m"]) -> Float[Array, " m"]:
        """a b cosh(2 zeta) + (a^2 + b^2)/2 sinh(2 zeta)."""
        a, b = self.first, self.second
        # Two forms, each without cancellation or overflow where it is used: the second one never
        # squares what may be 1e-200.
        near = jnp.abs(zeta) < 1
        small = jnp.where(near, zeta, 0.0)
        direct = a * b * jnp.cosh(2 * small) + 0.5 * (a**2 + b**2) * jnp.sinh(2 * small)
        growing = _scaled_exp(2 * _log_abs(a + b), 2 * zeta, near)
        shrinking = _scaled_exp(2 * _log_abs(a - b), -2 * zeta, near)
        return jnp.where(near, direct, 0.25 * (growing - shrinking))

    def network(self, zeta: Float[Array, " m"]) -> Any:
        """a cosh zeta + b sinh zeta, and a sinh zeta + b cosh zeta."""
        near = jnp.abs(zeta) < 1
        small = jnp.where(near, zeta, 0.0)
        cosh, sinh = jnp.cosh(small), jnp.sinh(small)
        a, b = self.first, self.second
        growing = jnp.sign(a + b) * _scaled_exp(_log_abs(a + b), zeta, near)
        shrinking = jnp.sign(a - b) * _scaled_exp(_log_abs(a - b), -zeta, near)
        return self.rebuild(
            (
                jnp.where(near, a * cosh + b * sinh, 0.5 * (growing + shrinking)),
                jnp.where(near, a * sinh + b * cosh, 0.5 * (growing - shrinking)),
            )
        )


class DeepCoordinates(AbstractCoordinates):
    """Any L: first L - 1 layers equal, last layer zero.

    rho = |w|^L h_L(|w|^(L-2) zeta); Source: Yun et al. 2021, Theorem 5 (Lemma 4 for h_L).
    """

    S: Float[Array, "m q"]
    first: Float[Array, " m"]
    rebuild: Any
    depth: int = eqx.field(static=True)

    def rho(self, zeta: Float[Array, " m"]) -> Float[Array, " m"]:
        """|w|^L h_L(|w|^(L-2) zeta); infinite from the boundary of the mirror map on."""
        size = jnp.abs(self.first)
        return size**self.depth * mirror_map.h(size ** (self.depth - 2) * zeta, self.depth)

    def network(self, zeta: Float[Array, " m"]) -> Any:
        """w p(t) for the first layers and sign(w)^(L-1) |w| q(t) for the last."""
        size = jnp.abs(self.first)
        z = mirror_map.z_of_x(mirror_map.h(size ** (self.depth - 2) * zeta, self.depth), self.depth)
        sign = jnp.sign(self.first) ** (self.depth - 1)
        hidden = self.first * jnp.cosh(z)
        return self.rebuild((hidden,) * (self.depth - 1) + (sign * size * jnp.sinh(z),))


class DifferentialCoordinates(AbstractCoordinates):
    """w_+^D - w_-^D from positive entries: w_+ obeys dw/dzeta = D w^(D-1), w_- the opposite.

    Source: Woodworth et al. 2020.
    """

    S: Float[Array, "m q"]
    positive: Float[Array, " m"]
    negative: Float[Array, " m"]
    depth: int = eqx.field(static=True)

    def _grown(self, start, zeta):
        if self.depth == 2:
            return start * jnp.exp(2 * zeta)
        power = self.depth - 2
        # Infinite from the blow-up on: the solver then takes back its step.
        base = 1 - self.depth * power * start**power * zeta
        safe = jnp.where(base > 0, base, 1.0)
        return jnp.where(base > 0, start * safe ** (-1 / power), jnp.inf)

    def rho(self, zeta: Float[Array, " m"]) -> Float[Array, " m"]:
        """w_+^D - w_-^D."""
        plus, minus = self._grown(self.positive, zeta), self._grown(self.negative, -zeta)
        return plus**self.depth - minus**self.depth

    def network(self, zeta: Float[Array, " m"]) -> Any:
        """(w_+, w_-)."""
        return DifferentialDiagonalNetwork(
            self._grown(self.positive, zeta), self._grown(self.negative, -zeta), self.depth
        )


class _FromFactors(eqx.Module):
    """Parameters of a network from eta_l = U_l^T v_l."""

    template: Any
    bases: tuple[Array, ...]
    rests: tuple[Array, ...]  # what lies outside the range of U_l, and never moves

    def __call__(self, etas):
        moved = zip(self.bases, etas, self.rests, strict=True)
        factors = tuple(u @ eta + rest for u, eta, rest in moved)
        return self.template.with_factors(factors)


class _FromEigenvalues(eqx.Module):
    """Weight matrices from their eigenvalues in one basis."""

    template: MatrixFactorizationNetwork
    basis: Float[Array, "d d"]

    def __call__(self, etas):
        weights = tuple((self.basis * eta[None, :]) @ self.basis.T for eta in etas)
        return eqx.tree_at(lambda n: n.weights, self.template, weights)


class DualSystem(eqx.Module):
    """A `System` whose parameter vector is nu: the same flow in n dimensions."""

    coordinates: AbstractCoordinates
    problem: AbstractSquaredProblem
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
        """d nu/dt = -r."""
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


def _log_abs(value):
    return jnp.where(value != 0, jnp.log(jnp.abs(jnp.where(value != 0, value, 1.0))), -jnp.inf)


def _scaled_exp(log_size, exponent, unused):
    """exp(log_size + exponent); zero where `unused`, so that nothing overflows there."""
    return jnp.exp(jnp.where(unused, -jnp.inf, log_size + exponent))


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
    * differential diagonal networks with positive entries (Woodworth et al. 2020).

    **Arguments**: those of `gradient_flow`, for squared losses with y of shape (n,). `finish` is
    Newton's method in nu, which leads exactly to the flow's limit.

    **Raises** `AssumptionFails` (a ValueError) with the property that fails and its measured value;
    ValueError where nu cannot hold the answer: for L >= 3 a relative error eps in nu becomes one of
    about eps / alpha^(L-2) in rho (initial scale alpha), and more than 1e-10 is refused, so that
    rho keeps 1e-8: alpha >= 2e-6 for L = 3, 1.5e-3 for L = 4 in float64.

    Source: Yun et al. 2021, Theorem 5 and its proof (appendix F); for the differential network
    Woodworth et al. 2020.
    """
    check_pair(network, problem)
    if not isinstance(problem, AbstractSquaredProblem) or problem.y.ndim != 1:
        raise ValueError(
            "problem: mirror_flow needs a squared loss with one target per sample, got "
            f"{type(problem).__name__} with y of shape {problem.y.shape}; use gradient_flow."  # pyright: ignore
        )
    leaves = jax.tree.leaves((network, problem))
    if any(isinstance(leaf, Tracer) for leaf in leaves):
        raise ValueError(
            "network: mirror_flow checks its initialization and is not for jax.jit or jax.vmap; "
            "loop over it, or use gradient_flow."
        )
    network, problem = same_dtype(network, problem)
    coordinates = _coordinates(network, problem)
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
    coordinates = system.coordinates
    if not isinstance(coordinates, DeepCoordinates):
        return 1.0, 1.0
    # Near the boundary c - t is about (|w|^L / rho)^((L-2)/L); rho is as large as the min-norm one.
    rho = np.linalg.lstsq(sensors, np.asarray(system.problem.y))[0]
    size = float(jnp.min(jnp.abs(coordinates.first)))
    power = coordinates.depth - 2
    growth = (np.max(np.abs(rho)) / size**coordinates.depth) ** (power / coordinates.depth)
    return max(float(growth), 1.0), min(1.0, float(growth)) / size**power


def _coordinates(network, problem) -> AbstractCoordinates:
    if isinstance(network, DifferentialDiagonalNetwork):
        return _differential(network)
    if isinstance(network, MatrixFactorizationNetwork):
        return _sensing(network, problem)
    if isinstance(network, ConvolutionalNetwork) and network.is_full_length:
        decomposition = _even_decomposition(network, problem)
    else:
        if not isinstance(network, AbstractNetwork):
            raise ValueError(
                f"network: {type(network).__name__} is not one of this package's networks, whose "
                "flow is known in closed form; use gradient_flow."
            )
        decomposition = decomposition_of(network)
        if not decomposition.is_real:
            raise AssumptionFails(
                "real S and U_l",
                float(jnp.max(jnp.abs(decomposition.S.imag))),
                "The largest imaginary part in S; the mirror flow needs a real decomposition.",
            )
    factors = network.factors  # pyright: ignore[reportAttributeAccessIssue]
    etas = tuple(u.T @ v for u, v in zip(decomposition.bases, factors, strict=True))
    zipped = zip(decomposition.bases, factors, etas, strict=True)
    rests = tuple(v - u @ e for u, v, e in zipped)
    rebuild = _FromFactors(network, decomposition.bases, rests)
    return _of_layers(decomposition.S, etas, rebuild)


def _of_layers(S, etas, rebuild):
    if len(etas) == 2:
        return TwoLayerCoordinates(S, etas[0], etas[1], rebuild)
    scale = max(float(jnp.max(jnp.abs(e))) for e in etas)
    spread = max(float(jnp.max(jnp.abs(e - etas[0]))) for e in etas[:-1])
    last = float(jnp.max(jnp.abs(etas[-1])))
    if spread > _SLACK * scale or last > _SLACK * scale:
        raise AssumptionFails(
            "equal first layers U_l^T v_l and a zero last one",
            max(spread, last) / scale,
            "The largest violation over the largest entry; for three and more layers the dual flow "
            "is known from such initializations only. Use gradient_flow.",
        )
    if float(jnp.min(jnp.abs(etas[0]))) == 0:
        raise AssumptionFails(
            "nonzero entries of U_l^T v_l",
            0.0,
            "A coordinate that is zero in two layers never moves; remove it, or use gradient_flow.",
        )
    return DeepCoordinates(S, etas[0], rebuild, len(etas))


def _even_decomposition(network, problem):
    """Corollary 6 in an orthonormal basis of the even vectors: real, and diagonal there."""
    dimension = network.dimension
    reflected = (-np.arange(dimension)) % dimension
    X = np.asarray(problem.X)
    oddness = {"X": np.max(np.abs(X - X[:, reflected])) / max(np.max(np.abs(X)), 1e-300)}
    size = max(float(jnp.max(jnp.abs(w))) for w in network.filters)
    for layer, w in enumerate(network.filters):
        oddness[f"filters[{layer}]"] = float(jnp.max(jnp.abs(w - w[reflected]))) / max(size, 1e-300)
    name = max(oddness, key=lambda key: oddness[key])
    if oddness[name] > _SLACK:
        raise AssumptionFails(
            f"evenness x_j = x_(d-j) of {name}",
            float(oddness[name]),
            "The odd part over the largest entry; a convolution has a real decomposition on even "
            "vectors only (Corollary 6). Use gradient_flow.",
        )
    frequencies = np.arange(dimension // 2 + 1)
    angles = 2 * np.pi * np.outer(np.arange(dimension), frequencies) / dimension
    basis = np.cos(angles)
    basis /= np.linalg.norm(basis, axis=0)
    # A basis vector c_k has DFT sum_j c_k[j] cos(...) = 1/(its largest entry) at frequency k.
    gains = 1 / basis[0]
    dtype = network.filters[0].dtype
    E = jnp.asarray(basis, dtype)
    S = jnp.asarray(gains ** (network.depth - 1), dtype)[:, None] * E.T
    return OrthogonalDecomposition(S, (E,) * network.depth)


def _differential(network):
    smallest = float(jnp.minimum(jnp.min(network.positive), jnp.min(network.negative)))
    if smallest <= 0:
        raise AssumptionFails(
            "positive entries of w_+ and w_-",
            smallest,
            "The smallest entry; the closed form is for positive entries. Use gradient_flow.",
        )
    identity = jnp.eye(network.positive.size, dtype=network.positive.dtype)
    return DifferentialCoordinates(identity, network.positive, network.negative, network.depth)


def _sensing(network, problem):
    if not isinstance(problem, MatrixSensing):
        raise ValueError(
            "problem: a matrix factorization network needs MatrixSensing, got "
            f"{type(problem).__name__}."
        )
    basis = sensing_decomposition(problem).basis
    rotated = [basis.T @ w @ basis for w in network.weights]
    size = max(float(jnp.max(jnp.abs(w))) for w in rotated)
    mixing = max(float(jnp.max(jnp.abs(w - jnp.diag(jnp.diag(w))))) for w in rotated)
    if mixing > _SLACK * 100 * max(size, 1e-300):
        raise AssumptionFails(
            "layers diagonal in the sensors' common eigenbasis",
            mixing / size,
            "The largest off-diagonal entry over the largest entry; take multiples of the identity "
            "(Corollary 7), or use gradient_flow.",
        )
    rows = jnp.stack([jnp.outer(u, u).ravel() for u in basis.T])
    return _of_layers(rows, tuple(jnp.diag(w) for w in rotated), _FromEigenvalues(network, basis))

"""Coordinates of orthogonally decomposable networks: their flow in closed form.

With Assumption 1 the flow of every coordinate of eta_l = U_l^T v_l depends on the data only
through zeta = S X^T nu, nu = -int r dt (Yun, Krishnan & Mobahi 2021, proofs of Theorems 5 and 6).
"""

import abc
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ...networks import (
    AbstractNetwork,
    ConvolutionalNetwork,
    DifferentialDiagonalNetwork,
    MatrixFactorizationNetwork,
    mirror_map,
)
from ...networks.decomposition import AssumptionFails, OrthogonalDecomposition, decomposition_of
from ...networks.factorization import sensing_decomposition
from ...problems import MatrixSensing

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


def _log_abs(value):
    return jnp.where(value != 0, jnp.log(jnp.abs(jnp.where(value != 0, value, 1.0))), -jnp.inf)


def _scaled_exp(log_size, exponent, unused):
    """exp(log_size + exponent); zero where `unused`, so that nothing overflows there."""
    return jnp.exp(jnp.where(unused, -jnp.inf, log_size + exponent))


def coordinates_of(network: Any, problem: Any) -> AbstractCoordinates:
    if isinstance(network, DifferentialDiagonalNetwork):
        return _differential(network)
    if isinstance(network, MatrixFactorizationNetwork):
        return _sensing(network, problem)
    if isinstance(network, ConvolutionalNetwork) and network.is_full_length:
        decomposition = _even_decomposition(network, problem)
    else:
        decomposition = real_decomposition(network)
    factors = network.factors  # pyright: ignore[reportAttributeAccessIssue]
    etas = tuple(u.T @ v for u, v in zip(decomposition.bases, factors, strict=True))
    zipped = zip(decomposition.bases, factors, etas, strict=True)
    rests = tuple(v - u @ e for u, v, e in zipped)
    rebuild = _FromFactors(network, decomposition.bases, rests)
    return _of_layers(decomposition.S, etas, rebuild)


def real_decomposition(network: Any) -> OrthogonalDecomposition:
    """Real S and U_l: the network's own where they are real, else those that can be found."""
    if not isinstance(network, AbstractNetwork) or not hasattr(network, "with_factors"):
        raise ValueError(
            f"network: {type(network).__name__} is not one of this package's networks whose flow "
            "is known in closed form; use gradient_flow."
        )
    decomposition = network.orthogonal_decomposition()  # pyright: ignore
    if not decomposition.is_real:
        decomposition = decomposition_of(network)
    if not decomposition.is_real:
        raise AssumptionFails(
            "real S and U_l",
            float(jnp.max(jnp.abs(decomposition.S.imag))),
            "The largest imaginary part in S; the mirror flow needs a real decomposition.",
        )
    return decomposition


def _of_layers(S, etas, rebuild):
    # In two layers one nonzero entry is enough; in more, the last one starts from zero anyway.
    moving = etas[0] if len(etas) > 2 else jnp.maximum(*map(jnp.abs, etas))
    if float(jnp.min(jnp.abs(moving))) == 0:
        raise AssumptionFails(
            "nonzero entries of U_l^T v_l",
            0.0,
            "A coordinate that is zero in two layers never moves; remove it, or use gradient_flow.",
        )
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

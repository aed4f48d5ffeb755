"""Mirror coordinates: the flow of a network in closed form, as a function of one vector zeta.

Under Assumption 1 the flow of every coordinate of eta_l = U_l^T v_l depends on the data only
through zeta = S X^T nu with nu = -int r dt (Yun, Krishnan & Mobahi 2021, proofs of Theorems 5
and 6).
"""

import abc
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..eager_programs import eager_program
from . import mirror_map
from .decomposition import AssumptionFails, OrthogonalDecomposition

# Conditions on initial layers (equal, zero, even, diagonal) may fail by this much, relative to the
# largest entry, because of rounding.
SLACK = 1e-12


class AbstractMirrorCoordinates(eqx.Module):
    """The flow of a network in closed form, as a function of zeta = S X^T nu, shape (m,)."""

    S: eqx.AbstractVar[Float[Array, "m q"]]  # q: the size of beta, raveled

    @abc.abstractmethod
    def rho(self, zeta: Float[Array, " m"]) -> Float[Array, " m"]:
        """beta = S^T rho."""

    @abc.abstractmethod
    def network(self, zeta: Float[Array, " m"]) -> Any:
        """The network's parameters."""


class TwoLayerCoordinates(AbstractMirrorCoordinates):
    """L = 2, any initialization: (eta_1, eta_2) undergo a hyperbolic rotation by the angle zeta.

    Source: Yun et al. 2021, eq. (75).
    """

    S: Float[Array, "m q"]
    first: Float[Array, " m"]
    second: Float[Array, " m"]
    rebuild: Any

    def rho(self, zeta: Float[Array, " m"]) -> Float[Array, " m"]:
        """a b cosh(2 zeta) + (a^2 + b^2)/2 sinh(2 zeta)."""
        a, b = self.first, self.second
        # Two forms, each without cancellation or overflow where it is used. The second form never
        # squares a or b, which may be as small as 1e-200.
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


class DeepCoordinates(AbstractMirrorCoordinates):
    """Any L: first L - 1 layers equal, last layer zero.

    rho = |w|^L h_L(|w|^(L-2) zeta); Source: Yun et al. 2021, Theorem 5 (Lemma 4 for h_L).
    """

    S: Float[Array, "m q"]
    first: Float[Array, " m"]
    rebuild: Any
    depth: int = eqx.field(static=True)

    def rho(self, zeta: Float[Array, " m"]) -> Float[Array, " m"]:
        """|w|^L h_L(|w|^(L-2) zeta); infinite at and beyond the boundary of the mirror map."""
        size = jnp.abs(self.first)
        return size**self.depth * mirror_map.h(size ** (self.depth - 2) * zeta, self.depth)

    def network(self, zeta: Float[Array, " m"]) -> Any:
        """w p(t) for the first layers and sign(w)^(L-1) |w| q(t) for the last; p, q of Lemma 4."""
        size = jnp.abs(self.first)
        z = mirror_map.z_of_x(mirror_map.h(size ** (self.depth - 2) * zeta, self.depth), self.depth)
        sign = jnp.sign(self.first) ** (self.depth - 1)
        hidden = self.first * jnp.cosh(z)
        return self.rebuild((hidden,) * (self.depth - 1) + (sign * size * jnp.sinh(z),))

    def sensitivity(self, largest: float) -> tuple[float, float]:
        """(factor by which relative errors of nu grow in rho, size of zeta), for `mirror_flow`.

        The factor is large near the boundary c of the mirror map. There c - t is about
        (|w|^L / rho)^((L-2)/L). `largest` is the largest entry of rho.
        """
        size = float(np.min(np.abs(self.first)))
        power = self.depth - 2
        growth = float((largest / size**self.depth) ** (power / self.depth))
        return max(growth, 1.0), min(1.0, growth) / size**power


class _FromFactors(eqx.Module):
    """Parameters of a network from eta_l = U_l^T v_l."""

    template: Any
    bases: tuple[Array, ...]
    rests: tuple[Array, ...]  # what lies outside the range of U_l, and never moves

    def __call__(self, etas):
        moved = zip(self.bases, etas, self.rests, strict=True)
        factors = tuple(u @ eta + rest for u, eta, rest in moved)
        return self.template.with_factors(factors)


def coordinates_of_factors(
    network: Any, decomposition: OrthogonalDecomposition
) -> AbstractMirrorCoordinates:
    """The mirror coordinates of a network with `factors` and `with_factors`.

    `decomposition` must be real.
    """
    etas, rests = _in_range_and_outside(decomposition.bases, network.factors)
    rebuild = _FromFactors(network, decomposition.bases, rests)
    return coordinates_of_layers(decomposition.S, etas, rebuild)


@eager_program()
def _in_range_and_outside(bases, factors):
    """The eta_l = U_l^T v_l, and the parts of the v_l outside of the range of U_l."""
    etas = tuple(u.T @ v for u, v in zip(bases, factors, strict=True))
    zipped = zip(bases, factors, etas, strict=True)
    return etas, tuple(v - u @ e for u, v, e in zipped)


def coordinates_of_layers(S, etas, rebuild) -> AbstractMirrorCoordinates:
    """The mirror coordinates of `rebuild(etas)`, whose layers are etas = (U_l^T v_l).

    AssumptionFails for a coordinate that never moves, and, with three or more layers, for a start
    from which the flow is not known in closed form.
    """
    # With two layers one nonzero entry is enough. With more, the last layer starts from zero, and
    # the first layers must be nonzero.
    sizes = [np.abs(eta) for eta in etas]
    moving = sizes[0] if len(etas) > 2 else np.maximum(*sizes)
    if float(np.min(moving)) == 0:
        raise AssumptionFails(
            "nonzero entries of U_l^T v_l",
            0.0,
            "A coordinate that is zero in two layers never moves; remove it, or use gradient_flow.",
        )
    if len(etas) == 2:
        return TwoLayerCoordinates(S, etas[0], etas[1], rebuild)
    scale = max(float(np.max(size)) for size in sizes)
    spread = max(float(np.max(np.abs(np.subtract(e, etas[0])))) for e in etas[:-1])
    last = float(np.max(sizes[-1]))
    if spread > SLACK * scale or last > SLACK * scale:
        raise AssumptionFails(
            "equal first layers U_l^T v_l and a zero last one",
            max(spread, last) / scale,
            "The largest violation over the largest entry; for three and more layers the dual flow "
            "is known from such initializations only. Use gradient_flow.",
        )
    return DeepCoordinates(S, etas[0], rebuild, len(etas))


def _log_abs(value):
    return jnp.where(value != 0, jnp.log(jnp.abs(jnp.where(value != 0, value, 1.0))), -jnp.inf)


def _scaled_exp(log_size, exponent, unused):
    """exp(log_size + exponent); zero where `unused`, so that nothing overflows there."""
    return jnp.exp(jnp.where(unused, -jnp.inf, log_size + exponent))

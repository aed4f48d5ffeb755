"""Two-layer networks in scalar coordinates, and the effective start of a run.

A two-layer network with a real orthogonal decomposition has coefficients beta = S^T (u . v), with .
elementwise. In a = (u + v)/sqrt 2 and b = (u - v)/sqrt 2 the product is (a^2 - b^2)/2, or

    u . v = mu sinh(angle)   with   mu = |a b| = |u^2 - v^2|/2,   angle = ln|a/b|.

Gradient flow keeps mu and moves the angle in the span of the data. Its limit is the Bregman
projection of u . v with scale mu. Steps of finite length, noise and momentum also change mu and the
angle; the changes are summed along the run. The run then ends where gradient flow from an
*effective start* would end. The effective start has the scale at the end of the run. Its angle is
the angle at the start plus the changes outside of the span of the data.
"""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Scalar

from .closed_forms import closed_form
from .decomposition import AssumptionFails


class TwoLayers(eqx.Module):
    """beta = S^T (first . second), and how gradient flow moves both layers.

    For the gradient g with respect to beta, d first/dt = -gain (S g) . second; the second layer
    obeys the same equation with the layers exchanged.

    - `S`: real, shape (m, d), or None for the identity. Coefficients of another shape are raveled.
    - `first`, `second`: shape (m,).
    - `gain`: 1 if the layers themselves are the parameters.
    """

    S: Float[Array, "m d"] | None
    first: Float[Array, " m"]
    second: Float[Array, " m"]
    gain: float = eqx.field(static=True, default=1.0)

    def layer_gradient(self, gradient: Float[Array, "..."]) -> Float[Array, " m"]:
        """gain S g, shape (m,)."""
        flat = jnp.ravel(gradient)
        return self.gain * (flat if self.S is None else self.S @ flat)

    @property
    def log_scale(self) -> Float[Array, " m"]:
        """log mu; -inf where |u| = |v|."""
        plus, minus = self.first + self.second, self.first - self.second
        return jnp.log(jnp.abs(plus)) + jnp.log(jnp.abs(minus)) - math.log(2)

    @property
    def angle(self) -> Float[Array, " m"]:
        """ln|(u + v)/(u - v)|, so that u v = mu sinh(angle)."""
        plus, minus = self.first + self.second, self.first - self.second
        return jnp.log(jnp.abs(plus)) - jnp.log(jnp.abs(minus))


def two_layers_of(network: Any) -> TwoLayers | None:
    """The network as `TwoLayers`; None if the depth is not 2 or there is no real decomposition.

    Uses the method `two_layers()` of the network. Without it, uses `orthogonal_decomposition()` and
    `factors`.
    """
    if hasattr(network, "two_layers"):
        return closed_form(network, "two_layers")
    names = ("orthogonal_decomposition", "factors", "with_factors")
    if getattr(network, "depth", None) != 2 or not all(hasattr(network, n) for n in names):
        return None
    try:
        found = network.orthogonal_decomposition()
    except AssumptionFails:
        return None
    except ValueError:
        # The numerical decomposition needs concrete factors, and fails for traced ones.
        if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(network)):
            return None
        raise
    if not found.is_real:
        return None
    first, second = (v @ u for u, v in zip(found.bases, network.factors, strict=True))
    return TwoLayers(found.S, first, second)


class Measured(eqx.Module):
    """An assumption of a theorem about a run, as a number that must not exceed a bound.

    - `statement`: the assumption in words.
    - `value`: the measured number; NaN counts as larger than every bound.
    - `bound`: static; None if the run cannot decide whether the assumption holds.
    - `source`: paper and statement.
    """

    statement: str = eqx.field(static=True)
    value: Scalar
    bound: float | None = eqx.field(static=True)
    source: str = eqx.field(static=True)

    @property
    def holds(self) -> bool | None:
        """Whether value <= bound; None if there is no bound."""
        return None if self.bound is None else bool(np.asarray(self.value) <= self.bound)


class EffectiveStart(eqx.Module):
    """Where gradient flow would have to start to end where a run ended.

    A solution has it as its property `effective_start`, which is None if the network has no
    `TwoLayers`. `lintensor_jax.effective_limit` reads it.

    - `S`: as in `TwoLayers`.
    - `log_scale`: shape (m,), log mu at the end of the run.
    - `angle`: shape (m,), asinh(beta~_0/mu): the angle at the start plus the changes of the run
      outside of the span of the data.
    - `theorem`: the theorem by which the run ends at the Bregman projection of this start.
    - `measured`: the assumptions of the theorem about the run.
    """

    S: Float[Array, "m d"] | None
    log_scale: Float[Array, " m"]
    angle: Float[Array, " m"]
    theorem: str = eqx.field(static=True)
    measured: tuple[Measured, ...] = ()

    @property
    def scale(self) -> Float[Array, " m"]:
        """mu, in units of beta; underflows where `log_scale` does not."""
        return jnp.exp(self.log_scale)

    @property
    def coefficients(self) -> Float[Array, " m"]:
        """beta~_0 = mu sinh(angle), in the coordinates of S."""
        size = jnp.abs(self.angle)
        # One exp of the sum of logarithms: mu alone may underflow, and sinh alone may overflow.
        log_sinh = size + jnp.log1p(-jnp.exp(-2 * size)) - math.log(2)
        near = size < 1
        small = self.scale * jnp.sinh(jnp.where(near, self.angle, 0.0))
        large = jnp.sign(self.angle) * jnp.exp(self.log_scale + log_sinh)
        return jnp.where(near, small, large)

"""What the steps of a descent on two layers add up to: Even et al. 2023."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Scalar

from ...networks.effective_start import EffectiveStart, Measured, TwoLayers

_EVEN = "Even et al. 2023"
_THEOREM = (
    "the implicit bias of gradient descent with steps of any size, stochastic or not, on two "
    "layers (Even et al. 2023)"
)


class StepSums(eqx.Module):
    """Sums over the steps of a descent on two layers.

    With gamma_k the multiple of the gradient that step k takes, and the gradient g_k with respect
    to beta, x_k = gamma_k gain S g_k (see `TwoLayers`), shape (m,):

    - `shrinking`, `growing`: the products of 1 - x_k and of 1 + x_k since the last `folded`.
    - `log_shrinking`, `log_growing`: logarithms of the absolute values of the earlier products.
    - `total`: the sum of x_k.
    - `off_gradient`: the sum of |step + gamma gradient|_1, the part of the steps in other
      directions.
    - `path_length`: `off_gradient` plus the sum of |gamma gradient|_1.
    """

    shrinking: Float[Array, " m"]
    growing: Float[Array, " m"]
    log_shrinking: Float[Array, " m"]
    log_growing: Float[Array, " m"]
    total: Float[Array, " m"]
    path_length: Scalar
    off_gradient: Scalar

    @staticmethod
    def zeros(layers: TwoLayers) -> "StepSums":
        """The sums before the first step."""
        one, zero = jnp.ones_like(layers.first), jnp.zeros_like(layers.first)
        return StepSums(one, one, zero, zero, zero, zero[0], zero[0])

    def after(self, step: Any, gradient: Any, layers: TwoLayers, slope: Any) -> "StepSums":
        """The sums after one more step; `slope` is the gradient with respect to beta."""
        # Sums of absolute values are half the work of sums of squares, and do not underflow for
        # gradients of 1e-170.
        length = _total(jax.tree.map(lambda g: jnp.sum(jnp.abs(g)), gradient))
        along = _total(jax.tree.map(lambda s, g: jnp.sum(s * jnp.sign(g)), step, gradient))
        size = -along / jnp.where(length == 0, 1.0, length)
        rest = _total(jax.tree.map(lambda s, g: jnp.sum(jnp.abs(s + size * g)), step, gradient))
        x = size * layers.layer_gradient(slope)
        return StepSums(
            self.shrinking * (1 - x),
            self.growing * (1 + x),
            self.log_shrinking,
            self.log_growing,
            self.total + x,
            self.path_length + jnp.abs(along) + rest,
            self.off_gradient + rest,
        )

    def folded(self) -> "StepSums":
        """The same sums, with the products moved into the logarithms (two logarithms for all)."""
        one = jnp.ones_like(self.shrinking)
        return StepSums(
            one,
            one,
            self.log_shrinking + jnp.log(jnp.abs(self.shrinking)),
            self.log_growing + jnp.log(jnp.abs(self.growing)),
            self.total,
            self.path_length,
            self.off_gradient,
        )

    def effective_start(self, start: TwoLayers) -> EffectiveStart:
        """The effective start of a run from `start` with these sums, which must be folded.

        Every step is a <- a (1 - x_k), b <- b (1 + x_k) exactly. So mu is multiplied by |1 - x_k^2|
        and the angle ln|a/b| grows by ln|(1 - x_k)/(1 + x_k)|, of which -2 x_k is in the span of
        the data.
        """
        bound = 256 * float(jnp.finfo(self.path_length.dtype).eps)
        share = jnp.where(
            self.path_length == 0,
            0.0,
            self.off_gradient / jnp.where(self.path_length == 0, 1.0, self.path_length),
        )
        straight = Measured(
            "every step is a multiple of the gradient, the same for both layers: the share of the "
            "way that is none",
            share,
            bound,
            _EVEN,
        )
        return EffectiveStart(
            start.S,
            start.log_scale + self.log_shrinking + self.log_growing,
            start.angle + self.log_shrinking - self.log_growing + 2 * self.total,
            _THEOREM,
            (straight,),
        )


def along_gradient(step: Any, gradient: Any) -> Scalar:
    """The gamma for which |step + gamma gradient|_2 is smallest; 0 where the gradient is 0."""
    largest = _largest(gradient)
    # The squares of gradients of 1e-170 underflow.
    unit = jnp.where(largest == 0, 1.0, largest)
    scaled = jax.tree.map(lambda g: g / unit, gradient)
    squares = _total(jax.tree.map(lambda g: jnp.vdot(g, g), scaled))
    products = _total(jax.tree.map(jnp.vdot, step, scaled))
    return -products / (jnp.where(squares == 0, 1.0, squares) * unit)


def _largest(tree):
    return jnp.max(jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(tree)]))


def _total(tree):
    return jnp.sum(jnp.stack(jax.tree.leaves(tree)))

"""What the steps of a descent add up to: how far they follow the gradient, and G3's sums."""

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


class LayerSums(eqx.Module):
    """Sums over steps of two layers, x_k = gamma_k gain S g_k (see `TwoLayers`), each (m,).

    - `shrinking`, `growing`: the products of 1 - x_k and of 1 + x_k since the last `folded`.
    - `log_shrinking`, `log_growing`: the logarithms of the absolute values of the earlier ones.
    - `total`: the sum of x_k.
    """

    shrinking: Float[Array, " m"]
    growing: Float[Array, " m"]
    log_shrinking: Float[Array, " m"]
    log_growing: Float[Array, " m"]
    total: Float[Array, " m"]

    @staticmethod
    def zeros(layers: TwoLayers) -> "LayerSums":
        """Before the first step."""
        one, zero = jnp.ones_like(layers.first), jnp.zeros_like(layers.first)
        return LayerSums(one, one, zero, zero, zero)

    def after(self, x: Float[Array, " m"]) -> "LayerSums":
        """With one step more."""
        return LayerSums(
            self.shrinking * (1 - x),
            self.growing * (1 + x),
            self.log_shrinking,
            self.log_growing,
            self.total + x,
        )

    def folded(self) -> "LayerSums":
        """The same with the products taken into the logarithms: two of them for many steps."""
        one = jnp.ones_like(self.shrinking)
        return LayerSums(
            one,
            one,
            self.log_shrinking + jnp.log(jnp.abs(self.shrinking)),
            self.log_growing + jnp.log(jnp.abs(self.growing)),
            self.total,
        )


class StepSums(eqx.Module):
    """Sums over the steps of a descent.

    - `step_size`: gamma of the last step with a gradient: the least-squares fit of the step by
      -gamma times the gradient of the loss that the step has seen.
    - `way`: sum of max|step|. `aside`: sum of max|step + gamma gradient|, what the steps have of
      other directions.
    - `of_layers`: for networks of two layers, else None.
    """

    step_size: Scalar
    way: Scalar
    aside: Scalar
    of_layers: LayerSums | None

    @staticmethod
    def zeros(layers: TwoLayers | None, dtype: Any) -> "StepSums":
        """Before the first step."""
        nothing = jnp.zeros((), dtype)
        of_layers = None if layers is None else LayerSums.zeros(layers)
        return StepSums(jnp.full((), jnp.nan, dtype), nothing, nothing, of_layers)

    def after(self, step: Any, gradient: Any, layers: TwoLayers | None, slope: Any) -> "StepSums":
        """With one step more, `slope` being the gradient with respect to beta."""
        size, moves = along_gradient(step, gradient)
        rest = jax.tree.map(lambda s, g: jnp.max(jnp.abs(s + size * g)), step, gradient)
        moved = jax.tree.map(lambda s: jnp.max(jnp.abs(s)), step)
        of_layers = self.of_layers
        if layers is not None and of_layers is not None:
            of_layers = of_layers.after(size * layers.along(slope))
        return StepSums(
            jnp.where(moves, size, self.step_size),
            self.way + _largest(moved),
            self.aside + _largest(rest),
            of_layers,
        )

    def folded(self) -> "StepSums":
        """With the products of the layers taken into their logarithms."""
        folded = None if self.of_layers is None else self.of_layers.folded()
        return StepSums(self.step_size, self.way, self.aside, folded)

    def effective_start(self, start: TwoLayers) -> EffectiveStart | None:
        """Of a run from `start` with these sums, folded.

        Every step is a <- a (1 - x_k), b <- b (1 + x_k) exactly. So mu is multiplied by |1 - x_k^2|
        and the angle ln|a/b| grows by ln|(1 - x_k)/(1 + x_k)|, of which -2 x_k is in the span of
        the data.
        """
        sums = self.of_layers
        if sums is None:
            return None
        bound = 256 * float(jnp.finfo(self.way.dtype).eps)
        share = jnp.where(self.way == 0, 0.0, self.aside / jnp.where(self.way == 0, 1.0, self.way))
        straight = Measured(
            "every step is a multiple of the gradient, the same for both layers: the share of the "
            "way that is none",
            share,
            bound,
            _EVEN,
        )
        return EffectiveStart(
            start.S,
            start.log_scale + sums.log_shrinking + sums.log_growing,
            start.angle + sums.log_shrinking - sums.log_growing + 2 * sums.total,
            _THEOREM,
            (straight,),
        )


def along_gradient(step: Any, gradient: Any) -> tuple[Scalar, Scalar]:
    """The gamma for which |step + gamma gradient|_2 is smallest, and whether the gradient is not 0.

    0 where it is.
    """
    largest = _largest(jax.tree.map(lambda g: jnp.max(jnp.abs(g)), gradient))
    # Gradients of 1e-170 have no squares.
    unit = jnp.where(largest == 0, 1.0, largest)
    scaled = jax.tree.map(lambda g: g / unit, gradient)
    squares = _total(jax.tree.map(lambda g: jnp.vdot(g, g), scaled))
    products = _total(jax.tree.map(jnp.vdot, step, scaled))
    return -products / (jnp.where(squares == 0, 1.0, squares) * unit), largest != 0


def _largest(tree):
    return jnp.max(jnp.stack(jax.tree.leaves(tree)))


def _total(tree):
    return jnp.sum(jnp.stack(jax.tree.leaves(tree)))

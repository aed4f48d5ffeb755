"""Classification losses in the log domain: nothing here exponentiates a margin.

A loss is a decreasing function l(m) of the margin m = y <x, beta>. What flows need of it are
log l(m) and log(-l'(m)), both exact for margins of any size.
"""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class AbstractMarginLoss(eqx.Module):
    """A loss of the margin, given by the logarithms of its value and of its negative slope."""

    @abc.abstractmethod
    def log_value(self, margin: Float[Array, "..."]) -> Float[Array, "..."]:
        """log l(m)."""

    @abc.abstractmethod
    def log_slope(self, margin: Float[Array, "..."]) -> Float[Array, "..."]:
        """log(-l'(m))."""

    @abc.abstractmethod
    def inverse(self, log_value: Float[Array, "..."]) -> Float[Array, "..."]:
        """The margin m with log l(m) = `log_value`."""


class ExponentialLoss(AbstractMarginLoss):
    """l(m) = exp(-m)."""

    def log_value(self, margin: Float[Array, "..."]) -> Float[Array, "..."]:
        """log l(m) = -m."""
        return -margin

    def log_slope(self, margin: Float[Array, "..."]) -> Float[Array, "..."]:
        """log(-l'(m)) = -m."""
        return -margin

    def inverse(self, log_value: Float[Array, "..."]) -> Float[Array, "..."]:
        """m = -log l."""
        return -log_value


class LogisticLoss(AbstractMarginLoss):
    """l(m) = log(1 + exp(-m))."""

    def log_value(self, margin: Float[Array, "..."]) -> Float[Array, "..."]:
        """log l(m), to full relative accuracy of l for margins of either sign and any size.

        For large m the value is e^-m (1 - e^-m/2 + ...), which log(softplus(-m)) loses to
        underflow beyond m = 745.
        """
        # Both branches are evaluated: each gets an argument at which it is finite.
        small = jnp.log(jax.nn.softplus(-jnp.minimum(margin, 30.0)))
        large = -margin + jnp.log1p(-0.5 * jnp.exp(-jnp.maximum(margin, 30.0)))
        return jnp.where(margin < 30.0, small, large)

    def log_slope(self, margin: Float[Array, "..."]) -> Float[Array, "..."]:
        """log(-l'(m)) = -softplus(m)."""
        return -jax.nn.softplus(margin)

    def inverse(self, log_value: Float[Array, "..."]) -> Float[Array, "..."]:
        """m = -log(e^l - 1), which is -log l - l/2 + ... for l = e^log_value too small for exp."""
        loss = jnp.exp(jnp.clip(log_value, -30.0, 6.0))
        moderate = -jnp.log(jnp.expm1(loss))
        small = -log_value - 0.5 * jnp.exp(jnp.minimum(log_value, -30.0))
        large = -jnp.exp(jnp.maximum(log_value, 6.0))
        return jnp.where(log_value < -30.0, small, jnp.where(log_value > 6.0, large, moderate))

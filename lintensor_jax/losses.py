"""Losses, and the facts about each loss that theorems need.

*A loss of the margin* is a decreasing function l(m) of m = y <x, beta>, for classification. Flows
need log l(m) and log(-l'(m)). Both are exact for margins of any size, because no margin is
exponentiated. *A loss of the residual* is a function l(r) of r = prediction - target, for
regression. Flows need l(r) and l'(r).

Theorems need more facts, such as the tail of a loss. A loss states such facts as properties. In the
base class every such property is None or False. A theorem that needs a fact is claimed only if the
loss states the fact.
"""

import abc
import math
from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .arguments import as_concrete_number


class ExponentialTail(NamedTuple):
    """-l'(m) = c exp(-rate m) (1 + O(m^-delta)) for large margins m, with some c, delta > 0."""

    rate: float = 1.0

    def __str__(self) -> str:
        """The tail in words, for printed results."""
        return f"exponential with rate {self.rate:.6g}"


class PolynomialTail(NamedTuple):
    """l(m) is about c m^-power for large margins m, and -l'(m) about c power m^-(power + 1)."""

    power: float

    def __str__(self) -> str:
        """The tail in words, for printed results."""
        return f"polynomial with power {self.power:.6g}"


class Smoothness(NamedTuple):
    """|l''(m)| <= curvature and |l'(m)| <= slope for every margin m (the paper's beta and G).

    Source: Ji & Telgarsky 2019, Assumption 3.1.
    """

    curvature: float
    slope: float


class AbstractMarginLoss(eqx.Module):
    """A loss of the margin, given by the logarithms of its value and of its negative slope.

    A flow needs only the three methods below. The properties state facts for the theorems. None
    means that the fact is not known: no theorem that needs it is claimed.
    """

    @property
    def tail(self) -> ExponentialTail | PolynomialTail | None:
        """How the loss falls at large margins; None if the loss does not say."""
        return None

    @property
    def is_exponential(self) -> bool:
        """Whether l(m) = exp(-m) for every m. Closed forms at a finite loss need this."""
        return False

    @property
    def smoothness(self) -> Smoothness | None:
        """Bounds on l'' and l'; None if there are none, or if the loss does not say."""
        return None

    @property
    def is_convex(self) -> bool | None:
        """Whether l is strictly convex; None if the loss does not say."""
        return None

    def least_slope_over_value(self, log_value: float) -> float | None:
        """The smallest -l'(m)/l(m) where log l(m) <= `log_value`; None if the loss does not say.

        The bounds on the loss of Yun et al. 2021 hold with the square of this factor.
        """
        return None

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

    @property
    def tail(self) -> ExponentialTail:
        """Exponential with rate 1."""
        return ExponentialTail()

    @property
    def is_exponential(self) -> bool:
        """True."""
        return True

    @property
    def is_convex(self) -> bool:
        """True."""
        return True

    def least_slope_over_value(self, log_value: float) -> float:
        """1: -l'(m) equals l(m)."""
        return 1.0

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

    @property
    def tail(self) -> ExponentialTail:
        """Exponential with rate 1."""
        return ExponentialTail()

    @property
    def smoothness(self) -> Smoothness:
        """|l''| <= 1/4 and |l'| <= 1."""
        return Smoothness(curvature=0.25, slope=1.0)

    @property
    def is_convex(self) -> bool:
        """True."""
        return True

    def least_slope_over_value(self, log_value: float) -> float:
        """(1 - exp(-l))/l at the largest l, since -l' = 1 - exp(-l) is concave in l."""
        value = math.exp(min(log_value, 700.0))
        return -math.expm1(-value) / value if value > 0 else 1.0

    def log_value(self, margin: Float[Array, "..."]) -> Float[Array, "..."]:
        """log l(m), to full relative accuracy of l for margins of either sign and any size.

        For large m, l(m) = e^-m (1 - e^-m/2 + ...). log(softplus(-m)) would underflow beyond
        m = 745.
        """
        # `where` evaluates both branches, so each one gets an argument at which it is finite.
        small = jnp.log(jax.nn.softplus(-jnp.minimum(margin, 30.0)))
        large = -margin + jnp.log1p(-0.5 * jnp.exp(-jnp.maximum(margin, 30.0)))
        return jnp.where(margin < 30.0, small, large)

    def log_slope(self, margin: Float[Array, "..."]) -> Float[Array, "..."]:
        """log(-l'(m)) = -softplus(m)."""
        return -jax.nn.softplus(margin)

    def inverse(self, log_value: Float[Array, "..."]) -> Float[Array, "..."]:
        """m = -log(e^l - 1) with l = e^log_value; -log l - l/2 + ... if l is close to 0."""
        loss = jnp.exp(jnp.clip(log_value, -30.0, 6.0))
        moderate = -jnp.log(jnp.expm1(loss))
        small = -log_value - 0.5 * jnp.exp(jnp.minimum(log_value, -30.0))
        large = -jnp.exp(jnp.maximum(log_value, 6.0))
        return jnp.where(log_value < -30.0, small, jnp.where(log_value > 6.0, large, moderate))


class PolynomialLoss(AbstractMarginLoss):
    """l(m) = (1 + softplus(m))^-power, with softplus(m) = log(1 + exp(m)).

    It falls from 1 (at m = -infinity) to 0, like m^-power at large margins. It is not convex.

    Source: Ji et al. 2020 for losses with a polynomial tail.

    **Arguments**

    - `power`: positive.
    """

    power: float = eqx.field(
        static=True, converter=partial(as_concrete_number, name="power", owner="PolynomialLoss")
    )

    def __check_init__(self):
        _require_positive(self.power, "PolynomialLoss", "power", "at power 2.0 it falls like m^-2")

    @property
    def tail(self) -> PolynomialTail:
        """Polynomial with `power`."""
        return PolynomialTail(self.power)

    @property
    def is_convex(self) -> bool:
        """False."""
        return False

    def log_value(self, margin: Float[Array, "..."]) -> Float[Array, "..."]:
        """log l(m) = -power log(1 + softplus(m))."""
        return -self.power * jnp.log1p(jax.nn.softplus(margin))

    def log_slope(self, margin: Float[Array, "..."]) -> Float[Array, "..."]:
        """log(-l'(m)) = log(power) - (power + 1) log(1 + softplus(m)) - softplus(-m)."""
        log_growth = jnp.log1p(jax.nn.softplus(margin))
        return math.log(self.power) - (self.power + 1) * log_growth - jax.nn.softplus(-margin)

    def inverse(self, log_value: Float[Array, "..."]) -> Float[Array, "..."]:
        """m = log(exp(s) - 1) with s = l^(-1/power) - 1; -inf for values that no margin has."""
        # Not `log_value < 0`: a NaN must stay NaN. Not `~`: a Python float has no such operator.
        attained = jnp.logical_not(log_value >= 0)
        s = jnp.expm1(jnp.where(attained, log_value, -1.0) * (-1 / self.power))
        return jnp.where(attained, s + jnp.log(-jnp.expm1(-s)), -jnp.inf)


class AbstractResidualLoss(eqx.Module):
    """A loss l(r) of the residual r = prediction - target, given by its value and its slope.

    A flow needs only the two methods `value` and `slope`. The properties state facts for the
    theorems.
    """

    @abc.abstractmethod
    def value(self, residual: Float[Array, "..."]) -> Float[Array, "..."]:
        """l(r), entry by entry."""

    @abc.abstractmethod
    def slope(self, residual: Float[Array, "..."]) -> Float[Array, "..."]:
        """l'(r), entry by entry."""

    @property
    def is_convex_with_minimum_at_zero(self) -> bool | None:
        """Whether l is convex and r = 0 is its only minimum; None if the loss does not say.

        The limit of a regression flow that fits the data is then that of the squared loss.
        """
        return None

    @property
    def is_squared(self) -> bool:
        """Whether l(r) = r^2/2 for every r. Rates, Hessians and closed forms in time need this."""
        return False

    def curvature(self, residual: Float[Array, "..."]) -> Float[Array, "..."]:
        """l''(r), entry by entry."""
        return jax.jvp(self.slope, (residual,), (jnp.ones_like(residual),))[1]

    def total(self, residual: Float[Array, "..."]) -> Float[Array, ""]:
        """sum_i l(r_i)."""
        return jnp.sum(self.value(residual))

    def log_total(self, residual: Float[Array, "..."]) -> Float[Array, ""]:
        """log sum_i l(r_i); -inf at an exact fit."""
        return jnp.log(self.total(residual))


class SquaredLoss(AbstractResidualLoss):
    """l(r) = r^2/2."""

    @property
    def is_convex_with_minimum_at_zero(self) -> bool:
        """True."""
        return True

    @property
    def is_squared(self) -> bool:
        """True."""
        return True

    def value(self, residual: Float[Array, "..."]) -> Float[Array, "..."]:
        """r^2/2."""
        return 0.5 * residual**2

    def slope(self, residual: Float[Array, "..."]) -> Float[Array, "..."]:
        """r."""
        return residual

    def curvature(self, residual: Float[Array, "..."]) -> Float[Array, "..."]:
        """1."""
        return jnp.ones_like(residual)

    def total(self, residual: Float[Array, "..."]) -> Float[Array, ""]:
        """1/2 sum_i r_i^2."""
        return 0.5 * jnp.sum(residual**2)

    def log_total(self, residual: Float[Array, "..."]) -> Float[Array, ""]:
        """log(1/2 sum_i r_i^2), without underflow or overflow of the squares.

        -inf at an exact fit, inf if a residual is infinite, NaN if a residual is NaN.
        """
        largest = jnp.max(jnp.abs(residual))
        # Not `largest > 0`: that is false for NaN too, and a NaN would count as an exact fit.
        safe = jnp.where((largest == 0) | (largest == jnp.inf), 1.0, largest)
        return 2 * jnp.log(safe) + jnp.log(0.5 * jnp.sum((residual / safe) ** 2))


class HuberLoss(AbstractResidualLoss):
    """l(r) = r^2/2 for |r| <= delta, and delta (|r| - delta/2) for larger |r|.

    **Arguments**

    - `delta`: in units of the targets y; positive.
    """

    delta: float = eqx.field(
        static=True, converter=partial(as_concrete_number, name="delta", owner="HuberLoss")
    )

    def __check_init__(self):
        _require_positive(
            self.delta, "HuberLoss", "delta", "it is a size of residuals, such as 1.0"
        )

    @property
    def is_convex_with_minimum_at_zero(self) -> bool:
        """True."""
        return True

    def value(self, residual: Float[Array, "..."]) -> Float[Array, "..."]:
        """r^2/2 or delta (|r| - delta/2)."""
        inside = self.slope(residual)
        return inside * (residual - 0.5 * inside)

    def log_total(self, residual: Float[Array, "..."]) -> Float[Array, ""]:
        """log sum_i l(r_i), without underflow of the squares; -inf at an exact fit."""
        inside = self.slope(residual)
        # The sum of inside (r - inside/2), whose first factor is at most delta.
        largest = jnp.max(jnp.abs(residual))
        safe = jnp.where((largest == 0) | (largest == jnp.inf), 1.0, largest)
        slope = jnp.minimum(safe, self.delta)
        total = jnp.sum(inside / slope * ((residual - 0.5 * inside) / safe))
        return jnp.log(slope) + jnp.log(safe) + jnp.log(total)

    def slope(self, residual: Float[Array, "..."]) -> Float[Array, "..."]:
        """r, clipped to [-delta, delta]."""
        return jnp.minimum(jnp.maximum(residual, -self.delta), self.delta)


class LogCoshLoss(AbstractResidualLoss):
    """l(r) = log(cosh(r)): about r^2/2 for small residuals and |r| - log 2 for large ones."""

    @property
    def is_convex_with_minimum_at_zero(self) -> bool:
        """True."""
        return True

    def value(self, residual: Float[Array, "..."]) -> Float[Array, "..."]:
        """log(cosh(r)), to full relative accuracy for residuals of any size."""
        size = jnp.abs(residual)
        small = jnp.log1p(2 * jnp.sinh(0.5 * jnp.minimum(size, 1.0)) ** 2)
        large = size + jnp.log1p(jnp.exp(-2 * size)) - math.log(2)
        return jnp.where(size < 1, small, large)

    def log_total(self, residual: Float[Array, "..."]) -> Float[Array, ""]:
        """log sum_i l(r_i), without underflow of the squares; -inf at an exact fit."""
        # For |r| < 1e-9, r^2/2 is the value up to rounding: the next term is r^4/12.
        small = jnp.max(jnp.abs(residual)) < 1e-9
        squared = SquaredLoss().log_total(residual)
        total = self.total(jnp.where(small, 1.0, residual))
        return jnp.where(small, squared, jnp.log(total))

    def slope(self, residual: Float[Array, "..."]) -> Float[Array, "..."]:
        """tanh(r)."""
        return jnp.tanh(residual)


def _require_positive(value, owner, name, example):
    if not 0 < value < math.inf:
        raise ValueError(f"{owner}: {name} must be positive and finite, got {value}; {example}.")

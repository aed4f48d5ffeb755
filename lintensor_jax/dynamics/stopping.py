"""Stop rules of the domain: loss, margin, residual, time. Combine them with ``|``.

A bare steady-state event is not among them: on separable data it reports success degrees away
from the limit, and in regression from a small initialization it fires at the saddle near zero.
A rule is checked at the end of every accepted step, so a flow ends beyond the threshold, with the
first step that meets the rule. `saveat` gives values at exact times.
"""

import abc
from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Scalar

from ..arguments import as_threshold
from ..messages import in_words
from ..penalized import weight_decay_of
from ..problems import AbstractProblem, named
from .statuses import OWN_RULE, FlowStatus, code_of


class Observation(NamedTuple):
    """What stop rules see, as scalars. A log margin is -inf while a sample is misclassified."""

    log_loss: Scalar
    residual: Scalar  # |P r|, regression only
    log_margin: Scalar  # classification only
    log_time: Scalar
    gradient_step: Scalar  # |P r|^2/|grad L| over |theta|: an estimate of the Gauss-Newton step
    largest_weight: Scalar  # of the softmax over samples
    coefficient_gradient: Scalar  # |sum p_i z_i| / sum p_i |z_i|, p that softmax; classification
    relative_speed: Scalar  # |dTheta/ds| s / |Theta|; classification
    balance: Scalar  # |grad L + lambda Theta| over the sum of both sizes; weight decay only
    still: Bool[Array, ""]  # the gradient is zero to rounding


class AbstractStop(eqx.Module):
    """A stop rule: a flow ends at the first accepted step at whose end the rule is met.

    To write your own rule, make a subclass with `met`, and with `words` for the text that a
    solution shows. `met` sees scalars: `log_loss`, `log_time` (of the physical time), `residual`
    (|P r|, regression only), `log_margin` (classification only; -inf while a sample is
    misclassified), `largest_weight` (of the softmax over the samples) and the other fields of
    `Observation`. A flow that your rule ends has the status `FlowStatus.own_rule`, and
    `solution.reason` gives the words of the rule. Floats among its fields become arrays, so that
    another value needs no new compilation.
    """

    @abc.abstractmethod
    def met(self, seen: Observation) -> Bool[Array, ""]:
        """Whether the flow ends here: one boolean, made by JAX functions from `seen`."""

    def words(self) -> str:
        """Why the flow ended, if this rule ended it."""
        return f"the stop rule {type(self).__name__} was met"

    def check(self, problem: AbstractProblem, dtype: np.dtype) -> None:
        """Raise a ValueError if the rule does not apply to `problem`, or can never be met."""

    def __or__(self, other: "AbstractStop") -> "AnyOf":
        """Stop as soon as either rule is met."""
        return AnyOf((*members_of(self), *members_of(other)))


class AnyOf(AbstractStop):
    """Stop as soon as any of `members` is met. If several are, the first of them counts."""

    members: tuple[AbstractStop, ...]

    def met(self, seen: Observation) -> Bool[Array, ""]:
        """Whether any member is met."""
        return jnp.any(jnp.stack([member.met(seen) for member in self.members]))

    def check(self, problem: AbstractProblem, dtype: np.dtype) -> None:
        """Every member must apply."""
        for member in self.members:
            member.check(problem, dtype)


def members_of(stop: AbstractStop) -> tuple[AbstractStop, ...]:
    """The elementary rules that a stop rule combines, in their order."""
    if not isinstance(stop, AbstractStop):
        raise TypeError(
            f"stop rules combine with stop rules, got {in_words(stop)}; wrap a number, as "
            "in StopAtTime(10.0)."
        )
    return stop.members if isinstance(stop, AnyOf) else (stop,)


def status_of_rule(rule: AbstractStop) -> FlowStatus | None:
    """The status of a rule of this package; None for a user's rule, even if it inherits one."""
    return vars(type(rule)).get("_status")


def coded(stop: AbstractStop) -> list[tuple[np.int32, AbstractStop]]:
    """The members of a stop rule, each with the code of a flow that it ends."""
    found, following = [], OWN_RULE
    for rule in members_of(stop):
        status = status_of_rule(rule)
        found.append((following if status is None else code_of(status), rule))
        following = following + np.int32(status is None)
    return found


class StopAtResidual(AbstractStop):
    """Stop a regression flow once |P r| <= value.

    r is the vector of residuals, and P projects on the residuals that some beta can remove. With
    data of full row rank |P r| = |r|. Otherwise |P r| measures the distance to the least-squares
    solutions. For losses other than the squared loss, l'(r) takes the place of r. With a `finish`,
    the flow goes on until the estimated Gauss-Newton step is small as well.

    The flow ends with the step that meets the rule. At the end |P r| is below `value`, and after a
    `finish` at rounding. `saveat` gives the state at an earlier time of the clock.

    **Arguments**

    - `value`: in units of y; positive.
    """

    _status: ClassVar = FlowStatus.residual

    value: Scalar | float

    def __init__(self, value):
        self.value = _positive(value, "StopAtResidual", "value")

    def met(self, seen: Observation) -> Bool[Array, ""]:
        """|P r| <= value."""
        return seen.residual <= self.value

    def check(self, problem: AbstractProblem, dtype: np.dtype) -> None:
        """For losses of residuals; not below the rounding of the residuals."""
        if not problem.has_residuals:
            raise ValueError(
                "stop: StopAtResidual is for losses of residuals, got "
                f"{type(problem).__name__}; use StopAtMargin or StopAtLoss."
            )
        y = problem.y  # pyright: ignore[reportAttributeAccessIssue]
        if any(isinstance(a, Tracer) for a in (self.value, y)):
            return
        floor = 4 * float(np.finfo(dtype).eps) * float(np.max(np.abs(y)))
        if float(self.value) < floor:
            raise ValueError(
                f"stop: StopAtResidual value must be at least {floor:.1e} (4 eps max|y|, the "
                f"rounding of a residual in {dtype}), got {float(self.value):.3g}; raise it: the "
                "Gauss-Newton finish reaches the rounding level from any value below 1e-6."
            )


class StopAtLoss(AbstractStop):
    """Stop once the loss is at most `value`, or its natural logarithm at most `log_value`.

    The flow ends with the step that meets the rule. Late steps of classification flows are long:
    log_value=-1e4 may end at -1.3e4. `saveat` gives the state at an earlier time of the clock,
    `saveat=diffrax.SaveAt(steps=True)` the state at every step.

    **Arguments**

    - `value`: the loss, summed over samples; positive.
    - `log_value`: its natural logarithm, for losses such as exp(-1e6). Give exactly one of both.
    """

    _status: ClassVar = FlowStatus.loss

    log_value: Scalar | float

    def __init__(self, value=None, *, log_value=None):
        self.log_value = _log_threshold(value, log_value, "StopAtLoss")

    def met(self, seen: Observation) -> Bool[Array, ""]:
        """log L <= log_value."""
        return seen.log_loss <= self.log_value

    def check(self, problem: AbstractProblem, dtype: np.dtype) -> None:
        """For squared losses not below the rounding of the residuals."""
        if not problem.has_squared_loss:
            return
        y = problem.y  # pyright: ignore[reportAttributeAccessIssue]
        if any(isinstance(a, Tracer) for a in (self.log_value, y)):
            return
        smallest = 4 * float(np.finfo(dtype).eps) * max(float(np.max(np.abs(y))), 1e-300)
        floor = 2 * np.log(smallest) - np.log(2)
        if float(self.log_value) < floor:
            raise ValueError(
                f"stop: StopAtLoss must have log_value >= {floor:.1f} (the rounding of the "
                f"residuals in {dtype}), got {float(self.log_value):.6g}; raise it."
            )


class StopAtMargin(AbstractStop):
    """Stop a classification flow once min_i y_i <x_i, beta> >= value.

    With the exponential loss the loss is then about exp(-value). The flow ends with the step that
    meets the rule. This step can end far beyond: 1e4 may end at 1.3e4. `saveat` gives the state at
    an earlier time of the clock, `saveat=diffrax.SaveAt(steps=True)` the state at every step.

    **Arguments**

    - `value`: the margin, positive. If several samples share the smallest margin, a flow in float64
      ends near margin 1e8 (`FlowStatus.float_wall`).
    """

    _status: ClassVar = FlowStatus.margin

    value: Scalar | float

    def __init__(self, value):
        self.value = _positive(value, "StopAtMargin", "value")

    def met(self, seen: Observation) -> Bool[Array, ""]:
        """log margin >= log value."""
        return seen.log_margin >= jnp.log(self.value)

    def check(self, problem: AbstractProblem, dtype: np.dtype) -> None:
        """For classification; below 1/eps."""
        if not problem.has_margins:
            raise ValueError(
                f"stop: StopAtMargin is for Classification, got {type(problem).__name__}; use "
                "StopAtResidual or StopAtLoss."
            )
        ceiling = 0.1 / float(np.finfo(dtype).eps)
        if not isinstance(self.value, Tracer) and float(self.value) > ceiling:
            raise ValueError(
                f"stop: StopAtMargin value must be at most {ceiling:.1e} in {dtype} (beyond it a "
                f"margin's rounding exceeds 1/10 and the loss is noise), got "
                f"{float(self.value):.3g}; lower it, or ask limit_direction for the limit itself."
            )


class StopAtBalance(AbstractStop):
    """Stop a flow with weight decay once its two gradients cancel; the default for such flows.

    The rule is met once |grad L + lambda Theta| <= value (|grad L| + lambda |Theta|): a stationary
    point of L + lambda/2 |Theta|^2. If all parameters decay to zero, it is met once the penalty is
    at most value^2 times the loss.

    **Arguments**

    - `value`: in (0, 1); 1e-10 by default in float64.
    """

    _status: ClassVar = FlowStatus.balance

    value: Scalar | float

    def __init__(self, value):
        self.value = _positive(value, "StopAtBalance", "value")

    def met(self, seen: Observation) -> Bool[Array, ""]:
        """|grad L + lambda Theta| over the sum of both sizes is at most `value`."""
        return seen.balance <= self.value

    def check(self, problem: AbstractProblem, dtype: np.dtype) -> None:
        """For problems with weight decay."""
        if weight_decay_of(problem) is None:
            raise ValueError(
                f"stop: StopAtBalance is for flows with weight decay, got {named(problem)}; pass "
                "weight_decay, or use another stop rule."
            )


class StopAtTime(AbstractStop):
    """Stop once the physical time of the gradient flow reaches `value`, or its log `log_value`.

    The flow ends with the step that reaches this time, a little later. `saveat` gives the state at
    an exact time.
    """

    _status: ClassVar = FlowStatus.time

    log_value: Scalar | float

    def __init__(self, value=None, *, log_value=None):
        self.log_value = _log_threshold(value, log_value, "StopAtTime")

    def met(self, seen: Observation) -> Bool[Array, ""]:
        """log t >= log_value."""
        return seen.log_time >= self.log_value

    def check(self, problem: AbstractProblem, dtype: np.dtype) -> None:
        """Applies to every problem."""


class FloatWall(AbstractStop):
    """The largest margin that floating point can resolve; part of every classification flow.

    With one support vector the softmax is decided, and there is no such limit. With several, the
    motion of the direction depends on differences of margins of order one, which have the rounding
    of the margins. From margin 1e7 on the implicit method needs more and more steps. Beyond
    2/sqrt(eps) (float64: 1.3e8) some flows need thousands.
    """

    _status: ClassVar = FlowStatus.float_wall

    log_margin: Scalar | float

    @staticmethod
    def of(dtype: np.dtype) -> "FloatWall":
        """The rule for a floating-point type: the margin 2/sqrt(eps)."""
        return FloatWall(float(np.log(2) - 0.5 * np.log(np.finfo(dtype).eps)))

    def met(self, seen: Observation) -> Bool[Array, ""]:
        """The margin is above the limit, and no sample has a softmax weight of 0.999."""
        return (seen.log_margin >= self.log_margin) & (seen.largest_weight < 0.999)

    def check(self, problem: AbstractProblem, dtype: np.dtype) -> None:
        """Internal: always applies to classification."""


class NotSeparable(AbstractStop):
    """The minimum of the loss on data that no beta separates; part of every classification flow.

    With weights p >= 0 that sum to one, |sum_i p_i z_i| bounds the margin of every beta of norm
    one. If it is zero to rounding, no flow moves. At a saddle that a flow passes it is not zero.
    """

    _status: ClassVar = FlowStatus.not_separable

    value: Scalar | float
    speed: Scalar | float

    @staticmethod
    def of(dtype: np.dtype, stop: AbstractStop | None) -> "NotSeparable":
        """The threshold 4 sqrt(eps): every flow in this precision reaches such a gradient.

        Separable data whose margin, relative to the samples that still count, is smaller cannot be
        distinguished. If the user's `stop` is on something other than the margin, it can be met
        later, because of samples that are separable. Then the flow goes on while |Theta| changes:
        |Theta|^L grows like log t, by more than 1e-3 / L of itself until log t = 1000.
        """
        on_margin = stop is None or all(isinstance(r, StopAtMargin) for r in members_of(stop))
        return NotSeparable(4 * float(np.finfo(dtype).eps) ** 0.5, np.inf if on_margin else 1e-3)

    def met(self, seen: Observation) -> Bool[Array, ""]:
        """Some margin is not positive, and the gradient and the speed are below the thresholds."""
        small = (seen.coefficient_gradient <= self.value) & (seen.relative_speed <= self.speed)
        return (seen.log_margin == -jnp.inf) & small

    def check(self, problem: AbstractProblem, dtype: np.dtype) -> None:
        """Internal: always applies to classification."""


class StandsStill(AbstractStop):
    """The end of a flow that cannot move; part of every flow."""

    _status: ClassVar = FlowStatus.stationary

    def met(self, seen: Observation) -> Bool[Array, ""]:
        """The gradient is zero to rounding."""
        return seen.still

    def check(self, problem: AbstractProblem, dtype: np.dtype) -> None:
        """Internal: applies to every problem."""


def _log_threshold(value, log_value, owner):
    if (value is None) == (log_value is None):
        raise ValueError(
            f"{owner}: give exactly one of value and log_value, got value={value!r}, "
            f"log_value={log_value!r}."
        )
    if log_value is not None:
        return as_threshold(
            log_value, "log_value", owner, "pass the natural logarithm, e.g. -1e4.", positive=False
        )
    value = _positive(value, owner, "value")
    return jnp.log(value) if isinstance(value, jax.Array) else float(np.log(value))


def _positive(value, owner, name):
    advice = "pass e.g. 1e8 for a margin or a time, 1e-8 for a residual or a loss."
    return as_threshold(value, name, owner, advice)

"""The table [flow] of a configuration: tolerances, stop rules, clock, solver, largest steps."""

import dataclasses
from typing import Any

import diffrax

from ...config import Config, ConfigError, Integer, Maybe, Number, OneOf, OneOrMany, setting
from ...dynamics.clocks import LogArcLength, LossTime, PhysicalTime
from ...dynamics.stopping import StopAtLoss, StopAtMargin, StopAtResidual, StopAtTime

_POSITIVE = Number(above=0)
CLOCKS = {
    "physical-time": PhysicalTime,
    "loss-time": LossTime,
    "log-arc-length": LogArcLength,
}
#: Explicit methods of diffrax with the FSAL property: the last stage is the first of the next step.
SOLVERS = {
    "bosh3": diffrax.Bosh3,
    "dopri5": diffrax.Dopri5,
    "tsit5": diffrax.Tsit5,
    "dopri8": diffrax.Dopri8,
}


@dataclasses.dataclass(frozen=True)
class Flow(Config):
    """Tolerances, stop rule, clock, solver, weight decay (a list makes an axis), step limits."""

    rtol: float | None = setting(
        None, Maybe(_POSITIVE), "The relative tolerance of a step; the default is 1e-8."
    )
    atol: float | None = setting(
        None,
        Maybe(_POSITIVE),
        "The absolute tolerance of a step; the default is rtol times the largest initial "
        "parameter.",
    )
    residual: float | None = setting(
        None,
        Maybe(_POSITIVE),
        "Flows stop when the norm of the residual is below this; without a rule they go on to "
        "their limit.",
    )
    margin: float | None = setting(
        None, Maybe(_POSITIVE), "Flows stop when the smallest margin is above this."
    )
    loss: float | None = setting(None, Maybe(_POSITIVE), "Flows stop when the loss is below this.")
    log_inverse_loss: float | None = setting(
        None,
        Maybe(Number()),
        "Flows stop when log(1/loss) is above this, also where the loss is below every float.",
    )
    time: float | None = setting(
        None, Maybe(_POSITIVE), "Flows stop at this physical time, also together with another rule."
    )
    weight_decay: float | tuple[float, ...] = setting(
        0.0,
        OneOrMany(Number(at_least=0)),
        "The number lambda of the penalty (lambda/2) times the squared norm of the parameters.",
    )
    clock: str | None = setting(
        None,
        Maybe(OneOf(tuple(CLOCKS))),
        "The variable that flows are integrated in; the default is that of the problem.",
    )
    solver: str | None = setting(
        None,
        Maybe(OneOf(tuple(SOLVERS))),
        "The method of the steps; the default is the fastest for the problem.",
    )
    max_steps: int = setting(4096, Integer(1), "The most steps of the explicit method.")
    stiff_max_steps: int = setting(
        20_000, Integer(1), "The most steps of a flow that goes on with an implicit method."
    )

    def check(self) -> None:
        """Raises a `ConfigError` if there is more than one stop rule besides `time`."""
        rules = ("residual", "margin", "loss", "log_inverse_loss")
        given = [k for k in rules if getattr(self, k) is not None]
        if len(given) > 1:
            raise ConfigError(
                given[1],
                f"must be the only stop rule besides time, got {given[0]} too; remove one.",
            )

    @property
    def stop(self) -> Any:
        """The stop rule; None for the default. With `time`, the rule that is met first."""
        rule = None
        if self.residual is not None:
            rule = StopAtResidual(self.residual)
        elif self.margin is not None:
            rule = StopAtMargin(self.margin)
        elif self.loss is not None:
            rule = StopAtLoss(self.loss)
        elif self.log_inverse_loss is not None:
            rule = StopAtLoss(log_value=-self.log_inverse_loss)
        if self.time is None:
            return rule
        last = StopAtTime(self.time)
        return last if rule is None else rule | last

    @property
    def objects(self) -> dict[str, Any]:
        """Stop rule, clock and solver as objects; None for the default."""
        return {
            "stop": self.stop,
            "clock": None if self.clock is None else CLOCKS[self.clock](),
            "solver": None if self.solver is None else SOLVERS[self.solver](),
        }

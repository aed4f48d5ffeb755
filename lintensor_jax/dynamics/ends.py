"""Why flows ended: what the solution of one flow and the solution of a batch have in common."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ..messages import as_html
from .record import Record
from .statuses import OWN_RULE, STATUS_NAMES, FlowStatus, failed, status_of
from .stopping import AbstractStop, coded


class AbstractEnd(eqx.Module):
    """The end of one flow, or of many flows, whose arrays have leading axes.

    `record` holds what is kept of the flow's states. Its fields are properties here.
    """

    record: eqx.AbstractVar[Record]
    code: eqx.AbstractVar[Int[Array, "..."]]  # see `statuses.code_of`
    stop: eqx.AbstractVar[AbstractStop]

    @property
    def coefficients(self) -> Float[Array, "..."]:
        """beta, with its axes (d) or (d, m) last."""
        return self.record.coefficients

    @property
    def log_loss(self) -> Float[Array, "..."]:
        """Natural logarithm of the loss."""
        return self.record.log_loss

    @property
    def log_time(self) -> Float[Array, "..."]:
        """Natural logarithm of the physical time."""
        return self.record.log_time

    @property
    def log_norm(self) -> Float[Array, "..."]:
        """log |Theta|, over all parameters."""
        return self.record.log_norm

    @property
    def log_margin(self) -> Float[Array, "..."] | None:
        """log of the smallest margin; None for problems without margins."""
        return self.record.log_margin

    @property
    def invariant_drift(self) -> Float[Array, "..."]:
        """How far the conserved quantities have moved, relative to the largest squared norm."""
        return self.record.invariant_drift

    @property
    def status(self) -> FlowStatus:
        """Which rule was met, or why the flow ended without one."""
        return status_of(self.code)

    @property
    def succeeded(self) -> Bool[Array, "..."]:
        """Whether the flow ended without a failure.

        True if a stop rule was met, or if no method could continue the flow: `float_wall`,
        `not_separable` (the minimum of the loss, which is positive) and `stationary`. Only
        `max_steps`, `non_finite`, `solver_failed` and `invariants_lost` are failures.
        """
        return jnp.asarray(~failed(self.code))

    @property
    def reason(self) -> Any:
        """Why the flow ended, in words: a str, or for many flows an array of str.

        If your own stop rule ended the flow, these are its `words()`.
        """
        codes = np.asarray(self.code)
        if codes.ndim == 0:
            return self._in_words(int(codes), self.stop)
        lanes = np.ndindex(codes.shape)
        reasons = [self._in_words(int(codes[lane]), self._rules_of(lane)) for lane in lanes]
        return np.asarray(reasons, object).reshape(codes.shape)

    def _repr_html_(self) -> str:
        """What `print` shows, for notebooks."""
        return as_html(self)

    def counted(self) -> str:
        """How many flows ended with each status. A user's own rule is named by its class."""
        codes, counts = np.unique(np.asarray(self.code), return_counts=True)
        names = [
            STATUS_NAMES[code] if code < OWN_RULE else type(_own(code, self.stop)).__name__
            for code in codes
        ]
        return ", ".join(f"{name} {count}" for name, count in zip(names, counts, strict=True))

    def _rules_of(self, lane: tuple[int, ...]) -> AbstractStop:
        """The stop rule of one of many flows: under `jax.vmap` its numbers have lanes as well."""
        return jax.tree.map(lambda leaf: leaf[lane], self.stop)

    @staticmethod
    def _in_words(code: int, stop: AbstractStop) -> str:
        if code < OWN_RULE:
            return FlowStatus[status_of(jnp.asarray(code))]
        return _own(code, stop).words()


def _own(code: int, stop: AbstractStop) -> AbstractStop:
    """The user's rule that ends flows with this code."""
    return next(rule for rule_code, rule in coded(stop) if rule_code == code)

"""Why a flow ends: the table of all statuses, with words, failures, advice and stored numbers."""

import dataclasses
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Int


class _Words(str):
    """The words of a status, with what else is known about it.

    - `stored`: the number of the status in stores of sweeps. Stores keep numbers, so a number is
      never changed, and a new status takes the first free one (sweeps use 0 and 11).
    - `advice`: what to try after a failure; "" if the status is not a failure.
    """

    stored: int
    advice: str

    def __new__(cls, words: str, *, stored: int, advice: str = "") -> "_Words":
        self = super().__new__(cls, words)
        self.stored, self.advice = stored, advice
        return self


class FlowStatus(eqx.Enumeration):
    """Why a flow ended."""

    residual = _Words("the residual fell below the requested value", stored=1)
    loss = _Words("the loss fell below the requested value", stored=2)
    margin = _Words("the margin reached the requested value", stored=3)
    time = _Words("the requested physical time was reached", stored=4)
    float_wall = _Words(
        "several samples share the smallest margin, and it has grown so far that the rounding of "
        "the margins decides the softmax between them: integration in this precision gives no "
        "further digit of the direction",
        stored=5,
    )
    not_separable = _Words(
        "the loss is at its minimum, which is positive: the gradient with respect to the linear "
        "coefficients is zero to rounding. The data are not separable, or their margin is too "
        "small to be seen in this precision (is_separable finds much smaller margins)",
        stored=6,
    )
    stationary = _Words(
        "the gradient is zero to rounding: the flow stands still before a stop rule is met "
        "(dead coordinates, a bottleneck whose rank is too small for the targets, or a saddle)",
        stored=7,
    )
    balance = _Words(
        "the gradients of the loss and of the weight decay cancel to the requested share, or all "
        "parameters have decayed",
        stored=13,
    )
    max_steps = _Words(
        "the step budget was used up before any stop rule was met",
        stored=8,
        advice="raise max_steps, or loosen the stop rule or the tolerances",
    )
    non_finite = _Words(
        "the start is not finite, or the flow left the range of floating-point numbers",
        stored=9,
        advice="check the initial parameters and the data for huge values",
    )
    solver_failed = _Words(
        "the solver's inner iteration failed to converge",
        stored=10,
        advice="loosen rtol, or pass another solver",
    )
    invariants_lost = _Words(
        "implicit steps no longer keep what the flow conserves; the end is the last state before",
        stored=14,
        advice="the flow hardly moves there: stop it earlier, by StopAtTime or StopAtLoss, or "
        "lower rtol",
    )
    # Must stay last: a flow that ends by the user's k-th own rule has the code of this status + k.
    own_rule = _Words("a stop rule of the user was met", stored=12)


STATUS_NAMES: tuple[str, ...] = tuple(FlowStatus._name_to_item)
_WORDS: Any = dict(zip(STATUS_NAMES, FlowStatus._index_to_message, strict=True))
#: The numbers of the statuses in stores.
STORED: dict[str, int] = {name: words.stored for name, words in _WORDS.items()}
#: What to try after each status that is a failure.
ADVICE: dict[str, str] = {name: words.advice for name, words in _WORDS.items() if words.advice}


#: The code of the user's first own rule.
OWN_RULE = np.int32(STATUS_NAMES.index("own_rule"))


def status_name(status: FlowStatus) -> str:
    """The name of one concrete status, such as "margin"."""
    return STATUS_NAMES[int(status._value)]


def code_of(status: FlowStatus) -> np.int32:
    """A status as a number, for arrays of them: its place in `STATUS_NAMES`.

    The code of a user's own rule is the code of `own_rule` plus the rule's place among them.
    """
    return np.int32(np.asarray(status._value))


def status_of(code: Int[Array, "..."]) -> FlowStatus:
    """The status of one code or of an array of codes: `own_rule` for every rule of the user."""
    if isinstance(code, Tracer):
        return dataclasses.replace(FlowStatus.max_steps, _value=jnp.minimum(code, OWN_RULE))
    known = np.minimum(code, OWN_RULE)  # NumPy does not compile
    return dataclasses.replace(FlowStatus.max_steps, _value=jnp.asarray(known))


_FAILURE_CODES = np.asarray([STATUS_NAMES.index(name) for name in ADVICE], np.int32)


def failed(code: Int[Array, "..."]) -> Any:
    """Whether each code is that of a failure. Known codes go to NumPy, which is faster."""
    if isinstance(code, Tracer):
        return jnp.isin(code, _FAILURE_CODES)
    return np.isin(np.asarray(code), _FAILURE_CODES)

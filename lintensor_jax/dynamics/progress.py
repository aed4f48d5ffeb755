"""Progress of one flow: a function that is called while the flow runs."""

import contextlib
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.core import Tracer

from ..messages import in_words
from .system import System

SECONDS_BETWEEN_LINES = 2.0


class FlowProgress(NamedTuple):
    """The progress of a flow after an accepted step.

    - `num_steps`: accepted steps since the call.
    - `clock_time`: time of the flow's clock.
    - `log_loss`: natural logarithm of the loss, without a penalty.
    - `seconds`: elapsed since the call, compilation included.
    """

    num_steps: int
    clock_time: float
    log_loss: float
    seconds: float

    def __str__(self) -> str:
        return (
            f"step {self.num_steps:,} after {self.seconds:.0f} s: clock at {self.clock_time:.6g}, "
            f"log loss {self.log_loss:.6g}"
        )


class _Meter:
    """Counts the steps of one flow and calls the user's function."""

    def __init__(self, watch: Callable[[FlowProgress], Any]):
        self.watch, self.num_steps, self.start = watch, 0, time.monotonic()

    def step(self, clock_time: float, log_loss: float) -> None:
        self.num_steps += 1
        seconds = time.monotonic() - self.start
        self.watch(FlowProgress(self.num_steps, clock_time, log_loss, seconds))


# A compiled program refers to a meter by a number, because several flows share one program.
_METERS: dict[int, _Meter] = {}
_NUMBERS = itertools.count()


def report_step(meter: Any, accepted: Any, clock_time: Any, log_loss: Any) -> None:
    """Within a compiled program: report one step to the meter with the number `meter`."""
    jax.debug.callback(_record, meter, accepted, clock_time, log_loss)


def _record(meter, accepted, clock_time, log_loss):
    found = _METERS.get(int(meter))
    if found is not None and accepted:
        found.step(float(clock_time), float(log_loss))


@contextlib.contextmanager
def metered(progress: Any, system: System) -> Iterator[np.ndarray | None]:
    """The number of a new meter for `progress`, an argument of `gradient_flow`; None for False."""
    if progress is False:
        yield None
        return
    if progress is not True and not callable(progress):
        raise ValueError(
            "progress: must be True or a function of a FlowProgress, such as print, got "
            f"{in_words(progress)}; leave it out for none."
        )
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(system)):
        raise ValueError(
            "progress: is for one flow of concrete numbers, got traced ones; leave it out under "
            "jax.vmap and jax.jit, or use a sweep, which has a progress bar."
        )
    number = next(_NUMBERS)
    _METERS[number] = _Meter(_line_printer() if progress is True else progress)
    try:
        yield np.asarray(number, np.int32)
        jax.effects_barrier()
    finally:
        del _METERS[number]


def _line_printer() -> Callable[[FlowProgress], None]:
    """A function that prints a line to standard error, at most one in 2 seconds."""
    last = -SECONDS_BETWEEN_LINES

    def watch(progress: FlowProgress) -> None:
        nonlocal last
        if progress.seconds - last >= SECONDS_BETWEEN_LINES:
            last = progress.seconds
            print(progress, file=sys.stderr, flush=True)

    return watch

"""The unit of work: one chunk of a store, computed and written by one idempotent function."""

import contextlib
import functools
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ..grid import Grid
from ..observables.base import AbstractObservable
from ..plan import FAILURES, STATUSES, Options, Plan
from ..store.claims import Claims
from ..store.store import Store
from .reopen import plan_of, require_same
from .worker import Worker

_KEPT = 2  # a process keeps the compiled programs of this many stores
# Programs on several CPU devices share one pool of threads. If there are not more threads than
# devices, the programs can deadlock (seen with jaxlib 0.10, 2 cores, 12,500 lanes).
_one_cpu_program = threading.Lock()
_opening = threading.Lock()


def pending(path: str | os.PathLike, verify: bool = False) -> list[int]:
    """Numbers of the chunks of a store that are not finished.

    With `verify`, also of finished chunks with a missing or changed file.

    Raises `SweepError` (a RuntimeError) if there is no store.
    """
    return list(unfinished_chunks(Store(Path(path)), verify))


def unfinished_chunks(store: Store, verify: bool = False) -> Iterator[int]:
    """As `pending`, but an iterator for an open store."""
    finished = store.finished()
    for number in range(store.description["plan"]["chunks"]):
        if number not in finished or (verify and store.damage(number)):
            yield number


def compute_chunk(
    path: str | os.PathLike,
    number: int,
    grid: Grid | None = None,
    observables: Sequence[AbstractObservable] | None = None,
) -> dict[str, Any]:
    """Compute one chunk of a store and write it; returns the manifest of the chunk.

    The function is idempotent: on machines of one kind, every call writes the same bytes. A chunk
    that is finished and undamaged is not computed again. So any scheduler can run any number of
    these calls at the same time, on any number of hosts that see the folder, and can repeat calls
    that were lost.

    **Arguments**

    - `path`: the folder of a sweep.
    - `number`: the number of the chunk, as in `pending(path)`.
    - `grid`, `observables`: as in `lintensor_jax.resume`.

    **Returns** a dict with `chunk`, `lanes`, `statuses`, `failed`, `seconds` and more.

    **Raises** `SweepError` if there is no store, if the grid is another one, or if the disk is
    full; ValueError if there is no chunk with this number.
    """
    path = Path(path)
    store = Store(path)
    chunks = store.description["plan"]["chunks"]
    if not isinstance(number, int | np.integer) or not 0 <= number < chunks:
        raise ValueError(
            f"number: must be that of a chunk, 0 to {chunks - 1}, got {number!r}; pending(path) "
            "lists those that are left."
        )
    return _compute(path, store, int(number), _CallerArguments(grid, observables))


def compute_in_cluster(path: str, number: int, sweep: tuple[Grid, Options] | None) -> dict:
    """As `compute_chunk`, in a worker of a cluster.

    `sweep`: the grid and the options, if they cannot be rebuilt from the store.
    """
    store = Store(Path(path))
    in_double = store.description["dtype"] == "float64"
    if jax.config.jax_enable_x64 != in_double:  # pyright: ignore[reportAttributeAccessIssue]
        jax.config.update("jax_enable_x64", in_double)  # the cluster's process, not the user's
    given = _CallerArguments() if sweep is None else _CallerArguments(*sweep, is_checked=True)
    return _compute(Path(path), store, number, given)


class _CallerArguments:
    """The arguments of the caller besides the store; equal if they are the same objects."""

    def __init__(
        self, grid: Any = None, observables_or_options: Any = None, is_checked: bool = False
    ):
        self.grid, self.is_checked = grid, is_checked
        self.observables_or_options = observables_or_options

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, _CallerArguments)
            and other.grid is self.grid
            and other.observables_or_options is self.observables_or_options
        )

    def __hash__(self) -> int:
        return hash((id(self.grid), id(self.observables_or_options)))

    def plan(self, store: Store) -> Plan:
        """The plan. `observables_or_options` are the observables; the options if `is_checked`."""
        if not self.is_checked:
            return plan_of(store, self.grid, self.observables_or_options)
        plan = Plan(self.grid, self.observables_or_options)
        require_same(store, plan)
        return plan


def _compute(path: Path, store: Store, number: int, given: _CallerArguments) -> dict[str, Any]:
    if number in store.finished() and not store.damage(number):
        return store.manifest(number)
    with _opening, warnings.catch_warnings():
        # A warning about other versions: `sweep` or `resume` has given it already.
        warnings.simplefilter("ignore")
        worker = _worker(path.resolve(), store.description["digest"], given)
    with Claims(store.hidden) as claims, claims.of(number):
        return computed(worker, store, number, jax.local_devices()[0])


@functools.lru_cache(maxsize=_KEPT)
def _worker(path: Path, digest: str, given: _CallerArguments) -> Worker:
    return Worker(given.plan(Store(path)))


def computed(
    worker: Worker,
    store: Store,
    number: int,
    device: Any,
    leave: Callable[[], Any] = lambda: None,
) -> dict[str, Any]:
    """Compute a chunk on a device and commit it; returns its manifest.

    `leave` is called when the device is no longer needed, before the chunk is written.
    """
    began = time.monotonic()
    plan = worker.plan
    chunk = plan.chunk(number)
    with _one_cpu_program if device.platform == "cpu" else contextlib.nullcontext():
        outcome = worker.chunk(chunk, device)
    leave()
    numbers, counts = np.unique(outcome.values["status"], return_counts=True)
    statuses = {STATUSES[c]: int(n) for c, n in zip(numbers, counts, strict=True)}
    facts = {
        "lanes": int(chunk.lanes.size),
        "statuses": statuses,
        "failed": {name: n for name, n in statuses.items() if name in FAILURES},
        "stiff_lanes": len(outcome.unfinished),
        "executed_steps": outcome.executed_steps,
        "compilation": outcome.compilation,
        "needed_steps": outcome.needed_steps,
        "notes": {str(int(chunk.lanes[k])): note for k, note in outcome.notes.items()},
        "device": device.device_kind,
        "seconds": round(time.monotonic() - began, 3),
    }
    return store.commit(plan, chunk, outcome.values, facts)

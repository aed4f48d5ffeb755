"""Who computes what: whole chunks are dealt out to devices and processes."""

import collections
import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

import jax
import numpy as np

from ..plan import FAILURES, STATUSES, Chunk, Plan
from ..store.errors import SweepError
from ..store.store import Store
from .worker import Outcome, Worker

_RATE_OVER = 16  # jobs


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a run is. `lanes` counts those of earlier runs, `rate` (lanes/s) this one's only."""

    lanes: int
    total: int
    failed: int
    waiting: int  # lanes for the stiff path
    rate: float

    @property
    def seconds_left(self) -> float:
        """At the present rate; NaN before there is one."""
        return (self.total - self.lanes) / self.rate if self.rate > 0 else float("nan")


@dataclasses.dataclass(frozen=True)
class _Job:
    chunk: Chunk
    place: int | None  # of one lane, or None for the chunk's explicit flows


@dataclasses.dataclass
class _Open:
    """A chunk whose explicit part is staged, while lanes of it are on the stiff path."""

    lanes: tuple[int, ...]
    missing: set[int]
    device: str
    seconds: float


class Run:
    """One process's share of the work on a store."""

    def __init__(
        self,
        plan: Plan,
        store: Store,
        devices: Sequence[Any],
        watch: Callable[[Progress], None],
    ):
        self.plan, self.store, self.devices, self.watch = plan, store, devices, watch
        self.worker = Worker(plan)
        self._turn = threading.Lock()
        self.open: dict[int, _Open] = {}
        self.lanes = self.failed = self.done_now = 0
        self._landings = collections.deque([(time.monotonic(), 0)], maxlen=_RATE_OVER)

    def resume_from(self, finished: set[int]) -> None:
        """Counts what is there."""
        for number in finished:
            manifest = self.store.manifest(number)
            self.lanes += manifest["lanes"]
            self.failed += sum(manifest["failed"].values())

    def work(self, numbers: Sequence[int]) -> None:
        """Computes and stores these chunks."""
        jobs = collections.deque(self._jobs_left(numbers))
        free = collections.deque(self.devices)
        running: dict[Future, tuple[_Job, Any, float]] = {}

        def deal(pool):
            while free and jobs:
                job, device = jobs.popleft(), free.popleft()
                future = pool.submit(self._compute, job, device)
                running[future] = job, device, time.monotonic()

        with ThreadPoolExecutor(len(self.devices)) as pool:
            while jobs or running:
                deal(pool)
                self._report()
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                landed = [(future, *running.pop(future)) for future in done]
                free.extend(device for _, _, device, _ in landed)
                deal(pool)  # the devices go on while results are written
                for future, job, device, began in landed:
                    seconds = time.monotonic() - began
                    outcome = future.result()
                    jobs.extend(self._landed(job, outcome, device.device_kind, seconds))
        self._report()

    def _compute(self, job: _Job, device: Any) -> Outcome:
        # Programs on several CPU devices share one pool of threads, and with as few threads as
        # devices (jaxlib 0.10, 2 cores, chunks of 12,500 lanes) they wait for one another for ever.
        with self._turn if device.platform == "cpu" else contextlib.nullcontext():
            return self._computed(job, device)

    def _computed(self, job: _Job, device: Any) -> Outcome:
        if job.place is None:
            return self.worker.explicit(job.chunk, device)
        return self.worker.stiff(job.chunk, job.place, device)

    def _jobs_left(self, numbers: Sequence[int]) -> Iterator[_Job]:
        """Chunks to compute, then the lanes that staged ones still wait for."""
        lanes = []
        for number in numbers:
            chunk = self.plan.chunk(number)
            explicit = self.store.staged(chunk, None)
            if explicit is None:
                yield _Job(chunk, None)
                continue
            there = [k for k in explicit.unfinished if self.store.staged(chunk, k) is not None]
            missing = set(explicit.unfinished) - set(there)
            self.open[number] = _Open(explicit.unfinished, missing, "earlier run", 0.0)
            self.lanes += chunk.lanes.size - len(missing)
            if not missing:
                self._close(chunk)
            lanes += [_Job(chunk, k) for k in sorted(missing)]
        yield from lanes

    def _landed(self, job: _Job, outcome: Outcome, device: str, seconds: float) -> list[_Job]:
        """Stores what a job found; returns the jobs that follow from it."""
        chunk, lanes = job.chunk, outcome.unfinished
        if job.place is None:
            self._count(chunk.lanes.size - len(lanes))
            if not lanes:
                self._commit(chunk, outcome, {}, device, seconds)
                return []
            self.store.stage(chunk, None, outcome)
            self.open[chunk.number] = _Open(lanes, set(lanes), device, seconds)
            return [_Job(chunk, k) for k in lanes]
        self.store.stage(chunk, job.place, outcome)
        self._count(1)
        part = self.open[chunk.number]
        part.missing.discard(job.place)
        part.seconds += seconds
        if not part.missing:
            self._close(chunk)
        return []

    def _close(self, chunk: Chunk) -> None:
        """Puts the parts of a chunk together: they wait on the disk, not in memory."""
        part = self.open.pop(chunk.number)
        explicit = self.store.staged(chunk, None)
        lanes = {k: self.store.staged(chunk, k) for k in part.lanes}
        if explicit is None or None in lanes.values():
            raise SweepError(f"{self.store.path}: parts of chunk {chunk.number} vanished; resume.")
        self._commit(chunk, explicit, lanes, part.device, part.seconds)

    def _commit(self, chunk: Chunk, explicit: Outcome, lanes, device: str, seconds: float) -> None:
        outcome = _merged(explicit, lanes)
        status = outcome.values["status"]
        numbers, counts = np.unique(status, return_counts=True)
        statuses = {STATUSES[c]: int(n) for c, n in zip(numbers, counts, strict=True)}
        told = {
            "lanes": int(chunk.lanes.size),
            "statuses": statuses,
            "failed": {name: n for name, n in statuses.items() if name in FAILURES},
            "stiff_lanes": len(lanes),
            "executed_steps": explicit.executed_steps,
            "compilation": explicit.compilation,
            "needed_steps": int(explicit.values["num_steps"].sum()),
            "notes": {
                str(int(chunk.lanes[k])): lane.note for k, lane in lanes.items() if lane.note
            },
            "device": device,
            "seconds": round(seconds, 3),
        }
        self.store.commit(self.plan, chunk, outcome, told)
        self.failed += sum(told["failed"].values())

    def _count(self, lanes: int) -> None:
        self.lanes += lanes
        self.done_now += lanes
        self._landings.append((time.monotonic(), self.done_now))

    def _report(self) -> None:
        # Of the last jobs only: the first ones wait for the compiler.
        (then, before), (now, done) = self._landings[0], self._landings[-1]
        waiting = sum(len(part.missing) for part in self.open.values())
        rate = (done - before) / (now - then) if now > then else 0.0
        self.watch(Progress(self.lanes, self.plan.grid.size, self.failed, waiting, rate))


def _merged(explicit: Outcome, lanes: dict[int, Outcome]) -> Outcome:
    """A chunk with its lanes from the stiff path put in."""
    values = {name: array.copy() for name, array in explicit.values.items()}
    for place, lane in lanes.items():
        for name, array in lane.values.items():
            values[name][place] = array[0] + (values[name][place] if name == "num_steps" else 0)
    return explicit._replace(values=values)


# Processes: each takes every k-th chunk; the first one makes the store, and holds its lock.


def is_first() -> bool:
    """Whether this is the process that makes the store."""
    return jax.process_index() == 0


def agree(work: Callable[[], Any], what: str) -> Any:
    """`work` in the first process, while the others wait; if it fails, all fail."""
    if jax.process_count() == 1:
        return work()
    result, error = None, None
    if is_first():
        try:
            result = work()
        except Exception as caught:
            error = caught
    if everyone_failed(error is not None):
        raise error if error is not None else SweepError(f"the first process failed: {what}.")
    return result


def everyone_failed(mine: bool) -> bool:
    """Whether any process failed; all of them wait here for one another."""
    if jax.process_count() == 1:
        return mine
    from jax.experimental import multihost_utils

    return bool(np.any(multihost_utils.process_allgather(np.asarray(mine))))

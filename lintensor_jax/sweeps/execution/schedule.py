"""The distribution of whole chunks to devices and processes."""

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

_RATE_OVER = 16  # the rate is measured over this many jobs


@dataclasses.dataclass(frozen=True)
class Progress:
    """The progress of a run: `lanes` includes earlier runs; `rate` (lanes/s) is of this run."""

    lanes: int
    total: int
    failed: int
    waiting: int  # number of lanes that wait for the stiff path
    rate: float

    @property
    def seconds_left(self) -> float:
        """The remaining seconds at the present rate; NaN before the first measurement."""
        return (self.total - self.lanes) / self.rate if self.rate > 0 else float("nan")


@dataclasses.dataclass(frozen=True)
class _Job:
    chunk: Chunk
    place: int | None  # place of one lane in the chunk; None for the explicit flows of the chunk


@dataclasses.dataclass
class _Open:
    """A chunk whose explicit part is staged, with lanes that wait for the stiff path."""

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
        self._one_cpu_program = threading.Lock()
        self.open: dict[int, _Open] = {}
        self.lanes = self.failed = self.done_now = 0
        self._lane_counts = collections.deque([(time.monotonic(), 0)], maxlen=_RATE_OVER)

    def resume_from(self, finished: set[int]) -> None:
        """Count the lanes of chunks that are finished already."""
        for number in finished:
            manifest = self.store.manifest(number)
            self.lanes += manifest["lanes"]
            self.failed += sum(manifest["failed"].values())

    def work(self, numbers: Sequence[int]) -> None:
        """Compute and store the chunks of these numbers."""
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
                finished = [(future, *running.pop(future)) for future in done]
                free.extend(device for _, _, device, _ in finished)
                deal(pool)  # the devices compute while results are written
                for future, job, device, began in finished:
                    seconds = time.monotonic() - began
                    outcome = future.result()
                    jobs.extend(self._store_result(job, outcome, device.device_kind, seconds))
        self._report()

    def _compute(self, job: _Job, device: Any) -> Outcome:
        # Programs on several CPU devices share one pool of threads. If there are no more threads
        # than devices, they can wait for each other for ever (jaxlib 0.10, 2 cores, 12,500 lanes).
        with self._one_cpu_program if device.platform == "cpu" else contextlib.nullcontext():
            return self._computed(job, device)

    def _computed(self, job: _Job, device: Any) -> Outcome:
        if job.place is None:
            return self.worker.explicit(job.chunk, device)
        return self.worker.stiff(job.chunk, job.place, device)

    def _jobs_left(self, numbers: Sequence[int]) -> Iterator[_Job]:
        """Jobs for missing chunks, then for the missing lanes of staged chunks."""
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

    def _store_result(self, job: _Job, outcome: Outcome, device: str, seconds: float) -> list[_Job]:
        """Store the result of a job; return the jobs for lanes over their explicit budget."""
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
        """Merge the staged parts of a chunk, which lie on the disk, and commit the chunk."""
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
        facts = {
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
        self.store.commit(self.plan, chunk, outcome, facts)
        self.failed += sum(facts["failed"].values())

    def _count(self, lanes: int) -> None:
        self.lanes += lanes
        self.done_now += lanes
        self._lane_counts.append((time.monotonic(), self.done_now))

    def _report(self) -> None:
        # The rate of the last jobs: the first jobs include compilation.
        (then, before), (now, done) = self._lane_counts[0], self._lane_counts[-1]
        waiting = sum(len(part.missing) for part in self.open.values())
        rate = (done - before) / (now - then) if now > then else 0.0
        self.watch(Progress(self.lanes, self.plan.grid.size, self.failed, waiting, rate))


def _merged(explicit: Outcome, lanes: dict[int, Outcome]) -> Outcome:
    """The explicit part of a chunk, with the results of its lanes from the stiff path."""
    values = {name: array.copy() for name, array in explicit.values.items()}
    for place, lane in lanes.items():
        for name, array in lane.values.items():
            values[name][place] = array[0] + (values[name][place] if name == "num_steps" else 0)
    return explicit._replace(values=values)


# Several processes: each computes every k-th chunk. The first makes the store and holds its lock.


def is_first() -> bool:
    """Whether this is the process that makes the store."""
    return jax.process_index() == 0


def agree(work: Callable[[], Any], what: str) -> Any:
    """The result of `work`, which the first process runs; if it fails, all processes fail."""
    if jax.process_count() == 1:
        return work()
    result, error = None, None
    if is_first():
        try:
            result = work()
        except Exception as caught:
            error = caught
    if any_process_failed(error is not None):
        raise error if error is not None else SweepError(f"the first process failed: {what}.")
    return result


def any_process_failed(mine: bool) -> bool:
    """Whether any process failed. All processes wait here for each other."""
    if jax.process_count() == 1:
        return mine
    from jax.experimental import multihost_utils

    return bool(np.any(multihost_utils.process_allgather(np.asarray(mine))))

"""Drivers: they call the function of one chunk for all chunks, here or in a cluster."""

import collections
import contextlib
import dataclasses
import queue
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from typing import Any

from ...dynamics.batch import hardware
from ..grid import Grid
from ..plan import Options
from ..store.claims import Claims
from ..store.errors import SweepError
from ..store.store import Store
from .chunks import compute_in_cluster, computed
from .worker import Worker

_RATE_OVER = 16  # the rate is measured over this many chunks
_POLL = 1.0  # seconds between two checks of a chunk that another process computes
_TRIES = 3  # the most tries of a chunk whose worker in a cluster raised an error
_DEATHS = 5  # the sweep fails if Dask gives up a chunk so often because its workers died
_WRITERS = 4  # threads that write chunks while GPUs compute
_AHEAD = 4  # chunks that are submitted to a cluster for each thread of a worker


@dataclasses.dataclass(frozen=True)
class Progress:
    """The progress of a run, for `watch`.

    - `lanes`: finished lanes, including those of earlier runs; `total`: all lanes.
    - `failed`: failed lanes. `rate`: lanes per second in this run.
    - `workers`: the number of devices, or of workers of a cluster.
    """

    lanes: int
    total: int
    failed: int
    rate: float
    workers: int = 1

    @property
    def seconds_left(self) -> float:
        """The remaining seconds at the present rate; NaN before the first measurement."""
        return (self.total - self.lanes) / self.rate if self.rate > 0 else float("nan")


class Watched:
    """Counts finished lanes and calls `watch`."""

    def __init__(self, store: Store, watch: Callable[[Progress], None], workers: int):
        self.store, self.watch, self.workers = store, watch, workers
        self.total = store.description["plan"]["lanes"]
        self.lanes = self.failed = self._now = 0
        self._counts = collections.deque([(time.monotonic(), 0)], maxlen=_RATE_OVER)
        self._seen: set[int] = set()
        for number in store.finished():
            self._count(number)

    def _count(self, number: int, manifest: dict[str, Any] | None = None) -> int:
        """Count a finished chunk once; returns the number of its lanes."""
        if number in self._seen:
            return 0
        try:
            manifest = manifest or self.store.manifest(number)
        except (OSError, ValueError):
            return 0
        self._seen.add(number)
        self.lanes += manifest["lanes"]
        self.failed += sum(manifest["failed"].values())
        return manifest["lanes"]

    def finished(self, number: int, manifest: dict[str, Any] | None = None) -> None:
        """Count a chunk that this process or another one has finished, and report."""
        self._now += self._count(number, manifest)
        self._counts.append((time.monotonic(), self._now))
        self.report()

    def report(self) -> None:
        """Call `watch`. The rate is over the last chunks, since the first include compilation."""
        (then, before), (now, done) = self._counts[0], self._counts[-1]
        rate = (done - before) / (now - then) if now > then else 0.0
        self.watch(Progress(self.lanes, self.total, self.failed, rate, self.workers))


def compute_here(
    worker: Worker, store: Store, numbers: Iterable[int], devices: Sequence[Any], watched: Watched
) -> None:
    """Compute chunks on the devices of this process.

    Several processes may do so at the same time in one folder. A chunk that another process has
    claimed is skipped. If that process has died, the chunk is computed here at the end.
    """
    free: queue.SimpleQueue[Any] = queue.SimpleQueue()
    # Devices other than CPUs get a second chunk, so that they do not wait for Python.
    places = [d for d in devices if hardware.kind_of(d) != "cpu"]
    for device in (*devices, *places):
        free.put(device)
    at_once = len(devices) + len(places) + (_WRITERS if places else 1)
    with Claims(store.hidden) as claims:

        def one(number: int) -> tuple[int, dict[str, Any] | None]:
            with claims.of(number) as is_mine:
                if (manifest := _finished(store, number)) or not is_mine:
                    return number, manifest
                with contextlib.ExitStack() as held:
                    device = free.get()
                    held.callback(free.put, device)
                    return number, computed(worker, store, number, device, held.close)

        watched.report()
        # More threads than places for chunks, so that devices compute while chunks are written.
        with ThreadPoolExecutor(at_once) as pool:
            rest = numbers
            while rest:
                busy = []
                for number, manifest in _results_as_ready(pool, one, rest, at_once):
                    if manifest is None:
                        busy.append(number)
                    else:
                        watched.finished(number, manifest)
                if busy:
                    time.sleep(_POLL * (0.5 + random.random()))
                rest = busy


def _finished(store: Store, number: int) -> dict[str, Any] | None:
    """The manifest of a chunk if it is finished and undamaged; otherwise None."""
    try:
        manifest = store.manifest(number)
    except (OSError, ValueError):
        return None
    return None if store.damage(number) else manifest


def _results_as_ready(pool, work, numbers: Iterable[int], at_once: int) -> Iterator[Any]:
    """Results of `work(number)` as they are ready; at most `at_once` calls run at the same time."""
    left, running = iter(numbers), set()
    while True:
        for number in left:
            running.add(pool.submit(work, number))
            if len(running) >= at_once:
                break
        if not running:
            return
        done, running = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            yield future.result()


def in_cluster(
    client: Any,
    store: Store,
    numbers: Iterable[int],
    sweep: tuple[Grid, Options] | None,
    watched: Watched,
) -> None:
    """Compute chunks in the workers of a `dask.distributed.Client`.

    If a worker dies, Dask gives its chunks to other workers. `sweep`: the grid and the options, if
    they cannot be rebuilt from the store.
    """
    from distributed import as_completed

    path = str(store.path.resolve())
    # In a list, since `scatter` would scatter each entry of a tuple separately.
    (shared,) = client.scatter([sweep], broadcast=True, hash=False) if sweep else (None,)
    left = iter(numbers)

    def submitted(number: int) -> Any:
        return client.submit(
            compute_in_cluster,
            path,
            number,
            shared,
            key=f"lintensor-{store.description['digest'][:12]}-{number}-{random.random():.9f}",
            retries=_TRIES - 1,
            pure=False,
        )

    watched.workers = max(1, len(client.scheduler_info()["workers"]))
    watched.report()
    threads = max(1, sum(client.nthreads().values()))
    waiting: dict[str, int] = {}
    done = as_completed(loop=client.loop, raise_errors=False)
    deaths: collections.Counter[int] = collections.Counter()

    def add(number: int) -> None:
        future = submitted(number)
        waiting[future.key] = number
        done.add(future)

    for number in _first(left, _AHEAD * threads):
        add(number)
    for future in done:
        number = waiting.pop(future.key)
        # If a worker dies, the results of its finished tasks are lost, and Dask runs these tasks
        # again. So results are not fetched: the chunks are on the disk.
        error = None if future.status == "finished" else future.exception()
        if error is None:
            watched.workers = max(1, len(client.scheduler_info()["workers"]))
            watched.finished(number)
            for following in _first(left, 1):
                add(following)
            continue
        deaths[number] += 1
        if type(error).__name__ == "KilledWorker" and deaths[number] < _DEATHS:
            add(number)
            continue
        raise SweepError(
            f"{store.path}: chunk {number} failed in the cluster ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:300]}); finished chunks are kept: resume."
        )


def _first(numbers: Iterator[int], count: int) -> Iterator[int]:
    for _, number in zip(range(count), numbers, strict=False):
        yield number

"""`--cluster`: the workers of a Dask scheduler, or processes of this machine."""

import contextlib
import os
import re
import threading
import time
from collections.abc import Iterator
from typing import Any

from .terminal import UsageError, jax_settings

_SECONDS_BETWEEN_CHECKS = 5.0  # seconds between two checks of the workers of this machine
# Seconds that a worker may be missing without any change; a worker needs some of them to start.
_SECONDS_WITHOUT_CHANGE = 60.0


@contextlib.contextmanager
def client_of(address: str | None) -> Iterator[Any]:
    """Yield a client of a Dask cluster; None without an address."""
    if address is None:
        yield None
        return
    try:
        import distributed
    except ImportError:
        raise UsageError(
            "--cluster: needs dask.distributed: pip install 'lintensor_jax[cluster]'."
        ) from None
    local = re.fullmatch(r"local(?::(\d{1,4}))?", address)
    if local is None and "://" not in address:
        raise UsageError(
            f"--cluster: must be local, local:N or the address of a scheduler such as "
            f"tcp://host:8786, got {address!r}."
        )
    if local is not None:
        if local[1] == "0":
            raise UsageError("--cluster: local:N needs N >= 1, got local:0.")
        with _local_client(int(local[1]) if local[1] else _cores()) as client:
            yield client
        return
    try:
        client = distributed.Client(address, timeout="20s", set_as_default=False)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"--cluster: no scheduler answers at {address} ({type(error).__name__}); check the "
            "address, and that dask scheduler runs."
        ) from None
    with client:
        yield client


def _cores() -> int:
    return max(1, len(os.sched_getaffinity(0)))


@contextlib.contextmanager
def _local_client(workers: int) -> Iterator[Any]:
    import distributed

    os.environ.update(jax_settings())  # the workers inherit them
    settings: dict[str, Any] = {"dashboard_address": None, "memory_limit": 0}
    with (
        distributed.LocalCluster(n_workers=0, threads_per_worker=1, **settings) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
        _workers_restarted(cluster, workers),
    ):
        with contextlib.suppress(TimeoutError):
            client.wait_for_workers(workers, timeout=_SECONDS_WITHOUT_CHANGE)
        yield client


@contextlib.contextmanager
def _workers_restarted(cluster: Any, workers: int) -> Iterator[None]:
    """Start `workers` workers, and replace those that Dask does not start again.

    Dask starts a worker again if it dies, but not if it dies during its start.
    """
    ended = threading.Event()

    def watch() -> None:
        seen, changed = set(), time.monotonic()
        while not ended.wait(_SECONDS_BETWEEN_CHECKS):
            there = set(cluster.scheduler_info["workers"])
            if len(there) >= workers or there != seen:
                seen, changed = there, time.monotonic()
            elif time.monotonic() - changed > _SECONDS_WITHOUT_CHANGE:
                cluster.scale(len(there))  # forgets those that are missing
                cluster.scale(workers)
                changed = time.monotonic()

    thread = threading.Thread(target=watch, daemon=True)
    cluster.scale(workers)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()

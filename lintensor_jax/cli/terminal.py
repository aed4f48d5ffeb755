"""What every command needs: the error for mistakes, JAX's settings, a progress bar."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

#: Without a terminal, the least time between two lines of progress, in seconds.
SECONDS_BETWEEN_LINES = 10.0


class UsageError(Exception):
    """A mistake on the command line; the program prints it in one line and ends with code 2."""


class Terminated(KeyboardInterrupt):
    """The process got SIGTERM."""


@contextlib.contextmanager
def termination_as_interrupt() -> Iterator[None]:
    """Treat SIGTERM as Ctrl-C, so that a running command ends in the same way."""

    def stop(*_: Any) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def configure_jax():
    """Use float64, and keep compiled programs in a cache on disk for the next run."""
    import jax

    from ..compilation_cache import enable_compilation_cache

    jax.config.update("jax_enable_x64", True)
    enable_compilation_cache()


def jax_settings() -> dict[str, str]:
    """The settings of `configure_jax` as environment variables, for processes to be started."""
    from ..compilation_cache import settings_for_processes

    x64 = "JAX_ENABLE_X64"
    return {**settings_for_processes(), x64: os.environ.get(x64, "True")}


def quiet_argument(parser: Any) -> None:
    """Add the option --quiet to `parser`."""
    parser.add_argument(
        "--quiet", action="store_true", help="print nothing but errors and checks that fail"
    )


@contextlib.contextmanager
def progress(quiet: bool):
    """Yield a function that iterates over jobs and shows a bar on a terminal, else lines."""
    if quiet:
        yield iter
        return
    if not sys.stderr.isatty():
        yield _with_lines
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console) as bar:

        def track(jobs: Sequence[Any]):
            task = bar.add_task("", total=len(jobs))
            for job in jobs:
                bar.update(task, description=str(job))
                yield job
                bar.advance(task)

        yield track


def _with_lines(jobs: Sequence[Any]) -> Iterator[Any]:
    """Print which job begins, at most once in 10 seconds."""
    last_line = time.monotonic()
    for number, job in enumerate(jobs, start=1):
        now = time.monotonic()
        if now - last_line >= SECONDS_BETWEEN_LINES:
            last_line = now
            print(f"{number} of {len(jobs)}: {job}", file=sys.stderr, flush=True)
        yield job

"""What the commands about sweeps share: arguments, errors, progress, printed results."""

import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .terminal import SECONDS_BETWEEN_LINES, UsageError


def command(commands: Any, name: str, function: Any, words: str, description: str) -> Any:
    """Add and return the subparser of the command `name`, with the option --json."""
    parser = commands.add_parser(name, help=words, description=description)
    parser.add_argument("--json", action="store_true", help="print only JSON")
    parser.set_defaults(command=function)
    return parser


def folder_argument(parser: Any) -> None:
    """Add the argument DIR to `parser`."""
    parser.add_argument("folder", metavar="DIR", type=Path, help="a sweep's folder")


@contextlib.contextmanager
def library_errors_as_usage_errors(where: Path) -> Iterator[None]:
    """Turn errors of the library into `UsageError`s of one line; `where` is the prefix."""
    from ..config import ConfigError
    from ..sweeps.store.errors import SweepError

    try:
        yield
    except (ConfigError, BrokenPipeError):
        raise
    except SweepError as error:
        raise UsageError(str(error)) from None
    except KeyboardInterrupt:
        print("stopped: finished chunks are kept (see resume --help)", file=sys.stderr)
        raise
    except ValueError as error:
        raise UsageError(f"{where}: {' '.join(str(error).split())}") from None


@contextlib.contextmanager
def shown_progress(quiet: bool) -> Iterator[Callable[[Any], None] | None]:
    """Yield a function that shows progress: a bar on a terminal, else lines; None if `quiet`."""
    if quiet:
        yield None
        return
    if not sys.stderr.isatty():
        with _progress_lines() as lines:
            yield lines
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (BarColumn(), TextColumn("{task.percentage:3.0f}%"), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("compiling", total=None)

        def watch(progress: Any) -> None:
            bar.update(
                task,
                total=progress.total,
                completed=progress.lanes,
                description=progress_in_words(progress),
            )

        yield watch


@contextlib.contextmanager
def _progress_lines() -> Iterator[Callable[[Any], None]]:
    """Yield a function that prints progress: at most one line in 10 seconds, and the end."""
    began = time.monotonic()
    last_line, last = -math.inf, None

    def watch(progress: Any) -> None:
        nonlocal last_line, last
        now, last = time.monotonic(), progress
        if progress.lanes < progress.total and now - last_line >= SECONDS_BETWEEN_LINES:
            last_line = now
            print(progress_in_words(progress), file=sys.stderr, flush=True)

    yield watch
    if last is not None:
        took = _clock(time.monotonic() - began)
        done = f"{last.lanes:,} of {last.total:,} lanes done in {took}, {last.failed} failed"
        print(done, file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    return time.strftime("%H:%M:%S", time.gmtime(seconds))


def progress_in_words(progress: Any) -> str:
    """A `Progress` as one line of text."""
    parts = [f"{progress.lanes:,} of {progress.total:,} lanes"]
    if progress.rate > 0:
        parts.append(f"{progress.rate:,.0f}/s, {_clock(progress.seconds_left)} left")
    else:
        parts.append("compiling")
    if progress.workers > 1:
        parts.append(f"{progress.workers} workers")
    parts.append(f"{progress.failed} failed")
    return ", ".join(parts)


def print_status(path: Path, as_json: bool, wrote: bool = False, quiet: bool = False) -> int:
    """Print how many lanes are done; returns the exit code."""
    if quiet and not as_json:
        return 0
    from ..sweeps.store.status import status

    state = status(path)
    if as_json:
        facts = {**state.as_json(), **({"wrote": [str(path)]} if wrote else {})}
        print(json.dumps(facts, allow_nan=False))
        return 0
    print(state)
    if wrote:
        print(f"wrote {path}")
    return 0


def print_written(written: list[Path], as_json: bool, quiet: bool = False) -> int:
    """Print which files were written; returns the exit code."""
    if as_json:
        print(json.dumps({"wrote": [str(path) for path in written]}))
    elif not quiet:
        for path in written:
            print(f"wrote {path}")
    return 0


def print_rows(rows: list[tuple[str, str]]) -> None:
    """Print names and values in two columns."""
    for name, value in rows:
        print(f"{name:14s}{value}")

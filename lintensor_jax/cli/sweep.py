"""The commands about sweeps: `sweep`, `resume`, `status`, `plot`, `report`."""

import contextlib
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .terminal import UsageError, configure_jax

# Without a terminal, the least time between two lines of progress, in seconds.
_SECONDS_BETWEEN_LINES = 10.0
_FIGURES = (
    "the first coefficients of the limits (limit) or limit directions (direction), the other "
    "numbers that were recorded of each flow (observables) and the solver's steps (steps), where "
    "the sweep has them: medians and 80% bands over the grid's longest axis"
)


def add_commands(commands: Any) -> None:
    """Add the subparsers of the commands about sweeps."""
    _add_running(commands)
    _add_reading(commands)


def _add_running(commands):
    """`sweep` and `resume`, which compute."""
    sweep = _command(
        commands,
        "sweep",
        sweep_command,
        "run a grid of flows from a TOML file",
        "Run every flow of a grid and store the results, labelled, in a Zarr store that xarray "
        "opens (xarray.open_zarr). Killed at any moment it can be resumed.",
    )
    sweep.add_argument("config", metavar="CONFIG", type=Path, help="a TOML file")
    sweep.add_argument(
        "--out", metavar="DIR", type=Path, help="where to write (default: results/CONFIG's name)"
    )
    sweep.add_argument(
        "--dry-run",
        action="store_true",
        help="print how many lanes (single flows), compilations, memory, disk; run nothing",
    )
    _devices(sweep)
    resume = _command(
        commands,
        "resume",
        resume_command,
        "finish a sweep that was interrupted",
        "Check every finished chunk of a sweep (flows that were saved together), compute what is "
        "missing or damaged, and give the results that an uninterrupted run would have given.",
    )
    _folder(resume)
    _devices(resume)


def _add_reading(commands):
    """`status`, `plot` and `report`, which read what is stored."""
    status = _command(
        commands,
        "status",
        status_command,
        "how far a sweep is",
        "Print how many lanes of a sweep are done (a lane is one flow, from one point of the "
        "grid), how they ended, how many chunks that is (some lanes that are computed and saved "
        "together), and who is at work on it.",
    )
    _folder(status)
    plot = _command(
        commands,
        "plot",
        plot_command,
        "draw a sweep's results",
        f"Draw {_FIGURES}. Each figure is written as PNG and PDF.",
    )
    _folder(plot)
    plot.add_argument(
        "--out", metavar="FOLDER", type=Path, help="where to write (default: DIR/figures)"
    )
    report = _command(
        commands,
        "report",
        report_command,
        "one HTML page about a sweep",
        "Write one self-contained HTML page: the setup, the theorems that apply, how far limits "
        "lie from predictions, the lanes (single flows) that failed, and the figures that plot "
        f"draws: {_FIGURES}.",
    )
    _folder(report)
    report.add_argument(
        "--out",
        metavar="FILE",
        type=Path,
        help="where to write (default: DIR/report/report.html)",
    )


def _command(commands, name, function, words, description):
    parser = commands.add_parser(name, help=words, description=description)
    parser.add_argument("--json", action="store_true", help="print only JSON")
    parser.set_defaults(command=function)
    return parser


def _folder(parser):
    parser.add_argument("folder", metavar="DIR", type=Path, help="a sweep's folder")


def _devices(parser):
    parser.add_argument(
        "--devices",
        metavar="N",
        type=int,
        help="CPU devices that compute side by side (default: 1, where small networks use every "
        "core all the same; more are for large networks and for implicit methods)",
    )


def sweep_command(arguments: Any) -> int:
    """`lintensor-jax sweep CONFIG`."""
    from ..config import load
    from ..sweeps.from_toml import configuration

    load(
        arguments.config, configuration.Sweep
    )  # errors of the file are raised before JAX is started
    devices = _set_devices(arguments.devices)
    configure_jax()
    import dataclasses

    from ..sweeps.plan import Plan
    from ..sweeps.run import run

    config, grid, options = configuration.read(arguments.config)
    path = arguments.out or Path("results") / arguments.config.stem
    with library_errors_as_usage_errors(arguments.config):
        if arguments.dry_run:
            return _print_plan(Plan(grid, options).summary(devices), path, arguments.json)
        with _watched(arguments.json) as watch:
            source = arguments.config.read_text(encoding="utf-8")
            asked = {"config": dataclasses.asdict(config), "source": source}
            run(grid, options, path, watch=watch, **asked)
    return _print_status(path, arguments.json, wrote=True)


def resume_command(arguments: Any) -> int:
    """`lintensor-jax resume DIR`."""
    from ..sweeps.store.store import Store

    with library_errors_as_usage_errors(arguments.folder):
        Store(arguments.folder)  # errors of the file are raised before JAX is started
        _set_devices(arguments.devices)
        configure_jax()
        from ..sweeps.run import resume

        with _watched(arguments.json) as watch:
            resume(arguments.folder, watch=watch)
    return _print_status(arguments.folder, arguments.json, wrote=True)


def status_command(arguments: Any) -> int:
    """`lintensor-jax status DIR`."""
    with library_errors_as_usage_errors(arguments.folder):
        return _print_status(arguments.folder, arguments.json)


def plot_command(arguments: Any) -> int:
    """`lintensor-jax plot DIR`."""
    from ..sweeps.report.figures import write_figures

    with library_errors_as_usage_errors(arguments.folder):
        written = write_figures(arguments.folder, arguments.out)
    return _print_written(written, arguments.json)


def report_command(arguments: Any) -> int:
    """`lintensor-jax report DIR`."""
    configure_jax()
    from ..sweeps.report.page import write_report

    with library_errors_as_usage_errors(arguments.folder):
        written = write_report(arguments.folder, arguments.out)
    return _print_written([written], arguments.json)


def _set_devices(wanted: int | None) -> int:
    """Divide the CPU into devices, before JAX computes anything; returns their number."""
    import jax

    if wanted is not None and wanted < 1:
        raise UsageError(
            f"--devices: must be a whole number >= 1, got {wanted}; leave it out for 1."
        )
    count = wanted or 1
    given = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if not given and count > 1:
        # A backend that is initialised already, as in tests, keeps its devices.
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", count)
    return len(jax.local_devices())


@contextlib.contextmanager
def library_errors_as_usage_errors(where: Path) -> Iterator[None]:
    """Errors of the library as `UsageError`, whose message is one line; `where` is its prefix."""
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
def _watched(quiet: bool) -> Iterator[Callable[[Any], None] | None]:
    """A function that shows progress: as a bar on a terminal, else as lines."""
    if quiet:
        yield None
        return
    if not sys.stderr.isatty():
        with _progress_lines() as watch:
            yield watch
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
    """A function that prints progress for a log: at most one line in 10 seconds, and the end."""
    began = time.monotonic()
    last_line, last = -math.inf, None

    def watch(progress: Any) -> None:
        nonlocal last_line, last
        now, last = time.monotonic(), progress
        if progress.lanes < progress.total and now - last_line >= _SECONDS_BETWEEN_LINES:
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
    elif not progress.waiting:
        parts.append("compiling")
    if progress.waiting:
        parts.append(f"{progress.waiting} waiting for the stiff path")
    parts.append(f"{progress.failed} failed")
    return ", ".join(parts)


def _print_plan(plan: dict[str, Any], path: Path, as_json: bool) -> int:
    from ..sweeps.store.status import in_bytes

    existing = path
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    plan = {**plan, "folder": str(path), "free_disk_bytes": free}
    if as_json:
        print(json.dumps(plan))
        return 0
    dims = " x ".join(f"{name} {size:,}" for name, size in plan["dimensions"].items())
    _print_rows(
        [
            ("lanes", f"{plan['lanes']:,} ({dims}), a flow each"),
            (
                "chunks",
                f"{plan['chunks']:,}, saved one by one, of up to {plan['lanes_per_chunk']:,} "
                f"lanes, {plan['width']} in flight",
            ),
            (
                "compilations",
                f"{plan['compilations']} ({plan['shapes']} shapes on {plan['devices']} devices)",
            ),
            (
                "memory",
                f"about {in_bytes(plan['memory_per_device_bytes'])} a device, besides JAX itself",
            ),
            (
                "disk",
                f"arrays of at most {in_bytes(plan['disk_bytes'])} in {path}, besides labels "
                f"and the report ({in_bytes(free)} are free)",
            ),
            ("variables", ", ".join(plan["variables"])),
        ]
    )
    return 0


def _print_status(path: Path, as_json: bool, wrote: bool = False) -> int:
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


def _print_written(written: list[Path], as_json: bool) -> int:
    if as_json:
        print(json.dumps({"wrote": [str(path) for path in written]}))
    else:
        for path in written:
            print(f"wrote {path}")
    return 0


def _print_rows(rows: list[tuple[str, str]]) -> None:
    for name, value in rows:
        print(f"{name:14s}{value}")

"""The commands that read a sweep: `status`, `verify`, `plot`, `report`."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .sweep_words import (
    command,
    folder_argument,
    library_errors_as_usage_errors,
    print_status,
    print_written,
)
from .terminal import UsageError, configure_jax, quiet_argument

_FIGURES = (
    "the first coefficients of the limits (limit) or limit directions (direction), the other "
    "numbers that were recorded of each flow (observables) and the solver's steps (steps), where "
    "the sweep has them: medians and 80% bands over the grid's longest axis"
)


def add_commands(commands: Any) -> None:
    """Add the subparsers of the commands that read what is stored."""
    status = command(
        commands,
        "status",
        status_command,
        "how many flows of a sweep are done",
        "Print how many lanes of a sweep are done (a lane is one flow, from one point of the "
        "grid), how they ended, how many chunks are done (a chunk is some lanes that are computed "
        "and saved together), and which processes work on it.",
    )
    folder_argument(status)
    verify = command(
        commands,
        "verify",
        verify_command,
        "compare every file of a sweep with its checksum",
        "Compare every file of a sweep (labels, metadata, chunks, notes) with its checksum. "
        "Nothing is changed. The exit code is 0 if all files are sound, and 1 if one is not.",
    )
    folder_argument(verify)
    plot = command(
        commands,
        "plot",
        plot_command,
        "draw a sweep's results",
        f"Draw {_FIGURES}. Each figure is written as PNG and PDF.",
    )
    folder_argument(plot)
    quiet_argument(plot)
    plot.add_argument(
        "--out", metavar="FOLDER", type=Path, help="where to write (default: DIR/figures)"
    )
    report = command(
        commands,
        "report",
        report_command,
        "one HTML page about a sweep",
        "Write one self-contained HTML page: how far limits lie from predictions, the theorems "
        "that apply, the lanes (single flows) that failed, the setup, and the figures that plot "
        f"draws: {_FIGURES}.",
    )
    folder_argument(report)
    quiet_argument(report)
    report.add_argument(
        "--out",
        metavar="FILE",
        type=Path,
        help="where to write (default: DIR/report/report.html)",
    )


def status_command(arguments: Any) -> int:
    """`lintensor-jax status DIR`."""
    with library_errors_as_usage_errors(arguments.folder):
        return print_status(arguments.folder, arguments.json)


def verify_command(arguments: Any) -> int:
    """`lintensor-jax verify DIR`."""
    from ..sweeps.store.verify import verify

    with library_errors_as_usage_errors(arguments.folder):
        found = verify(arguments.folder)
    print(json.dumps(found.as_json()) if arguments.json else found)
    return 0 if found.sound else 1


@contextlib.contextmanager
def _refuse_foreign_stores(folder: Path) -> Iterator[None]:
    """Refuse a store with entries that this package does not write, by an error of one line."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise UsageError(
            f"{folder}: is not a store of this package, or is damaged ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:100]}); lintensor-jax verify says which file."
        ) from error


def plot_command(arguments: Any) -> int:
    """`lintensor-jax plot DIR`."""
    from ..sweeps.report.figures import write_figures

    with library_errors_as_usage_errors(arguments.folder), _refuse_foreign_stores(arguments.folder):
        written = write_figures(arguments.folder, arguments.out)
    return print_written(written, arguments.json, arguments.quiet)


def report_command(arguments: Any) -> int:
    """`lintensor-jax report DIR`."""
    configure_jax()
    from ..sweeps.report.page import write_report

    with library_errors_as_usage_errors(arguments.folder), _refuse_foreign_stores(arguments.folder):
        written = write_report(arguments.folder, arguments.out)
    return print_written([written], arguments.json, arguments.quiet)

"""The command `reproduce`."""

import argparse
import dataclasses
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import Any

from .. import experiments
from ..config import suggestion
from ..experiments.framework import ExperimentRun, run_experiment, run_or_keep_error
from .terminal import UsageError, configure_jax, progress, quiet_argument

_PIPE_WIDTH = 10_000
# The most experiments at once: each needs 2 GB of memory.
_MOST_JOBS = 4


def add_commands(commands: Any) -> None:
    """Add the subparser of `reproduce` to `commands`."""
    reproduce = commands.add_parser(
        "reproduce",
        help="run a paper's experiments: figures, tables and checks",
        description="Run a paper's experiments and write figures (PNG, PDF) and tables "
        '(Markdown, JSON); "all" also writes one page about all experiments (index.html). '
        "The exit code is 1 if a check fails its bound.",
        epilog=f"experiments: {', '.join(experiments.EXPERIMENTS)}",
    )
    reproduce.add_argument("name", metavar="NAME", help='an experiment, or "all"')
    reproduce.add_argument(
        "--quick", action="store_true", help="a reduced run with the same checks"
    )
    reproduce.add_argument(
        "--out", metavar="DIR", type=Path, help="where to write (default: results/NAME)"
    )
    reproduce.add_argument(
        "--jobs",
        metavar="N",
        type=int,
        help='with "all": how many experiments run at once (default: one for each core, at most 4)',
    )
    reproduce.add_argument("--json", action="store_true", help="print only JSON")
    quiet_argument(reproduce)
    reproduce.add_argument(
        "--config", metavar="FILE", type=Path, help="a TOML file instead of the paper's setup"
    )
    reproduce.set_defaults(command=_reproduce)


def _reproduce(arguments) -> int:
    names = _experiment_names(arguments.name)
    if arguments.config and arguments.name == "all":
        raise UsageError('--config belongs to one experiment: name it instead of "all".')
    if arguments.jobs is not None and arguments.jobs < 1:
        raise UsageError(f"--jobs: must be a whole number >= 1, got {arguments.jobs}.")
    configure_jax()
    if arguments.name == "all":
        return _reproduce_all(names, arguments)
    folder = _output_folder(arguments.out, arguments.name, alone=True)
    with progress(arguments.json or arguments.quiet) as track:
        done = run_experiment(
            arguments.name,
            folder,
            _command(arguments.name, arguments),
            quick=arguments.quick,
            config_file=arguments.config,
            track=track,
        )
    _print_run(done, arguments.json or arguments.quiet)
    if arguments.json:
        print(json.dumps(done.printed, allow_nan=False))
    return 0 if done.passed else 1


def _reproduce_all(names, arguments) -> int:
    """Run every experiment, also after an error in one, and write the page that shows them."""
    from ..experiments.gallery import gallery

    folder = Path("results") if arguments.out is None else arguments.out
    folders = {name: _output_folder(arguments.out, name, alone=False) for name in names}
    finished, jobs, start = [], min(_jobs(arguments.jobs), len(names)), time.perf_counter()
    silent = arguments.json or arguments.quiet
    for done in _run_all(folders, arguments, jobs):
        _print_run(done, silent)
        finished.append(done)
        if not silent:
            words = f"{len(finished)} of {len(names)}: {done.name} took {done.seconds:.0f} s"
            print(words, file=sys.stderr, flush=True)
    page = folder / "index.html"
    seconds = time.perf_counter() - start
    text = gallery(finished, _command("all", arguments), folder, seconds, jobs)
    page.write_text(text, encoding="utf-8")
    passed = all(done.passed for done in finished)
    if arguments.json:
        of_each = [done.printed for done in finished]
        printed = {"passed": passed, "page": str(page), "experiments": of_each}
        print(json.dumps(printed, allow_nan=False))
    elif not arguments.quiet:
        print(f"wrote {page}")
    return 0 if passed else 1


def _jobs(asked: int | None) -> int:
    """How many experiments run at once: `asked`, else one for each core, at most 4; 1 on a GPU."""
    import jax

    if asked is not None:
        return asked
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    return min(cores, _MOST_JOBS) if jax.default_backend() == "cpu" else 1


def _run_all(folders: dict[str, Path], arguments, jobs: int) -> Iterator[ExperimentRun]:
    """The experiments in their order, `jobs` of them at once."""
    if jobs == 1:
        for name, folder in folders.items():
            yield _run_one_of_all(name, folder, arguments)
        return
    # Processes, because compilation takes most of the time and runs in one thread.
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        arguments = argparse.Namespace(**{**vars(arguments), "command": None})
        yield from pool.map(
            _run_in_own_process, *zip(*folders.items(), strict=True), repeat(arguments)
        )


def _run_one_of_all(name: str, folder: Path, arguments) -> ExperimentRun:
    # Without progress bars: bars of two processes would write over each other.
    return run_or_keep_error(name, folder, _command(name, arguments), quick=arguments.quick)


def _run_in_own_process(name: str, folder: Path, arguments) -> ExperimentRun:
    """`_run_one_of_all` in a worker process, which formats the tables: only text can be sent."""
    configure_jax()
    done = _run_one_of_all(name, folder, arguments)
    if done.report is None:
        return done
    tables = tuple(table.written() for table in done.report.tables)
    return dataclasses.replace(done, report=dataclasses.replace(done.report, tables=tables))


def _command(name, arguments):
    return f"lintensor-jax reproduce {name}{' --quick' if arguments.quick else ''}"


def _print_run(done: ExperimentRun, silent: bool):
    """The report on stdout, unless `silent`; an error and the checks that failed on stderr."""
    if done.report is None:
        print(f"{done.name}: {done.failure.splitlines()[-1]}", file=sys.stderr)
        return
    if not silent:
        _print_report(done.report, done.printed["wrote"])
    for check in done.report.checks:
        if not check.passed:
            print(f"{done.name}: {check}", file=sys.stderr)


def _experiment_names(name):
    if name == "all":
        return list(experiments.EXPERIMENTS)
    if name not in experiments.EXPERIMENTS:
        known = [*experiments.EXPERIMENTS, "all"]
        raise UsageError(
            f'no experiment "{name}"; {suggestion(name, known)} (known: {", ".join(known)})'
        )
    return [name]


def _output_folder(out, name, alone):
    folder = Path("results") / name if out is None else out if alone else out / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out: cannot make the folder {folder} ({error.strerror}).") from None
    if not os.access(folder, os.W_OK):
        raise UsageError(f"--out: the folder {folder} is not writable; choose another.")
    return folder


def _print_report(report, written):
    from rich.console import Console
    from rich.table import Table

    # A file or a pipe has no width, so a table there is as wide as its cells need.
    console = Console(
        highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else _PIPE_WIDTH
    )
    for note in report.reduced:
        console.print(f"reduced: {note}", markup=False)
    summary = report.tables[0]
    table = Table(title=summary.title)
    for column in summary.columns:
        table.add_column(column.heading, overflow="fold")
    for cells in summary.cells():
        table.add_row(*cells)
    console.print(table, soft_wrap=False)  # soft wrapping would cut the cells
    for check in report.checks:
        console.print(str(check), markup=False)
    for path in written:
        console.print(f"wrote {path}", markup=False)

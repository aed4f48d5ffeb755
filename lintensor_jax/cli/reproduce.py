"""The command `reproduce`."""

import argparse
import dataclasses
import gc
import json
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import experiments
from ..config import load, suggestion
from ..experiments.report import REPORT_FILES
from .terminal import UsageError, configure_jax, progress

if TYPE_CHECKING:
    from ..experiments.gallery import Section

_PIPE_WIDTH = 10_000
# Experiments at once: each takes 2 GB of memory.
_MOST_JOBS = 4


def add_commands(commands: Any) -> None:
    """The subparser."""
    reproduce = commands.add_parser(
        "reproduce",
        help="run a paper's experiments: figures, tables and checks",
        description="Run a paper's experiments and write figures (PNG, PDF) and tables "
        '(Markdown, JSON); "all" writes a page of everything as well (index.html). '
        "Exit code 1 if a check fails its bound.",
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
        help='with "all": experiments at once (default: one for each core, at most 4)',
    )
    reproduce.add_argument("--json", action="store_true", help="print only JSON")
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
    section = _run(arguments.name, folder, arguments)
    _tell(section, arguments.json)
    if arguments.json:
        print(json.dumps(section.outcome, allow_nan=False))
    return 0 if section.passed else 1


def _reproduce_all(names, arguments) -> int:
    """Every experiment, whatever becomes of the others, and the page that shows them."""
    from ..experiments.gallery import gallery

    folder = Path("results") if arguments.out is None else arguments.out
    folders = {name: _output_folder(arguments.out, name, alone=False) for name in names}
    sections, jobs, start = [], min(_jobs(arguments.jobs), len(names)), time.perf_counter()
    for section in _run_all(folders, arguments, jobs):
        _tell(section, arguments.json)
        sections.append(section)
    page = folder / "index.html"
    seconds = time.perf_counter() - start
    text = gallery(sections, _command("all", arguments), folder, seconds, jobs)
    page.write_text(text, encoding="utf-8")
    passed = all(section.passed for section in sections)
    if arguments.json:
        outcomes = [section.outcome for section in sections]
        printed = {"passed": passed, "page": str(page), "experiments": outcomes}
        print(json.dumps(printed, allow_nan=False))
    else:
        print(f"wrote {page}")
    return 0 if passed else 1


def _jobs(asked: int | None) -> int:
    """How many experiments at once: several where there are cores, and no GPU to share."""
    import jax

    if asked is not None:
        return asked
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    return min(cores, _MOST_JOBS) if jax.default_backend() == "cpu" else 1


def _run_all(folders: dict[str, Path], arguments, jobs: int) -> Iterator["Section"]:
    """The sections, in their order."""
    if jobs == 1:
        for name, folder in folders.items():
            yield _run_whatever(name, folder, arguments)
        return
    # Processes: compilation, which takes most of the time, keeps one thread busy.
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        arguments = argparse.Namespace(**{**vars(arguments), "command": None})
        yield from pool.map(_run_apart, *zip(*folders.items(), strict=True), repeat(arguments))


def _run_apart(name, folder, arguments):
    """In a process of its own: what comes back can be sent."""
    configure_jax()
    section = _run_whatever(name, folder, arguments)
    if section.report is None:
        return section
    tables = tuple(table.written() for table in section.report.tables)
    return dataclasses.replace(section, report=dataclasses.replace(section.report, tables=tables))


def _run_whatever(name, folder, arguments):
    """Run one experiment; an error is a section too."""
    import jax

    from ..experiments.gallery import Section

    start = time.perf_counter()
    try:
        section = _run(name, folder, arguments)
    except Exception:
        seconds, failure = time.perf_counter() - start, traceback.format_exc()
        outcome = {"experiment": name, "passed": False, "error": failure}
        command = _command(name, arguments)
        section = Section(name, command, seconds, failure=failure, outcome=outcome)
    # Thousands of compiled programs in one process exhaust its memory maps.
    jax.clear_caches()
    gc.collect()
    return section


def _command(name, arguments):
    return f"lintensor-jax reproduce {name}{' --quick' if arguments.quick else ''}"


def _run(name, folder, arguments):
    """Run one experiment, write its files and print what it found; a `Section` of the gallery."""
    from ..experiments.gallery import Picture, Section
    from ..figures.style import save

    start = time.perf_counter()
    module = experiments.find(name)
    config = (
        load(arguments.config, module.Configuration) if arguments.config else module.Configuration()
    )
    reduced = ()
    if arguments.quick:
        config, reduced = module.reduce(config)
    try:
        # Bars of two processes would write over each other.
        with progress() if arguments.name != "all" else nullcontext(iter) as track:
            result = module.run(config, reduced, track)
    except ValueError as error:
        if not arguments.config:
            raise
        # The library's refusals name the argument, the rule, the value and the fix.
        raise UsageError(f"{arguments.config}: {' '.join(str(error).split())}") from None
    report = result.report()
    report.write(folder)
    pictures = []
    for stem, figure in result.figures().items():
        began = time.perf_counter()
        paths = save(figure, folder / stem)
        pictures.append(Picture(stem, *paths, seconds=time.perf_counter() - began))
    seconds = time.perf_counter() - start
    written = [folder / name for name in REPORT_FILES]
    written += [path for shown in pictures for path in (shown.png, shown.pdf)]
    outcome = {**report.as_json(), "wrote": [str(path) for path in written]}
    return Section(
        name, _command(name, arguments), seconds, report, tuple(pictures), outcome=outcome
    )


def _tell(section, as_json):
    """Print what an experiment found; what went wrong, on stderr."""
    if section.failure:
        print(f"{section.name}: {section.failure.splitlines()[-1]}", file=sys.stderr)
        return
    if not as_json:
        _print_report(section.report, section.outcome["wrote"])
    for check in section.report.checks:
        if not check.passed:
            print(f"{section.name}: {check}", file=sys.stderr)


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

    # A file or a pipe has no width of its own: there a table is as wide as it needs to be.
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
    console.print(table, soft_wrap=False)  # which would cut the cells
    for check in report.checks:
        console.print(str(check), markup=False)
    for path in written:
        console.print(f"wrote {path}", markup=False)

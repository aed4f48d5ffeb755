"""The command `reproduce`."""

import json
import os
import sys
from pathlib import Path
from typing import Any

from .. import experiments
from ..config import load, suggestion
from .terminal import UsageError, configure_jax, progress

_PIPE_WIDTH = 120


def add_commands(commands: Any) -> None:
    """The subparser."""
    reproduce = commands.add_parser(
        "reproduce",
        help="run a paper's experiments: figures, tables and checks",
        description="Run a paper's experiments and write figures (PNG, PDF) and tables "
        "(Markdown, JSON). Exit code 1 if a check fails its bound.",
        epilog=f"experiments: {', '.join(experiments.EXPERIMENTS)}",
    )
    reproduce.add_argument("name", metavar="NAME", help='an experiment, or "all"')
    reproduce.add_argument(
        "--quick", action="store_true", help="a reduced run with the same checks"
    )
    reproduce.add_argument(
        "--out", metavar="DIR", type=Path, help="where to write (default: results/NAME)"
    )
    reproduce.add_argument("--json", action="store_true", help="print only JSON")
    reproduce.add_argument(
        "--config", metavar="FILE", type=Path, help="a TOML file instead of the paper's setup"
    )
    reproduce.set_defaults(command=_reproduce)


def _reproduce(arguments) -> int:
    names = _experiment_names(arguments.name)
    if arguments.config and len(names) > 1:
        raise UsageError('--config belongs to one experiment: name it instead of "all".')
    from ..figures.style import save

    configure_jax()
    outcomes = []
    for name in names:
        module = experiments.find(name)
        config = (
            load(arguments.config, module.Configuration)
            if arguments.config
            else module.Configuration()
        )
        folder = _output_folder(arguments.out, name, alone=arguments.name != "all")
        reduced = ()
        if arguments.quick:
            config, reduced = module.reduce(config)
        try:
            with progress() as track:
                result = module.run(config, reduced, track)
        except ValueError as error:
            if not arguments.config:
                raise
            # The library's refusals name the argument, the rule, the value and the fix.
            raise UsageError(f"{arguments.config}: {' '.join(str(error).split())}") from None
        report = result.report()
        written = report.write(folder)
        for stem, figure in result.figures().items():
            written += save(figure, folder / stem)
        outcomes.append({**report.as_json(), "wrote": [str(path) for path in written]})
        if not arguments.json:
            _print_report(report, written)
        for check in report.checks:
            if not check.passed:
                print(f"{name}: {check}", file=sys.stderr)
    if arguments.json:
        print(json.dumps(outcomes[0] if arguments.name != "all" else outcomes, allow_nan=False))
    return 0 if all(outcome["passed"] for outcome in outcomes) else 1


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

    # A file or a pipe has no width of its own; a table cut to 80 columns is of no use there.
    console = Console(
        highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else _PIPE_WIDTH
    )
    for note in report.reduced:
        console.print(f"reduced: {note}", markup=False)
    summary = report.tables[0]
    table = Table(title=summary.title)
    for column in summary.columns:
        table.add_column(column.heading)
    for cells in summary.cells():
        table.add_row(*cells)
    console.print(table)
    for check in report.checks:
        console.print(str(check), markup=False)
    for path in written:
        console.print(f"wrote {path}", markup=False)

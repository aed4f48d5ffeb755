"""The program `lintensor-jax`.

Exit codes: 0 done, 1 a check failed its bound, 2 a mistake in the arguments, the configuration or
the files, 130 interrupted, 143 terminated, 141 the reader of the output has closed it.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from .._version import __version__
from ..config import ConfigError, suggestion
from . import completion, init, predict, reproduce, sweep, sweep_results
from .terminal import Terminated, UsageError, termination_as_interrupt


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Check as argparse does, with a suggestion for a word that is not known."""
        if action.choices is not None and value not in action.choices:
            what = "COMMAND" if action.dest == argparse.SUPPRESS else None
            name = what or "/".join(action.option_strings) or str(action.metavar)
            self.error(f'{name}: no "{value}"; {suggestion(value, map(str, action.choices))}')


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    try:
        try:
            return _run(argv)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # The reader has closed the pipe, as in `| head -1`. The flush at exit must not raise again.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13  # the exit code of a program that SIGPIPE ended


def _run(argv):
    try:
        arguments = _parser().parse_args(argv)
        with termination_as_interrupt():
            return arguments.command(arguments)
    except BrokenPipeError:
        raise
    except (UsageError, ConfigError, OSError) as error:
        print(_in_one_line(error), file=sys.stderr)
        return 2
    except Terminated:
        print("terminated", file=sys.stderr)
        return 128 + 15
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 128 + 2


def _in_one_line(error):
    message = str(error)
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        message = f"{where}{(error.strerror or message).lower()}; check the path, its permissions "
        message += "and the space left."
    return f"error: {' '.join(message.split())}"


def _parser():
    parser = _Parser(
        prog="lintensor-jax",
        description="A gradient-flow laboratory for linear tensor networks.",
    )
    parser.add_argument("--version", action="version", version=f"lintensor-jax {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in (init, predict, sweep, sweep_results, reproduce):
        module.add_commands(commands)
    completion.add_commands(commands, parser)
    return parser

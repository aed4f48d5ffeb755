"""The program `lintensor-jax`.

Exit codes: 0 done, 1 a check failed its bound, 2 a mistake in the arguments or the configuration.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from .._version import __version__
from ..config import ConfigError
from . import reproduce, sweep
from .terminal import UsageError


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    try:
        arguments = _parser().parse_args(argv)
        return arguments.command(arguments)
    except (UsageError, ConfigError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _parser():
    parser = _Parser(
        prog="lintensor-jax",
        description="A gradient-flow laboratory for linear tensor networks.",
    )
    parser.add_argument("--version", action="version", version=f"lintensor-jax {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in (reproduce, sweep):
        module.add_commands(commands)
    return parser

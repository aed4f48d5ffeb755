"""The command `completion`: a script that lets a shell complete commands, options and words."""

import argparse
from typing import Any

#: Shells that shtab writes scripts for.
SHELLS = ("bash", "zsh", "tcsh", "fish")


def add_commands(commands: Any, program: argparse.ArgumentParser) -> None:
    """Add the subparser of `completion`, about the parser `program`, to `commands`."""
    completion = commands.add_parser(
        "completion",
        help="a script for your shell that completes commands and options",
        description="Print a script that lets a shell complete commands and options. For bash: "
        "write it to a file (lintensor-jax completion bash > ~/.lintensor-jax.bash), and put "
        "`source ~/.lintensor-jax.bash` into ~/.bashrc.",
    )
    completion.add_argument("shell", metavar="SHELL", choices=SHELLS, help=", ".join(SHELLS))

    def print_script(arguments: argparse.Namespace) -> int:
        import shtab

        print(shtab.complete(program, arguments.shell))
        return 0

    completion.set_defaults(command=print_script)

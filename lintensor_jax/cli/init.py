"""The command `init`: a first configuration to edit."""

import json
from importlib import resources
from pathlib import Path
from typing import Any

from .terminal import UsageError

#: The kinds of starters. Each is a TOML file in the folder `starters`.
KINDS = ("regression", "classification", "random-data", "multiclass", "completion")


def add_commands(commands: Any) -> None:
    """Add the subparser of `init` to `commands`."""
    init = commands.add_parser(
        "init",
        help="write a commented starter configuration for a sweep",
        description="Write a sweep configuration with comments, to be edited. Without changes it "
        "runs in seconds.",
    )
    init.add_argument(
        "file",
        metavar="FILE",
        nargs="?",
        type=Path,
        default=Path("sweep.toml"),
        help="where to write (default: sweep.toml)",
    )
    init.add_argument(
        "--kind", choices=KINDS, default=KINDS[0], help=f"the kind of problem (default: {KINDS[0]})"
    )
    init.add_argument("--force", action="store_true", help="overwrite FILE if it exists")
    init.add_argument("--json", action="store_true", help="print only JSON")
    init.set_defaults(command=init_command)


def init_command(arguments: Any) -> int:
    """`lintensor-jax init [FILE]`."""
    path = arguments.file
    if path.suffix.lower() != ".toml":
        example = path.with_suffix(".toml") if path.name else path / "sweep.toml"
        raise UsageError(f"FILE: must end in .toml, got {path}; write {example}.")
    if path.exists() and not arguments.force:
        raise UsageError(
            f"{path}: exists already; pass --force to overwrite it, or name another FILE."
        )
    starter = resources.files("lintensor_jax.cli").joinpath("starters", f"{arguments.kind}.toml")
    try:
        path.write_text(starter.read_text(encoding="utf-8"), encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"{path}: cannot be written ({error.strerror}); choose another FILE."
        ) from None
    steps = (
        (f"predict {path}", "the limits that theory predicts"),
        (f"sweep {path} --dry-run", "the size of the sweep"),
        (f"sweep {path}", "run it"),
        (f"report results/{path.stem}", "one HTML page about it"),
    )
    commands = [f"lintensor-jax {step}" for step, _ in steps]
    if arguments.json:
        print(json.dumps({"wrote": [str(path)], "next": commands}))
        return 0
    print(f"wrote {path}; edit it if you like, then:")
    width = max(map(len, commands))
    for command, (_, words) in zip(commands, steps, strict=True):
        print(f"  {command:{width}s}  # {words}")
    return 0

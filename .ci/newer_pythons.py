"""Lists the Pythons of this machine that pyproject.toml names and that are newer than this one.

Prints one line for each version, the newest first: VERSION, a tab, the path of its interpreter.
"""

import glob
import re
import subprocess
import sys
from pathlib import Path

# This program runs in the candidate. It rejects builds without the GIL, which have the same version
# number, and builds without venv or ensurepip, which cannot make the environment of the tests.
PROBE = """
import ensurepip, sys, sysconfig, venv
if sysconfig.get_config_var("Py_GIL_DISABLED") or sys.implementation.name != "cpython":
    sys.exit(1)
print(*sys.version_info[:2])
"""


def declared(project: str) -> list[tuple[int, int]]:
    """Versions in the classifiers of a pyproject.toml."""
    found = re.findall(r"Programming Language :: Python :: (\d+)\.(\d+)", project)
    return sorted((int(major), int(minor)) for major, minor in found)


def version_of(interpreter: str) -> tuple[int, int] | None:
    """The interpreter's version; None if it does not run, as some shims of pyenv do not."""
    try:
        answer = subprocess.run(
            [interpreter, "-c", PROBE], capture_output=True, text=True, timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    major, minor = answer.stdout.split()
    return int(major), int(minor)


def main() -> None:
    """Print one line for each newer version."""
    versions = declared(Path("pyproject.toml").read_text(encoding="utf-8"))
    newer = [version for version in versions if version > sys.version_info[:2]]
    candidates = [f"python{major}.{minor}" for major, minor in newer]
    candidates += sorted(glob.glob(str(Path.home() / ".pyenv/versions/3.*/bin/python")))
    found: dict[tuple[int, int], str] = {}
    for candidate in candidates:
        version = version_of(candidate)
        if version in newer:
            found.setdefault(version, candidate)
    for (major, minor), interpreter in sorted(found.items(), reverse=True):
        print(f"{major}.{minor}\t{interpreter}")


if __name__ == "__main__":
    main()

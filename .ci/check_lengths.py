"""Checks lengths: files have at most 400 lines, functions at most 60 without their docstring.

    python .ci/check_lengths.py          # every Python file of the repository's folders
    python .ci/check_lengths.py FILE...  # these files

Prints PATH:LINE: MESSAGE for each file or function that is too long. The exit code is 1 if there is
one.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

FOLDERS = ("lintensor_jax", "tests", "benchmarks", "notebooks", ".ci")
MOST_LINES_OF_A_FILE = 400
MOST_LINES_OF_A_FUNCTION = 60


def lines_without_docstring(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """The number of lines from `def` to the last statement, without decorators and docstring."""
    lines = _lines(function)
    first = function.body[0]
    if ast.get_docstring(function, clean=False) is not None:
        lines -= _lines(first)
    return lines


def offenders(path: Path) -> Iterator[str]:
    """One message for the file if it is too long, and one for each function that is."""
    source = path.read_text(encoding="utf-8")
    count = len(source.splitlines())
    if count > MOST_LINES_OF_A_FILE:
        yield f"{path}:1: the file has {count} lines, more than {MOST_LINES_OF_A_FILE}"
    for node in ast.walk(ast.parse(source, str(path))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            count = lines_without_docstring(node)
            if count > MOST_LINES_OF_A_FUNCTION:
                yield (
                    f"{path}:{node.lineno}: `{node.name}` has {count} lines without its "
                    f"docstring, more than {MOST_LINES_OF_A_FUNCTION}"
                )


def main(arguments: list[str]) -> int:
    """Print all messages; returns 1 if a file or a function is too long, else 0."""
    paths = [Path(argument) for argument in arguments]
    if not paths:
        paths = [path for folder in FOLDERS for path in sorted(Path(folder).rglob("*.py"))]
    if not paths:
        print("no Python files found: run this in the root of the repository")
        return 1
    messages = [message for path in paths for message in offenders(path)]
    print("\n".join([*messages, f"{len(paths)} files, {len(messages)} lengths above the limit"]))
    return int(bool(messages))


def _lines(node: ast.stmt) -> int:
    assert node.end_lineno is not None  # ast.parse gives it to every statement
    return node.end_lineno - node.lineno + 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Every user-facing error names the mistake, is one line at the command line, and has a test."""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from error_cases import CASES as OF_FLOWS
from error_cases_theory import THEORY

import lintensor_jax as lt
from lintensor_jax import cli
from lintensor_jax.cli import init

CASES = {**OF_FLOWS, **THEORY}
TESTS = Path(__file__).parent
PACKAGE = Path(lt.__file__).parent
# A line has the module, the function, the number of its `raise` statements, and the test that
# provokes them or, after a dash, why no test does.
ELSEWHERE = TESTS / "error_sites.txt"
SWEEP = "[data]\nX = [[1.0, 2.0]]\ny = [1.0]\n"


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_is_named_with_argument_rule_value_and_fix(case):
    call, kind, words = CASES[case]
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    for word in words:
        assert word in message, message


def _data(folder, name, text, task="regression"):
    (folder / name).write_text(text)
    return f'[data]\ntask = "{task}"\npath = "{name}"\n'


# The arguments, with {f} for a folder of the test; the file {f}/c.toml; words of the message.
COMMANDS = {
    "no command": ("", None, ["COMMAND", "--help"]),
    "unknown command": ("predct {f}/c.toml", SWEEP, ["predct", "predict"]),
    "unknown option": ("predict {f}/c.toml --fast", SWEEP, ["--fast", "--help"]),
    "no config": ("predict", None, ["CONFIG"]),
    "unknown kind": ("init {f}/a.toml --kind regresion", None, ["--kind", "regresion", "regress"]),
    "wrong ending": ("init {f}/sweep.txt", None, ["must end in .toml", "sweep.txt", "sweep.toml"]),
    "no name": ("init .", None, ["must end in .toml", "write sweep.toml"]),
    "the root": ("init /", None, ["must end in .toml", "write /sweep.toml"]),
    "there already": ("init {f}/c.toml", SWEEP, ["c.toml: exists already", "--force"]),
    "no folder": ("init {f}/a/b.toml", None, ["a/b.toml: cannot be written", "another FILE"]),
    "no file": ("predict {f}/absent.toml", None, ["absent.toml: no such file", "check the path"]),
    "a folder": ("predict {f}", None, ["is a folder", "name a TOML file"]),
    "wrong TOML": ("predict {f}/c.toml", "seed = = 1", ["c.toml: is not valid TOML", "line 1"]),
    "unknown key": ("predict {f}/c.toml", "[start]\nalpha = 1", ["start.alpha", "known key"]),
    "no data": ("predict {f}/c.toml", "seed = 1", ["data must be given", "[data]"]),
    "bad rule": (
        "sweep {f}/c.toml --dry-run",
        SWEEP + "[start]\nnum_alphas = 0\n",
        ["start.num_alphas", ">= 1", "got 0", "default"],
    ),
    "labels": (
        "predict {f}/c.toml",
        SWEEP.replace("[data]", '[data]\ntask = "classification"').replace("[1.0]\n", "[2.0]\n"),
        ["c.toml: data.X", "labels -1 or +1", "got [2.0]"],
    ),
    "no data file": (
        "predict {f}/c.toml",
        '[data]\npath = "a.csv"\n',
        ["data.path", "no such file", "relative"],
    ),
    "what only the library knows": (
        "sweep {f}/c.toml --dry-run",
        SWEEP + "[flow]\nrtol = 1e-20\n",
        ["c.toml: rtol:", "got 1e-20"],
    ),
    "the library, on reading": (
        "predict {f}/c.toml",
        SWEEP + "[flow]\nmargin = 1e8\n[record]\ntrajectory_times = [2.0, 1.0]\n",
        ["c.toml:", "Trajectory: times", "sort them"],
    ),
    "a file for a folder": (
        "sweep {f}/c.toml --out {f}/c.toml/out",
        SWEEP,
        ["c.toml/out", "choose a folder"],
    ),
    "devices": ("sweep {f}/c.toml --devices 0", SWEEP, ["--devices", ">= 1", "got 0", "leave"]),
    "too many devices": (
        "sweep {f}/c.toml --devices 99999",
        SWEEP,
        ["--devices", "at most", "got 99999", "cores"],
    ),
    "no sweep": ("status {f}", None, ["holds no sweep", "check the path"]),
    "no sweep to resume": ("resume {f}/absent", None, ["holds no sweep"]),
    "no sweep to draw": ("plot {f}", None, ["holds no sweep"]),
    "no sweep to report": ("report {f}", None, ["holds no sweep"]),
    "unknown experiment": ("reproduce yun2012", None, ["yun2012", 'did you mean "yun2021"?']),
    "no jobs": ("reproduce all --jobs 0", None, ["--jobs", ">= 1", "got 0"]),
    "config for all": ("reproduce all --config {f}/c.toml", SWEEP, ["--config", "one experiment"]),
    "out is a file": (
        "reproduce yun2021 --out {f}/c.toml",
        SWEEP,
        ["--out: cannot make the folder", "c.toml"],
    ),
}


@pytest.mark.parametrize("case", COMMANDS)
def test_a_mistake_at_the_command_line_is_one_line(case, tmp_path, capsys):
    command, config, words = COMMANDS[case]
    if config is not None:
        (tmp_path / "c.toml").write_text(config)
    before = sorted(tmp_path.rglob("*"))
    assert cli.main([part.format(f=tmp_path) for part in command.split()]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    for word in words:
        assert word in err, err
    assert sorted(tmp_path.rglob("*")) == before


DATA_FILES = [
    ("data.txt", "1,2\n", ["must end in .npz or .csv", "'data.txt'", "convert"]),
    ("data.csv", "", ["at least one number and a target", "got none"]),
    ("data.csv", "1,2\n3,four\n", ["a finite number in every cell", "row 2, column 2", "remove"]),
    ("data.npz", "no archive", ["cannot be read", "data.npz"]),
]


@pytest.mark.parametrize(("name", "text", "words"), DATA_FILES)
def test_bad_data_files_are_named(name, text, words, tmp_path, capsys):
    (tmp_path / "c.toml").write_text(_data(tmp_path, name, text))
    assert cli.main(["predict", str(tmp_path / "c.toml")]) == 2
    err = capsys.readouterr().err
    assert f"error: {tmp_path / 'c.toml'}: data.path" in err
    assert err.count("\n") == 1
    for word in words:
        assert word in err, err


def test_an_interrupt_is_exit_code_130(monkeypatch, tmp_path, capsys):
    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(init, "init_command", interrupted)
    assert cli.main(["init", str(tmp_path / "a.toml")]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_full_disk_is_one_line(monkeypatch, tmp_path, capsys):
    def full(arguments):
        raise OSError(28, "No space left on device", "results/x")

    monkeypatch.setattr(init, "init_command", full)
    assert cli.main(["init", str(tmp_path / "a.toml")]) == 2
    assert capsys.readouterr().err.startswith("error: results/x: no space left on device; check")


@pytest.mark.slow_beyond(1)
@pytest.mark.parametrize("arguments", ["--help", "init --json --force {f}/a.toml"])
def test_a_closed_pipe_is_silent(arguments, tmp_path):
    command = [sys.executable, "-m", "lintensor_jax", *arguments.format(f=tmp_path).split()]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    with process.stderr as stderr:
        assert stderr.read() == b""
    # If Python does not buffer, argparse itself hides that the pipe is closed.
    assert process.wait() in ((0, 141) if arguments == "--help" else (141,))


@cache
def _sites():
    """{(module, function): the lines of its `raise SomeError(...)`} of the whole package."""
    found: dict[tuple[str, str], list[range]] = {}

    def visit(node, module, names):
        for child in ast.iter_child_nodes(node):
            inner = names
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                inner = (*names, child.name)
            elif isinstance(child, ast.Raise) and isinstance(child.exc, ast.Call):
                lines = range(child.lineno, (child.end_lineno or child.lineno) + 1)
                found.setdefault((module, ".".join(names) or "module"), []).append(lines)
            visit(child, module, inner)

    for path in sorted(PACKAGE.rglob("*.py")):
        visit(ast.parse(path.read_text()), path.relative_to(PACKAGE).as_posix(), ())
    return found


def _lines_of(error):
    """(module, line) at which each exception of a chain was raised, if it is in the package."""
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        places = []
        place = error.__traceback__
        while place is not None:
            path = Path(place.tb_frame.f_code.co_filename)
            if path.is_relative_to(PACKAGE):
                places.append((path.relative_to(PACKAGE).as_posix(), place.tb_lineno))
            place = place.tb_next
        yield from places[-1:]
        error = error.__cause__ or error.__context__


def _listed():
    rows = [line.split(maxsplit=3) for line in ELSEWHERE.read_text().splitlines()]
    return {(row[0], row[1]): (int(row[2]), row[3]) for row in rows if row and row[0] != "#"}


def _provoked(tmp_path):
    """The lines at which the mistakes of this file's tables are raised."""
    lines = set()
    for call, kind, _ in CASES.values():
        try:
            call()
        except kind as error:
            lines.update(_lines_of(error))
    with pytest.MonkeyPatch.context() as patch:
        # `main` catches the errors that it prints as one line, so they are recorded here.
        inner = cli.main.__globals__["_in_one_line"]
        patch.setitem(
            cli.main.__globals__,
            "_in_one_line",
            lambda error: (lines.update(_lines_of(error)), inner(error))[1],
        )
        for command, config, _ in COMMANDS.values():
            (tmp_path / "c.toml").unlink(missing_ok=True)
            if config is not None:
                (tmp_path / "c.toml").write_text(config)
            cli.main([part.format(f=tmp_path) for part in command.split()])
        for name, text, _ in DATA_FILES:
            (tmp_path / "c.toml").write_text(_data(tmp_path, name, text))
            cli.main(["predict", str(tmp_path / "c.toml")])
    return lines


def test_no_error_is_without_a_test(tmp_path):
    lines = _provoked(tmp_path)
    listed = _listed()
    missing, idle = {}, []
    for key, sites in _sites().items():
        untested = [site for site in sites if not any(m == key[0] and k in site for m, k in lines)]
        count, _ = listed.get(key, (0, ""))
        if len(untested) > count:
            missing[key] = [site.start for site in untested]
        elif len(untested) < count:
            idle.append(key)
    assert not missing, "provoke these in CASES or COMMANDS, or name their test in error_sites.txt"
    assert not idle, "these are provoked here: lower their number in error_sites.txt"
    assert set(listed) <= set(_sites()), "functions that no longer raise"


def test_the_tests_that_the_list_names_expect_errors():
    for (module, function), (_, where) in _listed().items():
        if where.startswith("- "):
            assert len(where) > 12, f"{module} {function}: say why"
            continue
        text = (TESTS / where.split()[0]).read_text()
        assert re.search(r"pytest\.raises|_error\(|refused\(|== 2\b", text), (module, where)

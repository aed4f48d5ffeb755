"""The documentation: every name, test, command and link in it exists, and its programs run."""

import ast
import builtins
import dataclasses
import functools
import importlib
import importlib.util
import pathlib
import re
import shlex
import subprocess
import sys
import types

import matplotlib.pyplot as plt
import pytest

import lintensor_jax as lt
from lintensor_jax.sweeps.from_toml.configuration import Sweep

CLI = importlib.import_module("lintensor_jax.cli.main")
ROOT = pathlib.Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = {str(path.relative_to(DOCS)): path.read_text() for path in sorted(DOCS.rglob("*.md"))}
STATEMENTS = {"A": 11, "B": 6, "C": 4, "D": 5, "E": 4, "F": 7, "G": 11}
ROWS = [
    [cell.strip() for cell in line.strip("|\n").split("|")]
    for line in PAGES["theory.md"].splitlines()
    if re.match(r"\| [A-G]\d", line)
]
CODE = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)


def code_spans(text):
    return re.findall(r"`([^`\n]+)`", CODE.sub("", text))


@functools.cache
def names_of_tests(file):
    tree = ast.parse((ROOT / "tests" / file).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def resolve(name):
    """A module of the package, or an attribute of one, by its dotted name."""
    target = importlib.import_module("lintensor_jax")
    for part in name.split("."):
        if not hasattr(target, part):
            importlib.import_module(f"{target.__name__}.{part}")
        target = getattr(target, part)
    return target


def test_every_statement_has_a_row():
    found = {row[0] for row in ROWS if row[0][0] in STATEMENTS}
    assert found == {f"{letter}{i + 1}" for letter, n in STATEMENTS.items() for i in range(n)}
    assert {len(row) for row in ROWS} == {5}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]}: {row[1][:30]}")
def test_what_a_row_names_exists(row):
    _, _, where, tests, agreement = row
    if where == "–":
        assert tests == "–"
        assert "not implemented" in agreement
        return
    places = [name for name in code_spans(where) if not name.startswith("lintensor-jax")]
    assert places
    for name in places:
        resolve(name)
    named = code_spans(tests)
    assert named
    for name in named:
        file, test = name.split("::")
        assert test in names_of_tests(file)


def test_every_test_and_file_named_anywhere_exists():
    text = "\n".join(PAGES.values())
    pairs = re.findall(r"(?:tests/)?\b((?:\w+/)*test_\w+\.py)::(test_\w+)", text)
    assert len(pairs) > 50
    missing = [pair for pair in pairs if pair[1] not in names_of_tests(pair[0])]
    files = re.findall(r"\b((?:benchmarks|configs|notebooks)/[\w.-]+\.(?:py|toml|ipynb))", text)
    assert not missing
    assert [name for name in files if not (ROOT / name).exists()] == []


def test_names_of_the_package_exist():
    """Checks `lt.name` in running text and ::: in the reference; another test runs programs."""
    for page, text in PAGES.items():
        named = [
            match[1] for span in code_spans(text) if (match := re.match(r"lt\.([\w.]*\w)", span))
        ]
        for name in named + re.findall(r"^::: lintensor_jax\.([\w.]+)", text, re.MULTILINE):
            assert resolve(name) is not None, page


def test_the_reference_has_every_public_name_once():
    pages = "\n".join(text for page, text in PAGES.items() if page.startswith("api/"))
    named = re.findall(r"^::: lintensor_jax\.([\w.]+)", pages, re.MULTILINE)
    package = importlib.import_module("lintensor_jax")
    public = [
        name
        for name, value in vars(package).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    ]
    assert sorted(set(public) - set(named)) == []
    assert sorted({name for name in named if named.count(name) > 1}) == []


def test_files_and_folders_named_by_the_architecture_exist():
    """`name.py` or `folder/` is a path relative to any folder of the package."""
    package = ROOT / "lintensor_jax"
    files = [f"/{path.relative_to(package)}" for path in package.rglob("*.py")]
    folders = {f"{file.rpartition('/')[0]}/" for file in files}
    pages = [page for page in PAGES if page == "architecture.md" or page.startswith("decisions/")]
    spans = [span for page in pages for span in code_spans(PAGES[page])]
    named = [span for span in spans if re.fullmatch(r"[\w/]+(\.py|/)", span)]
    assert len(named) > 50
    there = (*files, *folders)
    assert [name for name in named if not any(path.endswith(f"/{name}") for path in there)] == []


def commands():
    for page, text in PAGES.items():
        lines = code_spans(text)
        for language, block in CODE.findall(text):
            lines += block.splitlines() if language == "sh" else []
        for line in lines:
            if line.startswith("lintensor-jax "):
                yield pytest.param(line, id=f"{page}: {line}")


@pytest.mark.parametrize("line", list(commands()))
def test_commands_parse(line):
    words = shlex.split(line, comments=True)[1:]
    arguments = CLI._parser().parse_args([word.strip("[]") for word in words])
    assert callable(arguments.command)


@pytest.mark.parametrize("page", PAGES)
def test_relative_links_resolve(page):
    made = made_pages().PAGES
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        if not re.match(r"https?:|#", target):
            path = ((DOCS / page).parent / target.split("#")[0]).resolve()
            assert path.exists() or path.relative_to(DOCS).as_posix() in made, target


@functools.cache
def made_pages():
    """The module that generates pages: no file under docs/ contains them."""
    spec = importlib.util.spec_from_file_location("site_pages", DOCS / "site_pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_menu_lists_every_page():
    menu = re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    notebooks = [f"notebooks/{path.stem}.md" for path in made_pages().notebooks()]
    assert sorted(menu) == sorted([*PAGES, *made_pages().PAGES, *notebooks])


def test_the_page_on_the_command_line_has_every_command_and_argument():
    page = made_pages().command_line()
    for name, command in made_pages()._commands(CLI._parser()).items():
        section = page.split(f"\n## {name}\n")[1].split("\n## ")[0]
        for action in command._actions:
            assert action.help, (name, action.dest)
            for word in action.option_strings or [str(action.metavar)]:
                assert f"`{word}" in section, (name, word)


def test_the_page_on_the_file_of_a_sweep_has_a_sentence_for_every_key():
    page = made_pages().sweep_file()
    assert page.count("\n## [") == 5
    tables = [field.metadata.get("table") for field in dataclasses.fields(Sweep)]
    for kind in [Sweep, *filter(None, tables)]:
        for field in dataclasses.fields(kind):
            if "rule" in field.metadata:
                assert re.fullmatch(r"[A-Z].+\.", field.metadata["words"]), field.name
                assert f"| `{field.name}` | {field.metadata['words']} |" in page, field.name


@pytest.mark.slow  # compilations of a dozen flows
@pytest.mark.parametrize("page", [p for p, text in PAGES.items() if "```python" in text])
def test_programs_run(page, tmp_path, monkeypatch):
    """A program of a page continues the one before; programs of the errata are independent.

    The programs of a guide draw the figure that its page shows.
    """
    monkeypatch.chdir(tmp_path)
    scope = {}
    for language, block in CODE.findall(PAGES[page]):
        if language == "python":
            scope = {} if page == "errata.md" else scope
            exec(compile(block, page, "exec"), scope)
    plt.close("all")
    shown = re.findall(r"figures/guides/(\w+\.png)", PAGES[page])
    if page.startswith("guides/"):
        assert sorted(path.name for path in tmp_path.glob("*.png")) == shown


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    pytest.importorskip("material")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) >= len(PAGES)
    for page in pages:  # pages can be read offline: they load nothing from other places
        loaded = r"<(?:script|img|link rel=.stylesheet.)[^>]*(?:src|href)=.(?:https?:)?//"
        assert not re.search(loaded, page.read_text()), page.name

    reference = "".join(page.read_text() for page in pages if page.parent.name == "api")
    # A module with the name of its function would replace the function in the reference.
    assert "doc-symbol-heading doc-symbol-module" not in reference
    cells = (tmp_path / "theory.html").read_text().count('<td data-label="Agreement">')
    assert cells == len(ROWS)  # on narrow screens each cell of a row needs its heading

    unlinked = set(re.findall(r'<span title="([\w.]+)">', reference))
    public = {name for area in (lt, lt.theory, lt.sweeps) for name in vars(area)}
    ours = {name for name in unlinked if name.startswith("lintensor_jax.")}
    assert not {name for name in ours if name.rpartition(".")[2] in public}
    assert all(hasattr(builtins, name) for name in unlinked - ours - {"math.inf"})

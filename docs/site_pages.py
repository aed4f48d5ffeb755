"""Pages of the site that come from elsewhere: references from the code, notebooks, changelog.

MkDocs runs `on_files` before it builds the site (`hooks` in mkdocs.yml). The notebooks are shown
with the outputs that are committed; nothing is run.
"""

import argparse
import dataclasses
import inspect
import json
import re
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
# Code, which is left as it is, or a formula between one or two dollar signs.
_CODE_OR_FORMULA = re.compile(r"```.*?```|`[^`\n]+`|(\$\$?)([^$]+)\1", re.DOTALL)
#: The pages that are made here; a test compares them with the menu.
PAGES = ("changelog.md", "reference/command-line.md", "reference/sweep-file.md")
#: Pages whose tables consist of words: on a narrow screen each row is a card.
CARDS = ("theory.md", "reference/command-line.md", "reference/sweep-file.md")
#: Pages with wide tables, and pages that are alone in their section.
WITHOUT_MENU = ("index.md", "gallery.md", "changelog.md", "theory.md", "benchmarks.md")


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages, and a page for each notebook with the images of its outputs."""
    from mkdocs.structure.files import File
    from nbconvert import MarkdownExporter

    def add(name: str, content: str | bytes) -> None:
        files.append(File.generated(config, name, content=content))

    add("changelog.md", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))
    add("reference/command-line.md", command_line())
    add("reference/sweep-file.md", sweep_file())
    for notebook in notebooks():
        text, resources = MarkdownExporter().from_filename(str(notebook))
        for image, data in resources["outputs"].items():
            unique = f"{notebook.stem}-{image}"
            text = text.replace(f"({image})", f"({unique})")
            add(f"notebooks/{unique}", data)
        add(f"notebooks/{notebook.stem}.md", with_formulas(text))
    return files


def on_pre_build(config: Any) -> None:
    """Let the types of other projects in signatures be links to those projects' pages."""
    for name, address in other_projects().items():
        config.plugins["autorefs"].register_url(name, address)


def other_projects() -> dict[str, str]:
    """The address of each type of another project, by its full name."""
    return tomllib.loads((ROOT / "docs" / "other_projects.toml").read_text(encoding="utf-8"))


def on_page_markdown(markdown: str, page: Any, **_: Any) -> None:
    """Leave the menu of a section out where its place is needed, or where it has one entry."""
    if page.file.src_uri in WITHOUT_MENU:
        page.meta.setdefault("hide", []).append("navigation")


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """Let long names in tables break after their separators, and mark tables of words."""

    def breakable(cell: re.Match) -> str:
        return re.sub(r"<code>[^<]+</code>", after_separators, cell[0])

    def after_separators(code: re.Match) -> str:
        return re.sub(r"(::|/(?!code)|[._])", r"\1<wbr>", code[0])

    if page.file.src_uri in CARDS:
        html = re.sub(r"<table>.*?</table>", with_labels, html, flags=re.DOTALL)
        html = f'<div class="cards">{html}</div>'
    return re.sub(r"<td.*?</td>", breakable, html, flags=re.DOTALL)


def with_labels(table: re.Match) -> str:
    """The table, each cell with its column's heading, which narrow screens show beside it."""
    headings = re.findall(r"<th[^>]*>(.*?)</th>", table[0], re.DOTALL)

    def row(found: re.Match) -> str:
        labels = iter(headings)
        return re.sub("<td", lambda _: f'<td data-label="{next(labels)}"', found[0])

    return re.sub(r"<tr>.*?</tr>", row, table[0], flags=re.DOTALL)


def with_formulas(text: str) -> str:
    """Markdown whose LaTeX is MathML, which browsers draw without a program or a network."""
    from latex2mathml.converter import convert

    def drawn(found: re.Match) -> str:
        if found[1] is None:
            return found[0]
        return convert(found[2], display="block" if found[1] == "$$" else "inline")

    return _CODE_OR_FORMULA.sub(drawn, text)


def notebooks() -> list[Path]:
    """The notebooks, in their order."""
    return sorted((ROOT / "notebooks").glob("*.ipynb"))


def command_line() -> str:
    """The page about every command, from the program's own parser."""
    from lintensor_jax.cli.main import _parser

    parser = _parser()
    lines = [
        "# Command line",
        "",
        f"{parser.description} `python -m lintensor_jax` is the same program.",
        "",
        "Exit codes: 0 done, 1 a check failed its bound, 2 a mistake in the arguments, the "
        "configuration or the files, 130 interrupted.",
        "",
        "Results go to standard output, progress and errors to standard error. On a terminal "
        "progress is a bar. Elsewhere it is a line, at most every ten seconds. `--quiet` prints "
        "neither results nor progress. `NO_COLOR=1` turns colours off.",
        "",
        "Compiled programs are kept on disk, so that a second run starts at once: see "
        "[Sharp bits](../sharp-bits.md).",
    ]
    for name, command in _commands(parser).items():
        lines += ["", f"## {name}", "", command.description or "", ""]
        usage = command.format_usage().removeprefix("usage: ").rstrip()
        lines += ["```text", usage, "```", "", *_table(command)]
        if command.epilog:
            lines += ["", f"{command.epilog[0].upper()}{command.epilog[1:]}."]
    return "\n".join(lines) + "\n"


def sweep_file() -> str:
    """The page about every key of a sweep's TOML file, from the rules that check the file."""
    from lintensor_jax.sweeps.from_toml.configuration import Sweep

    starter = ROOT / "lintensor_jax" / "cli" / "starters" / "regression.toml"
    lines = [
        "# The file of a sweep",
        "",
        "`lintensor-jax init` writes such a file, and `lintensor-jax sweep` runs it. A key that "
        "is left out has its default. Where a list of values is allowed beside one value, the "
        "list is an axis of the grid: every combination is run. A mistake is refused before "
        "anything runs, with the key, the rule, the value and the fix.",
        "",
        *_keys(Sweep),
    ]
    for field in dataclasses.fields(Sweep):
        kind = field.metadata.get("table")
        if kind is not None:
            about = " ".join(inspect.getdoc(kind).split())
            lines += ["", f"## [{field.name}]", "", about, "", *_keys(kind)]
    lines += ["", "## An example", "", "```toml", starter.read_text(encoding="utf-8"), "```"]
    return "\n".join(lines) + "\n"


def _keys(kind: Any) -> list[str]:
    rows = ["| key | meaning | rule | default |", "|---|---|---|---|"]
    for field in dataclasses.fields(kind):
        if "rule" in field.metadata:
            default = "" if field.default is None else f"`{json.dumps(field.default)}`"
            rule = _rule(field.metadata["rule"])
            rows.append(f"| `{field.name}` | {field.metadata['words']} | {rule} | {default} |")
    return rows


def _rule(rule: Any) -> str:
    """A rule in words: those of its own message, and those of the rule for its entries."""
    match type(rule).__name__:
        case "Maybe":
            return _rule(rule.rule)
        case "OneOrMany":
            return f"{_rule(rule.entry)}; or a list"
        case "ListOf":
            return f"{rule.read(None).rule}; each entry: {_rule(rule.entry)}"
    return rule.read(None).rule


def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    (group,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return group.choices


def _table(command: argparse.ArgumentParser) -> list[str]:
    rows = ["| argument | meaning |", "|---|---|"]
    for action in command._actions:
        value = "" if action.nargs == 0 or not action.option_strings else f" {_value(action)}"
        names = ", ".join(f"`{name}{value}`" for name in action.option_strings)
        rows.append(f"| {names or f'`{_value(action)}`'} | {action.help} |")
    return rows


def _value(action: argparse.Action) -> str:
    if action.metavar is None and action.choices:
        return ", ".join(map(str, action.choices))
    return str(action.metavar or action.dest.upper())

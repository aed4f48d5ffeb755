"""Every measured number in README and the documentation equals that of a committed result file."""

import importlib.util
import pathlib
import re
from typing import Any

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def measured() -> Any:
    """The program that fills in the numbers."""
    spec = importlib.util.spec_from_file_location(
        "measured_numbers", ROOT / "docs" / "measured_numbers.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_page_has_another_number_than_its_result_file(measured):
    assert measured.stale() == [], "run `python docs/measured_numbers.py`"


def test_a_wrong_number_is_found_with_its_line(measured, monkeypatch, tmp_path):
    page = tmp_path / "page.md"
    right = measured.NUMBERS["sweep wall"]()
    page.write_text(f"one\n<!--=sweep wall-->{right}<!--=--> and <!--=sweep wall-->7<!--=-->\n")
    monkeypatch.setattr(measured, "ROOT", tmp_path)
    monkeypatch.setattr(measured, "pages", lambda: [page])
    assert measured.stale() == [f"page.md:2: sweep wall: '7' is '{right}'"]
    assert measured.filled(page.read_text()).count(right) == 2
    with pytest.raises(KeyError, match="no such"):
        measured.filled("<!--=no such-->7<!--=-->")


def test_no_line_begins_with_a_mark(measured):
    """A mark at a line's start ends a paragraph in Markdown. Marks of tables are whole lines."""
    for path in measured.pages():
        found = re.findall(r"^ *<!--=.*$", path.read_text(), re.MULTILINE)
        assert [line for line in found if not line.endswith("-->")] == [], path


def test_what_was_seen_in_the_table_of_theory_comes_from_result_files():
    """Each number has a mark, except in programs and in the settings of a run."""
    theory = (ROOT / "docs" / "theory.md").read_text()
    seen = re.findall(r"^\|.*\| [^|]*?([Ss]een\b[^|]*)\|$", theory, re.MULTILINE)
    assert len(seen) >= 8
    aside = r"<!--=.*?<!--=-->|`[^`]*`|rtol = \S+|\d+ to \d+ classes"
    without = [re.sub(aside, "", text) for text in seen]
    assert [text for text in without if re.search(r"\d{2}|\d\.\d|\de-", text)] == []


def test_every_number_is_used_and_every_file_has_its_command(measured):
    text = "\n".join(path.read_text() for path in measured.pages())
    used = set(re.findall(r"<!--=([^<>]+?)-->", text))
    assert used == measured.NUMBERS.keys() | measured.TABLES.keys()
    assert {path.name for path in measured.FOLDER.iterdir()} == set(measured.COMMANDS)


def test_numbers_are_written_as_they_read(measured):
    assert measured.span([24.9, 30.1]) == "25 to 30"
    assert measured.span([1.0, 1.004], ".2f") == "1.00"
    assert measured.listed([117.1, 413, 292.4]) == "117, 413 and 292"
    assert [measured.size(x) for x in (1.55e-12, 9.5e-5, 2e-16)] == ["2e-12", "1e-4", "2e-16"]

"""`reproduce all`: one page for everything; an error of one experiment does not stop the others."""

import argparse
import dataclasses
import html.parser
import json
import pickle
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from lintensor_jax import cli, experiments
from lintensor_jax.cli import reproduce
from lintensor_jax.config import Config
from lintensor_jax.experiments import framework
from lintensor_jax.experiments.formats import power_of_ten, scientific
from lintensor_jax.experiments.framework import Experiment, ExperimentRun
from lintensor_jax.experiments.gallery import gallery
from lintensor_jax.experiments.report import (
    CLAIM_HEADINGS,
    Check,
    Claim,
    Column,
    Report,
    Table,
    comparison,
    worst_of,
)
from lintensor_jax.figures.page import Verdict, page, table

CLAIMS = (
    Claim("limit & <direction>", "[0.2, 0.4]", "[0.2000, 0.4000]", True),
    Claim("constant", "L", "L / d", False, erratum=True),
    Claim("order", "faster", "slower", False),
    Claim("rate", "open", "2.0", None),
)


@dataclasses.dataclass(frozen=True)
class Configuration(Config):
    """A configuration without settings."""


def _experiment(worst=0.1, fails=False):
    def run(config, reduced, track):
        if fails:
            raise RuntimeError("the solver <died>")

    def report(result):
        tables = (
            Table("summary", "Worst cases", (Column("k", "K", lambda k: f"{k:.1f}"),), [{"k": 3}]),
            comparison(CLAIMS),
        )
        checks = (Check("distance", worst, 0.5, "diagonal"),)
        captions = {"figure1": "Figure 1, drawn again."}
        return Report("one", "A paper", Configuration(), (), tables, checks, captions)

    def figures(result):
        figure = Figure(figsize=(2, 1))
        figure.subplots().plot([0, 1])
        return {"figure1": figure}

    return Experiment(
        "one", "A paper", Configuration, lambda config: (config, ()), run, report, figures
    )


@pytest.fixture
def reproduce_all(monkeypatch, tmp_path, capsys):
    """Run `reproduce all` with these experiments; exit code, printed JSON, errors, the page."""
    # This test must not change JAX's settings and the user's cache.
    monkeypatch.setattr("lintensor_jax.cli.reproduce.configure_jax", lambda: None)

    def run(**by_name):
        monkeypatch.setattr(experiments, "EXPERIMENTS", dict.fromkeys(by_name, ""))
        monkeypatch.setattr(framework, "find", by_name.__getitem__)
        code = cli.main(
            ["reproduce", "all", "--quick", "--json", "--jobs", "1", "--out", str(tmp_path)]
        )
        captured = capsys.readouterr()
        printed = json.loads(captured.out)
        assert printed["page"] == str(tmp_path / "index.html")
        return code, printed, captured.err, (tmp_path / "index.html").read_text()

    return run


class _References(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.sources, self.links, self.anchors, self.open = [], [], set(), []

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.sources += [found["src"]] if "src" in found else []
        self.links += [found["href"]] if "href" in found else []
        self.anchors |= {found["id"]} if "id" in found else set()
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def _read(text):
    found = _References()
    found.feed(text)
    assert found.open == []
    return found


def test_the_page_holds_everything_and_needs_no_network(reproduce_all, tmp_path):
    code, printed, err, text = reproduce_all(first=_experiment(), second=_experiment())
    assert code == 0
    assert err == ""
    assert printed["passed"] is True
    assert [e["experiment"] for e in printed["experiments"]] == ["one", "one"]
    found = _read(text)
    assert len(found.sources) == 2
    assert all(source.startswith("data:image/png;base64,") for source in found.sources)
    for link in found.links:
        if link.startswith("#"):
            assert link[1:] in found.anchors
        else:
            assert (tmp_path / link).is_file()
    assert {"overview", "first", "second"} <= found.anchors
    for words in CLAIM_HEADINGS[1:3]:  # for narrow screens, which do not show the row of headings
        assert f'content: "{words}: "' in text
    assert "http" not in text.replace('lang="en"', "")
    for words in (
        "limit &amp; &lt;direction&gt;",
        "[0.2000, 0.4000]",
        '<b class="good">agrees</b>',
        '<b class="bad">DIFFERS</b>',
        "<td>erratum</td>",
        "<td>not compared</td>",
        "Figure 1, drawn again.",
        "All checks passed.",
        "lintensor-jax reproduce all --quick",
        "lintensor-jax reproduce first --quick",
        "1 of 1 passed",
        "<th>K</th>",
        "device",
    ):
        assert words in text
    # Details are closed unless something failed.
    assert "<details open>" not in text


def test_an_error_in_one_experiment_does_not_stop_the_others(reproduce_all, tmp_path):
    code, printed, err, text = reproduce_all(
        broken=_experiment(fails=True), fine=_experiment(), bad=_experiment(worst=0.9)
    )
    assert code == 1
    assert printed["passed"] is False
    assert [e["passed"] for e in printed["experiments"]] == [False, True, False]
    assert "RuntimeError: the solver <died>" in printed["experiments"][0]["error"]
    assert err.splitlines() == [
        "broken: RuntimeError: the solver <died>",
        "bad: FAILED: distance, worst 0.9 is not <= 0.5 (diagonal)",
    ]
    assert (tmp_path / "fine" / "figure1.pdf").is_file()
    _read(text)
    assert "Failed: broken, bad." in text
    assert "RuntimeError: the solver &lt;died&gt;" in text
    assert text.count("<details open>") == 1
    assert len(_read(text).sources) == 2


def test_an_experiment_run_in_another_process_is_the_same_on_the_page(monkeypatch, tmp_path):
    monkeypatch.setattr(reproduce, "configure_jax", lambda: None)
    monkeypatch.setattr(framework, "find", lambda _: _experiment())
    arguments = argparse.Namespace(name="all", config=None, quick=True)
    both = []
    for run in (reproduce._run_one_of_all, reproduce._run_in_own_process):
        done = run("one", tmp_path, arguments)
        untimed = dataclasses.replace(done.pictures[0], seconds=0.0)
        both.append(dataclasses.replace(done, seconds=0.0, pictures=(untimed,)))
    here, there = both
    sent = pickle.loads(pickle.dumps(there))  # functions that format the table cannot be pickled
    pages = [gallery([done], "command", tmp_path, 251.0, 2) for done in (sent, here)]
    assert pages[0] == pages[1]
    assert "3.0" in pages[0]
    assert "it took 251 s, 2 side by side (0 s of experiments together)" in pages[0]
    assert sent.printed == here.printed


def test_verdicts_of_claims():
    verdicts = [claim.verdict for claim in CLAIMS]
    assert verdicts == ["agrees", "erratum", "DIFFERS", "not compared"]
    rows = comparison(CLAIMS).cells()
    assert rows[0] == ["limit & <direction>", "[0.2, 0.4]", "[0.2000, 0.4000]", "agrees"]


def test_a_check_says_what_was_found():
    assert str(Check("wrong verdicts", 0, 0, "N = 2")) == "passed: wrong verdicts: none"
    assert str(Check("wrong verdicts", 2, 0, "N = 2")) == (
        "FAILED: wrong verdicts, worst 2 is not <= 0 (N = 2)"
    )
    explained = worst_of(
        "it fails", [{"x": -1.0}], "x", 0, lambda _: "N = 2", lambda row: f"by {-row['x']:g}"
    )
    assert str(explained) == "passed: it fails: by 1 (N = 2)"
    none = Check("none of these", 0, 0, "anywhere")
    shown = Report("one", "A paper", Configuration(), (), (), (explained, none))
    text = gallery([ExperimentRun("one", "command", 1.0, shown)], "command", Path(), 1.0)
    assert "<td>it fails</td><td>by 1</td><td></td><td>N = 2</td>" in text
    assert "<td>none of these</td><td>none</td><td>0</td><td></td>" in text


def test_columns_with_an_unclear_heading_are_explained():
    rows = [{"drift": 1e-9}]
    found = Table("flows", "Flows", (Column("drift", "drift", scientific),), rows)
    assert found.markdown().startswith("## Flows\n\ndrift: the largest change of a conserved")
    assert dataclasses.replace(found, columns=()).note == ""


@pytest.mark.parametrize(
    ("exponent", "written"),
    [(-2.3, "5.0e-03"), (8, "1.0e+08"), (-0.0001, "1.0e+00"), (-1e5 + 0.5, "3.2e-100000")],
)
def test_powers_of_ten_are_written_as_numbers(exponent, written):
    assert power_of_ten(exponent) == written


def test_pages_escape_what_they_show():
    text = page("a < b", table(("<h>",), [("<c>", Verdict("<no>", False))]), [("x", "a & b")])
    assert "<title>a &lt; b</title>" in text
    assert "<th>&lt;h&gt;</th>" in text
    assert '<td>&lt;c&gt;</td><td><b class="bad">&lt;no&gt;</b></td>' in text
    assert '<a href="#x">a &amp; b</a>' in text
    assert "<nav" not in page("t", "b")

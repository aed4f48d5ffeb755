"""The report of an experiment: tables, checks with their bounds, and the files of both."""

import dataclasses
import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ..versions import library_versions

REPORT_FILES = ("table.md", "results.json")
_COLUMN_NOTES = {
    "drift": "drift: the largest change of a conserved quantity along the flow, divided by the "
    "largest squared norm of the parameters up to that time. An exact flow has 0.",
    "finish (relative step)": "finish (relative step): how far the last step moved beta, relative "
    "to beta. It is a Gauss-Newton step from the end of the flow to the interpolating solutions.",
}


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table: its key in the rows, its heading, and how it writes a value."""

    key: str
    heading: str
    write: Callable[[Any], str] = str


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of named values. The Markdown shows the values of `columns`; JSON holds all values."""

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: list[dict[str, Any]]

    def cells(self) -> list[list[str]]:
        """The values of `columns` as text, one list for each row."""
        return [[column.write(row[column.key]) for column in self.columns] for row in self.rows]

    @property
    def note(self) -> str:
        """An explanation of the columns whose headings do not suffice; may be empty."""
        headings = [column.heading for column in self.columns]
        return " ".join(words for name, words in _COLUMN_NOTES.items() if name in headings)

    def written(self) -> "Table":
        """The same table with text in every cell. It has no functions and can be pickled."""
        columns = tuple(Column(f"cell {i}", c.heading) for i, c in enumerate(self.columns))
        keys = [column.key for column in columns]
        texts = [dict(zip(keys, cells, strict=True)) for cells in self.cells()]
        rows = [{**row, **text} for row, text in zip(self.rows, texts, strict=True)]
        return Table(self.name, self.title, columns, rows)

    def markdown(self) -> str:
        """The title and the table in Markdown."""
        headings = [column.heading for column in self.columns]
        lines = [headings, ["---"] * len(headings), *self.cells()]
        note = f"{self.note}\n\n" if self.note else ""
        table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
        return f"## {self.title}\n\n{note}{table}"


@dataclasses.dataclass(frozen=True)
class Claim:
    """One statement, number or figure of a paper, and the result here.

    - `agrees`: whether both agree. None if they cannot be compared: the paper leaves the
      question open, or the run is shorter than the paper's.
    - `erratum`: whether a difference is a mistake of the paper, which is corrected here.
    """

    quantity: str
    paper: str
    ours: str
    agrees: bool | None
    erratum: bool = False

    @property
    def verdict(self) -> str:
        """`agrees` and `erratum` in words, for the table."""
        differs = ERRATUM if self.erratum else "DIFFERS"
        return {True: "agrees", False: differs, None: "not compared"}[self.agrees]


COMPARISON, ERRATUM = "comparison", "erratum"


def comparison(claims: Iterable[Claim]) -> Table:
    """The table that compares the results here with those of the paper."""
    keys = ("quantity", "paper", "ours", "verdict")
    columns = tuple(Column(key, heading) for key, heading in zip(keys, CLAIM_HEADINGS, strict=True))
    rows = [{**dataclasses.asdict(claim), "verdict": claim.verdict} for claim in claims]
    return Table(COMPARISON, "The paper's results and the results here", columns, rows)


CLAIM_HEADINGS = ("quantity", "the paper", "here", "agreement")


@dataclasses.dataclass(frozen=True)
class Check:
    """The test that no row of a table exceeds a bound.

    - `worst`, `row`: the largest value, and the row that has it.
    - `in_words`: the value found and the value required, where the two numbers need explanation.
    """

    name: str
    worst: float
    bound: float
    row: str
    in_words: str = ""

    @property
    def passed(self) -> bool:
        """Whether `worst` is at most `bound`; False if `worst` is NaN."""
        return self.worst <= self.bound

    @property
    def is_none(self) -> bool:
        """Whether bound and value are both 0, as for a number of failures."""
        return self.worst == 0 == self.bound

    def __str__(self) -> str:
        verdict = "passed" if self.passed else "FAILED"
        if self.in_words:
            return f"{verdict}: {self.name}: {self.in_words} ({self.row})"
        if self.is_none:
            return f"{verdict}: {self.name}: none"
        relation = "<=" if self.passed else "is not <="
        return (
            f"{verdict}: {self.name}, worst {self.worst:.3g} {relation} {self.bound:g} ({self.row})"
        )


def worst_of(
    name: str,
    rows: Iterable[dict[str, Any]],
    key: str,
    bound: float,
    label: Callable[[dict], str],
    in_words: Callable[[dict], str] = lambda row: "",
) -> Check:
    """The check that `row[key] <= bound` in every row.

    `label` names the worst row, and `in_words` explains its value.
    """
    # A NaN counts as the largest value. max() alone would depend on the place of the NaN.
    row = max(rows, key=lambda row: math.inf if math.isnan(row[key]) else row[key])
    return Check(name, float(row[key]), bound, label(row), in_words(row))


@dataclasses.dataclass(frozen=True)
class Report:
    """The numbers of one experiment.

    - `config`: the configuration that was run.
    - `reduced`: what `reduce` left out, one note each.
    - `captions`: by figure, which figure of the paper it shows, or that it is not in the paper.
    """

    experiment: str
    title: str
    config: Any
    reduced: tuple[str, ...]
    tables: tuple[Table, ...]
    checks: tuple[Check, ...]
    captions: dict[str, str] = dataclasses.field(default_factory=dict)
    versions: dict[str, str] = dataclasses.field(default_factory=library_versions)

    @property
    def passed(self) -> bool:
        """Whether every check holds."""
        return all(check.passed for check in self.checks)

    def as_json(self) -> dict[str, Any]:
        """The report as plain Python values; numbers that are not finite become None."""
        return _plain(
            {
                "experiment": self.experiment,
                "passed": self.passed,
                "reduced": self.reduced,
                "checks": [
                    {**dataclasses.asdict(check), "passed": check.passed} for check in self.checks
                ],
                "tables": {table.name: table.rows for table in self.tables},
                "config": dataclasses.asdict(self.config),
                "versions": self.versions,
            }
        )

    def markdown(self) -> str:
        """Checks, tables and versions, in Markdown."""
        parts = [f"# {self.title}\n"]
        if self.reduced:
            parts.append("Reduced run: " + "; ".join(self.reduced) + ".\n")
        parts.append("".join(f"- {check}\n" for check in self.checks))
        parts += [table.markdown() for table in self.tables]
        parts.append(", ".join(f"{name} {version}" for name, version in self.versions.items()))
        return "\n".join(parts) + "\n"

    def write(self, folder: Path) -> list[Path]:
        """Write `table.md` and `results.json` to `folder`; returns both paths."""
        table, results = (folder / name for name in REPORT_FILES)
        table.write_text(self.markdown(), encoding="utf-8")
        text = json.dumps(self.as_json(), indent=1, allow_nan=False)
        results.write_text(text + "\n", encoding="utf-8")
        return [table, results]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value

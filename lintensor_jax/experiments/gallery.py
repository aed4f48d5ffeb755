"""One page for all experiments: figures, comparisons with the papers, checks, times, versions."""

import datetime
import html
from collections.abc import Sequence
from pathlib import Path

from ..figures.page import Verdict, page, picture, table
from .framework import ExperimentRun, Picture
from .report import CLAIM_HEADINGS, COMPARISON, ERRATUM, Report, Table


def gallery(
    sections: Sequence[ExperimentRun], command: str, folder: Path, seconds: float, jobs: int = 1
) -> str:
    """The HTML page, one section for each experiment. It holds the pictures and links to the PDFs.

    The experiments were run by `command`, `jobs` of them at once, in `seconds`. Their files are in
    `folder`.
    """
    navigation = [("overview", "Overview"), *((s.name, s.name) for s in sections)]
    body = [_overview(sections, command, seconds, jobs), *(_section(s, folder) for s in sections)]
    return page("Papers, reproduced", "\n".join(body), navigation)


def _overview(sections, command, seconds, jobs):
    failed = [section.name for section in sections if not section.passed]
    verdict = (
        Verdict(f"Failed: {', '.join(failed)}.", False)
        if failed
        else Verdict("All checks passed.", True)
    )
    rows = [
        (
            section.name,
            _title(section),
            _verdict(section),
            _passed_of_all(section),
            len(section.pictures),
            f"{section.seconds:.0f}\N{NO-BREAK SPACE}s",
        )
        for section in sections
    ]
    headings = ("experiment", "paper", "verdict", "checks passed", "figures", "time")
    versions = next((s.report.versions for s in sections if s.report is not None), {})
    total = sum(section.seconds for section in sections)
    at_once = f", {jobs} side by side ({total:.0f} s of experiments together)" if jobs > 1 else ""
    return (
        f'<p id="overview">{verdict.html()} Made on {_today()} by '
        f"<code>{html.escape(command)}</code>; it took {seconds:.0f} s{at_once}, compilation "
        "included.</p>"
        + table(headings, rows, "overview")
        + "<details><summary>Versions and device</summary>"
        + table((), list(versions.items()))
        + "</details>"
    )


def _today() -> str:
    today = datetime.date.today()
    return f"{today.day} {today:%B %Y}"


def _verdict(section: ExperimentRun) -> Verdict:
    return Verdict("passed" if section.passed else "failed", section.passed)


def _title(section):
    return section.report.title if section.report is not None else "-"


def _passed_of_all(section):
    if section.report is None:
        return "-"
    checks = section.report.checks
    return f"{sum(check.passed for check in checks)} of {len(checks)}"


def _section(section: ExperimentRun, folder):
    report = section.report
    title = html.escape(section.name if report is None else report.title)
    parts = [
        f'<section id="{html.escape(section.name)}"><h2>{title}</h2>',
        f"<p>{_verdict(section).html()} in {section.seconds:.0f} s. "
        f"<code>{html.escape(section.command)}</code></p>",
    ]
    if section.failure:
        parts.append(f'<p class="bad">It ended with an error:</p>{_preformatted(section.failure)}')
    if report is not None:
        if report.reduced:
            reduced = html.escape("; ".join(report.reduced))
            parts.append(f'<p class="quiet">Reduced run: {reduced}.</p>')
        parts += [_picture(section, report, shown, folder) for shown in section.pictures]
        parts += [_comparison(found) for found in report.tables if found.name == COMPARISON]
        parts += [_checks(report), *(_details(found) for found in report.tables)]
    return "\n".join([*parts, "</section>"])


def _picture(section, report, shown: Picture, folder):
    words = report.captions.get(shown.name, shown.name)
    link = html.escape(shown.pdf.relative_to(folder).as_posix())
    caption = (
        f"{html.escape(words)} "
        f'<span class="quiet">(<a href="{link}">PDF</a>, drawn in {shown.seconds:.1f} s)</span>'
    )
    return picture(f"{section.name}: {shown.name}", shown.png.read_bytes(), caption)


def _comparison(found: Table):
    rows = [
        (
            row["quantity"],
            row["paper"],
            row["ours"],
            row["verdict"]
            if row["agrees"] is None or row["verdict"] == ERRATUM
            else Verdict(row["verdict"], row["agrees"]),
        )
        for row in found.rows
    ]
    return f"<h3>{html.escape(found.title)}</h3>" + table(CLAIM_HEADINGS, rows, "claims")


def _checks(report: Report):
    rows = [
        (
            Verdict("passed" if check.passed else "FAILED", check.passed),
            check.name,
            check.in_words or ("none" if check.is_none else f"{check.worst:.3g}"),
            "" if check.in_words else f"{check.bound:g}",
            "" if check.is_none else check.row,
        )
        for check in report.checks
    ]
    passed = sum(check.passed for check in report.checks)
    # The list is open if a check failed, so that the reader sees it at once.
    is_open = "" if report.passed else " open"
    return (
        f"<details{is_open}><summary>Checks: {passed} of {len(rows)} passed</summary>"
        + table(("", "check", "worst", "at most", "where"), rows)
        + "</details>"
    )


def _details(found: Table):
    if found.name == COMPARISON or not found.rows:
        return ""
    headings = [column.heading for column in found.columns]
    return (
        f"<details><summary>{html.escape(found.title)}</summary>"
        + (f'<p class="quiet">{html.escape(found.note)}</p>' if found.note else "")
        + f"{table(headings, found.cells())}</details>"
    )


def _preformatted(text):
    return f"<pre>{html.escape(text)}</pre>"

"""The tables and checks of the experiment on Min et al. 2021, from a `Result`."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..formats import scientific
from ..report import Check, Column, Report, Table, comparison, worst_of
from .claims import CAPTIONS, claims
from .results import RateRun, Result, WidthRun, meaningful, power_law

TITLE = "Min, Tarmoun, Vidal & Mallada 2021: rates, implicit bias and width"
# Eq. (22) is a limit. It is compared if the loss is below this, so that |E| is below 1e-3 of its
# initial value.
_CONVERGED = 1e-6
_ROWS = 7


def _short(value):
    return f"{value:.4g}"


_SPECTRA = (
    Column("outputs", "m"),
    Column("width", "h"),
    Column("rank", "r"),
    Column("num_positive", "l > 0"),
    Column("num_negative", "l < 0"),
    Column("positive_spread", "D_+ / mh", _short),
    Column("negative_spread", "D_- / mh", _short),
    Column("level", "D_u / mh", _short),
    Column("ratio", "(D_+ + D_-) / D_u", _short),
)
_RATES = (
    Column("label", "start"),
    Column("level", "D_u", _short),
    Column("first_rate", "rate(0)", _short),
    Column("last_rate", "rate, end", _short),
    Column("last_proposition_1", "Prop. 1, end", _short),
    Column("asymptotic", "eq. (22)", _short),
    Column("theorem_3", "Theorem 3", _short),
    Column("corollary_4", "Corollary 4", _short),
    Column("least_tightness", "least rate / Prop. 1", _short),
    Column("loss_over_bound", "most loss / Theorem 3", _short),
    Column("num_steps", "steps"),
    Column("status", "stopped by"),
    Column("invariant_drift", "drift", scientific),
)
_TIMES = (
    Column("label", "start"),
    Column("time", "t", _short),
    Column("excess_loss", "L - L*", scientific),
    Column("loss_bound", "Theorem 3", scientific),
    Column("rate", "rate", _short),
    Column("proposition_1", "Prop. 1", _short),
    Column("corollary_6", "Cor. 6", _short),
)
_WIDTHS = (
    Column("width", "h"),
    Column("mean", "distance, mean", _short),
    Column("deviation", "s.d.", _short),
    Column("scaled", "times sqrt(h)", _short),
    Column("bound", "bound from the start, mean", _short),
    Column("theorem_12", "Theorem 12", _short),
    Column("theorem_12_applies", "applies"),
    Column("level", "D_u, least", _short),
    Column("lemma_11_level", "Lemma 11", _short),
    Column("away", "off the invariant set, most", _short),
    Column("lemma_11_away", "Lemma 11", _short),
    Column("lemma_11_applies", "applies"),
    Column("num_steps", "steps, most"),
)
_SLOPE = (
    Column("fit", "log distance ="),
    Column("slope", "s", _short),
    Column("error_bar", "95 % error bar", _short),
    Column("theory", "Theorem 12", _short),
    Column("correction", "b", _short),
    Column("points", "flows"),
)


def report(result: Result) -> Report:
    """Spectra, rates at the ends and at some times, distances, and the checks."""
    rates = [_rate_row("Figure 5", run) for run in result.rates]
    starts = [_rate_row("Figures 3, 6", run) for run in result.imbalance]
    spectra, widths, slopes = list(_spectra(result)), list(_widths(result)), list(_slopes(result))
    return Report(
        experiment="min2021",
        title=TITLE,
        config=result.config,
        reduced=result.reduced,
        tables=(
            Table("spectra", "Figures 2, 4: the imbalance", _SPECTRA, spectra),
            Table("rates", "Figure 5: rates against their bounds", _RATES, rates),
            Table("rates_in_time", "Figure 5 in time", _TIMES, _in_time(result.rates)),
            Table("imbalance", "Figures 3, 6: one end-to-end matrix", _RATES, starts),
            Table("imbalance_in_time", "Figures 3, 6 in time", _TIMES, _in_time(result.imbalance)),
            Table("widths", "Figure 7: distance from the min-norm solution", _WIDTHS, widths),
            Table("slope", "Figure 7: the exponent", _SLOPE, slopes),
            comparison(claims(spectra, rates, starts, widths, slopes)),
        ),
        checks=_checks(result, rates + starts, spectra, widths, slopes),
        captions=CAPTIONS,
    )


def _checks(result, flows, spectra, widths, slopes) -> tuple[Check, ...]:
    error = abs(slopes[0]["slope"] - slopes[0]["theory"]) / slopes[0]["error_bar"]
    balanced = result.imbalance[-1]
    # The inequalities are exact. The bounds of the checks allow for rounding errors, and for losses
    # also for the error of the integrator.
    checks = (
        _bounded("Proposition 1 over the measured rate", flows, "worst_rate", 1 + 1e-9),
        _bounded("loss over Theorem 3", flows, "loss_over_bound", 1 + 1e-6),
        _bounded("Corollary 6 over Proposition 1", flows, "corollary_6_over", 1 + 1e-9),
        worst_of(
            "eigenvalues of D with the wrong sign",
            spectra,
            "wrong_signs",
            0,
            lambda row: f"h = {row['width']}",
        ),
        _bounded("invariant drift", flows, "invariant_drift", 1e-8),
        Check("end-to-end matrices of Figures 3, 6 differ by", result.end_to_end, 1e-12, "all"),
        Check("balanced start, largest D_+, D_-, D_u", max(balanced.spreads), 1e-12, "balanced"),
        _at_width("distance over the bound from the start", widths, "over_bound"),
        Check("slope off Theorem 12's, over its error bar", error, 1.0, "Figure 7"),
        _all_ended("Figure 7", [f"h = {r.width}" for r in result.widths if r.status != "residual"]),
        _all_ended("Figures 3, 5, 6", [r["label"] for r in flows if r["status"] != "time"]),
    )
    converged = [row for row in flows if row["last_loss"] < _CONVERGED]
    if converged:
        checks += (_bounded("eq. (22) over the last rate", converged, "limit_over_rate", 1 + 1e-2),)
    applicable = [row for row in widths if row["lemma_11_applies"]]
    if applicable:
        checks += (
            _at_width("Lemma 11, distance off the invariant set", applicable, "away_over_bound"),
            _at_width("Lemma 11, level of imbalance", applicable, "level_bound_over_level"),
        )
    return checks


def _spectra(result) -> Iterator[dict[str, Any]]:
    for found in result.spectra:
        yield {
            **dataclasses.asdict(found),
            "num_positive": (positive := int(np.sum(found.eigenvalues > 0))),
            "num_negative": (negative := int(np.sum(found.eigenvalues < 0))),
            # r are positive and m negative where h >= r + m (Min et al. 2021, section 5.1).
            "wrong_signs": abs(found.rank - positive) + abs(found.outputs - negative)
            if found.width >= found.rank + found.outputs
            else 0,
            "ratio": (found.positive_spread + found.negative_spread) / found.level
            if found.level
            else np.inf,
        }


def _rate_row(figure, run: RateRun) -> dict[str, Any]:
    kept = meaningful(run)
    last = int(np.flatnonzero(kept)[-1])
    ratios = run.proposition_1[kept] / run.rate[kept]
    return {
        "figure": figure,
        "label": run.label,
        "level": run.spreads[2],
        "first_rate": float(run.rate[0]),
        "last_rate": float(run.rate[last]),
        "last_proposition_1": float(run.proposition_1[last]),
        "asymptotic": run.asymptotic,
        "theorem_3": run.theorem_3,
        "corollary_4": run.corollary_4,
        "worst_rate": float(np.max(ratios)),
        "least_tightness": float(1 / np.max(ratios)),
        "last_loss": float(run.excess_loss[last] / run.excess_loss[0]),
        "corollary_6_over": float(np.max(run.corollary_6[kept] / run.proposition_1[kept])),
        "limit_over_rate": run.asymptotic / float(run.rate[last]),
        "loss_over_bound": float(np.max((run.excess_loss / run.loss_bound)[kept])),
        "num_steps": run.num_steps,
        "status": run.status,
        "invariant_drift": run.invariant_drift,
    }


def _in_time(runs) -> list[dict[str, Any]]:
    rows = []
    for run in runs:
        last = int(np.flatnonzero(meaningful(run))[-1])
        for k in np.unique(np.linspace(0, last, _ROWS).round().astype(int)):
            rows.append(
                {
                    "label": run.label,
                    "time": float(run.times[k]),
                    **{
                        key: float(getattr(run, key)[k])
                        for key in (
                            "excess_loss",
                            "loss_bound",
                            "rate",
                            "proposition_1",
                            "corollary_6",
                        )
                    },
                }
            )
    return rows


def _widths(result) -> Iterator[dict[str, Any]]:
    for width in dict.fromkeys(run.width for run in result.widths):
        runs: list[WidthRun] = [run for run in result.widths if run.width == width]
        distances = np.array([run.distance for run in runs])
        bounds = np.array([run.deviation_bound for run in runs])
        level, away = min(run.level for run in runs), max(run.away for run in runs)
        first = runs[0]
        yield {
            "width": width,
            "distances": distances,
            "mean": float(distances.mean()),
            "deviation": float(distances.std(ddof=1)),
            "scaled": float(distances.mean() * np.sqrt(width)),
            "bound": float(bounds.mean()),
            "over_bound": float(np.max(distances / bounds)),
            "theorem_12": first.theorem_12,
            "theorem_12_applies": first.theorem_12_applies,
            "level": level,
            "lemma_11_level": first.lemma_11_level,
            "level_bound_over_level": first.lemma_11_level / level if level else np.inf,
            "away": away,
            "lemma_11_away": first.lemma_11_away,
            "away_over_bound": away / first.lemma_11_away,
            "lemma_11_applies": first.lemma_11_applies,
            "num_steps": max(run.num_steps for run in runs),
        }


def _slopes(result) -> Iterator[dict[str, Any]]:
    for corrected in (True, False):
        found = power_law(result, corrected)
        yield {
            "fit": "a + s log h" + (" + b / h" if found.correction else ""),
            "slope": found.slope,
            "error_bar": found.error_bar,
            "theory": 0.5 - 2 * result.config.width.exponent,
            "correction": found.correction,
            "points": len(result.widths),
        }


def _all_ended(figures, others):
    name = f"flows of {figures} that did not end as they should"
    return Check(name, len(others), 0, others[0] if others else "none")


def _bounded(name, rows, key, bound):
    return worst_of(name, rows, key, bound, lambda row: f"{row['figure']}, {row['label']}")


def _at_width(name, rows, key):
    return worst_of(name, rows, key, 1.0, lambda row: f"h = {row['width']}")

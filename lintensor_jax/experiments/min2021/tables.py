"""The tables and checks of `min2021`, from its arrays."""

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from .min2021_paper import CAPTIONS, claims
from .report import Check, Column, Report, Table, comparison, scientific, worst_of

if TYPE_CHECKING:
    from .min2021 import Result
    from .min2021_runs import RateRun, WidthRun

TITLE = "Min, Tarmoun, Vidal & Mallada 2021: rates, implicit bias and width"

# A loss below this, over the first one, is near the integrator's tolerance squared: neither the
# direction of the error nor a bound on it means anything there.
_LEAST_LOSS = 1e-11
# What is small enough for eq. (22), which is a limit: there |E| is 1e-3 of its start.
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


@dataclasses.dataclass(frozen=True)
class PowerLaw:
    """log y = log_factor + slope log x + correction / x; the error bar is that of the slope."""

    slope: float
    error_bar: float
    log_factor: float
    correction: float

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """y."""
        return np.exp(self.log_factor + self.slope * np.log(x) + self.correction / x)

    @staticmethod
    def through(x: np.ndarray, y: np.ndarray, corrected: bool) -> "PowerLaw":
        """Least squares; the error bar is twice the slope's standard error.

        `corrected`: whether there is a correction; it takes three different x.
        """
        columns = np.stack([np.log(x), np.ones_like(x), 1 / x][: 3 if corrected else 2], axis=1)
        # Columns of one size, or their Gram matrix would have no digits left.
        sizes = np.linalg.norm(columns, axis=0)
        found = np.linalg.lstsq(columns / sizes, np.log(y), rcond=None)[0]
        rest = np.log(y) - columns / sizes @ found
        inverse = np.linalg.inv((columns / sizes).T @ (columns / sizes))
        variance = rest @ rest / max(len(x) - len(found), 1) * inverse[0, 0]
        found, error = found / sizes, np.sqrt(variance) / sizes[0]
        slope, log_factor, *more = (float(value) for value in found)
        return PowerLaw(slope, 2 * float(error), log_factor, more[0] if more else 0.0)


def power_law(result: "Result", corrected: bool = True) -> PowerLaw:
    """The distance of Figure 7 as a function of the width, over all flows.

    As h grows, sqrt(h) times the distance tends to sqrt(d - r) |V(inf)|, and |V(inf)| to its own
    limit, with an error that the products U_1 V^T of the start make: they are of size sqrt(r / h),
    and even in sign. At the paper's widths, five times r and more, that error is not below the
    error bars: with 60 runs a width a mere power law has the exponent -0.484 +- 0.004, and one with
    a correction in 1 / h has -0.495 +- 0.010.
    """
    runs = result.widths
    x, y = (np.array([float(getattr(run, key)) for run in runs]) for key in ("width", "distance"))
    return PowerLaw.through(x, y, corrected and len(set(x)) > 2)


def meaningful(run: "RateRun") -> np.ndarray:
    """Which times have a loss above the integrator's tolerance."""
    return run.excess_loss > _LEAST_LOSS * run.excess_loss[0]


def report(result: "Result") -> Report:
    """Spectra, rates at the ends and at some times, distances, and the acceptance bounds."""
    rates = [_rate_row("Figure 5", run) for run in result.rates]
    starts = [_rate_row("Figures 3, 6", run) for run in result.imbalance]
    flows = rates + starts
    spectra, widths, slopes = list(_spectra(result)), list(_widths(result)), list(_slopes(result))
    error = abs(slopes[0]["slope"] - slopes[0]["theory"]) / slopes[0]["error_bar"]
    converged = [row for row in flows if row["last_loss"] < _CONVERGED]
    balanced = result.imbalance[-1]
    # Exact inequalities: what is allowed is rounding, and the integrator's tolerance for losses.
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
    if converged:
        checks += (_bounded("eq. (22) over the last rate", converged, "limit_over_rate", 1 + 1e-2),)
    applicable = [row for row in widths if row["lemma_11_applies"]]
    if applicable:
        checks += (
            _at_width("Lemma 11, distance off the invariant set", applicable, "away_over_bound"),
            _at_width("Lemma 11, level of imbalance", applicable, "level_bound_over_level"),
        )
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
        checks=checks,
        captions=CAPTIONS,
    )


def _spectra(result) -> Iterator[dict[str, Any]]:
    for found in result.spectra:
        yield {
            **dataclasses.asdict(found),
            "num_positive": (positive := int(np.sum(found.eigenvalues > 0))),
            "num_negative": (negative := int(np.sum(found.eigenvalues < 0))),
            # r positive and m negative ones where the units suffice (Min et al. 2021, section 5.1).
            "wrong_signs": abs(found.rank - positive) + abs(found.outputs - negative)
            if found.width >= found.rank + found.outputs
            else 0,
            "ratio": (found.positive_spread + found.negative_spread) / found.level
            if found.level
            else np.inf,
        }


def _rate_row(figure, run: "RateRun") -> dict[str, Any]:
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

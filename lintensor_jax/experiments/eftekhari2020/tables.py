"""The tables and checks of the experiment on Eftekhari 2020, from a `Result`."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..formats import scientific
from ..report import Check, Column, Report, Table, comparison, worst_of
from .claims import CAPTIONS, claims
from .results import Result, log_ratio

TITLE = "Eftekhari 2020: end-to-end flows, stable sets, Theorem 20 and the nearby rates"
# Theorem 20 compares exact numbers. The distances here have errors of about 1e-9 times the
# first distance.
_ROUNDING = 1e-6
_SHOWN = (1e-3, 1e-2, 0.03, 0.1, 0.3, 1.0)


def _short(value):
    return f"{value:.4g}"


def _optional(value):
    return "" if value is None else f"{value:.6g}"


_FIGURE = (
    Column("depth", "N"),
    Column("time", "time", _short),
    Column("distance", "distance to Z", scientific),
    Column("layered", "of the layers", scientific),
)
_FLOWS = (
    Column("depth", "N"),
    Column("difference", "end-to-end - layers", scientific),
    Column("kind", "where the layers end"),
    Column("gradient", "gradient", scientific),
    Column("smallest", "smallest curvature", scientific),
)
_BOUND = (
    Column("depth", "N"),
    Column("flows", "flows"),
    Column("far", "from s > sqrt(6) s_Z"),
    Column("excess", "largest log(distance^2 / bound)", _short),
    Column("slack", "smallest slack of the set", scientific),
    Column("tightness", "rate / bound, least", _short),
    Column("median", "median", _short),
    Column("printed", "(38) as printed fails"),
)
_NEARBY = (
    Column("outputs", "outputs"),
    Column("size", "s_Z", _short),
    Column("depth", "N"),
    Column("measured", "measured rate", _short),
    Column("predicted", "linearisation", _short),
    Column("error", "relative error", scientific),
)
_LANDSCAPE = (
    Column("name", "point"),
    Column("kind", "verdict"),
    Column("gradient", "gradient", scientific),
    Column("smallest", "smallest eigenvalue", _optional),
    Column("known", "known", _optional),
    Column("rank", "rank"),
    Column("excess", "L - min L", scientific),
)


def report(result: Result) -> Report:
    """Figure 1 in numbers, Theorem 20 by depth, the nearby rates, the landscape; all checks."""
    curves, flows = list(_curves(result)), list(_flows(result))
    bounds, nearby = list(_bounds(result)), list(_nearby(result))
    landscape = list(_landscape(result))
    return Report(
        experiment="eftekhari2020",
        title=TITLE,
        config=result.config,
        reduced=result.reduced,
        tables=(
            Table("figure1", "Figure 1: distance to the target", _FIGURE, curves),
            Table("flows", "Figure 1: both flows, and the landscape at their end", _FLOWS, flows),
            Table("theorem20", "Theorem 20 along flows from the stable set", _BOUND, bounds),
            Table("nearby", "The open question: nearby rates against depth", _NEARBY, nearby),
            Table("landscape", "The landscape at known points", _LANDSCAPE, landscape),
            comparison(claims(curves, flows, bounds, nearby, landscape, _ROUNDING)),
        ),
        checks=_checks(result.config, flows, bounds, nearby, landscape),
        captions=CAPTIONS,
    )


def _checks(config, flows, bounds, nearby, landscape) -> tuple[Check, ...]:
    known = [row for row in landscape if row["known"] is not None]

    def at_depth(row):
        return f"N = {row['depth']}"

    def named(row):
        return row["name"]

    def rate_label(row):
        return f"{row['outputs']} outputs, s_Z = {row['size']:g}, N = {row['depth']}"

    return (
        worst_of(
            "end-to-end flow - layered flow, relative",
            flows,
            "difference",
            config.agreement,
            at_depth,
        ),
        worst_of("Figure 1's flows not ending at the minimum", flows, "wrong", 0, at_depth),
        worst_of("Theorem 20: log(distance^2 / bound)", bounds, "excess", _ROUNDING, at_depth),
        worst_of("Theorem 20: does not apply", bounds, "unusable", 0, at_depth),
        worst_of("Lemmas 15, 19: flows that leave the stable set", bounds, "left", 0, at_depth),
        worst_of(
            "nearby rate - linearisation, relative",
            nearby,
            "error",
            config.nearby.agreement,
            rate_label,
        ),
        worst_of("landscape: wrong verdicts", landscape, "wrong", 0, named),
        worst_of("landscape: known eigenvalue, relative error", known, "error", 1e-8, named),
    )


def _curves(result) -> Iterator[dict[str, Any]]:
    for run in result.figure:
        for share in _SHOWN:
            index = int(np.argmin(np.abs(run.times - share * run.times[-1])))
            yield {
                "depth": run.depth,
                "time": float(run.times[index]),
                "distance": float(run.induced[index]),
                "layered": float(run.layered[index]),
            }


def _flows(result) -> Iterator[dict[str, Any]]:
    for run in result.figure:
        yield {
            "depth": run.depth,
            "difference": run.difference,
            "kind": str(run.end.kind),
            "gradient": run.end.gradient_norm,
            "smallest": run.end.smallest_eigenvalue,
            "wrong": float(not str(run.end.kind).endswith("global minimum")),
        }


def _bounds(result) -> Iterator[dict[str, Any]]:
    for depth in dict.fromkeys(run.start.depth for run in result.bounds):
        runs = [run for run in result.bounds if run.start.depth == depth]
        tightness = np.array([_tightness(run) for run in runs])
        yield {
            "depth": depth,
            "flows": len(runs),
            "far": sum(bool(_is_far(run)) for run in runs),
            "excess": float(max(np.nanmax(log_ratio(run)) for run in runs)),
            "slack": float(min(np.min(run.slack) for run in runs)),
            "left": sum(bool(np.min(run.slack) <= 0) for run in runs),
            "unusable": sum(not (run.faraway > 0 and run.nearby > 0) for run in runs),
            "tightness": float(np.min(tightness)),
            "median": float(np.median(tightness)),
            "printed": sum(_printed_fails(run) for run in runs),
        }


def _is_far(run):
    """Whether the flow starts at a size above sqrt(6) s_Z."""
    return np.linalg.norm(run.start.coefficients) > np.sqrt(6) * run.start.size


def _tightness(run):
    """The fall of log |beta - Z_1|^2 up to the last usable time, divided by that of the bound."""
    last = int(np.flatnonzero(np.isfinite(log_ratio(run)))[-1])
    return (run.log_distance[0] - run.log_distance[last]) / (run.log_bound[0] - run.log_bound[last])


def _printed_fails(run):
    usable = np.isfinite(log_ratio(run))
    return bool(np.any((run.log_distance - run.log_printed)[usable] > _ROUNDING))


def _nearby(result) -> Iterator[dict[str, Any]]:
    for run in sorted(result.nearby, key=lambda run: (run.outputs, run.size, run.depth)):
        yield {
            "outputs": run.outputs,
            "size": run.size,
            "depth": run.depth,
            "measured": run.measured,
            "predicted": run.predicted,
            "error": abs(run.measured / run.predicted - 1),
        }


def _landscape(result) -> Iterator[dict[str, Any]]:
    for run in result.landscape:
        found = run.found
        known = run.least_eigenvalue
        scale = max(abs(found.smallest_eigenvalue), abs(found.largest_eigenvalue), 1e-300)
        yield {
            "name": run.name,
            "kind": str(found.kind),
            "expected": run.expected,
            "wrong": float(str(found.kind) != run.expected),
            "gradient": found.gradient_norm,
            "smallest": found.smallest_eigenvalue,
            "known": known,
            "error": None if known is None else abs(found.smallest_eigenvalue - known) / scale,
            "rank": found.rank,
            "excess": found.loss - (found.least_loss or 0.0),
        }

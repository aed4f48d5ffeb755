"""The tables and checks of the experiment on classification, from a `Result`."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from ...formats import power_of_ten, scientific
from ...report import Check, Column, Report, Table, comparison, worst_of
from .claims import CAPTIONS, claims
from .results import PAPER_LOG_LOSS, Path, Result, at_log_loss

TITLE = "Yun, Krishnan & Mobahi 2021, section 4: limit directions of classification"
# At the start the bound holds with equality. This allows for rounding of log L there.
_BOUND_SLACK = 1e-6
# By how many decades the loss must exceed the printed bound, which is wrong.
_PRINTED_EXCESS = 0.01


def _optional(write):
    return lambda value: "" if value is None else write(value)


_LANE = (Column("architecture", "architecture"), Column("depth", "L"))
_SUMMARY = (
    *_LANE,
    Column("runs", "runs"),
    Column("distance", "limit - predicted", _optional(scientific)),
    Column("parameter_residual", "KKT residual", scientific),
    Column("limit_singular_residual", "eq. 8 at limit", scientific),
    Column("singular_residual", "at flow's end", scientific),
    Column("paper_error", "error at 1e-5", scientific),
    Column("end_error", "at flow's end", scientific),
    Column("num_steps", "most steps"),
)
_FLOWS = (
    *_LANE,
    Column("start", "start"),
    Column("theorem", "theorem"),
    Column("distance", "limit - predicted", _optional(scientific)),
    Column("parameter_residual", "KKT residual", scientific),
    Column("predictor_residual", "in predictor space", _optional(scientific)),
    Column("limit_singular_residual", "eq. 8 at the limit", scientific),
    Column("singular_residual", "eq. 8 at the flow's end", scientific),
    Column("paper_variation", "u varies after loss 1e-5 by", scientific),
    Column("late_variation", "after exp(-1e3) by", scientific),
    Column("paper_error", "direction's error at loss 1e-5", scientific),
    Column("end_error", "at the flow's end", scientific),
    Column("num_steps", "steps"),
    Column("status", "stopped by"),
    Column("limit_status", "limit"),
    Column("smoothed_margin_drop", "smoothed margin fell by", scientific),
    Column("invariant_drift", "drift", scientific),
)
_BOUNDS = (
    *_LANE,
    Column("start", "start"),
    Column("theorem", "theorem"),
    Column("initial_loss", "L(0)", "{:.3g}".format),
    Column("log10_excess", "loss over the corrected bound, log10", "{:.2g}".format),
    Column("log10_printed_excess", "over the printed bound, log10", "{:.2g}".format),
)
_ONE_SAMPLE = (
    Column("filter_size", "filter"),
    Column("start", "start"),
    Column("theorem", "theorem"),
    Column("distance", "limit - predicted", scientific),
    Column("formula_distance", "limit - Corollary 4", scientific),
    Column("limit_singular_residual", "eq. 8 at the limit", scientific),
    Column("end_error", "flow's end - limit", scientific),
    Column("num_steps", "steps"),
)
_FINITE_LOSS = (
    Column("depth", "D"),
    Column("mu", "mu", "{:.3g}".format),
    Column("alpha", "alpha", "{:.3g}".format),
    Column("log_inverse_loss", "log(1/eps)", "{:.4g}".format),
    Column("path_error", "flow - path", scientific),
    Column("program_error", "flow - program", scientific),
    Column("scaled_error", "(flow - path) log(1/eps) min(mu, 1)", "{:.2g}".format),
)
_SIDE_BY_SIDE = (
    Column("architecture", "architecture"),
    Column("method", "method"),
    Column("num_steps", "steps", "{:,}".format),
    Column("seconds", "seconds", "{:.3f}".format),
    Column("loss", "loss reached"),
    Column("distance", "distance to the limit direction", scientific),
)


def report(result: Result) -> Report:
    """A summary, one table for each part, and the checks."""
    flows, bounds = list(_flows(result)), list(_bounds(result))
    one_sample, finite = list(_one_sample(result)), list(_finite_loss(result))
    toy = list(_side_by_side(result))
    return Report(
        experiment="yun2021-classification",
        title=TITLE,
        config=result.config,
        reduced=result.reduced,
        tables=(
            Table("summary", "Worst cases", _SUMMARY, list(_summary(result, flows))),
            Table("flows", "Theorems 1 and 2, Corollaries 1 to 3", _FLOWS, flows),
            Table("bounds", "The bounds of Theorems 2 and 3 on the loss", _BOUNDS, bounds),
            Table("one_sample", "Theorem 3 and Corollary 4: one sample", _ONE_SAMPLE, one_sample),
            Table("finite_loss", "Directions at finite loss", _FINITE_LOSS, finite),
            Table("side_by_side", "Side by side on the toy data", _SIDE_BY_SIDE, toy),
            comparison(claims(result, flows, bounds, one_sample, finite)),
        ),
        checks=(
            _all_certified([*flows, *one_sample]),
            *_checks_of_limits(result.config.theorems, flows),
            *_checks_of_bounds(bounds),
            *_checks_of_other_parts(result.config, one_sample, finite, toy),
        ),
        captions=CAPTIONS,
    )


def _all_certified(rows):
    uncertified = [row for row in rows if row["limit_status"] not in ("stationary", "continued")]
    shown = _label(uncertified[0]) if uncertified else "none"
    return Check("limits that are not certified", len(uncertified), 0, shown)


def _checks_of_limits(task, flows) -> Iterator[Check]:
    """Theorems 1 and 2: the limits, and what the flows approach."""
    predicted = [row for row in flows if row["distance"] is not None]
    yield worst_of("limit against predict", predicted, "distance", task.agreement, _label)
    yield worst_of("KKT residual", flows, "parameter_residual", task.residual, _label)
    yield worst_of("eq. 8 at the limit", flows, "limit_singular_residual", task.residual, _label)
    yield worst_of(
        "eq. 8: residual at the flow's end over that at loss 1e-5",
        flows,
        "singular_progress",
        1,
        _label,
    )
    yield worst_of(
        "fall of the smoothed margin", flows, "smoothed_margin_drop", 10 * task.rtol, _label
    )


def _checks_of_bounds(bounds) -> Iterator[Check]:
    """The corrected bound on the loss holds; the printed one fails if L(0) < 1."""
    yield worst_of(
        "corrected bound, log10 of the loss over it", bounds, "log10_excess", _BOUND_SLACK, _label
    )
    ahead = [row for row in bounds if row["initial_loss"] < 1]
    yield worst_of(
        "erratum: the printed bound fails from L(0) < 1",
        ahead,
        "printed_kept",
        0,
        _label,
        _printed,
    )


def _checks_of_other_parts(config, one_sample, finite, toy) -> Iterator[Check]:
    """One sample, directions at a finite loss, and the toy data."""
    agreement = config.one_sample.agreement
    yield worst_of("Corollary 4", one_sample, "formula_distance", agreement, _label)
    yield worst_of("Theorem 3", one_sample, "distance", agreement, _label)
    yield worst_of(
        "finite loss: error times log(1/eps) min(mu, 1)",
        finite,
        "scaled_error",
        config.finite_loss.agreement,
        _finite_label,
    )
    arc_length = [row for row in toy if row["method"] == "flow, log-arc-length"]
    yield worst_of(
        "toy data: flow's distance", arc_length, "distance", config.side_by_side.agreement, _toy
    )


def _all_paths(result) -> Iterator[tuple[dict[str, Any], Path]]:
    for (architecture, depth), paths in result.paths.items():
        for start, path in paths.items():
            yield {"architecture": architecture, "depth": depth, "start": start}, path


def _flows(result) -> Iterator[dict[str, Any]]:
    for row, path in _all_paths(result):
        yield {**row, **_of_path(path)}


def _of_path(path: Path) -> dict[str, Any]:
    return {
        "theorem": path.theorem,
        "distance": None if path.predicted is None else _distance(path.limit, path.predicted),
        "parameter_residual": path.parameter_residual,
        "predictor_residual": path.predictor_residual,
        "limit_singular_residual": path.limit_singular_residual,
        "singular_residual": float(path.singular_residuals[-1]),
        "singular_progress": float(
            path.singular_residuals[-1] / at_log_loss(path, path.singular_residuals, PAPER_LOG_LOSS)
        ),
        "paper_variation": at_log_loss(path, path.variation, PAPER_LOG_LOSS),
        "late_variation": at_log_loss(path, path.variation, -1e3),
        "paper_error": at_log_loss(path, path.error, PAPER_LOG_LOSS),
        "end_error": float(path.error[-1]),
        "num_steps": path.num_steps,
        "status": path.status,
        "limit_status": path.limit_status,
        "smoothed_margin_drop": path.smoothed_margin_drop,
        "invariant_drift": path.invariant_drift,
    }


def _bounds(result) -> Iterator[dict[str, Any]]:
    singles = (
        (
            {"architecture": f"filters of {run.filter_size}", "depth": 2, "start": run.start},
            run.path,
        )
        for run in result.one_sample
    )
    for row, path in (*_all_paths(result), *singles):
        if np.isnan(path.log_bound).all():
            continue
        excess = (path.log_loss - path.log_bound) / np.log(10)
        printed = (path.log_loss - path.log_printed_bound) / np.log(10)
        yield {
            **row,
            "theorem": path.theorem,
            "initial_loss": float(np.exp(path.log_loss[0])),
            "log10_excess": float(excess.max()),
            "log10_printed_excess": float(printed.max()),
            "printed_kept": float(_PRINTED_EXCESS - printed.max()),
        }


def _one_sample(result) -> Iterator[dict[str, Any]]:
    for run in result.one_sample:
        yield {
            "architecture": "one sample",
            "depth": 2,
            "filter_size": run.filter_size,
            "start": run.start,
            **_of_path(run.path),
            "formula_distance": _distance(run.path.limit, run.corollary_4),
        }


def _finite_loss(result) -> Iterator[dict[str, Any]]:
    for depth, runs in result.finite_loss.items():
        for lane in np.ndindex(runs.alphas.shape):
            mu, level = float(runs.flow_mus[lane]), float(-runs.log_losses[lane])
            yield {
                "depth": depth,
                "mu": mu,
                "alpha": float(runs.alphas[lane]),
                "log_inverse_loss": level,
                "path_error": float(runs.path_errors[lane]),
                "program_error": float(runs.program_errors[lane]),
                "scaled_error": float(runs.path_errors[lane]) * level * min(mu, 1.0),
            }


def _side_by_side(result) -> Iterator[dict[str, Any]]:
    for row in result.side_by_side:
        exponent = row.log_loss / np.log(10)
        loss = power_of_ten(exponent) if exponent > -400 else f"exp({row.log_loss:.3g})"
        yield {
            "architecture": row.architecture,
            "method": row.method,
            "num_steps": row.num_steps,
            "seconds": row.seconds,
            "log_loss": row.log_loss,
            "loss": loss,
            "distance": row.distance,
        }


def _summary(result, flows) -> Iterator[dict[str, Any]]:
    keys = [column.key for column in _SUMMARY[3:]]
    for architecture, depth in result.paths:
        rows = [r for r in flows if (r["architecture"], r["depth"]) == (architecture, depth)]
        worst = {
            key: max((row[key] for row in rows if row[key] is not None), default=None)
            for key in keys
        }
        yield {"architecture": architecture, "depth": depth, "runs": len(rows), **worst}


def _printed(row):
    return (
        f"the loss exceeds it by a factor of 10^{row['log10_printed_excess']:.2f} or more, "
        f"10^{_PRINTED_EXCESS:g} is required"
    )


def _label(row):
    return f"{row['architecture']}, L = {row['depth']}, {row['start']}"


def _finite_label(row):
    return f"D = {row['depth']}, mu = {row['mu']:.3g}, log(1/eps) = {row['log_inverse_loss']:.3g}"


def _toy(row):
    return row["architecture"]


def _distance(a, b):
    return float(np.linalg.norm(a - b))

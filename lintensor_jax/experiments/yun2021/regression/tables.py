"""The tables and checks of the experiment on regression, from a `Result`."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from ...formats import scientific
from ...report import Check, Column, Report, Table, comparison, worst_of
from .claims import CAPTIONS, claims
from .results import (
    Flow,
    Result,
    distances,
    relative_error,
    small_scale_distances,
)

TITLE = "Yun, Krishnan & Mobahi 2021, section 5: limits of regression against the initial scale"

# Smaller relative distances are not used for rates: their rounding errors, 1e-15, would count.
_LEAST_DISTANCE = 1e-9


def _optional(write):
    return lambda value: "" if value is None else write(value)


def _short(value):
    return f"{value:z.3f}"


def _scale(alpha):
    return f"{alpha:.3g}"


_LANE = (Column("architecture", "architecture"), Column("depth", "L"))
_SUMMARY = (
    *_LANE,
    Column("flows", "flows"),
    Column("agreement", "worst flow - theory", _optional(scientific)),
    Column("mirror_agreement", "worst mirror - flow", _optional(scientific)),
    Column("refused", "mirror refused", _optional(str)),
    Column("rate", "rate, alpha -> 0", _short),
    Column("theory_rate", "theory", _optional(_short)),
    Column("large_rate", "rate, alpha -> inf", _optional(_short)),
    Column("theory_large_rate", "theory", _optional(_short)),
)
_LIMITS = (
    *_LANE,
    Column("alpha", "alpha", _scale),
    Column("l1_distance", "to weighted l1", scientific),
    Column("l2_distance", "to weighted l2", scientific),
    Column("num_iterations", "iterations"),
)
_END = (
    Column("num_steps", "steps"),
    Column("num_implicit_steps", "implicit"),
    Column("status", "stopped by"),
    Column("invariant_drift", "drift", scientific),
)
_FLOWS = (
    *_LANE,
    Column("alpha", "alpha", _scale),
    Column("agreement", "flow - Theorem 5", scientific),
    Column("mirror_agreement", "mirror - flow", _optional(scientific)),
    *_END,
    Column("mirror_num_steps", "mirror's steps", _optional(str)),
    Column("mirror_status", "mirror stopped by"),
)
_FULLY_CONNECTED = (
    *_LANE,
    Column("alpha", "alpha", _scale),
    Column("distance", "to l2", scientific),
    *_END,
    Column("condition", "slack of the conditions", _short),
)
_NONCOMMUTING = (
    *_LANE,
    Column("alpha", "alpha", _scale),
    Column("distance", "to the least nuclear norm", scientific),
    Column("excess", "excess of the nuclear norm", scientific),
    Column("stable_rank", "stable rank", _short),
    *_END,
    Column("condition", "commutator", _short),
)
_ROTATED = (
    *_LANE,
    Column("alpha", "alpha", _scale),
    Column("agreement", "flow - Theorem 5", scientific),
    Column("mixing", "off the eigenbasis", scientific),
    *_END,
)


def report(result: Result) -> Report:
    """A summary, the limits of Theorem 5, every flow, and the checks."""
    limits, flows = list(_limits(result)), list(_flows(result))
    fully_connected, noncommuting = list(_fully_connected(result)), list(_noncommuting(result))
    rotated, summary = list(_rotated(result)), list(_summarised(result, flows))
    tables = (
        Table("summary", "Worst cases, and rates d log distance / d log alpha", _SUMMARY, summary),
        Table(
            "limits",
            "Theorem 5: distances of the limit, relative to the one between l1 and l2",
            _LIMITS,
            limits,
        ),
        Table("flows", "Flows against Theorem 5 (relative, largest entry)", _FLOWS, flows),
        Table(
            "fully_connected",
            "Theorem 7: fully-connected networks, relative distances",
            _FULLY_CONNECTED,
            fully_connected,
        ),
        Table(
            "noncommuting",
            "Outside the theorems: sensors that do not commute, relative distances",
            _NONCOMMUTING,
            noncommuting,
        ),
        Table(
            "rotated",
            "Corollary 7 in rounded arithmetic: the commuting sensors in a random basis",
            _ROTATED,
            rotated,
        ),
        comparison(claims(result, limits, flows, fully_connected, noncommuting, rotated)),
    )
    everything = flows + fully_connected + noncommuting + rotated
    return Report(
        experiment="yun2021-regression",
        title=TITLE,
        config=result.config,
        reduced=result.reduced,
        tables=tables,
        checks=(
            *_checks_of_flows(result.config.interpolation, flows, everything),
            _bounded("Newton's iterations", limits, "num_iterations", 60),
            *_checks_of_rates(result.config, summary, fully_connected),
        ),
        captions=CAPTIONS,
    )


def _checks_of_flows(task, flows, everything) -> Iterator[Check]:
    """The limits of flow and mirror flow; every flow must be stopped by its residual."""
    yield _bounded("flow - Theorem 5, relative", flows, "agreement", task.agreement)
    accepted = [row for row in flows if row["mirror_agreement"] is not None]
    if accepted:
        yield _bounded("mirror flow - flow", accepted, "mirror_agreement", task.mirror_agreement)
    yield _all_ended("flows", [row for row in everything if row["status"] != "residual"])
    others = [row for row in flows if row["mirror_status"] not in ("residual", "refused")]
    yield _all_ended("mirror flows", others)


def _checks_of_rates(config, summary, fully_connected) -> Iterator[Check]:
    """The rates of Theorems 5 and 7, and the conditions of Theorem 7."""
    covered = [row for row in summary if row["theory_rate"] is not None]
    theorem_5 = [row for row in covered if row["theory_large_rate"] is not None]
    bound = config.interpolation.rate_agreement
    yield _bounded("rate to l1 - theory", theorem_5, "rate_error", bound)
    yield _bounded("rate to l2 - theory", theorem_5, "large_rate_error", bound)
    theorem_7 = [row for row in covered if row["theory_large_rate"] is None]
    if theorem_7:
        bound = config.fully_connected.rate_agreement
        yield _bounded("Theorem 7: rate to l2 - theory", theorem_7, "rate_error", bound)
        yield _bounded("Theorem 7: conditions, violated by", fully_connected, "violation", 0)


def _limits(result) -> Iterator[dict[str, Any]]:
    for (architecture, depth), runs in result.interpolation.items():
        values = zip(runs.alphas, runs.limits, *distances(runs), runs.num_iterations, strict=True)
        for alpha, limit, l1, l2, iterations in values:
            yield {
                **_lane(architecture, depth, alpha),
                "limit": limit,
                "l1_distance": float(l1),
                "l2_distance": float(l2),
                "num_iterations": int(iterations),
            }


def _flows(result) -> Iterator[dict[str, Any]]:
    for (architecture, depth), runs in result.interpolation.items():
        for flow, predicted, mirror in zip(
            runs.flows, runs.predicted, runs.mirror_flows, strict=True
        ):
            yield {
                **_lane(architecture, depth, flow.alpha),
                "predicted": predicted,
                "reached": flow.reached,
                "agreement": relative_error(flow.reached, predicted),
                "mirror_agreement": mirror and relative_error(mirror.reached, flow.reached),
                **_stop_columns(flow),
                "mirror_num_steps": mirror and mirror.num_steps,
                "mirror_status": mirror.status if mirror else "refused",
            }


def _fully_connected(result) -> Iterator[dict[str, Any]]:
    for row, runs, flow in _small_scale("fully-connected", result.fully_connected):
        # The starts satisfy every condition with a slack > 0, so a slack < 0 is a violation.
        yield {**row, "violation": max(-runs.condition, 0.0), **_stop_columns(flow)}


def _noncommuting(result) -> Iterator[dict[str, Any]]:
    for row, runs, flow in _small_scale("non-commuting sensors", result.noncommuting):
        reached, least = (np.linalg.norm(b, "nuc") for b in (flow.reached, runs.reference))
        largest = np.linalg.norm(flow.reached, 2)
        yield {
            **row,
            "excess": float(reached / least - 1),
            "stable_rank": float((np.linalg.norm(flow.reached) / largest) ** 2),
            **_stop_columns(flow),
        }


def _rotated(result) -> Iterator[dict[str, Any]]:
    for depth, runs in result.rotated.items():
        for flow, predicted in zip(runs.flows, runs.predicted, strict=True):
            diagonal = np.diag(np.diag(flow.reached))
            yield {
                **_lane("rotated sensors", depth, flow.alpha),
                "reached": flow.reached,
                "agreement": relative_error(flow.reached, predicted),
                "mixing": relative_error(flow.reached, diagonal),
                **_stop_columns(flow),
            }


def _small_scale(architecture, runs_of):
    for depth, runs in runs_of.items():
        for flow, distance in zip(runs.flows, small_scale_distances(runs)[1], strict=True):
            row = {
                **_lane(architecture, depth, flow.alpha),
                "reached": flow.reached,
                "reference": runs.reference,
                "distance": float(distance),
                "condition": runs.condition,
            }
            yield row, runs, flow


def _summarised(result, flows) -> Iterator[dict[str, Any]]:
    for (architecture, depth), runs in result.interpolation.items():
        rows = [r for r in flows if (r["architecture"], r["depth"]) == (architecture, depth)]
        mirror = [r["mirror_agreement"] for r in rows if r["mirror_agreement"] is not None]
        l1, l2 = distances(runs)
        # From Yun et al. 2021, Remark 4, and the size that the maps of Lemma 4 give the coordinates
        # off the support.
        theory = float(depth) if depth > 2 else 2 * (1 - runs.certificate)
        rate, large_rate = _rate(runs.alphas, l1), _rate(1 / runs.alphas, l2)
        yield {
            **_rate_row(architecture, depth, len(rows), rate, theory),
            "agreement": float(np.max([row["agreement"] for row in rows])),
            "mirror_agreement": float(np.max(mirror)) if mirror else None,
            "refused": len(rows) - len(mirror),
            "large_rate": -large_rate,
            "theory_large_rate": -2.0 * depth,
            "large_rate_error": abs(large_rate - 2 * depth),
        }
    # X beta = y, and the flow never changes the part P W_1 of W_1 outside the range of X^T. So the
    # distance to the l2 solution is |P W_1(0) W_2 ... w_L|, which is proportional to alpha.
    for architecture, runs_of, theory in (
        ("fully-connected", result.fully_connected, 1.0),
        ("non-commuting sensors", result.noncommuting, None),
    ):
        for depth, runs in runs_of.items():
            rate = _rate(*small_scale_distances(runs))
            yield _rate_row(architecture, depth, len(runs.flows), rate, theory)


def _rate_row(architecture, depth, flows, rate, theory):
    none = dict.fromkeys(column.key for column in _SUMMARY)
    return {
        **none,
        "architecture": architecture,
        "depth": depth,
        "flows": flows,
        "rate": rate,
        "theory_rate": theory,
        "rate_error": None if theory is None else abs(rate - theory),
    }


def _rate(alphas, distances):
    """d log distance / d log alpha between the two smallest scales of usable distance."""
    order = np.argsort(alphas)
    alphas, distances = alphas[order], distances[order]
    usable = np.flatnonzero(distances > _LEAST_DISTANCE)[:2]
    if usable.size < 2:
        return float("nan")
    low, high = usable
    return float(np.log(distances[high] / distances[low]) / np.log(alphas[high] / alphas[low]))


def _lane(architecture, depth, alpha):
    return {"architecture": architecture, "depth": depth, "alpha": float(alpha)}


def _stop_columns(flow: Flow):
    return {
        "num_steps": flow.num_steps,
        "num_implicit_steps": flow.num_implicit_steps,
        "status": flow.status,
        "invariant_drift": flow.invariant_drift,
    }


def _label(row):
    scale = f", alpha = {row['alpha']:.3g}" if "alpha" in row else ""
    return f"{row['architecture']}, L = {row['depth']}{scale}"


def _bounded(name, rows, key, bound):
    return worst_of(name, rows, key, bound, _label)


def _all_ended(what, others):
    shown = _label(others[0]) if others else "none"
    return Check(f"{what} not stopped by their residual", len(others), 0, shown)

"""The tables and checks of Figures 1 and 3, from a `Result`."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from ...formats import power_of_ten, scientific, vector
from ...report import Check, Column, Report, Table, comparison, worst_of
from .claims import CAPTIONS, claims
from .results import Result

TITLE = "Yun, Krishnan & Mobahi 2021, Figures 1 and 3"

_KEYS = (
    Column("architecture", "architecture"),
    Column("alpha", "alpha", lambda alpha: f"{alpha:g}"),
    Column("direction", "direction"),
    Column("start", "beta(0)", vector),
)
_REGRESSION = (
    *_KEYS,
    Column("predicted", "Theorem 6", vector),
    Column("reached", "flow", vector),
    Column("distance", "distance", scientific),
    Column("num_steps", "steps"),
    Column("status", "stopped by"),
    Column("finish_step", "finish (relative step)", scientific),
    Column("invariant_drift", "drift", scientific),
    Column("descent_distance", "GD's distance", scientific),
)
_CLASSIFICATION = (
    *_KEYS,
    Column("predicted", "maximum margin", vector),
    Column("reached", "flow", vector),
    Column("distance", "distance", scientific),
    Column("num_steps", "steps"),
    Column("status", "stopped by"),
    Column("invariant_drift", "drift", scientific),
    Column("paper_loss_distance", "distance at the paper's loss", scientific),
    Column("descent_distance", "GD's distance", scientific),
    Column("descent_log10_loss", "GD's loss", power_of_ten),
)
_SUMMARY = (
    Column("task", "task"),
    Column("architecture", "architecture"),
    Column("runs", "runs"),
    Column("distance", "worst distance", scientific),
    Column("num_steps", "most steps"),
    Column("paper_loss_distance", "at the paper's loss", lambda x: "" if x is None else f"{x:.1e}"),
    Column("descent_distance", "GD's worst distance", scientific),
)


def report(result: Result) -> Report:
    """A summary, tables with one row for each run, and the checks."""
    regression, classification = list(_regression(result)), list(_classification(result))
    tasks = {"regression": regression, "classification": classification}
    summary = [
        _summarised(task, architecture, [r for r in rows if r["architecture"] == architecture])
        for task, rows in tasks.items()
        for architecture in result.regression
    ]
    config = result.config
    return Report(
        experiment="yun2021",
        title=TITLE,
        config=config,
        reduced=result.reduced,
        tables=(
            Table("summary", "Worst cases (distances between flow and theory)", _SUMMARY, summary),
            Table(
                "regression",
                "Regression: limits of beta against Theorem 6",
                _REGRESSION,
                regression,
            ),
            Table(
                "classification",
                "Classification: directions of beta against the maximum margin",
                _CLASSIFICATION,
                classification,
            ),
            comparison(claims(result, regression, classification)),
        ),
        captions=CAPTIONS,
        checks=(
            _bounded("distance to Theorem 6", regression, "distance", config.regression.agreement),
            _all_stopped_by("residual", regression),
            _bounded(
                "distance to the maximum-margin direction",
                classification,
                "distance",
                config.classification.agreement,
            ),
            _bounded(
                "solver steps", classification, "num_steps", config.classification.step_budget
            ),
            _all_stopped_by("margin", classification),
        ),
    )


def _regression(result) -> Iterator[dict[str, Any]]:
    for row, runs, lane in _lanes(result, result.regression, "regression"):
        yield {
            **row,
            "predicted": runs.predicted[lane],
            "reached": runs.reached[lane],
            "distance": _distance(runs.reached[lane], runs.predicted[lane]),
            **_flow_of(runs, lane),
            "finish_step": float(runs.finish_step[lane]),
            "descent_reached": runs.descent_path[lane][-1],
            "descent_distance": _distance(runs.descent_path[lane][-1], runs.predicted[lane]),
        }


def _classification(result) -> Iterator[dict[str, Any]]:
    for row, runs, lane in _lanes(result, result.classification, "classification"):
        at_paper_loss = _unit(runs.at_paper_loss[lane])
        descent_reached = _unit(runs.descent_path[lane][-1])
        yield {
            **row,
            "predicted": runs.predicted,
            "reached": runs.reached[lane],
            "distance": _distance(runs.reached[lane], runs.predicted),
            **_flow_of(runs, lane),
            "log10_margin": float(runs.log_margin[lane]) / math.log(10),
            "paper_loss_direction": at_paper_loss,
            "paper_loss_distance": _distance(at_paper_loss, runs.predicted),
            "descent_direction": descent_reached,
            "descent_distance": _distance(descent_reached, runs.predicted),
            "descent_log10_loss": float(runs.descent_log_loss[lane]) / math.log(10),
        }


def _lanes(result, runs_of, task):
    for architecture, runs in runs_of.items():
        for lane in np.ndindex(result.starts.shape[:2]):
            yield (
                {
                    "task": task,
                    "architecture": architecture,
                    "alpha": result.config.alphas[lane[0]],
                    "direction": lane[1] + 1,
                    "start": result.starts[lane],
                },
                runs,
                lane,
            )


def _flow_of(runs, lane):
    return {
        "num_steps": int(runs.num_steps[lane]),
        "status": str(runs.status[lane]),
        "invariant_drift": float(runs.invariant_drift[lane]),
    }


def _summarised(task, architecture, rows):
    def worst(key):
        return np.max([row[key] for row in rows]) if key in rows[0] else None

    keys = ("distance", "num_steps", "paper_loss_distance", "descent_distance")
    return {
        "task": task,
        "architecture": architecture,
        "runs": len(rows),
        **{key: worst(key) for key in keys},
    }


def _label(row):
    return (
        f"{row['task']}, {row['architecture']}, alpha = {row['alpha']:g}, "
        f"direction {row['direction']}"
    )


def _bounded(name, rows, key, bound):
    return worst_of(f"{rows[0]['task']}: {name}", rows, key, bound, _label)


def _all_stopped_by(status, rows):
    others = [row for row in rows if row["status"] != status]
    shown = f"{_label(others[0])} stopped by {others[0]['status']}" if others else "none"
    return Check(f"{rows[0]['task']}: runs not stopped by their {status}", len(others), 0, shown)


def _distance(a, b):
    return float(np.linalg.norm(a - b))


def _unit(vector):
    return vector / np.linalg.norm(vector)

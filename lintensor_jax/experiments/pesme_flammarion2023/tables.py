"""The tables and checks of the experiment on Pesme & Flammarion 2023, from a `Result`."""

from typing import Any

import numpy as np

from ..formats import scientific
from ..report import Check, Column, Report, Table, comparison
from .claims import CAPTIONS, claims
from .results import Result

TITLE = "Pesme & Flammarion 2023: from saddle to saddle"
_NEAR = 1e-6


def _short(value):
    return f"{value:.6g}"


_POINTS = (
    Column("jump", "jump"),
    Column("time", "time / log(1/alpha)", _short),
    Column("slope", "flow's, slope of the last two scales", _short),
    Column("came", "in"),
    Column("left", "out"),
    Column("loss", "loss after it", _short),
    Column("l1", "l1 norm after it", _short),
    Column("slack", "gradient on the support", scientific),
    Column("nearest", "flow comes within", scientific),
)
_SCALES = (
    Column("digits", "-log10 alpha"),
    Column("steps", "steps"),
    Column("visited", "points to 1e-6"),
    Column("late", "jump times off by", scientific),
    Column("constant", "times log(1/alpha)", _short),
    Column("end", "end from the l1 solution", scientific),
    Column("status", "stopped by"),
)


def report(result: Result) -> Report:
    """The path of the algorithm, the distances of the flows from it, and the checks."""
    points, scales = _points(result), [_scale(result, run) for run in result.runs]
    ends = _ends(result)
    return Report(
        experiment="pesme-flammarion2023",
        title=TITLE,
        config=result.config,
        reduced=result.reduced,
        tables=(
            Table("points", "Jumps and the points after them", _POINTS, points),
            Table("scales", "Flows", _SCALES, scales),
            comparison(claims(points, scales, ends)),
        ),
        checks=_checks(result, scales, ends),
        captions=CAPTIONS,
    )


def _checks(result, scales, ends) -> tuple[Check, ...]:
    last = scales[-1]
    where = f"alpha = 1e-{last['digits']}"
    return (
        Check("end of the algorithm minus the l1 solution", ends["from_l1"], 1e-7, "last point"),
        Check("gradient on a point's support", ends["slack"], 1e-12, "all points"),
        Check("points that the flow misses by 1e-6", ends["missed"], 0, where),
        # The error of a jump time tends to c / log(1/alpha). c is measured at the last scale, and
        # no scale may have more than twice as much.
        Check(
            "error of a jump time times log(1/alpha), over the last scale's",
            max(row["constant"] for row in scales) / last["constant"],
            2.0,
            "all scales",
        ),
        Check("slope of the jump times minus the algorithm's", ends["slope_error"], 1e-2, where),
    )


def _points(result: Result) -> list[dict[str, Any]]:
    path, last = result.path, result.runs[-1]
    active = path.points != 0
    rows = []
    for k, point in enumerate(path.points):
        before = active[k - 1] if k else np.zeros_like(active[0])
        rows.append(
            {
                "jump": k,
                "time": path.times[k - 1] if k else 0.0,
                "slope": result.slopes[k - 1] if k else 0.0,
                "came": ", ".join(map(str, np.flatnonzero(active[k] & ~before))),
                "left": ", ".join(map(str, np.flatnonzero(~active[k] & before))),
                "loss": path.losses[k],
                "l1": float(np.sum(np.abs(point))),
                "slack": path.slack[k],
                "nearest": last.nearest[k],
            }
        )
    return rows


def _scale(result: Result, run) -> dict[str, Any]:
    late = float(np.max(np.abs(run.jumps - result.path.times)))
    return {
        "digits": run.digits,
        "steps": len(run.times),
        "visited": int(np.sum(run.nearest < _NEAR)),
        "late": late,
        "constant": late * run.unit,
        "end": float(np.max(np.abs(run.coefficients[-1] - result.path.l1_solution))),
        "status": run.status,
    }


def _ends(result: Result) -> dict[str, Any]:
    path, last = result.path, result.runs[-1]
    return {
        "from_l1": float(np.max(np.abs(path.points[-1] - path.l1_solution))),
        "flow_from_l1": float(np.max(np.abs(last.coefficients[-1] - path.points[-1]))),
        "slack": float(np.max(path.slack)),
        "left": path.left,
        "missed": int(np.sum(last.nearest >= _NEAR)),
        "slope_error": float(np.max(np.abs(result.slopes - path.times))),
    }

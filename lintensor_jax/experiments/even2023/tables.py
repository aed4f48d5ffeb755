"""The tables and checks of the experiment on Even et al. 2023, from a `Result`."""

from typing import Any

import numpy as np

from ..formats import scientific
from ..report import Check, Column, Report, Table, comparison, worst_of
from .claims import CAPTIONS, claims
from .results import FULL, STOCHASTIC, Result

TITLE = "Even, Pesme, Gunasekar & Flammarion 2023: large steps of descent on two diagonal layers"


def _short(value):
    return f"{value:.4g}"


_METHODS = (
    Column("method", "gradient"),
    Column("runs", "runs"),
    Column("fits", "fit the data"),
    Column("diverged", "diverge"),
    Column("at_smallest", "distance / flow's, smallest step", _short),
    Column("quarter", "largest / 4", _short),
    Column("half", "largest / 2", _short),
    Column("at_largest", "largest", _short),
    Column("closer", "problems closer than the flow"),
    Column("error", "end - prediction, most", scientific),
    Column("flow_error", "end - flow's limit, most", scientific),
)
_PROBLEMS = (
    Column("problem", "problem"),
    Column("method", "gradient"),
    Column("largest", "largest step", _short),
    Column("distance", "distance / flow's there", _short),
    Column("l1", "l1 norm there", _short),
    Column("flow_l1", "flow's", _short),
    Column("least_l1", "least", _short),
    Column("gain_on", "gain on the support", _short),
    Column("gain_off", "gain beside it", _short),
    Column("error", "end - prediction, most", scientific),
)


def report(result: Result) -> Report:
    """One table by method, over all problems, one table by problem, and the checks."""
    methods = [_method_row(result, method) for method in (FULL, STOCHASTIC)]
    problems = [_problem_row(result, run) for run in result.runs]
    return Report(
        experiment="even2023",
        title=TITLE,
        config=result.config,
        reduced=result.reduced,
        tables=(
            Table("methods", "Limits by method and step", _METHODS, methods),
            Table("problems", "Limits at the largest step", _PROBLEMS, problems),
            comparison(claims(methods)),
        ),
        checks=_checks(methods, problems),
        captions=CAPTIONS,
    )


def _checks(methods, problems) -> tuple[Check, ...]:
    return (
        worst_of("end of a run minus its prediction", methods, "error", 1e-9, _by_method),
        worst_of(
            "share of the steps that is not along the gradient",
            methods,
            "aside",
            1e-10,
            _by_method,
        ),
        worst_of(
            "problems where no step fits the data",
            problems,
            "no_step",
            0,
            lambda row: f"problem {row['problem']}, {row['method']}",
        ),
    )


def _by_method(row):
    return row["method"]


def _method_row(result: Result, method: str) -> dict[str, Any]:
    runs = [run for run in result.of(method) if run.largest > 0]
    courses = [result.relative(run) for run in runs]

    def at(share):
        return _mean([np.interp(np.log(share * x[-1]), np.log(x), y) for x, y in courses])

    last = [float(y[-1]) for _, y in courses]
    return {
        "method": method,
        "problems": len(runs),
        "runs": sum(run.sizes.size for run in runs),
        "fits": sum(int(run.ends.fits.sum()) for run in runs),
        "diverged": sum(int(run.diverged.sum()) for run in runs),
        "at_smallest": _mean([y[0] for _, y in courses]),
        "quarter": at(1 / 4),
        "half": at(1 / 2),
        "at_largest": _mean(last),
        "closer": int(np.sum(np.array(last) < 1)),
        "error": _largest(_error(run) for run in runs),
        "flow_error": _largest(_from_flow(result, run) for run in runs),
        "aside": _largest(float(np.max(run.off_gradient_share[run.ends.fits])) for run in runs),
    }


def _mean(values):
    """The mean; NaN without values, that is if no problem has a step that fits the data."""
    return float(np.mean(values)) if len(values) else float("nan")


def _largest(values):
    return max(values, default=float("nan"))


def _error(run):
    """The largest error of the runs that fit the data; NaN if no run fits them."""
    return float(np.nanmax(run.ends.error)) if run.ends.fits.any() else float("nan")


def _from_flow(result, run):
    apart = np.abs(run.ends.coefficients - result.baselines[run.problem].flow)
    return float(np.max(apart[run.ends.fits]))


def _problem_row(result: Result, run) -> dict[str, Any]:
    base, there = result.baselines[run.problem], run.sizes == run.largest
    support = result.support[run.problem]
    found = run.largest > 0

    def mean(values):
        return float(np.mean(values[there])) if found else float("nan")

    return {
        "problem": run.problem + 1,
        "method": run.method,
        "no_step": int(not found),
        "largest": run.largest,
        "distance": mean(run.ends.distance) / base.distance,
        "l1": mean(run.ends.l1_norm),
        "flow_l1": base.l1_norm,
        "least_l1": base.least_l1_norm,
        "gain_on": mean(run.gains[:, support].mean(axis=1)),
        "gain_off": mean(run.gains[:, ~support].mean(axis=1)),
        "error": _error(run),
    }

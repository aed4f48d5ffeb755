"""The tables and checks of the experiment on Papazov et al. 2024, from a `Result`."""

from typing import Any

import numpy as np

from ..formats import scientific
from ..report import Check, Column, Report, Table, comparison, worst_of
from .claims import CAPTIONS, claims
from .results import Result

TITLE = "Papazov, Pesme & Flammarion 2024: momentum on two diagonal layers"


def _short(value):
    return f"{value:.4g}"


_MASSES = (
    Column("mass", "lambda", _short),
    Column("covered", "problems predicted"),
    Column("changed", "sign changes"),
    Column("closer", "closer than the flow"),
    Column("distance", "distance / flow's, mean", _short),
    Column("excess", "l1 excess / flow's, mean", _short),
    Column("shrinkage", "log(mu_0 / mu), mean", _short),
    Column("error", "end - prediction, most", scientific),
    Column("drift", "energy balance off by", scientific),
)
_MOMENTA = (
    Column("momentum", "beta", _short),
    Column("step", "gamma", scientific),
    Column("time_step", "time of a step", scientific),
    Column("num_steps", "steps"),
    Column("away", "end from the flow's", scientific),
    Column("residual", "residual", scientific),
)


def report(result: Result) -> Report:
    """One table by mass, over all problems, one table of descent with momentum, and the checks."""
    masses = [_mass_row(result, k) for k in range(len(result.config.masses))]
    momenta = [{**vars(run), "time_step": run.time_step} for run in result.momenta]
    mass = result.config.momentum.mass
    return Report(
        experiment="papazov2024",
        title=TITLE,
        config=result.config,
        reduced=result.reduced,
        tables=(
            Table("masses", "Limits by mass", _MASSES, masses),
            Table("momenta", f"Descent with momentum, lambda = {mass:g}", _MOMENTA, momenta),
            comparison(claims(masses, momenta)),
        ),
        checks=_checks(masses, momenta),
        captions=CAPTIONS,
    )


def _checks(masses, momenta) -> tuple[Check, ...]:
    covered = [row for row in masses if row["covered"]]
    return (
        worst_of("end of a flow minus its prediction", covered, "error", 1e-8, _of_mass),
        worst_of("energy balance off by", masses, "drift", 1e-8, _of_mass),
        Check(
            "masses without a prediction at the small end",
            float(masses[0]["covered"] == 0),
            0,
            _of_mass(masses[0]),
        ),
        worst_of(
            "residual of descent with momentum",
            momenta,
            "residual",
            1e-6,
            lambda row: f"beta = {row['momentum']:g}",
        ),
    )


def _of_mass(row):
    return f"lambda = {row['mass']:g}"


def _mass_row(result: Result, k: int) -> dict[str, Any]:
    relative: dict[str, list[float]] = {"distance": [], "excess": [], "shrinkage": [], "error": []}
    changed = 0
    for run in result.runs:
        base, ends = result.baselines[run.problem], run.ends
        changed += bool(run.sign_changes[k])
        if not run.covered[k]:
            continue
        excess = base.l1_norm - base.least_l1_norm
        relative["distance"].append(ends.distance[k] / base.distance)
        relative["excess"].append((ends.l1_norm[k] - base.least_l1_norm) / excess)
        relative["shrinkage"].append(ends.shrinkage[k])
        relative["error"].append(ends.error[k])
    found = {key: np.asarray(values) for key, values in relative.items()}
    covered = found["distance"].size
    nothing = float("nan")
    return {
        "mass": result.config.masses[k],
        "covered": covered,
        "changed": changed,
        "closer": int(np.sum(found["distance"] < 1)),
        "distance": float(np.mean(found["distance"])) if covered else nothing,
        "excess": float(np.mean(found["excess"])) if covered else nothing,
        "shrinkage": float(np.mean(found["shrinkage"])) if covered else nothing,
        "error": float(np.max(found["error"])) if covered else nothing,
        "drift": max(float(run.energy_drift[k]) for run in result.runs),
    }

"""The tables and checks of the experiment on Pesme et al. 2021, from a `Result`."""

from typing import Any

import numpy as np

from ..formats import scientific
from ..report import Check, Column, Report, Table, comparison, worst_of
from .claims import CAPTIONS, claims
from .results import Result

TITLE = "Pesme, Pillaud-Vivien & Flammarion 2021: stochastic gradient flow of two diagonal layers"


def _short(value):
    return f"{value:.4g}"


_NOISES = (
    Column("noise", "s^2 / L", _short),
    Column("paths", "paths"),
    Column("fits", "fit the data"),
    Column("closer", "closer than the flow"),
    Column("spent", "int s^2 dt, mean", _short),
    Column("shrinkage", "log(mu_0 / mu), mean", _short),
    Column("distance", "distance / flow's, mean", _short),
    Column("excess", "l1 excess / flow's, mean", _short),
    Column("worst_excess", "most", _short),
    Column("error", "end - prediction, most", scientific),
    Column("scale_error", "log mu - prediction, most", scientific),
)
_PROBLEMS = (
    Column("problem", "problem"),
    Column("noise", "s^2 / L", _short),
    Column("ended_by", "stopped by"),
    Column("most_steps", "steps, most"),
    Column("flow_distance", "distance, flow", _short),
    Column("distance", "paths, mean", _short),
    Column("flow_l1", "l1 norm, flow", _short),
    Column("l1", "paths, mean", _short),
    Column("least_l1", "least", _short),
    Column("error", "end - prediction, most", scientific),
)


def report(result: Result) -> Report:
    """One table by noise, over all problems, one table by problem, and the checks."""
    noises = [_noise_row(result, noise) for noise in result.config.noises]
    problems = [_problem_row(result, run) for run in result.runs]
    relation = _relation(result)
    return Report(
        experiment="pesme2021",
        title=TITLE,
        config=result.config,
        reduced=result.reduced,
        tables=(
            Table("noises", "Limits by noise", _NOISES, noises),
            Table("problems", "Limits by problem", _PROBLEMS, problems),
            comparison(claims(noises, relation)),
        ),
        checks=_checks(noises),
        captions=CAPTIONS,
    )


def _checks(noises) -> tuple[Check, ...]:
    # Residuals of 1e-10 leave errors of 1e-10 divided by the smallest singular value of X.
    return (
        worst_of("end of a path minus its prediction", noises, "error", 1e-8, _of_noise),
        # mu of the layers at the end is compared with the integral. These layers are exponentials
        # of logarithms.
        worst_of("log mu minus its prediction", noises, "scale_error", 1e-9, _of_noise),
        worst_of("noises without a path that fits the data", noises, "no_path", 0, _of_noise),
    )


def _of_noise(row):
    return f"noise {row['noise']:g}"


def _relative(result: Result, noise: float) -> dict[str, np.ndarray]:
    """Distance and l1 excess divided by the flow's, int s^2 dt, shrinkage; of paths that fit."""
    found: dict[str, list] = {"distance": [], "excess": [], "spent": [], "shrinkage": []}
    for run in result.of_noise(noise):
        base, ends, kept = result.baselines[run.problem], run.ends, run.ends.fits
        excess = base.l1_norm - base.least_l1_norm
        found["distance"].append(ends.distance[kept] / base.distance)
        found["excess"].append((ends.l1_norm[kept] - base.least_l1_norm) / excess)
        found["spent"].append(run.spent[kept])
        found["shrinkage"].append(ends.shrinkage[kept])
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _mean(values):
    return float(np.mean(values)) if len(values) else float("nan")


def _largest(values):
    kept = values[~np.isnan(values)]
    return float(np.max(kept)) if kept.size else float("nan")


def _noise_row(result: Result, noise: float) -> dict[str, Any]:
    runs, relative = result.of_noise(noise), _relative(result, noise)
    fits = len(relative["distance"])
    return {
        "noise": noise,
        "paths": sum(run.ends.fits.size for run in runs),
        "fits": fits,
        "no_path": int(fits == 0),
        "closer": int(np.sum(relative["distance"] < 1)),
        "spent": _mean(relative["spent"]),
        "shrinkage": _mean(relative["shrinkage"]),
        "distance": _mean(relative["distance"]),
        "excess": _mean(relative["excess"]),
        "worst_excess": _largest(relative["excess"]),
        "error": _largest(np.concatenate([run.ends.error for run in runs])),
        "scale_error": max(float(np.max(run.scale_error)) for run in runs),
    }


def _problem_row(result: Result, run) -> dict[str, Any]:
    base, kept = result.baselines[run.problem], run.ends.fits
    return {
        "problem": run.problem + 1,
        "noise": run.noise,
        "ended_by": run.ended_by,
        "most_steps": run.most_steps,
        "flow_distance": base.distance,
        "distance": _mean(run.ends.distance[kept]),
        "flow_l1": base.l1_norm,
        "l1": _mean(run.ends.l1_norm[kept]),
        "least_l1": base.least_l1_norm,
        "error": _largest(run.ends.error),
    }


def _relation(result: Result) -> dict[str, float]:
    """Spearman's rank correlation of int s^2 dt with the relative distance, over all paths."""
    parts = [_relative(result, noise) for noise in result.config.noises]
    spent, distance = (np.concatenate([p[key] for p in parts]) for key in ("spent", "distance"))
    ranks = np.stack([np.argsort(np.argsort(values)) for values in (spent, distance)])
    return {"rank": float(np.asarray(np.corrcoef(ranks))[0, 1])}

"""The tables and checks of the experiment on Gunasekar et al. 2018, from a `Result`."""

import fractions
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..formats import scientific
from ..report import Column, Report, Table, comparison
from .checks import LOG_FACTOR, checks
from .claims import CAPTIONS, claims
from .results import Result, Run, moduli_of, participation_ratio

TITLE = "Gunasekar, Lee, Soudry & Srebro 2018: implicit bias of linear networks"
# The domain in which the limit of an architecture is sparse.
SPARSE_DOMAINS = {"diagonal": "signal", "convolutional": "frequency"}
# The rounding error of a modulus of a discrete Fourier transform, relative to the largest modulus.
_DFT_ROUNDING = 8 * np.finfo(float).eps
# Limits whose distance is below this count as one.
_SAME = 1e-6


def _fixed(digits):
    return lambda value: "" if value is None else f"{value:.{digits}f}"


def _optional(value):
    return "" if value is None else scientific(value)


_LANE = (Column("architecture", "architecture"), Column("depth", "L"))
_LIMITS = (
    *_LANE,
    Column("runs", "runs"),
    Column("certified", "certified"),
    Column("parameter_residual", "KKT residual", scientific),
    Column("predictor_residual", "in predictor space", scientific),
    Column("reference", "maximum margin"),
    Column("distance", "limit - that", scientific),
    Column("convex_distance", "limit - depth 2", scientific),
    Column("cost_ratio", "R(limit) / R(depth 2)", _fixed(4)),
    Column("num_limits", "distinct limits"),
    Column("moved", "limit - flow's end", scientific),
)
_SPARSITY = (
    *_LANE,
    Column("signal_count", "entries", _fixed(1)),
    Column("frequency_count", "frequencies", _fixed(1)),
    Column("signal_ratio", "participation: entries", _fixed(2)),
    Column("frequency_ratio", "frequencies", _fixed(2)),
    Column("num_support", "support samples", _fixed(1)),
    Column("largest_zero", "largest zero", _optional),
    Column("smallest_entry", "smallest other", _optional),
)
_DESCENT = (
    *_LANE,
    Column("num_steps", "steps"),
    Column("loss", "largest loss", scientific),
    Column("lag", "distance to the flow at its loss", scientific),
    Column("tenth_distance", "to the limit after a tenth, mean", _fixed(3)),
    Column("distance", "at the end, mean", _fixed(3)),
    Column("largest_distance", "at the end, largest", _fixed(3)),
)
_INDUCED = (
    *_LANE,
    Column("squared_norm", "norm squared at the limit", _fixed(6)),
    Column("difference", "R - that", scientific),
    Column("minimal_difference", "minimal network - R", scientific),
    Column("random_ratio", "largest R / norm squared at random", _fixed(6)),
    Column("printed_unnormalised", "Lemma 7 as printed, numpy's DFT", _fixed(3)),
    Column("printed_unitary", "unitary DFT", _fixed(3)),
)
_RUNS = (
    *_LANE,
    Column("start", "start"),
    Column("status", "status"),
    Column("reason", "reason"),
    Column("parameter_residual", "KKT residual", scientific),
    Column("predictor_residual", "in predictor space", scientific),
    Column("distance", "limit - maximum margin", scientific),
    Column("convex_distance", "limit - depth 2", scientific),
    Column("cost_ratio", "R(limit) / R(depth 2)", _fixed(4)),
    Column("support", "support samples", lambda samples: " ".join(map(str, samples))),
    Column("signal_count", "entries"),
    Column("frequency_count", "frequencies"),
)


def report(result: Result) -> Report:
    """Tables and acceptance checks; the tolerances are the configuration's."""
    config = result.config
    runs = list(_runs(result))
    limits, sparsity = list(_limits(result, runs)), list(_sparsity(result, runs))
    induced, descents = list(_induced(result)), list(_descents(result))
    growth = list(_growth(result, sparsity))
    return Report(
        experiment="gunasekar2018",
        title=TITLE,
        config=config,
        reduced=result.reduced,
        tables=(
            Table("limits", "Theorems 1, 2, 2a and 4: worst cases of the starts", _LIMITS, limits),
            Table("sparsity", "Figure 1: sparsity, mean over the starts", _SPARSITY, sparsity),
            Table("induced", "Lemmas 5 to 7: induced regularisers, worst cases", _INDUCED, induced),
            Table("descent", "Gradient descent", _DESCENT, descents),
            Table("runs", "All limits", _RUNS, runs),
            comparison(claims(result, limits, sparsity, induced)),
        ),
        checks=checks(config, runs, descents, induced, growth),
        captions=CAPTIONS,
    )


def _runs(result) -> Iterator[dict[str, Any]]:
    for (architecture, depth), runs in result.runs.items():
        for run in runs:
            domain = SPARSE_DOMAINS.get(architecture)
            yield {
                "architecture": architecture,
                "depth": depth,
                "start": run.start,
                "status": run.status,
                "reason": run.reason,
                "certified": run.certified,
                "parameter_residual": run.parameter_residual,
                "predictor_residual": run.predictor_residual,
                "distance": float(np.linalg.norm(run.direction - run.reference)),
                "convex_distance": float(np.linalg.norm(run.direction - run.convex)),
                "moved": run.moved,
                "support": run.support,
                "num_support": run.support.size,
                "cost_ratio": run.regularizer / run.convex_regularizer,
                **_sparsity_of(run.direction, domain, result.config.threshold),
                "direction": run.direction,
            }


def _sparsity_of(direction, domain, threshold) -> dict[str, Any]:
    """Counts and participation ratios in both domains.

    In `domain` also the largest of the zeros and the smallest of the other moduli.
    """
    found: dict[str, Any] = {"largest_zero": 0.0, "smallest_entry": None}
    for name in ("signal", "frequency"):
        moduli = moduli_of(direction, name)
        above = moduli > threshold
        found[f"{name}_count"] = int(above.sum())
        found[f"{name}_ratio"] = participation_ratio(moduli)
        if name == domain:
            found["largest_zero"] = float(np.max(moduli[~above], initial=0.0))
            found["smallest_entry"] = float(np.min(moduli[above]))
    return found


def _by_lane(result, runs) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    for architecture, depth in result.runs:
        lane = {"architecture": architecture, "depth": depth}
        yield lane, [row for row in runs if lane.items() <= row.items()]


def _limits(result, runs) -> Iterator[dict[str, Any]]:
    for lane, rows in _by_lane(result, runs):
        worst = (
            "parameter_residual",
            "predictor_residual",
            "distance",
            "convex_distance",
            "cost_ratio",
            "moved",
        )
        yield {
            **lane,
            "runs": len(rows),
            "certified": sum(row["certified"] for row in rows),
            **{key: max(row[key] for row in rows) for key in worst},
            "reference": _norm_name(**lane),
            "num_limits": _num_different([row["direction"] for row in rows]),
        }


def _norm_name(architecture, depth) -> str:
    if architecture not in SPARSE_DOMAINS:
        return "l2"
    power = fractions.Fraction(2, depth)
    return f"l{power}" + (" of the DFT" if architecture == "convolutional" else "")


def _num_different(directions) -> int:
    kept: list[np.ndarray] = []
    for direction in directions:
        if all(np.linalg.norm(direction - other) > _SAME for other in kept):
            kept.append(direction)
    return len(kept)


def _sparsity(result, runs) -> Iterator[dict[str, Any]]:
    means = ("signal_count", "frequency_count", "signal_ratio", "frequency_ratio", "num_support")
    for lane, rows in _by_lane(result, runs):
        yield {
            **lane,
            **{key: float(np.mean([row[key] for row in rows])) for key in means},
            "largest_zero": max(row["largest_zero"] for row in rows),
            "smallest_entry": None
            if lane["architecture"] not in SPARSE_DOMAINS
            else min(row["smallest_entry"] for row in rows),
        }


def _growth(result, sparsity) -> Iterator[dict[str, Any]]:
    """The change of the limits' sparsity from depth 2 to larger depths, in their sparse domain."""
    by_lane = {(row["architecture"], row["depth"]): row for row in sparsity}
    for (architecture, depth), row in by_lane.items():
        shallow = by_lane.get((architecture, 2))
        if architecture in SPARSE_DOMAINS and depth > 2 and shallow is not None:
            domain = SPARSE_DOMAINS[architecture]
            yield {
                "architecture": architecture,
                "depth": depth,
                "count_growth": row[f"{domain}_count"] - shallow[f"{domain}_count"],
                "ratio_growth": row[f"{domain}_ratio"] - shallow[f"{domain}_ratio"],
            }


def _descents(result) -> Iterator[dict[str, Any]]:
    for (architecture, depth), runs in result.runs.items():
        descents = [run.descent for run in runs]
        distance = np.mean([descent.distance for descent in descents], axis=0)
        yield {
            "architecture": architecture,
            "depth": depth,
            "num_steps": int(descents[0].step[-1]),
            "loss": float(np.exp(np.max([descent.log_loss[-1] for descent in descents]))),
            # Without the first step, where both are at the same point.
            "lag": float(np.max([descent.lag[1:] for descent in descents])),
            "tenth_distance": float(distance[1]),
            "distance": float(distance[-1]),
            "largest_distance": float(np.max([descent.distance[-1] for descent in descents])),
            "progress": float(distance[-1] / distance[1]),
        }


def _induced(result) -> Iterator[dict[str, Any]]:
    for (architecture, depth), runs in result.runs.items():
        random = result.random[architecture, depth]
        ratios = random.regularizers / random.squared_norms
        rows = [_costs(run) for run in runs]
        worst = {key: max((row[key] for row in rows), key=abs) for key in rows[0]}
        is_printed = architecture == "convolutional"
        yield {
            "architecture": architecture,
            "depth": depth,
            **worst,
            "squared_norm": runs[0].squared_norm,
            "minimal_error": max(run.minimal_error for run in runs),
            "random_ratio": float(ratios.max()),
            "random_excess": float(ratios.max()) - 1,
            "printed_unnormalised": worst["printed_unnormalised"] if is_printed else None,
            "printed_unitary": worst["printed_unitary"] if is_printed else None,
            # The check passes if both factors differ from 1 by more than a factor of 1.1.
            "printed_kept": _log_factor(rows) if is_printed else None,
        }


def _costs(run: Run) -> dict[str, float]:
    """R and |Theta|^2 of one limit network, relative to |Theta|^2."""
    difference = (run.regularizer - run.squared_norm) / run.squared_norm
    minimal = (run.minimal_squared_norm - run.regularizer) / run.squared_norm
    spectrum = np.abs(np.fft.fft(run.coefficients))
    # The computed modulus of a frequency that is zero is about the rounding error of the largest
    # modulus. Its power 2/L is much larger than a rounding error. R may be wrong by this amount.
    rounding = 0.0
    if run.architecture == "convolutional":
        rounding = (
            run.depth * (_DFT_ROUNDING * spectrum.max()) ** (2 / run.depth) / run.squared_norm
        )
    printed = run.depth * np.sum(spectrum ** (2 / run.depth)) / run.squared_norm
    return {
        "difference": difference,
        "excess": max(0.0, abs(difference) - rounding),
        "minimal_difference": minimal,
        "minimal_excess": max(0.0, abs(minimal) - rounding),
        "printed_unnormalised": printed,
        "printed_unitary": printed * run.direction.size ** (-1 / run.depth),
    }


def _log_factor(rows) -> float:
    """log 1.1 - |log factor| for the printed constant with the DFT that fits better."""
    factors = [row[key] for row in rows for key in ("printed_unnormalised", "printed_unitary")]
    return float(LOG_FACTOR - np.min(np.abs(np.log(factors))))

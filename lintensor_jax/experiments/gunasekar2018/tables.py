"""The tables and checks of `gunasekar2018`, from its arrays."""

import fractions
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from .gunasekar2018_paper import CAPTIONS, claims
from .report import Check, Column, Report, Table, comparison, scientific, worst_of

if TYPE_CHECKING:
    from .gunasekar2018 import Result
    from .gunasekar2018_runs import Run

TITLE = "Gunasekar, Lee, Soudry & Srebro 2018: implicit bias of linear networks"
# In which domain an architecture's limit is sparse.
SPARSE_DOMAINS = {"diagonal": "signal", "convolutional": "frequency"}
# Modulus, in units of the largest, up to which rounding of a discrete Fourier transform reaches.
_DUST = 8 * np.finfo(float).eps
# Of |Theta|^2 and R, sums of d or of hundreds of terms.
_ROUNDING = 1e-12
# The least factor by which the printed constants are to be off.
_LOG_FACTOR = float(np.log(1.1))
# Limits that are nearer than this are one.
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


def participation_ratio(moduli: np.ndarray) -> float:
    """(sum m^2)^2 / sum m^4: k for k moduli that are equal, and zeros."""
    return float((moduli**2).sum() ** 2 / (moduli**4).sum())


def moduli_of(direction: np.ndarray, domain: str) -> np.ndarray:
    """Moduli (d,) of the entries ("signal") or of numpy's Fourier transform; the largest is 1."""
    moduli = np.abs(np.fft.fft(direction) if domain == "frequency" else direction)
    return moduli / moduli.max()


def report(result: "Result") -> Report:
    """Tables and acceptance checks; the tolerances are the configuration's."""
    config = result.config
    runs = list(_runs(result))
    lanes = [list(_limits(result, runs)), list(_sparsity(result, runs))]
    induced, descents = list(_induced(result)), list(_descents(result))
    uncertified = [row for row in runs if not row["certified"]]
    growth = list(_growth(result, lanes[1]))
    checks = [
        Check(
            "limits that are not certified",
            len(uncertified),
            0,
            _label(uncertified[0]) if uncertified else "none",
        ),
        worst_of("Theorem 4: KKT residual", runs, "parameter_residual", config.residual, _label),
        worst_of(
            "KKT residual in predictor space", runs, "predictor_residual", config.residual, _label
        ),
        worst_of(
            "limit against the conic programs' separator",
            runs,
            "distance",
            config.agreement,
            _label,
        ),
        worst_of("zeros are zero", runs, "largest_zero", config.threshold * 1e-3, _label),
        worst_of(
            "descent: distance to the flow at its loss",
            descents,
            "lag",
            config.descent_lag,
            _label,
        ),
        worst_of(
            "descent: mean distance to the limit at the end over that after a tenth",
            descents,
            "progress",
            1,
            _label,
        ),
        worst_of(
            "Lemmas 5-7: R at the limit against its norm squared",
            induced,
            "excess",
            config.agreement,
            _label,
        ),
        worst_of(
            "minimal network: its norm squared against R",
            induced,
            "minimal_excess",
            config.agreement,
            _label,
        ),
        worst_of(
            "minimal network: its coefficients", induced, "minimal_error", config.agreement, _label
        ),
        worst_of(
            "random networks: R is at most the norm squared",
            induced,
            "random_excess",
            _ROUNDING,
            _label,
            lambda row: f"the largest ratio is 1 {_signed(row['random_excess'])}, 1 is allowed",
        ),
    ]
    optional = (
        ("deeper is sparser: change of the count from depth 2", growth, "count_growth", 0),
        ("deeper is sparser: change of the participation from depth 2", growth, "ratio_growth", 0),
        (
            "erratum: Lemma 7 as printed fails for either DFT, numpy's and the unitary one",
            [row for row in induced if row["printed_kept"] is not None],
            "printed_kept",
            0,
            lambda row: (
                f"off by a factor of {np.exp(_LOG_FACTOR - row['printed_kept']):.3g} or more, "
                f"{np.exp(_LOG_FACTOR):.2g} is asked"
            ),
        ),
    )
    checks += [
        worst_of(name, rows, key, bound, _label, *tell)
        for name, rows, key, bound, *tell in optional
        if rows
    ]
    return Report(
        experiment="gunasekar2018",
        title=TITLE,
        config=config,
        reduced=result.reduced,
        tables=(
            Table(
                "limits", "Theorems 1, 2, 2a and 4: worst cases of the starts", _LIMITS, lanes[0]
            ),
            Table("sparsity", "Figure 1: sparsity, mean over the starts", _SPARSITY, lanes[1]),
            Table("induced", "Lemmas 5 to 7: induced regularisers, worst cases", _INDUCED, induced),
            Table("descent", "Gradient descent", _DESCENT, descents),
            Table("runs", "All limits", _RUNS, runs),
            comparison(claims(result, lanes[0], lanes[1], induced)),
        ),
        checks=tuple(checks),
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
    """Counts and participation ratios in both domains; zeros and the rest in the sparse one."""
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
    """Of the deeper networks: how much denser than at depth 2 in the domain of sparsity."""
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
            # The start is the same point.
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
            # A check passes below its bound: here, with both factors farther from 1 than 1.1.
            "printed_kept": _log_factor(rows) if is_printed else None,
        }


def _costs(run: "Run") -> dict[str, float]:
    """R and |Theta|^2 of one limit network, relative to |Theta|^2."""
    difference = (run.regularizer - run.squared_norm) / run.squared_norm
    minimal = (run.minimal_squared_norm - run.regularizer) / run.squared_norm
    spectrum = np.abs(np.fft.fft(run.coefficients))
    # A zero frequency comes out as rounding of the largest, whose power 2/L is far from rounding:
    # by so much R may be off, and no more.
    dust = 0.0
    if run.architecture == "convolutional":
        dust = run.depth * (_DUST * spectrum.max()) ** (2 / run.depth) / run.squared_norm
    printed = run.depth * np.sum(spectrum ** (2 / run.depth)) / run.squared_norm
    return {
        "difference": difference,
        "excess": max(0.0, abs(difference) - dust),
        "minimal_difference": minimal,
        "minimal_excess": max(0.0, abs(minimal) - dust),
        "printed_unnormalised": printed,
        "printed_unitary": printed * run.direction.size ** (-1 / run.depth),
    }


def _log_factor(rows) -> float:
    """How much the printed constants, by the DFT that fits better, are nearer than a factor 1.1."""
    factors = [row[key] for row in rows for key in ("printed_unnormalised", "printed_unitary")]
    return float(_LOG_FACTOR - np.min(np.abs(np.log(factors))))


def _signed(value):
    return f"{'-' if value < 0 else '+'} {abs(value):.2g}"


def _label(row):
    start = f", start {row['start']}" if "start" in row else ""
    return f"{row['architecture']}, L = {row['depth']}{start}"

"""The tables and checks of the experiment on Ji & Telgarsky 2019, from a `Result`."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..formats import power_of_ten, scientific
from ..report import Check, Column, Report, Table, comparison, worst_of
from .claims import CAPTIONS, claims
from .results import Result

TITLE = "Ji & Telgarsky 2019, Figures 1 to 3"


def _optional(value: float | None) -> str:
    return "" if value is None else scientific(value)


_RUN = (Column("data", "data"), Column("depth", "depth"), Column("start", "start"))
_FLOWS = (
    *_RUN,
    Column("excess", "log R(W(0))/R(0)", lambda x: f"{x:z.3f}"),
    Column("num_steps", "steps"),
    Column("status", "stopped by"),
    Column("log10_margin", "margin", power_of_ten),
    Column("distance", "distance to max margin", scientific),
    Column("input_misalignment", "1 - <v_1, max margin>^2", _optional),
    Column("margin_deficit", "1 - normalised margin / gamma", _optional),
    Column("rank_one_defect", "1 - least rank-one ratio", _optional),
    Column("misalignment", "1 - least <v, u>^2", _optional),
    Column("constant", "D", lambda x: "" if x is None else f"{x:.2f}"),
    Column("tightest", "largest share of a bound used", lambda x: "" if x is None else f"{x:.2f}"),
    Column("violations", "violations", lambda x: "" if x is None else str(x)),
    Column("smoothed_margin_drop", "drop of the smoothed margin", scientific),
    Column("invariant_drift", "drift", _optional),
)
_DESCENTS = (
    *_RUN,
    Column("steps", "step sizes"),
    Column("num_steps", "steps"),
    Column("step_size", "last step size", scientific),
    Column("risk", "risk", scientific),
    Column("distance", "distance to max margin", scientific),
    Column("largest_increase", "largest change of log risk", scientific),
    Column("tightest", "largest share of a bound used", lambda x: "" if x is None else f"{x:.2f}"),
    Column("violations", "violations", lambda x: "" if x is None else str(x)),
)
_COUNTEREXAMPLE = (
    Column("offset", "norm of w_1 + w_2 at the start", lambda x: f"{x:g}"),
    Column("excess", "log R(W(0))/R(0)", lambda x: f"{x:z.3f}"),
    Column("gradient", "gradient (relative)", lambda x: f"{x:.2f}"),
    Column("risk", "risk at the end", lambda x: f"{x:.6f}"),
    Column("norm", "norm of w_1 at the end", scientific),
    Column("sum_of_layers", "norm of w_1 + w_2 at the end", scientific),
)
_IMAGES = (
    Column("images", "images"),
    Column("start", "start"),
    Column("layer", "layer"),
    Column("shape", "shape", lambda shape: f"{shape[0]} x {shape[1]}"),
    Column("smallest_ratio", "smallest possible", lambda x: f"{x:.3f}"),
    Column("initial_ratio", "rank-one ratio at the start", lambda x: f"{x:.3f}"),
    Column("ratio", "at the end", lambda x: f"{x:.3f}"),
    Column("overlap", "<v_{k+1}, u_k>^2 at the end", lambda x: "" if x is None else f"{x:.3f}"),
    Column("risk", "risk", scientific),
    Column("accuracy", "accuracy", lambda x: f"{x:.3f}"),
)
_SUMMARY = (
    Column("data", "data"),
    Column("depth", "depth"),
    Column("flows", "flows"),
    Column("num_steps", "most steps"),
    Column("distance", "worst distance to max margin", scientific),
    Column("tightest", "largest share of a bound", lambda x: "" if x is None else f"{x:.2f}"),
    Column("descent_risk", "risk of descent (constant step)", scientific),
    Column("descent_distance", "its distance", scientific),
)


def report(result: Result) -> Report:
    """A summary, tables with one row for each run, and the checks."""
    flows = [_flow(result, run) for run in result.flows]
    descents = [_descent(result, run) for run in result.descents]
    counterexamples = [_counterexample(run) for run in result.counterexamples]
    images = [row for run in result.images for row in _image_layers(run)]
    tables = (
        Table("summary", "Worst cases", _SUMMARY, list(_summary(flows, descents))),
        Table("flows", "Gradient flows: alignment and the maximum margin", _FLOWS, flows),
        Table("descents", "Gradient descent: Lemma C.7", _DESCENTS, descents),
        Table(
            "counterexample",
            "Appendix A: w_1 = -w_2 never learns",
            _COUNTEREXAMPLE,
            counterexamples,
        ),
        *([Table("images", "Figure 3: a nonlinear network", _IMAGES, images)] if images else []),
        comparison(claims(result, flows, descents, counterexamples, images)),
    )
    return Report(
        experiment="ji-telgarsky2019",
        title=TITLE if images else f"{TITLE} (without 3, which needs images)",
        config=result.config,
        reduced=result.reduced,
        tables=tables,
        captions=CAPTIONS,
        checks=tuple(_checks(result.config, flows, descents, counterexamples, images)),
    )


def _checks(config, flows, descents, counterexamples, images) -> Iterator[Check]:
    deep = [row for row in flows if row["depth"] > 1]
    proven = [row for row in descents if row["violations"] is not None]
    yield worst_of("Assumption 1.2, conditions that fail", flows, "failing", 0, _label)
    others = [row for row in flows if row["status"] != "margin"]
    shown = f"{_label(others[0])} stopped by {others[0]['status']}" if others else "none"
    yield Check("flows not stopped by their margin", len(others), 0, shown)
    yield worst_of("Lemma 2.6, saved times that violate it", deep, "violations", 0, _label)
    yield worst_of("invariant drift", deep, "invariant_drift", config.flow.drift, _label)
    # The exact flow's smoothed margin never decreases; integration may decrease it by rtol.
    yield worst_of(
        "drop of the log smoothed margin", flows, "smoothed_margin_drop", config.flow.rtol, _label
    )
    yield worst_of(
        "distance to the maximum-margin direction",
        flows,
        "distance",
        config.flow.agreement,
        _label,
    )
    yield worst_of("Lemma C.7, saved steps that violate it", proven, "violations", 0, _label)
    yield worst_of(
        "Assumption 3.5, largest change of log risk", proven, "largest_increase", 0.0, _label
    )
    yield worst_of("risk below l(0) from w_1 = -w_2", counterexamples[:1], "below", 1e-12, _offset)
    yield worst_of("risk once w_1 + w_2 is not zero", counterexamples[1:], "risk", 0.1, _offset)
    if images:
        yield worst_of(
            "images: smallest possible rank-one ratio over the one reached",
            images,
            "floor_share",
            0.9,
            _layer_label,
        )
        # The last layer is left out: with ten outputs its ratio hardly changes in training.
        hidden = [row for row in images if row["overlap"] is not None]
        yield worst_of(
            "images: initial rank-one ratio over the final one, layers before the last",
            hidden,
            "growth_share",
            1.0,
            _layer_label,
        )
        yield worst_of("images: risk", images, "risk", config.images.final_risk, _layer_label)


def _flow(result, run) -> dict[str, Any]:
    data = result.datasets[run.data]
    row = {
        "data": run.data,
        "depth": run.depth,
        "start": run.start,
        "failing": sum(not condition.holds for condition in run.conditions),
        "excess": run.conditions[0].value,
        "num_steps": run.num_steps,
        "status": run.status,
        "log10_margin": run.log_margin / math.log(10),
        "log_risk": float(run.log_risk[-1]),
        "distance": float(np.linalg.norm(run.direction[-1] - data.max_margin)),
        "smoothed_margin_drop": run.smoothed_margin_drop,
    }
    deep_only_keys = (
        "input_misalignment",
        "margin_deficit",
        "rank_one_defect",
        "misalignment",
        "constant",
    )
    if run.bounds is None:
        return {
            **row,
            **dict.fromkeys((*deep_only_keys, "tightest", "violations", "invariant_drift")),
        }
    end = run.bounds.alignment
    v = end.input_direction[-1]
    log_product = float(np.sum(np.log(end.frobenius_norms[-1])))
    return {
        **row,
        "input_misalignment": float(np.sum((v - data.max_margin * (data.max_margin @ v)) ** 2)),
        "margin_deficit": 1 - math.exp(run.log_margin - log_product) / data.margin,
        "rank_one_defect": float(1 - end.rank_one_ratios[-1].min()),
        "misalignment": float(end.misalignments[-1].max()),
        "constant": float(run.bounds.remainder_limit[0]),
        **_shares(run.bounds),
        "invariant_drift": run.invariant_drift,
    }


def _shares(bounds, spread=False):
    """The largest quotient of a quantity and its bound; the number of saved times above 1."""
    shares = [
        bounds.remainder / bounds.remainder_limit[:, None],
        bounds.misalignment / bounds.misalignment_limit,
    ]
    if spread:
        shares.append((bounds.growth_spread / bounds.growth_spread_limit)[:, None])
    worst = np.concatenate(shares, axis=1).max(axis=1)
    # `not <=`, so that a NaN counts as a violation.
    return {"tightest": float(worst.max()), "violations": int(np.sum(~(worst <= 1)))}


def _descent(result, run) -> dict[str, Any]:
    nothing = {"tightest": None, "violations": None}
    away = run.direction[-1] - result.datasets[run.data].max_margin
    return {
        "data": run.data,
        "depth": run.depth,
        "start": run.start,
        "steps": run.steps,
        "num_steps": run.num_steps,
        "step_size": run.step_size,
        "risk": math.exp(run.log_risk[-1]),
        "distance": float(np.linalg.norm(away)),
        "largest_increase": float(np.diff(run.log_risk).max()),
        **(nothing if run.bounds is None else _shares(run.bounds, spread=True)),
    }


def _counterexample(run) -> dict[str, Any]:
    return {
        "offset": run.offset,
        "excess": run.conditions[0].value,
        "gradient": run.conditions[1].value,
        "risk": math.exp(run.log_risk[-1]),
        "below": float(np.max(-run.log_risk)),
        "norm": float(run.norm[-1]),
        "sum_of_layers": float(run.sum_of_layers[-1]),
    }


def _image_layers(run) -> Iterator[dict[str, Any]]:
    for layer, shape in enumerate(run.shapes):
        initial, ratio = (float(run.ratios[epoch, layer]) for epoch in (0, -1))
        last = layer == len(run.shapes) - 1
        yield {
            "images": run.images,
            "start": run.start,
            "layer": layer + 1,
            "shape": shape,
            "smallest_ratio": 1 / math.sqrt(min(shape)),
            "floor_share": 1 / math.sqrt(min(shape)) / ratio,
            "initial_ratio": initial,
            "ratio": ratio,
            "growth_share": initial / ratio,
            "overlap": None if last else float(run.overlaps[-1, layer]),
            "risk": float(run.risk[-1]),
            "accuracy": float(run.accuracy[-1]),
        }


def _summary(flows, descents) -> Iterator[dict[str, Any]]:
    for data, depth in dict.fromkeys((row["data"], row["depth"]) for row in flows):
        rows = [row for row in flows if (row["data"], row["depth"]) == (data, depth)]
        descent = next(
            row
            for row in descents
            if (row["data"], row["depth"], row["steps"]) == (data, depth, "constant")
        )
        yield {
            "data": data,
            "depth": depth,
            "flows": len(rows),
            "num_steps": max(row["num_steps"] for row in rows),
            "distance": max(row["distance"] for row in rows),
            "tightest": None if depth == 1 else max(row["tightest"] for row in rows),
            "descent_risk": descent["risk"],
            "descent_distance": descent["distance"],
        }


def _label(row):
    return f"{row['data']}, depth {row['depth']}, start {row['start']}"


def _offset(row):
    return f"w_1 + w_2 = {row['offset']:g}"


def _layer_label(row):
    return f"{row['images']}, {row['start']}, layer {row['layer']}"

"""The figures of the experiment on Eftekhari 2020, from a `Result`."""

import numpy as np
from matplotlib.figure import Figure

from ...figures.panels import Line, LinePanel, panel_figure
from .results import Result, log_ratio

_COLOURS = (0, 1, 2, 5, 4)  # of figures.panels
_BLACK, _GREY = 3, 8
_DISTANCE = r"$\|W - Z_1\|_F$"


def figures(result: Result) -> dict[str, Figure]:
    """Figure 1 far from the target and near it; Theorem 20; the nearby rates against depth."""
    return {
        "figure1": panel_figure([[_faraway(result), _nearby_time(result)]], 2.6, columns=5),
        "theorem20": panel_figure([[_example(result), _ratios(result)]], 2.6, columns=3),
        "nearby_rates": panel_figure([_rates(result)], 2.6, columns=4),
    }


def _curves(result, start, end):
    shown = [(run.times >= start) & (run.times <= end) for run in result.figure]
    for run, kept, colour in zip(result.figure, shown, _COLOURS, strict=False):
        y = run.induced[kept] / run.target_size
        yield Line(run.times[kept], y, f"$N = {run.depth}$", colour, width=2.2)
    for run, kept in zip(result.figure, shown, strict=True):
        y = run.layered[kept] / run.target_size
        yield Line(run.times[kept], y, "the layers' own flow", _BLACK, True, 0.9)


def _faraway(result):
    times = result.figure[0].times
    return LinePanel(
        "Faraway: deeper is faster",
        list(_curves(result, times[1], 0.1 * times[-1])),
        "time $t$",
        _DISTANCE + r"$\;/\;\|Z\|_F$",
        yscale="log",
    )


def _nearby_time(result):
    size, times = result.figure[0].target_size, result.figure[0].times
    return LinePanel(
        f"Nearby, $s_Z = {size:.2f}$: deeper is " + ("slower" if size < 1 else "faster"),
        list(_curves(result, 0.0, times[-1])),
        "time $t$",
        "",
        xscale="linear",
        yscale="log",
    )


def _example(result):
    """The flow with the smallest s_Z of those from far away: (38) as printed fails most there."""
    far = [r for r in result.bounds if np.linalg.norm(r.start.coefficients) > 2.5 * r.start.size]
    run = min(far or result.bounds, key=lambda run: run.start.size)
    usable = np.isfinite(log_ratio(run)) & (run.times > 0)
    x, lowest = run.times[usable], float(run.log_distance[usable][-1]) - 4
    lines = [
        Line(x, np.exp(run.log_distance[usable]), "measured", 1, width=2.2),
        Line(x, np.exp(run.log_bound[usable]), "bound of Theorem 20, corrected", _BLACK),
        Line(
            x,
            np.exp(np.where(run.log_printed > lowest, run.log_printed, np.nan)[usable]),
            "(38) as printed",
            0,
            True,
        ),
    ]
    start = run.start
    return LinePanel(
        rf"One flow: $N = {start.depth}$, $s_Z = {start.size:.2f}$, $\gamma_Z = {start.gap:.4f}$",
        lines,
        "time $t$",
        r"$\|W - Z_1\|_F^2$",
        yscale="log",
    )


def _ratios(result):
    lines = []
    for index, run in enumerate(result.bounds):
        ratio = np.exp(np.maximum(log_ratio(run)[1:], np.log(1e-16)))
        unit = 1 / run.times[-1]
        label = "" if index else f"all {len(result.bounds)} flows"
        lines.append(Line(run.times[1:] * unit, ratio, label, 7, width=0.5))
    ends = np.array([result.bounds[0].times[1] / result.bounds[0].times[-1], 1.0])
    lines.append(Line(ends, np.ones(2), "bound of Theorem 20, corrected", _BLACK, width=1.0))
    return LinePanel(
        "Every flow stays below",
        lines,
        r"time $t$ over $8\,/\,$nearby rate",
        r"$\|W - Z_1\|_F^2\;/\;$bound",
        yscale="log",
    )


def _rates(result):
    sizes = sorted({run.size for run in result.nearby})
    panels = []
    for outputs in sorted({run.outputs for run in result.nearby}):
        lines, points = [], []
        for size, colour in zip(sizes, _COLOURS, strict=False):
            runs = sorted(
                (r for r in result.nearby if (r.outputs, r.size) == (outputs, size)),
                key=lambda run: run.depth,
            )
            unit = runs[0].scale * size
            depths = np.array([run.depth for run in runs], float)
            predicted = np.array([run.predicted for run in runs]) / unit
            # Between whole depths the rate's logarithm is linear in 1/N.
            between = np.linspace(depths[0], depths[-1], 200)
            curve = np.exp(np.interp(-1 / between, -1 / depths, np.log(predicted)))
            lines.append(Line(between, curve, f"linearised, $s_Z = {size:g}$", colour))
            points += [
                Line(
                    np.array([float(run.depth)]),
                    np.array([run.measured / unit]),
                    "measured",
                    _BLACK,
                    end_marker=True,
                )
                for run in runs
            ]
        gap = rf", $\gamma_Z = {result.config.nearby.gap:g}$" if outputs > 1 else ""
        panels.append(
            LinePanel(
                f"{outputs} output{'s' if outputs > 1 else ''}{gap}",
                lines + points,
                "depth $N$",
                "" if panels else r"rate of $\|W - Z_1\|_F\;/\;m s_Z$",
                xscale="linear",
            )
        )
    return panels

"""The figure of the experiment on Papazov et al. 2024, from a `Result`."""

import numpy as np
from matplotlib.figure import Figure

from ...figures.panels import Line, LinePanel, panel_figure
from .results import Result

_HEAVY_BALL, _DESCENT, _FLOW = 0, 1, 8


def figures(result: Result) -> dict[str, Figure]:
    """Limits by mass, and descent against the flow."""
    return {"mass": panel_figure([[_limits(result), _descent(result)]], 2.5, columns=4)}


def _limits(result: Result) -> LinePanel:
    masses = np.array(result.config.masses)
    lines, ratios = [], []
    for run in result.runs:
        ratio = run.ends.distance / result.baselines[run.problem].distance
        ratio = np.where(run.covered, ratio, np.nan)
        ratios.append(ratio)
        kept = np.flatnonzero(run.covered)
        lines.append(Line(masses[kept], ratio[kept], "", _HEAVY_BALL, width=0.5, end_marker=True))
    everywhere = np.all(np.isfinite(ratios), axis=0)
    mean = np.mean(np.stack(ratios)[:, everywhere], axis=0)
    lines.append(Line(masses[everywhere], mean, "heavy-ball flow", _HEAVY_BALL, width=2.0))
    lines.append(Line(masses[[0, -1]], np.ones(2), "gradient flow", _FLOW, dashed=True, width=1.2))
    return LinePanel("Limits, by the mass", lines, r"$\lambda$", "distance / flow's")


def _descent(result: Result) -> LinePanel:
    steps = np.array([run.time_step for run in result.momenta])
    away = np.array([run.away for run in result.momenta])
    line = Line(steps, away, "descent with momentum", _DESCENT)
    guide = Line(steps, away[-1] * steps / steps[-1], "proportional to the time", _FLOW, True, 1.0)
    return LinePanel(
        rf"Descent, $\lambda = {result.config.momentum.mass:g}$",
        [line, guide],
        r"time of a step, $\lambda (1-\beta)$",
        "end, from the flow's",
        yscale="log",
    )

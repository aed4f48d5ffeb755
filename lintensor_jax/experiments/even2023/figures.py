"""The figure of the experiment on Even et al. 2023, from a `Result`."""

import numpy as np
from matplotlib.figure import Figure

from ...figures.panels import Line, LinePanel, panel_figure
from .results import FULL, STOCHASTIC, Result

_COLOURS = {FULL: 0, STOCHASTIC: 1}
_FLOW = 8  # grey
_STEP = "step / largest step that fits"
_SHARES = np.geomspace(1 / 30, 1, 40)


def figures(result: Result) -> dict[str, Figure]:
    """Distances of the limits, and gains by coordinate."""
    return {"steps": panel_figure([[_distances(result), _gains(result)]], 2.6, columns=3)}


def _distances(result: Result) -> LinePanel:
    lines = []
    for method, colour in _COLOURS.items():
        courses = [result.relative(run) for run in result.of(method) if run.largest > 0]
        lines += [Line(x / x[-1], y, "", colour, width=0.4) for x, y in courses]
        lines.append(Line(*_mean(courses), method, colour, width=2.0))
    reach = np.array([_SHARES[0], 1.0])
    flow = Line(reach, np.ones(2), "gradient flow", _FLOW, dashed=True)
    return LinePanel("Limits, by the step", [*lines, flow], _STEP, "distance / flow's")


def _mean(courses):
    """The mean over the problems, at the shares of the largest step that all of them reach."""
    first = max(float(x[0] / x[-1]) for x, _ in courses)
    shares = _SHARES[first * (1 - 1e-12) <= _SHARES]
    values = [np.interp(np.log(shares), np.log(x / x[-1]), y) for x, y in courses]
    return shares, np.mean(values, axis=0)


def _gains(result: Result) -> LinePanel:
    lines = []
    for method, colour in _COLOURS.items():
        runs = [run for run in result.of(method) if run.largest > 0]
        for on, where in ((True, "on the support"), (False, "beside it")):
            courses = []
            for run in runs:
                kept = result.support[run.problem] == on
                steps, gains = run.by_step(run.gains[:, kept].mean(axis=1))
                courses.append((steps, gains))
            label = f"{method}, {where}"
            lines.append(Line(*_mean(courses), label, colour, dashed=not on))
    return LinePanel("Gains, mean over the problems", lines, _STEP, r"$\log(\mu_0/\mu)$")

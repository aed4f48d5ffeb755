"""The figure of the experiment on Pesme et al. 2021, from a `Result`."""

import numpy as np
from matplotlib.figure import Figure

from ...figures.panels import Line, LinePanel, panel_figure
from .results import Result

_FLOW = 8  # grey


def figures(result: Result) -> dict[str, Figure]:
    """Courses of loss and distance, and the limits of all paths."""
    courses = result.courses
    colours = [_FLOW, *range(len(courses) - 1)]
    losses, distances = [], []
    for course, colour in zip(courses, colours, strict=True):
        # Below this the loss is the square of the residual that stops a path.
        kept = course.loss > 1e-19
        losses.append(Line(course.times[kept], course.loss[kept], course.label, colour))
        distances.append(Line(course.times, course.distance, course.label, colour))
    panels = [
        LinePanel("Loss", losses, "time $t$", "$L$", yscale="log"),
        LinePanel(
            "Distance from the sparse vector",
            distances,
            "time $t$",
            r"$\|\beta - \beta^*\|_2$",
        ),
        _limits(result),
    ]
    return {"noise": panel_figure([panels], 2.4, columns=5)}


def _limits(result: Result) -> LinePanel:
    points = []
    for colour, noise in enumerate(result.config.noises):
        for run in result.of_noise(noise):
            kept = run.ends.fits
            ratio = run.ends.distance[kept] / result.baselines[run.problem].distance
            for x, y in zip(run.ends.shrinkage[kept], ratio, strict=True):
                dot = np.array([x]), np.array([y])
                points.append(Line(*dot, f"noise {noise:g}", colour, end_marker=True))
    reach = max((float(line.x[-1]) for line in points), default=1.0)
    flow = Line(np.array([0.0, reach]), np.ones(2), "gradient flow", _FLOW, dashed=True)
    return LinePanel(
        "Limits of all paths",
        [*points, flow],
        r"$\log(\mu_0/\mu)$, mean",
        "distance / flow's",
        xscale="linear",
    )

"""The figure of the experiment on Pesme & Flammarion 2023, from a `Result`."""

import numpy as np
from matplotlib.figure import Figure

from ...figures.panels import COLOURS, Line, LinePanel, panel_figure
from .results import Result

_ALGORITHM = 8  # grey
_TIME = r"time $/\ \log(1/\alpha)$"
_MOST_COLOURS = len(COLOURS) - 2


def figures(result: Result) -> dict[str, Figure]:
    """The loss at all scales, and the coordinates at the smallest one."""
    return {"saddles": panel_figure([[_losses(result), _coordinates(result)]], 2.6, columns=5)}


def _end(result: Result) -> float:
    return 1.15 * float(result.path.times[-1])


def _stairs(result: Result, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A staircase with the values (K+1,) before, between and after the jumps."""
    corners = np.concatenate([[0.0], np.repeat(result.path.times, 2), [_end(result)]])
    return corners, np.repeat(values, 2)


def _until(result: Result, run) -> np.ndarray:
    return run.times <= _end(result)


def _losses(result: Result) -> LinePanel:
    lines = []
    for colour, run in enumerate(result.runs):
        kept = _until(result, run)
        label = rf"$\alpha = 10^{{-{run.digits}}}$"
        lines.append(Line(run.times[kept], run.losses[kept], label, colour))
    steps = _stairs(result, result.path.losses)
    lines.append(Line(*steps, "the algorithm", _ALGORITHM, dashed=True, width=1.0))
    return LinePanel("Training loss", lines, _TIME, "$L$", xscale="linear")


def _coordinates(result: Result) -> LinePanel:
    last = result.runs[-1]
    kept = _until(result, last)
    moving = np.flatnonzero(np.any(result.path.points != 0, axis=0))
    lines = [
        Line(last.times[kept], last.coefficients[kept, i], "", k % _MOST_COLOURS)
        for k, i in enumerate(moving)
    ]
    lines += [
        Line(*_stairs(result, result.path.points[:, i]), "", _ALGORITHM, dashed=True, width=0.9)
        for i in moving
    ]
    title = rf"Coordinates, $\alpha = 10^{{-{last.digits}}}$"
    return LinePanel(title, lines, _TIME, r"$\beta_i$", xscale="linear")

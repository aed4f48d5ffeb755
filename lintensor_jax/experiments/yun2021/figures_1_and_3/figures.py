"""Figures 1 and 3, and the angle between directions and limits, from a `Result`."""

import numpy as np
from matplotlib.figure import Figure

from ....figures.approach import Approach, approach_figure
from ....figures.plane import PlanePanel, plane_figure
from .results import Result


def figures(result: Result) -> dict[str, Figure]:
    """The figures by name, in the paper's layout.

    - "figure1": regression at the smallest and the largest scale.
    - "figure3": regression at the scales between them, classification at all scales.
    - "directions": the angle to the limit, from the largest scale. From this scale the directions
      depend on the start for the longest time. Each start has its own kind of line.
    """
    alphas = range(len(result.config.alphas))
    by_size = sorted(alphas, key=lambda a: result.config.alphas[a])
    ends = dict.fromkeys((by_size[0], by_size[-1]))
    first = [_regression_panel(result, a) for a in ends]
    second = [_regression_panel(result, a) for a in by_size if a not in ends]
    second += [_classification_panel(result, a) for a in by_size]
    exponent = np.log10(result.config.classification.paper_loss)
    reached = f"loss $10^{{{exponent:.3g}}}$ (paper's end)"
    return {
        "figure1": plane_figure(first),
        "figure3": plane_figure(second, mark_label=reached),
        "directions": _directions(result, by_size[-1]),
    }


def _directions(result, a):
    runs = result.classification
    approaches = [
        Approach(
            name,
            *zip(*(_approach(r, (a, d)) for d in range(len(result.starts[a]))), strict=True),
            stop_log_inverse_loss=-r.descent_log_loss[a],
            stop_angle=_angle(r.descent_path[a][:, -1], r.predicted),
        )
        for name, r in runs.items()
    ]
    steps = result.config.classification.descent_num_steps
    most = max(int(r.num_steps[a].max()) for r in runs.values())
    words = (
        f"markers: gradient descent, after {steps:,} steps\n"
        f"lines: exact gradient flow, at most {most} steps"
    )
    return approach_figure(
        approaches, words, rf"Classification, $\alpha = {result.config.alphas[a]:g}$"
    )


def _approach(runs, lane):
    """log(1/loss) and the angle: on the smooth path, and after its end at the solver's steps."""
    later = runs.step_log_loss[lane] < runs.log_loss[lane][-1]
    log_loss = np.concatenate([runs.log_loss[lane], runs.step_log_loss[lane][later]])
    vectors = np.concatenate([runs.path[lane], runs.step_direction[lane][later]])
    return -log_loss, _angle(vectors, runs.predicted)


def _angle(vectors, limit):
    """The angles in degrees, by their sine: the cosine of a small angle loses digits."""
    sine = vectors[:, 0] * limit[1] - vectors[:, 1] * limit[0]
    return np.degrees(np.arctan2(np.abs(sine), vectors @ limit))


def _regression_panel(result, a):
    task = result.config.regression
    x = np.array(task.x)
    on_line = x * task.y / (x @ x)
    runs = result.regression
    return PlanePanel(
        title=rf"Regression, $\alpha = {result.config.alphas[a]:g}$",
        window=_window(
            [result.starts[a], *(r.path[a].reshape(-1, 2) for r in runs.values()), np.zeros((1, 2))]
        ),
        starts=result.starts[a],
        flows={name: r.path[a] for name, r in runs.items()},
        descents={name: r.descent_path[a] for name, r in runs.items()},
        minima=on_line + np.array([[0.0, 0.0], [-x[1], x[0]]]),
        predicted_points={name: r.predicted[a] for name, r in runs.items()},
    )


def _classification_panel(result, a):
    runs = result.classification
    marks = {name: r.at_paper_loss[a] for name, r in runs.items()}
    return PlanePanel(
        title=rf"Classification, $\alpha = {result.config.alphas[a]:g}$",
        window=_window([result.starts[a], *marks.values(), np.zeros((1, 2))]),
        starts=result.starts[a],
        flows={name: r.path[a] for name, r in runs.items()},
        descents={name: _thinned(r.descent_path[a]) for name, r in runs.items()},
        predicted_directions={name: r.predicted for name, r in runs.items()},
        marks=marks,
    )


def _thinned(paths):
    """All steps at the beginning, where paths bend; later ones at growing intervals."""
    first, last = 200, paths.shape[1] - 1
    if last <= 2 * first:
        return paths
    later = np.geomspace(first, last, first).round().astype(int)
    return paths[:, np.unique([*range(first), *later])]


def _window(points):
    """A square around all points, 12 % wider than their range: two pairs (low, high)."""
    points = np.concatenate(points)
    low, high = points.min(axis=0), points.max(axis=0)
    middle, half = (low + high) / 2, 0.56 * np.max(high - low)
    x, y = ((float(m - half), float(m + half)) for m in middle)
    return x, y

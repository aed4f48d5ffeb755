"""Trajectories of two linear coefficients in the plane: Yun et al. 2021, Figures 1 and 3."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from . import style

Window = tuple[tuple[float, float], tuple[float, float]]


@dataclasses.dataclass(frozen=True)
class PlanePanel:
    """What one panel shows; every array's last axis holds the two coefficients.

    - `title`. `window`: ((x_min, x_max), (y_min, y_max)); everything outside is cut off.
    - `starts`: (k, 2). A ray from the origin through each shows its direction at any scale.
    - `flows`: for each architecture a sequence of trajectories, each (T, 2).
    - `descents`: the same for a discrete algorithm, drawn thin and dashed.
    - `minima`: two points of the line of global minima, shape (2, 2), or None.
    - `predicted_points`: for each architecture the predicted limit points, (k, 2).
    - `predicted_directions`: for each architecture the unit vector of the predicted ray, (2,).
    - `marks`: for each architecture points on the trajectories, (k, 2): where a loss is reached.
    """

    title: str
    window: Window
    starts: np.ndarray
    flows: Mapping[str, Sequence[np.ndarray]]
    descents: Mapping[str, Sequence[np.ndarray]] = dataclasses.field(default_factory=dict)
    minima: np.ndarray | None = None
    predicted_points: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    predicted_directions: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    marks: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


def draw(axes: Axes, panel: PlanePanel) -> None:
    """Draw one panel into `axes`."""
    (left, right), (bottom, top) = panel.window
    # Longer than the distance from the origin to any corner.
    reach = 2 * float(np.max(np.abs(panel.window)))
    for vector in panel.starts:
        ray = vector / np.linalg.norm(vector) * reach
        axes.plot([0, ray[0]], [0, ray[1]], color=style.START, **_RAY)
    if panel.minima is not None:
        along = panel.minima[1] - panel.minima[0]
        along = along / np.linalg.norm(along) * 2 * reach
        ends = panel.minima[0] + np.outer([-1, 1], along)
        axes.plot(*ends.T, color=style.GLOBAL_MINIMA, **_MINIMA)
    for name, direction in panel.predicted_directions.items():
        ends = np.outer([0, reach], direction)
        axes.plot(*ends.T, color=style.COLOURS[name], **_PREDICTED_RAY)
    for name, trajectories in panel.flows.items():
        for points in trajectories:
            axes.plot(*points.T, color=style.COLOURS[name], **_FLOW)
    for trajectories in panel.descents.values():
        for points in trajectories:
            axes.plot(*points.T, **_DESCENT)
    for name, points in panel.predicted_points.items():
        axes.plot(*points.T, **_marker(name), mfc="white")
    for name, points in panel.marks.items():
        axes.plot(*points.T, **_marker(name), mfc=style.COLOURS[name])
    axes.plot(*panel.starts.T, **_START)
    axes.set(xlim=(left, right), ylim=(bottom, top), title=panel.title, aspect="equal")
    axes.set(xlabel=r"$\beta_1$", ylabel=r"$\beta_2$")
    axes.locator_params(nbins=5)
    axes.grid(color="0.92", lw=0.6)
    axes.set_axisbelow(True)
    if _coincide(panel.starts, right - left):
        _magnify(axes, panel)


def _coincide(points: np.ndarray, width: float) -> bool:
    """Whether several points would be drawn as one, in a panel of that width."""
    extent = float(np.max(np.ptp(points, axis=0)))
    return len(points) > 1 and 0 < extent < 0.02 * width


def _magnify(axes: Axes, panel: PlanePanel) -> None:
    """An inset that shows the starts and the first part of each path."""
    inset = axes.inset_axes(_INSET)
    half = 1.6 * float(np.max(np.abs(panel.starts)))
    for vector in panel.starts:
        inset.plot(*np.outer([0, 4], vector).T, color=style.START, **_RAY)
    for name, trajectories in panel.flows.items():
        for points in trajectories:
            inset.plot(*points.T, color=style.COLOURS[name], **_FLOW)
    inset.plot(*panel.starts.T, **_START)
    inset.set(xlim=(-half, half), ylim=(-half, half), xticks=[], yticks=[], aspect="equal")
    inset.set_title(f"starts × {_factor(axes, half)}", fontsize=7, pad=2)
    for spine in inset.spines.values():
        spine.set(visible=True, color="0.6")


def _factor(axes: Axes, half: float) -> str:
    """The magnification of an inset whose window has the half width `half`, with one digit."""
    left, right = axes.get_xlim()
    return f"{float(f'{(right - left) / (2 * half) * _INSET[2]:.1g}'):,.0f}"


def plane_figure(panels: Sequence[PlanePanel], mark_label: str = "", columns: int = 2) -> Figure:
    """Panels in rows of `columns`, with one legend below; `mark_label` explains `marks`."""
    with style.house_style():
        columns = min(columns, len(panels))
        rows = -(-len(panels) // columns)
        legend = _legend(panels, mark_label)
        legend_columns = min(columns + 1, 3)  # the most columns that fit into the width
        legend_rows = -(-len(legend) // legend_columns)
        width = style.PAGE_WIDTH * columns / 2
        figure = Figure(figsize=(width, 3.65 * rows + 0.2 * legend_rows), layout="constrained")
        figure.get_layout_engine().set(hspace=0.05)  # pyright: ignore
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes, panel in zip(grid.flat, panels, strict=False):
            draw(axes, panel)
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
        figure.legend(
            handles=legend, loc="outside lower center", ncols=legend_columns, frameon=False
        )
        return figure


# The lower right part of a panel, where no path ends: left, bottom, width, height.
_INSET = (0.66, 0.06, 0.3, 0.3)
_RAY = {"lw": 0.7, "alpha": 0.45, "zorder": 1}
_MINIMA = {"lw": 2.4, "zorder": 1}
_PREDICTED_RAY = {"lw": 5.5, "alpha": 0.25, "zorder": 1.5, "solid_capstyle": "butt"}
_FLOW = {"lw": 1.5, "zorder": 3}
_DESCENT = {"color": "black", "lw": 0.8, "ls": (0, (1, 2.2)), "zorder": 3.5}
_START = {
    "ls": "none",
    "marker": "o",
    "ms": 5,
    "mfc": style.START,
    "mec": "white",
    "mew": 0.7,
    "zorder": 6,
}


def _marker(name):
    return {
        "ls": "none",
        "marker": style.MARKERS[name],
        "ms": style.MARKER_SIZES[name],
        "mec": style.COLOURS[name],
        "mew": 1.2,
        "zorder": 5,
    }


def _legend(panels, mark_label):
    names = dict.fromkeys(name for panel in panels for name in panel.flows)
    handles = [Line2D([], [], color=style.COLOURS[name], **_FLOW, label=name) for name in names]
    grey = {**_marker(next(iter(names))), "mec": style.NEUTRAL}
    start = {**_START, "ls": "-", "lw": _RAY["lw"], "color": style.START}
    optional = {
        "predicted_points": Line2D([], [], **grey, mfc="white", label="predicted limit"),
        "predicted_directions": Line2D(
            [], [], color=style.NEUTRAL, **_PREDICTED_RAY, label="predicted direction"
        ),
        "minima": Line2D([], [], color=style.GLOBAL_MINIMA, **_MINIMA, label="global minima"),
        "descents": Line2D([], [], **_DESCENT, label="gradient descent"),
        "marks": Line2D([], [], **grey, mfc=style.NEUTRAL, label=mark_label),
    }
    handles.append(Line2D([], [], **start, label="start, and its direction"))
    for field, handle in optional.items():
        values = [getattr(panel, field) for panel in panels]
        if any(value is not None and len(value) > 0 for value in values):
            handles.append(handle)
    return handles

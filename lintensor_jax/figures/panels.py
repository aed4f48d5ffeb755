"""Panels of lines and of labelled points in the plane: Ji & Telgarsky 2019, Figures 1 to 3."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from . import style
from .curves import PALETTE

# The colours of `curves`, three more, and at the end a light and a dark grey.
COLOURS = (*PALETTE, "#56B4E9", "#7B3294", style.COLOURS["fully-connected"], "0.72", style.NEUTRAL)
# Points are grey; colours are for lines.
_CLASSES = {
    "label +1": {"ls": "none", "marker": "o", "ms": 2.6, "color": "0.45", "mew": 0.3},
    "label −1": {
        "ls": "none",
        "marker": "s",
        "ms": 2.8,
        "color": "0.45",
        "mfc": "white",
        "mew": 0.6,
    },
}
_ARROW = {"color": "black", "lw": 1.3, "marker": ">", "ms": 5, "markevery": [-1]}


@dataclasses.dataclass(frozen=True)
class Line:
    """Values y at x, both (n,). Lines with one `label` have one entry in the legend; "" has none.

    - `colour`: an index into `COLOURS`, or the name of an architecture in `style.COLOURS`, for the
      colour that it has in every figure. Anything else is a ValueError.
    - `dashed`: whether the line is; `width`: in points; `end_marker`: a dot at its last point.
    """

    x: np.ndarray
    y: np.ndarray
    label: str
    colour: int | str
    dashed: bool = False
    width: float = 1.4
    end_marker: bool = False

    def __post_init__(self):
        if self.colour not in (*range(len(COLOURS)), *style.COLOURS):
            raise ValueError(
                f"Line: colour must be a whole number from 0 to {len(COLOURS) - 1} or one of "
                f"{', '.join(style.COLOURS)}, got {self.colour!r}; take one of these."
            )

    @property
    def look(self) -> dict[str, Any]:
        """The line's properties by matplotlib's names."""
        dashes = (0, (3, 1.5)) if self.dashed else "-"
        marks = {"marker": "o", "ms": 4, "markevery": [-1]} if self.end_marker else {}
        colour = self.colour
        colour = style.COLOURS[colour] if isinstance(colour, str) else COLOURS[colour]
        return {"color": colour, "ls": dashes, "lw": self.width, **marks}


@dataclasses.dataclass(frozen=True)
class LinePanel:
    """Lines over one x axis; `right` belongs to a second y axis on the right."""

    title: str
    lines: Sequence[Line]
    xlabel: str
    ylabel: str
    xscale: str = "log"
    yscale: str = "linear"
    right: Sequence[Line] = ()
    right_label: str = ""

    @property
    def legend(self) -> list[tuple[str, dict[str, Any]]]:
        """Labels and looks of all lines."""
        return [(line.label, line.look) for line in (*self.lines, *self.right)]

    def draw(self, axes: Axes) -> None:
        """Draw the panel into `axes`."""
        for line in self.lines:
            axes.plot(line.x, line.y, **line.look)
        axes.set(
            title=self.title,
            xlabel=self.xlabel,
            ylabel=self.ylabel,
            xscale=self.xscale,
            yscale=self.yscale,
        )
        style.label_decades(axes)
        axes.grid(color="0.92", lw=0.6)
        axes.set_axisbelow(True)
        if self.right:
            other = axes.twinx()
            other.spines["right"].set_visible(True)
            for line in self.right:
                other.plot(line.x, line.y, **line.look)
            other.set(ylabel=self.right_label, yscale="log")
            style.label_decades(other)


@dataclasses.dataclass(frozen=True)
class PointPanel:
    """Labelled points (n, 2), `labels` (n,) of either sign, in a square window about the origin.

    - `boundaries`: lines through the origin that are orthogonal to `x` of a `Line`, (2,); its `y`
      is not used.
    - `arrow`: a vector of length at most 1, drawn from the origin, or None; `arrow_label` names it.
    """

    title: str
    points: np.ndarray
    labels: np.ndarray
    boundaries: Sequence[Line] = ()
    arrow: np.ndarray | None = None
    xlabel: str = ""
    ylabel: str = ""
    arrow_label: str = ""

    @property
    def legend(self) -> list[tuple[str, dict[str, Any]]]:
        """Labels and looks of boundaries, classes and arrow."""
        entries = [(line.label, line.look) for line in self.boundaries]
        arrow = [] if self.arrow is None else [(self.arrow_label, _ARROW)]
        return [*entries, *_CLASSES.items(), *arrow]

    def draw(self, axes: Axes) -> None:
        """Draw the panel into `axes`."""
        reach = 1.15 * float(np.max(np.abs(self.points)))
        for line in self.boundaries:
            along = np.array([-line.x[1], line.x[0]]) / np.linalg.norm(line.x) * 2 * reach
            axes.plot(*np.stack([-along, along]).T, **line.look)
        for sign, look in zip((1, -1), _CLASSES.values(), strict=True):
            axes.plot(*self.points[np.sign(self.labels) == sign].T, **look)
        if self.arrow is not None:
            tip = self.arrow * 0.85 * reach
            arrow = {"arrowstyle": "-|>", "color": "black", "lw": 1.3, "shrinkA": 0, "shrinkB": 0}
            axes.annotate("", (float(tip[0]), float(tip[1])), (0.0, 0.0), arrowprops=arrow)
        axes.set(title=self.title, xlabel=self.xlabel, ylabel=self.ylabel)
        axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
        axes.locator_params(nbins=4)
        axes.grid(color="0.92", lw=0.6)
        axes.set_axisbelow(True)


def panel_figure(
    rows: Sequence[Sequence[LinePanel | PointPanel]], height: float, columns: int = 4
) -> Figure:
    """Rows of panels, each `height` inches high, above one legend of `columns` columns.

    Along its rows, the legend has the lines in the order of the panels.
    """
    looks: dict[str, dict[str, Any]] = {}
    for row in rows:
        for panel in row:
            for label, look in panel.legend:
                looks.setdefault(label, look)
    looks.pop("", None)
    with style.house_style():
        legend_rows = -(-len(looks) // columns)
        figure = Figure(
            figsize=(style.PAGE_WIDTH, height * len(rows) + 0.18 * legend_rows + 0.1),
            layout="constrained",
        )
        grid = figure.subplots(len(rows), max(len(row) for row in rows), squeeze=False)
        for axes_row, row in zip(grid, rows, strict=True):
            for axes, panel in zip(axes_row, row, strict=False):
                panel.draw(axes)
            for axes in axes_row[len(row) :]:
                axes.set_visible(False)
        handles = [Line2D([], [], **look, label=label) for label, look in looks.items()]
        if handles:
            handles = style.along_rows(handles, columns)
            figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)
        return figure

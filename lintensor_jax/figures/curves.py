"""Log-log curves in panels: quantities by colour, series by line style, measurements as markers."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from . import style

# Colours after Okabe & Ito, without those of style.COLOURS, which are for architectures. Neighbours
# differ in lightness as well.
PALETTE = ("#CC79A7", "#0A5C8C", "#E69F00", "#000000")
DASHES = ("-", (0, (5, 1.6)), (0, (1.2, 1.4)), (0, (6, 1.3, 1.2, 1.3)))
MARKERS = ("o", "x", "s", "+")


@dataclasses.dataclass(frozen=True)
class Curve:
    """Positive values y at positive x, both of shape (n,).

    - `quantity`: what y is; it has one colour in all panels.
    - `series`: one line style in all panels.
    - `measurement`: empty for a line, otherwise the name of the quantity of the markers.

    Points that are not positive and finite are left out.
    """

    x: np.ndarray
    y: np.ndarray
    quantity: str
    series: str
    measurement: str = ""


@dataclasses.dataclass(frozen=True)
class CurvePanel:
    """One panel: its title, its curves, straight `guides` and the range of the y axis.

    - `guides`: (slope, x, y, label): lines y ~ x^slope through (x, y), thin and grey.
    - `y_window`: (low, high); None shows all.
    """

    title: str
    curves: Sequence[Curve]
    xlabel: str
    ylabel: str
    guides: Sequence[tuple[float, float, float, str]] = ()
    y_window: tuple[float, float] | None = None


def curve_figure(
    panels: Sequence[CurvePanel], height: float = 2.5, quantities: Sequence[str] = ()
) -> Figure:
    """Panels side by side with one legend below; panels with equal labels share the y axis.

    `height`: of the axes, in inches. `quantities` get the first colours, in this order, even if
    they are not drawn, so that several figures have the same colours.
    """
    curves = [curve for panel in panels for curve in panel.curves]
    looks = _Looks.of(curves, quantities)
    legend, columns = looks.legend()
    with style.house_style():
        rows = len(legend) // columns
        figure = Figure(
            figsize=(style.PAGE_WIDTH, height + 0.35 + 0.18 * rows), layout="constrained"
        )
        shared = len({(panel.ylabel, panel.y_window) for panel in panels}) == 1
        grid = figure.subplots(1, len(panels), squeeze=False, sharey=shared)[0]
        for index, (axes, panel) in enumerate(zip(grid, panels, strict=True)):
            _draw(axes, panel, looks)
            if shared and index > 0:
                axes.set_ylabel("")
        figure.legend(
            handles=legend, loc="outside lower center", ncols=columns, frameon=False, handlelength=3
        )
        return figure


@dataclasses.dataclass(frozen=True)
class _Looks:
    """Colours, line styles and markers by name."""

    colours: Mapping[str, str]
    dashes: Mapping[str, Any]
    markers: Mapping[str, str]

    @staticmethod
    def of(curves: Sequence[Curve], first: Sequence[str]) -> "_Looks":
        drawn = [curve.quantity for curve in curves]
        colours = _assigned("quantities", [*first, *drawn], PALETTE)
        return _Looks(
            {name: colour for name, colour in colours.items() if name in drawn},
            _assigned("series", [curve.series for curve in curves], DASHES),
            _assigned("measurements", [c.measurement for c in curves if c.measurement], MARKERS),
        )

    def line(self, curve: Curve) -> dict[str, Any]:
        return {"color": self.colours[curve.quantity], "ls": self.dashes[curve.series], "lw": 1.3}

    def marks(self, measurement: str, colour: str) -> dict[str, Any]:
        return {
            "ls": "none",
            "marker": self.markers[measurement],
            "ms": 4.6,
            "mfc": "none",
            "mec": colour,
            "mew": 1.0,
            "zorder": 4,
        }

    def legend(self) -> tuple[list[Line2D], int]:
        """Handles that fill one column for each kind of name, and the number of columns."""
        grey = {"color": style.NEUTRAL, "lw": 1.3}
        groups = [
            [Line2D([], [], color=c, lw=2.4, label=name) for name, c in self.colours.items()],
            [Line2D([], [], ls=d, label=name, **grey) for name, d in self.dashes.items()],
            [
                Line2D([], [], label=name, **self.marks(name, style.NEUTRAL))
                for name in self.markers
            ],
        ]
        groups = [group for group in groups if group]
        rows = max(len(group) for group in groups)
        for group in groups:
            group += [Line2D([], [], ls="none", label=" ")] * (rows - len(group))
        return [handle for group in groups for handle in group], len(groups)


def _assigned(what: str, names: Sequence[str], looks: Sequence[Any]) -> dict[str, Any]:
    names = list(dict.fromkeys(names))
    if len(names) > len(looks):
        raise ValueError(
            f"curves: at most {len(looks)} {what} can be distinguished, got {names}; draw several "
            "figures."
        )
    return dict(zip(names, looks, strict=False))


def _draw(axes: Axes, panel: CurvePanel, looks: _Looks) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    for curve in panel.curves:
        x, y = np.asarray(curve.x), np.asarray(curve.y)
        kept = np.isfinite(y) & (y > 0)
        colour = looks.colours[curve.quantity]
        if not curve.measurement:
            axes.plot(x[kept], y[kept], **looks.line(curve))
            continue
        # Markers at the edge are drawn completely; markers beyond it are not drawn.
        if panel.y_window is not None:
            kept &= (y >= panel.y_window[0]) & (y <= panel.y_window[1])
        axes.plot(x[kept], y[kept], **looks.marks(curve.measurement, colour), clip_on=False)
    everywhere = np.concatenate([curve.x for curve in panel.curves])
    low, high = np.min(everywhere), np.max(everywhere)
    pad = max((high / low) ** 0.03, 1.05)
    axes.set_xlim(low / pad, high * pad)
    if panel.y_window is not None:
        axes.set_ylim(*panel.y_window)
    for slope, x, y, label in panel.guides:
        ends = np.array([low, high])
        axes.plot(ends, y * (ends / x) ** slope, color="0.6", lw=0.7, zorder=1)
        axes.annotate(
            label, (x, y), (4, -4), textcoords="offset points", va="top", color="0.35", fontsize=7.5
        )
    style.label_decades(axes)
    axes.set(title=panel.title, xlabel=panel.xlabel, ylabel=panel.ylabel)
    axes.grid(color="0.92", lw=0.6)
    axes.set_axisbelow(True)

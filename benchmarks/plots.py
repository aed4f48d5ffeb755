"""Log-log panels of the benchmarks, in the house style."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter, StrMethodFormatter

from lintensor_jax.figures import style

_OTHERS = ("#CC79A7", "#56B4E9", "#E69F00", "#000000", "#8C564B", "#0A5C8C", "#999999")
_MARKERS = ("o", "v", "P", "X", "*", "<", ">")


@dataclasses.dataclass(frozen=True)
class Curve:
    """Values y at x; `expected` is proportional to what they should be, at the same x."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    expected: Sequence[float] | None = None


@dataclasses.dataclass(frozen=True)
class Panel:
    """One pair of logarithmic axes."""

    title: str
    xlabel: str
    ylabel: str
    curves: Sequence[Curve]


def loglog_figure(panels: Sequence[Panel]) -> Figure:
    """Panels in rows of three, with one legend; expected orders are dashed, through the last point.

    A label has the same colour and marker in all panels. Architectures have the colours and markers
    that they have in all figures of the package.
    """
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    labels = list(dict.fromkeys(curve.label for panel in panels for curve in panel.curves))
    looks = _looks(labels)
    with style.house_style():
        width = style.PAGE_WIDTH * (0.4 + 0.2 * columns)
        across = 2 if columns == 1 else 4
        legend_rows = -(-(len(labels) + 1) // across)
        size = (width, 2.4 * rows + 0.3 + 0.18 * legend_rows)
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, panel in zip(grid, panels, strict=False):
            _draw(axes, panel, looks)
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
        handles = [
            Line2D([], [], color=looks[name][0], marker=looks[name][1], ms=4, label=name)
            for name in labels
        ]
        if any(c.expected is not None for panel in panels for c in panel.curves):
            dashed = Line2D([], [], color="0.5", ls=(0, (4, 2)), lw=0.9, label="expected order")
            handles.append(dashed)
        figure.legend(handles=handles, loc="outside lower center", ncols=across, frameon=False)
        return figure


def _looks(labels):
    names = {"convolution": "convolutional"}
    others = iter(zip(_OTHERS * 3, _MARKERS * 3, strict=True))
    looks = {}
    for label in labels:
        name = names.get(label, label)
        known = name in style.COLOURS
        looks[label] = (style.COLOURS[name], style.MARKERS[name]) if known else next(others)
    return looks


def _draw(axes, panel, looks):
    axes.set_xscale("log")
    axes.set_yscale("log")
    for curve in panel.curves:
        colour, marker = looks[curve.label]
        x, y = np.asarray(curve.x, float), np.asarray(curve.y, float)
        axes.plot(x, y, color=colour, marker=marker, ms=3.6)
        if curve.expected is not None:
            order = np.asarray(curve.expected, float)
            axes.plot(x, order * y[-1] / order[-1], color=colour, ls=(0, (4, 2)), lw=0.9)
    axes.set(title=panel.title, xlabel=panel.xlabel, ylabel=panel.ylabel)
    every = [np.asarray(curve.x, float) for curve in panel.curves]
    _label(axes.xaxis, np.unique(np.concatenate(every)))
    _label(axes.yaxis, np.asarray(axes.get_ylim()))
    axes.grid(color="0.92", lw=0.6)
    axes.set_axisbelow(True)


def _label(axis, values):
    """Label an axis: powers of ten over many decades, else plain numbers; few values label all."""
    axis.set_minor_formatter(NullFormatter())
    span = values.max() / values.min()
    few = 2 < len(values) < 7 or (len(values) == 2 and values[0] == round(values[0]))
    if (few and span < 1000) or span < 100:
        axis.set_major_locator(FixedLocator(values) if few else LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))

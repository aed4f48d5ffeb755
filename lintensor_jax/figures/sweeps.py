"""Quantities of many flows over one axis: medians, and how far single flows lie from them."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from . import style

_OTHERS = ("#CC79A7", "#0A5C8C", "#E69F00", "#000000", "#56B4E9", "#8C564B")


@dataclasses.dataclass(frozen=True)
class Band:
    """Values of flows at points x: shapes (n,) and (n, flows). NaN and infinities are left out."""

    label: str
    x: np.ndarray
    values: np.ndarray


@dataclasses.dataclass(frozen=True)
class BandPanel:
    """One panel; logarithmic axes where all values are positive and span more than a decade.

    - `signed`: whether the sign means something, as of a coefficient: then y is never logarithmic.
    """

    title: str
    xlabel: str
    ylabel: str
    bands: Sequence[Band]
    signed: bool = False


def band_figure(panels: Sequence[BandPanel], columns: int = 2) -> Figure:
    """Panels in rows, with one legend: the line is the median, the band holds 80% of the flows."""
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    labels = list(dict.fromkeys(band.label for panel in panels for band in panel.bands))
    colours = _colours(labels)
    with style.house_style():
        size = (style.PAGE_WIDTH * min(columns, 2) / 2 + 0.4, 2.3 * rows + 0.4)
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, panel in zip(grid, panels, strict=False):
            _draw(axes, panel, colours)
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
        lines = [Line2D([], [], color=colours[name], lw=2, label=name) for name in labels if name]
        handles = [*lines, Patch(color="0.75", label="10% to 90% of the flows")]
        # Four labels fit side by side in two columns of panels, two in one.
        place = {"loc": "outside lower center", "ncols": 2 * columns, "frameon": False}
        figure.legend(handles=style.along_rows(handles, 2 * columns), **place)
        return figure


def _colours(labels):
    others = iter(_OTHERS * (1 + len(labels) // len(_OTHERS)))
    return {name: style.COLOURS[name] if name in style.COLOURS else next(others) for name in labels}


def _draw(axes: Axes, panel: BandPanel, colours) -> None:
    everything = np.concatenate([np.ravel(band.values) for band in panel.bands])
    if _spans_decades(np.concatenate([band.x for band in panel.bands])):
        axes.set_xscale("log")
    positive_only = not panel.signed and _spans_decades(everything)
    if positive_only:
        axes.set_yscale("log")
    for band in panel.bands:
        values = np.where(np.isfinite(band.values), band.values, np.nan)
        if positive_only:
            values = np.where(values > 0, values, np.nan)
        kept = np.isfinite(values).any(axis=1)
        if not kept.any():
            continue
        x, values = band.x[kept], values[kept]
        low, middle, high = np.nanpercentile(values, [10, 50, 90], axis=1)
        colour = colours[band.label]
        axes.fill_between(x, low, high, color=colour, alpha=0.22, lw=0)
        marker = "o" if len(x) < 3 else None
        axes.plot(x, middle, color=colour, marker=marker, ms=3.5)
    style.label_decades(axes)
    axes.set(title=panel.title, xlabel=panel.xlabel, ylabel=panel.ylabel)
    axes.grid(color="0.92", lw=0.6)
    axes.set_axisbelow(True)


def _spans_decades(values) -> bool:
    values = values[np.isfinite(values) & (values != 0)]
    return bool(values.size and (values > 0).all() and values.max() > 30 * values.min())

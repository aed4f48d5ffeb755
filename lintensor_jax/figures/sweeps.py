"""Quantities of many flows over one axis: medians, and bands of 80% of the flows."""

import dataclasses
import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from . import style

_OTHERS = ("#CC79A7", "#0A5C8C", "#E69F00", "#000000", "#56B4E9", "#8C564B")
_MOST_MARKERS = 15  # fewer points than this have a marker each; at most this many circles are drawn


@dataclasses.dataclass(frozen=True)
class Band:
    """Values of flows at points x: shapes (n,) and (n, flows). NaN and infinities are left out.

    - `predicted`: the predicted values, (n, flows), or None.
    """

    label: str
    x: np.ndarray
    values: np.ndarray
    predicted: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class BandPanel:
    """One panel; y is logarithmic where all values are positive and span a factor of 30.

    x is logarithmic for floating values that span a factor of 5.

    - `signed`: whether the sign has a meaning, as for a coefficient; then y is never logarithmic.
    """

    title: str
    xlabel: str
    ylabel: str
    bands: Sequence[Band]
    signed: bool = False


def band_figure(panels: Sequence[BandPanel], columns: int = 2, note: str = "") -> Figure:
    """Panels in rows over one x axis, with one legend; `note` is text above them.

    Lines are medians, bands hold 80% of the flows, and open circles are medians of `predicted`.
    """
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    labels = list(dict.fromkeys(band.label for panel in panels for band in panel.bands))
    colours = _colours(labels)
    bands = [band for panel in panels for band in panel.bands]
    everywhere = np.concatenate([band.x for band in bands])
    with style.house_style():
        size = (style.PAGE_WIDTH * min(columns, 2) / 2 + 0.4, 2.3 * rows + 0.4)
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, panel in zip(grid, panels, strict=False):
            _draw(axes, panel, colours, everywhere)
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
        lines = [Line2D([], [], color=colours[name], lw=2, label=name) for name in labels if name]
        handles = [*lines, Patch(color="0.75", label="10% to 90% of the flows")]
        if any(band.predicted is not None for band in bands):
            handles.append(
                Line2D([], [], **_ring(style.NEUTRAL), label="predicted by theory, median")
            )
        # Four labels fit side by side in two columns of panels, two in one.
        place = {"loc": "outside lower center", "ncols": 2 * columns, "frameon": False}
        figure.legend(handles=style.along_rows(handles, 2 * columns), **place)
        if note:
            figure.suptitle(textwrap.fill(note, 58 * columns), fontsize=8)
        return figure


def _ring(colour):
    return {"ls": "none", "marker": "o", "ms": 6.5, "mfc": "none", "mec": colour, "mew": 1.0}


def _colours(labels):
    others = iter(_OTHERS * (1 + len(labels) // len(_OTHERS)))
    return {name: style.COLOURS[name] if name in style.COLOURS else next(others) for name in labels}


def _draw(axes: Axes, panel: BandPanel, colours, everywhere) -> None:
    everything = np.concatenate([np.ravel(band.values) for band in panel.bands])
    low, high = everywhere.min(), everywhere.max()
    pad = 0.04
    if _spans(everywhere, 5 if everywhere.dtype.kind == "f" else 30):
        axes.set_xscale("log")
        axes.set_xlim(low / (high / low) ** pad, high * (high / low) ** pad)
    elif high > low:
        axes.set_xlim(low - pad * (high - low), high + pad * (high - low))
    positive_only = not panel.signed and _spans(everything, 30)
    if positive_only:
        axes.set_yscale("log")
    for band in panel.bands:
        quantiles = _quantiles(band.x, band.values, positive_only)
        if quantiles is None:
            continue
        x, low, middle, high = quantiles
        colour = colours[band.label]
        axes.fill_between(x, low, high, color=colour, alpha=0.22, lw=0)
        marker = "o" if len(x) < _MOST_MARKERS else None
        axes.plot(x, middle, color=colour, marker=marker, ms=3)
        expected = band.predicted
        if expected is not None and (found := _quantiles(band.x, expected, positive_only)):
            step = -(-len(found[0]) // _MOST_MARKERS)
            axes.plot(found[0][::step], found[2][::step], **_ring(colour))
    style.label_decades(axes)
    axes.set(title=panel.title, xlabel=panel.xlabel, ylabel=panel.ylabel)
    axes.grid(color="0.92", lw=0.6)
    axes.set_axisbelow(True)


def _quantiles(x, values, positive_only):
    """The x at which a value can be drawn, and the 10%, 50% and 90% quantiles of the flows."""
    values = np.where(np.isfinite(values), values, np.nan)
    if positive_only:
        values = np.where(values > 0, values, np.nan)
    kept = np.isfinite(values).any(axis=1)
    if not kept.any():
        return None
    return x[kept], *np.nanpercentile(values[kept], [10, 50, 90], axis=1)


def _spans(values, factor) -> bool:
    values = values[np.isfinite(values) & (values != 0)]
    # The bound is lowered a little, so that in spite of rounding a span of this factor counts.
    return bool(
        values.size and (values > 0).all() and values.max() >= factor * values.min() * (1 - 1e-9)
    )

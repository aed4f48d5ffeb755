"""Colours, markers and sizes that all figures share."""

import contextlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

# Okabe & Ito's palette, which red-green colour-blind readers can distinguish. An architecture has
# the same colour and marker in every figure.
COLOURS = {
    "fully-connected": "#0072B2",
    "diagonal": "#D55E00",
    "convolutional": "#009E73",
}
MARKERS = {"fully-connected": "s", "diagonal": "D", "convolutional": "^"}
# Markers of one size differ in area; these look equally large.
MARKER_SIZES = {"fully-connected": 4.8, "diagonal": 4.3, "convolutional": 5.6}
START = "#7B3294"
GLOBAL_MINIMA = "#E6B800"
NEUTRAL = "#444444"

PAGE_WIDTH = 6.9  # inches, two columns of text

_SETTINGS: dict[Any, Any] = {
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.labelsize": 8.5,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "lines.linewidth": 1.3,
    "lines.solid_capstyle": "round",
    "mathtext.fontset": "stix",
    "pdf.fonttype": 42,  # text in a PDF stays selectable text
    "savefig.dpi": 220,
}


@contextlib.contextmanager
def house_style() -> Iterator[None]:
    """Settings of matplotlib for figures that are made inside this context."""
    with mpl.rc_context(_SETTINGS):
        yield


def label_decades(axes: Axes) -> None:
    """Label logarithmic axes at decades, or at 1, 2, 5 if fewer than two decades are in view.

    To be called after everything is drawn. Matplotlib's labels between the decades would overlap.
    """
    for axis in (axes.xaxis, axes.yaxis):
        if axis.get_scale() != "log":
            continue
        low, high = sorted(axis.get_view_interval())
        exponents = np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
        places = np.multiply.outer(10.0**exponents, [1, 2, 5]).ravel()
        places = places[(low <= places) & (places <= high)]
        decades = int(np.sum((low <= 10.0**exponents) & (10.0**exponents <= high)))
        if decades >= 2:
            axis.set_minor_formatter(NullFormatter())
        elif places.size >= 2:
            axis.set_major_locator(FixedLocator(places.tolist()))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_locator(NullLocator())


def along_rows(handles: Sequence[Any], columns: int) -> list[Any]:
    """The handles of a legend, reordered so that they follow each other along its rows.

    Matplotlib fills a legend column by column, but people read along the rows.
    """
    return [handle for k in range(columns) for handle in handles[k::columns]]


def save(figure: Figure, stem: Path) -> list[Path]:
    """Save `figure` as PNG and PDF, named `stem` with these suffixes; returns the paths."""
    paths = [stem.with_suffix(".png"), stem.with_suffix(".pdf")]
    with house_style():
        figure.savefig(paths[0])
        # Without the date, the same data give the same bytes.
        figure.savefig(paths[1], metadata={"CreationDate": None})
    return paths


def png(figure: Figure) -> bytes:
    """`figure` as a PNG for a screen, 150 dpi."""
    buffer = io.BytesIO()
    with house_style():
        figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()

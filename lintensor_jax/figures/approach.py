"""The angle between a direction and its limit, over losses far below the smallest float."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from . import style

_WIDTH, _HEIGHT = 4.9, 3.5  # legible at a page's width and, at two thirds, in a column
_LOG_SMALLEST_FLOAT = 745.13  # -log(2^-1074)
_LEAST_LOG_INVERSE_LOSS = 0.5
_PATH = {"lw": 1.2, "alpha": 0.85, "zorder": 3, "solid_capstyle": "butt"}
# One kind of line for each start. With more than four starts, some have the same kind.
_DASHES = ("-", (0, (5, 1.6)), (0, (1, 1.2)), (0, (5, 1.4, 1, 1.4)))
_BAND_COLOUR = "0.91"
_STOP = {"ls": "none", "mec": "black", "mew": 0.8, "zorder": 5}


@dataclasses.dataclass(frozen=True)
class Approach:
    """Flows of one architecture, and the ends of an algorithm that stops at larger losses.

    - `log_inverse_loss`, `angle`: for each flow arrays (T,): log(1/loss), and the angle between
      direction and limit in degrees. Values that are not positive are left out. The k-th flows of
      all architectures belong to the same start and have the same kind of line.
    - `stop_log_inverse_loss`, `stop_angle`: (k,), the ends of the algorithm.
    """

    architecture: str
    log_inverse_loss: Sequence[np.ndarray]
    angle: Sequence[np.ndarray]
    stop_log_inverse_loss: np.ndarray
    stop_angle: np.ndarray


def approach_figure(approaches: Sequence[Approach], words: str, title: str = "") -> Figure:
    """One panel. `words`: two lines that explain the markers and the lines.

    A grey band covers the losses down to the last marker. The legend names it.
    """
    with style.house_style():
        figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
        axes = figure.subplots()
        axes.set(xscale="log", yscale="log", title=title)
        for approach in approaches:
            _draw(axes, approach)
        last_stop = max(float(a.stop_log_inverse_loss.max()) for a in approaches)
        end = max(float(x[-1]) for a in approaches for x in a.log_inverse_loss)
        _describe(axes, last_stop, end, words)
        _legend_of_starts(axes, approaches)
        _legend(axes, approaches)
        return figure


def _draw(axes: Axes, approach: Approach) -> None:
    colour = style.COLOURS[approach.architecture]
    flows = zip(approach.log_inverse_loss, approach.angle, strict=True)
    for start, (x, y) in enumerate(flows):
        kept = (x > 0) & (y > 0)
        dashes = _DASHES[start % len(_DASHES)]
        axes.plot(x[kept], y[kept], color=colour, ls=dashes, **_PATH)
    axes.plot(approach.stop_log_inverse_loss, approach.stop_angle, **_stop(approach.architecture))


def _stop(name):
    size = 1.25 * style.MARKER_SIZES[name]
    return {**_STOP, "marker": style.MARKERS[name], "ms": size, "mfc": style.COLOURS[name]}


def _describe(axes, last_stop, end, words):
    axes.set_xlim(_LEAST_LOG_INVERSE_LOSS, end * 1.6)
    exponents = np.arange(0, np.floor(np.log10(end)) + 1)
    axes.set_xticks(10.0**exponents, [_loss(k) for k in exponents])
    low, high = axes.get_ylim()
    high = min(high, 180.0)
    angles = 10.0 ** np.arange(np.ceil(np.log10(low)), np.floor(np.log10(high)) + 1)
    axes.set_yticks(angles, [f"{angle:.10f}".rstrip("0").rstrip(".") + "°" for angle in angles])
    axes.minorticks_off()
    axes.tick_params(axis="x", labelsize=9.5)  # the labels are mostly exponents
    # A fifth of the height is left for `words`.
    axes.set_ylim(low, high * (high / low) ** 0.25)
    axes.set(xlabel="training loss", ylabel="angle to the limit direction")
    edge = last_stop * 1.3
    axes.axvspan(_LEAST_LOG_INVERSE_LOSS, edge, color=_BAND_COLOUR, lw=0, zorder=0)
    above = {"va": "top", "transform": axes.get_xaxis_transform()}
    axes.text(edge * 1.4, 0.985, words, **above, linespacing=1.4)
    if edge < _LOG_SMALLEST_FLOAT < end:
        axes.axvline(_LOG_SMALLEST_FLOAT, ymax=0.82, color="0.45", lw=0.8, ls=(0, (4, 2)), zorder=1)
        place = (_LOG_SMALLEST_FLOAT * 1.3, 0.82)
        axes.text(*place, "smaller than any float64", **above, color="0.35", fontsize=7.5)
    axes.grid(color="0.88", lw=0.5)
    axes.set_axisbelow(True)


def _loss(exponent):
    powers = {0: "-1", 1: "-10"}
    return rf"$e^{{{powers.get(int(exponent), f'-10^{{{exponent:.0f}}}')}}}$"


def _legend_of_starts(axes, approaches):
    """In the lower part, which has no lines: only the smallest losses have small angles."""
    starts = max(len(approach.angle) for approach in approaches)
    if 1 < starts <= len(_DASHES):
        look = {"color": style.NEUTRAL, "lw": 1.2}
        handles = [
            Line2D([], [], **look, ls=_DASHES[k], label=f"start {k + 1}") for k in range(starts)
        ]
        place = {"loc": "lower left", "bbox_to_anchor": (0.35, 0.0)}
        legend = axes.legend(handles=handles, **place, frameon=False, handlelength=2.6)
        axes.add_artist(legend)  # a second legend would replace it


def _legend(axes, approaches):
    handles: list[Artist] = [
        Line2D([], [], color=style.COLOURS[name], lw=1.6, label=name, **_legend_marker(name))
        for name in (approach.architecture for approach in approaches)
    ]
    handles.append(Patch(color=_BAND_COLOUR, label="losses that descent reaches"))
    # The upper right corner is empty: at small losses no angle is large.
    place = {"loc": "upper right", "bbox_to_anchor": (1.0, 0.8)}
    axes.legend(handles=handles, **place, frameon=False, handlelength=2.6)


def _legend_marker(name):
    stop = _stop(name)
    return {key: stop[key] for key in ("marker", "ms", "mfc", "mec", "mew")}

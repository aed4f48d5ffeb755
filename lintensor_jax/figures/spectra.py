"""Profiles of signals and spectra, their trends with depth, and ratios against a bound of 1."""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from . import style

_FIRST = {"ls": "none", "marker": "o", "ms": 2.6}
_SECOND = {"ls": "none", "marker": "_", "ms": 5.0, "mew": 1.1, "color": "black"}
_DASHED = (0, (3, 1.5))


@dataclasses.dataclass(frozen=True)
class Profile:
    """Moduli in [0, 1] over their index: the limit of one algorithm, and the end of another.

    - `limit`, `reached`: both (m,); `architecture`: gives the colour.
    - `title` is shown in the first row only, `ylabel` in the first column.
    """

    limit: np.ndarray
    reached: np.ndarray
    architecture: str
    title: str
    xlabel: str
    ylabel: str


def profile_figure(
    rows: Sequence[Sequence[Profile]], limit_label: str, reached_label: str
) -> Figure:
    """A grid of stem plots, a pair of rows for each architecture; all share the y axis."""
    with style.house_style():
        figure = Figure(figsize=(style.PAGE_WIDTH, 1.12 * len(rows) + 0.6), layout="constrained")
        figure.get_layout_engine().set(hspace=0.03, h_pad=0.02)  # pyright: ignore
        grid = figure.subplots(len(rows), len(rows[0]), squeeze=False, sharey=True)
        for r, (axes_row, row) in enumerate(zip(grid, rows, strict=True)):
            for axes, profile in zip(axes_row, row, strict=True):
                _draw_profile(axes, profile)
                if r == 0:
                    axes.set_title(profile.title)
                axes.set_xlabel(profile.xlabel, labelpad=1)
            axes_row[0].set_ylabel(row[0].ylabel)
        names = dict.fromkeys(row[0].architecture for row in rows)
        handles = [
            Line2D([], [], **{**_FIRST, "ls": "-"}, color=style.COLOURS[name], label=name)
            for name in names
        ]
        kinds = [
            Line2D([], [], **{**_FIRST, "ls": "-"}, color=style.NEUTRAL, label=limit_label),
            Line2D([], [], **_SECOND, label=reached_label),
        ]
        _two_row_legend(figure, handles, kinds)
        return figure


def _two_row_legend(figure, first, second):
    """A legend with `first` above `second`. Matplotlib fills legends column by column."""
    blank = Line2D([], [], ls="none", label=" ")
    pairs = list(itertools.zip_longest(first, second, fillvalue=blank))
    handles = [handle for pair in pairs for handle in pair]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(pairs), frameon=False)


def _draw_profile(axes: Axes, profile: Profile) -> None:
    colour = style.COLOURS[profile.architecture]
    index = np.arange(profile.limit.size)
    axes.vlines(index, 0, profile.limit, color=colour, lw=1.2)
    axes.plot(index, profile.limit, **_FIRST, color=colour)
    axes.plot(index, profile.reached, **_SECOND)
    axes.set(ylim=(-0.06, 1.12), yticks=[0, 0.5, 1])
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 4, 5, 10]))


@dataclasses.dataclass(frozen=True)
class Trend:
    """Values of K runs at depths (P,): `limit` and `reached` are (P, K)."""

    depths: np.ndarray
    limit: np.ndarray
    reached: np.ndarray
    architecture: str


def trend_figure(
    panels: Sequence[tuple[str, Sequence[Trend]]], xlabel: str, limit_label: str, reached_label: str
) -> Figure:
    """(ylabel, trends) side by side: means as lines, runs of `limit` as faint markers."""
    with style.house_style():
        figure = Figure(figsize=(style.PAGE_WIDTH, 3.4), layout="constrained")
        figure.get_layout_engine().set(wspace=0.06)  # pyright: ignore
        names = dict.fromkeys(trend.architecture for _, trends in panels for trend in trends)
        grid = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        for axes, (ylabel, trends) in zip(grid, panels, strict=True):
            axes.tick_params(labelleft=True)
            for trend in trends:
                colour, marker = (d[trend.architecture] for d in (style.COLOURS, style.MARKERS))
                size = style.MARKER_SIZES[trend.architecture]
                runs = {"ls": "none", "marker": marker, "ms": size - 1.2, "mec": "none"}
                axes.plot(trend.depths, trend.limit, **runs, color=colour, alpha=0.28)
                mean = {"color": colour, "marker": marker, "ms": size}
                axes.plot(trend.depths, trend.limit.mean(axis=1), **mean)
                axes.plot(trend.depths, trend.reached.mean(axis=1), **mean, mfc="white", ls=_DASHED)
            axes.set(xlabel=xlabel, ylabel=ylabel, xticks=trends[0].depths)
            axes.grid(color="0.92", lw=0.6)
            axes.set_axisbelow(True)
        # Set after everything is drawn: a limit set earlier would fix the shared axis.
        grid[0].set_ylim(bottom=0)
        grey = {"color": style.NEUTRAL, "marker": "o", "ms": 4.5}
        handles = [
            Line2D([], [], color=style.COLOURS[n], marker=style.MARKERS[n], label=n) for n in names
        ]
        kinds = [
            Line2D([], [], **grey, label=limit_label),
            Line2D([], [], **grey, mfc="white", ls=_DASHED, label=reached_label),
        ]
        _two_row_legend(figure, handles, kinds)
        return figure


@dataclasses.dataclass(frozen=True)
class Scatter:
    """Ratios at costs of many networks, (K,), and of limits, (M,); `label` gives the colour."""

    cost: np.ndarray
    ratio: np.ndarray
    limit_cost: np.ndarray
    limit_ratio: np.ndarray
    label: str


def scatter_figure(
    panels: Sequence[tuple[str, Sequence[Scatter]]],
    xlabel: str,
    ylabel: str,
    limit_label: str,
    random_label: str,
) -> Figure:
    """(title, scatters) side by side over a shared y axis, with the bound 1 as a line."""
    labels = list(dict.fromkeys(scatter.label for _, scatters in panels for scatter in scatters))
    # Without the palest colours, which are not visible on white paper.
    shades = colormaps["viridis"](np.linspace(0, 0.88, max(len(labels), 2)))
    with style.house_style():
        figure = Figure(figsize=(style.PAGE_WIDTH, 3.0), layout="constrained")
        grid = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        for axes, (title, scatters) in zip(grid, panels, strict=True):
            axes.axhline(1, color="0.55", lw=0.8, zorder=1)
            for scatter in scatters:
                shade = shades[labels.index(scatter.label)]
                axes.plot(scatter.cost, scatter.ratio, **_cloud(shade))
                axes.plot(scatter.limit_cost, scatter.limit_ratio, **_star(shade))
            axes.set(title=title, xlabel=xlabel, xscale="log", ylim=(-0.03, 1.1))
            style.label_decades(axes)
            axes.grid(color="0.92", lw=0.6)
            axes.set_axisbelow(True)
        grid[0].set_ylabel(ylabel)
        handles = [
            Line2D([], [], ls="none", marker="s", ms=5, color=shade, label=label)
            for label, shade in zip(labels, shades, strict=False)
        ]
        handles += [
            Line2D([], [], **_cloud(style.NEUTRAL), label=random_label),
            Line2D([], [], **_star(style.NEUTRAL), label=limit_label),
        ]
        figure.legend(
            handles=handles,
            loc="outside lower center",
            ncols=len(handles),
            frameon=False,
            columnspacing=1.2,
            handletextpad=0.4,
        )
        return figure


def _cloud(colour):
    return {"ls": "none", "marker": ".", "ms": 3.2, "mew": 0, "color": colour, "alpha": 0.6}


def _star(colour):
    return {
        "ls": "none",
        "marker": "*",
        "ms": 9,
        "mfc": colour,
        "mec": "black",
        "mew": 0.5,
        "zorder": 4,
    }

"""Finds badly placed words of a figure: outside the canvas, or on top of each other."""

import itertools

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from lintensor_jax.figures import style

# Pixels at 100 dpi: what anti-aliasing and the boxes' own rounding need.
_SLACK = 1.5


def text_problems(figure: Figure) -> list[str]:
    """A message for each text that is cut off or overlaps another one."""
    canvas = FigureCanvasAgg(figure)
    with style.house_style():
        canvas.draw()
        boxes = list(_boxes(figure, canvas.get_renderer()))
    page = figure.bbox
    found = [
        f"{text!r} leaves the canvas"
        for text, box in boxes
        if box.x0 < page.x0 - _SLACK
        or box.y0 < page.y0 - _SLACK
        or box.x1 > page.x1 + _SLACK
        or box.y1 > page.y1 + _SLACK
    ]
    for (one, first), (other, second) in itertools.combinations(boxes, 2):
        common = Bbox.intersection(first, second)
        if common is not None and min(common.width, common.height) > _SLACK:
            found.append(f"{one!r} and {other!r} overlap")
    return found


def _boxes(figure, renderer):
    """Visible words and their boxes; of tick labels only those that their axis shows."""
    for axes in figure.axes:
        if not axes.get_visible():
            continue
        texts = [axes.title, *axes.texts]
        if axes.axison:
            texts += [axes.xaxis.label, axes.yaxis.label, *_tick_labels(axes)]
        if axes.get_legend() is not None:
            texts += axes.get_legend().get_texts()
        yield from _of(texts, renderer)
    yield from _of([t for legend in figure.legends for t in legend.get_texts()], renderer)
    yield from _of(figure.texts, renderer)


def _tick_labels(axes):
    for axis in (axes.xaxis, axes.yaxis):
        low, high = sorted(axis.get_view_interval())
        for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
            # Labels of ticks outside the shown interval are not drawn.
            if low <= tick.get_loc() <= high:
                yield from (label for label in (tick.label1, tick.label2) if label.get_visible())


def _of(texts, renderer):
    for text in texts:
        if text.get_visible() and text.get_text().strip():
            yield text.get_text(), text.get_window_extent(renderer)

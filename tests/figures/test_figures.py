"""Figures from plain arrays."""

import dataclasses
import subprocess
import sys

import matplotlib as mpl
import numpy as np
import pytest
from figure_text import text_problems
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from lintensor_jax.experiments import EXPERIMENTS, find
from lintensor_jax.figures import style
from lintensor_jax.figures.approach import Approach, approach_figure
from lintensor_jax.figures.curves import PALETTE, Curve, CurvePanel, curve_figure
from lintensor_jax.figures.panels import COLOURS, Line, LinePanel, PointPanel, panel_figure
from lintensor_jax.figures.plane import PlanePanel, plane_figure
from lintensor_jax.figures.spectra import (
    Profile,
    Scatter,
    Trend,
    profile_figure,
    scatter_figure,
    trend_figure,
)
from lintensor_jax.figures.sweeps import Band, BandPanel, band_figure

STARTS = np.array([[0.5, -0.5], [-0.5, 0.2]])


def _paths(end):
    t = np.linspace(0, 1, 20)[:, None]
    return [start + t * (np.array(end) - start) for start in STARTS]


def _panel(**changes):
    settings = {
        "title": "Panel",
        "window": ((-1.0, 1.0), (-1.0, 1.0)),
        "starts": STARTS,
        "flows": {"fully-connected": _paths([0.2, 0.4]), "diagonal": _paths([0.0, 0.5])},
    }
    return PlanePanel(**{**settings, **changes})


def _legend_of(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_an_architecture_keeps_its_colour_and_marker():
    points = {name: np.array([[0.1, 0.1]]) for name in ("fully-connected", "diagonal")}
    figure = plane_figure([_panel(predicted_points=points), _panel(flows={})])
    lines = figure.axes[0].get_lines()
    for name in points:
        colour = style.COLOURS[name]
        assert sum(line.get_color() == colour for line in lines) == 2
        markers = [line for line in lines if line.get_marker() == style.MARKERS[name]]
        assert len(markers) == 1
        assert markers[0].get_markeredgecolor() == colour
    assert len(set(style.MARKERS.values())) == len(style.MARKERS)


def test_a_line_may_have_an_architectures_colour():
    lines = [Line(X, X, name, name) for name in style.COLOURS] + [Line(X, X, "other", 2)]
    figure = panel_figure([[LinePanel("Panel", lines, "x", "y")]], 2.0)
    drawn = [line.get_color() for line in figure.axes[0].get_lines()]
    assert drawn == [*style.COLOURS.values(), COLOURS[2]]


@pytest.mark.parametrize("colour", ["diagonals", -1, len(COLOURS), None])
def test_a_line_of_no_known_colour_is_refused(colour):
    with pytest.raises(ValueError, match=rf"Line: colour must be .*diagonal.*got {colour!r}; take"):
        Line(X, X, "line", colour)


def test_a_legend_is_read_along_its_rows():
    names = [f"line {k}" for k in range(6)]
    lines = [Line(X, X, name, k) for k, name in enumerate(names)]
    panels = [LinePanel("Panel", part, "x", "y") for part in (lines[:2], lines[1:])]
    figure = panel_figure([panels], 2.0, columns=4)
    FigureCanvasAgg(figure).draw()
    places = {t.get_text(): t.get_window_extent() for t in figure.legends[0].get_texts()}
    by_row = sorted(places, key=lambda name: (-round(places[name].y0), places[name].x0))
    assert by_row == names


def test_the_band_that_descent_reaches_is_in_the_legend():
    figure = SYNTHETIC["approach"]()
    axes = figure.axes[0]
    legend = axes.get_legend()
    assert legend is not None
    grey = legend.get_patches()[0].get_facecolor()
    (band,) = [patch for patch in axes.patches if patch.get_facecolor() == grey]
    assert band.get_extents().width > 0
    assert legend.get_texts()[-1].get_text() == "losses that descent reaches"


def test_trajectories_are_drawn_as_given_and_clipped_at_the_window():
    far = {"diagonal": [np.array([[0.0, 0.0], [50.0, 70.0]])]}
    axes = plane_figure([_panel(flows=far)]).axes[0]
    data = [np.asarray(line.get_xydata()) for line in axes.get_lines()]
    assert any(np.array_equal(points, far["diagonal"][0]) for points in data)
    assert axes.get_xlim() == (-1.0, 1.0)
    assert axes.get_ylim() == (-1.0, 1.0)
    assert axes.get_xlabel() == r"$\beta_1$"
    assert axes.get_title() == "Panel"


def test_the_line_of_global_minima_crosses_the_window():
    minima = np.array([[0.2, 0.4], [-1.8, 1.4]])
    axes = plane_figure([_panel(minima=minima)]).axes[0]
    line = next(x for x in axes.get_lines() if x.get_color() == style.GLOBAL_MINIMA)
    points = np.asarray(line.get_xydata())
    np.testing.assert_allclose(points @ [1, 2], 1.0, rtol=0, atol=1e-12)  # rounding of O(1) numbers
    assert points[:, 0].min() < -1
    assert points[:, 0].max() > 1


def test_the_legend_names_what_is_drawn_and_nothing_else():
    assert _legend_of(plane_figure([_panel()])) == [
        "fully-connected",
        "diagonal",
        "start, and its direction",
    ]
    full = _panel(
        descents={"diagonal": _paths([0.0, 0.5])},
        minima=np.array([[0.2, 0.4], [-1.8, 1.4]]),
        predicted_points={"diagonal": STARTS},
    )
    rays = _panel(predicted_directions={"diagonal": np.array([0, 1])}, marks={"diagonal": STARTS})
    assert _legend_of(plane_figure([full, rays], mark_label="loss 1e-5"))[3:] == [
        "predicted limit",
        "predicted direction",
        "global minima",
        "gradient descent",
        "loss 1e-5",
    ]


@pytest.mark.parametrize(("count", "grid"), [(1, 1), (2, 2), (3, 4), (4, 4)])
def test_any_number_of_panels(count, grid):
    figure = plane_figure([_panel()] * count)
    assert len(figure.axes) == grid
    assert sum(axes.get_visible() for axes in figure.axes) == count
    figure.canvas.draw()
    legend = figure.legends[0].get_window_extent()
    assert legend.x0 >= 0
    assert legend.x1 <= figure.bbox.x1


def test_saved_figures_repeat_and_leave_matplotlib_alone(tmp_path):
    before = dict(mpl.rcParams)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        paths = style.save(plane_figure([_panel(), _panel()]), tmp_path / folder / "plane")
        assert [path.name for path in paths] == ["plane.png", "plane.pdf"]
    assert dict(mpl.rcParams) == before
    for name in ("plane.png", "plane.pdf"):
        first, second = ((tmp_path / folder / name).read_bytes() for folder in ("a", "b"))
        assert first == second
    with Image.open(tmp_path / "a" / "plane.png") as picture:
        # Two columns of text at print resolution.
        assert abs(picture.size[0] - style.PAGE_WIDTH * picture.info["dpi"][0]) < 2
        assert picture.info["dpi"][0] > 200


def test_figures_import_nothing_else_of_the_package():
    program = (
        "import sys; import lintensor_jax; before = set(sys.modules);"
        "import lintensor_jax.figures.plane;"
        "print(sorted(m for m in set(sys.modules) - before if m.startswith('lintensor_jax')))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    expected = ["lintensor_jax.figures.plane", "lintensor_jax.figures.style"]
    assert done.stdout.strip() == str(expected), done.stderr


def _approaches():
    x = np.geomspace(0.2, 1e8, 50)
    stop = np.array([11.0])
    return [
        Approach(name, [x, x], [40 / (1 + x), 20 / (1 + x) ** power], stop, 40 / (1 + stop))
        for name, power in zip(style.COLOURS, (0.5, 0.8, 1.0), strict=True)
    ]


X = np.geomspace(1e-4, 1e4, 20)
LINE = Line(X, 1 / X, "one", 0)
CURVES = [Curve(X, X**k, "quantity", f"series {k}", name) for k, name in enumerate(("", "seen"))]
TREND = Trend(np.arange(2, 5), np.ones((3, 2)), np.ones((3, 2)), "diagonal")
SYNTHETIC = {
    "plane": lambda: plane_figure([_panel()] * 4),
    "approach": lambda: approach_figure(
        _approaches(), "markers: gradient descent, after 2,000,000 steps\nlines: flow, 100 steps"
    ),
    "curves": lambda: curve_figure([CurvePanel("Panel", CURVES, "x", "a long label of y")] * 3),
    "panels": lambda: panel_figure(
        [
            [
                LinePanel(
                    "Lines", [LINE], "x", "y", yscale="log", right=[LINE], right_label="risk"
                ),
                PointPanel("Points", STARTS, np.array([1, -1]), xlabel="$x_1$", ylabel="$x_2$"),
                LinePanel("Lines", [LINE], "x", "another y"),
            ]
        ],
        2.2,
    ),
    "profiles": lambda: profile_figure(
        [[Profile(X[:10], X[:10], "diagonal", f"$L = {k}$", "entry $j$", "size") for k in (2, 3)]]
        * 2,
        "limit",
        "descent",
    ),
    "trends": lambda: trend_figure(
        [
            (
                f"number of {what}",
                [Trend(np.arange(2, 5), np.ones((3, 2)), np.ones((3, 2)), "diagonal")],
            )
            for what in ("entries", "frequencies")
        ],
        "depth",
        "limit",
        "descent",
    ),
    "scatter": lambda: scatter_figure(
        [(name, [Scatter(X, np.minimum(X, 1), X[:1], np.ones(1), "$L = 2$")]) for name in "abc"],
        "cost",
        "ratio",
        "limit of a flow",
        "random parameters",
    ),
    "bands": lambda: band_figure(
        [BandPanel("", "alpha", "observable", [Band("diagonal", X, np.outer(X, [1, 2, 3]))])] * 3
    ),
}


@pytest.mark.parametrize("kind", SYNTHETIC)
def test_words_are_inside_and_apart(kind):
    figure = SYNTHETIC[kind]()
    assert text_problems(figure) == []
    assert figure.get_figwidth() <= style.PAGE_WIDTH + 0.5


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (500, 5000, ["500", "1000", "2000", "5000"]),
        (0.015, 0.6, ["0.02", "0.05", "0.1", "0.2", "0.5"]),
    ],
)
def test_logarithmic_axes_of_a_decade_have_plain_numbers(low, high, labels):
    x = np.geomspace(low, high, 9)
    curves = [Curve(x, np.ones(9), "one", "series"), Curve(x, 1e3 * x, "two", "series")]
    figure = curve_figure([CurvePanel("Panel", curves, "x", "y")])
    assert text_problems(figure) == []
    axes = figure.axes[0]
    assert [t.get_text() for t in axes.get_xticklabels()] == labels
    shown = [t.get_text() for t in axes.yaxis.get_minorticklabels()]
    assert not any(shown)


def test_words_that_collide_or_leave_are_found():
    figure = SYNTHETIC["curves"]()
    axes = figure.axes[0]
    for _ in range(2):
        axes.text(0.5, 0.5, "twice", transform=axes.transAxes)
    axes.text(-0.6, 0.2, "outside", transform=axes.transAxes, in_layout=False)
    assert text_problems(figure) == ["'outside' leaves the canvas", "'twice' and 'twice' overlap"]


def test_a_panel_of_points_explains_what_it_shows():
    points = PointPanel(
        "Points", STARTS, np.array([1, -1]), [LINE], STARTS[0], arrow_label="an arrow"
    )
    figure = panel_figure([[points, dataclasses.replace(points, arrow=None)]], 2.0)
    assert _legend_of(figure) == ["one", "label +1", "label −1", "an arrow"]
    _, positive, negative = figure.axes[0].lines
    looks = {(line.get_marker(), line.get_markerfacecolor()) for line in (positive, negative)}
    assert looks == {("o", "0.45"), ("s", "white")}


def test_quantities_keep_their_colours_and_markers_at_the_edge_are_whole():
    curves = [Curve(X, X, "second", "a"), Curve(X, X, "second", "a", "seen")]
    panel = CurvePanel("Panel", curves, "x", "y", y_window=(X[3], X[9]))
    figure = curve_figure([panel], quantities=("first", "second"))
    assert _legend_of(figure)[:1] == ["second"]
    line, markers = figure.axes[0].lines
    assert line.get_color() == PALETTE[1]
    np.testing.assert_array_equal(markers.get_ydata(), X[3:10])
    assert not markers.get_clip_on()


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_words_of_every_experiment_are_inside_and_apart(name):
    experiment = find(name)
    done = experiment.run(*experiment.reduce(experiment.Configuration()))
    figures = experiment.figures(done)
    assert set(experiment.report(done).captions) == set(figures)
    problems = {stem: text_problems(figure) for stem, figure in figures.items()}
    assert not any(problems.values()), problems

"""Figures of a sweep's results, and the settings in its report, for made-up results."""

import json

import numpy as np
import pytest
import xarray as xr

from lintensor_jax.figures import style
from lintensor_jax.figures.sweeps import Band, BandPanel, band_figure
from lintensor_jax.sweeps import SweepError, figures
from lintensor_jax.sweeps.report import figures as drawing
from lintensor_jax.sweeps.report.settings_in_words import settings

ALPHAS, NAMES = np.geomspace(0.01, 1, 7), ("diagonal", "fully-connected")
RNG = np.random.default_rng(0)


def dataset(config=None, **variables):
    """Results over the axes that the variables name, and over alpha and nine directions."""
    sizes = {"architecture": 2, "alpha": 7, "direction": 9}
    lanes = ("architecture", "alpha", "direction")
    if not any("architecture" in dims for dims, _ in variables.values()):
        lanes = lanes[1:]
    shape = tuple(sizes[d] for d in lanes)
    found = {"status": (lanes, np.ones(shape, int)), "num_steps": (lanes, np.full(shape, 5))}
    coordinates = {"alpha": ALPHAS, "architecture": list(NAMES), "direction": np.arange(9)}
    kept = {name: values for name, values in coordinates.items() if name in lanes}
    return xr.Dataset({**found, **variables}, kept, {"config": json.dumps(config or {})})


@pytest.fixture
def drawn(monkeypatch):
    """A function that returns the figures of a dataset."""

    def draw(results):
        monkeypatch.setattr(drawing, "open_dataset", lambda path: results)
        return figures("made-up")

    return draw


def test_limits_of_one_architecture_have_its_colour(drawn):
    limit = RNG.standard_normal((7, 9, 6))
    config = {"network": {"architecture": "diagonal"}}
    figure = drawn(dataset(config, limit=(("alpha", "direction", "coefficient"), limit)))["limit"]
    assert len(figure.axes) == 4  # of six coefficients
    for k, axes in enumerate(figure.axes):
        (line,) = axes.lines
        np.testing.assert_array_equal(line.get_xdata(), ALPHAS)
        np.testing.assert_allclose(line.get_ydata(), np.median(limit[..., k], axis=1), rtol=1e-14)
        assert line.get_color() == style.COLOURS["diagonal"]
    assert figure.legends[0].get_texts()[0].get_text() == "diagonal"
    assert drawing.caption("made-up", "limit").startswith(
        "The first 4 of 6 coefficients of the limits over α."
    )


def test_directions_of_several_architectures(drawn):
    dims = ("architecture", "alpha", "direction", "coefficient")
    reached = np.exp(3 * RNG.standard_normal((2, 7, 9, 2)))  # positive, over decades
    found = drawn(dataset(direction_reached=(dims, reached)))
    assert list(found) == ["direction", "steps"]
    for k, axes in enumerate(found["direction"].axes):
        assert axes.get_yscale() == "linear"
        assert axes.get_ylabel().startswith(rf"direction $\beta_{{{k + 1}}}")
        for i, line in enumerate(axes.lines):
            assert line.get_color() == style.COLOURS[NAMES[i]]
            expected = np.median(reached[i, ..., k], axis=1)
            np.testing.assert_allclose(line.get_ydata(), expected, rtol=1e-14)


def test_coefficients_of_several_outputs_and_lanes_to_come(drawn):
    dims = ("alpha", "direction", "coefficient", "output")
    results = dataset(limit=(dims, RNG.standard_normal((7, 9, 2, 3))))
    results.status[3:] = 0
    axes = drawn(results)["limit"].axes
    labels = [a.get_ylabel() for a in axes]
    assert labels == [rf"limit $\beta_{{{i},{j}}}$" for i, j in ((1, 1), (1, 2), (1, 3), (2, 1))]
    np.testing.assert_array_equal(axes[0].lines[0].get_xdata(), ALPHAS[:3])
    results.status[:] = 0
    with pytest.raises(SweepError, match="no chunk is finished yet"):
        drawn(results)


def test_what_is_not_finite_is_left_out_and_counted(drawn):
    lanes = ("architecture", "alpha", "direction")
    values = RNG.standard_normal((2, 7, 9))
    some, most, one = values.copy(), values.copy(), values.copy()
    some[:, 0, 0] = np.nan
    most[:, 1:] = -np.inf
    one[1] = np.nan
    results = dataset(some=(lanes, some), log_loss=(lanes, most), one=(lanes, one))
    figure = drawn(results)["observables"]
    assert figure.get_suptitle() == (
        "Not shown, as most values are not finite: natural log of the loss (log of 0)"
    )
    assert drawing.caption("made-up", "observables").endswith(f"{figure.get_suptitle()}.")
    first, second = figure.axes
    titles = [axes.get_title() for axes in (first, second)]
    assert titles == [f"{n} of 126 values, not finite, are left out" for n in (2, 63)]
    assert [len(axes.lines) for axes in (first, second)] == [2, 1]
    assert first.get_xlim() == second.get_xlim()
    assert drawn(results)["steps"].axes[0].get_ylabel() == "solver steps"


@pytest.mark.parametrize("of", ["limit", "direction_reached"])
def test_predictions_are_drawn_in_the_figure_of_their_variable(drawn, of):
    lanes, dims = ("alpha", "direction"), ("alpha", "direction", "coefficient")
    limit = RNG.standard_normal((7, 9, 2))
    unit = limit / np.linalg.norm(limit, axis=-1, keepdims=True)
    found = {"limit": limit, "direction_reached": unit}
    predicted = found[of] + 0.1
    away = np.linalg.norm(predicted - found[of], axis=-1)
    variables = {name: (dims, values) for name, values in found.items()}
    results = dataset(
        **variables, predicted=(dims, predicted), distance_to_prediction=(lanes, away)
    )
    figures = drawn(results)
    rings = {name: len(figures[name].axes[0].lines) - 1 for name in ("limit", "direction")}
    assert rings == {"limit": of == "limit", "direction": of != "limit"}
    shown = figures[of.removesuffix("_reached")]
    np.testing.assert_allclose(
        shown.axes[1].lines[1].get_ydata(), np.median(predicted[..., 1], axis=1), rtol=1e-14
    )
    assert shown.legends[0].get_texts()[-1].get_text() == "predicted by theory, median"


def test_units_are_words_or_left_out(drawn):
    lanes = ("alpha", "direction")
    numbers = {}
    for name, units in (("distance", "y/x"), ("drift", "1"), ("my_speed", "m/s"), ("bare", None)):
        about = {} if units is None else {"units": units}
        numbers[name] = xr.Variable(lanes, RNG.standard_normal((7, 9)), about)
    found = drawn(dataset().assign(numbers))
    labels = [axes.get_ylabel() for axes in found["observables"].axes]
    assert labels == ["distance", "drift", "my speed\n(m/s)", "bare"]


def test_settings_omit_what_the_user_did_not_set():
    config = {"seed": 0, "data": {"path": None, "X": [[1.0, 2.0]], "task": "regression"}}
    assert list(settings(config)) == [
        ("seed", "0"),
        ("data.X", "[[1.0, 2.0]]"),
        ("data.task", "regression"),
    ]
    described = {
        "grid": {
            "is": "lintensor_jax.sweeps.grid:Grid",
            "fields": {
                "axes": {"tuple": [{"is": "a.b:Axis", "fields": {"name": "alpha", "units": ""}}]},
                "start": {"own": "hash", "name": "mine:start"},
                "X": {"array": [[0.25] * 10] * 6, "dtype": "<f8", "shape": [6, 10], "on": "host"},
                "y": {"array": "hash"},
                "stop": None,
                "finish": {"...": True},
                "largest": {"float": "inf"},
            },
        }
    }
    assert list(settings(described)) == [
        ("grid", "Grid"),
        ("grid.axes[0]", "Axis"),
        ("grid.axes[0].name", "alpha"),
        ("grid.start", "start"),
        ("grid.X", "6 rows of 10"),
        ("grid.y", "a long array"),
        ("grid.largest", "inf"),
    ]


def test_scales_over_a_factor_of_five_are_logarithmic():
    for x, scale in (([0.03, 0.1, 0.3], "log"), ([1.0, 4.9], "linear"), ([2, 12], "linear")):
        x = np.array(x)
        axes = band_figure([BandPanel("", "x", "y", [Band("", x, np.ones((len(x), 1)))])]).axes[0]
        assert axes.get_xscale() == scale
        assert axes.lines[0].get_marker() == "o"

"""Grids: axes, shapes, compilations, random numbers; lanes that fail; what is refused."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array
from sweep_cases import ALPHAS, DIRECTIONS, GRID, LANES, LIKE, PROBLEM, axes, start

import lintensor_jax as lt
from lintensor_jax.initialization import gaussian
from lintensor_jax.sweeps import (
    STATUSES,
    Axis,
    Direction,
    Grid,
    LayerAlignment,
    Limit,
    Margins,
    Measured,
    Options,
    Plan,
    Variable,
    Zip,
)
from lintensor_jax.sweeps.store.description import describe, differences, rebuild

RNG = np.random.default_rng(3)


@pytest.fixture
def compilations():
    """A list that grows by one with every program that XLA compiles."""
    seen = []

    def listen(event: str, duration_secs: float, **_):
        if event.endswith("backend_compile_duration"):
            seen.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.clear_event_listeners()


def test_numbers_share_a_compilation_and_shapes_do_not(compilations):
    counts = []

    def watch(progress):
        counts.append((progress.lanes, len(compilations)))

    lt.sweep(GRID, watch=watch, **LANES)
    first = next(count for lanes, count in counts if lanes > 0)
    assert counts[-1] == (60, first)
    # With other numbers and one more chunk no program of a flow is compiled again.
    before = len(compilations)
    more = Grid(axes(np.geomspace(0.1, 2.0, 15)), start, PROBLEM, seed=8)
    lt.sweep(more, **LANES)
    assert len(compilations) - before <= 3  # starts of the sample and of a chunk, observables

    def of_dimension(point):
        return gaussian(lt.DiagonalNetwork.zeros(2, point.d), point.key, 0.5)

    def data(point):
        return lt.Regression(jnp.ones((1, point.d)), jnp.ones(1))

    dims = Axis("d", [2, 3], changes_shape=True)
    plan = Plan(Grid((dims, Axis("seed", range(6))), of_dimension, data), Options(**LANES))
    assert plan.summary(num_devices=2)["compilations"] == 4
    assert plan.arrays["limit"].shape == (2, 6, 3)
    assert all(cell.shared is not None for cell in plan.cells.values())


def test_chunks_cover_the_grid_once_and_keep_to_a_cell():
    depth = Axis("depth", [2, 3], changes_shape=True)
    grid = Grid(
        (Axis("a", range(7)), depth, Axis("b", range(11))),
        lambda p: gaussian(lt.DiagonalNetwork.zeros(p.depth, 2), p.key),
        PROBLEM,
    )
    plan = Plan(grid, Options(chunk_lanes=23, width=8))
    assert plan.box == (2, 1, 11)
    chunks = list(plan.chunks())
    lanes = np.concatenate([chunk.lanes for chunk in chunks])
    np.testing.assert_array_equal(np.sort(lanes), np.arange(grid.size))
    for chunk in chunks:
        assert {grid.cell_of(k) for k in chunk.lanes} == {tuple(chunk.cell.fixed.values())}


def test_chunks_are_large_beside_what_is_in_flight():
    """Then a slow last lane wastes few slots; `benchmarks/sweep.py uneven` measures the waste."""
    for size, lanes, width in ((100, 500, 8), (2_000, 2000, 24), (20_000, 12_500, 128)):
        plan = Plan(Grid(axes(np.geomspace(0.01, 1.0, size)), start, PROBLEM), Options())
        assert np.prod(plan.box) == pytest.approx(lanes, rel=0.05)
        assert plan.width == width
        assert plan.summary(1)["memory_per_device_bytes"] < 2**30


def test_axes_vary_by_product_or_together():
    pair = Zip("setup", Axis("alpha", ALPHAS[:5]), Axis("z", DIRECTIONS, dims=("coefficient",)))
    grid = Grid((pair, Axis("seed", [0, 5, 6])), lambda p: start_of(p.z, p.alpha), PROBLEM)
    results = lt.sweep(grid, observables=Limit(), **LANES)
    assert results.limit.dims == ("setup", "seed", "coefficient")
    assert results.alpha.dims == ("setup",)
    assert results.z_value.dims == ("setup", "coefficient")
    product = lt.sweep(GRID, **LANES)
    for i in range(5):
        # The same flows, at the same width.
        np.testing.assert_array_equal(
            results.limit.isel(setup=i, seed=1), product.limit.isel(alpha=i, direction=i)
        )


def start_of(z, alpha):
    return lt.initialization.matching(LIKE, z).scaled(alpha)


def test_random_numbers_belong_to_the_lane():
    def random(point):
        return gaussian(LIKE, point.key, point.alpha)

    initial = Measured("initial", lambda end: end.initial.weights, dims=("layer", "coefficient"))
    grid = Grid(
        (Axis("alpha", [0.5, 0.6, 0.7]), Axis("repeat", range(4))), random, PROBLEM, seed=11
    )
    results = lt.sweep(grid, observables=[initial], **LANES)
    for i, j in ((0, 0), (2, 3)):
        key = jax.random.fold_in(jax.random.key(11), 4 * i + j)
        expected = gaussian(LIKE, key, results.alpha[i].item()).weights
        np.testing.assert_allclose(results.initial[i, j], expected, rtol=1e-15)


def test_exactly_the_bad_lanes_are_flagged():
    # One lane of a hundred is bad; `benchmarks/sweep.py nan` has more.
    alphas = np.geomspace(0.1, 1.0, 100)
    broken = np.isin(np.arange(100), [37])
    # Every value differs, as values of an axis must.
    flags = np.where(broken, 1, -1) * np.arange(1, 101)
    lanes = Zip("lane", Axis("alpha", alphas), Axis("broken", flags))
    results = lt.sweep(Grid((lanes,), start_at_or_nan, PROBLEM), **LANES)
    np.testing.assert_array_equal(results.status == STATUSES.index("bad_input"), broken)
    assert np.isnan(results.limit[broken]).all()
    # The other lanes are the same as without their broken neighbour.
    alone = Grid(
        (Axis("alpha", alphas[~broken]),), lambda p: start_of(DIRECTIONS[0], p.alpha), PROBLEM
    )
    np.testing.assert_array_equal(results.limit[~broken], lt.sweep(alone, **LANES).limit)


def start_at_or_nan(point):
    return start_of(DIRECTIONS[0], jnp.where(point.broken > 0, jnp.nan, point.alpha))


class Hadamard(eqx.Module):
    """A user's network."""

    u: Array
    v: Array
    depth = 2

    def linear_coefficients(self):
        return self.u * self.v


def test_data_of_each_lane_and_a_network_of_a_user(tmp_path):
    X, y = RNG.standard_normal((6, 1, 2)), RNG.standard_normal((6, 1))
    y[[0, 2]] = np.nan
    pairs = Zip("data", Axis("X", X), Axis("y", y))
    grid = Grid(
        (pairs,),
        lambda p: Hadamard(jnp.ones(2), jnp.array([0.5, -0.5])),
        lambda p: lt.Regression(p.X, p.y),
    )
    own = Measured("size", lambda end: jnp.sum(end.coefficients**2))
    results = lt.sweep(grid, tmp_path / "s", observables=[Limit(), own], **LANES)
    names = np.asarray(STATUSES)[results.status]
    good = np.isin(np.arange(6), [1, 3, 4, 5])
    np.testing.assert_array_equal(names == "bad_input", ~good)
    fitted = np.einsum("ld,ld->l", X[good, 0], results.limit[good])
    np.testing.assert_allclose(fitted, y[good, 0], rtol=0, atol=1e-8)
    with pytest.raises(RuntimeError, match="pass the grid that it was made with"):
        lt.resume(tmp_path / "s")
    with pytest.raises(RuntimeError, match="pass the observables that it was made with"):
        lt.resume(tmp_path / "s", grid)
    lt.resume(tmp_path / "s", grid, observables=[Limit(), own])


@pytest.mark.slow
def test_classification_and_several_architectures():
    problem = lt.Classification(np.array([[1.0, 2.0], [0.0, -3.0]]), np.array([1.0, -1.0]))
    templates = {
        "diagonal": lt.DiagonalNetwork.zeros(2, 2),
        "fully-connected": lt.FullyConnectedNetwork.zeros((2, 2)),
    }
    grid = Grid(
        (Axis("architecture", list(templates)), Axis("alpha", [0.3, 1.0])),
        lambda p: lt.initialization.matching(
            templates[p.architecture], jnp.array([0.6, -0.4])
        ).scaled(p.alpha),
        problem,
    )
    results = lt.sweep(grid, observables=[Direction(), Margins()], max_steps=300)
    diagonal = results.direction_reached.sel(architecture="diagonal")
    # Yun et al. 2021, section 6: l1 and l2 maximum margin; the stop is at margin 1e8.
    np.testing.assert_allclose(diagonal, [[0, 1], [0, 1]], rtol=0, atol=1e-3)
    full = results.direction_reached.sel(architecture="fully-connected")
    np.testing.assert_allclose(full, np.array([[1, 2], [1, 2]]) / 5**0.5, rtol=0, atol=1e-3)
    assert (results.log_margin >= np.log(1e8)).all()
    with pytest.raises(
        ValueError, match=r"LayerAlignment is for FullyConnectedNetwork.*architecture"
    ):
        lt.sweep(grid, observables=LayerAlignment())


@pytest.mark.slow
def test_a_lane_over_every_budget_says_so():
    results = lt.sweep(GRID, max_steps=5, stiff_max_steps=None, **LANES)
    assert (np.asarray(STATUSES)[results.status] == "max_steps").all()
    assert (results.num_steps == 5).all()


class Slash(Limit):
    """A user's observable, whose name cannot be the name of a folder."""

    @property
    def variables(self):
        return (Variable("a/b", (), "", ""),)


REFUSED = {
    "Axis: name must be an identifier": lambda: Axis("a b", [1]),
    "Axis: name must be an identifier and none of": lambda: Axis("../a", [1]),
    "Axis a: every name in dims must be": lambda: Axis("a", np.eye(2), dims=("/x",)),
    "Zip: name must be an identifier and none": lambda: Zip(".sweep", Axis("a", [1])),
    "Zip: name must be an identifier and": lambda: Zip("/x", Axis("a", [1])),
    "Zip a: must have one Axis or more": lambda: Zip("a"),
    "Measured: name must be an identifier": lambda: Measured("a/b", lambda end: end.log_loss),
    "Measured a: every name in dims must be": lambda: Measured(
        "a", lambda end: end.coefficients, dims=("..",)
    ),
    "observables: the name of a variable must be": lambda: lt.sweep(GRID, observables=Slash()),
    "Axis a: values must be a non-empty": lambda: Axis("a", []),
    "Axis a: values must differ, got 1 twice": lambda: Axis("a", [1, 1]),
    "Axis a: dims must name": lambda: Axis("a", np.eye(2), dims=("x", "y")),
    "Zip s: axes must be of one length": lambda: Zip("s", Axis("a", [1]), Axis("b", [1, 2])),
    "Grid: axes must have different names, got 'a' twice": lambda: Grid(
        (Axis("a", [1]), Axis("a", [2])), start, PROBLEM
    ),
    "Grid: seed must be a whole number": lambda: Grid(axes(), start, PROBLEM, seed=-1),
    "Grid: problem must be an object": lambda: Grid(axes(), start, 3),  # pyright: ignore
    "the grid has no axis 'beta'; it has alpha": lambda: lt.sweep(
        Grid(axes(), lambda p: p.beta, PROBLEM)
    ),
    r"some code in them needs a plain value. If the axis decides a shape": lambda: lt.sweep(
        Grid((Axis("depth", [2, 3]),), lambda p: lt.DiagonalNetwork.zeros(p.depth, 2), PROBLEM)
    ),
    "observables: must be objects such as": lambda: lt.sweep(GRID, observables=["limit"]),  # pyright: ignore
    "observables: names must differ, and 'limit' is given twice": lambda: lt.sweep(
        GRID, observables=[Limit(), Limit()]
    ),
    "Margins is for Classification": lambda: lt.sweep(GRID, observables=[Margins()]),
    "max_steps: must be a whole number >= 1, got 0": lambda: lt.sweep(GRID, max_steps=0),
    "rtol: must lie in": lambda: lt.sweep(GRID, rtol=2.0),
    "stop: StopAtMargin is for Classification": lambda: lt.sweep(GRID, stop=lt.StopAtMargin(9.0)),
    "network: its linear coefficients have shape": lambda: lt.sweep(
        Grid(axes(), start, lt.Regression(np.ones((1, 3)), [1.0]))
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_mistakes_are_refused_before_any_flow(message, monkeypatch):
    monkeypatch.setattr("lintensor_jax.sweeps.execution.worker.batched_flow", None)
    with pytest.raises((ValueError, AttributeError), match=re.escape(message)):
        REFUSED[message]()


def test_a_description_tells_sweeps_apart_and_rebuilds_what_is_ours():
    options = Options(
        observables=(Limit(), Margins()), stop=lt.StopAtLoss(1e-3), clock=lt.LogArcLength()
    )
    description, arrays = describe((options, PROBLEM, np.arange(100.0), ..., {"a": 1.5}))
    rebuilt = rebuild(description, arrays)
    again, _ = describe(rebuilt)
    assert again == description
    assert rebuilt[0] == options
    assert isinstance(rebuilt[1].X, jax.Array)
    scale = 2.0
    one, _ = describe(lambda p: p.alpha * scale)
    scale = 3.0
    two, _ = describe(lambda p: p.alpha * scale)
    assert one["own"] != two["own"]
    assert differences({"a": [1, 2]}, {"a": [1, 3]}) == ["a[1]"]

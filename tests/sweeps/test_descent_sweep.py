"""Sweeps of descents: lanes against single runs, their exact limits, resuming, mistakes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lintensor_jax as lt
from lintensor_jax import sweeps

D, N = 6, 3
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(N, D)) / np.sqrt(N), RNG.normal(size=N)
PROBLEM = lt.Regression(X, Y)
WEIGHTS = np.stack([np.ones(D), 0.1 * np.arange(D)])
SIZES = (0.01, 0.04, 10.0)


def start(point):
    return lt.DiagonalNetwork(jnp.asarray(WEIGHTS) * (1 + 0.1 * point.seed))


def grid():
    axes = sweeps.Axis("step_size", np.array(SIZES)), sweeps.Axis("seed", np.arange(3.0))
    return sweeps.Grid(axes, start, PROBLEM, seed=4)


DESCENT = sweeps.Descent(2_000, "step_size", batch_size=1, replacement=True)
OBSERVABLES = (sweeps.Limit(), sweeps.LogLoss(), sweeps.EffectiveLimit())


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    path = tmp_path_factory.mktemp("descents") / "store"
    found = lt.sweep(grid(), path, observables=OBSERVABLES, descent=DESCENT, chunk_lanes=3)
    return path, found.load()


def test_lanes_are_single_runs(results):
    _, found = results
    assert found.attrs["format"] == 3
    for i, size in enumerate(SIZES[:2]):
        key = jax.random.fold_in(jax.random.key(4), 3 * i + 1)
        alone = lt.gradient_descent(
            lt.DiagonalNetwork(WEIGHTS * 1.1),
            PROBLEM,
            optax.sgd(size),
            2_000,
            batch_size=1,
            replacement=True,
            key=jax.random.fold_in(key, 0),
        )
        lane = found.isel(step_size=i, seed=1)
        np.testing.assert_allclose(lane.limit, alone.coefficients[-1], rtol=0, atol=1e-12)
        np.testing.assert_allclose(lane.log_time, np.log(2_000 * size), rtol=1e-12)
        limit = lt.effective_limit(alone, PROBLEM).limit
        assert limit is not None
        np.testing.assert_allclose(lane.effective_limit, limit, rtol=0, atol=1e-9)
    assert np.all(found.num_steps[:2] == 2_000)


def test_fitted_lanes_end_at_their_limits_and_others_say_why(results):
    _, found = results
    names = np.asarray(sweeps.STATUSES)[np.asarray(found.status)]
    np.testing.assert_array_equal(names[:2], "time")
    np.testing.assert_array_equal(names[2], "non_finite")
    assert np.all(found.num_steps[2] < 2_000)
    methods = np.asarray(sweeps.METHODS)[np.asarray(found.method)]
    np.testing.assert_array_equal(methods, "gradient_descent")
    fits = np.asarray(found.effective_residual) < 1e-11
    assert fits.sum() >= 3
    assert np.all(np.asarray(found.distance_to_effective_limit)[fits] < 1e-9)


@pytest.mark.slow
def test_a_lost_chunk_is_computed_again_to_the_same_bits(results):
    path, found = results
    store = sorted(
        p for p in path.rglob("*") if p.is_file() and "limit" in p.parts and "c" in p.parts
    )
    assert len(store) >= 3
    store[1].unlink()
    again = lt.resume(path, grid(), observables=OBSERVABLES).load()
    assert again.equals(found)
    page = sweeps.write_report(path, grid=grid()).read_text()
    assert "The lanes are descents" in page


@pytest.mark.slow
def test_batch_sizes_noise_and_momentum_are_axes_too(tmp_path):
    axes = (
        sweeps.Axis("batch", [1, 3], changes_shape=True),
        sweeps.Axis("momentum", np.array([0.0, 0.5])),
        sweeps.Axis("noise", np.array([0.0, 0.1])),
    )
    point = sweeps.Grid(axes, lambda point: lt.DiagonalNetwork(WEIGHTS), PROBLEM)
    descent = sweeps.Descent(200, 0.01, "batch", label_noise="noise", momentum="momentum")
    found = lt.sweep(point, observables=sweeps.Limit(), descent=descent)
    alone = lt.gradient_descent(
        lt.DiagonalNetwork(WEIGHTS),
        PROBLEM,
        optax.sgd(0.01, 0.5),
        200,
        batch_size=3,
        label_noise=0.1,
        key=jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 7), 0),
    )
    lane = found.sel(batch=3, momentum=0.5, noise=0.1)
    np.testing.assert_allclose(lane.limit, alone.coefficients[-1], rtol=0, atol=1e-12)


def _sweep(**options):
    return lt.sweep(grid(), **{"descent": DESCENT, "observables": sweeps.Limit(), **options})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sweeps.Descent("9", 0.1), "num_steps must be a positive int, got"),  # pyright: ignore
        (lambda: sweeps.Descent(0, 0.1), "num_steps must be a positive int, got 0"),
        (lambda: sweeps.Descent(9, -0.1), "step_size must be a number >= 0 and finite or the name"),
        (lambda: sweeps.Descent(9, True), "step_size must be a number"),
        (lambda: sweeps.Descent(9, 0.1, momentum=1.0), r"momentum must be a number in \[0, 1\) or"),
        (
            lambda: _sweep(descent=sweeps.Descent(9, "size")),
            "step_size .* got 'size'; the axes",
        ),
        (
            lambda: _sweep(descent=sweeps.Descent(9, 0.1, 4)),
            "batch_size: must be an int from 1",
        ),
        (lambda: _sweep(descent=9), "descent: must be a lintensor_jax.sweeps.Descent"),
        (lambda: _sweep(stop=lt.StopAtResidual(1e-3)), "stop: is of flows"),
        (
            lambda: _sweep(observables=sweeps.Trajectory([1.0])),
            "Trajectory is of flows, got a sweep of descents",
        ),
        (
            lambda: _sweep(descent=None, observables=sweeps.EffectiveLimit()),
            "EffectiveLimit is for descents of two layers",
        ),
    ],
)
def test_mistakes(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_effective_limits_of_other_problems_are_refused():
    observable = sweeps.EffectiveLimit()
    with pytest.raises(ValueError, match="Regression with the squared loss"):
        observable.check(start, lt.Classification(X, np.sign(Y)))
    three = lt.DiagonalNetwork(np.ones((3, D)))
    with pytest.raises(ValueError, match="two layers with a real decomposition"):
        observable.check(three, PROBLEM)

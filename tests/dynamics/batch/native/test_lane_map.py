"""Functions of one lane as machine code for many lanes, against `jax.vmap`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lintensor_jax.dynamics.batch.native import emitter, lane_map
from lintensor_jax.dynamics.batch.native.instructions import TooLarge, Unsupported
from lintensor_jax.dynamics.batch.native.lane_map import LaneMap

RNG = np.random.default_rng(3)


def _halved(x, y, shared):
    """Each lane is halved until it is small: lanes leave the loop at different times."""

    def goes_on(carry):
        return (jnp.max(jnp.abs(carry[0])) > shared[0]) & (carry[1] < 40)

    value, turns = jax.lax.while_loop(
        goes_on, lambda carry: (carry[0] * 0.5, carry[1] + 1), (x, jnp.zeros((), jnp.int32))
    )
    # This product must not be taken from the loop.
    return value, turns.astype(x.dtype), x * 0.5 + y.sum()


def _scanned(x, y, shared):
    def turn(carry, item):
        return carry * item + shared[1], carry

    forward, seen = jax.lax.scan(turn, x, jnp.stack([y, y + 1, y - 1])[:, :1])
    backward, _ = jax.lax.scan(turn, x, y, reverse=True)
    return forward, seen, backward


def _branches(x, y, shared):
    def rare():
        return jnp.exp(x), y[0] > 0

    value, flag = jax.lax.cond(x[0] > shared[2], rare, lambda: (x, False))
    return value, flag, y


def _nested(x, y, shared):
    """A loop in a branch in a loop, whose sums are derivatives of a gather."""

    def doubled(value):
        return jax.lax.while_loop(lambda v: jnp.sum(v) < shared[3], lambda v: 2 * v, value)

    def body(carry):
        value, count = carry
        value = jax.lax.cond(count > 1, lambda: doubled(jnp.abs(value) + 0.1), lambda: value + y[0])
        return value, count + 1

    value, _ = jax.lax.while_loop(lambda c: c[1] < 3, body, (x, 0))
    slope = jax.grad(lambda z: jnp.sum(z[jnp.array([0, 2, 2, 1])] ** 3))(x)
    return value, slope


def _with_calls(x, y, shared):
    """Calls of one function before, in the condition of, in, and after a loop."""
    part = jax.jit(lambda value, factor: jnp.sin(value * factor) + value)

    def goes_on(carry):
        value, count = carry
        return (count < 4) & (jnp.sum(part(x, y[1])) < 50 + jnp.sum(value) * 0)

    def body(carry):
        value, count = carry
        return part(x, y[0]) + part(value, y[1]), count + 1

    value, _ = jax.lax.while_loop(goes_on, body, (part(x, y[0]), 0))
    return value, part(x, y[0])


CASES = [_halved, _scanned, _branches, _nested, _with_calls]


@pytest.mark.parametrize("count", [1, 16, 1003])
@pytest.mark.parametrize("function", CASES, ids=lambda f: f.__name__.strip("_"))
def test_machine_code_agrees_with_vmap(function, count, monkeypatch):
    monkeypatch.setattr(lane_map, "_FEWEST_LANES", 50)
    if function is _with_calls:
        monkeypatch.setattr(emitter, "LARGEST_INLINE", 0)
    # Lanes in steps of eight numbers, as the columns of a table.
    table = RNG.standard_normal((count, 8))
    x, y, shared = table[:, 1:4], table[:, 5:7], np.array([1e-3, 0.5, 1.0, 9.0])
    mapped = LaneMap(jax.jit(function).trace(x[0], y[0], shared).jaxpr, 2)
    mapped.compile()
    one, three = (mapped(x, y, shared, threads=n) for n in (1, 3))
    expected = jax.vmap(function, (0, 0, None))(jnp.asarray(x), jnp.asarray(y), shared)
    for a, b, c in zip(one, three, expected, strict=True):
        assert a.dtype == c.dtype
        assert a.shape == c.shape
        np.testing.assert_array_equal(a, b)
        np.testing.assert_allclose(a, c, rtol=1e-13, atol=1e-14)


def test_lanes_in_any_order_of_memory():
    x = np.asfortranarray(RNG.standard_normal((20, 2, 3)))
    mapped = LaneMap(jax.jit(lambda x: (x @ x.T,)).trace(x[0]).jaxpr, 1)
    mapped.compile()
    np.testing.assert_allclose(mapped(x)[0], x @ x.transpose(0, 2, 1), rtol=1e-13)


def test_results_may_be_arguments():
    """Results are written over the arguments, after all arguments were read."""
    x = RNG.standard_normal((20, 3))
    mapped = LaneMap(jax.jit(lambda x: (x[::-1], x[1:])).trace(x[0]).jaxpr, 1)
    mapped.compile()
    found = mapped(x)
    np.testing.assert_array_equal(found[0], x[:, ::-1])
    np.testing.assert_array_equal(found[1], x[:, 1:])


def _long_scan(x):
    return jax.lax.scan(lambda c, _: (c + 1, None), x, length=9)[0]


def _three_branches(x):
    return jax.lax.switch(jnp.sum(x).astype(int), [jnp.sin, jnp.cos, jnp.exp], x)


REFUSED: dict[str, tuple[Any, Any, str]] = {
    "long scan": (_long_scan, Unsupported, "scan of 9 iterations"),
    "three branches": (_three_branches, Unsupported, "more than two branches"),
    "many numbers": (lambda x: jnp.outer(x, jnp.arange(22.0)), TooLarge, "66 numbers"),
    "integers": (lambda x: x.astype(int), Unsupported, "int64"),
    "sort": (jnp.sort, Unsupported, "sort"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name):
    function, kind, words = REFUSED[name]
    with pytest.raises(kind, match=words):
        LaneMap(jax.jit(function).trace(np.ones(3)).jaxpr, 1)


def test_lanes_of_another_shape_are_refused():
    """Machine code would read beyond the end of their memory."""
    mapped = LaneMap(jax.jit(lambda x, y: x + y).trace(np.ones(3), np.ones(3)).jaxpr, 2)
    for wrong in (np.ones((20, 2)), np.ones((19, 3)), np.ones((20, 3), np.float32)):
        with pytest.raises(ValueError, match="arrays: those of lanes must have"):
            mapped(np.ones((20, 3)), wrong)


def test_sums_at_places_that_depend_on_the_lane_are_refused():
    def summed(x):
        return jnp.zeros(3).at[(x[:1] > 0).astype(int)].add(x[:1])

    with pytest.raises(Unsupported, match="scatter-add"):
        LaneMap(jax.jit(summed).trace(np.ones(3)).jaxpr, 1)

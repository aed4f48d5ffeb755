"""The package's machine code, instruction by instruction, against JAX and NumPy."""

import importlib
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_cases import SPECIAL, by_kernel, rows_of

from lintensor_jax.dynamics.batch.native import elementary, emitter, table
from lintensor_jax.dynamics.batch.native.instructions import Unsupported
from lintensor_jax.dynamics.batch.vectorization import entry_by_entry as entrywise

RNG = np.random.default_rng(0)


def stack(*values) -> Any:
    return jnp.stack([jnp.asarray(value, float) for value in values])


def whole(x) -> Any:
    """The numbers as integers of both signs."""
    return jnp.floor(jnp.clip(jnp.nan_to_num(x), -9, 9)).astype(jnp.int64)


def signs(k) -> Any:
    """Results of the same bits as integers with a sign and without."""
    unsigned = k.astype(f"u{k.dtype}")
    return [
        number
        for a in (k, unsigned)
        for number in (
            a[0] < a[1],
            jnp.maximum(a[0], a[1]) > a.dtype.type(100),
            jnp.minimum(a[0], a[1]) > a.dtype.type(100),
            jax.lax.clamp(a.dtype.type(1), a[0], a.dtype.type(7)),
            jax.lax.clamp(a[0], a.dtype.type(7), a[1]) > a.dtype.type(100),
            jnp.max(a) > a.dtype.type(100),
            a[0].astype(float),
            a[0].astype(jnp.int64) >> 3,
        )
    ]


# Functions for which XLA has the same bits.
EXACT: dict[str, Any] = {
    "arithmetic": lambda x: stack(x[0] + x[1], x[0] - x[1], x[0] * x[1], x[0] / x[1], -x[0]),
    "roots": lambda x: stack(jnp.sqrt(x[0]), jnp.abs(x[0]), x[0] ** 2, jnp.square(x[1])),
    "orders": lambda x: stack(
        jnp.maximum(x[0], x[1]), jnp.minimum(x[0], x[1]), jnp.clip(x[0], -1, 1), jnp.sign(x[0])
    ),
    "comparisons": lambda x: stack(
        x[0] < x[1], x[0] <= x[1], x[0] > x[1], x[0] >= x[1], x[0] == x[1], x[0] != x[1]
    ),
    "logic": lambda x: stack(
        (x[0] < 0) & (x[1] < 0), (x[0] < 0) | ~(x[1] < 0), (x[0] < 0) ^ (x[1] < 0)
    ),
    "choices": lambda x: jnp.where(x > 0, x, 2 * x),
    "finite": lambda x: jnp.isfinite(x),
    "rounding": lambda x: stack(jnp.floor(x[0]), jnp.ceil(x[0])),
    "integers": lambda x: stack(
        jnp.floor(jnp.clip(jnp.nan_to_num(x[0]), -9, 9)).astype(jnp.int32) * 3 + 1,
        jnp.clip(jnp.nan_to_num(x[1]), -9, 9).astype(jnp.int64) >> 1,
    ),
    "whole numbers of anything": lambda x: stack(
        *((1e12 * x).astype(kind)[0] for kind in (jnp.int32, jnp.int64, jnp.uint32))
    ),
    "unsigned": lambda x: jnp.max(jax.lax.bitcast_convert_type(x, jnp.uint64))[None],
    "orders of booleans": lambda x: stack(
        (x[0] > 0) < (x[1] > 0), (x[0] > 0) >= (x[1] > 0), jnp.max(x > 0), jnp.min(x > 0)
    ),
    "bits of known numbers": lambda x: x + jax.lax.reduce_and(jnp.array([6, 3]), (0,)),
    "bits": lambda x: jax.lax.bitcast_convert_type(
        jax.lax.bitcast_convert_type(x, jnp.int64) & ~1, jnp.float64
    ),
    "reductions": lambda x: stack(jnp.max(x), jnp.min(x), jnp.all(x > 0), jnp.any(x > 0)),
    "a branch": lambda x: jax.lax.cond(x[0] > x[1], lambda x: x[::-1], lambda x: x + 1, x),
    "a known branch": lambda x: jax.lax.cond(x.size > 1, lambda x: 2 * x, jnp.negative, x),
    "moves": lambda x: jnp.concatenate([x[::-1], x[1:], jnp.stack([x, x], 1).T.reshape(-1)]),
    "indices": lambda x: jnp.roll(jnp.tile(x, 2), 1)[jnp.array([3, 0, 2])],
    "indices out of range": lambda x: stack(
        *x.at[jnp.array([0, 7])].get(mode="fill"),
        *x.at[jnp.array([0, 7])].get(mode="fill", fill_value=2.0),
    ),
    "nothing": lambda x: x + jnp.sum(x[:0]) + jnp.zeros((2, 0)) @ x[:0],
    "random numbers": lambda x: x + jax.random.normal(jax.random.key(0), (2,)),
    "random keys": lambda x: (
        x
        + jax.random.normal(jax.random.split(jax.random.key(1))[1], (2,))
        + jax.vmap(jax.random.normal)(jnp.stack([jax.random.key(0), jax.random.key(2)]))
        + jax.vmap(jax.random.normal)(jnp.broadcast_to(jax.random.key(3), (2,)))
    ),
    "known calls": lambda x: x + jax.nn.relu(jnp.arange(-1.0, 1.0)),
    "signs of integers": lambda x: stack(*signs(whole(x))),
    "signs of small integers": lambda x: stack(*signs(whole(x).astype(jnp.int32))),
    "shifts": lambda x: stack(whole(x)[0] << 3, whole(x)[0] >> 63, whole(x)[1] >> 1),
    "products of booleans": lambda x: jnp.concatenate(
        [jnp.stack([x > 0, x < 1]) @ (x < 2), jnp.array([[True, True]]) @ (x < 2)]
    ),
    "known zeros": lambda x: jnp.concatenate([0.0 * x, jnp.array([[0.0, 1.0]]) @ x]),
    "unstacked": lambda x: jnp.stack(list(jnp.outer(x, x[::-1]))[::-1]).reshape(-1),
    "defined by others": lambda x: jnp.concatenate(
        [jax.lax.cummax(x), jax.lax.cummin(x, reverse=True), x + jnp.argmax(x[::-1])]
    ),
    "windows": lambda x: jax.lax.reduce_window(
        jnp.tile(x, 2), -jnp.inf, jax.lax.max, (3,), (2,), ((1, 1),), None, (2,)
    ),
    "constants": lambda x: jnp.concatenate([x * jnp.arange(2.0, 4.0), x + jnp.array([1.0, 3.0])]),
}
CLOSE: dict[str, Any] = {
    "products": lambda x: stack(jnp.vdot(x, x), jnp.sum(x), jnp.prod(x), x[0] ** 3, x[0] ** -2),
    "matrices": lambda x: (jnp.outer(x, x) @ jnp.array([[1.0, 2.0], [3.0, 4.0]])).reshape(-1),
    "batches of matrices": lambda x: stack(
        *jnp.einsum("bij,bj->bi", jnp.arange(1.0, 9.0).reshape(2, 2, 2), jnp.stack([x, -x]))[1],
        *jnp.einsum("ib,ib->b", jnp.outer(x, x), jnp.outer(x, x)),
    ),
    "products in more digits": lambda x: jnp.array([[1.0, 3.0]]) @ x.astype(jnp.float32) / 3,
    "elementary": lambda x: stack(
        jnp.exp(x[0]), jnp.log(x[0]), jnp.log1p(x[0]), jax.nn.sigmoid(x[0]), jax.lax.rsqrt(x[0])
    ),
    "library": lambda x: stack(
        *(f(x[0]) for f in (jnp.sin, jnp.cos, jnp.tan, jnp.tanh, jnp.sinh, jnp.cosh, jnp.expm1)),
        *(f(x[0]) for f in (jnp.arcsinh, jnp.arccosh, jnp.arctanh)),
        jnp.arctan2(x[0], x[1]),
        jnp.abs(x[0]) ** x[1],
    ),
}


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_integers_of_numbers_beyond_their_limits(dtype):
    edges = [2.0**k for k in (31, 32, 63, 64)]
    edges = [
        sign * np.nextafter(dtype(e), dtype(to))
        for e in edges
        for to in (0, e, np.inf)
        for sign in (1, -1)
    ]
    rows = np.asarray([*edges, 0.7, -0.7, *SPECIAL, 2**31 - 1, -(2**31)], dtype)[:, None]

    def bytes_of(x):
        whole = [x.astype(kind) for kind in (jnp.int32, jnp.int64, jnp.uint32, jnp.uint64)]
        return jnp.concatenate([k >> s & 255 for k in whole for s in range(0, k.itemsize * 8, 8)])

    np.testing.assert_array_equal(by_kernel(bytes_of, rows), jax.vmap(bytes_of)(rows))


@pytest.mark.parametrize("name", EXACT)
def test_instructions(name):
    rows = rows_of(2)
    expected = jax.vmap(EXACT[name])(jnp.asarray(rows))
    np.testing.assert_array_equal(by_kernel(EXACT[name], rows), expected)


@pytest.mark.parametrize("name", CLOSE)
def test_instructions_that_round(name):
    rows = rows_of(2)
    expected = jax.vmap(CLOSE[name])(jnp.asarray(rows))
    np.testing.assert_allclose(by_kernel(CLOSE[name], rows), expected, rtol=3e-15, atol=1e-300)


def test_what_rows_share():
    rows = rows_of(3)[10:]
    matrix, chosen = RNG.standard_normal((4, 3)), np.array([True, False, True])

    def function(x, matrix, chosen):
        return jnp.where(chosen, matrix @ x @ matrix, x)

    expected = jax.vmap(function, (0, None, None))(rows, matrix, chosen)
    np.testing.assert_allclose(by_kernel(function, rows, matrix, chosen), expected, rtol=1e-13)


def test_single_precision():
    rows = rows_of(2, np.float32)
    for name in ("products", "matrices", "elementary"):
        expected = jax.vmap(CLOSE[name])(jnp.asarray(rows))
        found = by_kernel(lambda x, name=name: CLOSE[name](x).astype(x.dtype), rows)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-37)


def test_single_precision_counts_beyond_its_digits():
    """Otherwise the count of steps would stop growing, and `max_steps` would never be reached."""

    def more(x):
        return table.stored_counts(table.counts_in(x) + 1, x.dtype)

    count = np.array([2**24, 2**24 + 1, 2**24 + 2], np.int32)
    rows = np.asarray(table.stored_counts(jnp.asarray(count), jnp.float32))[:, None]
    for _ in range(3):
        rows = by_kernel(more, rows)
    (found,) = table.counts_of(np.ascontiguousarray(rows.T))
    np.testing.assert_array_equal(found, count + 3)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_large_parts_return_integers_of_all_their_digits(dtype, monkeypatch):
    """Results are stored in memory for floats: integers of the same size as bits, others inline."""

    @jax.jit
    def part(x):
        bits = jax.lax.bitcast_convert_type(x, jnp.int64 if dtype == np.float64 else jnp.int32)
        return bits + 1, (x > 0), bits.astype(jnp.uint32), jnp.int64(2**53 + 1) + (x > 0)

    def function(x):
        bits, positive, few, many = part(x)
        odd = (many & 1).astype(dtype)
        return jax.lax.bitcast_convert_type(bits, dtype) + positive + (few & 255) + odd

    monkeypatch.setattr(emitter, "LARGEST_INLINE", 0)
    rows = np.array([[1.0, -3.0], [2.0**0.5, 0.1], [7.0, 1e10]], dtype)
    expected = jax.vmap(function)(jnp.asarray(rows))
    np.testing.assert_array_equal(by_kernel(function, rows), expected)


@pytest.mark.slow_beyond(3)
@pytest.mark.parametrize("name", ["exp", "log", "log1p"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_elementary_functions(name, dtype):
    """Errors are three units in the last place at most, over the whole range; limits are right."""
    most = float(np.log(np.finfo(dtype).max))
    sizes = 10.0 ** RNG.uniform(-8, 0, 500)
    x = {
        "exp": [RNG.uniform(-0.98 * most, 0.99 * most, 500), RNG.choice([-1, 1], 500) * sizes],
        "log": [np.exp(RNG.uniform(-0.98 * most, 0.99 * most, 500)), 1 + 0.5 * sizes],
        "log1p": [np.exp(RNG.uniform(0, 0.99 * most, 500)), -0.99 * sizes, sizes],
    }[name]
    x = np.concatenate(x).astype(dtype)
    found = np.asarray(getattr(elementary, name)(jnp.asarray(x)))
    with mpmath.workdps(40):
        exact = [getattr(mpmath, name)(mpmath.mpf(float(number))) for number in x]
        errors = [abs(mpmath.mpf(float(a)) - b) for a, b in zip(found, exact, strict=True)]
        units = np.spacing(np.abs(np.array([float(b) for b in exact], dtype)))
        assert max(float(e) / float(u) for e, u in zip(errors, units, strict=True)) < 3
    special = jnp.asarray([*SPECIAL, 1e30, -1e30], dtype)
    with np.errstate(all="ignore"):
        expected = getattr(np, name)(np.asarray(special))
    found = getattr(elementary, name)(special)
    np.testing.assert_allclose(found, expected, rtol=4 * float(np.finfo(dtype).eps))


BITS, NUMBERS = ("and", "or", "not"), ("add", "sub", "mul", "neg", "iota")
KNOWN: dict[str, Any] = {
    **{name: getattr(jax.lax, f"{name}_p").bind for name in entrywise._PLAIN},
    "not": lambda x, y: jax.lax.not_p.bind(x),
    "neg": lambda x, y: jax.lax.neg_p.bind(x),
    "convert_element_type": lambda x, y: jax.lax.convert_element_type(x, jnp.float64),
    "select_n": lambda x, y: jax.lax.select(x > y, x, y),
    "iota": lambda x, y: x + jax.lax.broadcasted_iota(x.dtype, x.shape, 0),
    "moves": lambda x, y: jnp.concatenate([x.T[::-1], jnp.stack([y[0], x[1]], 1)])[1:, None],
}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        (name, dtype)
        for name in KNOWN
        for dtype in (jnp.int32, jnp.float64, jnp.bool)
        if not ((dtype is jnp.float64 and name in BITS) or (dtype is jnp.bool and name in NUMBERS))
    ],
)
def test_what_numpy_computes_of_known_numbers(name, dtype, monkeypatch):
    """NumPy's results have the values and types of JAX's, and JAX is not called."""
    x = jnp.array([[0, 1, 2, 3], [-1, 7, 2**30, 5]]).astype(dtype)
    y = jnp.array([[1, 1, -2, 0], [-1, 7, 2**30 + 1, 6]]).astype(dtype)
    expected = np.asarray(KNOWN[name](x, y))
    closed = jax.make_jaxpr(KNOWN[name])(x, y)
    monkeypatch.setattr(entrywise, "_bound", None)
    known = [np.asarray(x), np.asarray(y)]
    (found,) = entrywise.Entrywise().evaluate(closed.jaxpr, closed.consts, known)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


REFUSED: dict[str, Any] = {
    "sort": jnp.sort,
    "complex128": lambda x: jnp.abs(x * (1 + 1j)),
    "dynamic_slice": lambda x: x[jnp.where(x[0] > 0, 1, 0)][None],
    "gather": lambda x: x[jnp.where(x > 0, 1, 0)],
    "erf": jax.scipy.special.erf,
    "rem": lambda x: jnp.fmod(x, 2.0),
    "pow": lambda x: jax.lax.pow(x, x.astype(jnp.int32)),
    "shift_left": lambda x: (whole(x) << whole(x)).astype(float),
    "shift_right_arithmetic": lambda x: (whole(x) >> 64).astype(float),
    "cbrt": jnp.cbrt,
    "while": lambda x: jax.lax.while_loop(lambda x: x[0] < 0, lambda x: x + 1, x),
    "numbers of type int8": lambda x: x.astype(jnp.int8).astype(float),
}


@pytest.mark.parametrize("name", REFUSED)
def test_says_what_it_cannot_do(name):
    with pytest.raises(Unsupported, match=name):
        by_kernel(REFUSED[name], rows_of(2))


@pytest.fixture
def fuzz(monkeypatch):
    """The module `benchmarks/fuzz_machine_code.py`, which tries any number of programs."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[4] / "benchmarks"))
    yield importlib.import_module("fuzz_machine_code")
    del sys.modules["fuzz_machine_code"]


@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_random_programs(fuzz, data):
    """Machine code, entry by entry and lanes last agree with `jax.vmap`; all refusals are known."""

    def choose(count):
        return data.draw(st.integers(0, count - 1))

    refused = fuzz.check(choose, data.draw(st.integers(1, 6)))
    # The known refusals: shifts by more digits than there are, and branches.
    allowed = ("native: no instruction for the JAX primitive shift", "entries: cond")
    assert all(words.startswith(allowed) for words in refused)


def test_a_difference_between_programs_is_found(fuzz, monkeypatch):
    """The fault is one of an earlier version: a product with a known zero was zero."""

    def multiply(self, a, b):
        zero = [x for x in (a, b) if isinstance(x, np.generic) and x == 0]
        return zero[0] if zero else self.binary("mul", a, b)

    monkeypatch.setattr(entrywise.Entrywise, "_multiply", multiply)
    monkeypatch.setattr(fuzz, "_STEPS", [lambda x, y, choose: jnp.zeros(4) * x])
    random = np.random.default_rng(0)
    with pytest.raises(AssertionError, match="native"):
        fuzz.check(lambda n: int(random.integers(n)), 1)

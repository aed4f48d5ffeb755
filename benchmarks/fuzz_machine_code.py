"""Random programs through every evaluator of batches, against `jax.vmap`.

Run from the repository root:

    python benchmarks/fuzz_machine_code.py [--programs 2000] [--seed 0]

A program is a chain of primitives on small arrays: arithmetic, comparisons, integers with and
without signs, conversions, products of matrices, reductions, moves of data, branches and programs
within programs. All numbers are small multiples of 1/2, infinite or NaN, so that nothing rounds and
all evaluators must have the same results. The evaluators are machine code, machine code with loops
over entries, evaluation entry by entry, and whole arrays with the lanes last. JAX runs one
primitive at a time here, because XLA rewrites whole programs and replaces 0 times infinity by 0.
What machine code refuses is counted. The program ends with an error at the first difference.
"""

import argparse
import collections
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import jaxpr_as_fun

from lintensor_jax.dynamics.batch.native.emitter import Emitter
from lintensor_jax.dynamics.batch.native.instructions import Unsupported
from lintensor_jax.dynamics.batch.native.kernel import Kernel, emit, vector_width
from lintensor_jax.dynamics.batch.native.long_arrays import EmitterOfLoops
from lintensor_jax.dynamics.batch.vectorization.entry_by_entry import (
    Entrywise,
    assembled,
    entries_of,
)
from lintensor_jax.dynamics.batch.vectorization.lanes_last import apply_lanes_last

_SIZE, _LANES, _MOST = 4, 24, 16.0
_NUMBERS = [0.0, -0.0, 1.0, -1.0, 0.5, -2.0, 3.0, np.inf, -np.inf, np.nan]
_INTEGERS = jnp.int32, jnp.int64, jnp.uint32, jnp.uint64
Choose = Callable[[int], int]  # one of the numbers 0, ..., n - 1


def _capped(x):
    """x, clamped to small numbers, so that the next product is exact."""
    if x.dtype.kind != "f":
        return x
    most = jnp.asarray(_MOST, x.dtype)
    return lax.clamp(-most, x, most)


def _numbers(x):
    """Numbers from an operand of any dtype."""
    return x.astype(float) if x.dtype.kind == "b" else x


def _integers(x, choose):
    kind = _INTEGERS[choose(len(_INTEGERS))]
    return x.astype(kind)


def _like(x, y):
    """y in the dtype of x."""
    return y.astype(x.dtype)


def _known(x, choose):
    """Numbers that are known while tracing, with the shape and dtype of x."""
    numbers = [_NUMBERS[choose(7)] for _ in range(_SIZE)]
    return jnp.asarray(np.abs(numbers) if x.dtype.kind == "u" else numbers).astype(x.dtype)


def _compared(x, y, choose):
    operate = (lax.lt, lax.le, lax.gt, lax.ge, lax.eq, lax.ne)[choose(6)]
    return operate(x, _like(x, y))


def _arithmetic(x, y, choose):
    x = _numbers(x)
    operate = (lax.add, lax.sub, lax.mul, lax.max, lax.min)[choose(5)]
    return _capped(operate(x, _like(x, y)))


def _with_known(x, y, choose):
    return _arithmetic(_known(x, choose), x, choose)


def _single(x, y, choose):
    x = _numbers(x)
    if x.dtype.kind != "f":
        return (lax.neg, lax.bitwise_not, lax.square)[choose(3)](x)
    operate = (lax.neg, lax.abs, lax.sign, lax.floor, lax.ceil, lax.square)[choose(6)]
    return _capped(operate(x))


def _bits(x, y, choose):
    x = x if x.dtype.kind == "b" else x.astype(_INTEGERS[choose(4)])
    return (lax.bitwise_and, lax.bitwise_or, lax.bitwise_xor)[choose(3)](x, _like(x, y))


def _shifted(x, y, choose):
    x = _integers(x, choose)
    operate = lax.shift_left, lax.shift_right_logical, lax.shift_right_arithmetic
    return operate[choose(3)](x, jnp.full(x.shape, choose(40), x.dtype))


def _converted(x, y, choose):
    kind = (float, jnp.float32, bool, *_INTEGERS)[choose(7)]
    return x.astype(kind)


def _chosen(x, y, choose):
    which = (x > _like(x, y)) if choose(2) else (y == y)
    return jnp.where(which, x, _like(x, y))


def _clamped(x, y, choose):
    x = _numbers(x)
    bounds = x[0], x[choose(_SIZE)]
    return lax.clamp(lax.min(*bounds), _like(x, y), lax.max(*bounds))


def _product(x, y, choose):
    square = jnp.reshape(_known(x, choose) if choose(2) else x, (2, 2))
    if x.dtype.kind == "b" or choose(2):
        return _capped(jnp.reshape(square @ jnp.reshape(_like(x, y), (2, 2)), _SIZE))
    wide = {"f": jnp.float64, "i": jnp.int64, "u": jnp.uint64}[x.dtype.kind]
    product = lax.dot(square, _like(x, y).reshape(2, 2), preferred_element_type=wide)
    return _capped(jnp.reshape(product, _SIZE))


def _reduced(x, y, choose):
    square = jnp.reshape(x, (2, 2))
    if x.dtype.kind == "b":
        parts = (jnp.all, jnp.any, jnp.max)[choose(3)](square, axis=choose(2))
    else:
        parts = (jnp.max, jnp.min, jnp.sum, jnp.prod)[choose(4)](square, axis=choose(2))
    return jnp.tile(_capped(parts), 2)


def _moved(x, y, choose):
    moves = [
        lambda: x[::-1],
        lambda: jnp.roll(x, 1),
        lambda: jnp.concatenate([x[:2], _like(x, y)[2:]]),
        lambda: x.reshape(2, 2).T.reshape(-1),
        lambda: jnp.stack(list(x)[::-1]),
        lambda: x[jnp.array([3, 0, 0, 2])],
        lambda: jnp.pad(x[1:3], 1),
        lambda: x.at[jnp.array([0, 9, 1, 1])].get(mode="fill", fill_value=1),
    ]
    return moves[choose(len(moves))]()


def _cumulated(x, y, choose):
    x = _numbers(x)
    operate = (lax.cumsum, lax.cummax, lax.cummin)[choose(3)]
    return _capped(operate(x, reverse=bool(choose(2))))


def _place(x, y, choose):
    largest = (lax.argmax, lax.argmin)[choose(2)](_numbers(x), 0, _INTEGERS[choose(4)])
    return jnp.broadcast_to(largest, (_SIZE,))


def _branched(x, y, choose):
    y = _like(x, y)
    operate, other = choose(2), choose(2)
    return lax.cond(
        x[0] > y[1],
        lambda: _numbers(x) * _numbers(y) if operate else _numbers(x),
        lambda: _numbers(y) + _numbers(y) if other else _numbers(y),
    )


def _nested(x, y, choose):
    operate = _STEPS[choose(len(_STEPS) - 1)]  # not this one again
    return jax.jit(lambda x, y: operate(x, y, choose))(x, y)


_STEPS: list[Callable] = [
    _arithmetic,
    _with_known,
    _compared,
    _single,
    _bits,
    _shifted,
    _converted,
    _chosen,
    _clamped,
    _product,
    _reduced,
    _moved,
    _cumulated,
    _place,
    _branched,
    _nested,
]


def random_program(choose: Choose, steps: int) -> Callable:
    """A function of one row (4,), traced once; it returns a list with one vector of four floats."""

    def program(row):
        values = [row, row[::-1]]
        for _ in range(steps):
            operate = _STEPS[choose(len(_STEPS))]
            x, y = (values[-1 - choose(min(3, len(values)))] for _ in range(2))
            values.append(operate(x, y, choose))
        return _numbers(values[-1]).astype(float) + _numbers(values[-2]).astype(float)

    closed = jax.make_jaxpr(program)(jnp.zeros(_SIZE))
    return jaxpr_as_fun(closed)


def random_rows(choose: Choose) -> np.ndarray:
    """Rows of numbers that make errors visible: zeros, signs, NaN, infinities."""
    return np.array(
        [[_NUMBERS[choose(len(_NUMBERS))] for _ in range(_SIZE)] for _ in range(_LANES)]
    )


class _ShortLoops(EmitterOfLoops):
    """Machine code with loops even for the arrays of these programs."""

    shortest, long = 2, 3


def by_kernel(
    function: Callable, rows: np.ndarray, emitter: type[Emitter] | None = None
) -> np.ndarray:
    """The results of one turn of machine code; raises `Unsupported`."""

    def step(row):
        return jnp.concatenate([jnp.zeros(1), function(row[1:])[0]])

    row = jax.ShapeDtypeStruct((1 + _SIZE,), float)
    width = vector_width(row)
    kernel = Kernel(emit(jax.jit(step).trace(row).jaxpr, width, emitter), width)
    table = np.concatenate([np.zeros((len(rows), 1)), rows], 1)
    kernel(table, np.arange(len(rows), dtype=np.int32), np.zeros(1))
    return table[:, 1:]


def by_entries(function: Callable, rows: np.ndarray) -> np.ndarray:
    """The results entry by entry; raises `NotImplementedError`."""
    closed = jax.make_jaxpr(function)(rows[0])

    with jax.disable_jit():
        entries = [entries_of(jnp.asarray(rows.T), True)]
        (found,) = Entrywise().evaluate(closed.jaxpr, closed.consts, entries)
        return np.asarray(assembled(found, len(rows), float)).T


def by_lanes(function: Callable, rows: np.ndarray) -> np.ndarray:
    """The results of whole arrays with the lanes last."""
    closed = jax.make_jaxpr(function)(rows[0])
    with jax.disable_jit():
        (found,) = apply_lanes_last(closed, [True], {}, jnp.asarray(rows.T))
    return np.asarray(found).T


def by_loops(function: Callable, rows: np.ndarray) -> np.ndarray:
    """The results of one turn of machine code with loops over entries; raises `Unsupported`."""
    return by_kernel(function, rows, _ShortLoops)


EVALUATORS: dict[str, Any] = {
    "native": by_kernel,
    "loops": by_loops,
    "entries": by_entries,
    "lanes last": by_lanes,
}


def check(choose: Choose, steps: int) -> list[str]:
    """Compare all evaluators on one program; returns refusals. A difference: AssertionError."""
    function, rows = random_program(choose, steps), random_rows(choose)
    with jax.disable_jit():
        expected = np.asarray(jax.vmap(lambda row: function(row)[0])(jnp.asarray(rows)))
    refused = []
    for name, evaluate in EVALUATORS.items():
        try:
            found = evaluate(function, rows)
        except (Unsupported, NotImplementedError) as error:
            refused.append(f"{name}: {error}")
            continue
        program = jax.make_jaxpr(function)(rows[0])
        np.testing.assert_array_equal(found, expected, err_msg=f"{name}\n{program}")
    return refused


def main() -> None:
    """Run the random programs; SystemExit names the first one on which an evaluator is wrong."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--programs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=7, help="primitives of a program, at most")
    arguments = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    warnings.simplefilter("ignore")
    refusals: collections.Counter = collections.Counter()
    for number in range(arguments.programs):
        random = np.random.default_rng((arguments.seed, number))
        try:
            refused = check(
                lambda n, random=random: int(random.integers(n)), 1 + number % arguments.steps
            )
        except AssertionError as error:
            raise SystemExit(f"program {number} of seed {arguments.seed}: {error}") from None
        refusals.update(refused)
        if number % 200 == 199:
            jax.clear_caches()
            print(f"{number + 1} programs, no difference", flush=True)
    for reason, count in refusals.most_common():
        print(f"refused {count}: {reason}")


if __name__ == "__main__":
    main()

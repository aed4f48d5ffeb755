"""Operations on long arrays as loops over their entries, against XLA."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kernel_cases import SPECIAL, by_kernel, rows_of
from llvmlite import ir

import lintensor_jax as lt
from lintensor_jax.dynamics.batch.native import emitter
from lintensor_jax.dynamics.batch.native.instructions import TooLarge
from lintensor_jax.dynamics.batch.native.kernel import emit
from lintensor_jax.dynamics.batch.native.long_arrays import EmitterOfLoops
from lintensor_jax.dynamics.batch.vectorization.operation_count import count_operations

# Odd numbers of entries, and one that several copies of a body divide.
SIZES = (17, 33, 48, 97)


def chain(x):
    """Operations that share a loop, with numbers that are the same for all entries."""
    size = x.shape[0]
    known = jnp.arange(size, dtype=x.dtype) / size
    y = jnp.exp(-jnp.abs(x)) + x[0] * known
    z = jnp.where(y > x[size // 2], jnp.sqrt(jnp.abs(x)), jnp.log1p(y**2))
    whole = jnp.clip(jnp.nan_to_num(jnp.floor(x)), -9, 9).astype(int)
    odd = (whole & 1) == 1
    return jnp.sign(x) * z + jnp.where(odd & (x < 2), -y, jnp.minimum(z, x[1]))


def moves(x):
    """Pieces, and entries in other orders and other loops."""
    size = x.shape[0]
    half = size // 2
    twice = 2 * x + 1
    first, second = twice[:half], twice[-half:]
    mixed = jnp.concatenate([first * second, x[:1], second - first[::-1]])
    table = twice[(3 * np.arange(mixed.size)) % size]
    pairs = (jnp.stack([first, second], axis=1) * x[0]).reshape(-1)
    return jnp.concatenate([mixed + jnp.roll(table, 2), pairs, x[::-1] + twice])


def reductions(x):
    """Reductions of whole arrays, of pieces, and of the rows and columns of a matrix."""
    size = x.shape[0]
    square = (x[: size // 3 * 3] ** 2).reshape(3, -1)
    # XLA:CPU loses NaN in the minimum of some long arrays.
    largest, least = jnp.max(x), jnp.min(jnp.nan_to_num(jnp.concatenate([x[3:], square[0]])))
    total = jnp.sum(jnp.concatenate([x[:8], square[1] * x[1], square[2]]))
    flags = jnp.array([jnp.any(x > 3), jnp.all(x > -9)])
    numbers = jnp.stack([largest, least, total, jnp.prod(1 + x / 100), jnp.linalg.norm(x)])
    return jnp.concatenate([numbers, flags, square.sum(0), square.max(1), square.max(0)])


def products(x):
    """Products with few and with many results, of lanes with each other and with known numbers."""
    size = x.shape[0]
    wide = jnp.cos(jnp.arange(5 * size, dtype=x.dtype)).reshape(5, size)
    few = wide @ (x * x)
    column = x[: size // 4 * 4].reshape(4, -1)
    return jnp.concatenate([few, wide.T @ few, (column.T @ column).reshape(-1), x[:3] @ wide[:3]])


@pytest.mark.parametrize("function", [chain, moves, reductions, products])
@pytest.mark.parametrize("size", SIZES)
def test_loops_agree_with_xla(function, size):
    """Some lanes have zeros, infinities and NaN; other lanes do not see them."""
    rows = rows_of(size)
    found = by_kernel(function, rows, emitter=EmitterOfLoops)
    expected = jax.vmap(function)(rows)
    # Sums of at most a few hundred terms in another order; the terms are up to 100.
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("function", [chain, moves, reductions, products])
def test_loops_in_single_precision(function):
    with jax.enable_x64(False):
        rows = rows_of(33, np.float32)
        found = by_kernel(function, rows, emitter=EmitterOfLoops)
        expected = jax.vmap(function)(rows)
    assert found.dtype == expected.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=3e-3)


def test_a_row_is_overwritten_after_it_has_been_read():
    """The results of a turn are written to the row that the same loops read."""

    def function(x):
        y = jnp.concatenate([x[13:], x[:13]])
        return jnp.where(y > x, y, x[::-1]) + jnp.concatenate([x[-1:], x[1:]])

    rows = rows_of(26)
    found = by_kernel(function, rows, emitter=EmitterOfLoops)
    np.testing.assert_array_equal(found, jax.vmap(function)(rows))


@pytest.mark.parametrize("largest", [0, emitter.LARGEST_INLINE])
def test_branches_and_functions(monkeypatch, largest):
    """What a branch computed is not used after it; functions take long arrays and return them."""
    part = jax.jit(lambda x, flags: jnp.where(flags, jnp.tanh(x), 2 * x))

    def function(x):
        later = 3 * x + 1  # needed in the branch first
        chosen = jax.lax.cond(
            x[0] > 1, lambda: part(later, x > 0) + jnp.sum(later), lambda: x - x[1]
        )
        behind = part(*jax.lax.optimization_barrier((jnp.ones_like(x), x < 1)))
        return part(chosen, x > later) + part(later, x < 0) * behind

    monkeypatch.setattr(emitter, "LARGEST_INLINE", largest)
    rows = rows_of(33)
    found = by_kernel(function, rows, emitter=EmitterOfLoops)
    np.testing.assert_allclose(found, jax.vmap(function)(rows), rtol=1e-12, atol=1e-12)


def test_loops_are_small():
    """The text of a program hardly grows with the number of entries."""

    def length(size):
        row = jax.ShapeDtypeStruct((size,), float)
        return len(emit(jax.jit(chain).trace(row).jaxpr, 8, EmitterOfLoops))

    assert length(240) < 1.5 * length(24)


def test_a_loop_counts_once():
    def function(x):
        return jnp.sum(jnp.ones((3, 40)) @ (x + 1)) + jnp.max(x[:5] * 2)

    closed = jax.make_jaxpr(function)(jnp.zeros(40))
    written_out, _ = count_operations(closed.jaxpr, [False])
    with_loops, _ = count_operations(closed.jaxpr, [False], 6)
    # x + 1, the three products (factor and sum), their sum; 2 x and its largest entry; the result.
    assert (written_out, with_loops) == (40 + 2 * 120 + 3 + 5 + 5 + 1, 1 + 2 * 3 + 3 + 5 + 5 + 1)


def test_a_clearly_too_large_program_is_not_written(monkeypatch):
    def function(x):
        weights = x[2:].reshape(300, 300)
        hidden = jax.lax.cond(x[0] > 0, lambda: weights @ x[:300], lambda: weights[0])
        return jnp.concatenate([x[:1], hidden[1:]])

    row = jax.ShapeDtypeStruct((2 + 300**2,), float)
    closed = jax.jit(function).trace(row).jaxpr
    # Two operations of 300 entries, each counted twice, for each of 300 terms; two for the
    # condition.
    count, _ = count_operations(closed.jaxpr, [False], 6, 256)
    assert count == 4 * 300 + 2
    monkeypatch.setattr(emitter, "LARGEST_PROGRAM", 500)
    monkeypatch.setattr(EmitterOfLoops, "evaluate", None)  # an error if anything is written
    with pytest.raises(TooLarge, match="more than 500 operations"):
        emit(closed, 8)


@pytest.mark.parametrize("name", ["diagonal", "convolution", "fully-connected"])
def test_flows_of_large_rows_agree_with_xla(name):
    """Lanes end at different times; one starts at its end, and one is not finite."""
    rng = np.random.default_rng(3)
    X, y = rng.standard_normal((3, 13)), rng.standard_normal(3)
    starts = {
        "diagonal": lambda w: lt.DiagonalNetwork(w.reshape(2, 13)),
        "convolution": lambda w: lt.ConvolutionalNetwork(tuple(w.reshape(2, 13))),
        "fully-connected": lambda w: lt.FullyConnectedNetwork((w.reshape(13, 2), w[:2])),
    }
    weights = 0.4 * rng.standard_normal((21, 26)) * np.linspace(0.1, 1, 21)[:, None]
    weights[0], weights[1, 3] = 0, SPECIAL[-1]
    networks = jax.vmap(starts[name])(jnp.asarray(weights))
    ends = [
        lt.batched_flow(
            networks,
            lt.Regression(X, y),
            stop=lt.StopAtResidual(1e-6),
            finish=None,
            rtol=1e-9,
            max_steps=2000,
            compilation=compilation,
        )
        for compilation in (lt.Native(), lt.XLA())
    ]
    native, xla = ends
    assert native.compilation == "native"
    np.testing.assert_array_equal(native.code, xla.code)
    assert np.unique(np.asarray(native.num_steps)).size > 3
    # Both stop at the tolerance; rounding decides in which step.
    np.testing.assert_allclose(native.coefficients, xla.coefficients, rtol=1e-5, atol=1e-6)


def test_a_matrix_of_known_and_computed_numbers(monkeypatch):
    """Matrix completion: the residual is scattered among zeros.

    Texts of LLVM's values hold those of all their operands: to compare two could take for ever.
    """
    monkeypatch.setattr(ir.Instruction, "__repr__", lambda value: pytest.fail("a text was made"))
    rng = np.random.default_rng(0)
    shapes = ((7, 4), (4, 4), (4, 6))
    layers = [jnp.asarray(rng.standard_normal((9, *shape))) for shape in shapes]
    networks = jax.vmap(lambda *layers: lt.MatrixFactorizationNetwork(layers))(*layers)
    places = list(range(7)), [0, 1, 2, 3, 4, 5, 0]
    problem = lt.MatrixCompletion(*places, rng.standard_normal(7), shape=(7, 6))
    ours, theirs = (
        lt.batched_flow(networks, problem, compilation=how) for how in (lt.Native(), lt.XLA())
    )
    assert ours.compilation == "native"
    np.testing.assert_array_equal(ours.code, theirs.code)
    # Other steps change a limit by the tolerance of the flow, 1e-8; rounding by far less.
    np.testing.assert_allclose(ours.coefficients, theirs.coefficients, rtol=0, atol=1e-9)

"""The package's machine code: whole flows against XLA's, threads, refusals."""

import threading
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

import lintensor_jax as lt
from lintensor_jax.dynamics.batch import batched_flow as batched_flow_module
from lintensor_jax.dynamics.batch import (
    ends_by_machine_code,
    hardware,
    over_lanes,
    program_chunk,
    programs,
)
from lintensor_jax.dynamics.batch.batched_flow import batched_flow
from lintensor_jax.dynamics.batch.native import emitter
from lintensor_jax.dynamics.batch.native import kernel as kernel_module
from lintensor_jax.dynamics.batch.native.kernel import Kernel, emit
from lintensor_jax.dynamics.batch.programs import XLA, Native
from lintensor_jax.dynamics.batch.vectorization.operation_count import count_operations
from lintensor_jax.initialization import gaussian

RNG = np.random.default_rng(0)
_PAPER = np.array([[1.0, 2.0]]), np.array([1.0])
PAPER = lt.Regression(*_PAPER)
TOY = lt.Classification(np.array([[1.0, 2.0], [0.0, 3.0]]), np.ones(2))


@pytest.mark.slow
def test_flows_in_single_precision():
    options: dict[str, Any] = {"finish": None, "stop": lt.StopAtResidual(1e-3)}
    options["solver"] = diffrax.Tsit5()
    with jax.enable_x64(False):
        networks, problem = starts(lt.DiagonalNetwork.zeros(2, 2), 40), lt.Regression(*_PAPER)
        one, expected = (
            batched_flow(networks, problem, compilation=how, **options) for how in (Native(), XLA())
        )
    # Both stop at a residual of 1e-3, so their ends differ by about as much.
    assert one.coefficients.dtype == jnp.float32
    np.testing.assert_array_equal(one.status._value, expected.status._value)
    np.testing.assert_allclose(one.coefficients, expected.coefficients, rtol=0, atol=1e-3)
    # Error estimates near the end are rounding, so single lanes differ by up to three steps.
    medians = [float(np.median(flow.num_steps)) for flow in (one, expected)]
    assert abs(medians[0] - medians[1]) <= 1


def starts(like, count, scale=0.3) -> Any:
    keys = jax.random.split(jax.random.key(1), count)
    return jax.vmap(lambda key: gaussian(like, key, scale))(keys)


FLOWS: dict[str, Any] = {
    "diagonal": (lt.DiagonalNetwork.zeros(2, 2), PAPER, {}),
    "convolution": (
        lt.ConvolutionalNetwork.zeros(4, (4, 4)),
        lt.Regression(RNG.standard_normal((2, 4)), np.ones(2)),
        {},
    ),
    "fully connected": (lt.FullyConnectedNetwork.zeros((2, 3, 2)), PAPER, {"finish": None}),
    "many layers": (lt.DiagonalNetwork.zeros(3, 12), None, {"finish": None}),
    "classification": (lt.DiagonalNetwork.zeros(2, 2), TOY, {"stop": lt.StopAtMargin(1e4)}),
    "logistic": (
        lt.FullyConnectedNetwork.zeros((2, 2)),
        lt.Classification(np.array([[1.0, 2.0], [0.0, 3.0]]), np.ones(2), loss=lt.LogisticLoss()),
        {"stop": lt.StopAtMargin(100.0) | lt.StopAtTime(1e3)},
    ),
    "until a time": (
        lt.DiagonalNetwork.zeros(2, 2),
        TOY,
        {"stop": lt.StopAtTime(50.0), "clock": lt.LossTime()},
    ),
}


@pytest.mark.slow_beyond(1)
@pytest.mark.parametrize("name", FLOWS)
def test_flows(name, monkeypatch):
    """The steps are those of XLA's programs up to rounding; ends do not depend on the threads."""
    like, problem, options = FLOWS[name]
    if problem is None:
        problem = lt.Regression(RNG.standard_normal((3, 12)), np.ones(3))
    networks = starts(like, 75)
    with monkeypatch.context() as patch:
        patch.setattr(program_chunk, "ends_by_xla_on_host", None)  # an error if XLA is used
        one, three = (
            batched_flow(networks, problem, compilation=Native(threads=n), **options)
            for n in (1, 3)
        )
    expected = batched_flow(networks, problem, compilation=XLA(), **options)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(three), strict=True):
        if a is not one.executed_steps:
            np.testing.assert_array_equal(a, b)
    assert (one.compilation, expected.compilation) == ("native", "xla")
    np.testing.assert_array_equal(one.status._value, expected.status._value)
    # At its stability limit a flow amplifies every rounding error.
    np.testing.assert_allclose(one.num_steps, expected.num_steps, rtol=0.01, atol=1)
    found, wanted = np.asarray(one.coefficients), np.asarray(expected.coefficients)
    distance = np.full(75, 1e-6)
    if isinstance(problem, lt.Classification):
        found, wanted = (b / np.linalg.norm(b, axis=1, keepdims=True) for b in (found, wanted))
        # Ends at another margin, by another last step, have nearly the same direction.
        ends: Any = one.log_margin, expected.log_margin
        distance += 1e-3 * np.abs(np.subtract(*ends))
    assert (np.abs(found - wanted).reshape(75, -1).max(axis=1) <= distance).all()
    assert one.waste < expected.waste


@pytest.fixture
def emitted(monkeypatch) -> list[str]:
    """The programs of kernels as text in LLVM's language."""
    found: list[str] = []
    original = kernel_module.emit
    monkeypatch.setattr(kernel_module, "emit", lambda *a: found.append(original(*a)) or found[-1])
    return found


@pytest.mark.slow
def test_steps_and_starts_share_their_functions(emitted, monkeypatch):
    """Without loops, the functions of velocity and of status are compiled once."""
    monkeypatch.setattr(kernel_module, "SMALL_ROW", 200)
    # Then the kernel starts the rows.
    monkeypatch.setattr(ends_by_machine_code, "mapped", lambda *_: None)
    problem = lt.Regression(RNG.standard_normal((5, 24)), np.ones(5))
    options: dict[str, Any] = {"finish": None, "max_steps": 3}
    batched_flow(starts(lt.DiagonalNetwork.zeros(2, 24), 9), problem, **options)
    (program,) = emitted
    step, start = (program.index(f'define i64 @"{name}"') for name in ("step", "start"))
    assert step < start
    # The third and the fourth are for flows near corners and at rest.
    assert program.count("define internal void @") == 4
    assert program[step:start].count('call void @"part"') == 5
    assert program[start:].count('call void @"part"') == 1


def test_the_step_of_a_small_network_calls_no_function(emitted):
    """A call passes its numbers through memory, which takes a tenth of such a step."""
    options: dict[str, Any] = {"finish": None, "max_steps": 4}
    batched_flow(starts(lt.FullyConnectedNetwork.zeros((2, 2)), 8), PAPER, **options)
    (program,) = emitted
    step = program[program.index('define i64 @"step"') :]
    # The code up to the first branch; later the rules for lanes at rest may be a function.
    hot = step[step.index("loop:") :].partition("br i1")[0]
    assert "fmul" in hot
    assert 'call void @"part' not in hot


def test_operations_without_a_result_are_not_counted():
    def halves(x):
        _ = jnp.exp(x @ x) * x
        return x / 2

    closed = jax.make_jaxpr(halves)(np.ones(3))
    assert count_operations(closed.jaxpr, [False]) == (3, [False])


class Sorted(eqx.Module):
    """A network whose coefficients are sorted, for which there is no machine code."""

    weights: jax.Array
    depth: int = eqx.field(static=True, default=1)

    def linear_coefficients(self):
        return jnp.sort(self.weights)


def test_falling_back_to_xla_is_said_once(monkeypatch):
    monkeypatch.setattr(batched_flow_module, "_warned", set())
    networks = jax.vmap(Sorted)(jnp.asarray(RNG.standard_normal((9, 2))))
    expected = batched_flow(networks, PAPER, finish=None, compilation=XLA())
    assert (expected.compilation, expected.fallback_reason) == ("xla", "")
    words = "lanes of Sorted.* no instruction for the JAX primitive sort"
    with pytest.warns(UserWarning, match=words) as caught:
        flow = batched_flow(networks, PAPER, finish=None)
    assert [w.filename for w in caught] == [__file__]
    assert flow.compilation == "xla"
    assert flow.fallback_reason == "no instruction for the JAX primitive sort"
    np.testing.assert_array_equal(flow.coefficients, expected.coefficients)
    # Warnings are errors here, so a second one would fail this test.
    batched_flow(networks, PAPER, finish=None, max_steps=100)


@pytest.mark.slow
def test_too_large_for_machine_code(monkeypatch):
    """Above the documented limit the result gives the reason, without a warning."""
    monkeypatch.setattr(emitter, "LARGEST_PROGRAM", 50)
    options: dict[str, Any] = {"finish": None, "max_steps": 77}
    expected = batched_flow(starts(FLOWS["diagonal"][0], 9), PAPER, compilation=XLA(), **options)
    flow = batched_flow(starts(FLOWS["diagonal"][0], 9), PAPER, **options)
    assert flow.compilation == "xla"
    assert flow.fallback_reason == "more than 50 operations"
    np.testing.assert_array_equal(flow.coefficients, expected.coefficients)


def _broken(*_: Any):
    raise RuntimeError("no such register")


@pytest.mark.slow_beyond(1)
@pytest.mark.parametrize(
    ("name", "words", "steps"), [("emit", "the emitter", 78), ("Kernel", "LLVM", 79)]
)
def test_what_fails_in_the_compiler_falls_back(name, words, steps, monkeypatch):
    monkeypatch.setattr(batched_flow_module, "_warned", set())
    monkeypatch.setattr(kernel_module, name, _broken)
    networks = starts(FLOWS["diagonal"][0], 9)
    options: dict[str, Any] = {"finish": None, "max_steps": steps}
    with pytest.warns(UserWarning, match="DiagonalNetwork.*no such register"):
        flow = batched_flow(networks, PAPER, **options)
    assert flow.fallback_reason == f"{words} failed with RuntimeError: no such register"
    expected = batched_flow(networks, PAPER, compilation=XLA(), **options)
    np.testing.assert_array_equal(flow.coefficients, expected.coefficients)


@pytest.mark.slow
def test_chunks_of_two_kinds_say_that_xla_ran(monkeypatch):
    """Machine code runs the first chunk and refuses the others."""
    monkeypatch.setattr(batched_flow_module, "_warned", set())
    monkeypatch.setattr(hardware, "_CHUNK", 16)
    original, asked = program_chunk.ends_by_machine_code, []

    def by_rows(*arguments):
        asked.append(arguments)
        return original(*arguments) if len(asked) == 1 else programs.Refusal("a broken chunk")

    monkeypatch.setattr(program_chunk, "ends_by_machine_code", by_rows)
    networks = starts(FLOWS["diagonal"][0], 40)
    with pytest.warns(UserWarning, match="a broken chunk"):
        flow = batched_flow(networks, PAPER, finish=None, width=8)
    assert (flow.compilation, len(asked)) == ("xla", 2)
    assert flow.num_steps.shape == (40,)


def test_integers_with_more_digits_than_floats_fall_back(monkeypatch):
    """The shared data of a row's program are stored as floats."""
    assert over_lanes.is_exact(np.array([3, -(2**53)]), float)
    assert not over_lanes.is_exact(np.array([2**53 + 1]), float)
    monkeypatch.setattr(batched_flow_module, "_warned", set())
    monkeypatch.setattr(ends_by_machine_code, "is_exact", lambda *_: False)
    with pytest.warns(UserWarning, match="more digits than float64"):
        flow = batched_flow(starts(FLOWS["diagonal"][0], 9), PAPER, finish=None)
    assert flow.compilation == "xla"


class Cubed(eqx.Module):
    """A network of cubes, by a primitive that only its lowering defines."""

    weights: jax.Array
    depth: int = eqx.field(static=True, default=1)

    def linear_coefficients(self):
        return _cube(self.weights)


def _cube_p() -> Any:
    primitive: Any = Primitive("lintensor_test_cube")
    primitive.def_abstract_eval(lambda x: x)
    primitive.def_impl(lambda x: x * x * x)
    mlir.register_lowering(primitive, mlir.lower_fun(lambda x: x * x * x, multiple_results=False))

    def batch(args, axes):
        return primitive.bind(*args), axes[0]

    batching.primitive_batchers[primitive] = batch
    return primitive


_CUBE_P = _cube_p()


@jax.custom_jvp
def _cube(x):
    return _CUBE_P.bind(x)


@_cube.defjvp
def _(primals, tangents):
    ((x,), (t,)) = primals, tangents
    return _cube(x), 3 * x * x * t


def test_a_primitive_of_a_users_own_has_machine_code():
    """A primitive of a later JAX would be used by its lowering in the same way."""
    networks = jax.vmap(Cubed)(jnp.asarray(RNG.uniform(0.3, 0.6, (9, 2))))
    flow = batched_flow(networks, PAPER, finish=None)
    assert flow.compilation == "native"
    expected = batched_flow(networks, PAPER, finish=None, compilation=XLA())
    np.testing.assert_array_equal(flow.num_steps, expected.num_steps)
    np.testing.assert_allclose(flow.coefficients, expected.coefficients, rtol=1e-12)


def test_a_program_that_fails_in_a_thread_is_stopped_in_all(monkeypatch):
    """The first call in the calling thread raises, as an interrupt would."""

    def step(row):
        return jnp.stack([row[0], row[1] + 1])  # it never ends

    monkeypatch.setattr(kernel_module, "_TURNS", 10)
    kernel = Kernel(emit(jax.jit(step).trace(jax.ShapeDtypeStruct((2,), float)).jaxpr, 8), 8)
    table = np.full((64, 2), -1.0)
    caller, original = threading.current_thread(), kernel._step

    def counted_turns(*arguments):
        if threading.current_thread() is caller:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(kernel, "_step", counted_turns)
    with pytest.raises(KeyboardInterrupt):
        kernel(table, np.arange(64, dtype=np.int32), np.zeros(1), 3)


def test_the_number_of_turns_per_call_adapts_to_their_duration(monkeypatch):
    """A turn takes nanoseconds to milliseconds; the number of turns per call adapts to it."""
    row = jax.ShapeDtypeStruct((1,), float)
    kernel = Kernel(emit(jax.jit(lambda row: row + 1).trace(row).jaxpr, 8), 8)
    asked, original = [], kernel._step

    def counted_turns(*arguments):
        asked.append(arguments[-1])
        return original(*arguments)

    monkeypatch.setattr(kernel, "_step", counted_turns)
    for patience in (np.inf, 0.0):
        monkeypatch.setattr(kernel_module, "_SECONDS", patience)
        kernel(np.full((8, 1), -5000.0), np.arange(8, dtype=np.int32), np.zeros(1))
    growing, shrinking = asked[:4], asked[4:]
    assert growing == [500, 1000, 2000, 4000]
    assert shrinking[:11] == [500, 250, 125, 62, 31, 15, 7, 3, 1, 1, 1]

"""Finish and record of lanes by machine code, against those by XLA."""

import collections
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lintensor_jax as lt
from lintensor_jax.dynamics.batch import finishing, over_lanes, preparation, program_chunk, programs
from lintensor_jax.dynamics.batch.batched_flow import batched_flow
from lintensor_jax.dynamics.batch.native.lane_map import LaneMap
from lintensor_jax.dynamics.batch.programs import XLA, Native
from lintensor_jax.initialization import gaussian

RNG = np.random.default_rng(0)
PAPER = lt.Regression(np.array([[1.0, 2.0]]), np.array([1.0]))
TOY = lt.Classification(np.array([[1.0, 2.0], [0.0, 3.0]]), np.ones(2))
OWN = jax.vmap(lt.Regression)(RNG.standard_normal((21, 1, 2)), RNG.standard_normal((21, 1)))
DIAGONAL = lt.DiagonalNetwork.zeros(2, 2)
CASES: dict[str, Any] = {
    "diagonal": (DIAGONAL, PAPER, {}),
    "convolution": (
        lt.ConvolutionalNetwork.zeros(3, (3, 3)),
        lt.Regression(np.array([[1.0, 2.0, -1.0]]), np.array([1.0])),
        {},
    ),
    "fully connected": (lt.FullyConnectedNetwork.zeros((2, 2)), PAPER, {}),
    "three layers": (lt.DiagonalNetwork.zeros(3, 2), PAPER, {}),
    "their own problems": (DIAGONAL, OWN, {"shared_problem": False}),
    "no finish": (DIAGONAL, PAPER, {"finish": None}),
    "several samples": (
        lt.FullyConnectedNetwork.zeros((2, 2)),
        lt.Regression(RNG.standard_normal((3, 2)), RNG.standard_normal(3)),
        {"finish": None, "stop": lt.StopAtTime(0.5)},
    ),
    "weight decay": (DIAGONAL, PAPER, {"weight_decay": 0.01}),
    "classification": (DIAGONAL, TOY, {"stop": lt.StopAtMargin(100.0)}),
    "spent": (DIAGONAL, PAPER, {"max_steps": 5}),
}


def starts(like, count=21) -> Any:
    keys = jax.random.split(jax.random.key(1), count)
    return jax.vmap(lambda key: gaussian(like, key, 0.3))(keys)


@pytest.fixture
def maps(monkeypatch) -> list[int]:
    """The numbers of lanes of all functions that machine code maps."""
    found, original = [], LaneMap.__call__

    def counted(self, *arrays, threads=1):
        found.append(arrays[0].shape[0])
        return original(self, *arrays, threads=threads)

    monkeypatch.setattr(LaneMap, "__call__", counted)
    return found


def _assert_same(found, expected):
    """Numbers differ by roundings only: products and sums are fused in other places."""
    (unfinished, finished, accepted, record), steps, executed = found
    (before, after, wanted, other), counts, total = expected
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
    exact = (accepted, steps, executed), (wanted, counts, total)
    for a, b in zip(*map(jax.tree.leaves, exact), strict=True):
        np.testing.assert_array_equal(a, b)
    for pair in ((unfinished, before), (finished, after)):
        for a, b in zip(*map(jax.tree.leaves, pair), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)
    for name in ("coefficients", "log_time", "log_norm", "log_margin"):
        pair: Any = getattr(record, name), getattr(other, name)
        if pair[0] is not None:
            np.testing.assert_allclose(*pair, rtol=1e-11, atol=1e-13, err_msg=name)
    np.testing.assert_allclose(record.invariant_drift, other.invariant_drift, atol=1e-13)
    # The loss of an exact fit is rounding.
    np.testing.assert_allclose(jnp.exp(record.log_loss), jnp.exp(other.log_loss), atol=1e-14)


@pytest.mark.slow_beyond(4)
@pytest.mark.parametrize("name", CASES)
def test_machine_code_finishes_as_xla_does(name, maps, monkeypatch):
    like, problem, options = CASES[name]
    compared = []

    def both(stepper, chunk, compilation, batch):
        assert isinstance(compilation, Native)
        native, xla = (finishing.finishing(stepper, chunk, how, batch) for how in (Native(), XLA()))

        def finish(ends):
            before = len(maps)
            found = native(ends)
            assert len(maps) == before + 1
            _assert_same(found, xla(ends))
            compared.append(name)
            return found

        return finish

    monkeypatch.setattr(program_chunk, "finishing", both)
    flow = batched_flow(starts(like), problem, **options)
    assert flow.compilation == "native"
    assert compared


@pytest.mark.parametrize(("name", "words"), [("_emit", "the emitter"), ("compile", "LLVM")])
def test_a_failure_is_said_once(name, words, maps, monkeypatch):
    """XLA starts and finishes lanes then, and the results are the same."""
    networks = starts(DIAGONAL)
    expected = batched_flow(networks, PAPER, rtol=2e-9)

    def broken(*_: Any):
        raise RuntimeError("no such register")

    monkeypatch.setattr(over_lanes, "_warned", set())
    monkeypatch.setattr(programs, "_programs", collections.OrderedDict())
    monkeypatch.setattr(preparation, "_prepared", collections.OrderedDict())
    monkeypatch.setattr(LaneMap, name, broken)
    maps.clear()
    with pytest.warns(UserWarning, match=f"{words} failed with RuntimeError: no such") as caught:
        flow = batched_flow(networks, PAPER, rtol=2e-9)
    assert [w.filename for w in caught] == [__file__]
    assert (flow.compilation, maps) == ("native", [])
    np.testing.assert_array_equal(flow.code, expected.code)
    # Tolerances differ in their last bits, and errors of the limits are below 1e-9.
    np.testing.assert_allclose(flow.coefficients, expected.coefficients, rtol=1e-9)
    batched_flow(networks, PAPER, rtol=2e-9)  # a second warning would be an error


def test_code_that_failed_is_compiled_by_the_next_batch(maps, monkeypatch):
    """A failure, of memory for example, need not last."""
    networks, compile = starts(DIAGONAL), LaneMap.compile
    broken = [True]

    def once_broken(self):
        if broken:
            raise MemoryError("no room")
        compile(self)

    monkeypatch.setattr(over_lanes, "_warned", set())
    monkeypatch.setattr(programs, "_programs", collections.OrderedDict())
    monkeypatch.setattr(LaneMap, "compile", once_broken)
    with pytest.warns(UserWarning, match="LLVM failed with MemoryError: no room"):
        expected = batched_flow(networks, PAPER, rtol=3e-9)
    assert maps == []
    broken.clear()
    flow = batched_flow(networks, PAPER, rtol=3e-9)
    assert maps == [21, 21]  # starts and finish
    np.testing.assert_array_equal(flow.code, expected.code)


class Weighted(lt.Regression):
    """A regression with integers among its data."""

    counts: jax.Array  # pyright: ignore[reportGeneralTypeIssues]

    def __init__(self, X, y, counts):
        super().__init__(X, y)
        self.counts = counts


def test_a_problem_with_integers(maps):
    problem = Weighted(np.array([[1.0, 2.0]]), np.array([1.0]), jnp.arange(3))
    flow, expected = (batched_flow(starts(DIAGONAL), data) for data in (problem, PAPER))
    np.testing.assert_array_equal(flow.coefficients, expected.coefficients)
    assert maps


def test_xla_finishes_what_machine_code_refuses(maps):
    """Several samples need singular values, for which there is no machine code."""
    problem = lt.Regression(RNG.standard_normal((2, 3)), np.ones(2))
    flow = batched_flow(starts(lt.DiagonalNetwork.zeros(2, 3)), problem)
    assert flow.compilation == "native"
    assert flow.finish_accepted is not None
    assert bool(flow.finish_accepted.all())
    assert maps == [21]  # the starts

"""What is prepared for a batch is used again for the same objects, and only for them."""

import threading
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lintensor_jax as lt
from lintensor_jax.dynamics.batch import preparation
from lintensor_jax.dynamics.batch.batched_flow import batched_flow
from lintensor_jax.dynamics.batch.programs import XLA
from lintensor_jax.initialization import gaussian

RNG = np.random.default_rng(0)
PAPER = lt.Regression(np.array([[1.0, 2.0]]), np.array([1.0]))
TOY = lt.Classification(np.array([[1.0, 2.0], [0.0, 3.0]]), np.ones(2))
SEVERAL = lt.Regression(RNG.standard_normal((2, 3)), RNG.standard_normal(2))
DIAGONAL = lt.DiagonalNetwork.zeros(2, 2)
STOP = lt.StopAtMargin(100.0)
CASES: dict[str, Any] = {
    "regression": (DIAGONAL, PAPER, {}),
    "several samples": (lt.DiagonalNetwork.zeros(2, 3), SEVERAL, {}),
    "classification": (DIAGONAL, TOY, {"stop": STOP}),
    "weight decay": (DIAGONAL, PAPER, {"weight_decay": 0.01}),
    "tolerances": (DIAGONAL, PAPER, {"rtol": 1e-7, "atol": 1e-9, "finish": None}),
    "stiff": (DIAGONAL, PAPER, {"max_steps": 8, "stiff_max_steps": 100}),
    "XLA": (DIAGONAL, PAPER, {"compilation": XLA()}),
    "data tensor": (
        lt.TensorNetwork(jnp.asarray(RNG.standard_normal((2, 2, 2))), jnp.zeros((2, 2))),
        PAPER,
        {"shared_constants": True},
    ),
}


def starts(like, count=13, scale=0.3, seed=1) -> Any:
    """Networks with normal parameters; arrays that are no parameters are those of `like`."""
    keys = jax.random.split(jax.random.key(seed), count)
    rest = lt.networks.split(like)[1]
    drawn = jax.vmap(lambda key: lt.networks.split(gaussian(like, key, scale))[0])(keys)
    return eqx.combine(drawn, rest)


@pytest.fixture
def prepared(monkeypatch) -> list[int]:
    """The numbers of lanes of all batches that were prepared anew."""
    found, original = [], preparation._prepare

    def counted(parameters, rest, problem, count, settings):
        found.append(count)
        return original(parameters, rest, problem, count, settings)

    monkeypatch.setattr(preparation, "_prepare", counted)
    return found


def assert_equal(flow, expected) -> None:
    for a, b in zip(*map(jax.tree.leaves, (flow, expected)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert jax.tree.structure(flow) == jax.tree.structure(expected)


@pytest.mark.slow_beyond(6)
@pytest.mark.parametrize("name", CASES)
def test_a_second_batch_is_as_if_prepared_anew(name, prepared):
    """Starts of another size have other tolerances, and other lanes that are not accepted."""
    like, problem, options = CASES[name]
    batched_flow(starts(like, scale=1e-3), problem, **options)
    again = starts(like, scale=2.0, seed=2)
    flow = batched_flow(again, problem, **options)
    assert prepared == [13]
    preparation._prepared.clear()
    assert_equal(flow, batched_flow(again, problem, **options))
    assert prepared == [13, 13]


def test_other_arguments_are_prepared_anew(prepared):
    networks = starts(DIAGONAL)
    same = lt.Regression(np.array([[1.0, 2.0]]), np.array([1.0]))  # equal, but not known to be
    calls: list[Any] = [
        (networks, PAPER, {}),
        (networks, same, {}),
        (starts(DIAGONAL, 14), PAPER, {}),
        (networks, PAPER, {"max_steps": 30}),
        (networks, PAPER, {"rtol": 1e-7}),
        (networks, PAPER, {"weight_decay": 0.0}),  # the default
        (networks, PAPER, {"weight_decay": 0.01}),
        (networks, PAPER, {"compilation": lt.Native(threads=1)}),
        (networks, PAPER, {"stop": lt.StopAtResidual(1e-3)}),
        (networks, PAPER, {"stop": lt.StopAtResidual(1e-9)}),
    ]
    flows = [batched_flow(*given, **options) for *given, options in calls]
    assert len(prepared) == len(calls) - 1
    assert int(flows[3].num_steps.max()) <= 30
    assert int(flows[-1].num_steps.sum()) > int(flows[-2].num_steps.sum())
    with pytest.raises(ValueError, match="max_steps: must be a positive int"):
        batched_flow(networks, PAPER, max_steps=30.0)


def test_arrays_that_can_change_are_read_again(prepared):
    """An array of NumPy in a problem."""
    y = np.array([1.0])
    problem: Any = eqx.tree_at(lambda p: p.y, PAPER, y)
    networks = starts(DIAGONAL)
    batched_flow(networks, problem)
    y[0] = 0.5
    flow = batched_flow(networks, problem)
    assert len(prepared) == 2
    np.testing.assert_allclose(flow.coefficients @ np.array([1.0, 2.0]), 0.5, rtol=1e-9)


def test_what_is_kept_is_small(monkeypatch):
    """No parameters of all lanes, no large data, and few batches."""
    batched_flow(starts(DIAGONAL, 500), PAPER)
    ((kept, arrays),) = preparation._prepared.values()
    assert all(leaf.base is None for leaf in jax.tree.leaves(kept.stepper.system.parameters))
    assert sum(array.nbytes for array in (*arrays, *kept.arguments.arrays)) < 500
    for count in (8, 9, 10):
        monkeypatch.setattr(preparation, "_KEPT", 2)
        batched_flow(starts(DIAGONAL, count), PAPER, max_steps=5)
    assert len(preparation._prepared) == 2
    for limit, is_kept in ((1500, True), (600, False)):
        preparation._prepared.clear()
        monkeypatch.setattr(preparation, "_KEPT_BYTES", limit)
        samples = lt.Regression(RNG.standard_normal((30, 2)), RNG.standard_normal(30))  # 720 bytes
        batched_flow(starts(DIAGONAL), samples, max_steps=5)
        assert bool(preparation._prepared) == is_kept


def test_threads_prepare_at_the_same_time():
    networks = starts(DIAGONAL)
    expected, found = batched_flow(networks, PAPER), []
    preparation._prepared.clear()
    calls = [
        threading.Thread(target=lambda: found.append(batched_flow(networks, PAPER)))
        for _ in range(4)
    ]
    for call in calls:
        call.start()
    for call in calls:
        call.join()
    assert len(found) == 4
    for flow in found:
        np.testing.assert_array_equal(flow.coefficients, expected.coefficients)

"""Every program of a batch is lowered for CUDA, without a GPU, without callbacks."""

import re
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lintensor_jax as lt
from lintensor_jax.dynamics.batch import batched_flow as batched_flow_module
from lintensor_jax.dynamics.batch import (
    ends_by_machine_code,
    ends_by_xla,
    finishing,
    hardware,
    implicit_lanes,
)
from lintensor_jax.dynamics.batch.chunk import ends_like, jax_integer
from lintensor_jax.dynamics.batch.programs import Arguments
from lintensor_jax.initialization import gaussian

PAPER = lt.Regression(np.array([[1.0, 2.0]]), np.array([1.0]))
TOY = lt.Classification(np.array([[1.0, 2.0], [0.0, 3.0]]), np.ones(2))
DIAGONAL = lt.DiagonalNetwork.zeros(2, 2)
# Linear algebra of implicit steps, by NVIDIA's libraries.
_LIBRARIES = ("cusolver", "cublas", "cu_lu", "Sharding")


def lowered(function, *values) -> str:
    """The text of a program of pytrees, lowered for CUDA."""
    arrays, static = eqx.partition(values, eqx.is_array)

    def flat(arrays):
        return jax.tree.leaves(function(*eqx.combine(arrays, static)))

    return jax.jit(flat).trace(arrays).lower(lowering_platforms=("cuda",)).as_text()


def calls_in(text: str) -> set[str]:
    """The names of the custom calls of a program."""
    return set(re.findall(r"custom_call @(\w+)", text)) | set(
        re.findall(r'call_target_name = "([^"]+)"', text)
    )


def starts(like, count) -> Any:
    keys = jax.random.split(jax.random.key(1), count)
    return jax.vmap(lambda key: gaussian(like, key, 0.3))(keys)


def prepared(monkeypatch, networks, problem, **options) -> Any:
    """The stepper and the chunk of a batch, as on a GPU."""
    caught = []

    class Caught(Exception):
        pass

    def catch(prepared, chunk):
        caught.extend((prepared.stepper, chunk))
        raise Caught

    with monkeypatch.context() as patch:
        patch.setattr(hardware, "kind_of", lambda device: "cuda")
        patch.setattr(batched_flow_module, "integrate_chunk", catch)
        with pytest.raises(Caught):
            lt.batched_flow(networks, problem, **options)
    return caught


CASES = {
    "regression": (DIAGONAL, PAPER, diffrax.Tsit5()),
    "classification": (DIAGONAL, TOY, diffrax.Tsit5()),
    "convolution": (lt.ConvolutionalNetwork.zeros(2, (2, 2)), PAPER, diffrax.Dopri8()),
    "fully connected": (lt.FullyConnectedNetwork.zeros((2, 2)), PAPER, diffrax.Dopri8()),
}


@pytest.mark.parametrize(
    "name",
    [
        name if name == "regression" else pytest.param(name, marks=pytest.mark.slow)
        for name in CASES
    ],
)
def test_programs_of_a_batch(name, monkeypatch):
    like, problem, solver = CASES[name]
    stepper, chunk = prepared(monkeypatch, starts(like, 64), problem, solver=solver)
    size, dtype = chunk.thetas.shape[0], chunk.thetas.dtype
    ends = ends_like(size, stepper.state_size, dtype, jax_integer())
    ends = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), ends)
    texts = {
        "order": lowered(ends_by_xla.order_on_device, chunk),
        "ends": lowered(ends_by_xla._ends_on_device, stepper, chunk),
        "table": lowered(ends_by_machine_code._table, stepper, chunk),
        "record": lowered(finishing._finished, stepper, chunk, ends, None),
    }
    for text in texts.values():
        assert calls_in(text) == set()
    # A step asks no decision of the host: there is one loop within one loop, and no branch.
    assert "stablehlo.case" not in texts["ends"]


def test_implicit_lanes(monkeypatch):
    """The linear algebra of implicit lanes is that of NVIDIA's libraries."""
    stepper, chunk = prepared(monkeypatch, starts(DIAGONAL, 8), TOY, stiff_max_steps=100)
    lanes: Any = chunk.thetas, chunk.data, jnp.zeros((8, stepper.state_size)), jnp.zeros(8)
    text = lowered(implicit_lanes._fresh, stepper.of_any_width(), *lanes)
    assert calls_in(text) == set()
    fresh = jax.eval_shape(
        lambda *arrays: implicit_lanes._fresh(stepper.of_any_width(), *arrays), *lanes
    )
    fresh = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), fresh)
    limits = np.int32(1), np.int32(9)
    text = lowered(implicit_lanes._advance, stepper.of_any_width(), fresh, *lanes, *limits)
    assert calls_in(text)
    assert all(name.startswith(_LIBRARIES) for name in calls_in(text))


def test_single_flows_under_vmap():
    def end(network):
        return lt.gradient_flow(network, PAPER, throw=False, solver=diffrax.Tsit5()).coefficients

    text = lowered(jax.vmap(end), starts(DIAGONAL, 8))
    assert all(name.startswith(_LIBRARIES) for name in calls_in(text))
    assert "callback" not in text


def test_arguments_without_their_devices():
    """Programs are traced once for all devices."""
    here = jax.device_put(jnp.zeros(3), jax.local_devices()[0])
    one, two = Arguments(here, 7), Arguments(np.zeros(3), 7)
    assert one.kind != two.kind
    assert one.kind_anywhere == two.kind_anywhere

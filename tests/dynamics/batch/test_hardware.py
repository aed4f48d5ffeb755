"""How a batch is cut for the devices in use, without such devices."""

import heapq
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lintensor_jax as lt
from lintensor_jax.dynamics.batch import batched_flow as batched_flow_module
from lintensor_jax.dynamics.batch import ends_by_xla, hardware
from lintensor_jax.dynamics.batch.chunk import Chunk
from lintensor_jax.dynamics.batch.hardware import LaneNumbers
from lintensor_jax.dynamics.batch.lane_data import LaneData
from lintensor_jax.sweeps import Axis, Grid, Options, Plan
from lintensor_jax.sweeps import plan as plan_module

PAPER = lt.Regression(np.array([[1.0, 2.0]]), np.array([1.0]))
DIAGONAL = lt.DiagonalNetwork.zeros(2, 2)
_H200 = 105 * 2**30  # bytes that JAX takes of such a GPU


def _starts(count, lowest=0.01) -> Any:
    """Normal numbers times alpha, log-uniform: the paper's sweep."""
    rng = np.random.default_rng(0)
    alpha = np.exp(rng.uniform(np.log(lowest), 0.0, count))
    return lt.DiagonalNetwork(
        jnp.asarray(alpha[:, None, None] * rng.standard_normal((count, 2, 2)))
    )


@pytest.mark.parametrize("count", [65, 2**16, 10**6 + 3, 2**20, 3 * 2**20, 2**25])
@pytest.mark.parametrize("state", [4, 96, 1000])
def test_no_device_of_eight_is_idle(count, state):
    lane = LaneNumbers(state, 8, 0)
    sizes = hardware.sizes_on_accelerator(None, lane, 8, _H200, count, 8)
    chunks = -(-count // sizes.chunk)
    # Chunks are whole vectors of 8 lanes: 65 lanes, 9 for each device, become 5 chunks of 16.
    assert chunks % 8 == 0 or (count == 65 and chunks == 5)
    assert sizes.chunk % sizes.width == 0
    assert sizes.width % 8 == 0
    # Three chunks fit beside each other, with their finish.
    assert sizes.chunk * lane.in_memory * 8 <= 1.01 * _H200 / 6 + 8 * 8 * lane.in_memory
    assert (sizes.batch or sizes.chunk) * lane.in_finish * 8 <= 1.01 * _H200 / 6
    # If a chunk has more lanes than a device runs at once, every slot gets at least 15 lanes.
    if sizes.chunk >= 16 * max(2**18 // state, 2**13):
        assert sizes.chunk >= 15 * sizes.width


def test_memory_of_a_lane_covers_what_xla_takes():
    """`advance` of 2^20 lanes, compiled for an H200 without one: 812 MiB and 10.5 GiB."""
    for state, found in ((4, 812 * 2**20), (96, 10.5 * 2**30)):
        assert found <= 8 * 2**20 * LaneNumbers(state, 1, 0).in_memory <= 1.6 * found


def test_chunk_sizes_on_cpus():
    sizes = hardware.sizes_on_cpu(None, 4, 3 * 2**20, 8)
    assert sizes == (128, 2**16, 32, 256)
    assert hardware.sizes_on_cpu(None, 96, 10**6, 1).chunk == 2**15  # of 2^22 numbers
    assert hardware.sizes_on_cpu(None, 3104, 10**6, 1).chunk == 2**10
    assert hardware.sizes_on_cpu(None, 4, 10**6, 1, own=3100).chunk == 2**10
    assert hardware.sizes_on_cpu(None, 10**7, 10**6, 1).chunk == 128
    assert hardware.sizes_on_cpu(None, 96, 1000, 1) == (32, 1024, 2, 256)
    assert hardware.sizes_on_cpu(20, 4, 5, 1) == (8, 8, 2, 256)


@pytest.mark.parametrize("kind", ["cuda", "other"])
def test_eight_devices_share_a_batch(kind, monkeypatch):
    """Each of them gets the same number of lanes."""
    monkeypatch.setattr(hardware, "kind_of", lambda device: kind)
    dealt = []

    class Caught(Exception):
        pass

    def deal(prepared, chunks, devices):
        dealt.extend((prepared, chunks))
        raise Caught

    monkeypatch.setattr(batched_flow_module, "_on_devices", deal)
    count = 3 * 2**12
    with pytest.raises(Caught):
        lt.batched_flow(_starts(count), PAPER, devices=jax.local_devices()[:1] * 8)
    prepared, chunks = dealt
    assert type(prepared.compilation) is (lt.Native if kind == "cuda" else lt.XLA)
    assert not prepared.stepper.branches
    assert len(chunks) == 8
    assert [int(chunk.count) for chunk in chunks] == [count // 8] * 8


@pytest.mark.slow
def test_queues_on_devices_wait_little(monkeypatch):
    """Waste and ends of the paper's sweep with 16 lanes for each slot."""
    monkeypatch.setattr(hardware, "kind_of", lambda device: "other")
    monkeypatch.setattr(hardware, "_IN_FLIGHT", 1)
    monkeypatch.setattr(hardware, "_FEWEST_IN_FLIGHT", 64)
    networks, options = _starts(1024), {"finish": None, "solver": diffrax.Tsit5()}
    flow = lt.batched_flow(networks, PAPER, **options)
    assert (flow.compilation, flow.fallback_reason) == ("xla", "")
    assert flow.waste <= 1.1
    monkeypatch.undo()
    expected = lt.batched_flow(networks, PAPER, **options)
    # Rules for lanes at rest are evaluated in every step, so rounding is different.
    np.testing.assert_allclose(flow.num_steps, expected.num_steps, rtol=0, atol=1)
    np.testing.assert_allclose(flow.coefficients, expected.coefficients, rtol=0, atol=1e-6)
    assert _waste_of_warps(np.asarray(flow.num_steps), _order(networks), warps=1) <= 1.1


def _order(networks):
    thetas = networks.weights.reshape(networks.weights.shape[0], -1)
    count = np.asarray(thetas.shape[0], np.int32)
    return np.asarray(ends_by_xla.order_on_device(Chunk(count, thetas, LaneData(PAPER))))


def _waste_of_warps(steps, order, warps):
    """Steps of whole warps over the needed ones, if an idle thread takes the next lane at once."""
    free = [(0, thread) for thread in range(32 * warps)]
    for lane in order:
        time, thread = free[0]
        heapq.heapreplace(free, (time + int(steps[lane]), thread))
    last = np.zeros(warps)
    for time, thread in free:
        last[thread // 32] = max(last[thread // 32], time)
    return 32 * last.sum() / steps.sum()


@pytest.mark.parametrize("count", [5, 100, 3000])
def test_the_order_on_a_device(count):
    """The order has each lane once, the smallest starts first, and padding lanes last."""
    rng = np.random.default_rng(1)
    thetas = jnp.asarray(rng.standard_normal((3072, 4)))
    order = np.asarray(
        ends_by_xla.order_on_device(Chunk(np.asarray(count, np.int32), thetas, LaneData(PAPER)))
    )
    assert sorted(order) == list(range(3072))
    assert (order[count:] == np.arange(count, 3072)).all()
    sizes = np.asarray(jnp.sum(thetas**2, axis=1))[order[:count]]
    if count == 3000:
        first = int(np.argmax(np.diff(order[:count]) < 0)) + 1  # each of the two parts is sorted
        assert 0.1 < first / count < 0.15
        assert sizes[:first].max() <= sizes[first:].min()


def test_sweeps_on_eight_devices(monkeypatch):
    """Large sweeps have two chunks for each device; smaller ones have one."""
    monkeypatch.setattr(hardware, "kind_of", lambda device: "cuda")
    monkeypatch.setattr(hardware, "memory_of", lambda device: _H200)
    monkeypatch.setattr(plan_module, "_LANES_FOR_TWO_CHUNKS", 2**8)
    monkeypatch.setattr(hardware, "_FEWEST_IN_FLIGHT", 64)
    monkeypatch.setattr(hardware, "_IN_FLIGHT", 64)
    devices = jax.local_devices()[:1] * 8

    def plan(count):
        axis = Axis("seed", range(count))
        return Plan(Grid((axis,), lambda p: DIAGONAL, PAPER), Options(), devices)

    assert plan(2000).num_chunks == 8
    large = plan(2**14)
    assert large.num_chunks == 16
    assert (large.padded, large.width) == (1024, 64)
    assert large.padded * large.lane_bytes <= _H200 / 6


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_small_starts_go_first(dtype):
    """All lanes that have to wait are in order, to a few per cent of the size."""
    rng = np.random.default_rng(0)
    alpha = np.exp(rng.uniform(np.log(1e-4), np.log(10), (1000, 1)))
    thetas = (alpha * rng.standard_normal((1000, 3))).astype(dtype)
    thetas[7], thetas[8] = 0.0, np.inf
    given: Any = thetas
    order = ends_by_xla.order_on_host(given, 990, 32)
    np.testing.assert_array_equal(np.sort(order[:990]), np.arange(990))
    np.testing.assert_array_equal(order[990:], np.arange(990, 1000))
    assert (order[0], order[989]) == (7, 8)
    sizes = np.sum(thetas[order[1:989]].astype(np.float64) ** 2, axis=1)
    assert np.all(sizes[1:] > sizes[:-1] * (0.93 if dtype == np.float64 else 0.99))
    # With a place for every lane the order does not matter.
    np.testing.assert_array_equal(ends_by_xla.order_on_host(given, 20, 32), np.arange(1000))

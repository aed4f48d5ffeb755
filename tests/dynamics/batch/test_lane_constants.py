"""Constants of networks (data tensors, masks) that differ from lane to lane in one batch."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lintensor_jax as lt
from lintensor_jax.dynamics.batch import hardware
from lintensor_jax.dynamics.batch.batched_flow import batched_flow
from lintensor_jax.dynamics.batch.programs import XLA, Native

RNG = np.random.default_rng(0)
PROBLEM = lt.Regression(np.array([[1.0, 2.0]]), np.array([1.0]))


class Masked(eqx.Module):
    """Two layers; a mask keeps some entries of their product."""

    u: Any
    v: Any
    mask: Any = lt.constant()
    depth: int = eqx.field(static=True, default=2)

    def linear_coefficients(self):
        return self.u * self.v * self.mask


def masked(count: int, masks: Any) -> Masked:
    u, v = 0.5 * RNG.standard_normal((2, count, 2))
    return Masked(jnp.asarray(u), jnp.asarray(v), jnp.asarray(masks))


def lane(tree: Any, k: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[k] if eqx.is_array(leaf) else leaf, tree)


def assert_like_single_flows(flow, networks, problem, lanes) -> None:
    for k in lanes:
        single = lt.gradient_flow(lane(networks, k), problem)
        np.testing.assert_allclose(flow.coefficients[k], single.coefficients[-1], rtol=0, atol=1e-8)


@pytest.mark.parametrize("how", [pytest.param(XLA(), marks=pytest.mark.slow), Native()])
def test_a_data_tensor_for_every_lane(how, monkeypatch):
    """The lanes take two chunks of 16; 7 of them are compared."""
    monkeypatch.setattr(hardware, "_CHUNK", 16)
    tensors, factors = RNG.standard_normal((23, 2, 2, 2)), RNG.standard_normal((23, 2, 2))
    networks = jax.vmap(lambda t, v: lt.TensorNetwork(t, (v[0], v[1])))(tensors, factors)
    flow = batched_flow(networks, PROBLEM, compilation=how, width=8)
    assert flow.compilation == ("native" if isinstance(how, Native) else "xla")
    assert_like_single_flows(flow, networks, PROBLEM, (0, 7, 22))
    np.testing.assert_array_equal(flow.network.tensor, tensors)
    betas = jax.vmap(lambda network: network.linear_coefficients())(flow.network)
    np.testing.assert_allclose(betas, flow.coefficients, rtol=1e-12)


@pytest.mark.parametrize("kind", [bool, pytest.param(int, marks=pytest.mark.slow)])
def test_a_mask_for_every_lane(kind):
    networks = masked(12, (RNG.random((12, 2)) < [1.0, 0.5]).astype(kind))
    flow = batched_flow(networks, PROBLEM, shared_constants=False)
    assert flow.compilation == "native"
    assert_like_single_flows(flow, networks, PROBLEM, (0, 5, 11))


@pytest.mark.slow
def test_masks_beside_data_for_every_lane():
    networks = masked(4, 1.0 + RNG.random((4, 2)))
    data = jnp.asarray(RNG.standard_normal((4, 1, 2))), jnp.asarray(RNG.standard_normal((4, 1)))
    flow = batched_flow(networks, jax.vmap(lt.Regression)(*data), shared_problem=False)
    for k in (0, 3):
        one = lt.Regression(data[0][k], data[1][k])
        single = lt.gradient_flow(lane(networks, k), one)
        np.testing.assert_allclose(flow.coefficients[k], single.coefficients[-1], rtol=0, atol=1e-8)


@pytest.mark.slow
def test_classification_with_a_mask_for_every_lane():
    problem, networks = (
        lt.Classification(np.eye(2), np.ones(2)),
        masked(8, 1.0 + np.eye(2)[[0] * 8]),
    )
    networks = eqx.tree_at(lambda n: (n.u, n.v), networks, (jnp.ones((8, 2)), jnp.ones((8, 2))))
    flow = batched_flow(networks, problem, stop=lt.StopAtMargin(1e3))
    single = lt.gradient_flow(lane(networks, 2), problem, stop=lt.StopAtMargin(1e3))
    # The gap of the two margins converges as 1/margin, and the last step goes beyond 1,000.
    gaps = [np.subtract(*beta) for beta in (flow.coefficients[2], single.coefficients[-1])]
    np.testing.assert_allclose(*gaps, rtol=0.01)
    assert abs(gaps[0]) > 0.5


def test_equal_constants_run_as_shared_ones():
    """`jax.vmap` of a function that makes a network gives lanes to every constant."""
    networks = masked(8, np.tile([1.0, 0.5], (8, 1)))
    one = eqx.tree_at(lambda n: n.mask, networks, networks.mask[0])
    flow, expected = batched_flow(networks, PROBLEM), batched_flow(one, PROBLEM)
    np.testing.assert_array_equal(flow.coefficients, expected.coefficients)
    assert flow.network.mask.shape == (8, 2)
    assert expected.network.mask.shape == (2,)


@pytest.mark.slow
def test_complex_constants_for_every_lane():
    class Rotated(eqx.Module):
        w: Any
        phase: Any = lt.constant()
        depth: int = eqx.field(static=True, default=2)

        def linear_coefficients(self):
            return (self.phase * self.w[0] * self.w[1]).real

    phases = np.exp(1j * RNG.random((4, 2)))
    networks = Rotated(jnp.asarray(RNG.standard_normal((4, 2, 2))), jnp.asarray(phases))
    flow = batched_flow(networks, PROBLEM, compilation=XLA())
    assert_like_single_flows(flow, networks, PROBLEM, (1, 3))
    np.testing.assert_array_equal(flow.network.phase, phases)


def test_shapes_that_fit_twice_are_refused():
    networks = masked(2, [1.0, 2.0])  # two masks that are numbers, or one of two entries
    with pytest.raises(ValueError, match=r"networks: .*mask \(2,\).*shared_constants=False"):
        batched_flow(networks, PROBLEM)


def test_constants_of_some_lanes_are_refused():
    class Two(Masked):
        other: Any = lt.constant(default=1.0)

    networks = Two(jnp.ones((3, 2)), jnp.ones((3, 2)), jnp.ones((3, 2)), other=jnp.ones(2))
    with pytest.raises(ValueError, match=r"networks: constants must all .*other \(2,\)"):
        batched_flow(networks, PROBLEM)

"""Sweeps whose networks have a data tensor, or a mask, for every lane."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sweep_cases import PROBLEM

import lintensor_jax as lt
from lintensor_jax.sweeps import METHODS, Axis, Grid, Limit, Plan

RNG = np.random.default_rng(0)
TENSORS = RNG.standard_normal((5, 2, 2, 2))
FACTORS = [jnp.array([0.5, -0.3]), jnp.array([0.2, 0.4])]


def start(point):
    return lt.TensorNetwork(point.tensor, FACTORS).scaled(point.alpha)


@pytest.mark.slow
def test_lanes_are_single_flows(tmp_path):
    """Also lanes on the stiff path, and lanes after a resume, equal single flows."""
    axes = Axis("alpha", [0.02, 1.0]), Axis("tensor", TENSORS, dims=("row", "column", "entry"))
    grid = Grid(axes, start, PROBLEM)
    results = lt.sweep(grid, tmp_path / "store", observables=Limit(), max_steps=40, chunk_lanes=5)
    methods = np.asarray(METHODS)[results.method.values]
    assert "explicit" in methods
    assert "gradient_flow" in methods
    for i, alpha in enumerate((0.02, 1.0)):
        for j in (0, 4):
            network = lt.TensorNetwork(TENSORS[j], FACTORS).scaled(alpha)
            beta = lt.gradient_flow(network, PROBLEM).coefficients[-1]
            # The two methods have a tolerance of 1e-8, and small starts amplify their errors.
            np.testing.assert_allclose(results.limit[i, j], beta, rtol=0, atol=1e-6)
    (tmp_path / "store" / ".sweep" / "chunks" / "00000001.json").unlink()
    np.testing.assert_array_equal(lt.resume(tmp_path / "store", grid).limit, results.limit)


class Masked(eqx.Module):
    """Two equal layers; a mask keeps some entries of their product."""

    w: Any
    mask: Any = lt.constant()
    depth: int = eqx.field(static=True, default=2)

    def linear_coefficients(self):
        return self.w**2 * self.mask


def masked(point):
    mask = jax.random.bernoulli(point.key, 0.5, (2,)).at[0].set(True)
    return Masked(point.alpha * jnp.ones(2), mask)


@pytest.mark.slow
def test_a_user_s_module_with_a_mask_from_the_key():
    grid = Grid((Axis("alpha", [0.1, 0.2, 0.5, 1.0]),), masked, PROBLEM, seed=3)
    results = lt.sweep(grid, observables=Limit())
    (cell,) = Plan(grid, lt.sweeps.Options()).cells.values()
    networks, _ = cell.starts(np.arange(4))
    assert cell.constants_differ_by_lane
    assert networks.mask.shape == (4, 2)
    assert len(np.unique(np.asarray(networks.mask), axis=0)) == 2
    for k in (0, 3):
        beta = lt.gradient_flow(cell.lane(networks, k), PROBLEM).coefficients[-1]
        np.testing.assert_allclose(results.limit[k], beta, rtol=0, atol=1e-8)
        np.testing.assert_array_equal(np.asarray(beta) != 0, cell.lane(networks, k).mask)


def test_constants_that_read_no_axis_have_no_lanes():
    def same(point):
        return lt.TensorNetwork(TENSORS[0], FACTORS).scaled(point.alpha)

    (cell,) = Plan(
        Grid((Axis("alpha", [0.1, 1.0]),), same, PROBLEM), lt.sweeps.Options()
    ).cells.values()
    networks, _ = cell.starts(np.arange(2))
    assert not cell.constants_differ_by_lane
    assert networks.tensor.shape == (2, 2, 2)
    np.testing.assert_array_equal(cell.lane(networks, 1).tensor, TENSORS[0])

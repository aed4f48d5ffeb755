"""The correction of implicit steps, and the unit sphere of the log-arc-length clock."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lintensor_jax as lt
from lintensor_jax.dynamics.clocks import (
    FlowArgs,
    LogArcLength,
    PhysicalTime,
    state_of,
    vector_of,
)
from lintensor_jax.dynamics.on_invariants import correction_of, corrections_of
from lintensor_jax.dynamics.system import System
from lintensor_jax.networks.conserved import conserved_quantities


def _networks():
    rng = np.random.default_rng(0)
    shapes = [(3, 4), (4, 2), (2,)]
    weights = rng.normal(size=(2, 3))
    weights[:, 1] *= 1e-9  # the error of its small quantity is measured relative to itself
    return [
        lt.DiagonalNetwork(weights),
        lt.FullyConnectedNetwork([rng.normal(size=shape) for shape in shapes]),
    ]


@pytest.mark.slow_beyond(1)
@pytest.mark.parametrize("network", _networks(), ids=["diagonal", "fully connected"])
@pytest.mark.parametrize("clock", [PhysicalTime(), LogArcLength()], ids=["time", "arc"])
def test_the_correction_restores_what_is_conserved(network, clock):
    problem = lt.Classification(np.eye(3), np.ones(3))
    system = System.of(network, problem)
    initial = clock.start(system, system.initial)
    noise = jnp.asarray(np.random.default_rng(1).normal(size=system.initial.size))
    # Theta has an error of 1e-5 and is given at another scale.
    moved = initial._replace(
        theta=np.exp(-0.5) * initial.theta * (1 + 1e-5 * noise), log_scale=initial.log_scale + 0.5
    )
    correction = correction_of(FlowArgs(system, None, jnp.zeros(())), moved, initial)
    wanted = np.exp(-1.0) * conserved_quantities(system.network(initial.theta))
    wrong, left = (
        np.abs(conserved_quantities(system.network(theta)) - wanted)
        for theta in (moved.theta, moved.theta + correction)
    )
    # The correction is of first order: an error of size 1e-5 squared is left in all coordinates.
    relative = wrong if isinstance(network, lt.DiagonalNetwork) else np.max(wrong)
    assert np.max(left / relative) < 1e-3
    assert np.max(np.abs(correction)) < 1e-3 * np.max(np.abs(moved.theta))


def test_the_corrections_of_two_states_are_one_call_of_lapack():
    """Two calls of one program could wait for each other's threads for ever."""
    network, clock = _networks()[0], LogArcLength()
    system = System.of(network, lt.Classification(np.eye(3), np.ones(3)))
    initial = clock.start(system, system.initial)
    args = FlowArgs(system, None, jnp.zeros(()))
    states = jnp.stack([vector_of(initial, clock), 1.001 * vector_of(initial, clock)])

    def of_lane(states):
        return corrections_of(args, states, initial, clock)

    program = str(jax.make_jaxpr(jax.vmap(of_lane))(states[None]))
    assert len(re.findall(r"= cholesky\b", program)) == 1
    for state, found in zip(states, of_lane(states), strict=True):
        state = state_of(state, clock)
        shrinks = state.log_scale < initial.log_scale
        alone = correction_of(args, state, initial, everywhere=shrinks)
        np.testing.assert_allclose(found[:-2], alone, rtol=0, atol=1e-14)
        assert not found[-2:].any()

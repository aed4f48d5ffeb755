"""beta and all leave-one-out forms, and the dual flow's velocity: cost by size.

Every cost is the core time of one evaluation for one lane, in a loop on the device, over a batch
of lanes. `scaling.py` calls these functions and compares the costs with the expected orders.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import measure
import numpy as np

import lintensor_jax as lt
from lintensor_jax.dynamics.reduced.mirror_coordinates import coordinates_of
from lintensor_jax.dynamics.reduced.mirror_flow import DualSystem
from lintensor_jax.dynamics.system import System
from lintensor_jax.networks import contractions

# The most numbers in a batch (they fit into the second-level cache), roughly the operations in one
# timing, and the most lanes in a batch.
_NUMBERS, _OPERATIONS, _LANES = 2**16, 2e7, 64


def evaluation(function: Callable, leaves: Any, lane_cost: float, repeats: int) -> float:
    """Seconds of core time of one call of `function` for one lane.

    `function` takes one lane's leaves and returns leaves of the same structure. `lane_cost`: the
    operations of one evaluation, which decide how many evaluations are timed at once.
    """
    size = sum(leaf.size for leaf in jax.tree.leaves(leaves))
    lanes = max(1, min(_LANES, _NUMBERS // size))
    inner = int(max(2, min(1000, _OPERATIONS / (lane_cost * lanes))))
    rng = np.random.default_rng(0)
    batch = jax.tree.map(
        lambda leaf: jnp.asarray(leaf)[None] * (1 + 0.1 * rng.random((lanes, *[1] * leaf.ndim))),
        leaves,
    )

    # Each evaluation depends on the one before. Otherwise XLA would move it out of the loop.
    def once(_, carry):
        change = jax.vmap(function)(carry)
        return jax.tree.map(lambda a, b: a - 1e-6 * b, carry, change)

    program = jax.jit(lambda batch: jax.lax.fori_loop(0, inner, once, batch))
    program(batch)
    times = [measure.timed(lambda: program(batch)) for _ in range(repeats)]
    end = times[0][0]
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(end))
    which = 1 if measure.on_gpu() else 2
    return float(np.median([time[which] for time in times])) / (inner * lanes)


def contraction(name: str, d: int, depth: int, repeats: int) -> float:
    """Seconds of core time of beta and its leave-one-out forms at g = beta."""
    rng = np.random.default_rng(0)
    if name == "diagonal":
        # Factors of about one, so that products of many neither vanish nor grow.
        rows = 1 + 0.1 * rng.standard_normal((depth, d))

        def rowwise(rows):
            beta, leave_one_out = contractions.diagonal(rows)
            return leave_one_out(beta)

        return evaluation(rowwise, rows, expected_contraction(name, d, depth), repeats)
    shapes = [(d,)] * depth if name == "convolution" else [(d, d)] * (depth - 1) + [(d,)]
    factors = tuple(rng.standard_normal(shape) / np.sqrt(d) for shape in shapes)

    def apply(factors):
        if name == "convolution":
            beta, leave_one_out = contractions.convolution(factors, d)
        else:
            beta, leave_one_out = contractions.matrix_chain(factors)
        return tuple(leave_one_out(beta))

    return evaluation(apply, factors, expected_contraction(name, d, depth), repeats)


def expected_contraction(name: str, d: int, depth: int) -> float:
    """The order of the number of operations."""
    if name == "diagonal":
        return depth * d
    if name == "convolution":
        return depth * d * np.log2(2 * d)
    return depth * d**2


def dual_velocity(d: int, n: int, repeats: int) -> dict[str, float]:
    """Seconds of core time of d nu/dt (n numbers) and dTheta/dt (2d) of one diagonal network."""
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((n, d)) / np.sqrt(d), rng.standard_normal(n)
    problem = lt.Regression(X, y)
    network = lt.DiagonalNetwork(0.5 + rng.random((2, d)))
    coordinates: Any = coordinates_of(network, problem)
    lengths = np.linalg.norm(np.asarray(coordinates.S @ X.T), axis=1)
    dual, full = DualSystem(coordinates, problem, 2, lengths), System.of(network, problem)
    nu = np.full(n, 0.01)
    cost = float(2 * n * d)
    return {
        "dual flow, n numbers": evaluation(dual.velocity, nu, cost, repeats),
        "flow, 2d numbers": evaluation(full.velocity, np.asarray(full.initial), cost, repeats),
    }

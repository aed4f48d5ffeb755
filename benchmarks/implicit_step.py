"""An implicit step of a flow: one dense matrix, or blocks and a rest of rank n.

Run from the repository root:

    python benchmarks/implicit_step.py [--quick] [--repeats 9] [--out implicit_step.json]

Regression with a diagonal network of L layers, d = p / L coordinates and n samples. "By blocks" is
how flows take the step where `coupled_groups()` is known and n is at most half of p; "dense" forms
the Jacobian, as for all other networks. Both run in turn, and their steps have to agree before
anything is timed. The column "of 160" is the core time of a step over that of p = 160 by blocks.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import measure
import numpy as np
from measure import Row, Variant, WrongAnswer

import lintensor_jax as lt
from lintensor_jax.dynamics.clocks import FlowArgs, PhysicalTime
from lintensor_jax.dynamics.rosenbrock import rosenbrock_step
from lintensor_jax.dynamics.shifted_systems import shifted_solver
from lintensor_jax.dynamics.system import System

CLOSE = 1e-10
SIZES = ((2, 20, 5), (2, 48, 10), (2, 48, 20), (2, 160, 20), (2, 640, 20), (3, 3000, 100))
LARGEST_DENSE = 640


def blocks_of(system: System) -> Callable:
    """The solver by blocks of a flow in physical time, for `rosenbrock_step`."""
    return functools.partial(shifted_solver, PhysicalTime(), FlowArgs(system, None, jnp.zeros(())))


def rows_of(depth: int, size: int, n: int, repeats: int) -> list[Row]:
    """The rows of one problem."""
    d = size // depth
    rng = np.random.default_rng([24, depth, size, n])
    network = lt.DiagonalNetwork(0.3 * rng.standard_normal((depth, d)))
    problem = lt.Regression(rng.standard_normal((n, d)) / np.sqrt(d), rng.standard_normal(n))
    system = System.of(network, problem)
    theta, h = jnp.asarray(system.initial), jnp.asarray(1.0)
    ends: dict[str, np.ndarray] = {}

    def step_of(solver):
        return jax.jit(lambda theta, h: rosenbrock_step(system.velocity, theta, h, solver)[0])

    def check(end) -> Row:
        ends.setdefault("first", np.asarray(end))
        distance = float(np.max(np.abs(np.asarray(end) - ends["first"])))
        if not distance <= CLOSE:
            raise WrongAnswer(f"p = {size}: steps differ by {distance:.1e}")
        return {"from_blocks": distance}

    by_blocks, dense = step_of(blocks_of(system)), step_of(None)
    variants = [Variant("by blocks", lambda: by_blocks(theta, h), check)]
    if size <= LARGEST_DENSE:
        variants.append(Variant("dense", lambda: dense(theta, h), check))
    title = f"L = {depth}, p = {size:,}, n = {n}"
    return measure.compare("implicit step", title, variants, repeats, baseline="by blocks")


def growth(repeats: int) -> list[Row]:
    """Steps of p = 160 and p = 640 by blocks, n = 20, in turn."""
    variants = []
    for size in (160, 640):
        rng = np.random.default_rng([25, size])
        d = size // 2
        network = lt.DiagonalNetwork(0.3 * rng.standard_normal((2, d)))
        problem = lt.Regression(rng.standard_normal((20, d)) / np.sqrt(d), rng.standard_normal(20))
        system = System.of(network, problem)
        step = jax.jit(
            lambda theta, h, system=system: rosenbrock_step(
                system.velocity, theta, h, blocks_of(system)
            )[0]
        )
        given = jnp.asarray(system.initial), jnp.asarray(1.0)
        call = functools.partial(step, *given)
        variants.append(Variant(f"p = {size}", call, lambda end: {}))
    rows = measure.compare(
        "implicit step", "growth, by blocks, n = 20", variants, repeats, baseline="p = 160"
    )
    for row in rows:
        row["of_160"] = 1 / row["faster_in_core_time"]
    return rows


def main() -> None:
    """Print the table."""
    options = measure.arguments(__doc__, "the three smallest sizes", repeats=9)
    measure.set_up()
    rows = []
    for size in SIZES[: 3 if options.quick else None]:
        rows += rows_of(*size, options.repeats)
    rows += growth(options.repeats)
    measure.print_rows(rows, options.out)


if __name__ == "__main__":
    main()

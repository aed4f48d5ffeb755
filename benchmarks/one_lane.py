"""One lane alone: what a flow costs without company.

Run from the repository root; `hot_path.py` runs it with everything else:

    python benchmarks/one_lane.py [--repeats 5]

`batched_flow` of one lane and `gradient_flow`, as they are called and inside `jit`, against one
`jit(diffeqsolve)` with the same method, tolerances and stop, and against `diffeqsolve` as it is
called; and what an attempted step costs each. `gradient_flow` asks more of every step: whether the
flow stands still, and how long a step stability allows.
"""

import argparse
from typing import Any

import batched
import diffrax
import jax
import measure
import numpy as np
import peers
from measure import Effort, Row, Variant

import lintensor_jax as lt
from lintensor_jax.dynamics.system import System


def rows_of(effort: Effort) -> list[Row]:
    """A row for every way and architecture."""
    paper = lt.Regression(peers.X[None], np.array([peers.Y]))
    rows = []
    for name in batched.ARCHITECTURES[: 1 if effort.quick else None]:
        system = System.of(batched.network(name, 2, 2), paper)
        theta = batched.starts(system, 1, 0.1)
        task = batched.Problem(name, 2, paper, theta, batched.MOST_STEPS)
        task.expected = peers.exact_limit(name, np.asarray(theta))
        network: Any = system.network(theta[0])

        def alone(solver, system=system, theta=theta):
            solve = batched.plain_solve(system, batched.MOST_STEPS, solver)
            program = jax.jit(lambda theta: tuple(leaf[None] for leaf in solve(theta)))
            return lambda: program(theta[0])

        def called(system=system, theta=theta):
            solve = batched.plain_solve(system, batched.MOST_STEPS, diffrax.Tsit5())
            return tuple(leaf[None] for leaf in solve(theta[0]))

        def flow(solver, network=network, problem=paper):
            end = lt.gradient_flow(
                network,
                problem,
                solver=solver,
                stop=lt.StopAtResidual(batched.RESIDUAL),
                finish=None,
                rtol=batched.TOLERANCE,
                atol=batched.TOLERANCE,
            )
            left = problem.residual(end.coefficients[-1])
            return end.coefficients, abs(left), end.stats["num_steps"][None]

        def flow_in_jit(solver, flow=flow, system=system, theta=theta):
            program = jax.jit(lambda theta: flow(solver, system.network(theta)))
            return lambda: program(theta[0])

        tsit5, dopri8 = diffrax.Tsit5(), diffrax.Dopri8()
        calls = {
            "diffrax, Tsit5": alone(tsit5),
            "diffrax, Dopri8": alone(dopri8),
            "diffrax, Tsit5, as called": called,
            "ours": task.ours,
            "gradient_flow, Tsit5": lambda flow=flow, solver=tsit5: flow(solver),
            "gradient_flow": lambda flow=flow: flow(None),
            "gradient_flow, Tsit5, in jit": flow_in_jit(tsit5),
            "gradient_flow, in jit": flow_in_jit(None),
        }
        variants = [
            # Half a second each, as called: it compiles anew every time.
            Variant(key, call, task.check(key), rounds=5 if call is called else 1000)
            for key, call in calls.items()
        ]
        # Milliseconds each: many timings cost nothing.
        more = measure.compare("one lane", name, variants, 10 * effort.repeats, "diffrax, Tsit5")
        steps = {row["variant"]: int(row["steps"].split(" / ")[1]) for row in more}
        for row in more:
            row["steps"] = steps[row["variant"]]
            ratio = row["steps"] / steps["diffrax, Tsit5"]
            row["faster_per_step"] = row["faster_by_wall"] * ratio
        rows += more
    return rows


def main() -> None:
    """The table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    measure.set_up()
    print(measure.markdown(rows_of(Effort(repeats=options.repeats))))


if __name__ == "__main__":
    main()

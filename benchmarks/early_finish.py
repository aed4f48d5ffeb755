"""Where lanes of regression may end before their finish: errors of the limits, and steps.

Run from the repository root:

    python benchmarks/early_finish.py [--quick] [--out FILE]

By default `lt.batched_flow` ends a lane at a residual of 1e-5 max|y| if the Gauss-Newton step is
small (`dynamics/batch/early_finish.py`); one flow ends at 1e-9. Every problem is solved both ways,
and once with rtol = 1e-12 to a residual of 1e-11 as the reference. A row has the errors of both
(median and largest over the lanes), the mean steps of both, and how many lanes had a finish that
was not accepted at the larger residual. The exit code is 1 if an early limit is worse than the
usual one both by more than 1e-9 and by more than a quarter.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import batched
import jax
import jax.numpy as jnp
import measure
import numpy as np

import lintensor_jax as lt
from lintensor_jax.dynamics.batch.early_finish import rejected_lanes
from lintensor_jax.dynamics.system import System

# By how much an early limit may be worse: absolutely, and relative to the usual error.
ABSOLUTE, RELATIVE = 1e-9, 1.25


class Case(NamedTuple):
    """Networks of `depth` layers for n random samples of dimension d, alpha from `lowest` to 1."""

    name: str
    depth: int
    d: int
    n: int
    lowest: float
    lanes: int

    def __str__(self) -> str:
        return f"{self.name}, L = {self.depth}, d = {self.d}, n = {self.n}, alpha >= {self.lowest}"


CASES = (
    *(Case(name, 2, 2, 1, 0.001, 4096) for name in batched.ARCHITECTURES),
    Case("diagonal", 3, 2, 1, 0.001, 1024),
    Case("diagonal", 2, 8, 4, 0.001, 1024),
    Case("diagonal", 3, 4, 2, 0.001, 256),
    Case("diagonal", 4, 4, 2, 0.05, 256),
    Case("convolution", 3, 4, 2, 0.01, 256),
    Case("fully-connected", 3, 4, 2, 0.01, 256),
    Case("diagonal", 2, 32, 8, 0.001, 256),
    Case("diagonal", 3, 32, 8, 0.1, 256),
    Case("convolution", 3, 32, 8, 0.1, 128),
)


def row_of(case: Case) -> dict[str, Any]:
    """Errors and steps of one problem."""
    rng = np.random.default_rng([41, case.depth, case.d, case.n])
    X = rng.standard_normal((case.n, case.d)) / np.sqrt(case.d)
    problem = lt.Regression(jnp.asarray(X), jnp.asarray(rng.standard_normal(case.n)))
    size = float(jnp.max(jnp.abs(problem.y)))
    system = System.of(batched.network(case.name, case.depth, case.d), problem)
    starts = batched.starts(system, case.lanes, case.lowest)
    networks: Any = jax.vmap(system.network)(starts)
    early = lt.batched_flow(networks, problem)
    # The first attempt alone, whose rejected lanes are not integrated again.
    stop, finish = lt.StopAtResidual(1e-5 * size), lt.GaussNewton(3e-5)
    rejected = rejected_lanes(lt.batched_flow(networks, problem, stop=stop, finish=finish)).size
    stop = lt.StopAtResidual(1e-9 * size)
    usual = lt.batched_flow(networks, problem, stop=stop, finish=lt.GaussNewton())
    stop = lt.StopAtResidual(1e-11 * size)
    exact = lt.batched_flow(networks, problem, stop=stop, finish=lt.GaussNewton(), rtol=1e-12)
    arrived = np.asarray(exact.finish_accepted)
    row: dict[str, Any] = {
        "case": str(case),
        "lanes": int(arrived.sum()),
        "rejected": int(rejected),
    }
    for name, flow in (("early", early), ("usual", usual)):
        error = np.abs(np.asarray(flow.coefficients - exact.coefficients)).max(axis=1)[arrived]
        row[f"{name}_median_error"] = float(np.median(error))
        row[f"{name}_largest_error"] = float(np.max(error))
        row[f"{name}_steps"] = round(float(np.mean(flow.num_steps)), 1)
    row["share_of_steps"] = round(row["early_steps"] / row["usual_steps"], 3)
    return row


def main() -> None:
    """Print the rows; exit code 1 if an early limit is worse than allowed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="32 lanes of each problem")
    parser.add_argument("--out", type=Path, help="a JSON file for the rows")
    options = parser.parse_args()
    measure.set_up()
    rows, worse = [], False
    for case in CASES:
        row = row_of(case._replace(lanes=32) if options.quick else case)
        rows.append(row)
        bound = max(RELATIVE * row["usual_largest_error"], row["usual_largest_error"] + ABSOLUTE)
        worse |= not row["early_largest_error"] <= bound
        print(json.dumps(row), flush=True)
    if options.out:
        command = "python benchmarks/early_finish.py"
        found = {"command": command, "machine": measure.machine(), "rows": rows}
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    sys.exit(worse)


if __name__ == "__main__":
    main()

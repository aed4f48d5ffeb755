"""One flow at a time: the time of one flow that is not part of a batch.

Run from the repository root; `hot_path.py` runs it with everything else:

    python benchmarks/one_lane.py [--repeats 5]

"In turn": sixteen flows, one after the other in one program (`jax.lax.map`), by `gradient_flow` and
by `diffrax.diffeqsolve` with the same tolerances and stop, in the paper's sweep and in a larger
one. `gradient_flow` computes more in every step: whether the flow is stationary, and the stability
limit of the step.

"Called": one flow in each call, without and inside `jit`, against one `jit(diffeqsolve)` and
against `diffeqsolve` without jit. XLA:CPU hands a program of more than 1,000 operations to
another thread, which may take as long as a small flow.
"""

import argparse
from collections.abc import Callable
from typing import Any

import batched
import diffrax
import jax
import jax.numpy as jnp
import measure
from measure import Effort, Row, Variant

import lintensor_jax as lt

_IN_TURN = 16
_METHODS: dict[str, Any] = {"Tsit5": diffrax.Tsit5(), "Dopri8": diffrax.Dopri8()}
_BASELINE = "diffrax, Tsit5"


def rows_of(effort: Effort) -> list[Row]:
    """A row for every problem and method."""
    names = batched.ARCHITECTURES[: 1 if effort.quick else None]
    rows = []
    for name in names:
        rows += in_turn(effort, name, batched.paper_task(name, _IN_TURN, 0.1))
    for name in names:
        # A turn takes ten milliseconds.
        rows += in_turn(effort, f"{name}, d = 32", batched.uneven_task(name, _IN_TURN))
    for name in names:
        rows += called(effort, name, batched.paper_task(name, 1, 0.1))
    return rows


def in_turn(effort: Effort, name: str, task: batched.Problem) -> list[Row]:
    """Flows one after the other, in one program."""
    solvers = {
        f"diffrax, {method}": batched.plain_solve(
            task.system, task.max_steps, solver, task.residual
        )
        for method, solver in _METHODS.items()
    }
    solvers |= {f"gradient_flow, {method}": _flow(task, x) for method, x in _METHODS.items()}
    solvers["gradient_flow"] = _flow(task, None)

    def variant(key: str, solve: Callable) -> Variant:
        program = jax.jit(lambda thetas: jax.lax.map(solve, thetas))
        return Variant(key, lambda: program(task.theta), task.check(key))

    variants = [variant(key, solve) for key, solve in solvers.items()]
    title = f"{name}, in turn"
    return _against_diffrax(measure.compare("one lane", title, variants, effort.repeats, _BASELINE))


def called(effort: Effort, name: str, task: batched.Problem) -> list[Row]:
    """One flow in each call."""
    (theta,) = task.theta

    def as_called(solve: Callable) -> Callable:
        return lambda: tuple(leaf[None] for leaf in solve(theta))

    def in_jit(solve: Callable) -> Callable:
        program = jax.jit(lambda theta: tuple(leaf[None] for leaf in solve(theta)))
        return lambda: program(theta)

    diffrax_solvers = {
        method: batched.plain_solve(task.system, task.max_steps, solver)
        for method, solver in _METHODS.items()
    }
    slow = as_called(diffrax_solvers["Tsit5"])
    calls = {f"diffrax, {method}": in_jit(solve) for method, solve in diffrax_solvers.items()}
    calls |= {f"gradient_flow, {method}": in_jit(_flow(task, x)) for method, x in _METHODS.items()}
    calls |= {
        "gradient_flow": in_jit(_flow(task, None)),
        "diffrax, Tsit5, not in jit": slow,
        "gradient_flow, Tsit5, not in jit": as_called(_flow(task, _METHODS["Tsit5"])),
        "gradient_flow, not in jit": as_called(_flow(task, None)),
        "batched_flow": task.by_batched_flow,
    }
    variants = [
        # Half a second each: every call compiles again.
        Variant(key, call, task.check(key), rounds=5 if call is slow else 1000)
        for key, call in calls.items()
    ]
    # A call takes milliseconds, so ten times as many timings take little time.
    rows = measure.compare("one lane", f"{name}, called", variants, 10 * effort.repeats, _BASELINE)
    return _against_diffrax(rows)


def _flow(task: batched.Problem, solver: Any) -> Callable:
    def solve(theta):
        network: Any = task.system.network(theta)
        end = lt.gradient_flow(
            network,
            task.problem,
            solver=solver,
            stop=lt.StopAtResidual(task.residual),
            finish=None,
            rtol=batched.TOLERANCE,
            atol=batched.TOLERANCE,
        )
        beta = end.coefficients[-1]
        left = jnp.linalg.norm(task.problem.residual(beta))
        return beta, left, end.stats["num_steps"]

    return solve


def _against_diffrax(rows: list[Row]) -> list[Row]:
    """The rows, with a column for the ratio to diffrax by the same method."""
    wall = {row["variant"]: row["faster_by_wall"] for row in rows}
    for row in rows:
        # Dopri8 is the default of `gradient_flow`, and of `batched_flow` for so small a network.
        same = "diffrax, Tsit5" if "Tsit5" in row["variant"] else "diffrax, Dopri8"
        row["faster_same_method"] = wall[row["variant"]] / wall[same]
    return rows


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    measure.set_up()
    print(measure.markdown(rows_of(Effort(repeats=options.repeats))))


if __name__ == "__main__":
    main()

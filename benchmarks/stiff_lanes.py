"""Stiff lanes: random classification to margin 1e6, as one batch, as a sweep, and one by one.

Run from the repository root:

    python benchmarks/stiff_lanes.py [--lanes 1024] [--swept 10000] [--single 16] [--out FILE.json]

Every lane has its own data (two diagonal layers, d = 10, n = 20) and several support vectors, so
that the flow is stiff. The numbers are core milliseconds of a lane, of all threads. The batch is
timed five times after its first call, and the median counts, by machine code and by XLA. The sweep
is timed as a user runs it, with compilation and observables, without a store; and once more. All
ends have to reach their margin. The directions of single flows have to agree with those of their
lanes within 1e-3: such flows amplify errors, and the median is printed. The exit code is 1 if a
lane of the batch takes more than 8 ms, or one of the first sweep more than 1.3 times as much.
"""

import argparse
import functools
import json
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import measure
import numpy as np
from measure import WrongAnswer

import lintensor_jax as lt
from lintensor_jax.sweeps import STATUSES, Axis, Grid, Zip

D, N, MARGIN = 10, 20, 1e6
BUDGET_MS, RATIO, CLOSE = 8.0, 1.3, 1e-3
BUDGETS = {"max_steps": 512, "stiff_max_steps": 20_000}


def data(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Separable Gaussian rows, their labels, and the weights of the starts, for each lane."""
    rng = np.random.default_rng([26, seed])
    X, w = rng.standard_normal((count, N, D)), rng.standard_normal((count, D))
    y = np.sign(np.einsum("lnd,ld->ln", X, w))
    return X, y, 0.5 * rng.standard_normal((count, 2, D))


def batch_of(lanes: int) -> tuple[Any, Any, Any]:
    """The networks, the problems, and a function that integrates them."""
    X, y, weights = data(lanes, 0)
    problems = jax.vmap(lt.Classification)(X, y)
    networks = jax.vmap(lt.DiagonalNetwork)(jnp.asarray(weights))

    def integrate(compilation: Any = None) -> lt.BatchedFlow:
        options = {"stop": lt.StopAtMargin(MARGIN), "compilation": compilation} | BUDGETS
        return lt.batched_flow(networks, problems, shared_problem=False, **options)

    return networks, problems, integrate


def core_seconds(call: Any) -> tuple[float, Any]:
    """Core time of a call, and what it returned."""
    began = time.process_time()
    found = jax.block_until_ready(call())
    return time.process_time() - began, found


def compared(flow: Any, networks: Any, problems: Any, count: int) -> tuple[float, list[float]]:
    """Core time of a single flow, after the first; the distances of its direction to its lane's."""
    times, distances = [], []

    def single_flow(lane: int) -> lt.FlowSolution:
        one = jax.tree.map(lambda leaf: leaf[lane], (networks, problems))
        return lt.gradient_flow(*one, stop=lt.StopAtMargin(MARGIN))

    for lane in range(count):
        seconds, single = core_seconds(functools.partial(single_flow, lane))
        beta = np.asarray(flow.coefficients[lane])
        direction = beta / np.linalg.norm(beta)
        distances.append(float(np.linalg.norm(direction - np.asarray(single.direction[-1]))))
        times.append(seconds)
    return statistics.median(times[1:]), distances


def swept(lanes: int) -> float:
    """Core seconds of a sweep."""
    X, y, weights = data(lanes, 1)
    axes = Zip("lane", Axis("X", X), Axis("y", y), Axis("weights", weights))
    grid = Grid(
        (axes,),
        lambda point: lt.DiagonalNetwork(point.weights),
        lambda point: lt.Classification(point.X, point.y),
    )
    began = time.process_time()
    results = lt.sweep(grid, stop=lt.StopAtMargin(MARGIN), **BUDGETS)
    seconds = time.process_time() - began
    names = {STATUSES[code] for code in np.unique(results.status.values)}
    if names != {"margin"}:
        raise WrongAnswer(f"the sweep has the statuses {sorted(names)}")
    return seconds


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--lanes", type=int, default=1024)
    parser.add_argument("--swept", type=int, default=10_000)
    parser.add_argument("--single", type=int, default=16)
    parser.add_argument("--out", type=Path, help="a JSON file for the numbers")
    options = parser.parse_args()
    measure.set_up()
    networks, problems, integrate = batch_of(options.lanes)
    _, flow = core_seconds(integrate)
    statuses = flow.counted()
    if not bool(jnp.all(flow.succeeded)) or "margin" not in statuses:
        raise WrongAnswer(f"the batch has the statuses {statuses}")
    by_xla = functools.partial(integrate, lt.XLA())
    by_xla()
    pairs = [(core_seconds(integrate)[0], core_seconds(by_xla)[0]) for _ in range(5)]
    of_batch, of_xla = (
        statistics.median(times) / options.lanes for times in zip(*pairs, strict=True)
    )
    of_single, distances = compared(flow, networks, problems, options.single)
    if not max(distances) <= CLOSE:
        raise WrongAnswer(f"single flows end {max(distances):.1e} away")
    of_sweep, again = (swept(options.swept) / options.swept for _ in range(2))
    found = {
        "machine": measure.machine(),
        "lanes": options.lanes,
        "swept": options.swept,
        "single": options.single,
        "batch_core_ms": 1e3 * of_batch,
        "xla_core_ms": 1e3 * of_xla,
        "sweep_core_ms": 1e3 * of_sweep,
        "second_sweep_core_ms": 1e3 * again,
        "single_core_ms": 1e3 * of_single,
        "xla_over_batch": of_xla / of_batch,
        "sweep_over_batch": of_sweep / of_batch,
        "second_sweep_over_batch": again / of_batch,
        "single_over_batch": of_single / of_batch,
        "implicit_steps": float(np.mean(np.asarray(flow.num_implicit_steps))),
        "median_distance": statistics.median(distances),
        "largest_distance": max(distances),
    }
    for name, value in found.items():
        if isinstance(value, int | float):
            print(f"{name:20s} {value:.4g}")
    if options.out is not None:  # ratios only: absolute times depend on the machine
        kept = {name: value for name, value in found.items() if not name.endswith("_ms")}
        options.out.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    if found["batch_core_ms"] > BUDGET_MS:
        raise SystemExit(f"a lane of the batch takes more than {BUDGET_MS} ms")
    if found["sweep_core_ms"] > RATIO * BUDGET_MS:
        raise SystemExit(f"a lane of the sweep takes more than {RATIO * BUDGET_MS} ms")


if __name__ == "__main__":
    main()

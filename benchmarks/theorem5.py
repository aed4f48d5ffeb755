"""Theorem 5 at d = 1000, n = 50: Newton iterations over all scales, and the flow side by side.

Run from the repository root:

    python benchmarks/theorem5.py [--flow-alpha 0.01] [--out theorem5.json]

The first table is a claim: at most 60 factorisations, all continuation steps counted, for L = 2, 3,
4 and alpha = 1e-8..1e8. The second times `limit_point` against `gradient_flow` on the same problem
in the same process; only their ratio is meaningful, and each is run once before it is timed. The
flow's time depends on alpha, Newton's time hardly does. The claim is for L >= 3 at alpha = 0.01,
where the flow is stiff. For L = 2 the flow is not stiff and takes a few hundred explicit steps. If
a flow does not arrive within its steps, the ratio is a lower bound and is marked with ">".
"""

import argparse
import json
import time
from pathlib import Path

import jax
import numpy as np

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp  # noqa: E402

import lintensor_jax as lt  # noqa: E402
from lintensor_jax.theory.regression.yun_theorem_5 import diagonal_limit, limit_point  # noqa: E402

SCALES = tuple(10.0**k for k in range(-8, 9))
MOST_ITERATIONS = 60
LEAST_RATIO = 100


def problem(d: int, n: int):
    """Gaussian data and targets; eta of random signs and sizes in (0.5, 1.5)."""
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(n, d)), rng.normal(size=n)
    return X, y, rng.uniform(0.5, 1.5, d) * rng.choice([-1, 1], d)


def iterations(depth: int, X, y, eta) -> list[dict]:
    """Print one line per alpha; returns them as rows."""
    rows = []
    for alpha in SCALES:
        limit = limit_point(None, X, y, depth, alpha, eta)
        count = int(limit.num_iterations)
        rows.append({"depth": depth, "alpha": alpha, "iterations": count})
        residual = float(jnp.max(jnp.abs(limit.residual)) / np.max(np.abs(y)))
        print(
            f"  L = {depth}  alpha = {alpha:7.0e}  iterations {count:3d}  "
            f"converged {bool(limit.converged)}  residual {residual:.1e}  "
            f"stationarity {float(limit.stationarity):.1e}  "
            f"1 - |t|/c {float(limit.boundary_distance):.1e}"
        )
        assert bool(limit.converged)
    return rows


def seconds(function, repeats: int):
    """(the shortest time of `repeats` calls after a first one that compiles, the result)."""
    result = jax.block_until_ready(function())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - start)
    return min(times), result


def against_the_flow(depth: int, alpha: float, X, y, eta) -> float:
    """Print both times and the distance of the two limits; returns the ratio of the times."""
    first = alpha * np.abs(eta)
    network = lt.DiagonalNetwork(np.stack([first] * (depth - 1) + [0 * first]))
    data = lt.Regression(X, y)
    newton, limit = seconds(lambda: diagonal_limit(network, data).coefficients, 5)
    flow, end = seconds(lambda: lt.gradient_flow(network, data, throw=False), 1)
    beta = jnp.reshape(end.coefficients, (-1, limit.size))[-1]
    arrived = float(jnp.max(jnp.abs(data.residual(beta)))) < 1e-6
    difference = float(jnp.max(jnp.abs(limit - beta)) / jnp.max(jnp.abs(limit)))
    outcome = f"relative difference {difference:.1e}" if arrived else "flow not at its end"
    print(
        f"  L = {depth}  alpha = {alpha:g}  Newton {newton:.3f} s  flow {flow:.2f} s  "
        f"ratio {'' if arrived else '> '}{flow / newton:.0f}  {outcome}"
    )
    return flow / newton


def main():
    """Print both tables; SystemExit if a claim does not hold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--flow-alpha", type=float, help="also time the flow, from this scale")
    parser.add_argument("--depth", type=int, nargs="*", default=[2, 3, 4])
    parser.add_argument("-d", type=int, default=1000)
    parser.add_argument("-n", type=int, default=50)
    parser.add_argument("--out", type=Path, help="a JSON file for the numbers of iterations")
    options = parser.parse_args()
    X, y, eta = problem(options.d, options.n)
    print(f"Newton iterations, d = {options.d}, n = {options.n}")
    rows = [row for depth in options.depth for row in iterations(depth, X, y, eta)]
    if options.out is not None:
        options.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    most = max(row["iterations"] for row in rows)
    print(f"  largest: {most} (claim: at most {MOST_ITERATIONS})")
    ratios = []
    if options.flow_alpha is not None:
        print("against gradient_flow")
        ratios = [against_the_flow(depth, options.flow_alpha, X, y, eta) for depth in options.depth]
        ratios = [r for r, depth in zip(ratios, options.depth, strict=True) if depth >= 3]
        print(f"  L >= 3: {', '.join(f'{r:.0f}' for r in ratios)} (claim: at least {LEAST_RATIO})")
    if most > MOST_ITERATIONS or any(ratio < LEAST_RATIO for ratio in ratios):
        raise SystemExit("a claim does not hold")


if __name__ == "__main__":
    main()

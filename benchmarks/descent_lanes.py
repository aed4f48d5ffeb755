"""Stochastic gradient descent on many lanes: `gradient_descent` against plain loops.

Lanes differ in their step size and their random key: a two-layer diagonal network, batch size 1,
d = 20, n = 10. `gradient_descent` also keeps the sums that give each lane's exact limit; every
lane's end is compared with that limit before anything is timed. The plain loops are `jax.lax.scan`
under `jax.vmap` and NumPy over all lanes at once; they take steps and nothing else.

    python benchmarks/descent_lanes.py [--lanes 10000] [--steps 10000] [--rounds 3]

With --store the lanes are a sweep, and nothing is compared or timed otherwise. The program can be
killed and started again; then it continues with the chunks that are left:

    python benchmarks/descent_lanes.py --steps 100000 --store FOLDER
"""

import argparse
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lintensor_jax as lt

D, N = 20, 10
# Lanes at once: their numbers stay in the cache.
AT_ONCE = 256
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(N, D)) / np.sqrt(D), RNG.normal(size=N)
WEIGHTS = np.stack([np.ones(D), np.zeros(D)])


def ours(step_size, key, num_steps):
    """One lane: beta and its effective start."""
    solution = lt.gradient_descent(
        lt.DiagonalNetwork(WEIGHTS),
        lt.Regression(X, Y),
        optax.sgd(step_size),
        num_steps,
        batch_size=1,
        replacement=True,
        key=key,
    )
    start = solution.effective_start
    assert start is not None
    return solution.coefficients[-1], start.scale, start.coefficients


def plain(step_size, key, num_steps):
    """One lane that takes the steps and computes nothing else; returns beta."""

    def step(carry, _):
        weights, key = carry
        key, draw = jax.random.split(key)
        row = jax.random.randint(draw, (), 0, N)
        x = jnp.asarray(X)[row]
        g = N * x * (x @ (weights[0] * weights[1]) - jnp.asarray(Y)[row])
        return (weights - step_size * g * weights[::-1], key), None

    (weights, _), _ = jax.lax.scan(step, (jnp.asarray(WEIGHTS), key), length=num_steps)
    return weights[0] * weights[1]


def in_numpy(step_sizes, num_steps):
    """The steps of all lanes at once, in NumPy; returns beta (lanes, d)."""
    rng = np.random.default_rng(1)
    u, v = (np.repeat(w[None], len(step_sizes), axis=0) for w in WEIGHTS)
    scale = N * step_sizes[:, None]
    for _ in range(num_steps):
        rows = rng.integers(0, N, size=len(step_sizes))
        x = X[rows]
        g = scale * x * (np.sum(x * u * v, axis=1) - Y[rows])[:, None]
        u, v = u - g * v, v - g * u
    return u * v


def swept(lanes, num_steps, folder):
    """Run the lanes as a sweep in `folder`, or resume it."""
    sweeps = lt.sweeps
    grid = sweeps.Grid(
        (sweeps.Axis("step_size", np.geomspace(1e-2, 1e-1, lanes)),),
        lambda point: lt.DiagonalNetwork(WEIGHTS),
        lt.Regression(X, Y),
    )
    observables = (sweeps.Limit(), sweeps.EffectiveLimit())
    start = time.perf_counter()
    if folder.exists():
        results = lt.resume(folder, grid, observables=observables)
    else:
        descent = sweeps.Descent(num_steps, "step_size", batch_size=1, replacement=True)
        results = lt.sweep(grid, folder, observables=observables, descent=descent)
    seconds = time.perf_counter() - start
    fits = np.asarray(results.effective_residual) < 1e-11
    worst = np.max(np.asarray(results.distance_to_effective_limit), where=fits, initial=0.0)
    counts = np.unique(np.asarray(sweeps.STATUSES)[np.asarray(results.status)], return_counts=True)
    print(f"{lanes} lanes of {num_steps} steps in {seconds:.0f} s, with compilation and storage")
    print(", ".join(f"{n} {name}" for name, n in zip(*counts, strict=True)))
    print(
        f"{fits.sum()} fit the data; the largest distance from their effective limits {worst:.1e}"
    )
    if not worst < 1e-9:
        raise SystemExit("a lane ends elsewhere")


def check(lanes, step_sizes):
    """The lanes that fit the data end at the Bregman projection of their effective start."""
    beta, scale, start = lanes
    limit = jax.vmap(lambda m, b: lt.theory.bregman_projection(X, Y, m, b))(scale, start)
    residual = np.max(np.abs(np.asarray(beta) @ X.T - Y), axis=1)
    fits = residual < 1e-11
    error = np.max(np.abs(np.asarray(limit.coefficients) - np.asarray(beta)), axis=1)
    worst = error[fits].max() if fits.any() else np.nan
    print(f"{fits.sum()} of {len(step_sizes)} lanes fit the data; the largest distance from their")
    print(f"effective limits is {worst:.1e}")
    if fits.any() and not worst < 1e-9:
        raise SystemExit("a lane ends elsewhere: nothing is timed")


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--lanes", type=int, default=10_000, help="default 10,000")
    parser.add_argument("--steps", type=int, default=10_000, help="steps of a lane, default 10,000")
    parser.add_argument("--rounds", type=int, default=3, help="timings of each, default 3")
    parser.add_argument("--store", type=Path, help="run or resume a sweep in this folder")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    if options.store is not None:
        swept(options.lanes, options.steps, options.store)
        return
    step_sizes = jnp.asarray(np.geomspace(1e-2, 1e-1, options.lanes))
    keys = jax.random.split(jax.random.key(0), options.lanes)

    def many(lane):
        return jax.jit(
            lambda s, k: jax.lax.map(
                lambda pair: lane(*pair, options.steps), (s, k), batch_size=AT_ONCE
            )
        )

    with_sums, bare = many(ours), many(plain)
    programs = {
        "gradient_descent": lambda: with_sums(step_sizes, keys),
        "lax.scan under vmap": lambda: bare(step_sizes, keys),
        "NumPy": lambda: in_numpy(np.asarray(step_sizes), options.steps),
    }
    check(jax.block_until_ready(programs["gradient_descent"]()), step_sizes)
    times = {name: [] for name in programs}
    for _ in range(options.rounds):
        for name, run in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            times[name].append(time.perf_counter() - start)
    ours_time = statistics.median(times["gradient_descent"])
    print("| loop | its time over that of gradient_descent |\n|---|---|")
    for name, all_of in times.items():
        print(f"| {name} | {statistics.median(all_of) / ours_time:.2f} |")


if __name__ == "__main__":
    main()

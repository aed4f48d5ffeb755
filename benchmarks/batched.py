"""Many flows at once: `batched_flow` against plain `jit(vmap(diffeqsolve))`, side by side.

Run from the repository root:

    python benchmarks/batched.py [--lanes 4096] [--uneven] [--repeats 5]

The sweep of Yun et al. 2021 (two layers, d = 2, x = [1, 2], y = 1, alpha in 0.01..1, rtol = atol =
1e-8, until the residual is below 1e-7) or, with --uneven, a harder one with uneven lanes (three
layers, d = 32, n = 8, alpha in 0.1..1). All ways solve the same lanes by the same method to the
same end, in turn in one process; printed are ratios of medians, compile times, and the largest
distance between two ways' coefficients (both stop at the residual, not at the limit; diffrax
without a clipped step hovers there).
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import diffrax
import jax
import numpy as np

jax.config.update("jax_enable_x64", True)
if hasattr(os, "sched_getaffinity"):
    jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))

import jax.numpy as jnp  # noqa: E402

import lintensor_jax as lt  # noqa: E402
from lintensor_jax.dynamics.batched import batched_flow  # noqa: E402
from lintensor_jax.dynamics.compilation import Apart, InProcess  # noqa: E402
from lintensor_jax.dynamics.system import System  # noqa: E402

TOLERANCE, RESIDUAL = 1e-8, 1e-7
PAPER = lt.Regression(np.array([[1.0, 2.0]]), np.array([1.0]))
SMALL = {
    "diagonal": lt.DiagonalNetwork.zeros(2, 2),
    "convolution": lt.ConvolutionalNetwork.zeros(2, (2, 2)),
    "fully-connected": lt.FullyConnectedNetwork.zeros((2, 2)),
}
UNEVEN = {
    "diagonal": lt.DiagonalNetwork.zeros(3, 32),
    "convolution": lt.ConvolutionalNetwork.zeros(32, (32,) * 3),
}


def plain(system: System, max_steps: int) -> Callable:
    """`jit(vmap(diffeqsolve))` on the flat parameters, shape (N, p)."""

    def met(t, theta, args, **_):
        return jnp.linalg.norm(system.squared_gradient(theta)[0]) <= RESIDUAL

    def solve(theta):
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, theta, args: system.velocity(theta)),
            diffrax.Tsit5(),
            0.0,
            1e9,
            None,
            theta,
            stepsize_controller=diffrax.PIDController(rtol=TOLERANCE, atol=TOLERANCE),
            event=diffrax.Event(met),
            adjoint=diffrax.ForwardMode(),
            max_steps=max_steps,
            throw=False,
        )
        assert solution.ys is not None
        return system.coefficients(solution.ys[-1])

    return jax.jit(jax.vmap(solve))


def timed(function: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of one call, by the wall and of all cores."""
    start, cores = time.perf_counter(), time.process_time()
    jax.block_until_ready(function())
    return time.perf_counter() - start, time.process_time() - cores


def compare(name: str, like: Any, problem: lt.Regression, options: Any, lowest: float):
    """Prints a row for every way of flying the same lanes."""
    rng = np.random.default_rng(0)
    system = System.of(like, problem)
    size, count = system.initial.size, options.lanes
    alphas = np.exp(rng.uniform(np.log(lowest), 0.0, count))
    scale = 1.0 if size < 32 or isinstance(like, lt.DiagonalNetwork) else like.dim**-0.5
    theta = jnp.asarray(scale * alphas[:, None] * rng.standard_normal((count, size)))
    networks = jax.vmap(system.network)(theta)
    flows: dict[str, Any] = {}

    def ours(key, compilation, devices):
        flows[key] = batched_flow(
            networks,
            problem,
            stop=lt.StopAtResidual(RESIDUAL),
            finish=None,
            rtol=TOLERANCE,
            atol=TOLERANCE,
            max_steps=options.max_steps,
            compilation=compilation,
            devices=devices,
        )
        return flows[key].coefficients

    baseline = plain(system, options.max_steps)
    everywhere = jax.local_devices()
    calls = {
        "plain": lambda: baseline(theta),
        "ours": lambda: ours("ours", InProcess(), None),
        "apart": lambda: ours("apart", Apart(), None),
        "apart, all cores": lambda: ours("apart, all cores", Apart(), everywhere),
    }
    first = {key: timed(call)[0] for key, call in calls.items()}
    expected = np.asarray(calls["plain"]())
    times = {key: [] for key in calls}
    for _ in range(options.repeats):
        for key, call in calls.items():
            times[key].append(timed(call))
    wall, cores = (
        {key: statistics.median(pair[i] for pair in values) for key, values in times.items()}
        for i in range(2)
    )
    steps = np.asarray(flows["ours"].num_steps)
    arrived = steps < options.max_steps
    print(
        f"{name}, d = {problem.X.shape[1]}, {count} lanes: steps {steps.min()} / "
        f"{int(np.median(steps))} / {steps.max()} (min, median, max), {int((~arrived).sum())} did "
        f"not arrive; plain waste {steps.max() * count / steps.sum():.2f}"
    )
    for key in calls:
        if key == "plain":
            found = expected
            waste = ""
        else:
            found = np.asarray(flows[key].coefficients)
            waste = f"  waste {float(flows[key].waste):.2f}"
        gap = np.abs(found - expected)[arrived].max()
        print(
            f"  {key:18s} wall {wall['plain'] / wall[key]:6.1f} x  core time "
            f"{cores['plain'] / cores[key]:6.1f} x  first call {first[key] - wall[key]:4.1f} s"
            f"{waste}  from plain {gap:.0e}",
            flush=True,
        )


def main() -> None:
    """Both sweeps."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--lanes", type=int, default=4096)
    parser.add_argument("--architectures", nargs="*", default=[*SMALL], choices=[*SMALL])
    parser.add_argument("--uneven", action="store_true", help="the harder sweep")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--max-steps", type=int, default=4096)
    options = parser.parse_args()
    print(f"device: {jax.devices()[0].device_kind}, {len(jax.local_devices())} of them")
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((8, 32)) / np.sqrt(32), rng.standard_normal(8)
    for name in options.architectures:
        if not options.uneven:
            compare(name, SMALL[name], PAPER, options, 0.01)
        elif name in UNEVEN:
            compare(name, UNEVEN[name], lt.Regression(X, y), options, 0.1)


if __name__ == "__main__":
    main()

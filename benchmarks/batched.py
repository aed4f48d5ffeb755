"""Many flows at once: `batched_flow` against plain `jit(vmap(diffeqsolve))`, side by side.

Run from the repository root:

    python benchmarks/batched.py [--lanes 4096 65536] [--repeats 5]

The sweep of Yun et al. 2021 (two layers, d = 2, x = [1, 2], y = 1, alpha in 0.01..1, rtol = atol =
1e-8, until the residual is below 1e-7) and a harder one with uneven lanes (three layers, d = 32, n
= 8). Both solve the same lanes by the same method to the same end, in turn in one process; printed
are medians' ratios, and compile times. Answers are compared before anything is timed.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import diffrax
import jax
import numpy as np

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp  # noqa: E402

import lintensor_jax as lt  # noqa: E402
from lintensor_jax.dynamics.batched import batched_flow  # noqa: E402
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


def timed(function: Callable[[], Any]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


def compare(name: str, like: Any, problem: lt.Regression, count: int, repeats: int, max_steps: int):
    """Prints one row."""
    rng = np.random.default_rng(0)
    system = System.of(like, problem)
    alphas = np.exp(rng.uniform(np.log(0.01 if count_of(system) < 32 else 0.1), 0.0, count))
    scale = 1.0 if isinstance(like, lt.DiagonalNetwork) else problem.X.shape[1] ** -0.5
    scale = 1.0 if count_of(system) < 32 else scale
    theta = jnp.asarray(scale * alphas[:, None] * rng.standard_normal((count, count_of(system))))
    networks = jax.vmap(system.network)(theta)
    baseline = plain(system, max_steps)
    calls = {
        "plain": lambda: baseline(theta),
        "ours": lambda: batched_flow(
            networks,
            problem,
            stop=lt.StopAtResidual(RESIDUAL),
            finish=None,
            rtol=TOLERANCE,
            atol=TOLERANCE,
            max_steps=max_steps,
        ),
    }
    first = {key: timed(call) for key, call in calls.items()}
    flow = calls["ours"]()
    arrived = np.asarray(flow.num_steps) < max_steps
    gap = np.abs(np.asarray(flow.coefficients - calls["plain"]()))[arrived].max()
    times = {key: [] for key in calls}
    for _ in range(repeats):
        for key, call in calls.items():
            times[key].append(timed(call))
    median = {key: statistics.median(values) for key, values in times.items()}
    print(
        f"{name:16s} d = {problem.X.shape[1]:2d}  {count:6d} lanes  ratio "
        f"{median['plain'] / median['ours']:5.1f}  waste {float(flow.waste):.2f}  steps median "
        f"{int(np.median(flow.num_steps))} max {int(flow.num_steps.max())}  compile "
        f"{first['ours'] - median['ours']:.1f} s (plain {first['plain'] - median['plain']:.1f} s)  "
        f"largest difference {gap:.0e}  not arrived {int((~arrived).sum())}",
        flush=True,
    )


def count_of(system: System) -> int:
    """The number of parameters."""
    return system.initial.size


def main() -> None:
    """Both sweeps."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--lanes", type=int, nargs="*", default=[4096, 65536])
    parser.add_argument("--uneven", type=int, default=1024, help="lanes of the harder sweep, or 0")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    print(f"device: {jax.devices()[0].device_kind}")
    for count in options.lanes:
        for name, like in SMALL.items():
            compare(name, like, PAPER, count, options.repeats, 4096)
    if options.uneven:
        rng = np.random.default_rng(0)
        X, y = rng.standard_normal((8, 32)) / np.sqrt(32), rng.standard_normal(8)
        for name, like in UNEVEN.items():
            compare(name, like, lt.Regression(X, y), options.uneven, 1, 6000)


if __name__ == "__main__":
    main()

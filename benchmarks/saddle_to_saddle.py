"""Saddle to saddle: the algorithm's jumps beside flows of ever smaller scale, on random problems.

Run from the repository root:

    python benchmarks/saddle_to_saddle.py [--problems 50]

Gaussian problems of (d, n) from (10, 4) to (50, 20). Claims, for each problem:

1. the path ends at the l1 solution of a linear program (HiGHS), to 1e-9;
2. `mirror_flow` at alpha = 1e-20, 1e-70, 1e-140: the largest error of a jump time, in units of
   log(1/alpha), is at most (2 C + 2) / log(1/alpha) at every scale, with one C for each problem,
   measured in 3; the visited points to 1e-6 on every plateau that is long at this scale;
3. plateaus that 1e-140 does not resolve: the same flow in its n dual variables with log(1/alpha)
   as a number of its own (here, SciPy's Radau method), alpha = 10^-10,000 and 10^-1,000,000: the
   errors are C / log(1/alpha) with the same C to a quarter (and 2 units of physical time, the
   width of a jump), the last one is below 1e-2, and every visited point is reached to 1e-6.

A jump is where the loss, which never rises, passes the middle between two saddles' losses. A
plateau is long if its slowest mode decays by e^-20 on half of it, every idle coordinate is below
e^-20 in its middle (both known from the algorithm's path), and the flow's two jumps are off by at
most a tenth of its length. At the end of the path only the idle coordinates count.
"""

import argparse
import itertools
import math

import diffrax
import jax
import numpy as np
from scipy.integrate import solve_ivp
from scipy.optimize import linprog

jax.config.update("jax_enable_x64", True)

import lintensor_jax as lt  # noqa: E402

SHAPES = ((10, 4), (20, 8), (30, 12), (40, 16), (50, 20))
SCALES = (1e-20, 1e-70, 1e-140)
DIGITS = (10_000, 1_000_000)  # of 1/alpha
DECAY = 20.0


def gaussian(number: int):
    """The problem of this number."""
    d, n = SHAPES[number % len(SHAPES)]
    rng = np.random.default_rng(number)
    return rng.normal(size=(n, d)) / math.sqrt(n), rng.normal(size=n)


def l1_solution(X, y):
    """argmin |beta|_1 with X beta = y, by HiGHS."""
    d = X.shape[1]
    found = linprog(np.ones(2 * d), A_eq=np.hstack([X, -X]), b_eq=y, method="highs")
    return found.x[:d] - found.x[d:]


def jump_times(time, loss, losses):
    """When the loss passes the middles between the saddles' losses."""
    return np.asarray([time[np.argmax(loss < (a + b) / 2)] for a, b in itertools.pairwise(losses)])


def distances(along, points):
    """The smallest distance of a trajectory from each point, in the largest entry."""
    return np.asarray([np.min(np.max(np.abs(along - point), axis=1)) for point in points])


def long_plateaus(path, X, unit, errors):
    """Which points the flow must come near to 1e-6 at this scale."""

    def idle(q, point):
        return 2 * unit * np.min(1 - np.abs(q[point == 0]), initial=1.0)

    long = [True]
    for k, point in enumerate(path.points[1:-1], start=1):
        half = (path.times[k] - path.times[k - 1]) / 2 * unit
        support = np.flatnonzero(point)
        # The slow mode of beta_i' = -2 |beta_i| grad_i.
        kernel = np.sqrt(np.abs(point[support]))[:, None] * X[:, support].T
        slowest = 2 * np.linalg.svd(kernel, compute_uv=False)[min(kernel.shape) - 1] ** 2
        middle = (path.dual[k] + path.dual[k + 1]) / 2
        in_time = max(abs(errors[k - 1]), abs(errors[k])) * unit < half / 5
        long.append(in_time and min(slowest * half, idle(middle, point)) > DECAY)
    return np.asarray([*long, idle(path.dual[-1], path.limit) > DECAY])


def log_flow(X, y, log_scale, end):
    """The dual flow dnu/dt = y - X beta, beta_i = (e^(2 (z_i - M)) - e^(-2 (z_i + M))) / 2."""

    def parts(nu):
        z = X.T @ nu
        capped = (np.minimum(2 * (s * z - log_scale), 300.0) for s in (1, -1))
        return tuple(np.exp(c) / 2 for c in capped)

    def velocity(_, nu):
        plus, minus = parts(nu)
        return y - X @ (plus - minus)

    def jacobian(_, nu):
        plus, minus = parts(nu)
        return -2 * (X * (plus + minus)) @ X.T

    # Exponents of size log_scale to 1e-7: what is asked of nu is relative to its size.
    rtol = max(1e-7 / log_scale, 3e-14)
    found = solve_ivp(
        velocity, (0, end), np.zeros(y.size), "Radau", jac=jacobian, rtol=rtol, atol=1e-7
    )
    beta = np.stack([plus - minus for plus, minus in map(parts, found.y.T)])
    return found.t, beta


def compare(number: int):
    """One row; False where a claim fails."""
    X, y = gaussian(number)
    d = X.shape[1]
    problem = lt.Regression(X, y)
    path = lt.saddle_to_saddle(problem)
    losses = 0.5 * np.sum((path.points @ X.T - y) ** 2, axis=1)
    from_program = np.max(np.abs(path.limit - l1_solution(X, y)))
    good = bool(from_program < 1e-9)
    rows, scaled = [], []
    for alpha in SCALES:
        network = lt.DiagonalNetwork(np.stack([np.full(d, alpha), np.zeros(d)]))
        every_step = diffrax.SaveAt(steps=True)
        flow = lt.mirror_flow(network, problem, saveat=every_step)
        unit = path.time_unit(alpha)
        times = jump_times(np.exp(flow.log_time), np.exp(flow.log_loss), losses) / unit
        error = np.max(np.abs(times - path.times))
        near = distances(np.asarray(flow.coefficients), path.points) < 1e-6
        long = long_plateaus(path, X, unit, times - path.times)
        good &= bool(np.all(near[long]))
        scaled.append(error * unit)
        rows.append(f"{error:.1e} {near.sum():2d}/{long.sum():2d}")
    errors, near = [], np.zeros(len(losses), bool)
    for digits in DIGITS:
        log_scale = digits * math.log(10)
        time, beta = log_flow(X, y, log_scale, log_scale * (path.times[-1] * 1.02 + 0.05))
        loss = 0.5 * np.sum((beta @ X.T - y) ** 2, axis=1)
        errors.append(np.max(np.abs(jump_times(time, loss, losses) / log_scale - path.times)))
        near = distances(beta, path.points) < 1e-6
        rows.append(f"{errors[-1]:.1e} {near.sum():2d}")
    first, last = (
        error * digits * math.log(10) for error, digits in zip(errors, DIGITS, strict=True)
    )
    good &= bool(np.all(near)) and bool(errors[-1] < 1e-2)
    good &= bool(abs(first - last) <= last / 4 + 2 and np.max(scaled) <= 2 * last + 2)
    print(
        f"{number:3d}  {d:2d} {y.size:2d}  {len(path.times):3d}  {from_program:.0e}  "
        + "  ".join(rows)
        + ("" if good else "  FAILS"),
        flush=True,
    )
    return good


def main():
    """The table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--problems", type=int, default=50, help="how many (default: 50)")
    problems = parser.parse_args().problems
    print("Per scale: largest error of a jump time, points to 1e-6 / points that must be")
    scales = "  ".join(f"{alpha:<13.0e}" for alpha in SCALES)
    logs = "  ".join(f"10^-{digits:<8d}" for digits in DIGITS)
    print(f"no.   d  n jumps  LP     {scales}{logs}")
    good = [compare(number) for number in range(problems)]
    print(f"{sum(good)} of {problems} problems keep every claim")
    assert all(good)


if __name__ == "__main__":
    main()

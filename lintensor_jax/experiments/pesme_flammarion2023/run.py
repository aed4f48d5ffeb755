"""From saddle to saddle: Pesme & Flammarion 2023.

The flow is integrated in its dual variables, which keep all digits of coordinates of 1e-280. It is
compared with an algorithm that does not use alpha and integrates nothing.
"""

import itertools

import diffrax
import numpy as np

from ...dynamics import mirror_flow
from ...dynamics.statuses import status_name
from ...theory.least_norm.min_norm import min_norm
from ...theory.least_norm.norms import L1Norm
from ...theory.regression.saddle_to_saddle import saddle_to_saddle
from ..framework import Track
from .configuration import Configuration
from .results import Path, Result, ScaleRun
from .setup import gaussian_problem, vanishing_start


def run(
    config: Configuration,
    reduced: tuple[str, ...] = (),
    track: Track = iter,
) -> Result:
    """Compute the algorithm's path, then the flow from every scale."""
    problem = gaussian_problem(config.num_samples, config.dimension, config.seed)
    path = _path(problem)
    runs = tuple(_flow(problem, path, digits) for digits in track(config.digits))
    return Result(config, reduced, path, runs)


def _path(problem) -> Path:
    found = saddle_to_saddle(problem)
    X, y = np.asarray(problem.X), np.asarray(problem.y)
    residuals = found.points @ X.T - y
    gradients = np.where(found.points != 0, residuals @ X, 0.0)
    return Path(
        times=found.times,
        points=found.points,
        losses=0.5 * np.sum(residuals**2, axis=1),
        slack=np.max(np.abs(gradients), axis=1),
        l1_solution=np.asarray(min_norm(problem, L1Norm()).coefficients),
    )


def _flow(problem, path, digits) -> ScaleRun:
    network = vanishing_start(problem.X.shape[1], 10.0**-digits)
    every_step = diffrax.SaveAt(steps=True)
    flow = mirror_flow(network, problem, saveat=every_step)
    times = np.exp(np.asarray(flow.log_time)) / (digits * np.log(10.0))
    losses, beta = np.exp(np.asarray(flow.log_loss)), np.asarray(flow.coefficients)
    middles = [(a + b) / 2 for a, b in itertools.pairwise(path.losses)]
    apart = np.abs(beta[:, None] - path.points[None])
    return ScaleRun(
        digits=digits,
        times=times,
        losses=losses,
        coefficients=beta,
        jumps=np.array([_crossing_time(times, losses, middle) for middle in middles]),
        nearest=np.min(np.max(apart, axis=2), axis=0),
        status=status_name(flow.status),
    )


def _crossing_time(times, losses, level) -> float:
    """When the losses fall below `level`, interpolated between two steps. They never rise."""
    after = int(np.argmax(losses < level))
    before = max(after - 1, 0)
    span = losses[before] - losses[after]
    share = (losses[before] - level) / span if span > 0 else 0.0
    return float(times[before] + share * (times[after] - times[before]))

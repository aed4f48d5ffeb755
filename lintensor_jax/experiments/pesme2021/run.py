"""Stochastic gradient flows of two diagonal layers: Pesme, Pillaud-Vivien & Flammarion 2021.

Each path is compared with the limit that theory predicts from int s^2 dt along the path, and all
paths with the gradient flow from the same start. The step is a share of the largest stable step.
The prediction holds for steps of any length, because the scheme keeps each path in the span of the
data.
"""

import dataclasses
from typing import Any

import jax
import numpy as np

from ...dynamics import gradient_flow, stochastic_flow
from ..framework import Track
from ..sparse_regression.results import baseline_of, ends_of
from ..sparse_regression.setup import log_scale, small_start, sparse_problem
from .configuration import Configuration
from .results import Course, NoiseRun, Result


@dataclasses.dataclass(frozen=True)
class Job:
    """One problem with one noise."""

    problem: int
    noise: float

    def __str__(self) -> str:
        return f"problem {self.problem + 1}, noise {self.noise:g}"


def run(
    config: Configuration,
    reduced: tuple[str, ...] = (),
    track: Track = iter,
) -> Result:
    """Run all noises on one problem after the other. Courses are kept of the first problem."""
    data = config.data
    network = small_start(data.dimension, data.scale)
    drawn = [
        sparse_problem(data.num_samples, data.dimension, data.support, config.seed + k)
        for k in range(config.problems)
    ]
    jobs = [Job(k, noise) for k in range(config.problems) for noise in config.noises]
    found = [_paths(config, network, job, *drawn[job.problem]) for job in track(jobs)]
    return Result(
        config,
        reduced,
        tuple(baseline_of(network, *pair) for pair in drawn),
        tuple(paths for paths, _ in found),
        (
            _flow_course(config, network, *drawn[0]),
            *(course for _, course in found[: len(config.noises)]),
        ),
    )


def _paths(config, network, job, problem, truth) -> tuple[NoiseRun, Course]:
    index = job.problem * len(config.noises) + config.noises.index(job.noise)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), index), config.paths)
    step, times = _times(config, problem)
    flows = stochastic_flow(
        network,
        problem,
        job.noise,
        keys,
        step=step,
        max_steps=config.max_steps,
        saveat=times,
    )
    start: Any = flows.effective_start
    at_end = jax.vmap(log_scale)(flows.network)
    found = NoiseRun(
        problem=job.problem,
        noise=job.noise,
        ends=ends_of(flows.coefficients[:, -1], start, network, problem, truth),
        spent=np.asarray(flows.noise_time)[:, -1],
        scale_error=np.max(np.abs(np.asarray(at_end - start.log_scale)), axis=1),
        ended_by=flows.counted(),
        most_steps=int(np.max(flows.num_steps)),
    )
    first = jax.tree.map(lambda leaf: leaf[0], flows)
    return found, _course(f"noise {job.noise:g}", first, truth)


def _flow_course(config, network, problem, truth) -> Course:
    times = _times(config, problem)[1]
    flow = gradient_flow(network, problem, saveat=times, finish=None, throw=False)
    return _course("gradient flow", flow, truth)


def _times(config, problem):
    """The length of a step, and the saved times: multiples of it that grow geometrically."""
    # The largest eigenvalue along a path is at most |X|^2 max(u^2 + v^2), about 4 |X|^2 for
    # |beta| <= 2.
    step = config.share * 2 / (4 * float(np.linalg.norm(np.asarray(problem.X), 2)) ** 2)
    return step, step * np.unique(np.round(np.geomspace(1, config.max_steps, config.num_times)))


def _course(label, flow, truth) -> Course:
    return Course(
        label,
        np.exp(np.asarray(flow.log_time)),
        np.exp(np.asarray(flow.log_loss)),
        np.linalg.norm(np.asarray(flow.coefficients) - truth, axis=1),
    )

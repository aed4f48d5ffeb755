"""Heavy-ball flow of two diagonal layers: Papazov, Pesme & Flammarion 2024.

Flows of several masses start at rest. Each is compared with the limit that theory predicts from two
integrals along the flow. Gradient descent with momentum uses steps and momenta of one mass.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ...dynamics import gradient_descent, heavy_ball_flow
from ..framework import Track
from ..sparse_regression.results import baseline_of, ends_of
from ..sparse_regression.setup import small_start, sparse_problem
from .configuration import Configuration
from .results import MassRun, MomentumRun, Result


@dataclasses.dataclass(frozen=True)
class Job:
    """All masses on one problem; -1: all momenta of descent, on the first problem."""

    problem: int = -1

    def __str__(self) -> str:
        return "descent with momentum" if self.problem < 0 else f"problem {self.problem + 1}"


def run(
    config: Configuration,
    reduced: tuple[str, ...] = (),
    track: Track = iter,
) -> Result:
    """Integrate the flows problem by problem, then run descent with momentum."""
    data = config.data
    network = small_start(data.dimension, data.scale)
    drawn = [
        sparse_problem(data.num_samples, data.dimension, data.support, config.seed + k)
        for k in range(config.problems)
    ]
    runs, momenta = [], ()
    for job in track([*map(Job, range(config.problems)), Job()]):
        if job.problem < 0:
            momenta = _momenta(config, network, drawn[0][0])
        else:
            runs.append(_masses(config, network, job.problem, *drawn[job.problem]))
    return Result(
        config,
        reduced,
        tuple(baseline_of(network, *pair) for pair in drawn),
        tuple(runs),
        momenta,
    )


def _masses(config, network, number, problem, truth) -> MassRun:
    flows = [heavy_ball_flow(network, problem, mass, throw=False) for mass in config.masses]
    # The measured assumptions have different texts, so that the starts could not be stacked.
    starts: Any = [flow.effective_start for flow in flows]
    starts = [dataclasses.replace(start, measured=()) for start in starts]
    start = jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)
    beta = np.stack([np.asarray(flow.coefficients[-1]) for flow in flows])
    return MassRun(
        problem=number,
        ends=ends_of(beta, start, network, problem, truth),
        sign_changes=tuple(str(flow.sign_change or "") for flow in flows),
        energy_drift=np.array([float(jnp.max(flow.energy_drift)) for flow in flows]),
    )


def _momenta(config, network, problem) -> tuple[MomentumRun, ...]:
    task = config.momentum
    flow = heavy_ball_flow(network, problem, task.mass)
    limit = np.asarray(flow.coefficients[-1])
    X, y = np.asarray(problem.X), np.asarray(problem.y)
    runs = []
    for momentum in task.momenta:
        step = task.mass * (1 - momentum) ** 2
        num_steps = round(task.duration * (1 - momentum) / step)
        descent = gradient_descent(network, problem, optax.sgd(step, momentum), num_steps)
        beta = np.asarray(descent.coefficients[-1])
        runs.append(
            MomentumRun(
                momentum=momentum,
                step=step,
                num_steps=num_steps,
                away=float(np.max(np.abs(beta - limit))),
                residual=float(np.linalg.norm(X @ beta - y) / np.linalg.norm(y)),
            )
        )
    return tuple(runs)

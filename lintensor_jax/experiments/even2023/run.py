"""Descent on two diagonal layers with large steps: Even, Pesme, Gunasekar & Flammarion 2023.

Descent uses full gradients or mini-batches, and steps from small to diverging. Each run that fits
the data is compared with the limit that theory predicts from the sums over its steps.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ...dynamics import gradient_descent
from ...problems import Regression
from ..framework import Track
from ..sparse_regression.results import baseline_of, ends_of
from ..sparse_regression.setup import log_scale, small_start, sparse_problem
from .configuration import Configuration
from .results import FULL, STOCHASTIC, Result, StepRun


def run(
    config: Configuration,
    reduced: tuple[str, ...] = (),
    track: Track = iter,
) -> Result:
    """Run all problems of one method, with one compiled program, then those of the other."""
    data = config.data
    network = small_start(data.dimension, data.scale)
    drawn = [
        sparse_problem(data.num_samples, data.dimension, data.support, config.seed + k)
        for k in range(config.problems)
    ]
    runs = []
    for method in track([FULL, STOCHASTIC]):
        runs += _method(config, network, drawn, method)
    return Result(
        config,
        reduced,
        tuple(baseline_of(network, *pair) for pair in drawn),
        np.stack([truth != 0 for _, truth in drawn]),
        tuple(runs),
    )


def _method(config, network, drawn, method) -> list[StepRun]:
    row = config.full if method == FULL else config.stochastic
    repeats = 1 if method == FULL else config.stochastic.runs
    batch = None if method == FULL else config.stochastic.batch_size
    sizes = np.repeat(np.geomspace(row.smallest, row.largest, row.count), repeats)

    @jax.jit
    def lanes(X, y, keys):
        def lane(size, key):
            solution = gradient_descent(
                network,
                Regression(X, y),
                optax.sgd(size),
                config.num_steps,
                batch_size=batch,
                replacement=True,
                key=key,
            )
            return solution.coefficients[-1], solution.effective_start, solution.diverged

        return jax.vmap(lane)(jnp.asarray(sizes), keys)

    runs = []
    for k, (problem, truth) in enumerate(drawn):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), k), len(sizes))
        beta, start, diverged = lanes(problem.X, problem.y, keys)
        runs.append(
            StepRun(
                problem=k,
                method=method,
                sizes=sizes,
                ends=ends_of(beta, start, network, problem, truth),
                gains=np.asarray(log_scale(network)) - np.asarray(start.log_scale),
                diverged=np.asarray(diverged),
                off_gradient_share=np.asarray(start.measured[0].value),
            )
        )
    return runs

"""The flows of Gunasekar, Lee, Soudry & Srebro 2018: implicit bias by architecture and depth.

All flows are on one separable random data set. Flows of fully connected, diagonal and full-length
convolutional networks are followed to their limits. The limits are certified (Theorems 1, 2, 2a and
4) and compared with gradient descent. As in Figure 1, the limit of a convolutional network is
sparse among the frequencies, and that of a diagonal network among the entries. The limit of a fully
connected network is the l2 maximum margin separator at every depth. Induced regularisers (Lemmas 5
to 7) are compared with the norms of the limit networks and of random ones.
"""

import dataclasses
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ...dynamics import gradient_descent, gradient_flow
from ...dynamics.stopping import StopAtMargin
from ...initialization import gaussian
from ...limits import limit_direction
from ...networks import split
from ...theory.certificates.induced_regularizer import induced_regularizer, minimal_network
from ...theory.least_norm.max_margin import max_margin
from ..framework import Track, compute_two_at_a_time
from .configuration import Configuration
from .results import Descent, RandomNetworks, Result, Run
from .setup import ARCHITECTURES, NORMS, QUASI_NORMS, SAVED_STEPS, WIDTH, separable_data

# Sizes of the noise on the parameters of a minimal network, relative to their root mean square.
# With the smallest, R is near |Theta|^2; with the largest, the parameters are almost only noise.
_NOISES = (1e-3, 1e-2, 0.1, 1.0, 10.0)


@dataclasses.dataclass(frozen=True)
class Job:
    """The flows of one architecture and depth, which share their compiled programs."""

    architecture: str
    depth: int

    def __str__(self) -> str:
        return f"{self.architecture}, {self.depth}"


def run(
    config: Configuration,
    reduced: tuple[str, ...] = (),
    track: Track = iter,
) -> Result:
    """Integrate, certify and compare; two jobs run at a time, because compilation takes long."""
    jobs = [Job(name, depth) for depth in config.depths for name in config.architectures]

    def compute(job):
        shape = (job.architecture, job.depth)
        return limits(*shape, config), random_networks(*shape, config)

    by_job = compute_two_at_a_time(jobs, compute, track)
    found = {(job.architecture, job.depth): computed for job, computed in by_job.items()}
    # Sorted by architecture, as in the tables.
    shapes = [(name, depth) for name in config.architectures for depth in config.depths]
    return Result(
        config,
        reduced,
        runs={shape: found[shape][0] for shape in shapes},
        random={shape: found[shape][1] for shape in shapes},
    )


def limits(architecture: str, depth: int, task) -> list[Run]:
    """The flow of every start to its limit, and gradient descent from the same start."""
    problem = separable_data(task)
    like = ARCHITECTURES[architecture](task.dimension, depth)
    convex = max_margin(problem, NORMS[architecture]())
    # One optimiser for all starts, because JAX would compile again for a new object.
    optimizer = optax.sgd(task.descent_step)
    return [
        _limit(architecture, like, problem, convex, optimizer, start, task)
        for start in range(task.starts)
    ]


def _limit(architecture, like, problem, convex, optimizer, start, task) -> Run:
    # With this gain, every layer multiplies a signal or a spectrum by about `scale`.
    units = {"fully-connected": WIDTH, "diagonal": 1, "convolutional": task.dimension}
    gain = units[architecture] ** -0.5
    key = jax.random.fold_in(jax.random.PRNGKey(task.seed), start)
    network = gaussian(like, key, task.scale * gain)
    flow = gradient_flow(
        network,
        problem,
        stop=StopAtMargin(task.margin),
        rtol=task.rtol,
        saveat=diffrax.SaveAt(steps=True),
        throw=False,
    )
    limit = limit_direction(flow, problem)
    certificate, direction = limit.certificate, np.asarray(limit.direction)
    beta = limit.network.linear_coefficients()
    minimal = minimal_network(like, beta)
    error = jnp.linalg.norm(minimal.linear_coefficients() - beta) / jnp.linalg.norm(beta)
    multipliers = np.asarray(certificate.multipliers)
    assert certificate.parameter_residual is not None
    assert certificate.predictor_residual is not None
    return Run(
        architecture=architecture,
        depth=like.depth,
        start=start,
        direction=direction,
        convex=np.asarray(convex.direction),
        reference=np.asarray(
            convex.direction
            if like.depth == 2 or architecture not in QUASI_NORMS
            else max_margin(
                problem, QUASI_NORMS[architecture](2 / like.depth), start=beta
            ).direction
        ),
        status=str(limit.status),
        reason=limit.reason,
        certified=limit.succeeded,
        parameter_residual=certificate.parameter_residual,
        predictor_residual=certificate.predictor_residual,
        support=np.flatnonzero(multipliers > task.threshold * multipliers.max()),
        moved=limit.moved,
        descent=_descent(network, flow, direction, optimizer, task),
        coefficients=np.asarray(beta),
        squared_norm=float(_squared_norm(limit.network)),
        regularizer=float(induced_regularizer(like, beta)),
        convex_regularizer=float(induced_regularizer(like, convex.coefficients)),
        minimal_squared_norm=float(_squared_norm(minimal)),
        minimal_error=float(error),
    )


def _descent(network, flow, limit, optimizer, task) -> Descent:
    found = gradient_descent(
        network,
        flow.problem,
        optimizer,
        task.descent_num_steps,
        save_every=task.descent_num_steps // SAVED_STEPS,
    )
    directions, log_loss = np.asarray(found.direction), np.asarray(found.log_loss)
    return Descent(
        step=np.asarray(found.step),
        log_loss=log_loss,
        direction=directions[-1],
        distance=np.linalg.norm(directions - limit, axis=1),
        lag=np.linalg.norm(directions - _at_log_loss(flow, log_loss), axis=1),
    )


def _at_log_loss(flow, log_loss):
    """The flow's directions (T, d) at losses (T,), linear in log L between its steps."""
    # The loss decreases along a flow; np.interp needs increasing values.
    rising, directions = -np.asarray(flow.log_loss), np.asarray(flow.direction)
    return np.stack([np.interp(-log_loss, rising, column) for column in directions.T], axis=1)


def random_networks(architecture: str, depth: int, task) -> RandomNetworks:
    """Minimal networks of Gaussian coefficients with noise of several sizes on the parameters."""
    like = ARCHITECTURES[architecture](task.dimension, depth)
    count = len(_NOISES) * task.random_networks
    keys = jax.random.split(jax.random.PRNGKey(task.seed + 1), count)
    noises = jnp.tile(jnp.asarray(_NOISES), task.random_networks)
    return RandomNetworks(architecture, depth, *(np.asarray(a) for a in _norms(like, keys, noises)))


@eqx.filter_jit
def _norms(like: Any, keys, noises):
    size = sum(leaf.size for leaf in jax.tree.leaves(split(like)[0]))

    def at(key, noise):
        beta_key, noise_key = jax.random.split(key)
        beta = jax.random.normal(beta_key, like.linear_coefficients().shape)
        minimal = minimal_network(like, beta)
        rms = jnp.sqrt(_squared_norm(minimal) / size)
        added = split(gaussian(like, noise_key, noise * rms))[0]
        network = eqx.apply_updates(minimal, added)
        return _squared_norm(network), induced_regularizer(like, network.linear_coefficients())

    return jax.vmap(at)(keys, noises)


def _squared_norm(network):
    return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(split(network)[0]))

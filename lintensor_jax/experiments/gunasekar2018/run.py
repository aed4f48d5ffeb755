"""What `gunasekar2018` computes: limits of flows and of descent, and norms of random networks."""

import dataclasses
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..dynamics import StopAtMargin, gradient_descent, gradient_flow
from ..initialization import gaussian
from ..limits import limit_direction
from ..networks import ConvolutionalNetwork, DiagonalNetwork, FullyConnectedNetwork, split
from ..problems import Classification
from ..theory.induced import induced_regularizer, minimal_network
from ..theory.margins import max_margin
from ..theory.norms import FourierL1Norm, FourierLpNorm, L1Norm, L2Norm, LpNorm

# Of a fully connected network; it changes neither its regulariser nor its limit, only the cost.
_WIDTH = 3
ARCHITECTURES = {
    "fully-connected": lambda d, L: FullyConnectedNetwork.zeros((d, *(_WIDTH,) * (L - 1))),
    "diagonal": lambda d, L: DiagonalNetwork.zeros(L, d),
    "convolutional": lambda d, L: ConvolutionalNetwork.zeros(d, (d,) * L),
}
# Their regularisers are powers of these norms: the first at every depth, the others at depth 2.
NORMS = {"fully-connected": L2Norm, "diagonal": L1Norm, "convolutional": FourierL1Norm}
# Beyond depth 2, with p = 2/L.
QUASI_NORMS = {"diagonal": LpNorm, "convolutional": FourierLpNorm}
# Of descent, after the start.
SAVED_STEPS = 10
# Sizes of what is added to a minimal network's parameters, in units of their root mean square: from
# where R is next to |Theta|^2 to where all is noise.
_NOISES = (1e-3, 1e-2, 0.1, 1.0, 10.0)


def separable_data(task) -> Classification:
    """Gaussian samples with the labels of a random separator."""
    rng = np.random.default_rng(task.seed)
    X = rng.standard_normal((task.num_samples, task.dimension))
    return Classification(X, np.sign(X @ rng.standard_normal(task.dimension)))


@dataclasses.dataclass(frozen=True)
class Descent:
    """Gradient descent with a constant step from the start of a flow; T saved steps."""

    step: np.ndarray  # (T,)
    log_loss: np.ndarray  # (T,)
    direction: np.ndarray  # (d,), a unit vector: at the last step
    distance: np.ndarray  # (T,): |direction - the flow's limit|
    lag: np.ndarray  # (T,): |direction - the flow's at the same loss|


@dataclasses.dataclass(frozen=True)
class Run:
    """One flow, its limit, and the limit's cost; NumPy arrays."""

    architecture: str
    depth: int
    start: int
    direction: np.ndarray  # (d,), a unit vector: the limit
    # Unit vectors (d,), by conic programs: the maximum margin separator of `NORMS`, and what the
    # limit should equal: that, or the stationary point of `QUASI_NORMS` next to it.
    convex: np.ndarray
    reference: np.ndarray
    status: str
    reason: str
    certified: bool
    parameter_residual: float
    predictor_residual: float
    support: np.ndarray  # samples of positive multiplier
    moved: float  # |direction - the flow's last|
    descent: Descent
    # At the limit network, scaled to smallest margin 1:
    coefficients: np.ndarray  # (d,)
    squared_norm: float  # |Theta|^2
    regularizer: float  # R(beta(Theta))
    convex_regularizer: float  # R of `convex` at margin 1
    minimal_squared_norm: float  # |Theta|^2 of `minimal_network`
    minimal_error: float  # |its coefficients - beta| / |beta|


@dataclasses.dataclass(frozen=True)
class RandomNetworks:
    """|Theta|^2 and R(beta(Theta)) at K random parameters of one architecture and depth."""

    architecture: str
    depth: int
    squared_norms: np.ndarray  # (K,)
    regularizers: np.ndarray  # (K,)


def limits(architecture: str, depth: int, task) -> list[Run]:
    """Every start's flow to its limit, and descent."""
    problem = separable_data(task)
    like = ARCHITECTURES[architecture](task.dimension, depth)
    convex = max_margin(problem, NORMS[architecture]())
    # One object for all starts: another one would compile again.
    optimizer = optax.sgd(task.descent_step)
    return [
        _limit(architecture, like, problem, convex, optimizer, start, task)
        for start in range(task.starts)
    ]


def _limit(architecture, like, problem, convex, optimizer, start, task) -> Run:
    # Every layer then multiplies a signal or a spectrum by about `scale`.
    units = {"fully-connected": _WIDTH, "diagonal": 1, "convolutional": task.dimension}
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
    # Falls along a flow; np.interp wants what grows.
    seen, directions = -np.asarray(flow.log_loss), np.asarray(flow.direction)
    return np.stack([np.interp(-log_loss, seen, column) for column in directions.T], axis=1)


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

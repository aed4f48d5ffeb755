"""What `yun2021_classification` computes: flows, their limits, and what theory says of both."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..dynamics import (
    PhysicalTime,
    StopAtLoss,
    StopAtMargin,
    StopAtTime,
    gradient_descent,
    gradient_flow,
)
from ..dynamics.stopping import status_name
from ..initialization import matching
from ..limits import limit_direction
from ..networks import ConvolutionalNetwork, DiagonalNetwork, FullyConnectedNetwork
from ..networks.differential import DifferentialDiagonalNetwork
from ..problems import Classification
from ..theory.finite_loss import finite_loss_path, interpolated_max_margin
from ..theory.margins import max_margin
from ..theory.norms import FourierL1Norm, L1Norm, L2Norm
from ..theory.predict import predict
from ..theory.singular_vectors import (
    remaining_variation,
    residual_direction,
    singular_vector_residual,
)

# The architectures of section 4. All that Theorem 1 says of the last one is that it has singular
# vectors: no regulariser is known.
ARCHITECTURES = {
    "fully-connected": lambda d, L: FullyConnectedNetwork.zeros((d,) * L),
    "diagonal": lambda d, L: DiagonalNetwork.zeros(L, d),
    "convolutional": lambda d, L: ConvolutionalNetwork.zeros(d, (d,) * L),
    "filters of 2": lambda d, L: ConvolutionalNetwork.zeros(d, (2,) * (L - 1) + (d,)),
}
NORMS = {"fully-connected": L2Norm, "diagonal": L1Norm, "convolutional": FourierL1Norm}
# Saved times are thinned to one number, so that what is computed of them compiles once.
_PATH_POINTS = 256
# Layers of an "ahead" start: large beside beta, for then the bound of Theorem 2 is nearly sharp.
_AHEAD_GAP = 100.0
_EXPLICIT_STEPS = 20_000


def separable_data(n: int, d: int, seed: int) -> Classification:
    """Gaussian samples with the labels of a random separator."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d))
    return Classification(X, np.sign(X @ rng.standard_normal(d)))


@dataclasses.dataclass(frozen=True)
class Path:
    """A classification flow on T saved times, and where it tends; NumPy arrays."""

    log_time: np.ndarray  # (T,)
    log_loss: np.ndarray  # (T,)
    log_bound: np.ndarray  # (T,): the corrected bound of Theorem 2 or 3; NaN where none is known
    log_printed_bound: np.ndarray  # (T,): as printed in the paper
    error: np.ndarray  # (T,): |beta/|beta| - limit|
    variation: np.ndarray  # (T,): of u = X^T r / |X^T r| from here on
    limit: np.ndarray  # (d,)
    predicted: np.ndarray | None  # (d,)
    theorem: str
    parameter_residual: float
    predictor_residual: float | None
    singular_residuals: np.ndarray  # (T,): of eq. 8, with the u of that time
    limit_singular_residual: float  # the same at the certified limit
    limit_status: str
    status: str
    num_steps: int
    invariant_drift: float
    smoothed_margin_drop: float


def follow(
    network: Any, problem: Classification, log_loss: float, rtol: float, solver=None
) -> Path:
    """The flow to exp(log_loss), its certified limit, and what theory says of both."""
    prediction = predict(network, problem)
    flow = gradient_flow(
        network,
        problem,
        stop=StopAtLoss(log_value=log_loss),
        rtol=rtol,
        solver=solver,
        saveat=diffrax.SaveAt(steps=True),
        observe=_factors,
        throw=False,
    )
    limit = limit_direction(flow, problem)
    times = np.linspace(0, flow.log_loss.shape[0] - 1, _PATH_POINTS).round().astype(int)
    betas, log_losses, log_times = (
        np.asarray(a)[times] for a in (flow.coefficients, flow.log_loss, flow.log_time)
    )
    directions = residual_direction(problem, jnp.asarray(betas))
    factors = tuple(jnp.asarray(np.asarray(v)[times]) for v in flow.observed)
    bound = printed = np.full(_PATH_POINTS, np.nan)
    if prediction.rate is not None:
        rate = prediction.rate
        bound = np.asarray(rate.log_bound(jnp.asarray(log_times)))
        # What the paper prints is the same bound with c instead of c L(0).
        printed = rate.log_initial_loss - np.logaddexp(0, np.log(rate.value) + log_times)
    end = np.asarray(limit.direction)
    multipliers = limit.certificate.multipliers
    return Path(
        log_time=log_times,
        log_loss=log_losses,
        log_bound=bound,
        log_printed_bound=printed,
        error=np.linalg.norm(_units(betas) - end, axis=1),
        variation=np.asarray(remaining_variation(directions)),
        limit=end,
        predicted=None if prediction.limit is None else np.asarray(prediction.limit),
        theorem=prediction.theorem or "none",
        parameter_residual=limit.certificate.parameter_residual or 0.0,
        predictor_residual=limit.certificate.predictor_residual,
        singular_residuals=np.asarray(_singular_residuals(network, factors, directions)),
        limit_singular_residual=float(
            singular_vector_residual(limit.network, -multipliers @ problem.signed_data)
        ),
        limit_status=str(limit.status),
        status=status_name(flow.status),
        num_steps=int(flow.stats["num_steps"]),
        invariant_drift=float(np.asarray(flow.invariant_drift)[-1]),
        smoothed_margin_drop=float(np.asarray(flow.smoothed_margin_drop)),
    )


def _factors(network):
    return network.factors


@eqx.filter_jit
def _singular_residuals(like, factors, directions):
    def at(factors, u):
        return singular_vector_residual(like.with_factors(factors), u)

    return jax.vmap(at)(factors, directions)


def starts(like: Any, problem: Classification, alphas, ahead_loss: float, seed: int) -> dict:
    """The networks that a job follows: alpha times a random direction, and one "ahead".

    All satisfy the theorems' conditions (`matching`). The one ahead classifies well already: its
    loss is at most `ahead_loss`, since every margin is at least log(n / ahead_loss).
    """
    d = like.linear_coefficients().shape[0]
    direction = np.random.default_rng(seed).standard_normal(d) / np.sqrt(d)
    drawn = matching(like, jnp.asarray(direction))
    level = np.log(problem.y.shape[0] / ahead_loss)
    separator = level * max_margin(problem, L2Norm()).coefficients
    found: dict = {f"alpha = {alpha:g}": drawn.scaled(alpha) for alpha in alphas}
    found["ahead"] = matching(like, separator, gap=_AHEAD_GAP)
    return found


@dataclasses.dataclass(frozen=True)
class OneSampleRun:
    """n = 1 and L = 2: the path, and the formula of Corollary 4."""

    filter_size: int
    start: str
    path: Path
    corollary_4: np.ndarray  # (d,), a unit vector


def one_sample(filter_size: int, task) -> list[OneSampleRun]:
    """Corollary 4 for filters of size 1 or 2, from a random direction and from one ahead."""
    d = task.dimension
    x = np.random.default_rng(task.seed).standard_normal(d)
    problem = Classification(x[None], [-1.0])
    beta = -(x if filter_size == 1 else 2 * x)
    if filter_size == 2:
        beta = beta - np.sign(x @ np.roll(x, 1)) * (np.roll(x, 1) + np.roll(x, -1))
    like = ConvolutionalNetwork.zeros(d, (filter_size, d))
    networks = starts(like, problem, (task.alpha,), task.ahead_loss, task.seed + 1)
    # A single sample has nothing that is stiff: half the time to compile.
    return [
        OneSampleRun(
            filter_size,
            start,
            follow(network, problem, -task.log_inverse_loss, task.rtol, diffrax.Dopri8()),
            beta / np.linalg.norm(beta),
        )
        for start, network in networks.items()
    ]


@dataclasses.dataclass(frozen=True)
class FiniteLossRuns:
    """Directions at finite loss for one depth D; P values of mu on a grid, M x E flows."""

    mus: np.ndarray  # (P,)
    path: np.ndarray  # (P, d), unit vectors: `finite_loss_path`
    program: np.ndarray  # (P, d): `interpolated_max_margin`
    l1: np.ndarray  # (d,)
    l2: np.ndarray  # (d,)
    alphas: np.ndarray  # (M, E)
    flow_mus: np.ndarray  # (M, E): alpha^D / log(1/eps) where the flow stopped
    log_losses: np.ndarray  # (M, E)
    reached: np.ndarray  # (M, E, d)
    path_errors: np.ndarray  # (M, E): |direction - path|
    program_errors: np.ndarray  # (M, E): |direction - program|
    kkt_residual: float  # the largest of all programs


def finite_loss(depth: int, task) -> FiniteLossRuns:
    """Flows of u_+^D - u_-^D to several losses, and the predictions after Moroshko et al. 2020."""
    problem = separable_data(task.num_samples, task.dimension, task.seed)
    shape = (len(task.mus), len(task.log_inverse_losses))
    alphas, mus, log_losses = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    reached = np.zeros((*shape, task.dimension))
    for lane in np.ndindex(shape):
        level = task.log_inverse_losses[lane[1]]
        alphas[lane] = (task.mus[lane[0]] * level) ** (1 / depth)
        entries = jnp.full(task.dimension, alphas[lane])
        network = DifferentialDiagonalNetwork(entries, entries, depth)
        flow = gradient_flow(network, problem, stop=StopAtLoss(log_value=-level), rtol=task.rtol)
        # The flow ends at its first step beyond: the predictions are for where it is.
        log_losses[lane] = float(flow.log_loss[-1])
        mus[lane] = alphas[lane] ** depth / -log_losses[lane]
        reached[lane] = _units(np.asarray(flow.coefficients[-1]))
    grid = np.geomspace(min(task.mus) / 3, max(task.mus) * 3, task.grid)
    every = np.concatenate([grid, mus.ravel()])
    programs = [interpolated_max_margin(problem, depth, float(mu)) for mu in every]
    path = np.stack([found.direction for found in finite_loss_path(problem, depth, list(every))])
    program = np.stack([found.direction for found in programs])

    def errors(directions):
        at_flows = directions[grid.size :].reshape(reached.shape)
        return np.linalg.norm(reached - at_flows, axis=-1)

    return FiniteLossRuns(
        mus=grid,
        path=path[: grid.size],
        program=program[: grid.size],
        l1=np.asarray(max_margin(problem, L1Norm()).direction),
        l2=np.asarray(max_margin(problem, L2Norm()).direction),
        alphas=alphas,
        flow_mus=mus,
        log_losses=log_losses,
        reached=reached,
        path_errors=errors(path),
        program_errors=errors(program),
        kkt_residual=max(found.kkt_residual for found in programs),
    )


def problem_of(task) -> Classification:
    """The toy data of a configuration."""
    return Classification(task.X, task.y)


@dataclasses.dataclass(frozen=True)
class SideBySideRow:
    """One algorithm on the paper's toy data."""

    architecture: str
    method: str
    num_steps: int
    seconds: float  # the second of two calls: without compilation
    log_loss: float
    distance: float  # of the direction to the limit, from the conic program


def side_by_side(architecture: str, task) -> list[SideBySideRow]:
    """Gradient descent, normalised descent, a flow in physical time, and ours: one start."""
    problem = problem_of(task)
    like = ARCHITECTURES[architecture](2, 2)
    network = matching(like, jnp.asarray(task.start)).scaled(task.alpha)
    limit = np.asarray(max_margin(problem, NORMS[architecture]()).direction)

    def descent(optimizer):
        return lambda: gradient_descent(network, problem, optimizer, task.descent_num_steps)

    explicit = {"solver": diffrax.Dopri8(), "max_steps": _EXPLICIT_STEPS, "throw": False}
    # Against 0/0, once the squares of the gradient underflow; above them it has no effect.
    normalised = optax.chain(
        optax.normalize_by_update_norm(eps=1e-150), optax.sgd(task.descent_step)
    )
    methods: dict[str, Callable[[], Any]] = {
        "gradient descent": descent(optax.sgd(task.descent_step)),
        "normalised gradient descent": descent(normalised),
        "flow in physical time": lambda: gradient_flow(
            network,
            problem,
            clock=PhysicalTime(),
            stop=StopAtTime(task.physical_time),
            **explicit,
        ),
        "flow, log-arc-length": lambda: gradient_flow(
            network, problem, stop=StopAtMargin(task.margin), **explicit
        ),
    }
    rows = []
    for method, call in methods.items():
        solution, seconds = _timed(call)
        steps = (
            int(solution.stats["num_steps"])
            if hasattr(solution, "stats")
            else task.descent_num_steps
        )
        beta = _units(np.asarray(solution.coefficients[-1]))
        distance = float(np.linalg.norm(beta - limit))
        log_loss = float(solution.log_loss[-1])
        rows.append(SideBySideRow(architecture, method, steps, seconds, log_loss, distance))
    return rows


def _timed(call):
    """What `call` returns the second time, and the seconds that took."""
    jax.block_until_ready(call().log_loss)
    start = time.perf_counter()
    solution = call()
    jax.block_until_ready(solution.log_loss)
    return solution, time.perf_counter() - start


def _units(beta):
    """beta over its length; its entries may be beyond the square root of the largest float."""
    scaled = beta / np.max(np.abs(beta), axis=-1, keepdims=True)
    return scaled / np.linalg.norm(scaled, axis=-1, keepdims=True)

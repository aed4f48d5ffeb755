"""The flows of Yun, Krishnan & Mobahi 2021, section 4: limit directions of classification.

- Theorems 1 and 2 with Corollaries 1 to 3, on random separable data: every flow runs to a loss of
  exp(-1e6); its limit is certified and compared with `predict`.
- Theorem 3 with Corollary 4, on one sample.
- The bounds on the loss: as the paper prints them, and corrected.
- Beyond the paper: the direction of a flow at a finite loss (Moroshko et al. 2020); the error of
  the direction from loss 1 to loss exp(-1e6); and the loss and direction that gradient descent,
  normalised gradient descent and a flow in physical time reach on the paper's toy data.
"""

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

from ....config import Config
from ....dynamics import (
    PhysicalTime,
    gradient_descent,
    gradient_flow,
)
from ....dynamics.statuses import status_name
from ....dynamics.stopping import StopAtLoss, StopAtMargin, StopAtTime
from ....initialization import matching
from ....limits import limit_direction
from ....networks import ConvolutionalNetwork
from ....networks.differential import DifferentialDiagonalNetwork
from ....problems import Classification
from ....theory.classification.finite_loss import finite_loss_path, interpolated_max_margin
from ....theory.classification.yun_theorem_1 import (
    remaining_variation,
    residual_direction,
    singular_vector_residual,
)
from ....theory.least_norm.max_margin import max_margin
from ....theory.least_norm.norms import L1Norm, L2Norm
from ....theory.predict import predict
from ...framework import Track, compute_two_at_a_time
from .configuration import (
    Configuration,
    FiniteLossTask,
    OneSampleTask,
    SideBySideTask,
    TheoremsTask,
)
from .results import FiniteLossRuns, OneSampleRun, Path, Result, SideBySideRow
from .setup import ARCHITECTURES, NORMS, problem_of, separable_data, starts

# Saved times are thinned to this number, so that functions of them compile once.
_PATH_POINTS = 256
_EXPLICIT_STEPS = 20_000


@dataclasses.dataclass(frozen=True)
class Job:
    """One part of the experiment at one shape, whose flows share their compiled programs."""

    part: str
    shape: tuple[Any, ...]

    def __str__(self) -> str:
        return ", ".join(map(str, (self.part, *self.shape)))


def run(
    config: Configuration,
    reduced: tuple[str, ...] = (),
    track: Track = iter,
) -> Result:
    """Flows, certificates and predictions of all four parts.

    Two jobs run at a time, because compilation takes most of the time and uses one core. The part
    "side by side" measures times, so its jobs run last and alone.
    """
    timed = [Job("side by side", (name,)) for name in config.side_by_side.architectures]
    jobs = [
        Job("theorems", (name, depth))
        for name in config.theorems.architectures
        for depth in config.theorems.depths
    ]
    jobs += [Job("one sample", (size,)) for size in config.one_sample.filter_sizes]
    jobs += [Job("finite loss", (depth,)) for depth in config.finite_loss.depths]
    parts: dict[str, tuple[Callable[..., Any], Config]] = {
        "theorems": (_theorems, config.theorems),
        "one sample": (one_sample, config.one_sample),
        "finite loss": (finite_loss, config.finite_loss),
        "side by side": (side_by_side, config.side_by_side),
    }

    def compute(job):
        function, task = parts[job.part]
        return function(*job.shape, task)

    found = compute_two_at_a_time(jobs, compute, track, alone=timed)

    def by_shape(part):
        return {job.shape: outcome for job, outcome in found.items() if job.part == part}

    return Result(
        config,
        reduced,
        paths=by_shape("theorems"),
        one_sample=[run for runs in by_shape("one sample").values() for run in runs],
        finite_loss={depth: runs for (depth,), runs in by_shape("finite loss").items()},
        side_by_side=[row for rows in by_shape("side by side").values() for row in rows],
    )


def _theorems(name: str, depth: int, task: TheoremsTask) -> dict[str, Path]:
    problem = separable_data(task.num_samples, task.dimension, task.seed)
    like = ARCHITECTURES[name](task.dimension, depth)
    networks = starts(like, problem, task.alphas, task.ahead_loss, task.seed + 1)
    return {
        start: follow(network, problem, -task.log_inverse_loss, task.rtol)
        for start, network in networks.items()
    }


def follow(
    network: Any, problem: Classification, log_loss: float, rtol: float, solver=None
) -> Path:
    """The flow to a loss of exp(log_loss), its certified limit, and the predictions for both."""
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
        # The paper prints the same bound with c instead of c L(0).
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


def one_sample(filter_size: int, task: OneSampleTask) -> list[OneSampleRun]:
    """Corollary 4 for filters of size 1 or 2, from each of the two `starts`."""
    d = task.dimension
    x = np.random.default_rng(task.seed).standard_normal(d)
    problem = Classification(x[None], [-1.0])
    beta = -(x if filter_size == 1 else 2 * x)
    if filter_size == 2:
        beta = beta - np.sign(x @ np.roll(x, 1)) * (np.roll(x, 1) + np.roll(x, -1))
    like = ConvolutionalNetwork.zeros(d, (filter_size, d))
    networks = starts(like, problem, (task.alpha,), task.ahead_loss, task.seed + 1)
    # With a single sample the flow is not stiff. The explicit solver compiles in half the time.
    return [
        OneSampleRun(
            filter_size,
            start,
            follow(network, problem, -task.log_inverse_loss, task.rtol, diffrax.Dopri8()),
            beta / np.linalg.norm(beta),
        )
        for start, network in networks.items()
    ]


def finite_loss(depth: int, task: FiniteLossTask) -> FiniteLossRuns:
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
        # The flow ends at its first step with a smaller loss. The predictions use that step's loss.
        log_losses[lane] = float(flow.log_loss[-1])
        mus[lane] = alphas[lane] ** depth / -log_losses[lane]
        reached[lane] = _units(np.asarray(flow.coefficients[-1]))
    grid = np.geomspace(min(task.mus) / 3, max(task.mus) * 3, task.grid)
    all_mus = np.concatenate([grid, mus.ravel()])
    programs = [interpolated_max_margin(problem, depth, float(mu)) for mu in all_mus]
    points = finite_loss_path(problem, depth, list(all_mus))
    path = np.stack([point.direction for point in points])
    program = np.stack([solved.direction for solved in programs])

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
        kkt_residual=max(solved.kkt_residual for solved in programs),
    )


def side_by_side(architecture: str, task: SideBySideTask) -> list[SideBySideRow]:
    """Gradient descent, normalised descent and two flows from one start.

    One flow is integrated in physical time, the other on the log-arc-length clock.
    """
    problem = problem_of(task)
    like = ARCHITECTURES[architecture](2, 2)
    network = matching(like, jnp.asarray(task.start)).scaled(task.alpha)
    limit = np.asarray(max_margin(problem, NORMS[architecture]()).direction)

    def descent(optimizer):
        return lambda: gradient_descent(network, problem, optimizer, task.descent_num_steps)

    explicit = {"solver": diffrax.Dopri8(), "max_steps": _EXPLICIT_STEPS, "throw": False}
    # eps prevents 0/0 where the squared gradient underflows. For larger gradients it has no effect.
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
    """The result of a second `call`, and its time in seconds (compilation is in the first)."""
    jax.block_until_ready(call().log_loss)
    start = time.perf_counter()
    solution = call()
    jax.block_until_ready(solution.log_loss)
    return solution, time.perf_counter() - start


def _units(beta):
    """beta / |beta|, along the last axis."""
    # Scaled first, because the squares of large entries would overflow.
    scaled = beta / np.max(np.abs(beta), axis=-1, keepdims=True)
    return scaled / np.linalg.norm(scaled, axis=-1, keepdims=True)

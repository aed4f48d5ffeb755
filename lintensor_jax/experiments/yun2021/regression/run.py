"""The flows of Yun, Krishnan & Mobahi 2021, section 5: limits of regression at every initial scale.

- Theorem 5: from v_l = alpha U_l eta (l < L), v_L = 0 the limit moves from a weighted l1 to a
  weighted l2 solution as alpha grows (Remark 4). Diagonal networks (Corollary 5), even convolutions
  (Corollary 6) and commuting matrix sensing (Corollary 7) are run.
- Theorem 7: fully-connected networks tend to the l2 solution as alpha -> 0.
- Beyond the theorems: matrix sensing with sensors that do not commute, compared with the minimum of
  the nuclear norm; and with sensors that commute up to rounding, compared with Corollary 7, whose
  flow is unstable there.

The paper has no figures of these. The scales and the data are chosen here.
"""

import dataclasses

import diffrax
import jax.numpy as jnp
import numpy as np

from ....dynamics import gradient_flow, mirror_flow
from ....dynamics.statuses import status_name
from ....networks import AssumptionFails, FullyConnectedNetwork, MatrixFactorizationNetwork
from ....problems import MatrixSensing, Regression
from ....theory.least_norm.min_norm import min_norm
from ....theory.least_norm.norms import L1Norm, L2Norm, NuclearNorm, WeightedL2Norm
from ....theory.regression.yun_theorem_5 import large_scale_weights, small_scale_weights
from ...framework import Track
from .configuration import Configuration
from .results import Flow, InterpolationRuns, Result, RotatedRuns, SmallScaleRuns
from .setup import (
    Setup,
    interpolation_setups,
    rotated,
    theorem_7_directions,
    theorem_7_slack,
)

_EXPLICIT_STEPS = 20_000


@dataclasses.dataclass(frozen=True)
class Job:
    """One architecture at one depth."""

    architecture: str
    depth: int

    def __str__(self) -> str:
        return f"{self.architecture}, L = {self.depth}"


def run(
    config: Configuration,
    reduced: tuple[str, ...] = (),
    track: Track = iter,
) -> Result:
    """Predictions and flows. All scales of a job share their compiled programs."""
    task = config.interpolation
    setups = interpolation_setups(task.dimension, task.num_samples, config.seed)
    names = (*setups, "fully-connected", "non-commuting sensors")
    interpolation, fully_connected, noncommuting, rotated_runs = {}, {}, {}, {}
    for job in track([Job(name, depth) for name in names for depth in config.depths]):
        if job.architecture in setups:
            runs = _interpolate(setups[job.architecture], job.depth, task, config.rtol)
            interpolation[job.architecture, job.depth] = runs
            if job.architecture == "commuting sensors":
                rotated_runs[job.depth] = _rotate(setups[job.architecture], job.depth, runs, config)
        elif job.architecture == "fully-connected":
            fully_connected[job.depth] = _fully_connected(config, job.depth)
        else:
            noncommuting[job.depth] = _noncommuting(config, job.depth)
    return Result(config, reduced, interpolation, fully_connected, noncommuting, rotated_runs)


def _interpolate(setup: Setup, depth, task, rtol):
    rows, eta = setup.equations(depth)
    equations = Regression(rows, setup.problem.y)
    weights = small_scale_weights(depth, eta)
    l1 = min_norm(equations, L1Norm(weights))
    l2 = min_norm(equations, WeightedL2Norm(large_scale_weights(depth, eta)))
    slopes = np.abs(np.asarray(rows).T @ np.asarray(l1.multipliers)) / np.asarray(weights)
    off = np.abs(np.asarray(l1.coefficients)) <= 1e-12 * np.max(np.abs(l1.coefficients))
    limits = [setup.limit(depth, alpha) for alpha in task.alphas]
    networks = [setup.network(depth, alpha) for alpha in task.flow_alphas]
    return InterpolationRuns(
        alphas=task.alphas,
        limits=np.stack([setup.coefficients(depth, limit.rho) for limit in limits]),
        num_iterations=np.array([int(limit.num_iterations) for limit in limits]),
        l1=setup.coefficients(depth, l1.coefficients),
        l2=setup.coefficients(depth, l2.coefficients),
        certificate=float(np.max(slopes, where=off, initial=0)),
        flows=tuple(
            _flow(gradient_flow, network, setup.problem, alpha, rtol)
            for network, alpha in zip(networks, task.flow_alphas, strict=True)
        ),
        predicted=np.stack(
            [setup.coefficients(depth, setup.limit(depth, a).rho) for a in task.flow_alphas]
        ),
        mirror_flows=tuple(
            _mirror_flow(network, setup.problem, alpha, rtol)
            for network, alpha in zip(networks, task.flow_alphas, strict=True)
        ),
    )


def _rotate(setup: Setup, depth, runs: InterpolationRuns, config):
    problem, basis = rotated(setup.problem, config.seed)
    ends = (
        _flow(gradient_flow, setup.network(depth, flow.alpha), problem, flow.alpha, config.rtol)
        for flow in runs.flows
    )
    flows = tuple(dataclasses.replace(f, reached=basis.T @ f.reached @ basis) for f in ends)
    return RotatedRuns(flows, runs.predicted)


def _fully_connected(config, depth):
    task = config.fully_connected
    rng = np.random.default_rng([config.seed, 7])
    problem = Regression(
        rng.standard_normal((task.num_samples, task.dimension)),
        rng.standard_normal(task.num_samples),
    )
    directions = theorem_7_directions(depth, task.dimension, rng)
    return SmallScaleRuns(
        reference=np.asarray(min_norm(problem, L2Norm()).coefficients),
        flows=tuple(
            _flow(
                gradient_flow,
                FullyConnectedNetwork([alpha * w for w in directions]),
                problem,
                alpha,
                config.rtol,
            )
            for alpha in task.alphas
        ),
        condition=theorem_7_slack(directions),
    )


def _noncommuting(config, depth):
    task = config.noncommuting
    d = task.dimension
    rng = np.random.default_rng([config.seed, 8])
    sensors = rng.standard_normal((task.num_samples, d, d))
    sensors = (sensors + np.swapaxes(sensors, 1, 2)) / 2
    # The data come from a matrix of rank one, because few measurements can determine it.
    v = rng.standard_normal(d)
    problem = MatrixSensing(sensors, sensors @ v @ v)
    products = np.einsum("iab,jbc->ijac", sensors, sensors)
    sizes = np.linalg.norm(sensors, axis=(1, 2))
    commutators = np.linalg.norm(products - np.swapaxes(products, 0, 1), axis=(2, 3))
    identity, zero = jnp.eye(d), jnp.zeros((d, d))
    return SmallScaleRuns(
        reference=np.asarray(min_norm(problem, NuclearNorm()).coefficients),
        flows=tuple(
            _flow(
                gradient_flow,
                MatrixFactorizationNetwork([alpha * identity] * (depth - 1) + [zero]),
                problem,
                alpha,
                config.rtol,
            )
            for alpha in task.alphas
        ),
        condition=float(np.max(commutators / (2 * np.outer(sizes, sizes)))),
    )


def _flow(integrate, network, problem, alpha, rtol):
    # In these dimensions thousands of explicit steps take less time than to compile an implicit
    # method. If the automatic choice fails as well, a check reports the status.
    explicit = {"solver": diffrax.Dopri8(), "max_steps": _EXPLICIT_STEPS}
    for options in (explicit, {}):
        flow = integrate(network, problem, rtol=rtol, throw=False, **options)
        if bool(flow.succeeded):
            break
    return Flow(
        alpha=alpha,
        reached=np.asarray(flow.coefficients[-1]),
        status=status_name(flow.status),
        num_steps=int(flow.stats["num_steps"]),
        num_implicit_steps=int(flow.stats["num_implicit_steps"]),
        invariant_drift=float(flow.invariant_drift[-1]),
    )


def _mirror_flow(network, problem, alpha, rtol):
    try:
        return _flow(mirror_flow, network, problem, alpha, rtol)
    except AssumptionFails:
        raise
    except ValueError:  # At a very small scale no float64 of the dual variable gives the limit.
        return None

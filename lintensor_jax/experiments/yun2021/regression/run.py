"""Section 5 of Yun, Krishnan & Mobahi 2021: where regression flows end, against the initial scale.

Theorem 5: from v_l = alpha U_l eta (l < L), v_L = 0 the limit moves from a weighted l1 to a
weighted l2 solution as alpha grows (Remark 4), for diagonal networks (Corollary 5), even
convolutions (Corollary 6) and commuting matrix sensing (Corollary 7). Theorem 7: fully-connected
networks tend to the l2 solution as alpha -> 0. Beyond the theorems: matrix sensing with sensors
that do not commute, against the nuclear-norm minimum; and with sensors that commute up to rounding,
against Corollary 7, whose flow is unstable there.

The paper has no figure of these; scales and data are this package's.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import diffrax
import jax.numpy as jnp
import numpy as np

from ..config import Config, ConfigError, Integer, ListOf, Number, setting, table
from ..dynamics import gradient_flow, mirror_flow
from ..dynamics.stopping import status_name
from ..networks import AssumptionFails, FullyConnectedNetwork, MatrixFactorizationNetwork
from ..problems import MatrixSensing, Regression
from ..theory.interpolation import large_scale_weights, small_scale_weights
from ..theory.min_norm import min_norm
from ..theory.norms import L1Norm, L2Norm, NuclearNorm, WeightedL2Norm
from . import yun2021_regression_tables
from .report import Report
from .yun2021_regression_setups import (
    Setup,
    interpolation_setups,
    rotated,
    theorem_7_directions,
    theorem_7_slack,
)

_POSITIVE = Number(above=0)
_SCALES = ListOf(_POSITIVE)
_MOST_DEPTHS = 4
_QUICK_DEPTHS = (2, 3)
_QUICK_SCALE = 0.1
_EXPLICIT_STEPS = 20_000


@dataclasses.dataclass(frozen=True)
class InterpolationTask(Config):
    """Theorem 5: diagonal and sensing in `dimension` d, convolution of 2 (d - 1) even entries."""

    dimension: int = setting(6, Integer(2))
    num_samples: int = setting(3, Integer(1))
    smallest_alpha: float = setting(1e-4, _POSITIVE)
    largest_alpha: float = setting(1e2, _POSITIVE)
    alphas_per_decade: int = setting(8, Integer(1))
    flow_alphas: tuple[float, ...] = setting((1e-2, 3e-2, 0.1, 0.3, 1.0, 10.0, 100.0), _SCALES)
    agreement: float = setting(1e-7, _POSITIVE)
    mirror_agreement: float = setting(1e-8, _POSITIVE)
    rate_agreement: float = setting(0.05, _POSITIVE)

    def check(self) -> None:
        """Underdetermined, and a grid of scales."""
        _require_underdetermined(self)
        if self.largest_alpha <= self.smallest_alpha:
            raise ConfigError(
                "largest_alpha",
                f"must be > smallest_alpha = {self.smallest_alpha:g}, got {self.largest_alpha:g}; "
                "the default is 100.0.",
            )

    @property
    def alphas(self) -> np.ndarray:
        """The grid of Theorem 5's scales, equidistant in the logarithm."""
        decades = np.log10(self.largest_alpha / self.smallest_alpha)
        count = round(decades * self.alphas_per_decade) + 1
        return np.geomspace(self.smallest_alpha, self.largest_alpha, max(count, 2))


@dataclasses.dataclass(frozen=True)
class FullyConnectedTask(Config):
    """Theorem 7: distances to the l2 solution, which fall as alpha."""

    dimension: int = setting(5, Integer(2))
    num_samples: int = setting(2, Integer(1))
    alphas: tuple[float, ...] = setting((1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0), _SCALES)
    rate_agreement: float = setting(0.1, _POSITIVE)

    def check(self) -> None:
        """Underdetermined, and scales enough for an exponent."""
        _require_underdetermined(self)
        if len(set(self.alphas)) < 2:
            raise ConfigError(
                "alphas", f"must hold two different scales, got {list(self.alphas)}; add one."
            )


@dataclasses.dataclass(frozen=True)
class NoncommutingTask(Config):
    """Sensing with random symmetric sensors, from W_l = alpha I (l < L), W_L = 0."""

    dimension: int = setting(4, Integer(2))
    num_samples: int = setting(5, Integer(2))
    alphas: tuple[float, ...] = setting((1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0), _SCALES)

    def check(self) -> None:
        """Fewer sensors than a symmetric matrix has entries."""
        most = self.dimension * (self.dimension + 1) // 2 - 1
        if self.num_samples > most:
            raise ConfigError(
                "num_samples",
                f"must be < dimension (dimension + 1) / 2 = {most + 1}, got {self.num_samples}; "
                "the default is 5.",
            )


@dataclasses.dataclass(frozen=True)
class Configuration(Config):
    """Three depths, six decades of scales."""

    depths: tuple[int, ...] = setting((2, 3, 4), ListOf(Integer(2)))
    seed: int = setting(6, Integer(0))
    rtol: float = setting(1e-9, _POSITIVE)
    interpolation: InterpolationTask = table(InterpolationTask)  # noqa: RUF009
    fully_connected: FullyConnectedTask = table(FullyConnectedTask)  # noqa: RUF009
    noncommuting: NoncommutingTask = table(NoncommutingTask)  # noqa: RUF009

    def check(self) -> None:
        """As many depths as a figure has line styles."""
        if len(set(self.depths)) != len(self.depths) or len(self.depths) > _MOST_DEPTHS:
            raise ConfigError(
                "depths",
                f"must be at most {_MOST_DEPTHS} different depths, got {list(self.depths)}; the "
                "default is [2, 3, 4].",
            )


def reduce(config: Configuration) -> tuple[Configuration, tuple[str, ...]]:
    """Fewer depths and no slow flows; the scales of Theorem 5 and the checks stay as they are."""
    depths = tuple(depth for depth in config.depths if depth in _QUICK_DEPTHS) or config.depths[:1]
    notes = []
    if depths != config.depths:
        notes.append(f"depths {_listed(depths)} instead of {_listed(config.depths)}")
    task = config.interpolation
    kept = tuple(a for a in task.flow_alphas if a >= _QUICK_SCALE) or (max(task.flow_alphas),)
    if kept != task.flow_alphas:
        notes.append(f"interpolation: flows from alpha = {_listed(kept)} only")
        task = dataclasses.replace(task, flow_alphas=kept)
    return dataclasses.replace(config, depths=depths, interpolation=task), tuple(notes)


@dataclasses.dataclass(frozen=True)
class Flow:
    """One simulated flow and its end."""

    alpha: float
    reached: np.ndarray  # the coefficients at the limit
    status: str
    num_steps: int
    num_implicit_steps: int
    invariant_drift: float


@dataclasses.dataclass(frozen=True)
class InterpolationRuns:
    """One architecture at one depth: Theorem 5 at A scales, flows at some of their own."""

    alphas: np.ndarray  # (A,)
    limits: np.ndarray  # (A, ...), coefficients
    num_iterations: np.ndarray  # (A,), Newton's
    l1: np.ndarray  # the weighted l1 solution
    l2: np.ndarray  # the weighted l2 solution
    certificate: float  # u: the largest dual slope off the l1 solution's support, in its weight
    flows: tuple[Flow, ...]
    predicted: np.ndarray  # (F, ...): Theorem 5 at the flows' scales
    mirror_flows: tuple[Flow | None, ...]  # None: refused


@dataclasses.dataclass(frozen=True)
class RotatedRuns:
    """Flows of commuting sensors in a random basis, in the coordinates of their eigenbasis."""

    flows: tuple[Flow, ...]
    predicted: np.ndarray  # (F, d, d): Theorem 5, diagonal


@dataclasses.dataclass(frozen=True)
class SmallScaleRuns:
    """Flows from several scales, and the interpolator that they are compared with."""

    reference: np.ndarray
    flows: tuple[Flow, ...]
    condition: float  # Theorem 7: smallest slack of its conditions; else the sensors' commutator


@dataclasses.dataclass(frozen=True)
class Result:
    """Everything that was computed, by (architecture, depth) or by depth."""

    config: Configuration
    reduced: tuple[str, ...]
    interpolation: dict[tuple[str, int], InterpolationRuns]
    fully_connected: dict[int, SmallScaleRuns]
    noncommuting: dict[int, SmallScaleRuns]
    rotated: dict[int, RotatedRuns]

    def report(self) -> Report:
        """The tables and the checks of the acceptance bounds."""
        return yun2021_regression_tables.report(self)

    def figures(self) -> dict[str, Any]:
        """From l1 to l2, and alpha -> 0 (needs matplotlib)."""
        from . import yun2021_regression_figures

        return yun2021_regression_figures.figures(self)


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
    track: Callable[[Sequence[Job]], Iterable[Job]] = iter,
) -> Result:
    """Predict and integrate, scale by scale: all scales of a job share their compiled programs."""
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
    # The data of a matrix of rank one, which few measurements may determine.
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
    # In these dimensions thousands of explicit steps take less than to compile an implicit method.
    # A flow that does not end after all has a status, which a check reads.
    explicit = {"solver": diffrax.Dopri8(), "max_steps": _EXPLICIT_STEPS}
    for how in (explicit, {}):
        flow = integrate(network, problem, rtol=rtol, throw=False, **how)
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
    except ValueError:  # from so small a scale the dual variable cannot hold the limit
        return None


def _require_underdetermined(task):
    if task.num_samples >= task.dimension:
        raise ConfigError(
            "num_samples",
            f"must be < dimension = {task.dimension}, got {task.num_samples}; with one solution "
            "only there is nothing to choose.",
        )


def _listed(values):
    return ", ".join(f"{value:g}" for value in values)

"""Eftekhari 2020: Figure 1, the stable sets, Theorem 20, and the rates that it leaves open.

* Figure 1: one output, whitened data, beta(0) 30 degrees off and ten times as long as the target:
  the end-to-end flow, and the layered flow from balanced layers, which it must equal.
* Theorem 20: random flows from the stable set N_{alpha,beta}, whose membership they must keep
  (Lemmas 15 and 19), against both rates, with (38) corrected; as printed it fails.
* The open question after Figure 1: the nearby rate against the depth, measured, and against the
  linearisation of the end-to-end flow at its limit.
* The landscape of section 2: the verdict on points that are known.

Depths, random starts and the rates' data are this package's.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import diffrax
import jax.numpy as jnp
import numpy as np

from ..config import Config, ConfigError, Integer, ListOf, Number, setting, table
from ..dynamics import StopAtTime, gradient_flow, induced_flow
from ..initialization import balanced
from ..networks import FullyConnectedNetwork
from ..theory.landscape import LandscapePoint, landscape_point
from ..theory.stable_sets import convergence_bound, nearby_rates
from . import eftekhari2020_tables
from .eftekhari2020_setups import (
    Start,
    far_start,
    landscape_cases,
    near_start,
    random_starts,
)
from .report import Report

_POSITIVE = Number(above=0)
_MOST_DEPTHS = 5
_QUICK_STARTS = 15


@dataclasses.dataclass(frozen=True)
class FigureTask(Config):
    """Figure 1's data; `end_time` covers more than the paper's 1e5 steps of 1e-6."""

    num_samples: int = setting(50, Integer(1))
    dimension: int = setting(5, Integer(2))
    degrees: float = setting(30.0, _POSITIVE)
    length: float = setting(10.0, _POSITIVE)
    depths: tuple[int, ...] = setting((2, 3, 5, 10), ListOf(Integer(2)))
    end_time: float = setting(1.0, _POSITIVE)

    def check(self) -> None:
        """Data that can be whitened, an angle below 90 degrees, colours for all depths."""
        _require_more_samples(self)
        if self.degrees >= 90:
            raise ConfigError("degrees", f"must be < 90, got {self.degrees:g}; the default is 30.0")
        if len(set(self.depths)) != len(self.depths) or len(self.depths) > _MOST_DEPTHS:
            raise ConfigError(
                "depths",
                f"must be at most {_MOST_DEPTHS} different depths, got {list(self.depths)}; the "
                "default is [2, 3, 5, 10].",
            )


@dataclasses.dataclass(frozen=True)
class BoundTask(Config):
    """Theorem 20: `starts` random instances for every depth."""

    num_samples: int = setting(20, Integer(1))
    dimension: int = setting(4, Integer(2))
    outputs: int = setting(3, Integer(2))
    depths: tuple[int, ...] = setting((2, 3, 4, 6, 10), ListOf(Integer(2)))
    starts: int = setting(60, Integer(1))
    times: int = setting(60, Integer(2))

    def check(self) -> None:
        """Data that can be whitened."""
        _require_more_samples(self)


@dataclasses.dataclass(frozen=True)
class NearbyTask(Config):
    """The open question: sizes s_Z below, at and above one, with one and with several outputs."""

    num_samples: int = setting(20, Integer(1))
    dimension: int = setting(4, Integer(2))
    outputs: int = setting(3, Integer(2))
    depths: tuple[int, ...] = setting(tuple(range(2, 11)), ListOf(Integer(2)))
    sizes: tuple[float, ...] = setting((0.3, 1.0, 3.0), ListOf(_POSITIVE))
    gap: float = setting(0.5, _POSITIVE)
    agreement: float = setting(1e-3, _POSITIVE)

    def check(self) -> None:
        """Data that can be whitened, and a spectral gap."""
        _require_more_samples(self)
        if self.gap >= 1:
            raise ConfigError("gap", f"must be < 1, got {self.gap:g}; the default is 0.5.")


@dataclasses.dataclass(frozen=True)
class Configuration(Config):
    """The paper's figure, 300 flows for its theorem, 54 for its question."""

    seed: int = setting(0, Integer(0))
    rtol: float = setting(1e-11, _POSITIVE)
    agreement: float = setting(1e-8, _POSITIVE)
    figure: FigureTask = table(FigureTask)  # noqa: RUF009
    bound: BoundTask = table(BoundTask)  # noqa: RUF009
    nearby: NearbyTask = table(NearbyTask)  # noqa: RUF009


def reduce(config: Configuration) -> tuple[Configuration, tuple[str, ...]]:
    """Fewer depths, whose programs take most of the time to compile; the checks stay."""
    parts: dict[str, Any] = {}
    notes = []
    for name, kept in (("figure", (2, 10)), ("bound", (4,)), ("nearby", (2, 10))):
        part = getattr(config, name)
        depths = tuple(d for d in part.depths if d in kept) or part.depths[:1]
        if depths != part.depths:
            parts[name] = dataclasses.replace(part, depths=depths)
            listed = ", ".join(str(depth) for depth in depths)
            notes.append(f"{name}: depths {listed} only")
    if config.bound.starts > _QUICK_STARTS:
        part = parts.get("bound", config.bound)
        parts["bound"] = dataclasses.replace(part, starts=_QUICK_STARTS)
        notes.append(f"bound: {_QUICK_STARTS} starts instead of {config.bound.starts}")
    return dataclasses.replace(config, **parts), tuple(notes)


@dataclasses.dataclass(frozen=True)
class FigureRun:
    """Figure 1 at one depth: distances |beta - Z_1| at T times by both flows."""

    depth: int
    times: np.ndarray
    induced: np.ndarray
    layered: np.ndarray
    difference: float  # of the two flows, over |beta(0)|
    target_size: float
    end: LandscapePoint  # where the layered flow ends, finished


@dataclasses.dataclass(frozen=True)
class BoundRun:
    """One flow from the stable set, and Theorem 20 along it."""

    start: Start
    times: np.ndarray
    log_distance: np.ndarray  # log |beta - Z_1|^2
    log_bound: np.ndarray
    log_printed: np.ndarray  # (38) with s_Z^(-2/L)
    slack: np.ndarray  # of the membership
    faraway: float
    nearby: float


@dataclasses.dataclass(frozen=True)
class NearbyRun:
    """The last rate of one flow, and the linearisation's."""

    depth: int
    size: float
    outputs: int
    scale: float
    measured: float
    predicted: float


@dataclasses.dataclass(frozen=True)
class LandscapeRun:
    """A known point, what it must be, and the verdict."""

    name: str
    expected: str
    least_eigenvalue: float | None  # where it is known
    found: LandscapePoint


@dataclasses.dataclass(frozen=True)
class Result:
    """Everything that was computed."""

    config: Configuration
    reduced: tuple[str, ...]
    figure: tuple[FigureRun, ...]
    bounds: tuple[BoundRun, ...]
    nearby: tuple[NearbyRun, ...]
    landscape: tuple[LandscapeRun, ...]

    def report(self) -> Report:
        """The tables and the checks of the acceptance bounds."""
        return eftekhari2020_tables.report(self)

    def figures(self) -> dict[str, Any]:
        """Figure 1, Theorem 20 and the nearby rates (needs matplotlib)."""
        from . import eftekhari2020_figures

        return eftekhari2020_figures.figures(self)


@dataclasses.dataclass(frozen=True)
class Job:
    """One part at one depth; depth 0 for the landscape."""

    part: str
    depth: int

    def __str__(self) -> str:
        return f"{self.part}, N = {self.depth}" if self.depth else self.part


def run(
    config: Configuration,
    reduced: tuple[str, ...] = (),
    track: Callable[[Sequence[Job]], Iterable[Job]] = iter,
) -> Result:
    """Integrate, part by part; the flows of one job share their compiled programs."""
    jobs = [Job("Figure 1", depth) for depth in config.figure.depths]
    jobs += [Job("Theorem 20", depth) for depth in config.bound.depths]
    jobs += [Job("nearby rates", depth) for depth in config.nearby.depths]
    figure, bounds, nearby, landscape = [], [], [], []
    for job in track([*jobs, Job("landscape", 0)]):
        if job.part == "Figure 1":
            figure.append(_figure(config, job.depth))
        elif job.part == "Theorem 20":
            bounds += _bounds(config, job.depth)
        elif job.part == "nearby rates":
            nearby += _nearby(config, job.depth)
        else:
            landscape += _landscape(config)
    return Result(config, reduced, tuple(figure), tuple(bounds), tuple(nearby), tuple(landscape))


def _layers(beta, depth, width):
    d, outputs = beta.shape[0], None if beta.ndim == 1 else beta.shape[1]
    return balanced(FullyConnectedNetwork.zeros((d, *[width] * (depth - 1)), outputs), beta)


def _explicit(rtol, end_time, times):
    # Thousands of explicit steps take less than to compile an implicit method.
    return {
        "rtol": rtol,
        "stop": StopAtTime(end_time),
        "saveat": times,
        "finish": None,
        "solver": diffrax.Dopri8(),
    }


def _figure(config, depth):
    task = config.figure
    rng = np.random.default_rng([config.seed, 1])
    problem, target, beta = far_start(task, rng)
    times = np.concatenate([[0.0], np.geomspace(1e-6, 1, 160) * task.end_time])
    options = _explicit(config.rtol, task.end_time, times)
    induced = induced_flow(beta, problem, depth, **options)
    network = _layers(jnp.asarray(beta), depth, 1)
    layered = gradient_flow(network, problem, **options)
    ours, theirs = (np.asarray(flow.coefficients)[: len(times)] for flow in (induced, layered))
    # The flow's own limit, for the landscape: it stands still there, as the targets do not fit.
    settled = gradient_flow(layered.network, problem, solver=diffrax.Dopri8(), rtol=1e-10)
    return FigureRun(
        depth,
        times,
        np.linalg.norm(ours - target, axis=1),
        np.linalg.norm(theirs - target, axis=1),
        float(np.max(np.abs(ours - theirs)) / np.linalg.norm(beta)),
        float(np.linalg.norm(target)),
        landscape_point(settled.network, problem, tolerance=1e-6),
    )


def _bounds(config, depth):
    task = config.bound
    rng = np.random.default_rng([config.seed, 2, depth])
    return [_bound(config, start) for start in random_starts(task, depth, rng)]


def _bound(config, start: Start):
    task, problem, depth = config.bound, start.problem, start.depth
    bound = convergence_bound(problem, depth, start.alpha, start.upper)
    # Until the slowest mode has fallen by e^-8 (the theorem's own rate may be far below it).
    end = 8 / nearby_rates(problem, depth)["slow"]
    times = np.concatenate([[0.0], np.geomspace(1e-5 * end, end, task.times - 1)])
    network = _layers(jnp.asarray(start.coefficients), depth, 1)
    flow = gradient_flow(network, problem, **_explicit(config.rtol, end, times))
    beta = np.asarray(flow.coefficients)[: len(times)]
    target = bound.set.target
    # (38) as printed: its faraway rate has s_Z^(-2/L) for s_Z^(2-2/L).
    printed = dataclasses.replace(bound, faraway=bound.faraway / float(target.size) ** 2)
    return BoundRun(
        start,
        times,
        2 * np.log(np.asarray(target.distance(beta))),
        np.asarray(bound.log_bound(times, beta)),
        np.asarray(printed.log_bound(times, beta)),
        np.asarray(bound.set.slack(beta)),
        bound.faraway,
        bound.nearby,
    )


def _nearby(config, depth):
    task = config.nearby
    for outputs in (1, task.outputs):
        for size in task.sizes:
            rng = np.random.default_rng([config.seed, 3, outputs])
            problem, target, beta = near_start(task, outputs, size, rng)
            rates = nearby_rates(problem, depth)
            predicted = min(rates.values())
            # Between relative distances of about 1e-5 and 1e-6: beyond the other modes, before
            # rounding.
            times = np.log([1e5, 1e6]) / predicted
            options = _explicit(config.rtol, float(times[-1]), times)
            flow = induced_flow(beta, problem, depth, rank=1, **options)
            near = np.asarray(flow.coefficients)[:2].reshape(2, *target.shape)
            logs = np.log(np.linalg.norm(near - target, axis=(1, 2)))
            measured = float((logs[0] - logs[1]) / (times[1] - times[0]))
            scale = float(task.num_samples)
            yield NearbyRun(depth, size, outputs, scale, measured, predicted)


def _landscape(config):
    rng = np.random.default_rng([config.seed, 4])
    for name, expected, least, network, problem in landscape_cases(rng):
        yield LandscapeRun(name, expected, least, landscape_point(network, problem))


def _require_more_samples(task):
    if task.num_samples < task.dimension:
        raise ConfigError(
            "num_samples",
            f"must be >= dimension = {task.dimension}, got {task.num_samples}; fewer samples "
            "cannot be whitened.",
        )

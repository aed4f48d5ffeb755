"""Section 4 of Yun, Krishnan & Mobahi 2021: where classification flows tend in direction, and how.

Theorems 1 and 2 with Corollaries 1 to 3 on random separable data: every flow is driven to a loss of
exp(-1e6), its limit is certified and compared with `predict`. Theorem 3 with Corollary 4 on one
sample. The printed bounds on the loss against the corrected ones. Beyond the paper: the direction
of a flow at a finite loss (Moroshko et al. 2020), the error of the direction from loss 1 to loss
exp(-1e6), and what gradient descent, normalised gradient descent and a flow in physical time reach
on the paper's toy data.
"""

import concurrent.futures
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..config import Config, ConfigError, Integer, ListOf, Number, Rejected, setting, table
from ..theory.margins import MarginPrecisionError, NonSeparableError, max_margin
from ..theory.norms import L2Norm
from . import yun2021_classification_tables
from .report import Report
from .yun2021_classification_runs import (
    ARCHITECTURES,
    NORMS,
    FiniteLossRuns,
    OneSampleRun,
    Path,
    SideBySideRow,
    finite_loss,
    follow,
    one_sample,
    problem_of,
    separable_data,
    side_by_side,
    starts,
)

_POSITIVE = Number(above=0)
_PLANE_VECTOR = ListOf(Number(), length=2)
_MOST_SERIES = 4
_QUICK_DESCENT_STEPS = 20_000
_QUICK_ARCHITECTURES = ("fully-connected", "diagonal")


@dataclasses.dataclass(frozen=True)
class OneOf:
    """One of the given names."""

    names: tuple[str, ...]

    def read(self, value: Any) -> str | Rejected:
        """The name."""
        return value if value in self.names else Rejected(f"one of {', '.join(self.names)}", value)


@dataclasses.dataclass(frozen=True)
class TheoremsTask(Config):
    """Theorems 1 and 2: every architecture at every depth, from every alpha and from one ahead."""

    architectures: tuple[str, ...] = setting(
        tuple(ARCHITECTURES), ListOf(OneOf(tuple(ARCHITECTURES)))
    )
    depths: tuple[int, ...] = setting((2, 3), ListOf(Integer(2)))
    dimension: int = setting(6, Integer(2))
    num_samples: int = setting(12, Integer(1))
    alphas: tuple[float, ...] = setting((0.01, 1.0), ListOf(_POSITIVE))
    ahead_loss: float = setting(0.01, _POSITIVE)
    seed: int = setting(3, Integer(0))
    rtol: float = setting(1e-6, _POSITIVE)
    log_inverse_loss: float = setting(1e6, _POSITIVE)
    agreement: float = setting(1e-6, _POSITIVE)
    residual: float = setting(1e-10, _POSITIVE)

    def check(self) -> None:
        """A start that is ahead, as many series as a figure has lines, a loss that is small."""
        _require_ahead(self)
        for key in ("architectures", "depths"):
            values = getattr(self, key)
            if len(set(values)) != len(values) or len(values) > _MOST_SERIES:
                raise ConfigError(
                    key, f"must be at most {_MOST_SERIES} different values, got {list(values)}."
                )
        if len(self.alphas) >= _MOST_SERIES:
            raise ConfigError(
                "alphas", f"must be at most {_MOST_SERIES - 1} scales, got {list(self.alphas)}."
            )
        _require_small_loss(self)


@dataclasses.dataclass(frozen=True)
class OneSampleTask(Config):
    """Theorem 3 with Corollary 4: two-layer convolutions with filters of size 1 and 2."""

    filter_sizes: tuple[int, ...] = setting((1, 2), ListOf(Integer(1)))
    dimension: int = setting(6, Integer(3))
    alpha: float = setting(0.1, _POSITIVE)
    ahead_loss: float = setting(0.01, _POSITIVE)
    seed: int = setting(1, Integer(0))
    rtol: float = setting(1e-8, _POSITIVE)
    log_inverse_loss: float = setting(1e6, _POSITIVE)
    agreement: float = setting(1e-8, _POSITIVE)

    def check(self) -> None:
        """Corollary 4 is about these two sizes."""
        _require_ahead(self)
        if not set(self.filter_sizes) <= {1, 2}:
            raise ConfigError(
                "filter_sizes",
                f"must be 1 or 2 (Corollary 4), got {list(self.filter_sizes)}; the default is "
                "[1, 2].",
            )
        _require_small_loss(self)


@dataclasses.dataclass(frozen=True)
class FiniteLossTask(Config):
    """u_+^D - u_-^D from alpha = (mu log(1/eps))^(1/D) to the loss eps, for all mu and eps."""

    depths: tuple[int, ...] = setting((2, 3), ListOf(Integer(2)))
    dimension: int = setting(6, Integer(2))
    num_samples: int = setting(4, Integer(1))
    mus: tuple[float, ...] = setting((1e-3, 1e-2, 0.1, 1.0, 10.0), ListOf(_POSITIVE))
    log_inverse_losses: tuple[float, ...] = setting((10.0, 1e2, 1e3, 1e4), ListOf(_POSITIVE))
    grid: int = setting(61, Integer(2))
    seed: int = setting(1, Integer(0))
    rtol: float = setting(1e-8, _POSITIVE)
    agreement: float = setting(3.0, _POSITIVE)

    def check(self) -> None:
        """Markers enough for the losses."""
        if len(self.log_inverse_losses) > _MOST_SERIES:
            raise ConfigError(
                "log_inverse_losses",
                f"must be at most {_MOST_SERIES} losses, got {list(self.log_inverse_losses)}.",
            )


@dataclasses.dataclass(frozen=True)
class SideBySideTask(Config):
    """Section 6's toy data: what each algorithm reaches in how many steps."""

    architectures: tuple[str, ...] = setting(tuple(NORMS), ListOf(OneOf(tuple(NORMS))))
    X: tuple[tuple[float, float], ...] = setting(((1.0, 2.0), (0.0, -3.0)), ListOf(_PLANE_VECTOR))
    y: tuple[float, ...] = setting((1.0, -1.0), ListOf(Number()))
    start: tuple[float, float] = setting((0.6, -0.4), _PLANE_VECTOR)
    alpha: float = setting(0.5, _POSITIVE)
    descent_step: float = setting(5e-4, _POSITIVE)
    descent_num_steps: int = setting(2_000_000, Integer(1))
    physical_time: float = setting(1e300, _POSITIVE)
    margin: float = setting(1e8, _POSITIVE)
    agreement: float = setting(1e-3, _POSITIVE)

    def check(self) -> None:
        """Separable data."""
        try:
            max_margin(problem_of(self), L2Norm())
        except (NonSeparableError, MarginPrecisionError) as error:
            raise ConfigError("X", f"must be separable by y: {error}") from None
        except ValueError as error:
            raise ConfigError("y", f"and X must fit each other: {error}") from None


@dataclasses.dataclass(frozen=True)
class Configuration(Config):
    """What is run; the paper has no figures of these."""

    theorems: TheoremsTask = table(TheoremsTask)  # noqa: RUF009
    one_sample: OneSampleTask = table(OneSampleTask)  # noqa: RUF009
    finite_loss: FiniteLossTask = table(FiniteLossTask)  # noqa: RUF009
    side_by_side: SideBySideTask = table(SideBySideTask)  # noqa: RUF009


def reduce(config: Configuration) -> tuple[Configuration, tuple[str, ...]]:
    """One shape where there are several, and less descent; the checks stay as they are."""
    notes = []

    def first(task: Any, part: str, key: str, kept: tuple) -> Any:
        values = getattr(task, key)
        fewer = tuple(value for value in values if value in kept) or values[:1]
        if fewer != values:
            words, shown, all_of = key.replace("_", " "), *map(_listed, (fewer, values))
            notes.append(f"{part}: {words} {shown} of {all_of}")
        return dataclasses.replace(task, **{key: fewer})

    theorems = first(config.theorems, "theorems", "depths", (2,))
    theorems = first(theorems, "theorems", "architectures", _QUICK_ARCHITECTURES)
    side_by_side = first(config.side_by_side, "side by side", "architectures", ("diagonal",))
    steps = min(side_by_side.descent_num_steps, _QUICK_DESCENT_STEPS)
    if steps < side_by_side.descent_num_steps:
        notes.append(
            f"side by side: {steps:,} of {side_by_side.descent_num_steps:,} steps of descent"
        )
    quick = Configuration(
        theorems=theorems,
        one_sample=first(config.one_sample, "one sample", "filter_sizes", (2,)),
        finite_loss=first(config.finite_loss, "finite loss", "depths", (2,)),
        side_by_side=dataclasses.replace(side_by_side, descent_num_steps=steps),
    )
    return quick, tuple(notes)


@dataclasses.dataclass(frozen=True)
class Result:
    """Everything that was computed."""

    config: Configuration
    reduced: tuple[str, ...]
    paths: dict[tuple[str, int], dict[str, Path]]  # by (architecture, depth), then by start
    one_sample: list[OneSampleRun]
    finite_loss: dict[int, FiniteLossRuns]
    side_by_side: list[SideBySideRow]

    def report(self) -> Report:
        """The tables and the checks of the acceptance bounds."""
        return yun2021_classification_tables.report(self)

    def figures(self) -> dict[str, Any]:
        """Errors of the direction, bounds on the loss, finite losses (needs matplotlib)."""
        from . import yun2021_classification_figures

        return yun2021_classification_figures.figures(self)


@dataclasses.dataclass(frozen=True)
class Job:
    """What shares its compiled programs: a part of the experiment at one shape."""

    part: str
    shape: tuple[Any, ...]

    def __str__(self) -> str:
        return ", ".join(map(str, (self.part, *self.shape)))


def run(
    config: Configuration,
    reduced: tuple[str, ...] = (),
    track: Callable[[Sequence[Job]], Iterable[Job]] = iter,
) -> Result:
    """Integrate, certify and predict, two shapes at a time: what takes long is to compile them.

    What is timed runs last, and alone.
    """
    toy = [Job("side by side", (name,)) for name in config.side_by_side.architectures]
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

    def outcome(job):
        compute, task = parts[job.part]
        return compute(*job.shape, task)

    found: dict[str, dict[Any, Any]] = {part: {} for part in parts}
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        pending = {job: pool.submit(outcome, job) for job in jobs}
        for job in track([*jobs, *toy]):
            found[job.part][job.shape] = pending[job].result() if job in pending else outcome(job)
    return Result(
        config,
        reduced,
        paths=found["theorems"],
        one_sample=[run for runs in found["one sample"].values() for run in runs],
        finite_loss={depth: runs for (depth,), runs in found["finite loss"].items()},
        side_by_side=[row for rows in found["side by side"].values() for row in rows],
    )


def _theorems(name, depth, task):
    problem = separable_data(task.num_samples, task.dimension, task.seed)
    like = ARCHITECTURES[name](task.dimension, depth)
    networks = starts(like, problem, task.alphas, task.ahead_loss, task.seed + 1)
    return {
        start: follow(network, problem, -task.log_inverse_loss, task.rtol)
        for start, network in networks.items()
    }


def _listed(values):
    return ", ".join(map(str, values))


def _require_ahead(task):
    if not task.ahead_loss < 1:
        raise ConfigError("ahead_loss", f"must be < 1, got {task.ahead_loss:g}; take 0.01.")


def _require_small_loss(task):
    if not 1e2 <= task.log_inverse_loss <= 1e7:
        raise ConfigError(
            "log_inverse_loss",
            f"must be in [100, 1e7] (limits are certified from there; the wall of float64 lies "
            f"beyond), got {task.log_inverse_loss:g}; the default is 1000000.0.",
        )

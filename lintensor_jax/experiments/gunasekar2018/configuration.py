"""Gunasekar, Lee, Soudry & Srebro 2018: implicit bias of linear networks, architecture by depth.

On one separable random data set, flows of fully connected, diagonal and full-length convolutional
networks are driven to their limits, which are certified (Theorems 1, 2, 2a and 4) and compared with
gradient descent. As in Figure 1, the limit of a convolution is sparse among the frequencies, that
of a diagonal network among the entries, and that of a fully connected network is the l2 maximum
margin separator whatever the depth. Induced regularisers (Lemmas 5 to 7) against the norms of the
limit networks and of random ones.
"""

import concurrent.futures
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..config import Config, ConfigError, Integer, ListOf, Number, setting
from ..theory.margins import MarginPrecisionError, NonSeparableError, max_margin
from ..theory.norms import L2Norm
from . import gunasekar2018_tables
from .gunasekar2018_runs import (
    ARCHITECTURES,
    SAVED_STEPS,
    RandomNetworks,
    Run,
    limits,
    random_networks,
    separable_data,
)
from .report import Report
from .yun2021_classification import OneOf

_POSITIVE = Number(above=0)
_QUICK_DEPTHS = (2, 4)
_QUICK_STARTS = 1


@dataclasses.dataclass(frozen=True)
class Configuration(Config):
    """What is run; the paper's data are not published."""

    architectures: tuple[str, ...] = setting(
        tuple(ARCHITECTURES), ListOf(OneOf(tuple(ARCHITECTURES)))
    )
    depths: tuple[int, ...] = setting((2, 3, 4, 5, 6), ListOf(Integer(2)))
    dimension: int = setting(16, Integer(2))
    num_samples: int = setting(8, Integer(1))
    seed: int = setting(0, Integer(0))
    starts: int = setting(5, Integer(1))
    scale: float = setting(0.5, _POSITIVE)
    margin: float = setting(1e5, _POSITIVE)
    rtol: float = setting(1e-6, _POSITIVE)
    threshold: float = setting(1e-6, _POSITIVE)
    descent_step: float = setting(1e-3, _POSITIVE)
    descent_num_steps: int = setting(100_000, Integer(1))
    descent_lag: float = setting(0.05, _POSITIVE)
    random_networks: int = setting(50, Integer(1))
    residual: float = setting(1e-10, _POSITIVE)
    agreement: float = setting(1e-8, _POSITIVE)

    def check(self) -> None:
        """Depth 2 to compare with, steps that can be saved, separable data."""
        for key in ("architectures", "depths"):
            values = getattr(self, key)
            if len(set(values)) != len(values):
                raise ConfigError(key, f"must be different values, got {list(values)}.")
        if self.descent_num_steps % SAVED_STEPS:
            raise ConfigError(
                "descent_num_steps",
                f"must be a multiple of {SAVED_STEPS}, got {self.descent_num_steps}; the default "
                "is 100000.",
            )
        if not self.threshold < 0.1:
            raise ConfigError("threshold", f"must be < 0.1, got {self.threshold:g}; take 1e-6.")
        if self.margin < 1e4:
            raise ConfigError(
                "margin", f"must be at least 1e4 to certify limits, got {self.margin:g}; take 1e5."
            )
        try:
            max_margin(separable_data(self), L2Norm())
        except (NonSeparableError, MarginPrecisionError) as error:
            raise ConfigError("num_samples", f"must give separable data: {error}") from None


def reduce(config: Configuration) -> tuple[Configuration, tuple[str, ...]]:
    """Fewer depths and starts; the checks stay as they are."""
    notes = []
    depths = tuple(L for L in config.depths if L in _QUICK_DEPTHS) or config.depths[:2]
    if depths != config.depths:
        notes.append(
            f"depths {', '.join(map(str, depths))} of {', '.join(map(str, config.depths))}"
        )
    starts = min(config.starts, _QUICK_STARTS)
    if starts < config.starts:
        notes.append(f"{starts} of {config.starts} starts")
    return dataclasses.replace(config, depths=depths, starts=starts), tuple(notes)


@dataclasses.dataclass(frozen=True)
class Result:
    """Everything that was computed, by (architecture, depth)."""

    config: Configuration
    reduced: tuple[str, ...]
    runs: dict[tuple[str, int], list[Run]]
    random: dict[tuple[str, int], RandomNetworks]

    def report(self) -> Report:
        """The tables and the checks of the acceptance bounds."""
        return gunasekar2018_tables.report(self)

    def figures(self) -> dict[str, Any]:
        """Limit directions, their sparsity, induced regularisers (needs matplotlib)."""
        from . import gunasekar2018_figures

        return gunasekar2018_figures.figures(self)


@dataclasses.dataclass(frozen=True)
class Job:
    """What shares its compiled programs."""

    architecture: str
    depth: int

    def __str__(self) -> str:
        return f"{self.architecture}, {self.depth}"


def run(
    config: Configuration,
    reduced: tuple[str, ...] = (),
    track: Callable[[Sequence[Job]], Iterable[Job]] = iter,
) -> Result:
    """Integrate, certify and compare, two shapes at a time: what takes long is to compile them."""
    jobs = [Job(name, depth) for depth in config.depths for name in config.architectures]

    def outcome(job):
        shape = (job.architecture, job.depth)
        return limits(*shape, config), random_networks(*shape, config)

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        pending = {job: pool.submit(outcome, job) for job in jobs}
        found = {(job.architecture, job.depth): pending[job].result() for job in track(list(jobs))}
    # By architecture, as the tables have it.
    shapes = [(name, depth) for name in config.architectures for depth in config.depths]
    return Result(
        config,
        reduced,
        runs={shape: found[shape][0] for shape in shapes},
        random={shape: found[shape][1] for shape in shapes},
    )

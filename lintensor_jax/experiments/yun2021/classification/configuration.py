"""The configuration of the experiment on Yun, Krishnan & Mobahi 2021, section 4."""

import dataclasses
from typing import Any

from ....config import Config, ConfigError, Integer, ListOf, Number, OneOf, setting, table
from ....theory.least_norm.max_margin import MarginPrecisionError, NonSeparableError, max_margin
from ....theory.least_norm.norms import L2Norm
from .setup import ARCHITECTURES, NORMS, problem_of

_POSITIVE = Number(above=0)
_PLANE_VECTOR = ListOf(Number(), length=2)
_MOST_SERIES = 4
_QUICK_DESCENT_STEPS = 20_000
_QUICK_ARCHITECTURES = ("fully-connected", "diagonal")


@dataclasses.dataclass(frozen=True)
class TheoremsTask(Config):
    """Theorems 1 and 2: every architecture at every depth, from every alpha and from "ahead".

    "ahead" is a start at a loss of at most `ahead_loss`.
    """

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
        """The losses are in range, and there are at most as many values as a figure has lines."""
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
        """Corollary 4 covers filters of size 1 and 2."""
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
    """Flows of u_+^D - u_-^D from alpha = (mu log(1/eps))^(1/D) to the loss eps, all mu and eps."""

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
        """A figure has a marker for each loss."""
        if len(self.log_inverse_losses) > _MOST_SERIES:
            raise ConfigError(
                "log_inverse_losses",
                f"must be at most {_MOST_SERIES} losses, got {list(self.log_inverse_losses)}.",
            )


@dataclasses.dataclass(frozen=True)
class SideBySideTask(Config):
    """Section 6's toy data: steps, loss and direction of each algorithm."""

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
        """The data are separable."""
        try:
            max_margin(problem_of(self), L2Norm())
        except (NonSeparableError, MarginPrecisionError) as error:
            raise ConfigError("X", f"must be separable by y: {error}") from None
        except ValueError as error:
            raise ConfigError("y", f"and X must fit each other: {error}") from None


@dataclasses.dataclass(frozen=True)
class Configuration(Config):
    """The four parts. The paper has no figures of them."""

    theorems: TheoremsTask = table(TheoremsTask)  # noqa: RUF009
    one_sample: OneSampleTask = table(OneSampleTask)  # noqa: RUF009
    finite_loss: FiniteLossTask = table(FiniteLossTask)  # noqa: RUF009
    side_by_side: SideBySideTask = table(SideBySideTask)  # noqa: RUF009


def reduce(config: Configuration) -> tuple[Configuration, tuple[str, ...]]:
    """Fewer architectures, depths, filter sizes and descent steps. The checks stay as they are."""
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


def _listed(values):
    return ", ".join(map(str, values))


def _require_ahead(task):
    if not task.ahead_loss < 1:
        raise ConfigError("ahead_loss", f"must be < 1, got {task.ahead_loss:g}; take 0.01.")


def _require_small_loss(task):
    if not 1e2 <= task.log_inverse_loss <= 1e7:
        raise ConfigError(
            "log_inverse_loss",
            f"must be in [100, 1e7] (limits are certified from 100 on; float64 does not resolve "
            f"much larger values), got {task.log_inverse_loss:g}; the default is 1000000.0.",
        )

"""The configuration of the experiment on Yun, Krishnan & Mobahi 2021, section 5."""

import dataclasses

import numpy as np

from ....config import Config, ConfigError, Integer, ListOf, Number, setting, table

_POSITIVE = Number(above=0)
_SCALES = ListOf(_POSITIVE)
_MOST_DEPTHS = 4
_QUICK_DEPTHS = (2, 3)
_QUICK_SCALE = 0.1


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
        """Fewer samples than dimensions, and an interval of scales."""
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
    """Theorem 7: distances to the l2 solution, which are proportional to small alpha."""

    dimension: int = setting(5, Integer(2))
    num_samples: int = setting(2, Integer(1))
    alphas: tuple[float, ...] = setting((1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0), _SCALES)
    rate_agreement: float = setting(0.1, _POSITIVE)

    def check(self) -> None:
        """Fewer samples than dimensions, and two scales for an exponent."""
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
        """Check that there are fewer sensors than a symmetric matrix has independent entries."""
        most = self.dimension * (self.dimension + 1) // 2 - 1
        if self.num_samples > most:
            raise ConfigError(
                "num_samples",
                f"must be < dimension (dimension + 1) / 2 = {most + 1}, got {self.num_samples}; "
                "the default is 5.",
            )


@dataclasses.dataclass(frozen=True)
class Configuration(Config):
    """The defaults have three depths, and scales over six decades."""

    depths: tuple[int, ...] = setting((2, 3, 4), ListOf(Integer(2)))
    seed: int = setting(6, Integer(0))
    rtol: float = setting(1e-9, _POSITIVE)
    interpolation: InterpolationTask = table(InterpolationTask)  # noqa: RUF009
    fully_connected: FullyConnectedTask = table(FullyConnectedTask)  # noqa: RUF009
    noncommuting: NoncommutingTask = table(NoncommutingTask)  # noqa: RUF009

    def check(self) -> None:
        """A figure has a line style for each depth."""
        if len(set(self.depths)) != len(self.depths) or len(self.depths) > _MOST_DEPTHS:
            raise ConfigError(
                "depths",
                f"must be at most {_MOST_DEPTHS} different depths, got {list(self.depths)}; the "
                "default is [2, 3, 4].",
            )


def reduce(config: Configuration) -> tuple[Configuration, tuple[str, ...]]:
    """Fewer depths, and no slow flows. The scales of Theorem 5 and the checks stay as they are."""
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


def _require_underdetermined(task):
    if task.num_samples >= task.dimension:
        raise ConfigError(
            "num_samples",
            f"must be < dimension = {task.dimension}, got {task.num_samples}; with only one "
            "solution, there is nothing to choose.",
        )


def _listed(values):
    return ", ".join(f"{value:g}" for value in values)

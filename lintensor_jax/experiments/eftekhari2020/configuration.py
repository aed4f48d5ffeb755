"""The configuration of the experiment on Eftekhari 2020."""

import dataclasses
from typing import Any

from ...config import Config, ConfigError, Integer, ListOf, Number, setting, table

_POSITIVE = Number(above=0)
_MOST_DEPTHS = 5
_QUICK_STARTS = 15


@dataclasses.dataclass(frozen=True)
class FigureTask(Config):
    """The data of Figure 1; `end_time` covers more than the paper's 1e5 steps of 1e-6."""

    num_samples: int = setting(50, Integer(1))
    dimension: int = setting(5, Integer(2))
    degrees: float = setting(30.0, _POSITIVE)
    length: float = setting(10.0, _POSITIVE)
    depths: tuple[int, ...] = setting((2, 3, 5, 10), ListOf(Integer(2)))
    end_time: float = setting(1.0, _POSITIVE)

    def check(self) -> None:
        """Check the number of samples, the angle, and that there is a colour for each depth."""
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
        """Check that the data can be whitened."""
        _require_more_samples(self)


@dataclasses.dataclass(frozen=True)
class NearbyTask(Config):
    """The nearby rates: s_Z below, at and above 1, with one output and with several."""

    num_samples: int = setting(20, Integer(1))
    dimension: int = setting(4, Integer(2))
    outputs: int = setting(3, Integer(2))
    depths: tuple[int, ...] = setting(tuple(range(2, 11)), ListOf(Integer(2)))
    sizes: tuple[float, ...] = setting((0.3, 1.0, 3.0), ListOf(_POSITIVE))
    gap: float = setting(0.5, _POSITIVE)
    agreement: float = setting(1e-3, _POSITIVE)

    def check(self) -> None:
        """Check that the data can be whitened and that there is a spectral gap."""
        _require_more_samples(self)
        if self.gap >= 1:
            raise ConfigError("gap", f"must be < 1, got {self.gap:g}; the default is 0.5.")


@dataclasses.dataclass(frozen=True)
class Configuration(Config):
    """The paper's figure, 300 flows for Theorem 20 and 54 for the nearby rates."""

    seed: int = setting(0, Integer(0))
    rtol: float = setting(1e-11, _POSITIVE)
    agreement: float = setting(1e-8, _POSITIVE)
    figure: FigureTask = table(FigureTask)  # noqa: RUF009
    bound: BoundTask = table(BoundTask)  # noqa: RUF009
    nearby: NearbyTask = table(NearbyTask)  # noqa: RUF009


def reduce(config: Configuration) -> tuple[Configuration, tuple[str, ...]]:
    """Fewer depths, because each depth compiles its own programs; the checks are the same."""
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


def _require_more_samples(task):
    if task.num_samples < task.dimension:
        raise ConfigError(
            "num_samples",
            f"must be >= dimension = {task.dimension}, got {task.num_samples}; fewer samples "
            "cannot be whitened.",
        )

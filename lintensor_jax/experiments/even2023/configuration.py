"""The configuration of the experiment on Even et al. 2023."""

import dataclasses

from ...config import Config, ConfigError, Integer, Number, setting, table
from ..sparse_regression.configuration import Data

_QUICK_PROBLEMS = 3


@dataclasses.dataclass(frozen=True)
class Steps(Config):
    """A geometric sequence of steps, as multiples of the full gradient; the largest diverge."""

    smallest: float = setting(0.02, Number(above=0))
    largest: float = setting(1.0, Number(above=0))
    count: int = setting(20, Integer(3))

    def check(self) -> None:
        """Check that `smallest` is less than `largest`."""
        if self.largest <= self.smallest:
            raise ConfigError(
                "largest", f"must be > smallest = {self.smallest:g}, got {self.largest:g}."
            )


@dataclasses.dataclass(frozen=True)
class StochasticSteps(Steps):
    """Step sizes for batches of `batch_size` samples; each size runs with `runs` random keys."""

    smallest: float = setting(0.006, Number(above=0))
    largest: float = setting(0.1, Number(above=0))
    batch_size: int = setting(1, Integer(1))
    runs: int = setting(4, Integer(1))


@dataclasses.dataclass(frozen=True)
class Configuration(Config):
    """Descent with the full gradient and with mini-batches, with steps from small to diverging."""

    seed: int = setting(2023, Integer(0))
    problems: int = setting(8, Integer(1))
    num_steps: int = setting(40_000, Integer(2))
    data: Data = table(Data)  # noqa: RUF009
    full: Steps = table(Steps)  # noqa: RUF009
    stochastic: StochasticSteps = table(StochasticSteps)  # noqa: RUF009

    def check(self) -> None:
        """Check the size of a batch."""
        if self.stochastic.batch_size > self.data.num_samples:
            raise ConfigError(
                "stochastic.batch_size",
                f"must be <= data.num_samples = {self.data.num_samples}, got "
                f"{self.stochastic.batch_size}; lower it.",
            )


def reduce(config: Configuration) -> tuple[Configuration, tuple[str, ...]]:
    """Fewer problems; the checks are the same."""
    problems = min(config.problems, _QUICK_PROBLEMS)
    if problems == config.problems:
        return config, ()
    note = f"{problems} problems instead of {config.problems}"
    return dataclasses.replace(config, problems=problems), (note,)

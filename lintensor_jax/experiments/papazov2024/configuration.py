"""The configuration of the experiment on Papazov et al. 2024."""

import dataclasses

from ...config import Config, ConfigError, Integer, ListOf, Number, setting, table
from ..sparse_regression.configuration import Data

_QUICK_PROBLEMS = 3


@dataclasses.dataclass(frozen=True)
class Momentum(Config):
    """Gradient descent with momenta beta and steps gamma of one mass gamma/(1 - beta)^2.

    - `duration`: of each run, in physical time; one step takes the time gamma/(1 - beta).
    """

    mass: float = setting(0.4, Number(above=0))
    momenta: tuple[float, ...] = setting((0.5, 0.75, 0.875, 0.9375), ListOf(Number(at_least=0)))
    duration: float = setting(2000.0, Number(above=0))

    def check(self) -> None:
        """Check that there are at least two momenta, ascending and below 1."""
        momenta = list(self.momenta)
        if momenta != sorted(set(momenta)) or len(momenta) < 2 or momenta[-1] >= 1:
            raise ConfigError(
                "momenta", f"must be two or more ascending numbers < 1, got {momenta}."
            )


@dataclasses.dataclass(frozen=True)
class Configuration(Config):
    """Heavy-ball flows of several masses lambda from rest, and descent with momentum."""

    seed: int = setting(2024, Integer(0))
    problems: int = setting(8, Integer(1))
    masses: tuple[float, ...] = setting(
        (0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2), ListOf(Number(above=0))
    )
    data: Data = table(Data)  # noqa: RUF009
    momentum: Momentum = table(Momentum)  # noqa: RUF009

    def check(self) -> None:
        """Check that the masses are ascending."""
        if list(self.masses) != sorted(set(self.masses)):
            raise ConfigError("masses", f"must be ascending, got {list(self.masses)}; sort them.")


def reduce(config: Configuration) -> tuple[Configuration, tuple[str, ...]]:
    """Fewer problems; the checks are the same."""
    problems = min(config.problems, _QUICK_PROBLEMS)
    if problems == config.problems:
        return config, ()
    note = f"{problems} problems instead of {config.problems}"
    return dataclasses.replace(config, problems=problems), (note,)

"""The configuration of the experiment on Pesme et al. 2021."""

import dataclasses

from ...config import Config, ConfigError, Integer, ListOf, Number, setting, table
from ..sparse_regression.configuration import Data

_MOST_LINES = 6
_QUICK_PROBLEMS, _QUICK_PATHS = 2, 8


@dataclasses.dataclass(frozen=True)
class Configuration(Config):
    """Stochastic gradient flows of several noises, on several problems.

    - `noises`: s^2 divided by the loss; descent with steps gamma on single samples has 2 gamma.
    - `paths`: the number of paths for each noise and problem.
    - `share`: the step, divided by the largest stable step of the flow without noise.
    """

    seed: int = setting(2021, Integer(0))
    problems: int = setting(10, Integer(1))
    paths: int = setting(16, Integer(2))
    noises: tuple[float, ...] = setting((0.05, 0.1, 0.2, 0.4), ListOf(Number(above=0)))
    share: float = setting(0.25, Number(above=0))
    max_steps: int = setting(40_000, Integer(1))
    num_times: int = setting(60, Integer(2))
    data: Data = table(Data)  # noqa: RUF009

    def check(self) -> None:
        """Check that there is a colour for each noise."""
        if len(set(self.noises)) != len(self.noises) or len(self.noises) > _MOST_LINES:
            raise ConfigError(
                "noises",
                f"must be at most {_MOST_LINES} different numbers, got {list(self.noises)}; drop "
                "some.",
            )


def reduce(config: Configuration) -> tuple[Configuration, tuple[str, ...]]:
    """Fewer problems and paths; the checks are the same."""
    problems, paths = min(config.problems, _QUICK_PROBLEMS), min(config.paths, _QUICK_PATHS)
    if (problems, paths) == (config.problems, config.paths):
        return config, ()
    note = (
        f"{problems} problems with {paths} paths of each noise instead of {config.problems} with "
        f"{config.paths}"
    )
    return dataclasses.replace(config, problems=problems, paths=paths), (note,)

"""The configuration of the experiment on Pesme & Flammarion 2023."""

import dataclasses

from ...config import Config, ConfigError, Integer, ListOf, setting

_MOST_LINES = 6


@dataclasses.dataclass(frozen=True)
class Configuration(Config):
    """Flows from smaller and smaller starts, alpha = 10^-digits, on one Gaussian problem."""

    seed: int = setting(7, Integer(0))
    num_samples: int = setting(5, Integer(1))
    dimension: int = setting(12, Integer(2))
    digits: tuple[int, ...] = setting((3, 20, 70, 140), ListOf(Integer(1, 140)))

    def check(self) -> None:
        """Check that the scales fall, and that there is a colour for each."""
        digits = self.digits
        if list(digits) != sorted(set(digits)) or not 2 <= len(digits) <= _MOST_LINES:
            raise ConfigError(
                "digits",
                f"must be 2 to {_MOST_LINES} ascending whole numbers, got {list(digits)}.",
            )


def reduce(config: Configuration) -> tuple[Configuration, tuple[str, ...]]:
    """Nothing is left out: the run takes seconds."""
    return config, ()

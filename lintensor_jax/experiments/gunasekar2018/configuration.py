"""The configuration of the experiment on Gunasekar et al. 2018."""

import dataclasses

from ...config import Config, ConfigError, Integer, ListOf, Number, OneOf, setting
from ...theory.least_norm.max_margin import MarginPrecisionError, NonSeparableError, max_margin
from ...theory.least_norm.norms import L2Norm
from .setup import ARCHITECTURES, SAVED_STEPS, separable_data

_POSITIVE = Number(above=0)
_QUICK_DEPTHS = (2, 4)
_QUICK_STARTS = 1


@dataclasses.dataclass(frozen=True)
class Configuration(Config):
    """Random data and starts, because the paper's data are not published."""

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
        """Check that values differ, that steps can be saved, and that the data are separable."""
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
    """Fewer depths and starts; the checks are the same."""
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

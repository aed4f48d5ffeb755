"""The configuration of the experiment on Min et al. 2021."""

import dataclasses

import numpy as np

from ...config import Config, ConfigError, Integer, ListOf, Number, setting, table

_POSITIVE = Number(above=0)
_MOST_LINES = 6
_QUICK_WIDTHS = 5000


@dataclasses.dataclass(frozen=True)
class RateTask(Config):
    """Figures 2, 4 and 5: 1/2 |Y - U V^T / sqrt(m h)|_F^2, U (inputs, h) and V (outputs, h)."""

    inputs: int = setting(20, Integer(1))
    outputs: int = setting(10, Integer(1))
    spectrum_outputs: tuple[int, ...] = setting((5, 10), ListOf(Integer(1)))
    spectrum_widths: tuple[int, ...] = setting((30, 1000), ListOf(Integer(1)))
    widths: tuple[int, ...] = setting((30, 100, 300, 1000), ListOf(Integer(1)))
    duration: float = setting(60.0, _POSITIVE)

    def check(self) -> None:
        """Check the number of widths (each has a colour) and that the theory holds for each."""
        if len(set(self.widths)) > _MOST_LINES:
            raise ConfigError(
                "widths", f"must be at most {_MOST_LINES}, got {list(self.widths)}; drop some."
            )
        for key, least in (
            ("widths", min(self.inputs, self.outputs)),
            ("spectrum_widths", min(self.inputs, *self.spectrum_outputs)),
        ):
            narrow = [width for width in getattr(self, key) if width < least]
            if narrow:
                raise ConfigError(
                    key, f"must be >= min(inputs, outputs) = {least}, got {narrow[0]}; widen it."
                )


@dataclasses.dataclass(frozen=True)
class ImbalanceTask(Config):
    """Figures 3 and 6: d = dimension inputs, one output, all singular values of X equal to 1."""

    dimension: int = setting(500, Integer(2))
    num_samples: int = setting(100, Integer(1))
    width: int = setting(500, Integer(1))
    first_scales: tuple[float, ...] = setting((0.1, 0.5, 0.05), ListOf(_POSITIVE))
    last_scales: tuple[float, ...] = setting((0.1, 0.02, 0.2), ListOf(_POSITIVE))
    duration: float = setting(1.5, _POSITIVE)

    def check(self) -> None:
        """Check the number of samples, and that all pairs of scales have the same product."""
        _require_underdetermined(self)
        first, last = self.first_scales, self.last_scales
        if len(first) != len(last) or np.ptp(np.log(np.multiply(first, last))) > 1e-9:
            raise ConfigError(
                "last_scales",
                f"must have the same product with first_scales = {list(first)} everywhere, got "
                f"{list(last)}; then all starts have one end-to-end matrix.",
            )


@dataclasses.dataclass(frozen=True)
class WidthTask(Config):
    """Figure 7: entries from N(0, h^(-2 exponent)), one output."""

    dimension: int = setting(500, Integer(2))
    num_samples: int = setting(100, Integer(1))
    widths: tuple[int, ...] = setting((500, 1000, 2000, 3000, 5000, 10_000), ListOf(Integer(1)))
    runs: int = setting(5, Integer(2))
    exponent: float = setting(0.5, Number(above=0.25))

    def check(self) -> None:
        """Check the number of samples, and that there are enough widths for a slope."""
        _require_underdetermined(self)
        if len(set(self.widths)) < 2:
            raise ConfigError(
                "widths", f"must hold two different widths, got {list(self.widths)}; add one."
            )
        if self.exponent > 0.5:
            raise ConfigError(
                "exponent",
                f"must be <= 0.5 (Theorem 12), got {self.exponent:g}; the default is 0.5.",
            )


@dataclasses.dataclass(frozen=True)
class Configuration(Config):
    """The setup of the paper's figures."""

    seed: int = setting(2021, Integer(0))
    rtol: float = setting(1e-10, _POSITIVE)
    num_times: int = setting(61, Integer(2))
    rates: RateTask = table(RateTask)  # noqa: RUF009
    imbalance: ImbalanceTask = table(ImbalanceTask)  # noqa: RUF009
    width: WidthTask = table(WidthTask)  # noqa: RUF009


def reduce(config: Configuration) -> tuple[Configuration, tuple[str, ...]]:
    """Figure 7 without its widest networks; nothing else changes, and the checks are the same."""
    task = config.width
    kept = tuple(width for width in task.widths if width <= _QUICK_WIDTHS)
    if kept == task.widths or len(set(kept)) < 2:
        return config, ()
    note = f"Figure 7: widths up to {max(kept)} instead of {max(task.widths)}"
    return dataclasses.replace(config, width=dataclasses.replace(task, widths=kept)), (note,)


def _require_underdetermined(task):
    if task.num_samples >= task.dimension:
        raise ConfigError(
            "num_samples",
            f"must be < dimension = {task.dimension}, got {task.num_samples}; with only one "
            "solution, nothing depends on the start.",
        )

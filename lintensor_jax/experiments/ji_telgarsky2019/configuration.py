"""The configuration of the experiment on Ji & Telgarsky 2019."""

import dataclasses

from ...config import Config, ConfigError, Integer, Number, setting, table
from .images import ImagesTask

_QUICK_STARTS, _QUICK_DESCENT_STEPS, _QUICK_EPOCHS = 1, 20_000, 6


@dataclasses.dataclass(frozen=True)
class FlowTask(Config):
    """Flows stop at `margin`; their direction must be within `agreement` of the maximum margin."""

    margin: float = setting(1e6, Number(above=0))
    rtol: float = setting(1e-9, Number(above=0))
    agreement: float = setting(1e-6, Number(above=0))
    drift: float = setting(1e-7, Number(above=0))


@dataclasses.dataclass(frozen=True)
class DescentTask(Config):
    """The step sizes of Assumption 3.5, and constant step sizes for comparison in Figure 1."""

    growth: float = setting(1.1, Number(above=0))
    constant_step: float = setting(0.1, Number(above=0))
    num_steps: int = setting(500_000, Integer(1))

    def check(self) -> None:
        """Check that R_t - 1 is at least the largest norm of a layer."""
        if self.growth < 1:
            raise ConfigError("growth", f"must be at least 1, got {self.growth:g}; try 1.1.")


@dataclasses.dataclass(frozen=True)
class Configuration(Config):
    """Figure 1: networks with `depth` layers; Figure 2: `circles_depth`; `width`: hidden units."""

    depth: int = setting(4, Integer(2))
    circles_depth: int = setting(3, Integer(2))
    width: int = setting(4, Integer(1))
    scale: float = setting(0.4, Number(above=0))
    num_starts: int = setting(4, Integer(1))
    num_samples: int = setting(60, Integer(4))
    seed: int = setting(2019, Integer(0))
    flow: FlowTask = table(FlowTask)  # noqa: RUF009
    descent: DescentTask = table(DescentTask)  # noqa: RUF009
    images: ImagesTask = table(ImagesTask)  # noqa: RUF009

    def check(self) -> None:
        """Both labels have the same number of samples."""
        if self.num_samples % 2:
            raise ConfigError("num_samples", f"must be even, got {self.num_samples}; add one.")


def reduce(config: Configuration) -> tuple[Configuration, tuple[str, ...]]:
    """Fewer starts, descent steps and epochs. The flows stop at the same margin; checks stay."""
    starts = min(config.num_starts, _QUICK_STARTS)
    steps = min(config.descent.num_steps, _QUICK_DESCENT_STEPS)
    epochs = min(config.images.num_epochs, _QUICK_EPOCHS)
    quick = dataclasses.replace(
        config,
        num_starts=starts,
        descent=dataclasses.replace(config.descent, num_steps=steps),
        images=dataclasses.replace(config.images, num_epochs=epochs),
    )
    if quick == config:
        return config, ()
    return quick, (
        f"{starts} of {config.num_starts} starts, {steps:,} of {config.descent.num_steps:,} "
        f"descent steps, {epochs} of {config.images.num_epochs} epochs on images",
    )

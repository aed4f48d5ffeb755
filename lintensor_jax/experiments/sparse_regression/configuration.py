"""The settings that the experiments on sparse regression share."""

import dataclasses

from ...config import Config, ConfigError, Integer, Number, setting


@dataclasses.dataclass(frozen=True)
class Data(Config):
    """Measurements of a sparse vector, and the scale of the start (mu = scale^2)."""

    num_samples: int = setting(10, Integer(2))
    dimension: int = setting(30, Integer(3))
    support: int = setting(2, Integer(1))
    scale: float = setting(0.3, Number(above=0))

    def check(self) -> None:
        """Check that there are many solutions, and that the support fits the dimension."""
        if self.num_samples >= self.dimension:
            raise ConfigError(
                "num_samples",
                f"must be < dimension = {self.dimension}, got {self.num_samples}; with "
                "only one solution, nothing depends on the training.",
            )
        if self.support > self.dimension:
            raise ConfigError(
                "support", f"must be <= dimension = {self.dimension}, got {self.support}; lower it."
            )

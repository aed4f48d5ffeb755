"""The configuration of Figures 1 and 3 of Yun, Krishnan & Mobahi 2021."""

import dataclasses

from ....config import Config, ConfigError, Integer, ListOf, Number, setting, table

_QUICK_DESCENT_STEPS = 20_000
_POSITIVE = Number(above=0)
_PLANE_VECTOR = ListOf(Number(), length=2)


@dataclasses.dataclass(frozen=True)
class RegressionTask(Config):
    """One sample, as in Theorem 6. The flow's limit must agree with it to within `agreement`."""

    x: tuple[float, float] = setting((1.0, 2.0), _PLANE_VECTOR)
    y: float = setting(1.0, Number())
    rtol: float = setting(1e-10, _POSITIVE)
    residual: float = setting(1e-9, _POSITIVE)
    agreement: float = setting(1e-8, _POSITIVE)
    descent_step: float = setting(1e-3, _POSITIVE)
    descent_num_steps: int = setting(5_000, Integer(1))

    def check(self) -> None:
        """The sample is not zero."""
        if self.x == (0.0, 0.0):
            raise ConfigError("x", "must not be zero, got [0.0, 0.0]; the default is [1.0, 2.0].")


@dataclasses.dataclass(frozen=True)
class ClassificationTask(Config):
    """Separable samples. At `margin` the direction must be within `agreement` of its limit."""

    X: tuple[tuple[float, float], ...] = setting(((1.0, 2.0), (0.0, -3.0)), ListOf(_PLANE_VECTOR))
    y: tuple[float, ...] = setting((1.0, -1.0), ListOf(Number()))
    rtol: float = setting(1e-8, _POSITIVE)
    margin: float = setting(1e8, _POSITIVE)
    agreement: float = setting(1e-3, _POSITIVE)
    step_budget: int = setting(200, Integer(1))
    paper_loss: float = setting(1e-5, _POSITIVE)
    descent_step: float = setting(5e-4, _POSITIVE)
    descent_num_steps: int = setting(2_000_000, Integer(1))

    def check(self) -> None:
        """Every sample has one label, -1 or +1."""
        if len(self.y) != len(self.X):
            raise ConfigError(
                "y",
                f"must have one label per row of X ({len(self.X)}), got {len(self.y)}; "
                "add or remove labels.",
            )
        for index, label in enumerate(self.y):
            if label not in (-1.0, 1.0):
                raise ConfigError(f"y[{index}]", f"must be -1 or 1, got {label!r}; recode it.")


@dataclasses.dataclass(frozen=True)
class Configuration(Config):
    """The defaults are the paper's setup."""

    alphas: tuple[float, ...] = setting((0.01, 0.5, 1.0), ListOf(_POSITIVE))
    num_directions: int = setting(4, Integer(1))
    seed: int = setting(367, Integer(0))
    regression: RegressionTask = table(RegressionTask)  # noqa: RUF009
    classification: ClassificationTask = table(ClassificationTask)  # noqa: RUF009


def reduce(config: Configuration) -> tuple[Configuration, tuple[str, ...]]:
    """Fewer steps of gradient descent on classification. All other parts stay as they are."""
    task = config.classification
    if task.descent_num_steps <= _QUICK_DESCENT_STEPS:
        return config, ()
    quick = dataclasses.replace(task, descent_num_steps=_QUICK_DESCENT_STEPS)
    note = (
        f"gradient descent on classification takes {_QUICK_DESCENT_STEPS:,} instead of "
        f"{task.descent_num_steps:,} steps, so that it ends at a larger loss"
    )
    return dataclasses.replace(config, classification=quick), (note,)

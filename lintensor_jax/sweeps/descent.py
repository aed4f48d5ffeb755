"""Sweeps of descents: gradient descent as the run of a lane, in place of a gradient flow."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..dynamics.descent.descent_solution import DescentSolution
from ..dynamics.descent.gradient_descent import gradient_descent
from ..messages import in_words
from ..networks.effective_start import EffectiveStart, two_layers_of
from .grid import Cell, Point

#: The static field `theorem` of effective starts in sweeps, whose pytrees must have equal fields.
_NO_THEOREM = "shapes only"


@dataclasses.dataclass(frozen=True)
class Descent:
    """Gradient descent with constant steps, with or without momentum, batches and label noise.

    If a setting is a str, it names an axis of the grid: each lane has its value of that axis. The
    random numbers of a lane depend on the seed of the grid and on the lane's index only.

    - `num_steps`: the number of steps of every lane.
    - `step_size`: the factor of the gradient of the summed loss.
    - `batch_size`: the number of samples of a step; None means all. An axis of batch sizes needs
      `changes_shape=True`.
    - `replacement`, `label_noise`: as in `gradient_descent`.
    - `momentum`: that of the heavy-ball method, in [0, 1).
    """

    num_steps: int
    step_size: float | str
    batch_size: int | str | None = None
    replacement: bool = False
    label_noise: float | str | None = None
    momentum: float | str | None = None

    def __post_init__(self):
        count: Any = self.num_steps
        is_int = isinstance(count, int | np.integer) and not isinstance(count, bool)
        if not is_int or count < 1:
            raise ValueError(
                f"Descent: num_steps must be a positive int, got {in_words(self.num_steps)}; pass "
                "e.g. 1000."
            )
        for name in ("step_size", "label_noise", "momentum"):
            value: Any = getattr(self, name)
            fits = isinstance(value, str) or (value is None and name != "step_size")
            below, words = (1, "in [0, 1)") if name == "momentum" else (np.inf, ">= 0 and finite")
            if isinstance(value, int | float) and not isinstance(value, bool):
                fits = 0 <= value < below
            if fits:
                continue
            raise ValueError(
                f"Descent: {name} must be a number {words} or the name of an axis, got "
                f"{in_words(value)}; pass e.g. 0.01, or the axis's name."
            )

    @property
    def is_random(self) -> bool:
        """Whether a step uses random numbers."""
        return self.batch_size is not None or self.label_noise is not None

    def run(self, network: Any, problem: Any, point: Point) -> DescentSolution:
        """The descent of one lane, under `jax.jit` or `jax.eval_shape`."""
        step, momentum, noise, batch = (
            self._at(point, name) for name in ("step_size", "momentum", "label_noise", "batch_size")
        )
        return gradient_descent(
            network,
            problem,
            optax.sgd(step, momentum),
            int(self.num_steps),
            batch_size=batch,
            replacement=self.replacement,
            label_noise=noise,
            key=jax.random.fold_in(point.key, 0) if self.is_random else None,
        )

    def time(self, point: Point) -> Any:
        """The physical time of all steps: num_steps * step_size / (1 - momentum)."""
        momentum = 0.0 if self.momentum is None else self._at(point, "momentum")
        return self.num_steps * self._at(point, "step_size") / (1 - momentum)

    def check(self, cell: Cell) -> None:
        """Raise a ValueError if a lane of this cell could not run; only shapes are checked."""
        names = [axis.name for axis in cell.grid.leaf_axes]
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, str) and value not in names:
                raise ValueError(
                    f"descent: {field.name} must be a number or the name of an axis, got "
                    f"{value!r}; the axes are {', '.join(names)}."
                )
        network, problem = cell.example()
        point = cell.point(*cell.arguments(np.asarray([cell.first_lane]), one=True))
        jax.eval_shape(lambda: self.run(network, problem, point).coefficients)

    def _at(self, point: Point, name: str) -> Any:
        value = getattr(self, name)
        return point[value] if isinstance(value, str) else value


def example_start(network: Any) -> EffectiveStart | None:
    """An effective start with the shapes of that of a descent; None if descents have none."""
    layers = two_layers_of(network)
    if layers is None:
        return None
    return EffectiveStart(layers.S, layers.log_scale, layers.angle, _NO_THEOREM)


def start_of(solution: DescentSolution) -> EffectiveStart | None:
    """The effective start of a run, without the field `measured`."""
    start = solution.effective_start
    if start is None:
        return None
    return EffectiveStart(start.S, start.log_scale, start.angle, _NO_THEOREM)


def parameter_norm(parameters: Any) -> jax.Array:
    """log |Theta|, a scalar, where `parameters` is a pytree of arrays."""
    squares = [jnp.sum(leaf**2) for leaf in jax.tree.leaves(parameters)]
    return 0.5 * jnp.log(jnp.sum(jnp.stack(squares)))

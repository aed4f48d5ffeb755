"""Weight decay: a problem with a penalty on the squared norm of the parameters."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Scalar

from .messages import in_words
from .problems import AbstractProblem


class Penalized(AbstractProblem):
    """`problem` with weight decay: flows minimise its loss + weight_decay / 2 |Theta|^2.

    `gradient_flow(..., weight_decay=...)` makes this object from its problem. Make it yourself for
    a sweep over the weight decay: ``Grid(axes, start, lambda point: lt.Penalized(problem,
    point.weight_decay))``. Losses, margins, residuals and all other attributes are those of
    `problem`, without the penalty.

    **Arguments**

    - `problem`: any problem without weight decay.
    - `weight_decay`: lambda >= 0; for a batch of problems an array with their leading axes.
    """

    problem: AbstractProblem
    weight_decay: Float[Array, "..."]

    def __init__(self, problem: AbstractProblem, weight_decay: float | Scalar):
        if not isinstance(problem, AbstractProblem) or isinstance(problem, Penalized):
            raise ValueError(
                "Penalized: problem must be a problem without weight decay, such as "
                f"lintensor_jax.Regression(X, y), got {in_words(problem)}."
            )
        self.problem = problem
        self.weight_decay = _decay(weight_decay, problem)

    def __getattr__(self, name: str) -> Any:
        """The attribute `name` of `problem`."""
        if name.startswith("__") or name in ("problem", "weight_decay"):
            raise AttributeError(name)
        return getattr(self.problem, name)

    @property
    def has_margins(self) -> bool:
        """As for `problem`, without the weight decay."""
        return self.problem.has_margins

    @property
    def has_residuals(self) -> bool:
        """As for `problem`, without the weight decay."""
        return self.problem.has_residuals

    @property
    def has_squared_loss(self) -> bool:
        """As for `problem`, without the weight decay."""
        return self.problem.has_squared_loss

    @property
    def has_bias(self) -> bool:
        """As for `problem`, without the weight decay."""
        return self.problem.has_bias

    def with_bias(self) -> "Penalized":
        """`problem` with a bias, and the same weight decay."""
        return Penalized(self.problem.with_bias(), self.weight_decay)

    @property
    def in_words(self) -> str:
        """The problem, with weight decay."""
        return f"{self.problem.in_words} with weight decay"

    @property
    def coefficient_shape(self) -> tuple[int, ...]:
        """As for `problem`, without the weight decay."""
        return self.problem.coefficient_shape

    def predictions(self, beta: Float[Array, "..."]) -> Float[Array, "..."]:
        """As for `problem`, without the weight decay."""
        return self.problem.predictions(beta)

    def adjoint(self, values: Float[Array, "..."]) -> Float[Array, "..."]:
        """As for `problem`, without the weight decay."""
        return self.problem.adjoint(values)

    def residual(self, beta: Float[Array, "..."]) -> Float[Array, "..."]:
        """As for `problem`, without the weight decay."""
        return self.problem.residual(beta)

    def loss(self, beta: Float[Array, "..."]) -> Float[Array, ""]:
        """As `problem`: without the penalty."""
        return self.problem.loss(beta)

    def log_loss(self, beta: Float[Array, "..."]) -> Float[Array, ""]:
        """As `problem`: without the penalty."""
        return self.problem.log_loss(beta)


def with_weight_decay(problem: AbstractProblem, weight_decay: Any) -> AbstractProblem:
    """`problem` itself for None or 0, else `Penalized(problem, weight_decay)`."""
    is_zero = isinstance(weight_decay, int | float) and weight_decay == 0
    return problem if weight_decay is None or is_zero else Penalized(problem, weight_decay)


def weight_decay_of(problem: AbstractProblem) -> Scalar | None:
    """The weight decay of a problem; None for a problem without weight decay."""
    return problem.weight_decay if isinstance(problem, Penalized) else None


def velocity_with_decay(
    problem: AbstractProblem, velocity: Array, counted: Callable[[], Array]
) -> Array:
    """dtheta/dt with the weight decay of the problem: velocity - lambda counted().

    `counted()` is theta with zeros in place of a bias, which has no weight decay.
    """
    decay = weight_decay_of(problem)
    return velocity if decay is None else velocity - decay * counted()


def require_no_decay(
    problem: AbstractProblem, owner: str, instead: str = "use gradient_flow"
) -> None:
    """ValueError for a problem with weight decay, for functions that do not support it."""
    if isinstance(problem, Penalized):
        raise ValueError(
            f"problem: {owner} knows no problem with weight decay, got {problem.in_words}; "
            f"{instead}."
        )


def require_no_negative_decay(problems: AbstractProblem) -> None:
    """ValueError for a negative concrete weight decay, of one problem or of a batch."""
    if isinstance(problems, Penalized):
        _decay(np.asarray(problems.weight_decay), problems.problem)


def _decay(value: Any, problem: Any) -> Any:
    if isinstance(value, Tracer):
        return value
    dtype = getattr(getattr(problem, "y", None), "dtype", None)
    try:
        array = np.asarray(value, dtype if dtype is not None else float)
    except (TypeError, ValueError):
        array = np.asarray(np.nan)
    if not (np.isfinite(array).all() and (array >= 0).all()):
        raise ValueError(
            f"weight_decay: must be finite and not negative, got {in_words(value)}; 0 turns it off."
        )
    return jnp.asarray(array)

"""The observable of descents on two layers: the exact limit, from sums along each lane's run."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ...networks.effective_start import two_layers_of
from ...problems import AbstractProblem
from ...theory.regression.other_mirror_maps import project
from .base import COEFFICIENT, AbstractObservable, Ending, Variable, refuse


class EffectiveLimit(AbstractObservable):
    """Descents on two layers: the limit from the effective start, and the distance of the end.

    `lintensor_jax.effective_limit` states the assumptions. A lane that fits the data (small
    `effective_residual`) ends at this limit. Source: Even et al. 2023.
    """

    @property
    def variables(self) -> tuple[Variable, ...]:
        """The variables `effective_limit`, `distance_to_effective_limit`, `effective_residual`."""
        limit = "Bregman projection of the effective start: the limit of a descent that fits"
        distance = "largest entry of the end minus the effective limit"
        residual = "|X beta - y| / |y| at the end"
        return (
            Variable("effective_limit", COEFFICIENT, "y/x", limit),
            Variable("distance_to_effective_limit", (), "y/x", distance),
            Variable("effective_residual", (), "1", residual),
        )

    def measure(self, end: Ending) -> tuple[Array, ...]:
        """The limit (the shape of beta), the distance and the residual."""
        start: Any = end.effective_start
        problem = end.problem
        if start is None:
            refuse("EffectiveLimit", "is for descents of two layers", "a flow", "Limit()")
        y: Any = problem.y  # pyright: ignore[reportAttributeAccessIssue]
        rows = jax.vmap(lambda unit: jnp.ravel(problem.adjoint(unit)))(
            jnp.eye(y.size, dtype=y.dtype)
        )
        found = project(start.S, rows, y, start.log_scale, start.coefficients)
        limit = found.coefficients.reshape(end.coefficients.shape)
        distance = jnp.max(jnp.abs(end.coefficients - limit))
        residual = jnp.linalg.norm(problem.residual(end.coefficients)) / jnp.linalg.norm(y)
        return limit, distance, residual

    def check(self, network: Any, problem: AbstractProblem) -> None:
        """Raises a ValueError unless it is a regression on two layers, with at most d samples."""
        y: Any = getattr(problem, "y", None)
        plain = problem.has_residuals and problem.has_squared_loss and np.ndim(y) == 1
        if not plain or y.shape[0] > np.prod(problem.coefficient_shape):
            refuse(
                "EffectiveLimit",
                "is for a Regression with the squared loss and y of shape (n,), n <= d",
                type(problem).__name__,
                "Limit()",
            )
        if two_layers_of(network) is None:
            refuse(
                "EffectiveLimit",
                "is for two layers with a real decomposition",
                type(network).__name__,
                "Limit()",
            )

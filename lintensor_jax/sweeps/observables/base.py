"""What an observable is: a function of a flow's end, with names, units and words."""

import abc
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Scalar

from ...problems import AbstractProblem

COEFFICIENT = ("coefficient", "output")


class Ending(NamedTuple):
    """One lane's flow at its end; what observables are functions of.

    `network` is the final network, `unfinished_network` the one before the finish, `initial` the
    start. The others are as in `FlowSolution`, at the end; `log_margin` is None for regression.
    """

    initial: Any
    network: Any
    unfinished_network: Any
    problem: AbstractProblem
    coefficients: Float[Array, "..."]
    log_loss: Scalar
    log_time: Scalar
    log_norm: Scalar
    log_margin: Scalar | None
    invariant_drift: Scalar


class Variable(NamedTuple):
    """A variable of the results: `dims` are those beyond the grid's own.

    An array with fewer axes than `dims` uses the first of them. `flags` are the words that whole
    numbers 0, 1, ... stand for.
    """

    name: str
    dims: tuple[str, ...]
    units: str
    description: str
    flags: tuple[str, ...] = ()


class AbstractObservable(eqx.Module):
    """Something recorded of every lane."""

    @property
    @abc.abstractmethod
    def variables(self) -> tuple[Variable, ...]:
        """What `measure` returns, in its order."""

    @abc.abstractmethod
    def measure(self, end: Ending) -> tuple[Array, ...]:
        """The values for one lane; traced by `jax.vmap`, unless `on_host`."""

    @property
    def on_host(self) -> bool:
        """Whether lanes are measured one by one with concrete arrays."""
        return False

    def coordinates(self) -> dict[str, np.ndarray]:
        """Coordinates of dimensions that this observable brings along."""
        return {}

    def shapes(self, end: Ending) -> tuple[Any, ...]:
        """Shapes and types of what `measure` returns; one that is not `on_host` is not run."""
        if self.on_host:
            return tuple(jnp.asarray(value) for value in self.measure(end))
        return eqx.filter_eval_shape(self.measure, end)

    def check(self, network: Any, problem: AbstractProblem) -> None:
        """Raise a ValueError where the observable is not defined; shapes only."""


def unit(vector: Float[Array, "..."]) -> Float[Array, "..."]:
    """vector / |vector|, without overflow; 0 for 0."""
    largest = jnp.max(jnp.abs(vector))
    scaled = vector / jnp.where(largest > 0, largest, 1.0)
    norm = jnp.sqrt(jnp.sum(scaled**2))
    return scaled / jnp.where(norm > 0, norm, 1.0)


def has_bad_input(network: Any, problem: AbstractProblem) -> Bool[Array, ""]:
    """Whether a start or its data could not have been given to `gradient_flow`; traceable."""
    leaves = [x for x in jax.tree.leaves((network, problem)) if eqx.is_inexact_array(x)]
    bad = [~jnp.all(jnp.isfinite(leaf)) for leaf in leaves]
    if problem.has_margins:
        bad.append(~jnp.all(jnp.abs(problem.y) == 1))  # pyright: ignore
    return jnp.any(jnp.stack(bad))


def refuse(name, rule, got, instead):
    raise ValueError(f"observables: {name} {rule}, got {got}; leave it out, or take {instead}.")

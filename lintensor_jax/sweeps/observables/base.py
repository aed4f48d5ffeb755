"""Observables: functions of a flow's end, with names, units and descriptions."""

import abc
from typing import Any, NamedTuple, NoReturn

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Scalar

from ...penalized import weight_decay_of
from ...problems import AbstractProblem

COEFFICIENT = ("coefficient", "output")


class Ending(NamedTuple):
    """The end of one lane's flow: the argument of observables.

    `initial` is the network at the start, `unfinished_network` the network before the finish, and
    `network` the final one. The other fields are as in `FlowSolution`, at the end. For regression
    `log_margin` is None. `effective_start` is None except in a sweep of descents.
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
    effective_start: Any = None


class Variable(NamedTuple):
    """A variable of the results: `dims` are its dimensions besides the grid's.

    An array with fewer axes than `dims` uses the first of them. `flags` are the meanings of the
    values 0, 1, ...
    """

    name: str
    dims: tuple[str, ...]
    units: str
    description: str
    flags: tuple[str, ...] = ()


class AbstractObservable(eqx.Module):
    """A quantity that a sweep records of every lane."""

    @property
    @abc.abstractmethod
    def variables(self) -> tuple[Variable, ...]:
        """The variables that `measure` returns, in its order."""

    @abc.abstractmethod
    def measure(self, end: Ending) -> tuple[Array, ...]:
        """The values for one lane; traced by `jax.vmap`, unless `on_host`."""

    @property
    def on_host(self) -> bool:
        """Whether lanes are measured one by one with concrete arrays."""
        return False

    def measure_traced(self, end: Ending) -> tuple[tuple[Array, ...], Bool[Array, ""]] | None:
        """If `on_host`: the values for one lane, and whether they are those of `measure`.

        Traced by `jax.vmap`, so that all lanes are measured in one program. Only the lanes where
        the second result is False are then measured by `measure`. None: every lane is.
        """
        return None

    @property
    def integrates(self) -> bool:
        """Whether `measure` integrates a gradient flow; such observables are not for descents."""
        return False

    def coordinates(self) -> dict[str, np.ndarray]:
        """Coordinates, by name, of the dimensions that this observable adds."""
        return {}

    def shapes(self, end: Ending) -> tuple[Any, ...]:
        """Shapes and types of what `measure` returns. It is only run if `on_host`."""
        if self.on_host:
            return tuple(jnp.asarray(value) for value in self.measure(end))
        return eqx.filter_eval_shape(self.measure, end)

    def check(self, network: Any, problem: AbstractProblem) -> None:
        """Raise a ValueError if the observable is not defined; only shapes are checked."""


def unit(vector: Float[Array, "..."]) -> Float[Array, "..."]:
    """vector / |vector|, without overflow; 0 for 0."""
    largest = jnp.max(jnp.abs(vector))
    scaled = vector / jnp.where(largest > 0, largest, 1.0)
    norm = jnp.sqrt(jnp.sum(scaled**2))
    return scaled / jnp.where(norm > 0, norm, 1.0)


def has_bad_input(network: Any, problem: AbstractProblem) -> Bool[Array, ""]:
    """Whether `gradient_flow` would raise ValueError for a start or its data; traceable."""
    leaves = [x for x in jax.tree.leaves((network, problem)) if eqx.is_inexact_array(x)]
    bad = [~jnp.all(jnp.isfinite(leaf)) for leaf in leaves]
    if problem.has_margins:
        bad.append(~problem.has_valid_targets)  # pyright: ignore
    decay = weight_decay_of(problem)
    if decay is not None:
        bad.append(jnp.any(decay < 0))
    return jnp.any(jnp.stack(bad))


def refuse(name, rule, got, instead) -> NoReturn:
    raise ValueError(f"observables: {name} {rule}, got {got}; leave it out, or take {instead}.")

"""Linear systems (shift I - J) x = b of implicit steps, J the Jacobian of a clock's velocity.

All parameters act on the velocity of one through a few numbers z: in regression the residual, with
margins their n weights and three more (`numbers` of a clock). With z held fixed, the velocity
F(y, z) depends on y by the second derivatives of beta only. Where these couple few parameters (in a
diagonal network those of one coordinate), J is a matrix of small blocks plus one of low rank:

    J = dF/dy + (dF/dz) (dz/dy).

The blocks are inverted one by one, the rest is a system of as many equations as z has entries
(Woodbury). The time is linear in the number p of parameters, where that of a dense J is cubic.
"""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Scalar

from ..networks.closed_forms import closed_form
from ..networks.pair import check_pair
from .clocks import FlowArgs, state_of, vector_of

Solver = Callable[[Array], Array]
# One dense matrix is quicker for fewer numbers, or with larger blocks or a larger z.
_FEWEST_NUMBERS, _LARGEST_SHARE = 48, 0.5
# Beyond this many equations in one matrix flows have no implicit steps: a step costs their cube.
LARGEST_MATRIX = 600
# Most entries of a matrix with a column for each parameter.
_MOST_ENTRIES = 2**25


def splits(system: Any, clock: Any) -> bool:
    """Whether the systems of this flow are solved by blocks and a rest of low rank."""
    return _largest_part(system, clock) is not None


def has_implicit_steps(system: Any, clock: Any, size: int) -> bool:
    """Whether the largest matrix of an implicit step with `size` parameters is small enough."""
    # The parts of a small matrix are smaller still; batches ask in every call.
    return size <= LARGEST_MATRIX or (_largest_part(system, clock) or size) <= LARGEST_MATRIX


def _largest_part(system, clock) -> int | None:
    """The rows of the largest matrix if the systems are split; None if they are not."""
    if not _has_few_numbers(type(clock)):
        return None
    places = closed_form(system, "coupled_groups")
    if places is None:
        return None
    check_pair(eqx.combine(system.parameters, system.rest), system.problem)
    size = system.num_parameters
    rank = _rank(system, clock)
    largest = max(rank, places.shape[1])
    pays = size >= _FEWEST_NUMBERS and largest <= _LARGEST_SHARE * size
    return largest if pays and rank * size <= _MOST_ENTRIES else None


def _has_few_numbers(kind: type) -> bool:
    """Whether the clock's `velocity` is the one that its `numbers` belong to.

    A user's clock that inherits `numbers` and has another `velocity` is integrated with a dense J.
    """

    def owner(name):
        return next((base for base in kind.__mro__ if name in vars(base)), None)

    return owner("numbers") is not None and owner("numbers") is owner("velocity")


def _rank(system, clock):
    def numbers(system):
        state = clock.start(system, system.initial)
        unit = jnp.zeros_like(state.log_scale)
        return clock.numbers(state, FlowArgs(system, None, unit))

    return sum(leaf.size for leaf in jax.tree.leaves(eqx.filter_eval_shape(numbers, system)))


def shifted_solver(clock: Any, args: FlowArgs, y: Float[Array, " q"], shift: Scalar) -> Solver:
    """The map b -> x with (shift I - J) x = b, J = d velocity/dy, for a system that `splits`.

    Shapes: y, b and x (q,).
    """

    def numbers_of(y):
        return ravel_pytree(clock.numbers(state_of(y, clock), args))[0]

    unravel = ravel_pytree(clock.numbers(state_of(y, clock), args))[1]

    def velocity(y, z):
        return vector_of(clock.velocity_by(unravel(z), state_of(y, clock), args), clock)

    z, pull = jax.vjp(numbers_of, y)
    basis = jnp.eye(z.size, dtype=y.dtype)
    _, by_numbers = jax.linearize(functools.partial(velocity, y), z)
    columns = jax.vmap(by_numbers)(basis)  # (m, q): dF/dz, transposed
    rows = jax.vmap(lambda e: pull(e)[0])(basis)  # (m, q): dz/dy
    _, by_state = jax.linearize(lambda y: velocity(y, z), y)
    by_groups = _solver_by_groups(by_state, _places(args.system, y.size), shift, y)
    solved = jax.vmap(by_groups)(columns)
    rest = jnp.linalg.inv(basis - rows @ solved.T)

    def solve(b):
        x = by_groups(b)
        return x + (rest @ (rows @ x)) @ solved

    return solve


def _places(system, size):
    """The groups of all numbers of a state: what a clock adds to the parameters is alone."""
    places = system.coupled_groups()
    count = system.num_parameters
    added = np.full((size - count, places.shape[1]), size)
    added[:, 0] = np.arange(count, size)
    return np.concatenate([np.where(places == count, size, places), added])


def _solver_by_groups(
    along: Solver, places: np.ndarray, shift: Scalar, like: Float[Array, " q"]
) -> Solver:
    """b -> (shift I - D)^-1 b, D the linear map `along`, which couples numbers of a group only.

    `places` (G, k): the numbers of each group, q where a group has fewer than k.
    """
    count, size = like.size, places.shape[1]
    # One product gives a column of every block: no number is in two groups.
    chosen = np.zeros((size, count + 1), like.dtype)
    chosen[np.arange(size), places] = 1
    products = jax.vmap(along)(jnp.asarray(chosen[:, :count]))
    blocks = jnp.moveaxis(jnp.pad(products, ((0, 0), (0, 1)))[:, places], 0, -1)
    inverse = jnp.linalg.inv(shift * jnp.eye(size, dtype=like.dtype)[None] - blocks)
    order = np.argsort(places, axis=None, kind="stable")[:count]

    def solve(b):
        parts = jnp.pad(b, (0, 1))[places]
        return jnp.sum(inverse * parts[:, None, :], axis=-1).reshape(-1)[order]

    return solve


def coupling_between_groups(system: Any) -> float:
    """The relative size of the second derivatives of beta between parameters of two groups.

    It is measured at the system's parameters, along random directions of parameters and of beta.
    """
    places, theta = system.coupled_groups(), jnp.asarray(system.initial)
    rng = np.random.default_rng(1)
    beta = jax.eval_shape(system.coefficients, theta)
    weights = jnp.asarray(rng.normal(size=beta.shape), beta.dtype)
    direction = rng.normal(size=theta.size).astype(theta.dtype)
    _, along = jax.linearize(jax.grad(lambda t: jnp.sum(weights * system.coefficients(t))), theta)
    within = np.zeros(theta.size + 1, theta.dtype)
    for column in places.T:  # one parameter of each group
        chosen = np.zeros(theta.size + 1, theta.dtype)
        chosen[column] = 1
        product = np.append(np.asarray(along(jnp.asarray(chosen[:-1]))), 0)
        shares = np.append(direction, 0)[column]
        within[places] += product[places] * shares[:, None]
    whole = np.asarray(along(jnp.asarray(direction)))
    size = np.max(np.abs(whole)) + np.max(np.abs(within[:-1]))
    return float(np.max(np.abs(whole - within[:-1])) / size) if size > 0 else 0.0

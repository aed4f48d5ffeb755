"""The data of a batch's lanes besides their parameters: problems, and constants of networks."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ...networks.pair import same_dtype
from .. import corners
from ..system import Reducible, System, real_parts


class LaneData(NamedTuple):
    """The data of one lane, or of many lanes.

    - `problem`: an array has lanes on its first axis, unless all lanes share the problem.
    - `constants`: arrays of `System.constants` with lanes on their first axis; None if all lanes
      share the constants of the system.
    """

    problem: Any
    constants: Any = None

    def lane(self, place: int, shared: bool) -> "LaneData":
        """The data of one lane."""
        return self._of_lanes(lambda leaf: leaf[place], shared)

    def _of_lanes(self, function: Any, shared: bool) -> "LaneData":
        """The data, with `function` applied to every array that has lanes."""
        problem = self.problem if shared else jax.tree.map(function, self.problem)
        return LaneData(problem, jax.tree.map(function, self.constants))

    def cut(self, at: int, size: int, shared: bool) -> "LaneData":
        """The data of the lanes at, ..., at + size - 1; beyond the end the last is repeated."""
        return self._of_lanes(lambda leaf: piece_of(leaf, at, size), shared)

    def ordered(self, order: Any, shared: bool) -> "LaneData":
        """The data of the lanes whose places are in `order`."""
        return self._of_lanes(lambda leaf: leaf[order], shared)


class LeavesOfLanes(NamedTuple):
    """The arrays of a `LaneData` and of the problem's `Reducible`, as one list.

    - `structure`: the pytree structure of (data, reducible).
    - `examples`: the arrays of one lane, or their shapes.
    - `have_lanes`: which of them differ from lane to lane.
    """

    structure: Any
    examples: list[Any]
    have_lanes: list[bool]

    @staticmethod
    def of(system: System, shared: bool, own_constants: bool) -> "LeavesOfLanes":
        """The leaves for a `system` of one lane; `shared`: whether all lanes share the problem."""
        constants = arrays_in(system.constants) if own_constants else None
        parts = (system.problem, constants, jax.eval_shape(Reducible.of, system.problem))
        problem, own, reducible = (len(jax.tree.leaves(part)) for part in parts)
        data = LaneData(*parts[:2])
        flags = [not shared] * problem + [True] * own + [not shared] * reducible
        return LeavesOfLanes(
            jax.tree.structure((data, parts[2])), jax.tree.leaves((data, parts[2])), flags
        )

    def own(self, leaves: list[Any]) -> list[Any]:
        """The arrays that differ from lane to lane."""
        return [leaf for leaf, own in zip(leaves, self.have_lanes, strict=True) if own]

    def shared(self, leaves: list[Any]) -> list[Any]:
        """The arrays that all lanes share."""
        return [leaf for leaf, own in zip(leaves, self.have_lanes, strict=True) if not own]

    def merged(self, shared: list[Any], own: list[Any]) -> list[Any]:
        """All arrays in their order: the inverse of `shared` and `own`."""
        one, other = iter(shared), iter(own)
        return [next(other) if is_own else next(one) for is_own in self.have_lanes]


def with_data(system: System, data: LaneData) -> System:
    """The system with the data of a lane."""
    system = eqx.tree_at(lambda s: s.problem, system, data.problem)
    if data.constants is None:
        return system
    constants = eqx.combine(data.constants, system.constants)
    return eqx.tree_at(lambda s: s.constants, system, constants, is_leaf=lambda x: x is None)


def marked_starts(
    system: System, thetas: Float[Array, "N p"], data: LaneData, lanes: Any, branches: bool
) -> Float[Array, "p N"]:
    """`marked_start` of all lanes; without signs if no lane is tied, or no mark is needed.

    `lanes`: the axes of a theta and of its data, as in `jax.vmap`. `branches`: see `attempt_step`.
    """

    def of_lanes(function):
        return jax.vmap(lambda theta, d: function(with_data(system, d), theta), lanes)

    def marks():
        return of_lanes(corners.marked_start)(thetas, data).T

    if system.ties_are_exact:
        return jnp.abs(thetas).T
    if not branches:
        return marks()
    # The marks take several times as long as the test whether there are any.
    tied = jnp.any(of_lanes(corners.may_be_tied)(thetas, data))
    return jax.lax.cond(tied, marks, lambda: jnp.abs(thetas).T)


def piece_of(leaf: Array, at: int, size: int) -> Array:
    """Entries at, ..., at + size - 1 of the first axis; beyond the end the last is repeated."""
    if leaf.shape[0] == size:
        return leaf
    piece = leaf[at : at + size]
    missing = size - piece.shape[0]
    return jnp.concatenate([piece, jnp.repeat(leaf[-1:], missing, 0)]) if missing else piece


def arrays_in(tree: Any) -> Any:
    """The tree with None in place of leaves that are not arrays."""
    return eqx.filter(tree, _is_array)


def lanes_of_constants(
    first: Any, rest: Any, problem: Any, count: int, shared: bool | None
) -> tuple[Any, Any]:
    """What is not a parameter of the first lane's network; and `LaneData.constants` of all lanes.

    `first`: the parameters of the first lane. `rest`: the constants of the networks.
    `problem`: the problem of the first lane. If `shared` is None, the shapes decide.
    """
    if not any(map(_is_array, jax.tree.leaves(rest))):
        return rest, None  # the usual case; names of leaves take longer than the test
    arrays = list(_named(arrays_in(rest)))
    lengths = [leaf.shape[:1] == (count,) for _, leaf in arrays]
    if shared or (shared is None and not any(lengths)):
        return rest, None
    if shared is None and _fits(first, rest, problem):
        if all(lengths) and _fits(first, _first_of(rest), problem):
            raise ValueError(
                f"networks: the shapes of the constants ({_in_words(arrays)}) fit {count} lanes "
                "with different constants and lanes that share them; pass "
                "shared_constants=False or shared_constants=True."
            )
        return rest, None
    if not all(lengths):
        raise ValueError(
            f"networks: constants must all have a first axis of {count} lanes, or none of them, "
            f"got {_in_words(arrays)}; jax.vmap of a function that makes one network adds the axis."
        )
    one = _first_of(rest)
    if all(bool(np.all(np.asarray(leaf == leaf[:1]))) for _, leaf in arrays):
        return one, None  # equal constants are faster as one copy
    return one, arrays_in(real_parts(rest))


def _fits(first: Any, rest: Any, problem: Any) -> bool:
    """Whether a network with the constants `rest` has coefficients of the problem's shape."""
    network, problem = same_dtype(eqx.combine(first, rest), problem)
    try:
        beta = eqx.filter_eval_shape(lambda n: n.linear_coefficients(), network)
    except Exception:  # raised by a user's code, for arrays of a shape that it does not expect
        return False
    return beta.shape == problem.coefficient_shape


def _first_of(rest: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[0] if _is_array(leaf) else leaf, rest)


def _named(tree: Any) -> Iterator[tuple[str, Any]]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield jax.tree_util.keystr(path).lstrip("."), leaf


def _in_words(arrays: list[tuple[str, Any]]) -> str:
    return ", ".join(f"{name} {leaf.shape}" for name, leaf in arrays)


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray)

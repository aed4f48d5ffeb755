"""Grids: the axes of a sweep, and the points of the grid."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax.extend.core import Var

from ..messages import in_words
from ..networks import split
from ..problems import AbstractProblem
from .identifiers import require_identifier

_SAMPLE = 64  # lanes that are sampled to choose and check the options of a cell
_RESERVED = ("status", "num_steps", "method", "key", "index")


@dataclasses.dataclass(frozen=True)
class Axis:
    """One quantity that the grid varies; a dimension of the results.

    - `name`: an identifier, such as "alpha".
    - `values`: numbers, words, or arrays (one for each point, on the first axis) such as
      directions, data or parameters.
    - `units`, `description`: stored with the results.
    - `dims`: names of the axes of one value, if values are arrays.
    - `changes_shape`: whether the axis decides the shape of arrays (depth, width, d, n). Then a
      program is compiled for every value, and the value is a plain Python value in `start` and
      `problem`. Axes of words always change shapes.

    A lane's result is determined by its index, the seed and its values of the axes.
    """

    name: str
    values: Any
    units: str = ""
    description: str = ""
    dims: tuple[str, ...] = ()
    changes_shape: bool = False

    def __post_init__(self):
        require_identifier(self.name, "Axis: name", _RESERVED)
        values = np.asarray(self.values)
        if values.dtype.kind not in "biufU" or values.ndim == 0 or values.shape[0] == 0:
            raise ValueError(
                f"Axis {self.name}: values must be a non-empty list or array of numbers or of "
                f"words, got {in_words(self.values)}; for other values, use names as the values of "
                "the axis, and look the values up in `start`."
            )
        by_shape = self.changes_shape or values.dtype.kind == "U"
        if by_shape and values.ndim > 1:
            raise ValueError(
                f"Axis {self.name}: an axis that changes shapes needs one number or word a point, "
                f"got shape {values.shape}; name the points, and look the arrays up in `start`."
            )
        if values.ndim == 1 and np.unique(values).size < values.size:
            raise ValueError(
                f"Axis {self.name}: values must differ, got {_first_repeated(values)!r} twice; "
                "repeat a flow by an axis of seeds."
            )
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "changes_shape", by_shape)
        shape = values.shape[1:]
        dims = tuple(self.dims) or tuple(f"{self.name}_{i}" for i in range(len(shape)))
        if len(dims) != len(shape):
            raise ValueError(
                f"Axis {self.name}: dims must name the axes of one value, of shape {shape}, got "
                f"{self.dims!r}."
            )
        for dim in dims:
            require_identifier(dim, f"Axis {self.name}: every name in dims")
        object.__setattr__(self, "dims", dims)

    def __len__(self) -> int:
        return len(self.values)


@dataclasses.dataclass(frozen=True)
class Zip:
    """Axes of equal lengths that vary together, along one dimension `name`."""

    name: str
    axes: tuple[Axis, ...]

    def __init__(self, name: str, *axes: Axis):
        require_identifier(name, "Zip: name", _RESERVED)
        if not axes or not all(isinstance(axis, Axis) for axis in axes):
            raise ValueError(
                f"Zip {name}: must have one Axis or more after the name, got {in_words(axes)}."
            )
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "axes", axes)
        lengths = {axis.name: len(axis) for axis in axes}
        if len(set(lengths.values())) != 1:
            raise ValueError(
                f"Zip {name}: axes must be of one length, got {lengths}; use a product for axes "
                "that vary independently."
            )

    def __len__(self) -> int:
        return len(self.axes[0])


class Point:
    """A point of the grid: `point.alpha`, `point.direction`, ..., and `point.key`.

    `key` is a PRNG key: the sweep's seed with the lane's index folded in. A lane's random numbers
    depend on the seed and this index only.
    """

    def __init__(self, values: dict[str, Any], key: Any):
        self._values = {**values, "key": key}
        self._read: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self._values:
            raise AttributeError(
                f"the grid has no axis {name!r}; it has {', '.join(self._values)}."
            )
        self._read.add(name)
        return self._values[name]

    __getitem__ = __getattr__

    def __contains__(self, name: str) -> bool:
        return name in self._values


Start = Callable[[Point], Any]


@dataclasses.dataclass(frozen=True)
class Grid:
    """The grid of a sweep: a product of axes, and the network and problem at each of its points.

    - `axes`: `Axis` or `Zip`; their product is the grid. The last axis varies fastest.
    - `start`: a function of the point that returns the network; its parameters are Theta(0). It is
      traced by `jax.vmap`: values of axes that do not change shapes are traced arrays.
    - `problem`: one problem for all lanes, or a function of the point. If the function reads only
      axes that change shapes, lanes share the problem; otherwise each lane has its own problem.
    - `seed`: the seed of `point.key`, an int.

    For example::

        Grid(
            axes=(Axis("alpha", np.geomspace(1e-3, 1, 100)), Axis("direction", z)),
            start=lambda point: matching(like, point.direction).scaled(point.alpha),
            problem=Regression(X, y),
        )
    """

    axes: tuple[Axis | Zip, ...]
    start: Start
    problem: AbstractProblem | Callable[[Point], AbstractProblem]
    seed: int = 0

    def __post_init__(self):
        axes = tuple(self.axes) if isinstance(self.axes, Sequence) else (self.axes,)
        if not axes or not all(isinstance(axis, Axis | Zip) for axis in axes):
            raise ValueError(
                f"Grid: axes must be a non-empty tuple of Axis or Zip, got {in_words(axes)}."
            )
        object.__setattr__(self, "axes", axes)
        names = [axis.name for axis in self.leaf_axes] + [
            zipped.name for zipped in axes if isinstance(zipped, Zip)
        ]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"Grid: axes must have different names, got {twice.pop()!r} twice.")
        if not callable(self.start):
            raise ValueError(
                f"Grid: start must be a function of the point, got {type(self.start).__name__}; "
                "write lambda point: network."
            )
        if not (isinstance(self.problem, AbstractProblem) or callable(self.problem)):
            raise ValueError(
                "Grid: problem must be an object such as lintensor_jax.Regression(X, y) or a "
                f"function of the point, got {type(self.problem).__name__}."
            )
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**32:
            raise ValueError(f"Grid: seed must be a whole number in [0, 2^32), got {self.seed!r}.")
        if self.size >= 2**32:
            raise ValueError(f"Grid: at most 2^32 - 1 lanes, got {self.size}; split the sweep.")

    @property
    def leaf_axes(self) -> tuple[Axis, ...]:
        """Every `Axis`, including those of a `Zip`."""
        return tuple(
            a for axis in self.axes for a in (axis.axes if isinstance(axis, Zip) else [axis])
        )

    @property
    def dims(self) -> tuple[str, ...]:
        """Names of the dimensions."""
        return tuple(axis.name for axis in self.axes)

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the dimensions."""
        return tuple(len(axis) for axis in self.axes)

    @property
    def size(self) -> int:
        """The number of lanes."""
        return math.prod(self.shape)

    def place(self, axis: Axis) -> int:
        """The index of the dimension that an axis belongs to."""
        return next(
            i
            for i, outer in enumerate(self.axes)
            if axis is outer or (isinstance(outer, Zip) and any(axis is a for a in outer.axes))
        )

    def values(self, lanes: np.ndarray) -> dict[str, np.ndarray]:
        """The values of every axis at `lanes` (flat indices); lanes are the first array axis."""
        index = np.unravel_index(lanes, self.shape)
        return {axis.name: axis.values[index[self.place(axis)]] for axis in self.leaf_axes}

    def cell_of(self, lane: int) -> tuple[Any, ...]:
        """A lane's values of the axes that change shapes. Lanes with equal values are a cell."""
        values = self.values(np.asarray([lane]))
        return tuple(values[a.name][0].item() for a in self.leaf_axes if a.changes_shape)

    def cells(self) -> Iterator[tuple[tuple[Any, ...], int]]:
        """Every cell, with the index of its first lane."""
        chosen = [any(a.changes_shape for a in _leaves(axis)) for axis in self.axes]
        shape = tuple(n if c else 1 for n, c in zip(self.shape, chosen, strict=True))
        seen = set()
        for index in np.ndindex(*shape):
            lane = int(np.ravel_multi_index(index, self.shape))
            cell = self.cell_of(lane)
            if cell not in seen:
                seen.add(cell)
                yield cell, lane


def _leaves(axis: Axis | Zip) -> tuple[Axis, ...]:
    return axis.axes if isinstance(axis, Zip) else (axis,)


def _first_repeated(values):
    seen: set[Any] = set()
    return next(v for v in values.tolist() if v in seen or seen.add(v))


class Cell:
    """The lanes that have the same shapes; their starts are compiled together."""

    def __init__(self, grid: Grid, lane: int):
        self.grid = grid
        self.fixed = {
            axis.name: value
            for axis, value in zip(
                (a for a in grid.leaf_axes if a.changes_shape), grid.cell_of(lane), strict=True
            )
        }
        self.first_lane = lane
        self.name = ", ".join(f"{name} = {value}" for name, value in self.fixed.items())
        if isinstance(grid.problem, AbstractProblem):
            self.shared: AbstractProblem | None = grid.problem
        else:
            self.shared = self._problem_if_shared()
        self._starts = jax.jit(jax.vmap(self._split_one))
        one = self.arguments(np.asarray([lane]), one=True)
        (_, constants), _ = eqx.filter_eval_shape(self._split_one, *one)
        #: Whether the networks' constants (masks, data tensors) differ between lanes of the cell.
        self.constants_differ_by_lane = bool(
            jax.tree.leaves(constants)
        ) and self._has_own_constants(one)
        if jax.tree.leaves(constants) and not self.constants_differ_by_lane:
            (_, constants), _ = jax.jit(self._split_one)(*one)
        self._shared_constants = constants

    def point(self, numbers, index) -> Point:
        """The point of lane `index`; `numbers` are its values of the axes that change no shapes."""
        key = jax.random.fold_in(jax.random.key(self.grid.seed), index)
        return Point({**self.fixed, **numbers}, key)

    def _numbers(self, lanes: np.ndarray) -> dict[str, np.ndarray]:
        values = self.grid.values(lanes)
        return {a.name: values[a.name] for a in self.grid.leaf_axes if not a.changes_shape}

    def _problem_if_shared(self):
        assert callable(self.grid.problem)
        numbers = {name: v[0] for name, v in self._numbers(np.asarray([self.first_lane])).items()}
        point = self.point(numbers, self.first_lane)
        try:
            problem = self.grid.problem(point)
        except ValueError:
            if point._read <= set(self.fixed):
                raise
            return None  # the data of this lane are wrong: its status will be bad_input
        return problem if point._read <= set(self.fixed) else None

    def _network_and_problem(self, numbers, index):
        point = self.point(numbers, index)
        try:
            network = self.grid.start(point)
            problem = None
            if self.shared is None:
                assert callable(self.grid.problem)
                problem = self.grid.problem(point)
        except TypeError as e:
            if "concrete" not in str(e) and "Tracer" not in str(e):
                raise
            read = ", ".join(sorted(point._read - {"key"} - set(self.fixed))) or "an axis"
            raise ValueError(
                f"Grid: start and problem are traced over the axes that they read ({read}), but "
                "some code in them needs a plain value. If the axis decides a shape, write "
                f"Axis(..., changes_shape=True); for other branches use jnp.where. JAX says: "
                f"{str(e).split('.')[0]}."
            ) from e
        return network, problem

    def arguments(self, lanes: np.ndarray, one: bool = False):
        """The arguments of `point`, with lanes on the first axes; of the first lane if `one`."""
        numbers, index = self._numbers(lanes), np.asarray(lanes, np.uint32)
        return jax.tree.map(lambda a: a[0], (numbers, index)) if one else (numbers, index)

    def _split_one(self, numbers, index):
        network, problem = self._network_and_problem(numbers, index)
        parameters, rest = split(network)
        constants, self._static = eqx.partition(rest, eqx.is_array)
        return (parameters, constants), problem

    def _has_own_constants(self, one) -> bool:
        """Whether the networks' constants depend on a lane's values, by its traced program."""
        program = jax.make_jaxpr(lambda *point: self._split_one(*point)[0][1])(*one).jaxpr
        of_lanes = set(program.invars)
        for equation in program.eqns:
            if not of_lanes.isdisjoint(v for v in equation.invars if isinstance(v, Var)):
                of_lanes.update(equation.outvars)
        return not of_lanes.isdisjoint(v for v in program.outvars if isinstance(v, Var))

    def problem_of(self, own: Any) -> Any:
        """`own`, the problem of a lane or of lanes; if it is None, the shared problem."""
        return self.shared if own is None else own

    def starts(self, lanes: np.ndarray) -> tuple[Any, Any]:
        """Networks whose parameters have lanes on their first axis, and problems.

        Constants of the networks have lanes on their first axis if `constants_differ_by_lane`. The
        problems are None if all lanes share one problem.
        """
        (parameters, own), problems = self._starts(*self.arguments(lanes))
        constants = own if self.constants_differ_by_lane else self._shared_constants
        return eqx.combine(parameters, constants, self._static), problems

    def split_by_lane(self, networks: Any) -> tuple[Any, Any]:
        """Two copies of networks: one with the arrays that differ by lane, one with the rest."""
        return (
            eqx.partition(networks, eqx.is_array)
            if self.constants_differ_by_lane
            else split(networks)
        )

    def lane(self, networks: Any, place: int) -> Any:
        """The network of one lane of `starts`."""
        arrays, rest = self.split_by_lane(networks)
        return eqx.combine(jax.tree.map(lambda leaf: leaf[place], arrays), rest)

    def sample(self) -> tuple[Any, Any]:
        """Networks and problems of 65 lanes of the cell: the first, and others over the grid."""
        lanes = np.unique(np.linspace(0, self.grid.size - 1, _SAMPLE).astype(int))
        mine = [k for k in lanes if self.grid.cell_of(k) == tuple(self.fixed.values())]
        lanes = np.unique([self.first_lane, *mine])
        missing = _SAMPLE + 1 - lanes.size  # filled with copies: one shape, one compilation
        return self.starts(np.concatenate([lanes, np.repeat(lanes[-1:], missing)]))

    def example(self) -> tuple[Any, Any]:
        """Network and problem of a lane whose numbers are finite, if the sample has one."""
        networks, problems = self.sample()
        leaves = [
            np.isfinite(np.asarray(leaf)).reshape(leaf.shape[0], -1).all(axis=1)
            for leaf in jax.tree.leaves((self.split_by_lane(networks)[0], problems))
        ]
        place = int(np.argmax(np.logical_and.reduce(leaves)))
        own = problems and jax.tree.map(lambda leaf: leaf[place], problems)
        return self.lane(networks, place), self.problem_of(own)

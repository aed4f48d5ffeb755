"""The plan of a sweep, made before it runs: chunks, shapes, compilations, memory, disk space."""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np

from ..dynamics.batch import hardware
from ..dynamics.options import default_residual, fill_options
from ..dynamics.statuses import ADVICE, STORED
from ..dynamics.stopping import StopAtBalance, StopAtResidual
from ..dynamics.system import System
from ..messages import in_words
from ..networks import split
from ..networks.pair import check_pair, same_dtype
from ..penalized import require_no_negative_decay, weight_decay_of
from .descent import Descent, example_start
from .grid import Cell, Grid, Zip
from .identifiers import require_identifier
from .observables.base import AbstractObservable, Ending, Variable
from .observables.catalogue import DEFAULT

_NUMBERS = {**STORED, "pending": 0, "bad_input": 11}
#: Why a lane's flow ended, by number; 0 is a lane that has not run yet. Stores hold the numbers.
STATUSES: tuple[str, ...] = tuple(sorted(_NUMBERS, key=lambda name: _NUMBERS[name]))
FAILURES: tuple[str, ...] = (*ADVICE, "bad_input")
METHODS = ("pending", "explicit", "mirror_flow", "gradient_flow", "gradient_descent")

LANE_VARIABLES = (
    Variable("status", (), "", "why the lane's flow ended", STATUSES),
    Variable("num_steps", (), "steps", "attempted steps of all methods together"),
    Variable("method", (), "", "what integrated the lane to its end", METHODS),
)

# A killed run loses the chunks that it was computing. At the end of each chunk some slots are idle.
# So a sweep has about 8 chunks, of at most 2^14 lanes (as one program of the batched stepper).
_CHUNKS, _FEWEST_LANES = 8, 2048
# Larger sweeps have larger chunks, so that a billion lanes make thousands of files, not a million.
_CHUNKS_OF_LARGE, _LANES = 32, 2**14
_MOST_LANES, _MOST_BYTES = 2**18, 2**29  # of a chunk on a CPU
# On other devices a chunk fills the device. With more lanes than this, each device has two chunks,
# so that it computes one while the other is prepared or written.
_LANES_FOR_TWO_CHUNKS = 2**18
# Lanes of a chunk per lane in flight. If 1% of the lanes take 100 times as many steps as the others
# (t each), N lanes need about 2 N t steps, and W slots wait at most 100 t steps for the last lane:
# at most 1 + 50 W/N times the needed steps are executed, besides the waste of refilling.
# Above a width of 128 small states do not fit into the first cache.
_LANES_PER_SLOT, _WIDEST, _WIDEST_OF_LARGE, _LARGE = 96, 128, 32, 32
# Measured: the stepper, the finish and the observables hold this many copies of a lane's state.
_COPIES = 14


@dataclasses.dataclass(frozen=True)
class Options:
    """Everything about a sweep but its grid; see `lintensor_jax.sweep`."""

    observables: tuple[AbstractObservable, ...] = DEFAULT
    stop: Any = None
    finish: Any = ...
    rtol: float | None = None
    atol: float | None = None
    clock: Any = None
    solver: Any = None
    max_steps: int = 4096
    stiff_max_steps: int | None = 20_000
    width: int | None = None
    chunk_lanes: int | None = None
    compilation: Any = None
    descent: Descent | None = None

    def __post_init__(self):
        given = self.observables
        given = tuple(given) if isinstance(given, list | tuple) else (given,)
        for item in given:
            if not isinstance(item, AbstractObservable):
                raise ValueError(
                    "observables: must be objects such as lintensor_jax.sweeps.Limit(), got "
                    f"{in_words(item)}; your own function goes into "
                    "sweeps.Measured(name, function)."
                )
        object.__setattr__(self, "observables", given)
        for name, smallest in (("max_steps", 1), ("width", 1), ("chunk_lanes", 1)):
            _require_whole(name, getattr(self, name), smallest)
        _require_whole("stiff_max_steps", self.stiff_max_steps, 1)
        _check_descent_options(self)
        if self.max_steps is None:
            raise ValueError("max_steps: must be a positive int, got None; the default is 4096.")

    @property
    def flow(self) -> dict[str, Any]:
        """The options that all integrators take, besides the stop rule."""
        return {name: getattr(self, name) for name in ("finish", "rtol", "atol", "clock")}


@dataclasses.dataclass(frozen=True)
class Array:
    """One variable in the store: `shape` and `box` (of a chunk) include the grid's dimensions."""

    variable: Variable
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    box: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """The number of bytes without compression."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class Chunk:
    """A box of the grid, in one cell: `lanes` are the flat indices of its lanes, in C order."""

    number: int
    cell: Cell
    region: tuple[slice, ...]
    lanes: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """Lanes along each dimension of the grid."""
        return tuple(s.stop - s.start for s in self.region)


class Plan:
    """How a grid is cut into chunks, and which arrays a sweep stores.

    The constructor checks all that can be checked without running: shapes, options, observables.
    `devices`: those that will compute; default `jax.local_devices()`.
    """

    def __init__(self, grid: Grid, options: Options, devices: Sequence[Any] | None = None):
        self.grid, self.options = grid, options
        devices = devices if devices else jax.local_devices()
        self.cells = {cell: Cell(grid, lane) for cell, lane in grid.cells()}
        self.stops = {id(cell): _stop(cell, options) for cell in self.cells.values()}
        self.coordinates = _coordinates_of(options.observables)
        self._check_names()
        found = [self._checked(cell) for cell in self.cells.values()]
        sizes, lane_bytes, dtypes, extents = zip(*found, strict=True)
        self.state_size, lane_bytes, self.dtype = max(sizes), max(lane_bytes), max(dtypes)
        self.lane_bytes = _COPIES * lane_bytes
        on_cpu = hardware.kind_of(devices[0]) == "cpu"
        target = self._target_on_cpu() if on_cpu else self._target_on_accelerators(devices)
        box = _box(grid, target)
        lanes = math.prod(box)
        if options.width is not None:
            width = options.width
        elif on_cpu:
            widest = _WIDEST if self.state_size <= _LARGE else _WIDEST_OF_LARGE
            width = min(widest, max(8, lanes // _LANES_PER_SLOT))
        else:
            width = hardware.width_on_accelerator(self.state_size, lanes)
        # A multiple of 8: in the remainder of a vector loop the last bit of a result may differ.
        width = 8 * -(-min(width, lanes) // 8)
        step = 8 if lanes <= 512 else 64
        self._extents = extents
        self.set_layout(box, width, max(width, step * -(-lanes // step)))

    def set_layout(self, box: tuple[int, ...], width: int, padded: int) -> None:
        """Set how the grid is cut. A program has `padded` lanes: the last lane is repeated."""
        self.box, self.width, self.padded = box, width, padded
        self.arrays = self._arrays(self._extents)

    def _target_on_cpu(self) -> int:
        if self.options.chunk_lanes is not None:
            return self.options.chunk_lanes
        most = min(_MOST_LANES, _MOST_BYTES // self.lane_bytes)
        few = max(_FEWEST_LANES, -(-self.grid.size // _CHUNKS))
        many = max(_LANES, -(-self.grid.size // _CHUNKS_OF_LARGE))
        return max(1, min(most, few, many))

    def _target_on_accelerators(self, devices: Sequence[Any]) -> int:
        if self.options.chunk_lanes is not None:
            return self.options.chunk_lanes
        room = hardware.room_of_chunk(devices[0]) // self.lane_bytes
        chunks = 2 if self.grid.size > _LANES_FOR_TWO_CHUNKS * len(devices) else 1
        return hardware.lanes_of_chunk(room, self.grid.size, chunks * len(devices))

    def _check_names(self):
        variables = [v for o in self.options.observables for v in o.variables]
        for variable in variables:
            require_identifier(variable.name, "observables: the name of a variable")
            for dim in variable.dims:
                require_identifier(dim, f"observables: every dimension of {variable.name}")
        names = [v.name for v in variables]
        taken = [*(v.name for v in LANE_VARIABLES), *(a.name for a in self.grid.leaf_axes)]
        taken += [axis.name for axis in self.grid.axes]
        for i, name in enumerate(names):
            if name in names[:i] or name in taken:
                what = "an axis or a variable of every sweep" if name in taken else "given twice"
                raise ValueError(
                    f"observables: names must differ, and {name!r} is {what}; rename one of the "
                    "two."
                )

    def _checked(self, cell: Cell):
        """State size, bytes of a lane, dtype, and {variable: (shape, dtype)} of a cell."""
        network, problem = same_dtype(*cell.example())
        options = self.options
        where = f" (at {cell.name})" if cell.name else ""
        try:
            check_pair(network, problem)
            if options.descent is not None:
                options.descent.check(cell)
            else:
                system = System.of(network, problem)
                stop_options = {"stop": self.stops[id(cell)], "max_steps": options.max_steps}
                fill_options(system, solver=options.solver, **stop_options, **options.flow)
            for observable in options.observables:
                observable.check(network, problem)
        except ValueError as error:
            raise ValueError(f"{error}{where}") from None
        beta = network.linear_coefficients()
        number = jax.numpy.zeros((), beta.dtype)
        margin = number if problem.has_margins else None
        sizes = (number, number, number, margin, number)
        start = None if options.descent is None else example_start(network)
        end = Ending(network, network, network, problem, beta, *sizes, effective_start=start)
        shapes = {}
        for observable in options.observables:
            for variable, value in zip(observable.variables, observable.shapes(end), strict=True):
                if len(value.shape) > len(variable.dims):
                    raise ValueError(
                        f"observables: {variable.name} has values of shape {value.shape} and needs "
                        f"a name for each axis, got dims = {variable.dims}."
                    )
                shapes[variable.name] = tuple(value.shape), np.dtype(value.dtype)
        state = sum(x.nbytes for x in jax.tree.leaves(split(network)[0]))
        own = 0
        if cell.constants_differ_by_lane:
            own += sum(x.nbytes for x in jax.tree.leaves(split(network)[1]) if eqx.is_array(x))
        if cell.shared is None:
            own += sum(x.nbytes for x in jax.tree.leaves(problem) if eqx.is_array(x))
        recorded = sum(math.prod(shape) * dtype.itemsize for shape, dtype in shapes.values())
        lane_bytes = state + own + recorded + 8 * beta.dtype.itemsize
        return state // beta.dtype.itemsize, lane_bytes, beta.dtype, shapes

    def _arrays(self, cells) -> dict[str, Array]:
        sizes: dict[str, int] = {}
        variables = [*LANE_VARIABLES, *(v for o in self.options.observables for v in o.variables)]
        own = {
            "status": ((), np.dtype(np.int8)),
            "num_steps": ((), np.dtype(np.int32)),
            "method": ((), np.dtype(np.int8)),
        }
        chosen = {}
        for variable in variables:
            found = [{**own, **shapes}[variable.name] for shapes in cells]
            ndim = max(len(shape) for shape, _ in found)
            dims = variable.dims[:ndim]
            for shape, _ in found:
                for dim, size in zip(dims, shape, strict=False):
                    sizes[dim] = max(sizes.get(dim, 1), size)
            chosen[variable.name] = variable, dims, max(dtype for _, dtype in found)
        arrays = {}
        for name, (variable, dims, dtype) in chosen.items():
            extra = tuple(sizes[dim] for dim in dims)
            arrays[name] = Array(
                variable,
                (*self.grid.dims, *dims),
                (*self.grid.shape, *extra),
                (*self.box, *extra),
                dtype,
            )
        return arrays

    @property
    def counts(self) -> tuple[int, ...]:
        """Chunks along each dimension of the grid."""
        return tuple(-(-n // b) for n, b in zip(self.grid.shape, self.box, strict=True))

    @property
    def num_chunks(self) -> int:
        """The number of chunks."""
        return math.prod(self.counts)

    def chunk(self, number: int) -> Chunk:
        """Chunk `number`, counted in C order."""
        corner = np.unravel_index(number, self.counts)
        region = tuple(
            slice(int(c) * b, min((int(c) + 1) * b, n))
            for c, b, n in zip(corner, self.box, self.grid.shape, strict=True)
        )
        indices = np.ix_(*(np.arange(s.start, s.stop) for s in region))
        lanes = np.ravel_multi_index(indices, self.grid.shape).ravel()
        return Chunk(number, self.cells[self.grid.cell_of(lanes[0])], region, lanes)

    def chunks(self) -> Iterator[Chunk]:
        """All chunks, in order of their numbers."""
        return map(self.chunk, range(self.num_chunks))

    def summary(self, num_devices: int) -> dict[str, Any]:
        """What `sweep --dry-run` prints; bytes on disk are before compression."""
        values = sum(array.nbytes for array in self.arrays.values())
        coordinates = sum(axis.values.nbytes for axis in self.grid.leaf_axes)
        return {
            "lanes": self.grid.size,
            "dimensions": dict(zip(self.grid.dims, self.grid.shape, strict=True)),
            "variables": list(self.arrays),
            "chunks": self.num_chunks,
            "lanes_per_chunk": math.prod(self.box),
            "lanes_in_flight": self.width,
            "files": self.num_chunks * (len(self.arrays) + 1),
            "shapes": len(self.cells),
            "devices": num_devices,
            "compilations": len(self.cells) * num_devices,
            "memory_per_device_bytes": self.padded * self.lane_bytes,
            "disk_bytes": values + coordinates,
        }


def _coordinates_of(observables) -> dict[str, np.ndarray]:
    merged: dict[str, np.ndarray] = {}
    for observable in observables:
        for name, values in observable.coordinates().items():
            if name in merged and not np.array_equal(merged[name], values):
                raise ValueError(
                    f"observables: two of them have different values of {name!r}; take one of them."
                )
            merged[name] = values
    return merged


def _stop(cell: Cell, options: Options) -> Any:
    """The given rule; or one from the data of all lanes, if lanes differ in data; or None."""
    problems = cell.sample()[1]
    if problems is not None:
        require_no_negative_decay(problems)
    if options.stop is not None or problems is None or not problems.has_residuals:
        return options.stop
    y = np.asarray(problems.y)
    sizes = np.abs(y).reshape(y.shape[0], -1).max(axis=1)
    sizes = sizes[np.isfinite(sizes) & (sizes > 0)]
    scale = float(sizes.min()) if sizes.size else 1.0
    eps = float(np.finfo(y.dtype).eps)
    each = jax.vmap(lambda p: default_residual(p, scale, eps))(problems)
    residual = StopAtResidual(float(np.min(each)))
    if weight_decay_of(problems) is None:
        return residual
    return StopAtBalance(max(1e-10, 1e3 * eps)) | residual


def _box(grid: Grid, target: int) -> tuple[int, ...]:
    """The extents of a chunk: it fills the last dimensions first, and cuts one into equal parts."""
    box: list[int] = []
    for axis, size in zip(reversed(grid.axes), reversed(grid.shape), strict=True):
        leaves = axis.axes if isinstance(axis, Zip) else (axis,)
        room = max(1, target // math.prod(box))
        parts = size if any(a.changes_shape for a in leaves) else -(-size // room)
        box.append(-(-size // parts))
    return tuple(itertools.chain(reversed(box)))


def _check_descent_options(options):
    if options.descent is None:
        return
    if not isinstance(options.descent, Descent):
        raise ValueError(
            "descent: must be a lintensor_jax.sweeps.Descent, got "
            f"{in_words(options.descent)}; pass e.g. Descent(1000, step_size=0.01)."
        )
    for observable in options.observables:
        if observable.integrates:
            raise ValueError(
                f"observables: {type(observable).__name__} is of flows, got a sweep of descents; "
                "leave it out."
            )
    for name in ("stop", "clock", "solver", "rtol", "atol", "compilation"):
        if getattr(options, name) is not None:
            raise ValueError(
                f"{name}: is of flows, got one with descent=...; leave it out, or leave descent "
                "out."
            )


def _require_whole(name, value, smallest):
    whole = isinstance(value, int) and not isinstance(value, bool)
    if value is not None and not (whole and value >= smallest):
        raise ValueError(
            f"{name}: must be a whole number >= {smallest}, got {value!r}; leave it out for the "
            "default."
        )


class Outcome(NamedTuple):
    """Arrays by the variables' names, lanes first; `unfinished`: places of unfinished lanes."""

    values: dict[str, np.ndarray]
    unfinished: tuple[int, ...] = ()
    executed_steps: int = 0
    needed_steps: int = 0
    notes: dict[int, str] = {}  # noqa: RUF012 - messages of failed lanes, by place
    compilation: str = ""  # what ran the explicit flows: "native", "xla", or "xla: <reason>"

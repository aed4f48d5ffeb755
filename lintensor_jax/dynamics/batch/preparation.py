"""How a batch is prepared: from the arguments of `batched_flow` to a `PreparedBatch`."""

import collections
import math
import threading
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple, cast

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ...networks import split
from ...networks.pair import same_dtype
from ...penalized import Penalized, with_weight_decay
from ..clocks import PhysicalTime
from ..options import fill_options
from ..shifted_systems import has_implicit_steps
from ..system import System
from . import hardware
from .early_finish import with_early_finish
from .fourier_basis import Spectral
from .lane_data import LaneData, lanes_of_constants
from .prepared_batch import PreparedBatch
from .programs import XLA, AbstractCompilation, Arguments, Native
from .stepper import Stepper

# Dormand & Prince's 8(7) is as fast as Tsit5 on small networks, and 30 times as accurate. With more
# numbers it saves nothing, and on other clocks its long steps end far beyond the stop rule.
_LARGEST_OF_HIGH_ORDER = 16
# It needs a quarter more steps than at 1e-8, and all lanes of the paper's sweep end within 1e-8 of
# their limits (`benchmarks/batched.py`).
_RTOL_OF_HIGH_ORDER = np.asarray(1e-9)
# Numbers in one log.
_LOG_SIZE = 2**16
# The most implicit steps of a lane by default. A corner of four layers takes some 2,000.
_STIFF_STEPS = 4096
_NATIVE = Native()
# Made once: an equinox module takes longer to make than to use.
_OF_LOW_ORDER, _OF_HIGH_ORDER = diffrax.Tsit5(), diffrax.Dopri8()
# At most `_KEPT` preparations are kept, with their compiled code. The arrays of each have at most
# `_KEPT_BYTES` bytes.
_KEPT, _KEPT_BYTES = 16, 2**20


class Settings(NamedTuple):
    """The arguments of `batched_flow` after `networks` and `problem`."""

    shared_problem: bool
    shared_constants: bool | None
    weight_decay: Any
    width: int | None
    solver: diffrax.AbstractERK | None
    compilation: AbstractCompilation | None
    devices: Sequence[Any] | None
    stiff_max_steps: Any
    options: dict[str, Any]


_prepared: collections.OrderedDict[Any, tuple[PreparedBatch, list[Any]]] = collections.OrderedDict()
_lock = threading.Lock()


def prepared_for(
    networks: Any, problem: Any, settings: Settings
) -> tuple[Any, Any, Any, PreparedBatch]:
    """The networks in the precision of the batch, their two parts, and what they need besides.

    The parts are those of `split`. A call with the same arrays of JAX as an earlier one, and with
    parameters of the same kind, gets what was prepared then: preparing takes as long as a hundred
    small flows.
    """
    parameters, rest = split(networks)
    count = _lanes("networks", parameters)
    key, arrays = _key_of(parameters, (rest, problem, settings))
    with _lock:
        found = _prepared.get(key)
        if found is not None:
            _prepared.move_to_end(key)
            return networks, parameters, rest, found[0]
    problem, is_shared = _decaying(problem, settings, count)
    given, (networks, problem) = networks, same_dtype(networks, problem)
    if networks is not given:
        parameters, rest = split(networks)
    settings = settings._replace(shared_problem=is_shared)
    prepared = _prepare(parameters, rest, problem, count, settings)
    if key is not None and networks is given:
        _keep(key, prepared, arrays)
    return networks, parameters, rest, prepared


def _key_of(parameters: Any, others: Any) -> tuple[Hashable | None, list[Any]]:
    """A key of the same `others` and of parameters of one kind, and the arrays of `others`.

    The key has the identities of these arrays, which must be kept with it. It is None if a leaf can
    change, as an array of NumPy can. Static fields must not change, as in `jax.jit`.
    """
    leaves, structure = jax.tree.flatten(others)
    arrays = [leaf for leaf in leaves if isinstance(leaf, jax.Array)]
    known = [id(leaf) if isinstance(leaf, jax.Array) else (type(leaf), leaf) for leaf in leaves]
    given, config = Arguments(parameters), cast("Any", jax.config)
    # Arrays of NumPy have no device: JAX's default decides.
    device = hardware.device_of(given.arrays[0])
    key = structure, *known, given.kind, device, hardware.kind_of(device), config.jax_enable_x64
    try:
        hash(key)
    except TypeError:
        return None, arrays
    return key, arrays


def _keep(key: Hashable, prepared: PreparedBatch, arrays: list[Any]) -> None:
    """Keep what was prepared, and the `arrays` of the key, unless they take much memory."""
    leaves = [*arrays, *jax.tree.leaves(prepared.data), *prepared.arguments.arrays]
    held = {id(leaf): leaf for leaf in leaves}.values()
    is_traced = any(isinstance(leaf, Tracer) for leaf in held)
    if is_traced or sum(getattr(leaf, "nbytes", 0) for leaf in held) > _KEPT_BYTES:
        return
    with _lock:
        _prepared[key] = prepared, arrays
        while len(_prepared) > _KEPT:
            _prepared.popitem(last=False)


def _prepare(parameters, rest, problem, count: int, settings: Settings) -> PreparedBatch:
    """What the lanes need; `parameters` and `problem` have one precision."""
    shared, devices = settings.shared_problem, settings.devices
    # The device in use, which need not be JAX's default.
    leaves = jax.tree.leaves(parameters)
    device = hardware.device_of(leaves[0]) if devices is None else devices[0]
    kind = hardware.kind_of(device)
    first, one = _first_lane(parameters, problem, None if shared else count, kind)
    rest_of_one, constants = lanes_of_constants(first, rest, one, count, settings.shared_constants)
    network = eqx.combine(first, rest_of_one)
    system = System.of_parts(network, first, rest_of_one, one)
    options: dict[str, Any] = {"max_steps": 4096} | settings.options
    filled = fill_options(system, **options)
    compilation = settings.compilation or (XLA() if kind == "other" else _NATIVE)
    size = system.num_parameters + (0 if isinstance(filled.clock, PhysicalTime) else 2)
    solver = settings.solver
    if solver is None:
        solver, filled = _by_default(filled, size, options.get("rtol"))
    own = None if shared else one, None if constants is None else network
    sizes = _sizes(device, settings, size, (network, one, own), leaves[0])
    can_turn = has_implicit_steps(system, filled.clock, system.num_parameters)
    stepper = Stepper(
        system=system,
        options=with_early_finish(filled, one, options, shared),
        solver=solver,
        shared=shared,
        width=sizes.width,
        exchanges=max(1, min(sizes.chunk, _LOG_SIZE // (sizes.width * (size + 5)))),
        enough=sizes.enough,
        own_constants=constants is not None,
        stiff_max_steps=_stiff_steps(settings) if can_turn else None,
        branches=kind == "cpu",
    )
    return PreparedBatch(
        stepper=stepper,
        arguments=Arguments(stepper.of_any_width()),
        usual=filled,
        compilation=compilation,
        sizes=sizes,
        spectral=Spectral.of(network, one),
        data=LaneData(problem, constants),
        same_rest=rest is rest_of_one,
    )


def _stiff_steps(settings: Settings) -> int | None:
    """The most implicit steps of a lane; None for no implicit steps."""
    steps = settings.stiff_max_steps
    if steps is ...:
        by_default = settings.solver is None and "max_steps" not in settings.options
        return _STIFF_STEPS if by_default else None
    return steps


def _decaying(problem: Any, settings: Settings, count: int) -> tuple[Any, bool]:
    """The problem with weight decay, if there is one, and whether all lanes share it."""
    weight_decay, shared = settings.weight_decay, settings.shared_problem
    if np.ndim(weight_decay) == 0:
        if shared or weight_decay == 0:
            return with_weight_decay(problem, weight_decay), shared
        weight_decay = jnp.full(count, weight_decay)
    if np.shape(weight_decay) != (count,):
        raise ValueError(
            f"weight_decay: must be one number, or one a lane, of shape ({count},), got shape "
            f"{np.shape(weight_decay)}."
        )
    if shared:
        problem = jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), problem)
    return Penalized(problem, weight_decay), False


def _first_lane(parameters, problem, problems, kind):
    """The parameters and the problem of the first lane.

    `problems`: the number of problems, None if all lanes share one.
    """
    if problems is not None:
        _lanes("problem", problem, problems)
    # On a CPU NumPy does this in a microsecond. Copies do not keep all lanes in memory.
    by_numpy = kind == "cpu"
    first = jax.tree.map(lambda x: (np.asarray(x) if by_numpy else x)[0].copy(), parameters)
    one = problem if problems is None else jax.tree.map(lambda leaf: leaf[0], problem)
    return first, one


def _by_default(options, size: int, rtol) -> tuple[diffrax.AbstractERK, Any]:
    """The method of lanes with `size` numbers, and the options with its tolerance.

    `rtol`: the user's, or None.
    """
    if not isinstance(options.clock, PhysicalTime) or size > _LARGEST_OF_HIGH_ORDER:
        return _OF_LOW_ORDER, options
    if rtol is None and options.rtol.dtype == np.float64:
        options = options._replace(rtol=_RTOL_OF_HIGH_ORDER)
    return _OF_HIGH_ORDER, options


def _sizes(device, settings: Settings, size, lane, leaf) -> hardware.Sizes:
    """How the lanes are divided for the devices.

    `lane`: see `_numbers_of_lane`. `leaf`: an array of parameters of all lanes.
    """
    count, width, devices = leaf.shape[0], settings.width, settings.devices
    shares = 1 if devices is None else len(devices)
    if hardware.kind_of(device) == "cpu":
        return hardware.sizes_on_cpu(width, size, count, shares, _own_numbers(lane[-1]))
    memory, numbers = hardware.memory_of(device), _numbers_of_lane(size, *lane)
    itemsize = leaf.dtype.itemsize
    return hardware.sizes_on_accelerator(width, numbers, itemsize, memory, count, shares)


def _numbers_of_lane(size, network, problem, own) -> hardware.LaneNumbers:
    """How many numbers a lane has; `own`: the parts of network and problem that are not shared."""

    def predictions(network, problem):
        return problem.predictions(network.linear_coefficients())

    found = eqx.filter_eval_shape(predictions, network, problem)
    return hardware.LaneNumbers(size, math.prod(found.shape), _own_numbers(own))


def _own_numbers(own) -> int:
    return sum(getattr(leaf, "size", 0) for leaf in jax.tree.leaves(own))


def _lanes(name: str, tree: Any, expected: int | None = None) -> int:
    """The length of the first axis of all arrays. ValueError if they differ."""
    shapes = [leaf.shape for leaf in jax.tree.leaves(tree)]
    lengths = {shape[0] if shape else 0 for shape in shapes}
    if len(lengths) == 1 and min(lengths) > 0 and expected in (None, *lengths):
        return lengths.pop()
    raise ValueError(
        f"{name}: every array must have a first axis of {expected or 'one or more'} lanes, got "
        f"{', '.join(map(str, shapes)) or 'no array'}; jax.vmap of a function for one makes them."
    )

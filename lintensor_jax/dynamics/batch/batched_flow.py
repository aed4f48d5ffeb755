"""Many flows at once: an explicit stepper whose lanes share only their instructions.

`jax.vmap` of `gradient_flow` runs every lane until the slowest is done. Here every lane has its own
step size, status and clock, and a lane that is done is replaced by the next lane of the queue. The
method and its step-size rules are diffrax's (the tableau, the first step of Hairer, Norsett &
Wanner, PI control), and a flow takes the steps that `diffrax.diffeqsolve` takes. Everything that a
flow does not need is left out. Stiff lanes are continued together by an implicit method.
"""

import dataclasses
import functools
import math
import threading
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import EllipsisType
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike

from ...messages import in_words
from ...networks import split
from ...networks.pair import check_problem, same_dtype
from ...penalized import Penalized, with_weight_decay
from ...problems import AbstractProblem
from ..clocks import PhysicalTime
from ..options import fill_options
from ..runge_kutta import has_shared_slopes
from ..shifted_systems import has_implicit_steps
from ..system import System
from . import hardware
from .chunk import Chunk
from .early_finish import rejected_lanes, with_early_finish, with_lanes
from .fourier_basis import Spectral
from .lane_data import LaneData, lanes_of_constants
from .program_chunk import BatchedFlow, integrate_chunk
from .programs import XLA, AbstractCompilation, Native
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
# Classes of networks and reasons for which a warning has been given.
_warned: set[tuple[type, str]] = set()
_warning = threading.Lock()
_OPTIONS = {"clock", "stop", "finish", "rtol", "atol", "max_steps"}


def batched_flow(
    networks: Any,
    problem: AbstractProblem,
    *,
    shared_problem: bool = True,
    shared_constants: bool | None = None,
    weight_decay: float | ArrayLike = 0.0,
    width: int | None = None,
    solver: diffrax.AbstractERK | None = None,
    compilation: AbstractCompilation | None = None,
    devices: Sequence[Any] | None = None,
    stiff_max_steps: int | EllipsisType | None = ...,
    **options: Any,
) -> BatchedFlow:
    """Integrate the gradient flows of many networks, each until it ends.

    **Arguments**

    - `networks`: a network whose parameters have a leading axis of N lanes. Its constants (masks,
      data tensors) all have that axis, or none of them has: then all lanes share them.
    - `problem`: the data of all lanes; or, with `shared_problem=False`, one problem for each lane:
      every array has a leading axis of N.
    - `shared_constants`: whether all lanes share the constants. If None, their shapes decide; a
      ValueError if both fit.
    - `weight_decay`: as in `gradient_flow`; or one number for each lane, an array of shape (N,).
    - `width`: how many lanes XLA integrates at once, rounded up to a multiple of 8. Default on a
      CPU: 128, or 32 if a lane has more than 32 numbers. Default on a GPU: lanes with about 2^18
      numbers, or a sixteenth of the lanes of one program.
    - `solver`: an explicit diffrax method whose last stage is the first of the next step. Default:
      `diffrax.Dopri8()` in physical time with up to 16 numbers a lane, else `diffrax.Tsit5()`.
    - `compilation`: `Native()` (default on CPUs and CUDA devices), or `XLA()`. XLA also runs the
      networks for which there is no machine code: large ones (on CUDA devices more than 16
      numbers), and those with a sort, an FFT, a scan or a similar operation. It also runs if
      machine code of a GPU does not agree with it. The result says what ran, and why. A warning
      names every reason except the size, once for every class of networks.
    - `devices`: the devices that compute, such as `jax.local_devices()`; default: the device of the
      networks. XLA runs one program at a time on a device: for two cores of a CPU, set
      `jax.config.update("jax_num_cpu_devices", 2)` before the first computation.
    - `stiff_max_steps`: a lane that has taken `max_steps` explicit steps is stiff. It is continued
      by at most so many steps of an implicit method (Rodas5P), together with the other stiff lanes.
      If this is None, or if an implicit step needs a matrix of more than 600 rows (see
      `gradient_flow`), it ends with status `max_steps`. A lane whose tied layers shrink (u = v,
      but not in diagonal networks) is treated as stiff before its budget is used up: in explicit
      steps, rounding would make them different. Default: 4096 if neither
      `max_steps` nor `solver` is given, else None. With several support vectors,
      `max_steps=512, stiff_max_steps=20_000` is a good choice.
    - `clock`, `stop`, `finish`, `rtol`, `atol`, `max_steps`: as in `gradient_flow`. The default of
      max_steps is 4096. The default of rtol is 1e-9 if the method is Dopri8 by default. A default
      stop is one rule for all lanes, derived from the data of the first lane. If neither `stop` nor
      `finish` is given, and all lanes share a problem with the squared loss, a flow in float64 ends
      at a residual of 1e-5 max|y| with `GaussNewton(3e-5)`. A lane whose finish is not accepted
      there is integrated again, with the defaults of `gradient_flow`.

    **Returns** a `BatchedFlow`. Nothing is raised for a lane that fails: see `status`.

    **Raises** ValueError for bad input, and TypeError for an unknown option.
    """
    _check(networks, problem, solver, compilation, width, devices, options)
    stiff_max_steps = _steps_of(stiff_max_steps, solver is None and "max_steps" not in options)
    parameters, rest = split(networks)
    count = _lanes("networks", parameters)
    problem, shared_problem = _decaying(problem, shared_problem, weight_decay, count)
    given, (networks, problem) = networks, same_dtype(networks, problem)
    if networks is not given:
        parameters, rest = split(networks)
    # The device in use, which need not be JAX's default.
    device = hardware.device_of(jax.tree.leaves(parameters)[0]) if devices is None else devices[0]
    kind = hardware.kind_of(device)
    first, one = _first_lane(parameters, problem, None if shared_problem else count, kind)
    rest_of_one, constants = lanes_of_constants(first, rest, one, count, shared_constants)
    network = eqx.combine(first, rest_of_one)
    system = System.of_parts(network, first, rest_of_one, one)
    options.setdefault("max_steps", 4096)
    filled = fill_options(system, **options)
    thetas = _as_vectors(jax.tree.leaves(parameters))
    if compilation is None:
        compilation = XLA() if kind == "other" else _NATIVE
    size = system.num_parameters + (0 if isinstance(filled.clock, PhysicalTime) else 2)
    if solver is None:
        solver, filled = _by_default(filled, size, options.get("rtol"))
    own = None if shared_problem else one, None if constants is None else network
    sizes = _sizes(device, width, size, (network, one, own), thetas, devices)
    can_turn = has_implicit_steps(system, filled.clock, thetas.shape[1])
    stepper = Stepper(
        system=system,
        options=with_early_finish(filled, one, options, shared_problem),
        solver=solver,
        shared=shared_problem,
        width=sizes.width,
        exchanges=max(1, min(sizes.chunk, _LOG_SIZE // (sizes.width * (size + 5)))),
        enough=sizes.enough,
        own_constants=constants is not None,
        stiff_max_steps=stiff_max_steps if can_turn else None,
        branches=kind == "cpu",
    )
    run = functools.partial(
        _integrated, compilation, sizes, (Spectral.of(network, one), sizes.batch), devices
    )
    flow = _early_or_usual(run, stepper, filled, thetas, LaneData(problem, constants))
    if count > sizes.chunk or rest is not rest_of_one:
        flow = _with_constants(flow, rest)
    _warn_of_fallback(type(network), flow)
    return flow


def _check(networks, problem, solver, compilation, width, devices, options) -> None:
    """Refuse invalid arguments before anything is computed."""
    if solver is not None and not has_shared_slopes(solver):
        raise ValueError(
            "solver: must be an explicit diffrax method with the FSAL property, such as "
            f"diffrax.Tsit5() or diffrax.Dopri8(), got {in_words(solver)}; use "
            "gradient_flow for others."
        )
    if not isinstance(compilation, AbstractCompilation | None):
        raise ValueError(
            f"compilation: must be Native() or XLA(), got {in_words(compilation)}; leave it out "
            "for the faster one."
        )
    if width is not None and (type(width) is not int or width < 1):
        raise ValueError(
            f"width: must be a positive int, got {in_words(width)}; leave it out for the default."
        )
    check_problem(problem)
    if devices is not None and (isinstance(devices, jax.Device) or not len(devices)):
        raise ValueError(
            f"devices: must be a sequence of one or more, got {in_words(devices)}; leave it out, "
            "or pass jax.local_devices()."
        )
    if not isinstance(networks, eqx.Module):
        raise ValueError(
            f"networks: must be an equinox.Module with a first axis of lanes, got "
            f"{in_words(networks)}; jax.vmap of a function that makes one network returns them."
        )
    if not options.keys() <= _OPTIONS:
        raise TypeError(
            f"batched_flow: no option {in_words(min(options.keys() - _OPTIONS))}; it has "
            f"{', '.join(sorted(_OPTIONS))}. gradient_flow has more."
        )


def _steps_of(stiff_max_steps, by_default: bool) -> int | None:
    """The most implicit steps of a lane; None for no implicit steps."""
    if stiff_max_steps is ...:
        return _STIFF_STEPS if by_default else None
    if stiff_max_steps is not None and (type(stiff_max_steps) is not int or stiff_max_steps < 1):
        raise ValueError(
            f"stiff_max_steps: must be a positive int or None, got {in_words(stiff_max_steps)}; "
            "20_000 is the budget of one gradient_flow."
        )
    return stiff_max_steps


def _decaying(problem, shared, weight_decay, count):
    """The problem with weight decay, if there is one, and whether all lanes share it."""
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
    # On a CPU NumPy does this in a microsecond.
    first = jax.tree.map(lambda leaf: (np.asarray(leaf) if kind == "cpu" else leaf)[0], parameters)
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


@jax.jit  # one dispatch
def _as_vectors(leaves):
    """`ravel_pytree` of every lane, without a trace, which would take milliseconds."""
    vectors = [leaf.reshape(leaf.shape[0], -1) for leaf in leaves]
    return jnp.concatenate(vectors, axis=1)


def _chunks(size, thetas, data, shared) -> list[Chunk]:
    """The lanes, divided into chunks of `size`."""
    count = thetas.shape[0]
    return [Chunk.cut(at, size, count, thetas, data, shared) for at in range(0, count, size)]


def _sizes(device, width, size, lane, thetas, devices) -> hardware.Sizes:
    """How the lanes are divided for the devices; `lane`: see `_numbers_of_lane`."""
    count, shares = thetas.shape[0], 1 if devices is None else len(devices)
    if hardware.kind_of(device) == "cpu":
        return hardware.sizes_on_cpu(width, size, count, shares, _own_numbers(lane[-1]))
    memory, itemsize = hardware.memory_of(device), thetas.dtype.itemsize
    return hardware.sizes_on_accelerator(
        width, _numbers_of_lane(size, *lane), itemsize, memory, count, shares
    )


def _numbers_of_lane(size, network, problem, own) -> hardware.LaneNumbers:
    """How many numbers a lane has; `own`: the parts of network and problem that are not shared."""

    def predictions(network, problem):
        return problem.predictions(network.linear_coefficients())

    found = eqx.filter_eval_shape(predictions, network, problem)
    return hardware.LaneNumbers(size, math.prod(found.shape), _own_numbers(own))


def _own_numbers(own) -> int:
    return sum(getattr(leaf, "size", 0) for leaf in jax.tree.leaves(own))


def _early_or_usual(run, stepper, usual, thetas, data) -> BatchedFlow:
    """The flows of all lanes; with the options `usual` where the early finish is not accepted."""
    flow = run(stepper, thetas, data)
    if stepper.options is usual or not (lanes := rejected_lanes(flow)).size:
        return flow
    own = data.ordered(lanes, stepper.shared)
    return with_lanes(flow, lanes, run(stepper._replace(options=usual), thetas[lanes], own))


def _integrated(compilation, sizes, rest, devices, stepper, thetas, data) -> BatchedFlow:
    """The flows of all lanes. If they have several chunks, the networks have parameters only."""
    chunks = _chunks(sizes.chunk, thetas, data, stepper.shared)
    flows = _on_devices(stepper, compilation, chunks, rest, devices)
    return flows[0] if len(flows) == 1 else _one_flow(flows)


def _on_devices(stepper, compilation, chunks, rest, devices) -> list[BatchedFlow]:
    """The flows of all chunks, in order. Chunk i runs on device i modulo their number."""
    if devices is None:
        return [integrate_chunk(stepper, compilation, chunk, *rest) for chunk in chunks]
    shares = len(devices)

    def share_of(place):
        mine = chunks[place::shares]
        here = eqx.filter(stepper, eqx.is_array), mine
        arrays, mine = jax.device_put(here, devices[place])
        return [
            integrate_chunk(eqx.combine(arrays, stepper), compilation, chunk, *rest)
            for chunk in mine
        ]

    with ThreadPoolExecutor(shares) as pool:
        found = list(pool.map(share_of, range(shares)))
    return [found[i % shares][i // shares] for i in range(len(chunks))]


def _warn_of_fallback(kind: type, flow: BatchedFlow) -> None:
    """Warn once of every reason for which XLA ran, except the documented limit of size."""
    reason = flow.fallback_reason
    with _warning:
        if not reason or flow.fallback_by_size or (kind, reason) in _warned:
            return
        _warned.add((kind, reason))
    warnings.warn(
        f"batched_flow: XLA runs the lanes of {kind.__name__}, since there is no machine code for "
        f"them: {reason}. The results are the same, and may take twice the time or more. "
        "compilation=XLA() is the same without this warning.",
        stacklevel=3,
    )


def _one_flow(flows: list[BatchedFlow]) -> BatchedFlow:
    """The lanes of all chunks, as one flow. Its networks have parameters only."""
    # Chunks can differ: one may have integers that a float cannot represent, for example.
    fallen = next((flow for flow in flows if flow.compilation == "xla"), flows[0])
    same = {
        name: getattr(fallen, name)
        for name in ("compilation", "fallback_reason", "fallback_by_size")
    }
    bare = [
        dataclasses.replace(
            flow,
            **same,
            stop=None,
            network=split(flow.network)[0],
            unfinished_network=split(flow.unfinished_network)[0],
        )
        for flow in flows
    ]
    devices = [hardware.device_of(flow.code) for flow in flows]
    if hardware.kind_of(devices[0]) == "cpu":
        flow = jax.tree.map(lambda *xs: jnp.asarray(np.concatenate(np.atleast_1d(*xs))), *bare)
    else:  # moved from device to device, if there are several
        near = [jax.device_put(flow, devices[0]) for flow in bare]
        flow = jax.tree.map(lambda *xs: jnp.concatenate(jnp.atleast_1d(*xs)), *near)
    return dataclasses.replace(
        flow,
        stop=flows[0].stop,
        executed_steps=jnp.sum(flow.executed_steps),
    )


def _with_constants(flow: BatchedFlow, rest: Any) -> BatchedFlow:
    """The flow with the constants `rest` in its networks."""
    networks = flow.network, flow.unfinished_network
    whole, unfinished = (eqx.combine(split(network)[0], rest) for network in networks)
    return dataclasses.replace(flow, network=whole, unfinished_network=unfinished)


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

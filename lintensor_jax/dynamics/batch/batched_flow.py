"""Many flows at once: an explicit stepper whose lanes share only their instructions.

`jax.vmap` of `gradient_flow` runs every lane until the slowest is done. Here every lane has its own
step size, status and clock, and a lane that is done is replaced by the next lane of the queue. The
method and its step-size rules are diffrax's (the tableau, the first step of Hairer, Norsett &
Wanner, PI control), and a flow takes the steps that `diffrax.diffeqsolve` takes. Everything that a
flow does not need is left out. Stiff lanes are continued together by an implicit method.
"""

import dataclasses
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
from ...networks.pair import check_problem
from ...problems import AbstractProblem
from ..runge_kutta import has_shared_slopes
from . import hardware
from .chunk import Chunk
from .early_finish import rejected_lanes, with_lanes
from .preparation import Settings, prepared_for
from .prepared_batch import PreparedBatch
from .program_chunk import BatchedFlow, integrate_chunk
from .programs import AbstractCompilation

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

    A further call takes less time if it has the same JAX arrays in `problem` and in the constants,
    equal options, and networks of the same shapes and type. What it needs is kept, for data of up
    to 1 MiB. An array of NumPy could have changed; then the batch is prepared again.

    **Raises** ValueError for bad input, and TypeError for an unknown option.
    """
    settings = Settings(
        shared_problem=shared_problem,
        shared_constants=shared_constants,
        weight_decay=weight_decay,
        width=width,
        solver=solver,
        compilation=compilation,
        devices=devices,
        stiff_max_steps=stiff_max_steps,
        options=options,
    )
    _check(networks, problem, settings)
    networks, parameters, rest, prepared = prepared_for(networks, problem, settings)
    thetas = _as_vectors(jax.tree.leaves(parameters))
    flow = _early_or_usual(prepared, devices, thetas)
    if thetas.shape[0] > prepared.sizes.chunk or not prepared.same_rest:
        flow = _with_constants(flow, rest)
    _warn_of_fallback(type(networks), flow)
    return flow


def _check(networks, problem, settings: Settings) -> None:
    """Refuse invalid arguments before anything is computed."""
    solver, compilation, width = settings.solver, settings.compilation, settings.width
    devices, steps, options = settings.devices, settings.stiff_max_steps, settings.options
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
    if steps is not ... and steps is not None and (type(steps) is not int or steps < 1):
        raise ValueError(
            f"stiff_max_steps: must be a positive int or None, got {in_words(steps)}; 20_000 is "
            "the budget of one gradient_flow."
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


@jax.jit  # one dispatch
def _as_vectors(leaves):
    """`ravel_pytree` of every lane, without a trace, which would take milliseconds."""
    vectors = [leaf.reshape(leaf.shape[0], -1) for leaf in leaves]
    return jnp.concatenate(vectors, axis=1)


def _early_or_usual(prepared: PreparedBatch, devices, thetas) -> BatchedFlow:
    """The flows of all lanes; with the usual options where the early finish is not accepted."""
    flow = _integrated(prepared, devices, thetas)
    stepper, usual = prepared.stepper, prepared.usual
    if stepper.options is usual or not (lanes := rejected_lanes(flow)).size:
        return flow
    again = prepared.with_stepper(stepper._replace(options=usual))
    again = again._replace(data=prepared.data.ordered(lanes, stepper.shared))
    return with_lanes(flow, lanes, _integrated(again, devices, thetas[lanes]))


def _integrated(prepared: PreparedBatch, devices, thetas) -> BatchedFlow:
    """The flows of all lanes. If they have several chunks, the networks have parameters only."""
    size, data, shared = prepared.sizes.chunk, prepared.data, prepared.stepper.shared
    count = thetas.shape[0]
    chunks = [Chunk.cut(at, size, count, thetas, data, shared) for at in range(0, count, size)]
    flows = _on_devices(prepared, chunks, devices)
    return flows[0] if len(flows) == 1 else _one_flow(flows)


def _on_devices(prepared: PreparedBatch, chunks, devices) -> list[BatchedFlow]:
    """The flows of all chunks, in order. Chunk i runs on device i modulo their number."""
    if devices is None:
        return [integrate_chunk(prepared, chunk) for chunk in chunks]
    shares = len(devices)

    def share_of(place):
        mine = chunks[place::shares]
        here = eqx.filter(prepared.stepper, eqx.is_array), mine
        arrays, mine = jax.device_put(here, devices[place])
        there = prepared.with_stepper(eqx.combine(arrays, prepared.stepper))
        return [integrate_chunk(there, chunk) for chunk in mine]

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

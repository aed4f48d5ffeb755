"""One chunk of a batch: lanes of one program, from their starts to a `BatchedFlow`."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ..dataset import arrays_of, dataset_of
from ..ends import AbstractEnd
from ..record import Record
from ..statuses import OWN_RULE, STATUS_NAMES, FlowStatus, code_of
from ..stopping import AbstractStop
from . import hardware
from .chunk import Chunk, Ends
from .ends_by_machine_code import ends_by_cuda, ends_by_machine_code
from .ends_by_xla import ends_by_xla_on_device, ends_by_xla_on_host, order_on_host
from .finishing import cpu_lock, finishing
from .fourier_basis import Spectral
from .implicit_lanes import integrate_stiff
from .lane_data import LaneData
from .prepared_batch import PreparedBatch
from .programs import XLA, AbstractCompilation, Arguments, Native, Refusal
from .stepper import Stepper

_XLA = XLA()


class BatchedFlow(AbstractEnd):
    """Ends of many flows; every array has the lanes on its first axis.

    `network`, `coefficients`, `log_loss`, `log_time`, `log_norm`, `log_margin` (None for
    regression), `invariant_drift`, `status`, `reason` as in `FlowSolution`, at the end.
    `finish_accepted` is None without a finish. `num_steps` counts attempted steps,
    `num_rejected_steps` the rejected ones, `num_implicit_steps` those of the implicit method.
    `executed_steps` counts the steps that the machine made, including those of idle lanes.

    - `compilation`: which code ran, "native" or "xla".
    - `fallback_reason`: why XLA ran where machine code was requested; "" otherwise.
    - `fallback_by_size`: whether the reason is the documented limit of size of machine code.
    """

    network: Any
    unfinished_network: Any
    record: Record
    code: Int[Array, " N"]
    stop: AbstractStop
    finish_accepted: Bool[Array, " N"] | None
    num_steps: Int[Array, " N"]
    num_rejected_steps: Int[Array, " N"]
    num_implicit_steps: Int[Array, " N"]
    executed_steps: Int[Array, ""]
    compilation: str = eqx.field(static=True)
    fallback_reason: str = eqx.field(static=True, default="")
    fallback_by_size: bool = eqx.field(static=True, default=False)

    def _rules_of(self, lane: tuple[int, ...]) -> AbstractStop:
        """The stop rule, which is the same for all lanes."""
        return self.stop

    def to_xarray(self) -> Any:
        """The ends as an `xarray.Dataset`; it needs xarray.

        Dimensions: `lane`, `coefficient` and for a matrix `output`. Variables: those of
        `FlowSolution.to_xarray` at the end, `status` in words, and numbers of steps.
        """
        numbers = np.asarray(self.code)
        statuses = np.asarray([STATUS_NAMES[min(int(n), int(OWN_RULE))] for n in numbers])
        more = {
            "status": statuses,
            "num_steps": self.num_steps,
            "num_rejected_steps": self.num_rejected_steps,
            "num_implicit_steps": self.num_implicit_steps,
            "finish_accepted": self.finish_accepted,
        }
        return dataset_of(
            arrays_of(self.record) | more,
            self.record.observed,
            ("lane",),
            coordinates={"lane": np.arange(len(statuses))},
            attributes={"network": type(self.network).__name__, "compilation": self.compilation},
        )

    def __str__(self) -> str:
        """A summary: how many flows, why they ended, how many steps they took."""
        steps = np.asarray(self.num_steps)
        return (
            f"Batch of {steps.size} gradient flows of {type(self.network).__name__}\n"
            f"  stopped by       {self.counted()}\n"
            f"  steps            {steps.min()} to {steps.max()}, median {int(np.median(steps))}\n"
            f"  compilation      {self.compilation}"
            + (f" ({self.fallback_reason})" if self.fallback_reason else "")
        )

    @property
    def waste(self) -> Float[Array, ""]:
        """Executed steps over needed steps, summed over the lanes: 1 if no lane was ever idle."""
        return self.executed_steps / jnp.sum(self.num_steps)


def integrate_chunk(prepared: PreparedBatch, chunk: Chunk) -> BatchedFlow:
    """The flows of one chunk, on the chunk's device, in arrays of `count` lanes."""
    kind = hardware.kind_of(hardware.device_of(chunk.thetas))
    stepper, compilation, spectral = prepared.stepper, prepared.compilation, prepared.spectral
    batch = prepared.sizes.batch
    stepper_used, chunk_used = stepper, chunk  # below: in the Fourier basis, if there is one
    own = given = prepared.arguments, Arguments(chunk)
    if spectral is not None:
        data = LaneData(spectral.problem(chunk.data.problem))
        one = data.lane(0, stepper.shared).problem
        arrays, rest = eqx.partition(spectral.system(one), eqx.is_array)
        system: Any = eqx.combine(jax.device_put(arrays, chunk.thetas.device), rest)
        stepper_used = stepper._replace(system=system)
        chunk_used = chunk._replace(thetas=spectral.into(chunk.thetas), data=data)
        given = Arguments(stepper_used.of_any_width()), Arguments(chunk_used)
    # All programs are traced one after the other and compiled at the same time.
    finish = finishing(*own, compilation, batch)
    ends, refusal, ran = _integrated(stepper_used, chunk_used, given, compilation, kind)
    if ran == "xla" and isinstance(compilation, Native):  # XLA runs everything, as if asked for it
        finish = finishing(*own, _XLA, batch)
    ends = _with_stiff_lanes(stepper_used, compilation, chunk_used, ends, kind)
    if spectral is not None:
        ends = _in_own_basis(ends, spectral, chunk.thetas.shape[1])
    (unfinished, finished, accepted, record), counts, executed = finish(ends)
    rest = stepper.system.rest
    before = eqx.combine(unfinished, rest)
    after = before if finished is None else eqx.combine(finished, rest)
    code, *steps = counts
    arrays = after, before, record, code, stepper.options.stop, accepted, *steps, executed
    return _flow(prepared.arguments.kept, arrays, (ran, refusal.reason, refusal.by_size))


def _flow(kept: dict[Any, Any], arrays: tuple[Any, ...], static: tuple[Any, ...]) -> BatchedFlow:
    """BatchedFlow(*arrays, *static).

    Equinox checks the fields of every new module, which takes as long as small flows. So the
    structure of the first one is kept.
    """
    leaves, structure = jax.tree.flatten(arrays)
    key = BatchedFlow, structure, static
    if key not in kept:
        flow = BatchedFlow(*arrays, *static)
        kept[key] = jax.tree.structure(flow)
        return flow
    return jax.tree.unflatten(kept[key], leaves)


def _integrated(
    stepper: Stepper,
    chunk: Chunk,
    given: tuple[Arguments, Arguments],
    compilation: AbstractCompilation,
    kind: str,
) -> tuple[Ends, Refusal, str]:
    """The ends of a chunk's lanes, why there is no machine code, and what ran.

    `given`: stepper and chunk as arguments of programs.
    """
    refusal, on_cpu = Refusal(""), kind == "cpu"
    if isinstance(compilation, Native):
        if kind == "other":
            found = Refusal("it exists for CPUs and for CUDA")
        elif on_cpu:
            found = ends_by_machine_code(*given, compilation)
        else:
            found = ends_by_cuda(*given, compilation)
        if not isinstance(found, Refusal):
            return found, refusal, "native"
        refusal = found
    if on_cpu:
        order = order_on_host(chunk.thetas, int(chunk.count), stepper.width)
        return ends_by_xla_on_host(stepper, chunk, order), refusal, "xla"
    return ends_by_xla_on_device(stepper, chunk), refusal, "xla"


def _in_own_basis(ends: Ends, spectral: Spectral, parameters: int) -> Ends:
    """The ends with the parameters of the network, from the ends in the Fourier basis."""
    y = ends.y
    back = spectral.back(y[:, :parameters])
    if isinstance(y, np.ndarray):
        y[:, :parameters] = back
        return ends
    return ends._replace(y=jnp.concatenate([back, y[:, parameters:]], axis=1))


def _with_stiff_lanes(
    stepper: Stepper, compilation: AbstractCompilation, chunk: Chunk, ends: Ends, kind: str
) -> Ends:
    """The ends, after lanes with a used-up explicit budget were continued by implicit steps."""
    if stepper.stiff_max_steps is None:
        return ends
    spent = np.asarray(ends.code)[: int(chunk.count)] == code_of(FlowStatus.max_steps)
    if not spent.any():
        return ends
    if kind != "cpu":
        ends = Ends(*(np.array(array) for array in ends[:5]), executed=ends.executed)
    lanes = np.flatnonzero(spent & np.isfinite(ends.y[: spent.size]).all(axis=1))
    if not lanes.size:
        return ends
    data = chunk.data.ordered(lanes, stepper.shared)
    start = chunk.thetas[lanes], data, ends.y[lanes], ends.s[lanes]
    with cpu_lock(kind):
        found, executed = integrate_stiff(stepper, compilation, *start, stepper.stiff_max_steps)
    ends.y[lanes], ends.s[lanes], ends.code[lanes] = found.y, found.s, found.code
    ends.num_steps[lanes] += found.num_steps
    ends.num_rejected[lanes] += found.num_rejected
    implicit = np.zeros(ends.code.shape, np.int32)
    implicit[lanes] = found.num_steps
    return ends._replace(executed=ends.executed + executed, num_implicit=implicit)

"""The ends of a chunk's lanes by XLA, and the order in which lanes start."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .chunk import Chunk, Ends, ends_like, jax_integer
from .programs import XLA, Arguments, compiled
from .stepper import InFlight, Queue, Stepper, running_count

# On a device one lane in so many goes first: those with the smallest starts.
_FIRST = 8
# There the bound between small and other starts is taken from so many lanes, without a sort of all.
_SAMPLE = 1024
_XLA = XLA()


def order_on_host(thetas: Float[Array, "N p"], count: int, width: int) -> Int[np.ndarray, " N"]:
    """The order of the queue: if lanes have to wait, those with the smallest starts go first.

    Small starts take the most steps (rank correlation 0.65 to 0.85 in the uneven sweep of
    `benchmarks/batched.py`). If they started last, the other lanes of the width would be idle.
    """
    order = np.arange(thetas.shape[0], dtype=np.int32)
    if count > width:
        known = np.asarray(thetas)[:count]
        order[:count] = np.argsort(
            _leading_bits(np.einsum("ij,ij->i", known, known)), kind="stable"
        )
    return order


def _leading_bits(sizes: Float[np.ndarray, " N"]) -> Int[np.ndarray, " N"]:
    """The leading 16 bits of positive floats: their order to a few per cent.

    NumPy sorts integers of 16 bits in linear time.
    """
    bits = 8 * sizes.dtype.itemsize
    return (sizes.view(f"uint{bits}") >> (bits - 16)).astype(np.uint16)


def order_on_device(chunk: Chunk) -> Int[Array, " N"]:
    """One lane in `_FIRST` goes first: those with the smallest starts. Without a copy to the host.

    Lanes that are not real come last.
    """
    sizes = jnp.sum(chunk.thetas**2, axis=1)
    place = jnp.arange(sizes.size, dtype=jnp.int32)
    real = place < chunk.count
    sample = jnp.sort(jnp.where(real, sizes, jnp.inf)[_sampled(sizes.size)])
    fewest = jnp.sum(jnp.isfinite(sample)) // _FIRST
    small = real & (sizes <= sample[fewest])
    first, others = running_count(small), running_count(real & ~small)
    place = jnp.where(small, first - 1, jnp.where(real, first[-1] + others - 1, place))
    lanes = jnp.arange(sizes.size, dtype=jnp.int32)
    return jnp.zeros_like(lanes).at[place].set(lanes, unique_indices=True)


def _sampled(count: int) -> Int[np.ndarray, " S"]:
    """Places of a sample among so many lanes, evenly from the first to the last one."""
    size = min(count, _SAMPLE)
    return np.arange(size) * (count - 1) // max(1, size - 1)


def _queue(stepper: Stepper, chunk: Chunk, order) -> tuple[InFlight, Queue]:
    queue = _queue_in_order(stepper, chunk, order)
    return stepper.start(queue), queue


def _queue_in_order(stepper: Stepper, chunk: Chunk, order) -> Queue:
    data = chunk.data.ordered(order, stepper.shared)
    return stepper.queue(chunk.count, chunk.thetas[order], data)


def _advance(stepper: Stepper, in_flight: InFlight, queue: Queue) -> tuple[InFlight, Array]:
    return stepper.advance(in_flight, queue)


def ends_by_xla_on_host(stepper: Stepper, chunk: Chunk, order: Int[np.ndarray, " N"]) -> Ends:
    """The ends of a chunk's lanes. The host reads the device's log whenever it is full."""
    count = int(chunk.count)
    program_arguments, lanes = Arguments(stepper), Arguments(chunk, order)
    start = compiled(_queue, _XLA, program_arguments, lanes)
    advance = compiled(_advance, _XLA, program_arguments, Arguments(*start.results))
    in_flight, queue = start(program_arguments, lanes)
    next_part = advance(program_arguments, Arguments(in_flight, queue))
    likes = ends_like(order.size, stepper.state_size, chunk.thetas.dtype, jax_integer())
    ends: Any = Ends(*(np.zeros(like.shape, like.dtype) for like in likes[:5]))  # pyright: ignore
    while True:
        # The device computes the next part while the host stores this one.
        (in_flight, log), next_part = (
            next_part,
            advance(program_arguments, Arguments(next_part[0], queue)),
        )
        _write_ends(log, count, order, ends)
        if not np.any(np.asarray(in_flight.job) < count):
            return ends._replace(executed=int(in_flight.rounds) * stepper.width)


def _write_ends(log: Array, count: int, order: Int[np.ndarray, " N"], ends: Ends) -> None:
    """Store the ends of those lanes in `log` that were done."""
    entries = np.asarray(log)
    done = entries[:, -1] < count
    lanes = np.moveaxis(entries, 1, -1)[done]
    place = order[lanes[:, -1].astype(int)]
    ends.y[place] = lanes[:, :-5]
    for i, store in enumerate(ends[1:5]):
        store[place] = lanes[:, i - 5]


def _ends_on_device(stepper: Stepper, chunk: Chunk):
    order = order_on_device(chunk)
    (y, *others), rounds = stepper.to_the_end(_queue_in_order(stepper, chunk, order))
    by_lane = [jnp.zeros_like(array).at[order].set(array) for array in (y.T, *others)]
    return by_lane, rounds


def ends_by_xla_on_device(stepper: Stepper, chunk: Chunk) -> Ends:
    """The ends of a chunk's lanes by one program, as arrays on the device.

    On a GPU every copy to the host and every decision of the host takes as long as several steps.
    """
    arguments = Arguments(stepper._replace(exchanges=0)), Arguments(chunk)
    ends, rounds = compiled(_ends_on_device, _XLA, *arguments)(*arguments)
    return Ends(*ends, executed=int(rounds) * stepper.width)

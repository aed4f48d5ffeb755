"""The device in use: its kind, and how many lanes of a batch fit its memory and its cores."""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp

# The memory that is assumed for a device that does not report it, in bytes.
_UNKNOWN_MEMORY = 2**33


def kind_of(device: Any) -> str:
    """The kind of a `jax.Device`: "cpu", "cuda", or "other"."""
    if device.platform == "cpu":
        return "cpu"
    is_cuda = "cuda" in str(getattr(device.client, "platform_version", "")).lower()
    return "cuda" if device.platform in ("gpu", "cuda") and is_cuda else "other"


def device_of(array: Any) -> Any:
    """The device of an array; for an array of NumPy, the device of new arrays."""
    devices = getattr(array, "devices", None) or jnp.zeros(()).devices
    return min(devices(), key=lambda device: device.id)


def memory_of(device: Any) -> int:
    """The bytes that JAX can use on a device."""
    stats = device.memory_stats() or {}
    return int(stats.get("bytes_limit", _UNKNOWN_MEMORY))


class Sizes(NamedTuple):
    """How a batch is divided.

    - `width`: how many lanes XLA integrates at once.
    - `chunk`: how many lanes one program has, a multiple of the width.
    - `enough`: how many lanes must have ended before new ones are taken from the queue.
    - `batch`: how many lanes are finished and recorded at once; None: all.
    """

    width: int
    chunk: int
    enough: int
    batch: int | None


# (width, share) on a CPU for few and for many numbers a lane. The width is large enough for vector
# instructions and small enough for the first cache. New lanes are taken when one lane in `share` is
# done: this takes as long as a few steps of all lanes, and until then a done lane is still stepped.
_SMALL, _LARGE = (128, 4), (32, 16)
_LARGEST_SMALL = 32
# The most lanes of one program on a CPU, and the most numbers of their states and own data: these
# limit memory (some 50 bytes a number). And the lanes that are finished at once.
_CHUNK, _CHUNK_NUMBERS, _BATCH = 2**16, 2**22, 256


def sizes_on_cpu(width: int | None, size: int, count: int, shares: int, own: int = 0) -> Sizes:
    """The sizes for `count` lanes of `size` numbers on `shares` devices; `width` may be None.

    `own`: how many numbers of data a lane has that are not shared.
    """
    usual, share = _SMALL if size <= _LARGEST_SMALL else _LARGE
    width = _of_whole_vectors(min(width or usual, count))
    fitting = max(1, _CHUNK_NUMBERS // max(1, size + own))
    most = min(_CHUNK, 2 ** int(math.log2(fitting)))
    each = max(min(most, -(-count // shares)), min(4 * width, count))
    # A power of two times the width, so that few sizes are ever compiled.
    chunk = width * 2 ** math.ceil(math.log2(-(-each // width)))
    return Sizes(width, chunk, -(-width // share), _BATCH)


# On other devices some 20 kernels are launched for a step. With fewer numbers in flight the
# launches take most of the time. More numbers need more memory (3.9 kB for a lane of 4 numbers).
_IN_FLIGHT, _FEWEST_IN_FLIGHT = 2**18, 2**13
# A large chunk has so many lanes for each lane in flight: few are idle while the last ones end. New
# lanes are taken from the queue when one lane in 32 is done.
_LANES_PER_SLOT, _SHARE = 16, 32
_LARGEST_CHUNK = 2**22
# Numbers that a lane has in memory, rounded up: 14 for every number of its state and 41 others in
# XLA's programs (read from programs that were compiled for an H200, not measured on one); and in
# the finish the derivatives of the residual.
_NUMBERS_PER_ENTRY, _NUMBERS_PER_LANE, _FINISH_NUMBERS = 16, 64, 8
# A chunk may use one part in so many of a device's memory: others may be computed beside it.
_CHUNKS_IN_MEMORY = 6


class LaneNumbers(NamedTuple):
    """How many numbers a lane has: its state, its predictions, and data that are not shared."""

    state: int
    predictions: int
    own: int

    @property
    def in_memory(self) -> int:
        """The numbers that a lane has in the memory of a device while it is integrated."""
        linear = _NUMBERS_PER_ENTRY * (self.state + self.predictions) + _NUMBERS_PER_LANE
        return linear + 2 * self.own

    @property
    def in_finish(self) -> int:
        """The further numbers that a lane has while it is finished."""
        return _FINISH_NUMBERS * self.state * min(self.state, self.predictions + 1)


def sizes_on_accelerator(
    width: int | None, lane: LaneNumbers, itemsize: int, memory: int, count: int, shares: int
) -> Sizes:
    """The sizes for `count` lanes on `shares` devices, each with `memory` bytes."""
    room = memory // _CHUNKS_IN_MEMORY // itemsize
    each = lanes_of_chunk(room // lane.in_memory, count, shares)
    width = _of_whole_vectors(min(width or width_on_accelerator(lane.state, each), each))
    chunk, batch = width * -(-each // width), max(1, room // lane.in_finish)
    return Sizes(width, chunk, -(-width // _SHARE), batch if batch < chunk else None)


def lanes_of_chunk(room: int, count: int, shares: int) -> int:
    """The lanes of a chunk, at most `room`: all devices get the same number of chunks."""
    share = -(-count // shares)
    return -(-share // -(-share // max(8, min(_LARGEST_CHUNK, room))))


def width_on_accelerator(state: int, lanes: int) -> int:
    """The lanes in flight of a chunk of `lanes` with `state` numbers each, in equal parts."""
    filled = max(_FEWEST_IN_FLIGHT, _IN_FLIGHT // max(1, state), lanes // _LANES_PER_SLOT)
    return -(-lanes // -(-lanes // filled))


def room_of_chunk(device: Any) -> int:
    """The bytes of a device that one chunk may take."""
    return memory_of(device) // _CHUNKS_IN_MEMORY


def _of_whole_vectors(width: int) -> int:
    """`width` rounded up to a multiple of 8 lanes, which are vectors of 512 bits.

    In the remainder of a vector loop the last bit of a lane would be different.
    """
    return 8 * -(-width // 8)

"""Launches kernels on a CUDA device, by NVIDIA's cuda.core.

Tables are passed by DLPack and stay on the device. The rest of the package calls only `load`, which
the tests replace.
"""

import importlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

# Threads of a block: one warp, so that only the registers limit the warps of a multiprocessor.
_WARP = 32


class Unavailable(RuntimeError):
    """Kernels cannot be loaded; the message says why, and what to install."""


def load(text: str, device: Any) -> "Launch":
    """The kernels of a text in PTX (`threads.assembled`), on a CUDA device of JAX.

    Raises `Unavailable` if cuda.core is missing, or if the driver refuses the text.
    """
    try:
        core = importlib.import_module("cuda.core")
    except ImportError as error:
        words = f'{error}; pip install "lintensor_jax[cuda]" installs cuda.core'
        raise Unavailable(words) from error
    try:
        return Launch(core, text, device)
    except Exception as error:  # raised by the driver, or by another release of cuda.core
        words = f"the CUDA driver failed with {type(error).__name__}: {error}"
        raise Unavailable(words) from error


class Launch:
    """The kernels of one program, loaded on one device.

    - `registers`, `local_bytes`: registers and local memory of a thread, as compiled by the driver.
    - `threads`: how many threads the device runs at once.
    """

    def __init__(self, core: Any, text: str, device: Any):
        self._core, self._device = core, core.Device(device.local_hardware_id)
        self._device.set_current()
        self._stream = self._device.create_stream()
        code = core.ObjectCode.from_ptx(text.encode())
        self._start, self._integrate = map(code.get_kernel, ("start", "integrate"))
        attributes = self._integrate.attributes
        self.registers, self.local_bytes = attributes.num_regs, attributes.local_size_bytes
        blocks = self._integrate.occupancy.max_active_blocks_per_multiprocessor(_WARP, 0)
        self._blocks = blocks * self._device.properties.multiprocessor_count
        self.threads = _WARP * self._blocks

    def __call__(
        self, table: Float[Array, "N M"], order: Int[Array, " N"], count: int, data: Array
    ) -> tuple[Float[Array, "N M"], int]:
        """The rows at their ends, and the steps that the warps made, including idle threads.

        `order`: the first `count` entries are the rows to integrate. `data`: the shared numbers.
        """
        device, stream = self._device, self._stream
        device.set_current()  # CUDA keeps the current device for each thread of the host
        blocks = max(1, min(self._blocks, -(-count // _WARP)))
        views = [self._view(array) for array in (table, order, data)]
        rows, counters, turns = (
            device.allocate(size, stream=stream) for size in (table.nbytes, 8, 4 * _WARP * blocks)
        )
        given = self._core.Buffer.from_handle(views[0].ptr, table.nbytes, owner=views[0])
        rows.copy_from(given, stream=stream)
        counters.fill(0, stream=stream)
        turns.fill(0, stream=stream)
        config = self._core.LaunchConfig(grid=blocks, block=_WARP)
        for i, kernel in enumerate((self._start, self._integrate)):
            counter = int(counters.handle) + 4 * i
            pointers = int(rows.handle), views[1].ptr
            more = counter, views[2].ptr, int(turns.handle)
            self._core.launch(stream, config, kernel, *pointers, np.int32(count), *more)
        stream.sync()
        numbers = _numbers(jax.dlpack.from_dlpack(rows), table.shape, table.dtype)
        made = np.asarray(jax.dlpack.from_dlpack(turns)).view(np.int32)
        return numbers, executed_steps(made)

    def _view(self, array: Array) -> Any:
        """The memory of a JAX array; the stream waits until the array is computed."""
        number = int(self._stream.handle)
        return self._core.utils.StridedMemoryView.from_dlpack(array, stream_ptr=number)


def executed_steps(made: Int[np.ndarray, " T"]) -> int:
    """The steps of all threads, idle ones included, from the steps `made` that each needed."""
    return int(_WARP * np.max(made.reshape(-1, _WARP), axis=1).astype(np.int64).sum())


def _bytes_as_numbers(raw, shape, dtype):
    return jax.lax.bitcast_convert_type(raw.reshape(*shape, jnp.dtype(dtype).itemsize), dtype)


_numbers = jax.jit(_bytes_as_numbers, static_argnums=(1, 2))

"""Arrays of NumPy at addresses that vector instructions and JAX need."""

import math
from typing import Any

import numpy as np

#: JAX on a CPU uses an array at a multiple of so many bytes without a copy.
ALIGNMENT = 64


def aligned_vectors(vectors: int, width: int, dtype: Any) -> np.ndarray:
    """Zeros for so many vectors of `width` lanes, at a multiple of the size of a vector."""
    numbers, bytes_of_vector = np.dtype(dtype), width * np.dtype(dtype).itemsize
    memory = np.zeros(width * (vectors + 1), numbers)
    return memory[(-address_of(memory) % bytes_of_vector) // numbers.itemsize :][: width * vectors]


def aligned_arrays(shapes: list[tuple[int, ...]], dtype: Any) -> list[np.ndarray]:
    """New arrays at multiples of `ALIGNMENT` bytes; their values are arbitrary."""
    numbers = np.dtype(dtype)
    line = ALIGNMENT // numbers.itemsize
    sizes = [math.prod(shape) for shape in shapes]
    # One piece of memory, which takes less time than many.
    memory = np.empty(sum(sizes) + line * (len(sizes) + 1), numbers)
    start, arrays = (-address_of(memory) % ALIGNMENT) // numbers.itemsize, []
    for size, shape in zip(sizes, shapes, strict=True):
        arrays.append(memory[start : start + size].reshape(shape))
        start += -(-size // line) * line
    return arrays


def as_aligned(array: np.ndarray, dtype: Any = None) -> np.ndarray:
    """The array itself if it is contiguous, aligned and of the type `dtype`; else such a copy."""
    dtype = array.dtype if dtype is None else np.dtype(dtype)
    in_place = address_of(array) % ALIGNMENT == 0 and array.flags.c_contiguous
    if in_place and array.dtype == dtype:
        return array
    (copy,) = aligned_arrays([array.shape], dtype)
    copy[...] = array
    return copy


def address_of(array: np.ndarray) -> int:
    """The address of the array's first number."""
    return array.__array_interface__["data"][0]  # `array.ctypes` takes several times as long

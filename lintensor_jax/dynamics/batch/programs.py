"""Compilation of the programs of a batch: in parallel threads, once for every shape."""

import abc
import collections
import contextlib
import functools
import gc
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np

from ...messages import in_words

# Vectors of 512 bits, where the processor has them.
_OPTIONS = {"xla_cpu_prefer_vector_width": "512"}
# A further thread saves time from this many vectors of rows on.
_FEWEST_VECTORS = 4


class Refusal(NamedTuple):
    """Why a function has no program.

    - `reason`: in words.
    - `by_size`: the program would be larger than the documented limit.
    """

    reason: str
    by_size: bool = False


class AbstractCompilation(eqx.Module):
    """A way to compile a function of arrays."""

    @abc.abstractmethod
    def lowered(self, function: Any, leaves: list[Any]) -> Callable[[], Callable] | Refusal:
        """A function that compiles the jitted `function` for arrays like `leaves`, on their device.

        It is called in another thread: everything that needs Python's lock is done before. A
        `Refusal` is returned if there is no such program.
        """


class XLA(AbstractCompilation):
    """`jax.jit`, on every device."""

    def lowered(self, function: Any, leaves: list[Any]) -> Callable[[], Callable]:
        """The compilation by `jax.jit`, for arrays like `leaves`."""
        options: Any = _OPTIONS if jax.default_backend() == "cpu" else None
        return functools.partial(function.lower(*leaves).compile, compiler_options=options)


class Native(AbstractCompilation):
    """Machine code for CPUs, by LLVM: two to five times faster than XLA on small networks.

    The function has a row (M,) as argument, and arrays that all rows share. It returns the row's
    first numbers twice: before the first step, and after a step. Entry 0 is negative until the row
    is done. The program takes a table (N, M), the order of its rows, and all numbers of the shared
    arrays as one vector of the table's type. It integrates every row to its end, in place, and
    returns the number of steps. There is no program if the function has an operation without an
    instruction here, or too many operations.

    **Arguments**

    - `threads`: the number of threads that share a table. Default: the available cores, divided
      by the number of XLA's devices.
    """

    threads: int | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        threads = self.threads
        if threads is not None and (type(threads) is not int or threads < 1):
            raise ValueError(
                f"Native: threads must be a positive int or None, got {in_words(threads)}; leave "
                "it out to use all cores."
            )

    def lowered(self, function: Any, leaves: list[Any]) -> Callable[[], Callable] | Refusal:
        """The compilation by LLVM, for a row and shared arrays; a `Refusal` if there is none."""
        # A program without machine code does not load LLVM.
        from .native.instructions import TooLarge, Unsupported
        from .native.kernel import Kernel, emit, vector_width

        row, *_ = leaves
        closed = function.trace(*leaves).jaxpr
        try:
            width = vector_width(row)
            program = emit(closed, width)
        except Unsupported as error:
            return Refusal(str(error), isinstance(error, TooLarge))
        except Exception as error:  # a jaxpr of an unknown version of JAX
            return Refusal(f"the emitter failed with {type(error).__name__}: {error}")

        def compile():
            kernel = Kernel(program, width)

            def run(table, order, shared):
                most = -(-order.size // (_FEWEST_VECTORS * width))
                threads = min(self.threads or _cores(), most)
                return width * kernel(table, order, shared, threads)

            return run

        return compile


@contextlib.contextmanager
def _without_garbage_collection():
    """Switch Python's garbage collector off: it would scan all objects of JAX many times."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _cores() -> int:
    """The number of cores for each of XLA's devices."""
    affine = getattr(os, "sched_getaffinity", None)
    available = len(affine(0)) if affine is not None else os.cpu_count() or 1
    return max(1, available // jax.local_device_count())


def _device_of(leaves):
    shardings = [leaf.sharding for leaf in leaves if getattr(leaf, "sharding", None) is not None]
    (device,) = shardings[0].device_set
    return device


def _is_array(leaf: Any) -> bool:
    # NumPy arrays too: the program itself copies them to its device fastest. ShapeDtypeStruct is
    # the placeholder for a result of a program that has not run yet.
    return isinstance(leaf, (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct))


class Arguments:
    """Pytrees as arguments of programs, flattened once.

    - `values`: the pytrees.
    - `arrays`: their arrays, which are the inputs of a program.
    - `kind`: the key of a compiled program: structure, shapes, devices, and the other leaves.
    """

    def __init__(self, *values: Any):
        leaves, structure = jax.tree.flatten(values)
        self.values, self.arrays = values, [leaf for leaf in leaves if _is_array(leaf)]
        same = [
            (leaf.shape, leaf.dtype, getattr(leaf, "sharding", None)) if _is_array(leaf) else leaf
            for leaf in leaves
        ]
        self.kind = structure, *same


def _all_arrays(arguments: Sequence[Arguments]) -> list[Any]:
    return [array for argument in arguments for array in argument.arrays]


class Program:
    """A function of pytrees, compiled for the shapes of one example.

    - `results`: the results, as `jax.ShapeDtypeStruct`. The next program can be traced from them
      while this one is being compiled.
    - `machine_code`: the compiled function of the arrays among the arguments, as a future; or a
      `Refusal`.
    """

    def __init__(
        self,
        function: Callable,
        compilation: AbstractCompilation,
        examples: Sequence[Arguments],
    ):
        values = tuple(value for example in examples for value in example.values)
        dynamic, static = eqx.partition(values, _is_array)
        leaves, structure = jax.tree.flatten(dynamic)
        self._structure: Any = None

        def flat(*leaves):
            arguments = eqx.combine(jax.tree.unflatten(structure, leaves), static)
            results, self._structure = jax.tree.flatten(function(*arguments))
            return results

        jitted = jax.jit(flat)
        place = jax.sharding.SingleDeviceSharding(_device_of(leaves))
        shapes = [
            jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)
            for leaf in jitted.trace(*leaves).out_info
        ]
        self.results = jax.tree.unflatten(self._structure, shapes)
        compile = compilation.lowered(jitted, leaves)
        # XLA and LLVM compile without Python's lock.
        self.machine_code: Future[Callable] | Refusal = (
            compile if isinstance(compile, Refusal) else _compiling.submit(compile)
        )

    def __call__(self, *arguments: Arguments) -> Any:
        """The results, computed from the arrays among the arguments."""
        assert not isinstance(self.machine_code, Refusal)
        results = self.machine_code.result()(*_all_arrays(arguments))
        return jax.tree.unflatten(self._structure, results)


_KEPT = 64
_compiling = ThreadPoolExecutor(thread_name_prefix="compile")  # starts threads on demand
_lock = threading.Lock()
_programs: collections.OrderedDict[Any, Future[Program]] = collections.OrderedDict()


def compiled(function: Callable, compilation: AbstractCompilation, *examples: Arguments) -> Program:
    """`Program(...)`, from a cache of the last 64, whose key is the kind of the arguments."""
    settings: Any = jax.config
    kinds = tuple(example.kind for example in examples)
    key = function, compilation, kinds, settings.jax_enable_x64
    with _lock:
        future = _programs.get(key)
        mine = future is None
        if mine:
            future = _programs[key] = Future()
        _programs.move_to_end(key)
        while len(_programs) > _KEPT:
            _programs.popitem(last=False)
    if mine:
        try:
            with _without_garbage_collection():
                program = Program(function, compilation, examples)
        except BaseException as error:
            future.set_exception(error)
            _forget(key)
            raise
        if isinstance(program.machine_code, Future):
            program.machine_code.add_done_callback(lambda made: made.exception() and _forget(key))
        future.set_result(program)
    return future.result()


def _forget(key: Any) -> None:
    """Remove a program that failed, so that the next call compiles it again."""
    with _lock:
        _programs.pop(key, None)

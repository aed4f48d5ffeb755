"""Compilation of the programs of a batch: in parallel threads, and once for every shape."""

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
from . import hardware

# On a CPU: vectors of 512 bits, if the processor has them. On a GPU: whole loops as one command,
# because otherwise the host decides after every step whether there is another one.
_COMMANDS = "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,DYNAMIC_SLICE_FUSION,CONDITIONAL,WHILE"
_OPTIONS: dict[str, dict[str, Any]] = {
    "cpu": {"xla_cpu_prefer_vector_width": "512"},
    "cuda": {"xla_gpu_enable_command_buffer": _COMMANDS},
}
# A further thread saves time only if it has at least this many vectors of rows.
_FEWEST_VECTORS = 4


class Refusal(NamedTuple):
    """Why a function has no program.

    - `reason`: in words.
    - `by_size`: the program would be larger than the documented limit.
    - `by_failure`: the writer of the program failed, or the compiler.
    """

    reason: str
    by_size: bool = False
    by_failure: bool = False


class AbstractCompilation(eqx.Module):
    """A way to compile a function of arrays."""

    @abc.abstractmethod
    def lowered(self, function: Any, leaves: list[Any]) -> Callable[[], Callable] | Refusal:
        """A function that compiles the jitted `function` for arrays like `leaves`, on their device.

        The returned function is called in another thread, so everything that needs Python's lock
        (GIL) is done before. A `Refusal` is returned if there is no such program.
        """


class XLA(AbstractCompilation):
    """`jax.jit`, on every device."""

    def lowered(self, function: Any, leaves: list[Any]) -> Callable[[], Callable]:
        """The compilation by `jax.jit`, for arrays like `leaves`."""
        kind, lowered = hardware.kind_of(_device_of(leaves)), function.lower(*leaves)
        known = functools.partial(lowered.compile, compiler_options=_OPTIONS.get(kind))

        def with_or_without_options():
            try:
                return known()
            except jax.errors.JaxRuntimeError:
                # Another release of XLA may not know an option. Any other error is raised again.
                return lowered.compile()

        return with_or_without_options if kind == "cuda" else known


class Native(AbstractCompilation):
    """Machine code by LLVM: on CPUs two to five times faster than XLA on small networks.

    On CUDA devices one thread integrates one lane (`pip install lintensor_jax[cuda]`). At the first
    use of a program XLA integrates some of the lanes as well. If the results differ, XLA runs all
    lanes.

    The function has a row (M,) as argument, and arrays that all rows share. It returns the row's
    first numbers after a step. If it has two results, the first one has these numbers before the
    first step. Entry 0 is negative until the row is done.

    The program takes a table (N, M), the order of its rows, and all numbers of the shared arrays as
    one vector of the table's dtype. It integrates every row to its end, in place, and returns the
    number of steps. There is no program if an operation of the function has no instruction here, or
    if the function has too many operations.

    **Arguments**

    - `threads`: the number of threads that share a table on a CPU. Default: the available cores,
      divided by the number of XLA's devices.
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
        row, *_ = leaves
        device = _device_of(leaves)
        for_device = self._for_cuda if hardware.kind_of(device) == "cuda" else self._for_cpu
        closed = function.trace(*leaves).jaxpr
        return _emitted(lambda: for_device(closed, row, device))

    def _for_cpu(self, closed, row, device) -> Callable[[], Callable]:
        from .native.kernel import Kernel, emit, vector_width

        width = vector_width(row)
        program = emit(closed, width)

        def compile():
            kernel = Kernel(program, width)

            def run(table, order, shared):
                most = -(-order.size // (_FEWEST_VECTORS * width))
                threads = min(self.threads or _cores(), most)
                return width * kernel(table, order, shared, threads)

            return run

        return compile

    def _for_cuda(self, closed, row, device) -> Callable[[], Any]:
        from .cuda.kernel import CheckedKernel
        from .cuda.launcher import Unavailable
        from .cuda.threads import assembled, emit_threads

        program = emit_threads(closed)

        def compile():
            text = assembled(program)
            try:
                return CheckedKernel(text, device)
            except Unavailable as error:
                return Refusal(str(error))

        return compile


class OverLanes(AbstractCompilation):
    """Machine code of a CPU that maps a function over lanes, as `jax.vmap` does.

    The first `lanes` arrays of the function's arguments are those of one lane. The program takes
    arrays with a first axis of lanes in their places. There is no program if an operation has no
    instruction, or if the arguments or the results of a lane are more than 64 numbers.
    """

    lanes: int = eqx.field(static=True)
    threads: int | None = eqx.field(static=True, default=None)

    def lowered(self, function: Any, leaves: list[Any]) -> Callable[[], Callable] | Refusal:
        """The compilation by LLVM; a `Refusal` if there is none."""
        # Imported here, so that LLVM is loaded only if machine code is needed.
        from .native.lane_map import LaneMap

        closed = function.trace(*leaves).jaxpr
        found = _emitted(lambda: LaneMap(closed, self.lanes))
        if isinstance(found, Refusal):
            return found

        def compile():
            found.compile()
            return functools.partial(found, threads=self.threads or _cores())

        return compile


def _emitted(emit: Callable[[], Any]) -> Any:
    """What `emit` returns, or a refusal if there is no machine code."""
    from .native.instructions import TooLarge, Unsupported

    try:
        return emit()
    except Unsupported as error:
        return Refusal(str(error), isinstance(error, TooLarge))
    except Exception as error:  # a jaxpr of an unknown version of JAX
        words = f"the emitter failed with {type(error).__name__}: {error}"
        return Refusal(words, by_failure=True)


@contextlib.contextmanager
def _without_garbage_collection():
    """Switch off Python's garbage collector, which would scan all objects of JAX many times."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _cores() -> int:
    """The number of available cores, divided by the number of JAX's devices."""
    affine = getattr(os, "sched_getaffinity", None)
    available = len(affine(0)) if affine is not None else os.cpu_count() or 1
    return max(1, available // jax.local_device_count())


def _device_of(leaves):
    shardings = [leaf.sharding for leaf in leaves if getattr(leaf, "sharding", None) is not None]
    if not shardings:  # all are NumPy's
        return hardware.device_of(None)
    (device,) = shardings[0].device_set
    return device


def _is_array(leaf: Any) -> bool:
    return _is_kind_of_array(type(leaf))


@functools.cache  # jax.Array's own test takes longer than all others
def _is_kind_of_array(kind: type) -> bool:
    # NumPy arrays too: the program itself copies them to its device, which is fastest.
    # ShapeDtypeStruct is the placeholder for a result of a program that has not run yet.
    return issubclass(kind, (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct))


class Arguments:
    """Pytrees as arguments of programs, flattened once.

    - `values`: the pytrees.
    - `arrays`: their arrays, which are the inputs of a program.
    - `kind`: the key of a compiled program: structure, shapes, devices, and the other leaves.
    - `kept`: what callers have made for these arguments alone, and keep with them. The arguments
      of a batch are used again in the next one.
    """

    def __init__(self, *values: Any):
        leaves, structure = jax.tree.flatten(values)
        arrays, kind = [], [structure]
        for leaf in leaves:
            if _is_array(leaf):
                arrays.append(leaf)
                kind.append((leaf.shape, leaf.dtype, getattr(leaf, "sharding", None)))
            else:
                kind.append(leaf)
        self.values, self.arrays, self.kind = values, arrays, tuple(kind)
        self._leaves = leaves
        self.kept: dict[Any, Any] = {}

    @property
    def kind_anywhere(self) -> Any:
        """The key of a traced program: `kind` without devices."""
        leaves = self._leaves
        same = [(leaf.shape, leaf.dtype) if _is_array(leaf) else leaf for leaf in leaves]
        return self.kind[0], *same


def _all_arrays(arguments: Sequence[Arguments]) -> list[Any]:
    return [array for argument in arguments for array in argument.arrays]


class _Flat:
    """A function of pytrees as a function of their arrays, for the shapes of one example.

    - `jitted`: the function. JAX traces it once, even if it is compiled for several devices.
    - `structure`: the pytree structure of the results; known after the trace.
    """

    def __init__(self, function: Callable, examples: Sequence[Arguments]):
        values = tuple(value for example in examples for value in example.values)
        dynamic, static = eqx.partition(values, _is_array)
        structure = jax.tree.structure(dynamic)
        self.structure: Any = None

        def flat(*leaves):
            arguments = eqx.combine(jax.tree.unflatten(structure, leaves), static)
            results, self.structure = jax.tree.flatten(function(*arguments))
            return results

        self.jitted: Any = jax.jit(flat)


class Program:
    """A function of pytrees, compiled for the shapes of one example.

    - `results`: the results, as `jax.ShapeDtypeStruct`. The next program can be traced from them
      while this one is being compiled.
    - `refusal`: why there is no compiled function; None if there is one.
    - `following`: functions that take this program's results, by their compilation. A caller keeps
      them here, so that the next call need not look for them.
    """

    def __init__(
        self,
        flat: _Flat,
        compilation: AbstractCompilation,
        examples: Sequence[Arguments],
        failed: Callable[[], None],
    ):
        self._failed, self._starting = failed, threading.Lock()
        self._machine_code: Future[Callable] | None = None
        self.following: dict[AbstractCompilation, Any] = {}
        leaves, jitted = _all_arrays(examples), flat.jitted
        place = jax.sharding.SingleDeviceSharding(_device_of(leaves))
        shapes = [
            jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)
            for leaf in jitted.trace(*leaves).out_info
        ]
        self._structure = flat.structure
        self.results = jax.tree.unflatten(self._structure, shapes)
        self._compile = compilation.lowered(jitted, leaves)

    @property
    def refusal(self) -> Refusal | None:
        return self._compile if isinstance(self._compile, Refusal) else None

    @property
    def failure(self) -> Refusal | None:
        """Why the compiler failed; None if it did not. Waits until it is done."""
        error = self.machine_code().exception()
        if error is None:
            return None
        return Refusal(f"LLVM failed with {type(error).__name__}: {error}", by_failure=True)

    def machine_code(self) -> Future[Callable]:
        """The compiled function of the arrays among the arguments; the first call starts XLA."""
        with self._starting:
            if self._machine_code is None:
                assert not isinstance(self._compile, Refusal)
                # XLA and LLVM compile without Python's lock.
                made = self._machine_code = _compiling.submit(self._compile)
                made.add_done_callback(lambda made: made.exception() and self._failed())
            return self._machine_code

    def __call__(self, *arguments: Arguments) -> Any:
        """The results, computed from the arrays among the arguments."""
        results = self.machine_code().result()(*_all_arrays(arguments))
        return jax.tree.unflatten(self._structure, results)


_KEPT = 64  # programs for each device
_compiling = ThreadPoolExecutor(thread_name_prefix="compile")  # starts threads on demand
_lock = threading.Lock()
_programs: collections.OrderedDict[Any, Future[Program]] = collections.OrderedDict()
_flat: collections.OrderedDict[Any, _Flat] = collections.OrderedDict()


def compiled(function: Callable, compilation: AbstractCompilation, *examples: Arguments) -> Program:
    """As `traced`, and its compilation has started in another thread, unless it is refused."""
    program = traced(function, compilation, *examples)
    if program.refusal is None:
        program.machine_code()
    return program


def traced(function: Callable, compilation: AbstractCompilation, *examples: Arguments) -> Program:
    """`Program(...)`, or one with the same kind of arguments from a cache (64 for each device)."""
    settings: Any = jax.config
    kinds = tuple(example.kind for example in examples)
    key = function, compilation, kinds, settings.jax_enable_x64
    flat: Any = None
    with _lock:
        future = _programs.get(key)
        mine = future is None
        if mine:
            future = _programs[key] = Future()
        _programs.move_to_end(key)
        while len(_programs) > _KEPT * jax.local_device_count():
            _programs.popitem(last=False)
        if mine:
            anywhere = function, *(e.kind_anywhere for e in examples), settings.jax_enable_x64
            if anywhere not in _flat:
                _flat[anywhere] = _Flat(function, examples)
            flat = _flat[anywhere]
            while len(_flat) > _KEPT:
                _flat.popitem(last=False)
    if mine:
        try:
            with _without_garbage_collection():
                program = Program(flat, compilation, examples, lambda: _forget(key))
        except BaseException as error:
            future.set_exception(error)
            _forget(key)
            raise
        future.set_result(program)
    return future.result()


def _forget(key: Any) -> None:
    """Remove a program that failed, so that the next call compiles it again."""
    with _lock:
        _programs.pop(key, None)

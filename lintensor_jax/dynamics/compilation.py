"""How the batched stepper is compiled: here, or apart with settings of a whole process."""

import abc
import collections
import functools
import hashlib
import os
import pickle
import platform
import re
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import equinox as eqx
import jax
import numpy as np
from jax.experimental import serialize_executable

# Measured with jaxlib 0.10 on the stepper's programs (`benchmarks/batched.py` measures again):
# - multi-output fusion: XLA:CPU splits one step into a dozen kernels that each compute most of the
#   step again; with it they share what they have in common.
# - small loops as one kernel: without it every kernel of a loop's body is dispatched on its own,
#   which takes longer than the kernel. "Small" means bytes that the body touches; any number will
#   do here. (Before XLA excluded them, loops with a scatter, a sort or an FFT made it abort.)
# Both are options of the process, since jaxlib 0.6 or so, undocumented, and not accepted by
# `jax.jit(compiler_options=...)`. Vectors of 512 bits, where the processor has them, are.
_SETTINGS = (
    "--xla_backend_extra_options=xla_cpu_use_multi_output_fusion,"
    "xla_cpu_small_while_loop_byte_threshold=1000000000000"
)
_OPTIONS = {"xla_cpu_prefer_vector_width": "512"}
_SECONDS = 300


class AbstractCompilation(eqx.Module):
    """How a function of arrays becomes a program."""

    #: Whether a loop becomes one kernel.
    fuses: ClassVar[bool]

    @abc.abstractmethod
    def lowered(self, function: Any, leaves: list[Any]) -> Callable[[], Callable]:
        """What makes the program of a jitted function, for arrays like these on their device.

        It is called in a thread of its own: what needs Python's lock is done before.
        """


class InProcess(AbstractCompilation):
    """`jax.jit` in this process, with the settings that one program can have."""

    fuses = False

    def lowered(self, function: Any, leaves: list[Any]) -> Callable[[], Callable]:
        """See `AbstractCompilation`."""
        options: Any = _OPTIONS if jax.default_backend() == "cpu" else None
        return functools.partial(function.lower(*leaves).compile, compiler_options=options)


class Apart(AbstractCompilation):
    """Compiled by a child process whose XLA has settings that make the stepper faster on CPUs.

    The settings are undocumented and belong to a whole process, which XLA may abort. So it is a
    child that tries them, on this very program; the finished program is then loaded here, and this
    process keeps its own settings. Where the child fails (or on a GPU) it is `InProcess`.

    **Arguments**

    - `cache`: a folder where finished programs are kept for the next process, or None. Default: the
      folder `jax_compilation_cache_dir`, if that is set.
    """

    fuses = True
    cache: str | None = eqx.field(static=True, default=None)

    def lowered(self, function: Any, leaves: list[Any]) -> Callable[[], Callable]:
        """See `AbstractCompilation`."""
        without = InProcess().lowered(function, leaves)
        if jax.default_backend() != "cpu":
            return without
        try:
            exported = bytes(jax.export.export(function)(*leaves).serialize())
        except Exception as error:
            _report(str(error))
            return without
        device = _device_of(leaves)
        settings: Any = jax.config
        folder = self.cache or settings.jax_compilation_cache_dir
        stored = Path(folder, f"stepper-{_key(exported, device.id)}") if folder else None

        def compile():
            try:
                if stored is not None and stored.exists():
                    binary = stored.read_bytes()
                else:
                    binary = _compiled_by_child(exported, device.id)
                    if stored is not None:
                        _write(stored, binary)
                return serialize_executable.deserialize_and_load(
                    *pickle.loads(binary), execution_devices=[device]
                )
            except Exception as error:
                _report(str(error))
                return without()

        return compile


def _device_of(leaves):
    shardings = [leaf.sharding for leaf in leaves if getattr(leaf, "sharding", None) is not None]
    (device,) = shardings[0].device_set
    return device


def _key(exported: bytes, device_id: int) -> str:
    """Of the program, and of everything that its machine code depends on."""
    with_versions = f"{version('jax')} {version('jaxlib')} {device_id} {_SETTINGS} {_processor()}"
    return hashlib.sha256(exported + with_versions.encode()).hexdigest()


@functools.cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith("flags")), "")


def _compiled_by_child(exported: bytes, device_id: int) -> bytes:
    # JAX refuses the flag beside its own setting, which the child uses.
    given = re.sub(
        r"--xla_force_host_platform_device_count=\d+", "", os.environ.get("XLA_FLAGS", "")
    )
    flags = f"{given} {_SETTINGS}".strip()
    child = subprocess.run(
        [sys.executable, "-c", _CHILD, str(device_id)],
        input=exported,
        capture_output=True,
        timeout=_SECONDS,
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
    )
    if child.returncode != 0:
        lines = child.stderr.decode(errors="replace").strip().splitlines()
        raise RuntimeError(f"exit status {child.returncode}, {lines[-1] if lines else 'silent'}")
    return child.stdout


_CHILD = f"""
import pickle, sys
import jax
import numpy as np
from jax.experimental import serialize_executable
jax.config.update("jax_enable_x64", True)
number = int(sys.argv[1])  # a program is bound to its device
jax.config.update("jax_num_cpu_devices", number + 1)
place = jax.sharding.SingleDeviceSharding(jax.devices()[number])
exported = jax.export.deserialize(bytearray(sys.stdin.buffer.read()))
given = [jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place) for a in exported.in_avals]
jitted = jax.jit(exported.call, compiler_options={_OPTIONS!r})
binary = serialize_executable.serialize(jitted.lower(*given).compile())
sys.stdout.buffer.write(pickle.dumps(binary))
"""


def _write(path: Path, binary: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(binary)
    os.replace(file.name, path)


@functools.cache
def _report(reason: str) -> None:
    """Once for every reason: the results are the same, only slower."""
    warnings.warn(
        f"Apart: XLA's faster settings do not work for this program here ({reason}); it is "
        "compiled without them.",
        stacklevel=2,
    )


def _is_array(leaf: Any) -> bool:
    # NumPy's too, which a program takes to its device faster than anyone could before; and what
    # stands for the results of a program that has yet to run.
    return isinstance(leaf, (jax.Array, np.ndarray, jax.ShapeDtypeStruct))


class Program:
    """A function of pytrees, compiled for the shapes of one example.

    - `results`: what it returns, as `jax.ShapeDtypeStruct`. The next program can be made from it
      while this one is being compiled.
    """

    def __init__(self, function: Callable, compilation: AbstractCompilation, examples: tuple):
        dynamic, static = eqx.partition(examples, _is_array)
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
        # XLA compiles without Python's lock.
        self.machine_code = _compiling.submit(compilation.lowered(jitted, leaves))

    def __call__(self, *arguments: Any) -> Any:
        """The results; nothing but the arrays among the arguments counts."""
        leaves = [leaf for leaf in jax.tree.leaves(arguments) if _is_array(leaf)]
        return jax.tree.unflatten(self._structure, self.machine_code.result()(*leaves))


_KEPT = 64
_compiling = ThreadPoolExecutor(thread_name_prefix="compile")  # starts its threads when asked
_lock = threading.Lock()
_programs: collections.OrderedDict[Any, Future[Program]] = collections.OrderedDict()


def compiled(function: Callable, compilation: AbstractCompilation, *examples: Any) -> Program:
    """`Program(...)`; the last ones are kept, and found again by structure, shapes and device."""
    leaves, structure = jax.tree.flatten(examples)
    same = tuple(
        (leaf.shape, leaf.dtype, getattr(leaf, "sharding", None)) if _is_array(leaf) else leaf
        for leaf in leaves
    )
    settings: Any = jax.config
    key = function, compilation, structure, same, settings.jax_enable_x64
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
            program = Program(function, compilation, examples)
        except BaseException as error:
            future.set_exception(error)
            _forget(key)
            raise
        program.machine_code.add_done_callback(lambda made: made.exception() and _forget(key))
        future.set_result(program)
    return future.result()


def _forget(key: Any) -> None:
    """What failed is tried again."""
    with _lock:
        _programs.pop(key, None)

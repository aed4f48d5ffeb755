"""Translates kernels from PTX to C, by the definition of each instruction, to run them on CPUs.

This works for texts of `lintensor_jax.dynamics.batch.cuda.threads` only: other instructions raise
`NotImplementedError`. The C compiler does not fuse products and sums, so that results have the bits
of a device. `Core` replaces `cuda.core` and launches the kernels.
"""

import concurrent.futures
import ctypes
import dataclasses
import functools
import hashlib
import re
import shutil
import subprocess
import types
from pathlib import Path

import numpy as np

COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
_TYPES = {
    "f64": "double",
    "f32": "float",
    "b64": "uint64_t",
    "u64": "uint64_t",
    "s64": "int64_t",
    "b32": "uint32_t",
    "u32": "uint32_t",
    "s32": "int32_t",
    "pred": "int",
}
_HEAD = r"""
#include <math.h>
#include <stdint.h>
typedef union {
  double f64; uint64_t b64; uint64_t u64; int64_t s64;
  float f32; uint32_t b32; uint32_t u32; int32_t s32;
} R;
static inline double larger(double a, double b) {
  return isnan(a) ? b : isnan(b) ? a : (a > b || (a == b && !signbit(a))) ? a : b;
}
static inline double smaller(double a, double b) {
  return isnan(a) ? b : isnan(b) ? a : (a < b || (a == b && signbit(a))) ? a : b;
}
static inline int32_t to_s32(double a) {
  return isnan(a) ? 0 : a >= 2147483647.0 ? 2147483647
    : a <= -2147483648.0 ? (-2147483647 - 1) : (int32_t)a;
}
static inline int64_t to_s64(double a) {
  return isnan(a) ? 0 : a >= 9223372036854775808.0 ? INT64_MAX
    : a <= -9223372036854775808.0 ? INT64_MIN : (int64_t)a;
}
"""
_SIGNS = {"add": "+", "sub": "-", "mul": "*", "div": "/", "and": "&", "or": "|", "xor": "^"}
_ORDER = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "lo": "<"}
_ORDER |= {"ls": "<=", "hi": ">", "hs": ">="}
_SPECIAL = {"%tid.x": "thread", "%ntid.x": "32", "%ctaid.x": "block"}


def _match(pattern, text):
    found = re.search(pattern, text)
    if found is None:
        raise NotImplementedError(text)
    return found


def _number(text, kind):
    if text.startswith("0d"):  # the bits of a number, also in instructions without arithmetic
        return f"((R){{.u64 = 0x{text[2:]}ULL}}).{kind}"
    if text.startswith("0f"):
        return f"((R){{.u32 = 0x{text[2:]}U}}).{kind}"
    return f"(({_TYPES[kind]}){text}LL)"


def _value(text, kind):
    if text in _SPECIAL:
        return _SPECIAL[text]
    if re.fullmatch(r"%p\d+", text):
        return text[1:]
    return f"r_{text[1:]}.{kind}" if text.startswith("%") else _number(text, kind)


def _place(text):
    register, offset = _match(r"^\[(%\w+)(?:\+(-?\d+))?\]", text).groups()
    return f"(r_{register[1:]}.u64 + {offset or 0})"


def _comparison(name, a, b, is_float):
    unknown = f"(isnan({a}) || isnan({b}))"
    if name in ("nan", "num"):
        return unknown if name == "nan" else f"!{unknown}"
    if not is_float:
        return f"({a} {_ORDER[name]} {b})"
    if name.endswith("u") and name[:-1] in _ORDER:
        return f"({unknown} || {a} {_ORDER[name[:-1]]} {b})"
    return f"(!{unknown} && {a} {_ORDER[name]} {b})"


def _conversion(words, value):
    to, of = words[-2:]
    if to in ("s32", "s64") and of == "f64":
        if "rzi" not in words:
            raise NotImplementedError(".".join(words))
        return f"to_{to}({value(1, of)})"
    if to == of == "f64" and ("rmi" in words or "rpi" in words):
        return f"{'floor' if 'rmi' in words else 'ceil'}({value(1, of)})"
    return f"({_TYPES[to]}){value(1, of)}"


def _result(words, arguments):
    """The right side of an instruction's assignment, and the type of the left side."""
    name, kind = words[0], words[-1]

    def value(i, of=kind):
        return _value(arguments[i], of)

    match name:
        case "mov" | "cvta":
            return value(1), kind
        case "setp":
            return _comparison(words[1], value(1), value(2), kind.startswith("f")), "pred"
        case "selp":
            return f"{value(3, 'pred')} ? {value(1)} : {value(2)}", kind
        case "not" if kind == "pred":
            return f"!{value(1)}", kind
        case "not":
            return f"~{value(1)}", kind
        case "fma":
            return f"{'fma' if kind == 'f64' else 'fmaf'}({value(1)}, {value(2)}, {value(3)})", kind
        case "sqrt":
            return f"{'sqrt' if kind == 'f64' else 'sqrtf'}({value(1)})", kind
        case "rcp":
            return f"1 / {value(1)}", kind
        case "neg":
            return f"-{value(1)}", kind
        case "abs":
            return f"fabs({value(1)})", kind
        case "copysign":
            return f"copysign({value(2)}, {value(1)})", kind
        case "max" | "min" if kind.startswith("f"):
            return f"{'larger' if name == 'max' else 'smaller'}({value(1)}, {value(2)})", kind
        case "max" | "min":
            return f"{value(1)} {'><'[name == 'min']} {value(2)} ? {value(1)} : {value(2)}", kind
        case "cvt":
            return _conversion(words, value), words[-2]
        case "mul" | "mad" if "wide" in words or "lo" in words:
            wide = {"s32": "s64", "u32": "u64"}[kind] if "wide" in words else kind
            product = f"({_TYPES[wide]}){value(1)} * ({_TYPES[wide]}){value(2)}"
            return product + (f" + {value(3, wide)}" if name == "mad" else ""), wide
        case "shl":
            return f"{value(1)} << {value(2, 'u32')}", kind
        case "shr":
            return f"{value(1)} >> {value(2, 'u32')}", kind
    if name in _SIGNS and (name != "mul" or kind.startswith("f")):
        if kind.startswith("f") and "rn" not in words:
            raise NotImplementedError(f"{'.'.join(words)} does not say how it rounds")
        return f"{value(1)} {_SIGNS[name]} {value(2)}", kind
    raise NotImplementedError(".".join(words))


def _statement(line):
    guard, opcode, rest = _match(r"^(@!?%p\d+)?\s*([\w.:]+)\s*(.*);$", line).groups()
    arguments, words = [x.strip() for x in rest.split(",")] if rest else [], opcode.split(".")
    kind = words[-1]
    match words[0]:
        case "ld" if words[1] == "param":
            number = _match(r"_param_(\d+)", arguments[1]).group(1)
            code = f"r_{arguments[0][1:]}.{kind} = P_{number};"
        case "ld":
            code = f"r_{arguments[0][1:]}.{kind} = *({_TYPES[kind]}*){_place(arguments[1])};"
        case "st":
            code = f"*({_TYPES[kind]}*){_place(arguments[0])} = {_value(arguments[1], kind)};"
        case "atom":
            place, by = f"(uint32_t*){_place(arguments[1])}", _value(arguments[2], "u32")
            code = f"__atomic_fetch_add({place}, {by}, __ATOMIC_RELAXED);"
            code = f"r_{arguments[0][1:]}.u32 = {code}"
        case "bra":
            code = f"goto {arguments[0].replace('$', '')};"
        case "ret":
            code = "return;"
        case _:
            right, kind = _result(words, arguments)
            target = arguments[0][1:] if kind == "pred" else f"r_{arguments[0][1:]}.{kind}"
            code = f"{target} = {right};"
    if guard:
        condition = _match(r"p\d+", guard).group()
        code = f"if ({'!' if '!' in guard else ''}{condition}) {{ {code} }}"
    return "  " + code


def as_c(text):
    """All kernels of a text as functions of C, for one thread each."""
    out = [_HEAD]
    kernels = re.finditer(r"\.entry (\w+)\((.*?)\)\s*(?:\.\w+[^{]*)?\{(.*?)\n\}", text, re.S)
    for name, parameters, body in (kernel.groups() for kernel in kernels):
        kinds = re.findall(r"\.param \.(\w+)", parameters)
        given = ", ".join(f"{_TYPES[kind]} P_{i}" for i, kind in enumerate(kinds))
        out.append(f"void {name}({given}, uint32_t block, uint32_t thread) {{")
        for kind, prefix, count in re.findall(r"\.reg \.(\w+)\s+%(\w+)<(\d+)>;", body):
            for i in range(int(count)):
                out.append(f"int p{i} = 0;" if kind == "pred" else f"R r_{prefix}{i};")
        for line in (line.split("//")[0].strip() for line in body.splitlines()):
            if line.endswith(":"):
                out.append(line.replace("$", "") + " ;")
            elif line and not line.startswith((".reg", ".loc", ".pragma", "{", "}")):
                out.append(_statement(line))
        out.append("}")
    return "\n".join(out)


@functools.cache
def _library(text, folder):
    name = Path(folder, "k" + hashlib.sha256(text.encode()).hexdigest()[:16])
    name.with_suffix(".c").write_text(as_c(text))
    options = [
        "-O0",
        "-mfma",
        "-ffp-contract=off",
        "-fno-strict-aliasing",
        "-shared",
        "-fPIC",
        "-w",
    ]
    files = [str(name.with_suffix(".c")), "-o", str(name.with_suffix(".so")), "-lm"]
    subprocess.run([str(COMPILER), *options, *files], check=True)
    return ctypes.CDLL(str(name.with_suffix(".so")))


class _Buffer:
    """Memory of a device, in a NumPy array."""

    def __init__(self, memory, owner=None):
        self.memory, self.owner = memory, owner
        self.handle = memory.ctypes.data

    @staticmethod
    def from_handle(pointer, size, owner=None):
        kind = ctypes.c_int8 * size
        return _Buffer(np.ctypeslib.as_array(kind.from_address(pointer)), owner)

    def copy_from(self, other, *, stream):
        self.memory[:] = other.memory

    def fill(self, value, *, stream):
        self.memory[:] = value

    def __dlpack__(self, **options):
        return self.memory.__dlpack__()

    def __dlpack_device__(self):
        return self.memory.__dlpack_device__()


@dataclasses.dataclass
class _Config:
    grid: int
    block: int


class Core:
    """Replaces the module `cuda.core`; it has all that the launcher uses.

    - `launched`: the numbers of threads of all launches.
    """

    Buffer, LaunchConfig = _Buffer, _Config

    def __init__(self, folder, multiprocessors=2):
        self.launched = []
        self.Device = lambda number: types.SimpleNamespace(
            set_current=lambda: None,
            create_stream=lambda: types.SimpleNamespace(handle=0, sync=lambda: None),
            properties=types.SimpleNamespace(multiprocessor_count=multiprocessors),
            allocate=lambda size, *, stream: _Buffer(np.empty(size, np.int8)),
        )
        self.utils = types.SimpleNamespace(
            StridedMemoryView=types.SimpleNamespace(from_dlpack=_view)
        )
        self.ObjectCode = types.SimpleNamespace(
            from_ptx=lambda text: types.SimpleNamespace(
                get_kernel=lambda name: self._kernel(text.decode(), folder, name)
            )
        )

    def _kernel(self, text, folder, name):
        occupancy = types.SimpleNamespace(max_active_blocks_per_multiprocessor=lambda *_: 1)
        attributes = types.SimpleNamespace(num_regs=0, local_size_bytes=0)
        function = getattr(_library(text, str(folder)), name)
        pointer, word = ctypes.c_uint64, ctypes.c_uint32
        function.argtypes = [pointer, pointer, word, pointer, pointer, pointer, word, word]
        function.restype = None
        return types.SimpleNamespace(call=function, attributes=attributes, occupancy=occupancy)

    def launch(self, stream, config, kernel, *arguments):
        """Run all threads of a grid on four threads of the CPU, without Python's lock."""
        threads = config.grid * config.block
        self.launched.append(threads)
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            run = functools.partial(_run_thread, kernel.call, arguments, config.block)
            list(pool.map(run, range(threads)))


def _run_thread(function, arguments, block, number):
    function(*arguments, *divmod(number, block))


def _view(array, stream_ptr):
    memory = np.asarray(array)
    return types.SimpleNamespace(ptr=memory.ctypes.data, memory=memory)

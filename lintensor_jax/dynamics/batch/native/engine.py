"""Programs in LLVM's language as machine code of this processor."""

import ctypes.util
from typing import Any

import llvmlite.binding as llvm


def engine_of(program: str) -> Any:
    """The machine code of a program, as an engine that knows the addresses of its functions."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    mathematics = ctypes.util.find_library("m")
    if mathematics is not None:
        llvm.load_library_permanently(mathematics)
    # LLVM halves vectors of 512 bits, which slow old processors down; this option prevents it.
    features = llvm.get_host_cpu_features()
    text = ",".join([features.flatten(), *["-prefer-256-bit"] * bool(features.get("avx512f"))])
    # Level 2 takes a fifth longer, and its code is not measurably faster.
    target = llvm.Target.from_default_triple()
    machine = target.create_target_machine(cpu=llvm.get_host_cpu_name(), features=text, opt=1)
    parsed = llvm.parse_assembly(program)
    parsed.triple, parsed.data_layout = machine.triple, str(machine.target_data)
    # No optimisation passes: they take time and find nothing to improve.
    engine = llvm.create_mcjit_compiler(parsed, machine)
    engine.finalize_object()
    return engine

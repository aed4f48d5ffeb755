"""What can be computed about the GPU path without a GPU: registers, instructions, occupancy.

Run from the repository root:

    pip install triton                     # NVIDIA's assembler, ptxas, comes with it
    python benchmarks/gpu_compile.py [--ptxas PATH] [--arch sm_90] [--quick] [--out DIR]

    pip install "jax[cuda12]"              # optional: XLA's compiler for GPUs, 6 GB
    python benchmarks/gpu_compile.py --xla

Machine code: the kernels of `lintensor_jax.dynamics.batch.cuda` are assembled; the machine needs no
GPU. A row has the registers of a thread, the bytes spilled from registers, and the warps that a
multiprocessor holds at once. The rates are upper bounds from the data sheet of an H200: they assume
that no instruction waits. Nothing is run.

--xla: XLA's programs are compiled for an H200, which JAX can do without one. A row has the bytes of
a lane beside the bytes that `batched_flow` reserves for it, and the kernels of a step: those of the
innermost loop and of its condition. The host decides once a turn whether a loop goes on, unless the
driver runs the loop as one command.
"""

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

# NVIDIA's data sheet: multiprocessors, GHz, instructions and fp64 a clock and multiprocessor.
_H200 = {"cores": 132, "clock": 1.98e9, "issues": 4 * 32, "fp64": 64, "registers": 65536}
_WARP, _MOST_WARPS = 32, 64
_TARGET = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 4800000000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 151397597184 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 } registers_per_core_limit: 65536
  registers_per_block_limit: 65536 driver_version: "13.0.0" runtime_version: "12.9.0"
  compile_time_toolkit_version: "12.9.0"
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
runtime_version { major: 12 minor: 9 }
device_description_str: "NVIDIA H200 141GB HBM3e"
"""


def find_ptxas() -> str | None:
    """The path of NVIDIA's assembler, of the CUDA toolkit or of the package triton, or None."""
    found = shutil.which("ptxas")
    spec = importlib.util.find_spec("triton") if found is None else None
    if spec is not None and spec.submodule_search_locations:
        path = Path(spec.submodule_search_locations[0], "backends/nvidia/bin/ptxas")
        found = str(path) if path.exists() else None
    return found


def assembled(ptxas: str, text: str, arch: str) -> dict[str, Any]:
    """Registers of a thread of `integrate`, bytes that spill, and seconds of the assembler."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "lanes.ptx")
        source.write_text(text)
        command = [ptxas, "-v", f"-arch={arch}", "-O3", str(source), "-o", f"{folder}/lanes.cubin"]
        begun = time.perf_counter()
        ran = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds = time.perf_counter() - begun
    said = (ran.stdout + ran.stderr).split("Compiling entry function 'integrate'")[1]
    said = said.split("Compiling entry function")[0]

    def number(pattern: str) -> int:
        return int(re.search(pattern, said).group(1))  # pyright: ignore[reportOptionalMemberAccess]

    return {
        "registers": number(r"Used (\d+) registers"),
        "spilled bytes": number(r"(\d+) bytes spill stores"),
        "assembler s": round(seconds, 1),
    }


def instructions_of(text: str) -> tuple[int, int]:
    """Instructions of PTX in the loop of `integrate`, and how many of them compute in float64."""
    body = text[text.index(".entry integrate") :]
    body = body.split(".entry start")[0]
    lines = re.findall(r"^\s+(?:@!?%p\d+ )?([a-z][\w.]*)\s.*;", body, re.M)
    lines = [line for line in lines if not line.startswith(("ld.param", "bra", "ret"))]
    in_f64 = [line for line in lines if line.endswith(".f64") and not line.startswith(("ld", "st"))]
    computing = [line for line in in_f64 if not line.startswith(("mov", "selp"))]
    return len(lines), len(computing)


def bounds_of(found: dict[str, Any], total: int, computing: int) -> dict[str, Any]:
    """Warps of a multiprocessor, and a bound on lane steps a second, from the data sheet."""
    of_warp = 8 * -(-found["registers"] // 8) * _WARP  # registers are given in units of 8
    warps = min(_MOST_WARPS, _H200["registers"] // of_warp)
    clocks = max(total / _H200["issues"], computing / _H200["fp64"])
    rate = _H200["cores"] * _H200["clock"] / clocks
    return {"warps of a core": int(warps), "1e9 lane-steps/s at most": round(rate / 1e9, 1)}


def machine_code(ptxas: str, arch: str, quick: bool) -> list[dict[str, Any]]:
    """A row for each network and method."""
    import gpu_programs as programs

    rows = []
    for size in programs.SIZES[:2] if quick else programs.SIZES:
        name, depth, d, n = size
        for method, solver in programs.METHODS.items():
            for classification in (False, True):
                if classification and (size != programs.SIZES[0] or quick):
                    continue
                data, words = programs.problem(d, n, classification), programs.in_words(*size)
                options = {"solver": solver(), "finish": None}
                row = {"network": words + ", classification" * classification, "method": method}
                try:
                    text = programs.text_of(programs.starts(name, depth, d, 8), data, **options)
                except ValueError as error:
                    rows.append(row | {"registers": str(error)})
                    continue
                found = assembled(ptxas, text, arch)
                total, computing = instructions_of(text)
                counts = {"instructions": total, "of them float64": computing}
                rows.append(row | found | counts | bounds_of(found, total, computing))
                print(rows[-1], flush=True)
    return rows


def compiled_by_xla() -> list[dict[str, Any]]:
    """Bytes of a lane and kernels of a step of XLA's programs, compiled for an H200 without one."""
    import gpu_programs as programs
    import jax
    import jax.numpy as jnp
    from jax.experimental import topologies

    from lintensor_jax.dynamics.batch import ends_by_xla, hardware

    topology = topologies.get_topology_desc(
        platform="cuda", target_config=_TARGET, topology="1x1x1"
    )
    place = jax.sharding.SingleDeviceSharding(topology.devices[0])
    rows = []
    for depth, d, n in ((2, 2, 1), (3, 32, 8)):
        networks = programs.starts("diagonal", depth, d, 64)
        stepper, chunk = programs.stepper_and_chunk(networks, programs.problem(d, n), finish=None)
        q, lanes = stepper.state_size, 2**20 if d == 2 else 2**16
        width = hardware.width_on_accelerator(q, lanes)
        stepper = stepper._replace(width=width, enough=-(-width // 32))
        thetas = jax.ShapeDtypeStruct((lanes, chunk.thetas.shape[1]), chunk.thetas.dtype)
        found = _compiled(
            ends_by_xla._ends_on_device, stepper, chunk._replace(thetas=thetas), place
        )
        memory = found.memory_analysis()
        taken = sum(
            getattr(memory, f"{part}_size_in_bytes") for part in ("argument", "output", "temp")
        )
        room = jnp.dtype(thetas.dtype).itemsize * hardware.LaneNumbers(q, n, 0).in_memory
        row = {"numbers of a lane": q, "lanes": lanes, "in flight": width}
        row |= {"bytes of a lane": round(taken / lanes), "room for a lane": room}
        kernels, decisions = programs.kernels_of_a_step(found.as_text())
        row |= {"kernels of a step": kernels, "host decisions of a step": decisions}
        rows.append(row)
        print(rows[-1], flush=True)
    return rows


def _compiled(function: Any, stepper: Any, chunk: Any, place: Any) -> Any:
    import equinox as eqx
    import jax

    def is_array(leaf):
        return eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct)

    arrays, static = eqx.partition((stepper, chunk), is_array)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), arrays)
    flat = jax.jit(lambda arrays: function(*eqx.combine(arrays, static)))
    return flat.lower(shapes).compile()


def main() -> int:
    """Compute the tables, print and write them; returns 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--ptxas", help="NVIDIA's assembler; default: the one on PATH, or triton's")
    parser.add_argument("--arch", default="sm_90", help="the GPU to assemble for (H200: sm_90)")
    parser.add_argument("--quick", action="store_true", help="two networks only")
    parser.add_argument("--xla", action="store_true", help="compile XLA's programs as well")
    parser.add_argument("--out", type=Path, default=Path("results/gpu_compile"))
    arguments = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if arguments.xla:
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_gpu_autotune_level=0"
    import measure

    measure.set_up()
    parts: dict[str, list[dict[str, Any]]] = {}
    ptxas = arguments.ptxas or find_ptxas()
    if ptxas is None:
        print("machine code is left out: no ptxas; pip install triton, or pass --ptxas")
    else:
        parts["machine code"] = machine_code(ptxas, arguments.arch, arguments.quick)
    if arguments.xla:
        parts["XLA"] = compiled_by_xla()
    rows = [{"part": part, **row} for part, found in parts.items() for row in found]
    about = measure.machine() | {"arch": arguments.arch}
    print(measure.write(arguments.out, rows, about, title="The GPU path, computed"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

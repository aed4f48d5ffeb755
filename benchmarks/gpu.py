"""Batches on a GPU: correctness, speed and bounds, in one command of at most eight minutes.

Run from the repository root, on a machine with a GPU that JAX finds:

    pip install "jax[cuda13]" ".[cuda]"
    python benchmarks/gpu.py [--seconds 420] [--out results/gpu]

    python benchmarks/gpu.py --tiny        # everything once, with few lanes, also on a CPU

results.json and table.md are written after every part, and name parts for which no time was left:
- `bounds`: bytes and float64 operations a second, measured;
- `correct`: ends of five networks, by machine code and by XLA, against the CPU's machine code;
- `rates`: lanes a second of plain `jit(vmap(diffeqsolve))`, of XLA's stepper and of machine code,
  for 1e3 to 1e7 lanes. Machine code is also compared with the bound on float64 operations, and
  XLA's stepper with the bound on bytes;
- `classification`: lanes a second to a margin of 1e6;
- `store`: a stored sweep of 1e6 lanes.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import batched
import gpu_compile
import gpu_programs as programs
import jax
import jax.numpy as jnp
import measure
import numpy as np
from measure import Row

import lintensor_jax as lt
from lintensor_jax.sweeps import Axis, Grid

# Bytes that XLA's stepper moves for a step of a lane of four numbers (compiled for an H200).
_BYTES_OF_STEP = {"Tsit5": 2154, "Dopri8": 3908}
_NETWORKS = programs.SIZES[:5]


class Clock:
    """Says whether enough of a time budget is left."""

    def __init__(self, seconds: float):
        self._begun, self._seconds = time.perf_counter(), seconds

    def has(self, seconds: float) -> bool:
        """Whether `seconds` are left."""
        return time.perf_counter() + seconds < self._begun + self._seconds

    def part(self, share: float) -> "Clock":
        """A clock with the same start and this share of the whole time."""
        part = Clock(share * self._seconds)
        part._begun = self._begun
        return part


def best_of(function: Callable[[], Any], clock: Clock, times: int = 3) -> tuple[Any, float]:
    """The result, and the least seconds of a few calls after the first one, which compiles."""
    result, _, _ = measure.timed(function)
    least = np.inf
    for _ in range(times):
        if np.isfinite(least) and not clock.has(2 * least):
            break
        result, seconds, _ = measure.timed(function)
        least = min(least, seconds)
    return result, least


def _on_cpu(tree: Any) -> Any:
    return jax.device_put(tree, jax.local_devices(backend="cpu")[0])


def correct(lanes: int, sizes: Sequence[Any], clock: Clock) -> Iterator[Row]:
    """Machine code and XLA of the device against machine code of the CPU.

    The first case of every network comes before the other cases.
    """
    cases = [(False, "Dopri8"), (True, "Tsit5"), (False, "Tsit5"), (True, "Dopri8")]
    for classification, method in cases if len(sizes) > 1 else cases[:2]:
        for size in sizes:
            if not clock.has(25):
                return
            name, depth, d, n = size
            data = programs.problem(d, n, classification)
            options: dict[str, Any] = {"solver": programs.METHODS[method](), "finish": None}
            if classification:
                options["stop"] = lt.StopAtMargin(programs.MARGIN)
            networks = programs.starts(name, depth, d, lanes)
            expected = lt.batched_flow(_on_cpu(networks), _on_cpu(data), **options)
            found = lt.batched_flow(networks, data, **options)
            by_xla = lt.batched_flow(networks, data, compilation=lt.XLA(), **options)
            kind = ", classification" if classification else ""
            yield {
                "problem": programs.in_words(*size) + kind,
                "variant": method,
                "lanes": lanes,
                "ran": f"{found.compilation} {found.fallback_reason}".rstrip(),
                "lanes with equal bits": _equal_share(found, expected),
                "machine code - CPU": _difference(found, expected),
                "XLA - CPU": _difference(by_xla, expected),
            }


def _equal_share(found: Any, expected: Any) -> str:
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    lanes = found.num_steps.shape[0]
    same = np.ones(lanes, bool)
    for a, b in pairs:
        if np.shape(a)[:1] == (lanes,):
            equal = np.equal(a, b) | (np.not_equal(a, a) & np.not_equal(b, b))
            same &= equal.reshape(lanes, -1).all(axis=1)
    return f"{100 * same.mean():.4g}%"


def _difference(found: Any, expected: Any) -> float:
    a, b = (np.asarray(flow.coefficients).reshape(len(flow.code), -1) for flow in (found, expected))
    return float(np.nanmax(np.abs(a - b) / np.abs(b).max(axis=1, keepdims=True)))


def bounds(size: int, clock: Clock) -> Iterator[Row]:
    """Bytes a second of a copy, and float64 products and sums a second."""
    x = jnp.arange(float(size))
    _, seconds = best_of(lambda: jax.block_until_ready(_copied(x)), clock, 5)
    yield {
        "problem": "copy",
        "variant": f"{x.nbytes:.1e} bytes",
        "1e9/s": 2e-9 * x.nbytes / seconds,
    }
    y = x[: max(1, size // 64)]
    _, seconds = best_of(lambda: jax.block_until_ready(_computed(y)), clock, 5)
    rate = 1e-9 * y.size * _TURNS * _CHAIN / seconds
    yield {"problem": "float64", "variant": f"{y.size:,} lanes", "1e9/s": rate}


_TURNS, _CHAIN = 256, 64


@jax.jit
def _copied(x):
    return x * 1.5


@jax.jit
def _computed(x):
    def turn(_, parts):
        for _ in range(_CHAIN // 4):
            parts = [part * 0.999 + 1e-3 for part in parts]
        return parts

    parts = jax.lax.fori_loop(0, _TURNS, turn, [x, x + 1, x + 2, x + 3])
    return sum(parts)


def rates(counts: list[int], clock: Clock, known: dict[str, float]) -> Iterator[Row]:
    """Lanes a second of three programs.

    `known`: the measured bounds, and the float64 instructions of a step by method.
    """
    system = batched.System.of(batched.network("diagonal", 2, 2), programs.problem(2, 1))
    for count in counts:
        theta = batched.starts(system, count, 0.01)
        for method, solver in programs.METHODS.items():
            problem = batched.Problem("diagonal", 2, programs.problem(2, 1), theta, 512)
            plain = jax.jit(jax.vmap(batched.plain_solve(problem.system, 512, solver())))
            variants = {
                "plain": lambda plain=plain, theta=theta: plain(theta),
                "XLA": lambda p=problem, s=solver: p.by_batched_flow(lt.XLA(), solver=s()),
                "machine code": lambda p=problem, s=solver: p.by_batched_flow(
                    lt.Native(), solver=s()
                ),
            }
            for variant, call in variants.items():
                if not clock.has(20) or (variant == "plain" and count > 10**6):
                    continue
                found, seconds = best_of(call, clock)
                row = {"problem": f"{count:,} lanes, {method}", "variant": variant}
                yield row | _rate_row(found, method, variant, count, seconds, known)


def _rate_row(found, method, variant, count, seconds, known) -> Row:
    ours = isinstance(found, lt.BatchedFlow)
    steps = np.asarray(found.num_steps if ours else found[2], np.int64)
    row: Row = {"ran": f"{found.compilation} {found.fallback_reason}".rstrip() if ours else "xla"}
    row["waste"] = float(found.waste) if ours else float(steps.max() * count / steps.sum())
    if measure.on_gpu():
        row |= {"lanes/s": count / seconds, "seconds": seconds}
        executed = row["waste"] * float(steps.sum()) / seconds
        if variant == "machine code" and "float64" in known:
            row["of float64"] = 1e-9 * executed * known[method] / known["float64"]
        if variant == "XLA" and "copy" in known:
            row["of bytes"] = 1e-9 * executed * _BYTES_OF_STEP[method] / known["copy"]
    return row


def classification(count: int, clock: Clock) -> Iterator[Row]:
    """Flows to a margin of 1e6, by XLA and by machine code."""
    networks, data = programs.starts("diagonal", 2, 2, count), programs.problem(2, 1, True)
    options: dict[str, Any] = {"stop": lt.StopAtMargin(programs.MARGIN)}
    for compilation in (lt.XLA(), lt.Native()):
        if not clock.has(30):
            return

        def run(how=compilation):
            return lt.batched_flow(networks, data, compilation=how, **options)

        flow, seconds = best_of(run, clock)
        row = {"problem": f"{count:,} lanes", "variant": type(compilation).__name__}
        row |= {"ran": f"{flow.compilation} {flow.fallback_reason}".rstrip()}
        row |= {"waste": float(flow.waste), "arrived": f"{100 * np.mean(flow.succeeded):.4g}%"}
        yield row | ({"lanes/s": count / seconds, "seconds": seconds} if measure.on_gpu() else {})


def store(count: int, clock: Clock) -> Iterator[Row]:
    """A sweep into a store on this machine's disk, from its grid to the last file."""
    if not clock.has(60):
        return
    alphas = Axis("alpha", np.geomspace(0.01, 1.0, max(2, count // 1000)))
    grid = Grid((alphas, Axis("seed", range(min(count, 1000)))), _start, programs.problem(2, 1))
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        results = lt.sweep(grid, Path(folder, "store"))
        seconds = time.perf_counter() - begun
        arrived = float((results.status != 0).mean())
    row = {
        "problem": f"{grid.size:,} lanes",
        "variant": "lt.sweep",
        "finished": f"{100 * arrived:.4g}%",
    }
    yield row | ({"lanes/s": grid.size / seconds, "seconds": seconds} if measure.on_gpu() else {})


def _start(point: Any) -> Any:
    like = lt.DiagonalNetwork.zeros(2, 2)
    return lt.initialization.gaussian(like, point.key, point.alpha)


def run(tiny: bool, seconds: float, out: Path) -> list[Row]:
    """Run all parts, write the results after each of them, and return all rows."""
    clock = Clock(seconds)
    counts = [1000] if tiny else [10**k for k in range(3, 8)]
    rows: list[Row] = []
    known = {
        method: float(
            gpu_compile.instructions_of(
                programs.text_of(
                    programs.starts("diagonal", 2, 2, 8),
                    programs.problem(2, 1),
                    solver=solver(),
                    finish=None,
                )
            )[1]
        )
        for method, solver in programs.METHODS.items()
    }
    lanes, sizes = (64, _NETWORKS[:1]) if tiny else (4096, _NETWORKS)
    few = 200 if tiny else 10**6
    parts: dict[str, Callable[[], Iterator[Row]]] = {
        "bounds": lambda: bounds(2**16 if tiny else 2**27, clock),
        "correct": lambda: correct(lanes, sizes, clock.part(0.4)),
        "rates": lambda: rates(counts, clock.part(0.75), known),
        "classification": lambda: classification(few, clock.part(0.85)),
        "store": lambda: store(few, clock),
    }
    wrong = []
    for part, work in parts.items():
        begun = time.perf_counter()
        found = [{"part": part, **row} for row in work()]
        if part == "bounds":
            known |= {row["problem"]: row["1e9/s"] for row in found}
        if not found:
            wrong.append(f"{part}: no time was left")
        rows += found
        print(f"{part}: {time.perf_counter() - begun:.0f} s", flush=True)
        table = measure.write(out, rows, measure.machine(), wrong, title="The GPU path, measured")
    print(table)
    return rows


def main() -> int:
    """Run all parts; returns 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--tiny", action="store_true", help="few lanes: a trial, also on a CPU")
    parser.add_argument("--seconds", type=float, default=420.0, help="nothing begins later")
    parser.add_argument("--out", type=Path, default=Path("results/gpu"))
    arguments = parser.parse_args()
    measure.set_up()
    if not measure.on_gpu() and not arguments.tiny:
        parser.error("JAX found no GPU; --tiny is a trial on a CPU")
    run(arguments.tiny, arguments.seconds, arguments.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

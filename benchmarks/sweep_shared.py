"""Sweeps of many processes, and damaged stores: what is lost, what is found, what it costs.

Run from the repository root:

    python benchmarks/sweep_shared.py cluster [--workers 20 --drivers 5]  # SIGKILL with Dask
    python benchmarks/sweep_shared.py work [--times 10]                   # SIGKILL of shells
    python benchmarks/sweep_shared.py flips [--times 300]                 # single bits of a store
    python benchmarks/sweep_shared.py large [--lanes 1000000 --times 3]   # costs beside bare flows
    python benchmarks/sweep_shared.py plan [--lanes 10000000]             # a dry run's memory

`cluster` and `work` compute a sweep with stiff lanes, kill random processes until the sweep is
done, and compare every array with one uninterrupted process. `flips` changes one bit of a random
file, asks `verify`, and changes it back. `large` prints CPU seconds, the ratio to
`lt.batched_flow` of the same lanes (medians of turns), files, bytes, and the time to open the
store. Every command ends with exit code 1 if its bound is broken, and puts its numbers into
`docs/measured/sweeps.json` if `--record` is given.
"""

import argparse
import itertools
import json
import os
import random
import resource
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure

Numbers = dict[str, Any]
ROOT = Path(__file__).resolve().parents[1]
RECORDED = ROOT / "docs" / "measured" / "sweeps.json"
OVERHEAD = 1.15
# The text of sitecustomize.py, which Python imports at its start; it logs every chunk that begins.
COUNTER = """
import os
from lintensor_jax.sweeps.execution import worker

compute = worker.Worker.chunk

def counted(self, chunk, device):
    with open(os.environ["BEGUN_CHUNKS"], "a") as file:
        file.write(f"{chunk.number}\\n")
    return compute(self, chunk, device)

worker.Worker.chunk = counted
"""
STIFF = """
[network]
depth = 3
[data]
num_samples = 2
dimension = 3
[start]
alpha_from = 0.02
alpha_to = 0.5
num_alphas = 24
num_directions = 40
[flow]
max_steps = 60
[record]
lanes_per_chunk = 20
lanes_in_flight = 16
"""


def shell(*arguments: object, counted: Path | None = None) -> subprocess.Popen:
    """A process of the command line in a new group; its chunks are counted in a folder."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    if counted is not None:
        (counted / "sitecustomize.py").write_text(COUNTER)
        environment["PYTHONPATH"] = f"{counted}{os.pathsep}{ROOT}"
        environment["BEGUN_CHUNKS"] = str(counted / "begun")
    command = [sys.executable, "-m", "lintensor_jax", *map(str, arguments)]
    null = subprocess.DEVNULL
    words = null if counted is None else (counted / "words").open("ab")
    return subprocess.Popen(
        command, env=environment, start_new_session=True, stdout=null, stderr=words
    )


def contents(path: Path) -> dict[str, bytes]:
    """The bytes of every file of every array, by its name."""
    return {
        str(p.relative_to(path)): p.read_bytes()
        for p in path.rglob("*")
        if p.is_file() and ".sweep" not in p.parts
    }


def finished(path: Path) -> int:
    """The number of finished chunks."""
    return len(list((path / ".sweep" / "chunks").glob("*.json")))


def repeated(folder: Path, chunks: int) -> int:
    """The number of chunks that were begun again; every chunk was begun once at least."""
    begun = (folder / "begun").read_text().split()
    if len(set(begun)) != chunks:
        words = (folder / "words").read_text(errors="replace")[-4000:]
        raise RuntimeError(f"{words}\n{len(set(begun))} of {chunks} chunks were begun")
    return len(begun) - chunks


def stiff_lanes(path: Path) -> int:
    """The number of lanes of a finished sweep that went over the explicit budget."""
    files = (path / ".sweep" / "chunks").glob("*.json")
    return sum(json.loads(file.read_text())["stiff_lanes"] for file in files)


def uninterrupted(folder: Path) -> Path:
    """Run the sweep in one process; returns its store."""
    (folder / "c.toml").write_text(STIFF)
    if shell("sweep", folder / "c.toml", "--out", folder / "whole").wait() != 0:
        raise RuntimeError("the uninterrupted sweep failed")
    return folder / "whole"


def workers_of(driver: subprocess.Popen) -> list[int]:
    """Processes of a driver's local cluster: the children of its nannies and its own."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            words = (entry / "cmdline").read_text()
        except OSError:
            continue
        if int(fields[1]) == driver.pid and "spawn_main" in words:
            found.append(int(entry.name))
    return found


def cluster_command(options: argparse.Namespace) -> tuple[bool, Numbers]:
    """Kill workers and drivers of a local cluster."""
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole, path = uninterrupted(folder), folder / "out"
        chunks, stiff = finished(whole), stiff_lanes(whole)
        kinds = ["worker"] * options.workers + ["driver"] * options.drivers
        rng.shuffle(kinds)
        # Each kill waits for so many finished chunks, so that the sweep goes on between them.
        places = sorted(rng.randrange(1, chunks - 3) for _ in kinds)
        left = list(zip(kinds, places, strict=True))
        workers = drivers = 0
        began = time.monotonic()
        begun = ["sweep", folder / "c.toml", "--out", path, "--cluster", "local:2"]
        driver = shell(*begun, counted=folder)
        while driver.poll() is None:
            time.sleep(rng.uniform(0.0, 0.5))
            done = finished(path) if path.exists() else 0
            if not left or done < left[0][1] or not (alive := workers_of(driver)):
                continue
            kind, _ = left.pop(0)
            if kind == "driver":
                os.killpg(driver.pid, signal.SIGKILL)
                driver.wait()
                drivers += 1
                driver = shell("resume", path, "--cluster", "local:2", counted=folder)
            else:
                os.kill(rng.choice(alive), signal.SIGKILL)
                workers += 1
        same = contents(path) == contents(whole)
        again = repeated(folder, chunks)
        seconds = time.monotonic() - began
    most = workers + 2 * drivers  # a worker has one chunk in flight, and a driver two workers
    print(
        f"killed {workers} workers and {drivers} drivers during {chunks} chunks ({stiff} stiff "
        f"lanes) in {seconds:.0f} s; exit code {driver.returncode}; every array the same: {same}; "
        f"{again} chunks begun again, at most {most} were in flight"
    )
    numbers = {
        "killed_workers": workers,
        "killed_drivers": drivers,
        "chunks": chunks,
        "stiff_lanes": stiff,
        "chunks_begun_again": again,
        "most_in_flight_at_kills": most,
        "same_bytes": same,
    }
    return same and driver.returncode == 0 and not left and again <= most, numbers


def work_command(options: argparse.Namespace) -> tuple[bool, Numbers]:
    """Run two shells, of which one at a time is killed and started again."""
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole, path = uninterrupted(folder), folder / "out"
        chunks = finished(whole)
        if shell("sweep", folder / "c.toml", "--out", path, "--no-work").wait() != 0:
            raise RuntimeError("the store was not made")
        shells = [shell("work", path, counted=folder) for _ in range(2)]
        left = sorted(rng.randrange(1, chunks - 3) for _ in range(options.times))
        killed = 0
        while any(each.poll() is None for each in shells):
            time.sleep(rng.uniform(0.0, 0.5))
            alive = [i for i, each in enumerate(shells) if each.poll() is None]
            if alive and left and finished(path) >= left[0]:
                left.pop(0)
                place = rng.choice(alive)
                os.killpg(shells[place].pid, signal.SIGKILL)
                shells[place].wait()
                killed += 1
                shells[place] = shell("work", path, counted=folder)
        same = contents(path) == contents(whole)
        again = repeated(folder, chunks)
    most = 2 * killed  # a shell computes one chunk while it writes another
    print(
        f"killed {killed} of two shells in turn during {chunks} chunks; every array the same: "
        f"{same}; {again} chunks begun again, at most {most} were in flight"
    )
    numbers = {
        "killed_shells": killed,
        "chunks": chunks,
        "chunks_begun_again": again,
        "most_in_flight_at_kills": most,
        "same_bytes": same,
    }
    ended = all(each.returncode == 0 for each in shells)
    return same and ended and not left and again <= most, numbers


def flips_command(options: argparse.Namespace) -> tuple[bool, Numbers]:
    """Flip single bits of random files, which are drawn by size and uniformly in turn."""
    from lintensor_jax.sweeps import verify

    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        path = uninterrupted(Path(name))
        files = [p for p in sorted(path.rglob("*")) if p.is_file()]
        sizes = [p.stat().st_size for p in files]
        found = 0
        for turn in range(options.times):
            file = rng.choices(files, sizes)[0] if turn % 2 else rng.choice(files)
            kept = file.read_bytes()
            data = bytearray(kept)
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            file.write_bytes(data)
            damaged = verify(path).damaged
            found += str(file.relative_to(path)) in damaged
            if not damaged:
                print(f"not found: {file.relative_to(path)}")
            file.write_bytes(kept)
        sound = verify(path).sound
    print(f"{found} of {options.times} single-bit flips found in {len(files)} files; then {sound}")
    numbers = {"flips": options.times, "found": found, "files": len(files)}
    return found == options.times and sound, numbers


def large_command(options: argparse.Namespace) -> tuple[bool, Numbers]:
    """Time a large sweep and the bare flows of the same lanes, in turn."""
    import jax
    import numpy as np

    jax.config.update("jax_enable_x64", True)
    import xarray
    from sweep import grid_of

    import lintensor_jax as lt
    from lintensor_jax.sweeps import Options, Plan
    from lintensor_jax.sweeps.store.store import size_on_disk

    grid = grid_of(options.lanes)
    plan = Plan(grid, Options())

    def bare(most: int | None = None) -> float:
        began = time.process_time()
        for chunk in itertools.islice(plan.chunks(), most):
            networks, _ = chunk.cell.starts(chunk.lanes)
            problem = chunk.cell.problem_of(None)
            flow = lt.batched_flow(networks, problem, width=plan.width)
            jax.block_until_ready(flow.coefficients)
        return time.process_time() - began

    swept, alone = [], []
    with tempfile.TemporaryDirectory() as name:
        # Both compile what they need before the first turn.
        lt.sweep(grid_of(plan.padded), chunk_lanes=plan.padded, width=plan.width)
        bare(1)
        for turn in range(options.times):
            path = Path(name, f"store{turn}")
            began = time.process_time()
            results = lt.sweep(grid, path)
            swept.append(time.process_time() - began)
            alone.append(bare())
        began = time.perf_counter()
        opened = xarray.open_zarr(path, chunks=None)
        np.asarray(opened.limit[0, 0])
        opening = time.perf_counter() - began
        files, size = sum(p.is_file() for p in path.rglob("*")), size_on_disk(path)
        good = bool((results.status == 1).all())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    ratios = [a / b for a, b in zip(swept, alone, strict=True)]
    ratio, seconds = statistics.median(ratios), statistics.median(swept)
    print(
        f"{grid.size:,} lanes: {seconds:.0f} CPU seconds, {ratio:.2f} times the bare flows "
        f"({', '.join(f'{each:.3f}' for each in ratios)}), {files} files, {size / 2**20:.0f} MiB, "
        f"opened in {opening:.2f} s, peak {peak:.2f} GiB"
    )
    numbers = {
        "lanes": grid.size,
        "cpu_seconds": round(seconds, 1),
        "times_bare_flows": round(ratio, 3),
        "turns": [round(each, 3) for each in ratios],
        "files": files,
        "mebibytes": round(size / 2**20, 1),
        "opening_seconds": round(opening, 3),
        "peak_gibibytes": round(peak, 2),
    }
    return good and ratio <= OVERHEAD, numbers


def plan_command(options: argparse.Namespace) -> tuple[bool, Numbers]:
    """Measure the peak memory of dry runs of a small and a large sweep, in separate processes."""
    peaks = {}
    with tempfile.TemporaryDirectory() as name:
        for lanes in (options.lanes // 1000, options.lanes):
            config = Path(name, f"{lanes}.toml")
            count = round(lanes**0.5)
            data = "[data]\nX = [[1, 2]]\ny = [1]\n"
            starts = f"[start]\nnum_alphas = {count}\nnum_directions = {count}\n"
            config.write_text(data + starts)
            peaks[count**2] = _peak_of(shell("sweep", config, "--dry-run"))
            print(f"{count**2:,} lanes: peak {peaks[count**2]:.0f} MiB")
    few, many = peaks.values()
    return many < 1.05 * few, {"peak_mebibytes": {str(n): round(p) for n, p in peaks.items()}}


def _peak_of(process: subprocess.Popen) -> float:
    """Peak memory in MiB of a process; RuntimeError if it fails."""
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        raise RuntimeError("a dry run failed")
    return usage.ru_maxrss / 2**10


def record(command: str, numbers: Numbers, script: str = "sweep_shared.py") -> None:
    """Put the numbers of a command into the recorded file."""
    kept = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
    program = f"python benchmarks/{script} {shlex.join(sys.argv[1:])}"
    kept[command] = {"command": program, **numbers, "machine": measure.machine()}
    RECORDED.parent.mkdir(exist_ok=True)
    RECORDED.write_text(json.dumps(kept, indent=1) + "\n")


def main() -> int:
    """Run one of the commands; returns the exit code."""
    commands: dict[str, Callable[[argparse.Namespace], tuple[bool, Numbers]]] = {
        "cluster": cluster_command,
        "work": work_command,
        "flips": flips_command,
        "large": large_command,
        "plan": plan_command,
    }
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("command", choices=list(commands))
    parser.add_argument("--workers", type=int, default=20)
    parser.add_argument("--drivers", type=int, default=5)
    parser.add_argument("--times", type=int)
    parser.add_argument("--lanes", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", action="store_true", help="keep the numbers in a file")
    options = parser.parse_args()
    if options.times is None:
        options.times = {"flips": 300, "large": 3}.get(options.command, 10)
    if options.lanes is None:
        options.lanes = 10_000_000 if options.command == "plan" else 1_000_000
    good, numbers = commands[options.command](options)
    print(json.dumps({"command": options.command, "passed": good, **numbers}))
    if options.record:
        record(options.command, {"passed": good, **numbers})
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

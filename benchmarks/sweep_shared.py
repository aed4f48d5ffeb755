"""Sweeps of many processes, and damaged stores: what is lost, what is found, what it costs.

Run from the repository root:

    python benchmarks/sweep_shared.py cluster [--workers 20 --drivers 5]  # SIGKILL with Dask
    python benchmarks/sweep_shared.py work [--times 10]                   # SIGKILL of shells
    python benchmarks/sweep_shared.py flips [--times 300]                 # single bits of a store
    python benchmarks/sweep_shared.py large [--lanes 1000000]             # costs beside bare flows
    python benchmarks/sweep_shared.py plan [--lanes 10000000]             # a dry run's memory

`cluster` and `work` compute a sweep with stiff lanes, kill random processes until the sweep is
done, and compare every array with one uninterrupted process. `flips` changes one bit of a random
file, asks `verify`, and changes it back. `large` prints CPU seconds, the ratio to
`lt.batched_flow` of the same lanes, files, bytes, and the time to open the store. Every command
ends with exit code 1 if its bound is broken.
"""

import argparse
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OVERHEAD = 1.15
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


def shell(*arguments: object) -> subprocess.Popen:
    """A process of the command line in a group of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "lintensor_jax", *map(str, arguments)]
    null = subprocess.DEVNULL
    return subprocess.Popen(
        command, env=environment, start_new_session=True, stdout=null, stderr=null
    )


def contents(path: Path) -> dict[str, bytes]:
    """Every file of every array."""
    return {
        str(p.relative_to(path)): p.read_bytes()
        for p in path.rglob("*")
        if p.is_file() and ".sweep" not in p.parts
    }


def finished(path: Path) -> int:
    """The number of finished chunks."""
    return len(list((path / ".sweep" / "chunks").glob("*.json")))


def uninterrupted(folder: Path) -> Path:
    """The sweep by one process."""
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


def cluster_command(options: argparse.Namespace) -> bool:
    """Kills workers and drivers of a local cluster."""
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole, path = uninterrupted(folder), folder / "out"
        chunks = finished(whole)
        workers = drivers = 0
        begun = ["sweep", folder / "c.toml", "--out", path, "--cluster", "local:2"]
        driver = shell(*begun)
        while driver.poll() is None:
            time.sleep(rng.uniform(0.5, 2.0))
            done = finished(path) if path.exists() else 0
            if done == 0 or done == chunks:
                continue
            if drivers < options.drivers and done > chunks * (drivers + 1) / (options.drivers + 2):
                os.killpg(driver.pid, signal.SIGKILL)
                driver.wait()
                drivers += 1
                driver = shell("resume", path, "--cluster", "local:2")
            elif workers < options.workers and (alive := workers_of(driver)):
                os.kill(rng.choice(alive), signal.SIGKILL)
                workers += 1
        same = contents(path) == contents(whole)
    print(
        f"killed {workers} workers and {drivers} drivers during {chunks} chunks; exit code "
        f"{driver.returncode}; every array the same: {same}"
    )
    return same and driver.returncode == 0


def work_command(options: argparse.Namespace) -> bool:
    """Two shells; one of them is killed and started again."""
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole, path = uninterrupted(folder), folder / "out"
        if shell("sweep", folder / "c.toml", "--out", path, "--no-work").wait() != 0:
            raise RuntimeError("the store was not made")
        shells = [shell("work", path), shell("work", path)]
        killed = 0
        while any(each.poll() is None for each in shells):
            time.sleep(rng.uniform(1.0, 4.0))
            alive = [i for i, each in enumerate(shells) if each.poll() is None]
            if alive and killed < options.times and finished(path) > 0:
                place = rng.choice(alive)
                os.killpg(shells[place].pid, signal.SIGKILL)
                shells[place].wait()
                killed += 1
                shells[place] = shell("work", path)
        same = contents(path) == contents(whole)
    print(f"killed {killed} of two shells in turn; every array the same: {same}")
    return same and all(each.returncode == 0 for each in shells)


def flips_command(options: argparse.Namespace) -> bool:
    """Single bits of random files, weighted by size and by number."""
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
    return found == options.times and sound


def large_command(options: argparse.Namespace) -> bool:
    """A large sweep beside the bare flows of the same lanes."""
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

    def bare() -> float:
        began = time.process_time()
        for chunk in plan.chunks():
            networks, _ = chunk.cell.starts(chunk.lanes)
            flow = lt.batched_flow(networks, grid.problem, width=plan.width)
            jax.block_until_ready(flow.coefficients)
        return time.process_time() - began

    with tempfile.TemporaryDirectory() as name:
        small = grid_of(plan.padded)
        lt.sweep(small, chunk_lanes=plan.padded, width=plan.width)  # compiles what both need
        path = Path(name, "store")
        began = time.process_time()
        results = lt.sweep(grid, path)
        swept = time.process_time() - began
        alone = bare()
        began = time.perf_counter()
        opened = xarray.open_zarr(path, chunks=None)
        np.asarray(opened.limit[0, 0])
        opening = time.perf_counter() - began
        files = sum(p.is_file() for p in path.rglob("*"))
        size = size_on_disk(path)
        good = bool((results.status == 1).all())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{grid.size:,} lanes: {swept:.0f} CPU seconds, {swept / alone:.2f} times the bare flows, "
        f"{files} files, {size / 2**20:.0f} MiB, opened in {opening:.2f} s, peak {peak:.2f} GiB"
    )
    return good and swept / alone < OVERHEAD


def plan_command(options: argparse.Namespace) -> bool:
    """Peak memory of dry runs of growing sweeps, each in a process of its own."""
    peaks = []
    with tempfile.TemporaryDirectory() as name:
        for lanes in (options.lanes // 1000, options.lanes):
            config = Path(name, f"{lanes}.toml")
            count = round(lanes**0.5)
            data = "[data]\nX = [[1, 2]]\ny = [1]\n"
            starts = f"[start]\nnum_alphas = {count}\nnum_directions = {count}\n"
            config.write_text(data + starts)
            before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
            if shell("sweep", config, "--dry-run").wait() != 0:
                raise RuntimeError("a dry run failed")
            peaks.append(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**10)
            print(f"{count**2:,} lanes: peak {peaks[-1]:.0f} MiB (before {before / 2**10:.0f})")
    return peaks[1] < 1.05 * peaks[0]


def main() -> int:
    """Run one of the commands; returns the exit code."""
    commands: dict[str, Callable[[argparse.Namespace], bool]] = {
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
    options = parser.parse_args()
    if options.times is None:
        options.times = 300 if options.command == "flips" else 10
    if options.lanes is None:
        options.lanes = 10_000_000 if options.command == "plan" else 1_000_000
    good = commands[options.command](options)
    print(json.dumps({"command": options.command, "passed": good}))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

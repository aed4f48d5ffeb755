"""Large sweeps: memory, step waste, and the work that a SIGKILL loses.

Run from the repository root:

    python benchmarks/sweep.py lanes [--lanes 100000] [--devices 2]   # one large sweep
    python benchmarks/sweep.py uneven [--budget 50000]                # 1% of the lanes 100x slower
    python benchmarks/sweep.py nan                                    # 1% of the lanes are NaN
    python benchmarks/sweep.py kill [--times 20]                      # SIGKILL at random moments

`lanes` is regression with a diagonal network (L = 2, d = 8, n = 3), alpha from 1e-3 to 1 and 100
directions; it prints lanes per second without compilation, peak memory of the process, and step
waste (executed over needed explicit steps). In `uneven` every lane has its own data, of which 1%
are so badly conditioned that an explicit method needs about 100 times as many steps. `kill` runs a
sweep in a child process, kills it at a random moment, and resumes and kills it until the sweep is
done. Then it compares every file of every array with an uninterrupted run, and counts how often
each chunk was computed. It repeats this with new sweeps until it has killed `--times` times. Every
command ends with exit code 1 if its bound is broken.
"""

import argparse
import json
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp  # noqa: E402

import lintensor_jax as lt  # noqa: E402
from lintensor_jax.initialization import matching  # noqa: E402
from lintensor_jax.sweeps import STATUSES, Axis, Grid, Limit, Options, Plan, Zip  # noqa: E402
from lintensor_jax.sweeps.execution.worker import Worker  # noqa: E402
from lintensor_jax.sweeps.store.status import status  # noqa: E402

D, N = 8, 3
RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((N, D)), RNG.standard_normal(N)
DIRECTIONS = RNG.standard_normal((100, D))
MEMORY_GIB, WASTE, UNEVEN_WASTE = 2.0, 1.35, 2.0


def start(point: Any) -> Any:
    """The start of Yun et al. 2021, section 6."""
    return matching(lt.DiagonalNetwork.zeros(2, D), point.direction).scaled(point.alpha)


def grid_of(lanes: int) -> Grid:
    """A grid of `lanes` lanes: scales by 100 directions."""
    alphas = np.geomspace(1e-3, 1.0, lanes // len(DIRECTIONS))
    axes = (Axis("alpha", alphas), Axis("direction", DIRECTIONS, dims=("coefficient",)))
    return Grid(axes, start, lt.Regression(X, Y))


def timed(grid: Grid, path: Path | None, **options: Any) -> tuple[Any, float, float]:
    """The results, all seconds, and lanes per second after the first chunk."""
    seen: list[tuple[float, int]] = []

    def watch(progress: Any) -> None:
        if progress.lanes > 0:
            seen.append((time.perf_counter(), progress.lanes))

    began = time.perf_counter()
    results = lt.sweep(grid, path, watch=watch, **options)
    seconds = time.perf_counter() - began
    (first, before), (last, done) = seen[0], seen[-1]
    return results, seconds, (done - before) / max(last - first, 1e-9)


def lanes_command(options: argparse.Namespace) -> bool:
    """Run the large sweep; returns whether memory and waste are within their bounds."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "store")
        plan = Plan(grid_of(options.lanes), Options()).summary(options.devices)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        _, seconds, rate = timed(grid_of(options.lanes), path)
        state = status(path)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{state.finished_lanes:,} lanes in {seconds:.0f} s ({rate:,.0f} lanes/s once compiled), "
        f"{state.chunks} chunks on {len(jax.local_devices())} devices, peak memory {peak:.2f} GiB "
        f"({before:.2f} before; planned {plan['memory_per_device_bytes'] / 2**30:.2f} a device), "
        f"waste {state.waste:.3f}, {state.bytes / 2**20:.1f} MiB on disk, statuses {state.statuses}"
    )
    good = state.statuses == {"residual": state.lanes} and state.waste is not None
    return good and peak < MEMORY_GIB and (state.waste or 9) <= WASTE


def uneven_command(options: argparse.Namespace) -> bool:
    """Run a sweep with one badly conditioned lane in a hundred; returns whether waste is small."""
    count = options.lanes
    slow = np.zeros(count, bool)
    slow[RNG.choice(count, count // 100, replace=False)] = True
    # In slow lanes the second sample equals the first up to a small part. That part is learned
    # last, at a rate that is smaller by the square of its size.
    data = np.broadcast_to(X[:2], (count, 2, D)).copy()
    data[slow, 1] = data[slow, 0] + options.conditioning * data[slow, 1]
    targets = np.einsum("lnd,d->ln", data, np.abs(DIRECTIONS[0]))
    alphas = np.geomspace(0.3, 1.0, count)

    def one(point):
        return matching(lt.DiagonalNetwork.zeros(2, D), jnp.asarray(DIRECTIONS[1])).scaled(
            point.alpha
        )

    axes = Zip("lane", Axis("alpha", alphas), Axis("X", data), Axis("y", targets))
    grid = Grid((axes,), one, lambda point: lt.Regression(point.X, point.y))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "store")
        results, seconds, _ = timed(grid, path, max_steps=options.budget)
        state = status(path)
        steps = np.asarray(results.num_steps)
        methods = np.unique(np.asarray(results.method), return_counts=True)
    ratio = np.median(steps[slow]) / np.median(steps[~slow])
    print(
        f"{count:,} lanes, 1% of them {ratio:.0f} times slower ({np.median(steps[~slow]):.0f} and "
        f"{np.median(steps[slow]):.0f} steps), budget {options.budget}: {seconds:.0f} s, waste "
        f"{state.waste:.3f}, {state.stiff_lanes} lanes on the stiff path, statuses "
        f"{state.statuses}, methods {dict(zip(*map(np.ndarray.tolist, methods), strict=True))}"
    )
    return (state.waste or 9) <= UNEVEN_WASTE


def nan_command(options: argparse.Namespace) -> bool:
    """Start one lane of a hundred at NaN; returns whether exactly these lanes are flagged."""
    chosen = RNG.choice(options.lanes, options.lanes // 100, replace=False)
    bad = np.isin(np.arange(options.lanes), chosen)
    alphas = np.geomspace(1e-3, 1.0, options.lanes)
    flags = np.where(bad, 1, -1) * np.arange(1, options.lanes + 1)

    def one(point):
        alpha = jnp.where(point.broken > 0, jnp.nan, point.alpha)
        return matching(lt.DiagonalNetwork.zeros(2, D), jnp.asarray(DIRECTIONS[0])).scaled(alpha)

    grid = Grid(
        (Zip("lane", Axis("alpha", alphas), Axis("broken", flags)),), one, lt.Regression(X, Y)
    )
    results = lt.sweep(grid, observables=Limit())
    names = np.asarray(STATUSES)[results.status.values]
    flagged = names == "bad_input"
    same = bool((bad == flagged).all())
    print(f"{bad.sum()} lanes start at NaN, {flagged.sum()} are flagged; the same: {same}")
    return bool(same and (names[~bad] == "residual").all())


def child_command(options: argparse.Namespace) -> bool:
    """The process that `kill` kills; it logs every chunk that it begins."""
    jax.config.update("jax_compilation_cache_dir", str(Path(options.path).parent / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    compute = Worker.chunk

    def logged(self, chunk, device):
        with open(f"{options.path}.jobs", "a") as file:
            file.write(f"{chunk.number}\n")
        return compute(self, chunk, device)

    Worker.chunk = logged
    grid = grid_of(3000)
    # Lanes of small alpha go over this budget: the stiff path is interrupted as well.
    settings: dict[str, Any] = {"chunk_lanes": 100, "width": 8, "max_steps": 80}
    path = Path(options.path)
    print("begin", flush=True)
    if path.exists():
        lt.resume(path, grid)
    else:
        lt.sweep(grid, path, **settings)
    return True


def kill_command(options: argparse.Namespace) -> bool:
    """Kill, resume, compare and count; returns whether all bytes are equal and counts are small."""
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder, "whole")
        run_child(whole, None)
        expected, jobs = contents(whole), Path(f"{whole}.jobs").read_text().split("\n")[:-1]
        seconds = run_child(Path(folder, "again"), None)
        assert seconds is not None
        assert contents(Path(folder, "again")) == expected
        print(
            f"uninterrupted: {len(expected)} files, {len(jobs)} chunks, {seconds:.1f} s", flush=True
        )
        killed, sweeps, repeated, good = 0, 0, 0, True
        while killed < options.times:
            path = Path(folder, f"killed{sweeps}")
            here = 0
            # Every child continues the sweep, so it ends at last.
            while run_child(path, rng.uniform(0, seconds)) is None:
                here += 1
            log = Path(f"{path}.jobs").read_text().split("\n")[:-1]
            same = contents(path) == expected
            extra = len(log) - len(set(log))
            state = status(path)
            # A kill loses two chunks at most: one device computes a chunk while another is written.
            good &= same and set(log) == set(jobs) and extra <= 2 * here and state.complete
            killed, sweeps, repeated = killed + here, sweeps + 1, repeated + extra
            print(f"killed {here} times: same bytes {same}, {extra} chunks done twice", flush=True)
    print(f"{killed} kills in {sweeps} sweeps, {repeated} chunks done twice (at most {2 * killed})")
    return good


def run_child(path: Path, kill_after: float | None) -> float | None:
    """Seconds from the child's first line to its end; None if it was killed."""
    command = [sys.executable, __file__, "child", "--path", str(path)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    child.stdout.readline()
    began = time.perf_counter()
    try:
        code = child.wait(kill_after)
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGKILL)
        code = child.wait()
    child.stdout.close()
    if code == -signal.SIGKILL:
        return None
    if code != 0:
        raise RuntimeError(f"the child failed with exit code {code}")
    return time.perf_counter() - began


def contents(path: Path) -> dict[str, bytes]:
    """The bytes of every file of every array, by its name."""
    return {
        str(p.relative_to(path)): p.read_bytes()
        for p in path.rglob("*")
        if p.is_file() and ".sweep" not in p.parts
    }


def main() -> int:
    """Run one of the commands `lanes`, `uneven`, `nan` and `kill`; returns the exit code."""
    commands: dict[str, Callable[[argparse.Namespace], bool]] = {
        "lanes": lanes_command,
        "uneven": uneven_command,
        "nan": nan_command,
        "kill": kill_command,
        "child": child_command,
    }
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("command", choices=list(commands))
    parser.add_argument("--lanes", type=int)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--budget", type=int, default=50_000)
    parser.add_argument("--conditioning", type=float, default=0.035)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--path")
    options = parser.parse_args()
    if options.lanes is None:
        options.lanes = {"lanes": 100_000, "uneven": 30_000, "nan": 10_000}.get(options.command, 0)
    if options.devices > 1:
        jax.config.update("jax_num_cpu_devices", options.devices)
    good = commands[options.command](options)
    if options.command != "child":
        print(json.dumps({"command": options.command, "passed": good}))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

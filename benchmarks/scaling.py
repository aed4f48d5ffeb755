"""Growth of time and memory with the number of lanes, d, L and n, and the expected orders.

Run from the repository root; `hot_path.py` runs it with everything else:

    python benchmarks/scaling.py [--quick] [--out results/benchmarks]

Lanes: throughput of `batched_flow` and of plain `jit(vmap(diffeqsolve))` in the sweep of Yun et al.
2021, in units of plain at 1,000 lanes, and the peak memory of a separate process for each number. A
step: core time of a lane's attempted step. Compilation: core time of the first call of the same
lanes, less that of a later one. Contractions and the dual flow: see `contraction_costs.py`. Costs
are in units of the first one of a panel's first curve. `growth` is the cost's factor over the last
part of a curve, beside the expected one; a compilation has none.
"""

import argparse
import functools
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import batched
import contraction_costs
import jax
import jax.numpy as jnp
import measure
import numpy as np
import peers
import plots
from measure import Effort, Row

import lintensor_jax as lt
from lintensor_jax.dynamics.system import System
from lintensor_jax.figures import style

LANES, LANES_QUICK = (1, 10, 100, 1000, 10_000, 100_000, 1_000_000), (1, 1000)
PLAIN_MOST = {False: 100_000, True: 1000}
MEMORY, MEMORY_QUICK = (1, 1000, 10_000, 100_000, 1_000_000), (1, 10_000)
D, D_QUICK = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024), (16, 256)
L, L_QUICK = (2, 3, 4, 6, 8), (2, 4)
N, N_QUICK = (1, 4, 16, 64, 256), (1, 16)
# A fully-connected network of d = 1024 has a million parameters a layer.
WIDEST = 256
BASE_D, BASE_L, BASE_N = 16, 2, 4
# The most parameters of all lanes together, and the most steps of a timing.
_NUMBERS, _MOST_STEPS = 2**16, 64


def paper_task(lanes: int) -> batched.Problem:
    """The paper sweep of diagonal networks, with that many lanes."""
    paper = lt.Regression(peers.X[None], np.array([peers.Y]))
    system = System.of(batched.network("diagonal", 2, 2), paper)
    theta = batched.starts(system, lanes, 0.01)
    return batched.Problem("diagonal", 2, paper, theta, batched.MOST_STEPS)


def by_lanes(effort: Effort) -> list[Row]:
    """Rows of the throughput by number of lanes; every lane's limit is checked."""
    rows, unit = [], 0.0
    for lanes in LANES_QUICK if effort.quick else LANES:
        task = paper_task(lanes)
        task.expected = peers.exact_limit("diagonal", np.asarray(task.theta))
        program = batched.plain(task.system, batched.MOST_STEPS)
        calls: dict[str, Callable] = {}
        if lanes <= PLAIN_MOST[effort.quick]:
            calls["plain"] = lambda program=program, task=task: program(task.theta)
        calls["ours"] = task.by_batched_flow
        variants = [measure.Variant(name, call, task.check(name)) for name, call in calls.items()]
        found = [variant.check(variant.call()) for variant in variants]
        wall, _ = measure.medians(variants, 1 if lanes >= 100_000 else effort.repeats)
        unit = unit or lanes / wall["plain"]
        unit = lanes / wall["plain"] if lanes == 1000 else unit
        for variant, checked in zip(variants, found, strict=True):
            row = {"part": "lanes", "variant": variant.name, "lanes": lanes}
            row["lanes_per_second"] = lanes / wall[variant.name]
            rows.append(row | checked)
    for row in rows:
        row["throughput"] = row["lanes_per_second"] / unit
        if not measure.on_gpu():
            del row["lanes_per_second"]
    return rows


def peak_memory(lanes: int) -> int:
    """The peak memory of this process in bytes, after a sweep of that many lanes."""
    measure.set_up()
    task = paper_task(lanes)
    jax.block_until_ready(task.by_batched_flow().coefficients)
    # Not getrusage: there a child begins with its parent's peak.
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def by_memory(effort: Effort) -> list[Row]:
    """Rows of the peak memory and bytes a lane, less the peak memory with one lane."""
    context = multiprocessing.get_context("spawn")
    peaks = {}
    for lanes in MEMORY_QUICK if effort.quick else MEMORY:
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            peaks[lanes] = pool.submit(peak_memory, lanes).result()
    start = peaks.pop(1)
    return [
        {
            "part": "memory",
            "lanes": lanes,
            "peak_MB_over_one_lane": (peak - start) / 1e6,
            "bytes_per_lane": (peak - start) / lanes,
        }
        for lanes, peak in peaks.items()
    ]


@functools.cache  # panels share a shape, which is compiled once
def costs_of_steps(name: str, d: int, depth: int, n: int, repeats: int) -> tuple[float, float]:
    """Core seconds of one attempted step of a lane, all lanes in flight; and of the compilation."""
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((n, d)) / np.sqrt(d), rng.standard_normal(n)
    problem = lt.Regression(X, y)
    system = System.of(batched.network(name, depth, d), problem)
    size = system.initial.size
    lanes = int(max(8, min(128, _NUMBERS // size)))
    steps = int(max(4, min(_MOST_STEPS, 64 * _NUMBERS // (size * lanes))))
    scale = 0.5 if name == "diagonal" else 0.5 / np.sqrt(d)
    theta = jnp.asarray(scale * rng.standard_normal((lanes, size)))
    networks: Any = jax.vmap(system.network)(theta)

    def run_flow():
        # No flow reaches this in so few steps, so that all steps are taken.
        stop = lt.StopAtResidual(1e-13)
        settings: Any = {"finish": None, "max_steps": steps, "width": lanes}
        return lt.batched_flow(networks, problem, stop=stop, **settings)

    flow, _, first = measure.timed(run_flow)
    timed = [measure.timed(run_flow)[1:] for _ in range(repeats)]
    wall, core = np.median(np.array(timed), axis=0)
    one = float(wall if measure.on_gpu() else core) / int(flow.executed_steps)
    return one, max(first - float(core), 0.0)


def expected_step(name: str, d: int, depth: int, n: int) -> float:
    """Expected operations of one stage.

    They are those of predictions and their adjoint, of the contraction, and of combining stages.

    Tsit5's six stages combine 1, ..., 6 earlier slopes of all parameters: 3.5 on average.
    """
    size = depth * d if name != "fully-connected" else (depth - 1) * d**2 + d
    return 2 * n * d + contraction_costs.expected_contraction(name, d, depth) + 3.5 * size


Curves = dict[str, tuple[Sequence[int], list[float], list[float] | None]]


def by_size(effort: Effort) -> dict[tuple[str, str], Curves]:
    """Curves of costs and of their expected orders, by (what is measured, the size that varies)."""
    repeats = effort.repeats
    sizes = (D_QUICK, L_QUICK, N_QUICK) if effort.quick else (D, L, N)
    names = batched.ARCHITECTURES

    def curves(values, cost, expected, steps=False) -> Curves:
        found: Curves = {}
        # Every shape of a stepper takes seconds to compile.
        for name in names[:1] if steps and effort.quick else names:
            widest = WIDEST if steps and name == "fully-connected" else max(D)
            xs = [x for x in values if x <= widest]
            found[name] = xs, [cost(name, x) for x in xs], [expected(name, x) for x in xs]
        return found

    def step(*arguments):
        return costs_of_steps(*arguments, repeats)[0]

    def contract(*arguments):
        return contraction_costs.contraction(*arguments, repeats=repeats)

    order, whole = contraction_costs.expected_contraction, expected_step
    b_d, b_l, b_n = BASE_D, BASE_L, BASE_N
    panels = {
        ("contraction", "d"): curves(
            sizes[0], lambda a, d: contract(a, d, b_l), lambda a, d: order(a, d, b_l)
        ),
        ("contraction", "L"): curves(
            sizes[1], lambda a, k: contract(a, b_d * 4, k), lambda a, k: order(a, b_d * 4, k)
        ),
        ("step", "d"): curves(
            sizes[0], lambda a, d: step(a, d, b_l, b_n), lambda a, d: whole(a, d, b_l, b_n), True
        ),
    }
    if not effort.quick:
        panels |= {
            ("step", "L"): curves(
                sizes[1],
                lambda a, k: step(a, b_d, k, b_n),
                lambda a, k: whole(a, b_d, k, b_n),
                True,
            ),
            ("step", "n"): curves(
                sizes[2],
                lambda a, n: step(a, b_d, b_l, n),
                lambda a, n: whole(a, b_d, b_l, n),
                True,
            ),
        }
    panels |= of_compilation(panels, repeats)
    for letter, values in (("d", sizes[0]), ("n", sizes[2])):
        pairs = [(x, b_n) if letter == "d" else (256, x) for x in values]
        costs = [contraction_costs.dual_velocity(*pair, repeats) for pair in pairs]
        products = [float(d * (n + 2)) for d, n in pairs]
        panels["dual velocity", letter] = {
            label: (values, [cost[label] for cost in costs], products) for label in costs[0]
        }
    return panels


def of_compilation(panels: dict[tuple[str, str], Curves], repeats: int) -> dict[Any, Curves]:
    """The compilations of the shapes in the panels of steps."""
    shapes = {
        "d": lambda d: (d, BASE_L, BASE_N),
        "L": lambda depth: (BASE_D, depth, BASE_N),
        "n": lambda n: (BASE_D, BASE_L, n),
    }

    def seconds(name, x, letter):
        return [costs_of_steps(name, *shapes[letter](v), repeats)[1] for v in x]

    return {
        ("compilation", letter): {
            name: (x, seconds(name, x, letter), None) for name, (x, *_) in curves.items()
        }
        for (what, letter), curves in panels.items()
        if what == "step"
    }


def rows_by_size(panels: dict[tuple[str, str], Curves]) -> list[Row]:
    """Growth over the last part of each curve: a factor of at least 4 in x if the curve has it."""
    rows = []
    for (what, letter), curves in panels.items():
        for name, (x, y, expected) in curves.items():
            first = max((k for k in range(len(x) - 1) if 4 * x[k] <= x[-1]), default=0)
            row: Row = {"part": "growth", "problem": f"{what}, {letter}", "variant": name}
            row |= {"from": x[first], "to": x[-1], "growth": y[-1] / y[first]}
            rows.append(
                row | ({} if expected is None else {"expected": expected[-1] / expected[first]})
            )
    return rows


def draw(lanes: list[Row], panels: dict[tuple[str, str], Curves], folder: Path) -> list[Path]:
    """Draw the throughput, and a panel for every cost; returns the paths of the files."""
    throughput = []
    for name in dict.fromkeys(row["variant"] for row in lanes):
        mine = [row for row in lanes if row["variant"] == name]
        values = [[row[key] for row in mine] for key in ("lanes", "throughput")]
        throughput.append(plots.Curve(name, *values))
    label = "lanes/s (plain at 1,000 lanes = 1)"
    figure = plots.loglog_figure([plots.Panel("paper sweep", "lanes", label, throughput)])
    paths = style.save(figure, folder / "lanes")
    drawn = []
    for (what, letter), curves in panels.items():
        unit = next(iter(curves.values()))[1][0]
        drawn.append(
            plots.Panel(
                what,
                letter,
                "core time (relative)",
                [
                    plots.Curve(name, x, [value / unit for value in y], expected)
                    for name, (x, y, expected) in curves.items()
                ],
            )
        )
    return paths + style.save(plots.loglog_figure(drawn), folder / "scaling")


def rows_of(effort: Effort, folder: Path) -> list[Row]:
    """All rows; the plots are written to `folder`."""
    memory = by_memory(effort)
    lanes = by_lanes(effort)
    panels = by_size(effort)
    draw(lanes, panels, folder)
    return [*lanes, *memory, *rows_by_size(panels)]


def main() -> None:
    """Print the tables and write the plots."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few sizes")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"))
    options = parser.parse_args()
    measure.set_up()
    options.out.mkdir(parents=True, exist_ok=True)
    print(measure.markdown(rows_of(Effort(options.quick, options.repeats), options.out)))


if __name__ == "__main__":
    main()

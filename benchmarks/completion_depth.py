"""Matrix completion by deep factorizations: reconstruction error and effective rank against depth.

Run from the repository root:

    python benchmarks/completion_depth.py [--size 100] [--entries 2000] [--rank 5]
        [--out completion_depth.json] [--figure completion_depth.png]

After Arora et al. 2019, Figures 1 and 2: a random matrix of low rank, entries at random places, and
gradient flows of factorizations of several depths from random normal layers. There are three
initial scales: the standard deviation of the entries of beta(0) is 0.1, 0.01 or 0.003. The flows
end at a relative residual of 1e-4. The effective rank is that of Roy & Vetterli 2007.
"""

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path

import jax
import numpy as np

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp  # noqa: E402

import lintensor_jax as lt  # noqa: E402
from lintensor_jax.dynamics.statuses import status_name  # noqa: E402

DEPTHS = (2, 3, 4)
SCALES = (1e-1, 1e-2, 3e-3)
RTOL = 1e-6
RESIDUAL = 1e-4  # relative to |y|


@dataclasses.dataclass(frozen=True)
class Result:
    """The end of one flow."""

    depth: int
    scale: float
    error: float  # |beta - truth| / |truth|, Frobenius norms
    effective_rank: float
    status: str
    num_steps: int
    seconds: float

    def __str__(self) -> str:
        return (
            f"L = {self.depth}, scale {self.scale:.0e}: error {self.error:.2e}, effective rank "
            f"{self.effective_rank:.2f}, {self.num_steps} steps, {self.seconds:.0f} s "
            f"[{self.status}]"
        )


def completion(size: int, entries: int, rank: int, seed: int):
    """The problem, and the whole matrix, whose entries have variance 1."""
    rng = np.random.default_rng(seed)
    left, right = rng.standard_normal((2, size, rank))
    truth = left @ right.T / np.sqrt(rank)
    rows, columns = np.divmod(rng.choice(size * size, entries, replace=False), size)
    return lt.MatrixCompletion(rows, columns, truth[rows, columns], truth.shape), truth


def start(size: int, depth: int, scale: float, seed: int) -> lt.MatrixFactorizationNetwork:
    """Normal layers for which the entries of beta(0) have standard deviation `scale`."""
    deviation = (scale / np.sqrt(size) ** (depth - 1)) ** (1 / depth)
    like = lt.MatrixFactorizationNetwork.zeros(depth, size)
    return lt.initialization.gaussian(like, jax.random.key(seed), deviation)


def run(problem, truth, depth: int, scale: float, seed: int) -> Result:
    """One flow to a small residual."""
    begin = time.perf_counter()
    threshold = RESIDUAL * float(jnp.linalg.norm(problem.values))
    solution = lt.gradient_flow(
        start(truth.shape[0], depth, scale, seed),
        problem,
        stop=lt.StopAtResidual(threshold),
        finish=None,
        rtol=RTOL,
        max_steps=20_000,
        throw=False,
    )
    beta = np.asarray(solution.coefficients[-1])
    return Result(
        depth=depth,
        scale=scale,
        error=float(np.linalg.norm(beta - truth) / np.linalg.norm(truth)),
        effective_rank=float(lt.effective_rank(beta)),
        status=status_name(solution.status),
        num_steps=int(solution.stats["num_steps"]),
        seconds=time.perf_counter() - begin,
    )


def figure(results: list[Result], truth: np.ndarray, title: str):
    """Reconstruction error and effective rank against depth, a curve for each initial scale.

    Flows that did not end at their residual are left out.
    """
    from matplotlib.figure import Figure

    from lintensor_jax.figures import style

    with style.house_style():
        drawing = Figure(figsize=(style.PAGE_WIDTH, 3.1), layout="constrained")
        panels = drawing.subplots(1, 2)
        for scale, marker in zip(sorted({r.scale for r in results}), "osD^v", strict=False):
            mine = [r for r in results if r.scale == scale and r.status == "residual"]
            depths = [r.depth for r in mine]
            label = f"entries of β(0): {scale:g}"
            panels[0].plot(depths, [r.error for r in mine], marker=marker, label=label)
            panels[1].plot(depths, [r.effective_rank for r in mine], marker=marker)
        panels[0].set_yscale("log")
        panels[0].set_ylabel("relative error of the completion")
        panels[1].set_ylabel("effective rank")
        known = float(lt.effective_rank(truth))
        panels[1].axhline(known, color="0.4", ls=":", label=f"whole matrix: {known:.2f}")
        for axes in panels:
            axes.set_xlabel("depth L")
            axes.set_xticks(sorted({r.depth for r in results}))
        drawing.legend(loc="outside lower center", ncols=4, frameon=False)
        drawing.suptitle(title)
    return drawing


def main(arguments: list[str] | None = None) -> int:
    """Run all flows; returns 1 if a flow did not end at its residual."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=100, help="rows and columns (default: 100)")
    parser.add_argument("--entries", type=int, default=2000, help="given entries (default: 2000)")
    parser.add_argument("--rank", type=int, default=5, help="of the whole matrix (default: 5)")
    parser.add_argument("--seed", type=int, default=0, help="of matrix, entries and starts")
    parser.add_argument("--out", type=Path, help="write the results as JSON")
    parser.add_argument("--figure", type=Path, help="write the figure")
    options = parser.parse_args(arguments)
    problem, truth = completion(options.size, options.entries, options.rank, options.seed)
    results = []
    for scale in SCALES:
        for depth in DEPTHS:
            results.append(run(problem, truth, depth, scale, options.seed))
            print(results[-1], flush=True)
    if options.out:
        options.out.write_text(json.dumps([dataclasses.asdict(r) for r in results], indent=1))
    if options.figure:
        title = (
            f"Completion of a {options.size} x {options.size} matrix of rank {options.rank} from "
            f"{options.entries:,} entries"
        )
        figure(results, truth, title).savefig(options.figure, dpi=150)
    return int(any(r.status != "residual" for r in results))


if __name__ == "__main__":
    sys.exit(main())

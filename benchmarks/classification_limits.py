"""Random classification flows to their certified limit directions.

Run from the repository root:

    python benchmarks/classification_limits.py [--problems 100] [--cells diagonal] [--out F.json]

Per cell (architecture, L = 2 or 3, alpha = 0.01 or 1) that many random separable problems with
d = 10, n = 20, from Gaussian parameters times alpha. Claims, per cell:

* every flow reaches margin 1e5 within 500 steps; the median of an architecture is below 150 (the
  median of a cell may be larger: from alpha = 0.01 three layers pass several saddles before any
  margin is positive);
* `limit_direction` certifies at least 98 % (parameter residual at most 1e-10, multipliers not
  negative, all margins at least 1), and names the reason for the others;
* if theory knows the limit, the certified one is within 1e-6 of an independent conic solution,
  every time. Theory knows it for fully connected networks (l2), and from starts that satisfy
  Theorem 2's condition for two-layer diagonal networks (l1) and two-layer full-length convolutions
  (l1 of the DFT). All starts of the cells with "zero last layer" satisfy this condition.
"""

import argparse
import collections
import dataclasses
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp  # noqa: E402

import lintensor_jax as lt  # noqa: E402
from lintensor_jax.dynamics.statuses import status_name  # noqa: E402
from lintensor_jax.initialization import gaussian, zero_last_layer  # noqa: E402

D, N = 10, 20
MARGIN, RTOL = 1e5, 1e-6
MOST_STEPS, MEDIAN_STEPS = 500, 150
LEAST_CERTIFIED = 0.98
RESIDUAL, CONIC = 1e-10, 1e-6

ARCHITECTURES: dict[str, Callable[[int], Any]] = {
    "fully-connected": lambda depth: lt.FullyConnectedNetwork.zeros((D,) * depth),
    "diagonal": lambda depth: lt.DiagonalNetwork.zeros(depth, D),
    "convolution": lambda depth: lt.ConvolutionalNetwork.zeros(D, (D,) * depth),
    "convolution-k2": lambda depth: lt.ConvolutionalNetwork.zeros(D, (2,) * (depth - 1) + (D,)),
    "convolution-k3": lambda depth: lt.ConvolutionalNetwork.zeros(D, (3,) * (depth - 1) + (D,)),
}
NORMS = {
    ("diagonal", 2): lt.L1Norm(),
    ("convolution", 2): lt.FourierL1Norm(),
    ("fully-connected", 2): lt.L2Norm(),
    ("fully-connected", 3): lt.L2Norm(),
}


@dataclasses.dataclass(frozen=True)
class Cell:
    """One row of the table."""

    architecture: str
    depth: int
    alpha: float
    zero_last: bool = False

    def start(self, index: int) -> Any:
        """The network at the start of problem `index`."""
        like = ARCHITECTURES[self.architecture](self.depth)
        network = gaussian(like, jax.random.key(index), self.alpha)
        return zero_last_layer(network) if self.zero_last else network

    def __str__(self) -> str:
        last = ", zero last layer" if self.zero_last else ""
        return f"{self.architecture}, L = {self.depth}, alpha = {self.alpha:g}{last}"


CELLS = [
    Cell(architecture, depth, alpha)
    for architecture in ARCHITECTURES
    for depth in (2, 3)
    for alpha in (0.01, 1.0)
] + [
    Cell(architecture, 2, alpha, zero_last=True)
    for architecture in ("diagonal", "convolution")
    for alpha in (0.01, 1.0)
]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The results of one problem of one cell."""

    cell: str
    index: int
    flow_status: str
    num_steps: int
    margin: float
    status: str
    reason: str
    parameter_residual: float
    num_supports: int
    moved: float
    theorem_2: bool  # whether its condition on the start holds (fully connected: always)
    conic: float | None  # distance to the conic solution, None if theory does not know the limit
    seconds: float


def problem(index: int) -> lt.Classification:
    """Gaussian samples, labelled by a random teacher."""
    rng = np.random.default_rng([2018, index])
    X = rng.standard_normal((N, D))
    return lt.Classification(X, np.sign(X @ rng.standard_normal(D)))


def solve(cell: Cell, index: int) -> Outcome:
    """The flow, its limit, and the conic program."""
    began = time.perf_counter()
    data, start = problem(index), cell.start(index)
    flow = lt.gradient_flow(start, data, stop=lt.StopAtMargin(MARGIN), rtol=RTOL, throw=False)
    assert flow.log_margin is not None
    residual: float | None = None
    conic, moved, supports = None, np.inf, 0
    try:
        limit = lt.limit_direction(flow, data)
    except ValueError as error:
        status, reason = "refused", str(error)
    else:
        status, reason, moved = str(limit.status), limit.reason, limit.moved
        residual, supports = limit.certificate.parameter_residual, limit.num_supports
        norm = NORMS.get((cell.architecture, cell.depth))
        if norm is not None:
            direction = lt.max_margin(data, norm).direction
            conic = float(jnp.linalg.norm(limit.direction - direction))
    return Outcome(
        cell=str(cell),
        index=index,
        flow_status=status_name(flow.status),
        num_steps=int(flow.stats["num_steps"]),
        margin=float(np.exp(flow.log_margin[-1])),
        status=status,
        reason=reason,
        parameter_residual=np.inf if residual is None else residual,
        num_supports=supports,
        moved=float(moved),
        theorem_2=_satisfies_theorem_2(cell, start),
        conic=conic,
        seconds=time.perf_counter() - began,
    )


def _satisfies_theorem_2(cell, start):
    if cell.architecture == "fully-connected":
        return True
    if cell.depth != 2 or cell.architecture not in ("diagonal", "convolution"):
        return False
    layers = np.asarray(start.factors)
    first, last = layers if cell.architecture == "diagonal" else np.fft.fft(layers, axis=1)
    gap = np.abs(first) ** 2 - np.abs(last) ** 2
    return bool((gap > 0).all() or (gap < 0).all())


def summary(cell: Cell, outcomes: list[Outcome]) -> list[str]:
    """Prints one row; returns the violated claims."""
    steps = [o.num_steps for o in outcomes]
    reached = sum(o.margin >= MARGIN for o in outcomes)
    certified = [o for o in outcomes if o.status in ("stationary", "continued")]
    good = sum(o.parameter_residual <= RESIDUAL for o in certified)
    known = [o.conic for o in outcomes if o.conic is not None and o.theorem_2]
    worst = max(known, default=None)
    counts = collections.Counter(o.status for o in outcomes)
    shown = ", ".join(f"{name} {count}" for name, count in counts.items())
    conic = "" if worst is None else f"  conic {worst:.1e} ({len(known)} runs)"
    print(
        f"{cell!s:50s} steps median {int(np.median(steps)):3d} max {max(steps):4d}  margin "
        f"{reached}/{len(outcomes)}  certified {good}/{len(outcomes)} ({shown}){conic}",
        flush=True,
    )
    for o in outcomes:
        if o not in certified:
            print(f"    problem {o.index}: {o.status}: {o.reason}; flow {o.flow_status}")
    claims = {
        "steps": max(steps) <= MOST_STEPS,
        "margin": reached == len(outcomes),
        "certified": good >= LEAST_CERTIFIED * len(outcomes),
        "conic": worst is None or worst <= CONIC,
    }
    return [f"{cell}: {name}" for name, holds in claims.items() if not holds]


def main() -> int:
    """Print a row per cell; returns 1 if a claim does not hold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--problems", type=int, default=100)
    parser.add_argument("--cells", default="", help="only cells whose name contains this")
    parser.add_argument("--out", type=Path, help="write all outcomes as JSON")
    options = parser.parse_args()
    broken, everything = [], []
    for cell in CELLS:
        if options.cells in str(cell):
            outcomes = [solve(cell, index) for index in range(options.problems)]
            broken += summary(cell, outcomes)
            everything += outcomes
    for architecture in ARCHITECTURES:
        steps = [o.num_steps for o in everything if o.cell.startswith(f"{architecture},")]
        if steps:
            median = int(np.median(steps))
            print(f"{architecture}: median of {len(steps)} flows {median} steps")
            broken += [f"{architecture}: median"] if median >= MEDIAN_STEPS else []
    for claim in broken:
        print(f"NOT KEPT: {claim}")
    if options.out is not None:
        rows = [dataclasses.asdict(o) for o in everything]
        options.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())

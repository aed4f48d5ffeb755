"""Three computations of the limit of random regression flows: full flow, mirror flow, Theorem 5.

Run from the repository root:

    python benchmarks/regression_limits.py [--problems 200] [--out limits.json]

Diagonal networks from w_l = alpha eta (l < L), w_L = 0: d up to 64, n up to 16, L = 2..5, alpha in
1e-3..10, eta of random signs and sizes. Some of the flows are stiff. The full flow integrates the L
d parameters with `gradient_flow`, the mirror flow the n dual variables, and Theorem 5 (Yun et al.
2021) is a convex program: they share only the data. The claims: the full flow differs from Theorem
5 by at most 1e-7, the mirror flow from the full flow by at most 1e-8 (both relative), and no flow
fails.
"""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp  # noqa: E402

import lintensor_jax as lt  # noqa: E402
from lintensor_jax.dynamics.statuses import status_name  # noqa: E402
from lintensor_jax.theory.regression.yun_theorem_5 import diagonal_limit  # noqa: E402

# (d, n, L). There are few shapes because each needs a compilation.
SHAPES = (
    (8, 2, 5),
    (12, 4, 4),
    (16, 5, 2),
    (24, 6, 3),
    (32, 8, 4),
    (40, 12, 2),
    (48, 10, 3),
    (64, 16, 2),
)
SCALES = (1e-3, 10.0)
THEORY_BOUND = 1e-7
MIRROR_BOUND = 1e-8
# The error after the Gauss-Newton finish is about the square of the flow's remaining distance.
RTOL = 1e-10


@dataclasses.dataclass(frozen=True)
class Case:
    """One random problem; `index` is its seed."""

    index: int
    dimension: int
    num_samples: int
    depth: int
    alpha: float
    X: np.ndarray
    y: np.ndarray
    eta: np.ndarray

    @property
    def network(self) -> lt.DiagonalNetwork:
        """The network at the start."""
        first = self.alpha * jnp.asarray(self.eta)
        return lt.DiagonalNetwork(jnp.stack([first] * (self.depth - 1) + [0 * first]))

    @property
    def problem(self) -> lt.Regression:
        """The regression problem of this instance."""
        return lt.Regression(self.X, self.y)

    def __str__(self) -> str:
        shape = f"d = {self.dimension}, n = {self.num_samples}, L = {self.depth}"
        return f"problem {self.index}: {shape}, alpha = {self.alpha:.3g}"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Relative differences (largest entry) and what the flows report."""

    case: str
    theory: float
    mirror: float | None  # None: mirror flow refused the problem
    status: str
    mirror_status: str
    num_steps: int
    num_implicit_steps: int
    num_iterations: int
    converged: bool

    @property
    def failed(self) -> bool:
        """Whether a flow or Theorem 5's iteration did not end, or two limits disagree."""
        ended = self.status == "residual" and self.mirror_status in ("residual", "refused")
        agree = self.theory <= THEORY_BOUND and (self.mirror is None or self.mirror <= MIRROR_BOUND)
        return not (ended and agree and self.converged)


def cases(count: int) -> Iterator[Case]:
    """`count` problems, all shapes in turn; problem i is the same for every count."""
    return (draw(index, *SHAPES[index % len(SHAPES)]) for index in range(count))


def draw(index: int, d: int, n: int, depth: int) -> Case:
    """Half of the targets have sparse coefficients; sizes of eta differ by a factor 8 at most."""
    rng = np.random.default_rng([2021, index])
    X = rng.standard_normal((n, d)) / np.sqrt(d)
    sparse = rng.standard_normal(d) * (rng.permutation(d) < max(1, n // 3))
    y = X @ sparse if rng.random() < 0.5 else rng.standard_normal(n)
    alpha = float(np.exp(rng.uniform(*np.log(SCALES))))
    eta = np.exp(rng.uniform(np.log(0.35), np.log(2.8), d)) * rng.choice([-1.0, 1.0], d)
    return Case(index, d, n, depth, alpha, X, y, eta)


def compare(case: Case) -> Outcome:
    """All three limits of one problem."""
    network, problem = case.network, case.problem
    limit = diagonal_limit(network, problem)
    expected = np.asarray(limit.coefficients)
    flow = lt.gradient_flow(network, problem, rtol=RTOL, throw=False)
    reached = np.asarray(flow.coefficients[-1])
    try:
        mirror = lt.mirror_flow(network, problem, throw=False)
    except lt.AssumptionFails:
        raise
    except ValueError:  # at so small a scale the n dual variables cannot represent the limit
        mirror = None
    size = np.max(np.abs(expected))
    return Outcome(
        case=str(case),
        theory=float(np.max(np.abs(reached - expected)) / size),
        mirror=None
        if mirror is None
        else float(np.max(np.abs(np.asarray(mirror.coefficients[-1]) - reached)) / size),
        status=status_name(flow.status),
        mirror_status="refused" if mirror is None else status_name(mirror.status),
        num_steps=int(flow.stats["num_steps"]),
        num_implicit_steps=int(flow.stats["num_implicit_steps"]),
        num_iterations=int(limit.num_iterations),
        converged=bool(limit.converged),
    )


def main() -> int:
    """Print the worst cases; returns 1 if any problem fails."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--seconds", type=float, help="begin no problem after this many seconds")
    parser.add_argument("--out", type=Path, help="write all outcomes as JSON")
    options = parser.parse_args()
    start, outcomes = time.perf_counter(), []
    for case in cases(options.problems):
        if options.seconds is not None and time.perf_counter() - start > options.seconds:
            break
        outcomes.append(compare(case))
        if outcomes[-1].failed:
            print(f"FAILED: {outcomes[-1]}", flush=True)
    accepted = [outcome for outcome in outcomes if outcome.mirror is not None]
    failed = [outcome for outcome in outcomes if outcome.failed]
    stiff = sum(outcome.num_implicit_steps > 0 for outcome in outcomes)
    print(
        f"{len(outcomes)} of {options.problems} problems, {stiff} of them stiff, "
        f"{len(failed)} failures; mirror flow accepted {len(accepted)}"
    )
    for what, bound, key, among in (
        ("|flow - Theorem 5|", THEORY_BOUND, "theory", outcomes),
        ("|mirror flow - flow|", MIRROR_BOUND, "mirror", accepted),
    ):
        if among:
            worst = max(among, key=lambda outcome: np.nan_to_num(getattr(outcome, key), nan=np.inf))
            print(f"worst {what} {getattr(worst, key):.1e} (claim: {bound:g}), {worst.case}")
    if options.out is not None:
        rows = [{**dataclasses.asdict(o), "failed": o.failed} for o in outcomes]
        options.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

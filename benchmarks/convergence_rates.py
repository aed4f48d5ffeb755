"""Proposition 1 and Theorem 3 of Min et al. 2021 along random flows: violations and tightness.

Run from the repository root:

    python benchmarks/convergence_rates.py [--instances 2000] [--out rates.json]

Two-layer networks on random regression: r < m, r = m and r > m, widths from min(m, r) upward, one
output and several, more and fewer samples than inputs, X without full rank. Each layer and the
targets have separate scales, from 1e-3 to 1e3, X from 0.1 to 10, and half of the X are
ill-conditioned.
The flow is `gradient_flow`. At every saved time the rate is the squared norm of the gradient, by
`jax.grad` of the loss, divided by the loss above its minimum, by NumPy. No code of `lt.theory`
computes the rate.

Proposition 10: from the invariant set (V U_2^T = 0 and U_1 U_2^T = 0) flows end at the min-norm
solution, to 1e-10; from V U_2^T = 0 alone they do not.

The claim: no violation beyond rounding. (A flow that is too stiff for the explicit method ends
early; the times that it reached count.)
"""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import diffrax
import jax
import numpy as np

jax.config.update("jax_enable_x64", True)

import equinox as eqx  # noqa: E402
import jax.numpy as jnp  # noqa: E402

import lintensor_jax as lt  # noqa: E402
from lintensor_jax.dynamics.statuses import status_name  # noqa: E402
from lintensor_jax.theory import resting_part  # noqa: E402

# (n, d, h, m, rank). There are few shapes because each needs a compilation. m = 0: a scalar output.
SHAPES = (
    (2, 5, 2, 4, 2),  # r < m, h = r
    (3, 6, 5, 5, 3),  # r < m
    (2, 4, 12, 3, 2),  # r < m, h > r + m
    (3, 5, 3, 3, 3),  # r = m, h = m
    (4, 6, 6, 4, 4),  # r = m
    (3, 4, 16, 3, 3),  # r = m, h > r + m
    (5, 8, 2, 2, 5),  # r > m, h = m
    (6, 8, 5, 3, 6),  # r > m
    (4, 7, 20, 2, 4),  # r > m, h > r + m
    (4, 6, 1, 0, 4),  # one output, one unit
    (3, 6, 10, 0, 3),  # one output
    (9, 4, 7, 2, 4),  # n > d: L* > 0
    (5, 6, 4, 3, 2),  # X without full rank
    (1, 1, 1, 0, 1),  # the scalar network of section 3.1
)
SCALES = (1e-3, 1e3)
# The flow's tolerance, and the sum that its errors may reach. For scalar networks Theorem 3 is an
# equality, so only the integrator's error is measured there.
RTOL, ERROR = 1e-12, 1e-10
# Times in units of the initial rate, the first of them the start.
TIMES = np.array([0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0])
MAX_STEPS = 1500
# Allowed rounding: ROUNDING for the largest eigenvalue of D times l_1(Sigma), and 16 ulp of X U V^T
# and of y in E. (The integrator adds ERROR times X U V^T to E. This is allowed for Theorem 3 only:
# Proposition 1 holds at any state.)
ROUNDING = 1e-13
ULPS = 16 * float(np.finfo(float).eps)
MIN_NORM_BOUND = 1e-10


@dataclasses.dataclass(frozen=True)
class Case:
    """One random instance; `index` is its seed."""

    index: int
    shape: tuple[int, int, int, int, int]
    first: np.ndarray
    last: np.ndarray
    X: np.ndarray
    y: np.ndarray

    @property
    def network(self) -> lt.FullyConnectedNetwork:
        """The network at the start."""
        return lt.FullyConnectedNetwork([self.first, self.last])

    @property
    def problem(self) -> lt.Regression:
        """The regression problem of this instance."""
        return lt.Regression(self.X, self.y)

    @property
    def regime(self) -> str:
        """A word that compares the rank with the number of outputs."""
        rank, outputs = self.shape[4], max(self.shape[3], 1)
        return f"r {'<' if rank < outputs else '=' if rank == outputs else '>'} m"

    def __str__(self) -> str:
        n, d, h, m, rank = self.shape
        return f"instance {self.index}: n = {n}, d = {d}, h = {h}, m = {m}, r = {rank}"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The measurements of one flow, over its saved times.

    `rate_excess`: the most by which Proposition 1 exceeds the measured rate, in units of
    the allowed rounding. `loss_excess`: log of loss over Theorem 3 (from the start; Corollary 6
    from every saved time), in the same units. A number above 1 is a violation. `tightness`: the
    measured rate over Proposition 1 at the times at which that is positive.
    """

    case: str
    regime: str
    status: str
    num_times: int
    rate_excess: float
    loss_excess: float
    tightness: tuple[float, ...]
    asymptotic_tightness: (
        float | None
    )  # the last rate over eq. (22), once c(t) is within 0.1 % of it
    guaranteed: bool  # whether Theorem 3's rate is positive

    @property
    def failed(self) -> bool:
        """Whether a bound is violated, or nothing could be compared."""
        return not (self.rate_excess <= 1 and self.loss_excess <= 1 and self.num_times > 0)


def cases(count: int) -> Iterator[Case]:
    """`count` instances, shape by shape in turn; instance i is the same for every count."""
    return (draw(index, SHAPES[index % len(SHAPES)]) for index in range(count))


def draw(index: int, shape: tuple[int, int, int, int, int]) -> Case:
    """Gaussian parameters, data and targets, each times a scale that is uniform in the logarithm.

    In a quarter of the instances the scales are equal. In a quarter, drawn independently, the
    targets are the predictions of the start, changed by at most half: only then can the margin be
    positive.
    """
    n, d, h, m, rank = shape
    rng = np.random.default_rng([2021, index])
    scales = np.exp(rng.uniform(np.log(SCALES[0]), np.log(SCALES[1]), 4))
    if rng.random() < 0.25:
        scales[:] = scales[0]
    X = rng.standard_normal((n, rank)) @ rng.standard_normal((rank, d))
    if rank == min(n, d):
        X = rng.standard_normal((n, d))
    if rng.random() < 0.5:
        left, sizes, right = np.linalg.svd(X, full_matrices=False)
        X = left * (sizes * np.geomspace(1, 0.1, len(sizes))) @ right
    outputs = (m,) if m else ()
    first = scales[0] * rng.standard_normal((d, h))
    last = scales[1] * rng.standard_normal((h, *outputs))
    # The scale of the data only changes time and targets: it is a factor of the rate.
    X = X * scales[2] ** (1 / 3)
    predictions = X @ first @ last
    y = rng.standard_normal((n, *outputs))
    if rng.random() < 0.25:
        size = np.linalg.norm(predictions) / np.linalg.norm(y)
        y = predictions + rng.uniform(0.01, 0.5) * size * y
    else:
        y = scales[3] * y
    return Case(index, shape, first, last, X, y)


def compare(case: Case) -> Outcome:
    """Integrate one flow and compare it with its bounds."""
    network, problem = case.network, case.problem
    start = float(_slopes(network.weights, problem)) / _excess(case, *network.weights)
    flow = lt.gradient_flow(
        network,
        problem,
        solver=diffrax.Dopri8(),
        rtol=RTOL,
        # Relative to the smaller layer: by default it would be to the larger one, which multiplies
        # the smaller one's error in E.
        atol=RTOL * min(float(np.max(np.abs(w))) for w in (case.first, case.last)),
        stop=lt.StopAtTime(float(TIMES[-1] / start)),
        finish=None,
        saveat=TIMES / start,
        observe=all_parameters,
        max_steps=MAX_STEPS,
        throw=False,
    )
    # A flow that ends early has only the times that it reached. Its last one is repeated, because
    # each number of times would need another compilation.
    weights = [np.asarray(w)[: len(TIMES)] for w in flow.observed.weights]
    reached = np.arange(len(weights[0]))
    padded = np.minimum(np.arange(len(TIMES)), reached[-1])
    bounds, slopes = _along([w[padded] for w in weights], problem)
    errors = np.sqrt([2 * _excess(case, *(w[k] for w in weights)) for k in reached])
    sizes = [np.linalg.norm(w.reshape(len(w), -1), axis=1) for w in weights]
    terms = np.linalg.norm(case.X, 2) * np.max(sizes[0]) * np.max(sizes[1])
    # The error of E from the integrator's error in the parameters.
    floor = ERROR * terms + ULPS * np.linalg.norm(case.y)
    kept = errors > 100 * floor
    reached, errors = reached[kept], errors[kept]
    squares = (sizes[0] ** 2 + sizes[1] ** 2)[kept]
    rates = 2 * np.asarray(slopes)[reached] / errors**2
    proven = np.asarray(bounds.instantaneous)[reached]
    slack = ROUNDING * float(bounds.largest_eigenvalue[0]) * squares
    slack += ULPS * rates * (terms + np.linalg.norm(case.y)) / errors
    positive = proven > 10 * slack
    times, guaranteed = np.asarray(flow.clock_time)[reached], np.asarray(bounds.guaranteed)[reached]
    excess = -np.inf
    for k in range(len(reached)):
        since = times[k:] - times[k]
        logs = 2 * np.log(errors[k:] / errors[k]) + guaranteed[k] * since
        # Twice the relative errors of |E| at both ends, and that of the rate.
        allowed = 4 * floor * (1 / errors[k:] + 1 / errors[k]) + 1e-9
        allowed += slack[k] * since
        excess = max(excess, float(np.max(logs / allowed)))
    limit = float(bounds.asymptotic[0])
    converged = len(reached) > 0 and limit > 0 and guaranteed[-1] > 0.999 * limit
    return Outcome(
        case=str(case),
        regime=case.regime,
        status=status_name(flow.status),
        num_times=len(reached),
        rate_excess=float(np.max((proven - rates) / slack, initial=-np.inf)),
        loss_excess=excess,
        tightness=tuple(float(x) for x in (rates / proven)[positive]),
        asymptotic_tightness=float(rates[-1] / limit) if converged else None,
        guaranteed=bool(guaranteed[0] > slack[0]) if len(reached) else False,
    )


def all_parameters(network):
    """The observable of the flow: all parameters are saved."""
    return network


@eqx.filter_jit
def _slopes(weights, problem):
    gradient = jax.grad(lambda weights: problem.loss(weights[0] @ weights[1]))(weights)
    return sum(jnp.sum(g**2) for g in gradient)


@eqx.filter_jit
def _along(weights, problem):
    def at(weights):
        network = lt.FullyConnectedNetwork(weights)
        return lt.convergence_rate_bound(network, problem), _slopes(weights, problem)

    return eqx.filter_vmap(at)(weights)


def _excess(case, first, last):
    """The loss above its minimum, from the part of the residual that X can remove."""
    left, sizes, _ = np.linalg.svd(case.X, full_matrices=False)
    left = left[:, sizes > 1e-12 * sizes[0]]
    predictions = case.X @ np.asarray(first) @ np.asarray(last)
    return float(np.sum((left.T @ (predictions - case.y)) ** 2)) / 2


@dataclasses.dataclass(frozen=True)
class Bias:
    """Relative distances of ends from the min-norm solution.

    `inside`: from a start in the invariant set. `half_inside`: from V U_2^T = 0 alone.
    """

    case: str
    inside: float
    half_inside: float
    resting: float  # |U_2| / |U| of the start inside; positive, so U_2 = 0 is not needed

    @property
    def failed(self) -> bool:
        """Whether Proposition 10 fails, or its first condition alone is enough."""
        return not (self.inside <= MIN_NORM_BOUND and self.half_inside > 1e-3 and self.resting > 0)


def bias(index: int) -> Bias:
    """Proposition 10 on one random underdetermined problem, d = 8, n = 3, h = 9, m = 2."""
    rng = np.random.default_rng([10, index])
    problem = lt.Regression(rng.standard_normal((3, 8)), rng.standard_normal((3, 2)))
    like = lt.FullyConnectedNetwork.zeros((8, 9), 2)
    inside = lt.initialization.invariant(like, problem, jax.random.key(index))
    solution = np.asarray(lt.min_norm(problem, lt.L2Norm()).coefficients)
    u, v = (np.asarray(w) for w in inside.weights)
    # V U_2^T = 0 is kept, U_1 U_2^T = 0 is not: U_2 may use the units of U_1.
    extra = np.asarray(
        resting_part(lt.FullyConnectedNetwork([rng.standard_normal((8, 9)), v]), problem)
    )
    units = np.linalg.qr(v)[0]
    half = lt.FullyConnectedNetwork([u + extra - extra @ units @ units.T, v])
    ends = [
        lt.gradient_flow(n, problem, solver=diffrax.Dopri8(), rtol=1e-10) for n in (inside, half)
    ]
    off = [np.linalg.norm(end.coefficients[-1] - solution) for end in ends]
    size = np.linalg.norm(solution)
    resting = float(jnp.linalg.norm(resting_part(inside, problem)) / np.linalg.norm(u))
    return Bias(f"problem {index}", float(off[0] / size), float(off[1] / size), resting)


def quantiles(values) -> str:
    """The distribution of values as one line of text."""
    values = np.asarray(values)
    points = np.quantile(values, (0, 0.01, 0.1, 0.5, 0.9, 0.99, 1))
    names = ("least", "1 %", "10 %", "median", "90 %", "99 %", "most")
    listed = ", ".join(f"{name} {value:.6g}" for name, value in zip(names, points, strict=True))
    return f"{listed} ({len(values)})"


def main() -> int:
    """Print violations and tightness; returns 1 if anything fails."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--instances", type=int, default=2000)
    parser.add_argument("--biases", type=int, default=50, help="problems for Proposition 10")
    parser.add_argument("--seconds", type=float, help="begin no instance after this many seconds")
    parser.add_argument("--out", type=Path, help="write all outcomes as JSON")
    options = parser.parse_args()
    start, outcomes = time.perf_counter(), []
    for case in cases(options.instances):
        if options.seconds is not None and time.perf_counter() - start > options.seconds:
            break
        outcomes.append(compare(case))
        if outcomes[-1].failed:
            print(f"FAILED: {dataclasses.replace(outcomes[-1], tightness=())}", flush=True)
    biases = [bias(index) for index in range(options.biases)]
    failed = [o for o in [*outcomes, *biases] if o.failed]
    times = sum(o.num_times for o in outcomes)
    statuses = [o.status for o in outcomes]
    counts = ", ".join(f"{statuses.count(s)} by {s}" for s in dict.fromkeys(statuses))
    print(f"{len(outcomes)} of {options.instances} instances, {times} times; ended {counts}")
    print(f"violations: {sum(o.failed for o in outcomes)}")
    for regime in sorted({o.regime for o in outcomes}):
        rows = [o for o in outcomes if o.regime == regime]
        print(
            f"{regime}: rate / Proposition 1: {quantiles([x for o in rows for x in o.tightness])}"
        )
        limits = [o.asymptotic_tightness for o in rows if o.asymptotic_tightness is not None]
        if limits:
            print(f"       last rate / eq. (22): {quantiles(limits)}")
        print(f"       Theorem 3 is positive in {sum(o.guaranteed for o in rows)} of {len(rows)}")
    if outcomes:
        worst = [max(getattr(o, key) for o in outcomes) for key in ("rate_excess", "loss_excess")]
        print(f"worst excess, 1 is rounding: rate {worst[0]:.2g}, loss {worst[1]:.2g}")
    if biases:
        inside = max(b.inside for b in biases)
        print(
            f"Proposition 10, {len(biases)} problems: off the min-norm solution by at most "
            f"{inside:.1e} (claim: {MIN_NORM_BOUND:g}); under its first condition alone by at "
            f"least {min(b.half_inside for b in biases):.2g}"
        )
    if options.out is not None:
        rows = [{**dataclasses.asdict(o), "failed": o.failed} for o in [*outcomes, *biases]]
        options.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

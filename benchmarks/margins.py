"""Classification flows to large margins: `batched_flow` against `vmap` of diffrax on one clock.

Run from the repository root; `hot_path.py` runs it with everything else:

    python benchmarks/margins.py [--lanes 4096] [--repeats 5]

Two-layer diagonal networks from alpha in 0.01..1: the toy data of Yun et al. 2021, section 6 (z_1 =
[1, 2], z_2 = [0, 3]) to margin 1e8, and 20 random separable samples of dimension 10.
`limit_direction` continues a few lanes of the random data to certified limits. Both programs
integrate the same equation, in log-arc length, with the same method, tolerances and stop. If
several samples support the limit, as in the random data, the stiffness grows with the margin, and
an explicit method needs 6 steps for every unit of margin. So all lanes go to margin 1e2, and only a
few to 1e4; those are also compared with `gradient_flow`, which changes to an implicit method.
"""

import argparse
import functools
from collections.abc import Callable
from typing import Any

import batched
import diffrax
import jax
import jax.numpy as jnp
import measure
import numpy as np
from measure import Effort, Row, Variant, WrongAnswer

import lintensor_jax as lt
from lintensor_jax.dynamics.batch.stepper import state_of, vector_of
from lintensor_jax.dynamics.clocks import FlowArgs, LogArcLength, log_time_unit
from lintensor_jax.dynamics.system import System

RTOL = 1e-8
MOST_STEPS, MOST_STIFF_STEPS = 4096, 100_000
# At the stop, directions change at most like 1/margin, and the two programs stop at margins that
# differ by up to one step.
CLOSE = 1e-3
# At most this share of the lanes may be unfinished when the steps are spent.
MOST_UNFINISHED_SHARE = 0.02
# The number of lanes for a method that integrates them one after the other.
FEW_LANES = 2


def plain(system: System, margin: float, max_steps: int) -> Callable:
    """`jit(vmap(diffeqsolve))` of parameters (N, p): beta/|beta|, log of the margin, steps."""
    clock = LogArcLength()

    def log_margin(y):
        state: Any = state_of(y, clock)
        problem: Any = system.problem
        smallest = jnp.min(problem.margins(system.coefficients(state.theta)))
        return system.depth * state.log_scale + jnp.log(jnp.maximum(smallest, 1e-300))

    def solve(theta):
        initial = clock.start(system, theta)
        args = FlowArgs(system, None, log_time_unit(system, initial))

        def velocity(s, y, _):
            return vector_of(clock.velocity(s, state_of(y, clock), args), clock)

        def met(s, y, args, **_):
            return log_margin(y) >= jnp.log(margin)

        atol = RTOL * jnp.minimum(1.0, jnp.max(jnp.abs(theta)))
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(velocity),
            diffrax.Tsit5(),
            0.0,
            1e6,
            None,
            vector_of(initial, clock),
            stepsize_controller=diffrax.PIDController(rtol=RTOL, atol=atol),
            event=diffrax.Event(met),
            adjoint=diffrax.ForwardMode(),
            max_steps=max_steps,
            throw=False,
        )
        assert solution.ys is not None
        end = solution.ys[-1]
        beta = system.coefficients(state_of(end, clock).theta)
        return beta / jnp.linalg.norm(beta), log_margin(end), solution.stats["num_steps"]

    return jax.jit(jax.vmap(solve))


def random_data() -> lt.Classification:
    """20 separable samples of dimension 10."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((20, 10))
    return lt.Classification(X, np.sign(X @ rng.standard_normal(10)))


def check(title: str, name: str, margin: float, ends: dict[str, Any]) -> Callable[[Any], Row]:
    """A function that makes the columns of an answer; WrongAnswer if it is far from plain."""

    def row(answer: Any) -> Row:
        if isinstance(answer, lt.BatchedFlow):
            beta = np.asarray(answer.coefficients)
            found = beta / np.linalg.norm(beta, axis=1, keepdims=True)
            log_margin, steps = np.asarray(answer.log_margin), np.asarray(answer.num_steps)
            waste = float(answer.waste)
        else:
            found, log_margin, steps = map(np.asarray, answer)
            ends.setdefault("plain", (found, log_margin))
            waste = float(steps.max() * steps.size / steps.sum())
        arrived = log_margin >= np.log(margin)
        expected, theirs = ends["plain"]
        missing = int(np.sum(~arrived))
        if missing > MOST_UNFINISHED_SHARE * len(found):
            raise WrongAnswer(f"{title}, {name}: {missing} lanes did not arrive")
        both = arrived & (theirs[: len(found)] >= np.log(margin))
        distance = np.linalg.norm(found - expected[: len(found)], axis=1)[both]
        if not np.quantile(distance, 0.99) <= CLOSE:
            raise WrongAnswer(
                f"{title}, {name}: directions {np.quantile(distance, 0.99):.1e} (99% of the "
                f"lanes) from plain, and at most {CLOSE:.0e} is right"
            )
        return {
            "from_plain_99%": float(np.quantile(distance, 0.99)),
            "from_plain": float(np.max(distance)),
            "not_arrived": missing,
            "steps": f"{steps.min()} / {int(np.median(steps))} / {steps.max()}",
            "waste": waste,
        }

    return row


def implicit(networks: Any, problem: Any, margin: float) -> tuple[np.ndarray, ...]:
    """A few lanes by `gradient_flow`: directions, margins and steps at that margin."""
    found = []
    for k in range(FEW_LANES):
        start: Any = jax.tree.map(lambda leaf, k=k: leaf[k], networks)
        flow = lt.gradient_flow(
            start,
            problem,
            stop=lt.StopAtMargin(margin),
            saveat=diffrax.SaveAt(steps=True),
            rtol=RTOL,
        )
        # The last step ends at a margin a fifth too large, so the direction is interpolated.
        before, after = np.asarray(flow.log_margin)[-2:]
        share = (np.log(margin) - before) / (after - before)
        ends = np.asarray(flow.direction)[-2:]
        found.append(
            (
                (1 - share) * ends[0] + share * ends[1],
                after,
                flow.stats["num_steps"],
            )
        )
    return tuple(np.stack(column) for column in zip(*found, strict=True))


def compare(
    effort: Effort, title: str, problem: Any, margin: float, lanes: int, max_steps: int = MOST_STEPS
) -> tuple[list[Row], lt.BatchedFlow]:
    """The rows of the table, and the flow by `batched_flow`."""
    system = System.of(lt.DiagonalNetwork.zeros(2, problem.X.shape[1]), problem)
    theta = batched.starts(system, lanes, 0.01)
    networks: Any = jax.vmap(system.network)(theta)
    function = plain(system, margin, max_steps)
    ends: dict[str, Any] = {}

    def by_batched_flow(compilation=None):
        stop = lt.StopAtMargin(margin)
        ends["flow"] = lt.batched_flow(
            networks,
            problem,
            stop=stop,
            rtol=RTOL,
            max_steps=max_steps,
            compilation=compilation,
        )
        return ends["flow"]

    calls: dict[str, Callable] = {"plain": lambda: function(theta)}
    calls |= {
        "ours": by_batched_flow,
        "ours, one core": lambda: by_batched_flow(lt.Native(threads=1)),
    }
    if not effort.quick:
        calls["ours, by XLA"] = lambda: by_batched_flow(lt.XLA())
    variants = [
        Variant(name, call, check(title, name, margin, ends)) for name, call in calls.items()
    ]
    if max_steps > MOST_STEPS:
        name = "gradient_flow, by lane"
        call = functools.partial(implicit, networks, problem, margin)
        variants.append(
            Variant(name, call, check(title, name, margin, ends), share=FEW_LANES / lanes)
        )
    title = f"{title}, {lanes:,} lanes to margin {margin:.0e}"
    return measure.compare("classification", title, variants, effort.repeats), ends["flow"]


def limits(flow: lt.BatchedFlow, problem: Any, count: int) -> Row:
    """The result of `limit_direction` at the ends of a few lanes."""
    beta = np.asarray(flow.coefficients)
    distances, succeeded = [], 0
    for k in range(count):
        lane = jax.tree.map(lambda leaf, k=k: leaf[k], flow.network)
        limit = lt.limit_direction(lane, problem)
        succeeded += limit.succeeded
        distances.append(np.linalg.norm(beta[k] / np.linalg.norm(beta[k]) - limit.direction))
    return {
        "part": "classification",
        "problem": "the ends of the last row",
        "variant": f"limit_direction of {count} lanes' ends",
        "certified": f"{succeeded} of {count}",
        "from_limit": float(np.max(distances)),
    }


def rows_of(effort: Effort, lanes: int) -> list[Row]:
    """The rows of the toy data and of the random data."""
    toy = lt.Classification(np.array([[1.0, 2.0], [0.0, 3.0]]), np.ones(2))
    rows, _ = compare(effort, "toy", toy, 1e8, lanes)
    data, title = random_data(), "random, d = 10, n = 20"
    more, _ = compare(effort, title, data, 1e2, lanes)
    rows += more
    if effort.quick:
        return rows
    # Each call takes a minute.
    once = Effort(repeats=1)
    more, flow = compare(once, title, data, 1e4, 64, MOST_STIFF_STEPS)
    return [*rows, *more, limits(flow, data, 8)]


def main() -> None:
    """Run the toy data and the random data, and print their tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--lanes", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    measure.set_up()
    print(measure.markdown(rows_of(Effort(repeats=options.repeats), options.lanes)))


if __name__ == "__main__":
    main()

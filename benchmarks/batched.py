"""Many flows at once: `batched_flow` against plain `jit(vmap(diffeqsolve))`, side by side.

Run from the repository root; `hot_path.py` runs it with everything else:

    python benchmarks/batched.py [--lanes 4096] [--uneven] [--peers] [--repeats 5]

The sweep of Yun et al. 2021 (two layers, d = 2, x = [1, 2], y = 1, alpha in 0.01..1, rtol = atol =
1e-8, until the residual is below 1e-7) or, with --uneven, a harder one with uneven lanes (three
layers, d = 32, n = 8, alpha in 0.1..1, until 1e-5). All programs solve the same lanes by the same
method to the same end, in turn in one process. Before a program is timed, its coefficients are
compared with the exact limits (--uneven: with plain diffrax), and lanes that do not reach the
residual are counted: diffrax without a limited step can stay above it. One row of the paper's sweep
differs: "ours, as called" has all defaults of `batched_flow`, and its limits must be within 1e-8.
"""

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import measure
import numpy as np
import peers
from measure import Effort, Row, Variant, WrongAnswer

import lintensor_jax as lt
from lintensor_jax.dynamics.gauss_newton import run_finish
from lintensor_jax.dynamics.system import Reducible, System

# Only the tolerance limits diffrax's steps. With d = 32 all its lanes stay at residuals of 2e-7 to
# 3e-6, at the stability limit, and do not end. The uneven sweep stops above that.
TOLERANCE, RESIDUAL, RESIDUAL_UNEVEN = 1e-8, 1e-7, 1e-5
# Plain lanes need up to 80 steps and uneven ones up to 6,000. A plain lane that does not end would
# make all others wait for its maximum number of steps.
MOST_STEPS, MOST_STEPS_UNEVEN = 512, 8192
BLOCK = 512
# A method stops at a residual of 1e-7 and makes errors of about rtol in each of its steps.
# Constant steps of 1e-3 lead to another limit than the flow's.
CLOSE, DESCENT_CLOSE, FINISHED, AGREED = 1e-5, 1e-2, 1e-8, 1e-7
ARCHITECTURES = ("diagonal", "convolution", "fully-connected")


def network(name: str, depth: int, d: int) -> Any:
    """A network of `depth` layers for inputs of dimension d; all its weights are zero."""
    if name == "diagonal":
        return lt.DiagonalNetwork.zeros(depth, d)
    if name == "convolution":
        return lt.ConvolutionalNetwork.zeros(d, (d,) * depth)
    return lt.FullyConnectedNetwork.zeros((d,) * depth)


def starts(system: System, count: int, lowest: float, scale: float = 1.0) -> Any:
    """Normal parameters times alpha, log-uniform in `lowest`..1: (N, p)."""
    rng = np.random.default_rng(0)
    alphas = np.exp(rng.uniform(np.log(lowest), 0.0, count))
    drawn = rng.standard_normal((count, system.initial.size))
    return jnp.asarray(scale * alphas[:, None] * drawn)


def plain_end(
    system: System, max_steps: int, solver: Any, stop: float, tolerance: float
) -> Callable:
    """One lane by diffrax: parameters and number of steps."""

    def met(t, theta, args, **_):
        return jnp.linalg.norm(system.squared_gradient(theta)[0]) <= stop

    def solve(theta):
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, theta, args: system.velocity(theta)),
            solver,
            0.0,
            1e9,
            None,
            theta,
            stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=tolerance),
            event=diffrax.Event(met),
            adjoint=diffrax.ForwardMode(),
            max_steps=max_steps,
            throw=False,
        )
        assert solution.ys is not None
        return solution.ys[-1], solution.stats["num_steps"]

    return solve


def plain_solve(system: System, max_steps: int, solver: Any, stop: float = RESIDUAL) -> Callable:
    """One lane by diffrax: coefficients, residual and number of steps."""
    end_of = plain_end(system, max_steps, solver, stop, TOLERANCE)

    def solve(theta):
        end, steps = end_of(theta)
        left = jnp.linalg.norm(system.squared_gradient(end)[0])
        return system.coefficients(end), left, steps

    return solve


def plain(system: System, max_steps: int, stop: float = RESIDUAL) -> Callable:
    """`jit(vmap(diffeqsolve))` on the flat parameters, shape (N, p)."""
    return jax.jit(jax.vmap(plain_solve(system, max_steps, diffrax.Tsit5(), stop)))


def require_close(name: str, found: Any, expected: Any, bound: float, which: Any = None) -> float:
    """The largest distance of coefficients over the lanes `which`; above `bound`, WrongAnswer."""
    distance = np.max(np.abs(np.asarray(found) - expected), axis=1)
    worst = float(np.max(distance if which is None else distance[which], initial=0.0))
    if not worst <= bound:
        raise WrongAnswer(f"{name}: {worst:.1e} from the limit, and at most {bound:.0e} is right")
    return worst


class Problem:
    """Lanes to integrate, and the methods to compare."""

    def __init__(self, name: str, depth: int, problem: Any, theta: Any, max_steps: int):
        self.name, self.problem, self.theta, self.max_steps = name, problem, theta, max_steps
        self.residual = RESIDUAL
        self.system = System.of(network(name, depth, problem.X.shape[1]), problem)
        self.networks: Any = jax.vmap(self.system.network)(theta)
        self.count = theta.shape[0]
        # Reference coefficients; without them, those of the first method.
        self.expected: Any = None
        self.known: Any = True  # for which lanes
        self.flow: Any = None  # the last result of `by_batched_flow`

    def by_batched_flow(self, compilation: Any = None, **options: Any) -> lt.BatchedFlow:
        """The result of `batched_flow`; it has no finish unless one is given."""
        settings = {"finish": None, "rtol": TOLERANCE, "atol": TOLERANCE}
        settings |= {"stop": lt.StopAtResidual(self.residual), "max_steps": self.max_steps}
        self.flow = lt.batched_flow(
            self.networks,
            self.problem,
            compilation=compilation,
            **(settings | options),
        )
        return self.flow

    def check(self, name: str, bound: float = CLOSE) -> Callable[[Any], Row]:
        """Columns of a method: its distance from the limit, and the steps of its lanes."""
        close = bound * self.residual / RESIDUAL

        def row(answer: Any) -> Row:
            if isinstance(answer, lt.BatchedFlow):
                steps = np.asarray(answer.num_steps)
                arrived = steps < self.max_steps
                beta, waste = answer.coefficients, float(answer.waste)
            else:
                beta, left, steps = map(np.asarray, answer)
                arrived = left <= self.residual
                waste = float(steps.max() * steps.size / steps.sum())
            if self.expected is None:
                self.expected, self.known = np.asarray(beta), arrived
            columns = {
                "from_limit": require_close(name, beta, self.expected, close, arrived & self.known),
                "not_arrived": int(np.sum(~arrived)),
                "steps": f"{steps.min()} / {int(np.median(steps))} / {steps.max()}",
                "waste": waste,
            }
            if columns["not_arrived"] > max(4, self.count // 50):
                raise WrongAnswer(f"{name}: {columns['not_arrived']} lanes did not arrive")
            return columns

        return row

    def variants(self, effort: Effort, blocks: bool = True) -> list[Variant]:
        """Plain diffrax and ours; a quick run leaves out what compiles twice."""
        function = plain(self.system, self.max_steps, self.residual)

        def in_blocks():
            pieces = [self.theta[at : at + BLOCK] for at in range(0, self.count, BLOCK)]
            parts = [function(piece) for piece in pieces]
            return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)

        calls: dict[str, Callable] = {"plain": lambda: function(self.theta)}
        if blocks and not effort.quick and self.count % BLOCK == 0:
            calls[f"plain, blocks of {BLOCK}"] = in_blocks
        calls |= {
            "ours": self.by_batched_flow,
            "ours, one core": lambda: self.by_batched_flow(lt.Native(threads=1)),
        }
        if not effort.quick:
            calls["ours, by XLA"] = lambda: self.by_batched_flow(lt.XLA())
        return [Variant(name, call, self.check(name)) for name, call in calls.items()]


def paper_task(name: str, lanes: int, lowest: float = 0.01) -> Problem:
    """Lanes of the paper sweep, with alpha from `lowest` to 1."""
    paper = lt.Regression(peers.X[None], np.array([peers.Y]))
    system = System.of(network(name, 2, 2), paper)
    task = Problem(name, 2, paper, starts(system, lanes, lowest), MOST_STEPS)
    task.expected = peers.exact_limit(name, np.asarray(task.theta))
    return task


def uneven_task(name: str, lanes: int) -> Problem:
    """Lanes of 60 to 6,000 steps: d = 32, L = 3, n = 8."""
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((8, 32)) / np.sqrt(32), rng.standard_normal(8)
    problem = lt.Regression(X, y)
    system = System.of(network(name, 3, 32), problem)
    scale = 1.0 if name == "diagonal" else 32**-0.5
    task = Problem(name, 3, problem, starts(system, lanes, 0.1, scale), MOST_STEPS_UNEVEN)
    task.residual = RESIDUAL_UNEVEN
    return task


def sweep(effort: Effort, name: str, lanes: int, with_peers: bool = False) -> list[Row]:
    """The rows of the paper sweep, whose exact limits are known."""
    task = paper_task(name, lanes)
    variants = task.variants(effort)
    # With all defaults: a smaller tolerance, an earlier stop and a finish.
    called = Variant(
        "ours, as called",
        lambda: lt.batched_flow(task.networks, task.problem),
        task.check("ours, as called", FINISHED),
    )
    variants.append(called)
    if with_peers:
        variants += _peers(task, effort)
    title = f"{name}, {lanes:,} lanes"
    rows = measure.compare("sweep", title, variants, effort.repeats)
    return [*rows, *_finished(title, task)]


def _peers(task: Problem, effort: Effort) -> list[Variant]:
    """A few lanes of each peer, timed once or twice: their lanes take a thousand times as long."""
    theta, name = np.array(task.theta), task.name
    limits = task.expected

    def variant(key, solve, count, bound):
        def check(found):
            return {"from_limit": require_close(key, found, limits[:count], bound)}

        return Variant(key, solve, check, share=count / task.count, rounds=2)

    few, fewer = (16, 1) if effort.quick else (64, 4)
    found = [
        variant(
            "SciPy DOP853, by lane",
            lambda: peers.scipy_dop853(name, theta[:few], TOLERANCE, TOLERANCE, RESIDUAL),
            few,
            CLOSE,
        ),
        variant(
            "gradient descent, by lane",
            lambda: peers.descent(name, theta[:fewer], RESIDUAL),
            fewer,
            DESCENT_CLOSE,
        ),
    ]
    # torchdiffeq has one step size for a batch. It gets up to 4096 lanes, which take seconds.
    count = min(task.count, 4096)

    def times():
        return np.exp(np.array(task.flow.log_time[:count], np.float64))

    for key, solve in peers.torch_methods(name, theta[:count], times, TOLERANCE, TOLERANCE):
        # The mean error of a batch is controlled. The error of one lane may be sqrt(N) times that.
        found.append(variant(key, solve, count, CLOSE * np.sqrt(count)))
    return found


def _finished(title: str, task: Problem) -> list[Row]:
    """Distances of limits from the exact ones with the finish, also for alpha = 0.001."""
    names = task.name, 2, task.problem
    small = task.theta / jnp.linalg.norm(task.theta, axis=1, keepdims=True) * 1e-3
    both = jnp.concatenate([task.theta[:1024], small[:1024]])
    lanes = Problem(*names, both, MOST_STEPS)
    exact = peers.exact_limit(task.name, np.asarray(both))
    rows = []

    def add_row(variant, coefficients, steps, **columns):
        distance = np.max(np.abs(np.asarray(coefficients) - exact), axis=1)
        row = {"part": "sweep", "problem": title, "from_limit": float(distance.max())}
        row["variant"] = f"{variant}, alpha 0.001 to 1"
        row["within_1e-8"] = f"{100 * np.mean(distance <= FINISHED):.4g}%"
        steps = np.asarray(steps)
        row["steps"] = f"{steps.min()} / {int(np.median(steps))} / {steps.max()}"
        rows.append(row | columns)

    for rtol, name in ((None, "default tolerance"), (TOLERANCE, f"rtol {TOLERANCE:.0e}")):
        flow = lanes.by_batched_flow(finish=lt.GaussNewton(), rtol=rtol, atol=None)
        add_row(f"ours with a finish, {name}", flow.coefficients, flow.num_steps)
    for tolerance in (TOLERANCE, TOLERANCE / 100):
        found = lanes.by_batched_flow(finish=lt.GaussNewton(), rtol=tolerance, atol=tolerance)
        end_of = plain_end(task.system, MOST_STEPS, diffrax.Tsit5(), RESIDUAL, tolerance)

        def finished(theta, end_of=end_of):
            end, steps = end_of(theta)
            reducible: Any = Reducible.of(task.problem)
            finish = run_finish(lt.GaussNewton(), task.system, reducible, end)
            return task.system.coefficients(finish.theta), steps

        coefficients, steps = jax.jit(jax.vmap(finished))(both)
        apart = np.max(np.abs(np.asarray(found.coefficients - coefficients)), axis=1)
        add_row(
            f"plain with a finish, rtol = atol = {tolerance:.0e}",
            coefficients,
            steps,
            from_ours=float(apart.max()),
            **{"within_1e-7_of_ours": f"{100 * np.mean(apart <= AGREED):.4g}%"},
        )
    return rows


def uneven(effort: Effort, name: str, lanes: int) -> list[Row]:
    """The rows of the harder sweep."""
    task = uneven_task(name, lanes)
    variants = task.variants(effort, blocks=False)
    # A call of plain takes half a minute, so its noise is negligible.
    variants[0] = dataclasses.replace(variants[0], rounds=3)
    return measure.compare("uneven", f"{name}, {lanes:,} lanes", variants, effort.repeats)


def main() -> None:
    """Run the paper sweep and the uneven sweep, and print their tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--lanes", type=int, default=4096)
    parser.add_argument(
        "--architectures", nargs="*", default=[*ARCHITECTURES], choices=[*ARCHITECTURES]
    )
    parser.add_argument("--uneven", action="store_true", help="the harder sweep")
    parser.add_argument("--peers", action="store_true", help="SciPy, gradient descent, PyTorch")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    measure.set_up()
    effort = Effort(repeats=options.repeats)
    rows: list[Row] = []
    for name in options.architectures:
        if not options.uneven:
            rows += sweep(effort, name, options.lanes, options.peers)
        elif name != "fully-connected":
            rows += uneven(effort, name, options.lanes)
    print(measure.markdown(rows))


if __name__ == "__main__":
    main()

"""The flows, the gradient descent and the images of Ji & Telgarsky 2019, Figures 1 to 3.

Gradient flow aligns the layers of deep linear networks. Flows of fully-connected networks and of
one layer (logistic regression) run to a margin of 1e6, which is a risk of exp(-1e6); gradient
descent cannot reach that. Lemma 2.6's two bounds are measured at every step, and the direction at
the end is compared with the maximum margin. Gradient descent with the step sizes of Assumption 3.5
is compared with Lemma C.7. The start of Appendix A shows that Assumption 1.2 is needed.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ...dynamics import gradient_descent, gradient_flow, smoothness_steps
from ...dynamics.stage_newton import implicit_solver
from ...dynamics.statuses import status_name
from ...dynamics.stopping import StopAtMargin
from ...networks import FullyConnectedNetwork
from ...theory.classification.alignment import alignment_bounds, learning_conditions
from ...theory.least_norm.max_margin import max_margin
from ...theory.least_norm.norms import L2Norm
from ..framework import Track
from .configuration import Configuration, DescentTask, FlowTask
from .images import MISSING, ImageRun, initial_networks, is_available, load_images, train
from .results import CounterexampleRun, Dataset, DescentRun, FlowRun, Result
from .setup import LinearPredictor, circles, counterexample, sector, start

_IMPLICIT_STEPS = 600
_DESCENT_POINTS = 200


@dataclasses.dataclass(frozen=True)
class Job:
    """One part of the run: its name, and the function that computes it."""

    name: str
    work: Callable[[], list[Any]]

    def __str__(self) -> str:
        return self.name


def run(
    config: Configuration,
    reduced: tuple[str, ...] = (),
    track: Track = iter,
) -> Result:
    """Compute the flows, the descents, the counterexample and the images, one job at a time."""
    problems = {
        "sector": sector(config.num_samples, config.seed),
        "circles": circles(config.num_samples, config.seed),
    }
    depths = {"sector": config.depth, "circles": config.circles_depth}
    jobs = []
    for data, problem in problems.items():
        deep = _starts(problem, depths[data], config)
        # One layer with the same linear predictor as the first deep network.
        one = [LinearPredictor(deep[0].linear_coefficients())]
        for networks in (one, deep):
            name = f"{data}, depth {networks[0].depth}"
            flows = functools.partial(run_flows, data, problem, networks, config.flow)
            descents = functools.partial(run_descents, data, problem, networks[0], config.descent)
            jobs += [Job(name, flows), Job(f"{name}, descent", descents)]
    jobs.append(Job("counterexample", run_counterexamples))
    if is_available(config.images):
        pixels = load_images(config.images)[0].shape[1]
        for name, network in initial_networks(pixels, config.images, config.seed).items():
            case = (name, network, config.images, config.seed)
            jobs.append(Job(f"images, {name}", functools.partial(_train_on_images, *case)))
    else:
        reduced = (*reduced, f"Figure 3 is left out: it needs {MISSING} or images.cifar10")
    outcomes = [outcome for job in track(jobs) for outcome in job.work()]

    def of(kind):
        return [outcome for outcome in outcomes if isinstance(outcome, kind)]

    return Result(
        config=config,
        reduced=reduced,
        datasets={data: _dataset(problem) for data, problem in problems.items()},
        flows=of(FlowRun),
        descents=of(DescentRun),
        counterexamples=of(CounterexampleRun),
        images=of(ImageRun),
    )


def _train_on_images(*case):
    return [train(*case)]


def _dataset(problem):
    found = max_margin(problem, L2Norm())
    return Dataset(
        np.asarray(problem.X),
        np.asarray(problem.y),
        np.asarray(found.direction),
        float(found.margin),
    )


def _starts(problem, depth, config):
    keys = (jax.random.fold_in(jax.random.key(config.seed), k) for k in range(config.num_starts))
    return [start(problem, depth, config.width, config.scale, key) for key in keys]


def run_flows(data: str, problem: Any, networks: list[Any], task: FlowTask) -> list[FlowRun]:
    """One flow from each network."""
    return [
        _flow(data, problem, network, index + 1, task) for index, network in enumerate(networks)
    ]


def _flow(data, problem, network, index, task):
    deep = isinstance(network, FullyConnectedNetwork)
    # The implicit method alone compiles in half the time. The automatic choice follows if it fails.
    rtol = jnp.asarray(task.rtol)
    only_implicit = {"solver": implicit_solver(rtol, rtol), "max_steps": _IMPLICIT_STEPS}
    for options in (only_implicit, {}):
        flow = gradient_flow(
            network,
            problem,
            stop=StopAtMargin(task.margin),
            rtol=task.rtol,
            saveat=diffrax.SaveAt(steps=True),
            observe=_weights if deep else None,
            throw=False,
            **options,
        )
        if bool(flow.succeeded):
            break
    return FlowRun(
        data=data,
        depth=network.depth,
        start=index,
        conditions=learning_conditions(network, problem),
        status=status_name(flow.status),
        num_steps=int(flow.stats["num_steps"]),
        log_risk=_from_start(_log_risk(network, problem), flow.log_loss - math.log(problem.y.size)),
        direction=_from_start(_unit(network.linear_coefficients()), flow.direction),
        log_norm=_from_start(_log_norm(network), flow.log_norm),
        log_margin=float(jnp.asarray(flow.log_margin)[-1]),
        invariant_drift=float(flow.invariant_drift[-1]),
        smoothed_margin_drop=float(jnp.asarray(flow.smoothed_margin_drop)),
        weights=_arrays(flow.network),
        initial_weights=_arrays(network),
        bounds=_bounds(network, flow.observed, jnp.zeros(())) if deep else None,
    )


def _weights(network):
    # All flows share this one function, because JAX would compile again for a new function.
    return network.weights


def _bounds(network, weights, initial_risk):
    """`alignment_bounds` at the start and at every saved time, as NumPy arrays."""
    # One call for each saved time: JAX would compile a batch again for each number of times.
    along = [network.weights, *zip(*(np.asarray(w) for w in weights), strict=True)]
    found = [_bounds_at(network, FullyConnectedNetwork(w), initial_risk) for w in along]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *found)


_bounds_at = eqx.filter_jit(alignment_bounds)


def run_descents(data: str, problem: Any, network: Any, task: DescentTask) -> list[DescentRun]:
    """Gradient descent with constant steps; several layers also with those of Assumption 3.5."""
    count = problem.y.size
    every = math.gcd(task.num_steps, max(1, task.num_steps // _DESCENT_POINTS))
    deep = isinstance(network, FullyConnectedNetwork)
    optimizers: dict[str, Any] = {"constant": optax.sgd(task.constant_step / count)}
    if deep:
        optimizers["Assumption 3.5"] = smoothness_steps(network, problem, growth=task.growth)
    runs = []
    for steps, optimizer in optimizers.items():
        is_proven = steps == "Assumption 3.5"
        descent = gradient_descent(
            network,
            problem,
            optimizer,
            task.num_steps,
            save_every=every,
            observe=_weights if is_proven else None,
        )
        bounds = None
        if is_proven:
            after = jax.tree.map(lambda w: w[1:], descent.observed)
            bounds = _bounds(network, after, jnp.exp(_log_risk(network, problem)))
        step = descent.optimizer_state.step_size if is_proven else task.constant_step
        runs.append(
            DescentRun(
                data=data,
                depth=network.depth,
                start=1,
                steps=steps,
                num_steps=task.num_steps,
                log_risk=np.asarray(descent.log_loss) - math.log(count),
                direction=np.asarray(descent.direction),
                bounds=bounds,
                step_size=float(step),
            )
        )
    return runs


def run_counterexamples() -> list[CounterexampleRun]:
    """Gradient descent from w_1 = -w_2, and from a start at distance 1e-3 from it."""
    problem, network = counterexample()
    runs = []
    for offset in (0.0, 1e-3):
        first, last = network.weights
        shifted = FullyConnectedNetwork((first.at[0, 0].add(offset), last))
        descent = gradient_descent(
            shifted,
            problem,
            optax.sgd(1e-2),
            4_000,
            save_every=40,
            observe=_weights,
        )
        one, two = np.asarray(descent.observed[0])[:, 0], np.asarray(descent.observed[1])
        runs.append(
            CounterexampleRun(
                offset=offset,
                conditions=learning_conditions(shifted, problem),
                log_risk=np.asarray(descent.log_loss),
                sum_of_layers=np.linalg.norm(one + two, axis=1),
                norm=np.linalg.norm(one, axis=1),
            )
        )
    return runs


def _log_risk(network, problem):
    return problem.log_loss(network.linear_coefficients()) - math.log(problem.y.size)


def _log_norm(network):
    return 0.5 * jnp.log(sum(jnp.sum(w**2) for w in jax.tree.leaves(network)))


def _unit(vector):
    return vector / jnp.linalg.norm(vector)


def _from_start(first, later):
    return np.concatenate([np.asarray(first)[None], np.asarray(later)])


def _arrays(network):
    return tuple(np.asarray(w) for w in jax.tree.leaves(network))

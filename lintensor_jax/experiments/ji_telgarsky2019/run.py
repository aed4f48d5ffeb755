"""The computations of `ji_telgarsky2019`: flows, descents and the counterexample."""

import dataclasses
import math
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..config import Config, ConfigError, Integer, Number, setting
from ..dynamics import StopAtMargin, gradient_descent, gradient_flow, smoothness_steps
from ..dynamics.integrate import implicit_solver
from ..dynamics.stopping import status_name
from ..networks import FullyConnectedNetwork
from ..theory.alignment import alignment_bounds, learning_conditions
from ..theory.assumptions import Assumption
from .ji_telgarsky2019_setups import counterexample

_IMPLICIT_STEPS = 600
_DESCENT_POINTS = 200


@dataclasses.dataclass(frozen=True)
class FlowTask(Config):
    """Flows end at `margin`; directions are then to be within `agreement` of the max-margin one."""

    margin: float = setting(1e6, Number(above=0))
    rtol: float = setting(1e-9, Number(above=0))
    agreement: float = setting(1e-6, Number(above=0))
    drift: float = setting(1e-7, Number(above=0))


@dataclasses.dataclass(frozen=True)
class DescentTask(Config):
    """Assumption 3.5's steps from the flows' starts; constant ones for comparison in Figure 1."""

    growth: float = setting(1.1, Number(above=0))
    constant_step: float = setting(0.1, Number(above=0))
    num_steps: int = setting(500_000, Integer(1))

    def check(self) -> None:
        """R_t - 1 must not lie below the largest norm."""
        if self.growth < 1:
            raise ConfigError("growth", f"must be at least 1, got {self.growth:g}; try 1.1.")


@dataclasses.dataclass(frozen=True)
class FlowRun:
    """One flow; T saved steps, the start first. One layer has no alignment: its arrays are None."""

    data: str
    depth: int
    start: int
    conditions: tuple[Assumption, ...]
    status: str
    num_steps: int
    log_risk: np.ndarray  # (T,), of the mean loss
    direction: np.ndarray  # (T, d)
    log_norm: np.ndarray  # (T,)
    log_margin: float
    invariant_drift: float
    smoothed_margin_drop: float
    weights: tuple[np.ndarray, ...]  # at the end
    initial_weights: tuple[np.ndarray, ...]
    bounds: Any  # AlignmentBounds with leading axis T, of NumPy arrays


@dataclasses.dataclass(frozen=True)
class DescentRun:
    """One descent; S saved steps, the start first."""

    data: str
    depth: int
    start: int
    steps: str  # "Assumption 3.5" or "constant"
    num_steps: int
    log_risk: np.ndarray  # (S,)
    direction: np.ndarray  # (S, d)
    bounds: Any  # with leading axis S; None for one layer and for constant steps
    step_size: float  # the last one, in the mean loss


@dataclasses.dataclass(frozen=True)
class CounterexampleRun:
    """Gradient descent from w_1 = -w_2 + offset * e_1; S saved steps."""

    offset: float
    conditions: tuple[Assumption, ...]
    log_risk: np.ndarray  # (S,)
    sum_of_layers: np.ndarray  # (S,), |w_1 + w_2|
    norm: np.ndarray  # (S,), |w_1|


def run_flows(data: str, problem: Any, networks: list[Any], task: FlowTask) -> list[FlowRun]:
    """A flow from each of the networks."""
    return [
        _flow(data, problem, network, index + 1, task) for index, network in enumerate(networks)
    ]


def _flow(data, problem, network, index, task):
    deep = isinstance(network, FullyConnectedNetwork)
    # The implicit method alone compiles in half the time; where it fails, the automatic choice.
    rtol = jnp.asarray(task.rtol)
    only_implicit = {"solver": implicit_solver(rtol, rtol), "max_steps": _IMPLICIT_STEPS}
    for how in (only_implicit, {}):
        flow = gradient_flow(
            network,
            problem,
            stop=StopAtMargin(task.margin),
            rtol=task.rtol,
            saveat=diffrax.SaveAt(steps=True),
            observe=_weights if deep else None,
            throw=False,
            **how,
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
    # One function for all flows: another one would be another compilation.
    return network.weights


def _bounds(network, weights, initial_risk):
    """`alignment_bounds` at the start and at every saved time, as NumPy arrays."""
    # One call a time: a batch would be compiled anew for every number of saved times.
    along = [network.weights, *zip(*(np.asarray(w) for w in weights), strict=True)]
    found = [_bounds_at(network, FullyConnectedNetwork(w), initial_risk) for w in along]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *found)


_bounds_at = eqx.filter_jit(alignment_bounds)


def run_descents(data: str, problem: Any, network: Any, task: DescentTask) -> list[DescentRun]:
    """Descents with constant steps and, with several layers, with those of Assumption 3.5."""
    count = problem.y.size
    every = math.gcd(task.num_steps, max(1, task.num_steps // _DESCENT_POINTS))
    deep = isinstance(network, FullyConnectedNetwork)
    optimizers: dict[str, Any] = {"constant": optax.sgd(task.constant_step / count)}
    if deep:
        optimizers["Assumption 3.5"] = smoothness_steps(network, problem, growth=task.growth)
    runs = []
    for steps, optimizer in optimizers.items():
        proven = steps == "Assumption 3.5"
        done = gradient_descent(
            network,
            problem,
            optimizer,
            task.num_steps,
            save_every=every,
            observe=_weights if proven else None,
        )
        bounds = None
        if proven:
            after = jax.tree.map(lambda w: w[1:], done.observed)
            bounds = _bounds(network, after, jnp.exp(_log_risk(network, problem)))
        step = done.optimizer_state.step_size if proven else task.constant_step
        runs.append(
            DescentRun(
                data=data,
                depth=network.depth,
                start=1,
                steps=steps,
                num_steps=task.num_steps,
                log_risk=np.asarray(done.log_loss) - math.log(count),
                direction=np.asarray(done.direction),
                bounds=bounds,
                step_size=float(step),
            )
        )
    return runs


def run_counterexamples() -> list[CounterexampleRun]:
    """Gradient descent from w_1 = -w_2, and from next to it."""
    problem, network = counterexample()
    runs = []
    for offset in (0.0, 1e-3):
        first, last = network.weights
        shifted = FullyConnectedNetwork((first.at[0, 0].add(offset), last))
        done = gradient_descent(
            shifted,
            problem,
            optax.sgd(1e-2),
            4_000,
            save_every=40,
            observe=_weights,
        )
        one, two = np.asarray(done.observed[0])[:, 0], np.asarray(done.observed[1])
        runs.append(
            CounterexampleRun(
                offset=offset,
                conditions=learning_conditions(shifted, problem),
                log_risk=np.asarray(done.log_loss),
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

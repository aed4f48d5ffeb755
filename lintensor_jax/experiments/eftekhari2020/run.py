"""The flows of Eftekhari 2020: Figure 1, the stable sets, Theorem 20 and the nearby rates.

* Figure 1: one output and whitened data. beta(0) is at 30 degrees to the target and ten times as
  long. The end-to-end flow must equal the flow of balanced layers.
* Theorem 20: random flows from the stable set N_{alpha,beta}, which they must not leave (Lemmas 15
  and 19), against the theorem's two rates, with (38) corrected. As printed, (38) fails.
* The open question after Figure 1: how the nearby rate depends on the depth. The measured rate is
  compared with the linearisation of the end-to-end flow at its limit.
* The landscape of section 2: the kind that `landscape_point` finds at points whose kind is known.

The paper does not give its depths, its random starts or the data of the nearby rates; they are
chosen here.
"""

import dataclasses

import diffrax
import jax.numpy as jnp
import numpy as np

from ...dynamics import gradient_flow, induced_flow
from ...dynamics.stopping import StopAtTime
from ...initialization import balanced
from ...networks import FullyConnectedNetwork
from ...theory.landscape.landscape_point import landscape_point
from ...theory.rates.stable_sets import convergence_bound, nearby_rates
from ..framework import Track
from .configuration import Configuration
from .results import BoundRun, FigureRun, LandscapeRun, NearbyRun, Result
from .setup import Start, far_start, landscape_cases, near_start, random_starts


@dataclasses.dataclass(frozen=True)
class Job:
    """One part at one depth; the landscape has depth 0."""

    part: str
    depth: int

    def __str__(self) -> str:
        return f"{self.part}, N = {self.depth}" if self.depth else self.part


def run(
    config: Configuration,
    reduced: tuple[str, ...] = (),
    track: Track = iter,
) -> Result:
    """Integrate the flows of all parts. The flows of one job share their compiled programs."""
    jobs = [Job("Figure 1", depth) for depth in config.figure.depths]
    jobs += [Job("Theorem 20", depth) for depth in config.bound.depths]
    jobs += [Job("nearby rates", depth) for depth in config.nearby.depths]
    figure, bounds, nearby, landscape = [], [], [], []
    for job in track([*jobs, Job("landscape", 0)]):
        if job.part == "Figure 1":
            figure.append(_figure(config, job.depth))
        elif job.part == "Theorem 20":
            bounds += _bounds(config, job.depth)
        elif job.part == "nearby rates":
            nearby += _nearby(config, job.depth)
        else:
            landscape += _landscape(config)
    return Result(config, reduced, tuple(figure), tuple(bounds), tuple(nearby), tuple(landscape))


def _layers(beta, depth, width):
    d, outputs = beta.shape[0], None if beta.ndim == 1 else beta.shape[1]
    return balanced(FullyConnectedNetwork.zeros((d, *[width] * (depth - 1)), outputs), beta)


def _explicit(rtol, end_time, times):
    # Thousands of explicit steps take less time than the compilation of an implicit method.
    return {
        "rtol": rtol,
        "stop": StopAtTime(end_time),
        "saveat": times,
        "finish": None,
        "solver": diffrax.Dopri8(),
    }


def _figure(config, depth):
    task = config.figure
    rng = np.random.default_rng([config.seed, 1])
    problem, target, beta = far_start(task, rng)
    times = np.concatenate([[0.0], np.geomspace(1e-6, 1, 160) * task.end_time])
    options = _explicit(config.rtol, task.end_time, times)
    induced = induced_flow(beta, problem, depth, **options)
    network = _layers(jnp.asarray(beta), depth, 1)
    layered = gradient_flow(network, problem, **options)
    ours, theirs = (np.asarray(flow.coefficients)[: len(times)] for flow in (induced, layered))
    # The flow is continued to its limit, and `landscape_point` says of which kind the limit is. The
    # limit has a positive loss, and its gradient is zero.
    limit = gradient_flow(layered.network, problem, solver=diffrax.Dopri8(), rtol=1e-10)
    return FigureRun(
        depth,
        times,
        np.linalg.norm(ours - target, axis=1),
        np.linalg.norm(theirs - target, axis=1),
        float(np.max(np.abs(ours - theirs)) / np.linalg.norm(beta)),
        float(np.linalg.norm(target)),
        landscape_point(limit.network, problem, tolerance=1e-6),
    )


def _bounds(config, depth):
    task = config.bound
    rng = np.random.default_rng([config.seed, 2, depth])
    return [_bound(config, start) for start in random_starts(task, depth, rng)]


def _bound(config, start: Start):
    task, problem, depth = config.bound, start.problem, start.depth
    bound = convergence_bound(problem, depth, start.alpha, start.upper)
    # At the end the slowest mode has decreased by the factor e^-8. The theorem's rate is not used
    # here: it may be far smaller than the rate of that mode.
    end = 8 / nearby_rates(problem, depth)["slow"]
    times = np.concatenate([[0.0], np.geomspace(1e-5 * end, end, task.times - 1)])
    network = _layers(jnp.asarray(start.coefficients), depth, 1)
    flow = gradient_flow(network, problem, **_explicit(config.rtol, end, times))
    beta = np.asarray(flow.coefficients)[: len(times)]
    target = bound.set.target
    # (38) as printed: its faraway rate has s_Z^(-2/N) instead of s_Z^(2-2/N).
    printed = dataclasses.replace(bound, faraway=bound.faraway / float(target.size) ** 2)
    return BoundRun(
        start,
        times,
        2 * np.log(np.asarray(target.distance(beta))),
        np.asarray(bound.log_bound(times, beta)),
        np.asarray(printed.log_bound(times, beta)),
        np.asarray(bound.set.slack(beta)),
        bound.faraway,
        bound.nearby,
    )


def _nearby(config, depth):
    task = config.nearby
    for outputs in (1, task.outputs):
        for size in task.sizes:
            rng = np.random.default_rng([config.seed, 3, outputs])
            problem, target, beta = near_start(task, outputs, size, rng)
            rates = nearby_rates(problem, depth)
            predicted = min(rates.values())
            # The relative distance is between about 1e-5 and 1e-6: the other modes have decayed,
            # and rounding errors are still much smaller.
            times = np.log([1e5, 1e6]) / predicted
            options = _explicit(config.rtol, float(times[-1]), times)
            flow = induced_flow(beta, problem, depth, rank=1, **options)
            near = np.asarray(flow.coefficients)[:2].reshape(2, *target.shape)
            logs = np.log(np.linalg.norm(near - target, axis=(1, 2)))
            measured = float((logs[0] - logs[1]) / (times[1] - times[0]))
            scale = float(task.num_samples)
            yield NearbyRun(depth, size, outputs, scale, measured, predicted)


def _landscape(config):
    rng = np.random.default_rng([config.seed, 4])
    for name, expected, least, network, problem in landscape_cases(rng):
        yield LandscapeRun(name, expected, least, landscape_point(network, problem))

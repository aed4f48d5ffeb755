"""The flows and the gradient descent of Figures 1 and 3 of Yun, Krishnan & Mobahi 2021, section 6.

Two-layer linear networks with two inputs start at the same linear coefficients
beta(0) = alpha^2 z, in three architectures. Regression: the flow's limit is compared with
Theorem 6. Classification: the flow's direction at a margin of 1e8 (loss exp(-1e8)) is compared with
the maximum-margin directions that section 4 predicts, and with the direction at the loss where the
paper's gradient descent stopped.
"""

import dataclasses
import functools
import operator

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ....config import ConfigError
from ....dynamics import gradient_descent, gradient_flow
from ....dynamics.statuses import status_name
from ....dynamics.stopping import StopAtMargin, StopAtResidual
from ....initialization import matching
from ....problems import Classification, Regression
from ....theory.least_norm.max_margin import MarginPrecisionError, NonSeparableError, max_margin
from ....theory.regression.yun_theorem_6 import limit_point_two_layer
from ...framework import Track
from .configuration import ClassificationTask, Configuration, RegressionTask
from .results import ClassificationRuns, RegressionRuns, Result
from .setup import ARCHITECTURES, initial_directions

_PATH_POINTS = 601
# The paper's steps on classification cover a time of 1,000. Most of a path's length is near its
# start, so that many points are needed.
_DESCENT_POINTS = {RegressionTask: 250, ClassificationTask: 100_000}
_EXPLICIT_STEPS = 400


@dataclasses.dataclass(frozen=True)
class Job:
    """One architecture on one problem."""

    task: str
    architecture: str

    def __str__(self) -> str:
        return f"{self.task}, {self.architecture}"


def run(
    config: Configuration,
    reduced: tuple[str, ...] = (),
    track: Track = iter,
) -> Result:
    """Flows, predictions and gradient descent; a job's alphas and directions are one batch."""
    directions = initial_directions(config.num_directions, config.seed)
    alphas = np.array(config.alphas)
    regression_task, classification_task = config.regression, config.classification
    regression_problem = Regression([regression_task.x], [regression_task.y])
    classification_problem = Classification(classification_task.X, classification_task.y)
    max_margins = _max_margin_directions(classification_problem)
    regression, classification = {}, {}
    tasks = ("regression", "classification")
    for job in track([Job(task, name) for task in tasks for name in ARCHITECTURES]):
        build, shape, _ = ARCHITECTURES[job.architecture]
        networks = _networks(build(*shape), alphas, directions)
        if job.task == "regression":
            runs = _run_regression(networks, regression_problem, regression_task)
            regression[job.architecture] = RegressionRuns(**_by_alpha(runs, alphas.size))
        else:
            runs = _run_classification(networks, classification_problem, classification_task)
            classification[job.architecture] = ClassificationRuns(
                predicted=max_margins[job.architecture], **_by_alpha(runs, alphas.size)
            )
    starts = alphas[:, None, None] ** 2 * directions
    return Result(config, reduced, starts, regression, classification)


def _max_margin_directions(problem):
    try:
        return {
            name: np.asarray(max_margin(problem, norm()).direction)
            for name, (_, _, norm) in ARCHITECTURES.items()
        }
    except (NonSeparableError, MarginPrecisionError) as error:
        raise ConfigError("classification.X", f"must be separable by y: {error}") from None


def _networks(like, alphas, directions):
    """A batch of A * D networks with beta(0) = alpha^2 z. The index of z varies fastest."""
    build = jax.vmap(lambda alpha, z: matching(like, z).scaled(alpha))
    count = len(directions)
    return build(
        jnp.asarray(np.repeat(alphas, count)), jnp.asarray(np.tile(directions, (alphas.size, 1)))
    )


def _run_regression(networks, problem: Regression, task: RegressionTask):
    def lane(network, **options):
        flow = gradient_flow(
            network, problem, stop=StopAtResidual(task.residual), rtol=task.rtol, **options
        )
        return {
            **_common(flow),
            "predicted": limit_point_two_layer(network, problem).coefficients,
            "reached": flow.coefficients[-1],
            "finish_step": flow.stats["finish_step"],
            "descent_path": _descend(network, problem, task).coefficients,
        }

    return _batched(lane, networks)


def _run_classification(networks, problem: Classification, task: ClassificationTask):
    def lane(network, **options):
        flow = gradient_flow(
            network, problem, stop=StopAtMargin(task.margin), rtol=task.rtol, **options
        )
        descent = _descend(network, problem, task)
        return {
            **_common(flow),
            "reached": flow.direction[-1],
            "log_margin": jnp.asarray(flow.log_margin)[-1],
            "descent_path": descent.coefficients,
            "descent_log_loss": descent.log_loss[-1],
            "step_log_loss": flow.log_loss,
            "step_direction": flow.direction,
        }

    # No figure shows a loss below paper_loss^3, and there the coefficients are still moderate.
    runs = _batched(lane, networks, last_log_loss=3 * np.log(task.paper_loss))
    # After a flow's end the arrays repeat its last state.
    most = int(runs["num_steps"].max()) + 1
    for key in ("step_log_loss", "step_direction"):
        runs[key] = runs[key][:, :most]
    return {**runs, "at_paper_loss": _where_loss_is(task.paper_loss, runs)}


def _common(flow):
    return {
        "clock_time": flow.clock_time,
        "path": flow.coefficients,
        "log_loss": flow.log_loss,
        "status": flow.status,
        "succeeded": flow.succeeded,
        "num_steps": flow.stats["num_steps"],
        "invariant_drift": flow.invariant_drift[-1],
    }


def _batched(lane, networks, last_log_loss=-np.inf):
    """`lane` of every network, in one compiled program: a dict of arrays.

    Paths end at the first saved step whose log loss is at most `last_log_loss`.

    The paper's flows are not stiff, and without the implicit method the program compiles in half
    the time. If a flow of another configuration is stiff, all run again with the automatic choice.
    """
    explicit = {"solver": diffrax.Dopri8(), "max_steps": _EXPLICIT_STEPS}
    for options in (explicit, {}):
        # Solver steps are saved, not given times: diffrax checks given times by a callback, and JAX
        # does not keep a program with callbacks in its compilation cache.
        one = functools.partial(lane, saveat=diffrax.SaveAt(steps=True), **options)
        runs = eqx.filter_jit(jax.vmap(one))(networks)
        if bool(runs.pop("succeeded").all()):
            break
    status = _status_names(runs.pop("status"))
    runs = {key: np.asarray(value) for key, value in runs.items()}
    lanes = zip(runs.pop("clock_time"), runs["path"], runs["log_loss"], strict=True)
    paths, log_losses = zip(*(_smooth_curves(*lane, last_log_loss) for lane in lanes), strict=True)
    return {**runs, "status": status, "path": np.stack(paths), "log_loss": np.stack(log_losses)}


def _smooth_curves(times, path, log_loss, last_log_loss):
    """Path and log loss up to the first saved step below `last_log_loss`, as smooth curves."""
    # After a flow's end the arrays repeat its last state.
    kept = np.concatenate([[True], (np.diff(times) > 0) & (log_loss[:-1] > last_log_loss)])
    return [resampled(times[kept], values[kept], _PATH_POINTS) for values in (path, log_loss)]


def resampled(times: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    """`count` points of a smooth curve through `values` (T, ...) at increasing `times` (T,).

    The curve is piecewise cubic; its slope at a value is that of the parabola through this value
    and its two neighbours. There are equally many points between any two neighbours.
    """
    position = np.linspace(0, times.size - 1, count)
    if times.size < 3:
        return values[position.round().astype(int)]
    slopes = np.gradient(values, times, axis=0, edge_order=2)
    left = np.minimum(position.astype(int), times.size - 2)
    column = (-1, *(1,) * (values.ndim - 1))
    u, h = (position - left).reshape(column), np.diff(times)[left].reshape(column)
    chord = (1 - u) ** 2 * (1 + 2 * u) * values[left] + u**2 * (3 - 2 * u) * values[left + 1]
    return chord + h * u * (1 - u) * ((1 - u) * slopes[left] - u * slopes[left + 1])


def _where_loss_is(loss, runs):
    return np.stack(
        [
            [np.interp(-np.log(loss), -log_loss, coefficient) for coefficient in path.T]
            for path, log_loss in zip(runs["path"], runs["log_loss"], strict=True)
        ]
    )


def _descend(network, problem, task):
    # The largest interval that divides the number of steps and leaves enough points for a line.
    most = max(1, task.descent_num_steps // _DESCENT_POINTS[type(task)])
    save_every = next(k for k in range(most, 0, -1) if task.descent_num_steps % k == 0)
    return gradient_descent(
        network,
        problem,
        optax.sgd(task.descent_step),
        num_steps=task.descent_num_steps,
        save_every=save_every,
    )


def _status_names(status):
    count = jax.tree.leaves(status)[0].shape[0]
    lanes = (jax.tree.map(operator.itemgetter(lane), status) for lane in range(count))
    return np.array([status_name(lane) for lane in lanes])


def _by_alpha(runs, num_alphas):
    arrays = {key: np.asarray(value) for key, value in runs.items()}
    return {key: a.reshape(num_alphas, -1, *a.shape[1:]) for key, a in arrays.items()}

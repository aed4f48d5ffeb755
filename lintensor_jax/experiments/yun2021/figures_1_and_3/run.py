"""Figures 1 and 3 of Yun, Krishnan & Mobahi 2021 (section 6): three architectures in the plane.

Two-layer linear networks of two inputs start at the same linear coefficients beta(0) = alpha^2 z
and go different ways. Regression: the flow's limit against Theorem 6. Classification: the flow's
direction at a margin of 1e8 (loss exp(-1e8)) against the maximum-margin directions that section 4
predicts, next to the direction at the loss where the paper's gradient descent stopped.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..config import Config, ConfigError, Integer, ListOf, Number, setting, table
from ..dynamics import StopAtMargin, StopAtResidual, gradient_descent, gradient_flow
from ..dynamics.stopping import status_name
from ..initialization import matching
from ..networks import ConvolutionalNetwork, DiagonalNetwork, FullyConnectedNetwork
from ..problems import Classification, Regression
from ..theory.margins import MarginPrecisionError, NonSeparableError, max_margin
from ..theory.norms import FourierL1Norm, L1Norm, L2Norm
from ..theory.regression import limit_point_two_layer
from . import yun2021_tables
from .report import Report

# Each architecture with the norm whose maximum margin its two-layer classification flow finds.
ARCHITECTURES = {
    "fully-connected": (FullyConnectedNetwork.zeros, ((2, 2),), L2Norm),
    "diagonal": (DiagonalNetwork.zeros, (2, 2), L1Norm),
    "convolutional": (ConvolutionalNetwork.zeros, (2, (2, 2)), FourierL1Norm),
}

_PATH_POINTS = 601
_DESCENT_POINTS = 250
_EXPLICIT_STEPS = 400
_QUICK_DESCENT_STEPS = 20_000

_POSITIVE = Number(above=0)
_PLANE_VECTOR = ListOf(Number(), length=2)


@dataclasses.dataclass(frozen=True)
class RegressionTask(Config):
    """One sample (Theorem 6 is of one); the flow's limit is to be within `agreement` of it."""

    x: tuple[float, float] = setting((1.0, 2.0), _PLANE_VECTOR)
    y: float = setting(1.0, Number())
    rtol: float = setting(1e-10, _POSITIVE)
    residual: float = setting(1e-9, _POSITIVE)
    agreement: float = setting(1e-8, _POSITIVE)
    descent_step: float = setting(1e-3, _POSITIVE)
    descent_num_steps: int = setting(5_000, Integer(1))

    def check(self) -> None:
        """The sample sees something."""
        if self.x == (0.0, 0.0):
            raise ConfigError("x", "must not be zero, got [0.0, 0.0]; the default is [1.0, 2.0].")


@dataclasses.dataclass(frozen=True)
class ClassificationTask(Config):
    """Separable samples; the flow's direction at `margin` is to be within `agreement`."""

    X: tuple[tuple[float, float], ...] = setting(((1.0, 2.0), (0.0, -3.0)), ListOf(_PLANE_VECTOR))
    y: tuple[float, ...] = setting((1.0, -1.0), ListOf(Number()))
    rtol: float = setting(1e-8, _POSITIVE)
    margin: float = setting(1e8, _POSITIVE)
    agreement: float = setting(1e-3, _POSITIVE)
    step_budget: int = setting(200, Integer(1))
    paper_loss: float = setting(1e-5, _POSITIVE)
    descent_step: float = setting(5e-4, _POSITIVE)
    descent_num_steps: int = setting(2_000_000, Integer(1))

    def check(self) -> None:
        """One label -1 or +1 per sample."""
        if len(self.y) != len(self.X):
            raise ConfigError(
                "y",
                f"must have one label per row of X ({len(self.X)}), got {len(self.y)}; "
                "add or remove labels.",
            )
        for index, label in enumerate(self.y):
            if label not in (-1.0, 1.0):
                raise ConfigError(f"y[{index}]", f"must be -1 or 1, got {label!r}; recode it.")


@dataclasses.dataclass(frozen=True)
class Configuration(Config):
    """The paper's setup."""

    alphas: tuple[float, ...] = setting((0.01, 0.5, 1.0), ListOf(_POSITIVE))
    num_directions: int = setting(4, Integer(1))
    seed: int = setting(367, Integer(0))
    regression: RegressionTask = table(RegressionTask)  # noqa: RUF009
    classification: ClassificationTask = table(ClassificationTask)  # noqa: RUF009


def reduce(config: Configuration) -> tuple[Configuration, tuple[str, ...]]:
    """Less gradient descent on classification; flows, predictions and checks stay as they are."""
    task = config.classification
    if task.descent_num_steps <= _QUICK_DESCENT_STEPS:
        return config, ()
    quick = dataclasses.replace(task, descent_num_steps=_QUICK_DESCENT_STEPS)
    note = (
        f"gradient descent on classification takes {_QUICK_DESCENT_STEPS:,} instead of "
        f"{task.descent_num_steps:,} steps, so that it ends at a larger loss"
    )
    return dataclasses.replace(config, classification=quick), (note,)


@dataclasses.dataclass(frozen=True)
class RegressionRuns:
    """One architecture's regression flows, axes (alpha, direction, ...)."""

    predicted: np.ndarray  # (A, D, 2)
    reached: np.ndarray  # (A, D, 2)
    path: np.ndarray  # (A, D, T, 2)
    log_loss: np.ndarray  # (A, D, T)
    status: np.ndarray  # (A, D), names
    num_steps: np.ndarray  # (A, D)
    finish_step: np.ndarray  # (A, D), relative size of the Gauss-Newton finish
    invariant_drift: np.ndarray  # (A, D)
    descent_path: np.ndarray  # (A, D, S, 2)


@dataclasses.dataclass(frozen=True)
class ClassificationRuns:
    """One architecture's classification flows, axes (alpha, direction, ...)."""

    predicted: np.ndarray  # (2,), a unit vector
    reached: np.ndarray  # (A, D, 2), unit vectors
    path: np.ndarray  # (A, D, T, 2)
    log_loss: np.ndarray  # (A, D, T)
    at_paper_loss: np.ndarray  # (A, D, 2), coefficients
    status: np.ndarray  # (A, D), names
    num_steps: np.ndarray  # (A, D)
    log_margin: np.ndarray  # (A, D)
    invariant_drift: np.ndarray  # (A, D)
    descent_reached: np.ndarray  # (A, D, 2), coefficients
    descent_log_loss: np.ndarray  # (A, D)
    step_log_loss: np.ndarray  # (A, D, K), at the solver's own steps, to the flow's end
    step_direction: np.ndarray  # (A, D, K, 2), unit vectors


@dataclasses.dataclass(frozen=True)
class Result:
    """Everything that was computed: `starts` (A, D, 2) and the runs of each architecture."""

    config: Configuration
    reduced: tuple[str, ...]
    starts: np.ndarray
    regression: dict[str, RegressionRuns]
    classification: dict[str, ClassificationRuns]

    def report(self) -> Report:
        """The tables and the checks of the acceptance bounds."""
        return yun2021_tables.report(self)

    def figures(self) -> dict[str, Any]:
        """Figures 1 and 3 (needs matplotlib)."""
        from . import yun2021_figures

        return yun2021_figures.figures(self)


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
    track: Callable[[Sequence[Job]], Iterable[Job]] = iter,
) -> Result:
    """Integrate, predict and descend: every alpha and direction of a job in one batch."""
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


def initial_directions(count: int, seed: int) -> np.ndarray:
    """Random vectors, shape (count, 2), one in each of `count` equal sectors of the plane."""
    rng = np.random.default_rng(seed)
    angles = 2 * np.pi / count * (np.arange(count) + rng.uniform(0.15, 0.85, count))
    lengths = rng.uniform(0.6, 1.0, count)
    return lengths[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _max_margin_directions(problem):
    try:
        return {
            name: np.asarray(max_margin(problem, norm()).direction)
            for name, (_, _, norm) in ARCHITECTURES.items()
        }
    except (NonSeparableError, MarginPrecisionError) as error:
        raise ConfigError("classification.X", f"must be separable by y: {error}") from None


def _networks(like, alphas, directions):
    """A batch of A * D networks with beta(0) = alpha^2 z, alpha-major."""
    build = jax.vmap(lambda alpha, z: matching(like, z).scaled(alpha))
    count = len(directions)
    return build(
        jnp.asarray(np.repeat(alphas, count)), jnp.asarray(np.tile(directions, (alphas.size, 1)))
    )


def _run_regression(networks, problem: Regression, task: RegressionTask):
    def lane(network, **how):
        flow = gradient_flow(
            network, problem, stop=StopAtResidual(task.residual), rtol=task.rtol, **how
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
    def lane(network, **how):
        flow = gradient_flow(
            network, problem, stop=StopAtMargin(task.margin), rtol=task.rtol, **how
        )
        descent = _descend(network, problem, task)
        return {
            **_common(flow),
            "reached": flow.direction[-1],
            "log_margin": jnp.asarray(flow.log_margin)[-1],
            "descent_reached": descent.coefficients[-1],
            "descent_log_loss": descent.log_loss[-1],
            "step_log_loss": flow.log_loss,
            "step_direction": flow.direction,
        }

    # Three times the logarithm is more than a figure shows, and coefficients do not yet explode.
    runs = _batched(lane, networks, last_log_loss=3 * np.log(task.paper_loss))
    # Beyond its end a flow repeats it.
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
    """`lane` of every network in one compiled program; a dict of arrays. The paths are followed
    to `last_log_loss`.

    The paper's flows are not stiff, and without the implicit method the program compiles in half
    the time. Where a flow of another configuration is stiff, the automatic choice has its turn.
    """
    explicit = {"solver": diffrax.Dopri8(), "max_steps": _EXPLICIT_STEPS}
    for how in (explicit, {}):
        # Steps are saved, not chosen times: diffrax checks those by a callback, and a program with
        # callbacks is not kept in the compilation cache.
        one = functools.partial(lane, saveat=diffrax.SaveAt(steps=True), **how)
        runs = eqx.filter_jit(jax.vmap(one))(networks)
        if bool(runs.pop("succeeded").all()):
            break
    status = _status_names(runs.pop("status"))
    runs = {key: np.asarray(value) for key, value in runs.items()}
    lanes = zip(runs.pop("clock_time"), runs["path"], runs["log_loss"], strict=True)
    paths, log_losses = zip(*(_drawn(*lane, last_log_loss) for lane in lanes), strict=True)
    return {**runs, "status": status, "path": np.stack(paths), "log_loss": np.stack(log_losses)}


def _drawn(times, path, log_loss, last_log_loss):
    """A flow up to the first saved step below `last_log_loss`, as smooth curves."""
    # Beyond its end a flow repeats it.
    kept = np.concatenate([[True], (np.diff(times) > 0) & (log_loss[:-1] > last_log_loss)])
    return [resampled(times[kept], values[kept], _PATH_POINTS) for values in (path, log_loss)]


def resampled(times: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    """`count` points of a smooth curve through `values` (T, ...) at increasing `times` (T,).

    Piecewise cubic, with equally many points between all neighbours, and slopes from the parabolas
    through three of them.
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
    # The largest interval that divides the steps and leaves enough points for a line.
    most = max(1, task.descent_num_steps // _DESCENT_POINTS)
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

"""Figures 1 to 3 of Ji & Telgarsky 2019: gradient flow aligns the layers of deep linear networks.

Flows of fully-connected networks and of one layer (logistic regression) go to a margin of 1e6, a
risk of exp(-1e6), past everything that gradient descent reaches. At every step Lemma 2.6's two
bounds are measured; at the end the direction is compared with the maximum margin. Gradient
descent with the step sizes of Assumption 3.5 is held against Lemma C.7, and Appendix A's start
shows that Assumption 1.2 is needed.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np

from ..config import Config, ConfigError, Integer, Number, setting, table
from ..theory.margins import max_margin
from ..theory.norms import L2Norm
from . import ji_telgarsky2019_tables
from .ji_telgarsky2019_images import (
    MISSING,
    ImageRun,
    ImagesTask,
    initial_networks,
    is_available,
    load_images,
    train,
)
from .ji_telgarsky2019_runs import (
    CounterexampleRun,
    DescentRun,
    DescentTask,
    FlowRun,
    FlowTask,
    run_counterexamples,
    run_descents,
    run_flows,
)
from .ji_telgarsky2019_setups import LinearPredictor, circles, sector, start
from .report import Report

_QUICK_STARTS, _QUICK_DESCENT_STEPS, _QUICK_EPOCHS = 1, 20_000, 6


@dataclasses.dataclass(frozen=True)
class Configuration(Config):
    """Figure 1 has `depth` layers and Figure 2 has `circles_depth`, of `width` hidden units."""

    depth: int = setting(4, Integer(2))
    circles_depth: int = setting(3, Integer(2))
    width: int = setting(4, Integer(1))
    scale: float = setting(0.4, Number(above=0))
    num_starts: int = setting(4, Integer(1))
    num_samples: int = setting(60, Integer(4))
    seed: int = setting(2019, Integer(0))
    flow: FlowTask = table(FlowTask)  # noqa: RUF009
    descent: DescentTask = table(DescentTask)  # noqa: RUF009
    images: ImagesTask = table(ImagesTask)  # noqa: RUF009

    def check(self) -> None:
        """As many samples of either label."""
        if self.num_samples % 2:
            raise ConfigError("num_samples", f"must be even, got {self.num_samples}; add one.")


def reduce(config: Configuration) -> tuple[Configuration, tuple[str, ...]]:
    """Fewer starts, descent steps and epochs; the flows' ends and the checks stay as they are."""
    starts = min(config.num_starts, _QUICK_STARTS)
    steps = min(config.descent.num_steps, _QUICK_DESCENT_STEPS)
    epochs = min(config.images.num_epochs, _QUICK_EPOCHS)
    quick = dataclasses.replace(
        config,
        num_starts=starts,
        descent=dataclasses.replace(config.descent, num_steps=steps),
        images=dataclasses.replace(config.images, num_epochs=epochs),
    )
    if quick == config:
        return config, ()
    return quick, (
        f"{starts} of {config.num_starts} starts, {steps:,} of {config.descent.num_steps:,} "
        f"descent steps, {epochs} of {config.images.num_epochs} epochs on images",
    )


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Samples (n, 2), labels (n,), and the maximum margin with its unit direction."""

    X: np.ndarray
    y: np.ndarray
    max_margin: np.ndarray
    margin: float


@dataclasses.dataclass(frozen=True)
class Result:
    """Everything that was computed; `images` is empty without scikit-learn and CIFAR-10."""

    config: Configuration
    reduced: tuple[str, ...]
    datasets: dict[str, Dataset]
    flows: list[FlowRun]
    descents: list[DescentRun]
    counterexamples: list[CounterexampleRun]
    images: list[ImageRun]

    def report(self) -> Report:
        """The tables and the checks of the acceptance bounds."""
        return ji_telgarsky2019_tables.report(self)

    def figures(self) -> dict[str, Any]:
        """Figures 1 to 3 (needs matplotlib)."""
        from . import ji_telgarsky2019_figures

        return ji_telgarsky2019_figures.figures(self)


@dataclasses.dataclass(frozen=True)
class Job:
    """What one part of the run is called, and what it does."""

    name: str
    work: Callable[[], list[Any]]

    def __str__(self) -> str:
        return self.name


def run(
    config: Configuration,
    reduced: tuple[str, ...] = (),
    track: Callable[[Sequence[Job]], Iterable[Job]] = iter,
) -> Result:
    """Flows, descents, the counterexample and the images, job by job."""
    problems = {
        "sector": sector(config.num_samples, config.seed),
        "circles": circles(config.num_samples, config.seed),
    }
    depths = {"sector": config.depth, "circles": config.circles_depth}
    jobs = []
    for data, problem in problems.items():
        deep = _starts(problem, depths[data], config)
        # The same predictor as the first deep network, in one layer.
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
            jobs.append(Job(f"images, {name}", functools.partial(_images, *case)))
    else:
        reduced = (*reduced, f"Figure 3 is left out: it needs {MISSING} or images.cifar10")
    done = [outcome for job in track(jobs) for outcome in job.work()]

    def of(kind):
        return [outcome for outcome in done if isinstance(outcome, kind)]

    return Result(
        config=config,
        reduced=reduced,
        datasets={data: _dataset(problem) for data, problem in problems.items()},
        flows=of(FlowRun),
        descents=of(DescentRun),
        counterexamples=of(CounterexampleRun),
        images=of(ImageRun),
    )


def _images(*case):
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

"""What the experiment on Even et al. 2023 computes."""

import dataclasses

import numpy as np

from ..sparse_regression.results import Baseline, Ends
from .configuration import Configuration

FULL, STOCHASTIC = "full gradient", "mini-batches"


@dataclasses.dataclass(frozen=True)
class StepRun:
    """The runs of one method on one problem: S step sizes, each with R random keys.

    - `sizes` (S R,): step sizes, ascending. `gains` (S R, d): log(mu_0/mu) of every coordinate.
    - `diverged` (S R,): whether a run became infinite or NaN.
    - `off_gradient_share` (S R,): the share of the steps' total length that is not along the
      gradient.
    """

    problem: int
    method: str
    sizes: np.ndarray
    ends: Ends
    gains: np.ndarray
    diverged: np.ndarray
    off_gradient_share: np.ndarray

    @property
    def largest(self) -> float:
        """The largest step up to which all runs fit the data; 0 if the smallest does not fit."""
        steps = np.unique(self.sizes)
        fits = np.array([np.all(self.ends.fits[self.sizes == step]) for step in steps])
        until = len(steps) if fits.all() else int(fits.argmin())
        return float(steps[until - 1]) if until else 0.0

    def by_step(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The steps up to the largest, and the means of `values` (S R,) over the keys."""
        steps = np.unique(self.sizes)
        steps = steps[steps <= self.largest]
        return steps, np.array([np.mean(values[self.sizes == step]) for step in steps])


@dataclasses.dataclass(frozen=True)
class Result:
    """Everything that was computed; `support` (problems, d) says where the truth is not zero."""

    config: Configuration
    reduced: tuple[str, ...]
    baselines: tuple[Baseline, ...]
    support: np.ndarray
    runs: tuple[StepRun, ...]

    def of(self, method: str) -> list[StepRun]:
        """The runs of this method, one for each problem."""
        return [run for run in self.runs if run.method == method]

    def relative(self, run: StepRun) -> tuple[np.ndarray, np.ndarray]:
        """The steps of `by_step`; the mean distance of the limits, divided by the flow's."""
        steps, distance = run.by_step(run.ends.distance)
        return steps, distance / self.baselines[run.problem].distance

"""What the experiment on Pesme et al. 2021 computes."""

import dataclasses

import numpy as np

from ..sparse_regression.results import Baseline, Ends
from .configuration import Configuration


@dataclasses.dataclass(frozen=True)
class NoiseRun:
    """The paths of one noise on one problem.

    - `noise`: s^2 divided by the loss. `spent` (K,): int s^2 dt along each path.
    - `loss_integral` (K,): int L dt, which is large if a path converges slowly.
    - `scale_error` (K,): |log mu - prediction| at the path's end, mu = |u^2 - v^2|/2 of its layers.
    - `ended_by`: how many paths each stopping rule ended, as text. `most_steps`: of all paths.
    """

    problem: int
    noise: float
    ends: Ends
    spent: np.ndarray
    scale_error: np.ndarray
    ended_by: str
    most_steps: int

    @property
    def loss_integral(self) -> np.ndarray:
        """int L dt along each path, shape (K,)."""
        return self.spent / self.noise


@dataclasses.dataclass(frozen=True)
class Course:
    """Loss and distance from the measured vector at T times, of the flow or of one path."""

    label: str
    times: np.ndarray
    loss: np.ndarray
    distance: np.ndarray


@dataclasses.dataclass(frozen=True)
class Result:
    """Everything that was computed; `courses`: of the flow, then of paths, on problem 1."""

    config: Configuration
    reduced: tuple[str, ...]
    baselines: tuple[Baseline, ...]
    runs: tuple[NoiseRun, ...]
    courses: tuple[Course, ...]

    def of_noise(self, noise: float) -> list[NoiseRun]:
        """The runs with this noise, one for each problem."""
        return [run for run in self.runs if run.noise == noise]

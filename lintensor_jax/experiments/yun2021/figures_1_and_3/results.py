"""What the experiment on Figures 1 and 3 computes."""

import dataclasses

import numpy as np

from .configuration import Configuration


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
    descent_path: np.ndarray  # (A, D, S, 2)
    descent_log_loss: np.ndarray  # (A, D)
    step_log_loss: np.ndarray  # (A, D, K), at the steps of the solver, up to the flow's end
    step_direction: np.ndarray  # (A, D, K, 2), unit vectors


@dataclasses.dataclass(frozen=True)
class Result:
    """Everything that was computed: `starts` (A, D, 2), and the runs of each architecture."""

    config: Configuration
    reduced: tuple[str, ...]
    starts: np.ndarray
    regression: dict[str, RegressionRuns]
    classification: dict[str, ClassificationRuns]

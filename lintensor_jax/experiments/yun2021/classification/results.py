"""What the experiment on classification computes."""

import dataclasses

import numpy as np

from .configuration import Configuration

# The loss at which the paper's gradient descent stops.
PAPER_LOG_LOSS = float(np.log(1e-5))


@dataclasses.dataclass(frozen=True)
class Path:
    """A classification flow at T saved times, and its limit direction; NumPy arrays."""

    log_time: np.ndarray  # (T,)
    log_loss: np.ndarray  # (T,)
    log_bound: np.ndarray  # (T,): the corrected bound of Theorem 2 or 3; NaN where none is known
    log_printed_bound: np.ndarray  # (T,): as printed in the paper
    error: np.ndarray  # (T,): |beta/|beta| - limit|
    variation: np.ndarray  # (T,): of u = X^T r / |X^T r| after this time
    limit: np.ndarray  # (d,)
    predicted: np.ndarray | None  # (d,)
    theorem: str
    parameter_residual: float
    predictor_residual: float | None
    singular_residuals: np.ndarray  # (T,): of eq. 8, with the u of that time
    limit_singular_residual: float  # the same at the certified limit
    limit_status: str
    status: str
    num_steps: int
    invariant_drift: float
    smoothed_margin_drop: float


@dataclasses.dataclass(frozen=True)
class OneSampleRun:
    """One sample and two layers: the path, and the direction by Corollary 4."""

    filter_size: int
    start: str
    path: Path
    corollary_4: np.ndarray  # (d,), a unit vector


@dataclasses.dataclass(frozen=True)
class FiniteLossRuns:
    """Directions at finite loss for one depth D: P values of mu on a grid, M x E flows."""

    mus: np.ndarray  # (P,)
    path: np.ndarray  # (P, d), unit vectors: `finite_loss_path`
    program: np.ndarray  # (P, d): `interpolated_max_margin`
    l1: np.ndarray  # (d,)
    l2: np.ndarray  # (d,)
    alphas: np.ndarray  # (M, E)
    flow_mus: np.ndarray  # (M, E): alpha^D / log(1/eps) where the flow stopped
    log_losses: np.ndarray  # (M, E)
    reached: np.ndarray  # (M, E, d)
    path_errors: np.ndarray  # (M, E): |direction - path|
    program_errors: np.ndarray  # (M, E): |direction - program|
    kkt_residual: float  # the largest of all programs


@dataclasses.dataclass(frozen=True)
class SideBySideRow:
    """One algorithm on the paper's toy data."""

    architecture: str
    method: str
    num_steps: int
    seconds: float  # the second of two calls: without compilation
    log_loss: float
    distance: float  # of the direction to the limit, from the conic program


@dataclasses.dataclass(frozen=True)
class Result:
    """Everything that was computed."""

    config: Configuration
    reduced: tuple[str, ...]
    paths: dict[tuple[str, int], dict[str, Path]]  # by (architecture, depth), then by start
    one_sample: list[OneSampleRun]
    finite_loss: dict[int, FiniteLossRuns]
    side_by_side: list[SideBySideRow]


def at_log_loss(path: Path, values: np.ndarray, log_loss: float) -> float:
    """A quantity of `path`, interpolated at the time when the loss is exp(log_loss)."""
    # Linear in log log(1/loss), because the values fall by orders of magnitude. A loss of 1 or more
    # has no such logarithm, so every loss above exp(-1e-3) counts as exp(-1e-3).
    scale = np.log(np.maximum(-path.log_loss, 1e-3))
    return float(np.interp(np.log(-log_loss), scale, values))

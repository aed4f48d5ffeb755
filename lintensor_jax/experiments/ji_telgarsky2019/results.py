"""What the experiment on Ji & Telgarsky 2019 computes."""

import dataclasses
from typing import Any

import numpy as np

from ...theory.assumptions import Assumption
from .configuration import Configuration
from .images import ImageRun


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Samples (n, 2), labels (n,), and the maximum margin with its unit direction."""

    X: np.ndarray
    y: np.ndarray
    max_margin: np.ndarray
    margin: float


@dataclasses.dataclass(frozen=True)
class FlowRun:
    """One flow at T saved steps; the first one is the start."""

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
    # AlignmentBounds of NumPy arrays with leading axis T. None for one layer, which has no
    # alignment.
    bounds: Any


@dataclasses.dataclass(frozen=True)
class DescentRun:
    """One run of gradient descent at S saved steps; the first one is the start."""

    data: str
    depth: int
    start: int
    steps: str  # "Assumption 3.5" or "constant"
    num_steps: int
    log_risk: np.ndarray  # (S,)
    direction: np.ndarray  # (S, d)
    bounds: Any  # with leading axis S; None for one layer and for constant steps
    step_size: float  # the last one; it multiplies the gradient of the mean loss


@dataclasses.dataclass(frozen=True)
class CounterexampleRun:
    """Gradient descent from w_1 = -w_2 + offset * e_1 at S saved steps; the first is the start."""

    offset: float
    conditions: tuple[Assumption, ...]
    log_risk: np.ndarray  # (S,)
    sum_of_layers: np.ndarray  # (S,), |w_1 + w_2|
    norm: np.ndarray  # (S,), |w_1|


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

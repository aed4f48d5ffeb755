"""What the experiment on Eftekhari 2020 computes."""

import dataclasses

import numpy as np

from ...theory.landscape.landscape_point import LandscapePoint
from .configuration import Configuration
from .setup import Start

# Logarithms of squared distances below this, relative to the first one, are rounding errors.
_LEAST_LOG = 2 * np.log(1e-8)


@dataclasses.dataclass(frozen=True)
class FigureRun:
    """Figure 1 at one depth: T times, and the distance |beta - Z_1| of both flows at them."""

    depth: int
    times: np.ndarray  # (T,)
    induced: np.ndarray  # (T,): of the end-to-end flow
    layered: np.ndarray  # (T,): of the layers' flow
    difference: float  # largest entry of the flows' difference, divided by |beta(0)|
    target_size: float
    end: LandscapePoint  # where the layered flow ends


@dataclasses.dataclass(frozen=True)
class BoundRun:
    """One flow from the stable set, and Theorem 20 along it; T times."""

    start: Start
    times: np.ndarray  # (T,)
    log_distance: np.ndarray  # (T,): log |beta - Z_1|^2
    log_bound: np.ndarray  # (T,): with (38) corrected
    log_printed: np.ndarray  # (T,): with (38) as printed, which has s_Z^(-2/N)
    slack: np.ndarray  # (T,): positive inside the stable set
    faraway: float  # rate of (38)
    nearby: float  # rate of (39)


@dataclasses.dataclass(frozen=True)
class NearbyRun:
    """The rate at which one flow approaches its limit, measured and by the linearisation."""

    depth: int
    size: float  # s_Z
    outputs: int
    scale: float  # n, from X^T X = n I
    measured: float
    predicted: float


@dataclasses.dataclass(frozen=True)
class LandscapeRun:
    """A point whose kind is known: its true kind and the kind that `landscape_point` finds."""

    name: str
    expected: str
    least_eigenvalue: float | None  # where it is known
    found: LandscapePoint


@dataclasses.dataclass(frozen=True)
class Result:
    """Everything that was computed."""

    config: Configuration
    reduced: tuple[str, ...]
    figure: tuple[FigureRun, ...]
    bounds: tuple[BoundRun, ...]
    nearby: tuple[NearbyRun, ...]
    landscape: tuple[LandscapeRun, ...]


def log_ratio(run: BoundRun) -> np.ndarray:
    """log(|beta - Z_1|^2 / bound), shape (T,); NaN where the distance is a rounding error."""
    usable = run.log_distance - run.log_distance[0] > _LEAST_LOG
    return np.where(usable, run.log_distance - run.log_bound, np.nan)

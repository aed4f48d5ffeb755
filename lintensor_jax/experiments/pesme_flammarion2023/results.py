"""What the experiment on Pesme & Flammarion 2023 computes."""

import dataclasses

import numpy as np

from .configuration import Configuration


@dataclasses.dataclass(frozen=True)
class Path:
    """The path of the algorithm: K jumps between K + 1 points.

    - `times` (K,): in units of log(1/alpha). `points` (K+1, d), `losses` (K+1,).
    - `slack` (K+1,): how far a point is from the minimum on its active coordinates: the largest
      |gradient| where beta is not zero.
    - `l1_solution` (d,): the solution of least l1 norm, by `min_norm`, without the algorithm.
    """

    times: np.ndarray
    points: np.ndarray
    losses: np.ndarray
    slack: np.ndarray
    l1_solution: np.ndarray

    @property
    def left(self) -> int:
        """How often a coordinate that was active is zero after a jump."""
        active = self.points != 0
        return int(np.sum(active[:-1] & ~active[1:]))


@dataclasses.dataclass(frozen=True)
class ScaleRun:
    """The flow from alpha = 10^-digits, at its T steps.

    - `times` (T,): physical times divided by log(1/alpha). `losses` (T,), `coefficients` (T, d).
    - `jumps` (K,): when the loss passes the middle between two saddles' losses, in the same unit.
    - `nearest` (K+1,): the flow's smallest distance from each point of the path (largest entry).
    """

    digits: int
    times: np.ndarray
    losses: np.ndarray
    coefficients: np.ndarray
    jumps: np.ndarray
    nearest: np.ndarray
    status: str

    @property
    def unit(self) -> float:
        """The unit of `times`, log(1/alpha)."""
        return self.digits * float(np.log(10.0))


@dataclasses.dataclass(frozen=True)
class Result:
    """Everything that was computed."""

    config: Configuration
    reduced: tuple[str, ...]
    path: Path
    runs: tuple[ScaleRun, ...]

    @property
    def slopes(self) -> np.ndarray:
        """(t'' - t')/(log(1/alpha'') - log(1/alpha')) of the two smallest scales, shape (K,).

        A jump is at t = tau log(1/alpha) + c + o(1). The constant c comes from the earlier jumps:
        each adds a constant to the dual variable. The slope does not contain c, so it converges to
        tau much faster than t/log(1/alpha).
        """
        first, last = self.runs[-2:]
        return (last.jumps * last.unit - first.jumps * first.unit) / (last.unit - first.unit)

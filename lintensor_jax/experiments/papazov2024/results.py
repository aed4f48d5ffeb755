"""What the experiment on Papazov et al. 2024 computes."""

import dataclasses

import numpy as np

from ..sparse_regression.results import Baseline, Ends
from .configuration import Configuration


@dataclasses.dataclass(frozen=True)
class MassRun:
    """The flows of all masses on one problem, K of them.

    - `sign_changes`: what changes its sign, as text; "" if nothing does. No limit is predicted for
      a flow in which something changes its sign.
    - `energy_drift` (K,): the error of the energy balance, relative to the energy at the start.
    """

    problem: int
    ends: Ends
    sign_changes: tuple[str, ...]
    energy_drift: np.ndarray

    @property
    def covered(self) -> np.ndarray:
        """Where theory predicts the limit, shape (K,)."""
        return np.array([not change for change in self.sign_changes]) & self.ends.fits


@dataclasses.dataclass(frozen=True)
class MomentumRun:
    """Descent with momentum on the first problem, against the flow of its mass.

    - `step`: gamma. `away`: the largest entry of |end of descent - end of the flow|.
    - `residual`: |X beta - y| / |y| at the end of descent.
    """

    momentum: float
    step: float
    num_steps: int
    away: float
    residual: float

    @property
    def time_step(self) -> float:
        """The physical time of a step, gamma/(1 - beta)."""
        return self.step / (1 - self.momentum)


@dataclasses.dataclass(frozen=True)
class Result:
    """Everything that was computed."""

    config: Configuration
    reduced: tuple[str, ...]
    baselines: tuple[Baseline, ...]
    runs: tuple[MassRun, ...]
    momenta: tuple[MomentumRun, ...]

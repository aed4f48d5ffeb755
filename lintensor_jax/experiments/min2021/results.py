"""What the experiment on Min et al. 2021 computes."""

import dataclasses

import numpy as np

from .configuration import Configuration

# A loss below this, relative to the first one, is near the square of the integrator's tolerance.
# There the direction of the error is a rounding error, and a bound on its rate has no meaning.
_LEAST_LOSS = 1e-11


@dataclasses.dataclass(frozen=True)
class Spectrum:
    """The imbalance D at a random start, divided by m h."""

    outputs: int
    width: int
    rank: int
    eigenvalues: np.ndarray  # (k,): the r positive and m negative ones
    positive_spread: float  # D_+
    negative_spread: float  # D_-
    level: float  # D_u


@dataclasses.dataclass(frozen=True)
class RateRun:
    """The excess loss L - L* and the rate of one flow at T times, and their bounds."""

    label: str
    times: np.ndarray  # (T,)
    excess_loss: np.ndarray  # (T,)
    rate: np.ndarray  # (T,): measured, -dL/dt / (L - L*)
    proposition_1: np.ndarray  # (T,)
    corollary_6: np.ndarray  # (T,): the guaranteed rate from each time on
    theorem_3: float  # the guaranteed rate from the start
    corollary_4: float
    asymptotic: float  # eq. (22)
    spreads: tuple[float, float, float]  # D_+, D_-, D_u
    status: str
    num_steps: int
    invariant_drift: float

    @property
    def loss_bound(self) -> np.ndarray:
        """The bound of Theorem 3 on the excess loss, shape (T,)."""
        return self.excess_loss[0] * np.exp(-self.theorem_3 * self.times)


@dataclasses.dataclass(frozen=True)
class WidthRun:
    """The end of one flow of Figure 7, with its bounds."""

    width: int
    index: int
    distance: float  # |U V^T - min-norm solution|_F
    deviation_bound: float
    theorem_12: float
    theorem_12_applies: bool
    level: float  # D_u
    lemma_11_level: float
    away: float  # |(V U_2^T; U_1 U_2^T)(0)|_F
    lemma_11_away: float
    lemma_11_applies: bool
    status: str
    num_steps: int


@dataclasses.dataclass(frozen=True)
class Result:
    """Everything that was computed."""

    config: Configuration
    reduced: tuple[str, ...]
    spectra: tuple[Spectrum, ...]
    rates: tuple[RateRun, ...]
    imbalance: tuple[RateRun, ...]  # the last one is balanced
    end_to_end: float  # largest difference between the starts' end-to-end matrices, relative
    widths: tuple[WidthRun, ...]


@dataclasses.dataclass(frozen=True)
class PowerLaw:
    """log y = log_factor + slope log x + correction / x; the error bar is that of the slope."""

    slope: float
    error_bar: float
    log_factor: float
    correction: float

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """y at every x."""
        return np.exp(self.log_factor + self.slope * np.log(x) + self.correction / x)

    @staticmethod
    def through(x: np.ndarray, y: np.ndarray, corrected: bool) -> "PowerLaw":
        """Least squares; the error bar is twice the slope's standard error.

        `corrected`: whether to fit the correction, which needs three different x.
        """
        columns = np.stack([np.log(x), np.ones_like(x), 1 / x][: 3 if corrected else 2], axis=1)
        # Columns of length 1: otherwise rounding would spoil the inverse of their Gram matrix.
        sizes = np.linalg.norm(columns, axis=0)
        found = np.linalg.lstsq(columns / sizes, np.log(y), rcond=None)[0]
        rest = np.log(y) - columns / sizes @ found
        inverse = np.linalg.inv((columns / sizes).T @ (columns / sizes))
        variance = rest @ rest / max(len(x) - len(found), 1) * inverse[0, 0]
        found, error = found / sizes, np.sqrt(variance) / sizes[0]
        slope, log_factor, *more = (float(value) for value in found)
        return PowerLaw(slope, 2 * float(error), log_factor, more[0] if more else 0.0)


def power_law(result: Result, corrected: bool = True) -> PowerLaw:
    """The distance of Figure 7 as a function of the width, over all flows.

    As h grows, sqrt(h) times the distance tends to sqrt(d - r) |V(inf)|, and |V(inf)| tends to a
    limit as well. The products U_1 V^T of the start cause an error of |V(inf)|; they are of size
    sqrt(r / h), and both signs are equally likely. The paper's widths are at least five times r.
    There this error is larger than the error bars. With 60 runs for each width, a power law without
    correction has the exponent -0.484 +- 0.004, and one with a correction in 1 / h has
    -0.495 +- 0.010.
    """
    runs = result.widths
    x, y = (np.array([float(getattr(run, key)) for run in runs]) for key in ("width", "distance"))
    return PowerLaw.through(x, y, corrected and len(set(x)) > 2)


def meaningful(run: RateRun) -> np.ndarray:
    """At which times, shape (T,), the loss is above the integrator's tolerance."""
    return run.excess_loss > _LEAST_LOSS * run.excess_loss[0]

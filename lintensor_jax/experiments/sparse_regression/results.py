"""The ends of runs, and the ends that theory predicts from their effective starts."""

import dataclasses
from typing import Any

import jax
import numpy as np

from ...networks import DiagonalNetwork
from ...networks.effective_start import EffectiveStart
from ...problems import Regression
from ...theory.least_norm.min_norm import min_norm
from ...theory.least_norm.norms import L1Norm
from ...theory.predict import predict
from ...theory.regression.other_mirror_maps import project
from .setup import log_scale

# If a run ended with residual r, more steps would change its sums by about r^2 and its coefficients
# by about r.
_FITS = 1e-8


@dataclasses.dataclass(frozen=True)
class Ends:
    """The ends of K runs on one problem.

    - `coefficients`, `predicted` (K, d): beta at the end, and its prediction, the Bregman
      projection of the run's effective start. `residual` (K,): |X beta - y| / |y| at the end.
    - `shrinkage` (K,): log(mu_0/mu), how much training reduced the scale; mean over coordinates.
    - `distance`, `l1_norm` (K,): of the prediction; the distance is from the measured vector.
    """

    coefficients: np.ndarray
    predicted: np.ndarray
    residual: np.ndarray
    shrinkage: np.ndarray
    distance: np.ndarray
    l1_norm: np.ndarray

    @property
    def fits(self) -> np.ndarray:
        """Which runs fit the data in the end, shape (K,)."""
        return self.residual <= _FITS

    @property
    def error(self) -> np.ndarray:
        """The largest entry of end minus prediction, shape (K,); NaN if a run does not fit."""
        apart = np.max(np.abs(self.coefficients - self.predicted), axis=1)
        return np.where(self.fits, apart, np.nan)


def ends_of(
    coefficients: Any,
    start: EffectiveStart,
    network: DiagonalNetwork,
    problem: Regression,
    truth: np.ndarray,
) -> Ends:
    """The ends of K runs from `network`: their coefficients (K, d) and K effective starts."""
    X, y = np.asarray(problem.X), np.asarray(problem.y)
    coefficients = np.asarray(coefficients)
    with np.errstate(invalid="ignore", over="ignore"):
        residual = np.linalg.norm(coefficients @ X.T - y, axis=1) / np.linalg.norm(y)
    found = jax.vmap(lambda scale, beta: project(None, problem.X, problem.y, scale, beta))(
        start.log_scale, start.coefficients
    )
    predicted = np.asarray(found.coefficients)
    return Ends(
        coefficients=coefficients,
        predicted=predicted,
        residual=np.where(np.isfinite(residual), residual, np.inf),
        shrinkage=np.mean(np.asarray(log_scale(network)) - np.asarray(start.log_scale), axis=1),
        distance=np.linalg.norm(predicted - truth, axis=1),
        l1_norm=np.sum(np.abs(predicted), axis=1),
    )


@dataclasses.dataclass(frozen=True)
class Baseline:
    """The gradient flow from the same start, and the least l1 norm of all solutions.

    - `flow` (d,): the limit of the flow from the start itself, by theory.
    - `distance`, `l1_norm`: of the flow's limit. `least_l1_norm`: of all solutions.
    """

    flow: np.ndarray
    distance: float
    l1_norm: float
    least_l1_norm: float


def baseline_of(network: DiagonalNetwork, problem: Regression, truth: np.ndarray) -> Baseline:
    """The baseline of a problem. No flow is integrated: theory gives both parts."""
    limit = np.asarray(predict(network, problem).limit)
    least = np.asarray(min_norm(problem, L1Norm()).coefficients)
    return Baseline(
        flow=limit,
        distance=float(np.linalg.norm(limit - truth)),
        l1_norm=float(np.sum(np.abs(limit))),
        least_l1_norm=float(np.sum(np.abs(least))),
    )

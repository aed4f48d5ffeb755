"""Where runs end, and where their effective starts say that they end."""

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

# A run whose residual is r has sums that change by about r^2, and coefficients by about r, more.
_FITS = 1e-8


@dataclasses.dataclass(frozen=True)
class Ends:
    """The ends of K runs on one problem.

    - `coefficients`, `predicted` (K, d): of the run, and the Bregman projection of its effective
      start. `residual` (K,): |X beta - y| / |y| at the end.
    - `shrinkage` (K,): log(mu_0/mu), the mean over the coordinates: what training did to the scale.
    - `distance` (K,): of the prediction from the vector that was measured; `l1_norm` (K,).
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
        """The largest entry of end minus prediction, shape (K,); NaN where a run does not fit."""
        apart = np.max(np.abs(self.coefficients - self.predicted), axis=1)
        return np.where(self.fits, apart, np.nan)


def ends_of(
    coefficients: Any,
    start: EffectiveStart,
    network: DiagonalNetwork,
    problem: Regression,
    truth: np.ndarray,
) -> Ends:
    """Of K runs from `network` with coefficients (K, d) and effective starts with leading K."""
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
    """The gradient flow from the same start, and the sparsest solutions that there are.

    - `flow` (d,): the flow's limit by theory, from the start itself.
    - `distance`, `l1_norm`: of the flow's limit. `least_l1_norm`: of all solutions.
    """

    flow: np.ndarray
    distance: float
    l1_norm: float
    least_l1_norm: float


def baseline_of(network: DiagonalNetwork, problem: Regression, truth: np.ndarray) -> Baseline:
    """Both from theory alone."""
    limit = np.asarray(predict(network, problem).limit)
    least = np.asarray(min_norm(problem, L1Norm()).coefficients)
    return Baseline(
        flow=limit,
        distance=float(np.linalg.norm(limit - truth)),
        l1_norm=float(np.sum(np.abs(limit))),
        least_l1_norm=float(np.sum(np.abs(least))),
    )

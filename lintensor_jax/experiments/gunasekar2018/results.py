"""What the experiment on Gunasekar et al. 2018 computes."""

import dataclasses

import numpy as np

from .configuration import Configuration


@dataclasses.dataclass(frozen=True)
class Descent:
    """Gradient descent with a constant step from the start of a flow; T saved steps."""

    step: np.ndarray  # (T,)
    log_loss: np.ndarray  # (T,)
    direction: np.ndarray  # (d,), a unit vector: at the last step
    distance: np.ndarray  # (T,): |direction - limit of the flow|
    lag: np.ndarray  # (T,): |direction - direction of the flow at the same loss|


@dataclasses.dataclass(frozen=True)
class Run:
    """One flow, its limit, and the cost |Theta|^2 of the limit; NumPy arrays."""

    architecture: str
    depth: int
    start: int
    direction: np.ndarray  # (d,), a unit vector: the limit
    # Unit vectors (d,) by conic programs. `convex` is the maximum margin separator of `NORMS`.
    # `reference` is what the limit should equal: `convex`, or at larger depth the stationary point
    # of `QUASI_NORMS` near the limit.
    convex: np.ndarray
    reference: np.ndarray
    status: str
    reason: str
    certified: bool
    parameter_residual: float
    predictor_residual: float
    support: np.ndarray  # indices of the samples with a positive multiplier
    moved: float  # |direction - the direction at the flow's end|
    descent: Descent
    # Of the limit network, scaled to smallest margin 1:
    coefficients: np.ndarray  # (d,)
    squared_norm: float  # |Theta|^2
    regularizer: float  # R(beta(Theta))
    convex_regularizer: float  # R of `convex` at margin 1
    minimal_squared_norm: float  # |Theta|^2 of `minimal_network`
    minimal_error: float  # |its coefficients - beta| / |beta|


@dataclasses.dataclass(frozen=True)
class RandomNetworks:
    """|Theta|^2 and R(beta(Theta)) at K random parameters of one architecture and depth."""

    architecture: str
    depth: int
    squared_norms: np.ndarray  # (K,)
    regularizers: np.ndarray  # (K,)


@dataclasses.dataclass(frozen=True)
class Result:
    """Everything that was computed, by (architecture, depth)."""

    config: Configuration
    reduced: tuple[str, ...]
    runs: dict[tuple[str, int], list[Run]]
    random: dict[tuple[str, int], RandomNetworks]


def participation_ratio(moduli: np.ndarray) -> float:
    """(sum m^2)^2 / sum m^4 of moduli (d,): k if k of them are equal and the others are zero."""
    return float((moduli**2).sum() ** 2 / (moduli**4).sum())


def moduli_of(direction: np.ndarray, domain: str) -> np.ndarray:
    """Moduli (d,) of the entries ("signal") or of NumPy's DFT ("frequency"); the largest is 1."""
    moduli = np.abs(np.fft.fft(direction) if domain == "frequency" else direction)
    return moduli / moduli.max()

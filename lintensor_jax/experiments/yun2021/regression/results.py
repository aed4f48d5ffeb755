"""What the experiment on regression computes."""

import dataclasses

import numpy as np

from .configuration import Configuration


@dataclasses.dataclass(frozen=True)
class Flow:
    """One simulated flow: its scale and its limit."""

    alpha: float
    reached: np.ndarray  # the coefficients at the limit
    status: str
    num_steps: int
    num_implicit_steps: int
    invariant_drift: float


@dataclasses.dataclass(frozen=True)
class InterpolationRuns:
    """One architecture at one depth: Theorem 5 at A scales, and F flows at other scales."""

    alphas: np.ndarray  # (A,)
    limits: np.ndarray  # (A, ...), coefficients
    num_iterations: np.ndarray  # (A,), Newton's
    l1: np.ndarray  # the weighted l1 solution
    l2: np.ndarray  # the weighted l2 solution
    certificate: float  # u: the largest weighted dual slope off the l1 solution's support
    flows: tuple[Flow, ...]
    predicted: np.ndarray  # (F, ...): Theorem 5 at the flows' scales
    mirror_flows: tuple[Flow | None, ...]  # None if `mirror_flow` refuses the scale


@dataclasses.dataclass(frozen=True)
class RotatedRuns:
    """Flows of commuting sensors in a random basis, in the coordinates of their eigenbasis."""

    flows: tuple[Flow, ...]
    predicted: np.ndarray  # (F, d, d): Theorem 5, diagonal


@dataclasses.dataclass(frozen=True)
class SmallScaleRuns:
    """Flows from F scales, and the interpolator that their limits are compared with."""

    reference: np.ndarray
    flows: tuple[Flow, ...]
    condition: float  # Theorem 7: smallest slack of its conditions. Sensors: largest commutator


@dataclasses.dataclass(frozen=True)
class Result:
    """Everything that was computed, by (architecture, depth) or by depth."""

    config: Configuration
    reduced: tuple[str, ...]
    interpolation: dict[tuple[str, int], InterpolationRuns]
    fully_connected: dict[int, SmallScaleRuns]
    noncommuting: dict[int, SmallScaleRuns]
    rotated: dict[int, RotatedRuns]


def distances(runs: InterpolationRuns) -> tuple[np.ndarray, np.ndarray]:
    """The limits' distances to the weighted l1 and l2 solutions, (A,) each.

    Both are relative to the distance between the two solutions.
    """
    unit = np.linalg.norm(runs.l1 - runs.l2)
    l1, l2 = (
        np.linalg.norm((runs.limits - end).reshape(len(runs.limits), -1), axis=1) / unit
        for end in (runs.l1, runs.l2)
    )
    return l1, l2


def small_scale_distances(runs: SmallScaleRuns) -> tuple[np.ndarray, np.ndarray]:
    """The flows' scales and their relative distances to the reference, (F,) each."""
    alphas = np.array([flow.alpha for flow in runs.flows])
    return alphas, np.array([_relative(flow.reached, runs.reference) for flow in runs.flows])


def rotated_distances(runs: RotatedRuns) -> tuple[np.ndarray, np.ndarray]:
    """The flows' scales and their `relative_error` against Theorem 5, (F,) each."""
    values = zip(runs.flows, runs.predicted, strict=True)
    return (
        np.array([flow.alpha for flow in runs.flows]),
        np.array([relative_error(flow.reached, predicted) for flow, predicted in values]),
    )


def relative_error(reached: np.ndarray, expected: np.ndarray) -> float:
    """The largest entry of |reached - expected|, divided by the largest of |expected|."""
    return float(np.max(np.abs(reached - expected)) / np.max(np.abs(expected)))


def _relative(reached, expected):
    return float(np.linalg.norm(reached - expected) / np.linalg.norm(expected))

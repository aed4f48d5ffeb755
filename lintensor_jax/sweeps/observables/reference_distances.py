"""Distances of limits from solutions of convex programs: least norm, and largest margin."""

import functools
import hashlib
from typing import Any

import equinox as eqx
import jax
import numpy as np

from ...messages import in_words
from ...problems import AbstractProblem
from ...theory.least_norm.max_margin import max_margin
from ...theory.least_norm.min_norm import min_norm
from ...theory.least_norm.norms import AbstractNorm, L1Norm, L2Norm
from .base import AbstractObservable, Ending, Variable, refuse, unit

_KEPT = 64  # cached solutions; lanes with the same data use the same one


class DistanceToMinNorm(AbstractObservable):
    """Regression: |limit - interpolator of least norm|; see `lintensor_jax.min_norm`.

    Computed on the host, once for each data set. NaN if no coefficients interpolate the data.

    **Arguments**

    - `norm`: `L2Norm()` (default) or `L1Norm()`.
    """

    norm: AbstractNorm = L2Norm()

    def __check_init__(self):
        _norm_name(self)

    @property
    def on_host(self) -> bool:
        """True: the norm is minimised on the host."""
        return True

    @property
    def variables(self) -> tuple[Variable, ...]:
        """The variable `distance_to_min_norm_l1` or `distance_to_min_norm_l2`, in units y/x."""
        words = f"distance of the limit from the interpolator of least {_norm_name(self)} norm"
        return (Variable(f"distance_to_min_norm_{_norm_name(self)}", (), "y/x", words),)

    def shapes(self, end: Ending) -> tuple[Any, ...]:
        """Shape and type of the distance."""
        return (end.log_loss,)

    def measure(self, end: Ending) -> tuple[Any, ...]:
        """The l2 distance; NaN if there is no interpolator."""
        return (_distance(end.coefficients, _min_norm(_Data(end.problem), self.norm)),)

    def check(self, network: Any, problem: AbstractProblem) -> None:
        """Raises a ValueError unless the problem has residuals."""
        if not problem.has_residuals:
            what = type(problem).__name__
            refuse("DistanceToMinNorm", "is for Regression", what, "DistanceToMaxMargin()")


class DistanceToMaxMargin(AbstractObservable):
    """Classification: |direction - direction of largest margin|; see `lintensor_jax.max_margin`.

    Both are unit vectors: along the flow's coefficients, and along the separator of least norm.
    Computed on the host, once for each data set. NaN if the data are not separable.

    **Arguments**

    - `norm`: `L2Norm()` (default) or `L1Norm()`.
    """

    norm: AbstractNorm = L2Norm()

    def __check_init__(self):
        _norm_name(self)

    @property
    def on_host(self) -> bool:
        """True: the norm is minimised on the host."""
        return True

    @property
    def variables(self) -> tuple[Variable, ...]:
        """The variable `distance_to_max_margin_l1` or `distance_to_max_margin_l2`."""
        words = f"distance of unit vectors: coefficients, and largest {_norm_name(self)} margin"
        return (Variable(f"distance_to_max_margin_{_norm_name(self)}", (), "1", words),)

    def shapes(self, end: Ending) -> tuple[Any, ...]:
        """Shape and type of the distance."""
        return (end.log_loss,)

    def measure(self, end: Ending) -> tuple[Any, ...]:
        """The l2 distance; NaN if the data are not separable."""
        return (_distance(unit(end.coefficients), _max_margin(_Data(end.problem), self.norm)),)

    def check(self, network: Any, problem: AbstractProblem) -> None:
        """Raises a ValueError unless the problem has margins."""
        if not problem.has_margins:
            what = type(problem).__name__
            refuse("DistanceToMaxMargin", "is for Classification", what, "DistanceToMinNorm()")


def _norm_name(observable: Any) -> str:
    """The name of the norm in names of variables, "l1" or "l2"; ValueError for another norm."""
    for kind, name in ((L1Norm, "l1"), (L2Norm, "l2")):
        if isinstance(observable.norm, kind):
            return name
    kind = type(observable).__name__
    raise ValueError(
        f"{kind}: norm must be L1Norm() or L2Norm(), got {in_words(observable.norm)}; take one of "
        "them, or write the distance as a Measured(name, function)."
    )


class _Data:
    """A problem as a key of caches: it equals another one with the same class and data."""

    def __init__(self, problem: AbstractProblem):
        self.problem = problem
        arrays = [np.asarray(x) for x in jax.tree.leaves(problem) if eqx.is_array(x)]
        parts = [f"{a.dtype}{a.shape}".encode() + a.tobytes() for a in arrays]
        self.key = hashlib.sha256(type(problem).__name__.encode() + b"".join(parts)).digest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Data) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


def _distance(reached: Any, reference: np.ndarray | None) -> np.ndarray:
    if reference is None:
        return np.asarray(np.nan)
    return np.asarray(np.linalg.norm(np.asarray(reached) - reference))


@functools.lru_cache(maxsize=_KEPT)
def _min_norm(data: _Data, norm: AbstractNorm) -> np.ndarray | None:
    try:
        return np.asarray(min_norm(data.problem, norm).coefficients)
    except ValueError:  # not consistent, or bad input, as the status says
        return None


@functools.lru_cache(maxsize=_KEPT)
def _max_margin(data: _Data, norm: AbstractNorm) -> np.ndarray | None:
    try:
        return np.asarray(max_margin(data.problem, norm).direction)
    except ValueError:  # not separable, or bad input, as the status says
        return None

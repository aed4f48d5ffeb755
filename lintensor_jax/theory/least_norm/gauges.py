"""Gauges: the properties of a norm of vectors that `max_margin` and `min_norm` use.

A gauge works on rows A (n, D) and targets b (n,): the point w has gauge 1, A w >= t b (or = t b),
and p are the multipliers, b^T p = 1. The minimiser of the norm is w / t, its multipliers p / t.
Optimal means: A^T p / t is a subgradient of the gauge at w, p >= 0, p_i > 0 only for tight rows.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from .conic import (
    ConicSolution,
    Constraints,
    largest_level_of_groups,
    largest_level_of_moduli,
    largest_level_of_powers,
)
from .interior_point import Measure
from .newton import Equations, Level

# A coordinate group, singular value or multiplier below this share of its scale counts as zero
# when uniqueness is judged; the polished solutions are accurate to 1e-12 or better.
ZERO = 1e-8
# The rounding of a change of basis is at most this share of the largest group.
_BASIS_ROUNDING = 1e-12

#: Unknowns z, the level, and z, p, t -> equations, or None if these are not defined there.
Unknowns = tuple[np.ndarray, float, Callable[..., Equations | None]]


class AbstractGauge(abc.ABC):
    """A norm of vectors w (D,), as used by the programs; convex unless `is_convex` is False."""

    is_convex: bool = True

    @abc.abstractmethod
    def value(self, w: np.ndarray) -> float:
        """The gauge of w."""

    @abc.abstractmethod
    def solve(self, given: Constraints) -> ConicSolution:
        """The solution of the convex program by a conic solver."""

    @abc.abstractmethod
    def stationarity(self, w: np.ndarray, gradient: np.ndarray) -> float:
        """The distance of G = `gradient` from a subgradient at w (gauge 1), in the dual norm.

        Convex: |G - P(w + G)|, P the projection on the dual unit ball; zero iff G is a subgradient.
        """

    @abc.abstractmethod
    def dual(self, gradient: np.ndarray) -> float:
        """The dual norm of a gradient."""

    @abc.abstractmethod
    def active(self, w: np.ndarray, gradient: np.ndarray, threshold: float | None) -> np.ndarray:
        """Mask of the coordinates to keep in the polish (groups, singular directions).

        Chosen by size with a `threshold`, else by strict complementarity.
        """

    @abc.abstractmethod
    def unknowns(
        self, start: Level, gradient: np.ndarray, active: np.ndarray, given: Constraints
    ) -> Unknowns:
        """Unknowns for `newton` next to the start, and their equations."""

    @property
    def measure(self) -> Measure | None:
        """The program of dense linear algebra that finds the optimum; None if only `solve` does."""
        return None

    def cleaned(self, w: np.ndarray) -> np.ndarray:
        """w without the rounding of a change of basis, if the gauge would amplify it."""
        return w

    def face(self, w: np.ndarray, gradient: np.ndarray) -> tuple[np.ndarray, bool]:
        """Directions (D, k) in which another optimum can lie, and strict complementarity (bool).

        Every optimum has the subgradient `gradient`. With k = 0 the optimum is unique.
        """
        return np.zeros((w.size, 0)), False

    def balanced(self, w: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Rows (n, K) and a target (K,) with rows^T p = target iff p are multipliers at w.

        None if there are many subgradients at w, or if they jump next to w.
        """
        return None


@dataclasses.dataclass(frozen=True)
class GroupGauge(AbstractGauge):
    """(sum_g |w_g|_2^power)^(1/power), power <= 1: `labels` (D,) is each coordinate's group."""

    labels: np.ndarray
    power: float = 1.0

    @property
    def is_convex(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the power is 1."""
        return self.power == 1

    @functools.cached_property
    def is_one_group(self) -> bool:
        """Whether all coordinates are one group, so that the gauge is the l2 norm."""
        return not self.labels.any()

    @functools.cached_property
    def _is_plain(self) -> bool:
        """Whether coordinate j is group j."""
        return bool((self.labels == np.arange(self.labels.size)).all())

    def group_norms(self, w: np.ndarray) -> np.ndarray:
        """|w_g|_2 of every group."""
        if self.is_one_group:
            return np.sqrt(w @ w)[None]
        if self._is_plain:
            return np.abs(w)
        return np.sqrt(np.bincount(self.labels, w**2))

    def value(self, w: np.ndarray) -> float:
        """The gauge of w."""
        sizes = self.group_norms(w)
        if self.power == 1:
            return float(sizes.sum())
        largest = max(sizes.max(), np.finfo(float).tiny)
        return float(largest * np.sum((sizes / largest) ** self.power) ** (1 / self.power))

    def cleaned(self, w: np.ndarray) -> np.ndarray:
        """w with zeros for the rounding of a change of basis, which a power < 1 would amplify."""
        if self.power == 1:
            return w
        sizes = self.group_norms(w)
        return np.where((sizes > _BASIS_ROUNDING * sizes.max())[self.labels], w, 0.0)

    @property
    def measure(self) -> Measure | None:
        """The sum of moduli if every coordinate is a group; the l2 norm if all are one group."""
        if self.power < 1:
            return None
        if self.is_one_group and self.labels.size > 1:
            return Measure.EUCLIDEAN
        alone = self._is_plain or np.bincount(self.labels).max() == 1
        return Measure.SUM if alone else None

    def solve(self, given: Constraints) -> ConicSolution:
        """The solution of the convex program; the power must be 1."""
        return largest_level_of_groups(given, self.labels)

    def dual(self, gradient: np.ndarray) -> float:
        """The dual norm, max_g |G_g|_2."""
        return float(self.group_norms(gradient).max())

    def stationarity(self, w: np.ndarray, gradient: np.ndarray) -> float:
        """As in `AbstractGauge`. Power < 1: there is no condition on groups that are zero.

        Source: Yun et al. 2021, Theorem 2.
        """
        if self.power < 1:
            sizes = self.group_norms(w)[self.labels]
            on = sizes > 0
            slope = sizes[on] ** (self.power - 2) * w[on]
            scale = np.maximum(1.0, sizes[on] ** (self.power - 1))
            return float(np.max(np.abs(gradient[on] - slope) / scale, initial=0.0))
        shifted = w + gradient
        radius = np.maximum(1.0, self.group_norms(shifted))
        # One radius for all coordinates, or one for each: then the labels need not be looked up.
        if not (self.is_one_group or self._is_plain):
            radius = radius[self.labels]
        return float(self.group_norms(gradient - shifted / radius).max())

    def active(self, w, gradient, threshold):
        """Groups that are not zero."""
        sizes = self.group_norms(w)
        if threshold is not None or self.power < 1:
            return sizes > (threshold or 0.0) * sizes.max()
        return sizes > 1.0 - self.group_norms(gradient)

    def unknowns(self, start, gradient, active, given) -> Unknowns:
        """The coordinates of the active groups.

        For a small power they are tiny at gauge 1 (k^(-1/power) for k equal ones). Therefore the
        unknowns are scaled so that the largest coordinate of the start is 1, and the gauge is kept
        at that of the scaled start.
        """
        q = self.power
        on = active[self.labels]
        inner = GroupGauge(np.unique(self.labels[on], return_inverse=True)[1], q)
        labels = inner.labels
        same = labels[:, None] == labels[None, :]
        size = 1.0 if q == 1 else 1.0 / np.max(np.abs(start.point[on]))
        x0, data = start.point[on] * size, given.rows[:, on]
        mass = float(np.sum(inner.group_norms(x0) ** q)) if q < 1 else 1.0
        move = np.eye(self.labels.size)[:, on]

        def equations(x, p, t):
            sizes = inner.group_norms(x)[labels]
            if not (sizes > 0).all():
                return None
            slope = sizes ** (q - 2) * x
            hessian = np.diag(sizes ** (q - 2))
            hessian += np.where(same, (q - 2) * np.outer(sizes ** (q - 4) * x, x), 0.0)
            return Equations(
                move @ x,
                move,
                np.append(data.T @ p - t * slope / mass, (x @ slope) / mass - 1.0),
                np.vstack([-t * hessian / mass, q * slope / mass]),
                np.vstack([data.T, np.zeros(len(p))]),
                np.append(-slope / mass, 0.0),
            )

        return x0, start.level * size, equations

    def shrunk(self, w: np.ndarray, size: float) -> np.ndarray:
        """argmin_u size gauge(u) + |u - w|^2 / 2: groups shortened by `size`; for power 1 only."""
        sizes = self.group_norms(w)[self.labels]
        return w * np.maximum(1.0 - size / np.where(sizes > 0, sizes, 1.0), 0.0)

    def face(self, w, gradient):
        """Every optimum has w_g = s_g G_g, s_g >= 0, where |G_g| = 1, and w_g = 0 elsewhere."""
        tight = np.flatnonzero(self.group_norms(gradient) >= 1.0 - ZERO)
        picks = np.where(self.labels[:, None] == tight, gradient[:, None], 0.0)
        sizes = self.group_norms(w)
        return picks, bool((sizes[tight] > ZERO * sizes.max()).all())

    def balanced(self, w, rows):
        """The conditions in the weights |w_g|^(q/2) of the balanced network with this w.

        So the conditions on small coordinates have the same small weight as in parameter space, and
        no threshold is needed to decide which coordinates are zero.
        """
        sizes = self.group_norms(w)[self.labels]
        on = sizes > 0
        safe = np.where(on, sizes, 1.0)
        root = safe ** (self.power / 2)
        target = np.where(on, root * w / safe, 0.0)
        return rows * np.where(on, sizes / root, 0.0), target


@dataclasses.dataclass(frozen=True)
class PowerGauge(AbstractGauge):
    """(sum_j |w_j|^power)^(1/power), 1 < power < infinity: smooth and strictly convex."""

    power: float

    @property
    def conjugate(self) -> float:
        """The power of the dual norm."""
        return self.power / (self.power - 1)

    def value(self, w: np.ndarray) -> float:
        """The gauge of w."""
        return _power_norm(w, self.power)

    def dual(self, gradient: np.ndarray) -> float:
        """The norm of the conjugate power."""
        return _power_norm(gradient, self.conjugate)

    def solve(self, given: Constraints) -> ConicSolution:
        """The solution of a program of power cones."""
        return largest_level_of_powers(given, self.power)

    def stationarity(self, w: np.ndarray, gradient: np.ndarray) -> float:
        """The distance of (w, G) from a pair of a point and its gradient, if one of the two moves.

        The gradient is |w|^(power - 1) sign w. For a power near 1 it jumps at zeros of w; for a
        power near infinity its inverse jumps at zeros of G. So the smaller distance is returned.
        """
        by_gradient = self.dual(gradient - _signed_power(w, self.power - 1))
        by_point = self.value(w - _signed_power(gradient, self.conjugate - 1))
        return min(by_gradient, by_point)

    def active(self, w, gradient, threshold):
        """A mask of all coordinates."""
        return np.ones(w.size, bool)

    def unknowns(self, start, gradient, active, given) -> Unknowns:
        """All coordinates. Their relation to the gradient is written as the smooth one of two maps.

        For power >= 2 this is the map from w to the gradient, below 2 its inverse.
        """
        q, dual, rows = self.power, self.conjugate, given.rows
        eye = np.eye(start.point.size)

        def above_two(w, p, t):
            slope = _signed_power(w, q - 1)
            curvature = (q - 1) * np.abs(w) ** (q - 2)
            return Equations(
                w,
                eye,
                np.append(rows.T @ p - t * slope, (w @ slope - 1.0) / q),
                np.vstack([-t * np.diag(curvature), slope]),
                np.vstack([rows.T, np.zeros(len(p))]),
                np.append(-slope, 0.0),
            )

        def below_two(w, p, t):
            g = rows.T @ p / t
            curvature = (dual - 1) * np.abs(g) ** (dual - 2)
            # sum |G|^dual = 1 is not imposed: it follows from <G, w> = 1, which the others imply.
            return Equations(
                w,
                eye,
                w - _signed_power(g, dual - 1),
                eye,
                -curvature[:, None] * rows.T / t,
                curvature * g / t,
            )

        return start.point, start.level, above_two if q >= 2 else below_two


@dataclasses.dataclass(frozen=True)
class MaxGauge(AbstractGauge):
    """max_j |w_j|: a linear program."""

    def value(self, w: np.ndarray) -> float:
        """The gauge of w."""
        return float(np.max(np.abs(w)))

    def dual(self, gradient: np.ndarray) -> float:
        """The l1 norm of the gradient."""
        return float(np.sum(np.abs(gradient)))

    @property
    def measure(self) -> Measure:
        """`Measure.LARGEST`: the dense program minimises the largest modulus."""
        return Measure.LARGEST

    def solve(self, given: Constraints) -> ConicSolution:
        """The solution of the linear program."""
        return largest_level_of_moduli(given)

    def stationarity(self, w: np.ndarray, gradient: np.ndarray) -> float:
        """|G - P(w + G)| as in `AbstractGauge`, in the l1 norm."""
        shifted = w + gradient
        sizes = on_simplex(np.abs(shifted))
        return float(np.sum(np.abs(gradient - np.sign(shifted) * sizes)))

    def active(self, w, gradient, threshold):
        """Coordinates of largest modulus."""
        if threshold is not None:
            return np.abs(w) >= 1.0 - threshold
        return np.abs(gradient) > 1.0 - np.abs(w)

    def unknowns(self, start, gradient, active, given) -> Unknowns:
        """The coordinates inside the bounds: the gradient is zero there."""
        inside = ~active
        fixed = np.where(active, np.sign(start.point + gradient), 0.0)
        move = np.eye(active.size)[:, inside]
        data = given.rows[:, inside]
        count = int(inside.sum())

        def equations(x, p, t):
            flat, zero = np.zeros((count, count)), np.zeros(count)
            return Equations(fixed + move @ x, move, data.T @ p, flat, data.T, zero)

        return start.point[inside], start.level, equations

    def face(self, w, gradient):
        """Every optimum has w_j = sign G_j where G_j is not zero."""
        loose = np.abs(gradient) <= ZERO * np.abs(gradient).max()
        return np.eye(w.size)[:, loose], bool((np.abs(w[loose]) < 1.0 - ZERO).all())


def on_simplex(sizes: np.ndarray) -> np.ndarray:
    """The nearest point of {s >= 0, sum s <= 1} to sizes >= 0 (Duchi et al. 2008)."""
    if sizes.sum() <= 1:
        return sizes
    ordered = np.sort(sizes)[::-1]
    excess = (np.cumsum(ordered) - 1) / np.arange(1, sizes.size + 1)
    return np.maximum(sizes - excess[np.flatnonzero(ordered > excess)[-1]], 0.0)


def _signed_power(values, exponent):
    return np.sign(values) * np.abs(values) ** exponent


def _power_norm(values, power):
    largest = max(np.max(np.abs(values), initial=0.0), np.finfo(float).tiny)
    return float(largest * np.sum((np.abs(values) / largest) ** power) ** (1 / power))

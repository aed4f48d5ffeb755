"""Minimise a gauge subject to linear constraints: solve, polish, then measure independently.

Shared by `max_margin` (rows @ rho >= 1) and `min_norm` (rows @ rho = targets).
"""

import dataclasses

import numpy as np

from .conic import Constraints
from .gauges import ZERO, AbstractGauge, GroupGauge
from .newton import Level, newton
from .vertex import dense_optima

# Polishing stops when a candidate's optimality conditions hold to this residual.
POLISHED = 1e-14
# KKT residuals: an optimum of dense linear algebra is accepted below the first, and polished below
# the second.
ACCURATE, _POLISHABLE = 1e-12, 1e-4
_THRESHOLDS = (None, 1e-3, 1e-5, 1e-7, 1e-9)
_REPAIRS = 8
_REWEIGHTINGS = 200


def optimum(gauge: AbstractGauge, given: Constraints) -> tuple[Level, float]:
    """The polished optimum of the convex program, and its KKT residual.

    If dense linear algebra finds it to rounding, no conic solver is called.
    """
    found = _dense_optimum(gauge, given)
    if found is not None:
        return found
    if _is_euclidean(gauge) and given.rows.shape[1] > given.rows.shape[0]:
        # One group: the optimum lies in the span of the rows, so n coordinates suffice.
        span, triangle = np.linalg.qr(given.rows.T)
        inner = GroupGauge(np.zeros(span.shape[1], int))
        found, residual = optimum(inner, dataclasses.replace(given, rows=triangle.T))
        return dataclasses.replace(found, point=span @ found.point), residual
    return polish(gauge, given, solve_level(gauge, given))


def _dense_optimum(gauge: AbstractGauge, given: Constraints) -> tuple[Level, float] | None:
    """The optimum by dense linear algebra, and its residual; None if it is not accurate."""
    if gauge.measure is None:
        return None
    level, residual = None, np.inf
    for level in dense_optima(given, gauge.measure):
        residual = level_residual(gauge, given, level)
        if residual <= ACCURATE:
            return level, residual
    if level is None or not residual <= _POLISHABLE:
        return None
    found = polish(gauge, given, level)
    return found if found[1] <= ACCURATE else None


def _is_euclidean(gauge: AbstractGauge) -> bool:
    return isinstance(gauge, GroupGauge) and gauge.is_one_group


def kkt_residual(
    gauge: AbstractGauge, given: Constraints, rho, multipliers, free: np.ndarray
) -> float:
    """The largest violation of the optimality conditions of min gauge(rho), dimensionless.

    Stationarity in units of the dual norm; feasibility relative to the targets; complementarity
    and signs of multipliers relative to the value (the sum of targets times multipliers).
    """
    value = gauge.value(rho)
    slack = given.reached(rho, free) - given.targets
    parts = [gauge.stationarity(rho / value, given.rows.T @ multipliers)]
    if free.size:
        # The sum that must vanish, relative to the size of its terms.
        scale = np.max(np.abs(given.free).T @ np.abs(multipliers))
        parts.append(np.max(np.abs(given.free.T @ multipliers)) / scale)
    if given.equality:
        parts.append(np.abs(slack).max() / np.abs(given.targets).max())
    else:
        parts.append(-(slack / given.targets).min())
        parts.append(np.abs(multipliers * slack).max() / value)
        parts.append(-(multipliers * given.targets).min() / value)
    # The maximum of an array keeps a NaN, which max() may lose. abs() turns a -0.0 into 0.0 for
    # printing.
    return abs(float(np.array(parts).max(initial=0.0)))


def solve_level(gauge: AbstractGauge, given: Constraints) -> Level:
    """The convex program's solution by Clarabel, scaled to gauge 1 and multipliers of sum 1."""
    raw = gauge.solve(given)
    size = gauge.value(raw.point)
    size = size if size > 0 else 1.0
    point, free = raw.point / size, raw.free / size
    targets = given.targets
    multipliers = raw.multipliers if given.equality else np.maximum(raw.multipliers, 0.0)
    total = targets @ multipliers
    multipliers = multipliers / total if total > 0 else multipliers
    reached = given.reached(point, free)
    mean = targets @ reached / (targets @ targets)
    level = mean if given.equality else np.min(reached / targets)
    return Level(point, free, float(level), multipliers)


def polish(gauge: AbstractGauge, given: Constraints, start: Level) -> tuple[Level, float]:
    """The start or the best of several active-set polishes of it, with its KKT residual.

    Each guess of the support gives a square system of optimality equations, which Newton's method
    solves to rounding. The independently measured residual decides which guess is taken.
    """
    best, best_residual = start, level_residual(gauge, given, start)
    if not start.level > 0:
        return best, best_residual
    gradient = given.rows.T @ start.multipliers / start.level
    slack = given.reached(start.point, start.free) - start.level * given.targets
    mass = start.multipliers * given.targets
    for threshold in _THRESHOLDS:
        active = gauge.active(start.point, gradient, threshold)
        if given.equality:
            tight = np.ones(len(mass), bool)
        elif threshold is None:
            tight = mass > slack
        else:
            tight = mass > threshold * mass.max()
        for _ in range(_REPAIRS):
            if not (tight.any() and active.any()):
                break
            begin = dataclasses.replace(start, multipliers=start.multipliers[tight])
            found = newton(gauge, given.tight(tight), begin, active)
            if found is None or not found.level > 0:
                break
            candidate = _assemble(gauge, given, found, tight)
            residual = level_residual(gauge, given, candidate)
            if residual < best_residual:
                best, best_residual = candidate, residual
            if given.equality or best_residual <= POLISHED:
                break
            negative = np.zeros_like(tight)
            negative[tight] = found.multipliers < 0
            limit = found.level * given.targets * (1 - 1e-12)
            violated = given.reached(found.point, found.free) < limit
            repaired = (tight & ~negative) | (violated & ~tight)
            if (repaired == tight).all():
                break
            tight = repaired
        if best_residual <= POLISHED:
            break
    return best, best_residual


def level_residual(gauge: AbstractGauge, given: Constraints, at: Level) -> float:
    """The KKT residual of w / level with multipliers p / level; inf without a positive level."""
    if not at.level > 0:
        return np.inf
    t = at.level
    return kkt_residual(gauge, given, at.point / t, at.multipliers / t, at.free / t)


def is_unique(gauge: AbstractGauge, given: Constraints, at: Level) -> bool | None:
    """Whether the optimum is unique; None if that would take too long to decide.

    It is unique if no direction of the gauge's face is in the kernel of the binding rows.
    """
    if not gauge.is_convex:
        return None
    if _is_euclidean(gauge) and not given.free.size:
        return True  # the ball is strictly convex
    gradient = given.rows.T @ at.multipliers / at.level
    picks, strict = gauge.face(at.point, gradient)
    if picks.shape[1] + given.free.shape[1] == 0:
        return True
    moves = np.hstack([given.rows @ picks, given.free])
    mass = np.abs(at.multipliers * given.targets)
    binding = np.ones(len(mass), bool) if given.equality else mass > ZERO * mass.max()
    singular = np.linalg.svd(moves[binding], compute_uv=False)
    if singular.size == moves.shape[1] and singular[-1] > ZERO * singular[0]:
        return True
    slack = given.reached(at.point, at.free) - at.level * given.targets
    loose = slack > ZERO * at.level * given.targets
    # With strict complementarity a small move along the kernel is another optimum.
    return False if strict and (binding | loose).all() else None


def reweighted(
    gauge: GroupGauge, given: Constraints, start: np.ndarray, free: np.ndarray
) -> tuple[Level, float] | None:
    """A stationary point for a power below 1, from `start`, and its KKT residual.

    Iteratively reweighted l1 (Candes, Wakin & Boyd 2008) without smoothing: the concave power is
    replaced by its tangent, so the quasi-norm never grows, and zeros stay zero. Some point on the
    support of the start must satisfy the constraints; the caller checks this. None if no such
    point is found in float64.
    """
    point = gauge.cleaned(start)
    size = gauge.value(point)
    point = point / size
    kept = _near_stationary(gauge, given, point, free / size)
    if kept is not None:
        return kept
    current = None
    for _ in range(_REWEIGHTINGS):
        sizes = gauge.group_norms(point)[gauge.labels]
        on = sizes > 0
        # Relative to the largest coordinate: for a small power all coordinates at gauge 1 are tiny.
        stretch = (sizes[on] / sizes.max()) ** (1 - gauge.power)
        convex = GroupGauge(np.unique(gauge.labels[on], return_inverse=True)[1])
        stretched = dataclasses.replace(given, rows=given.rows[:, on] * stretch)
        solved = solve_level(convex, stretched)
        if not solved.level > 1e-12 * np.abs(given.rows).max():
            break
        # The solver leaves tiny entries, which a power < 1 amplifies. The polish makes them zero.
        solved, _ = polish(convex, stretched, solved)
        moved = np.zeros_like(point)
        moved[on] = stretch * solved.point
        moved = gauge.cleaned(moved)
        size = gauge.value(moved)
        change = np.max(np.abs(moved / size - point)) / np.max(np.abs(point))
        point = moved / size
        current = Level(point, solved.free / size, solved.level / size, solved.multipliers)
        if change < 1e-10:
            break
    return None if current is None else polish(gauge, given, current)


def _near_stationary(gauge, given, point, free):
    """The stationary point within 1e-3 of `point`; None if there is none."""
    reached, targets = given.reached(point, free), given.targets
    if given.equality:
        level, tight = float(targets @ reached / (targets @ targets)), np.ones(len(targets), bool)
    else:
        level = float(np.min(reached / targets))
        tight = reached / targets <= level * (1 + 1e-3)
    if not level > 0:
        return None
    sizes = gauge.group_norms(point)[gauge.labels]
    on = sizes > 0
    slope = level * sizes[on] ** (gauge.power - 2) * point[on]
    multipliers = np.zeros(len(targets))
    conditions = np.vstack([given.rows[tight][:, on].T, given.free[tight].T])
    right = np.append(slope, np.zeros(given.free.shape[1]))
    multipliers[tight] = np.linalg.lstsq(conditions, right, rcond=None)[0]
    begin = Level(point, free, level, multipliers)
    if level_residual(gauge, given, begin) > 1e-3:
        return None
    found, residual = polish(gauge, given, begin)
    near = np.max(np.abs(found.point - point)) <= 1e-3 * np.max(np.abs(point))
    return (found, residual) if near and residual <= 1e-9 else None


def _assemble(gauge, given, found: Level, tight) -> Level:
    """A Newton result as a Level, exactly of gauge 1, with clipped multipliers."""
    multipliers = np.zeros(len(tight))
    multipliers[tight] = found.multipliers if given.equality else np.maximum(found.multipliers, 0.0)
    size = gauge.value(found.point)
    size = size if size > 0 else 1.0
    return Level(found.point / size, found.free / size, found.level / size, multipliers)

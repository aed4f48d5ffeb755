"""Minimise a gauge subject to linear constraints: solve, polish, then measure independently.

Shared by `max_margin` (rows @ rho >= 1) and `min_norm` (rows @ rho = targets).
"""

import dataclasses

import numpy as np

from ...messages import in_words
from .gauges import Gauge, GroupGauge, NuclearGauge
from .norms import AbstractGroupNorm, AbstractNorm, GroupForm, NuclearNorm

# Polishing stops when a candidate's optimality conditions hold to this residual.
_POLISHED = 1e-14
_THRESHOLDS = (None, 1e-3, 1e-5, 1e-7, 1e-9)
_REPAIRS = 8
_REWEIGHTINGS = 200


@dataclasses.dataclass(frozen=True)
class Level:
    """w of gauge 1 with rows @ w >= level targets; multipliers p with targets^T p = 1."""

    point: np.ndarray
    level: float
    multipliers: np.ndarray


def coordinates_of(
    norm: AbstractNorm, shape: tuple[int, ...], owner: str
) -> tuple[Gauge, GroupForm]:
    """The norm as a gauge, and the coordinates in which it is one."""
    if isinstance(norm, NuclearNorm):
        if len(shape) != 2:
            raise ValueError(
                f"{owner}: NuclearNorm() needs coefficients that are matrices, got shape {shape}; "
                "use it with matrix sensors (n, d, d) or several outputs, or choose another norm."
            )
        size = shape[0] * shape[1]
        return NuclearGauge(shape), GroupForm(None, np.ones(size), np.zeros(size, int))
    if isinstance(norm, AbstractGroupNorm):
        form = norm.group_form(shape)
        return GroupGauge(form.labels, form.power), form
    raise ValueError(
        f"{owner}: norm must be a norm object such as lintensor_jax.L1Norm(), got "
        f"{in_words(norm)}; "
        "the norms are in lintensor_jax.theory.least_norm.norms."
    )


def optimum(gauge: Gauge, rows, targets, equality: bool) -> tuple[Level, float]:
    """The polished optimum of the convex program, and its KKT residual."""
    if isinstance(gauge, GroupGauge) and gauge.labels.max() == 0 and rows.shape[1] > rows.shape[0]:
        # One group: the optimum lies in the span of the rows, so n coordinates suffice.
        span, triangle = np.linalg.qr(rows.T)
        inner = GroupGauge(np.zeros(span.shape[1], int))
        found, residual = optimum(inner, triangle.T, targets, equality)
        return dataclasses.replace(found, point=span @ found.point), residual
    solved = solve_level(gauge, rows, targets, equality)
    return polish(gauge, rows, targets, solved, equality)


def kkt_residual(gauge, rows, targets, rho, multipliers, equality) -> float:
    """The largest violation of the optimality conditions of min gauge(rho), dimensionless.

    Stationarity in units of the dual norm; feasibility relative to the targets; complementarity
    and signs of multipliers relative to the value (the sum of targets times multipliers).
    """
    value = gauge.value(rho)
    slack = rows @ rho - targets
    parts = [gauge.stationarity(rho / value, rows.T @ multipliers)]
    if equality:
        parts.append(np.max(np.abs(slack)) / np.max(np.abs(targets)))
    else:
        parts.append(np.max(-slack / targets))
        parts.append(np.max(np.abs(multipliers * slack)) / value)
        parts.append(np.max(-multipliers * targets) / value)
    return float(max(0.0, *parts))


def solve_level(gauge: Gauge, rows, targets, equality: bool) -> Level:
    """The convex program's solution by Clarabel, scaled to gauge 1 and multipliers of sum 1."""
    raw = gauge.solve(rows, targets, equality)
    size = gauge.value(raw.point)
    point = raw.point / size if size > 0 else raw.point
    multipliers = raw.multipliers if equality else np.maximum(raw.multipliers, 0.0)
    total = targets @ multipliers
    multipliers = multipliers / total if total > 0 else multipliers
    reached = rows @ point
    level = (
        float(targets @ reached / (targets @ targets)) if equality else np.min(reached / targets)
    )
    return Level(point, float(level), multipliers)


def polish(gauge: Gauge, rows, targets, start: Level, equality: bool) -> tuple[Level, float]:
    """The start or the best of several active-set polishes of it, with its KKT residual.

    Each guess of the support gives a square system of optimality equations, solved by Newton to
    rounding; which guess is right is for the independently measured residual to say.
    """
    best, best_residual = start, level_residual(gauge, rows, targets, start, equality)
    if not start.level > 0:
        return best, best_residual
    gradient = rows.T @ start.multipliers / start.level
    for threshold in _THRESHOLDS:
        active = gauge.active(start.point, gradient, threshold)
        slack = rows @ start.point - start.level * targets
        mass = start.multipliers * targets
        if equality:
            tight = np.ones(rows.shape[0], bool)
        elif threshold is None:
            tight = mass > slack
        else:
            tight = mass > threshold * mass.max()
        for _ in range(_REPAIRS):
            if not (tight.any() and active.any()):
                break
            found = gauge.newton(
                rows[tight],
                targets[tight],
                start.point,
                start.level,
                start.multipliers[tight],
                active,
            )
            if found is None or not found[1] > 0:
                break
            candidate = _assemble(gauge, rows, targets, found, tight, equality)
            residual = level_residual(gauge, rows, targets, candidate, equality)
            if residual < best_residual:
                best, best_residual = candidate, residual
            if equality or best_residual <= _POLISHED:
                break
            negative = np.zeros_like(tight)
            negative[tight] = found[2] < 0
            violated = rows @ found[0] < found[1] * targets * (1 - 1e-12)
            repaired = (tight & ~negative) | (violated & ~tight)
            if (repaired == tight).all():
                break
            tight = repaired
        if best_residual <= _POLISHED:
            break
    return best, best_residual


def level_residual(gauge, rows, targets, at: Level, equality) -> float:
    """The KKT residual of w / level with multipliers p / level; inf without a positive level."""
    if not at.level > 0:
        return np.inf
    return kkt_residual(
        gauge, rows, targets, at.point / at.level, at.multipliers / at.level, equality
    )


def reweighted(
    gauge: GroupGauge, rows, targets, start: np.ndarray, equality: bool
) -> tuple[Level, float] | None:
    """A stationary point for a power below 1, from `start`, and its KKT residual.

    Iteratively reweighted l1 (Candes, Wakin & Boyd 2008) without smoothing: the concave power is
    replaced by its tangent, so the quasi-norm never grows, and zeros stay zero. The
    constraints must be met by some point on the support of the start: this is for the caller to
    decide. None if no such point is found in float64.
    """
    point = gauge.cleaned(start)
    point = point / gauge.value(point)
    kept = _near_stationary(gauge, rows, targets, point, equality)
    if kept is not None:
        return kept
    current = None
    for _ in range(_REWEIGHTINGS):
        sizes = gauge.group_norms(point)[gauge.labels]
        on = sizes > 0
        # Relative to the largest coordinate: for a small power all coordinates at gauge 1 are tiny.
        stretch = (sizes[on] / sizes.max()) ** (1 - gauge.power)
        convex = GroupGauge(np.unique(gauge.labels[on], return_inverse=True)[1])
        stretched = rows[:, on] * stretch
        solved = solve_level(convex, stretched, targets, equality)
        if not solved.level > 1e-12 * np.abs(rows).max():
            break
        # The polish makes zeros exact. The solver leaves tiny entries, which a power < 1 amplifies.
        solved, _ = polish(convex, stretched, targets, solved, equality)
        moved = np.zeros_like(point)
        moved[on] = stretch * solved.point
        moved = gauge.cleaned(moved)
        size = gauge.value(moved)
        change = np.max(np.abs(moved / size - point))
        point = moved / size
        current = Level(point, solved.level / size, solved.multipliers)
        if change < 1e-10:
            break
    return None if current is None else polish(gauge, rows, targets, current, equality)


def _near_stationary(gauge, rows, targets, point, equality):
    """The stationary point within 1e-3 of `point`; None if there is none."""
    reached = rows @ point
    if equality:
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
    multipliers[tight] = np.linalg.lstsq(rows[tight][:, on].T, slope, rcond=None)[0]
    begin = Level(point, level, multipliers)
    if level_residual(gauge, rows, targets, begin, equality) > 1e-3:
        return None
    found, residual = polish(gauge, rows, targets, begin, equality)
    near = np.max(np.abs(found.point - point)) <= 1e-3 and residual <= 1e-9
    return (found, residual) if near else None


def _assemble(gauge, rows, targets, found, tight, equality) -> Level:
    """A Newton result as a Level, exactly of gauge 1, with clipped multipliers."""
    point, level, part = found
    multipliers = np.zeros(rows.shape[0])
    multipliers[tight] = part if equality else np.maximum(part, 0.0)
    size = gauge.value(point)
    size = size if size > 0 else 1.0
    return Level(point / size, level / size, multipliers)

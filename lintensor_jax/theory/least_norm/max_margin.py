"""Maximum margins: min |z| subject to y_i <x_i, z> >= 1, and whether such a z exists.

The limits in direction of gradient flow on separable data: Gunasekar et al. 2018, Theorems 1-4;
Yun et al. 2021, Theorem 2 and Corollaries 1 to 3; Ji & Telgarsky 2019, Theorem 2.8.
"""

import contextlib
import functools
import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float

from ...arguments import as_numbers
from ...messages import as_html, nonzero_entries, optimum_status, shown
from .conic import Constraints
from .gauge_programs import ACCURATE, POLISHED, is_unique, kkt_residual, optimum, reweighted
from .gauges import GroupGauge
from .interior_point import Measure
from .least_distance import least_distance
from .newton import Level
from .norms import AbstractNorm, L2Norm, gauge_of
from .signed_rows import SignedRows
from .zero_combination import sharpened, zero_combination

_EPS = float(np.finfo(float).eps)
_OPTIMAL = 1e-8
_LARGEST_RESIDUAL = 1e-4


class NonSeparableError(ValueError):
    """The data are not linearly separable.

    `.certificate`, shape (n,): weights p >= 0 with sum 1 and sum_i p_i y_i x_i = 0 up to
    `.residual` = |sum_i p_i z_i|_2 / sum_i p_i |z_i|_2.
    """

    def __init__(self, message: str, certificate: Array, residual: float):
        super().__init__(message)
        self.certificate = certificate
        self.residual = residual


class MarginPrecisionError(ValueError):
    """The margin is too small, relative to the data, for a decision in float64."""


class Separability(eqx.Module):
    """Answer of `is_separable`."""

    separable: bool = eqx.field(static=True)
    #: The l2 margin max_w min_i y_i <x_i, w> / |w|_2, in the units of X; 0 if not separable.
    margin: Float[Array, ""]
    #: Separable: the unit maximum-margin vector, of the coefficients' shape. Else: (n,) weights
    #: p >= 0 with sum 1 and sum_i p_i y_i x_i = 0.
    certificate: Float[Array, "..."]
    #: Separable: the KKT residual of the margin. Else: |sum_i p_i z_i| / sum_i p_i |z_i|.
    residual: Float[Array, ""]

    def __str__(self) -> str:
        """The answer with its certificate."""
        certificate = shown(self.certificate)
        if self.separable:
            lines = [
                "Linearly separable, through the origin",
                f"  l2 margin        {float(self.margin):.6g}",
                f"  separator        {certificate}",
                f"  KKT residual     {float(self.residual):.1e}",
            ]
        else:
            lines = [
                "Not linearly separable through the origin: a convex combination of the y_i x_i "
                "is zero",
                f"  weights          {certificate}",
                f"  samples in it    {int(np.sum(np.asarray(self.certificate) > 0))} of "
                f"{self.certificate.size}",
                f"  residual         {float(self.residual):.1e}",
            ]
        return "\n".join(lines)


class MaxMargin(eqx.Module):
    """Answer of `max_margin`: z = argmin |z| subject to y_i <x_i, z> >= 1."""

    #: z, in units of 1 / X.
    coefficients: Float[Array, "..."]
    #: z / |z|_2.
    direction: Float[Array, "..."]
    #: The margin in this norm, 1 / |z| = max_w min_i y_i <x_i, w> / |w|, in the units of X.
    margin: Float[Array, ""]
    #: nu >= 0, of the margins' shape, (n,) or (n, m - 1): sum_i nu_i y_i x_i is a subgradient of
    #: the norm at z, sum nu = |z|.
    multipliers: Float[Array, "..."]
    #: True for margins that are 1 (tight), of the same shape.
    support: Bool[Array, "..."]
    #: The largest violation of the optimality conditions by (z, nu), dimensionless: stationarity
    #: in units of the dual norm, 1 - y_i <x_i, z>, and nu_i |1 - y_i <x_i, z>| / |z|.
    kkt_residual: Float[Array, ""]
    #: "optimal"; "stationary" for a quasi-norm (no claim of optimality); "inaccurate" if the
    #: KKT residual is above 1e-8.
    status: str = eqx.field(static=True)
    #: Whether z is the only minimiser: True, False, or None if that would take too long to decide.
    unique: bool | None = eqx.field(static=True)

    def __str__(self) -> str:
        """Status, margin, direction, support samples, optimality conditions."""
        lines = [
            f"Maximum-margin separator{optimum_status(self.status, self.unique)}",
            f"  margin           {float(self.margin):.6g}",
            f"  direction        {shown(self.direction)}",
            f"  nonzero entries  {nonzero_entries(self.direction)}",
            f"  support samples  {int(np.sum(self.support))} of {self.support.size}",
            f"  KKT residual     {float(self.kkt_residual):.1e}",
        ]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """The text of `__str__` as HTML, for notebooks."""
        return as_html(self)


def max_margin(problem, norm: AbstractNorm, *, start: ArrayLike | None = None) -> MaxMargin:
    """The separator of least norm, min |z| subject to y_i <x_i, z> >= 1 for all i.

    Sources: Gunasekar et al. 2018, eq. 8 and Theorems 1, 2, 2a; Yun et al. 2021, Corollaries 1
    to 3. Computed in float64 on the host, for data of any scale.

    **Arguments**

    - `problem`: a `Classification` or `MulticlassClassification`, or any object whose `signed_data`
      holds the rows y_i x_i, shape (n, d), or (n, d, m) for coefficients that are matrices.
      Concrete arrays. With `bias=True` no norm counts the last coefficient.
    - `norm`: a norm object: `L2Norm`, `WeightedL2Norm`, `L1Norm`, `LInfNorm`, `LpNorm`,
      `FourierL1Norm`, and for matrices `L21Norm`, `NuclearNorm`, `SpectralNorm`. For `LpNorm` and
      `FourierLpNorm` with p < 1 (not convex) the answer is a *stationary* point, reached from
      `start` by iteratively reweighted l1.
    - `start`: coefficients that separate the data, by margins above 8 eps sqrt(D) |x_i| |start|;
      only for p < 1. If a stationary point is next to the start, it is the answer. Coordinates that
      are zero in the start stay zero; a coordinate (of the norm) counts as zero below 1e-12 of the
      largest one. Default: the l2 solution.

    **Raises** `NonSeparableError` (a ValueError, with the certificate) if no z exists;
    `MarginPrecisionError` (a ValueError) if the margin is below what float64 can resolve;
    ValueError for a start or a norm that does not fit.
    """
    data = SignedRows.of(problem, "max_margin")
    gauge, form = gauge_of(norm, data.shape, "max_margin")
    if gauge.is_convex and start is not None:
        raise ValueError(
            f"max_margin: start must be left out for the convex {type(norm).__name__}, got an "
            "array; its minimum does not depend on a start."
        )
    measured = form.measurements(data.counted)
    given, lengths = _normalised(measured, data)
    in_users_units = functools.partial(_answer, data, gauge, form, measured, lengths)
    found = None
    if gauge.measure is Measure.EUCLIDEAN:
        found = _by_least_distance(given, in_users_units)
    if found is None or not found.residual <= ACCURATE:
        try:
            if gauge.is_convex:
                level, _ = optimum(gauge, given)
            else:
                level = _stationary_level(given, gauge, form, start, data)
        except ArithmeticError:  # the solver failed, as it may on data that are not separable
            unit = np.hstack([given.rows, given.free])
            with contextlib.suppress(MarginPrecisionError):
                _require_separating(given, None, zero_combination(unit) * given.targets, data)
            raise
        _require_separating(given, level, level.multipliers * given.targets, data)
        found = _better(found, in_users_units(level))
    if found.residual > _LARGEST_RESIDUAL:
        raise MarginPrecisionError(
            "max_margin: the margin must be resolvable in float64, got a KKT residual of "
            f"{found.residual:.1e} at margin {found.level.level:.1e} relative to the data's norm; "
            "remove the (nearly) contradictory samples or rescale the columns of X."
        )
    if found.residual > _OPTIMAL:
        return _as_max_margin(found, data, lengths, "inaccurate", None)
    status = "optimal" if gauge.is_convex else "stationary"
    return _as_max_margin(found, data, lengths, status, is_unique(gauge, given, found.level))


class _Answer(NamedTuple):
    """A level, the same in the user's units as z, c and multipliers, and their KKT residual."""

    level: Level
    z: np.ndarray
    c: np.ndarray
    multipliers: np.ndarray
    residual: float


def _answer(data: SignedRows, gauge, form, measured, lengths, level: Level) -> _Answer:
    """The level in the user's units; `measured`: the rows in the coordinates of the gauge."""
    scale = lengths.min()
    z, c = form.coefficients(level.point / level.level / scale), level.free / level.level / scale
    multipliers = level.multipliers / level.level / lengths
    # The residual is measured for the returned values, in the user's units up to a common factor,
    # which avoids underflow.
    rho = gauge.cleaned(form.coordinates(z) * scale)
    ones = np.ones(len(measured))
    users = Constraints.of(measured / scale, ones, False, data.free / scale)
    residual = kkt_residual(gauge, users, rho, multipliers * scale, c * scale)
    return _Answer(level, z, c, multipliers, residual)


def _by_least_distance(given: Constraints, in_users_units) -> _Answer | None:
    """The best answer of `least_distance`, or the first that is accurate to rounding."""
    best = None
    for level in least_distance(given):
        if _is_separating(given, level):
            best = _better(best, in_users_units(level))
            if best.residual <= POLISHED:
                break
    return best


def _better(first: _Answer | None, second: _Answer) -> _Answer:
    """The answer of the smaller residual; the second one if the first is missing or NaN."""
    return first if first is not None and first.residual <= second.residual else second


def _as_max_margin(found: _Answer, data: SignedRows, lengths, status, unique) -> MaxMargin:
    """The answer as a `MaxMargin` on JAX's device.

    For small data a quarter of the time of `max_margin` is the transfer of these arrays. One
    `jax.device_put` of all takes 1.15 times as long. JAX makes the module from its leaves, without
    Equinox's checks of each field, which take time as well.
    """
    beta, shape = data.coefficients(found.z, found.c), data.margins_shape
    tight = np.abs(data.margins(found.z, found.c) - 1) <= max(1e-9, 100 * found.residual)
    margin, multipliers = found.level.level * lengths.min(), found.multipliers.reshape(shape)
    arrays = (beta, _unit(beta), margin, multipliers, found.residual)
    *leaves, residual = (jnp.asarray(np.asarray(array, data.dtype)) for array in arrays)
    support = jnp.asarray(tight.reshape(shape))
    return jax.tree.unflatten(_structure(status, unique), (*leaves, support, residual))


@functools.cache
def _structure(status, unique):
    """The tree structure of a `MaxMargin`; its leaves are in the order of the fields."""
    return jax.tree.structure(MaxMargin(*[jnp.zeros(())] * 6, status=status, unique=unique))


def is_separable(problem) -> Separability:
    """Whether some w has y_i <x_i, w> > 0 for all i, with a certificate in both cases.

    By Gordan's theorem exactly one of two things exists: such a w, or weights p >= 0 with sum 1
    and sum_i p_i y_i x_i = 0. The separating plane passes through the origin, unless the problem
    has `bias=True`.

    **Arguments**

    - `problem`: a `Classification`, or any object with `signed_data`; concrete arrays.

    **Raises** `MarginPrecisionError` (a ValueError) if float64 can decide neither.
    """
    dtype = SignedRows.of(problem, "is_separable").dtype
    try:
        found = max_margin(problem, L2Norm())
    except NonSeparableError as error:
        zero, residual = jnp.zeros((), dtype), jnp.asarray(error.residual, dtype)
        return Separability(False, zero, error.certificate, residual)
    return Separability(True, found.margin, found.direction, found.kkt_residual)


def _stationary_level(given: Constraints, gauge, form, start, data: SignedRows) -> Level:
    """A stationary level of a quasi-norm, from the start or from the l2 solution."""
    one_group = GroupGauge(np.zeros_like(gauge.labels))
    euclidean, _ = optimum(one_group, given)
    if not _separates(given, euclidean.point, euclidean.free):
        return euclidean  # not separable: its multipliers are the certificate
    begin, free = euclidean.point, euclidean.free
    if start is not None:
        w, free = data.parts(_concrete_start(start, data.coefficient_shape))
        begin = gauge.cleaned(form.coordinates(w))
        if not _separates(given, begin, free):
            length = np.hypot(np.linalg.norm(begin), np.linalg.norm(free))
            worst = np.min(given.reached(begin, free)) / max(length, np.finfo(float).tiny)
            raise ValueError(
                "max_margin: start must separate the data, got a smallest normalised margin of "
                f"{worst:.3g} (limit {_doubt(given):.1e}); pass e.g. "
                "max_margin(problem, L2Norm()).coefficients."
            )
    found = reweighted(gauge, given, begin, free)
    if found is None:
        raise MarginPrecisionError(
            "max_margin: the margin on the nonzero coordinates of start must be resolvable in "
            "float64, and is not; pass a start with more nonzero coordinates."
        )
    return found[0]


def _doubt(given):
    """The largest value that rounding can give to a normalised margin that is exactly zero."""
    size = given.rows.shape[1] + given.free.shape[1]
    return 8 * _EPS * math.sqrt(size)


def _separates(given, point, free):
    """Whether all margins are positive by more than their rounding error."""
    length = math.sqrt(point @ point + free @ free)
    return given.reached(point, free).min() > _doubt(given) * length


def _is_separating(given: Constraints, level: Level | None) -> bool:
    return level is not None and level.level > 0 and _separates(given, level.point, level.free)


def _concrete_start(start, shape):
    given = as_numbers(start, "start", "max_margin")
    if jnp.iscomplexobj(given):
        raise ValueError(
            f"max_margin: start must be real, got dtype {given.dtype}; pass its parts."
        )
    array = np.asarray(start, np.float64)
    if array.shape != shape or not np.isfinite(array).all():
        raise ValueError(
            f"max_margin: start must be finite and of the coefficients' shape {shape}, got shape "
            f"{array.shape}; pass linear coefficients, not parameters."
        )
    return array


def _normalised(rows, data: SignedRows) -> tuple[Constraints, np.ndarray]:
    """Unit rows a_i with targets b_i = min |z| / |z_i|, and the lengths |z_i|.

    <z_i, w> >= 1 iff <a_i, min |z| w> >= b_i. Without this scaling the solver would treat short
    samples as negligible.
    """
    full = np.hstack([rows, data.free]) if data.free.size else rows
    largest = np.abs(full).max(axis=1)
    if not largest.all():
        zero = int(np.argmin(largest))
        sample = int(np.unravel_index(zero, data.margins_shape)[0])
        raise NonSeparableError(
            f"max_margin: the data must be separable, but sample {sample} is zero, and no vector "
            "has a positive margin on it; remove that sample.",
            jnp.asarray((np.arange(len(rows)) == zero).reshape(data.margins_shape), data.dtype),
            0.0,
        )
    # Without the division by the largest entry the squares may over- or underflow.
    full = full / largest[:, None]
    lengths = largest * np.sqrt(np.vecdot(full, full))
    unit, free = rows / lengths[:, None], data.free / lengths[:, None]
    return Constraints.of(unit, lengths.min() / lengths, False, free), lengths


def _require_separating(given: Constraints, level: Level | None, weights, data: SignedRows):
    """Raise unless the margins of the point are positive by more than their rounding error.

    `weights`: multipliers of the rows, of any scale. If the data are not separable, the combination
    of the rows with these weights is zero.
    """
    if _is_separating(given, level):
        return
    same, lengths = _normalised(data.counted, data)
    unit = np.hstack([same.rows, same.free])
    weights = sharpened(unit, weights * lengths)
    residual = float(np.linalg.norm(weights @ unit))
    # For contradictory data the residual is a rounding error. For data with a margin of 1e-13 it
    # is larger, and they are not contradictory.
    if residual > 16 * _EPS * np.sqrt(len(unit)):
        raise MarginPrecisionError(
            "max_margin: the margin must be resolvable in float64, but neither a separating vector "
            f"nor a certificate of non-separability was found (best combination: {residual:.1e} "
            "relative to the data); remove the (nearly) contradictory samples or rescale columns."
        )
    certificate = weights * (lengths.min() / lengths)
    certificate = (certificate / certificate.sum()).reshape(data.margins_shape)
    raise NonSeparableError(
        "max_margin: the data must be linearly separable, but a convex combination of the "
        f"y_i x_i is zero up to {residual:.1e} relative to their norms (weights in .certificate); "
        "remove contradictory samples, or pass bias=True to the problem if a bias is missing.",
        jnp.asarray(certificate, data.dtype),
        residual,
    )


def _unit(z):
    scaled = z / np.abs(z).max()
    return scaled / math.sqrt(np.vdot(scaled, scaled))

"""The direction of a classification flow at a *finite* loss (Moroshko et al. 2020).

The limits t -> infinity do not depend on the initial scale, but directions at a finite loss do. For
beta = u_+^D - u_-^D from u_+ = u_- = alpha in every coordinate and the exponential loss, the
direction at loss eps depends on mu = alpha^D / log(1/eps) only, up to O(1 / log(1/eps)). With
q_D = int h_D^-1, h_2(s) = 2 sinh s, h_D(s) = (1-s)^(-D/(D-2)) - (1+s)^(-D/(D-2)) for D >= 3
(Woodworth et al. 2020) it is near

    w(mu) = argmin sum_j mu q_D(w_j / mu)   subject to   y_i <x_i, w> >= 1                (program)

that is w = mu h_D(sum_i nu_i y_i x_i), nu >= 0, nu_i = 0 if the margin exceeds 1; mu -> 0 is the
l1 and mu -> infinity the l2 maximum margin. But nu_i of the flow, the integral of exp(-m_i), never
decreases. That of the program decreases when a sample leaves the support while mu decreases from
infinity (t = 0). From then on the flow keeps its accumulated nu_i:

    w = mu h_D(sum_i nu_i y_i x_i),  y_i <x_i, w> >= 1,  dnu_i >= 0, 0 for margins above 1   (path)

The two agree as long as no nu_i of the program decreases. Afterwards the distance of the flow from
the program does not tend to 0 with eps at fixed mu; its distance from the path does. All
computations run on the host, in float64.
"""

import math
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from ...networks import DifferentialDiagonalNetwork
from ...problems import Classification
from ..least_norm.max_margin import NonSeparableError, is_separable

# The barrier's weight tau is multiplied by the first until n tau is below the second times sum nu:
# that does not change the optimum, and the polish that follows needs only the right support.
_SHRINK, _LEAST_BARRIER = 0.1, 1e-13
_MOST_STEPS, _MOST_POLISH_STEPS = 60, 20
_LARGEST_RESIDUAL = 1e-6
# If a polished step of the path has a larger residual, its guess of the support was wrong.
_POLISHED = 1e-10
# The path starts at a mu for which w / mu is this small: there nu is that of the l2 problem / mu.
_LINEAR = 0.01
# The step of log mu. A sample leaves the support at the maximum of its nu_i, so that the error is
# of second order in the step: about 1e-4 in the direction.
_STRIDE = 0.1


class FiniteLossDirection(eqx.Module):
    """w = mu h_D(sum_i nu_i y_i x_i) with margins y_i <x_i, w> >= 1.

    - `coefficients` (d,): w, in units of 1/X; `direction` (d,): w / |w|_2.
    - `multipliers` (n,): nu >= 0.
    - `mu`, `depth`: as given, mu in the units of w.
    - `kkt_residual`: of the program: the largest of 1 - y_i <x_i, w> and
      nu_i |1 - y_i <x_i, w>| / sum nu; stationarity holds by construction. It is of the size of
      rounding for `interpolated_max_margin`. For a flow's prediction it measures the distance from
      the program, which is due to samples that have left the support.
    """

    coefficients: Float[Array, " d"]
    direction: Float[Array, " d"]
    multipliers: Float[Array, " n"]
    mu: float = eqx.field(static=True)
    depth: int = eqx.field(static=True)
    kkt_residual: float = eqx.field(static=True)


def interpolated_max_margin(problem: Classification, depth: int, mu: float) -> FiniteLossDirection:
    """Between the l1 and the l2 maximum margin: argmin sum_j mu q_D(w_j / mu), margins >= 1.

    **Arguments**

    - `problem`: a separable `Classification`, concrete; its loss is not used.
    - `depth`: D >= 2.
    - `mu`: positive, in the units of w (1/X).

    **Raises** `NonSeparableError` (a ValueError, with a certificate) if the data are not separable;
    ValueError for bad input, and if D >= 3 and mu is so small that 1 - s no longer resolves w.

    Source: Moroshko et al. 2020; Woodworth et al. 2020 for q_D.
    """
    rows, unit = _unit_rows(problem, depth, (mu,), "interpolated_max_margin")
    program = _Program(rows, depth, unit * float(mu), np.zeros(len(rows)))
    return _found(program, program.solve(), unit)


def finite_loss_path(
    problem: Classification, depth: int, mus: Sequence[float]
) -> tuple[FiniteLossDirection, ...]:
    """Directions of flows at mu = alpha^D / log(1/eps), for small eps; one for each of `mus`.

    The path of this module's docstring, in small steps of log mu down from the l2 solution: nu is
    the maximum of sum nu - mu sum_j q_D^*([Z^T nu]_j) over all nu that are at least those of the
    step before.

    Arguments and errors as `interpolated_max_margin`; `mus` in any order.

    Source: this package; Moroshko et al. 2020 for the limit as long as no nu_i decreases.
    """
    rows, unit = _unit_rows(problem, depth, mus, "finite_loss_path")
    floor = np.zeros(len(rows))
    start = max(1 / _LINEAR, 2 * unit * max(mus))
    last, found = math.log(start), {}
    growing = None
    for target in sorted({unit * float(mu) for mu in mus}, reverse=True):
        count = math.ceil((last - math.log(target)) / _STRIDE)
        for log_mu in np.linspace(last, math.log(target), count + 1)[1:]:
            program = _Program(rows, depth, math.exp(log_mu), floor)
            nu = program.solve(growing)
            growing = nu > floor
            floor = nu
        last = math.log(target)
        found[target] = _found(_Program(rows, depth, target, floor), floor, unit)
    return tuple(found[unit * float(mu)] for mu in mus)


def direction_at_loss(
    network: DifferentialDiagonalNetwork, problem: Classification, log_loss: float
) -> FiniteLossDirection:
    """The direction of the flow from `network` at loss exp(log_loss), up to O(1 / |log_loss|).

    `finite_loss_path` at mu = alpha^D / log(1/eps); beta itself is about `coefficients` times
    log(1/eps). eps is this package's loss, the *sum* over samples. Moroshko et al. 2020 take the
    mean: that adds log n to log(1/eps), which is of the order of the error. For mu < 1 (in units of
    w) the error is of the order of 1 / alpha^D.

    **Arguments**

    - `network`: the start, w_+ = w_- = alpha > 0 in every coordinate.
    - `problem`: a separable `Classification` with the exponential loss.
    - `log_loss`: natural logarithm of the loss, negative (`FlowSolution.log_loss`).

    **Raises** ValueError if one of these does not hold, and as `interpolated_max_margin`.
    """
    _require_problem(problem, "direction_at_loss")
    if not isinstance(network, DifferentialDiagonalNetwork):
        raise ValueError(
            "direction_at_loss: network must be a DifferentialDiagonalNetwork, got "
            f"{type(network).__name__}; the prediction is known for this model only."
        )
    if not problem.margin_loss.is_exponential:
        raise ValueError(
            "direction_at_loss: the loss must be ExponentialLoss(), got "
            f"{type(problem.margin_loss).__name__}; at small losses LogisticLoss() is the same."
        )
    if any(isinstance(leaf, Tracer) for leaf in (*jax.tree.leaves(network), log_loss)):
        raise ValueError("direction_at_loss works on concrete arrays and is not for jax.jit.")
    entries = np.concatenate([network.positive, network.negative]).astype(np.float64)
    alpha = float(entries[0])
    if not (alpha > 0 and np.allclose(entries, alpha, rtol=1e-6, atol=0)):
        raise ValueError(
            "direction_at_loss: network must start with all entries equal to one alpha > 0, got "
            f"entries from {entries.min():.6g} to {entries.max():.6g}; that is the case that the "
            "prediction covers."
        )
    if not -math.inf < float(log_loss) < 0:
        raise ValueError(
            f"direction_at_loss: log_loss must be negative and finite, got {log_loss!r}; at a loss "
            "of 1 or more the data need not even be separated."
        )
    log_mu = network.depth * math.log(alpha) - math.log(-float(log_loss))
    return finite_loss_path(problem, network.depth, (math.exp(log_mu),))[0]


class _Program:
    """max over nu >= floor of sum nu - mu sum_j q_D^*([Z^T nu]_j), where (q_D^*)' = h_D."""

    def __init__(self, rows: np.ndarray, depth: int, mu: float, floor: np.ndarray):
        self.rows, self.depth, self.mu, self.floor = rows, depth, mu, floor

    def slopes(self, nu: np.ndarray) -> np.ndarray:
        """s = Z^T nu, shape (d,)."""
        return nu @ self.rows

    def primal(self, nu: np.ndarray) -> np.ndarray:
        """w = mu h_D(s), without cancellation at small s."""
        s = self.slopes(nu)
        if self.depth == 2:
            return 2 * self.mu * np.sinh(s)
        p, z = self.depth / (self.depth - 2), np.arctanh(s)
        return 2 * self.mu * np.cosh(z) ** p * np.sinh(p * z)

    def hessian(self, nu: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """The Hessian of mu sum q_D^* in the multipliers of `rows`, at nu."""
        s = self.slopes(nu)
        if self.depth == 2:
            weights = 2 * self.mu * np.cosh(s)
        else:
            p = self.depth / (self.depth - 2)
            weights = self.mu * p * ((1 - s) ** (-p - 1) + (1 + s) ** (-p - 1))
        return (rows * weights) @ rows.T

    def contains(self, nu: np.ndarray) -> bool:
        """Whether h_D is finite at the slopes of nu."""
        return bool(np.abs(self.slopes(nu)).max() < (700 if self.depth == 2 else 1))

    def barrier(self, nu: np.ndarray, tau: float) -> float:
        """The objective at barrier weight tau; infinite outside the domain."""
        s, rise = self.slopes(nu), nu - self.floor
        if rise.min() <= 0 or not self.contains(nu):
            return math.inf
        if self.depth == 2:
            conjugate = 4 * np.sinh(s / 2) ** 2
        else:
            k, z = 2 / (self.depth - 2), np.arctanh(s)
            conjugate = 2 / k * np.expm1(k * _log_cosh(z) + _log_cosh(k * z))
        return float(self.mu * conjugate.sum() - nu.sum() - tau * np.log(rise).sum())

    def solve(self, support: np.ndarray | None = None) -> np.ndarray:
        """The maximiser nu. A correct guess `support` of nu > floor saves the barrier's steps."""
        if support is not None:
            nu = self._polished(self.floor, support)
            if self.residual(nu, nu - self.floor) <= _POLISHED:
                return nu
        n = len(self.rows)
        # The start is inside the domain, with w of order one.
        rise = np.full(n, 0.5 / np.abs(self.rows.sum(axis=0)).max())
        while not self.contains(self.floor + rise) or np.abs(self.primal(rise)).max() > 1:
            rise /= 2
        nu = self.floor + rise
        tau = float(rise[0]) * max(1.0, np.abs(self.rows @ self.primal(nu) - 1).max())
        while n * tau > _LEAST_BARRIER * nu.sum():
            nu = self._centred(nu, tau)
            tau *= _SHRINK
        slack = self.rows @ self.primal(nu) - 1
        polished = self._polished(nu, (nu - self.floor) / nu.max() > slack)
        return min(nu, polished, key=lambda v: self.residual(v, v - self.floor))

    def _centred(self, nu, tau):
        for _ in range(_MOST_STEPS):
            rise = nu - self.floor
            gradient = self.rows @ self.primal(nu) - 1 - tau / rise
            # The system is scaled by the rises: so the multipliers of all samples are comparable.
            hessian = rise[:, None] * self.hessian(nu, self.rows) * rise[None, :]
            step = -rise * np.linalg.solve(hessian + tau * np.eye(len(nu)), rise * gradient)
            decrement = float(-gradient @ step)
            if decrement <= 1e-2 * tau:
                break
            size, here = 1.0, self.barrier(nu, tau)
            while self.barrier(nu + size * step, tau) > here - 0.1 * size * decrement:
                size /= 2
                if size < 1e-12:  # below the rounding of the barrier
                    return nu
            nu = nu + size * step
        return nu

    def _polished(self, nu, support):
        """Newton's iteration for margins 1 on the support, with nu = floor elsewhere."""
        rows, nu = self.rows[support], np.where(support, nu, self.floor)
        for _ in range(_MOST_POLISH_STEPS):
            imbalance = rows @ self.primal(nu) - 1
            step = np.linalg.lstsq(self.hessian(nu, rows), imbalance, rcond=None)[0]
            trial = nu.copy()
            trial[support] -= step
            if not self.contains(trial):
                break
            nu = trial
            if np.abs(step).max(initial=0.0) <= 1e-15 * nu.max():
                break
        # A multiplier that stops growing may be below its floor by a rounding error.
        low = nu < self.floor
        return np.where(low & (nu > self.floor * (1 - 1e-14)), self.floor, nu)

    def residual(self, nu: np.ndarray, rise: np.ndarray) -> float:
        """Violation of the margins, of rise >= 0, and of rise_i = 0 where a margin exceeds 1."""
        slack = self.rows @ self.primal(nu) - 1
        complementarity = np.max(np.abs(rise * slack)) / nu.sum()
        return float(max(np.max(-slack), -rise.min() / nu.sum(), complementarity, 0.0))


def _found(program, nu, unit):
    own = program.residual(nu, nu - program.floor)
    if not own <= _LARGEST_RESIDUAL:
        raise ValueError(
            f"mu: {program.mu / unit:.3g} is out of float64's reach at depth {program.depth} (KKT "
            f"residual {own:.1e}); the limit of small mu is max_margin(problem, L1Norm()), that of "
            "large mu max_margin(problem, L2Norm())."
        )
    w = program.primal(nu) / unit
    return FiniteLossDirection(
        coefficients=jnp.asarray(w),
        direction=jnp.asarray(w / np.linalg.norm(w)),
        multipliers=jnp.asarray(nu / unit),
        mu=program.mu / unit,
        depth=int(program.depth),
        kkt_residual=program.residual(nu, nu),
    )


def _unit_rows(problem, depth, mus, owner):
    """The rows y_i x_i divided by their l2 margin, and this margin: w is then of order one."""
    _require_problem(problem, owner)
    if isinstance(depth, bool) or not isinstance(depth, int | np.integer) or depth < 2:
        raise ValueError(
            f"{owner}: depth must be a whole number >= 2, got {depth!r}; pass the network's "
            "`.depth`."
        )
    if len(mus) == 0:
        raise ValueError(f"{owner}: mus must hold at least one mu, got none; pass e.g. [1.0].")
    for mu in mus:
        if isinstance(mu, Tracer) or not 0 < float(mu) < math.inf:
            raise ValueError(
                f"{owner}: mu must be a positive finite number, got {mu!r}; take "
                "max_margin(problem, L1Norm()) for mu -> 0 and L2Norm() for mu -> infinity."
            )
    separable = is_separable(problem)
    if not separable.separable:
        raise NonSeparableError(
            f"{owner}: the data must be linearly separable, but a convex combination of the "
            "y_i x_i is zero (weights in .certificate); remove contradictory samples.",
            separable.certificate,
            float(separable.residual),
        )
    unit = float(separable.margin)
    return np.asarray(problem.signed_data, np.float64) / unit, unit


def _log_cosh(z):
    z = np.abs(z)
    small = np.log1p(2 * np.sinh(np.minimum(z, 1.0) / 2) ** 2)
    return np.where(z < 1, small, z + np.log1p(np.exp(-2 * z)) - math.log(2))


def _require_problem(problem: Any, owner: str):
    if not problem.has_margins:
        raise ValueError(
            f"{owner}: problem must be a Classification, got {type(problem).__name__}; "
            "differential_limit is for regression."
        )

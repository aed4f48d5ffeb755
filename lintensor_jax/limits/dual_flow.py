"""Two-layer classification flows at margins beyond floating point, in their dual variables.

A coordinate j off the support of the limit decays in the direction like margin^-(1 - |u_j|)/2. A
coordinate below the solver's tolerance needs as long to grow again. So at the largest margin of
float64, 1e8, a direction can be far from its limit, or still at a saddle. In the dual variables
every coordinate is kept by its logarithm, and an implicit Euler step is a convex problem without
stiffness (`dual_step`). A few dozen steps of geometrically growing size reach margin e^1000.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Inexact

from ..dynamics.reduced.mirror_coordinates import real_decomposition
from ..losses import ExponentialTail
from ..networks import ConvolutionalNetwork, scaled
from ..networks.pair import check_pair
from ..problems import Classification
from .dual_step import ComplexAngles, DualState, Potential, RealAngles, implicit_step, potential

# A step that Newton's method does not solve is repeated with this share of its size.
_SHRINK = 0.25
# A direction u = S sum_i p_i z_i counts as zero below this, in units of max |S z_i|.
_ZERO_DIRECTION = 1e-13
_EPS = float(np.finfo(np.float64).eps)
# Layers whose sum or difference is smaller than this, relatively, count as equal or opposite.
_TIED = 1e-12
# In one step the logarithm of a margin grows by this at most: then rounding of its terms is 1e-11.
_LARGEST_GROWTH = 2e4
# A direction is settled if it is constant over steps that multiply the margin by at least e^this.
_DECADES = 10.0
# The largest tolerance: a direction with a larger rounding error does not count as settled.
_COARSEST = 1e-6


class DirectionContinuation(eqx.Module):
    """The end of a dual flow in growing steps; `print` its `status`.

    - `direction` (d,): beta/|beta| at the end.
    - `network`: balanced two-layer factors of that direction, |eta_1| = |eta_2| = sqrt|rho|, with
      the signs and phases to which the flow tends; its smallest margin is 1.
    - `rho` (m,): the components of its beta = S^T rho in the network's orthogonal decomposition
      (for a convolution the inverse DFT of beta, complex).
    - `dual` (n,): the last step's weights p on the simplex: multipliers of the samples, scaled.
    - `log_margins` (num_steps + 1,): log of the smallest margin at the start and after each step,
      -inf if it is not positive.
    - `length`: the growth of |nu|_1, in which dnu/dlength = p.
    - `gap`: max_j |[S sum_i p_i z_i]_j| over the smallest margin of beta with |rho|_1 = 1, minus 1:
      the relative duality gap, 0 at the maximum margin only. inf without a positive margin.
    - `num_steps`, `num_iterations` (of Newton's method, in all steps).
    - `settled`: the direction is constant, and `gap` is zero, both within the tolerance.
    - `status`: the outcome in words.
    """

    direction: Float[Array, " d"]
    network: Any
    rho: Inexact[Array, " m"]
    dual: Float[Array, " n"]
    log_margins: Float[Array, " steps"]
    length: float = eqx.field(static=True)
    gap: float = eqx.field(static=True)
    num_steps: int = eqx.field(static=True)
    num_iterations: int = eqx.field(static=True)
    settled: bool = eqx.field(static=True)
    status: str = eqx.field(static=True)


def continue_direction(
    network: Any,
    problem: Classification,
    *,
    tolerance: float = 1e-10,
    max_log_margin: float = 1e5,
    first_step: float = 0.1,
    growth: float = 1.6,
    max_steps: int = 200,
) -> DirectionContinuation:
    """Follow the direction of a two-layer network's flow from its parameters on, to its limit.

    For two layers with an orthogonal decomposition the flow is dnu/dtau = p in n dual variables, p
    the softmax of minus the margins at nu. Implicit Euler steps nu + h p follow it from any start,
    separating or not, with coordinates of any size. If h grows geometrically, they reach margins of
    e^(10^5).

    * Real decompositions (diagonal, `OrthogonalNetwork`): the mirror map is exact, so the steps
      converge to the flow with first order. A coordinate that starts with |eta_1| = |eta_2| keeps
      its sign, and one that starts at zero stays zero, as in the flow.
    * Full-length convolutions: phases turn, and no mirror map exists. A step turns each frequency
      exactly by its mean force; the force is implicit in a convex model of the step. Small steps
      converge to the flow with first order too; growing steps converge to the limit.

    Large steps converge to the limit but do not resolve the path: the order in which competing
    samples or coordinates become dominant is lost. The limit does not depend on this order. It is
    the maximum margin in the l1 norm of rho (over the signs that each coordinate can take).

    **Arguments**

    - `network`: two layers, real numbers; its *current* parameters are the start.
    - `problem`: a `Classification`. Weights are those of the exponential loss, from which those of
      the logistic loss differ by a relative e^-margin.
    - `tolerance`: of the direction's last changes and of the relative duality gap. On nearly
      inseparable data it is enlarged to the rounding error, up to 1e-6.
    - `max_log_margin`: stop at this logarithm of the smallest margin.
    - `first_step`: in units of 1 / max |S z_i|: how far the largest angle turns.
    - `growth`: the ratio of consecutive step sizes; 1 for constant steps.

    **Raises** `AssumptionFails` or ValueError if there is no such dual flow, and ValueError for
    bad input. Not for `jax.jit`.

    Source: Yun et al. 2021, Theorem 2 and eq. (75); Gunasekar et al. 2018, Theorems 2 and 4.
    """
    _check(network, problem, tolerance, max_log_margin, first_step, growth, max_steps)
    Z, dtype = np.asarray(problem.signed_data, np.float64), network.factors[0].dtype
    form = dual_form(network, Z)
    state = _start(form)
    p = np.full(len(Z), 1 / len(Z))
    here = potential(state, 0 * p)
    beta = form.direction(here)
    size, length, num_iterations, num_still_steps, gap = first_step, 0.0, 0, 0, np.inf
    log_margins = [_log_margin(here)]
    status = f"not settled after {max_steps} steps"
    for _ in range(max_steps):
        step = implicit_step(state, p, size)
        if step is None:
            size *= _SHRINK
            continue
        p, here = step.weights, step.end
        state = state.advanced(size * p)
        num_iterations, length = num_iterations + step.num_iterations, length + size
        before, beta = beta, form.direction(here)
        log_margins.append(_log_margin(here))
        least, steepest = float(np.min(here.gradient)), state.steepest(p)
        if steepest < _ZERO_DIRECTION:
            status = "stopped: a convex combination of the samples pulls no coordinate"
            break
        gap = steepest / least - 1 if least > 0 else np.inf
        allowed = _allowed(tolerance, size, least)
        still = np.linalg.norm(beta - before) <= allowed and gap <= allowed
        num_still_steps = num_still_steps + 1 if still and least * size >= _DECADES else 0
        if num_still_steps == 2 or log_margins[-1] > max_log_margin:
            where = f"not settled at margin e^{log_margins[-1]:.3g}"
            status = "settled at the maximum margin" if num_still_steps == 2 else where
            break
        size *= growth
        size = max(min(size, _LARGEST_GROWTH / least), first_step) if least > 0 else size
    if not log_margins[-1] > -np.inf:
        status += "; a sample is misclassified: the data, or the start's signs, allow no more"
    end = _with_margin_one(form.network(state, here), Z)
    return DirectionContinuation(
        direction=jnp.asarray(beta, dtype),
        network=end,
        rho=jnp.asarray(form.components(end)),
        dual=jnp.asarray(p, dtype),
        log_margins=jnp.asarray(log_margins, dtype),
        length=length / form.unit,
        gap=gap,
        num_steps=len(log_margins) - 1,
        num_iterations=num_iterations,
        settled=num_still_steps == 2,
        status=status,
    )


def _start(form):
    """The dual state of the start; ValueError for the zero network, which has none."""
    if form.start.log_size == -np.inf:
        raise ValueError(
            "network: at least one coordinate must be nonzero, got zero throughout; the zero "
            "network never moves."
        )
    return form.start


def _allowed(tolerance, size, least):
    """The tolerance, enlarged to the effect of rounding the angles by a relative eps."""
    rounding = min(64 * _EPS * size / least, _COARSEST) if least > 0 else 0.0
    return max(tolerance, rounding)


def _with_margin_one(network, Z):
    """The network, scaled to a smallest margin of 1 if it separates the data."""
    smallest = float(np.min(Z @ np.asarray(network.linear_coefficients())))
    return scaled(network, smallest**-0.5) if smallest > 0 else network


def dual_form(network: Any, Z: np.ndarray) -> Any:
    """The two layers in the coordinates of their decomposition, with the rows Z (n, d).

    ValueError if there is no decomposition.
    """
    if isinstance(network, ConvolutionalNetwork) and network.is_full_length:
        return _Fourier(network, Z)
    return _Real(network, Z)


class _Real:
    """beta = S^T (eta_1 eta_2) with real eta_l = U_l^T v_l."""

    def __init__(self, network, Z):
        decomposition = real_decomposition(network)
        self.template = network
        self.S = np.asarray(decomposition.S, np.float64)
        self.bases = [np.asarray(u, np.float64) for u in decomposition.bases]
        first, second = self.layers(network)
        self.rows = rows = self.S @ Z.T
        self.unit = _unit(rows)
        with np.errstate(divide="ignore"):
            angles = RealAngles(np.log(np.abs(first + second)), np.log(np.abs(first - second)))
        self.signs = np.sign(first + second), np.sign(first - second)
        # Phi = 1/4 sum (eta_1^2 + eta_2^2): its slope by the angle is rho.
        weights = np.full(len(rows), -np.log(4.0))
        self.start = DualState(
            (angles,), (rows[:, None, :] / self.unit,), (weights,), float(np.log(self.unit))
        )

    def layers(self, network):
        factors = (np.asarray(v, np.float64) for v in network.factors)
        return tuple(u.T @ v for u, v in zip(self.bases, factors, strict=True))

    def direction(self, here: Potential):
        return _normalized(self.S.T @ here.shares[0][:, 0])

    def network(self, state: DualState, here: Potential):
        return self.with_components(here.shares[0][:, 0])

    def with_components(self, rho):
        """Balanced layers of this rho, with the signs to which a flow from the start turns them."""
        # After a turn by a large positive angle both layers are proportional to a + b, after one
        # by a negative angle to a - b.
        sign = np.where(rho > 0, *self.signs)
        etas = sign * np.sqrt(np.abs(rho)), sign * np.sign(rho) * np.sqrt(np.abs(rho))
        return _with_factors(
            self.template, [u @ eta for u, eta in zip(self.bases, etas, strict=True)]
        )

    def reaches(self, rho):
        """Whether a flow from the start can end at this rho."""
        return _reaches(rho, *self.layers(self.template))

    @property
    def rows_of_components(self):
        """The rows as functions of rho, shape (n, m)."""
        return self.rows.T

    def components(self, network):
        first, second = self.layers(network)
        return first * second


class _Fourier:
    """DFT(beta) = DFT(v_1) DFT(v_2), with p = DFT(v_1) and q = conj(DFT(v_2))."""

    def __init__(self, network, Z):
        self.template, d = network, network.dimension
        self.size = d
        rows = np.fft.rfft(Z, axis=1).T
        self.unit = _unit(rows)
        rows = rows / self.unit
        frequencies = np.arange(len(rows))
        self.single = 2 * frequencies % d == 0
        self.paired = ~self.single
        v, w = (np.fft.rfft(np.asarray(f, np.float64)) for f in network.filters)
        self.layers = v, w
        a, b = v[self.single].real, w[self.single].real
        with np.errstate(divide="ignore"):
            real = RealAngles(np.log(np.abs(a + b)), np.log(np.abs(a - b)))
        self.signs = np.sign(a + b), np.sign(a - b)
        v, w = v[self.paired], w[self.paired]
        turning = ComplexAngles(v, w.conj(), np.zeros(len(v))).turned(np.zeros((len(v), 2)))
        # Margins are 1/d sum_k Re(conj(DFT z) rho)_k, where pairs of frequencies count twice.
        counts = np.where(self.single, 1.0, 2.0)
        self.counts = counts
        weights = np.log(counts / (4 * d))
        parts = rows[self.single].real[:, None], rows[self.paired]
        turns = parts[0], np.stack([parts[1].real, parts[1].imag], axis=1)
        self.start = DualState(
            (real, turning),
            turns,
            (weights[self.single], weights[self.paired]),
            float(np.log(self.unit)),
        )

    def _rho(self, here: Potential):
        rho = np.zeros(len(self.single), complex)
        rho[self.single] = here.shares[0][:, 0]
        rho[self.paired] = here.shares[1] @ np.array([1, 1j])
        return rho / self.counts

    def direction(self, here: Potential):
        return _normalized(np.fft.irfft(self._rho(here), self.size))

    def network(self, state: DualState, here: Potential):
        turning: Any = state.angles[1]
        return self._with_phases(self._rho(here), turning.first)

    def with_components(self, rho):
        """Balanced filters of this rho, with the signs and the phases of the start."""
        turning: Any = self.start.angles[1]
        return self._with_phases(rho, turning.first)

    def _with_phases(self, rho, first):
        sign = np.zeros(len(rho), complex)
        sign[self.single] = np.where(rho[self.single].real > 0, *self.signs)
        sign[self.paired] = np.exp(1j * np.angle(first))
        size = np.sqrt(np.abs(rho))
        etas = sign * size, sign.conj() * np.exp(1j * np.angle(rho)) * size
        return _with_factors(self.template, [np.fft.irfft(eta, self.size) for eta in etas])

    def reaches(self, rho):
        """Whether a flow from the start can end at this rho; phases of pairs turn freely."""
        v, w = self.layers
        one, two = self.single, self.paired
        moves = np.abs(v[two]) + np.abs(w[two]) > 0
        free = bool((moves | (rho[two] == 0)).all())
        return free and _reaches(rho[one].real, v[one].real, w[one].real)

    rows_of_components = None

    def components(self, network):
        return np.fft.ifft(np.asarray(network.linear_coefficients(), np.float64))


def _reaches(rho, first, second):
    """Whether the sum (for rho > 0) or difference of the real layers that rho needs is nonzero."""
    kept = np.abs(np.where(rho > 0, first + second, first - second))
    return bool(((kept > _TIED * np.hypot(first, second)) | (rho == 0)).all())


def _unit(rows):
    unit = float(np.max(np.abs(rows)))
    if unit == 0:
        raise ValueError(
            "problem: the data must not be zero throughout, got X = 0; no sample can be separated."
        )
    return unit


def _normalized(beta):
    size = float(np.linalg.norm(beta))
    return beta / size if size > 0 else beta


def _with_factors(template, factors):
    dtype = template.factors[0].dtype
    return template.with_factors([jnp.asarray(v, dtype) for v in factors])


def _log_margin(here: Potential):
    least = float(np.min(here.gradient))
    return here.psi + np.log(least) if least > 0 else -np.inf


def _check(network, problem, tolerance, max_log_margin, first_step, growth, max_steps):
    check_pair(network, problem)
    if not problem.has_margins:
        raise ValueError(
            f"problem: continue_direction is for Classification, got {type(problem).__name__}; a "
            "regression flow ends at its limit, mirror_flow(...)."
        )
    if not isinstance(problem.margin_loss.tail, ExponentialTail):
        raise ValueError(
            "problem: continue_direction is for losses with an exponential tail, got "
            f"{type(problem.margin_loss).__name__}; pass lintensor_jax.ExponentialLoss(), or ask "
            "limit_direction."
        )
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((network, problem))):
        raise ValueError(
            "network: continue_direction works on concrete arrays and is not for jax.jit or "
            "jax.vmap; loop over it."
        )
    if getattr(network, "depth", None) != 2:
        raise ValueError(
            "network: continue_direction needs two layers, got depth "
            f"{getattr(network, 'depth', None)}; deeper networks have no such dual flow from any "
            "start, use gradient_flow."
        )
    limits = {"tolerance": 0, "max_log_margin": -np.inf, "first_step": 0, "growth": 0.999}
    values = (tolerance, max_log_margin, first_step, growth)
    for (name, least), value in zip(limits.items(), values, strict=True):
        if not (np.isfinite(value) and value > least):
            raise ValueError(
                f"{name}: must be finite and above {least}, got {value!r}; leave it out for the "
                "default."
            )
    if type(max_steps) is not int or max_steps < 1:
        raise ValueError(
            f"max_steps: must be a positive int, got {max_steps!r}; the default is 200."
        )

"""One implicit Euler step of a two-layer dual flow, at any margin.

The flow of classification in its dual variables is dnu/dtau = p, p the softmax of -m, where the
margins m = grad Phi(nu) are the gradient of a convex potential. A step nu + h p is the minimiser of

    Phi(nu + h p) / h + sum_i p_i log p_i      over the simplex.

Phi is a sum of exponentials of angles. Only its logarithm psi is computed. With g = grad psi and
m = e^psi g, the sums m_i + log p_i must agree for all i with p_i > 0. Divided by e^psi + 1 that is

    kappa g_i + (1 - kappa) log p_i = const,      kappa = 1 / (1 + e^-psi),

so that no margin is computed and none overflows. At large margins the step minimises psi itself;
that problem is not stiff. All computations are in NumPy on the host, in float64.
"""

import dataclasses
from typing import NamedTuple, Protocol

import numpy as np

_EPS = float(np.finfo(np.float64).eps)
_MAX_ITERATIONS = 50
_MAX_HALVINGS = 10
# Above psi = 16 the entropy of p is left out: it changes the weights by e^-16 times its slope.
# Above psi = 5 it is left out if Newton's method fails with it, on almost inseparable data.
_SHARP, _ALMOST_SHARP = 16.0, 5.0
# Largest last Newton step in log p, weighted by sqrt(p); convergence is quadratic.
_SOLVED = 1e-9
# The smallest weight; smaller ones are raised to it. Logarithms down to -margin are not needed.
_LEAST_WEIGHT = 1e-30
# The smallest share of the entropy. After a long step the true share may be even smaller.
_NO_ENTROPY = 1e-14
# The ratio of the entropy's share from stage to stage: with it a stage takes 3 to 5 iterations.
_COOLING = 0.05
# Products of multipliers and weights at the end. The error of an active margin is about 10 times
# as large.
_COMPLEMENTARITY = 1e-15


class Terms(NamedTuple):
    """Logarithms (g,) of the potential's terms, gradients (g, k), Hessians (g, k, k)."""

    logs: np.ndarray
    slopes: np.ndarray
    curvatures: np.ndarray


class Angles(Protocol):
    """Coordinates of the two layers of a network, rotated by hyperbolic angles x, shape (g, k)."""

    def terms(self, x: np.ndarray) -> Terms: ...
    def turned(self, x: np.ndarray) -> "Angles": ...
    def rescaled(self, log_factor: float) -> "Angles": ...
    def steepest(self, x: np.ndarray) -> float: ...


@dataclasses.dataclass(frozen=True)
class RealAngles:
    """Real pairs (a, b) by log|a + b| and log|a - b|, to which an angle x adds x and -x.

    The terms (|a + b|^2 e^{2x} + |a - b|^2 e^{-2x}) / 2 are exactly a^2 + b^2 after the rotation
    by x (Yun et al. 2021, eq. 75). A zero, log = -inf, stays zero.
    """

    plus: np.ndarray
    minus: np.ndarray

    def terms(self, x: np.ndarray) -> Terms:
        """The terms at x: two exponentials of each angle."""
        up, down = 2 * (self.plus + x[:, 0]), 2 * (self.minus - x[:, 0])
        logs = np.logaddexp(up, down)
        alive = logs > -np.inf
        safe = np.where(alive, logs, 0.0)
        up, down = (np.where(alive, np.exp(part - safe), 0.0) for part in (up, down))
        slopes = 2 * (up - down)
        curvatures = 16 * up * down
        return Terms(logs - np.log(2), slopes[:, None], curvatures[:, None, None])

    def turned(self, x: np.ndarray) -> "RealAngles":
        """The pairs after a turn by x."""
        return RealAngles(self.plus + x[:, 0], self.minus - x[:, 0])

    def rescaled(self, log_factor: float) -> "RealAngles":
        """The pairs times e^log_factor."""
        return RealAngles(self.plus + log_factor, self.minus + log_factor)

    def steepest(self, x: np.ndarray) -> float:
        """The largest growth rate of a log term along large multiples of x, for either sign."""
        up, down = x[self.plus > -np.inf, 0], -x[self.minus > -np.inf, 0]
        return 2 * float(np.max(np.concatenate([up, down]), initial=-np.inf))


@dataclasses.dataclass(frozen=True)
class ComplexAngles:
    """Complex pairs p' = g q, q' = conj(g) p: the data g change their moduli and phases.

    Turns by different phases do not commute, so there is no potential of the whole flow. A turn by
    one x is e^{log_scale} times cosh|x| (p, q) + sinh|x| (e q, conj(e) p), e = x/|x|, exactly. The
    terms of one step are approximated by the log-convex function

        C cosh 2|x + s R/|R||,     R = p conj(q),   C sinh 2s = 2|R|,

    whose slope at x = 0 is 4R: steps of vanishing size follow the flow. For s < 1/2 its value there
    is |p|^2 + |q|^2; from a zero last layer, s = 0, it is the potential of the flow. Larger s are
    cut to 1/2, at which for |p| = |q| the curvature across R is that of the flow. In the flow the
    influence of a phase decays within an angle of order one; in an exact cosh it would not decay.
    In the limit the phases are those of the force, and a step multiplies all pairs as the flow.
    """

    first: np.ndarray
    second: np.ndarray
    log_scale: np.ndarray

    def terms(self, x: np.ndarray) -> Terms:
        """The terms C cosh 2|y| with y = x + s R/|R|."""
        product = self.first * self.second.conj()
        size = np.abs(product)
        energy = np.abs(self.first) ** 2 + np.abs(self.second) ** 2
        ratio = 2 * size / np.where(energy > 0, energy, 1.0)
        shift = 0.5 * np.arctanh(np.minimum(ratio, np.tanh(1.0)))
        # sinh(2s)/(2s) at s = 0 is 1; there C is the energy.
        level = np.where(ratio < np.tanh(1.0), energy / np.cosh(2 * shift), 2 * size / np.sinh(1.0))
        unit = np.exp(1j * np.angle(product))
        y = x + (shift * unit)[:, None].view(np.float64)
        length = np.linalg.norm(y, axis=1)
        safe = np.where(length > 1e-8, length, 1.0)
        e = y / safe[:, None]
        logs = 2 * length + np.log1p(np.exp(-4 * length)) - np.log(2)
        tanh = np.tanh(2 * length)
        across = np.where(length > 1e-8, 2 * tanh / safe, 4.0)
        along = e[:, :, None] * e[:, None, :]
        curvatures = across[:, None, None] * (np.eye(2) - along)
        curvatures += (4 * (1 - tanh**2))[:, None, None] * along
        with np.errstate(divide="ignore"):
            logs = logs + np.log(level) + 2 * self.log_scale
        return Terms(logs, across[:, None] * y, curvatures)

    def turned(self, x: np.ndarray) -> "ComplexAngles":
        """The pairs after a turn by x."""
        length = np.linalg.norm(x, axis=1)
        z = x[:, 0] + 1j * x[:, 1]
        e = np.where(length > 0, z / np.where(length > 0, length, 1.0), 0.0)
        left = np.exp(-2 * length)
        grown, rest = (1 + left) / 2, (1 - left) / 2
        first = grown * self.first + rest * e * self.second
        second = grown * self.second + rest * e.conj() * self.first
        norm = np.hypot(np.abs(first), np.abs(second))
        norm = np.where(norm > 0, norm, 1.0)
        return ComplexAngles(first / norm, second / norm, self.log_scale + length + np.log(norm))

    def rescaled(self, log_factor: float) -> "ComplexAngles":
        """The pairs times e^log_factor."""
        return dataclasses.replace(self, log_scale=self.log_scale + log_factor)

    def steepest(self, x: np.ndarray) -> float:
        """The largest growth rate of a log term along large multiples of x."""
        alive = np.abs(self.first) + np.abs(self.second) > 0
        return 2 * float(np.max(np.linalg.norm(x[alive], axis=1), initial=-np.inf))


@dataclasses.dataclass(frozen=True)
class DualState:
    """The state of a dual flow: angles by kind, how samples rotate them, and their common scale.

    - `angles`: one entry per kind (real, complex).
    - `rows`: for each kind the rotation angles (g, k, n) per unit of nu_i.
    - `log_weights`: for each kind the logarithms (g,) of the terms' factors in Phi.
    - `log_unit`: log of the data's scale, by which `rows` are divided.
    - `log_scale`: log of the number by which all layers are divided.
    """

    angles: tuple[Angles, ...]
    rows: tuple[np.ndarray, ...]
    log_weights: tuple[np.ndarray, ...]
    log_unit: float
    log_scale: float = 0.0

    @property
    def log_size(self) -> float:
        """Logarithm of the largest term of Phi, without the scales."""
        pairs = zip(self.angles, self.rows, strict=True)
        return max(np.max(a.terms(0 * r[:, :, 0]).logs, initial=-np.inf) for a, r in pairs)

    def steepest(self, p: np.ndarray) -> float:
        """The limit of the slope of psi along p at infinity: twice max |u_j|."""
        pairs = zip(self.angles, self.rows, strict=True)
        return max(angles.steepest(rows @ p) for angles, rows in pairs)

    def advanced(self, step: np.ndarray) -> "DualState":
        """The state after nu has grown by `step`, its layers scaled back to order one."""
        turned = tuple(a.turned(r @ step) for a, r in zip(self.angles, self.rows, strict=True))
        state = dataclasses.replace(self, angles=turned)
        log_factor = -state.log_size / 2
        return dataclasses.replace(
            state,
            angles=tuple(a.rescaled(log_factor) for a in turned),
            log_scale=self.log_scale - log_factor,
        )


class Potential(NamedTuple):
    """psi = log Phi (in units of the data), its gradient (n,) and Hessian (n, n) in nu.

    `shares`: for each kind the derivatives (g, k) of psi by the angles, of norm about one.
    """

    psi: float
    gradient: np.ndarray
    hessian: np.ndarray
    shares: tuple[np.ndarray, ...]


def potential(state: DualState, step: np.ndarray) -> Potential:
    """The potential at nu + step."""
    logs, forces, slopes, bends = [], [], [], []
    for angles, rows, log_weights in zip(state.angles, state.rows, state.log_weights, strict=True):
        terms = angles.terms(rows @ step)
        logs.append(terms.logs + log_weights)
        forces.append(np.einsum("gk,gkn->gn", terms.slopes, rows))
        slopes.append(terms.slopes)
        bends.append((terms.curvatures, rows))
    stacked = np.concatenate(logs)
    top = np.max(stacked)
    weights = np.exp(stacked - top)
    total = np.sum(weights)
    weights /= total
    force = np.concatenate(forces)
    gradient = weights @ force
    centred = force - gradient
    hessian = (centred.T * weights) @ centred
    parts = np.split(weights, np.cumsum([len(part) for part in logs])[:-1])
    for share, (curvature, rows) in zip(parts, bends, strict=True):
        bent = np.einsum("g,gkl,gln->gkn", share, curvature, rows)
        hessian += np.tensordot(rows, bent, ((0, 1), (0, 1)))
    psi = top + np.log(total) + 2 * state.log_scale + state.log_unit
    shares = tuple(w[:, None] * s for w, s in zip(parts, slopes, strict=True))
    return Potential(float(psi), gradient, hessian, shares)


class Step(NamedTuple):
    """The weights p (n,) of an implicit step, the potential at its end, Newton iterations."""

    weights: np.ndarray
    end: Potential
    num_iterations: int


def implicit_step(state: DualState, start: np.ndarray, size: float) -> Step | None:
    """The step of length `size`; `start` is a guess of its weights. None if Newton fails."""
    psi, step = potential(state, 0 * start).psi, None
    if psi < _SHARP:
        step = _softmax_step(state, start, size)
    if step is None and psi > _ALMOST_SHARP:
        step = _sharp_step(state, start, size)
    return step


def _softmax_step(state, start, size) -> Step | None:
    """The step at moderate margins: Newton's method in log p, in stages.

    The share of the entropy falls from stage to stage, to its true value.
    """
    p, entropy, num_iterations = start, min(0.1, 1 / size), 0
    while True:
        here = potential(state, size * p)
        coupled = entropy <= _share_of_entropy(here)
        stage = _newton(state, p, size, None if coupled else entropy)
        if stage is None:
            return None
        p, here, used = stage
        num_iterations += used
        if coupled or entropy <= _NO_ENTROPY:
            return Step(p, here, num_iterations)
        entropy = max(_COOLING * entropy, _NO_ENTROPY)


def _share_of_entropy(here):
    """1 - kappa = 1 / (1 + e^psi)."""
    return float(np.exp(-np.logaddexp(0.0, here.psi)))


def _newton(state, p, size, entropy):
    """Minimise psi / size + entropy sum_i p_i log p_i.

    If `entropy` is None: minimise e^psi / size + sum_i p_i log p_i.
    """
    p = np.maximum(p, _LEAST_WEIGHT)
    p = p / p.sum()
    n, here = len(p), potential(state, size * p)
    for iteration in range(1, _MAX_ITERATIONS + 1):
        rest = _share_of_entropy(here) if entropy is None else entropy
        kappa = float(np.exp(-np.logaddexp(0.0, -here.psi))) if entropy is None else 1.0
        logs = np.log(p)
        slope = kappa * here.gradient + rest * logs
        curvature = here.hessian
        if entropy is None:
            curvature = curvature + np.outer(here.gradient, here.gradient)
        # In log p rows are divided by p_i, and columns multiplied: small weights lose no accuracy.
        matrix = np.zeros((n + 1, n + 1))
        matrix[:n, :n] = kappa * size * curvature * p + rest * np.eye(n)
        matrix[:n, n], matrix[n, :n] = -1.0, p
        solved = _solve(matrix, np.append(-slope, 0.0))
        if solved is None:
            return None
        change = solved[:n]
        decrement = -float((p * change) @ slope)
        if np.max(np.abs(np.maximum(change, -1.0)) * np.sqrt(p)) < _SOLVED:
            return p, here, iteration
        length = 1.0
        for _ in range(_MAX_HALVINGS):
            moved = length * change
            # Weights that grow take the step in p, not in log p: the exponential would overshoot.
            trial = p * np.where(moved > 0, 1 + moved, np.exp(np.minimum(moved, 0.0)))
            trial = np.maximum(trial / trial.sum(), _LEAST_WEIGHT)
            there = potential(state, size * trial)
            gain = there.psi - here.psi
            energy = gain if entropy is not None else np.expm1(min(gain, 50.0))
            energy = kappa * energy / size + rest * (trial @ np.log(trial) - p @ logs)
            rounding = 16 * _EPS * (1 + abs(here.psi)) / min(size, 1.0)
            if energy <= -1e-4 * length * decrement + rounding:
                break
            length /= 2
        else:
            return None
        p, here = trial, there
    return None


def _sharp_step(state, start, size) -> Step | None:
    """Large margins, no entropy: a primal-dual interior-point method for min psi.

    Multipliers s_i >= 0 of p_i >= 0 with p_i s_i -> 0.
    """
    n = len(start)
    # The start is moved away from the boundary, but so little that the potential changes by O(1).
    inside = min(0.1, 0.3 / size) / n
    p = np.maximum(start, inside)
    p /= p.sum()
    here = potential(state, size * p)
    multiplier = float(np.min(here.gradient))
    s = np.maximum(here.gradient - multiplier, inside)
    enough = 64 * _EPS * (1 + size * np.max(np.abs(here.gradient)))
    for iteration in range(1, _MAX_ITERATIONS + 1):
        defect = here.gradient - s - multiplier
        off, gap = np.max(np.abs(defect)), p @ s / n
        if off <= enough and np.max(p * s) <= 10 * _COMPLEMENTARITY:
            return Step(p, here, iteration)
        target = max(0.1 * gap, _COMPLEMENTARITY)
        # A border row for sum dp = 0; the multipliers s are eliminated. In units of p, as above.
        matrix = np.zeros((n + 1, n + 1))
        matrix[:n, :n] = size * here.hessian * p + np.diag(s)
        matrix[:n, n], matrix[n, :n] = -1.0, p
        right = np.append(target / p - s - defect, 0.0)
        moves = _solve(matrix, right)
        if moves is None:
            return None
        change, raised = moves[:n], moves[n]
        ds = target / p - s - s * change
        length = min(1.0, 0.995 * _to_boundary(np.ones(n), change), 0.995 * _to_boundary(s, ds))
        merit = _merit(defect, p, s, target)
        for _ in range(_MAX_HALVINGS):
            trial = p * (1 + length * change)
            trial /= trial.sum()
            there = potential(state, size * trial)
            trial_s, level = s + length * ds, multiplier + length * raised
            after = _merit(there.gradient - trial_s - level, trial, trial_s, target)
            if after <= (1 - 1e-3 * length) * merit + enough:
                break
            length /= 2
        else:
            return None
        p, s, multiplier, here = trial, trial_s, level, there
    return None


def _solve(matrix, right):
    """The solution of the linear system; None for a singular matrix."""
    # Rows of samples with very small weights may be very large or small; scaling them to 1 avoids
    # a loss of accuracy in the other rows.
    heights = np.max(np.abs(matrix), axis=1)
    try:
        return np.linalg.solve(matrix / heights[:, None], right / heights)
    except np.linalg.LinAlgError:
        return None


def _merit(defect, p, s, target):
    return np.sqrt(np.sum(defect**2) + np.sum((p * s - target) ** 2))


def _to_boundary(value, change):
    shrinking = change < 0
    return float(np.min(-value[shrinking] / change[shrinking], initial=np.inf))

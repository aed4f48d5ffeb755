"""When a coordinate of a diagonal network grows from a vanishing start: ends of its mirror map.

Every coordinate of a diagonal network obeys d v_l/d zeta = prod_{k != l} v_k, zeta = -int grad dt.
From alpha v it grows to size one where zeta leaves an interval, which tends to
unit(alpha) * [lower, upper] as alpha -> 0, unit(alpha) = log(1/alpha) for two layers and
alpha^(2-L) for L >= 3.
"""

import numpy as np
from jaxtyping import Float

from ...networks import mirror_map

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(24)
# The integrands fall as e^(-(L-2) x): what is left beyond this exponent is below rounding.
_EXPONENT = 40.0


def default_thresholds(depth: int, dimension: int) -> tuple[np.ndarray, np.ndarray]:
    """(lower, upper), shape (d,), of equal first layers of ones and a zero last one.

    1 for two layers, and Lemma 4's c_L for L >= 3 (Yun et al. 2021, Theorem 5).
    """
    size = 1.0 if depth == 2 else mirror_map.boundary(depth)
    return np.full(dimension, -size), np.full(dimension, size)


def thresholds(start: Float[np.ndarray, "L d"]) -> tuple[np.ndarray, np.ndarray]:
    """(lower, upper), shape (d,), of the start alpha * `start`; infinite where there is none.

    With z the layer of the smallest modulus of a coordinate and c_l = v_l^2 - z^2 >= 0, both
    conserved, dz/dzeta = +- prod sqrt(z^2 + c_l). For L >= 3 z is infinite after a finite zeta. A
    coordinate with two smallest layers of equal modulus keeps its sign, and never moves if they
    are zero.
    """
    found = [_of_one(column) for column in np.asarray(start, np.float64).T]
    lower, upper = np.asarray(found).T
    return lower, upper


def _of_one(layers):
    order = np.argsort(np.abs(layers), kind="stable")
    smallest, others = layers[order[0]], layers[order[1:]]
    direction = np.prod(np.sign(others))  # z moves this way where zeta grows
    gaps = (np.abs(others) - np.abs(smallest)) * (np.abs(others) + np.abs(smallest))
    ends = [np.inf, np.inf]  # of z growing to -inf, to +inf
    for place, sign in enumerate((-1.0, 1.0)):
        time = _time_to_infinity if gaps[0] > 0 else _time_of_tied
        ends[place] = time(sign * smallest, gaps)
    falls, grows = ends if direction >= 0 else ends[::-1]
    return -falls, grows


def _time_to_infinity(start, gaps):
    """int_start^inf dz / prod sqrt(z^2 + gap), all gaps positive; two layers: any finite number."""
    if gaps.size == 1:
        return 1.0
    scale = np.sqrt(gaps[0])
    first = np.arcsinh(start / scale)
    spread = np.log(gaps[-1] / gaps[0])

    def integrand(x):
        z = scale * np.sinh(x)
        return scale * np.cosh(x) / np.prod(np.sqrt(z[:, None] ** 2 + gaps), axis=1)

    return _integral(integrand, first, max(first, 0.0) + _EXPONENT / (gaps.size - 1) + spread)


def _time_of_tied(start, gaps):
    """The same where some gaps are zero: z keeps its sign, so that only one direction ends."""
    if start <= 0:
        return np.inf
    if gaps.size == 1:
        return 1.0
    spread = np.log1p(gaps[-1] / start**2)

    def integrand(x):
        z = start * np.exp(x)
        return z / np.prod(np.sqrt(z[:, None] ** 2 + gaps), axis=1)

    return _integral(integrand, 0.0, _EXPONENT / (gaps.size - 1) + spread)


def _integral(integrand, first, last):
    """Gauss-Legendre on panels of at most half a unit: the integrands are analytic at |Im| < 1."""
    edges = np.linspace(first, last, int(np.ceil(2 * (last - first))) + 1)
    middles, half = (edges[1:] + edges[:-1]) / 2, (edges[1:] - edges[:-1]) / 2
    nodes = middles[:, None] + half[:, None] * _NODES
    values = integrand(nodes.ravel()).reshape(nodes.shape)
    return float(np.sum(half[:, None] * _WEIGHTS * values))

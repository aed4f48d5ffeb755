"""Thresholds at which a coordinate of a diagonal network grows from a vanishing start.

Every coordinate of a diagonal network obeys d v_l/d zeta = prod_{k != l} v_k, zeta = -int grad dt.
From alpha v it grows to size one when zeta leaves an interval, the domain of its mirror map. As
alpha -> 0 the interval tends to unit(alpha) * [lower, upper], with unit(alpha) = log(1/alpha) for
two layers and alpha^(2-L) for L >= 3.
"""

import numpy as np
from jaxtyping import Float

from ...networks import mirror_map

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(24)
# The integrands fall as e^(-(L-2) x): the rest beyond this exponent is below rounding.
_EXPONENT = 40.0


def default_thresholds(depth: int, dimension: int) -> tuple[np.ndarray, np.ndarray]:
    """(lower, upper), shapes (d,), for first layers of ones and a last layer of zeros.

    They are -+1 for two layers, and -+c_L of Lemma 4 for L >= 3 (Yun et al. 2021, Theorem 5).
    """
    size = 1.0 if depth == 2 else mirror_map.boundary(depth)
    return np.full(dimension, -size), np.full(dimension, size)


def thresholds(start: Float[np.ndarray, "L d"]) -> tuple[np.ndarray, np.ndarray]:
    """(lower, upper), shapes (d,), for the start alpha * `start`; infinite if there is none.

    For one coordinate let z be the layer of the smallest modulus, and c_l = v_l^2 - z^2 >= 0, which
    the flow conserves. Then dz/dzeta = +- prod sqrt(z^2 + c_l). For L >= 3 z becomes infinite at a
    finite zeta. A coordinate whose two smallest layers have equal modulus keeps its sign. If these
    two are zero, it never moves.
    """
    found = [_of_one(column) for column in np.asarray(start, np.float64).T]
    lower, upper = np.asarray(found).T
    return lower, upper


def _of_one(layers):
    order = np.argsort(np.abs(layers), kind="stable")
    smallest, others = layers[order[0]], layers[order[1:]]
    direction = np.prod(np.sign(others))  # the sign of dz/dzeta
    gaps = (np.abs(others) - np.abs(smallest)) * (np.abs(others) + np.abs(smallest))
    ends = [np.inf, np.inf]  # the lengths of zeta until z is -inf, +inf
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
    """`_time_to_infinity` with a zero gap: z keeps its sign, so it is infinite for start <= 0."""
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

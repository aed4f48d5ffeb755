"""Invariant sets that exclude the solution: a flow that starts in one cannot converge.

* Two layers, data along one direction: if every growing component of the start is zero, the
  prediction keeps its sign (Yun et al. 2021, proof of Theorem 6; Ji & Telgarsky 2019, Appendix A).
* Balanced layers keep the rank of their product, and the sign of its determinant (Eftekhari 2020,
  Lemma 11).
* Two layers that are opposite on one mode of the targets, u = -v (or zero), stay so if no other
  mode is coupled to it.

Only the directions of the data that the flow can reach count.
"""

import functools
import itertools
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..networks import FullyConnectedNetwork
from .assumptions import Assumption, is_tensor_network, rounding
from .row_space import row_space

CLAIM = "the loss tends to its least value"
# A sum of two layers that is zero may differ from zero by this many roundings, from the SVD.
_ROUNDINGS = 16


def excluded_by_an_invariant_set(network: Any, problem: Any) -> Assumption | None:
    """A failed assumption if the start is known to lie in such a set; else None."""
    for decide in (_keeps_its_sign, _keeps_rank_and_sign, _keeps_a_mode):
        found = decide(network, problem)
        if found is not None:
            return found
    return None


def _keeps_its_sign(network, problem):
    """Two layers, one direction of data: each pair (a_j, b_j) follows a hyperbolic rotation.

    a + sign(y) b grows and a - sign(y) b decays. If all a + sign(y) b are zero, they stay zero.
    """
    if not is_tensor_network(network) or network.depth != 2 or np.ndim(problem.y) != 1:
        return None
    direction = _only_direction(problem) or _eigenvector(network, problem)
    if direction is None:
        return None
    x, sign = direction
    first, second = (np.asarray(v) for v in network.factors)
    left, s, right = np.linalg.svd(np.asarray(network.data_tensor(jnp.asarray(x))))
    rank = int(np.sum(s > rounding(s) * s[0])) if s.size else 0
    a, b = (left.T @ first)[:rank], (right @ second)[:rank]
    growing = float(np.max(np.abs(a + sign * b), initial=0.0))
    size = float(max(np.max(np.abs(a), initial=0.0), np.max(np.abs(b), initial=0.0)))
    if growing > _ROUNDINGS * float(np.finfo(s.dtype).eps) * size:
        return None
    return Assumption(
        f"{CLAIM} (it cannot: U_1^T v_1 + sign(y) U_2^T v_2 = 0 is kept by the flow, and the "
        "prediction never has the sign of y), its largest entry",
        growing,
        False,
        "Yun et al. 2021, proof of Theorem 6; Ji & Telgarsky 2019, Appendix A",
    )


def _only_direction(problem):
    """x and the sign of the wanted predictions, if all samples are multiples of x.

    None if the samples span more than one direction, or if no predictor has zero loss.
    """
    X, y = np.asarray(problem.X), np.asarray(problem.y)
    left, sizes, right = np.linalg.svd(X, full_matrices=False)
    if not sizes[0] > 0 or np.any(sizes[1:] > rounding(X) * sizes[0]):
        return None
    along = left[:, 0] * sizes[0]
    if problem.has_margins:
        signs = np.sign(y * along)
        return (right[0], signs[0]) if np.all(signs == signs[0]) and signs[0] else None
    wanted = float(along @ y) / float(along @ along)
    off = np.linalg.norm(along * wanted - y) > rounding(y) * np.linalg.norm(y)
    if off and not problem.has_squared_loss:
        return None  # its minimum need not be at the minimum of the squared loss
    return (right[0], np.sign(wanted)) if wanted else None


def _keeps_rank_and_sign(network, problem):
    """Balanced layers of any depth: the product keeps its rank, so its determinant has one sign.

    The first layer is restricted to the row space of the data. If each layer is one number, it is
    enough that the two smallest moduli are equal: both could pass zero only at the same time, and
    two zero layers are a critical point, which no flow reaches in finite time.
    """
    if not isinstance(network, FullyConnectedNetwork):
        return None
    first, *others = (np.asarray(w).reshape(w.shape[0], -1) for w in network.weights)
    direction = _only_direction(problem) if np.ndim(problem.y) == 1 else None
    direction = direction or _eigenvector(network, problem)
    if direction is not None:
        first, wanted = direction[0][None, :] @ first, np.array([[float(direction[1])]])
    elif problem.has_margins:
        return None
    else:
        data = row_space(problem.X, problem.y)
        first, wanted = data.basis @ first, data.projected() / data.sizes[:, None]
    layers = [first, *others]
    size = max(np.linalg.norm(w, 2) for w in layers)
    gaps = [np.linalg.norm(a.T @ a - b @ b.T, 2) for a, b in itertools.pairwise(layers)]
    balanced = max(gaps) <= rounding(first) * size**2
    if not balanced and all(w.size == 1 for w in layers):
        sizes = np.sort(np.abs(np.concatenate([w.ravel() for w in layers])))
        balanced = sizes[1] - sizes[0] <= rounding(first) * size
    if not balanced or not size > 0:
        return None
    product = functools.reduce(np.matmul, layers)
    ranks = [_rank(product), _rank(wanted)]
    source = "Eftekhari 2020, Lemma 11"
    if ranks[0] < ranks[1]:
        return Assumption(
            f"{CLAIM} (it cannot: balanced layers keep the rank of their product, and the targets "
            "have a higher one), the two ranks",
            tuple(ranks),
            False,
            source,
        )
    if wanted.shape[0] != wanted.shape[1] or ranks != [len(wanted)] * 2:
        return None
    signs = tuple(int(np.linalg.slogdet(m)[0]) for m in (product, wanted))
    if signs[0] == signs[1]:
        return None
    return Assumption(
        f"{CLAIM} (it cannot: balanced layers keep the rank of their product, so that its "
        "determinant never has the sign of that of the targets), the two signs",
        signs,
        False,
        source,
    )


def _rank(matrix):
    sizes = np.linalg.svd(matrix, compute_uv=False)
    return int(np.sum(sizes > rounding(sizes) * max(matrix.shape) * sizes[0]))


def _eigenvector(network, problem):
    """x and sign, if the flow of fully connected layers stays along one direction; else None.

    It does so if b = X^+ y is an eigenvector of X^T X and all columns of the first layer, projected
    on the row space of X, are along b: then those of its velocity, -X^T r times a row, are as well.
    """
    is_covered = isinstance(network, FullyConnectedNetwork) and np.ndim(problem.y) == 1
    if problem.has_margins or not is_covered:
        return None
    data = row_space(problem.X, problem.y)
    b = data.basis @ np.asarray(data.least_squares())
    if not np.linalg.norm(b) > 0:
        return None
    unit = b / np.linalg.norm(b)
    zero = rounding(b)
    turned = data.sizes**2 * unit
    first = data.basis @ np.asarray(network.weights[0])
    off = [turned - unit * (unit @ turned), first - np.outer(unit, unit @ first)]
    scales = [data.sizes[0] ** 2, np.linalg.norm(network.weights[0])]
    if any(np.linalg.norm(o) > zero * scale for o, scale in zip(off, scales, strict=True)):
        return None
    return data.basis.T @ unit, 1.0


def _keeps_a_mode(network, problem):
    """A singular pair p, s of the targets T with T s = t p, t > 0, on which W_2 s = -W_1^T p = z.

    If S^2 p and W_1 z are along p and W_2^T z is along s, the flow keeps all these relations, and
    p^T M s = -|z|^2. All are in row space coordinates, with M = W_1 W_2. The singular pairs of T
    and of M are tried.
    """
    if not isinstance(network, FullyConnectedNetwork) or network.depth != 2:
        return None
    if not problem.has_squared_loss:  # another loss mixes the modes
        return None
    data = row_space(problem.X, problem.y)
    if data.rank == 0:
        return None
    first, last = (np.asarray(w).reshape(w.shape[0], -1) for w in network.weights)
    first, wanted = data.basis @ first, data.projected() / data.sizes[:, None]
    size = max(np.linalg.norm(first, 2), np.linalg.norm(last, 2))
    zero, largest = rounding(first), float(np.linalg.norm(wanted, 2))
    for matrix in (wanted, first @ last):
        left, sizes, right = np.linalg.svd(matrix, full_matrices=False)
        for p, s in zip(left.T[sizes > 0], right[sizes > 0], strict=True):
            t = float(p @ wanted @ s)
            if not abs(t) > zero * largest:
                continue
            s = s * np.sign(t)
            z = last @ s
            off = [
                (wanted @ s - abs(t) * p, largest),
                (wanted.T @ p - abs(t) * s, largest),
                (first.T @ p + z, size),
                (_across(first @ z, p), size**2),
                (_across(last.T @ z, s), size**2),
                (_across(data.sizes**2 * p, p), data.sizes[0] ** 2),
            ]
            if all(np.linalg.norm(o) <= zero * scale for o, scale in off):
                return Assumption(
                    f"{CLAIM} (it cannot: on a mode p, s of the targets the layers are opposite, "
                    "W_2 s = -W_1^T p, and stay so), p^T W_1 W_2 s, which has to become positive",
                    -float(z @ z),
                    False,
                    "Yun et al. 2021, proof of Theorem 6, for one mode",
                )
    return None


def _across(vector, unit):
    return vector - unit * (unit @ vector)

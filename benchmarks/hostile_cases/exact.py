"""Exact oracles: linear coefficients as rational numbers, and mpmath's singular values."""

import itertools
from fractions import Fraction
from typing import Any

import mpmath
import numpy as np

#: Digits of mpmath: more than the spread of any case here needs.
DIGITS = 60


def rational(values: Any) -> np.ndarray:
    """An array of fractions."""
    array = np.asarray(values)
    return np.vectorize(lambda x: Fraction(float(x)), otypes=[object])(array)


def _product(rows):
    result = rows[0]
    for row in rows[1:]:
        result = result * row
    return result


def diagonal(weights: Any, absolute: bool = False) -> np.ndarray:
    """w_1 . ... . w_L."""
    exact = rational(weights)
    return _product(list(abs(exact) if absolute else exact))


def chain(weights: Any, absolute: bool = False) -> np.ndarray:
    """W_1 ... W_L."""
    exact = [rational(w) for w in weights]
    exact = [abs(w) for w in exact] if absolute else exact
    result = exact[0]
    for w in exact[1:]:
        result = result.dot(w)
    return result


def convolution(filters: Any, absolute: bool = False) -> np.ndarray:
    """The circular convolution: beta_k = sum over j_1 + ... + j_L = k (mod d) of the products."""
    exact = [rational(w) for w in filters]
    exact = [abs(w) for w in exact] if absolute else exact
    size = len(exact[-1])
    result = np.full(size, Fraction(0), object)
    for index in itertools.product(*(range(len(w)) for w in exact)):
        result[sum(index) % size] += _product([w[i] for w, i in zip(exact, index, strict=True)])
    return result


def tensor(data: Any, factors: Any, absolute: bool = False) -> np.ndarray:
    """beta_k = tensor[..., k] o (v_1, ..., v_L)."""
    exact, vectors = rational(data), [rational(v) for v in factors]
    if absolute:
        exact, vectors = abs(exact), [abs(v) for v in vectors]
    for v in vectors:
        exact = np.tensordot(v, exact, 1)
    return exact


def floats(values: Any) -> np.ndarray:
    """The nearest floats; infinite if a number is too large."""

    def nearest(x):
        try:
            return float(x)
        except OverflowError:
            return float("inf") if x > 0 else float("-inf")

    return np.vectorize(nearest, otypes=[float])(np.asarray(values, object))


def singular_values(matrix: Any) -> list[Any]:
    """Singular values in decreasing order, as mpmath's numbers."""
    with mpmath.workdps(DIGITS):
        found = mpmath.svd_r(mpmath.matrix(np.atleast_2d(matrix).tolist()), compute_uv=False)
        return sorted(found, reverse=True)

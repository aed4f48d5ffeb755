"""Values as text, for errors and for printed results."""

import html
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

_LONGEST = 60
_ENTRIES = 8
# Entries smaller than this, relative to the largest, are zero up to rounding, and printed as 0.
_ROUNDING = 1e-12


def in_words(value: Any) -> str:
    """An unexpected value as text: its repr if that is short, else its type and shape."""
    if isinstance(value, type):
        return f"the class {value.__name__} itself"
    text = repr(value)
    if len(text) <= _LONGEST and "\n" not in text:
        return text
    shape = getattr(value, "shape", None)
    of_shape = f" of shape {shape}" if isinstance(shape, tuple) else ""
    return f"a value of type {type(value).__name__}{of_shape}"


def without_rounding(values: ArrayLike) -> np.ndarray:
    """`values` with 0 for entries below 1e-12 of the largest."""
    array = np.asarray(values)
    size = np.abs(array)
    return np.where(size < _ROUNDING * np.max(size, initial=0.0), 0.0, array)


def shown(values: ArrayLike) -> str:
    """Coefficients of shape (d,) or (d, m) as short text; entries that are rounding are 0."""
    array = without_rounding(values)
    if array.size <= _ENTRIES:
        return np.array2string(array, precision=6, separator=", ").replace("\n", "")
    norm = f"shape {array.shape}, l2 norm {np.linalg.norm(array):.6g}"
    if array.ndim > 1:
        return f"array of {norm}"
    ends = np.array2string(array, precision=6, separator=", ", threshold=1, edgeitems=3)
    return f"{' '.join(ends.split())} ({norm})"


def counted(number: int, noun: str) -> str:
    """A number with its noun: "1 time", "3 times"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def nonzero_entries(values: ArrayLike) -> str:
    """The number of entries that are not zero up to rounding, such as "3 of 20"."""
    array = without_rounding(values)
    return f"{np.count_nonzero(array)} of {array.size}"


def optimum_status(status: str, unique: bool | None) -> str:
    """The status of a solution of a convex program, and whether the solution is unique."""
    others = {True: ", the only solution", False: ", one of several solutions", None: ""}[unique]
    return f" [{status}]{others}"


def as_html(value: Any) -> str:
    """The printed form of a result, as HTML for notebooks; the first line is bold.

    It sets no colours, so that it can be read on light and on dark pages.
    """
    title, _, rest = html.escape(str(value)).partition("\n")
    return f'<pre style="white-space: pre-wrap"><strong>{title}</strong>\n{rest}</pre>'

"""Linear separability of the data as an `Assumption`."""

from typing import Any

from .assumptions import Assumption
from .least_norm.max_margin import MarginPrecisionError, is_separable


def separability(problem: Any, source: str) -> tuple[Assumption, float]:
    """The assumption that some coefficients separate the data, and their l2 margin."""
    claim, measure = "the data are linearly separable", "l2 margin max_w min_i y_i <x_i, w> / |w|"
    try:
        found = is_separable(problem)
    except MarginPrecisionError:
        statement = f"{claim} (float64 cannot tell), {measure}"
        return Assumption(statement, None, False, source), 0.0
    margin = float(found.margin)
    if not found.separable:
        claim += " (a convex combination of the y_i x_i vanishes: see is_separable)"
    return Assumption(f"{claim}, {measure}", margin, found.separable, source), margin

"""Whether two programs have integrated the same flows."""

from collections.abc import Sequence

import numpy as np

# The share of lanes that may differ: a rounding can end a lane a step later, or by another rule.
_MOST_DIFFERENT = 0.05
# Two programs round differently. Saddles and the step-size control amplify the difference. If two
# ends have equal numbers of steps, they differ by at most 100 tolerances; 1e4 are counted as a
# fault. With different numbers of steps they are at different times, and are not compared.
_TOLERANCES, _SMALLEST_TOLERANCE = 1e4, 1e-10


def disagreement(found: Sequence[np.ndarray], expected: Sequence[np.ndarray], rtol: float) -> str:
    """How many lanes have different ends, in words; "" if few enough do.

    `found`, `expected`: the states (k, q), times, codes, steps and rejected steps (k,) of `Ends`.
    """
    (y, _, code, steps, _), (wanted, _, wanted_code, wanted_steps, _) = found[:5], expected[:5]
    largest = np.maximum(np.abs(y).max(axis=1), np.abs(wanted).max(axis=1))
    bound = _TOLERANCES * max(rtol, _SMALLEST_TOLERANCE) * largest
    with np.errstate(invalid="ignore"):
        near = (np.abs(y - wanted) <= bound[:, None]).all(axis=1)
    # Ends with NaN agree if the same entries are NaN.
    near |= (np.isnan(y) == np.isnan(wanted)).all(axis=1) & np.isnan(y).any(axis=1)
    longer = np.abs(steps - wanted_steps.astype(np.int64))
    # Ends with other numbers of steps agree if these differ by at most 2 + 2%.
    same = np.where(longer == 0, near, longer <= 2 + 0.02 * wanted_steps)
    same &= code == wanted_code
    different = int(np.sum(~same))
    if different <= _MOST_DIFFERENT * same.size:
        return ""
    return f"it disagrees with XLA in {different} of {same.size} lanes"

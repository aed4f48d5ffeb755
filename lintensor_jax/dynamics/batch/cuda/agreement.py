"""Whether two programs have integrated the same flows."""

from collections.abc import Sequence

import numpy as np

# Lanes that may differ: a rounding can end a lane a step later, or by another rule.
_MOST_DIFFERENT = 0.05
# Two programs round differently. A flow near a saddle magnifies that, and so does its step-size
# control: with equal numbers of steps, ends are within 100 tolerances of each other, and 1e4 are a
# fault. With other numbers of steps the ends of one flow are at two times.
_TOLERANCES, _SMALLEST_TOLERANCE = 1e4, 1e-10


def disagreement(found: Sequence[np.ndarray], expected: Sequence[np.ndarray], rtol: float) -> str:
    """What differs between the ends of lanes; "" if they agree.

    `found`, `expected`: the states (k, q), times, codes, steps and rejected steps (k,) of `Ends`.
    """
    (y, _, code, steps, _), (wanted, _, wanted_code, wanted_steps, _) = found[:5], expected[:5]
    largest = np.maximum(np.abs(y).max(axis=1), np.abs(wanted).max(axis=1))
    bound = _TOLERANCES * max(rtol, _SMALLEST_TOLERANCE) * largest
    with np.errstate(invalid="ignore"):
        near = (np.abs(y - wanted) <= bound[:, None]).all(axis=1)
    near |= (np.isnan(y) == np.isnan(wanted)).all(axis=1) & np.isnan(y).any(axis=1)
    longer = np.abs(steps - wanted_steps.astype(np.int64))
    # NaN and infinity end a lane, wherever they stand in it.
    same = np.where(longer == 0, near, longer <= 2 + 0.02 * wanted_steps)
    same &= code == wanted_code
    different = int(np.sum(~same))
    if different <= _MOST_DIFFERENT * same.size:
        return ""
    return f"it disagrees with XLA in {different} of {same.size} lanes"

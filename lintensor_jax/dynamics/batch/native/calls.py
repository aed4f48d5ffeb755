"""Arguments and results of the functions that programs call more than once."""

from typing import Any

import numpy as np
from llvmlite import ir

from .memory import Slot

#: Arguments of every function: the rows of the lanes, and the numbers that all lanes share.
BASES = ("row", "data")
#: The kind of any vector; see `kind_of`.
VALUE = "value"


def is_local(entry: Any) -> bool:
    """Whether an entry is in memory that other functions cannot read."""
    return isinstance(entry, Slot) and entry.base not in BASES


def is_stored(entry: Any) -> bool:
    """Whether a function writes this entry of a result to memory."""
    return isinstance(entry, ir.Value) or is_local(entry)


def kind_of(entry: Any) -> Any:
    """The key of an entry: `VALUE` for any vector, else the entry itself."""
    if is_stored(entry):
        return VALUE
    # The key of a number is its text, which differs for -0 and 0, and is equal for NaN.
    return repr(entry) if isinstance(entry, np.generic) else entry


def can_call(made, wanted) -> bool:
    """Whether a function made for the keys `made` can be called with the keys `wanted`.

    A number in memory can be passed as a value.
    """
    return len(made) == len(wanted) and all(
        a == b or (a == VALUE and isinstance(b, Slot) and b.dtype is None)
        for a, b in zip(made, wanted, strict=True)
    )

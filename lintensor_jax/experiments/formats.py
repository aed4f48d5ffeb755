"""How tables and claims write numbers."""

import math

import numpy as np


def vector(value: np.ndarray) -> str:
    """The entries (d,) with four digits after the point; a rounded zero has no sign."""
    return "[" + ", ".join(f"{x:z.4f}" for x in value) + "]"


def scientific(value: float) -> str:
    """Two digits and a power of ten, such as 1.5e-03."""
    return f"{value:.1e}"


def power_of_ten(exponent: float) -> str:
    """10^exponent as `scientific` writes it; 10^exponent may overflow or underflow a float."""
    whole = math.floor(exponent)
    mantissa = f"{10 ** (exponent - whole):.1f}"
    if mantissa == "10.0":
        mantissa, whole = "1.0", whole + 1
    return f"{mantissa}e{whole:+03d}"

"""Exponential and logarithm by arithmetic alone, for the emitter's vectors.

They are needed because a mathematical library computes one number at a time. All functions are
accurate to three units in the last place. Methods: Cody & Waite's reduction, and the polynomials of
FreeBSD's e_log.c (Sun Microsystems).
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

# ln 2 as a sum of two parts: multiples of the first by integers up to 2^11 are exact.
_LN2 = {
    np.dtype(np.float64): (6.93147180369123816490e-01, 1.90821492927058770002e-10),
    np.dtype(np.float32): (0.693359375, -2.12194440e-4),
}
# exp(x) = 1 + x + x^2 (...) for |x| <= ln(2)/2, where these polynomials are within 1e-17 and 1e-8
# (Chebyshev's fit, computed with 60 digits).
_EXP = {
    np.dtype(np.float64): (
        0.5000000000000001021,
        0.1666666666666666745,
        0.04166666666662416187,
        0.008333333333330064447,
        0.001388888891719673607,
        0.0001984126986304055834,
        0.00002480152132234228291,
        2.755726848028971561e-6,
        2.762007589254816267e-7,
        2.510037584222369832e-8,
    ),
    np.dtype(np.float32): (0.5, 0.1666657699, 0.04166655462, 0.008363179053, 0.001392618359),
}
_LOG = (
    6.666666666666735130e-01,
    3.999999999940941908e-01,
    2.857142874366239149e-01,
    2.222219843214978396e-01,
    1.818357216161805012e-01,
    1.531383769920937332e-01,
    1.479819860511658591e-01,
)


def _layout(dtype):
    """The integer type of the same size, the bits of the mantissa, the stored exponent of 1."""
    if dtype == jnp.float64:
        return jnp.int64, 52, 1023
    return jnp.int32, 23, 127


def _polynomial(coefficients, x):
    """sum_k c_k x^k, in pairs: in Horner's rule every product has to wait for the last one."""
    terms = list(coefficients)
    while len(terms) > 1:
        pairs = [low + high * x for low, high in zip(terms[::2], terms[1::2], strict=False)]
        terms, x = pairs + terms[len(pairs) * 2 :], x * x
    return terms[0]


def exp(x):
    """e^x; zero below the smallest normal number, as in XLA:CPU."""
    dtype = np.dtype(x.dtype)
    integer, digits, bias = _layout(dtype)
    high, low = _LN2[dtype]
    # Adding 3/2 2^digits rounds to an integer, which is in the last bits of the sum. NaN stays NaN.
    shifter = 1.5 * 2.0**digits
    shifted = x * (1 / math.log(2)) + shifter
    turns = shifted - shifter
    rest = (x - turns * high) - turns * low
    value = _polynomial((1.0, 1.0, *_EXP[dtype]), rest)
    # A product with 2^turns adds to the exponent. The shift removes the other bits of `shifted`.
    bits = jax.lax.bitcast_convert_type(shifted, integer) << digits
    bits = bits + jax.lax.bitcast_convert_type(value, integer)
    value = jax.lax.bitcast_convert_type(bits, dtype)
    value = jnp.where(x < (1 - bias) * math.log(2), 0.0, value)
    return jnp.where(x > math.log(float(jnp.finfo(dtype).max)), jnp.inf, value)


def log(x):
    """ln x; -inf at 0, and NaN below."""
    dtype = np.dtype(x.dtype)
    integer, digits, _ = _layout(dtype)
    high, low = _LN2[dtype]
    tiny = x < float(jnp.finfo(dtype).tiny)
    normal = jnp.where(tiny, x * 2.0**digits, x)
    bits = jax.lax.bitcast_convert_type(normal, integer)
    # The exponent is chosen so that the mantissa is between sqrt(1/2) and sqrt(2).
    offset = jax.lax.bitcast_convert_type(jnp.asarray(math.sqrt(0.5), dtype), integer)
    exponent = (bits - offset) >> digits
    mantissa = jax.lax.bitcast_convert_type(bits - (exponent << digits), dtype)
    turns = exponent.astype(dtype) - jnp.where(tiny, float(digits), 0.0)
    part = mantissa - 1
    ratio = part / (2 + part)
    square = ratio * ratio
    series = _polynomial(_LOG, square)
    half = 0.5 * part * part
    tail = ratio * (half + square * series) + turns * low
    value = turns * high - ((half - tail) - part)
    value = jnp.where(x == jnp.inf, jnp.inf, value)
    return jnp.where(x > 0, value, jnp.where(x == 0, -jnp.inf, jnp.nan))


def log1p(x):
    """log(1 + x), by Kahan's correction."""
    sum_ = 1 + x
    rounded = sum_ - 1
    value = log(sum_) * (x / jnp.where(rounded == 0, 1.0, rounded))
    value = jnp.where(rounded == 0, x, value)
    return jnp.where(sum_ == jnp.inf, sum_, value)


def logistic(x):
    """1/(1 + e^-x)."""
    return 1 / (1 + exp(-x))

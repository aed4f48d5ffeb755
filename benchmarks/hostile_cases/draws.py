"""Hostile numbers: extreme scales, zeros, ties, integers, float32; and invalid arguments."""

from typing import Any

import numpy as np

Random = np.random.Generator

#: Kinds of arrays whose numbers are legal, from mild to hostile.
MILD = ("plain", "ties", "zeros")
WILD = (*MILD, "tiny", "huge", "graded", "integers", "float32", "subnormal")


def pick(rng: Random, choices: Any) -> Any:
    """One of the choices, unchanged."""
    return choices[int(rng.integers(len(choices)))]


def array(rng: Random, shape: tuple[int, ...], kind: str) -> np.ndarray:
    """A random array of one of the kinds `WILD`."""
    plain = rng.standard_normal(shape)
    match kind:
        case "ties":
            return rng.choice([-1.0, 1.0, 2.0], shape)
        case "zeros":
            return plain * (rng.random(shape) < 0.6)
        case "tiny":
            return plain * 10.0 ** -rng.integers(20, 200)
        case "huge":
            return plain * 10.0 ** rng.integers(20, 200)
        case "graded":
            return plain * 10.0 ** rng.uniform(-12, 12, shape)
        case "integers":
            return rng.integers(-3, 4, shape)
        case "float32":
            return plain.astype(np.float32)
        case "subnormal":
            return np.where(rng.random(shape) < 0.5, plain, 1e-310 * plain)
    return plain


def shown(**arguments: Any) -> str:
    """Arguments as text that can be pasted into Python."""
    return ", ".join(f"{name}={_literal(value)}" for name, value in arguments.items())


def _literal(value: Any) -> str:
    if isinstance(value, np.ndarray):
        dtype = "" if value.dtype == np.float64 else f", {value.dtype}"
        return f"array({value.tolist()}{dtype})"
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_literal, value))})"
    return repr(value)


def bad_arrays(shape: tuple[int, ...]) -> list[Any]:
    """Values that are not arrays of finite real numbers of that shape."""
    good = np.ones(shape)
    return [
        "abc",
        None,
        object(),
        {"a": 1.0},
        np.full(shape, np.nan),
        np.where(np.arange(good.size).reshape(shape) == 0, np.inf, good),
        np.ones((0, *shape[1:])),
        np.ones((*shape, 1, 1)),
        np.ones(()),
        good + 1j,
        good.astype(str),
        good.astype(object),
        [[1.0, 2.0], [3.0]],
        np.array(["2020-01-01"], "datetime64[D]"),
    ]


#: Values that are not positive numbers.
BAD_NUMBERS = ["abc", None, object(), np.nan, np.inf, -1.0, [1.0, 2.0], np.ones(3), 1j, {}]
#: Values that are not positive whole numbers.
BAD_COUNTS = ["abc", 0, -3, 1.5, np.nan, [1, 2], True, 1j, np.ones(2)]
#: Values that are not objects of this package.
BAD_OBJECTS = ["abc", 3, object(), np.ones(3), {}, len, int]

"""Small sweeps that the tests of `lintensor_jax.sweeps` share, and their files byte by byte."""

from pathlib import Path
from typing import Any

import numpy as np

import lintensor_jax as lt
from lintensor_jax.initialization import matching
from lintensor_jax.sweeps import Axis, Grid

X, Y = np.array([[1.0, 2.0]]), np.array([1.0])
PROBLEM = lt.Regression(X, Y)
LIKE = lt.DiagonalNetwork.zeros(2, 2)
ALPHAS = np.geomspace(0.01, 1.0, 12)
DIRECTIONS = np.random.default_rng(0).standard_normal((5, 2))
# All tests have one shape and one width, so that they share a compilation.
LANES: dict[str, Any] = {"chunk_lanes": 15, "width": 8}


def start(point):
    """Balanced layers at alpha^2 z."""
    return matching(LIKE, point.direction).scaled(point.alpha)


def axes(alphas=ALPHAS):
    """Sixty lanes, in four chunks."""
    return (
        Axis("alpha", alphas, units="1", description="initial scale"),
        Axis("direction", DIRECTIONS, dims=("coefficient",)),
    )


GRID = Grid(axes(), start, PROBLEM, seed=7)


def contents(path: Path) -> dict[str, bytes]:
    """Every file of every array; what `.sweep` holds is not part of the results."""
    return {
        str(p.relative_to(path)): p.read_bytes()
        for p in sorted(path.rglob("*"))
        if p.is_file() and ".sweep" not in p.parts
    }

"""Functions and classes of a user, whose hashes stores of format 1 hold.

`data/format1/own.json` has their descriptions in format 1, by the version of Python, as they were
before format 2. A hash stands for bytecode: this file must not change.
"""

# These are only described, never called: their signatures do not matter.
# pyright: reportArgumentType=false

import jax.numpy as jnp

import lintensor_jax as lt
from lintensor_jax import DiagonalNetwork, initialization
from lintensor_jax.initialization import balanced_on_data, matching
from lintensor_jax.sweeps import Axis, Grid, Measured

LIKE = lt.DiagonalNetwork.zeros(2, 2)
NORM = lt.L1Norm()
RULES = {"time": lt.StopAtTime(1.0), "clock": lt.LogArcLength}


def start(point):
    """Refers to public classes, functions, modules and objects."""
    if isinstance(LIKE, DiagonalNetwork) and NORM is not None:
        return matching(LIKE, point.direction).scaled(point.alpha)
    return balanced_on_data if RULES else initialization.identity(LIKE)


def problem(point, kind=lt.Regression):
    """Has a public class as a default."""
    return kind(jnp.ones((1, 2)), point.alpha[None])


class Own:
    """A class whose method refers to public objects and functions."""

    def make(self):
        """A network."""
        return matching(LIKE, NORM)


GRID = Grid((Axis("alpha", [0.5, 1.0]),), start, problem)
OBSERVABLES = (Measured("decomposed", lt.dense_tensor), Measured("own", Own), Measured("s", start))

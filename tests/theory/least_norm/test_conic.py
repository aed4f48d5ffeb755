"""If the conic solver breaks down, another one solves the program, or there is an error."""

from types import SimpleNamespace

import clarabel
import numpy as np
import pytest

import lintensor_jax as lt
from lintensor_jax.theory.least_norm.conic import Constraints
from lintensor_jax.theory.least_norm.gauge_programs import solve_level


class BreaksDown:
    """Replaces Clarabel; its solutions are not finite."""

    def __init__(self, *arguments):
        self.size = arguments[0].shape[0]

    def solve(self):
        nothing = np.full(self.size, np.nan)
        return SimpleNamespace(x=nothing, z=nothing, status="NumericalError")


@pytest.mark.parametrize("norm", [lt.L1Norm(), lt.LInfNorm()])
def test_linear_programs_are_solved_by_highs(norm, monkeypatch):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(8, 5))
    rows = X * np.sign(X @ rng.normal(size=5))[:, None]
    gauge, given = norm.gauge((5,))[0], Constraints.of(rows, np.ones(8), False)
    usual = solve_level(gauge, given)
    monkeypatch.setattr(clarabel, "DefaultSolver", BreaksDown)
    found = solve_level(gauge, given)
    # Clarabel's tolerance is 1e-13 here, of which it reaches about 1e-10.
    np.testing.assert_allclose(found.point, usual.point, rtol=0, atol=1e-9)
    np.testing.assert_allclose(found.level, usual.level, rtol=1e-9)


def test_other_programs_say_that_no_solution_was_found(monkeypatch):
    monkeypatch.setattr(clarabel, "DefaultSolver", BreaksDown)
    problem = lt.Classification([[1.0, 2.0, 0.5], [0.0, -3.0, 1.0]], [1.0, -1.0])
    with pytest.raises(ArithmeticError, match="NumericalError"):
        lt.max_margin(problem, lt.FourierL1Norm())

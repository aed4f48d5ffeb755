"""Where the conic solver breaks down, another one has the answer, or an error says so."""

from types import SimpleNamespace

import clarabel
import numpy as np
import pytest

import lintensor_jax as lt


class BreaksDown:
    """In place of Clarabel: no numbers come back."""

    def __init__(self, *arguments):
        self.size = arguments[0].shape[0]

    def solve(self):
        nothing = np.full(self.size, np.nan)
        return SimpleNamespace(x=nothing, z=nothing, status="NumericalError")


@pytest.mark.parametrize("norm", [lt.L1Norm(), lt.LInfNorm()])
def test_linear_programs_are_solved_by_highs(norm, monkeypatch):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(8, 5))
    problem = lt.Classification(X, np.sign(X @ rng.normal(size=5)))
    usual = lt.max_margin(problem, norm)
    monkeypatch.setattr(clarabel, "DefaultSolver", BreaksDown)
    found = lt.max_margin(problem, norm)
    # Both are polished to rounding.
    np.testing.assert_allclose(found.direction, usual.direction, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.margin, usual.margin, rtol=1e-12)


def test_other_programs_say_that_no_solution_was_found(monkeypatch):
    monkeypatch.setattr(clarabel, "DefaultSolver", BreaksDown)
    with pytest.raises(ArithmeticError, match="NumericalError"):
        lt.max_margin(lt.Classification([[1.0, 2.0], [0.0, -3.0]], [1.0, -1.0]), lt.L2Norm())

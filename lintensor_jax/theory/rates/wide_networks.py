"""Wide two-layer networks with random parameters: Lemma 11 and Theorem 12 of Min et al. 2021.

Entries of U and V are independent, N(0, h^(-2a)) with 1/4 < a <= 1/2 and the width h. Constants are
explicit. All statements hold on one random event of probability at least 1 - delta: all singular
values of h^a [V^T U^T], shape (h, m + d), differ from sqrt(h) by at most
q = sqrt(m + d) + sqrt(2 log(2/delta)) (Davidson & Szarek 2001, Theorem 2.13).
"""

import math

import numpy as np

from ...problems import Regression, named
from ..assumptions import Assumption
from .bounds import Bound, growth
from .imbalance import MIN


def lemma_11(
    problem: Regression, width: int, exponent: float = 0.5, failure_probability: float = 0.1
) -> tuple[Bound, Bound, Bound]:
    """Imbalance, distance from the invariant set, and size of the product, at the start.

    For h > 16 q^2, with probability at least 1 - delta all three hold together:

    * D_u > h^(1-2a);
    * |(V U_2^T; U_1 U_2^T)|_F <= 2 sqrt(m + r) q / h^(2a-1/2);
    * |U_1 V^T|_F <= 2 sqrt(m) q / h^(2a-1/2).

    **Arguments**

    - `problem`: a `Regression`; only the shapes (n, d), (n, m) and the rank r of X matter.
    - `width`: h. `exponent`: a in (1/4, 1/2]. `failure_probability`: delta in (0, 1).

    **Raises** ValueError for numbers out of range, or another problem.

    Source: Min et al. 2021, Lemma 11 and its proof (E.5)-(E.8).
    """
    data = _Quantities("lemma_11", problem, width, exponent, failure_probability)
    assumptions = (data.wide_enough(data.least_width, "Lemma 11"),)
    deviation = 2 * data.q / width ** (2 * exponent - 0.5)
    rows = (
        ("the level of imbalance D_u >", width ** (1 - 2 * exponent)),
        ("|(V U_2^T; U_1 U_2^T)|_F <=", math.sqrt(data.outputs + data.rank) * deviation),
        ("|U_1 V^T|_F <=", math.sqrt(data.outputs) * deviation),
    )
    odds = f"with probability >= {1 - failure_probability:g}, "
    first, second, third = (
        Bound("Lemma 11", odds + quantity, value, assumptions) for quantity, value in rows
    )
    return first, second, third


def theorem_12(
    problem: Regression, width: int, exponent: float = 0.5, failure_probability: float = 0.1
) -> Bound:
    """Distance of the limit from the min-norm solution, for wide random networks.

    For h > h_0^(1/(4a-1)), with probability at least 1 - delta,
    |lim U V^T - beta|_F <= 2 C^(1/h^(1-2a)) sqrt(m + r) q / h^(2a-1/2), where
    C = exp(1 + sqrt(l_1(Sigma)) |Y|_F / l_r(Sigma)) and
    h_0 = max(16 q^2, 4 m (l_1(Sigma) / l_r(Sigma))^2 q^2).

    Arguments and errors as in `lemma_11`.

    Source: Min et al. 2021, Theorem 12; h_0 as its proof (E.15)-(E.17) gives it when |E(0)|_F is
    bounded by |Y|_F + sqrt(l_1(Sigma)) |U_1 V^T|_F.
    """
    data = _Quantities("theorem_12", problem, width, exponent, failure_probability)
    condition = data.largest / data.smallest
    least = max(data.least_width, 4 * data.outputs * (condition * data.q) ** 2)
    log_c = 1 + math.sqrt(data.largest) * float(np.linalg.norm(problem.y)) / data.smallest
    start = lemma_11(problem, width, exponent, failure_probability)[1].value
    return Bound(
        "Theorem 12",
        f"with probability >= {1 - failure_probability:g}, |lim U V^T - min-norm solution|_F <=",
        growth(log_c / width ** (1 - 2 * exponent)) * start,
        (data.wide_enough(least ** (1 / (4 * exponent - 1)), "Theorem 12"),),
    )


class _Quantities:
    """The numbers of a problem that the statements use."""

    def __init__(self, owner, problem, width, exponent, failure_probability):
        if not isinstance(problem, Regression) or not problem.has_squared_loss:
            raise ValueError(
                f"{owner}: problem must be a Regression, got {named(problem)}; the "
                "statements are about the squared loss."
            )
        if width < 1:
            raise ValueError(f"{owner}: width must be >= 1, got {width}; it is the hidden layer's.")
        if not 0.25 < exponent <= 0.5:
            raise ValueError(
                f"{owner}: exponent must lie in (1/4, 1/2], got {exponent}; entries are drawn from "
                "N(0, h^(-2 exponent))."
            )
        if not 0 < failure_probability < 1:
            raise ValueError(
                f"{owner}: failure_probability must lie in (0, 1), got {failure_probability}; 0.1 "
                "means that the statement holds in at least 90 percent of all draws."
            )
        X = np.asarray(problem.X)
        squares = np.linalg.svd(X, compute_uv=False) ** 2
        squares = squares[squares > (max(X.shape) * np.finfo(X.dtype).eps) ** 2 * squares[0]]
        if squares.size == 0:
            raise ValueError(f"{owner}: X must not be zero; without data no parameter moves.")
        self.width = width
        self.outputs = 1 if problem.y.ndim == 1 else problem.y.shape[1]
        self.rank = len(squares)
        self.largest, self.smallest = float(squares[0]), float(squares[-1])
        self.q = math.sqrt(self.outputs + X.shape[1]) + math.sqrt(
            2 * math.log(2 / failure_probability)
        )
        self.least_width = 16 * self.q**2

    def wide_enough(self, least, statement):
        """The assumption that h is large enough for the statement."""
        return Assumption(
            f"h > {least:.6g}, the width h", self.width, self.width > least, f"{MIN}, {statement}"
        )

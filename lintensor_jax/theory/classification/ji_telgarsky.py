"""The maximum margin of fully connected networks by Ji & Telgarsky 2019: section 2.2.

The conditions on the data are about the support vectors z_i = y_i x_i, those of the least margin
along the maximum-margin direction u. They span the space of the data (Assumption 2.7), and zero is
an interior point of the convex hull of their parts orthogonal to u (Lemma 2.10; it holds for almost
all data).
"""

import itertools
import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from ...networks import FullyConnectedNetwork
from ...problems import Classification
from ..assumptions import Assumption, rounding
from ..least_norm.max_margin import MaxMargin, max_margin
from ..least_norm.norms import L2Norm
from ..prediction import Candidate, Conclusion, Kind
from .alignment import JI_TELGARSKY, learning_conditions

# The most choices of support vectors that are tried as vertices of the polar polytope.
_MOST_VERTICES = 200_000
# The part of a sample orthogonal to the optimal direction, relative to the samples, counts as zero
# below this.
_ZERO_ORTHOGONAL_PART = 1e-9
# A multiplier counts as positive above this share of the largest; optima have errors of 1e-13.
_POSITIVE = 1e-8


def lemma_2_10(problem: Classification) -> float:
    """alpha = min over unit xi orthogonal to u of max_{i in S} <xi, z_i>; S: the support vectors.

    xi lies in the span of the data; alpha is in units of X. It is 1 over the length of the longest
    vertex of the polytope <x, z_i> <= 1, i in S, in the orthogonal complement of u; 0 if the
    polytope is unbounded.

    **Raises** ValueError if the vertices are too many to try (more than 200,000 choices), and
    `NonSeparableError` for data that are not separable.

    Source: Ji & Telgarsky 2019, Lemma 2.10.
    """
    found = max_margin(problem, L2Norm())
    across, dimension = _across(problem, found)
    if dimension == 0:
        return math.inf
    count = math.comb(len(across), dimension)
    if count > _MOST_VERTICES:
        raise ValueError(
            f"problem: lemma_2_10 tries all choices of {dimension} of {len(across)} support "
            f"vectors, at most {_MOST_VERTICES}, got {count}; take fewer samples or coefficients."
        )
    if not _zero_is_inside(found, len(across), dimension):
        return 0.0
    size = float(np.max(np.abs(across)))
    longest = 0.0
    for chosen in itertools.combinations(range(len(across)), dimension):
        rows = across[list(chosen)]
        if abs(np.linalg.det(rows / size)) <= rounding(rows):
            continue
        vertex = np.linalg.solve(rows, np.ones(dimension))
        if np.all(across @ vertex <= 1 + 1e-9):
            longest = max(longest, float(np.linalg.norm(vertex)))
    return 1 / longest if longest else 0.0


def lemma_2_11(problem: Classification) -> float:
    """A bound on |w_perp|, w_perp the part of w orthogonal to u: above it a flow shortens w_perp.

    It is (1 + log n) / alpha for the exponential loss, and 2 n / (e alpha) for a loss with slope at
    most that of the exponential, such as the logistic loss. For every longer w_perp and
    <w, u> >= 0, <w_perp, grad R(w)> >= 0.

    Source: Ji & Telgarsky 2019, Lemma 2.11; the constant of the exponential loss is that of its
    proof. Raises as `lemma_2_10`.
    """
    alpha, n = lemma_2_10(problem), len(problem.y)
    if problem.margin_loss.is_exponential:
        return (1 + math.log(n)) / alpha if alpha else math.inf
    return 2 * n / (math.e * alpha) if alpha else math.inf


def _across(problem, found: MaxMargin):
    """The support vectors orthogonal to u, in coordinates of the data's span; its dimension - 1."""
    rows = np.asarray(problem.signed_data)
    u = np.asarray(found.direction)
    rest = rows - np.outer(rows @ u, u)
    sizes, right = np.linalg.svd(rest, full_matrices=False)[1:]
    scale = float(np.max(np.linalg.norm(rows, axis=1)))
    # The threshold covers the error of u, which comes from a numerical program.
    basis = right[sizes > max(_ZERO_ORTHOGONAL_PART, rounding(rows)) * scale]
    return rest[np.asarray(found.support)] @ basis.T, len(basis)


def _zero_is_inside(found: MaxMargin, count, dimension) -> bool | None:
    """Whether all multipliers can be positive; None if more support vectors make it ambiguous."""
    weights = np.asarray(found.multipliers)[np.asarray(found.support)]
    if np.all(weights > _POSITIVE * weights.max()):
        return True
    return False if count <= dimension + 1 else None


def ji_telgarsky_candidate(
    network: FullyConnectedNetwork, problem: Classification, separable: Assumption
) -> Candidate:
    """Theorems 2.2 and 2.8: the risk tends to zero, the direction to the maximum margin."""
    name = f"Theorems 2.2 and 2.8 ({JI_TELGARSKY})"
    conditions = learning_conditions(network, problem)
    if not separable.holds:
        return Candidate(name, (separable, *conditions), lambda: Conclusion(Kind.EXACT, None))
    found = max_margin(problem, L2Norm())
    across, dimension = _across(problem, found)
    # The tolerance is relative to the data: with one support vector `across` is only an error.
    scale = float(jnp.max(jnp.linalg.norm(problem.X, axis=1)))
    rank = int(np.linalg.matrix_rank(across, tol=_ZERO_ORTHOGONAL_PART * scale)) if dimension else 0
    spans = Assumption(
        "the support vectors span the space of the data: their rank, that of the data",
        (rank + 1, dimension + 1),
        rank == dimension,
        f"{JI_TELGARSKY}, Assumption 2.7",
    )
    weights: Any = np.asarray(found.multipliers)[np.asarray(found.support)]
    generic = Assumption(
        "alpha of Lemma 2.10 is positive: the smallest multiplier of a support vector over the "
        "largest",
        float(weights.min() / weights.max()),
        _zero_is_inside(found, len(across), dimension),
        f"{JI_TELGARSKY}, Lemma 2.10",
    )
    notes = (
        "It is also proved that every layer's norm grows without bound, and that the layers tend "
        "to rank one and align.",
    )
    return Candidate(
        name,
        (separable, *conditions, spans, generic),
        lambda: Conclusion(Kind.EXACT, found.direction, None, notes),
    )

"""Limit directions with several classes: KKT points, and candidates for them."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from ...networks.closed_forms import closed_form
from ..assumptions import Assumption, log_loss
from ..convergence import refuted_convergence
from ..prediction import Candidate, Conclusion, Kind
from ..separability import separability

LYU_LI = "Lyu & Li 2020, appendix G"


def multiclass_candidates(network: Any, problem: Any) -> Iterator[Candidate]:
    """The theorem of Lyu & Li for any homogeneous network on `MulticlassClassification`."""
    depth = int(getattr(network, "depth", 0))
    homogeneous = Assumption("the network is homogeneous, its depth", depth, depth >= 1, LYU_LI)
    separable, _ = separability(problem, LYU_LI)
    value = float(np.exp(min(log_loss(network, problem), 700.0)))
    below = Assumption(
        "the loss falls below log 2 at some time; now it is L(0)",
        value,
        True if value < np.log(2) else None,
        LYU_LI,
    )
    refuted = None if below.holds else refuted_convergence(network, problem)
    notes = (
        "The parameters tend in direction to a KKT point of min |Theta|^2 subject to m_ic >= 1 "
        "for every other class c of every sample: lintensor_jax.limit_direction finds the one of a "
        "flow. From log 2 on -log(e^L - 1) / |Theta|^depth never decreases.",
        *_candidate_norm(network),
    )
    yield Candidate(
        LYU_LI,
        (homogeneous, separable, refuted or below),
        lambda: Conclusion(Kind.STATIONARY, None, None, notes),
    )


def _candidate_norm(network):
    """Notes that name the problem whose solution the KKT point may be, without a proof."""
    order = closed_form(network, "induced_norm_order")
    singular = closed_form(network, "induced_singular_norm_order")
    if singular == 1:
        return (
            "A candidate, not a prediction: two balanced layers tend to the least nuclear norm, "
            "lintensor_jax.max_margin(problem, lintensor_jax.NuclearNorm()).direction.",
        )
    if singular is not None:
        return (
            "A candidate, not a prediction: balanced layers tend to a stationary point of the "
            f"Schatten {singular:.3g} quasi-norm subject to m_ic >= 1.",
        )
    if order is not None and order <= 2:
        name = {1.0: "L1Norm()", 2.0: "L2Norm()"}.get(order, f"LpNorm({order:.6g})")
        return (
            "A candidate, not a prediction: a stationary point of the induced regulariser, "
            f"lintensor_jax.max_margin(problem, lintensor_jax.{name}).direction.",
        )
    return ()

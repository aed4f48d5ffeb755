"""Whether a flow's loss tends to its least value, as far as this is known before the flow runs."""

from collections.abc import Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..eager_programs import eager_program
from ..networks import coefficients_and_pullback
from .assumptions import Assumption
from .critical_levels import critical_levels
from .invariant_sets import CLAIM, excluded_by_an_invariant_set
from .row_space import row_space


def refuted_convergence(network: Any, problem: Any) -> Assumption | None:
    """A failed assumption that states why this flow's loss cannot tend to 0; None if open.

    Three reasons are tested:

    - the start is a critical point, so the flow does not move;
    - the rank of the targets is larger than the width of the narrowest layer;
    - the start lies in an invariant set that excludes the solution (`invariant_sets`).

    **Arguments**

    - `network`: any network.
    - `problem`: `Regression` or `Classification` with concrete arrays.
    """
    for decide in (critical_start, _too_narrow, excluded_by_an_invariant_set):
        found = decide(network, problem)
        if found is not None:
            return found
    return None


def critical_start(network: Any, problem: Any) -> Assumption | None:
    """A failed assumption if the start is a critical point and no global minimum; else None."""
    at_minimum, moves = _at_minimum_and_moves(network, problem)
    if at_minimum or moves:
        return None
    return Assumption(
        f"{CLAIM} (it cannot: the start is a critical point, no flow moves), |gradient|",
        0.0,
        False,
        "this package",
    )


@eager_program()
def _at_minimum_and_moves(network, problem):
    """Whether the gradient by beta is 0 (never with margins), and whether that by Theta is not."""
    beta, pull = coefficients_and_pullback(network)
    if problem.has_margins:
        # The softmax of the log slopes normalises the gradient, which may underflow otherwise.
        weights = jax.nn.softmax(problem.log_slopes(problem.margins(beta)), axis=None)
        gradient, at_minimum = problem.margins_adjoint(weights), jnp.asarray(False)
    else:
        gradient = problem.adjoint(problem.residual(beta))
        at_minimum = ~jnp.any(gradient != 0)
    leaves = [x for x in jax.tree.leaves(pull(gradient)) if eqx.is_inexact_array(x)]
    return at_minimum, jnp.any(jnp.stack([jnp.any(leaf != 0) for leaf in leaves]))


def _too_narrow(network, problem):
    if problem.has_margins or np.ndim(problem.y) != 2 or not hasattr(network, "weights"):
        return None
    widths = [w.shape[0] for w in network.weights[1:]]
    rank = critical_levels(network.weights, row_space(problem.X, problem.y)).wanted
    if not widths or rank <= min(widths):
        return None
    return Assumption(
        f"{CLAIM} (it cannot: the targets have rank {rank}, the narrowest layer has width "
        f"{min(widths)}), width",
        min(widths),
        False,
        "this package",
    )


def convergence(refuted: Assumption | None, proofs: Iterable[Assumption | None], goal: str):
    """The assumption `goal` ("the loss tends to 0"): proved, refuted, or open.

    `refuted`: the result of `refuted_convergence`. `proofs`: assumptions that imply the goal if
    they hold. Entries that are None or do not hold are skipped.
    """
    if refuted is not None:
        return refuted
    for proof in proofs:
        if proof is not None and proof.holds:
            return proof
    return Assumption(goal, None, None, "this package")

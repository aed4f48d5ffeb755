"""What can be decided, before a flow has run, about the claim that its loss tends to its least."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..networks import coefficients_and_pullback
from ..problems import Regression
from .assumptions import Assumption, is_tensor_network, rounding

_CLAIM = "the loss tends to its least value"
# How far a sum of two layers may be from zero by the rounding of a singular value decomposition.
_ROUNDINGS = 16


def refuted_convergence(network: Any, problem: Any) -> Assumption | None:
    """An assumption that fails and says why this flow's loss cannot tend to 0; None if open.

    Three reasons are decided: the start is a critical point, where no flow moves; the targets have
    a higher rank than the narrowest layer lets through; in two layers on one direction of data
    every growing component of the start is zero, so that the prediction keeps its sign (Yun et al.
    2021, proof of Theorem 6; for one neuron Ji & Telgarsky 2019, Appendix A).

    **Arguments**

    - `network`: any network.
    - `problem`: `Regression` or `Classification` with concrete arrays.
    """
    for decide in (_critical_start, _too_narrow, _keeps_its_sign):
        found = decide(network, problem)
        if found is not None:
            return found
    return None


def _critical_start(network, problem):
    beta, pull = coefficients_and_pullback(network)
    if problem.has_margins:
        # The softmax of the slopes: the gradient without its size, which may underflow.
        weights = jax.nn.softmax(problem.margin_loss.log_slope(problem.margins(beta)))
        gradient = problem.signed_data.T @ weights
    else:
        gradient = problem.adjoint(problem.residual(beta))
        if not np.any(np.asarray(problem.residual(beta))):
            return None
    leaves = [x for x in jax.tree.leaves(pull(gradient)) if eqx.is_inexact_array(x)]
    if any(np.any(np.asarray(leaf)) for leaf in leaves):
        return None
    return Assumption(
        f"{_CLAIM} (it cannot: the start is a critical point, no flow moves), |gradient|",
        0.0,
        False,
        "this package",
    )


def _too_narrow(network, problem):
    if problem.has_margins or np.ndim(problem.y) != 2 or not hasattr(network, "weights"):
        return None
    widths = [w.shape[0] for w in network.weights[1:]]
    sizes = np.linalg.svd(np.asarray(problem.y), compute_uv=False)
    # 4 * 256 roundings: only singular values that no rounding has made count.
    rank = int(np.sum(sizes > 4 * rounding(problem.y) * max(problem.y.shape) * sizes[0]))
    if not widths or rank <= min(widths):
        return None
    return Assumption(
        f"{_CLAIM} (it cannot: the targets have rank {rank}, the narrowest layer has width "
        f"{min(widths)}), width",
        min(widths),
        False,
        "this package",
    )


def _keeps_its_sign(network, problem):
    """Two layers, one direction of data: v_1 and v_2 turn hyperbolically, each (a, b) by itself."""
    if not is_tensor_network(network) or network.depth != 2 or np.ndim(problem.y) != 1:
        return None
    direction = _only_direction(problem)
    if direction is None:
        return None
    x, sign = direction
    first, second = (np.asarray(v) for v in network.factors)
    left, s, right = np.linalg.svd(np.asarray(network.data_tensor(jnp.asarray(x))))
    rank = int(np.sum(s > rounding(s) * s[0])) if s.size else 0
    a, b = (left.T @ first)[:rank], (right @ second)[:rank]
    growing = float(np.max(np.abs(a + sign * b), initial=0.0))
    size = float(max(np.max(np.abs(a), initial=0.0), np.max(np.abs(b), initial=0.0)))
    if growing > _ROUNDINGS * float(np.finfo(s.dtype).eps) * size:
        return None
    return Assumption(
        f"{_CLAIM} (it cannot: U_1^T v_1 + sign(y) U_2^T v_2 = 0 is kept by the flow, and the "
        "prediction never has the sign of y), its largest entry",
        growing,
        False,
        "Yun et al. 2021, proof of Theorem 6; Ji & Telgarsky 2019, Appendix A",
    )


def _only_direction(problem):
    """x and the sign of the predictions that are asked for, where all samples are multiples of x.

    None where the samples span more than one direction, or no predictor has zero loss.
    """
    X, y = np.asarray(problem.X), np.asarray(problem.y)
    left, sizes, right = np.linalg.svd(X, full_matrices=False)
    if not sizes[0] > 0 or np.any(sizes[1:] > rounding(X) * sizes[0]):
        return None
    along = left[:, 0] * sizes[0]
    if problem.has_margins:
        signs = np.sign(y * along)
        return (right[0], signs[0]) if np.all(signs == signs[0]) and signs[0] else None
    wanted = float(along @ y) / float(along @ along)
    if np.linalg.norm(along * wanted - y) > rounding(y) * np.linalg.norm(y):
        return None  # the loss does not tend to 0 anyway: the data say so
    return (right[0], np.sign(wanted)) if wanted else None


def tends_to_zero(network: Any, problem: Regression, proved: bool, source: str) -> Assumption:
    """The assumption "the loss tends to 0": proved, refuted, or open."""
    if not proved:
        refuted = refuted_convergence(network, problem)
        if refuted is not None:
            return refuted
    return Assumption("the loss tends to 0", None, True if proved else None, source)

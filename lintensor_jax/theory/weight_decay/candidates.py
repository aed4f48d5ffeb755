"""Flows with weight decay: the penalties that they minimise, by depth and architecture."""

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from ...networks import LinearNetwork
from ...networks.closed_forms import closed_form
from ...networks.effective_start import two_layers_of
from ...penalized import Penalized
from ..assumptions import Assumption, rounding
from ..least_norm.gauges import GroupGauge
from ..least_norm.norms import AbstractNorm, FourierL1Norm, L1Norm, L2Norm, NuclearNorm
from ..prediction import Candidate, Conclusion, Kind
from .minimum import PenalizedMinimum, least_penalized, ridge

_PACKAGE = "this package"
_HADAMARD = "Hoff 2017"
_FACTORED = "Haeffele & Vidal 2015"
# Random coefficients on which a regulariser is compared with a norm.
_DRAWS = 4
_POINT = "A point, for classification too: the penalty keeps beta finite."


def decay_candidates(network: Any, problem: Penalized) -> Iterator[Candidate]:
    """The theorems on flows of the loss of `problem` plus lambda/2 |Theta|^2, lambda > 0.

    - One layer: the ridge solution, exactly.
    - Two layers with a real orthogonal decomposition: lambda |rho|_1, exactly. In a = (u+v)/sqrt 2
      and b = (u-v)/sqrt 2 the flow is a' = -(G + lambda) a, b' = (lambda - G) b, where G is the
      gradient in rho = u . v. It is bounded and has a limit. An a_j or b_j that starts away from
      zero cannot tend to zero while it grows, so that |G_j| <= lambda at the limit. That is the
      condition of the lasso.
    - Two layers of another architecture: lambda/2 R(beta), R the induced regulariser, from almost
      every start. No other critical point is stable.
    - More layers: stationary points of the same, with R not convex.
    """
    if isinstance(network, LinearNetwork):
        yield _one_layer(network, problem)
        return
    depth = getattr(network, "depth", 0)
    if getattr(network, "has_bias", False) or depth < 2:
        return
    if depth == 2:
        layers = two_layers_of(network)
        if layers is not None:
            yield _two_layers(layers, problem)
        penalty = _penalty(network, problem)
        yield penalty
        if not penalty.violated:
            return
    yield _stationary(depth)


def _one_layer(network, problem):
    decay = float(problem.weight_decay)
    free = int(network.has_bias)
    found = ridge(problem.problem, decay, free) if _is_convex(problem) else None
    measured = () if found is None else (_reached(found),)

    def conclude():
        norm = "|w|^2, without the bias" if free else "|w|^2"
        notes = (f"The minimum of the loss + lambda/2 {norm}, from every start.",)
        return _concluded(found, problem.coefficient_shape, problem, notes)

    return Candidate("ridge (one layer with weight decay)", (_convex(problem), *measured), conclude)


def _two_layers(layers, problem):
    first, second = np.asarray(layers.first), np.asarray(layers.second)
    S = None if layers.S is None else np.asarray(layers.S)
    signs = first != second, first != -second  # b moves beta down, a moves it up
    weight = float(problem.weight_decay) / layers.gain
    shape = problem.coefficient_shape

    def to_beta(rho):
        return (rho if S is None else S.T @ rho).reshape(shape)

    def to_rho(gradient):
        return gradient.ravel() if S is None else S @ gradient.ravel()

    found = None
    if _is_convex(problem):
        gauge = GroupGauge(np.arange(first.size))
        found = least_penalized(problem.problem, weight, gauge, to_beta, to_rho, first.size, signs)
        found = found._replace(coefficients=to_beta(found.coefficients))
    kept = int(np.sum(~(signs[0] & signs[1])))

    def conclude():
        notes = [f"The minimum of the loss + {weight:.6g} |rho|_1, beta = S^T rho (the lasso)."]
        if kept:
            notes.append(f"{kept} coordinates are balanced at the start, and keep their signs.")
        return _concluded(found, shape, problem, tuple(notes))

    assumptions = (_convex(problem, _HADAMARD), *_measured(found))
    return Candidate("lasso (two layers with weight decay)", assumptions, conclude)


def _penalty(network, problem):
    shape = problem.coefficient_shape
    norm, factor = _norm_of(network, shape)
    known = Assumption(
        "the induced regulariser is a multiple of the l1, l2, nuclear or Fourier l1 norm",
        "not known" if norm is None else f"{factor:.6g} {type(norm).__name__}",
        norm is not None,
        "Gunasekar et al. 2018, eq. 15",
    )
    width = closed_form(network, "largest_rank")
    wide = Assumption(
        "the layers let every rank through, largest rank",
        "not known" if width is None else width,
        None if width is None else len(shape) < 2 or width >= min(shape),
        _FACTORED,
    )
    stable = Assumption(
        "the start is not one of those, of measure zero, whose flow ends at a saddle",
        None,
        None,
        "Panageas & Piliouras 2016",
    )
    assumptions = (known, wide, _convex(problem, _FACTORED))
    found = None
    if norm is not None and all(a.holds for a in assumptions):
        found = _of_norm(problem, norm, 0.5 * factor * float(problem.weight_decay))

    def conclude():
        notes = (f"The minimum of the loss + lambda/2 R, R = {known.value}.",)
        return _concluded(found, shape, problem, notes)

    name = "penalised minimum (two layers with weight decay)"
    return Candidate(name, (*assumptions, *_measured(found), stable), conclude)


def _stationary(depth):
    notes = (
        "The flow ends at a stationary point of the loss + lambda/2 |Theta|^2. Its coefficients "
        "are one of the loss + lambda/2 R(beta), R the induced regulariser.",
    )
    if depth > 2:
        notes += ("Zero is one of them, which attracts small starts.",)
    deep = Assumption("two layers or more, L", depth, True, _PACKAGE)
    return Candidate(
        "stationary points (weight decay)",
        (deep,),
        lambda: Conclusion(Kind.STATIONARY, None, None, notes),
    )


def _of_norm(problem, norm: AbstractNorm, weight) -> PenalizedMinimum:
    shape = problem.coefficient_shape
    gauge, form = norm.gauge(shape)

    def to_beta(rho):
        return form.coefficients(rho).reshape(shape)

    def to_rho(gradient):
        return form.measurements(gradient.reshape(1, -1))[0]

    size = int(np.prod(shape))
    found = least_penalized(problem.problem, weight, gauge, to_beta, to_rho, size)  # pyright: ignore
    return found._replace(coefficients=to_beta(found.coefficients))


def _norm_of(network, shape) -> tuple[AbstractNorm | None, float]:
    """The norm and the factor c with R = c norm, tried on random coefficients."""
    rng = np.random.default_rng(0)
    draws = [jnp.asarray(rng.standard_normal(shape)) for _ in range(_DRAWS)]
    values = [closed_form(network, "induced_regularizer", beta) for beta in draws]
    if any(value is None for value in values):
        return None, 0.0
    of_vectors, of_matrices = (L1Norm(), FourierL1Norm(), L2Norm()), (L1Norm(), NuclearNorm())
    for norm in of_vectors if len(shape) == 1 else of_matrices:
        ratios = [float(v) / float(norm(b)) for v, b in zip(values, draws, strict=True)]
        if max(ratios) - min(ratios) <= rounding(draws[0]) * max(ratios):
            return norm, ratios[0]
    return None, 0.0


def _is_convex(problem) -> bool:
    if problem.has_residuals:
        return bool(problem.residual_loss.is_convex_with_minimum_at_zero)
    return bool(problem.has_margins and problem.margin_loss.is_convex)


def _convex(problem, source=_PACKAGE):
    loss = problem.residual_loss if problem.has_residuals else problem.margin_loss
    name = type(loss).__name__
    return Assumption(f"{name} is convex", name, _is_convex(problem), source)


def _measured(found: PenalizedMinimum | None):
    if found is None:
        return ()
    only = Assumption(
        "the minimum is the only one",
        "yes" if found.unique else "not known",
        found.unique,
        _PACKAGE,
    )
    return _reached(found), only


def _reached(found: PenalizedMinimum):
    return Assumption(
        "the minimum was found: what is left of both gradients over that at zero",
        found.residual,
        found.converged,
        _PACKAGE,
    )


def _concluded(found, shape, problem, notes):
    limit = jnp.asarray(found.coefficients.reshape(shape), problem.weight_decay.dtype)
    notes = (*notes, _POINT) if problem.has_margins else notes
    return Conclusion(Kind.EXACT, limit, None, notes)

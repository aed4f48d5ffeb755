"""Limits of runs other than gradient flow (steps, noise, momentum), from their effective start."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ...networks.effective_start import EffectiveStart
from ...networks.pair import check_problem
from ...problems import AbstractProblem, named
from ..assumptions import Assumption
from ..prediction import Candidate, Conclusion, Kind, Prediction, choose, nothing_to_conclude
from .other_mirror_maps import project

_PACKAGE = "this package"
# A run counts as converged below this residual r: until the limit its sums change by about r^2.
_REACHED = 1e-5


def effective_limit(solution: Any, problem: AbstractProblem) -> Prediction:
    """The limit of a run on two layers, from the sums that the run has recorded.

    For every training of two layers u . v (steps of any length, mini-batches, noise, momentum) the
    limit is that of gradient flow from another start: the Bregman projection (`bregman_projection`)
    of the *effective start*, `solution.effective_start`. The theorem is about runs that fit the
    data in the end; the residual at the end is measured.

    **Arguments**

    - `solution`: of `gradient_descent` (Even et al. 2023), `stochastic_flow` (Pesme et al. 2021),
      `heavy_ball_flow` (Papazov et al. 2024), or a user's object with `network` and
      `effective_start` (an `EffectiveStart`).
    - `problem`: the regression that it was run on, with y of shape (n,).

    **Returns** a `Prediction`. For a batch of runs, `jax.vmap` of `theory.bregman_projection` over
    `solution.effective_start.scale` and `.coefficients` gives the limits without the assumptions.

    **Raises** ValueError for a solution without the property, for batches and for traced arrays.
    """
    network, start = _checked(solution, problem)
    subject = (
        f"{type(solution).__name__} of {type(network).__name__}, on {named(problem)} with n = "
        f"{np.shape(problem.residual(network.linear_coefficients()))[0]}"
    )
    two_layers = Assumption(
        "two layers with a real orthogonal decomposition",
        "yes" if start is not None else f"none is known for {type(network).__name__}",
        start is not None,
        "Yun et al. 2021, Assumption 1",
    )
    residuals = Assumption(
        "a loss of residuals with one target a sample",
        named(problem),
        problem.has_residuals and np.ndim(problem.y) == 1,  # pyright: ignore
        _PACKAGE,
    )
    if start is None or not residuals.holds:
        name = "Bregman projection of the effective start" if start is None else start.theorem
        unknown = Candidate(name, (two_layers, residuals), nothing_to_conclude)
        return choose(subject, (), (), unknown)
    candidate = _candidate(network, problem, start, two_layers, residuals)
    return choose(subject, (), [candidate], candidate)


def _candidate(network, problem: Any, start: EffectiveStart, *setting: Assumption) -> Candidate:
    rows, targets = _independent(problem)
    measured = [Assumption(m.statement, float(m.value), m.holds, m.source) for m in start.measured]
    smallest = float(jnp.min(start.log_scale))
    finite = bool(jnp.all(jnp.isfinite(start.log_scale) & jnp.isfinite(start.angle)))
    unbalanced = Assumption(
        "no coordinate of the two layers is balanced, smallest log mu, mu = |u_j^2 - v_j^2|/2",
        smallest,
        finite,
        "Woodworth et al. 2020; Azulay et al. 2021",
    )

    def conclude():
        found = project(start.S, rows, targets, start.log_scale, start.coefficients)
        if not found.converged:
            note = f"The minimiser was not found: stationarity {float(found.stationarity):.3g}."
            return Conclusion(Kind.STATIONARY, None, None, (note,))
        return Conclusion(Kind.EXACT, found.coefficients.reshape(problem.coefficient_shape))

    assumptions = (
        *setting,
        *measured,
        unbalanced,
        _interpolates(network, problem),
    )
    return Candidate(start.theorem, assumptions, conclude)


def _independent(problem):
    """Equations with independent rows, and with the solutions of X beta = y if there are any."""
    eye = jnp.eye(problem.y.shape[0], dtype=problem.y.dtype)
    rows = np.asarray(jax.vmap(lambda e: jnp.ravel(problem.adjoint(e)))(eye))
    left, sizes, right = np.linalg.svd(rows, full_matrices=False)
    kept = sizes > max(rows.shape) * np.finfo(rows.dtype).eps * sizes[0]
    if kept.sum() == len(rows):
        return jnp.asarray(rows), problem.y
    targets = left.T[kept] @ np.asarray(problem.y)
    return jnp.asarray(sizes[kept, None] * right[kept]), jnp.asarray(targets)


def _interpolates(network, problem) -> Assumption:
    """That the run fits the data: open if it does not yet, false if it is not finite."""
    residual = problem.predictions(network.linear_coefficients()) - problem.y
    size = float(jnp.linalg.norm(problem.y))
    value = float(jnp.linalg.norm(residual)) / (size if size > 0 else 1.0)
    holds = value <= _REACHED or (None if np.isfinite(value) else False)
    return Assumption(
        "the run fits the data in the end: |X beta - y| / |y| so far", value, holds, _PACKAGE
    )


def _checked(solution, problem) -> tuple[Any, EffectiveStart | None]:
    check_problem(problem)
    if not hasattr(solution, "effective_start") or not hasattr(solution, "network"):
        raise ValueError(
            "effective_limit: solution must state an effective_start, as that of gradient_descent "
            f"does, got {type(solution).__name__}; for a gradient flow see predict."
        )
    leaves = jax.tree.leaves(eqx.filter((solution.network, problem), eqx.is_array))
    if any(isinstance(leaf, Tracer) for leaf in leaves):
        raise ValueError(
            "effective_limit: solution and problem must hold concrete arrays, got traced ones; "
            "call it outside jit and vmap, or use theory.bregman_projection."
        )
    shape = np.shape(solution.network.linear_coefficients())
    if shape != problem.coefficient_shape:
        raise ValueError(
            "effective_limit: solution and problem must agree on the shape of the coefficients, "
            f"got {shape} and {problem.coefficient_shape}; pass the problem that was run, and one "
            "lane of a batch at a time (jax.tree.map(lambda leaf: leaf[k], solution))."
        )
    return solution.network, solution.effective_start

"""The lazy regime: the flow of a network linearised at its start, in closed form at any time."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, ArrayLike, Float, Scalar

from ...networks import coefficients_and_pullback, split
from ...networks.pair import check_pair
from ...problems import AbstractProblem, named
from ..assumptions import Assumption
from ..prediction import Candidate, Conclusion, Kind, Prediction, choose

_CHIZAT = "Chizat et al. 2019"


class LinearizedFlow(eqx.Module):
    """Gradient flow of a network's linearisation at its start, on the squared loss.

    Theta -> beta(0) + J (Theta - Theta(0)), J = d beta/d Theta at the start. With the tangent
    kernel K = X J J^T X^T (N x N, N the number of targets) and r_0 the residual at the start,

        beta(t) = beta(0) - J J^T X^T K^+ (1 - e^(-K t)) r_0.

    Source: Jacot et al. 2018; Chizat et al. 2019.

    - `start`: beta(0). `modes` (N, *shape of beta): J J^T X^T v for each eigenvector v of K.
    - `rates` (N,): the eigenvalues of K, ascending; 0 if they are below rounding.
    - `weights` (N,): -<v, r_0>.
    - `relative_move`: |Theta(inf) - Theta(0)| / |Theta(0)| of the linearised flow.
    - `missed`: the norm of the part of r_0 that the linearised flow never fits, over |y|.
    """

    start: Float[Array, "..."]
    modes: Float[Array, "N ..."]
    rates: Float[Array, " N"]
    weights: Float[Array, " N"]
    relative_move: Scalar
    missed: Scalar

    def coefficients(self, time: Float[ArrayLike, "*times"]) -> Float[Array, "..."]:
        """beta, shape (*times, *beta), at physical times t >= 0 of any shape; also for t = inf."""
        times = jnp.asarray(time, self.start.dtype)
        fitted = self.rates > 0
        rates = jnp.where(fitted, self.rates, 1.0)

        def at(t):
            # A mode with rate 0 has J^T X^T v = 0: beta does not move along it.
            grown = jnp.where(fitted, -jnp.expm1(-rates * t) / rates, 0.0)
            return self.start + jnp.tensordot(grown * self.weights, self.modes, axes=1)

        return jax.vmap(at)(times.ravel()).reshape(times.shape + self.start.shape)

    @property
    def limit(self) -> Float[Array, "..."]:
        """The limit beta(0) - J J^T X^T K^+ r_0, of the shape of beta."""
        return self.coefficients(jnp.inf)


def linearized_flow(network: eqx.Module, problem: AbstractProblem) -> LinearizedFlow:
    """The flow of `network`'s linearisation at its current parameters, in closed form.

    **Arguments**

    - `network`: any network. `problem`: `Regression`, `MatrixSensing` or another one with the
      squared loss. For another convex loss with its only minimum at 0 the limit is the same, but
      the path is not; pass the problem with the squared loss for the limit.

    ValueError for another loss, for shapes that do not fit, and for traced arrays.
    """
    _check(network, problem)
    return _linearized(network, problem)


@eqx.filter_jit
def _linearized(network, problem):
    parameters, rest = split(network)
    theta, unravel = ravel_pytree(parameters)
    beta, pull = coefficients_and_pullback(network)
    y = problem.y
    units = jnp.eye(y.size, dtype=y.dtype).reshape(-1, *y.shape)
    # Row i: the gradient of prediction i, J^T X^T e_i.
    gradients = jax.vmap(lambda unit: ravel_pytree(pull(problem.adjoint(unit)))[0])(units)
    rates, vectors = jnp.linalg.eigh(gradients @ gradients.T)
    noise = jnp.finfo(y.dtype).eps * max(gradients.shape) * rates[-1]
    rates = jnp.where(rates > noise, rates, 0.0)
    residual = jnp.ravel(problem.predictions(beta) - y)
    weights = -(vectors.T @ residual)

    def push(direction):
        def along(flat):
            return eqx.combine(unravel(flat), rest).linear_coefficients()

        return jax.jvp(along, (theta,), (direction,))[1]

    moves = vectors.T @ gradients
    fitted = rates > 0
    shares = jnp.where(fitted, weights / jnp.where(fitted, rates, 1.0), 0.0)
    size = jnp.linalg.norm(theta)
    missed = jnp.linalg.norm(jnp.where(fitted, 0.0, weights))
    return LinearizedFlow(
        start=beta,
        modes=jax.vmap(push)(moves),
        rates=rates,
        weights=weights,
        relative_move=jnp.linalg.norm(shares @ moves) / size,
        missed=missed / jnp.maximum(jnp.linalg.norm(y), jnp.finfo(y.dtype).tiny),
    )


def lazy_limit(network: eqx.Module, problem: AbstractProblem) -> Prediction:
    """The limit in the lazy regime: that of the flow linearised at the start.

    beta(0) + J J^T X^T (X J J^T X^T)^+ (y - X beta(0)), J = d beta/d Theta at the start. The flow's
    limit tends to it as the relative move of the parameters tends to 0 (the measured open
    assumption). For two layers with a zero last one, started at alpha Theta(0), the distance falls
    as alpha^(-4). It is exact for a network that is linear in its parameters.

    Source: Chizat et al. 2019, Theorem 2.3; Jacot et al. 2018 for wide networks.

    **Arguments** as for `linearized_flow`, which gives the path at any time. In addition, any loss
    of residuals is allowed that states that it is convex with its only minimum at 0.

    **Returns** a `Prediction` of kind "lazy", without a limit if the linearised flow cannot fit
    the targets.
    """
    _check(network, problem, any_loss=True)
    flow = _linearized(network, problem)
    loss: Any = problem.residual_loss  # pyright: ignore[reportAttributeAccessIssue]
    slack = float(np.sqrt(np.finfo(flow.start.dtype).eps))
    missed = float(flow.missed)
    assumptions = (
        Assumption(
            "the loss is convex, with its only minimum at zero",
            type(loss).__name__,
            bool(loss.is_convex_with_minimum_at_zero),
            _CHIZAT,
        ),
        Assumption(
            "the linearised flow fits the targets: the part of y - X beta(0) that the tangent "
            "kernel does not reach, over |y|",
            missed,
            missed <= slack,
            _CHIZAT,
        ),
        Assumption(
            "the parameters move little: |Theta(inf) - Theta(0)| / |Theta(0)| of the linearised "
            "flow, which must tend to 0 for the limit to be that of the flow",
            float(flow.relative_move),
            None,
            f"{_CHIZAT}, Theorem 2.3",
        ),
    )
    theorem = f"Lazy regime ({_CHIZAT})"
    subject = f"{type(network).__name__}, on {problem.in_words}"
    candidate = Candidate(theorem, assumptions, lambda: Conclusion(Kind.LAZY, flow.limit))
    return choose(subject, (), [candidate], candidate)


def _check(network, problem, any_loss=False):
    owner = "lazy_limit" if any_loss else "linearized_flow"
    check_pair(network, problem)
    if not (problem.has_residuals if any_loss else problem.has_squared_loss):
        rule = "a loss of residuals" if any_loss else "the squared loss"
        raise ValueError(
            f"{owner}: problem must have {rule}, as Regression(X, y) has, got {named(problem)}."
        )
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((network, problem))):
        raise ValueError(
            f"{owner}: network and problem must hold concrete arrays, got traced ones; call it "
            "outside jit, grad and vmap."
        )

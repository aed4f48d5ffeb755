"""The right-hand side of every flow: a network whose parameters are one vector, and a problem."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Scalar

from ..networks import coefficients_and_pullback, split
from ..networks.base import parameter_spec
from ..networks.closed_forms import closed_form
from ..problems import AbstractProblem


class _Parts(NamedTuple):
    """A complex constant as two real arrays: diffrax warns of complex arrays, even of constants."""

    real: Array
    imag: Array


def real_parts(rest: Any) -> Any:
    """The constants of a network, with each complex array as two real ones: see `System`."""
    return jax.tree.map(
        lambda leaf: (
            _Parts(leaf.real, leaf.imag)
            if eqx.is_inexact_array(leaf) and jnp.iscomplexobj(leaf)
            else leaf
        ),
        rest,
    )


class System(eqx.Module):
    """A network and a problem, seen as functions of the flat parameter vector theta (p,).

    Clocks that keep Theta = exp(log_scale) * theta pass both theta and log_scale to the methods for
    classification. No method exponentiates a margin.
    """

    parameters: eqx.Module
    constants: eqx.Module  # arrays that are no parameters; complex ones as `_Parts`
    problem: AbstractProblem
    depth: int = eqx.field(static=True)

    @staticmethod
    def of(network: eqx.Module, problem: AbstractProblem) -> "System":
        """Split `network` into parameters and constants; its depth becomes static."""
        return System.of_parts(network, *split(network), problem)

    @staticmethod
    def of_parts(network: Any, parameters: Any, rest: Any, problem: AbstractProblem) -> "System":
        """The system of a network that has been split already into `parameters` and `rest`."""
        return System(parameters, real_parts(rest), problem, int(getattr(network, "depth", 0)))

    @property
    def rest(self) -> Any:
        """What is not a parameter of the network, as a pytree of the network's structure."""
        return jax.tree.map(
            lambda leaf: jax.lax.complex(*leaf) if isinstance(leaf, _Parts) else leaf,
            self.constants,
            is_leaf=lambda leaf: isinstance(leaf, _Parts),
        )

    @property
    def initial(self) -> Float[Array, " p"]:
        """The parameters of the network that this system was made from, as one vector."""
        leaves: Any = jax.tree.leaves(self.parameters)
        if leaves and all(isinstance(leaf, np.ndarray) for leaf in leaves):
            flat: Any = np.concatenate([leaf.ravel() for leaf in leaves])  # faster than JAX
            return flat
        return ravel_pytree(self.parameters)[0]

    @property
    def num_parameters(self) -> int:
        """The length p of theta."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.parameters))

    def network(self, theta: Float[Array, " p"]) -> eqx.Module:
        """The network with parameters `theta`."""
        return eqx.combine(ravel_pytree(self.parameters)[1](theta), self.rest)

    def coefficients(self, theta: Float[Array, " p"]) -> Array:
        """The linear coefficients beta of the network with parameters `theta`."""
        return self.network(theta).linear_coefficients()  # pyright: ignore

    @property
    def ties_are_exact(self) -> bool:
        """Whether compiled code keeps equal layers equal; see `AbstractNetwork`."""
        return getattr(eqx.combine(self.parameters, self.rest), "ties_are_exact", False)

    def coupled_groups(self) -> np.ndarray | None:
        """The places in theta of each group's parameters, (G, k); p where a group has fewer than k.

        None where the network has no method `coupled_groups`; see `AbstractNetwork`.
        """
        network = eqx.combine(self.parameters, self.rest)
        groups = closed_form(network, "coupled_groups")
        if groups is None:
            return None
        leaves = jax.tree.leaves(eqx.filter(groups, parameter_spec(network)))
        numbers = np.concatenate([np.ravel(leaf) for leaf in leaves])
        _, group, counts = np.unique(numbers, return_inverse=True, return_counts=True)
        order = np.argsort(group, kind="stable")
        places = np.full((counts.size, counts.max()), numbers.size)
        within = np.arange(numbers.size) - np.repeat(np.cumsum(counts) - counts, counts)
        places[group[order], within] = order
        return places

    def counted(self, theta: Float[Array, " p"]) -> Float[Array, " p"]:
        """theta with zeros in place of a bias, to which weight decay does not apply."""
        network: Any = self.network(theta)
        if not getattr(network, "has_bias", False):
            return theta
        return ravel_pytree(split(network.without_bias())[0])[0]

    def pullback(self, theta: Float[Array, " p"]):
        """beta(theta), and the map g -> (d beta/d theta)^T g of shape (p,)."""
        beta, pull = coefficients_and_pullback(self.network(theta))
        return beta, lambda g: ravel_pytree(pull(g))[0]

    # Regression, and any problem in physical time: theta is the parameter vector itself.

    def squared_gradient(self, theta: Float[Array, " p"]) -> tuple[Array, Array]:
        """The residual r and -dL/dtheta. For a loss that is not squared, r is dL/d(predictions)."""
        beta, pull = self.pullback(theta)
        residual = self.problem.residual(beta)
        return residual, pull(self.problem.adjoint(-residual))

    def velocity(self, theta: Float[Array, " p"]) -> Float[Array, " p"]:
        """dtheta/dt = -dL/dtheta."""
        return self.squared_gradient(theta)[1]

    def gradient_norm(self, theta: Float[Array, " p"]) -> tuple[Array, Scalar]:
        """The residual r and |dL/dTheta|, whose square is r^T K r with the tangent kernel K."""
        residual, gradient = self.squared_gradient(theta)
        return residual, jnp.linalg.norm(gradient)

    def finish_step(self, theta: Float[Array, " p"], size: Scalar, gradient: Scalar) -> Scalar:
        """An estimate of |J^+ r| / |theta|, from `size` = |P r| and `gradient` = |dL/dTheta|.

        By Kantorovich |P r|^2/|grad L| is at most the Gauss-Newton step |J^+ r|, with equality once
        the slowest mode dominates the residual.
        """
        # One division for all entries, since divisions take a good part of a step in batches.
        largest, tiny = jnp.max(jnp.abs(theta)), 4 * float(jnp.finfo(theta.dtype).tiny)
        largest = jnp.where(largest > tiny, largest, tiny)
        return size / gradient * (size / (largest * jnp.linalg.norm(theta * (1 / largest))))

    # Classification: Theta = exp(log_scale) * theta.

    def margin_gradient(
        self, theta: Float[Array, " p"], log_scale: Scalar
    ) -> "tuple[LogSum, LogSum, Array]":
        """L, sum_i(-l'(m_i)), and sum_i p_i grad m_i(theta), p the softmax of log(-l').

        The gradient of the loss at Theta is
        -exp(log_slope + (depth - 1) log_scale) * (the third result).
        """
        return self.weighted_margin_gradient(theta, log_scale)[:3]

    def weighted_margin_gradient(
        self, theta: Float[Array, " p"], log_scale: Scalar
    ) -> "tuple[LogSum, LogSum, Array, Array]":
        """The same, and the weights p, of the margins' shape."""
        problem: Any = self.problem
        beta, pull = self.pullback(theta)
        margins = jnp.exp(self.depth * log_scale) * problem.margins(beta)
        log_slopes = problem.log_slopes(margins)
        slope = LogSum.of(log_slopes.ravel())
        weights = jnp.exp(log_slopes - slope.top) * (1 / slope.total)
        gradient = pull(problem.margins_adjoint(weights))
        return LogSum.of(problem.log_losses(margins)), slope, gradient, weights


class LogSum(NamedTuple):
    """sum_i exp(a_i) = exp(top) * total, where neither the sum nor its logarithm is computed.

    XLA:CPU has no vector instructions for logarithms in float64. One logarithm takes as long as the
    rest of a small network's velocity.
    """

    top: Scalar
    total: Scalar

    @staticmethod
    def of(terms: Float[Array, " n"]) -> "LogSum":
        """The sum over `terms`, the a_i, shape (n,)."""
        top = jax.lax.stop_gradient(jnp.max(terms))
        return LogSum(top, jnp.sum(jnp.exp(terms - top)))

    @property
    def log(self) -> Scalar:
        """The logarithm of the sum."""
        return self.top + jnp.log(self.total)


class Reducible(eqx.Module):
    """The projection P of residuals (or slopes l'(r) of the loss) on what some beta can remove.

    P l'(r) = 0 holds exactly where the gradient of the loss over all beta vanishes. For a convex
    loss that is its minimum, whether the fit is exact or not.
    """

    basis: Float[Array, "n k"] | None  # None: every vector of predictions is one of some beta

    @staticmethod
    def of(problem: AbstractProblem) -> "Reducible | None":
        """The projection for `problem`; None for classification."""
        if not problem.has_residuals:
            return None
        regression: Any = problem
        independent = regression.samples_are_independent
        return Reducible(None if independent else prediction_range(regression))

    def norm(self, residual: Array) -> Scalar:
        """|P r|. It is |r| for data of full row rank, and zero at every least-squares solution."""
        coordinates = self.coordinates(residual)
        if coordinates.size == 1:  # without a root
            return jnp.abs(coordinates).reshape(())
        return jnp.linalg.norm(coordinates)

    def coordinates(self, residual: Array) -> Array:
        """P r in `basis`, shape (k, outputs); r itself without a basis, shape (n, outputs)."""
        flat = residual.reshape(residual.shape[0], -1)
        return flat if self.basis is None else self.basis.T @ flat


def prediction_range(problem: Any) -> Float[Array, "n k"]:
    """Orthonormal columns that span the range of the sensors, padded with zero columns.

    k = min(n, size of a sample) is static, so that problems of one shape and of different ranks
    share a compilation.
    """
    rows = jax.vmap(lambda e: jnp.ravel(_one_output_adjoint(problem, e)))(
        jnp.eye(problem.y.shape[0], dtype=problem.y.dtype)
    )
    if rows.shape[0] == 1:  # without LAPACK, which takes as long as a small flow
        return jnp.any(rows != 0).astype(rows.dtype)[None, None]
    left, sizes, _ = jnp.linalg.svd(rows, full_matrices=False)
    eps = jnp.finfo(rows.dtype).eps
    kept = sizes > eps * max(rows.shape) * sizes[0]
    return left * kept[None, :]


def _one_output_adjoint(problem, values):
    if problem.y.ndim == 1:
        return problem.adjoint(values)
    return problem.adjoint(values[:, None])

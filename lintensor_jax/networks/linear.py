"""A network of one linear layer, the baseline; and a bias for any other network."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Scalar

from ..arguments import as_numbers, as_shape
from .base import AbstractNetwork, Activation, as_parameter, coefficients_and_pullback
from .closed_forms import closed_form
from .pair import coefficients_like


class LinearNetwork(AbstractNetwork):
    """x^T w: the linear coefficients are the parameters. The baseline of every figure.

    Source: Soudry et al. 2018, where gradient flow on separable data has w(t) = w_svm log t + O(1).

    **Arguments**

    - `weights`: shape (d,) for a scalar output, or (d, m) for m outputs.
    - `bias`: adds a last coefficient (for m outputs a last row of m), which starts at 0. It needs a
      problem with `bias=True`; a problem without a bias gets one. Flows move the bias like every
      weight. Norms leave it out (`max_margin`, `min_norm`).
    """

    weights: Float[Array, "..."]
    has_bias: bool = eqx.field(static=True, default=False)

    def __init__(self, weights, bias: bool = False):
        given = as_numbers(weights, "weights", "LinearNetwork")
        ndim = 2 if given.ndim == 2 else 1
        array = as_parameter(given, "weights", "LinearNetwork", ndim=ndim)
        zero = jnp.zeros((1, *array.shape[1:]), array.dtype)
        self.weights = jnp.concatenate([array, zero]) if bias else array
        self.has_bias = bool(bias)

    @classmethod
    def zeros(
        cls, dimension: int, outputs: int | None = None, bias: bool = False
    ) -> "LinearNetwork":
        """The zero network of the given shape: a template for `lintensor_jax.initialization`."""
        shape = as_shape("LinearNetwork.zeros", outputs, dimension=dimension)
        return cls(jnp.zeros(shape), bias)

    @property
    def depth(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """1: the degree of homogeneity."""
        return 1

    def linear_coefficients(self) -> Float[Array, "..."]:
        """beta = w, shape (d,) or (d, m); with a bias one row more."""
        return self.weights

    def coefficients_and_pullback(self):
        """beta, and g -> g as a LinearNetwork."""
        return self.weights, self._of

    def _of(self, weights):
        return eqx.tree_at(lambda n: n.weights, self, weights)

    def without_bias(self) -> "LinearNetwork":
        """The same network with a bias of 0."""
        return self._of(self.weights.at[-1].set(0.0)) if self.has_bias else self

    def __call__(
        self, x: Float[Array, " d"], activation: Activation | None = None
    ) -> Float[Array, "..."]:
        """The output for one input of shape (d,). There is no hidden layer for an activation."""
        x = jnp.append(x, jnp.ones((), x.dtype)) if self.has_bias else x
        return x @ self.weights

    def coupled_groups(self) -> "LinearNetwork":
        """A group for each parameter: second derivatives of beta are 0."""
        return self._of(np.arange(self.weights.size).reshape(self.weights.shape))

    def identity_start(self) -> "LinearNetwork":
        """Zeros: the only layer is the last one."""
        return self._of(jnp.zeros_like(self.weights))

    def balanced_start(self, coefficients: Float[Array, "..."]) -> "LinearNetwork":
        """The coefficients themselves."""
        return self._of(coefficients)

    def matching_start(self, coefficients: Float[Array, "..."], gap: Scalar) -> "LinearNetwork":
        """The coefficients themselves: there is no second layer for a gap."""
        return self._of(coefficients)

    def induced_regularizer(self, beta: Float[Array, "..."]) -> Scalar:
        """|beta|^2, the bias included: flows count it."""
        return jnp.sum(beta**2)

    def induced_norm_order(self) -> float:
        """2: the induced regulariser is |beta|_2^2."""
        return 2.0

    def minimal_network(self, beta: Float[Array, "..."]) -> "LinearNetwork":
        """The only network with these coefficients."""
        return self._of(beta)

    def largest_rank(self) -> int:
        """min(d, m), since beta can be any matrix; 1 for a scalar output."""
        return min(self.weights.shape) if self.weights.ndim == 2 else 1


class NetworkWithBias(AbstractNetwork):
    """x^T beta(Theta) + b for any network, made by `with_bias(network)`.

    The bias is the last entry (or row) of the linear coefficients. They need a problem with
    `bias=True`; a problem without a bias gets one. The bias is of degree 1 in the parameters, and
    beta is of degree L. So the whole network is homogeneous only for L = 1. For L > 1 no theorem on
    limits of classification flows is claimed, and such a flow uses `LossTime()` by default.

    - `network`: the network of beta.
    - `bias`: shape (), or (m,) for m outputs.
    """

    network: Any  # of the type that was given
    bias: Float[Array, "..."]

    def __init__(self, network: Any, bias: Float[Array, "..."]):
        self.network, self.bias = network, bias

    @property
    def has_bias(self) -> bool:
        """True: `bias` is part of the network."""
        return True

    @property
    def depth(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """1 for one layer; otherwise 0, which means that the network is not homogeneous."""
        return 1 if getattr(self.network, "depth", 0) == 1 else 0

    def without_bias(self) -> "NetworkWithBias":
        """The same network with a bias of 0."""
        return eqx.tree_at(lambda n: n.bias, self, jnp.zeros_like(self.bias))

    def linear_coefficients(self) -> Float[Array, "..."]:
        """beta, and the bias as last entry (or row)."""
        return jnp.concatenate([self.network.linear_coefficients(), self.bias[None]])

    def coefficients_and_pullback(self):
        """beta with the bias, and the pullback of both."""
        beta, pull = coefficients_and_pullback(self.network)

        def both(g):
            return eqx.tree_at(lambda n: (n.network, n.bias), self, (pull(g[:-1]), g[-1]))

        return jnp.concatenate([beta, self.bias[None]]), both

    def __call__(
        self, x: Float[Array, " d"], activation: Activation | None = None
    ) -> Float[Array, "..."]:
        """The network's output plus the bias."""
        return self.network(x, activation) + self.bias

    def conserved_quantities(self) -> Float[Array, " q"] | None:
        """Those of the network without the bias, which is in no conserved quantity."""
        method = getattr(self.network, "conserved_quantities", None)
        return None if method is None else method()

    def coupled_groups(self) -> "NetworkWithBias | None":
        """Those of the network, and a group for each bias."""
        groups: Any = closed_form(self.network, "coupled_groups")
        if groups is None:
            return None
        bias = -1 - np.arange(self.bias.size).reshape(self.bias.shape)
        return eqx.tree_at(lambda n: (n.network, n.bias), self, (groups, bias))

    @property
    def ties_are_exact(self) -> bool:
        """As for the network."""
        return getattr(self.network, "ties_are_exact", False)


def with_bias(network: eqx.Module, bias: Any = 0.0) -> NetworkWithBias:
    """`network` plus a bias.

    **Arguments**

    - `network`: any network, of this package or user-defined.
    - `bias`: the initial bias, a number, or shape (m,) for m outputs.
    """
    beta = coefficients_like(network)
    value = jnp.broadcast_to(jnp.asarray(bias, beta.dtype), beta.shape[1:])
    return NetworkWithBias(network, value)

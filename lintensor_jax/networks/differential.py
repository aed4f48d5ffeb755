"""Differential diagonal networks: the difference of two tied diagonal networks."""

import operator
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Scalar

from ..arguments import as_shape
from .base import AbstractNetwork, Activation, as_parameter, require_depth
from .decomposition import AssumptionFails, OrthogonalDecomposition
from .diagonal import DiagonalNetwork, superdiagonal
from .effective_start import TwoLayers
from .mirror_coordinates import AbstractMirrorCoordinates


class DifferentialDiagonalNetwork(AbstractNetwork):
    """f(x) = <x, w_+^L - w_-^L>, powers elementwise.

    Source: Woodworth et al. 2020. As a network of `depth` layers it is a diagonal network of 2d
    units for the input (x, -x) whose layers are *tied*: all are equal to (w_+, w_-). Gradient flow
    is in (w_+, w_-), not in the L equal factors. Equal layers that are not tied would stay equal
    and take the same path, L times more slowly.

    **Arguments**

    - `positive`: w_+, shape (d,). Flows never change the sign of an entry and never move a zero.
    - `negative`: w_-, shape (d,).
    - `depth`: L >= 2, static.
    """

    positive: Float[Array, " d"]
    negative: Float[Array, " d"]
    depth: int = eqx.field(static=True)

    def __init__(self, positive, negative, depth: int):
        owner = "DifferentialDiagonalNetwork"
        positive = as_parameter(positive, "positive", owner, ndim=1)
        negative = as_parameter(negative, "negative", owner, ndim=1)
        if positive.shape != negative.shape:
            raise ValueError(
                f"{owner}: positive and negative must have the same shape, got {positive.shape} "
                f"and {negative.shape}; both belong to the same d inputs."
            )
        try:
            self.depth = operator.index(depth)
        except TypeError:
            raise ValueError(
                f"{owner}: depth must be a whole number, got {depth!r}; pass an int."
            ) from None
        require_depth(self.depth, owner)
        dtype = jnp.result_type(positive, negative)
        self.positive = positive.astype(dtype)
        self.negative = negative.astype(dtype)

    @classmethod
    def zeros(cls, depth: int, dimension: int) -> "DifferentialDiagonalNetwork":
        """The zero network of the given shape: a template for `lintensor_jax.initialization`."""
        shape = as_shape("DifferentialDiagonalNetwork.zeros", None, dimension=dimension)
        return cls(jnp.zeros(shape), jnp.zeros(shape), depth)

    def linear_coefficients(self) -> Float[Array, " d"]:
        """beta = w_+^L - w_-^L, shape (d,)."""
        return self.positive**self.depth - self.negative**self.depth

    def coefficients_and_pullback(self):
        """beta, and g -> (L w_+^{L-1} g, -L w_-^{L-1} g)."""
        rest = self.depth - 1

        def pullback(g):
            gradients = (
                self.depth * self.positive**rest * g,
                -self.depth * self.negative**rest * g,
            )
            return eqx.tree_at(lambda n: (n.positive, n.negative), self, gradients)

        return self.linear_coefficients(), pullback

    def __call__(
        self, x: Float[Array, " d"], activation: Activation | None = None
    ) -> Float[Array, ""]:
        """The output for one input of shape (d,): that of the tied diagonal network of 2d units."""
        if activation is None:
            return x @ self.linear_coefficients()
        return DiagonalNetwork(jnp.stack(self.factors))(jnp.concatenate([x, -x]), activation)

    @property
    def factors(self) -> tuple[Float[Array, " k"], ...]:
        """L times (w_+, w_-), of shape (2d,): what the data tensor is contracted with."""
        return (jnp.concatenate([self.positive, self.negative]),) * self.depth

    def with_factors(self, factors) -> "DifferentialDiagonalNetwork":
        """A network with other factors: the inverse of `factors`.

        The factors must be equal, since the layers are tied; ValueError otherwise.
        """
        first, *others = factors
        concrete = not any(isinstance(v, Tracer) for v in (first, *others))
        gap = max((float(np.abs(v - first).max()) for v in others), default=0) if concrete else 0
        if len(others) != self.depth - 1 or gap > 0:
            raise ValueError(
                f"DifferentialDiagonalNetwork: factors must be depth = {self.depth} equal vectors, "
                f"got {len(others) + 1} that differ by up to {gap:.3g}; its layers are tied, use a "
                "DiagonalNetwork for untied ones."
            )
        positive, negative = jnp.split(first, 2)
        return DifferentialDiagonalNetwork(positive, negative, self.depth)

    def data_tensor(self, x: Float[Array, " d"]) -> Float[Array, "..."]:
        """M(x), shape (2d,) * L: (x, -x) on the diagonal, zero elsewhere."""
        x = jnp.asarray(x)
        return superdiagonal(jnp.concatenate([x, -x]), self.depth)

    def orthogonal_decomposition(self) -> OrthogonalDecomposition:
        """S = [I; -I] and U_l = I, for the network without ties: Assumption 1 allows no ties."""
        d = self.positive.shape[0]
        eye = jnp.eye(2 * d, dtype=self.positive.dtype)
        return OrthogonalDecomposition(eye[:, :d] - eye[:, d:], (eye,) * self.depth)

    def two_layers(self) -> TwoLayers | None:
        """(w_+ + w_-) . (w_+ - w_-) with gain 2; None unless the depth is 2."""
        if self.depth != 2:
            return None
        plus, minus = self.positive, self.negative
        return TwoLayers(None, plus + minus, plus - minus, gain=2.0)

    # A tie is w_+ w_- = 0: one of the two is zero, and stays exactly zero.
    ties_are_exact: ClassVar[bool] = True

    def conserved_quantities(self) -> Float[Array, " d"]:
        """The squared power mean of order 2 - L of (w_+, w_-), for each coordinate.

        Along the flow w_+^{2-L} grows by L(L-2) times the integral of the gradient g, and w_-^{2-L}
        falls by the same amount. So their sum is conserved; for L = 2, w_+ w_- is conserved. The
        mean ((w_+^{2-L} + w_-^{2-L}) / 2)^{-2/(L-2)} is a function of the sum, has units of squared
        parameters, and is finite at w = 0. For odd L and w_+, w_- of different signs the sum
        becomes a difference, and no such function stays finite: 0 is returned for these
        coordinates.
        """
        if self.depth == 2:
            return self.positive * self.negative
        p = self.depth - 2
        sizes = jnp.abs(self.positive), jnp.abs(self.negative)
        small, large = jnp.minimum(*sizes), jnp.maximum(*sizes)  # machine code has no sort
        ratio = small / jnp.where(large > 0, large, 1)
        mean = small**2 * (2 / (1 + ratio**p)) ** (2 / p)
        return jnp.where((self.depth % 2 == 1) & (self.positive * self.negative < 0), 0, mean)

    def coupled_groups(self) -> "DifferentialDiagonalNetwork":
        """A group for each parameter: beta is a sum of functions of one."""
        groups = tuple(np.arange(2 * self.positive.size).reshape(2, -1))
        return eqx.tree_at(lambda n: (n.positive, n.negative), self, groups)

    def induced_regularizer(self, beta: Float[Array, " d"]) -> Scalar:
        """sum_j |beta_j|^{2/L}: at the minimum one of w_+ and w_- is zero in every coordinate."""
        return jnp.sum(jnp.abs(beta) ** (2 / self.depth))

    def induced_norm_order(self) -> float:
        """2/L: the induced regulariser is |beta|_{2/L}^{2/L}."""
        return 2 / self.depth

    def minimal_network(self, beta: Float[Array, " d"]) -> "DifferentialDiagonalNetwork":
        """w_+ and w_- are the L-th roots of the positive and of the negative part of beta."""
        parts = tuple(jnp.maximum(sign * beta, 0) ** (1 / self.depth) for sign in (1, -1))
        return eqx.tree_at(lambda n: (n.positive, n.negative), self, parts)

    def mirror_coordinates(self, problem: Any) -> "DifferentialCoordinates":
        """For positive entries and any problem; AssumptionFails for entries <= 0."""
        smallest = float(jnp.minimum(jnp.min(self.positive), jnp.min(self.negative)))
        if smallest <= 0:
            raise AssumptionFails(
                "positive entries of w_+ and w_-",
                smallest,
                "The smallest entry; the closed form is for positive entries. Use gradient_flow.",
            )
        identity = jnp.eye(self.positive.size, dtype=self.positive.dtype)
        return DifferentialCoordinates(identity, self.positive, self.negative, self.depth)


class DifferentialCoordinates(AbstractMirrorCoordinates):
    """w_+^D - w_-^D from positive entries, D the depth.

    dw_+/dzeta = D w_+^(D-1) and dw_-/dzeta = -D w_-^(D-1). Source: Woodworth et al. 2020.
    """

    S: Float[Array, "m q"]
    positive: Float[Array, " m"]
    negative: Float[Array, " m"]
    depth: int = eqx.field(static=True)

    def _grown(self, start, zeta):
        if self.depth == 2:
            return start * jnp.exp(2 * zeta)
        power = self.depth - 2
        # Infinite at and beyond the blow-up: the solver then rejects the step.
        base = 1 - self.depth * power * start**power * zeta
        safe = jnp.where(base > 0, base, 1.0)
        return jnp.where(base > 0, start * safe ** (-1 / power), jnp.inf)

    def rho(self, zeta: Float[Array, " m"]) -> Float[Array, " m"]:
        """w_+^D - w_-^D."""
        plus, minus = self._grown(self.positive, zeta), self._grown(self.negative, -zeta)
        return plus**self.depth - minus**self.depth

    def network(self, zeta: Float[Array, " m"]) -> Any:
        """The network with the w_+ and w_- that belong to `zeta`."""
        return DifferentialDiagonalNetwork(
            self._grown(self.positive, zeta), self._grown(self.negative, -zeta), self.depth
        )

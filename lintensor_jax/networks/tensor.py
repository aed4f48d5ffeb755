"""Linear tensor networks with an arbitrary data tensor."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..arguments import as_sequence
from . import contractions
from .base import AbstractNetwork, Activation, as_parameter, constant, require_depth
from .conserved import gaps_of_squared_norms
from .decomposition import OrthogonalDecomposition, decompose_tensor


class TensorNetwork(AbstractNetwork):
    """f(x) = M(x) o (v_1, ..., v_L) for any linear map x -> M(x).

    Source: Yun, Krishnan & Mobahi 2021, eq. (2) and (6).

    **Arguments**

    - `tensor`: shape (k_1, ..., k_L, d), L >= 2; M(x) = tensor @ x. It is not a parameter: flows
      do not change it.
    - `factors`: the parameters v_1, ..., v_L, v_l of shape (k_l,).
    """

    factors: tuple[Float[Array, " k"], ...]
    tensor: Float[Array, "..."] = constant()

    def __init__(self, tensor, factors):
        vectors = tuple(
            as_parameter(v, f"factors[{layer}]", "TensorNetwork", ndim=1)
            for layer, v in enumerate(as_sequence(factors, "factors", "TensorNetwork"))
        )
        require_depth(len(vectors), "TensorNetwork")
        self.tensor = as_parameter(tensor, "tensor", "TensorNetwork", ndim=len(vectors) + 1)
        expected = tuple(v.shape[0] for v in vectors)
        if self.tensor.shape[:-1] != expected:
            raise ValueError(
                f"TensorNetwork: tensor must have shape (k_1, ..., k_L, d) with k = {expected} "
                f"(the factors' lengths), got {self.tensor.shape}; transpose it, or resize the "
                "factors."
            )
        dtype = jnp.result_type(self.tensor, *vectors)
        self.tensor = self.tensor.astype(dtype)
        self.factors = tuple(v.astype(dtype) for v in vectors)

    @property
    def depth(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Number of factors, which is the degree of homogeneity."""
        return len(self.factors)

    def linear_coefficients(self) -> Float[Array, " d"]:
        """beta_k = tensor[..., k] o (v_1, ..., v_L), shape (d,)."""
        return contractions.data_tensor_network(self.tensor, self.factors)[0]

    def coefficients_and_pullback(self):
        """beta, and g -> M(g) o (v_1, .., I, .., v_L); the tensor's own entries are None."""
        beta, leave_one_out = contractions.data_tensor_network(self.tensor, self.factors)

        def pullback(g):
            return eqx.tree_at(lambda n: (n.tensor, n.factors), self, (None, leave_one_out(g)))

        return beta, pullback

    def __call__(
        self, x: Float[Array, " d"], activation: Activation | None = None
    ) -> Float[Array, ""]:
        """The output for one input of shape (d,); eq. (2)."""
        if activation is None:
            return x @ self.linear_coefficients()
        return contractions.contract(self.data_tensor(x), self.factors, activation)

    def with_factors(self, factors) -> "TensorNetwork":
        """A network with the same tensor and other factors: the inverse of `factors`."""
        return TensorNetwork(self.tensor, tuple(factors))

    def data_tensor(self, x: Float[Array, " d"]) -> Float[Array, "..."]:
        """M(x) = tensor @ x, shape (k_1, ..., k_L)."""
        return self.tensor @ jnp.asarray(x)

    def orthogonal_decomposition(self) -> OrthogonalDecomposition:
        """The result of `decompose_tensor`; AssumptionFails if there is no decomposition."""
        return decompose_tensor(self.tensor)

    def conserved_quantities(self) -> Float[Array, " q"]:
        """|v_l|^2 - |v_{l+1}|^2, L - 1 numbers."""
        return gaps_of_squared_norms(self.factors)

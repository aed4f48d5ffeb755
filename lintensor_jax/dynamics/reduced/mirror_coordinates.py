"""Mirror coordinates of a network: those that it states, or those that Assumption 1 gives.

With Assumption 1 the flow of every coordinate of eta_l = U_l^T v_l depends on the data only
through zeta = S X^T nu, nu = -int r dt (Yun, Krishnan & Mobahi 2021, proofs of Theorems 5 and 6).
"""

from typing import Any

import jax.numpy as jnp

from ...networks.closed_forms import closed_form, described
from ...networks.decomposition import AssumptionFails, OrthogonalDecomposition, decomposition_of
from ...networks.mirror_coordinates import AbstractMirrorCoordinates, coordinates_of_factors


def coordinates_of(network: Any, problem: Any) -> AbstractMirrorCoordinates:
    """The network's `mirror_coordinates(problem)`, or those of its real decomposition."""
    own = closed_form(network, "mirror_coordinates", problem)
    return coordinates_of_factors(network, real_decomposition(network)) if own is None else own


def real_decomposition(network: Any) -> OrthogonalDecomposition:
    """Real S and U_l: those that the network states if they are real, else those that are found.

    `AssumptionFails` if there are none; ValueError if the network states no decomposition.
    """
    needed = ("factors", "with_factors", "orthogonal_decomposition")
    if not all(hasattr(network, name) for name in needed):
        raise ValueError(
            f"network: {described(network)} has no flow that is known in closed form, since it has "
            "neither mirror_coordinates(problem) nor orthogonal_decomposition(), factors and "
            "with_factors; use gradient_flow."
        )
    decomposition = network.orthogonal_decomposition()
    if not decomposition.is_real:
        decomposition = decomposition_of(network)
    if not decomposition.is_real:
        raise AssumptionFails(
            "real S and U_l",
            float(jnp.max(jnp.abs(decomposition.S.imag))),
            "The largest imaginary part in S; the mirror flow needs a real decomposition.",
        )
    return decomposition

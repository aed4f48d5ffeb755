"""Initial parameters: each function takes a template network and returns one of the same shapes.

A template is any network, for example ``lt.DiagonalNetwork.zeros(depth=2, dimension=d)``. Its
numbers are ignored unless the function says otherwise. The papers use initial *directions* vbar_l
and a scale alpha: ``matching(like, z).scaled(alpha)`` starts at beta(0) = alpha^depth z.

All functions can be traced by `jax.jit` and `jax.vmap`. The checks that need numbers (finite
coefficients, a positive gap, coefficients that can be reached) are made on concrete arrays only.
"""

from .by_coefficients import balanced as balanced
from .by_coefficients import gaussian as gaussian
from .by_coefficients import identity as identity
from .by_coefficients import matching as matching
from .by_coefficients import zero_last_layer as zero_last_layer
from .by_imbalance import balanced_on_data as balanced_on_data
from .by_imbalance import imbalanced as imbalanced
from .by_imbalance import invariant as invariant
from .by_imbalance import lambda_balanced as lambda_balanced
from .by_imbalance import spectral as spectral
from .by_imbalance import width_scaled as width_scaled

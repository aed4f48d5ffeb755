"""The largest eigenvalue of a loss's Hessian, which decides how long a step may be."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Scalar

# Up to this size the Hessian is formed: LAPACK's eigenvalues are exact, and take no longer.
_MOST_PARAMETERS_DENSE = 256
_ITERATIONS = 200


def sharpness(loss: Any, parameters: Any) -> Scalar:
    """The largest (most positive) eigenvalue of the Hessian of `loss` at `parameters`.

    Up to 256 parameters from the dense Hessian. Beyond, by LOBPCG on Hessian-vector products, until
    the relative residual is at the dtype's precision or 200 iterations are done.
    """
    theta, rebuild = ravel_pytree(parameters)

    def flat(theta):
        return loss(rebuild(theta))

    if theta.size <= _MOST_PARAMETERS_DENSE:
        hessian = jax.hessian(flat)(theta)
        return jnp.linalg.eigvalsh(0.5 * (hessian + hessian.T))[-1]
    gradient = jax.grad(flat)

    def products(vectors):
        return jax.vmap(lambda v: jax.jvp(gradient, (theta,), (v,))[1], in_axes=1, out_axes=1)(
            vectors
        )

    # Two vectors: one alone is slow where the largest eigenvalue is nearly double.
    guess = jax.random.normal(jax.random.key(0), (theta.size, 2), theta.dtype)
    # It imports SciPy, which `import lintensor_jax` does not load.
    from jax.experimental.sparse.linalg import lobpcg_standard

    return lobpcg_standard(products, guess, m=_ITERATIONS)[0][0]

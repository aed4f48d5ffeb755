"""Limit directions of losses with a polynomial tail: stationary points of sum_i m_i^-a.

If -l'(m) is about c a m^-(a + 1), the softmax of the slopes at large margins depends only on the
ratios of the margins. The unit parameters theta then follow, in arc length, the gradient ascent of

    h(theta) = -(1/a) log sum_i m_i(theta)^-a        on the unit sphere,

so that they tend to a stationary point of h, at which theta = grad h(theta) / depth. For one layer
that is the direction of the minimum of the loss on large spheres (Ji et al. 2020).
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
from jaxtyping import Array, Float

from ..dynamics.system import System

# Up to this many parameters a dense Hessian is computed, to distinguish a saddle from a maximum.
LARGEST_HESSIAN = 600
# Eigenvalues of the Hessian up to this one count as zero; it has zeros along the network's
# symmetries.
_ZERO_EIGENVALUE = 1e-7


class PolynomialTailCertificate(eqx.Module):
    """Whether unit parameters are stationary for sum_i m_i^-a on the unit sphere; print it."""

    #: |theta - grad h(theta) / depth| at |theta| = 1.
    residual: float = eqx.field(static=True)
    #: The largest eigenvalue of the Hessian of h on the sphere; None for large networks.
    largest_curvature: float | None = eqx.field(static=True)
    #: The power a of the loss's tail.
    power: float = eqx.field(static=True)
    #: Residuals up to this one count as zero.
    tolerance: float = eqx.field(static=True)

    @property
    def is_saddle(self) -> bool:
        """Stationary, with a direction in which sum_i m_i^-a falls: a flow can leave it."""
        rises = self.largest_curvature is not None and self.largest_curvature > _ZERO_EIGENVALUE
        return self.residual <= self.tolerance and rises

    @property
    def is_stationary(self) -> bool:
        """Whether the residual is within the tolerance, and the point no saddle."""
        return self.residual <= self.tolerance and not self.is_saddle

    def __str__(self) -> str:
        """The verdict, with residual and curvature."""
        verdict = "Stationary" if self.is_stationary else "Not stationary"
        verdict = "A saddle" if self.is_saddle else verdict
        text = (
            f"{verdict} for sum_i m_i^-{self.power:.6g} on the unit sphere of parameters "
            f"(tolerance {self.tolerance:.1e}): residual {self.residual:.3e}"
        )
        if self.largest_curvature is None:
            return f"{text}; the network is too large to tell a saddle."
        return f"{text}, largest curvature {self.largest_curvature:.3e}."


def stationary_point(system: System, theta: Float[Array, " p"], power: float) -> Array:
    """The point with theta = grad h(theta) / depth that Levenberg-Marquardt reaches; |theta| = 1.

    `theta`: unit parameters near it, with positive margins.
    """
    found = _solve(system, theta / jnp.linalg.norm(theta), jnp.asarray(power, theta.dtype))
    return found / jnp.linalg.norm(found)


def certificate_at(
    system: System, theta: Float[Array, " p"], power: float, tolerance: float
) -> PolynomialTailCertificate:
    """The certificate at unit parameters `theta` with positive margins."""
    a = jnp.asarray(power, theta.dtype)
    residual = float(jnp.linalg.norm(_equations(theta, (system, a))))
    largest = None
    if theta.size <= LARGEST_HESSIAN and np.isfinite(residual):
        hessian = np.asarray(_hessian(system, theta, a))
        largest = float(np.linalg.eigvalsh(hessian)[-1])
    return PolynomialTailCertificate(residual, largest, float(power), float(tolerance))


def _height(theta, system, power):
    problem: Any = system.problem
    margins = problem.margins(system.coefficients(theta))
    return -jax.nn.logsumexp(-power * jnp.log(margins)) / power


def _equations(theta, args):
    system, power = args
    return theta - jax.grad(_height)(theta, system, power) / system.depth


@eqx.filter_jit
def _hessian(system, theta, power):
    """The Hessian of h - depth log|theta|, which does not change with |theta|."""

    def on_sphere(theta):
        return _height(theta, system, power) - system.depth * jnp.log(jnp.linalg.norm(theta))

    return jax.hessian(on_sphere)(theta)


@eqx.filter_jit
def _solve(system, theta, power):
    return optx.least_squares(
        _equations,
        optx.LevenbergMarquardt(rtol=1e-14, atol=1e-14),
        theta,
        args=(system, power),
        max_steps=200,
        throw=False,
    ).value

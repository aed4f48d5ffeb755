"""The mirror map of Theorem 5 of Yun, Krishnan & Mobahi 2021: L layers from equal starts."""

import math

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Scalar

from ...networks import mirror_map
from .mirror import AbstractMirror, HyperbolicSine, log_cosh


class PowerMirror(AbstractMirror):
    """rho = alpha^L |eta|^L x(z), slope = |eta|^(2-L) t(z) in units of alpha^(2-L) (Lemma 4)."""

    log_alpha: Scalar
    log_eta: Float[Array, " m"]
    depth: int = eqx.field(static=True)

    def rho(self, z):
        log_scale = self.depth * (self.log_alpha + self.log_eta)
        return jnp.sign(z) * jnp.exp(log_scale + mirror_map.log_abs_x_of_z(z, self.depth))

    def slope(self, z):
        return jnp.exp((2 - self.depth) * self.log_eta) * mirror_map.t_of_z(z, self.depth)

    def log_drho_dz(self, z):
        growth = jnp.log1p((self.depth - 1) * jnp.tanh(z) ** 2)
        return self.depth * (self.log_alpha + self.log_eta + log_cosh(z)) + growth

    def log_dslope_dz(self, z):
        return (2 - self.depth) * (self.log_eta + log_cosh(z))

    def magnified(self, log_factor):
        return PowerMirror(self.log_alpha + log_factor, self.log_eta, self.depth)

    @property
    def as_hyperbolic_sine(self):
        if self.depth > 2:
            return None
        # sinh z cosh z = sinh(2 z) / 2, and t = z.
        log_size = 2 * (self.log_alpha + self.log_eta) - math.log(2)
        return HyperbolicSine(log_size, 2.0, jnp.zeros_like(log_size), 0.5)

    def linear_log_factor(self, rho):
        # |x| <= 1 in every entry.
        log_x = jnp.log(jnp.abs(rho)) / self.depth - self.log_alpha - self.log_eta
        return jnp.maximum(jnp.max(log_x), 0)

"""Separable potentials: a mirror map for each entry, in a coordinate z of this entry."""

import abc
import math
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Scalar


class HyperbolicSine(NamedTuple):
    """A mirror map rho_j = size_j sinh(a_j) with a_j = rate slope_j + origin_j.

    - `log_size`: shape (m,). `rate`: positive. `origin`: shape (m,).
    - `coordinate`: the mirror's z is this number times a.
    """

    log_size: Float[Array, " m"]
    rate: float
    origin: Float[Array, " m"]
    coordinate: float = 1.0


class AbstractMirror(eqx.Module):
    """A separable potential: per entry, rho and its slope as functions of one coordinate z.

    Every leaf is a floating-point array of shape () or (m,); all methods take z of shape (m,).
    """

    @abc.abstractmethod
    def rho(self, z: Float[Array, " m"]) -> Float[Array, " m"]:
        """The primal variable rho, shape (m,)."""

    @abc.abstractmethod
    def slope(self, z: Float[Array, " m"]) -> Float[Array, " m"]:
        """The potential's derivative at rho, in a unit that may depend on the scale."""

    @abc.abstractmethod
    def log_drho_dz(self, z: Float[Array, " m"]) -> Float[Array, " m"]:
        """log(d rho / dz), shape (m,)."""

    @abc.abstractmethod
    def log_dslope_dz(self, z: Float[Array, " m"]) -> Float[Array, " m"]:
        """log(d slope / dz), shape (m,)."""

    @abc.abstractmethod
    def magnified(self, log_factor: Scalar) -> "AbstractMirror":
        """The mirror for the initial scale times e^log_factor."""

    @property
    def as_hyperbolic_sine(self) -> HyperbolicSine | None:
        """rho as a hyperbolic sine of the slope, as for two layers; None if it is not one."""
        return None

    @abc.abstractmethod
    def linear_log_factor(self, rho: Float[Array, " m"]) -> Scalar:
        """A log_factor >= 0 above which `magnified` is nearly linear for entries of rho's size."""


def log_cosh(z: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """log cosh z, without overflow of cosh."""
    return jnp.logaddexp(z, -z) - math.log(2)

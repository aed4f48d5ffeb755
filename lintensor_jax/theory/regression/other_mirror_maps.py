"""Limits of regression flows from other mirror maps: differential and unbalanced networks."""

import math

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Scalar

from ...eager_programs import eager_program
from ...networks import DiagonalNetwork
from ...problems import Regression
from .dual_newton import minimize
from .mirror import AbstractMirror, HyperbolicSine, log_cosh
from .yun_theorem_5 import (
    InterpolationLimit,
    as_limit,
    real,
    require,
    require_depth,
    require_network,
)


def _log_sinh(z):
    """log sinh |z|."""
    return jnp.abs(z) + jnp.log(-jnp.expm1(-2 * jnp.abs(z))) - math.log(2)


class _DifferentialMirror(AbstractMirror):
    """u_+^D - u_-^D from alpha eta, with u_+- = alpha eta (1 -+ t)^(-1/(D-2)), t = tanh z.

    rho = (alpha eta)^D x(z) with x = 2 cosh^p z sinh(p z), p = D/(D-2), and the slope is t in units
    of alpha^(2-D) / (D (D-2)); for D = 2, x = 2 sinh z and the slope is z / 4.
    """

    log_alpha: Scalar
    log_eta: Float[Array, " m"]
    depth: int = eqx.field(static=True)

    @property
    def power(self) -> float:
        return self.depth / (self.depth - 2)

    def rho(self, z):
        log_x = math.log(2) + self.depth * (self.log_alpha + self.log_eta)
        if self.depth == 2:
            return jnp.sign(z) * jnp.exp(log_x + _log_sinh(z))
        p = self.power
        return jnp.sign(z) * jnp.exp(log_x + p * log_cosh(z) + _log_sinh(p * z))

    def slope(self, z):
        if self.depth == 2:
            return z / 4
        unit = self.depth * (self.depth - 2)
        return jnp.exp((2 - self.depth) * self.log_eta) * jnp.tanh(z) / unit

    def log_drho_dz(self, z):
        scale = math.log(2) + self.depth * (self.log_alpha + self.log_eta)
        if self.depth == 2:
            return scale + log_cosh(z)
        p = self.power
        return scale + math.log(p) + (p - 1) * log_cosh(z) + log_cosh((p + 1) * z)

    def log_dslope_dz(self, z):
        if self.depth == 2:
            return jnp.full_like(z, -math.log(4))
        unit = self.depth * (self.depth - 2)
        return (2 - self.depth) * self.log_eta - 2 * log_cosh(z) - math.log(unit)

    def magnified(self, log_factor):
        return _DifferentialMirror(self.log_alpha + log_factor, self.log_eta, self.depth)

    @property
    def as_hyperbolic_sine(self):
        if self.depth > 2:
            return None
        log_size = math.log(2) + 2 * (self.log_alpha + self.log_eta)
        return HyperbolicSine(log_size, 4.0, jnp.zeros_like(log_size))

    def linear_log_factor(self, rho):
        log_x = jnp.log(jnp.abs(rho) / 2) / self.depth - self.log_alpha - self.log_eta
        return jnp.maximum(jnp.max(log_x), 0)

    def potential(self, z):
        """The sum of the potential's terms, in the slope's unit, by a Legendre transform."""
        scale = self.log_alpha + self.log_eta
        if self.depth == 2:
            return jnp.sum(z / 4 * self.rho(z) - jnp.exp(2 * (scale + _log_sinh(z / 2))))
        # slope rho - int rho dslope = slope rho - 2/k (cosh^k z cosh(k z) - 1) / (D (D-2)).
        k = self.power - 1
        log_growth = k * _accurate_log_cosh(z) + _accurate_log_cosh(k * z)
        small = log_growth < 1
        grown = jnp.where(
            small,
            jnp.exp(2 * scale) * jnp.expm1(jnp.where(small, log_growth, 0)),
            jnp.exp(2 * scale + log_growth) - jnp.exp(2 * scale),
        )
        unit = jnp.exp((self.depth - 2) * self.log_alpha) / (self.depth * (self.depth - 2))
        return jnp.sum(self.slope(z) * self.rho(z) - 2 / k * unit * grown)


def _accurate_log_cosh(z):
    return jnp.where(
        jnp.abs(z) < 1, jnp.log1p(2 * jnp.sinh(jnp.clip(z, -1, 1) / 2) ** 2), log_cosh(z)
    )


class _UnbalancedMirror(AbstractMirror):
    """rho = mu sinh z, slope = (z - asinh(beta_0 / mu)) / 2."""

    log_mu: Float[Array, " m"]
    beta_0: Float[Array, " m"]

    def rho(self, z):
        return jnp.sign(z) * jnp.exp(self.log_mu + _log_sinh(z))

    def slope(self, z):
        return (z - self.origin) / 2

    @property
    def origin(self):
        """asinh(beta_0 / mu)."""
        return jnp.arcsinh(self.beta_0 * jnp.exp(-self.log_mu))

    def log_drho_dz(self, z):
        return self.log_mu + log_cosh(z)

    def log_dslope_dz(self, z):
        return jnp.full_like(z, -math.log(2))

    def magnified(self, log_factor):
        return _UnbalancedMirror(self.log_mu + log_factor, self.beta_0)

    @property
    def as_hyperbolic_sine(self):
        return HyperbolicSine(self.log_mu, 2.0, self.origin)

    def linear_log_factor(self, rho):
        size = jnp.maximum(jnp.max(jnp.abs(rho)), jnp.max(jnp.abs(self.beta_0)))
        return jnp.maximum(jnp.max(jnp.log(size) - self.log_mu), 0)

    def potential(self, z):
        """The Bregman divergence from beta_0."""
        mu, rho = jnp.exp(self.log_mu), self.rho(z)
        # mu (cosh z - cosh z_0) without cancellation.
        rise = (rho - self.beta_0) * (rho + self.beta_0)
        rise = rise / (jnp.hypot(rho, mu) + jnp.hypot(self.beta_0, mu))
        return jnp.sum(rho * (z - self.origin) - rise) / 2


def differential_limit(
    X: Float[ArrayLike, "n d"],
    y: Float[ArrayLike, " n"],
    depth: int,
    alpha: ArrayLike,
    eta: Float[ArrayLike, " d"] | None = None,
) -> InterpolationLimit:
    """The limit of beta = u_+^D - u_-^D (elementwise powers) from u_+ = u_- = alpha eta.

    Source: Woodworth et al. 2020, Theorems 1 and 3 (there eta = 1): with loss 1/2 |X beta - y|^2,
    D = 2: beta = 2 alpha^2 sinh(4 X^T nu); D >= 3: beta = alpha^D h_D(D (D-2) alpha^(D-2) X^T nu)
    with h_D(t) = (1-t)^(-D/(D-2)) - (1+t)^(-D/(D-2)). The limit minimises the `potential` whose
    gradient is X^T nu. The paper's Q is this potential times 4 for D = 2, and times
    D (D-2) / alpha^2 for D >= 3 (same minimiser).

    **Arguments**

    - `X`, `y`: shapes (n, d), (n,). `depth`: D >= 2, static. `alpha` > 0: a scalar. `eta`: shape
      (d,), positive; None for ones.

    Transformations, derivatives and errors as for `limit_point`.
    """
    X, y, alpha = real(X, "X", 2), real(y, "y", 1), real(alpha, "alpha", 0)
    eta = jnp.ones(X.shape[1]) if eta is None else real(eta, "eta", 1)
    require_depth(depth)
    _require_shapes(X, y, eta, "eta")
    require(lambda v: v > 0, "alpha", "> 0", alpha, "pass e.g. 1e-50 for alpha -> 0")
    require(lambda v: v > 0, "eta", "> 0", eta, "a zero parameter of this network never moves")
    return _differential_limit(X, y, int(depth), alpha, eta)


@eager_program()
def _differential_limit(X, y, depth, alpha, eta):
    mirror = _DifferentialMirror(jnp.log(alpha), jnp.log(eta), depth)
    found = minimize(mirror, X, y)
    unit = alpha ** (2.0 - depth)
    potential = unit * mirror.potential(found.z)
    largest = jnp.max(jnp.abs(found.z))
    return as_limit(
        found,
        coefficients=found.rho,
        X=X,
        y=y,
        dual=unit * found.nu,
        potential=potential,
        log_potential=jnp.log(potential),
        boundary_distance=2 / (1 + jnp.exp(2 * largest)) if depth > 2 else jnp.ones(()),
    )


def bregman_projection(
    X: Float[ArrayLike, "n d"],
    y: Float[ArrayLike, " n"],
    mu: Float[ArrayLike, " d"],
    beta_0: Float[ArrayLike, " d"],
) -> InterpolationLimit:
    """argmin D_phi(beta, beta_0) subject to X beta = y, for the hyperbolic entropy phi.

    phi(beta) = 1/2 sum_j (beta_j asinh(beta_j / mu_j) - sqrt(beta_j^2 + mu_j^2)). This is the limit
    of beta = u . v with |u^2 - v^2| = 2 mu and any start beta_0. Source: the mirror flow of phi,
    Woodworth et al. 2020; Azulay et al. 2021; Pesme & Flammarion 2023.
    `potential` is the divergence, `dual` its multipliers: asinh(beta/mu) = asinh(beta_0/mu) +
    2 X^T nu.

    **Arguments**

    - `X`, `y`: shapes (n, d), (n,). `mu`: shape (d,), positive (of any size). `beta_0`: shape (d,).

    Transformations, derivatives and errors as for `limit_point`.
    """
    X, y = real(X, "X", 2), real(y, "y", 1)
    mu, beta_0 = real(mu, "mu", 1), real(beta_0, "beta_0", 1)
    _require_shapes(X, y, mu, "mu")
    _require_shapes(X, y, beta_0, "beta_0")
    _require_unbalanced(mu)
    return project(None, X, y, jnp.log(mu), beta_0)


@eqx.filter_jit
def project(
    S: Float[Array, "m d"] | None,
    X: Float[Array, "n d"],
    y: Float[Array, " n"],
    log_mu: Float[Array, " m"],
    beta_0: Float[Array, " m"],
) -> InterpolationLimit:
    """`bregman_projection` of rho = beta_0 with X S^T rho = y, without checks; S = None: identity.

    mu is given by its logarithm, because mu itself may underflow.
    """
    mirror = _UnbalancedMirror(log_mu, beta_0)
    found = minimize(mirror, X if S is None else X @ S.T, y)
    potential = mirror.potential(found.z)
    return as_limit(
        found,
        coefficients=found.rho if S is None else S.T @ found.rho,
        X=X,
        y=y,
        dual=found.nu,
        potential=potential,
        log_potential=jnp.log(potential),
        boundary_distance=jnp.ones(()),
    )


def two_layer_limit(
    S: Float[ArrayLike, "m d"] | None,
    X: Float[ArrayLike, "n d"],
    y: Float[ArrayLike, " n"],
    first: Float[ArrayLike, " m"],
    second: Float[ArrayLike, " m"],
) -> InterpolationLimit:
    """The limit of an orthogonally decomposable two-layer network from *any* unbalanced start.

    With a = U_1^T v_1(0), b = U_2^T v_2(0), each coordinate of rho = a . b follows the mirror flow
    of `bregman_projection` with mu = |a^2 - b^2| / 2. Theorem 5 of Yun et al. 2021 at L = 2 is the
    case b = 0.

    **Arguments**

    - `S`: real, shape (m, d), or None for the identity. `X`, `y`: shapes (n, d), (n,).
    - `first`, `second`: a and b, shape (m,).

    ValueError if a_j = +-b_j for some j: that coordinate keeps its sign, and the limit minimises no
    potential on all of R^m. Otherwise as `limit_point`.
    """
    X, y = real(X, "X", 2), real(y, "y", 1)
    first, second = real(first, "first", 1), real(second, "second", 1)
    S = None if S is None else real(S, "S", 2)
    wide = (X.shape[1], X.shape[1]) if S is None else S.shape
    if (first.shape[0], X.shape[1]) != wide or second.shape != first.shape:
        raise ValueError(
            "S, X, first, second must have shapes (m, d), (n, d), (m,), (m,), got "
            f"{wide}, {X.shape}, {first.shape}, {second.shape}; samples are rows of X."
        )
    # (a - b)(a + b), not a^2 - b^2: balanced layers have a relatively small gap.
    mu = jnp.abs((first - second) * (first + second)) / 2
    _require_unbalanced(mu)
    return project(S, X, y, jnp.log(mu), first * second)


def two_layer_diagonal_limit(network: DiagonalNetwork, problem: Regression) -> InterpolationLimit:
    """`two_layer_limit` of a two-layer diagonal network, from any unbalanced w_1 and w_2.

    ValueError for another depth, or if |w_1| = |w_2| in a coordinate.
    """
    require_network("the two-layer mirror map", network, DiagonalNetwork, problem)
    if network.depth != 2:
        raise ValueError(f"network must have L = 2 layers, got {network.depth}; simulate it.")
    return two_layer_limit(None, problem.X, problem.y, *network.weights)


def _require_unbalanced(mu):
    fix = "a balanced coordinate keeps its sign and has no such potential; simulate it"
    positive = "> 0 in every coordinate"
    require(lambda v: v > 0, "mu (= |u^2 - v^2| / 2)", positive, mu, fix)


def _require_shapes(X, y, vector, name):
    if y.shape != X.shape[:1] or vector.shape != X.shape[1:]:
        raise ValueError(
            f"X, y, {name} must have shapes (n, d), (n,), (d,), got {X.shape}, {y.shape}, "
            f"{vector.shape}; samples are rows of X."
        )

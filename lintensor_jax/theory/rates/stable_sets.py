"""Limits and rates of balanced rank-one flows: the stable sets of Eftekhari 2020.

With X^T X = c I (in the paper c = m, the number of samples) the loss is c/2 |Z - beta|^2 plus a
constant, Z = X^T y / c, and a network with a layer of one neuron tends to Z_1, the best
approximation of Z of rank one. s_Z and s_Z2 are the two largest singular values of Z.
"""

import math

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Scalar

from ...networks import AssumptionFails
from ...problems import Regression, named
from ..assumptions import rounding
from .riccati import whitening_scale

SOURCE = "Eftekhari 2020"


class RankOneTarget(eqx.Module):
    """Z and its leading singular vectors (Eftekhari 2020, eq. 25 to 27, with beta = W^T).

    - `matrix`: Z_1 (d, m); `size`: s_Z; `gap`: gamma_Z = s_Z2/s_Z < 1, the inverse spectral gap.
    - `scale`: c, with X^T X = c I.
    """

    matrix: Float[Array, "d m"]
    size: Scalar
    gap: Scalar
    scale: Scalar

    def distance(self, coefficients: Float[ArrayLike, "*T d m"]) -> Float[Array, "*T"]:
        """|beta - Z_1| in the Frobenius norm, for one beta or a stack of them."""
        beta = _as_matrices(self, coefficients)
        away = beta - jnp.broadcast_to(self.matrix, beta.shape)
        return jnp.linalg.norm(away, axis=(-2, -1))


def rank_one_target(problem: Regression) -> RankOneTarget:
    """The target of a network with a layer of one neuron, on whitened data (Assumption 14).

    **Raises** `AssumptionFails` (a ValueError) if the data are not whitened, or if the two largest
    singular values of Z agree; ValueError for another problem.
    """
    if not isinstance(problem, Regression) or not problem.has_squared_loss:
        raise ValueError(
            f"problem: the stable sets are for Regression, got {named(problem)}; pass "
            "lintensor_jax.Regression(X, y)."
        )
    d = problem.X.shape[1]
    scale = whitening_scale(problem)
    Z = (problem.X.T @ problem.y).reshape(d, -1) / scale
    left, sizes, right = jnp.linalg.svd(Z, full_matrices=False)
    second = sizes[1] if sizes.shape[0] > 1 else jnp.zeros_like(sizes[0])
    gap = second / jnp.where(sizes[0] > 0, sizes[0], 1.0)
    if not (float(sizes[0]) > 0 and float(gap) < 1 - rounding(Z)):
        raise AssumptionFails(
            "the largest singular value of Z = X^T y / c is simple and positive: s_2/s_1",
            float(gap) if float(sizes[0]) > 0 else math.nan,
            "The best approximation of rank one is not unique.",
        )
    return RankOneTarget(sizes[0] * jnp.outer(left[:, 0], right[0]), sizes[0], gap, scale)


class StableSet(eqx.Module):
    """Rank-one beta = u s v^T, (alpha - gamma_Z) s_Z < s < upper s_Z and u^T Z_1 v > alpha s_Z.

    `upper` (the paper's beta) is infinite for N_alpha of Theorem 16, eq. (28), and finite for
    N_{alpha,beta} of Theorem 20, eq. (36). By Lemmas 15 and 19 a balanced flow does not leave
    the set.
    """

    target: RankOneTarget
    alpha: float = eqx.field(static=True)
    upper: float = eqx.field(static=True)

    def slack(self, coefficients: Float[ArrayLike, "*T d m"]) -> Float[Array, "*T"]:
        """The smallest slack of the conditions, in units of s_Z: positive inside the set only.

        It is -inf if beta is not of rank one. `coefficients`: one beta, or a stack of them.
        """
        beta = _as_matrices(self.target, coefficients)
        left, sizes, right = jnp.linalg.svd(beta, full_matrices=False)
        target = self.target
        s = sizes[..., 0] / target.size
        overlap = jnp.einsum("...i,ij,...j->...", left[..., 0], target.matrix, right[..., 0, :])
        slacks = [
            s - (self.alpha - target.gap),
            self.upper - s,
            overlap / target.size - self.alpha,
        ]
        smallest = jnp.min(jnp.stack(slacks), axis=0)
        if sizes.shape[-1] > 1:
            is_rank_one = sizes[..., 1] <= rounding(beta) * sizes[..., 0]
            smallest = jnp.where(is_rank_one, smallest, -jnp.inf)
        return smallest

    def contains(self, coefficients: Float[ArrayLike, "d m"]) -> bool:
        """Whether beta lies in the set."""
        return bool(self.slack(coefficients) > 0)


def stable_set(problem: Regression, alpha: float, upper: float = math.inf) -> StableSet:
    """The stable set of Theorem 16, or with a finite `upper` that of Theorem 20.

    **Arguments**

    - `problem`: whitened `Regression`.
    - `alpha`: in (gamma_Z, 1).
    - `upper`: the paper's beta > 1.

    ValueError for numbers outside these ranges; raises as `rank_one_target`.

    Source: Eftekhari 2020, eq. (28) and (36).
    """
    target = rank_one_target(problem)
    if not float(target.gap) < alpha < 1:
        raise ValueError(
            f"alpha: must lie in (gamma_Z, 1) = ({float(target.gap):.6g}, 1), got {alpha!r}; "
            "for example half way between."
        )
    if not upper > 1:
        raise ValueError(
            f"upper: must be > 1 (infinite for Theorem 16), got {upper!r}; leave it out for "
            "infinity."
        )
    return StableSet(target, float(alpha), float(upper))


class ConvergenceBound(eqx.Module):
    """Theorem 20: |beta - Z_1|^2 decays at rate `faraway` until s <= sqrt(6) s_Z, then at `nearby`.

    Rates are per unit of physical time. The theorem applies if both are positive.
    """

    set: StableSet
    depth: int = eqx.field(static=True)
    faraway: float = eqx.field(static=True)
    nearby: float = eqx.field(static=True)

    @property
    def holds(self) -> bool:
        """Whether both rates are positive: the inverse spectral gap is small enough."""
        return self.faraway > 0 and self.nearby > 0

    def log_bound(
        self, times: Float[ArrayLike, " T"], coefficients: Float[ArrayLike, "T d m"]
    ) -> Float[Array, " T"]:
        """log of the bound on |beta(t) - Z_1|^2, shape (T,), from the first of `times` on.

        The rate changes at tau, the first of `times` with s <= sqrt(6) s_Z. The factor of the
        bound is the distance at the first time, as in (38). The distance at tau, as in (39), is
        smaller.
        """
        times = jnp.asarray(times)
        target = self.set.target
        beta = _as_matrices(target, coefficients)
        sizes = jnp.linalg.norm(beta, axis=(-2, -1))  # rank one
        near = sizes <= math.sqrt(6) * target.size
        # tau is infinite if no time is near: then the faraway rate holds at all times.
        tau = jnp.min(jnp.where(near, times, jnp.inf))
        fast = jnp.minimum(times, tau) - times[0]
        slow = jnp.maximum(times - tau, 0.0)
        start = 2 * jnp.log(target.distance(beta[0]))
        return start - self.faraway * fast - self.nearby * slow

    def __str__(self) -> str:
        """Both rates, and whether the theorem applies."""
        verdict = "applies" if self.holds else "does not apply (a rate is not positive)"
        return (
            f"{SOURCE}, Theorem 20 {verdict}: |beta - Z_1|^2 falls at rate {self.faraway:.6g} "
            f"while s > sqrt(6) s_Z, then at {self.nearby:.6g}"
        )


def convergence_bound(
    problem: Regression, depth: int, alpha: float, upper: float
) -> ConvergenceBound:
    """Theorem 20's rates for balanced flows that start in the stable set N_{alpha,beta}.

        faraway: c L s_Z^p ((alpha - gamma)^p - 2 gamma beta^p),            p = 2 - 2/L
        nearby:  c   s_Z^p (alpha (alpha - gamma)^p - 2 gamma L beta^p)

    Erratum: (38) prints s_Z^(-2/L) for s_Z^p. That rate has other units and fails for s_Z < 1.

    **Arguments**: those of `stable_set`, and the number of layers `depth` >= 2.

    Source: Eftekhari 2020, Theorem 20 and its proof (202), (205).
    """
    found = stable_set(problem, alpha, upper)
    power = _power(depth)
    target = found.target
    gap, unit = float(target.gap), float(target.scale * target.size**power)
    lower, higher = (found.alpha - gap) ** power, gap * found.upper**power
    return ConvergenceBound(
        found,
        depth,
        faraway=unit * depth * (lower - 2 * higher),
        nearby=unit * (found.alpha * lower - 2 * depth * higher),
    )


def nearby_rates(problem: Regression, depth: int) -> dict[str, float]:
    """The exact rates at which a balanced rank-one flow of L layers approaches Z_1.

    The end-to-end flow (Eftekhari 2020, eq. 17) linearised at Z_1 on the matrices of rank one, in
    units of c s_Z^(2-2/L):

    * "size": L, the singular value s (both singular vectors are constant);
    * "slow", "fast": 1 -+ gamma_Z, the pair u_2 v^T -+ u v_2^T of the second singular vectors;
    * "kernel": 1, directions u_i v^T or u v_i^T on which Z vanishes; absent for square Z of full
      rank.

    So |beta - Z_1| finally decays at "slow" if gamma_Z > 0 (at "kernel" for one output). Of this
    rate only the factor s_Z^(-2/L) depends on the depth: deeper networks are slower near Z_1 if
    s_Z < 1 and faster if s_Z > 1; at s_Z = 1 the depth makes no difference. The paper leaves this
    question open after its Figure 1 (whose data have s_Z < 1). The answer is a result of this
    package.
    """
    target = rank_one_target(problem)
    unit = float(target.scale * target.size ** _power(depth))
    gap = float(target.gap)
    rates = {"size": depth * unit}
    d, m = target.matrix.shape
    if min(d, m) > 1:
        rates |= {"slow": (1 - gap) * unit, "fast": (1 + gap) * unit}
    Z = np.asarray(problem.X.T @ problem.y).reshape(d, m)
    rank = np.linalg.matrix_rank(Z)
    if rank < max(d, m):
        rates["kernel"] = unit
    return rates


def _power(depth):
    if isinstance(depth, bool) or not isinstance(depth, int) or depth < 2:
        raise ValueError(
            f"depth: must be an int >= 2, got {depth!r}; one layer is linear regression, "
            "without sets."
        )
    return 2 - 2 / depth


def _as_matrices(target, coefficients):
    """Coefficients (..., d) of a scalar output as (..., d, 1); (..., d, m) as they are."""
    beta = jnp.asarray(coefficients)
    d, m = target.matrix.shape
    if beta.shape[-2:] == (d, m):
        return beta
    if m == 1 and beta.ndim >= 1 and beta.shape[-1] == d:
        return beta[..., None]
    raise ValueError(
        f"coefficients: must have shape (..., {d}, {m})"
        f"{f' or (..., {d})' if m == 1 else ''}, those of the problem, got {beta.shape}."
    )

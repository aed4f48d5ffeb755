"""Each statement of Min et al. 2021 as a bound with its assumptions.

The numbers are computed in `imbalance`. This module checks their assumptions, on concrete arrays.
"""

import math

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ...networks import FullyConnectedNetwork
from ...problems import Regression
from ..assumptions import Assumption, rounding
from ..prediction import AbstractLossBound, ExponentialDecay
from .imbalance import MIN, ConvergenceRateBound, convergence_rate_bound


class Bound(eqx.Module):
    """An inequality about a flow, with its assumptions measured.

    - `theorem`: for example "Theorem 3".
    - `quantity`: the bounded quantity, with the direction of the inequality.
    - `value`: the bound; its units are those of the quantity.
    - `assumptions`: all assumptions of the statement.
    - `decay`: the bound on the (excess) loss that follows, as a function of time, or None.
    """

    theorem: str = eqx.field(static=True)
    quantity: str = eqx.field(static=True)
    value: float = eqx.field(static=True)
    assumptions: tuple[Assumption, ...]
    decay: AbstractLossBound | None = None

    @property
    def holds(self) -> bool | None:
        """Whether the statement applies: None if an assumption is open and none is violated."""
        verdicts = [a.holds for a in self.assumptions]
        return False if False in verdicts else None if None in verdicts else True

    def __str__(self) -> str:
        """Theorem, verdict, quantity and value on one line, then the assumptions."""
        verdict = {True: "applies", False: "does not apply", None: "is open"}[self.holds]
        head = f"{self.theorem} {verdict}: {self.quantity} {self.value:.6g}"
        return "\n".join([head, *(f"  {a}" for a in self.assumptions)])


def rate_bounds(network: FullyConnectedNetwork, problem: Regression) -> tuple[Bound, ...]:
    """Proposition 1, Theorem 3, Corollaries 4 to 6 and eq. (22) at a network's parameters.

    As functions of time (`decay`) they bound the loss above its minimum, from this point on: the L
    of their formula is L - L*. Theorem 3 at a later point of a flow is Corollary 6; time counts
    from that point.

    Errata: Corollary 5 prints the rate 2 l_r(Sigma) c(0), and Corollary 6 the decay exp(-l_r(Sigma)
    c(t_0) t) from t_0 on. Without that 2, and with t - t_0 for t, they follow from Theorem 3; as
    printed they are false for a scalar network.

    Source: Min et al. 2021, section 3. Raises as `convergence_rate_bound`.
    """
    found = convergence_rate_bound(network, problem)
    width = _width(network, found)
    zero = rounding(network.weights[0])
    scale = float(jnp.max(jnp.abs(found.imbalance.eigenvalues)))
    scale = max(scale, float(jnp.linalg.norm(found.imbalance.last, 2)) ** 2)
    level, margin = float(found.imbalance.level), float(jnp.max(found.margins))
    targets = float(jnp.linalg.norm(problem.y))
    imbalanced = Assumption(
        "the level of imbalance D_u is positive", level, level > zero * scale, f"{MIN}, Corollary 4"
    )
    has_margin = Assumption(
        "the margin s_min(W^T Y) - |E|_F is positive",
        margin,
        margin > zero * targets,
        f"{MIN}, Corollary 5",
    )
    tends = Assumption("the loss tends to L*", None, None, f"{MIN}, Corollary 6")
    if imbalanced.holds or has_margin.holds:
        tends = Assumption("the loss tends to L*, by Theorem 3", None, True, tends.source)

    def decay(value, source):
        initial = float(jnp.log(found.excess_loss))
        return ExponentialDecay(float(value), initial, f"of L - L*; {MIN}, {source}")

    overall = "-dL/dt / (L - L*) from now on >="
    return (
        Bound(
            "Proposition 1",
            "-dL/dt / (L - L*) now >=",
            float(found.instantaneous),
            (width,),
        ),
        *(
            Bound(name, overall, float(value), (width, *needed), decay(value, name))
            for name, value, needed in (
                ("Theorem 3", found.guaranteed, ()),
                ("Corollary 4", found.by_imbalance, (imbalanced,)),
                ("Corollary 5", found.guaranteed, (has_margin,)),
            )
        ),
        Bound(
            "Corollary 6",
            "lim -dL/dt / (L - L*) >=",
            float(found.asymptotic),
            (width, tends),
        ),
    )


def deviation_bound(network: FullyConnectedNetwork, problem: Regression) -> Bound:
    """A bound on the distance of the flow's limit from the min-norm solution, in |.|_F.

    |U V^T - beta| <= |(V U_2^T; U_1 U_2^T)(0)|_F exp(2 sqrt(l_1(Sigma)) |E(0)|_F / c), where c is
    the rate of Theorem 3. The bound is 0 in the invariant set of Proposition 10. The proof of
    Theorem 12 shows it (E.11, with Theorem 3 instead of Corollary 4) before it specialises to
    random parameters.

    Source: Min et al. 2021, eq. (32) and Appendix E. Raises as `convergence_rate_bound`.
    """
    found = convergence_rate_bound(network, problem)
    rate = float(found.guaranteed)
    away = distance_from_invariant_set(network, problem)
    sizes = [float(jnp.linalg.norm(w)) for w in network.weights]
    if away <= rounding(network.weights[0]) * sizes[0] * max(sizes):
        away = 0.0  # rounding times a very large exponential would not be small
    scale = float(jnp.max(jnp.abs(found.imbalance.eigenvalues))) * float(found.smallest_eigenvalue)
    converges = Assumption(
        "the guaranteed rate is positive",
        rate,
        rate > rounding(network.weights[0]) * scale,
        f"{MIN}, Theorem 3",
    )
    exponent = 2 * float(jnp.sqrt(found.largest_eigenvalue) * found.error_norm)
    value = away * growth(exponent / rate) if rate > 0 else np.inf
    return Bound(
        "Proof of Theorem 12",
        "|lim U V^T - min-norm solution|_F <=",
        0.0 if away == 0 else value,
        (_width(network, found), converges),
    )


def distance_from_invariant_set(network: FullyConnectedNetwork, problem: Regression) -> float:
    """|(V U_2^T; U_1 U_2^T)|_F, in squared parameters: 0 in the invariant set of Proposition 10.

    Source: Min et al. 2021, eq. (31), (34).
    """
    imbalance = convergence_rate_bound(network, problem).imbalance
    resting = resting_part(network, problem)
    rows = jnp.concatenate([imbalance.last, imbalance.first])
    return float(jnp.linalg.norm(rows @ resting.T))


def resting_part(network: FullyConnectedNetwork, problem: Regression) -> Array:
    """Phi_2 U_2, shape (d, h): the constant part of layer 1 outside the range of X^T."""
    sizes, right = jnp.linalg.svd(problem.X, full_matrices=False)[1:]
    span = right[np.asarray(sizes > max(problem.X.shape) * jnp.finfo(sizes.dtype).eps * sizes[0])]
    if len(span) == span.shape[1]:
        return jnp.zeros_like(network.weights[0])
    return network.weights[0] - span.T @ (span @ network.weights[0])


def growth(exponent: float) -> float:
    """exp(exponent); infinite if it would overflow, which makes the bound trivial."""
    return math.exp(exponent) if exponent < 700 else math.inf


def _width(network, found: ConvergenceRateBound):
    width, outputs = found.imbalance.first.shape[1], found.imbalance.last.shape[0]
    least = min(outputs, int(found.imbalance.rank))
    return Assumption(
        f"h >= min(m, r) = {least}, the width h", width, width >= least, f"{MIN}, Lemma 8"
    )

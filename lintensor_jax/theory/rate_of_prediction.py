"""The rate that a prediction states, as a bound with its assumptions."""

from .predict import predict
from .rates.bounds import Bound


def yun_rate_bound(network, problem) -> Bound:
    """Theorems 2, 5, 6 and 7 of Yun et al. 2021 (and relatives) as one bound on the loss.

    It is `predict(network, problem).rate` with the assumptions of the theorem that applies. The
    loss decays at least as exp(-c t) for regression, and as 1/(1 + c L(0) t) for classification
    (Theorems 2 and 3 print 1/(1 + c t)). The value is c.

    **Raises** ValueError if no theorem with a rate applies; the message names what is violated.
    """
    found = predict(network, problem)
    if found.rate is None:
        broken = "; ".join(str(a) for a in found.violated) or "nothing, but it states no rate"
        raise ValueError(
            f"yun_rate_bound: a theorem of Yun et al. 2021 with a rate must apply, got violated: "
            f"{broken}. Start where one applies (lintensor_jax.initialization.matching), or use "
            "convergence_rate_bound for two-layer networks."
        )
    return Bound(
        found.theorem or "",
        f"{found.rate.formula}, c =",
        float(found.rate.value),
        found.assumptions,
        found.rate,
    )

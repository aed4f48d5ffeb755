"""The statements of Papazov et al. 2024, compared with the results here.

They are the statements of the paper's abstract. The paper's figures were not available. The second
statement does not hold here. Momentum shrinks mu most where the gradient is large, that is on the
support. This effect is stronger than that of the smaller mean of mu (docs/errata.md).
"""

import math
from collections.abc import Iterator

from ..report import Claim

CAPTIONS = {
    "mass": "After Papazov et al. 2024: heavy-ball flow by its mass lambda. Left: distance of the "
    "limits from the sparse vector, divided by the distance of the gradient flow's limit (thin: "
    "single problems, up to the mass at which a coordinate changes its sign; thick: mean). Right: "
    "distance between the ends of gradient descent with momentum beta and step "
    "lambda (1 - beta)^2 and of the flow of this lambda, by the time of a step.",
}


def claims(masses: list[dict], momenta: list[dict]) -> Iterator[Claim]:
    """The claims of the abstract, from the rows of the tables of masses and of momenta."""
    first, last = momenta[0], momenta[-1]
    order = _order(first, last)
    yield Claim(
        "the path of descent with momentum",
        "is that of lambda = step / (1 - momentum)^2",
        f"ends differ from the flow's by {first['away']:.1e} (a step takes the time "
        f"{first['time_step']:.1e}) to {last['away']:.1e} ({last['time_step']:.1e}): order "
        f"{order:.2f} in this time",
        bool(order > 0.5),
    )
    small = [row for row in masses if row["closer"] == row["covered"] > 0]
    yield Claim(
        "small values of lambda",
        "help to recover sparse solutions",
        "all limits are closer to the sparse vector than the gradient flow's for lambda = "
        + (", ".join(f"{row['mass']:g}" for row in small) or "none"),
        bool(small) and small[0]["mass"] == masses[0]["mass"],
    )


def _order(first: dict, last: dict) -> float:
    """The power of the time of a step, lambda (1 - beta), with which the distance falls."""
    return math.log(first["away"] / last["away"]) / math.log(first["time_step"] / last["time_step"])

"""The statements of Pesme et al. 2021, compared with the results here.

They are the statements of the paper's abstract. The paper's figures were not available.
"""

import itertools
from collections.abc import Iterator

from ..report import Claim

CAPTIONS = {
    "noise": "After Pesme et al. 2021: stochastic gradient flow and gradient flow from one start. "
    "Left, middle: loss and distance from the sparse vector along the first path of each noise. "
    "Right: distance of the limits from the sparse vector, divided by the distance of the flow's "
    "limit, one point for each path, against the amount by which the noise lowers log mu.",
}


def claims(noises: list[dict], relation: dict) -> Iterator[Claim]:
    """The claims of the abstract. `noises`: rows of the table; `relation`: over all paths."""
    better, paths = sum(row["closer"] for row in noises), sum(row["fits"] for row in noises)
    yield Claim(
        "the limit of the stochastic flow",
        "always generalises better than that of the gradient flow",
        f"closer to the sparse vector in {better} of {paths} paths",
        bool(better == paths),
    )
    yield Claim(
        "convergence of the training loss and bias",
        "the slower the convergence, the better the bias",
        f"rank correlation of int s^2 dt with the distance over the flow's: {relation['rank']:.2f}",
        bool(relation["rank"] < 0),
    )
    norms = [row["excess"] for row in noises]
    yield Claim(
        "l1 norm of the limits",
        "(not in the abstract)",
        "mean excess over the least l1 norm, in units of the flow's: "
        + ", ".join(f"{row['excess']:.3f} (noise {row['noise']:g})" for row in noises),
        None if len(norms) < 2 else all(a > b for a, b in itertools.pairwise(norms)),
    )

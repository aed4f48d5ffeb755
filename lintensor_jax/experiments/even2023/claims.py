"""The statements of Even et al. 2023, compared with the results here.

They are the statements of the paper's abstract. The paper's figures were not available.
"""

from collections.abc import Iterator

from ..report import Claim

CAPTIONS = {
    "steps": "After Even et al. 2023. Left: distance of the limits from the sparse vector, divided "
    "by the distance of the flow's limit. Right: the mean gain log(mu_0/mu) on the support of the "
    "vector and beside it. The x axis is the step, divided by the largest step up to which all "
    "runs fit the data. Thin lines are single problems, thick lines the mean.",
}


def claims(methods: list[dict]) -> Iterator[Claim]:
    """The claims of the abstract. `methods`: rows of the table, full gradient then mini-batches."""
    full, stochastic = methods
    yield Claim(
        "mini-batches with large steps, sparse regression",
        "large steps consistently help",
        f"at the largest step {stochastic['at_largest']:.3f} of the flow's distance in the mean, "
        f"closer than the flow in {stochastic['closer']} of {stochastic['problems']} problems",
        bool(stochastic["closer"] == stochastic["problems"]),
    )
    yield Claim(
        "the full gradient with large steps",
        "large steps can hinder the recovery of sparse solutions",
        f"at the largest step {full['at_largest']:.3f} of the flow's distance in the mean, farther "
        f"than the flow in {full['problems'] - full['closer']} of {full['problems']} problems",
        bool(full["closer"] < full["problems"]),
    )
    yield Claim(
        "steps just below divergence",
        "both effects are largest in a tight window",
        "change of the relative distance from a quarter of the largest step to half, and from "
        "half to it: "
        + "; ".join(
            f"{row['half'] - row['quarter']:+.3f}, {row['at_largest'] - row['half']:+.3f} "
            f"({row['method']})"
            for row in methods
        ),
        all(
            abs(row["at_largest"] - row["half"]) > abs(row["half"] - row["quarter"])
            for row in methods
        ),
    )

"""The claims and figures of Ji & Telgarsky 2019, compared with the results here."""

import math
from collections.abc import Iterator

from ..formats import scientific
from ..report import Claim
from .results import Result

CAPTIONS = {
    "figure1": "Figure 1 of Ji & Telgarsky 2019: one and four layers find the same maximum-margin "
    "predictor, and every layer tends to rank one as the risk falls.",
    "figure2": "Figure 2 of Ji & Telgarsky 2019: two circles, mapped through the layers of a "
    "three-layer network onto a line.",
    "figure3": "Figure 3 of Ji & Telgarsky 2019: risk and alignment of dense layers in a nonlinear "
    "network. The paper trains AlexNet on CIFAR-10; here it is a small network on the digits that "
    "come with scikit-learn.",
}


def claims(
    result: Result,
    flows: list[dict],
    descents: list[dict],
    counterexamples: list[dict],
    images: list[dict],
) -> Iterator[Claim]:
    """Theorems, lemmas and figures, from the rows of the tables."""
    task = result.config.flow
    deep = [row for row in flows if row["depth"] > 1]
    for data in dict.fromkeys(row["data"] for row in flows):
        rows = [row for row in flows if row["data"] == data]
        depths = ", ".join(str(d) for d in dict.fromkeys(row["depth"] for row in rows))
        away = max(row["distance"] for row in rows)
        yield Claim(
            f"predictor on {data}, depths {depths}",
            "the same maximum-margin predictor",
            f"all within {scientific(away)} of it",
            bool(away <= task.agreement),
        )
    # The theorems give no rate. At a margin of 1e6 the distances to the limit 1 are below this.
    small = 1e-3
    for quantity, paper, key in (
        ("spectral over Frobenius norm, every layer", "tends to 1 (Figure 1b)", "rank_one_defect"),
        ("alignment <v_{k+1}, u_k>^2", "tends to 1 (Theorem 2.2)", "misalignment"),
        ("<v_1, maximum margin>^2", "tends to 1 (Theorem 2.8)", "input_misalignment"),
    ):
        away = max(row[key] for row in deep)
        yield Claim(quantity, paper, f"1 - {scientific(away)} at least", bool(away < small))
    broken = sum(row["violations"] for row in deep)
    share = max(row["tightest"] for row in deep)
    yield Claim(
        "Lemma 2.6 along the flows",
        "holds at all times",
        f"{broken} violations, at most {100 * share:.0f} % of a bound is used",
        broken == 0,
    )
    proven = [row for row in descents if row["violations"] is not None]
    if proven:
        broken = sum(row["violations"] for row in proven)
        yield Claim(
            "Lemma C.7 along descent with the paper's steps",
            "holds at all steps",
            f"{broken} violations",
            broken == 0,
        )
    yield Claim(
        "risk from w_1 = -w_2 (Appendix A)",
        "never below l(0)",
        f"{counterexamples[0]['risk']:.6f} at the end, from l(0) = 1",
        bool(counterexamples[0]["below"] <= 1e-12),
    )
    if images:
        yield _alexnet(images)


def _alexnet(images):
    paper = [1 / math.sqrt(least) for least in (1024, 4096, 10)]
    ratios = ", ".join(f"{value:.3f}" for value in paper)
    # The last layer is left out: it has few columns, so its ratio is large at the start already.
    hidden = [row for row in images if row["overlap"] is not None]
    gain = [row["ratio"] / row["smallest_ratio"] for row in hidden]
    grown = [row["ratio"] / row["initial_ratio"] for row in hidden]
    return Claim(
        "Figure 3: rank-one ratio over the smallest possible, layers before the last",
        f"much larger than 1 (AlexNet's dense layers: smallest {ratios})",
        f"{min(gain):.1f} to {max(gain):.1f} on {images[0]['images']}, after growing by "
        f"{min(grown):.1f} to {max(grown):.1f}",
        bool(min(gain) > 1.2 and min(grown) > 1),
    )

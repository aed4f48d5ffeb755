"""The statements of Yun et al. 2021, section 5, compared with the results here."""

from collections.abc import Iterator

from ...formats import scientific
from ...report import Claim
from .results import Result

CAPTIONS = {
    "l1_to_l2": "Theorem 5 of Yun et al. 2021, which the paper does not draw: limits of regression "
    "from the l1 to the l2 solution as the initial scale grows. Lines are the theorem, markers are "
    "simulated flows.",
    "alpha_to_zero": "Theorem 7 and Corollary 7 of Yun et al. 2021 as the initial scale tends to "
    "0. Beyond the paper: matrix factorisation with sensors that do not commute.",
}


def claims(
    result: Result,
    limits: list[dict],
    flows: list[dict],
    fully_connected: list[dict],
    noncommuting: list[dict],
    rotated: list[dict],
) -> Iterator[Claim]:
    """Theorems 5 and 7 with their corollaries, from the rows of the tables."""
    task = result.config.interpolation
    agreement = max(row["agreement"] for row in flows)
    yield Claim(
        "limit of the flow, Theorem 5",
        "the minimiser of Q",
        f"within {scientific(agreement)} of it (relative), {len(flows)} flows",
        bool(agreement <= task.agreement),
    )
    for words, key, alpha, place in (
        ("Remark 4, alpha to 0", "l1_distance", min(r["alpha"] for r in limits), "l1"),
        ("Remark 4, alpha to infinity", "l2_distance", max(r["alpha"] for r in limits), "l2"),
    ):
        away = max(row[key] for row in limits if row["alpha"] == alpha)
        yield Claim(
            words,
            f"weighted {place} solution",
            f"within {scientific(away)} at alpha = {alpha:.3g} (1: the distance between the two)",
            # At moderate scales the distances are of order 1.
            bool(away < 0.1),
        )
    if fully_connected:
        yield _smallest(fully_connected, "Theorem 7, alpha to 0", "minimum l2 norm solution", True)
    if rotated:
        off = max(row["agreement"] for row in rotated)
        yield Claim(
            "Corollary 7, commuting sensors in a random basis",
            "the minimiser of Q over the eigenvalues",
            f"{scientific(off)} from it; rounding errors off the eigenbasis grow at saddles",
            None,
        )
    if noncommuting:
        yield _smallest(
            noncommuting, "sensors that do not commute", "no claim (open)", None, " nuclear norm"
        )


def _smallest(rows, quantity, paper, claimed, norm=""):
    alpha = min(row["alpha"] for row in rows)
    away = max(row["distance"] for row in rows if row["alpha"] == alpha)
    ours = (
        f"{scientific(away)} from the least{norm or ' l2 norm'} at alpha = {alpha:.3g} (relative)"
    )
    return Claim(quantity, paper, ours, None if claimed is None else bool(away < 0.1))

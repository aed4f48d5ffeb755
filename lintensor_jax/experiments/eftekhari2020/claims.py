"""The statements of Eftekhari 2020, compared with the results here."""

import itertools
from collections.abc import Iterator

from ..formats import scientific
from ..report import Claim

CAPTIONS = {
    "figure1": "Figure 1 of Eftekhari 2020: distance between the induced flow and the target, by "
    "depth, far from the target and near it. The layers' own flow is drawn on top.",
    "theorem20": "Theorem 20 of Eftekhari 2020, which the paper does not draw: distances against "
    "the bound, from random points of the stable set.",
    "nearby_rates": "The open question under Figure 1 of Eftekhari 2020: nearby rates against "
    "depth, measured, and from the linearised flow.",
}


def claims(
    curves: list[dict],
    flows: list[dict],
    bounds: list[dict],
    nearby: list[dict],
    landscape: list[dict],
    rounding: float,
) -> Iterator[Claim]:
    """Figure 1, Theorem 20 and the landscape, from the rows of the tables.

    `rounding` is how much log(distance^2 / bound) may exceed 0.
    """
    yield from _figure_1(curves, flows)
    yield from _theorem_20(bounds, rounding)
    yield from _nearby_rates(nearby)
    yield from _origin(landscape)


def _figure_1(curves, flows):
    depths = list(dict.fromkeys(row["depth"] for row in curves))
    early = [next(r["distance"] for r in curves if r["depth"] == depth) for depth in depths]
    yield Claim(
        "Figure 1: far away",
        "deeper is faster",
        "distance "
        + ", ".join(f"{d:.3g} (N = {n})" for n, d in zip(depths, early, strict=True))
        + " at the first time of the table",
        all(a > b for a, b in itertools.pairwise(early)),
    )
    difference = max(row["difference"] for row in flows)
    yield Claim(
        "induced flow (17) and the layers' own flow",
        "the same end-to-end matrix",
        f"within {scientific(difference)} (relative)",
        # Small enough that both are one curve in the figure; a check has the sharp bound.
        bool(difference < 1e-6),
    )


def _theorem_20(bounds, rounding):
    excess, count = max(row["excess"] for row in bounds), sum(row["flows"] for row in bounds)
    yield Claim(
        "Theorem 20 along flows from the stable set",
        "an upper bound, (38) with the corrected exponent and (39)",
        f"log(distance^2 / bound) <= {excess:.2g}, {count} flows",
        bool(excess <= rounding),
    )
    fails = sum(row["printed"] for row in bounds)
    yield Claim(
        "(38) as printed, s_Z^(-2/N)",
        "an upper bound",
        f"{fails} of {count} flows exceed it",
        fails == 0,
        erratum=True,
    )
    left = sum(row["left"] for row in bounds)
    yield Claim(
        "Lemmas 15, 19: the stable set",
        "no flow leaves it",
        f"{left} of {count} leave it",
        left == 0,
    )


def _nearby_rates(nearby):
    for size in dict.fromkeys(row["size"] for row in nearby):
        rows = [row for row in nearby if row["size"] == size]
        rows = [row for row in rows if row["outputs"] == rows[0]["outputs"]]
        rates = ", ".join(f"{r['measured']:.3g} (N = {r['depth']})" for r in rows)
        yield Claim(f"nearby rate, s_Z = {size:g}", "open; perhaps slower with depth", rates, None)


def _origin(landscape):
    zero = [row for row in landscape if row["name"].startswith("zero, ")]
    if zero:
        yield Claim(
            "the origin",
            "spurious for N >= 2",
            "; ".join(f"{row['name'].removeprefix('zero, ')}: {row['kind']}" for row in zero),
            all(row["kind"].endswith("spurious") for row in zero),
            erratum=True,
        )

"""The statements of Min et al. 2021, compared with the results here."""

from collections.abc import Iterator

from ..report import Claim

CAPTIONS = {
    "figure2_4": "Figures 2 (left) and 4 of Min et al. 2021: eigenvalues of the imbalance, scaled, "
    "at small and large width.",
    "figure5": "Figures 2 (right) and 5 of Min et al. 2021: losses and rates by width, with the "
    "bounds of Theorem 3 and Proposition 1.",
    "figure3_6": "Figures 3 and 6 of Min et al. 2021: starts with the same end-to-end matrix, "
    "several with different imbalances and one balanced.",
    "figure7": "Figure 7 of Min et al. 2021: distance from the min-norm solution against width, "
    "with the bound of Theorem 12.",
}


def claims(
    spectra: list[dict],
    rates: list[dict],
    starts: list[dict],
    widths: list[dict],
    slopes: list[dict],
) -> Iterator[Claim]:
    """Figures 2 to 7, from the rows of the tables."""
    yield from _spectrum(spectra)
    yield from _rates(rates, starts)
    yield from _figure_7(widths, slopes)


def _spectrum(spectra):
    for row in spectra:
        if row["width"] >= row["rank"] + row["outputs"]:
            yield Claim(
                f"Figure 2/4: signs of the eigenvalues, m = {row['outputs']}, h = {row['width']}",
                f"{row['rank']} positive, {row['outputs']} negative",
                f"{row['num_positive']} positive, {row['num_negative']} negative",
                row["wrong_signs"] == 0,
            )
    outputs = spectra[0]["outputs"]
    ratios = {row["width"]: row["ratio"] for row in spectra if row["outputs"] == outputs}
    small, large = min(ratios), max(ratios)
    yield Claim(
        "Figure 2/4: spectrum spreads over the level of imbalance",
        "larger than it at the small width, smaller at the large one",
        f"{ratios[small]:.2f} at h = {small}, {ratios[large]:.2f} at h = {large}",
        bool(ratios[small] > 1 > ratios[large]),
    )


def _rates(rates, starts):
    worst = max(row["worst_rate"] for row in [*rates, *starts])
    yield Claim(
        "Proposition 1 over the measured rate",
        "at most 1",
        f"at most {worst:.4f}",
        bool(worst <= 1 + 1e-9),  # up to rounding errors
    )
    first, last = rates[0], rates[-1]
    yield Claim(
        "Figure 5: rate at the start over 2 D_u",
        "a good bound at the large width, not at the small one",
        f"{first['first_rate'] / first['corollary_4']:.2f} ({first['label']}), "
        f"{last['first_rate'] / last['corollary_4']:.2f} ({last['label']})"
        if first["corollary_4"] > 0
        else f"2 D_u = 0 ({first['label']})",
        bool(
            last["first_rate"] / last["corollary_4"]
            < first["first_rate"] / max(first["corollary_4"], 1e-300)
        ),
    )
    *imbalanced, balanced = starts
    yield Claim(
        "Figure 3/6: rate at the end",
        "grows with the imbalance; the balanced start is the slowest",
        ", ".join(f"{row['last_rate']:.3g} ({row['label']})" for row in starts),
        all(balanced["last_rate"] < row["last_rate"] for row in imbalanced),
    )


def _figure_7(widths, slopes):
    corrected = slopes[0]
    yield Claim(
        "Figure 7: exponent of the distance in the width",
        f"{corrected['theory']:g}",
        f"{corrected['slope']:.3f} +- {corrected['error_bar']:.3f}",
        bool(abs(corrected["slope"] - corrected["theory"]) <= corrected["error_bar"]),
    )
    means = [row["mean"] for row in widths]
    yield Claim(
        "Figure 7: distance from the min-norm solution",
        "decreases with the width; h from 500 to 10000",
        f"{means[0]:.3g} at h = {widths[0]['width']}, {means[-1]:.3g} at h = {widths[-1]['width']}",
        bool(means[-1] < means[0]),
    )

"""The statements of Gunasekar et al. 2018, compared with the results here."""

from collections.abc import Iterator

from ..formats import scientific
from ..report import Claim
from .results import Result

CAPTIONS = {
    "directions": "Figure 1 of Gunasekar et al. 2018 is a drawing; here it has numbers. Limits of "
    "the three architectures from one start, entries and discrete Fourier transform, by depth. "
    "Dashes are the last step of gradient descent.",
    "sparsity": "What Figure 1 of Gunasekar et al. 2018 says in words: deeper networks have "
    "sparser limits, diagonal ones in the entries, convolutional ones in the frequencies, "
    "fully-connected ones in neither.",
    "induced_regularizer": "Lemmas 5 to 7 of Gunasekar et al. 2018: no network costs less than "
    "R of its predictor, and limits (stars) cost exactly that.",
}
_CLAIMED = {
    "fully-connected": "l2 maximum margin at every depth (Theorem 1)",
    "diagonal": "stationary for the l(2/L) margin (Theorem 2a)",
    "convolutional": "stationary for the l(2/L) margin of the DFT (Theorem 2)",
}
_DOMAINS = {
    "diagonal": ("signal_count", "entries"),
    "convolutional": ("frequency_count", "frequencies"),
}


def claims(
    result: Result, limits: list[dict], sparsity: list[dict], induced: list[dict]
) -> Iterator[Claim]:
    """Theorems, Figure 1 and the lemmas, from the rows of the tables."""
    config = result.config
    for name in dict.fromkeys(row["architecture"] for row in limits):
        rows = [row for row in limits if row["architecture"] == name]
        residual = max(row["predictor_residual"] for row in rows)
        ours, kept = f"KKT residual {scientific(residual)}", residual <= config.residual
        if name == "fully-connected":
            away = max(row["distance"] for row in rows)
            ours, kept = f"within {scientific(away)}, {ours}", kept and away <= config.agreement
        depths = ", ".join(str(row["depth"]) for row in rows)
        yield Claim(f"limit, {name}, L = {depths}", _CLAIMED[name], ours, bool(kept))
    for name, (key, words) in _DOMAINS.items():
        counts = [row[key] for row in sparsity if row["architecture"] == name]
        if len(counts) > 1:
            yield Claim(
                f"Figure 1: {words} that are not 0, {name}",
                "fewer with depth",
                " -> ".join(f"{count:.1f}" for count in counts) + f" of {config.dimension}",
                bool(counts[-1] <= counts[0]),
            )
    worst = max(row["excess"] for row in induced)
    yield Claim(
        "Lemmas 5, 6: R at the limit over its norm squared",
        "1",
        f"1 to {scientific(worst)}",
        bool(worst <= config.agreement),
    )
    printed = [row for row in induced if row["printed_unnormalised"] is not None]
    if printed:
        factors = [
            row[key] for row in printed for key in ("printed_unnormalised", "printed_unitary")
        ]
        yield Claim(
            "Lemma 7: the constant",
            "L",
            f"R is {min(factors):.2f} to {max(factors):.2f} times the norm squared with "
            "it, by the DFT and the depth; L / d is right (unnormalised DFT)",
            bool(min(factors) > 1 / 1.1 and max(factors) < 1.1),
            erratum=True,
        )

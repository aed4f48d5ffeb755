"""The statements of Yun et al. 2021, section 4, compared with the results here."""

from collections.abc import Iterator

from ...formats import scientific
from ...report import Claim
from .results import Result

CAPTIONS = {
    "direction_error": "Beyond the papers: Theorems 1 and 2 of Yun et al. 2021 on random data. "
    "Circles are where the paper's gradient descent stops.",
    "loss_bound": "The bound of Theorem 2 on the loss. As printed it is violated by starts at a "
    "loss below 1; the corrected bound holds.",
    "finite_loss": "The open question of section 6: directions at a finite loss, with two "
    "predictions. The program is the minimisation of Moroshko et al. 2020 at mu. The path follows "
    "its solution from large mu to small mu, with multipliers that never decrease, as along a "
    "flow. Distances are relative to the distance between the two maximum margins.",
}
_COROLLARIES = {
    "fully-connected": ("Corollary 1", "the l2 maximum margin"),
    "diagonal": ("Corollary 2", "l1 maximum margin (L = 2); KKT points of l(2/L)"),
    "convolutional": ("Corollary 3", "the same of the Fourier transform"),
    "filters of 2": ("Theorem 1, filters of 2", "singular vectors; no regulariser is known"),
}


def claims(
    result: Result,
    flows: list[dict],
    bounds: list[dict],
    one_sample: list[dict],
    finite: list[dict],
) -> Iterator[Claim]:
    """Theorems 1 to 3 with their corollaries, from the rows of the tables."""
    task = result.config.theorems
    for name in dict.fromkeys(row["architecture"] for row in flows):
        words, paper = _COROLLARIES[name]
        rows = [row for row in flows if row["architecture"] == name]
        known = [row["distance"] for row in rows if row["distance"] is not None]
        residual = max(row["parameter_residual"] for row in rows)
        ours = f"KKT residual {scientific(residual)}"
        if known:
            ours = f"within {scientific(max(known))} of it, {ours}"
        agrees = residual <= task.residual and max(known, default=0.0) <= task.agreement
        yield Claim(f"{words}: {name}", paper, ours, bool(agrees))
    singular = max(row["limit_singular_residual"] for row in flows)
    yield Claim(
        "Theorem 1, eq. 8",
        "layers tend to singular vectors",
        f"residual {scientific(singular)} at the certified limits",
        bool(singular <= task.residual),
    )
    worst = max(row["formula_distance"] for row in one_sample)
    yield Claim(
        "Corollary 4, one sample",
        "closed forms for filters of 1 and 2",
        f"within {scientific(worst)}",
        bool(worst <= result.config.one_sample.agreement),
    )
    ahead = [row for row in bounds if row["initial_loss"] < 1]
    printed = max(row["log10_printed_excess"] for row in ahead)
    corrected = max(row["log10_excess"] for row in bounds)
    yield Claim(
        "Theorem 2: bound on the loss",
        "L(0) / (1 + c t)",
        f"the loss exceeds it {10**printed:.0f} times where L(0) < 1, and the corrected "
        f"L(0) / (1 + c L(0) t) by at most {scientific(max(corrected, 0.0))} decades",
        bool(printed <= 0),
        erratum=True,
    )
    at_stop, at_end = (max(r[key] for r in flows) for key in ("paper_error", "end_error"))
    yield Claim(
        "direction at a finite loss",
        "dependent on the start at 1e-5: future work",
        f"{at_stop:.2g} from the limit at 1e-5, {scientific(at_end)} at "
        f"exp(-{task.log_inverse_loss:.0e})",
        None,
    )
    scaled = max(row["scaled_error"] for row in finite)
    yield Claim(
        "finite loss, Moroshko et al. 2020",
        "not in Yun et al.",
        f"flow - prediction below {scaled:.2g} / (log(1/loss) min(mu, 1))",
        None,
    )

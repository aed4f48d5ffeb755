"""The statements of Yun et al. 2021 on Figures 1 and 3, compared with the results here."""

from collections.abc import Iterator

import numpy as np

from ...formats import scientific
from ...report import Claim
from .results import Result

CAPTIONS = {
    "figure1": "Figure 1 of Yun et al. 2021: regression from the smallest and the largest scale. "
    "Lines are gradient flows, dots the paper's gradient descent, open markers Theorem 6.",
    "figure3": "Figure 3 of Yun et al. 2021: regression at the scale between, classification at "
    "all scales. Broad rays are the maximum-margin directions, filled markers where the paper's "
    "gradient descent stops.",
    "directions": "Beyond the papers: the angle between predictor and limit as the loss falls, on "
    "the data of Figure 3 and from its starts of the largest scale alpha. Gradient descent ends in "
    "the grey part. The flows continue to losses that are too small for float64. Where a curve "
    "dips, the direction crosses its limit and then approaches it from the other side.",
}
# The solutions that section 6 prints, and their exact values.
_MINIMUM_NORM = {
    "fully-connected": ("[0.2 0.4]", (0.2, 0.4)),
    "diagonal": ("[0 0.5]", (0.0, 0.5)),
    "convolutional": ("[0.33 0.33]", (1 / 3, 1 / 3)),
}
_PAPER_STEPS = 2_000_000


def claims(result: Result, regression: list[dict], classification: list[dict]) -> Iterator[Claim]:
    """Section 6, from the rows of the tables."""
    config = result.config
    if config.regression.x == (1.0, 2.0) and config.regression.y == 1.0:
        yield from _minimum_norms(config, regression, classification)
    worst, descent = (_largest(regression, key) for key in ("distance", "descent_distance"))
    yield Claim(
        "limits of regression against Theorem 6",
        "predictions agree with the solution found by gradient descent",
        f"flow within {scientific(worst)}, the paper's descent within {scientific(descent)}",
        bool(worst <= config.regression.agreement and descent < 1e-2),
    )
    spreads = [_spread([r for r in regression if r["alpha"] == a]) for a in _ends(config)]
    yield Claim(
        "limits from different directions",
        "less dependent on them when alpha is small",
        f"they spread over {spreads[0]:.2g} at alpha = {_ends(config)[0]:g}, over {spreads[1]:.2g} "
        f"at alpha = {_ends(config)[1]:g}",
        bool(spreads[0] < spreads[1]),
    )
    log_loss, steps = _largest(classification, "descent_log10_loss"), _steps(config)
    yield Claim(
        "loss of gradient descent, classification",
        "1e-5 or a little more, after 2e6 steps",
        f"at most {10**log_loss:.1e} after {steps:,} steps",
        # Half a decade more than 1e-5 is allowed: the paper writes "lesssim".
        bool(log_loss <= -4.5) if steps == _PAPER_STEPS else None,
    )
    at_stop, at_end = (_largest(classification, k) for k in ("paper_loss_distance", "distance"))
    yield Claim(
        "classification directions",
        "quite dependent on the start at 1e-5; independent of it in theory",
        f"up to {at_stop:.2f} from the limit at loss {config.classification.paper_loss:g}; "
        f"{scientific(at_end)} at the flow's end",
        bool(at_stop > 0.05 and at_end <= config.classification.agreement),
    )


def _minimum_norms(config, regression, classification):
    small, large = _ends(config)
    for name, (printed, value) in _MINIMUM_NORM.items():
        away = [
            np.mean([np.linalg.norm(r["reached"] - value) for r in _of(regression, name, alpha)])
            for alpha in (small, large)
        ]
        yield Claim(
            f"regression as alpha tends to 0, {name}",
            printed,
            f"{away[0]:.2g} from it at alpha = {small:g}, {away[1]:.2g} at alpha = {large:g} "
            "(means)",
            bool(away[0] < away[1] / 5),
        )
    if config.classification.X == ((1.0, 2.0), (0.0, -3.0)):
        for name, (printed, value) in _MINIMUM_NORM.items():
            unit = np.array(value) / np.linalg.norm(value)
            away = max(
                float(np.linalg.norm(r["reached"] - unit)) for r in _of(classification, name)
            )
            yield Claim(
                f"classification's direction, {name}",
                f"that of {printed}",
                f"all flows within {scientific(away)}",
                bool(away <= config.classification.agreement),
            )


def _ends(config):
    return min(config.alphas), max(config.alphas)


def _steps(config):
    return config.classification.descent_num_steps


def _of(rows, architecture, alpha=None):
    return [r for r in rows if r["architecture"] == architecture and alpha in (None, r["alpha"])]


def _largest(rows, key):
    return float(max(row[key] for row in rows))


def _spread(rows):
    """The largest distance between two limits of one architecture."""
    limits = {name: np.array([r["reached"] for r in _of(rows, name)]) for name in _MINIMUM_NORM}
    return max(
        float(np.linalg.norm(a[:, None] - a[None], axis=-1).max())
        for a in limits.values()
        if len(a)
    )

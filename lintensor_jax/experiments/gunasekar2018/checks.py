"""The checks of the experiment on Gunasekar et al. 2018, from the rows of the tables."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..report import Check, worst_of
from .configuration import Configuration

# The rounding error of R / |Theta|^2. Both are sums of up to some hundred terms.
_ROUNDING = 1e-12
# The printed constants are wrong by a factor of at least 1.1.
LOG_FACTOR = float(np.log(1.1))

Rows = Sequence[dict[str, Any]]


def checks(
    config: Configuration, runs: Rows, descents: Rows, induced: Rows, growth: Rows
) -> tuple[Check, ...]:
    """The checks of limits, descent, regularisers and sparsity; their tolerances are `config`'s.

    `growth` has the change of the sparsity with depth; it may be empty.
    """
    return (
        *_of_limits(config, runs),
        *_of_descent(config, descents),
        *_of_regularizers(config, induced),
        *_of_sparsity(growth),
        *_of_lemma_7(induced),
    )


def _of_limits(config, runs) -> list[Check]:
    uncertified = [row for row in runs if not row["certified"]]
    return [
        Check(
            "limits that are not certified",
            len(uncertified),
            0,
            _label(uncertified[0]) if uncertified else "none",
        ),
        worst_of("Theorem 4: KKT residual", runs, "parameter_residual", config.residual, _label),
        worst_of(
            "KKT residual in predictor space", runs, "predictor_residual", config.residual, _label
        ),
        worst_of(
            "limit against the conic programs' separator",
            runs,
            "distance",
            config.agreement,
            _label,
        ),
        worst_of("zeros are zero", runs, "largest_zero", config.threshold * 1e-3, _label),
    ]


def _of_descent(config, descents) -> list[Check]:
    return [
        worst_of(
            "descent: distance to the flow at its loss",
            descents,
            "lag",
            config.descent_lag,
            _label,
        ),
        worst_of(
            "descent: mean distance to the limit at the end over that after a tenth",
            descents,
            "progress",
            1,
            _label,
        ),
    ]


def _of_regularizers(config, induced) -> list[Check]:
    return [
        worst_of(
            "Lemmas 5-7: R at the limit against its norm squared",
            induced,
            "excess",
            config.agreement,
            _label,
        ),
        worst_of(
            "minimal network: its norm squared against R",
            induced,
            "minimal_excess",
            config.agreement,
            _label,
        ),
        worst_of(
            "minimal network: its coefficients", induced, "minimal_error", config.agreement, _label
        ),
        worst_of(
            "random networks: R is at most the norm squared",
            induced,
            "random_excess",
            _ROUNDING,
            _label,
            lambda row: f"the largest ratio is 1 {_signed(row['random_excess'])}, 1 is allowed",
        ),
    ]


def _of_sparsity(growth) -> list[Check]:
    if not growth:  # one depth only, or only fully connected networks
        return []
    return [
        worst_of(
            "deeper is sparser: change of the count from depth 2", growth, "count_growth", 0, _label
        ),
        worst_of(
            "deeper is sparser: change of the participation from depth 2",
            growth,
            "ratio_growth",
            0,
            _label,
        ),
    ]


def _of_lemma_7(induced) -> list[Check]:
    rows = [row for row in induced if row["printed_kept"] is not None]
    if not rows:  # no convolutional network
        return []
    return [
        worst_of(
            "erratum: Lemma 7 as printed fails for either DFT, numpy's and the unitary one",
            rows,
            "printed_kept",
            0,
            _label,
            lambda row: (
                f"off by a factor of {np.exp(LOG_FACTOR - row['printed_kept']):.3g} or more, "
                f"{np.exp(LOG_FACTOR):.2g} is required"
            ),
        )
    ]


def _signed(value):
    return f"{'-' if value < 0 else '+'} {abs(value):.2g}"


def _label(row):
    start = f", start {row['start']}" if "start" in row else ""
    return f"{row['architecture']}, L = {row['depth']}{start}"

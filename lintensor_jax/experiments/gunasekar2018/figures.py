"""The figures of the experiment on Gunasekar et al. 2018, from a `Result`."""

import numpy as np
from matplotlib.figure import Figure

from ...figures.spectra import (
    Profile,
    Scatter,
    Trend,
    profile_figure,
    scatter_figure,
    trend_figure,
)
from .results import Result, moduli_of, participation_ratio

_DOMAINS = {
    "signal": r"$|\beta_j|$ / largest",
    "frequency": r"$|\hat\beta_k|$ / largest",
}
_PARTICIPATION = {
    "signal": "effective number of entries",
    "frequency": "effective number of frequencies",
}


def figures(result: Result) -> dict[str, Figure]:
    """The figures by name: Figure 1 with numbers, sparsity by depth, induced regularisers."""
    return {
        "directions": _directions(result),
        "sparsity": _sparsity(result),
        "induced_regularizer": _induced(result),
    }


def _directions(result):
    """Limits from the first start and the last step of descent; spectra are symmetric: one half."""
    config = result.config
    half = config.dimension // 2 + 1
    rows = []
    for name in config.architectures:
        for domain, ylabel in _DOMAINS.items():
            kept = slice(half if domain == "frequency" else None)
            rows.append(
                [
                    Profile(
                        limit=moduli_of(run.direction, domain)[kept],
                        reached=moduli_of(run.descent.direction, domain)[kept],
                        architecture=name,
                        title=f"$L = {depth}$",
                        xlabel="entry $j$" if domain == "signal" else "frequency $k$",
                        ylabel=ylabel,
                    )
                    for depth in config.depths
                    for run in result.runs[name, depth][:1]
                ]
            )
    return profile_figure(rows, "limit of the flow, certified", "gradient descent, last step")


def _sparsity(result):
    config = result.config
    panels = []
    for domain, ylabel in _PARTICIPATION.items():
        trends = []
        for name in config.architectures:
            runs = [result.runs[name, depth] for depth in config.depths]
            flow, descent = (
                np.array([[participation_ratio(moduli_of(d, domain)) for d in row] for row in rows])
                for rows in (
                    [[run.direction for run in row] for row in runs],
                    [[run.descent.direction for run in row] for row in runs],
                )
            )
            trends.append(Trend(np.array(config.depths), flow, descent, name))
        panels.append((ylabel, trends))
    return trend_figure(panels, "depth $L$", "limit of the flow, mean", "gradient descent, mean")


def _induced(result):
    panels = []
    for name in result.config.architectures:
        scatters = []
        for depth in result.config.depths:
            random, runs = result.random[name, depth], result.runs[name, depth]
            cost = np.array([run.squared_norm for run in runs])
            scatters.append(
                Scatter(
                    random.squared_norms,
                    random.regularizers / random.squared_norms,
                    cost,
                    np.array([run.regularizer for run in runs]) / cost,
                    f"$L = {depth}$",
                )
            )
        panels.append((name.capitalize(), scatters))
    return scatter_figure(
        panels,
        r"$\|\Theta\|^2$",
        r"$R(\beta(\Theta))\,/\,\|\Theta\|^2$",
        "limit of a flow, at margin 1",
        "random parameters",
    )

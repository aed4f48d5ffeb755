"""The figures of the experiment on regression, from a `Result`."""

import numpy as np
from matplotlib.figure import Figure

from ....figures.curves import Curve, CurvePanel, curve_figure
from .results import Result, distances, rotated_distances, small_scale_distances

_TO_L1 = r"to the weighted $\ell_1$ solution"
_TO_L2 = r"to the weighted $\ell_2$ solution"
_L2, _NUCLEAR = r"the $\ell_2$ solution", "the least nuclear norm"
_THEOREM_5 = "Theorem 5's limit"
_TITLES = {
    "diagonal": "Diagonal",
    "convolutional": "Convolutional, even data",
    "commuting sensors": "Commuting sensors",
}
_SCALE = r"initial scale $\alpha$"
# Smaller distances are not drawn: they are nearly rounding errors.
_LEAST_SHOWN = 5e-7


def figures(result: Result) -> dict[str, Figure]:
    """The figures by name: Theorem 5 from l1 to l2 with simulated limits; alpha -> 0."""
    small = [_fully_connected_panel, _noncommuting_panel, _rotated_panel]
    return {
        "l1_to_l2": curve_figure([_interpolation_panel(result, name) for name in _TITLES]),
        # The same quantities as in "l1_to_l2" come first, so that they have the same colours.
        "alpha_to_zero": curve_figure(
            [panel(result) for panel in small], quantities=(_TO_L1, _L2, _NUCLEAR, _THEOREM_5)
        ),
    }


def _interpolation_panel(result, architecture):
    curves = []
    for depth in result.config.depths:
        runs = result.interpolation[architecture, depth]
        series = f"{_series(depth)}, Theorem 5"
        for quantity, values in zip((_TO_L1, _TO_L2), distances(runs), strict=True):
            curves.append(Curve(runs.alphas, values, quantity, series))
        unit = np.linalg.norm(runs.l1 - runs.l2)
        for name, flows in (("gradient flow", runs.flows), ("mirror flow", runs.mirror_flows)):
            flows = [flow for flow in flows if flow is not None]
            alphas = np.array([flow.alpha for flow in flows])
            for quantity, end in ((_TO_L1, runs.l1), (_TO_L2, runs.l2)):
                values = [np.linalg.norm(flow.reached - end) / unit for flow in flows]
                curves.append(Curve(alphas, np.array(values), quantity, series, name))
    return CurvePanel(
        _TITLES[architecture],
        curves,
        xlabel=_SCALE,
        ylabel="relative distance of the limit",
        y_window=(_LEAST_SHOWN, 3.0),
    )


def _fully_connected_panel(result):
    curves = [
        curve
        for depth, runs in result.fully_connected.items()
        for curve in _simulated(depth, *small_scale_distances(runs), _L2)
    ]
    x = float(np.sqrt(np.min(curves[0].x) * np.max(curves[0].x)))
    y = 0.4 * float(min(np.interp(x, curve.x, curve.y) for curve in curves))
    return CurvePanel(
        "Theorem 7:\nfully-connected",
        curves,
        xlabel=_SCALE,
        ylabel="relative distance of the limit to ...",
        guides=[(1.0, x, y, r"$\propto\alpha$")],
    )


def _noncommuting_panel(result):
    curves = [
        curve
        for depth, runs in result.noncommuting.items()
        for curve in _simulated(depth, *small_scale_distances(runs), _NUCLEAR)
    ]
    values = np.concatenate([curve.y for curve in curves])
    return CurvePanel(
        "Outside the theorems:\nnon-commuting sensors",
        curves,
        xlabel=_SCALE,
        ylabel="",
        y_window=(float(values.min()) / 1.3, float(values.max()) * 1.3),
    )


def _rotated_panel(result):
    return CurvePanel(
        "In rounded arithmetic:\nCorollary 7, rotated",
        [
            curve
            for depth, runs in result.rotated.items()
            for curve in _simulated(depth, *rotated_distances(runs), _THEOREM_5)
        ],
        xlabel=_SCALE,
        ylabel="",
    )


def _simulated(depth, alphas, values, quantity):
    order = np.argsort(alphas)
    curve = (alphas[order], values[order], quantity, _series(depth))
    return [Curve(*curve), Curve(*curve, "gradient flow")]


def _series(depth):
    return f"$L = {depth}$"

"""The figures of the experiment on classification, from a `Result`."""

import numpy as np
from matplotlib.figure import Figure

from ....figures.curves import Curve, CurvePanel, curve_figure
from .results import PAPER_LOG_LOSS, Result, at_log_loss

_LEAST_ERROR = 1e-8
_FIRST_LOG_INVERSE_LOSS = 0.1
# Later times are not drawn: the bounds are straight lines there.
_LAST_LOG_TIME = np.log(1e8)
_FIRST_LOG_TIME = np.log(1e-6)
_DISTANCE = "between flow and prediction"
_PATH, _PROGRAM = "predicted: path", "predicted: program"
_TO_L1, _TO_L2 = r"to the $\ell_1$ maximum margin", r"to the $\ell_2$ maximum margin"


def figures(result: Result) -> dict[str, Figure]:
    """The figures by name: errors of the direction, bounds on the loss, finite losses."""
    shown = list(dict.fromkeys(name for name, _ in result.paths))
    return {
        "direction_error": curve_figure([_error_panel(result, name) for name in shown[:3]]),
        "loss_bound": curve_figure(_bound_panels(result, shown)),
        "finite_loss": curve_figure(_finite_loss_panels(result)),
    }


def _error_panel(result, architecture):
    curves = []
    for (name, depth), paths in result.paths.items():
        if name != architecture:
            continue
        for alpha in result.config.theorems.alphas:
            path = paths[f"alpha = {alpha:g}"]
            looks = (rf"$\alpha = {alpha:g}$", f"$L = {depth}$")
            kept = path.log_loss < -_FIRST_LOG_INVERSE_LOSS
            curves.append(Curve(-path.log_loss[kept], path.error[kept], *looks))
            at_stop = np.array([at_log_loss(path, path.error, PAPER_LOG_LOSS)])
            stop = r"loss $10^{-5}$, where gradient descent stops"
            curves.append(Curve(np.array([-PAPER_LOG_LOSS]), at_stop, *looks, stop))
    return CurvePanel(
        architecture.capitalize(),
        curves,
        xlabel=r"$\log(1/\mathrm{loss})$",
        ylabel="distance of the direction from its limit",
        y_window=(_LEAST_ERROR, 3.0),
    )


def _bound_panels(result, architectures):
    depth = min(depth for _, depth in result.paths)
    panels = []
    for name in architectures[:3]:
        curves = []
        for start, path in result.paths[name, depth].items():
            drawn = np.isfinite(path.log_time) & (path.log_time < _LAST_LOG_TIME)
            drawn &= path.log_time > _FIRST_LOG_TIME
            if np.isnan(path.log_bound).all() or start not in _bounded_starts(result):
                continue
            for quantity, values in (
                ("measured loss", path.log_loss),
                ("corrected bound", path.log_bound),
                ("printed bound", path.log_printed_bound),
            ):
                x, y = np.exp(path.log_time[drawn]), np.exp(values[drawn])
                curves.append(Curve(x, y, quantity, _bounded_starts(result)[start]))
        if curves:
            title = f"{name.capitalize()}, $L = {depth}$"
            panels.append(CurvePanel(title, curves, xlabel="time $t$", ylabel="loss"))
    return panels


def _bounded_starts(result):
    """The two starts that are drawn, the largest scale and "ahead", with their legend entries."""
    alpha = max(result.config.theorems.alphas)
    return {f"alpha = {alpha:g}": "$L(0) > 1$", "ahead": "$L(0) < 1$"}


def _finite_loss_panels(result):
    panels = []
    # The window shows all markers; lines are cut below them.
    lowest = 0.5 * min(
        float(np.min(np.linalg.norm(runs.reached[:, 1:] - end, axis=-1)))
        / float(np.linalg.norm(runs.l1 - runs.l2))
        for runs in result.finite_loss.values()
        for end in (runs.l1, runs.l2)
    )
    for depth, runs in result.finite_loss.items():
        unit = np.linalg.norm(runs.l1 - runs.l2)
        curves = []
        for end, quantity in ((runs.l1, _TO_L1), (runs.l2, _TO_L2)):
            for directions, series in ((runs.path, _PATH), (runs.program, _PROGRAM)):
                values = np.linalg.norm(directions - end, axis=1) / unit
                curves.append(Curve(runs.mus, values, quantity, series))
            # The first loss is left out: it is not small. The others show how the flows converge.
            for level, nominal in list(enumerate(result.config.finite_loss.log_inverse_losses))[1:]:
                values = np.linalg.norm(runs.reached[:, level] - end, axis=-1) / unit
                name = rf"flow at loss $e^{{-{_power(nominal)}}}$"
                curves.append(Curve(runs.flow_mus[:, level], values, quantity, _PATH, name))
        panels.append(
            CurvePanel(
                f"$D = {depth}$",
                curves,
                xlabel=r"$\mu = \alpha^D/\log(1/\varepsilon)$",
                ylabel="distance of the direction",
                y_window=(lowest, 3.0),
            )
        )
    return [*panels, _prediction_panel(result)]


def _prediction_panel(result):
    """Distances of the flows to both predictions at the middle mu, as the loss falls."""
    task = result.config.finite_loss
    middle = len(task.mus) // 2
    curves = []
    for runs in result.finite_loss.values():
        levels = -runs.log_losses[middle]
        for errors, series in ((runs.path_errors, _PATH), (runs.program_errors, _PROGRAM)):
            curves.append(Curve(levels, errors[middle], _DISTANCE, series))
    x, y = curves[0].x[0], curves[0].y[0] / 10
    return CurvePanel(
        rf"$\mu \approx {task.mus[middle]:g}$; grey: $\propto 1/\log(1/\varepsilon)$",
        curves,
        xlabel=r"$\log(1/\varepsilon)$",
        ylabel="",
        guides=[(-1.0, float(x), float(y), "")],
    )


def _power(value):
    exponent = np.log10(value)
    return f"10^{{{exponent:.0f}}}" if exponent.is_integer() else f"{value:g}"

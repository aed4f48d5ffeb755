"""The figures of the experiment on Min et al. 2021, from a `Result`."""

import numpy as np
from matplotlib.figure import Figure

from ...figures.panels import Line, LinePanel, panel_figure
from .results import Result, meaningful, power_law

_EIGENVALUES, _POSITIVE, _NEGATIVE, _LEVEL = 8, 1, 2, 0
_MEASURED, _FIT, _START, _THEOREM = 1, 2, 0, 7
_TIME = "time $t$"
_RATE = r"$-\dot L\,/\,(L - L^*)$"


def figures(result: Result) -> dict[str, Figure]:
    """Spectra by outputs and width; losses and rates with their bounds; distance by width."""
    outputs = dict.fromkeys(found.outputs for found in result.spectra)
    return {
        "figure2_4": panel_figure(
            [
                [_spectrum_panel(found) for found in result.spectra if found.outputs == m]
                for m in outputs
            ],
            2.1,
        ),
        "figure5": _bounded_figure(result.rates, linear=False),
        "figure3_6": _bounded_figure(result.imbalance, linear=True),
        "figure7": _width_figure(result),
    }


def _spectrum_panel(found):
    values = found.eigenvalues
    index = np.arange(1, len(values) + 1)
    stems = [
        Line(
            np.array([k, k]),
            np.array([0, value]),
            "" if k > 1 else r"eigenvalues of $D\,/\,mh$",
            _EIGENVALUES,
            width=0.8,
            end_marker=True,
        )
        for k, value in zip(index, values, strict=True)
    ]
    # Bars on the right of the eigenvalues: the three gaps D_+, D_u and D_-, end to end.
    right = len(values) + 2.0
    top, bottom = max(values[0], 0.0), min(values[-1], 0.0)
    low, high = bottom + found.negative_spread, top - found.positive_spread
    gaps = (
        (high, top, r"$\Delta_+$", _POSITIVE),
        (low, high, r"$\underline{\Delta}$", _LEVEL),
        (bottom, low, r"$\Delta_-$", _NEGATIVE),
    )
    bars = [
        Line(np.array([right, right]), np.array([a, b]), name, colour, width=5.0)
        for a, b, name, colour in gaps
    ]
    return LinePanel(
        rf"$r = {found.rank},\ m = {found.outputs},\ h = {found.width}$",
        [*stems, *bars],
        "index",
        r"eigenvalue $/\,mh$",
        xscale="linear",
    )


def _bounded_figure(runs, linear):
    losses, logarithms, rates = [], [], []
    for colour, run in enumerate(runs):
        kept = meaningful(run)
        times, label = run.times[kept], _in_tex(run.label)
        excess = run.excess_loss[kept] / run.excess_loss[0]
        losses.append(Line(times, excess, label, colour))
        logarithms.append(losses[-1])
        bound = run.loss_bound[kept] / run.excess_loss[0]
        logarithms.append(Line(times, bound, "", colour, dashed=True, width=1.0))
        rates.append(Line(times, run.rate[kept], label, colour))
        rates.append(Line(times, run.proposition_1[kept], "", colour, dashed=True, width=1.0))
    # The legend has one grey entry for the dashed lines of all colours.
    nowhere = np.zeros(0)
    name = "dashed: the bounds"
    logarithms.append(Line(nowhere, nowhere, name, _EIGENVALUES, dashed=True, width=1.0))
    loss = r"$(L - L^*)\,/\,(L(0) - L^*)$"
    panels = [
        LinePanel("Loss, and Theorem 3", logarithms, _TIME, loss, xscale="linear", yscale="log"),
        LinePanel("Rate, and Proposition 1", rates, _TIME, _RATE, xscale="linear", yscale="log"),
    ]
    if linear:
        short = [_until(line, 0.02) for line in losses]
        panels.insert(0, LinePanel("Loss, linear", short, _TIME, loss, xscale="linear"))
    return panel_figure([panels], 2.5, columns=3 if linear else 5)


def _in_tex(label):
    if "=" not in label:
        return label
    return "$" + label.replace("σ", r"\sigma").replace(", ", r",\ ") + "$"


def _until(line, level):
    """The line down to `level`; smaller values cannot be seen on a linear scale."""
    last = int(np.argmax(line.y < level)) or len(line.y)
    return Line(line.x[: last + 1], line.y[: last + 1], line.label, line.colour)


def _width_figure(result):
    widths = np.array(list(dict.fromkeys(run.width for run in result.widths)), float)
    samples = [[r for r in result.widths if r.width == width] for width in widths]
    distances = np.array([[run.distance for run in runs] for runs in samples])
    mean, spread = distances.mean(axis=1), distances.std(axis=1, ddof=1)
    fit = power_law(result)
    fine = np.geomspace(widths.min(), widths.max(), 60)
    bounds = np.array([np.mean([run.deviation_bound for run in runs]) for runs in samples])
    theorem = np.array([runs[0].theorem_12 for runs in samples])
    applies = all(run.theorem_12_applies for run in result.widths)
    runs = len(samples[0])
    measured = f"distance, mean and s.d. of {runs} runs"

    def bars(centre, half):
        lines = [Line(widths, centre, measured, _MEASURED, width=0.9)]
        for width, y, error in zip(widths, centre, half, strict=True):
            ends = np.array([y - error, y + error])
            lines.append(Line(np.full(2, width), ends, "", _MEASURED, width=2.6))
        return lines

    correction = r"\,e^{b/h}" if fit.correction else ""
    label = rf"fit: $a\,h^{{{fit.slope:.3f} \pm {fit.error_bar:.3f}}}{correction}$"
    line = Line(fine, fit(fine), label, _FIT, dashed=True)
    scope = "" if applies else r" (asks for wider networks)"
    distance = LinePanel(
        "Distance from the min-norm solution",
        [
            *bars(mean, spread),
            line,
            Line(widths, bounds, "bound from the start (proof of Thm 12)", _START, dashed=True),
            Line(widths, theorem, f"Theorem 12{scope}", _THEOREM, dashed=True, width=1.0),
        ],
        "width $h$",
        r"$|UV^\top - \hat\Theta|_F$",
        yscale="log",
    )
    root = np.sqrt(widths)
    scaled = LinePanel(
        r"Distance times $\sqrt{h}$",
        [
            *bars(mean * root, spread * root),
            Line(fine, line.y * np.sqrt(fine), line.label, _FIT, dashed=True),
        ],
        "width $h$",
        r"$\sqrt{h}\,|UV^\top - \hat\Theta|_F$",
    )
    return panel_figure([[distance, scaled]], 2.6, columns=2)

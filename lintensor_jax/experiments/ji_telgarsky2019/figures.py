"""Figures 1 to 3 of Ji & Telgarsky 2019, from a `Result`."""

import numpy as np
from matplotlib.figure import Figure

from ...figures.panels import Line, LinePanel, PointPanel, panel_figure
from .results import Result

_RISK = r"$\log(1/\mathrm{risk})$"
# Indices into the panels' colours, one for each layer. The first four are used for nothing else.
_LAYERS = (0, 4, 5, 3, 1, 2)
_ONE, _DEEP, _MARGIN, _RISK_COLOUR = 2, "fully-connected", 7, 8


def figures(result: Result) -> dict[str, Figure]:
    """The figures by name; "figure3" only if there are images."""
    drawn = {"figure1": _figure1(result), "figure2": _figure2(result)}
    if result.images:
        images = [_image_panel(run) for run in result.images]
        drawn["figure3"] = panel_figure([images], 2.5, columns=5)
    return drawn


def _first_flows(result, data):
    """The flows from the first start: (of one layer, of the deep network)."""
    one, deep = (
        next(run for run in result.flows if run.data == data and (run.depth == 1) == is_one)
        for is_one in (True, False)
    )
    return one, deep


def _boundaries(result, data):
    one, deep = _first_flows(result, data)
    maximum = result.datasets[data].max_margin
    blank = np.zeros(0)
    # The three lines coincide, so the wider ones lie below. None is dashed: the next panel uses
    # dashes for gradient descent.
    return [
        Line(maximum, blank, "maximum margin", _MARGIN, width=5.0),
        Line(one.direction[-1], blank, "flow, 1 layer", _ONE, width=3.2),
        Line(deep.direction[-1], blank, f"flow, {deep.depth} layers", _DEEP, width=1.4),
    ]


def _figure1(result):
    one, deep = _first_flows(result, "sector")
    samples = result.datasets["sector"]
    data = PointPanel(
        "Separable data",
        samples.X,
        samples.y,
        _boundaries(result, "sector"),
        xlabel="$x_1$",
        ylabel="$x_2$",
    )
    past, ratios = -deep.log_risk, deep.bounds.alignment.rank_one_ratios
    # Lemma 2.6's first bound, divided by |W_k|_F^2. The last layer always has rank one.
    squares = deep.bounds.alignment.frobenius_norms[:, :-1] ** 2
    proven = np.sqrt(np.maximum(0.0, 1 - deep.bounds.remainder_limit[:, None] / squares))
    lines = [*_layers(past, ratios), *_limits(past, proven, "bound of Lemma 2.6")]
    alignment = LinePanel("Self-regularisation", lines, _RISK, r"$|W_k|_2\,/\,|W_k|_F$")
    return panel_figure([[data, _distance_panel(result, one, deep), alignment]], 2.2)


def _distance_panel(result, one, deep):
    maximum = result.datasets["sector"].max_margin

    def line(run, label, colour, ends=False):
        away = np.linalg.norm(run.direction - maximum[None], axis=1)
        return Line(-run.log_risk, away, label, colour, ends, end_marker=ends)

    names = {1: ("flow, 1 layer", _ONE), deep.depth: (f"flow, {deep.depth} layers", _DEEP)}
    lines = [line(run, *names[run.depth]) for run in (one, deep)]
    lines += [
        line(run, names[run.depth][0].replace("flow", "descent"), names[run.depth][1], True)
        for run in result.descents
        if run.data == "sector" and run.steps == "constant"
    ]
    return LinePanel(
        "Margin maximisation", lines, _RISK, "distance of the directions", yscale="log"
    )


def _figure2(result):
    _, deep = _first_flows(result, "circles")
    samples = result.datasets["circles"]
    rows = []
    for weights, when in (
        (deep.initial_weights, "start"),
        (deep.weights, rf"risk $e^{{-10^{{{np.log10(-deep.log_risk[-1]):.1f}}}}}$"),
    ):
        *hidden, last = weights
        images = [samples.X]
        for weight in hidden:
            images.append(images[-1] @ weight)
        boundaries = _boundaries(result, "circles") if when != "start" else ()
        after = [*hidden, last[:, None]]
        rows.append(
            [
                _layer_panel(layer, image, following, samples.y, when, boundaries)
                for layer, (image, following) in enumerate(zip(images, after, strict=True))
            ]
        )
    return panel_figure(rows, 2.25, columns=3)


def _layer_panel(layer, image, following, labels, when, boundaries):
    """The data after `layer` layers, in their principal axes, with v_k of the next layer."""
    top = np.linalg.svd(following)[0][:, 0]
    where = "data" if layer == 0 else f"after $W_{layer}$"
    if layer == 0:
        axes, names = np.eye(2), ("$x_1$", "$x_2$")
    else:
        axes, names = np.linalg.svd(image, full_matrices=False)[2][:2].T, ("axis 1", "axis 2")
        boundaries = ()
    mapped = image @ axes
    arrow = top @ axes
    # The sign of a singular vector is arbitrary.
    arrow = arrow * (np.sign(arrow[0]) or 1.0)
    scale = np.max(np.abs(mapped)) if layer else 1.0
    return PointPanel(
        rf"{where}, $v_{layer + 1}$ ({when})",
        mapped / scale,
        labels,
        boundaries,
        arrow,
        *names,
        arrow_label="$v_k$: first singular vector of $W_k$",
    )


def _image_panel(run):
    epochs = np.arange(len(run.risk))
    smallest = np.array([[1 / np.sqrt(min(shape)) for shape in run.shapes]])
    lines = [
        *_layers(epochs, run.ratios),
        *_limits(epochs, np.repeat(smallest, len(epochs), axis=0), "smallest possible"),
    ]
    return LinePanel(
        f"{run.images}, {run.start}",
        lines,
        "epoch",
        r"$|W_k|_2\,/\,|W_k|_F$",
        xscale="linear",
        right=[Line(epochs, run.risk, "risk", _RISK_COLOUR, width=1.0)],
        right_label="risk",
    )


def _layers(x, ratios):
    return [Line(x, y, f"layer {k + 1}", _LAYERS[k % len(_LAYERS)]) for k, y in enumerate(ratios.T)]


def _limits(x, values, label):
    nowhere = np.zeros(0)
    # One grey entry in the legend stands for the dashed lines of all colours.
    key = Line(nowhere, nowhere, f"dashed: {label}", _RISK_COLOUR, dashed=True, width=0.8)
    return [
        *(
            Line(x, y, "", _LAYERS[k % len(_LAYERS)], dashed=True, width=0.8)
            for k, y in enumerate(values.T)
        ),
        key,
    ]

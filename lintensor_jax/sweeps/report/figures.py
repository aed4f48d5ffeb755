"""The figures of a sweep, drawn from its store."""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..store.dataset import open_dataset
from ..store.errors import SweepError
from ..store.store import Store

_MOST_LINES, _MOST_LABELS, _MOST_COEFFICIENTS = 400, 6, 4
# Names of a sweep's figures in their order, with their captions in the report.
CAPTIONS = {
    "limit": "the first coefficients of the limits",
    "direction": "the first coefficients of the limit directions",
    "observables": "every other number that was recorded of each flow",
    "steps": "the solver's attempted steps",
}
_COEFFICIENTS = {
    "limit": ("limit", r"limit $\beta_{%s}$"),
    "direction": ("direction_reached", r"direction $\beta_{%s}\,/\,|\beta|$"),
}
# Units that are left out of axis labels: the quantity's name implies them, or it has none.
_UNITS_LEFT_OUT = ("", "1", "steps", "x", "y/x")
_LABELS = {
    "num_steps": "solver steps",
    "log_loss": "natural log of the loss",
    "log_time": "natural log of the time",
    "log_norm": "natural log of\nthe parameters' norm",
    "log_margin": "natural log of\nthe smallest margin",
}


_TEXT_KINDS = "OTU"  # kinds of arrays of words
# Names of axes that are written as Greek letters.
_GREEK = {"alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "eta": "η", "theta": "θ"}
_GREEK |= {"lambda": "λ", "mu": "μ", "nu": "ν", "rho": "ρ", "sigma": "σ", "tau": "τ"}


def axis_label(name: str) -> str:
    """The name of an axis as people write it: α for alpha, spaces for underscores."""
    return with_greek(name.replace("_", " "))


def with_greek(text: str) -> str:
    """The text with Greek letters in place of their names."""
    return re.sub(r"[a-z]+", lambda word: _GREEK.get(word[0], word[0]), text)


def figures(path: str | Path, columns: int = 2) -> dict[str, Any]:
    """Matplotlib figures by name, from a store: numbers of every lane, over one axis.

    `columns`: the most panels side by side.

    "limit", "direction": the first coefficients, if they were recorded. "observables": every other
    number. "steps": the solver's steps. Each figure shows medians and bands over the longest axis
    of numbers, and medians of the predicted limits if these were recorded. If most values of a
    quantity are not finite, the quantity is left out, and a note names it. Raises `SweepError` if
    no chunk is finished.
    """
    from ...figures.sweeps import band_figure

    drawing = _Drawing.of(path)
    panels = {name: list(_coefficients(drawing, name)) for name in _COEFFICIENTS}
    panels["observables"] = [drawing.panel(name) for name in _numbers(drawing.results)]
    panels["steps"] = [drawing.panel("num_steps")]
    kept = {name: [p for p in drawn if p is not None] for name, drawn in panels.items()}
    notes = {"observables": drawing.omitted}
    return {
        name: band_figure(drawn, columns, note=notes.get(name, ""))
        for name, drawn in kept.items()
        if drawn
    }


def write_figures(path: str | Path, folder: str | Path | None = None) -> list[Path]:
    """Write `figures` as PNG and PDF to a folder (default: `figures` in the store); their paths."""
    from ...figures.style import save

    path = Path(path)
    store, drawn = Store(path), figures(path)
    folder = store.folder_for_reports("figures") if folder is None else Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = [p for name, figure in drawn.items() for p in save(figure, folder / name)]
    store.write_checksums("figures", written)
    return written


def caption(path: str | Path, name: str) -> str:
    """The caption of a figure: a few sentences."""
    drawing = _Drawing.of(path)
    sentence = f"{CAPTIONS[name]} over {axis_label(drawing.along)}"
    if name in _COEFFICIENTS:
        size = math.prod(_extents(drawing.results, _COEFFICIENTS[name][0]))
        some = f"the first {_MOST_COEFFICIENTS} of {size}" if size > _MOST_COEFFICIENTS else "the"
        sentence = sentence.replace("the first", some)
    text = (
        f"{sentence[0].upper()}{sentence[1:]}. Lines are medians over the grid's other axes, bands "
        "hold 80% of the flows."
    )
    if name in _COEFFICIENTS and drawing.predicts(_COEFFICIENTS[name][0]):
        text += " Open circles are the medians of the limits that theory predicts."
    if name == "observables" and drawing.omitted:
        text += f" {drawing.omitted}."
    return text


class _Drawing(NamedTuple):
    """The data of a sweep's figures.

    `results`: the data set. `along`: the axis to draw over. `colour`: the axis whose values have
    different colours. `done`: which lanes are finished. `label`: the architecture, if there is only
    one.
    """

    results: Any
    along: str
    colour: str | None
    done: Any
    label: str

    @staticmethod
    def of(path: str | Path) -> "_Drawing":
        results = open_dataset(path)
        done = results.status != 0
        if not bool(done.any()):
            raise SweepError(f"{path}: no chunk is finished yet; there is nothing to draw.")
        config = json.loads(results.attrs["config"])
        network = config.get("network") if isinstance(config, dict) else None
        only = network.get("architecture") if isinstance(network, dict) else None
        return _Drawing(results, *_axes(results), done, only if isinstance(only, str) else "")

    def panel(self, name: str, place: tuple[int, ...] = (), label: str = "") -> Any:
        """The panel of one number of every lane; None if most of its values are not finite.

        `place`: indices on the axes besides the grid's. `label`: the label of a coefficient, which
        may be negative; "" for other numbers.
        """
        from ...figures.sweeps import BandPanel

        predicted = "predicted" if label and self.predicts(name) else None
        bands, missing, total = [], 0, 0
        for band, done in self._bands(name, place, predicted):
            absent = int((done & ~np.isfinite(band.values)).sum())
            missing, total = missing + absent, total + int(done.sum())
            if 2 * absent <= done.sum():
                bands.append(band)
        if not any(np.isfinite(band.values).any() for band in bands):
            return None
        title = f"{missing:,} of {total:,} values, not finite, are left out" if missing else ""
        words = axis_label(self.along), label or self._label(name)
        return BandPanel(title, *words, bands, signed=bool(label))

    @property
    def omitted(self) -> str:
        """A note that names the numbers without a panel, because most values are not finite."""
        names = [n for n in _numbers(self.results) if self.panel(n) is None]
        words = [
            _LABELS.get(n, n.replace("_", " ")).replace("\n", " ")
            + (
                " (log of 0)"
                if n == "log_loss" and bool((self.results[n] == -np.inf).any())
                else ""
            )
            for n in names
        ]
        return f"Not shown, as most values are not finite: {', '.join(words)}" if words else ""

    def predicts(self, name: str) -> bool:
        """Whether predictions of this variable were recorded.

        Predictions are limits for regression and directions for classification. They belong to the
        variable whose distance from them is the recorded `distance_to_prediction`.
        """
        results = self.results
        if not {"predicted", "distance_to_prediction"} <= set(results):
            return False
        away = np.asarray(results.distance_to_prediction.where(self.done)).ravel()
        gap = np.asarray(results[name] - results.predicted).reshape(away.size, -1)
        gap = np.sqrt(np.nansum(gap**2, axis=1))
        known = np.isfinite(away)
        # Both are computed from the same float64 numbers of order one.
        return bool(known.any() and np.allclose(gap[known], away[known], rtol=1e-6, atol=1e-12))

    def _bands(self, name: str, place, predicted: str | None) -> Iterator[tuple[Any, np.ndarray]]:
        """Pairs of a band and a mask: which of its values belong to finished lanes."""
        from ...figures.sweeps import Band

        step = -(-self.results.sizes[self.along] // _MOST_LINES)
        x = self.results[self.along].values[::step]
        if x.dtype.kind in _TEXT_KINDS:
            x = np.arange(len(x))

        def parts(array):
            beyond = [d for d in array.dims if d not in self.results.status.dims]
            array = array.isel(dict(zip(beyond, place, strict=True)) if beyond else {})
            for words, part in self._parts(array.isel({self.along: slice(None, None, step)})):
                values = np.moveaxis(np.asarray(part), part.dims.index(self.along), 0)
                yield words, values.reshape(len(x), -1)

        done = [part for _, part in parts(self.done)]
        theory = (
            [p for _, p in parts(self.results[predicted].where(self.done))] if predicted else ()
        )
        for i, (words, values) in enumerate(parts(self.results[name].where(self.done))):
            yield Band(words, x, values, theory[i] if theory else None), done[i]

    def _parts(self, array: Any) -> Iterator[tuple[str, Any]]:
        if self.colour is None:
            yield self.label, array
            return
        values = self.results[self.colour].values
        prefix = "" if values.dtype.kind in _TEXT_KINDS else f"{axis_label(self.colour)} = "
        for index, value in enumerate(values):
            yield f"{prefix}{value}", array.isel({self.colour: index})

    def _label(self, name: str) -> str:
        if name in _LABELS:
            return _LABELS[name]
        units = self.results[name].attrs.get("units", "")
        return name.replace("_", " ") + ("" if units in _UNITS_LEFT_OUT else f"\n({units})")


def _axes(results: Any) -> tuple[str, str | None]:
    """The axis to draw over, and the axis whose values have different colours."""
    dims = results.status.dims
    numeric = [d for d in dims if results[d].dtype.kind in "iuf"]
    measured = [d for d in numeric if results[d].dtype.kind == "f"]
    along = max(measured or numeric or dims, key=lambda d: results.sizes[d])
    others = [d for d in dims if d != along and results.sizes[d] <= _MOST_LABELS]
    words = [d for d in others if results[d].dtype.kind in _TEXT_KINDS]
    chosen = [*words, *others]
    return along, chosen[0] if chosen else None


def _numbers(results: Any) -> list[str]:
    return [
        name
        for name, array in results.data_vars.items()
        if array.dims == results.status.dims and array.dtype.kind == "f"
    ]


def _coefficients(drawing: _Drawing, name: str) -> Iterator[Any]:
    variable, words = _COEFFICIENTS[name]
    if variable not in drawing.results:
        return
    places = np.ndindex(*_extents(drawing.results, variable))
    for place, _ in zip(places, range(_MOST_COEFFICIENTS), strict=False):
        label = words % ",".join(str(k + 1) for k in place)
        yield drawing.panel(variable, place, label)


def _extents(results: Any, variable: str) -> tuple[int, ...]:
    """The lengths of a variable's axes besides the grid's."""
    return results[variable].shape[results.status.ndim :]

"""The report of a sweep: one self-contained HTML page."""

import html
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...figures.page import page, picture
from ...figures.page import table as _table
from ...theory.predict import predict
from ..execution.reopen import grid_of
from ..grid import Cell, Grid
from ..observables.base import unit
from ..plan import FAILURES, STATUSES
from ..store import atomic_files
from ..store.dataset import open_dataset
from ..store.errors import SweepError, UnknownName
from ..store.status import Status, in_bytes, status
from ..store.store import Store
from .figures import axis_label, caption, figures, with_greek
from .settings_in_words import settings

_AGREEMENT_LANES = 24  # lanes of each shape for which `predict` is called
_SHOWN_FAILURES = 50
_OF_DESCENTS = (
    "The lanes are descents, and the theorems here are about gradient flows. The exact limits of "
    "two layers are the variable effective_limit, where EffectiveLimit() was recorded."
)


def write_report(
    path: str | Path, target: str | Path | None = None, grid: Grid | None = None
) -> Path:
    """Write one HTML page that needs no other file; returns its path.

    The page shows figures, the distances of limits from predictions, the theorem that applies to
    each shape, and the failed lanes. Then it shows the settings, the sizes and the versions.

    **Arguments**

    - `path`: the store.
    - `target`: the file; default `report/report.html` in the store.
    - `grid`: the grid of the sweep; needed for theorems if it has user-defined functions or
      classes.
    """
    path = Path(path)
    store, state = Store(path), status(path)
    results = open_dataset(path)
    theorems, table, remark = _agreement(store, results, grid)
    parts = [
        _summary(state),
        "<h2>Figures</h2>",
        *_pictures(path),
        "<h2>Agreement with predictions</h2>",
        _table(*table) if table else "<p>No prediction to compare with.</p>",
        "<p>Distances are those of the flows' ends from the predicted limits: a flow that is "
        "stopped before its limit, as classification flows are, has a distance left.</p>",
        "<h2>Theorems</h2>",
        f"<p>{html.escape(remark)}</p>" if remark else "",
        *theorems,
        "<h2>Failed lanes</h2>",
        _failures(state, results),
        "<h2>Configuration</h2>",
        _configuration(store),
        "<h2>Size and device</h2>",
        _overview(state, results),
        "<h2>Versions and runs</h2>",
        f"<p>{html.escape(_versions(state))}</p>",
        _table(
            ("began", "host", "devices", "chunks to do"),
            [
                tuple(_as_text(r.get(k)) for k in ("began", "host", "devices", "chunks_to_do"))
                for r in state.runs
            ],
        ),
    ]
    target = store.folder_for_reports("report") / "report.html" if target is None else Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    text = page(with_greek(results.attrs["title"]), "\n".join(parts))
    atomic_files.write(target, text.encode(), target.parent)
    store.write_checksums("report", [target])
    return target


def _summary(state: Status) -> str:
    """When and by which command the results were made, and how the flows ended."""
    began = str(state.runs[0].get("began", ""))[:10] if state.runs else ""
    made = f"Computed {html.escape(began)}. " if began else ""
    ended = ", ".join(f"{name.replace('_', ' ')} {n:,}" for name, n in state.statuses.items())
    failed = sum(state.failed.values())
    return (
        f"<p>{made}Made by <code>lintensor-jax report {html.escape(str(state.path))}</code>.</p>"
        f"<p>{state.finished_lanes:,} of {state.lanes:,} flows are done. They ended by: "
        f"{html.escape(ended) or '-'}. "
        f"{'None' if failed == 0 else f'{failed:,}'} of them failed.</p>"
    )


def _overview(state: Status, results) -> str:
    rows = [
        ("folder", str(state.path)),
        ("lanes (single flows)", f"{state.finished_lanes:,} of {state.lanes:,}"),
        ("dimensions", ", ".join(f"{d} {n}" for d, n in results.sizes.items())),
        ("lanes over the budget of explicit steps", f"{state.stiff_lanes:,}"),
        ("executed / needed steps", "-" if state.waste is None else f"{state.waste:.2f}"),
        ("lanes in flight", str(state.description["plan"]["width"])),
        ("precision", state.description["dtype"]),
        ("device", results.attrs["device"]),
        ("damaged chunks (lanes saved together)", str(len(state.damaged))),
        ("on disk", in_bytes(state.bytes)),
    ]
    return _table((), rows)


def _agreement(store: Store, results, grid: Grid | None):
    """(theorems by shape, a table of distances or None, a remark if something is missing)."""
    try:
        grid, options = grid_of(store, grid)
    except SweepError as error:
        if grid is not None or isinstance(error, UnknownName):
            raise
        remark = (
            "The sweep has functions or classes of the user, which the store cannot hold: call "
            "lintensor_jax.sweeps.write_report(path, grid=grid) for the theorems."
        )
        return [], _recorded(results, None), remark
    if options.descent is not None:
        return [], None, _OF_DESCENTS
    cells = [Cell(grid, lane) for _, lane in grid.cells()]
    words, rows = [], []
    for cell in cells:
        lanes = _sample(grid, cell)
        found = _compared(cell, lanes, results)
        name = cell.name or "all lanes"
        if not found:
            words.append(f"<p><b>{html.escape(name)}</b>: none of the sampled lanes succeeded.</p>")
            continue
        first = found[0][0]
        words.append(
            f"<details><summary><b>{html.escape(name)}</b>: "
            f"{html.escape(first.theorem or 'no theorem applies')}"
            f"{f' ({_claim(first)})' if first.kind else ''}</summary>"
            f"<p>At the first of {len(found)} sampled lanes that succeeded.</p>"
            f"<pre>{html.escape(str(first))}</pre></details>"
        )
        by_theorem: dict[tuple[str, str], list[float]] = {}
        for prediction, distance in found:
            key = prediction.theorem or "none", _claim(prediction)
            by_theorem.setdefault(key, []).append(distance)
        for (theorem, kind), distances in by_theorem.items():
            rows.append((name, theorem, kind, len(distances), *_extent(distances)))
    if "distance_to_prediction" in results:
        return words, _recorded(results, rows), ""
    if "limit" not in results and "direction_reached" not in results:
        return words, None, "Neither limits nor directions were recorded."
    headings = ("shape", "theorem", "claim", "lanes compared", "median distance", "largest")
    return words, (headings, rows), ""


def _claim(prediction) -> str:
    """The kind of claim, and whether it depends on an assumption that is open."""
    if prediction.kind is None:
        return "-"
    claim = ", exact" if prediction.kind == "open" else ","
    return f"{prediction.kind}{'' if prediction.is_proved else claim + ' if what is open holds'}"


def _recorded(results, sampled):
    """The table of recorded distances, by kind of claim; names of theorems are from the sample."""
    if "distance_to_prediction" not in results:
        return None
    kinds = results.prediction_kind.attrs["flag_meanings"].split()
    shaped = [d for d in results.status.dims if results[d].dtype.kind in "OTU"]
    rows = []
    for where, part in _parts(results, shaped):
        claims = {r[2].split(",")[0]: r[1:3] for r in sampled or [] if where in r[0] or not where}
        for code, kind in enumerate(kinds):
            chosen = np.asarray(part.prediction_kind == code) & np.asarray(part.status != 0)
            if chosen.any():
                distances = np.asarray(part.distance_to_prediction)[chosen]
                claim = claims.get(kind, ("-", kind))
                rows.append(
                    (where or "all", *claim, int(chosen.sum()), *_extent(distances.tolist()))
                )
    return ("shape", "theorem", "claim", "lanes", "median distance", "largest"), rows


def _parts(results, dims):
    if not dims:
        yield "", results
        return
    for value in results[dims[0]].values:
        for name, part in _parts(results.sel({dims[0]: value}), dims[1:]):
            yield ", ".join(filter(None, (f"{dims[0]} = {value}", name))), part


def _extent(distances: Sequence[float]) -> tuple[str, str]:
    known = [d for d in distances if not math.isnan(d)]
    if not known:
        return "-", "-"
    return f"{np.median(known):.1e}", f"{max(known):.1e}"


def _sample(grid: Grid, cell: Cell) -> np.ndarray:
    lanes = np.unique(np.linspace(0, grid.size - 1, 40 * _AGREEMENT_LANES).astype(int))
    mine = [k for k in lanes if grid.cell_of(k) == tuple(cell.fixed.values())]
    mine = np.unique([cell.first_lane, *mine])
    places = np.unique(np.linspace(0, len(mine) - 1, _AGREEMENT_LANES).astype(int))
    return mine[places]


def _compared(cell: Cell, lanes: np.ndarray, results):
    """Pairs (prediction, distance of the stored limit) of the lanes that succeeded."""
    codes = np.asarray(results.status).ravel()[lanes]
    lanes = lanes[~np.isin(codes, [STATUSES.index(name) for name in ("pending", *FAILURES)])]
    if lanes.size == 0:
        return []
    networks, problems = cell.starts(lanes)
    is_direction = "direction_reached" in results
    name = "direction_reached" if is_direction else "limit"
    classifies = cell.example()[1].has_margins
    found = []
    for place, lane in enumerate(lanes):
        own = problems and jax.tree.map(lambda leaf: leaf[place], problems)  # noqa: B023
        prediction = predict(cell.lane(networks, place), cell.problem_of(own))
        distance = math.nan
        if prediction.limit is not None and name in results and is_direction in (False, classifies):
            index = dict(zip(cell.grid.dims, np.unravel_index(lane, cell.grid.shape), strict=True))
            limit = np.asarray(prediction.limit)
            reached = np.asarray(results[name].isel(index))
            reached = reached[tuple(slice(0, n) for n in limit.shape)]
            if classifies and not is_direction:
                reached = np.asarray(unit(jnp.asarray(reached)))
            distance = float(np.linalg.norm(reached - limit))
        found.append((prediction, distance))
    return found


def _failures(state: Status, results) -> str:
    codes = np.asarray(results.status)
    failed = np.isin(codes, [STATUSES.index(name) for name in FAILURES])
    if not failed.any():
        return "<p>None.</p>"
    places = np.argwhere(failed)
    rows = []
    for place in places[:_SHOWN_FAILURES]:
        index = dict(zip(results.status.dims, place, strict=True))
        lane = int(np.ravel_multi_index(tuple(place), codes.shape))
        where = ", ".join(f"{axis_label(d)} = {results[d].values[i]}" for d, i in index.items())
        rows.append((where, STATUSES[codes[tuple(place)]], state.notes.get(str(lane), "")))
    more = len(places) - len(rows)
    tail = f"<p>And {more:,} more.</p>" if more > 0 else ""
    return f"<p>{len(places):,} lanes.</p>" + _table(("lane", "why", "message"), rows) + tail


def _configuration(store: Store) -> str:
    """The TOML file, if there was one, and all settings that have a value."""
    about = store.description
    table = _table((), list(settings(about["config"] or about["sweep"])))
    if about.get("source") is None:
        return table
    return (
        f"<pre>{html.escape(about['source'])}</pre><details><summary>All settings, with defaults "
        f"</summary>{table}</details>"
    )


def _as_text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _versions(state: Status) -> str:
    return ", ".join(f"{name} {version}" for name, version in state.description["versions"].items())


def _pictures(path: Path) -> Iterator[str]:
    """The figures, in two versions; narrow windows show the one with one panel in each row."""
    from ...figures.style import png

    wide, narrow = figures(path), figures(path, columns=1)
    for name, figure in wide.items():
        yield picture(name, png(figure), html.escape(caption(path, name)), png(narrow[name]))

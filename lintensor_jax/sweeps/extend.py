"""`extend`: add values to the first axis of a sweep, and compute the new lanes."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .execution.reopen import grid_of, plan_facts, require_same
from .grid import Axis, Grid, Zip
from .observables.base import AbstractObservable
from .plan import Options, Plan
from .run import Watch, described_sweep, finish
from .store.dataset import open_dataset
from .store.errors import SweepError
from .store.store import Store, described


def extend(
    path: str | os.PathLike,
    grid: Grid,
    *,
    observables: Sequence[AbstractObservable] | None = None,
    devices: Sequence[Any] | None = None,
    client: Any = None,
    watch: Watch | None = None,
) -> Any:
    """Add values to the first axis of a sweep, and compute their lanes.

    The old lanes keep their indices, and therefore their random numbers and results. If the last
    chunk of the sweep was not full, the whole chunk is computed again. The results are those of one
    sweep of the longer grid with the same lanes in flight and per chunk.

    **Arguments**

    - `path`: the folder of a sweep, finished or not.
    - `grid`: the grid of the sweep with more values at the end of its first axis (of each axis of
      a `Zip`), and otherwise the same.
    - `observables`: as given to `sweep`; needed if some of them are user-defined.
    - `devices`, `client`, `watch`: as in `lintensor_jax.sweep`.

    **Returns** the results, as `lintensor_jax.sweep`.

    **Raises** ValueError if the grid is not an extension of that of the sweep. `SweepError` if
    there is no store, if its format is 1 or 2, or if it was made with other code.
    """
    path = Path(path)
    store = Store(path)
    if not store.is_sealed:
        raise SweepError(
            f"{path}: was written in store format {store.format}, which cannot be extended; start "
            "a new sweep in another folder."
        )
    former = _former(store, grid)
    _, options = grid_of(store, former, observables)
    before = Plan(former, options)
    require_same(store, before)
    plan = _longer(before, grid, options)
    facts = plan_facts(plan)
    if facts != store.description["plan"]:
        _rewrite(store, plan, facts)
        for number in store.finished():
            if store.manifest(number)["lanes"] != plan.chunk(number).lanes.size:
                store.forget(number)
    finish(plan, path, devices, client, watch)
    return open_dataset(path)


def _former(store: Store, grid: Grid) -> Grid:
    """The grid, cut to as many values on its first axis as the sweep in the store has."""
    lanes = store.description["plan"]["lanes"]
    rest = grid.size // len(grid.axes[0])
    count, left = divmod(lanes, rest)
    if left or count > len(grid.axes[0]):
        raise ValueError(
            f"grid: must be that of {store.path} with more values at the end of its first axis, "
            f"got {grid.size} lanes, {rest} for each value of {grid.axes[0].name}, and the sweep "
            f"has {lanes}; keep the other axes as they are."
        )
    return dataclasses.replace(grid, axes=(_first(grid.axes[0], count), *grid.axes[1:]))


def _first(axis: Axis | Zip, count: int) -> Axis | Zip:
    if isinstance(axis, Zip):
        return Zip(axis.name, *(_cut(inner, count) for inner in axis.axes))
    return _cut(axis, count)


def _cut(axis: Axis, count: int) -> Axis:
    return dataclasses.replace(axis, values=np.asarray(axis.values)[:count])


def _longer(before: Plan, grid: Grid, options: Options) -> Plan:
    """The plan of the longer grid, with the chunk sizes of the shorter one."""
    plan = Plan(grid, options)
    plan.set_layout(before.box, before.width, before.padded)
    old = {name: (a.dims, a.shape[1:], a.dtype) for name, a in before.arrays.items()}
    new = {name: (a.dims, a.shape[1:], a.dtype) for name, a in plan.arrays.items()}
    if old != new:
        name = next(name for name in new if new[name] != old[name])
        raise ValueError(
            f"grid: its new values change the shape or dtype of {name}, from {old[name][1:]} to "
            f"{new[name][1:]}; start a new sweep in another folder."
        )
    return plan


def _rewrite(store: Store, plan: Plan, facts: dict[str, Any]) -> None:
    """Replace labels, metadata and description.

    The description is written last. If the process is killed before, the store is the shorter sweep
    with damaged labels, which `resume` repairs.
    """
    whole, arrays = described_sweep(plan, None, None)
    about, attributes = whole["about"], whole["attributes"]
    about = {**about, "extended_from": store.description["plan"], "plan": facts}
    about, data, files = described(plan, about, arrays, attributes)
    for name, content in files.items():
        store.replace(name, content)
    store.replace(".sweep/arrays.npz", data)
    store.rewrite(about)

"""Predictions of a sweep, for each network and data set, before the sweep runs."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from ...theory.predict import predict
from ...theory.prediction import Prediction
from ..grid import Axis, Cell, Grid, Zip

#: Axes of starts. The other axes of a configuration's grid belong to networks or data.
START_AXES = ("alpha", "direction", "repeat")


@dataclasses.dataclass(frozen=True)
class Combination:
    """A network and a data set, at starts that differ in the initial scale only.

    - `point`: the values of the axes of networks and data.
    - `starts`: the values "alpha" and "direction" or "repeat" of each start. The first is the
      first start of the grid; the others have scales spread over the axis.
    - `predictions`: one for each start.
    - `num_starts`: the number of starts in the grid for this network and these data.
    """

    point: dict[str, Any]
    starts: tuple[dict[str, Any], ...]
    predictions: tuple[Prediction, ...]
    num_starts: int

    @property
    def distances(self) -> tuple[float | None, ...]:
        """The l2 distance of each limit from the first one; None if either is not known."""
        first = self.predictions[0].limit
        return tuple(
            None
            if p.limit is None or first is None
            else float(np.linalg.norm(np.asarray(p.limit) - np.asarray(first)))
            for p in self.predictions
        )


def combinations(grid: Grid, most_scales: int = 5) -> Iterator[Combination]:
    """Every network and data set of a configuration's grid, with its predictions."""
    cells = {cell: Cell(grid, lane) for cell, lane in grid.cells()}
    of_starts = [_is_of_starts(axis) for axis in grid.axes]
    sizes = zip(grid.shape, of_starts, strict=True)
    steps = _scales(grid, most_scales)
    for index in np.ndindex(*(1 if s else n for n, s in sizes)):
        lanes = [np.ravel_multi_index(np.add(index, step), grid.shape) for step in steps]
        lanes = np.asarray(lanes)
        cell = cells[grid.cell_of(lanes[0])]
        networks, problems = cell.starts(lanes)
        values = grid.values(lanes)
        yield Combination(
            point={k: v[0].item() for k, v in values.items() if k not in START_AXES},
            starts=tuple(
                {k: values[k][i].tolist() for k in START_AXES if k in values}
                for i in range(len(lanes))
            ),
            predictions=tuple(
                predict(cell.lane(networks, i), cell.problem_of(_one_of(problems, i)))
                for i in range(len(lanes))
            ),
            num_starts=int(
                np.prod([n for n, s in zip(grid.shape, of_starts, strict=True) if s], initial=1)
            ),
        )


def _is_of_starts(axis: Axis | Zip) -> bool:
    return all(a.name in START_AXES for a in (axis.axes if isinstance(axis, Zip) else (axis,)))


def _scales(grid: Grid, most: int) -> list[np.ndarray]:
    """Index steps along the axis of alpha, from the first lane; both ends are included."""
    place = next(grid.place(axis) for axis in grid.leaf_axes if axis.name == "alpha")
    size = grid.shape[place]
    chosen = np.unique(np.linspace(0, size - 1, min(size, most)).round().astype(int))
    return [k * np.eye(len(grid.shape), dtype=int)[place] for k in chosen]


def _one_of(problems: Any, place: int) -> Any:
    return problems and jax.tree.map(lambda leaf: leaf[place], problems)

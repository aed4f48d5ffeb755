"""Matrix completion: the data are single entries of a matrix. No sensor is stored as a matrix."""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, Int

from .arguments import as_numbers
from .losses import AbstractResidualLoss, SquaredLoss
from .messages import in_words
from .problems import AbstractRegressionProblem, MatrixSensing
from .samples import as_data

# Up to this many entries of beta the adjoint is a table look-up, which batched flows have machine
# code for. Above it, the adjoint is a scatter: at 1,700 x 950 that takes a fifth of the time.
_LARGEST_TABLE = 2**14
_LARGEST_DENSE = 2**27  # numbers in the sensors of `dense`, 1 GiB in float64


@dataclasses.dataclass(frozen=True, eq=False)
class Entries:
    """Places in a matrix of a given shape, without repetition, sorted by row and then by column.

    They are constants of compiled programs. Two objects with the same contents are equal.
    """

    rows: np.ndarray
    columns: np.ndarray
    shape: tuple[int, int]

    @functools.cached_property
    def flat(self) -> np.ndarray:
        """The row-major index of every place, row * number of columns + column, increasing."""
        size = self.shape[0] * self.shape[1]
        places = self.rows.astype(np.int64) * self.shape[1] + self.columns
        return places.astype(np.int32 if size < 2**31 else np.int64)

    @functools.cached_property
    def table(self) -> np.ndarray:
        """An array of `shape`: the index of the entry at each place, or n if it has no entry."""
        table = np.full(self.shape[0] * self.shape[1], self.flat.size, np.int32)
        table[self.flat] = np.arange(self.flat.size)
        return table.reshape(self.shape)

    @functools.cached_property
    def _contents(self) -> bytes:
        return hashlib.sha256(repr(self.shape).encode() + self.flat.tobytes()).digest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Entries) and self._contents == other._contents

    def __hash__(self) -> int:
        return hash(self._contents)


class MatrixCompletion(AbstractRegressionProblem):
    """Matrix completion with loss 1/2 sum_i (beta[rows_i, columns_i] - values_i)^2, or l(r_i).

    Source: Gunasekar et al. 2017; Arora et al. 2019. It is matrix sensing with sensors that have a
    single entry 1. Predictions and gradients read entries by their indices, and need no more memory
    than beta. Networks: `MatrixFactorizationNetwork` of any depth and widths,
    `FullyConnectedNetwork` with several outputs, or your own with coefficients of `shape`.

    **Arguments**

    - `rows`, `columns`: whole numbers, shape (n,): the places of the entries, counted from 0. They
      are constants of compiled programs, and so they must not be traced.
    - `values`: shape (n,), one number for each entry.
    - `shape`: the matrix's (number of rows, number of columns).
    - `loss`: as in `Regression`.

    Entries are sorted by rows, then columns; `rows`, `columns` and `values` are in this order. An
    entry that is given twice with the same value counts once.

    **Raises** ValueError for entries outside of the shape, and for two values of one entry.
    """

    y: Float[Array, " n"]
    entries: Entries = eqx.field(static=True)
    residual_loss: AbstractResidualLoss = SquaredLoss()

    def __init__(
        self,
        rows: Sequence[int] | Int[ArrayLike, " n"],
        columns: Sequence[int] | Int[ArrayLike, " n"],
        values: Sequence[float] | Float[ArrayLike, " n"],
        shape: tuple[int, int],
        loss: AbstractResidualLoss | None = None,
    ):
        owner = "MatrixCompletion"
        size = _shape(shape)
        row, column = (
            _indices(given, name, count)
            for given, name, count in zip((rows, columns), ("rows", "columns"), size, strict=True)
        )
        given = as_data(values, "values", owner, ndims=(1,))
        if not row.shape == column.shape == given.shape:
            raise ValueError(
                f"{owner}: rows, columns and values must have one number for each entry, got "
                f"shapes {row.shape}, {column.shape} and {given.shape}; give all three the same "
                "length."
            )
        flat = row.astype(np.int64) * size[1] + column
        places, first = np.unique(flat, return_index=True)
        if places.size < flat.size:
            _require_equal_duplicates(flat, places, first, given, size)
        if not (places.size == flat.size and (first == np.arange(flat.size)).all()):
            given = given[first]
        self.y = given
        self.entries = Entries(row[first], column[first], size)
        if loss is not None and not isinstance(loss, AbstractResidualLoss):
            raise ValueError(
                f"{owner}: loss must be an object such as lintensor_jax.HuberLoss(1.0), got "
                f"{in_words(loss)}; leave it out for the squared loss."
            )
        self.residual_loss = SquaredLoss() if loss is None else loss

    @property
    def rows(self) -> Int[np.ndarray, " n"]:
        """The row of each entry, increasing."""
        return self.entries.rows

    @property
    def columns(self) -> Int[np.ndarray, " n"]:
        """The column of each entry, increasing within a row."""
        return self.entries.columns

    @property
    def values(self) -> Float[Array, " n"]:
        """The value of each entry: y."""
        return self.y

    @property
    def shape(self) -> tuple[int, int]:
        """(number of rows, number of columns)."""
        return self.entries.shape

    @property
    def coefficient_shape(self) -> tuple[int, ...]:
        """The shape of beta: that of the matrix."""
        return self.entries.shape

    @property
    def samples_are_independent(self) -> bool:
        """True: no entry occurs twice."""
        return True

    def predictions(self, beta: Float[Array, "rows columns"]) -> Float[Array, " n"]:
        """The entries of beta, shape (n,)."""
        places = self.entries.flat
        return jnp.ravel(beta).at[places].get(mode="promise_in_bounds", indices_are_sorted=True)

    def adjoint(self, values: Float[Array, " n"]) -> Float[Array, "rows columns"]:
        """The matrix with `values` at the entries, 0 elsewhere."""
        values = jnp.asarray(values)
        size = self.shape[0] * self.shape[1]
        if size <= _LARGEST_TABLE:
            padded = jnp.append(values, jnp.zeros(1, values.dtype))
            return padded.at[self.entries.table].get(mode="promise_in_bounds")
        empty = jnp.zeros(size, values.dtype).at[self.entries.flat]
        return empty.set(
            values, mode="promise_in_bounds", indices_are_sorted=True, unique_indices=True
        ).reshape(self.shape)

    @property
    def A(self) -> Float[Array, "n rows columns"]:
        """The sensors as matrices, each with a single 1. For small cases; `min_norm` needs them.

        Every call makes a new array. **Raises** ValueError if it would be larger than 1 GiB.
        """
        count, (rows, columns) = self.y.shape[0], self.shape
        if count * rows * columns > _LARGEST_DENSE:
            raise ValueError(
                f"MatrixCompletion: as matrices the sensors must have at most {_LARGEST_DENSE} "
                f"numbers, got {count * rows * columns} for {count} entries of shape {self.shape}; "
                "flows, sweeps and predictions need no such matrices."
            )
        sensors = np.zeros((count, rows, columns))
        sensors[np.arange(count), self.rows, self.columns] = 1
        return jnp.asarray(sensors, self.y.dtype)

    def dense(self) -> MatrixSensing:
        """The same problem with matrices as sensors, for small square cases.

        **Raises** ValueError for a shape that is not square, for a loss other than the squared one,
        and if the sensors would be larger than 1 GiB.
        """
        if self.shape[0] != self.shape[1] or not self.has_squared_loss:
            raise ValueError(
                "MatrixCompletion.dense: must have a square shape and the squared loss, as "
                f"MatrixSensing has, got shape {self.shape} and "
                f"{type(self.residual_loss).__name__}; flows and sweeps need no dense sensors."
            )
        return MatrixSensing(self.A, self.y)


def _shape(shape: Any) -> tuple[int, int]:
    try:
        rows, columns = (int(n) for n in shape)
        whole = (rows, columns) == tuple(shape)
    except (TypeError, ValueError):
        rows, columns, whole = 0, 0, False
    if not whole or min(rows, columns) < 1:
        raise ValueError(
            "MatrixCompletion: shape must be two positive whole numbers, rows and columns of the "
            f"matrix, got {in_words(shape)}; pass such as shape=(1700, 950)."
        )
    return rows, columns


def _indices(given: Any, name: str, count: int) -> np.ndarray:
    """Whole numbers in [0, count), shape (n,), on the host."""
    if isinstance(given, Tracer):
        raise ValueError(
            f"MatrixCompletion: {name} must be concrete, got traced numbers; the entries are "
            "constants of compiled programs. In a sweep, give their axis "
            "changes_shape=True."
        )
    as_numbers(given, name, "MatrixCompletion")
    index = np.asarray(given)
    if index.ndim != 1 or index.size == 0 or index.dtype.kind not in "iu":
        raise ValueError(
            f"MatrixCompletion: {name} must be a non-empty vector of whole numbers, got shape "
            f"{index.shape} of {index.dtype}; give one index for each entry, counted from 0."
        )
    outside = np.flatnonzero((index < 0) | (index >= count))
    if outside.size:
        place = int(outside[0])
        raise ValueError(
            f"MatrixCompletion: {name} must lie in [0, {count}), as the shape says, got "
            f"{int(index[place])} at index {place}; indices are counted from 0. Correct it, or "
            "enlarge the shape."
        )
    return index.astype(np.int32 if count < 2**31 else np.int64)


def _require_equal_duplicates(flat, places, first, values, shape) -> None:
    """ValueError if one entry is given two different values."""
    if isinstance(values, Tracer):
        raise ValueError(
            "MatrixCompletion: rows and columns must name every entry once where values are "
            f"traced, got {flat.size - places.size} repeated ones; remove them."
        )
    host = np.asarray(values)
    kept = host[first][np.searchsorted(places, flat)]
    wrong = np.flatnonzero(host != kept)
    if wrong.size:
        again = int(wrong[0])
        row, column = divmod(int(flat[again]), shape[1])
        raise ValueError(
            f"MatrixCompletion: values of one entry must be equal, got {kept[again]:.6g} and "
            f"{host[again]:.6g} for row {row}, column {column}; remove one of them, or pass their "
            "mean."
        )

"""A user's data from NPZ and CSV files."""

import csv
import math
from pathlib import Path

import numpy as np

from ...config import ConfigError


def read_data(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """X of shape (n, d) and y of shape (n,) from an NPZ or a CSV file.

    An NPZ file has arrays `X` and `y`. A CSV file has one sample in each row, with its target or
    label in the last column, and may begin with a line of headings.
    """
    if path.suffix.lower() not in (".npz", ".csv"):
        raise ConfigError("data.path", f"must end in .npz or .csv, got {path.name!r}; convert it.")
    try:
        if path.suffix.lower() == ".npz":
            with np.load(path, allow_pickle=False) as file:
                missing = {"X", "y"} - set(file)
                if missing:
                    names = ", ".join(file) or "none"
                    raise ConfigError(
                        "data.path",
                        f"must have arrays X and y, got {names} in {path}; rename them.",
                    )
                return np.asarray(file["X"]), np.asarray(file["y"])
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if row]
    except FileNotFoundError:
        raise ConfigError(
            "data.path", f"no such file: {path}; paths are relative to the configuration's folder."
        ) from None
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            "data.path", f"cannot be read: {path} ({error}); write it again."
        ) from None
    first = 0 if rows and all(map(_is_number, rows[0])) else 1
    values = []
    for number, row in enumerate(rows[first:], first + 1):
        if len(row) != len(rows[0]) or not all(map(_is_number, row)):
            raise ConfigError(
                "data.path",
                f"must have {len(rows[0])} numbers in every row: {path}, row {number}, got {row}; "
                "correct or remove the row.",
            )
        values.append([float(cell) for cell in row])
    if not values or len(values[0]) < 2:
        raise ConfigError(
            "data.path",
            f"must have samples of at least one number and a target, got none in {path}; one "
            "sample a row, its target last.",
        )
    columns = np.asarray(values)
    return columns[:, :-1], columns[:, -1]


def _is_number(cell: str) -> bool:
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return False

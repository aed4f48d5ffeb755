"""A user's data from NPZ and CSV files."""

import csv
import math
import re
import zipfile
from pathlib import Path

import numpy as np

from ...config import ConfigError
from ...messages import in_words

_KEY = "data.path"
_MOST_BYTES = 2**32  # of one array of a file
_ARRAYS = ("X", "y")
# `float` accepts other spellings as well, such as 1_000. A table of data must not have them.
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_NOT_FINITE = re.compile(r"[+-]?(nan|inf|infinity)", re.IGNORECASE)


def read_data(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """X of shape (n, d) and y of shape (n,) from an NPZ or a CSV file.

    An NPZ file has arrays `X` and `y` of numbers. A CSV file has one sample in each row, with its
    target or label in the last column. The first row may be a row of headings, without numbers.

    Raises `ConfigError` for a file that cannot be read, and for a cell that is not a finite number.
    """
    if path.suffix.lower() not in (".npz", ".csv"):
        raise ConfigError(_KEY, f"must end in .npz or .csv, got {path.name!r}; convert it.")
    read = _read_npz if path.suffix.lower() == ".npz" else _read_csv
    try:
        return read(path)
    except ConfigError:
        raise
    except FileNotFoundError:
        raise ConfigError(
            _KEY, f"no such file: {path}; paths are relative to the configuration's folder."
        ) from None
    except (OSError, ValueError, EOFError, MemoryError, csv.Error, zipfile.BadZipFile) as error:
        words = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(_KEY, f"cannot be read: {path} ({words}); write it again.") from None


def _read_npz(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        sizes = {info.filename.removesuffix(".npy"): info.file_size for info in archive.infolist()}
    if missing := [name for name in _ARRAYS if name not in names]:
        raise ConfigError(
            _KEY,
            f"must have arrays X and y, got {', '.join(names) or 'none'} in {path}; rename them "
            f"({missing[0]} is missing).",
        )
    for name in _ARRAYS:
        if sizes[name] > _MOST_BYTES:
            raise ConfigError(
                _KEY,
                f"must have arrays of at most {_MOST_BYTES} bytes, got {name} of {sizes[name]} in "
                f"{path}; take fewer samples.",
            )
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: np.asarray(file[name]) for name in _ARRAYS}
    for name, array in arrays.items():
        if array.dtype.kind not in "biuf":
            raise ConfigError(
                _KEY,
                f"must have arrays of real numbers, got {name} of {in_words(array.dtype)} in "
                f"{path}; convert it with {name}.astype(float).",
            )
    return arrays["X"], arrays["y"]


def _read_csv(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file)
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if row]
    if rows and _is_heading(rows[0][1]):
        rows = rows[1:]
    if not rows or len(rows[0][1]) < 2:
        raise ConfigError(
            _KEY,
            f"must have samples of at least one number and a target, got none in {path}; write "
            "one sample in each row, with its target last.",
        )
    values = [_numbers(path, line, row, len(rows[0][1])) for line, row in rows]
    columns = np.asarray(values)
    return columns[:, :-1], columns[:, -1]


def _is_heading(row: list[str]) -> bool:
    """Whether a row has words and no numbers; "nan" and "inf" count as numbers."""
    numbers = [_NUMBER.fullmatch(cell) or _NOT_FINITE.fullmatch(cell) for cell in row]
    return any(row) and not any(numbers)


def _numbers(path: Path, line: int, row: list[str], count: int) -> list[float]:
    """The numbers of one row; `ConfigError` that names the row and the column otherwise."""
    if len(row) != count:
        raise ConfigError(
            _KEY,
            f"must have {count} numbers in every row: {path}, row {line}, got {len(row)}; correct "
            "or remove the row.",
        )
    for column, cell in enumerate(row, 1):
        if not _NUMBER.fullmatch(cell) or not math.isfinite(float(cell)):
            got = in_words(cell) if cell else "an empty cell"
            raise ConfigError(
                _KEY,
                f"must have a finite number in every cell: {path}, row {line}, column {column}, "
                f"got {got}; correct it or remove the row (a row of headings is the first row, "
                "and has no numbers).",
            )
    return [float(cell) for cell in row]

"""The store: a Zarr group of labelled arrays, filled chunk by chunk.

If its writer is killed, finished chunks stay valid. Programs that read Zarr can read the store;
xarray finds names, coordinates and units. A hidden folder `.sweep` beside the arrays holds the data
for a resume:

- `sweep.json`, `arrays.npz`: the sweep itself and its plan;
- `chunks/N.json`: chunk N is finished, with the checksums of its files (written last);
- `staged/N.npz`, `staged/N-K.npz`: a chunk's explicit part, and its lanes from the stiff path,
  until the chunk is complete;
- `runs/`: host, time, devices and versions of every run; `lock`; `scratch/`: files that are being
  written.

The folders `report` and `figures` beside the arrays are not hidden: people open them.
"""

import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ..grid import Axis, Zip
from ..plan import Chunk, Outcome, Plan
from . import atomic_files
from .errors import SweepError
from .names import FORMAT, READABLE

_HIDDEN = ".sweep"
# With this file a folder is an empty Zarr group, and programs that list a store ignore it.
_EMPTY_GROUP = '{"zarr_format": 2}'
# Codecs that decode bytes only. Zarr has others, such as pickle, that run code from the file. This
# package writes zstd.
_CODECS = {"zstd", "blosc", "lz4", "zlib", "gzip", "bz2", "lzma", "shuffle", "vlen-utf8"}


class Store:
    """An existing store. `description`: the content of `sweep.json`; `format`: its version."""

    def __init__(self, path: Path):
        self.path, self.hidden = path, path / _HIDDEN
        try:
            self.description = json.loads((self.hidden / "sweep.json").read_text())
        except FileNotFoundError:
            raise SweepError(
                f"{path}: holds no sweep ({_HIDDEN}/sweep.json is missing); check the path."
            ) from None
        except (OSError, ValueError) as error:
            raise SweepError(f"{path}: {_HIDDEN}/sweep.json cannot be read ({error}).") from None
        self.format = version = self.description.get("format")
        if version not in READABLE:
            by = self.description.get("versions", {}).get("lintensor_jax", "another version")
            raise SweepError(
                f"{path}: was written in store format {version} (lintensor_jax {by}), and this "
                f"version reads formats {' and '.join(map(str, READABLE))}; install a version that "
                "reads it. Its arrays open with xarray.open_zarr all the same. Nothing was changed."
            )

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """The long arrays of the sweep's description, by their hashes."""
        with np.load(self.hidden / "arrays.npz") as file:
            return dict(file)

    # Chunks.

    def finished(self) -> set[int]:
        """Numbers of the finished chunks; `damage` checks their files."""
        return {int(p.stem) for p in (self.hidden / "chunks").glob("*.json") if p.stem.isdigit()}

    def manifest(self, number: int) -> dict[str, Any]:
        """The manifest of a finished chunk."""
        return json.loads(self._manifest(number).read_text())

    def damage(self, number: int) -> str:
        """The name of a missing or changed file of a finished chunk; "" if there is none."""
        try:
            files = self.manifest(number)["files"]
        except (OSError, ValueError, KeyError):
            return self._manifest(number).name
        for name, checksum in files.items():
            try:
                data = (self.path / name).read_bytes()
            except OSError:
                return f"{name} (missing)"
            if atomic_files.sha256(data) != checksum:
                return name
        return ""

    def forget(self, number: int) -> None:
        """Remove a chunk's manifest, so that the chunk is computed again."""
        self._manifest(number).unlink(missing_ok=True)
        atomic_files.flush_folder(self.hidden / "chunks")

    def commit(self, plan: Plan, chunk: Chunk, outcome: Outcome, facts: dict[str, Any]) -> None:
        """Write a finished chunk: its files, then its manifest, which marks it as finished.

        `facts`: entries of the manifest.
        """
        files = {}
        for name, array in plan.arrays.items():
            values = outcome.values[name]
            shaped = values.reshape(*chunk.shape, *values.shape[1:])
            key, data = _encoded(name, array, chunk, shaped)
            files[key] = atomic_files.sha256(data)
            self._write(self.path / key, data)
        for name in plan.arrays:
            atomic_files.flush_folder(self.path / name)
        manifest = {"chunk": chunk.number, **facts, "files": files}
        self._write(self._manifest(chunk.number), json.dumps(manifest).encode())
        atomic_files.flush_folder(self.hidden / "chunks")
        for path in (self.hidden / "staged").glob(f"{chunk.number:08d}*"):
            path.unlink()

    # Parts of chunks: the explicit part, and single lanes.

    def stage(self, chunk: Chunk, place: int | None, outcome: Outcome) -> None:
        """Store the explicit part of a chunk, or its lane `place`, until the chunk is complete."""
        about = {
            "unfinished": outcome.unfinished,
            "executed_steps": outcome.executed_steps,
            "note": outcome.note,
            "compilation": outcome.compilation,
        }
        buffer = io.BytesIO()
        np.savez(buffer, **outcome.values, **{"about ": np.asarray(json.dumps(about))})  # pyright: ignore
        data = buffer.getvalue()
        self._write(self._staged(chunk, place), hashlib.sha256(data).digest() + data)
        atomic_files.flush_folder(self.hidden / "staged")

    def staged(self, chunk: Chunk, place: int | None) -> Outcome | None:
        """The part that `stage` stored; None if it is missing or damaged."""
        try:
            data = self._staged(chunk, place).read_bytes()
        except FileNotFoundError:
            return None
        checksum, data = data[:32], data[32:]
        if hashlib.sha256(data).digest() != checksum:
            return None
        with np.load(io.BytesIO(data)) as file:
            values = dict(file)
        about = json.loads(str(values.pop("about ")))
        about["unfinished"] = tuple(about["unfinished"])
        return Outcome(values, **about)

    # Other files.

    def folder_for_people(self, name: str) -> Path:
        """A folder in the store for other files, such as a report; made if it is missing."""
        folder = self.path / name
        folder.mkdir(exist_ok=True)
        if not (folder / ".zarray").exists():  # an array of the same name
            (folder / ".zgroup").write_text(_EMPTY_GROUP)
        return folder

    def write_note(self, name: str, content: Any) -> None:
        """Write a JSON file in the hidden folder."""
        path = self.hidden / name
        self._write(path, json.dumps(content, indent=1).encode())
        atomic_files.flush_folder(path.parent)

    def notes(self, folder: str) -> list[dict[str, Any]]:
        """The contents of the JSON files of a folder in the hidden folder."""
        return [json.loads(p.read_text()) for p in sorted((self.hidden / folder).glob("*.json"))]

    def clear(self) -> None:
        """Remove the files of a killed writer: unfinished files, parts of finished chunks."""
        finished = self.finished()
        staged = (self.hidden / "staged").iterdir()
        done = [p for p in staged if int(p.stem.partition("-")[0]) in finished]
        for path in [*(self.hidden / "scratch").iterdir(), *done]:
            path.unlink(missing_ok=True)

    def _write(self, path: Path, data: bytes) -> None:
        try:
            atomic_files.write(path, data, self.hidden / "scratch")
        except OSError as error:
            raise SweepError(
                f"{self.path}: cannot be written to ({error.strerror}). {len(self.finished())} "
                "finished chunks are safe; make room (or make it writable) and resume."
            ) from error

    def _manifest(self, number: int) -> Path:
        return self.hidden / "chunks" / f"{number:08d}.json"

    def _staged(self, chunk: Chunk, place: int | None) -> Path:
        suffix = "" if place is None else f"-{place}"
        return self.hidden / "staged" / f"{chunk.number:08d}{suffix}.npz"


def create(
    path: Path,
    plan: Plan,
    description: dict[str, Any],
    arrays: dict[str, np.ndarray],
    attributes: dict[str, Any],
) -> Store:
    """A new store at `path`, which must be missing or an empty folder.

    After an error there is no store.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise SweepError(f"{path}: is not an empty folder; choose another. Nothing was changed.")
    building = path.with_name(f".{path.name}.building-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f".{path.name}.building-*"):
            if not _is_running(left.name.rpartition("-")[2]):
                shutil.rmtree(left)
        building.mkdir()
        _write_skeleton(building, plan, attributes)
        hidden = building / _HIDDEN
        for folder in ("chunks", "staged", "runs", "scratch"):
            (hidden / folder).mkdir(parents=True)
        (hidden / ".zgroup").write_text(_EMPTY_GROUP)
        np.savez_compressed(hidden / "arrays.npz", **arrays)  # pyright: ignore
        (hidden / "sweep.json").write_text(json.dumps({"format": FORMAT, **description}, indent=1))
        for file in building.rglob("*"):
            if file.is_file():
                with file.open("rb") as opened:
                    os.fsync(opened.fileno())
        if os.name != "posix" and path.exists():
            path.rmdir()
        os.rename(building, path)
        atomic_files.flush_folder(path.parent)
    except OSError as error:
        shutil.rmtree(building, ignore_errors=True)
        raise SweepError(
            f"{path}: cannot be made ({error.strerror or error}); choose a folder on a disk that "
            "has room and can be written to. Nothing was changed."
        ) from error
    return Store(path)


def _is_running(pid: str) -> bool:
    """Whether another process has this number; True if that cannot be found out."""
    if not pid.isdigit() or int(pid) == os.getpid():
        return not pid.isdigit()
    if os.name != "posix":
        return True
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def holds_sweep(path: Path) -> bool:
    """Whether `path` holds a store."""
    return (path / _HIDDEN / "sweep.json").exists()


def open_dataset(path: Path | str) -> Any:
    """The arrays of a store as an `xarray.Dataset` that reads them when they are used.

    `SweepError` names a codec that could run code.
    """
    import xarray

    for name, codec in _codecs(Path(path)):
        if codec not in _CODECS:
            raise SweepError(
                f"{path}: {name} has the codec {codec!r}, and this package opens arrays of "
                f"{', '.join(sorted(_CODECS))} only. Nothing of the array was read."
            )
    return xarray.open_zarr(path, chunks=None, consolidated=True, zarr_format=2)


def _codecs(path: Path) -> Iterable[tuple[str, Any]]:
    """Pairs (array, codec) of all arrays in the store's list."""
    try:
        listed = json.loads((path / ".zmetadata").read_text())["metadata"]
        for key, about in listed.items():
            if key.endswith(".zarray"):
                for codec in (about["compressor"], *(about["filters"] or ())):
                    if codec is not None:
                        yield key, codec["id"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SweepError(
            f"{path}: .zmetadata cannot be read ({error!r}); copy the folder again."
        ) from None


def _write_skeleton(path: Path, plan: Plan, attributes: dict[str, Any]) -> None:
    import zarr

    group = zarr.open_group(path, mode="w", zarr_format=2)
    names = []
    for name, dims, values, words in _coordinates(plan):
        words = {"_ARRAY_DIMENSIONS": dims, **words}
        layout = _layout(values.shape, values.shape, values.dtype)
        made = group.create_array(name, attributes=words, **layout)
        made[...] = values
        names.append((name, dims))
    others = [name for name, dims in names if dims != [name]]
    if others:
        attributes = {**attributes, "coordinates": " ".join(others)}
    group.attrs.update(attributes)
    for name, array in plan.arrays.items():
        variable = array.variable
        words: dict[str, Any] = {"units": variable.units, "description": variable.description}
        words = {key: value for key, value in words.items() if value}
        if variable.flags:
            words["flag_values"] = list(range(len(variable.flags)))
            words["flag_meanings"] = " ".join(w.replace(" ", "_") for w in variable.flags)
        words["_ARRAY_DIMENSIONS"] = list(array.dims)
        group.create_array(name, attributes=words, **_layout(array.shape, array.box, array.dtype))
    zarr.consolidate_metadata(path, zarr_format=2)


def _layout(shape, box, dtype: np.dtype) -> dict[str, Any]:
    import numcodecs

    return {
        "shape": shape,
        "chunks": box,
        "dtype": dtype,
        # Without a fill value missing entries are read as 0, and xarray does not convert integers
        # to floats to mask them.
        "fill_value": np.nan if dtype.kind == "f" else None,
        "compressors": numcodecs.Zstd(level=1),
    }


def _coordinates(plan: Plan) -> Iterable[tuple[str, list[str], np.ndarray, dict[str, str]]]:
    for outer in plan.grid.axes:
        axes = outer.axes if isinstance(outer, Zip) else (outer,)
        if isinstance(outer, Zip) or outer.values.ndim > 1:
            yield outer.name, [outer.name], np.arange(len(outer)), {}
        for axis in axes:
            yield _coordinate(axis, outer.name)
    for name, values in plan.coordinates.items():
        yield name, [name], values, {}


def _coordinate(axis: Axis, dim: str):
    words = {"units": axis.units, "description": axis.description}
    words = {key: value for key, value in words.items() if value}
    name = axis.name if axis.values.ndim == 1 else f"{axis.name}_value"
    return name, [dim, *axis.dims], axis.values, words


def _encoded(name: str, array: Any, chunk: Chunk, values: np.ndarray) -> tuple[str, bytes]:
    """Name and bytes of the file of one variable of a chunk, as Zarr writes it."""
    import zarr
    from zarr.storage import MemoryStore

    memory: dict[str, Any] = {}
    target = zarr.create_array(
        MemoryStore(memory),
        name=name,
        zarr_format=2,
        config={"write_empty_chunks": True},
        **_layout(array.shape, array.box, array.dtype),
    )
    extra = tuple(slice(None) for _ in array.shape[len(chunk.region) :])
    target[(*chunk.region, *extra)] = values
    (key,) = (k for k in memory if not k.rpartition("/")[2].startswith("."))
    return key, memory[key].to_bytes()


def size_on_disk(path: Path) -> int:
    """The sum of the sizes of all files in a folder, in bytes."""
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())

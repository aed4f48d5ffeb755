"""The store: a Zarr group of labelled arrays, filled chunk by chunk.

If a writer is killed, finished chunks stay valid. Programs that read Zarr can read the store;
xarray finds names, coordinates and units. A hidden folder `.sweep` beside the arrays holds what
`resume` needs:

- `sweep.json`, `arrays.npz`: the description of the sweep, its plan, and the checksums of the
  skeleton (metadata and coordinates, which can be rebuilt from these two files);
- `chunks/N.json`: the manifest of chunk N, with the checksums of its files. It is written last, and
  says that the chunk is finished;
- `files/`: checksums of reports and figures; `runs/`: host, time, devices and versions of every
  run; `claims/`: which process computes which chunk now; `scratch/`: files that are being written.

JSON files there end with the checksum of their own bytes. The folders `report` and `figures` beside
the arrays are not hidden, since users open them.
"""

import contextlib
import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from ..plan import Chunk, Plan
from . import atomic_files, sealed, skeleton
from .description import describe, rebuild
from .errors import SweepError
from .links import refuse_links, refused
from .manifests import is_manifest
from .names import FORMAT, READABLE

_HIDDEN = ".sweep"
_SEALED_FROM = 3  # formats of stores whose JSON files hold their own checksums


class Store:
    """An existing store. `description`: the content of `sweep.json`; `format`: its version."""

    def __init__(self, path: Path):
        self.path, self.hidden = path, path / _HIDDEN
        where = f"{path}: {_HIDDEN}/sweep.json"
        refuse_links(path, path)
        refuse_links(path, self.hidden)
        try:
            self.description = sealed.read(self.hidden / "sweep.json", must_be_sealed=False)
        except (FileNotFoundError, NotADirectoryError):
            raise SweepError(
                f"{path}: holds no sweep ({_HIDDEN}/sweep.json is missing); check the path."
            ) from None
        except (OSError, sealed.Damaged) as error:
            raise SweepError(f"{where} cannot be read ({error}); copy the folder again.") from None
        version: Any = self.description.get("format")
        if type(version) is not int or version not in READABLE:
            by = _written_by(self.description)
            raise SweepError(
                f"{path}: was written in store format {_short(version)} (lintensor_jax {by}), and "
                f"this version reads formats {', '.join(map(str, READABLE))}; install a version "
                "that reads it. Its arrays open with xarray.open_zarr all the same. Nothing was "
                "changed."
            )
        self.format: int = version
        self.is_sealed = version >= _SEALED_FROM
        self.zarr_format = 3 if self.is_sealed else 2
        if self.is_sealed:
            try:
                sealed.read(self.hidden / "sweep.json")
            except (OSError, sealed.Damaged) as error:
                raise SweepError(f"{where} is damaged ({error}); copy the folder again.") from None
        if not _is_description(self.description, self.is_sealed):
            raise SweepError(
                f"{where} is no description of a sweep: entries are missing or have a wrong type; "
                "copy the folder again."
            )

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """The long arrays of the sweep's description, by their hashes."""
        try:
            data = (self.hidden / "arrays.npz").read_bytes()
            kept = self.description.get("arrays")
            if self.is_sealed and atomic_files.sha256(data) != kept:
                raise ValueError("its checksum does not fit")
            with np.load(io.BytesIO(data), allow_pickle=False) as file:
                return dict(file)
        except Exception as error:  # the file may have any content, and NumPy many errors
            raise SweepError(
                f"{self.path}: {_HIDDEN}/arrays.npz is damaged ({error}); copy the folder again."
            ) from None

    # The skeleton.

    def skeleton_damage(self) -> list[str]:
        """Names of missing or changed files of the skeleton; formats 1 and 2 have no checksums."""
        return [
            name
            for name, checksum in self.description.get("skeleton", {}).items()
            if self.damage_of(name, checksum) is not None
        ]

    def restore_skeleton(self) -> None:
        """If a file of the skeleton is damaged, rebuild the skeleton from the description."""
        if not self.skeleton_damage():
            return
        about, arrays = self.description, self.arrays
        values = {c["name"]: rebuild(c["values"], arrays) for c in about["coordinates"]}
        files = skeleton.build(about, values)
        for name, data in files.items():
            self._write(self.path / name, data)
        checksums = {name: atomic_files.sha256(data) for name, data in files.items()}
        if checksums != about["skeleton"]:  # another version of Zarr writes other bytes
            self.rewrite({**about, "skeleton": checksums})

    def rewrite(self, description: dict[str, Any]) -> None:
        """Replace the description."""
        self.description = description
        self._write(self.hidden / "sweep.json", sealed.sealed(description))
        atomic_files.flush_folder(self.hidden)

    def replace(self, name: str, data: bytes) -> None:
        """Replace a file of the store."""
        self._write(self.path / name, data)

    # Chunks.

    def finished(self) -> set[int]:
        """Numbers of the finished chunks; `damage` checks their files."""
        most = self.description["plan"]["chunks"]
        stems = (p.stem for p in (self.hidden / "chunks").glob("*.json"))
        return {int(s) for s in stems if s.isdigit() and len(s) < 20 and int(s) < most}

    def manifest(self, number: int) -> dict[str, Any]:
        """The manifest of a finished chunk. Raises OSError or `sealed.Damaged` (a ValueError)."""
        manifest = sealed.read(self._manifest(number), must_be_sealed=self.is_sealed)
        if not is_manifest(manifest, number, self.format):
            raise sealed.Damaged("it is no manifest of this chunk")
        return manifest

    def damage(self, number: int) -> str:
        """The name of a missing or changed file of a finished chunk; "" if there is none."""
        try:
            files = self.manifest(number)["files"]
        except (OSError, ValueError):
            return f"{_HIDDEN}/chunks/{self._manifest(number).name}"
        for name, checksum in files.items():
            if (why := self.damage_of(name, checksum)) is not None:
                return f"{name}{why}"
        return ""

    def damage_of(self, name: str, checksum: str) -> str | None:
        """None for an undamaged file; "" if its content is wrong; " (a link)" or " (missing)"."""
        path = self.path / name
        try:
            if path.resolve() != self.path.resolve() / name:
                return " (a link)"
            return None if atomic_files.sha256(path.read_bytes()) == checksum else ""
        except OSError:
            return " (missing)"

    def forget(self, number: int) -> None:
        """Remove a chunk's manifest, so that the chunk is computed again."""
        self._manifest(number).unlink(missing_ok=True)
        atomic_files.flush_folder(self.hidden / "chunks")

    def commit(
        self, plan: Plan, chunk: Chunk, values: dict[str, np.ndarray], facts: dict[str, Any]
    ) -> dict[str, Any]:
        """Write a finished chunk: its files, then its manifest, which marks it as finished.

        `facts`: entries of the manifest, which is returned.
        """
        files, folders = {}, set()
        for name, array in plan.arrays.items():
            shaped = values[name].reshape(*chunk.shape, *values[name].shape[1:])
            key, data = skeleton.encoded(name, array, chunk, shaped, self.zarr_format)
            files[key] = atomic_files.sha256(data)
            self._write(self.path / key, data)
            folders.add((self.path / key).parent)
        for folder in folders:
            atomic_files.flush_folder(folder)
        manifest = {"chunk": chunk.number, **facts, "files": files}
        data = sealed.sealed(manifest) if self.is_sealed else json.dumps(manifest).encode()
        self._write(self._manifest(chunk.number), data)
        atomic_files.flush_folder(self.hidden / "chunks")
        return manifest

    # Other files.

    def folder_for_reports(self, name: str) -> Path:
        """A folder in the store for files that users open, such as a report; made if missing."""
        folder = self.path / name
        folder.mkdir(exist_ok=True)
        group, data = skeleton.empty_group(self.zarr_format)
        if not any((folder / file).exists() for file in (group, ".zarray")):
            (folder / group).write_bytes(data)
        return folder

    def write_checksums(self, folder: str, files: list[Path]) -> None:
        """Store the checksums of reports and figures, so that `verify` finds changes in them."""
        group = self.path / folder / skeleton.empty_group(self.zarr_format)[0]
        inside = [f for f in (*files, group) if f.is_file() and f.is_relative_to(self.path)]
        if self.is_sealed and inside:
            names = {f.relative_to(self.path).as_posix(): f.read_bytes() for f in inside}
            checksums = {name: atomic_files.sha256(data) for name, data in names.items()}
            self.write_note(f"files/{folder}.json", {"files": checksums})

    def write_note(self, name: str, content: dict[str, Any]) -> None:
        """Write a JSON file in the hidden folder."""
        path = self.hidden / name
        data = sealed.sealed(content) if self.is_sealed else json.dumps(content, indent=1).encode()
        self._write(path, data)
        atomic_files.flush_folder(path.parent)

    def notes(self, folder: str) -> list[dict[str, Any]]:
        """The contents of the undamaged JSON files in a folder of the hidden folder."""
        found = []
        for path in sorted((self.hidden / folder).glob("*.json")):
            with contextlib.suppress(OSError, ValueError):
                found.append(sealed.read(path, must_be_sealed=self.is_sealed))
        return found

    def prepare_folders(self) -> None:
        """Make missing folders, and remove unfinished files of killed writers."""
        for folder in ("chunks", "runs", "scratch", "claims"):
            (self.hidden / folder).mkdir(exist_ok=True)
        for path in (self.hidden / "scratch").iterdir():
            if atomic_files.is_abandoned(path):
                path.unlink(missing_ok=True)
        shutil.rmtree(self.hidden / "staged", ignore_errors=True)  # of versions before 3

    def _write(self, path: Path, data: bytes) -> None:
        folder = path.parent
        if folder.resolve() != self.path.resolve() / folder.relative_to(self.path):
            raise refused(self.path, folder)
        try:
            atomic_files.write(path, data, self.hidden / "scratch")
        except OSError as error:
            raise SweepError(
                f"{self.path}: cannot be written to ({error.strerror}). {len(self.finished())} "
                "finished chunks are safe; make room (or make it writable) and resume."
            ) from error

    def _manifest(self, number: int) -> Path:
        return self.hidden / "chunks" / f"{number:08d}.json"


def create(
    path: Path,
    plan: Plan,
    description: dict[str, Any],
    arrays: dict[str, np.ndarray],
    attributes: dict[str, Any],
) -> Store:
    """Make a new store at `path`, which must be missing or an empty folder.

    After an error there is no store at `path`.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise SweepError(f"{path}: is not an empty folder; choose another. Nothing was changed.")
    target = Path(os.path.realpath(path))  # a link stays a link
    building = target.with_name(atomic_files.unique(f".{target.name}.building"))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for left in target.parent.glob(f".{target.name}.building*"):
            if atomic_files.is_abandoned(left):
                shutil.rmtree(left, ignore_errors=True)
        building.mkdir()
        _fill(building, plan, description, arrays, attributes)
        if os.name != "posix" and target.exists():
            target.rmdir()
        os.rename(building, target)
        atomic_files.flush_folder(target.parent)
    except (OSError, KeyboardInterrupt) as error:
        shutil.rmtree(building, ignore_errors=True)
        if isinstance(error, KeyboardInterrupt):
            raise
        raise SweepError(
            f"{path}: cannot be made ({error.strerror or error}); choose a folder on a disk that "
            "has room and can be written to. Nothing was changed."
        ) from error
    return Store(path)


def _fill(building: Path, plan: Plan, description, arrays, attributes) -> None:
    """Write all files of a store without chunks."""
    whole, arrays, files = described(plan, description, arrays, attributes)
    hidden = building / _HIDDEN
    for folder in ("chunks", "runs", "scratch", "claims"):
        (hidden / folder).mkdir(parents=True)
    files = {**files, f"{_HIDDEN}/arrays.npz": arrays}
    for name, data in {**files, f"{_HIDDEN}/sweep.json": sealed.sealed(whole)}.items():
        file = building / name
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("wb") as opened:
            opened.write(data)
            opened.flush()
            os.fsync(opened.fileno())


def described(
    plan: Plan,
    description: dict[str, Any],
    arrays: dict[str, np.ndarray],
    attributes: dict[str, Any],
) -> tuple[dict[str, Any], bytes, dict[str, bytes]]:
    """(the whole description of a store, the bytes of `arrays.npz`, the skeleton's files)."""
    found = skeleton.coordinates(plan)
    values = {about["name"]: about["values"] for about in found}
    texts, long = describe(values)
    kept = [{**about, "values": texts["map"][about["name"]]} for about in found]
    about = {
        "attributes": attributes,
        "coordinates": kept,
        "variables": skeleton.variables(plan),
    }
    files = skeleton.build(about, values)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{**arrays, **long})  # pyright: ignore
    data = buffer.getvalue()
    checksums = {name: atomic_files.sha256(content) for name, content in files.items()}
    whole = {"format": FORMAT, **description, **about, "skeleton": checksums}
    return {**whole, "arrays": atomic_files.sha256(data)}, data, files


def holds_sweep(path: Path) -> bool:
    """Whether `path` holds a store."""
    return (path / _HIDDEN / "sweep.json").exists()


def _written_by(description: dict[str, Any]) -> str:
    versions = description.get("versions")
    by = versions.get("lintensor_jax") if isinstance(versions, dict) else None
    return by if isinstance(by, str) else "of another version"


def _short(value: Any) -> str:
    return repr(value)[:40]


def _is_description(about: dict[str, Any], is_sealed: bool) -> bool:
    """Whether all entries that this package reads exist and have the right types."""
    kinds = {"sweep": dict, "plan": dict, "versions": dict, "digest": str, "dtype": str}
    if is_sealed:
        kinds |= {"skeleton": dict, "arrays": str, "coordinates": list, "variables": list}
    if not all(isinstance(about.get(key), kind) for key, kind in kinds.items()):
        return False
    sweep, plan = about["sweep"], about["plan"]
    inner = sweep.get("options")
    counts = [plan.get(key) for key in ("chunks", "lanes", "width", "padded")]
    names = about.get("skeleton", {}).items()
    return (
        isinstance(inner, dict)
        and isinstance(inner.get("fields"), dict)
        and "observables" in inner["fields"]
        and "grid" in sweep
        and all(type(count) is int and 0 < count < 2**40 for count in counts)
        and isinstance(plan.get("box"), list)
        and all(type(size) is int and size > 0 for size in plan["box"])
        and all(isinstance(text, str) and is_inside(name) for name, text in names)
        and isinstance(about.get("config"), dict | None)
        and isinstance(about.get("source"), str | None)
        and all(isinstance(version, str) for version in about["versions"].values())
    )


def is_inside(name: str) -> bool:
    """Whether a name of a file stays in the folder of the store."""
    parts = name.split("/")
    return all(part not in ("", ".", "..") and "\\" not in part for part in parts)


def size_on_disk(path: Path) -> int:
    """The sum of the sizes of all files in a folder, in bytes."""
    total = 0
    for file in path.rglob("*"):
        with contextlib.suppress(OSError):  # another process has removed it
            total += file.stat().st_size if file.is_file() else 0
    return total

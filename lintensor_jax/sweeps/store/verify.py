"""A check of every file of a store against its checksum."""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import sealed
from .errors import LinkInStore, SweepError
from .store import Store, is_inside

_TRANSIENT = ("scratch", "claims")


@dataclasses.dataclass(frozen=True)
class Verification:
    """The result of `verify`; `print` shows it in words.

    - `files`: the number of files that were compared with their checksums.
    - `damaged`: what is wrong, by the names of missing, changed or foreign files.
    - `unchecked`: names of files without a checksum: files that other programs wrote, and in stores
      of formats 1 and 2 labels and metadata.
    - `chunks`, `finished_chunks`: the number of chunks of the sweep, and of finished ones.
    """

    path: Path
    files: int
    damaged: dict[str, str]
    unchecked: tuple[str, ...]
    chunks: int
    finished_chunks: int

    @property
    def sound(self) -> bool:
        """Whether nothing is damaged."""
        return not self.damaged

    def as_json(self) -> dict[str, Any]:
        """The fields as plain values for JSON."""
        return {**vars(self), "path": str(self.path), "sound": self.sound}

    def __str__(self) -> str:
        """The numbers of files, and each damaged file with what is wrong."""
        lines = [
            f"{self.path}: {self.files:,} files compared with their checksums, "
            f"{len(self.damaged):,} damaged; {self.finished_chunks:,} of {self.chunks:,} chunks "
            "are finished"
        ]
        lines += [f"  {name}: {why}" for name, why in self.damaged.items()]
        if self.damaged:
            lines.append(f"lintensor-jax resume {self.path} makes or computes again what it can")
        if self.unchecked:
            first = ", ".join(self.unchecked[:3])
            lines.append(f"without a checksum: {len(self.unchecked):,} files ({first} ...)")
        return "\n".join(lines)


def verify(path: str | os.PathLike) -> Verification:
    """Compare every file of a store with its checksum: labels, metadata, chunks, notes.

    Nothing is changed, and no array is decoded. **Raises** `SweepError` if there is no store.
    """
    path = Path(path)
    damaged: dict[str, str] = {}
    try:
        store = Store(path)
    except LinkInStore:
        raise
    except SweepError as error:
        if not (path / ".sweep" / "sweep.json").is_file() or "store format" in str(error):
            raise
        return Verification(path, 1, {".sweep/sweep.json": _why(path, error)}, (), 0, 0)
    known = {".sweep/sweep.json"}
    if store.is_sealed:
        known |= {".sweep/arrays.npz", *store.description["skeleton"]}
        damaged |= {name: "is missing or changed" for name in store.skeleton_damage()}
        try:
            _ = store.arrays
        except SweepError as error:
            damaged[".sweep/arrays.npz"] = _why(path, error)
    finished = store.finished()
    for number in sorted(finished):
        name = f".sweep/chunks/{number:08d}.json"
        known.add(name)
        if fault := store.damage(number):
            file, _, why = fault.partition(" ")
            damaged[file] = f"is {why.strip('()') or 'changed'} (chunk {number})"
        else:
            known |= set(store.manifest(number)["files"])
    known |= damaged.keys()
    notes, faults = _notes(store)
    known |= notes
    damaged |= faults
    unchecked = tuple(name for name in _files(path) if name not in known)
    return Verification(
        path, len(known), damaged, unchecked, store.description["plan"]["chunks"], len(finished)
    )


def _why(path: Path, error: Exception) -> str:
    return str(error).removeprefix(f"{path}: ")


def _notes(store: Store) -> tuple[set[str], dict[str, str]]:
    """(names of notes and of reports and figures, what is wrong by the names of damaged ones)."""
    found: set[str] = set()
    faults: dict[str, str] = {}
    for file in sorted([*store.hidden.glob("runs/*"), *store.hidden.glob("files/*")]):
        name = file.relative_to(store.path).as_posix()
        found.add(name)
        try:
            content = sealed.read(file, must_be_sealed=store.is_sealed)
        except (OSError, ValueError) as error:
            faults[name] = str(error)
            continue
        files = content.get("files") if file.parent.name == "files" else {}
        for inner, checksum in files.items() if isinstance(files, dict) else ():
            found.add(inner)
            if not is_inside(inner) or store.damage_of(inner, checksum) is not None:
                faults[inner] = "is missing or changed; report or plot writes it again"
    return found, faults


def _files(path: Path) -> Iterator[str]:
    """Names of all files of a store, except claims and unfinished files of writers."""
    for folder, inner, files in os.walk(path):
        where = Path(folder).relative_to(path)
        if where.parts == (".sweep",):
            inner[:] = [name for name in inner if name not in _TRANSIENT]
        for name in files:
            yield (where / name).as_posix()

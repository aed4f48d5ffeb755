"""The progress of a sweep, read from its store."""

import collections
import dataclasses
from pathlib import Path
from typing import Any

from . import claims
from .store import Store, size_on_disk


@dataclasses.dataclass(frozen=True)
class Status:
    """The progress of a sweep; `print` shows it in words.

    - `lanes`, `finished_lanes`, `chunks`, `finished_chunks`: numbers of lanes and chunks.
    - `damaged`: for each damaged chunk the name of a damaged file.
    - `damaged_labels`: missing or changed files of labels and metadata.
    - `statuses`: numbers of finished lanes by the reason of their end; `failed`: of failed lanes.
    - `stiff_lanes`: the number of lanes that exceeded the explicit budget.
    - `waste`: executed explicit steps / needed ones; None if there are no steps.
    - `writers`: the processes that compute chunks now, as {"pid", "host", "chunk"}.
    - `bytes`: size on disk; `notes`: messages of failed lanes, by lane; `runs`: facts of each run.
    """

    path: Path
    lanes: int
    finished_lanes: int
    chunks: int
    finished_chunks: int
    damaged: dict[int, str]
    damaged_labels: list[str]
    statuses: dict[str, int]
    failed: dict[str, int]
    stiff_lanes: int
    waste: float | None
    writers: list[dict[str, Any]]
    bytes: int
    runs: list[dict[str, Any]]
    notes: dict[str, str]
    description: dict[str, Any]

    @property
    def complete(self) -> bool:
        """Whether every chunk is finished and undamaged."""
        return self.finished_chunks == self.chunks and not (self.damaged or self.damaged_labels)

    def as_json(self) -> dict[str, Any]:
        """The fields as plain values for JSON, without the sweep's description."""
        kept = {**vars(self), "complete": self.complete, "path": str(self.path)}
        del kept["description"]
        return {**kept, "versions": self.description["versions"]}

    def __str__(self) -> str:
        """The progress, how flows ended, and the command that computes the rest."""
        share = 100 * self.finished_lanes / self.lanes
        rows = [
            (
                "lanes",
                f"{self.finished_lanes:,} of {self.lanes:,} done ({share:.0f}%); a lane is one "
                "flow, from one point of the grid",
            ),
            (
                "chunks",
                f"{self.finished_chunks:,} of {self.chunks:,}; a chunk is some lanes that are "
                "computed and saved together",
            ),
            ("ended by", _counted(self.statuses, "-")),
            ("failed", _counted(self.failed, "none")),
            ("stiff path", f"{self.stiff_lanes:,} lanes over the budget of explicit steps"),
        ]
        if self.waste is not None:
            rows.append(("steps", f"{self.waste:.2f} times the needed steps were executed"))
        rows.append(("on disk", in_bytes(self.bytes)))
        again = f"lintensor-jax resume {self.path}"
        if damaged := [*self.damaged_labels, *self.damaged.values()]:
            rows.append(("damaged", ", ".join(damaged)))
            rows.append(("", f"{again} computes it again"))
        elif not self.writers and not self.complete:
            rows.append(("unfinished", f"{again} computes the rest"))
        lines = [f"Sweep in {self.path}: {self._stage}"]
        return "\n".join([*lines, *(f"  {name:11s} {value}" for name, value in rows)])

    @property
    def _stage(self) -> str:
        who = list(dict.fromkeys((w["pid"], w["host"]) for w in self.writers))
        if who:
            more = f" and {len(who) - 1:,} more" if len(who) > 1 else ""
            return f"being computed by process {who[0][0]} on {who[0][1]}{more}"
        if self.damaged or self.damaged_labels:
            return "damaged"
        return "finished" if self.complete else "unfinished"


def status(path: str | Path, verify: bool = True) -> Status:
    """The state of a store; with `verify`, all files are compared with their checksums.

    Raises `SweepError` if there is no store, or if a newer version wrote it.
    """
    store = Store(Path(path))
    finished = sorted(store.finished())
    damaged = {n: why for n in finished if (why := store.damage(n))} if verify else {}
    manifests = []
    for number in finished:
        if number not in damaged:
            try:
                manifests.append(store.manifest(number))
            except (OSError, ValueError):
                damaged[number] = f".sweep/chunks/{number:08d}.json"
    statuses, failed = collections.Counter(), collections.Counter()
    notes: dict[str, str] = {}
    for manifest in manifests:
        statuses.update(manifest["statuses"])
        failed.update(manifest["failed"])
        notes |= manifest["notes"]
    needed = sum(manifest["needed_steps"] for manifest in manifests)
    executed = sum(manifest["executed_steps"] for manifest in manifests)
    plan = store.description["plan"]
    return Status(
        path=store.path,
        lanes=plan["lanes"],
        finished_lanes=sum(manifest["lanes"] for manifest in manifests),
        chunks=plan["chunks"],
        finished_chunks=len(finished) - len(damaged),
        damaged=damaged,
        damaged_labels=store.skeleton_damage() if verify else [],
        statuses=dict(statuses.most_common()),
        failed=dict(failed.most_common()),
        stiff_lanes=sum(manifest["stiff_lanes"] for manifest in manifests),
        waste=executed / needed if needed else None,
        writers=claims.live(store.hidden),
        bytes=size_on_disk(store.path),
        runs=store.notes("runs"),
        notes=notes,
        description=store.description,
    )


def _counted(numbers: dict[str, int], nothing: str) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in numbers.items()) or nothing


def in_bytes(count: float) -> str:
    """A number of bytes with a unit, such as "1.5 MiB"."""
    for unit_name in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit_name}" if unit_name == "B" else f"{count:.1f} {unit_name}"
        count /= 1024
    return f"{count:.1f} TiB"

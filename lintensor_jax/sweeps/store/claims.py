"""Claims: which process computes which chunk now. They avoid double work; results do not need them.

A claim is a file `claims/N.json` whose modification time its process updates every 10 seconds. A
claim is void if it was not updated for two minutes, or if its process on this host has ended. Two
processes that compute the same chunk write the same bytes, so that an ignored claim does no harm.
"""

import contextlib
import json
import os
import platform
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import atomic_files

LEASE = 120.0  # a claim is void if it was not updated for this many seconds
_TOUCH = 10.0


def live(folder: Path) -> list[dict[str, Any]]:
    """The claims that are not void, as {"pid", "host", "chunk"}, by chunk."""
    found = []
    for path in sorted((folder / "claims").glob("*.json")):
        if path.stem.isdigit() and (owner := _owner(path)):
            found.append({**owner, "chunk": int(path.stem)})
    return found


class Claims:
    """The claims of this process; a thread updates their modification times."""

    def __init__(self, folder: Path):
        self._folder = folder / "claims"
        self._mine: set[Path] = set()
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._touch, daemon=True)

    def __enter__(self) -> "Claims":
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._ended.set()
        with self._lock:
            left, self._mine = self._mine, set()
        for path in left:
            with contextlib.suppress(OSError):
                path.unlink()

    @contextlib.contextmanager
    def of(self, number: int) -> Iterator[bool]:
        """Claim a chunk: True if this process has it, False if another process computes it now."""
        path = self._folder / f"{number:08d}.json"
        taken = self._take(path)
        try:
            yield taken
        finally:
            if taken:
                with self._lock:
                    self._mine.discard(path)
                with contextlib.suppress(OSError):
                    path.unlink()

    def _take(self, path: Path) -> bool:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if path.exists() and _owner(path) is None:
                path.unlink(missing_ok=True)
            with path.open("x") as file:
                json.dump({"pid": os.getpid(), "host": platform.node()}, file)
        except FileExistsError:
            return False
        except OSError:
            return True  # without a claim the chunk may be computed twice, which does no harm
        with self._lock:
            self._mine.add(path)
        return True

    def _touch(self) -> None:
        while not self._ended.wait(_TOUCH):
            with self._lock:
                mine = list(self._mine)
            for path in mine:
                with contextlib.suppress(OSError):
                    os.utime(path)


def _owner(path: Path) -> dict[str, Any] | None:
    """The process of a claim; None if the claim is void."""
    try:
        age = time.time() - path.stat().st_mtime
        text = path.read_text()
    except OSError:
        return None
    if age > LEASE:
        return None
    try:
        owner = json.loads(text)
        pid, host = int(owner["pid"]), str(owner["host"])
    except (ValueError, KeyError, TypeError):
        return {"pid": 0, "host": "unknown"}  # it is being written
    if host == platform.node() and not atomic_files.is_running(pid):
        return None
    return {"pid": pid, "host": host}

"""At most one writer of a store: a lock file with its process, locked by the system."""

import contextlib
import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import SweepError

_NAME = "lock"


def owner(folder: Path) -> dict[str, Any] | None:
    """The process that writes to the store now, as {"pid", "host"}; None if there is none."""
    path = folder / _NAME
    with contextlib.suppress(OSError), path.open("rb") as file:
        holder = _read(file)
        if holder and (holder["host"] != platform.node() or not _lock(file, shared=True)):
            return holder
    return None


@contextlib.contextmanager
def held(folder: Path, store: Path) -> Iterator[None]:
    """Hold the lock. A `SweepError` names another process that holds it.

    The system frees the lock of a process that ends for any reason, so that a stale file on this
    host does no harm.
    """
    path = folder / _NAME
    try:
        file = open(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b")  # noqa: SIM115
    except OSError as error:
        raise SweepError(
            f"{store}: cannot be written to ({error.strerror}); make it writable, or copy it to "
            "a writable folder. Nothing was changed."
        ) from None
    with file:
        holder = _read(file)
        elsewhere = holder is not None and holder["host"] != platform.node()
        if elsewhere or not _lock(file):
            who = f"process {holder['pid']} on {holder['host']}" if holder else "another process"
            fix = (
                f"if that process is dead, delete {path}"
                if elsewhere
                else "wait for it, or stop it: its finished chunks are kept"
            )
            raise SweepError(f"{store}: is being written by {who}; {fix}.")
        file.seek(0)
        file.truncate()
        file.write(json.dumps({"pid": os.getpid(), "host": platform.node()}).encode())
        file.flush()
        try:
            yield
        finally:
            # Emptied, not removed: a second process may have opened the same file.
            with contextlib.suppress(OSError):
                file.seek(0)
                file.truncate()


def _lock(file, shared: bool = False) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows
        return _lock_by_region(file)
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _lock_by_region(file) -> bool:
    import msvcrt

    file.seek(2**30)  # beyond the text, so that other processes can read it
    try:
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # pyright: ignore
    except OSError:
        return False
    finally:
        file.seek(0)
    return True


def _read(file) -> dict[str, Any] | None:
    file.seek(0)
    with contextlib.suppress(ValueError):
        holder = json.loads(file.read())
        if isinstance(holder, dict) and {"pid", "host"} <= set(holder):
            return holder
    return None

"""One writer a store: a lock file with the writer's process, held by the operating system."""

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
    """The process that writes to the store now, or None; {"pid", "host"}."""
    path = folder / _NAME
    with contextlib.suppress(OSError), path.open("rb") as file:
        told = _read(file)
        if told and (told["host"] != platform.node() or not _lock(file, shared=True)):
            return told
    return None


@contextlib.contextmanager
def held(folder: Path, store: Path) -> Iterator[None]:
    """Hold the lock; a `SweepError` names the process that has it.

    The system frees the lock of a process that dies, however it dies, so that a stale file on this
    host is found and taken over.
    """
    path = folder / _NAME
    try:
        file = open(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b")  # noqa: SIM115
    except OSError as error:
        raise SweepError(
            f"{store}: cannot be written to ({error.strerror}); make it writable, or copy it to "
            "where it is. Nothing was changed."
        ) from None
    with file:
        told = _read(file)
        elsewhere = told is not None and told["host"] != platform.node()
        if elsewhere or not _lock(file):
            who = f"process {told['pid']} on {told['host']}" if told else "another process"
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
            # Emptied, not removed: a second process may have opened this very file by now.
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

    file.seek(2**30)  # beyond what is written, so that others can still read who holds it
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
        told = json.loads(file.read())
        if isinstance(told, dict) and {"pid", "host"} <= set(told):
            return told
    return None

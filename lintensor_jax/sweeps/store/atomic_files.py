"""Files that are complete or absent, even after a power failure."""

import contextlib
import hashlib
import os
import platform
import time
import uuid
from os import replace
from pathlib import Path

# Seconds; the writer of an older temporary file on another host is taken as dead.
_ABANDONED_AFTER = 86_400.0
_open: set[str] = set()  # names that this process is writing


def sha256(data: bytes) -> str:
    """The checksum of a file's bytes."""
    return hashlib.sha256(data).hexdigest()


def write(path: Path, data: bytes, scratch: Path) -> None:
    """Write a file by way of `scratch`, a folder on the same file system.

    The data are flushed to the disk before the file is renamed to `path`. So the file at `path` is
    complete, even if processes on several hosts write it at the same time. Missing folders are
    made.
    """
    name = unique(path.name)
    temporary = scratch / name
    _open.add(name)
    try:
        try:
            file = temporary.open("wb")
        except FileNotFoundError:
            scratch.mkdir(parents=True, exist_ok=True)
            file = temporary.open("wb")
        with file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        try:
            replace(temporary, path)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace(temporary, path)
    except (OSError, KeyboardInterrupt):
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    finally:
        _open.discard(name)


def unique(name: str) -> str:
    """A unique name: `name` with random digits, the host and the process id."""
    host = "".join(c if c.isalnum() else "_" for c in platform.node())
    return f"{name}.{uuid.uuid4().hex[:12]}.{host}.{os.getpid()}"


def is_abandoned(path: Path) -> bool:
    """Whether the process that gave `path` its unique name has ended.

    For a process of this host, the operating system is asked. A process of another host counts as
    ended if the file is older than a day.
    """
    *_, host, pid = ["", "", *path.name.rsplit(".", 2)]
    if unique("").rsplit(".", 2)[1] != host or not pid.isdigit():
        with contextlib.suppress(OSError):
            return time.time() - path.stat().st_mtime > _ABANDONED_AFTER
        return False
    return path.name not in _open if int(pid) == os.getpid() else not is_running(int(pid))


def is_running(pid: int) -> bool:
    """Whether a process with this id runs on this host; True if that is not known."""
    if os.name != "posix":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass
    return True


def flush_folder(path: Path) -> None:
    """Flush the entries of a folder (names of new files) to the disk."""
    if os.name != "posix":
        return  # Windows has no such call
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Files that are complete or absent, even after a power failure."""

import contextlib
import hashlib
import os
from os import replace
from pathlib import Path


def sha256(data: bytes) -> str:
    """The checksum of a file's bytes."""
    return hashlib.sha256(data).hexdigest()


def write(path: Path, data: bytes, scratch: Path) -> None:
    """Write a file by way of `scratch`, a folder on the same file system.

    The data are flushed to the disk before the file gets its name. A named file is complete.
    """
    temporary = scratch / f"{path.name}.{os.getpid()}"
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def flush_folder(path: Path) -> None:
    """Flush the names in a folder to the disk."""
    if os.name != "posix":
        return  # Windows has no such call
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

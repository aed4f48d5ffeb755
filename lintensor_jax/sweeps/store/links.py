"""Links in a store are refused: they could lead out of its folder."""

import os
from pathlib import Path

from .errors import LinkInStore


def refuse_links(path: Path, folder: Path, deep: bool = False) -> None:
    """Raise a `LinkInStore` if `folder`, a folder of the store `path`, has a link.

    With `deep`, also for links in the folders inside of it. A missing folder has no links.
    """
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        if entry.is_symlink():
            raise refused(path, Path(entry.path))
        if deep and entry.is_dir(follow_symlinks=False):
            refuse_links(path, Path(entry.path), deep)


def refused(path: Path, link: Path) -> LinkInStore:
    """The error for a link, or for a file behind one."""
    return LinkInStore(
        f"{path}: {os.path.relpath(link, path)} is a link, which could lead out of the store; copy "
        "the folder with files in place of links. The link was not followed."
    )

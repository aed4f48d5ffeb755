"""Manifests: the facts that a store keeps about a finished chunk, and the check of their form."""

import re
from typing import Any

_COUNTS = ("lanes", "stiff_lanes", "executed_steps", "needed_steps")
_TABLES = ("statuses", "failed")
# `limit/c/1/0/0` in Zarr v3, `limit/1.0.0` in Zarr v2.
_FILE = {3: re.compile(r"[A-Za-z]\w*/c(/\d+)*"), 2: re.compile(r"[A-Za-z]\w*/\d+(\.\d+)*")}


def is_manifest(content: dict[str, Any], number: int, store_format: int) -> bool:
    """Whether a file's content is a manifest of chunk `number` that names files of arrays only."""
    files = content.get("files")
    name = _FILE[3 if store_format >= 3 else 2]
    return (
        content.get("chunk") == number
        and all(type(content.get(key)) is int and content[key] >= 0 for key in _COUNTS)
        and all(_is_table(content.get(key), int) for key in _TABLES)
        and _is_table(content.get("notes"), str)
        and isinstance(files, dict)
        and all(name.fullmatch(file) for file in files)
        and _is_table(files, str)
    )


def _is_table(value: Any, kind: type) -> bool:
    return isinstance(value, dict) and all(type(item) is kind for item in value.values())

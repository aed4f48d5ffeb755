"""JSON files that end with the checksum of their own bytes, so that a changed bit is found."""

import hashlib
import json
from pathlib import Path
from typing import Any

_KEY = b', "sha256": "'
_TAIL = len(_KEY) + 64 + len(b'"}')


class Damaged(ValueError):
    """A file's bytes are not those that were written."""


def sealed(content: dict[str, Any]) -> bytes:
    """`content` (not empty) as JSON; its last entry is the checksum of all bytes before."""
    body = json.dumps(content).encode()[:-1]
    return body + _KEY + hashlib.sha256(body).hexdigest().encode() + b'"}'


def read(path: Path, must_be_sealed: bool = True) -> dict[str, Any]:
    """The content of a file, without its checksum.

    Raises `Damaged` if the checksum is wrong, if it is missing although `must_be_sealed`, or if the
    content is not a JSON object. Raises OSError if the file cannot be read.
    """
    data = path.read_bytes()
    body = data[:-_TAIL]
    if data[-_TAIL:] == _KEY + hashlib.sha256(body).hexdigest().encode() + b'"}':
        data = body + b"}"
    elif must_be_sealed or _KEY in data[-_TAIL:]:
        raise Damaged("its checksum does not fit its content")
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"it is not JSON ({type(error).__name__})") from None
    if not isinstance(content, dict):
        raise Damaged("it is not a JSON object")
    return content

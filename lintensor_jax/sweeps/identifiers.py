"""Names of axes, dimensions and variables. Each one is also the name of a folder in the store."""

import re
from typing import Any

from ..messages import in_words

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_LONGEST = 100


def require_identifier(name: Any, where: str, reserved: tuple[str, ...] = ()) -> None:
    """Raise a ValueError unless `name` is a word such as "alpha" that is not reserved.

    `where`: words for the error message, which say whose name it is.
    """
    if (
        isinstance(name, str)
        and len(name) <= _LONGEST
        and _NAME.fullmatch(name)
        and name not in reserved
    ):
        return
    rest = f" and none of {', '.join(reserved)}" if reserved else ""
    raise ValueError(
        f"{where} must be an identifier{rest}, got {in_words(name)}; use at most {_LONGEST} "
        "letters, digits and _, and start with a letter."
    )

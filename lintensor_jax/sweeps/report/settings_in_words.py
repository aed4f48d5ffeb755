"""The settings of a sweep as rows of a table; settings without a value have no row."""

import json
from collections.abc import Iterator
from typing import Any

_LONGEST = 100  # longest list that is written out, in characters


def settings(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Pairs (dotted name, value) of a configuration or of a `store.description`."""
    match value:
        case None | "" | {"...": _}:
            return
        case {"array": values}:
            yield name, _list(values) if isinstance(values, list) else "a long array"
        case {"float": text}:
            yield name, text
        case {"function": kind}:
            yield name, _last(kind)
        case {"is": kind, **about} | {"own": _, "name": kind, **about}:
            yield name, _last(kind)
            yield from settings(about.get("fields", {}), name)
        case {"tuple": items}:
            yield from _items(items, name)
        case {"map": items}:
            yield from settings(items, name)
        case dict():
            for key, item in value.items():
                yield from settings(item, f"{name}.{key}" if name else key)
        case list():
            yield from _items(value, name)
        case _:
            yield name, value if isinstance(value, str) else json.dumps(value)


def _items(items: list, name: str) -> Iterator[tuple[str, str]]:
    if not any(isinstance(item, dict) for item in items):
        if items:
            yield name, _list(items)
        return
    for index, item in enumerate(items):
        yield from settings(item, f"{name}[{index}]")


def _list(values: list) -> str:
    text = json.dumps(values)
    if len(text) <= _LONGEST:
        return text
    if isinstance(values[0], list):
        return f"{len(values)} rows of {len(values[0])}"
    return f"{len(values)} values"


def _last(name: str) -> str:
    """The last part of a name: `Regression` for `lintensor_jax.problems:Regression`."""
    return name.rpartition(":")[2].rpartition(".")[2] if "<locals>" not in name else name

"""Descriptions of grids: plain JSON to compare, to store and to rebuild them.

Arrays, numbers, words, containers, dataclasses and Equinox modules are described field by field.
The package's public classes and functions are described by their names in `names.Registry`, and can
be rebuilt. User-defined classes and functions are described by their name and a hash of their code
and of the objects that the code refers to. They can be compared, but not rebuilt: the user has to
pass them again.
"""

import dataclasses
import functools
import hashlib
import inspect
import json
import types
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .names import FORMAT, Registry, is_ours

_CONTAINERS = {
    "fields",
    "tuple",
    "map",
    "own",
    "is",
    "function",
}  # keys that are left out of the paths of differences
#: The first format of stores with a field, for fields (with defaults) that were added after
#: format 1.
_FIRST_FORMAT = {("Regression", "residual_loss"): 2, ("RandomData", "loss"): 3}
_FIRST_FORMAT |= {("Regression", "bias"): 3, ("Classification", "bias"): 3}
# The first stores of format 3 do not have this field. It is written only if it is not the default.
_FIRST_FORMAT |= {("Options", "descent"): 4}
_INLINE = 64  # longest array that is written out; longer ones are described by their hash


class NotRebuildable(ValueError):
    """A description has a user-defined class or function, which the user has to pass again."""


class NameNotInRegistry(ValueError):
    """A description has a name that is not in the registry: of a class, function or field."""


@dataclasses.dataclass(frozen=True)
class _Writer:
    """The registry of names, and the long arrays that were found so far, by their hashes."""

    registry: Registry
    arrays: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)


def describe(value: Any, store_format: int = FORMAT) -> tuple[Any, dict[str, np.ndarray]]:
    """(plain JSON that describes `value`, its long arrays by their hashes)."""
    writer = _Writer(Registry(store_format))
    return _described(value, writer, ()), writer.arrays


def digest(description: Any) -> str:
    """A SHA-256 hash of a description."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """Dotted paths at which two descriptions differ; an array counts as one path."""
    if a == b:
        return []
    if isinstance(a, dict) and isinstance(b, dict) and "array" not in a:
        keys = [key for key in dict.fromkeys([*a, *b]) if a.get(key) != b.get(key)]
        inner = set(keys) & _CONTAINERS
        paths = [(key, where if key in inner else f"{where}.{key}") for key in keys]
        return [p for key, path in paths for p in differences(a.get(key), b.get(key), path)]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        pairs = enumerate(zip(a, b, strict=True))
        return [p for i, (x, y) in pairs for p in differences(x, y, f"{where}[{i}]")]
    return [where.removeprefix(".")]


def rebuild(description: Any, arrays: dict[str, np.ndarray], store_format: int = FORMAT) -> Any:
    """The value that was described.

    Nothing is imported, and only functions that make arrays are called. **Raises** `NotRebuildable`
    with the name of the first user-defined part, `NameNotInRegistry` with the first name that is
    not in the registry.
    """
    return _rebuilt(description, arrays, Registry(store_format))


def _rebuilt(description: Any, arrays: dict[str, np.ndarray], registry: Registry) -> Any:
    inner = functools.partial(_rebuilt, arrays=arrays, registry=registry)
    match description:
        case {"array": values, "on": place}:
            kept = isinstance(values, str)
            shape, dtype = description.get("shape"), description.get("dtype")
            array = arrays[values] if kept else np.asarray(values, dtype).reshape(shape)
            return jnp.asarray(array) if place == "device" else array
        case {"float": text}:
            return float(text)
        case {"tuple": list(items)}:
            return tuple(inner(item) for item in items)
        case {"map": dict(items)}:
            return {key: inner(item) for key, item in items.items()}
        case {"...": _}:
            return ...
        case {"own": _, "name": name}:
            raise NotRebuildable(name)
        case {"function": name}:
            return _found(name, registry)
        case {"is": name, "fields": dict(fields)}:
            kind = _found(name, registry)
            if not (inspect.isclass(kind) and dataclasses.is_dataclass(kind)):
                raise NameNotInRegistry(name)
            known = {field.name for field in dataclasses.fields(kind)}
            if unknown := [field for field in fields if field not in known]:
                raise NameNotInRegistry(f"{name}.{unknown[0]}")
            made = object.__new__(kind)
            for field in dataclasses.fields(kind):
                if field.name in fields:
                    object.__setattr__(made, field.name, inner(fields[field.name]))
                elif field.default is not dataclasses.MISSING:  # a field newer than the store
                    object.__setattr__(made, field.name, field.default)
            return made
        case list():
            return [inner(item) for item in description]
        case dict():
            raise NameNotInRegistry(json.dumps(description))
    return description


def _found(name: Any, registry: Registry) -> Any:
    try:
        return registry.find(name)
    except KeyError:
        raise NameNotInRegistry(str(name)) from None


def _described(value: Any, writer: _Writer, seen: tuple) -> Any:
    inner = functools.partial(_described, writer=writer, seen=seen)
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if np.isfinite(value) else {"float": repr(value)}
        case types.EllipsisType():
            return {"...": True}
        case np.ndarray() | np.generic() | jax.Array():
            place = "device" if isinstance(value, jax.Array) else "host"
            return {**_array(np.asarray(value), writer.arrays), "on": place}
        case list():
            return [inner(item) for item in value]
        case tuple():
            return {"tuple": [inner(item) for item in value]}
        case dict():
            return {"map": {str(key): inner(item) for key, item in value.items()}}
        case functools.partial():
            parts = inner((value.func, value.args, value.keywords))
            return {"own": parts, "name": "functools:partial"}
    if inspect.isclass(value):
        public = writer.registry.name(value)
        return {"function": public} if public else _own_class(value, writer, seen)
    if dataclasses.is_dataclass(value):
        fields = {
            field.name: inner(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if hasattr(value, field.name) and not _is_later_default(writer, value, field)
        }
        kind = type(value)
        if public := writer.registry.name(kind):
            return {"is": public, "fields": fields}
        return {**_own_class(kind, writer, seen), "fields": fields}
    label = writer.registry.label
    function = inspect.unwrap(value) if callable(value) else value
    if inspect.isfunction(function):
        public = writer.registry.name(function)
        if public and function.__closure__ is None and "<" not in public:
            return {"function": public}
        if _is_installed(function):
            return {"own": "installed", "name": label(function)}
        return {"own": _code(function, writer, seen), "name": label(function)}
    return {"own": "?", "name": label(type(value))}


def _is_later_default(writer: _Writer, value: Any, field: dataclasses.Field) -> bool:
    """Whether the field is left out: it is newer than the store's format, and has its default."""
    first = _FIRST_FORMAT.get((type(value).__name__, field.name), 1)
    if writer.registry.store_format >= first:
        return False
    return bool(eqx.tree_equal(getattr(value, field.name), field.default))


def _is_installed(value: Any) -> bool:
    """Whether `value` belongs to an installed library; then its name describes it."""
    return "site-packages" in (getattr(inspect.getmodule(value), "__file__", None) or "")


def _array(value: np.ndarray, arrays: dict) -> Any:
    finite = value.dtype.kind != "f" or bool(np.isfinite(value).all())
    if value.size <= _INLINE and finite:
        return {"array": value.tolist(), "dtype": value.dtype.str, "shape": list(value.shape)}
    data = np.ascontiguousarray(value)
    key = hashlib.sha256(f"{data.dtype.str}{data.shape}".encode() + data.tobytes()).hexdigest()
    arrays[key] = data
    return {"array": key}


def _own_class(kind: type, writer: _Writer, seen: tuple) -> dict[str, Any]:
    if kind in seen:
        return {"own": "recursive", "name": writer.registry.label(kind)}
    if is_ours(kind):
        return {"own": "installed", "name": writer.registry.label(kind)}
    methods = {}
    for name in sorted(vars(kind)):
        member = inspect.getattr_static(kind, name)
        member = getattr(member, "fget", getattr(member, "__func__", member))
        function = inspect.unwrap(getattr(kind, name, member)) if callable(member) else member
        if inspect.isfunction(function) and function.__module__ == kind.__module__:
            methods[name] = _code(function, writer, (*seen, kind))
    return {"own": digest(methods), "name": writer.registry.label(kind)}


def _code(function: Any, writer: _Writer, seen: tuple) -> str:
    """A hash of a function: its code, its defaults, and the objects that the code refers to."""
    if function in seen:
        return "recursive"
    seen = (*seen, function)
    code = function.__code__
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    names = [n for n in _names_in(code) if n in function.__globals__]
    referred = {n: function.__globals__[n] for n in names}
    parts = {
        "code": _code_parts(code),
        "defaults": _described(function.__defaults__, writer, seen),
        "keywords": _described(function.__kwdefaults__, writer, seen),
        "closure": [_referred(cell, writer, seen) for cell in cells],
        "globals": {name: _referred(item, writer, seen) for name, item in sorted(referred.items())},
    }
    return digest(parts)


def _referred(item: Any, writer: _Writer, seen: tuple) -> Any:
    if isinstance(item, types.ModuleType):
        return {"module": item.__name__}
    foreign = getattr(item, "__module__", None)
    is_code = inspect.isclass(item) or inspect.isroutine(item)
    if is_code and foreign not in {getattr(s, "__module__", None) for s in seen}:
        if not is_ours(item):
            return {"from": foreign, "name": getattr(item, "__qualname__", "")}
        module, _, name = writer.registry.label(item).partition(":")
        return {"from": module, "name": name}
    return _described(item, writer, seen)


def _code_parts(code: types.CodeType) -> list[Any]:
    def constant(c):
        if isinstance(c, types.CodeType):
            return _code_parts(c)
        return sorted(map(repr, c)) if isinstance(c, frozenset) else repr(c)

    return [code.co_code.hex(), list(code.co_names), [constant(c) for c in code.co_consts]]


def _names_in(code: types.CodeType) -> set[str]:
    inner = [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return set(code.co_names).union(*map(_names_in, inner))

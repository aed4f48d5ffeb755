"""What a grid is, written down: to compare it, to keep it in a store, and to build it again.

Arrays, numbers, words, containers, dataclasses and Equinox modules are written field by field. The
package's own classes and functions can be built again from that. A user's classes and functions
are known by their name and a hash of their code (with what it refers to): they are compared, and
have to be given again.
"""

import dataclasses
import functools
import hashlib
import importlib
import inspect
import json
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_PACKAGE = __name__.partition(".")[0]
_CONTAINERS = {"fields", "tuple", "map", "own", "is", "function"}  # words of the description only
_INLINE = 64  # numbers of an array that are written out; longer ones go by their hash


class NotRebuildable(ValueError):
    """A description with a class or function that only its owner can give again."""


def describe(value: Any) -> tuple[Any, dict[str, np.ndarray]]:
    """Plain JSON that stands for `value`, and its long arrays by their hashes."""
    arrays: dict[str, np.ndarray] = {}
    return _described(value, arrays, ()), arrays


def digest(description: Any) -> str:
    """A hash of a description."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """Dotted paths at which two descriptions differ; an array is one path."""
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


def rebuild(description: Any, arrays: dict[str, np.ndarray]) -> Any:
    """The value that was described; `NotRebuildable` names the first part that cannot be."""
    match description:
        case {"array": values, "on": place}:
            kept = isinstance(values, str)
            shape, dtype = description.get("shape"), description.get("dtype")
            array = arrays[values] if kept else np.asarray(values, dtype).reshape(shape)
            return jnp.asarray(array) if place == "device" else array
        case {"float": text}:
            return float(text)
        case {"tuple": items}:
            return tuple(rebuild(item, arrays) for item in items)
        case {"map": items}:
            return {key: rebuild(item, arrays) for key, item in items.items()}
        case {"...": _}:
            return ...
        case {"own": _, "name": name}:
            raise NotRebuildable(name)
        case {"function": name}:
            return _found(name)
        case {"is": name, "fields": fields}:
            kind = _found(name)
            made = object.__new__(kind)
            for field, item in fields.items():
                object.__setattr__(made, field, rebuild(item, arrays))
            return made
        case list():
            return [rebuild(item, arrays) for item in description]
    return description


def _found(name: str) -> Any:
    module, _, path = name.partition(":")
    if module.partition(".")[0] not in (_PACKAGE, "diffrax"):
        raise NotRebuildable(name)
    return functools.reduce(getattr, path.split("."), importlib.import_module(module))


def _described(value: Any, arrays: dict, seen: tuple) -> Any:
    inner = functools.partial(_described, arrays=arrays, seen=seen)
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if np.isfinite(value) else {"float": repr(value)}
        case types.EllipsisType():
            return {"...": True}
        case np.ndarray() | np.generic() | jax.Array():
            place = "device" if isinstance(value, jax.Array) else "host"
            return {**_array(np.asarray(value), arrays), "on": place}
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
        return {"function": _name(value)} if _is_ours(value) else _own_class(value, arrays, seen)
    if dataclasses.is_dataclass(value):
        fields = {
            field.name: inner(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if hasattr(value, field.name)
        }
        kind = type(value)
        if _is_ours(kind):
            return {"is": _name(kind), "fields": fields}
        return {**_own_class(kind, arrays, seen), "fields": fields}
    function = inspect.unwrap(value) if callable(value) else value
    if inspect.isfunction(function):
        if _is_ours(function) and function.__closure__ is None and "<" not in _name(function):
            return {"function": _name(function)}
        if _is_installed(function):
            return {"own": "installed", "name": _name(function)}
        return {"own": _code(function, arrays, seen), "name": _name(function)}
    return {"own": "?", "name": _name(type(value))}


def _is_ours(value: Any) -> bool:
    return value.__module__.partition(".")[0] in (_PACKAGE, "diffrax")


def _is_installed(value: Any) -> bool:
    """Whether it is some library's, which its name and the versions tell."""
    return "site-packages" in (getattr(inspect.getmodule(value), "__file__", None) or "")


def _name(value: Any) -> str:
    kind = type(value)
    module = getattr(value, "__module__", None) or kind.__module__
    return f"{module}:{getattr(value, '__qualname__', kind.__qualname__)}"


def _array(value: np.ndarray, arrays: dict) -> Any:
    finite = value.dtype.kind != "f" or bool(np.isfinite(value).all())
    if value.size <= _INLINE and finite:
        return {"array": value.tolist(), "dtype": value.dtype.str, "shape": list(value.shape)}
    data = np.ascontiguousarray(value)
    key = hashlib.sha256(f"{data.dtype.str}{data.shape}".encode() + data.tobytes()).hexdigest()
    arrays[key] = data
    return {"array": key}


def _own_class(kind: type, arrays: dict, seen: tuple) -> dict[str, Any]:
    if kind in seen:
        return {"own": "recursive", "name": _name(kind)}
    methods = {}
    for name in sorted(vars(kind)):
        member = inspect.getattr_static(kind, name)
        member = getattr(member, "fget", getattr(member, "__func__", member))
        function = inspect.unwrap(getattr(kind, name, member)) if callable(member) else member
        if inspect.isfunction(function) and function.__module__ == kind.__module__:
            methods[name] = _code(function, arrays, (*seen, kind))
    return {"own": digest(methods), "name": _name(kind)}


def _code(function: Any, arrays: dict, seen: tuple) -> str:
    """A hash of what a function does: its code, its defaults, and what the code refers to."""
    if function in seen:
        return "recursive"
    seen = (*seen, function)
    code = function.__code__
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    names = [n for n in _names_in(code) if n in function.__globals__]
    referred = {n: function.__globals__[n] for n in names}
    parts = {
        "code": _code_parts(code),
        "defaults": _described(function.__defaults__, arrays, seen),
        "keywords": _described(function.__kwdefaults__, arrays, seen),
        "closure": [_referred(cell, arrays, seen) for cell in cells],
        "globals": {name: _referred(item, arrays, seen) for name, item in sorted(referred.items())},
    }
    return digest(parts)


def _referred(item: Any, arrays: dict, seen: tuple) -> Any:
    if isinstance(item, types.ModuleType):
        return {"module": item.__name__}
    foreign = getattr(item, "__module__", None)
    is_code = inspect.isclass(item) or inspect.isroutine(item)
    if is_code and foreign not in {getattr(s, "__module__", None) for s in seen}:
        return {"from": foreign, "name": getattr(item, "__qualname__", "")}
    return _described(item, arrays, seen)


def _code_parts(code: types.CodeType) -> list[Any]:
    def constant(c):
        if isinstance(c, types.CodeType):
            return _code_parts(c)
        return sorted(map(repr, c)) if isinstance(c, frozenset) else repr(c)

    return [code.co_code.hex(), list(code.co_names), [constant(c) for c in code.co_consts]]


def _names_in(code: types.CodeType) -> set[str]:
    inner = [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return set(code.co_names).union(*map(_names_in, inner))

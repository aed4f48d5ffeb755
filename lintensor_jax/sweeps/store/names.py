"""Public names of classes and functions in stores. They do not change if a module is moved.

A name is a public module and what it exports: `lintensor_jax:StopAtMargin`, `diffrax:Tsit5`. A
store can name only classes and functions of the registry in this module. Names are keys of the
registry: no module is imported and no attribute is looked up by a name in a store.
"""

import dataclasses
import functools
import inspect
import sys
from collections.abc import Iterator
from typing import Any

import diffrax

from ...completion import Entries
from ...dynamics.batch.programs import XLA, Native
from ...networks.files import load, save
from ..from_toml.recipes import RandomCompletion, RandomData, Start, WithDecay
from . import format1

FORMAT = 3
READABLE = (1, 2, FORMAT)  # formats of stores

_PACKAGE = __name__.partition(".")[0]
# If several of these modules export a value, it is named after the first one. `lintensor_jax` is
# last, so that a new export from it does not change names in stores.
_PUBLIC_MODULES = tuple(
    _PACKAGE + module for module in (".sweeps", ".initialization", ".theory", "")
)
# Functions that read and write files and folders. Stores must not name them.
_MODULE_WITH_FILE_ACCESS = f"{_PACKAGE}.sweeps"
_OF_FILES = {id(load), id(save)}
#: Classes that stores may name, but that no public module exports.
_NOT_EXPORTED = {
    f"{_PACKAGE}.sweeps:Start": Start,
    f"{_PACKAGE}.sweeps:RandomData": RandomData,
    f"{_PACKAGE}.sweeps:RandomCompletion": RandomCompletion,
    f"{_PACKAGE}.sweeps:WithDecay": WithDecay,
    f"{_PACKAGE}:Entries": Entries,
    f"{_PACKAGE}:Native": Native,
    f"{_PACKAGE}:XLA": XLA,
}


class Registry:
    """Public classes and functions by their names in stores of one format."""

    def __init__(self, store_format: int = FORMAT):
        self.store_format = store_format

    def name(self, value: Any) -> str | None:
        """The name of a class or function in a store; None if it has no name.

        In format 1 all classes and functions of the package and of diffrax have a name.
        """
        name = _names().get(id(value))
        if self.store_format == 1:
            return self.label(value) if is_ours(value) else None
        return name if name in _buildable() else None

    def label(self, value: Any) -> str:
        """A label of any class, function or object: its module and name.

        For a public class or function and for its attributes, this is the public module.
        """
        kind = type(value)
        module = getattr(value, "__module__", None) or kind.__module__
        qualified = getattr(value, "__qualname__", kind.__qualname__)
        outer, dot, inner = qualified.partition(".")
        owner = getattr(sys.modules.get(module), outer, None) if is_ours(value) else None
        public = _names().get(id(_unwrapped(owner)))
        if public is None:
            return f"{module}:{qualified}"
        if self.store_format == 1:
            public = format1.FORMER.get(public, public)
        return f"{public}{dot}{inner}"

    def find(self, name: Any) -> Any:
        """The class or function of a name in a store; KeyError if there is none."""
        if not isinstance(name, str):
            raise KeyError(name)
        return _buildable()[format1.PUBLIC[name] if self.store_format == 1 else name]


def is_ours(value: Any) -> bool:
    """Whether a class or function belongs to this package or to diffrax."""
    return (getattr(value, "__module__", None) or "").partition(".")[0] in (_PACKAGE, "diffrax")


@functools.cache
def _public() -> dict[str, Any]:
    """All classes and functions with a public name, by their names."""
    found = dict(_exports())
    clash = [
        name for name, value in _NOT_EXPORTED.items() if found.setdefault(name, value) is not value
    ]
    assert not clash, clash
    return found


def _exports() -> Iterator[tuple[str, Any]]:
    for module in _PUBLIC_MODULES:
        # Taken from `sys.modules`, since these modules import this one. They are loaded by now.
        for name, value in vars(sys.modules[module]).items():
            inner = _unwrapped(value)
            is_code = inspect.isclass(inner) or inspect.isfunction(inner)
            if name.startswith("_") or not is_code or not is_ours(inner):
                continue
            if module != f"{_PACKAGE}.initialization" or inner.__module__.startswith(module):
                yield f"{module}:{name}", value
    for name, value in vars(diffrax).items():
        if inspect.isclass(value) and issubclass(value, diffrax.AbstractERK):
            yield f"diffrax:{name}", value


@functools.cache
def _names() -> dict[int, str]:
    """{id of a class or function: its name}; ids stay valid, since `_public` keeps the objects."""
    names: dict[int, str] = {}
    for name, value in _public().items():
        names.setdefault(id(_unwrapped(value)), name)
    return names


@functools.cache
def _buildable() -> dict[str, Any]:
    """The values that a store may name: concrete dataclasses, and functions without file access."""
    refused = {
        id(v) for name, v in _public().items() if name.partition(":")[0] == _MODULE_WITH_FILE_ACCESS
    }
    refused |= _OF_FILES
    return {
        name: value
        for name, value in _public().items()
        if (dataclasses.is_dataclass(value) and not inspect.isabstract(value))
        or (not inspect.isclass(value) and id(value) not in refused)
    }


def _unwrapped(value: Any) -> Any:
    return value if inspect.isclass(value) or not callable(value) else inspect.unwrap(value)

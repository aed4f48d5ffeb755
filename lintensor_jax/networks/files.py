"""Networks in files: `save` and `load`.

A file has one line of JSON about the network, and then its arrays as Equinox writes them. `load`
compares the line with the network that the caller passes. Nothing in a file is imported or called.
"""

import dataclasses
import io
import json
import os
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax.core import Tracer

from ..messages import in_words
from .base import Network

_FORMAT = "lintensor_jax network"
_VERSION = 1
_LONGEST_HEADER = 1 << 20
_PLAIN = (bool, int, float, complex)
_STATIC = (bool, int, float, str, type(None))


def save(path: str | os.PathLike[str], network: eqx.Module) -> None:
    """Write all arrays and numbers of `network` to a file; `load` reads it.

    `equinox.tree_serialise_leaves` writes the arrays without rounding, including constants such as
    a data tensor. Functions are not written. An existing file is replaced only after the new one is
    complete.

    **Arguments**

    - `path`: the file. Its name is used as it is; its folder must exist.
    - `network`: any network, of this package or user-defined.

    **Raises** ValueError if `network` is not an `equinox.Module` or has traced arrays, OSError if
    the file cannot be written.
    """
    _require_network(network, "save", "network")
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(network)):
        raise ValueError(
            "save: network must hold concrete arrays, got traced ones; call it outside jit, grad "
            "and vmap."
        )
    file = io.BytesIO()
    file.write(json.dumps(_header(network)).encode() + b"\n")
    eqx.tree_serialise_leaves(file, network)
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        temporary.write_bytes(file.getbuffer())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def load(path: str | os.PathLike[str], like: Network) -> Network:
    """The network in a file that `save` wrote.

    A file holds numbers only. No class or function is looked up, imported or called, so that a file
    from an untrusted source is safe to read. Class, functions and static fields come from `like`.

    **Arguments**

    - `path`: the file.
    - `like`: a network of the same class, shapes and dtypes, such as
      ``lt.DiagonalNetwork.zeros(2, 5)``. Its numbers are not used. It may be made by
      `equinox.filter_eval_shape`.

    **Returns** a copy of `like` with the arrays of the file, bit by bit.

    **Raises** FileNotFoundError if there is no such file. ValueError if `save` did not write the
    file, if it is cut or damaged, or if a class, structure, shape, dtype or static field differs
    from that of `like`.
    """
    _require_network(like, "load", "like")
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"load: path {path}: no such file; check the path.") from None
    file = io.BytesIO(data)
    header = _read_header(file, path)
    _compare(header, _header(like), path)
    try:
        network = eqx.tree_deserialise_leaves(file, like)
    except (ValueError, EOFError, OSError, RuntimeError) as error:
        raise ValueError(
            f"load: path {path}: the arrays are cut or damaged ({_first_line(error)}); save the "
            "network again."
        ) from None
    if file.tell() != len(data):
        raise ValueError(
            f"load: path {path}: {len(data) - file.tell()} bytes too many after the arrays; save "
            "the network again."
        )
    return network


def _require_network(value: Any, owner: str, name: str) -> None:
    if not isinstance(value, eqx.Module):
        raise ValueError(
            f"{owner}: {name} must be a network, an equinox.Module, got {in_words(value)}."
        )


def _header(network: Any) -> dict[str, Any]:
    """What a file and `like` must have in common, as plain JSON."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(network)
    return {
        "format": _FORMAT,
        "version": _VERSION,
        "network": type(network).__name__,
        "static": _static_fields(network),
        "leaves": [
            [_name(place), *kind] for place, leaf in leaves if (kind := _kind(leaf)) is not None
        ],
    }


def _name(place: Any) -> str:
    return jax.tree_util.keystr(place).removeprefix(".")


def _kind(leaf: Any) -> tuple[str, list[int]] | None:
    """dtype and shape of a leaf that Equinox writes; None for any other leaf."""
    if isinstance(leaf, _PLAIN):
        return type(leaf).__name__, []
    if isinstance(leaf, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct):
        return str(leaf.dtype), list(leaf.shape)
    return None


def _static_fields(module: Any, prefix: str = "") -> dict[str, Any]:
    """The static fields that are plain values, by their dotted names; and the depth."""
    found: dict[str, Any] = {}
    if not prefix and isinstance(depth := getattr(module, "depth", None), int):
        found["depth"] = depth
    for field in dataclasses.fields(module):
        value = getattr(module, field.name, None)
        if isinstance(value, eqx.Module):
            found.update(_static_fields(value, f"{prefix}{field.name}."))
        elif field.metadata.get("static", False) and isinstance(value, _STATIC):
            found[prefix + field.name] = value
    return found


def _read_header(file: io.BytesIO, path: Any) -> dict[str, Any]:
    try:
        header = json.loads(file.readline(_LONGEST_HEADER))
        known = isinstance(header, dict) and header.get("format") == _FORMAT
    except (ValueError, RecursionError):
        header, known = {}, False
    if not known:
        raise ValueError(
            f"load: path {path}: is no file of lintensor_jax.save; check the path, or read it with "
            "the program that wrote it."
        )
    if header.get("version") != _VERSION:
        raise ValueError(
            f"load: path {path}: has version {in_words(header.get('version'))} of the format, but "
            f"this program reads version {_VERSION}; use a newer lintensor_jax."
        )
    return header


def _compare(found: dict[str, Any], expected: dict[str, Any], path: Any) -> None:
    """ValueError if the file holds another network than `like`; it names the first difference."""

    def refuse(what, of_file, of_like, fix):
        raise ValueError(
            f"load: like must have the {what} of the file {path}, {in_words(of_file)}, got "
            f"{in_words(of_like)}; {fix}."
        )

    if found.get("network") != expected["network"]:
        refuse("class", found.get("network"), expected["network"], "make `like` of that class")
    if found.get("static") != expected["static"]:
        fix = "make `like` with the values of the file"
        refuse("static fields", found.get("static"), expected["static"], fix)
    if found.get("leaves") == expected["leaves"]:
        return
    of_file = {str(name): rest for name, *rest in _triples(found.get("leaves"))}
    of_like = {name: rest for name, *rest in expected["leaves"]}
    if list(of_file) != list(of_like):
        fix = "make `like` with as many layers"
        refuse("arrays", ", ".join(of_file), ", ".join(of_like), fix)
    name = next(name for name in of_like if of_file[name] != of_like[name])
    (dtype, shape), (own_dtype, own_shape) = of_file[name], of_like[name]
    if shape != own_shape:
        refuse(f"shape of {name}", tuple(shape), tuple(own_shape), "make `like` of that shape")
    fix = "make `like` of that dtype"
    if dtype == "float64" and not jax.config.jax_enable_x64:  # pyright: ignore
        fix = 'work in float64: jax.config.update("jax_enable_x64", True)'
    refuse(f"dtype of {name}", dtype, own_dtype, fix)


def _triples(leaves: Any) -> list[Any]:
    """The entries of a header's list that look like (name, dtype, shape)."""
    if not isinstance(leaves, list):
        return []
    return [
        entry
        for entry in leaves
        if isinstance(entry, list) and len(entry) == 3 and isinstance(entry[2], list)
    ]


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)

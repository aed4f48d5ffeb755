"""The skeleton of a store: all but its chunks, that is metadata of groups and arrays, coordinates.

The skeleton is a function of the store's description: it can be rebuilt, byte for byte, from
`sweep.json` and `arrays.npz`. Format 3 is Zarr v3 with sharding; formats 1 and 2 are Zarr v2.
"""

import json
import math
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np

from ..grid import Axis, Zip
from ..plan import Array, Chunk, Plan

_MOST_READ = 2**14  # most lanes in a part of a shard; Zarr reads whole parts
_CONVENTIONS = "CF-1.11"
# With this file a folder is an empty Zarr group: programs that list a store ignore it.
_EMPTY_GROUP = {2: (".zgroup", b'{"zarr_format": 2}')}
_EMPTY_GROUP[3] = ("zarr.json", b'{"zarr_format": 3, "node_type": "group", "attributes": {}}')


def empty_group(zarr_format: int) -> tuple[str, bytes]:
    """Name and content of the file that makes a folder an empty group."""
    return _EMPTY_GROUP[zarr_format]


def coordinates(plan: Plan) -> list[dict[str, Any]]:
    """The coordinates of a store: name, dims, values (an array), attributes."""
    found = list(_of_axes(plan))
    names = {about["name"] for about in found}
    extents = {}
    for array in plan.arrays.values():
        extents |= dict(zip(array.dims, array.shape, strict=True))
    for dim, size in extents.items():
        if dim not in names:
            words = {"description": f"number of the {dim.replace('_', ' ')}, from 0"}
            found.append(_coordinate(dim, [dim], np.arange(size), words))
    return found


def _of_axes(plan: Plan) -> Iterable[dict[str, Any]]:
    for outer in plan.grid.axes:
        axes = outer.axes if isinstance(outer, Zip) else (outer,)
        if isinstance(outer, Zip) or outer.values.ndim > 1:
            words = {"description": f"number of the {outer.name.replace('_', ' ')}, from 0"}
            yield _coordinate(outer.name, [outer.name], np.arange(len(outer)), words)
        for axis in axes:
            yield _of_axis(axis, outer.name)
    for name, values in plan.coordinates.items():
        yield _coordinate(name, [name], values, {})


def _of_axis(axis: Axis, dim: str) -> dict[str, Any]:
    words = {"units": axis.units, "description": axis.description}
    name = axis.name if axis.values.ndim == 1 else f"{axis.name}_value"
    return _coordinate(name, [dim, *axis.dims], axis.values, words)


def _coordinate(name: str, dims: list[str], values: np.ndarray, words: dict[str, str]):
    words = {key: value for key, value in words.items() if value}
    return {"name": name, "dims": dims, "values": np.asarray(values), "attributes": words}


def variables(plan: Plan) -> list[dict[str, Any]]:
    """The arrays of results, as JSON: name, dims, shape, box (of a chunk), dtype, attributes."""
    return [
        {
            "name": name,
            "dims": list(array.dims),
            "shape": list(array.shape),
            "box": list(array.box),
            "dtype": array.dtype.str,
            "attributes": _attributes_of(array),
        }
        for name, array in plan.arrays.items()
    ]


def _attributes_of(array: Array) -> dict[str, Any]:
    variable = array.variable
    words: dict[str, Any] = {"units": variable.units, "description": variable.description}
    words = {key: value for key, value in words.items() if value}
    if variable.flags:
        words["flag_values"] = list(range(len(variable.flags)))
        words["flag_meanings"] = " ".join(w.replace(" ", "_") for w in variable.flags)
    return words


def build(about: dict[str, Any], values: dict[str, np.ndarray]) -> dict[str, bytes]:
    """The contents of all files of the skeleton, by their names.

    `about`: the entries `attributes`, `coordinates` (without values) and `variables` of a
    description. `values`: the values of the coordinates, by name.
    """
    import zarr
    from zarr.storage import MemoryStore

    memory: dict[str, Any] = {}
    store = MemoryStore(memory)
    group = zarr.open_group(store, mode="w", zarr_format=3)
    others = [c["name"] for c in about["coordinates"] if c["dims"] != [c["name"]]]
    group.attrs.update({"Conventions": _CONVENTIONS, **about["attributes"]})
    if others:
        group.attrs["coordinates"] = " ".join(others)
    for each in about["coordinates"]:
        array = values[each["name"]]
        is_text = array.dtype.kind == "U"
        made = group.create_array(
            each["name"],
            shape=array.shape,
            chunks=array.shape,
            dtype="string" if is_text else array.dtype,
            dimension_names=each["dims"],
            attributes=each["attributes"],
            compressors=_compressors(),
        )
        made[...] = array.astype(object) if is_text else array
    for each in about["variables"]:
        group.create_array(
            each["name"],
            dimension_names=each["dims"],
            attributes=each["attributes"],
            **_layout(tuple(each["shape"]), tuple(each["box"]), np.dtype(each["dtype"])),
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # consolidated metadata is not yet part of Zarr v3
        zarr.consolidate_metadata(store, zarr_format=3)
    files = {name: data.to_bytes() for name, data in memory.items()}
    name, data = empty_group(3)
    return {**files, f".sweep/{name}": data}


def _layout(shape: tuple[int, ...], box: tuple[int, ...], dtype: np.dtype) -> dict[str, Any]:
    """The layout of an array: a shard is a chunk of the sweep; its parts can be read separately."""
    return {
        "shape": shape,
        "shards": box,
        "chunks": _part(box),
        "dtype": dtype,
        "fill_value": np.nan if dtype.kind == "f" else 0,
        "compressors": _compressors(),
        "config": {"write_empty_chunks": True},
    }


def _part(box: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the largest equal parts of a box with at most `_MOST_READ` numbers each.

    The box is cut along its first axis that is longer than 1.
    """
    place = next((i for i, size in enumerate(box) if size > 1), 0)
    rest = max(1, math.prod(box) // box[place])
    most = max(1, min(box[place], _MOST_READ // rest))
    size = next(k for k in range(most, 0, -1) if box[place] % k == 0)
    return (*box[:place], size, *box[place + 1 :])


def _compressors() -> list[Any]:
    from zarr.codecs import Crc32cCodec, ZstdCodec

    return [ZstdCodec(level=1), Crc32cCodec()]


def encoded(
    name: str, array: Array, chunk: Chunk, values: np.ndarray, zarr_format: int
) -> tuple[str, bytes]:
    """Name and bytes of the file of one variable of a chunk, as Zarr writes it."""
    import zarr
    from zarr.storage import MemoryStore

    memory: dict[str, Any] = {}
    if zarr_format == 3:
        layout = _layout(array.shape, array.box, array.dtype)
    else:
        layout = {**_layout_of_v2(array), "config": {"write_empty_chunks": True}}
    target = zarr.create_array(MemoryStore(memory), name=name, zarr_format=zarr_format, **layout)  # pyright: ignore
    extra = tuple(slice(None) for _ in array.shape[len(chunk.region) :])
    target[(*chunk.region, *extra)] = values
    files = {key: key.rpartition("/")[2] for key in memory}
    (key,) = (k for k, file in files.items() if file != "zarr.json" and not file.startswith("."))
    return key, memory[key].to_bytes()


def _layout_of_v2(array: Array) -> dict[str, Any]:
    import numcodecs

    return {
        "shape": array.shape,
        "chunks": array.box,
        "dtype": array.dtype,
        "fill_value": np.nan if array.dtype.kind == "f" else None,
        "compressors": numcodecs.Zstd(level=1),
    }


def codecs_of(path: Any, zarr_format: int) -> list[tuple[str, Any]]:
    """Pairs (array, codec) of all arrays in a store's list of metadata.

    Raises OSError, ValueError, KeyError, TypeError or AttributeError if there is no valid list.
    """
    if zarr_format == 2:
        listed = json.loads((path / ".zmetadata").read_text())["metadata"]
        arrays = {key: about for key, about in listed.items() if key.endswith(".zarray")}
        return [
            (key, codec["id"])
            for key, about in arrays.items()
            for codec in (about["compressor"], *(about["filters"] or ()))
            if codec is not None
        ]
    root = json.loads((path / "zarr.json").read_text())
    listed = root["consolidated_metadata"]["metadata"]
    found = []
    for key, about in listed.items():
        if about["node_type"] != "array":
            continue
        if about.get("storage_transformers"):
            found.append((key, "storage_transformers"))
        found += [(key, codec) for codec in _named(about["codecs"])]
    return found


def _named(codecs: list[Any]) -> Iterable[Any]:
    for codec in codecs:
        yield codec["name"]
        about = codec.get("configuration") or {}
        yield from _named([*about.get("codecs", ()), *about.get("index_codecs", ())])

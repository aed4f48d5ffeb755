"""The arrays of a store as a dataset; links and unsafe codecs are refused before it is opened."""

from pathlib import Path
from typing import Any

from . import skeleton
from .errors import SweepError
from .links import refuse_links
from .store import Store

# Codecs that only decode bytes. Zarr has other codecs, such as pickle, that run code from the file.
# This package writes zstd.
_CODECS = {"zstd", "blosc", "lz4", "zlib", "gzip", "bz2", "lzma", "shuffle", "vlen-utf8"}
_CODECS |= {"bytes", "sharding_indexed", "crc32c", "transpose"}


def open_dataset(path: Path | str) -> Any:
    """The arrays of a store as an `xarray.Dataset` that reads them when they are used.

    `SweepError` names a damaged label or description, a link, or a codec that could run code.
    """
    import xarray

    path = Path(path)
    store = Store(path)
    if damaged := store.skeleton_damage():
        raise SweepError(
            f"{path}: {', '.join(damaged[:3])} (labels or metadata) changed after it was written; "
            f"lintensor-jax resume {path} makes it again from the description of the sweep."
        )
    refuse_links(path, path, deep=True)
    try:
        codecs = skeleton.codecs_of(path, store.zarr_format)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        name = ".zmetadata" if store.zarr_format == 2 else "zarr.json"
        raise SweepError(
            f"{path}: {name} cannot be read ({error!r}); copy the folder again."
        ) from None
    for name, codec in codecs:
        if not isinstance(codec, str) or codec not in _CODECS:
            raise SweepError(
                f"{path}: {name} has the codec {codec!r}, and this package opens arrays of "
                f"{', '.join(sorted(_CODECS))} only. Nothing of the array was read."
            )
    return xarray.open_zarr(path, chunks=None, consolidated=True, zarr_format=store.zarr_format)  # pyright: ignore

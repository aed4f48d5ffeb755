"""Bounds of sizes in a configuration, checked before an array of that size is made."""

from typing import Any

from ...config import ConfigError, Integer

# Points of one axis. Nobody can read a grid with more of them; `Grid` bounds their product.
COUNT = Integer(1, 10_000_000)
SIZE = Integer(1, 10_000_000)
MOST_NUMBERS = 2**27  # in a data set, in a network, in all directions together: 1 GiB each


def check_data(data: Any) -> None:
    """Raises a `ConfigError` for random data of more than `MOST_NUMBERS` numbers."""
    if data.num_samples is None:
        return
    if data.is_completion:
        entries = data.shape[0] * data.shape[1]
        if entries > MOST_NUMBERS:
            raise ConfigError(
                "data.shape",
                f"must be of at most {MOST_NUMBERS} entries, got {entries}; make it smaller.",
            )
        return
    n, d = _largest(data.num_samples), _largest(data.dimension)
    if n * d > MOST_NUMBERS:
        raise ConfigError(
            "data.dimension",
            f"times num_samples must be at most {MOST_NUMBERS}, got {d} x {n}; make one smaller.",
        )


def check_networks(config: Any, dimension: int | tuple[int, int] | None) -> None:
    """Raises a `ConfigError` for networks or directions of more than `MOST_NUMBERS` numbers."""
    network, begin = config.network, config.start
    is_matrix = isinstance(dimension, tuple)
    rows, columns = dimension if isinstance(dimension, tuple) else (0, 0)
    d = _largest(dimension) or _largest(config.data.dimension)
    depth, width = _largest(network.depth), _largest(network.width) or d
    kinds = network.architecture if isinstance(network.architecture, tuple) else ()
    parameters, key = depth * d, "network.depth"
    if is_matrix:
        width = _largest(network.width) or min(rows, columns)
        parameters = width * (rows + columns + (depth - 2) * width)
    elif "fully-connected" in (network.architecture, *kinds):
        parameters = width * (d + (depth - 2) * width + 1)
        key = "network.depth" if network.width is None else "network.width"
    if parameters > MOST_NUMBERS:
        raise ConfigError(
            key,
            f"gives networks of {parameters:.3g} parameters, and at most {MOST_NUMBERS} are "
            f"allowed (dimension {d}, depth {depth}, width {width}); make one of them smaller.",
        )
    directions = begin.num_directions if begin.directions is None else 1
    if begin.initialization in ("matching", "balanced") and directions * d > MOST_NUMBERS:
        raise ConfigError(
            "start.num_directions",
            f"times the dimension must be at most {MOST_NUMBERS}, got {directions} x {d}; take "
            "fewer.",
        )


def _largest(value: int | tuple[int, ...] | None) -> int:
    return max(value) if isinstance(value, tuple) else (value or 0)

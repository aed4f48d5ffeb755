"""A sweep from a TOML file: `lintensor-jax sweep CONFIG`."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from ...config import (
    Config,
    ConfigError,
    Flag,
    Integer,
    ListOf,
    Maybe,
    Number,
    OneOf,
    OneOrMany,
    load,
    setting,
    table,
)
from ..grid import Axis, Grid, Zip
from ..observables.catalogue import BY_NAME, Trajectory
from ..observables.measures import TestLoss
from ..plan import Options
from .data import Data, held_out, problem_of
from .flow_table import Flow
from .recipes import (
    ARCHITECTURES,
    INITIALIZATIONS,
    OF_CLASSES,
    OF_MATRICES,
    Start,
    WithDecay,
)
from .sizes import COUNT, SIZE, check_data, check_networks

_POSITIVE = Number(above=0)


@dataclasses.dataclass(frozen=True)
class Network(Config):
    """Architecture, depth and width. A list makes an axis of the grid."""

    architecture: str | tuple[str, ...] = setting(
        "diagonal", OneOrMany(OneOf(tuple(ARCHITECTURES))), "The architecture of the networks."
    )
    depth: int | tuple[int, ...] = setting(2, OneOrMany(Integer(2)), "The number of layers L.")
    width: int | tuple[int, ...] | None = setting(
        None,
        Maybe(OneOrMany(SIZE)),
        "The width of the hidden layers of fully connected networks and factorizations; the "
        "default is that of the input.",
    )


@dataclasses.dataclass(frozen=True)
class Begin(Config):
    """Initial scales and directions: all pairs, or pairs of the k-th ones if `together`."""

    initialization: str = setting(
        "matching",
        OneOf(INITIALIZATIONS),
        "How a start is made: `matching` has the same beta(0) for every architecture, with a gap "
        "between its layers; `balanced` has no gap; `gaussian` has random layers; `identity` has "
        "the identity as every layer.",
    )
    alphas: tuple[float, ...] | None = setting(
        None, Maybe(ListOf(_POSITIVE)), "The initial scales, as a list."
    )
    alpha_from: float = setting(
        0.001, _POSITIVE, "The smallest initial scale, where `alphas` is left out."
    )
    alpha_to: float = setting(
        1.0, _POSITIVE, "The largest initial scale, where `alphas` is left out."
    )
    num_alphas: int = setting(
        10, COUNT, "The number of initial scales, evenly spaced in their logarithms."
    )
    directions: tuple | None = setting(
        None,
        Maybe(ListOf(ListOf(Number()))),
        "The directions z of the starts, as a list of vectors: beta(0) = alpha^L z.",
    )
    num_directions: int = setting(
        10, COUNT, "The number of random directions, where `directions` is left out."
    )
    num_repeats: int = setting(1, COUNT, "The number of random starts of `gaussian`.")
    together: bool = setting(
        False,
        Flag(),
        "Whether the k-th scale goes with the k-th direction only, instead of all pairs.",
    )
    gap: float = setting(
        1.0,
        _POSITIVE,
        "The difference of squares between the layers of a `matching` start, over alpha^2.",
    )

    def check(self) -> None:
        """Raises a `ConfigError` if several scales lie between two equal ends."""
        if self.alphas is None and self.num_alphas > 1 and self.alpha_from == self.alpha_to:
            raise ConfigError(
                "alpha_to",
                f"must differ from alpha_from, got {self.alpha_to:g}; or set num_alphas = 1.",
            )

    @property
    def scales(self) -> np.ndarray:
        """The initial scales, shape (num_alphas,): `alphas`, or logarithmically spaced ones."""
        if self.alphas is not None:
            return np.asarray(self.alphas)
        return np.geomspace(self.alpha_from, self.alpha_to, self.num_alphas)


@dataclasses.dataclass(frozen=True)
class Record(Config):
    """The observables of every lane, the number of lanes in flight, and the lanes per chunk."""

    observables: tuple[str, ...] = setting(
        ("limit", "log_loss", "invariant_drift"),
        ListOf(OneOf(tuple(BY_NAME))),
        "What is stored of every flow.",
    )
    trajectory_times: tuple[float, ...] | None = setting(
        None,
        Maybe(ListOf(Number())),
        "Times of the flow's clock at which its coefficients are stored as well.",
    )
    lanes_in_flight: int | None = setting(
        None,
        Maybe(Integer(1)),
        "The number of flows that run at the same time in one chunk; the default is chosen for "
        "speed.",
    )
    lanes_per_chunk: int | None = setting(
        None,
        Maybe(Integer(1)),
        "The number of flows that are computed and stored together; the default is chosen for "
        "speed.",
    )


@dataclasses.dataclass(frozen=True)
class Sweep(Config):
    """The whole file."""

    seed: int = setting(0, Integer(0), "The seed of the random directions and starts.")
    network: Network = table(Network)  # noqa: RUF009
    data: Data = dataclasses.field(default=None, metadata={"table": Data})  # pyright: ignore
    start: Begin = table(Begin)  # noqa: RUF009
    flow: Flow = table(Flow)  # noqa: RUF009
    record: Record = table(Record)  # noqa: RUF009

    def check(self) -> None:
        """Raises a `ConfigError` if there is no table [data]."""
        if self.data is None:
            raise ConfigError(
                "data", "must be given: a table [data] with a path, X and y, or sizes."
            )
        names = self.network.architecture
        for name in names if isinstance(names, tuple) else (names,):
            if self.data.has_classes and name not in OF_CLASSES:
                raise ConfigError(
                    "network.architecture",
                    f'must be one of {", ".join(OF_CLASSES)} for task = "multiclass", got '
                    f'"{name}"; the others have one output.',
                )
            if (name == OF_MATRICES) is not self.data.is_completion:
                raise ConfigError(
                    "network.architecture",
                    f'must be "{OF_MATRICES}" for task = "completion", and for no other task, got '
                    f'"{name}"; change one of the two.',
                )


def read(path: Path) -> tuple[Sweep, Grid, Options]:
    """A configuration with its grid and options; data paths are relative to the file's folder.

    Raises `ConfigError` for a mistake in the file.
    """
    config = load(path, Sweep)
    try:
        return config, _grid(config, path.parent), _options(config, path.parent)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.key}", error.problem, error.also) from None
    except ValueError as error:
        raise ConfigError(f"{path}:", " ".join(str(error).split())) from None


def _num_directions(begin):
    if begin.initialization in ("gaussian", "identity"):
        return begin.num_repeats
    return begin.num_directions if begin.directions is None else len(begin.directions)


def _grid(config: Sweep, folder: Path) -> Grid:
    data, begin, network = config.data, config.start, config.network
    check_data(data)
    problem, dimension = problem_of(data, folder)
    check_networks(config, dimension)
    axes: list[Any] = []
    for key, values, words in (
        ("network.architecture", network.architecture, "architecture"),
        ("network.depth", network.depth, "number of layers L"),
        ("network.width", network.width, "width of the hidden layers"),
        ("data.dimension", data.dimension, "dimension of the samples"),
        ("data.num_samples", data.num_samples, "number of samples"),
    ):
        if isinstance(values, tuple):
            name = key.rpartition(".")[2]
            axes.append(Axis(name, _distinct(key, values), description=words, changes_shape=True))
    if isinstance(data.seed, tuple):
        seeds = _distinct("data.seed", data.seed)
        by_shape = data.is_completion  # the places of entries are constants of compiled programs
        axes.append(
            Axis("data_seed", seeds, description="seed of the data", changes_shape=by_shape)
        )
    scales = begin.scales if begin.alphas is None else _distinct("start.alphas", begin.alphas)
    alpha = Axis("alpha", scales, units="1", description="initial scale")
    direction = _direction(config, dimension)
    if begin.together:
        if len(alpha) != len(direction):
            raise ConfigError(
                "start.together",
                f"needs as many directions as scales, got {len(direction)} and {len(alpha)}; "
                "change num_directions or num_alphas, or leave `together` out for every pair.",
            )
        axes.append(Zip("start", alpha, direction))
    else:
        axes += [alpha, direction]
    single = {
        name: None if isinstance(value := getattr(network, name), tuple) else value
        for name in ("architecture", "depth", "width")
    }
    start = Start(
        initialization=begin.initialization,
        dimension=dimension,
        gap=begin.gap,
        direction_seed=config.seed,
        **single,
    )
    decay = config.flow.weight_decay
    if isinstance(decay, tuple):
        values = _distinct("flow.weight_decay", decay)
        axes.insert(0, Axis("weight_decay", values, description="weight decay lambda"))
        problem = WithDecay(problem, None)
    elif decay:
        decaying = WithDecay(problem, decay)
        problem = decaying if callable(problem) else decaying({})
    return Grid(tuple(axes), start, problem, seed=config.seed)


def _direction(config: Sweep, dimension: int | tuple[int, int] | None) -> Axis:
    begin = config.start
    count = _num_directions(begin)
    if begin.initialization in ("gaussian", "identity"):
        return Axis("repeat", range(count), description="random numbers of its own at every point")
    words = "initial linear coefficients over alpha^L"
    if isinstance(dimension, tuple):
        if begin.directions is not None:
            raise ConfigError(
                "start.directions", "must be left out if beta is a matrix; give num_directions."
            )
        return Axis("direction", range(count), description=words)
    if begin.directions is not None:
        for i, row in enumerate(begin.directions):
            if len(row) != dimension:
                raise ConfigError(
                    f"start.directions[{i}]",
                    f"must have {dimension} entries, as the samples do, got {list(row)}; or take "
                    "num_directions random ones.",
                )
        values = np.asarray(begin.directions)
    elif dimension is None:
        return Axis("direction", range(count), description=words)
    else:
        values = np.random.default_rng(config.seed).standard_normal((count, dimension))
    return Axis("direction", values, description=words, dims=("coefficient",))


def _distinct(key, values):
    if len(set(values)) < len(values):
        raise ConfigError(
            key, f"must not repeat a value, got {list(values)}; remove the second one."
        )
    return values


def _options(config: Sweep, folder: Path) -> Options:
    record, flow = config.record, config.flow
    observables = [BY_NAME[name] for name in record.observables]
    test = held_out(config.data, folder)
    if test is not None:
        observables.append(TestLoss(test))
    if record.trajectory_times is not None:
        observables.append(Trajectory(record.trajectory_times))
    return Options(
        observables=tuple(observables),
        **flow.objects,
        rtol=flow.rtol,
        atol=flow.atol,
        max_steps=flow.max_steps,
        stiff_max_steps=flow.stiff_max_steps,
        width=record.lanes_in_flight,
        chunk_lanes=record.lanes_per_chunk,
    )

"""The table [data] of a configuration, and the problem that it states."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from ...completion import MatrixCompletion
from ...config import (
    Config,
    ConfigError,
    Integer,
    ListOf,
    Maybe,
    Number,
    OneOf,
    OneOrMany,
    Text,
    setting,
)
from ...multiclass import MulticlassClassification
from .data_files import read_data
from .recipes import LOSSES, PROBLEMS, TASKS, RandomClasses, RandomCompletion, RandomData
from .sizes import SIZE


@dataclasses.dataclass(frozen=True)
class Data(Config):
    """Samples: from a file, as lists, or random. Exactly one of the three is given.

    For the task "completion" a sample is an entry of a matrix of `shape`: X has its row and column,
    counted from 0, and y its value. Random entries are those of a matrix of rank `rank`. For the
    task "multiclass" y has labels 0, ..., `num_classes` - 1.
    """

    task: str = setting("regression", OneOf(TASKS), "The problem that the data state.")
    loss: str | None = setting(
        None,
        Maybe(OneOf(tuple(LOSSES))),
        "The loss, one of the task; the default is the squared loss or the exponential loss.",
    )
    loss_parameter: float | None = setting(
        None,
        Maybe(Number(above=0)),
        "The number that the loss needs: delta of `huber`, the power of `polynomial`.",
    )
    path: str | None = setting(
        None,
        Maybe(Text()),
        "A CSV or NPZ file with the samples, relative to the folder of this file.",
    )
    test_path: str | None = setting(
        None,
        Maybe(Text()),
        "A file as `path`, with held-out samples: the loss on them is stored as `log_test_loss`.",
    )
    X: tuple | None = setting(None, Maybe(ListOf(ListOf(Number()))), "The samples, one row each.")
    y: tuple | None = setting(
        None, Maybe(ListOf(Number())), "The targets, or the labels, one for each sample."
    )
    num_samples: int | tuple[int, ...] | None = setting(
        None, Maybe(OneOrMany(SIZE)), "The number of random samples."
    )
    dimension: int | tuple[int, ...] | None = setting(
        None, Maybe(OneOrMany(SIZE)), "The dimension of random samples."
    )
    seed: int | tuple[int, ...] | None = setting(
        None, Maybe(OneOrMany(Integer(0))), "The seed of the random samples."
    )
    shape: tuple[int, ...] | None = setting(
        None,
        Maybe(ListOf(SIZE, length=2)),
        "The shape of the matrix whose entries are given, for `completion`.",
    )
    rank: int | None = setting(
        None, Maybe(Integer(1)), "The rank of the matrix behind random entries, for `completion`."
    )
    num_classes: int | None = setting(
        None, Maybe(Integer(2)), "The number of classes, for `multiclass`."
    )

    def check(self) -> None:
        """Raises a `ConfigError` unless there is one complete source of data, and a loss for it."""
        self._check_loss()
        self._check_of_completion()
        self._check_of_classes()
        sizes = (self.num_samples, self.dimension, self.seed)
        sources = {
            "path": self.path is not None,
            "X": self.X is not None or self.y is not None,
            "num_samples": sizes != (None, None, None),
        }
        given = [key for key, there in sources.items() if there]
        if len(given) != 1:
            got = " and ".join(given) or "nothing"
            raise ConfigError(
                given[-1] if given else "path",
                "must be the only source of data: give `path`, or `X` and `y`, or `num_samples` "
                f"and `dimension`; got {got}.",
            )
        for key, partner in (
            ("X", "y"),
            ("y", "X"),
            ("num_samples", "shape" if self.is_completion else "dimension"),
            ("dimension", "num_samples"),
        ):
            if getattr(self, key) is not None and getattr(self, partner) is None:
                raise ConfigError(
                    partner, f"must be given together with {key}, got no {partner}; add it."
                )
        if self.X is not None:
            lengths = [len(row) for row in self.X]
            for i, length in enumerate(lengths):
                if length != lengths[0]:
                    raise ConfigError(
                        f"X[{i}]",
                        f"must have {lengths[0]} entries, as X[0], got {length}; samples are rows.",
                    )

    def _check_loss(self) -> None:
        """Raises a `ConfigError` for a loss of another task, and for a wrong `loss_parameter`."""
        if self.loss is None:
            if self.loss_parameter is not None:
                raise ConfigError("loss_parameter", "needs a loss, got none; add loss = ...")
            return
        task, parameter, _ = LOSSES[self.loss]
        if task != self.task:
            names = [name for name, about in LOSSES.items() if about[0] == self.task]
            known = ", ".join(names) or "none"
            raise ConfigError(
                "loss",
                f"must be one of {self.task}: {known}; got {self.loss!r}; write one of them.",
            )
        if (self.loss_parameter is None) != (parameter is None):
            what = f"must be given, the {parameter}" if parameter else "must be left out"
            raise ConfigError(
                "loss_parameter", f"{what} of {self.loss}, got {self.loss_parameter}."
            )

    @property
    def loss_object(self) -> Any:
        """The loss; None for the default of the task."""
        if self.loss is None:
            return None
        _, parameter, kind = LOSSES[self.loss]
        return kind() if parameter is None else kind(self.loss_parameter)

    @property
    def is_completion(self) -> bool:
        """Whether samples are entries of a matrix."""
        return self.task == "completion"

    @property
    def has_classes(self) -> bool:
        """Whether the task is classification with several classes."""
        return self.task == "multiclass"

    def _check_of_classes(self) -> None:
        if not self.has_classes:
            if self.num_classes is not None:
                raise ConfigError("num_classes", 'is for task = "multiclass" only; remove it.')
            return
        if self.num_samples is not None and self.num_classes is None:
            raise ConfigError("num_classes", "must be given for random samples, such as 3.")
        if isinstance(self.dimension, tuple):
            raise ConfigError("dimension", "must be one number, not a list, for several classes.")

    def _check_of_completion(self) -> None:
        if not self.is_completion:
            for key in ("shape", "rank"):
                if getattr(self, key) is not None:
                    raise ConfigError(key, 'is for task = "completion" only; remove it.')
            return
        if self.dimension is not None:
            raise ConfigError("dimension", "is not for completion; give `shape` instead.")
        if self.shape is None:
            raise ConfigError(
                "shape", "must be given for completion: rows and columns, such as [20, 30]."
            )
        if self.rank is not None and (self.num_samples is None or self.rank > min(self.shape)):
            raise ConfigError(
                "rank",
                f"is for random entries only, and at most {min(self.shape)}, got {self.rank}; "
                "remove or lower it.",
            )
        counts = self.num_samples if isinstance(self.num_samples, tuple) else (self.num_samples,)
        for count in counts:
            if count is not None and count > self.shape[0] * self.shape[1]:
                raise ConfigError(
                    "num_samples",
                    f"must be at most {self.shape[0] * self.shape[1]}, the number of entries of "
                    f"the matrix, got {count}; lower it.",
                )


def problem_of(data: Data, folder: Path) -> tuple[Any, int | tuple[int, int] | None]:
    """The problem and its dimension. The dimension is None if it is an axis of the grid.

    If beta is a matrix, the dimension is the shape of beta.
    """
    if data.is_completion:
        return _completion(data, folder)
    if data.num_samples is not None:
        sizes = {
            "num_samples": data.num_samples,
            "dimension": data.dimension,
            "data_seed": 0 if data.seed is None else data.seed,
        }
        fixed: dict[str, Any] = {k: None if isinstance(v, tuple) else v for k, v in sizes.items()}
        if data.has_classes:
            assert data.num_classes is not None
            random = RandomClasses(num_classes=data.num_classes, **fixed)
            problem = random({}) if None not in fixed.values() else random
            return problem, (fixed["dimension"], data.num_classes)
        random = RandomData(data.task, **fixed, loss=data.loss_object)
        return (random({}) if None not in fixed.values() else random), fixed["dimension"]
    if data.path is not None:
        X, y = read_data(folder / data.path)
        key = "data.path"
    else:
        X, y, key = np.asarray(data.X), np.asarray(data.y), "data.X and data.y"
    try:
        if data.has_classes:
            several = MulticlassClassification(X, y, data.num_classes)
            return several, (several.X.shape[1], several.num_classes)
        problem = PROBLEMS[data.task](X, y, loss=data.loss_object)
    except ValueError as error:
        raise ConfigError(f"{key}:", " ".join(str(error).split())) from None
    return problem, problem.X.shape[1]


def held_out(data: Data, folder: Path) -> Any:
    """The problem of the samples in `test_path`, with the loss of `data`; None if not given."""
    if data.test_path is None:
        return None
    no_other_source = dict.fromkeys(("X", "y", "num_samples", "dimension", "seed", "rank"))
    given = dataclasses.replace(data, path=data.test_path, test_path=None, **no_other_source)
    try:
        return problem_of(given, folder)[0]
    except ConfigError as error:
        key = error.key.replace("data.path", "data.test_path")
        raise ConfigError(key, error.problem, error.also) from None


def _completion(data: Data, folder: Path):
    """The problem and the shape of its matrix."""
    assert data.shape is not None
    shape = (data.shape[0], data.shape[1])
    if data.num_samples is not None:
        fixed = [
            None if isinstance(v, tuple) else v
            for v in (data.num_samples, 0 if data.seed is None else data.seed)
        ]
        random = RandomCompletion(fixed[0], shape, data.rank or 1, fixed[1])
        return (random({}) if None not in fixed else random), shape
    if data.path is not None:
        (X, y), key = read_data(folder / data.path), "data.path"
    else:
        X, y, key = np.asarray(data.X), np.asarray(data.y), "data.X and data.y"
    if X.shape[1] != 2 or not np.array_equal(X, np.round(X)):
        raise ConfigError(
            f"{key}:",
            "must have the row and the column of each entry, two whole numbers counted from 0, and "
            f"its value, got {X.shape[1]} numbers besides the value; see `lintensor-jax init "
            "--kind completion`.",
        )
    rows, columns = X.T.astype(np.int64)
    try:
        return MatrixCompletion(rows, columns, y, shape), shape
    except ValueError as error:
        raise ConfigError(f"{key}:", " ".join(str(error).split())) from None

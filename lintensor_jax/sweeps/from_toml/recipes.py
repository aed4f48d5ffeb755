"""Starts and data that a configuration can name. A store can describe and rebuild them."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ... import initialization
from ...completion import MatrixCompletion
from ...losses import (
    ExponentialLoss,
    HuberLoss,
    LogCoshLoss,
    LogisticLoss,
    PolynomialLoss,
    SquaredLoss,
)
from ...multiclass import MulticlassClassification
from ...networks import (
    ConvolutionalNetwork,
    DiagonalNetwork,
    DifferentialDiagonalNetwork,
    FullyConnectedNetwork,
    LinearNetwork,
    MatrixFactorizationNetwork,
)
from ...penalized import Penalized
from ...problems import Classification, Regression
from ..grid import Point


def _shape(dimension: int | tuple[int, int]) -> tuple[int, ...]:
    """The shape of beta: (d,), or the shape of a matrix."""
    return dimension if isinstance(dimension, tuple) else (dimension,)


def _sizes(dimension: int | tuple[int, int]) -> tuple[int, int | None]:
    """The dimension and the number of outputs (None for a scalar output)."""
    return dimension if isinstance(dimension, tuple) else (dimension, None)


#: Functions that make zero networks, by their names in configurations. Arguments: dimension d (for
#: matrices their shape), depth L, hidden width.
ARCHITECTURES = {
    "linear": lambda d, L, width: LinearNetwork.zeros(*_sizes(d)),
    "diagonal": lambda d, L, width: DiagonalNetwork.zeros(L, *_sizes(d)),
    "differential": lambda d, L, width: DifferentialDiagonalNetwork.zeros(L, d),
    "convolutional": lambda d, L, width: ConvolutionalNetwork.zeros(d, (d,) * L),
    "short-filters": lambda d, L, width: ConvolutionalNetwork.zeros(d, (2,) * (L - 1) + (d,)),
    "fully-connected": lambda d, L, width: FullyConnectedNetwork.zeros(
        (_sizes(d)[0],) + (width or _sizes(d)[0],) * (L - 1), _sizes(d)[1]
    ),
    "matrix-factorization": lambda shape, L, width: MatrixFactorizationNetwork.zeros(
        L, shape, width
    ),
}
INITIALIZATIONS = ("matching", "balanced", "gaussian", "identity")
TASKS = ("regression", "classification", "multiclass", "completion")
#: Problems of samples by their task.
PROBLEMS: dict[str, Any] = {"regression": Regression, "classification": Classification}
#: Losses by their names in configurations: task, the name of a parameter or None, class.
LOSSES: dict[str, tuple[str, str | None, Any]] = {
    "squared": ("regression", None, SquaredLoss),
    "huber": ("regression", "delta", HuberLoss),
    "log-cosh": ("regression", None, LogCoshLoss),
    "exponential": ("classification", None, ExponentialLoss),
    "logistic": ("classification", None, LogisticLoss),
    "polynomial": ("classification", "power", PolynomialLoss),
}
#: The only architecture for the task "completion", where beta is a matrix.
OF_MATRICES = "matrix-factorization"
#: The architectures with several outputs, for the task "multiclass".
OF_CLASSES = ("fully-connected", "diagonal", "linear")


@dataclasses.dataclass(frozen=True)
class Start:
    """The network at a point. If a field is None, its value is that of an axis of the grid.

    If the width is neither given nor an axis, it is the dimension.

    - `initialization`: "matching" and "balanced" start at beta(0) = alpha^L z with the direction z;
      "gaussian" has normal entries of standard deviation alpha; "identity" is the zero-asymmetric
      initialization, times alpha.
    - `dimension`: d, or the shape of a matrix.
    - `direction_seed`: the seed of random directions, if the axis `direction` has their numbers.
    """

    initialization: str
    architecture: str | None
    depth: int | None
    dimension: int | tuple[int, int] | None
    width: int | None
    gap: float
    direction_seed: int

    def __call__(self, point: Point) -> Any:
        """The network at `point`."""
        architecture, depth, dimension = (
            point[name] if getattr(self, name) is None else getattr(self, name)
            for name in ("architecture", "depth", "dimension")
        )
        width = point.width if self.width is None and "width" in point else self.width
        like = ARCHITECTURES[architecture](dimension, depth, width)
        if self.initialization == "gaussian":
            return initialization.gaussian(like, point.key, point.alpha)
        if self.initialization == "identity":
            return initialization.identity(like).scaled(point.alpha)
        z = point.direction
        if z.ndim == 0:
            key = jax.random.fold_in(jax.random.key(self.direction_seed), z)
            z = jax.random.normal(key, _shape(dimension))
        if self.initialization == "balanced":
            return initialization.balanced(like, z).scaled(point.alpha)
        # `matching` draws the first factors of narrow factorizations: the same at every point.
        key = jax.random.key(self.direction_seed)
        return initialization.matching(like, z, gap=self.gap, key=key).scaled(point.alpha)


@dataclasses.dataclass(frozen=True)
class RandomData:
    """Standard normal samples with targets of a random predictor; their signs as labels.

    If a field is None, its value is that of an axis of the grid; but `loss` is None for the default
    of the task.
    """

    task: str
    num_samples: int | None
    dimension: int | None
    data_seed: int | None
    loss: Any = None

    def __call__(self, point: Any) -> Any:
        """The problem at `point`."""
        n, d, seed = (
            point[name] if getattr(self, name) is None else getattr(self, name)
            for name in ("num_samples", "dimension", "data_seed")
        )
        samples, predictor = jax.random.split(jax.random.key(seed))
        X = jax.random.normal(samples, (n, d))
        y = X @ jax.random.normal(predictor, (d,))
        if self.task == "classification":
            y = jnp.where(y >= 0, 1.0, -1.0)
        return PROBLEMS[self.task](X, y, loss=self.loss)


@dataclasses.dataclass(frozen=True)
class RandomClasses:
    """Standard normal samples of m classes: the label is the largest of m random predictors.

    If a field is None, its value is that of an axis of the grid.
    """

    num_samples: int | None
    dimension: int
    num_classes: int
    data_seed: int | None

    def __call__(self, point: Any) -> MulticlassClassification:
        """The problem at `point`."""
        n, seed = (
            point[name] if getattr(self, name) is None else getattr(self, name)
            for name in ("num_samples", "data_seed")
        )
        samples, predictors = jax.random.split(jax.random.key(seed))
        X = jax.random.normal(samples, (n, self.dimension))
        scores = X @ jax.random.normal(predictors, (self.dimension, self.num_classes))
        return MulticlassClassification(X, jnp.argmax(scores, axis=1), self.num_classes)


@dataclasses.dataclass(frozen=True)
class RandomCompletion:
    """Entries of a random matrix of low rank, at random places, without repetition.

    The matrix is the product of two standard normal factors, divided by the square root of its
    rank, so that its entries have variance 1. If a field is None, its value is that of an axis of
    the grid. The axis must change shapes, since places are constants of compiled programs.
    """

    num_samples: int | None
    shape: tuple[int, int]
    rank: int
    data_seed: int | None

    def __call__(self, point: Any) -> MatrixCompletion:
        """The problem at `point`."""
        n, seed = (
            point[name] if getattr(self, name) is None else getattr(self, name)
            for name in ("num_samples", "data_seed")
        )
        rng = np.random.default_rng(seed)
        matrix = self.matrix(rng)
        rows, columns = np.divmod(rng.choice(matrix.size, n, replace=False), self.shape[1])
        return MatrixCompletion(rows, columns, matrix[rows, columns], self.shape)

    def matrix(self, rng: np.random.Generator) -> np.ndarray:
        """The whole matrix, of shape `shape`; `rng` draws it before the places."""
        left, right = (rng.standard_normal((size, self.rank)) for size in self.shape)
        return left @ right.T / np.sqrt(self.rank)


@dataclasses.dataclass(frozen=True)
class WithDecay:
    """A problem, or a function that makes one, with weight decay.

    If `weight_decay` is None, its value is that of the axis `weight_decay`.
    """

    problem: Any
    weight_decay: float | None

    def __call__(self, point: Any) -> Penalized:
        """The problem with weight decay at `point`."""
        problem: Any = self.problem(point) if callable(self.problem) else self.problem
        decay = point["weight_decay"] if self.weight_decay is None else self.weight_decay
        return Penalized(problem, decay)

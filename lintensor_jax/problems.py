"""Problems: data and a loss, as functions of the linear coefficients beta alone.

All losses are *sums* over the samples, as in Yun, Krishnan & Mobahi 2021; Ji & Telgarsky 2019
average them, which divides time by n.
"""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from .losses import AbstractMarginLoss, AbstractResidualLoss, ExponentialLoss, SquaredLoss
from .messages import in_words


class AbstractProblem(eqx.Module):
    """Data and a loss. Networks meet it only through their linear coefficients.

    **Optional method** `subset(indices)`: the problem of the samples with these numbers, for the
    mini-batches of `gradient_descent`.

    A problem of your own extends `AbstractRegressionProblem`, `AbstractSquaredProblem` or
    `Classification`: these say what the flows need to know.
    """

    @property
    def has_margins(self) -> bool:
        """Whether the loss is one of margins, as in `Classification`.

        Such a problem has `margin_loss`, `margins(beta)`, `signed_data`, `X` and `y`. Its flows
        have no limit but a limit direction; they end at a margin.
        """
        return False

    @property
    def has_residuals(self) -> bool:
        """Whether the loss is one of residuals, as in `Regression`.

        Such a problem has `residual_loss` and `y`. Its flows end at a residual, and a finish by
        Gauss-Newton steps applies.
        """
        return False

    @property
    def has_squared_loss(self) -> bool:
        """Whether the loss is 1/2 sum_i r_i^2, for which rates and Hessians are known."""
        return False

    @property
    def in_words(self) -> str:
        """What the problem is called in messages, such as "Regression with HuberLoss"."""
        return type(self).__name__

    @abc.abstractmethod
    def predictions(self, beta: Float[Array, "..."]) -> Float[Array, "..."]:
        """The n linear measurements of beta."""

    @abc.abstractmethod
    def adjoint(self, values: Float[Array, "..."]) -> Float[Array, "..."]:
        """The transpose of `predictions`: for vector data X^T v."""

    @abc.abstractmethod
    def residual(self, beta: Float[Array, "..."]) -> Float[Array, "..."]:
        """r_i = dl/d(prediction_i), so that the gradient with respect to beta is `adjoint(r)`."""

    @abc.abstractmethod
    def log_loss(self, beta: Float[Array, "..."]) -> Float[Array, ""]:
        """Natural logarithm of the loss."""

    @property
    @abc.abstractmethod
    def coefficient_shape(self) -> tuple[int, ...]:
        """The shape that beta must have."""

    def loss(self, beta: Float[Array, "..."]) -> Float[Array, ""]:
        """The loss, summed over samples; underflows to 0 where `log_loss` does not."""
        return jnp.exp(self.log_loss(beta))


class AbstractRegressionProblem(AbstractProblem):
    """A loss of the residuals, sum_i l(prediction_i - y_i).

    A class of your own states `y` and `residual_loss` as fields, and defines `predictions`,
    `adjoint` and `coefficient_shape`.
    """

    y: eqx.AbstractVar[Float[Array, "..."]]
    residual_loss: eqx.AbstractVar[AbstractResidualLoss]

    @property
    def has_residuals(self) -> bool:
        """True."""
        return True

    @property
    def has_squared_loss(self) -> bool:
        """Whether `residual_loss` is the squared loss."""
        return self.residual_loss.is_squared

    @property
    def in_words(self) -> str:
        """The class, and the loss unless it is the squared one."""
        name = type(self).__name__
        return name if self.has_squared_loss else f"{name} with {type(self.residual_loss).__name__}"

    def residual(self, beta: Float[Array, "..."]) -> Float[Array, "..."]:
        """l'(predictions(beta) - y), of y's shape: for the squared loss predictions - y."""
        return self.residual_loss.slope(self.predictions(beta) - self.y)

    def loss(self, beta: Float[Array, "..."]) -> Float[Array, ""]:
        """sum_i l(r_i)."""
        return self.residual_loss.total(self.predictions(beta) - self.y)

    def log_loss(self, beta: Float[Array, "..."]) -> Float[Array, ""]:
        """log sum_i l(r_i), for the squared loss without underflow; -inf at an exact fit."""
        return self.residual_loss.log_total(self.predictions(beta) - self.y)


class AbstractSquaredProblem(AbstractRegressionProblem):
    """Squared loss, 1/2 sum_i r_i^2: the residual is predictions - y."""

    @property
    def residual_loss(self) -> AbstractResidualLoss:
        """`SquaredLoss()`."""
        return SquaredLoss()


class Regression(AbstractRegressionProblem):
    """Linear regression with loss 1/2 sum_i (<x_i, beta> - y_i)^2, or another loss l(r_i).

    Source: Yun et al. 2021, section 5 (there n <= d: underdetermined; any n is accepted here).

    **Arguments**

    - `X`: shape (n, d), one sample a row.
    - `y`: shape (n,), or (n, m) for networks with m outputs.
    - `loss`: of r_i = <x_i, beta> - y_i: `SquaredLoss()` (default), `HuberLoss(delta)`,
      `LogCoshLoss()`, or an `AbstractResidualLoss` of your own.
    """

    X: Float[Array, "n d"]
    y: Float[Array, "..."]
    # A default of the class: stores from before this field are rebuilt with it.
    residual_loss: AbstractResidualLoss = SquaredLoss()

    def __init__(self, X, y, loss: AbstractResidualLoss | None = None):
        self.X = _as_data(X, "X", "Regression", ndims=(2,))
        self.y = _as_data(y, "y", "Regression", ndims=(1, 2))
        _require_one_target_per_sample(self.X, self.y, "X", "Regression")
        if loss is not None and not isinstance(loss, AbstractResidualLoss):
            raise ValueError(
                "Regression: loss must be an object such as lintensor_jax.HuberLoss(1.0), got "
                f"{in_words(loss)}; leave it out for the squared loss."
            )
        self.residual_loss = SquaredLoss() if loss is None else loss

    def predictions(self, beta: Float[Array, "..."]) -> Float[Array, "..."]:
        """X beta: shape (n,) or (n, m)."""
        return self.X @ beta

    def adjoint(self, values: Float[Array, "..."]) -> Float[Array, "..."]:
        """X^T v: shape (d,) or (d, m)."""
        return self.X.T @ values

    def subset(self, indices: Int[Array, " b"]) -> "Regression":
        """The problem of the samples `indices`, with repetitions if there are any."""
        return eqx.tree_at(lambda p: (p.X, p.y), self, (self.X[indices], self.y[indices]))

    @property
    def coefficient_shape(self) -> tuple[int, ...]:
        """(d,) or (d, m)."""
        return (self.X.shape[1], *self.y.shape[1:])


class MatrixSensing(AbstractSquaredProblem):
    """Matrix sensing with loss 1/2 sum_i (<A_i, beta> - y_i)^2.

    Source: Yun et al. 2021, eq. (13), which lacks the 1/2: that only rescales time.

    **Arguments**

    - `A`: shape (n, d, d), one sensor A_i a sample; they need be neither symmetric nor commuting.
    - `y`: shape (n,).
    """

    A: Float[Array, "n d d"]
    y: Float[Array, " n"]

    def __init__(self, A, y):
        self.A = _as_data(A, "A", "MatrixSensing", ndims=(3,))
        self.y = _as_data(y, "y", "MatrixSensing", ndims=(1,))
        if self.A.shape[1] != self.A.shape[2]:
            raise ValueError(
                f"MatrixSensing: A must hold square sensors, shape (n, d, d), got {self.A.shape}; "
                "the samples come first (jnp.moveaxis), and rectangular sensors can be padded with "
                "zeros."
            )
        _require_one_target_per_sample(self.A, self.y, "A", "MatrixSensing")

    def predictions(self, beta: Float[Array, "d d"]) -> Float[Array, " n"]:
        """<A_i, beta>, shape (n,)."""
        return jnp.tensordot(self.A, beta, 2)

    def adjoint(self, values: Float[Array, " n"]) -> Float[Array, "d d"]:
        """sum_i v_i A_i, shape (d, d)."""
        return jnp.tensordot(values, self.A, 1)

    def subset(self, indices: Int[Array, " b"]) -> "MatrixSensing":
        """The problem of the samples `indices`, with repetitions if there are any."""
        return eqx.tree_at(lambda p: (p.A, p.y), self, (self.A[indices], self.y[indices]))

    @property
    def coefficient_shape(self) -> tuple[int, ...]:
        """(d, d)."""
        return self.A.shape[1:]


class Classification(AbstractProblem):
    """Binary classification with loss sum_i l(y_i <x_i, beta>).

    Source: Yun et al. 2021, section 4; Gunasekar et al. 2018; Ji & Telgarsky 2019 (who average).

    **Arguments**

    - `X`: shape (n, d), one sample a row.
    - `y`: shape (n,), labels -1 or +1.
    - `loss`: of the margin: `ExponentialLoss()` (default), `LogisticLoss()`,
      `PolynomialLoss(power)`, or an `AbstractMarginLoss` of your own.
    """

    X: Float[Array, "n d"]
    y: Float[Array, " n"]
    margin_loss: AbstractMarginLoss

    def __init__(self, X, y, loss: AbstractMarginLoss | None = None):
        self.X = _as_data(X, "X", "Classification", ndims=(2,))
        self.y = _as_data(y, "y", "Classification", ndims=(1,))
        _require_one_target_per_sample(self.X, self.y, "X", "Classification")
        labels = (-1.0,) if isinstance(self.y, Tracer) else np.unique(np.asarray(self.y))
        wrong = np.setdiff1d(labels, (-1.0, 1.0))
        if wrong.size > 0:
            hint = "2 * y - 1 maps 0/1 labels." if set(wrong) <= {0.0} else "Recode the labels."
            raise ValueError(
                f"Classification: y must hold labels -1 or +1, got {wrong[:5].tolist()}; {hint}"
            )
        if loss is not None and not isinstance(loss, AbstractMarginLoss):
            raise ValueError(
                "Classification: loss must be an object such as lintensor_jax.ExponentialLoss() or "
                f"lintensor_jax.LogisticLoss(), got {in_words(loss)}."
            )
        self.margin_loss = ExponentialLoss() if loss is None else loss

    @property
    def has_margins(self) -> bool:
        """True."""
        return True

    @property
    def signed_data(self) -> Float[Array, "n d"]:
        """Rows z_i = y_i x_i."""
        return self.y[:, None] * self.X

    def margins(self, beta: Float[Array, " d"]) -> Float[Array, " n"]:
        """y_i <x_i, beta>."""
        return self.y * (self.X @ beta)

    def predictions(self, beta: Float[Array, " d"]) -> Float[Array, " n"]:
        """X beta."""
        return self.X @ beta

    def adjoint(self, values: Float[Array, " n"]) -> Float[Array, " d"]:
        """X^T v."""
        return self.X.T @ values

    def subset(self, indices: Int[Array, " b"]) -> "Classification":
        """The problem of the samples `indices`, with repetitions if there are any."""
        return eqx.tree_at(lambda p: (p.X, p.y), self, (self.X[indices], self.y[indices]))

    def residual(self, beta: Float[Array, " d"]) -> Float[Array, " n"]:
        """r_i = y_i l'(m_i); underflows for large margins, where `log_slope` does not."""
        return -self.y * jnp.exp(self.margin_loss.log_slope(self.margins(beta)))

    def log_loss(self, beta: Float[Array, " d"]) -> Float[Array, ""]:
        """log sum_i l(m_i)."""
        return jax.nn.logsumexp(self.margin_loss.log_value(self.margins(beta)))

    @property
    def coefficient_shape(self) -> tuple[int, ...]:
        """(d,)."""
        return (self.X.shape[1],)


def named(problem: Any) -> str:
    """What `problem` is called in messages: its own words, or the name of its class."""
    words = getattr(problem, "in_words", None)
    return words if isinstance(words, str) else type(problem).__name__


def prediction_range(problem: AbstractRegressionProblem) -> Float[Array, "n k"]:
    """Orthonormal columns that span the range of the sensors, padded with zero columns.

    k = min(n, size of a sample) is static, so that problems of one shape share a compilation
    whatever their rank.
    """
    rows = jax.vmap(lambda e: jnp.ravel(_one_output_adjoint(problem, e)))(
        jnp.eye(problem.y.shape[0], dtype=problem.y.dtype)
    )
    if rows.shape[0] == 1:  # known without LAPACK, which takes as long as a small flow
        return jnp.any(rows != 0).astype(rows.dtype)[None, None]
    left, sizes, _ = jnp.linalg.svd(rows, full_matrices=False)
    eps = jnp.finfo(rows.dtype).eps
    kept = sizes > eps * max(rows.shape) * sizes[0]
    return left * kept[None, :]


def _one_output_adjoint(problem, values):
    if problem.y.ndim == 1:
        return problem.adjoint(values)
    return problem.adjoint(values[:, None])


def _as_data(value, name, owner, ndims):
    array = jnp.asarray(value)
    if not jnp.issubdtype(array.dtype, jnp.inexact):
        array = array.astype(float)
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise ValueError(f"{owner}: {name} must be real, got dtype {array.dtype}; pass its parts.")
    if array.ndim not in ndims:
        axes = " or ".join(str(n) for n in ndims)
        raise ValueError(
            f"{owner}: {name} must have {axes} axes, got shape {array.shape}; "
            "samples are rows, see the class's docstring."
        )
    if 0 in array.shape:
        raise ValueError(
            f"{owner}: {name} must not be empty, got shape {array.shape}; "
            "pass at least one sample with at least one entry."
        )
    if not isinstance(array, Tracer) and not np.isfinite(np.asarray(array)).all():
        where = np.argwhere(~np.isfinite(np.asarray(array)))[0].tolist()
        raise ValueError(
            f"{owner}: {name} must be finite, got {np.asarray(array)[tuple(where)]} at index "
            f"{where}; remove or impute that sample."
        )
    return array


def _require_one_target_per_sample(X, y, name, owner):
    if X.shape[0] != y.shape[0]:
        fix = f"give y one target for each of {name}'s {X.shape[0]} samples, which are its rows"
        if X.ndim == 2 and X.shape[1] == y.shape[0]:
            fix += f", or transpose {name} if its columns are the samples"
        raise ValueError(
            f"{owner}: {name} and y must have one row per sample, got {X.shape[0]} and "
            f"{y.shape[0]} rows ({name} has shape {X.shape}, y {y.shape}); {fix}."
        )

"""Problems: data and a loss, as functions of the linear coefficients beta alone.

All losses are *sums* over the samples, as in Yun, Krishnan & Mobahi 2021. Ji & Telgarsky 2019
average over the samples: their flow is n times slower.
"""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from .losses import AbstractMarginLoss, AbstractResidualLoss, ExponentialLoss, SquaredLoss
from .messages import in_words
from .samples import as_data, require_one_target_per_sample, with_ones


class AbstractProblem(eqx.Module):
    """Data and a loss. It depends on a network only through the network's linear coefficients.

    **Optional method** `subset(indices)`: the problem of the samples with these numbers, for the
    mini-batches of `gradient_descent`.

    A problem of your own extends `AbstractRegressionProblem`, `AbstractSquaredProblem` or
    `Classification`. These define the properties that flows read.
    """

    @property
    def has_margins(self) -> bool:
        """Whether the loss is one of margins, as in `Classification`.

        Such a problem has `margin_loss`, `margins(beta)`, `margins_adjoint(weights)`,
        `log_losses(margins)`, `log_slopes(margins)`, `signed_data`, `has_valid_targets`, `X` and
        `y`. Its flows have a limit direction instead of a limit; they end at a margin.
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
    def has_bias(self) -> bool:
        """Whether the last coefficient is a bias: X has a last column of ones."""
        return False

    def bias_as_feature(self) -> "AbstractProblem":
        """The same data with the column of ones as an ordinary feature, as flows treat it."""
        return self

    def with_bias(self) -> "AbstractProblem":
        """The same problem with a bias as its last coefficient."""
        raise ValueError(
            f"bias: a problem of the class {type(self).__name__} has none; give the network no "
            "bias, or use Regression, Classification or MulticlassClassification."
        )

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
        """True: the loss is a function of the residuals."""
        return True

    @property
    def has_squared_loss(self) -> bool:
        """Whether `residual_loss` is the squared loss."""
        return self.residual_loss.is_squared

    @property
    def samples_are_independent(self) -> bool:
        """Whether it is known without a computation that every y is predicted by some beta.

        False means that this is not known; then a flow computes it.
        """
        return False

    @property
    def in_words(self) -> str:
        """The class, and the loss unless it is the squared one."""
        name = type(self).__name__
        return name if self.has_squared_loss else f"{name} with {type(self.residual_loss).__name__}"

    def residual(self, beta: Float[Array, "..."]) -> Float[Array, "..."]:
        """l'(predictions(beta) - y), shape as y. For the squared loss: predictions - y."""
        return self.residual_loss.slope(self.predictions(beta) - self.y)

    def loss(self, beta: Float[Array, "..."]) -> Float[Array, ""]:
        """sum_i l(r_i)."""
        return self.residual_loss.total(self.predictions(beta) - self.y)

    def log_loss(self, beta: Float[Array, "..."]) -> Float[Array, ""]:
        """log sum_i l(r_i), without underflow for the squared loss; -inf at an exact fit."""
        return self.residual_loss.log_total(self.predictions(beta) - self.y)


class AbstractSquaredProblem(AbstractRegressionProblem):
    """Squared loss, 1/2 sum_i r_i^2: the residual is predictions - y."""

    @property
    def residual_loss(self) -> AbstractResidualLoss:
        """`SquaredLoss()`: the loss l(r) of a residual."""
        return SquaredLoss()


class Regression(AbstractRegressionProblem):
    """Linear regression with loss 1/2 sum_i (<x_i, beta> - y_i)^2, or another loss l(r_i).

    Source: Yun et al. 2021, section 5 (there n <= d: underdetermined; any n is accepted here).

    **Arguments**

    - `X`: shape (n, d), one sample in each row.
    - `y`: shape (n,), or (n, m) for networks with m outputs.
    - `loss`: of r_i = <x_i, beta> - y_i: `SquaredLoss()` (default), `HuberLoss(delta)`,
      `LogCoshLoss()`, or an `AbstractResidualLoss` of your own.
    - `bias`: whether a bias is the last coefficient, for networks with `bias=True`. X gets a last
      column of ones. Norms leave the bias out, as in `min_norm`.
    """

    X: Float[Array, "n d"]
    y: Float[Array, "..."]
    # The defaults are for stores that were written before these fields existed.
    residual_loss: AbstractResidualLoss = SquaredLoss()
    bias: bool = eqx.field(static=True, default=False)

    def __init__(self, X, y, loss: AbstractResidualLoss | None = None, *, bias: bool = False):
        self.X = as_data(X, "X", "Regression", ndims=(2,))
        self.y = as_data(y, "y", "Regression", ndims=(1, 2))
        require_one_target_per_sample(self.X, self.y, "X", "Regression")
        if loss is not None and not isinstance(loss, AbstractResidualLoss):
            raise ValueError(
                "Regression: loss must be an object such as lintensor_jax.HuberLoss(1.0), got "
                f"{in_words(loss)}; leave it out for the squared loss."
            )
        self.residual_loss = SquaredLoss() if loss is None else loss
        self.bias = bias
        self.X = with_ones(self.X) if bias else self.X

    @property
    def has_bias(self) -> bool:
        """Whether X has a last column of ones for a bias."""
        return self.bias

    def bias_as_feature(self) -> "Regression":
        """The same data with the column of ones as an ordinary feature, as flows treat it."""
        return Regression(self.X, self.y, self.residual_loss) if self.bias else self

    def with_bias(self) -> "Regression":
        """The same problem with a bias as its last coefficient."""
        return Regression(self.X, self.y, self.residual_loss, bias=True)

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

    Source: Yun et al. 2021, eq. (13), without the 1/2, which only rescales time.

    **Arguments**

    - `A`: shape (n, d, d), one sensor A_i for each sample, not necessarily symmetric or commuting.
    - `y`: shape (n,).
    """

    A: Float[Array, "n d d"]
    y: Float[Array, " n"]

    def __init__(self, A, y):
        self.A = as_data(A, "A", "MatrixSensing", ndims=(3,))
        self.y = as_data(y, "y", "MatrixSensing", ndims=(1,))
        if self.A.shape[1] != self.A.shape[2]:
            raise ValueError(
                f"MatrixSensing: A must hold square sensors, shape (n, d, d), got {self.A.shape}; "
                "the samples come first (jnp.moveaxis), and rectangular sensors can be padded with "
                "zeros."
            )
        require_one_target_per_sample(self.A, self.y, "A", "MatrixSensing")

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


@jax.jit
def _signed_rows(y, X):
    return y[:, None] * X


class Classification(AbstractProblem):
    """Binary classification with loss sum_i l(y_i <x_i, beta>).

    Source: Yun et al. 2021, section 4; Gunasekar et al. 2018; Ji & Telgarsky 2019 (with the mean).

    **Arguments**

    - `X`: shape (n, d), one sample in each row.
    - `y`: shape (n,), labels -1 or +1.
    - `loss`: of the margin: `ExponentialLoss()` (default), `LogisticLoss()`,
      `PolynomialLoss(power)`, or an `AbstractMarginLoss` of your own.
    - `bias`: whether a bias is the last coefficient, for networks with `bias=True`. X gets a last
      column of ones. Norms leave the bias out, as in `max_margin`.
    """

    X: Float[Array, "n d"]
    y: Float[Array, " n"]
    margin_loss: AbstractMarginLoss
    # The default is for stores that were written before this field existed.
    bias: bool = eqx.field(static=True, default=False)

    def __init__(self, X, y, loss: AbstractMarginLoss | None = None, *, bias: bool = False):
        self.X = as_data(X, "X", "Classification", ndims=(2,))
        self.y = as_data(y, "y", "Classification", ndims=(1,))
        require_one_target_per_sample(self.X, self.y, "X", "Classification")
        labels = (-1.0,) if isinstance(self.y, Tracer) else np.unique(np.asarray(self.y))
        wrong = np.setdiff1d(labels, (-1.0, 1.0))
        if wrong.size > 0:
            hint = (
                "2 * y - 1 maps 0/1 labels."
                if set(wrong) <= {0.0}
                else "write two classes as -1 and 1; lintensor_jax.MulticlassClassification has "
                "more classes, with labels 0, 1, 2, ..."
            )
            raise ValueError(
                f"Classification: y must hold labels -1 or +1, got {wrong[:5].tolist()}; {hint}"
            )
        if loss is not None and not isinstance(loss, AbstractMarginLoss):
            raise ValueError(
                "Classification: loss must be an object such as lintensor_jax.ExponentialLoss() or "
                f"lintensor_jax.LogisticLoss(), got {in_words(loss)}."
            )
        self.margin_loss = ExponentialLoss() if loss is None else loss
        self.bias = bias
        self.X = with_ones(self.X) if bias else self.X

    @property
    def has_bias(self) -> bool:
        """Whether X has a last column of ones for a bias."""
        return self.bias

    def bias_as_feature(self) -> "Classification":
        """The same data with the column of ones as an ordinary feature, as flows treat it."""
        return Classification(self.X, self.y, self.margin_loss) if self.bias else self

    def with_bias(self) -> "Classification":
        """The same problem with a bias as its last coefficient."""
        return Classification(self.X, self.y, self.margin_loss, bias=True)

    @property
    def labels(self) -> Float[Array, " n"]:
        """The class of each sample: y."""
        return self.y

    @property
    def has_margins(self) -> bool:
        """True: the loss is a function of the margins."""
        return True

    @property
    def signed_data(self) -> Float[Array, "n d"]:
        """Rows z_i = y_i x_i."""
        return _signed_rows(self.y, self.X)

    @property
    def has_valid_targets(self) -> Bool[Array, ""]:
        """Whether all labels are -1 or +1; traceable."""
        return jnp.all(jnp.abs(self.y) == 1)

    def margins(self, beta: Float[Array, " d"]) -> Float[Array, " n"]:
        """y_i <x_i, beta>."""
        return self.y * (self.X @ beta)

    def margins_adjoint(self, weights: Float[Array, " n"]) -> Float[Array, " d"]:
        """sum_i w_i y_i x_i, the transpose of `margins`."""
        return self.adjoint(self.y * weights)

    def log_losses(self, margins: Float[Array, " n"]) -> Float[Array, " n"]:
        """log l(m_i)."""
        return self.margin_loss.log_value(margins)

    def log_slopes(self, margins: Float[Array, " n"]) -> Float[Array, " n"]:
        """log(-l'(m_i))."""
        return self.margin_loss.log_slope(margins)

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
        """r_i = y_i l'(m_i); underflows for large margins, where `log_slopes` does not."""
        return -self.y * jnp.exp(self.margin_loss.log_slope(self.margins(beta)))

    def log_loss(self, beta: Float[Array, " d"]) -> Float[Array, ""]:
        """log sum_i l(m_i)."""
        return jax.nn.logsumexp(self.margin_loss.log_value(self.margins(beta)))

    @property
    def coefficient_shape(self) -> tuple[int, ...]:
        """(d,)."""
        return (self.X.shape[1],)


def named(problem: Any) -> str:
    """What `problem` is called in messages: its `in_words`, or the name of its class."""
    words = getattr(problem, "in_words", None)
    return words if isinstance(words, str) else type(problem).__name__

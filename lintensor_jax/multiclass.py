"""Classification with several classes: cross-entropy, in the logarithmic domain."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from .arguments import as_numbers
from .losses import AbstractMarginLoss, LogisticLoss
from .messages import in_words
from .problems import AbstractProblem
from .samples import as_data, require_one_target_per_sample, with_ones


class MulticlassClassification(AbstractProblem):
    """Cross-entropy over m classes, sum_i log(1 + sum_{c != y_i} exp(-m_ic)).

    The margins are m_ic = f_{y_i}(x_i) - f_c(x_i) for the m - 1 other classes c, with outputs
    f(x) = x^T beta, beta of shape (d, m). For two classes this is the logistic loss of one margin.
    No margin is exponentiated, so that a loss of exp(-1e8) does not underflow.

    Source: Soudry et al. 2018, section 4; Lyu & Li 2020, appendix G.

    **Arguments**

    - `X`: shape (n, d), one sample in each row.
    - `labels`: shape (n,), integers 0, ..., m - 1.
    - `num_classes`: m; default: the largest label plus one.
    - `bias`: whether biases are the last row of beta, for networks with `bias=True`. X gets a last
      column of ones. Norms leave the biases out, as in `max_margin`.

    **Raises** ValueError for labels that are not integers 0, ..., m - 1.

    **Fields**

    - `targets`: shape (n, m), 1 for the class of the sample, 0 elsewhere.
    - `before`: shape (n, m - 1), 1 if the k-th other class is class k, 0 if it is class k + 1.
    """

    X: Float[Array, "n d"]
    targets: Float[Array, "n m"]
    before: Float[Array, "n others"]
    bias: bool = eqx.field(static=True, default=False)

    def __init__(self, X, labels, num_classes: int | None = None, *, bias: bool = False):
        owner = "MulticlassClassification"
        self.X = as_data(X, "X", owner, ndims=(2,))
        if isinstance(labels, Tracer):
            given: Any = labels
            count = num_classes
            if count is None:
                raise ValueError(
                    f"{owner}: num_classes must be given for traced labels, got None; pass the "
                    "number of classes m."
                )
        else:
            given, count = _checked(labels, num_classes, owner)
        require_one_target_per_sample(self.X, given, "X", owner, "labels")
        classes = jnp.arange(count)
        numbers = jnp.asarray(given)[:, None]
        self.targets = (numbers == classes[None]).astype(self.X.dtype)
        self.before = (classes[None, :-1] < numbers).astype(self.X.dtype)
        self.bias = bias
        self.X = with_ones(self.X) if bias else self.X

    @property
    def has_margins(self) -> bool:
        """True: the loss is a function of the margins m_ic."""
        return True

    @property
    def has_bias(self) -> bool:
        """Whether X has a last column of ones for the biases."""
        return self.bias

    def bias_as_feature(self) -> "MulticlassClassification":
        """The same data with the column of ones as an ordinary feature, as flows treat it."""
        if not self.bias:
            return self
        return MulticlassClassification(self.X, self.labels, self.num_classes)

    def with_bias(self) -> "MulticlassClassification":
        """The same problem with biases as the last row of its coefficients."""
        return MulticlassClassification(self.X, self.labels, self.num_classes, bias=True)

    def subset(self, indices: Int[Array, " b"]) -> "MulticlassClassification":
        """The problem of the samples `indices`, with repetitions if there are any."""
        of_samples = (self.X[indices], self.targets[indices], self.before[indices])
        return eqx.tree_at(lambda p: (p.X, p.targets, p.before), self, of_samples)

    @property
    def num_classes(self) -> int:
        """The number of classes m."""
        return self.targets.shape[-1]

    @property
    def labels(self) -> Int[Array, " n"]:
        """The class of each sample, 0, ..., m - 1."""
        return jnp.argmax(self.targets, axis=-1)

    @property
    def y(self) -> Float[Array, "n m"]:
        """`targets`, under the name that all problems share."""
        return self.targets

    @property
    def has_valid_targets(self) -> Bool[Array, ""]:
        """Whether each row of `targets` has a single 1 and is 0 elsewhere; traceable."""
        one = jnp.all(jnp.sum(self.targets, axis=-1) == 1)
        return one & jnp.all(self.targets * (1 - self.targets) == 0)

    @property
    def margin_loss(self) -> AbstractMarginLoss:
        """`LogisticLoss()`: the loss of a sample as a function of its margin to all other classes.

        That margin is -log sum_c exp(-m_ic). The tail, the inverse and the other facts that
        theorems need are those of the logistic loss.
        """
        return LogisticLoss()

    @property
    def signed_data(self) -> Float[Array, "n others d m"]:
        """The matrices Z_ic with m_ic = <Z_ic, beta>: x_i in column y_i, -x_i in column c."""
        eye = jnp.eye(self.num_classes, dtype=self.X.dtype)
        here = self.before[:, :, None]
        other = here * eye[None, :-1] + (1 - here) * eye[None, 1:]
        return self.X[:, None, :, None] * (self.targets[:, None] - other)[:, :, None]

    def margins(self, beta: Float[Array, "d m"]) -> Float[Array, "n others"]:
        """m_ic, with the other classes c in increasing order."""
        outputs = self.predictions(beta)
        own = jnp.sum(jnp.where(self.targets > 0, outputs, 0), axis=1, keepdims=True)
        return own - jnp.where(self.before > 0, outputs[:, :-1], outputs[:, 1:])

    def margins_adjoint(self, weights: Float[Array, "n others"]) -> Float[Array, "d m"]:
        """sum_ic w_ic Z_ic, the transpose of `margins`."""
        ahead = jnp.concatenate([weights, weights[:, -1:]], axis=1)
        behind = jnp.concatenate([weights[:, :1], weights], axis=1)
        before = jnp.concatenate([self.before, jnp.zeros_like(self.before[:, :1])], axis=1)
        own = jnp.sum(weights, axis=1, keepdims=True)
        others = jnp.where(before > 0, ahead, behind)
        return self.adjoint(jnp.where(self.targets > 0, own, -others))

    def log_losses(self, margins: Float[Array, "n others"]) -> Float[Array, " n"]:
        """log of each sample's loss."""
        return LogisticLoss().log_value(_to_all_others(margins))

    def log_slopes(self, margins: Float[Array, "n others"]) -> Float[Array, "n others"]:
        """log(-dl_i/dm_ic) = -m_ic - log(1 + sum_c exp(-m_ic))."""
        return -margins - jax.nn.softplus(-_to_all_others(margins))[:, None]

    def predictions(self, beta: Float[Array, "d m"]) -> Float[Array, "n m"]:
        """The outputs X beta."""
        return self.X @ beta

    def adjoint(self, values: Float[Array, "n m"]) -> Float[Array, "d m"]:
        """X^T v."""
        return self.X.T @ values

    def residual(self, beta: Float[Array, "d m"]) -> Float[Array, "n m"]:
        """The softmax p of the outputs minus `targets`; underflows where `log_slopes` does not.

        The entry of the sample's class is -sum_c p_c over the other classes c: p - 1 would lose
        its digits to rounding.
        """
        own = self.targets > 0
        others = jnp.where(own, 0, jax.nn.softmax(self.predictions(beta), axis=1))
        return jnp.where(own, -jnp.sum(others, axis=1, keepdims=True), others)

    def log_loss(self, beta: Float[Array, "d m"]) -> Float[Array, ""]:
        """log of the sum of the losses."""
        return jax.nn.logsumexp(self.log_losses(self.margins(beta)))

    @property
    def coefficient_shape(self) -> tuple[int, ...]:
        """(d, m)."""
        return (self.X.shape[1], self.num_classes)


def _to_all_others(margins):
    """-log sum_c exp(-m_ic), shape (n,)."""
    top = jax.lax.stop_gradient(jnp.max(-margins, axis=1, keepdims=True))
    return -(top[:, 0] + jnp.log(jnp.sum(jnp.exp(-margins - top), axis=1)))


def _is_count(value):
    is_int = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return is_int and value >= 2


def _checked(labels, num_classes, owner):
    """The labels as integers, and the number of classes."""
    try:
        array = np.asarray(labels)
    except ValueError:  # a ragged list, for which `as_numbers` raises an error with the name
        array = np.asarray(as_numbers(labels, "labels", owner))
    whole = np.issubdtype(array.dtype, np.integer) or (
        np.issubdtype(array.dtype, np.floating) and (array == np.floor(array)).all()
    )
    if array.ndim != 1 or not array.size or not whole:
        raise ValueError(
            f"{owner}: labels must be integers 0, ..., m - 1, shape (n,), got shape {array.shape} "
            f"of {array.dtype}; numpy.unique(labels, return_inverse=True)[1] numbers any labels."
        )
    if num_classes is not None and not _is_count(num_classes):
        raise ValueError(
            f"{owner}: num_classes must be an int >= 2, got {in_words(num_classes)}; leave it out "
            "for the largest label + 1."
        )
    if not (np.abs(array) < 2**31).all():
        raise ValueError(
            f"{owner}: labels must be below 2^31, got {array[np.abs(array) >= 2**31][0]}; "
            "numpy.unique(labels, return_inverse=True)[1] numbers any labels."
        )
    numbers = array.astype(int)
    count = max(int(numbers.max()) + 1, 2) if num_classes is None else num_classes
    # n labels miss at least one of the n + 1 numbers 0, ..., n: there is no need to look further.
    first = np.arange(min(count, array.size + 1) if num_classes is None else 0)
    missing = np.setdiff1d(first, numbers)
    wrong = numbers[(numbers < 0) | (numbers >= count)]
    if wrong.size or missing.size:
        none = f"none of {missing[:5].tolist()}"
        got = f"{np.unique(wrong)[:5].tolist()}" if wrong.size else none
        raise ValueError(
            f"{owner}: labels must be 0, ..., {count - 1}, got {got}; "
            "numpy.unique(labels, return_inverse=True)[1] numbers any labels, and num_classes "
            "allows classes without samples."
        )
    return numbers, count

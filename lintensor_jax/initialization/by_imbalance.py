"""Two-layer starts by their imbalance: U (d, h) is the first layer W_1, V^T (h, m) the last, W_2.

Each function takes a template and returns a network of its shapes. The parameters of the template
are ignored. `lintensor_jax.initialization` exports all public functions.

Sources: Min et al. 2021, sections 4 and 5 and Appendix A; Saxe et al. 2014; Tarmoun et al. 2021.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import ArrayLike, Float, PRNGKeyArray, Scalar

from ..arguments import as_number, as_numbers, require_key
from ..networks.fully_connected import FullyConnectedNetwork
from ..problems import Regression


def imbalanced(
    like: FullyConnectedNetwork,
    key: PRNGKeyArray,
    *,
    first_scale: float | Scalar,
    last_scale: float | Scalar,
) -> FullyConnectedNetwork:
    """U = first_scale U_0, V = last_scale V_0 with standard normal U_0, V_0 drawn from `key`.

    With the same key, equal products of the scales give equal end-to-end matrices, and a larger
    quotient gives a larger imbalance. Traceable.

    Source: Min et al. 2021, section 5.2.

    **Arguments**

    - `like`: two layers, (d, h) and (h,) or (h, m).
    - `first_scale`, `last_scale`: positive numbers.
    """
    first, last = _layers("imbalanced", like)
    for name, scale in (("first_scale", first_scale), ("last_scale", last_scale)):
        _require_positive("imbalanced", name, scale)
    require_key(key, "key", "imbalanced")
    return FullyConnectedNetwork(
        scale * jax.random.normal(jax.random.fold_in(key, index), w.shape, w.dtype)
        for index, (w, scale) in enumerate(((first, first_scale), (last, last_scale)))
    )


def width_scaled(
    like: FullyConnectedNetwork, key: PRNGKeyArray, exponent: float = 0.5
) -> FullyConnectedNetwork:
    """Entries of both layers from N(0, h^(-2 exponent)), h the width. Traceable.

    Lemma 11 and Theorem 12 of Min et al. 2021 are about exponents in (1/4, 1/2].

    **Arguments**

    - `like`: two layers, (d, h) and (h,) or (h, m).
    - `exponent`: a positive number.
    """
    first, _ = _layers("width_scaled", like)
    _require_positive("width_scaled", "exponent", exponent)
    scale = first.shape[1] ** -exponent
    return imbalanced(like, key, first_scale=scale, last_scale=scale)


def balanced_on_data(
    like: FullyConnectedNetwork, coefficients: Float[ArrayLike, "..."], problem: Regression
) -> FullyConnectedNetwork:
    """U V^T = `coefficients`, with imbalance U_1^T U_1 - V^T V = 0 on the range of the data.

    U_1 is the part of U in the range of X^T. U = B (B^T P B)^(-1/4) Q^T and
    V = (B^T P B)^(1/4) Q^T with B the coefficients, P the projection on the range of X^T, and Q
    the first m columns of the identity of size h. (`balanced` makes U^T U and V^T V equal. That is
    the same if the columns of B lie in the range of X^T.)

    Source: Min et al. 2021, section 5.2.

    **Arguments**

    - `like`: two layers, (d, h) and (h,) or (h, m), h >= m.
    - `coefficients`: shape (d,) or (d, m), with P B of rank m.
    - `problem`: a `Regression` with samples of size d.

    **Raises** ValueError if h < m, and if the rank of P B is less than m: then a network with this
    imbalance and these coefficients may not exist.
    """
    owner = "balanced_on_data"
    first, _ = _layers(owner, like)
    beta = _coefficients(owner, like, coefficients)
    inside = _row_space_basis(owner, problem, first) @ beta
    width, outputs = first.shape[1], beta.shape[1]
    if width < outputs:
        raise ValueError(
            f"{owner}: the hidden layer must be at least as wide as there are outputs, got h = "
            f"{width} and m = {outputs}; widen it, or use balanced."
        )
    _, sizes, right = jnp.linalg.svd(inside, full_matrices=False)
    smallest = float(sizes[-1]) if len(sizes) == outputs else 0.0
    if smallest <= max(beta.shape) * jnp.finfo(beta.dtype).eps * float(sizes[0]):
        raise ValueError(
            f"{owner}: coefficients must have rank m = {outputs} on the range of X^T, got smallest "
            f"singular value {smallest:.3g} there; use balanced, or other coefficients."
        )
    frame = jnp.eye(outputs, width, dtype=beta.dtype)
    root = right.T * jnp.sqrt(sizes)[None, :]
    return _network(like, beta @ (root / sizes[None, :]) @ right @ frame, (root @ right @ frame).T)


def spectral(
    like: FullyConnectedNetwork, problem: Regression, first: ArrayLike, last: ArrayLike
) -> FullyConnectedNetwork:
    """U = A diag(first), V = B diag(last) on the first k units, where X^T Y = A S B^T.

    If all non-zero singular values of X are equal, the modes never mix: mode i moves as the scalar
    network u v with the target s_i and the imbalance first_i^2 - last_i^2. The part U_2 of U
    outside of the range of X^T is 0, so that the start is in the invariant set of Proposition 10
    (Min et al. 2021).

    Source: Saxe et al. 2014; Tarmoun et al. 2021.

    **Arguments**

    - `like`: two layers, (d, h) and (h,) or (h, m).
    - `problem`: a `Regression` with samples of size d and targets of shape (n,) or (n, m).
    - `first`, `last`: k numbers, or one number for all k modes; k is the rank of X^T Y, at most h.
    """
    owner = "spectral"
    before, after = _layers(owner, like)
    _require_fit(owner, problem, before)
    if problem.y.shape[1:] != after.shape[1:]:
        raise ValueError(
            f"{owner}: problem's targets must have the shape of the network's outputs, got "
            f"{problem.y.shape[1:]} and {after.shape[1:]} after the axis of the samples."
        )
    moments = problem.X.T @ problem.y.reshape(problem.y.shape[0], -1)
    left, sizes, right = jnp.linalg.svd(moments, full_matrices=False)
    count = int(jnp.sum(sizes > max(moments.shape) * jnp.finfo(sizes.dtype).eps * sizes[0]))
    width = before.shape[1]
    if count > width:
        raise ValueError(
            f"{owner}: the hidden layer must have a unit for each of the {count} modes of X^T Y, "
            f"got width {width}; widen it."
        )
    first, last = as_numbers(first, "first", owner), as_numbers(last, "last", owner)
    if any(jnp.iscomplexobj(a) or not np.isfinite(a).all() for a in (first, last)):
        raise ValueError(f"{owner}: first and last must be real and finite, got {first}, {last}.")
    shapes = [jnp.shape(first), jnp.shape(last)]
    if any(shape not in ((), (count,)) for shape in shapes):
        raise ValueError(
            f"{owner}: first and last must be numbers or have one entry for each of the {count} "
            f"modes of X^T Y, got shapes {shapes[0]} and {shapes[1]}."
        )
    sizes = [jnp.broadcast_to(jnp.asarray(a, moments.dtype), (count,)) for a in (first, last)]
    frame = jnp.eye(count, width, dtype=moments.dtype)
    u = (left[:, :count] * sizes[0][None, :]) @ frame
    v = (right[:count].T * sizes[1][None, :]) @ frame
    return _network(like, u, v.T)


def invariant(
    like: FullyConnectedNetwork,
    problem: Regression,
    key: PRNGKeyArray,
    scale: float | Scalar = 1.0,
) -> FullyConnectedNetwork:
    """Normal entries of standard deviation `scale`, projected on V U_2^T = 0 and U_1 U_2^T = 0.

    U_1 is the part of U in the range of X^T (of dimension r), and U_2 is the rest. From this start
    the flow ends exactly at the min-norm solution, if its loss tends to zero; the first condition
    alone is not enough. U_2 never moves. Its rows are projected on the orthogonal complement of the
    rows of U_1 and V, so that U_2 = 0 if h <= r + m.

    Source: Min et al. 2021, Proposition 10.

    **Arguments**

    - `like`: two layers, (d, h) and (h,) or (h, m).
    - `problem`: a `Regression` with samples of size d.
    - `scale`: a positive number.
    """
    owner = "invariant"
    first, last = _layers(owner, like)
    _require_positive(owner, "scale", scale)
    span = _row_space_basis(owner, problem, first)
    drawn = imbalanced(like, key, first_scale=scale, last_scale=scale)
    u, v = drawn.weights[0], drawn.weights[1].reshape(last.shape[0], -1)
    inside = span @ u
    outside = u - span.T @ inside
    used = jnp.concatenate([inside, v.T])
    if len(used) >= first.shape[1]:
        return _network(like, span.T @ inside, v)
    units = jnp.linalg.qr(used.T)[0]
    # Two projections: the error of one is rounding of the size of U_2 before it, which may be
    # large relative to U_2 after it.
    for _ in range(2):
        outside = outside - (outside @ units) @ units.T
        outside = outside - span.T @ (span @ outside)
    return _network(like, span.T @ inside + outside, v)


def lambda_balanced(
    like: FullyConnectedNetwork, coefficients: Float[ArrayLike, "..."], gap: float
) -> FullyConnectedNetwork:
    """U V^T = `coefficients` with V^T V - U^T U = gap I, of size h.

    For networks that are written W_2 W_1 x, this is W_2^T W_2 - W_1 W_1^T = gap I. From the
    singular value decomposition A S B^T of the coefficients: U = A diag(a), V = B diag(b) with
    a b = s and b^2 - a^2 = gap.

    Source: Tarmoun et al. 2021; Saxe et al. 2014 for gap = 0.

    **Arguments**

    - `like`: two layers, (d, h) and (h,) or (h, m).
    - `coefficients`: shape (d,) or (d, m), of rank at most h.
    - `gap`: any number; h <= m if it is positive and h <= d if it is negative, since V^T V - gap I
      and U^T U - |gap| I must be positive semi-definite.
    """
    owner = "lambda_balanced"
    first, _ = _layers(owner, like)
    beta = _coefficients(owner, like, coefficients)
    width, (inputs, outputs) = first.shape[1], beta.shape
    gap = as_number(gap, "gap", owner)
    if not np.isfinite(gap):
        raise ValueError(f"{owner}: gap must be finite, got {gap}; zero balances the layers.")
    side, most = ("m", outputs) if gap > 0 else ("d", inputs)
    if gap and width > most:
        raise ValueError(
            f"{owner}: gap must be 0 for a hidden layer of width {width} > {side} = {most}, got "
            f"{gap:g}; the rank of a layer is too small for this gap: narrow the hidden layer."
        )
    left, sizes, right = jnp.linalg.svd(beta, full_matrices=True)
    beyond = sizes[width:]
    if beyond.size and beyond[0] > max(beta.shape) * jnp.finfo(beta.dtype).eps * sizes[0]:
        raise ValueError(
            f"{owner}: coefficients must have rank at most h = {width}, got singular value "
            f"{float(beyond[0]):.3g} of higher index; widen the hidden layer."
        )
    count = min(width, max(inputs, outputs))
    s = jnp.pad(sizes[:width], (0, max(0, count - len(sizes))))[:count]
    root = jnp.sqrt(gap**2 + 4 * s**2)
    larger = jnp.sqrt((jnp.abs(gap) + root) / 2)
    smaller = jnp.where(larger > 0, s / jnp.where(larger > 0, larger, 1), 0)
    a, b = (smaller, larger) if gap >= 0 else (larger, smaller)

    def columns(vectors, values):
        # If there are fewer than `count` vectors, the remaining columns are zero.
        kept = min(vectors.shape[1], count)
        scaled = vectors[:, :kept] * values[None, :kept]
        return jnp.pad(scaled, ((0, 0), (0, width - kept)))

    return _network(like, columns(left, a), columns(right.T, b).T)


def _network(like, first, last):
    return FullyConnectedNetwork((first, last.reshape(like.weights[1].shape)))


def _layers(owner, like):
    if not isinstance(like, FullyConnectedNetwork) or like.depth != 2:
        got = type(like).__name__
        if isinstance(like, FullyConnectedNetwork):
            got = f"{like.depth} layers"
        raise ValueError(
            f"{owner}: like must be a FullyConnectedNetwork of two layers, got {got}; "
            "lintensor_jax.initialization.gaussian and balanced take other networks."
        )
    return like.weights


def _require_positive(owner, name, value):
    value = as_number(value, name, owner)
    if not isinstance(value, Tracer) and not 0 < value < float("inf"):
        raise ValueError(f"{owner}: {name} must be positive and finite, got {value}.")


def _require_fit(owner, problem: Any, first):
    if not isinstance(problem, Regression):
        raise ValueError(
            f"{owner}: problem must be a Regression, got {type(problem).__name__}; only X and y of "
            "the squared loss are read."
        )
    if problem.X.shape[1] != first.shape[0]:
        raise ValueError(
            f"{owner}: problem's samples must have the size of the network's inputs, got "
            f"{problem.X.shape[1]} and {first.shape[0]}."
        )


def _row_space_basis(owner, problem, first):
    """Orthonormal rows that span the range of X^T."""
    _require_fit(owner, problem, first)
    sizes, right = jnp.linalg.svd(problem.X, full_matrices=False)[1:]
    return right[np.asarray(sizes > max(problem.X.shape) * jnp.finfo(sizes.dtype).eps * sizes[0])]


def _coefficients(owner, like, value):
    beta = as_numbers(value, "coefficients", owner)
    if jnp.iscomplexobj(beta):
        raise ValueError(f"{owner}: coefficients must be real, got {beta.dtype}; pass its parts.")
    beta = beta.astype(like.weights[0].dtype)
    expected = (like.weights[0].shape[0], *like.weights[1].shape[1:])
    if beta.shape != expected:
        raise ValueError(
            f"{owner}: coefficients must have shape {expected}, that of the template's "
            f"linear_coefficients(), got {beta.shape}; change one of the two."
        )
    if not bool(jnp.all(jnp.isfinite(beta))):
        raise ValueError(
            f"{owner}: coefficients must be finite, got {np.asarray(beta).ravel()[:4]}...; check "
            "the values that they were computed from."
        )
    return beta.reshape(expected[0], -1)

"""Initial parameters by their scale or by their linear coefficients beta(0).

The docstring of `lintensor_jax.initialization` says what a template is, and what can be traced.
"""

import inspect
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, PRNGKeyArray, Scalar

from ..arguments import as_number, require_key
from ..networks.base import Network, as_parameter, require_network, split
from ..networks.closed_forms import architectures_with, closed_form, described
from ..networks.pair import coefficients_like
from ..networks.starts import size_of_first_layers


def gaussian(like: Network, key: PRNGKeyArray, scale: float | Scalar = 1.0) -> Network:
    """Independent normal entries of standard deviation `scale` in every parameter.

    **Arguments**

    - `like`: the template: any network, including your own `equinox.Module`. Fields declared by
      `lintensor_jax.constant` are kept.
    - `key`: a PRNG key; leaf i of the parameters draws from `jax.random.fold_in(key, i)`.
    - `scale`: one finite number.

    **Raises** ValueError if `like` is not a network, `key` is not a PRNG key, or `scale` is not
    one finite number.
    """
    require_network(like, "like", "gaussian")
    require_key(key, "key", "gaussian")
    if not _traced(scale) and not np.isfinite(as_number(scale, "scale", "gaussian")):
        raise ValueError(f"gaussian: scale must be finite, got {scale}; 1.0 is the default.")
    parameters, rest = split(like)
    leaves, structure = jax.tree.flatten(parameters)
    drawn = [
        jnp.asarray(scale, leaf.dtype)
        * jax.random.normal(jax.random.fold_in(key, index), leaf.shape, leaf.dtype)
        for index, leaf in enumerate(leaves)
    ]
    return eqx.combine(jax.tree.unflatten(structure, drawn), rest)


def zero_last_layer(like: Network) -> Network:
    """`like` itself with its last layer set to zero, so that beta(0) = 0.

    The result satisfies the initial conditions of Theorems 2 and 6 of Yun et al. 2021 if no
    component of the other layers along the singular vectors is zero. A user-defined network needs
    `factors` and `with_factors`; ValueError otherwise.
    """
    first, last = _factors("zero_last_layer", like)
    return like.with_factors((*first, jnp.zeros_like(last)))  # pyright: ignore


def identity(like: Network) -> Network:
    """Zero-asymmetric initialization: the last layer is zero, and every other layer the identity.

    Source: Wu et al. 2019, as generalised by Yun et al. 2021, Theorem 7. The identity is a vector
    of ones for a diagonal network, and a unit impulse for a convolutional network. It is the
    identity matrix for a matrix factorization (the start of Corollary 7) and for a fully-connected
    network. If hidden layers are wider than the input, it is the identity on the first d units and
    zero elsewhere. The additional units stay zero along the flow.

    A user-defined network needs the method `identity_start()`. ValueError for a network without
    it, and for a hidden layer narrower than d.
    """
    start = closed_form(like, "identity_start")
    if start is None:
        raise ValueError(
            "identity: like must have an identity layer and a method identity_start() "
            f"({architectures_with('identity_start')} have it), got {_name(like)}; use gaussian, "
            "or zero_last_layer."
        )
    return start


def balanced(like: Network, coefficients: Float[Array, "..."]) -> Network:
    """beta(0) = `coefficients`, with all conserved gaps between neighbouring layers equal to zero.

    * diagonal: |w_l| = |beta|^(1/L) in every coordinate; w_1 carries the signs;
    * convolution, all filters of full length: |DFT w_l| = |DFT beta|^(1/L); w_1 carries the phases;
    * fully-connected and matrix factorization: W_l^T W_l = W_{l+1} W_{l+1}^T (Ji & Telgarsky
      2019; Arora et al. 2019), from the singular value decomposition U S V^T of beta:
      W_1 = U S^(1/L) [I 0], ..., W_L = [I 0]^T S^(1/L) V^T. Hidden layers must not be narrower
      than the rank of beta.

    **Arguments**

    - `like`: the template.
    - `coefficients`: shape (d,), or (d, m) for m outputs.

    A user-defined network needs the method `balanced_start(coefficients)`. ValueError for short
    filters and for networks without that method, since balanced parameters may not exist.
    """
    beta = _coefficients("balanced", like, coefficients)
    start = closed_form(like, "balanced_start", beta)
    if start is None:
        raise ValueError(
            "balanced: like must have balanced parameters, a method balanced_start(coefficients) "
            f"({architectures_with('balanced_start')} have it), got {_name(like)}, for which such "
            "parameters need not exist; write balanced_start, or take matching, which has the same "
            "coefficients and is not balanced."
        )
    return start


def matching(
    like: Network,
    coefficients: Float[Array, "..."],
    *,
    gap: float | Scalar = 1.0,
    key: PRNGKeyArray | None = None,
) -> Network:
    """beta(0) = `coefficients`, with the last layer smaller than the others by `gap`.

    These are the initial directions of Yun et al. 2021, section 6. All architectures start from the
    same linear coefficients. The starts satisfy the conditions from which Theorems 2, 5, 6 and 7
    conclude that the loss tends to zero. In each case all layers but the last have one size p, the
    last has size q, p^2 - q^2 = gap, and beta prescribes p^(L-1) q. With the h_L of Lemma 4,
    q = sqrt(gap) sinh z and p = sqrt(gap) cosh z with sinh z cosh^(L-1) z = |beta| / gap^(L/2):

    * diagonal: w_1 = ... = w_{L-1} > 0 and w_l^2 - w_L^2 = gap in every coordinate (Theorem 2);
    * convolution, all filters of full length: w_1 = ... = w_{L-1} even, and with the unitary DFT
      |F w_l|^2 - |F w_L|^2 = gap at every frequency (Theorem 2);
    * fully-connected: W_l = sigma I (on the first d units where a layer is wider) and
      sigma^2 - |W_L|^2 = gap in the spectral norm, which is the condition of Theorem 7 with
      lambda = gap. At L = 2 the singular values of M(x) are equal, and the squares that Theorem 6
      compares sum to exactly sigma^2 - |w_2|^2 = gap for every x;
    * short filters and tensor networks: the first factors keep a given direction, and the last
      one is the minimum-norm solution of beta = coefficients. This guarantees
      |v_l|^2 / k_l - |v_L|^2 = gap: for every x, the mean over the k_l singular directions of
      [U_l^T v_l]_j^2 exceeds every [U_L^T v_L]_j^2 by at least `gap`. For two layers and a first
      filter of length 1 or 2 (a unit impulse; its components along (1, 1) and (1, -1) are equal)
      this is the condition of Theorem 6, with lambda >= gap for every x. With longer filters and
      general tensors some x may violate the condition: those for which a singular vector of M(x) is
      orthogonal to v_1. For any other x the condition holds if `gap` is large enough;
      `theory.regression.limit_point_two_layer` measures it.

    **Arguments**

    - `like`: the template. A user-defined network needs `matching_start(coefficients, gap)`, or
      `factors` and `with_factors`.
    - `coefficients`: shape (d,), or (d, m) for a fully-connected network with m outputs.
    - `gap`: a positive number, in units of squared parameters.
    - `key`: draws the directions of the first factors of a tensor network. Without a key they are
      the directions of `like`, which must not be zero. Not used for the other architectures.

    **Raises** ValueError if a hidden layer is narrower than d (the condition then fails for some
    x), or if no last factor gives these coefficients; the message states the distance.
    """
    beta = _coefficients("matching", like, coefficients)
    gap = as_number(gap, "gap", "matching")
    if not _traced(gap) and not 0 < gap < float("inf"):
        raise ValueError(
            f"matching: gap must be positive and finite, got {gap}; "
            "for zero gaps use lintensor_jax.initialization.balanced."
        )
    gap = jnp.asarray(gap, beta.dtype)
    start = closed_form(like, "matching_start", beta, gap)
    return _matching_by_least_squares(like, beta, gap, key) if start is None else start


def _matching_by_least_squares(like, beta, gap, key):
    first = _first_directions(like, key)
    empty = jnp.zeros_like(like.factors[-1])
    columns = jax.jacfwd(lambda v: like.with_factors((*first, v)).linear_coefficients())(empty)
    columns = columns.reshape(beta.size, -1)
    last = jnp.linalg.lstsq(columns, beta.ravel())[0]
    if not _traced(last):
        distance = jnp.linalg.norm(columns @ last - beta.ravel())
        # The rounding error of a backward-stable solver is a few ulp of the terms that it adds up.
        terms = jnp.linalg.norm(columns) * jnp.linalg.norm(last) + jnp.linalg.norm(beta)
        if distance > 10 * max(columns.shape) * jnp.finfo(beta.dtype).eps * terms:
            raise ValueError(
                "matching: coefficients must be within reach of the last factor, got coefficients "
                f"at distance {float(distance):.3g} from the nearest ones that are (their norm is "
                f"{float(jnp.linalg.norm(beta)):.3g}); draw other first factors (another key), or "
                "take the coefficients of a network of this kind."
            )
    # v_l = sqrt(k_l) p u_l with unit u_l. The last factor is divided by prod_l sqrt(k_l) p.
    roots = [jnp.sqrt(jnp.asarray(v.shape[0], v.dtype)) for v in first]
    last = last / jnp.prod(jnp.stack(roots))
    size = size_of_first_layers(jnp.linalg.norm(last), like.depth, gap)
    scaled = [root * size * v for root, v in zip(roots, first, strict=True)]
    return like.with_factors((*scaled, last / size ** (like.depth - 1)))


def _first_directions(like, key) -> Sequence[Array]:
    first, _ = _factors("matching", like)
    given = closed_form(like, "first_directions")
    if given is not None:
        return given
    if key is not None:
        require_key(key, "key", "matching")
        first = [
            jax.random.normal(jax.random.fold_in(key, layer), v.shape, v.dtype)
            for layer, v in enumerate(first)
        ]
    norms = [jnp.linalg.norm(v) for v in first]
    for layer, norm in enumerate(norms):
        if not _traced(norm) and norm == 0:
            raise ValueError(
                f"matching: the first factors of like must not be zero without a key, got zero in "
                f"factors[{layer}]; pass key=jax.random.key(0), or a like that holds directions."
            )
    return [v / norm for v, norm in zip(first, norms, strict=True)]


def _factors(caller, like):
    if not (hasattr(like, "factors") and hasattr(like, "with_factors")):
        raise ValueError(
            f"{caller}: like must have `factors` and `with_factors` (its layers as a sequence, and "
            f"the inverse), got {_name(like)}; add them, or use gaussian."
        )
    *first, last = like.factors
    return first, last


def _coefficients(caller, like, value):
    """`value` in the template's dtype, or a ValueError that says which shape it must have."""
    require_network(like, "like", caller)
    parameters, _ = split(like)
    expected = coefficients_like(like).shape
    beta = as_parameter(value, "coefficients", caller, ndim=len(expected))
    if beta.shape != expected:
        raise ValueError(
            f"{caller}: coefficients must have shape {expected}, that of the template's "
            f"linear_coefficients(), got {beta.shape}; {_fix(like, expected, beta.shape)}"
        )
    return beta.astype(jnp.result_type(*jax.tree.leaves(parameters)))


def _fix(like, expected, got):
    """The advice for coefficients of shape `got`; depth and dimension may have been swapped."""
    if not hasattr(like, "depth"):
        return "change one of the two."
    depth, dimension = like.depth, expected[0]
    template = f"the template has depth {depth} and dimension {dimension}"
    swapped = got == (depth,) * len(expected) and depth != dimension > 1
    if swapped and _is_built_from_depth_and_dimension(like):
        name = type(like).__name__
        return (
            f"{template}; if they were swapped, it is "
            f"{name}.zeros(depth={dimension}, dimension={depth})."
        )
    return f"{template}; change one of the two."


def _is_built_from_depth_and_dimension(like):
    zeros = getattr(type(like), "zeros", None)
    return zeros is not None and list(inspect.signature(zeros).parameters)[:2] == [
        "depth",
        "dimension",
    ]


def _traced(value):
    return isinstance(value, Tracer)


def _name(like):
    return f"a {described(like)}" if isinstance(like, eqx.Module) else described(like)

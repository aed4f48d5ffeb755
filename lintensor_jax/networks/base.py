"""The base of all networks: a pytree of layer parameters with linear coefficients.

To define your own architecture, write an Equinox module with two members::

    class MyNetwork(eqx.Module):
        u: Array
        v: Array
        depth = 2                      # beta(c * Theta) = c**depth * beta(Theta)

        def linear_coefficients(self):
            return self.u * self.v

All flows, sweeps, certificates and figures accept it. Deriving from `AbstractNetwork` adds `scaled`
and the linear forward pass. Closed forms of an architecture are optional methods; `AbstractNetwork`
lists them. Arrays that are not parameters (data tensors, bases, indices) are declared as
``tensor: Array = lt.constant()``. Every other array is a parameter and must hold real
floating-point numbers. Integers and complex numbers raise an error, since no flow can move them.
Boolean arrays are masks, not parameters.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, PyTree, Scalar

from ..arguments import as_numbers
from ..messages import in_words

Network = TypeVar("Network", bound=eqx.Module)
Activation = Callable[[Array], Array]


def constant(**kwargs: Any) -> Any:
    """Declare a field whose arrays are not parameters: flows and norms leave them out.

    Takes the keyword arguments of `equinox.field`.
    """
    metadata = {**kwargs.pop("metadata", {}), "lintensor_jax_constant": True}
    return eqx.field(metadata=metadata, **kwargs)


def parameter_spec(network: eqx.Module) -> PyTree[bool]:
    """A pytree of bools with `network`'s structure: True where a leaf is a trainable array.

    ValueError for an array of integers or complex numbers that is not declared `constant()`.
    """
    _, structure, are_parameters = _flat_spec(network)
    return jax.tree.unflatten(structure, are_parameters)


def _flat_spec(network: eqx.Module) -> tuple[list[Any], Any, list[bool]]:
    """The leaves of a network, its pytree structure, and for every leaf if it is trainable."""
    leaves, structure = jax.tree.flatten(network)
    movable = _marked(network, jax.tree.unflatten(structure, [True] * len(leaves)))
    may_move = jax.tree.leaves(movable)
    found = [moves and eqx.is_inexact_array(x) for x, moves in zip(leaves, may_move, strict=True)]
    is_complex = (jnp.iscomplexobj(x) for x, is_one in zip(leaves, found, strict=True) if is_one)
    if found != may_move or any(is_complex):
        _require_real_parameters(network, movable)  # names of leaves take longer than this test
    return leaves, structure, found


def _marked(module, spec):
    """The spec with False for all leaves of fields that are declared `constant()`."""
    for field in dataclasses.fields(module):
        if field.metadata.get("static", False) or not hasattr(module, field.name):
            continue
        value = getattr(module, field.name)
        if field.metadata.get("lintensor_jax_constant", False):
            marked = jax.tree.map(lambda _: False, getattr(spec, field.name))
        elif isinstance(value, eqx.Module):
            marked = _marked(value, getattr(spec, field.name))
        else:
            continue
        name = field.name
        spec = eqx.tree_at(
            lambda s, name=name: getattr(s, name), spec, marked, is_leaf=lambda x: x is None
        )
    return spec


def _require_real_parameters(network, movable):
    """ValueError for integers or complex numbers that `movable` marks as parameters.

    Without this check a flow would leave such an array unchanged and not report it.
    """
    leaves = jax.tree_util.tree_leaves_with_path(network)
    for (path, leaf), moves in zip(leaves, jax.tree.leaves(movable), strict=True):
        if not moves or not isinstance(leaf, jax.Array | np.ndarray):
            continue
        name = jax.tree_util.keystr(path)
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            raise ValueError(
                f"network: {type(network).__name__}{name} must be real, got dtype {leaf.dtype}: "
                "gradient flow is for real parameters; keep real and imaginary part as two arrays, "
                "or declare the field with lintensor_jax.constant() if it is no parameter."
            )
        if jnp.issubdtype(leaf.dtype, jnp.integer):
            raise ValueError(
                f"network: {type(network).__name__}{name} must hold floating-point numbers, got "
                f"dtype {leaf.dtype}, which no flow can move; write jnp.asarray(..., float), or "
                "declare the field with lintensor_jax.constant() if it is no parameter."
            )


def split(network: Network) -> tuple[Network, Network]:
    """`(parameters, rest)`: two copies of `network`; each has None where the other has a leaf.

    `equinox.combine(parameters, rest)` is `network` again.
    """
    leaves, structure, are_parameters = _flat_spec(network)
    chosen = list(zip(leaves, are_parameters, strict=True))
    parameters = [leaf if is_one else None for leaf, is_one in chosen]
    rest = [None if is_one else leaf for leaf, is_one in chosen]
    return jax.tree.unflatten(structure, parameters), jax.tree.unflatten(structure, rest)


def scaled(network: Network, alpha: float | Scalar) -> Network:
    """`network` with every parameter multiplied by `alpha`: beta is multiplied by alpha^depth."""
    parameters, rest = split(network)
    return eqx.combine(jax.tree.map(lambda leaf: alpha * leaf, parameters), rest)


def coefficients_and_pullback(network: Network) -> tuple[Array, Callable[[Array], Network]]:
    """beta, and the map g -> (d beta/d Theta)^T g as a pytree with the parameters' structure.

    The networks of this package have explicit formulas (`contractions.py`); any other network uses
    `jax.vjp`.
    """
    if isinstance(network, AbstractNetwork):
        return network.coefficients_and_pullback()
    return _pullback_by_vjp(network)


def _pullback_by_vjp(network: Any):
    parameters, rest = split(network)
    beta, vjp = jax.vjp(lambda p: eqx.combine(p, rest).linear_coefficients(), parameters)
    return beta, lambda g: vjp(g)[0]


class AbstractNetwork(eqx.Module):
    """Base of the networks: linear coefficients, multilinear in the layers.

    `depth` is the degree of homogeneity: beta(c Theta) = c^depth beta(Theta).

    **Optional methods**: closed forms of the architecture. A function of this package that needs
    one looks up the method on the network, which may be any `equinox.Module`. Without the method
    there is no such closed form. A method returns None if no closed form is known for the
    network's *shapes*.

    - `identity_start()`, `balanced_start(coefficients)`, `matching_start(coefficients, gap)`:
      networks of the same shapes, for `identity`, `balanced` and `matching` of
      `lintensor_jax.initialization`. The coefficients have been checked (finite, right shape and
      dtype); `gap` is a positive scalar. Without `matching_start`, `matching` solves a
      least-squares problem in the last of the `factors`; the others have the unit vectors
      `first_directions()` as directions.
    - `factors` (the layers as vectors) and `with_factors(factors)`, its inverse, for
      `zero_last_layer`, `matching` and `mirror_flow`.
    - `orthogonal_decomposition()`: S and U_l of Assumption 1 (Yun et al. 2021) for the `factors`,
      or `AssumptionFails`. `certify` and `mirror_flow` use it.
    - `singular_components()`: the pair (values, S). The values, shape (L, m), have the rows
      U_l^T v_l; None stands for S = I. It avoids the products with U_l.
    - `induced_regularizer(beta)`: min |Theta|^2 subject to beta(Theta) = beta, a scalar;
      `minimal_network(beta)`: the network that attains it.
    - `induced_norm_order()`: the p for which the induced regulariser is an increasing function of
      |beta|_p, 0 < p <= 2; for `certify`.
    - `induced_singular_norm_order()`: the p for which the induced regulariser is an increasing
      function of the Schatten p (quasi-)norm of a matrix beta.
    - `two_layers()`: the network as a `TwoLayers`, for `effective_limit`; None if it has no such
      form. Without the method, `TwoLayers` is made from a real `orthogonal_decomposition()` of
      depth 2.
    - `mirror_coordinates(problem)`: the flow in closed form as a function of zeta = S X^T nu, for
      `mirror_flow`. It is an `equinox.Module` with the array `S` (m, d), a method `rho(zeta)` with
      beta = S^T rho, and a method `network(zeta)`. It may have a method `sensitivity(largest)` for
      a rho whose largest entry is `largest`: it returns (the factor by which relative errors of nu
      grow in rho, the size of zeta). `AssumptionFails` if the values of the network or the data
      have no closed form.
    - `conserved_quantities()`: a vector that gradient flow does not change, in units of squared
      parameters.
    - `ties_are_exact`, a bool: whether layers that are equal up to signs stay equal to the last bit
      in compiled code; False by default. If it is False, flows that shrink such layers use the
      conserved quantities to keep them equal.
    - `coupled_groups()`: a network of the same shapes whose parameters are NumPy integers, the
      number of a group for each parameter. Second derivatives of beta are 0 between parameters of
      different groups. In a diagonal network the weights of one coordinate are a group. An implicit
      step then costs p n^2 for p parameters and n samples, instead of p^3.
    - `largest_rank()`: the largest rank of beta as a matrix (d, m).
    - `kind`, a string: what error messages call the network; the name of the class by default.
    """

    depth: eqx.AbstractVar[int]

    @abc.abstractmethod
    def linear_coefficients(self) -> Float[Array, "..."]:
        """beta(Theta): shape (d,), or (d, m) for m outputs."""

    def __call__(
        self, x: Float[Array, " d"], activation: Activation | None = None
    ) -> Float[Array, "..."]:
        """The network's output for one input; `jax.vmap` it over a batch.

        A user-defined network is linear unless it overrides this method.
        """
        if activation is not None:
            raise ValueError(
                f"activation: {type(self).__name__} defines only its linear form; "
                "override __call__ to give it a nonlinear one, or pass activation=None."
            )
        return x @ self.linear_coefficients()

    def scaled(self, alpha: float | Scalar):
        """A copy with every parameter multiplied by `alpha` (the initial scale of the papers)."""
        return scaled(self, alpha)

    def coefficients_and_pullback(self):
        """beta and g -> (d beta/d Theta)^T g; see `coefficients_and_pullback` in this module."""
        return _pullback_by_vjp(self)


def require_network(network: Any, name: str, owner: str) -> None:
    """ValueError unless `network` is an `equinox.Module` with `linear_coefficients()`."""
    if not isinstance(network, eqx.Module) or not hasattr(network, "linear_coefficients"):
        raise ValueError(
            f"{owner}: {name} must be a network, an equinox.Module with a method "
            f"linear_coefficients(), got {in_words(network)}; see lintensor_jax.AbstractNetwork."
        )


def as_parameter(value: Any, name: str, owner: str, ndim: int) -> Array:
    """`value` as a floating array of `ndim` axes, or a ValueError that names the argument."""
    array = as_numbers(value, name, owner)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        if not jnp.issubdtype(array.dtype, jnp.integer):
            raise ValueError(
                f"{owner}: {name} must hold real numbers, got dtype {array.dtype}; "
                "pass its real form."
            )
        array = array.astype(float)
    if array.ndim != ndim:
        noun = "axis" if ndim == 1 else "axes"
        raise ValueError(
            f"{owner}: {name} must have {ndim} {noun}, got shape {array.shape}; "
            "see the class's docstring for the layout."
        )
    if 0 in array.shape:
        raise ValueError(
            f"{owner}: {name} must not be empty, got shape {array.shape}; give it at least "
            "one entry."
        )
    if not isinstance(array, Tracer) and not np.isfinite(np.asarray(array)).all():
        raise ValueError(
            f"{owner}: {name} must be finite, got NaN or infinite entries; "
            "check the values that it was built from."
        )
    return array


def require_depth(depth: int, owner: str) -> None:
    """ValueError for fewer than two layers: all of the theory is for L >= 2."""
    if depth < 2:
        raise ValueError(
            f"{owner}: depth must be at least 2, got {depth}; a one-layer network is linear "
            "regression, whose flow has a closed form."
        )


def require_vanishing_activation(
    activation: Activation, depth: int, owner: str, outputs: int = 1
) -> None:
    """ValueError if phi(0) != 0 makes the network differ from its tensor form, eq. (2).

    Erratum to Yun et al. 2021, section 3: the zeros off the blocks of the data tensor become
    phi(0) after the first contraction. So for L >= 3 the diagonal and the fully-connected network
    equal their tensor form only if phi(0) = 0. With several outputs this holds for L = 2 as well.
    """
    with jax.ensure_compile_time_eval():  # under jax.jit too
        at_zero = activation(jnp.zeros(()))
    blocks = f"depth {depth} >= 3" if depth >= 3 else f"{outputs} > 1 outputs"
    if max(depth - 1, outputs) > 1 and not isinstance(at_zero, Tracer) and float(at_zero):
        raise ValueError(
            f"activation: {owner} with {blocks} needs phi(0) = 0, got phi(0) = "
            f"{float(at_zero):.6g}: the zeros of its data tensor would become phi(0), and the "
            "tensor form (Yun et al. 2021, eq. 2) would differ from the network. Use an activation "
            "with phi(0) = 0 (tanh, relu), or subtract phi(0)."
        )

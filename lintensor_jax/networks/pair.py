"""Checks that a network and a problem fit together, and casts both to one dtype."""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..problems import AbstractProblem
from .base import parameter_spec


def check_problem(problem: Any) -> None:
    """ValueError unless `problem` is an `AbstractProblem`."""
    if not isinstance(problem, AbstractProblem):
        raise ValueError(
            "problem: must be an object such as lintensor_jax.Regression(X, y), got "
            f"{type(problem).__name__}."
        )


def check_pair(network: Any, problem: Any) -> tuple[int, ...]:
    """The shape of beta; ValueError for a wrong network or problem, or if the shapes differ."""
    check_problem(problem)
    if not hasattr(network, "linear_coefficients") or not isinstance(network, eqx.Module):
        raise ValueError(
            "network: must be an equinox.Module with a method linear_coefficients(), got "
            f"{type(network).__name__}; see lintensor_jax.AbstractNetwork."
        )
    if not any(jax.tree.leaves(parameter_spec(network))):
        raise ValueError(
            f"network: {type(network).__name__} must have parameters, got none: no array of "
            "floating-point numbers outside lintensor_jax.constant(); pass its layers as arrays."
        )
    beta = coefficients_like(network)
    if jnp.issubdtype(beta.dtype, jnp.complexfloating):
        raise ValueError(
            f"network: the linear coefficients of {type(network).__name__} must be real, got dtype "
            f"{beta.dtype}; return their real part."
        )
    shape = beta.shape
    problem = problem_of(network, problem)
    if shape != problem.coefficient_shape:
        raise ValueError(
            f"network: its linear coefficients have shape {shape}, but {type(problem).__name__} "
            f"needs shape {problem.coefficient_shape}; make the network's input (and output) "
            "dimensions those of the data (y of shape (n, m) needs m outputs)."
        )
    return shape


def coefficients_like(network: Any) -> jax.ShapeDtypeStruct:
    """The shape and dtype of beta, without computing it."""
    arrays, rest = eqx.partition(network, _is_any_array)
    try:
        hash(rest)
    except TypeError:  # a list among the static fields, say
        return eqx.filter_eval_shape(lambda n: n.linear_coefficients(), network)
    # `jax.jit` caches the shape, so that a second flow of this kind starts in half the time, and
    # that a prediction takes half the time.
    return _coefficients.eval_shape(arrays, rest)


@functools.partial(jax.jit, static_argnums=1)
def _coefficients(arrays, rest):
    return eqx.combine(arrays, rest).linear_coefficients()


def _is_any_array(leaf):
    return isinstance(leaf, jax.Array | np.ndarray | np.generic)


def problem_of(network: Any, problem: Any) -> Any:
    """The problem, with a bias as its last coefficient if the network has one."""
    if getattr(network, "has_bias", False) and not problem.has_bias:
        return problem.with_bias()
    return problem


def are_equal(problem: Any, other: Any) -> bool:
    """Whether two problems have the same class and the same data; both are concrete."""

    def in_numpy(leaf):  # for arrays of JAX, each comparison is a program
        return np.asarray(leaf) if isinstance(leaf, jax.Array) else leaf

    return bool(eqx.tree_equal(*(jax.tree.map(in_numpy, tree) for tree in (problem, other))))


def same_dtype(network: Any, problem: Any) -> tuple[Any, Any]:
    """Both, in the wider precision of the two; the problem has a bias if the network has one.

    Real arrays stay real if some constants are complex.
    """
    problem = problem_of(network, problem)
    leaves = [x for x in jax.tree.leaves((network, problem)) if eqx.is_inexact_array(x)]
    if len({leaf.dtype for leaf in leaves}) == 1:
        return network, problem
    wide = jnp.result_type(*leaves)
    real = jnp.finfo(wide).dtype

    def cast(leaf):
        if not eqx.is_inexact_array(leaf):
            return leaf
        return leaf.astype(wide if jnp.iscomplexobj(leaf) else real)

    return jax.tree.map(cast, network), jax.tree.map(cast, problem)

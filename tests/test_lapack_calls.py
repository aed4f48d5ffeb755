"""No program for many lanes has two calls of LAPACK that could run at the same time.

Such calls can wait for each other for ever: see `lapack_calls`. A program's text names, for every
operation, those that it needs. Two calls that do not need each other are found in it.
"""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lintensor_jax as lt
from lintensor_jax.lapack_calls import in_turn
from lintensor_jax.theory.rates import riccati

SAMPLES, DIMENSION = 3, 6
_CALLED = re.compile(
    r"(?:calls|body|condition|to_apply|true_computation|false_computation)=%?([\w.\-]+)"
    r"|branch_computations=\{([^}]*)\}"
)


def _computations(text):
    """The operations (name, text) of every computation of a compiled program."""
    found, name = {}, ""
    for line in text.splitlines():
        if start := re.match(r"(?:ENTRY )?%?([\w.\-]+) .*\{\s*$", line):
            name = start.group(1)
            found[name] = []
        elif operation := re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*)$", line):
            found[name].append(operation.groups())
    return found


def _pairs_at_the_same_time(function, *arguments):
    """How many operations call LAPACK, and the pairs of them of which neither needs the other."""
    program = jax.jit(jax.vmap(function)).lower(*arguments).compile()
    computations = _computations(program.as_text())

    @functools.cache
    def calls_lapack(operation):
        if "lapack_" in operation:
            return True
        names = [
            name for found in _CALLED.findall(operation) for name in ",".join(found).split(",")
        ]
        inner = (computations.get(name.strip().lstrip("%"), []) for name in names)
        return any(calls_lapack(text) for operations in inner for _, text in operations)

    count, pairs = 0, []
    for operations in computations.values():
        needed, calls = {}, []
        for name, text in operations:  # in an order in which each can be executed
            direct = [other for other in re.findall(r"%([\w.\-]+)", text) if other in needed]
            needed[name] = set(direct).union(*(needed[other] for other in direct))
            if calls_lapack(text):
                calls.append(name)
        count += len(calls)
        pairs += [(a, b) for a, b in itertools.combinations(calls, 2) if a not in needed[b]]
    return count, pairs


def test_pairs_are_found_and_put_in_order():
    a = jnp.stack([jnp.eye(2), 2 * jnp.eye(2)])

    def two_calls(matrix):
        return jnp.linalg.cholesky(matrix), jnp.linalg.cholesky(matrix + 1)

    def in_order(matrix):
        first = jnp.linalg.cholesky(matrix)
        return first, jnp.linalg.cholesky(in_turn(matrix, first) + 1)

    count, pairs = _pairs_at_the_same_time(two_calls, a)
    assert (count, len(pairs)) == (2, 1)
    assert _pairs_at_the_same_time(in_order, a) == (2, [])
    np.testing.assert_array_equal(jax.vmap(in_order)(a)[1], jax.vmap(two_calls)(a)[1])


_X = np.random.default_rng(0).standard_normal((SAMPLES, DIMENSION))
_y = _X @ np.arange(1.0, DIMENSION + 1)


def _regression():
    return lt.Regression(_X, _y)


def _classification():
    return lt.Classification(_X, np.sign(_y))


def _unbalanced():
    rng = np.random.default_rng(1)
    return lt.DiagonalNetwork(rng.standard_normal((2, DIMENSION)))


def _of_theorem_5():
    return lt.DiagonalNetwork(np.stack([np.ones(DIMENSION)] * 2 + [np.zeros(DIMENSION)]))


def _fully_connected():
    rng = np.random.default_rng(2)
    layers = rng.standard_normal((DIMENSION, DIMENSION)), rng.standard_normal(DIMENSION)
    return lt.FullyConnectedNetwork(layers)


def _proved(network):
    return lambda scale: lt.theory.proved_limit(network().scaled(scale), _regression()).limit


def _flow(network, problem):
    return lambda scale: lt.gradient_flow(network().scaled(scale), problem()).coefficients[-1]


def _rates(scale):
    return lt.convergence_rate_bound(_fully_connected().scaled(scale), _regression()).guaranteed


def _bounds(scale):
    start = _fully_connected()
    return lt.theory.alignment_bounds(start.scaled(scale), start.scaled(2 * scale)).misalignment


def _descent(scale):
    start, problem = _unbalanced().scaled(scale), _regression()
    return lt.gradient_descent(start, problem, optax.sgd(0.1), 5, sharpness=True).sharpness


def _trajectory(scale):
    first, last = jnp.ones((2, 3)) * scale, jnp.arange(3.0)[:, None]
    return riccati._gram(first, last, jnp.ones((2, 1)), 0.1, scale * jnp.arange(5.0))


def _neuron(scale):
    network = lt.FullyConnectedNetwork((scale * np.ones((DIMENSION, 1)), np.ones(1)))
    problem = lt.Regression(scale * _X, _y)
    return lt.theory.single_neuron_limit(network, problem).coefficients


_PROGRAMS = {
    "limits of two layers": _proved(_unbalanced),
    "Theorem 5": _proved(_of_theorem_5),
    "rates of convergence": _rates,
    "one neuron": _neuron,
    "bounds on alignment": _bounds,
    "sharpness along descent": _descent,
    "trajectories of two layers": _trajectory,
}
_SLOW = {
    "derivatives of limits": jax.grad(lambda scale: jnp.sum(_proved(_unbalanced)(scale))),
    "derivatives of Theorem 5": jax.grad(lambda scale: jnp.sum(_proved(_of_theorem_5)(scale))),
    "flows of regression": _flow(_unbalanced, _regression),
    "flows of classification": _flow(_unbalanced, _classification),
    "flows of full matrices": _flow(_fully_connected, _classification),
}


@pytest.mark.parametrize(
    "name", [*_PROGRAMS, *(pytest.param(name, marks=pytest.mark.slow) for name in _SLOW)]
)
def test_no_two_calls_of_lapack_at_the_same_time(name):
    count, pairs = _pairs_at_the_same_time((_PROGRAMS | _SLOW)[name], jnp.linspace(0.5, 1.0, 64))
    assert count > 1
    assert not pairs

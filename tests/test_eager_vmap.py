"""What is known inside `jax.vmap`: all transformations, and that none recurses without end."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lintensor_jax.eager_vmap import is_known_to_hold, lanes_of_vmap

jax.config.update("jax_enable_x64", True)
X = jnp.arange(6.0).reshape(2, 3)


@pytest.fixture
def f():
    """A function of numbers, and whether it is known that they are below 10."""
    known = []

    def cube(x, bound=10.0):
        known.append(is_known_to_hold(jnp.all(x < bound)))
        return x**3

    return cube, known


def test_numbers_are_known(f):
    cube, known = f
    cube(X)
    cube(X, bound=5.0)
    assert known == [True, False]


def test_numbers_of_all_lanes_are_known_in_vmap(f):
    cube, known = f
    jax.vmap(cube)(X)
    jax.vmap(jax.vmap(cube))(X)
    jax.vmap(lambda a: jax.vmap(lambda b: cube(a * b))(jnp.ones(4)))(X[0])
    assert known == [True] * 3
    jax.vmap(lambda x: cube(x, bound=5.0))(X)  # one lane is not below
    jax.vmap(jax.vmap(lambda x: cube(x, bound=5.0)))(X)
    assert known[3:] == [False] * 2


def test_nothing_is_known_in_compiled_code(f):
    cube, known = f
    jax.jit(cube)(X)
    jax.jit(jax.vmap(cube))(X)
    jax.vmap(jax.jit(lambda x: cube(x)))(X)
    jax.lax.map(cube, X)
    jax.vmap(lambda row: jax.lax.map(cube, row))(X)
    jax.eval_shape(jax.vmap(cube), X)
    assert known == [False] * 6


def test_derivatives_keep_their_values(f):
    cube, _ = f
    slope = 3 * X**2
    for found in (
        jax.jvp(jax.vmap(cube), (X,), (jnp.ones_like(X),))[1],
        jax.vmap(lambda x: jax.jvp(cube, (x,), (jnp.ones_like(x),))[1])(X),
        jax.vmap(lambda x: jnp.diagonal(jax.jacfwd(cube)(x)))(X),
        jax.grad(lambda x: jnp.sum(jax.vmap(cube)(x)))(X),
        jax.vmap(jax.grad(lambda x: jnp.sum(cube(x))))(X),
        jax.linearize(jax.vmap(cube), X)[1](jnp.ones_like(X)),
        jax.vmap(lambda x: jax.jvp(jax.vmap(cube), (x,), (jnp.ones_like(x),))[1])(X),
    ):
        np.testing.assert_allclose(found, slope, rtol=1e-14)
    hessian = jax.hessian(lambda x: jnp.sum(cube(x)))(X[0])
    np.testing.assert_allclose(jnp.diagonal(hessian), 6 * X[0], rtol=1e-14)


def test_the_lanes_of_vmap_are_counted_outside_of_jit_and_of_derivatives():
    counts = []

    def cube(x):
        counts.append(lanes_of_vmap({"x": x, "number": 2.0}))
        return jnp.sum(x**3)

    jax.vmap(cube)(X)
    jax.vmap(jax.vmap(cube))(X)
    jax.vmap(lambda a: jax.vmap(lambda b: cube(a * b))(jnp.ones(4)))(X[0])
    assert counts == [2, 6, 12]
    counts.clear()
    cube(X)  # no vmap
    jax.vmap(lambda x: cube(X))(X)  # nothing that differs from lane to lane
    jax.jit(jax.vmap(cube))(X)
    jax.jit(lambda: jax.vmap(cube)(X))()
    jax.vmap(jax.jit(lambda x: cube(x)))(X)
    jax.lax.map(cube, X)
    jax.eval_shape(jax.vmap(cube), X)
    jax.jvp(jax.vmap(cube), (X,), (X,))
    jax.vmap(lambda x: jax.jvp(cube, (x,), (x,)))(X)
    jax.vmap(jax.grad(cube))(X)
    jax.grad(lambda scale: jnp.sum(jax.vmap(lambda x: cube(scale * x))(X)))(1.0)
    jax.linearize(jax.vmap(cube), X)
    assert counts == [None] * len(counts)
    assert len(counts) == 12

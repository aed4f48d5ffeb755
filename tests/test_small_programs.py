"""Programs with little optimisation: when they are used, and that transformations do without."""

import threading

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lintensor_jax import small_programs
from lintensor_jax.small_programs import small_program

jax.config.update("jax_enable_x64", True)


@pytest.fixture
def program(monkeypatch):
    """A small program, and the list of the kinds of programs that were called."""
    called = []
    real = eqx.filter_jit

    def recorded(function, **options):
        compiled = real(function, **options)

        def call(*arguments):
            called.append("little" if options else "full")
            return compiled(*arguments)

        return call

    monkeypatch.setattr(small_programs.eqx, "filter_jit", recorded)

    @small_program(lambda x, name: x.size)
    def root_of_sum(x, name):
        return jnp.sqrt(jnp.sum(x**2)) if name == "root" else jnp.sum(x**2)

    return root_of_sum, called


def test_few_numbers_are_compiled_with_little_optimisation(program):
    function, called = program
    for size in (3, 1024, 1025):
        x = jnp.arange(size) / 10
        np.testing.assert_allclose(function(x, "root"), np.linalg.norm(x), rtol=1e-14)
    assert called == ["little", "little", "full"]


def test_transformations_have_the_whole_optimisation(program):
    function, called = program
    x = jnp.array([3.0, 4.0])
    np.testing.assert_allclose(jax.jit(lambda: function(x, "root"))(), 5.0)  # nothing is traced
    np.testing.assert_allclose(jax.jit(lambda x: function(x, "root"))(x), 5.0)
    np.testing.assert_allclose(jax.vmap(lambda x: function(x, "sum"))(x), [9.0, 16.0])
    np.testing.assert_allclose(jax.grad(lambda x: function(x, "sum"))(x), [6.0, 8.0])
    np.testing.assert_allclose(jax.jvp(lambda x: function(x, "sum"), (x,), (x,))[1], 50.0)
    assert set(called) == {"full"}


def test_every_thread_has_the_little_optimisation(program):
    function, called = program
    found = []
    thread = threading.Thread(target=lambda: found.append(function(jnp.ones(4), "sum")))
    thread.start()
    thread.join()
    assert (float(found[0]), called) == (4.0, ["little"])


def test_other_devices_have_the_whole_optimisation(program, monkeypatch):
    function, called = program
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert float(function(jnp.ones(4), "sum")) == 4.0
    assert called == ["full"]

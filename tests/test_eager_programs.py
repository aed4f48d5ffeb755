"""Programs that are compiled in less time: their options, and that transformations have none."""

import threading

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxlib.version import __version_info__ as jaxlib_version

from lintensor_jax import eager_programs
from lintensor_jax.eager_programs import eager_program

jax.config.update("jax_enable_x64", True)


LEVEL, OLDER = "xla_backend_optimization_level", "xla_cpu_use_fusion_emitters"


@pytest.fixture
def optimising():
    """XLA optimises, which `conftest.py` switches off."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def program(monkeypatch, optimising):
    """A function that makes an eager program, and the options of the programs that were called."""
    called = []
    real = eqx.filter_jit

    def recorded(function, **settings):
        compiled = real(function, **settings)

        def call(*arguments, **named):
            called.append(settings["compiler_options"])
            return compiled(*arguments, **named)

        return call

    monkeypatch.setattr(eager_programs.eqx, "filter_jit", recorded)
    monkeypatch.setattr(eager_programs, "_HAS_OLDER_EMITTERS", False)

    def made(**settings):
        @eager_program(lambda x, name: x.size, **settings)
        def root_of_sum(x, name):
            return jnp.sqrt(jnp.sum(x**2)) if name == "root" else jnp.sum(x**2)

        return root_of_sum

    return made, called


@pytest.mark.parametrize(("settings", "level"), [({}, 0), ({"has_long_loop": True}, 1)])
@pytest.mark.parametrize("few", [1024, 30])
def test_few_numbers_are_compiled_with_little_optimisation(program, settings, level, few):
    made, called = program
    function = made(**settings, few=few)
    for size in (3, few, few + 1):
        x = jnp.arange(size) / 10
        np.testing.assert_allclose(function(x, name="root"), np.linalg.norm(x), rtol=1e-14)
    assert called == [{LEVEL: level}, {LEVEL: level}, {LEVEL: 1}]


@pytest.mark.parametrize("has_long_loop", [False, True])
def test_the_older_emitters_are_used_but_for_long_loops_of_many_numbers(
    program, monkeypatch, has_long_loop
):
    made, called = program
    function = made(has_long_loop=has_long_loop)
    # The option is not given to a jaxlib without it.
    has_them = jaxlib_version < (0, 11)
    monkeypatch.setattr(eager_programs, "_HAS_OLDER_EMITTERS", has_them)
    for size in (3, 1025):
        np.testing.assert_allclose(function(jnp.ones(size), "sum"), size)
    older = {OLDER: False} if has_them else {}
    if has_long_loop:
        assert called == [{LEVEL: 1} | older, {LEVEL: 1}]
    else:
        assert called == [{LEVEL: 0} | older, {LEVEL: 1} | older]


def test_the_users_choice_of_no_optimisation_stays(program):
    made, called = program
    jax.config.update("jax_disable_most_optimizations", True)
    for size in (3, 1025):
        np.testing.assert_allclose(made()(jnp.ones(size), "sum"), size)
    assert called == [None, None]


def test_transformations_have_no_options(program):
    made, called = program
    function, x = made(), jnp.array([3.0, 4.0])
    np.testing.assert_allclose(jax.jit(lambda: function(x, "root"))(), 5.0)  # nothing is traced
    np.testing.assert_allclose(jax.jit(lambda x: function(x, "root"))(x), 5.0)
    np.testing.assert_allclose(jax.jit(jax.vmap(lambda x: function(x, "sum")))(x), [9.0, 16.0])
    np.testing.assert_allclose(jax.grad(lambda x: function(x, "sum"))(x), [6.0, 8.0])
    np.testing.assert_allclose(jax.jvp(lambda x: function(x, "sum"), (x,), (x,))[1], 50.0)
    slopes = jax.vmap(jax.grad(lambda x: function(x, "sum")))(x)
    np.testing.assert_allclose(slopes, [6.0, 8.0])
    slopes = jax.grad(lambda x: jnp.sum(jax.vmap(lambda x: function(x, "sum"))(x)))(x)
    np.testing.assert_allclose(slopes, [6.0, 8.0])
    assert called == [None] * 7


def test_vmap_outside_of_jit_has_options(program):
    """For the numbers of all lanes, and unless the program has a long loop."""
    made, called = program

    def norms(x, **settings):
        function = made(**settings)
        return jax.vmap(lambda x: function(x, "root"))(x)

    for x in (jnp.ones((256, 4)), jnp.ones((257, 4))):
        np.testing.assert_allclose(norms(x), 2.0)
        np.testing.assert_allclose(norms(x, has_long_loop=True), 2.0)
    np.testing.assert_allclose(jax.vmap(norms)(jnp.ones((2, 128, 4))), 2.0)
    assert called == [{LEVEL: 0}, None, {LEVEL: 1}, None, {LEVEL: 0}]


def test_every_thread_has_the_options(program):
    made, called = program
    function, found = made(), []
    thread = threading.Thread(target=lambda: found.append(function(jnp.ones(4), "sum")))
    thread.start()
    thread.join()
    assert (float(found[0]), called) == (4.0, [{LEVEL: 0}])


def test_other_devices_have_no_options(program, monkeypatch):
    made, called = program
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert float(made()(jnp.ones(4), "sum")) == 4.0
    assert called == [None]


def test_the_numbers_of_all_arguments_count(program):
    _, called = program
    function = eager_program()(lambda pair, scale: scale * (jnp.sum(pair[0]) + jnp.sum(pair[1])))
    for size in (511, 512):
        pair = jnp.ones(size), jnp.ones(size)
        np.testing.assert_allclose(function(pair, scale=jnp.array([1.0])), 2 * size)
        np.testing.assert_allclose(function(pair, scale=2.0), 4 * size)  # a Python number: none
    assert called == [{LEVEL: 0}, {LEVEL: 0}, {LEVEL: 1}, {LEVEL: 0}]

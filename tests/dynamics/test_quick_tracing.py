"""diffrax's loop is traced with a short `prevbefore`, and diffrax is left as it was."""

from typing import Any

import diffrax._integrate
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lintensor_jax as lt
from lintensor_jax.dynamics.quick_tracing import quickly_traced

diffrax_loop: Any = diffrax._integrate


def test_the_name_is_put_back():
    before = diffrax_loop.eqxi
    with quickly_traced():
        assert diffrax_loop.eqxi is not before
        assert diffrax_loop.eqxi.while_loop is eqxi.while_loop
        with quickly_traced():  # a flow may be traced inside another trace
            pass
    assert diffrax_loop.eqxi is before

    def fails():
        with quickly_traced():
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert diffrax_loop.eqxi is before


def test_the_bound_is_below_by_at_most_200_ulp():
    with quickly_traced():
        before = diffrax_loop.eqxi.prevbefore
        for time in (1.0, 3e200, -7.0, 1e-290):
            bound = jnp.asarray(time)
            for _ in range(100):
                bound = before(bound)
            assert 100 <= (time - float(bound)) / np.spacing(abs(time)) <= 201
        assert float(before(jnp.asarray(0.0))) == 0.0


def test_the_program_of_a_flow_is_short():
    network = lt.DiagonalNetwork(np.array([[0.3, 0.4], [0.1, 0.2]]))
    problem = lt.Regression(np.array([[1.0, 2.0]]), np.array([1.0]))
    program = str(jax.make_jaxpr(lambda p: lt.gradient_flow(network, p).coefficients)(problem))
    assert "nextafter" not in program


def _at(times):
    network = lt.DiagonalNetwork(np.array([[0.3, 0.4], [0.1, 0.2]]))
    problem = lt.Regression(np.array([[1.0, 2.0]]), np.array([1.0]))
    solution = lt.gradient_flow(network, problem, saveat=times)
    return solution.reached, solution.coefficients


@pytest.mark.parametrize("times", [[1.0, 0.5, 2.0], [1.0, np.nan, 2.0], [-1, 0.5, 2], [1, 1, 2]])
def test_a_flow_reaches_no_time_of_an_invalid_list(times):
    # In compiled code nothing can be raised without a call of Python, which no cache keeps.
    compiled = jax.jit(_at)
    reached, coefficients = compiled(jnp.array(times, float))
    assert reached.tolist() == [False, False, False, True]
    known = compiled(jnp.array([0.5, 1.0, 2.0]))
    assert known[0].all()
    np.testing.assert_array_equal(coefficients[-1], known[1][-1])
    with pytest.raises(ValueError, match="saveat: clock times must be finite"):
        _at(times)

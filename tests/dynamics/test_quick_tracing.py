"""diffrax's loop is traced quickly, and diffrax is left as it was."""

from typing import Any

import diffrax
import diffrax._integrate
import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lintensor_jax as lt
from lintensor_jax.dynamics import quick_tracing
from lintensor_jax.dynamics.quick_tracing import _WithoutJumps, quickly_traced

diffrax_loop: Any = diffrax._integrate
NETWORK = lt.DiagonalNetwork(np.array([[0.3, 0.4], [0.1, 0.2]]))
PROBLEM = lt.Regression(np.array([[1.0, 2.0]]), np.array([1.0]))
DATA = lt.Classification(np.array([[1.0, 2.0], [0.0, -3.0]]), np.array([1.0, -1.0]))


def test_the_name_is_put_back():
    before = diffrax_loop.eqxi
    with quickly_traced():
        assert diffrax_loop.eqx is not eqx
        assert diffrax_loop.eqx.tree_at is eqx.tree_at
        assert diffrax_loop.eqxi is not before
        assert diffrax_loop.eqxi.while_loop is eqxi.while_loop
        with quickly_traced():  # a flow may be traced inside another trace
            pass
    assert diffrax_loop.eqxi is before
    assert diffrax_loop.eqx is eqx

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
    program = str(jax.make_jaxpr(lambda p: lt.gradient_flow(NETWORK, p).coefficients)(PROBLEM))
    assert "nextafter" not in program


def test_a_flow_reaches_no_time_of_an_invalid_list():
    def at(times):
        solution = lt.gradient_flow(NETWORK, PROBLEM, saveat=times)
        return solution.reached, solution.coefficients

    # In compiled code nothing can be raised without a call of Python, which no cache keeps.
    compiled = jax.jit(at)
    reached, coefficients = compiled(jnp.array([0.5, 1.0, 2.0]))
    assert reached.all()
    for times in ([1.0, 0.5, 2.0], [1.0, np.nan, 2.0], [-1.0, 0.5, 2.0], [1.0, 1.0, 2.0]):
        none, end = compiled(jnp.array(times))
        assert none.tolist() == [False, False, False, True]
        np.testing.assert_array_equal(end[-1], coefficients[-1])
        with pytest.raises(ValueError, match="saveat: clock times must be finite"):
            at(times)


@pytest.mark.parametrize("problem", [PROBLEM, DATA], ids=["regression", "classification"])
@pytest.mark.parametrize("saveat", [None, [0.1, 0.2]])
def test_a_step_of_a_flow_has_no_jump_and_a_traced_result(problem, saveat, monkeypatch):
    # What the package says to diffrax is what diffrax would find by tracing a step twice.
    found = []

    def traced(function, *arguments, **options):
        result = eqx.filter_eval_shape(function, *arguments, **options)
        if getattr(function, "__name__", "") == quick_tracing._STEP:
            found.append(result[1:])
        return result

    jax.clear_caches()
    monkeypatch.setattr(quick_tracing._WithoutJumps, "filter_eval_shape", staticmethod(traced))
    jax.make_jaxpr(lambda p: lt.gradient_flow(NETWORK, p, saveat=saveat).coefficients)(problem)
    assert found
    assert set(found) == {(False, True)}


def test_a_step_is_traced_once():
    traces = []

    class Counted(lt.StopAtResidual):
        def met(self, seen):
            traces.append(seen)
            return super().met(seen)

    lt.gradient_flow(NETWORK, PROBLEM, stop=Counted(1e-9))
    # Once for the shape of the answer, once at the start, once in the step.
    assert len(traces) == 3


def test_a_solve_of_others_learns_of_its_own_jumps():
    # Another thread, or a user's network, can call diffrax while a flow is traced.
    def solve():
        control = diffrax.PIDController(rtol=1e-6, atol=1e-6)
        control = diffrax.ClipStepSizeController(control, jump_ts=jnp.array([0.5]))
        term = diffrax.ODETerm(lambda t, y, args: jnp.where(t < 0.5, -y, y))
        ends = 0.0, 1.0, 0.1, jnp.ones(2)
        return diffrax.diffeqsolve(term, diffrax.Tsit5(), *ends, stepsize_controller=control)

    asked = []

    def seen(function, *arguments, **options):
        result = _WithoutJumps.filter_eval_shape(function, *arguments, **options)
        if getattr(function, "__name__", "") == quick_tracing._STEP:
            asked.append(result[1])
        return result

    with quickly_traced(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(diffrax_loop.eqx, "filter_eval_shape", seen, raising=False)
        solve()
    assert asked
    assert all(asked)

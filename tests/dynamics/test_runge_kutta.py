"""Runge-Kutta methods with quick stages take the steps of diffrax."""

from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lintensor_jax.dynamics.runge_kutta import QuickStages, with_quick_stages

METHODS = (diffrax.Bosh3(), diffrax.Dopri5(), diffrax.Dopri8(), diffrax.Tsit5())
TIMES = np.linspace(0.1, 2.9, 7)
# Error estimates are small differences of large terms. Their rounding changes the step sizes, and
# the solution by a small part of the tolerance, which is 1e-7.
ROUNDING = 1e-11


def velocity(t, y, rate):
    """A velocity that depends on the time and couples neighbouring entries."""
    return rate * jnp.roll(y, 1) - y**3 + jnp.cos(3 * t)


def solve(solver, start, rate: Any = 0.7) -> Any:
    return diffrax.diffeqsolve(
        diffrax.ODETerm(velocity),
        solver,
        0.0,
        3.0,
        None,
        start,
        rate,
        saveat=diffrax.SaveAt(ts=jnp.asarray(TIMES), t1=True),
        stepsize_controller=diffrax.PIDController(rtol=1e-7, atol=1e-9),
        adjoint=diffrax.ForwardMode(),
    )


@pytest.mark.slow_beyond(2)
@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
@pytest.mark.parametrize(
    ("size", "in_loop"), [(3, False), (700, False), (3, True)]
)  # with stored slopes, without, and in a loop
def test_the_steps_are_diffrax_s(method, size, in_loop):
    start = jnp.asarray(np.random.default_rng(0).standard_normal(size))
    quick = with_quick_stages(method, in_loop)
    ours, theirs = solve(quick, start), solve(method, start)
    assert isinstance(quick, QuickStages)
    for count in ("num_steps", "num_rejected_steps"):
        assert int(ours.stats[count]) == int(theirs.stats[count])
    assert int(ours.stats["num_steps"]) > 5
    # Times between steps agree too, as diffrax interpolates with the slopes of these steps.
    np.testing.assert_allclose(ours.ys, theirs.ys, rtol=0, atol=ROUNDING)


@pytest.mark.slow
@pytest.mark.parametrize("in_loop", [False, True])
def test_under_vmap_every_lane_takes_its_own_steps(in_loop):
    starts = jnp.asarray(np.random.default_rng(1).standard_normal((5, 4)))
    quick = with_quick_stages(diffrax.Tsit5(), in_loop)
    together = jax.vmap(lambda start: solve(quick, start))(starts)
    for lane, start in enumerate(starts):
        alone = solve(diffrax.Tsit5(), start)
        assert int(together.stats["num_steps"][lane]) == int(alone.stats["num_steps"])
        np.testing.assert_allclose(together.ys[lane], alone.ys, rtol=0, atol=ROUNDING)


@pytest.mark.slow
@pytest.mark.parametrize("in_loop", [False, True])
def test_derivatives_are_diffrax_s(in_loop):
    start = jnp.asarray([0.3, -0.2, 1.1])

    def end(solver, rate):
        return solve(solver, start, rate).ys[-1]

    for method in (diffrax.Tsit5(), diffrax.Dopri8()):
        quick = with_quick_stages(method, in_loop)
        derivatives = [
            jax.jvp(lambda rate, solver=solver: end(solver, rate), (0.7,), (1.0,))[1]
            for solver in (quick, method)
        ]
        assert float(jnp.max(jnp.abs(derivatives[0]))) > 0.1
        np.testing.assert_allclose(*derivatives, rtol=1e-10, atol=1e-12)
        _, linear = jax.linearize(lambda rate, quick=quick: end(quick, rate), 0.7)
        np.testing.assert_allclose(linear(1.0), derivatives[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("method", [diffrax.Heun(), diffrax.Kvaerno5(), diffrax.Euler()])
def test_other_methods_stay_as_they_are(method):
    assert with_quick_stages(method) is method

"""Linear systems of implicit steps by groups of parameters: equal to the dense ones."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array
from numpy.testing import assert_allclose

import lintensor_jax as lt
from lintensor_jax.dynamics.batch.fourier_basis import Spectral
from lintensor_jax.dynamics.clocks import (
    FlowArgs,
    LogArcLength,
    LossTime,
    PhysicalTime,
    state_of,
    vector_of,
)
from lintensor_jax.dynamics.shifted_systems import has_implicit_steps, shifted_solver, splits
from lintensor_jax.dynamics.system import System
from lintensor_jax.theory.regression.yun_theorem_5 import limit_point

RNG = np.random.default_rng(5)
STATE = RNG.bit_generator.state


@pytest.fixture(autouse=True)
def _same_numbers_in_any_order():
    """Each test draws from the same state, whichever tests ran before."""
    RNG.bit_generator.state = STATE


class Own(eqx.Module):
    """u . v with a weight before both: one group of two for a coordinate, one alone."""

    u: Array
    single: Array
    v: Array
    depth = 2

    def linear_coefficients(self):
        return jnp.append(self.u * self.v, self.single**2)

    def coupled_groups(self):
        d = self.u.size
        groups: Any = np.arange(d), np.array([d]), np.arange(d)
        return Own(*groups)


def diagonal(depth, *shape):
    return lt.DiagonalNetwork(RNG.standard_normal((depth, *shape)))


def regression(n, d, *outputs, **options):
    return lt.Regression(RNG.standard_normal((n, d)), RNG.standard_normal((n, *outputs)), **options)


def spectral(d):
    filters = tuple(RNG.standard_normal((2, d)))
    problem = regression(4, d)
    basis = Spectral.of(lt.ConvolutionalNetwork(filters), problem)
    assert basis is not None
    system = basis.system(basis.problem(problem))
    return system.network(jnp.asarray(RNG.standard_normal(2 * d))), system.problem


CASES = {
    "diagonal": lambda: (diagonal(3, 20), regression(5, 20)),
    "several outputs": lambda: (diagonal(2, 15, 2), regression(5, 15, 2)),
    "huber": lambda: (
        lt.DifferentialDiagonalNetwork(RNG.random(30), RNG.random(30), 3),
        regression(5, 30, loss=lt.HuberLoss(0.5)),
    ),
    "bias": lambda: (lt.with_bias(diagonal(3, 20)), regression(5, 20, bias=True)),
    "weight decay": lambda: (diagonal(3, 20), lt.Penalized(regression(5, 20), 0.3)),
    "one layer": lambda: (lt.LinearNetwork(RNG.standard_normal(60)), regression(5, 60)),
    "own network": lambda: (
        Own(*(jnp.asarray(RNG.standard_normal(k)) for k in (30, 1, 30))),
        regression(5, 31),
    ),
    "even convolution": lambda: spectral(30),
    "odd convolution": lambda: spectral(31),
}


def signs(n, d):
    X = RNG.standard_normal((n, d))
    return lt.Classification(X, np.sign(X @ RNG.standard_normal(d)))


CASES |= {
    "fully connected": lambda: (
        lt.FullyConnectedNetwork((RNG.standard_normal((6, 9)), RNG.standard_normal(9))),
        regression(5, 6),
    ),
    "factorization": lambda: (
        lt.MatrixFactorizationNetwork(tuple(RNG.standard_normal((2, 6, 6)))),
        lt.MatrixSensing(RNG.standard_normal((7, 6, 6)), RNG.standard_normal(7)),
    ),
    "margins, diagonal": lambda: (diagonal(3, 20), signs(6, 20)),
    "margins, fully connected": lambda: (
        lt.FullyConnectedNetwork((RNG.standard_normal((6, 12)), RNG.standard_normal((12, 3)))),
        lt.MulticlassClassification(RNG.standard_normal((4, 6)), np.arange(4) % 3),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_the_dense_system(case):
    network, problem = CASES[case]()
    system = System.of(network, problem)
    clock = LogArcLength() if problem.has_margins else PhysicalTime()
    assert splits(system, clock)
    state = clock.start(system, system.initial)
    args = FlowArgs(system, None, jnp.zeros(()))
    y = vector_of(state, clock)

    def velocity(y):
        return vector_of(clock.velocity(y[-1], state_of(y, clock), args), clock)

    @jax.jit
    def found_by(shift, b):
        return shifted_solver(clock, args, y, shift)(b)

    @jax.jit  # not in one program with the other: their calls of LAPACK could wait for each other
    def dense_by(shift, b):
        return jnp.linalg.solve(shift * jnp.eye(y.size) - jax.jacfwd(velocity)(y), b)

    b = jnp.asarray(RNG.standard_normal(y.size))
    for shift in (0.1, 30.0):
        found = found_by(jnp.asarray(shift), b)
        dense = dense_by(jnp.asarray(shift), b)
        # The condition of the systems is below 1e5: no eigenvalue is near either shift.
        assert_allclose(found, dense, rtol=0, atol=1e-9 * float(jnp.max(jnp.abs(dense))))


def test_other_systems_stay_dense():
    network, problem = CASES["diagonal"]()
    assert not splits(System.of(network, problem), LossTime())
    assert not splits(System.of(network, regression(31, 20)), PhysicalTime())
    deep = (*RNG.standard_normal((2, 8, 8)), RNG.standard_normal(8))
    assert not splits(System.of(lt.FullyConnectedNetwork(deep), regression(2, 8)), PhysicalTime())
    few = lt.FullyConnectedNetwork((RNG.standard_normal((40, 1)), np.ones(1)))
    assert not splits(System.of(few, regression(2, 40)), PhysicalTime())


def test_a_clock_with_another_velocity_stays_dense():
    class Faster(PhysicalTime):
        def velocity(self, s, state, args):
            return jax.tree.map(lambda v: 2 * v, super().velocity(s, state, args))

    network, problem = CASES["diagonal"]()
    assert not splits(System.of(network, problem), Faster())


class WrongGroups(Own):
    """Every parameter alone, though u and v share second derivatives."""

    def coupled_groups(self):
        d = self.u.size
        groups: Any = np.arange(d), np.array([2 * d]), d + np.arange(d)
        return WrongGroups(*groups)


@pytest.mark.parametrize("with_bias", [False, True])
def test_groups_that_share_second_derivatives_are_refused(with_bias):
    layers = tuple(jnp.asarray(RNG.standard_normal(k)) for k in (3, 1, 3))
    problem = regression(2, 4, bias=with_bias)
    for kind, refused in ((Own, False), (WrongGroups, True)):
        network = lt.with_bias(kind(*layers)) if with_bias else kind(*layers)
        if refused:
            with pytest.raises(ValueError, match=r"coupled_groups\(\) of .* between groups"):
                lt.gradient_flow(network, problem)
        else:
            lt.gradient_flow(network, problem, max_steps=1, throw=False)


def test_size_limit_is_that_of_the_largest_matrix():
    network = diagonal(2, 2000)
    for n, allowed in ((600, True), (601, False)):
        system = System.of(network, regression(n, 2000))
        assert has_implicit_steps(system, PhysicalTime(), 4000) is allowed


def stiff(d, n, alpha, seed):
    """Three layers from a small start: a plateau, then a jump."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d))
    y = X @ (np.arange(d) < 2)
    first = jnp.full(d, alpha)
    return lt.DiagonalNetwork(jnp.stack([first, first, 0 * first])), lt.Regression(X, y)


@pytest.mark.slow
def test_flow_of_more_than_600_parameters_has_implicit_steps():
    network, problem = stiff(210, 12, 0.05, 1)
    flow = lt.gradient_flow(network, problem)
    assert int(flow.stats["num_implicit_steps"]) > 0
    assert flow.status == lt.FlowStatus.residual
    limit = limit_point(None, problem.X, problem.y, 3, jnp.asarray(0.05), jnp.ones(210))
    assert bool(limit.converged)
    assert_allclose(flow.coefficients[-1], limit.coefficients, rtol=0, atol=1e-7)


@pytest.mark.slow
def test_lanes_go_on_by_the_same_steps():
    network, problem = stiff(60, 8, 0.05, 2)
    lanes = jax.tree.map(lambda w: jnp.stack([w, 1.1 * w]), network)
    flow = lt.batched_flow(lanes, problem, max_steps=200, stiff_max_steps=2000)
    assert np.all(np.asarray(flow.num_implicit_steps) > 0)
    assert np.all(np.asarray(flow.succeeded))
    for lane, scale in enumerate((1.0, 1.1)):
        alpha = jnp.asarray(0.05 * scale)
        limit = limit_point(None, problem.X, problem.y, 3, alpha, jnp.ones(60))
        assert_allclose(flow.coefficients[lane], limit.coefficients, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_margins_of_more_than_600_parameters_have_implicit_steps():
    rng = np.random.default_rng(7)
    X = rng.standard_normal((12, 210))
    problem = lt.Classification(X, np.sign(X[:, 0]))
    network = lt.DiagonalNetwork(0.3 * rng.standard_normal((3, 210)))
    flow = lt.gradient_flow(network, problem, stop=lt.StopAtMargin(1e5), rtol=1e-6)
    assert int(flow.stats["num_implicit_steps"]) > 0
    assert flow.status == lt.FlowStatus.margin
    assert float(flow.invariant_drift[-1]) < 1e-5

"""Random corners of deeper networks, found by search, against NNLS and a bounded minimiser."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import lintensor_jax as lt
from lintensor_jax.dynamics import observations
from lintensor_jax.dynamics.clocks import ClockState, FlowArgs
from lintensor_jax.dynamics.corners import marked_start, step_at_corner
from lintensor_jax.dynamics.statuses import code_of
from lintensor_jax.dynamics.system import Reducible, System


def _diagonal(rng, depth):
    """Layers of equal sizes: the signs of beta never change."""
    alpha = 10.0 ** rng.uniform(-1.3, 0.3)
    size = alpha * rng.uniform(0.5, 1.5, 2)
    flips = rng.choice([-1.0, 1.0], (depth, 2))
    return lt.DiagonalNetwork(size * flips), np.prod(flips, axis=0)


def _regression(seed, depth):
    rng = np.random.default_rng((7, seed))
    X = rng.normal(size=(3, 2))
    network, signs = _diagonal(rng, depth)
    y = rng.normal(size=3)
    return network, lt.Regression(X, y), signs * scipy.optimize.nnls(X * signs, y)[0]


def _classification(seed, depth):
    """Data that no beta with these signs separates."""
    rng = np.random.default_rng((7, seed))
    X = rng.normal(size=(3, 2))
    network, signs = _diagonal(rng, depth)
    X = np.concatenate([X, -np.abs(rng.normal(size=(1, 2))) * signs])
    rows = X * signs
    found = scipy.optimize.minimize(
        lambda beta: np.logaddexp(0, -rows @ beta).sum(), np.ones(2), method="L-BFGS-B",
        jac=lambda beta: -rows.T @ (1 / (1 + np.exp(rows @ beta))), bounds=[(0, None)] * 2,
        options={"ftol": 1e-16, "gtol": 1e-12},
    )  # fmt: skip
    return network, lt.Classification(X, np.ones(4), lt.LogisticLoss()), signs * found.x


@pytest.mark.parametrize(
    "case",
    [
        # In an earlier version implicit steps changed the sign of one of two layers here.
        (_classification, 1, 2),
        # Four layers take a time of 1e16, in which rounding moves the other coordinate.
        (_regression, 6, 4),
        pytest.param((_regression, 2, 4), marks=pytest.mark.slow),
        # The gradient is below rounding long before four layers are at their corner.
        pytest.param((_classification, 2, 4), marks=pytest.mark.slow),
    ],
)
def test_single_flows(case):
    make, *numbers = case
    network, problem, expected = make(*numbers)
    flow = lt.gradient_flow(network, problem)
    assert flow.status == lt.FlowStatus.stationary
    np.testing.assert_allclose(flow.coefficients[-1], expected, atol=1e-6)
    assert flow.invariant_drift[-1] < 1e-6


def _chain(seed, depth, kind):
    """Fully connected layers of equal size with one active unit each, and opposite data.

    All units shrink together and keep their signs: the flow ends at 0.
    """
    rng = np.random.default_rng((11, seed))
    start, size = rng.integers(2), 10.0 ** rng.uniform(-1.3, 0.3)
    path = [start, *rng.integers(2, size=depth - 1)]
    layers: list = [np.zeros((2, 2)) for _ in range(depth - 1)] + [np.zeros(2)]
    signs = rng.choice([-1.0, 1.0], depth)
    places = [*itertools.pairwise(path), path[-1]]
    for layer, place, sign in zip(layers, places, signs, strict=True):
        layer[place] = size * sign
    X, y = np.zeros((4, 2)), rng.normal(size=4)
    x = rng.normal(size=4) if kind is lt.Regression else np.append(rng.normal(size=2), [1.0, -1.0])
    pull = np.prod(signs) * (x @ y if kind is lt.Regression else x.sum())
    X[:, start] = -np.sign(pull) * x
    network = lt.FullyConnectedNetwork(layers)
    if kind is lt.Regression:
        return network, lt.Regression(X, y)
    return network, lt.Classification(X, np.ones(4), lt.LogisticLoss())


@pytest.mark.slow_beyond(1)
@pytest.mark.parametrize(
    ("kind", "depth"),
    [(lt.Regression, 3), (lt.Classification, 3), (lt.Regression, 4), (lt.Classification, 4)],
)
def test_tied_layers_stay_at_the_corner(kind, depth):
    """Without the correction rounding separates the layers: at depth 3, 5 of 12 ended elsewhere."""
    for seed in range(12):
        flow = lt.gradient_flow(*_chain(seed, depth, kind))
        assert flow.status == lt.FlowStatus.stationary
        np.testing.assert_allclose(flow.coefficients[-1], 0.0, atol=1e-15)


@pytest.mark.slow
@pytest.mark.parametrize("depth", [3, 4])
@pytest.mark.parametrize("kind", [lt.Regression, lt.Classification])
def test_lanes_of_tied_layers_stay_at_the_corner(kind, depth):
    networks, problems = zip(*(_chain(seed, depth, kind) for seed in range(20)), strict=True)
    stacked = [jax.tree.map(lambda *leaves: np.stack(leaves), *x) for x in (networks, problems)]
    flow = lt.batched_flow(*stacked, shared_problem=False)
    assert (np.asarray(flow.code) == code_of(lt.FlowStatus.stationary)).all()
    np.testing.assert_allclose(flow.coefficients, 0.0, atol=1e-15)
    # Without implicit steps every lane ends at its budget, before rounding can move it.
    flow = lt.batched_flow(*stacked, shared_problem=False, stiff_max_steps=None)
    assert (np.asarray(flow.code) == code_of(lt.FlowStatus.max_steps)).all()


@pytest.mark.slow
def test_three_chained_layers_do_not_step_over_the_corner():
    """At size 1e-9 the layers are below the tolerances, but they must keep their signs."""
    layers = np.zeros((2, 2)), np.zeros((2, 2)), np.zeros(2)
    layers[0][1, 0], layers[1][0, 1], layers[2][1] = -0.4, 0.4, 0.4
    network = lt.FullyConnectedNetwork(layers)
    problem = lt.Regression([[0.0, 1.3], [0.0, -0.4], [0.0, 0.6]], [1.5, -0.2, 0.3])
    flow = lt.gradient_flow(network, problem)
    assert flow.status == lt.FlowStatus.stationary
    np.testing.assert_allclose(flow.coefficients[-1], 0.0, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("depth", [3, 4])
def test_implicit_lanes_keep_to_corners(depth):
    """Each lane has different data; an earlier version left the corner of one of them."""
    made = [_classification(seed, depth) for seed in (0, 4, 5)]
    networks, problems, expected = zip(*made, strict=True)
    stacked = [jax.tree.map(lambda *leaves: np.stack(leaves), *x) for x in (networks, problems)]
    flow = lt.batched_flow(*stacked, shared_problem=False, max_steps=512, stiff_max_steps=3000)
    assert (np.asarray(flow.code) == code_of(lt.FlowStatus.stationary)).all()
    assert (np.asarray(flow.num_implicit_steps) > 0).any()
    np.testing.assert_allclose(flow.coefficients, expected, atol=1e-6)


def test_what_is_tied():
    def signs(network):
        size = network.linear_coefficients().size
        system = System.of(network, lt.Regression(np.ones((1, size)), np.ones(1)))
        return np.sign(marked_start(system, system.initial)).tolist()

    # The first coordinate is tied: its squares are equal. If squares underflow, nothing is tied.
    assert signs(lt.DiagonalNetwork(np.asarray([[2.0, 1.0, 1e-200], [-2.0, 3.0, 1e-200]]))) == [
        -1, 1, 1, -1, 1, 1,
    ]  # fmt: skip
    # w_+ w_- is conserved.
    differential = lt.DifferentialDiagonalNetwork(np.asarray([0.5, 0.5]), np.asarray([0.0, 0.1]), 2)
    assert signs(differential)[:2] == [-1, 1]
    assert signs(lt.LinearNetwork(np.asarray([1.0, -2.0]))) == [1, 1]


@pytest.mark.slow
def test_a_sample_that_is_zero_keeps_its_loss():
    """The others are fitted, and the loss falls to that of one sample, which is its minimum."""
    problem = lt.Classification([[-0.2, 0.0], [0.0, 0.0]], [1.0, -1.0], lt.LogisticLoss())
    flow = lt.gradient_flow(lt.DiagonalNetwork(np.asarray([[1.0, 0.5], [-1.0, 1.0]])), problem)
    assert flow.status == lt.FlowStatus.not_separable
    np.testing.assert_allclose(flow.log_loss[-1], np.log(np.log(2)), atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_steps_are_bounded_at_corners_and_not_where_zero_is_crossed(dtype):
    problem = lt.Regression(np.ones((1, 1), dtype), -np.ones(1, dtype))  # the target is below zero
    start = np.ones(2, dtype)

    def longest(*theta):
        system = System.of(lt.DiagonalNetwork(start.reshape(2, 1)), problem)
        args = FlowArgs(system, Reducible.of(problem), jnp.zeros((), dtype), jnp.asarray(start))
        theta = jnp.asarray(theta, dtype)
        return float(step_at_corner(theta, args, system.velocity(theta)))

    small = 1e-2 * float(np.finfo(dtype).eps) ** 0.5
    # Both layers decay like exp(-t), as the residual is 1 + small^2: 1 to rounding.
    np.testing.assert_allclose(longest(small, small), 1.0, rtol=8 * float(np.finfo(dtype).eps))
    # The first layer crosses zero with velocity -1, at any distance from zero.
    for distance in (small, small**2, float(np.finfo(dtype).smallest_subnormal)):
        assert longest(distance, 1.0) > 1e30


@pytest.mark.parametrize("kind", ["regression", "classification"])
def test_a_parameter_that_crosses_zero_is_not_at_rest(kind):
    """beta_2 is at its limit, and the loss wants beta_1 < 0. Implicit steps follow to 1.5e-8."""
    if kind == "regression":
        problem, clock, limit = lt.Regression(np.eye(2), [-1.0, 1.0]), lt.PhysicalTime(), 1.0
    else:  # the slopes balance where 2 / (1 + e^b) = 1 / (1 + e^-b)
        samples = [[-1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, -1.0]]
        problem = lt.Classification(samples, np.ones(4), lt.LogisticLoss())
        clock, limit = lt.LogArcLength(), np.log(2)
    system = System.of(lt.DiagonalNetwork(np.ones((2, 2))), problem)
    reducible = Reducible.of(problem) if kind == "regression" else None
    args = FlowArgs(system, reducible, jnp.zeros(()), system.initial, 1.5e-8)

    def still(first, second):
        theta = np.array([first, limit**0.5, second, limit**0.5])
        scale = np.linalg.norm(theta) if kind == "classification" else 1.0
        state = ClockState(jnp.asarray(theta / scale), jnp.log(scale), jnp.zeros(()))
        return bool(observations.observe_state(jnp.asarray(0.1), state, args, clock).still)

    assert still(1e-9, 1e-9)  # u = v: both decay to the corner, which they never reach
    assert not still(1e-9, 1.0)  # u crosses zero
    assert not still(1.0, 1e-9)


def test_rest_is_seen_wherever_it_is_evaluated():
    """What is skipped far from rest and from corners has there the value that it is given."""
    rng = np.random.default_rng(2)
    start = rng.standard_normal(6)
    problem = lt.Regression(rng.standard_normal((2, 3)), rng.standard_normal(2))
    system = System.of(lt.DiagonalNetwork(start.reshape(2, 3)), problem)
    origin = marked_start(system, system.initial)
    args = FlowArgs(system, Reducible.of(problem), jnp.zeros(()), origin)
    fitted = lt.gradient_flow(system.network(system.initial), problem).network
    limit = np.concatenate([np.asarray(layer) for layer in fitted.weights])
    cases = [start, limit, limit * (1 + 1e-9), np.zeros(6)]
    for size in (1e-20, 1e-17, 1e-9, 1e-3):
        cases += [np.where(np.arange(6) % 3 == 0, size * start, other) for other in (start, limit)]
    found = set()
    for theta in cases:
        zero, s = jnp.zeros(()), jnp.asarray(1e9)
        state = ClockState(jnp.asarray(theta), zero, zero)
        seen, longest = observations.observe_and_limit(s, state, args, lt.PhysicalTime())
        residual, gradient = system.gradient_norm(state.theta)
        size = np.linalg.norm(residual)
        velocity = lt.PhysicalTime().velocity(s, state, args)
        rest = observations._rest_of_flow(s, state, args, lt.PhysicalTime(), velocity)
        always = observations._stands_still(
            rest,
            gradient * np.linalg.norm(theta),
            np.linalg.norm(residual + problem.y) * size,
            system,
            observations._LONG,
        )
        assert bool(seen.still) == bool(always)
        assert float(longest) == float(observations.longest_step(state.theta, args))
        found.add((bool(always), bool(rest.is_corner)))
    assert {still for still, _ in found} == {True, False}
    assert {corner for _, corner in found} == {True, False}

"""Flows that end where they stand still: corners, minima, saved times after the end."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from jax import Array

import lintensor_jax as lt
from lintensor_jax.dynamics.statuses import code_of

PULLED = lt.Classification([[-1.0, 1.0], [-1.0, -0.4], [-1.0, 0.3]], np.ones(3), lt.LogisticLoss())


def _ones(alpha, depth=2, size=2):
    return lt.DiagonalNetwork(alpha * np.ones((depth, size)))


def _least_loss(data, loss):
    """The minimum of the loss over beta >= 0, by SciPy."""
    losses = {"logistic": lambda m: np.logaddexp(0, -m), "exponential": lambda m: np.exp(-m)}
    found = scipy.optimize.minimize(
        lambda beta: losses[loss](data @ beta).sum(), np.ones(data.shape[1]), method="L-BFGS-B",
        bounds=[(0, None)] * data.shape[1], options={"ftol": 1e-15, "gtol": 1e-10},
    )  # fmt: skip
    return found.x


def test_classification_ends_at_a_saddle_that_the_data_pull_on():
    # From equal layers beta_1 = u^2 cannot become negative; the data need beta_1 < 0 to separate.
    flow = lt.gradient_flow(_ones(0.1), PULLED)
    assert flow.status == lt.FlowStatus.stationary
    np.testing.assert_allclose(flow.coefficients[-1], [0, 1.70817], atol=1e-5)
    # Both layers are compared, not only their product: implicit steps must not change their ratio.
    np.testing.assert_allclose(flow.network.weights[:, 1], np.sqrt(1.70817), atol=1e-5)
    assert flow.invariant_drift[-1] < 1e-6


@pytest.mark.slow_beyond(1)
# From seeds 3 and 5 all parameters decay to 0, by implicit steps and on a shrinking sphere.
@pytest.mark.parametrize("seed", [0, 1, 2, 3, 5])
def test_random_classification_over_nonnegative_coefficients(seed):
    rng = np.random.default_rng(seed)
    data = rng.normal(size=(3, 2))
    data = np.concatenate([data, -np.abs(rng.normal(size=(1, 2)))])  # no beta >= 0 separates it
    flow = lt.gradient_flow(_ones(0.1), lt.Classification(data, np.ones(4), lt.LogisticLoss()))
    assert flow.succeeded
    expected = _least_loss(data, "logistic")
    np.testing.assert_allclose(flow.coefficients[-1], expected, atol=1e-5)
    np.testing.assert_allclose(flow.network.weights[0], np.sqrt(expected), atol=3e-3)
    assert flow.invariant_drift[-1] < 1e-6


def test_regression_ends_at_a_corner():
    flow = lt.gradient_flow(_ones(0.1), lt.Regression([[1.0, 2.0], [1.0, -1.0]], [1.0, 1.5]))
    assert flow.status == lt.FlowStatus.stationary
    np.testing.assert_allclose(flow.coefficients[-1], [1.25, 0], atol=1e-9)
    np.testing.assert_allclose(flow.network.weights[:, 0], np.sqrt(1.25), atol=1e-7)


def test_a_flow_whose_every_entry_decays_ends_at_zero():
    network = lt.DifferentialDiagonalNetwork(np.ones(1), np.zeros(1), 2)
    flow = lt.gradient_flow(network, lt.Regression([[1.0]], [-1.0]))
    assert flow.status == lt.FlowStatus.stationary
    assert abs(flow.coefficients[-1, 0]) < 1e-25


@pytest.mark.parametrize("gap", [1e-3, 1e-9, 1e-15])
def test_a_coordinate_that_turns_around_is_not_at_a_corner(gap):
    # u^2 - v^2 > 0 is conserved: v changes its sign, and beta = u v reaches -1.
    network = lt.DiagonalNetwork(np.asarray([[1.0 + gap], [1.0]]))
    flow = lt.gradient_flow(network, lt.Regression([[1.0]], [-1.0]))
    assert flow.status == lt.FlowStatus.residual
    np.testing.assert_allclose(flow.coefficients[-1], [-1.0], atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "ratio"), [(np.float64, 3e7), (np.float32, 1e4)])
def test_separable_data_of_two_scales(dtype, ratio):
    data = np.asarray([[ratio, 0.0], [0.0, 1.0]], dtype)
    network = lt.DiagonalNetwork(np.asarray([[1.0, 1.0], [1.0, -0.5]], dtype))
    flow = lt.gradient_flow(network, lt.Classification(data, np.ones(2, dtype)))
    assert flow.status in (lt.FlowStatus.margin, lt.FlowStatus.float_wall)
    assert flow.log_margin[-1] > 5  # pyright: ignore[reportOptionalSubscript]


@pytest.mark.slow
def test_a_stop_rule_of_the_users_is_not_overridden():
    # The loss has a minimum in beta_1. The third sample is separable, so beta_2 grows like log t.
    problem = lt.Classification([[1.0, 0.0], [-2.0, 0.0], [0.0, 1.0]], np.ones(3))
    network = lt.DiagonalNetwork(np.asarray([[0.5, 0.5], [0.4, 0.5]]))
    slow = lt.gradient_flow(network, problem, stop=lt.StopAtTime(1e4))
    late = lt.gradient_flow(network, problem, stop=lt.StopAtTime(1e8))
    assert slow.status == late.status == lt.FlowStatus.time
    np.testing.assert_allclose(late.coefficients[-1, 0], -np.log(2) / 3, atol=1e-5)

    # d beta_2/dt = 2 beta_2 e^-beta_2 from equal layers.
    def time_at(beta):
        points = np.linspace(0.25, beta, 200_001)
        return np.trapezoid(np.exp(points) / (2 * points), points)

    for flow in (slow, late):
        expected = np.log(time_at(float(flow.coefficients[-1, 1])))
        np.testing.assert_allclose(flow.log_time[-1], expected, atol=1e-4)


@pytest.mark.slow
def test_data_that_no_beta_separates_still_end_a_flow_with_a_rule_on_time():
    problem = lt.Classification([[1.0], [-2.0]], np.ones(2))
    network = lt.DiagonalNetwork(np.asarray([[0.5], [0.4]]))
    flow = lt.gradient_flow(network, problem, stop=lt.StopAtTime(1e12))
    assert flow.succeeded
    np.testing.assert_allclose(flow.coefficients[-1], -np.log(2) / 3, atol=1e-6)


class _Linear(eqx.Module):
    beta: Array
    depth = 1

    def linear_coefficients(self):
        return self.beta


@pytest.mark.slow_beyond(1)
@pytest.mark.parametrize("clock", [lt.LogArcLength(), lt.LossTime(), lt.PhysicalTime()])
def test_a_linear_model_leaves_zero(clock):
    problem = lt.Classification([[1.0, 0.5], [0.2, 2.0]], np.ones(2))
    flow = lt.gradient_flow(_Linear(jnp.zeros(2)), problem, clock=clock, stop=lt.StopAtTime(10.0))
    assert flow.status == lt.FlowStatus.time
    time = float(np.exp(flow.log_time[-1]))
    data = np.asarray(problem.X)
    found = scipy.integrate.solve_ivp(
        lambda t, b: data.T @ np.exp(-data @ b), (0, time), np.zeros(2), rtol=1e-10, atol=1e-12
    )
    np.testing.assert_allclose(flow.coefficients[-1], found.y[:, -1], rtol=1e-6)


@pytest.mark.slow
def test_saved_times_after_the_standstill_have_the_resting_state():
    problem = lt.Regression([[1.0, 2.0], [1.0, -1.0]], [1.0, 1.5])
    times = np.asarray([0.0, 1.0, 1e3, 1e6, 1e9])
    flow = lt.gradient_flow(_ones(0.1), problem, saveat=times)
    assert flow.status == lt.FlowStatus.stationary
    np.testing.assert_array_equal(flow.clock_time, [*times, times[-1]])
    np.testing.assert_allclose(flow.log_time[1:], np.log([*times[1:], times[-1]]), atol=1e-12)
    np.testing.assert_allclose(flow.coefficients[2:], [[1.25, 0]] * 4, atol=1e-9)
    assert flow.reached.all()


@pytest.mark.slow
def test_saved_times_after_the_standstill_under_vmap():
    problem = lt.Regression([[1.0, 2.0], [1.0, -1.0]], [1.0, 1.5])
    times = np.asarray([0.0, 1.0, 1e3, 1e6, 1e9])
    flow = lt.gradient_flow(_ones(0.1), problem, saveat=times)
    batch = jax.vmap(lambda a: lt.gradient_flow(_ones(a), problem, saveat=times).log_time)(
        jnp.asarray([0.1])
    )
    np.testing.assert_allclose(batch[0], flow.log_time, atol=1e-9)


@pytest.mark.slow
def test_the_error_of_a_spent_budget_names_what_has_the_limit():
    network = lt.FullyConnectedNetwork((0.1 * np.eye(25), 0.1 * np.eye(25), np.full(25, 0.1)))
    problem = lt.Regression(np.eye(1, 25), np.ones(1))
    with pytest.raises(lt.FlowError, match=r"1275 parameters.* see predict\(network, problem\)"):
        lt.gradient_flow(network, problem, max_steps=2)


@pytest.mark.slow
def test_lanes_of_a_batch_end_at_corners():
    rng = np.random.default_rng(5)
    data = [(rng.normal(size=(3, 2)), rng.normal(size=3)) for _ in range(12)]
    X, y = (np.stack(part) for part in zip(*data, strict=True))
    problems = jax.vmap(lambda X, y: lt.Regression(X, y))(X, y)
    lanes = jax.vmap(_ones)(np.full(12, 0.1))
    flow = lt.batched_flow(lanes, problems, shared_problem=False)
    assert flow.succeeded.all()
    assert jnp.sum(flow.code == code_of(lt.FlowStatus.stationary)) == 9
    expected = [scipy.optimize.nnls(*pair)[0] for pair in data]
    np.testing.assert_allclose(flow.coefficients, expected, atol=1e-7)
    single = lt.gradient_flow(_ones(0.1), lt.Regression(*data[3]))
    np.testing.assert_allclose(single.coefficients[-1], expected[3], atol=1e-7)
    assert single.status == lt.FlowStatus.stationary


@pytest.mark.slow
def test_lanes_of_classification_end_at_corners():
    seeds = [0, 1, 5, 8]  # three of them end at zero
    data = []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        data.append(np.concatenate([rng.normal(size=(3, 2)), -np.abs(rng.normal(size=(1, 2)))]))
    problems = jax.vmap(lambda x: lt.Classification(x, np.ones(4), lt.LogisticLoss()))(
        np.stack(data)
    )
    flow = lt.batched_flow(jax.vmap(_ones)(np.full(4, 0.1)), problems, shared_problem=False)
    assert (flow.code == code_of(lt.FlowStatus.stationary)).all()
    expected = [_least_loss(x, "logistic") for x in data]
    np.testing.assert_allclose(flow.coefficients, expected, atol=1e-5)

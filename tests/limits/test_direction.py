"""limit_direction: certified limits against conic programs, closed forms and longer flows."""

import re
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

import lintensor_jax as lt
from lintensor_jax.initialization import gaussian
from lintensor_jax.limits import direction
from lintensor_jax.limits.kkt_point import kkt_point
from lintensor_jax.networks import split

D, N = 10, 20


def problem(index, n=N, d=D) -> lt.Classification:
    rng = np.random.default_rng([2018, index])
    X = rng.standard_normal((n, d))
    return lt.Classification(X, np.sign(X @ rng.standard_normal(d)))


def diagonal(index, alpha) -> lt.DiagonalNetwork:
    return gaussian(lt.DiagonalNetwork.zeros(2, D), jax.random.key(index), alpha)


def flow_to(margin, network, data, rtol=1e-6) -> Any:
    return lt.gradient_flow(network, data, stop=lt.StopAtMargin(margin), rtol=rtol)


def assert_certified(limit, data):
    """Check the KKT conditions on the returned arrays, without the package's certificate."""
    assert limit.succeeded
    margins = np.asarray(data.margins(limit.network.linear_coefficients()))
    assert margins.min() >= 1 - 1e-9
    multipliers = np.asarray(limit.certificate.multipliers)
    assert multipliers.min() >= 0
    assert multipliers[margins > 1 + 1e-6].max(initial=0) == 0
    parameters, rest = split(limit.network)

    def total(parameters):
        beta = eqx.combine(parameters, rest).linear_coefficients()
        return jnp.vdot(multipliers, data.margins(beta))

    gradient = jax.grad(total)(parameters)
    defects = jax.tree.map(lambda a, b: jnp.sum((a - b) ** 2), parameters, gradient)
    size = jax.tree.map(lambda a: jnp.sum(a**2), parameters)
    assert sum(jax.tree.leaves(defects)) <= 1e-20 * sum(jax.tree.leaves(size))


@pytest.mark.slow
def test_a_saddle_is_found_as_one_and_followed():
    # At margin 1e5 both two-layer flows are near a saddle of the l1 problem.
    for index in (2, 5):
        data = problem(index)
        flow = flow_to(1e5, diagonal(index, 0.01), data)
        theta = flow.state.theta
        weights = jax.nn.softmax(-data.margins(flow.coefficients[-1]))
        saddle = kkt_point(flow.system, theta, weights)
        assert saddle.problem_with is None
        certificate = lt.certify(flow.system.network(saddle.theta), data, tolerance=1e-10)
        assert certificate.is_saddle
        limit = lt.limit_direction(flow, data)
        assert_certified(limit, data)
        expected = lt.max_margin(data, lt.L1Norm()).direction
        # Both are solved to rounding; the required accuracy is 1e-6.
        np.testing.assert_allclose(limit.direction, expected, rtol=0, atol=1e-12)
        assert limit.moved > 0.01
        assert "stationary" in str(limit)


def test_the_end_of_a_regular_flow_needs_no_following():
    data = problem(4)
    flow = flow_to(1e5, diagonal(4, 0.01), data)
    limit = lt.limit_direction(flow, data)
    assert_certified(limit, data)
    expected = lt.max_margin(data, lt.L1Norm()).direction
    np.testing.assert_allclose(limit.direction, expected, rtol=0, atol=1e-12)
    assert limit.moved < 1e-4
    assert limit.num_supports == 1


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1e6, pytest.param(1e-6, marks=pytest.mark.slow)])
def test_scaled_duplicated_and_logistic(scale):
    data = problem(4)
    X, y = np.concatenate([data.X, data.X[:5]]), np.concatenate([data.y, data.y[:5]])
    hostile = lt.Classification(scale * X, y, loss=lt.LogisticLoss())
    limit = lt.limit_direction(diagonal(4, 0.1), hostile)
    assert_certified(limit, hostile)
    expected = lt.max_margin(data, lt.L1Norm()).direction
    np.testing.assert_allclose(limit.direction, expected, rtol=0, atol=1e-10)


@pytest.mark.slow
def test_short_filters_go_where_the_longer_flow_goes():
    # No regulariser is known in predictor space. The flow selects one of many KKT points.
    data = problem(3, n=8, d=5)
    like = lt.ConvolutionalNetwork.zeros(5, (2, 2, 5))
    moved = []
    for seed in (0, 1, 2):
        flow = flow_to(1e5, gaussian(like, jax.random.key(seed), 0.1), data)
        limit = lt.limit_direction(flow, data)
        assert_certified(limit, data)
        assert limit.certificate.predictor_residual is None
        further = flow.continued(stop=lt.StopAtMargin(1e8), rtol=1e-8)
        distance = np.linalg.norm(further.direction[-1] - limit.direction)
        moved.append((limit.moved, distance))
        # The error of the flow's direction falls slowly, like a power of the margin.
        assert distance < 0.05
        assert distance <= limit.moved + 1e-8
    assert max(distance for _, distance in moved) > 0


@pytest.mark.slow
def test_one_sample_and_short_filters():
    """Corollary 4 of Yun et al. 2021 (n = 1, L = 2), to 1e-8."""
    x, y = np.array([1.0, -0.4, 0.7, 2.0]), -1.0
    data = lt.Classification(x[None], np.array([y]))
    correlation = np.vdot(x, np.roll(x, 1))
    assert correlation != 0
    sign = np.sign(correlation)
    expected = {1: y * x, 2: y * (2 * x + sign * (np.roll(x, 1) + np.roll(x, -1)))}
    for size, beta in expected.items():
        like = lt.ConvolutionalNetwork.zeros(4, (size, 4))
        limit = lt.limit_direction(gaussian(like, jax.random.key(size), 0.3), data)
        assert_certified(limit, data)
        np.testing.assert_allclose(limit.direction, beta / np.linalg.norm(beta), rtol=0, atol=1e-8)


@pytest.mark.slow
def test_one_sample_and_any_two_layer_tensor():
    """Theorem 3 of Yun et al. 2021: the top singular vectors of the data tensor."""
    rng = np.random.default_rng(5)
    tensor = rng.standard_normal((3, 4, 5))
    x = rng.standard_normal(5)
    data = lt.Classification(x[None], np.ones(1))
    factors = tuple(jnp.asarray(0.2 * rng.standard_normal(k)) for k in (3, 4))
    limit = lt.limit_direction(lt.TensorNetwork(jnp.asarray(tensor), factors), data)
    assert_certified(limit, data)
    left, _, right = np.linalg.svd(tensor @ x)
    for found, top in zip(limit.network.factors, (left[:, 0], right[0]), strict=True):
        unit = np.asarray(found) / np.linalg.norm(found)
        assert abs(abs(unit @ top) - 1) < 1e-12


class Squares(eqx.Module):
    """A user's network: beta = u * u, which is never negative."""

    u: Array
    depth = 2

    def linear_coefficients(self):
        return self.u * self.u


@pytest.mark.slow
def test_a_users_own_network():
    data = lt.Classification(np.array([[1.0, 2.0], [0.0, 3.0]]), np.ones(2))
    limit = lt.limit_direction(Squares(jnp.array([0.1, 0.2])), data)
    assert_certified(limit, data)
    # min |u|^2 subject to u_1^2 + 2 u_2^2 >= 1 and 3 u_2^2 >= 1: only the second coordinate.
    np.testing.assert_allclose(limit.direction, [0, 1], rtol=0, atol=1e-12)


@pytest.mark.slow
def test_refusals():
    data = problem(4)
    network = diagonal(4, 0.1)
    flow = flow_to(10.0, network, data)
    batch = eqx.filter_vmap(
        lambda a: lt.gradient_flow(network.scaled(a), data, stop=lt.StopAtLoss(1.0))
    )(jnp.array([1.0, 2.0]))
    X = np.concatenate([data.X, data.X[:1]])
    contradictory = lt.Classification(X, np.append(data.y, -data.y[0]))
    early = lt.gradient_flow(network, data, stop=lt.StopAtTime(1e-6))
    cases: Any = (
        ((network, lt.Regression(data.X, data.y)), ["problem", "Classification", "Regression"]),
        ((flow, problem(5)), ["problem", "solution.problem"]),
        ((batch, data), ["batch of shape (2,)", "jax.tree.map"]),
        ((early, data), ["misclassified", "time", "continued"]),
        ((network, contradictory), ["linearly separable", "convex combination"]),
    )
    with pytest.raises(ValueError, match="network_or_coefficients") as given:
        lt.certify(flow, data)
    assert "got a FlowSolution; pass its .network" in str(given.value)
    assert len(str(given.value)) < 250
    for arguments, words in cases:
        with pytest.raises(ValueError, match=re.escape(words[0])) as caught:
            lt.limit_direction(*arguments)
        assert all(word in str(caught.value) for word in words), caught.value
    assert isinstance(caught.value, lt.theory.NonSeparableError)
    certificate = np.asarray(caught.value.certificate)
    assert certificate.min() >= 0
    rows = np.asarray(contradictory.signed_data)
    np.testing.assert_allclose(certificate @ rows, 0, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="concrete arrays"):
        jax.jit(lambda X: lt.limit_direction(network, lt.Classification(X, data.y)).direction)(
            data.X
        )


@pytest.mark.parametrize(
    ("size", "unique", "status"),
    [(0.0, True, "saddle"), (1e-40, True, "stationary"), (1e-150, False, "continued")],
)
def test_a_coordinate_that_the_solver_froze(size, unique, status, monkeypatch):
    """If it is 0 in both layers, the limit is a saddle; otherwise the exact flow lets it grow.

    The limit is the maximum margin if that is unique. Otherwise the dual flow finds it. From 1e-40
    the held margin's large steps reach it too on some machines. From 1e-150 they do not: there
    they made it grow by a factor of 1e22 at most.
    """
    if not unique:
        monkeypatch.setattr(direction, "is_determined", lambda network, problem: False)
    data = problem(2)
    best = lt.max_margin(data, lt.L1Norm()).direction
    frozen = int(np.argmin(np.where(np.abs(best) > 0.01, np.abs(best), np.inf)))
    assert lt.is_separable(lt.Classification(np.delete(data.X, frozen, 1), data.y)).separable
    weights = diagonal(2, 0.1).weights.at[:, frozen].set(jnp.array([size, 0.0]))
    limit = lt.limit_direction(lt.DiagonalNetwork(weights), data)
    assert limit.status == status
    if size == 0:
        assert not limit.succeeded
        assert limit.direction[frozen] == 0
        worst = limit.certificate.worst_off_support
        assert worst is not None
        assert worst > 1
        assert "dual flow" in limit.reason
    else:
        assert ("maximum margin" in limit.reason) == unique
        assert_certified(limit, data)
        np.testing.assert_allclose(limit.direction, best, rtol=0, atol=1e-12)


@pytest.mark.slow
def test_a_tolerance_below_the_precision_is_refused_by_its_own_name():
    data = lt.Classification(np.eye(2, dtype=np.float32), np.ones(2, np.float32))
    network = lt.DiagonalNetwork(np.ones((2, 2), np.float32))
    with pytest.raises(ValueError, match="limit_direction: tolerance must be at least 16 rounding"):
        lt.limit_direction(network, data, tolerance=1e-10)
    for wrong in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match="limit_direction: tolerance must lie strictly"):
            lt.limit_direction(network, data, tolerance=wrong)


@pytest.mark.slow
@pytest.mark.parametrize("x64", [True, False], ids=["in float64's JAX", "in float32's JAX"])
def test_single_precision_has_a_default_tolerance_that_it_can_reach(x64):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((4, 5)).astype(np.float32)
    y = np.sign(X @ rng.standard_normal(5)).astype(np.float32)
    weights = rng.standard_normal((2, 5)).astype(np.float32)
    with jax.enable_x64(x64):
        data = lt.Classification(X, y)
        limit = lt.limit_direction(lt.DiagonalNetwork(weights), data)
        assert limit.succeeded, str(limit)
        found = np.asarray(limit.direction, float)
    exact = lt.max_margin(lt.Classification(X.astype(float), y.astype(float)), lt.L1Norm())
    expected = np.asarray(exact.coefficients) / np.linalg.norm(exact.coefficients)
    # The bound is a thousand roundings of float32.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)

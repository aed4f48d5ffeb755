"""Classification flows: one trajectory on three clocks, times up to exp(1000), limits of floats."""

from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from reference_flows import (
    ReferenceFlow,
    convolution_tensor,
    diagonal_tensor,
    fully_connected_tensor,
)
from scipy.integrate import solve_ivp

import lintensor_jax as lt
from lintensor_jax.initialization import gaussian
from lintensor_jax.networks import split

D, N = 3, 2
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(N, D)), np.array([1.0, -1.0])
CLASSIFICATION = lt.Classification(X, Y)
STEPS = diffrax.SaveAt(steps=True)

NETWORKS: dict[str, tuple[Any, np.ndarray]] = {
    "diagonal-2": (lt.DiagonalNetwork.zeros(2, D), diagonal_tensor(2, D)),
    "convolution-3": (lt.ConvolutionalNetwork.zeros(D, (D,) * 3), convolution_tensor(D, (D,) * 3)),
    "fully-connected-3": (
        lt.FullyConnectedNetwork.zeros((D, 2, 3)),
        fully_connected_tensor((D, 2, 3)),
    ),
}


def parameters(network):
    return ravel_pytree(split(network)[0])[0]


def flow(network, problem, **options) -> Any:
    """`gradient_flow`, with checks of what all flows keep: invariants, smoothed margin, no NaN."""
    solution = lt.gradient_flow(network, problem, **options)
    assert (solution.invariant_drift <= 100 * solution.rtol).all()
    # Lyu & Li 2020: it never falls. The error of a direction, rtol, changes it by about rtol.
    assert solution.smoothed_margin_drop is not None
    assert (solution.smoothed_margin_drop <= 10 * solution.rtol).all()
    assert jnp.isfinite(solution.direction).all()
    assert jnp.isfinite(solution.log_loss).all()
    return solution


def reference_of(name, loss="exponential"):
    template, tensor = NETWORKS[name]
    return ReferenceFlow(tensor, int(template.depth), X, Y, loss)


def assert_on_trajectory(solution, reference, start):
    """Check every saved state against SciPy's, at the physical time that the solution states."""
    times = np.exp(solution.log_time[1:])
    assert len(times) > 5
    assert (np.diff(times) > 0).all()
    expected = reference(parameters(start), times)
    # rtol is 1e-10 for flow and clock and 1e-11 for SciPy. The required accuracy is 1e-8.
    assert np.abs(solution.observed[1:] - expected).max() < 1e-8
    margins = np.array([Y * (X @ reference.coefficients(theta)) for theta in expected]).min(axis=1)
    seen = np.where(np.isneginf(solution.log_margin[1:]), 0, np.exp(solution.log_margin[1:]))
    assert np.abs(seen - np.maximum(margins, 0)).max() < 1e-7
    norms = np.linalg.norm(expected, axis=1)
    np.testing.assert_allclose(solution.log_norm[1:], np.log(norms), rtol=0, atol=1e-7)
    correct = margins > 0
    normalized = margins[correct] / norms[correct] ** reference.depth
    seen = np.exp(solution.log_normalized_margin[1:][correct])
    np.testing.assert_allclose(seen, normalized, rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n == "diagonal-2" else pytest.mark.slow) for n in NETWORKS],
)
def test_agrees_with_scipy(name):
    start = gaussian(NETWORKS[name][0], jax.random.key(1), 0.8)
    solution = flow(
        start,
        lt.Classification(X, Y),
        rtol=1e-10,
        atol=1e-10,
        saveat=STEPS,
        # Only the first flow reaches implicit steps, which take most of the compile time.
        stop=lt.StopAtTime(20.0 if name == "diagonal-2" else 3.0),
        observe=parameters,
    )
    assert solution.status == lt.FlowStatus.time
    assert (solution.stats["num_implicit_steps"] > 0) == (name == "diagonal-2")
    assert_on_trajectory(solution, reference_of(name), start)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("clock", "loss"),
    [
        (lt.LossTime(), "exponential"),
        (lt.PhysicalTime(), "exponential"),
        pytest.param(lt.LogArcLength(), "logistic", marks=pytest.mark.slow),
    ],
)
def test_the_clocks_trace_one_trajectory(clock, loss):
    start = gaussian(NETWORKS["diagonal-2"][0], jax.random.key(1), 0.8)
    losses = {"exponential": lt.ExponentialLoss(), "logistic": lt.LogisticLoss()}
    solution = flow(
        start,
        lt.Classification(X, Y, loss=losses[loss]),
        clock=clock,
        rtol=1e-10,
        atol=1e-10,
        saveat=STEPS,
        stop=lt.StopAtTime(5.0),
        observe=parameters,
    )
    assert_on_trajectory(solution, reference_of("diagonal-2", loss), start)


@pytest.fixture(scope="module")
def one_sample():
    """Flow of d = 1, L = 2 from balanced weights 0.7: beta' = 2 beta e^-beta, beta(0) = 0.49."""
    start = lt.DiagonalNetwork(jnp.full((2, 1), 0.7))
    return {
        loss: flow(
            start,
            lt.Classification([[1.0]], [1.0], loss=make),
            saveat=STEPS,
            rtol=1e-10,
            atol=1e-10,
            stop=lt.StopAtLoss(log_value=-1000.0),
        )
        for loss, make in (("exponential", None), ("logistic", lt.LogisticLoss()))
    }


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["exponential", "logistic"])
def test_log_time_of_one_sample(one_sample, loss):
    # t = int db / (2 b (-l'(b))): (Ei(b) - Ei(b0))/2, plus log(b/b0)/2 for the logistic loss.
    solution = one_sample[loss]
    beta = solution.coefficients[:, 0]
    # Times below 0.1 of the start's scale have the absolute error of log(1 + t/T).
    late = np.flatnonzero(np.asarray(solution.log_time) > -2)
    assert len(late) > 20
    for i in late:
        b, b0 = mpmath.mpf(float(beta[i])), mpmath.mpf(float(beta[0]))
        time = (mpmath.ei(b) - mpmath.ei(b0)) / 2
        if loss == "logistic":
            time += mpmath.log(b / b0) / 2
        error = abs(float(solution.log_time[i]) - float(mpmath.log(time)))
        inverse_loss = -float(solution.log_loss[i])
        # Times are integrated up to a loss of e^-40. Below it they are asymptotic, with the
        # documented error of 1e-3 (40/log(1/L))^2; the rounding of b is b eps.
        bound = 1e-8 if inverse_loss < 40 else 1e-3 * (40 / inverse_loss) ** 2
        assert error < bound, (float(b), error, bound)


@pytest.mark.slow
def test_log_time_of_deeper_networks():
    # L = 3 from 0.9: beta' = 3 beta^(4/3) e^-beta; the integral by mpmath's quadrature.
    start = lt.DiagonalNetwork(jnp.full((3, 1), 0.9))
    solution = flow(
        start,
        lt.Classification([[1.0]], [1.0]),
        saveat=STEPS,
        rtol=1e-10,
        atol=1e-10,
        stop=lt.StopAtLoss(log_value=-1000.0),
    )
    beta, log_loss = solution.coefficients[:, 0], solution.log_loss
    for inverse_loss in (5, 30, 60, 200, 1000):
        i = int(np.flatnonzero(-np.asarray(log_loss) >= inverse_loss)[0])
        b, b0 = float(beta[i]), float(beta[0])
        # The factor e^b is taken out; more than 60 below its end the integrand is negligible.
        integral = mpmath.quad(
            lambda s, b=b: mpmath.exp(s - b) * s ** (-mpmath.mpf(4) / 3) / 3,
            [max(b0, b - 60), max(b0, b - 10), max(b0, b - 2), b],
        )
        error = abs(float(solution.log_time[i]) - b - float(mpmath.log(integral)))
        assert error < (1e-8 if b < 40 else 1e-3 * (40 / b) ** 2)


@pytest.mark.slow
def test_losses_of_any_size(one_sample):
    solution = one_sample["exponential"]
    # For one sample and the exponential loss log L = -beta; the flow ends at the first step beyond.
    np.testing.assert_allclose(solution.log_loss, -solution.coefficients[:, 0], rtol=1e-13)
    assert solution.log_loss[-1] <= -1000 < solution.log_loss[-2]
    assert "loss             e^-" in str(solution)


SEPARABLE = [np.random.default_rng(k).normal(size=(20, 10)) for k in range(4)]
LABELS = [
    np.sign(x @ np.random.default_rng(100 + k).normal(size=10)) for k, x in enumerate(SEPARABLE)
]


@pytest.mark.parametrize("depth", [3, pytest.param(2, marks=pytest.mark.slow)])
def test_several_support_vectors(depth):
    # The stiff case: the method is implicit, with the requested tolerances.
    template = lt.DiagonalNetwork.zeros(depth, 10)
    steps = []
    for k, (x, y) in enumerate(zip(SEPARABLE, LABELS, strict=True)):
        start = gaussian(template, jax.random.key(k), 0.5)
        solution = flow(start, lt.Classification(x, y))
        assert solution.status == lt.FlowStatus.margin
        assert solution.log_margin[-1] >= np.log(1e8)
        assert solution.stats["num_implicit_steps"] > 0
        assert solution.rtol == 1e-8
        steps.append(int(solution.stats["num_steps"]))
        assert x.shape == (20, 10)
        # A KKT point of the margin: theta is a combination of the support vectors' gradients.
        theta = np.asarray(solution.state.theta).reshape(depth, 10)
        margins = y * (x @ theta.prod(axis=0))
        support = margins < (1 + 1e-5) * margins.min()
        others = np.stack([np.delete(theta, layer, 0).prod(axis=0) for layer in range(depth)])
        gradients = np.stack([(others * z).ravel() for z in (y[:, None] * x)[support]], axis=1)
        multipliers, *_ = np.linalg.lstsq(gradients, theta.ravel())
        # A coordinate with gradient |u| < 1 vanishes like margin^(-(1 - |u|)/2): a few, with |u|
        # above 1/2, are not negligible at margin 1e8.
        assert np.linalg.norm(gradients @ multipliers - theta.ravel()) < 3e-2
        assert (multipliers > 0).all()
    assert max(steps) < 1500


@pytest.mark.slow
def test_wall_of_floating_point():
    start = gaussian(lt.DiagonalNetwork.zeros(2, 10), jax.random.key(0), 0.5)
    solution = flow(start, lt.Classification(SEPARABLE[0], LABELS[0]), stop=lt.StopAtMargin(1e12))
    assert solution.status == lt.FlowStatus.float_wall
    # The flow ends at the first step beyond 2/sqrt(eps) = 1.3e8.
    assert 1.3e8 < np.exp(solution.log_margin[-1]) < 1e9
    assert "rounding of the margins" in str(solution)
    assert solution.succeeded


@pytest.mark.slow
def test_one_support_vector_has_no_wall(one_sample):
    start = one_sample["exponential"].initial.theta.reshape(2, 1)
    solution = flow(
        lt.DiagonalNetwork(start),
        lt.Classification([[1.0]], [1.0]),
        saveat=STEPS,
        stop=lt.StopAtLoss(log_value=-1e12),
    )
    assert solution.status == lt.FlowStatus.loss
    assert solution.log_margin[-1] >= np.log(1e12)
    assert solution.stats["num_steps"] < 300


CLOCKS = [lt.LogArcLength(), lt.LossTime(), lt.PhysicalTime()]


@pytest.mark.slow_beyond(2)
@pytest.mark.parametrize("clock", CLOCKS, ids=lambda clock: type(clock).__name__)
def test_data_that_are_not_separable(clock):
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(20, D)), np.sign(rng.normal(size=20))
    start = gaussian(lt.DiagonalNetwork.zeros(2, D), jax.random.key(0), 0.5)
    stop = lt.StopAtLoss(1e-6)
    solution = flow(start, lt.Classification(x, y), clock=clock, stop=stop)
    assert solution.status == lt.FlowStatus.not_separable
    assert solution.succeeded  # no flow can go further, so this end is not a failure
    assert solution.stats["num_steps"] < 300
    assert solution.log_margin[-1] == -np.inf
    assert "not positive" in str(solution)
    # The minimum, by Newton's method on the convex loss of beta.
    z, beta = y[:, None] * x, np.zeros(D)
    for _ in range(50):
        weights = np.exp(-z @ beta)
        beta = beta + np.linalg.solve(z.T * weights @ z, z.T @ weights)
    # The gradient is 6e-8 of the data's size; its inverse Hessian is of order one.
    assert np.abs(solution.coefficients[-1] - beta).max() < 1e-6


@pytest.mark.slow
def test_coordinates_that_stay_behind_keep_their_relative_accuracy():
    # Two diagonal layers are a function of nu = -int r dt in closed form (Theorem 6): SciPy follows
    # nu in the clock ds = L dt, without an absolute tolerance on the parameters.
    start = gaussian(lt.DiagonalNetwork.zeros(2, D), jax.random.key(0), 1e-8)
    solution = flow(start, CLASSIFICATION, stop=lt.StopAtMargin(100.0))
    first, second = np.asarray(start.weights)
    z = Y[:, None] * X

    def coefficients(nu):
        turn = np.exp(2 * z.T @ nu)
        return ((first + second) ** 2 * turn - (first - second) ** 2 / turn) / 4

    def velocity(s, nu):
        margins = z @ coefficients(nu)
        weights = np.exp(margins.min() - margins)
        return weights / weights.sum()

    def margin_left(s, nu):
        return (z @ coefficients(nu)).min() - np.exp(solution.log_margin[-1])

    margin_left.terminal = True
    nu = solve_ivp(
        velocity, (0, 1e4), np.zeros(N), "Radau", events=margin_left, rtol=1e-10, atol=1e-10
    ).y[:, -1]
    expected = coefficients(nu) / np.linalg.norm(coefficients(nu))
    assert np.abs(expected).min() < 1e-4
    np.testing.assert_allclose(solution.direction[-1], expected, rtol=1e-3, atol=1e-16)
    np.testing.assert_allclose(solution.direction[-1], expected, rtol=0, atol=1e-8)


@pytest.mark.slow
def test_saddles_are_passed():
    # From a tiny start the flow first uses a single coordinate, on which the data are not
    # separable. At the minimum of this coordinate the others grow again from 1e-25.
    x = np.array([[1.0, 0.3, 0.0], [-0.6, 0.3, 0.1]])
    start = lt.DiagonalNetwork(1e-25 * np.array([[1.0, 0.9, 0.5], [0.2, 0.3, 0.1]]))
    solution = flow(start, lt.Classification(x, [1.0, 1.0]))
    assert solution.status == lt.FlowStatus.margin
    assert (x @ solution.direction[-1] > 0).all()


@pytest.mark.slow_beyond(1)
@pytest.mark.parametrize("scale", [1e-6, 1e6])
@pytest.mark.parametrize("alpha", [1e-100, 1e-8, 0.5])
def test_any_scale(alpha, scale):
    start = gaussian(lt.DiagonalNetwork.zeros(2, D), jax.random.key(0), alpha)
    solution = flow(start, lt.Classification(scale * X, Y))
    assert solution.status == lt.FlowStatus.margin
    assert jnp.isfinite(solution.log_time[-1])
    assert (Y * (X @ solution.direction[-1]) > 0).all()

"""Statements about classification that fail as printed, and the corrected ones that hold.

Lemma 7's constant is in theory/certificates/test_induced_regularizer.py, Assumption 3.5 in
test_alignment.py, the limit of Moroshko et al. 2020 in test_finite_loss.py.
"""

import diffrax
import jax.numpy as jnp
import numpy as np
import pytest
from reference_flows import ReferenceFlow, convolution_tensor, diagonal_tensor

import lintensor_jax as lt
from lintensor_jax.initialization import matching

X = np.array([[1.0, 2.0, 0.5], [0.5, 1.0, -1.0], [-1.0, 0.3, -1.0]])
Y = np.array([1.0, 1.0, -1.0])


def ahead(like, problem, loss):
    """A start with a loss below `loss` whose first layers are much larger than the last."""
    level = np.log(len(problem.y) / loss)
    return matching(
        like, level * lt.max_margin(problem, lt.L2Norm()).coefficients, gap=jnp.asarray(100.0)
    )


# Theorem 2 for two depths, and Theorem 3 (one sample, a filter that is no orthogonal network).
RATES = {
    "Theorem 2, L = 2": (lt.DiagonalNetwork.zeros(2, 3), diagonal_tensor(2, 3), 3),
    "Theorem 2, L = 3": (lt.DiagonalNetwork.zeros(3, 3), diagonal_tensor(3, 3), 3),
    "Theorem 3": (lt.ConvolutionalNetwork.zeros(3, (2, 3)), convolution_tensor(3, (2, 3)), 1),
}


@pytest.mark.slow_beyond(1)
@pytest.mark.parametrize("theorem", RATES)
@pytest.mark.parametrize("initial_loss", [0.1, 1e-3])
def test_rate_of_the_loss(theorem, initial_loss):
    """Printed: L(0) / (1 + c t). Right: L(0) / (1 + c L(0) t), a tenfold difference and more."""
    like, tensor, n = RATES[theorem]
    problem = lt.Classification(X[:n], Y[:n])
    network = ahead(like, problem, initial_loss)
    prediction = lt.predict(network, problem)
    assert prediction.theorem is not None
    assert prediction.theorem.startswith(theorem[:9])
    assert prediction.rate is not None
    times = np.geomspace(1e-2, 1e2, 9) / initial_loss / prediction.rate.value
    reference = ReferenceFlow(tensor, like.depth, X[:n], Y[:n], "exponential")
    start = np.concatenate([np.asarray(v) for v in network.factors])
    states = reference(start, [0.0, *times], rtol=1e-9, atol=1e-11)
    betas = [reference.coefficients(theta) for theta in states]
    losses = np.array([np.exp(-Y[:n] * (X[:n] @ beta)).sum() for beta in betas])
    assert losses[0] <= initial_loss * (1 + 1e-9)
    corrected = np.asarray(prediction.rate(times))
    printed = losses[0] / (1 + prediction.rate.value * times)
    # SciPy's tolerances, relative to the loss.
    assert np.all(losses[1:] <= corrected * (1 + 1e-6))
    assert np.all(losses[4:] > 2 * printed[3:])
    assert losses[-1] > 0.3 / initial_loss * printed[-1]


def aligned_flow(samples, loss):
    """One coordinate, balanced: |Theta|^2 = 2 beta all along; from beta = 0.1 to 10."""
    samples = np.asarray(samples)[:, None]
    problem = lt.Classification(samples, np.ones(len(samples)), loss)
    flow = lt.gradient_flow(
        lt.DiagonalNetwork(jnp.full((2, 1), 0.1**0.5)),
        problem,
        solver=diffrax.Tsit5(),
        stop=lt.StopAtMargin(10.0),
        saveat=diffrax.SaveAt(steps=True),
    )
    square = np.exp(2 * np.asarray(flow.log_norm))
    np.testing.assert_allclose(square, 2 * np.abs(flow.coefficients[:, 0]), rtol=1e-6)
    return flow, square


def smoothed_margins(flow):
    """The package's smoothed margins, at the times at which they are positive."""
    values = np.exp(np.asarray(flow.log_smoothed_margin))
    return values[values > 0]


@pytest.mark.slow
def test_smoothed_margin_of_the_mean_loss():
    """log(1/L) / |Theta|^L never decreases for the *sum* of exponentials, not for their mean."""
    flow, square = aligned_flow([1.0, 3.0], lt.ExponentialLoss())
    log_mean = np.asarray(flow.log_loss) - np.log(2)
    assert log_mean[0] < 0  # the mean is below 1 from the start on
    assert np.all(np.diff(-log_mean / square) < 0)
    assert np.all(np.diff(smoothed_margins(flow)) > 0)
    assert flow.smoothed_margin_drop == 0


@pytest.mark.slow
def test_smoothed_margin_of_the_logistic_loss():
    """log(1/L) / |Theta|^L falls with one sample, where -log(e^L - 1) is the margin itself."""
    flow, square = aligned_flow([1.0], lt.LogisticLoss())
    log_loss = np.asarray(flow.log_loss)
    assert log_loss[0] < np.log(np.log(2))
    falls = np.diff(-log_loss / square)
    assert np.all(falls < 0)
    assert (-log_loss / square)[0] > 2 * (-log_loss / square)[-1]
    # The normalised margin is constant, 1/2, up to the flow's tolerance.
    np.testing.assert_allclose(smoothed_margins(flow), 0.5, rtol=1e-6)
    assert flow.smoothed_margin_drop is not None
    assert float(flow.smoothed_margin_drop) < 1e-6

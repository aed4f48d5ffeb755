"""Two-layer starts by their imbalance: each has the property that it is named for."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lintensor_jax as lt
from lintensor_jax import initialization as init
from lintensor_jax import theory

RNG = np.random.default_rng(11)
PROBLEM = {
    None: (RNG.standard_normal((3, 6)), RNG.standard_normal(3)),
    2: (RNG.standard_normal((4, 6)), RNG.standard_normal((4, 2))),
}
KEY = jax.random.key(3)


def setup(outputs, width=9):
    return lt.FullyConnectedNetwork.zeros((6, width), outputs), lt.Regression(*PROBLEM[outputs])


def gram_difference(network):
    """V^T V - U^T U."""
    u, v = (np.asarray(w).reshape(w.shape[0], -1) for w in network.weights)
    return v @ v.T - u.T @ u


@pytest.mark.parametrize("outputs", [None, pytest.param(2, marks=pytest.mark.slow)])
def test_imbalanced_keeps_the_product_and_moves_the_imbalance(outputs):
    like, problem = setup(outputs)
    scales = [(0.1, 0.1), (0.5, 0.02)]
    networks = [init.imbalanced(like, KEY, first_scale=a, last_scale=b) for a, b in scales]
    betas = [network.linear_coefficients() for network in networks]
    np.testing.assert_allclose(*betas, rtol=1e-12)
    levels = [float(lt.imbalance(network, problem).eigenvalues[0]) for network in networks]
    assert levels[1] > 10 * levels[0] > 0
    assert [w.shape for w in networks[0].weights] == [w.shape for w in like.weights]


def test_width_scaled_has_that_variance():
    like = lt.FullyConnectedNetwork.zeros((40, 2500), 3)
    for exponent in (0.5, 0.3):
        network = init.width_scaled(like, KEY, exponent)
        for w in network.weights:
            # 7,500 entries at least: standard deviations within a few percent.
            np.testing.assert_allclose(np.std(w), 2500**-exponent, rtol=0.04)
            assert abs(float(jnp.mean(w))) < 0.05 * 2500**-exponent
    traced = jax.jit(lambda key: init.width_scaled(like, key).weights[1])(KEY)
    np.testing.assert_allclose(traced, init.width_scaled(like, KEY).weights[1], rtol=1e-14)


@pytest.mark.parametrize("outputs", [pytest.param(None, marks=pytest.mark.slow), 2])
def test_balanced_on_data(outputs):
    like, problem = setup(outputs)
    beta = init.gaussian(like, KEY).linear_coefficients()
    network = init.balanced_on_data(like, beta, problem)
    np.testing.assert_allclose(network.linear_coefficients(), beta, rtol=0, atol=1e-13)
    np.testing.assert_allclose(lt.imbalance(network, problem).matrix, 0, rtol=0, atol=1e-13)
    # `balanced` is different: here part of beta is outside the range of X^T.
    assert np.max(np.abs(gram_difference(network))) > 0.1
    other = init.balanced(like, beta)
    np.testing.assert_allclose(gram_difference(other), 0, rtol=0, atol=1e-13)
    assert np.max(np.abs(lt.imbalance(other, problem).matrix)) > 0.1


def test_spectral_modes_stay_apart():
    """With X X^T = I mode i is the scalar flow with target s_i."""
    X = np.linalg.qr(RNG.standard_normal((6, 4)))[0].T
    problem = lt.Regression(X, PROBLEM[2][1])
    like = lt.FullyConnectedNetwork.zeros((6, 5), 2)
    first, last = np.array([0.9, 0.1]), np.array([0.2, 0.5])
    network = init.spectral(like, problem, first, last)
    left, _, right = np.linalg.svd(np.asarray(X.T @ problem.y), full_matrices=False)
    modes = left.T @ np.asarray(network.linear_coefficients()) @ right.T
    np.testing.assert_allclose(modes, np.diag(first * last), rtol=0, atol=1e-14)
    values = np.asarray(lt.imbalance(network, problem).eigenvalues)
    expected = np.sort(np.pad(first**2 - last**2, (0, 3)))[::-1]
    np.testing.assert_allclose(values, expected, rtol=0, atol=1e-14)
    # The gradient has no entry between two modes.
    slope = np.asarray(problem.X.T @ problem.residual(network.linear_coefficients()))
    mixed = left.T @ slope @ right.T
    np.testing.assert_allclose(mixed - np.diag(np.diag(mixed)), 0, rtol=0, atol=1e-14)
    assert theory.distance_from_invariant_set(network, problem) < 1e-14
    one = init.spectral(like, problem, 0.3, 0.3)
    np.testing.assert_allclose(lt.imbalance(one, problem).eigenvalues, 0, rtol=0, atol=1e-15)


@pytest.mark.parametrize(("width", "outputs"), [(3, None), (9, 2)])
def test_invariant(outputs, width):
    like, problem = setup(outputs, width)
    network = init.invariant(like, problem, KEY, 0.7)
    assert theory.distance_from_invariant_set(network, problem) < 1e-14
    resting = float(jnp.linalg.norm(theory.resting_part(network, problem)))
    if width == 9:  # r + m is at most 6
        assert resting > 0.5
    else:
        assert resting < 1e-14


@pytest.mark.parametrize(
    ("width", "outputs", "gap"),
    [
        (2, 3, 0.7),
        (4, 2, -0.7),
        (8, 2, 0.0),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in ((2, 2, 0.7), (6, 2, -0.7), (1, None, 2.0))
        ),
    ],
)
def test_lambda_balanced(width, outputs, gap):
    like = lt.FullyConnectedNetwork.zeros((6, width), outputs)
    beta = RNG.standard_normal((6, 2)) @ RNG.standard_normal((2, outputs or 1))
    beta = beta[:, 0] if outputs is None else beta
    network = init.lambda_balanced(like, beta, gap)
    np.testing.assert_allclose(network.linear_coefficients(), beta, rtol=0, atol=1e-13)
    np.testing.assert_allclose(gram_difference(network), gap * np.eye(width), rtol=0, atol=1e-13)


def test_lambda_balanced_keeps_small_layers_digits():
    """The smaller layer is computed as s / b: the root of a difference would round to zero."""
    like = lt.FullyConnectedNetwork.zeros((1, 1))
    network = init.lambda_balanced(like, jnp.array([1e-12]), 1.0)
    np.testing.assert_allclose(network.weights[0], 1e-12, rtol=1e-14)


ANY: Any = init  # of type Any, as its functions are called with wrong arguments on purpose


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (
            lambda like, p: init.imbalanced(like, KEY, first_scale=0.0, last_scale=1.0),
            "imbalanced: first_scale must be positive and finite, got 0.0",
        ),
        (lambda like, p: init.width_scaled(like, KEY, -1.0), "exponent must be positive"),
        (lambda like, p: init.invariant(like, p, KEY, np.inf), "scale must be positive"),
        (
            lambda like, p: ANY.invariant(lt.DiagonalNetwork.zeros(2, 6), p, KEY),
            "two layers, got DiagonalNetwork",
        ),
        (
            lambda like, p: init.width_scaled(lt.FullyConnectedNetwork.zeros((3, 3, 3)), KEY),
            "two layers, got 3 layers",
        ),
        (
            lambda like, p: ANY.invariant(like, lt.Classification(p.X, np.ones(4)), KEY),
            "problem must be a Regression, got Classification",
        ),
        (
            lambda like, p: init.invariant(like, lt.Regression(p.X[:, :5], p.y), KEY),
            "size of the network's inputs, got 5 and 6",
        ),
        (
            lambda like, p: init.spectral(like, lt.Regression(p.X, p.y[:, 0]), 1.0, 1.0),
            r"targets must have the shape of the network's outputs, got \(\) and \(2,\)",
        ),
        (lambda like, p: init.spectral(like, p, np.ones(3), 1.0), "each of the 2 modes"),
        (
            lambda like, p: init.spectral(lt.FullyConnectedNetwork.zeros((6, 1), 2), p, 1.0, 1.0),
            "a unit for each of the 2 modes of X\\^T Y, got width 1",
        ),
        (
            lambda like, p: init.balanced_on_data(like, np.zeros((6, 2)), p),
            "rank m = 2 on the range of X\\^T, got smallest singular value 0",
        ),
        (
            lambda like, p: init.balanced_on_data(
                lt.FullyConnectedNetwork.zeros((6, 1), 2), np.ones((6, 2)), p
            ),
            "got h = 1 and m = 2",
        ),
        (
            lambda like, p: init.balanced_on_data(like, np.ones((5, 2)), p),
            r"coefficients must have shape \(6, 2\)",
        ),
        (
            lambda like, p: init.lambda_balanced(like, np.full((6, 2), np.nan), 1.0),
            "must be finite",
        ),
        (
            lambda like, p: init.lambda_balanced(like, np.ones((6, 2)), 0.5),
            "hidden layer of width 9 > m = 2, got 0.5",
        ),
        (
            lambda like, p: init.lambda_balanced(like, np.ones((6, 2)), -0.5),
            "hidden layer of width 9 > d = 6, got -0.5",
        ),
        (lambda like, p: init.lambda_balanced(like, np.ones((6, 2)), np.inf), "gap must be finite"),
        (
            lambda like, p: init.lambda_balanced(
                lt.FullyConnectedNetwork.zeros((6, 1), 2), np.eye(6)[:, :2], 0.0
            ),
            "coefficients must have rank at most h = 1",
        ),
    ],
)
def test_bad_input_is_named(build, words):
    like, problem = setup(2)
    with pytest.raises(ValueError, match=words):
        build(like, problem)

"""Predictions of flows with weight decay, against independent solvers and optimality conditions.

Ridge against its closed form and SciPy, the lasso against coordinate descent, the other penalties
against their optimality conditions, and all of them against flows: here and, for the slower
ones, in `dynamics/test_weight_decay.py`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import lintensor_jax as lt
from lintensor_jax.initialization import balanced, gaussian

D, N = 6, 4
RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((N, D)), RNG.standard_normal(N)
LABELS = np.sign(Y)
PENALTY = 0.2 * float(np.abs(X.T @ Y).max())


def lasso(X, y, penalty, lower: Any = -np.inf, upper: Any = np.inf):
    """argmin 1/2 |X b - y|^2 + penalty |b|_1 in a box, by coordinate descent to rounding."""
    b, squares = np.zeros(X.shape[1]), np.sum(X**2, axis=0)
    lower, upper = np.broadcast_to(lower, b.shape), np.broadcast_to(upper, b.shape)
    residual = y.copy()
    for _ in range(100_000):
        largest = 0.0
        for j in range(len(b)):
            z = X[:, j] @ residual + squares[j] * b[j]
            new = np.sign(z) * max(abs(z) - penalty, 0.0) / squares[j]
            new = min(max(new, lower[j]), upper[j])
            residual -= X[:, j] * (new - b[j])
            largest, b[j] = max(largest, abs(new - b[j])), new
        if largest < 1e-15:
            return b
    raise AssertionError("coordinate descent did not converge")


@pytest.mark.parametrize("bias", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_one_layer_is_ridge(bias):
    penalised = np.diag(np.append(np.ones(D), 0.0) if bias else np.ones(D)) * PENALTY
    rows = np.column_stack([X, np.ones(N)]) if bias else X
    expected = np.linalg.solve(rows.T @ rows + penalised, rows.T @ Y)
    network = lt.LinearNetwork.zeros(D, bias=bias)
    found: Any = lt.predict(network, lt.Regression(X, Y), weight_decay=PENALTY)
    assert found.kind == "exact"
    assert found.is_proved
    np.testing.assert_allclose(found.limit, expected, atol=1e-12)
    flow = lt.gradient_flow(network, lt.Regression(X, Y), weight_decay=PENALTY)
    np.testing.assert_allclose(flow.coefficients[-1], expected, atol=1e-8)


@pytest.mark.parametrize(
    "loss", [lt.ExponentialLoss(), pytest.param(lt.LogisticLoss(), marks=pytest.mark.slow)]
)
def test_one_layer_in_classification_is_ridge(loss):
    problem = lt.Classification(X, LABELS, loss)
    network = lt.LinearNetwork.zeros(D)
    found: Any = lt.predict(network, problem, weight_decay=0.3)
    assert found.kind == "exact"
    value = np.exp if isinstance(loss, lt.ExponentialLoss) else lambda m: np.logaddexp(0, m)

    def objective(b):
        return np.sum(value(-LABELS * (X @ b))) + 0.15 * b @ b

    by_scipy = scipy.optimize.minimize(objective, np.zeros(D), method="BFGS", tol=1e-9).x
    np.testing.assert_allclose(found.limit, by_scipy, atol=1e-5)
    flow = lt.gradient_flow(network, problem, weight_decay=0.3)
    np.testing.assert_allclose(flow.coefficients[-1], found.limit, atol=1e-7)


def test_one_layer_of_several_classes_is_ridge():
    problem = lt.MulticlassClassification(X, [0, 1, 2, 1])
    found: Any = lt.predict(lt.LinearNetwork.zeros(D, 3), problem, weight_decay=0.3)
    assert found.limit is not None
    assert found.limit.shape == (D, 3)
    scores = X @ np.asarray(found.limit)
    softmax = np.exp(scores - np.logaddexp.reduce(scores, axis=1, keepdims=True))
    slope = X.T @ (softmax - np.eye(3)[[0, 1, 2, 1]]) + 0.3 * np.asarray(found.limit)
    assert np.abs(slope).max() < 1e-12


def test_two_diagonal_layers_are_the_lasso():
    network = lt.DiagonalNetwork(RNG.standard_normal((2, D)))
    for share in (0.02, 0.2, 0.7, 1.1):  # for the last one the lasso is zero
        penalty = share * float(np.abs(X.T @ Y).max())
        found: Any = lt.predict(network, lt.Regression(X, Y), weight_decay=penalty)
        assert found.kind == "exact"
        assert found.theorem == "lasso (two layers with weight decay)"
        np.testing.assert_allclose(found.limit, lasso(X, Y, penalty), atol=1e-9)


def test_balanced_coordinates_keep_their_signs():
    """From u = v > 0 beta stays >= 0, and from u = -v it stays <= 0."""
    signs = np.array([1.0, -1, -1, 1, 1, -1])  # two of them differ from the lasso's
    start = balanced(lt.DiagonalNetwork.zeros(2, D), jnp.asarray(signs))
    problem = lt.Regression(X, Y)
    found: Any = lt.predict(start, problem, weight_decay=PENALTY)
    lower, upper = np.where(signs < 0, -np.inf, 0), np.where(signs < 0, 0, np.inf)
    expected = lasso(X, Y, PENALTY, lower, upper)
    assert np.abs(expected - lasso(X, Y, PENALTY)).max() > 0.1
    np.testing.assert_allclose(found.limit, expected, atol=1e-9)
    flow = lt.gradient_flow(start, problem, weight_decay=PENALTY)
    np.testing.assert_allclose(flow.coefficients[-1], expected, atol=1e-7)


def test_orthogonal_layers_are_the_lasso_of_their_components():
    S = RNG.standard_normal((D + 1, D)) / np.sqrt(D)
    bases = [np.linalg.qr(RNG.standard_normal((D + 2, D + 1)))[0] for _ in range(2)]
    network = lt.OrthogonalNetwork(S, bases, [RNG.standard_normal(D + 2) for _ in range(2)])
    found: Any = lt.predict(network, lt.Regression(X, Y), weight_decay=PENALTY)
    expected = S.T @ lasso(X @ S.T, Y, PENALTY)
    np.testing.assert_allclose(found.limit, expected, atol=1e-9)
    differential = lt.DifferentialDiagonalNetwork(0.5 * np.ones(D), 0.4 * np.ones(D), 2)
    found = lt.predict(differential, lt.Regression(X, Y), weight_decay=PENALTY)
    np.testing.assert_allclose(found.limit, lasso(X, Y, PENALTY / 2), atol=1e-9)


ROWS, COLUMNS, VALUES = [0, 0, 1, 2, 2], [0, 1, 1, 0, 2], np.array([1.0, -0.5, 2.0, 0.3, 1.0])
OTHERS = {
    "l2": (lt.FullyConnectedNetwork.zeros((D, D)), lt.Regression(X, Y)),
    "fourier": (lt.ConvolutionalNetwork.zeros(D, (D, D)), lt.Classification(X, LABELS)),
    "nuclear": (
        lt.FullyConnectedNetwork.zeros((D, 3), 2),
        lt.Regression(X, np.column_stack([Y, Y[::-1]]), lt.LogCoshLoss()),
    ),
    "classes": (
        lt.FullyConnectedNetwork.zeros((D, 3), 3),
        lt.MulticlassClassification(X, [0, 1, 2, 1]),
    ),
    "l1 of classes": (
        lt.DiagonalNetwork.zeros(2, D, 3),
        lt.MulticlassClassification(X, [0, 1, 2, 1]),
    ),
    "completion": (
        lt.MatrixFactorizationNetwork.zeros(2, (3, 4), 3),
        lt.MatrixCompletion(ROWS, COLUMNS, VALUES, (3, 4)),
    ),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in ("l2", "fourier") else pytest.mark.slow) for n in OTHERS],
)
def test_other_penalties_meet_their_conditions(name):
    """-grad is a subgradient: its dual norm is the weight, and its product with beta the norm."""
    like, problem = OTHERS[name]
    decay = 0.2
    network = gaussian(like, jax.random.key(0), 0.5)
    found: Any = lt.predict(network, problem, weight_decay=decay)
    assert found.kind == "open"
    assert found.limit is not None
    beta = np.asarray(found.limit)
    slope = np.asarray(problem.adjoint(problem.residual(found.limit)))
    if name == "fourier":  # lambda/2 R = lambda/sqrt(d) sum |F beta|, F unitary
        pulls, sizes = np.fft.fft(slope, norm="ortho"), np.fft.fft(beta, norm="ortho")
        weight, dual, norm = decay / np.sqrt(D), np.abs(pulls).max(), np.abs(sizes).sum()
    elif name == "l1 of classes":
        weight, dual, norm = decay, np.abs(slope).max(), np.abs(beta).sum()
    else:
        matrix, pull = beta.reshape(len(beta), -1), slope.reshape(len(beta), -1)
        weight, dual = decay, np.linalg.norm(pull, 2)
        norm = np.linalg.svd(matrix, compute_uv=False).sum()
    assert norm > 0.1
    assert dual <= weight * (1 + 1e-10)
    assert abs(np.sum(slope * beta) + weight * norm) <= 1e-10 * weight * norm


def test_what_is_not_known_is_not_predicted():
    problem = lt.Regression(X, Y)
    deep = lt.predict(lt.DiagonalNetwork(np.ones((3, D))), problem, weight_decay=0.1)
    assert deep.kind == "stationary"
    assert deep.limit is None
    assert "Zero is one" in str(deep)
    polynomial = lt.Classification(X, LABELS, lt.PolynomialLoss(2.0))
    bent = lt.predict(lt.DiagonalNetwork(np.ones((2, D))), polynomial, weight_decay=0.1)
    assert bent.kind == "stationary"
    assert "is convex" in str(bent)
    narrow = gaussian(lt.FullyConnectedNetwork.zeros((D, 1), 2), jax.random.key(0), 1.0)
    several = lt.Regression(X, np.column_stack([Y, Y]))
    assert lt.predict(narrow, several, weight_decay=0.1).kind == "stationary"
    two = lt.with_bias(lt.DiagonalNetwork(np.ones((2, D))))
    assert lt.predict(two, problem, weight_decay=0.1).theorem is None
    # The columns occur twice, so the lasso has several minima.
    twins = lt.Regression(np.column_stack([X, X]), Y)
    network = lt.DiagonalNetwork(RNG.standard_normal((2, 2 * D)))
    assert lt.predict(network, twins, weight_decay=1e-3).kind == "open"


def test_no_decay_is_the_flow_without():
    network, problem = lt.DiagonalNetwork(np.ones((2, D))), lt.Regression(X, Y)
    plain = lt.predict(network, problem)
    for zero in (
        lt.predict(network, problem, weight_decay=0.0),
        lt.predict(network, lt.Penalized(problem, 0.0)),
    ):
        assert zero.theorem == plain.theorem
    with pytest.raises(ValueError, match="weight_decay: must be finite and not negative"):
        lt.predict(network, problem, weight_decay=-1.0)
    run = lt.gradient_descent(network, problem, num_steps=1)
    with pytest.raises(ValueError, match="weight_decay is for the flow of a network"):
        lt.predict(run, problem, weight_decay=0.1)  # pyright: ignore[reportArgumentType]

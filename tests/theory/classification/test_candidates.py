"""`predict` on classification: limit directions against SciPy's flows, bounds, refusals."""

import jax.numpy as jnp
import numpy as np
import pytest
from prediction_cases import (
    COVERED,
    ETA,
    EYE,
    ZERO,
    X,
    diagonal,
    limit_of,
    matching,
    nonorthogonal,
    orthogonal,
)
from scipy.integrate import solve_ivp

import lintensor_jax as lt
from lintensor_jax.initialization import identity

# All flows have L = 2: then one NumPy flow of (v_1, v_2) works for every architecture.

LABELS = np.array([1.0, -1.0])
BINARY = lt.Classification(X, LABELS)
# The top singular values of M(x) are well separated, so directions converge fast.
ONE = lt.Classification(np.array([[1.0, 2.0, 1.5, 0.5]]), LABELS[1:])


def direction_of_flow(network, problem, margin):
    """beta/|beta| once the smallest margin is `margin`: d v / d tau = -grad L / L, by SciPy."""
    M = np.stack([network.data_tensor(e) for e in np.eye(problem.X.shape[1])], axis=-1)
    signed = np.asarray(problem.signed_data)
    split = M.shape[0]

    def margins(v):
        return signed @ np.einsum("abd,a,b->d", M, v[:split], v[split:])

    def speed(_, v):
        m = margins(v)
        p = np.exp(m.min() - m)
        direction = M @ (signed.T @ (p / p.sum()))
        return np.concatenate([direction @ v[split:], direction.T @ v[:split]])

    def reached(_, v):
        return margins(v).min() - margin

    reached.terminal = True
    start = np.concatenate([np.asarray(v) for v in network.factors])
    flow = solve_ivp(speed, (0, 1e3), start, "LSODA", events=reached, rtol=1e-9, atol=1e-12)
    assert flow.status == 1
    v = flow.y[:, -1]
    beta = np.einsum("abd,a,b->d", M, v[:split], v[split:])
    return beta / np.linalg.norm(beta)


FULL = lt.ConvolutionalNetwork((ETA, ZERO))
DIRECTIONS = {
    "Theorem 2 (Corollary 2)": (diagonal(ETA, ZERO), BINARY),
    "Theorem 2 (Corollary 3)": (FULL, BINARY),
    "Theorem 2": (orthogonal(2), BINARY),
    "Theorem 3 (Corollary 4)": (matching(lt.ConvolutionalNetwork.zeros(4, (2, 4)), ZERO), ONE),
    "Theorem 3": (matching(lt.ConvolutionalNetwork.zeros(4, (3, 4)), ZERO), ONE),
    "Corollary 1": (identity(lt.FullyConnectedNetwork.zeros((4, 4))), BINARY),
}


@pytest.mark.slow_beyond(3)
@pytest.mark.parametrize("theorem", DIRECTIONS)
def test_limit_directions_agree_with_the_flow(theorem):
    network, problem = DIRECTIONS[theorem]
    prediction = lt.predict(network, problem)
    # Complex coordinates have no mirror flow, so it is open whether X^T r converges in direction.
    kind = "open" if theorem == "Theorem 2 (Corollary 3)" else "exact"
    assert (prediction.theorem, prediction.kind) == (theorem, kind)
    assert prediction.is_proved == (kind == "exact")
    assert not any(a.holds is False for a in prediction.assumptions)
    assert prediction.limit is not None
    # Directions converge as 1 / margin at best, or as a power of it near the border of a support.
    direction = direction_of_flow(network, problem, 1e6)
    np.testing.assert_allclose(direction, prediction.limit, rtol=0, atol=1e-2)


def test_corrected_rates():
    network = diagonal(ETA, 0.5 * ETA)
    for problem in (BINARY, lt.Classification(X, LABELS, lt.LogisticLoss())):
        bound = lt.predict(network, problem).rate
        assert bound is not None
        times = np.array([0.0, 0.01, 0.1, 1.0, 10.0])

        def speed(_, v, problem: lt.Classification = problem):
            w = v.reshape(2, 4)
            r = np.asarray(problem.residual(jnp.asarray(w.prod(0))))
            return -(np.asarray(problem.X).T @ r * w[::-1]).ravel()

        start = np.asarray(network.weights).ravel()
        flow = solve_ivp(speed, (0, 10), start, t_eval=times, rtol=1e-8, atol=1e-10)
        losses = [float(problem.loss(jnp.asarray(v.reshape(2, 4).prod(0)))) for v in flow.y.T]
        assert np.all(losses <= np.asarray(bound(times)) * (1 + 1e-6))
    gaps = 0.75 * ETA.min() ** 2
    margin = float(lt.is_separable(BINARY).margin)
    exponential = lt.predict(network, BINARY).rate
    assert exponential is not None
    assert exponential.value == pytest.approx(gaps * margin**2)
    assert "L(0) / (1 + c L(0) t)" in str(exponential)


def test_the_smallest_layer_need_not_be_the_last():
    swapped = lt.predict(diagonal(ZERO, ETA), BINARY)
    assert swapped.theorem == "Theorem 2 (Corollary 2)"
    assert "smallest layer k = 1 of 2 (Remark 2" in str(swapped)
    limit = limit_of(diagonal(ETA, ZERO), BINARY)
    np.testing.assert_allclose(limit_of(diagonal(ZERO, ETA), BINARY), limit, rtol=1e-12)


def test_logistic_loss_and_open_assumptions():
    network = FULL
    problem = lt.Classification(X, LABELS, lt.LogisticLoss())
    prediction = lt.predict(network, problem)
    limit = limit_of(network, BINARY)
    np.testing.assert_allclose(limit_of(network, problem), limit, rtol=1e-12)
    assert [a.statement for a in prediction.open] == ["X^T r converges in direction"]
    text = str(prediction)
    assert (
        "Theorem 2 (Corollary 3) may apply: the limit below is exact, if this holds, which is "
        "open: X^T r converges in direction.\nLimit, if so: " in text
    )
    assert "[open ] X^T r converges in direction: not measurable before the flow" in text
    assert "logistic" in text


def test_two_real_layers_are_a_mirror_flow_and_nothing_stays_open():
    """So is it with the logistic loss, but not if the optimum is not known to be unique."""
    for loss in (lt.ExponentialLoss(), lt.LogisticLoss()):
        proved = lt.predict(diagonal(ETA, ZERO), lt.Classification(X, LABELS, loss))
        assert (proved.kind, proved.open) == ("exact", ())
        assert any("proof P1" in a.source for a in proved.assumptions)
    # The columns are equal: every split of a coefficient between them is an optimum.
    twins = lt.Classification([[2.0, 2.0, 0.1, 0.0], [2.0, 2.0, 0.0, 0.1]], [1.0, 1.0])
    several = lt.predict(diagonal(ETA, ZERO), twins)
    assert (several.kind, several.limit) == ("stationary", None)


def test_deep_networks_have_stationary_directions():
    prediction = lt.predict(diagonal(ETA, ETA[::-1], 0.1 * ETA), BINARY)
    assert prediction.theorem == "Theorem 2 (Corollary 2)"
    assert prediction.kind == "stationary"
    assert prediction.limit is None
    assert "|z|_{2/3}" in str(prediction)
    assert "may apply: the limit meets the condition in the notes, if this" in str(prediction)
    assert "which one is not predicted" in str(prediction)
    condition = next(a for a in prediction.assumptions if "lambda" in a.statement)
    gap = np.minimum(ETA, ETA[::-1]) ** 2 - (0.1 * ETA) ** 2
    assert condition.value == pytest.approx(gap.min())


def test_corollary_4_in_closed_form():
    x, y = X[0], LABELS[1]
    problem = lt.Classification(X[:1], LABELS[1:])
    shifted = np.roll(x, 1) + np.roll(x, -1)
    sign = np.sign(x @ np.roll(x, 1))
    for length, beta in ((1, y * x), (2, y * (2 * x + sign * shifted))):
        network = matching(lt.ConvolutionalNetwork.zeros(4, (length, 4)), ZERO)
        assert lt.predict(network, problem).theorem == "Theorem 3 (Corollary 4)"
        np.testing.assert_allclose(
            limit_of(network, problem), beta / np.linalg.norm(beta), rtol=0, atol=1e-12
        )


def test_equal_top_singular_values_follow_the_start():
    # M(x) of a diagonal network with |x_1| = |x_2|: both coordinates grow alike.
    problem = lt.Classification(np.array([[1.0, -1.0, 0.5, 0.2]]), LABELS[:1])
    prediction = lt.predict(diagonal(ETA, ZERO), problem)
    assert prediction.theorem == "Theorem 3"
    assert "multiplicity 2" in str(prediction)
    expected = np.array([ETA[0] ** 2, -(ETA[1] ** 2), 0, 0])
    limit = limit_of(diagonal(ETA, ZERO), problem)
    np.testing.assert_allclose(limit, expected / np.linalg.norm(expected), rtol=0, atol=1e-12)


def test_a_complex_decomposition_predicts_as_the_convolution_it_is():
    fourier = np.fft.fft(EYE, norm="ortho")
    network = lt.OrthogonalNetwork(2 * fourier, (fourier.conj(),) * 2, FULL.factors)
    assert lt.predict(network, BINARY).kind == "open"
    # Two conic programs are compared, each with its tolerance.
    np.testing.assert_allclose(limit_of(network, BINARY), limit_of(FULL, BINARY), rtol=0, atol=1e-8)


def test_directions_do_not_depend_on_the_scale_even_if_its_squares_underflow():
    network, problem = DIRECTIONS["Theorem 3"]
    small = network.scaled(1e-140)
    np.testing.assert_allclose(limit_of(small, problem), limit_of(network, problem), rtol=1e-12)


def test_violations_in_classification():
    mixed = lt.predict(diagonal(ETA, ETA, 1.5 * ETA), BINARY)
    # The two smallest layers are equal: the signs stay, and coefficients with them do not separate.
    assert mixed.theorem is None
    broken, signs = mixed.violated
    assert broken.value == pytest.approx(0)
    assert f"for the last layer {-1.25 * ETA.max() ** 2:.6g}" in str(mixed)
    assert "keep their signs" in signs.statement
    assert "Theorem 1" in mixed.notes[0]

    contradiction = lt.Classification(np.concatenate([X, X]), np.concatenate([LABELS, -LABELS]))
    for network in (diagonal(ETA, ZERO), COVERED["Theorem 6"][0], DIRECTIONS["Corollary 1"][0]):
        refused = lt.predict(network, contradiction)
        assert refused.theorem is None
        assert refused.violated[0].value == 0
        assert "linearly separable" in refused.violated[0].statement

    general = lt.predict(nonorthogonal(), BINARY)
    assert "singular vectors" in general.violated[0].statement


def test_theorem_1_once_the_loss_is_below_1():
    network, rng = nonorthogonal(), np.random.default_rng(0)
    draws = (network.with_factors(tuple(2 * rng.standard_normal((2, 4)))) for _ in range(100))
    start = next(n for n in draws if BINARY.loss(n.linear_coefficients()) < 1)
    prediction = lt.predict(start, BINARY)
    assert (prediction.theorem, prediction.kind) == ("Theorem 1", "stationary")
    assert prediction.limit is None
    assert "singular vectors of M(-u)" in str(prediction)

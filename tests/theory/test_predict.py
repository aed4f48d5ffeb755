"""`predict`: the theorem that it names, its measured values, and its limits against flows."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from prediction_cases import (
    COVERED,
    ETA,
    EVEN,
    EYE,
    REGRESSION,
    RNG,
    SENSORS,
    ZERO,
    S,
    X,
    Y,
    diagonal,
    layers,
    limit_of,
    matching,
    nonorthogonal,
    orthogonal,
    sensing,
)

import lintensor_jax as lt
from lintensor_jax.initialization import gaussian

SOLVER = diffrax.Tsit5()  # it compiles fastest, and these flows are not stiff


def coefficients(network):
    return network.linear_coefficients()


def tensor():
    bases, factors = layers(3)
    return lt.TensorNetwork(np.einsum("jd,aj,bj,cj->abcd", S, *bases), factors)


# One theorem for each formula of a rate, because saved times need another compilation.
RATED = ("Theorem 5 (Corollary 5)", "Theorem 6", "Theorems 1 and 3 of Woodworth")


def flow_of(network, problem, span=10.0):
    """The flow's end, and log t and log L at four times; their number needs a compilation."""
    times = span * jnp.asarray([0.1, 0.2, 0.5, 1.0])
    flow = lt.gradient_flow(network, problem, solver=SOLVER, saveat=times)
    return coefficients(flow.network), flow.log_time[:-1], flow.log_loss[:-1]


def assert_loss_is_below(bound, log_time, log_loss):
    # The flow's relative tolerance is 1e-8, on a loss that may have fallen by many decades.
    assert np.all(np.asarray(log_loss) <= np.asarray(bound.log_bound(log_time)) + 1e-6)


# theory/regression/test_other_mirror_maps.py and test_yun_theorem_5.py test the limits of these.
ELSEWHERE = (
    "two-layer mirror flow",
    "Theorems 1 and 3 of Woodworth",
    "Theorem 5 (Corollary 5)",
    "Theorem 5 (Corollary 7)",
)


@pytest.mark.slow_beyond(1)
@pytest.mark.parametrize(
    "theorem",
    [pytest.param(name, marks=pytest.mark.slow if name in ELSEWHERE else ()) for name in COVERED],
)
def test_exact_limits_agree_with_the_flow(theorem):
    network, problem = COVERED[theorem]
    prediction = lt.predict(network, problem)
    assert str(prediction.theorem).startswith(theorem)
    assert prediction.kind == "exact"
    assert not any(a.holds is False for a in prediction.assumptions)
    assert prediction.rate is not None
    assert prediction.limit is not None
    if theorem in RATED:
        end, log_time, log_loss = flow_of(network, problem, 4 / prediction.rate.value)
        assert_loss_is_below(prediction.rate, log_time, log_loss)
    else:
        end = coefficients(lt.gradient_flow(network, problem, solver=SOLVER).network)
    np.testing.assert_allclose(end, prediction.limit, rtol=0, atol=1e-7)
    assert "applies: the limit below is exact" in str(prediction)


def test_signs_and_scales_of_layers_are_read_from_the_parameters():
    limit = limit_of(diagonal(ETA, -ETA, ZERO), REGRESSION)
    flipped = limit_of(diagonal(-ETA, ETA, ZERO), REGRESSION)
    np.testing.assert_allclose(flipped, limit, rtol=1e-12)
    small = diagonal(ETA, -ETA, ZERO).scaled(0.1)
    assert np.abs(limit_of(small, REGRESSION) - limit).max() > 1e-3
    start = lt.predict(small, REGRESSION).assumptions[-1]
    assert start.value == pytest.approx(0.01 * ETA.min() ** 2)


def test_the_numerical_decomposition_predicts_as_the_given_one():
    found = lt.predict(tensor(), REGRESSION)
    assert found.theorem == "Theorem 5"
    # Singular vectors have the error of the decomposition, 1e-14, divided by their gaps.
    assert found.limit is not None
    np.testing.assert_allclose(found.limit, limit_of(orthogonal(3), REGRESSION), rtol=1e-9)


class OwnNetwork(eqx.Module):
    """A diagonal network that states its data tensor and nothing else."""

    factors: tuple
    depth = 3

    def linear_coefficients(self):
        return self.factors[0] * self.factors[1] * self.factors[2]

    def data_tensor(self, x):
        return jnp.einsum("j,ja,jb,jc->abc", x, EYE, EYE, EYE)

    def with_factors(self, factors):
        return OwnNetwork(tuple(factors))


def test_networks_of_a_user_are_tested_for_assumption_1():
    layers = (jnp.asarray(ETA), jnp.asarray(-ETA), jnp.zeros(4))
    prediction = lt.predict(OwnNetwork(layers), REGRESSION)
    assert prediction.theorem == "Theorem 5"
    # The error is that of a numerical decomposition, as above.
    limit = limit_of(diagonal(ETA, -ETA, ZERO), REGRESSION)
    np.testing.assert_allclose(limit_of(OwnNetwork(layers), REGRESSION), limit, rtol=1e-9)


def test_layers_choose_the_eigenbasis_where_sensors_leave_it_open():
    # Both sensors have two equal eigenvalues; the layers are diagonal in one of the eigenbases.
    repeated = np.stack([np.diag([1.0, 1.0, 2.0, 0.5]), np.diag([0.3, 0.3, -1.0, 2.0])])
    turn = np.eye(4)
    turn[:2, :2] = [[0.6, -0.8], [0.8, 0.6]]
    start = turn @ np.diag(ETA) @ turn.T
    prediction = lt.predict(sensing(start, start, 0 * EYE), lt.MatrixSensing(repeated, Y))
    assert prediction.theorem == "Theorem 5 (Corollary 7)"
    rows = np.stack([np.diag(a) for a in repeated])
    rho = limit_of(diagonal(ETA, ETA, ZERO), lt.Regression(rows, Y))
    assert prediction.limit is not None
    np.testing.assert_allclose(prediction.limit, turn @ np.diag(rho) @ turn.T, rtol=0, atol=1e-10)


@pytest.mark.slow
def test_warns_where_rounding_leaves_the_commuting_matrices():
    problem = lt.MatrixSensing(SENSORS, Y)
    assert any(np.abs(a - np.diag(np.diag(a))).max() > 0.1 for a in SENSORS)

    def run(alpha):
        network = sensing(alpha * EYE, alpha * EYE, 0 * EYE)
        prediction = lt.predict(network, problem)
        assert prediction.limit is not None
        error = np.abs(flow_of(network, problem)[0] - prediction.limit).max()
        warned = any("By rounding" in note for note in prediction.notes)
        return error / np.abs(prediction.limit).max(), warned

    # First the error is that of the flow, as in all tests here; then the limit is a different one.
    error, warned = run(0.3)
    assert error < 1e-7
    assert not warned
    error, warned = run(0.02)
    assert error > 1e-2
    assert warned


@pytest.mark.slow
def test_any_start_of_one_sample_and_two_layers():
    problem = lt.Regression(X[:1], Y[:1])
    network = COVERED["Theorem 6"][0]
    swapped = network.with_factors((0.01 * network.factors[0], network.factors[1]))
    prediction = lt.predict(swapped, problem)
    assert "extended" in str(prediction.theorem)
    assert prediction.rejected[0].theorem == "Theorem 6"
    assert prediction.violated[0].value < 0
    end, _, _ = flow_of(swapped, problem)
    np.testing.assert_allclose(end, limit_of(swapped, problem), rtol=0, atol=1e-7)


@pytest.mark.slow
def test_unbalanced_differential_networks_are_two_layers():
    network = lt.DifferentialDiagonalNetwork(ETA, 0.5 * ETA[::-1], 2)
    prediction = lt.predict(network, REGRESSION)
    assert str(prediction.theorem).startswith("two-layer")
    end, _, _ = flow_of(network, REGRESSION)
    np.testing.assert_allclose(end, limit_of(network, REGRESSION), rtol=0, atol=1e-7)


def test_theorem_7():
    # Dead units do not count. From zero coefficients the limit would be exact for every alpha.
    start = matching(lt.FullyConnectedNetwork.zeros((4, 6, 5)), ETA)
    prediction = lt.predict(start.scaled(0.3), REGRESSION)
    assert (prediction.theorem, prediction.kind) == ("Theorem 7", "alpha_to_zero")
    assert prediction.limit is not None
    np.testing.assert_allclose(prediction.limit, np.linalg.pinv(X) @ Y, rtol=1e-10)
    # Theorem 7's rate with the 2: 2 alpha^(2L-2) lambda^(L-1) s_min(X)^2 at L = 3, lambda = 1.
    smallest = np.linalg.svd(X, compute_uv=False)[-1]
    assert prediction.rate is not None
    assert prediction.rate.value == pytest.approx(2 * 0.3**4 * smallest**2)
    far, log_time, log_loss = flow_of(start.scaled(0.3), REGRESSION)
    assert_loss_is_below(prediction.rate, log_time, log_loss)
    near, _, _ = flow_of(start.scaled(0.1), REGRESSION)
    far, near = (np.abs(end - prediction.limit).max() for end in (far, near))
    assert 1e-6 < near < 0.3 * far  # at a third of the scale


def test_theorem_7_with_two_layers_may_be_exact():
    prediction = lt.predict(lt.FullyConnectedNetwork((0.5 * EYE, ZERO)), REGRESSION)
    assert (prediction.theorem, prediction.kind) == ("Proposition 10 (Min et al. 2021)", "exact")
    assert prediction.is_proved
    assert "solution of least l2 norm, for every initial scale" in str(prediction)
    assert "Theorem 7: proved" in str(prediction)


def test_theorem_7_without_its_conditions_keeps_the_bias_part_open():
    network = lt.FullyConnectedNetwork((0.1 * EYE, 0.1 * EYE, ETA))  # |w_3| > |W_2|
    prediction = lt.predict(network, REGRESSION)
    assert prediction.theorem == "Theorem 7 (bias part alone)"
    assert [a.holds for a in prediction.assumptions].count(None) == 1
    assert not prediction.is_proved
    (broken,) = (a for a in prediction.violated if "alpha^2 lambda I" in a.statement)
    assert broken.value == pytest.approx(0.01 - ETA @ ETA)
    assert "not measurable before the flow" in str(prediction)


OTHER = RNG.standard_normal((2, 4, 4))
SYMMETRIC = OTHER + OTHER.transpose(0, 2, 1)


def relative_commutator(a, b):
    return np.linalg.norm(a @ b - b @ a) / (2 * np.linalg.norm(a) * np.linalg.norm(b))


def relative_asymmetry(sensors):
    return max(np.linalg.norm(a - a.T) / (2 * np.linalg.norm(a)) for a in sensors)


class Opaque(eqx.Module):
    """A network that states only its coefficients."""

    weights: jax.Array

    def linear_coefficients(self):
        return self.weights**3


VIOLATED = {
    "last layer": (
        diagonal(ETA, ETA, 1.5 * ETA),
        REGRESSION,
        "the last layer is zero",
        pytest.approx(1),
    ),
    "unequal layers": (
        diagonal(ETA, ETA[::-1], ZERO),
        REGRESSION,
        "first L-1 layers are equal",
        pytest.approx(np.abs(ETA - ETA[::-1]).max() / ETA.max()),
    ),
    "vanishing eta": (
        diagonal(ETA * [1, 1, 0, 1], ETA * [1, 1, 0, 1], ZERO),
        REGRESSION,
        "eta_j^2 >= lambda > 0",
        0.0,
    ),
    "balanced": (
        diagonal(ETA, ETA),
        REGRESSION,
        "no coordinate of the two layers is balanced",
        0.0,
    ),
    "odd data": (
        lt.ConvolutionalNetwork((ETA[[0, 1, 2, 1]], ZERO)),
        REGRESSION,
        "all data are even",
        pytest.approx(np.abs(X[:, 1] - X[:, 3]).max() / 2 / np.abs(X).max()),
    ),
    "odd filters": (
        lt.ConvolutionalNetwork((ETA, ZERO)),
        lt.Regression(X[:, [0, 1, 2, 1]], Y),
        "all filters are even",
        pytest.approx(abs(ETA[1] - ETA[3]) / 2 / ETA.max()),
    ),
    "short filters": (
        gaussian(lt.ConvolutionalNetwork.zeros(4, (2, 4)), jax.random.key(0)),
        REGRESSION,
        "d <= m <= min_l k_l",
        (4, 2),
    ),
    "non-commuting": (
        sensing(EYE, 0 * EYE),
        lt.MatrixSensing(SYMMETRIC, Y),
        "commuting sensors",
        pytest.approx(relative_commutator(*SYMMETRIC)),
    ),
    "asymmetric": (
        sensing(EYE, 0 * EYE),
        lt.MatrixSensing(OTHER, Y),
        "symmetric sensors",
        pytest.approx(relative_asymmetry(OTHER)),
    ),
    "layers off the basis": (
        sensing(SYMMETRIC[0], 0 * EYE),
        lt.MatrixSensing(SENSORS, Y),
        "every layer is diagonal",
        pytest.approx(max(relative_commutator(SYMMETRIC[0], a) for a in SENSORS)),
    ),
    "complex": (
        lt.OrthogonalNetwork(
            np.fft.fft(EYE, norm="ortho"),
            (np.fft.fft(EYE, norm="ortho").conj(),) * 2,
            (ETA, ZERO),
        ),
        REGRESSION,
        "S and U_1, ..., U_L are real",
        pytest.approx(1),
    ),
    "zero sample": (
        COVERED["Theorem 6"][0],
        lt.Regression(0 * X[:1], [0.0]),
        "M(x) is not zero",
        0.0,
    ),
    "several outputs": (
        lt.FullyConnectedNetwork((0 * EYE, 0 * EYE, EYE[:, :2])),
        lt.Regression(X, X[:, :2]),
        "a single output",
        2,
    ),
    "architecture": (
        Opaque(jnp.asarray(ETA)),
        REGRESSION,
        "the architecture",
        "Opaque",
    ),
}


@pytest.mark.parametrize("case", VIOLATED)
def test_violated_assumptions_are_named_with_their_value(case):
    network, problem, statement, value = VIOLATED[case]
    prediction = lt.predict(network, problem)
    assert (prediction.theorem, prediction.limit, prediction.kind) == (None, None, None)
    assert any(a.holds is False for a in prediction.assumptions)
    (broken,) = (a for a in prediction.violated if statement in a.statement)
    assert broken.value == value
    text = str(prediction)
    assert "No theorem applies" in text
    assert f"[FAILS] {broken.statement}: {broken.shown_value}" in text
    if case in ("non-commuting", "asymmetric"):
        assert "Conjecture" in prediction.notes[0]
        assert "nuclear norm" in prediction.notes[0]


def test_a_nonorthogonal_tensor_is_refused_with_its_defect():
    prediction = lt.predict(nonorthogonal(), REGRESSION)
    assert prediction.theorem is None
    (broken,) = prediction.violated
    assert "singular vectors" in broken.statement
    assert broken.value > 0.1


def test_bad_input_is_refused_at_once():
    with pytest.raises(ValueError, match=r"coefficients have shape \(4,\), but Regression needs"):
        lt.predict(diagonal(ETA, ZERO), EVEN)
    with pytest.raises(ValueError, match="problem: must be an object such as"):
        lt.predict(diagonal(ETA, ZERO), X)  # pyright: ignore
    with pytest.raises(
        ValueError, match=r"network: must be an equinox.Module with a method linear"
    ):
        lt.predict(eqx.nn.Identity(), REGRESSION)
    with pytest.raises(ValueError, match="concrete arrays"):
        jax.jit(lambda n: lt.predict(n, REGRESSION).limit)(diagonal(ETA, ZERO))

"""certify against SciPy's NNLS and HiGHS, optimality conditions by hand, and hand-made saddles.

Tolerances: at points that are exact up to rounding, residuals are a few 1e-15 (1e-13 is required).
"""

from types import SimpleNamespace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from jax.flatten_util import ravel_pytree

import lintensor_jax as lt
from lintensor_jax.networks import split

jax.config.update("jax_enable_x64", True)

ROUNDING = 1e-13
certify: Any = lt.certify  # residuals may be None, though not in most of these tests


class Product(eqx.Module):
    """A two-layer diagonal network as a user would write it."""

    u: jax.Array
    v: jax.Array
    depth = 2

    def linear_coefficients(self):
        return self.u * self.v


def _separable(seed, n, d):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d))
    return lt.Classification(X, np.sign(X @ rng.normal(size=d)))


def _architectures(d):
    """A template, and the norm whose stationary points its flow tends to."""
    return [
        (lt.FullyConnectedNetwork.zeros((d, 3)), lt.L2Norm()),
        (lt.FullyConnectedNetwork.zeros((d, 1, 4)), lt.L2Norm()),
        (lt.DiagonalNetwork.zeros(2, d), lt.L1Norm()),
        (lt.DiagonalNetwork.zeros(3, d), lt.LpNorm(2 / 3)),
        (lt.DifferentialDiagonalNetwork.zeros(2, d), lt.L1Norm()),
        (lt.DifferentialDiagonalNetwork.zeros(3, d), lt.LpNorm(2 / 3)),
        (lt.ConvolutionalNetwork.zeros(d, (d, d)), lt.FourierL1Norm()),
        (lt.ConvolutionalNetwork.zeros(d, (d, d, d)), lt.FourierLpNorm(2 / 3)),
    ]


def _named(case):
    return f"{type(case[0]).__name__}-{case[0].depth}"


def _at_margin_one(network, problem):
    """Theta scaled to smallest margin 1, the margins, and their gradients by autodiff."""
    theta, rebuild = ravel_pytree(split(network)[0])
    rest = split(network)[1]

    def margins(t):
        return problem.margins(eqx.combine(rebuild(t), rest).linear_coefficients())

    theta = theta / jnp.min(margins(theta)) ** (1 / network.depth)
    return tuple(np.asarray(a) for a in (theta, margins(theta), jax.jacobian(margins)(theta)))


@pytest.mark.parametrize("case", _architectures(6), ids=_named)
def test_max_margin_solutions_are_stationary(case):
    like, norm = case
    problem = _separable(5, 14, 6)
    answer = lt.max_margin(problem, norm)
    network = lt.minimal_network(like, answer.coefficients)
    found = certify(network, problem)
    assert found.parameter_residual < ROUNDING
    assert found.predictor_residual < ROUNDING
    assert found.is_stationary
    assert not found.is_saddle
    assert str(found).startswith("Stationary")
    assert "VIOLATED" not in str(found)
    assert found.worst_off_support <= 1 or like.depth > 2
    np.testing.assert_array_equal(found.support, answer.support)
    # Equation 16 and its optimal multipliers, from autodiff and SciPy.
    theta, margins, gradients = _at_margin_one(network, problem)
    tight = margins < 1 + 1e-9
    np.testing.assert_array_equal(found.support, tight)
    nu, rest = scipy.optimize.nnls(gradients[tight].T, theta)
    assert rest < 1e-12 * np.linalg.norm(theta)
    np.testing.assert_allclose(
        np.asarray(found.multipliers)[tight], nu, rtol=0, atol=1e-11 * nu.max()
    )
    assert (np.asarray(found.multipliers)[~tight] == 0).all()
    # From linear coefficients alone the multipliers are those of the norm.
    alone = certify(answer.coefficients, problem, regularizer=norm)
    assert alone.parameter_residual is None
    assert alone.predictor_residual < ROUNDING
    scale = np.max(answer.multipliers)
    np.testing.assert_allclose(alone.multipliers, answer.multipliers, rtol=0, atol=1e-11 * scale)


@pytest.mark.parametrize("case", _architectures(2), ids=_named)
def test_toy_data_of_yun_et_al(case):
    like, norm = case
    problem = lt.Classification(np.array([[1.0, 2.0], [0.0, 3.0]]), np.ones(2))
    limits = {"FullyConnectedNetwork": [0.2, 0.4], "ConvolutionalNetwork": [1 / 3, 1 / 3]}
    limit = limits.get(type(like).__name__, [0, 0.5])
    found = certify(lt.minimal_network(like, np.array(limit)), problem)
    assert found.parameter_residual < 1e-15
    assert found.predictor_residual < 1e-15
    for other in ([0.2, 0.4], [1 / 3, 1 / 3], [0, 0.5]):
        if other != limit:
            assert not certify(np.array(other), problem, regularizer=norm).is_stationary
            assert not certify(lt.minimal_network(like, np.array(other)), problem).is_stationary


@pytest.mark.parametrize("case", _architectures(6), ids=_named)
def test_residuals_are_proportional_to_a_perturbation(case):
    like, norm = case
    problem = _separable(5, 14, 6)
    network = lt.minimal_network(like, lt.max_margin(problem, norm).coefficients)
    parameters, rest = split(network)
    theta, rebuild = ravel_pytree(parameters)
    direction = np.random.default_rng(0).normal(size=theta.size)
    direction *= np.linalg.norm(theta) / np.linalg.norm(direction)
    for size in (1e-3, 1e-5, 1e-7):
        moved = eqx.combine(rebuild(theta + size * direction), rest)
        found = certify(moved, problem)
        assert not found.is_stationary
        # The factor 20 is the sensitivity of the margins times that of the multipliers.
        assert size / 20 < found.parameter_residual < 20 * size
        assert size / 20 < found.predictor_residual < 20 * size
        # The residual is the minimum over nu of both defects, as by SciPy without a given support.
        theta_1, margins, gradients = _at_margin_one(moved, problem)
        length = np.linalg.norm(theta_1)
        columns = np.vstack([gradients.T / length, like.depth / length**2 * (margins - 1)])
        _, rest_norm = scipy.optimize.nnls(columns, np.append(theta_1 / length, 0))
        np.testing.assert_allclose(found.parameter_residual, rest_norm, rtol=1e-5)


@pytest.mark.slow
def test_the_raw_end_of_a_flow_and_its_small_coordinates():
    """Small coordinates are not hidden: the residual falls like one over the margin."""
    problem = _separable(2, 10, 5)
    start = lt.DiagonalNetwork(0.3 * np.random.default_rng(0).normal(size=(2, 5)))
    shares = []
    # A flow stops at its first step past the requested margin, which differs between machines.
    for asked in (1e4, 1e5):
        end = lt.gradient_flow(start, problem, stop=lt.StopAtMargin(asked)).network
        found = certify(end, problem)
        assert not found.is_stationary
        margin = np.min(np.asarray(problem.signed_data @ end.linear_coefficients()))
        shares.append(margin * np.array([found.parameter_residual, found.predictor_residual]))
    np.testing.assert_allclose(shares[0], shares[1], rtol=1e-2)
    assert (shares[1] > 0.1).all()
    assert (shares[1] < 1).all()


@pytest.mark.parametrize("fourier", [False, True])
def test_a_saddle_is_stationary_in_parameter_space_alone(fourier):
    """z = e_1 separates, but u = z_1 / z_11 has |u_2| = 6 > 1: the second coordinate must grow."""
    X = np.array([[1.0, 2.0, 0.0], [0.5, 3.0, 1.0]])
    if fourier:
        # The same data in the basis of the DFT: frequencies 0 and 1 of d = 3.
        k = 2 * np.pi * np.arange(3) / 3
        basis = np.stack([np.ones(3) / 3, np.cos(k), np.sin(k)])
        network = lt.minimal_network(lt.ConvolutionalNetwork.zeros(3, (3, 3)), np.ones(3))
        problem = lt.Classification(X @ basis, np.ones(2))
        spectrum = np.abs(np.fft.fft(np.asarray(problem.X)))[1]  # only sample 1 is tight
        expected = spectrum[1] / spectrum[0]
    else:
        network = lt.DiagonalNetwork(np.array([[1.0, 0, 0], [1, 0, 0]]))
        problem, expected = lt.Classification(X, np.ones(2)), 6.0
    found = certify(network, problem)
    assert found.parameter_residual < 1e-15
    np.testing.assert_allclose(found.worst_off_support, expected, rtol=1e-13)
    np.testing.assert_allclose(found.predictor_residual, expected - 1, rtol=1e-12)
    assert found.is_saddle
    assert not found.is_stationary
    assert str(found).startswith("A saddle")
    # At L = 3 the same support is a stationary point: zero coordinates have no condition.
    deep = lt.minimal_network(
        lt.ConvolutionalNetwork.zeros(3, (3, 3, 3)) if fourier else lt.DiagonalNetwork.zeros(3, 3),
        network.linear_coefficients(),
    )
    found = certify(deep, problem)
    np.testing.assert_allclose(found.worst_off_support, expected, rtol=1e-13)
    assert found.is_stationary


def test_multipliers_that_the_nonzero_coordinates_leave_open():
    """All nu with nu_1 + nu_2 = 1 fit e_1, but only nearly equal ones give |u_2| <= 1."""
    problem = lt.Classification(np.array([[1.0, 1.5], [1, -1.5], [2, 1]]), np.ones(3))
    found = certify(lt.DiagonalNetwork(np.array([[1.0, 0], [1, 0]])), problem)
    assert found.is_stationary
    assert found.predictor_residual < ROUNDING
    assert found.worst_off_support <= 1
    np.testing.assert_array_equal(found.support, [True, True, False])
    # With three equal samples, the optimum is the same.
    problem = _separable(5, 14, 6)
    tripled = lt.Classification(np.tile(problem.X, (3, 1)), np.tile(problem.y, 3))
    network = lt.minimal_network(
        lt.DiagonalNetwork.zeros(2, 6), lt.max_margin(problem, lt.L1Norm()).coefficients
    )
    assert certify(network, tripled).is_stationary


@pytest.mark.parametrize("case", _architectures(5)[::3], ids=_named)
def test_nothing_has_a_scale(case):
    like, norm = case
    problem = _separable(9, 12, 5)
    network = lt.minimal_network(like, lt.max_margin(problem, norm).coefficients)
    reference = np.asarray(certify(network, problem).multipliers)
    for factor in (1e-100, 1e100):
        found = certify(network.scaled(factor), problem)
        assert found.is_stationary
        np.testing.assert_allclose(
            found.multipliers, reference, rtol=0, atol=1e-12 * reference.max()
        )
    for factor in (1e-6, 1e6):
        data = lt.Classification(factor * problem.X, problem.y)
        found = certify(network, data)
        assert found.parameter_residual < ROUNDING
        assert found.predictor_residual < ROUNDING
        np.testing.assert_allclose(
            found.multipliers * factor ** (2 / like.depth),
            reference,
            rtol=0,
            atol=1e-12 * reference.max(),
        )
    moved = jax.tree.map(lambda w: w + 1e-3, network)
    once, scaled = certify(moved, problem), certify(moved.scaled(1e-100), problem)
    np.testing.assert_allclose(once.parameter_residual, scaled.parameter_residual, rtol=1e-9)
    np.testing.assert_allclose(once.predictor_residual, scaled.predictor_residual, rtol=1e-9)


def test_balanced_aligned_layers_and_rotations_of_hidden_units():
    problem = _separable(4, 20, 8)
    z = np.asarray(lt.max_margin(problem, lt.L2Norm()).coefficients)
    rng = np.random.default_rng(0)
    (u, v), size = (q / np.linalg.norm(q) for q in rng.normal(size=(2, 5))), np.linalg.norm(z)
    root = size ** (1 / 3)
    weights = [np.outer(z / size, u) * root, np.outer(u, v) * root, v * root]
    found = certify(lt.FullyConnectedNetwork(weights), problem)
    assert found.parameter_residual < ROUNDING
    assert found.predictor_residual < ROUNDING
    # Unbalanced layers: the predictor is the same, the parameters are not stationary.
    weights[0], weights[2] = 2 * weights[0], weights[2] / 2
    found = certify(lt.FullyConnectedNetwork(weights), problem)
    assert found.parameter_residual > 0.1
    assert found.predictor_residual < ROUNDING


def test_a_module_of_a_user():
    problem = _separable(5, 14, 6)
    z = lt.max_margin(problem, lt.L1Norm()).coefficients
    ours = lt.minimal_network(lt.DiagonalNetwork.zeros(2, 6), z)
    found = certify(Product(*ours.weights), problem)
    assert found.parameter_residual < ROUNDING
    assert found.predictor_residual is None
    assert found.worst_off_support is None
    assert found.is_stationary
    assert "no regulariser is known" in str(found)
    with_norm = certify(Product(*ours.weights), problem, regularizer=lt.L1Norm())
    assert with_norm.predictor_residual < ROUNDING
    other = certify(Product(*ours.weights), problem, regularizer=lt.L2Norm())
    assert other.is_saddle


def test_short_filters_have_a_parameter_space_certificate():
    """n = 1, L = 2, k = 1: w_1 = |x|, w_2 = x is stationary (Yun et al. 2021, Corollary 4)."""
    x = np.random.default_rng(0).normal(size=5)
    network = lt.ConvolutionalNetwork((np.array([np.linalg.norm(x)]), x))
    found = certify(network, lt.Classification(x[None], np.ones(1)))
    assert found.parameter_residual < 1e-15
    assert found.predictor_residual is None


def test_orthogonal_and_tensor_networks_with_complex_rho():
    problem = _separable(5, 14, 6)
    for depth, norm in ((2, lt.FourierL1Norm()), (3, lt.FourierLpNorm(2 / 3))):
        z = lt.max_margin(problem, norm).coefficients
        network = lt.minimal_network(lt.ConvolutionalNetwork.zeros(6, (6,) * depth), z)
        form = network.orthogonal_decomposition()
        same = lt.OrthogonalNetwork(form.S, form.bases, network.filters)
        tensor = lt.TensorNetwork(lt.dense_tensor(network), network.filters)
        reference = certify(network, problem)
        for other in (same, tensor):
            found = certify(other, problem)
            assert found.parameter_residual < ROUNDING
            # A decomposition found numerically is accurate to 1e-14 or so.
            assert found.predictor_residual < 1e-12
            np.testing.assert_allclose(
                found.worst_off_support, reference.worst_off_support, rtol=1e-10
            )


def test_more_components_than_inputs():
    """beta = S^T rho with m = 2 d: the condition is on rho, through S sum_i nu_i z_i."""
    problem = _separable(8, 9, 4)
    rng = np.random.default_rng(3)
    S = rng.normal(size=(8, 4))
    bases = [np.linalg.qr(rng.normal(size=(9, 8)))[0] for _ in range(2)]
    rows = np.asarray(problem.signed_data) @ S.T
    program = scipy.optimize.linprog(
        np.ones(16), A_ub=np.hstack([-rows, rows]), b_ub=-np.ones(9), method="highs"
    )
    rho = program.x[:8] - program.x[8:]
    root = np.sqrt(np.abs(rho))
    factors = [bases[0] @ root, bases[1] @ (np.sign(rho) * root)]
    found = certify(lt.OrthogonalNetwork(S, bases, factors), problem)
    # The accuracy of HiGHS is 1e-9.
    assert found.parameter_residual < 1e-8
    assert found.predictor_residual < 1e-8
    dual = rows.T @ -program.ineqlin.marginals
    np.testing.assert_allclose(found.worst_off_support, np.max(np.abs(dual[rho == 0])), rtol=1e-7)
    # The same beta with other components is not stationary.
    kernel = np.linalg.svd(S.T)[2][-1]
    rho = rho + 0.1 * np.abs(rho).max() * kernel
    root = np.sqrt(np.abs(rho))
    factors = [bases[0] @ root, bases[1] @ (np.sign(rho) * root)]
    found = certify(lt.OrthogonalNetwork(S, bases, factors), problem)
    assert found.predictor_residual > 1e-2


@pytest.mark.parametrize("pairs", [2, 4])
def test_complex_components_in_conjugate_pairs(pairs):
    """m = 2 pairs >= d = 4, rows of S and columns of U in conjugate pairs, so that M(x) is real."""
    problem = _separable(8, 9, 4)
    rng = np.random.default_rng(3)
    mix = np.kron(np.eye(pairs), np.array([[1, 1j], [1, -1j]]) / np.sqrt(2))
    S = mix @ rng.normal(size=(2 * pairs, 4))
    real = [np.linalg.qr(rng.normal(size=(9, 2 * pairs)))[0] for _ in range(2)]
    bases = [u @ mix.conj().T for u in real]
    # min sum_j |rho_j|: each pair counts twice in the norm and twice in beta, so half is enough.
    rows = np.asarray(problem.signed_data) @ S[::2].T
    data = SimpleNamespace(signed_data=jnp.asarray(np.stack([rows.real, -rows.imag], axis=-1)))
    half = np.asarray(lt.max_margin(data, lt.L21Norm()).coefficients) @ np.array([0.5, 0.5j])
    root = np.sqrt(np.abs(half))
    phase = np.where(root > 0, half / np.where(root > 0, root, 1), 0)
    # U^T v = conj(mix) t for v = u t: the pair (t_0 -+ i t_1) / sqrt 2.
    factors = [
        np.sqrt(2) * u @ np.stack([np.real(c), -np.imag(c)], axis=-1).ravel()
        for u, c in zip(real, (root, phase), strict=True)
    ]
    network = lt.OrthogonalNetwork(S, bases, factors)
    assert np.min(problem.margins(network.linear_coefficients())) > 0
    found = certify(network, problem)
    assert found.parameter_residual < ROUNDING
    assert found.predictor_residual < ROUNDING
    assert found.worst_off_support <= 1
    moved = certify(network.with_factors([factors[0], factors[1] + 1e-4]), problem)
    assert 1e-6 < moved.parameter_residual < 1e-2
    assert 1e-6 < moved.predictor_residual < 1e-2

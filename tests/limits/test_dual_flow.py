"""Dual flows in growing steps: against SciPy's flow, and against independent conic programs."""

from typing import Any

import clarabel as _clarabel
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import sparse
from scipy.integrate import solve_ivp
from scipy.optimize import linprog
from scipy.special import softmax

import lintensor_jax as lt
from lintensor_jax.initialization import gaussian, zero_last_layer
from lintensor_jax.limits.dual_flow import continue_direction

D, N = 10, 20
clarabel: Any = _clarabel  # its module states no types
DIAGONAL = lt.DiagonalNetwork.zeros(2, D)
CONVOLUTION = lt.ConvolutionalNetwork.zeros(D, (D, D))
# HiGHS solves its linear program to rounding. The direction of a cone program has an error of about
# the root of its gap, 1e-13; its optimality conditions are a sharper test.
LINEAR, CONIC, OPTIMAL = 1e-9, 1e-6, 1e-9


def problem(index, scale=1.0, d=D, n=N):
    rng = np.random.default_rng([3, index])
    X = rng.standard_normal((n, d))
    return lt.Classification(scale * X, np.sign(X @ rng.standard_normal(d)))


def unit(v):
    return np.asarray(v) / np.linalg.norm(v)


def l1_direction(Z, S=None, both_signs=None):
    """argmin |rho|_1 subject to Z S^T rho >= 1, by HiGHS; as beta = S^T rho."""
    S = np.eye(Z.shape[1]) if S is None else S
    A = Z @ S.T
    A = A / np.abs(A).max()
    m = len(S)
    free = np.ones(m, bool) if both_signs is None else both_signs
    bounds = [(0, None)] * m + [(0, None if both else 0) for both in free]
    found: Any = linprog(np.ones(2 * m), -np.hstack([A, -A]), -np.ones(len(A)), bounds=bounds)
    assert found.status == 0
    return unit(S.T @ (found.x[:m] - found.x[m:]))


def fourier_direction(Z):
    """argmin sum_k |DFT(beta)_k| subject to Z beta >= 1, by Clarabel: second-order cones."""
    n, d = Z.shape
    F = np.fft.fft(np.eye(d))
    blocks = [np.hstack([-Z, np.zeros((n, d))])]
    for k in range(d):
        bound = np.zeros((3, 2 * d))
        bound[0, d + k] = -1
        bound[1, :d], bound[2, :d] = -F[k].real, -F[k].imag
        blocks.append(bound)
    cones = [clarabel.NonnegativeConeT(n)] + [clarabel.SecondOrderConeT(3)] * d
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = 1e-13
    cost = np.concatenate([np.zeros(d), np.ones(d)])
    right = np.concatenate([-np.ones(n), np.zeros(3 * d)])
    solver = clarabel.DefaultSolver(
        sparse.csc_matrix((2 * d, 2 * d)),
        cost,
        sparse.csc_matrix(np.vstack(blocks)),
        right,
        cones,
        settings,
    )
    return unit(np.array(solver.solve().x)[:d])


def assert_limit(found, network, data):
    """The maximum margin in l1 or DFT-l1: by another program, and by its optimality conditions."""
    Z = np.asarray(data.signed_data)
    Z = Z / np.abs(Z).max()
    direction, p = np.asarray(found.direction), np.asarray(found.dual)
    if isinstance(network, lt.DiagonalNetwork):
        np.testing.assert_allclose(direction, l1_direction(Z), rtol=0, atol=LINEAR)
        rho, u = direction, Z.T @ p
    else:
        np.testing.assert_allclose(direction, fourier_direction(Z), rtol=0, atol=CONIC)
        rho, u = np.fft.fft(direction), np.fft.fft(Z.T @ p)
    # u/|u|_inf is a subgradient of |rho|_1 at rho, and p is on the smallest margins only.
    assert np.min(p) >= 0
    level = np.max(np.abs(u))
    np.testing.assert_allclose(rho.conj() * u / level, np.abs(rho), rtol=0, atol=OPTIMAL)
    margins = Z @ direction
    assert np.max(p * (margins / np.min(margins) - 1)) < OPTIMAL


def scipy_flow(network, data, length):
    """beta after dTheta/dtau = sum_i p_i grad m_i, p = softmax(-m), in the parameters."""
    Z = np.asarray(data.signed_data)
    shape = (2, D)

    def times(v, w):
        if isinstance(network, lt.DiagonalNetwork):
            return v * w
        return np.fft.ifft(np.fft.fft(v) * np.fft.fft(w)).real

    def pull(g, w):
        if isinstance(network, lt.DiagonalNetwork):
            return g * w
        return np.fft.ifft(np.fft.fft(g) * np.fft.fft(w).conj()).real

    def velocity(_, theta):
        v, w = theta.reshape(shape)
        force = Z.T @ softmax(-Z @ times(v, w))
        return np.concatenate([pull(force, w), pull(force, v)])

    start = np.concatenate([np.asarray(v) for v in network.factors])
    end = solve_ivp(velocity, (0, length), start, method="LSODA", rtol=1e-10, atol=1e-12)
    return times(*end.y[:, -1].reshape(shape))


@pytest.mark.parametrize("template", [DIAGONAL, CONVOLUTION], ids=["diagonal", "convolution"])
def test_small_steps_converge_to_the_flow(template):
    data, start = problem(1), gaussian(template, jax.random.key(0), 0.5)
    errors = []
    for num_steps in (40, 80, 160):
        steps = continue_direction(
            start, data, first_step=10.0 / num_steps, growth=1.0, max_steps=num_steps
        )
        assert steps.num_steps == num_steps
        expected = scipy_flow(start, data, steps.length)
        margin = np.min(data.margins(jnp.asarray(expected)))
        assert 0.1 < margin < 1000, margin
        errors.append(
            (
                np.linalg.norm(steps.direction - unit(expected)),
                abs(float(steps.log_margins[-1]) - np.log(margin)),
            )
        )
    ratios = np.array(errors[:-1]) / np.array(errors[1:])
    # The order is one: the ratio is 2, up to the next order of the error.
    assert (ratios > 1.7).all(), (errors, ratios)
    assert (ratios < 2.4).all(), (errors, ratios)
    # Phases are misaligned and the margin is moderate, so the error is of order h.
    assert np.max(errors[-1]) < 0.1


@pytest.mark.parametrize("template", [DIAGONAL, CONVOLUTION], ids=["diagonal", "convolution"])
@pytest.mark.parametrize("index", range(6))
def test_the_limit_is_the_maximum_margin(template, index):
    data, start = problem(index), gaussian(template, jax.random.key(index), 0.5)
    found = continue_direction(start, data)
    assert found.settled, found.status
    assert found.gap < 1e-10
    assert_limit(found, start, data)
    beta = found.network.linear_coefficients()
    np.testing.assert_allclose(unit(beta), found.direction, rtol=0, atol=1e-13)
    np.testing.assert_allclose(np.min(data.margins(beta)), 1.0, rtol=1e-13)
    assert type(found.network) is type(start)
    # The multipliers are on the simplex; they are positive only at the smallest margin.
    np.testing.assert_allclose(jnp.sum(found.dual), 1.0, rtol=1e-13)
    slack = data.margins(beta) - 1
    assert jnp.max(found.dual * slack) < 1e-9
    decomposition = start.orthogonal_decomposition()
    np.testing.assert_allclose((decomposition.S.T @ found.rho).real, beta, rtol=0, atol=1e-12)
    # The layers are balanced, so they are the KKT point Theta ~ sum_i p_i grad m_i.
    v, w = found.network.factors
    np.testing.assert_allclose(jnp.vdot(v, v), jnp.vdot(w, w), rtol=1e-10)
    pull = eqx.filter_grad(lambda net: found.dual @ data.margins(net.linear_coefficients()))
    force = jnp.concatenate(pull(found.network).factors)
    theta = jnp.concatenate(found.network.factors)
    np.testing.assert_allclose(unit(force), unit(theta), rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    "template",
    [DIAGONAL, pytest.param(CONVOLUTION, marks=pytest.mark.slow)],
    ids=["diagonal", "convolution"],
)
def test_from_the_end_of_a_flow(template):
    data = problem(2)
    start = zero_last_layer(gaussian(template, jax.random.key(2), 0.01))
    end: Any = lt.gradient_flow(start, data, stop=lt.StopAtMargin(1e4), rtol=1e-6)
    found = continue_direction(end.network, data)
    np.testing.assert_allclose(found.log_margins[0], end.log_margin[-1], rtol=0, atol=1e-9)
    # Every step multiplies the margins, so they never decrease.
    assert (np.diff(found.log_margins) > 0).all()
    assert found.settled
    assert_limit(found, start, data)


def saddle():
    """A saddle: the l1 limit of the network without its largest coordinate."""
    data = problem(4, n=8)  # so few that any nine coordinates separate them
    Z = np.asarray(data.signed_data)
    best = l1_direction(Z)
    dropped = int(np.argmax(np.abs(best)))
    kept = np.delete(np.arange(D), dropped)
    rest = np.zeros(D)
    rest[kept] = l1_direction(Z[:, kept])
    rest *= 1e4 / np.min(Z @ rest)
    layers = np.stack([np.sqrt(np.abs(rest)), np.sign(rest) * np.sqrt(np.abs(rest))])
    return data, layers, dropped, best, unit(rest)


@pytest.mark.parametrize("log10_size", [-12, -100, -300])
def test_leaves_a_saddle(log10_size):
    data, layers, dropped, best, rest = saddle()
    # A flow leaves such small values in zero coordinates, far below a solver's absolute tolerance.
    layers[0] = np.where(layers[0] == 0, 10.0**log10_size, layers[0])
    found = continue_direction(lt.DiagonalNetwork(layers), data)
    assert found.settled
    # At first the direction is constant: this plateau is longer than float64's range of margins.
    assert np.linalg.norm(rest - best) > 0.05
    np.testing.assert_allclose(found.direction, best, rtol=0, atol=LINEAR)
    assert abs(found.direction[dropped]) > 0.1
    if log10_size == -300:
        plateau = continue_direction(lt.DiagonalNetwork(layers), data, max_log_margin=50.0)
        assert not plateau.settled
        assert plateau.gap > 1e-3
        np.testing.assert_allclose(plateau.direction, rest, rtol=0, atol=1e-10)


def test_a_coordinate_at_zero_stays_there():
    data, layers, dropped, _, rest = saddle()
    live = np.arange(D) != dropped
    layers[0, live] = np.where(layers[0, live] == 0, 1e-30, layers[0, live])
    layers[:, dropped] = 0
    found = continue_direction(lt.DiagonalNetwork(layers), data)
    assert found.settled
    np.testing.assert_allclose(found.direction, rest, rtol=0, atol=LINEAR)
    assert found.direction[dropped] == 0


def test_balanced_coordinates_keep_their_sign():
    data = problem(4, n=8)
    best = l1_direction(np.asarray(data.signed_data))
    worst = int(np.argmax(np.abs(best)))
    size = np.random.default_rng(0).uniform(0.5, 1, D)
    signs = np.where(best == 0, 1.0, np.sign(best))
    first, second = size.copy(), size * signs
    second[worst] *= -1
    # All other coordinates can take both signs: a - b and a + b are nonzero.
    others = np.arange(D) != worst
    first[others] *= 2
    found = continue_direction(lt.DiagonalNetwork(np.stack([first, second])), data)
    Z = np.asarray(data.signed_data) * np.where(np.arange(D) == worst, -np.sign(best[worst]), 1)
    expected = l1_direction(Z, both_signs=others)
    expected[worst] *= -np.sign(best[worst])
    assert found.settled
    np.testing.assert_allclose(found.direction, expected, rtol=0, atol=LINEAR)


@pytest.mark.parametrize("template", [DIAGONAL, CONVOLUTION], ids=["diagonal", "convolution"])
def test_margins_that_only_logarithms_hold(template):
    # Margins start at 1e-900, and the first steps must have the same size.
    start = gaussian(template, jax.random.key(0), 1e-300)
    found = continue_direction(start, problem(0, 1e-300), growth=4.0)
    assert found.settled
    assert found.log_margins[-1] > np.log(10) * 4000
    assert_limit(found, start, problem(0))


@pytest.mark.parametrize("scale", [1e-6, 1e6])
@pytest.mark.parametrize("template", [DIAGONAL, CONVOLUTION], ids=["diagonal", "convolution"])
def test_data_of_any_scale(template, scale):
    start = gaussian(template, jax.random.key(0), 0.3)
    found = continue_direction(start, problem(0, scale))
    assert found.settled
    assert_limit(found, start, problem(0))


def orthogonal_network(rng):
    bases = [np.linalg.qr(rng.standard_normal((k, 13)))[0] for k in (13, 15)]
    factors = [rng.standard_normal(13), rng.standard_normal(15)]
    return lt.OrthogonalNetwork(rng.standard_normal((13, D)), bases, factors)


def test_orthogonal_networks():
    network, data = orthogonal_network(np.random.default_rng(5)), problem(0)
    found = continue_direction(network, data)
    assert found.settled
    expected = l1_direction(np.asarray(data.signed_data), np.asarray(network.S))
    np.testing.assert_allclose(found.direction, expected, rtol=0, atol=LINEAR)
    np.testing.assert_allclose(
        network.S.T @ found.rho, found.network.linear_coefficients(), rtol=0, atol=1e-12
    )


def test_other_two_layer_networks():
    data = problem(0)
    expected = l1_direction(np.asarray(data.signed_data))
    tensor = np.zeros((D, D, D))
    tensor[(np.arange(D),) * 3] = 1.0
    rng = np.random.default_rng(0)
    dense = lt.TensorNetwork(tensor, [rng.standard_normal(D), rng.standard_normal(D)])
    tied = lt.DifferentialDiagonalNetwork(jnp.full(D, 0.1), jnp.full(D, 0.2), 2)
    for network in (dense, tied):
        found = continue_direction(network, data)
        assert found.settled
        np.testing.assert_allclose(found.direction, expected, rtol=0, atol=LINEAR)
        beta = found.network.linear_coefficients()
        np.testing.assert_allclose(unit(beta), expected, rtol=0, atol=LINEAR)


def test_nearly_inseparable_data():
    rng = np.random.default_rng(0)
    X, w = rng.standard_normal((N, D)), unit(rng.standard_normal(D))
    # At margin 1e-4 rounding of the angles is amplified by 1e4 squared.
    X = X - (X @ w)[:, None] * w + 1e-4 * np.abs(rng.standard_normal(N))[:, None] * w
    data = lt.Classification(X, np.ones(N))
    for template in (DIAGONAL, CONVOLUTION):
        found = continue_direction(gaussian(template, jax.random.key(0), 0.3), data)
        Z = np.asarray(data.signed_data)
        diagonal = isinstance(template, lt.DiagonalNetwork)
        expected = l1_direction(Z) if diagonal else fourier_direction(Z)
        np.testing.assert_allclose(found.direction, expected, rtol=0, atol=1e-5)


def test_logistic_loss_and_one_sample():
    data = lt.Classification(problem(0).X, problem(0).y, loss=lt.LogisticLoss())
    found = continue_direction(gaussian(DIAGONAL, jax.random.key(0), 0.3), data)
    expected = l1_direction(np.asarray(data.signed_data))
    np.testing.assert_allclose(found.direction, expected, rtol=0, atol=LINEAR)
    single = lt.Classification(problem(0).X[:1], problem(0).y[:1])
    found = continue_direction(gaussian(DIAGONAL, jax.random.key(0), 0.3), single)
    assert found.settled
    assert jnp.sum(jnp.abs(found.direction) > 1e-12) == 1


def test_where_no_margin_can_be_had():
    X = np.asarray(problem(0).X)
    inseparable = lt.Classification(np.vstack([X, -X]), np.ones(2 * N))
    positive = lt.DiagonalNetwork(jnp.full((2, D), 0.5))
    random = gaussian(DIAGONAL, jax.random.key(0), 0.3)
    for network, data in (
        (random, inseparable),
        (positive, lt.Classification(-abs(X), np.ones(N))),
    ):
        found = continue_direction(network, data)
        assert not found.settled
        assert "misclassified" in found.status
        assert found.log_margins[-1] == -jnp.inf


BAD = [
    (lt.DiagonalNetwork.zeros(3, D), {}, "two layers"),
    (DIAGONAL, {}, "nonzero"),
    (lt.FullyConnectedNetwork((jnp.ones((D, 2)), jnp.ones(2))), {}, "fails"),
    (lt.ConvolutionalNetwork((jnp.ones(2), jnp.ones(D))), {}, "fails"),
    (lt.DiagonalNetwork(jnp.ones((2, D))), {"growth": 0.5}, "growth"),
    (lt.DiagonalNetwork(jnp.ones((2, D))), {"first_step": 0.0}, "first_step"),
    (lt.DiagonalNetwork(jnp.ones((2, D))), {"tolerance": float("nan")}, "tolerance"),
    (lt.DiagonalNetwork(jnp.ones((2, D))), {"max_steps": 0}, "max_steps"),
]


@pytest.mark.parametrize(("network", "options", "message"), BAD)
def test_bad_input(network, options, message):
    with pytest.raises(ValueError, match=message):
        continue_direction(network, problem(0), **options)


def test_only_for_classification_on_the_host():
    network = lt.DiagonalNetwork(jnp.ones((2, D)))
    with pytest.raises(ValueError, match="Classification"):
        continue_direction(network, lt.Regression(problem(0).X, problem(0).y))  # pyright: ignore
    with pytest.raises(ValueError, match="jit"):
        jax.jit(lambda s: continue_direction(network.scaled(s), problem(0)).direction)(1.0)
    zero = lt.Classification(np.zeros((N, D)), np.ones(N))
    with pytest.raises(ValueError, match="X = 0"):
        continue_direction(network, zero)

"""The end-to-end flow against the flow of layers and an independent integrator, and its rank."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.linalg import fractional_matrix_power

import lintensor_jax as lt
from lintensor_jax import initialization
from lintensor_jax.dynamics import EndToEndMatrix

TIMES = np.linspace(0.0, 2.0, 9)
UNTIL = {"saveat": TIMES, "stop": lt.StopAtTime(2.0)}


def _case(d, m, rank, seed=0, n=8):
    rng = np.random.default_rng([d, m, rank, seed])
    problem = lt.Regression(rng.standard_normal((n, d)), rng.standard_normal((n, m)))
    return problem, 0.5 * rng.standard_normal((d, rank)) @ rng.standard_normal((rank, m))


def _difference(d, m, rank, depth):
    problem, beta = _case(d, m, rank)
    # Wider layers would contain the rounding of beta's zero singular values, to the power 1/L.
    like = lt.FullyConnectedNetwork.zeros((d, *[rank] * (depth - 1)), m)
    layers = initialization.balanced(like, jnp.asarray(beta))
    layered = lt.gradient_flow(layers, problem, rtol=1e-11, finish=None, **UNTIL)
    induced = lt.induced_flow(beta, problem, depth, rtol=1e-11, **UNTIL)
    assert induced.network.rank == rank
    assert np.max(np.abs(induced.coefficients[-1] - beta)) > 0.1  # the flow has moved
    return float(jnp.max(jnp.abs(induced.coefficients - layered.coefficients)[: len(TIMES)]))


@pytest.mark.slow
# Both flows at rtol 1e-11 over two units of time: 1e-8 is the acceptance bound.
@pytest.mark.parametrize(("d", "m", "rank", "depth"), [(4, 3, 2, 3)])
def test_it_is_the_flow_of_balanced_layers(d, m, rank, depth):
    assert _difference(d, m, rank, depth) < 1e-8


@pytest.mark.slow
@pytest.mark.parametrize("depth", [2, 3, 4, 5, 6])
@pytest.mark.parametrize(("d", "m", "rank"), [(4, 4, 4), (4, 4, 1), (5, 3, 2), (3, 5, 3)])
def test_it_is_the_flow_of_balanced_layers_for_all_depths_and_shapes(d, m, rank, depth):
    assert _difference(d, m, rank, depth) < 1e-8


@pytest.mark.parametrize("depth", [2, 3, 6])
def test_the_velocity_is_equation_17_by_matrix_powers(depth):
    rng = np.random.default_rng(1)
    beta, G = rng.standard_normal((4, 4)), rng.standard_normal((4, 4))
    expected = sum(
        np.real(fractional_matrix_power(beta @ beta.T, (j - 1) / depth))
        @ G
        @ np.real(fractional_matrix_power(beta.T @ beta, (depth - j) / depth))
        for j in range(1, depth + 1)
    )
    moved, norm = EndToEndMatrix(jnp.asarray(beta), depth, 4).metric(jnp.asarray(G))
    np.testing.assert_allclose(moved, expected, rtol=1e-10, atol=1e-10)
    # Eftekhari 2020, Lemma 24: <G, A(G)> is a sum of squares, the layers' squared gradient.
    np.testing.assert_allclose(norm**2, np.vdot(G, expected), rtol=1e-10)


def _layered_velocity(U, sizes, V, G):
    """A function of L: d(W_1 ... W_L)/dt for -grad L(beta) = G, from balanced layers."""

    def velocity(depth):
        root = np.diag(np.array(sizes) ** (1 / depth))
        layers = lt.FullyConnectedNetwork((U @ root, *[root] * (depth - 2), root @ V.T))
        _, pull = layers.coefficients_and_pullback()
        _, moved = jax.jvp(
            lambda w: lt.FullyConnectedNetwork(w).linear_coefficients(),
            (layers.weights,),
            (pull(G).weights,),
        )
        return moved

    return velocity


@pytest.mark.parametrize("depth", [2, 3, 6])
def test_powers_of_rank_deficient_and_ill_conditioned_matrices(depth):
    rng = np.random.default_rng(2)
    U = np.linalg.qr(rng.standard_normal((5, 5)))[0]
    V = np.linalg.qr(rng.standard_normal((4, 4)))[0]
    G = jnp.asarray(rng.standard_normal((5, 4)))
    for sizes in ([1.0, 0.5], [1.0, 1e-4, 1e-8], [1.0, 1.0, 1e-10, 1e-12]):
        rank = len(sizes)
        left, right = U[:, :rank], V[:, :rank]
        beta = (left * sizes) @ right.T
        found, _ = EndToEndMatrix(jnp.asarray(beta), depth, rank).metric(G)
        expected = _layered_velocity(left, sizes, right, G)(depth)
        # A singular value s of beta is known to eps, its power s^(2/L) to eps s^(2/L - 1).
        known = 4e-16 * min(sizes) ** min(2 / depth - 1, 0)
        np.testing.assert_allclose(found, expected, rtol=0, atol=100 * known)
        if depth == 6 and rank == 2:
            naive = _by_eigenvalues(beta, np.asarray(G), depth)
            assert np.max(np.abs(naive - expected)) > 1e-7  # round-off^(1/6) on the kernel


def _by_eigenvalues(beta, G, depth):
    def power(matrix, exponent):
        values, vectors = np.linalg.eigh(matrix)
        return (vectors * np.abs(values) ** exponent) @ vectors.T

    terms = (
        power(beta @ beta.T, (j - 1) / depth) @ G @ power(beta.T @ beta, (depth - j) / depth)
        for j in range(1, depth + 1)
    )
    return sum(terms)


@pytest.mark.slow
def test_against_an_independent_integrator_with_the_rank_kept():
    problem, beta = _case(4, 3, 2)
    X, y = np.asarray(problem.X), np.asarray(problem.y)

    def velocity(_, flat):
        # depth 2: (beta beta^T)^(1/2) = U S U^T.
        current = flat.reshape(4, 3)
        U, s, Vt = np.linalg.svd(current, full_matrices=False)
        G = X.T @ (X @ current - y)
        U, s, V = U[:, :2], s[:2], Vt[:2].T
        return -np.ravel(G @ (V * s) @ V.T + (U * s) @ U.T @ G)

    oracle = solve_ivp(velocity, (0, 2), beta.ravel(), "DOP853", TIMES, rtol=1e-12, atol=1e-13)
    flow = lt.induced_flow(beta, problem, 2, rank=2, **UNTIL)
    found = np.asarray(flow.coefficients)[: len(TIMES)]
    np.testing.assert_allclose(found.reshape(-1, 12), oracle.y.T, rtol=0, atol=1e-8)
    # Lemma 11; the third singular value is the rounding of a product.
    assert np.max(np.linalg.svd(found, compute_uv=False)[:, 2]) < 1e-14
    assert "EndToEndMatrix" in str(flow)


@pytest.mark.slow
def test_a_scalar_output_is_a_column():
    problem, beta = _case(4, 1, 1)
    column = lt.induced_flow(beta, problem, 3, **UNTIL)
    vector = lt.induced_flow(
        beta[:, 0], lt.Regression(problem.X, problem.y[:, 0]), 3, rank=1, **UNTIL
    )
    np.testing.assert_allclose(vector.coefficients, column.coefficients[..., 0], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 1}, "depth: must be an int >= 2, got 1"),
        ({"depth": True}, "depth: must be an int >= 2, got True"),
        ({"rank": 4}, r"rank: must be an int from 1 to min\(d, m\) = 3, got 4"),
        ({"coefficients": np.zeros((4, 3))}, "coefficients: must not be zero"),
        ({"coefficients": np.ones((3, 3))}, r"shape \(3, 3\), but Regression needs shape \(4, 3\)"),
        ({"coefficients": np.full((4, 3), np.nan)}, "coefficients must be finite"),
        ({"finish": lt.GaussNewton()}, "finish: induced_flow has none"),
        (
            {"problem": lt.Classification(np.ones((1, 4)), [1.0])},
            "needs a loss of residuals, got Classification",
        ),
    ],
)
def test_bad_input(change, message):
    problem, beta = _case(4, 3, 2)
    arguments = {"coefficients": beta, "problem": problem, "depth": 2, **change}
    with pytest.raises(ValueError, match=message):
        lt.induced_flow(**arguments)


def test_the_rank_must_be_given_where_it_cannot_be_seen():
    problem, beta = _case(4, 3, 2)
    with pytest.raises(ValueError, match=r"rank: must be given under jax\.jit"):
        jax.eval_shape(lambda b: lt.induced_flow(b, problem, 2).coefficients, jnp.asarray(beta))


@pytest.mark.slow
@pytest.mark.parametrize("depth", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_derivatives_at_equal_singular_values(depth):
    """Singular vectors have no derivatives there, but the flow has."""
    problem = lt.Regression(np.eye(2), [[1.0, 0.3], [-0.2, 0.7]])

    def end(coefficients):
        stop = lt.StopAtTime(0.5)
        flow = lt.induced_flow(coefficients, problem, depth, rank=2, stop=stop, saveat=[0.5])
        return flow.coefficients[0]

    start, along = 0.5 * jnp.eye(2), jnp.array([[0.3, -0.2], [0.1, 0.4]])
    _, slope = jax.jvp(end, (start,), (along,))
    step = 1e-4
    difference = (end(start + step * along) - end(start - step * along)) / (2 * step)
    # Errors of central differences: step^2, and the flow's error of 1e-10 over the step.
    np.testing.assert_allclose(slope, difference, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_derivatives_keep_the_rank():
    problem = lt.Regression(np.eye(3), [[1.0, 0.3], [-0.2, 0.7], [0.5, 0.1]])
    left, right = jnp.array([1.0, 0.4, -0.3]), jnp.array([0.6, -0.2])

    def end(left):
        stop = lt.StopAtTime(0.5)
        beta = jnp.outer(left, right)
        return lt.induced_flow(beta, problem, 3, rank=1, stop=stop, saveat=[0.5]).coefficients[0]

    along = jnp.array([0.2, -0.5, 0.3])
    _, slope = jax.jvp(end, (left,), (along,))
    step = 1e-4
    difference = (end(left + step * along) - end(left - step * along)) / (2 * step)
    np.testing.assert_allclose(slope, difference, rtol=0, atol=1e-5)

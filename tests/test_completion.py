"""Matrix completion: entries by their indices, against dense sensors and known limits."""

import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq

import lintensor_jax as lt
from lintensor_jax import initialization
from lintensor_jax.completion import _LARGEST_TABLE
from lintensor_jax.sweeps.store.description import describe, rebuild

D = 8


def random_completion(rng, shape, count, rank=2, **options):
    """Entries of a random matrix of low rank, not in order."""
    rows, columns = np.divmod(rng.choice(shape[0] * shape[1], count, replace=False), shape[1])
    truth = rng.standard_normal((shape[0], rank)) @ rng.standard_normal((rank, shape[1]))
    return lt.MatrixCompletion(rows, columns, truth[rows, columns], shape, **options)


# Values, gradients, and what they cost.


@pytest.mark.parametrize("shape", [(3, 7), (200, 130)])
def test_entries_and_gradient_equal_dense_sensors(shape):
    assert (shape[0] * shape[1] > _LARGEST_TABLE) == (shape[0] == 200)  # both adjoints are tested
    rng = np.random.default_rng(0)
    problem = random_completion(rng, shape, 12)
    beta = rng.standard_normal(shape)
    sensors = np.zeros((12, *shape))
    sensors[np.arange(12), problem.rows, problem.columns] = 1
    r = np.tensordot(sensors, beta, 2) - np.asarray(problem.values)
    np.testing.assert_array_equal(problem.residual(jnp.asarray(beta)), r)
    np.testing.assert_array_equal(problem.adjoint(r), np.tensordot(r, sensors, 1))  # pyright: ignore[reportArgumentType]
    np.testing.assert_allclose(problem.loss(jnp.asarray(beta)), r @ r / 2, rtol=1e-14)
    gradient = jax.grad(problem.loss)(jnp.asarray(beta))
    np.testing.assert_allclose(gradient, np.tensordot(r, sensors, 1), rtol=1e-13)


def test_entries_are_sorted_and_equal_duplicates_count_once():
    problem = lt.MatrixCompletion([2, 0, 2, 0], [1, 1, 1, 0], [3.0, 2.0, 3.0, 1.0], (3, 2))
    np.testing.assert_array_equal(problem.rows, [0, 0, 2])
    np.testing.assert_array_equal(problem.columns, [0, 1, 1])
    np.testing.assert_array_equal(problem.values, [1.0, 2.0, 3.0])
    assert problem.shape == problem.coefficient_shape == (3, 2)
    np.testing.assert_array_equal(problem.predictions(jnp.arange(6.0).reshape(3, 2)), [0, 1, 5])


def test_one_pattern_is_one_compilation():
    traces = []

    @jax.jit
    def loss(problem, beta):
        traces.append(1)
        return problem.loss(beta)

    for values in ([1.0, 2.0], [3.0, 4.0]):
        loss(lt.MatrixCompletion([0, 1], [0, 1], values, (2, 2)), jnp.eye(2))
    assert len(traces) == 1
    loss(lt.MatrixCompletion([0, 1], [1, 0], [1.0, 2.0], (2, 2)), jnp.eye(2))
    loss(lt.MatrixCompletion([0, 1], [0, 1], [1.0, 2.0], (2, 3)), jnp.ones((2, 3)))
    assert len(traces) == 3


def test_the_gradient_costs_what_indexing_costs():
    """1,700 x 950 with 100,000 entries: at most 3 times NumPy, and no memory beyond matrices."""
    rng, shape, count = np.random.default_rng(0), (1700, 950), 100_000
    problem = random_completion(rng, shape, count, 3)
    host = rng.standard_normal(shape)
    beta, y = jnp.asarray(host), np.asarray(problem.values)
    compiled = jax.jit(lambda p, b: p.adjoint(p.residual(b))).lower(problem, beta).compile()

    def by_numpy():
        gradient = np.zeros(shape)
        gradient[problem.rows, problem.columns] = host[problem.rows, problem.columns] - y
        return gradient

    np.testing.assert_array_equal(compiled(problem, beta), by_numpy())
    memory = compiled.memory_analysis()
    matrix = 8 * shape[0] * shape[1]
    # beta and the gradient are matrices; temporary arrays are at most one more, and some of size n.
    assert memory.temp_size_in_bytes <= matrix + 64 * count  # pyright: ignore[reportOptionalMemberAccess]
    assert memory.output_size_in_bytes <= matrix + 64  # pyright: ignore[reportOptionalMemberAccess]

    def fastest(function):
        times = []
        for _ in range(30):
            start = time.perf_counter()
            jax.block_until_ready(function())
            times.append(time.perf_counter() - start)
        return min(times)

    # Both are timed in turn, and the fastest of 30 counts; here the ratio is 0.3.
    assert fastest(lambda: compiled(problem, beta)) < 3 * fastest(by_numpy)


# Flows.


@pytest.mark.slow_beyond(1)
@pytest.mark.parametrize("depth", [2, 3])
def test_flows_equal_those_of_dense_sensors(depth):
    problem = random_completion(np.random.default_rng(1), (D, D), 30)
    like = lt.MatrixFactorizationNetwork.zeros(depth, D)
    network = initialization.gaussian(like, jax.random.key(1), 0.3)
    # The states at given times are compared, and not the end's time: it is that of the first step
    # below the residual, and rounding decides which step that is.
    times = jnp.array([0.5, 1.0, 2.0, 4.0])
    sparse, dense = (
        lt.gradient_flow(network, p, rtol=1e-11, saveat=times) for p in (problem, problem.dense())
    )
    np.testing.assert_allclose(sparse.coefficients, dense.coefficients, atol=1e-9)
    np.testing.assert_allclose(sparse.log_loss[:-1], dense.log_loss[:-1], rtol=0, atol=1e-9)
    assert float(sparse.log_loss[-1]) < -60
    assert float(sparse.invariant_drift[-1]) < 1e-12


def rank_one_and_rest(depth, first, second):
    """Balanced layers, beta(0) = first u u^T + second v v^T; sqrt 2 u = (1, 1), v = (1, -1)."""
    basis = np.array([[1.0, 1.0], [1.0, -1.0]]) / np.sqrt(2)
    root = np.array([first, second]) ** (1 / depth)
    return lt.MatrixFactorizationNetwork([basis.T @ np.diag(root) @ basis] * depth)


@pytest.mark.slow_beyond(1)
@pytest.mark.parametrize("depth", [2, 3])
def test_completions_of_the_identity_have_known_limits(depth):
    """Entries 1 on the diagonal of a 2 x 2 matrix, three starts.

    From multiples of the identity the limit is the identity. In the basis u, v the eigenvalues obey
    d s/dt = -L s^(2-2/L) (r/2 + r/2), r = (s_u + s_v)/2 - 1: at the limit s_u + s_v = 2, and
    log s_u - log s_v (L = 2) or s_u^(2/L-1) - s_v^(2/L-1) (L > 2) is that of the start.
    """
    problem = lt.MatrixCompletion([0, 1], [0, 1], [1.0, 1.0], (2, 2))
    limit = lt.gradient_flow(rank_one_and_rest(depth, 0.01, 0.01), problem).coefficients[-1]
    np.testing.assert_allclose(limit, np.eye(2), atol=1e-8)
    one = lt.gradient_flow(rank_one_and_rest(depth, 0.01, 0.0), problem).coefficients[-1]
    np.testing.assert_allclose(one, np.ones((2, 2)), atol=1e-8)
    start = (0.03, 0.01)

    def conserved(s, t):
        power = 2 / depth - 1
        return np.log(s / t) if depth == 2 else s**power - t**power

    wanted = conserved(*start)
    s = brentq(lambda s: conserved(s, 2 - s) - wanted, 1.0, 2 - 1e-9, xtol=1e-14)
    mixed = lt.gradient_flow(rank_one_and_rest(depth, *start), problem, rtol=1e-10)
    expected = s / 2 * np.ones((2, 2)) + (2 - s) / 2 * np.array([[1.0, -1.0], [-1.0, 1.0]])  # pyright: ignore[reportOperatorIssue]
    np.testing.assert_allclose(mixed.coefficients[-1], expected, atol=1e-7)


@pytest.mark.slow
def test_rectangular_layers_balanced_and_batched():
    rng = np.random.default_rng(2)
    problem = random_completion(rng, (3, 4), 7, 1)
    like = lt.MatrixFactorizationNetwork.zeros(3, (3, 4), width=2)
    assert [w.shape for w in like.weights] == [(3, 2), (2, 2), (2, 4)]
    assert like.largest_rank() == 2
    starts = 0.1 * rng.standard_normal((9, 3, 1)) * rng.standard_normal((9, 1, 4))
    network = initialization.balanced(like, starts[0])
    np.testing.assert_allclose(network.linear_coefficients(), starts[0], atol=1e-15)
    assert float(jnp.max(jnp.abs(network.conserved_quantities()))) < 1e-14
    with pytest.raises(ValueError, match="as wide as the rank 3"):
        initialization.balanced(like, rng.standard_normal((3, 4)))  # pyright: ignore[reportArgumentType]
    networks = jax.vmap(lambda b: initialization.balanced(like, b))(jnp.asarray(starts))
    flows = lt.batched_flow(networks, problem, rtol=1e-9)
    assert flows.succeeded.all()
    for lane in (0, 8):
        alone = lt.gradient_flow(
            jax.tree.map(lambda x, i=lane: x[i], networks), problem, rtol=1e-11
        )
        np.testing.assert_allclose(flows.coefficients[lane], alone.coefficients[-1], atol=1e-7)
        assert float(alone.invariant_drift[-1]) < 1e-11
    other = lt.MatrixFactorizationNetwork((np.ones((3, 2)), np.ones((2, 4))))
    assert other(np.ones((3, 4))) == 24.0  # pyright: ignore[reportArgumentType]
    assert other.data_tensor(np.ones((3, 4))).shape == (6, 8)  # pyright: ignore[reportArgumentType]


@pytest.mark.slow
def test_other_losses_end_at_an_exact_fit():
    problem = random_completion(np.random.default_rng(3), (3, 4), 6, loss=lt.HuberLoss(0.5))
    like = lt.MatrixFactorizationNetwork.zeros(2, (3, 4))
    solution = lt.gradient_flow(initialization.gaussian(like, jax.random.key(0), 0.5), problem)
    beta = solution.coefficients[-1]
    np.testing.assert_allclose(problem.predictions(beta), problem.values, atol=1e-8)


# What theory knows.


@pytest.mark.slow
@pytest.mark.parametrize("depth", [2, 3])
def test_predictions_of_entries_on_the_diagonal(depth):
    problem = lt.MatrixCompletion([0, 2], [0, 2], [1.0, -0.5], (3, 3))
    layers = [0.3 * np.eye(3)] * (depth - 1) + [np.zeros((3, 3))]
    network = lt.MatrixFactorizationNetwork(layers)
    prediction = lt.predict(network, problem)
    assert prediction.kind == "exact"
    assert prediction.theorem == "Theorem 5 (Corollary 7)"
    flow = lt.gradient_flow(network, problem, rtol=1e-10)
    np.testing.assert_allclose(flow.coefficients[-1], prediction.limit, atol=1e-8)  # pyright: ignore[reportArgumentType, reportCallIssue]
    mirror = lt.mirror_flow(network, problem)
    np.testing.assert_allclose(mirror.coefficients[-1], prediction.limit, atol=1e-8)  # pyright: ignore[reportArgumentType, reportCallIssue]


def test_other_completions_are_open():
    network = lt.MatrixFactorizationNetwork([0.1 * np.eye(2)] * 2)
    for problem, words in (
        (lt.MatrixCompletion([0, 1], [0, 0], [1.0, 1.0], (2, 2)), "symmetric sensors"),
        (lt.MatrixCompletion([0], [0], [1.0], (2, 2), lt.HuberLoss(1.0)), "squared loss"),
    ):
        prediction = lt.predict(network, problem)
        assert prediction.theorem is None
        assert words in prediction.violated[0].statement + prediction.violated[-1].statement
        assert any("open" in note for note in prediction.notes)
    wide = lt.MatrixFactorizationNetwork.zeros(2, 2, width=3)
    narrow = lt.predict(wide, lt.MatrixCompletion([0], [0], [1.0], (2, 2)))
    assert "every layer" in narrow.violated[0].statement
    # What the note names: the least nuclear norm with three entries 1 is attained at rank one.
    three = lt.MatrixCompletion([0, 0, 1], [0, 1, 0], [1.0, 1.0, 1.0], (2, 2))
    least = lt.min_norm(three, lt.NuclearNorm())
    np.testing.assert_allclose(least.coefficients, np.ones((2, 2)), atol=1e-6)
    wide = lt.MatrixCompletion([0, 0, 0, 1], [0, 1, 2, 0], np.ones(4), (2, 3))
    least = lt.min_norm(wide, lt.L2Norm())
    np.testing.assert_allclose(least.coefficients, [[1, 1, 1], [1, 0, 0]], atol=1e-12)


# Bad input, and stores.

ENTRY = {"rows": [0, 1], "columns": [0, 1], "values": [1.0, 2.0], "shape": (2, 2)}
MISTAKES = [
    ({"rows": [0, 2]}, ["rows must lie in [0, 2)", "got 2 at index 1"]),
    ({"columns": [-1, 0]}, ["columns must lie in [0, 2)", "got -1 at index 0"]),
    ({"rows": [0.0, 1.0]}, ["rows must be a non-empty vector of whole numbers", "float64"]),
    ({"rows": [0, 1, 1]}, ["one number for each entry", "(3,), (2,) and (2,)"]),
    ({"rows": [1, 1], "columns": [0, 0]}, ["values of one entry", "1 and 2", "row 1, column 0"]),
    ({"values": [1.0, np.nan]}, ["values must be finite"]),
    ({"shape": (2, 0)}, ["shape must be two positive whole numbers", "(2, 0)"]),
    ({"shape": 4}, ["shape must be two positive whole numbers"]),
    ({"loss": lt.ExponentialLoss()}, ["loss must be an object", "HuberLoss"]),
]


@pytest.mark.parametrize(("change", "words"), MISTAKES)
def test_mistakes_are_named(change, words):
    with pytest.raises(ValueError, match="MatrixCompletion: ") as caught:
        lt.MatrixCompletion(**{**ENTRY, **change})
    for word in words:
        assert word in str(caught.value)


def test_what_cannot_be_traced_or_made_dense_is_refused():
    with pytest.raises(ValueError, match=r"rows must be concrete.*changes_shape=True"):
        jax.jit(lambda r: lt.MatrixCompletion(r, [0, 1], [1.0, 2.0], (2, 2)).y)(jnp.arange(2))
    with pytest.raises(ValueError, match="name every entry once"):
        jax.jit(lambda y: lt.MatrixCompletion([0, 0], [0, 0], y, (2, 2)).y)(jnp.ones(2))
    traced = jax.jit(lambda y: lt.MatrixCompletion([1, 0], [0, 0], y, (2, 2)).y)(jnp.arange(2.0))
    np.testing.assert_array_equal(traced, [1.0, 0.0])
    rectangle = lt.MatrixCompletion([0], [0], [1.0], (2, 3))
    with pytest.raises(ValueError, match="square shape"):
        rectangle.dense()
    large = lt.MatrixCompletion(np.arange(600), np.arange(600), np.ones(600), (600, 600))
    with pytest.raises(ValueError, match="at most 134217728 numbers, got 216000000"):
        large.dense()
    with pytest.raises(lt.AssumptionFails, match="symmetric sensors"):
        lt.sensing_decomposition(rectangle)
    with pytest.raises(lt.AssumptionFails, match="square layers"):
        lt.mirror_flow(lt.MatrixFactorizationNetwork.zeros(2, (2, 3)), rectangle)
    with pytest.raises(lt.AssumptionFails, match="singular vectors"):
        lt.MatrixFactorizationNetwork.zeros(2, (2, 3)).orthogonal_decomposition()
    network = lt.MatrixFactorizationNetwork.zeros(2, (2, 3))
    with pytest.raises(ValueError, match="coefficients"):
        lt.gradient_flow(network, lt.MatrixCompletion([0], [0], [1.0], (3, 2)))


def test_a_store_can_hold_a_completion():
    problem = lt.MatrixCompletion(np.arange(80) % 9, np.arange(80) // 9, np.ones(80), (9, 9))
    description, arrays = describe(problem)
    again = rebuild(description, arrays)
    assert again.entries == problem.entries
    assert hash(again.entries) == hash(problem.entries)
    assert eqx.tree_equal(again, problem)

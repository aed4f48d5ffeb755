"""Initial parameters: prescribed coefficients, conserved gaps, the conditions of the theorems."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Array

import lintensor_jax as lt
from lintensor_jax.initialization import balanced, gaussian, identity, matching, zero_last_layer
from lintensor_jax.networks.conserved import conserved_quantities

few = settings(max_examples=3, deadline=None, derandomize=True)
# Products of at most L = 4 numbers, each of a few ulp.
ROUNDING = 1e-13


def diagonal(depth, d):
    return lt.DiagonalNetwork.zeros(depth, d)


def full_conv(depth, d):
    return lt.ConvolutionalNetwork.zeros(d, (d,) * depth)


def short_conv(depth, d):
    return lt.ConvolutionalNetwork.zeros(d, (*(2,) * (depth - 1), d))


def fully_connected(depth, d):
    return lt.FullyConnectedNetwork.zeros((d,) * depth)


def wide(depth, d):
    return lt.FullyConnectedNetwork.zeros((d, d + 2, d + 1, d + 3)[:depth])


def tensor(depth, d, last=6, seed=3):
    shape = (*(2,) * (depth - 1), last, d)
    factors = [jnp.zeros(k) for k in shape[:-1]]
    return lt.TensorNetwork(jax.random.normal(jax.random.key(seed), shape), factors)


class Own(eqx.Module):
    """A user's network with factors and a constant scale: beta = u * v."""

    u: Array
    v: Array
    scale: Array = lt.constant()
    depth = 2

    def linear_coefficients(self):
        return self.scale * self.u * self.v

    @property
    def factors(self):
        return (self.u, self.v)

    def with_factors(self, factors):
        u, v = factors
        return Own(u, v, self.scale)


class Bare(eqx.Module):
    """A network without factors."""

    u: Array
    depth = 1

    def linear_coefficients(self):
        return self.u


ALL = [diagonal, full_conv, short_conv, fully_connected, wide, tensor]


def own():
    return Own(jnp.ones(3), jnp.zeros(3), jnp.array([1.0, 2.0, -3.0]))


@pytest.mark.parametrize("build", [*ALL, lambda depth, d: own()])
def test_gaussian_draws_every_parameter_once(build):
    like = build(3, 3)
    drawn = gaussian(like, jax.random.key(0), 0.1)
    assert jax.tree.structure(drawn) == jax.tree.structure(like)
    leaves = jax.tree.leaves(lt.networks.split(drawn)[0])
    values = np.concatenate([np.ravel(leaf) for leaf in leaves])
    assert len(set(values)) == values.size  # one key for all leaves would repeat numbers
    ten_times = gaussian(like, jax.random.key(0), 1.0)
    for small, large in zip(leaves, jax.tree.leaves(lt.networks.split(ten_times)[0]), strict=True):
        np.testing.assert_allclose(small, 0.1 * large, rtol=ROUNDING)
    if isinstance(like, Own):
        np.testing.assert_array_equal(drawn.scale, like.scale)


def test_gaussian_is_standard_normal():
    """The mean and variance of 20,000 draws are within five standard errors."""
    weights = gaussian(lt.DiagonalNetwork.zeros(2, 10_000), jax.random.key(1)).weights
    assert abs(float(weights.mean())) < 5 / np.sqrt(weights.size)
    assert abs(float(weights.var()) - 1) < 5 * np.sqrt(2 / weights.size)


@pytest.mark.parametrize("build", [*ALL, lambda depth, d: own()])
def test_zero_last_layer(build):
    net = gaussian(build(3, 3), jax.random.key(0))
    zeroed = zero_last_layer(net)
    np.testing.assert_array_equal(zeroed.linear_coefficients(), jnp.zeros(3))
    for before, after in zip(net.factors[:-1], zeroed.factors[:-1], strict=True):
        np.testing.assert_array_equal(before, after)
    np.testing.assert_array_equal(zeroed.factors[-1], 0 * net.factors[-1])


@pytest.mark.parametrize("depth", [2, 4])
@pytest.mark.parametrize("build", [diagonal, full_conv, short_conv, fully_connected, wide])
def test_identity_layers_leave_the_last_one_alone(build, depth):
    """With identity layers beta is the last layer, which is not zero here."""
    net = identity(build(depth, 3))
    np.testing.assert_array_equal(net.linear_coefficients(), jnp.zeros(3))
    last = jnp.zeros_like(net.factors[-1]).at[:3].set(jnp.array([1.0, -2.0, 3.0]))
    beta = net.with_factors((*net.factors[:-1], last)).linear_coefficients()
    np.testing.assert_array_equal(beta, [1.0, -2.0, 3.0])


@few
@given(
    depth=st.integers(2, 4),
    beta=st.lists(st.sampled_from([0.0, 1e-9, -0.3, 2.0, -50.0]), min_size=3, max_size=3),
)
@pytest.mark.parametrize("build", [diagonal, full_conv, fully_connected, wide])
def test_balanced_and_matching_reach_the_coefficients(build, depth, beta):
    beta = jnp.asarray(beta)
    size = float(jnp.abs(beta).max())
    start = balanced(build(depth, beta.size), beta)
    np.testing.assert_allclose(start.linear_coefficients(), beta, rtol=0, atol=ROUNDING * size)
    # Differences of squared parameters, which are at most |DFT beta|^(2/L).
    squared = (beta.size * size) ** (2 / depth)
    np.testing.assert_allclose(conserved_quantities(start), 0.0, rtol=0, atol=ROUNDING * squared)
    start = matching(build(depth, beta.size), beta, gap=0.5)
    np.testing.assert_allclose(
        start.linear_coefficients(), beta, rtol=0, atol=ROUNDING * (size + 1)
    )


def test_balanced_matrix_factorization():
    """It equals three fully connected layers of the same shapes, with a rank below d."""
    beta = jnp.array(np.outer([1.0, 2.0, -1.0], [0.3, -0.2, 0.5]))
    start = balanced(lt.MatrixFactorizationNetwork.zeros(3, 3), beta)
    assert isinstance(start, lt.MatrixFactorizationNetwork)
    np.testing.assert_allclose(start.linear_coefficients(), beta, rtol=0, atol=1e-14)
    for before, after in itertools.pairwise(start.weights):
        np.testing.assert_allclose(before.T @ before, after @ after.T, rtol=0, atol=1e-14)


def test_balanced_with_several_outputs():
    beta = jax.random.normal(jax.random.key(0), (4, 2)) @ jnp.array(
        [[1.0, 2.0, 3.0], [0.0, 1.0, 1.0]]
    )
    net = balanced(lt.FullyConnectedNetwork.zeros((4, 2, 5), 3), beta)
    np.testing.assert_allclose(net.linear_coefficients(), beta, rtol=0, atol=ROUNDING)
    np.testing.assert_allclose(conserved_quantities(net), 0.0, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("depth", [2, 3])
@pytest.mark.parametrize("gap", [1e-3, 1.0, 7.0])
def test_matching_gaps(depth, gap):
    """The differences of squares that the theorems compare, read from the definitions."""
    beta, d = jnp.array([0.7, -2.0, 0.0, 1e-8]), 4
    net = matching(diagonal(depth, d), beta, gap=gap)
    assert np.ptp(net.weights[:-1], axis=0).max() == 0
    np.testing.assert_allclose(net.weights[0] ** 2 - net.weights[-1] ** 2, gap, rtol=1e-10)

    net = matching(full_conv(depth, d), beta, gap=gap)
    unitary = np.abs(np.fft.fft(np.stack(net.filters), norm="ortho")) ** 2
    np.testing.assert_allclose(unitary[:-1] - unitary[-1], gap, rtol=1e-10)
    first = np.asarray(net.filters[0])
    np.testing.assert_allclose(first, np.roll(first[::-1], 1), rtol=0, atol=ROUNDING)  # even

    net = matching(fully_connected(depth, d), beta, gap=gap)
    *hidden, last = (np.asarray(w) for w in net.weights)
    smallest = np.linalg.eigvalsh(hidden[-1].T @ hidden[-1] - np.outer(last, last))[0]
    np.testing.assert_allclose(smallest, gap, rtol=1e-10)  # Theorem 7 with lambda = gap

    net = matching(tensor(depth, d), beta, gap=gap, key=jax.random.key(2))
    np.testing.assert_allclose(net.linear_coefficients(), beta, rtol=0, atol=1e-11)
    squares = [float(v @ v) for v in net.factors]
    for square, v in zip(squares[:-1], net.factors, strict=False):
        np.testing.assert_allclose(square / v.size - squares[-1], gap, rtol=1e-10)


def theorem_6_gap(net, x):
    """The smallest mean of [U_1^T v_1]_j^2 - [U_2^T v_2]_j^2 over a singular subspace of M(x)."""
    left, sizes, right = np.linalg.svd(np.asarray(net.data_tensor(x)), full_matrices=False)
    v1, v2 = (np.asarray(v) for v in net.factors)
    gaps = (left.T @ v1) ** 2 - (right @ v2) ** 2
    subspaces = [np.abs(sizes - s) < 1e-9 * sizes[0] for s in sizes if s > 1e-12 * sizes[0]]
    return min(gaps[subspace].mean() for subspace in subspaces)


@pytest.mark.parametrize("filter_length", [1, 2])
def test_matching_short_filters_satisfy_theorem_6_for_every_sample(filter_length):
    like = lt.ConvolutionalNetwork.zeros(4, (filter_length, 4))
    net = matching(like, jnp.array([0.7, -2.0, 0.0, 1e-8]), gap=0.3)
    samples = np.random.default_rng(0).normal(size=(20, 4))
    for x in (np.ones(4), np.eye(4)[0], *samples):
        assert theorem_6_gap(net, x) >= 0.3 - 1e-12


@pytest.mark.parametrize("build", [diagonal, full_conv, fully_connected, wide])
def test_matching_satisfies_theorem_6(build):
    """In every singular subspace the squares sum to more than 0: gap, or gap / d_2 if all equal."""
    net = matching(build(2, 4), jnp.array([0.7, -2.0, 0.1, 1e-8]), gap=0.3)
    width = net.weights[0].shape[1] if isinstance(net, lt.FullyConnectedNetwork) else 1
    for x in ([1.0, 2.0, -3.0, 0.5], [1.0, 1.0, 1.0, 1.0], [0.0, 1.0, 0.0, 2.0]):
        np.testing.assert_allclose(theorem_6_gap(net, np.array(x)), 0.3 / width, rtol=1e-10)


def test_the_same_coefficients_for_every_architecture():
    """Yun et al. 2021, section 6: beta(0) = alpha^2 z."""
    z, alpha = jnp.array([0.3, -0.8]), 0.01
    for build in ALL:
        net = matching(build(2, 2), z, key=jax.random.key(0)).scaled(alpha)
        np.testing.assert_allclose(net.linear_coefficients(), alpha**2 * z, rtol=1e-11)


def test_directions_come_from_the_template_without_a_key():
    like = gaussian(tensor(3, 4), jax.random.key(5))
    net = matching(like, jnp.arange(4.0))
    for ours, theirs in zip(net.factors[:-1], like.factors[:-1], strict=True):
        cosine = ours @ theirs / jnp.linalg.norm(ours) / jnp.linalg.norm(theirs)
        np.testing.assert_allclose(cosine, 1.0, rtol=ROUNDING)
    mine = matching(own(), jnp.array([1.0, 1.0, 3.0]))
    np.testing.assert_allclose(mine.linear_coefficients(), [1.0, 1.0, 3.0], rtol=ROUNDING)
    np.testing.assert_allclose(mine.u, mine.u[0], rtol=ROUNDING)


@pytest.mark.slow_beyond(5)
@pytest.mark.parametrize(
    ("build", "function"),
    [*((b, matching) for b in ALL), (diagonal, balanced), (full_conv, balanced), (wide, balanced)],
)
def test_traceable_and_precision_kept(build, function):
    """Inside jit and vmap arguments are not checked, and the values are the same."""
    like = gaussian(build(2, 3), jax.random.key(0))
    single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), like)
    beta = jnp.array([[0.3, -0.8, 0.1], [1.0, 2.0, 3.0]])
    batch = jax.jit(jax.vmap(lambda z: function(like, z).linear_coefficients()))(beta)
    np.testing.assert_allclose(batch, beta, rtol=0, atol=1e-11)
    assert function(single, beta[0]).linear_coefficients().dtype == jnp.float32
    assert gaussian(single, jax.random.key(0)).linear_coefficients().dtype == jnp.float32


BETA = jnp.ones(3)
SHORT = lt.ConvolutionalNetwork.zeros(3, (2, 3))
NARROW = lt.FullyConnectedNetwork.zeros((3, 2))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: zero_last_layer(Bare(BETA)), ["zero_last_layer", "`with_factors`", "a Bare"]),
        (
            lambda: identity(tensor(2, 3)),
            ["identity_start()", "Diagonal", "a TensorNetwork"],
        ),
        (lambda: identity(NARROW), ["identity", "as wide as", "d = 3", "[2]", "Widen"]),
        (lambda: balanced(SHORT, BETA), ["balanced_start", "with short filters", "matching"]),
        (lambda: balanced(tensor(2, 3), BETA), ["balanced", "a TensorNetwork", "matching"]),
        (
            lambda: balanced(lt.FullyConnectedNetwork.zeros((3, 1), 2), jnp.eye(3, 2)),
            ["balanced", "rank 2", "widths [1]", "widen"],
        ),
        (lambda: matching(diagonal(2, 3), jnp.ones(2)), ["coefficients", "(3,)", "(2,)"]),
        (lambda: matching(diagonal(2, 3), BETA * jnp.nan), ["coefficients must be finite"]),
        (lambda: matching(diagonal(2, 3), BETA, gap=0.0), ["gap must be positive", "0.0"]),
        (lambda: matching(diagonal(2, 3), BETA, gap=-1), ["gap must be positive", "-1"]),
        (lambda: matching(NARROW, BETA), ["matching", "as wide as", "d = 3", "[2]"]),
        (lambda: matching(Bare(BETA), BETA), ["matching", "`factors`", "a Bare"]),
        (lambda: matching(tensor(2, 3), BETA), ["must not be zero", "factors[0]", "key="]),
    ],
)
def test_bad_input_is_named(build, words):
    with pytest.raises(ValueError, match="must") as error:
        build()
    for word in words:
        assert word in str(error.value)


def test_coefficients_out_of_reach_come_with_their_distance():
    """With a last factor of length 1 only the points of one line can be reached."""
    like = lt.TensorNetwork(jnp.array([[[3.0, 4.0]]]), (jnp.ones(1), jnp.zeros(1)))
    with pytest.raises(ValueError, match="distance 5 from the nearest") as error:
        matching(like, jnp.array([3.0, 4.0]) + jnp.array([-4.0, 3.0]))
    assert "another key" in str(error.value)
    reached = matching(like, jnp.array([-6.0, -8.0]))
    np.testing.assert_allclose(reached.linear_coefficients(), [-6.0, -8.0], rtol=ROUNDING)


def test_identity_of_a_matrix_factorization_is_corollary_7s_start():
    network = lt.initialization.identity(lt.MatrixFactorizationNetwork([jnp.ones((3, 3))] * 3))
    first, second, last = network.weights
    np.testing.assert_array_equal(first, np.eye(3))
    np.testing.assert_array_equal(second, np.eye(3))
    np.testing.assert_array_equal(last, np.zeros((3, 3)))

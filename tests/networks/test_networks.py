"""Networks: the forward pass against the tensor form, coefficients, pullbacks, bad input."""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

import lintensor_jax as lt
from lintensor_jax.initialization import gaussian
from lintensor_jax.networks import coefficients_and_pullback, contractions, scaled, split

DIMENSION = 3
# Sums of at most a few hundred products of numbers of order one.
ROUNDING = 1e-12


def tensor_network(depth):
    sizes = (2, 3, 1, 2)[:depth]
    tensor = jax.random.normal(jax.random.key(9), (*sizes, DIMENSION))
    return lt.TensorNetwork(tensor, tuple(jnp.zeros(k) for k in sizes))


def conv(*lengths):
    return lt.ConvolutionalNetwork.zeros(DIMENSION, (*lengths, DIMENSION))


ARCHITECTURES = {
    "diagonal": lambda depth: lt.DiagonalNetwork.zeros(depth, DIMENSION),
    "conv-full": lambda depth: conv(*(DIMENSION,) * (depth - 1)),
    "conv-short": lambda depth: conv(*(2, 1, 3)[: depth - 1]),
    "fully-connected": lambda depth: lt.FullyConnectedNetwork.zeros((DIMENSION, 2, 4, 3)[:depth]),
    "vector-output": lambda depth: lt.FullyConnectedNetwork.zeros((DIMENSION, 2, 1, 3)[:depth], 2),
    "tensor": tensor_network,
}
BLOCKS = ["diagonal", "fully-connected", "vector-output"]


@functools.cache
def network(name, depth):
    return gaussian(ARCHITECTURES[name](depth), jax.random.key(0))


def sample(seed=5):
    return jax.random.normal(jax.random.key(seed), (DIMENSION,))


IN_NUMPY = {
    None: lambda h: h,
    jnp.tanh: np.tanh,
    jax.nn.relu: lambda h: np.maximum(h, 0),
    jax.nn.sigmoid: lambda h: 1 / (1 + np.exp(-h)),
    jax.nn.softplus: lambda h: np.logaddexp(h, 0),
}


def plain_forward(net, x, activation):
    """The network as in the paper, eqs. (3)-(5), in NumPy."""
    phi, hidden = IN_NUMPY[activation], np.asarray(x)
    layers = net.filters if isinstance(net, lt.ConvolutionalNetwork) else net.weights
    *inner, last = (np.asarray(w) for w in layers)
    for w in inner:
        match net:
            case lt.DiagonalNetwork():
                hidden = phi(hidden * w)
            case lt.FullyConnectedNetwork():
                hidden = phi(w.T @ hidden)
            case lt.ConvolutionalNetwork():
                hidden = phi(w @ np.stack([np.roll(hidden, -j) for j in range(w.size)]))
    return hidden @ last


@pytest.mark.slow_beyond(6)
@pytest.mark.parametrize("depth", [2, 3, 4])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_forward_pass_is_the_contraction_of_the_data_tensor(name, depth):
    net, x = network(name, depth), sample()
    tensor = net.data_tensor(x)
    assert tensor.shape[:depth] == tuple(v.shape[0] for v in net.factors)
    for activation in (None, jnp.tanh, jax.nn.relu):
        expected = contractions.contract(tensor, net.factors, activation)
        np.testing.assert_allclose(net(x, activation), expected, rtol=0, atol=ROUNDING)
        if name != "tensor":
            plain = plain_forward(net, x, activation)
            np.testing.assert_allclose(net(x, activation), plain, rtol=0, atol=ROUNDING)
    np.testing.assert_allclose(x @ net.linear_coefficients(), net(x), rtol=0, atol=ROUNDING)
    doubled = net.data_tensor(2 * x) - 2 * tensor
    np.testing.assert_allclose(doubled, jnp.zeros_like(doubled), rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("activation", [jax.nn.sigmoid, jax.nn.softplus])
@pytest.mark.parametrize(
    ("name", "depth"),
    [*((name, depth) for name in BLOCKS for depth in (3, 4)), ("vector-output", 2)],
)
def test_activations_without_zero_are_refused_where_the_tensor_form_fails(name, depth, activation):
    """Erratum to Yun et al. 2021, section 3: the zeros off the blocks become phi(0).

    With several outputs the data tensor has zeros off its blocks at L = 2 already.
    """
    net, x = network(name, depth), sample()
    at_zero = float(activation(0.0))
    for call in (net, eqx.filter_jit(net)):
        with pytest.raises(ValueError, match="activation: ") as error:
            call(x, activation)
        for word in (
            "phi(0) = 0",
            f"{at_zero:.6g}",
            f"depth {depth} >= 3" if depth > 2 else "2 > 1 outputs",
            "eq. 2",
            "tanh",
        ):
            assert word in str(error.value)
    contraction = contractions.contract(net.data_tensor(x), net.factors, activation)
    assert np.abs(contraction - plain_forward(net, x, activation)).max() > 1e-2


@pytest.mark.parametrize("activation", [jax.nn.sigmoid, jax.nn.softplus])
@pytest.mark.parametrize(
    ("name", "depth"),
    [("conv-full", 3), ("conv-short", 4), ("diagonal", 2), ("fully-connected", 2)],
)
def test_any_activation_agrees_for_convolutions_and_for_two_layers(name, depth, activation):
    net, x = network(name, depth), sample()
    contraction = contractions.contract(net.data_tensor(x), net.factors, activation)
    np.testing.assert_allclose(
        contraction, plain_forward(net, x, activation), rtol=0, atol=ROUNDING
    )
    np.testing.assert_allclose(contraction, net(x, activation), rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("depth", [2, 4])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_pullback_homogeneity_and_factors(name, depth):
    net = network(name, depth)
    beta = net.linear_coefficients()
    g = jnp.sin(jnp.arange(1.0, beta.size + 1)).reshape(beta.shape)

    @jax.jit
    def both(net, g):
        parameters, rest = split(net)
        _, vjp = jax.vjp(lambda p: eqx.combine(p, rest).linear_coefficients(), parameters)
        value, pullback = coefficients_and_pullback(net)
        return value, pullback(g), vjp(g)[0]

    value, ours, theirs = both(net, g)
    np.testing.assert_allclose(value, beta, rtol=0, atol=ROUNDING)
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=ROUNDING)
    assert net.depth == depth
    np.testing.assert_allclose(
        net.scaled(0.5).linear_coefficients(), 0.5**depth * beta, rtol=0, atol=ROUNDING
    )
    assert eqx.tree_equal(net.with_factors(net.factors), net)


def test_coefficients_of_the_three_architectures():
    w = jnp.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    np.testing.assert_array_equal(lt.DiagonalNetwork(w).linear_coefficients(), [4, 10, 18])
    conv_beta = lt.ConvolutionalNetwork(tuple(w)).linear_coefficients()
    np.testing.assert_array_equal(conv_beta, [31, 31, 28])  # e.g. 1*4 + 2*6 + 3*5
    fc = lt.FullyConnectedNetwork((w, jnp.array([1.0, 0.0, -1.0])))
    np.testing.assert_array_equal(fc.linear_coefficients(), [-2, -2])
    np.testing.assert_array_equal(fc.factors[0], [1, 4, 2, 5, 3, 6])  # columns are stacked


@pytest.mark.parametrize("width", [1, 4])
def test_two_layer_fully_connected_tensor_is_a_kronecker_product(width):
    net, x = lt.FullyConnectedNetwork.zeros((DIMENSION, width)), sample()
    expected = np.kron(np.eye(width), np.asarray(x)[:, None])
    np.testing.assert_array_equal(net.data_tensor(x), expected)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_networks_batch(name):
    like, x = ARCHITECTURES[name](3), sample()
    keys = jax.random.split(jax.random.key(1), 4)
    single = [gaussian(like, key) for key in keys]
    batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *single)
    outputs = eqx.filter_jit(eqx.filter_vmap(lambda net: net(x, jnp.tanh)))(batch)
    # The operations are the same, but they are fused in another way.
    expected = jnp.stack([net(x, jnp.tanh) for net in single])
    np.testing.assert_allclose(outputs, expected, rtol=0, atol=ROUNDING)


def test_precision_is_kept_and_integers_are_promoted():
    ones = np.ones((2, 3), np.float32)
    for net in (
        lt.DiagonalNetwork(ones),
        lt.ConvolutionalNetwork(ones),
        lt.FullyConnectedNetwork((ones.T, ones[:, 0])),
        lt.TensorNetwork(np.ones((3, 3, 2), np.float32), ones),
    ):
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(net))
        x = jnp.asarray(ones[0, : net.linear_coefficients().shape[0]])
        assert net(x, jnp.tanh).dtype == net.scaled(0.1)(x).dtype == jnp.float32
    assert lt.DiagonalNetwork([[1, 2], [3, 4]]).weights.dtype == jnp.float64
    assert lt.FullyConnectedNetwork(([[1, 2]], [3, 4])).weights[1].dtype == jnp.float64
    mixed = lt.ConvolutionalNetwork((np.ones(1, np.float32), np.ones(2)))
    assert {w.dtype for w in mixed.filters} == {np.dtype(np.float64)}


class Own(eqx.Module):
    """A user's network: no base class, a nested module and a constant."""

    u: Array
    inner: lt.DiagonalNetwork
    basis: Array = lt.constant()
    name: str = eqx.field(static=True, default="own")
    depth = 3

    def linear_coefficients(self):
        return self.basis @ (self.u * self.inner.linear_coefficients())


def own(seed=0):
    keys = jax.random.split(jax.random.key(seed), 3)
    u, weights, basis = (
        jax.random.normal(k, s) for k, s in zip(keys, [(2,), (2, 2), (4, 2)], strict=True)
    )
    return Own(u, lt.DiagonalNetwork(weights), basis)


def test_constants_are_no_parameters():
    parameters, rest = split(own())
    assert parameters.basis is None
    assert rest.basis is not None
    assert rest.u is None
    assert len(jax.tree.leaves(parameters)) == 2
    assert eqx.tree_equal(eqx.combine(parameters, rest), own())
    doubled = scaled(own(), 2.0)
    np.testing.assert_array_equal(doubled.basis, own().basis)
    np.testing.assert_allclose(
        doubled.linear_coefficients(), 8 * own().linear_coefficients(), rtol=ROUNDING
    )
    tensor_parameters, _ = split(tensor_network(2))
    assert tensor_parameters.tensor is None
    assert len(jax.tree.leaves(tensor_parameters)) == 2


class WithOtherLeaves(eqx.Module):
    """A network with functions and complex numbers among its leaves."""

    u: Array
    activation: Any
    phases: Array = lt.constant()
    link: Any = lt.constant()

    def linear_coefficients(self):
        return self.u


def test_functions_and_complex_constants_are_no_parameters():
    network = WithOtherLeaves(jnp.ones(2), jnp.tanh, jnp.ones(2) * 1j, abs)
    parameters, rest = split(network)
    assert len(jax.tree.leaves(parameters)) == 1
    assert parameters.u is network.u
    assert (rest.u, rest.link, rest.activation) == (None, abs, jnp.tanh)
    assert rest.phases is network.phases


def test_own_network_has_coefficients_and_pullback():
    net = own()
    beta, pullback = coefficients_and_pullback(net)
    g = jnp.arange(1.0, 5.0)
    gradient = pullback(g)
    pulled = np.asarray(net.basis).T @ np.asarray(g)
    w1, w2 = np.asarray(net.inner.weights)
    np.testing.assert_allclose(beta, net.basis @ (net.u * w1 * w2), rtol=ROUNDING)
    np.testing.assert_allclose(gradient.u, pulled * w1 * w2, rtol=ROUNDING)
    np.testing.assert_allclose(
        gradient.inner.weights, [pulled * net.u * w2, pulled * net.u * w1], rtol=ROUNDING
    )
    assert gradient.basis is None


def test_abstract_network_defines_only_the_linear_form():
    class Minimal(lt.AbstractNetwork):
        v: Array
        depth = 2  # pyright: ignore[reportAssignmentType]

        def linear_coefficients(self):
            return self.v**2

    net = Minimal(jnp.array([1.0, 2.0]))  # pyright: ignore[reportCallIssue]
    assert net(jnp.array([3.0, 1.0])) == 7.0
    _, pullback = coefficients_and_pullback(net.scaled(2.0))
    np.testing.assert_array_equal(pullback(jnp.ones(2)).v, [4.0, 8.0])
    with pytest.raises(ValueError, match="activation: Minimal defines only its linear form"):
        net(jnp.ones(2), jnp.tanh)


ONES = np.ones((2, 3))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: lt.DiagonalNetwork(np.ones(3)), ["weights must have 2 axes", "(3,)"]),
        (lambda: lt.DiagonalNetwork(ONES * np.nan), ["weights must be finite", "NaN"]),
        (lambda: lt.DiagonalNetwork(ONES * 1j), ["weights must hold real", "complex128"]),
        (lambda: lt.DiagonalNetwork(ONES[:1]), ["depth must be at least 2", "got 1"]),
        (lambda: lt.DiagonalNetwork(ONES[:, :0]), ["weights must not be empty", "(2, 0)"]),
        (lambda: lt.ConvolutionalNetwork(ONES[:1]), ["depth must be at least 2", "got 1"]),
        (
            lambda: lt.ConvolutionalNetwork((np.ones(4), np.ones(3))),
            ["filters[0] must be no longer", "d = 3", "length 4", "shorten"],
        ),
        (lambda: lt.ConvolutionalNetwork((ONES, np.ones(3))), ["filters[0] must have 1", "(2, 3)"]),
        (
            lambda: lt.ConvolutionalNetwork.zeros(3, (2, 2)),
            ["the last of lengths must be dimension = 3", "(2, 2)"],
        ),
        (
            lambda: lt.FullyConnectedNetwork((ONES, np.ones(2))),
            ["weights[0] has 3 columns", "weights[1] has 2 rows", "must agree"],
        ),
        (
            lambda: lt.FullyConnectedNetwork((np.ones(3), np.ones(3))),
            ["weights[0] must have 2 axes", "(3,)"],
        ),
        (lambda: lt.FullyConnectedNetwork((ONES,)), ["depth must be at least 2", "got 1"]),
        (
            lambda: lt.TensorNetwork(np.ones((2, 3, 4)), (np.ones(3), np.ones(3))),
            ["tensor must have shape", "k = (3, 3)", "got (2, 3, 4)", "transpose"],
        ),
        (
            lambda: lt.TensorNetwork(np.ones((3, 3)), (np.ones(3), np.ones(3))),
            ["tensor must have 3 axes", "(3, 3)"],
        ),
        (
            lambda: lt.TensorNetwork(np.ones((3, 4)), (np.ones(3),)),
            ["depth must be at least 2", "got 1"],
        ),
    ],
)
def test_bad_input_is_named(build, words):
    with pytest.raises(ValueError, match=r"Network|lengths") as error:
        build()
    for word in words:
        assert word in str(error.value)

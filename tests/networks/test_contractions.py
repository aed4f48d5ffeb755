"""The multilinear contractions against brute-force sums and against automatic differentiation."""

import itertools
import string

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lintensor_jax.networks import contractions

few = settings(max_examples=3, deadline=None, derandomize=True)
depths = st.integers(2, 4)
lengths = st.integers(1, 5)
# Rounding of sums of at most a few thousand products of numbers of order one is far below this.
ROUNDING = 1e-11


def normal(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def vectors(sizes, seed=0):
    return tuple(normal((n,), 10 * seed + layer) for layer, n in enumerate(sizes))


def assert_leave_one_out_is_the_derivative(contract, parameters, g):
    """`contract(parameters)` is (beta, leave_one_out); jax.vjp of beta alone is the oracle."""

    @jax.jit
    def both(parameters, g):
        _, vjp = jax.vjp(lambda p: contract(p)[0], parameters)
        return contract(parameters)[1](g), vjp(g)[0]

    ours, theirs = both(parameters, g)
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=ROUNDING, atol=ROUNDING)


def brute_force_convolution(filters, length):
    beta = np.zeros(length)
    for index in itertools.product(*(range(len(w)) for w in filters)):
        beta[sum(index) % length] += np.prod([w[j] for w, j in zip(filters, index, strict=True)])
    return beta


@few
@given(depth=depths, size=lengths)
def test_diagonal(depth, size):
    weights = jnp.stack(vectors((size,) * depth))
    beta, leave_one_out = contractions.diagonal(weights)
    np.testing.assert_allclose(beta, np.prod(weights, axis=0), rtol=ROUNDING)
    g = vectors((size,), seed=1)[0]
    gradients = leave_one_out(g)
    for layer in range(depth):
        others = np.prod(np.delete(np.asarray(weights), layer, axis=0), axis=0)
        np.testing.assert_allclose(gradients[layer], g * others, rtol=ROUNDING)
    assert_leave_one_out_is_the_derivative(contractions.diagonal, weights, g)


def test_products_of_others_do_not_divide():
    """With one zero factor, the product of the others is not zero; with two it is."""
    _, others = contractions.products_of_others(jnp.array([[0.0, 0.0], [2.0, 0.0], [3.0, 5.0]]))
    np.testing.assert_array_equal(others, [[6.0, 0.0], [0.0, 0.0], [0.0, 0.0]])


@few
@given(short=st.lists(lengths, min_size=1, max_size=3), size=lengths)
def test_convolution(short, size):
    filters = vectors([*(min(k, size) for k in short), size])
    beta, _ = contractions.convolution(filters, size)
    expected = brute_force_convolution([np.asarray(w) for w in filters], size)
    np.testing.assert_allclose(beta, expected, rtol=0, atol=ROUNDING)
    spectra = np.prod([np.fft.fft(w, n=size) for w in filters], axis=0)
    np.testing.assert_allclose(np.fft.fft(beta), spectra, rtol=0, atol=ROUNDING)
    g = vectors((size,), seed=1)[0]
    assert_leave_one_out_is_the_derivative(lambda f: contractions.convolution(f, size), filters, g)


@pytest.mark.parametrize("size", [1, 6, 7, 31])
def test_convolution_by_fft_and_by_table_agree(size):
    filters = vectors((max(1, size // 2), size, size))
    g = vectors((size,), seed=1)[0]
    table, fft = (
        form(filters, size)
        for form in (contractions._convolution_direct, contractions._convolution_by_fft)
    )
    np.testing.assert_allclose(table[0], fft[0], rtol=0, atol=ROUNDING)
    for ours, theirs in zip(table[1](g), fft[1](g), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=ROUNDING)


def test_long_filters_go_through_the_fft(monkeypatch):
    """Above the switch-over length `convolution` still has the values of the table."""
    size = contractions.DIRECT_CONVOLUTION_MAX_LENGTH + 1
    filters = vectors((3, size))
    called = []
    by_fft = contractions._convolution_by_fft
    monkeypatch.setattr(
        contractions, "_convolution_by_fft", lambda *a: called.append(1) or by_fft(*a)
    )
    beta, _ = contractions.convolution(filters, size)
    assert called == [1]
    np.testing.assert_allclose(
        beta, contractions._convolution_direct(filters, size)[0], rtol=0, atol=ROUNDING
    )


@few
@given(widths=st.lists(lengths, min_size=2, max_size=4), outputs=st.none() | st.integers(1, 3))
def test_matrix_chain(widths, outputs):
    shapes = [
        *itertools.pairwise(widths),
        (widths[-1],) if outputs is None else (widths[-1], outputs),
    ]
    weights = tuple(normal(shape, layer) for layer, shape in enumerate(shapes))
    beta, leave_one_out = contractions.matrix_chain(weights)
    expected = np.linalg.multi_dot([np.asarray(w) for w in weights])
    np.testing.assert_allclose(beta, expected, rtol=0, atol=ROUNDING)
    g = normal(beta.shape, seed=9)
    gradients = leave_one_out(g)
    columns = [np.asarray(w).reshape(w.shape[0], -1) for w in weights]
    for layer, w in enumerate(weights):
        before = np.eye(widths[0])
        for other in columns[:layer]:
            before = before @ other
        after = np.eye(columns[-1].shape[1])
        for other in reversed(columns[layer + 1 :]):
            after = other @ after
        brute = before.T @ np.asarray(g).reshape(widths[0], -1) @ after.T
        np.testing.assert_allclose(gradients[layer], brute.reshape(w.shape), rtol=0, atol=ROUNDING)
    assert_leave_one_out_is_the_derivative(contractions.matrix_chain, weights, g)


@few
@given(sizes=st.lists(st.integers(1, 4), min_size=2, max_size=5), inputs=st.integers(1, 3))
def test_data_tensor_network(sizes, inputs):
    """Every leave-one-out contraction against one einsum over the whole tensor."""
    tensor = normal((*sizes, inputs), seed=9)
    factors = vectors(sizes)
    beta, leave_one_out = contractions.data_tensor_network(tensor, factors)
    axes = string.ascii_lowercase[: len(sizes)]
    spec = f"{axes}z,{','.join(axes)}->z"
    np.testing.assert_allclose(beta, np.einsum(spec, tensor, *factors), rtol=0, atol=ROUNDING)
    g = vectors((inputs,), seed=1)[0]
    gradients = leave_one_out(g)
    assert len(gradients) == len(sizes)
    for layer, axis in enumerate(axes):
        others = [a for a in axes if a != axis]
        spec = f"{axes}z,{','.join(others)},z->{axis}"
        kept = [f for k, f in enumerate(factors) if k != layer]
        np.testing.assert_allclose(
            gradients[layer], np.einsum(spec, tensor, *kept, g), rtol=0, atol=ROUNDING
        )
    assert_leave_one_out_is_the_derivative(
        lambda f: contractions.data_tensor_network(tensor, f), factors, g
    )


def test_contract_applies_the_activation_between_contractions_only():
    """phi(M o v_1) o v_2: after the last contraction there is none (Yun et al. 2021, eq. 2)."""
    tensor = jnp.array([[1.0, -2.0], [3.0, -4.0]])
    v1, v2 = jnp.array([1.0, 1.0]), jnp.array([-1.0, 1.0])
    hidden = np.maximum([4.0, -6.0], 0.0)
    assert contractions.contract(tensor, (v1, v2), jax.nn.relu) == hidden @ v2
    assert contractions.contract(tensor, (v1, v2)) == np.array([4.0, -6.0]) @ v2

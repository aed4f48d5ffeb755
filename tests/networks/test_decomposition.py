"""Assumption 1: its bases are found if it holds; otherwise the refusal has the right reason."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lintensor_jax as lt

# The error of the bases is that of singular vectors of a random combination: rounding over the gap
# of its singular values, which is rarely below 1e-3 for at most ten of them.
FOUND = 1e-11


def reconstructed(found, dimension):
    return np.moveaxis(np.array([found.data_tensor(e) for e in np.eye(dimension)]), 0, -1)


def require_decomposition(found, tensor, unit=1.0):
    """Every clause of Assumption 1, by plain NumPy, for unit * tensor."""
    *lengths, d = tensor.shape
    m = found.S.shape[0]
    assert d <= m <= min(lengths)
    assert [u.shape for u in found.bases] == [(k, m) for k in lengths]
    assert np.linalg.matrix_rank(found.S / unit) == d
    for u in found.bases:
        np.testing.assert_allclose(u.conj().T @ u, np.eye(m), rtol=0, atol=1e-13)
    size = np.linalg.norm(tensor)
    assert np.linalg.norm(reconstructed(found, d) / unit - tensor) <= FOUND * size
    assert found.residual <= FOUND


def pieces(S, bases):
    """The dense tensor of eq. (9), without code of the package."""
    letters = "abcdef"[: len(bases)]
    terms = ",".join(f"{c}z" for c in letters)
    return np.einsum(f"zy,{terms}->{letters}y", S, *bases)


def orthonormal(rng, k, m):
    return np.linalg.qr(rng.standard_normal((k, m)))[0]


def as_network(tensor):
    tensor = np.asarray(tensor)
    return lt.TensorNetwork(tensor, [np.zeros(k) for k in tensor.shape[:-1]])


@pytest.mark.slow_beyond(7)
@pytest.mark.parametrize("depth", [2, 3, 4])
@pytest.mark.parametrize("name", ["diagonal", "conv-1", "conv-2", "conv-4", "conv-5"])
def test_closed_forms_and_the_test_without_hint(name, depth):
    d = 3 if name == "diagonal" else int(name[-1])
    if name == "diagonal":
        net = lt.DiagonalNetwork.zeros(depth, d)
    else:
        net = lt.ConvolutionalNetwork.zeros(d, (d,) * depth)
    tensor = np.asarray(lt.dense_tensor(net))
    closed = net.orthogonal_decomposition()
    assert closed.residual == 0
    require_decomposition(closed, tensor)
    found = as_network(tensor).orthogonal_decomposition()
    require_decomposition(found, tensor)
    assert found.is_real == closed.is_real == (name == "diagonal" or d <= 2)
    # Both are equal up to order and phases: |S x| are the singular values, which are unique.
    x = np.random.default_rng(0).standard_normal(d)
    ours, theirs = (np.sort(np.abs(one.S @ x)) for one in (found, closed))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("lengths", [(4, 4), (5, 7), (4, 6, 5), (5, 4, 4, 4)])
def test_random_orthogonal_pieces(lengths, seed):
    rng = np.random.default_rng(seed)
    tensor = pieces(rng.standard_normal((4, 3)), [orthonormal(rng, k, 4) for k in lengths])
    found = as_network(tensor).orthogonal_decomposition()
    assert found.is_real
    assert found.S.shape == (4, 3)
    require_decomposition(found, tensor)


@pytest.mark.parametrize("depth", [2, 3])
def test_singular_values_that_coincide_for_every_x(depth):
    """Rows of S agree up to sign: for L = 2 every basis of their span is right."""
    rng = np.random.default_rng(3)
    S = rng.standard_normal((4, 2))
    S[1], S[2] = S[0], -S[0]
    tensor = pieces(S, [orthonormal(rng, 5, 4) for _ in range(depth)])
    require_decomposition(as_network(tensor).orthogonal_decomposition(), tensor)
    # With one input M(x) is x I, or x times the superdiagonal tensor.
    tensor = pieces(np.ones((3, 1)), [np.eye(3)] * depth)
    require_decomposition(as_network(tensor).orthogonal_decomposition(), tensor)


@pytest.mark.parametrize("depth", [2, 3])
def test_complex_pieces_of_mixed_kind(depth):
    """A convolution beside a diagonal network, rotated: conjugate pairs and reals."""
    rng = np.random.default_rng(4)
    d = 3
    conv = np.asarray(lt.dense_tensor(lt.ConvolutionalNetwork.zeros(d, (d,) * depth)))
    mixed = np.zeros((d + 2,) * depth + (d,))
    mixed[(slice(d),) * depth] = conv
    for j in (d, d + 1):
        mixed[(j,) * depth] = rng.standard_normal(d)
    for mode in range(depth):
        turned = np.tensordot(orthonormal(rng, d + 3, d + 2), mixed, (1, mode))
        mixed = np.moveaxis(turned, 0, mode)
    found = as_network(mixed).orthogonal_decomposition()
    assert not found.is_real
    require_decomposition(found, mixed)


def test_found_pieces_make_an_orthogonal_network():
    net = lt.ConvolutionalNetwork([[1.0, 2.0, -1.0], [0.5, 1.0, 3.0], [1.0, 0.0, 2.0]])
    found = lt.decompose_tensor(lt.dense_tensor(net))
    same = lt.OrthogonalNetwork(found.S, found.bases, net.factors)
    np.testing.assert_allclose(
        same.linear_coefficients(), net.linear_coefficients(), rtol=0, atol=1e-12
    )
    np.testing.assert_allclose(same.orthogonal_decomposition().S, found.S)
    untied = lt.DifferentialDiagonalNetwork.zeros(3, 2)
    require_decomposition(untied.orthogonal_decomposition(), np.asarray(lt.dense_tensor(untied)))


def test_tolerance_and_dtype():
    rng = np.random.default_rng(5)
    exact = pieces(rng.standard_normal((3, 3)), [orthonormal(rng, 3, 3) for _ in range(2)])
    noise = rng.standard_normal(exact.shape)
    noisy = exact + 1e-6 * noise
    with pytest.raises(lt.AssumptionFails) as error:
        lt.decompose_tensor(noisy)
    value: Any = error.value.value
    assert 1e-8 < value < 1e-4
    found = lt.decompose_tensor(noisy, tolerance=1e-4)
    assert 1e-8 < found.residual < 1e-4
    single = lt.decompose_tensor(jnp.asarray(exact, jnp.float32))
    assert single.S.dtype == jnp.float32
    assert single.residual < 1e-6
    # The units of the tensor do not matter.
    require_decomposition(lt.decompose_tensor(2.0**-700 * exact), exact, 2.0**-700)


def random_tensor(*shape):
    return as_network(np.random.default_rng(6).standard_normal(shape))


def fixed_basis_one_side():
    """U_1 common to all x, the right singular vectors not."""
    rng = np.random.default_rng(7)
    tensor = pieces(rng.standard_normal((3, 3)), [np.eye(3), np.eye(3)])
    return as_network(np.einsum("bcy,cC->bCy", tensor, rng.standard_normal((3, 3))))


DEPENDS = "singular vectors that do not depend on x"
RANKS = "the same rank m of every mode of the data tensor"
WIDTH = "d <= m <= min_l k_l"
FAILURES = {
    "random-2": (lambda: random_tensor(3, 3, 3), DEPENDS, (0.05, 1)),
    "random-3": (lambda: random_tensor(3, 3, 3, 2), DEPENDS, (0.05, 1)),
    "two inputs": (lambda: random_tensor(3, 3, 2), DEPENDS, (0.01, 1)),
    "skew basis": (fixed_basis_one_side, DEPENDS, (0.01, 1)),
    "fully connected-2": (lambda: lt.FullyConnectedNetwork.zeros((3, 2)), WIDTH, (3, 2)),
    "square fully connected": (lambda: lt.FullyConnectedNetwork.zeros((2, 2)), RANKS, (4, 2)),
    "fully connected-3": (lambda: lt.FullyConnectedNetwork.zeros((2, 2, 2)), RANKS, (4, 2)),
    "bottleneck": (lambda: lt.FullyConnectedNetwork.zeros((2, 1, 2)), DEPENDS, (0.05, 1)),
    "short conv": (lambda: lt.ConvolutionalNetwork.zeros(4, (2, 4)), WIDTH, (4, 2)),
    "long short conv": (lambda: lt.ConvolutionalNetwork.zeros(999, (2, 2, 999)), WIDTH, (999, 2)),
    "low rank": (
        lambda: as_network(np.einsum("a,b,cy->abcy", np.ones(3), np.ones(3), np.eye(3))),
        RANKS,
        (1, 1, 3),
    ),
    "lost input": (
        lambda: as_network(np.multiply.outer(np.eye(3), np.array([1.0, 0.0]))),
        "S has full column rank",
        (-1, 1e-15),
    ),
    "zero": (lambda: as_network(np.zeros((2, 2, 2))), "S has full column rank", (-1, 1e-15)),
    "vector output": (
        lambda: lt.FullyConnectedNetwork.zeros((3, 3), 2),
        "a scalar output for vector inputs",
        (3, 2),
    ),
    "matrix factorization": (
        lambda: lt.MatrixFactorizationNetwork.zeros(3, 2),
        "singular vectors that do not depend on A",
        (0.49, 0.51),
    ),
}


@pytest.mark.parametrize("case", FAILURES)
def test_refused_with_the_reason(case):
    build, violated, value = FAILURES[case]
    with pytest.raises(lt.AssumptionFails) as error:
        build().orthogonal_decomposition()
    assert error.value.violated == violated
    measured: Any = error.value.value
    if isinstance(measured, float):
        low, high = value
        assert low < measured < high
        shown = f"{measured:.3g}"
    else:
        # For the deep network these are the ranks of all modes; the first and the last are checked.
        assert measured == value or (measured[0], measured[-1]) == value
        shown = str(measured)
    for word in (violated, shown, "Yun et al. 2021"):
        assert word in str(error.value)


def test_one_input_makes_narrow_networks_decomposable():
    tensor = lt.dense_tensor(lt.FullyConnectedNetwork.zeros((1, 3)))
    found = lt.FullyConnectedNetwork.zeros((1, 3)).orthogonal_decomposition()
    require_decomposition(found, np.asarray(tensor))
    single = lt.MatrixFactorizationNetwork.zeros(3, 1).orthogonal_decomposition()
    np.testing.assert_array_equal(single.data_tensor(jnp.array([2.0])), np.full((1, 1, 1), 2.0))


BAD = {
    "few axes": (lambda: lt.decompose_tensor(np.eye(2)), ("3 axes", "(2, 2)")),
    "nan": (lambda: lt.decompose_tensor(np.full((2, 2, 2), np.nan)), ("tensor must be finite",)),
    "tolerance": (
        lambda: lt.decompose_tensor(np.ones((2, 2, 2)), tolerance=0.0),
        ("tolerance must be between 0 and 1", "0.0", "leave it out"),
    ),
    "traced": (
        lambda: jax.jit(lambda t: lt.decompose_tensor(t).S)(np.ones((2, 2, 2))),
        ("concrete", "traced", "outside"),
    ),
    "large": (
        lambda: lt.dense_tensor(lt.DiagonalNetwork.zeros(5, 50)),
        (f"at most {2**24}", f"{50**6}", "smaller"),
    ),
    "traced sensors": (
        lambda: jax.jit(
            lambda A: lt.sensing_decomposition(lt.MatrixSensing(A, np.ones(2))).eigenvalues
        )(np.ones((2, 2, 2))),
        ("concrete sensors", "traced", "outside"),
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case):
    call, words = BAD[case]
    with pytest.raises(ValueError, match=r"tensor|sensing") as error:
        call()
    for word in words:
        assert word in str(error.value)


# Matrix sensing


def commuting(X, seed=0):
    basis = orthonormal(np.random.default_rng(seed), X.shape[1], X.shape[1])
    return np.einsum("ka,na,la->nkl", basis, X, basis)


def eigenvalue_tables():
    rng = np.random.default_rng(8)
    repeated = rng.integers(-1, 2, (4, 6)).astype(float)
    common = repeated.copy()
    common[:, 3] = common[:, 1]
    return {
        "generic": rng.standard_normal((5, 6)),
        "repeated in each": repeated,
        "repeated in all": common,
        "sizes apart": rng.standard_normal((3, 6)) * np.array([[1e-9], [1.0], [1e9]]),
        "one zero": np.stack([np.zeros(6), rng.standard_normal(6)]),
        "identity": np.ones((1, 6)),
    }


@pytest.mark.parametrize("name", eigenvalue_tables())
def test_commuting_sensors(name):
    X = eigenvalue_tables()[name]
    problem = lt.MatrixSensing(commuting(X), np.ones(len(X)))
    found = lt.sensing_decomposition(problem)
    U = np.asarray(found.basis)
    np.testing.assert_allclose(U.T @ U, np.eye(6), rtol=0, atol=1e-13)
    sizes = np.linalg.norm(problem.A, axis=(1, 2))[:, None, None]
    scale = np.where(sizes > 0, sizes, 1)
    rebuilt = np.stack([found.coefficients(row) for row in found.eigenvalues])
    np.testing.assert_allclose(rebuilt / scale, problem.A / scale, rtol=0, atol=1e-11)
    assert found.residual <= 1e-11
    # All rows have one order: the set of columns of X is recovered. With sorted rows it is not.
    scale = scale[:, :, 0]
    for ours, theirs in ((found.eigenvalues, X), (X, found.eigenvalues)):
        for column in (ours / scale).T:
            assert np.abs(theirs / scale - column[:, None]).max(axis=0).min() < 1e-10


def test_non_commuting_sensors_are_measured():
    first, second = np.diag([1.0, -1.0]), np.array([[0.0, 1.0], [1.0, 0.0]])
    problem = lt.MatrixSensing(np.stack([first, np.eye(2), 5 * second]), np.ones(3))
    with pytest.raises(lt.AssumptionFails) as error:
        lt.sensing_decomposition(problem)
    assert error.value.violated == "commuting sensors"
    # |[sigma_z, sigma_x]| = |2 i sigma_y| = 2 sqrt 2, over 2 |sigma|^2 = 4.
    np.testing.assert_allclose(error.value.value, np.sqrt(0.5), rtol=1e-12)
    for word in ("0.707", "A[0] and A[2]", "worst pair", "Corollary 7"):
        assert word in str(error.value)
    slightly = np.stack([first, np.eye(2) * 3 + 1e-5 * second])
    with pytest.raises(lt.AssumptionFails) as error:
        lt.sensing_decomposition(lt.MatrixSensing(slightly, np.ones(2)))
    value: Any = error.value.value
    assert 1e-6 < value < 1e-4


def test_asymmetric_sensors_are_measured():
    tilted = np.stack([np.eye(2), np.array([[0.0, 1.0], [0.0, 0.0]])])
    with pytest.raises(lt.AssumptionFails) as error:
        lt.sensing_decomposition(lt.MatrixSensing(tilted, np.ones(2)))
    assert error.value.violated == "symmetric sensors"
    np.testing.assert_allclose(error.value.value, np.sqrt(0.5), rtol=1e-12)
    for word in ("0.707", "A[1]", "Corollary 7"):
        assert word in str(error.value)

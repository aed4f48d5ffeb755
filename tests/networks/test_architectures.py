"""Orthogonally decomposable, differential and factorization networks, and matrix sensing."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linprog

import lintensor_jax as lt
from lintensor_jax.dynamics.system import prediction_range
from lintensor_jax.initialization import gaussian, zero_last_layer
from lintensor_jax.networks import contractions, split
from lintensor_jax.networks.conserved import conserved_quantities

D = 3
# Sums of at most a few hundred products of numbers of order one.
ROUNDING = 1e-12


def orthonormal(rows, columns, seed):
    return jnp.linalg.qr(jax.random.normal(jax.random.key(seed), (rows, columns)))[0]


def real_orthogonal(depth):
    S = jax.random.normal(jax.random.key(50), (D + 1, D))
    bases = [orthonormal(k, D + 1, k) for k in (4, 6, 5, 4)[:depth]]
    return lt.OrthogonalNetwork.zeros(S, bases)


def complex_orthogonal(depth):
    found = lt.ConvolutionalNetwork.zeros(D, (D,) * depth).orthogonal_decomposition()
    return lt.OrthogonalNetwork.zeros(found.S, found.bases)


TEMPLATES = {
    "orthogonal-real": real_orthogonal,
    "orthogonal-complex": complex_orthogonal,
    "differential": lambda depth: lt.DifferentialDiagonalNetwork.zeros(depth, D),
    "factorization": lambda depth: lt.MatrixFactorizationNetwork.zeros(depth, D),
}
CASES = pytest.mark.parametrize("name", TEMPLATES)


def network(name, depth, seed=0):
    return gaussian(TEMPLATES[name](depth), jax.random.key(seed))


def sample(net, seed=5):
    return jax.random.normal(jax.random.key(seed), net.linear_coefficients().shape)


@pytest.mark.slow_beyond(3)
@pytest.mark.parametrize("depth", [2, 3])
@CASES
def test_forward_pass_is_the_contraction_of_the_data_tensor(name, depth):
    net = network(name, depth)
    x = sample(net)
    tensor = net.data_tensor(x)
    assert tensor.shape == tuple(len(v) for v in net.factors)
    assert not jnp.iscomplexobj(tensor)
    for activation in (None, jnp.tanh, jax.nn.relu):
        expected = contractions.contract(tensor, net.factors, activation)
        np.testing.assert_allclose(net(x, activation), expected, rtol=0, atol=ROUNDING)
    np.testing.assert_allclose(
        jnp.sum(x * net.linear_coefficients()), net(x), rtol=0, atol=ROUNDING
    )
    # The output is linear in x, so it is compared at another point, too.
    other = sample(net, 6)
    np.testing.assert_allclose(
        net.data_tensor(2 * x - other), 2 * tensor - net.data_tensor(other), rtol=0, atol=ROUNDING
    )


@pytest.mark.parametrize("depth", [2, 4])
@CASES
def test_pullback_homogeneity_and_factors(name, depth):
    net = network(name, depth)
    parameters, rest = split(net)
    beta, pullback = net.coefficients_and_pullback()
    expected, vjp = jax.vjp(lambda p: eqx.combine(p, rest).linear_coefficients(), parameters)
    np.testing.assert_allclose(beta, expected, rtol=0, atol=ROUNDING)
    g = sample(net, 7)
    ours, theirs = pullback(g), vjp(g)[0]
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=ROUNDING)
    assert net.depth == depth
    scaled = net.scaled(0.5)
    np.testing.assert_allclose(scaled.linear_coefficients(), beta / 2**depth, rtol=0, atol=ROUNDING)
    again = zero_last_layer(net) if name != "differential" else net
    assert jax.tree.structure(again) == jax.tree.structure(net)
    again = again.with_factors(net.factors)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), again, net))


@CASES
def test_vmap_over_networks_equals_a_loop(name):
    nets = [network(name, 3, seed) for seed in range(3)]
    parameters, rest = zip(*(split(net) for net in nets), strict=True)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *parameters)
    x = sample(nets[0])

    @jax.jit
    @jax.vmap
    def outputs(p):
        net = eqx.combine(p, rest[0])
        # with_factors validates its arguments; it must accept tracers.
        return net.with_factors(net.factors)(x), conserved_quantities(net)

    values, conserved = outputs(stacked)
    np.testing.assert_allclose(values, jnp.stack([net(x) for net in nets]), rtol=0, atol=ROUNDING)
    expected = jnp.stack([conserved_quantities(net) for net in nets])
    np.testing.assert_allclose(conserved, expected, rtol=0, atol=ROUNDING)


SIZES = {
    "orthogonal-real": lambda depth: (depth - 1) * (D + 1),
    "orthogonal-complex": lambda depth: (depth - 1) * D,
    "differential": lambda depth: D,
    "factorization": lambda depth: (depth - 1) * D**2,
}


@pytest.mark.parametrize("depth", [2, 3, 4])
@CASES
def test_no_loss_changes_the_conserved_quantities(name, depth):
    net = network(name, depth)
    if name == "differential":  # positive entries: elsewhere some are constant by definition
        net = jax.tree.map(jnp.abs, net)
    parameters, rest = split(net)
    beta, vjp = jax.vjp(lambda p: eqx.combine(p, rest).linear_coefficients(), parameters)
    velocity = vjp(jax.random.normal(jax.random.key(1), beta.shape))[0]

    def measured(p):
        return conserved_quantities(eqx.combine(p, rest))

    value, change = jax.jvp(measured, (parameters,), (velocity,))
    assert value.shape == (SIZES[name](depth),)
    np.testing.assert_allclose(change, jnp.zeros_like(change), rtol=0, atol=ROUNDING)
    # A direction that is no gradient does change them, and they scale as squared parameters.
    wrong = jax.tree.map(jnp.ones_like, parameters)
    assert np.abs(jax.jvp(measured, (parameters,), (wrong,))[1]).max() > 1e-2
    np.testing.assert_allclose(
        conserved_quantities(net.scaled(3.0)), 9 * value, rtol=0, atol=ROUNDING
    )


def test_differential_conserved_quantity_is_finite_everywhere():
    """F1: the sum of w^{2-L}, as a squared mean; alpha^2 where both layers are alpha."""
    for depth in (2, 3, 5):
        both = lt.DifferentialDiagonalNetwork(jnp.full(2, 0.3), jnp.full(2, 0.3), depth)
        np.testing.assert_allclose(both.conserved_quantities(), [0.09, 0.09], rtol=1e-14)
    ends = lt.DifferentialDiagonalNetwork([1e-200, 0.0, 0.0, 2.0], [1.0, 0.0, 1.0, -1.0], 3)
    # At L = 3 the value is (2 small)^2 for a small smaller entry, which underflows to zero.
    np.testing.assert_array_equal(ends.conserved_quantities(), [0, 0, 0, 0])
    even = lt.DifferentialDiagonalNetwork([2.0], [-1.0], 4)
    np.testing.assert_allclose(even.conserved_quantities(), [2 / (1 / 4 + 1)], rtol=1e-14)


def test_an_orthogonal_network_is_a_convolution_in_another_basis():
    conv = gaussian(lt.ConvolutionalNetwork.zeros(5, (5, 5, 5)), jax.random.key(2))
    found = conv.orthogonal_decomposition()
    same = lt.OrthogonalNetwork(found.S, found.bases, conv.factors)
    np.testing.assert_allclose(
        same.linear_coefficients(), conv.linear_coefficients(), rtol=0, atol=ROUNDING
    )
    assert not same.orthogonal_decomposition().is_real
    assert all(v.dtype == jnp.float64 for v in same.factors)


def test_float32_stays_float32():
    found = lt.ConvolutionalNetwork.zeros(4, (4, 4)).orthogonal_decomposition()
    S, *bases = (jnp.asarray(a, jnp.complex64) for a in (found.S, *found.bases))
    net = lt.OrthogonalNetwork(S, bases, [jnp.ones(4, jnp.float32)] * 2)
    assert net.linear_coefficients().dtype == jnp.float32
    assert net.factors[0].dtype == jnp.float32


@pytest.mark.parametrize("activation", [jax.nn.sigmoid])
def test_activations_without_zero(activation):
    """Two layers of a matrix factorization have no zeros off their blocks; three have."""
    two, three = (network("factorization", depth) for depth in (2, 3))
    x = sample(two)
    expected = contractions.contract(two.data_tensor(x), two.factors, activation)
    np.testing.assert_allclose(two(x, activation), expected, rtol=0, atol=ROUNDING)
    for net in (three, network("differential", 3)):
        with pytest.raises(ValueError, match=r"activation: .*phi\(0\) = 0, got phi\(0\) = 0.5"):
            net(sample(net), activation)


@pytest.mark.slow
def test_wanted_sparsity_by_design():
    """Remark 3: with spikes and steps as rows of S the flow finds a beta of few spikes and steps.

    The oracle is the linear program min ||rho||_1 subject to X S^T rho = y. At a finite scale
    alpha the flow minimises log(1/alpha^2) ||rho||_1 plus an entropy (Theorem 5, L = 2), which
    among m terms of a given sum varies by ||rho||_1 log m.
    """
    d, scale = 6, 1e-2
    m = 2 * d - 1
    S = jnp.concatenate([jnp.eye(d), jnp.tril(jnp.ones((d, d)))[1:]])
    X = jax.random.normal(jax.random.key(9), (3, d))
    problem = lt.Regression(X, X @ (2 * S[d + 1] - S[0]))
    start = scale * jnp.ones(m)
    net = lt.OrthogonalNetwork(S, (jnp.eye(m), jnp.eye(m)), (start, 0 * start))
    end: Any = lt.gradient_flow(net, problem).network
    rho = np.prod(np.asarray(end.components), axis=0)
    np.testing.assert_allclose(X @ S.T @ rho, problem.y, rtol=0, atol=1e-8)
    rows = np.asarray(X @ S.T)
    least = linprog(np.ones(2 * m), A_eq=np.hstack([rows, -rows]), b_eq=problem.y).fun
    bound = least * (1 + np.log(m) / np.log(1 / scale**2))
    assert least * (1 - 1e-8) <= np.abs(rho).sum() <= bound
    # Neither the minimum-norm beta nor the minimum-norm rho has such a small norm.
    assert np.abs(np.linalg.pinv(rows) @ problem.y).sum() > bound
    assert np.abs(np.linalg.pinv(X) @ problem.y).sum() > bound


# Matrix sensing


def test_matrix_sensing_is_the_regression_of_vectorised_matrices():
    A = jax.random.normal(jax.random.key(0), (4, D, D))
    y = jax.random.normal(jax.random.key(1), (4,))
    beta = jax.random.normal(jax.random.key(2), (D, D))
    problem = lt.MatrixSensing(A, y)
    flat = lt.Regression(A.reshape(4, -1), y)
    assert problem.coefficient_shape == (D, D)
    np.testing.assert_allclose(problem.predictions(beta), flat.predictions(beta.ravel()))
    np.testing.assert_allclose(problem.adjoint(y), flat.adjoint(y).reshape(D, D))
    np.testing.assert_allclose(problem.loss(beta), flat.loss(beta.ravel()))
    gradient = jax.grad(problem.loss)(beta)
    np.testing.assert_allclose(
        problem.adjoint(problem.residual(beta)), gradient, rtol=0, atol=ROUNDING
    )
    ours, theirs = prediction_range(problem), prediction_range(flat)
    np.testing.assert_allclose(ours @ ours.T, theirs @ theirs.T, rtol=0, atol=ROUNDING)
    # Sensors are repeated: no beta has different predictions for equal sensors.
    ours = prediction_range(lt.MatrixSensing(A[jnp.array([0, 0, 1])], y[:3]))
    np.testing.assert_allclose(
        ours @ ours.T @ jnp.array([1.0, -1.0, 0.0]), jnp.zeros(3), rtol=0, atol=1e-9
    )


@pytest.mark.slow
def test_flow_with_commuting_sensors_is_that_of_a_diagonal_network():
    """Corollary 7: both flows by the same integrator, in d^2 L and in d L unknowns."""
    basis = orthonormal(D, D, 3)
    X = jnp.array([[1.0, 1.0, 0.4], [-0.3, -0.3, 0.8]])  # one eigenvalue repeated throughout
    problem = lt.MatrixSensing(jnp.einsum("ka,na,la->nkl", basis, X, basis), [1.0, -0.5])
    found = lt.sensing_decomposition(problem)
    start = 0.5 * jnp.eye(D)
    full = lt.MatrixFactorizationNetwork((start, start, 0 * start))
    small = lt.DiagonalNetwork(jnp.stack([jnp.diag(w) for w in full.weights]))
    end: Any = lt.gradient_flow(full, problem).network
    reduced: Any = lt.gradient_flow(small, lt.Regression(found.eigenvalues, problem.y)).network
    np.testing.assert_allclose(
        end.linear_coefficients(),
        found.coefficients(reduced.linear_coefficients()),
        rtol=0,
        atol=1e-7,  # both at rtol 1e-8
    )


# Bad input

EYE = np.eye(2)
ONES = np.ones(2)
BAD = {
    "lopsided basis": (
        lambda: lt.OrthogonalNetwork(EYE, (EYE, EYE * 1.5), (ONES, ONES)),
        ("bases[1]", "orthonormal columns", "|U^H U - I| = 1.25", "qr"),
    ),
    "wide basis": (
        lambda: lt.OrthogonalNetwork(EYE, (EYE, np.ones((2, 3))), (ONES, ONES)),
        ("bases[1]", "m = 2", "(2, 3)"),
    ),
    "few rows": (
        lambda: lt.OrthogonalNetwork(EYE[:1], (EYE, EYE), (ONES, ONES)),
        ("S must", "m >= d", "(1, 2)", "transpose"),
    ),
    "dependent columns": (
        lambda: lt.OrthogonalNetwork(np.ones((2, 2)), (EYE, EYE), (ONES, ONES)),
        ("S must", "full column rank", "/ 2;", "remove"),
    ),
    "imaginary tensor": (
        lambda: lt.OrthogonalNetwork(1j * EYE, (EYE, EYE), (ONES, ONES)),
        ("real data tensor", "imaginary part 1 ", "conjugate pairs"),
    ),
    "complex factors": (
        lambda: lt.OrthogonalNetwork(EYE, (EYE, EYE), (ONES, 1j * ONES)),
        ("factors[1]", "real numbers", "complex128"),
    ),
    "factor lengths": (
        lambda: lt.OrthogonalNetwork(EYE, (EYE, EYE), (ONES, np.ones(3))),
        ("factors", "[2, 2]", "[2, 3]", "resize"),
    ),
    "missing factor": (
        lambda: lt.OrthogonalNetwork(EYE, (EYE, EYE), (ONES, ONES)).with_factors((ONES,)),
        ("factors", "[2, 2]", "[2]"),
    ),
    "infinite S": (
        lambda: lt.OrthogonalNetwork(np.full((2, 2), np.inf), (EYE, EYE), (ONES, ONES)),
        ("S must be finite",),
    ),
    "one layer": (
        lambda: lt.OrthogonalNetwork(EYE, (EYE,), (ONES,)),
        ("depth must be at least 2", "1"),
    ),
    "differential shapes": (
        lambda: lt.DifferentialDiagonalNetwork(ONES, np.ones(3), 2),
        ("positive and negative", "(2,) and (3,)"),
    ),
    "differential depth": (
        lambda: lt.DifferentialDiagonalNetwork(ONES, ONES, 2.5),  # pyright: ignore
        ("depth must be a whole number", "2.5"),
    ),
    "shallow differential": (
        lambda: lt.DifferentialDiagonalNetwork(ONES, ONES, 1),
        ("depth must be at least 2", "1"),
    ),
    "untied": (
        lambda: zero_last_layer(lt.DifferentialDiagonalNetwork(ONES, ONES, 2)),
        ("2 equal vectors", "differ by up to 1;", "tied", "DiagonalNetwork"),
    ),
    "layers that do not meet": (
        lambda: lt.MatrixFactorizationNetwork((EYE, np.ones((3, 2)))),
        ("weights[0] has 2 columns", "weights[1] has 3 rows", "neighbouring"),
    ),
    "single matrix": (
        lambda: lt.MatrixFactorizationNetwork((EYE,)),
        ("depth must be at least 2", "1"),
    ),
    "flat sensors": (
        lambda: lt.MatrixSensing(EYE, ONES),
        ("A must have 3 axes", "(2, 2)"),
    ),
    "rectangular sensors": (
        lambda: lt.MatrixSensing(np.ones((2, 3, 2)), ONES),
        ("A must hold square sensors", "(2, 3, 2)", "pad"),
    ),
    "sensor count": (
        lambda: lt.MatrixSensing(np.ones((3, 2, 2)), ONES),
        ("A and y", "3 and 2"),
    ),
    "infinite sensor": (
        lambda: lt.MatrixSensing(np.full((2, 2, 2), np.nan), ONES),
        ("A must be finite", "nan", "[0, 0, 0]"),
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case):
    build, words = BAD[case]
    with pytest.raises(ValueError, match=r"Network|MatrixSensing") as error:
        build()
    for word in words:
        assert word in str(error.value)

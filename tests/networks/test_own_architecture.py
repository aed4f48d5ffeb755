"""A user's network with closed forms as methods has all functions that a DiagonalNetwork has.

The network is that of docs/extending.md: two layers in an orthonormal basis B. It equals the
DiagonalNetwork with the same layers, on the data X B^T.
"""

import re
from pathlib import Path

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

import lintensor_jax as lt
from lintensor_jax import initialization
from lintensor_jax.networks.closed_forms import architectures_with
from lintensor_jax.theory import landscape_point

D = 6
RNG = np.random.default_rng(1)
BETA = jnp.asarray(RNG.standard_normal(D))
X = RNG.standard_normal((3, D))
REGRESSION = lt.Regression(X, RNG.standard_normal(3))
ROUNDING = 1e-13


@pytest.fixture(scope="module")
def page():
    """The names that the page's program defines; its assertions have passed."""
    text = (Path(__file__).parents[2] / "docs" / "extending.md").read_text()
    section = text.split("\n## An architecture\n")[1].split("\n## ")[0]
    [program] = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    scope = {}
    exec(compile(program, "extending.md", "exec"), scope)
    return scope


@pytest.fixture(scope="module")
def own(page):
    return page["template"]


@pytest.fixture(scope="module")
def basis(page):
    return page["basis"]


DIAGONAL = lt.DiagonalNetwork.zeros(2, D)


def layers(network):
    """The layers, up to signs that both layers share."""
    u, v = network.factors
    signs = jnp.sign(jnp.where(v != 0, v, u))
    return np.asarray([signs * u, signs * v])


@pytest.mark.slow_beyond(1)
@pytest.mark.parametrize("function", [initialization.balanced, initialization.matching])
def test_starts(own, basis, function):
    mine, theirs = function(own, BETA), function(DIAGONAL, basis @ BETA)
    np.testing.assert_allclose(mine.linear_coefficients(), BETA, rtol=0, atol=ROUNDING)
    np.testing.assert_allclose(layers(mine), layers(theirs), rtol=0, atol=ROUNDING)


def test_starts_without_coefficients(own):
    for function in (initialization.identity, initialization.zero_last_layer):
        np.testing.assert_array_equal(layers(function(own)), layers(function(DIAGONAL)))
    with pytest.raises(ValueError, match=r"coefficients must have shape \(6,\)"):
        initialization.balanced(own, BETA[:3])


def test_induced_regularizer(own, basis):
    value = lt.induced_regularizer(own, BETA)
    np.testing.assert_allclose(value, lt.induced_regularizer(DIAGONAL, basis @ BETA), rtol=ROUNDING)
    mine = lt.minimal_network(own, BETA)
    np.testing.assert_allclose(mine.linear_coefficients(), BETA, rtol=0, atol=ROUNDING)
    np.testing.assert_allclose(mine.u @ mine.u + mine.v @ mine.v, value, rtol=ROUNDING)
    with pytest.raises(ValueError, match="induced_regularizer: beta must be finite"):
        lt.induced_regularizer(own, BETA * np.nan)


@pytest.mark.slow
def test_mirror_flow(own, basis):
    start, theirs = (
        initialization.matching(own, BETA),
        initialization.matching(DIAGONAL, basis @ BETA),
    )
    problem = lt.Regression(X @ basis.T, REGRESSION.y)
    times = jnp.array([0.02, 0.2])
    mine = lt.mirror_flow(start, REGRESSION, saveat=times)
    diagonal = lt.mirror_flow(theirs, problem, saveat=times)
    np.testing.assert_allclose(mine.coefficients @ basis.T, diagonal.coefficients, atol=1e-7)
    np.testing.assert_allclose(mine.log_time[:-1], diagonal.log_time[:-1], rtol=0, atol=1e-12)
    assert mine.invariant_drift[-1] < 1e-12


@pytest.mark.slow
def test_mirror_flow_without_coordinates_of_the_networks(own, basis):
    """If the network states no coordinates, its decomposition gives them."""
    start, times = initialization.matching(own, BETA), jnp.array([0.02, 0.2])
    mine = lt.mirror_flow(start, REGRESSION, saveat=times)
    default = lt.mirror_flow(Decomposed(start.u, start.v, basis), REGRESSION, saveat=times)
    np.testing.assert_allclose(mine.coefficients, default.coefficients, atol=1e-7)


def test_certificates(own, basis):
    separator = RNG.standard_normal(D)
    problem = lt.Classification(X, np.sign(X @ separator))
    rotated = lt.Classification(X @ basis.T, problem.y)
    best = np.asarray(lt.max_margin(rotated, lt.L1Norm()).direction)
    for rho, stationary in ((best, True), (basis @ separator, False)):
        mine = lt.certify(lt.minimal_network(own, basis.T @ rho), problem)
        diagonal = lt.certify(lt.minimal_network(DIAGONAL, rho), rotated)
        assert mine.is_stationary == diagonal.is_stationary == stationary
        assert mine.regularizer == diagonal.regularizer
        for name in ("parameter_residual", "predictor_residual"):
            np.testing.assert_allclose(getattr(mine, name), getattr(diagonal, name), atol=1e-10)
        np.testing.assert_allclose(mine.multipliers, diagonal.multipliers, atol=1e-9)


def test_landscape(own, basis):
    network = initialization.matching(own, BETA)
    diagonal = initialization.matching(DIAGONAL, basis @ BETA)
    mine = landscape_point(network, REGRESSION)
    theirs = landscape_point(diagonal, lt.Regression(X @ basis.T, REGRESSION.y))
    assert mine.largest_rank == theirs.largest_rank == 1
    assert mine.least_loss is not None
    assert theirs.least_loss is not None
    np.testing.assert_allclose(mine.least_loss, theirs.least_loss, atol=1e-12)
    np.testing.assert_allclose(mine.smallest_eigenvalue, theirs.smallest_eigenvalue, rtol=1e-6)


class Decomposed(eqx.Module):
    """The network of the page, whose only closed form is its decomposition."""

    u: jnp.ndarray
    v: jnp.ndarray
    basis: jnp.ndarray = lt.constant()
    depth = 2

    def linear_coefficients(self):
        return self.basis.T @ (self.u * self.v)

    @property
    def factors(self):
        return self.u, self.v

    def with_factors(self, factors):
        return Decomposed(factors[0], factors[1], self.basis)

    def orthogonal_decomposition(self):
        eye = jnp.eye(D)
        return lt.OrthogonalDecomposition(jnp.asarray(self.basis), (eye, eye))


class Scaled(eqx.Module):
    """beta = s u with one number s: R(beta) = 2 |beta|_2, stated as a function only."""

    s: jnp.ndarray
    u: jnp.ndarray
    depth = 2

    def linear_coefficients(self):
        return self.s * self.u

    def induced_regularizer(self, beta):
        return 2 * jnp.linalg.norm(beta)


class Kinked(eqx.Module):
    """beta = u v with R(beta) = 2 |beta|_1, stated as a function only."""

    u: jnp.ndarray
    v: jnp.ndarray
    depth = 2

    def linear_coefficients(self):
        return self.u * self.v

    def induced_regularizer(self, beta):
        return 2 * jnp.sum(jnp.abs(beta))


def test_a_regularizer_alone_certifies_where_it_is_smooth():
    problem = lt.Classification(X, [1.0, -1.0, 1.0])
    best = lt.max_margin(problem, lt.L2Norm()).direction
    length = jnp.sqrt(jnp.linalg.norm(best))
    mine = lt.certify(Scaled(length, best / length), problem)
    assert mine.is_stationary
    assert mine.predictor_residual is not None
    sparse = lt.minimal_network(DIAGONAL, lt.max_margin(problem, lt.L1Norm()).direction)
    dense = lt.minimal_network(DIAGONAL, best)
    # At a kink a single gradient would make the optimum look like a saddle.
    at_kink, smooth = (lt.certify(Kinked(*n.weights), problem) for n in (sparse, dense))
    assert at_kink.is_stationary
    assert at_kink.predictor_residual is None
    assert smooth.predictor_residual is not None
    assert smooth.predictor_residual > 0.01


def test_tied_layers_are_no_coordinates():
    """The l_(2/L) norm of rho is right only for layers that are independent parameters."""

    class Tied(eqx.Module):
        u: jnp.ndarray
        depth = 2

        def linear_coefficients(self):
            return self.u**2

        @property
        def factors(self):
            return self.u, self.u

        def orthogonal_decomposition(self):
            return lt.OrthogonalDecomposition(jnp.eye(D), (jnp.eye(D),) * 2)

    problem = lt.Classification(np.eye(D)[:2], [1.0, 1.0])
    ones = jnp.ones(D)
    assert lt.certify(Decomposed(ones, ones, jnp.eye(D)), problem).predictor_residual is not None
    assert lt.certify(Tied(ones), problem).predictor_residual is None


def test_a_method_that_returns_none_counts_as_missing(own):
    class Without(type(own)):
        def identity_start(self):
            return None

        def balanced_start(self, coefficients):
            return None

        def induced_regularizer(self, beta):
            return None

    like = Without(own.u, own.v, own.basis)
    for call in (
        lambda: initialization.identity(like),
        lambda: initialization.balanced(like, BETA),
        lambda: lt.induced_regularizer(like, BETA),
    ):
        with pytest.raises(ValueError, match=r"got (a )?Without"):
            call()


def test_messages_name_the_networks_of_the_package_only():
    words = architectures_with("balanced_start")
    assert words == (
        "ConvolutionalNetwork, DiagonalNetwork, FullyConnectedNetwork, LinearNetwork, "
        "MatrixFactorizationNetwork"
    )

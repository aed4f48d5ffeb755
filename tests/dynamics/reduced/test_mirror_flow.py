"""Mirror flow against the full flow: the same trajectory from two right-hand sides."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lintensor_jax as lt
from lintensor_jax.networks import AssumptionFails

D, N = 6, 3
RNG = np.random.default_rng(7)
X = jnp.array(RNG.normal(size=(N, D)))
Y = jnp.array(RNG.normal(size=N))
REFLECTED = (-np.arange(D)) % D
PROBLEM = lt.Regression(X, Y)


def _even(v):
    return (v + v[..., REFLECTED]) / 2


def _draw(*shape):
    return jnp.array(RNG.normal(size=shape))


def _eigenbasis():
    return np.linalg.qr(RNG.normal(size=(D, D)))[0]


def _sensing():
    basis = _eigenbasis()
    sensors = np.stack([basis @ np.diag(RNG.normal(size=D)) @ basis.T for _ in range(N)])
    return lt.MatrixSensing(jnp.array(sensors), Y)


def _zero_asymmetric(first, depth):
    return [first] * (depth - 1) + [jnp.zeros_like(first)]


CASES = {
    "diagonal, any start": (lt.DiagonalNetwork(_draw(2, D)), PROBLEM),
    "diagonal, L = 3, both signs": (
        lt.DiagonalNetwork(jnp.stack(_zero_asymmetric(_draw(D), 3))),
        PROBLEM,
    ),
    "even convolution, any start": (
        lt.ConvolutionalNetwork([_even(_draw(D)), _even(_draw(D))]),
        lt.Regression(_even(X), Y),
    ),
    "even convolution, L = 4": (
        lt.ConvolutionalNetwork(_zero_asymmetric(_even(_draw(D)), 4)),
        lt.Regression(_even(X), Y),
    ),
    "orthogonal network": (
        lt.OrthogonalNetwork(
            _draw(7, D),
            [np.linalg.qr(RNG.normal(size=(k, 7)))[0] for k in (8, 9)],
            [_draw(8), _draw(9)],
        ),
        PROBLEM,
    ),
    "commuting sensors": (
        lt.MatrixFactorizationNetwork(_zero_asymmetric(0.7 * jnp.eye(D), 3)),
        _sensing(),
    ),
    "differential, D = 2": (
        lt.DifferentialDiagonalNetwork(jnp.ones(D), 0.5 * jnp.ones(D), 2),
        PROBLEM,
    ),
    "differential, D = 3": (
        lt.DifferentialDiagonalNetwork(jnp.ones(D), 0.5 * jnp.ones(D), 3),
        PROBLEM,
    ),
}


SLOW = (
    "orthogonal network",
    "differential, D = 2",
    "diagonal, L = 3, both signs",
    "diagonal, any start",
    "commuting sensors",
    "even convolution, L = 4",
    "even convolution, any start",
    "differential, D = 3",
)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in CASES],
)
def test_mirror_flow_is_the_full_flow(name):
    network, problem = CASES[name]
    times = jnp.array([0.0, 0.1, 1.0])
    dual = lt.mirror_flow(network, problem, saveat=times, rtol=1e-10)
    full = lt.gradient_flow(network, problem, saveat=times, rtol=1e-10)
    # rtol is 1e-10, and interpolation between steps is a few orders coarser: 1e-8 at the saved
    # times. In both flows Newton's method corrects the limit.
    np.testing.assert_allclose(dual.coefficients[:-1], full.coefficients[:-1], rtol=0, atol=1e-7)
    np.testing.assert_allclose(dual.coefficients[-1], full.coefficients[-1], rtol=0, atol=1e-9)
    for mine, theirs in zip(
        jax.tree.leaves(eqx.filter(dual.network, eqx.is_inexact_array)),
        jax.tree.leaves(eqx.filter(full.network, eqx.is_inexact_array)),
        strict=True,
    ):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-8)
    # The invariants are conserved by construction, so only rounding is left.
    assert float(dual.invariant_drift[-1]) < 1e-13
    assert bool(dual.status == lt.FlowStatus.residual)
    assert dual.state.theta.shape == (N,)


@pytest.mark.slow
def test_initial_scales_down_to_1e_minus_140():
    start = _draw(2, D)
    l1 = np.asarray(lt.min_norm(PROBLEM, lt.L1Norm()).coefficients)
    distance = []
    for alpha in (1e-50, 1e-100, 1e-140):
        solution = lt.mirror_flow(lt.DiagonalNetwork(alpha * start), PROBLEM)
        beta = np.asarray(solution.coefficients[-1])
        np.testing.assert_allclose(X @ beta, Y, rtol=0, atol=1e-12)
        # Coordinates off the support keep their relative accuracy: none is rounded to zero.
        assert (beta != 0).all()
        distance.append(np.max(np.abs(beta - l1)))
    assert np.abs(beta).min() < 1e-100
    # The distance to the minimum-l1 solution falls as alpha^(2 (1 - max|u|)), u the l1 dual
    # certificate off the support.
    first, second = np.diff(np.log(distance))
    assert first < 0
    np.testing.assert_allclose(second / first, 40 / 50, rtol=0.05)


@pytest.mark.slow
def test_continued_counts_on():
    network, problem = CASES["diagonal, any start"]
    whole = lt.mirror_flow(network, problem)
    half = lt.mirror_flow(network, problem, stop=lt.StopAtTime(0.3), finish=None)
    rest = half.continued(finish=whole.finish)
    assert float(rest.log_time[-1]) > float(half.log_time[-1])
    np.testing.assert_allclose(rest.coefficients[-1], whole.coefficients[-1], rtol=0, atol=1e-12)


def test_refusals_name_the_broken_property():
    layers = jnp.stack(_zero_asymmetric(_draw(D), 3))
    with pytest.raises(AssumptionFails, match="equal first layers"):
        lt.mirror_flow(lt.DiagonalNetwork(layers.at[2, 0].set(0.1)), PROBLEM)
    with pytest.raises(AssumptionFails, match=r"evenness .* of X"):
        lt.mirror_flow(lt.ConvolutionalNetwork([_even(_draw(D))] * 2), PROBLEM)
    with pytest.raises(AssumptionFails, match=r"evenness .* of filters\[1\]"):
        lt.mirror_flow(
            lt.ConvolutionalNetwork([_even(_draw(D)), _draw(D)]), lt.Regression(_even(X), Y)
        )
    with pytest.raises(AssumptionFails, match="positive entries"):
        lt.mirror_flow(lt.DifferentialDiagonalNetwork(jnp.ones(D), jnp.zeros(D), 2), PROBLEM)
    with pytest.raises(AssumptionFails, match="eigenbasis"):
        lt.mirror_flow(lt.MatrixFactorizationNetwork([_draw(D, D)] * 2), _sensing())
    with pytest.raises(ValueError, match=r"boundary of the mirror map.*times as large"):
        lt.mirror_flow(lt.DiagonalNetwork(1e-9 * layers), PROBLEM)
    with pytest.raises(ValueError, match="loss of residuals with one target"):
        lt.mirror_flow(
            lt.DiagonalNetwork(_draw(2, D)), lt.Classification(X, jnp.array([1.0, -1.0, 1.0]))
        )

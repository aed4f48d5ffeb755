"""Min et al. 2021, Appendix C: how tight Proposition 1 is."""

import numpy as np
import pytest

import lintensor_jax as lt

RNG = np.random.default_rng(5)


def rate_of(first, last, targets):
    """-dL/dt / (L - L*) on X = I, from the definition."""
    error = targets - first @ last
    slope = np.sum((error @ last.T) ** 2) + np.sum((first.T @ error) ** 2)
    return slope / (0.5 * np.sum(error**2))


def bound_of(first, last, targets):
    network = lt.FullyConnectedNetwork((first, last))
    problem = lt.Regression(np.eye(len(first)), targets)
    return float(lt.convergence_rate_bound(network, problem).instantaneous)


def worst_targets(first, last):
    """Y for which the error is u v^T, of the smallest eigenvalues of U U^T and V V^T."""
    u = np.linalg.eigh(first @ first.T)[1][:, 0]
    v = np.linalg.eigh(last.T @ last)[1][:, 0]
    return first @ last + np.outer(u, v)


def test_the_worst_targets_give_the_smallest_eigenvalues():
    first, last = RNG.normal(size=(3, 4)), RNG.normal(size=(4, 2))
    worst = rate_of(first, last, worst_targets(first, last))
    smallest = np.linalg.eigvalsh(first @ first.T)[0] + np.linalg.eigvalsh(last.T @ last)[0]
    np.testing.assert_allclose(worst, 2 * smallest, rtol=1e-10)
    others = [rate_of(first, last, RNG.normal(size=(3, 2))) for _ in range(50)]
    assert min(others) >= worst
    assert bound_of(first, last, worst_targets(first, last)) <= worst * (1 + 1e-12)


@pytest.mark.parametrize("gap", [0.0, 0.7])
def test_it_is_attained_where_the_imbalance_is_a_multiple_of_the_identity(gap):
    """U^T U - V^T V = gap I: the two spreads are zero."""
    left, right = (np.linalg.qr(RNG.normal(size=(3, 3)))[0] for _ in range(2))
    b = np.array([1.0, 0.6, 0.3])
    first, last = left * np.sqrt(b**2 + gap), (right * b).T
    targets = worst_targets(first, last)
    worst = rate_of(first, last, targets)
    np.testing.assert_allclose(bound_of(first, last, targets), worst, rtol=1e-9)

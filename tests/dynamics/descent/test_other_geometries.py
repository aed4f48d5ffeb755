"""One layer by steepest descent in other norms: directions against their maximum margins.

Sign descent and Adam go to the l_inf maximum margin, spectral descent (Muon) to that of the
spectral norm (Zhang et al. 2024; Fan et al. 2025). Agreement is slow: what is compared is the
margin over the norm with the largest one, after two numbers of steps, and no digits are claimed.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lintensor_jax as lt

D, N, M = 5, 8, 3
RNG = np.random.default_rng(3)
TRUTH = RNG.normal(size=(D, M))
X = RNG.normal(size=(N, D))
BINARY = lt.Classification(X, np.sign(X @ TRUTH[:, 0]))
CLASSES = lt.MulticlassClassification(X, np.argmax(X @ TRUTH, axis=1))


def decaying(count):
    return 0.5 / jnp.sqrt(count + 1.0)


def spectral():
    """The step of steepest descent in the spectral norm: U V^T of the gradient."""

    def update(gradient, state, params=None):
        del params

        def direction(g):
            # Of a gradient of 1e-200 only the direction counts.
            u, _, vt = jnp.linalg.svd(g / jnp.max(jnp.abs(g)), full_matrices=False)
            return u @ vt

        return jax.tree.map(direction, gradient), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


CASES = {
    "sign descent": (BINARY, optax.scale_by_sign(), lt.LInfNorm(), 0.99),
    "Adam": (BINARY, optax.scale_by_adam(eps=1e-300), lt.LInfNorm(), 0.95),
    "spectral descent": (CLASSES, spectral(), lt.SpectralNorm(), 0.95),
    "Muon": (CLASSES, optax.contrib.scale_by_muon(), lt.SpectralNorm(), 0.9),
}


def shares(problem, direction, norm, num_steps):
    """The normalised margin over the largest one, at half of the steps and at the end."""
    shape = () if problem is BINARY else (M,)
    network = lt.LinearNetwork(jnp.zeros((D, *shape)))
    optimizer = optax.chain(direction, optax.scale_by_schedule(lambda k: -decaying(k)))
    run = lt.gradient_descent(network, problem, optimizer, num_steps, save_every=num_steps // 2)
    best = np.asarray(lt.max_margin(problem, norm).coefficients)
    order = np.inf if problem is BINARY else 2
    level = 1 / np.linalg.norm(best, order)
    return [
        float(jnp.min(problem.margins(beta))) / np.linalg.norm(np.asarray(beta), order) / level
        for beta in run.coefficients[1:]
    ]


@pytest.mark.parametrize(
    "name",
    [n if n == "sign descent" else pytest.param(n, marks=pytest.mark.slow) for n in CASES],
)
def test_margins_over_the_matching_norm_approach_the_largest(name):
    problem, direction, norm, least = CASES[name]
    early, late = shares(problem, direction, norm, 20_000)
    assert least < late <= 1 + 1e-9
    assert late > early - 1e-3
    # Another norm's maximum margin is another direction: plain descent goes to the l2 one.
    if name == "sign descent":
        svm = np.asarray(lt.max_margin(problem, lt.L2Norm()).coefficients)
        best = np.asarray(lt.max_margin(problem, norm).coefficients)
        plain = float(jnp.min(problem.margins(svm))) / np.max(np.abs(svm)) * np.max(np.abs(best))
        assert plain < late - 0.01

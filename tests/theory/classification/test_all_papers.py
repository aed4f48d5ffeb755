"""Ji & Telgarsky 2019 and Gunasekar et al. 2018 in `predict`; Lemmas 2.10 and 2.11."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from prediction_cases import limit_of
from scipy.optimize import linprog

import lintensor_jax as lt
from lintensor_jax.theory import lemma_2_10, lemma_2_11, smoothness

# Three support vectors in the plane, so that they span it.
PROBLEM = lt.Classification([[1.0, 0.0], [0.5, 1.0], [2.0, 1.0]], [1.0, 1.0, 1.0])
START = lt.FullyConnectedNetwork((jnp.zeros((2, 2)), jnp.ones(2)))


def verdicts(network, problem):
    return {c.theorem: c.verdict for c in lt.predict(network, problem).considered}


def test_fully_connected_networks_have_three_papers():
    found = verdicts(START, PROBLEM)
    assert found["Corollary 1"] == "proved"
    assert found["Theorems 2.2 and 2.8 (Ji & Telgarsky 2019)"] == "proved"
    assert found["Theorem 1 (Gunasekar et al. 2018)"] == "assumes what is open"
    assert found["Theorem 4 (Gunasekar et al. 2018)"] == "assumes what is open"
    prediction = lt.predict(START, PROBLEM)
    assert (prediction.kind, prediction.is_proved) == ("exact", True)


def test_support_vectors_that_do_not_span_the_data():
    alone = lt.Classification([[1.0, 0.0], [5.0, 1.0]], [1.0, 1.0])
    prediction = lt.predict(START, alone)
    (broken,) = (a for a in prediction.violated if "2.7" in a.source)
    assert broken.value == (1, 2)


CONVOLUTION = lt.ConvolutionalNetwork(([1.0, 0.2, 0.3], [0.4, 0.5, 0.6]))


@pytest.mark.slow
def test_full_length_convolutions_by_gunasekar():
    problem = lt.Classification([[1.0, 0.0, 0.2], [-0.5, 1.0, 0.1]], [1.0, 1.0])
    prediction = lt.predict(CONVOLUTION, problem)
    assert prediction.theorem == "Theorem 2 (Gunasekar et al. 2018)"
    assert (prediction.kind, prediction.is_proved) == ("open", False)
    # The error of a direction is a power of the margin.
    flow = lt.gradient_flow(CONVOLUTION, problem, stop=lt.StopAtMargin(1e6))
    np.testing.assert_allclose(
        flow.direction[-1], limit_of(CONVOLUTION, problem), rtol=0, atol=1e-3
    )
    deep = lt.ConvolutionalNetwork((*CONVOLUTION.filters, CONVOLUTION.filters[0]))
    assert "Theorem 2a (Gunasekar et al. 2018)" in verdicts(deep, problem)


@pytest.mark.parametrize(
    "network",
    [
        lt.DifferentialDiagonalNetwork([1.0, 0.2], [0.4, 0.5], 3),
        lt.ConvolutionalNetwork(([1.0], [0.3, 0.2])),
        lt.TensorNetwork(np.arange(8.0).reshape(2, 2, 2) ** 2, ([1.0, 0.2], [0.3, 0.4])),
    ],
)
def test_theorem_4_is_about_every_homogeneous_network(network):
    assert "Theorem 4 (Gunasekar et al. 2018)" in verdicts(network, PROBLEM)


@pytest.mark.slow
def test_signs_that_are_kept_may_rule_out_separation():
    problem = lt.Classification([[1.0, 0.0], [-0.5, 1.0]], [1.0, 1.0])
    stuck = lt.predict(lt.DiagonalNetwork([[1.0, 1.0], [1.0, -1.0]]), problem)
    assert stuck.theorem is None
    assert any("keep their signs" in a.statement for a in stuck.violated)
    # The least loss with beta_2 = 0 is 1.89: the flow does not go below.
    start = lt.DiagonalNetwork([[1.0, 1.0], [1.0, -1.0]])
    flow = lt.gradient_flow(start, problem, stop=lt.StopAtTime(5.0), throw=False)
    assert float(flow.log_loss[-1]) > 0.6
    free = verdicts(lt.DiagonalNetwork([[1.0, 1.0], [1.0, 1.0]]), problem)
    assert free["Theorem 4 (Gunasekar et al. 2018)"] == "assumes what is open"
    deep = lt.DiagonalNetwork([[1.0, 2.0], [1.0, -0.5], [2.0, 0.5]])
    assert verdicts(deep, problem)["Theorem 4 (Gunasekar et al. 2018)"] == "does not apply"


def test_nearly_equal_singular_values_are_told_apart():
    """1 and 1 + 1e-9: only the larger survives. Within rounding they are equal."""
    network = lt.DiagonalNetwork([[1.0, 1.0], [0.5, 0.2]])
    near = lt.Classification([[1.0, 1.0 + 1e-9]], [1.0])
    np.testing.assert_allclose(limit_of(network, near), [0.0, 1.0], atol=1e-15)
    assert "1e-09 below the largest" in str(lt.predict(network, near))
    same = lt.predict(network, lt.Classification([[1.0, 1.0 + 2e-16]], [1.0]))
    assert "multiplicity 2" in str(same)


def alpha_by_linear_programs(problem, directions=4000):
    """min over xi of max <xi, z_i>, by many xi on the unit circle orthogonal to u."""
    u = np.asarray(lt.max_margin(problem, lt.L2Norm()).direction)
    z = np.asarray(problem.signed_data)
    support = z[np.abs(z @ u - (z @ u).min()) < 1e-9]
    basis = np.linalg.svd(np.eye(len(u)) - np.outer(u, u))[0][:, : len(u) - 1]
    angles = np.linspace(0, 2 * np.pi, directions, endpoint=False)
    circle = np.stack([np.cos(angles), np.sin(angles)]) if len(u) == 3 else np.array([[1.0, -1.0]])
    return np.min(np.max(support @ basis @ circle, axis=0)), support, u


def test_lemma_2_10_and_2_11():
    rng = np.random.default_rng(2)
    problem = PROBLEM
    np.testing.assert_allclose(lemma_2_10(problem), alpha_by_linear_programs(problem)[0])
    # Four support vectors in three dimensions: points of the same height around an axis.
    points = np.array([[1.0, 0.2, 1.0], [-0.7, 0.9, 1.0], [-0.5, -1.0, 1.0], [0.8, -0.6, 1.0]])
    problem = lt.Classification(points, np.ones(4))
    alpha = lemma_2_10(problem)
    brute, support, u = alpha_by_linear_programs(problem)
    assert len(support) == 4
    # The error of 4,000 directions is of second order in their distance, or of first at a corner.
    np.testing.assert_allclose(alpha, brute, rtol=2e-3)
    for loss in (lt.ExponentialLoss(), lt.LogisticLoss()):
        problem = lt.Classification(points, np.ones(4), loss)
        radius = lemma_2_11(problem)
        for _ in range(20):
            across = np.append(rng.normal(size=2), 0.0)
            across *= radius * (1 + rng.uniform()) / np.linalg.norm(across)
            w = across + abs(rng.normal()) * u
            slope = jax.grad(lambda b, problem=problem: problem.loss(b))(jnp.asarray(w))
            assert float(across @ np.asarray(slope)) >= 0
    outside = linprog(np.zeros(4), A_eq=np.vstack([points[:, :2].T, np.ones(4)]), b_eq=[0, 0, 1])
    assert outside.success  # zero is in the convex hull, as the lemma says


def test_too_many_vertices_are_refused():
    points = np.random.default_rng(0).normal(size=(40, 5))
    points = np.column_stack([points / np.linalg.norm(points, axis=1)[:, None], np.ones(40)])
    points = np.concatenate([points, points * [-1, -1, -1, -1, -1, 1]])  # u is the last axis
    with pytest.raises(ValueError, match="tries all choices of 5 of 80 support vectors"):
        lemma_2_10(lt.Classification(points, np.ones(80)))


@pytest.mark.slow
def test_corollary_2_9_the_margin_of_the_normalised_layers():
    """The margin of the normalised layers tends to the l2 margin, its largest value."""
    flow = lt.gradient_flow(START, PROBLEM, stop=lt.StopAtMargin(1e6))
    norms = np.prod([np.linalg.norm(w) for w in flow.network.weights])
    margins = np.asarray(PROBLEM.margins(flow.network.linear_coefficients())) / norms
    best = float(lt.max_margin(PROBLEM, lt.L2Norm()).margin)
    assert margins.min() <= best * (1 + 1e-12)
    # The layers' difference is conserved, so they are of rank one up to 1 / margin.
    np.testing.assert_allclose(margins.min(), best, rtol=1e-4)


def test_lemma_3_4_descent_leaves_every_ball():
    """With the step 1 / beta(R), |W_k|_F <= R does not hold for ever. The risk is the mean loss."""
    problem = lt.Classification([[1.0, 0.0], [0.5, 0.8]], [1.0, 1.0], lt.LogisticLoss())
    radius = 1.6
    step = 1 / float(smoothness(START, radius, problem.margin_loss)) / 2
    found = lt.gradient_descent(START, problem, optax.sgd(step), 3000)
    assert max(np.linalg.norm(w) for w in START.weights) < radius
    assert max(np.linalg.norm(w) for w in found.network.weights) > radius

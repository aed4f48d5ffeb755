"""Alignment of layers (Ji & Telgarsky 2019): measures, Lemmas 2.6, 3.2 and C.7, Assumption 1.2."""

import itertools
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import exp1

import lintensor_jax as lt
from lintensor_jax.dynamics.stage_newton import implicit_solver
from lintensor_jax.theory import (
    alignment_bounds,
    alignment_constant,
    learning_conditions,
    smoothness,
)


def network(seed, scale=1.0, shapes=((2, 4), (4, 3), (3,))):
    rng = np.random.default_rng(seed)
    return lt.FullyConnectedNetwork(tuple(scale * rng.normal(size=shape) for shape in shapes))


def small_risk(net, problem):
    """`net`, or its negative if that has the smaller risk (Assumption 1.2)."""
    other = lt.FullyConnectedNetwork((*net.weights[:-1], -net.weights[-1]))
    return min((net, other), key=lambda n: float(problem.log_loss(n.linear_coefficients())))


def problem(loss=None, longest=1.0):
    """12 separable samples, no longer than `longest`; two of them support the maximum margin."""
    rng = np.random.default_rng(7)
    angles, lengths = rng.uniform(-1.1, 1.0, 12), rng.uniform(0.4, 1.0, 12)
    y = np.where(np.arange(12) % 2, 1.0, -1.0)
    signed = longest * lengths[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return lt.Classification(y[:, None] * signed, y, loss or lt.LogisticLoss())


def paper_layers(net):
    """The paper's W_1, ..., W_L, which multiply from the left."""
    return [np.asarray(w).reshape(w.shape[0], -1).T for w in net.weights]


def paper_constant(net):
    """The constant D as printed in the paper."""
    W = paper_layers(net)
    squares = [np.linalg.norm(w) ** 2 for w in W]
    gaps = [a @ a.T - b.T @ b for a, b in itertools.pairwise(W)]
    return max(squares) - squares[-1] + sum(np.linalg.norm(gap, 2) for gap in gaps)


def test_measures_are_those_of_the_papers_matrices():
    net = network(0)
    found = lt.alignment(net)
    W = paper_layers(net)
    svds = [np.linalg.svd(w) for w in W]
    spectral = np.array([s[0] for _, s, _ in svds])
    frobenius = np.array([np.linalg.norm(w) for w in W])
    np.testing.assert_allclose(found.spectral_norms, spectral, rtol=1e-14)
    np.testing.assert_allclose(found.frobenius_norms, frobenius, rtol=1e-14)
    np.testing.assert_allclose(found.rank_one_ratios, spectral / frobenius, rtol=1e-14)
    # The last layer is of rank one: its remainder is the rounding of the difference.
    np.testing.assert_allclose(
        found.remainder_norms**2, frobenius**2 - spectral**2, rtol=1e-13, atol=1e-14
    )
    pairs = itertools.pairwise(svds)
    overlaps = [(after[2][0] @ before[0][:, 0]) ** 2 for before, after in pairs]
    np.testing.assert_allclose(found.overlaps, overlaps, rtol=1e-13)
    np.testing.assert_allclose(abs(found.input_direction @ svds[0][2][0]), 1, rtol=1e-14)
    np.testing.assert_allclose(found.imbalance, paper_constant(net), rtol=1e-14)
    assert lt.alignment(SEVERAL).rank_one_ratios.shape == (2,)


def test_measures_at_any_scale_in_batches_and_under_jit():
    net = network(1)
    one = lt.alignment(net)
    for scale in (1e-200, 1e250):
        other = lt.alignment(net.scaled(scale))
        for name in ("rank_one_ratios", "misalignments"):
            np.testing.assert_allclose(getattr(other, name), getattr(one, name), rtol=1e-13)
        np.testing.assert_allclose(other.frobenius_norms, scale * one.frobenius_norms, rtol=1e-14)
        np.testing.assert_allclose(other.remainder_norms, scale * one.remainder_norms, rtol=1e-13)
    np.testing.assert_allclose(alignment_constant(net.scaled(1e140)), 1e280 * one.imbalance)
    batch = jax.tree.map(lambda *w: jnp.stack(w), net, network(2))
    both = eqx.filter_jit(jax.vmap(lt.alignment))(batch)
    np.testing.assert_allclose(both.misalignments[0], one.misalignments, rtol=1e-12)
    assert both.imbalance.shape == (2,)


def test_small_angles_and_small_remainders_keep_their_digits():
    angle, rest = 1e-9, 1e-5
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    first = np.diag([1e8, rest])
    net = lt.FullyConnectedNetwork((first, 1e8 * turn[:, 0]))
    found = lt.alignment(net)
    # By the printed formulas 1 - cos^2 = 1e-18 and 1e16 + 1e-10 - 1e16 would be rounded to 0.
    np.testing.assert_allclose(found.misalignments, [angle**2], rtol=1e-6)
    np.testing.assert_allclose(found.remainder_norms, [rest, 0], rtol=1e-12)


def test_a_zero_layer_has_no_direction():
    found = lt.alignment(lt.initialization.zero_last_layer(network(3)))
    np.testing.assert_array_equal(found.rank_one_ratios[-1], 0)
    np.testing.assert_array_equal(found.misalignments[-1], 1)
    assert np.isfinite(found.misalignments).all()


def weights_of(net):
    return net.weights


@eqx.filter_jit
def bounds_along(start, weights, risk: Any = 0.0):
    """`alignment_bounds` at every saved time, as NumPy arrays once outside."""
    return jax.vmap(lambda w: alignment_bounds(start, lt.FullyConnectedNetwork(w), risk))(weights)


@pytest.fixture(scope="module")
def flows():
    """Flows to margin 1e6 from two starts; at every step Lemma 2.6's bounds."""
    data, found = problem(), []
    # Only the implicit method is used: the automatic choice compiles twice as long.
    solver = implicit_solver(jnp.asarray(1e-8), jnp.asarray(1e-8))
    for seed in range(2):
        start = small_risk(network(seed, 0.7), data)
        flow = lt.gradient_flow(
            start,
            data,
            stop=lt.StopAtMargin(1e6),
            saveat=diffrax.SaveAt(steps=True),
            observe=weights_of,
            solver=solver,
        )
        bounds = bounds_along(start, flow.observed)
        assert bounds.slack.shape == flow.log_loss.shape
        assert bounds.slack.min() > 0
        found.append((start, flow, jax.tree.map(np.asarray, bounds)))
    return data, found


@pytest.mark.slow
def test_lemma_2_6_at_every_step_of_flows_to_large_norms(flows):
    data, found = flows
    for start, flow, bounds in found:
        assert all(condition.holds for condition in learning_conditions(start, data))
        np.testing.assert_allclose(bounds.remainder_limit, paper_constant(start), rtol=1e-13)
        sizes = [np.linalg.norm(w, 2) ** 2 for w in paper_layers(start)]
        limits = paper_constant(start) + np.array(sizes[1:]) + np.array(sizes[:-1])
        np.testing.assert_allclose(bounds.misalignment_limit[0], limits, rtol=1e-13)
        squares = np.asarray(bounds.alignment.spectral_norms) ** 2
        assert squares[-1].min() > 1e3
        # The bound as printed; `slack` has it with all digits.
        assert (bounds.alignment.overlaps >= 1 - limits[None] / squares[:, 1:]).all()
        # By the conserved quantities all layers grow by the same amount (eq. 2.5).
        allowed = flow.invariant_drift.max() * np.exp(2 * flow.log_norm.max())
        assert bounds.growth_spread.max() <= 4 * allowed + 1e-12
        # The bounds are not trivial: a remainder is above 1/20 of its limit. Layers are aligned.
        assert (bounds.remainder / bounds.remainder_limit[:, None]).max() > 1 / 20
        assert bounds.alignment.rank_one_ratios[-1].min() > 0.999
        assert bounds.alignment.overlaps[-1].min() > 0.999999
    assert max((b.remainder / b.remainder_limit[:, None]).max() for _, _, b in found) > 1 / 4


@pytest.mark.slow
def test_flows_grow_all_layers_towards_the_maximum_margin(flows):
    data, found = flows
    best = lt.max_margin(data, lt.L2Norm())
    for _, flow, bounds in found:
        assert (np.asarray(bounds.norm_growth[-1]) > 1e3).all()
        # Directions converge like log(margin) / margin or faster; margins are above 1e6.
        np.testing.assert_allclose(flow.direction[-1], best.direction, rtol=0, atol=2e-5)
        # Theorem 2.8: |<v_1, u>| -> 1; the remainder of W_1 turns v_1 by at most sqrt(D) / |W_1|.
        overlap = abs(bounds.alignment.input_direction[-1] @ best.direction)
        assert 1 - overlap < 1e-4
        assert flow.smoothed_margin_drop is not None
        assert flow.smoothed_margin_drop <= flow.rtol


@pytest.mark.slow
def test_balanced_starts_stay_aligned_to_a_margin_of_1e10():
    # One sample: nothing is stiff, and float64 has no wall.
    data = lt.Classification([[1.0, 2.0]], [1.0])
    like = lt.FullyConnectedNetwork.zeros((2, 3, 3))
    start = lt.initialization.balanced(like, jnp.array([0.3, -0.1]))
    flow = lt.gradient_flow(start, data, stop=lt.StopAtMargin(1e10), solver=diffrax.Dopri8())
    bounds = alignment_bounds(start, flow.network)
    assert bounds.remainder_limit < 1e-15
    # D = 0 leaves no slack: only the drift of the conserved quantities is measured.
    allowed = 10 * flow.invariant_drift[-1] * np.exp(2 * flow.log_norm[-1])
    assert bounds.remainder.max() <= allowed
    assert bounds.alignment.rank_one_ratios.min() > 1 - 1e-12
    assert bounds.alignment.misalignments.max() < 1e-12


@pytest.mark.slow
def test_the_counterexample_of_appendix_a_never_learns():
    data = lt.Classification([[1.0]], [1.0])
    w = jnp.array([0.8, 0.6])
    stuck = lt.FullyConnectedNetwork((w[None, :], -w))
    lower, critical = learning_conditions(stuck, data)
    assert not lower.holds
    np.testing.assert_allclose(lower.value, 1.0)
    assert critical.holds
    flow = lt.gradient_flow(
        stuck,
        data,
        clock=lt.PhysicalTime(),
        stop=lt.StopAtTime(2.0),
        rtol=1e-10,
        saveat=[0.5, 1.0],
        observe=weights_of,
    )
    first, last = flow.observed
    # The layers stay opposite, up to differences in rounding, which grow by less than e^6.
    np.testing.assert_allclose(first[:, 0], -last, rtol=0, atol=1e-13)
    assert (flow.log_loss > 0).all()
    # q = |w|^2 obeys q' = -2 q e^q, so that t = (E_1(q) - E_1(q_0)) / 2.
    squares = np.sum(np.asarray(last[:2]) ** 2, axis=1)
    np.testing.assert_allclose((exp1(squares) - exp1(1.0)) / 2, [0.5, 1.0], rtol=1e-8)


def test_assumption_1_2():
    data = problem()
    net = network(5)
    silent = lt.FullyConnectedNetwork((jnp.zeros((2, 4)), *net.weights[1:]))
    lower, critical = learning_conditions(silent, data)
    assert lower.holds
    assert lower.value == 0
    assert critical.holds
    # Two layers are zero: this is a saddle of every loss.
    saddle = lt.FullyConnectedNetwork((jnp.zeros((2, 4)), net.weights[1], jnp.zeros(3)))
    assert [a.holds for a in learning_conditions(saddle, data)] == [True, False]
    # The conditions apply to other networks, and to margins at which the gradient underflows.
    huge = lt.DiagonalNetwork(1e3 * np.ones((2, 2)))
    good = lt.Classification([[1.0, 2.0]], [1.0])
    lower, critical = learning_conditions(huge, good)
    assert lower.holds
    assert critical.value > 0.1


def hessian_of_mean_risk(data):
    """The Hessian for two layers with two hidden units, a function of flat parameters (6,)."""

    def risk(theta):
        return data.loss(theta[:4].reshape(2, 2) @ theta[4:]) / data.y.shape[0]

    return jax.jit(jax.hessian(risk))


@pytest.mark.parametrize("longest", [1.0, 10.0])
def test_the_smoothness_constant_needs_short_samples(longest):
    """Erratum: Lemma 3.2 uses |x_i| <= 1; longer samples need their length in the constant."""
    data = problem(longest=longest)
    like = lt.FullyConnectedNetwork.zeros((2, 2))
    longest = float(np.max(np.linalg.norm(data.X, axis=1)))
    hessian = hessian_of_mean_risk(data)
    rng = np.random.default_rng(0)
    largest = 0.0
    for radius in (1.0, 2.0):
        printed = smoothness(like, radius, data.margin_loss)
        corrected = smoothness(like, radius, data.margin_loss, longest)
        for trial in range(40):
            first, last = rng.normal(size=(2, 2)), rng.normal(size=2)
            # With W_1 = 0 all margins are zero, where the curvature of the loss is largest.
            first *= 0 if trial == 0 else radius * rng.uniform() / np.linalg.norm(first)
            last *= radius / np.linalg.norm(last)
            theta = jnp.concatenate([first.ravel(), last])
            curvature = np.abs(np.linalg.eigvalsh(hessian(theta))).max()
            assert curvature <= corrected
            largest = max(largest, float(curvature / printed))
    assert (largest <= 1) == (longest <= 1)
    if longest > 1:
        assert largest > 1.2


def test_smoothness_is_the_printed_formula():
    like = lt.FullyConnectedNetwork.zeros((2, 5, 5, 5))
    value = smoothness(like, 3.0, lt.LogisticLoss())
    np.testing.assert_allclose(value, 2 * 16 * 3.0**6 * 1.25)
    np.testing.assert_allclose(
        jax.vmap(lambda r: smoothness(like, r, lt.LogisticLoss()))(jnp.array([3.0, 1.0])),
        [float(value), 40.0],
    )


def test_steps_of_assumption_3_5_are_the_plain_loop():
    data = problem()
    start = small_risk(network(8, 0.5), data)
    growth, count = 1.05, data.y.shape[0]
    done = lt.gradient_descent(
        start,
        data,
        lt.smoothness_steps(start, data, growth=growth),
        2_000,
        save_every=1,
        observe=weights_of,
    )
    z = np.asarray(data.signed_data)
    weights = [np.asarray(w) for w in start.weights]
    radius, radii = 0.0, []
    for t in range(2_000):
        norms = [np.linalg.norm(w) for w in weights]
        if max(norms) > radius - 1:
            radius = 1 + growth * max(norms)
        radii.append(radius)
        assert radius >= 1
        assert max(norms) <= radius - 1
        margins = z @ weights[0] @ weights[1] @ weights[2]
        risk = np.mean(np.logaddexp(0, -margins))
        np.testing.assert_allclose(np.exp(done.log_loss[t]) / count, risk, rtol=1e-11)
        g = -z.T @ (1 / (1 + np.exp(margins))) / count
        gradient = [
            np.outer(g, weights[1] @ weights[2]),
            np.outer(weights[0].T @ g, weights[2]),
            weights[1].T @ (weights[0].T @ g),
        ]
        step = min(1 / float(smoothness(start, float(radius), data.margin_loss)), 1.0)
        # Eq. (3.3): the risk falls by at least this much.
        fall = step / 2 * sum(np.sum(part**2) for part in gradient)
        after = np.exp(done.log_loss[t + 1]) / count
        assert after - risk <= -fall + 1e-14
        weights = [w - step * part for w, part in zip(weights, gradient, strict=True)]
    np.testing.assert_allclose(done.coefficients[-1], weights[0] @ weights[1] @ weights[2])
    np.testing.assert_allclose(done.optimizer_state.radius, radii[-1], rtol=1e-12)
    # R_t was kept most of the time, and replaced more than once.
    assert 1 < len(set(radii)) < 50


def test_lemma_c_7_along_descent_and_not_lemma_2_6():
    data = problem()
    beta = lt.max_margin(data, lt.L2Norm()).direction
    start = lt.initialization.balanced(lt.FullyConnectedNetwork.zeros((2, 3, 3)), 0.05 * beta)
    # At a balanced start D = 0, so one step would violate every inequality of the flow.
    done = lt.gradient_descent(
        start,
        data,
        lt.smoothness_steps(start, data),
        20_000,
        save_every=200,
        observe=weights_of,
    )
    risk = data.loss(start.linear_coefficients()) / data.y.shape[0]
    descent = bounds_along(start, done.observed, risk)
    flow = bounds_along(start, done.observed, jnp.zeros_like(risk))
    np.testing.assert_allclose(descent.remainder_limit, 2 * risk, rtol=1e-12)
    np.testing.assert_allclose(
        descent.misalignment_limit - flow.misalignment_limit, 3 * risk, rtol=1e-12
    )
    assert descent.slack.min() > 0
    assert (descent.growth_spread <= descent.growth_spread_limit).all()
    # Eq. (2.5) is about the flow: descent violates it, by far more than rounding.
    assert (flow.growth_spread > flow.growth_spread_limit + 1e-6).any()


def test_long_samples_shorten_the_steps():
    data = problem(longest=10.0)
    start = small_risk(network(9, 0.3), data)
    done = lt.gradient_descent(start, data, lt.smoothness_steps(start, data), 500, save_every=1)
    assert (np.diff(done.log_loss) < 0).all()
    state = done.optimizer_state
    longest = np.linalg.norm(data.X, axis=1).max()
    expected = 1 / smoothness(start, state.radius, data.margin_loss, longest)
    np.testing.assert_allclose(state.step_size, expected, rtol=1e-12)


NET, DATA = network(0), problem()
DIAGONAL: Any = lt.DiagonalNetwork(np.ones((2, 2)))
SEVERAL = network(0, shapes=((2, 4), (4, 3)))
REGRESSION: Any = lt.Regression([[1.0, 2.0]], [1.0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lt.alignment(DIAGONAL), "alignment: network must be a FullyConnectedNetwork"),
        (lambda: alignment_bounds(SEVERAL, NET), "initial must have a scalar output"),
        (lambda: alignment_bounds(network(0, shapes=((2, 3), (3,))), NET), "of the same shapes"),
        (lambda: smoothness(NET, 0.5, lt.LogisticLoss()), "radius must be at least 1, got 0.5"),
        (lambda: smoothness(NET, 1.0, lt.ExponentialLoss()), "got ExponentialLoss"),
        (lambda: smoothness(NET, 1.0, lt.LogisticLoss(), 0.0), "data_norm must be positive"),
        (lambda: learning_conditions(NET, REGRESSION), "got Regression"),
        (lambda: lt.smoothness_steps(DIAGONAL, DATA), "got DiagonalNetwork"),
        (lambda: lt.smoothness_steps(NET, problem(lt.ExponentialLoss())), "got ExponentialLoss"),
        (lambda: lt.smoothness_steps(NET, DATA, growth=0.9), "growth must be at least 1, got 0.9"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_steps_need_the_network():
    steps = lt.smoothness_steps(NET, DATA)
    with pytest.raises(ValueError, match="update needs params"):
        steps.update(NET, steps.init(NET))  # pyright: ignore[reportArgumentType]

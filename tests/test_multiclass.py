"""Cross-entropy over several classes: the problem, its flows, limits and predictions.

Oracles: jax.nn.log_softmax and finite margins for the loss, SLSQP for the Crammer-Singer SVM.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import lintensor_jax as lt
from lintensor_jax.dynamics.statuses import status_name
from lintensor_jax.initialization import gaussian

jax.config.update("jax_enable_x64", True)

N, D, M = 12, 5, 3


def _problem(seed=0, classes=M):
    rng = np.random.default_rng(seed)
    while True:
        X = rng.normal(size=(N, D))
        labels = np.argmax(X @ rng.normal(size=(D, classes)), axis=1)
        if len(np.unique(labels)) == classes:
            return lt.MulticlassClassification(X, labels)


def _svm(problem, bias=False):
    """min |B|^2 (without the bias row) subject to m_ic >= 1, by SLSQP."""
    Z = np.asarray(problem.signed_data)
    shape = Z.shape[2:]
    Z = Z.reshape(-1, shape[0] * shape[1])
    counted = np.ones(shape)
    counted[-1] = 0.0 if bias else 1.0
    counted = counted.ravel()
    feasible = scipy.optimize.linprog(
        np.zeros(Z.shape[1]), A_ub=-Z, b_ub=-np.ones(len(Z)), bounds=(None, None)
    ).x
    found = scipy.optimize.minimize(
        lambda b: counted * b @ b / 2,
        feasible,
        jac=lambda b: counted * b,
        constraints={"type": "ineq", "fun": lambda b: Z @ b - 1, "jac": lambda b: Z},
        method="SLSQP",
        options={"ftol": 1e-16, "maxiter": 1000},
    )
    return found.x.reshape(shape)


def test_loss_and_gradient_are_those_of_the_softmax():
    problem = _problem()
    beta = jnp.asarray(np.random.default_rng(1).normal(size=(D, M)))
    labels = np.asarray(problem.labels)

    def loss(beta):
        logs = jax.nn.log_softmax(problem.X @ beta, axis=1)
        return -jnp.sum(logs[np.arange(N), labels])

    np.testing.assert_allclose(problem.loss(beta), loss(beta), rtol=1e-13)
    gradient = problem.adjoint(problem.residual(beta))
    np.testing.assert_allclose(gradient, jax.grad(loss)(beta), atol=1e-13)
    slopes = problem.log_slopes(problem.margins(beta))
    np.testing.assert_allclose(-problem.margins_adjoint(jnp.exp(slopes)), gradient, atol=1e-13)
    np.testing.assert_allclose(
        jnp.einsum("icdm,dm->ic", problem.signed_data, beta), problem.margins(beta), atol=1e-13
    )
    outputs = np.asarray(problem.X @ beta)
    for i, label in enumerate(labels):
        others = [c for c in range(M) if c != label]
        np.testing.assert_allclose(
            problem.margins(beta)[i], outputs[i, label] - outputs[i, others], atol=1e-14
        )


def test_the_logarithmic_domain():
    problem = _problem()
    best = lt.max_margin(problem, lt.L2Norm()).coefficients
    # At margin 1e8 the loss is exp(-1e8) times the number of smallest margins.
    log_loss = float(problem.log_loss(1e8 * best))
    tight = np.sum(np.abs(np.asarray(problem.margins(best)) - 1) < 1e-9)
    assert np.isfinite(log_loss)
    np.testing.assert_allclose(log_loss, -1e8 + np.log(tight), rtol=1e-7)
    # At a margin of -1e6 the loss is linear.
    wrong = float(problem.log_loss(-1e6 * best))
    assert np.isfinite(wrong)
    assert wrong > np.log(1e6)


def test_the_residual_keeps_its_digits_at_large_margins():
    problem = lt.MulticlassClassification(np.eye(3), [0, 1, 2])
    beta = jnp.diag(jnp.array([50.0, 300.0, 800.0]))
    residual = np.asarray(problem.residual(beta))
    # Each other class has e^-m / (1 + 2 e^-m), and the sample's class minus their sum.
    np.testing.assert_allclose(residual[0], np.exp(-50.0) * np.array([-2, 1, 1]), rtol=1e-14)
    np.testing.assert_allclose(residual[1], np.exp(-300.0) * np.array([1, -2, 1]), rtol=1e-14)
    np.testing.assert_array_equal(residual[2], 0)  # e^-800 underflows


def test_physical_time_is_the_gradient_flow_at_any_margin():
    # One sample, one layer: dm/dt = 2 / (1 + exp(m)) for beta = (m, -m) / 2, from m = 60.
    problem = lt.MulticlassClassification([[1.0]], [0], num_classes=2)
    start = lt.LinearNetwork(jnp.array([[30.0, -30.0]]))
    stop = lt.StopAtTime(np.exp(60.0) / 2)
    flow = lt.gradient_flow(start, problem, clock=lt.PhysicalTime(), stop=stop)
    margin = problem.margins(flow.coefficients[-1])[0, 0]
    # d exp(m)/dt is nearly 2. The last step ends a little beyond the time of the rule.
    grown = np.log1p(2 * np.exp(flow.log_time[-1] - 60))
    np.testing.assert_allclose(margin, 60 + grown, rtol=1e-9)


def test_two_classes_are_the_logistic_loss():
    rng = np.random.default_rng(3)
    X = rng.normal(size=(6, 4))
    labels = np.array([0, 1, 0, 1, 1, 0])
    beta = jnp.asarray(rng.normal(size=(4, 2)))
    several = lt.MulticlassClassification(X, labels)
    binary = lt.Classification(X, 2.0 * labels - 1, loss=lt.LogisticLoss())
    difference = beta[:, 1] - beta[:, 0]
    np.testing.assert_allclose(several.log_loss(beta), binary.log_loss(difference), rtol=1e-13)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([0, 1, 3, 1], r"labels must be 0, \.\.\., 3, got none of \[2\]"),
        ([0, -1, 1, 1], r"got \[-1\]"),
        ([0, 1, 0.5, 1], "must be integers"),
        ([[0], [1], [0], [1]], r"shape \(n,\), got shape \(4, 1\)"),
        ([0, 1, 1], "one row per sample"),
        (["a", "b", "a", "b"], "must be integers"),
        ([0, 1, np.nan, 1], "must be integers"),
    ],
)
def test_bad_labels(labels, words):
    with pytest.raises(ValueError, match=words):
        lt.MulticlassClassification(np.ones((4, 2)), labels)


def test_the_number_of_classes():
    problem = lt.MulticlassClassification(np.ones((3, 2)), [0, 1, 1], num_classes=4)
    assert problem.coefficient_shape == (2, 4)
    assert problem.has_valid_targets
    with pytest.raises(ValueError, match=r"labels must be 0, \.\.\., 1, got \[2\]"):
        lt.MulticlassClassification(np.ones((2, 2)), [0, 2], num_classes=2)
    made = jax.jit(lambda labels: lt.MulticlassClassification(jnp.ones((3, 2)), labels, 3).targets)
    np.testing.assert_array_equal(made(jnp.array([2, 0, 1])), np.eye(3)[[2, 0, 1]])
    with pytest.raises(ValueError, match="num_classes must be given"):
        jax.jit(lambda labels: lt.MulticlassClassification(jnp.ones((3, 2)), labels).X)(
            jnp.array([0, 1, 1])
        )


@pytest.mark.parametrize("seed", range(3))
def test_one_layer_tends_to_the_crammer_singer_svm(seed):
    problem = _problem(seed)
    svm = _svm(problem)
    direction = svm / np.linalg.norm(svm)
    start = gaussian(lt.LinearNetwork.zeros(D, M), jax.random.key(seed), 0.5)
    found = lt.predict(start, problem)
    assert found.kind == "exact"
    # The error of SLSQP is 1e-8, the square root of the tolerance of its objective.
    np.testing.assert_allclose(np.asarray(found.limit), direction, atol=1e-7)
    flow = lt.gradient_flow(start, problem)
    assert status_name(flow.status) == "margin"
    assert np.linalg.norm(flow.direction[-1] - direction) < 1e-6
    assert jnp.asarray(flow.smoothed_margin_drop) < 1e-9


def test_several_biases_are_left_free():
    problem = _problem(1)
    with_bias = lt.MulticlassClassification(problem.X, problem.labels, bias=True)
    answer = lt.max_margin(with_bias, lt.L2Norm())
    svm = _svm(with_bias, bias=True)
    np.testing.assert_allclose(answer.coefficients[:-1], svm[:-1], atol=1e-7)
    np.testing.assert_allclose(jnp.sum(answer.coefficients[-1]), 0, atol=1e-12)
    assert answer.margin >= lt.max_margin(problem, lt.L2Norm()).margin
    assert answer.unique


@pytest.mark.slow
@pytest.mark.parametrize(
    ("like", "norm"),
    [
        pytest.param(
            lt.FullyConnectedNetwork.zeros((D, D), M), lt.NuclearNorm(), marks=pytest.mark.slow
        ),
        (lt.DiagonalNetwork.zeros(2, D, M), lt.L1Norm()),
    ],
)
def test_deep_flows_end_at_certified_kkt_points(like, norm):
    problem = _problem(2)
    start = gaussian(like, jax.random.key(0), 0.5)
    flow = lt.gradient_flow(
        start, problem, stop=lt.StopAtMargin(1e5), rtol=1e-6, saveat=[1.0, 5.0, 8.0, 10.0]
    )
    assert status_name(flow.status) == "margin"
    assert jnp.asarray(flow.smoothed_margin_drop) < 1e-9
    limit = lt.limit_direction(flow, problem)
    assert limit.succeeded
    certificate = limit.certificate
    assert certificate.parameter_residual < 1e-10
    assert certificate.multipliers.shape == (N, M - 1)
    # By the definition: Theta = sum_ic nu_ic grad m_ic(Theta) where the smallest margin is 1.
    gradient = jax.grad(
        lambda network: jnp.sum(
            certificate.multipliers * problem.margins(network.linear_coefficients())
        )
    )(limit.network)
    for ours, theirs in zip(jax.tree.leaves(limit.network), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-8)
    found = lt.predict(start, problem)
    assert found.kind == "stationary"
    assert found.limit is None
    if norm is not None:
        assert any("candidate" in note for note in found.notes)
        best = lt.max_margin(problem, norm)
        # The candidate of `predict` is the limit of this flow.
        np.testing.assert_allclose(limit.direction, best.direction, atol=1e-8)
        assert lt.certify(limit.direction, problem, regularizer=norm).is_stationary


@pytest.mark.slow
def test_batches_are_single_flows():
    problem = _problem(2)
    like = lt.FullyConnectedNetwork.zeros((D, D), M)
    starts = jax.vmap(lambda key: gaussian(like, key, 0.5))(jax.random.split(jax.random.key(1), 3))
    batch = lt.batched_flow(starts, problem, stop=lt.StopAtMargin(20.0))
    assert batch.compilation == "native"
    assert batch.succeeded.all()
    start = jax.tree.map(lambda leaf: leaf[0], starts)
    flow = lt.gradient_flow(
        start, problem, stop=lt.StopAtMargin(30.0), saveat=np.linspace(0.01, 4.0, 400)
    )
    # Their steps and ends differ, so both are compared at the same |Theta|.
    norms = np.asarray(flow.log_norm)
    growing = np.argmin(norms)
    assert norms[growing] < batch.log_norm[0] < norms[-1]
    curve = np.asarray(flow.coefficients).reshape(len(norms), -1)
    there = [np.interp(float(batch.log_norm[0]), norms[growing:], c[growing:]) for c in curve.T]
    # The saved times differ by 0.01: the interpolation error is about 1e-4 of the largest entry.
    error = np.abs(np.asarray(batch.coefficients[0]).ravel() - there).max()
    assert error < 1e-3 * np.abs(there).max()


def test_in_predict_not_separable():
    X = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    problem = lt.MulticlassClassification(X, [0, 1, 2])
    found = lt.predict(lt.LinearNetwork.zeros(2, 3), problem)
    assert found.theorem is None
    assert "FAILS" in str(found) or "violated" in str(found)

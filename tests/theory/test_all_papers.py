"""`predict` with the theorems of all papers in one list, against flows."""

import jax.numpy as jnp
import numpy as np
import pytest
from prediction_cases import limit_of

import lintensor_jax as lt
from lintensor_jax.initialization import balanced

RNG = np.random.default_rng(11)
X = RNG.normal(size=(2, 3))
WHITE = np.linalg.qr(RNG.normal(size=(6, 3)))[0] * 1.5  # X^T X = 2.25 I


def fully_connected(*weights):
    return lt.FullyConnectedNetwork(tuple(jnp.asarray(w) for w in weights))


def assert_flow_ends_at(network, problem, found, **options):
    assert found.limit is not None
    flow = lt.gradient_flow(network, problem, throw=False, **options)
    # The end is exact after a finish; at a positive least loss it has the explicit method's error.
    np.testing.assert_allclose(flow.coefficients[-1], found.limit, rtol=0, atol=1e-6)


# All data have one shape, so that each network's flow is compiled once.
MIX = np.array([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, -1.0], [0.5, 0.0]])
DATA = {
    "dependent": (MIX @ X, MIX @ [1.0, 0.5]),
    "more rows than columns": (WHITE, WHITE @ np.array([1.0, -0.5, 0.3])),
    "contradictory": (WHITE, RNG.normal(size=6)),
    "one direction": (np.outer([1.0, -0.5, 2.0, 0.3, 1.0, -1.0], X[0]), RNG.normal(size=6)),
}
FIRST = np.array([0.6, 1.0, 0.8])
NETWORKS = {
    "Theorem 5": lt.DiagonalNetwork(np.stack([FIRST, -FIRST, 0 * FIRST])),
    "two-layer": lt.DiagonalNetwork(np.stack([FIRST, 0.4 * FIRST[::-1]])),
    "Woodworth": lt.DifferentialDiagonalNetwork(FIRST, FIRST, 2),
    "Proposition 10": fully_connected(0.7 * np.eye(3), np.zeros(3)),
}


@pytest.mark.slow_beyond(2)
@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("name", NETWORKS)
def test_theorems_need_the_row_space_only(name, data):
    network, problem = NETWORKS[name], lt.Regression(*DATA[data])
    found = lt.predict(network, problem)
    assert (found.kind, found.is_proved) == ("exact", True)
    if data != "one direction":
        assert name in str(found.theorem)
    assert found.rate is not None or data == "one direction"
    assert_flow_ends_at(network, problem, found)
    # The difference of the loss and its least value is below the bound.
    if found.rate is not None and data == "contradictory":
        least = np.linalg.lstsq(problem.X, problem.y)[0]
        rest = 0.5 * np.sum((problem.X @ least - problem.y) ** 2)
        times = np.array([0.1, 0.5])
        flow = lt.gradient_flow(network, problem, saveat=times, stop=lt.StopAtTime(0.5))
        excess = np.exp(flow.log_loss[:2]) - rest
        assert np.all(excess <= np.exp(np.asarray(found.rate.log_bound(np.log(times)))) + 1e-8)


def test_another_loss_needs_data_that_can_be_solved():
    network = NETWORKS["Theorem 5"]
    huber = lt.HuberLoss(1.0)
    assert lt.predict(network, lt.Regression(*DATA["dependent"], loss=huber)).kind == "exact"
    refused = lt.predict(network, lt.Regression(*DATA["contradictory"], loss=huber))
    assert refused.theorem is None
    assert any("can be solved" in a.statement for a in refused.violated)


NEURONS = {
    "a^2 > |u_1|^2": ([0.3, -0.2, 0.1], -0.9),
    "below the loss of zero": (np.linalg.pinv(X) @ np.array([1.0, -0.5]) + [0.1, 0.2, 0.3], 0.4),
    "a = 0, but it moves": ([0.5, 0.3, -0.4], 0.0),
}


@pytest.mark.parametrize("name", NEURONS)
def test_one_hidden_neuron_with_several_samples(name):
    u, a = NEURONS[name]
    network = fully_connected(np.asarray(u)[:, None], np.array([a]))
    problem = lt.Regression(X, [1.0, -0.5])
    found = lt.predict(network, problem)
    assert str(found.theorem).startswith("One hidden neuron")
    assert (found.kind, found.is_proved) == ("exact", True)
    assert_flow_ends_at(network, problem, found)


def test_a_neuron_at_rest_where_the_targets_are_zero():
    network = fully_connected(np.array([[0.5], [0.3], [-0.4]]), np.array([0.0]))
    found = lt.predict(network, lt.Regression(X, [0.0, 0.0]))
    assert (found.kind, found.is_proved) == ("exact", True)
    np.testing.assert_array_equal(limit_of(network, lt.Regression(X, [0.0, 0.0])), np.zeros(3))


def test_an_output_weight_that_may_change_its_sign_leaves_the_limit_open():
    away = -np.linalg.pinv(X) @ np.array([1.0, -0.5])
    network = fully_connected((2 * away + [0.3, 0.1, 0.2])[:, None], np.array([0.2]))
    found = lt.predict(network, lt.Regression(X, [1.0, -0.5]))
    assert not found.is_proved
    assert any("keeps its sign" in a.statement for c in found.considered for a in c.open)
    assert found.kind != "exact"


@pytest.mark.slow
def test_eftekhari_with_three_balanced_layers():
    """Whitened data, a layer of one neuron: Z_1, with two outputs and a positive least loss."""
    problem = lt.Regression(WHITE, RNG.normal(size=(6, 2)))
    Z = np.asarray(problem.X.T @ problem.y) / 2.25
    left, s, right = np.linalg.svd(Z)
    start = 0.3 * np.outer(left[:, 0] + 0.3 * left[:, 1], right[0])
    network = balanced(lt.FullyConnectedNetwork.zeros((3, 1, 2), outputs=2), jnp.asarray(start))
    found = lt.predict(network, problem)
    assert found.theorem == "Theorem 16 (Eftekhari 2020)"
    assert (found.kind, found.is_proved) == ("exact", True)
    np.testing.assert_allclose(
        limit_of(network, problem), s[0] * np.outer(left[:, 0], right[0]), atol=1e-12
    )
    assert_flow_ends_at(network, problem, found, stop=lt.StopAtTime(60.0), finish=None)
    aside = balanced(network, jnp.asarray(0.3 * np.outer(left[:, 1], right[1])))
    assert lt.predict(aside, problem).theorem is None


def test_eftekhari_names_theorem_20s_rates():
    problem = lt.Regression(WHITE, WHITE @ np.array([1.0, -0.5, 0.3]))
    beta = jnp.array([0.8, 0.1, 0.3])
    network = balanced(lt.FullyConnectedNetwork.zeros((3, 2, 2)), beta)
    found = lt.predict(network, problem)
    verdicts = {c.theorem: c.verdict for c in found.considered}
    assert verdicts["Theorem 16 (Eftekhari 2020)"] == "proved"
    assert found.kind == "exact"
    np.testing.assert_allclose(limit_of(network, problem), [1.0, -0.5, 0.3], atol=1e-12)


@pytest.mark.slow
def test_min_theorem_3_without_the_invariant_set():
    """Two outputs and c(0) > 0: the loss tends to 0 at a rate, and no limit is predicted."""
    network = fully_connected(RNG.normal(size=(3, 4)), 0.1 * RNG.normal(size=(4, 2)))
    problem = lt.Regression(X, [[1.0, 0.2], [-0.5, 0.7]])
    found = lt.predict(network, problem)
    assert found.theorem == "Theorem 3 with Proposition 9 (Min et al. 2021)"
    assert (found.kind, found.limit, found.is_proved) == ("stationary", None, True)
    assert found.rate is not None
    times = np.array([0.2, 1.0])
    flow = lt.gradient_flow(network, problem, saveat=times)
    bound = np.asarray(found.rate.log_bound(np.log(times)))
    assert np.all(np.asarray(flow.log_loss[:2]) <= bound + 1e-6)
    assert float(flow.log_loss[-1]) < -50


def test_a_start_below_every_saddle():
    """Below the loss of beta = 0 the loss of three layers provably tends to its least value."""
    problem = lt.Regression(X, [1.0, -0.5])
    near = 0.4 * np.linalg.pinv(X) @ np.array([1.0, -0.5])
    network = fully_connected(np.outer(near, [1.0, 0.2]), np.eye(2), np.array([1.0, 0.0]))
    found = lt.predict(network, problem)
    assert str(found.theorem).startswith("Proposition 10")
    assert (found.kind, found.is_proved) == ("exact", True)
    assert any("below every critical point" in a.statement for a in found.assumptions)
    assert_flow_ends_at(network, problem, found)


def test_a_layer_below_the_rank_may_reach_the_best_of_its_rank():
    targets = np.array([[2.0, 0.1], [0.2, 0.5]])
    network = fully_connected([[1.2], [0.1]], [[1.4, 0.2]])
    problem = lt.Regression(np.eye(2), targets)
    found = lt.predict(network, problem)
    assert (found.kind, found.is_proved) == ("exact", True)
    left, s, right = np.linalg.svd(targets)
    np.testing.assert_allclose(
        limit_of(network, problem), s[0] * np.outer(left[:, 0], right[0]), atol=1e-12
    )
    assert_flow_ends_at(network, problem, found, stop=lt.StopAtTime(40.0), finish=None)


def chain(*numbers):
    *hidden, last = numbers
    return fully_connected(*(np.array([[w]]) for w in hidden), np.array([last]))


REFUTED = {
    "balanced chain of three": (chain(-1.0, 1.0, 1.0), lt.Regression([[1.0]], [1.0])),
    "two smallest equal": (chain(-0.5, 0.5, 2.0), lt.Regression([[1.0]], [1.0])),
    "chain, classification": (chain(-1.0, 1.0, 1.0), lt.Classification([[1.0]], [1.0])),
    "whitened, opposite": (
        fully_connected(-np.array([[0.6], [0.8]]), np.array([1.0])),
        lt.Regression(np.eye(2), [0.6, 0.8]),
    ),
    "determinant": (
        fully_connected(np.diag([1.0, -1.0]), np.eye(2)),
        lt.Regression(np.eye(2), np.array([[1.0, 0.2], [0.1, 1.5]])),
    ),
    "rank": (
        fully_connected(np.diag([1.0, 0.0]), np.diag([1.0, 0.0])),
        lt.Regression(np.eye(2), np.array([[1.0, 0.2], [0.1, 1.5]])),
    ),
}


REFUTED |= {
    "opposite layers": (
        fully_connected(np.eye(2), -np.eye(2)),
        lt.Regression(np.eye(2), np.array([[1.0, 0.2], [0.2, 1.5]])),
    ),
    "one opposite mode": (
        fully_connected(np.eye(2), np.diag([-1.0, 0.5])),
        lt.Regression(np.diag([1.0, 2.0]), np.diag([1.0, 2.0])),
    ),
    "one dead mode": (
        fully_connected(np.diag([1.0, 0.0]), np.diag([0.5, 0.0])),
        lt.Regression(np.eye(2), np.diag([1.0, 2.0])),
    ),
}


@pytest.mark.slow_beyond(1)
@pytest.mark.parametrize("name", REFUTED)
def test_balanced_layers_that_cannot_reach_the_targets(name):
    network, problem = REFUTED[name]
    found = lt.predict(network, problem)
    assert (found.theorem, found.limit) == (None, None)
    assert any("it cannot" in a.statement for a in found.violated)
    flow = lt.gradient_flow(network, problem, finish=None, stop=lt.StopAtTime(3.0), throw=False)
    assert float(flow.log_loss[-1]) > -4.0


def test_least_l2_norm_is_said():
    network = NETWORKS["Proposition 10"]
    assert "solution of least l2 norm" in str(lt.predict(network, lt.Regression(X, [1.0, 2.0])))
    text = str(lt.predict(network, lt.Regression(*DATA["contradictory"])))
    assert "least-squares solution of least l2 norm" in text
    sparse = lt.predict(NETWORKS["Theorem 5"], lt.Regression(X, [1.0, 2.0]))
    assert "least l2 norm" not in str(sparse)


def test_a_theorem_of_the_users_comes_first():
    def open_theorem(network, problem):
        later = lt.theory.Assumption("something later", None, None, "a test")
        end = lt.theory.Conclusion(lt.theory.Kind.STATIONARY, None)
        yield lt.theory.Candidate("Mine", (later,), lambda: end)

    network = NETWORKS["Proposition 10"]
    found = lt.predict(network, lt.Regression(X, [1.0, 2.0]), theorems=(open_theorem,))
    assert found.theorem == "Mine"
    assert [c.verdict for c in found.considered[:2]] == ["assumes what is open", "proved"]

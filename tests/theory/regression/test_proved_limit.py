"""`proved_limit` under vmap and `predict` lane by lane: the same limits where one is proved."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lintensor_jax as lt
from lintensor_jax.theory import proved_limit

RNG = np.random.default_rng(11)
ONE = lt.Regression(RNG.standard_normal((1, 3)), np.array([0.8]))
TWO = lt.Regression(RNG.standard_normal((2, 3)), np.array([1.0, -0.5]))
LANES = 4
# The last lane of every case is outside of the theorem.
ETA = RNG.uniform(0.5, 1.5, (LANES, 3)) * np.array([1.0, -1.0, 1.0])
SMALL = 0.3 * RNG.standard_normal((LANES, 3))
SMALL[-1] = 0.0


def two_diagonal_layers():
    return lt.DiagonalNetwork(jnp.stack([ETA, SMALL + np.diag([0, 0, 0, 1])[:, 3:] * ETA], axis=1))


def three_diagonal_layers():
    last = np.zeros((LANES, 3))
    last[-1] = 0.1
    return lt.DiagonalNetwork(jnp.stack([ETA, -ETA, last], axis=1))


def cubes():
    other = ETA.copy()
    other[-1] *= 2
    return jax.vmap(lambda p, m: lt.DifferentialDiagonalNetwork(p, m, 3))(ETA, other)


def squares():
    other = 0.5 * ETA
    other[-1, 0] = 0.0
    return jax.vmap(lambda p, m: lt.DifferentialDiagonalNetwork(p, m, 2))(ETA, other)


def two_filters():
    last = 0.3 * ETA
    last[-1] = 1.5 * ETA[-1]
    return jax.vmap(lambda *w: lt.ConvolutionalNetwork(w))(ETA, last)


def two_full_layers():
    first, last = RNG.standard_normal((LANES, 3, 2)), 0.2 * RNG.standard_normal((LANES, 2))
    last[-1] = 5.0
    return jax.vmap(lambda *w: lt.FullyConnectedNetwork(w))(first, last)


CASES = {
    "two diagonal layers": (two_diagonal_layers, TWO),
    "three diagonal layers": (three_diagonal_layers, TWO),
    "cubes": (cubes, TWO),
    "squares": (squares, TWO),
    "two filters, one sample": (two_filters, ONE),
    "two full layers, one sample": (two_full_layers, ONE),
}


QUICK = ("two diagonal layers", "two full layers, one sample")


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=[] if c in QUICK else pytest.mark.slow) for c in CASES]
)
def test_lanes_in_one_program_have_the_limits_that_predict_calls_exact(case):
    make, problem = CASES[case]
    networks = make()

    def start(lane):
        return jax.tree.map(lambda leaf: leaf[lane], networks)

    found = eqx.filter_jit(jax.vmap(lambda n: proved_limit(n, problem)))(networks)
    assert found.is_proved.tolist() == [True] * (LANES - 1) + [False]
    assert np.isnan(found.limit[-1]).all()
    for lane in range(LANES - 1):
        predicted = lt.predict(start(lane), problem)
        assert predicted.kind == "exact"
        assert predicted.limit is not None
        # Newton's methods of two programs stop at different roundings of their equations.
        np.testing.assert_allclose(found.limit[lane], predicted.limit, rtol=1e-9, atol=1e-11)


def test_each_lane_may_have_its_data_and_dependent_rows_are_not_proved():
    networks, X = two_diagonal_layers(), RNG.standard_normal((LANES - 1, 2, 3))
    networks = jax.tree.map(lambda leaf: leaf[:-1], networks)
    X[1, 1] = 2 * X[1, 0]

    def lane(network, rows):
        return proved_limit(network, lt.Regression(rows, TWO.y))

    found = eqx.filter_jit(jax.vmap(lane))(networks, jnp.asarray(X))
    assert found.is_proved.tolist() == [True, False, True]
    residuals = np.einsum("lnd,ld->ln", X, np.asarray(found.limit)) - np.asarray(TWO.y)
    assert np.abs(residuals[[0, 2]]).max() < 1e-10


def test_a_lane_that_is_not_finite_is_not_proved():
    networks = eqx.tree_at(
        lambda n: n.weights, two_diagonal_layers(), replace_fn=lambda w: w.at[0, 0, 0].set(jnp.nan)
    )
    found = eqx.filter_jit(jax.vmap(lambda n: proved_limit(n, TWO)))(networks)
    assert found.is_proved.tolist() == [False, True, True, False]


DIAGONAL = lt.DiagonalNetwork(jnp.stack([ETA[0], SMALL[0]]))
ABOVE = lt.Regression(RNG.standard_normal((4, 3)), RNG.standard_normal(4))
SIGNS = lt.Classification(RNG.standard_normal((2, 3)), np.array([1.0, -1.0]))
FULL = lt.FullyConnectedNetwork((jnp.ones((3, 2)), jnp.ones(2)))
FILTERS = lt.ConvolutionalNetwork((jnp.ones(3), jnp.ones(3), jnp.ones(3)))


@pytest.mark.parametrize(
    ("network", "problem"),
    [
        (DIAGONAL, ABOVE),
        (DIAGONAL, SIGNS),
        (FULL, TWO),
        (FILTERS, ONE),
        (lt.LinearNetwork(jnp.ones(3)), ONE),
    ],
    ids=[
        "more samples than coefficients",
        "classification",
        "two samples",
        "complex components",
        "one layer",
    ],
)
def test_nothing_is_proved_where_no_theorem_of_this_form_is_about_the_shapes(network, problem):
    found = proved_limit(network, problem)
    assert not found.is_proved
    assert found.limit.shape == problem.coefficient_shape
    assert np.isnan(found.limit).all()


def test_a_network_that_does_not_fit_the_problem_is_refused():
    with pytest.raises(ValueError, match="shape"):
        proved_limit(lt.DiagonalNetwork.zeros(2, 4), TWO)

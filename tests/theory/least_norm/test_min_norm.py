"""min_norm against HiGHS, SCS, lstsq, planted solutions and the optimality conditions.

Tolerances: the package polishes to rounding (1e-13 is typical at these sizes); the accuracy of
HiGHS is ~1e-9, the best one of SCS ~1e-8.
"""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.sparse as sp

from lintensor_jax import Classification, Regression
from lintensor_jax.theory.least_norm.min_norm import InconsistentEquationsError, min_norm
from lintensor_jax.theory.least_norm.norms import (
    FourierL1Norm,
    FourierLpNorm,
    L1Norm,
    L2Norm,
    L21Norm,
    LpNorm,
    NuclearNorm,
    WeightedL2Norm,
)

jax.config.update("jax_enable_x64", True)


def _random(seed, n, d, outputs=()):
    rng = np.random.default_rng(seed)
    return Regression(rng.normal(size=(n, d)), rng.normal(size=(n, *outputs)))


def _sensing(sensors, y):
    return SimpleNamespace(A=jnp.asarray(sensors), y=jnp.asarray(y))


@pytest.mark.parametrize(
    ("norm", "expected"),
    [
        (L2Norm(), [0.2, 0.4]),
        (L1Norm(), [0.0, 0.5]),
        (FourierL1Norm(), [1 / 3, 1 / 3]),
        (LpNorm(2 / 3), [0.0, 0.5]),
        (FourierLpNorm(2 / 3), [1 / 3, 1 / 3]),
    ],
)
def test_toy_data_of_yun_et_al(norm, expected):
    answer = min_norm(Regression(np.array([[1.0, 2.0]]), np.ones(1)), norm)
    np.testing.assert_allclose(answer.coefficients, expected, rtol=0, atol=1e-14)
    np.testing.assert_allclose(answer.value, norm(jnp.asarray(expected)), rtol=1e-13)
    # <nu, y> = |beta|: duality.
    np.testing.assert_allclose(answer.multipliers[0], answer.value, rtol=1e-13)


@pytest.mark.parametrize("outputs", [(), (3,)])
def test_l2_against_lstsq(outputs):
    problem = _random(0, 5, 12, outputs)
    answer = min_norm(problem, L2Norm())
    X, y = np.asarray(problem.X), np.asarray(problem.y)
    np.testing.assert_allclose(answer.coefficients, np.linalg.lstsq(X, y)[0], rtol=0, atol=1e-13)
    assert answer.unique
    assert answer.status == "optimal"
    assert answer.kkt_residual < 1e-13
    weights = np.random.default_rng(1).uniform(0.5, 2, (12, *outputs))
    weighted = min_norm(problem, WeightedL2Norm(weights))
    rows = np.kron(X, np.eye(y[0].size)) / weights.ravel()
    expected = np.linalg.lstsq(rows, y.ravel())[0] / weights.ravel()
    np.testing.assert_allclose(
        weighted.coefficients, expected.reshape(weights.shape), rtol=0, atol=1e-13
    )
    assert weighted.kkt_residual < 1e-13
    np.testing.assert_allclose(jnp.sum(weighted.multipliers * y), weighted.value, rtol=1e-12)


def test_l2_can_be_traced():
    problem = _random(2, 4, 9)

    def value(y):
        return min_norm(Regression(problem.X, y), L2Norm()).value

    # The gradient of the value in y is the multipliers: an independent check of both.
    gradient = jax.jit(jax.grad(value))(problem.y)
    np.testing.assert_allclose(
        gradient, min_norm(problem, L2Norm()).multipliers, rtol=0, atol=1e-13
    )
    targets = jnp.stack([problem.y, 2 * problem.y])
    batch = jax.vmap(lambda y: min_norm(Regression(problem.X, y), L2Norm()).coefficients)(targets)
    np.testing.assert_allclose(batch[1], 2 * batch[0], rtol=1e-13)
    with pytest.raises(ValueError, match="only l2 norms can be traced"):
        jax.jit(lambda y: min_norm(Regression(problem.X, y), L1Norm()).value)(problem.y)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("weighted", [False, True])
def test_l1_against_highs(weighted, scale):
    problem = _random(3, 10, 30)
    weights = np.random.default_rng(4).uniform(0.5, 2, 30) if weighted else np.ones(30)
    scaled = Regression(problem.X * scale, problem.y)
    answer = min_norm(scaled, L1Norm(weights if weighted else None))
    X = np.asarray(problem.X)
    program = scipy.optimize.linprog(
        np.tile(weights, 2), A_eq=np.hstack([X, -X]), b_eq=np.asarray(problem.y), method="highs"
    )
    np.testing.assert_allclose(answer.value * scale, program.fun, rtol=1e-9)
    expected = program.x[:30] - program.x[30:]
    np.testing.assert_allclose(answer.coefficients * scale, expected, rtol=0, atol=1e-8)
    assert answer.unique
    assert answer.kkt_residual < 1e-12
    # By hand: the dual vector is in the l1 subdifferential.
    g = np.asarray(scaled.X.T @ answer.multipliers) / weights
    on = np.asarray(answer.coefficients) != 0
    np.testing.assert_allclose(g[on], np.sign(answer.coefficients)[on], rtol=0, atol=1e-12)
    assert np.max(np.abs(g)) <= 1 + 1e-12


@pytest.mark.parametrize("d", [11, 12])
def test_fourier_l1_against_scs(d):
    import scs

    problem = _random(5, 4, d)
    # min sum s_k s.t. |(F beta)_k| <= s_k over *all* d frequencies: no use of conjugate pairs.
    F = np.fft.fft(np.eye(d), norm="ortho")
    blocks = [sp.hstack([sp.csc_matrix(np.asarray(problem.X)), sp.csc_matrix((4, d))])]
    for k in range(d):
        s_k = np.concatenate([np.zeros(d), np.eye(d)[k]])
        parts = [np.concatenate([part, np.zeros(d)]) for part in (F[k].real, F[k].imag)]
        blocks.append(sp.csc_matrix(-np.stack([s_k, *parts])))
    data = {
        "A": sp.vstack(blocks, format="csc"),
        "b": np.concatenate([np.asarray(problem.y), np.zeros(3 * d)]),
        "c": np.concatenate([np.zeros(d), np.ones(d)]),
    }
    solver = scs.SCS(data, {"z": 4, "q": [3] * d}, verbose=False, eps_abs=1e-10, eps_rel=1e-10)
    answer = min_norm(problem, FourierL1Norm())
    np.testing.assert_allclose(answer.coefficients, solver.solve()["x"][:d], rtol=0, atol=1e-7)
    assert answer.unique
    assert answer.kkt_residual < 1e-12


def test_nuclear_recovers_a_planted_matrix():
    rng = np.random.default_rng(6)
    planted = np.outer(rng.normal(size=5), rng.normal(size=5))
    sensors = rng.normal(size=(22, 5, 5))
    y = np.einsum("nij,ij->n", sensors, planted)
    answer = min_norm(_sensing(sensors, y), NuclearNorm())
    # There are fewer sensors than the 25 unknowns, but enough for rank one.
    np.testing.assert_allclose(answer.coefficients, planted, rtol=0, atol=1e-12)
    assert answer.unique
    dual = np.einsum("n,nij->ij", answer.multipliers, sensors)
    assert np.linalg.norm(dual, 2) <= 1 + 1e-12
    np.testing.assert_allclose(np.sum(answer.multipliers * y), np.linalg.norm(planted, "nuc"))


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_nuclear_optimality_by_duality(scale):
    rng = np.random.default_rng(7)
    sensors, y = rng.normal(size=(6, 4, 4)) * scale, rng.normal(size=6)
    answer = min_norm(_sensing(sensors, y), NuclearNorm())
    value = np.linalg.norm(answer.coefficients, "nuc")
    dual = np.einsum("n,nij->ij", answer.multipliers, sensors)
    # A feasible point and a feasible dual of the same value: both are optimal.
    np.testing.assert_allclose(
        np.einsum("nij,ij->n", sensors, answer.coefficients), y, rtol=0, atol=1e-12
    )
    assert np.linalg.norm(dual, 2) <= 1 + 1e-12
    np.testing.assert_allclose(answer.multipliers @ y, value, rtol=1e-12)
    np.testing.assert_allclose(answer.value, value, rtol=1e-12)


def test_nuclear_of_commuting_sensors_is_l1_but_not_unique():
    problem = _random(8, 3, 5)
    diagonal = np.einsum("nd,de->nde", problem.X, np.eye(5))
    answer = min_norm(_sensing(diagonal, problem.y), NuclearNorm())
    np.testing.assert_allclose(answer.value, min_norm(problem, L1Norm()).value, rtol=1e-12)
    # The off-diagonal entries of the optimal face have no effect on diagonal sensors.
    assert answer.unique is False


@pytest.mark.parametrize("norm", [L21Norm(), NuclearNorm(), L1Norm()])
def test_several_outputs(norm):
    problem = _random(9, 3, 6, (2,))
    answer = min_norm(problem, norm)
    X, Y = np.asarray(problem.X), np.asarray(problem.y)
    G = X.T @ np.asarray(answer.multipliers)
    dual = {
        L21Norm: np.max(np.linalg.norm(G, axis=1)),
        NuclearNorm: np.linalg.norm(G, 2),
        L1Norm: np.max(np.abs(G)),
    }[type(norm)]
    np.testing.assert_allclose(X @ answer.coefficients, Y, rtol=0, atol=1e-12)
    assert dual <= 1 + 1e-12
    np.testing.assert_allclose(
        np.sum(answer.multipliers * Y), norm(answer.coefficients), rtol=1e-12
    )
    assert answer.unique


@pytest.mark.parametrize("fourier", [False, True])
def test_quasi_norm_is_stationary(fourier):
    problem = _random(10, 5, 16)
    p = 0.5
    norm = FourierLpNorm(p) if fourier else LpNorm(p)
    answer = min_norm(problem, norm)
    transform = (lambda v: np.fft.fft(v, norm="ortho")) if fourier else np.asarray
    beta, g = transform(answer.coefficients), transform(problem.X.T @ answer.multipliers)
    on = np.abs(beta) > 1e-12 * np.abs(beta).max()
    size = np.sum(np.abs(beta[on]) ** p) ** (1 / p)
    slope = size ** (1 - p) * np.abs(beta[on]) ** (p - 2) * beta[on]
    np.testing.assert_allclose(g[on], slope, rtol=1e-9)
    np.testing.assert_allclose(problem.X @ answer.coefficients, problem.y, rtol=0, atol=1e-12)
    assert answer.status == "stationary"
    again = min_norm(problem, norm, start=answer.coefficients)
    np.testing.assert_allclose(again.coefficients, answer.coefficients, rtol=0, atol=1e-11)


# Samples of one size, and samples whose sizes differ by 1e6.
SPREADS = [0, -6]
POWERS = [0.5, 0.2]


def _with_support(seed, spread):
    """X (4, 9) and three coordinates out of nine."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(4, 9)) * np.logspace(0, spread, 4)[:, None]
    return rng, X, rng.permutation(9)[:3]


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize("seed", range(20, 26))
def test_a_start_on_whose_support_nothing_solves_the_equations_is_refused(seed, power, spread):
    # Four generic equations in three unknowns. Least squares leaves a misfit of the size of y.
    rng, X, support = _with_support(seed, spread)
    y = np.linalg.norm(X, axis=1) * rng.normal(size=4)
    start = np.zeros(9)
    start[support] = rng.normal(size=3)
    problem = Regression(X, y)
    with pytest.raises(ValueError, match="solvable on the nonzero coordinates of start"):
        min_norm(problem, LpNorm(power), start=start)
    # One more coordinate: four equations in four unknowns have one solution, which is the answer.
    extra = np.flatnonzero(start == 0)[0]
    start[extra] = 1.0
    answer = min_norm(problem, LpNorm(power), start=start)
    on = start != 0
    assert answer.status == "stationary"
    assert (np.asarray(answer.coefficients)[~on] == 0).all()
    sizes = np.linalg.norm(X, axis=1)
    expected = np.linalg.solve(X[:, on] / sizes[:, None], y / sizes)
    np.testing.assert_allclose(np.asarray(answer.coefficients)[on], expected, rtol=1e-7)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize("seed", range(30, 34))
def test_more_equations_than_coordinates_of_the_start_that_agree(seed, power, spread, dtype):
    # Four equations in three unknowns, of which one follows from the others up to rounding.
    rng, X, support = _with_support(seed, spread)
    planted = np.zeros(9)
    planted[support] = rng.uniform(0.5, 2, 3) * rng.choice([-1, 1], 3)
    X, planted = X.astype(dtype), planted.astype(dtype)
    answer = min_norm(Regression(X, X @ planted), LpNorm(power), start=np.sign(planted))
    assert answer.status == "stationary"
    tolerance = 1e-8 if dtype == np.float64 else 1e-3
    np.testing.assert_allclose(answer.coefficients, planted, rtol=0, atol=tolerance)


def test_dependent_coordinates_of_a_start_count_once():
    # Columns 0 and 1 are equal, so three coordinates span only a plane.
    rng = np.random.default_rng(40)
    X = rng.normal(size=(3, 5))
    X[:, 1] = X[:, 0]
    start = np.array([1.0, 2.0, 1.0, 0.0, 0.0])
    with pytest.raises(ValueError, match="solvable on the nonzero coordinates of start"):
        min_norm(Regression(X, rng.normal(size=3)), LpNorm(0.5), start=start)
    answer = min_norm(Regression(X, X @ np.array([0, 3.0, 1, 0, 0])), LpNorm(0.5), start=start)
    np.testing.assert_allclose(X[:, :3] @ answer.coefficients[:3], X @ [0, 3.0, 1, 0, 0], rtol=1e-9)
    # Of the two equal columns one is enough, and p < 1 takes one.
    np.testing.assert_allclose(sorted(np.abs(answer.coefficients)), [0, 0, 0, 1, 3], atol=1e-9)


def test_a_sample_that_is_small_is_not_overlooked():
    # Sample 1 requires beta_1 = 1, but its misfit is only 1e-10.
    problem = Regression([[1.0, 0.0], [0.0, 1e-10]], [1.0, 1e-10])
    with pytest.raises(ValueError, match="solvable on the nonzero coordinates of start"):
        min_norm(problem, LpNorm(0.5), start=np.array([1.0, 0.0]))


def test_a_support_in_frequencies():
    rng = np.random.default_rng(41)
    one_frequency = np.cos(2 * np.pi * 2 * np.arange(8) / 8)
    X = rng.normal(size=(3, 8))
    with pytest.raises(ValueError, match="solvable on the nonzero coordinates of start"):
        min_norm(Regression(X, rng.normal(size=3)), FourierLpNorm(0.5), start=one_frequency)
    answer = min_norm(Regression(X, 3 * X @ one_frequency), FourierLpNorm(0.5), start=one_frequency)
    assert answer.status == "stationary"
    np.testing.assert_allclose(answer.coefficients, 3 * one_frequency, rtol=0, atol=1e-9)


def test_a_small_power_of_many_coordinates():
    # At quasi-norm 1 all coordinates are of the size of 30^-10.
    problem = _random(42, 5, 30)
    answer = min_norm(problem, LpNorm(0.1))
    assert answer.status == "stationary"
    np.testing.assert_allclose(problem.X @ answer.coefficients, problem.y, rtol=0, atol=1e-9)


def test_redundant_float32_equations_are_solved_to_their_rounding():
    rng = np.random.default_rng(43)
    X = rng.normal(size=(6, 4)).astype(np.float32)
    planted = np.array([1.0, -2.0, 0.5, 3.0], np.float32)
    for norm in (L1Norm(), L2Norm()):
        answer = min_norm(Regression(X, X @ planted), norm)
        assert answer.status == "optimal"
        np.testing.assert_allclose(answer.coefficients, planted, rtol=0, atol=1e-4)


def test_non_unique_minimisers_are_called_so():
    answer = min_norm(Regression(np.ones((1, 3)), np.ones(1)), L1Norm())
    np.testing.assert_allclose(answer.value, 1.0, rtol=1e-14)
    assert answer.unique is False
    assert min_norm(Regression(np.ones((1, 3)), np.ones(1)), L2Norm()).unique


@pytest.mark.parametrize("norm", [L2Norm(), WeightedL2Norm(np.full(6, 2.0)), L1Norm()])
def test_redundant_and_inconsistent_equations(norm):
    problem = _random(11, 3, 6)
    X, y = np.asarray(problem.X), np.asarray(problem.y)
    reference = min_norm(problem, norm)
    redundant = min_norm(Regression(np.vstack([X, 2 * X]), np.append(y, 2 * y)), norm)
    np.testing.assert_allclose(redundant.coefficients, reference.coefficients, rtol=0, atol=1e-12)
    assert redundant.kkt_residual < 1e-12
    # y and -y on the same rows: the best fit is 0, and nothing of y is explained.
    with pytest.raises(
        InconsistentEquationsError, match=r"inconsistency .* = 1\.000e\+00"
    ) as error:
        min_norm(Regression(np.vstack([X, X]), np.append(y, -y)), norm)
    np.testing.assert_allclose(error.value.inconsistency, 1.0)


@pytest.mark.parametrize("norm", [L2Norm(), L1Norm(), FourierL1Norm()])
def test_zero_targets(norm):
    answer = min_norm(Regression(np.eye(2, 4), np.zeros(2)), norm)
    assert (answer.coefficients == 0).all()
    assert answer.value == 0
    assert answer.kkt_residual == 0


def test_float32_data_give_float32_answers():
    problem = Regression(jnp.array([[1, 2]], jnp.float32), jnp.ones(1, jnp.float32))
    for norm, expected in ((L2Norm(), [0.2, 0.4]), (L1Norm(), [0.0, 0.5])):
        answer = min_norm(problem, norm)
        assert answer.coefficients.dtype == jnp.float32
        assert answer.status == "optimal"
        np.testing.assert_allclose(answer.coefficients, expected, rtol=0, atol=1e-6)


def test_bad_arguments():
    problem = _random(12, 3, 5)
    with pytest.raises(ValueError, match="use max_margin"):
        min_norm(Classification(problem.X, jnp.ones(3)), L1Norm())
    with pytest.raises(ValueError, match="norm must be a norm object"):
        min_norm(problem, "l1")  # pyright: ignore[reportArgumentType]
    for norm in (L1Norm(np.ones(4)), WeightedL2Norm(np.ones(4))):
        with pytest.raises(ValueError, match="one weight per coefficient"):
            min_norm(problem, norm)
    with pytest.raises(ValueError, match="must be matrices"):
        min_norm(problem, L21Norm())
    for norm in (L1Norm(), L2Norm()):
        with pytest.raises(ValueError, match="start must be left out"):
            min_norm(problem, norm, start=np.ones(5))
    with pytest.raises(ValueError, match="coefficients' shape"):
        min_norm(problem, LpNorm(0.5), start=np.ones(4))
    with pytest.raises(ValueError, match="nonzero coordinates of start"):
        min_norm(problem, LpNorm(0.5), start=np.eye(5)[0])


def test_in_words():
    # If rounding leaves a zero in the first coordinate, the others must keep their printed digits.
    text = str(min_norm(Regression([[1.0, 2.0]], [1.0]), L1Norm()))
    assert text.startswith("Interpolator of least norm [optimal], the only solution\n")
    for line in ("norm             0.5", "coefficients     [0. , 0.5]", "nonzero entries  1 of 2"):
        assert f"  {line}\n" in text
    assert "KKT residual" in text
    long = str(min_norm(_random(3, 4, 20), L1Norm()))
    assert "nonzero entries  4 of 20" in long
    assert "..." in long
    assert "(shape (20,), l2 norm " in long
    assert max(map(len, long.splitlines())) <= 100
    matrix = str(min_norm(_random(3, 4, 6, (2,)), L2Norm()))
    assert "array of shape (6, 2), l2 norm " in matrix
    problems = jax.vmap(lambda y: min_norm(Regression(jnp.eye(2), y), L2Norm()))(jnp.eye(2))
    assert "MinNorm(" in str(problems)  # a batch has several norms, so none is printed

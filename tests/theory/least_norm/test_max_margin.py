"""max_margin and is_separable against HiGHS, SCS, SLSQP, the optimality conditions, bad data.

Tolerances: the package polishes to rounding (1e-13 is typical at these sizes), so 1e-12 is required
of its residual and objective. The accuracy of HiGHS is ~1e-9, the best one of SCS ~1e-8.
"""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.sparse as sp

from lintensor_jax import Classification, Regression
from lintensor_jax.messages import shown
from lintensor_jax.theory.least_norm.max_margin import (
    MarginPrecisionError,
    NonSeparableError,
    is_separable,
    max_margin,
)
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

CONVEX = [L2Norm(), L1Norm(), FourierL1Norm()]


def _separable(seed, n, d, scale=1.0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d))
    y = np.sign(X @ rng.normal(size=d))
    return Classification(X * scale, y)


def _kkt_by_hand(problem, norm, answer):
    """The violation of optimality, from the definition of each norm, not from the package."""
    Z, z, nu = (
        np.asarray(a) for a in (problem.signed_data, answer.coefficients, answer.multipliers)
    )
    margins = Z @ z
    worst = max(0.0, np.max(1 - margins), np.max(-nu), np.max(np.abs(nu * (margins - 1))))
    g = Z.T @ nu
    if isinstance(norm, L2Norm):
        return max(worst, np.max(np.abs(g - z / np.linalg.norm(z))))
    if isinstance(norm, FourierL1Norm):
        g, z = np.fft.fft(g, norm="ortho"), np.fft.fft(z, norm="ortho")
    on = np.abs(z) > 1e-12 * np.abs(z).max()
    off = np.max(np.abs(g[~on]) - 1, initial=0.0)
    return max(worst, np.max(np.abs(g[on] - z[on] / np.abs(z[on]))), off)


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
    problem = Classification(np.array([[1.0, 2.0], [0.0, 3.0]]), np.ones(2))
    answer = max_margin(problem, norm)
    np.testing.assert_allclose(answer.coefficients, expected, rtol=0, atol=1e-14)
    np.testing.assert_allclose(answer.margin, 1 / norm(jnp.asarray(expected)), rtol=1e-13)
    np.testing.assert_allclose(jnp.linalg.norm(answer.direction), 1.0, rtol=1e-14)
    assert answer.support[0]
    assert answer.status == (
        "stationary" if isinstance(norm, LpNorm | FourierLpNorm) else "optimal"
    )


@pytest.mark.parametrize("norm", CONVEX, ids=lambda norm: type(norm).__name__)
@pytest.mark.parametrize(("n", "d"), [(8, 5), (20, 10), (15, 40), (12, 33)])
def test_optimality_conditions(norm, n, d):
    problem = _separable(n + d, n, d)
    answer = max_margin(problem, norm)
    assert _kkt_by_hand(problem, norm, answer) < 1e-12
    assert answer.kkt_residual < 1e-12
    assert answer.status == "optimal"
    assert answer.unique
    np.testing.assert_allclose(answer.margin, 1 / norm(answer.coefficients), rtol=1e-13)
    # Homogeneity: the multipliers' sum is the norm.
    np.testing.assert_allclose(jnp.sum(answer.multipliers), 1 / answer.margin, rtol=1e-12)
    margins = problem.margins(answer.coefficients)
    np.testing.assert_array_equal(answer.support, np.abs(margins - 1) < 1e-9)
    assert (np.asarray(answer.multipliers)[~np.asarray(answer.support)] == 0).all()


@pytest.mark.parametrize("weighted", [False, True])
def test_l1_against_highs(weighted):
    problem = _separable(3, 20, 30)
    weights = np.random.default_rng(4).uniform(0.5, 2, 30) if weighted else np.ones(30)
    answer = max_margin(problem, L1Norm(weights if weighted else None))
    Z = np.asarray(problem.signed_data)
    program = scipy.optimize.linprog(
        np.tile(weights, 2), A_ub=np.hstack([-Z, Z]), b_ub=-np.ones(20), method="highs"
    )
    np.testing.assert_allclose(1 / answer.margin, program.fun, rtol=1e-9)
    np.testing.assert_allclose(
        answer.coefficients, program.x[:30] - program.x[30:], rtol=0, atol=1e-8
    )


@pytest.mark.parametrize("weighted", [False, True])
def test_l2_against_slsqp(weighted):
    problem = _separable(5, 20, 6)
    weights = np.random.default_rng(6).uniform(0.5, 2, 6) if weighted else np.ones(6)
    answer = max_margin(problem, WeightedL2Norm(weights) if weighted else L2Norm())
    Z = np.asarray(problem.signed_data)
    start = 10 * np.asarray(max_margin(problem, L1Norm()).coefficients)
    other = scipy.optimize.minimize(
        lambda z: np.sum((weights * z) ** 2),
        start,
        jac=lambda z: 2 * weights**2 * z,
        constraints={"type": "ineq", "fun": lambda z: Z @ z - 1, "jac": lambda z: Z},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    np.testing.assert_allclose(answer.coefficients, other.x, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("d", [7, 8])
def test_fourier_l1_against_scs(d):
    import scs

    problem = _separable(d, 10, d)
    # min sum s_k s.t. |(F z)_k| <= s_k over *all* d frequencies: no use of conjugate pairs.
    F = np.fft.fft(np.eye(d), norm="ortho")
    blocks = [sp.hstack([-sp.csc_matrix(np.asarray(problem.signed_data)), sp.csc_matrix((10, d))])]
    for k in range(d):
        s_k = np.concatenate([np.zeros(d), np.eye(d)[k]])
        parts = [np.concatenate([part, np.zeros(d)]) for part in (F[k].real, F[k].imag)]
        blocks.append(sp.csc_matrix(-np.stack([s_k, *parts])))
    matrix = sp.vstack(blocks, format="csc")
    data = {
        "A": matrix,
        "b": np.concatenate([-np.ones(10), np.zeros(3 * d)]),
        "c": np.concatenate([np.zeros(d), np.ones(d)]),
    }
    solver = scs.SCS(data, {"l": 10, "q": [3] * d}, verbose=False, eps_abs=1e-10, eps_rel=1e-10)
    found = solver.solve()["x"][:d]
    answer = max_margin(problem, FourierL1Norm())
    np.testing.assert_allclose(answer.coefficients, found, rtol=0, atol=1e-7 * np.abs(found).max())


def test_matrix_coefficients():
    """Norm duality: the margin is the smallest dual norm of a convex combination of the data."""
    sensors = np.random.default_rng(0).normal(size=(4, 3, 3))
    problem = SimpleNamespace(signed_data=jnp.asarray(sensors))
    duals = [
        (NuclearNorm(), lambda g: np.linalg.norm(g, 2)),
        (L21Norm(), lambda g: np.max(np.linalg.norm(g, axis=1))),
        (L2Norm(), np.linalg.norm),
        (L1Norm(), lambda g: np.max(np.abs(g))),
    ]
    for norm, dual in duals:
        answer = max_margin(problem, norm)
        assert answer.coefficients.shape == (3, 3)
        nu = np.asarray(answer.multipliers)
        attained = np.min(np.einsum("nij,ij->n", sensors, answer.coefficients))
        lower = attained / norm(answer.coefficients)
        upper = dual(np.einsum("n,nij->ij", nu / nu.sum(), sensors))
        np.testing.assert_allclose(lower, upper, rtol=1e-12)
        np.testing.assert_allclose(answer.margin, upper, rtol=1e-12)


@pytest.mark.parametrize("fourier", [False, True])
def test_quasi_norm_is_stationary(fourier):
    problem = _separable(11, 12, 20)
    p = 2 / 3
    answer = max_margin(problem, FourierLpNorm(p) if fourier else LpNorm(p))
    transform = (lambda v: np.fft.fft(v, norm="ortho")) if fourier else np.asarray
    z, g = transform(answer.coefficients), transform(problem.signed_data.T @ answer.multipliers)
    on = np.abs(z) > 1e-12 * np.abs(z).max()
    size = np.sum(np.abs(z[on]) ** p) ** (1 / p)
    slope = size ** (1 - p) * np.abs(z[on]) ** (p - 2) * z[on]
    np.testing.assert_allclose(g[on], slope, rtol=1e-9)
    assert np.min(problem.margins(answer.coefficients)) > 1 - 1e-12
    assert answer.status == "stationary"
    assert answer.unique is None
    # In the quasi-norm the solution must not be worse than the start.
    start = max_margin(problem, L2Norm()).coefficients
    assert 1 / answer.margin <= (FourierLpNorm(p) if fourier else LpNorm(p))(start)


def test_quasi_norm_keeps_a_stationary_start():
    """Here [1/2, 1/2] is stationary though not a minimum; a flow may end there."""
    problem = Classification(np.array([[1.0, 1.0]]), np.ones(1))
    kept = max_margin(problem, LpNorm(0.5), start=np.array([0.3, 0.3]))
    np.testing.assert_allclose(kept.coefficients, [0.5, 0.5], rtol=0, atol=1e-14)
    left = max_margin(problem, LpNorm(0.5), start=np.array([0.3, 0.5]))
    np.testing.assert_allclose(left.coefficients, [0.0, 1.0], rtol=0, atol=1e-14)
    with pytest.raises(ValueError, match="start must separate"):
        max_margin(problem, LpNorm(0.5), start=np.array([-0.3, 0.1]))
    with pytest.raises(ValueError, match="start must be left out"):
        max_margin(problem, L1Norm(), start=np.ones(2))


@pytest.mark.parametrize("seed", range(8))
def test_a_start_of_margin_zero_does_not_separate(seed):
    # The computed margin of sample 0 is about 1e-17, of either sign.
    rng = np.random.default_rng(seed)
    normal = rng.normal(size=5)
    X = normal + 0.3 * rng.normal(size=(6, 5))
    start = normal - X[0] * (X[0] @ normal) / (X[0] @ X[0])
    X[1:] *= np.sign(X[1:] @ start)[:, None]
    problem = Classification(X, np.ones(6))
    with pytest.raises(ValueError, match="start must separate"):
        max_margin(problem, LpNorm(0.5), start=start)
    inside = start + 1e-6 * X[0]
    if np.min(X @ inside) > 0:
        assert max_margin(problem, LpNorm(0.5), start=inside).status == "stationary"


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("norm", [L1Norm(), LpNorm(0.5)])
def test_data_on_both_sides_of_a_boundary_are_not_separable(norm, seed):
    # The last sample is minus a positive combination of two others.
    rng = np.random.default_rng(seed)
    normal = rng.normal(size=5)
    X = rng.normal(size=(6, 5))
    X *= np.sign(X @ normal)[:, None] * 10 ** rng.uniform(-3, 3, (6, 1))
    X = np.vstack([X, -0.3 * X[0] - 0.7 * X[1]])
    with pytest.raises(NonSeparableError) as error:
        max_margin(Classification(X, np.ones(7)), norm)
    assert error.value.residual < 1e-14
    weights = np.asarray(error.value.certificate)
    assert (weights >= 0).all()
    assert weights[6] > 0
    scale = weights @ np.linalg.norm(X, axis=1)
    np.testing.assert_allclose(weights @ X, 0, atol=1e-14 * scale)


@pytest.mark.parametrize("norm", CONVEX, ids=lambda norm: type(norm).__name__)
def test_scale_and_duplicates_change_nothing(norm):
    base = _separable(7, 12, 6)
    X, y = np.asarray(base.X), np.asarray(base.y)
    reference = max_margin(base, norm)
    for scale in (1e-200, 1e-6, 1e6):
        answer = max_margin(Classification(X * scale, y), norm)
        assert answer.status == "optimal"
        np.testing.assert_allclose(answer.margin / scale, reference.margin, rtol=1e-12)
        np.testing.assert_allclose(answer.direction, reference.direction, rtol=0, atol=1e-12)
    doubled = max_margin(Classification(np.tile(X, (3, 1)), np.tile(y, 3)), norm)
    np.testing.assert_allclose(doubled.direction, reference.direction, rtol=0, atol=1e-12)
    assert doubled.kkt_residual < 1e-12
    together = np.asarray(doubled.multipliers).reshape(3, -1).sum(0)
    np.testing.assert_allclose(together, reference.multipliers, rtol=0, atol=1e-11)


def test_one_class_and_identical_samples():
    problem = Classification(np.ones((4, 3)), np.ones(4))
    np.testing.assert_allclose(max_margin(problem, L2Norm()).margin, np.sqrt(3), rtol=1e-14)
    answer = max_margin(problem, L1Norm())
    np.testing.assert_allclose(answer.margin, 1.0, rtol=1e-14)
    assert answer.unique is False  # any z >= 0 of sum 1


@pytest.mark.parametrize("gap", [1e-6, 1e-8])
@pytest.mark.parametrize("norm", CONVEX, ids=lambda norm: type(norm).__name__)
def test_nearly_non_separable(norm, gap):
    # z must be (almost) [0, 1/gap]: the margin is gap over the norm of [0, 1].
    X = np.array([[1.0, gap], [-1.0, gap], [0.5, 1.0]])
    answer = max_margin(Classification(X, np.ones(3)), norm)
    # The data fix z only to eps / gap.
    expected = gap / norm(jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(answer.margin, expected, rtol=1e-15 / gap)
    np.testing.assert_allclose(answer.direction, [0.0, 1.0], rtol=0, atol=1e-15 / gap)


def test_hopeless_margins_are_refused_not_guessed():
    rng = np.random.default_rng(3)
    X = rng.normal(size=(12, 6))
    v = np.eye(6)[0]
    X = X - np.outer(X @ v, v) + 1e-13 * np.outer(1 + np.arange(12), v)
    with pytest.raises((MarginPrecisionError, NonSeparableError), match=r"margin|separable"):
        max_margin(Classification(X, np.ones(12)), L1Norm())


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_non_separable_data_come_with_a_certificate(scale):
    rng = np.random.default_rng(8)
    problem = Classification(rng.normal(size=(40, 5)) * scale, np.sign(rng.normal(size=40)))
    answer = is_separable(problem)
    assert not answer.separable
    assert answer.margin == 0
    weights = np.asarray(answer.certificate)
    assert (weights >= 0).all()
    np.testing.assert_allclose(weights.sum(), 1.0, rtol=1e-14)
    # The bound 1e-14 is for the rounding of forty terms.
    assert np.linalg.norm(weights @ problem.signed_data) < 1e-14 * scale
    assert answer.residual < 1e-14
    # HiGHS agrees that z_i . w >= 1 has no solution.
    Z = np.asarray(problem.signed_data) / scale
    program = scipy.optimize.linprog(
        np.zeros(5), A_ub=-Z, b_ub=-np.ones(40), bounds=(None, None), method="highs"
    )
    assert program.status == 2
    for norm in (L2Norm(), L1Norm(), FourierL1Norm(), LpNorm(0.5), FourierLpNorm(0.5)):
        with pytest.raises(NonSeparableError, match="convex combination") as error:
            max_margin(problem, norm)
        assert np.linalg.norm(error.value.certificate @ problem.signed_data) < 1e-13 * scale


def test_separable_data_come_with_the_separator():
    problem = _separable(9, 12, 6)
    answer = is_separable(problem)
    assert answer.separable
    np.testing.assert_allclose(np.min(problem.margins(answer.certificate)), answer.margin)
    np.testing.assert_allclose(jnp.linalg.norm(answer.certificate), 1.0)


def test_contradictory_and_zero_samples():
    X = np.random.default_rng(1).normal(size=(5, 8))
    twice = Classification(np.vstack([X, X[:1]]), np.append(np.ones(5), -1.0))
    np.testing.assert_allclose(
        is_separable(twice).certificate, [0.5, 0, 0, 0, 0, 0.5], rtol=0, atol=1e-12
    )
    X[2] = 0
    with pytest.raises(NonSeparableError, match="sample 2 is zero"):
        max_margin(Classification(X, np.ones(5)), L1Norm())


def test_bad_arguments():
    problem = _separable(1, 4, 3)
    with pytest.raises(ValueError, match="use min_norm"):
        max_margin(Regression(np.ones((1, 2)), np.ones(1)), L1Norm())
    with pytest.raises(ValueError, match="norm must be a norm object"):
        max_margin(problem, "l1")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="must be matrices"):
        max_margin(problem, L21Norm())
    with pytest.raises(ValueError, match="NuclearNorm"):
        max_margin(problem, NuclearNorm())
    with pytest.raises(ValueError, match="one weight per coefficient"):
        max_margin(problem, L1Norm(np.ones(2)))
    with pytest.raises(ValueError, match="outside jit"):
        jax.jit(lambda X: max_margin(Classification(X, jnp.ones(4)), L2Norm()).margin)(problem.X)


def test_norms():
    beta = jnp.asarray(np.random.default_rng(2).normal(size=9))
    moduli = np.abs(np.fft.fft(beta)) / 3
    np.testing.assert_allclose(FourierL1Norm()(beta), moduli.sum())
    np.testing.assert_allclose(FourierLpNorm(0.5)(beta), np.sqrt(moduli).sum() ** 2)
    np.testing.assert_allclose(LpNorm(0.5)(beta), jnp.sqrt(jnp.abs(beta)).sum() ** 2)
    np.testing.assert_allclose(WeightedL2Norm(np.full(9, 2.0))(beta), 2 * jnp.linalg.norm(beta))
    np.testing.assert_allclose(L1Norm(np.full(9, 2.0))(beta), 2 * jnp.abs(beta).sum())
    matrix = beta.reshape(3, 3)
    np.testing.assert_allclose(NuclearNorm()(matrix), np.linalg.norm(np.asarray(matrix), "nuc"))
    np.testing.assert_allclose(L21Norm()(matrix), jnp.sqrt((matrix**2).sum(1)).sum())
    # (1000 equal entries)^(1/p) at p = 0.05 is 1e60: no overflow on the way.
    np.testing.assert_allclose(LpNorm(0.05)(jnp.full(1000, 1e-200)), 1e-140, rtol=1e-10)
    assert FourierLpNorm(0.5)(jnp.zeros(4)) == 0
    for bad in (0.0, 1.0, 2.0):
        with pytest.raises(ValueError, match="strictly between 0 and 1"):
            FourierLpNorm(bad)
    with pytest.raises(ValueError, match=r"positive and finite, got 0\.0 at index \[1\]"):
        WeightedL2Norm([1.0, 0.0])


def test_in_words():
    text = str(max_margin(Classification([[1.0, 2.0], [0.0, -3.0]], [1.0, -1.0]), L1Norm()))
    assert text.startswith("Maximum-margin separator [optimal], the only solution\n")
    for line in (
        "margin           2",
        "direction        [0., 1.]",
        "nonzero entries  1 of 2",
        "support samples  1 of 2",
    ):
        assert f"  {line}\n" in text
    assert text.endswith("  KKT residual     0.0e+00")  # not -0.0e+00
    separable = str(is_separable(Classification([[1.0, 0.0]], [1.0])))
    assert separable.startswith("Linearly separable")
    assert "  l2 margin        1\n  separator        [1., 0.]\n" in separable
    contradictory = str(is_separable(Classification([[1.0], [2.0], [1.0]], [1.0, 1.0, -1.0])))
    assert contradictory.startswith("Not linearly separable")
    assert "samples in it    2 of 3" in contradictory or "samples in it    3 of 3" in contradictory


def test_rounding_is_not_printed_in_place_of_a_zero():
    assert shown([1.497065e-38, 1.0]) == "[0., 1.]"
    assert shown([3e-9, 4e-9]) == "[3.e-09, 4.e-09]"  # small numbers that are not rounding
    assert shown([2e-12, 1.0]).startswith("[2.")

"""Directions at finite loss (Moroshko et al. 2020): programs, limits, flows and differences."""

from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.optimize import brentq, minimize

import lintensor_jax as lt
from lintensor_jax.theory import (
    NonSeparableError,
    direction_at_loss,
    finite_loss_path,
    interpolated_max_margin,
)

DEPTHS = (2, 3, 5)


def problem(seed, n=4, d=6):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d))
    return lt.Classification(X, np.sign(X @ rng.standard_normal(d)))


# In the first problem samples leave the support as mu falls; in the second one no sample does.
LEAVING, STAYING = problem(1), problem(5)


def h(s, depth):
    """h_D as printed (Woodworth et al. 2020)."""
    if depth == 2:
        return 2 * np.sinh(s)
    p = depth / (depth - 2)
    return (1 - s) ** -p - (1 + s) ** -p


def objective(w, depth, mu):
    """sum mu q_D(w_j / mu) = sum s_j w_j - mu int_0^s_j h, s_j = h_D^-1(w_j / mu); gradient s."""
    end = 50 if depth == 2 else 1 - 1e-12
    s = np.array([brentq(lambda s: h(s, depth) - x, -end, end, xtol=1e-15) for x in w / mu])  # noqa: B023
    x, weights = np.polynomial.legendre.leggauss(60)
    integral = s / 2 * (h(np.outer((x + 1) / 2, s), depth) * weights[:, None]).sum(0)
    return s @ w - mu * integral.sum(), s


@pytest.mark.parametrize("depth", DEPTHS)
def test_program_against_scipy_and_its_kkt_conditions(depth):
    rows = np.asarray(LEAVING.signed_data)
    for mu in (0.1, 1.0, 10.0):
        found = interpolated_max_margin(LEAVING, depth, mu)
        nu, w = np.asarray(found.multipliers), np.asarray(found.coefficients)
        # All KKT conditions, from h_D as printed.
        np.testing.assert_allclose(w, mu * h(nu @ rows, depth), rtol=1e-10, atol=1e-13)
        assert nu.min() >= 0
        assert (rows @ w).min() >= 1 - 1e-12
        np.testing.assert_allclose(nu * (rows @ w - 1), 0, rtol=0, atol=1e-12 * nu.sum())
        assert found.kkt_residual < 1e-12
        # The primal by sequential quadratic programming, from the l2 solution.
        start = np.asarray(lt.max_margin(LEAVING, lt.L2Norm()).coefficients)
        constraint = {"type": "ineq", "fun": lambda w: rows @ w - 1, "jac": lambda w: rows}
        scipy = minimize(
            objective,
            start,
            (depth, mu),
            "SLSQP",
            jac=True,
            constraints=[constraint],
            options={"ftol": 1e-14, "maxiter": 500},
        )
        value = objective(w, depth, mu)[0]
        assert value == pytest.approx(scipy.fun, rel=1e-9)
        # The error of a minimum is the square root of its value's accuracy.
        np.testing.assert_allclose(w, scipy.x, rtol=0, atol=1e-4 * np.abs(w).max())


@pytest.mark.parametrize("depth", DEPTHS)
def test_both_ends(depth):
    data = problem(3, 20, 10)
    l1 = lt.max_margin(data, lt.L1Norm())
    l2 = lt.max_margin(data, lt.L2Norm())
    assert l1.unique
    mus = np.geomspace(1e-6, 1e6, 13)
    found = [interpolated_max_margin(data, depth, mu) for mu in mus]
    assert max(f.kkt_residual for f in found) < 1e-9
    distances = [np.linalg.norm(f.direction - l2.direction) for f in found]
    # q_D is even: its first deviation from a square is of relative order (w / mu)^2.
    assert distances[-1] < 1e-12
    assert distances[-3] < 1e-7
    # Off the support of the l1 solution, with u_j < 1 its dual certificate there, w_j is about
    # mu (1/mu)^u_j for D = 2 and mu (1 - u_j)^(-D/(D-2)) for D >= 3; ten times that is allowed.
    u = lt.certify(l1.direction, data, regularizer=lt.L1Norm()).worst_off_support
    assert u is not None
    size = mus[0] ** (1 - u) if depth == 2 else mus[0] * (1 - u) ** (-depth / (depth - 2))
    assert np.linalg.norm(found[0].direction - l1.direction) < 10 * size < 0.2


def test_units_of_the_data():
    scaled = lt.Classification(1e5 * np.asarray(LEAVING.X), LEAVING.y)
    for depth in (2, 3):
        one = interpolated_max_margin(LEAVING, depth, 0.3)
        other = interpolated_max_margin(scaled, depth, 0.3e-5)
        np.testing.assert_allclose(other.coefficients, one.coefficients * 1e-5, rtol=1e-9)


def reference_path(data, depth, mus):
    """Directions of the path by SciPy's dual flow dnu = exp(-scale (margin - 1)), one large alpha.

    In the variables of the limit, with log(1/eps) = G as the clock, margins are G times those of w,
    and nu grows only for samples within 1/G of margin 1.
    """
    rows, alpha = np.asarray(data.signed_data), 3e3 ** (1 / depth)
    unit = alpha**depth

    def speed(_, nu):
        margins = rows @ (unit * h(nu @ rows, depth))
        p = np.exp(margins.min() - margins)
        return p / p.sum()

    def reached(mu):
        def event(_, nu):
            margins = rows @ (unit * h(nu @ rows, depth))
            level = margins.min() - np.log(np.exp(margins.min() - margins).sum())
            return level - unit / mu

        event.terminal = mu == min(mus)  # pyright: ignore[reportFunctionMemberAccess]
        return event

    events = [reached(mu) for mu in mus]
    flow = solve_ivp(
        speed, (0, 1e3), np.zeros(len(rows)), "BDF", events=events, rtol=1e-8, atol=1e-10
    )
    assert flow.status == 1
    found = [h(nu[0] @ rows, depth) for nu in flow.y_events]
    return [w / np.linalg.norm(w) for w in found]


@pytest.mark.parametrize("depth", [2, 3])
def test_path_is_where_the_dual_flow_goes(depth):
    mus = [2.0, 0.3, 0.1]
    expected = reference_path(LEAVING, depth, mus)
    path = finite_loss_path(LEAVING, depth, mus)
    program = [interpolated_max_margin(LEAVING, depth, mu) for mu in mus]
    assert [f.mu for f in path] == pytest.approx(mus)
    for found, reached in zip(path, expected, strict=True):
        # log(1/eps) = 3e3 / mu, and errors are below 1 / log(1/eps) in units of w.
        np.testing.assert_allclose(found.direction, reached, rtol=0, atol=2e-3)
    # At mu = 2 no sample has left the support; at mu = 0.1 some have.
    np.testing.assert_allclose(path[0].direction, program[0].direction, rtol=0, atol=1e-9)
    assert path[0].kkt_residual < 1e-10
    assert path[-1].kkt_residual > 1e-3
    assert np.linalg.norm(path[-1].direction - program[-1].direction) > 0.02
    nus = np.stack([f.multipliers for f in path])
    assert np.all(np.diff(nus, axis=0) >= 0)
    assert np.any(np.diff([f.multipliers for f in program], axis=0) < 0)


def flow_errors(data, depth, mu, levels):
    """|flow - path| and |flow - program| at losses exp(-level), and the levels reached."""
    errors = []
    for level in levels:
        alpha = jnp.full(6, (mu * level) ** (1 / depth))
        start = lt.DifferentialDiagonalNetwork(alpha, alpha, depth)
        # Explicit steps reach these losses, and save the time to compile an implicit method.
        flow = lt.gradient_flow(
            start, data, solver=diffrax.Tsit5(), stop=lt.StopAtLoss(log_value=-level), rtol=1e-7
        )
        predicted = direction_at_loss(start, data, float(flow.log_loss[-1]))
        program = interpolated_max_margin(data, depth, predicted.mu)
        ends = (predicted.direction, program.direction)
        errors.append([np.linalg.norm(flow.direction[-1] - end) for end in ends])
    return np.array(errors).T


@pytest.mark.slow_beyond(1)
@pytest.mark.parametrize("depth", [2, 3])
def test_flows_approach_the_path_at_rate_one_over_log(depth):
    levels = np.array([1e2, 1e3, 1e4])
    for data, mu in ((STAYING, 0.1), (LEAVING, 1.0), (LEAVING, 0.1)):
        path, program = flow_errors(data, depth, mu, levels)
        # The error is O(1 / log(1/eps)), with a constant of 0.5 to 12 in units of the data.
        assert np.all(path * levels < 15)
        assert path[-1] < path[0] / 20
        if data is LEAVING and mu < 1:
            # The program is the limit as usually stated: the distance to it does not tend to 0.
            assert program[-1] > 0.02
            assert program[-1] > 0.5 * program[0] / 2
        else:
            np.testing.assert_allclose(program, path, rtol=1e-3)


def test_sum_or_mean_makes_no_difference_to_leading_order():
    mean = interpolated_max_margin(STAYING, 2, 1 / (1e4 + np.log(4)))
    total = interpolated_max_margin(STAYING, 2, 1 / 1e4)
    assert np.linalg.norm(mean.direction - total.direction) < 1e-4


def test_refusals():
    X = np.concatenate([LEAVING.X, LEAVING.X[:1]])
    contradictory = lt.Classification(X, np.append(LEAVING.y, -LEAVING.y[0]))
    regression: Any = lt.Regression(LEAVING.X, LEAVING.y)
    one = jnp.ones(6)
    network = lt.DifferentialDiagonalNetwork(one, one, 2)
    uneven = lt.DifferentialDiagonalNetwork(one, 2 * one, 2)
    logistic = lt.Classification(LEAVING.X, LEAVING.y, lt.LogisticLoss())
    diagonal = lt.DiagonalNetwork.zeros(2, 6)
    for call, words in (
        (lambda: interpolated_max_margin(regression, 2, 1.0), ["Classification"]),
        (lambda: finite_loss_path(LEAVING, 2, []), ["mus", "at least one"]),
        (lambda: interpolated_max_margin(LEAVING, 1, 1.0), ["depth", ">= 2", "1"]),
        (lambda: interpolated_max_margin(LEAVING, 2, -1.0), ["mu", "positive", "L1Norm"]),
        (lambda: finite_loss_path(LEAVING, 2, [1.0, np.inf]), ["mu", "finite"]),
        (lambda: interpolated_max_margin(LEAVING, 3, 1e-80), ["out of float64's reach", "1e-80"]),
        (lambda: interpolated_max_margin(contradictory, 2, 1.0), ["separable", "certificate"]),
        (lambda: direction_at_loss(diagonal, LEAVING, -9.0), ["DifferentialDiagonalNetwork"]),  # pyright: ignore
        (lambda: direction_at_loss(uneven, LEAVING, -9.0), ["one alpha > 0", "from 1 to 2"]),
        (lambda: direction_at_loss(network, logistic, -9.0), ["ExponentialLoss", "LogisticLoss"]),
        (lambda: direction_at_loss(network, LEAVING, 0.0), ["log_loss", "negative"]),
        (
            lambda: jax.jit(lambda a: direction_at_loss(network.scaled(a), LEAVING, -9.0).mu)(1.0),
            ["concrete"],
        ),
    ):
        with pytest.raises(ValueError, match=words[0]) as caught:
            call()
        assert all(word in str(caught.value) for word in words), caught.value
    with pytest.raises(NonSeparableError):
        finite_loss_path(contradictory, 2, [1.0])

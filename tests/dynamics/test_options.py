"""Flow options: refusals, stop rules and statuses, saving, float32, transformations, compiles."""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

import lintensor_jax as lt
from lintensor_jax.dynamics.statuses import code_of
from lintensor_jax.dynamics.step_control import FlowControl
from lintensor_jax.initialization import gaussian

D, N = 3, 2
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(N, D)), RNG.normal(size=N)
LABELS = np.array([1.0, -1.0])
REGRESSION = lt.Regression(X, Y)
CLASSIFICATION = lt.Classification(X, LABELS)
STEPS = diffrax.SaveAt(steps=True)


class Product(eqx.Module):
    """A user's network without the base class."""

    u: Array
    v: Array
    depth = 2

    def linear_coefficients(self):
        return self.u * self.v


class Misstated(Product):
    depth = 3


class Depthless(eqx.Module):
    u: Array

    def linear_coefficients(self):
        return self.u**2


START = gaussian(lt.DiagonalNetwork.zeros(2, D), jax.random.key(1), 0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rtol": 0}, r"rtol: must lie in \(0, 1\), got 0"),
        ({"rtol": 1e-16}, "rtol: float64 keeps .* got 1e-16; raise it"),
        ({"rtol": float("nan")}, "rtol: must lie in"),
        ({"atol": -1.0}, r"atol: must lie in \(0, 1\), got -1"),
        ({"max_steps": 0}, "max_steps: must be a positive int, got 0"),
        ({"max_steps": 1e4}, "max_steps: must be a positive int, got 10000.0"),
        ({"solver": "tsit5"}, r"solver: must be an object such as diffrax.Tsit5\(\), got 'tsit5'"),
        ({"clock": "physical"}, "clock: must be an object such as .*PhysicalTime"),
        ({"clock": lt.LogArcLength()}, "clock: LogArcLength is for Classification, got Regression"),
        ({"clock": lt.LossTime()}, "clock: LossTime is for Classification, got Regression"),
        ({"stop": 1e-9}, "stop: must be an object such as .*StopAtResidual"),
        ({"stop": lt.StopAtMargin(1.0)}, "stop: StopAtMargin is for Classification, got Regressi"),
        ({"stop": lt.StopAtResidual(1e-17)}, "stop: StopAtResidual value must be at least"),
        ({"stop": lt.StopAtLoss(1e-40)}, "stop: StopAtLoss must have log_value >="),
        (
            {"stop": lt.StopAtTime(1.0) | lt.StopAtResidual(1e-17)},
            "stop: StopAtResidual value must be at least",
        ),
        ({"finish": 3}, "finish: must be an object such as .*GaussNewton"),
        ({"saveat": []}, r"saveat: must be a non-empty vector of clock times, got shape \(0,\)"),
        ({"saveat": [1.0, 1.0]}, "saveat: clock times must be finite, not negative and strictly"),
        ({"saveat": [2.0, 1.0]}, "strictly increasing, got"),
        ({"saveat": [-1.0, 1.0]}, "not negative"),
        ({"saveat": [0.0, np.inf]}, "finite"),
        ({"saveat": diffrax.SaveAt(dense=True)}, "saveat: use diffrax.SaveAt"),
        ({"saveat": diffrax.SaveAt(t1=True)}, "saveat: use diffrax.SaveAt"),
    ],
)
def test_bad_options_of_a_regression(options, message):
    with pytest.raises(ValueError, match=message):
        lt.gradient_flow(START, REGRESSION, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"stop": lt.StopAtResidual(1e-3)},
            "stop: StopAtResidual is for losses of residuals",
        ),
        ({"stop": lt.StopAtMargin(1e15)}, "stop: StopAtMargin value must be at most 4.5e.14"),
        ({"finish": lt.GaussNewton()}, "finish: GaussNewton is for losses of residuals"),
    ],
)
def test_bad_options_of_a_classification(options, message):
    with pytest.raises(ValueError, match=message):
        lt.gradient_flow(START, CLASSIFICATION, **options)


def test_bad_networks_and_problems():
    with pytest.raises(ValueError, match=r"problem: must be an object such as .*Regression"):
        lt.gradient_flow(START, (X, Y))  # pyright: ignore[reportArgumentType]
    with pytest.raises(
        ValueError, match=r"network: must be an equinox.Module with a method linear"
    ):
        lt.gradient_flow(np.ones(3), REGRESSION)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"have shape \(4,\), but Regression needs shape \(3,\)"):
        lt.gradient_flow(lt.DiagonalNetwork.zeros(2, 4), REGRESSION)
    with pytest.raises(ValueError, match="network: Misstated states depth = 3, but beta"):
        lt.gradient_flow(Misstated(jnp.ones(D), jnp.ones(D)), CLASSIFICATION)
    with pytest.raises(
        ValueError, match=r"network: .*Depthless states no depth; add a class attri"
    ):
        lt.gradient_flow(Depthless(jnp.ones(D)), CLASSIFICATION)


@pytest.mark.parametrize(
    ("rule", "arguments", "message"),
    [
        (lt.StopAtResidual, (0.0,), "StopAtResidual: value must be a positive finite number"),
        (lt.StopAtMargin, ("big",), "StopAtMargin: value must be a positive finite number, got 'b"),
        (lt.StopAtMargin, (np.inf,), "StopAtMargin: value must be a positive finite number, got i"),
        (lt.StopAtLoss, (), "StopAtLoss: give exactly one of value and log_value"),
        (lt.StopAtTime, (-1.0,), "StopAtTime: value must be a positive finite number, got -1"),
        (lt.StopAtResidual, (True,), "StopAtResidual: value must be a positive finite .*got True"),
        (lt.StopAtMargin, (jnp.ones(2),), "StopAtMargin: value must be a positive finite number"),
        (lt.StopAtMargin, (jnp.asarray(np.inf),), "StopAtMargin: value must be a positive finite"),
        (lt.StopAtLoss, (None, np.nan), "StopAtLoss: log_value must be a finite number, got nan"),
        (lt.StopAtTime, (None, "abc"), "StopAtTime: log_value must be a finite number, got 'abc'"),
        (lt.GaussNewton, (0.0,), "GaussNewton: max_relative_step must be a positive finite .*0"),
        (lt.GaussNewton, ("abc",), "GaussNewton: max_relative_step must be a positive finite nu"),
        (lt.GaussNewton, (1e-6, 1.5), "GaussNewton: max_iterations must be a positive int, got 1"),
        (lt.HuberLoss, (True,), "HuberLoss: delta must be a real number, got True"),
        (lt.LpNorm, (True,), "LpNorm: p must be a real number, got True"),
    ],
)
def test_bad_rules(rule, arguments, message):
    if len(arguments) == 2 and arguments[0] is None:
        arguments, options = (), {"log_value": arguments[1]}
    else:
        options = {}
    with pytest.raises(ValueError, match=message):
        rule(*arguments, **options)


def test_thresholds_may_be_traced_but_not_what_is_static():
    made = jax.vmap(lambda v: lt.StopAtTime(v))(jnp.array([0.5, 2.0]))
    np.testing.assert_allclose(made.log_value, np.log([0.5, 2.0]))
    made = jax.vmap(lambda v: lt.StopAtLoss(log_value=-v))(jnp.array([0.5, 2.0]))
    np.testing.assert_allclose(made.log_value, [-0.5, -2.0])
    kept = lt.StopAtResidual(jnp.asarray(0.5)).value
    assert isinstance(kept, jax.Array)
    assert kept == 0.5
    with pytest.raises(ValueError, match="StopAtMargin: value must be a positive finite number"):
        jax.jit(lambda v: lt.StopAtMargin(v))(jnp.ones(2))
    with pytest.raises(ValueError, match="PolynomialLoss: power must be a concrete number"):
        jax.jit(lambda v: lt.PolynomialLoss(v))(2.0)
    with pytest.raises(ValueError, match="LpNorm: p must be a concrete number"):
        jax.jit(lambda v: lt.LpNorm(v))(2.0)


def test_stop_rules_combine_with_stop_rules_only():
    with pytest.raises(TypeError, match="stop rules combine with stop rules, got 3"):
        lt.StopAtTime(1.0) | 3  # pyright: ignore[reportOperatorIssue, reportUnusedExpression]


FAR = 1e-8


def regression_stop(loss=FAR, residual=FAR, time=1 / FAR):
    """One combination for all tests: thresholds are arrays, so the tests share a compilation."""
    return lt.StopAtLoss(loss) | lt.StopAtResidual(residual) | lt.StopAtTime(time)


def classification_stop(margin=1e4, log_loss=-1e6, log_time=1e6):
    rules = lt.StopAtMargin(margin) | lt.StopAtLoss(log_value=log_loss)
    return rules | lt.StopAtTime(log_value=log_time)


def of_regression(network=START, *, problem=REGRESSION, options=None, **stops) -> Any:
    stop = regression_stop(**stops)
    return lt.gradient_flow(
        network, problem, finish=None, saveat=STEPS, stop=stop, **(options or {})
    )


def of_classification(network=START, *, options=None, **stops) -> Any:
    stop = classification_stop(**stops)
    return lt.gradient_flow(network, CLASSIFICATION, saveat=STEPS, stop=stop, **(options or {}))


# The flow, the rule, the saved log values that it tests, their threshold, and whether they fall.
LOSS, TIME, MARGIN = "log_loss", "log_time", "log_margin"
RULES = [
    (of_regression, {"loss": 1e-4}, LOSS, np.log(1e-4), True),
    # For data of full rank |r| <= v means a loss of at most v^2/2.
    (of_regression, {"residual": 1e-3}, LOSS, np.log(1e-6 / 2), True),
    (of_regression, {"time": 2.0}, TIME, np.log(2.0), False),
    (of_classification, {"margin": 2.0}, MARGIN, np.log(2.0), False),
    (of_classification, {"log_time": 1.0}, TIME, 1.0, False),
    (of_classification, {"log_loss": -1.0}, LOSS, -1.0, True),
]


@pytest.mark.slow_beyond(3)
@pytest.mark.parametrize(("flow", "rule", "values", "threshold", "falls"), RULES)
def test_rules_fire_at_the_first_step_beyond(flow, rule, values, threshold, falls):
    solution = flow(**rule)
    status = next(iter(rule)).removeprefix("log_")
    assert solution.status == getattr(lt.FlowStatus, status)
    assert f"[{status}]" in str(solution)
    seen = np.asarray(getattr(solution, values))
    assert len(seen) == int(solution.stats["num_steps"] - solution.stats["num_rejected_steps"]) + 1
    beyond = seen <= threshold if falls else seen >= threshold
    assert beyond[-1]
    assert not beyond[:-1].any()


def test_losses_below_the_smallest_float_can_be_asked_for():
    rule = lt.StopAtLoss(log_value=-12.0)
    assert rule.log_value == -12.0
    np.testing.assert_allclose(lt.StopAtLoss(np.exp(-12.0)).log_value, -12.0)


def test_a_stop_that_is_met_at_the_start_takes_no_step():
    for rule in ({"loss": 1e3}, {"residual": 1e3}):
        solution = of_regression(**rule)  # pyright: ignore[reportArgumentType]
        assert solution.status == getattr(lt.FlowStatus, next(iter(rule)))
        assert solution.stats["num_steps"] == 0
        np.testing.assert_array_equal(solution.network.weights, START.weights)
        assert solution.log_time.shape == (1,)
        assert solution.log_time[0] == -np.inf
    fitted: Any = lt.DiagonalNetwork(np.stack([np.linalg.lstsq(X, Y)[0], np.ones(D)]))
    solution = of_regression(fitted)
    assert solution.stats["num_steps"] == 0
    assert solution.succeeded


def test_the_zero_network_stands_still():
    zero = lt.DiagonalNetwork.zeros(2, D)
    for solution in (of_regression(zero), of_classification(zero)):
        assert solution.status == lt.FlowStatus.stationary
        assert solution.stats["num_steps"] == 0
        assert solution.invariant_drift[-1] == 0
        np.testing.assert_array_equal(solution.network.weights, 0)
    np.testing.assert_allclose(np.exp(solution.log_loss[-1]), N)


def test_an_unfinished_flow_raises_an_error_that_holds_the_solution():
    with pytest.raises(lt.FlowError, match=r"max_steps.*Advice: raise max_steps") as caught:
        of_regression(options={"max_steps": 5})
    solution = caught.value.solution
    assert solution.status == lt.FlowStatus.max_steps
    assert solution.stats["num_steps"] == 5
    assert not solution.succeeded
    assert "the step budget was used up" in str(solution)
    quiet = of_regression(options={"max_steps": 5, "throw": False})
    np.testing.assert_array_equal(quiet.coefficients, solution.coefficients)


def test_values_beyond_the_floats():
    start = lt.DiagonalNetwork(np.full((2, D), 1e200))
    with pytest.raises(lt.FlowError, match=r"non_finite.*huge values") as caught:
        of_regression(start)
    assert caught.value.solution.status == lt.FlowStatus.non_finite
    assert caught.value.solution.stats["num_steps"] == 0


@pytest.mark.slow
def test_continued_is_the_uninterrupted_flow():
    whole = of_classification(options={"rtol": 1e-10})
    half = of_classification(margin=2.0, options={"rtol": 1e-10})
    rest = half.continued(saveat=STEPS, stop=classification_stop())
    assert rest.status == lt.FlowStatus.margin
    assert rest.rtol == half.rtol
    # Clock and physical time continue. Where log t is asymptotic, its error may be 1e-3.
    np.testing.assert_array_equal(rest.clock_time[0], half.clock_time[-1])
    np.testing.assert_allclose(rest.log_time[0], half.log_time[-1], rtol=1e-12)
    assert (np.diff(rest.clock_time) > 0).all()
    assert (np.diff(rest.log_time) > -1e-3).all()
    # Their ends differ by a step, so margins are compared at one clock time, by interpolation.
    first, second = sorted((whole, rest), key=lambda s: float(s.clock_time[-1]))
    margin = np.interp(first.clock_time[-1], second.clock_time, second.log_margin)
    np.testing.assert_allclose(first.log_margin[-1], margin, rtol=1e-2)
    np.testing.assert_allclose(first.direction[-1], second.direction[-1], rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="clock: a flow goes on with its own clock, LogArcLength"):
        half.continued(clock=lt.LossTime())


def test_continued_at_given_times():
    options: Any = {"saveat": [2.0, 3.0], "stop": regression_stop(time=3.0)}
    straight = lt.gradient_flow(START, REGRESSION, finish=None, rtol=1e-10, **options)
    first = of_regression(time=1.0, options={"rtol": 1e-10})
    rest = first.continued(**options)
    # Both flows have rtol 1e-10, but they interpolate in different steps.
    np.testing.assert_allclose(rest.coefficients[:2], straight.coefficients[:2], rtol=0, atol=1e-8)
    np.testing.assert_allclose(np.exp(rest.log_time[:2]), [2.0, 3.0])


@pytest.mark.slow
def test_saved_times():
    times = [0.5, 1.0, 1e6]
    solution = lt.gradient_flow(
        START,
        REGRESSION,
        saveat=times,
        finish=None,
        stop=lt.StopAtTime(3.0),
        observe=lambda network: (network.weights, network.linear_coefficients()),
    )
    # 1e6 is after the end, so it is left out; the last saved time is the end.
    np.testing.assert_allclose(solution.clock_time[:2], times[:2])
    assert solution.clock_time.shape == (3,)
    assert 3.0 <= solution.clock_time[-1] < 1e6
    weights, beta = solution.observed
    np.testing.assert_array_equal(beta, solution.coefficients)
    np.testing.assert_allclose(weights.prod(axis=1), beta, rtol=1e-14)
    np.testing.assert_array_equal(weights[-1], solution.network.weights)
    assert solution.reached.all()
    for leaf in jax.tree.leaves((solution.coefficients, solution.log_loss, solution.log_time)):
        assert np.isfinite(leaf).all()

    steps = of_regression()
    taken = int(steps.stats["num_steps"] - steps.stats["num_rejected_steps"])
    assert steps.clock_time.shape == (taken + 1,)
    assert (np.diff(steps.clock_time) > 0).all()
    assert steps.clock_time[0] == 0
    assert "times" in str(steps)


@pytest.mark.slow
def test_print_says_what_happened():
    text = str(lt.gradient_flow(START, REGRESSION))
    for part in (
        "Gradient flow of DiagonalNetwork on Regression (PhysicalTime clock, automatic solver)",
        "stopped because  the residual fell below the requested value [residual]",
        "physical time",
        "rtol 1.0e-08",
        "invariant drift",
        "Gauss-Newton, relative step",
        "accepted",
        "bytes in all",
    ):
        assert part in text
    user = lt.gradient_flow(Product(jnp.ones(D), 0.5 * jnp.ones(D)), REGRESSION)
    assert "no conserved quantity known" in str(user)
    chosen = lt.gradient_flow(START, REGRESSION, solver=diffrax.Tsit5())
    assert "Tsit5" in str(chosen)
    assert chosen.status == lt.FlowStatus.residual


@pytest.mark.parametrize(("done", "attempts"), [(True, 1), (False, 50)])
def test_a_flow_that_is_over_ends_with_a_step_that_is_not_accepted(done, attempts):
    """Otherwise a batch would spend the whole budget of steps on a start that is not finite."""

    def rule(s, y, args):
        return code_of(lt.FlowStatus.max_steps), jnp.asarray(False), None

    pid = diffrax.PIDController(rtol=1e-8, atol=1e-8)
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda s, y, args: jnp.nan * y),
        diffrax.Tsit5(),
        0.0,
        1.0,
        0.1,
        jnp.ones(2),
        stepsize_controller=FlowControl(pid, rule, False, jnp.asarray(done)),  # pyright: ignore
        max_steps=50,
        throw=False,
    )
    assert solution.stats["num_steps"] == attempts
    assert solution.stats["num_accepted_steps"] == 0

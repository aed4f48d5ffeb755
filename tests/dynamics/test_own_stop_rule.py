"""Stop rules of users: they end flows, batches and sweeps with the words of the rule."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Scalar

import lintensor_jax as lt
from lintensor_jax.sweeps import STATUSES, Axis, Grid

PROBLEM = lt.Regression([[1.0, 2.0]], [1.0])
LABELLED = lt.Classification([[1.0, 2.0], [0.5, -1.0]], [1.0, 1.0])
START = lt.DiagonalNetwork((jnp.array([0.5, 0.3]), jnp.array([0.2, 0.4])))


class AboveLoss(lt.AbstractStop):
    """Ends a flow once its loss is at most `value`; compares square roots."""

    value: Scalar | float

    def met(self, seen):
        """sqrt(loss) <= sqrt(value)."""
        return jnp.exp(0.5 * seen.log_loss) <= jnp.sqrt(self.value)

    def words(self):
        """Words with the requested value."""
        return f"my loss is below {float(self.value):.3g}"


class Late(lt.AbstractStop):
    """Ends a flow at a time; it has no words."""

    log_value: float

    def met(self, seen):
        """log time >= log_value."""
        return seen.log_time >= self.log_value


class Quicker(lt.StopAtTime):
    """A subclass of one of the package's rules counts as a user's rule."""

    def words(self):
        """Words other than those of StopAtTime."""
        return "quick enough"


def _ends(stop, problem: lt.Regression | lt.Classification = PROBLEM):
    return lt.gradient_flow(START, problem, stop=stop)


def test_a_flow_ends_with_the_words_of_the_rule():
    end = _ends(AboveLoss(1e-3))
    assert end.status == lt.FlowStatus.own_rule
    assert end.succeeded
    assert end.reason == "my loss is below 0.001"
    assert "stopped because  my loss is below 0.001 [own_rule]" in str(end)
    # The flow ended at the first step at which the rule is met.
    every = diffrax.SaveAt(steps=True)
    steps = lt.gradient_flow(START, PROBLEM, stop=AboveLoss(1e-3), finish=None, saveat=every)
    below = np.asarray(steps.log_loss) <= np.log(1e-3)
    assert below[-1]
    assert not below[:-1].any()


@pytest.mark.slow
def test_the_right_one_of_several_rules_is_named():
    # The loss falls to 0.05 before the time e^200 and after the time e^-200.
    near = AboveLoss(0.05)
    assert _ends(near | Late(200.0), LABELLED).reason == "my loss is below 0.05"
    assert _ends(near | Late(-200.0)).reason == "the stop rule Late was met"
    both = _ends(lt.StopAtLoss(0.05) | near)
    assert both.status == lt.FlowStatus.loss
    assert both.reason == lt.FlowStatus[lt.FlowStatus.loss]


@pytest.mark.slow
def test_a_subclass_of_our_rule_has_its_own_words():
    end = _ends(Quicker(1.0))
    assert end.status == lt.FlowStatus.own_rule
    assert end.reason == "quick enough"
    assert _ends(lt.StopAtTime(1.0)).status == lt.FlowStatus.time


@pytest.mark.slow
def test_own_rules_under_vmap_and_jit():
    values = jnp.array([1e-2, 1e-3, 0.5])

    def one(value):
        return lt.gradient_flow(START, PROBLEM, stop=Late(2.0) | AboveLoss(value))

    batch = jax.vmap(one)(jnp.append(values, 1e-60))
    assert (batch.status == lt.FlowStatus.own_rule).all()
    assert batch.reason.tolist() == [
        "my loss is below 0.01",
        "my loss is below 0.001",
        "my loss is below 0.5",
        "the stop rule Late was met",
    ]
    assert "Late 1, AboveLoss 3" in str(batch)
    assert jax.jit(one)(values[0]).reason == "my loss is below 0.01"


@pytest.mark.slow_beyond(1)
@pytest.mark.parametrize("compilation", [lt.Native(), lt.XLA()])
def test_own_rules_in_batches(compilation):
    scales = jnp.geomspace(0.3, 2.0, 6)
    networks = jax.vmap(START.scaled)(scales)
    stop = AboveLoss(0.05) | Late(0.0)
    batch = lt.batched_flow(networks, PROBLEM, stop=stop, compilation=compilation)
    assert batch.compilation == ("native" if isinstance(compilation, lt.Native) else "xla")
    assert (batch.status == lt.FlowStatus.own_rule).all()
    singles = [lt.gradient_flow(START.scaled(scale), PROBLEM, stop=stop) for scale in scales]
    assert batch.reason.tolist() == [single.reason for single in singles]
    assert len(set(batch.reason)) == 2
    np.testing.assert_array_equal(
        np.asarray(batch.log_loss) <= np.log(0.05), batch.reason == "my loss is below 0.05"
    )


@pytest.mark.slow
def test_a_sweep_keeps_an_own_status(tmp_path):
    def start(point):
        return START.scaled(point.alpha)

    grid = Grid((Axis("alpha", np.geomspace(0.3, 2.0, 6)),), start, PROBLEM)
    results = lt.sweep(grid, tmp_path / "a", stop=AboveLoss(1e-3) | lt.StopAtTime(1e-6))
    status = np.asarray(STATUSES)[results.status.values]
    below = results.log_loss.values <= np.log(1e-3)
    np.testing.assert_array_equal(status, np.where(below, "own_rule", "time"))
    results = lt.sweep(grid, tmp_path / "b", stop=AboveLoss(1e-3))
    assert (results.status == STATUSES.index("own_rule")).all()
    assert "own_rule" in str(lt.sweeps.status(tmp_path / "b"))


class Several(lt.AbstractStop):
    """A wrong rule: it returns two values."""

    def met(self, seen) -> Array:
        """Two values instead of one."""
        return jnp.array([True, False])


class Number(lt.AbstractStop):
    """A wrong rule: it returns the loss."""

    def met(self, seen):
        """A number instead of a truth value."""
        return seen.log_loss


@pytest.mark.parametrize(("rule", "got"), [(Several(), r"shape \(2,\)"), (Number(), "float64")])
def test_a_rule_gives_one_truth_value(rule, got):
    with pytest.raises(ValueError, match=rf"stop: {type(rule).__name__}.met must .*{got}"):
        _ends(rule)

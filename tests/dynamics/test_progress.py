"""Progress of one flow: every accepted step is reported once, and only to its own flow."""

import jax
import numpy as np
import pytest

import lintensor_jax as lt
from lintensor_jax.dynamics import progress as meters

NETWORK = lt.DiagonalNetwork(np.full((2, 2), 0.1))
PROBLEM = lt.Regression([[1.0, 2.0]], [1.0])


def test_every_accepted_step_is_reported_once():
    reported, others = [], []
    flow = lt.gradient_flow(NETWORK, PROBLEM, saveat=[0.5], progress=reported.append)
    again = lt.gradient_flow(NETWORK.scaled(1.5), PROBLEM, saveat=[0.5], progress=others.append)
    for solution, steps in ((flow, reported), (again, others)):
        accepted = solution.stats["num_steps"] - solution.stats["num_rejected_steps"]
        assert [step.num_steps for step in steps] == list(range(1, int(accepted) + 1))
        times = [step.clock_time for step in steps]
        assert times == sorted(times)
        assert times[-1] == solution.clock_time[-1]
        # The last step's loss is that of the end before the finish.
        unfinished = PROBLEM.log_loss(solution.unfinished_network.linear_coefficients())
        np.testing.assert_allclose(steps[-1].log_loss, unfinished, atol=1e-6)
    assert not meters._METERS
    reported.clear()
    flow.continued(stop=lt.StopAtTime(flow.clock_time[-1] + 1), progress=reported.append)
    assert reported
    assert not meters._METERS


def test_lines_are_two_seconds_apart(capsys):
    meter = meters._line_printer()
    meter(lt.FlowProgress(1, 0.5, -2.0, 0.1))
    meter(lt.FlowProgress(2, 0.6, -2.5, 1.0))
    meter(lt.FlowProgress(1234, 0.75, -3.25, 2.5))
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "step 1 after 0 s: clock at 0.5, log loss -2",
        "step 1,234 after 2 s: clock at 0.75, log loss -3.25",
    ]


def test_what_has_no_progress_is_refused():
    with pytest.raises(ValueError, match=r"progress: must be True or a function .* got 3;"):
        lt.gradient_flow(NETWORK, PROBLEM, progress=3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"progress: is for one flow of concrete numbers"):
        jax.jit(lambda network: lt.gradient_flow(network, PROBLEM, progress=True))(NETWORK)

"""The table of statuses, and what other parts of the package derive from it."""

import jax.numpy as jnp
import pytest

import lintensor_jax as lt
from lintensor_jax.dynamics.statuses import ADVICE, STATUS_NAMES, STORED, code_of, status_name
from lintensor_jax.dynamics.statuses import status_of as status_of_code
from lintensor_jax.sweeps.plan import FAILURES

# The statuses of stores of formats 1 and 2, in the order of their numbers.
STORED_BEFORE = [
    "pending",
    "residual",
    "loss",
    "margin",
    "time",
    "float_wall",
    "not_separable",
    "stationary",
    "max_steps",
    "non_finite",
    "solver_failed",
    "bad_input",
]


def test_numbers_in_stores_never_change():
    assert list(lt.sweeps.STATUSES[: len(STORED_BEFORE)]) == STORED_BEFORE


def test_sweeps_have_every_status_under_its_stored_number():
    assert len(set(STORED.values())) == len(STORED)
    for name, number in STORED.items():
        assert lt.sweeps.STATUSES[number] == name
    assert len(lt.sweeps.STATUSES) == len(STORED) + 2
    failures = ("max_steps", "non_finite", "solver_failed", "invariants_lost", "bad_input")
    assert failures == FAILURES


@pytest.mark.parametrize("name", STATUS_NAMES)
def test_a_status_has_a_name_words_and_a_number(name):
    status = getattr(lt.FlowStatus, name)
    assert status_name(status) == name
    assert status_of_code(jnp.asarray(code_of(status))) == status
    assert len(lt.FlowStatus[status].split()) > 4
    many = status_of_code(jnp.asarray([int(code_of(status))] * 3))
    assert (many == status).all()


def test_failures_have_advice():
    assert set(ADVICE) == {"max_steps", "non_finite", "solver_failed", "invariants_lost"}

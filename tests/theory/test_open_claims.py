"""If something is open, all words that a user sees say that it is open."""

import jax.numpy as jnp
import pytest
from prediction_cases import ETA, EYE, REGRESSION, ZERO

import lintensor_jax as lt


def test_theorems_of_the_user_are_functions():
    network = lt.FullyConnectedNetwork((0.5 * EYE, ZERO))
    with pytest.raises(ValueError, match="predict: theorems must be a sequence"):
        lt.predict(network, REGRESSION, theorems=3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match=r"predict: theorems must be functions .*got 'abc'"):
        lt.predict(network, REGRESSION, theorems=["abc"])  # pyright: ignore[reportArgumentType]


OPEN_START = lt.FullyConnectedNetwork((0.1 * EYE, 0.1 * EYE, ETA))


def test_what_is_open_is_never_called_exact():
    """This also holds for a user's theorem."""
    open_question = lt.theory.Assumption("it rains", None, None, "the weather")
    end = lt.theory.Conclusion(lt.theory.Kind.EXACT, jnp.zeros(4))
    mine = lt.theory.Candidate("Mine", (open_question,), lambda: end)
    found = lt.predict(OPEN_START, REGRESSION, theorems=[lambda *_: (mine,)])
    assert (found.kind, found.is_proved, found.open) == ("open", False, (open_question,))
    text = str(found)
    assert (
        "Mine may apply: the limit below is exact, if this holds, which is open: it rains." in text
    )
    assert "Limit, if so: [0" in text
    assert "which is open: it rains" in found._repr_html_()
    # Weaker claims keep their names, and they also say what is open.
    weaker = lt.predict(OPEN_START, REGRESSION)
    assert (weaker.kind, weaker.is_proved) == ("alpha_to_zero", False)
    assert "tends to 0, if this holds, which is open: " in str(weaker)

"""What a hostile case is, and which of seven outcomes it has."""

import dataclasses
import inspect
import math
import re
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import lintensor_jax as lt

#: The outcomes. The last three are faults of the program.
RIGHT, REFUSED, OPEN, FAILED = "right", "refused", "open", "failed"
WRONG, TRACEBACK, HANG = "WRONG", "TRACEBACK", "HANG"
OUTCOMES = (RIGHT, REFUSED, OPEN, FAILED, WRONG, TRACEBACK, HANG)
FAULTS = (WRONG, TRACEBACK, HANG)


class Verdict(NamedTuple):
    """An outcome. `error`: of a right answer, its error relative to what the case allows."""

    outcome: str
    error: float | None = None
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Case:
    """One call of a public function.

    - `words`: the call with its arguments, so that it can be repeated by hand.
    - `call`: makes it. `judge`: compares what it returned with an oracle.
    - `must_answer`: the input is valid and mild, so that neither a refusal nor a failure is right.
    """

    words: str
    call: Callable[[], Any]
    judge: Callable[[Any], Verdict]
    must_answer: bool = False


def within(found: Any, expected: Any, limit: float, size: Any = None) -> Verdict:
    """RIGHT if |found - expected| <= limit * size in every entry; default size: max|expected|."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    if found.shape != expected.shape:
        return Verdict(WRONG, note=f"shape {found.shape} instead of {expected.shape}")
    size = np.max(np.abs(expected), initial=0.0) if size is None else np.asarray(size, np.float64)
    with np.errstate(all="ignore"):
        off = np.abs(found - expected)
        off = np.where(found == expected, 0.0, off / np.maximum(size, 5e-324))
    error = float(np.max(off, initial=0.0))
    if error <= limit:  # False for NaN
        return Verdict(RIGHT, error / limit if limit else 0.0)
    return Verdict(WRONG, error, f"got {found.tolist()}, right is {expected.tolist()}")


def all_of(*verdicts: Verdict) -> Verdict:
    """The first fault; else the first that is not right; else RIGHT with the largest error."""
    for verdict in verdicts:
        if verdict.outcome in FAULTS:
            return verdict
    for verdict in verdicts:
        if verdict.outcome != RIGHT:
            return verdict
    return Verdict(RIGHT, max((v.error or 0.0 for v in verdicts), default=0.0))


def holds(condition: Any, note: str) -> Verdict:
    """RIGHT if a condition holds, else WRONG."""
    return Verdict(RIGHT, 0.0) if bool(condition) else Verdict(WRONG, note=note)


def accepted(result: Any) -> Verdict:
    """The judge of bad arguments: any result is wrong."""
    return Verdict(WRONG, note=f"accepted, got {str(result)[:200]}")


def run(case: Case) -> Verdict:
    """The outcome of one case; the time limit's TimeoutError is passed on."""
    try:
        result = case.call()
    except TimeoutError:
        raise
    except Exception as error:
        return _of_exception(error, case)
    try:
        verdict = case.judge(result)
    except TimeoutError:
        return Verdict(OPEN, note="the oracle took too long")
    except Exception as error:  # of a lazy result or of the oracle; a person must look at both
        text = traceback.format_exc(limit=-3)
        return Verdict(TRACEBACK, note=f"judging: {type(error).__name__}: {error} {text}")
    if case.must_answer and verdict.outcome in (OPEN, FAILED):
        return Verdict(WRONG, note=f"valid and mild, but {verdict.outcome}: {verdict.note}")
    return verdict


def _of_exception(error: Exception, case: Case) -> Verdict:
    message = " ".join(str(error).split())[:400]
    note = f"{type(error).__name__}: {message}"
    if isinstance(error, lt.FlowError | FloatingPointError):
        outcome = FAILED
    elif isinstance(error, ValueError | TypeError | OverflowError) and names_argument(error):
        outcome = REFUSED
    else:
        where = traceback.extract_tb(error.__traceback__)
        place = next((f for f in reversed(where) if "lintensor_jax" in f.filename), where[-1])
        return Verdict(TRACEBACK, note=f"{note} [{place.filename.split('/')[-1]}:{place.lineno}]")
    if case.must_answer:
        return Verdict(WRONG, note=f"valid and mild, but {outcome}: {note}")
    return Verdict(outcome, note=note)


def names_argument(error: Exception) -> bool:
    """Whether the package raised the error, and its message has the name of an argument."""
    innermost = traceback.extract_tb(error.__traceback__)[-1]
    if "lintensor_jax" not in innermost.filename:
        return False
    words = set(re.findall(r"[A-Za-z_]\w*", str(error)))
    return bool(words & _argument_names())


def _argument_names() -> set[str]:
    if not _names:
        modules = (lt, lt.theory, lt.sweeps, lt.initialization, lt.potential)
        for public in (value for module in modules for value in vars(module).values()):
            if not callable(public):
                continue
            try:
                _names.update(inspect.signature(public).parameters)
            except (TypeError, ValueError):
                continue
        _names.difference_update({"self", "args", "kwargs"})
    return _names


_names: set[str] = set()


def relative(found: float, expected: float) -> float:
    """|found - expected| / |expected|; 0 if both are equal (also if infinite, or zero)."""
    if found == expected:
        return 0.0
    return abs(found - expected) / abs(expected) if expected else math.inf

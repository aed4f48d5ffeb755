"""Limits of matrix completion: known for entries on the diagonal, otherwise open."""

from collections.abc import Iterator
from typing import Any

from ...completion import MatrixCompletion
from ...networks import (
    AssumptionFails,
    FullyConnectedNetwork,
    MatrixFactorizationNetwork,
    sensing_decomposition,
)
from ..assumptions import YUN, Assumption, violated
from ..prediction import Candidate, nothing_to_conclude
from .candidates import sensing_candidates

_OPEN = (
    "The limits of matrix completion are open. Conjecture for two layers (Gunasekar et al. "
    "2017), not a prediction: as alpha -> 0 the limit is near the completion of least nuclear "
    "norm, lintensor_jax.min_norm(problem, lintensor_jax.NuclearNorm()).",
    "Deeper networks prefer lower rank (Arora et al. 2019). No norm explains their limits: Razin "
    "& Cohen 2020 complete a 2 x 2 matrix whose every norm tends to infinity as the loss tends to "
    "0.",
)


def completion_candidates(network: Any, problem: MatrixCompletion) -> Iterator[Candidate]:
    """Corollary 7 of Yun et al. 2021, for entries on the diagonal and layers of beta's shape."""
    source, name = f"{YUN}, Corollary 7", "Theorem 5 (Corollary 7)"
    square = _square_layers(network, problem, source)
    try:
        sensing_decomposition(problem)
    except AssumptionFails as error:
        broken = (violated(error, source), square)
        yield Candidate(name, broken, nothing_to_conclude, _OPEN)
        return
    loss = Assumption(
        "the squared loss, for which the corollary is stated",
        type(problem.residual_loss).__name__,
        problem.has_squared_loss,
        source,
    )
    if not (square.holds and loss.holds):
        yield Candidate(name, (square, loss), nothing_to_conclude, _OPEN)
        return
    for candidate in sensing_candidates(network, problem.dense()):
        yield candidate._replace(otherwise=_OPEN)


def _square_layers(network, problem, source):
    layered = isinstance(network, MatrixFactorizationNetwork | FullyConnectedNetwork)
    shapes = [w.shape for w in network.weights] if layered else []
    return Assumption(
        "every layer is a matrix of the shape of beta, square",
        str(shapes) if layered else type(network).__name__,
        layered and len({*shapes, problem.shape}) == 1,
        source,
    )

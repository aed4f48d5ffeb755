"""`predict`: the theorem that covers a network and a problem, its assumptions, its prediction."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax.core import Tracer
from jaxtyping import Scalar

from ..arguments import as_sequence
from ..completion import MatrixCompletion
from ..messages import in_words
from ..multiclass import MulticlassClassification
from ..networks import FullyConnectedNetwork, LinearNetwork, MatrixFactorizationNetwork
from ..networks.pair import check_pair, problem_of
from ..penalized import Penalized, weight_decay_of, with_weight_decay
from ..problems import AbstractProblem, Classification, MatrixSensing, Regression
from .assumptions import Assumption
from .classification.candidates import classification_candidates
from .classification.multiclass import multiclass_candidates
from .one_layer import one_layer_candidates
from .prediction import Candidate, Prediction, choose, nothing_to_conclude
from .regression.candidates import regression_candidates, sensing_candidates
from .regression.completion import completion_candidates
from .regression.effective_limit import effective_limit
from .weight_decay.candidates import decay_candidates

Theorem = Callable[[Any, Any], Iterable[Candidate]]


def predict(
    network: eqx.Module,
    problem: AbstractProblem,
    *,
    theorems: Sequence[Theorem] = (),
    weight_decay: float | Scalar = 0.0,
) -> Prediction:
    """The limit of gradient flow from `network`'s current parameters, according to theory.

    With the solution of another training in place of the network: the limit of that training.

    All theorems about this architecture and problem are tested, the most specific first. Their
    assumptions are measured on the data and on the current parameters, which include the initial
    scale alpha. An assumption about the flow's future, such as that its loss tends to 0, is proved,
    refuted or open. The answer is the first theorem whose assumptions are all proved. If there is
    none, it is the first theorem that violates nothing; its kind is then "open", never "exact".
    `.considered` lists all theorems.
    ``print(lt.predict(network, problem))`` explains the outcome in words. If nothing applies,
    `.theorem`, `.limit` and `.kind` are None, and `.assumptions` has the violated one with its
    value. No flow is integrated.

    - `Regression`: Yun et al. 2021, Theorem 6 (two layers, data of one direction), Theorem 5 with
      Corollaries 5 and 6, Theorem 7; two layers from any unbalanced start and differential networks
      (Woodworth et al. 2020); one hidden neuron (Azulay et al. 2021); Min et al. 2021, Proposition
      10 and Theorem 3 with Proposition 9; Eftekhari 2020, Theorems 16 and 20. The data may be
      dependent or more than d; for the squared loss they may also be contradictory.
    - `MatrixSensing`: Yun et al. 2021, Corollary 7. `MatrixCompletion`: the same for entries on the
      diagonal; any other completion is open.
    - `Classification`: Yun et al. 2021, Theorem 3 with Corollary 4, Theorem 2 with Corollaries 2
      and 3, Corollary 1, Theorem 1; Ji & Telgarsky 2019, Theorems 2.2 and 2.8; Gunasekar et al.
      2018, Theorems 1, 2, 2a and 4.
    - `MulticlassClassification`: Lyu & Li 2020: a KKT point; norms as candidates for which one.
    - `LinearNetwork` on any of them: the projection of the start, or the maximum margin (Soudry et
      al. 2018).
    - With weight decay, on any of them: ridge for one layer, the lasso, the group lasso or the
      nuclear norm for two (Hoff 2017; Haeffele & Vidal 2015), stationary points for more.

    **Arguments**

    - `network`: any network of this package. The theorems on linear tensor networks also cover a
      user's network with `data_tensor`, `factors`, `with_factors` and `depth`. Or the solution of
      `gradient_descent`, `stochastic_flow` or `heavy_ball_flow`, which records how it was trained:
      then the result is `effective_limit(solution, problem)`.
    - `problem`: one of the above, with any loss. A theorem reads from the loss the facts that it
      needs, such as an exponential tail. If the loss does not state them, the theorem does not
      apply. For other problem classes nothing is predicted.
    - `theorems`: functions of network and problem, each yielding `theory.Candidate`s; they are
      tried before the theorems of this package, in the order given. For networks only.
    - `weight_decay`: lambda >= 0 of the penalty lambda/2 |Theta|^2, as in `gradient_flow`; or pass
      `Penalized(problem, weight_decay)` as the problem. For networks only.

    **Raises** ValueError if network and problem do not fit each other, for the solution of a
    gradient flow (it does not store its start), or for traced arrays (`predict` runs on the host);
    TypeError if `theorems` is not a sequence of functions.
    """
    theorems = as_sequence(theorems, "theorems", "predict")
    for theorem in theorems:
        if not callable(theorem):
            raise TypeError(
                "predict: theorems must be functions of network and problem that yield "
                f"theory.Candidate, got {in_words(theorem)}; pass the functions themselves."
            )
    solved = hasattr(network, "effective_start") or hasattr(network, "network")
    if solved and not hasattr(network, "linear_coefficients"):  # a network may wrap a network
        return _of_training(network, problem, theorems, weight_decay)
    shape = check_pair(network, problem)
    problem = with_weight_decay(problem, weight_decay)
    # For a flow a bias is a coefficient like any other; only norms and weight decay exclude it.
    problem = problem_of(network, problem)
    _require_concrete(network, problem)
    decay = weight_decay_of(problem)
    if decay is None or float(decay) == 0:
        problem = (problem if decay is None else problem.problem).bias_as_feature()  # pyright: ignore
    depth = f", L = {network.depth}" if hasattr(network, "depth") else ""  # pyright: ignore
    samples = np.shape(problem.y)[0] if hasattr(problem, "y") else "unknown"  # pyright: ignore
    subject = (
        f"{type(network).__name__}{depth}, on {problem.in_words} with n = {samples} "
        f"and coefficients of shape {shape}"
    )
    given = itertools.chain.from_iterable(theorem(network, problem) for theorem in theorems)
    return choose(subject, given, _candidates(network, problem), _unknown(network, problem))


def _of_training(solution, problem, theorems, weight_decay) -> Prediction:
    if theorems:
        raise ValueError(
            "predict: theorems are about networks, got some with a "
            f"{type(solution).__name__}; leave them out, or pass the network."
        )
    if not (isinstance(weight_decay, int | float) and weight_decay == 0):
        raise ValueError(
            "predict: weight_decay is for the flow of a network, got one with a "
            f"{type(solution).__name__}, which records how it was trained; leave it out."
        )
    if not hasattr(solution, "effective_start"):
        raise ValueError(
            f"predict: the {type(solution).__name__} of a gradient flow holds its end, not its "
            "start; pass the network that the flow started from."
        )
    return effective_limit(solution, problem)


def _candidates(network: Any, problem: AbstractProblem) -> Iterator[Candidate]:
    if isinstance(problem, Penalized):
        return decay_candidates(network, problem)
    about_one_layer = Regression | Classification | MulticlassClassification
    if isinstance(network, LinearNetwork) and isinstance(problem, about_one_layer):
        return one_layer_candidates(network, problem)
    if getattr(network, "has_bias", False):
        return iter(())  # not homogeneous, and no theorem here is about it
    match problem:
        case Regression():
            return regression_candidates(network, problem)
        case Classification():  # with any loss of the margin
            return classification_candidates(network, problem)
        case MatrixCompletion():
            return completion_candidates(network, problem)
        case MulticlassClassification():
            return multiclass_candidates(network, problem)
        case MatrixSensing() if isinstance(
            network, MatrixFactorizationNetwork | FullyConnectedNetwork
        ) and all(w.shape == problem.coefficient_shape for w in network.weights):
            return sensing_candidates(network, problem)
    return iter(())


def _unknown(network, problem):
    known = Regression | Classification | MulticlassClassification | MatrixSensing | Penalized
    if not isinstance(problem, known | MatrixCompletion):
        data = Assumption(
            "the problem is one of those that the package has theorems for: Regression, "
            "MatrixSensing, MatrixCompletion, Classification or MulticlassClassification",
            type(problem).__name__,
            False,
            "this package",
        )
        return Candidate("every theorem of this package", (data,), nothing_to_conclude)
    architecture = Assumption(
        "the architecture is one that the package has theorems for (also a network of yours with "
        "the methods `data_tensor`, `factors` and `with_factors`, or written as a TensorNetwork)",
        type(network).__name__,
        False,
        "this package",
    )
    return Candidate("every theorem of this package", (architecture,), nothing_to_conclude)


def _require_concrete(network, problem):
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((network, problem))):
        raise ValueError(
            "predict: network and problem must hold concrete arrays, got traced ones; call it "
            "outside jit, grad and vmap (the limits alone can be traced, see lintensor_jax.theory)."
        )

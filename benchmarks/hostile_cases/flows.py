"""gradient_flow against SciPy; ends of classification flows against linear programs."""

from typing import Any

import jax
import numpy as np
from scipy.optimize import linprog

import lintensor_jax as lt

from .draws import BAD_COUNTS, BAD_NUMBERS, BAD_OBJECTS, Random, array, pick, shown
from .flow_oracles import classification_slope, flow, regression_slope
from .outcomes import FAILED, RIGHT, Case, Verdict, accepted, holds, within

RESIDUAL_LOSSES = {
    "squared": lt.SquaredLoss,
    "huber": lambda: lt.HuberLoss(0.5),
    "logcosh": lt.LogCoshLoss,
}
MARGIN_LOSSES = {"exponential": lt.ExponentialLoss, "logistic": lt.LogisticLoss}


def layers_of(rng: Random, size: int, positive: bool = False) -> tuple[Any, str]:
    """Layers of a diagonal network (L, 2) or of a chain, and what is hostile about them."""
    kind = pick(rng, ("plain", "ties", "dead", "dust", "uneven", "zero", "saddle", "integers"))
    diagonal = rng.random() < 0.7
    if diagonal:
        weights = rng.standard_normal((int(pick(rng, (2, 2, 3))), size))
    else:
        weights = np.concatenate([rng.standard_normal((size, 2)), rng.standard_normal((1, 2))])
    match kind:
        case "ties":
            weights = rng.choice([-1.0, 1.0, 0.5], weights.shape)
        case "dead":
            weights[:, 0] = 0.0
        case "dust":
            weights *= 10.0 ** -float(pick(rng, (2, 4, 8)))
        case "uneven":
            weights[0] *= 10.0 ** float(pick(rng, (-4, -2, 2)))
        case "zero":
            weights[:] = 0.0
        case "saddle":  # w_2 = -w_1: an invariant set
            weights[1] = -weights[0]
        case "integers":
            weights = rng.integers(-2, 3, weights.shape).astype(float)
    if positive:
        weights = np.abs(weights)
    return (weights if diagonal else (weights[:-1], weights[-1])), kind


def network_of(layers: Any) -> Any:
    """The network of the package with these layers."""
    if isinstance(layers, np.ndarray):
        return lt.DiagonalNetwork(layers)
    return lt.FullyConnectedNetwork(layers)


def data_of(rng: Random, size: int) -> tuple[np.ndarray, np.ndarray, str]:
    """Samples and targets, and what is hostile about them."""
    kind = pick(rng, ("plain", "ties", "duplicates", "zeros", "tall", "low rank", "scaled"))
    count = 4 if kind == "tall" else 2
    X = array(rng, (count, size), kind if kind in ("ties", "zeros") else "plain")
    y = rng.standard_normal(count)
    if kind == "duplicates":
        X[-1], y[-1] = X[0], y[0] + (rng.random() < 0.5)
    if kind == "low rank":
        X[-1] = 2 * X[0]
    if kind == "scaled":
        X *= 10.0 ** float(pick(rng, (-2, 2)))
    return X, y, kind


def steepness(X, layers, y=0.0):
    """The approximate rate of the fastest mode. Times are chosen in units of its inverse."""
    size = max(1e-3, max(float(np.max(np.abs(w))) for w in layers), float(np.max(np.abs(y))) ** 0.5)
    return max(np.linalg.norm(X, 2), 1e-3) ** 2 * size**2


def regression(rng: Random) -> Case:
    """beta at a time, or the limit, against SciPy."""
    X, y, kind = data_of(rng, 2)
    layers, what = layers_of(rng, 2)
    loss = pick(rng, ("squared", "squared", "huber", "logcosh"))
    time = float(10.0 ** rng.uniform(-1, 2)) / steepness(X, layers, y)
    timed = rng.random() < 0.7

    def call():
        problem = lt.Regression(X, y, RESIDUAL_LOSSES[loss]())
        if timed:
            return lt.gradient_flow(
                network_of(layers), problem, stop=lt.StopAtTime(time), saveat=[time], finish=None
            )
        return lt.gradient_flow(network_of(layers), problem)

    def judge(found):
        slope = regression_slope(X, y, loss)
        if not timed:
            return is_limit(found, layers, slope, X, y)
        try:
            right = flow(layers, slope, time)[0][0]
        except RuntimeError as error:
            return Verdict(RIGHT, 0.0, f"SciPy gave up: {error}")
        size = max(np.max(np.abs(right)), 1e-3 * np.max(np.abs(network_beta(layers))), 1e-12)
        at = np.searchsorted(np.asarray(found.log_time), np.log(time) - 1e-9)
        return within(found.coefficients[min(at, len(found.coefficients) - 1)], right, 1e-5, size)

    words = f"{what}, {kind}, {loss}, {f'time {time!r}' if timed else 'limit'}: "
    return Case(words + shown(layers=layers, X=X, y=y), call, judge)


def network_beta(layers: Any) -> np.ndarray:
    """The linear coefficients of layers."""
    return np.prod(layers, axis=0) if isinstance(layers, np.ndarray) else layers[0] @ layers[1]


def is_limit(found, layers, slope, X, y):
    """RIGHT if the end is finite, and where SciPy's flow is after a long time."""
    status = str(found.status)
    beta = np.asarray(found.coefficients[-1])
    if not np.isfinite(beta).all():
        return Verdict("WRONG", note=f"not finite: {beta}, {found.reason}")
    # From a small start, three layers stay near zero for a time of 1/alpha.
    smallest = min(float(np.min(np.abs(w[w != 0]), initial=1.0)) for w in layers)
    steep = steepness(X, layers, y) * min(1.0, smallest) ** (len(layers) - 2)
    for longer in (1e3, 1e5):
        times = [longer / steep, 2 * longer / steep]
        try:
            path, _ = flow(layers, slope, times, implicit=True, rtol=1e-10)
        except RuntimeError as error:
            return Verdict(RIGHT, 0.0, f"SciPy gave up: {error}")
        size = max(np.max(np.abs(path)), np.max(np.abs(network_beta(layers))), 1e-12)
        if np.max(np.abs(path[1] - path[0])) < 1e-7 * size:
            verdict = within(beta, path[1], 1e-4, size)
            fine = not isinstance(layers, np.ndarray) or _is_corner(beta, slope, X, y)
            if verdict.outcome != RIGHT and _rests_on_rounding(layers) and fine:
                return Verdict(RIGHT, 0.0, "SciPy's rounding leaves an invariant set")
            return verdict
    return Verdict(RIGHT, 0.0, f"SciPy's flow is still on its way; status {status}")


def _rests_on_rounding(layers):
    """Whether two layers have entries of equal size: rounding can leave this invariant set."""
    if not isinstance(layers, np.ndarray):
        return any(np.array_equal(np.abs(w), np.abs(layers[1])) for w in layers[0])
    pairs = [(a, b) for a in range(len(layers)) for b in range(a)]
    return any(bool(np.any(np.abs(layers[a]) == np.abs(layers[b]))) for a, b in pairs)


def _is_corner(beta, slope, X, y):
    """Whether every coefficient is zero or has a zero gradient."""
    scale = np.max(np.abs(beta), initial=1e-12)
    terms = np.linalg.norm(X, 2) * (np.linalg.norm(X, 2) * scale + np.max(np.abs(y)))
    return np.all((np.abs(beta) <= 1e-6 * scale) | (np.abs(slope(beta)) <= 1e-6 * terms))


def classification(rng: Random) -> Case:
    """beta at a time against SciPy, or the end, with separability against HiGHS."""
    X, _, kind = data_of(rng, 2)
    y = rng.choice([-1.0, 1.0], len(X))
    if rng.random() < 0.5:
        y = np.where(X @ rng.standard_normal(2) >= 0, 1.0, -1.0)
    layers, what = layers_of(rng, 2)
    loss = pick(rng, tuple(MARGIN_LOSSES))
    time = float(10.0 ** rng.uniform(-1, 2)) / steepness(X, layers)
    timed = rng.random() < 0.6
    clock = pick(rng, (lt.PhysicalTime(), lt.LogArcLength(), lt.LossTime()))

    def call():
        problem = lt.Classification(X, y, MARGIN_LOSSES[loss]())
        if timed:
            return lt.gradient_flow(
                network_of(layers), problem, clock=clock, stop=lt.StopAtTime(time)
            )
        return lt.gradient_flow(network_of(layers), problem)

    def judge(found):
        slope = classification_slope(X, y, loss)
        if timed:
            early = float(found.log_time[-1]) < np.log(time) - 1e-9
            if early and not found.succeeded:
                return Verdict(FAILED, note=str(found.reason))
            try:
                # The time of the step that met the rule; if the flow came to rest before, `time`.
                end = time if early else float(np.exp(found.log_time[-1]))
                right = flow(layers, slope, end)[0][0]
            except RuntimeError as error:
                return Verdict(RIGHT, 0.0, f"SciPy gave up: {error}")
            size = max(np.max(np.abs(right)), 1e-3)
            return within(found.coefficients[-1], right, 1e-5, size)
        return _ends_rightly(found, layers, slope, X, y)

    words = f"{what}, {kind}, {loss}, {f'{clock}, time {time!r}' if timed else 'end'}: "
    return Case(words + shown(layers=layers, X=X, y=y), call, judge)


def _ends_rightly(found, layers, slope, X, y):
    """The status against a linear program, and the end against the reason that the flow gives."""
    signed = y[:, None] * X / np.max(np.abs(X))
    beta = np.asarray(found.coefficients[-1])
    feasible = linprog(np.zeros(2), -signed, -np.ones(len(X)), bounds=(None, None), method="highs")
    name = lt.FlowStatus._index_to_message  # the words of a status
    words = str(found.reason)
    margins = signed @ beta
    if "not separable" in words:
        # The reason is about the invariant set of the flow, not about all coefficients.
        return holds(feasible.status != 0 or not _moves(layers, slope), f"{words} {len(name)}")
    if "the margin reached" in words or "rounding of the margins" in words:
        return holds(np.min(margins) > 0, f"{words}, but the margins are {margins}")
    if "stands still" in words:
        pulled = slope(beta)
        gradient = _gradient(found, pulled)
        size = np.linalg.norm(X, 2) * max(1.0, _largest(found))
        return holds(gradient <= 1e-5 * size, f"{words}, |gradient| = {gradient}")
    return Verdict(FAILED, note=words)


def _moves(layers, slope):
    beta = network_beta(layers)
    return np.linalg.norm(slope(beta)) * max(float(np.max(np.abs(w))) for w in layers) > 1e-12


def _leaves(found):
    return [np.asarray(w) for w in jax.tree.leaves(found.network)]


def _largest(found):
    return max(float(np.max(np.abs(w))) for w in _leaves(found))


def _gradient(found, pulled):
    weights = _leaves(found)
    if len(weights) == 1:
        others = [np.prod(np.delete(weights[0], k, 0), axis=0) for k in range(len(weights[0]))]
        return float(np.linalg.norm([pulled * o for o in others]))
    first, last = weights
    parts = np.outer(pulled, last), first.T @ pulled
    return float(np.sqrt(sum(np.sum(p**2) for p in parts)))


def bad_options(rng: Random) -> Case:
    """Invalid networks, problems and options of flows."""
    network, fit = lt.DiagonalNetwork(np.ones((2, 2))), lt.Regression(np.eye(2), np.ones(2))
    sort = lt.Classification(np.eye(2), np.ones(2))
    lanes = jax.vmap(lt.DiagonalNetwork)(np.ones((3, 2, 2)))
    values: dict[str, Any] = {
        "solver": BAD_OBJECTS,
        "clock": [*BAD_OBJECTS, lt.LogArcLength()],
        "stop": [*BAD_OBJECTS, lt.StopAtMargin(1e3), lt.StopAtResidual(1e-300)],
        "finish": BAD_OBJECTS,
        "rtol": [b for b in BAD_NUMBERS if b is not None] + [0.0, 1e-30, 2.0],
        "atol": [b for b in BAD_NUMBERS if b is not None] + [0.0, 2.0],
        "max_steps": BAD_COUNTS,
        "saveat": ["abc", [], [1.0, 1.0], [-1.0], [np.nan], [[1.0]], [2.0, 1.0], 1j, {}],
    }
    options = {
        f"gradient_flow({key}=": (
            lambda b, key=key: lt.gradient_flow(network, fit, **{key: b}),
            bad,
        )
        for key, bad in values.items()
    }
    options |= {
        f"batched_flow({key}=": (lambda b, key=key: lt.batched_flow(lanes, fit, **{key: b}), bad)
        for key, bad in values.items()
        if key != "saveat"
    }
    options |= {
        "gradient_flow(network=": (lambda b: lt.gradient_flow(b, fit), BAD_OBJECTS),
        "gradient_flow(problem=": (lambda b: lt.gradient_flow(network, b), BAD_OBJECTS),
        "gradient_flow(network=three": (
            lambda b: lt.gradient_flow(lt.DiagonalNetwork(np.ones((2, 3))), b),
            [fit, sort],
        ),
        "batched_flow(networks=": (lambda b: lt.batched_flow(b, fit), [*BAD_OBJECTS, network]),
        "batched_flow(problem=": (lambda b: lt.batched_flow(lanes, b), BAD_OBJECTS),
        "batched_flow(width=": (lambda b: lt.batched_flow(lanes, fit, width=b), BAD_COUNTS),
        "batched_flow(compilation=": (
            lambda b: lt.batched_flow(lanes, fit, compilation=b),
            BAD_OBJECTS,
        ),
        "mirror_flow(problem=": (lambda b: lt.mirror_flow(network, b), [*BAD_OBJECTS, sort]),
        "induced_flow(coefficients=": (
            lambda b: lt.induced_flow(b, fit, 2),
            ["abc", None, object(), np.full(2, np.nan), np.ones(3), 1j * np.ones(2), []],
        ),
        "induced_flow(depth=": (lambda b: lt.induced_flow(np.ones(2), fit, b), [*BAD_COUNTS, 1]),
        "StopAtTime(value=": (lt.StopAtTime, [b for b in BAD_NUMBERS if b is not None]),
        "StopAtLoss(value=": (lt.StopAtLoss, [b for b in BAD_NUMBERS if b is not None]),
        "StopAtResidual(value=": (lt.StopAtResidual, BAD_NUMBERS),
        "StopAtMargin(value=": (lt.StopAtMargin, BAD_NUMBERS),
    }
    name = pick(rng, tuple(options))
    make, bad = options[name]
    value = pick(rng, bad)
    return Case(f"{name}{value!r})", lambda: make(value), accepted)

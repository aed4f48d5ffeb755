"""batched_flow and mirror_flow against SciPy, lane by lane."""

from typing import Any, NamedTuple

import jax
import numpy as np

import lintensor_jax as lt

from .draws import Random, pick, shown
from .flow_oracles import classification_slope, flow, regression_slope
from .flows import data_of, is_limit, layers_of, steepness
from .outcomes import FAILED, RIGHT, WRONG, Case, Verdict, all_of, within


class _Lane(NamedTuple):
    """The attributes of a flow that `is_limit` reads."""

    coefficients: Any
    status: str


def _lanes(rng, count, depth):
    drawn = []
    while len(drawn) < count:
        layers, what = layers_of(rng, 2)
        if isinstance(layers, np.ndarray) and len(layers) == depth:
            drawn.append((layers, what))
    return np.stack([layers for layers, _ in drawn]), [what for _, what in drawn]


def _judged(found, lanes, judge):
    """The verdict on all lanes: a reported failure, not finite, or what `judge` returns."""
    verdicts = []
    for lane in range(len(lanes)):
        beta = np.asarray(found.coefficients)[lane]
        if not np.asarray(found.succeeded)[lane]:
            verdicts.append(Verdict(FAILED, note=f"lane {lane}: {found.status}"))
        elif not np.isfinite(beta).all():
            verdicts.append(Verdict(WRONG, note=f"lane {lane} succeeded: {beta}"))
        else:
            verdicts.append(judge(lane, beta))
    return all_of(*verdicts)


def batched_limits(rng: Random) -> Case:
    """Compares every lane of a batch with its limit; mild and hostile lanes are side by side."""
    X, y, kind = data_of(rng, 2)
    lanes, what = _lanes(rng, 3, int(pick(rng, (2, 3))))
    compilation = pick(rng, (None, None, lt.XLA()))

    def call():
        networks = jax.vmap(lt.DiagonalNetwork)(lanes)
        return lt.batched_flow(networks, lt.Regression(X, y), compilation=compilation)

    def judge(found):
        slope = regression_slope(X, y, "squared")

        def lane_at_limit(lane, beta):
            return is_limit(_Lane(beta[None], "batched"), lanes[lane], slope, X, y)

        return _judged(found, lanes, lane_at_limit)

    words = f"limits, {what}, {kind}, {compilation}: {shown(weights=lanes, X=X, y=y)}"
    return Case(words, call, judge)


def batched_paths(rng: Random) -> Case:
    """Compares every lane at the time at which it ended; one problem a lane, or one for all."""
    X, y, kind = data_of(rng, 2)
    lanes, what = _lanes(rng, 3, int(pick(rng, (2, 3))))
    classifies, shared = rng.random() < 0.4, rng.random() < 0.5
    y = np.where(y >= 0, 1.0, -1.0) if classifies else y
    Xs = X[None] * (np.ones(3) if shared else np.array([1.0, -0.5, 2.0]))[:, None, None]
    time = float(10.0 ** rng.uniform(-1, 1.5)) / max(steepness(X, w, y) for w in lanes) / 4
    compilation = pick(rng, (None, None, lt.XLA()))

    def call():
        make = lt.Classification if classifies else lt.Regression
        problem = make(X, y)
        if not shared:
            problem = jax.vmap(lambda X: make(X, y))(Xs)
        return lt.batched_flow(
            jax.vmap(lt.DiagonalNetwork)(lanes),
            problem,
            shared_problem=shared,
            stop=lt.StopAtTime(time),
            clock=lt.PhysicalTime(),
            finish=None,
            compilation=compilation,
        )

    def judge(found):
        def lane_on_path(lane, beta):
            if classifies:
                slope = classification_slope(Xs[lane], y, "exponential")
            else:
                slope = regression_slope(Xs[lane], y, "squared")
            end = float(np.exp(found.log_time[lane]))
            if not end > 0:
                return Verdict(RIGHT, 0.0, "stood still")
            try:
                right = flow(lanes[lane], slope, end)[0][0]
            except RuntimeError as error:
                return Verdict(RIGHT, 0.0, f"SciPy gave up: {error}")
            start = np.max(np.abs(np.prod(lanes[lane], axis=0)))
            return within(beta, right, 1e-5, max(np.max(np.abs(right)), 1e-3 * start, 1e-9))

        return _judged(found, lanes, lane_on_path)

    words = f"paths, {what}, {kind}, {compilation}, shared={shared}, classifies={classifies}"
    return Case(f"{words}, time {time!r}: {shown(weights=lanes, X=Xs, y=y)}", call, judge)


def batched(rng: Random) -> Case:
    """A case of the area `batched_flow`."""
    return pick(rng, (batched_limits, batched_paths))(rng)


def mirror(rng: Random) -> Case:
    """mirror_flow at a time, against SciPy on the layers."""
    X, y, kind = data_of(rng, 2)
    layers, what = layers_of(rng, 2)
    if not isinstance(layers, np.ndarray):
        layers = np.stack([np.abs(layers[0][:, 0]), 0 * layers[1]])
    if len(layers) == 3:
        layers = np.stack([np.abs(layers[0]), np.abs(layers[0]), 0 * layers[0]])
    time = float(10.0 ** rng.uniform(-1, 2)) / steepness(X, layers, y)

    def call():
        return lt.mirror_flow(
            lt.DiagonalNetwork(layers),
            lt.Regression(X, y),
            stop=lt.StopAtTime(time),
            saveat=[time],
            finish=None,
        )

    def judge(found):
        try:
            right = flow(layers, regression_slope(X, y, "squared"), time)[0][0]
        except RuntimeError as error:
            return Verdict(RIGHT, 0.0, f"SciPy gave up: {error}")
        size = max(np.max(np.abs(right)), 1e-3 * np.max(np.abs(layers)) ** len(layers), 1e-12)
        return within(found.coefficients[0], right, 1e-6, size)

    return Case(f"{what}, {kind}, time {time!r}: {shown(layers=layers, X=X, y=y)}", call, judge)

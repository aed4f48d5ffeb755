"""predict and limit_direction against SciPy's flows, HiGHS and NNLS; descent against NumPy."""

from typing import Any

import mpmath
import numpy as np
import optax

import lintensor_jax as lt

from .draws import BAD_COUNTS, BAD_OBJECTS, Random, array, pick, shown
from .flow_oracles import classification_slope, flow, regression_slope
from .flows import data_of, layers_of, network_beta, network_of
from .least_norm import highest_l1_margin, highest_l2_margin
from .outcomes import OPEN, RIGHT, Case, Verdict, accepted, all_of, holds, within


def _start_of_a_theorem(rng: Random) -> tuple[Any, str]:
    """Layers that meet the conditions of theorems, or nearly; some are random."""
    kind = pick(rng, ("zero last layer", "identity", "one neuron", "matching", "equal", "random"))
    size = 10.0 ** float(pick(rng, (0, -1, -2)))
    depth, z = int(pick(rng, (2, 3))), rng.choice([-1.0, 0.0, 0.5, 1.0], 2)
    match kind:
        case "zero last layer":
            first = size * rng.choice([1.0, -1.0, 0.5, 2.0], 2)
            return np.stack([first] * (depth - 1) + [0 * first]), kind
        case "identity":
            return (size * np.eye(2), size * z * pick(rng, (0.0, 0.5, 1.0))), kind
        case "one neuron":
            u = size * rng.choice([-1.0, 0.5, 1.0], 2)
            a = np.linalg.norm(u) * pick(rng, (1.0, -1.0, 0.5, 0.0))
            return (np.stack([u, 0 * u], 1), np.array([a, 0.0])), kind
        case "matching":
            like = lt.DiagonalNetwork.zeros(depth, 2)
            return np.asarray(lt.initialization.matching(like, z).scaled(size).weights), kind
        case "equal":  # w_1 = +-w_2
            first = size * rng.choice([1.0, 0.5, 0.0], 2)
            return np.stack([first, first * rng.choice([1.0, -1.0], 2)]), kind
    return layers_of(rng, 2)


def prediction(rng: Random) -> Case:
    """An exact prediction is where SciPy's flow ends, if that has ended."""
    X, y, kind = data_of(rng, 2)
    if rng.random() < 0.3:  # the theorems on one sample
        X, y, kind = X[:1], y[:1], "one sample"
    layers, what = _start_of_a_theorem(rng)

    def call():
        return lt.predict(network_of(layers), lt.Regression(X, y))

    def judge(found):
        if found.limit is None or found.kind != "exact":
            return Verdict(OPEN, note=str(found.theorem))
        size = max(1e-2, max(float(np.max(np.abs(w))) for w in layers))
        rate = max(np.linalg.norm(X, 2), 1e-3) ** 2 * size**2
        try:
            times = [1e3 / rate, 1e4 / rate]
            path, _ = flow(
                layers, regression_slope(X, y, "squared"), times, implicit=True, rtol=1e-9
            )
        except RuntimeError as error:
            return Verdict(RIGHT, 0.0, f"SciPy gave up: {error}")
        scale = max(np.max(np.abs(path)), np.max(np.abs(network_beta(layers))), 1e-9)
        if np.max(np.abs(path[1] - path[0])) > 1e-7 * scale:
            return Verdict(RIGHT, 0.0, "SciPy's flow is still on its way")
        if any(a.holds is None for a in found.assumptions):
            return holds(False, f"called exact, but something is open: {found.theorem}")
        verdict = within(found.limit, path[1], 1e-4, scale)
        return verdict._replace(note=f"{found.theorem}: {verdict.note}")

    return Case(f"{what}, {kind}: {shown(layers=layers, X=X, y=y)}", call, judge)


def limit_direction(rng: Random) -> Case:
    """Two layers: the certified limit of a diagonal network is an l1 optimum, of a chain an l2."""
    layers, what = layers_of(rng, 3)
    if isinstance(layers, np.ndarray):
        layers = layers[:2]
    X = array(rng, (2, 3), pick(rng, ("plain", "ties")))
    X = X * 10.0 ** float(pick(rng, (0, 0, -3, 3)))
    y = np.where(X @ rng.standard_normal(3) >= 0, 1.0, -1.0)

    def call():
        return lt.limit_direction(network_of(layers), lt.Classification(X, y))

    def judge(found):
        if not found.succeeded:
            return Verdict(OPEN, note=str(found.status))
        signed, w = y[:, None] * X / np.max(np.abs(X)), np.asarray(found.direction)
        if isinstance(layers, np.ndarray):
            best = highest_l1_margin(signed)
            reached = np.min(signed @ w) / np.sum(np.abs(w))
        else:
            best, reached = highest_l2_margin(signed), np.min(signed @ w) / np.linalg.norm(w)
        if best <= 1e-9:
            return holds(False, f"certified, but the best margin is {best}")
        return within(reached / best, 1.0, 1e-6)

    return Case(f"{what}: {shown(layers=layers, X=X, y=y)}", call, judge)


def descent(rng: Random) -> Case:
    """Iterates of gradient descent against a loop in NumPy; divergence must be visible."""
    X, y, kind = data_of(rng, 2)
    layers, what = layers_of(rng, 2)
    classifies = rng.random() < 0.4
    labels = rng.choice([-1.0, 1.0], len(X))
    step = float(10.0 ** rng.uniform(-4, 3))

    def call():
        problem = lt.Classification(X, labels) if classifies else lt.Regression(X, y)
        return lt.gradient_descent(network_of(layers), problem, optax.sgd(step), 10)

    def judge(found):
        slope = (
            classification_slope(X, labels, "exponential")
            if classifies
            else regression_slope(X, y, "squared")
        )
        right = _descended(layers, slope, step)
        beta = np.asarray(found.coefficients[-1])
        if not np.isfinite(right).all() or np.max(np.abs(right)) > 1e100:
            with np.errstate(all="ignore"):
                log_loss = float(found.log_loss[-1])
            fits = np.isfinite(beta).all() and np.max(np.abs(beta)) < 1e90
            return all_of(
                holds(not fits, f"diverged, but beta = {beta}"),
                holds(not log_loss < 0, f"diverged, but log_loss = {log_loss}"),
            )
        size = max(np.max(np.abs(right)), 1e-12)
        # If each of the ten steps expands by a factor q, rounding errors grow by q^10.
        return within(beta, right, 1e-6, size) if size < 1e6 else Verdict(RIGHT, 0.0, "chaotic")

    words = f"{what}, {kind}, step {step!r}: "
    return Case(words + shown(layers=layers, X=X, y=labels if classifies else y), call, judge)


def _descended(layers: Any, slope: Any, step: float) -> np.ndarray:
    with np.errstate(all="ignore"):
        for _ in range(10):
            gradient = slope(network_beta(layers))
            if isinstance(layers, np.ndarray):
                others = [np.prod(np.delete(layers, k, 0), axis=0) for k in range(len(layers))]
                layers = layers - step * np.stack([gradient * o for o in others])
            else:
                first, last = layers
                moved = first - step * np.outer(gradient, last)
                layers = (moved, last - step * first.T @ gradient)
        return network_beta(layers)


def induced(rng: Random) -> Case:
    """induced_flow at a time, against SciPy on balanced layers."""
    X, y, kind = data_of(rng, 2)
    beta = array(rng, (2,), pick(rng, ("plain", "ties"))) * 10.0 ** float(pick(rng, (0, -3)))
    depth = int(pick(rng, (2, 3)))
    time = float(10.0 ** rng.uniform(-1, 1)) / max(np.linalg.norm(X, 2), 1e-3) ** 2

    def call():
        return lt.induced_flow(
            beta, lt.Regression(X, y), depth, stop=lt.StopAtTime(time), saveat=[time]
        )

    def judge(found):
        from scipy.integrate import solve_ivp

        def velocity(_, b):
            # A vector: (b b^T)^p = |b|^(2p - 2) b b^T, and (b^T b)^p = |b|^(2p).
            g, size = X.T @ (X @ b - y), np.linalg.norm(b)
            unit = b / size
            projected = unit * (unit @ g)
            return -(size ** (2 - 2 / depth)) * (g + (depth - 1) * projected)

        right = solve_ivp(velocity, (0, time), beta, method="DOP853", rtol=1e-12, atol=1e-14)
        return within(found.coefficients[0], right.y[:, -1], 1e-6)

    return Case(f"{kind}, L={depth}, time {time!r}: {shown(beta=beta, X=X, y=y)}", call, judge)


def decomposition(rng: Random) -> Case:
    """Commuting sensors are diagonalised; the eigenvalues agree with mpmath's."""
    count = int(pick(rng, (1, 2, 3)))
    turned = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    values = array(rng, (count, 3), pick(rng, ("plain", "ties", "zeros")))
    scale = 10.0 ** float(pick(rng, (0, -100, 100)))
    A = np.einsum("ij,nj,kj->nik", turned, values, turned) * scale
    A = (A + np.swapaxes(A, 1, 2)) / 2

    def judge(found):
        with mpmath.workdps(40):
            right = [
                sorted(float(x) for x in mpmath.eigsy(mpmath.matrix(a.tolist()), eigvals_only=True))
                for a in A / scale
            ]
        return within(np.sort(np.asarray(found.eigenvalues) / scale, axis=1), right, 1e-12, 3.0)

    problem = lt.MatrixSensing(A, np.ones(count))
    return Case(shown(A=A), lambda: lt.sensing_decomposition(problem), judge, True)


def _bad_closed_forms(network, fit, sort):
    """Invalid arguments of decompositions and induced regularisers."""
    return {
        "sensing_decomposition(problem=": (lt.sensing_decomposition, [*BAD_OBJECTS, fit, sort]),
        "decompose_tensor(tensor=": (
            lt.decompose_tensor,
            [
                "abc",
                None,
                object(),
                np.full((2, 2, 2), np.nan),
                np.ones(2),
                1j * np.ones((2, 2, 2)),
            ],
        ),
        "minimal_network(network=": (lambda b: lt.minimal_network(b, np.ones(2)), BAD_OBJECTS),
        "minimal_network(coefficients=": (
            lambda b: lt.minimal_network(network, b),
            ["abc", None, object(), np.full(2, np.nan), np.ones(3), np.ones((2, 2))],
        ),
        "induced_regularizer(network=": (
            lambda b: lt.induced_regularizer(b, np.ones(2)),
            BAD_OBJECTS,
        ),
        "induced_regularizer(coefficients=": (
            lambda b: lt.induced_regularizer(network, b),
            ["abc", None, object(), np.full(2, np.nan), np.ones(3), np.ones((2, 2))],
        ),
    }


def bad_theory(rng: Random) -> Case:
    """Invalid arguments of predict, limit_direction, descent and smoothness steps."""
    network, fit = lt.DiagonalNetwork(np.ones((2, 2))), lt.Regression(np.eye(2), np.ones(2))
    sort = lt.Classification(np.eye(2), np.ones(2))
    chain = lt.FullyConnectedNetwork((np.eye(2), np.ones(2)))
    options = {
        "predict(network=": (lambda b: lt.predict(b, fit), BAD_OBJECTS),
        "predict(problem=": (lambda b: lt.predict(network, b), BAD_OBJECTS),
        "predict(theorems=": (lambda b: lt.predict(network, fit, theorems=b), [3, [3], ["abc"]]),
        "limit_direction(network=": (lambda b: lt.limit_direction(b, sort), BAD_OBJECTS),
        "limit_direction(problem=": (
            lambda b: lt.limit_direction(network, b),
            [*BAD_OBJECTS, fit],
        ),
        "limit_direction(tolerance=": (
            lambda b: lt.limit_direction(network, sort, tolerance=b),
            ["abc", np.nan, -1.0, 2.0, [1.0], 1j],
        ),
        "gradient_descent(network=": (lambda b: lt.gradient_descent(b, fit), BAD_OBJECTS),
        "gradient_descent(problem=": (lambda b: lt.gradient_descent(network, b), BAD_OBJECTS),
        "gradient_descent(optimizer=": (
            lambda b: lt.gradient_descent(network, fit, b, 5),
            BAD_OBJECTS,
        ),
        "gradient_descent(num_steps=": (
            lambda b: lt.gradient_descent(network, fit, None, b),
            BAD_COUNTS,
        ),
        "gradient_descent(save_every=": (
            lambda b: lt.gradient_descent(network, fit, None, 10, save_every=b),
            [*BAD_COUNTS, 3],
        ),
        "gradient_descent(optimizer_state=": (
            lambda b: lt.gradient_descent(network, fit, None, 5, optimizer_state=b),
            ["abc", 3, object(), {}],
        ),
        "smoothness_steps(initial_network=": (lambda b: lt.smoothness_steps(b, sort), BAD_OBJECTS),
        "smoothness_steps(problem=": (
            lambda b: lt.smoothness_steps(chain, b),
            [*BAD_OBJECTS, fit],
        ),
        **_bad_closed_forms(network, fit, sort),
    }
    name = pick(rng, tuple(options))
    make, bad = options[name]
    value = pick(rng, bad)
    return Case(f"{name}{value!r})", lambda: make(value), accepted)

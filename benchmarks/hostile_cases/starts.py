"""Initializations against their documented properties; alignment and rates against mpmath."""

import jax
import mpmath
import numpy as np

import lintensor_jax as lt
from lintensor_jax.networks import split

from . import exact
from .draws import BAD_NUMBERS, BAD_OBJECTS, Random, array, bad_arrays, pick, shown
from .outcomes import RIGHT, Case, Verdict, accepted, all_of, holds, within

_D = 3
start = lt.initialization


def _template(rng, name):
    depth = int(pick(rng, (2, 3)))
    match name:
        case "diagonal":
            return lt.DiagonalNetwork.zeros(depth, _D)
        case "convolutional":
            return lt.ConvolutionalNetwork.zeros(_D, (_D,) * depth)
        case "short":
            return lt.ConvolutionalNetwork.zeros(_D, (2,) * (depth - 1) + (_D,))
        case "fully":
            return lt.FullyConnectedNetwork.zeros((_D,) * depth)
        case "outputs":
            return lt.FullyConnectedNetwork.zeros((_D,) * depth, outputs=2)
        case "matrix":
            return lt.MatrixFactorizationNetwork.zeros(depth, _D)
    return lt.DifferentialDiagonalNetwork(np.ones(_D), np.ones(_D), depth)


_NAMES = ("diagonal", "convolutional", "short", "fully", "outputs", "matrix", "differential")


def by_coefficients(rng: Random) -> Case:
    """`matching` and `balanced` start at the coefficients; the gaps of `balanced` are zero."""
    name = pick(rng, _NAMES)
    like = _template(rng, name)
    shape = like.linear_coefficients().shape
    scale = 10.0 ** float(pick(rng, (0, 0, -8, 8, -100, 100)))
    kind = pick(rng, ("plain", "ties", "zeros", "integers", "float32"))
    beta = np.asarray(array(rng, shape, kind), float) * scale
    gap = 10.0 ** float(pick(rng, (0, -6, 6)))
    balanced = rng.random() < 0.5
    words = f"{'balanced' if balanced else 'matching'} {name}, L={like.depth} {shown(beta=beta)}"

    def call():
        if balanced:
            return start.balanced(like, beta)
        return start.matching(like, beta, gap=gap, key=jax.random.key(0))

    def judge(network):
        found = np.asarray(network.linear_coefficients()) / scale
        verdicts = [within(found, beta / scale, 1e-10)]
        if balanced:
            gaps = np.asarray(lt.conserved_quantities(network))
            squares = max(float(np.max(np.abs(w))) ** 2 for w in jax.tree.leaves(split(network)[0]))
            verdicts.append(within(gaps, 0 * gaps, 1e-9, max(squares, 1e-300)))
        return all_of(*verdicts)

    return Case(f"{words}, gap={gap}", call, judge)


def _two_layers(rng):
    width, outputs = pick(rng, ((1, 1), (2, 1), (2, 2), (4, 2)))
    kind = pick(rng, ("plain", "ties", "zeros", "graded", "integers"))
    first, last = array(rng, (_D, width), kind), array(rng, (width, outputs), kind)
    size = 10.0 ** float(pick(rng, (0, 0, -70, -5, 5, 70)))
    return np.asarray(first, float) * size, np.asarray(last, float) * size, size, kind


def alignment(rng: Random) -> Case:
    """Singular values, angles and D of Lemma 2.6."""
    first, last, size, kind = _two_layers(rng)
    size = size if kind != "graded" else max(np.max(np.abs(first)), np.max(np.abs(last)))

    def call():
        return lt.alignment(lt.FullyConnectedNetwork((first, last)))

    def judge(found):
        with mpmath.workdps(exact.DIGITS):
            sizes = [exact.singular_values(w) for w in (first, last)]
            spectral = [float(s[0]) for s in sizes]
            frobenius = [float(mpmath.sqrt(sum(x * x for x in s))) for s in sizes]
            remainder = [float(mpmath.sqrt(sum(x * x for x in s[1:]))) for s in sizes]
            a, b = (mpmath.matrix(w.tolist()) for w in (first, last))
            gap = a.T * a - b * b.T
            squares = [sum(x * x for x in s) for s in sizes]
            values = mpmath.eigsy(gap, eigvals_only=True)
            constant = max(squares) - squares[-1] + max(abs(x) for x in values)
            total = float(sum(squares))
        return all_of(
            within(found.spectral_norms, spectral, 1e-13, np.maximum(spectral, 1e-300)),
            within(found.frobenius_norms, frobenius, 1e-13, np.maximum(frobenius, 1e-300)),
            within(found.remainder_norms, remainder, 1e-13, np.maximum(frobenius, 1e-300)),
            within(found.imbalance, float(constant), 1e-13, max(total, 1e-300)),
            holds(0 <= float(found.misalignments[0]) <= 1, f"misalignment {found.misalignments}"),
        )

    return Case(f"alignment {shown(first=first, last=last)}", call, judge, True)


def rates(rng: Random) -> Case:
    """Proposition 1 is a lower bound on the true rate; the imbalance's spectrum is right."""
    first, last, size, kind = _two_layers(rng)
    count = int(pick(rng, (1, 2, 4)))
    X = np.asarray(
        array(rng, (count, _D), pick(rng, ("plain", "ties", "zeros", "integers"))), float
    )
    y = rng.standard_normal((count, last.shape[1])) * size**2
    scale = 10.0 ** float(pick(rng, (0, 0, -50, 50)))
    X = X * scale if size == 1.0 else X

    def call():
        network, problem = lt.FullyConnectedNetwork((first, last)), lt.Regression(X, y)
        return lt.convergence_rate_bound(network, problem)

    def judge(found):
        left, sizes, right = np.linalg.svd(X / np.max(np.abs(X)), full_matrices=False)
        rank = int(np.sum(sizes > 1e-13 * sizes[0]))
        if (sizes[:rank] < 1e-6 * sizes[0]).any() or kind == "graded":
            return Verdict(RIGHT, 0.0, "ranks that floats do not decide")
        u, v = right[:rank] @ (first / size), (last / size).T
        eigenvalues = np.linalg.eigvalsh(u.T @ u - v.T @ v)[::-1]
        error = left[:, :rank].T @ y / size**2 - (
            sizes[:rank, None] * np.max(np.abs(X)) * (u @ v.T)
        )
        s = sizes[:rank, None] * np.max(np.abs(X)) * error
        # -dL/dt / L = 2 (|S E V|^2 + |U^T S E|^2) / |E|^2, in units of size^2.
        true = 2 * (np.sum((s @ v) ** 2) + np.sum((u.T @ s) ** 2)) / np.sum(error**2)
        return all_of(
            holds(int(found.imbalance.rank) == rank, f"rank {found.imbalance.rank}, not {rank}"),
            within(np.asarray(found.imbalance.eigenvalues) / size**2, eigenvalues, 1e-12, 10.0),
            holds(
                float(found.instantaneous) / size**2 <= true * (1 + 1e-9) + 1e-12 * scale**2,
                f"instantaneous {found.instantaneous}, true rate {true * size**2}",
            ),
        )

    return Case(f"rates {shown(first=first, last=last, X=X, y=y)}", call, judge)


def landscape(rng: Random) -> Case:
    """The curvature of small networks against a Hessian that is written out in NumPy."""
    kind = pick(rng, ("plain", "ties", "zeros", "integers"))
    weights = np.asarray(array(rng, (2, 2), kind), float)
    X = np.asarray(array(rng, (2, 2), pick(rng, ("plain", "ties", "zeros"))), float)
    y = rng.standard_normal(2)
    size = 10.0 ** float(pick(rng, (0, 0, -40, 40)))

    def call():
        network, problem = lt.DiagonalNetwork(weights * size), lt.Regression(X, y * size**2)
        return lt.landscape_point(network, problem)

    def judge(found):
        beta = weights[0] * weights[1]
        gradient = X.T @ (X @ beta - y)
        gram = X.T @ X
        jacobian = np.hstack([np.diag(weights[1]), np.diag(weights[0])])
        cross = np.block(
            [[np.zeros((2, 2)), np.diag(gradient)], [np.diag(gradient), np.zeros((2, 2))]]
        )
        hessian = jacobian.T @ gram @ jacobian + cross
        ends = np.linalg.eigvalsh(hessian)[[0, -1]]
        largest = np.max(np.abs(ends))
        stationary = np.linalg.norm(jacobian.T @ gradient) <= 1e-9
        found_ends = np.array([found.smallest_eigenvalue, found.largest_eigenvalue]) / size**2
        verdicts = [within(found_ends, ends, 1e-6, max(largest, 1e-300))]
        if abs(np.linalg.norm(jacobian.T @ gradient)) > 1e-5 or stationary:
            verdicts.append(
                holds(
                    found.is_stationary == stationary,
                    f"{found.kind}, |grad| {jacobian.T @ gradient}",
                )
            )
        return all_of(*verdicts)

    return Case(f"landscape {shown(weights=weights, X=X, y=y, size=size)}", call, judge, True)


def _bad_two_layers(like, key, fit):
    """Invalid arguments of starts by imbalance, and of measured quantities."""
    deep = lt.FullyConnectedNetwork.zeros((2, 2))
    return (
        (
            "imbalanced(first_scale=",
            lambda b: start.imbalanced(deep, key, first_scale=b, last_scale=1.0),
            BAD_NUMBERS,
        ),
        (
            "lambda_balanced(coefficients=",
            lambda b: start.lambda_balanced(deep, b, 0.0),
            bad_arrays((2,)),
        ),
        (
            "lambda_balanced(gap=",
            lambda b: start.lambda_balanced(deep, np.ones(2), b),
            ["abc", None, np.nan, np.inf, [1.0, 2.0], 1j],
        ),
        ("spectral(problem=", lambda b: start.spectral(deep, b, 1.0, 1.0), BAD_OBJECTS),
        (
            "spectral(first=",
            lambda b: start.spectral(deep, fit, b, 1.0),
            ["abc", {}, np.nan, 1j],
        ),
        ("invariant(scale=", lambda b: start.invariant(deep, fit, key, b), BAD_NUMBERS),
        ("width_scaled(like=", lambda b: start.width_scaled(b, key), BAD_OBJECTS),
        ("alignment(network=", lt.alignment, [*BAD_OBJECTS, like]),
        ("imbalance(network=", lambda b: lt.imbalance(b, fit), [*BAD_OBJECTS, like]),
        ("imbalance(problem=", lambda b: lt.imbalance(deep, b), BAD_OBJECTS),
        ("landscape_point(network=", lambda b: lt.landscape_point(b, fit), BAD_OBJECTS),
        ("landscape_point(problem=", lambda b: lt.landscape_point(like, b), BAD_OBJECTS),
        (
            "landscape_point(tolerance=",
            lambda b: lt.landscape_point(like, fit, tolerance=b),
            [b for b in BAD_NUMBERS if b is not None],
        ),
        (
            "conserved_quantities(network=",
            lt.conserved_quantities,
            BAD_OBJECTS,
        ),
    )


def bad_starts(rng: Random) -> Case:
    """Invalid templates, coefficients, scales and keys."""
    like = lt.DiagonalNetwork.zeros(2, 2)
    fit = lt.Regression(np.eye(2), np.ones(2))
    key = jax.random.key(0)
    name, make, values = pick(
        rng,
        (
            ("balanced(like=", lambda b: start.balanced(b, np.ones(2)), BAD_OBJECTS),
            ("balanced(coefficients=", lambda b: start.balanced(like, b), bad_arrays((2,))),
            ("matching(like=", lambda b: start.matching(b, np.ones(2)), BAD_OBJECTS),
            ("matching(coefficients=", lambda b: start.matching(like, b), bad_arrays((2,))),
            ("matching(gap=", lambda b: start.matching(like, np.ones(2), gap=b), BAD_NUMBERS),
            ("identity(like=", start.identity, BAD_OBJECTS),
            ("zero_last_layer(like=", start.zero_last_layer, BAD_OBJECTS),
            ("gaussian(like=", lambda b: start.gaussian(b, key), BAD_OBJECTS),
            ("gaussian(key=", lambda b: start.gaussian(like, b), ["abc", None, 1.5, {}, object()]),
            (
                "gaussian(scale=",
                lambda b: start.gaussian(like, key, b),
                ["abc", None, {}, np.nan, 1j],
            ),
            *_bad_two_layers(like, key, fit),
        ),
    )
    bad = pick(rng, values)
    return Case(f"{name}{bad!r})", lambda: make(bad), accepted)


def initializations(rng: Random) -> Case:
    """A case of the area `initialization`."""
    return pick(rng, (by_coefficients, by_coefficients, bad_starts))(rng)


def alignments_and_rates(rng: Random) -> Case:
    """A case of the area `alignment`: alignment, imbalance, rates and landscape."""
    return pick(rng, (alignment, rates, landscape))(rng)

"""Problems and losses against mpmath, and the mirror map against mpmath's quadrature."""

import mpmath
import numpy as np

import lintensor_jax as lt

from .draws import (
    BAD_COUNTS,
    BAD_NUMBERS,
    BAD_OBJECTS,
    WILD,
    Random,
    array,
    bad_arrays,
    pick,
    shown,
)
from .exact import DIGITS, floats, rational
from .outcomes import Case, accepted, all_of, within

_N, _D = 3, 3


def _softplus(x):
    return mpmath.log1p(mpmath.exp(x))


_MARGIN_LOSSES = {
    "ExponentialLoss()": (lt.ExponentialLoss(), lambda m: -m, lambda m: -m),
    "LogisticLoss()": (
        lt.LogisticLoss(),
        lambda m: mpmath.log(_softplus(-m)),
        lambda m: -_softplus(m),
    ),
    "PolynomialLoss(2.0)": (
        lt.PolynomialLoss(2.0),
        lambda m: -2 * mpmath.log1p(_softplus(m)),
        lambda m: mpmath.log(2) - 3 * mpmath.log1p(_softplus(m)) - _softplus(-m),
    ),
}
_RESIDUAL_LOSSES = {
    "SquaredLoss()": (lt.SquaredLoss(), lambda r: r * r / 2, lambda r: r),
    "HuberLoss(0.5)": (
        lt.HuberLoss(0.5),
        lambda r: r * r / 2 if abs(r) <= 0.5 else (abs(r) - mpmath.mpf(0.25)) / 2,
        lambda r: max(min(r, mpmath.mpf(0.5)), mpmath.mpf(-0.5)),
    ),
    "LogCoshLoss()": (
        lt.LogCoshLoss(),
        lambda r: abs(r) + mpmath.log1p(mpmath.exp(-2 * abs(r))) - mpmath.log(2),
        mpmath.tanh,
    ),
}


def _number(rng):
    sign = pick(rng, (-1.0, 1.0))
    exponent = rng.uniform(-3, 3) if rng.random() < 0.5 else rng.uniform(-200, 200)
    return float(sign * 10.0**exponent)


def _digits(*numbers):
    """Digits that keep exp(-m) in a sum with 1; at most 500 more than usual."""
    return DIGITS + 60 + int(min(500, max(abs(x) for x in numbers)))


def margin_losses(rng: Random) -> Case:
    """log l, log(-l') and the inverse of log l at margins of any size."""
    name = pick(rng, tuple(_MARGIN_LOSSES))
    loss, value, slope = _MARGIN_LOSSES[name]
    m = (
        float(pick(rng, (0.0, -0.0, 29.999, 30.0, 745.2, -745.2)))
        if rng.random() < 0.2
        else _number(rng)
    )

    def judge(found):
        with mpmath.workdps(_digits(m)):
            big = mpmath.mpf(m)
            right = [float(value(big)), float(slope(big))]
            verdicts = [
                within(f, r, 1e-14, max(abs(r), 1e-300))
                for f, r in zip(found[:2], right, strict=True)
            ]
            # The margin computed from log l is as accurate as the inverse's derivative allows.
            log_value = float(found[0])
            # A subnormal log l has too few digits to determine the margin.
            has_digits = abs(float(value(big))) >= np.finfo(float).tiny
            if np.isfinite(log_value) and has_digits and abs(m) < 1e15:
                step = mpmath.exp(slope(big) - value(big))  # |d log l / dm|
                allowed = (
                    1e-13 * (abs(m) + abs(log_value) / float(step) if step else np.inf) + 1e-15
                )
                verdicts.append(within(found[2], m, 1.0, min(allowed, 1e300)))
        return all_of(*verdicts)

    def call():
        log_value = loss.log_value(np.asarray(m))
        return log_value, loss.log_slope(np.asarray(m)), loss.inverse(log_value)

    return Case(f"{name} at margin {m!r}", call, judge, True)


def residual_losses(rng: Random) -> Case:
    """l, l' and log of the sum at residuals of any size."""
    name = pick(rng, tuple(_RESIDUAL_LOSSES))
    loss, value, slope = _RESIDUAL_LOSSES[name]
    residuals = np.array([_number(rng) for _ in range(3)]) * (rng.random(3) < 0.8)

    def judge(found):
        with mpmath.workdps(DIGITS + 450):
            exact = [mpmath.mpf(float(r)) for r in residuals]
            values, slopes = [value(r) for r in exact], [slope(r) for r in exact]
            total = sum(values)
            log_total = float(mpmath.log(total)) if total else -np.inf
            right = floats(values)
            verdicts = [
                within(found[0], right, 1e-14, np.maximum(np.abs(right), 1e-290)),
                within(found[1], floats(slopes), 1e-14, np.maximum(np.abs(floats(slopes)), 1e-300)),
            ]
            if total < mpmath.mpf(10) ** 290 or name == "SquaredLoss()":
                size = max(1.0, abs(log_total)) if np.isfinite(log_total) else 1.0
                verdicts.append(within(found[2], log_total, 1e-14, size))
        return all_of(*verdicts)

    def call():
        return loss.value(residuals), loss.slope(residuals), loss.log_total(residuals)

    return Case(f"{name} at {residuals.tolist()}", call, judge, True)


def problems(rng: Random) -> Case:
    """Predictions, residuals and log-losses of problems."""
    kind = pick(rng, WILD)
    X = array(rng, (_N, _D), kind)
    beta = array(rng, (_D,), pick(rng, ("plain", "zeros", "ties")))
    y = array(rng, (_N,), kind)
    labels = rng.choice([-1, 1], _N)
    classifies = rng.random() < 0.5
    given = shown(X=X, y=labels if classifies else y, beta=beta)

    def call():
        problem = lt.Classification(X, labels) if classifies else lt.Regression(X, y)
        return problem.predictions(beta), problem.residual(beta), problem.log_loss(beta)

    def judge(found):
        eps = 1e-6 if X.dtype == np.float32 else 1e-14
        exact = rational(X).dot(rational(beta))
        sizes = floats(abs(rational(X)).dot(abs(rational(beta))))
        verdicts = [within(found[0], floats(exact), eps, np.maximum(sizes, 1e-290))]
        with mpmath.workdps(DIGITS + 450):
            if classifies:
                margins = [
                    mpmath.mpf(m.numerator) / m.denominator for m in exact * rational(labels)
                ]
                right = mpmath.log(sum(mpmath.exp(-m) for m in margins)) if kind != "huge" else None
            else:
                terms = (exact - rational(y)) ** 2
                total = sum(terms) / 2
                whole = mpmath.mpf(total.numerator) / total.denominator
                right = mpmath.log(whole) if whole else None
            if right is not None:
                allowed = 10 * eps * (1 + float(np.max(sizes)) + abs(float(right)))
                if not classifies:  # cancellation in the residual
                    residual = float(mpmath.exp(right / 2))
                    size = np.max(sizes + np.abs(np.asarray(y, float)))
                    allowed += 10 * eps * size / max(residual, 1e-300)
                if allowed < 1:
                    verdicts.append(within(found[2], float(right), 1.0, allowed))
        return all_of(*verdicts)

    return Case(f"{'Classification' if classifies else 'Regression'} {given}", call, judge, True)


def _h(z, L):
    return mpmath.sinh(z) * mpmath.cosh(z) ** (L - 1)


def _z(x, L):
    """The z >= 0 with sinh z cosh^(L-1) z = x > 0, by bisection."""
    low, high = mpmath.asinh(x) / (2 * L), mpmath.asinh(x) + 1
    for _ in range(500):
        middle = mpmath.sqrt(low * high)
        low, high = (middle, high) if _h(middle, L) < x else (low, middle)
        if high - low < high * mpmath.mpf(10) ** -40:
            break
    return (low + high) / 2


def potentials(rng: Random) -> Case:
    """h_inverse, H and Q against bisection and quadrature."""
    L = int(pick(rng, (2, 3, 4, 5, 8)))
    x = _number(rng) if rng.random() < 0.7 else float(rng.standard_normal())
    alpha = float(10.0 ** rng.uniform(-30, 3))

    def call():
        h_inverse = lt.potential.h_inverse(x, L)
        return h_inverse, lt.potential.H(x, L), lt.potential.Q(np.array([x]), L, alpha, 1.0)

    def judge(found):
        with mpmath.workdps(50):

            def parts(value):
                z = _z(abs(mpmath.mpf(value)), L)
                # int_0^z cosh^(2-L); for L > 2 the part beyond 60 is negligible
                end = z if L == 2 else min(z, mpmath.mpf(60))
                t = z if L == 2 else _integral(lambda s: mpmath.cosh(s) ** (2 - L), end)
                return t, t * abs(mpmath.mpf(value)) - mpmath.sinh(z) ** 2 / 2

            t, big = parts(x)
            scaled = mpmath.mpf(x) / mpmath.mpf(alpha) ** L
            q = mpmath.mpf(alpha) ** 2 * parts(scaled)[1]
            right = [float(mpmath.sign(x) * t), float(big), float(q)]
        # Q is summed in logarithms: their rounding grows with their size.
        logs = abs(np.log(abs(right[2]) or 1e-300)) + L * abs(np.log(alpha)) + 10
        limits = (1e-14, 1e-14, 1e-15 * logs)
        trios = zip(found, right, limits, strict=True)
        return all_of(*(within(np.squeeze(f), r, e, max(abs(r), 1e-290)) for f, r, e in trios))

    return Case(f"potential L={L}, x={x!r}, alpha={alpha!r}", call, judge, True)


def _integral(function, end):
    """The integral from 0 to `end`, scaled to [0, 1] because mpmath's accuracy is absolute."""
    points = [p / end for p in (0, 1, 3, 8, 20) if p < end]
    return end * mpmath.quad(lambda u: function(end * u), [*points, mpmath.mpf(1)])


def _bad_indices(good):
    """Invalid arguments of problems with class labels or matrix entries."""
    return (
        (
            "MulticlassClassification(X=",
            lambda b: lt.MulticlassClassification(b, [0, 1]),
            bad_arrays((2, 2)),
        ),
        (
            "MulticlassClassification(labels=",
            lambda b: lt.MulticlassClassification(good, b),
            [*bad_arrays((2,)), [0, 2], [0, -1], [0.5, 1], [0, 10**9], [0, 10**12]],
        ),
        (
            "MulticlassClassification(num_classes=",
            lambda b: lt.MulticlassClassification(good, [0, 1], b),
            [*BAD_COUNTS, 1],
        ),
        (
            "MatrixCompletion(rows=",
            lambda b: lt.MatrixCompletion(b, [0, 1], np.ones(2), (2, 2)),
            [*bad_arrays((2,)), [0, 2], [-1, 0], [0.5, 1.0], [0], [0, 10**12]],
        ),
        (
            "MatrixCompletion(values=",
            lambda b: lt.MatrixCompletion([0, 1], [0, 1], b, (2, 2)),
            bad_arrays((2,)),
        ),
        (
            "MatrixCompletion(shape=",
            lambda b: lt.MatrixCompletion([0, 1], [0, 1], np.ones(2), b),
            [*BAD_OBJECTS, (2,), (2, 2, 2), (0, 2), (2, 1), (2.5, 2), None],
        ),
    )


def bad_data(rng: Random) -> Case:
    """Invalid data, labels and losses."""
    good = np.ones((2, 2))
    name, make, values = pick(
        rng,
        (
            ("Regression(X=", lambda b: lt.Regression(b, np.ones(2)), bad_arrays((2, 2))),
            ("Regression(y=", lambda b: lt.Regression(good, b), bad_arrays((2,))),
            ("Regression(loss=", lambda b: lt.Regression(good, np.ones(2), b), BAD_OBJECTS),
            ("Classification(X=", lambda b: lt.Classification(b, np.ones(2)), bad_arrays((2, 2))),
            (
                "Classification(y=",
                lambda b: lt.Classification(good, b),
                [
                    *bad_arrays((2,)),
                    np.array([0, 1]),
                    np.array([1.0, 2.0]),
                    np.array([True, False]),
                ],
            ),
            ("Classification(loss=", lambda b: lt.Classification(good, np.ones(2), b), BAD_OBJECTS),
            ("MatrixSensing(A=", lambda b: lt.MatrixSensing(b, np.ones(2)), bad_arrays((2, 2, 2))),
            (
                "MatrixSensing(y=",
                lambda b: lt.MatrixSensing(np.ones((2, 2, 2)), b),
                bad_arrays((2,)),
            ),
            *_bad_indices(good),
            ("HuberLoss(delta=", lt.HuberLoss, [*BAD_NUMBERS, 0.0]),
            ("PolynomialLoss(power=", lt.PolynomialLoss, [*BAD_NUMBERS, 0.0]),
            ("h(L=", lambda b: lt.potential.h(0.1, b), ["abc", None, 1, 2.5, -1, np.nan, True]),
            (
                "h(t=",
                lambda b: lt.potential.h(b, 3),
                ["abc", None, object(), 1j, [[1.0], [1.0, 2.0]]],
            ),
            ("Q(alpha=", lambda b: lt.potential.Q(np.ones(2), 2, b, 1.0), [*BAD_NUMBERS, 0.0]),
        ),
    )
    if name.startswith("Q"):
        values = [v for v in values if not isinstance(v, list | np.ndarray)]
    bad = pick(rng, values)
    return Case(f"{name}{bad!r})", lambda: make(bad), accepted)


_KINDS = (margin_losses, residual_losses, problems, bad_data)


def problems_and_losses(rng: Random) -> Case:
    """A case of the area `problems`."""
    return pick(rng, _KINDS)(rng)

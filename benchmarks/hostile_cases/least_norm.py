"""max_margin, is_separable, min_norm and certify against HiGHS, NNLS, SLSQP and mpmath."""

import mpmath
import numpy as np
from scipy.optimize import linprog, nnls

import lintensor_jax as lt
from lintensor_jax.theory.least_norm.max_margin import MarginPrecisionError

from .draws import BAD_NUMBERS, BAD_OBJECTS, WILD, Random, array, bad_arrays, pick, shown
from .outcomes import OPEN, REFUSED, RIGHT, WRONG, Case, Verdict, accepted, all_of, holds, within

#: The allowed error of a conic solution, relative to the norm: a tenth of what it reports.
_ACCURATE = 1e-7


def _rows(rng, count, size):
    """Rows of data, from mild to hostile; and whether they are mild."""
    kind = pick(rng, ("plain", "ties", "zeros", "integers", "duplicates", "low rank", "scaled"))
    rows = array(
        rng, (count, size), kind if kind in ("plain", "ties", "zeros", "integers") else "plain"
    )
    rows = np.asarray(rows, float)
    if kind == "duplicates":
        rows[-1] = rows[0]
    if kind == "low rank":
        rows = rows[:, :1] @ rng.standard_normal((1, size)) + (rng.random() < 0.5) * rows
    if kind == "scaled":
        rows = rows * 10.0 ** rng.uniform(-5, 5, (count, 1))
    if rng.random() < 0.3:
        rows = rows * 10.0 ** pick(rng, (-150, -20, 20, 150))
    return rows, kind not in ("scaled", "low rank")


def highest_l1_margin(rows: np.ndarray) -> float:
    """max t subject to rows @ w >= t, |w|_1 <= 1, by HiGHS; rows of size 1 at most."""
    count, size = rows.shape
    # Variables: w = p - q with p, q >= 0, and t.
    cost = np.append(np.zeros(2 * size), -1.0)
    above = np.hstack([-rows, rows, np.ones((count, 1))])
    budget = np.append(np.ones(2 * size), 0.0)[None]
    found = linprog(
        cost,
        np.vstack([above, budget]),
        np.append(np.zeros(count), 1.0),
        bounds=[(0, None)] * (2 * size) + [(None, None)],
        method="highs",
        options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
    )
    return float(-found.fun)


def highest_l2_margin(rows: np.ndarray) -> float:
    """The distance of 0 from the convex hull of the rows, by non-negative least squares."""
    large = 1e4  # forces the weights' sum to 1
    system = np.vstack([rows.T, large * np.ones(len(rows))])
    weights = nnls(system, np.append(np.zeros(rows.shape[1]), large), maxiter=1000)[0]
    weights = weights / weights.sum()
    return float(np.linalg.norm(weights @ rows))


_NORMS = {
    "L1Norm": (lambda: lt.L1Norm(), highest_l1_margin, lambda z: np.sum(np.abs(z))),
    "L2Norm": (lambda: lt.L2Norm(), highest_l2_margin, np.linalg.norm),
}


def max_margin(rng: Random) -> Case:
    """Margins against linear programs and NNLS; the point itself against the margins."""
    count, size = pick(rng, ((1, 2), (3, 2), (3, 4), (6, 3)))
    X, mild = _rows(rng, count, size)
    labels = rng.choice([-1.0, 1.0], count)
    if rng.random() < 0.6:  # separable
        labels = np.where(X @ rng.standard_normal(size) >= 0, 1.0, -1.0)
    norm = pick(rng, tuple(_NORMS))
    make, oracle, size_of = _NORMS[norm]
    scale = float(np.max(np.abs(X))) or 1.0
    signed = labels[:, None] * X / scale

    def call():
        try:
            return lt.max_margin(lt.Classification(X, labels), make())
        except lt.theory.NonSeparableError as error:
            return error
        except MarginPrecisionError as error:
            return error

    def judge(found):
        lengths = np.linalg.norm(signed, axis=1)
        margin = oracle(signed)
        rounding = 1e-9 * np.max(lengths)
        if isinstance(found, lt.theory.NonSeparableError):
            p = np.asarray(found.certificate)
            left = np.linalg.norm(p @ signed) / max(float(p @ lengths), 1e-300)
            return all_of(
                holds(p.min() >= 0 and abs(p.sum() - 1) < 1e-6, f"certificate {p}"),
                holds(left < 1e-12 or (lengths == 0).any(), f"certificate leaves {left}"),
                holds(margin <= rounding, f"said to be not separable, margin {margin}"),
            )
        if isinstance(found, MarginPrecisionError):
            hard = margin < 1e-7 * np.max(lengths) or not mild
            return Verdict(REFUSED) if hard else Verdict(WRONG, note=f"{found}; margin {margin}")
        z = np.asarray(found.coefficients) * scale
        if found.status == "inaccurate":
            return Verdict(OPEN, note=str(found))
        if not margin > rounding:  # HiGHS and NNLS find no margin, so only the point is judged
            return holds(np.min(signed @ z) >= 1 - 1e-7, f"margins {signed @ z}")
        verdicts = [
            holds(np.min(signed @ z) >= 1 - 1e-8, f"margins {signed @ z}"),
            within(size_of(z) * margin, 1.0, _ACCURATE * max(1, 1e-2 / margin)),
            within(float(found.margin) / scale, margin, _ACCURATE * max(1, 1e-2 / margin)),
        ]
        return all_of(*verdicts)

    return Case(f"max_margin {norm} {shown(X=X, y=labels)}", call, judge, mild)


def separable(rng: Random) -> Case:
    """is_separable of rational data, decided exactly by a linear program with integer rows."""
    count, size = pick(rng, ((2, 2), (4, 2), (5, 3)))
    X = rng.integers(-3, 4, (count, size)).astype(float)
    labels = rng.choice([-1.0, 1.0], count)
    scale = 10.0 ** float(pick(rng, (-200, -3, 0, 7, 200)))

    def call():
        return lt.theory.is_separable(lt.Classification(X * scale, labels))

    def judge(found):
        signed = labels[:, None] * X
        # Whether signed @ w >= 1 is feasible: for integers below 4 rounding cannot change this.
        feasible = linprog(
            np.zeros(size), -signed, -np.ones(count), bounds=(None, None), method="highs"
        )
        right = feasible.status == 0
        return holds(found.separable == right, f"{found.separable}, HiGHS says {right}")

    return Case(f"is_separable {shown(X=X, y=labels, scale=scale)}", call, judge, True)


def least_l1(rows: np.ndarray, y: np.ndarray) -> float:
    """min |beta|_1 subject to rows @ beta = y, by HiGHS."""
    size = rows.shape[1]
    found = linprog(
        np.ones(2 * size),
        A_eq=np.hstack([rows, -rows]),
        b_eq=y,
        bounds=(0, None),
        method="highs",
        options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
    )
    return float(found.fun) if found.status == 0 else np.nan


def least_l2(rows: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The least-squares solution of least norm, in 60 digits."""
    with mpmath.workdps(60):
        left, sizes, right = mpmath.svd_r(mpmath.matrix(rows.tolist()))
        target = mpmath.matrix(y.tolist())
        size = max(sizes)
        beta = mpmath.zeros(rows.shape[1], 1)
        for k in range(len(sizes)):
            if sizes[k] > size * mpmath.mpf(10) ** -13:
                step = (left[:, k].T * target)[0] / sizes[k]
                beta += step * right[k, :].T
        return np.array([float(b) for b in beta])


def min_norm(rng: Random) -> Case:
    """The value of the norm, and the equations; inconsistent ones are refused."""
    count, size = pick(rng, ((1, 2), (2, 3), (3, 4), (4, 3)))
    X, mild = _rows(rng, count, size)
    scale = float(np.max(np.abs(X))) or 1.0
    y_scale = 10.0 ** float(pick(rng, (0, 0, -100, 100)))
    consistent = rng.random() < 0.7
    y = (X / scale) @ rng.standard_normal(size) if consistent else rng.standard_normal(count)
    y = y * y_scale
    norm = pick(rng, tuple(_NORMS))

    def call():
        try:
            return lt.min_norm(lt.Regression(X, y), _NORMS[norm][0]())
        except lt.theory.InconsistentEquationsError as error:
            return error

    def judge(found):
        rows, target = X / scale, y / y_scale
        right = least_l2(rows, target)
        misfit = np.linalg.norm(rows @ right - target) / max(np.linalg.norm(target), 1e-300)
        if isinstance(found, lt.theory.InconsistentEquationsError):
            return holds(misfit > 1e-9 or not mild, f"{found}, but the misfit is {misfit}")
        beta = np.asarray(found.coefficients) / y_scale * scale
        if found.status == "inaccurate":
            return Verdict(OPEN, note=str(found))
        size_of = _NORMS[norm][2]
        sizes = np.linalg.svd(rows, compute_uv=False)
        condition = sizes[0] / max(sizes[sizes > 1e-13 * sizes[0]].min(initial=1.0), 1e-300)
        left = np.linalg.norm(rows @ beta - target) / max(np.linalg.norm(target), 1e-300)
        verdicts = [holds(left <= 2e-7 or misfit > 1e-9, f"equations left {left}")]
        value = np.linalg.norm(right) if norm == "L2Norm" else least_l1(rows, target)
        if np.isfinite(value) and condition < 1e8:
            verdicts.append(within(size_of(beta), value, 1e-7 * max(1.0, condition / 1e2), value))
        return all_of(*verdicts)

    return Case(f"min_norm {norm} {shown(X=X, y=y)}", call, judge, mild)


def certify(rng: Random) -> Case:
    """An exact KKT point is certified; a point with one layer rescaled is not."""
    depth = int(pick(rng, (2, 3)))
    scale = 10.0 ** float(pick(rng, (-100, -5, 0, 5, 100)))
    X = np.eye(3)[:2] * scale if rng.random() < 0.5 else np.array([[1.0, 0.0, 0.0]]) * scale
    y = rng.choice([-1.0, 1.0], len(X))
    # Each sample is a support vector in one coordinate. There all layers have equal moduli; the
    # other coordinates are 0.
    beta = np.zeros(3)
    beta[: len(X)] = y
    size = 10.0 ** float(pick(rng, (-60, 0, 60)))
    weights = np.tile(np.abs(beta), (depth, 1))
    weights[-1] = beta
    turned = rng.random() < 0.5
    if turned:
        weights[0] *= 1.3  # unbalanced
    network = weights * size

    def call():
        return lt.certify(lt.DiagonalNetwork(network), lt.Classification(X, y))

    def judge(found):
        return holds(found.is_stationary is not turned, str(found))

    return Case(f"certify {shown(weights=network, X=X, y=y)}", call, judge, True)


_VALUES = {
    "L1Norm": (lambda: lt.L1Norm(), lambda b: sum(abs(x) for x in b)),
    "L2Norm": (lambda: lt.L2Norm(), lambda b: mpmath.sqrt(sum(x * x for x in b))),
    "WeightedL2Norm": (
        lambda: lt.WeightedL2Norm(np.array([1.0, 2.0, 3.0])),
        lambda b: mpmath.sqrt(sum((k * x) ** 2 for k, x in enumerate(b, 1))),
    ),
    "LpNorm": (lambda: lt.LpNorm(0.5), lambda b: sum(mpmath.sqrt(abs(x)) for x in b) ** 2),
    "FourierL1Norm": (
        lambda: lt.FourierL1Norm(),
        lambda b: sum(abs(x) for x in _transformed(b)),
    ),
    "FourierLpNorm": (
        lambda: lt.FourierLpNorm(0.5),
        lambda b: sum(mpmath.sqrt(abs(x)) for x in _transformed(b)) ** 2,
    ),
}


def _transformed(beta):
    root = mpmath.exp(2j * mpmath.pi / len(beta))
    size = mpmath.sqrt(len(beta))
    return [sum(x * root ** (j * k) for j, x in enumerate(beta)) / size for k in range(len(beta))]


def norm_values(rng: Random) -> Case:
    """Norms of vectors of any scale."""
    name = pick(rng, tuple(_VALUES))
    beta = np.asarray(array(rng, (3,), pick(rng, WILD)), float)
    make, exact = _VALUES[name]

    def judge(found):
        with mpmath.workdps(60):
            right = exact([mpmath.mpf(float(x)) for x in beta])
            # A value outside the range of floats, or near its ends, cannot be returned exactly.
            right = float(right) if 1e-290 < right < 1e290 or not right else None
        return (
            within(found, right, 1e-7 if "Lp" in name else 1e-14)
            if right is not None
            else Verdict(RIGHT, 0.0)
        )

    return Case(f"{name} {shown(beta=beta)}", lambda: make()(beta), judge, True)


def bad_programs(rng: Random) -> Case:
    """Invalid problems, norms and starts."""
    sort, fit = lt.Classification(np.eye(2), np.ones(2)), lt.Regression(np.eye(2), np.ones(2))
    diagonal = lt.DiagonalNetwork(np.ones((2, 2)))
    starts = [b for b in bad_arrays((2,)) if b is not None]
    # Weights may have several shapes, so only values that are invalid in all shapes are used.
    loose = [b for b in starts if not (isinstance(b, np.ndarray) and b.shape in ((), (2, 1, 1)))]
    name, make, values = pick(
        rng,
        (
            ("max_margin(problem=", lambda b: lt.max_margin(b, lt.L2Norm()), [*BAD_OBJECTS, fit]),
            ("max_margin(norm=", lambda b: lt.max_margin(sort, b), [*BAD_OBJECTS, lt.L2Norm]),
            (
                "max_margin(start=",
                lambda b: lt.max_margin(sort, lt.LpNorm(0.5), start=b),
                starts,
            ),
            ("min_norm(problem=", lambda b: lt.min_norm(b, lt.L1Norm()), [*BAD_OBJECTS, sort]),
            ("min_norm(norm=", lambda b: lt.min_norm(fit, b), [*BAD_OBJECTS, lt.L2Norm]),
            ("min_norm(start=", lambda b: lt.min_norm(fit, lt.LpNorm(0.5), start=b), starts),
            ("is_separable(problem=", lt.theory.is_separable, [*BAD_OBJECTS, fit]),
            ("certify(network_or_coefficients=", lambda b: lt.certify(b, sort), [*starts, len]),
            ("certify(problem=", lambda b: lt.certify(diagonal, b), [*BAD_OBJECTS, fit]),
            (
                "certify(tolerance=",
                lambda b: lt.certify(diagonal, sort, tolerance=b),
                [b for b in BAD_NUMBERS if b is not None],
            ),
            (
                "certify(regularizer=",
                lambda b: lt.certify(diagonal, sort, regularizer=b),
                [*BAD_OBJECTS, lt.L2Norm],
            ),
            ("LpNorm(p=", lt.LpNorm, [b for b in BAD_NUMBERS if b is not np.inf]),
            ("L1Norm(weights=", lt.L1Norm, loose),
            ("WeightedL2Norm(weights=", lt.WeightedL2Norm, loose),
        ),
    )
    bad = pick(rng, values)
    return Case(f"{name}{bad!r})", lambda: make(bad), accepted)


def max_margins(rng: Random) -> Case:
    """A case of the area `max_margin`."""
    return pick(rng, (max_margin, max_margin, max_margin, separable, norm_values, bad_programs))(
        rng
    )

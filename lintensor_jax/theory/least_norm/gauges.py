"""The two kinds of norm that conic programs know: groups of coordinates, and singular values.

A gauge works on rows A (n, D) and targets b (n,): the point w has gauge 1, A w >= t b (or = t b),
and p are the multipliers, b^T p = 1. The minimiser of the norm is w / t, its multipliers p / t.
Optimal means: A^T p / t is a subgradient of the gauge at w, p >= 0, p_i > 0 only where tight.
"""

import dataclasses

import numpy as np

from .conic import ConicSolution, largest_level_of_groups, largest_level_of_nuclear

# A coordinate group, singular value or multiplier below this share of its scale counts as zero
# when uniqueness is judged; the polished solutions are accurate to 1e-12 or better.
_ZERO = 1e-8
# The rounding of a change of basis is at most this share of the largest group.
_DUST = 1e-12


@dataclasses.dataclass(frozen=True)
class GroupGauge:
    """(sum_g |w_g|_2^power)^(1/power): `labels` (D,) is the group of each coordinate."""

    labels: np.ndarray
    power: float = 1.0

    def group_norms(self, w: np.ndarray) -> np.ndarray:
        """|w_g|_2 of every group."""
        return np.sqrt(np.bincount(self.labels, w**2))

    def value(self, w: np.ndarray) -> float:
        """The gauge of w."""
        sizes = self.group_norms(w)
        largest = max(sizes.max(), np.finfo(float).tiny)
        return float(largest * np.sum((sizes / largest) ** self.power) ** (1 / self.power))

    def cleaned(self, w: np.ndarray) -> np.ndarray:
        """w with zeros for the rounding of a change of basis, which a power < 1 would amplify."""
        if self.power == 1:
            return w
        sizes = self.group_norms(w)
        return np.where((sizes > _DUST * sizes.max())[self.labels], w, 0.0)

    def solve(self, rows: np.ndarray, targets: np.ndarray, equality: bool) -> ConicSolution:
        """The convex program; the power must be 1."""
        return largest_level_of_groups(rows, targets, self.labels, equality)

    def stationarity(self, w: np.ndarray, gradient: np.ndarray) -> float:
        """The distance of `gradient` from a subgradient at w (gauge 1), in the dual norm.

        Convex: |G - P(w + G)|, P the projection on the dual unit ball; zero iff G is a subgradient.
        Power < 1: only groups that are not zero carry a condition (Yun et al. 2021, Theorem 2).
        """
        if self.power < 1:
            sizes = self.group_norms(w)[self.labels]
            on = sizes > 0
            slope = sizes[on] ** (self.power - 2) * w[on]
            scale = np.maximum(1.0, sizes[on] ** (self.power - 1))
            return float(np.max(np.abs(gradient[on] - slope) / scale, initial=0.0))
        shifted = w + gradient
        radius = np.maximum(1.0, self.group_norms(shifted))[self.labels]
        return float(self.group_norms(gradient - shifted / radius).max())

    def active(self, w, gradient, threshold):
        """Groups to keep in the polish: by strict complementarity, or by size if a threshold."""
        sizes = self.group_norms(w)
        if threshold is not None or self.power < 1:
            return sizes > (threshold or 0.0) * sizes.max()
        return sizes > 1.0 - self.group_norms(gradient)

    def newton(self, rows, targets, w, level, multipliers, active):
        """Newton's method on the optimality equations of the active groups and given rows."""
        on = active[self.labels]
        inner = GroupGauge(np.unique(self.labels[on], return_inverse=True)[1], self.power)
        q, labels, count = self.power, inner.labels, rows.shape[0]
        data = rows[:, on]
        x = w[on]
        same = labels[:, None] == labels[None, :]
        t, p = level, multipliers
        for _ in range(12):
            sizes = inner.group_norms(x)[labels]
            if not (sizes > 0).all():
                return None
            slope = sizes ** (q - 2) * x
            hessian = np.diag(sizes ** (q - 2))
            hessian += np.where(same, (q - 2) * np.outer(sizes ** (q - 4) * x, x), 0.0)
            defect = np.concatenate(
                [
                    data.T @ p - t * slope,
                    data @ x - t * targets,
                    [targets @ p - 1.0, (x @ slope - 1.0)],
                ]
            )
            jacobian = np.block(
                [
                    [-t * hessian, data.T, -slope[:, None]],
                    [data, np.zeros((count, count)), -targets[:, None]],
                    [np.zeros((1, x.size)), targets[None], np.zeros((1, 1))],
                    [q * slope[None], np.zeros((1, count + 1))],
                ]
            )
            step = _min_norm_step(jacobian, defect)
            if step is None:
                return None
            x, p, t = x + step[: x.size], p + step[x.size : -1], t + step[-1]
            if np.max(np.abs(step)) < 1e-15:
                break
        full = np.zeros_like(w)
        full[on] = x
        return full, t, p

    def is_unique(self, rows, targets, w, level, multipliers, equality) -> bool | None:
        """Whether the optimum is unique; None if that would take too long to decide.

        Every optimum has w_g = s_g G_g with s_g >= 0 on the groups where the subgradient G has
        norm 1, w_g = 0 elsewhere, and is tight where multipliers are positive.
        """
        if self.power < 1:
            return None
        gradient = rows.T @ multipliers / level
        tight = np.flatnonzero(self.group_norms(gradient) >= 1.0 - _ZERO)
        picks = np.zeros((self.labels.size, tight.size))
        for column, group in enumerate(tight):
            picks[self.labels == group, column] = gradient[self.labels == group]
        sizes = self.group_norms(w)
        strict = (sizes[tight] > _ZERO * sizes.max()).all()
        optimum = (w, level, multipliers)
        return _judge_uniqueness(rows, targets, optimum, equality, picks, bool(strict))


@dataclasses.dataclass(frozen=True)
class NuclearGauge:
    """The sum of the singular values of w, a matrix of this shape flattened row by row."""

    shape: tuple[int, int]

    def value(self, w: np.ndarray) -> float:
        """The gauge of w."""
        return float(np.linalg.svd(w.reshape(self.shape), compute_uv=False).sum())

    def cleaned(self, w: np.ndarray) -> np.ndarray:
        """w unchanged: no basis is changed for singular values."""
        return w

    def solve(self, rows: np.ndarray, targets: np.ndarray, equality: bool) -> ConicSolution:
        """The semidefinite program."""
        return largest_level_of_nuclear(rows, targets, self.shape, equality)

    def stationarity(self, w: np.ndarray, gradient: np.ndarray) -> float:
        """As for groups, in the operator norm."""
        left, sizes, right = np.linalg.svd((w + gradient).reshape(self.shape), full_matrices=False)
        projected = (left * np.minimum(sizes, 1.0)) @ right
        return float(np.linalg.norm(gradient.reshape(self.shape) - projected, 2))

    def active(self, w, gradient, threshold):
        """Singular directions to keep in the polish (the leading ones)."""
        sizes = np.linalg.svd(w.reshape(self.shape), compute_uv=False)
        if threshold is not None:
            return sizes > threshold * sizes.max()
        dual = np.linalg.svd(gradient.reshape(self.shape), compute_uv=False)
        return sizes > 1.0 - dual

    def newton(self, rows, targets, w, level, multipliers, active):
        """Newton on G V = t U, G^T U = t V, tight rows, with w = U V^T of the active rank.

        The rotations of (U, V) leave w alone; the minimum-norm step takes none of them.
        """
        tall, wide = self.shape
        left, sizes, right = np.linalg.svd(w.reshape(self.shape), full_matrices=False)
        rank = max(1, int(active.sum()))
        root = np.sqrt(sizes[:rank])
        u, v = left[:, :rank] * root, right[:rank].T * root
        sensors = rows.reshape(-1, tall, wide)
        t, p, count = level, multipliers, rows.shape[0]
        eye = np.eye(rank)
        for _ in range(12):
            dual = np.einsum("n,nij->ij", p, sensors)
            on_v, on_u = sensors @ v, np.swapaxes(sensors, 1, 2) @ u
            defect = np.concatenate(
                [
                    (dual @ v - t * u).ravel(),
                    (dual.T @ u - t * v).ravel(),
                    np.einsum("nij,ij->n", on_v, u) - t * targets,
                    [targets @ p - 1.0, 0.5 * (np.sum(u**2) + np.sum(v**2)) - 1.0],
                ]
            )
            jacobian = np.block(
                [
                    [
                        -t * np.eye(tall * rank),
                        np.kron(dual, eye),
                        on_v.reshape(count, -1).T,
                        -u.reshape(-1, 1),
                    ],
                    [
                        np.kron(dual.T, eye),
                        -t * np.eye(wide * rank),
                        on_u.reshape(count, -1).T,
                        -v.reshape(-1, 1),
                    ],
                    [
                        on_v.reshape(count, -1),
                        on_u.reshape(count, -1),
                        np.zeros((count, count)),
                        -targets[:, None],
                    ],
                    [np.zeros((1, (tall + wide) * rank)), targets[None], np.zeros((1, 1))],
                    [u.reshape(1, -1), v.reshape(1, -1), np.zeros((1, count + 1))],
                ]
            )
            step = _min_norm_step(jacobian, defect)
            if step is None:
                return None
            u = u + step[: u.size].reshape(u.shape)
            v = v + step[u.size : u.size + v.size].reshape(v.shape)
            p, t = p + step[u.size + v.size : -1], t + step[-1]
            if np.max(np.abs(step)) < 1e-15:
                break
        return (u @ v.T).ravel(), t, p

    def is_unique(self, rows, targets, w, level, multipliers, equality) -> bool | None:
        """As for groups: every optimum is U M V^T, M >= 0, on the top singular space of G."""
        gradient = (rows.T @ multipliers / level).reshape(self.shape)
        left, dual, right = np.linalg.svd(gradient, full_matrices=False)
        top = int((dual >= 1.0 - _ZERO).sum())
        row, column = np.triu_indices(top)
        ones = np.zeros((row.size, top, top))
        ones[np.arange(row.size), row, column] = 1.0
        ones[np.arange(row.size), column, row] = 1.0
        picks = (left[:, :top] @ ones @ right[:top]).reshape(row.size, -1).T
        sizes = np.linalg.svd(w.reshape(self.shape), compute_uv=False)
        strict = int((sizes > _ZERO * sizes.max()).sum()) == top
        return _judge_uniqueness(rows, targets, (w, level, multipliers), equality, picks, strict)


Gauge = GroupGauge | NuclearGauge


def _judge_uniqueness(rows, targets, optimum, equality, picks, strict):
    """Unique if the binding rows separate the face's directions (columns of picks)."""
    w, level, multipliers = optimum
    if picks.shape[1] == 0:
        return None
    mass = np.abs(multipliers * targets)
    binding = np.ones(len(targets), bool) if equality else mass > _ZERO * mass.max()
    singular = np.linalg.svd(rows[binding] @ picks, compute_uv=False)
    if singular.size == picks.shape[1] and singular[-1] > _ZERO * singular[0]:
        return True
    loose = rows @ w - level * targets > _ZERO * level * targets
    # With strict complementarity a small move along the kernel is another optimum.
    return False if strict and (binding | loose).all() else None


def _min_norm_step(jacobian, defect):
    """The least-squares solution of J step = -defect of minimum norm, or None."""
    if not (np.isfinite(jacobian).all() and np.isfinite(defect).all()):
        return None
    # Redundant samples make J singular on purpose; 1e-13 still keeps margins of 1e-8 (J ~ t).
    return np.linalg.lstsq(jacobian, -defect, rcond=1e-13)[0]

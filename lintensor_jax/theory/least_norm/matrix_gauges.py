"""Gauges of the singular values of a matrix: their sum and their largest."""

import dataclasses

import numpy as np

from .conic import (
    ConicSolution,
    Constraints,
    largest_level_of_nuclear,
    largest_level_of_spectral,
)
from .gauges import ZERO, AbstractGauge, Unknowns, on_simplex
from .newton import Equations


@dataclasses.dataclass(frozen=True)
class NuclearGauge(AbstractGauge):
    """The sum of the singular values of w, a matrix of this shape flattened row by row."""

    shape: tuple[int, int]

    def value(self, w: np.ndarray) -> float:
        """The gauge of w."""
        return float(np.linalg.svd(w.reshape(self.shape), compute_uv=False).sum())

    def dual(self, gradient: np.ndarray) -> float:
        """The largest singular value."""
        return float(np.linalg.norm(gradient.reshape(self.shape), 2))

    def solve(self, given: Constraints) -> ConicSolution:
        """The solution of the semidefinite program."""
        return largest_level_of_nuclear(given, self.shape)

    def stationarity(self, w: np.ndarray, gradient: np.ndarray) -> float:
        """|G - P(w + G)| as in `AbstractGauge`, in the operator norm."""
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

    def unknowns(self, start, gradient, active, given) -> Unknowns:
        """U, V with w = U V^T of the active rank: G V = t U, G^T U = t V.

        Rotations of (U, V) do not change w; the minimum-norm step has no component along them.
        """
        tall, wide = self.shape
        left, sizes, right = np.linalg.svd(start.point.reshape(self.shape), full_matrices=False)
        rank = max(1, int(active.sum()))
        root = np.sqrt(sizes[:rank])
        sensors = given.rows.reshape(-1, tall, wide)
        count, eye = len(sensors), np.eye(rank)
        cut = tall * rank

        def equations(z, p, t):
            u, v = z[:cut].reshape(tall, rank), z[cut:].reshape(wide, rank)
            dual = np.einsum("n,nij->ij", p, sensors)
            on_v, on_u = sensors @ v, np.swapaxes(sensors, 1, 2) @ u
            size = 0.5 * (np.sum(u**2) + np.sum(v**2))
            return Equations(
                (u @ v.T).ravel(),
                np.hstack([np.kron(np.eye(tall), v), _swapped(u, wide)]),
                np.concatenate(
                    [(dual @ v - t * u).ravel(), (dual.T @ u - t * v).ravel(), [size - 1]]
                ),
                np.block(
                    [
                        [-t * np.eye(cut), np.kron(dual, eye)],
                        [np.kron(dual.T, eye), -t * np.eye(wide * rank)],
                        [u.reshape(1, -1), v.reshape(1, -1)],
                    ]
                ),
                np.vstack([on_v.reshape(count, -1).T, on_u.reshape(count, -1).T, np.zeros(count)]),
                np.concatenate([-u.ravel(), -v.ravel(), [0.0]]),
            )

        z0 = np.concatenate([(left[:, :rank] * root).ravel(), (right[:rank].T * root).ravel()])
        return z0, start.level, equations

    def shrunk(self, w: np.ndarray, size: float) -> np.ndarray:
        """argmin_u size gauge(u) + |u - w|^2 / 2: singular values become max(s - size, 0)."""
        left, sizes, right = np.linalg.svd(w.reshape(self.shape), full_matrices=False)
        return ((left * np.maximum(sizes - size, 0.0)) @ right).ravel()

    def face(self, w, gradient):
        """Every optimum is U M V^T, M >= 0, with the top singular vectors U, V of G."""
        left, dual, right = np.linalg.svd(gradient.reshape(self.shape), full_matrices=False)
        top = int((dual >= 1.0 - ZERO).sum())
        row, column = np.triu_indices(top)
        ones = np.zeros((row.size, top, top))
        ones[np.arange(row.size), row, column] = 1.0
        ones[np.arange(row.size), column, row] = 1.0
        picks = (left[:, :top] @ ones @ right[:top]).reshape(row.size, -1).T
        sizes = np.linalg.svd(w.reshape(self.shape), compute_uv=False)
        return picks, int((sizes > ZERO * sizes.max()).sum()) == top

    def balanced(self, w, rows):
        """The conditions on the two balanced layers U s^(1/2), s^(1/2) V^T with this w."""
        left, sizes, right = np.linalg.svd(w.reshape(self.shape), full_matrices=False)
        root = np.sqrt(sizes)
        u, v = left * root, right.T * root
        sensors = rows.reshape(-1, *self.shape)
        parts = [sensors @ v, np.swapaxes(sensors, 1, 2) @ u]
        columns = np.concatenate([part.reshape(len(rows), -1) for part in parts], axis=1)
        target = np.concatenate([u.ravel(), v.ravel()])
        size = np.linalg.norm(target)
        return columns / size, target / size


@dataclasses.dataclass(frozen=True)
class SpectralGauge(AbstractGauge):
    """The largest singular value of w, a matrix of this shape flattened row by row."""

    shape: tuple[int, int]

    def value(self, w: np.ndarray) -> float:
        """The gauge of w."""
        return float(np.linalg.norm(w.reshape(self.shape), 2))

    def dual(self, gradient: np.ndarray) -> float:
        """The sum of the singular values."""
        return float(np.linalg.svd(gradient.reshape(self.shape), compute_uv=False).sum())

    def solve(self, given: Constraints) -> ConicSolution:
        """The solution of the semidefinite program."""
        return largest_level_of_spectral(given, self.shape)

    def stationarity(self, w: np.ndarray, gradient: np.ndarray) -> float:
        """|G - P(w + G)| as in `AbstractGauge`, in the nuclear norm."""
        left, sizes, right = np.linalg.svd((w + gradient).reshape(self.shape), full_matrices=False)
        projected = (left * on_simplex(sizes)) @ right
        return self.dual(gradient - projected.ravel())

    def active(self, w, gradient, threshold):
        """The singular directions of w of the largest size: those in the range of the gradient."""
        dual = np.linalg.svd(gradient.reshape(self.shape), compute_uv=False)
        if threshold is not None:
            return dual > threshold * dual.max()
        return dual > 1.0 - np.linalg.svd(w.reshape(self.shape), compute_uv=False)

    def unknowns(self, start, gradient, active, given) -> Unknowns:
        """W, and U, V, S with G = U S V^T, S symmetric, U^T U = I, W V = U, W^T U = V.

        Rotations of (U, S, V) do not change G; the minimum-norm step has no component along them.
        """
        tall, wide = self.shape
        rank = max(1, int(active.sum()))
        both = (start.point + gradient).reshape(self.shape)
        left, _, right = np.linalg.svd(both, full_matrices=False)
        u0, v0 = left[:, :rank], right[:rank].T
        s0 = start.level * (u0.T @ gradient.reshape(self.shape) @ v0)
        cuts = np.cumsum([tall * wide, tall * rank, wide * rank])
        move = np.eye(tall * wide, cuts[-1] + rank**2)

        def equations(z, p, t):
            w, u, v, s = np.split(z, cuts)
            w, u = w.reshape(tall, wide), u.reshape(tall, rank)
            v, s = v.reshape(wide, rank), s.reshape(rank, rank)
            defects = (
                (given.rows.T @ p).reshape(tall, wide) - u @ s @ v.T,
                w @ v - u,
                w.T @ u - v,
                u.T @ u - np.eye(rank),
                s - s.T,
            )
            defect = np.concatenate([part.ravel() for part in defects])
            by_p = np.zeros((defect.size, len(p)))
            by_p[: w.size] = given.rows.T
            return Equations(
                w.ravel(), move, defect, _frames_jacobian(w, u, v, s), by_p, np.zeros(defect.size)
            )

        z0 = np.concatenate([start.point, u0.ravel(), v0.ravel(), s0.ravel()])
        return z0, start.level, equations

    def face(self, w, gradient):
        """Every optimum is U V^T + U' Z V'^T: U, V from the SVD of G; U', V' their complements."""
        left, dual, right = np.linalg.svd(gradient.reshape(self.shape))
        rank = int((dual > ZERO * dual[0]).sum())
        rest, other = left[:, rank:], right[rank:].T
        sizes = np.linalg.svd(rest.T @ w.reshape(self.shape) @ other, compute_uv=False)
        return np.kron(rest, other), bool((sizes < 1.0 - ZERO).all())


def _swapped(u, wide):
    """d vec(U V^T) / d vec(V), row by row: shape (tall * wide, wide * rank)."""
    tall, rank = u.shape
    blocks = np.einsum("ik,jl->ijlk", u, np.eye(wide))
    return blocks.reshape(tall * wide, wide * rank)


def _frames_jacobian(w, u, v, s):
    """The derivatives of G - U S V^T, W V - U, W^T U - V, U^T U, S - S^T by W, U, V and S."""
    (tall, rank), wide = u.shape, len(v)
    eye, square = np.eye(rank), np.eye(rank * rank)
    # vec(S^T) = swap @ vec(S), row by row.
    swap = square.reshape(rank, rank, -1).swapaxes(0, 1).reshape(square.shape)
    by_w = np.einsum("jl,ik->jkil", np.eye(wide), u).reshape(wide * rank, tall * wide)
    gram = np.kron(u.T, eye)
    blocks = (
        (None, -np.kron(np.eye(tall), v @ s.T), -_swapped(u @ s, wide), -np.kron(u, v)),
        (np.kron(np.eye(tall), v.T), -np.eye(u.size), np.kron(w, eye), None),
        (by_w, np.kron(w.T, eye), -np.eye(v.size), None),
        (None, gram + swap @ gram, None, None),
        (None, None, None, square - swap),
    )
    heights, widths = (w.size, u.size, v.size, s.size, s.size), (w.size, u.size, v.size, s.size)
    return np.block(
        [
            [
                np.zeros((h, b)) if part is None else part
                for b, part in zip(widths, line, strict=True)
            ]
            for h, line in zip(heights, blocks, strict=True)
        ]
    )

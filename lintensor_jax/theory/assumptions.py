"""What the theorems assume, measured on a network's current parameters and a problem's data."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike

from ..eager_programs import eager_program
from ..networks import AssumptionFails, OrthogonalDecomposition
from ..networks.closed_forms import closed_form
from ..networks.decomposition import decomposition_of
from ..networks.pair import coefficients_like

YUN = "Yun et al. 2021"
# Zeros and equalities of computed parameters and data hold up to this many roundings.
_ROUNDING_ULPS = 256


def _as_verdict(holds):
    return None if holds is None else bool(holds)


class Assumption(eqx.Module):
    """One assumption of a theorem, and whether a network and a problem satisfy it.

    - `statement`: in words.
    - `value`: what was measured: a number, a tuple of integers, a word, or None if there is
      nothing to measure before the flow has run.
    - `holds`: True, False, or None if it cannot be known before the flow has run.
    - `source`: paper and statement.
    """

    statement: str = eqx.field(static=True)
    value: Any = eqx.field(static=True)
    holds: bool | None = eqx.field(static=True, converter=_as_verdict)
    source: str = eqx.field(static=True)

    def __str__(self) -> str:
        """`[holds] statement: value (source)`; FAILS or open in the other cases."""
        verdict = {True: "holds", False: "FAILS", None: "open "}[self.holds]
        return f"[{verdict}] {self.statement}: {self.shown_value} ({self.source})"

    @property
    def shown_value(self) -> str:
        """The measured value as text."""
        if self.value is None:
            return "not measurable before the flow"
        return f"{self.value:.6g}" if isinstance(self.value, float) else str(self.value)


def rounding(array: ArrayLike) -> float:
    """The largest modulus that counts as zero, relative to the largest entry of `array`."""
    dtype = getattr(array, "dtype", None)
    dtype = jnp.asarray(array).dtype if dtype is None else dtype
    # JAX's dtype: without x64 an array of NumPy is used in float32.
    return _ROUNDING_ULPS * float(jnp.finfo(jax.dtypes.canonicalize_dtype(dtype)).eps)


def violated(error: AssumptionFails, source: str) -> Assumption:
    """The assumption that raised `error`."""
    return Assumption(error.violated, error.value, False, source)


def underdetermined(rows: ArrayLike, source: str) -> tuple[Assumption, Assumption]:
    """At most as many samples as coefficients, and the samples are linearly independent.

    `rows`: shape (n, d). The value of the second is the smallest singular value over the largest;
    0 if n > d.
    """
    rows = np.asarray(rows)
    n, d = rows.shape
    sizes = np.linalg.svd(rows, compute_uv=False)
    ratio = float(sizes[-1] / sizes[0]) if n <= d and sizes[0] > 0 else 0.0
    return (
        Assumption("at most as many samples as coefficients, (n, d)", (n, d), n <= d, source),
        Assumption(
            "X has full row rank: its smallest over its largest singular value",
            ratio,
            ratio > max(n, d) * float(np.finfo(rows.dtype).eps),
            source,
        ),
    )


class Components(eqx.Module):
    """A network in the coordinates of Assumption 1 (Yun et al. 2021).

    - `values`: shape (L, m); row l is U_l^T v_l, real or complex.
    - `S`: shape (m, d), or None for the identity.
    - `assumptions`: that the network has such coordinates, as measured.
    - `tolerance`: up to this share of the largest value a value counts as zero.
    """

    values: Any
    S: Any
    assumptions: tuple[Assumption, ...]
    tolerance: float = eqx.field(static=True)

    @property
    def is_real(self) -> Assumption:
        """That S and all U_l are real, as Theorem 5 requires.

        The value is the largest imaginary part of S, relative to the largest entry of S.
        """
        S = np.zeros(1) if self.S is None else np.asarray(self.S)
        value = float(np.max(np.abs(np.imag(S))) / np.max(np.abs(S))) if S.any() else 0.0
        is_real = not np.iscomplexobj(S) and not np.iscomplexobj(self.values)
        return Assumption("S and U_1, ..., U_L are real", value, is_real, f"{YUN}, Theorem 5")


def components_of(network: Any) -> Components:
    """The network's components along its singular vectors; AssumptionFails if it has none."""
    source = f"{YUN}, Assumption 1"
    statement = "the data tensor is orthogonally decomposable, relative error"
    known = (Assumption(statement, 0.0, True, source),)
    components = closed_form(network, "singular_components")
    if components is not None:
        values, S = components
        return Components(values, S, known, rounding(np.real(np.asarray(values))))
    if hasattr(network, "orthogonal_decomposition"):
        found = network.orthogonal_decomposition()
    else:
        found = decomposition_of(network)
    values = jnp.stack([v @ u for u, v in zip(found.bases, network.factors, strict=True)])
    defect = _orthogonality_defect(found)
    # A decomposition that was found numerically is only as accurate as the tolerance of its test.
    tolerance = float(jnp.finfo(values.dtype).eps) ** 0.5 if found.residual else rounding(values)
    return Components(
        values,
        found.S,
        (
            Assumption(statement, found.residual, True, source),
            Assumption("U_l^H U_l = I, largest deviation", defect, True, source),
        ),
        tolerance,
    )


def _orthogonality_defect(found: OrthogonalDecomposition) -> float:
    bases = [np.asarray(u) for u in found.bases]
    return max(float(np.max(np.abs(u.conj().T @ u - np.eye(u.shape[1])))) for u in bases)


def equal_first_layers(values: ArrayLike, tolerance: float, source: str) -> tuple[Assumption, ...]:
    """Theorem 5's start v_l = alpha U_l eta (l < L), v_L = 0, from rows `values` = U_l^T v_l.

    Signs may differ from layer to layer: they can be moved into S.
    """
    sizes = np.abs(np.asarray(values))
    largest = sizes.max() if sizes.any() else 1.0
    difference = float(np.max(np.abs(sizes[:-1] - sizes[0])) / largest)
    last = float(np.max(sizes[-1]) / largest)
    smallest = float(np.min(sizes[0]))
    return (
        Assumption(
            "the first L-1 layers are equal up to signs, largest difference over largest weight",
            difference,
            difference <= tolerance,
            source,
        ),
        Assumption(
            "the last layer is zero, its largest weight over the largest of all",
            last,
            last <= tolerance,
            source,
        ),
        Assumption(
            "eta_j^2 >= lambda > 0 for the start alpha eta of the first layers, alpha^2 lambda",
            smallest**2,
            smallest > tolerance * float(np.max(sizes[0])),
            source,
        ),
    )


def smallest_layer(values: ArrayLike, tolerance: float, source: str) -> Assumption:
    """Theorem 2's initial condition; layer k is the last if that meets it, else any (Remark 2)."""
    squares = np.abs(np.asarray(values)) ** 2
    depth = len(squares)
    gaps = [
        float(np.min(np.delete(squares, layer, axis=0) - squares[layer])) for layer in range(depth)
    ]
    small = max(range(depth), key=lambda layer: (gaps[layer], layer))
    if gaps[-1] > tolerance * squares.max():
        small = depth - 1
    remark = "" if small == depth - 1 else f" (Remark 2; for the last layer {gaps[-1]:.6g})"
    return Assumption(
        "|U_l^T v_l|_j^2 - |U_k^T v_k|_j^2 >= alpha^2 lambda > 0 for the smallest layer "
        f"k = {small + 1} of {depth}{remark}, all l != k and j, alpha^2 lambda",
        gaps[small],
        gaps[small] > tolerance * squares.max(),
        source,
    )


def two_layer_gap(first: ArrayLike, second: ArrayLike, tolerance: float) -> Assumption:
    """That no coordinate of two layers a, b is balanced; value min_j |a_j^2 - b_j^2|."""
    a, b = np.asarray(first), np.asarray(second)
    gap = float(np.min(np.abs((a - b) * (a + b))))
    largest = max(np.max(np.abs(a)), np.max(np.abs(b))) ** 2
    return Assumption(
        "no coordinate of the two layers is balanced, min |a_j^2 - b_j^2|",
        gap,
        bool(gap > tolerance * largest),
        "Woodworth et al. 2020; Azulay et al. 2021",
    )


def is_tensor_network(network: Any) -> bool:
    """Whether it has a data tensor and factors, as in Theorems 2, 3, 5 and 6, and one output."""
    shown = ("data_tensor", "factors", "with_factors", "depth")
    if not all(hasattr(network, n) for n in shown):
        return False
    return len(coefficients_like(network).shape) == 1


def log_loss(network: Any, problem: Any) -> float:
    """log L(0), the natural logarithm of the loss at the network's current parameters."""
    return float(_log_loss(network, problem))


@eager_program()
def _log_loss(network, problem):
    return problem.log_loss(network.linear_coefficients())


def log_loss_at(problem: Any, coefficients: Any) -> float:
    """The natural logarithm of the loss at these coefficients."""
    return float(_log_loss_at(problem, coefficients))


@eager_program()
def _log_loss_at(problem, coefficients):
    return problem.log_loss(coefficients)

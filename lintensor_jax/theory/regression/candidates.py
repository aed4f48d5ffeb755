"""The theorems about the limits of regression flows, the most specific first."""

from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ...networks import (
    AssumptionFails,
    ConvolutionalNetwork,
    DiagonalNetwork,
    DifferentialDiagonalNetwork,
    FullyConnectedNetwork,
    MatrixFactorizationNetwork,
    sensing_decomposition,
)
from ...problems import AbstractRegressionProblem, MatrixSensing, Regression
from ..assumptions import (
    YUN,
    Assumption,
    components_of,
    equal_first_layers,
    is_tensor_network,
    log_loss,
    log_loss_at,
    rounding,
    two_layer_gap,
    violated,
)
from ..convergence import refuted_convergence
from ..prediction import Candidate, Conclusion, ExponentialDecay, Kind, nothing_to_conclude
from ..row_space import row_space
from .fully_connected import fully_connected_candidates
from .other_mirror_maps import differential_limit, two_layer_limit
from .yun_theorem_5 import (
    InterpolationLimit,
    even_convolution_condition,
    even_decomposition,
    limit_point,
)
from .yun_theorem_6 import limit_point_two_layer, norm_of_data_tensor

_TWO_LAYERS = "two-layer mirror flow (Woodworth et al. 2020, Azulay et al. 2021)"
# Limits with a smaller relative difference are the same up to the errors of the two programs.
_SAME_LIMIT = 1e-9
_NUCLEAR = (
    "Conjecture (Gunasekar et al. 2017), not a prediction: as alpha -> 0 the limit is near the "
    "minimum of the nuclear norm, lintensor_jax.min_norm(problem, lintensor_jax.NuclearNorm())."
)


def regression_candidates(network: Any, problem: Regression) -> Iterator[Candidate]:
    """The theorems about this architecture on `Regression`.

    For a loss other than the squared one, d nu/dt = -l'(r) keeps the same span. So a flow that fits
    the data ends at the same point; only its time differs.
    """
    if isinstance(network, MatrixFactorizationNetwork):
        network = FullyConnectedNetwork(network.weights)
    data = row_space(problem.X, problem.y)
    for candidate in _candidates(network, problem, data):
        if not problem.has_squared_loss:
            candidate = _of_another_loss(candidate, problem.residual_loss)
        yield _with_remarks(candidate, data)


def _with_remarks(candidate, data):
    """The candidate with notes on the data, and on whether its limit has the least l2 norm."""

    def conclude():
        conclusion = candidate.conclude()
        notes = (*conclusion.notes, *data.notes)
        if conclusion.limit is not None and not any("least l2 norm" in n for n in notes):
            least = np.asarray(data.least_squares())
            off = float(np.linalg.norm(np.asarray(conclusion.limit) - least))
            size = float(np.linalg.norm(least))
            if off <= _SAME_LIMIT * size:
                notes += (
                    "The limit agrees with the solution of least l2 norm, relative distance "
                    f"{off / size if size else 0.0:.1e}.",
                )
        return conclusion._replace(notes=notes)

    return candidate._replace(conclude=conclude)


def _of_another_loss(candidate, loss):
    """The candidate without its rate, if `loss` is known to have its only minimum at zero."""
    name = type(loss).__name__
    convex = Assumption(
        f"{name} is convex, with its only minimum at zero",
        None if loss.is_convex_with_minimum_at_zero is None else name,
        bool(loss.is_convex_with_minimum_at_zero),
        "this package",
    )
    note = (
        f"{name} leads to the limit of the squared loss, for which the theorem is stated: "
        "d nu/dt = -l'(r) stays in the same span, and the loss falls to its only minimum r = 0. "
        "Only the time differs, so that no loss bound is given."
    )
    otherwise = candidate.otherwise
    if loss.is_convex_with_minimum_at_zero is None:
        otherwise = (
            *otherwise,
            f"{name} does not state whether it is convex with its only minimum at zero; the "
            "property `is_convex_with_minimum_at_zero` states it.",
        )

    def conclude():
        conclusion = candidate.conclude()
        return conclusion._replace(rate=None, notes=(*conclusion.notes, note))

    assumptions = (convex, *candidate.assumptions)
    return candidate._replace(assumptions=assumptions, conclude=conclude, otherwise=otherwise)


def _candidates(network, problem, data):
    if isinstance(network, DifferentialDiagonalNetwork):
        yield from _differential(network, problem, data)
        return
    one_direction = data.rank == 1 or problem.X.shape[0] == 1
    if is_tensor_network(network) and one_direction and network.depth == 2:
        yield from _one_sample(network, problem, data)
    if isinstance(network, FullyConnectedNetwork):
        yield from fully_connected_candidates(network, problem, data)
    elif is_tensor_network(network):
        yield from _orthogonal(network, problem)


def _one_sample(network, problem, data):
    """Theorem 6, for data along one direction, which are equivalent to one sample."""
    source = f"{YUN}, Theorem 6"
    alone = Regression(data.rows, data.targets) if data.rank else problem
    found = limit_point_two_layer(network, alone)
    size = float(norm_of_data_tensor(network, alone.X[0]))
    gap, nu = float(found.gap), float(found.nu)
    zero = rounding(found.gap) * max(float(np.vdot(v, v)) for v in network.factors)
    reaches = Assumption("the data tensor M(x) is not zero, its norm", size, size > 0, source)
    condition = Assumption(
        "[U_1^T v_1]_j^2 - [U_2^T v_2]_j^2 >= alpha^2 lambda > 0, its mean over each singular "
        "subspace, alpha^2 lambda",
        gap,
        gap > zero,
        source,
    )
    # If g reaches y by rounding only, it may not do so from the exact start: test this first.
    in_reach = refuted_convergence(network, problem) or Assumption(
        "y lies in the range of g: nu = g^{-1}(y / alpha^2) is finite", nu, np.isfinite(nu), source
    )
    rate = ExponentialDecay(
        2 * gap * size**2,
        log_loss(network, alone),
        "c = 2 alpha^2 lambda |s|^2; Yun et al. 2021, eq. 73",
    )
    exact = Conclusion(Kind.EXACT, found.coefficients)
    known = data.assumptions(problem.has_squared_loss, source)[1:]
    yield Candidate("Theorem 6", (reaches, *known, condition), lambda: exact._replace(rate=rate))
    extended = "g increases and d nu/dt = y - g(nu), so the flow converges wherever y is in reach."
    yield Candidate(
        "Theorem 6 (extended to any start from which y is in reach)",
        (reaches, *known, in_reach),
        lambda: exact._replace(notes=(extended,)),
    )


def _orthogonal(network, problem):
    name = "Theorem 5"
    if isinstance(network, ConvolutionalNetwork) and network.is_full_length:
        yield from _even_convolution(network, problem)
        return
    try:
        found = components_of(network)
    except AssumptionFails as error:
        broken = violated(error, f"{YUN}, Assumption 1")
        yield Candidate(name, (broken,), nothing_to_conclude)
        return
    setting = (*found.assumptions, found.is_real)
    if isinstance(network, DiagonalNetwork):
        name, setting = "Theorem 5 (Corollary 5)", ()
    S = found.S
    yield from _interpolation(
        name,
        setting,
        found.values,
        problem.X if S is None else problem.X @ S.T,
        problem,
        lambda rho: rho if S is None else S.T @ rho,
        found.tolerance,
    )


def _even_convolution(network, problem):
    source = f"{YUN}, Corollary 6"
    start = even_convolution_condition(network, problem)
    evenness = tuple(
        Assumption(
            f"{what} even, x_j = x_(d-j): the largest odd part over the largest entry",
            value,
            value <= start.tolerance,
            source,
        )
        for what, value in (
            ("all data are", start.odd_data),
            ("all filters are", start.odd_parameters),
        )
    )
    pairs = [even_decomposition(w, network.depth) for w in network.filters]
    S = pairs[0][0]
    yield from _interpolation(
        "Theorem 5 (Corollary 6)",
        evenness,
        jnp.stack([values for _, values in pairs]),
        problem.X @ S.T,
        problem,
        lambda rho: S.T @ rho,
        start.tolerance,
    )


def sensing_candidates(network: Any, problem: MatrixSensing) -> Iterator[Candidate]:
    """The theorems about this architecture on `MatrixSensing`: Corollary 7 and its relatives."""
    source, name = f"{YUN}, Corollary 7", "Theorem 5 (Corollary 7)"
    count = problem.A.shape[0]
    try:
        alone = sensing_decomposition(problem)
    except AssumptionFails as error:
        yield Candidate(name, (violated(error, source),), nothing_to_conclude, (_NUCLEAR,))
        return
    commuting = Assumption(
        "symmetric sensors that commute, relative residual of the joint diagonalisation",
        alone.residual,
        True,
        source,
    )
    layers = jnp.stack(network.weights)
    # The layers need to be diagonal in *some* common eigenbasis of the sensors. If eigenvalues of
    # all sensors coincide, the basis is not unique: diagonalise sensors and layers together.
    both = MatrixSensing(
        jnp.concatenate([problem.A, layers]), jnp.zeros(count + len(layers), layers.dtype)
    )
    try:
        found = sensing_decomposition(both)
    except AssumptionFails as error:
        statement = f"every layer is diagonal in the sensors' common eigenbasis ({error.violated})"
        broken = Assumption(statement, error.value, False, source)
        yield Candidate(name, (commuting, broken), nothing_to_conclude, (_NUCLEAR,))
        return
    eigenvalues, values = found.eigenvalues[:count], found.eigenvalues[count:]
    diagonal = Assumption(
        "every layer is diagonal in the sensors' common eigenbasis, relative residual",
        found.residual,
        True,
        source,
    )
    for candidate in _interpolation(
        name,
        (commuting, diagonal),
        values,
        eigenvalues,
        problem,
        found.coefficients,
        max(rounding(layers), 16 * found.residual),
    ):
        stable = network.depth == 2 or all(not (a - np.diag(np.diag(a))).any() for a in both.A)
        yield candidate if stable else _with_rounding(candidate, values)


def _with_rounding(candidate, values):
    """The candidate, with a note if rounding moves a flow away from the commuting matrices.

    Arithmetic keeps exact zeros off the diagonal. In another eigenbasis they are rounding errors,
    which grow by about exp(g), g = (max |beta| / alpha^L)^((L-2)/L) (measured: L = 3, 4; d = 4, 6).
    """

    def conclude():
        conclusion = candidate.conclude()
        if conclusion.limit is None:
            return conclusion
        depth, alpha = len(values), float(np.max(np.abs(values)))
        size = float(np.linalg.norm(conclusion.limit, 2))
        growth = (size / alpha**depth) ** ((depth - 2) / depth)
        log_error = np.log(float(jnp.finfo(values.dtype).eps)) + growth
        if log_error < np.log(1e-10):
            return conclusion
        note = (
            "By rounding the flow leaves the commuting matrices: entries off the diagonal of the "
            f"sensors' eigenbasis are expected to grow from 0 to {np.exp(min(log_error, 0)):.0e} "
            "of the limit. gradient_flow (or descent) may end elsewhere; mirror_flow ends there."
        )
        return conclusion._replace(notes=(*conclusion.notes, note))

    return candidate._replace(conclude=conclude)


def _interpolation(
    name: str,
    setting: tuple[Assumption, ...],
    values: Float[Array, "L m"],
    rows: Float[Array, "n m"],
    problem: AbstractRegressionProblem,
    lift: Callable[[Array], Array],
    tolerance: float,
) -> Iterator[Candidate]:
    """Theorem 5, then that on any two layers: diagonal network `values`, measurements `rows`."""
    layers: Any = np.asarray(values)  # JAX would compile a program for every operation
    depth = len(layers)
    data = row_space(rows, problem.y)
    setting = (*setting, *data.assumptions(problem.has_squared_loss, f"{YUN}, section 5"))
    if data.rank == 0:
        yield Candidate(name, setting, nothing_to_conclude)
        return
    start = equal_first_layers(layers, tolerance, f"{YUN}, Theorem 5")

    def limit_of(found: InterpolationLimit, signs, gap):
        if not found.converged:
            note = f"The minimiser was not found: stationarity {float(found.stationarity):.3g}."
            return Conclusion(Kind.STATIONARY, None, rate(gap), (note,))
        return Conclusion(Kind.EXACT, lift(signs * found.rho), rate(gap))

    def rate(gap):
        excess = Regression(data.rows, data.targets)
        return ExponentialDecay(
            2 * gap ** (depth - 1) * float(data.sizes[-1]) ** 2,
            log_loss_at(excess, np.prod(layers, axis=0)),
            "c = 2 (alpha^2 lambda)^(L-1) s_min(X S^T)^2; Yun et al. 2021, eq. 61-62",
        )

    def theorem_5():
        # The signs of the first layers are moved into S, so that all these layers equal |eta|.
        signs = np.prod(np.sign(layers[:-1]), axis=0)
        alpha = np.max(np.abs(layers[0]))
        eta = np.abs(layers[0]) / alpha
        rows = np.asarray(data.rows) * signs
        found = limit_point(None, rows, data.targets, depth, alpha, eta)
        return limit_of(found, signs, start[-1].value)

    def two_layers():
        found = two_layer_limit(None, data.rows, data.targets, layers[0], layers[1])
        return limit_of(found, 1.0, unbalanced.value)

    yield Candidate(name, (*setting, *start), theorem_5)
    if depth == 2:
        unbalanced = two_layer_gap(layers[0], layers[1], tolerance)
        yield Candidate(_TWO_LAYERS, (*setting, unbalanced), two_layers)


def _differential(network, problem, data):
    source = "Woodworth et al. 2020, Theorems 1 and 3"
    depth, plus, minus = network.depth, network.positive, network.negative
    known = data.assumptions(problem.has_squared_loss, source)
    if data.rank == 0:
        yield Candidate(source, known, nothing_to_conclude)
        return
    alone = Regression(data.rows, data.targets)
    if depth % 2 == 0:
        plus, minus = jnp.abs(plus), jnp.abs(minus)
    largest = float(max(jnp.max(jnp.abs(plus)), jnp.max(jnp.abs(minus)))) or 1.0
    difference = float(jnp.max(jnp.abs(plus - minus))) / largest
    smallest = float(jnp.min(jnp.abs(plus)))
    zero = rounding(plus)
    start = (
        Assumption(
            "w_+ = w_-, largest difference over largest weight",
            difference,
            difference <= zero,
            source,
        ),
        Assumption("no weight is zero, smallest |w_+|", smallest, smallest > 0, source),
    )
    smallest_x = float(data.sizes[-1])

    def conclude(found, product):
        rate = ExponentialDecay(
            4 * depth**2 * product ** (depth - 1) * smallest_x**2,
            log_loss(network, alone),
            "c = 4 D^2 (alpha^2 lambda)^(D-1) s_min(X)^2: |grad L|^2 >= c L, as u_+^(2-D) + "
            "u_-^(2-D) (for D = 2: u_+ u_-) is conserved",
        )
        return Conclusion(Kind.EXACT, found.coefficients, rate)

    def equal():
        alpha = jnp.max(jnp.abs(plus))
        found = differential_limit(alone.X, alone.y, depth, alpha, jnp.abs(plus) / alpha)
        return conclude(found, smallest**2)

    yield Candidate("Theorems 1 and 3 of Woodworth et al. 2020", (*known, *start), equal)
    if depth == 2:
        # (u_+ + u_-) (u_+ - u_-) is a product of two layers; its flow runs at twice the speed.
        first, second = plus + minus, plus - minus
        unbalanced = two_layer_gap(first, second, zero)
        yield Candidate(
            _TWO_LAYERS,
            (*known, unbalanced),
            lambda: conclude(
                two_layer_limit(None, alone.X, alone.y, first, second), unbalanced.value / 4
            ),
        )

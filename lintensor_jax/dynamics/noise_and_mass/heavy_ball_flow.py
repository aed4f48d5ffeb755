"""Heavy-ball flow: gradient flow with inertia, started at rest."""

from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Scalar

from ...networks.effective_start import EffectiveStart, Measured, TwoLayers
from ...networks.mirror_coordinates import TwoLayerCoordinates
from ...networks.pair import check_pair, same_dtype
from ...problems import AbstractProblem
from ..ends import AbstractEnd
from ..quick_tracing import diffeqsolve
from ..record import Record
from ..statuses import FlowStatus, code_of, status_name
from ..stopping import AbstractStop
from ..system import System
from .ending import (
    direction_of,
    positive,
    positive_int,
    raise_unless_ended,
    record_at,
    saved_times,
    stop_context_of,
    ten_to,
    two_layer_coordinates,
    with_end,
)

_PAPAZOV = "Papazov et al. 2024"
_THEOREM = f"the implicit bias of heavy-ball flow on two layers ({_PAPAZOV})"
# diffrax needs a last time. The flow ends earlier, by a stop rule or the step budget.
_LAST_TIME = 1e15


class SignChange(NamedTuple):
    """The first coordinates of u + v or u - v that must change their sign.

    `time` is the physical time at which this is certain.
    """

    sums: tuple[int, ...]
    differences: tuple[int, ...]
    time: float

    def __str__(self) -> str:
        """The coordinates and the time in words."""
        sides = ((self.sums, "u + v"), (self.differences, "u - v"))
        places = [f"{name} in {list(found)}" for found, name in sides if found]
        return f"{' and '.join(places)}, bound to at time {self.time:.4g}"


class HeavyBallSolution(AbstractEnd):
    """The result of `heavy_ball_flow`; `print` it to read a summary.

    Arrays with an axis T have one entry per saved time; the last entry is the end.

    - `network`: the network at the end. `record`: what is kept of the states: `coefficients`
      (T, d), `log_loss` (T,), `log_time` (T,), `log_norm` (T,), and `invariant_drift` (T,): how far
      the inertia has moved what gradient flow conserves.
    - `log_energy` (T,): log of loss + (mass/2) |Theta'|^2, which never rises.
    - `energy_drift` (T,): |energy + int |Theta'|^2 dt - energy at the start|, over the energy at
      the start. It is 0 for the exact flow.
    - `reached` (T,): False if the flow ended before a saved time; the entry repeats the end.
    - `status`, `reason`, `succeeded`: as in `FlowSolution`. `num_steps`: the steps taken.
    - `sign_change`: a `SignChange`, or None if no coordinate changes its sign.
    """

    network: Any
    record: Record
    log_energy: Float[Array, " T"]
    energy_drift: Float[Array, " T"]
    reached: Bool[Array, " T"]
    code: Int[Array, ""]
    num_steps: Int[Array, ""]
    mass: Scalar
    stop: AbstractStop
    effective_start: EffectiveStart | None
    sign_change: SignChange | None = eqx.field(static=True)
    problem_in_words: str = eqx.field(static=True)

    @property
    def direction(self) -> Float[Array, "T ..."]:
        """beta/|beta| at each saved time; 0 where beta = 0."""
        return direction_of(self.coefficients, self.log_loss.ndim)

    def __str__(self) -> str:
        """A summary: what was integrated, why it ended, the state at the end, what it conserved."""
        lines = [
            f"Heavy-ball flow of {type(self.network).__name__} on {self.problem_in_words}, mass "
            f"{float(self.mass):.6g}",
            f"  stopped because  {self.reason} [{status_name(self.status)}]",
            f"  physical time    {ten_to(self.log_time[-1])} ({int(self.num_steps)} steps)",
            f"  loss             {ten_to(self.log_loss[-1])}",
            f"  energy           {ten_to(self.log_energy[-1])} (balance with friction: error "
            f"{float(self.energy_drift[-1]):.1e} of the energy at the start)",
        ]
        if self.sign_change is not None:
            lines.append(f"  sign changes     {self.sign_change}")
        return "\n".join(lines)


def heavy_ball_flow(
    network: eqx.Module,
    problem: AbstractProblem,
    mass: float,
    *,
    stop: AbstractStop | None = None,
    saveat: Float[ArrayLike, " T"] | None = None,
    rtol: float = 1e-10,
    atol: float = 1e-12,
    max_steps: int = 100_000,
    throw: bool = True,
) -> HeavyBallSolution:
    """Gradient flow with inertia from rest: mass Theta'' + Theta' = -dL/dTheta, Theta'(0) = 0.

    The limit of gradient descent with momentum: a step of size gamma with momentum m takes the
    physical time gamma/(1-m), and the mass is gamma/(1-m)^2. Two layers with a real orthogonal
    decomposition are integrated in logarithms of a = (u+v)/sqrt 2 and b = (u-v)/sqrt 2 as long as
    neither changes its sign, with p_a = a'/a and p_b = b'/b. Then `effective_limit(solution,
    problem)` gives the limit, from the integrals of p_a^2 and p_b^2. The energy gives a bound for
    p: below it, p must tend to -infinity, and a coordinate changes its sign. Then the flow is
    integrated in the parameters, and no limit is predicted.

    Source: Papazov et al. 2024; the change of coordinates is this package's.

    **Arguments**

    - `network`, `problem`: as in `gradient_flow`; a loss of residuals.
    - `mass`: in units of physical time, positive.
    - `stop`: as in `gradient_flow`; default |r| <= 1e-10 max|y|. Residual and loss contain the
      kinetic energy, sqrt(|r|^2 + mass |Theta'|^2), so that a flow that passes a minimum goes on.
    - `saveat`: physical times (T,). `rtol`, `atol`: of the method, Dormand-Prince 8(7).
    - `max_steps`, `throw`: as in `gradient_flow`.

    ValueError for anything else, and for traced arrays.
    """
    check_pair(network, problem)
    mass = positive(mass, "mass", "heavy_ball_flow")
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((network, problem))):
        raise ValueError(
            "heavy_ball_flow: network and problem must hold concrete arrays, got traced ones; it "
            "decides on the host whether a coordinate changes its sign, so loop over it."
        )
    network, problem = same_dtype(network, problem)
    context = stop_context_of(problem, stop, "heavy_ball_flow")
    times = saved_times(saveat, context.range_basis.dtype)
    positive_int(max_steps, "max_steps")
    tolerances = (
        positive(rtol, "rtol", "heavy_ball_flow"),
        positive(atol, "atol", "heavy_ball_flow"),
    )
    numbers = tuple(jnp.asarray(x, context.range_basis.dtype) for x in (mass, *tolerances))
    form, change, found = _in_logarithms(network, problem, numbers[0]), None, None
    if form is not None:
        found, final = _integrate(form, network, context, times, numbers, max_steps)
        change = form.sign_change(final)
    if form is None or change is not None:
        direct = _InParameters(System.of(network, problem), problem, numbers[0])
        found, final = _integrate(direct, network, context, times, numbers, max_steps)
    start = None if form is None else form.effective_start(final[0], change)
    assert found is not None
    solution = HeavyBallSolution(  # pyright: ignore[reportCallIssue]
        *found,
        mass=numbers[0],
        stop=context.stop,
        effective_start=start,
        sign_change=change,
        problem_in_words=problem.in_words,
    )
    if throw:
        raise_unless_ended(solution, "")
    return solution


class _InParameters(eqx.Module):
    """The flow in the state (Theta, Theta', int |Theta'|^2 dt)."""

    system: System
    problem: Any
    mass: Scalar

    @property
    def initial(self):
        theta = jnp.asarray(self.system.initial)
        return theta, jnp.zeros_like(theta), jnp.zeros((), theta.dtype)

    def velocity(self, state):
        theta, speed, _ = state
        push = (self.system.velocity(theta) - speed) / self.mass
        return speed, push, jnp.sum(speed**2)

    def network(self, state):
        return self.system.network(state[0])

    def squared_speed(self, state):
        return jnp.sum(state[1] ** 2)

    def leaves(self, state):
        """Whether the flow leaves this form here: never."""
        del state
        return jnp.zeros((), bool)


class _InLogarithms(eqx.Module):
    """The flow in logarithms, as long as no coordinate changes its sign.

    State: ln|a|, ln|b|, p_a, p_b, int p_a^2, int p_b^2, each (m,), and the number int |Theta'|^2.
    ln|a|' = p_a and mass (p_a' + p_a^2) + p_a = -g; for b with +g. Here g = S X^T r.
    """

    coordinates: TwoLayerCoordinates
    problem: Any
    mass: Scalar
    lowest: Float[Array, " m"]

    @property
    def _signs(self):
        c = self.coordinates
        return jnp.sign(c.first + c.second), jnp.sign(c.first - c.second)

    @property
    def initial(self):
        c = self.coordinates
        root = jnp.sqrt(jnp.asarray(2.0, c.first.dtype))
        zeros = jnp.zeros_like(c.first)
        logs = (jnp.log(jnp.abs(part) / root) for part in (c.first + c.second, c.first - c.second))
        return *logs, zeros, zeros, zeros, zeros, jnp.zeros((), zeros.dtype)

    def velocity(self, state):
        log_a, log_b, p_a, p_b, *_ = state
        beta = self._coefficients(log_a, log_b)
        g = self.coordinates.S @ jnp.ravel(self.problem.adjoint(self.problem.residual(beta)))
        return (
            p_a,
            p_b,
            -(p_a + g) / self.mass - p_a**2,
            -(p_b - g) / self.mass - p_b**2,
            p_a**2,
            p_b**2,
            self.squared_speed(state),
        )

    def _coefficients(self, log_a, log_b):
        angle, log_mu = log_a - log_b, log_a + log_b
        near = jnp.abs(angle) < 1
        small = jnp.exp(log_mu) * jnp.sinh(jnp.where(near, angle, 0.0))
        rho = jnp.where(near, small, (jnp.exp(2 * log_a) - jnp.exp(2 * log_b)) / 2)
        return (self.coordinates.S.T @ rho).reshape(self.problem.coefficient_shape)

    def _layers(self, a, b):
        root = jnp.sqrt(jnp.asarray(2.0, a.dtype))
        return (a + b) / root, (a - b) / root

    def network(self, state):
        sign_a, sign_b = self._signs
        return self.coordinates.rebuild(
            self._layers(sign_a * jnp.exp(state[0]), sign_b * jnp.exp(state[1]))
        )

    def squared_speed(self, state):
        """|Theta'|^2 = sum (a')^2 + (b')^2: the bases U_l are orthonormal."""
        log_a, log_b, p_a, p_b, *_ = state
        return jnp.sum((p_a * jnp.exp(log_a)) ** 2 + (p_b * jnp.exp(log_b)) ** 2)

    def leaves(self, state):
        """Whether the flow leaves this form here: some p is below its bound."""
        return jnp.any(jnp.minimum(state[2], state[3]) < self.lowest)

    def sign_change(self, final) -> SignChange | None:
        """The `SignChange` from the state and time at the end, or None."""
        state, time = final
        sums, differences = (
            tuple(np.flatnonzero(np.asarray(p < self.lowest)).tolist()) for p in state[2:4]
        )
        return SignChange(sums, differences, float(time)) if sums or differences else None

    def effective_start(self, state, change) -> EffectiveStart:
        """The effective start, from the integrals.

        If a sign changes, it is the start itself, with the assumption that is violated.
        """
        start = TwoLayers(self.coordinates.S, self.coordinates.first, self.coordinates.second)
        dtype = start.first.dtype
        statement = "no coordinate of u + v or u - v changes its sign"
        if change is not None:
            statement += f" ({change})"
            count = jnp.asarray(len(change.sums) + len(change.differences), dtype)
            measured = (Measured(f"{statement}: coordinates that do", count, 0.0, _PAPAZOV),)
            return EffectiveStart(start.S, start.log_scale, start.angle, _THEOREM, measured)
        rest = self.mass * jnp.max(jnp.abs(jnp.stack(state[2:4])))
        measured = (
            Measured(f"{statement}: coordinates that do", jnp.zeros((), dtype), 0.0, _PAPAZOV),
            Measured("the flow has come to rest: mass max|p|", rest, 1e-5, _PAPAZOV),
        )
        along_a, along_b = self.mass * state[4], self.mass * state[5]
        return EffectiveStart(
            start.S,
            start.log_scale - along_a - along_b,
            start.angle - along_a + along_b,
            _THEOREM,
            measured,
        )


def _in_logarithms(network, problem, mass) -> _InLogarithms | None:
    """The flow in logarithms, or None.

    It needs two layers without a balanced coordinate (|u| = |v|), of which a or b would be 0, and
    the squared loss, which gives a bound on g.
    """
    coordinates = two_layer_coordinates(network, problem) if problem.has_squared_loss else None
    if coordinates is None:
        return None
    if bool(jnp.any(jnp.abs(coordinates.first) == jnp.abs(coordinates.second))):
        return None
    y = problem.y
    rows = jax.vmap(lambda e: coordinates.S @ jnp.ravel(problem.adjoint(e.reshape(y.shape))))(
        jnp.eye(y.size, dtype=y.dtype)
    )
    # The energy never rises, so that |g_i| <= |(S X^T)_i| sqrt(2 L(0)). Below this p,
    # p' <= -(p^2 + p/mass - |g|/mass) < 0, and p is -infinity after a finite time.
    largest = jnp.linalg.norm(rows, axis=0) * jnp.sqrt(
        2 * problem.loss(network.linear_coefficients())
    )
    lowest = -(1 + jnp.sqrt(1 + 4 * mass * largest)) / (2 * mass)
    return _InLogarithms(coordinates, problem, mass, lowest)


@eqx.filter_jit
def _integrate(form, network, context, times, numbers, max_steps):
    """The fields of a solution up to `num_steps`, and the end's state and time."""
    mass, rtol, atol = numbers
    first_energy = context.problem.loss(network.linear_coefficients())

    def seen(t, state):
        beta = form.network(state).linear_coefficients()
        return context.at(beta, t, mass / 2 * form.squared_speed(state))

    def ends(t, state, args, **_):
        flat = ravel_pytree(state)[0]
        return context.stop.met(seen(t, state)) | form.leaves(state) | ~jnp.all(jnp.isfinite(flat))

    def kept(t, state):
        log_energy = seen(t, state).log_loss
        energy = jnp.exp(log_energy) + state[-1]
        drift = jnp.abs(energy - first_energy) / first_energy
        return record_at(form.network(state), network, context.problem, t), log_energy, drift

    at_end = diffrax.SubSaveAt(t1=True)
    subs = [at_end] if times is None else [at_end, diffrax.SubSaveAt(ts=times)]
    solution = diffeqsolve(
        diffrax.ODETerm(lambda t, state, args: form.velocity(state)),
        diffrax.Dopri8(),
        0.0,
        jnp.asarray(_LAST_TIME, mass.dtype),
        None,
        form.initial,
        saveat=diffrax.SaveAt(subs=subs),
        stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol, step_ts=times),  # pyright: ignore[reportCallIssue]
        max_steps=max_steps,
        event=diffrax.Event(ends),
        throw=False,
    )
    time = solution.ts[0][-1]  # pyright: ignore[reportOptionalSubscript]
    state = jax.tree.map(lambda leaf: leaf[-1], solution.ys[0])  # pyright: ignore[reportOptionalSubscript]
    finite = jnp.all(jnp.isfinite(ravel_pytree(state)[0]))
    code = context.code(seen(time, state), finite, code_of(FlowStatus.max_steps))
    values, reached = kept(time, state), jnp.ones((), bool)
    if times is None:
        values, reached = jax.tree.map(lambda leaf: leaf[None], (values, reached))
    else:
        there = jnp.isfinite(solution.ts[1])  # pyright: ignore[reportOptionalSubscript]

        def known(along, last):
            return jnp.where(there.reshape(-1, *(1,) * last.ndim), along, last)

        states = jax.tree.map(known, solution.ys[1], state)  # pyright: ignore[reportOptionalSubscript]
        values = with_end(jax.vmap(kept)(times, states), values, there)
        reached = jnp.append(there, reached)
    end_network = form.network(state)
    steps = solution.stats["num_steps"]
    return (end_network, *values, reached, code, steps), (state, time)

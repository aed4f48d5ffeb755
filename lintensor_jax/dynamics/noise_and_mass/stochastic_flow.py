"""Stochastic gradient flow: gradient flow with noise in the span of the data."""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PRNGKeyArray, Scalar

from ...messages import in_words
from ...networks.effective_start import EffectiveStart, TwoLayers
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
    StopContext,
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

_THEOREM = "the implicit bias of stochastic gradient flow on two layers (Pesme et al. 2021)"
# The default step, as a share of the largest step for which the flow without noise is stable.
_SHARE_OF_STABLE = 0.02


class StochasticFlowSolution(AbstractEnd):
    """The result of `stochastic_flow`: a path, or many with leading axes. `print` it for a summary.

    Arrays with an axis T have one entry per saved time; the last entry is the end.

    - `network`: the network at the end. `record`: what is kept of the states: `coefficients`
      (T, d), `log_loss` (T,), `log_time` (T,), `log_norm` (T,), and `invariant_drift` (T,): how far
      the noise has moved what gradient flow conserves.
    - `noise_time` (T,): int s^2 dt, in units of the square of y times those of beta.
    - `reached` (T,): False if the flow ended before a saved time; the entry repeats the end.
    - `status`, `reason`, `succeeded`: as in `FlowSolution`. `num_steps`: the steps taken.
    - `step`: the length of a step; `noise`: s^2 over the loss.
    """

    network: Any
    record: Record
    noise_time: Float[Array, " T"]
    reached: Bool[Array, " T"]
    code: Int[Array, ""]
    num_steps: Int[Array, ""]
    step: Scalar
    noise: Scalar
    stop: AbstractStop
    start: TwoLayers | None
    growth: Float[Array, " m"] | None
    problem_in_words: str = eqx.field(static=True)

    @property
    def direction(self) -> Float[Array, "T ..."]:
        """beta/|beta| at each saved time; 0 where beta = 0."""
        return direction_of(self.coefficients, self.log_loss.ndim)

    @property
    def effective_start(self) -> EffectiveStart | None:
        """The start from which gradient flow has the limit of this path (Pesme et al. 2021).

        mu_inf = mu_0 exp(-diag(X^T X) int s^2 dt), with the same angle. None except for two layers
        with a real orthogonal decomposition. `lintensor_jax.effective_limit` gives the limit.
        """
        if self.start is None or self.growth is None:
            return None
        log_scale = self.start.log_scale - self.growth * self.noise_time[..., -1:]
        return EffectiveStart(self.start.S, log_scale, self.start.angle, _THEOREM)

    def __str__(self) -> str:
        """A summary: what was integrated, why it ended, and the state at the end."""
        name = f"{type(self.network).__name__} on {self.problem_in_words}"
        form = "in logarithms" if self.start is not None else "in the parameters"
        how = f"step {float(np.ravel(self.step)[0]):.3g}, {form}"
        if self.log_loss.ndim == 1:
            return (
                f"Stochastic gradient flow of {name}, s^2 = {float(self.noise):.4g} times the loss "
                f"({how})\n"
                f"  stopped because  {self.reason} [{status_name(self.status)}]\n"
                f"  physical time    {ten_to(self.log_time[-1])} ({int(self.num_steps)} steps)\n"
                f"  loss             {ten_to(self.log_loss[-1])}\n"
                f"  int s^2 dt       {float(self.noise_time[-1]):.6g}"
            )
        spent = np.asarray(self.noise_time)[..., -1]
        return (
            f"Batch {self.log_loss.shape[:-1]} of stochastic gradient flows of {name}, s^2 = "
            f"{float(np.ravel(self.noise)[0]):.4g} times the loss ({how})\n"
            f"  ended by         {self.counted()}\n"
            f"  int s^2 dt       {spent.min():.6g} to {spent.max():.6g}"
        )


class _InLogarithms(eqx.Module):
    """Two layers: d ln a = dz - k dV/2 and d ln b = -dz - k dV/2, where z = S X^T N.

    State (N, V): dN = -r dt + s dB, dV = s^2 dt, k = diag(S X^T X S^T). For a = (u+v)/sqrt 2 and
    b = (u-v)/sqrt 2 this is the Ito form of da = -a (g dt - s X^T dB), db = b (g dt - s X^T dB). a
    and b keep their signs at any size.
    """

    coordinates: TwoLayerCoordinates
    growth: Float[Array, " m"]
    problem: Any

    @property
    def initial(self):
        return jnp.zeros(self.problem.y.size + 1, self.problem.y.dtype)

    def _zeta(self, state):
        values = state[:-1].reshape(self.problem.y.shape)
        return self.coordinates.S @ jnp.ravel(self.problem.adjoint(values))

    def coefficients(self, state):
        rho = self.coordinates.rho(self._zeta(state)) * jnp.exp(-self.growth * state[-1])
        return (self.coordinates.S.T @ rho).reshape(self.problem.coefficient_shape)

    def network(self, state):
        layers = eqx.tree_at(lambda c: c.rebuild, self.coordinates, tuple)
        shrunk = jnp.exp(-self.growth * state[-1] / 2)
        return self.coordinates.rebuild(
            tuple(shrunk * layer for layer in layers.network(self._zeta(state)))
        )

    def drift(self, state):
        return -jnp.ravel(self.problem.residual(self.coefficients(state)))

    def spread(self, state):
        del state
        return jnp.eye(self.problem.y.size, dtype=self.problem.y.dtype)


class _InParameters(eqx.Module):
    """Any network: dTheta = -J^T X^T (r dt - s dB). State (Theta, V)."""

    system: System
    problem: Any

    @property
    def initial(self):
        theta = self.system.initial
        return jnp.append(jnp.asarray(theta), jnp.zeros((), theta.dtype))

    def coefficients(self, state):
        return self.system.coefficients(state[:-1])

    def network(self, state):
        return self.system.network(state[:-1])

    def drift(self, state):
        return self.system.velocity(state[:-1])

    def spread(self, state):
        pull = self.system.pullback(state[:-1])[1]
        y = self.problem.y
        units = jnp.eye(y.size, dtype=y.dtype).reshape(-1, *y.shape)
        return jax.vmap(lambda unit: pull(self.problem.adjoint(unit)))(units).T


def stochastic_flow(
    network: eqx.Module,
    problem: AbstractProblem,
    noise: float,
    key: PRNGKeyArray,
    *,
    step: float | None = None,
    stop: AbstractStop | None = None,
    saveat: Float[ArrayLike, " T"] | None = None,
    max_steps: int = 100_000,
    horizon: float | None = None,
    resolution: float | None = None,
    solver: diffrax.AbstractItoSolver | None = None,
    throw: bool = True,
) -> StochasticFlowSolution:
    """Gradient flow with the noise of mini-batches: single paths of an Ito equation.

        dTheta = -(d beta/d Theta)^T X^T (r dt - s dB),    s^2 = noise * loss,

    where B is a Brownian motion in R^n. Stochastic gradient descent with steps gamma on one sample
    at a time (unbiased for the summed loss) corresponds to `noise` = 2 gamma. Two layers with a
    real orthogonal decomposition (diagonal ones) are integrated in logarithms of a = (u+v)/sqrt 2
    and b = (u-v)/sqrt 2. ln|a| and ln|b| are linear in n + 1 numbers, so that no coordinate changes
    its sign or loses digits, down to 1e-300. A path that fits the data then ends at the Bregman
    projection that `effective_limit(solution, problem)` predicts, for steps of any length.

    Steps have a fixed length. The Brownian path is diffrax's virtual Brownian tree. It depends on
    `key`, `horizon` and `resolution` only, so that runs with different steps have the same path.

    Source: Pesme et al. 2021.

    **Arguments**

    - `network`, `problem`: as in `gradient_flow`; a loss of residuals.
    - `noise`: s^2 over the loss, >= 0. `key`: a JAX random key, or an array of keys for as many
      paths at once (leading axes of the solution).
    - `step`: in physical time. Default: 1/50 of the largest stable step of the flow without noise,
      estimated from the start and the minimum-norm solution.
    - `stop`: as in `gradient_flow`; default |r| <= 1e-10 max|y|.
    - `saveat`: physical times (T,), multiples of `step`; between steps values are interpolated.
    - `max_steps`: the budget. `horizon`: where the Brownian path and the flow end; default
      `step * max_steps`. `resolution`: of the path, below `step` (default: half of it).
    - `solver`: an Ito solver of diffrax; default `diffrax.Euler()`, of strong order 1/2.
      (`diffrax.ItoMilstein()` has order 1 for one sample, whose noise commutes.)
    - `throw`: raise `FlowError` if a single path fails. Many paths at once raise nothing.

    ValueError for invalid arguments. There is no finish: the noise vanishes with the loss.
    """
    check_pair(network, problem)
    noise = positive(noise, "noise", "stochastic_flow", zero=True)
    keys = _keys(key)
    network, problem = same_dtype(network, problem)
    context = stop_context_of(problem, stop, "stochastic_flow")
    times = saved_times(saveat, problem.y.dtype)  # pyright: ignore
    positive_int(max_steps, "max_steps")
    solver = _ito_solver(solver)
    coordinates = two_layer_coordinates(network, problem)
    form, start, growth = _form(network, problem, coordinates)
    step = _default_step(network, problem, start) if step is None else step
    step = positive(step, "step", "stochastic_flow")
    end = step * max_steps if horizon is None else positive(horizon, "horizon", "stochastic_flow")
    fine = step / 2 if resolution is None else positive(resolution, "resolution", "stochastic_flow")
    dtype = context.range_basis.dtype
    names, values = ("noise", "step", "end", "fine"), (noise, step, end, fine)
    arrays = dict(zip(names, (jnp.asarray(v, dtype) for v in values), strict=True))
    last = FlowStatus.max_steps if horizon is None else FlowStatus.time

    found = _paths(form, network, context, arrays, keys, times, solver, max_steps, code_of(last))
    lanes = keys.shape

    def spread(leaf):
        return jnp.broadcast_to(leaf, lanes + jnp.shape(leaf))

    solution = StochasticFlowSolution(  # pyright: ignore[reportCallIssue]
        *found,
        step=spread(arrays["step"]),
        noise=spread(arrays["noise"]),
        stop=jax.tree.map(spread, context.stop),
        problem_in_words=problem.in_words,
        start=jax.tree.map(spread, start),
        growth=jax.tree.map(spread, growth),
    )
    if throw and not lanes:
        raise_unless_ended(solution, ", or pass a smaller step")
    return solution


@eqx.filter_jit
def _paths(form, network, context, numbers, keys, times, solver, max_steps, last):
    """`_path` for each of the keys, which may have any shape."""

    def path(key):
        return _path(form, network, context, numbers, key, times, solver, max_steps, last)

    for _ in range(keys.ndim):
        path = jax.vmap(path)
    return path(keys)


def _path(form, network, context: StopContext, numbers, key, times, solver, max_steps, last):
    """One path: end network, record, noise time, reached, code, number of steps."""
    y = context.problem.y
    noise = numbers["noise"]

    def strength(beta):
        return noise * context.problem.loss(beta)

    def drift(t, state, args):
        return jnp.append(form.drift(state), strength(form.coefficients(state)))

    def diffusion(t, state, args):
        scale = jnp.sqrt(strength(form.coefficients(state)))
        columns = scale * form.spread(state)
        return jnp.concatenate([columns, jnp.zeros((1, y.size), y.dtype)])

    brownian = diffrax.VirtualBrownianTree(
        0.0, numbers["end"], numbers["fine"], shape=(y.size,), key=key
    )
    terms = diffrax.MultiTerm(diffrax.ODETerm(drift), diffrax.ControlTerm(diffusion, brownian))

    def ends(t, state, args, **_):
        met = context.stop.met(context.at(form.coefficients(state), t))
        return met | ~jnp.all(jnp.isfinite(state))

    at_end = diffrax.SubSaveAt(t1=True)
    within = None if times is None else jnp.minimum(times, numbers["end"])
    subs = [at_end] if within is None else [at_end, diffrax.SubSaveAt(ts=within)]
    solution = diffeqsolve(
        terms,
        solver,
        0.0,
        numbers["end"],
        numbers["step"],
        form.initial,
        saveat=diffrax.SaveAt(subs=subs),
        max_steps=max_steps,
        event=diffrax.Event(ends),
        throw=False,
    )
    time, state = solution.ts[0][-1], solution.ys[0][-1]  # pyright: ignore[reportOptionalSubscript]
    spent_budget = solution.result == diffrax.RESULTS.max_steps_reached
    otherwise = jnp.where(spent_budget, code_of(FlowStatus.max_steps), last)
    finite = jnp.all(jnp.isfinite(state))
    code = context.code(context.at(form.coefficients(state), time), finite, otherwise)

    def kept(t, s):
        return record_at(form.network(s), network, context.problem, t), s[-1]

    values, reached = _saved(kept, times, solution, time, state)
    return form.network(state), *values, reached, code, solution.stats["num_steps"]


def _saved(kept, times, solution, time, state):
    """What is kept at the saved times and at the end, and which of them were reached."""
    end, there = kept(time, state), jnp.ones((), bool)
    if times is None:
        return jax.tree.map(lambda leaf: leaf[None], (end, there))
    reached = jnp.isfinite(solution.ts[1]) & (times <= solution.ts[0][-1])
    states = jnp.where(reached[:, None], solution.ys[1], state)
    return with_end(jax.vmap(kept)(times, states), end, reached), jnp.append(reached, there)


def _form(network, problem, coordinates):
    """How the flow is integrated. In logarithms also the layers at the start and k, else None."""
    if coordinates is None:
        return _InParameters(System.of(network, problem), problem), None, None
    y = problem.y
    rows = jax.vmap(lambda e: coordinates.S @ jnp.ravel(problem.adjoint(e.reshape(y.shape))))(
        jnp.eye(y.size, dtype=y.dtype)
    )
    growth = jnp.sum(rows**2, axis=0)
    start = TwoLayers(coordinates.S, coordinates.first, coordinates.second)
    return _InLogarithms(coordinates, growth, problem), start, growth


def _default_step(network, problem, start) -> float:
    """A share of 2/lambda, where lambda estimates the tangent kernel's largest eigenvalue."""
    y = problem.y
    rows = jax.vmap(lambda e: jnp.ravel(problem.adjoint(e.reshape(y.shape))))(
        jnp.eye(y.size, dtype=y.dtype)
    )
    size = float(jnp.linalg.norm(rows, 2)) ** 2
    target = float(np.max(np.abs(np.linalg.lstsq(np.asarray(rows), np.ravel(y))[0])))
    if start is not None:
        # d(u v)/d(zeta) = u^2 + v^2 = 2 sqrt((u v)^2 + mu^2).
        before = float(jnp.max(start.first**2 + start.second**2))
        return 2 * _SHARE_OF_STABLE / (size * max(before, 4 * target))
    columns = _InParameters(System.of(network, problem), problem)
    kernel = float(jnp.linalg.norm(columns.spread(columns.initial), 2)) ** 2
    depth = max(int(getattr(network, "depth", 1)), 1)
    grown = size * depth * max(target, 1e-300) ** (2 - 2 / depth)
    return 2 * _SHARE_OF_STABLE / max(kernel, grown)


def _ito_solver(solver):
    if solver is None:
        return diffrax.Euler()
    if not isinstance(solver, diffrax.AbstractItoSolver):
        raise ValueError(
            "solver: must be an Ito solver of diffrax, such as diffrax.Euler(), got "
            f"{in_words(solver)}."
        )
    return solver


def _keys(key):
    """Typed keys of shape () or (K,). Old-style keys (arrays of uint32) are wrapped."""
    if isinstance(key, jax.Array):
        if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            return key
        if key.dtype == jnp.uint32 and key.ndim and key.shape[-1] == 2:
            return jax.random.wrap_key_data(key)
    raise ValueError(
        "key: must be a random key or an array of them, such as jax.random.key(0) or "
        f"jax.random.split(jax.random.key(0), 100), got {in_words(key)}."
    )

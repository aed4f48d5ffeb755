"""`gradient_flow`: gradient flow, integrated until a stop rule is met."""

from collections.abc import Callable, Sequence
from types import EllipsisType
from typing import Any

import diffrax
import equinox as eqx
from jaxtyping import ArrayLike, Float, Scalar

from ..networks.pair import check_pair, same_dtype
from ..penalized import with_weight_decay
from ..problems import AbstractProblem
from .clocks import AbstractClock
from .gauss_newton import GaussNewton
from .options import fill_options
from .progress import FlowProgress, metered
from .solution import FlowSolution, run
from .stopping import AbstractStop
from .system import System


def gradient_flow(
    network: eqx.Module,
    problem: AbstractProblem,
    *,
    weight_decay: float | Scalar = 0.0,
    solver: diffrax.AbstractSolver | None = None,
    clock: AbstractClock | None = None,
    stop: AbstractStop | None = None,
    finish: GaussNewton | EllipsisType | None = ...,
    rtol: float | Scalar | None = None,
    atol: float | Scalar | None = None,
    saveat: Sequence[float] | Float[ArrayLike, " T"] | diffrax.SaveAt | None = None,
    observe: Callable[[Any], Any] | None = None,
    max_steps: int = 20_000,
    progress: bool | Callable[[FlowProgress], Any] = False,
    throw: bool = True,
) -> FlowSolution:
    """Integrate dTheta/dt = -grad L(Theta) from `network`'s parameters until a stop rule is met.

    None, and the literal `...` of `finish`, mean "chosen automatically".

    **Arguments**

    - `network`: any network of this package, or an `equinox.Module` with `linear_coefficients()`
      (and `depth`, for classification). Its parameters are Theta(0), the scale alpha included.
    - `problem`: `Regression`, `Classification`, ...
    - `weight_decay`: lambda >= 0. The flow is that of L + lambda/2 |Theta|^2, in physical time. It
      ends at a stationary point (`StopAtBalance`). The loss is reported without the penalty.
      `invariant_drift` compares with the conserved quantities times exp(-2 lambda t). The limit of
      two diagonal layers is the lasso, min L(beta) + lambda |beta|_1. The limit of depth L is a
      stationary point of L(beta) + lambda/2 R(beta), where R is the `induced_regularizer`.
    - `solver`: any diffrax solver. Default: Dormand-Prince 8(7); a flow that turns out to be stiff
      goes on with Kvaerno 5(4) and full Newton steps, if no matrix has more than 600 rows.
      That is the number of parameters. For a network that has `coupled_groups()` (diagonal ones,
      two fully connected layers) it is about the number of samples, if that is smaller than half.
    - `clock`: the variable of integration. Default: `PhysicalTime()` for squared losses,
      `LogArcLength()` for classification.
    - `stop`: stop rules, combined with ``|``. Default: `StopAtResidual(1e-9 max|y|)` (less for a
      loss whose slopes are smaller than the targets), or `StopAtMargin(1e8)`. Classification flows
      also stop where the precision of floating point ends (`float_wall`), and at the minimum of the
      loss on data that are not separable. Every flow stops when its parameters no longer move.
    - `finish`: `GaussNewton()` (default for losses of residuals, where the Jacobian has at most
      2^25 entries and there is no weight decay) or None.
    - `rtol`: relative tolerance, default 1e-8 (float32: 1e-5).
    - `atol`: absolute tolerance; default rtol times the largest initial parameter (on the
      log-arc-length clock, whose state is a unit vector, at most rtol). The default is smaller for
      a parameter that is more than 10 times smaller than the largest one, if the parameters that it
      is multiplied with are as small.
    - `saveat`: times of the clock at which to save, increasing, or `diffrax.SaveAt(steps=True)`.
      The end is always saved. In compiled code invalid times raise nothing; none is reached then.
    - `observe`: a function of the network, whose value is saved at the same times (`.observed`).
    - `max_steps`: budget of solver steps, explicit and implicit together.
    - `progress`: True prints a line to standard error, at most one in 2 seconds: step, clock, loss.
      A function is called with a `FlowProgress` after every accepted step, on another thread.
    - `throw`: raise `FlowError` for a failure (`succeeded` is False): the step budget is used up, a
      number is not finite, the solver gave up, or a step lost what the flow conserves. A flow on
      data that are not separable is not a failure: `.status` reports it. Nothing is raised under
      `jax.vmap` or `jax.jit`.

    **Returns** a `FlowSolution`.

    **Raises** ValueError for bad input, before anything is compiled.

    Source: Yun, Krishnan & Mobahi 2021, eq. (7).
    """
    check_pair(network, problem)
    problem = with_weight_decay(problem, weight_decay)
    network, problem = same_dtype(network, problem)
    system = System.of(network, problem)
    options = fill_options(
        system,
        solver=solver,
        clock=clock,
        stop=stop,
        finish=finish,
        rtol=rtol,
        atol=atol,
        saveat=saveat,
        observe=observe,
        max_steps=max_steps,
    )
    with metered(progress, system) as meter:
        return run(system, options._replace(meter=meter), throw=throw)

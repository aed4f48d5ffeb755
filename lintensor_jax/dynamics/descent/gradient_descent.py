"""Discrete algorithms: gradient descent, stochastic or not, and any optax transformation."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import Array, Int, PRNGKeyArray, Scalar

from ...lapack_calls import in_turn
from ...messages import in_words
from ...networks import coefficients_and_pullback, split
from ...networks.effective_start import TwoLayers, two_layers_of
from ...networks.pair import check_pair, same_dtype
from ...penalized import weight_decay_of, with_weight_decay
from ...problems import AbstractProblem, named
from ..observations import log_or_minus_infinity
from .batches import Batches, Drawn
from .descent_solution import DescentSolution, balance_drift
from .sharpness import sharpness as largest_curvature
from .step_sums import StepSums, along_gradient


def gradient_descent(
    network: eqx.Module,
    problem: AbstractProblem,
    optimizer: optax.GradientTransformation | None = None,
    num_steps: int = 5_000,
    *,
    batch_size: int | None = None,
    replacement: bool = False,
    label_noise: float | Scalar | None = None,
    weight_decay: float | Scalar = 0.0,
    key: PRNGKeyArray | None = None,
    save_every: int | None = None,
    observe: Any = None,
    sharpness: bool = False,
    optimizer_state: Any = None,
) -> DescentSolution:
    """Run `num_steps` steps of a discrete algorithm on the (summed) loss.

    **Arguments**

    - `network`, `problem`: as in `gradient_flow`.
    - `optimizer`: any optax transformation, with optax's schedules and learning rates by layer.
      Those that need the value or the function (`optax.lbfgs()`, `optax.polyak_sgd()`) get those of
      the step's batch. Labels of `optax.multi_transform` are a function of the parameters, which
      are a network. Default: the papers' constant-step gradient descent, `optax.sgd(1e-3)`.
    - `num_steps`: the number of steps. The papers use 5e3 in regression, 2e6 in classification.
    - `batch_size`: b samples a step, 1 <= b <= n; default: all n. A step's gradient is n/b times
      that of the batch's summed loss. Its mean is the gradient of the whole loss.
    - `replacement`: False takes the samples in random order, floor(n/b) batches an epoch, and
      shuffles again for the next epoch. True draws each batch independently.
    - `label_noise`: for regression, the standard deviation of Gaussian noise that is added to y. It
      is drawn again for every sample of every step. In units of y.
    - `weight_decay`: lambda >= 0 of the penalty lambda/2 |Theta|^2, part of the loss that the
      optimizer sees.
    - `key`: `jax.random.key(seed)`; needed for batches and label noise.
    - `save_every`: the interval between saved steps, a divisor of `num_steps`. Step 0 is saved,
      too. Default: the start and the end.
    - `observe`: a function of the network, whose value is saved at the same steps.
    - `sharpness`: whether to save the largest eigenvalue of the Hessian of the whole loss
      (`.sharpness`; `.stability` is its product with the step size).
    - `optimizer_state`: the state at the end of an earlier run, which this run continues. A
      stochastic run goes on with `key=solution.key`, and begins a new epoch.

    A step size that is a traced number is not a constant of the compiled program: `jax.vmap` over
    step sizes, keys, starts or data runs all lanes in one program.

    Saved losses are computed in the log domain. A step uses the plain gradient, which underflows as
    it does in any other implementation. No divergence is hidden: a step size that is too large
    gives inf or NaN, and `.divergence_step` is the number of the first such step.

    **Returns** a `DescentSolution`. **Raises** ValueError for bad input, before any compile.

    Source: Yun, Krishnan & Mobahi 2021, section 6 (constant step); Even et al. 2023 for steps of
    any size and mini-batches on two layers.
    """
    check_pair(network, problem)
    penalized: Any = with_weight_decay(problem, weight_decay)
    decay = weight_decay_of(penalized)
    problem = problem if decay is None else penalized.problem
    optimizer = _optimizer(optimizer)
    save_every = _counts(num_steps, save_every)
    network, problem = same_dtype(network, problem)
    batches = _batches(problem, network, batch_size, replacement, label_noise, key)
    parameters = split(network)[0]
    if optimizer_state is None:
        optimizer_state = optimizer.init(parameters)  # pyright: ignore[reportArgumentType]
    else:
        _require_state(optimizer, parameters, optimizer_state)
    run = _Run(
        problem,
        optimizer,
        two_layers_of(network),
        batches,
        jnp.asarray(0.0 if decay is None else decay, jax.tree.leaves(parameters)[0].dtype),
        observe,
        sharpness,
    )
    return _descend(run, network, optimizer_state, key, num_steps, save_every)


class _Run(NamedTuple):
    """What stays the same from step to step."""

    problem: Any
    optimizer: optax.GradientTransformationExtraArgs
    layers: TwoLayers | None
    batches: Batches
    weight_decay: Scalar
    observe: Any
    sharpness: bool


class _Carry(NamedTuple):
    """What a step changes."""

    parameters: Any
    state: Any
    drawn: Drawn | None
    sums: StepSums | None
    finite_steps: Int[Array, ""]
    finite: Array


@eqx.filter_jit
def _descend(run, network, state, key, num_steps, save_every):
    parameters, rest = split(network)

    def block(carry, _):
        carry, _ = jax.lax.scan(lambda c, _: (_step(run, rest, c), None), carry, length=save_every)
        if carry.sums is not None:
            carry = carry._replace(sums=carry.sums.folded())
        return carry, _record(run, carry, rest, network)

    first = _Carry(
        parameters,
        state,
        run.batches.first(key, run.problem) if run.batches.is_random else None,
        None if run.layers is None else StepSums.zeros(run.layers),
        jnp.zeros((), int),
        jnp.ones((), bool),
    )
    end, saved = jax.lax.scan(block, first, length=num_steps // save_every)
    # After the steps, because both may call LAPACK for the sharpness, or in `observe`.
    start = jax.tree.map(
        lambda leaf: in_turn(leaf, (saved["sharpness"], saved["observed"])), parameters
    )
    saved = jax.tree.map(
        lambda first, later: jnp.concatenate([first[None], later]),
        _record(run, first._replace(parameters=start), rest, network),
        saved,
    )
    finite = end.finite & jnp.all(jnp.isfinite(saved["coefficients"][-1]))
    return DescentSolution(
        network=eqx.combine(end.parameters, rest),
        optimizer_state=end.state,
        key=None if end.drawn is None else end.drawn.key,
        step=jnp.arange(0, num_steps + 1, save_every),
        divergence_step=jnp.where(finite, -1, end.finite_steps),
        start=run.layers,
        sums=end.sums,
        problem_in_words=named(run.problem),
        **saved,
    )


def _step(run, rest, carry):
    """One step of the optimizer on the batch that is drawn next."""
    seen, drawn, weight = run.problem, carry.drawn, 1.0
    if drawn is not None:
        seen, drawn = run.batches.next(drawn, run.problem)
        weight = run.batches.weight
    beta, pull = coefficients_and_pullback(eqx.combine(carry.parameters, rest))
    slope = weight * seen.adjoint(seen.residual(beta))
    of_data = pull(slope)

    def loss(parameters):
        network = eqx.combine(parameters, rest)
        return weight * seen.loss(network.linear_coefficients())

    gradient = _with_decay(run, of_data, carry.parameters)
    updates, state = _updates(run, carry, gradient, weight * seen.loss(beta), loss)
    sums = carry.sums
    if sums is not None:
        sums = sums.after(updates, of_data, run.layers, slope)
    finite = carry.finite & jnp.isfinite(jnp.sum(beta))
    return _Carry(
        optax.apply_updates(carry.parameters, updates),
        state,
        drawn,
        sums,
        carry.finite_steps + finite,
        finite,
    )


def _updates(run, carry, gradient, value, loss):
    """The optimizer's step and next state. `value` and `loss` are those without the penalty."""
    parameters = carry.parameters
    return run.optimizer.update(
        gradient,
        carry.state,
        parameters,
        value=value + _penalty(run, parameters),
        grad=gradient,
        value_fn=lambda parameters: loss(parameters) + _penalty(run, parameters),
    )


def _with_decay(run, gradient, parameters):
    return jax.tree.map(lambda g, w: g + run.weight_decay * w, gradient, _counted(parameters))


def _counted(parameters):
    """The parameters with zeros in place of a bias, to which weight decay does not apply."""
    return parameters.without_bias() if getattr(parameters, "has_bias", False) else parameters


def _penalty(run, parameters):
    squares = [jnp.sum(leaf**2) for leaf in jax.tree.leaves(_counted(parameters))]
    return 0.5 * run.weight_decay * jnp.sum(jnp.stack(squares))


def _record(run, carry, rest, start):
    """What is saved of one iterate."""
    problem, parameters = run.problem, carry.parameters
    network = eqx.combine(parameters, rest)
    beta, pull = coefficients_and_pullback(network)
    log_margin = None
    if problem.has_margins:
        smallest = jnp.min(problem.margins(beta))
        log_margin = jnp.where(jnp.isnan(smallest), jnp.nan, log_or_minus_infinity(smallest))

    def loss(parameters):
        return problem.loss(eqx.combine(parameters, rest).linear_coefficients())

    gradient = _with_decay(run, pull(problem.adjoint(problem.residual(beta))), parameters)
    # At an exact fit: the step size for a gradient of ones.
    is_zero = jnp.all(jnp.stack([jnp.all(g == 0) for g in jax.tree.leaves(gradient)]))
    gradient = jax.tree.map(lambda g: jnp.where(is_zero, jnp.ones_like(g), g), gradient)
    step, _ = _updates(run, carry, gradient, problem.loss(beta), loss)
    curvature = None
    if run.sharpness:
        curvature = largest_curvature(lambda p: loss(p) + _penalty(run, p), parameters)
    return {
        "coefficients": beta,
        "log_loss": problem.log_loss(beta),
        "log_margin": log_margin,
        "observed": None if run.observe is None else run.observe(network),
        "step_size": along_gradient(step, gradient),
        "balance_drift": balance_drift(network, start),
        "sharpness": curvature,
    }


def _optimizer(optimizer) -> optax.GradientTransformationExtraArgs:
    optimizer = optax.sgd(1e-3) if optimizer is None else optimizer
    if not hasattr(optimizer, "init") or not hasattr(optimizer, "update"):
        raise ValueError(
            "optimizer: must be an optax transformation such as optax.sgd(1e-3), got "
            f"{in_words(optimizer)}."
        )
    return optax.with_extra_args_support(optimizer)


def _counts(num_steps, save_every) -> int:
    save_every = num_steps if save_every is None else save_every
    for name, value in (("num_steps", num_steps), ("save_every", save_every)):
        if type(value) is not int or value < 1:
            raise ValueError(f"{name}: must be a positive int, got {value!r}; pass e.g. 1000.")
    if num_steps % save_every:
        raise ValueError(
            f"save_every: must divide num_steps = {num_steps}, got {save_every}; take "
            f"num_steps = {save_every * (num_steps // save_every + 1)}, or another save_every."
        )
    return save_every


def _batches(problem, network, size, replacement, label_noise, key) -> Batches:
    samples = jax.eval_shape(problem.residual, network.linear_coefficients()).shape[0]
    if size is not None:
        if type(size) is not int or not 1 <= size <= samples:
            raise ValueError(
                f"batch_size: must be an int from 1 to n = {samples}, got {in_words(size)}; leave "
                "it out for all samples."
            )
        if not hasattr(problem, "subset"):
            raise ValueError(
                f"batch_size: {named(problem)} must have a method subset(indices), the problem of "
                "those samples, got none; add it, or leave batch_size out."
            )
    if label_noise is not None:
        if not problem.has_residuals:
            raise ValueError(
                f"label_noise: is noise on the targets of a regression, got {named(problem)}; "
                "leave it out."
            )
        if not isinstance(label_noise, Tracer) and not 0 <= float(label_noise) < np.inf:
            raise ValueError(
                f"label_noise: must be finite and not negative, got {in_words(label_noise)}; it "
                "is a standard deviation in units of y."
            )
        label_noise = jnp.asarray(label_noise, problem.y.dtype)
    batches = Batches(samples, size, bool(replacement), label_noise)
    if batches.is_random and not _is_key(key):
        raise ValueError(
            f"key: batches and label noise are random and need a key, got {in_words(key)}; pass "
            "key=jax.random.key(0)."
        )
    return batches


def _is_key(key):
    dtype = getattr(key, "dtype", None)
    return dtype is not None and (
        jnp.issubdtype(dtype, jax.dtypes.prng_key) or (dtype == np.uint32 and key.shape == (2,))
    )


def _require_state(optimizer, parameters, state):
    """Refuse the state of another optimizer, or of another network."""
    expected = jax.eval_shape(optimizer.init, parameters)
    shapes = [[np.shape(leaf) for leaf in jax.tree.leaves(tree)] for tree in (state, expected)]
    if jax.tree.structure(state) != jax.tree.structure(expected) or shapes[0] != shapes[1]:
        raise ValueError(
            "optimizer_state: must be the state of this optimizer for this network, got "
            f"{in_words(state)}; pass .optimizer_state of a run with the same optimizer, or leave "
            "it out."
        )

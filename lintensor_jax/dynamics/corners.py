"""Corners: saddles to which some parameters decay although the loss still depends on their product.

Example: from u = v, if the loss would be lower for beta = u v < 0, u and v decay to 0, both equal.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Scalar

from ..networks.conserved import conserved_quantities
from .clocks import ClockState, FlowArgs

# The share of their start below which tied parameters need steps that end on what is conserved.
_SMALL_TIE = 1e-3


def marked_start(system: Any, theta: Float[Array, " p"]) -> Float[Array, " p"]:
    """|theta| of a start, with a negative sign for parameters that are tied, such as u = v.

    A parameter is tied if every conserved quantity that depends on it is zero at the start. If no
    conserved quantity is known, no parameter is tied.
    """

    def quantities(theta):
        return conserved_quantities(system.network(theta))

    size, largest = jnp.abs(theta), jnp.max(jnp.abs(theta), initial=0.0)
    scaled = theta / jnp.where(largest > 0, largest, 1.0)  # the quantities are of degree 2
    known, pull = jax.vjp(quantities, scaled)
    if not known.size:
        return size
    # The values are arbitrary. They differ, so that the gradients of two quantities do not cancel.
    weights = 1 + jnp.modf(0.6180339887 * jnp.arange(known.size, dtype=theta.dtype))[0]
    (parts,) = pull(jnp.where(known != 0, weights, 0.0))
    smallest = float(jnp.finfo(theta.dtype).tiny) ** 0.25
    squares_do_not_underflow = jnp.abs(scaled) > smallest
    return jnp.where((parts == 0) & squares_do_not_underflow, -size, size)


def may_be_tied(system: Any, theta: Float[Array, " p"]) -> Bool[Array, ""]:
    """Whether `marked_start` can mark any parameter: some conserved quantity is zero."""
    largest = jnp.max(jnp.abs(theta), initial=0.0)
    scaled = theta / jnp.where(largest > 0, largest, 1.0)
    return jnp.any(conserved_quantities(system.network(scaled)) == 0)


def corners_of(args: FlowArgs) -> Float[Array, " p"]:
    """The sizes below which parameters that decay are at a corner: eps times their start.

    u^2 - v^2 is conserved: if it is positive, u stays above sqrt(eps) times its start. If u = v,
    both decay together, and explicit steps keep them equal to the bit if `ties_are_exact`.
    For implicit steps the size is sqrt(eps) times the start: below it rounding decides the signs.
    """
    assert args.origin is not None
    eps = float(jnp.finfo(args.origin.dtype).eps)
    return jnp.maximum(eps, args.followed_share) * jnp.abs(args.origin)


def faint_sizes(args: FlowArgs) -> Float[Array, " p"]:
    """The sizes below which L tied parameters have a gradient below eps, relative to the start.

    These are eps^(1/(L - 1)) of the start. Such parameters decay like t^(-1/(L - 2)): those of four
    layers would reach sqrt(eps) only after a time of 1e16.
    """
    assert args.origin is not None
    layers = max(args.system.depth - 1, 1)
    eps = float(jnp.finfo(args.origin.dtype).eps)
    return eps ** (1 / layers) * jnp.abs(args.origin)


def followed_by_implicit_steps(dtype: Any) -> float:
    """sqrt(eps): see `corners_of`."""
    return float(jnp.finfo(dtype).eps) ** 0.5


def followed(args: FlowArgs) -> FlowArgs:
    """`args` for a flow that is integrated by implicit steps."""
    assert args.origin is not None
    return args._replace(followed_share=followed_by_implicit_steps(args.origin.dtype))


def rounding_parts_ties(state: ClockState, args: FlowArgs) -> Bool[Array, ""]:
    """Whether tied parameters are so small that rounding could soon decide their signs.

    Their relative difference is eps divided by the square of (size / size at the start): 1e-10 at
    `_SMALL_TIE`, and 1 at sqrt(eps). From here on the steps end on what is conserved. False if
    `ties_are_exact`.
    """
    if args.origin is None or args.system.ties_are_exact:
        return jnp.zeros((), bool)
    return jnp.any(_size_of(state) < -_SMALL_TIE * args.origin)  # false where the start has no mark


def is_near_corner(state: ClockState, args: FlowArgs) -> Bool[Array, ""]:
    """Whether `step_at_corner` may be finite, or `rounding_parts_ties` true: one cheap test."""
    if args.origin is None:
        return jnp.zeros((), bool)
    share = followed_by_implicit_steps(args.origin.dtype)
    if not args.system.ties_are_exact:
        share = max(share, _SMALL_TIE)
    return jnp.any(_size_of(state) < share * jnp.abs(args.origin))


def falls_to_zero(
    small: Bool[Array, " p"],
    theta: Float[Array, " p"],
    motion: Float[Array, " p"],
    motion_at: Callable[[Array], Array],
) -> Bool[Array, " p"]:
    """Which of the `small` parameters decay to zero, and do not cross it.

    `motion_at`: the velocity as a function of theta, or a positive multiple of it; `motion`: its
    value at `theta`. A parameter that crosses zero keeps its velocity where all others that shrink
    to zero are zero as well.
    """
    shrinks = small & (motion * jnp.sign(theta) < 0)
    at_zero = motion_at(jnp.where(shrinks, 0.0, theta))
    return shrinks & (jnp.abs(at_zero) < 0.5 * jnp.abs(motion))


def step_at_corner(
    theta: Float[Array, " p"], args: FlowArgs, velocity: Float[Array, " p"]
) -> Scalar:
    """1/rate of the parameters that decay to a corner, where 2/lambda is no bound: lambda -> 0.

    These parameters are below the tolerances. Longer steps could end on the other side of zero.
    Steps to the zero of a parameter that crosses it would become shorter and shorter, and never
    reach it. `velocity`: dtheta/dt at `theta`.
    """
    small = jnp.abs(theta) <= corners_of(followed(args))
    decays = falls_to_zero(small, theta, velocity, args.system.velocity)
    rate = jnp.max(jnp.abs(jnp.where(decays, velocity / jnp.where(decays, theta, 1.0), 0.0)))
    return jnp.where(rate > 0, 1 / jnp.where(rate > 0, rate, 1.0), unbounded_step(rate))


def _size_of(state: ClockState) -> Float[Array, " p"]:
    return jnp.abs(state.theta) * jnp.exp(state.log_scale)


def unbounded_step(like: Array) -> float:
    """A length of steps that limits nothing. It is finite, so that sums stay finite."""
    return float(jnp.finfo(like.dtype).max) / 4


def relative_where_tied(
    atol: Float[Array, "..."], origin: Float[Array, " p"], size: int
) -> Float[Array, " q"]:
    """Absolute tolerances of a state of `size` numbers: almost zero for tied parameters.

    u = v -> 0 keep their signs only if the relative error of both is small at every size.
    """
    tiny = float(jnp.finfo(origin.dtype).tiny) ** (1 / 3)
    share = jnp.where(origin < 0, tiny, 1.0)
    ones = jnp.ones(size - origin.size, origin.dtype)
    return atol * jnp.concatenate([share, ones])

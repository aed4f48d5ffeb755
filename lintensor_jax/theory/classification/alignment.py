"""Alignment of the layers of deep linear networks (Ji & Telgarsky 2019).

The paper multiplies from the left, W_L ... W_1 x; this package from the right, x^T W_1 ... W_L. The
paper's W_k is our W_k transposed, so that its left singular vectors u_k (right v_k) are our right
(left) ones. Its risk R is the *mean* loss: our loss, a sum, divided by the number of samples.
"""

import itertools
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float, Scalar

from ...eager_programs import eager_program
from ...lapack_calls import each_in_turn, in_turn
from ...losses import AbstractMarginLoss
from ...networks import FullyConnectedNetwork, coefficients_and_pullback
from ...problems import Classification
from ..assumptions import Assumption, rounding

JI_TELGARSKY = "Ji & Telgarsky 2019"


class Alignment(eqx.Module):
    """How close each layer is to rank one, and neighbouring layers to each other.

    Layers are counted from the input. s_1 >= s_2 >= ... are a layer's singular values.

    - `spectral_norms` (L,): |W_k|_2 = s_1; `frobenius_norms` (L,): |W_k|_F.
    - `remainder_norms` (L,): (|W_k|_F^2 - |W_k|_2^2)^(1/2) = |(s_2, s_3, ...)|, computed without
      cancellation.
    - `rank_one_ratios` (L,): |W_k|_2 / |W_k|_F, in [1/sqrt(rank), 1]; 0 for a layer that is zero.
    - `misalignments` (L-1,): 1 - <v_{k+1}, u_k>^2, the squared sine of the angle between the
      output direction u_k of layer k and the input direction v_{k+1} of the next one, computed
      without cancellation; 1 next to a layer that is zero. If a largest singular value is multiple,
      one of its singular vectors is used.
    - `input_direction` (d,): v_1, the unit input vector that the first layer amplifies most; its
      sign is arbitrary.
    - `imbalance`: the D of Lemma 2.6, evaluated at this network; see `alignment_constant`.
    """

    spectral_norms: Float[Array, " L"]
    frobenius_norms: Float[Array, " L"]
    remainder_norms: Float[Array, " L"]
    rank_one_ratios: Float[Array, " L"]
    misalignments: Float[Array, " pairs"]
    input_direction: Float[Array, " d"]
    imbalance: Scalar

    @property
    def overlaps(self) -> Float[Array, " pairs"]:
        """<v_{k+1}, u_k>^2, shape (L-1,)."""
        return 1 - self.misalignments


def alignment(network: FullyConnectedNetwork) -> Alignment:
    """Measure the alignment of a fully-connected network's layers, with any number of outputs.

    Traceable by `jax.jit` and `jax.vmap`, and usable as `gradient_flow(..., observe=alignment)`.
    Layers are scaled before they are squared, so that norms up to the largest float are measured.

    Source: Ji & Telgarsky 2019, Theorem 2.2 and Lemma 2.6.
    """
    _require_fully_connected("alignment", network)
    return _alignment(network)


@eager_program()
def _alignment(network: FullyConnectedNetwork) -> Alignment:
    layers = each_in_turn(_Layer.of, _matrices(network))
    return Alignment(
        spectral_norms=jnp.stack([w.scale * w.sizes[0] for w in layers]),
        frobenius_norms=jnp.stack([w.scale * jnp.linalg.norm(w.sizes) for w in layers]),
        remainder_norms=jnp.stack([w.scale * jnp.linalg.norm(w.sizes[1:]) for w in layers]),
        rank_one_ratios=jnp.stack(
            [w.sizes[0] / _unless_zero(jnp.linalg.norm(w.sizes)) for w in layers]
        ),
        misalignments=jnp.stack([_misalignment(*pair) for pair in itertools.pairwise(layers)]),
        input_direction=layers[0].top_left,
        imbalance=_constant(network, layers[-1].top_right),
    )


def alignment_constant(network: FullyConnectedNetwork) -> Scalar:
    """D = max_k |W_k|_F^2 - |W_L|_F^2 + sum_{k<L} |W_k^T W_k - W_{k+1} W_{k+1}^T|_2 >= 0.

    In units of squared parameters; 0 for balanced layers. Gradient flow conserves every term, and
    so D. At large norms D has the rounding error of squared norms, so measure it at the start. (It
    is not the imbalance of Min et al. 2021.)

    Source: Ji & Telgarsky 2019, section 2.1.
    """
    _require_fully_connected("alignment_constant", network)
    return _constant(network)


@eager_program()
def _constant(network, earlier=None):
    """`alignment_constant`, computed after `earlier`."""
    weights = _matrices(network)
    scale = _unless_zero(jnp.max(jnp.stack([jnp.max(jnp.abs(w)) for w in weights])))
    weights = [w / scale for w in weights]
    squares = jnp.stack([jnp.sum(w**2) for w in weights])
    gaps = [before.T @ before - after @ after.T for before, after in itertools.pairwise(weights)]
    # The gaps are symmetric: their 2-norm is the largest |eigenvalue|.
    sizes = each_in_turn(lambda gap: jnp.max(jnp.abs(jnp.linalg.eigvalsh(gap))), gaps, earlier)
    # Multiplied by the scale last and twice: scale^2 underflows for a scale below 1e-154.
    return scale * (scale * (jnp.max(squares) - squares[-1] + jnp.sum(jnp.stack(sizes))))


class AlignmentBounds(eqx.Module):
    """The bounds of Lemma 2.6 or Lemma C.7 as values and limits, in units of squared parameters.

    - `alignment`: the network's `Alignment`.
    - `remainder` (L,) <= `remainder_limit`: |W_k|_F^2 - |W_k|_2^2.
    - `misalignment` (L-1,) <= `misalignment_limit` (L-1,):
      |W_{k+1}|_2^2 (1 - <v_{k+1}, u_k>^2), which is the second bound times |W_{k+1}|_2^2.
    - `norm_growth` (L,): |W_k|_F^2 - |W_k(0)|_F^2, the same for every layer along a flow.
    - `growth_spread` <= `growth_spread_limit`: the largest difference between two layers' growth
      (eq. 2.5 and C.17); the limit is 0 along a flow.
    """

    alignment: Alignment
    remainder: Float[Array, " L"]
    remainder_limit: Scalar
    misalignment: Float[Array, " pairs"]
    misalignment_limit: Float[Array, " pairs"]
    norm_growth: Float[Array, " L"]
    growth_spread: Scalar
    growth_spread_limit: Scalar

    @property
    def slack(self) -> Float[Array, "..."]:
        """The smaller slack of the first two bounds: negative if one is violated.

        For a batch made by `jax.vmap`, one number for each element.
        """
        return jnp.minimum(
            jnp.min(self.remainder_limit[..., None] - self.remainder, axis=-1),
            jnp.min(self.misalignment_limit - self.misalignment, axis=-1),
        )


def alignment_bounds(
    initial: FullyConnectedNetwork,
    network: FullyConnectedNetwork,
    initial_risk: float | Scalar = 0.0,
) -> AlignmentBounds:
    """Bounds on the alignment of `network`, reached from `initial` by gradient flow or descent.

    Gradient flow (Lemma 2.6), any differentiable loss:

    * |W_k|_F^2 - |W_k|_2^2 <= D;
    * <v_{k+1}, u_k>^2 >= 1 - (D + |W_{k+1}(0)|_2^2 + |W_k(0)|_2^2) / |W_{k+1}|_2^2.

    Gradient descent with the steps of Assumption 3.5 (Lemma C.7): D + 2 R(0) in the first and
    D + 3 R(0) in the second. Along a numerically integrated flow the bounds hold up to the relative
    drift of its invariants times the largest squared norm. Traceable.

    **Arguments**

    - `initial`, `network`: of the same shapes, with scalar output.
    - `initial_risk`: 0 for gradient flow; for gradient descent R(0), the *mean* loss at `initial`:
      `problem.loss(initial.linear_coefficients()) / len(problem.y)`.
    """
    for name, value in (("initial", initial), ("network", network)):
        _require_scalar_output("alignment_bounds", value, name)
    shapes = [[w.shape for w in value.weights] for value in (initial, network)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            "alignment_bounds: initial and network must have layers of the same shapes, got "
            f"{shapes[0]} and {shapes[1]}; pass the network that the flow started from."
        )
    before = alignment(initial)
    after = alignment(jax.tree.map(lambda w: in_turn(w, before.imbalance), network))
    start, risk = before.imbalance, jnp.asarray(initial_risk, before.imbalance.dtype)
    squares = before.spectral_norms**2
    # A difference of squares as a product: this does not cancel while the growth is small.
    growth = (after.frobenius_norms - before.frobenius_norms) * (
        after.frobenius_norms + before.frobenius_norms
    )
    return AlignmentBounds(
        alignment=after,
        remainder=after.remainder_norms**2,
        remainder_limit=start + 2 * risk,
        misalignment=after.spectral_norms[1:] ** 2 * after.misalignments,
        misalignment_limit=start + 3 * risk + squares[1:] + squares[:-1],
        norm_growth=growth,
        growth_spread=jnp.max(growth) - jnp.min(growth),
        growth_spread_limit=2 * risk,
    )


def learning_conditions(
    network: eqx.Module, problem: Classification
) -> tuple[Assumption, Assumption]:
    """Assumption 1.2: R(W(0)) <= R(0), and W(0) is not a critical point. Any network.

    If both hold, the risk tends to zero on separable data, for gradient flow (Theorem 2.2) and for
    gradient descent with the steps of Assumption 3.5 (Theorem 3.6). Without the first it may not:
    w_1 = -w_2 at depth 2 (Appendix A).

    The size of the gradient is relative to the Jacobian of the coefficients times the lengths of
    the samples, weighted by the slopes of the losses. So it is in [0, 1] for any loss, however
    small.
    """
    if not problem.has_margins:
        raise ValueError(
            "learning_conditions: problem must be a Classification, got "
            f"{type(problem).__name__}; Assumption 1.2 is about losses of a margin."
        )
    excess, size = (float(value) for value in _excess_and_gradient(network, problem))
    source, zero = f"{JI_TELGARSKY}, Assumption 1.2", rounding(problem.X)
    return (
        Assumption("R(W(0)) <= R(0), the logarithm of their ratio", excess, excess <= zero, source),
        Assumption("the gradient is not zero, its relative size", size, size > zero, source),
    )


@eager_program()  # without jit each of its thirty operations would be compiled separately
def _excess_and_gradient(network, problem):
    """log R(W) - log R(0), and the relative size of the gradient."""
    beta, pull = coefficients_and_pullback(network)
    excess = problem.log_loss(beta) - problem.log_loss(jnp.zeros_like(beta))
    # The mean of the z_i under the softmax of the log slopes: the gradient up to its size, which
    # may underflow.
    weights = jax.nn.softmax(problem.log_slopes(problem.margins(beta)), axis=None)
    gradient = _norm(pull(problem.margins_adjoint(weights)))
    shares = jnp.sum(weights.reshape(len(problem.X), -1), axis=1)
    units = jnp.eye(beta.size, dtype=beta.dtype).reshape(-1, *beta.shape)
    allowed = _norm(jax.vmap(pull)(units)) * (shares @ jnp.linalg.norm(problem.X, axis=1))
    return excess, jnp.where(allowed > 0, gradient / _unless_zero(allowed), 0.0)


def smoothness(
    network: FullyConnectedNetwork,
    radius: float | Scalar,
    loss: AbstractMarginLoss,
    data_norm: float | Scalar = 1.0,
) -> Scalar:
    """beta(R) = 2 L^2 R^(2L-2) (beta B^2 + G B): the mean loss is beta(R)-smooth on B(R).

    B(R) is the set of networks with |W_k|_F <= R for every layer, R >= 1. B is the largest |x_i|,
    and the loss is beta-smooth and G-Lipschitz (logistic: 1/4 and 1). The paper has B = 1; its
    beta(R) is no smoothness constant for longer samples. For the loss summed over n samples
    multiply by n. `radius` and `data_norm` may be traced.

    Source: Ji & Telgarsky 2019, Lemma 3.2; its proof with (C.3) for |x_i| <= B.

    **Arguments**

    - `network`: gives the depth L; scalar output.
    - `radius`: R >= 1. `data_norm`: B > 0.
    - `loss`: one that states its `smoothness`, as `LogisticLoss()` does; the exponential loss is
      not smooth.
    """
    _require_scalar_output("smoothness", network, "network")
    facts = loss.smoothness
    if facts is None:
        raise ValueError(
            "smoothness: loss must be smooth and Lipschitz (Assumption 3.1) and state its "
            f"`smoothness`, as lintensor_jax.LogisticLoss() does, got {type(loss).__name__}; the "
            "exponential loss is neither."
        )
    if not isinstance(radius, Tracer) and not float(radius) >= 1:
        raise ValueError(
            f"smoothness: radius must be at least 1, got {float(radius):.6g}; Lemma 3.2 holds for "
            "R >= 1, and a ball of radius below 1 lies in that of radius 1."
        )
    if not isinstance(data_norm, Tracer) and not 0 < float(data_norm) < float("inf"):
        raise ValueError(
            f"smoothness: data_norm must be positive and finite, got {data_norm}; it is the "
            "largest |x_i|."
        )
    constants = facts.curvature * jnp.asarray(data_norm) ** 2 + facts.slope * data_norm
    return 2 * network.depth**2 * jnp.asarray(radius) ** (2 * network.depth - 2) * constants


class _Layer(NamedTuple):
    """The singular values of a layer divided by its largest entry, and its top singular vectors."""

    scale: Array
    sizes: Array
    top_left: Array
    top_right: Array

    @staticmethod
    def of(weight):
        scale = jnp.max(jnp.abs(weight))
        left, sizes, right = jnp.linalg.svd(weight / _unless_zero(scale), full_matrices=False)
        return _Layer(scale, sizes, left[:, 0], right[0])


def _misalignment(before, after):
    # 1 - cos^2 cancels for small angles; |v - u <u, v>| does not.
    u, v = before.top_right, after.top_left
    sine = jnp.linalg.norm(v - u * (u @ v))
    return jnp.where((before.scale > 0) & (after.scale > 0), jnp.minimum(sine**2, 1.0), 1.0)


def _matrices(network):
    """The weights, the last one as a column."""
    *hidden, last = network.weights
    return [*hidden, last.reshape(last.shape[0], -1)]


def _unless_zero(scale):
    return jnp.where(scale > 0, scale, 1.0)


def _norm(tree):
    return jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree)))


def _require_fully_connected(owner, network, name="network"):
    if not isinstance(network, FullyConnectedNetwork):
        raise ValueError(
            f"{owner}: {name} must be a FullyConnectedNetwork, got {type(network).__name__}; only "
            "its layers are matrices with singular vectors that can align."
        )


def _require_scalar_output(owner, network, name):
    _require_fully_connected(owner, network, name)
    if not network.has_scalar_output:
        raise ValueError(
            f"{owner}: {name} must have a scalar output (a last layer of shape (d_L,)), got "
            f"{network.weights[-1].shape}; the bounds rest on the last layer's rank of one."
        )

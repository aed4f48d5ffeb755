"""Networks against exact fractions: coefficients, gradients, forward pass, closed forms."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import lintensor_jax as lt
from lintensor_jax.networks import coefficients_and_pullback, split

from . import exact
from .draws import WILD, Random, array, bad_arrays, pick, shown
from .outcomes import RIGHT, Case, Verdict, accepted, all_of, holds, within

_D = 3


def _weights(rng, name):
    kind = pick(rng, WILD)
    depth = pick(rng, (2, 3, 4))
    shapes = {
        "diagonal": [(depth, _D)],
        "convolutional": [(2,)] * (depth - 1) + [(_D,)] if rng.random() < 0.5 else [(_D,)] * depth,
        "fully": [(_D, 2)] + [(2, 2)] * (depth - 2) + [pick(rng, ((2,), (2, 2)))],
        "matrix": [(_D, _D)] * depth,
        "tensor": [(2, 3, _D), (2,), (3,)],
    }[name]
    if rng.random() < 0.3:  # layers of very different sizes
        return [array(rng, shape, pick(rng, WILD)) for shape in shapes]
    return [array(rng, shape, kind) for shape in shapes]


def _built(name, weights):
    match name:
        case "diagonal":
            return lt.DiagonalNetwork(weights[0])
        case "convolutional":
            return lt.ConvolutionalNetwork(weights)
        case "fully":
            return lt.FullyConnectedNetwork(weights)
        case "matrix":
            return lt.MatrixFactorizationNetwork(weights)
    return lt.TensorNetwork(weights[0], weights[1:])


def _exact(name, weights, absolute=False):
    match name:
        case "diagonal":
            return exact.diagonal(weights[0], absolute)
        case "convolutional":
            return exact.convolution(weights, absolute)
        case "tensor":
            return exact.tensor(weights[0], weights[1:], absolute)
    return exact.chain(weights, absolute)


_NAMES = ("diagonal", "convolutional", "fully", "matrix", "tensor")
_TINY = np.finfo(np.float64).tiny


def _precision(network):
    dtype = jax.tree.leaves(split(network)[0])[0].dtype
    return float(jnp.finfo(dtype).eps)


def _stays_in_range(network, weights):
    """Whether no product of part of the layers can overflow, or lose digits by underflow."""
    info = jnp.finfo(jax.tree.leaves(split(network)[0])[0].dtype)
    with np.errstate(all="ignore"):
        layers = weights[0] if len(weights) == 1 else weights  # the rows of a diagonal network
        sizes = [np.abs(np.asarray(w, np.float64)) for w in layers]
        logs = [np.log10(w[w > 0]) for w in sizes if (w > 0).any()]
    largest = sum(max(0.0, float(x.max())) for x in logs) + 3
    smallest = sum(min(0.0, float(x.min())) for x in logs)
    return largest < np.log10(float(info.max)) and smallest > np.log10(float(info.tiny)) + 17


def coefficients(rng: Random) -> Case:
    """beta, its gradient and the forward pass."""
    name = pick(rng, _NAMES)
    weights = _weights(rng, name)
    x, g = rng.standard_normal(_D), rng.standard_normal(_D)

    def call():
        network = _built(name, weights)
        beta, pull = coefficients_and_pullback(network)
        cotangent = jnp.asarray(np.broadcast_to(g.reshape(-1, *(1,) * (beta.ndim - 1)), beta.shape))
        gradient = pull(cotangent.astype(beta.dtype))
        output = None if name == "matrix" else network(jnp.asarray(x, beta.dtype))
        return network, network.linear_coefficients(), gradient, output

    def judge(found):
        network, beta, gradient, output = found
        size = exact.floats(_exact(name, weights, True))
        expected = exact.floats(_exact(name, weights))
        if not _stays_in_range(network, weights):
            # Overflow gives inf or NaN, and underflow loses digits: there is nothing to compare.
            seen = np.asarray(beta)
            if not np.isfinite(seen).all():
                return Verdict(RIGHT, 0.0, "out of range, and seen to be")
            return Verdict(RIGHT, 0.0, "out of range")
        limit = 64 * _precision(network)
        verdicts = [within(beta, expected, limit, size)]
        if output is not None:
            columns = expected.reshape(_D, -1)
            right = (x @ columns).reshape(np.shape(output))
            verdicts.append(within(output, right, limit, np.abs(x) @ size.reshape(_D, -1)))
        # Euler: <grad, Theta> = L <g, beta>, layer by layer <grad_l, Theta_l> = <g, beta>.
        weighted = float(np.sum(g.reshape(-1, 1) * expected.reshape(_D, -1)))
        sizes = float(np.sum(np.abs(g).reshape(-1, 1) * size.reshape(_D, -1)))
        for layer, leaf in zip(
            jax.tree.leaves(split(network)[0]), jax.tree.leaves(gradient), strict=True
        ):
            layers = 1 if name != "diagonal" else len(weights[0])
            product = float(np.sum(np.asarray(layer, np.float64) * np.asarray(leaf, np.float64)))
            verdicts.append(within(product, layers * weighted, 4 * limit, layers * sizes))
        return all_of(*verdicts)

    return Case(f"{name} {shown(weights=weights)}", call, judge)


def closed_forms(rng: Random) -> Case:
    """Minimal networks: the same beta, and a squared norm that is the induced regulariser."""
    name = pick(rng, ("diagonal", "convolutional", "fully", "matrix"))
    depth = pick(rng, (2, 3, 4))
    scale = 10.0 ** pick(rng, (-100, -30, -5, 0, 5, 30, 100))
    shape = {"fully": (_D,), "matrix": (_D, _D)}.get(name, (_D,))
    beta = array(rng, shape, pick(rng, ("plain", "ties", "zeros", "integers"))) * scale
    like = {
        "diagonal": lambda: lt.DiagonalNetwork.zeros(depth, _D),
        "convolutional": lambda: lt.ConvolutionalNetwork.zeros(_D, (_D,) * depth),
        "fully": lambda: lt.FullyConnectedNetwork.zeros((_D,) * depth),
        "matrix": lambda: lt.MatrixFactorizationNetwork.zeros(depth, _D),
    }[name]

    def call():
        network = lt.minimal_network(like(), beta)
        return network, lt.induced_regularizer(like(), beta)

    def judge(found):
        network, value = found
        limit = 1e-7 if name in ("convolutional", "matrix", "fully") else 1e-12
        squares = sum(
            float(np.sum((np.asarray(w) / scale ** (1 / depth)) ** 2))
            for w in jax.tree.leaves(split(network)[0])
        )
        return all_of(
            within(np.asarray(network.linear_coefficients()) / scale, beta / scale, limit),
            within(float(value) / scale ** (2 / depth), squares, limit),
        )

    return Case(f"minimal_network {name}, L={depth}, {shown(beta=beta)}", call, judge, True)


def conserved(rng: Random) -> Case:
    """Conserved quantities are constant along a gradient step to first order."""
    name = pick(rng, ("diagonal", "convolutional", "fully", "matrix", "tensor"))
    depth_weights = _weights(rng, name)
    weights = [
        array(rng, np.shape(w), pick(rng, ("plain", "ties", "zeros"))) for w in depth_weights
    ]
    g = rng.standard_normal(_D)

    def call():
        network = _built(name, weights)
        beta, pull = coefficients_and_pullback(network)
        cotangent = jnp.asarray(np.broadcast_to(g.reshape(-1, *(1,) * (beta.ndim - 1)), beta.shape))
        gradient = pull(cotangent)
        _, rest = split(network)
        parameters = split(network)[0]
        only = split(gradient)[0]

        def quantities(p):
            return lt.conserved_quantities(eqx.combine(p, rest))

        return jax.jvp(quantities, (parameters,), (only,))[1]

    def judge(found):
        return holds(np.max(np.abs(found), initial=0.0) < 1e-10, f"d/dt is {np.asarray(found)}")

    return Case(f"conserved {name} {shown(weights=weights)}", call, judge, True)


_TEMPLATES = {
    "LinearNetwork": (lt.LinearNetwork, {"weights": (3,)}),
    "DiagonalNetwork": (lt.DiagonalNetwork, {"weights": (2, 3)}),
    "ConvolutionalNetwork": (lambda a: lt.ConvolutionalNetwork((np.ones(3), a)), {"filters": (3,)}),
    "FullyConnectedNetwork": (
        lambda a: lt.FullyConnectedNetwork((a, np.ones(2))),
        {"weights": (3, 2)},
    ),
    "MatrixFactorizationNetwork": (
        lambda a: lt.MatrixFactorizationNetwork((np.eye(3), a)),
        {"weights": (3, 3)},
    ),
    "TensorNetwork": (
        lambda a: lt.TensorNetwork(a, (np.ones(2), np.ones(2))),
        {"tensor": (2, 2, 3)},
    ),
    "OrthogonalNetwork": (
        lambda a: lt.OrthogonalNetwork(a, (np.eye(2),) * 2, (np.ones(2),) * 2),
        {"S": (2, 2)},
    ),
    "DifferentialDiagonalNetwork": (
        lambda a: lt.DifferentialDiagonalNetwork(a, np.ones(3), 2),
        {"positive": (3,)},
    ),
}


def bad_weights(rng: Random) -> Case:
    """Invalid weights."""
    name = pick(rng, tuple(_TEMPLATES))
    make, ((argument, shape),) = _TEMPLATES[name][0], _TEMPLATES[name][1].items()
    values = bad_arrays(shape)
    if name == "OrthogonalNetwork":
        values = [v for v in values if not (isinstance(v, np.ndarray) and np.iscomplexobj(v))]
    if name == "FullyConnectedNetwork":
        values = [v for v in values if not isinstance(v, list)]
    bad = pick(rng, values)
    return Case(f"{name}({argument}={bad!r})", lambda: make(bad), accepted)


_KINDS = (coefficients, coefficients, coefficients, closed_forms, conserved, bad_weights)


def networks(rng: Random) -> Case:
    """A case of the area `networks`."""
    return pick(rng, _KINDS)(rng)

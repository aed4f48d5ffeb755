"""The data and the initial networks of the experiment on Ji & Telgarsky 2019."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ...initialization import gaussian
from ...losses import ExponentialLoss, LogisticLoss
from ...networks import FullyConnectedNetwork
from ...problems import Classification


class LinearPredictor(eqx.Module):
    """One layer, beta = w: logistic regression."""

    w: Float[Array, " d"]
    depth = 1

    def linear_coefficients(self) -> Float[Array, " d"]:
        """The vector w itself, shape (d,)."""
        return self.w


def sector(num_samples: int, seed: int) -> Classification:
    """Figure 1's data: separable points of both labels in the unit disc.

    The vectors y_i x_i lie in a sector of 130 degrees, most of them near one edge. So the direction
    of the maximum margin is far from the mean of the data, which every flow approaches first.
    """
    rng = np.random.default_rng(seed)
    angles = np.deg2rad(95 - 130 * rng.beta(1.0, 3.0, num_samples))
    lengths = rng.uniform(0.35, 1.0, num_samples)
    signed = lengths[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    labels = np.where(np.arange(num_samples) % 2 == 0, 1.0, -1.0)
    return Classification(labels[:, None] * signed, labels, LogisticLoss())


def circles(num_samples: int, seed: int) -> Classification:
    """Figure 2's data: one label on each of two well-separated circles in the unit disc."""
    rng = np.random.default_rng(seed)
    labels = np.where(np.arange(num_samples) % 2 == 0, 1.0, -1.0)
    turns = (np.arange(num_samples) // 2) / (num_samples // 2)
    angles = 2 * np.pi * (turns + np.where(labels > 0, *rng.uniform(size=2)))
    rim = 0.28 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    centres = np.where(labels[:, None] > 0, [[0.60, 0.15]], [[-0.42, -0.50]])
    return Classification(centres + rim, labels, LogisticLoss())


def counterexample() -> tuple[Classification, FullyConnectedNetwork]:
    """Appendix A: the loss exp(-<w_1, w_2>) from w_1 = -w_2, which the flow preserves."""
    w = jnp.array([0.8, 0.6])
    problem = Classification([[1.0]], [1.0], ExponentialLoss())
    return problem, FullyConnectedNetwork((w[None, :], -w))


def start(
    problem: Classification, depth: int, width: int, scale: float, key: jax.Array
) -> FullyConnectedNetwork:
    """Normal weights. The last layer's sign is the one of smaller risk (Assumption 1.2)."""
    like = FullyConnectedNetwork.zeros((problem.X.shape[1], *(width,) * (depth - 1)))
    return _start(problem, like, jnp.asarray(scale), key)


@eqx.filter_jit
def _start(problem, like, scale, key):
    *hidden, last = gaussian(like, key, scale).weights
    beta = FullyConnectedNetwork((*hidden, last)).linear_coefficients()
    sign = jnp.where(problem.log_loss(beta) <= problem.log_loss(-beta), 1.0, -1.0)
    return FullyConnectedNetwork((*hidden, sign * last))

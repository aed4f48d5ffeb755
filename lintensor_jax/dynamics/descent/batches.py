"""Mini-batches and label noise: what a stochastic step sees of a problem."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, Scalar

from ...problems import AbstractProblem

# How many numbers are drawn at once. Fewer would be slow, because a draw takes longer than a small
# step. More would be slow, because every step of the loop copies the array of them.
_AT_ONCE = 64


class Drawn(eqx.Module):
    """The samples and the noise of several steps to come, and how many of them have been used.

    - `key`: for the next draw.
    - `place`: the next step's row; the same for all lanes of a batch, which keeps `lax.cond` lazy.
    - `indices` (k, b), `noise` (k, b, ...): one row a step; None where the run has none.
    """

    key: PRNGKeyArray
    place: Int[Array, ""]
    indices: Int[Array, "k b"] | None
    noise: Float[Array, "k b ..."] | None


class Batches(eqx.Module):
    """How a step's samples are drawn.

    - `samples`: n. `size`: samples of a batch, None for all of them.
    - `replacement`: whether a sample can be drawn again before all have been drawn.
    - `label_noise`: the standard deviation of Gaussian noise on the targets, drawn again for
      every sample of every step, in units of y; None without noise.
    """

    samples: int = eqx.field(static=True)
    size: int | None = eqx.field(static=True)
    replacement: bool = eqx.field(static=True)
    label_noise: Scalar | None

    @property
    def is_random(self) -> bool:
        """Whether a step draws anything."""
        return self.size is not None or self.label_noise is not None

    def first(self, key: PRNGKeyArray, problem: Any) -> Drawn:
        """The samples and the noise of the first steps."""
        return self._draw(key, problem)

    def next(self, drawn: Drawn, problem: Any) -> tuple[AbstractProblem, Drawn]:
        """The problem that this step sees, whose gradient is scaled by `weight`; the next draws."""
        row = drawn.place
        seen = problem
        if drawn.indices is not None:
            seen = seen.subset(drawn.indices[row])
        if drawn.noise is not None and self.label_noise is not None:
            noise = drawn.noise[row]
            seen = eqx.tree_at(lambda p: p.y, seen, seen.y + self.label_noise * noise)
        steps = self._steps()
        drawn = eqx.tree_at(lambda d: d.place, drawn, row + 1)
        drawn = jax.lax.cond(
            row + 1 < steps, lambda d: d, lambda d: self._draw(d.key, problem), drawn
        )
        return seen, drawn

    @property
    def weight(self) -> float:
        """n/b: with this weight the mean gradient of a batch is the gradient of the summed loss."""
        return 1.0 if self.size is None else self.samples / self.size

    def _steps(self):
        if self.size is not None and not self.replacement:
            return self.samples // self.size
        return max(1, _AT_ONCE // (self.size or self.samples))

    def _draw(self, key, problem):
        key, of_indices, of_noise = jax.random.split(key, 3)
        steps, size = self._steps(), self.size or self.samples
        indices = noise = None
        if self.size is not None:
            if self.replacement:
                indices = jax.random.randint(of_indices, (steps, size), 0, self.samples)
            else:
                order = jax.random.permutation(of_indices, self.samples)
                indices = order[: steps * size].reshape(steps, size)
        if self.label_noise is not None:
            shape = (steps, size, *problem.y.shape[1:])
            noise = jax.random.normal(of_noise, shape, problem.y.dtype)
        return Drawn(key, jnp.zeros((), int), indices, noise)

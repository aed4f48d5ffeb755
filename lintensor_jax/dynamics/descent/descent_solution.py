"""`DescentSolution`, the result of `gradient_descent`."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, Scalar

from ...messages import as_html
from ...networks import scaled, split
from ...networks.conserved import conserved_quantities
from ...networks.effective_start import EffectiveStart, TwoLayers
from ..dataset import dataset_of
from .step_sums import StepSums


class DescentSolution(eqx.Module):
    """Iterates of a discrete algorithm. `print` it to read a summary.

    The leading axes have one entry per saved step; the last entry is the end.

    - `network`: the network after the last step.
    - `optimizer_state`: the optimizer's state after the last step, to continue the run.
    - `key`: the random key to continue the run with; None if nothing was drawn.
    - `step` (T,): the numbers of the saved steps; 0 is the start.
    - `coefficients` (T, d), `log_loss` (T,), `log_margin` (T,) (None for regression), `observed`;
      the loss is that of all samples, without weight decay.
    - `step_size` (T,): the multiple of the gradient (of all samples) that fits the optimizer's next
      step best, by least squares. For plain gradient descent it is the learning rate. If the
      gradient is zero, it is the multiple of a gradient of ones.
    - `balance_drift` (T,): how far the quantities that gradient flow conserves have moved from the
      start, over the larger squared norm of the start and the iterate; NaN if none are known.
    - `sharpness` (T,): the largest eigenvalue of the Hessian of the loss; None unless asked for.
    - `divergence_step`: the number of the first step whose coefficients are not finite; -1 if none.
    """

    network: Any  # of the type of the argument `network`
    optimizer_state: Any
    key: PRNGKeyArray | None
    step: Int[Array, " T"]
    coefficients: Float[Array, "T ..."]
    log_loss: Float[Array, " T"]
    log_margin: Float[Array, " T"] | None
    observed: Any
    step_size: Float[Array, " T"]
    balance_drift: Float[Array, " T"]
    sharpness: Float[Array, " T"] | None
    divergence_step: Int[Array, ""]
    start: TwoLayers | None
    sums: StepSums | None
    problem_in_words: str = eqx.field(static=True)

    @property
    def direction(self) -> Float[Array, "T ..."]:
        """beta/|beta| at each saved step; 0 where beta = 0, NaN where it is not finite."""
        axes = tuple(range(self.log_loss.ndim - self.coefficients.ndim, 0))
        largest = jnp.max(jnp.abs(self.coefficients), axis=axes, keepdims=True)
        # The squares of 1e200 and 1e-200 are inf and 0.
        unit = self.coefficients / jnp.where(largest == 0, 1.0, largest)
        norm = jnp.sqrt(jnp.sum(unit**2, axis=axes, keepdims=True))
        return unit / jnp.where(norm == 0, 1.0, norm)

    @property
    def diverged(self) -> Array:
        """Whether some step had coefficients that are not finite."""
        return self.divergence_step >= 0

    @property
    def stability(self) -> Float[Array, " T"] | None:
        """Step size times sharpness; above 2 steps in that direction grow (edge of stability)."""
        return None if self.sharpness is None else self.step_size * self.sharpness

    @property
    def effective_start(self) -> EffectiveStart | None:
        """The start from which gradient flow has the limit of this run, by Even et al. 2023.

        It is known for two layers with a real orthogonal decomposition, from the sums over all
        steps; None for other networks. `lintensor_jax.effective_limit` gives the limit.
        """
        if self.start is None or self.sums is None:
            return None
        return self.sums.effective_start(self.start)

    def to_xarray(self) -> Any:
        """The saved steps as an `xarray.Dataset`; it needs xarray.

        Dimensions: `step`, `coefficient` and for a matrix `output`. Variables: `coefficients`,
        `direction`, `log_loss`, `log_margin`, `step_size`, `balance_drift`, `sharpness` where they
        exist, and what `observe` returned. ValueError for many runs at once.
        """
        if self.log_loss.ndim != 1:
            raise ValueError(
                "to_xarray: a solution must be of one run, got one with leading axes "
                f"{self.log_loss.shape[:-1]}; take one by jax.tree.map(lambda x: x[0], solution)."
            )
        names = ("coefficients", "direction", "log_loss", "log_margin", "step_size")
        names = (*names, "balance_drift", "sharpness")
        words = {"units": "steps", "description": "number of the step; 0 is the start"}
        return dataset_of(
            {name: getattr(self, name) for name in names},
            self.observed,
            ("step",),
            coordinates={"step": ("step", np.asarray(self.step), words)},
            attributes={
                "network": type(self.network).__name__,
                "problem": self.problem_in_words,
                "divergence_step": int(self.divergence_step),
            },
        )

    def _repr_html_(self) -> str:
        """What `print` shows, for notebooks."""
        return as_html(self)

    def __str__(self) -> str:
        """A summary: what was run, the state at the end, and how much balance was lost."""
        if self.log_loss.ndim != 1:
            return self._batch_summary()
        first, last = int(self.step[0]), int(self.step[-1])
        lines = [
            f"Descent of {type(self.network).__name__} on {self.problem_in_words}",
            f"  steps            {last - first}, saved at {self.step.shape[0]} of them",
        ]
        if bool(self.diverged):
            lines.append(f"  diverged         at step {int(self.divergence_step)}")
        lines.append(f"  loss             {_change(self.log_loss)}")
        if self.log_margin is not None:
            positive = float(self.log_margin[-1]) > -np.inf
            margin = _power(self.log_margin[-1]) if positive else "not positive"
            lines.append(f"  smallest margin  {margin if not bool(self.diverged) else 'nan'}")
        lines.append(f"  step size        {float(self.step_size[-1]):.6g} (of the next step)")
        drift = float(self.balance_drift[-1])
        known = f"{drift:.1e}" if not np.isnan(drift) or bool(self.diverged) else "not known"
        lines.append(f"  balance lost     {known}")
        if self.stability is not None and self.sharpness is not None:
            lines.append(
                f"  sharpness        {float(self.sharpness[-1]):.6g}, times the step size "
                f"{float(self.stability[-1]):.6g} (2 is the edge of stability)"
            )
        return "\n".join(lines)

    def _batch_summary(self):
        batch = self.log_loss.shape[:-1]
        ends = np.asarray(self.log_loss)[..., -1]
        diverged = np.asarray(self.diverged)
        finite = ends[~np.isnan(ends) & ~diverged]
        spread = (
            f"{_power(finite.min())} to {_power(finite.max())}, median {_power(np.median(finite))}"
            if finite.size
            else "none is finite"
        )
        return (
            f"Batch {batch} of descents of {type(self.network).__name__} on "
            f"{self.problem_in_words}\n"
            f"  steps            {int(np.ravel(self.step)[-1])}\n"
            f"  diverged         {int(diverged.sum())} of {diverged.size}\n"
            f"  loss             {spread}"
        )


def balance_drift(network: Any, start: Any) -> Scalar:
    """max |I(Theta) - I(Theta(0))| over the larger of |Theta|^2 and |Theta(0)|^2; NaN if unknown.

    I are the quantities that gradient flow conserves.
    """
    sizes = [_largest(n) for n in (network, start)]
    unit = jnp.maximum(*sizes)
    unit = jnp.where(unit == 0, 1.0, unit)
    now, before = (scaled(n, 1 / unit) for n in (network, start))
    kept = conserved_quantities(now)
    if kept.size == 0:
        return jnp.full_like(unit, jnp.nan)
    norms = [sum(jnp.sum(x**2) for x in jax.tree.leaves(split(n)[0])) for n in (now, before)]
    norm = jnp.maximum(*norms)
    moved = jnp.max(jnp.abs(kept - conserved_quantities(before)))
    return moved / jnp.where(norm == 0, 1.0, norm)


def _largest(network):
    leaves = jax.tree.leaves(split(network)[0])
    return jnp.max(jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in leaves]))


def _change(log_values):
    return f"{_power(log_values[0])} at the start, {_power(log_values[-1])} at the end"


def _power(log_value):
    """A number given by its natural logarithm, as text; floats cannot hold exp(-1e8)."""
    exponent = float(log_value)
    if np.isnan(exponent) or abs(exponent) < 300:
        return f"{np.exp(exponent):.6g}"
    return f"e^{exponent:.7g}" if np.isfinite(exponent) else ("0" if exponent < 0 else "inf")

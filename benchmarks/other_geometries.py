"""Descent in other geometries: the margins that sign descent, Adam and spectral descent tend to.

    python benchmarks/other_geometries.py [--steps 100000] [--problems 5]

One layer on separable data, two classes (d = 8, n = 16) and three (d = 6, n = 16), from zero. Step
k has the length c / sqrt(k + 1) in the geometry of its method: sign descent and Adam move every
weight by it, spectral descent (of which Muon is an approximation) every singular value, normalised
gradient descent |w|_2. Each tends to the largest margin in its norm: l-infinity (Zhang et al.
2024), the spectral norm (Fan et al. 2025), l2. A method's share is min_i m_i(w) / |w| over the
margin of `max_margin` in its norm. The table has the least share over the problems, and in the last
column that of normalised gradient descent in the same norm.

The approach is slow: these theorems give a rate of log t / sqrt t. So no accuracy of the limit is
claimed. The claims are:

1. at the end, the share of a method is at least 0.95; of spectral descent 0.97, and of Adam 0.9;
2. the share rises from column to column, and one minus the share falls as (log t / sqrt t)^(1/2) or
   faster;
3. the share is larger than that of normalised gradient descent, in each problem in which the l2
   solution (the limit of normalised descent) has less than the share of claim 1. (In the other
   problems normalised descent is faster and may be ahead during the whole run.)

Muon's orthogonalisation is not exact, and its limit is different. It is shown without a claim.
"""

import argparse
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lintensor_jax as lt

jax.config.update("jax_enable_x64", True)

STEP_COEFFICIENT = 0.2


def two_classes(seed: int) -> tuple[Any, Any]:
    """Data of a random linear classifier, and one layer at zero."""
    rng = np.random.default_rng([2, seed])
    X = rng.normal(size=(16, 8))
    labels = np.where(X @ rng.normal(size=8) > 0, 1.0, -1.0)
    problem = lt.Classification(X, labels, lt.LogisticLoss())
    return problem, lt.LinearNetwork.zeros(8)


def three_classes(seed: int) -> tuple[Any, Any]:
    """The same with the largest of three random scores."""
    rng = np.random.default_rng([3, seed])
    while True:
        X = rng.normal(size=(16, 6))
        labels = np.argmax(X @ rng.normal(size=(6, 3)), axis=1)
        if len(set(labels.tolist())) == 3:
            return lt.MulticlassClassification(X, labels), lt.LinearNetwork.zeros(6, 3)


def steps_along(direction: Any) -> optax.GradientTransformation:
    """Steps of length c / sqrt(k + 1) against `direction` of each layer's gradient."""
    return optax.chain(
        optax.stateless(lambda gradients, _: jax.tree.map(direction, gradients)),
        optax.scale_by_learning_rate(schedule),
    )


def schedule(count: Any) -> Any:
    """The length c / sqrt(k + 1) of step k = `count`."""
    return STEP_COEFFICIENT / jnp.sqrt(count + 1.0)


def orthogonal_part(gradient: Any) -> Any:
    """U V^T of the gradient's nonzero singular values; one is zero, as the columns' sum is zero."""
    left, sizes, right = jnp.linalg.svd(gradient, full_matrices=False)
    return (left * (sizes > 1e-10 * sizes[0])) @ right


class Method(NamedTuple):
    """A descent and the norm of its margin.

    - `least`: the share of the largest margin that is claimed at the end; None for no claim.
    """

    setup: Any
    optimizer: optax.GradientTransformation
    norm: Any
    least: float | None


NORMALISED = steps_along(lambda g: g / jnp.linalg.norm(g))
METHODS = {
    "sign descent": Method(two_classes, steps_along(jnp.sign), lt.LInfNorm(), 0.95),
    "Adam": Method(two_classes, optax.adam(schedule, eps=1e-100), lt.LInfNorm(), 0.9),
    "normalised descent": Method(two_classes, NORMALISED, lt.L2Norm(), 0.95),
    "spectral descent": Method(
        three_classes, steps_along(orthogonal_part), lt.SpectralNorm(), 0.97
    ),
    "Muon": Method(three_classes, optax.contrib.muon(schedule), lt.SpectralNorm(), None),
}


def shares(method: Method, seed: int, times: list[int]) -> tuple[np.ndarray, float, float]:
    """Shares of the largest margin: at these steps, of normalised descent's end, of its limit."""
    problem, network = method.setup(seed)
    best = float(lt.max_margin(problem, method.norm).margin)
    l2 = lt.max_margin(problem, lt.L2Norm()).coefficients
    of_limit = float(jnp.min(problem.margins(l2)) / method.norm(l2)) / best

    def reached(optimizer, at):
        run = lt.gradient_descent(network, problem, optimizer, times[-1], save_every=times[0])
        found = [run.coefficients[step // times[0]] for step in at]
        margins = [float(jnp.min(problem.margins(w)) / method.norm(w)) for w in found]
        return np.asarray(margins) / best

    plain = float(reached(NORMALISED, times[-1:])[0])
    return reached(method.optimizer, times), plain, of_limit


def rate(step: int) -> float:
    """log t / sqrt t at t = `step`."""
    return float(np.log(step) / np.sqrt(step))


def main() -> int:
    """Print the table; returns 1 if a claim fails."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=100_000, help="a power of 10 >= 1,000")
    parser.add_argument("--problems", type=int, default=5)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    options = parser.parse_args()
    times = [10**k for k in range(2, round(np.log10(options.steps)) + 1)]
    print("| method | norm | " + " | ".join(f"{t:,}" for t in times) + " | normalised descent |")
    print("|---" * (len(times) + 3) + "|")
    failed = []
    for name in options.methods:
        method = METHODS[name]
        found = [shares(method, seed, times) for seed in range(options.problems)]
        own = np.stack([f[0] for f in found])
        plain, of_limit = np.asarray([f[1:] for f in found]).T
        cells = " | ".join(f"{share:.4f}" for share in own.min(axis=0))
        print(
            f"| {name} | {type(method.norm).__name__} | {cells} | {plain.min():.4f} |", flush=True
        )
        if method.least is None:
            continue
        least = own.min(axis=0)
        falls = np.sqrt(rate(times[-1]) / rate(times[0]))
        behind = of_limit < method.least
        better = name == "normalised descent" or (
            behind.any() and np.all((own[:, -1] > plain)[behind])
        )
        if not (least[-1] >= method.least and better):
            failed.append(f"{name}: the margin")
        if not (np.all(np.diff(least) > 0) and 1 - least[-1] <= falls * (1 - least[0])):
            failed.append(f"{name}: the rate")
    print(f"claims that fail: {failed or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Losses of residuals other than the squared one: flows end at the same limits (Theorem 5).

    python benchmarks/other_losses.py [--problems 50] [--out F.json]

For each architecture (diagonal, even convolution, orthogonal, differential), each depth L = 2, 3
and each loss (Huber, log-cosh, exp(r) - r - 1), there are `--problems` random problems with d = 6
and n = 3, each with another start. A row of the table is one batch of flows. The limit is that of
`predict` for the squared loss. Claim: every flow ends within 1e-7 of the limit, relative to the
limit's largest entry.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lintensor_jax as lt

jax.config.update("jax_enable_x64", True)

D, N = 6, 3
LARGEST_DISTANCE = 1e-7


class ExponentialResidual(lt.AbstractResidualLoss):
    """The loss l(r) = exp(r) - r - 1."""

    def value(self, residual: Any) -> Any:
        """The loss l(r)."""
        return jnp.expm1(residual) - residual

    def slope(self, residual: Any) -> Any:
        """The slope l'(r)."""
        return jnp.expm1(residual)

    @property
    def is_convex_with_minimum_at_zero(self) -> bool:
        """True: l is convex, and its minimum is at r = 0."""
        return True


LOSSES = {
    "Huber": lt.HuberLoss(0.5),
    "log-cosh": lt.LogCoshLoss(),
    "exp(r) - r - 1": ExponentialResidual(),
}


def diagonal(rng: np.random.Generator, depth: int) -> Any:
    """Equal first layers and a zero last one, as Theorem 5 needs."""
    first = rng.uniform(0.3, 1.0, D)
    return lt.DiagonalNetwork(np.stack([first] * (depth - 1) + [0 * first]))


def convolution(rng: np.random.Generator, depth: int) -> Any:
    """The same layers of an even filter without a vanishing frequency."""
    half = np.concatenate([[1.0], rng.uniform(-0.15, 0.15, 3)])
    first = np.concatenate([half, half[2:0:-1]])
    return lt.ConvolutionalNetwork((first,) * (depth - 1) + (0 * first,))


BASIS = np.linalg.qr(np.random.default_rng(0).normal(size=(D + 1, D)))[0]
S = np.random.default_rng(1).normal(size=(D, D)) / np.sqrt(D) + np.eye(D)


def orthogonal(rng: np.random.Generator, depth: int) -> Any:
    """The same layers in the coordinates of one S and one basis."""
    first = BASIS @ rng.uniform(0.3, 1.0, D)
    return lt.OrthogonalNetwork(S, [BASIS] * depth, [first] * (depth - 1) + [0 * first])


def differential(rng: np.random.Generator, depth: int) -> Any:
    """Two equal positive parts, so that beta = 0."""
    part = rng.uniform(0.3, 1.0, D)
    return lt.DifferentialDiagonalNetwork(part, part, depth)


NETWORKS = {
    "diagonal": diagonal,
    "convolution": convolution,
    "orthogonal": orthogonal,
    "differential": differential,
}


def row(name: str, depth: int, loss: Any, problems: int) -> dict[str, Any]:
    """Distances of flows from the squared loss's limits: the largest, and how many are near."""
    rng = np.random.default_rng([depth, list(NETWORKS).index(name)])
    X, y = rng.normal(size=(problems, N, D)), rng.normal(size=(problems, N))
    if name == "convolution":  # even data: column j is column d - j
        X = (X + X[:, :, (-np.arange(D)) % D]) / 2
    starts = [NETWORKS[name](rng, depth) for _ in range(problems)]
    expected = np.stack(
        [
            np.asarray(lt.predict(start, lt.Regression(*data)).limit)
            for start, *data in zip(starts, X, y, strict=True)
        ]
    )
    flows = lt.batched_flow(
        jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts),
        jax.vmap(lambda X, y: lt.Regression(X, y, loss))(X, y),
        shared_problem=False,
        max_steps=100_000,
    )
    apart = np.max(np.abs(np.asarray(flows.coefficients) - expected), axis=1)
    share = apart / np.max(np.abs(expected), axis=1)
    return {
        "ends": flows.counted(),
        "largest": float(share.max()),
        "near": int(np.sum(share < LARGEST_DISTANCE)),
    }


def main() -> int:
    """Print the table; returns 1 if a flow ends elsewhere."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--problems", type=int, default=50)
    parser.add_argument("--out", type=Path, help="write the results as JSON")
    options = parser.parse_args()
    found = []
    print("| network | L | loss | ends | largest distance |\n" + "|---" * 5 + "|")
    for name in NETWORKS:
        for depth in (2, 3):
            for words, loss in LOSSES.items():
                one = row(name, depth, loss, options.problems)
                found.append({"network": name, "depth": depth, "loss": words} | one)
                cells = f"{name} | {depth} | {words} | {one['ends']} | {one['largest']:.1e}"
                print(f"| {cells} |", flush=True)
    if options.out:
        options.out.write_text(json.dumps({"rows": found}, indent=1) + "\n")
    near = sum(one["near"] for one in found)
    total = options.problems * len(found)
    print(
        f"{near} of {total} flows end within {LARGEST_DISTANCE:g} of the limit of the squared loss"
    )
    return int(near < total)


if __name__ == "__main__":
    raise SystemExit(main())

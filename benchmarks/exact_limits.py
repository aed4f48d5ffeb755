"""Exact limits in batches beside their flows: `jax.vmap` of theory's solvers and `batched_flow`.

Run from the repository root:

    python benchmarks/exact_limits.py [--quick] [--repeats 5] [--out exact_limits.json]

Diagonal networks from normal starts of one problem: two layers at d = 2, n = 1, and d = 32, n = 8
(`two_layer_limit`), and from w_1 = w_2 = alpha eta, w_3 = 0 (`diagonal_limit` of Theorem 5, Yun et
al. 2021, L = 3). Convolutions and fully connected networks: two layers at d = 2, n = 1
(`proved_limit`, which tests the assumptions of Theorem 6 as well). The lanes of one vmap share X
and y. `batched_flow` is called with its defaults. The column "of the flow" is the solver's core
time of a lane over that of its flow. Before anything is timed, solver and flow must agree. A vmap
runs all lanes until the last one has converged, so the column "iterations" has both the median and
the largest number.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import measure
import numpy as np
from measure import Row, Variant, WrongAnswer

import lintensor_jax as lt
from lintensor_jax.theory.regression.yun_theorem_5 import limit_point

# At its defaults a flow's limit has an error of about the square of the finish's last step.
CLOSE = 1e-6


def data(d: int, n: int) -> lt.Regression:
    """Gaussian rows of length about 1, targets of order 1."""
    rng = np.random.default_rng([20, d, n])
    return lt.Regression(rng.standard_normal((n, d)) / np.sqrt(d), rng.standard_normal(n))


def two_layers(d: int, n: int, lanes: int) -> tuple[Callable, Callable]:
    """Solver and flow, from normal w_1 and w_2 of sizes 0.1 to 1."""
    problem = data(d, n)
    rng = np.random.default_rng([21, d, n])
    scale = np.exp(rng.uniform(np.log(0.1), 0.0, (lanes, 1, 1)))
    weights = jnp.asarray(scale * rng.standard_normal((lanes, 2, d)))

    @jax.jit
    def solve(weights):
        def one(w):
            return lt.theory.two_layer_limit(None, problem.X, problem.y, w[0], w[1])

        found = jax.vmap(one)(weights)
        return found.coefficients, found.converged, found.num_iterations

    networks = lt.DiagonalNetwork(weights)
    return lambda: solve(weights), lambda: lt.batched_flow(networks, problem)


def theorem_5(d: int, n: int, lanes: int) -> tuple[Callable, Callable]:
    """Solver and flow of three layers, alpha in 0.1..1."""
    problem = data(d, n)
    rng = np.random.default_rng([22, d, n])
    alpha = jnp.asarray(np.exp(rng.uniform(np.log(0.1), 0.0, lanes)))
    eta = jnp.asarray(rng.uniform(0.5, 1.5, (lanes, d)) * rng.choice([-1.0, 1.0], (lanes, d)))

    @jax.jit
    def solve(alpha, eta):
        def one(a, e):
            return limit_point(None, problem.X, problem.y, 3, a, e)

        found = jax.vmap(one)(alpha, eta)
        return found.coefficients, found.converged, found.num_iterations

    first = alpha[:, None] * eta
    networks = lt.DiagonalNetwork(jnp.stack([first, first, 0 * first], axis=1))
    return lambda: solve(alpha, eta), lambda: lt.batched_flow(networks, problem)


def theorem_6(d: int, n: int, lanes: int, network: Any) -> tuple[Callable, Callable]:
    """Solver and flow of `network` from first layers of sizes 0.1 to 1 and a zero last layer."""
    problem = data(d, n)
    rng = np.random.default_rng([23, d, n])
    scale = np.exp(rng.uniform(np.log(0.1), 0.0, lanes))
    first, last = network.factors
    start = jnp.asarray(scale[:, None] * rng.standard_normal((lanes, first.size)))
    networks = jax.vmap(lambda v: network.with_factors((v, jnp.zeros_like(last))))(start)

    @jax.jit
    def solve(networks):
        found = jax.vmap(lambda network: lt.theory.proved_limit(network, problem))(networks)
        return found.limit, found.is_proved, jnp.zeros(lanes, int)

    return lambda: solve(networks), lambda: lt.batched_flow(networks, problem)


def rows_of(title: str, solver: Callable, flow: Callable, repeats: int) -> list[Row]:
    """The rows of one problem: its flow, and its solver."""
    ends: dict[str, Any] = {}

    def of_flow(answer: lt.BatchedFlow) -> Row:
        ends["beta"] = np.asarray(answer.coefficients)
        ends["arrived"] = np.asarray(answer.succeeded)
        return {"not_arrived": int(np.sum(~ends["arrived"]))}

    def of_solver(answer) -> Row:
        beta, converged, iterations = map(np.asarray, answer)
        if not converged.all():
            raise WrongAnswer(f"{title}: {np.sum(~converged)} lanes did not converge")
        size = np.max(np.abs(beta), axis=1, keepdims=True)
        distance = np.max(np.abs(beta - ends["beta"]) / size, axis=1)[ends["arrived"]]
        if not np.max(distance, initial=0.0) <= CLOSE:
            raise WrongAnswer(f"{title}: {np.max(distance):.1e} from the flows")
        counts = f"{int(np.median(iterations))} / {iterations.max()}"
        return {"from_flow": float(np.max(distance)), "iterations": counts}

    variants = [Variant("flow", flow, of_flow), Variant("solver", solver, of_solver)]
    rows = measure.compare("exact limits", title, variants, repeats, baseline="flow")
    for row in rows:
        row["of_the_flow"] = 1 / row["faster_in_core_time"]
    return rows


def main() -> None:
    """Print the table."""
    options = measure.arguments(__doc__, "few lanes")
    measure.set_up()
    rows = []
    for make, d, n, lanes, name in (
        (two_layers, 2, 1, 4096, "two layers"),
        (two_layers, 32, 8, 1024, "two layers"),
        (theorem_5, 2, 1, 4096, "Theorem 5, L = 3"),
        (theorem_5, 32, 8, 1024, "Theorem 5, L = 3"),
    ):
        lanes = 64 if options.quick else lanes
        title = f"{name}, d = {d}, n = {n}, {lanes:,} lanes"
        rows += rows_of(title, *make(d, n, lanes), options.repeats)
    for name, network in (
        ("convolution", lt.ConvolutionalNetwork.zeros(2, (2, 2))),
        ("fully connected", lt.FullyConnectedNetwork.zeros((2, 2))),
    ):
        lanes = 64 if options.quick else 4096
        title = f"Theorem 6, {name}, d = 2, n = 1, {lanes:,} lanes"
        rows += rows_of(title, *theorem_6(2, 1, lanes, network), options.repeats)
    measure.print_rows(rows, options.out)


if __name__ == "__main__":
    main()

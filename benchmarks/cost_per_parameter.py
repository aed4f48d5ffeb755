"""What a step costs per parameter: several classes and completion beside the older problems.

    python benchmarks/cost_per_parameter.py [--lanes 4096] [--rounds 5] [--out F.json]

The batches of a pair have nearly the same number of parameters and the same number of samples:
`MulticlassClassification` beside `Classification`, `MatrixCompletion` beside `Regression` and
`MatrixSensing`. All run by `batched_flow` with its defaults, in turn, to the same stop rule on
time. Classes run on two clocks: physical time, and the log arc length, which is the default. The
cost is core time, divided by the steps of all lanes and by the parameters of one lane. Claim: the
cost is at most 1.3 times that of the older problem. Three classes have two margins a sample: one
pair has the same number of margins instead of the same number of samples.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lintensor_jax as lt
from lintensor_jax.initialization import gaussian

jax.config.update("jax_enable_x64", True)

LARGEST_RATIO = 1.3
N = 8
RNG = np.random.default_rng(0)


def binary(d: int, n: int = N) -> lt.Classification:
    """n samples of two classes."""
    X = RNG.normal(size=(n, d))
    return lt.Classification(X, np.sign(X @ RNG.normal(size=d)), lt.LogisticLoss())


def several(d: int) -> lt.MulticlassClassification:
    """N samples of three classes."""
    X = RNG.normal(size=(N, d))
    return lt.MulticlassClassification(X, np.arange(N) % 3)


def regression(d: int) -> lt.Regression:
    """N samples."""
    return lt.Regression(RNG.normal(size=(N, d)), RNG.normal(size=N))


def sensing(d: int) -> lt.MatrixSensing:
    """N dense sensors."""
    return lt.MatrixSensing(RNG.normal(size=(N, d, d)), RNG.normal(size=N))


def completion(d: int) -> lt.MatrixCompletion:
    """N entries of a d x d matrix."""
    places = RNG.choice(d * d, N, replace=False)
    return lt.MatrixCompletion(*np.divmod(places, d), RNG.normal(size=N), (d, d))


# The older problem, then the new one: a network like the flow's, and its problem.
CLASSES: dict[str, tuple[tuple[Any, Any], tuple[Any, Any]]] = {
    "diagonal": (
        (lt.DiagonalNetwork.zeros(2, 12), binary(12)),
        (lt.DiagonalNetwork.zeros(2, 4, 3), several(4)),
    ),
    "fully connected": (
        (lt.FullyConnectedNetwork.zeros((5, 5)), binary(5)),
        (lt.FullyConnectedNetwork.zeros((4, 4), 3), several(4)),
    ),
    "fully connected, as many margins": (
        (lt.FullyConnectedNetwork.zeros((5, 5)), binary(5, 2 * N)),
        (lt.FullyConnectedNetwork.zeros((4, 4), 3), several(4)),
    ),
}
COMPLETION: dict[str, tuple[tuple[Any, Any], tuple[Any, Any]]] = {
    "regression": (
        (lt.FullyConnectedNetwork.zeros((5, 5)), regression(5)),
        (lt.MatrixFactorizationNetwork.zeros(2, (4, 4)), completion(4)),
    ),
    "sensing": (
        (lt.MatrixFactorizationNetwork.zeros(2, (4, 4)), sensing(4)),
        (lt.MatrixFactorizationNetwork.zeros(2, (4, 4)), completion(4)),
    ),
}


PHYSICAL, ARC = lt.PhysicalTime(), lt.LogArcLength()
# Name, pair, clock.
CASES: list[tuple[str, Any, lt.AbstractClock]] = [
    *((f"classes, {name}, physical time", pair, PHYSICAL) for name, pair in CLASSES.items()),
    *((f"classes, {name}, log arc length", pair, ARC) for name, pair in CLASSES.items()),
    *((f"completion beside {name}", pair, PHYSICAL) for name, pair in COMPLETION.items()),
]


def runs(like: Any, problem: Any, lanes: int, clock: lt.AbstractClock) -> Any:
    """A function that runs all lanes and returns (steps, evaluator); the parameters of a lane."""
    keys = jax.random.split(jax.random.key(0), lanes)
    starts = jax.vmap(lambda key: gaussian(like, key, 0.5))(keys)
    size = sum(leaf.size for leaf in jax.tree.leaves(like))

    def run():
        flows = lt.batched_flow(starts, problem, clock=clock, stop=lt.StopAtTime(10.0), finish=None)
        jax.block_until_ready(flows.coefficients)
        return int(jnp.sum(flows.num_steps)), flows.compilation

    return run, size


def measured(pair: Any, clock: lt.AbstractClock, lanes: int, rounds: int) -> dict[str, Any]:
    """The parameters and the evaluators of both, and the new cost per parameter over the older."""
    programs = [runs(like, problem, lanes, clock) for like, problem in pair]
    for run, _ in programs:
        run()
    costs: list[list[float]] = [[], []]
    ways = ["", ""]
    for _ in range(rounds):
        for place, (run, size) in enumerate(programs):
            start = time.process_time()
            steps, ways[place] = run()
            costs[place].append((time.process_time() - start) / steps / size * 1e9)
    ratios = [new / old for old, new in zip(*costs, strict=True)]
    return {
        "parameters": [size for _, size in programs],
        "by": ways,
        "ratio": statistics.median(ratios),
        "ratios": [round(ratio, 3) for ratio in ratios],
    }


def main() -> int:
    """Print the table; returns 1 if a pair is above the bound."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--lanes", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write the results as JSON")
    options = parser.parse_args()
    found = {}
    print("| pair | parameters | by | cost per parameter over the older problem's |\n" + "|---" * 4)
    for name, pair, clock in CASES:
        row = found[name] = measured(pair, clock, options.lanes, options.rounds)
        sizes, ways = (" and ".join(map(str, row[key])) for key in ("parameters", "by"))
        print(f"| {name} | {sizes} | {ways} | {row['ratio']:.2f} |", flush=True)
    if options.out:
        options.out.write_text(json.dumps({"pairs": found}, indent=1) + "\n")
    return int(any(row["ratio"] > LARGEST_RATIO for row in found.values()))


if __name__ == "__main__":
    raise SystemExit(main())

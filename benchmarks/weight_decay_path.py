"""Weight decay beside early stopping: limits over lambda, and one flow over time.

Run from the repository root:

    python benchmarks/weight_decay_path.py [--out path.json] [--figure weight_decay_path.png]

Two diagonal layers on a sparse regression problem (d = 20, n = 12, three nonzero coefficients).
Left: the limits of flows with weight decay lambda, which are those of the lasso, for 60 values of
lambda in one batch. Right: one flow without weight decay from a small scale, saved at 200 times.
Both are drawn over |beta|_1. The right path is near that of the lasso, but not equal to it: theory
says that they are equal only for monotone paths and an initial scale that tends to zero.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import diffrax
import jax
import numpy as np

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp  # noqa: E402

import lintensor_jax as lt  # noqa: E402

DIMENSION, SAMPLES, NONZERO = 20, 12, 3
ALPHA = 1e-4
NUM_DECAYS, NUM_TIMES = 60, 200


def problem(seed: int = 0) -> tuple[lt.Regression, np.ndarray]:
    """The data, with a little noise, and the true coefficients."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((SAMPLES, DIMENSION)) / np.sqrt(SAMPLES)
    truth = np.zeros(DIMENSION)
    truth[:NONZERO] = [1.5, -1.0, 0.5]
    return lt.Regression(X, X @ truth + 0.02 * rng.standard_normal(SAMPLES)), truth


def over_decay(data: lt.Regression) -> tuple[np.ndarray, np.ndarray, bool]:
    """lambda, the limits (NUM_DECAYS, d), and whether all flows reached their balance."""
    largest = float(np.abs(np.asarray(data.X.T @ data.y)).max())
    decays = np.geomspace(largest, 1e-3 * largest, NUM_DECAYS)
    layers = np.random.default_rng(1).standard_normal((2, DIMENSION))
    networks = jax.vmap(lambda _: lt.DiagonalNetwork(layers))(jnp.arange(NUM_DECAYS))
    flows = lt.batched_flow(networks, data, weight_decay=decays, max_steps=200_000)
    return decays, np.asarray(flows.coefficients), bool(np.all(flows.succeeded))


def over_time(data: lt.Regression) -> tuple[np.ndarray, np.ndarray]:
    """Times, as dense as the steps, and coefficients (NUM_TIMES, d) of a flow from beta = 0."""
    start = lt.DiagonalNetwork(ALPHA * np.stack([np.ones(DIMENSION), np.zeros(DIMENSION)]))
    steps = np.asarray(lt.gradient_flow(start, data, saveat=diffrax.SaveAt(steps=True)).clock_time)
    # Steps are short where the flow is fast. The last one is the end, which is saved anyway.
    places = np.linspace(0, steps.size - 2, NUM_TIMES)
    times = np.interp(places, np.arange(steps.size), steps)
    flow = lt.gradient_flow(start, data, saveat=times)
    return np.asarray(flow.clock_time[:-1]), np.asarray(flow.coefficients[:-1])


def figure(paths: dict[str, np.ndarray], truth: np.ndarray) -> Any:
    """The coefficients of each path over |beta|_1; those of the truth are coloured."""
    from matplotlib.figure import Figure

    from lintensor_jax.figures import style

    with style.house_style():
        drawing = Figure(figsize=(style.PAGE_WIDTH, 2.9), layout="constrained")
        panels = drawing.subplots(1, 2, sharex=True, sharey=True)
        for axes, (title, path) in zip(panels, paths.items(), strict=True):
            size = np.abs(path).sum(axis=1)
            axes.plot(size, path[:, truth == 0], color="0.75", lw=0.8)
            for place in np.flatnonzero(truth):
                [line] = axes.plot(size, path[:, place])
                axes.axhline(truth[place], color=line.get_color(), ls=":", lw=0.8)
            axes.set(title=title, xlabel="|β|₁")
        panels[0].set_ylabel("coefficients (dotted: true values)")
    return drawing


def main(arguments: list[str] | None = None) -> int:
    """Compute both paths; returns 1 if a flow with weight decay did not reach its balance."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="write both paths as JSON")
    parser.add_argument("--figure", type=Path, help="write the figure")
    options = parser.parse_args(arguments)
    data, truth = problem()
    decays, limits, balanced = over_decay(data)
    times, along = over_time(data)
    error = [np.linalg.norm(path - truth, axis=1).min() for path in (limits, along)]
    print(f"least distance from the truth: {error[0]:.4f} over lambda, {error[1]:.4f} over time")
    if options.out:
        found = {"decays": decays, "limits": limits, "times": times, "along": along}
        options.out.write_text(json.dumps({k: np.round(v, 6).tolist() for k, v in found.items()}))
    if options.figure:
        titles = {"limits over the weight decay": limits, "one flow over time": along}
        figure(titles, truth).savefig(options.figure, dpi=150)
    return int(not balanced)


if __name__ == "__main__":
    sys.exit(main())

"""Error of the limit against time, by tolerance.

Run from the repository root; `hot_path.py` runs it with everything else:

    python benchmarks/work_precision.py [--quick] [--out results/benchmarks]

Lanes of the sweep of Yun et al. 2021 with alpha in 0.1..1 are integrated up to one time at which
every exact residual is below 1e-13, so that only the method's error is left: no stop rule,
no finish (except in one curve). The exact limits are known. Times are core times per lane, in units
of plain diffrax with Tsit5 at rtol = 1e-8; atol = rtol / 10.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import batched
import diffrax
import jax
import jax.numpy as jnp
import measure
import numpy as np
import peers
import plots
from measure import Effort, Row, Variant, WrongAnswer
from scipy.integrate import solve_ivp

import lintensor_jax as lt
from lintensor_jax.dynamics.system import System
from lintensor_jax.figures import style

# So many lanes that a call's fixed time of about a millisecond is small. Methods that integrate
# lanes one after the other need fewer.
LANES, LANES_QUICK, FEW = 2048, 128, 4
RTOLS = (1e-4, 1e-6, 1e-8, 1e-10, 1e-12)
MOST_STEPS = 20_000
UNIT = "plain, Tsit5"
# A correct method has a median error of at most this ratio times rtol, plus rounding: a limit is
# the sum of thousands of steps.
LARGEST_RATIO, ROUNDING = 1e3, 1e-11


def plain(system: System, solver: Any, end: float) -> Callable:
    """`jit(vmap(diffeqsolve))` of (N, p) and rtol."""

    def solve(theta, rtol):
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, theta, args: system.velocity(theta)),
            solver,
            0.0,
            end,
            None,
            theta,
            stepsize_controller=diffrax.PIDController(rtol=rtol, atol=rtol / 10),
            adjoint=diffrax.ForwardMode(),
            max_steps=MOST_STEPS,
            throw=False,
        )
        assert solution.ys is not None
        return system.coefficients(solution.ys[-1])

    return jax.jit(jax.vmap(solve, (0, None)))


def by_scipy(name: str, starts: np.ndarray, end: float, rtol: float) -> np.ndarray:
    """The coefficients at time `end` by DOP853, one start after the other."""
    return np.stack(
        [
            peers.coefficients(
                name,
                solve_ivp(
                    lambda t, y: peers.velocity(name, y, peers.X, np.concatenate),
                    (0.0, end),
                    start,
                    method="DOP853",
                    rtol=rtol,
                    atol=rtol / 10,
                ).y[:, -1],
            )
            for start in starts
        ]
    )


def methods(name: str, theta: Any) -> dict[str, tuple[Callable[[float], Any], int]]:
    """By name: a function of rtol that returns limits (k, 2), and its number k of lanes."""
    problem = lt.Regression(peers.X[None], np.array([peers.Y]))
    system = System.of(batched.network(name, 2, 2), problem)
    networks: Any = jax.vmap(system.network)(theta)

    def by_batched_flow(rtol, **options):
        settings = {"rtol": rtol, "atol": rtol / 10, "finish": None}
        settings["max_steps"] = MOST_STEPS
        return lt.batched_flow(networks, problem, **(settings | options))

    reference = by_batched_flow(1e-12, stop=lt.StopAtResidual(1e-13))
    end = float(np.exp(np.max(np.asarray(reference.log_time))))
    until = lt.StopAtTime(end)
    tsit5, dopri8 = (plain(system, s, end) for s in (diffrax.Tsit5(), diffrax.Dopri8()))

    def one_by_one(rtol):
        found = []
        for k in range(FEW):
            start: Any = jax.tree.map(lambda leaf, k=k: leaf[k], networks)
            flow = lt.gradient_flow(
                start, problem, stop=until, finish=None, rtol=rtol, atol=rtol / 10, throw=False
            )
            found.append(flow.coefficients[-1])
        return jnp.stack(found)

    residual, count = lt.StopAtResidual(1e-7), theta.shape[0]
    return {
        UNIT: (lambda rtol: tsit5(theta, rtol), count),
        "plain, Dopri8": (lambda rtol: dopri8(theta, rtol), count),
        "ours, Tsit5": (
            lambda rtol: by_batched_flow(rtol, stop=until, solver=diffrax.Tsit5()).coefficients,
            count,
        ),
        "ours, Dopri8": (
            lambda rtol: by_batched_flow(rtol, stop=until, solver=diffrax.Dopri8()).coefficients,
            count,
        ),
        "ours, with a finish": (
            lambda rtol: by_batched_flow(rtol, stop=residual, finish=lt.GaussNewton()).coefficients,
            count,
        ),
        "gradient_flow, by lane": (one_by_one, FEW),
        "SciPy DOP853, by lane": (
            lambda rtol: by_scipy(name, np.asarray(theta[:FEW]), end, rtol),
            FEW,
        ),
    }


def rows_of(effort: Effort, name: str) -> list[Row]:
    """A row for every method and tolerance."""
    problem = lt.Regression(peers.X[None], np.array([peers.Y]))
    count = LANES_QUICK if effort.quick else LANES
    theta = batched.starts(System.of(batched.network(name, 2, 2), problem), LANES, 0.1)
    exact = peers.exact_limit(name, np.asarray(theta))
    variants, found = [], {}
    for key, (solve, lanes) in methods(name, theta).items():
        if effort.quick and key.startswith("gradient_flow"):
            continue  # its implicit method takes long to compile
        for rtol in RTOLS:

            def check(answer, label=key, rtol=rtol, lanes=lanes):
                errors = np.max(np.abs(np.asarray(answer) - exact[:lanes]), axis=1)
                median = float(np.median(errors))
                if not median <= LARGEST_RATIO * rtol + ROUNDING:
                    raise WrongAnswer(f"{label}: an error of {median:.1e} at rtol {rtol:.0e}")
                return {"median_error": median, "largest_error": float(np.max(errors))}

            variants.append(
                Variant(
                    f"{key}, rtol {rtol:.0e}",
                    lambda solve=solve, rtol=rtol: solve(rtol),
                    check,
                    share=lanes / count,
                )
            )
            found[variants[-1].name] = {"variant": key, "rtol": rtol}
    baseline = f"{UNIT}, rtol 1e-08"
    rows = measure.compare(
        "work-precision", name, variants, 1 if effort.quick else effort.repeats, baseline
    )
    for row in rows:
        row |= found[row["variant"]]
        row["cost"] = 1 / row.pop("faster_in_core_time")
        del row["faster_by_wall"], row["compile_s"]
    return rows


def draw(rows: list[Row], folder: Path) -> list[Path]:
    """Draw a panel for every architecture; returns the paths of the files."""
    panels = []
    for name in dict.fromkeys(row["problem"] for row in rows):
        mine = [row for row in rows if row["problem"] == name]
        curves = []
        for key in dict.fromkeys(row["variant"] for row in mine):
            points = [row for row in mine if row["variant"] == key]
            # An error of zero has no logarithm.
            errors = [max(row["median_error"], 1e-17) for row in points]
            curves.append(plots.Curve(key, [row["cost"] for row in points], errors))
        panels.append(
            plots.Panel(name, "core time per lane (relative)", "error of the limit", curves)
        )
    return style.save(plots.loglog_figure(panels), folder / "work_precision")


def main() -> None:
    """Measure all architectures; print the table and write the plots."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one timing of each")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"))
    options = parser.parse_args()
    measure.set_up()
    effort = Effort(quick=options.quick)
    rows = [row for name in batched.ARCHITECTURES for row in rows_of(effort, name)]
    print(measure.markdown(rows))
    options.out.mkdir(parents=True, exist_ok=True)
    draw(rows, options.out)


if __name__ == "__main__":
    main()

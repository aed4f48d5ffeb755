"""What the first call costs: core seconds of one call in a fresh process, without the import.

Run from the repository root:

    python benchmarks/first_calls.py [--only NAME ...] [--repeats 3] [--beside PATH] [--out FILE]

Every case is a process of its own, without a cache of compiled programs: Python's import of the
package is not counted, all that the call does is (tracing, compiling, running, on all threads).
The table has the median of the repeats, and with `--beside PATH` (the root of another checkout)
the same call there, in turn. The row "diffrax" is `diffrax.diffeqsolve` of the first case's flow.
The README's tour imports the package, and its second run has the first one's compiled programs.
"""

import argparse
import contextlib
import io
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_AGAIN = "the README's tour, second run"


def _data(d: int, n: int) -> Any:
    import numpy as np

    rng = np.random.default_rng([31, d, n])
    return rng, rng.standard_normal((n, d)) / np.sqrt(d), rng.standard_normal(n)


def _toy() -> Any:
    import jax.numpy as jnp

    import lintensor_jax as lt

    problem = lt.Regression(jnp.array([[1.0, 2.0]]), jnp.array([1.0]))
    return lt.DiagonalNetwork(jnp.array([[0.3, 0.4], [0.0, 0.1]])), problem


def _own() -> Any:
    import equinox as eqx
    import jax.numpy as jnp
    from jaxtyping import Array

    import lintensor_jax as lt

    class MyNetwork(eqx.Module):
        u: Array
        v: Array
        depth = 2

        def linear_coefficients(self):
            return self.u * self.v

    problem = lt.Regression(jnp.array([[1.0, 2.0]]), jnp.array([1.0]))
    return MyNetwork(jnp.array([0.3, 0.4]), jnp.array([0.0, 0.1])), problem


def _convolution() -> Any:
    import jax.numpy as jnp

    import lintensor_jax as lt

    rng, X, y = _data(256, 16)
    filters = tuple(jnp.asarray(rng.standard_normal(256) / 16) for _ in range(2))
    return lt.ConvolutionalNetwork(filters), lt.Regression(X, y)


def _fully_connected() -> Any:
    import jax.numpy as jnp

    import lintensor_jax as lt

    rng, X, y = _data(32, 8)
    matrices = [rng.standard_normal((32, 32)) / 6 for _ in range(3)]
    last = rng.standard_normal(32) / 6
    return lt.FullyConnectedNetwork(tuple(map(jnp.asarray, (*matrices, last)))), lt.Regression(X, y)


def _classification() -> Any:
    import jax.numpy as jnp
    import numpy as np

    import lintensor_jax as lt

    rng = np.random.default_rng([32])
    X = rng.standard_normal((20, 10))
    y = np.sign(X @ rng.standard_normal(10))
    network = lt.DiagonalNetwork(jnp.asarray(0.5 * rng.standard_normal((2, 10))))
    return network, lt.Classification(X, y)


def _flow(case: Callable, **options: Any) -> Callable:
    import lintensor_jax as lt

    network, problem = case()
    return lambda: lt.gradient_flow(network, problem, **options)


def _batch(case: Callable) -> Callable:
    import jax
    import jax.numpy as jnp
    import numpy as np

    import lintensor_jax as lt

    network, problem = case()
    scales = 1 + np.arange(64) / 64
    networks = jax.tree.map(lambda x: jnp.asarray(scales.reshape(-1, *(1,) * x.ndim) * x), network)
    return lambda: lt.batched_flow(networks, problem)


def _predict() -> Callable:
    import lintensor_jax as lt

    return lambda: lt.predict(*_toy())


def _limit_direction() -> Callable:
    import lintensor_jax as lt

    network, problem = _classification()
    return lambda: lt.limit_direction(network, problem)


def _theorem_5() -> Callable:
    import jax.numpy as jnp

    import lintensor_jax as lt

    rng, X, y = _data(32, 8)
    first = jnp.asarray(0.1 * rng.standard_normal(32))
    network = lt.DiagonalNetwork(jnp.stack([first, first, 0 * first]))
    return lambda: lt.predict(network, lt.Regression(X, y)).limit


def _tour() -> Callable:
    """The programs of the README's "Five minutes", the package's import included."""
    section = (ROOT / "README.md").read_text().split("\n## Five minutes\n")[1].split("\n## ")[0]
    programs = re.findall(r"```python\n(.*?)```", section, re.DOTALL)[:2]

    def run() -> None:
        scope: dict[str, Any] = {}
        with contextlib.redirect_stdout(io.StringIO()):
            for program in programs:
                exec(compile(program, "README.md", "exec"), scope)

    return run


def _diffrax() -> Callable:
    import diffrax
    import jax
    import jax.numpy as jnp

    X, y = jnp.array([[1.0, 2.0]]), jnp.array([1.0])

    def loss(w):
        return 0.5 * jnp.sum((X @ (w[0] * w[1]) - y) ** 2)

    start = jnp.array([[0.3, 0.4], [0.0, 0.1]])
    term = diffrax.ODETerm(lambda t, w, args: -jax.grad(loss)(w))
    control = diffrax.PIDController(rtol=1e-8, atol=1e-8)
    return lambda: (
        diffrax.diffeqsolve(
            term, diffrax.Tsit5(), 0.0, 50.0, None, start, stepsize_controller=control
        ).ys
    )


CASES: dict[str, Callable[[], Callable]] = {
    "diffrax, d = 2": _diffrax,
    "gradient_flow, d = 2": lambda: _flow(_toy),
    "gradient_flow, own network": lambda: _flow(_own),
    "gradient_flow, convolution, d = 256": lambda: _flow(_convolution),
    "gradient_flow, fully connected, d = 32, L = 4": lambda: _flow(_fully_connected),
    "gradient_flow, classification, d = 10": lambda: _flow(_classification),
    "predict, d = 2": _predict,
    "limit_direction, d = 10": _limit_direction,
    "Theorem 5, d = 32": _theorem_5,
    "batched_flow, d = 2": lambda: _batch(_toy),
    "batched_flow, own network": lambda: _batch(_own),
    "batched_flow, convolution, d = 256": lambda: _batch(_convolution),
    "batched_flow, fully connected, d = 32, L = 4": lambda: _batch(_fully_connected),
    "the README's tour": _tour,
    _AGAIN: _tour,
}


def run_case(name: str) -> None:
    """Print the core and wall seconds of the first call of a case, in this process."""
    import time

    import jax

    jax.config.update("jax_enable_x64", True)
    call = CASES[name]()
    core, wall = time.process_time(), time.perf_counter()
    jax.block_until_ready(jax.tree.leaves(call()))
    times = {"core_s": time.process_time() - core, "wall_s": time.perf_counter() - wall}
    print(json.dumps(times))


def measured(name: str, root: Path) -> dict[str, float]:
    """The times of a case in a fresh process, with the package of the checkout at `root`."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(root),
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "JAX_PLATFORMS": "cpu",
    }
    words = [sys.executable, str(Path(__file__).resolve()), "--case", name]
    with tempfile.TemporaryDirectory() as folder:
        if name == _AGAIN:
            environment["JAX_ENABLE_COMPILATION_CACHE"] = "true"
            environment["JAX_COMPILATION_CACHE_DIR"] = folder
            environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        for _ in range(2 if name == _AGAIN else 1):
            done = subprocess.run(words, env=environment, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"{name} with {root}: {done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", nargs="+", help="cases whose names contain one of these words")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--beside", type=Path, help="the root of another checkout")
    parser.add_argument("--out", type=Path, help="a JSON file for the rows")
    parser.add_argument("--case", choices=CASES, metavar="NAME", help="one case, in this process")
    options = parser.parse_args()
    if options.case:
        run_case(options.case)
        return
    names = [n for n in CASES if not options.only or any(word in n for word in options.only)]
    roots = {"here": ROOT} | ({"beside": options.beside.resolve()} if options.beside else {})
    rows = []
    for name in names:
        found: dict[str, list[dict[str, float]]] = {key: [] for key in roots}
        for _ in range(options.repeats):
            for key, root in roots.items():
                found[key].append(measured(name, root))
        row: dict[str, Any] = {"case": name}
        for key, times in found.items():
            for unit in ("core_s", "wall_s"):
                row[f"{key}_{unit}"] = round(statistics.median(t[unit] for t in times), 3)
        rows.append(row)
        print("  ".join(f"{k} {v}" for k, v in row.items()), flush=True)
    if options.out:
        import measure

        command = "python benchmarks/first_calls.py"
        options.out.write_text(
            json.dumps({"command": command, "machine": measure.machine(), "rows": rows}, indent=1)
        )


if __name__ == "__main__":
    main()

"""All benchmarks of the inner loops, in one run: results.json, table.md and plots.

Run from the repository root:

    python benchmarks/hot_path.py [--quick] [--out results/benchmarks] [--only PART ...]

Parts: sweep, uneven, classification, one-lane, work-precision, scaling, tensor. Each is a separate
program in this folder, whose docstring describes the measurement: batched.py (two parts),
margins.py, one_lane.py, work_precision.py, scaling.py, tensor.py. SciPy comes with the extra
`test`; PyTorch, torchdiffeq and torchode with the extra `peers`, and are left out if they are
not installed. A GPU is used if JAX finds one, and only then absolute times are printed.

--quick takes a few minutes on two cores. It has few lanes and few repeats: enough to check that
everything works, too few for reliable numbers.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import batched
import margins
import measure
import one_lane
import scaling
import tensor
import work_precision
from measure import Effort, Row

Part = Callable[[Effort, Path], list[Row]]


def sweep(effort: Effort, folder: Path) -> list[Row]:
    """The rows of the paper sweep, small and large; the small one also has peers."""
    rows = []
    for lanes in (1024,) if effort.quick else (4096, 65_536):
        for name in batched.ARCHITECTURES:
            rows += batched.sweep(effort, name, lanes, with_peers=lanes <= 4096)
    return rows


def uneven(effort: Effort, folder: Path) -> list[Row]:
    """The lanes of 60 to 6,000 steps."""
    names = ("diagonal",) if effort.quick else ("diagonal", "convolution")
    lanes = 64 if effort.quick else 1024
    return [row for name in names for row in batched.uneven(effort, name, lanes)]


def classification(effort: Effort, folder: Path) -> list[Row]:
    """Flows to large margins."""
    return margins.rows_of(effort, 256 if effort.quick else 4096)


def by_work_and_precision(effort: Effort, folder: Path) -> list[Row]:
    """The work-precision diagrams: error against time."""
    names = batched.ARCHITECTURES[: 1 if effort.quick else None]
    rows = [row for name in names for row in work_precision.rows_of(effort, name)]
    work_precision.draw(rows, folder)
    return rows


PARTS: dict[str, Part] = {
    "sweep": sweep,
    "uneven": uneven,
    "classification": classification,
    "one-lane": lambda effort, folder: one_lane.rows_of(effort),
    "work-precision": by_work_and_precision,
    "scaling": scaling.rows_of,
    "tensor": lambda effort, folder: tensor.rows_of(effort),
}


def main() -> None:
    """Run the chosen parts; exit code 1 if an answer was wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few lanes, two timings of each")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"))
    parser.add_argument("--only", nargs="+", choices=[*PARTS], default=[*PARTS], metavar="PART")
    parser.add_argument("--repeats", type=int, help="timings of each program; default 5, quick 2")
    options = parser.parse_args()
    measure.set_up()
    effort = Effort(options.quick, options.repeats or (2 if options.quick else 5))
    options.out.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    wrong = []
    for name in options.only:
        start = time.perf_counter()
        try:
            rows += PARTS[name](effort, options.out)
        except measure.WrongAnswer as error:
            # The numbers of the other parts are valid; this part has none.
            wrong.append(f"{name}: {error}")
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
        # Written after every part, so that an interruption does not lose results.
        table = measure.write(options.out, rows, measure.machine(), wrong)
    print(table)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()

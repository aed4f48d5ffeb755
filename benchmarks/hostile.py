"""Random hostile inputs for every public function, each answer compared with an independent oracle.

Run from the repository root:

    python benchmarks/hostile.py [--cases 10000] [--seed 0] [--area NAME ...] [--only N] [--out DIR]

A case is one call with hostile input: extreme scales, zeros, duplicates, ties, saddles, integers,
float32, or invalid arguments. Oracles are SciPy's ODE solvers, mpmath, exact fractions, HiGHS, and
non-negative least squares; none of them shares code with the package. Outcomes are counted by area:
right; refused, with the name of an argument; reported as open; reported as failed; and three
faults: a wrong answer without a warning, a traceback that names no argument, a hang. The exit code
is 1 if there is a fault. Case N of an area and a seed is always the same one: `--area NAME --only
N` repeats it.
"""

import argparse
import collections
import json
import multiprocessing
import queue
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

Row = dict[str, Any]
# After its time limit a case has so many seconds to end by itself; then its process is killed.
_GRACE = 30.0


def cases_of(area: str, seed: int, numbers: Iterator[int] | range, limit: float) -> Iterator[Row]:
    """Run cases of one area in this process; yields a row for each."""
    from hostile_cases.catalogue import AREAS
    from hostile_cases.outcomes import HANG, TRACEBACK, Verdict, run

    def raise_timeout(*_):
        raise TimeoutError

    signal.signal(signal.SIGALRM, raise_timeout)
    for number in numbers:
        started, words = time.perf_counter(), ""
        try:
            signal.setitimer(signal.ITIMER_REAL, limit)
            rng = np.random.default_rng((seed, *area.encode(), number))
            case = AREAS[area](rng)
            words = case.words
            verdict = run(case)
        except TimeoutError:
            verdict = Verdict(HANG, note=f"more than {limit:.0f} s")
        except Exception as error:  # a fault of this program, not of the package
            verdict = Verdict(TRACEBACK, note=f"making the case: {error!r}")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        seconds = time.perf_counter() - started
        yield {
            "area": area,
            "number": number,
            "outcome": verdict.outcome,
            "error": verdict.error,
            "note": verdict.note,
            "words": words,
            "seconds": round(seconds, 3),
        }


def set_up() -> None:
    """Set float64 and silence warnings: only what is returned or raised counts."""
    import jax

    jax.config.update("jax_enable_x64", True)
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")


def _work(area, seed, numbers, limit, rows) -> None:
    set_up()
    import jax

    for count, row in enumerate(cases_of(area, seed, numbers, limit)):
        rows.put(row)
        if count % 400 == 399:
            jax.clear_caches()  # compiled programs of odd shapes would fill the memory
    rows.put(None)


def area_in_process(area: str, seed: int, count: int, limit: float) -> Iterator[Row]:
    """Run cases of one area in another process; a hang or a crash starts a new process."""
    context = multiprocessing.get_context("spawn")
    following = 0
    while following < count:
        rows = context.Queue()
        numbers = range(following, count)
        process = context.Process(target=_work, args=(area, seed, numbers, limit, rows))
        process.start()
        wait = 120.0 + limit  # for the first row, which includes the imports
        try:
            while True:
                row = _next_row(rows, process, wait)
                if row is None:
                    return
                following = row["number"] + 1
                wait = limit + _GRACE
                yield row
        except TimeoutError as error:
            lost = {"area": area, "number": following, "outcome": "HANG", "error": None}
            yield lost | {"note": str(error), "words": "", "seconds": wait}
            following += 1
        finally:
            process.kill()
            process.join()


def _next_row(rows, process, wait) -> Row | None:
    end = time.monotonic() + wait
    while time.monotonic() < end:
        try:
            return rows.get(timeout=1.0)
        except queue.Empty:
            if not process.is_alive() and rows.empty():
                raise TimeoutError(f"the process died (exit code {process.exitcode})") from None
    raise TimeoutError(f"more than {wait:.0f} s: the time limit had no effect")


def table(rows: list[Row]) -> str:
    """Outcomes by area, and the largest error of the answers that are right."""
    from hostile_cases.outcomes import OUTCOMES

    lines = ["| area | cases | " + " | ".join(OUTCOMES) + " | worst error / allowed | seconds |"]
    lines.append("|" + "---|" * (len(OUTCOMES) + 4))
    for area in [*dict.fromkeys(row["area"] for row in rows), None]:
        here = [row for row in rows if area in (row["area"], None)]
        counts = collections.Counter(row["outcome"] for row in here)
        errors = [r["error"] for r in here if r["outcome"] == "right" and r["error"] is not None]
        cells = [area or "all", len(here), *(counts[outcome] or "" for outcome in OUTCOMES)]
        cells += [f"{max(errors, default=0.0):.2g}", f"{sum(r['seconds'] for r in here):.0f}"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the cases, print faults as they come and the table at the end."""
    from hostile_cases.catalogue import AREAS, shares

    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--cases", type=int, default=10_000, help="of all areas together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--area", action="append", choices=tuple(AREAS), help="default: all")
    parser.add_argument("--only", type=int, help="the number of one case of one area")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds of one case")
    parser.add_argument("--out", type=Path, help="folder for results.json and table.md")
    parser.add_argument("--quiet", action="store_true", help="do not print single faults")
    arguments = parser.parse_args()
    areas = arguments.area or list(AREAS)
    if arguments.only is not None:
        set_up()
        for area in areas:
            numbers = range(arguments.only, arguments.only + 1)
            for row in cases_of(area, arguments.seed, numbers, arguments.limit):
                print(json.dumps(row, indent=1))
        return
    rows = []
    for area, count in shares(areas, arguments.cases).items():
        for row in area_in_process(area, arguments.seed, count, arguments.limit):
            rows.append(row)
            if row["outcome"].isupper() and not arguments.quiet:
                print(f"{row['outcome']} {area} {row['number']}: {row['words'][:600]}")
                print(f"    {row['note'][:600]}", flush=True)
        if arguments.out is not None:  # after every area: a run takes an hour
            arguments.out.mkdir(parents=True, exist_ok=True)
            (arguments.out / "results.json").write_text(json.dumps(rows, indent=1) + "\n")
            (arguments.out / "table.md").write_text(table(rows))
    print(table(rows))
    if any(row["outcome"].isupper() for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()

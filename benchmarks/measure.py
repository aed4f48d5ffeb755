"""How the benchmarks measure: answers are checked first, variants take turns, ratios are printed.

An absolute time depends on the machine as much as on the program. So a row says how many times
faster a variant was than the baseline of its problem, in wall time and in core time (of all
threads). On a GPU absolute times are added, with the name of the GPU. Compile times are in seconds,
because there is a budget for them.
"""

import argparse
import dataclasses
import datetime
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

_SHORT = 0.05  # seconds
Row = dict[str, Any]


class WrongAnswer(RuntimeError):
    """A variant has a wrong answer, so it is not timed."""


@dataclasses.dataclass(frozen=True)
class Variant:
    """A program that solves a problem.

    - `call`: runs it; returns the argument of `check`.
    - `check`: columns of its row; raises `WrongAnswer`.
    - `share`: the share of the lanes that it integrates; below 1 if it would take hours. Times are
      scaled up.
    - `rounds`: the largest number of its timings.
    - `unit`: a number by which its time is divided before it is compared (1, or a number of steps),
      from the columns of its row.
    """

    name: str
    call: Callable[[], Any]
    check: Callable[[Any], Row]
    share: float = 1.0
    rounds: int = 1000
    unit: Callable[[Row], float] = lambda row: 1.0


@dataclasses.dataclass(frozen=True)
class Effort:
    """How much a run does: `quick` is for small numbers of lanes, `repeats` are timings of each."""

    quick: bool = False
    repeats: int = 5


def set_up() -> None:
    """Set float64 and no cache of compiled programs; call this before any computation."""
    jax.config.update("jax_enable_x64", True)
    # With a cache of earlier runs, compile times would be zero.
    jax.config.update("jax_compilation_cache_dir", None)


def on_gpu() -> bool:
    """Whether JAX found a GPU."""
    return jax.default_backend() == "gpu"


def machine() -> Row:
    """The machine and the versions of the measurement."""
    packages = ("jax", "jaxlib", "diffrax", "scipy", "torch", "torchdiffeq", "torchode")
    return {
        "date": datetime.date.today().isoformat(),
        "device": jax.devices()[0].device_kind,
        "devices": len(jax.local_devices()),
        "processor": _processor(),
        "versions": {name: _version(name) for name in packages},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "unknown")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except ModuleNotFoundError:
        return None


def timed(function: Callable[[], Any], calls: int = 1) -> tuple[Any, float, float]:
    """The result of the last of `calls` calls, and the mean seconds of one: wall, all cores."""
    start, cores = time.perf_counter(), time.process_time()
    for _ in range(calls):
        result = jax.block_until_ready(function())
    wall, cores = time.perf_counter() - start, time.process_time() - cores
    return result, wall / calls, cores / calls


def medians(variants: Sequence[Variant], repeats: int) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds of every variant, wall and cores: medians of turns, scaled to all lanes.

    A turn repeats a short call many times. A single call would be slowed by the caches, which then
    hold the data of another variant.
    """
    times: dict[str, list[tuple[float, float]]] = {variant.name: [] for variant in variants}
    for turn in range(repeats):
        for variant in variants:
            if turn < variant.rounds:
                _, *seconds = timed(variant.call)
                if seconds[0] < _SHORT:
                    _, *seconds = timed(variant.call, 1 + int(_SHORT / max(seconds[0], 1e-6)))
                times[variant.name].append(tuple(seconds))
    wall, cores = (
        {v.name: statistics.median(pair[i] for pair in times[v.name]) / v.share for v in variants}
        for i in range(2)
    )
    return wall, cores


def compare(
    part: str, problem: str, variants: Sequence[Variant], repeats: int, baseline: str = "plain"
) -> list[Row]:
    """A row for every variant: times faster than the baseline, compile time, what its check found.

    The first call compiles; `compile_s` is what it takes longer than the others.
    """
    first, found = {}, {}
    for variant in variants:
        answer, first[variant.name], _ = timed(variant.call)
        found[variant.name] = variant.check(answer)
    wall, cores = medians(variants, repeats)
    by_name = {variant.name: variant for variant in variants}
    units = {name: by_name[name].unit(found[name]) for name in by_name}
    rows = []
    for name, variant in by_name.items():
        compiles = first[name] - wall[name] * variant.share
        row = {"part": part, "problem": problem, "variant": name}
        row["faster_by_wall"] = wall[baseline] / units[baseline] / (wall[name] / units[name])
        row["faster_in_core_time"] = cores[baseline] / units[baseline] / (cores[name] / units[name])
        # Smaller times are noise, or the variant does not compile.
        row["compile_s"] = compiles if compiles > 0.05 else None
        if on_gpu():
            row["seconds"] = wall[name]
        rows.append(row | found[name])
    return rows


def markdown(rows: Iterable[Row]) -> str:
    """A table for every part: its problems below each other, and the columns that it has."""
    parts: dict[str, list[Row]] = {}
    for row in rows:
        parts.setdefault(row["part"], []).append(row)
    return "\n".join(_table(part, members) for part, members in parts.items())


def _table(part: str, rows: list[Row]) -> str:
    columns = [c for c in dict.fromkeys(key for row in rows for key in row) if c != "part"]
    columns = [c for c in columns if any(row.get(c) is not None for row in rows)]
    lines = [f"## {part}", ""]
    lines.append("| " + " | ".join(column.replace("_", " ") for column in columns) + " |")
    lines.append("|" + "---|" * len(columns))
    previous = None
    for row in rows:
        shown = [_shown(row.get(column)) for column in columns]
        if row.get("problem") is not None and row["problem"] == previous:
            shown[columns.index("problem")] = ""
        previous = row.get("problem")
        lines.append("| " + " | ".join(shown) + " |")
    return "\n".join([*lines, ""])


def _shown(value: Any) -> str:
    """A value as the text of a cell; numbers have about three digits."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if value != 0 and not 1e-2 <= abs(value) < 1e5:
        return f"{value:.1e}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def write(
    folder: Path,
    rows: Sequence[Row],
    about: Row,
    wrong: Sequence[str] = (),
    title: str = "The hot path, measured",
) -> str:
    """Write results.json and table.md; returns the table. `wrong`: why a part has no rows."""
    folder.mkdir(parents=True, exist_ok=True)
    device = f"{about['devices']} x {about['device']} ({about['processor']})"
    versions = ", ".join(f"{k} {v}" for k, v in about["versions"].items() if v is not None)
    table = f"# {title} on {device}, {about['date']}\n\n{versions}\n\n"
    table += "".join(f"**Wrong answer, not timed.** {reason}\n\n" for reason in wrong)
    table += markdown(rows)
    (folder / "table.md").write_text(table)
    content = {"machine": about, "wrong": list(wrong), "rows": list(rows)}
    (folder / "results.json").write_text(json.dumps(content, indent=1) + "\n")
    return table


def arguments(text: str | None, quick: str, repeats: int = 5) -> argparse.Namespace:
    """`quick`, `repeats` (1 if quick) and `out` of a benchmark that prints one table.

    `text`: the module's docstring. `quick`: what a quick run does.
    """
    parser = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help=f"{quick}, one repeat")
    parser.add_argument("--repeats", type=int, default=repeats, help=f"default: {repeats}")
    parser.add_argument("--out", type=Path, help="a JSON file for the rows")
    options = parser.parse_args()
    options.repeats = 1 if options.quick else options.repeats
    return options


def print_rows(rows: Sequence[Row], out: Path | None) -> None:
    """Print the table, and write the rows to the JSON file `out` if there is one."""
    print(markdown(rows))
    if out is not None:
        out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")

"""Measured numbers of README and of these pages, from the result files in docs/measured/.

    python docs/measured_numbers.py           # writes the numbers into the pages
    python docs/measured_numbers.py --check   # says which lines have other numbers; writes nothing

A page marks a number by its name: `<!--=sweep wall-->25 to 30<!--=-->`. The marks are comments of
Markdown: readers do not see them. `NUMBERS` says how a number follows from a result file, and
`COMMANDS` by which command such a file is made. To record new results, run the command, put its
file into docs/measured/, and run this program.
"""

import argparse
import functools
import importlib.util
import json
import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs" / "measured"
_MARK = re.compile(r"<!--=([^<>]+?)-->(.*?)<!--=-->", re.DOTALL)
Row = dict[str, Any]

#: The command that makes each file (its own name for the file is `results.json`, or that of --out).
COMMANDS = {
    "hot_path.json": "python benchmarks/hot_path.py",
    "theorem5.json": "python benchmarks/theorem5.py --out theorem5.json",
    "summaries.json": "the commands that stand in it",
    "yun2021.json": "lintensor-jax reproduce yun2021",
    "largest_margins.json": "python benchmarks/largest_margins.py --repeats 11 --out F.json",
    "exact_limits.json": "python benchmarks/exact_limits.py --out exact_limits.json",
    "implicit_step.json": "python benchmarks/implicit_step.py --out implicit_step.json",
    "stiff_lanes.json": "python benchmarks/stiff_lanes.py --out stiff_lanes.json",
    "first_calls.json": "python benchmarks/first_calls.py --beside PATH --out first_calls.json",
    "cost_per_parameter.json": "python benchmarks/cost_per_parameter.py --rounds 11 --out F.json",
    "completion_depth.json": "python benchmarks/completion_depth.py --out completion_depth.json",
    "weight_decay_path.json": "python benchmarks/weight_decay_path.py --out path.json",
    "papazov2024.json": "lintensor-jax reproduce papazov2024",
    "early_finish.json": "python benchmarks/early_finish.py --out early_finish.json",
    "sweeps.json": "the commands that stand in it; each writes its numbers there",
}


@functools.cache
def results(file: str) -> Any:
    """The content of one result file."""
    return json.loads((FOLDER / file).read_text(encoding="utf-8"))


# Words for numbers.


def span(values: Iterable[float], form: str = ".0f") -> str:
    """The smallest and the largest value; one value where both read the same."""
    values = list(values)
    ends = dict.fromkeys(format(float(v), form) for v in (min(values), max(values)))
    return " to ".join(ends)


def listed(values: Iterable[float], form: str = ".0f") -> str:
    """All values: "84 and 223", "117, 413 and 292"."""
    *first, last = (format(float(value), form) for value in values)
    return f"{', '.join(first)} and {last}" if first else last


def size(value: float) -> str:
    """One significant digit, rounded up, as a bound is stated: 1.55e-12 is 2e-12."""
    exponent = math.floor(math.log10(value))
    digit = math.ceil(value / 10**exponent - 1e-9)
    return f"{digit}e{exponent}" if digit < 10 else f"1e{exponent + 1}"


# Speed: rows of hot_path.json.


def hot(part: str, problem: str, variant: str, column: str) -> list[Any]:
    """The column of the rows of `part` whose problem contains `problem`, one for each problem."""
    found = [
        row[column]
        for row in results("hot_path.json")["rows"]
        if row["part"] == part
        and re.search(problem, row["problem"])
        and re.fullmatch(variant, row["variant"])
        and column in row
    ]
    if not found:
        raise KeyError((part, problem, variant, column))
    return found


def over(first: list[float], second: list[float]) -> list[float]:
    """The quotients."""
    return [a / b for a, b in zip(first, second, strict=True)]


SWEEP, UNEVEN, SINGLE, MARGINS, TENSOR = "sweep", "uneven", "one lane", "classification", "tensor"
# The parts with a table on the page, and its heading. The other parts are drawn.
TABLED = {
    SWEEP: "The paper sweep",
    UNEVEN: "Uneven lanes",
    MARGINS: "Classification to large margins",
    SINGLE: "One lane",
    TENSOR: "The general data tensor",
    "memory": "Memory",
    "growth": "Growth",
}
WALL, CORE = "faster_by_wall", "faster_in_core_time"
_small = functools.partial(hot, SWEEP, " 4,096 lanes")
_large = functools.partial(hot, SWEEP, " 65,536 lanes")
_uneven = functools.partial(hot, UNEVEN, "1,024 lanes")
_FINISHED = "ours with a finish, default tolerance.*"
_percent = functools.partial(map, lambda text: float(text.rstrip("%")))


def _plain(tolerance: str) -> str:
    return f"plain with a finish, rtol = atol = {tolerance}.*"


def _memory(lanes: int) -> Row:
    rows = results("hot_path.json")["rows"]
    return next(row for row in rows if row["part"] == "memory" and row["lanes"] == lanes)


def _steps(rows: list[str], which: int) -> list[int]:
    """One of smallest, median and largest, from "15 / 51 / 79"."""
    return [int(text.split(" / ")[which]) for text in rows]


def _same_step_by_xla() -> list[float]:
    """Core time of a step by XLA over that of machine code on one core, row by row."""
    pairs = [(part, ".") for part in (SWEEP, UNEVEN, MARGINS)]
    return [
        ratio
        for part, problem in pairs
        for ratio in over(
            hot(part, problem, "ours, one core", CORE), hot(part, problem, "ours, by XLA", CORE)
        )
    ]


SPEED: dict[str, Callable[[], str]] = {
    "sweep wall": lambda: span(_small("ours", WALL)),
    "sweep core": lambda: span(_small("ours", CORE)),
    "called wall": lambda: span(_small("ours, as called", WALL)),
    "called core": lambda: span(_small("ours, as called", CORE)),
    "sweep over xla": lambda: span(over(_small("ours", WALL), _small("ours, by XLA", WALL)), ".1f"),
    "sweep xla": lambda: span(_small("ours, by XLA", WALL)),
    "sweep diagonal": lambda: f"{_small('ours', WALL)[0]:.0f}",
    "sweep diagonal xla": lambda: f"{_small('ours, by XLA', WALL)[0]:.0f}",
    "large wall": lambda: listed(_large("ours", WALL)),
    "large core": lambda: span(_large("ours", CORE)),
    "large blocks": lambda: listed(
        over(_large("ours", WALL), _large("plain, blocks of 512", WALL))
    ),
    "large steps": lambda: f"{max(_steps(_large('plain', 'steps'), 2))}",
    "large waste": lambda: f"{max(_large('plain', 'waste')):.3g}",
    "torchdiffeq": lambda: listed(over(_small("ours", WALL), _small("torchdiffeq", WALL))),
    "torchdiffeq span": lambda: span(over(_small("ours", WALL), _small("torchdiffeq", WALL))),
    "torchode span": lambda: span(over(_small("ours", WALL), _small("torchode", WALL))),
    "sweep waste": lambda: span(_small("plain", "waste"), ".1f"),
    "uneven wall": lambda: listed(_uneven("ours", WALL)),
    "uneven core": lambda: span(_uneven("ours", CORE)),
    "uneven xla": lambda: listed(_uneven("ours, by XLA", WALL)),
    "uneven waste": lambda: span(_uneven("ours", "waste"), ".2f"),
    "uneven plain waste": lambda: span(_uneven("plain", "waste")),
    "uneven least steps": lambda: f"{min(_steps(_uneven('ours', 'steps'), 0)):,}",
    "uneven most steps": lambda: f"{max(_steps(_uneven('ours', 'steps'), 2)):,}",
    "toy margins": lambda: span(hot(MARGINS, "toy", "ours", WALL)),
    "random margins": lambda: span(hot(MARGINS, "random", "ours", WALL)),
    "explicit steps a unit": lambda: (
        f"{_steps(hot(MARGINS, '1e.04', 'plain', 'steps'), 1)[0] / 1e4:.0f}"
    ),
    "implicit steps": lambda: (
        f"{_steps(hot(MARGINS, '1e.04', 'gradient_flow, by lane', 'steps'), 1)[0]}"
    ),
    "explicit steps": lambda: f"{_steps(hot(MARGINS, '1e.04', 'ours', 'steps'), 1)[0]:,}",
    "first flow": lambda: span(
        hot(SINGLE, "called", "gradient_flow, not in jit", "compile_s"), ".1f"
    ),
    "compile small": lambda: span(_small("ours", "compile_s"), ".1f"),
    "compile uneven": lambda: span(_uneven("ours", "compile_s"), ".1f"),
    "in jit tsit5": lambda: span(
        hot(SINGLE, "called", "gradient_flow, Tsit5", "faster_same_method"), ".1f"
    ),
    "in jit dopri8": lambda: span(
        hot(SINGLE, "called", "gradient_flow, Dopri8", "faster_same_method"), ".1f"
    ),
    "in turn tsit5": lambda: span(
        hot(SINGLE, "^[^=]*in turn", "gradient_flow, Tsit5", "faster_same_method"), ".1f"
    ),
    "in turn dopri8": lambda: span(
        hot(SINGLE, "^[^=]*in turn", "gradient_flow, Dopri8", "faster_same_method"), ".1f"
    ),
    "in turn tsit5 large": lambda: span(
        hot(SINGLE, "32, in turn", "gradient_flow, Tsit5", "faster_same_method"), ".1f"
    ),
    "in turn dopri8 large": lambda: span(
        hot(SINGLE, "32, in turn", "gradient_flow, Dopri8", "faster_same_method"), ".1f"
    ),
    "not in jit": lambda: span(
        over(
            hot(SINGLE, "called", "gradient_flow, Tsit5, not in jit", WALL),
            hot(SINGLE, "called", "diffrax, Tsit5, not in jit", WALL),
        )
    ),
    "finish distance": lambda: f"{max(hot(SWEEP, '.', _FINISHED, 'from_limit')):.1e}",
    "finish within": lambda: span(_percent(hot(SWEEP, ".", _FINISHED, "within_1e-8")), ".3g") + "%",
    "diffrax near at 1e-10": lambda: (
        span(_percent(hot(SWEEP, ".", _plain("1e-10"), "within_1e-7_of_ours")), ".3g") + "%"
    ),
    "diffrax near at 1e-8": lambda: (
        span(_percent(hot(SWEEP, ".", _plain("1e-08"), "within_1e-7_of_ours")), ".3g") + "%"
    ),
    "diffrax error at 1e-8": lambda: (
        f"{max(hot(SWEEP, '.', _plain('1e-08'), 'from_limit')):.0e}".replace("e-0", "e-")
    ),
    "bytes a lane": lambda: f"{_memory(1_000_000)['bytes_per_lane']:.0f}",
    "early steps": lambda: span(_early("share_of_steps"), ".2f"),
    "early error": lambda: size(_worse_by_early_end()),
    "early rejected": lambda: f"{sum(map(int, _early('rejected')))}",
    "early lanes": lambda: f"{sum(map(int, _early('lanes'))):,}",
    "tensor": lambda: span(hot(TENSOR, ".", "ours", WALL), ".1f"),
    "machine code": lambda: span(_same_step_by_xla(), ".1f"),
}


# Theory and limits.


def _theorem5(depth: int) -> int:
    return max(row["iterations"] for row in results("theorem5.json") if row["depth"] == depth)


def _figure1() -> list[Row]:
    return results("yun2021.json")["tables"]["regression"]


def _directions() -> list[Row]:
    return results("yun2021.json")["tables"]["classification"]


def _largest_scale(rows: list[Row]) -> list[Row]:
    """The rows that the figure of directions draws."""
    most = max(row["alpha"] for row in rows)
    return [row for row in rows if row["alpha"] == most]


def _farthest(column: str) -> float:
    return max(row[column] for row in _largest_scale(_directions()))


def _summary(task: str) -> Row:
    """The summary of the run of benchmarks/{task}_limits.py."""
    return results("summaries.json")[f"{task}_limits"]


def _rates() -> Row:
    return results("summaries.json")["convergence_rates"]


def _multiclass() -> Row:
    return results("summaries.json")["multiclass"]


def _momenta() -> list[Row]:
    return results("papazov2024.json")["tables"]["momenta"]


def _ends_of_momenta() -> tuple[Row, Row]:
    """The runs with the longest and with the shortest time of a step."""
    rows = sorted(_momenta(), key=lambda row: row["time_step"])
    return rows[-1], rows[0]


def _order_of_momenta() -> float:
    """The power of the time of a step with which the ends differ from the flow's."""
    long, short = _ends_of_momenta()
    return math.log(long["away"] / short["away"]) / math.log(long["time_step"] / short["time_step"])


def _masses() -> list[Row]:
    """The masses at which every problem has a predicted limit."""
    found = results("papazov2024.json")
    rows = found["tables"]["masses"]
    return [row for row in rows if row["covered"] == found["config"]["problems"]]


def _margins(chosen: Callable[[int, int], bool]) -> list[float]:
    """Core time of `max_margin` over that of the best other solver, where chosen(d, n)."""
    found = []
    for row in results("largest_margins.json"):
        if "of_the_best" in row:
            d, n = map(int, re.findall(r"= (\d+)", row["problem"]))
            found += [row["of_the_best"]] * chosen(d, n)
    return found


def _limits(name: str) -> list[float]:
    """Core time of theory's limit over that of its flow, in the problems of that name."""
    rows = results("exact_limits.json")
    return [
        row["of_the_flow"]
        for row in rows
        if row["problem"].startswith(name) and row["variant"] == "solver"
    ]


def _implicit_step(problem: str, variant: str) -> float:
    """Core time of a step over that of the baseline of its problem."""
    rows = results("implicit_step.json")
    row = next(r for r in rows if r["problem"].startswith(problem) and r["variant"] == variant)
    return 1 / row["faster_in_core_time"]


def _share_of_first_call(case: str) -> str:
    """The core time of a first call over that of the checkout beside it."""
    (row,) = (row for row in results("first_calls.json")["rows"] if row["case"] == case)
    return f"{row['here_core_s'] / row['beside_core_s']:.2f}"


def _early(column: str) -> list[float]:
    """A column of benchmarks/early_finish.py, one number for each problem."""
    return [row[column] for row in results("early_finish.json")["rows"]]


def _worse_by_early_end() -> float:
    """By how much the largest error of a problem's limits grows if its lanes end earlier."""
    pairs = zip(_early("early_largest_error"), _early("usual_largest_error"), strict=True)
    return max(early - usual for early, usual in pairs)


def _costs(name: str) -> list[float]:
    """The cost per parameter over that of an older problem, in the pairs of that name."""
    pairs = results("cost_per_parameter.json")["pairs"]
    return [row["ratio"] for pair, row in pairs.items() if pair.startswith(name)]


def _degrees(chord: float) -> float:
    """The angle between two unit vectors at that distance."""
    return math.degrees(2 * math.asin(chord / 2))


THEORY: dict[str, Callable[[], str]] = {
    "newton": lambda: listed(_theorem5(depth) for depth in (2, 3, 4)),
    "newton span": lambda: span(_theorem5(depth) for depth in (2, 3, 4)),
    "figure 1": lambda: size(max(row["distance"] for row in _figure1())),
    "directions steps": lambda: span(r["num_steps"] for r in _largest_scale(_directions())),
    "directions angle": lambda: f"{math.ceil(1000 * _degrees(_farthest('distance'))) / 1000:.3f}",
    "directions descent angle": lambda: f"{_degrees(_farthest('descent_distance')):.0f}",
    "directions descent": lambda: f"{_farthest('descent_distance'):.1g}",
    "descent loss": lambda: span(
        (10 ** r["descent_log10_loss"] for r in _directions()), ".0e"
    ).replace("e-0", "e-"),
    "directions distance": lambda: size(max(row["distance"] for row in _directions())),
    "all directions steps": lambda: span(row["num_steps"] for row in _directions()),
    "theorem 5 problems": lambda: f"{_summary('regression')['problems']:,}",
    "theorem 5 failures": lambda: f"{_summary('regression')['failures']}",
    "theorem 5 flow": lambda: f"{_summary('regression')['largest_difference']:.1e}",
    "certified": lambda: "{certified:,} of {problems:,}".format(**_summary("classification")),
    "conic": lambda: f"{_summary('classification')['distance_to_conic_solution']:.1e}",
    "conic runs": lambda: f"{_summary('classification')['runs_with_conic_solution']:,}",
    "margin groups": lambda: f"{_summary('classification')['groups']}",
    "margin steps": lambda: span(_summary("classification")["median_steps_by_architecture"]),
    "rate instances": lambda: f"{_rates()['instances']:,}",
    "rate times": lambda: f"{_rates()['times']:,}",
    "rate violations": lambda: f"{_rates()['violations']}",
    "multiclass problems": lambda: f"{_multiclass()['problems']}",
    "multiclass margins": lambda: f"{_multiclass()['reached_margin_1e5']}",
    "multiclass steps": lambda: span(_multiclass()["steps"]),
    "multiclass drop": lambda: f"{_multiclass()['largest_drop_of_smoothed_margin']:g}",
    "multiclass certified": lambda: f"{_multiclass()['certified']}",
    "multiclass saddles": lambda: f"{_multiclass()['saddles']}",
    "svm problems": lambda: f"{_multiclass()['one_layer_problems']}",
    "svm prediction": lambda: size(_multiclass()["distance_of_prediction_to_svm"]),
    "svm flow": lambda: size(_multiclass()["distance_of_flow_to_svm"]),
    "momentum ends": lambda: " to ".join(f"{run['away']:.1e}" for run in _ends_of_momenta()),
    "momentum order": lambda: f"{_order_of_momenta():.2f}",
    "masses": lambda: span((run["mass"] for run in _masses()), "g"),
    "margins large": lambda: span(_margins(lambda d, n: max(d, n) >= 200), ".2g"),
    "margins small": lambda: span(_margins(lambda d, n: max(d, n) <= 20), ".2g"),
    "limits of two layers": lambda: listed(_limits("two layers"), ".2f"),
    "limits of three layers": lambda: listed(_limits("Theorem 5"), ".2g"),
    "limits of one sample": lambda: listed(_limits("Theorem 6"), ".2g"),
    "step growth": lambda: f"{_implicit_step('growth', 'p = 640'):.1f}",
    "step dense": lambda: f"{_implicit_step('L = 2, p = 640', 'dense'):.2g}",
    "stiff single": lambda: f"{results('stiff_lanes.json')['single_over_batch']:.0f}",
    "stiff xla": lambda: f"{results('stiff_lanes.json')['xla_over_batch']:.1f}",
    "stiff sweep": lambda: f"{results('stiff_lanes.json')['sweep_over_batch']:.1f}",
    "stiff second sweep": lambda: f"{results('stiff_lanes.json')['second_sweep_over_batch']:.1f}",
    "first small flow": lambda: _share_of_first_call("gradient_flow, d = 2"),
    "first margins": lambda: _share_of_first_call("gradient_flow, classification, d = 10"),
    "first limit": lambda: _share_of_first_call("limit_direction, d = 10"),
    "first theorem 5": lambda: _share_of_first_call("Theorem 5, d = 32"),
    "first fully connected": lambda: _share_of_first_call(
        "gradient_flow, fully connected, d = 32, L = 4"
    ),
    "first tour": lambda: _share_of_first_call("the README's tour"),
    "second tour": lambda: _share_of_first_call("the README's tour, second run"),
    "first convolutions": lambda: _share_of_first_call("batched_flow, convolution, d = 256"),
    "cost of classes": lambda: span(_costs("classes"), ".2f"),
    "cost of completion": lambda: listed(_costs("completion"), ".2f"),
    "mass problems": lambda: f"{results('papazov2024.json')['config']['problems']}",
    "masses closer": lambda: f"{sum(run['closer'] for run in _masses())}",
    "mass distance": lambda: span((run["distance"] for run in _masses()), ".3f"),
}

NUMBERS = SPEED | THEORY
#: Tables that stand between marks as well: the name, and what makes the Markdown.
TABLES: dict[str, Callable[[], str]] = {
    "speed tables": lambda: f"\n\n{_speed_tables()}\n",
    "sweeps table": lambda: f"\n\n{_benchmark('sweep_table').table(results('sweeps.json'))}\n",
}


def _speed_tables() -> str:
    """The tables as `benchmarks/hot_path.py` writes them."""
    rows = results("hot_path.json")["rows"]
    chosen = [row | {"part": TABLED[row["part"]]} for row in rows if row["part"] in TABLED]
    return _benchmark("measure").markdown(chosen)


def _benchmark(name: str) -> Any:
    """The module of a file in benchmarks/."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pages() -> list[Path]:
    """README and every page."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def filled(text: str) -> str:
    """The text with the number of every mark; KeyError for a name that is not known."""
    known = NUMBERS | TABLES
    return _MARK.sub(lambda found: f"<!--={found[1]}-->{known[found[1]]()}<!--=-->", text)


def stale() -> list[str]:
    """What stands at a mark and is not the result file's, as `file:line: ...`."""
    found = []
    for path in pages():
        text = path.read_text(encoding="utf-8")
        for mark in _MARK.finditer(text):
            right = _MARK.fullmatch(filled(mark[0]))
            assert right is not None
            if right[2] != mark[2]:
                line = text.count("\n", 0, mark.start()) + 1
                place = f"{path.relative_to(ROOT)}:{line}"
                found.append(f"{place}: {mark[1]}: {mark[2]!r} is {right[2]!r}"[:300])
    return found


def main() -> None:
    """Write the numbers, or check them; SystemExit where `--check` finds a wrong one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing, name what is wrong")
    wrong = stale()
    print("\n".join(wrong) or "every number is that of its result file")
    if parser.parse_args().check:
        raise SystemExit(1 if wrong else 0)
    for path in pages():
        text = path.read_text(encoding="utf-8")
        path.write_text(filled(text), encoding="utf-8")


if __name__ == "__main__":
    main()

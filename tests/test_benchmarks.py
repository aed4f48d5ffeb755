"""The benchmark programs: they start, their tables are right, and wrong answers are not timed."""

import importlib
import json
import runpy
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

import lintensor_jax as lt

FOLDER = Path(__file__).parents[1] / "benchmarks"
# The sibling modules that have no command line.
MODULES = ("contraction_costs", "gpu_programs", "measure", "peers", "plots", "sweep_table")
PROGRAMS = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in MODULES)


@pytest.fixture(autouse=True)
def _from_their_folder(monkeypatch):
    """Import as `python benchmarks/name.py` does; remove modules such as "tensor" afterwards."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(FOLDER))
    yield
    for name in set(sys.modules) - before:
        if (FOLDER / f"{name}.py").exists():
            del sys.modules[name]


def module(name) -> Any:
    return importlib.import_module(name)


@pytest.mark.parametrize("name", PROGRAMS)
def test_help(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    assert end.value.code == 0
    assert "usage:" in capsys.readouterr().out


def fake(name, seconds, answer, right, clock, share=1.0):
    """A variant whose calls take these seconds of a fake clock."""
    measure = module("measure")

    def call():
        clock[0] += seconds.pop(0)
        return answer

    def check(found):
        if found != right:
            raise measure.WrongAnswer(f"{name}: {found}")
        return {"answer": found}

    return measure.Variant(name, call, check, share=share)


def test_ratios_are_of_medians_and_compile_time_is_apart(monkeypatch):
    measure, clock = module("measure"), [0.0]
    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(measure.time, "process_time", lambda: 2 * clock[0])
    # The first call compiles. The medians of the other calls are 4 and 0.5 seconds.
    plain = fake("plain", [9.0, 4.0, 100.0, 3.0], 1, 1, clock)
    # A quarter of the lanes in half a second: two seconds for all.
    ours = fake("ours", [0.5, 0.5, 0.1, 9.0], 1, 1, clock, share=0.25)
    rows = measure.compare("sweep", "toy", [plain, ours], 3)
    assert [row["variant"] for row in rows] == ["plain", "ours"]
    assert rows[0]["compile_s"] == 5.0
    assert rows[1]["compile_s"] is None
    assert [row["faster_by_wall"] for row in rows] == [1.0, 2.0]
    assert [row["faster_in_core_time"] for row in rows] == [1.0, 2.0]
    assert all("seconds" not in row for row in rows), "absolute times are for GPUs"


def test_short_calls_are_timed_in_bursts(monkeypatch):
    """The first call of a turn is not timed: its caches hold the data of other variants."""
    measure, clock = module("measure"), [0.0]
    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(measure.time, "process_time", lambda: clock[0])
    short = fake("short", [0.03, 0.01, 0.02], 1, 1, clock)
    wall, _ = measure.medians([short], 1)
    assert wall["short"] == pytest.approx(0.015)


def test_a_wrong_answer_is_not_timed():
    measure, clock = module("measure"), [0.0]
    wrong = fake("wrong", [1.0], 2, 1, clock)
    with pytest.raises(measure.WrongAnswer, match="wrong: 2"):
        measure.compare("sweep", "toy", [wrong], 3, baseline="wrong")
    assert clock[0] == 1.0


def test_tables(tmp_path):
    """Every part has a table with its columns; a problem is named once; numbers: three digits."""
    measure = module("measure")
    rows = [
        {"part": "sweep", "problem": "p", "variant": "plain", "ratio": 1.0, "compile_s": None},
        {"part": "sweep", "problem": "p", "variant": "ours", "ratio": 1234.56, "compile_s": None},
        {"part": "sweep", "problem": "q", "variant": "ours", "ratio": 1.2345e-7, "lanes": 65536},
        {"part": "tensor", "problem": "q", "variant": "ours", "waste": 1.25},
    ]
    about = {"devices": 2, "device": "cpu", "processor": "x", "date": "2026-01-01", "versions": {}}
    table = measure.write(tmp_path, rows, about, ["one lane: nonsense"])
    assert (tmp_path / "table.md").read_text() == table
    assert "2 x cpu (x)" in table
    assert "**Wrong answer, not timed.** one lane: nonsense" in table
    lines = [line for line in table.splitlines() if line.startswith("|")]
    assert lines == [
        "| problem | variant | ratio | lanes |",
        "|---|---|---|---|",
        "| p | plain | 1 |  |",
        "|  | ours | 1,235 |  |",
        "| q | ours | 1.2e-07 | 65,536 |",
        "| problem | variant | waste |",
        "|---|---|---|",
        "| q | ours | 1.25 |",
    ]
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["rows"] == rows
    assert content["wrong"] == ["one lane: nonsense"]


@pytest.mark.parametrize(
    ("name", "size"), [("diagonal", 4), ("convolution", 4), ("fully-connected", 6)]
)
def test_peers_agree_with_the_exact_limit(name, size):
    """SciPy at rtol 1e-10 makes an error of that size in each of 100 steps, and one at the stop."""
    peers = module("peers")
    theta = 0.3 * np.random.default_rng(0).standard_normal((3, size))
    exact = peers.exact_limit(name, theta)
    np.testing.assert_allclose(exact @ peers.X, peers.Y, rtol=0, atol=1e-12)
    found = peers.scipy_dop853(name, theta, 1e-10, 1e-12, 1e-9)
    np.testing.assert_allclose(found, exact, rtol=0, atol=1e-8)
    with pytest.raises(module("measure").WrongAnswer, match="from the limit"):
        module("batched").require_close("SciPy", found + 1e-4, exact, 1e-5)


def test_growth_is_compared_over_the_last_part():
    panels = {("step", "d"): {"diagonal": ([2, 8, 16, 64], [1.0, 5.0, 7.0, 21.0], [2, 8, 16, 64])}}
    (row,) = module("scaling").rows_by_size(panels)
    assert (row["from"], row["to"], row["growth"], row["expected"]) == (16, 64, 3.0, 4.0)
    (row,) = module("scaling").rows_by_size(
        {("compilation", "d"): {"": ([2, 8], [1.0, 2.0], None)}}
    )
    assert row["growth"] == 2.0
    assert "expected" not in row


def test_the_compilation_of_a_step_is_a_curve_of_its_own():
    scaling = module("scaling")
    x = [2, 3]
    steps = [scaling.costs_of_steps("diagonal", d, scaling.BASE_L, scaling.BASE_N, 1)[0] for d in x]
    panels = {("step", "d"): {"diagonal": (x, steps, None)}}
    found = scaling.of_compilation(panels, 1)
    assert list(found) == [("compilation", "d")]
    xs, seconds, expected = found["compilation", "d"]["diagonal"]
    assert (xs, expected) == (x, None)
    assert min(seconds) > 100 * max(steps)


@pytest.mark.parametrize("name", ["diagonal", "convolution", "fully-connected"])
def test_costs_of_contractions(name):
    assert module("contraction_costs").contraction(name, 3, 2, repeats=1) > 0


def test_costs_of_the_dual_velocity():
    costs = module("contraction_costs").dual_velocity(4, 2, repeats=1)
    assert min(costs.values()) > 0
    assert len(costs) == 2


def test_plots(tmp_path):
    plots = module("plots")
    curve = plots.Curve("diagonal", [1, 10], [1.0, 20.0], [1.0, 10.0])
    other = plots.Curve("ours", [1, 10], [1.0, 2.0])
    figure = plots.loglog_figure([plots.Panel("a", "x", "y", [curve, other])])
    assert isinstance(figure, Figure)
    expected = figure.axes[0].lines[1].get_ydata()
    np.testing.assert_allclose(np.asarray(expected), [2.0, 20.0])
    rows = [
        {"problem": "diagonal", "variant": "ours", "cost": 10.0**k, "median_error": 10.0**-k}
        for k in range(3)
    ]
    paths = module("work_precision").draw(rows, tmp_path)
    assert [path.suffix for path in paths] == [".png", ".pdf"]
    assert all(path.stat().st_size > 1000 for path in paths)


def test_every_leave_one_out_way_gives_the_gradient():
    tensor = module("tensor")
    rng = np.random.default_rng(0)
    data, X, y = rng.standard_normal((3, 3, 3, 2)), rng.standard_normal((4, 2)), np.ones(4)
    factors = rng.standard_normal((3, 3))
    expected = tensor.reference(data, X, y, factors)
    for function in tensor.programs(jnp.asarray(data), jnp.asarray(X), jnp.asarray(y)).values():
        found = jax.jit(function)(jnp.asarray(factors))[1]
        np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.slow
def test_a_tiny_run(tmp_path, monkeypatch):
    """One part runs from end to end; it checks every answer."""
    batched, measure = module("batched"), module("measure")
    rows = batched.sweep(measure.Effort(quick=True, repeats=1), "diagonal", 16, with_peers=False)
    table = measure.write(tmp_path, rows, measure.machine())
    assert "ours, one core" in table
    assert [row["variant"] for row in rows][:3] == ["plain", "ours", "ours, one core"]
    assert rows[-1]["within_1e-8"] == "100%"
    assert all(np.isfinite(row["faster_by_wall"]) for row in rows[:3])


@pytest.mark.slow
def test_the_trial_of_the_gpu_command(tmp_path):
    """All parts of `gpu.py` run with few lanes on the CPU, where "machine code" is that of CPUs."""
    rows = module("gpu").run(True, 300.0, tmp_path)
    parts = {row["part"] for row in rows}
    assert parts == {"bounds", "correct", "rates", "classification", "store"}
    assert {row["lanes with equal bits"] for row in rows if row["part"] == "correct"} == {"100%"}
    assert (tmp_path / "table.md").read_text().startswith("# The GPU path, measured on 1 x cpu")


HOSTILE = (
    "networks",
    "problems",
    "potentials",
    "initialization",
    "alignment",
    "max_margin",
    "min_norm",
    "certify",
    "decompositions",
    "TOML",
    "CSV and NPZ",
    "command line",
)


@pytest.mark.slow_beyond(4)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("area", HOSTILE)
def test_hostile_inputs_are_answered_rightly_or_refused(area):
    """A few of the 10,000 cases of `benchmarks/hostile.py`."""
    rows = list(module("hostile").cases_of(area, 0, range(8), 60.0))
    assert not [row for row in rows if row["outcome"].isupper()]
    assert [row for row in rows if row["outcome"] in ("right", "refused")]


def test_hostile_faults_are_seen():
    outcomes = module("hostile_cases.outcomes")

    def outcome(call, judge=lambda found: outcomes.within(found, 1.0, 1e-8), must_answer=False):
        return outcomes.run(outcomes.Case("", call, judge, must_answer)).outcome

    def refused():
        raise lt.FlowError("the flow did not end", None)  # pyright: ignore[reportArgumentType]

    assert outcome(lambda: 1.0 + 1e-9) == "right"
    assert outcome(lambda: 1.0 + 1e-7) == "WRONG"
    assert outcome(lambda: np.nan) == "WRONG"
    assert outcome(lambda: np.ones(2)) == "WRONG"
    assert outcome(lambda: lt.Regression(np.ones((2, 2)), np.ones(3))) == "refused"
    assert outcome(lambda: lt.Regression(np.ones((2, 2)), np.ones(3)), must_answer=True) == "WRONG"
    assert outcome(lambda: np.ones(2) @ np.ones(3)) == "TRACEBACK"  # no argument is named
    assert outcome(lambda: {}["a"]) == "TRACEBACK"
    assert outcome(refused) == "failed"
    assert outcome(refused, must_answer=True) == "WRONG"
    assert outcome(lambda: "abc", outcomes.accepted) == "WRONG"


def test_hostile_hangs_are_ended(monkeypatch):
    hostile = module("hostile")
    catalogue = module("hostile_cases.catalogue")
    case = module("hostile_cases.outcomes").Case

    def endless():
        while True:
            pass

    monkeypatch.setitem(catalogue.AREAS, "networks", lambda rng: case("", endless, lambda _: None))
    rows = list(hostile.cases_of("networks", 0, range(2), 0.05))
    assert [row["outcome"] for row in rows] == ["HANG", "HANG"]
    assert "| networks | 2 |" in hostile.table(rows)


def test_hostile_cases_are_the_same_for_a_seed():
    hostile = module("hostile")
    first, second = (next(iter(hostile.cases_of("problems", 3, [5], 60.0))) for _ in range(2))
    assert first["words"] == second["words"] != ""
    shares = module("hostile_cases.catalogue").shares(["networks", "sweep"], 100)
    assert sum(shares.values()) == 100


def test_an_implicit_step_by_blocks_is_compared_with_a_dense_one():
    implicit_step = module("implicit_step")
    rows = implicit_step.rows_of(2, 20, 5, repeats=1)
    assert [row["variant"] for row in rows] == ["by blocks", "dense"]
    assert rows[1]["from_blocks"] <= implicit_step.CLOSE


def test_sign_descent_tends_to_its_own_margin():
    geometries = module("other_geometries")
    method = geometries.METHODS["sign descent"]
    own, plain, _ = geometries.shares(method, 0, [100, 1_000, 10_000])
    assert (np.diff(own) > 0).all()
    assert 0.95 < own[-1] <= 1 + 1e-12
    assert own[-1] > plain

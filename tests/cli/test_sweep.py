"""The commands for sweeps: plans, runs, resumes, reports; data by path; every kind of mistake."""

import dataclasses
import html
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
import zarr
from sweep_cases import ALPHAS, DIRECTIONS, LANES, PROBLEM, X, Y, axes, contents, start

import lintensor_jax as lt
from lintensor_jax import cli
from lintensor_jax.cli import sweep_words
from lintensor_jax.cli.sweep_words import progress_in_words
from lintensor_jax.sweeps import DistanceToPrediction, Grid, Limit, Progress, figures, write_report
from lintensor_jax.sweeps.report import figures as drawing
from lintensor_jax.sweeps.report import page as report
from lintensor_jax.sweeps.store.status import status

# The sweep of `sweep_cases`, with its shapes and its width.
CONFIG = f"""
seed = 7
[data]
X = {X.tolist()}
y = {Y.tolist()}
[start]
alphas = {ALPHAS.tolist()}
directions = {DIRECTIONS.tolist()}
[record]
lanes_per_chunk = 15
lanes_in_flight = 8
"""


pytestmark = pytest.mark.usefixtures("cache_of_its_own")


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep by the command line: its folder."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "small.toml").write_text(CONFIG)
    assert cli.main(["sweep", str(folder / "small.toml"), "--out", str(folder / "out")]) == 0
    return folder / "out"


def printed(capsys, *arguments):
    capsys.readouterr()
    assert cli.main([*map(str, arguments), "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return json.loads(captured.out)


def refused(capsys, *arguments):
    capsys.readouterr()
    assert cli.main([*map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_sweep_status_and_resume_print_json(swept, capsys):
    out = printed(capsys, "status", swept)
    assert out["complete"] is True
    assert (out["finished_lanes"], out["statuses"]) == (60, {"residual": 60})
    assert out["writers"] == []
    assert out["waste"] >= 1
    (swept / "limit" / "c" / "2" / "0" / "0").unlink()
    assert printed(capsys, "status", swept)["damaged"] == {"2": "limit/c/2/0/0 (missing)"}
    assert cli.main(["status", str(swept)]) == 0
    out = capsys.readouterr().out
    assert "45 of 60 done (75%)" in out
    assert f"lintensor-jax resume {swept}" in out
    # The store contains its grid, so the folder is the only argument.
    out = printed(capsys, "resume", swept)
    assert out["complete"] is True
    assert out["wrote"] == [str(swept)]
    assert cli.main(["resume", str(swept), "--quiet"]) == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")
    results = xr.open_zarr(swept, chunks=None)
    assert json.loads(results.attrs["config"])["start"]["alphas"] == ALPHAS.tolist()
    np.testing.assert_allclose(
        results.limit @ xr.DataArray(X[0], dims="coefficient"), 1, rtol=0, atol=1e-9
    )


def test_figures_need_only_the_store(swept, tmp_path):
    # After a finish a loss is 0 or rounding; this test sets all to 0.
    swept = shutil.copytree(swept, tmp_path / "store")
    stored: Any = zarr.open_group(swept)["log_loss"]
    stored[...] = -np.inf
    drawn = figures(swept)
    labels = [axes.get_ylabel() for axes in drawn["observables"].axes]
    # The logarithm of 0 is not finite, and a note says this.
    shown = ["invariant drift", "largest invariant\n(squared parameters)"]
    assert labels == [*shown, "natural log of\nthe parameters' norm", "natural log of the time"]
    note = drawn["observables"].get_suptitle()
    assert note == "Not shown, as most values are not finite: natural log of the loss (log of 0)"
    assert drawn["observables"].axes[0].get_xscale() == "log"
    (steps,) = drawn["steps"].axes
    results = xr.open_zarr(swept, chunks=None)
    # Each of the five directions has a line and a colour.
    for line, direction in zip(steps.lines, range(5), strict=True):
        np.testing.assert_array_equal(line.get_ydata(), results.num_steps.isel(direction=direction))
    assert list(drawn) == ["limit", "observables", "steps"]
    for coefficient, panel in enumerate(drawn["limit"].axes):
        assert panel.get_ylabel() == rf"limit $\beta_{{{coefficient + 1}}}$"
        for line, direction in zip(panel.lines, range(5), strict=True):
            limit = results.limit.isel(direction=direction, coefficient=coefficient)
            np.testing.assert_array_equal(line.get_ydata(), limit)


@pytest.mark.slow
def test_figures_are_files(swept, tmp_path, capsys):
    written = printed(capsys, "plot", swept, "--out", tmp_path)["wrote"]
    assert [path.rpartition("/")[2] for path in written] == [
        "limit.png",
        "limit.pdf",
        "observables.png",
        "observables.pdf",
        "steps.png",
        "steps.pdf",
    ]


@pytest.mark.slow
def test_the_report_is_one_file_with_all_in_it(swept, tmp_path, capsys):
    (path,) = printed(capsys, "report", swept, "--out", tmp_path / "new" / "a.html")["wrote"]
    page = (tmp_path / "new" / "a.html").read_text()
    assert path == str(tmp_path / "new" / "a.html")
    assert "Theorem 6" in page
    assert page.count("data:image/png;base64,") == 6  # three figures, wide and narrow
    assert page.index("<h2>Figures") < page.index("<h2>Theorems") < page.index("<h2>Size")
    assert "<h1>Gradient flows of linear tensor networks, swept over α, direction</h1>" in page
    assert "The coefficients of the limits over α." in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    row = re.search(
        r"<td>Theorem 6</td><td>exact</td><td>24</td><td>(\S+)</td><td>(\S+)</td>", page
    )
    assert row is not None
    assert float(row[2]) < 1e-8


@pytest.mark.slow
def test_a_report_of_functions_of_a_user_and_of_lanes_that_failed(tmp_path):
    def broken(point):
        return start(point).scaled(jnp.where(point.alpha > 0.9, jnp.nan, 1.0))

    grid = Grid(axes(), broken, PROBLEM)
    chosen = [Limit(), DistanceToPrediction()]
    results = lt.sweep(grid, tmp_path / "s", observables=chosen, **LANES)
    failed = np.isnan(results.distance_to_prediction).values
    np.testing.assert_array_equal(failed, np.broadcast_to(ALPHAS[:, None] > 0.9, (12, 5)))
    assert (results.distance_to_prediction.values[~failed] < 1e-8).all()
    page = write_report(tmp_path / "s").read_text()
    assert "which the store cannot hold" in page
    assert page.count("<td>bad_input</td>") == 5
    assert "α = 1.0, direction = 4" in page
    assert "Theorem 6" in write_report(tmp_path / "s", grid=grid).read_text()


@pytest.mark.slow
def test_report_and_figures_lie_in_visible_folders_that_xarray_ignores(swept, monkeypatch, capsys):
    def steps(path, columns=2):  # slow tests draw the other figures
        return {"steps": figures(path, columns)["steps"]}

    for module in (drawing, report):
        monkeypatch.setattr(module, "figures", steps)
    before, listed = contents(swept), set(xr.open_zarr(swept, consolidated=False))
    written = printed(capsys, "plot", swept)["wrote"]
    written += printed(capsys, "report", swept)["wrote"]
    assert {Path(path).relative_to(swept).parts[0] for path in written} == {"figures", "report"}
    assert all(Path(path).stat().st_size > 1000 for path in written)
    after = contents(swept)
    assert {name: after[name] for name in before} == before
    # Warnings are errors here, for example that of a folder that is not an array.
    for consolidated in (True, False):
        assert set(xr.open_zarr(swept, consolidated=consolidated)) == listed
        group = zarr.open_group(swept, mode="r", use_consolidated=consolidated)
        arrays = {name for name, _ in group.arrays()}
        assert arrays == {*listed, "alpha", "direction", "direction_value", "coefficient"}
    assert printed(capsys, "resume", swept)["complete"] is True
    sound = printed(capsys, "verify", swept)
    assert (sound["sound"], sound["unchecked"]) == (True, [])
    configured = (swept / "report" / "report.html").read_text().partition("Configuration")[2]
    assert f"<pre>{html.escape(CONFIG)}</pre>" in configured
    assert "<td>flow.max_steps</td><td>4096</td>" in configured
    assert "null" not in configured


def test_a_dry_run_plans_and_writes_nothing(tmp_path, capsys):
    (tmp_path / "small.toml").write_text(CONFIG)
    out = tmp_path / "out"
    plan = printed(capsys, "sweep", tmp_path / "small.toml", "--dry-run", "--out", out)
    assert plan["lanes"] == 60
    assert plan["dimensions"] == {"alpha": 12, "direction": 5}
    assert plan["chunks"] == 4
    assert plan["compilations"] == plan["shapes"] * plan["devices"] == 1
    # 5 + 2 numbers of 8 bytes (the limit has two), num_steps of 4, two codes; and the coordinates.
    assert plan["disk_bytes"] == 60 * (5 * 8 + 2 * 8 + 4 + 2) + 8 * (12 + 10)
    assert not out.exists()
    assert cli.main(["sweep", str(tmp_path / "small.toml"), "--dry-run", "--out", str(out)]) == 0
    assert "60 (alpha 12 x direction 5)" in capsys.readouterr().out


def test_another_config_in_the_same_folder_is_refused(swept, tmp_path, capsys):
    (tmp_path / "small.toml").write_text(CONFIG)
    message = refused(capsys, "sweep", tmp_path / "small.toml", "--out", swept)
    assert "holds this sweep already, and it is finished; lintensor-jax report" in message
    assert "--out" in message
    chunk = swept / ".sweep" / "chunks" / "00000002.json"
    chunk.rename(tmp_path / chunk.name)
    message = refused(capsys, "sweep", tmp_path / "small.toml", "--out", swept)
    assert f"3 of 4 chunks are finished; lintensor-jax resume {swept} computes" in message
    (tmp_path / chunk.name).rename(chunk)
    (tmp_path / "small.toml").write_text(CONFIG.replace("seed = 7", "seed = 8"))
    message = refused(capsys, "sweep", tmp_path / "small.toml", "--out", swept)
    assert "holds another sweep, which differs in seed; choose another folder" in message
    assert "holds no sweep" in refused(capsys, "status", tmp_path)
    assert "holds no sweep" in refused(capsys, "resume", tmp_path / "absent")
    assert "no such file" in refused(capsys, "sweep", tmp_path / "absent.toml")
    assert "--devices: must be" in refused(capsys, "resume", swept, "--devices", 0)


def test_progress_in_words():
    progress = Progress(lanes=500, total=2000, failed=3, rate=100.0, workers=2)
    assert progress_in_words(progress) == (
        "500 of 2,000 lanes, 100/s, 00:00:15 left, 2 workers, 3 failed"
    )
    assert "compiling" in progress_in_words(Progress(0, 10, 0, 0.0))


def test_a_log_has_a_line_now_and_then(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(sweep_words.time, "monotonic", lambda: now[0])
    with sweep_words.shown_progress(False) as watch:
        assert watch is not None
        for now[0] in range(26):
            watch(Progress(lanes=4 * now[0], total=100, failed=1, rate=4.0))
    first, *others, last = capsys.readouterr().err.splitlines()
    assert first.startswith("0 of 100 lanes")
    assert [line.partition(",")[0] for line in others] == ["40 of 100 lanes", "80 of 100 lanes"]
    assert last == "100 of 100 lanes done in 00:00:25, 1 failed"
    with sweep_words.shown_progress(True) as watch:
        assert watch is None


@pytest.mark.parametrize("command", ["plot", "report"])
def test_help_says_which_figures_are_drawn(command, capsys):
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    words = capsys.readouterr().out
    assert [name for name in drawing.CAPTIONS if f"({name})" not in words] == []


@pytest.mark.parametrize(
    "command", ["sweep", "resume", "work", "status", "verify", "plot", "report"]
)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main([command, "--help"])
    assert caught.value.code == 0
    assert "--json" in capsys.readouterr().out


def test_the_package_does_not_import_storage():
    program = (
        "import sys, lintensor_jax; print([m for m in ('xarray', 'zarr', 'pandas', 'numcodecs', "
        "'matplotlib', 'rich', 'tomllib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_a_status_without_checking_files(swept):
    state = status(swept, verify=False)
    assert state.finished_lanes == 60
    assert str(state).startswith(f"Sweep in {swept}: finished\n  lanes       60 of 60 done (100%)")
    assert "a lane is one flow" in str(state)
    assert "a chunk is some lanes" in str(state)
    broken = dataclasses.replace(state, finished_chunks=3, damaged={2: "limit/2.0.0"})
    assert "limit/2.0.0" in str(broken)
    assert f"lintensor-jax resume {swept} computes it again" in str(broken)
    begun = dataclasses.replace(state, finished_chunks=3)
    assert f"lintensor-jax resume {swept} computes the rest" in str(begun)
    claim = {"pid": 7, "host": "there", "chunk": 3}
    busy = dataclasses.replace(begun, writers=[claim, {**claim, "pid": 8}])
    assert "being computed by process 7 on there and 1 more" in str(busy)
    torn = dataclasses.replace(state, damaged_labels=["alpha/c/0"])
    assert not torn.complete
    assert "alpha/c/0" in str(torn)
    assert "resume" not in str(busy)

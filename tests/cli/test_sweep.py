"""The commands about sweeps: plans, runs, resumes, reports; data by path; every kind of mistake."""

import dataclasses
import html
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import diffrax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
import zarr
from sweep_cases import ALPHAS, DIRECTIONS, LANES, PROBLEM, X, Y, axes, contents, start

import lintensor_jax as lt
from lintensor_jax import cli
from lintensor_jax.cli import sweep as sweep_commands
from lintensor_jax.cli.sweep import progress_in_words
from lintensor_jax.config import ConfigError
from lintensor_jax.sweeps import DistanceToPrediction, Grid, Limit, Progress, figures, write_report
from lintensor_jax.sweeps.from_toml import configuration, data_files
from lintensor_jax.sweeps.from_toml.data_files import read_data
from lintensor_jax.sweeps.from_toml.recipes import ARCHITECTURES, INITIALIZATIONS
from lintensor_jax.sweeps.grid import Cell
from lintensor_jax.sweeps.report import figures as drawing
from lintensor_jax.sweeps.report import page as report
from lintensor_jax.sweeps.store.status import status

CONFIGS = sorted(Path(__file__).parents[2].glob("configs/sweep-*.toml"))
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


def read(tmp_path, text):
    path = tmp_path / "sweep.toml"
    path.write_text(text)
    return configuration.read(path)


def test_sweep_status_and_resume_print_json(swept, capsys):
    out = printed(capsys, "status", swept)
    assert out["complete"] is True
    assert (out["finished_lanes"], out["statuses"]) == (60, {"residual": 60})
    assert out["writer"] is None
    assert out["waste"] >= 1
    (swept / "limit" / "2.0.0").unlink()
    assert printed(capsys, "status", swept)["damaged"] == {"2": "limit/2.0.0 (missing)"}
    assert cli.main(["status", str(swept)]) == 0
    out = capsys.readouterr().out
    assert "45 of 60 done (75%)" in out
    assert f"lintensor-jax resume {swept}" in out
    # The store knows its grid: nothing but the folder is needed.
    out = printed(capsys, "resume", swept)
    assert out["complete"] is True
    assert out["wrote"] == [str(swept)]
    results = xr.open_zarr(swept, chunks=None)
    assert json.loads(results.attrs["config"])["start"]["alphas"] == ALPHAS.tolist()
    np.testing.assert_allclose(
        results.limit @ xr.DataArray(X[0], dims="coefficient"), 1, rtol=0, atol=1e-9
    )


def test_figures_need_only_the_store(swept, tmp_path):
    # After a finish a loss is 0 or the rounding of one: here all are 0.
    swept = shutil.copytree(swept, tmp_path / "store")
    stored: Any = zarr.open_group(swept)["log_loss"]
    stored[...] = -np.inf
    drawn = figures(swept)
    labels = [axes.get_ylabel() for axes in drawn["observables"].axes]
    # The logarithm of 0 is not finite: a note says so.
    shown = ["invariant drift", "largest invariant\n(squared parameters)"]
    assert labels == [*shown, "natural log of\nthe parameters' norm", "natural log of the time"]
    note = drawn["observables"].get_suptitle()
    assert note == "Not shown, as most values are not finite: natural log of the loss (log of 0)"
    assert drawn["observables"].axes[0].get_xscale() == "log"
    (steps,) = drawn["steps"].axes
    results = xr.open_zarr(swept, chunks=None)
    # Five directions have five colours: a line each.
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
    assert page.count("data:image/png;base64,") == 3
    assert "<h1>Gradient flows of linear tensor networks, swept over alpha, direction</h1>" in page
    assert "The coefficients of the limits over alpha." in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    row = re.search(
        r"<td>Theorem 6</td><td>exact</td><td>24</td><td>(\S+)</td><td>(\S+)</td>", page
    )
    assert row is not None
    assert float(row[2]) < 1e-8


@pytest.mark.slow
def test_a_report_of_ones_own_functions_and_of_lanes_that_failed(tmp_path):
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
    assert "alpha = 1.0, direction = 4" in page
    assert "Theorem 6" in write_report(tmp_path / "s", grid=grid).read_text()


def test_report_and_figures_lie_in_visible_folders_that_xarray_ignores(swept, monkeypatch, capsys):
    for module in (drawing, report):  # the others are drawn by slow tests
        monkeypatch.setattr(module, "figures", lambda path: {"steps": figures(path)["steps"]})
    before, listed = contents(swept), set(xr.open_zarr(swept, consolidated=False))
    written = printed(capsys, "plot", swept)["wrote"]
    written += printed(capsys, "report", swept)["wrote"]
    assert {Path(path).relative_to(swept).parts[0] for path in written} == {"figures", "report"}
    assert all(Path(path).stat().st_size > 1000 for path in written)
    after = contents(swept)
    assert {name: after[name] for name in before} == before
    # Warnings, as of a thing that is no array, are errors here.
    for consolidated in (True, False):
        assert set(xr.open_zarr(swept, consolidated=consolidated)) == listed
        group = zarr.open_group(swept, mode="r", use_consolidated=consolidated)
        arrays = {name for name, _ in group.arrays()}
        assert arrays == {*listed, "alpha", "direction", "direction_value"}
    assert printed(capsys, "resume", swept)["complete"] is True
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
    # Six numbers of 8 bytes, a limit of two, num_steps of 4, two codes; and the coordinates.
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


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configurations_are_sweeps(path):
    *_, options = configuration.read(path)
    assert options.observables


@pytest.mark.slow
@pytest.mark.parametrize("initialization", INITIALIZATIONS)
def test_every_recipe_starts_a_network(tmp_path, initialization):
    names = [n for n in ARCHITECTURES if n in ("diagonal", "convolutional", "fully-connected")]
    _, grid, _ = read(
        tmp_path,
        f"""
        [network]
        architecture = {names}
        depth = [2, 3]
        [data]
        num_samples = 2
        dimension = [3, 4]
        seed = [0, 1]
        [start]
        initialization = "{initialization}"
        num_alphas = 2
        num_directions = 2
        num_repeats = 2
        """,
    )
    assert grid.size == 3 * 2 * 2 * 2 * 2 * 2
    for cell, lane in list(grid.cells())[::5]:
        network, problem = Cell(grid, lane).example()
        assert network.linear_coefficients().shape == (cell[2],) == problem.coefficient_shape


def test_data_by_path(tmp_path):
    data = np.random.default_rng(1).standard_normal((3, 2))
    np.savez(tmp_path / "data.npz", X=data, y=data[:, 0])
    lines = [",".join(map(str, [*row, row[0]])) for row in data.tolist()]
    (tmp_path / "data.csv").write_text("\n".join(["a,b,target", *lines]))
    for name in ("data.npz", "data.csv"):
        _, grid, _ = read(tmp_path, f'[data]\npath = "{name}"\n')
        np.testing.assert_array_equal(grid.problem.X, data)  # pyright: ignore
        np.testing.assert_array_equal(grid.problem.y, data[:, 0])  # pyright: ignore
    np.savez(tmp_path / "other.npz", x=data)
    (tmp_path / "text.csv").write_text("1,2\n3,four\n")
    for path, message in {
        "absent.csv": "no such file",
        "other.npz": "must have arrays X and y, got x",
        "text.csv": r"finite number in every cell: .*row 2, column 2, got 'four'",
        "data.txt": r"must end in \.npz or \.csv",
    }.items():
        with pytest.raises(ConfigError, match=f"sweep.toml: data.path.*{message}"):
            read(tmp_path, f'[data]\npath = "{path}"\n')


@pytest.mark.parametrize(
    ("text", "key", "message"),
    [
        ("seed = 1", "data", "must be given"),
        ("[data]", "data.path", "must be the only source of data.*got nothing"),
        ('[data]\npath = "a.npz"\nnum_samples = 3', "data.num_samples", "only source"),
        ("[data]\nX = [[1, 2]]", "data.y", "together with X"),
        ("[data]\nX = [[1, 2], [3]]\ny = [1, 2]", r"data.X\[1\]", "must have 2 entries"),
        ("[data]\nX = [[1, 2]]\ny = [1, 2]", "data.X", "one row per sample"),
        ("[data]\nnum_samples = 3", "data.dimension", "together with num_samples"),
        ("[data]\nnum_samples = 3\ndimension = 2\nseed = [1, 1]", "data.seed", "not repeat"),
        ('[network]\narchitecture = "diagnal"', "network.architecture", 'mean "diagonal"'),
        ("[network]\ndepth = [2, 1]", r"network.depth\[1\]", ">= 2, got 1"),
        ("[start]\nalphas = [0.1, -1]", r"start.alphas\[1\]", "finite number > 0"),
        ("[start]\ntogether = 1", "start.together", "true or false"),
        ('[record]\nobservables = ["limits"]', r"record.observables\[0\]", 'mean "limit"'),
        ("[flow]\nresidual = 1e-3\nmargin = 3.0", "flow.margin", "only stop"),
        ("[flow]\nrtol = 0", "flow.rtol", "must be a finite number > 0"),
    ],
)
def test_mistakes_in_a_file_are_named(tmp_path, text, key, message):
    with pytest.raises(ConfigError, match=rf"sweep\.toml: {key}.*{message}"):
        read(tmp_path, text)


CSV = {  # the content of a file; None if it is read, else the row and the column that are named
    "a,b,y\n1,2,3\n": None,
    "1,,3\n4,5,6\n": (1, 2),
    "1,2,3\n4,nan,6\n": (2, 2),
    "nan,nan,nan\n4,5,6\n": (1, 1),
    "x1,2,y\n4,5,6\n": (1, 1),
    "1,2\n\n3,1_000\n": (3, 2),
    ",,\n1,2,3\n": (1, 1),
    "1,2,0x3\n": (1, 3),
    "1,2,1e999\n": (1, 3),
}


@pytest.mark.parametrize("text", CSV)
def test_a_row_of_headings_has_no_numbers_and_every_other_row_has_only_numbers(tmp_path, text):
    (tmp_path / "data.csv").write_text(text)
    if CSV[text] is None:
        np.testing.assert_array_equal(read_data(tmp_path / "data.csv")[0], [[1, 2]])
        return
    with pytest.raises(ConfigError, match="row {}, column {}, got".format(*CSV[text])):
        read_data(tmp_path / "data.csv")


def test_arrays_that_are_no_numbers_and_files_that_are_no_archives(tmp_path, monkeypatch):
    np.savez(tmp_path / "words.npz", X=np.array([["a"]]), y=np.array(["b"]))
    np.savez(tmp_path / "objects.npz", X=np.array([[{}]], object), y=np.ones(1))
    np.savez(tmp_path / "complex.npz", X=np.array([[1j]]), y=np.ones(1))
    (tmp_path / "no.npz").write_bytes(b"PK no archive")
    (tmp_path / "short.csv").write_text("1,2\n3\n")
    (tmp_path / "quote.csv").write_text('"' + "1" * 200_000)
    for name, message in {
        "words.npz": "arrays of real numbers, got X of dtype",
        "objects.npz": "cannot be read",
        "complex.npz": "real numbers, got X",
        "no.npz": "cannot be read",
        "short.csv": "2 numbers in every row: .*row 2, got 1",
        "quote.csv": "cannot be read",
    }.items():
        with pytest.raises(ConfigError, match=message):
            read_data(tmp_path / name)
    np.savez(tmp_path / "large.npz", X=np.ones((3, 2)), y=np.ones(3))
    monkeypatch.setattr(data_files, "_MOST_BYTES", 100)
    with pytest.raises(ConfigError, match="arrays of at most 100 bytes, got X of"):
        read_data(tmp_path / "large.npz")


DATA = "[data]\nX = [[1, 2]]\ny = [1]\n"
RANDOM = "[data]\nnum_samples = 2\ndimension = "


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (RANDOM + "1000000000000", "data.dimension must be .* <= 10000000, got 1000000000000;"),
        (RANDOM + "10000000\n[network]\ndepth = 99", r"network.depth gives networks of 9.9e\+08"),
        ("[data]\nnum_samples = 9999999\ndimension = 99", "data.dimension times num_samples"),
        (RANDOM + "9\n[network]\narchitecture = 'fully-connected'\nwidth = 99999\ndepth = 3",
         "network.width gives"),
        (DATA + "[start]\nnum_alphas = 100000000000", "start.num_alphas must be .*<= 10000000"),
        (DATA + "[start]\nnum_alphas = 1e11", "start.num_alphas must be .*got 100000000000.0"),
        (DATA + "[start]\nnum_alphas = 9999999\nnum_directions = 9999", "at most 2.32 - 1 lanes"),
        (DATA + "[start]\nnum_directions = 9999999\ndirections = 3", "directions must be a list"),
        (RANDOM + "99\n[start]\nnum_directions = 9999999", "start.num_directions times the dim"),
        (DATA + "[start]\nalpha_to = 0.001", "start.alpha_to must differ from alpha_from"),
        (DATA + "seed = " + "9" * 5000, "is no configuration: .*ValueError"),
        (DATA + "[start]\nalphas = [" + "9" * 400 + "]", r"alphas\[0\] must be a .*400 characters"),
        (DATA + "[start]\nalphas = " + "[" * 5000 + "]" * 5000, "no configuration: .*Recursion"),
        (DATA + "[start]\nalphas = " + "[" * 90 + "]" * 90, r"alphas\[0\] must be a finite"),
        (DATA + 'loss = "logistic"', "data.loss must be one of regression: squared, huber"),
        (DATA + 'loss = "huber"', "data.loss_parameter must be given, the delta of huber"),
        (DATA + "loss_parameter = 1", "data.loss_parameter needs a loss"),
        (DATA + '[flow]\nclock = "time"', 'flow.clock must be one of physical-time.*"loss-time"'),
    ],
)  # fmt: skip
def test_sizes_and_choices_that_cannot_be_are_refused_in_one_line(tmp_path, text, words, capsys):
    (tmp_path / "c.toml").write_text(text)
    message = refused(capsys, "sweep", tmp_path / "c.toml", "--dry-run", "--out", tmp_path / "o")
    assert re.search(words, message), message
    assert len(message) < 400


def test_stop_clock_solver_loss_width_and_references_by_name(tmp_path):
    text = """
        [network]
        architecture = "fully-connected"
        width = [2, 5]
        [data]
        task = "classification"
        loss = "logistic"
        X = [[1, 2], [0, -3]]
        y = [1, -1]
        [start]
        alphas = [0.5]
        num_directions = 1
        [flow]
        margin = 20.0
        time = 1e30
        clock = "loss-time"
        solver = "tsit5"
        atol = 1e-12
        [record]
        observables = ["distance_to_max_margin_l2", "distance_to_max_margin_l1"]
        """
    _, grid, options = read(tmp_path, text)
    assert isinstance(grid.problem, lt.Classification)
    assert grid.problem.margin_loss == lt.LogisticLoss()
    assert str(options.stop) == str(lt.StopAtMargin(20.0) | lt.StopAtTime(1e30))
    assert options.clock == lt.LossTime()
    assert options.solver == diffrax.Tsit5()
    assert options.atol == 1e-12
    shapes = {len(Cell(grid, lane).example()[0].weights[0][0]) for _, lane in grid.cells()}
    assert shapes == {2, 5}
    results = lt.sweep(grid, observables=options.observables, stop=lt.StopAtMargin(1e6))
    # Yun et al. 2021: fully-connected networks tend to the l2 maximum margin, here (1, 2)/sqrt 5;
    # the l1 maximum margin is (0, 1).
    apart = np.hypot(1 / 5**0.5, 2 / 5**0.5 - 1)
    np.testing.assert_allclose(results.distance_to_max_margin_l2, 0, rtol=0, atol=1e-3)
    np.testing.assert_allclose(results.distance_to_max_margin_l1, apart, rtol=0, atol=1e-3)
    assert results.status.sizes == {"width": 2, "alpha": 1, "direction": 1}


def test_regression_with_a_loss_and_the_least_norm(tmp_path):
    names = ["distance_to_min_norm_l2", "distance_to_min_norm_l1"]
    _, grid, options = read(
        tmp_path,
        f"""
        [network]
        depth = 2
        [data]
        loss = "huber"
        loss_parameter = 5.0
        num_samples = [1, 2]
        dimension = 3
        [start]
        alphas = [1e-3]
        num_directions = 1
        [record]
        observables = {names}
        """,
    )
    results = lt.sweep(grid, observables=options.observables, **LANES)
    # A small start of a diagonal network: near the least l1 norm, not the least l2 norm.
    assert (results.distance_to_min_norm_l1 < 0.05).all()
    assert (results.distance_to_min_norm_l2 > 0.05).all()
    with pytest.raises(ValueError, match="DistanceToMaxMargin is for Classification"):
        lt.sweep(grid, observables=lt.sweeps.DistanceToMaxMargin())
    with pytest.raises(ValueError, match=r"norm must be L1Norm\(\) or L2Norm\(\), got"):
        lt.sweeps.DistanceToMinNorm(lt.NuclearNorm())


def test_paired_axes_need_one_length(tmp_path):
    base = "[data]\nX = [[1, 2]]\ny = [1]\n[start]\ntogether = true\nnum_alphas = 3\n"
    with pytest.raises(ConfigError, match=r"start\.together needs as many directions as scales"):
        read(tmp_path, base + "num_directions = 4")
    _, grid, _ = read(tmp_path, base + "num_directions = 3")
    assert grid.size == 3
    with pytest.raises(ConfigError, match=r"start\.directions\[0\] must have 2 entries"):
        read(tmp_path, base + "directions = [[1, 2, 3]]")


def test_progress_in_words():
    progress = Progress(lanes=500, total=2000, failed=3, waiting=2, rate=100.0)
    assert progress_in_words(progress) == (
        "500 of 2,000 lanes, 100/s, 00:00:15 left, 2 waiting for the stiff path, 3 failed"
    )
    assert "compiling" in progress_in_words(Progress(0, 10, 0, 0, 0.0))


def test_a_log_has_a_line_now_and_then(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(sweep_commands.time, "monotonic", lambda: now[0])
    with sweep_commands._watched(False) as watch:
        assert watch is not None
        for now[0] in range(26):
            watch(Progress(lanes=4 * now[0], total=100, failed=1, waiting=0, rate=4.0))
    first, *others, last = capsys.readouterr().err.splitlines()
    assert first.startswith("0 of 100 lanes")
    assert [line.partition(",")[0] for line in others] == ["40 of 100 lanes", "80 of 100 lanes"]
    assert last == "100 of 100 lanes done in 00:00:25, 1 failed"
    with sweep_commands._watched(True) as watch:
        assert watch is None


@pytest.mark.parametrize("command", ["plot", "report"])
def test_help_says_which_figures_are_drawn(command, capsys):
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    words = capsys.readouterr().out
    assert [name for name in drawing.WORDS if f"({name})" not in words] == []


@pytest.mark.parametrize("command", ["sweep", "resume", "status", "plot", "report"])
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
    busy = dataclasses.replace(begun, writer={"pid": 7, "host": "there"})
    assert "being computed by process 7 on there" in str(busy)
    assert "resume" not in str(busy)

"""The command line: a whole quick run with its numbers and files, and every kind of mistake."""

import dataclasses
import io
import json
import math
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from PIL import Image

import lintensor_jax as lt
from lintensor_jax import cli, experiments
from lintensor_jax.cli import reproduce, terminal
from lintensor_jax.experiments import EXPERIMENTS, framework
from lintensor_jax.experiments.formats import vector
from lintensor_jax.experiments.report import Check, Column, Report, Table, worst_of
from lintensor_jax.experiments.yun2021.figures_1_and_3.configuration import Configuration
from lintensor_jax.experiments.yun2021.figures_1_and_3.run import resampled
from lintensor_jax.experiments.yun2021.figures_1_and_3.setup import initial_directions

CACHE_OPTIONS = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """Use a temporary cache, as the command line turns JAX's cache on; turn it off afterwards."""
    before = {name: getattr(jax.config, name) for name in CACHE_OPTIONS}
    folder = tmp_path_factory.mktemp("cache")
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """(exit code, standard output, standard error, folder) of one quick run."""
    folder = tmp_path_factory.mktemp("yun2021")
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        code = cli.main(["reproduce", "yun2021", "--quick", "--json", "--out", str(folder)])
    return code, out.getvalue(), err.getvalue(), folder


def test_a_quick_run_passes_and_prints_only_json(result):
    code, out, err, folder = result
    assert code == 0, err
    assert err == ""
    printed = json.loads(out)
    stored = json.loads((folder / "results.json").read_text())
    assert printed.pop("wrote") == [
        str(folder / name)
        for name in (
            "table.md",
            "results.json",
            "figure1.png",
            "figure1.pdf",
            "figure3.png",
            "figure3.pdf",
            "directions.png",
            "directions.pdf",
        )
    ]
    assert printed == stored
    assert stored["passed"] is True
    assert "20,000 instead of 2,000,000 steps" in stored["reduced"][0]
    assert stored["versions"]["lintensor_jax"] == lt.__version__
    assert stored["versions"]["jax"] == jax.__version__


def test_a_second_run_finds_the_flows_compiled(result, cache):
    # JAX's cache does not keep a program with a callback (a run-time check, a progress meter).
    assert result[0] == 0
    flows = {path.name for path in cache.rglob("jit_lane-*-cache")}
    assert len(flows) == 6


def _runs(result, task):
    rows = json.loads((result[3] / "results.json").read_text())["tables"][task]
    assert len(rows) == 36
    assert {row["alpha"] for row in rows} == {0.01, 0.5, 1.0}
    return rows


def test_all_regression_limits_agree_with_theorem_6(result):
    for row in _runs(result, "regression"):
        assert math.dist(row["reached"], row["predicted"]) <= 1e-8
        # The limit must interpolate the sample: 1 beta_1 + 2 beta_2 = 1.
        assert abs(row["reached"][0] + 2 * row["reached"][1] - 1) < 1e-9
        assert row["status"] == "residual"
        # The invariants are conserved to 100 rtol, as in every flow of the package.
        assert row["invariant_drift"] <= 1e-8
        # The paper's steps of 1e-3 follow the flow with an error of about 1e-3.
        assert row["descent_distance"] < 5e-3


def test_all_classification_directions_agree_with_the_maximum_margin(result):
    # Yun et al. 2021, section 6: the directions of [0.2, 0.4], [0, 0.5] and [1/3, 1/3].
    expected = {"fully-connected": (1, 2), "diagonal": (0, 1), "convolutional": (1, 1)}
    for row in _runs(result, "classification"):
        vector = expected[row["architecture"]]
        unit = [entry / math.hypot(*vector) for entry in vector]
        assert math.dist(row["predicted"], unit) < 1e-6
        assert math.dist(row["reached"], unit) <= 1e-3
        assert row["num_steps"] <= 200
        assert row["status"] == "margin"
        assert row["log10_margin"] >= 8


def test_at_the_papers_loss_the_directions_still_depend_on_the_start(result):
    rows = [row for row in _runs(result, "classification") if row["alpha"] == 1.0]
    for architecture in ("fully-connected", "diagonal", "convolutional"):
        distances = [r["paper_loss_distance"] for r in rows if r["architecture"] == architecture]
        assert max(distances) > 0.05
        assert max(distances) - min(distances) > 0.03


def test_curves_between_saved_steps_are_smooth_and_pass_through_them():
    times = np.array([0.0, 0.1, 0.25, 0.3, 0.5, 0.75, 1.0])
    # Slopes come from parabolas, so they and the cubics between points are exact for a parabola.
    values = np.stack([times**2, 1 - 3 * times], axis=1)
    curve = resampled(times, values, 61)
    np.testing.assert_allclose(curve[::10], values, rtol=0, atol=1e-14)
    np.testing.assert_allclose(curve[:, 0], ((1 - curve[:, 1]) / 3) ** 2, rtol=0, atol=1e-14)
    # A flow that ends at once has one or two points.
    np.testing.assert_array_equal(resampled(times[:1], values[:1], 3), values[[0, 0, 0]])
    np.testing.assert_array_equal(resampled(times[:2], values[:2], 2), values[:2])


def test_directions_are_spread_and_belong_to_their_seed():
    z = initial_directions(8, seed=1)
    sectors = np.floor(np.arctan2(z[:, 1], z[:, 0]) % (2 * np.pi) / (np.pi / 4))
    np.testing.assert_array_equal(sectors, np.arange(8))
    np.testing.assert_array_equal(z, initial_directions(8, seed=1))
    assert not np.array_equal(z, initial_directions(8, seed=2))


def test_all_architectures_start_at_the_same_coefficients(result):
    for task in ("regression", "classification"):
        starts = {}
        for row in _runs(result, task):
            starts.setdefault((row["alpha"], row["direction"]), set()).add(tuple(row["start"]))
        assert len(starts) == 12
        assert all(len(values) == 1 for values in starts.values())


def test_the_markdown_holds_every_run(result):
    text = (result[3] / "table.md").read_text()
    assert text.count("| convolutional |") == 1 + 1 + 24
    assert "Reduced run: " in text
    assert text.count("- passed: ") == 5


def test_the_figures_are_pictures(result):
    folder = result[3]
    for name in ("figure1", "figure3"):
        with Image.open(folder / f"{name}.png") as picture:
            assert min(picture.size) > 700
            # Not blank: the three architectures' colours are there.
            colours = picture.convert("RGB").getcolors(1 << 20)
        assert colours is not None
        expected = {(0, 114, 178), (213, 94, 0), (0, 158, 115)}
        assert expected <= {colour for _, colour in colours}
        assert (folder / f"{name}.pdf").read_bytes().startswith(b"%PDF")


@pytest.fixture
def one_line_error(capsys):
    """Run a command that must fail as the user's mistake; the one line on standard error."""

    def run(*arguments):
        assert cli.main([str(a) for a in arguments]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("error: ")
        assert captured.err.count("\n") == 1
        return captured.err

    return run


def test_an_unknown_experiment_lists_the_known_ones(one_line_error):
    message = one_line_error("reproduce", "yun2012")
    assert 'did you mean "yun2021"?' in message
    assert all(name in message for name in [*EXPERIMENTS, "all"])


def test_mistakes_in_the_arguments(one_line_error, tmp_path):
    assert "required" in one_line_error()
    assert "NAME" in one_line_error("reproduce")
    assert "reproduce" in one_line_error("reprduce", "yun2021")
    assert "--fast" in one_line_error("reproduce", "yun2021", "--fast")
    assert "--config" in one_line_error("reproduce", "all", "--config", "x.toml")
    occupied = tmp_path / "file"
    occupied.write_text("")
    assert str(occupied) in one_line_error("reproduce", "yun2021", "--out", occupied)


def test_mistakes_in_the_configuration(one_line_error, tmp_path):
    path = tmp_path / "setup.toml"
    path.write_text("alphas = [-1]\n")
    out = tmp_path / "out"
    message = one_line_error("reproduce", "yun2021", "--config", path, "--out", out)
    assert f"{path}: alphas[0] must be a finite number > 0, got -1" in message
    path.write_text("[classification]\nX = [[1, 0], [1, 0]]\n")
    message = one_line_error("reproduce", "yun2021", "--config", path, "--out", out)
    assert f"{path}: classification.X must be separable" in message
    # Only the library knows that float64 cannot have this tolerance.
    path.write_text("[regression]\nrtol = 1e-20\n")
    message = one_line_error("reproduce", "yun2021", "--config", path, "--out", out)
    assert f"{path}: rtol: " in message


@pytest.mark.parametrize("command", [[], ["reproduce"]])
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main([*command, "--help"])
    assert caught.value.code == 0
    assert "usage: lintensor-jax" in capsys.readouterr().out


def test_version(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"lintensor-jax {lt.__version__}\n"


def test_what_rounds_to_zero_has_no_sign():
    # Below half a unit of the last digit a number is shown as 0, without a sign.
    assert vector(np.array([-1e-9, -0.0, 1e-9, -6e-5])) == "[0.0000, 0.0000, 0.0000, -0.0001]"


def test_a_broken_bound_fails_and_names_the_row():
    rows = [{"distance": 1e-12, "name": "a"}, {"distance": 2e-3, "name": "b"}]
    check = worst_of("distance", rows, "distance", 1e-3, lambda row: row["name"])
    assert not check.passed
    assert str(check) == "FAILED: distance, worst 0.002 is not <= 0.001 (b)"
    # A NaN is the worst value in every row, and it violates every bound.
    for place in (0, 1):
        rows = [{"distance": 0.0, "name": "a"}]
        rows.insert(place, {"distance": math.nan, "name": "bad"})
        check = worst_of("distance", rows, "distance", 1e-3, lambda row: row["name"])
        assert not check.passed
        assert check.row == "bad"


def test_a_failed_check_is_exit_code_1(monkeypatch, tmp_path, capsys):
    def report(_):
        return Report(
            experiment="failing",
            title="Failing",
            config=Configuration(),
            reduced=(),
            tables=(Table("summary", "Nothing", (), []),),
            checks=(Check("distance", 1.0, 0.5, "diagonal, alpha = 1"),),
        )

    failing = dataclasses.replace(
        experiments.find("yun2021"), run=lambda *_: None, report=report, figures=lambda _: {}
    )
    monkeypatch.setattr(framework, "find", lambda _: failing)
    arguments = ["reproduce", "yun2021", "--out", str(tmp_path)]
    assert cli.main(arguments) == 1
    captured = capsys.readouterr()
    assert "FAILED: distance, worst 1 is not <= 0.5 (diagonal, alpha = 1)" in captured.err
    assert f"wrote {tmp_path / 'results.json'}" in captured.out
    assert cli.main([*arguments, "--quiet"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        "yun2021: FAILED: distance, worst 1 is not <= 0.5 (diagonal, alpha = 1)\n"
    )


def test_a_log_has_a_line_of_progress_now_and_then(monkeypatch, capsys):
    now = iter([0.0, 0.0, 4.0, 11.0, 12.0, 21.5])
    monkeypatch.setattr(terminal.time, "monotonic", lambda: next(now))
    with terminal.progress(quiet=False) as track:
        assert list(track("abcde")) == list("abcde")
    assert capsys.readouterr().err == "3 of 5: c\n5 of 5: e\n"
    with terminal.progress(quiet=True) as track:
        assert list(track("abcde")) == list("abcde")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("width", [None, "100"])
def test_no_cell_of_a_table_is_cut(width, monkeypatch, capsys):
    names = [f"column{k}" for k in range(12)]
    columns = tuple(Column(name, name, lambda v: f"{v}" * 20) for name in names)
    rows = [{name: f"{k:x}" for k, name in enumerate(names)}]
    report = Report("e", "T", Configuration(), (), (Table("t", "T", columns, rows),), ())
    if width is not None:
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        monkeypatch.setenv("COLUMNS", width)
    reproduce._print_report(report, ["a/long/path"])
    printed = capsys.readouterr().out
    assert "…" not in printed
    for k in range(12):
        assert printed.count(f"{k:x}") >= 20
    if width is None:
        assert all(name in printed and f"{k:x}" * 20 in printed for k, name in enumerate(names))


PROGRAM = """
from lintensor_jax.cli.terminal import configure_jax
configure_jax()
import jax, jax.numpy as jnp
print(jax.jit(lambda x: jnp.sin(x) + 1)(1.0).dtype)
"""


@pytest.mark.slow_beyond(1)
@pytest.mark.parametrize("variable", ["XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR"])
def test_compiled_programs_are_kept_where_the_user_says(variable, tmp_path):
    environment = {k: v for k, v in os.environ.items() if "CACHE" not in k}
    environment[variable] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True
    )
    assert done.stdout == "float64\n", done.stderr
    kept = list(tmp_path.rglob("*-cache"))
    assert kept
    inside = variable == "XDG_CACHE_HOME"
    assert all(("lintensor_jax" in path.parts) == inside for path in kept)


def test_the_package_does_not_import_what_only_some_functions_need():
    program = (
        "import sys, lintensor_jax; "
        "print([m for m in ('matplotlib', 'rich', 'tomllib', 'argparse', 'xarray', "
        "'zarr', 'clarabel') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    loaded = done.stdout.strip()
    # argparse is imported by JAX itself in some versions.
    assert loaded in ("[]", "['argparse']"), done.stderr


def test_python_m_is_the_same_program():
    done = subprocess.run(
        [sys.executable, "-m", "lintensor_jax", "--version"], capture_output=True, text=True
    )
    assert done.stdout == f"lintensor-jax {lt.__version__}\n", done.stderr

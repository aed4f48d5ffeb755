"""Sweeps from TOML files: recipes, data by path, choices by name, and every kind of mistake."""

import re
from pathlib import Path

import diffrax
import numpy as np
import pytest
from sweep_cases import LANES

import lintensor_jax as lt
from lintensor_jax import cli
from lintensor_jax.config import ConfigError
from lintensor_jax.sweeps.from_toml import configuration, data_files
from lintensor_jax.sweeps.from_toml.data_files import read_data
from lintensor_jax.sweeps.from_toml.recipes import ARCHITECTURES, INITIALIZATIONS
from lintensor_jax.sweeps.grid import Cell

CONFIGS = sorted(Path(__file__).parents[3].glob("configs/sweep-*.toml"))

pytestmark = pytest.mark.usefixtures("cache_of_its_own")


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


CSV = {  # the content of a file: None if it is valid, else the row and column of the message
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


def test_refuses_arrays_without_numbers_and_files_that_are_not_archives(tmp_path, monkeypatch):
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


@pytest.mark.slow
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
    # Their distance is 0.46; a flow at margin 1e6 is O(1e-6) in the data's units from its limit.
    np.testing.assert_allclose(results.distance_to_max_margin_l2, 0, rtol=0, atol=1e-3)
    np.testing.assert_allclose(results.distance_to_max_margin_l1, apart, rtol=0, atol=1e-3)
    assert results.status.sizes == {"width": 2, "alpha": 1, "direction": 1}


@pytest.mark.slow
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
    # From a small start a diagonal network ends near the least l1 norm, not the least l2 norm.
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


def test_held_out_data_and_weight_decay(tmp_path):
    """The store has the loss on held-out samples, and theory's limits with weight decay."""
    text = """
        [data]
        X = [[1.0, 2.0, 0.5], [0.3, -1.0, 1.0]]
        y = [1.0, 0.5]
        test_path = "test.csv"
        [start]
        initialization = "gaussian"
        alphas = [1.0]
        [flow]
        weight_decay = [0.1, 0.4]
        max_steps = 100000
        [record]
        observables = ["limit", "distance_to_prediction"]
        """
    with pytest.raises(ConfigError, match=r"sweep\.toml: data\.test_path.*no such file"):
        read(tmp_path, text)
    held_out = np.array([[1.0, 0.0, 2.0, 0.3], [2.0, 1.0, 1.0, -0.4]])
    np.savetxt(tmp_path / "test.csv", held_out, delimiter=",")
    _, grid, options = read(tmp_path, text)
    results = lt.sweep(
        grid, tmp_path / "store", observables=options.observables, max_steps=options.max_steps
    )
    limit = np.asarray(results.limit).reshape(2, 3)
    losses = 0.5 * np.sum((limit @ held_out[:, :3].T - held_out[:, 3]) ** 2, axis=1)
    np.testing.assert_allclose(np.exp(results.log_test_loss).values.ravel(), losses, rtol=1e-12)
    assert (results.distance_to_prediction < 1e-7).all()
    assert (results.prediction_kind == 1).all()  # exact
    assert np.abs(limit[0] - limit[1]).max() > 0.05
    np.savetxt(tmp_path / "test.csv", held_out[:, 1:], delimiter=",")
    _, grid, options = read(tmp_path, text)
    with pytest.raises(ValueError, match=r"network: its linear coefficients have shape \(3,\)"):
        lt.sweep(grid, observables=options.observables)

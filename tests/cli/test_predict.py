"""`init` writes a configuration that runs unchanged; `predict` prints the theory of a sweep."""

import json
import tomllib
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from lintensor_jax import cli
from lintensor_jax.cli.init import KINDS
from lintensor_jax.cli.predict import _finite

CONFIGS = sorted(Path(__file__).parents[2].glob("configs/sweep-*.toml"))
STARTERS = Path(cli.__file__).parent / "starters"
OF_THEOREM_6 = """
[data]
X = [[1.0, 2.0]]
y = [1.0]
[start]
alphas = [0.01, 1.0]
directions = [[0.3, -0.2]]
"""


pytestmark = pytest.mark.usefixtures("cache_of_its_own")


def printed(capsys, *arguments):
    capsys.readouterr()
    assert cli.main([*map(str, arguments)]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def predicted(capsys, tmp_path, text):
    (tmp_path / "c.toml").write_text(text)
    return json.loads(printed(capsys, "predict", tmp_path / "c.toml", "--json"))


@pytest.mark.slow
def test_a_prediction_assumption_by_assumption(tmp_path, capsys):
    found = predicted(capsys, tmp_path, OF_THEOREM_6)
    assert found["flows"] == 2
    (one,) = found["combinations"]
    assert one["theorem"] == "Theorem 6"
    assert one["kind"] == "exact"
    assert one["start"] == {"alpha": 0.01, "direction": [0.3, -0.2]}
    assert all(a["holds"] is True and a["value"] > 0 for a in one["assumptions"])
    # Yun et al. 2021, eq. 73 with matching starts of gap 1: c = 2 alpha^2 |s|^2, s = (1, 2).
    assert one["rate"]["c"] == pytest.approx(2 * 0.01**2 * 5)
    limits = np.array([start["limit"] for start in one["over_starts"]])
    # Both limits interpolate; that of the small scale is nearer to the sparse solution (0, 1/2).
    np.testing.assert_allclose(limits @ [1, 2], 1, rtol=0, atol=1e-9)
    assert abs(limits[0, 0]) < 0.01 < 0.1 < abs(limits[1, 0])
    moved = [start["distance_to_first"] for start in one["over_starts"]]
    assert moved == [0, pytest.approx(np.linalg.norm(limits[1] - limits[0]))]


def test_a_prediction_in_words_fits_80_columns(tmp_path, capsys):
    (tmp_path / "c.toml").write_text(OF_THEOREM_6)
    out = printed(capsys, "predict", tmp_path / "c.toml")
    explanation = out.split("\n\n", 1)[1]
    assert max(map(len, explanation.splitlines())) <= 80
    for words in (
        "Theorem 6 applies",
        "[holds] the data tensor",
        "Loss bound: L(t) <=",
        "at 2 alphas from 0.01 to 1",
    ):
        assert words in " ".join(explanation.split())


def test_where_nothing_applies_it_says_why(tmp_path, capsys):
    text = OF_THEOREM_6.replace("[start]", '[network]\narchitecture = "short-filters"\n[start]')
    text = text.replace("[[1.0, 2.0]]", "[[1.0, 2.0, 0.5], [0.1, 1.0, 1.0]]")
    text = text.replace("[1.0]\n", "[1.0, 2.0]\n").replace("[[0.3, -0.2]]", "[[0.3, -0.2, 0.1]]")
    (one,) = predicted(capsys, tmp_path, text)["combinations"]
    assert one["theorem"] is None
    assert one["limit"] is None
    assert [a for r in one["rejected"] for a in r["violated"] if a["holds"] is False]
    out = " ".join(printed(capsys, "predict", tmp_path / "c.toml").split())
    assert "No theorem applies" in out
    assert "Over the initial scale: no limit is predicted" in out


@pytest.mark.slow
def test_data_sets_are_combinations_and_pairs_go_together(tmp_path, capsys):
    text = """
    [data]
    num_samples = 1
    dimension = 3
    seed = [0, 1]
    [start]
    together = true
    num_alphas = 7
    num_directions = 7
    """
    found = predicted(capsys, tmp_path, text)["combinations"]
    assert [c["combination"] for c in found] == [{"data_seed": 0}, {"data_seed": 1}]
    for one in found:
        assert one["starts_in_grid"] == 7
        starts = one["over_starts"]
        assert len(starts) == 5
        assert starts[0]["alpha"] == pytest.approx(0.001)
        assert starts[-1]["alpha"] == pytest.approx(1.0)
        assert len({tuple(start["direction"]) for start in starts}) == 5
    out = " ".join(printed(capsys, "predict", tmp_path / "c.toml").split())
    assert "(each with another direction)" in out


def test_json_has_no_infinities():
    assert _finite({"a": (np.float64(1.5), float("inf"))}) == {"a": [1.5, "inf"]}


@pytest.mark.slow_beyond(1)
@pytest.mark.parametrize("kind", KINDS)
def test_a_starter_is_written_and_not_overwritten(kind, tmp_path, capsys):
    path = tmp_path / "my.toml"
    out = printed(capsys, "init", path, "--kind", kind)
    assert path.read_text() == (STARTERS / f"{kind}.toml").read_text()
    assert out.startswith(f"wrote {path}")
    for step in (f"predict {path}", f"sweep {path} --dry-run", f"report {Path('results/my')}"):
        assert f"  lintensor-jax {step}" in out
    path.write_text("mine")
    assert cli.main(["init", str(path)]) == 2
    assert path.read_text() == "mine"
    printed_json = json.loads(printed(capsys, "init", path, "--force", "--kind", kind, "--json"))
    assert printed_json["wrote"] == [str(path)]
    plan = json.loads(printed(capsys, "sweep", path, "--dry-run", "--json"))
    # The first comment of the file states this.
    assert f"# {plan['lanes']} flows, a few seconds" in path.read_text()
    assert max(map(len, path.read_text().splitlines())) <= 100


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_flow_of_a_starter_reaches_its_end(kind, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    printed(capsys, "init", "my.toml", "--kind", kind)
    found = json.loads(printed(capsys, "sweep", "my.toml", "--json"))
    assert found["failed"] == {}, found


@pytest.mark.parametrize(
    "path",
    [
        # One compilation for each shape: the configurations of several shapes are slow.
        pytest.param(path, marks=[] if path.stem == "sweep-million" else pytest.mark.slow)
        for path in CONFIGS
    ],
    ids=lambda path: path.stem,
)
def test_shipped_sweeps_can_be_planned(path, capsys):
    plan = json.loads(printed(capsys, "sweep", path, "--dry-run", "--json"))
    # The comments above the first table say how many flows there are, and give the command.
    comments = path.read_text().partition("\n\n")[0]
    assert f"# {plan['lanes']:,} flows".replace("1,000,000", "A million") in comments
    assert f"lintensor-jax sweep configs/{path.name}" in comments


@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_sweeps_can_be_predicted(path, capsys):
    found = json.loads(printed(capsys, "predict", path, "--json"))
    config = tomllib.loads(path.read_text())
    assert found["combinations"]
    for one in found["combinations"]:
        assert one["assumptions"]
        classifies = config["data"]["task"] == "classification"
        if classifies and one["limit"] is not None:
            assert np.linalg.norm(one["limit"]) == pytest.approx(1)


def test_the_table_of_configurations_is_complete():
    folder = Path(__file__).parents[2] / "configs"
    table = (folder / "README.md").read_text()
    for path in folder.glob("*.*"):
        assert f"`{path.name}`" in table or path.name == "README.md"


@pytest.mark.slow
def test_a_starter_runs_and_agrees_with_its_prediction(tmp_path, capsys):
    path = tmp_path / "random-data.toml"
    printed(capsys, "init", path, "--kind", "random-data")
    found = json.loads(printed(capsys, "predict", path, "--json"))["combinations"]
    printed(capsys, "sweep", path, "--out", tmp_path / "out", "--quiet")
    results = xr.open_zarr(tmp_path / "out", chunks=None)
    for one in found:
        for start in one["over_starts"]:
            here = results.limit.sel(**one["combination"], alpha=start["alpha"]).isel(direction=0)
            # Tolerances of the flow (1e-8) and of its Gauss-Newton finish.
            np.testing.assert_allclose(here, start["limit"], rtol=0, atol=1e-7)

"""Names in stores: public ones, and stores of format 1."""

import json
import sys
import types
from pathlib import Path

import diffrax
import equinox as eqx
import format1_cases
import numpy as np
import pytest
import xarray as xr

import lintensor_jax as lt
from lintensor_jax import cli
from lintensor_jax.sweeps import SweepError
from lintensor_jax.sweeps.execution.reopen import grid_of
from lintensor_jax.sweeps.from_toml import configuration
from lintensor_jax.sweeps.run import run
from lintensor_jax.sweeps.store import description as store_description
from lintensor_jax.sweeps.store import format1, names
from lintensor_jax.sweeps.store.store import Store

FORMAT_1 = Path(__file__).parents[2] / "data" / "format1"
OTHER_VERSIONS = "ignore:.* was begun with other versions:UserWarning"
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"

pytestmark = pytest.mark.usefixtures("cache_of_its_own")


def described(path):
    return json.loads((path / ".sweep" / "sweep.json").read_text())


def names_in(description):
    """Every name in a description."""
    match description:
        case {"is": name, **rest} | {"function": name, **rest} | {"name": name, "own": _, **rest}:
            return {name} | names_in(rest)
        case dict():
            return set().union(*map(names_in, description.values()))
        case list():
            return set().union(*map(names_in, description))
    return set()


# Stores of format 1.


@pytest.mark.slow
@pytest.mark.filterwarnings(OTHER_VERSIONS)
@pytest.mark.parametrize("store", ["unfinished"], indirect=True)
def test_an_unfinished_store_of_format_1_is_resumed(store):
    before = described(store)
    assert before["format"] == 1
    assert "lintensor_jax.dynamics.stopping:StopAtMargin" in names_in(before["sweep"])
    state = lt.sweeps.status(store)
    assert (state.finished_chunks, state.chunks) == (1, 3)
    first = xr.open_zarr(store, chunks=None).isel(both=0).load()
    resumed = lt.resume(store).load()
    assert lt.sweeps.status(store).complete
    assert described(store) == before
    assert (resumed.status == lt.sweeps.STATUSES.index("margin")).all()
    assert resumed.isel(both=0).identical(first)
    with np.load(FORMAT_1 / "unfinished-whole.npz") as whole:
        assert set(whole) == set(resumed)
        _require_the_same_flows(resumed, whole)


def _require_the_same_flows(resumed, whole):
    """Check flows against those of an older version, whose last steps beyond margin 1,000 differ.

    Explicit steps are at the limit of stability. If rounding differs, other steps are rejected, and
    the last step passes the margin by another length. So only those values are compared that this
    length does not change, or changes by a known amount.
    """
    for name in ("status", "method"):
        np.testing.assert_array_equal(resumed[name], whole[name])
    margin, before = (np.exp(np.asarray(ds["log_margin"])) for ds in (resumed, whole))
    assert np.all(margin >= 1000)
    assert np.all(np.abs(np.log(margin / before)) < 0.06)  # one step of the log-arc-length
    # A direction is O(1/margin) from its limit: 1/20 of the margin changes it by 5e-5.
    for name in ("direction_reached", "normalized_margin"):
        np.testing.assert_allclose(resumed[name], whole[name], rtol=0, atol=1e-4)
    # sum_i e^(-m_i) of two samples lies between e^(-min m) and twice that.
    above = np.asarray(resumed.log_loss) + margin
    assert np.all((above >= 0) & (above <= np.log(2)))
    # margin = normalised margin |Theta|^2. log t = margin + O(log margin), of which the last part
    # differs by less than 0.06.
    norms = np.asarray(resumed.log_norm) - whole["log_norm"]
    np.testing.assert_allclose(norms, np.log(margin / before) / 2, rtol=0, atol=1e-4)
    times = np.asarray(resumed.log_time) - whole["log_time"]
    np.testing.assert_allclose(times, margin - before, rtol=0, atol=0.06)


@pytest.mark.filterwarnings(OTHER_VERSIONS)
@pytest.mark.parametrize("store", ["finished"], indirect=True)
def test_a_finished_store_of_format_1_is_resumed_and_reported(store, capsys):
    before = described(store)
    assert before["format"] == 1
    for command in ("status", "resume", "report"):
        assert cli.main([command, str(store)]) == 0
    assert "2 of 2" in capsys.readouterr().out
    page = (store / "report" / "report.html").read_text()
    assert "depth = 3" in page
    assert "functions or classes of the user" not in page
    assert described(store) == before


@pytest.mark.parametrize("store", ["finished", "unfinished"], indirect=True)
def test_a_store_of_format_1_is_the_sweep_that_is_given_again(store, tmp_path):
    kept = Store(store)
    if kept.description["source"] is None:
        grid, options = grid_of(kept)
        config = None
    else:
        (tmp_path / "small.toml").write_text(kept.description["source"])
        _, grid, options = configuration.read(tmp_path / "small.toml")
        config = kept.description["config"]
    assert grid_of(kept, grid, options.observables)[0] is not None
    with pytest.raises(SweepError, match="holds this sweep already"):
        run(grid, options, store, config=config)
    other = lt.sweeps.Grid(grid.axes, grid.start, grid.problem, seed=99)
    with pytest.raises(SweepError, match=r"differs in grid\.seed;"):
        grid_of(kept, other)
    with pytest.raises(SweepError, match=r"another sweep, which differs in grid\.seed;"):
        run(other, options, store, config=config)


@pytest.mark.skipif(
    PYTHON not in json.loads((FORMAT_1 / "own.json").read_text()),
    reason="hashes of functions are those of bytecode, and were written by other Pythons",
)
def test_a_users_code_has_the_hash_that_format_1_gave_it():
    given = {"grid": format1_cases.GRID, "observables": format1_cases.OBSERVABLES}
    kept = json.loads((FORMAT_1 / "own.json").read_text())[PYTHON]
    assert store_description.describe(given, 1)[0] == kept
    assert store_description.differences(store_description.describe(given)[0], kept)


def test_names_of_format_1_are_found_and_other_names_are_refused():
    public = set(names._public())
    # All names of format 1 are public, except these, which are not exported at the top level.
    added = {"AbstractClock", "AbstractCompilation", "AbstractMarginLoss", "AbstractProblem"}
    added |= {"AbstractSquaredProblem", "AbstractStop", "batched_flow"}
    missing = set(format1.FORMER) - public - {f"lintensor_jax:{name}" for name in added}
    assert not missing
    assert len(format1.FORMER) == len(format1.PUBLIC)
    registry = names.Registry(1)
    for former, name in {
        "lintensor_jax.dynamics.stopping:StopAtMargin": lt.StopAtMargin,
        "lintensor_jax.sweeps.observables:Imbalance": lt.sweeps.Imbalance,
        "lintensor_jax.theory.rates:Imbalance": lt.Imbalance,
        "lintensor_jax.initialization_imbalance:spectral": lt.initialization.spectral,
        "diffrax._solver.tsit5:Tsit5": diffrax.Tsit5,
    }.items():
        assert registry.find(former) is name
    for refused in ("lintensor_jax:StopAtMargin", "lintensor_jax.sweeps.run:resume"):
        with pytest.raises(KeyError):
            registry.find(refused)


# Names.


def test_names_are_public_ones():
    values = {
        "lintensor_jax:StopAtMargin": lt.StopAtMargin,
        "lintensor_jax:Regression": lt.Regression,
        "lintensor_jax.sweeps:Limit": lt.sweeps.Limit,
        "lintensor_jax.sweeps:Imbalance": lt.sweeps.Imbalance,
        "lintensor_jax.theory:Imbalance": lt.Imbalance,
        "lintensor_jax.initialization:matching": lt.initialization.matching,
        "diffrax:Tsit5": diffrax.Tsit5,
    }
    registry = names.Registry()
    for name, value in values.items():
        assert registry.name(value) == registry.label(value) == name
        assert registry.find(name) is value
        assert store_description.rebuild(store_description.describe(value)[0], {}) is value
    assert registry.label(lt.DiagonalNetwork.zeros) == "lintensor_jax:DiagonalNetwork.zeros"
    # Functions that read and write files, and abstract classes, have no names in stores.
    for value in (lt.sweep, lt.resume, lt.load, lt.sweeps.write_report, lt.AbstractNetwork):
        assert registry.name(value) is None
        with pytest.raises(KeyError):
            registry.find(registry.label(value))


def test_a_move_of_a_module_changes_no_store(monkeypatch):
    described = [
        store_description.describe(
            {"stop": lt.StopAtMargin(1e3), "own": format1_cases.start}, version
        )
        for version in names.READABLE
    ]
    for value, module in (
        (lt.StopAtMargin, "lintensor_jax.elsewhere"),
        (lt.StopAtTime, "lintensor_jax.elsewhere"),
        (lt.DiagonalNetwork, "lintensor_jax.elsewhere"),
        (lt.initialization.matching, "lintensor_jax.initialization.elsewhere"),
    ):
        moved = sys.modules.get(module) or types.ModuleType(module)
        monkeypatch.setitem(sys.modules, module, moved)
        monkeypatch.setattr(moved, value.__name__, value, raising=False)
        monkeypatch.setattr(value, "__module__", module)
    for cached in (names._public, names._names, names._buildable):
        cached.cache_clear()
    for version, before in zip(names.READABLE, described, strict=True):
        after = store_description.describe(
            {"stop": lt.StopAtMargin(1e3), "own": format1_cases.start}, version
        )
        assert after == before
        assert eqx.tree_equal(
            store_description.rebuild(before[0]["map"]["stop"], {}, version), lt.StopAtMargin(1e3)
        )
    for cached in (names._public, names._names, names._buildable):
        cached.cache_clear()

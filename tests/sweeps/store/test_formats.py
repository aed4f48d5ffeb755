"""Names in stores: public ones; stores of format 1; and stores that name what they may not."""

import copy
import importlib
import json
import os
import re
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import diffrax
import equinox as eqx
import format1_cases
import numpy as np
import pytest
import xarray as xr

import lintensor_jax as lt
from lintensor_jax import cli
from lintensor_jax.sweeps import SweepError, write_report
from lintensor_jax.sweeps.execution.reopen import grid_of
from lintensor_jax.sweeps.from_toml import configuration
from lintensor_jax.sweeps.run import run
from lintensor_jax.sweeps.store import atomic_files, format1, names, sealed
from lintensor_jax.sweeps.store import description as store_description
from lintensor_jax.sweeps.store.store import Store

FORMAT_1 = Path(__file__).parents[2] / "data" / "format1"
OTHER_VERSIONS = "ignore:.* was begun with other versions:UserWarning"
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"

pytestmark = pytest.mark.usefixtures("cache_of_its_own")


@pytest.fixture
def store(request, tmp_path):
    """A copy of a store that was written in format 1."""
    path = tmp_path / request.param
    with zipfile.ZipFile(FORMAT_1 / f"{request.param}.zip") as file:
        file.extractall(path)
    return path


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
    """The flows of before format 2, which ended with other steps beyond a margin of 1,000.

    Explicit steps at the limit of stability: where the rounding of a step differs, a rejection
    follows, and the last step passes the margin by another length. So what is compared is what
    that length does not change, or changes by a known amount.
    """
    for name in ("status", "method"):
        np.testing.assert_array_equal(resumed[name], whole[name])
    margin, before = (np.exp(np.asarray(ds["log_margin"])) for ds in (resumed, whole))
    assert np.all(margin >= 1000)
    assert np.all(np.abs(np.log(margin / before)) < 0.06)  # one step of the log-arc-length
    # A direction is O(1/margin) from its limit, so a twentieth of the margin moves it by 5e-5.
    for name in ("direction_reached", "normalized_margin"):
        np.testing.assert_allclose(resumed[name], whole[name], rtol=0, atol=1e-4)
    # sum_i e^(-m_i) of two samples lies between e^(-min m) and twice that.
    above = np.asarray(resumed.log_loss) + margin
    assert np.all((above >= 0) & (above <= np.log(2)))
    # margin = normalised margin |Theta|^2, and log t = margin + O(log margin).
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


def test_the_table_of_format_1_is_closed_and_says_where_things_lay():
    public = set(names._public())
    # What format 1 names is public, but for these, which users could only import deeply.
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
    # Functions that read and write files, and classes that nobody can make.
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


# Stores that name what they may not.

HOSTILE = (
    "lintensor_jax.sweeps.plan:np.testing.rundocs",
    "lintensor_jax.sweeps:plan.np.testing.rundocs",
    "lintensor_jax:sweeps.plan.np.testing.rundocs",
    "lintensor_jax:StopAtMargin.__init__",
    "lintensor_jax.sweeps:write_report",
    "diffrax:os.system",
    "os:system",
    "builtins:eval",
    "antigravity:fly",
    "nonsense",
)


@pytest.fixture
def nothing_runs(monkeypatch):
    """Fails a test in which something of a store is imported or called."""

    def ran(*arguments, **_):
        raise AssertionError(f"a store ran something: {arguments}")

    import_module, modules = importlib.import_module, {n.partition(":")[0] for n in HOSTILE}

    def imported(name, *arguments):
        return ran(name) if name in modules else import_module(name, *arguments)

    monkeypatch.setattr(np.testing, "rundocs", ran)
    monkeypatch.setattr(os, "system", ran)
    monkeypatch.setattr(lt.sweeps, "write_report", ran)
    monkeypatch.setattr(importlib, "import_module", imported)
    yield
    assert "antigravity" not in sys.modules


def places(description, path=()):
    """The paths of everything in a description but what lies in an array."""
    yield path
    if isinstance(description, dict) and "array" not in description:
        for key, item in description.items():
            yield from places(item, (*path, key))
    elif isinstance(description, list):
        for index, item in enumerate(description):
            yield from places(item, (*path, index))


def replaced(description, path, value):
    """The description with another value at a path."""
    if not path:
        return value
    changed = copy.deepcopy(description)
    inner: Any = changed
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    return changed


def rewritten(store, version):
    """The store's description in a format, its path of long arrays as it was."""
    kept = Store(store)
    grid, options = grid_of(kept)
    described, _ = store_description.describe({"grid": grid, "options": options}, version)
    return {**kept.description, "format": version, "sweep": described["map"]}


@pytest.mark.parametrize("version", names.READABLE)
@pytest.mark.parametrize("store", ["unfinished"], indirect=True)
def test_a_hostile_name_is_refused_wherever_it_stands(store, version, nothing_runs):
    stored = rewritten(store, version)
    kept = Store(store)
    kept.description, kept.format = stored, version
    assert eqx.tree_equal(grid_of(kept)[1].stop, lt.StopAtMargin(1e3))
    paths = list(places(stored["sweep"]["grid"], ("grid",)))
    paths += places(stored["sweep"]["options"]["fields"], ("options", "fields"))
    paths += [("options", "is")]
    assert len(paths) > 80
    modules = set(sys.modules)
    # A name stands for a class, a function, a field; or for a class or function in any other place.
    for path in paths:
        for name in HOSTILE:
            for value in ({"function": name}, {"is": name, "fields": {}}, name):
                if value == name and path[-1] not in ("is", "function"):
                    continue
                kept.description = {
                    **stored,
                    "sweep": replaced(stored["sweep"], path, value),
                }
                if path == ("options", "fields"):
                    with pytest.raises((SweepError, KeyError)):
                        grid_of(kept)
                elif path[-1] == "fields":  # `function` and `is` are names of fields there
                    with pytest.raises(SweepError, match=r"names .*(function|is),"):
                        grid_of(kept)
                else:
                    with pytest.raises(SweepError, match=re.escape(name)):
                        grid_of(kept)
    assert set(sys.modules) == modules


@pytest.mark.parametrize("version", names.READABLE)
@pytest.mark.parametrize("store", ["unfinished"], indirect=True)
def test_resume_and_report_refuse_a_hostile_name(store, version, nothing_runs):
    stored = rewritten(store, version)
    partial = {
        "is": "lintensor_jax.sweeps.plan:eqx.Partial",
        "fields": {
            "func": {"function": HOSTILE[0]},
            "args": {"tuple": []},
            "keywords": {"map": {}},
        },
    }
    observable = {
        "is": names.Registry(version).name(lt.sweeps.Measured),
        "fields": {"name": "x", "function": {"function": HOSTILE[0]}, "__class__": None},
    }
    for path, value, said in (
        (("grid", "fields", "start"), partial, "lintensor_jax.sweeps.plan:eqx.Partial"),
        (("grid", "fields", "problem"), {"function": "os:system"}, "os:system"),
        (("grid", "fields", "__init__"), {"function": "os:system"}, "Grid.__init__"),
        (("options", "fields", "observables", "tuple", 0), observable, "Measured.__class__"),
        (("options", "fields", "stop"), {"is": "builtins:eval", "fields": {}}, "builtins:eval"),
    ):
        changed = {
            **stored,
            "sweep": replaced(stored["sweep"], path, value),
        }
        data = json.dumps(changed).encode()
        if version == 3:  # a hostile store has fitting checksums
            changed |= {"skeleton": {}, "coordinates": [], "variables": []}
            changed["arrays"] = atomic_files.sha256((store / ".sweep" / "arrays.npz").read_bytes())
            data = sealed.sealed(changed)
        (store / ".sweep" / "sweep.json").write_bytes(data)
        # A report opens the arrays first, and this store of format 3 has none.
        for call in (lt.resume,) if version == 3 else (lt.resume, write_report):
            with pytest.raises(SweepError, match=re.escape(said)) as raised:
                call(store)
            assert "neither imported nor called" in str(raised.value)


@pytest.mark.parametrize("store", ["unfinished"], indirect=True)
def test_a_users_class_is_named_and_a_description_is_of_a_grid(store):
    kept = Store(store)
    stored = kept.description
    own = {"own": "?", "name": "mine:Stop"}
    kept.description = {
        **stored,
        "sweep": replaced(stored["sweep"], ("options", "fields", "stop"), own),
    }
    with pytest.raises(SweepError, match=r"uses mine\.Stop, which a store cannot hold; start a"):
        grid_of(kept)
    kept.description = {
        **stored,
        "sweep": replaced(stored["sweep"], ("grid",), {"map": {}}),
    }
    with pytest.raises(SweepError, match="its description holds no Grid"):
        grid_of(kept)


@pytest.mark.parametrize("store", ["finished"], indirect=True)
def test_a_codec_that_could_run_code_is_refused(store):
    listing = store / ".zmetadata"
    stored = json.loads(listing.read_text())
    for key, value in (("compressor", {"id": "pickle"}), ("filters", [{"id": "pickle"}])):
        changed = copy.deepcopy(stored)
        changed["metadata"]["status/.zarray"][key] = value
        listing.write_text(json.dumps(changed))
        with pytest.raises(SweepError, match=r"status/\.zarray has the codec 'pickle'"):
            write_report(store)
    listing.write_text("[]")
    with pytest.raises(SweepError, match=r"\.zmetadata cannot be read"):
        write_report(store)

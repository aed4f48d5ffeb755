"""Stores with forbidden names: nothing that they name is imported or called."""

import copy
import importlib
import json
import os
import re
import shutil
import sys
from typing import Any

import equinox as eqx
import numpy as np
import pytest
from sweep_cases import GRID

import lintensor_jax as lt
from lintensor_jax.sweeps import SweepError, write_report
from lintensor_jax.sweeps.execution.reopen import grid_of
from lintensor_jax.sweeps.store import atomic_files, names, sealed
from lintensor_jax.sweeps.store import description as store_description
from lintensor_jax.sweeps.store.store import Store

pytestmark = pytest.mark.usefixtures("cache_of_its_own")

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
    """Fail a test in which something that a store names is imported or called."""

    def ran(*arguments, **_):
        raise AssertionError(f"a store ran something: {arguments}")

    import_module, modules = importlib.import_module, {n.partition(":")[0] for n in HOSTILE}

    def imported(name, *arguments):
        return ran(name) if name in modules else import_module(name, *arguments)

    monkeypatch.setattr(np.testing, "rundocs", ran)
    monkeypatch.setattr(os, "system", ran)
    monkeypatch.setattr(lt.sweeps, "write_report", ran)
    monkeypatch.setattr(importlib, "import_module", imported)
    # The registry keeps what it saw at its first use. In this test it must see `ran` (a function of
    # the package, by its module), and other tests must not see `ran`.
    ran.__module__ = "lintensor_jax.sweeps.report.page"
    registry = (names._public, names._names, names._buildable)
    for cached in registry:
        cached.cache_clear()
    yield
    for cached in registry:
        cached.cache_clear()
    assert "antigravity" not in sys.modules


def places(description, path=()):
    """The paths of everything in a description except parts of arrays."""
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
    """The store's description in another format; its path of long arrays is unchanged."""
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
    # The name replaces a class or function name, or is put as a class or function at any place.
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
        if version == 3:  # a hostile store has matching checksums
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


@pytest.mark.parametrize(
    "name",
    ["limit", "limit/c", ".sweep/chunks", ".sweep/scratch", ".sweep/claims", ".sweep/sweep.json"],
)
def test_links_are_not_followed(whole, tmp_path, name):
    path, outside = shutil.copytree(whole[0], tmp_path / "store"), tmp_path / "outside"
    shutil.move(path / name, outside)
    (path / name).symlink_to(outside)
    before = {file: file.read_bytes() for file in tmp_path.rglob("outside/**/*") if file.is_file()}
    calls: list[Any] = [lambda p: lt.resume(p, GRID), write_report]
    if name != "limit/c":  # for this folder status and verify name each file
        calls += [lt.sweeps.verify, lt.sweeps.status, lambda p: lt.sweeps.compute_chunk(p, 0, GRID)]
    for call in calls:
        with pytest.raises(SweepError, match=rf"{name}\S* is a link, which could lead out"):
            call(path)
    after = {file: file.read_bytes() for file in tmp_path.rglob("outside/**/*") if file.is_file()}
    assert after == before

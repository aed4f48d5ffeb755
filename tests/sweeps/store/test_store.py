"""Stores: killed and resumed, damaged, locked, full, of other sweeps, read by other programs."""

import errno
import itertools
import json
import os
import shutil
import subprocess
import sys
import textwrap
from typing import Any

import numpy as np
import pytest
import xarray as xr
from sweep_cases import ALPHAS, DIRECTIONS, GRID, LANES, PROBLEM, X, axes, contents, start

import lintensor_jax as lt
from lintensor_jax.sweeps import Grid, Limit, LogLoss, SweepError, Trajectory
from lintensor_jax.sweeps.store import atomic_files, sealed
from lintensor_jax.sweeps.store import store as store_module

OPTIONS = LANES


class Killed(BaseException):
    """Replaces SIGKILL: no handler catches it."""


def test_results_are_labelled(whole):
    _, results = whole
    assert results.sizes == {"alpha": 12, "direction": 5, "coefficient": 2}
    np.testing.assert_array_equal(results.alpha, ALPHAS)
    np.testing.assert_array_equal(results.direction_value, DIRECTIONS)
    assert "direction_value" in results.coords
    assert results.alpha.attrs == {"units": "1", "description": "initial scale"}
    assert results.attrs["Conventions"].startswith("CF-")
    assert "width" not in results.attrs
    assert results.attrs["lanes_in_flight"] == 8
    np.testing.assert_array_equal(results.coefficient, [0, 1])
    assert results.status.attrs["flag_meanings"].split()[1] == "residual"
    assert results.limit.attrs["description"].startswith("linear coefficients")
    assert (results.status == 1).all()
    # Every limit fits the sample, up to the residual of the default stop.
    np.testing.assert_allclose(
        results.limit @ xr.DataArray(X[0], dims="coefficient"), 1, rtol=0, atol=1e-9
    )
    for name in ("versions", "config"):
        json.loads(results.attrs[name])
    assert results.attrs["dtype"] == "float64"
    assert results.attrs["seed"] == 7


@pytest.mark.slow
def test_every_lane_is_a_flow_of_its_own(whole):
    _, results = whole
    for i, j in ((0, 0), (6, 3), (11, 4)):
        network = lt.initialization.matching(lt.DiagonalNetwork.zeros(2, 2), DIRECTIONS[j]).scaled(
            ALPHAS[i]
        )
        flow = lt.gradient_flow(network, PROBLEM)
        found = results.limit.isel(alpha=i, direction=j)
        np.testing.assert_allclose(found, flow.coefficients[-1], rtol=0, atol=1e-8)


@pytest.mark.slow
def test_xarray_alone_reads_selects_plots_and_exports(whole, tmp_path):
    path, _ = whole
    script = f"""
        import matplotlib, sys
        matplotlib.use("agg")
        import xarray
        from matplotlib import pyplot
        ds = xarray.open_zarr({str(path)!r}, chunks=None)
        near = ds.sel(alpha=0.01, direction=2).limit
        assert near.shape == (2,), near
        assert ds.sel(alpha=0.5, method="nearest").sizes == {{"direction": 5, "coefficient": 2}}
        ds.limit.isel(direction=0, coefficient=0).plot(xscale="log")
        pyplot.figure()
        ds.log_time.plot(yscale="log")
        ds.to_netcdf({str(tmp_path / "out.nc")!r}, engine="scipy")
        assert not any(name.startswith("lintensor") for name in sys.modules)
    """
    subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", textwrap.dedent(script)], check=True
    )
    with xr.open_dataset(tmp_path / "out.nc", engine="scipy") as exported:
        np.testing.assert_array_equal(exported.limit, whole[1].limit)
        np.testing.assert_array_equal(exported.status, whole[1].status)
    np.testing.assert_array_equal(
        xr.open_zarr(path, consolidated=False, chunks=None).limit, whole[1].limit
    )


def killed_and_resumed(path, options, kill_at, moment, monkeypatch):
    """A sweep that dies at one of its writes, and is resumed."""
    # Two chunks are written at once: each call keeps its own number.
    numbers, written, replace = itertools.count(1), itertools.count(1), os.replace

    def replaced(source, target):
        if moment != "after" and next(numbers) == kill_at:
            if moment == "within":
                os.truncate(source, 5)
            raise Killed
        replace(source, target)  # fails if the folder does not exist yet; then it is called again
        if moment == "after" and next(written) == kill_at:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(atomic_files, "replace", replaced)
        with pytest.raises(Killed):
            lt.sweep(GRID, path, **options)
    lt.resume(path, GRID)


def resumes_to_the_same_bytes(whole, tmp_path, monkeypatch, computed, moment, kills):
    for kill_at in kills:
        path = tmp_path / f"{kill_at}"
        computed.clear()
        killed_and_resumed(path, OPTIONS, kill_at, moment, monkeypatch)
        assert contents(path) == contents(whole[0])
        assert not list((path / ".sweep" / "scratch").iterdir())
        # One device has two chunks in progress: it computes one while the one before is written.
        assert len(computed) <= len(set(computed)) + 2
        assert len(set(computed)) == 4


def test_killed_at_a_write_it_resumes_to_the_same_bytes(whole, tmp_path, monkeypatch, computed):
    # A run writes a note, and 4 chunks of 9 files and a manifest: write 17 is in the second chunk.
    resumes_to_the_same_bytes(whole, tmp_path, monkeypatch, computed, "within", (17,))
    computed.clear()
    lt.resume(tmp_path / "17", GRID)
    assert computed == []


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before", "within", "after"])
def test_killed_at_any_write_it_resumes_to_the_same_bytes(
    whole, tmp_path, monkeypatch, computed, moment
):
    kills = range(1, 42, 3)
    resumes_to_the_same_bytes(whole, tmp_path, monkeypatch, computed, moment, kills)


@pytest.mark.slow
def test_killed_while_lanes_are_on_the_stiff_path(tmp_path, monkeypatch, computed):
    options: dict[str, Any] = {**LANES, "max_steps": 22}
    results = lt.sweep(GRID, tmp_path / "whole", **options)
    assert (results.status == 1).all()
    assert set(np.unique(results.method)) == {1, 2}  # explicit, mirror flow
    expected = contents(tmp_path / "whole")
    for kill_at in range(1, 42, 5):
        path = tmp_path / f"{kill_at}"
        computed.clear()
        killed_and_resumed(path, options, kill_at, "within", monkeypatch)
        assert contents(path) == expected
        assert len(computed) <= len(set(computed)) + 2
        assert len(set(computed)) == 4


def test_a_damaged_chunk_is_found_and_computed_again(whole, tmp_path, computed):
    path = tmp_path / "store"
    lt.sweep(GRID, path, **OPTIONS)
    computed.clear()
    file = path / "limit" / "c" / "1" / "0" / "0"
    data = bytearray(file.read_bytes())
    data[20] ^= 1
    file.write_bytes(data)
    (path / "status" / "c" / "3" / "0").unlink()
    store = store_module.Store(path)
    found = [store.damage(n) for n in range(4)]
    assert found == ["", "limit/c/1/0/0", "", "status/c/3/0 (missing)"]
    assert lt.sweeps.pending(path) == []
    assert lt.sweeps.pending(path, verify=True) == [1, 3]
    lt.resume(path, GRID)
    assert set(computed) == {1, 3}
    assert contents(path) == contents(whole[0])


def test_killed_before_there_is_a_store(whole, tmp_path, monkeypatch):
    def killed(*_):
        raise Killed

    path = tmp_path / "store"
    with monkeypatch.context() as patch:
        patch.setattr(store_module.os, "rename", killed)
        with pytest.raises(Killed):
            lt.sweep(GRID, path, **OPTIONS)
    assert not path.exists()
    lt.sweep(GRID, path, **OPTIONS)
    assert contents(path) == contents(whole[0])
    assert [p.name for p in tmp_path.iterdir()] == ["store"]


def test_a_full_disk_loses_nothing(whole, tmp_path, monkeypatch, computed):
    path = tmp_path / "store"
    finished = path / ".sweep" / "chunks"
    replace = os.replace

    def replaced(source, target):  # one chunk is written while the next one is computed
        if finished.exists() and any(finished.glob("*.json")):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(atomic_files, "replace", replaced)
        with pytest.raises(
            SweepError, match=r"No space left on device\). [12] finished chunks are"
        ):
            lt.sweep(GRID, path, **OPTIONS)
    assert not list((path / ".sweep" / "scratch").iterdir())
    safe = {int(file.stem) for file in finished.glob("*.json")}
    assert safe
    computed.clear()
    lt.resume(path, GRID)
    assert set(computed) == {0, 1, 2, 3} - safe
    assert contents(path) == contents(whole[0])


def test_a_folder_that_cannot_be_written_to(whole, tmp_path, monkeypatch):
    def refused(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    # This simulates a user who is not root: tests may run as root, who can write anywhere.
    with monkeypatch.context() as patch:
        patch.setattr(store_module.Path, "mkdir", refused)
        with pytest.raises(SweepError, match=r"cannot be made .Read-only file system"):
            lt.sweep(GRID, tmp_path / "new", **LANES)
    assert not list(tmp_path.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(atomic_files.os, "fsync", refused)
        with pytest.raises(SweepError, match=r"cannot be written to .Read-only file system"):
            lt.resume(whole[0], GRID)


def test_a_copy_without_empty_folders_is_resumed(whole, tmp_path, computed):
    path = shutil.copytree(whole[0], tmp_path / "store")
    for folder in ("claims", "scratch"):
        shutil.rmtree(path / ".sweep" / folder)
    shutil.rmtree(path / ".sweep" / "chunks")
    shutil.rmtree(path / "limit" / "c")
    lt.resume(path, GRID)
    assert sorted(computed) == [0, 1, 2, 3]
    assert contents(path) == contents(whole[0])


def test_an_empty_folder_behind_a_link_is_filled(whole, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    lt.sweep(GRID, tmp_path / "link", **OPTIONS)
    assert (tmp_path / "link").is_symlink()
    assert contents(tmp_path / "real") == contents(whole[0])


def test_other_sweeps_and_newer_stores_are_refused(whole, tmp_path):
    path = whole[0]
    before = contents(path)
    with pytest.raises(SweepError, match="holds this sweep already, and it is finished"):
        lt.sweep(GRID, path, **OPTIONS)
    with pytest.raises(SweepError, match=r"holds another sweep, which differs in options\.rtol;"):
        lt.sweep(GRID, path, rtol=1e-7, **OPTIONS)
    others = {
        r"grid\.axes\[0\]\.values": Grid(axes(2 * ALPHAS), start, PROBLEM, seed=7),
        r"seed": Grid(axes(), start, PROBLEM, seed=8),
        r"start": Grid(axes(), lambda p: start(p).scaled(2.0), PROBLEM, seed=7),
        r"problem\.y": Grid(axes(), start, lt.Regression(X, [2.0]), seed=7),
    }
    for where, grid in others.items():
        with pytest.raises(SweepError, match=f"made with another grid, which differs in .*{where}"):
            lt.resume(path, grid)
    with pytest.raises(SweepError, match=r"uses sweep_cases\.start, which a store cannot hold"):
        lt.resume(path)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SweepError, match="is not an empty folder"):
        lt.sweep(GRID, tmp_path, **LANES)
    with pytest.raises(SweepError, match="holds no sweep"):
        lt.resume(tmp_path)
    assert contents(path) == before
    description = path / ".sweep" / "sweep.json"
    kept = description.read_bytes()
    stored = sealed.read(description)
    description.write_text(json.dumps({**stored, "format": 4}))
    with pytest.raises(SweepError, match=r"store format 4 .*reads formats 1, 2, 3; install"):
        lt.resume(path, GRID)
    description.write_bytes(kept)


def test_neither_chunks_nor_devices_nor_neighbours_matter(whole):
    results = whole[1]
    # Lanes have other neighbours; the program has 16 lanes as before.
    others = lt.sweep(GRID, **{**OPTIONS, "chunk_lanes": 10})
    for name in results.data_vars:
        np.testing.assert_array_equal(others[name], results[name], err_msg=name)


@pytest.mark.slow
def test_observables_are_chosen(whole):
    chosen = (Limit(), LogLoss(), Trajectory([0.0, 1.0, 1e9]))
    results = lt.sweep(GRID, observables=chosen, **LANES)
    assert results.trajectory.dims == ("alpha", "direction", "time", "coefficient")
    np.testing.assert_array_equal(results.time, [0.0, 1.0, 1e9])
    np.testing.assert_allclose(
        results.trajectory.isel(time=0),
        ALPHAS[:, None, None] ** 2 * DIRECTIONS,
        rtol=1e-12,
    )
    assert not results.trajectory_reached.isel(time=2).any()
    # The trajectory ends before the finish, at a residual of 1e-9.
    np.testing.assert_allclose(results.trajectory.isel(time=2), results.limit, rtol=0, atol=1e-7)

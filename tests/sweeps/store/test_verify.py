"""Damage of any file is found; a manipulated store cannot make us read files outside of it."""

import json
import os
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import xarray as xr
from sweep_cases import GRID, contents

import lintensor_jax as lt
from lintensor_jax import cli
from lintensor_jax.sweeps import SweepError, write_report
from lintensor_jax.sweeps.store import sealed
from lintensor_jax.sweeps.store.store import Store


@pytest.fixture
def copy(whole, tmp_path):
    """A copy of a finished store."""
    return shutil.copytree(whole[0], tmp_path / "store")


def files_of(path):
    """All files; there are none of dead claims and unfinished writes."""
    return [p for p in sorted(path.rglob("*")) if p.is_file()]


@pytest.fixture
def flipped():
    """A function that flips one bit of a file, and returns the file's former content."""

    def flip(file, rng):
        data = bytearray(kept := file.read_bytes())
        data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        file.write_bytes(data)
        return kept

    return flip


def test_every_single_bit_of_every_file_counts(copy, flipped):
    rng = np.random.default_rng(0)
    files = files_of(copy)
    sound = lt.sweeps.verify(copy)
    assert sound.sound
    assert sound.unchecked == ()
    assert sound.files == len(files)
    chosen = [files[k] for k in rng.integers(len(files), size=60)]
    for file in [*files, *chosen]:
        kept = flipped(file, rng)
        found = lt.sweeps.verify(copy)
        assert not found.sound, file
        assert any(str(file.relative_to(copy)) == name for name in found.damaged), file
        file.write_bytes(kept)


@pytest.mark.parametrize(
    "name", ["alpha/c/0", "direction_value/c/0/0", "limit/zarr.json", "zarr.json"]
)
def test_labels_and_metadata_are_made_again(copy, flipped, name, whole, capsys):
    flipped(copy / name, np.random.default_rng(1))
    state = lt.sweeps.status(copy)
    assert state.damaged_labels == [name]
    assert "damaged" in str(state)
    with pytest.raises(SweepError, match=f"{name} .labels or metadata. changed after"):
        write_report(copy)
    assert cli.main(["verify", str(copy)]) == 1
    assert f"{name}: is missing or changed" in capsys.readouterr().out
    lt.resume(copy, GRID)
    assert contents(copy) == contents(whole[0])


def test_the_skeleton_of_another_version_of_zarr_is_replaced_as_a_whole(copy, monkeypatch):
    from lintensor_jax.sweeps.store import skeleton

    build = skeleton.build

    def other(*arguments):
        files = build(*arguments)
        return {**files, "zarr.json": files["zarr.json"] + b" "}

    monkeypatch.setattr(skeleton, "build", other)
    (copy / "alpha" / "c" / "0").unlink()
    Store(copy).restore_skeleton()
    assert lt.sweeps.verify(copy).sound
    assert (copy / "zarr.json").read_bytes().endswith(b" ")


def test_what_cannot_be_made_again_is_named(copy, flipped):
    kept = (copy / ".sweep" / "sweep.json").read_bytes()
    flipped(copy / ".sweep" / "sweep.json", np.random.default_rng(2))
    with pytest.raises(
        SweepError, match=r"sweep.json (is damaged|cannot be read).*copy the folder"
    ):
        lt.resume(copy, GRID)
    (copy / ".sweep" / "sweep.json").write_bytes(kept)
    flipped(copy / ".sweep" / "arrays.npz", np.random.default_rng(2))
    with pytest.raises(SweepError, match=r"arrays\.npz is damaged .*copy the folder"):
        _ = Store(copy).arrays


ODD = [
    "[]",
    "3",
    "null",
    "{}",
    '{"format": 3}',
    "[" * 5000,
    '{"format": 3, "plan": [], "sweep": 1}',
]


COMMANDS = ("status", "verify")


@pytest.mark.parametrize("text", ODD)
@pytest.mark.parametrize("name", ["sweep.json", "chunks/00000001.json", "runs/0.json"])
def test_odd_json_is_one_line(copy, name, text, capsys):
    file = copy / ".sweep" / name
    for data in (text.encode(), sealed.sealed(json.loads(text)) if text[1:2] == '"' else b""):
        file.write_bytes(data)
        for command in ("status", "verify", "report") if name == "sweep.json" else COMMANDS:
            code = cli.main([command, str(copy)])
            captured = capsys.readouterr()
            if name == "sweep.json":
                assert code in (1, 2)
                assert captured.err.count("\n") <= 1
            elif command == "verify" and not (name == "runs/0.json" and data.endswith(b'"}')):
                assert code == 1
            else:
                assert code in (0, 2), captured.err


def changed(copy, **entries):
    """Write other entries into the store's description, with matching checksums."""
    file = copy / ".sweep" / "sweep.json"
    file.write_bytes(sealed.sealed({**sealed.read(file), **entries}))


def test_nothing_outside_the_store_is_read(copy, tmp_path, capsys):
    secret = tmp_path / "secret"
    secret.write_text("secret")
    about = sealed.read(copy / ".sweep" / "sweep.json")
    # Names of files outside of the store.
    for name in ("../secret", str(secret), "limit/../../secret", ""):
        changed(copy, skeleton={**about["skeleton"], name: "0"})
        with pytest.raises(SweepError, match="no description of a sweep"):
            lt.sweeps.status(copy)
        with pytest.raises(SweepError, match="no description of a sweep"):
            write_report(copy)
    changed(copy, **about)
    manifest = copy / ".sweep" / "chunks" / "00000001.json"
    kept = sealed.read(manifest)
    for name in ("../secret", str(secret), "limit/c/../../../secret"):
        manifest.write_bytes(sealed.sealed({**kept, "files": {name: "0"}}))
        assert Store(copy).damage(1) == ".sweep/chunks/00000001.json"
    manifest.write_bytes(sealed.sealed(kept))
    # Links to files outside of the store.
    file = copy / "limit" / "c" / "1" / "0" / "0"
    data = file.read_bytes()
    (tmp_path / "other").write_bytes(data)
    file.unlink()
    file.symlink_to(tmp_path / "other")
    assert Store(copy).damage(1) == "limit/c/1/0/0 (a link)"
    with pytest.raises(SweepError, match="limit/c/1/0/0 is a link, which could lead out"):
        write_report(copy)
    # Arrays of pickled objects.
    np.savez(copy / ".sweep" / "arrays.npz", x=np.array([{}], object))
    with pytest.raises(SweepError, match=r"arrays\.npz is damaged"):
        _ = Store(copy).arrays


def test_codecs_that_could_run_code_are_refused(copy, capsys):
    about = sealed.read(copy / ".sweep" / "sweep.json")
    listing = copy / "zarr.json"
    stored = json.loads(listing.read_text())
    for codec in ("pickle", "numcodecs.pickle", 3):
        inner = stored["consolidated_metadata"]["metadata"]["status"]["codecs"]
        inner[0]["configuration"]["codecs"].append({"name": codec})
        listing.write_text(json.dumps(stored))
        checksums = {k: v for k, v in about["skeleton"].items() if k != "zarr.json"}
        changed(copy, skeleton=checksums)
        with pytest.raises(SweepError, match=f"status has the codec {codec!r}"):
            write_report(copy)
        inner[0]["configuration"]["codecs"].pop()
    del stored["consolidated_metadata"]["metadata"]["status"]
    listing.write_text(json.dumps(stored))
    assert cli.main(["report", str(copy)]) == 2
    assert "is not a store of this package, or is damaged" in capsys.readouterr().err
    listing.write_text("[]")
    with pytest.raises(SweepError, match=r"zarr\.json cannot be read"):
        write_report(copy)


@pytest.mark.slow
def test_a_store_of_words_opens_without_this_package(tmp_path):
    (tmp_path / "c.toml").write_text(
        "[network]\narchitecture = ['diagonal', 'fully-connected']\n"
        "[data]\nX = [[1, 2]]\ny = [1]\n[start]\nnum_alphas = 2\nnum_directions = 2\n"
    )
    path = tmp_path / "out"
    assert cli.main(["sweep", str(tmp_path / "c.toml"), "--out", str(path)]) == 0
    script = f"""
        import sys, xarray
        ds = xarray.open_zarr({str(path)!r}, chunks=None)
        assert ds.sel(architecture="diagonal").limit.shape == (2, 2, 2)
        assert list(ds.architecture.values) == ["diagonal", "fully-connected"]
        ds.load().to_netcdf({str(tmp_path / "out.nc")!r}, engine="scipy")
        assert not any(name.startswith("lintensor") for name in sys.modules)
    """
    environment = {**os.environ, "PYTHONWARNINGS": "error::UserWarning"}
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, env=environment)
    assert xr.open_zarr(path, chunks=None).status.dtype == np.int8
    page = write_report(path).read_text()
    assert "architecture = diagonal" in page

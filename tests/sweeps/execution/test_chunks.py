"""Chunks: the function that computes one, claims, work by several processes, longer axes."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import jax
import pytest
from sweep_cases import ALPHAS, GRID, LANES, PROBLEM, axes, contents, start

import lintensor_jax as lt
from lintensor_jax import cli
from lintensor_jax.sweeps import Axis, Grid, SweepError
from lintensor_jax.sweeps.run import make_store
from lintensor_jax.sweeps.store import claims

OPTIONS = LANES


def test_a_claim_holds_while_its_process_lives_and_no_longer(tmp_path, monkeypatch):
    folder = tmp_path / "store" / ".sweep"
    script = f"""
        import pathlib, time
        from lintensor_jax.sweeps.store.claims import Claims
        with Claims(pathlib.Path({str(folder)!r})) as claims, claims.of(3) as mine:
            print(mine, flush=True)
            time.sleep(60)
    """
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == "True\n"
        (owner,) = claims.live(folder)
        assert (owner["pid"], owner["chunk"]) == (child.pid, 3)
        with claims.Claims(folder) as mine, mine.of(3) as taken:
            assert not taken
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
    assert claims.live(folder) == []
    with claims.Claims(folder) as mine, mine.of(3) as taken:
        assert taken
        assert claims.live(folder)[0]["pid"] == os.getpid()
    # For a process on another host only the time is known at which it touched its claim.
    file = folder / "claims" / "00000005.json"
    file.write_text('{"pid": 1, "host": "another-machine"}')
    assert claims.live(folder)[0]["host"] == "another-machine"
    monkeypatch.setattr(claims, "LEASE", -1.0)
    with claims.Claims(folder) as mine, mine.of(5) as taken:
        assert taken


def test_the_claim_of_a_dead_writer_on_another_host_expires(whole, tmp_path, computed, monkeypatch):
    monkeypatch.setattr(claims, "LEASE", 1.0)
    path = shutil.copytree(whole[0], tmp_path / "store")
    (path / ".sweep" / "chunks" / "00000002.json").unlink()
    (path / ".sweep" / "claims" / "00000002.json").write_text('{"pid": 1, "host": "elsewhere"}')
    assert lt.sweeps.status(path).writers == [{"pid": 1, "host": "elsewhere", "chunk": 2}]
    lt.resume(path, GRID)
    assert computed == [2]
    assert contents(path) == contents(whole[0])


def test_one_function_computes_one_chunk(whole, tmp_path, computed):
    plan = lt.sweeps.Plan(GRID, lt.sweeps.Options(**OPTIONS))
    path = tmp_path / "store"
    make_store(GRID, plan.options, path)
    assert lt.sweeps.pending(path) == [0, 1, 2, 3]
    for number in (3, 1, 3):
        manifest = lt.sweeps.compute_chunk(path, number, GRID)
        assert (manifest["chunk"], manifest["lanes"]) == (number, 15)
    assert computed == [3, 1]
    assert lt.sweeps.pending(path) == [0, 2]
    seen = []
    lt.sweeps.work(path, [0, 3], GRID, watch=seen.append)
    assert lt.sweeps.pending(path) == [2]
    assert (seen[-1].lanes, seen[-1].total) == (45, 60)
    lt.sweeps.work(path, grid=GRID)
    assert contents(path) == contents(whole[0])
    for call in (
        lambda: lt.sweeps.compute_chunk(path, 4, GRID),
        lambda: lt.sweeps.work(path, [-1], GRID),
    ):
        with pytest.raises(ValueError, match=r"0 to 3, got -?[14]"):
            call()


def test_a_longer_first_axis_computes_only_new_chunks(tmp_path, computed):
    path, options = tmp_path / "store", {**LANES, "chunk_lanes": 20}
    lt.sweep(Grid(axes(ALPHAS[:7]), start, PROBLEM, seed=7), path, **options)
    assert sorted(computed) == [0, 1]  # chunk 0 has 20 lanes, and chunk 1 has 15 of its 20
    computed.clear()
    extended = lt.extend(path, GRID)
    assert sorted(computed) == [1, 2]
    once = lt.sweep(GRID, tmp_path / "once", **options)
    kept, new = contents(path), contents(tmp_path / "once")
    differing = {name for name in new if kept[name] != new[name]}
    assert differing <= {"zarr.json"}  # the names of the configurations
    assert extended.drop_attrs().identical(once.drop_attrs())
    assert lt.sweeps.verify(path).sound
    for grid in (Grid(axes(2 * ALPHAS), start, PROBLEM, seed=7), Grid(axes(), start, PROBLEM)):
        with pytest.raises(SweepError, match="made with another grid"):
            lt.extend(path, grid)
    shorter = Grid((Axis("alpha", ALPHAS), Axis("direction", range(4))), start, PROBLEM)
    with pytest.raises(ValueError, match="more values at the end of its first axis"):
        lt.extend(path, shorter)


CONFIG = """
[network]
depth = 3
[data]
num_samples = 2
dimension = 3
[start]
alphas = [0.05, 0.1, 0.2, 0.5]
num_directions = 16
[flow]
max_steps = 60
[record]
lanes_per_chunk = 8
lanes_in_flight = 8
"""


@pytest.fixture(scope="module")
def stiff(tmp_path_factory):
    """A configuration of 64 lanes, some of them stiff, and its uninterrupted sweep."""
    folder = tmp_path_factory.mktemp("stiff")
    (folder / "c.toml").write_text(CONFIG)
    assert cli.main(["sweep", str(folder / "c.toml"), "--out", str(folder / "whole")]) == 0
    assert lt.sweeps.status(folder / "whole").stiff_lanes > 3
    return folder


def shell(*arguments):
    """A process of the command line in a new process group."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    environment["PYTHONPATH"] = str(Path(lt.__file__).parents[1])
    command = [sys.executable, "-m", "lintensor_jax", *map(str, arguments)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, start_new_session=True, **pipes)


def wait_for_chunks(path, count, *processes):
    """Wait until `count` chunks are finished."""
    began = time.monotonic()
    while len(list((path / ".sweep" / "chunks").glob("*.json"))) < count:
        assert time.monotonic() - began < 240
        assert any(p.poll() is None for p in processes), [p.communicate() for p in processes]
        time.sleep(0.02)


@pytest.mark.slow
def test_two_shells_share_a_sweep_and_one_is_killed(stiff, tmp_path, capsys):
    path = tmp_path / "out"
    assert cli.main(["sweep", str(stiff / "c.toml"), "--out", str(path), "--no-work"]) == 0
    first, second = shell("work", path), shell("work", path, "--chunks", "0-7")
    wait_for_chunks(path, 2, first, second)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    out, err = second.communicate(timeout=300)
    assert second.returncode == 0, err
    assert "64 of 64 done" in out
    assert contents(path) == contents(stiff / "whole")
    capsys.readouterr()
    assert cli.main(["verify", str(path)]) == 0


@pytest.mark.slow
def test_workers_and_the_driver_of_a_cluster_are_killed(stiff, tmp_path):
    distributed = pytest.importorskip("distributed")
    path = tmp_path / "out"
    driver = shell("sweep", stiff / "c.toml", "--out", path, "--cluster", "local:2")
    wait_for_chunks(path, 1, driver)
    os.killpg(driver.pid, signal.SIGKILL)  # this kills its workers, too
    driver.communicate()
    assert lt.sweeps.pending(path)
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        pids = list(client.run(os.getpid).values())
        killed = []

        def watch(progress):
            if progress.lanes >= 24 and not killed:
                killed.append(pids[0])
                os.kill(pids[0], signal.SIGKILL)

        lt.resume(path, client=client, watch=watch)
    assert killed
    assert contents(path) == contents(stiff / "whole")


def test_a_client_gets_the_grid_that_a_store_cannot_hold(whole, tmp_path):
    distributed = pytest.importorskip("distributed")
    with distributed.Client(
        processes=False,
        n_workers=1,
        threads_per_worker=2,
        dashboard_address=None,
        set_as_default=False,
    ) as client:
        lt.sweep(GRID, tmp_path / "store", client=client, **OPTIONS)
        with pytest.raises(ValueError, match="path: a cluster needs a folder that all"):
            lt.sweep(GRID, client=client)
    assert contents(tmp_path / "store") == contents(whole[0])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["work", "{}", "--chunks", "4-9"], "--chunks: must start below 4"),
        (["work", "{}", "--chunks", "3-1"], "--chunks: must be numbers such as 0-99"),
        (["work", "{}", "--chunks", "a"], "--chunks: must be numbers such as 0-99"),
        (["work", "{}-absent"], "holds no sweep"),
        (["resume", "{}", "--cluster", "host"], "--cluster: must be local, local:N or the address"),
        (["resume", "{}", "--cluster", "local:0"], "--cluster: local:N needs N >= 1"),
        (["verify", "{}-absent"], "holds no sweep"),
    ],
)
def test_mistakes_on_the_command_line(whole, arguments, words, capsys):
    assert cli.main([a.format(whole[0]) for a in arguments]) == 2
    assert words in capsys.readouterr().err


def test_termination_is_an_interrupt(stiff, capsys, monkeypatch):
    def terminated(*_, **__):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    monkeypatch.setattr("lintensor_jax.sweeps.run.resume", terminated)
    before = signal.getsignal(signal.SIGTERM)
    assert cli.main(["resume", str(stiff / "whole")]) == 143
    assert "finished chunks are kept" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before


def test_two_threads_on_one_device_give_the_bytes_of_one(whole, tmp_path):
    lt.sweep(GRID, tmp_path / "two", devices=jax.devices()[:1] * 2, **OPTIONS)
    assert contents(tmp_path / "two") == contents(whole[0])

"""One device or many, one process or two: the same bytes."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from sweep_cases import GRID, LANES, contents

import lintensor_jax as lt

SCRIPT = """
import sys
import jax
jax.config.update("jax_enable_x64", True)
folder, processes, process, port, devices = sys.argv[1], *map(int, sys.argv[2:])
if processes > 1:
    jax.distributed.initialize(f"localhost:{port}", processes, process)
import lintensor_jax as lt
from sweep_cases import GRID, LANES
assert len(jax.local_devices()) == devices
results = lt.sweep(GRID, folder, **LANES)
assert (results.status == 1).all()
print("done")
"""


def child(path, devices=1, processes=1, process=0, port=0):
    """A process that runs the sweep, or its share of it."""
    environment = {
        **os.environ,
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "JAX_PLATFORMS": "cpu",
    }
    numbers = map(str, (processes, process, port, devices))
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(path), *numbers],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(*children):
    """Their ends, or what they complained about."""
    for each in children:
        out, err = each.communicate(timeout=300)
        assert out.endswith("done\n"), err


def test_chunks_are_dealt_out(tmp_path):
    """Two workers on one device take turns; the results do not tell."""
    lt.sweep(GRID, tmp_path / "one", **LANES)
    lt.sweep(GRID, tmp_path / "two", devices=jax.devices()[:1] * 2, **LANES)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


@pytest.mark.slow
def test_eight_devices_give_the_bytes_of_one(tmp_path):
    finish(child(tmp_path / "one"))
    finish(child(tmp_path / "eight", devices=8))
    assert contents(tmp_path / "one") == contents(tmp_path / "eight")


@pytest.mark.slow
def test_two_processes_fill_one_store(tmp_path):
    finish(child(tmp_path / "one"))
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    finish(*(child(tmp_path / "both", 1, 2, process, port) for process in (0, 1)))
    assert contents(tmp_path / "one") == contents(tmp_path / "both")
    runs = list((tmp_path / "both" / ".sweep" / "runs").iterdir())
    assert len(runs) == 2

"""JAX's cache of compiled programs on disk: turned on by one call, and used by flows."""

import os

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

import lintensor_jax as lt

FOLDER = "jax_compilation_cache_dir"
LEAST = "jax_persistent_cache_min_compile_time_secs"
SIZE = "jax_persistent_cache_min_entry_size_bytes"
NETWORK = lt.DiagonalNetwork(jnp.array([[0.3, 0.4, 0.2], [0.0, 0.1, 0.3]]))
PROBLEM = lt.Regression([[1.0, 2.0, -1.0]], [1.0])


@pytest.fixture(autouse=True)
def _settings_are_restored(monkeypatch):
    for name in (FOLDER, LEAST, SIZE):
        monkeypatch.delenv(name.upper(), raising=False)
    before = {name: getattr(jax.config, name) for name in (FOLDER, LEAST, SIZE)}
    jax.config.update(FOLDER, None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def _kept(folder, name):
    return sorted(path.name for path in folder.glob(f"jit_{name}-*-cache"))


def test_flows_with_saved_times_are_kept(tmp_path):
    jnp.arange(7.0).sum()  # JAX has decided by now that there is no cache
    assert lt.enable_compilation_cache(tmp_path) == tmp_path
    lt.gradient_flow(NETWORK, PROBLEM, saveat=[0.5, 1.0, 2.0])
    kept = _kept(tmp_path, "solve_segment")
    assert len(kept) == 1
    assert _kept(tmp_path, "trajectory_of")
    jax.clear_caches()
    # Times are numbers of the program, so other times need no other program.
    lt.gradient_flow(NETWORK, PROBLEM, saveat=[0.1, 0.2, 3.0])
    assert _kept(tmp_path, "solve_segment") == kept


@pytest.mark.slow
def test_a_flow_on_every_clock_and_by_the_implicit_method_is_kept(tmp_path):
    lt.enable_compilation_cache(tmp_path)
    data = lt.Classification([[1.0, 2.0, 0.5], [0.0, -3.0, 1.0]], [1.0, -1.0])
    for clock in (lt.LogArcLength(), lt.LossTime(), lt.PhysicalTime()):
        stop = lt.StopAtMargin(50.0 if isinstance(clock, lt.LogArcLength) else 5.0)
        lt.gradient_flow(NETWORK, data, clock=clock, stop=stop, saveat=[0.01, 0.02])
    assert len(_kept(tmp_path, "solve_segment")) >= 3


def test_by_default_the_folder_is_that_of_the_command_line(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert lt.enable_compilation_cache() == tmp_path / "lintensor_jax" / "jax"
    assert getattr(jax.config, FOLDER) == str(tmp_path / "lintensor_jax" / "jax")
    assert (getattr(jax.config, LEAST), getattr(jax.config, SIZE)) == (0.0, -1)
    # A folder that is in use stays.
    assert lt.enable_compilation_cache(tmp_path / "mine") == tmp_path / "mine"
    assert lt.enable_compilation_cache() == tmp_path / "mine"


def test_settings_of_the_environment_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv(LEAST.upper(), "0.5")
    jax.config.update(LEAST, 0.5)
    lt.enable_compilation_cache(os.fspath(tmp_path))
    assert getattr(jax.config, LEAST) == 0.5


@pytest.mark.parametrize("folder", [3, b"cache", True])
def test_a_folder_must_be_a_path(folder):
    with pytest.raises(ValueError, match="folder: must be a path"):
        lt.enable_compilation_cache(folder)


def test_a_file_is_no_folder(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ValueError, match=r"folder: .* is a file; pass a folder"):
        lt.enable_compilation_cache(file)

"""Settings of all tests: float64, quick compilation, and an error for implicit rank promotion."""

import gc
import os
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from lintensor_jax.dynamics.batch import preparation

# Two thirds of a suite's time are compilation, and a quarter of the whole is XLA's optimisation. So
# the programs of XLA are compiled without it, here and in the processes that tests start. `.ci/run`
# sets this variable to 0 for the newest Python and for the slow tests.
if "JAX_DISABLE_MOST_OPTIMIZATIONS" not in os.environ:
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    jax.config.update("jax_disable_most_optimizations", True)
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_collection_modifyitems(items):
    """Mark as slow the tests of a whole experiment, and the later cases of a sampled test.

    A test of a whole experiment has, by convention, a fixture `result`.
    """
    cases: dict[str, int] = {}
    for item in items:
        name = item.nodeid.partition("[")[0]
        cases[name] = cases.get(name, 0) + 1
        sampled = item.get_closest_marker("slow_beyond")
        if "result" in item.fixturenames or (sampled and cases[name] > sampled.args[0]):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="module", autouse=True)
def _drop_compiled_programs():
    """Drop compiled programs: hundreds in one process exhaust its memory maps, and XLA crashes."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture(autouse=True)
def _forget_prepared_batches():
    """Forget what was prepared for batches: a test may replace what a preparation depends on."""
    preparation._prepared.clear()


@pytest.fixture(autouse=True)
def _drop_compiled_programs_of_slow_tests(request):
    """Drop them between the cases of a slow test, too. Linux allows 65,530 maps for a process."""
    yield
    if request.node.get_closest_marker("slow") and _number_of_memory_maps() > 20_000:
        jax.clear_caches()
        gc.collect()


def _number_of_memory_maps():
    maps = Path("/proc/self/maps")
    return maps.read_bytes().count(b"\n") if maps.exists() else 0


@pytest.fixture(scope="module")
def cache_of_its_own(tmp_path_factory):
    """Use a temporary cache, as the command line turns JAX's cache on; turn it off afterwards."""
    names = (
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    )
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("cache")))
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()

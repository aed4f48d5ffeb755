"""Every test runs in float64, with implicit rank promotion refused."""

import gc

import jax
import pytest

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_collection_modifyitems(items):
    """Tests of a whole experiment, by convention on a fixture `result`, are slow ones."""
    for item in items:
        if "result" in item.fixturenames:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="module", autouse=True)
def _drop_compiled_programs():
    """Hundreds of compiled programs in one process exhaust its memory maps, and XLA crashes."""
    yield
    jax.clear_caches()
    gc.collect()

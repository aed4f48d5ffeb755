"""Fixtures: a sweep that several test files compare with, and the numbers of computed chunks."""

import pytest
from sweep_cases import GRID, LANES

import lintensor_jax as lt
from lintensor_jax.sweeps.execution import worker


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """An uninterrupted run: its folder and its results."""
    path = tmp_path_factory.mktemp("whole") / "store"
    return path, lt.sweep(GRID, path, **LANES)


@pytest.fixture
def computed(monkeypatch):
    """The numbers of the chunks that are computed."""
    numbers = []
    compute = worker.Worker.chunk

    def counted(self, chunk, device):
        numbers.append(chunk.number)
        return compute(self, chunk, device)

    monkeypatch.setattr(worker.Worker, "chunk", counted)
    return numbers

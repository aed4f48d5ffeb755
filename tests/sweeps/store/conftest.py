"""Stores that were written in format 1."""

import zipfile
from pathlib import Path

import pytest

FORMAT_1 = Path(__file__).parents[2] / "data" / "format1"


@pytest.fixture
def store(request, tmp_path):
    """A copy of a store that was written in format 1."""
    path = tmp_path / request.param
    with zipfile.ZipFile(FORMAT_1 / f"{request.param}.zip") as file:
        file.extractall(path)
    return path

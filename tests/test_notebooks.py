"""The notebooks are committed complete and without paths of a machine, and they run."""

import json
import os
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "notebooks"
NAMES = (
    "1-quick-tour",
    "2-yun2021",
    "3-own-architecture-and-regulariser",
    "4-a-million-flows",
    "5-alignment-and-rates",
)
LARGEST = 500_000  # bytes; figures are in it
# Absolute paths of any machine, temporary folders and installed packages.
A_PATH = re.compile(r"(?<![\w.])/(?:tmp|home|work|root|usr|opt|Users|var)/|[A-Z]:\\|site-packages")


def _read(name):
    return json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))


def _code(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_all_notebooks_are_known():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_committed_as_one_run_left_it(name):
    notebook = _read(name)
    code = _code(notebook)
    assert (FOLDER / f"{name}.ipynb").stat().st_size < LARGEST
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert 'jax.config.update("jax_enable_x64", True)' in "".join(code[0]["source"])
    assert any("assert " in "".join(cell["source"]) for cell in code)
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not A_PATH.search(_text(outputs))
    assert all(cell["metadata"] == {} for cell in notebook["cells"])
    assert set(notebook["metadata"]) == {"kernelspec", "language_info"}


def _text(outputs):
    parts = []
    for output in outputs:
        parts += output.get("text", [])
        for kind, value in output.get("data", {}).items():
            if kind.startswith("text/"):
                parts += value
    return "".join(parts)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_runs_and_its_assertions_hold(name, monkeypatch):
    """The quick mode has smaller sizes and the same assertions."""
    nbclient = pytest.importorskip("nbclient", reason='needs pip install ".[notebooks]"')
    nbformat = pytest.importorskip("nbformat", reason='needs pip install ".[notebooks]"')
    pytest.importorskip("ipykernel", reason='needs pip install ".[notebooks]"')
    monkeypatch.setenv("LINTENSOR_QUICK", "1")
    # No thread of the client's is left for pytest to complain about; errors of cells are raised.
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3")
    client.execute(env=dict(os.environ))
    outputs = [output for cell in _code(notebook) for output in cell["outputs"]]
    assert not [output for output in outputs if output.get("name") == "stderr"]

"""Run the notebooks and write their outputs into them: what is committed.

    pip install ".[notebooks]"
    python notebooks/refresh.py                          # all of them
    python notebooks/refresh.py notebooks/1-quick-tour.ipynb

Nothing that differs from run to run is kept: no times of execution, no versions of the kernel.
LINTENSOR_QUICK=1 makes small sizes of large ones; committed outputs are made without it.
"""

import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent
SECONDS = 600  # of one cell


def executed(path: Path) -> nbformat.NotebookNode:
    """The notebook after a run in a fresh kernel; an error in a cell is raised."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook,
        timeout=SECONDS,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(path.parent)}},
    ).execute()
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for index, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{index:02d}", {}
    return notebook


def main(arguments: list[str]) -> None:
    """Refresh the notebooks that are named, or all."""
    if "LINTENSOR_QUICK" in os.environ:
        raise SystemExit("LINTENSOR_QUICK is set: outputs to be kept are made without it; unset it")
    for path in map(Path, arguments or sorted(FOLDER.glob("*.ipynb"))):
        notebook = executed(path.resolve())
        nbformat.write(notebook, path)
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])

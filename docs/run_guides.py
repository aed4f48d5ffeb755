"""Run the programs of the guides, and keep their figures for the pages.

    python docs/run_guides.py [NAME ...]

Every guide runs in an empty folder. The PNGs that it writes become docs/figures/guides/NAME.png.
"""

import os
import re
import runpy
import shutil
import sys
import tempfile
import time
from pathlib import Path

DOCS = Path(__file__).parent
FIGURES = DOCS / "figures" / "guides"
_PROGRAM = re.compile(r"```python\n(.*?)```", re.DOTALL)


def run(guide: Path, folder: Path) -> list[Path]:
    """Run the program of one page in `folder`; the PNGs that it wrote."""
    (program,) = _PROGRAM.findall(guide.read_text(encoding="utf-8"))
    path = folder / f"{guide.stem}.py"
    path.write_text(program, encoding="utf-8")
    here = Path.cwd()
    os.chdir(folder)
    try:
        runpy.run_path(str(path))
    finally:
        os.chdir(here)
    return sorted(folder.glob("*.png"))


def main() -> None:
    """Run the named guides, or all."""
    import matplotlib as mpl

    mpl.use("Agg")
    FIGURES.mkdir(parents=True, exist_ok=True)
    for guide in sorted((DOCS / "guides").glob("*.md")):
        if sys.argv[1:] and guide.stem not in sys.argv[1:]:
            continue
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            for figure in run(guide, Path(folder)):
                shutil.copy(figure, FIGURES / figure.name)
        print(f"{guide.name}: {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()

"""The experiment on Papazov, Pesme & Flammarion 2024."""

from typing import Any

from ..framework import Experiment
from .configuration import Configuration, reduce
from .results import Result
from .run import run
from .tables import TITLE, report


def _figures(result: Result) -> dict[str, Any]:
    # Matplotlib is imported only where figures are drawn.
    from .figures import figures

    return figures(result)


EXPERIMENT = Experiment(
    name="papazov2024",
    title=TITLE,
    Configuration=Configuration,
    reduce=reduce,
    run=run,
    report=report,
    figures=_figures,
)

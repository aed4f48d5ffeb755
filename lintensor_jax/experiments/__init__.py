"""The papers' experiments, one package each; `framework.Experiment` says what each one defines."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .framework import Experiment

EXPERIMENTS = {
    "yun2021": "yun2021.figures_1_and_3",
    "yun2021-regression": "yun2021.regression",
    "yun2021-classification": "yun2021.classification",
    "ji-telgarsky2019": "ji_telgarsky2019",
    "gunasekar2018": "gunasekar2018",
    "min2021": "min2021",
    "eftekhari2020": "eftekhari2020",
}


def find(name: str) -> "Experiment":
    """The experiment of that name; KeyError for a name that is not in `EXPERIMENTS`."""
    module = importlib.import_module(f"{__name__}.{EXPERIMENTS[name]}.experiment")
    return module.EXPERIMENT

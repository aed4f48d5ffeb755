"""One module per paper: its figures and tables, as data and a plot call.

A module that `EXPERIMENTS` names has

- `Configuration`: a `lintensor_jax.config.Config` whose defaults are the paper's setup;
- `reduce(config) -> (config, notes)`: a quicker setup with the same checks, and what is reduced;
- `run(config, reduced, track) -> result`, where `track(jobs)` iterates over a list of jobs and may
  show progress (`str(job)` describes one);
- `result.report() -> Report` and `result.figures() -> dict[str, matplotlib.figure.Figure]`.
"""

import importlib
from types import ModuleType

EXPERIMENTS = {
    "yun2021": "yun2021",
    "yun2021-regression": "yun2021_regression",
    "yun2021-classification": "yun2021_classification",
    "ji-telgarsky2019": "ji_telgarsky2019",
    "gunasekar2018": "gunasekar2018",
    "min2021": "min2021",
    "eftekhari2020": "eftekhari2020",
}


def find(name: str) -> ModuleType:
    """The module of an experiment; KeyError for a name that is not in `EXPERIMENTS`."""
    return importlib.import_module(f"{__name__}.{EXPERIMENTS[name]}")

"""What an experiment consists of, and how one is run from its configuration to its files."""

import concurrent.futures
import dataclasses
import gc
import importlib
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax

from ..config import ConfigError, load
from .report import REPORT_FILES, Report

J = TypeVar("J")
# Iterates over a list of jobs; it may show progress (`str(job)` describes one).
Track = Callable[[Sequence[Any]], Iterable[Any]]

#: The package of each experiment, in this folder.
EXPERIMENTS = {
    "yun2021": "yun2021.figures_1_and_3",
    "yun2021-regression": "yun2021.regression",
    "yun2021-classification": "yun2021.classification",
    "ji-telgarsky2019": "ji_telgarsky2019",
    "gunasekar2018": "gunasekar2018",
    "min2021": "min2021",
    "eftekhari2020": "eftekhari2020",
    "pesme2021": "pesme2021",
    "even2023": "even2023",
    "pesme-flammarion2023": "pesme_flammarion2023",
    "papazov2024": "papazov2024",
}


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The experiment of one paper, or of one part of a paper.

    - `Configuration`: a `Config` whose defaults are the paper's setup.
    - `reduce(config) -> (config, notes)`: a quicker setup with the same checks. Each note says
      what is reduced.
    - `run(config, notes, track) -> result`: everything that is computed, as plain data.
    - `report(result) -> Report`: the tables, and the checks with their bounds.
    - `figures(result)`: Matplotlib figures by name. Only this function imports Matplotlib.
    """

    name: str
    title: str
    Configuration: type[Any]  # a subclass of `Config`
    reduce: Callable[[Any], tuple[Any, tuple[str, ...]]]
    run: Callable[..., Any]
    report: Callable[[Any], Report]
    figures: Callable[[Any], dict[str, Any]]


def find(name: str) -> Experiment:
    """The experiment of that name; KeyError for a name that is not in `EXPERIMENTS`."""
    package = __name__.rpartition(".")[0]
    module = importlib.import_module(f"{package}.{EXPERIMENTS[name]}.experiment")
    return module.EXPERIMENT


@dataclasses.dataclass(frozen=True)
class Picture:
    """The files of one figure, and the seconds that drawing it took."""

    name: str
    png: Path
    pdf: Path
    seconds: float


@dataclasses.dataclass(frozen=True)
class ExperimentRun:
    """One experiment that was run: its report and figures, or the traceback of its error.

    - `command`: the command line that runs it again.
    - `seconds`: the time of everything, with compilation and figures.
    - `printed`: plain values that the option `--json` prints.
    """

    name: str
    command: str
    seconds: float
    report: Report | None = None
    pictures: tuple[Picture, ...] = ()
    failure: str = ""
    printed: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether there was no error and every check holds."""
        return not self.failure and self.report is not None and self.report.passed


def run_experiment(
    name: str,
    folder: Path,
    command: str,
    *,
    quick: bool = False,
    config_file: Path | None = None,
    track: Track = iter,
) -> ExperimentRun:
    """Run the experiment `name` and write its tables and figures to `folder`.

    `quick` reduces the configuration. Raises ConfigError for a mistake in `config_file`, and
    for a value in it that the library refuses.
    """
    from ..figures.style import save

    start = time.perf_counter()
    experiment = find(name)
    kind = experiment.Configuration
    config, reduced = (kind() if config_file is None else load(config_file, kind)), ()
    if quick:
        config, reduced = experiment.reduce(config)
    try:
        result = experiment.run(config, reduced, track)
    except ValueError as error:
        if config_file is None:
            raise
        # The library's message names the argument, the rule, the value and the fix.
        raise ConfigError(f"{config_file}:", " ".join(str(error).split())) from None
    report = experiment.report(result)
    report.write(folder)
    pictures = []
    for stem, figure in experiment.figures(result).items():
        began = time.perf_counter()
        paths = save(figure, folder / stem)
        pictures.append(Picture(stem, *paths, seconds=time.perf_counter() - began))
    seconds = time.perf_counter() - start
    written = [folder / file for file in REPORT_FILES]
    written += [path for picture in pictures for path in (picture.png, picture.pdf)]
    printed = {**report.as_json(), "wrote": [str(path) for path in written]}
    return ExperimentRun(name, command, seconds, report, tuple(pictures), printed=printed)


def run_or_keep_error(name: str, folder: Path, command: str, **options: Any) -> ExperimentRun:
    """`run_experiment` for one of many experiments: an error does not stop the others.

    After an error, `failure` of the result is its traceback.
    """
    start = time.perf_counter()
    try:
        done = run_experiment(name, folder, command, **options)
    except Exception:
        seconds, failure = time.perf_counter() - start, traceback.format_exc()
        printed = {"experiment": name, "passed": False, "error": failure}
        done = ExperimentRun(name, command, seconds, failure=failure, printed=printed)
    # Each compiled program keeps memory maps; thousands of programs exceed the system's limit.
    jax.clear_caches()
    gc.collect()
    return done


def compute_two_at_a_time(
    jobs: Sequence[J], compute: Callable[[J], Any], track: Track, alone: Sequence[J] = ()
) -> dict[J, Any]:
    """Call `compute(job)` for every job; returns the results by job.

    Two threads work on `jobs`, because compilation takes most of the time of an experiment and uses
    one core. Afterwards the jobs of `alone` run one after the other.
    """
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        pending = {job: pool.submit(compute, job) for job in jobs}
        return {
            job: pending[job].result() if job in pending else compute(job)
            for job in track([*jobs, *alone])
        }

"""Min, Tarmoun, Vidal & Mallada 2021: convergence rates, implicit bias and width.

Figures 2 and 4: the spectrum of the imbalance at two widths. Figure 5: loss and rate against
Theorem 3 and Proposition 1 for four widths. Figures 3 and 6: starts with one end-to-end matrix and
different imbalance. Figure 7: the distance between the trained network and the min-norm solution
against the width.

The paper runs gradient descent with small steps; here the flow itself is integrated. Its loss of
A.2 and A.3 is an average, |Y - X U V^T|_F^2 / n: a step eta there is a time 2 eta / n here. Section
5.1 has m = 5 and A.1 m = 10: both spectra are drawn, the flows are those of A.1. Entries of Y have
the variance 0.1.

All flows are integrated in reduced coordinates, which is exact (`min2021_setups.Reduction`): for
d = 500, n = 100 and a width of 10,000 the state has 10,201 numbers instead of 5,010,000, and the
largest arrays are U itself, 40 MB, and as many units of it as move, 8 MB.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np

from ..config import Config, ConfigError, Integer, ListOf, Number, setting, table
from ..initialization import balanced_on_data, imbalanced
from ..networks import FullyConnectedNetwork
from ..theory.min_norm import min_norm
from ..theory.norms import L2Norm
from . import min2021_tables
from .min2021_runs import RateRun, Spectrum, WidthRun, rate_run, spectrum, width_run
from .min2021_setups import factorization, gaussian_data, whitened_data
from .report import Report

_POSITIVE = Number(above=0)
_MOST_LINES = 6
_QUICK_WIDTHS = 5000


@dataclasses.dataclass(frozen=True)
class RateTask(Config):
    """Figures 2, 4 and 5: 1/2 |Y - U V^T / sqrt(m h)|_F^2, U (inputs, h) and V (outputs, h)."""

    inputs: int = setting(20, Integer(1))
    outputs: int = setting(10, Integer(1))
    spectrum_outputs: tuple[int, ...] = setting((5, 10), ListOf(Integer(1)))
    spectrum_widths: tuple[int, ...] = setting((30, 1000), ListOf(Integer(1)))
    widths: tuple[int, ...] = setting((30, 100, 300, 1000), ListOf(Integer(1)))
    duration: float = setting(60.0, _POSITIVE)

    def check(self) -> None:
        """As many widths as there are colours, each wide enough for the theory."""
        if len(set(self.widths)) > _MOST_LINES:
            raise ConfigError(
                "widths", f"must be at most {_MOST_LINES}, got {list(self.widths)}; drop some."
            )
        for key, least in (
            ("widths", min(self.inputs, self.outputs)),
            ("spectrum_widths", min(self.inputs, *self.spectrum_outputs)),
        ):
            narrow = [width for width in getattr(self, key) if width < least]
            if narrow:
                raise ConfigError(
                    key, f"must be >= min(inputs, outputs) = {least}, got {narrow[0]}; widen it."
                )


@dataclasses.dataclass(frozen=True)
class ImbalanceTask(Config):
    """Figures 3 and 6: d = dimension inputs, one output, all singular values of X equal to 1."""

    dimension: int = setting(500, Integer(2))
    num_samples: int = setting(100, Integer(1))
    width: int = setting(500, Integer(1))
    first_scales: tuple[float, ...] = setting((0.1, 0.5, 0.05), ListOf(_POSITIVE))
    last_scales: tuple[float, ...] = setting((0.1, 0.02, 0.2), ListOf(_POSITIVE))
    duration: float = setting(1.5, _POSITIVE)

    def check(self) -> None:
        """Underdetermined, and pairs of scales with one product."""
        _require_underdetermined(self)
        first, last = self.first_scales, self.last_scales
        if len(first) != len(last) or np.ptp(np.log(np.multiply(first, last))) > 1e-9:
            raise ConfigError(
                "last_scales",
                f"must have the same product with first_scales = {list(first)} everywhere, got "
                f"{list(last)}; then all starts have one end-to-end matrix.",
            )


@dataclasses.dataclass(frozen=True)
class WidthTask(Config):
    """Figure 7: entries from N(0, h^(-2 exponent)), one output."""

    dimension: int = setting(500, Integer(2))
    num_samples: int = setting(100, Integer(1))
    widths: tuple[int, ...] = setting((500, 1000, 2000, 3000, 5000, 10_000), ListOf(Integer(1)))
    runs: int = setting(5, Integer(2))
    exponent: float = setting(0.5, Number(above=0.25))

    def check(self) -> None:
        """Underdetermined, and widths enough for a slope."""
        _require_underdetermined(self)
        if len(set(self.widths)) < 2:
            raise ConfigError(
                "widths", f"must hold two different widths, got {list(self.widths)}; add one."
            )
        if self.exponent > 0.5:
            raise ConfigError(
                "exponent",
                f"must be <= 0.5 (Theorem 12), got {self.exponent:g}; the default is 0.5.",
            )


@dataclasses.dataclass(frozen=True)
class Configuration(Config):
    """The paper's figures."""

    seed: int = setting(2021, Integer(0))
    rtol: float = setting(1e-10, _POSITIVE)
    num_times: int = setting(61, Integer(2))
    rates: RateTask = table(RateTask)  # noqa: RUF009
    imbalance: ImbalanceTask = table(ImbalanceTask)  # noqa: RUF009
    width: WidthTask = table(WidthTask)  # noqa: RUF009


def reduce(config: Configuration) -> tuple[Configuration, tuple[str, ...]]:
    """Figure 7 without its widest networks; everything else, and the checks, stay as they are."""
    task = config.width
    kept = tuple(width for width in task.widths if width <= _QUICK_WIDTHS)
    if kept == task.widths or len(set(kept)) < 2:
        return config, ()
    note = f"Figure 7: widths up to {max(kept)} instead of {max(task.widths)}"
    return dataclasses.replace(config, width=dataclasses.replace(task, widths=kept)), (note,)


@dataclasses.dataclass(frozen=True)
class Result:
    """Everything that was computed."""

    config: Configuration
    reduced: tuple[str, ...]
    spectra: tuple[Spectrum, ...]
    rates: tuple[RateRun, ...]
    imbalance: tuple[RateRun, ...]  # the last one is balanced
    end_to_end: float  # largest difference between the starts' end-to-end matrices, relative
    widths: tuple[WidthRun, ...]

    def report(self) -> Report:
        """The tables and the checks of the acceptance bounds."""
        return min2021_tables.report(self)

    def figures(self) -> dict[str, Any]:
        """Figures 2 and 4 (one figure), 5, 3 and 6 (one figure), and 7 (needs matplotlib)."""
        from . import min2021_figures

        return min2021_figures.figures(self)


@dataclasses.dataclass(frozen=True)
class Job:
    """One figure, or one point of it."""

    figure: str
    width: int = 0
    index: int = 0

    def __str__(self) -> str:
        where = f", h = {self.width}" if self.width else ""
        return f"{self.figure}{where}" + (f", run {self.index + 1}" if self.index else "")


def run(
    config: Configuration,
    reduced: tuple[str, ...] = (),
    track: Callable[[Sequence[Job]], Iterable[Job]] = iter,
) -> Result:
    """Integrate and bound, flow by flow."""
    jobs = [Job("Figures 2, 4")]
    jobs += [Job("Figure 5", width) for width in config.rates.widths]
    jobs += [Job("Figures 3, 6")]
    task = config.width
    jobs += [Job("Figure 7", width, k) for width in task.widths for k in range(task.runs)]
    problem = gaussian_data(task.dimension, task.num_samples, config.seed)
    solution = np.asarray(min_norm(problem, L2Norm()).coefficients)
    accuracy = config.num_times, config.rtol
    drawing = task.exponent, config.seed, config.rtol
    spectra, rates, starts, difference, widths = (), [], (), 0.0, []
    for job in track(jobs):
        match job.figure:
            case "Figures 2, 4":
                spectra = _spectra(config)
            case "Figure 5":
                start = factorization(
                    config.rates.inputs, config.rates.outputs, job.width, config.seed
                )
                label = f"h = {job.width}"
                rates.append(rate_run(label, *start, config.rates.duration, *accuracy))
            case "Figures 3, 6":
                starts, difference = _imbalance(config)
            case _:
                widths.append(width_run(job.width, job.index, problem, solution, *drawing))
    return Result(config, reduced, spectra, tuple(rates), starts, float(difference), tuple(widths))


def _spectra(config):
    task = config.rates
    return tuple(
        spectrum(outputs, width, *factorization(task.inputs, outputs, width, config.seed))
        for outputs in task.spectrum_outputs
        for width in task.spectrum_widths
    )


def _imbalance(config):
    task = config.imbalance
    problem = whitened_data(task.dimension, task.num_samples, config.seed)
    like = FullyConnectedNetwork.zeros((task.dimension, task.width))
    key = jax.random.key(config.seed)
    starts = {
        f"σ_U = {first:g}, σ_V = {last:g}": imbalanced(
            like, key, first_scale=first, last_scale=last
        )
        for first, last in zip(task.first_scales, task.last_scales, strict=True)
    }
    beta = next(iter(starts.values())).linear_coefficients()
    starts["balanced"] = balanced_on_data(like, beta, problem)
    differences = [n.linear_coefficients() - beta for n in starts.values()]
    runs = tuple(
        rate_run(label, network, problem, task.duration, config.num_times, config.rtol)
        for label, network in starts.items()
    )
    return runs, np.max(np.abs(differences)) / np.max(np.abs(beta))


def _require_underdetermined(task):
    if task.num_samples >= task.dimension:
        raise ConfigError(
            "num_samples",
            f"must be < dimension = {task.dimension}, got {task.num_samples}; with one solution "
            "only nothing depends on the start.",
        )

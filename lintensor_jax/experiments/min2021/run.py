"""The flows of Min, Tarmoun, Vidal & Mallada 2021: convergence rates, implicit bias and width.

- Figures 2 and 4: the spectrum of the imbalance at two widths.
- Figure 5: loss and rate against Theorem 3 and Proposition 1 for four widths.
- Figures 3 and 6: starts with one end-to-end matrix and different imbalance.
- Figure 7: the distance between the trained network and the min-norm solution against the width.

The paper runs gradient descent with small steps; here the flow itself is integrated. The loss of
A.2 and A.3 is an average, |Y - X U V^T|_F^2 / n, so that a step eta there is a time 2 eta / n here.
Section 5.1 has m = 5 and A.1 has m = 10. Both spectra are drawn; the flows are those of A.1. The
entries of Y have the variance 0.1.

All flows are integrated in reduced coordinates, which is exact (`setup.Reduction`): for d = 500,
n = 100 and a width of 10,000 the state has 10,201 numbers instead of 5,010,000. The largest arrays
are U, 40 MB, and the units of U that move, 8 MB.
"""

import dataclasses

import diffrax
import equinox as eqx
import jax
import numpy as np

from ...dynamics import gradient_flow
from ...dynamics.statuses import status_name
from ...dynamics.stopping import StopAtTime
from ...initialization import balanced_on_data, imbalanced, width_scaled
from ...networks import FullyConnectedNetwork
from ...problems import Regression
from ...theory.least_norm.min_norm import min_norm
from ...theory.least_norm.norms import L2Norm
from ...theory.rates.bounds import deviation_bound, distance_from_invariant_set
from ...theory.rates.imbalance import convergence_rate_bound, imbalance
from ...theory.rates.wide_networks import lemma_11, theorem_12
from ..framework import Track
from .configuration import Configuration
from .results import RateRun, Result, Spectrum, WidthRun
from .setup import Reduction, factorization, gaussian_data, measured_rate, whitened_data


@dataclasses.dataclass(frozen=True)
class Job:
    """One figure, or one point of a figure."""

    figure: str
    width: int = 0
    index: int = 0

    def __str__(self) -> str:
        where = f", h = {self.width}" if self.width else ""
        return f"{self.figure}{where}" + (f", run {self.index + 1}" if self.index else "")


def run(
    config: Configuration,
    reduced: tuple[str, ...] = (),
    track: Track = iter,
) -> Result:
    """Integrate the flows one by one, and evaluate their bounds."""
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
                rates.append(_rate_run(label, *start, config.rates.duration, *accuracy))
            case "Figures 3, 6":
                starts, difference = _imbalance(config)
            case _:
                widths.append(_width_run(job.width, job.index, problem, solution, *drawing))
    return Result(config, reduced, spectra, tuple(rates), starts, float(difference), tuple(widths))


def _spectra(config):
    task = config.rates
    return tuple(
        _spectrum(outputs, width, *factorization(task.inputs, outputs, width, config.seed))
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
        _rate_run(label, network, problem, task.duration, config.num_times, config.rtol)
        for label, network in starts.items()
    )
    return runs, np.max(np.abs(differences)) / np.max(np.abs(beta))


def _spectrum(
    outputs: int, width: int, network: FullyConnectedNetwork, problem: Regression
) -> Spectrum:
    """The imbalance of a start, without the eigenvalues of D that are zero for every start."""
    found = imbalance(network, problem)
    scale = outputs * width
    values, rank = np.asarray(found.eigenvalues) / scale, int(found.rank)
    if width > rank + outputs:  # the eigenvalues in between are zero
        values = np.concatenate([values[:rank], values[-outputs:]])
    return Spectrum(
        outputs=outputs,
        width=width,
        rank=rank,
        eigenvalues=values,
        positive_spread=float(found.positive_spread) / scale,
        negative_spread=float(found.negative_spread) / scale,
        level=float(found.level) / scale,
    )


def _rate_run(
    label: str,
    network: FullyConnectedNetwork,
    problem: Regression,
    duration: float,
    num_times: int,
    rtol: float,
) -> RateRun:
    """Integrate a flow in reduced coordinates, and bound its loss and rate at every saved time."""
    reduction = Reduction.of(network, problem)
    # The times are denser at the start, where the fast directions decay.
    times = duration * np.linspace(0.0, 1.0, num_times) ** 2
    flow = gradient_flow(
        reduction.network,
        reduction.problem,
        solver=diffrax.Dopri8(),
        rtol=rtol,
        stop=StopAtTime(duration),
        finish=None,
        saveat=times,
        observe=_state,
        throw=False,
    )
    states = jax.tree.map(lambda leaf: leaf[: len(times)], flow.observed)
    bounds, slopes = _bounds_along(states, reduction.problem)
    # The reduced data have an exact fit, so that their loss is the excess loss.
    excess = np.exp(np.asarray(flow.log_loss)[: len(times)])
    spreads = bounds.imbalance
    return RateRun(
        label=label,
        times=times,
        excess_loss=excess,
        rate=np.asarray(slopes) / excess,
        proposition_1=np.asarray(bounds.instantaneous),
        corollary_6=np.asarray(bounds.guaranteed),
        theorem_3=float(bounds.guaranteed[0]),
        corollary_4=float(bounds.by_imbalance[0]),
        asymptotic=float(bounds.asymptotic[0]),
        spreads=(
            float(spreads.positive_spread[0]),
            float(spreads.negative_spread[0]),
            float(spreads.level[0]),
        ),
        status=status_name(flow.status),
        num_steps=int(flow.stats["num_steps"]),
        invariant_drift=float(np.max(flow.invariant_drift)),
    )


def _state(network):
    return network


@eqx.filter_jit
def _bounds_along(states, problem):
    # One state at a time: the singular value decompositions of all would need too much memory.
    return jax.lax.map(
        lambda state: (convergence_rate_bound(state, problem), measured_rate(state, problem)),
        states,
    )


def _width_run(
    width: int,
    index: int,
    problem: Regression,
    solution: np.ndarray,
    exponent: float,
    seed: int,
    rtol: float,
) -> WidthRun:
    """Integrate the flow from N(0, h^(-2 exponent)) to its end, and bound where it ends."""
    like = FullyConnectedNetwork.zeros((problem.X.shape[1], width))
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), width), index)
    network = width_scaled(like, key, exponent)
    reduction = Reduction.of(network, problem)
    flow = gradient_flow(
        reduction.network,
        reduction.problem,
        solver=diffrax.Dopri8(),
        rtol=rtol,
        # The stop rule leaves a residual of 1e-9 of the targets. A finish would take a hundred
        # times as long as the flow.
        finish=None,
        throw=False,
    )
    narrow = reduction.narrow
    level, away, _ = lemma_11(problem, width, exponent)
    distance = theorem_12(problem, width, exponent)
    return WidthRun(
        width=width,
        index=index,
        distance=float(np.linalg.norm(reduction.coefficients(flow.network) - solution)),
        deviation_bound=deviation_bound(narrow, problem).value,
        theorem_12=distance.value,
        theorem_12_applies=bool(distance.holds),
        level=float(imbalance(narrow, problem).level),
        lemma_11_level=level.value,
        away=distance_from_invariant_set(narrow, problem),
        lemma_11_away=away.value,
        lemma_11_applies=bool(level.holds),
        status=status_name(flow.status),
        num_steps=int(flow.stats["num_steps"]),
    )

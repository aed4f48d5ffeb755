"""The flows of `min2021` and their bounds, as arrays."""

import dataclasses

import diffrax
import equinox as eqx
import jax
import numpy as np

from ..dynamics import StopAtTime, gradient_flow
from ..dynamics.stopping import status_name
from ..initialization import width_scaled
from ..networks import FullyConnectedNetwork
from ..problems import Regression
from ..theory.rates import convergence_rate_bound, imbalance
from ..theory.rates_bounds import deviation_bound, distance_from_invariant_set
from ..theory.rates_width import lemma_11, theorem_12
from .min2021_setups import Reduction, measured_rate


@dataclasses.dataclass(frozen=True)
class Spectrum:
    """The imbalance at a random start, over m h."""

    outputs: int
    width: int
    rank: int
    eigenvalues: np.ndarray  # (k,): the r positive and m negative ones
    positive_spread: float
    negative_spread: float
    level: float


@dataclasses.dataclass(frozen=True)
class RateRun:
    """A flow's excess loss and rate at T times, and their bounds."""

    label: str
    times: np.ndarray  # (T,)
    excess_loss: np.ndarray
    rate: np.ndarray  # measured, -dL/dt / (L - L*)
    proposition_1: np.ndarray
    corollary_6: np.ndarray  # the guaranteed rate from each time on
    theorem_3: float  # the guaranteed rate from the start
    corollary_4: float
    asymptotic: float  # eq. (22)
    spreads: tuple[float, float, float]  # D_+, D_-, D_u
    status: str
    num_steps: int
    invariant_drift: float

    @property
    def loss_bound(self) -> np.ndarray:
        """Theorem 3 at the times."""
        return self.excess_loss[0] * np.exp(-self.theorem_3 * self.times)


@dataclasses.dataclass(frozen=True)
class WidthRun:
    """The end of one flow of Figure 7, with its bounds."""

    width: int
    index: int
    distance: float  # |U V^T - min-norm solution|_F
    deviation_bound: float
    theorem_12: float
    theorem_12_applies: bool
    level: float  # D_u
    lemma_11_level: float
    away: float  # |(V U_2^T; U_1 U_2^T)(0)|_F
    lemma_11_away: float
    lemma_11_applies: bool
    status: str
    num_steps: int


def spectrum(
    outputs: int, width: int, network: FullyConnectedNetwork, problem: Regression
) -> Spectrum:
    """The imbalance of a start; of D only the eigenvalues that need not be zero."""
    found = imbalance(network, problem)
    scale = outputs * width
    values, rank = np.asarray(found.eigenvalues) / scale, int(found.rank)
    if width > rank + outputs:  # those in between are zero
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


def rate_run(
    label: str,
    network: FullyConnectedNetwork,
    problem: Regression,
    duration: float,
    num_times: int,
    rtol: float,
) -> RateRun:
    """Integrate a flow in reduced coordinates, and bound its loss and rate at every saved time."""
    reduction = Reduction.of(network, problem)
    # Denser at the start, where the fast directions decay.
    times = duration * np.linspace(0.0, 1.0, num_times) ** 2
    flow = gradient_flow(
        reduction.network,
        reduction.problem,
        solver=diffrax.Dopri8(),
        rtol=rtol,
        stop=StopAtTime(duration),
        finish=None,
        saveat=times,
        observe=_itself,
        throw=False,
    )
    states = jax.tree.map(lambda leaf: leaf[: len(times)], flow.observed)
    bounds, slopes = _bounds_along(states, reduction.problem)
    # The reduced data can be met exactly: their loss is the excess.
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


def _itself(network):
    return network


@eqx.filter_jit
def _bounds_along(states, problem):
    # One state at a time: together their singular value decompositions would fill the memory.
    return jax.lax.map(
        lambda state: (convergence_rate_bound(state, problem), measured_rate(state, problem)),
        states,
    )


def width_run(
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
        # The stop leaves 1e-9 of the targets; a finish would cost a hundred times the flow.
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

"""The general observables, and all observables by name."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from ...dynamics.clocks import AbstractClock
from ...dynamics.flow import gradient_flow
from ...networks import FullyConnectedNetwork
from ...networks.conserved import conserved_quantities
from ...penalized import weight_decay_of
from ...problems import AbstractProblem, Regression
from ...theory.classification.alignment import alignment
from ...theory.least_norm.norms import L1Norm, L2Norm
from ...theory.predict import predict
from ...theory.prediction import Kind
from ...theory.rates.imbalance import imbalance
from ...theory.regression.proved_limit import proved_limit
from ..identifiers import require_identifier
from .base import COEFFICIENT, AbstractObservable, Ending, Variable, refuse, unit
from .measures import EffectiveRank, KernelAlignment, NonzeroCoefficients
from .reference_distances import DistanceToMaxMargin, DistanceToMinNorm


class Limit(AbstractObservable):
    """beta at the flow's end, after the finish: `limit`."""

    @property
    def variables(self) -> tuple[Variable, ...]:
        """The variable `limit`, in units y/x."""
        words = "linear coefficients at the flow's end (after the finish)"
        return (Variable("limit", COEFFICIENT, "y/x", words),)

    def measure(self, end: Ending) -> tuple[Array, ...]:
        """beta, shape (d,) or (d, m)."""
        return (end.coefficients,)


class Direction(AbstractObservable):
    """beta / |beta| at the flow's end: `direction_reached`."""

    @property
    def variables(self) -> tuple[Variable, ...]:
        """The variable `direction_reached`, without units."""
        words = "unit vector along the linear coefficients at the flow's end; 0 where they are 0"
        return (Variable("direction_reached", COEFFICIENT, "1", words),)

    def measure(self, end: Ending) -> tuple[Array, ...]:
        """beta / |beta|, of the shape of beta."""
        return (unit(end.coefficients),)


class LogLoss(AbstractObservable):
    """log of the loss, the physical time and the parameters' norm at the flow's end."""

    @property
    def variables(self) -> tuple[Variable, ...]:
        """The variables `log_loss`, `log_time` and `log_norm`."""
        return (
            Variable("log_loss", (), "1", "natural logarithm of the loss, summed over samples"),
            Variable("log_time", (), "1", "natural logarithm of the physical time of the flow"),
            Variable("log_norm", (), "1", "natural logarithm of |Theta|, before the finish"),
        )

    def measure(self, end: Ending) -> tuple[Array, ...]:
        """The log of the loss after the finish; log time and log norm before it."""
        return end.log_loss, end.log_time, end.log_norm


class Margins(AbstractObservable):
    """Classification: log of the smallest margin, and every sample's margin over |beta|."""

    @property
    def variables(self) -> tuple[Variable, ...]:
        """The variables `log_margin` and, for every sample, `normalized_margin`."""
        smallest = "natural logarithm of the smallest margin; -inf while a sample is misclassified"
        each = "margin of each sample for the unit vector along the linear coefficients"
        return (
            Variable("log_margin", (), "1", smallest),
            # With several classes: the smallest margin to another class.
            Variable("normalized_margin", ("sample",), "x", each),
        )

    def measure(self, end: Ending) -> tuple[Array, ...]:
        """log min_i m_i, and m_i / |beta| of shape (n,)."""
        assert end.log_margin is not None
        margins = end.problem.margins(unit(end.coefficients))  # pyright: ignore
        return end.log_margin, jnp.min(margins.reshape(len(margins), -1), axis=1)

    def check(self, network: Any, problem: AbstractProblem) -> None:
        """Raises a ValueError unless `problem` has margins."""
        if not problem.has_margins:
            refuse("Margins", "is for Classification", type(problem).__name__, "Limit()")


class LayerAlignment(AbstractObservable):
    """Fully-connected networks: how close layers are to rank one, and neighbours to alignment.

    Measured at the flow's end, before the finish. Source: Ji & Telgarsky 2019; see
    `lintensor_jax.alignment`.
    """

    @property
    def variables(self) -> tuple[Variable, ...]:
        """The variables `rank_one_ratio`, by layer, and `misalignment`, by pair of layers."""
        ratio = "|W_k|_2 / |W_k|_F of each layer: 1 for rank one"
        sine = "1 - <v_{k+1}, u_k>^2 of neighbouring layers: 0 when aligned"
        return (
            Variable("rank_one_ratio", ("layer",), "1", ratio),
            Variable("misalignment", ("layer_pair",), "1", sine),
        )

    def measure(self, end: Ending) -> tuple[Array, ...]:
        """Ratios (L,) and misalignments (L - 1,) of the network before the finish."""
        found = alignment(end.unfinished_network)
        return found.rank_one_ratios, found.misalignments

    def check(self, network: Any, problem: AbstractProblem) -> None:
        """Raises a ValueError unless `network` is a `FullyConnectedNetwork`."""
        if not isinstance(network, FullyConnectedNetwork):
            refuse(
                "LayerAlignment", "is for FullyConnectedNetwork", type(network).__name__, "Limit()"
            )


class Imbalance(AbstractObservable):
    """Two-layer fully-connected regression: the imbalance of the start, as in Min et al. 2021."""

    @property
    def variables(self) -> tuple[Variable, ...]:
        """The variable `imbalance`."""
        words = "largest singular value of the imbalance matrix at the start (Min et al. 2021)"
        return (Variable("imbalance", (), "squared parameters", words),)

    def measure(self, end: Ending) -> tuple[Array, ...]:
        """The largest absolute eigenvalue of the imbalance at the start; the flow conserves it."""
        assert isinstance(end.initial, FullyConnectedNetwork)
        assert isinstance(end.problem, Regression)
        found = imbalance(end.initial, end.problem)
        return (jnp.max(jnp.abs(found.eigenvalues)),)

    def check(self, network: Any, problem: AbstractProblem) -> None:
        """Raises a ValueError unless there are two fully-connected layers and regression."""
        two = isinstance(network, FullyConnectedNetwork) and network.depth == 2
        if not two or not (isinstance(problem, Regression) and problem.has_squared_loss):
            what = f"{type(network).__name__} on {problem.in_words}"
            refuse("Imbalance", "is for two fully-connected layers and Regression", what, "Drift()")


class Drift(AbstractObservable):
    """Conserved quantities: their largest change, and their largest value at the start."""

    @property
    def variables(self) -> tuple[Variable, ...]:
        """The variables `invariant_drift` and `largest_invariant`."""
        moved = (
            "largest change of the conserved quantities, over the largest squared norm so far; "
            "NaN where none are known"
        )
        largest = "largest conserved quantity at the start, in absolute value"
        return (
            Variable("invariant_drift", (), "1", moved),
            Variable("largest_invariant", (), "squared parameters", largest),
        )

    def measure(self, end: Ending) -> tuple[Array, ...]:
        """The drift before the finish, and the largest value at the start."""
        values = conserved_quantities(end.initial)
        largest = jnp.max(jnp.abs(values)) if values.size else jnp.full_like(end.log_loss, jnp.nan)
        return end.invariant_drift, largest


class DistanceToPrediction(AbstractObservable):
    """|reached - predicted| if a theorem predicts the limit; the prediction, and its kind.

    `lintensor_jax.theory.proved_limit` computes the limits of all lanes that it covers in one
    program. For the other lanes `lintensor_jax.predict` runs on the host, one lane after the other,
    which takes milliseconds each. Coefficients are compared; for classification without weight
    decay, directions.
    """

    @property
    def on_host(self) -> bool:
        """True: `predict` needs concrete arrays."""
        return True

    @property
    def variables(self) -> tuple[Variable, ...]:
        """The variables `distance_to_prediction`, `predicted` and `prediction_kind`."""
        distance = "distance between the limit and its prediction (directions: unit vectors)"
        kinds = ("not predicted", "exact", "alpha_to_zero", "stationary", "open")
        return (
            Variable("distance_to_prediction", (), "y/x", distance),
            Variable("predicted", COEFFICIENT, "y/x", "limit predicted by theory"),
            Variable("prediction_kind", (), "", "what the theorem claims", kinds),
        )

    def shapes(self, end: Ending) -> tuple[Any, ...]:
        """Shapes and types of the values, without a prediction."""
        number, beta = end.log_loss, end.coefficients
        return number, beta, np.zeros((), np.int8)

    def measure_traced(self, end: Ending) -> tuple[tuple[Array, ...], Bool[Array, ""]]:
        """As `measure`, with True where one of the theorems of `proved_limit` proves the limit."""
        found = proved_limit(end.initial, end.problem)
        kind = self.variables[2].flags.index(str(Kind.EXACT))
        distance = jnp.linalg.norm(end.coefficients - found.limit)
        return (distance, found.limit, jnp.asarray(kind, jnp.int8)), found.is_proved

    def measure(self, end: Ending) -> tuple[Any, ...]:
        """Distance, predicted limit and kind; NaN and kind 0 if nothing is predicted."""
        nothing = np.full(end.coefficients.shape, np.nan), np.int8(0)
        try:
            found = predict(end.initial, end.problem)
        except ValueError:  # a lane with bad input, as its status says
            return np.nan, *nothing
        if found.limit is None or found.kind is None:
            return np.nan, *nothing
        reached, decay = end.coefficients, weight_decay_of(end.problem)
        if end.problem.has_margins and not (decay is not None and float(decay) > 0):
            reached = unit(reached)
        limit = np.asarray(found.limit)
        kinds = self.variables[2].flags
        distance = np.linalg.norm(np.asarray(reached) - limit)
        return distance, limit, np.int8(kinds.index(str(found.kind)))


class Trajectory(AbstractObservable):
    """beta and the loss at chosen times of the clock.

    The flow is integrated a second time, by `gradient_flow` with `saveat`. At times after the
    flow's end the values are those of the end, and `trajectory_reached` is False.

    **Arguments**

    - `times`: increasing times (T,) of the clock: by default physical time for regression, log arc
      length for classification.
    - `clock`, `rtol`, `max_steps`: as in `gradient_flow`. If the flow fails, for example because of
      `max_steps`, values at later times are NaN.
    """

    times: np.ndarray
    clock: AbstractClock | None
    rtol: float
    max_steps: int

    @property
    def integrates(self) -> bool:
        """True: `measure` calls `gradient_flow`."""
        return True

    def __init__(
        self,
        times: Sequence[float],
        clock: AbstractClock | None = None,
        rtol: float = 1e-8,
        max_steps: int = 4096,
    ):
        self.times = np.asarray(times, float)
        increasing = self.times.ndim == 1 and self.times.size and (np.diff(self.times) > 0).all()
        if not increasing or not np.isfinite(self.times).all() or self.times[0] < 0:
            raise ValueError(
                "Trajectory: times must be finite, not negative and increasing, got "
                f"{self.times.tolist()}; sort them and remove duplicates."
            )
        self.clock, self.rtol, self.max_steps = clock, rtol, max_steps

    @property
    def variables(self) -> tuple[Variable, ...]:
        """The variables `trajectory`, `trajectory_log_loss` and `trajectory_reached`."""
        dims = ("time", *COEFFICIENT)
        return (
            Variable("trajectory", dims, "y/x", "linear coefficients at chosen clock times"),
            Variable("trajectory_log_loss", ("time",), "1", "log of the loss at these times"),
            Variable("trajectory_reached", ("time",), "", "whether the flow lasted until then"),
        )

    def coordinates(self) -> dict[str, np.ndarray]:
        """The coordinate `time`, the chosen times (T,)."""
        return {"time": self.times}

    def measure(self, end: Ending) -> tuple[Array, ...]:
        """Coefficients (T, d), log losses (T,), and whether the flow reached each time (T,)."""
        flow = gradient_flow(
            end.initial,
            end.problem,
            clock=self.clock,
            rtol=self.rtol,
            saveat=self.times,
            finish=None,
            max_steps=self.max_steps,
            throw=False,
        )
        # The last saved entry is the flow's end.
        beta, log_loss = flow.coefficients[:-1], flow.log_loss[:-1]
        reached: Bool[Array, " T"] = flow.reached[:-1]
        known = reached | flow.succeeded
        beta = jnp.where(known.reshape(-1, *(1,) * (beta.ndim - 1)), beta, jnp.nan)
        return beta, jnp.where(known, log_loss, jnp.nan), reached


class Measured(AbstractObservable):
    """An observable defined by a user's function.

    **Arguments**

    - `name`: the name of the variable: letters, digits and _.
    - `function`: a function of an `Ending`, such as ``lambda end: end.network.weights``. It must be
      traceable, unless `lane_by_lane`.
    - `dims`: one name for each axis of the function's value.
    - `units`, `description`: stored with the results.
    - `lane_by_lane`: call the function for each lane on the host, with concrete arrays.
    """

    name: str = eqx.field(static=True)
    function: Callable[[Ending], Any] = eqx.field(static=True)
    dims: tuple[str, ...] = eqx.field(static=True, default=())
    units: str = eqx.field(static=True, default="")
    description: str = eqx.field(static=True, default="")
    lane_by_lane: bool = eqx.field(static=True, default=False)

    def __check_init__(self):
        require_identifier(self.name, "Measured: name")
        for dim in self.dims:
            require_identifier(dim, f"Measured {self.name}: every name in dims")

    @property
    def on_host(self) -> bool:
        """Whether lanes are measured one by one on the host: `lane_by_lane`."""
        return self.lane_by_lane

    @property
    def variables(self) -> tuple[Variable, ...]:
        """The variable `name`."""
        return (Variable(self.name, tuple(self.dims), self.units, self.description),)

    def measure(self, end: Ending) -> tuple[Array, ...]:
        """The value of `function` at the end, as an array."""
        return (jnp.asarray(self.function(end)),)


DEFAULT = (Limit(), LogLoss(), Drift())
#: Observables by the names that a TOML file and the command line use.
BY_NAME: dict[str, AbstractObservable] = {
    "limit": Limit(),
    "direction": Direction(),
    "log_loss": LogLoss(),
    "margins": Margins(),
    "alignment": LayerAlignment(),
    "imbalance": Imbalance(),
    "invariant_drift": Drift(),
    "distance_to_prediction": DistanceToPrediction(),
    "effective_rank": EffectiveRank(),
    "num_nonzero": NonzeroCoefficients(),
    "kernel_alignment": KernelAlignment(),
    "distance_to_min_norm_l1": DistanceToMinNorm(L1Norm()),
    "distance_to_min_norm_l2": DistanceToMinNorm(L2Norm()),
    "distance_to_max_margin_l1": DistanceToMaxMargin(L1Norm()),
    "distance_to_max_margin_l2": DistanceToMaxMargin(L2Norm()),
}

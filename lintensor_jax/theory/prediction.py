"""Predictions as objects: the theorem, its assumptions, its conclusion, and a text of all three."""

import abc
import enum
import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from ..messages import as_html, shown
from .assumptions import Assumption


class Kind(enum.StrEnum):
    """What a prediction claims; equal to its own text, as in ``prediction.kind == "exact"``."""

    #: The flow from exactly these parameters ends at `limit`: every assumption is proved.
    EXACT = "exact"
    #: The same claim as for EXACT, if the open assumptions hold; `Prediction.open` lists them.
    OPEN = "open"
    #: The flow's end tends to `limit` as the initial scale alpha tends to 0.
    ALPHA_TO_ZERO = "alpha_to_zero"
    #: The flow ends at a stationary point of a known problem, which may have several.
    STATIONARY = "stationary"
    #: The flow's end tends to `limit` as the parameters' relative change tends to 0.
    LAZY = "lazy"


class AbstractLossBound(eqx.Module):
    """An upper bound on the loss along the flow, in its physical time t.

    - `value`: the constant c of `formula`.
    - `log_initial_loss`: log L(0).
    - `source`: where c comes from.
    """

    value: eqx.AbstractVar[float]
    log_initial_loss: eqx.AbstractVar[float]
    source: eqx.AbstractVar[str]

    @property
    @abc.abstractmethod
    def formula(self) -> str:
        """The bound as a formula in t and c."""

    @abc.abstractmethod
    def log_bound(self, log_time: Float[ArrayLike, "..."]) -> Float[Array, "..."]:
        """The natural logarithm of the bound on L(t), given that of t; any shape."""

    def __call__(self, time: Float[ArrayLike, "..."]) -> Float[Array, "..."]:
        """The bound on L(t), for times t >= 0 of any shape."""
        return jnp.exp(self.log_bound(jnp.log(jnp.asarray(time))))

    def __str__(self) -> str:
        """Formula, constant and source."""
        return f"{self.formula} with c = {self.value:.6g} ({self.source})"


class ExponentialDecay(AbstractLossBound):
    """L(t) <= L(0) exp(-c t): regression."""

    value: float = eqx.field(static=True)
    log_initial_loss: float = eqx.field(static=True)
    source: str = eqx.field(static=True)

    @property
    def formula(self) -> str:
        """The bound as a formula in t and c."""
        return "L(t) <= L(0) exp(-c t)"

    def log_bound(self, log_time: Float[ArrayLike, "..."]) -> Float[Array, "..."]:
        """log L(0) - c t, of the shape of `log_time`."""
        return self.log_initial_loss - self.value * jnp.exp(log_time)


class HarmonicDecay(AbstractLossBound):
    """L(t) <= L(0) / (1 + c L(0) t): classification.

    Erratum to Yun et al. 2021, Theorems 2 and 3: they print 1 + c t, which is wrong for L(0) < 1.
    """

    value: float = eqx.field(static=True)
    log_initial_loss: float = eqx.field(static=True)
    source: str = eqx.field(static=True)

    @property
    def formula(self) -> str:
        """The bound as a formula in t and c."""
        return "L(t) <= L(0) / (1 + c L(0) t)"

    def log_bound(self, log_time: Float[ArrayLike, "..."]) -> Float[Array, "..."]:
        """log L(0) - log(1 + c L(0) t), of the shape of `log_time`."""
        log_value = math.log(self.value) if self.value > 0 else -math.inf  # it may underflow
        log_growth = log_value + self.log_initial_loss + jnp.asarray(log_time)
        return self.log_initial_loss - jnp.logaddexp(0.0, log_growth)


class Conclusion(NamedTuple):
    """What a theorem says once its assumptions hold; the fields are those of `Prediction`."""

    kind: Kind
    limit: Array | None
    rate: AbstractLossBound | None = None
    notes: tuple[str, ...] = ()


class Candidate(NamedTuple):
    """A theorem about this architecture and this kind of problem, with its assumptions measured.

    - `conclude`: called only if no assumption is violated. If one is open, a conclusion of kind
      EXACT becomes one of kind OPEN.
    - `otherwise`: remarks for the case that an assumption is violated.
    """

    theorem: str
    assumptions: tuple[Assumption, ...]
    conclude: Callable[[], Conclusion]
    otherwise: tuple[str, ...] = ()

    @property
    def violated(self) -> tuple[Assumption, ...]:
        """The assumptions that do not hold."""
        return tuple(a for a in self.assumptions if a.holds is False)

    @property
    def is_proved(self) -> bool:
        """Whether every assumption holds; an open one does not."""
        return all(a.holds for a in self.assumptions)


class Considered(eqx.Module):
    """A theorem about this architecture and kind of problem, with its assumptions measured.

    - `theorem`: its name. `assumptions`: all of them.
    """

    theorem: str = eqx.field(static=True)
    assumptions: tuple[Assumption, ...]

    @property
    def violated(self) -> tuple[Assumption, ...]:
        """The assumptions that do not hold."""
        return tuple(a for a in self.assumptions if a.holds is False)

    @property
    def open(self) -> tuple[Assumption, ...]:
        """The assumptions about the flow's future that are neither proved nor refuted."""
        return tuple(a for a in self.assumptions if a.holds is None)

    @property
    def verdict(self) -> str:
        """ "proved", "assumes what is open" or "does not apply"."""
        if self.violated:
            return "does not apply"
        return "assumes what is open" if self.open else "proved"


class Prediction(eqx.Module):
    """The limit of a flow according to a theorem; `print` it for the reasons in words.

    - `theorem`: for example "Theorem 5 (Corollary 5)"; None if nothing applies.
    - `limit`: the linear coefficients at the limit, shape (d,), (d, m) or (d, d), in units of y/X;
      for classification their unit direction. None if it is not known.
    - `kind`: `Kind`, None if nothing applies. It compares equal to "exact" (all assumptions are
      proved: the flow ends at `limit`), "open" (it does so if the assumptions in `open` hold),
      "alpha_to_zero", "stationary" or "lazy". For the last three, `is_proved` states whether all
      assumptions are proved.
    - `assumptions`: all those of the theorem, each with its measured value. If nothing applies,
      those of the closest theorem (fewest violated; of several the most specific).
    - `rate`: a bound on the loss along the flow, or None.
    - `notes`: remarks in words.
    - `considered`: every theorem about this architecture and kind of problem, of all papers, the
      most specific first. Each has a `verdict`: all its assumptions are proved, or some are open
      (for example that the loss tends to 0), or one is violated.
    - `subject`: network and problem in words.
    """

    theorem: str | None = eqx.field(static=True)
    limit: Array | None
    kind: Kind | None = eqx.field(static=True)
    assumptions: tuple[Assumption, ...]
    rate: AbstractLossBound | None
    notes: tuple[str, ...] = eqx.field(static=True)
    considered: tuple[Considered, ...]
    subject: str = eqx.field(static=True)

    @property
    def is_proved(self) -> bool:
        """Whether a theorem applies and every assumption of it is proved, none open."""
        proved = all(a.holds for a in self.assumptions)
        return self.theorem is not None and self.kind is not Kind.OPEN and proved

    @property
    def open(self) -> tuple[Assumption, ...]:
        """The assumptions of the theorem that are neither proved nor refuted."""
        return tuple(a for a in self.assumptions if a.holds is None)

    @property
    def rejected(self) -> tuple[Considered, ...]:
        """The theorems with a violated assumption."""
        return tuple(c for c in self.considered if c.violated)

    @property
    def violated(self) -> tuple[Assumption, ...]:
        """The violated assumptions of all rejected theorems, without repetition."""
        return tuple(dict.fromkeys(a for r in self.rejected for a in r.violated))

    def __str__(self) -> str:
        """The whole argument, assumption by assumption."""
        lines = [self.subject, *self._verdict(), "Assumptions:"]
        lines += [f"  {a}" for a in self.assumptions]
        if self.rate is not None:
            lines.append(f"Loss bound: {self.rate}")
        this = self.theorem or self._closest.theorem
        others = [c for c in self.considered if c.theorem != this]
        if others:
            lines.append("Considered as well:")
        for c in others:
            lines.append(f"  {c.theorem}: {c.verdict}")
            lines += [f"    {a}" for a in c.violated or c.open]
        if self.notes:
            lines.append("Notes:")
        lines += [f"  {note}" for note in self.notes]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """The text of `__str__` as HTML, for notebooks."""
        return as_html(self)

    def _verdict(self):
        if self.theorem is None:
            broken = self._closest.violated
            yield "No theorem applies: the limit is not predicted."
            count = f"{len(broken)} of {len(self.assumptions)} assumptions violated"
            yield f"Closest: {self._closest.theorem}, with {count}:"
            yield from (f"  {a.statement}: {a.shown_value}" for a in broken)
            return
        claim = {
            Kind.EXACT: "the limit below is exact",
            Kind.OPEN: "the limit below is exact",
            Kind.ALPHA_TO_ZERO: "the limit below is approached as the initial scale tends to 0",
            Kind.LAZY: "the limit below is approached as the parameters have to move less",
            Kind.STATIONARY: "the limit meets the condition in the notes",
        }[self.kind or Kind.EXACT]
        given, verb = "", "applies"
        if not self.is_proved:
            statements = [a.statement for a in self.open] or ["what the notes call open holds"]
            given, verb = f", if this holds, which is open: {'; '.join(statements)}", "may apply"
        yield f"{self.theorem} {verb}: {claim}{given}."
        if self.limit is None:
            yield "Limit: one of the points that meet it; which one is not predicted."
        else:
            yield f"Limit{'' if self.is_proved else ', if so'}: {shown(self.limit)}"

    @property
    def _closest(self):
        return _closest(self.considered)


def choose(
    subject: str, given: Iterable[Candidate], candidates: Iterable[Candidate], unknown: Candidate
) -> Prediction:
    """The prediction of the first candidate that is proved, else of the first not violated.

    Candidates in `given` precede those in `candidates`: the first of `given` that violates nothing
    is taken, even if an assumption is open. If all are violated, the prediction is a refusal with
    the assumptions of the closest candidate. `unknown` is refused if there are no candidates.
    """
    from_user, from_package = tuple(given), tuple(candidates)
    possible = [c for c in from_user if not c.violated]
    if not possible:
        possible = sorted(
            (c for c in from_package if not c.violated), key=lambda c: not c.is_proved
        )
    every = (*from_user, *from_package) or (unknown,)
    considered = tuple(Considered(c.theorem, c.assumptions) for c in every)
    if not possible:
        return Prediction(
            theorem=None,
            limit=None,
            kind=None,
            assumptions=_closest(considered).assumptions,
            rate=None,
            notes=tuple(dict.fromkeys(note for c in every for note in c.otherwise)),
            considered=considered,
            subject=subject,
        )
    chosen = possible[0]
    conclusion = chosen.conclude()
    is_open = conclusion.kind is Kind.EXACT and not chosen.is_proved
    return Prediction(
        theorem=chosen.theorem,
        limit=conclusion.limit,
        kind=Kind.OPEN if is_open else conclusion.kind,
        assumptions=chosen.assumptions,
        rate=conclusion.rate,
        notes=conclusion.notes,
        considered=considered,
        subject=subject,
    )


def _closest(considered):
    """The theorem with the fewest violations; of several the first, which is the most specific."""
    return min(considered, key=lambda c: len(c.violated))


def nothing_to_conclude() -> Conclusion:
    """The `conclude` of a candidate with a violated assumption; it is never called."""
    raise AssertionError("a theorem with a violated assumption concludes nothing")

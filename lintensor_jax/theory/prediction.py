"""Predictions as objects: which theorem, what it assumes, what follows, and all of it in words."""

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

    #: The flow from these very parameters ends there.
    EXACT = "exact"
    #: The limit tends to it as the initial scale alpha tends to 0.
    ALPHA_TO_ZERO = "alpha_to_zero"
    #: The limit is a stationary point of a known problem, which may have several.
    STATIONARY = "stationary"
    #: The limit tends to it as the parameters have to move less beside their size.
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
        """The bound in letters."""

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
        """The bound in letters."""
        return "L(t) <= L(0) exp(-c t)"

    def log_bound(self, log_time: Float[ArrayLike, "..."]) -> Float[Array, "..."]:
        """log L(0) - c t."""
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
        """The bound in letters."""
        return "L(t) <= L(0) / (1 + c L(0) t)"

    def log_bound(self, log_time: Float[ArrayLike, "..."]) -> Float[Array, "..."]:
        """log L(0) - log(1 + c L(0) t)."""
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

    `conclude` is called only if none of them is violated, `otherwise` are remarks for that case.
    """

    theorem: str
    assumptions: tuple[Assumption, ...]
    conclude: Callable[[], Conclusion]
    otherwise: tuple[str, ...] = ()

    @property
    def violated(self) -> tuple[Assumption, ...]:
        """The assumptions that do not hold."""
        return tuple(a for a in self.assumptions if a.holds is False)


class Rejection(eqx.Module):
    """A theorem that was considered first and does not apply, and why."""

    theorem: str = eqx.field(static=True)
    violated: tuple[Assumption, ...]


class Prediction(eqx.Module):
    """Where a flow will go, according to which theorem; `print` it for the reasons in words.

    - `theorem`: for example "Theorem 5 (Corollary 5)"; None if nothing applies.
    - `limit`: the linear coefficients at the limit, shape (d,), (d, m) or (d, d), in units of y/X;
      for classification their unit direction. None if it is not known.
    - `kind`: `Kind`, None if nothing applies. It compares equal to "exact", "alpha_to_zero",
      "stationary", "lazy".
    - `assumptions`: all those of the theorem, each with its measured value. If nothing applies,
      those of the theorem which came closest (fewest violated, then most specific).
    - `rate`: a bound on the loss along the flow, or None.
    - `notes`: remarks in words.
    - `rejected`: the more specific theorems that do not apply, each with what it violates.
    - `subject`: network and problem in words.
    """

    theorem: str | None = eqx.field(static=True)
    limit: Array | None
    kind: Kind | None = eqx.field(static=True)
    assumptions: tuple[Assumption, ...]
    rate: AbstractLossBound | None
    notes: tuple[str, ...] = eqx.field(static=True)
    rejected: tuple[Rejection, ...]
    subject: str = eqx.field(static=True)

    @property
    def violated(self) -> tuple[Assumption, ...]:
        """Every violated assumption, of the rejected theorems too, each once."""
        return tuple(dict.fromkeys(a for r in self.rejected for a in r.violated))

    def __str__(self) -> str:
        """The whole argument, assumption by assumption."""
        lines = [self.subject, *self._verdict(), "Assumptions:"]
        lines += [f"  {a}" for a in self.assumptions]
        if self.rate is not None:
            lines.append(f"Loss bound: {self.rate}")
        others = [r for r in self.rejected if self.theorem is not None or r is not self._closest]
        if others:
            lines.append("Considered as well, and not applicable:")
        for r in others:
            lines.append(f"  {r.theorem}")
            lines += [f"    {a}" for a in r.violated]
        if self.notes:
            lines.append("Notes:")
        lines += [f"  {note}" for note in self.notes]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """The same for notebooks."""
        return as_html(self)

    def _verdict(self):
        if self.theorem is None:
            broken = self._closest.violated
            yield "No theorem applies: the limit is not predicted."
            count = f"{len(broken)} of {len(self.assumptions)} assumptions violated"
            yield f"Closest: {self._closest.theorem}, with {count}:"
            yield from (f"  {a.statement}: {a.shown_value}" for a in broken)
            return
        is_open = any(a.holds is None for a in self.assumptions)
        claim = {
            Kind.EXACT: "the limit below is exact",
            Kind.ALPHA_TO_ZERO: "the limit below is approached as the initial scale tends to 0",
            Kind.LAZY: "the limit below is approached as the parameters have to move less",
            Kind.STATIONARY: "the limit meets the condition in the notes",
        }[self.kind or Kind.EXACT]
        given = ", given the open assumptions" if is_open else ""
        yield f"{self.theorem} applies: {claim}{given}."
        if self.limit is None:
            yield "Limit: one of the points that meet it; which one is not predicted."
        else:
            yield f"Limit: {shown(self.limit)}"

    @property
    def _closest(self):
        return _closest(self.rejected)


def choose(subject: str, candidates: Iterable[Candidate], unknown: Candidate) -> Prediction:
    """The first candidate that violates nothing; else a refusal that names the closest.

    `unknown` is what is refused if there are no candidates.
    """
    considered = []
    for candidate in candidates:
        considered.append(candidate)
        if candidate.violated:
            continue
        conclusion = candidate.conclude()
        return Prediction(
            theorem=candidate.theorem,
            limit=conclusion.limit,
            kind=conclusion.kind,
            assumptions=candidate.assumptions,
            rate=conclusion.rate,
            notes=conclusion.notes,
            rejected=_rejections(considered[:-1]),
            subject=subject,
        )
    considered = considered or [unknown]
    closest = _closest(considered)
    return Prediction(
        theorem=None,
        limit=None,
        kind=None,
        assumptions=closest.assumptions,
        rate=None,
        notes=tuple(dict.fromkeys(note for c in considered for note in c.otherwise)),
        rejected=_rejections(considered),
        subject=subject,
    )


def _closest(considered):
    """The fewest violations; of several, the first, which is the most specific."""
    return min(considered, key=lambda c: len(c.violated))


def nothing_to_conclude() -> Conclusion:
    """The `conclude` of a candidate that is known to violate something."""
    raise AssertionError("a theorem with a violated assumption concludes nothing")


def _rejections(candidates):
    return tuple(Rejection(c.theorem, c.violated) for c in candidates)

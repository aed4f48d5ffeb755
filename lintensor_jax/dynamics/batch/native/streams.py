"""Operands of loops: what is the same for all entries, and what a loop reads from memory."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir

from .memory import Slot


class Number(NamedTuple):
    """A number that is known, the same for all entries."""

    text: str  # distinguishes -0 from 0
    number: Any
    dtype: Any


class Lanes(NamedTuple):
    """A vector of lanes, the same for all entries."""

    value: Any


class Stream(NamedTuple):
    """Numbers in memory, one for each entry.

    `places`: the first place and the distance to the next one if they are regular, or all places.
    """

    base: str
    places: tuple[int, ...]
    regular: bool
    dtype: Any  # as in `Slot`

    def place(self, entry: int) -> int:
        """The place of an entry."""
        if self.regular:
            start, step = self.places
            return start + entry * step
        return self.places[entry]

    def slot(self, entry: int) -> Slot:
        """An entry."""
        return Slot(self.base, self.place(entry), self.dtype)

    def taken(self, entries: Sequence[int]) -> "Stream":
        """The stream of some of the entries."""
        return stream_of([self.slot(entry) for entry in entries])

    def bounds(self, count: int) -> tuple[int, int]:
        """The least and the largest place of `count` entries."""
        if self.regular:
            first, last = sorted((self.place(0), self.place(count - 1)))
            return first, last
        return min(self.places), max(self.places)


def whole(base: str) -> Stream:
    """All entries of a base."""
    return Stream(base, (0, 1), True, None)


def stream_of(slots: Sequence[Slot]) -> Stream:
    """Slots of one base and dtype as a stream."""
    base, _, dtype = slots[0]
    _, places, _ = zip(*slots, strict=True)
    step = _step_of(places)
    if step is None:
        return Stream(base, places, False, dtype)
    return Stream(base, (places[0], step), True, dtype)


def _step_of(places: tuple[int, ...]) -> int | None:
    """The distance of a place to the next one, if it is the same for two places or more."""
    if len(places) == 1:
        return None
    first, step = places[0], places[1] - places[0]
    # Tuples are compared in less time than numbers one after the other.
    if step == 0:
        return 0 if places.count(first) == len(places) else None
    return step if places == tuple(range(first, first + step * len(places), step)) else None


def _columns(entries: Sequence[Any]) -> tuple[Any, Any, Any] | None:
    """Bases, places and dtypes of the entries, if all are slots."""
    if set(map(type, entries)) != {Slot}:
        return None
    bases, places, dtypes = zip(*entries, strict=True)
    return bases, places, dtypes


def is_one_base(entries: Sequence[Any]) -> bool:
    """Whether all entries are in one array in memory."""
    if not isinstance(entries[0], Slot):
        return False
    columns = _columns(entries)
    return columns is not None and len(set(columns[0])) == 1 == len(set(columns[2]))


def all_known(entries: Sequence[Any]) -> bool:
    """Whether all entries are numbers that are known."""
    return all(isinstance(entry, np.generic) for entry in entries)


def is_readable(entries: Sequence[Any]) -> bool:
    """Whether a loop can read these entries where they are."""
    first = entries[0]
    same = isinstance(first, ir.Value) and all(entry is first for entry in entries)
    return same or all_known(entries) or is_one_base(entries)


def runs(entries: Sequence[Any]) -> list[int]:
    """Where the pieces begin that a loop can read: equal vectors, numbers, or regular slots."""
    starts, at = [], 0
    if is_one_base(entries) and stream_of(entries).regular:
        return [0]  # the usual case, in less time than below
    while at < len(entries):
        starts.append(at)
        first, at, step = entries[at], at + 1, None
        while at < len(entries):
            entry = entries[at]
            if isinstance(first, Slot):
                if not _is_near(first, entry):
                    break
                distance = entry.index - entries[at - 1].index
                if step is not None and distance != step:
                    break
                step = distance
            elif isinstance(first, np.generic):
                if not isinstance(entry, np.generic):
                    break
            elif entry is not first:
                break
            at += 1
    return starts


def length_of_run(entries: Sequence[Any], start: int) -> int:
    """The number of entries from `start` on that follow one another in memory."""
    first, length = entries[start], 1
    if isinstance(first, Slot):
        for entry in entries[start + 1 :]:
            if not _is_near(first, entry) or entry.index != first.index + length:
                break
            length += 1
    return length


def key_of(entry: Any) -> Any:
    """What distinguishes an entry from others."""
    if isinstance(entry, Slot):
        return entry
    return repr(entry) if isinstance(entry, np.generic) else id(entry)


def _is_near(first: Slot, entry: Any) -> bool:
    return isinstance(entry, Slot) and entry.base == first.base and entry.dtype == first.dtype

"""Operations on long arrays, and where their entries are."""

import contextlib
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir

from .memory import Memory, Slot
from .placement import Node, Placement
from .streams import (
    Lanes,
    Number,
    Stream,
    all_known,
    is_one_base,
    key_of,
    length_of_run,
    stream_of,
    whole,
)

_new_slot: Any = functools.partial(tuple.__new__, Slot)


class Loops:
    """The loops of one function.

    - `shortest`: the fewest entries of a loop that writes to memory.
    - `value`: gives the vector of an entry.
    """

    def __init__(self, memory: Memory, shortest: int, value: Callable[[Any, Any], Any]):
        self.memory, self.placement, self.shortest = memory, Placement(memory), shortest
        self._value = value
        self._known: dict[Any, Any] = {}  # operations, reductions and copies

    def apply(
        self, key: Any, operands: Sequence[Any], count: int, dtype: Any, compute: Callable
    ) -> list[Slot]:
        """The entries of one operation; the same ones for an equal `key` and equal operands."""
        key = "apply", key, count, *operands
        if key not in self._known:
            self._known[key] = self.placement.node(operands, count, dtype, compute)
        return self._entries(self._known[key])

    def total(self, operation: str, operands, count: int, dtype: Any, unsigned: bool) -> Any:
        """The reduction of all entries of the operands, of `count` entries each."""
        key = "total", operation, unsigned, count, *operands
        if key not in self._known:
            found = self.placement.total(operation, operands, count, dtype, unsigned)
            self._known[key] = found
        return self._known[key]

    def operand(self, entries: Sequence[Any], dtype: Any) -> Any:
        """Entries as an operand: where they are, or in a copy."""
        first = entries[0]
        if all_known(entries) and len({repr(entry) for entry in entries}) == 1:
            return Number(repr(first), first, np.dtype(dtype))
        if isinstance(first, ir.Value) and all(entry is first for entry in entries):
            return Lanes(first)
        if is_one_base(entries):
            return self._part(stream_of(entries), len(entries))
        if all_known(entries):
            numbers = np.asarray(entries)
            stored = numbers.astype(self.memory.dtype)
            if np.array_equal(stored.astype(numbers.dtype), numbers, equal_nan=dtype.kind == "f"):
                return self._table(stored, dtype)
        # Repeated entries are copied once.
        different = {key_of(entry): entry for entry in entries}
        copies = self.copied(list(different.values()), dtype)
        by_key = dict(zip(different, copies, strict=True))
        return stream_of([by_key[key_of(entry)] for entry in entries])

    def copied(self, entries: Sequence[Any], dtype: Any) -> list[Slot]:
        """The entries, one after the other in memory."""
        key = "copied", np.dtype(dtype), *map(key_of, entries)
        if key not in self._known:
            name = f"found {len(self.memory.bases)}"
            self.memory.allocate(name, len(entries))
            self.write(entries, dtype, name)
            self.placement.was_written(name)
            kind = self.memory.slot_dtype(dtype)
            # The entries are kept alive: the key holds their ids.
            self._known[key] = [Slot(name, i, kind) for i in range(len(entries))], entries
        return self._known[key][0]

    def write(self, entries: Sequence[Any], dtype: Any, base: str, start: int = 0) -> None:
        """Write entries to memory, from the place `start`."""
        singles: list[tuple[int, Any]] = []
        arrays, at = [], 0
        while at < len(entries):
            length = length_of_run(entries, at)
            run, place = entries[at : at + length], start + at
            at += length
            if isinstance(run[0], Slot) and run[0].base == base == "row":
                if run[0].index == place:
                    continue  # the numbers are there
            elif length >= self.shortest:
                operand = self.operand(run, dtype)
                node = self.placement.node_of(operand)
                if node is not None:
                    self.placement.demand(node)
                arrays.append((operand, length, place))
                continue
            singles += enumerate([self._value(entry, dtype) for entry in run], place)
        # A row is overwritten only after all of its numbers have been read.
        for operand, length, place in arrays:
            self._write_array(operand, length, place, dtype, base)
        for place, value in singles:
            pointer = self.memory.place(base, place)
            self.memory.store(self.memory.as_stored(value, dtype), pointer)

    def computed_before(self, slot: Slot, known: Any, most: int) -> list[Slot]:
        """The entries of operations without a loop on which `slot` depends, in order, and itself.

        There is none if `slot` has a loop, or should have one because many of its entries are read.
        `known`: slots that have been read. `most`: the entries of an operation that may be read.
        """
        found, waiting = {}, [slot]
        while waiting:
            following = waiting.pop()
            node = self.placement.node_of(following)
            if node is None or node.placed or following in known or following in found:
                continue
            if node.single_reads < most:
                found[following] = node.number
                streams = [o for o in node.operands if isinstance(o, Stream)]
                waiting += [stream.slot(following.index) for stream in streams]
        return sorted(found, key=found.__getitem__)

    def entry(self, slot: Slot, read: Callable[[Slot], Any]) -> Any:
        """The vector of one entry of a node, without a loop. `read`: gives the vector of a slot."""
        node = self.placement.node_of(slot)
        assert node is not None
        node.single_reads += 1
        given = []
        for operand in node.operands:
            if isinstance(operand, Stream):
                given.append(read(operand.slot(slot.index)))
            elif isinstance(operand, Number):
                given.append(self._value(operand.number, operand.dtype))
            else:
                given.append(operand.value)
        return node.compute(*given)

    @contextlib.contextmanager
    def branch(self):
        """A context for code that is not always executed."""
        known, self._known = self._known, dict(self._known)
        with self.placement.branch():
            yield
        self._known = known

    def _part(self, stream: Stream, count: int) -> Stream:
        """`count` entries of an operation without a loop, as an operation of its own.

        It can be placed in a loop with other arrays of this length.
        """
        waiting = [stream]
        while waiting:
            wanted = waiting[-1]
            if not self._is_part(wanted, count) or ("part", wanted, count) in self._known:
                waiting.pop()
                continue
            node: Any = self.placement.node_of(wanted)
            places = [wanted.place(i) for i in range(count)]
            operands = [o.taken(places) if isinstance(o, Stream) else o for o in node.operands]
            parts = [o for o in operands if self._is_part(o, count)]
            missing = [o for o in parts if ("part", o, count) not in self._known]
            waiting += missing
            if not missing:
                operands = [self._known.get(("part", o, count), o) for o in operands]
                part = self.placement.node(operands, count, node.dtype, node.compute)
                self._known["part", wanted, count] = whole(part.name)._replace(dtype=wanted.dtype)
        return self._known.get(("part", stream, count), stream)

    def _is_part(self, operand, count) -> bool:
        """Whether an operand is a piece of a longer result without a loop."""
        node = self.placement.node_of(operand)
        if node is None or node.placed is not None or node.count == count:
            return False
        return operand.regular and operand.places[1] == 1

    def _entries(self, node: Node) -> list[Slot]:
        dtype = self.memory.slot_dtype(node.dtype)
        columns = itertools.repeat(node.name), range(node.count), itertools.repeat(dtype)
        # Half of the time that a call of `Slot` for each would take.
        return list(map(_new_slot, zip(*columns, strict=False)))

    def _table(self, stored, dtype) -> Stream:
        table = self.memory.table(self.memory.kind.element, tuple(stored.tolist()))
        name = f"numbers {table.name}"
        if name not in self.memory.bases:
            self.memory.bases[name] = table.bitcast(self.memory.kind.element.as_pointer())
        return whole(name)._replace(dtype=self.memory.slot_dtype(dtype))

    def _write_array(self, operand, count, place, dtype, base) -> None:
        node, placed = self.placement.node_of(operand), None
        # The memory of arguments is shared by calls, and may be in use when the loop runs.
        if node is not None and operand.places == (0, 1) and not base.startswith("given"):
            placed = self.placement.demand(node) if count == node.count else None
        if placed and base == "row" and not self.placement.may_overwrite_row(place, placed):
            placed = None
        placed = placed or self.placement.copy(operand, count, dtype)
        targets = placed.row_targets if base == "row" else placed.targets
        targets.append((self.memory.bases[base], place))

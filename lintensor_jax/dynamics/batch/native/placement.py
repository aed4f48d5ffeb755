"""Which operations on long arrays share a loop, and what a loop writes to memory.

An operation is placed in a loop when its result is needed: for a reduction, for an entry of its
own, or for an array in memory. Operations that it depends on are placed in the same loop if they
can be, so that their results stay in registers. A result is written to memory only if it is read
outside of its loop.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir

from .instructions import vector
from .loop_bodies import Loop, Placed, Read, Total
from .memory import Memory, Slot
from .streams import Lanes, Number, Stream, whole


class Node:
    """One operation on all entries of an array.

    - `compute`: gives the vector of one entry from those of the operands.
    - `placed`: the operation in a loop, once it has one.
    - `single_reads`: the number of its entries that have been computed without a loop.
    """

    def __init__(
        self, number: int, count: int, operands: Sequence[Any], compute: Callable, dtype: Any
    ):
        self.number, self.count, self.operands = number, count, operands
        self.compute, self.dtype, self.name = compute, np.dtype(dtype), f"found by loop {number}"
        self.placed: Placed | None = None
        self.single_reads = 0


class Placement:
    """The operations and the loops of one function."""

    def __init__(self, memory: Memory):
        self.memory, self._builder = memory, memory.builder
        self._loops: list[Loop] = []
        self._open: list[Loop] = []  # to which operations can be added
        self._nodes: dict[str, Node] = {}
        self._placed_in_branch: list[Node] = []
        # The number of loops before a block, and before memory was written without a loop.
        self._before: dict[int, int] = {id(self._builder.block): 0}
        self._written: dict[str, int] = {}
        # Reads of the row: bounds, number of the loop (or 1/2 more than of the last one), places.
        self._reads: list[tuple[tuple[int, int], float, tuple[int, ...] | None]] = []

    def node(self, operands: Sequence[Any], count: int, dtype: Any, compute: Callable) -> Node:
        """A new operation, without a loop."""
        node = Node(len(self._nodes), count, operands, compute, dtype)
        self._nodes[node.name] = node
        return node

    def node_of(self, operand: Any) -> Node | None:
        """The operation whose result a slot or a stream is in."""
        return None if isinstance(operand, Number | Lanes) else self._nodes.get(operand.base)

    def demand(self, node: Node) -> Placed:
        """The operation in a loop."""
        if node.placed is None:
            self._place([whole(node.name)], node.count)
        assert node.placed is not None
        return node.placed

    def copy(self, operand: Any, count: int, dtype: Any) -> Placed:
        """A new loop that copies an operand."""
        node = self.node([operand], count, dtype, lambda value: value)
        self._place([whole(node.name)], count, fresh=True)
        assert node.placed is not None
        return node.placed

    def total(self, operation: str, operands, count: int, dtype: Any, unsigned: bool) -> Any:
        """The reduction of all entries of the operands, of `count` entries each."""
        loop, sources = self._place(operands, count)
        kind = vector(dtype, self.memory.width)
        with self._builder.goto_block(loop.exit):
            result = self._builder.phi(kind)
        self._before[id(loop.exit)] = loop.number
        first = ir.Constant(kind.element, _first(operation, np.dtype(dtype)))
        first = ir.Constant(kind, [first] * kind.count)
        loop.totals.append(Total(sources, operation, unsigned, first, result))
        return result

    def base(self, name: str) -> Any:
        """The pointer of a base. The result of an operation is written to memory for it."""
        node = self._nodes.get(name)
        if node is not None and name not in self.memory.bases:
            placed = self.demand(node)
            self.memory.allocate(name, node.count)
            placed.targets.append((self.memory.bases[name], 0))
        return self.memory.bases[name]

    def was_written(self, base: str) -> None:
        """Note that memory is written here, without a loop or by loops that exist."""
        self._written[base] = len(self._loops)

    def was_read(self, slot: Slot) -> None:
        """Note that a number is read here, without a loop."""
        if slot.base == "row":
            self._reads.append(((slot.index, slot.index), len(self._loops) + 0.5, None))

    def may_overwrite_row(self, start: int, placed: Placed) -> bool:
        """Whether a loop can write a result to the row, because nothing reads these numbers later.

        It may read a number that it overwrites in the same turn.
        """
        count, number = placed.loop.count, placed.loop.number
        for (least, most), at, places in self._reads:
            same_entries = at == number and places == (start, 1)
            if least < start + count and most >= start and at >= number and not same_entries:
                return False
        return True

    @contextlib.contextmanager
    def branch(self):
        """A context for code that is not always executed."""
        outside = self._open, self._placed_in_branch
        self._open, self._placed_in_branch = [], []
        yield
        for node in self._placed_in_branch:  # they are not available after the branch
            node.placed = None
            self.memory.bases.pop(node.name, None)
        self._open, self._placed_in_branch = outside

    def finish(self, scope: Callable[[], Any]) -> None:
        """Write the bodies of all loops. `scope`: a context for instructions of one entry."""
        here = self._builder.block
        for loop in self._loops:
            loop.write(self.memory, scope)
        self._builder.position_at_end(here)

    def _place(self, operands, count, fresh=False) -> tuple[Loop, list[Any]]:
        """A loop for operands and all on which they depend, and the operands in that loop."""
        self._demand_others(operands, count)
        inner: dict[int, Node] = {}
        leaves, waiting = [], list(operands)
        while waiting:
            operand = waiting.pop()
            node = self.node_of(operand)
            if node is None or node.placed is not None:
                leaves.append(operand)
            elif node.number not in inner:
                inner[node.number] = node
                waiting += node.operands
        loop = self._loop_for(leaves, count, fresh)
        for number in sorted(inner):
            node = inner[number]
            sources = [self._source(operand, loop) for operand in node.operands]
            node.placed = Placed(loop, node.compute, sources, node.dtype, [], [])
            loop.nodes.append(node.placed)
            self._placed_in_branch.append(node)
        return loop, [self._source(operand, loop) for operand in operands]

    def _demand_others(self, operands, count) -> None:
        """Place those operations whose entries are needed in another order, in other loops."""
        seen, waiting = set(), list(operands)
        while waiting:
            operand = waiting.pop()
            node = self.node_of(operand)
            if node is None or node.placed is not None:
                continue
            if node.count != count or operand.places != (0, 1):
                self.demand(node)
            elif node.number not in seen:
                seen.add(node.number)
                waiting += node.operands

    def _loop_for(self, operands, count, fresh) -> Loop:
        """An open loop after all operands, if possible one that computes some; or a new loop."""
        found = [loop for loop in self._open if loop.count == count and not fresh]
        found = [loop for loop in found if all(self._is_ready(o, loop) for o in operands)]
        computes = [loop for loop in found if any(self._inside(o, loop) for o in operands)]
        for loop in (*computes, *found):
            return loop
        self._before.setdefault(id(self._builder.block), len(self._loops))
        loop = Loop(self._builder, count, len(self._loops) + 1)
        self._before[id(self._builder.block)] = loop.number
        self._loops.append(loop)
        self._open.append(loop)
        return loop

    def _is_ready(self, operand, loop) -> bool:
        """Whether the operand is known before the loop, or in it for the same entry."""
        if isinstance(operand, Number) or self._inside(operand, loop):
            return True
        if isinstance(operand, Lanes):
            if not isinstance(operand.value, ir.Instruction):
                return True
            # A block that is seen for the first time could be after all loops.
            block = id(operand.value.parent)
            return self._before.setdefault(block, len(self._loops)) < loop.number
        node = self.node_of(operand)
        if node is not None:
            return node.placed is not None and node.placed.loop.number < loop.number
        return self._written.get(operand.base, 0) < loop.number

    def _inside(self, operand, loop) -> Placed | None:
        """The operation of the loop that gives the operand for the same entry."""
        node = self.node_of(operand)
        if node is None or node.placed is None or node.placed.loop is not loop:
            return None
        return node.placed if operand.places == (0, 1) else None

    def _source(self, operand, loop) -> Any:
        """The operand, as a source in the loop."""
        inside = self._inside(operand, loop)
        if inside is not None or not isinstance(operand, Stream):
            return operand if inside is None else inside
        if operand.base == "row":
            self._reads.append((operand.bounds(loop.count), loop.number, operand.places))
        return Read(operand, self.base(operand.base))


def _first(operation: str, dtype: np.dtype) -> Any:
    """Where a reduction begins."""
    first = {"add": 0, "mul": 1, "or": 0, "and": -1}.get(operation)
    if first is not None:
        return bool(first) if dtype.kind == "b" else first
    if dtype.kind == "f":
        return -np.inf if operation == "max" else np.inf
    if dtype.kind == "b":
        return operation == "min"
    limits = np.iinfo(dtype)
    return int(limits.min if operation == "max" else limits.max)

"""One loop over the entries of long arrays, as LLVM instructions."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from llvmlite import ir

from .instructions import Instructions
from .memory import Memory
from .streams import Number, Stream

_INT = ir.IntType(64)
# The largest number of copies of a body in one turn, and of operations and operands in all of them.
# The end of a turn takes three instructions.
_COPIES, _LARGEST_TURN = 4, 48
# With up to this many reductions each copy of a body has its own. Otherwise a sum would wait for
# the last one.
_FEW_TOTALS = 2


class Read(NamedTuple):
    """A stream, with the pointer of its base."""

    stream: Stream
    pointer: Any


class Placed(NamedTuple):
    """An operation in a loop.

    - `compute`: gives the vector of one entry from those of the operands.
    - `sources`: the operands: other operations of the loop, `Number`, `Lanes`, or `Read`.
    - `targets`: pointers to which the loop writes the entries, and the place of the first one.
    - `row_targets`: the same, for numbers that the loop may read in the same turn.
    """

    loop: "Loop"
    compute: Callable[..., Any]
    sources: Sequence[Any]
    dtype: Any
    targets: list[tuple[Any, int]]
    row_targets: list[tuple[Any, int]]


class Total(NamedTuple):
    """A reduction over the entries of a loop.

    `first`: where it begins, `result`: its result, which is a phi after the loop.
    """

    sources: Sequence[Any]
    operation: str
    unsigned: bool
    first: Any
    result: Any


class Loop:
    """A loop over `count` entries; its body is written when nothing more is added.

    `number`: of the loop in its function, from 1 on.
    """

    def __init__(self, builder: ir.IRBuilder, count: int, number: int):
        self.count, self.number = count, number
        self._before = builder.block
        names = "body", "combine", "exit", "after"
        self._body, self._combine, self.exit, after = map(builder.append_basic_block, names)
        builder.branch(self._body)
        # The block of the results exists from the beginning, because other code uses them.
        builder.position_at_end(self.exit)
        builder.branch(after)
        builder.position_at_end(after)
        self.nodes: list[Placed] = []
        self.totals: list[Total] = []

    def write(self, memory: Memory, scope: Callable[[], Any]) -> None:
        """Write the body. `scope`: a context for instructions of one entry."""
        builder, body = memory.builder, _Body(self, memory)
        copies = self._copies()
        builder.position_before(self._before.terminator)  # pyright: ignore[reportOptionalMemberAccess]
        body.read_constants()
        builder.position_at_end(self._body)
        index: Any = builder.phi(_INT)
        index.add_incoming(ir.Constant(_INT, 0), self._before)
        parts = copies if len(self.totals) <= _FEW_TOTALS else 1
        begun: Any = [[builder.phi(t.result.type) for _ in range(parts)] for t in self.totals]
        sums = [list(phis) for phis in begun]
        for copy in range(copies):
            with scope():
                body.write(index, copy, sums)
        following = builder.add(index, ir.Constant(_INT, copies))
        index.add_incoming(following, self._body)
        for total, phis, values in zip(self.totals, begun, sums, strict=True):
            for phi, value in zip(phis, values, strict=True):
                phi.add_incoming(total.first, self._before)
                phi.add_incoming(value, self._body)
        goes_on = builder.icmp_signed("<", following, ir.Constant(_INT, self.count))
        builder.cbranch(goes_on, self._body, self._combine)
        builder.position_at_end(self._combine)
        for total, values in zip(self.totals, sums, strict=True):
            total.result.add_incoming(body.combined(total, values), self._combine)
        builder.branch(self.exit)

    def sources(self) -> Iterator[Any]:
        """The operands of all operations and reductions."""
        for part in (*self.nodes, *self.totals):
            yield from part.sources

    def _copies(self) -> int:
        size = len(self.nodes) + len(self.totals) + sum(1 for _ in self.sources())
        most = max(1, min(_COPIES, _LARGEST_TURN // size))
        return next(copies for copies in range(most, 0, -1) if self.count % copies == 0)


class _Body:
    """Writes the copies of the body of a loop."""

    def __init__(self, loop: Loop, memory: Memory):
        self.loop, self.memory, self.builder = loop, memory, memory.builder
        self.instructions = Instructions(memory.builder, memory.width)
        self._constants: dict[Any, Any] = {}

    def read_constants(self) -> None:
        """Read the numbers in memory that are the same for all entries."""
        for source in self.loop.sources():
            if isinstance(source, Read) and source.stream.regular and not source.stream.places[1]:
                place = ir.Constant(_INT, source.stream.places[0])
                self._constants[source.stream] = self._load(source, place)

    def write(self, index: Any, copy: int, sums: list[list[Any]]) -> None:
        """The instructions for the entry `index` + `copy`; `sums`: those of the reductions."""
        known: dict[Any, Any] = dict(self._constants)

        def read(source):
            if isinstance(source, Placed):
                return known[id(source)]
            if isinstance(source, Number):
                return self.instructions.constant(source.number, source.dtype)
            if not isinstance(source, Read):
                return source.value
            if source.stream not in known:
                place = self._place(source.stream, index, copy)
                known[source.stream] = self._load(source, place)
            return known[source.stream]

        for node in self.loop.nodes:
            value = known[id(node)] = node.compute(*map(read, node.sources))
            self._store(value, node.dtype, node.targets, index, copy)
        for total, parts in zip(self.loop.totals, sums, strict=True):
            part = copy % len(parts)
            for source in total.sources:
                parts[part] = self._operate(total, parts[part], read(source))
        for node in self.loop.nodes:
            self._store(known[id(node)], node.dtype, node.row_targets, index, copy)

    def combined(self, total: Total, values: list[Any]) -> Any:
        """The reduction of the values of all copies."""
        while len(values) > 1:
            first, second, *rest = values
            values = [*rest, self._operate(total, first, second)]
        return values[0]

    def _store(self, value, dtype, targets, index, copy):
        for pointer, start in targets:
            place = self.builder.add(index, ir.Constant(_INT, copy + start))
            stored = self.memory.as_stored(value, dtype)
            self.memory.store(stored, self.builder.gep(pointer, [place]))

    def _operate(self, total, a, b):
        return self.instructions.binary(total.operation, a, b, total.unsigned)

    def _place(self, stream, index, copy):
        builder = self.builder
        if stream.regular:
            start, step = stream.places
            scaled = index if step == 1 else builder.mul(index, ir.Constant(_INT, step))
            return builder.add(scaled, ir.Constant(_INT, start + copy * step))
        at = builder.add(index, ir.Constant(_INT, copy))
        table = self.memory.table(_INT, stream.places)
        return builder.load(builder.gep(table, [ir.Constant(_INT, 0), at]))

    def _load(self, source, place):
        stream, pointer = source
        return self.memory.load(stream.base, self.builder.gep(pointer, [place]), stream.dtype)

"""`cond`, `while` and `scan` for a vector of lanes: each lane has its own condition."""

from typing import Any

import numpy as np
from llvmlite import ir

from ..vectorization.entry_by_entry import from_list
from ..vectorization.jaxprs import opened
from .instructions import no_instruction

# A `scan` of up to so many iterations is unrolled; longer ones have no machine code.
_LONGEST_SCAN = 8


def emit_cond(emitter: Any, equation: Any, inputs: Any) -> list[np.ndarray]:
    """A `cond` between two programs. The second one is skipped if no lane takes it."""
    if len(equation.params["branches"]) != 2:
        raise no_instruction("cond of more than two branches")
    (index,), *inputs = (inputs[0].reshape(-1), *inputs[1:])
    without, instead = map(opened, equation.params["branches"])
    if isinstance(index, np.generic):
        return emitter.evaluate(*(instead if index else without), inputs)
    builder = emitter.builder
    index = emitter.value(index, np.int32)
    wanted = builder.icmp_signed("!=", index, emitter.instructions.constant(0, np.int32))
    usual = emitter.vectors(*without, inputs)
    before = builder.block
    with builder.if_then(_any(emitter, wanted), likely=False):
        with emitter.conditional_code():
            other = emitter.vectors(*instead, inputs)
        chosen = [builder.select(wanted, a, b) for a, b in zip(other, usual, strict=True)]
        after = builder.block
    merged = []
    for new, old in zip(chosen, usual, strict=True):
        phi = builder.phi(new.type)
        phi.add_incoming(new, after)
        phi.add_incoming(old, before)
        merged.append(phi)
    return split_by_shapes(merged, [v.aval.shape for v in equation.outvars])


def emit_while(emitter: Any, equation: Any, inputs: Any) -> list[np.ndarray]:
    """A `while` loop. A lane keeps its values from the first time that its condition is False."""
    params, builder = equation.params, emitter.builder
    test, body = opened(params["cond_jaxpr"]), opened(params["body_jaxpr"])
    of_test, of_both = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
    of_body, carried = inputs[of_test:of_both], inputs[of_both:]
    shapes = [v.aval.shape for v in equation.outvars]
    dtypes = [v.aval.dtype for v in equation.outvars]
    start = [
        emitter.value(entry, dtype)
        for value, dtype in zip(carried, dtypes, strict=True)
        for entry in value.reshape(-1)
    ]
    before, function = builder.block, builder.function
    again, turn, end = map(function.append_basic_block, ("again", "turn", "end"))
    builder.branch(again)

    builder.position_at_end(again)
    phis = [builder.phi(value.type) for value in start]
    for phi, value in zip(phis, start, strict=True):
        phi.add_incoming(value, before)
    with emitter.repeated_code():
        (goes_on,) = emitter.vectors(*test, [*inputs[:of_test], *split_by_shapes(phis, shapes)])
        builder.cbranch(_any(emitter, goes_on), turn, end)
        builder.position_at_end(turn)
        found = emitter.vectors(*body, [*of_body, *split_by_shapes(phis, shapes)])
        for phi, new in zip(phis, found, strict=True):
            phi.add_incoming(builder.select(goes_on, new, phi), builder.block)
        builder.branch(again)
    builder.position_at_end(end)
    return split_by_shapes(phis, shapes)


def unrolled_scan(emitter: Any, equation: Any, inputs: Any) -> list[np.ndarray]:
    """A short `scan`: one iteration after the other."""
    length, (jaxpr, constants) = equation.params["length"], opened(equation.params["jaxpr"])
    if not 0 < length <= _LONGEST_SCAN:
        raise no_instruction(f"scan of {length} iterations")
    # Versions of JAX name these numbers in different ways. Only scanned arrays have another rank in
    # the body.
    num_carry = len(equation.outvars) - _changed(equation.outvars, jaxpr.outvars)
    last = len(inputs) - _changed(equation.invars, jaxpr.invars)
    first, reverse = last - num_carry, equation.params["reverse"]
    shared, carried, arrays = inputs[:first], inputs[first:last], inputs[last:]
    collected = []
    for i in range(length):
        place = length - 1 - i if reverse else i
        given = [*shared, *carried, *(array[place, ...] for array in arrays)]
        found = emitter.evaluate(jaxpr, constants, given)
        carried = found[: len(carried)]
        collected.append(found[len(carried) :])
    if reverse:
        collected.reverse()
    stacked = []
    for values in zip(*collected, strict=True):
        entries = [entry for value in values for entry in value.reshape(-1)]
        stacked.append(from_list(entries, (length, *values[0].shape)))
    return [*carried, *stacked]


def _changed(outside: Any, inside: Any) -> int:
    """How many of the variables of an equation have another rank in its body."""
    pairs = zip(outside, inside, strict=True)
    return sum(len(a.aval.shape) != len(b.aval.shape) for a, b in pairs)


def _any(emitter: Any, lanes: Any) -> Any:
    """Whether a condition holds in any lane."""
    bits: Any = emitter.builder.bitcast(lanes, ir.IntType(emitter.width))
    return emitter.builder.icmp_signed("!=", bits, ir.Constant(bits.type, 0))


def split_by_shapes(values: Any, shapes: Any) -> list[np.ndarray]:
    """A list of entries, cut into arrays of these shapes."""
    arrays = []
    for shape in shapes:
        size = int(np.prod(shape))
        arrays.append(from_list(values[:size], shape))
        values = values[size:]
    return arrays

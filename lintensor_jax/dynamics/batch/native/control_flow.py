"""Branches and loops of a vector of lanes: a lane takes part where its own condition says so."""

from typing import Any

import numpy as np
from llvmlite import ir

from ..vectorization.entry_by_entry import from_list
from .instructions import no_instruction

# A `scan` of up to so many turns is written out; longer ones have no machine code.
_LONGEST_SCAN = 8


def branch(emitter: Any, equation: Any, inputs: Any) -> list[np.ndarray]:
    """A `cond` between two programs. The second one is skipped if no lane takes it."""
    if len(equation.params["branches"]) != 2:
        raise no_instruction("cond of more than two branches")
    (index,), *inputs = (inputs[0].reshape(-1), *inputs[1:])
    without, instead = equation.params["branches"]
    if isinstance(index, np.generic):
        chosen = instead if index else without
        return emitter.evaluate(chosen.jaxpr, chosen.consts, inputs)
    builder = emitter.builder
    index = emitter.value(index, np.int32)
    wanted = builder.icmp_signed("!=", index, emitter.instructions.constant(0, np.int32))
    usual = emitter.vectors(without.jaxpr, without.consts, inputs)
    before = builder.block
    with builder.if_then(_any(emitter, wanted), likely=False):
        with emitter.not_always():
            other = emitter.vectors(instead.jaxpr, instead.consts, inputs)
        chosen = [builder.select(wanted, a, b) for a, b in zip(other, usual, strict=True)]
        after = builder.block
    merged = []
    for new, old in zip(chosen, usual, strict=True):
        phi = builder.phi(new.type)
        phi.add_incoming(new, after)
        phi.add_incoming(old, before)
        merged.append(phi)
    return divided(merged, [v.aval.shape for v in equation.outvars])


def loop(emitter: Any, equation: Any, inputs: Any) -> list[np.ndarray]:
    """A `while` loop. A lane keeps its values from the first time that its condition is False."""
    params, builder = equation.params, emitter.builder
    test, body = params["cond_jaxpr"], params["body_jaxpr"]
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
    with emitter.not_always():
        (goes_on,) = emitter.vectors(
            test.jaxpr, test.consts, [*inputs[:of_test], *divided(phis, shapes)]
        )
        builder.cbranch(_any(emitter, goes_on), turn, end)
        builder.position_at_end(turn)
        found = emitter.vectors(body.jaxpr, body.consts, [*of_body, *divided(phis, shapes)])
        for phi, new in zip(phis, found, strict=True):
            phi.add_incoming(builder.select(goes_on, new, phi), builder.block)
        builder.branch(again)
    builder.position_at_end(end)
    return divided(phis, shapes)


def written_out(emitter: Any, equation: Any, inputs: Any) -> list[np.ndarray]:
    """A short `scan`, turn after turn."""
    params = equation.params
    length, inner = params["length"], params["jaxpr"]
    if length > _LONGEST_SCAN:
        raise no_instruction(f"scan of {length} turns")
    first = params["num_consts"]
    last = first + params["num_carry"]
    constants, carried, arrays = inputs[:first], inputs[first:last], inputs[last:]
    collected = []
    for turn in range(length):
        place = length - 1 - turn if params["reverse"] else turn
        given = [*constants, *carried, *(array[place] for array in arrays)]
        found = emitter.evaluate(inner.jaxpr, inner.consts, given)
        carried = found[: len(carried)]
        collected.append(found[len(carried) :])
    if params["reverse"]:
        collected.reverse()
    stacked = []
    for values in zip(*collected, strict=True):
        entries = [entry for value in values for entry in value.reshape(-1)]
        stacked.append(from_list(entries, (length, *values[0].shape)))
    return [*carried, *stacked]


def _any(emitter: Any, lanes: Any) -> Any:
    """Whether a condition holds in any lane."""
    bits: Any = emitter.builder.bitcast(lanes, ir.IntType(emitter.width))
    return emitter.builder.icmp_signed("!=", bits, ir.Constant(bits.type, 0))


def divided(values: Any, shapes: Any) -> list[np.ndarray]:
    """A list of entries, cut into arrays of these shapes."""
    arrays = []
    for shape in shapes:
        size = int(np.prod(shape))
        arrays.append(from_list(values[:size], shape))
        values = values[size:]
    return arrays

"""Primitives of JAX as LLVM instructions for vectors."""

from typing import Any

import numpy as np
from llvmlite import ir

_TYPES = {
    np.dtype(np.float64): ir.DoubleType(),
    np.dtype(np.float32): ir.FloatType(),
    np.dtype(np.int64): ir.IntType(64),
    np.dtype(np.int32): ir.IntType(32),
    np.dtype(np.uint64): ir.IntType(64),
    np.dtype(np.uint32): ir.IntType(32),
    np.dtype(np.bool_): ir.IntType(1),
}
# A product and a sum may become one instruction, as in XLA. No other rearrangement is allowed.
_FAST = ("contract",)
_FLOATS = {"add": "fadd", "add_any": "fadd", "sub": "fsub", "mul": "fmul", "div": "fdiv"}
_INTEGERS = {"add": "add", "add_any": "add", "sub": "sub", "mul": "mul", "and": "and_", "or": "or_"}
_INTEGERS |= {"xor": "xor", "shift_left": "shl", "shift_right_arithmetic": "ashr"}
_INTEGERS |= {"shift_right_logical": "lshr"}
_COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_INTRINSICS = {"abs": "fabs", "sqrt": "sqrt", "floor": "floor", "ceil": "ceil"}
# Functions of C's mathematical library, called for one number at a time.
_SCALAR = {"expm1", "sin", "cos", "tan", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh"}
_SCALAR |= {"pow", "atan2"}


class Unsupported(Exception):
    """A program has an operation without an instruction here; the message names it."""


class TooLarge(Unsupported):
    """A program has too many operations."""


def no_instruction(name: str) -> Unsupported:
    """The exception for a primitive of JAX without an instruction."""
    return Unsupported(f"no instruction for the JAX primitive {name}")


def vector(dtype: Any, width: int) -> ir.VectorType:
    """The type of one number of all lanes."""
    kind = _TYPES.get(np.dtype(dtype))
    if kind is None:
        raise Unsupported(f"no instruction for numbers of type {dtype}")
    return ir.VectorType(kind, width)


def _is_defined_shift(amount: Any, digits: int) -> bool:
    """Whether a constant shift is less than `digits`: LLVM does not define larger shifts."""
    items = amount.constant if isinstance(amount, ir.Constant) else [None]
    numbers = [getattr(item, "constant", None) for item in items]
    return all(isinstance(number, int) and 0 <= number < digits for number in numbers)


def _is_ordinary(value: Any) -> bool:
    """Whether a vector is a constant that is neither zero nor NaN."""
    items = value.constant if isinstance(value, ir.Constant) else [None]
    numbers = [getattr(item, "constant", None) for item in items]
    return all(isinstance(number, float) and abs(number) > 0 for number in numbers)


class Instructions:
    """Writes instructions with an LLVM builder, for vectors of `width` lanes."""

    def __init__(self, builder: ir.IRBuilder, width: int):
        self.builder, self.width = builder, width
        self._constants: dict[Any, ir.Constant] = {}

    def constant(self, number: Any, dtype: Any) -> ir.Constant:
        """The same number in every lane."""
        return self.constant_of(number, vector(dtype, self.width))

    def constant_of(self, number: Any, kind: ir.VectorType) -> ir.Constant:
        """The same number in every lane, of an LLVM type; one object for each number."""
        is_float = isinstance(kind.element, (ir.DoubleType, ir.FloatType))
        value = float(number) if is_float else int(number)
        key = repr(value), kind.element
        if key not in self._constants:
            item = ir.Constant(kind.element, value)
            self._constants[key] = ir.Constant(kind, [item] * kind.count)
        return self._constants[key]

    def apply(self, name: str, params: Any, dtype: Any, values) -> Any:
        """A primitive of JAX; `dtype` is that of the first argument."""
        builder = self.builder
        is_float, unsigned = dtype.kind == "f", dtype.kind in "ub"
        if name in _INTRINSICS and is_float:
            return self._intrinsic(_INTRINSICS[name], *values)
        if name in _COMPARISONS:
            compare = builder.icmp_unsigned if unsigned else builder.icmp_signed
            if is_float:
                ordered = builder.fcmp_unordered if name == "ne" else builder.fcmp_ordered
                return ordered(_COMPARISONS[name], *values)
            return compare(_COMPARISONS[name], *values)
        if name in _SCALAR and is_float:
            return self._by_lane(name, dtype, values)
        match name:
            case "neg":
                return builder.fneg(values[0]) if is_float else builder.neg(values[0])
            case "square":
                return self.binary("mul", values[0], values[0])
            case "integer_pow":
                return self._power(values[0], params["y"], dtype)
            case "rsqrt":
                root = self._intrinsic("sqrt", values[0])
                return self.binary("div", self.constant(1, dtype), root)
            case "not":
                return builder.not_(values[0])
            case "select_n" if len(values) == 3 and dtype.kind == "b":
                return builder.select(values[0], values[2], values[1])
            case "clamp":
                least, value, most = values
                larger = self.binary("max", value, least, unsigned)
                return self.binary("min", larger, most, unsigned)
            case "is_finite":
                size = self._intrinsic("fabs", values[0])
                return builder.fcmp_ordered("<", size, self.constant(np.inf, dtype))
            case "sign" if is_float:
                return self._sign(values[0], dtype)
            case "stop_gradient" | "copy":
                return values[0]
            case "convert_element_type":
                return self.converted(values[0], dtype, np.dtype(params["new_dtype"]))
            case "bitcast_convert_type":
                return builder.bitcast(values[0], vector(params["new_dtype"], self.width))
        if len(values) == 2:
            return self.binary(name, *values, unsigned=unsigned)
        raise no_instruction(name)

    def binary(self, name: str, a: Any, b: Any, unsigned: bool = False) -> Any:
        """A primitive of two vectors."""
        is_float = isinstance(a.type.element, (ir.DoubleType, ir.FloatType))
        builder = self.builder
        if name in ("max", "min"):
            sign = ">" if name == "max" else "<"
            if not is_float:
                unsigned = unsigned or a.type.element.width == 1  # True, which is -1 with a sign
                compare = builder.icmp_unsigned if unsigned else builder.icmp_signed
                return builder.select(compare(sign, a, b), a, b)
            # If a or b is NaN, the comparison gives b. Therefore a NaN in a is selected afterwards,
            # and a constant comes first. Zeros keep their places, because their signs differ.
            a, b = (b, a) if _is_ordinary(b) else (a, b)
            if _is_ordinary(a):
                return builder.select(builder.fcmp_ordered(sign, a, b), a, b)
            chosen = builder.select(builder.fcmp_ordered(sign, a, b), a, b)
            return builder.select(builder.fcmp_unordered("uno", a, a), a, chosen)
        if is_float and name in _FLOATS:
            return getattr(builder, _FLOATS[name])(a, b, flags=_FAST)
        if name.startswith("shift") and not _is_defined_shift(b, a.type.element.width):
            raise no_instruction(f"{name} by this many digits")
        if not is_float and name in _INTEGERS:
            return getattr(builder, _INTEGERS[name])(a, b)
        raise no_instruction(name)

    def _power(self, value, exponent, dtype):
        if exponent < 0:
            positive = self._power(value, -exponent, dtype)
            return self.binary("div", self.constant(1, dtype), positive)
        result, square = None, value
        while exponent:
            if exponent & 1:
                result = square if result is None else self.binary("mul", result, square)
            exponent >>= 1
            square = self.binary("mul", square, square) if exponent else square
        return self.constant(1, dtype) if result is None else result

    def _sign(self, value, dtype):
        zero = self.constant(0, dtype)
        one = self._intrinsic("copysign", self.constant(1, dtype), value)
        moves = self.builder.fcmp_unordered("!=", value, zero)
        signed = self.builder.select(moves, one, value)
        return self.builder.select(self.builder.fcmp_unordered("uno", value, value), value, signed)

    def converted(self, value: Any, old: Any, new: Any) -> Any:
        """A vector converted from the dtype `old` to `new`."""
        old, new = np.dtype(old), np.dtype(new)
        kind, builder = vector(new, self.width), self.builder
        if old == new:
            return value
        if new.kind == "b":
            zero = self.constant(0, old)
            if old.kind == "f":
                return builder.fcmp_unordered("!=", value, zero)
            return builder.icmp_signed("!=", value, zero)
        if old.kind == "f" and new.kind == "f":
            return (builder.fpext if new.itemsize > old.itemsize else builder.fptrunc)(value, kind)
        if new.kind == "f":
            return (builder.sitofp if old.kind == "i" else builder.uitofp)(value, kind)
        if old.kind == "f":
            return self._to_integer(value, old, new)
        if old.kind == "b":
            return builder.zext(value, kind)
        if new.itemsize == old.itemsize:
            return value
        widened = builder.sext if old.kind == "i" else builder.zext
        return (widened if new.itemsize > old.itemsize else builder.trunc)(value, kind)

    def _to_integer(self, value, old, new):
        """The nearest number that the integer type has, and zero for NaN, as in XLA.

        LLVM compiles its operation for this, `fptosi.sat`, lane by lane. Here the number is clamped
        first. Then the plain operation, which has a vector instruction, is always defined.
        """
        builder, kind = self.builder, vector(new, self.width)
        limits = np.iinfo(new)
        largest = old.type(limits.max)  # rounded, perhaps to a number beyond the limit
        exact = int(largest) == limits.max
        largest = largest if exact else np.nextafter(largest, old.type(0))
        least, most = self.constant(limits.min, old), self.constant(largest, old)
        # For NaN both comparisons give a limit.
        inside = builder.select(builder.fcmp_ordered(">", value, least), value, least)
        inside = builder.select(builder.fcmp_ordered("<", inside, most), inside, most)
        whole = (builder.fptosi if new.kind == "i" else builder.fptoui)(inside, kind)
        if not exact:
            beyond = builder.fcmp_ordered(">", value, most)
            whole = builder.select(beyond, self.constant(limits.max, new), whole)
        unknown = builder.fcmp_unordered("uno", value, value)
        return builder.select(unknown, self.constant(0, new), whole)

    def _intrinsic(self, name, *values):
        kind = values[0].type
        letter = "f64" if isinstance(kind.element, ir.DoubleType) else "f32"
        function = self._declared(f"llvm.{name}.v{self.width}{letter}", kind, [kind] * len(values))
        return self.builder.call(function, values)

    def _by_lane(self, name, dtype, values):
        integers = [not isinstance(v.type.element, (ir.DoubleType, ir.FloatType)) for v in values]
        if any(integers):  # x^n by an array of n
            raise no_instruction(name)
        kind = _TYPES[np.dtype(dtype)]
        name = name if isinstance(kind, ir.DoubleType) else f"{name}f"
        function = self._declared(name, kind, [kind] * len(values))
        function.attributes.add("nounwind")
        result = ir.Constant(values[0].type, ir.Undefined)
        for lane in range(self.width):
            place = ir.Constant(ir.IntType(32), lane)
            numbers = [self.builder.extract_element(value, place) for value in values]
            result = self.builder.insert_element(
                result, self.builder.call(function, numbers), place
            )
        return result

    def _declared(self, name, kind, arguments):
        module = self.builder.module
        if name in module.globals:
            return module.globals[name]
        return ir.Function(module, ir.FunctionType(kind, arguments), name)

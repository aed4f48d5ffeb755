"""Which products and sums become one instruction, decided as LLVM decides for CPUs.

The emitter allows a product and a sum to become one `fma`, which rounds once. LLVM decides which
do, and for GPUs it decides differently: there it also merges products that are used several times.
Here the decision for CPUs is written into the text, before any pass. Therefore the last bits of a
lane are the same on both.
"""

import re
from typing import NamedTuple

_FUNCTION = re.compile(r"^define [^\n]*\n?\{\n.*?^\}", re.M | re.S)
_ASSIGNED = re.compile(r'^  (%"[^"]+") = (.*)$')
_NAME = re.compile(r'%"[^"]+"')
_CONTRACTED = re.compile(r"(fadd|fsub|fmul) contract (<1 x (double|float)>) ([^,]+), (.+)$")
_OPPOSITE = {"fadd": "fsub", "fsub": "fadd"}
_NEGATED = re.compile(r'fneg <1 x (?:double|float)> (%"[^"]+")$')
# Instructions that have no effect except their result.
_PURE = ("fadd", "fsub", "fmul", "fdiv", "fneg", "fcmp", "icmp", "select", "load", "getelementptr")
_PURE += ("insertelement", "extractelement", "shufflevector", "bitcast", "add", "sub", "mul", "and")
_PURE += ("or", "xor", "shl", "ashr", "lshr", "sext", "zext", "trunc", "sitofp", "uitofp", "fptosi")
_PURE += ("fptoui", "fpext", "fptrunc", "phi")
# Those among them that read no memory and depend on nothing but their operands.
_MERGED = tuple(name for name in _PURE if name not in ("load", "phi"))


def with_explicit_fma(text: str) -> str:
    """A module from the emitter, as text in LLVM's language, with every `fma` written out."""
    kinds = {"double": "f64", "float": "f32"}
    text = _FUNCTION.sub(lambda found: _Function(found.group()).rewritten(), text)
    for kind, short in kinds.items():
        name = f'@"llvm.fma.v1{short}"'
        if name in text:
            vector = f"<1 x {kind}>"
            text += f"\ndeclare {vector} {name}({vector}, {vector}, {vector})\n"
    return text


class _Product(NamedTuple):
    """A product that may become part of an `fma`: its block, its factors, its number of uses."""

    block: int
    left: str
    right: str
    uses: int


class _Function:
    """The lines of one function."""

    def __init__(self, text: str):
        self.lines = text.split("\n")
        self.blocks, block = [], 0
        for line in self.lines:
            block += line.endswith(":")
            self.blocks.append(block)
        self._merge_equal_lines()
        self._drop_dead_lines()
        self.uses: dict[str, int] = {}
        self.products: dict[str, _Product] = {}
        self.negated: dict[str, str] = {}
        for line in self.lines:
            for name in _names_used(line):
                self.uses[name] = self.uses.get(name, 0) + 1
        for line, block in zip(self.lines, self.blocks, strict=True):
            if (assigned := _ASSIGNED.match(line)) is None:
                continue
            name, right = assigned.groups()
            if (found := _CONTRACTED.match(right)) and found.group(1) == "fmul":
                a, b = found.group(4), found.group(5)
                self.products[name] = _Product(block, a, b, self.uses[name])
            elif found := _NEGATED.match(right):
                self.negated[name] = found.group(1)

    def _merge_equal_lines(self) -> None:
        """Equal lines of a block become one, with the uses of both, as in LLVM's graphs."""
        first: dict[tuple[int, str], str] = {}
        same: dict[str, str] = {}
        kept = []
        for line, block in zip(self.lines, self.blocks, strict=True):
            line = _NAME.sub(lambda found: same.get(found.group(), found.group()), line)
            assigned = _ASSIGNED.match(line)
            if assigned and assigned.group(2).split(" ", 1)[0] in _MERGED:
                name, right = assigned.groups()
                if (known := first.setdefault((block, _in_order(right)), name)) != name:
                    same[name] = known
                    continue
            kept.append((line, block))
        self.lines, self.blocks = (list(part) for part in zip(*kept, strict=True))

    def _drop_dead_lines(self) -> None:
        """Lines whose results are not used are dropped, so that they do not count as uses."""
        while True:
            used = {name for line in self.lines for name in _names_used(line)}
            kept = [
                (line, block)
                for line, block in zip(self.lines, self.blocks, strict=True)
                if not _is_dead(line, used)
            ]
            if len(kept) == len(self.lines):
                return
            self.lines, self.blocks = (list(part) for part in zip(*kept, strict=True))

    def rewritten(self) -> str:
        """The function with every `fma` written out."""
        out: list[str] = []
        for line, block in zip(self.lines, self.blocks, strict=True):
            assigned = _ASSIGNED.match(line)
            found = assigned and _CONTRACTED.match(assigned.group(2))
            if not assigned or not found:
                out.append(line)
                continue
            operation, vector, kind, a, b = found.groups()
            factors = self._merged(operation, a, b, block)
            if factors is None:
                out.append(line.replace(" contract", ""))
                continue
            out += _fma(assigned.group(1), vector, kind, *factors)
        return "\n".join(out)

    def _merged(self, operation, a, b, block):
        """(factor, factor, whether the product is negated, addend, whether it is negated)."""
        if operation == "fmul":
            return None
        # x + (-y) is x - y, and x - (-y) is x + y. Then y has the uses of -y.
        more = {a: 0, b: 0}
        if b in self.negated:
            operation, negative, b = _OPPOSITE[operation], b, self.negated[b]
            more[b] = self.uses[negative] - 1
        elif a in self.negated and operation == "fadd":
            operation, negative, a, b = "fsub", a, b, self.negated[a]
            more[b] = self.uses[negative] - 1
        left, right = (self._product(name, block, more.get(name, 0)) for name in (a, b))
        first = left and (left.left, left.right, False, b, operation == "fsub")
        second = right and (right.left, right.right, operation == "fsub", a, False)
        if operation == "fsub" and self._uses_of_product(a) > self._uses_of_product(b) > 0:
            return second or first
        return first or second or self._negated_first(operation, a, b, block)

    def _negated_first(self, operation, a, b, block):
        """-(x y) - z, if no part of it is used elsewhere."""
        if operation != "fsub" or self.uses.get(a) != 1 or a not in self.negated:
            return None
        left = self._product(self.negated[a], block, 0)
        return left and (left.left, left.right, True, b, True)

    def _product(self, name, block, more):
        """The product, if this is its only use and in its block; `more`: uses of its negative."""
        found = self.products.get(name)
        return found if found and found.uses + more == 1 and found.block == block else None

    def _uses_of_product(self, name):
        return self.products[name].uses if name in self.products else 0


def _in_order(right: str) -> str:
    """An instruction with the operands of a sum or a product in sorted order."""
    found = _CONTRACTED.match(right)
    if not found or found.group(1) == "fsub":
        return right
    operation, vector, _, a, b = found.groups()
    return " ".join((operation, vector, *sorted((a, b))))


def _names_used(line: str) -> list[str]:
    assigned = _ASSIGNED.match(line)
    return _NAME.findall(assigned.group(2) if assigned else line)


def _is_dead(line: str, used: set[str]) -> bool:
    assigned = _ASSIGNED.match(line)
    if assigned is None or assigned.group(1) in used:
        return False
    right = assigned.group(2)
    is_intrinsic = right.startswith("call") and '@"llvm.' in right
    return is_intrinsic or right.split(" ", 1)[0] in _PURE


def _fma(name, vector, kind, a, b, negates_product, c, negates_addend) -> list[str]:
    lines = []
    if negates_product:
        lines.append(f'  {name[:-1]}.a" = fneg {vector} {a}')
        a = f'{name[:-1]}.a"'
    if negates_addend:
        lines.append(f'  {name[:-1]}.c" = fneg {vector} {c}')
        c = f'{name[:-1]}.c"'
    function = f'@"llvm.fma.v1{"f64" if kind == "double" else "f32"}"'
    given = ", ".join(f"{vector} {value}" for value in (a, b, c))
    return [*lines, f"  {name} = call {vector} {function}({given})"]

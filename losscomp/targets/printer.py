"""The one printer of scalar nodes. A target gives it a spelling table and a few overrides."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import ClassVar

from .. import ir
from ..errors import TargetError
from ..ir import Const, Flag, Kernel, Load, Node, Number, Op, Param, Ref, Size, Var, Wanted

# Operators with their precedence; calls bind tightest, a selection loosest.
INFIX: dict[str, tuple[str, int]] = {
    "add": ("+", 10), "sub": ("-", 10), "mul": ("*", 20), "div": ("/", 20),
    "lt": ("<", 6), "le": ("<=", 6), "gt": (">", 6), "ge": (">=", 6), "eq": ("==", 5), "ne": ("!=", 5),
}
NEGATION, CALL = 15, 100


class Printer:
    """Prints the nodes of one kernel. `calls` maps an operation to a form with {0}, {1}, ... for its arguments."""

    calls: ClassVar[Mapping[str, str]] = {}

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.arguments = {a.name: a for a in kernel.arguments}
        self.loops = ir.loop_names(kernel.every_axis, kernel.names)

    def __call__(self, node: Node, outer: int = 0) -> str:
        """The text of a node, in parentheses where its operator binds less than `outer`."""
        match node:
            case Ref(name):
                return self.ref(node)
            case Param(name, _, _) | Size(name) | Flag(name):
                return name
            case Const(p, 1):
                return self.wrap(str(p), CALL if p >= 0 else NEGATION, outer)
            case Const(p, q):
                return self.constant(p, q, outer)
            case Number(digits):
                return self.number(digits)
            case Var():
                return self.var(node)
            case Load(_, _):
                return self.load(node)
            case Wanted():
                return self.wanted(node)
            case Op("neg", (a,)):
                return self.wrap(f"-{self(a, 20)}", NEGATION, outer)
            case Op(name, (a, b)) if name in INFIX:
                sign, level = INFIX[name]
                return self.wrap(f"{self(a, level)} {sign} {self(b, level + 1)}", level, outer)
            case Op(name, args) if name in self.calls:
                return self.call(name, args, outer)
        raise TargetError(f"{type(self).__name__} has no spelling for {getattr(node, 'name', type(node).__name__)!r} "
                          f"in the kernel {self.kernel.name}", repair=f"Add it to the table `calls` of {type(self).__module__}.")

    def wrap(self, text: str, level: int, outer: int) -> str:
        return f"({text})" if level < outer else text

    def call(self, name: str, args: tuple[Node, ...], outer: int) -> str:
        return self.calls[name].format(*(self(a) for a in args))

    def ref(self, node: Ref) -> str:
        return node.name

    def var(self, node: Var) -> str:
        return self.loops[node.axis] + (str(node.depth + 1) if node.depth else "")

    def constant(self, p: int, q: int, outer: int) -> str:
        raise NotImplementedError

    def number(self, digits: str) -> str:
        raise NotImplementedError

    def load(self, node: Load) -> str:
        raise NotImplementedError

    def wanted(self, node: Wanted) -> str:
        raise NotImplementedError


def decimal(p: int, q: int) -> str | None:
    """A ratio as a decimal number, if that is exact in double precision and short enough to read."""
    value = p / q
    return repr(value) if Fraction(value) == Fraction(p, q) else None

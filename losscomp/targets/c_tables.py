"""C99 for losses that are systems of tables: sweeps over memory that the driver lends, all arithmetic in double."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce as fold
from typing import ClassVar

from .. import ir
from ..ir import Const, Fill, Loop, Node, Op, Section, Statement, Store, Table, Vouch, Wave, free
from .c import CPrinter, CText
from .tables import Layout, cell


class TablesPrinter(CPrinter):
    """Reads cells of tables, and widens what it reads from arrays."""

    calls: ClassVar[dict[str, str]] = {
        **CPrinter.calls,
        **{n: f"{n}({{0}})" for n in ("scaled_exp", "scaled_power", "significand", "exponent_of")},
        **{n: f"{n}({{0}}, {{1}})" for n in ("scaled_log", "times_power")},
        "vouched": "vouched({0}, {1}, sizeof(STORED))",
    }

    def call(self, name: str, args: tuple[Node, ...], outer: int) -> str:
        match name, args:
            case "where", (Op("eq", (term, Const(-1, 0))), Const(0, 1), Op("exp") as share):
                return f"zero_if_absent({self(term)}, {self(share)})"
        return super().call(name, args, outer)

    def __init__(self, kernel: ir.Kernel) -> None:
        super().__init__(kernel)
        self.tables = {t.name: t for t in kernel.tables}

    def load(self, node: ir.Load) -> str:
        text = self.element(node.tensor, node.index)
        return text if node.integer or node.tensor in self.tables else f"(REAL){text}"

    def element(self, tensor: str, index: tuple[Node, ...]) -> str:
        """An element of an argument, or a cell of a table, whose last axis is dense."""
        return cell(self, self.tables[tensor], index) if tensor in self.tables else super().element(tensor, index)


def guarded(s: Loop) -> tuple[list[Node], Loop]:
    """The conditions, the same in every pass, without which a loop adds only 0, and the loop where they hold."""
    if len(s.body) != 1 or s.starts or s.serial:
        return [], s
    (inner,) = s.body
    asked: list[Node] = []
    if isinstance(inner, Loop):
        asked, inner = guarded(inner)
        held = [c for c in asked if s.var not in free(c)]
        return (held, replace(s, body=(inner,))) if held == asked else ([], s)
    while isinstance(inner, Store) and inner.adds and isinstance(inner.value, Op) and inner.value.name == "where":
        condition, a, b = inner.value.args
        if s.var in free(condition) or Const(0) not in (a, b):
            break
        asked.append(condition if b is Const(0) else Op("not", (condition,)))
        inner = replace(inner, value=a if b is Const(0) else b)
    return asked, replace(s, body=(inner,))


class TablesText(Layout, CText):
    """What the template asks of a kernel with tables."""

    printer: ClassVar[type[CPrinter]] = TablesPrinter
    stored = "STORED"

    @property
    def measured(self) -> set[str]:
        """The axes whose length the body needs."""
        named = super().measured | {n.axis for e in self.kernel.extents for n in ir.walk(e.size) if isinstance(n, ir.Size)}
        cleared = {s.tensor for s in ir.statements(self.kernel.body) if isinstance(s, Fill)}
        stored = {n.axis for s in ir.values(self.kernel.body) if isinstance(s, Store) for i in s.index for n in ir.walk(i)
                  if isinstance(n, ir.Size)}
        return named | stored | {axis for a in self.kernel.outputs if a.name in cleared for axis in a.axes}

    @property
    def read(self) -> set[ir.Argument]:
        """The arguments whose elements the body touches: those that say how long an axis is too."""
        parts = [part for e in self.kernel.extents for part in ir.walk(e.size)]
        parts += [n for s in ir.values(self.kernel.body) if isinstance(s, Store) for i in s.index for n in ir.walk(i)]
        names = {n.tensor for n in parts if isinstance(n, ir.Load)}
        return super().read | {a for a in self.kernel.arguments if a.name in names}

    def loop(self, s: Loop, depth: int, lines: list[tuple[int, str]]) -> None:
        if s.var is ir.SAMPLE:
            i = self.p.var(s.var)
            lines.append((depth, f"for (int64_t {i} = 0; {i} < {s.var.axis}; ++{i}) {{"))
            lines += [(depth + 1, line) for line in [*self.rows(), *self.memory()]]
            self.block(s.body, depth + 1, lines)
            lines.append((depth, "}"))
            return
        asked, s = guarded(s)
        if asked:
            condition = self.p(fold(lambda a, b: Op("and", (a, b)), asked))
            lines.append((depth, f"if ({condition}) {{"))
            self.loop(s, depth + 1, lines)
            lines.append((depth, "}"))
            return
        if not s.reverse:
            super().loop(s, depth, lines)
            return
        i = self.p.var(s.var)
        lines.append((depth, f"for (int64_t {i} = {s.var.axis} - 1; {i} >= 0; --{i}) {{"))
        self.block(s.body, depth + 1, lines)
        lines.append((depth, "}"))

    def memory(self) -> list[str]:
        """How long this sample's axes are, and where its tables lie: at the first cell, with those before it ahead."""
        lines = [f"const int64_t {e.axis} = {self.p(e.size)};" for e in self.kernel.extents]
        lines.append("losslib_cell *room = run->scratch;")
        for t in self.kernel.tables:
            lines.append(self.lengths(t))
            cells = self.p.derived[t.name, "cells"]
            kind, member = ("int64_t", "integer") if t.integer else ("double", "real")
            lines.append(f"{kind} *const {t.name} = &room->{member}{self.ahead(t, '+')}; room += {cells};")
        return lines

    def block(self, body: tuple[Statement, ...], depth: int, lines: list[tuple[int, str]]) -> None:
        for s in body:
            match s:
                case Section(text):
                    lines += [(0, ""), (depth, f"/* {text[:1].upper() + text[1:]}. */")]
                case Fill(name) if name in self.p.arguments:
                    self.clear(name, depth, lines)
                case Fill(name):
                    lines += [(depth, line) for line in self.fill(next(t for t in self.kernel.tables if t.name == name))]
                case Wave():
                    self.wave(s, depth, lines)
                case Vouch(value):
                    n, name = self.p.var(ir.SAMPLE), self.kernel.name
                    lines += [(depth, f"if ({self.p(Op('not', (value,)))}) {{"),
                              (depth + 1, f"const losslib_run one = alone(&{name}_family, run, {n}, sizeof(STORED));"),
                              (depth + 1, f"NAME({name}_logarithms)(1, &one);"), (depth + 1, "continue;"), (depth, "}")]
                case _:
                    super().block((s,), depth, lines)

    def wave(self, s: Wave, depth: int, lines: list[tuple[int, str]]) -> None:
        """Row by row and cell by cell: an order that agrees with the steps."""
        for k, var in enumerate(s.vars):
            i = self.p.var(var)
            steps = f"{i} = {var.axis} - 1; {i} >= 0; --{i}" if s.reverse else f"{i} = 0; {i} < {var.axis}; ++{i}"
            lines.append((depth + k, f"for (int64_t {steps}) {{"))
        self.block(s.body, depth + 2, lines)
        lines += [(depth + 1, "}"), (depth, "}")]

    def fill(self, t: Table) -> list[str]:
        """What a table holds at first."""
        first, cells = f"{t.name}{self.ahead(t, '-')}", self.p.derived[t.name, "cells"]
        assert t.outside is not None
        kind = "integers" if t.integer else "reals"
        if len(t.axes) == 2 and not t.integer and not any(s.adds for s in ir.statements(self.kernel.body)
                                                          if isinstance(s, Store) and s.tensor == t.name):
            (stride,), (rows, pad) = self.strides(t), t.pads              # what the sweeps store needs nothing before
            return [f"fill_edge({first}, {cells}, {stride}, {rows}, {pad}, {self.p(t.outside)});", *self.starts(t)]
        return [f"fill_{kind}({first}, {cells}, {self.p(t.outside)});", *self.starts(t)]

    def clear(self, name: str, depth: int, lines: list[tuple[int, str]]) -> None:
        """A result that is added to."""
        argument = self.p.arguments[name]
        variables = [ir.Var(axis, argument.axes[:k].count(axis)) for k, axis in enumerate(argument.axes)]
        lines.append((depth, f"if ({self.derived(name, 'wanted')})"))
        for k, v in enumerate(variables):
            i = self.p.var(v)
            lines.append((depth + 1 + k, f"for (int64_t {i} = 0; {i} < {v.axis}; ++{i})"))
        lines.append((depth + 1 + len(variables), f"{self.p.element(name, (ir.SAMPLE, *variables))} = 0;"))

    def independent(self, s: Loop) -> bool:
        """Does every pass of a loop write a cell of its own? Tables are read in other rows than they are written, or in other loops."""
        if s.serial or any(isinstance(u, Loop | Wave) for u in s.body) or (s.starts and not self.tiled(s)):
            return False
        return all(any(ir.is_shifted(i, s.var) for i in u.index) for u in s.body if isinstance(u, Store) and u.tensor not in self.totals)

    def store(self, s: Store) -> str:
        if s.tensor not in self.p.arguments:
            return f"{self.p.element(s.tensor, s.index)} {'+=' if s.adds else '='} {self.p(s.value)};"
        argument = self.p.arguments[s.tensor]
        if argument.role == "output" and argument.per_sample:
            place = f"{self.p.element(s.tensor, s.index)} {'+=' if s.adds else '='} (STORED)({self.p(s.value)});"
            return f"if ({self.derived(s.tensor, 'wanted')}) {place}"
        return super().store(s)

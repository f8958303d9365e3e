"""PyTorch for losses that are systems of tables: each table for all samples at once, with a loop of Python's only over its rows."""

from __future__ import annotations

from typing import ClassVar

from .. import ir
from ..ir import BATCH, Const, Let, Load, Loop, Node, Op, Section, Statement, Store, Table, Var
from .torch import TorchPrinter, TorchText


class TablesPrinter(TorchPrinter):
    """Reads tables, which have what lies before their first cells, and rows of a table that is being filled."""

    def __init__(self, kernel: ir.Kernel) -> None:
        super().__init__(kernel)
        self.tables = {t.name: t for t in kernel.tables}
        own = {e.axis for e in kernel.extents}
        self.slots.sort(key=lambda v: v.axis not in own)                 # as inputs usually lie: sequences first
        self.growing: tuple[str, int] | None = None                      # the table that is being filled, and its serial dimension
        both = {s.var for s in ir.statements(kernel.body) if isinstance(s, Loop) and s.serial} & set(self.slots)
        taken = ir.taken_names(kernel.names, kernel.every_axis)
        self.numbered = {v: ir.unused(f"{super(TablesPrinter, self).var(v)}_now", taken) for v in both}
        self.variables.clear()
        self.ragged = {a.measures for a in kernel.inputs}                # axes that may have no position at all
        self.pointing: set[str] = set()                                  # the names of what points into an axis

    def var(self, node: Var) -> str:
        if node not in self.serial:
            return super().var(node)
        return self.numbered.get(node) or self.loops[node.axis] + (str(node.depth + 1) if node.depth else "")

    def view(self, node: Load) -> str:
        """A tensor or a table along the dimensions of the kernel: what is read at a number, or at a distance, is cut out first."""
        table, argument = self.tables.get(node.tensor), self.arguments.get(node.tensor)
        each = argument is None or argument.per_sample
        index = node.index[1:] if argument is not None and each else node.index
        axes = table.axes if table else argument.axes if argument else ()
        pads = table.pads if table else (0,) * len(index)
        text, cuts, rest, along = node.tensor, [], [], []
        for k, (i, pad, axis) in enumerate(zip(index, pads, axes, strict=True)):
            var, distance = ir.shift(i)
            if self.growing == (node.tensor, k):
                text = f"{node.tensor}_rows[{self(plus(i, pad))}]"
                continue
            if self.is_number(i) and not (isinstance(i, Const) and axis in self.ragged):
                cuts.append(self(plus(i, pad)))
                continue
            direct = isinstance(var, Var) and (var.axis == axis or (table is None and distance == 0))
            first, behind = distance + pad, str(distance) if distance < 0 else ""
            cuts.append(f"{first or ''}:{behind}" if direct else ":")
            rest.append(var if direct else plus(i, pad))
            along.append(axis if direct or not pad else f"({axis} + {pad})")
        if set(cuts) - {":"}:
            text += f"[..., {', '.join(cuts)}]"
        return self.laid(text, tuple(rest), tuple(along), each)

    def at(self, text: str, index: list[Node], axes: list[str]) -> str:
        """The elements at a position; where there are none at all, one that is 0."""
        self.sizes |= {axis.strip("()").partition(" ")[0] for axis in axes[1:]}
        place = self(index[0], 20 if len(index) > 1 else 0)
        for i, axis in zip(index[1:], axes[1:], strict=True):
            place = f"({place} * {axis} + {self(i, 11)})"
        sure = all(axis.startswith("(") or self.points(i) for i, axis in zip(index, axes, strict=True))
        return f"stable.at({text if sure else f'stable.some({text})'}, {place})"

    def points(self, position: Node) -> bool:
        """Does an element or a parameter say where to read? Then there is something, or it is an error."""
        match position:
            case Op("where", (_, a, Const(0))):
                return self.points(a)
            case ir.Ref(name):
                return name in self.pointing
        return isinstance(position, Load | ir.Param)


def plus(node: Node, more: int) -> Node:
    """A position further along."""
    if isinstance(node, Const):
        return Const(node.numerator + more)
    if isinstance(node, Op) and node.name == "where":
        return Op("where", (node.args[0], *(plus(a, more) for a in node.args[1:])))
    base, distance = ir.shift(node)
    total = distance + more
    return Op("add" if total > 0 else "sub", (base, Const(abs(total)))) if total else base


class TablesText(TorchText):
    """What the template asks of a kernel with tables."""

    printer_type: ClassVar[type[TorchPrinter]] = TablesPrinter
    precision: ClassVar[tuple[str, str]] = ("doubled", "all is computed in double precision")
    p: TablesPrinter

    def moves(self) -> list[tuple[str, str]]:
        serial = {s.var for s in ir.statements(self.kernel.body) if isinstance(s, Loop) and s.serial}
        still = {load.tensor for load in self.read if not ir.free(load) & serial} & {a.name for a in self.kernel.inputs}
        moving = {load.tensor for load in self.read if ir.free(load) & serial}
        return [(name, view) for name, view in super().moves() if name in still - moving]

    def block(self, body: tuple[Statement, ...]) -> list[str]:
        out: list[str] = []
        for s in body:
            match s:
                case Section(text):
                    out += ["", f"# {text[:1].upper() + text[1:]}."]
                case Loop(var, _, inside, True):
                    out += self.rows(var, inside)
                case Loop(_, _, inside):
                    out += self.block(inside)
                case Store(name, index, value) if name in self.p.tables:
                    out.append(self.filled(self.p.tables[name], index, value))
                case Let(name, value) if self.p.points(value):
                    self.p.pointing.add(name)
                    out.append(self.line(s))
                case Let() | Store() | ir.Accumulate():
                    out += [line] if (line := self.line(s)) else []
        return out

    def rows(self, var: Var, body: tuple[Statement, ...]) -> list[str]:
        """The loop over the rows of a table."""
        store = next(s for s in ir.values(body) if isinstance(s, Store))
        table, place = self.p.tables[store.tensor], store.index.index(var)
        name = f"{table.name}_rows"
        self.p.sizes |= {*table.axes, BATCH}
        dim = place - len(table.axes)
        self.p.serial, self.p.growing = {var}, (table.name, place)
        now, inside = self.p.var(var), self.block(body)
        self.p.serial, self.p.growing = set(), None
        return [f"{name} = list({self.framed(table, self.empty(table))}.unbind({dim}))",
                f"for {now} in range({var.axis}):", *(f"    {line}".rstrip() for line in inside),
                f"{table.name} = torch.stack({name}, {dim})"]

    def empty(self, table: Table) -> str:
        """A table before its cells are known."""
        kind = ", dtype=torch.int64" if table.integer else ""
        return f"{self.p.like}.new_zeros(*{BATCH}, {', '.join(table.axes)}{kind})"

    def framed(self, table: Table, cells: str) -> str:
        """Cells, with what lies before them."""
        if not any(table.pads):
            return cells
        assert table.outside is not None
        start = ", ".join(f"{cell}: {self.p(value)}" for cell, value in table.start)
        pads = f"({', '.join(map(str, table.pads))}{',' * (len(table.pads) == 1)})"
        return f"stable.framed({cells}, {pads}, {self.p(table.outside)}" + (f", {{{start}}})" if start else ")")

    def filled(self, table: Table, index: tuple[Node, ...], value: Node) -> str:
        """The cells of a table, or of one row of it."""
        own = [i for i in index if isinstance(i, Var) and i not in self.p.serial]
        slots = self.p.slots
        self.p.sizes |= {BATCH, *(i.axis for i in own)}
        sizes = [i.axis if i in own else "1" for i in slots]
        text = f"{self.p.tensor(value, 100)}.expand({', '.join([f'*{BATCH}', *sizes])})"
        if len(own) < len(slots):
            text += f"[..., {', '.join(':' if i in own else '0' for i in slots)}]"
        if own != (laid := [i for i in slots if i in own]):
            count = len(own)
            text += f".movedim({tuple(laid.index(i) - count for i in own)}, {tuple(k - count for k in range(count))})"
        if self.p.growing is None:
            return f"{table.name} = {self.framed(table, text)}"
        place = self.p.growing[1]
        row = f"{table.name}_rows[{self.p(plus(index[place], table.pads[place]))}]"
        lane = next((pad for k, pad in enumerate(table.pads) if k != place), 0)
        return f"{row} = torch.cat([{row}[..., :{lane}], {text}], -1)" if lane else f"{row} = {text}"

    def rooms(self, needed: set[str]) -> list[str]:
        """How many positions the sample that has most could have."""
        lines = []
        for e in self.kernel.extents:
            if e.axis in needed:
                text = self.p(e.most)
                lines.append(f"{e.axis} = max({text}, 0)" if " - " in text else f"{e.axis} = {text}")
        return lines



"""NumPy for losses that are systems of tables: sample by sample and row by row, each row (or diagonal) in one go."""

from __future__ import annotations

from typing import ClassVar

from .. import ir
from ..ir import Accumulate, Const, Fill, Let, Load, Loop, Node, Op, Section, Statement, Store, Var, Wave, free
from .numpy import NumPyPrinter, NumPyText, loads, tuple_of


class TablesPrinter(NumPyPrinter):
    """Reads arrays and tables at positions; each variable that is no loop of Python's has a dimension of its own."""

    def __init__(self, kernel: ir.Kernel) -> None:
        super().__init__(kernel)
        self.views = {}
        self.loops[ir.BATCH] = "n"

    def load(self, node: Load) -> str:
        if node.tensor not in self.arguments:
            return f"{node.tensor}[{', '.join(self(i) for i in node.index)}]"
        safe = any(isinstance(i, Op) and i.name == "inside" for part in node.index for i in ir.walk(part))
        places = ", ".join(self(i) for i in node.index)
        return f"stable.at({node.tensor}, {places})" if safe else f"{node.tensor}[{places}]"


class TablesText(NumPyText):
    """What the template asks of a kernel with tables."""

    printer_type: ClassVar[type[NumPyPrinter]] = TablesPrinter

    def __init__(self, kernel: ir.Kernel) -> None:
        super().__init__(kernel)
        self.open = {ir.SAMPLE}                      # the variables of Python's own loops, where the text has come to
        every = list(ir.statements(kernel.body))
        along = {s.var for s in every if isinstance(s, Loop) and not s.serial} | {s.vars[0] for s in every if isinstance(s, Wave)}
        self.dimensions = [v for v in self.printer.slots if v in along - {ir.SAMPLE}]

    @property
    def sizes(self) -> list[tuple[str, str]]:
        """Where the length of each axis comes from."""
        found: dict[str, str] = {}
        for a in self.kernel.inputs:
            for place, axis in enumerate(a.shape):
                found.setdefault(axis, f"{a.name}.shape[{place}]")
        parts = [n for s in ir.values(self.kernel.body) for e in (s.value, *(s.index if isinstance(s, Store) else ())) for n in ir.walk(e)]
        parts += [n for e in self.kernel.extents for n in ir.walk(e.size)]
        used = {n.axis for n in parts if isinstance(n, ir.Size)} | {ir.BATCH} | {axis for a in self.kernel.outputs for axis in a.axes}
        used |= {s.var.axis for s in ir.statements(self.kernel.body) if isinstance(s, Loop)}
        used |= {axis for t in self.kernel.tables for axis in t.axes}
        return [(axis, text) for axis, text in found.items() if axis in used]

    @property
    def real(self) -> str | None:
        return None

    @property
    def views(self) -> list[tuple[str, str, str]]:
        return []

    @property
    def indices(self) -> list[tuple[str, str, str]]:
        return []

    @property
    def lines(self) -> list[str]:
        """The lines of the function."""
        every = [n for s in ir.values(self.kernel.body) for n in ir.walk(s.value)]
        out = ["real = np.float64"] if any(isinstance(n, Op) and n.name == "real" for n in every) else []
        for a in self.kernel.outputs:
            shape = tuple_of(list(a.shape)) if a.role == "output" else ""
            out.append(f"{a.name} = np.zeros({shape})" if shape else f"{a.name} = 0.0")
        read = [a.name for a in self.kernel.inputs if not a.integer and a.name in {load.tensor for load in loads(self.kernel)}]
        out += [f"{name} = np.asarray({name}, np.float64)" for name in read]
        (whole,) = self.kernel.body
        assert isinstance(whole, Loop)
        out.append("for n in range(batch):")
        out += [f"    {line}".rstrip() for line in [*self.memory(), *self.block(whole.body)]]
        return out

    def memory(self) -> list[str]:
        """How long this sample's axes are. What lies before the first cell of a table stands behind the last one."""
        out = [f"{e.axis} = int({self.printer(e.size)})" for e in self.kernel.extents]
        for t in self.kernel.tables:
            shape = tuple_of([f"{axis} + {pad}" if pad else axis for axis, pad in zip(t.axes, t.pads, strict=True)])
            kind = ", np.int64" if t.integer else ""
            if t.outside is None or t.outside == Const(0):
                out.append(f"{t.name} = np.zeros({shape}{kind})")
            else:
                out.append(f"{t.name} = np.full({shape}, {self.printer(t.outside)}{kind})")
            out += [f"{t.name}[{', '.join(map(str, cell))}] = {self.printer(value)}" for cell, value in t.start]
        return out

    def block(self, body: tuple[Statement, ...], opened: set[Var] | None = None) -> list[str]:
        """The lines of some statements; `opened` are the variables whose positions have been laid out."""
        out: list[str] = []
        opened = set() if opened is None else opened
        for s in body:
            match s:
                case Section(text):
                    if text.startswith("What lies"):
                        continue
                    out += ["", f"# {text[:1].upper() + text[1:]}."]
                case Fill():
                    continue
                case Wave():
                    out += self.wave(s)
                    opened -= set(s.vars)
                case Loop(var, _, inside, serial, reverse) if serial:
                    steps = f"range({var.axis})"
                    out.append(f"for {self.printer.var(var)} in {f'reversed({steps})' if reverse else steps}:")
                    self.open.add(var)
                    out += [f"    {line}".rstrip() for line in self.block(inside)]
                    self.open.remove(var)
                    opened.discard(var)
                case Loop(var, _, inside):
                    if var not in opened:
                        opened.add(var)
                        out.append(f"{self.printer.var(var)} = {self.along(var)}")
                    out += self.block(inside, opened)
                case _:
                    out.append(self.line(s))
        return out

    def along(self, var: Var) -> str:
        """The positions of a variable, along its own dimension."""
        shape = ", ".join("-1" if v is var else "1" for v in self.dimensions)
        return f"np.arange({var.axis})" + (f".reshape({shape})" if len(self.dimensions) > 1 else "")

    def wave(self, s: Wave) -> list[str]:
        """Diagonal by diagonal."""
        i, j = (self.printer.var(v) for v in s.vars)
        (p, q), (rows, columns) = s.steps, (s.vars[0].axis, s.vars[1].axis)
        steps = f"range({p} * ({rows} - 1) + {q} * ({columns} - 1) + 1 if {rows} and {columns} else 0)".replace("1 * ", "")
        shape = ", ".join("-1" if v is s.vars[0] else "1" for v in self.dimensions)
        out = [f"for step in {f'reversed({steps})' if s.reverse else steps}:",
               f"    {i}, {j} = stable.diagonal(step, {rows}, {columns}, {p}, {q}, ({shape}))"]
        return out + [f"    {line}".rstrip() for line in self.block(s.body)]

    def line(self, s: Statement) -> str:
        """One statement."""
        assert isinstance(s, Let | Accumulate | Store)
        text = self.printer(s.value)
        if isinstance(s, Let):
            return f"{s.name} = {text}"
        if isinstance(s, Accumulate):
            return f"{s.start.name} = stable.{s.start.op}_over({text}, {self.dimensions.index(s.start.over)})"
        index = ", ".join(self.printer(i) for i in s.index)
        if not s.index:
            return f"{s.tensor} += stable.number({text})"
        argument = self.printer.arguments.get(s.tensor)
        if argument is not None and argument.role == "total":
            return f"{s.tensor} += stable.number({text})"
        if s.adds:
            return self.push(s, index, text)
        if not self.varies(s.index):
            return f"{s.tensor}[{index}] = stable.number({text})"
        return f"{s.tensor}[{index}] = {text}"

    def varies(self, index: tuple[Node, ...]) -> bool:
        """Does an index go along a dimension?"""
        return any(v not in self.open for i in index for v in free(i))

    def push(self, s: Store, index: str, text: str) -> str:
        """An addition to cells; where two of them may be one cell, one after the other."""
        if not self.varies(s.index):
            return f"{s.tensor}[{index}] += stable.number({text})"
        alone = {v for i in s.index for v in free(i) if is_shifted(i, v)}
        moving = {v for i in s.index for v in free(i) if v not in self.open}
        if moving <= alone:
            return f"{s.tensor}[{index}] += {text}"
        return f"np.add.at({s.tensor}, ({index}), {text})"


def is_shifted(index: Node, var: Var) -> bool:
    """Is this the variable, or a position at a fixed distance from it?"""
    match index:
        case Var():
            return index is var
        case Op("add" | "sub", (a, Const())):
            return a is var
    return False

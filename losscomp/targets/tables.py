"""How the tables of a kernel lie in memory that a driver lends: what the targets share that loop over cells."""

from __future__ import annotations

from .. import ir
from ..ir import Kernel, Node, Table
from .c import CPrinter


def cell(p: CPrinter, table: Table, index: tuple[Node, ...]) -> str:
    """A cell of a table, whose last axis is dense."""
    strides = [f" * {p.derived[table.name, stride]}" for stride in ir.strides_of(table.axes[:-1])] + [""]
    return f"{table.name}[{' + '.join(f'{p(i, 20 if stride else 10)}{stride}' for i, stride in zip(index, strides, strict=True))}]"


class Layout:
    """The part of a kernel's text that says where the cells of its tables are."""

    kernel: Kernel
    p: CPrinter

    @property
    def cells(self) -> list[str]:
        """How many cells all tables have at most: the terms of a sum in the sizes of the axes."""
        most = {e.axis: self.p(e.most, 11) for e in self.kernel.extents}

        def size(axis: str, pad: int) -> str:
            text = most.get(axis, axis)
            return f"({text.removeprefix('(').removesuffix(')')} + {pad})" if pad else text

        return [" * ".join(map(size, t.axes, t.pads)) for t in self.kernel.tables]

    @property
    def sizes(self) -> list[tuple[int, str]]:
        """The places and names of the axes in whose sizes `cells` is said."""
        used = {n.axis for e in self.kernel.extents for n in ir.walk(e.most) if isinstance(n, ir.Size)}
        used |= {axis for t in self.kernel.tables for axis in t.axes}
        return [(n, axis) for n, axis in enumerate(self.kernel.axes) if axis in used]

    def lengths(self, t: Table) -> str:
        """The line that says how far apart the cells of a table are, and how many there are for this sample."""
        length = [f"({axis} + {pad})" if pad else axis for axis, pad in zip(t.axes, t.pads, strict=True)]
        bare = lambda parts: parts[0].strip("()") if len(parts) == 1 else " * ".join(parts)
        strides = [f"{stride} = {bare(length[k + 1:])}" for k, stride in enumerate(self.strides(t))]
        return f"const int64_t {', '.join([*strides, self.p.derived[t.name, 'cells'] + ' = ' + bare(length)])};"

    def strides(self, t: Table) -> list[str]:
        """The names of the strides along all axes of a table but the last."""
        return [self.p.derived[t.name, stride] for stride in ir.strides_of(t.axes[:-1])]

    def ahead(self, t: Table, sign: str) -> str:
        """How many cells lie before the first one of a table."""
        terms = [stride if pad == 1 else f"{pad} * {stride}" for stride, pad in zip(self.strides(t), t.pads, strict=False) if pad]
        return "".join(f" {sign} {term}" for term in [*terms, *([str(t.pads[-1])] if t.pads[-1] else [])])

    def starts(self, t: Table) -> list[str]:
        """The statements that store what is in the first cells."""
        out = []
        for first, value in t.start:
            place = [(c, stride) for c, stride in zip(first, self.strides(t), strict=False) if c]
            text = " + ".join([*(stride if c == 1 else f"{c} * {stride}" for c, stride in place), *([str(first[-1])] if first[-1] else [])])
            out.append(f"{t.name}[{text or 0}] = {self.p(value)};".replace("-1 * ", "-").replace("+ -", "- "))
        return out

"""Formulas as people read them: plain text for docstrings and headers."""

from __future__ import annotations

from typing import Any

import sympy as sp
from sympy.printing.str import StrPrinter

from . import nodes
from .check import Checked


class TextPrinter(StrPrinter):
    """Prints our nodes as mathematics in one line; `names` are sub-expressions that have a name of their own."""

    printmethod = ""        # nodes spell themselves for SymPy; here we spell them

    def __init__(self, names: dict[sp.Expr, str]) -> None:
        super().__init__()
        self.names = names
        self.letters = {i.axis: name for i, name in names.items() if isinstance(i, nodes.Index)}      # the last one of each axis
        self.top: Any = None

    def _print(self, expr: Any, **kwargs: Any) -> str:
        if expr in self.names and expr is not self.top:
            return self.names[expr]
        return str(super()._print(expr, **kwargs))

    def parenthesize(self, item: Any, level: int, strict: bool = False) -> str:
        """A part of an operation; one that has a name is a word."""
        name = self.names.get(item) if item is not self.top else None
        return name or str(super().parenthesize(item, level, strict))

    def _print_Where(self, e: Any) -> str:
        return f"({self._print(e.args[1])} if {self._print(e.args[0])} else {self._print(e.args[2])})"

    def _print_Abs(self, e: Any) -> str:
        return f"|{self._print(e.args[0])}|"

    def _print_hinge(self, e: Any) -> str:
        return f"max({self._print(e.args[0])}, 0)"

    def _print_larger(self, e: Any) -> str:
        return f"max({self._print(e.args[0])}, {self._print(e.args[1])})"

    def _print_smaller(self, e: Any) -> str:
        return f"min({self._print(e.args[0])}, {self._print(e.args[1])})"

    def _print_root(self, e: Any) -> str:
        return f"sqrt({self._print(e.args[0])})"

    def _print_abs_power(self, e: Any) -> str:
        return f"|{self._print(e.args[0])}|**{self.parenthesize(e.args[1], 60)}"

    def _print_LogAddExp(self, e: Any) -> str:
        return f"logaddexp({', '.join(map(self._print, e.args))})"

    def _print_floor(self, e: Any) -> str:
        above, below = e.args[0].as_numer_denom()
        return f"{self.parenthesize(above, 60)} // {below}"

    def _print_Reduce(self, e: Any) -> str:
        return f"{e.op}_{self._print(e.bound)}({self._print(e.body)})"

    def _print_Leaf(self, e: Any) -> str:
        return str(e.name)

    def _print_Index(self, e: Any) -> str:
        label = e.record.label
        depth = int(label[1:]) if label[1:].isdigit() and label.startswith("#") else 1
        return self.letters.get(e.axis, e.axis.name[0]) + ("" if depth == 1 else str(depth))

    def _print_Load(self, e: Any) -> str:
        return f"{e.tensor.name}[{', '.join(map(self._print, e.index))}]" if e.index else e.tensor.name

    def _print_Named(self, e: Any) -> str:
        return self._print(e.body) if e is self.top else e.label

    def _print_StraightThrough(self, e: Any) -> str:
        return self._print(e.body)

    _print_Stated = _print_StopGradient = _print_StraightThrough

    def _print_Chosen(self, e: Any) -> str:
        return e.param.name if e.value is sp.true else f"{e.param.name} == {e.value}"

    def _print_Equality(self, e: Any) -> str:
        return f"{self._print(e.args[0])} == {self._print(e.args[1])}"

    def _print_Delta(self, e: Any) -> str:
        return f"({self._print(e.args[0])} == {self._print(e.args[1])})"


def formula_lines(form: Checked) -> list[str]:
    """The definition of a loss: its named parts, and the loss."""
    value = form.loss.value
    names = {e: n for e, n in form.loss.names.items() if e != value}
    named = {e: e.label for e in value.atoms(nodes.Named)}
    printer = TextPrinter({**names, **named})
    lines: list[str] = []
    done: set[str] = set()

    def explain(expr: sp.Expr) -> None:
        for part in dict.fromkeys(nodes.postorder(expr)):
            name = printer.names.get(part)
            if name is not None and part != expr and name not in done and not isinstance(part, nodes.Index):
                done.add(name)
                lines.append(f"{name} = {line(printer, part)}")

    for table in form.loss.tables:
        explain(table.expr)
        lines.append(f"{line(printer, table[table.indices])} = {line(printer, table.expr)}")
        lines += outside(table, printer)
    explain(value)
    lines.append(f"loss = {line(printer, value)}")
    if not form.loss.mean_over.is_number:
        lines.append(f"mean = sum(loss) / sum({line(printer, form.loss.mean_over)})")
    return lines


def outside(table: Any, printer: TextPrinter) -> list[str]:
    """What lies before the first cell of a table that is read there."""
    if table.tensor not in {load.tensor for load in table.expr.atoms(nodes.Load)}:
        return []
    cells = [f"{table.tensor.name}[{', '.join(map(str, cell))}] = {printer.doprint(x)}" for cell, x in table.start.items()]
    return [f"    {', '.join([*cells, f'{printer.doprint(table.outside)} before the first cell'])}"]


def line(printer: TextPrinter, expr: sp.Expr) -> str:
    """One expression, its own name not used."""
    printer.top = expr
    text = printer.doprint(expr)
    return text[1:-1] if isinstance(expr, nodes.Where) and text.startswith("(") else text


def text(expr: sp.Expr, names: dict[sp.Expr, str] | None = None) -> str:
    """One expression in one line."""
    return line(TextPrinter(names or {}), expr)

"""Formulas in LaTeX, as a notebook shows them."""

from __future__ import annotations

from typing import Any

import sympy as sp
from sympy.printing.latex import LatexPrinter as SympyPrinter
from sympy.printing.latex import greek_letters_set

from . import nodes
from .check import Checked

WORDS = {"sum": r"\sum", "max": r"\max", "logsumexp": r"\operatorname{logsumexp}"}
SELECTION = 5                                    # how strongly braces without an end bind


class LatexPrinter(SympyPrinter):
    """Prints our nodes as mathematics; `names` are sub-expressions that have a name of their own."""

    printmethod = ""                             # nodes spell themselves for SymPy; here we spell them

    def __init__(self, names: dict[sp.Expr, str]) -> None:
        super().__init__({"mul_symbol": r" \, "})
        self.names = {e: n for e, n in names.items() if not isinstance(e, nodes.Index)}
        self.letters = {i.axis: name for i, name in names.items() if isinstance(i, nodes.Index)}
        self.top: Any = None

    def line(self, expr: sp.Basic) -> str:
        """One expression, its own name not used."""
        self.top = expr
        return str(self._print(expr))

    def word(self, name: str) -> str:
        """An identifier: a Greek letter where that is its name, upright where it has several letters."""
        if len(name) == 1:
            return name
        if name in greek_letters_set:
            return rf"\{name}"
        plain = name.replace("_", r"\_")
        return rf"\mathrm{{{plain}}}"

    def _print(self, expr: Any, **kwargs: Any) -> str:
        if expr is not self.top and expr in self.names:
            return self.word(self.names[expr])
        return str(super()._print(expr, **kwargs))

    def _needs_brackets(self, expr: Any) -> bool:
        return False if expr in self.names else isinstance(expr, nodes.Where) or bool(super()._needs_brackets(expr))

    def _needs_mul_brackets(self, expr: Any, first: bool = False, last: bool = False) -> bool:
        if expr in self.names:
            return False
        summed = isinstance(expr, nodes.Reduce) and not last
        return summed or isinstance(expr, nodes.Where) or bool(super()._needs_mul_brackets(expr, first=first, last=last))

    def _needs_add_brackets(self, expr: Any) -> bool:
        return expr not in self.names and (isinstance(expr, nodes.Where) or bool(super()._needs_add_brackets(expr)))

    def parenthesize(self, item: Any, level: int, is_neg: bool = False, strict: bool = False) -> str:
        if item in self.names or isinstance(item, nodes.Load | nodes.Leaf | nodes.Named):
            return self._print(item)
        if isinstance(item, nodes.Where | nodes.Reduce):
            return rf"\left({self._print(item)}\right)"
        return str(super().parenthesize(item, level, is_neg, strict))

    def selection(self, e: nodes.Where) -> str:
        """Braces with an arm on each line; a selection in the last arm goes on."""
        arms, rest = [], e
        while isinstance(rest, nodes.Where) and (rest is e or rest not in self.names):
            arms.append(rf"{self._print(rest.args[1])} & \text{{if }} {self._print(rest.args[0])}")
            rest = rest.args[2]
        return r"\begin{cases} " + r" \\ ".join([*arms, rf"{self._print(rest)} & \text{{otherwise}}"]) + r" \end{cases}"

    def _print_Where(self, e: Any) -> str:
        return self.selection(e)

    def _print_Infinity(self, e: Any) -> str:
        return r"\infty"

    def _print_NegativeInfinity(self, e: Any) -> str:
        return r"-\infty"

    def _print_Pi(self, e: Any) -> str:
        return r"\pi"

    def _print_Abs(self, e: Any, exp: Any = None) -> str:
        return self.raised(rf"\left|{self._print(e.args[0])}\right|", exp)

    def _print_root(self, e: Any, exp: Any = None) -> str:
        return self.raised(rf"\sqrt{{{self._print(e.args[0])}}}", exp)

    def _print_hinge(self, e: Any, exp: Any = None) -> str:
        return self.raised(rf"\max\left({self._print(e.args[0])}, 0\right)", exp)

    def _print_larger(self, e: Any, exp: Any = None) -> str:
        return self.raised(rf"\max\left({self._print(e.args[0])}, {self._print(e.args[1])}\right)", exp)

    def _print_smaller(self, e: Any, exp: Any = None) -> str:
        return self.raised(rf"\min\left({self._print(e.args[0])}, {self._print(e.args[1])}\right)", exp)

    def _print_abs_power(self, e: Any, exp: Any = None) -> str:
        return self.raised(rf"\left|{self._print(e.args[0])}\right|^{{{self._print(e.args[1])}}}", exp)

    def raised(self, text: str, exp: Any) -> str:
        """A function to a power, which SymPy's printer hands to it."""
        return text if exp is None else rf"{{{text}}}^{{{exp}}}"

    def _print_LogAddExp(self, e: Any) -> str:
        return rf"\operatorname{{logaddexp}}\left({', '.join(map(self._print, e.args))}\right)"

    def _print_Reduce(self, e: Any) -> str:
        body = self._print(e.body)
        body = rf"\left({body}\right)" if e.op != "sum" or (isinstance(e.body, sp.Add) and e.body not in self.names) else body
        return rf"{WORDS[e.op]}_{{{self._print(e.bound)}}} {body}"

    def _print_Leaf(self, e: Any) -> str:
        return self.word(str(e.name))

    def _print_Index(self, e: Any) -> str:
        label = e.record.label
        depth = int(label[1:]) if label[1:].isdigit() and label.startswith("#") else 1
        return str(self.letters.get(e.axis, e.axis.name[0])) + "'" * (depth - 1)

    def _print_Load(self, e: Any) -> str:
        name = self.word(e.tensor.name)
        return rf"{{{name}}}_{{{', '.join(map(self._print, e.index))}}}" if e.index else name

    def _print_Named(self, e: Any) -> str:
        return self._print(e.body) if e is self.top else self.word(e.label)

    def _print_StraightThrough(self, e: Any) -> str:
        return self._print(e.body)

    _print_Stated = _print_StopGradient = _print_Rounded = _print_StraightThrough

    def _print_Chosen(self, e: Any) -> str:
        name = self.word(e.param.name)
        return name if e.value is sp.true else f"{name} = {self._print(e.value)}"

    def _print_Delta(self, e: Any) -> str:
        return rf"\left[{self._print(e.args[0])} = {self._print(e.args[1])}\right]"


def latex_of(form: Checked) -> str:
    """The definition of a loss: its named parts, its tables, and the loss, one below the other."""
    value = form.loss.value
    named = {e: e.label for e in value.atoms(nodes.Named)}
    printer = LatexPrinter({**{e: n for e, n in form.loss.names.items() if e != value}, **named})
    lines: list[tuple[str, str]] = []
    done: set[str] = set()

    def explain(expr: sp.Expr) -> None:
        for part in dict.fromkeys(nodes.postorder(expr)):
            name = printer.names.get(part)
            if name is not None and part != expr and name not in done:
                done.add(name)
                lines.append((printer.word(name), printer.line(part)))

    for table in form.loss.tables:
        explain(table.expr)
        lines.append((printer.line(table[table.indices]), printer.line(table.expr)))
    explain(value)
    lines.append((printer.word("loss"), printer.line(value)))
    if not form.loss.mean_over.is_number:
        below = printer.line(form.loss.mean_over)
        lines.append((printer.word("mean"), rf"\frac{{\sum \mathrm{{loss}}}}{{\sum {below}}}"))
    return r"\begin{aligned} " + r" \\ ".join(f"{left} &= {right}" for left, right in lines) + r" \end{aligned}"

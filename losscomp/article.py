"""The mathematics of a loss, as a page shows it: its formula, its derivatives, and each rewrite with its reason."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sympy as sp

from . import atoms, mathml, nodes
from .check import Checked, check, modern, specialise
from .emit import forms_of
from .language import Definition, Loss
from .mathml import MathPrinter, Parts, fenced, fraction, letters_of, math, operator, pieces, row, size, under, word
from .oracle import select
from .pipeline import Compiled, Formula, compile_form, known_names, plain
from .recurrence import Program
from .rewrite import Step, rewrite
from .rules import SMOOTHING

LOSS = "<mi>ℓ</mi>"
LARGE = 280                                      # characters from which a formula is folded away



@dataclass(frozen=True)
class Equation:
    """A formula in pieces, between which the line may break; `large` ones are folded away at first, but for their left side."""

    parts: list[str]
    about: str = ""
    large: bool = False
    left: str = ""


@dataclass
class Rewrite:
    """A rule that fired: what it removes, in which results, and one example of it."""

    rule: str
    why: str
    places: list[str]
    before: str
    after: str
    large: bool
    count: int = 1


@dataclass
class Article:
    """One form of a loss. `variant` says which one the derivatives are of, where there are several."""

    title: str
    variant: str
    formula: list[Equation] = field(default_factory=list)
    gradient: list[Equation] = field(default_factory=list)
    second: list[Equation] = field(default_factory=list)
    rewrites: list[Rewrite] = field(default_factory=list)
    words: list[Equation] = field(default_factory=list)
    asked: tuple[str, ...] = ()


def articles(definition: Definition) -> list[tuple[Article, Compiled]]:
    """An article for each form of a loss, with the variant of the default arguments that it speaks of."""
    forms = forms_of(definition)
    found = []
    for loss in forms:
        group = check(loss)
        chosen = compile_form(select(group, {}))
        integers = [t.name for t in chosen.form.inputs if t.record.integer and t.record.measures is None]
        title = "" if len(forms) == 1 else f"with {' and '.join(integers)} as an index" if integers else "with real numbers throughout"
        found.append((article(chosen, title, settings_of(chosen.form)), chosen))
    return found


def settings_of(form: Checked) -> str:
    """The settings of a variant in words."""
    special = {p.name: p.record.special for p in form.params}
    other = lambda name: f"{name} other than {', '.join(map(str, special[name]))}"
    return ", ".join(other(name) if value is None else f"{name} = {value}" for name, value in form.settings)


def article(compiled: Compiled, title: str = "", variant: str = "") -> Article:
    """All formulas of one variant."""
    made = Article(title, variant, asked=tuple(compiled.form.loss.rewrites))
    defined: set[str] = set()
    parts = Parts(lambda body: looks(compiled, body))
    made.formula = list(definition_equations(compiled.form.loss, defined, parts))
    shown = Shown(compiled, parts, names_of(compiled, defined), len(compiled.form.wrt))
    by_name = {f.name: f for f in compiled.formulas}
    moving = compiled.form.wrt
    made.gradient = list(derivative(shown, by_name["value_and_grad"], "grad"))
    if by_name["hvp"].program is None:
        if "hessian_diag" in by_name:
            made.second = list(derivative(shown, by_name["hessian_diag"], "hessian"))
        if any(t.record.axes for t in moving) or len(moving) > 1 or not made.second:
            made.second += derivative(shown, by_name["hvp"], "hvp")
    else:
        made.second = list(derivative(shown, by_name["hvp"], "hvp"))
    made.rewrites = rewrites(shown)
    read = [o.expr for f in compiled.formulas for o in f.outputs] + [s.after for _, s in steps(compiled)]
    made.words = list(vocabulary(read))
    return made


# The definition

def definition_equations(loss: Loss, defined: set[str], parts: Parts) -> Iterator[Equation]:
    """The named parts of a definition, the loss, and the denominator of the mean; the names go to `defined`."""
    value = loss.value
    given = {i: n for i, n in loss.names.items() if isinstance(i, nodes.Index)}
    known = known_names(loss.names, lambda e: e)
    own = lambda e, n: isinstance(e, nodes.Named) and e.label == n
    names = given | {e: n for e, n in known.items() if isinstance(e, sp.Expr) and e != value and not own(e, n)}
    printer = MathPrinter(names, letters_of(loss.exprs, loss.names), parts=parts)
    done: set[str] = set()
    stated: set[sp.Basic] = set()

    def explain(expr: sp.Expr) -> Iterator[Equation]:
        for part in dict.fromkeys(nodes.postorder(expr)):
            named = isinstance(part, nodes.Named)
            name = printer.name_of(part) if named else printer.names.get(part)
            if name is None or part == expr or name in done or isinstance(part, nodes.Index):
                continue
            done.add(name)
            defined.add(name)
            left = printer._print(part)
            yield equation(printer, left, part.body if named else part)
            yield from conventions(printer, part.body if named else part, stated)

    for table in loss.tables:
        if table.expr is not None:
            yield from explain(table.expr)
            yield equation(printer, under(word(table.tensor.name), mathml.listed(map(printer._print, table.indices))), table.expr)
            yield from outside(table, printer)
    yield from explain(value)
    yield equation(printer, LOSS, value)
    yield from conventions(printer, value, stated)
    parts.unexplained.clear()
    if not loss.mean_over.is_number:
        yield from explain(loss.mean_over)
        below = row("<mo>∑</mo>", printer.inside(loss.mean_over, mathml.PRODUCT))
        yield Equation([math(word("mean"), operator("="), fraction(row("<mo>∑</mo>", LOSS), below))])


def conventions(printer: MathPrinter, expr: sp.Basic, done: set[sp.Basic]) -> Iterator[Equation]:
    """What a definition says of derivatives: parts that are differentiated as others, or whose slopes are stated."""
    says = lambda left, words, right: Equation([math(left), math(f"<mtext>{words}</mtext>"), math(right)], "in derivatives")
    for node in nodes.leaves(expr, nodes.StraightThrough):
        if node not in done:
            done.add(node)
            yield says(printer.line(node.body), "counts as", printer.line(node.through))
    for node in nodes.leaves(expr, nodes.Stated):
        if node not in done:
            done.add(node)
            for load, slope in node.slopes:
                left = fraction(row("<mo>∂</mo>", fenced(printer.line(node.body))), row("<mo>∂</mo>", printer.line(load)))
                yield says(left, "counts as", printer.line(slope))
    for node in nodes.leaves(expr, nodes.StopGradient):
        if node not in done and not isinstance(node, nodes.Rounded):
            done.add(node)
            yield Equation([math(printer.line(node.body)), math("<mtext>counts as a constant</mtext>")], "in derivatives")


def outside(table: Any, printer: MathPrinter) -> Iterator[Equation]:
    """What lies before the first cell of a table that is read there."""
    if table.tensor in {load.tensor for load in table.expr.atoms(nodes.Load)}:
        name = word(table.tensor.name)
        cells = [math(under(name, mathml.listed(printer.line(sp.Integer(k)) for k in cell)), operator("="), printer.line(x), operator(","))
                 for cell, x in table.start.items()]
        yield Equation([*cells, math(name, operator("="), printer.line(table.outside))], "before the first cell")


def equation(printer: MathPrinter, left: str, expr: sp.Basic, about: str = "", sign: str = "=") -> Equation:
    return made_of(pieces(printer, left, expr, sign), about, math(left))


def made_of(parts: list[str], about: str = "", left: str = "") -> Equation:
    """An equation, which is large if much text is in it."""
    return Equation(parts, about, len(re.sub(r"<[^>]*>|&[^;]*;", "", "".join(parts))) > LARGE, left)


# Derivatives

def settled(expr: Any, form: Checked) -> Any:
    """A result as a paper has it: of the loss itself, for a sample that is not left out."""
    rule: dict[Any, Any] = {}
    for load in expr.atoms(nodes.Load):
        name = load.tensor.name
        if name == "scale":
            rule[load] = sp.S.One
        elif name in ("scale_weight", "scale_rate", "scale_weight_rate"):
            rule[load] = sp.S.Zero
    return without_masks(nodes.substitute(plain(expr), rule), form)


def without_masks(expr: Any, form: Checked) -> Any:
    """The same where no label says that the sample is to be left out."""
    ignore = {t.record.ignore for t in form.inputs if t.record.ignore}
    masks = {c: sp.false for c in expr.atoms(sp.Equality) if any(isinstance(a, nodes.Param) and a.name in ignore for a in c.args)}
    return nodes.substitute(expr, masks)


def names_of(compiled: Compiled, defined: set[str]) -> dict[Any, str]:
    """The names of sub-expressions that the formula has defined, in what the stages made of those."""
    form = compiled.smooth
    found = {without_masks(e, form) if isinstance(e, sp.Basic) else e: n for e, n in form.names.items()}
    given = {i: n for i, n in compiled.form.loss.names.items() if isinstance(i, nodes.Index)}
    return {e: n for e, n in found.items() if n in defined and not e.is_Atom and not isinstance(e, nodes.Named)} | given


@dataclass(frozen=True)
class Shown:
    """One variant, with the names that its formulas are printed in; `moving` is the number of inputs that have a gradient."""

    compiled: Compiled
    parts: Parts
    names: Mapping[Any, str]
    moving: int

    def printer(self, exprs: sp.Basic, besides: sp.Basic | None = None, learning: bool = True) -> MathPrinter:
        """What prints some formulas; `besides` is printed without its own name."""
        names = {e: n for e, n in self.names.items() if e != besides}
        return MathPrinter(names, letters_of([exprs], names), self.moving, self.parts, learning)

    def explained(self) -> Iterator[Equation]:
        """What the parts are that the formulas before this have brought in."""
        while self.parts.unexplained:
            part = self.parts.unexplained.pop(0)
            printer = self.printer(part, part.body)
            yield equation(printer, printer._print(part), part.body, "where")


def looks(compiled: Compiled, body: sp.Expr) -> Iterator[sp.Expr]:
    """A part of a definition: as it is written, as the variant has it, and in smooth atoms."""
    form = compiled.form
    settled_body = without_masks(specialise(modern(body), form.settings, form.params), form)
    yield from (body, settled_body, plain(rewrite(settled_body, SMOOTHING, form.loss.rewrites)[0]))


def derivative(shown: Shown, formula: Formula, kind: str) -> Iterator[Equation]:
    """The results of a kind: a formula each, or the sweeps that compute them."""
    if formula.program is not None:
        yield from sweeps(shown, formula.program)
        return
    for output in formula.outputs:
        if output.argument.name.startswith(f"{kind}_"):
            expr = settled(output.expr, shown.compiled.form)
            printer = shown.printer(sp.Tuple(expr, *output.index), expr)
            left = HEADS[kind](word(output.argument.of), mathml.listed(map(printer._print, output.index)), shown.moving)
            yield equation(printer, left, expr)
            yield from shown.explained()


def at(name: str, index: str) -> str:
    return under(name, index) if index else name


def first_order(name: str, index: str, count: int) -> str:
    return fraction(row("<mo>∂</mo>", LOSS), row("<mo>∂</mo>", at(name, index)))


def second_order(name: str, index: str, count: int) -> str:
    square = lambda x: f"<msup>{row(x)}<mn>2</mn></msup>"
    return fraction(row(square("<mo>∂</mo>"), LOSS), row("<mo>∂</mo>", square(at(name, index))))


def product(name: str, index: str, count: int) -> str:
    return at(fenced(row("<mi>H</mi><mi>v</mi>")), mathml.listed(([name] if count > 1 else []) + ([index] if index else [])))


HEADS: dict[str, Callable[[str, str, int], str]] = {"grad": first_order, "hessian": second_order, "hvp": product}


def sweeps(shown: Shown, program: Program) -> Iterator[Equation]:
    """The sweeps of a program: what is stored in a cell or pushed to others, in order."""
    for sweep in program.sweeps:
        indices = [*sweep.indices, *(i for a in sweep.actions for i in a.binders)]
        exprs = [e for a in sweep.actions for e in (a.expr, *a.index)]
        printer = shown.printer(sp.Tuple(*exprs, *indices))
        order = "backwards over" if sweep.reverse else "over"
        axes = ", ".join(i.axis.name for i in sweep.indices)
        for action in sweep.actions:
            if action.target.name.startswith("total_"):
                continue
            expr = settled(action.expr, shown.compiled.form)
            if expr == 0:
                continue
            left = cell_name(action.target.name, mathml.listed(map(printer.line, action.index)), shown.moving)
            over = f"{order} {axes}" if axes else "once"
            if action.binders:
                over += f", for each {', '.join(i.axis.name for i in action.binders)}"
            yield equation(printer, left, expr, over, "+=" if action.adds else "=")
            yield from shown.explained()


def cell_name(name: str, index: str, moving: int) -> str:
    """What a cell of a table of a program is called in formulas."""
    if name == "loss":
        return LOSS
    for prefix, head in (("grad_", first_order), ("hvp_", product)):
        if name.startswith(prefix):
            return head(word(name.removeprefix(prefix)), index, moving)
    return at(mathml.table_word(name), index)


# Rewrites

def steps(compiled: Compiled) -> list[tuple[str, Step]]:
    """Every rewrite of the usual results, with the result that it was made in."""
    found = [("the value", step) for step in compiled.smoothing]
    for (kernel, argument), taken in compiled.stabilising.items():
        if kernel in ("value_and_grad", "hvp") and not argument.startswith("total_"):
            found += [(place(kernel, argument), step) for step in taken]
    return found


def place(kernel: str, argument: str) -> str:
    """A result in words."""
    if argument == "loss":
        return "the value"
    kind, _, name = argument.partition("_")
    words = {"grad": f"the gradient by {name}", "hvp": f"the Hessian-vector product by {name}"}
    return words.get(kind, f"{argument} of the {'gradient' if kernel == 'value_and_grad' else 'Hessian-vector product'}")


def rewrites(shown: Shown) -> list[Rewrite]:
    """The rules that fired, in order, each with its smallest example."""
    found: dict[str, Rewrite] = {}
    smallest: dict[str, int] = {}
    for where, step in steps(shown.compiled):
        known = found.get(step.rule)
        if known is not None:
            known.count += 1
            known.places += [where] if where not in known.places else []
        before, after = (without_masks(plain(e), shown.compiled.form) for e in (step.before, step.after))
        weight = size(before) + size(after)
        if known is None or weight < smallest[step.rule]:
            smallest[step.rule] = weight
            printer = shown.printer(sp.Tuple(before, after), learning=False)
            first, second = (math(printer.line(e)) for e in (before, after))
            large = made_of([first]).large or made_of([second]).large
            made = Rewrite(step.rule, step.why, known.places if known else [where], first, second, large, known.count if known else 1)
            found[step.rule] = made
    return list(found.values())


def vocabulary(exprs: Sequence[sp.Basic]) -> Iterator[Equation]:
    """What the names of functions in formulas mean."""
    letters = sp.symbols("x y z", real=True)
    used = {type(node).__name__ for expr in exprs for node in expr.atoms(sp.Function) if atoms.is_atom(node)}
    printer = MathPrinter({}, {})
    for name in SPOKEN:
        if name in used:
            count = len(atoms.ATOMS[name].slopes)
            arguments = letters[:count]
            kind: Any = atoms.FUNCTIONS[name]
            yield Equation(pieces(printer, printer.line(kind(*arguments)), sp.sympify(atoms.ATOMS[name].meaning(*arguments))))


# The functions that a reader may not know by their names.
SPOKEN = sorted(atoms.SMOOTH - {"xlogy", "hypotenuse"})

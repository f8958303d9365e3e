"""Formulas as MathML, set as a paper sets them. A browser shows it without any network, font or script."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from html import escape
from typing import Any

import sympy as sp
from sympy.printing.precedence import PRECEDENCE, precedence
from sympy.printing.printer import Printer

from . import atoms, nodes
from .errors import LosscompError

GREEK = dict(zip(
    "alpha beta gamma delta epsilon eps zeta eta theta kappa lambda mu nu xi rho sigma tau phi chi psi omega".split(),
    "αβγδεεζηθκλμνξρστφχψω", strict=True))
LETTERS = "jklmnpqr"                             # for positions that the author gave no letter to
SIGNS = {sp.StrictLessThan: "&lt;", sp.LessThan: "≤", sp.StrictGreaterThan: "&gt;", sp.GreaterThan: "≥",
         sp.Equality: "=", sp.Unequality: "≠"}
WORDS = {"Sign": "sgn", "larger": "max", "smaller": "min", "sigmoid": "σ"}
ALONE = PRECEDENCE["Atom"]
SUM, PRODUCT, POWER = PRECEDENCE["Add"], PRECEDENCE["Mul"], PRECEDENCE["Pow"]
INFIX = ' form="infix"'
LEADING = ' form="infix" lspace="0" rspace="0.25em"'               # at the beginning of a piece, which has room before it
APPLY = '<mo>&#x2061;</mo><mspace width="0.17em"/>'            # a function and an argument without parentheses
SIGMA = '<mo movablelimits="false">∑</mo>'
LONG = 10**7                                     # numbers from which digits are left out
LOOSE = 5                                        # a selection: braces without an end
DIRECTION = "direction_"


def row(*parts: str) -> str:
    return f"<mrow>{''.join(parts)}</mrow>"


def operator(sign: str, attributes: str = "") -> str:
    return f"<mo{attributes}>{sign}</mo>"


def word(name: str) -> str:
    """An identifier: a Greek letter where that is its name."""
    bare = name.rstrip("′")
    return f"<mi>{GREEK.get(bare, escape(bare))}{name[len(bare):]}</mi>"


def table_word(name: str) -> str:
    """The name of a table of a program: a bar over an adjoint, a dot over a rate of change, what is kept of a table above."""
    for ending, accent in (("_rate", "˙"), ("_adjoint", "¯")):
        if name.endswith(ending):
            return f'<mover accent="true">{table_word(name.removesuffix(ending))}<mo>{accent}</mo></mover>'
    first, _, rest = name.partition("_")
    return f"<msup>{word(first)}{word(rest)}</msup>" if first in GREEK and rest else word(name)


def fenced(inside: str, left: str = "(", right: str = ")") -> str:
    return row(operator(left, ' fence="true"'), inside, operator(right, ' fence="true"'))


def listed(parts: Iterable[str]) -> str:
    """Parts with commas between them."""
    return operator(",").join(parts)


def fraction(above: str, below: str) -> str:
    return f"<mfrac>{row(above)}{row(below)}</mfrac>"


def under(base: str, index: str) -> str:
    if raised := re.fullmatch(r"<msup>(<mi>[^<]*</mi>)(<mi>[^<]*</mi>)</msup>", base):
        return f"<msubsup>{raised[1]}{row(index)}{raised[2]}</msubsup>"
    return f"<msub>{row(base)}{row(index)}</msub>"


def letters_of(exprs: Iterable[sp.Basic], names: Mapping[Any, str]) -> dict[nodes.Index, str]:
    """A letter for each index: the author's, or the axis's first; others where an axis has several indices in the formulas."""
    found: dict[nodes.Index, None] = {}
    for expr in exprs:
        found |= dict.fromkeys(i for i in nodes.postorder(expr) if isinstance(i, nodes.Index))
    given = {i: name for i, name in names.items() if isinstance(i, nodes.Index)}
    letters = {i: given[i] for i in found if i in given}
    usual = {i.axis: name for i, name in reversed(given.items())}
    for i in sorted(found, key=lambda i: (i.record.label.startswith("#"), i.record.label, str(i))):
        taken = {name for j, name in letters.items() if j != i} | {name for j, name in given.items() if j.axis != i.axis}
        if i not in letters:
            wanted = usual.get(i.axis, i.axis.name[0])
            letters[i] = wanted if wanted not in taken else next((c for c in LETTERS if c not in taken), wanted + "′")
    return letters


def positions(body: sp.Expr) -> list[sp.Expr]:
    """Where a part is taken: its free indices, and the labels that stand in the place of such."""
    labels = {i for load in body.atoms(nodes.Load) for i in load.index if isinstance(i, nodes.Load) and not i.index}
    return [*sorted(nodes.free_indices(body), key=lambda i: (i.axis.name, i.record.label)), *sorted(labels, key=str)]


def anywhere(body: sp.Expr) -> sp.Expr:
    """A part, wherever it is taken: equal for the same part at other positions."""
    rule = {}
    for k, i in enumerate(positions(body)):
        axis = i.axis if isinstance(i, nodes.Index) else i.tensor.record.into
        rule[i] = i if axis is None else nodes.Index(nodes.IndexRecord(axis, f"any{k}"))
    return nodes.substitute(body, rule)


class Parts:
    """The names of named parts, each of which means one thing: primes tell apart what has one label.

    Args:
        looks: what a part looks like where it stands in other formulas, such as those of later stages.
    """

    def __init__(self, looks: Callable[[sp.Expr], Iterable[sp.Expr]]) -> None:
        self.looks = looks
        self.known: dict[sp.Expr, str] = {}
        self.taken: set[str] = set()
        self.unexplained: list[nodes.Named] = []

    def name(self, part: nodes.Named, learning: bool) -> str | None:
        """The name of a part; one that is new is learned, and has to be explained."""
        name = self.known.get(anywhere(part.body))
        if name is None and learning:
            name = part.label
            while name in self.taken:
                name += "′"
            self.taken.add(name)
            for look in self.looks(part.body):
                self.known.setdefault(anywhere(look), name)
            self.unexplained.append(part)
        return name


class MathPrinter(Printer):
    """Prints our formulas; `names` are sub-expressions that have a name of their own."""

    printmethod = ""

    def __init__(self, names: Mapping[Any, str], letters: Mapping[nodes.Index, str], moving: int = 1, parts: Parts | None = None,
                 learning: bool = True) -> None:
        super().__init__()
        self.parts, self.learning = parts, learning
        self.names = {e: n for e, n in names.items() if not isinstance(e, nodes.Index)}
        self.letters, self.moving = letters, moving
        self.top: Any = None

    def line(self, expr: sp.Basic) -> str:
        """One expression, its own name not used."""
        self.top = expr
        return str(self._print(expr))

    def _print(self, expr: Any, **kwargs: Any) -> str:
        if expr is not self.top and not expr.is_Atom and expr in self.names:
            return self.labelled(self.names[expr], expr)
        return str(super()._print(expr, **kwargs))

    def emptyPrinter(self, expr: Any) -> str:
        raise LosscompError(f"{type(expr).__name__} has no form in MathML: {expr}", repair="Give it one in losscomp/mathml.py.")

    def binding(self, expr: Any) -> int:
        """How strongly the outermost operation of an expression binds."""
        if expr is not self.top and expr in self.names:
            return ALONE
        match expr:
            case nodes.Where():
                return LOOSE
            case nodes.Named() if expr is self.top or self.name_of(expr) is None:
                return self.binding(expr.body)
            case nodes.Stated() | nodes.StopGradient() | nodes.StraightThrough():
                return self.binding(expr.body)
            case nodes.Rejection():
                return self.binding(expr.meaning)
            case nodes.Share() | sp.exp():
                return POWER
            case nodes.Reduce():
                return PRODUCT - 1
            case nodes.LogAddExp():
                return PRODUCT
            case nodes.Node() | nodes.Leaf():
                return ALONE
        if atoms.is_atom(expr) and type(expr).__name__ in ("abs_power", "signed_power", "xlogy", "inverse_root"):
            return PRODUCT
        return int(precedence(expr))

    def inside(self, expr: Any, level: int) -> str:
        """An expression, in parentheses where it binds less than the level."""
        text = self._print(expr)
        return text if self.binding(expr) >= level else fenced(text)

    # Numbers and names

    def _print_Integer(self, e: Any) -> str:
        if abs(e) >= LONG:
            return self._print_Float(e)
        return f"<mn>{e}</mn>" if e >= 0 else row(operator("−"), f"<mn>{-e}</mn>")

    def _print_Rational(self, e: Any) -> str:
        if max(abs(e.p), e.q) >= LONG:
            return self._print_Float(e)
        return row(operator("−"), self._print(-e)) if e < 0 else fraction(f"<mn>{e.p}</mn>", f"<mn>{e.q}</mn>")

    def _print_Float(self, e: Any) -> str:
        digits, _, exponent = f"{float(e):.6g}".partition("e")
        if not exponent:
            return f"<mn>{digits}</mn>"
        power = f"<msup><mn>10</mn><mn>{int(exponent)}</mn></msup>"
        return power if digits == "1" else row(f"<mn>{digits}</mn>", operator("×"), power)

    def _print_Infinity(self, e: Any) -> str:
        return "<mi>∞</mi>"

    def _print_NegativeInfinity(self, e: Any) -> str:
        return row(operator("−"), "<mi>∞</mi>")

    def _print_Pi(self, e: Any) -> str:
        return "<mi>π</mi>"

    def _print_Exp1(self, e: Any) -> str:
        return "<mi>e</mi>"

    def _print_Symbol(self, e: Any) -> str:
        return word(e.name)

    def _print_Leaf(self, e: Any) -> str:
        return word(e.name)

    def _print_Axis(self, e: Any) -> str:
        return under("<mi>n</mi>", word(e.name))

    def _print_Index(self, e: Any) -> str:
        return word(self.letters.get(e, e.axis.name[0]))

    def _print_Load(self, e: Any) -> str:
        name = e.tensor.name
        base = table_word(name) if e.tensor.record.state else word(name)
        if name.startswith(DIRECTION):
            base = "<mi>v</mi>" if self.moving == 1 else f"<msup><mi>v</mi>{word(name.removeprefix(DIRECTION))}</msup>"
        return under(base, listed(map(self._print, e.index))) if e.index else base

    def _print_Named(self, e: Any) -> str:
        name = None if e is self.top else self.name_of(e)
        return self._print(e.body) if name is None else self.labelled(name, e.body)

    def name_of(self, e: Any) -> str | None:
        """What a named part is called; None where it has to be written out."""
        return None if self.parts is None else self.parts.name(e, self.learning)

    def labelled(self, name: str, body: Any) -> str:
        """The name of a part, and where it is taken: its free indices, or the labels that stand in their place."""
        at = positions(body)
        return under(word(name), listed(map(self._print, at))) if at else word(name)

    # Sums, products, powers

    def _print_Add(self, e: Any) -> str:
        return row(*self.terms(e))

    def terms(self, e: sp.Expr) -> list[str]:
        """The terms of a sum with their signs, those without a minus first."""
        terms = in_order(e)
        return [self.sign(t, k == 0) + self.term(t, k == len(terms) - 1) for k, t in enumerate(terms)]

    def term(self, term: sp.Expr, last: bool) -> str:
        """A term without its sign; braces that nothing follows need no parentheses."""
        return self.inside(-term if negative(term) else term, LOOSE if last and isinstance(term, nodes.Where) else SUM + 1)

    def sign(self, term: sp.Expr, first: bool) -> str:
        """What stands before a term."""
        form = "" if first else INFIX
        return operator("−", form) if negative(term) else "" if first else operator("+", form)

    def _print_Mul(self, e: Any) -> str:
        e = turned(e)
        if negative(e):
            return row(operator("−"), self.inside(-e, PRODUCT - 1))
        above, below = halves(e, self.names)
        text = row(*self.factors(above))
        return fraction(text, row(*self.factors(below))) if below else text

    def factors(self, factors: list[sp.Expr]) -> list[str]:
        """Factors in the order in which one reads them, a dot before each but the first."""
        if len(factors) < 2:
            return [self._print(factors[0]) if factors else "<mn>1</mn>"]
        ordered = sorted(factors, key=lambda f: (self.binding(f) <= LOOSE, isinstance(f, nodes.Reduce), self.binding(f) <= SUM,
                                                 not f.is_number, size(f), str(f)))
        texts = [self.inside(f, PRODUCT if k < len(ordered) - 1 else LOOSE if self.binding(f) != SUM else PRODUCT)
                 for k, f in enumerate(ordered)]
        return [texts[0], *(operator("⋅", INFIX) + t for t in texts[1:])]

    def breakable(self, term: sp.Expr, last: bool) -> list[str]:
        """A term without its sign, in the factors between which a narrow page may break the line."""
        if term.is_Mul and term not in self.names:
            above, below = halves(turned(term), self.names)
            if not below and not negative(term):
                return self.factors(above)
        return [self.term(term, last)]

    def _print_Pow(self, e: Any) -> str:
        if e.exp.is_number and e.exp < 0:
            return fraction("<mn>1</mn>", self._print(e.base ** -e.exp))
        if e.exp == sp.S.Half:
            return f"<msqrt>{row(self._print(e.base))}</msqrt>"
        return f"<msup>{row(self.inside(e.base, POWER + 1))}{row(self._print(e.exp))}</msup>"

    def _print_exp(self, e: Any) -> str:
        return self.exponential(e.args[0])

    def exponential(self, x: sp.Expr) -> str:
        """e to a power, as long as that stays legible."""
        if size(x) > 8 or x.has(nodes.Where) or (x.has(nodes.Reduce) and x not in self.names):
            return self.call("exp", x)
        return f"<msup><mi>e</mi>{row(self._print(x))}</msup>"

    # Functions

    def call(self, name: str, *args: sp.Basic) -> str:
        return row(word(name), operator("&#x2061;"), fenced(listed(map(self._print, args))))

    def _print_Function(self, e: Any) -> str:
        name = type(e).__name__
        return self.call(WORDS.get(name, name), *e.args)

    def _print_log(self, e: Any) -> str:
        x = e.args[0]
        return row(word("log"), APPLY, self._print(x)) if self.binding(x) == ALONE and not x.is_Function else self.call("log", x)

    def bars(self, x: sp.Expr) -> str:
        return fenced(self._print(x), "|", "|")

    def _print_Abs(self, e: Any) -> str:
        return self.bars(e.args[0])

    def _print_hinge(self, e: Any) -> str:
        return self.call("max", sp.S.Zero, e.args[0])

    def _print_larger(self, e: Any) -> str:
        return self.call("max", *e.args[:2])

    def _print_smaller(self, e: Any) -> str:
        return self.call("min", *e.args[:2])

    def _print_step(self, e: Any) -> str:
        x, tie = e.args
        if tie not in (0, 1):
            return row(under(word("step"), self._print(tie)), operator("&#x2061;"), fenced(self._print(x)))
        return fenced(row(self._print(x), operator("≥" if tie == 1 else "&gt;"), "<mn>0</mn>"), "[", "]")

    def _print_same(self, e: Any) -> str:
        return fenced(row(self._print(e.args[0]), operator("="), self._print(e.args[1])), "[", "]")

    _print_Delta = _print_same

    def _print_root(self, e: Any) -> str:
        return f"<msqrt>{row(self._print(e.args[0]))}</msqrt>"

    def _print_inverse_root(self, e: Any) -> str:
        return fraction("<mn>1</mn>", self._print_root(e))

    def _print_hypotenuse(self, e: Any) -> str:
        return f"<msqrt>{self._print(e.args[1]**2 + e.args[0]**2)}</msqrt>"

    def _print_hypotenuse_slope(self, e: Any) -> str:
        return fraction(self._print(e.args[0]), self._print_hypotenuse(e))

    def _print_abs_power(self, e: Any) -> str:
        return f"<msup>{row(self.bars(e.args[0]))}{row(self._print(e.args[1]))}</msup>"

    def _print_signed_power(self, e: Any) -> str:
        return row(self.call("sgn", e.args[0]), operator("⋅"), self._print_abs_power(e))

    def _print_xlogy(self, e: Any) -> str:
        x, y = e.args
        return row(self.inside(x, PRODUCT), operator("⋅"), self._print(sp.log(y, evaluate=False)))

    def _print_floor(self, e: Any) -> str:
        return fenced(self._print(e.args[0]), "⌊", "⌋")

    def _print_Mod(self, e: Any) -> str:
        return row(self.inside(e.args[0], PRODUCT), "<mtext>&#xA0;mod&#xA0;</mtext>", self.inside(e.args[1], PRODUCT))

    # Our nodes

    def _print_Where(self, e: Any) -> str:
        arms: list[tuple[Any, Any]] = []
        rest: Any = e
        while isinstance(rest, nodes.Where) and (rest is e or rest not in self.names):
            arms.append((rest.args[1], rest.args[0]))
            rest = rest.args[2]
        cell = lambda text: f"<mtd>{text}</mtd>"
        rows = [f"<mtr>{cell(self._print(value))}{cell(row('<mtext>if&#xA0;</mtext>', self._print(condition)))}</mtr>"
                for value, condition in arms]
        rows.append(f"<mtr>{cell(self._print(rest))}{cell('<mtext>otherwise</mtext>')}</mtr>")
        return row(operator("{", ' fence="true"'), f'<mtable columnalign="left left" class="cases">{"".join(rows)}</mtable>')

    def _print_Reduce(self, e: Any) -> str:
        at = self._print(e.bound)
        if e.op == "sum":
            return row(f"<munder>{SIGMA}{row(at)}</munder>", self.inside(e.body, PRODUCT))
        if e.op == "max":
            return row(f"<munder>{word('max')}{row(at)}</munder>", APPLY, self.inside(e.body, PRODUCT))
        total = row(f"<munder>{SIGMA}{row(at)}</munder>", self.exponential(e.body))
        return row(word("log"), APPLY, total)

    def _print_LogAddExp(self, e: Any) -> str:
        parts = [operator("+") + self.exponential(x) for x in e.args]
        return row(word("log"), operator("&#x2061;"), fenced(row(parts[0].removeprefix(operator("+")), *parts[1:])))

    def _print_Share(self, e: Any) -> str:
        return self.call("exp", sp.Add(e.args[0], -e.args[1], evaluate=False))

    def _print_Rejection(self, e: Any) -> str:
        return self._print(e.meaning)

    def _print_StraightThrough(self, e: Any) -> str:
        return self._print(e.body)

    _print_Stated = _print_StopGradient = _print_Rounded = _print_StraightThrough

    # Conditions

    def _print_Relational(self, e: Any) -> str:
        for a, b in (e.args, e.args[::-1]):
            if isinstance(a, nodes.Param) and a.record.reduction and isinstance(e, sp.Equality) and b == 1:
                return row(word("reduction"), operator("="), f"<mtext>{a.record.reduction}</mtext>")
        return row(self._print(e.args[0]), operator(SIGNS[type(e)]), self._print(e.args[1]))

    def joined(self, e: Any, name: str) -> str:
        text = f"<mtext>&#xA0;{name}&#xA0;</mtext>"
        return row(text.join(self._print(a) if not isinstance(a, sp.And | sp.Or) else fenced(self._print(a)) for a in ordered(e.args)))

    def _print_And(self, e: Any) -> str:
        return self.joined(e, "and")

    def _print_Or(self, e: Any) -> str:
        return self.joined(e, "or")

    def _print_Not(self, e: Any) -> str:
        return row("<mtext>not&#xA0;</mtext>", fenced(self._print(e.args[0])))

    def _print_Chosen(self, e: Any) -> str:
        return word(e.param.name) if e.value is sp.true else row(word(e.param.name), operator("="), self._print(e.value))

    def _print_BooleanTrue(self, e: Any) -> str:
        return "<mtext>true</mtext>"

    def _print_BooleanFalse(self, e: Any) -> str:
        return "<mtext>false</mtext>"


def ordered(args: Iterable[Any]) -> list[Any]:
    return sorted(args, key=str)


def in_order(e: sp.Add) -> list[sp.Expr]:
    """The terms of a sum: those without a minus first, short ones before long ones."""
    return sorted(map(turned, e.args), key=lambda t: (isinstance(t, nodes.Where), negative(t), 0 if t.is_number else size(t), str(t)))


def halves(e: sp.Expr, names: Mapping[Any, str]) -> tuple[list[sp.Expr], list[sp.Expr]]:
    """The factors of a product that stand above the line, and those below."""
    number = sp.S.One
    above: list[sp.Expr] = []
    below: list[sp.Expr] = []
    for factor in e.args:
        rooted = factor.base if factor.is_Pow and factor.exp.is_positive and factor not in names else factor
        if isinstance(rooted, atoms.inverse_root):
            below.append(atoms.root(rooted.args[0]) ** factor.as_base_exp()[1])
            continue
        inverse = factor.is_Pow and not isinstance(factor, sp.exp) and factor.exp.is_number and factor.exp < 0 and factor not in names
        if factor.is_Rational:
            number *= factor
        elif factor.is_Add and factor not in names:
            content, rest = factor.primitive()
            number *= content
            above.append(rest)
        else:
            (below if inverse else above).append(factor.base ** -factor.exp if inverse else factor)
    number = abs(number)
    if max(number.p, number.q) >= LONG:
        return [sp.Float(number), *above], below
    return ([sp.Integer(number.p)] if number.p != 1 else []) + above, ([sp.Integer(number.q)] if number.q != 1 else []) + below


def negative(e: sp.Expr) -> bool:
    """Does a term begin with a minus?"""
    return bool(e.is_number and e.is_negative) or bool(e.is_Mul and e.args[0].is_number and e.args[0].is_negative)


def turned(e: sp.Expr) -> sp.Expr:
    """A product with a factor x - 1 as minus the product with 1 - x, which is how one writes it."""
    if not e.is_Mul:
        return e
    for factor in e.args:
        if factor.is_Add and len(factor.args) == 2 and factor.args[0].is_number and [negative(t) for t in factor.args] == [True, False]:
            others = [f for f in e.args if f != factor]
            sign = -1 if others and others[0].is_Number else 1
            rest = [sign * others[0], *others[1:]] if sign < 0 else [sp.S.NegativeOne, *others]
            return sp.Mul(*[f for f in rest if f != 1], sp.Add(*(-t for t in factor.args)), evaluate=False)
    return e


def size(e: sp.Basic) -> int:
    """How many operations and leaves an expression has; a named part is one."""
    return 1 if isinstance(e, nodes.Named) or not e.args else 1 + sum(map(size, e.args))


def math(*parts: str) -> str:
    """A whole formula."""
    return f'<math displaystyle="true">{row(*parts)}</math>'


def pieces(printer: MathPrinter, left: str, expr: sp.Basic, sign: str = "=") -> list[str]:
    """left = expr as several formulas that stand in a row, between which a narrow page may break the line."""
    printer.top = expr
    head = row(left, operator(sign, ' lspace="0.28em" rspace="0.28em"'))
    if not isinstance(expr, sp.Add | sp.Mul):
        return [math(head, printer.line(expr))]
    found = []
    terms = in_order(expr) if expr.is_Add else [turned(expr)]
    for k, term in enumerate(terms):
        first, *rest = printer.breakable(-term if negative(term) else term, k == len(terms) - 1)
        found += [math(head if k == 0 else "", printer.sign(term, k == 0), first), *map(math, rest)]
    return [found[0], *(piece.replace(INFIX, LEADING, 1) for piece in found[1:])]

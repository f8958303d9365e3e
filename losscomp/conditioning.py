"""Where a formula may lose digits: intervals and relative errors carried through it, to first order, over the domains of its inputs.

Each operation multiplies the relative errors of its operands by its condition number over their intervals, and adds a rounding.
What is flagged is the operation at which an error that was small may become large. Two things are no more than a hint:
intervals forget what their operands have in common, and a formula may lose digits near a root, where nobody can keep them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import sympy as sp

from . import atoms, nodes
from .check import Checked
from .rules import position_of

INF = math.inf
TOO_MUCH = 1e4                                   # units in the last place: what was a rounding error is one no longer
CARRIED = 4.0                                    # what goes on from an operation that was flagged, so that others are found
EXPONENTS = 746.0                                # beyond this size an exponential is 0 or infinite


@dataclass(frozen=True)
class Bound:
    """An interval, and a bound of the relative error in units in the last place."""

    low: float
    high: float
    error: float = 0.0

    @property
    def size(self) -> float:
        return max(abs(self.low), abs(self.high))

    @property
    def least(self) -> float:
        """The smallest magnitude."""
        return 0.0 if self.low <= 0 <= self.high else min(abs(self.low), abs(self.high))


@dataclass(frozen=True)
class Warning_:
    """An operation that may turn rounding errors into large ones."""

    part: sp.Expr
    why: str
    error: float


REAL, UNIT = Bound(-INF, INF), Bound(0.0, 1.0)
CANCELS = "terms of both signs that carry rounding errors, and may nearly cancel"
# Functions of one argument that only grow: their interval, and how often a relative error of the argument counts, at most.
GROWING: dict[type, tuple[Any, Any]] = {
    sp.exp: (lambda x: math.exp(x) if x < EXPONENTS - 37 else INF, lambda b: min(b.size, EXPONENTS)),
    sp.tanh: (math.tanh, lambda b: 1.0),
    sp.atan: (math.atan, lambda b: 1.0),
    sp.sinh: (lambda x: math.sinh(x) if abs(x) < 709 else math.copysign(INF, x), lambda b: max(1.0, min(b.size, EXPONENTS))),
    sp.erf: (math.erf, lambda b: 1.0),
    atoms.expm1: (lambda x: math.expm1(x) if x < EXPONENTS - 37 else INF, lambda b: max(1.0, min(b.high, EXPONENTS))),
    atoms.softplus: (lambda x: max(x, 0.0) + math.log1p(math.exp(-abs(x))), lambda b: max(1.0, min(-b.low, EXPONENTS))),
    atoms.sigmoid: (lambda x: 1 / (1 + math.exp(-x)) if x > -700 else 0.0, lambda b: max(1.0, min(-b.low, EXPONENTS))),
    atoms.root: (lambda x: math.sqrt(max(x, 0.0)), lambda b: 0.5),
    atoms.Abs: (lambda x: x, lambda b: 1.0),
    atoms.binade: (lambda x: x, lambda b: 0.0),
    atoms.hypotenuse_slope: (lambda x: math.copysign(1.0, x), lambda b: 1.0),
}
FALLBACK: dict[type, Bound] = {sp.cos: Bound(-1, 1), sp.sin: Bound(-1, 1), atoms.Sign: Bound(-1, 1), atoms.step: UNIT, atoms.same: UNIT}
EXACT = (atoms.Sign, atoms.step, atoms.same)


class Conditioning:
    """The bounds of one variant's expressions, and what is flagged among them."""

    def __init__(self, form: Checked) -> None:
        self.numbers = {p.name: v for p, v in zip(form.params, _values(form), strict=True)}
        self.done: dict[sp.Basic, Bound] = {}
        self.known: dict[sp.Basic, Bound] = {}               # what a condition says of an expression in its arm
        self.found: dict[sp.Basic, Warning_] = {}

    def __call__(self, expr: sp.Basic) -> Bound:
        """The bound of an expression; an error that is too large is noted, and goes no further."""
        if expr in self.known:
            return self.known[expr]
        if expr not in self.done:
            bound = self.bound(expr)
            if not bound.error <= TOO_MUCH:
                why = CANCELS if isinstance(expr, sp.Add) else "an ill-conditioned function of a rounded argument"
                self.found.setdefault(expr, Warning_(expr, why, bound.error))
                bound = replace(bound, error=CARRIED)
            self.done[expr] = bound
        return self.done[expr]

    def bound(self, expr: sp.Basic) -> Bound:
        match expr:
            case sp.Number() | sp.NumberSymbol():
                return Bound(float(expr), float(expr), 0.0 if expr.is_Rational else 0.5)
            case nodes.Param():
                return self.numbers[expr.name]
            case nodes.Axis():
                return Bound(1.0, 1e9)
            case nodes.Index():
                return Bound(0.0, 1e9)
            case nodes.Load():
                low, high, _ = expr.tensor.record.domain.interval
                return Bound(low, high)
            case nodes.Delta():
                return UNIT
            case nodes.Where():
                return self.selection(expr)
            case nodes.Reduce():
                return self.reduction(expr)
            case nodes.Rejection() | nodes.Eliminated():
                return Bound(-INF, INF, CARRIED)                         # computed by elimination
            case sp.Add():
                return self.addition(expr)
            case sp.Mul():
                return self.product(expr)
            case sp.exp():
                return self.exponential(expr)
            case sp.Pow():
                return self.power(expr)
        if isinstance(expr, nodes.Named | nodes.Stated | nodes.StopGradient | nodes.StraightThrough):
            return self(expr.body)
        return self.function(expr)

    def selection(self, expr: nodes.Where) -> Bound:
        """Both arms, each with what the condition says in it."""
        condition, a, b = expr.args
        arms = []
        for arm, rule in ((a, condition), (b, sp.Not(condition))):
            outside, self.done, kept = self.done, {}, self.known
            self.known = {**kept, **dict(self.said(rule))}
            if self.known == kept:
                self.done = outside
            arms.append(self(arm))
            self.done, self.known = outside, kept
        return Bound(min(a.low for a in arms), max(a.high for a in arms), max(a.error for a in arms))

    def said(self, condition: Any) -> Iterator[tuple[sp.Basic, Bound]]:
        """The bounds of expressions that a condition compares with numbers."""
        for part in condition.args if isinstance(condition, sp.And) else (condition,):
            if not isinstance(part, sp.core.relational.Relational) or isinstance(part, sp.Ne):
                continue
            for x, limit, turned in ((part.lhs, part.rhs, False), (part.rhs, part.lhs, True)):
                if limit.is_number and not x.is_number:
                    here, at = self(x), float(limit)
                    below = isinstance(part, sp.Lt | sp.Le) != turned
                    low, high = (at, at) if isinstance(part, sp.Eq) else (here.low, min(here.high, at)) if below else (
                        max(here.low, at), here.high)
                    yield x, replace(here, low=low, high=high)
                    if isinstance(x, atoms.Abs) and below:
                        yield x.args[0], replace(self(x.args[0]), low=-at, high=at)

    def reduction(self, expr: nodes.Reduce) -> Bound:
        body = self(expr.body)
        if expr.op == "max":
            return body
        if expr.op == "logsumexp":
            return Bound(body.low, INF, 2.0 if body.error <= 1 else INF)
        signed = body.low < 0 < body.high
        if whole(expr.body):
            return Bound(-INF if body.low < 0 else 0.0, INF if body.high > 0 else 0.0)
        return Bound(-INF if body.low < 0 else 0.0 if body.low == 0 else body.low, INF if body.high > 0 else body.high,
                     (1.0 if body.error == 0 else INF) if signed and body.error else body.error + 1)

    def addition(self, expr: sp.Add) -> Bound:
        """Terms of one sign keep their errors; of both, these count as often as the terms exceed the sum."""
        terms = [self(t) for t in self.grouped(expr)]
        if whole(expr):
            terms = [replace(t, error=0.0) for t in terms]
        low, high = sum(t.low for t in terms), sum(t.high for t in terms)
        content = float(expr.primitive()[0])
        total = Bound(-INF if math.isnan(low) else low * content, INF if math.isnan(high) else high * content)
        if all(t.low >= 0 for t in terms) or all(t.high <= 0 for t in terms):
            return replace(total, error=max(t.error for t in terms) + len(terms) - 1)
        if all(t.error == 0 for t in terms) and (len(terms) == 2 or whole(expr)):
            return replace(total, error=0.0 if whole(expr) else 1.0)              # one rounding of what is exact
        size = max(t.size for t in terms)
        near = total.least / abs(content)
        ratio = size / near if near > 0 and size < INF else INF
        return replace(total, error=(max(t.error for t in terms) + 1) * ratio)

    def grouped(self, expr: sp.Add) -> list[sp.Expr]:
        """The terms, without a common number; x - logsumexp at a position is one of them, not positive and known to a few units."""
        terms = list(expr.primitive()[1].args)
        for lse in [t for t in terms if isinstance(-t, nodes.Reduce) and (-t).op == "logsumexp"]:
            for here in (t for t in terms if t is not lse):
                if (nodes.free_indices(here) and position_of(here, -lse) is not None) or gathered(here, -lse):
                    terms.remove(lse)
                    terms.remove(here)
                    whole = sp.Add(here, lse, evaluate=False)
                    self.known[whole] = Bound(-INF, 0.0, 3.0)
                    terms.append(whole)
                    break
        return terms

    def product(self, expr: sp.Mul) -> Bound:
        low = high = 1.0
        error = -1.0
        for factor in map(self, expr.args):
            ends = [0.0 if 0.0 in (p, q) else p * q for p in (low, high) for q in (factor.low, factor.high)]
            low, high, error = min(ends), max(ends), error + factor.error + 1
        return Bound(low, high, error - sum(1 for f in expr.args if f in (1, -1)))

    def exponential(self, expr: sp.Expr) -> Bound:
        """exp(a - b) gets the rounding error of the difference back, and a softmax is a quotient."""
        power = expr.args[0]
        inner = self(power)
        own = inner.error
        if isinstance(power, sp.Add) and (any(isinstance(-t, nodes.Reduce) and (-t).op == "logsumexp" for t in power.args) or (
                len(power.args) == 2 and all(self(t).error == 0 for t in power.args))):
            own = 0.0
        grow, count = GROWING[sp.exp]
        return Bound(grow(inner.low), grow(inner.high), own * count(inner) + 1)

    def power(self, expr: sp.Pow) -> Bound:
        base, exponent = self(expr.base), self(expr.exp)
        if not expr.exp.is_number:
            return Bound(0.0, INF, base.error * min(exponent.size, 1e3) + 2)
        r = float(expr.exp)
        even = expr.exp.is_Integer and expr.exp % 2 == 0
        ends = [base.least, base.size] if even or base.low >= 0 else [base.low, base.high]
        raised = lambda x: INF if x == 0 and r < 0 else 0.0 if math.isinf(x) and r < 0 else (
            INF if abs(x) > 1e100 and r > 1 else abs(x)**r if even or x >= 0 else -(abs(x)**r))
        low, high = sorted(map(raised, ends))
        if r < 0 and base.low < 0 < base.high and not even:
            low, high = -INF, INF
        return Bound(low, high, abs(r) * base.error + 1)

    def function(self, expr: Any) -> Bound:
        """A function of one argument by its table; of several, or another, what is known of its sign."""
        args = [self(a) for a in expr.args]
        x = args[0]
        if isinstance(expr, atoms.Abs):
            return Bound(x.least, x.size, x.error)
        if isinstance(expr, sp.log):
            low, high = (-INF if v <= 0 else INF if v == INF else math.log(v) for v in (x.low, x.high))
            return Bound(low, high, 1.0 if x.error == 0 else 1 + x.error / least(low, high))
        if isinstance(expr, atoms.log1p):
            low, high = (-INF if v <= -1 else INF if v == INF else math.log1p(v) for v in (x.low, x.high))
            return Bound(low, high, 1.0 if x.error == 0 else 1 + x.error * (2.0 if x.low >= -0.5 else INF))
        if type(expr) in GROWING:
            grow, count = GROWING[type(expr)]
            return Bound(grow(x.low), grow(x.high), x.error * count(x) + 1 if x.error else 1.0)
        if isinstance(expr, atoms.larger | atoms.smaller):
            pick = max if isinstance(expr, atoms.larger) else min
            return Bound(pick(args[0].low, args[1].low), pick(args[0].high, args[1].high), max(args[0].error, args[1].error))
        if isinstance(expr, atoms.hinge):
            return Bound(max(x.low, 0.0), max(x.high, 0.0), x.error)
        if isinstance(expr, atoms.xlogy):
            inner = self(sp.log(expr.args[1]))
            positive = x.low >= 0
            return Bound(inner.low * x.size if positive and inner.low < 0 else 0.0 if positive else -INF, INF, x.error + inner.error + 1)
        known = FALLBACK.get(type(expr), Bound(0.0, INF) if getattr(expr, "is_nonnegative", False) else REAL)
        error = 0.0 if isinstance(expr, EXACT) else max(a.error for a in args) * (INF if isinstance(expr, sp.sin | sp.cos) else 2.0)
        return replace(known, error=0.0 if isinstance(expr, EXACT) else (0.0 if math.isnan(error) else error) + 2)


def least(low: float, high: float) -> float:
    """The smallest magnitude in an interval; where it is 0, a number that divides nothing into something."""
    return Bound(low, high).least or 1e-300


def whole(expr: sp.Expr) -> bool:
    """Is this an integer, so that sums of it are exact?"""
    if isinstance(expr, nodes.Reduce):
        return expr.op != "logsumexp" and whole(expr.body)
    return bool(expr.is_integer) or (isinstance(expr, sp.Add) and all(map(whole, expr.args)))


def gathered(here: sp.Expr, lse: nodes.Reduce) -> bool:
    """Is this the body of a logsumexp at a position that an integer tensor names?"""
    loads = [load for load in here.atoms(nodes.Load) for i in load.index if not isinstance(i, nodes.Index)]
    places = {i for load in loads for i in load.index if not isinstance(i, nodes.Index)}
    return any(nodes.substitute(lse.body, {lse.bound: place}) == here for place in places)


def _values(form: Checked) -> Iterator[Bound]:
    """What each parameter may be: its special value, or its domain."""
    settings = dict(form.settings)
    for param in form.params:
        special = settings.get(param.name)
        if special is not None and not isinstance(special, sp.logic.boolalg.BooleanAtom):
            yield Bound(float(special), float(special))
        else:
            low, high, _ = param.record.domain.interval
            yield Bound(low, high)


def warnings_of(form: Checked, *exprs: sp.Expr) -> list[Warning_]:
    """What is flagged in some results of a variant, innermost first."""
    look = Conditioning(form)
    for expr in exprs:
        look(expr)
    return list(look.found.values())

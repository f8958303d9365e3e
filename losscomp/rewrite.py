"""The rewriting engine: an associative-commutative matcher, rules as data, a trace of what was done and why."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, Literal

import sympy as sp

from .errors import LosscompError
from .nodes import Axis, AxisRecord, Index, Reduce

Binding = dict[Any, Any]
Purpose = Literal["smooth", "stabilise"]


class Hole(sp.Symbol):
    """A pattern variable: matches any expression."""

    def __new__(cls, name: str) -> Any:
        return super().__new__(cls, name, real=True)


class Over(sp.Function):
    """Below a binder: any expression, which may use the bound index."""

    nargs = 2
    is_real = True


ANY_AXIS = Axis(AxisRecord("any"))
ANY_INDEX = ANY_AXIS.index()
BOUND = sp.Dummy("bound", integer=True)


def over(hole: Hole) -> sp.Expr:
    """The body of a reduction in a pattern."""
    return Over(hole, ANY_INDEX)


@lru_cache(maxsize=100_000)
def kinds(expr: sp.Basic) -> frozenset[Any]:
    """The functions that occur in an expression, and the operations of its reductions."""
    own = expr.op if isinstance(expr, Reduce) else expr.func
    return frozenset({own}.union(*map(kinds, expr.args)))


def needed(pattern: Any) -> frozenset[Any]:
    """What an expression surely holds where a pattern matches in it. Sums and products come and go, and holes are anything."""
    if isinstance(pattern, Hole | Over | Index | Axis) or not pattern.args:
        return frozenset()
    own = set() if isinstance(pattern, sp.Add | sp.Mul) else {pattern.op if isinstance(pattern, Reduce) else pattern.func}
    return frozenset(own.union(*map(needed, pattern.args)))


@dataclass(frozen=True)
class Rule:
    """pattern -> replacement.

    Attributes:
        name: what the trace calls it.
        pattern, replacement: expressions in holes; a replacement may be a function of the binding.
        why: the defect that it removes.
        purpose: "smooth" rules turn a definition into smooth atoms before it is differentiated; "stabilise" rules work on
            each result.
        condition: when it may be applied.
        domain: holes that are positive, as the proof assumes.
        ranges: where the proof samples each hole.
        given: holes that `condition` ties to others, as formulas in those; the proof puts them in.
        offered: taken only where a definition names it in `rewrites`: it helps some definitions and hurts others.
        unsound: why the rule is disabled; an empty string for a sound rule. `counterexample` says where, by hole.
    """

    name: str
    pattern: Any
    replacement: Any
    why: str
    purpose: Purpose = "smooth"
    condition: Callable[[Binding], bool] = field(default=lambda match: True)
    domain: tuple[Hole, ...] = ()
    ranges: tuple[tuple[str, float, float], ...] = ()
    given: tuple[tuple[Hole, Any], ...] = ()
    offered: bool = False
    unsound: str = ""
    counterexample: tuple[tuple[str, float], ...] = ()

    @cached_property
    def needs(self) -> frozenset[Any]:
        """What occurs in every expression that the rule may match."""
        return needed(self.pattern)

    def apply(self, expr: sp.Expr) -> sp.Expr | None:
        """The rewritten expression, or None. A sum or product pattern may match some of the terms and leave the rest, and a sum
        pattern a multiple of itself."""
        new = self.apply_once(expr)
        if new is None and isinstance(self.pattern, sp.Add) and isinstance(expr, sp.Add):
            content, part = expr.primitive()
            for count, multiple in ((content, part), (-content, -part)):
                if new is None and count != 1 and (found := self.apply_once(multiple)) is not None:
                    new = count * found
        return new

    def apply_once(self, expr: sp.Expr) -> sp.Expr | None:
        """The expression itself rewritten, or some of its terms."""
        for part, rest in views(self.pattern, expr):
            for found in match(self.pattern, part, {}):
                if self.condition(found) and all(found[hole].is_positive for hole in self.domain):
                    new = self.replacement(found) if callable(self.replacement) else self.replacement.xreplace(found)
                    return new if rest is None else expr.func(new, *rest)
        return None


@dataclass(frozen=True)
class Procedure:
    """A rule that no pattern can say, because it compares coefficients; it has the same proof duties.

    Attributes:
        needs: what occurs in every expression that the rule may change: functions, and operations of reductions.
    """

    name: str
    apply: Callable[[sp.Expr], sp.Expr | None]
    why: str
    purpose: Purpose = "stabilise"
    needs: frozenset[Any] = frozenset()
    offered: bool = False
    unsound: str = ""


@dataclass(frozen=True)
class Step:
    """One rewrite that happened."""

    rule: str
    why: str
    before: sp.Expr
    after: sp.Expr


def match(pattern: Any, expr: Any, found: Binding) -> Iterator[Binding]:
    """Every way to read `expr` as `pattern`. Sums and products match in any order; a last hole takes what is left."""
    if isinstance(pattern, Hole):
        if pattern in found:
            if found[pattern] == expr:
                yield found
        elif isinstance(expr, sp.Expr):
            yield {**found, pattern: expr}
    elif isinstance(pattern, sp.Mul) and len(pattern.args) == 2 and pattern.args[0] == -1 and isinstance(pattern.args[1], Hole):
        if isinstance(expr, sp.Expr) and (pattern.args[1] in found or expr.as_coeff_Mul()[0] < 0):       # -2 y too is minus something
            yield from match(pattern.args[1], -expr, found)
    elif isinstance(pattern, Reduce):
        if isinstance(expr, Reduce) and pattern.op == expr.op:
            bare = pattern.body.replace(lambda e: isinstance(e, Over), lambda e: e.args[0])
            yield from (({**m, BOUND: expr.bound}) for m in match(bare, expr.body, found))
    elif not pattern.args or not expr.args:
        if pattern == expr:
            yield found
    elif pattern.func == expr.func:
        if isinstance(pattern, sp.Add | sp.Mul):
            yield from match_any_order(pattern, list(expr.args), found)
        elif len(pattern.args) == len(expr.args):
            yield from match_all(pattern.args, expr.args, found)


def match_all(patterns: Any, exprs: Any, found: Binding) -> Iterator[Binding]:
    """Match argument by argument."""
    if not patterns:
        yield found
        return
    for first in match(patterns[0], exprs[0], found):
        yield from match_all(patterns[1:], exprs[1:], first)


def match_any_order(pattern: Any, exprs: list[Any], found: Binding) -> Iterator[Binding]:
    """Match a product or sum pattern against all of `exprs`; the last part takes what is left."""
    parts = sorted(pattern.args, key=lambda p: (isinstance(p, Hole), sp.default_sort_key(p)))

    def assign(k: int, left: list[Any], found: Binding) -> Iterator[Binding]:
        if k == len(parts) - 1:
            if left:
                yield from match(parts[k], pattern.func(*left), found)
            return
        for i, candidate in enumerate(left):
            for m in match(parts[k], candidate, found):
                yield from assign(k + 1, left[:i] + left[i + 1:], m)

    yield from assign(0, exprs, found)


def views(pattern: Any, expr: Any) -> Iterator[tuple[Any, list[Any] | None]]:
    """The expression, and, for a sum or product pattern that has no hole to take the rest, its parts of that size."""
    yield expr, None
    if isinstance(pattern, sp.Add | sp.Mul) and pattern.func == expr.func and not any(isinstance(p, Hole) for p in pattern.args):
        size = len(pattern.args)
        if size < len(expr.args) <= 12:
            for some in itertools.combinations(range(len(expr.args)), size):
                yield expr.func(*(expr.args[i] for i in some)), [a for i, a in enumerate(expr.args) if i not in some]


def without(product: sp.Expr, factor: sp.Expr) -> sp.Expr:
    """A product less one factor; division would leave exp(x) exp(-x), which SymPy does not always join."""
    factors = list(sp.Mul.make_args(product))
    factors.remove(factor)
    return sp.Mul(*factors)


class Swelling(LosscompError):
    """A rule that makes an expression grow without end; `rule` is its name."""

    rule: str = ""


STEPS, GROWTH = 200, 40                          # what a rewriting may take: steps, and times the size of the expression


def size_of(expr: Any, most: int) -> int:
    """The number of nodes of an expression, as a tree; counting ends above `most`."""
    return sum(1 for _ in itertools.islice(sp.preorder_traversal(expr), most + 1))


def rewrite(expr: sp.Expr, rules: tuple[Rule | Procedure, ...], wanted: Collection[str] = (), steps: int = STEPS,
            growth: int = GROWTH) -> tuple[sp.Expr, list[Step]]:
    """Apply the rules, innermost first, until none matches; and the steps taken. Raises LosscompError where the rules do not end.

    Args:
        wanted: the names of offered rules that are taken too.
    """
    rules = tuple(r for r in rules if not r.unsound and (not r.offered or r.name in wanted))
    trace: list[Step] = []
    done: dict[Any, Any] = {}
    most = growth * (250 + size_of(expr, 10**9))

    def endless() -> LosscompError:
        return LosscompError(f"rewriting does not end: {[s.rule for s in trace[-4:]]} at {trace[-1].before if trace else expr}",
                             repair="Two rules undo each other, or a rule matches in its own result; give one a condition.")

    def settle(step: Step) -> None:
        """Note a step, if the rewriting may go on."""
        trace.append(step)
        if len(trace) > steps:
            raise endless()
        if size_of(step.after, most) > most:
            error = Swelling(f"rewriting swells: the rule {step.rule!r} made an expression of more than {most} parts, after "
                             f"{[s.rule for s in trace[-4:]]}",
                             repair="Give the rule a condition that its own result does not meet, or name parts of the definition.")
            error.rule = step.rule
            raise error

    def visit(node: Any) -> Any:
        if not node.args or isinstance(node, Index | Axis):
            return node
        if node not in done:
            args = [visit(arg) for arg in node.args]
            new = node if all(p is q for p, q in zip(args, node.args, strict=True)) else node.func(*args)
            present = kinds(new)
            for rule in rules if isinstance(new, sp.Expr) else ():
                if not rule.needs <= present:
                    continue
                after = rule.apply(new)
                if after is not None and after != new:
                    settle(Step(rule.name, rule.why, new, after))
                    new = visit(after)
                    break
            done[node] = new
        return done[node]

    try:
        return visit(expr), trace
    except RecursionError:
        raise endless() from None


def rewrite_within(expr: sp.Expr, rules: tuple[Rule | Procedure, ...], wanted: Collection[str] = ()) -> tuple[sp.Expr, list[Step]]:
    """The same, but a rule that makes this expression swell is left out of its rewriting; a step without effect says so."""
    left_out: list[Step] = []
    while True:
        try:
            after, trace = rewrite(expr, rules, wanted)
            return after, left_out + trace
        except Swelling as error:
            left_out.append(Step(error.rule, "left out: the expression would swell", expr, expr))
            rules = tuple(r for r in rules if r.name != error.rule)

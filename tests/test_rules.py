"""Every rule is proved from the table that holds it, false variants are not, and every atom is what it says."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import cache
from typing import Any

import mpmath
import numpy as np
import pytest
import sympy as sp
from support import library

from losscomp import nodes
from losscomp.atoms import ATOMS, FUNCTIONS, expand_atoms, step
from losscomp.check import Checked, check, modern
from losscomp.errors import LosscompError
from losscomp.language import (
    Abs,
    Hinge,
    LogSumExp,
    Loss,
    Min,
    Norm,
    Sum,
    axis,
    clip,
    exp,
    index,
    log,
    named,
    oo,
    param,
    table,
    tanh,
    tensor,
)
from losscomp.nodes import Eliminated, Load, Reduce, Rejection, Where
from losscomp.oracle import OracleError, exact, ulp_error
from losscomp.pipeline import Compiled, compile_loss, plain
from losscomp.rewrite import BOUND, Hole, Over, Procedure, Rule, rewrite, rewrite_within
from losscomp.rules import DISABLED, RULES, SMOOTHING, STABILISING, asked_for

PATTERNS = [r for r in RULES if isinstance(r, Rule)]
PROCEDURES = [r for r in RULES if isinstance(r, Procedure)]
NAMES = [f"{r.name}, {r.purpose}" for r in PATTERNS]
TERMS = 3
LINE = axis("line")
ROW = tensor("row", LINE)
by_rule = pytest.mark.parametrize("rule", PATTERNS, ids=NAMES)


# Both sides of a rule, in elementary functions of plain symbols

def sides(rule: Rule) -> tuple[sp.Expr, sp.Expr, dict[str, sp.Symbol]]:
    """Left, right, and the symbols that stand for the holes; a reduction is spelled out over a few terms."""
    holes = sorted((h for h in rule.pattern.atoms(Hole)), key=str)
    below = {o.args[0] for o in rule.pattern.atoms(Over)}
    symbols = {h.name: sp.Symbol(h.name, positive=True) if h in rule.domain else sp.Symbol(h.name, real=True)
               for h in holes if h not in below}
    found: dict[Any, Any] = {h: symbols[h.name] for h in holes if h not in below}
    for hole, formula in rule.given:
        del symbols[hole.name]
        found[hole] = formula.xreplace(found)
    bounds = [r.bound for r in rule.pattern.atoms(Reduce)]
    if bounds:
        body = {h: ROW[LINE.index()] for h in below}
        place = next(iter(body.values())).index[0]
        bound = place.axis.index()
        found |= {h: e.xreplace({place: bound}) for h, e in body.items()} | {BOUND: bound}
    bare = lambda e: e.replace(lambda o: isinstance(o, Over), lambda o: found[o.args[0]])
    left = rule.pattern.replace(lambda e: isinstance(e, Reduce), lambda e: Reduce(e.op, bare(e.body), found[BOUND]))
    left = left.xreplace({h: s for h, s in found.items() if isinstance(h, Hole)})
    right = rule.replacement(found) if callable(rule.replacement) else rule.replacement.xreplace(found)
    both = [elementary(e) for e in (left, right)]
    return both[0], both[1], symbols | {s.name: s for e in both for s in e.free_symbols if s.name.startswith("row")}


def elementary(expr: sp.Expr) -> sp.Expr:
    """Atoms expanded, reductions spelled out, reads as symbols."""
    def spell(r: Reduce) -> sp.Expr:
        terms = [nodes.substitute(r.body, {r.bound: sp.Integer(n)}) for n in range(TERMS)]
        return {"sum": sp.Add(*terms), "logsumexp": sp.log(sp.Add(*map(sp.exp, terms)))}[r.op]

    bare = sp.sympify(expr).replace(lambda e: isinstance(e, nodes.Named), lambda e: e.body)
    expr = expand_atoms(bare).replace(lambda e: isinstance(e, Reduce), spell)
    return expr.replace(lambda e: isinstance(e, Load), lambda e: sp.Symbol(f"row{e.index[0]}", real=True))


# The prover

def arms(left: sp.Expr, right: sp.Expr) -> Iterator[tuple[sp.Expr, sp.Expr]]:
    """A selection whose condition the signs do not settle: both of its arms, and that of an equation where the equation holds."""
    where = next(iter(sorted(right.atoms(Where), key=str)), None)
    if where is None:
        yield left, right
        return
    condition, this, that = where.args
    if isinstance(condition, sp.Eq) and isinstance(condition.args[0], sp.Symbol):
        there = {condition.args[0]: condition.args[1]}
        yield from arms(left.xreplace(there), right.xreplace({where: this}).xreplace(there))
    else:
        yield from arms(left, right.xreplace({where: this}))
    yield from arms(left, right.xreplace({where: that}))


def cases(left: sp.Expr, right: sp.Expr) -> Iterator[tuple[sp.Expr, sp.Expr]]:
    """The signs of every symbol that a selection or a logarithm asks about, each a case; where left has no real value, none."""
    asked = {s for e in (left, right) for part in e.atoms(Where, sp.log) for s in (
        part.condition if isinstance(part, Where) else part.args[0]).free_symbols
        if isinstance(part, Where) or part.args[0] == s}
    todo = [{}]
    for s in sorted(asked, key=str):
        p = sp.Symbol(s.name, positive=True)
        todo = [{**done, s: value} for done in todo for value in ([p] if s.is_positive else [p, sp.S.Zero, -p])]
    for case in todo:
        here = left.xreplace(case) if case else left
        if not here.has(sp.nan, sp.zoo, sp.I) and here.is_real is not False and not any(
                a.args[0].is_nonpositive for a in here.atoms(sp.log)):
            yield from arms(here, right.xreplace(case) if case else right)


def is_zero(d: sp.Expr) -> bool:
    """Is this zero for all real values of its symbols? A proof, or False."""
    positive = {s: sp.Symbol(f"E_{s.name}", positive=True) for s in d.free_symbols}

    def algebraic(e: sp.Expr) -> sp.Expr:
        """Exponentials of symbols as positive symbols, after which only algebra is left."""
        def power(node: sp.exp) -> sp.Expr:
            result = sp.S.One
            for term in sp.Add.make_args(sp.expand(node.args[0])):
                count, rest = term.as_coeff_Mul()
                result *= positive[rest]**count if rest in positive else sp.exp(term)
            return result
        return e.replace(lambda n: isinstance(n, sp.exp), power)

    def same(e: sp.Expr) -> bool:
        return e == 0 or sp.simplify(e) == 0 or sp.simplify(algebraic(e)) == 0 or sp.simplify(sp.expand_log(e)) == 0 or (
            e.has(sp.tanh, sp.cosh, sp.cos) and sp.simplify(algebraic(e.rewrite(sp.exp))) == 0)

    if same(d):
        return True
    for s in sorted(d.free_symbols, key=str):                             # constant in s, and zero at a point of its domain
        if same(sp.diff(d, s)):
            return is_zero(d.subs(s, sp.S.One if s.is_positive else sp.S.Zero))
    return False


def proved(left: sp.Expr, right: sp.Expr) -> bool:
    """Do both sides agree wherever the left is a real number?"""
    found = list(cases(left, right))
    return bool(found) and all(is_zero(a - b) for a, b in found)


@by_rule
def test_rule_is_an_identity(rule: Rule) -> None:
    left, right, _ = sides(rule)
    assert not rule.unsound and proved(left, right)


def mutants(expr: sp.Expr) -> Iterator[sp.Expr]:
    """What slips of the pen would make of an expression: one node changed, for every node and every change of its kind."""
    yield -expr
    yield expr + sp.Rational(1, 10**6)
    yield expr * sp.Rational(1000001, 1000000)
    for path, node in places(expr, ()):
        for wrong in slips(node):
            yield put(expr, path, wrong)


def places(expr: sp.Basic, path: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], sp.Expr]]:
    """Every sub-expression that is a number, and where it stands; conditions between equal arms may be anything."""
    if isinstance(expr, sp.Expr):
        yield path, expr
    for k, arg in enumerate(expr.args):
        if not isinstance(arg, sp.logic.boolalg.Boolean):
            yield from places(arg, (*path, k))


def put(expr: sp.Basic, path: tuple[int, ...], new: sp.Expr) -> Any:
    """The expression with another one at a place."""
    return new if not path else expr.func(*(put(a, path[1:], new) if k == path[0] else a for k, a in enumerate(expr.args)))


def slips(node: sp.Expr) -> Iterator[sp.Expr]:
    """The changes of one node: a number off by one, a term or factor dropped or of the other sign, a function of something else."""
    match node:
        case sp.Integer() | sp.Rational():
            yield node + 1
            yield -node
        case sp.Symbol():
            yield 2 * node
            yield -node
        case sp.Add() | sp.Mul():
            for k, part in enumerate(node.args):
                rest = [p for n, p in enumerate(node.args) if n != k]
                yield node.func(*rest)
                yield node.func(*rest, -part)
        case Where():
            yield Where(node.args[0], node.args[2], node.args[1])
        case sp.Function() | sp.exp():
            yield node.func(2 * node.args[0])
            yield node.func(-node.args[0])
            yield node.func(node.args[0] + sp.Rational(1, 1000))


def false_mutants(rule: Rule) -> tuple[sp.Expr, dict[str, sp.Symbol], list[sp.Expr]]:
    """The left side of a rule, its symbols, and the mutants of its right side that the point check tells from it."""
    left, right, symbols = sides(rule)
    points = [point(rule, symbols, seed) for seed in range(100, 116)]
    truth = [ball(left, p) for p in points]
    false = []
    for wrong in dict.fromkeys(mutants(right)):
        if wrong.has(sp.zoo, sp.nan):
            continue
        with suppress(TypeError):                                        # a condition that has become a number
            if any(t is not None and not agree(t, ball(wrong, p)) for t, p in zip(truth, points, strict=True)):
                false.append(wrong)
    return left, symbols, false


@by_rule
def test_false_variants_are_rejected_at_points(rule: Rule) -> None:
    """Nearly all mutants; the others are the same function, as a sum with its terms swapped is, or agree where the left is defined."""
    _, _, false = false_mutants(rule)
    assert len(false) >= 4
    _, right, _ = sides(rule)
    assert len(false) >= 0.6 * len(set(mutants(right)))


@by_rule
def test_false_variants_are_not_proved(rule: Rule) -> None:
    left, _, false = false_mutants(rule)
    few = 2 if rule.pattern.has(Reduce, sp.tanh, sp.cosh) or rule.given else 5        # sums of exponentials take long to tell apart
    for wrong in false[::max(1, len(false) // few)][:few]:
        assert not proved(left, wrong), f"{left} is not {wrong}"


@pytest.mark.slow
@by_rule
def test_no_false_variant_is_proved(rule: Rule) -> None:
    left, _, false = false_mutants(rule)
    for wrong in false[:40]:
        assert not proved(left, wrong), f"{left} is not {wrong}"


# Random points, by the order of floats, so that tiny and large are as likely as ordinary

def ordinal(x: float) -> int:
    n = struct.unpack("<q", struct.pack("<d", x))[0]
    return n if n >= 0 else -(n & 0x7FFFFFFFFFFFFFFF)


def from_ordinal(n: int) -> float:
    return struct.unpack("<d", struct.pack("<q", n))[0] if n >= 0 else -struct.unpack("<d", struct.pack("<q", -n))[0]


def draw(rng: np.random.Generator, low: float, high: float) -> float:
    """A float between two others: by ordinal, or, half of the time, uniformly."""
    if rng.random() < 0.5:
        return float(rng.uniform(max(low, -40), min(high, 40)))
    return from_ordinal(int(rng.integers(ordinal(low), ordinal(high) + 1)))


def point(rule: Rule, symbols: dict[str, sp.Symbol], seed: int) -> dict[sp.Symbol, float]:
    """A value for each symbol in the ranges of the rule; for some seeds they are all near each other."""
    rng = np.random.default_rng(seed)
    ranges = {name: (low, high) for name, low, high in rule.ranges}
    limits = {s: ranges.get(name, (1e-300, 1e3) if s.is_positive else (-1e3, 1e3)) for name, s in symbols.items()}
    found = {s: draw(rng, *limit) for s, limit in limits.items()}
    if seed % 4 == 3:
        first = next(iter(found.values()))
        found = {s: min(max(first * (1 + rng.uniform(-1, 1) * 2.0**-9), limits[s][0]), limits[s][1]) for s in found}
    return found


def selections(expr: sp.Expr) -> sp.Expr:
    """Where as SymPy's Piecewise, which turns into Python's `if`."""
    return expr.replace(lambda e: isinstance(e, Where), lambda e: sp.Piecewise((e.args[1], e.args[0]), (e.args[2], True)))


@cache
def compiled(expr: sp.Expr) -> tuple[list[sp.Symbol], Any]:
    symbols = sorted(expr.free_symbols, key=str)
    return symbols, sp.lambdify(symbols, selections(expr), "mpmath")


def value(expr: sp.Expr, at: dict[sp.Symbol, float]) -> Any:
    """A number at the precision of the moment; NaN where it is not real."""
    symbols, function = compiled(expr)
    try:
        result = mpmath.mpmathify(function(*(mpmath.mpf(at[s]) for s in symbols)))
    except (ZeroDivisionError, ValueError):
        return mpmath.nan
    return mpmath.nan if isinstance(result, mpmath.mpc) else result


def close(a: Any, b: Any) -> bool:
    return bool(a == b or abs(a - b) <= mpmath.mpf(10)**-30 * max(abs(a), abs(b)))


Known = tuple[float, float]


def ball(expr: sp.Expr, at: dict[sp.Symbol, float]) -> Known | None:
    """The exact value at a point, by balls, as a number and what is left over; None where it is no finite number, or is not settled."""
    reads = {s: Load(nodes.Tensor(nodes.TensorRecord(s.name))) for s in at}
    value_ = modern(sp.sympify(expr).xreplace(reads))
    inputs = tuple(nodes.tensors(value_))
    form = Checked(Loss(value_), (), value_ if inputs else value_ + 0 * next(iter(reads.values())), sp.S.One, inputs, (), (), ())
    try:
        found = exact(form, {s.name: np.array([v]) for s, v in at.items() if reads[s].tensor in inputs}, {}, reduction="none", wrt=[]).value
    except OracleError:
        return None
    high, low = np.ravel(found.high)[0], np.ravel(found.low)[0]
    return (float(high), float(low)) if np.isfinite(high) else None


def agree(a: Known, b: Known | None) -> bool:
    """Are two exact values the same, as far as both are known?"""
    return b is not None and abs((a[0] - b[0]) + (a[1] - b[1])) <= 2.0**-60 * abs(a[0])


@by_rule
def test_rule_at_random_points(rule: Rule) -> None:
    """In ball arithmetic both sides agree, and the right one is a number wherever the left one is."""
    left, right, symbols = sides(rule)
    compared = 0
    edges = [dict.fromkeys(symbols.values(), v) for v in (0.0, 1.0, -1.0, 5e-324, 1e3) if v > 0 or not any(
        s.is_positive for s in symbols.values())]
    for at in [*edges, *(point(rule, symbols, seed) for seed in range(80))]:
        a = ball(left, at)
        if a is not None:
            b = ball(right, at)
            assert agree(a, b), f"{rule.name}: {at}: {a} and {b}"
            compared += 1
    assert compared >= 20


# What is no rule

@pytest.mark.parametrize("rule", DISABLED, ids=[r.name for r in DISABLED])
def test_a_counterexample_refutes_its_rule(rule: Rule) -> None:
    """At the point that the table gives, the left side is a number, and the right one is another or none; and it is never taken."""
    left, right, symbols = sides(rule)
    at = {symbols[name]: v for name, v in rule.counterexample}
    truth = ball(left, at)
    assert rule.unsound and set(at) == set(symbols.values()) and truth is not None
    assert not agree(truth, ball(right, at))
    assert ball(right, at) is None or not proved(left, right)
    assert rewrite(rule.pattern.xreplace({h: Load(nodes.Tensor(nodes.TensorRecord(h.name))) for h in rule.pattern.atoms(Hole)}),
                   (rule,))[1] == []
    with pytest.raises(LosscompError, match="which is false"):
        asked_for((rule.name,))


def test_rules_that_are_not_there_are_errors() -> None:
    with pytest.raises(LosscompError, match="which is no rule") as caught:
        compile_loss(Loss(s**2, rewrites=("difference of square",)).called("wished"))
    assert "'difference of squares'" in str(caught.value)


def test_offered_rules_are_taken_where_they_are_asked_for() -> None:
    for wanted in ((), ("difference of squares",)):
        made = compile_loss(Loss(s**2 - t**2, rewrites=wanted).called("asked"))[0]
        steps = made.stabilising["value", "loss"]
        assert [step.rule for step in steps] == list(wanted)
        assert steps == [] or steps[0].after == (s - t) * (s + t)


# Every rule and procedure fires, and procedures keep the value

CLASSES = axis("classes")
c = CLASSES.index()
x, z, y = tensor("x", CLASSES), tensor("z", CLASSES), index("y", into=CLASSES)
s, t, p = tensor("s"), tensor("t"), tensor("p", positive=True)
U, V = (named(name, v[c] / Norm(v[c], c, plus=sp.Rational(1, 64))) for name, v in (("u", x), ("v", z)))
CHANCE = named("chance", p / (2 + p))
LOG_P = table("log_p", c, log(exp(x[c]) / Sum(exp(x[c]), c)))
PART = param("part", default=0.25, between=(0, 1))
WIDTH = param("width", default=1.5, positive=True)
POWER = param("power", default=1.5, between=(1, 2))
EXAMPLES: dict[str, Loss] = {name: loss.called(name) for name, loss in {
    "label": Loss(-LOG_P(y)),
    "soft_labels": Loss(-Sum(z[c] * LOG_P(c), c)),
    "share": Loss((1 - exp(x[y]) / Sum(exp(x[c]), c))**2),
    "logistic": Loss(log(1 + exp(s)) - s * t),
    "even_labels": Loss(-Sum(Where(z[c] > 0, 1, 0) * LOG_P(c), c)),
    "two_softmaxes": Loss(-LOG_P(y) / 2 - log(exp(x[y] + z[y]) / Sum(exp(x[c] + z[c]), c)) / 2),
    "even_odds": Loss(log(1 + exp(s)) - s * t, rewrites=("sigmoids at even odds",)),
    "mass": Loss(log(Sum(exp(x[c]), c))),
    "line": Loss(s - log(1 + exp(s))),
    "line_of_a_name": Loss(named("gap", s - named("mass", log(1 + exp(s))))**2),
    "probability": Loss(1 / (1 + exp(-s)) - t),
    "sigmoids": Loss(exp(s) / (1 + exp(s)) * t + log(1 / (1 + exp(-s))) + (1 - 1 / (1 + exp(s)))**2),
    "entropy": Loss(p * log(p) - p * s),
    "powers": Loss(log(p**3) + log(p / (1 + exp(s))) + log(1 + p)),
    "growth": Loss(exp(s) - s + t * (exp(t) - 1)),
    "series": Loss(exp(s) - 1 - s + log(1 + p) - p + log(1 - exp(-p))),
    "bowl": Loss(log(sp.cosh(s)) + log(exp(t) / 2 + exp(-t) / 2)),
    "bowl_of_softplus": Loss((s - t) + log(1 + exp(-2 * (s - t))) - log(2)),
    "two": Loss(log(exp(s) + exp(t)) + (1 - tanh(s)) * t + (1 + tanh(t)) / 2),
    "pseudo_huber": Loss(4 * (sp.sqrt(1 + (s / 2)**2) - 1)),
    "arcs": Loss(sp.sqrt(s**2 + 9) + tanh(s) * t),
    "arcs_of_a_parameter": Loss(sp.sqrt(s**2 + WIDTH**2) - WIDTH),
    "arcs_in_units": Loss(WIDTH**2 * (sp.sqrt(1 + (s / WIDTH)**2) - 1)),
    "softplus_of_a_parameter": Loss(log(1 + WIDTH * exp(s))),
    "bell": Loss(t * (sp.sqrt(2) * exp(-s**2) - 1)),
    "decay": Loss(s + t * exp(-s)),
    "power": Loss(p**(2 - POWER) / (2 - POWER) - p**(1 - POWER) / (1 - POWER)),
    "waiting": Loss(log(p) + Abs(s) / p),
    "halves": Loss(exp(s / 2) / (exp(s / 2) + exp(-s / 2)) * t),
    "line_of_a_product": Loss(-log(exp(-s) / (1 + exp(-s)))),
    "turn": Loss(1 - sp.cos(s)),
    "bend": Loss(1 / (1 + exp(-2 * s)) - log(1 - exp(-p))),
    "logs": Loss((log(1 + p) - log(1 + s**2 + p))**2 + log(p / (s**2 + p))),
    "ratio": Loss((log(p) - log(p + s**2))**2),
    "offers": Loss((s**2 - t**2)**2 + (sp.sqrt(p) - sp.sqrt(p + s**2))**2 + (1 / (1 + exp(-s)))**p, rewrites=tuple(
        r.name for r in RULES if r.offered)),
    "quotient": Loss((1 - s / t)**2),
    "hinged": Loss(Hinge(1 - s, tie=0)**2),
    "angle": Loss(1 - Sum(U * V, c)),
    "plain_angle": Loss(1 - Sum(x[c] * z[c] / (Norm(x[c], c) * Norm(z[c], c)), c)),
    **{f"distances_{k}": Loss(Hinge(1 + Norm(x[c] - z[c], c, k) - Norm(x[c] - 2 * z[c], c, k), tie=1)) for k in (1, 2, 3, oo)},
    "named_distances": Loss(Hinge(1 + Norm(named("near", x[c] - z[c]), c) - Norm(named("far", x[c] - 2 * z[c]), c), tie=1)),
    **{f"swapped_{k}": Loss(Hinge(1 + Norm(x[c] - z[c], c, k) - Min(Norm(x[c] - 2 * z[c], c, k), Norm(z[c] - 3 * x[c], c, k), tie=0),
                                  tie=1)) for k in (2, 3)},
    "shares": Loss(-Sum(z[c] * log(clip(x[c] / Sum(x[c], c), sp.Rational(1, 64), sp.Rational(63, 64))), c)),
    "chances": Loss(-t * log(CHANCE) - (1 - t) * log(1 - CHANCE)),
    "tails": Loss(t * p * log(1 + exp(-s)) + (1 - t) * log(1 + exp(s))),
    "labels": Loss(Sum(z[c] * log(1 + exp(-x[c])) + (1 - z[c]) * log(1 + exp(x[c])), c)),
    "teacher": Loss(LogSumExp(x[c], c) - LogSumExp(z[c], c) - Sum(exp(z[c] - LogSumExp(z[c], c)) * (x[c] - z[c]), c)),
    "capped": Loss(-log(exp(3 * tanh(x[y])) / Sum(exp(3 * tanh(x[c])), c))),
    "overlap": Loss(1 - (Sum(x[c] * z[c], c) + p) / (Sum(x[c] * z[c], c) + Sum(x[c]**2, c) + p)),
    "mixture": Loss(PART * exp(s) * s + (1 - PART) * exp(t) * t
                    - (PART * exp(s) + (1 - PART) * exp(t)) * log(PART * exp(s) + (1 - PART) * exp(t))),
    "mixed": Loss(t * log(1 + exp(s)) + (1 - t) * log(1 + exp(s)) + log(1 + exp(s)) * (s + 1) * t - s * t * log(1 + exp(s))),
}.items()}


@cache
def example(name: str) -> Compiled:
    return compile_loss(EXAMPLES[name])[0]


def test_every_rule_fires() -> None:
    fired = {("smooth", step.rule) for name in EXAMPLES for step in example(name).smoothing}
    fired |= {("stabilise", step.rule) for name in EXAMPLES for steps in example(name).stabilising.values() for step in steps}
    assert {(r.purpose, r.name) for r in RULES} <= fired
    assert all(r.purpose == "smooth" for r in SMOOTHING) and all(r.purpose == "stabilise" for r in STABILISING)


def test_rewriting_ends_and_is_settled() -> None:
    for name in EXAMPLES:
        for formula in example(name).stable:
            for output in formula.outputs:
                assert rewrite(output.expr, STABILISING, EXAMPLES[name].rewrites)[0] == output.expr, (name, formula.name)


def exactly(expr: sp.Expr, like: Compiled, arrays: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """The exact value of an expression, for each sample and each position of its free index."""
    loose = sorted(nodes.free_indices(expr), key=str)
    parts = []
    for n in range(4 if loose else 1):
        here = nodes.substitute(gated(elementary_rejections(expr)), {i: sp.Integer(n) for i in loose})
        tensors = tuple(nodes.tensors(sp.sympify(here)))
        form = replace(like.form, value=here, weight=sp.S.One, inputs=tensors, params=(), wrt=(), differentiable=())
        given = {u.name: arrays[u.name] if u.name in arrays else stand_in(u) for u in tensors}
        if not any(u.record.per_sample for u in tensors):
            continue
        parts.append(exact(form, given, {}, reduction="none", wrt=[]).value)
    return np.array([e.high for e in parts]), np.array([e.low for e in parts])


def elementary_rejections(expr: Any) -> Any:
    """Rejections and what is eliminated as the formulas that they stand for."""
    kinds = (Rejection, Eliminated)
    return expr.replace(lambda e: isinstance(e, kinds), lambda e: elementary_rejections(e.meaning)) if expr.has(*kinds) else expr


def gated(expr: Any) -> Any:
    """Products with steps as lowering has them: 0 where a step is, whatever the other factors are."""
    if not expr.args or not expr.has(step):
        return expr
    new = expr.func(*map(gated, expr.args))
    steps = [f for f in sp.Mul.make_args(new) if isinstance(f, step)] if isinstance(new, sp.Mul) else []
    return Where(sp.And(*(f.args[0] >= 0 for f in steps), evaluate=False), new, 0) if steps else new


def stand_in(made: nodes.Tensor) -> np.ndarray:
    """Numbers for a scale or a direction, the same for both sides."""
    rng = np.random.default_rng(sum(map(ord, made.name)))
    return rng.normal(size=(3, 4) if made.record.axes else 3)


@pytest.mark.parametrize("procedure", PROCEDURES, ids=[r.name for r in PROCEDURES])
def test_procedure_keeps_the_value(procedure: Procedure) -> None:
    """Every step that it takes on the derivatives of the examples, exactly: ordinary, saturated, tied."""
    seen = 0
    rng = np.random.default_rng(3)
    rows = [rng.normal(size=(3, 4)), rng.normal(size=(3, 4)) * 30, np.array([[1.0, 1, 1, 1], [2, 2, -5, 0], [0, 90, 0, 90]])]
    for name in EXAMPLES:
        made = example(name)
        taken = [made.smoothing] if procedure.purpose == "smooth" else made.stabilising.values()
        steps = {(step.before, step.after) for steps in taken for step in steps if step.rule == procedure.name}
        for before, after in sorted(steps, key=str)[:4]:
            for x_ in rows:
                arrays = {"x": x_, "z": rng.normal(size=(3, 4)), "y": np.array([0, 3, 1]), "s": x_[:, 0], "t": x_[:, 1] + 0.5,
                          "p": np.exp(x_[:, 2] / 10)}
                (a, a_low), (b, b_low) = (exactly(e, made, arrays) for e in (before, after))
                with np.errstate(all="ignore"):
                    same = np.abs((a - b) + (a_low - b_low)) <= 2.0**-60 * np.abs(a)
                assert np.all(same | np.isnan(a)) and np.isfinite(a).mean() > 0.5, f"{name}: {before} is not {after}"
            seen += 1
    assert seen, f"{procedure.name} was never used"


def variants(expr: sp.Expr) -> Iterator[sp.Expr]:
    """What slips of the pen would make of a formula with reductions and names in it."""
    yield -expr
    yield expr + sp.Rational(1, 10**6)
    inside = {e for e in sp.preorder_traversal(expr) if isinstance(e, sp.Add | sp.Mul | Where)}
    for node in sorted(inside, key=sp.default_sort_key):
        for wrong in slips(node):
            yield with_another(expr, node, wrong)


def with_another(expr: Any, node: sp.Expr, wrong: sp.Expr) -> Any:
    """The formula with another one in the place of a part, below binders too."""
    if expr == node:
        return wrong
    if not expr.args or isinstance(expr, nodes.Index | nodes.Axis):
        return expr
    return expr.func(*(with_another(a, node, wrong) for a in expr.args))


@pytest.mark.parametrize("procedure", PROCEDURES, ids=[r.name for r in PROCEDURES])
def test_false_variants_of_a_procedure_are_rejected(procedure: Procedure) -> None:
    """Most of what slips make of its shortest step; the others are in arms that no input here reaches, or the same function. Vectors
    are nearly parallel, as z is small."""
    made, step = min(((example(name), step) for name in EXAMPLES for steps in (
        example(name).smoothing, *example(name).stabilising.values()) for step in steps if step.rule == procedure.name),
        key=lambda found: len(str(found[1].after)))
    rng = np.random.default_rng(3)
    arrays = {"x": rng.normal(size=(3, 4)), "z": rng.normal(size=(3, 4)) / 64, "y": np.array([0, 3, 1]), "s": rng.normal(size=3),
              "t": rng.normal(size=3), "p": np.exp(rng.normal(size=3))}
    right = exactly(step.before, made, arrays)[0]
    wrong = [w for w in dict.fromkeys(variants(step.after)) if w != step.after and not w.has(sp.nan, sp.zoo)]
    wrong = wrong[::max(1, len(wrong) // 8)]
    assert len(wrong) >= 2 and sum(rejected_at(w, right, made, arrays) for w in wrong) >= len(wrong) / 2


def rejected_at(wrong: sp.Expr, right: np.ndarray, made: Compiled, arrays: dict[str, Any]) -> bool:
    """Does a formula differ from the exact values, or have none?"""
    try:
        return not np.allclose(exactly(wrong, made, arrays)[0], right, rtol=1e-9, atol=0)
    except (OracleError, LosscompError, TypeError, ValueError):
        return True


def test_rewriting_without_an_end_is_stopped() -> None:
    one, two = sp.Symbol("one", real=True), sp.Symbol("two", real=True)
    turns = Procedure("turn", lambda e: e.subs({one: two, two: one}, simultaneous=True) if isinstance(e, sp.exp) else None, "nothing")
    with pytest.raises(LosscompError, match="does not end") as caught:
        rewrite(sp.exp(one), (turns,))
    assert "turn" in str(caught.value) and "undo each other" in str(caught.value)
    inside = Procedure("inside", lambda e: 1 + sp.exp(e) if isinstance(e, sp.exp) else None, "nothing")
    with pytest.raises(LosscompError, match="does not end"):
        rewrite(sp.exp(one), (inside,))


def test_rewriting_that_swells_is_stopped() -> None:
    """A rule that doubles an expression would take all memory long before its two hundredth step."""
    s_ = sp.Symbol("s", real=True)
    swell = Procedure("swell", lambda e: sp.exp(e.args[0] * (1 + sp.sin(e.args[0]))) if isinstance(e, sp.exp) else None, "nothing")
    with pytest.raises(LosscompError, match="swells") as caught:
        rewrite(sp.exp(s_), (swell,))
    assert "'swell'" in str(caught.value) and "condition" in str(caught.value)
    right = Rule("right", sp.exp(Hole("x")) * 2, lambda found: found[Hole("x")], "nothing")
    after, steps = rewrite_within(2 * sp.exp(s_), (swell, right))
    assert after == s_ and [(step.rule, step.before == step.after) for step in steps] == [("swell", True), ("right", False)]


def test_a_false_procedure_would_be_seen() -> None:
    made = example("label")
    step = next(s for steps in made.stabilising.values() for s in steps if s.rule == "softmax minus one-hot")
    arrays = {"x": np.random.default_rng(1).normal(size=(3, 4)), "y": np.array([0, 3, 1])}
    right, _ = exactly(step.before, made, arrays)
    for wrong in (-step.after, step.after + sp.Rational(1, 10**6), step.after * 2):
        assert not np.allclose(exactly(wrong, made, arrays)[0], right, rtol=1e-9, atol=0)
    assert np.allclose(exactly(plain(step.after), made, arrays)[0], right, rtol=1e-15, atol=0)


# Atoms

def atom_arguments(name: str, count: int, seed: int) -> dict[str, np.ndarray]:
    """Points in the ranges of an atom; the value at a tie is a half, and ties occur."""
    atom, rng = ATOMS[name], np.random.default_rng(seed)
    ranges = [*atom.ranges, *[atom.ranges[0]] * (len(atom.slopes) - len(atom.ranges))]
    found = {}
    for k, (low, high) in enumerate(ranges):
        found[f"arg{k}"] = np.array([draw(rng, low, high) for _ in range(count)])
    if name in ("step", "hinge", "larger", "smaller"):
        found[f"arg{len(atom.slopes) - 1}"] = rng.choice([0.0, 0.5, 1.0], count)
        found["arg0"][::7] = 0.0 if name in ("step", "hinge") else found["arg1"][::7]
    if name == "same":
        found["arg1"][::3] = found["arg0"][::3]
    if atom.ranges[0][0] <= 0:
        found["arg0"][1] = 0.0
    return found


def applied(name: str) -> Loss:
    arguments = [tensor(f"arg{k}") for k in range(len(ATOMS[name].slopes))]
    return Loss(FUNCTIONS[name](*arguments), name=f"atom_{name.lower()}", doc=name)


@pytest.fixture(scope="module")
def spelled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return library([applied(name) for name in ATOMS], tmp_path_factory.mktemp("atoms"), "atomlib", "-O0")


@pytest.mark.parametrize("name", ATOMS)
def test_atom_is_spelled_as_it_means(name: str, spelled: dict[str, Any]) -> None:
    """Every target within a few ULP of the meaning, evaluated with hundreds of digits."""
    loss, arrays = applied(name), atom_arguments(name, 120, 5)
    symbols = sp.symbols(" ".join(arrays) + ",", real=True)
    with mpmath.workdps(1000):
        truth = [value(expand_atoms(FUNCTIONS[name](*symbols)), dict(zip(symbols, row, strict=True)))
                 for row in zip(*arrays.values(), strict=True)]
        assert all(mpmath.isfinite(v) for v in truth)
        high = np.array([float(v) for v in truth])
        oracle = exact(check(loss)[0], arrays, {}, reduction="none", wrt=[]).value
        np.testing.assert_array_equal(oracle.high, high)
        for target, module in spelled.items():
            with np.errstate(all="ignore"):
                got = getattr(module, loss.name)(**arrays, reduction="none")
            assert np.max(ulp_error(got, oracle, np.float64)) <= 4, target


@pytest.mark.parametrize("name", ATOMS)
def test_slopes_of_an_atom(name: str) -> None:
    """The stated slope is the derivative of the meaning, off the kinks."""
    rng = np.random.default_rng(9)
    symbols = sp.symbols(f"a0:{len(ATOMS[name].slopes)}", real=True)
    for k, slope in enumerate(ATOMS[name].slopes):
        if slope is None:
            continue
        meaning, stated = (expand_atoms(sp.sympify(f(*symbols))) for f in (ATOMS[name].meaning, slope))
        stated = expand_atoms(stated)
        for _ in range(25):
            at = dict(zip(symbols, rng.uniform(0.05, 6, len(symbols)) * rng.choice(
                [-1.0, 1.0] if ATOMS[name].ranges[0][0] <= -1 else [1.0], len(symbols)), strict=True))
            if name in ("abs_power", "signed_power"):
                at[symbols[1]] = abs(at[symbols[1]])
            if name in ("log_mixture", "entropy_gap"):                       # the share of a part
                at[symbols[-1]] = abs(at[symbols[-1]]) / 7
            with mpmath.workdps(60):
                along = lambda v, k=k, at=at, meaning=meaning: value(meaning, {**at, symbols[k]: v})
                measured = mpmath.diff(along, at[symbols[k]], h=mpmath.mpf(10)**-25)
                assert abs(measured - value(stated, at)) <= 1e-18 * (1 + abs(measured)), (at, k)

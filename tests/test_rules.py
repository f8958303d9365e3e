"""Every rule is proved from the table that holds it, false variants are not, and every atom is what it says."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import islice, pairwise
from typing import Any

import mpmath
import numpy as np
import pytest
import sympy as sp
from support import library

from losscomp import nodes
from losscomp.atoms import ATOMS, FUNCTIONS, expand_atoms
from losscomp.check import check
from losscomp.errors import LosscompError
from losscomp.language import Hinge, Loss, Norm, Sum, axis, exp, index, log, named, oo, table, tensor
from losscomp.nodes import Load, Reduce, Rejection, Where
from losscomp.oracle import exact, ulp_error
from losscomp.pipeline import Compiled, compile_loss, plain
from losscomp.rewrite import BOUND, Hole, Over, Procedure, Rule, rewrite, rewrite_within
from losscomp.rules import RULES, SMOOTHING, STABILISING

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

    expr = expand_atoms(sp.sympify(expr)).replace(lambda e: isinstance(e, Reduce), spell)
    return expr.replace(lambda e: isinstance(e, Load), lambda e: sp.Symbol(f"row{e.index[0]}", real=True))


# The prover

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
            yield here, right.xreplace(case) if case else right


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
        return e == 0 or sp.simplify(e) == 0 or sp.simplify(algebraic(e)) == 0 or sp.simplify(sp.expand_log(e)) == 0

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


def variants(right: sp.Expr) -> Iterator[tuple[str, sp.Expr]]:
    """What a slip of the pen would make of a right side."""
    symbols = sorted(right.free_symbols, key=str)
    yield "sign", -right
    yield "constant", right + sp.Rational(1, 10**6)
    yield "factor", right * sp.Rational(1000001, 1000000)
    for s in symbols:
        yield f"twice {s}", right.xreplace({s: 2 * s})
        yield f"minus {s}", right.xreplace({s: -s})
    for a, b in pairwise(symbols):
        yield f"{a} and {b} swapped", right.xreplace({a: b, b: a})
    yield "logarithm", right.replace(lambda e: isinstance(e, sp.log), lambda e: sp.log(e.args[0] + sp.Rational(1, 1000)))
    yield "derivative", sp.diff(right, symbols[0]) if not right.has(Where) else right + symbols[0]


@by_rule
def test_false_variants_are_rejected(rule: Rule) -> None:
    left, right, symbols = sides(rule)
    rejected = 0
    some = 4 if rule.pattern.has(Reduce) else None                       # sums of exponentials take long to tell apart
    for what, wrong in islice(variants(right), some):
        points = [point(rule, symbols, seed) for seed in range(100, 112)]
        with mpmath.workdps(60):
            if all(close(value(wrong, p), value(right, p)) for p in points):
                continue                                                 # the same function: a sum with its terms swapped
        assert not proved(left, wrong), what
        rejected += 1
    assert rejected >= 3


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
    """A value for each symbol in the ranges of the rule."""
    rng = np.random.default_rng(seed)
    ranges = {name: (low, high) for name, low, high in rule.ranges}
    return {s: draw(rng, *ranges.get(name, (1e-300, 1e3) if s.is_positive else (-1e3, 1e3))) for name, s in symbols.items()}


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


@by_rule
def test_rule_at_random_points(rule: Rule) -> None:
    """Both sides agree; and the right one is a number wherever the left one is."""
    left, right, symbols = sides(rule)
    compared = 0
    edges = [dict.fromkeys(symbols.values(), v) for v in (0.0, 1.0, -1.0, 5e-324, 1e3) if v > 0 or not any(
        s.is_positive for s in symbols.values())]
    with mpmath.workdps(1400):
        for at in [*edges, *(point(rule, symbols, seed) for seed in range(60))]:
            a, b = value(left, at), value(right, at)
            if mpmath.isfinite(a):
                assert mpmath.isfinite(b), f"{rule.name}: {at}: {a} and {b}"
                assert close(a, b), f"{rule.name}: {at}: {mpmath.nstr(a, 40)} and {mpmath.nstr(b, 40)}"
                compared += 1
    assert compared >= 20


# Every rule and procedure fires, and procedures keep the value

CLASSES = axis("classes")
c = CLASSES.index()
x, z, y = tensor("x", CLASSES), tensor("z", CLASSES), index("y", into=CLASSES)
s, t, p = tensor("s"), tensor("t"), tensor("p", positive=True)
U, V = (named(name, v[c] / Norm(v[c], c, plus=sp.Rational(1, 64))) for name, v in (("u", x), ("v", z)))
LOG_P = table("log_p", c, log(exp(x[c]) / Sum(exp(x[c]), c)))
EXAMPLES: dict[str, Loss] = {name: loss.called(name) for name, loss in {
    "label": Loss(-LOG_P(y)),
    "soft_labels": Loss(-Sum(z[c] * LOG_P(c), c)),
    "share": Loss((1 - exp(x[y]) / Sum(exp(x[c]), c))**2),
    "logistic": Loss(log(1 + exp(s)) - s * t),
    "mass": Loss(log(Sum(exp(x[c]), c))),
    "line": Loss(s - log(1 + exp(s))),
    "probability": Loss(1 / (1 + exp(-s)) - t),
    "sigmoids": Loss(exp(s) / (1 + exp(s)) * t + log(1 / (1 + exp(-s))) + (1 - 1 / (1 + exp(s)))**2),
    "entropy": Loss(p * log(p) - p * s),
    "powers": Loss(log(p**3) + log(p / (1 + exp(s))) + log(1 + p)),
    "growth": Loss(exp(s) - s + t * (exp(t) - 1)),
    "quotient": Loss((1 - s / t)**2),
    "hinged": Loss(Hinge(1 - s, tie=0)**2),
    "angle": Loss(1 - Sum(U * V, c)),
    "plain_angle": Loss(1 - Sum(x[c] * z[c] / (Norm(x[c], c) * Norm(z[c], c)), c)),
    **{f"distances_{k}": Loss(Hinge(1 + Norm(x[c] - z[c], c, k) - Norm(x[c] - 2 * z[c], c, k), tie=1)) for k in (1, 2, 3, oo)},
    "tails": Loss(t * p * log(1 + exp(-s)) + (1 - t) * log(1 + exp(s))),
    "labels": Loss(Sum(z[c] * log(1 + exp(-x[c])) + (1 - z[c]) * log(1 + exp(x[c])), c)),
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
                assert rewrite(output.expr, STABILISING)[0] == output.expr, (name, formula.name)


def exactly(expr: sp.Expr, like: Compiled, arrays: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """The exact value of an expression, for each sample and each position of its free index."""
    loose = sorted(nodes.free_indices(expr), key=str)
    parts = []
    for n in range(4 if loose else 1):
        here = nodes.substitute(elementary_rejections(expr), {i: sp.Integer(n) for i in loose})
        tensors = tuple(nodes.tensors(sp.sympify(here)))
        form = replace(like.form, value=here, weight=sp.S.One, inputs=tensors, params=(), wrt=(), differentiable=())
        given = {u.name: arrays[u.name] if u.name in arrays else stand_in(u) for u in tensors}
        if not any(u.record.per_sample for u in tensors):
            continue
        parts.append(exact(form, given, {}, reduction="none", wrt=[]).value)
    return np.array([e.high for e in parts]), np.array([e.low for e in parts])


def elementary_rejections(expr: Any) -> Any:
    """Rejections as the formulas that they stand for."""
    return expr.replace(lambda e: isinstance(e, Rejection), lambda e: elementary_rejections(e.meaning)) if expr.has(Rejection) else expr


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
        steps = {(step.before, step.after) for steps in made.stabilising.values() for step in steps
                 if step.rule == procedure.name}
        for before, after in sorted(steps, key=str)[:4]:
            for x_ in rows:
                arrays = {"x": x_, "z": rng.normal(size=(3, 4)), "y": np.array([0, 3, 1]), "s": x_[:, 0], "t": x_[:, 1] + 0.5,
                          "p": np.exp(x_[:, 2] / 10)}
                (a, a_low), (b, b_low) = (exactly(e, made, arrays) for e in (before, after))
                with np.errstate(all="ignore"):
                    assert np.all(np.abs((a - b) + (a_low - b_low)) <= 2.0**-60 * np.abs(a)), f"{name}: {before} is not {after}"
            seen += 1
    assert seen, f"{procedure.name} was never used"


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
            with mpmath.workdps(60):
                along = lambda v, k=k, at=at, meaning=meaning: value(meaning, {**at, symbols[k]: v})
                measured = mpmath.diff(along, at[symbols[k]], h=mpmath.mpf(10)**-25)
                assert abs(measured - value(stated, at)) <= 1e-18 * (1 + abs(measured)), (at, k)

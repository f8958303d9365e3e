"""SymPy to the intermediate form. Branches, shifts and the order of evaluation are decided here; SymPy ends here."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from functools import reduce as fold
from typing import Any

import sympy as sp

from . import atoms, nodes
from .errors import LoweringError
from .inside import surely_inside
from .ir import SAMPLE, Const, Load, Node, Number, Op, Param, Reduce, Size, Var, free, kind_of

ZERO, ONE = Const(0), Const(1)
Env = Mapping[nodes.Index, Var]

RELATIONS: dict[type, str] = {
    sp.StrictLessThan: "lt", sp.LessThan: "le", sp.StrictGreaterThan: "gt", sp.GreaterThan: "ge",
    sp.Equality: "eq", sp.Unequality: "ne", sp.And: "and", sp.Or: "or", sp.Not: "not",
}
DIRECT: dict[type, str] = {
    sp.log: "log", sp.tanh: "tanh", sp.erf: "erf", sp.sin: "sin", sp.cos: "cos", sp.sinh: "sinh", sp.cosh: "cosh",
    sp.atan: "atan",
    **{atoms.FUNCTIONS[name]: name for name in ("softplus", "sigmoid", "log1p", "expm1", "expm1mx", "xlogy", "inverse_root", "binade",
                                                "abs_power", "signed_power")},
    atoms.Abs: "abs", atoms.Sign: "sign", atoms.root: "sqrt", sp.Mod: "remainder",
}
# The same, where NaN has to pass: the comparison is false for NaN, and the other arm carries it.
BRANCHES: dict[type, Callable[..., Node]] = {
    atoms.hinge: lambda z, tie: where(Op("lt", (z, ZERO)), ZERO, z),
    atoms.step: lambda z, tie: Op("step", (z, tie)),
    atoms.larger: lambda a, b, tie: op("larger", a, b),
    atoms.smaller: lambda a, b, tie: op("smaller", a, b),
    atoms.same: lambda a, b: where(Op("eq", (a, b)), ONE, ZERO),
}
FOLDED: dict[str, Callable[[Fraction, Fraction], Fraction]] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "div": operator.truediv,
}
# Functions that overflow or vanish, and the operation that multiplies by them without losing what is left of the product.
TAILS: dict[str, str] = {"exp": "times_exp", "sigmoid": "times_sigmoid"}
REAL_OPERANDS = frozenset({"add", "sub", "mul", "lt", "le", "gt", "ge", "eq", "ne", "where"})


def real(node: Node) -> Node:
    """The node as a real number; integer constants are at home among reals."""
    return Op("real", (node,)) if kind_of(node) == "int" and not isinstance(node, Const) else node


def op(name: str, *args: Node) -> Node:
    """Build an operation: fold what is trivially nothing, and join integers to reals."""
    match name, args:
        case "add" | "sub" | "mul" | "div", (Const(p, q), Const(r, s)) if q and s and (r or name != "div"):
            exact = FOLDED[name](Fraction(p, q), Fraction(r, s))         # a division of integers means another thing in C
            return Const(exact.numerator, exact.denominator)
        case "mul", (a, b) if ONE in args:
            return b if a is ONE else a
        case "add", (a, b) if ZERO in args:
            return b if a is ZERO else a
        case "sub", (a, b) if b is ZERO:
            return a
    operands = args[1:] if name == "where" else args
    kinds = {kind_of(a) for a in operands if not isinstance(a, Const)}
    if name == "div" or name not in REAL_OPERANDS | {"neg", "and", "or", "not", "real", "integer"} or kinds == {"int", "real"}:
        args = args[:len(args) - len(operands)] + tuple(map(real, operands))
    return Op(name, args)


def irrational(expr: sp.Expr) -> Number | Const | None:
    """A formula of constants alone, as a number; None where it is infinite or says more than its number."""
    value = None if expr.is_Float else atoms.number(expr)
    if value is None or (exact := atoms.expand_atoms(expr)).is_Rational:
        return None if value is None else Const(int(exact.p), int(exact.q))
    return Number(str(value))


def summed_up(numbers: Sequence[sp.Expr], total: Callable[..., sp.Expr]) -> tuple[bool, Number]:
    """The sum or the product of constants, rounded once: whether it is negative, and its size."""
    value = atoms.number(total(*numbers))
    assert value is not None
    return bool(value < 0), Number(str(abs(value)))


def parameter(param: nodes.Param) -> Param:
    """A scalar of the signature."""
    into = param.record.into
    return Param(param.name, param.record.integer, param.record.domain.interval, into.name if into else None)


def where(condition: Node, a: Node, b: Node) -> Node:
    """A selection; between 0 or an infinity and a quotient by a positive parameter, it is the quotient."""
    for first, other, turned in ((a, b, False), (b, a, True)):
        if isinstance(first, Const) and 0 in (first.numerator, first.denominator) and (found := in_units(other)) is not None:
            return Op("div", (op("where", condition, *((found[0], first) if turned else (first, found[0]))), found[1]))
    return a if a is b else op("where", condition, a, b)


def in_units(node: Node) -> tuple[Node, Param] | None:
    """For the quotient by a positive parameter, such as a temperature: what is divided, and by what."""
    match node:
        case Op("div", (a, Param(_, False, (low, _, open_low)) as unit)) if low > 0 or (low == 0 and open_low):
            return a, unit
    return None


def exp_difference(a: Node, b: Node) -> Node:
    """exp(a - b); of two quotients by one parameter, without the rounding errors of the quotients."""
    one, other = in_units(a), in_units(b)
    if one is not None and other is not None and one[1] is other[1]:
        return Op("exp_quotient", (real(one[0]), real(other[0]), one[1]))
    return Op("exp_difference", (real(a), real(b)))


def equal(a: Node, b: Node) -> Node:
    """a = b; quotients by one parameter are equal where what is divided is."""
    one, other = in_units(a), in_units(b)
    return op("eq", one[0], other[0]) if one is not None and other is not None and one[1] is other[1] else op("eq", a, b)


def difference(a: Node, b: Node) -> Node:
    """a - b; of two quotients by one parameter, the difference is divided."""
    one, other = in_units(a), in_units(b)
    if one is not None and other is not None and one[1] is other[1]:
        return op("div", op("sub", one[0], other[0]), one[1])
    return op("sub", a, b)


def product(above: Iterable[Node], below: Iterable[Node] = (), sign: bool = False) -> Node:
    """A product of quotients, from the outermost loop inwards, so that an invariant prefix can leave the loop.

    Each factor is divided by a divisor before the factors are multiplied, and equal factors stand apart: d * d / v is
    (d / v) * d, which overflows only where the result does.
    """
    up, down = [n for n in above if n is not ONE], [n for n in below if n is not ONE]
    steps = [n for n in up if is_step(n)] if any(isinstance(n, Load | Op) and not is_step(n) for n in up) else []
    tails = [n for n in up if isinstance(n, Op) and n.name in TAILS] if len(up) > 1 else []
    for last in steps + tails:
        up.remove(last)
    late = [] if tails else delayed(up, max((len(free(n)) for n in [*up, *down]), default=0))
    for last in late:
        up.remove(last)
    depths = sorted({len(free(n)) for n in [*up, *down, *tails]})
    result: Node = ONE
    waiting: list[Node] = []
    for depth in depths:
        under = waiting + [n for n in down if len(free(n)) == depth]
        over = apart([n for n in up if len(free(n)) == depth], len(under) if tails else 0)
        plain = [n for n in over if not isinstance(n, Const)]
        for const in (n for n in over if isinstance(n, Const)):
            result = op("mul", result, const)
        if not plain and (result is ONE or isinstance(result, Const)):
            waiting = under                                              # nothing to divide yet but a constant
        else:
            waiting = []
            for k, factor in enumerate(plain):
                result = op("mul", result, op("div", factor, under[k]) if k < len(under) else factor)
            result = fold(lambda a, b: op("div", a, b), under[len(plain):], result)
        for tail in (n for n in tails if len(free(n)) == depth):         # last, by a function that knows how it over- and underflows
            result = tail if result is ONE else Op(TAILS[tail.name], (real(result), *tail.args))
    result = fold(lambda a, b: op("div", a, b), waiting, result)
    result = fold(lambda a, b: op("mul", a, b), late, result)
    for step in steps:                                                   # 0 where the step is 0, whatever the rest is
        result = where(op("lt", step.children[0], ZERO), ZERO, op("mul", result, step))
    return op("neg", result) if sign else result


def weighed(parts: list[sp.Expr]) -> list[sp.Expr]:
    """The factors of a product, where a sum of products takes what the caller weighs it with inside: the products may overflow alone.

    A weight below 1 meets the larger of two factors first, another one the smaller: no product of the two is beyond all three then.
    """
    weight = next((p for p in parts if is_weight(p)), None)
    for total in (p for p in parts if isinstance(p, nodes.Reduce) and p.op == "sum" and weight is not None):
        a, *rest = sorted(factors_apart(total.body), key=lambda f: not isinstance(f, nodes.Load))
        if not rest or any(isinstance(f, sp.exp | atoms.sigmoid | nodes.Where) for f in (a, *rest)):
            continue
        sizes = [p for p in parts if p.is_Pow and p.exp == -1 and isinstance(p.base, nodes.Axis)]
        w, b = sp.Mul(weight, *sizes), sp.Mul(*rest)
        times = lambda first, second, w=w: sp.Mul(nodes.Named("weighed", w * first), second)
        more, less = (nodes.Named(name, nodes.Where(atoms.Abs(a) > atoms.Abs(b), *pair))
                      for name, pair in (("larger_factor", (a, b)), ("smaller_factor", (b, a))))
        body = times(a, b) if a == b else nodes.Where(atoms.Abs(w) < 1, times(more, less), times(less, more))
        inside = nodes.Reduce("sum", body, total.bound)
        return [inside if p is total else p for p in parts if p is not weight and p not in sizes]
    return parts


def is_weight(part: sp.Expr) -> bool:
    """Is this a number of each sample that a caller weighs it with, or what that is less than 1?"""
    load = 1 - part if isinstance(part, sp.Add) else part
    return isinstance(load, nodes.Load) and not load.index and not load.tensor.name.startswith("scale")


def factors_apart(body: sp.Expr) -> list[sp.Expr]:
    """The factors of a product that vary, a square as two; constants with the first."""
    number, found = sp.S.One, []
    for f in sp.Mul.make_args(body):
        base, power = f.as_base_exp()
        if f.is_number:
            number *= f
        else:
            found += [base] * int(power) if power.is_Integer and 1 < power <= 4 else [f]
    return [found[0] * number, *found[1:]] if found else [body]


def saturating(expr: sp.Expr) -> tuple[sp.Expr, sp.Expr] | None:
    """For k tanh(v), with a number k > 0 that the caller may choose: k and v."""
    bent = [f for f in sp.Mul.make_args(expr) if isinstance(f, sp.tanh)]
    k = sp.Mul(*(f for f in sp.Mul.make_args(expr) if not isinstance(f, sp.tanh)))
    return (k, bent[0].args[0]) if len(bent) == 1 and k.is_positive and not k.atoms(nodes.Load, nodes.Index) else None


def ends(k: sp.Expr, v: sp.Expr) -> tuple[sp.Expr, sp.Expr]:
    """k tanh(v) in two parts: the end that it is nearest to, 0 or k or -k, which is exact, and what is left."""
    far = atoms.Abs(v) > sp.S.Half
    left = -2 * k * atoms.Sign(v) * atoms.sigmoid(-2 * atoms.Abs(v))
    return nodes.Named("end", nodes.Where(far, k * atoms.Sign(v), 0)), nodes.Named("left", nodes.Where(far, left, k * sp.tanh(v)))


def is_step(node: Node) -> bool:
    """Is this 0 below a threshold, so that it leaves nothing of what it is multiplied with?"""
    return isinstance(node, Op) and node.name == "step"


def delayed(factors: list[Node], depth: int) -> list[Node]:
    """What the caller weighs a sample with, where the sample has other large factors, and others vary: the prefix may overflow alone."""
    outer = [n for n in factors if len(free(n)) < depth and not isinstance(n, Const | Size) and not is_given(n)]
    weights: list[Node] = [n for n in outer if isinstance(n, Load) and n.index == (SAMPLE,) and not n.integer]
    return weights if any(isinstance(n, Reduce) for n in outer) else []


def is_given(node: Node) -> bool:
    """Is this a scale or a direction?"""
    return isinstance(node, Load) and node.tensor.startswith(("scale", "direction_"))


def apart(nodes_: list[Node], divisors: int) -> list[Node]:
    """The factors, those of the caller (scales, directions) last, repetitions after everything else, but before the caller's where a
    divisor is left for them."""
    given = sorted(nodes_, key=is_given)
    first = list(dict.fromkeys(given))
    rest = list(given)
    for node in first:
        rest.remove(node)
    own = [n for n in first if not is_given(n)]
    early = [n for n in rest if not is_given(n)][:max(divisors - len(own), 0)]
    for node in early:
        rest.remove(node)
    return own + early + [n for n in first if is_given(n)] + rest


def whole_part(exponent: sp.Expr) -> int:
    """The whole number in an exponent that leaves between -1 and 1 for every value that the caller may choose for its parameter."""
    chosen = exponent.atoms(nodes.Param)
    low, high, _ = next(iter(chosen)).record.domain.interval if len(chosen) == 1 else (-math.inf, math.inf, False)
    if exponent.is_Rational or not (math.isfinite(low) and math.isfinite(high)):
        return 0
    first, middle, last = (exponent.xreplace({param: sp.Rational(at) for param in chosen}) for at in (low, (low + high) / 2, high))
    if not middle.is_number or first + last != 2 * middle:               # it may be more extreme in between
        return 0
    whole = int(middle)
    return whole if abs(whole) <= 4 and all(abs(end - whole) <= 1 for end in (first, last)) else 0


class Lowering:
    """One instance a kernel, so that value and gradient share what they can."""

    def __init__(self, names: Mapping[sp.Expr, str] | None = None) -> None:
        self.names = names or {}
        self.done: dict[Any, Node] = {}
        self.kept: set[Node] = set()                                     # named by the author: not to be taken apart
        self.hints: dict[Node, str] = {}                                 # what a person would call a node
        self.logs: dict[Node, None] = {}                                 # what results ask of logarithms of masses

    def __call__(self, expr: sp.Basic, env: Env) -> Node:
        key = (expr, tuple(sorted((i.name, env[i].depth) for i in nodes.free_indices(expr))))
        if key not in self.done:
            node = self.lower(expr, env)
            if expr in self.names:
                self.called(self.names[expr], node)
            self.done[key] = node
        return self.done[key]

    def called(self, name: str, node: Node, kept: bool = False) -> Node:
        """Remember what a person would call a node; one that is kept is not taken apart."""
        if isinstance(node, Op | Reduce):
            self.hints.setdefault(node, name)
            if kept:
                self.kept.add(node)
        return node

    def factors(self, node: Node) -> tuple[list[Node], list[Node], bool]:
        """What is multiplied, what is divided by, and whether the sign turns."""
        if node in self.kept:
            return [node], [], False
        match node:
            case Op("mul" | "div" as name, (a, b)):
                (above, below, sign), (over, under, turn) = self.factors(a), self.factors(b)
                turned = sign ^ turn
                return (above + over, below + under, turned) if name == "mul" else (above + under, below + over, turned)
            case Op("neg", (a,)):
                above, below, sign = self.factors(a)
                return above, below, not sign
            case Op("times_exp" | "times_sigmoid" as name, (a, x)):
                above, below, sign = self.factors(a)
                return [*above, Op(name.removeprefix("times_"), (x,))], below, sign
        return [node], [], False

    def summed(self, var: Var, body: Node) -> Node:
        """A sum whose invariant factors stand outside the loop."""
        inside: Callable[[Node], bool] = lambda node: var in free(node)
        if isinstance(body, Op) and body.name == "where" and body.args[1] is ZERO:
            above, below, sign = self.factors(body.args[2])              # masked: factors leave the mask too
            masked = op("where", body.args[0], ZERO, product(filter(inside, above), filter(inside, below)))
            above = [masked, *(n for n in above if not inside(n))]
            below = [n for n in below if not inside(n)]
        else:
            above, below, sign = self.factors(body)
        over, under = [n for n in above if inside(n)], [n for n in below if inside(n)]
        inner = Reduce("sum", var, real(product(over, under))) if over or under else real(Size(var.axis))
        return product([*(n for n in above if not inside(n)), inner], [n for n in below if not inside(n)], sign)

    def lower(self, expr: sp.Basic, env: Env) -> Node:
        if isinstance(expr, sp.Expr) and expr.is_number and not expr.is_Rational and (number := irrational(expr)) is not None:
            return number
        match expr:
            case nodes.Index():
                return env[expr]
            case nodes.Axis():
                return Size(expr.name)
            case nodes.Param():
                into = expr.record.into
                return parameter(expr) if into is None else Op("inside", (parameter(expr), Size(into.name)))
            case sp.Rational():
                return Const(int(expr.p), int(expr.q))
            case sp.Float():
                return Const(*float(expr).as_integer_ratio())
            case nodes.Load():
                return self.load(expr, env)
            case nodes.Delta(args=(a, b)):
                return where(op("eq", self(a, env), self(b, env)), ONE, ZERO)
            case nodes.Named():
                return self.called(expr.label, self(expr.body, env), kept=True)
            case nodes.Rounded():
                return self.called("bound", real(self(expr.body, env)), kept=True)
            case nodes.Stated() | nodes.StopGradient() | nodes.StraightThrough():
                return self(expr.body, env)
            case nodes.Where(args=(condition, a, b)):
                return where(self(condition, env), self(a, env), self(b, env))
            case nodes.Reduce():
                return self.reduction(expr, env)
            case nodes.Rejection():
                return self.rejection(expr, env)
            case nodes.Eliminated(args=(a, b, c, d)):
                return self.called("eliminated", Op("cross", tuple(real(self(part, env)) for part in (a, b, c, d))))
            case atoms.root() | atoms.inverse_root() if (found := nodes.sum_of_squares(expr.args[0])) is not None:
                return self.length(expr, *found, env)
            case sp.Add():
                return self.addition(expr, env)
            case sp.Mul():
                return self.product(expr.args, env)
            case nodes.LogAddExp():
                return self.log_add_exp([real(self(a, env)) for a in expr.args])
            case nodes.Share(args=(term, whole)):
                return self.share(real(self(term, env)), real(self(whole, env)))
            case sp.floor(args=(ratio,)):
                above, below = ratio.as_numer_denom()
                return Op("floor_divide", (self(above, env), self(below, env)))
            case sp.exp():
                return self.exponential(expr.args[0], env)
            case sp.Pow():
                return self.power(self(expr.base, env), expr.exp, env) if whole_part(expr.exp) == 0 else self.product([expr], env)
            case sp.core.numbers.Infinity() | sp.core.numbers.NegativeInfinity():
                return Const(1 if expr is sp.oo else -1, 0)
        if type(expr) in RELATIONS:
            args = [self(a, env) for a in expr.args]
            if isinstance(expr, sp.Equality):
                return equal(*args)
            return fold(lambda a, b: op(RELATIONS[type(expr)], a, b), args) if len(args) > 1 else op(RELATIONS[type(expr)], *args)
        if isinstance(expr, sp.Mod) and all(a.is_integer for a in expr.args):
            return Op("remainder", tuple(self(a, env) for a in expr.args))
        if type(expr) in DIRECT:
            return op(DIRECT[type(expr)], *(self(a, env) for a in expr.args))
        if atoms.is_atom(expr) and (computed := atoms.ATOMS[type(expr).__name__].computed) is not None:
            return self.called(type(expr).__name__, self(sp.sympify(computed(*expr.args)), env))
        if type(expr) in BRANCHES:
            return BRANCHES[type(expr)](*(self(a, env) for a in expr.args))
        raise LoweringError(f"no spelling for {type(expr).__name__} in {expr}",
                            repair="Write it with the functions of losscomp.language, or add an atom for it in atoms.py.")

    def load(self, expr: nodes.Load, env: Env) -> Node:
        record = expr.tensor.record
        index = self.cell(record, expr.index, env)
        if record.state:
            return Load(record.name, index, record.integer)
        return Load(record.name, ((SAMPLE,) if record.per_sample else ()) + index, record.integer)

    def cell(self, record: nodes.TensorRecord, index: tuple[sp.Expr, ...], env: Env) -> tuple[Node, ...]:
        """The position of an element, which an array surely has; how far tables reach is checked with the definition."""
        return tuple(self.position(i, env) if record.state or surely_inside(i, axis) else
                     Op("inside", (self.position(i, env), Size(axis.name))) for i, axis in zip(index, record.axes, strict=True))

    def filling(self, record: nodes.TensorRecord, expr: sp.Expr, env: Env) -> Node:
        """What a cell of a table is; one that points along an axis points inside, whoever reads it."""
        node, into = self(expr, env), record.into
        return node if into is None or surely_inside(expr, into) else Op("inside", (node, Size(into.name)))

    def position(self, index: sp.Expr, env: Env) -> Node:
        """An index: an integer, also where it is chosen by a condition."""
        node = self(index, env)
        return node if kind_of(node) == "int" else Op("integer", (node,))

    def log_add_exp(self, terms: list[Node]) -> Node:
        """The largest term, and the logarithm of what the others add to it."""
        largest, others = terms[0], []
        for term in terms[1:]:
            others.append(Op("smaller", (largest, term)))
            largest = Op("larger", (largest, term))
        self.called("largest", largest)
        infinite = op("eq", op("abs", largest), Const(1, 0))
        base = self.called("base", where(infinite, ZERO, largest))       # infinite terms give their own result, without a branch
        more = fold(lambda a, b: op("add", a, b), (op("exp", op("sub", other, base)) for other in others))
        return op("add", largest, op("log1p", more))

    def share(self, term: Node, whole: Node) -> Node:
        """exp(term - whole), at most 1; 0 where the term is -oo."""
        below = Op("smaller", (op("sub", term, whole), ZERO))
        return where(op("eq", term, Const(-1, 0)), ZERO, op("exp", below))

    def reduction(self, expr: nodes.Reduce, env: Env) -> Node:
        if expr.op == "logsumexp":
            shift, rest = self.log_sum_exp(expr, env)
            return self.called("log_sum_exp", op("add", shift, rest))
        axis = expr.bound.axis.name
        taken = {env[i] for i in nodes.free_indices(expr)}
        var = next(v for k in range(9) if (v := Var(axis, k)) not in taken)
        body = self(expr.body, {**env, expr.bound: var})
        found = in_units(body)
        if expr.op == "max" and found is not None:                       # the largest quotient is that of the largest
            return op("div", Reduce("max", var, real(found[0])), found[1])
        return self.summed(var, body) if expr.op == "sum" else Reduce(expr.op, var, real(body))

    def log_sum_exp(self, lse: nodes.Reduce, env: Env) -> tuple[Node, Node]:
        """The largest term, and the logarithm of the sum relative to it, where the largest counts exactly."""
        others, ties = self.relative(lse, env)
        rest = self.called("log_mass", op("log1p", op("add", others, op("sub", ties, ONE))))
        return self.largest(lse, env), rest

    def largest(self, lse: nodes.Reduce, env: Env) -> Node:
        return self.largest_of(lse.body, lse.bound, env)

    def largest_of(self, body: sp.Expr, bound: nodes.Index, env: Env) -> Node:
        return self.called("largest", self(nodes.Reduce("max", body, bound), env))

    def relative(self, lse: nodes.Reduce, env: Env) -> tuple[Node, Node]:
        """The sum of exp(body - largest) over all but the largest, and how often the largest occurs."""
        axis = lse.bound.axis.name
        largest = self.largest(lse, env)
        taken = {env[i] for i in nodes.free_indices(lse)}
        var = next(v for k in range(9) if (v := Var(axis, k)) not in taken)
        body = self(lse.body, {**env, lse.bound: var})
        top = self.called("is_largest", equal(body, largest))
        relative = self.called("relative", self.below(lse.body, lse.body, lse.bound, {**env, lse.bound: var}))
        others = Reduce("sum", var, where(top, ZERO, relative))
        ties = Reduce("sum", var, real(where(top, ONE, ZERO)))
        return self.called("others", others), self.called("ties", ties)

    def below(self, a: sp.Expr, body: sp.Expr, bound: nodes.Index, env: Env, exponential: bool = True) -> Node:
        """exp(a - largest), or a - largest, where `a` is the body of a reduction at some position, and the largest that over all of them.

        What is nearly at an end of its range is taken relative to that end, as its own rounding is not small in an exponent.
        """
        one, other = saturating(a), saturating(body)
        if one is None or other is None or one[0] != other[0]:
            largest = self.largest_of(body, bound, env)
            return exp_difference(self(a, env), largest) if exponential else difference(self(a, env), largest)
        top = nodes.Reduce("max", other[1], bound)
        (end, left), (most, rest) = ([self(part, env) for part in ends(one[0], v)] for v in (one[1], top))
        if exponential:
            return Op("exp_difference", (real(op("sub", left, rest)), real(op("sub", most, end))))
        return op("add", op("sub", end, most), op("sub", left, rest))

    def length(self, expr: sp.Expr, x: sp.Expr, bound: nodes.Index, plus: sp.Expr, env: Env) -> Node:
        """The root of a sum of squares, or its inverse: in units of a power of two near the largest, which is multiplied last."""
        unit, inside = self.in_units(x, bound, plus, env)
        if isinstance(expr, atoms.root):
            return op("mul", self(unit, env), op("sqrt", inside))
        return op("div", op("inverse_root", inside), self(unit, env))

    def in_units(self, x: sp.Expr, bound: nodes.Index, plus: sp.Expr, env: Env) -> tuple[sp.Expr, Node]:
        """A power of two near the largest x, and the sum of the squares of x in these units."""
        i = bound.axis.index()
        x = nodes.substitute(x, {bound: i})
        least = sp.Rational(float(sp.sqrt(plus))) if plus.is_number else sp.sqrt(plus)
        unit = atoms.binade(nodes.Reduce("max", atoms.Abs(x), i) + least)
        return unit, self(nodes.Reduce("sum", nodes.Named("scaled", x / unit)**2, i) + plus / unit**2, env)

    def rejection(self, expr: nodes.Rejection, env: Env) -> Node:
        """y less its part along x, by elimination: y is a multiple of x that agrees with it where x is largest, and the rest.

        The rest has no large part of either: it comes from differences of products, rounded once.
        """
        y, x, dot, square = expr.args
        i = dot.bound.axis.index()
        body = nodes.substitute(dot.body, {dot.bound: i})
        found = nodes.sum_of_squares(square)
        if found is not None:
            x_i, plus = nodes.substitute(found[0], {found[1]: i}), found[2]
            y_i = body / x_i
        else:                                                            # another power than 2: a weighted sum of products
            power = nodes.substitute(square.body, {square.bound: i})
            x_i, plus = power.args[0], sp.S.Zero
            weight = atoms.signed_power(x_i, power.args[1] - 1)
            y_i = body / weight
        largest = nodes.Reduce("max", atoms.Abs(x_i), i)
        unit = atoms.binade(largest)
        at_largest = nodes.Reduce("max", nodes.Where(sp.Eq(atoms.Abs(x_i), largest, evaluate=False), atoms.Sign(x_i) * y_i, -sp.oo), i)
        pivot = nodes.Where(sp.Eq(largest, 0), 1, largest / unit)
        scaled = lambda x: nodes.Named("scaled", x / unit)               # names keep factors where they are
        rest = lambda y, x: nodes.Named("left", nodes.Eliminated(y, pivot, scaled(x), at_largest) / pivot)
        if found is not None:
            share = nodes.Named("share", unit * atoms.inverse_root(square))
            back = -share**2 * nodes.Reduce("sum", scaled(x_i) * rest(y_i, x_i), i)
        else:
            back = -unit * nodes.Reduce("sum", weight * rest(y_i, x_i), i) / nodes.Where(sp.Eq(square, 0), 1, square)
        if plus != 0:
            back += at_largest / pivot * nodes.Named("defect", plus * atoms.inverse_root(square)**2)
        return self(rest(y, x) + scaled(x) * nodes.Named("along", back), env)

    def exponential(self, power: sp.Expr, env: Env) -> Node:
        """exp(a - logsumexp) is a softmax: exp(a - largest) / mass, and so for products of softmaxes."""
        shares: list[nodes.Reduce] = []
        rest: list[sp.Expr] = []
        for term in sp.Add.make_args(sp.expand_mul(power)):
            count, factor = term.as_coeff_Mul()
            if isinstance(factor, nodes.Reduce) and factor.op == "logsumexp" and count.is_Integer and count < 0:
                shares += [factor] * int(-count)
            elif shares is not None and count.is_Integer and count > 0:
                rest += [factor] * int(count)
            else:
                rest.append(term)
        if not shares:
            terms = sp.Add.make_args(power)                              # not multiplied out: (1 - p) x is one product, rounded once
            if len(terms) == 2 and any(t.as_coeff_Mul()[0] == -1 for t in terms):
                a, b = sorted(terms, key=lambda t: t.as_coeff_Mul()[0] == -1)
                if isinstance(-b, nodes.Reduce) and (-b).op == "max" and saturating(a):
                    return self.below(a, (-b).body, (-b).bound, env)
                return exp_difference(self(a, env), self(-b, env))
            return op("exp", self(power, env))
        below = [self.called("sum_exp", op("add", *self.relative(lse, env))) for lse in shares]
        if len(rest) == len(shares):
            above: list[Node] = [self.below(a, lse.body, lse.bound, env) for a, lse in zip(rest, shares, strict=True)]
        else:
            shift = sp.Add(*rest, *(-nodes.Reduce("max", lse.body, lse.bound) for lse in shares))
            above = [op("exp", self(shift, env))]
        return product(above, below)

    def addition(self, expr: sp.Add, env: Env) -> Node:
        """What varies first, plus and minus in turn, so that large terms cancel before small ones are added."""
        content, rest = self.content(expr)
        if content != 1:                                                 # 2 a - 2 b is 2 (a - b): SymPy spreads numbers over sums
            return self.product([content, rest], env)
        plus: list[Node] = []
        minus: list[Node] = []
        late: list[tuple[str, Node]] = []
        numbers = [t for t in expr.args if atoms.number(t) is not None]
        numbers = numbers if len(numbers) > 1 else []
        if numbers:                                                      # constants are added up exactly
            negative, size = summed_up(numbers, sp.Add)
            (minus if negative else plus).append(size)
        terms = sorted((t for t in expr.as_ordered_terms() if t not in numbers),
                       key=lambda t: saturating(t) is not None or saturating(-t) is not None)
        while terms:
            term = terms.pop(0)
            sign, rest = term.as_coeff_Mul()
            side, name = (minus, "sub") if sign < 0 else (plus, "add")
            if isinstance(rest, nodes.Reduce) and rest.op == "logsumexp" and abs(sign) == 1:
                bent = next((t for t in terms if saturating(rest.body) and saturating(-sign * t)), None)
                shift, tail = self.log_sum_exp(rest, env)                # a - lse is (a - largest) - log: the large parts cancel first
                if bent is None:
                    side.append(shift)
                else:
                    terms.remove(bent)
                    (plus if sign < 0 else minus).append(self.below(-sign * bent, rest.body, rest.bound, env, exponential=False))
                late.append((name, tail))
            else:
                side.append(self(-term if sign < 0 else term, env))
        plus.sort(key=lambda node: -len(free(node)))                     # what varies most first: differences cancel exactly
        minus.sort(key=lambda node: -len(free(node)))
        result = plus.pop(0) if plus else op("neg", minus.pop(0))
        while plus or minus:
            turn = minus and (not plus or len(free(minus[0])) >= len(free(plus[0])))
            result = difference(result, minus.pop(0)) if turn else op("add", result, plus.pop(0))
        return fold(lambda a, b: op(b[0], a, b[1]), late, result)

    def content(self, expr: sp.Expr) -> tuple[sp.Rational, sp.Expr]:
        """A common number and sign of the terms of a sum, chosen so that what is left is known by a name, and the rest."""
        if not isinstance(expr, sp.Add):
            return sp.S.One, expr
        content, rest = expr.primitive()
        if content.q != 1 or abs(content.p) > 16:                        # a constant of the formula, and no factor that SymPy spread
            content, rest = sp.S.One, expr
        if rest in self.names:
            return content, rest
        turned = -rest
        if turned in self.names or all(term.as_coeff_Mul()[0] < 0 for term in rest.args):
            return -content, turned
        return content, rest

    def weighed(self, parts: list[sp.Expr]) -> list[sp.Expr]:
        """The factors of a product, in which a weight stands where no product is beyond all of them."""
        return weighed(parts)

    def product(self, parts: Iterable[sp.Expr], env: Env) -> Node:
        above: list[Node] = []
        below: list[Node] = []
        sign = False
        contents = [self.content(f) for f in self.weighed(list(parts))]
        number = sp.Mul(*(c for c, _ in contents), *(f for _, f in contents if f.is_Rational))
        factors = [f for _, f in contents if not f.is_Rational]
        constants = [f for f in factors if atoms.number(f) is not None]
        if len(constants) > 1 or any(f.is_Pow for f in constants):       # sqrt(2) / sqrt(pi) is rounded once
            factors = [f for f in factors if f not in constants]
            sign, size = summed_up([number, *constants], sp.Mul)
            number = sp.S.One
            above.append(size)
        for f, x in [(f, x) for f in factors for x in factors if isinstance(f, atoms.inverse_root) and x is not f]:
            found = nodes.sum_of_squares(f.args[0])
            along = next((v for v in (x, -x) if found and f in factors and x in factors and nodes.place_of(v, *found[:2])), None)
            if found and along is not None:
                unit, inside = self.in_units(*found, env)                # x / (length of x): in the same units, whatever these are
                above += [self(nodes.Named("scaled", along / unit), env), op("inverse_root", inside)]
                sign ^= along is not x
                factors.remove(f)
                factors.remove(x)
        for f in [number, *factors]:
            if f.is_Rational:
                sign ^= bool(f < 0)
                if f.q & (f.q - 1) == 0:
                    above.append(Const(abs(int(f.p)), int(f.q)))
                else:
                    above += [Const(abs(int(f.p)))] * (abs(f.p) != 1)
                    below.append(Const(int(f.q)))
            elif f.is_Pow and f.exp.is_Rational and f.exp < 0:
                below += self.power_factors(f.base, -f.exp, env)
            elif f.is_Pow and f.exp.is_Integer:
                above += self.power_factors(f.base, f.exp, env)
            elif f.is_Pow and (whole := whole_part(f.exp)) != 0:         # x**(-p) is x**(1 - p) / x: either may be far less extreme
                (above if whole > 0 else below).extend([real(self(f.base, env))] * abs(whole))
                above.append(self.power(self(f.base, env), f.exp - whole, env))
            else:
                over, under, turn = self.factors(self(f, env))
                above, below, sign = above + over, below + under, sign ^ turn
        gated = next((n for n in above if isinstance(n, Op) and n.name == "where" and n.args[1] is ZERO and self.vanishes(n.args[2])), None)
        if gated is not None:                                            # a tail in an arm is multiplied last too
            above.remove(gated)
            over, under, turn = self.factors(gated.args[2])
            return where(gated.args[0], ZERO, product(above + over, below + under, sign ^ turn))
        return product(above, below, sign)

    def vanishes(self, node: Node) -> bool:
        """Is this a product with a sigmoid? Shares, which are exponentials in arms, are kept: others use them too."""
        return any(isinstance(n, Op) and n.name == "sigmoid" for n in self.factors(node)[0])

    def power_factors(self, base: sp.Expr, exponent: sp.Rational, env: Env) -> list[Node]:
        """base ** exponent as factors, so that products can be divided step by step."""
        if exponent.is_Integer and exponent <= 4:
            node = real(self(base, env))
            if isinstance(base, atoms.root):                             # its unit and the root in that unit, one after the other
                return self.factors(node)[0] * int(exponent)
            return [node] * int(exponent)
        return [self.power(self(base, env), exponent, env)]

    def power(self, base: Node, exponent: sp.Expr, env: Env) -> Node:
        if exponent == sp.Rational(1, 2):
            return op("sqrt", base)
        if exponent == sp.Rational(-1, 2):
            return op("div", ONE, op("sqrt", base))
        if exponent.is_Integer and 1 < exponent <= 4:
            return fold(lambda a, b: op("mul", a, b), [base] * int(exponent))
        if exponent.is_Rational and exponent < 0:
            return op("div", ONE, base if exponent == -1 else self.power(base, -exponent, env))
        return op("pow", base, self(exponent, env))

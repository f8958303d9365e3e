"""The truth: an unrewritten definition, evaluated exactly, with its gradient and second order.

Nothing of the compiler is used. A formula becomes nested closures over jets, the hyper-dual numbers a + b e1 + c e2 + d e1 e2
with e1**2 = e2**2 = 0: the gradient moves one cell along e1, a Hessian-vector product moves the inputs along e2 as well. The
parts are Arb balls, which bound their own error, so precision is raised until every result is known far below one ULP.

Three rules hold throughout:

- What cannot be told from zero at the highest precision is zero; a lower precision is given up instead (`Undecided`).
- A part that is None is zero because nothing moves, whatever it is multiplied by; the zero of a computation is a ball.
- Infinities are IEEE's, of the formula as written, and zero has no sign. Where that leaves a derivative NaN although the loss
  is a number, its limit is taken, if it does not depend on how the infinite inputs are approached.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from functools import reduce as fold
from typing import Any, NamedTuple

import numpy as np
import sympy as sp
from flint import arb, ctx, fmpq

from . import atoms, nodes
from .check import Checked
from .errors import LosscompError
from .nodes import Load, Tensor

__all__ = ["Exact", "OracleError", "Truth", "exact", "select", "ulp_error"]

PRECISIONS = (128, 512, 2048, 8192)
ENOUGH = 53 + 13                              # relative bits that leave 2**-12 of one ULP, and one bit to spare
TINY = arb(2) ** -1088                        # the same below the smallest subnormal number
HUGE = arb(2) ** 1025
ZERO, ONE, INF, NAN = arb(0), arb(1), arb("inf"), arb("nan")


class OracleError(LosscompError):
    """Arguments that do not fit the definition, or a result that the highest precision does not settle."""

    stage = "oracle"


class Undecided(Exception):
    """A ball is too wide to take a branch on."""


# Results

@dataclass(frozen=True)
class Exact:
    """Exact results: the nearest float64 of each, and what is left over, so that the truth is high + low."""

    high: np.ndarray
    low: np.ndarray


@dataclass(frozen=True)
class Truth:
    """What a loss and its derivatives are.

    Attributes:
        value: of shape (N,) for reduction "none", else ().
        grad: of upstream * loss, by the name of the input and in its shape.
        hvp: the rate of `grad` along the directions; empty where none were given.
        hessian_diag: the second derivative by each single cell; empty where it was not asked for.
    """

    value: Exact
    grad: dict[str, Exact]
    hvp: dict[str, Exact]
    hessian_diag: dict[str, Exact]


def exact(form: Checked, tensors: Mapping[str, Any], params: Mapping[str, Any] = {}, *, reduction: str = "mean",
          upstream: Any = 1.0, wrt: Sequence[str] | None = None, directions: Mapping[str, Any] | None = None,
          diagonal: bool = False) -> Truth:
    """The exact value of a loss, its gradient, and second order where asked for.

    Args:
        form: one variant of a definition; see `select`.
        tensors: arrays by name, of floats or integers, whose exact values count: (N, *axes) for what each sample has, (*axes)
            for what samples share. An optional tensor may be absent.
        params: scalars by name; the default of the definition where absent.
        reduction: "none", "sum", "mean" or "batchmean".
        upstream: what the loss is multiplied by before derivatives are taken: a number, or (N,) numbers for "none".
        wrt: the inputs to differentiate by; by default all given ones that can be.
        directions: by name, the rates at which inputs move together, in the shapes of the inputs; absent ones rest.
        diagonal: whether to give `hessian_diag`.

    Raises OracleError for arguments that do not fit, and where the highest precision leaves a result open.
    """
    before = ctx.prec
    try:
        problem = pose(form, tensors, params, reduction, upstream, directions or {})
        names = [t.name for t in form.differentiable if t.name in tensors] if wrt is None else list(wrt)
        for name in names:
            if name not in tensors or name not in {t.name for t in form.differentiable}:
                raise OracleError(f"there is no derivative by {name!r}", repair="Name given inputs of real numbers.")
        value = pack(problem.values(), (problem.batch,) if reduction == "none" else ())
        grad: dict[str, Exact] = {}
        hvp: dict[str, Exact] = {}
        hessian_diag: dict[str, Exact] = {}
        for name in names:
            shape = np.shape(tensors[name])
            shared = not next(t for t in form.inputs if t.name == name).record.per_sample
            rows = []
            for cell in np.ndindex(*shape):
                touched = range(problem.batch) if shared else cell[:1]
                first = {(name, cell): ONE}
                along = problem.derivatives(touched, first, problem.directions)
                rows.append(along + (problem.derivatives(touched, first, first)[1:] if diagonal else []))
            columns = [pack([row[k] for row in rows], shape) for k in range(2 + diagonal)]
            grad[name] = columns[0]
            if directions is not None:
                hvp[name] = columns[1]
            if diagonal:
                hessian_diag[name] = columns[2]
        return Truth(value, grad, hvp, hessian_diag)
    finally:
        ctx.prec = before


def pack(results: Sequence[tuple[float, float]], shape: tuple[int, ...]) -> Exact:
    """Pairs of high and low as arrays of a shape."""
    pairs = np.array(results, dtype=np.float64).reshape(*shape, 2)
    return Exact(pairs[..., 0], pairs[..., 1])


def ulp_error(computed: Any, truth: Exact, dtype: Any) -> np.ndarray:
    """|computed - truth| in units of the spacing of a floating-point type at the truth.

    Args:
        computed: an array of the shape of the truth.
        truth: what it should be.
        dtype: the type that was computed in, or that the result is held to; subnormal spacing is the least.

    Returns an array of float64. A truth that rounds to an infinity of the type asks for that infinity, and NaN for NaN:
    the error is 0 then, and infinite for NaN or an infinity in any other place.
    """
    info = np.finfo(dtype)
    got, high, low = np.broadcast_arrays(np.asarray(computed, dtype=np.float64), truth.high, truth.low)
    with np.errstate(all="ignore"):
        exponent = np.where(np.isfinite(high) & (high != 0), np.frexp(high)[1] - 1, info.minexp)
        spacing = np.clip(exponent, info.minexp, info.maxexp - 1) - info.nmant                  # its exponent
        half = spacing // 2                                             # in two steps: 1 / spacing may be beyond float64
        error = np.abs(np.ldexp(np.ldexp(got - high, -half) - np.ldexp(low, -half), half - spacing))
        beyond = np.abs(high) >= float(info.max) + math.ldexp(0.5, info.maxexp - 1 - info.nmant)
    error = np.where(np.isinf(got) | np.isinf(high), np.inf, error)
    error = np.where(beyond & (got == np.copysign(np.inf, high)), 0.0, error)
    return np.where(np.isnan(got) | np.isnan(high), np.where(np.isnan(got) & np.isnan(high), 0.0, np.inf), error)


def select(forms: Sequence[Checked], params: Mapping[str, Any]) -> Checked:
    """The variant that is compiled for these values of the parameters: the most special one that they match.

    Raises OracleError where an option has a value that it cannot have.
    """
    def agrees(form: Checked) -> bool:
        defaults = {p.name: p.record.default for p in form.params}
        return all(v is None or matches(params.get(name, defaults[name]), v) for name, v in form.settings)

    fitting = [form for form in forms if agrees(form)]
    if not fitting:
        raise OracleError(f"no variant fits {dict(params)}", repair="Pass True or False for an option.")
    return max(fitting, key=lambda form: sum(value is not None for _, value in form.settings))


def matches(given: Any, special: Any) -> bool:
    """Is this value of a parameter that special value?"""
    if isinstance(special, sp.logic.boolalg.BooleanAtom):
        return bool(given) == bool(special)
    return float(given) == float(special)


# Balls: arb with decided branches and IEEE's infinities. Every ball is finite, infinite with a sure sign, or NaN.

def order(x: arb, y: arb) -> int | None:
    """-1, 0 or 1 for x < y, x = y, x > y; None where one is NaN."""
    if x < y:
        return -1
    if x > y:
        return 1
    if x == y:
        return 0
    if x.is_nan() or y.is_nan():
        return None
    give_up()
    return 0


def give_up() -> None:
    """Ask for more precision, unless there is none."""
    if ctx.prec < PRECISIONS[-1]:
        raise Undecided


def add(x: arb, y: arb) -> arb:
    """x + y."""
    result = x + y
    if result.is_finite() or result.is_nan():
        return result
    return INF if result > 0 else -INF


def mul(x: arb, y: arb) -> arb:
    """x y; zero times infinity is NaN."""
    result = x * y
    if result.is_finite() or x.is_nan() or y.is_nan():
        return result
    signs = (order(x, ZERO) or 0) * (order(y, ZERO) or 0)
    return INF if signs > 0 else -INF if signs < 0 else NAN


def bounded(function: Callable[[arb], arb], *, grows: bool = False) -> Callable[[arb], arb]:
    """A function that gives up where a finite argument has no finite ball, and that overflows, if it grows so fast, where no
    precision helps."""
    def guarded(x: arb) -> arb:
        result = function(x)
        if result.is_finite() or not x.is_finite():
            return result
        if not grows or ctx.prec < PRECISIONS[-1]:
            raise Undecided
        return function(INF if x > 0 else -INF)

    return guarded


exp, expm1, cosh = (bounded(function, grows=True) for function in (arb.exp, arb.expm1, arb.cosh))
sinh = bounded(lambda x: x.sinh() if x.is_finite() else x, grows=True)
sin = bounded(lambda x: x.sin() if x.is_finite() else NAN)
cos = bounded(lambda x: x.cos() if x.is_finite() else NAN)
tanh, sech, atan, log1p_near = bounded(arb.tanh), bounded(arb.sech), bounded(arb.atan), bounded(arb.log1p)


def recip(x: arb) -> arb:
    """1 / x; zero counts as positive."""
    if order(x, ZERO) == 0:
        return INF
    return ONE / x if x.is_finite() or x.is_nan() else ZERO


def log(x: arb) -> arb:
    """log x; NaN below zero."""
    where = order(x, ZERO)
    return x.log() if where == 1 else -INF if where == 0 else NAN


def sqrt(x: arb) -> arb:
    """sqrt x; NaN below zero."""
    where = order(x, ZERO)
    return x.sqrt() if where == 1 else ZERO if where == 0 else NAN


def log1p(x: arb) -> arb:
    """log(1 + x); NaN below -1."""
    return log1p_near(x) if x > -0.5 else log(add(ONE, x))


def erf(x: arb) -> arb:
    """erf x."""
    return x.erf() if x.is_finite() or x.is_nan() else ONE if x > 0 else -ONE


def bell(x: arb) -> arb:
    """The derivative of erf."""
    return exp(-(x * x)) * 2 / arb.pi().sqrt()


def softplus(x: arb) -> arb:
    """log(1 + e^x)."""
    return add(x, log1p(exp(-x))) if x.mid() > 0 else log1p(exp(x))


def sigmoid(x: arb) -> arb:
    """1 / (1 + e^-x), without overflow on either side."""
    return recip(ONE + exp(-x)) if x.mid() >= 0 else mul(exp(x), recip(ONE + exp(x)))


def power(x: arb, r: arb) -> arb:
    """x ** r as C has it: of a negative number only for integers, and x ** 0 = 1."""
    if x.is_nan() or r.is_nan():
        return NAN
    whole, twice = r.unique_fmpz(), (r + r).unique_fmpz()
    if r.is_exact() and twice is not None:                              # so that an exact root stays exact
        base, n = (x, int(whole)) if whole is not None else (sqrt(x), int(twice))
        result = base ** abs(n)
        if not result.is_finite() and not base.is_nan():
            if base.is_finite():
                give_up()
            result = INF if base > 0 or n % 2 == 0 else -INF
        return result if n >= 0 else recip(result)
    where = order(x, ZERO)
    if where == 1:
        return exp(mul(r, log(x)))
    return NAN if where == -1 else ZERO if order(r, ZERO) == 1 else INF


# Jets

class Jet(NamedTuple):
    """a + b e1 + c e2 + d e1 e2. What rests is no jet but a plain ball."""

    a: arb
    b: arb | None
    c: arb | None
    d: arb | None


Number = arb | Jet
Slope = Callable[[arb], arb | None]


def parts(x: Number) -> Jet:
    """Any number as a jet."""
    return x if isinstance(x, Jet) else Jet(x, None, None, None)


def still(x: Number) -> arb:
    """The value alone."""
    return x.a if isinstance(x, Jet) else x


def jet(a: arb, b: arb | None, c: arb | None, d: arb | None) -> Number:
    """A jet, or a ball where nothing moves."""
    return a if b is None and c is None and d is None else Jet(a, b, c, d)


def times(x: arb | None, y: arb | None) -> arb | None:
    """x y, where None is zero."""
    return None if x is None or y is None else mul(x, y)


def total(*terms: arb | None) -> arb | None:
    """The sum, where None is zero."""
    present = [x for x in terms if x is not None]
    return fold(add, present) if present else None


def plus(x: Number, y: Number) -> Number:
    """x + y."""
    if not isinstance(x, Jet) and not isinstance(y, Jet):
        return add(x, y)
    x, y = parts(x), parts(y)
    return Jet(add(x.a, y.a), total(x.b, y.b), total(x.c, y.c), total(x.d, y.d))


def product(x: Number, y: Number) -> Number:
    """x y."""
    if not isinstance(x, Jet) and not isinstance(y, Jet):
        return mul(x, y)
    x, y = parts(x), parts(y)
    return Jet(mul(x.a, y.a), total(times(x.b, y.a), times(x.a, y.b)), total(times(x.c, y.a), times(x.a, y.c)),
               total(times(x.d, y.a), times(x.a, y.d), times(x.b, y.c), times(x.c, y.b)))


def negative(x: Number) -> Number:
    """-x."""
    return product(x, -ONE)


def summed(terms: Iterable[Number]) -> Number:
    """The sum of any number of terms."""
    start: Number = ZERO
    return fold(plus, terms, start)


def blend(value: arb, shares: Iterable[tuple[Number, arb]]) -> Number:
    """A value that moves as the weighted sum of some jets does."""
    moves = [(x, share) for x, share in shares if isinstance(x, Jet) and not share.is_zero()]
    return jet(value, *(total(*(times(x[k], share) for x, share in moves)) for k in (1, 2, 3)))


@dataclass(frozen=True)
class Unary:
    """A function of one number, its derivative, and its second derivative; None is zero."""

    value: Callable[[arb], arb]
    slope: Slope
    curve: Slope

    def __call__(self, x: Number) -> Number:
        if not isinstance(x, Jet):
            return self.value(x)
        slope = self.slope(x.a)
        bend = times(x.b, x.c)
        return jet(self.value(x.a), times(slope, x.b), times(slope, x.c),
                   total(times(slope, x.d), None if bend is None else times(self.curve(x.a), bend)))


@dataclass(frozen=True)
class Binary:
    """A function of two numbers, with its derivatives by the first and second argument; None is zero."""

    value: Callable[[arb, arb], arb]
    by: tuple[Callable[[arb, arb], arb | None], Callable[[arb, arb], arb | None]]
    twice: tuple[Callable[[arb, arb], arb | None], ...]                 # by (first, first), (first, second), (second, second)

    def __call__(self, x: Number, y: Number) -> Number:
        x, y = parts(x), parts(y)
        at = (x.a, y.a)
        u, v = (f(*at) if any(part is not None for part in move[1:]) else None for f, move in zip(self.by, (x, y), strict=True))
        bends = (times(x.b, x.c), total(times(x.b, y.c), times(y.b, x.c)), times(y.b, y.c))
        curved = (times(f(*at), bend) for f, bend in zip(self.twice, bends, strict=True) if bend is not None)
        return jet(self.value(*at), total(times(u, x.b), times(v, y.b)), total(times(u, x.c), times(v, y.c)),
                   total(times(u, x.d), times(v, y.d), *curved))


def power_rule(r: arb) -> Unary:
    """x ** r for a constant r. A factor of zero leaves no term, at a pole neither."""
    bend = r * (r - 1)
    return Unary(lambda x: power(x, r), lambda x: None if r.is_zero() else mul(r, power(x, r - 1)),
                 lambda x: None if bend.is_zero() else mul(bend, power(x, r - 2)))


def faded(x: arb, log_y: arb) -> arb:
    """x log y, where x vanishes faster than the logarithm grows."""
    return ZERO if x.is_zero() else mul(x, log_y)


GENERAL_POWER = Binary(
    power,
    (lambda x, r: power_rule(r).slope(x), lambda x, r: faded(power(x, r), log(x))),
    (lambda x, r: power_rule(r).curve(x),
     lambda x, r: add(power(x, r - 1), mul(r, faded(power(x, r - 1), log(x)))),
     lambda x, r: faded(faded(power(x, r), log(x)), log(x))),
)
XLOGY = Binary(
    lambda x, y: ZERO if order(x, ZERO) == 0 and not y.is_nan() else mul(x, log(y)),
    (lambda x, y: log(y), lambda x, y: mul(x, recip(y))),
    (lambda x, y: None, lambda x, y: recip(y), lambda x, y: mul(-x, power(y, arb(-2)))),
)
INVERSE = power_rule(arb(-1))


def raised(x: Number, r: Number) -> Number:
    """x ** r."""
    return GENERAL_POWER(x, r) if isinstance(r, Jet) else power_rule(r)(x)


# The kinks. Each decides its branch only where something moves; their conventions are those of atoms.py.

def larger(x: Number, y: Number, tie: Number) -> Number:
    """The larger of two; at a tie, the derivative is shared."""
    if not isinstance(x, Jet) and not isinstance(y, Jet):
        return arb.max(x, y)
    match order(still(x), still(y)):
        case 0:
            return blend(still(x), [(x, still(tie)), (y, 1 - still(tie))])
        case None:
            return product(plus(x, y), NAN)
        case where:
            return x if where > 0 else y


def magnitude(x: Number) -> Number:
    """|x|; its derivative is 0 at 0."""
    if not isinstance(x, Jet):
        return abs(x)
    where = order(x.a, ZERO)
    return product(x, NAN) if where is None else ZERO if where == 0 else x if where > 0 else negative(x)


def sign(x: Number, tie: Number = ZERO, below: arb = -ONE) -> arb:
    """-1, 0 or 1; with a tie and 0 below, a step."""
    where = order(still(x), ZERO)
    return NAN if where is None else ONE if where > 0 else below if where < 0 else still(tie)


def unless_zero(function: Callable[[arb], arb]) -> Callable[[arb], arb]:
    """A function that is 0 at 0 by convention."""
    return lambda x: ZERO if order(x, ZERO) == 0 else function(x)


def abs_power(x: Number, p: Number, odd: bool = False) -> Number:
    """|x| ** p or sign(x) |x| ** p; these and all their derivatives are 0 at 0."""
    r = still(p)

    def term(factor: arb, exponent: arb, odd: bool) -> Callable[[arb], arb]:
        return unless_zero(lambda x: mul(factor * (sign(x) if odd else ONE), power(abs(x), exponent)))

    return Unary(term(ONE, r, odd), term(r, r - 1, not odd), term(r * (r - 1), r - 2, odd))(x)


def remainder(x: Number, y: Number) -> Number:
    """x - y floor(x / y)."""
    quotient = mul(still(x), recip(still(y)))
    if not quotient.is_finite():
        return product(plus(x, y), NAN)
    whole = quotient.floor().unique_fmpz()
    if whole is None:
        give_up()
        whole = (quotient.mid() + 0.5).floor().unique_fmpz()
    return plus(x, negative(product(y, arb(whole))))


def largest(terms: Sequence[Number]) -> Number:
    """The maximum; the ties share its derivative evenly."""
    if any(still(x).is_nan() for x in terms):
        return product(summed(terms), NAN)
    best = max((still(x) for x in terms), key=lambda x: x.mid(), default=-INF)
    rivals = [x for x in terms if not still(x) < best]
    if not any(isinstance(x, Jet) for x in rivals):
        return fold(arb.max, map(still, rivals), best)
    ties = [x for x in rivals if len(rivals) == 1 or order(still(x), best) == 0]
    return ties[0] if len(ties) == 1 else blend(best, [(x, ONE / len(ties)) for x in ties])


def log_sum_exp(terms: Sequence[Number]) -> Number:
    """log of the sum of exponentials; of nothing, or of all -inf, it is -inf."""
    values = [still(x) for x in terms]
    shift = fold(arb.max, values, -INF)                                 # any number near the largest serves
    value = shift if not shift.is_finite() else add(shift.mid(), log(fold(add, (exp(x - shift.mid()) for x in values))))
    moved = [(x, exp(add(x.a, -value))) for x in terms if isinstance(x, Jet)]
    mean = parts(blend(value, moved))
    spread = total(*(times(share, times(x.b, x.c)) for x, share in moved))
    return jet(value, mean.b, mean.c, total(mean.d, spread, times(-ONE, times(mean.b, mean.c))))


def binade(x: arb) -> arb:
    """The power of two at or below x; 1 where x is 0 or infinite. A step, so nothing moves it."""
    if not (x.is_finite() and x.mid() > 0):
        return x if x.is_nan() else ONE
    mantissa, exponent = x.mid().man_exp()
    return arb(2) ** (int(mantissa).bit_length() - 1 + int(exponent))


FUNCTIONS: dict[type, Callable[..., Number]] = {
    sp.log: Unary(log, recip, lambda x: -power(x, arb(-2))),
    sp.tanh: Unary(tanh, lambda x: sech(x)**2, lambda x: -2 * tanh(x) * sech(x)**2),
    sp.erf: Unary(erf, bell, lambda x: mul(-2 * x, bell(x))),
    sp.sin: Unary(sin, cos, lambda x: -sin(x)),
    sp.cos: Unary(cos, lambda x: -sin(x), lambda x: -cos(x)),
    sp.sinh: Unary(sinh, cosh, sinh),
    sp.cosh: Unary(cosh, sinh, cosh),
    sp.atan: Unary(atan, lambda x: recip(x * x + 1), lambda x: mul(-2 * x, power(x * x + 1, arb(-2)))),
    atoms.softplus: Unary(softplus, sigmoid, lambda x: sigmoid(x) * sigmoid(-x)),
    atoms.sigmoid: Unary(sigmoid, lambda x: sigmoid(x) * sigmoid(-x),
                         lambda x: sigmoid(x) * sigmoid(-x) * (sigmoid(-x) - sigmoid(x))),
    atoms.log1p: Unary(log1p, lambda x: recip(add(ONE, x)), lambda x: -power(add(ONE, x), arb(-2))),
    atoms.expm1: Unary(expm1, exp, exp),
    atoms.expm1mx: Unary(lambda x: add(expm1(x), -x), expm1, exp),
    atoms.root: Unary(sqrt, unless_zero(lambda x: recip(2 * sqrt(x))), unless_zero(lambda x: -power(x, arb(-1.5)) / 4)),
    atoms.inverse_root: Unary(unless_zero(lambda x: power(x, arb(-0.5))), unless_zero(lambda x: -power(x, arb(-1.5)) / 2),
                              unless_zero(lambda x: power(x, arb(-2.5)) * 3 / 4)),
    atoms.xlogy: XLOGY,
    atoms.binade: lambda x: binade(still(x)),
    atoms.Abs: magnitude,
    atoms.Sign: sign,
    atoms.step: lambda x, tie: sign(x, tie, ZERO),
    atoms.hinge: lambda x, tie: larger(x, ZERO, tie),
    atoms.larger: larger,
    atoms.smaller: lambda x, y, tie: negative(larger(negative(x), negative(y), tie)),
    atoms.same: lambda x, y: ONE if order(still(x), still(y)) == 0 else ZERO,
    atoms.abs_power: abs_power,
    atoms.signed_power: lambda x, p: abs_power(x, p, odd=True),
    sp.Mod: remainder,
}
EXP = Unary(exp, exp, exp)
RELATIONS: dict[type, Callable[[int | None], bool]] = {                 # None: one side is NaN
    sp.StrictLessThan: lambda o: o == -1, sp.LessThan: lambda o: o in (-1, 0), sp.Equality: lambda o: o == 0,
    sp.StrictGreaterThan: lambda o: o == 1, sp.GreaterThan: lambda o: o in (0, 1), sp.Unequality: lambda o: o != 0,
}
REDUCTIONS: dict[str, Callable[[Sequence[Number]], Number]] = {
    "sum": summed, "max": largest, "logsumexp": log_sum_exp,
}
CONSTANTS: dict[Any, Callable[[], arb]] = {
    sp.pi: arb.pi, sp.E: arb.const_e, sp.EulerGamma: arb.const_euler, sp.Catalan: arb.const_catalan,
}


# Formulas as closures

Cell = tuple[int, ...]
Moves = Mapping[tuple[str, Cell], arb]


@dataclass
class Point:
    """Where a formula is evaluated: a sample, and the rates of the cells that move along e1 and e2."""

    problem: Problem
    sample: int
    first: Moves
    second: Moves
    places: dict[str, int] = field(default_factory=dict)                # of the bound indices
    known: dict[tuple[Any, ...], Number] = field(default_factory=dict)  # reductions that are done


Code = Callable[[Point], Number]


@dataclass(frozen=True)
class Frozen:
    """Reads that do not move along e1, or along e2: their slopes are stated."""

    first: frozenset[Load] = frozenset()
    second: frozenset[Load] = frozenset()


@lru_cache(maxsize=50_000)
def code(expr: sp.Expr, frozen: Frozen = Frozen()) -> Code:
    """A formula as a function of a point."""
    inner: Callable[[Any], Code] = lambda part: code(part, frozen)
    match expr:
        case nodes.Load():
            return read(expr, frozen)
        case nodes.Index():
            place = position(expr)
            return lambda point: arb(place(point))
        case nodes.Axis():
            return lambda point: arb(point.problem.size(expr))
        case nodes.Param():
            return lambda point: point.problem.scalars[expr.name]
        case nodes.Delta():
            one, other = map(position, expr.args)
            return lambda point: ONE if one(point) == other(point) else ZERO
        case nodes.Where():
            holds, (this, that) = condition(expr.condition), map(inner, expr.args[1:])
            return lambda point: this(point) if holds(point) else that(point)
        case nodes.Reduce():
            return reduction_code(expr, inner(expr.body))
        case nodes.Named():
            return inner(expr.body)
        case nodes.Stated():
            return stated_code(expr, frozen)
        case nodes.StopGradient():
            body = inner(expr.body)
            return lambda point: still(body(point))
        case nodes.StraightThrough():
            body, through = inner(expr.body), inner(expr.through)
            return lambda point: jet(still(body(point)), *parts(through(point))[1:])
        case sp.Add() | sp.Mul():
            join = plus if isinstance(expr, sp.Add) else product
            head, *rest = map(inner, expr.args)
            return lambda point: fold(lambda x, part: join(x, part(point)), rest, head(point))
        case sp.exp():                                                          # E**x too
            body = inner(expr.exp)
            return lambda point: EXP(body(point))
        case sp.Pow():
            base, exponent = map(inner, expr.args)
            return lambda point: raised(base(point), exponent(point))
        case sp.Rational():
            ratio = fmpq(int(expr.p), int(expr.q))
            return lambda point: arb(ratio)                                     # rounded to the precision of the moment
        case sp.Number():
            number = arb(float(expr))
            return lambda point: number
        case sp.NumberSymbol():
            constant = CONSTANTS.get(expr)
            return inner(expr.expand(func=True)) if constant is None else lambda point: constant()
    function = FUNCTIONS.get(type(expr))
    if function is None:
        raise OracleError(f"{type(expr).__name__} has no exact meaning: {expr}", repair="Give it one in losscomp/oracle.py.")
    arguments = [inner(arg) for arg in expr.args]
    return lambda point: function(*(argument(point) for argument in arguments))


def condition(expr: Any) -> Callable[[Point], bool]:
    """A condition as a function of a point."""
    if expr in (sp.true, sp.false):
        return lambda point: bool(expr)
    if type(expr) in RELATIONS:
        holds, (x, y) = RELATIONS[type(expr)], map(code, expr.args)
        return lambda point: holds(order(still(x(point)), still(y(point))))
    arms = [condition(arg) for arg in expr.args]
    match expr:
        case sp.And():
            return lambda point: all(arm(point) for arm in arms)
        case sp.Or():
            return lambda point: any(arm(point) for arm in arms)
        case sp.Not():
            return lambda point: not arms[0](point)
    raise OracleError(f"the condition {expr} is not settled", repair="Evaluate a form that check() returned.")


def position(expr: Any) -> Callable[[Point], int]:
    """An index expression as a function of a point."""
    if isinstance(expr, nodes.Index):
        key = expr.key
        return lambda point: point.places[key]
    general = code(expr)

    def place(point: Point) -> int:
        whole = still(general(point)).unique_fmpz()
        if whole is None:
            raise OracleError(f"the index {expr} is no integer", repair="Use an integer tensor or axis.index().")
        return int(whole)

    return place


def read(load: Load, frozen: Frozen) -> Code:
    """A read of a tensor, with the rates of the cell."""
    record, index = load.tensor.record, tuple(map(position, load.index))
    first, second = load not in frozen.first, load not in frozen.second

    def value(point: Point) -> Number:
        cell = tuple(place(point) for place in index)
        if record.per_sample:
            cell = (point.sample, *cell)
        key = (record.name, cell)
        found = point.problem.cells.get(key)
        if found is None:
            found = point.problem.absent.get(record.name)
            if found is None:
                raise OracleError(f"{record.name} has no cell {cell}", repair="Labels must be valid positions of their axis.")
        return jet(found, point.first.get(key) if first else None, point.second.get(key) if second else None, None)

    return value


def reduction_code(expr: nodes.Reduce, body: Code) -> Code:
    """A reduction, done once for each place of the indices around it."""
    join, key, axis = REDUCTIONS[expr.op], expr.bound.key, expr.bound.axis
    around = sorted(i.key for i in nodes.free_indices(expr))
    token = object()

    def value(point: Point) -> Number:
        places = point.places
        known = (token, *(places[i] for i in around))
        if known not in point.known:
            outer, terms = places.get(key), []
            for places[key] in range(point.problem.size(axis)):
                terms.append(body(point))
            if outer is not None:
                places[key] = outer
            point.known[known] = join(terms)
        return point.known[known]

    return value


def stated_code(expr: nodes.Stated, frozen: Frozen) -> Code:
    """A value with stated slopes. Second order differentiates the gradient as it stands: along e2 the slopes move, and so do
    the stated reads within the derivatives by all other reads."""
    loads = frozenset(load for load, _ in expr.slopes)
    natural = code(expr.body, replace(frozen, first=frozen.first | loads))
    along = code(expr.body, replace(frozen, second=frozen.second | loads))
    slopes = [(read(load, frozen), code(slope, frozen)) for load, slope in expr.slopes]

    def value(point: Point) -> Number:
        rest, pairs = parts(natural(point)), [(parts(x(point)), parts(slope(point))) for x, slope in slopes]
        c = parts(along(point)).c if point.second else None
        return jet(rest.a, total(rest.b, *(times(s.a, x.b) for x, s in pairs)), total(c, *(times(s.a, x.c) for x, s in pairs)),
                   total(rest.d, *(times(s.c, x.b) for x, s in pairs)))

    return value


# A loss over a batch

@dataclass(frozen=True)
class Problem:
    """One loss with its arguments, as balls."""

    form: Checked
    batch: int
    cells: Mapping[tuple[str, Cell], arb]
    absent: Mapping[str, arb]                                           # optional tensors that were left out
    sizes: Mapping[nodes.Axis, int]
    scalars: Mapping[str, arb]
    reduction: str
    upstream: Sequence[arb]                                             # one a sample
    directions: Moves
    known: dict[tuple[Any, ...], Number] = field(default_factory=dict)

    def size(self, axis: nodes.Axis) -> int:
        """The number of positions along an axis."""
        if axis not in self.sizes:
            raise OracleError(f"no given tensor has the axis {axis.name!r}", repair="Pass one that has it.")
        return self.sizes[axis]

    def sample(self, formula: sp.Expr, n: int, first: Moves, second: Moves) -> Number:
        """A formula at one sample. What moves along no single cell is kept: a total needs it again and again."""
        if first:
            return code(formula)(Point(self, n, first, second))
        key = (formula, n, bool(second), ctx.prec)
        if key not in self.known:
            self.known[key] = code(formula)(Point(self, n, first, second))
        return self.known[key]

    def over(self, formula: sp.Expr, touched: Collection[int], first: Moves, second: Moves) -> Number:
        """The sum of a formula over the batch; `touched` are the samples that read what moves along e1."""
        key = ("all", formula, bool(second), ctx.prec)
        if not first and key in self.known:
            return self.known[key]
        rest = second if second is not first else {}                    # where e1 and e2 are one cell, the others rest
        result = summed(self.sample(formula, n, *((first, second) if n in touched else ({}, rest))) for n in range(self.batch))
        if not first:
            self.known[key] = result
        return result

    def loss(self, touched: Collection[int], first: Moves, second: Moves) -> Number:
        """The reduced loss times upstream, as far as it moves along e1."""
        some = [self.sample(self.form.value, n, first, second) for n in touched]
        if self.reduction == "none":
            return summed(product(x, self.upstream[n]) for n, x in zip(touched, some, strict=True))
        scale, above = self.upstream[0], summed(some)
        if self.reduction == "mean":
            moving = {name for name, _ in (*first, *second)}
            if moving.isdisjoint(t.name for t in nodes.tensors(self.form.weight)):
                scale = mul(scale, recip(still(self.over(self.form.weight, (), {}, {}))))
            else:                                                       # the quotient rule, which needs all samples
                above = product(self.over(self.form.value, touched, first, second),
                                INVERSE(self.over(self.form.weight, touched, first, second)))
        elif self.reduction == "batchmean":
            scale = mul(scale, recip(arb(self.batch)))
        return product(above, scale)

    def values(self) -> list[tuple[float, float]]:
        """The loss, of each sample or reduced."""
        if self.reduction == "none":
            return [self.alone(n) for n in range(self.batch)]

        def reduced() -> list[arb]:
            above = still(self.over(self.form.value, (), {}, {}))
            below = {"mean": still(self.over(self.form.weight, (), {}, {})), "batchmean": arb(self.batch)}
            return [above if self.reduction == "sum" else mul(above, recip(below[self.reduction]))]

        return settle(reduced)

    def alone(self, n: int) -> tuple[float, float]:
        """The loss of one sample."""
        return settle(lambda: [still(self.sample(self.form.value, n, {}, {}))])[0]

    def derivatives(self, touched: Collection[int], first: Moves, second: Moves) -> list[tuple[float, float]]:
        """The derivative along e1, and its derivative along e2."""
        def moves() -> list[arb]:
            loss = parts(self.loss(touched, first, second))
            return [ZERO if part is None else part for part in (loss.b, loss.d)]

        results = settle(moves)
        infinite = [key for key, x in self.cells.items() if not x.is_finite() and not x.is_nan()]
        if not infinite or not any(math.isnan(high) for high, _ in results):
            return results
        if any(math.isnan(self.alone(n)[0]) for n in touched):
            return results
        return self.limits(infinite, touched, first, second, results)

    def limits(self, infinite: list[tuple[str, Cell]], touched: Collection[int], first: Moves, second: Moves,
               results: list[tuple[float, float]]) -> list[tuple[float, float]]:
        """`results` with limits for NaN, where these are the same for several ways to go to infinity."""
        count = len(infinite)
        trials = []
        for speeds in ([1] * count, range(1, count + 1), range(count + 1, 1, -1)):
            far = {key: sign(self.cells[key]) * s * arb(2) ** 2400 for key, s in zip(infinite, speeds, strict=True)}
            trial = replace(self, cells={**self.cells, **far}, known={})
            try:
                trials.append(trial.derivatives(touched, first, second))
            except OracleError:
                return results
        agreed = [(a[0], 0.0) if a[0] == b[0] == c[0] else (math.nan, 0.0) for a, b, c in zip(*trials, strict=True)]
        return [limit if math.isnan(result[0]) else result for result, limit in zip(results, agreed, strict=True)]


def settle(compute: Callable[[], Sequence[arb]]) -> list[tuple[float, float]]:
    """Results, as the nearest float64 and what is left over, at the first precision that suffices for all of them."""
    results: Sequence[arb] = ()
    for ctx.prec in PRECISIONS:
        try:
            results = compute()
        except Undecided:
            continue
        if all(map(known_well, results)):
            return [rounded(ball) for ball in results]
    raise OracleError(f"{PRECISIONS[-1]} bits do not settle a result: {', '.join(ball.str(5) for ball in results)}",
                      repair="Evaluate nearer to ordinary numbers.")


def known_well(ball: arb) -> bool:
    """Is the ball far smaller than one ULP of float64, or settled as infinite or NaN?"""
    return ball.rel_accuracy_bits() >= ENOUGH or ball.rad() < TINY or ball.is_nan() or ball > HUGE or ball < -HUGE


def rounded(ball: arb) -> tuple[float, float]:
    """The nearest float64, and what is left over."""
    high = float(ball)
    if ball > HUGE or ball < -HUGE:
        high = math.inf if ball > 0 else -math.inf
    return high, float(ball.mid() - arb(high)) if math.isfinite(high) else 0.0


def pose(form: Checked, tensors: Mapping[str, Any], params: Mapping[str, Any], reduction: str, upstream: Any,
         directions: Mapping[str, Any]) -> Problem:
    """The arguments as balls, checked against the definition."""
    if reduction not in ("none", "sum", "mean", "batchmean"):
        raise OracleError(f"reduction={reduction!r}", repair="Use none, sum, mean or batchmean.")
    arrays: dict[str, np.ndarray] = {}
    absent: dict[str, arb] = {}
    sizes: dict[Any, int] = {}
    for tensor in form.inputs:
        if tensor.name in tensors:
            arrays[tensor.name] = np.asarray(tensors[tensor.name])
            measure(tensor, arrays[tensor.name], sizes)
        elif tensor.record.default is not None:
            absent[tensor.name] = arb(float(tensor.record.default))
        else:
            raise OracleError(f"{tensor.name} is missing", repair="Pass every tensor that is not optional.")
    batch = sizes.pop("batch", 1)
    for name, direction in directions.items():
        if name not in arrays or np.shape(direction) != arrays[name].shape or name not in {t.name for t in form.differentiable}:
            raise OracleError(f"there is no real input of the name and shape of the direction {name!r}",
                              repair="Pass one number for each cell.")
    scales = np.broadcast_to(np.asarray(upstream, dtype=np.float64), (max(batch, 1),) if np.ndim(upstream) == 0 else (batch,))
    if np.ndim(upstream) and reduction != "none":
        raise OracleError(f"upstream has the shape {np.shape(upstream)}", repair="Pass one number for a reduced loss.")
    rates = balls(directions)
    read_params = nodes.params(sp.Tuple(form.value, form.weight))
    return Problem(
        form, batch, balls(arrays), absent, sizes,
        {p.name: arb(float(params.get(p.name, p.record.default))) for p in read_params},
        reduction, [arb(float(s)) for s in scales], {key: rate for key, rate in rates.items() if not rate.is_zero()})


def measure(tensor: Tensor, array: np.ndarray, sizes: dict[Any, int]) -> None:
    """Note the sizes of the batch and of the axes, and hold later tensors to them."""
    axes = (("batch",) if tensor.record.per_sample else ()) + tensor.record.axes
    if array.ndim != len(axes) or any(sizes.setdefault(a, n) != n for a, n in zip(axes, array.shape, strict=True)):
        raise OracleError(f"{tensor.name} has the shape {array.shape}, and its axes are ({', '.join(map(str, axes))})",
                          repair="Pass arrays in the layout of the kernels, none of them broadcast.")


def balls(arrays: Mapping[str, Any]) -> dict[tuple[str, Cell], arb]:
    """Every cell of some arrays, exactly."""
    return {(name, cell): arb(x.item()) for name, array in arrays.items() for cell, x in np.ndenumerate(np.asarray(array))}

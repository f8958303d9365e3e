"""What each function, relation, reduction and constant of a formula means: on jets, with its derivatives and its kinks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce as fold
from typing import Any

import sympy as sp
from flint import arb

from .. import atoms
from .balls import (
    INF,
    NAN,
    ONE,
    ZERO,
    add,
    atan,
    bell,
    cos,
    cosh,
    erf,
    exp,
    expm1,
    give_up,
    log,
    log1p,
    mul,
    order,
    power,
    recip,
    sech,
    sigmoid,
    sin,
    sinh,
    softplus,
    sqrt,
    tanh,
)
from .jets import Binary, Jet, Number, Unary, blend, jet, negative, parts, plus, product, still, summed, times, total


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


def log_add_exp(terms: Sequence[Number]) -> Number:
    """log of the sum of exponentials, where a term that is -inf moves nothing."""
    return log_sum_exp([x for x in terms if not (still(x) < 0 and not still(x).is_finite())])


def floor(x: Number) -> Number:
    """The largest integer that is not above x."""
    whole = still(x).floor().unique_fmpz()
    if whole is None:
        give_up()
        whole = (still(x).mid()).floor().unique_fmpz()
    return arb(whole)


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
    sp.floor: floor,
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

"""Balls: arb with decided branches and IEEE's infinities. Every ball is finite, infinite with a sure sign, or NaN.

What cannot be decided at one precision is given up there, and asked for again at the next of `PRECISIONS`.
"""

from __future__ import annotations

from collections.abc import Callable

from flint import arb, ctx

PRECISIONS = (128, 512, 2048, 8192)
ZERO, ONE, INF, NAN = arb(0), arb(1), arb("inf"), arb("nan")


class Undecided(Exception):
    """A ball is too wide to take a branch on."""


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
        if result.is_nan() and base.is_finite():                        # a ball around 0: its power is none to python-flint
            result = repeated(base, abs(n))
        if not result.is_finite() and not base.is_nan():
            if base.is_finite():
                give_up()
            result = INF if base > 0 or n % 2 == 0 else -INF
        return result if n >= 0 else recip(result)
    where = order(x, ZERO)
    if where == 1:
        return exp(mul(r, log(x)))
    return NAN if where == -1 else ZERO if order(r, ZERO) == 1 else INF


def repeated(x: arb, n: int) -> arb:
    """x ** n by multiplications."""
    result = ONE
    while n:
        result, x, n = (result * x if n & 1 else result), x * x, n >> 1
    return result

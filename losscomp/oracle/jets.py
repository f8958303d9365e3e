"""Jets: hyper-dual numbers over balls, their arithmetic, and functions of them from a value and its derivatives."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import reduce as fold
from typing import NamedTuple

from flint import arb

from .balls import ONE, ZERO, add, mul


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

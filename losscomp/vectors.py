"""Procedures about vectors: angles, lengths and parts along each other, from what the vectors do not have in common.

What is left of a vector less its part along another is one node, a `Rejection`. Lowering computes it by elimination, without the
digits that the two share; the procedures here see such parts in derivatives, and put cosines and differences of lengths in terms
of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import sympy as sp

from . import nodes
from .atoms import Abs, Sign, abs_power, binade, expm1, inverse_root, larger, log1p, root, signed_power, step
from .differentiate import rejected, split
from .nodes import Eliminated, Index, Named, Reduce, Rejection, Where, substitute, sum_of_squares
from .rewrite import without

NARROW = sp.Rational(63, 64)                     # the cosine of an angle below which what has more roundings has the smaller error


def lengths(factors: list[sp.Expr]) -> list[tuple[sp.Expr, list[sp.Expr]]]:
    """The sums of squares that a product is divided by, each with the factors that are left when it is taken out."""
    found = []
    for f in factors:
        base, power = f.as_base_exp()
        sign = -1 if isinstance(base, root) else 1
        if isinstance(base, root | inverse_root) and power.is_Integer and sign * power >= 2 and sum_of_squares(base.args[0]):
            rest = [g for g in factors if g != f]
            found.append((base.args[0], [*rest, base ** (power - 2 * sign)]))
    return found


def with_content_outside(term: sp.Expr) -> sp.Expr:
    """A product in which 2 a + 2 b is 2 (a + b) and -a - b is -(a + b), under sums too: SymPy spreads numbers over sums."""
    number, factors = sp.S.One, []
    for f in sp.Mul.make_args(term):
        if isinstance(f, Reduce) and f.op == "sum":
            count, body = with_content_outside(f.body).as_coeff_Mul()
            number, f = number * count, Reduce("sum", body, f.bound)
        elif isinstance(f, sp.Add):
            count = f.as_coeff_Add()[1].primitive()[0]                   # of what varies: a number among the terms has its own
            f = sp.Add(*(t / count for t in f.args))
            if all(t.as_coeff_Mul()[0] < 0 for t in f.args):
                count, f = -count, -f
            number *= count
        factors.append(f)
    return sp.Mul(number, *factors)


def opened(expr: sp.Expr, i: Index) -> sp.Expr:
    """A product under an author's name as the product, where some of its factors do not depend on i."""
    if isinstance(expr, Named) and isinstance(expr.body, sp.Mul) and any(i not in nodes.free_indices(f) for f in expr.body.args):
        return expr.body
    return expr


def rejection(expr: sp.Expr) -> sp.Expr | None:
    """k y(a) - k x(a) (sum of x y) / (sum of x**2 + c) is k times the rejection of y from x; and so behind another rejection."""
    if not isinstance(expr, sp.Add):
        return None
    found = rejection_among(expr)
    if found is None and any(isinstance(f, sp.Add) and f.has(Rejection) for term in expr.args for f in sp.Mul.make_args(term)):
        found = rejection_among(sp.Add(*(sp.expand_mul(term, deep=False) for term in expr.args)))
    return found


def rejection_among(expr: sp.Expr) -> sp.Expr | None:
    """The first rejection that two terms of a sum make."""
    terms: dict[sp.Expr, sp.Expr] = {}
    for count, core in (with_content_outside(t).as_coeff_Mul() for t in sp.Add.make_args(expr)):
        terms[core] = terms.get(core, sp.S.Zero) + count
    for core, count in terms.items():
        factors = list(sp.Mul.make_args(core))
        for square, left in lengths(factors):
            x_, bound, _ = sum_of_squares(square) or (sp.S.Zero, None, None)
            for dot in (f for f in left if isinstance(f, Reduce) and f.op == "sum" and bound is not None and f.bound.axis == bound.axis):
                i = dot.bound.axis.index()
                x_i, body = substitute(x_, {bound: i}), substitute(dot.body, {dot.bound: i})
                if x_i not in sp.Mul.make_args(body):
                    continue
                y_i = without(body, x_i)
                for f in left:
                    inner = f.args[0] if isinstance(f, Rejection) and sum_of_squares(f.args[3]) else f
                    place = nodes.place_of(inner, x_i, i)
                    if place is None:
                        continue
                    rest = list(left)
                    rest.remove(f)
                    rest.remove(dot)
                    factor = -count * sp.Mul(*rest)
                    behind = lambda y, f=f, place=place, i=i: substitute(
                        rejected(y, vector_of(f, i), i, f.args[3]) if isinstance(f, Rejection) else y, {i: place})
                    have, whole = (factor * behind(y_i)).as_coeff_Mul()
                    if terms.get(whole, 0) * have <= 0:
                        continue
                    part = min(abs(terms[whole] / have), sp.S.One)
                    left_over = rejected(opened(y_i, i), x_i, i, square)
                    if isinstance(y_i, Named) and left_over != 0:
                        left_over = Named("apart", left_over)
                    new = part * factor * behind(left_over)
                    kept = sp.Add(*(n * c for c, n in terms.items() if c not in (core, whole)))
                    return sp.Add(kept, (terms[whole] - part * have) * whole, (1 - part) * count * core, new)
    return None


def vector_of(part: Rejection, i: Index) -> sp.Expr:
    """The x[i] of a rejection."""
    x_, bound, _ = sum_of_squares(part.args[3]) or (part.args[1], i, None)
    return substitute(x_, {bound: i})


def power_rejection(expr: sp.Expr) -> sp.Expr | None:
    """The same in a norm of another power p: k abs(x(a))**(p - 2) times y(a) less its part along x, weighted by x**(p - 1)."""
    if not isinstance(expr, sp.Add):
        return None
    for taken in expr.args:
        factors = sp.Mul.make_args(taken)
        for whole in (f for f in factors if isinstance(f, abs_power) and isinstance(f.args[0], Reduce)):
            square, q = whole.args
            body = square.body
            if square.op != "sum" or not isinstance(body, abs_power):
                continue
            for x, dot in ((f, d) for f in factors for d in factors if isinstance(f, signed_power) and isinstance(d, Reduce)):
                i = dot.bound.axis.index()
                x_j, y_j = substitute(body.args[0], {square.bound: i}), substitute(dot.body, {dot.bound: i})
                weight = signed_power(x_j, body.args[1] - 1)
                place = nodes.place_of(x, weight, i)
                if dot.op != "sum" or place is None or weight not in sp.Mul.make_args(y_j):
                    continue
                y_j = without(y_j, weight)
                y_i, x_i = substitute(y_j, {i: place}), substitute(x_j, {i: place})
                slope = abs_power(x_i, body.args[1] - 2)
                rest = without(without(without(taken, whole), x), dot)
                for kept in (t for t in expr.args if t != taken):
                    ours = list(sp.Mul.make_args(kept))
                    power = next((f for f in ours if isinstance(f, abs_power | signed_power) and f.args[0] == square
                                  and sp.expand(f.args[1] - q) == 1), None)
                    if power is None or y_i not in ours or slope not in ours:
                        continue
                    for f in (power, y_i, slope):
                        ours.remove(f)
                    if sp.cancel(sp.Mul(*ours) / rest) == -1:
                        new = sp.Mul(*ours, slope, power, Rejection(y_i, x_i, Reduce("sum", weight * y_j, i), square))
                        return sp.Add(new, *(t for t in expr.args if t not in (taken, kept)))
    return None


def bare(expr: sp.Expr) -> sp.Expr:
    """Without the author's names."""
    return expr.replace(lambda e: isinstance(e, Named), lambda e: e.body)


def apart_by(x_: sp.Expr, y_: sp.Expr) -> sp.Expr | None:
    """x - y, where some read of the two is not in it: what they have in common goes before it is rounded."""
    x_, y_ = bare(x_), bare(y_)
    both = sp.expand_mul(x_ - y_)
    reads = lambda *some: {load for e in some for load in e.atoms(nodes.Load)}
    return both if both != 0 and reads(both) < reads(x_, y_) else None


Measure = tuple[str, sp.Expr, Index]


def measure(expr: sp.Expr) -> Measure | None:
    """For the length of a vector in one of three norms: which norm, the vector at a fresh index, and that index."""
    found = None
    if isinstance(expr, root) and (squares := sum_of_squares(expr.args[0])) is not None and squares[2] == 0:
        found = "root", squares[0], squares[1]
    elif isinstance(expr, Reduce) and isinstance(expr.body, Abs):
        found = expr.op, expr.body.args[0], expr.bound
    elif isinstance(expr, sp.Mul) and len(expr.args) == 2 and {type(f) for f in expr.args} == {abs_power, binade}:
        power, unit = sorted(expr.args, key=lambda f: isinstance(f, binade))
        inside, largest = power.args[0], unit.args[0]
        if isinstance(inside, Reduce) and isinstance(largest, Reduce) and isinstance(largest.body, Abs) and isinstance(
                inside.body, abs_power) and inside.body.args[1] * power.args[1] == 1 and bare(inside.body.args[0] * unit) == bare(
                substitute(largest.body.args[0], {largest.bound: inside.bound})):
            found = "power", largest.body.args[0], largest.bound
    if found is None:
        return None
    i = found[2].axis.index()
    return found[0], substitute(found[1], {found[2]: i}), i


def difference_of_lengths(expr: sp.Expr) -> sp.Expr | None:
    """k (length of x) - k (length of y), where x and y have something in common, from their difference."""
    if not isinstance(expr, sp.Add):
        return None
    found = [(t, t.as_coeff_Mul()[0], measure(t.as_coeff_Mul()[1])) for t in expr.args]
    lengths_ = [(t, k_, m) for t, k_, m in found if m is not None]
    for (t, k_, (kind, x_, i)), (u, n, (other, y_, j)) in ((v, w) for v in lengths_ for w in lengths_):
        y_ = substitute(y_, {j: i})
        if k_ <= 0 or n != -k_ or kind != other or i.axis != j.axis or (apart := apart_by(x_, y_)) is None:
            continue
        alike = sp.Eq(Sign(x_), Sign(y_), evaluate=False)
        first, second = t / k_, u / n
        if kind == "root":
            mean = Named("mean_length", first / 2 + second / 2)
            new = Where(sp.Eq(mean, 0), 0, Reduce("sum", apart * Named("middle", (x_ / 2 + y_ / 2) / mean), i))
        elif kind == "sum":
            new = Reduce("sum", Where(alike, Sign(x_) * apart, Abs(x_) - Abs(y_)), i)
        elif kind == "power":
            new = longer_in_power(first, second, x_, y_, i, Sign(x_) * apart, alike)
        else:
            tops = [sp.Eq(Abs(v), Named("largest", m), evaluate=False) for v, m in ((x_, first), (y_, second))]
            together, sign = sp.And(*tops, alike), Sign(x_) * apart
            new = Where(sp.Gt(Reduce("sum", Where(together, 1, 0), i), 0), Reduce("max", Where(together, sign, -sp.oo), i),
                        Named("largest", first) - Named("largest", second))
        return sp.Add(k_ * Named("longer_by", new), *(r for r in expr.args if r not in (t, u)))
    return None


def longer_in_power(first: sp.Expr, second: sp.Expr, x_: sp.Expr, y_: sp.Expr, i: Index, apart: sp.Expr, alike: sp.Expr) -> sp.Expr:
    """The length of x less that of y in the norm of a power p: second (((sum of x**p) / (sum of y**p))**(1/p) - 1)."""
    unit = next(f for f in second.args if isinstance(f, binade))
    p = 1 / next(f for f in second.args if isinstance(f, abs_power)).args[1]
    most = larger(larger(Abs(x_), Abs(y_), sp.S.Half), Abs(apart), sp.S.Half)
    part = -Abs(apart) / Where(sp.Eq(most, 0), 1, most)
    of = lambda v: abs_power(Named("scaled", v / unit), p)
    more = Where(alike, -Sign(apart) * of(most) * expm1(p * log1p(part)), of(x_) - of(y_))
    grown = Reduce("sum", more, i) / Reduce("sum", of(y_), i)
    first, second = Named("longer", first), Named("shorter", second)
    near = sp.And(sp.Lt(first, 2 * second), sp.Lt(second, 2 * first))
    return Where(near, second * expm1(log1p(grown) / p), first - second)


@dataclass(frozen=True)
class Unit:
    """A component of the slope of a length, in one term of a sum: of x / (length of x), or of its like in a norm of another power.

    Attributes:
        term, factor: the term of the sum, and what else is multiplied in it.
        x, i, place: the vector at an index, that index, and where the component is taken.
        value: the component at i.
        square: the sum of squares, where the power is 2, else None.
        power: the exponent of the norm.
    """

    term: sp.Expr
    factor: sp.Expr
    x: sp.Expr
    i: Index
    place: Index
    value: sp.Expr
    square: sp.Expr | None
    power: sp.Expr


def units_in(term: sp.Expr) -> Iterator[Unit]:
    """Every way to read a product as a multiple of such a component."""
    factors = sp.Mul.make_args(term)
    for f in factors:
        if isinstance(f, inverse_root) and (squares := sum_of_squares(f.args[0])) is not None and squares[2] == 0:
            i = squares[1].axis.index()
            x_ = substitute(squares[0], {squares[1]: i})
            for g in factors:
                if (place := nodes.place_of(g, x_, i)) is not None:
                    yield Unit(term, without(without(term, f), g), x_, i, place, x_ * f, f.args[0], sp.S(2))
        elif isinstance(f, abs_power | signed_power) and isinstance(whole := f.args[0], Reduce) and isinstance(whole.body, abs_power):
            i, (scaled, p) = whole.bound.axis.index(), whole.body.args
            unit = next(iter(scaled.atoms(binade)), None)
            slope = signed_power(substitute(scaled, {whole.bound: i}), p - 1)
            place = next((j for g in factors if (j := nodes.place_of(g, slope, i)) is not None), None)
            if whole.op == "sum" and unit is not None and place is not None and sp.expand(f.args[1] - 1 / p) == -1:
                rest = without(without(term, f), substitute(slope, {i: place}))
                yield Unit(term, rest, bare(substitute(scaled, {whole.bound: i}) * unit), i, place, slope * f, None, p)


def difference_of_units(expr: sp.Expr) -> sp.Expr | None:
    """k x(a) / (length of x) - k y(a) / (length of y), where x and y have something in common, from what they do not share.

    A sum is the difference from -y. One of the two may be taken only where a step is 1.
    """
    if not isinstance(expr, sp.Add):
        return None
    terms = list(map(with_content_outside, expr.args))
    found = [unit for term in terms for unit in units_in(term)]
    for u, v in itertools.permutations(found, 2):
        shared = common_factor(u.factor, v.factor)
        if u.term == v.term or u.power != v.power or u.i.axis != v.i.axis or u.place != v.place or shared is None:
            continue
        sign, gate = shared
        y_ = -sign * substitute(v.x, {v.i: u.i})
        if (apart := apart_by(u.x, y_)) is None or (gate == 1 and u.factor.could_extract_minus_sign()):
            continue
        first = replace(u, value=Named("unit_x", u.value))
        second = replace(v, x=y_, i=u.i, value=Named("unit_y", -sign * substitute(v.value, {v.i: u.i})))
        turned = (turned_root if u.square is not None else turned_power)(first, second, apart)
        new = u.factor * gate * substitute(turned, {u.i: u.place})
        if gate != 1:
            new += u.term * step(-gate.args[0], 1 - gate.args[1])
        return sp.Add(new, *(t for t in terms if t not in (u.term, v.term)))
    return None


def common_factor(k: sp.Expr, n: sp.Expr) -> tuple[sp.Expr, sp.Expr] | None:
    """For n = k, or -k, or that times a step: the sign, and the step or 1."""
    for gate in (sp.S.One, *(f for f in sp.Mul.make_args(n) if isinstance(f, step))):
        rest = n if gate == 1 else without(n, gate)
        if rest in (k, -k):
            return sp.S.One if rest == k else sp.S.NegativeOne, gate
    return None


def turned_root(u: Unit, v: Unit, apart: sp.Expr) -> sp.Expr:
    """The difference of two units, from the rejection of x - y from y where the angle is small."""
    cosine = Named("cosine", Reduce("sum", u.value * v.value, u.i))
    return Where(sp.Gt(cosine, sp.S.Half), turned_near(u, v, apart), u.value - v.value)


def turned_near(u: Unit, v: Unit, apart: sp.Expr) -> sp.Expr:
    """The difference of two units at an angle below a right one."""
    cosine = Named("cosine", Reduce("sum", u.value * v.value, u.i))
    across = Named("across", rejected(apart, v.x, u.i, v.square) * inverse_root(u.square))
    return across - v.value * (Reduce("sum", across**2, u.i) / (1 + cosine))


def difference_of_rejections(expr: sp.Expr) -> sp.Expr | None:
    """k (rejection of v from x) / (length of x) - k (rejection of w from y) / (length of y), from what x and y, v and w do not share.

    It is what is left of v - w beside x, less the turn of w with x - y, less what w / (length of x) is shorter than w / (length of y).
    """
    if not isinstance(expr, sp.Add):
        return None
    found = [(t, f, g) for t in expr.args for f in sp.Mul.make_args(t) if isinstance(f, Rejection) for g in sp.Mul.make_args(t)
             if g == inverse_root(f.args[3]) and (squares := sum_of_squares(f.args[3])) is not None and squares[2] == 0]
    for (t, first, f), (u, second, g) in itertools.permutations(found, 2):
        factor = without(without(t, first), f)
        if t == u or without(without(u, second), g) != -factor or factor.could_extract_minus_sign():
            continue
        i = first.args[2].bound.axis.index()
        x_, y_ = vector_of(first, i), vector_of(second, i)
        place = nodes.place_of(first.args[1], x_, i)
        apart = apart_by(x_, y_)
        if place is None or apart is None or nodes.place_of(second.args[1], y_, i) != place:
            continue
        v, w = (substitute(r.args[0], {place: i}) for r in (first, second))
        v_less_w = apart_by(v, w)
        if v_less_w is None:
            continue
        units = [Unit(t, factor, z, i, place, Named(name, z * h), r.args[3], sp.S(2))
                 for name, z, h, r in (("unit_x", x_, f, first), ("unit_y", y_, g, second))]
        turn = Named("turn", turned_near(units[0], units[1], apart))
        along = lambda z, w=w, i=i: Reduce("sum", z * w, i)
        mean = Named("mean_length", root(first.args[3]) / 2 + root(second.args[3]) / 2)
        longer = Reduce("sum", Named("apart_in_units", apart * f) * Named("middle", (x_ / 2 + y_ / 2) / mean), i)
        behind = rejected(w, y_, i, second.args[3])
        near = rejected(v_less_w, x_, i, first.args[3]) * f - longer * (behind * g) - f * (
            turn * along(units[1].value) + units[0].value * along(turn))
        plain = Named("first_part", rejected(v, x_, i, first.args[3]) * f) - Named("second_part", behind * g)
        cosine = Named("cosine", Reduce("sum", units[0].value * units[1].value, i))
        new = factor * substitute(Where(sp.Gt(cosine, NARROW), near, plain), {i: place})
        return sp.Add(new, *(r for r in expr.args if r not in (t, u)))
    return None


def turned_power(u: Unit, v: Unit, apart: sp.Expr) -> sp.Expr:
    """The same in a norm of another power p, from how the ratios of components to the one where y is largest differ.

    These ratios are r and s, and r - s is eliminated. The logarithm of a component of the first unit over that of the second is
    log(r / s) less what the sums of r**p and s**p differ by, in logarithms, over p; where y is largest r and s are 1.
    """
    i, p = u.i, u.power
    x_, y_ = Named("first", u.x), Named("second", v.x)
    largest = Named("largest", Reduce("max", Abs(y_), i))
    unit = Named("scale_of_second", binade(largest))
    there = lambda e: Reduce("max", Where(sp.Eq(Abs(y_), largest, evaluate=False), Sign(y_) * e, -sp.oo), i)
    top = Named("first_there", there(x_))
    pivot = Where(sp.Eq(largest, 0), 1, largest / unit)
    longest = Named("largest_of_first", Reduce("max", Abs(x_), i))
    alike = sp.And(sp.Gt(2 * top, longest), sp.Gt(largest, 0), evaluate=False)
    safe = Named("first_or_1", Where(alike, top, 1))
    left = Named("left", Eliminated(Named("apart", apart), pivot, y_ / unit, there(Named("apart", apart))) / pivot)
    r, s, d = Named("ratio", x_ / safe), Named("ratio_of_second", y_ / Where(alike, largest, 1)), Named("ratios_apart", left / safe)
    same_sign = sp.Gt(Sign(r) * Sign(s), 0)
    near = sp.And(same_sign, sp.Lt(Abs(r), 2 * Abs(s)), sp.Lt(Abs(s), 2 * Abs(r)))
    log_ratio = Named("log_ratio", Where(near, log1p(d / Where(near, s, 1)), sp.log(Where(same_sign, r / s, 1))))
    most = Named("larger_ratio", larger(Abs(r), Abs(s), sp.S.Half))
    grown = Where(same_sign, -Sign(log_ratio) * abs_power(most, p) * expm1(-p * Abs(log_ratio)), abs_power(r, p) - abs_power(s, p))
    shift = Named("shift", log1p(Reduce("sum", grown, i) / Reduce("sum", abs_power(s, p), i)) / p)
    turn = Named("turn", (p - 1) * (log_ratio - shift))
    return Where(sp.And(alike, same_sign, sp.Lt(Abs(turn), sp.Rational(7, 10))), v.value * expm1(turn), u.value - v.value)


def one_minus_cosine(expr: sp.Expr) -> sp.Expr | None:
    """1 - cos is sin**2 / (1 + cos) where the cosine of x and y is large; sin**2 from the rejection of y from x."""
    if not isinstance(expr, sp.Add) or 1 not in expr.args:
        return None
    for cosine in (-t for t in expr.args):
        if not (isinstance(cosine, Reduce) and cosine.op == "sum"):
            continue
        i = cosine.bound.axis.index()
        factors = [opened(f, i) for f in sp.Mul.make_args(substitute(cosine.body, {cosine.bound: i}))]
        outer, inner = split(sp.Mul(*factors), i)
        squares = [f.base.args[0] for f in sp.Mul.make_args(outer) if f.is_Pow and f.exp == -1 and isinstance(f.base, root)]
        found = [(s, sum_of_squares(s)) for s in squares]
        vectors = {substitute(x_, {bound: i}): (s, c) for s, (x_, bound, c) in ((s, f) for s, f in found if f is not None)}
        if len(vectors) != 2 or sp.Mul(*vectors) != inner or sp.Mul(*(1 / root(s) for s in squares)) != outer:
            continue
        (x_i, (square, c)), (y_i, (other, d)) = sorted(vectors.items(), key=lambda item: sp.default_sort_key(item[0]))
        apart = Reduce("sum", Named("apart", rejected(y_i, x_i, i, square) / root(other))**2, i)
        named = Named("cosine", cosine)                                  # the name also keeps 1 - cosine from being rewritten again
        defects = named**2 * c / root(square)**2 + d / root(other)**2
        new = Where(sp.Gt(named, sp.S.Half), (apart + defects) / (1 + named), 1 - named)
        return sp.Add(new, *(t for t in expr.args if t not in (1, -cosine)))
    return None

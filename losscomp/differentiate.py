"""One derivation serves the gradient, the directional derivative and the Hessian-vector product: only the seed differs.

SymPy only ever differentiates a scalar formula: the parts that are ours are frozen to symbols first and thawed after, and
each is multiplied by its own rate of change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import sympy as sp

from .atoms import inverse_root, same
from .errors import CheckError
from .nodes import (
    Delta,
    Index,
    IndexRecord,
    Load,
    LogAddExp,
    Named,
    Reduce,
    Rejection,
    Share,
    Stated,
    StopGradient,
    StraightThrough,
    Tensor,
    Where,
    free_indices,
    outermost,
    substitute,
    sum_of_squares,
)

Seed = Callable[[Load], sp.Expr]
OPAQUE = (Load, Delta, Reduce, Rejection, LogAddExp, Share, Named, Stated, StopGradient, StraightThrough, Where)


def derive(expr: sp.Expr, seed: Seed) -> sp.Expr:
    """The rate of change of `expr` while every load x[i] moves at the rate seed(x[i])."""
    parts = outermost(expr, OPAQUE)
    rates = {part: rate for part in parts if (rate := rate_of(part, seed)) != 0}
    if not rates:
        return sp.S.Zero
    names = {part: sp.Dummy(f"frozen{k}", real=True, positive=part.is_positive) for k, part in enumerate(parts)}
    thaw = {name: part for part, name in names.items()}
    frozen = substitute(expr, names)
    return sp.Add(*(substitute(frozen.diff(names[part]), thaw) * rate for part, rate in rates.items()))


def rate_of(part: sp.Expr, seed: Seed) -> sp.Expr:
    """The rate of change of an opaque part."""
    match part:
        case Load():
            return sp.S.Zero if part.tensor.record.integer else sp.sympify(seed(part))
        case Delta() | StopGradient():
            return sp.S.Zero
        case Named():
            return derive(part.body, seed)
        case StraightThrough():
            return derive(part.through, seed)
        case Where():
            condition, a, b = part.args
            return Where(condition, derive(a, seed), derive(b, seed))
        case Stated():
            slopes = dict(part.slopes)
            stated = sp.Add(*(slope * seed(load) for load, slope in slopes.items()))
            return stated + derive(part.body, lambda load: sp.S.Zero if load in slopes else seed(load))
        case Reduce():
            return reduction_rate(part, seed)
        case Rejection():
            return rejection_rate(part, seed)
        case LogAddExp():
            return sp.Add(*(share_of(term, part) * rate for term in part.args if (rate := derive(term, seed)) != 0))
        case Share(args=(term, whole)):
            return part * (derive(term, seed) - derive(whole, seed))
    raise CheckError(f"{type(part).__name__} has no derivative: {part}")


def share_of(term: sp.Expr, whole: sp.Expr) -> sp.Expr:
    """What a term is of a log-sum-exp; a selection stays outside, so that an arm that is -oo is 0 and no exponential."""
    match term:
        case Where(args=(condition, a, b)):
            return Where(condition, share_of(a, whole), share_of(b, whole))
        case sp.S.NegativeInfinity:
            return sp.S.Zero
    return Share(term, whole)


def reduction_rate(part: Reduce, seed: Seed) -> sp.Expr:
    """The rate of a reduction: the rates of its terms, weighted by their share in it."""
    bound = part.bound.axis.index()
    body = substitute(part.body, {part.bound: bound})
    rate = derive(body, seed)
    if rate == 0:
        return rate
    terms = sp.Add.make_args(rate)
    if part.op == "sum":
        return total(rate, bound)
    if part.op == "logsumexp":
        return total(sp.Add(*(sp.exp(body - part) * term for term in terms)), bound)
    ties = same(body, part)                                              # a maximum: shared evenly among the ties
    return total(sp.Add(*(ties * term for term in terms)), bound) / total(ties, bound)


def rejection_rate(part: Rejection, seed: Seed) -> sp.Expr:
    """The rate of a rejection, in rejections: that of y', less that of x' along y, less x times what y' shares with it.

    A seed of deltas needs the formula itself, which is linear in them.
    """
    _, x, dot, square = part.args
    found = sum_of_squares(square)
    if found is None or derive(x, seed).has(Delta) or derive(dot, seed).has(Delta) or derive(found[2], seed) != 0:
        return derive(part.meaning, seed)
    along, bound, _ = found
    i = bound.axis.index()
    x_i, y_i = substitute(along, {bound: i}), other_factor(part, i)
    x_rate, y_rate = derive(x_i, seed), derive(y_i, seed)
    place = next((j for j in free_indices(x) if substitute(x_i, {i: j}) == x), None)
    if place is None:
        return derive(part.meaning, seed)
    at = lambda expr: substitute(expr, {i: place})
    less = lambda y: at(rejected(y, x_i, i, square))
    inverse = inverse_root(square)
    shared = total(x_rate * rejected(y_i, x_i, i, square), i)
    along_x = Reduce("sum", Named("unit", x_i * inverse) * y_i, i)       # the name keeps x y, which may overflow, from being added up
    return less(y_rate) - along_x * inverse * less(x_rate) - x * inverse**2 * shared


def rejected(y: sp.Expr, x: sp.Expr, i: Index, square: sp.Expr) -> sp.Expr:
    """The rejection of y[i] from x[i]; factors of y that do not depend on i stand outside."""
    outer, inner = split(y, i)
    return sp.S.Zero if y == 0 else outer * Rejection(inner, x, Reduce("sum", x * inner, i), square)


def other_factor(part: Rejection, i: Index) -> sp.Expr:
    """The y[i] of a rejection, taken from its sum of x y."""
    _, _, dot, square = part.args
    along, bound, _ = sum_of_squares(square) or (dot, i, dot)
    return substitute(dot.body, {dot.bound: i}) / substitute(along, {bound: i})


def total(body: sp.Expr, index: Index) -> sp.Expr:
    """The sum over an index. Collapses deltas and pulls out what does not depend on the index."""
    deltas, rest = without_deltas(sp.sympify(body), lambda delta: index in delta.args)
    picked = []
    for delta, factor in deltas.items():
        other = delta.args[1] if delta.args[0] == index else delta.args[0]
        picked.append(substitute(factor, {index: other}))
    apart, rest = without_deltas(rest, lambda delta: index not in free_indices(delta))     # else there is a sum for each place
    return sp.Add(*picked, *(delta * summed(factor, index) for delta, factor in apart.items()), summed(rest, index))


def summed(body: sp.Expr, index: Index) -> sp.Expr:
    """The sum over an index; what does not depend on the index stands outside."""
    outer, inner = split(body, index)
    return sp.S.Zero if inner == 0 or outer == 0 else outer * Reduce("sum", inner, index)


Linear = tuple[dict[Delta, sp.Expr], sp.Expr]


def without_deltas(expr: sp.Expr, meant: Callable[[Delta], bool]) -> Linear:
    """`expr`, which is linear in the deltas that are meant, as a factor for each of them and a rest that has none."""
    there = lambda part: any(meant(d) and free_indices(d) <= free_indices(part) for d in part.atoms(Delta))   # not bound within
    if not there(expr):
        return {}, expr
    match expr:
        case Delta():
            return {expr: sp.S.One}, sp.S.Zero
        case sp.Add():
            parts = [without_deltas(term, meant) for term in expr.args]
            return merge([deltas for deltas, _ in parts]), sp.Add(*(rest for _, rest in parts))
        case sp.Mul():
            first = next(f for f in expr.args if there(f))
            others = expr / first
            deltas, rest = without_deltas(first, meant)
            more, rest = without_deltas(rest * others, meant) if rest != 0 else ({}, sp.S.Zero)
            return merge([{delta: factor * others for delta, factor in deltas.items()}, more]), rest
        case Where():
            condition, a, b = expr.args
            (above, a), (below, b) = without_deltas(a, meant), without_deltas(b, meant)
            zero = sp.S.Zero
            arms = {d: Where(condition, above.get(d, zero), below.get(d, zero)) for d in {**above, **below}}
            return arms, Where(condition, a, b)
        case Reduce():
            bound = expr.bound.axis.index()
            leaves = lambda delta: meant(delta) and bound not in free_indices(delta)
            deltas, rest = without_deltas(substitute(expr.body, {expr.bound: bound}), leaves)
            return {d: total(factor, bound) for d, factor in deltas.items()}, total(rest, bound)
    raise CheckError(f"the derivative is not linear in its deltas: {expr}")


def merge(parts: list[dict[Delta, sp.Expr]]) -> dict[Delta, sp.Expr]:
    """The factors of each delta, added up."""
    result: dict[Delta, sp.Expr] = {}
    for part in parts:
        for delta, factor in part.items():
            result[delta] = result.get(delta, sp.S.Zero) + factor
    return result


def split(body: sp.Expr, index: Index) -> tuple[sp.Expr, sp.Expr]:
    """The factors that do not depend on the index, and those that do."""
    factors = sp.Mul.make_args(body)
    outer = sp.Mul(*(f for f in factors if index not in free_indices(f)))
    return outer, sp.Mul(*(f for f in factors if index in free_indices(f)))


def gradient(expr: sp.Expr, wrt: Tensor) -> tuple[sp.Expr, tuple[Index, ...]]:
    """d expr / d wrt[j], and the free indices j."""
    if wrt.record.integer:
        raise CheckError(f"{wrt.name} holds integers: there is no derivative by it",
                         repair="Ask for the gradient of a real tensor.")
    j = output_index(wrt)
    return derive(expr, lambda load: sp.Mul(*map(Delta, load.index, j)) if load.tensor == wrt else sp.S.Zero), j


def output_index(tensor: Tensor) -> tuple[Index, ...]:
    """The free indices of an output that has the axes of a tensor."""
    return tuple(Index(IndexRecord(axis, f"out{k}")) for k, axis in enumerate(tensor.record.axes))


def directional(expr: sp.Expr, directions: Mapping[Tensor, Tensor]) -> sp.Expr:
    """d/dt expr(x + t v): linear in v. Of a gradient, this is the Hessian-vector product."""
    return derive(expr, lambda load: Load(directions[load.tensor], *load.index) if load.tensor in directions else sp.S.Zero)

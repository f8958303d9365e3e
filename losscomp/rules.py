"""The rules, one line each: what is replaced, by what, and which defect that removes.

Two sets, one engine. Smoothing rules turn a definition into smooth atoms, which are then differentiated; stabilising rules
choose the accurate form of each result. A rule is sound when both sides agree wherever both are defined, and the right side is
defined wherever the left is. The tests prove every rule from this table, symbolically and at random points.

A rule that is offered helps some definitions and hurts others: it is taken where a definition names it. Rules that are often
written down and are false stand in the table too, disabled, each with a point that refutes it.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import lru_cache

import sympy as sp

from . import nodes
from .atoms import (
    Abs,
    Sign,
    binade,
    entropy_gap,
    expm1,
    expm1mx,
    hinge,
    hypotenuse,
    inverse_root,
    larger,
    log1mexp,
    log1p,
    log1pmx,
    logaddexp,
    logcosh,
    number,
    root,
    sigmoid,
    smaller,
    softplus,
    step,
    xlogy,
)
from .differentiate import split
from .errors import DefinitionError
from .nodes import Delta, Eliminated, Index, Load, Named, Reduce, Where, substitute
from .rewrite import ANY_INDEX, BOUND, Binding, Hole, Procedure, Rule, kinds, over, without
from .vectors import (
    difference_of_lengths,
    difference_of_rejections,
    difference_of_units,
    one_minus_cosine,
    power_rejection,
    rejection,
)

a, b, c, f, k, x, y, t = map(Hole, "abcfkxyt")
_sum_exp = Reduce("sum", sp.exp(over(f)), ANY_INDEX)


def _log_sum_exp(found: Binding) -> sp.Expr:
    return Reduce("logsumexp", found[f], found[BOUND])


def _exponential(found: Binding) -> bool:
    """Does one side hold an exponential, so that taking the product apart removes an overflow?"""
    return all(found[h].is_positive for h in (a, b)) and any(part.has(sp.exp, sigmoid) for part in (found[a], found[b]))


def _opposite(found: Binding) -> bool:
    """Are these numbers of opposite signs, which nearly cancel?"""
    one, other = number(found[a]), number(found[b])
    return one is not None and other is not None and bool((one > 0) != (other > 0) and abs(one + other) < abs(one) / 2)


def _unnamed(found: Binding) -> bool:
    """Can the first be given a name, and has neither one, so that a rule does not match in its own result?"""
    return not (found[a].is_Atom or any(isinstance(found[h], Named) for h in (a, b)))


def _fraction(found: Binding) -> sp.Expr:
    """x / (c + sqrt(c**2 + x**2)), at most 1: the name keeps x apart, so that no square of it overflows or vanishes."""
    return Named("fraction", found[x] / (found[c] + hypotenuse(found[x], found[c])))


# Softmaxes. A share near 1 is told from 1 by the sum of the others, where it is the largest; what is left of a value when its mean under
# a softmax is taken away is the difference from the mean as it was rounded, less the mean of such differences.

FROM_MEAN = "from_mean"
SOFTMAX = frozenset({sp.exp, "logsumexp"})


def shares(expr: sp.Expr) -> list[tuple[sp.exp, Reduce, sp.Expr]]:
    """The softmaxes in a product: exp(body at a position - logsumexp), with that logsumexp and the position's body."""
    found = []
    for factor in sp.Mul.make_args(expr):
        if isinstance(factor, sp.exp) and "logsumexp" in kinds(factor):
            for lse in factor.args[0].atoms(Reduce):
                if lse.op == "logsumexp" and factor.args[0].coeff(lse) == -1:
                    found.append((factor, lse, factor.args[0] + lse))
    return found


@lru_cache(maxsize=10_000)
def opened(expr: sp.Expr) -> sp.Expr:
    """A sum with the products among its terms multiplied out, but not what stands within functions."""
    return sp.Add(*(sp.expand_mul(term, deep=False) for term in sp.Add.make_args(expr)))


def position_of(here: sp.Expr, lse: Reduce) -> sp.Expr | None:
    """The index at which a softmax is taken, if it is one."""
    candidates = sorted((i for i in nodes.free_indices(here) if i.axis == lse.bound.axis), key=str)
    return next((i for i in candidates if substitute(lse.body, {lse.bound: i}) == here), None)


def relative(lse: Reduce) -> tuple[sp.Expr, sp.Expr, sp.Expr]:
    """The largest term of a logsumexp, the sum of the others relative to it, and how often it occurs."""
    largest = Reduce("max", lse.body, lse.bound)
    top = sp.Eq(lse.body, largest, evaluate=False)
    return (largest, Reduce("sum", Where(top, 0, sp.exp(lse.body - largest)), lse.bound),
            Reduce("sum", Where(top, 1, 0), lse.bound))


def complement(here: sp.Expr, lse: Reduce) -> sp.Expr:
    """1 - softmax, where `here` is the body of the logsumexp at the position."""
    largest, others, ties = relative(lse)
    top = sp.Eq(here, largest, evaluate=False)
    rest = Where(top, others + Named("more_ties", ties - 1), Named("sum_exp", others + ties) - sp.exp(here - largest))
    return rest / (others + ties)


def quotient(term: sp.Expr, factor: sp.Expr) -> sp.Expr:
    """term / factor, without dividing by what stands in both: exp(a) exp(b) / exp(b) is exp(a)."""
    (count, rest), (other, gone) = term.as_coeff_Mul(), factor.as_coeff_Mul()
    left = list(sp.Mul.make_args(rest))
    for f in sp.Mul.make_args(gone):
        if f not in left:
            return term / factor
        left.remove(f)
    return count / other * sp.Mul(*left)


def softmax_minus_one_hot(expr: sp.Expr) -> sp.Expr | None:
    """k softmax(a) - k delta(a, b) is k softmax(a) off b, and -k (1 - softmax(b)) at b; and so of a part of the delta.

    k may depend on a, and is then taken at b too.
    """
    if not isinstance(expr, sp.Add):
        return None
    for hit in expr.args:
        delta = next((d for d in sp.Mul.make_args(hit) if isinstance(d, Delta)), None)
        if delta is None:
            continue
        factor = -without(hit, delta)
        for term in expr.args:
            for part, share, k_ in [(*quotient(term, factor).as_coeff_Mul(), factor),
                                    *((sp.S.One, share, without(term, share)) for share, _, _ in shares(term))]:
                for _, lse, here in shares(share):
                    place = position_of(here, lse)
                    if place not in delta.args or share != sp.exp(here - lse) or not 0 < part <= 1:
                        continue
                    other = next(p for p in delta.args if p != place)
                    if factor not in (k_, substitute(k_, {place: other})):
                        continue
                    at = substitute(here, {place: other})
                    new = part * k_ * Where(sp.Eq(place, other), -complement(at, lse), share)
                    return sp.Add(new, (1 - part) * hit, *(rest for rest in expr.args if rest not in (hit, term)))
    return None


def softmax_times_complement(expr: sp.Expr) -> sp.Expr | None:
    """k softmax(a) - k softmax(a)**2 is k softmax(a) (1 - softmax(a))."""
    if not isinstance(expr, sp.Add):
        return None
    terms = list(sp.Add.make_args(opened(expr)))
    for term in terms:
        for share, lse, here in shares(term):
            square = -term * share
            if square in terms:
                rest = list(terms)
                rest.remove(term)
                rest.remove(square)
                return sp.Add(term * complement(here, lse), *rest)
    return None


def centred_softmax(expr: sp.Expr) -> sp.Expr | None:
    """k softmax(a) (r(a) - sum over c of softmax(c) r(c)), with r taken relative to that mean, rounded."""
    if not isinstance(expr, sp.Add):
        return None
    terms = list(sp.Add.make_args(opened(expr)))
    for mean in terms:
        for total in (f for f in sp.Mul.make_args(mean) if isinstance(f, Reduce) and f.op == "sum"):
            factor = -mean / total
            for _, lse, here in shares(factor):
                place = position_of(here, lse)
                inner = substitute(total.body, {total.bound: place}) if place is not None else None
                if place is None or inner is None or sp.exp(here - lse) not in sp.Mul.make_args(inner) or any(
                        n.label == FROM_MEAN for n in inner.atoms(Named)):
                    continue
                own = without(inner, sp.exp(here - lse))
                wanted = sp.Add.make_args(opened(factor * own))
                if not all(w in terms for w in wanted):
                    continue
                rest = [t for t in terms if t not in wanted and t != mean]
                return sp.Add(factor * centred(own, place, lse), *rest)
    return None


def centred(own: sp.Expr, place: Index, lse: Reduce) -> sp.Expr:
    """own - the mean of own under the softmax, both relative to that mean as it was rounded: what this leaves is small, and known well."""
    i = lse.bound.axis.index()
    share, value = sp.exp(substitute(lse.body, {lse.bound: i}) - lse), substitute(own, {place: i})
    mean = Named("mean_under_softmax", Reduce("sum", share * value, i))
    apart = Named(FROM_MEAN, value - mean)
    return substitute(apart, {i: place}) - Reduce("sum", share * apart, i)


def share_of_a_sum(expr: sp.Expr) -> sp.Expr | None:
    """k softmax(a) (sum of q) - k q(a) is k softmax(a) (sum of the other q) - k q(a) (1 - softmax(a)); or see `even_shares`."""
    if not isinstance(expr, sp.Add):
        return None
    for term in expr.args:
        for whole in (f for f in sp.Mul.make_args(term) if isinstance(f, Reduce) and f.op == "sum"):
            rest = without(term, whole)
            for share, lse, here in shares(rest):
                place = position_of(here, lse)
                if place is None:
                    continue
                own, factor = substitute(whole.body, {whole.bound: place}), without(rest, share)
                wanted = next((some for some in ([-factor * own], [-factor * t for t in sp.Add.make_args(own)])
                               if all(t in expr.args for t in some)), None)
                if wanted is not None:
                    new = factor * (even_shares(own, place, share, lse) or share * others_of(whole, own) - own * complement(here, lse))
                    return sp.Add(new, *(t for t in expr.args if t != term and t not in wanted))
    return None


def even_shares(own: sp.Expr, place: Index, share: sp.Expr, lse: Reduce) -> sp.Expr | None:
    """softmax(a) (sum of q) - q(a), where q is one number at some positions and 0 at the others; None for another q.

    Where q is not 0 that is q (count exp(a) - sum of exp) / (sum of exp), and what is near the largest has its difference from 1: the
    ones are counted apart.
    """
    body = own.body if isinstance(own, Named) else own
    mark = next((f for f in sp.Mul.make_args(body) if isinstance(f, Where) and f.args[1:] == (1, 0)), None)
    if mark is None or place in nodes.free_indices(without(body, mark)):
        return None
    number, i = Named("each", without(body, mark)), lse.bound.axis.index()
    count = Reduce("sum", Where(substitute(mark.condition, {place: i}), 1, 0), i)
    largest, others, ties = relative(lse)
    below = substitute(lse.body, {lse.bound: i}) - largest
    near = below > -sp.S.Half
    at = lambda expr: substitute(expr, {i: place})
    ones, rest = Reduce("sum", Where(near, 1, 0), i), Reduce("sum", Where(near, expm1(below), sp.exp(below)), i)
    close = Named("ones_apart", count - ones) + Named("rest_apart", count * at(expm1(below)) - rest)
    apart = Where(at(near), close, count * at(sp.exp(below)) - Named("sum_exp", ones + rest))
    return Where(mark.condition, number * apart / (others + ties), share * number * count)


def others_of(whole: Reduce, own: sp.Expr) -> sp.Expr:
    """A sum less one of its terms; less the largest, it is added up anew."""
    i = whole.bound.axis.index()
    body = substitute(whole.body, {whole.bound: i})
    largest = Reduce("max", Abs(body), i)
    top = sp.Eq(Abs(body), largest, evaluate=False)
    smaller_ones, largest_ones = Reduce("sum", Where(top, 0, body), i), Reduce("sum", Where(top, body, 0), i)
    return Where(sp.Eq(Abs(own), largest, evaluate=False), smaller_ones + Named("as_large", largest_ones - own), whole - own)


@dataclass(frozen=True)
class Apart:
    """How two softmaxes over an axis differ: by how much more the exponents of the first are than those of the second, relative to the
    position where the second is largest.

    Where this is 0 everywhere the two are equal, and near that nothing cancels. What is far ahead is taken from the first alone.
    """

    first: Reduce
    second: Reduce

    @property
    def index(self) -> Index:
        return self.first.bound

    def at(self, lse: Reduce) -> sp.Expr:
        """The exponents of one of them."""
        return sp.sympify(substitute(lse.body, {lse.bound: self.index}))

    def pivot(self, expr: sp.Expr) -> sp.Expr:
        """An expression in the index where the second is largest."""
        top = sp.Eq(self.at(self.second), self.largest, evaluate=False)
        return Reduce("max", Where(top, expr, -sp.oo), self.index)

    @property
    def largest(self) -> sp.Expr:
        return Reduce("max", self.at(self.second), self.index)

    @property
    def ahead(self) -> sp.Expr:
        """Of the two ways to add up the four exponents, that in which less is rounded."""
        first, second = self.at(self.first), self.at(self.second)
        more = sp.factor_terms(first - second)
        across = Named("across", more), Named("across_pivot", self.pivot(more))
        along = self.along, Named("below", second - self.largest)
        size = lambda pair: Abs(pair[0]) + Abs(pair[1])
        return Named("ahead", Where(size(across) < size(along), across[0] - across[1], along[0] - along[1]))

    @property
    def along(self) -> sp.Expr:
        """The exponents of the first relative to the one at the pivot."""
        return Named("along", self.at(self.first) - self.pivot(self.at(self.first)))

    def mean(self, function: Callable[[sp.Expr], sp.Expr], less: Callable[[sp.Expr], sp.Expr], origin: sp.Expr = sp.S.Zero) -> sp.Expr:
        """The mean under the second softmax of a function of what the first is ahead of the origin, which is exp(ahead) - less(ahead)."""
        ahead = Named("from_mean", self.ahead - origin) if origin != 0 else self.ahead
        far = sp.exp(self.along + self.largest - self.second - origin) - self.share * less(ahead)
        return Reduce("sum", Where(ahead < 1, self.share * function(ahead), far), self.index)

    @property
    def share(self) -> sp.Expr:
        """The second softmax."""
        return sp.exp(self.at(self.second) - self.second)

    @property
    def mass(self) -> sp.Expr:
        """The mean of exp(ahead), less 1."""
        return Named("mass_ahead", self.mean(expm1, lambda ahead: sp.S.One))

    @property
    def divergence(self) -> sp.Expr:
        """The logarithm of the mean of exp(ahead), less the mean of ahead; from that mean, as it was rounded, where it is small."""
        mean = Named("mean_ahead", Reduce("sum", self.share * self.ahead, self.index))
        bend = Named("bend", self.mean(expm1mx, lambda ahead: 1 + ahead, mean))
        small = log1pmx(bend + Reduce("sum", self.share * Named("from_mean", self.ahead - mean), self.index)) + bend
        left, right = Named("above_pivot", self.first - self.pivot(self.at(self.first))), Named("log_count", self.second - self.largest)
        return Where(bend < 1, small, left - right - mean)

    def less(self, here: sp.Expr, there: sp.Expr, place: Index) -> sp.Expr:
        """The first softmax less the second, at a position."""
        ratio = Named("log_ratio", substitute(self.ahead, {self.index: place}) - log1p(self.mass))
        own, other = sp.exp(here - self.first), sp.exp(there - self.second)
        return Where(Abs(ratio) < 1, other * expm1(ratio), Named("share", own) - other)


def difference_of_softmaxes(expr: sp.Expr) -> sp.Expr | None:
    """k softmax(a) - k other softmax(a), or sums of them with the same factors, by the ratio of the two where that is near 1."""
    if not isinstance(expr, sp.Add):
        return None
    for term, other in itertools.permutations(expr.args, 2):
        rest = sp.Add(*(t for t in expr.args if t not in (term, other)))
        for share, lse, here in shares(term):
            place, factor = position_of(here, lse), -without(term, share)
            for part, second, there in shares(other):
                if place is not None and (share, second) != (part, lse) and without(other, part) == factor and (
                        second.bound.axis == lse.bound.axis and position_of(there, second) == place):
                    return -factor * Apart(lse, second).less(here, there, place) + rest
        for whole, less in itertools.product(*(
                [f for f in sp.Mul.make_args(t) if isinstance(f, Reduce) and f.op == "sum"] for t in (term, other))):
            if whole.bound.axis == less.bound.axis and without(term, whole) == -without(other, less):
                i = whole.bound.axis.index()
                one, two = (substitute(r.body, {r.bound: i}) for r in (whole, less))
                both = difference_of_softmaxes(sp.Add(one, -two))
                if both is not None:
                    return without(term, whole) * Reduce("sum", both, i) + rest
    return None


def divergence_of_softmaxes(expr: sp.Expr) -> sp.Expr | None:
    """k logsumexp(a) - k logsumexp(b) - k (mean of a - b under the softmax of b), which is a divergence: 0 to second order where a is b."""
    if not isinstance(expr, sp.Add):
        return None
    for term, other in itertools.permutations(expr.args, 2):
        for lse in (f for f in sp.Mul.make_args(term) if isinstance(f, Reduce) and f.op == "logsumexp"):
            factor = without(term, lse)
            second = quotient(other, -factor)
            if not (isinstance(second, Reduce) and second.op == "logsumexp" and second.bound.axis == lse.bound.axis):
                continue
            apart = Apart(lse, second)
            wanted = (apart.at(lse) - apart.at(second)) * sp.exp(apart.at(second) - second)
            for third in (t for t in expr.args if t not in (term, other)):
                found = next((f for f in sp.Mul.make_args(third) if isinstance(f, Reduce) and f.op == "sum"), None)
                if found is None or sp.expand(without(third, found) * substitute(found.body, {found.bound: apart.index})
                                              + factor * wanted) != 0:
                    continue
                return factor * apart.divergence + sp.Add(*(t for t in expr.args if t not in (term, other, third)))
    return None


def difference(b_: sp.Expr, a_: sp.Expr) -> sp.Expr:
    """b - a, with the named terms of b opened where some of what they hold is then taken away."""
    bare = sp.Add(*(t.body if isinstance(t, Named) else t for t in sp.Add.make_args(b_)))
    plain, short = b_ - a_, bare - a_
    return short if len(sp.Add.make_args(short)) < len(sp.Add.make_args(bare)) else plain


def softplus_pair(expr: sp.Expr) -> sp.Expr | None:
    """p softplus(x) + q softplus(-x) is (p + q) softplus(-abs(x)) + (p x or -q x), where p + q is simpler than p and q."""
    if not isinstance(expr, sp.Add):
        return None
    factors: dict[sp.Expr, tuple[sp.Expr, sp.Expr]] = {}
    for term in expr.args:
        for atom in (f for f in sp.Mul.make_args(term) if isinstance(f, softplus)):
            factors[atom.args[0]] = (term, without(term, atom))
    for x_, (term, p) in factors.items():
        other, q = factors.get(-x_, (None, sp.S.Zero))
        both = sp.expand_mul(p + q)
        if other is not None and both != 0 and len(sp.Add.make_args(both)) < sum(len(sp.Add.make_args(sp.expand_mul(f))) for f in (p, q)):
            line = Where(sp.Gt(x_, 0), p * x_, -q * x_)
            return sp.Add(both * softplus(-Abs(x_)), line, *(t for t in expr.args if t not in (term, other)))
    return None


def common_sigmoids(expr: sp.Expr) -> sp.Expr | None:
    """A sum whose terms share a sigmoid, as a product: a tail that vanishes is then multiplied last."""
    if not isinstance(expr, sp.Add):
        return None
    rests = [single_factors(term) for term in expr.args]
    common: list[sp.Expr] = []
    for f in list(rests[0]):
        if not f.is_number and all(f in rest for rest in rests):
            common.append(f)
            for rest in rests:
                rest.remove(f)
    if not any(isinstance(f, sigmoid) for f in common):
        return None
    return sp.Mul(*common, sp.Add(*(sp.Mul(*rest) for rest in rests)))


def direction_less_its_mean(expr: sp.Expr) -> sp.Expr | None:
    """k v - k (sum of w v), for a direction v, as k times the difference: k, which is rounded, is then the same in both."""
    if not isinstance(expr, sp.Add):
        return None
    for term in expr.args:
        for v in (f for f in sp.Mul.make_args(term) if isinstance(f, Load) and f.tensor.name.startswith("direction_")):
            factor = without(term, v)
            for other in (t for t in expr.args if t != term):
                mean = quotient(other, -factor)
                if isinstance(mean, Reduce) and mean.op == "sum" and any(load.tensor == v.tensor for load in mean.atoms(Load)):
                    return sp.Add(factor * (v - mean), *(t for t in expr.args if t not in (term, other)))
    return None


def single_factors(term: sp.Expr) -> list[sp.Expr]:
    """The factors of a product, with a sigmoid as often as its power says."""
    found: list[sp.Expr] = []
    for f in sp.Mul.make_args(term):
        base, power = f.as_base_exp()
        found += [base] * int(power) if isinstance(base, sigmoid) and power.is_Integer and power > 0 else [f]
    return found


def is_chosen_power(expr: sp.Expr) -> bool:
    """Is this a power whose exponent depends on what the caller chooses?"""
    return bool(expr.is_Pow and expr.exp.has(nodes.Param))


def powers_of_one_base(expr: sp.Expr) -> sp.Expr | None:
    """x**(2 - p) / x is x**(1 - p); and p x**(1 - p) - x**(1 - p) is (p - 1) x**(1 - p)."""
    if isinstance(expr, sp.Mul):
        for power in filter(is_chosen_power, expr.args):
            same = [f for f in expr.args if f.as_base_exp()[0] == power.base]
            if len(same) > 1:
                return sp.Mul(sp.Pow(power.base, sp.Add(*(f.as_base_exp()[1] for f in same))), *(f for f in expr.args if f not in same))
    if isinstance(expr, sp.Add):
        groups: dict[sp.Expr, list[sp.Expr]] = {}
        for term in expr.args:
            rest, factor = term.as_independent(*term.atoms(Load, Reduce, Named, Where, nodes.StraightThrough), as_Add=False)
            groups.setdefault(factor, []).append(rest)
        if any(len(own) > 1 and any(map(is_chosen_power, sp.Mul.make_args(factor))) for factor, own in groups.items()):
            return sp.Add(*(sp.Add(*own) * factor for factor, own in groups.items()))
    return None


def common_divisor(expr: sp.Expr) -> sp.Expr | None:
    """k / x - k y / x**2 is k / x ((x - y) / x), for an input y or its distance from another; and so for other powers of x."""
    if not isinstance(expr, sp.Add):
        return None
    for term, other in itertools.permutations(expr.args, 2):
        ratio = dict((-other).as_powers_dict())
        for base, power in term.as_powers_dict().items():
            ratio[base] = sp.expand(ratio.get(base, sp.S.Zero) - power)
        ratio = {base: power for base, power in ratio.items() if power != 0 and base != 1}
        above, below = ([base for base, power in ratio.items() if power == sign] for sign in (1, -1))
        if len(ratio) != 2 or len(above) != 1 or len(below) != 1 or not isinstance(above[0], Load | Abs) or below[0].is_number:
            continue
        if term.as_powers_dict().get(below[0], sp.S.Zero) not in (0, 1):
            share = Named("relative", (below[0] - above[0]) / below[0])
            return sp.Add(share * term, *(rest for rest in expr.args if rest not in (term, other)))
    return None


def cancelling_terms(expr: sp.Expr) -> sp.Expr | None:
    """Terms that cancel once products are multiplied out, as t s + (1 - t) s does, or 4 (x - y)**2 - (2 y - 2 x)**2."""
    if not isinstance(expr, sp.Add):
        return None
    alike = sp.Add(*map(primitive_factors, expr.args))
    candidates = (opened(expr), alike)
    return next((new for new in candidates if len(sp.Add.make_args(new)) < len(expr.args)), None)


def primitive_factors(term: sp.Expr) -> sp.Expr:
    """A product whose sums have no common number, and one sign, so that equal ones are seen to be equal."""
    number, factors = sp.S.One, []
    for f in sp.Mul.make_args(term):
        base, power = f.as_base_exp()
        if isinstance(base, sp.Add) and power.is_Integer:
            content, base = base.primitive()
            turned = -1 if base.could_extract_minus_sign() else 1
            number, f = number * (turned * content)**power, (turned * base)**power
        factors.append(f)
    return sp.Mul(number, *factors)


def quotients_of_complements(expr: sp.Expr) -> sp.Expr | None:
    """k (n + m) / (1 - q) + k n / q, for a number m, is k (n + m q) / (q (1 - q)): an entropy's slope, where n is near -m q."""
    if not isinstance(expr, sp.Add):
        return None
    found = [(term, 1 / f) for term in expr.args for f in sp.Mul.make_args(term) if f.is_Pow and f.exp == -1]
    for (t, q), (u, r) in itertools.permutations(found, 2):
        if q.is_number or (t, q) == (u, r) or sp.expand(q + r) != 1 or isinstance(q, sp.Add):
            continue
        one, other = (list(sp.Mul.make_args(without(term, 1 / base))) for term, base in ((t, q), (u, r)))
        shared = [f for f in one if f in other]
        n, more = (sp.Mul(*(f for f in factors if f not in shared)) for factors in (one, other))
        m = sp.expand(more - n)
        if m.is_number and m != 0:
            return sp.Add(sp.Mul(*shared) * (n + m * q) / q / r, *(rest for rest in expr.args if rest not in (t, u)))
    return None


# Shares of a sum that are no softmax: p / (sum of p), perhaps clipped.

def inside_a_clip(expr: sp.Expr) -> sp.Expr | None:
    """Where the steps of a clip's derivative are not 0, what is clipped is itself: step(x - low) step(high - x) f(clip(x)) has f(x).

    Where a step is 0 so is the product, whatever f(x) is: lowering selects.
    """
    if not isinstance(expr, sp.Mul):
        return None
    factors = [base if isinstance(base, step) and base.args[1] in (0, 1) else f      # 0 or 1, as are its powers
               for f in expr.args for base in (f.as_base_exp()[0],)]
    steps = [f for f in factors if isinstance(f, step)]
    for clip in sorted((e for f in factors if not isinstance(f, step) for e in f.atoms(smaller)), key=sp.default_sort_key):
        low, high, _ = clip.args
        if isinstance(low, larger) and any(f.args[0] == low.args[0] - low.args[1] for f in steps) and any(
                f.args[0] == high - low for f in steps):
            within = [f if isinstance(f, step) else substitute(f, {clip: low.args[0]}) for f in factors]
            return sp.Mul(*within)
    return None


def invariant_of_a_sum(expr: sp.Expr) -> sp.Expr | None:
    """The sum of k x[i], where k is itself a sum, or a power of one, as k times the sum of x[i]."""
    if isinstance(expr, Reduce) and expr.op == "sum":
        outer, inner = split(expr.body, expr.bound)
        if inner != 1 and outer.has(Reduce) and all(isinstance(f.as_base_exp()[0], Reduce) for f in sp.Mul.make_args(outer)):
            return outer * Reduce("sum", inner, expr.bound)
    return None


def share_of(expr: sp.Expr) -> tuple[sp.Expr, Reduce] | None:
    """For p[a] / (sum of p): p[a] and the sum."""
    for f in sp.Mul.make_args(expr):
        if f.is_Pow and f.exp == -1 and isinstance(f.base, Reduce) and f.base.op == "sum":
            own = without(expr, f)
            if nodes.place_of(own, f.base.body, f.base.bound) is not None:
                return own, f.base
    return None


def log_of_a_share(expr: sp.Expr) -> sp.Expr | None:
    """log(p / (sum of p)), where that is nearly all: log1p(-(sum of the others) / (sum of p)). The share may be clipped."""
    if not isinstance(expr, sp.log):
        return None
    clipped = expr.args[0]
    inner = clipped.args[0].args[0] if isinstance(clipped, smaller) and isinstance(clipped.args[0], larger) else clipped
    found = share_of(inner)
    if found is None:
        return None
    own, whole = found
    near = sp.And(inner > sp.S.Half, sp.Eq(inner, clipped, evaluate=False) if inner != clipped else inner < sp.S(2), evaluate=False)
    return Where(near, log1p(-others_of(whole, own) / whole), sp.log(Named("share", clipped)))


def ratio_less_ratio_of_sums(expr: sp.Expr) -> sp.Expr | None:
    """k x(a) / p(a) - k (sum of x) / (sum of p), from what is left of x when it is made 0 where p is largest by taking p away."""
    if not isinstance(expr, sp.Add):
        return None
    for term in expr.args:
        for p_ in (f for f in sp.Mul.make_args(term) if f.is_Pow and f.exp == -1 and isinstance(f.base, Reduce) and f.base.op == "sum"):
            for x_ in (f for f in sp.Mul.make_args(term) if isinstance(f, Reduce) and f.op == "sum"):
                whole, factor = p_.base, without(without(term, p_), x_)
                for other in (t for t in expr.args if t != term):
                    ratio = quotient(other, -factor)
                    i = whole.bound.axis.index()
                    p_i, x_i = substitute(whole.body, {whole.bound: i}), substitute(x_.body, {x_.bound: i})
                    place = nodes.place_of(ratio, x_i / p_i, i)
                    if place is None or x_.bound.axis != whole.bound.axis or x_i.has(Eliminated):
                        continue
                    left, plain = Named("left", remains(x_i, p_i, i)), Named("mean_ratio", x_ / whole)
                    own, base = substitute(x_i, {i: place}), substitute(p_i, {i: place})
                    ratio, along = Named("own_ratio", own / base), Named("ratio_at_largest", at_largest(x_i, p_i, i))
                    close = [2 * Abs(r - plain) < Abs(plain) for r in (ratio, along)]
                    apart = substitute(left / p_i, {i: place}) - Reduce("sum", left, i) / whole
                    new = Where(sp.Eq(own, 0), -plain, Where(sp.And(*close, evaluate=False), apart, ratio - plain))
                    return sp.Add(-factor * new, *(t for t in expr.args if t not in (term, other)))
    return None


def at_largest(x_: sp.Expr, p_: sp.Expr, i: Index) -> sp.Expr:
    """x / p where p is largest."""
    largest = Reduce("max", Abs(p_), i)
    there = Reduce("max", Where(sp.Eq(Abs(p_), largest, evaluate=False), Sign(p_) * x_, -sp.oo), i)
    return there / Where(sp.Eq(largest, 0), 1, largest)


def remains(x_: sp.Expr, p_: sp.Expr, i: Index) -> sp.Expr:
    """x less the multiple of p that agrees with it where p is largest, by elimination."""
    largest = Reduce("max", Abs(p_), i)
    unit = binade(largest)
    there = Reduce("max", Where(sp.Eq(Abs(p_), largest, evaluate=False), Sign(p_) * x_, -sp.oo), i)
    pivot = Where(sp.Eq(largest, 0), 1, largest / unit)
    return Eliminated(x_, pivot, Named("scaled", p_ / unit), there) / pivot


def quotient_less_its_part(expr: sp.Expr) -> sp.Expr | None:
    """k / (r + x) - k x / (r + x)**2 is k r / (r + x)**2, where x is nearly all; and so for multiples and higher powers.

    r is 1, or x is a sum of some of the terms below.
    """
    if not isinstance(expr, sp.Add):
        return None
    for t in expr.args:
        below = (f.base for f in sp.Mul.make_args(t) if f.is_Pow and f.exp.is_Integer and f.exp < 0)
        for base in (b for b in below if isinstance(b, sp.Add) and not b.is_number):       # all of numbers: none is nearly all
            for u in (u for u in expr.args if u != t):
                parts = [f for f in sp.Mul.make_args(u) if isinstance(f, sp.Add) and set(f.args) < set(base.args)]
                for x_ in [*([base - 1] if 1 in base.args else []), *parts]:
                    taken = -u * base / (t * x_)
                    if taken.is_number and taken.is_positive:
                        both = sp.Min(1, taken)
                        rest = sp.Add(*(r for r in expr.args if r not in (t, u)))
                        return both * t * (base - x_) / base + (1 - both) * t + (1 - both / taken) * u + rest
    return None


def root_of_squares(expr: sp.Expr) -> sp.Expr | None:
    """The root of c**2 + x**2, for a positive number c or one that the caller chooses: x**2 may overflow."""
    if not (isinstance(expr, sp.Pow) and expr.exp == sp.S.Half and isinstance(expr.base, sp.Add) and len(expr.base.args) == 2):
        return None
    for first, second in (expr.base.args, expr.base.args[::-1]):
        c_, x_ = squared(first), squared(second)
        if c_ is not None and x_ is not None and c_.is_positive and (c_.is_number or isinstance(c_, nodes.Param)) and not x_.is_number:
            return hypotenuse(x_, c_)
    return None


def squared(expr: sp.Expr) -> sp.Expr | None:
    """The expression of which this is the square, if its factors, above and below, are squares."""
    above, below = expr.as_numer_denom()
    over, under = nodes.root_of(above), nodes.root_of(below)
    return None if over is None or under is None else over / under


LESS_ARGUMENT = {softplus: lambda x: softplus(-x), expm1: expm1mx, log1p: log1pmx}


def less_its_argument(expr: sp.Expr) -> sp.Expr | None:
    """k softplus(x) - k x is k softplus(-x), and so for functions that are x and a little near 0, where x may be a sum."""
    if not isinstance(expr, sp.Add):
        return None
    for term in expr.args:
        for atom in (f for f in sp.Mul.make_args(term) if type(f) in LESS_ARGUMENT):
            factor, x_ = without(term, atom), atom.args[0]
            rest = sp.expand_mul(sp.Add(*(t for t in expr.args if t != term)) + factor * x_)
            if len(sp.Add.make_args(rest)) + (rest != 0) <= len(expr.args) - len(sp.Add.make_args(x_)):
                return factor * LESS_ARGUMENT[type(atom)](x_) + rest
    return None


# A pattern that is taken as a procedure: to refuse all its false variants takes the prover a minute.
_mixture = y * sp.exp(a) + (1 - y) * sp.exp(b)
_ENTROPY_OF_A_MIXTURE = Rule(
    "entropy of a mixture", a * y * sp.exp(a) + b * (1 - y) * sp.exp(b) - _mixture * sp.log(_mixture), entropy_gap(a, b, y), "",
    condition=lambda found: not found[y].atoms(Load))                    # the atom has no derivative by y

SMOOTHING: tuple[Rule | Procedure, ...] = (
    Rule("log of a product", sp.log(a * b, evaluate=False), sp.log(a) + sp.log(b), "overflow under the logarithm of a softmax",
         condition=_exponential, domain=(a, b)),
    Rule("log of a quotient", sp.log(a / b, evaluate=False), sp.log(a) - sp.log(b), "overflow of a quotient",
         condition=lambda found: not (found[a].is_number or found[b].is_number), domain=(a, b)),
    Rule("log of a power", sp.log(sp.Pow(a, k, evaluate=False), evaluate=False), k * sp.log(a), "overflow, underflow",
         domain=(a,)),
    Rule("log sum exp", sp.log(_sum_exp), _log_sum_exp, "overflow, cancellation"),
    Rule("power of sum exp", _sum_exp**k, lambda found: sp.exp(found[k] * _log_sum_exp(found)), "overflow in a softmax"),
    Rule("softplus", sp.log(1 + sp.exp(x)), softplus(x), "overflow, cancellation"),
    Rule("softplus with a factor", sp.log(1 + a * sp.exp(x)), softplus(x + sp.log(a)), "overflow, cancellation", domain=(a,),
         condition=lambda found: not found[a].has(Load, Reduce), ranges=(("x", -700.0, 700.0),)),
    Rule("sigmoid", 1 / (1 + sp.exp(x)), sigmoid(-x), "overflow"),
    Rule("power of sigmoid", (1 + sp.exp(x))**k, sigmoid(-x)**-k, "overflow", condition=lambda found: found[k].could_extract_minus_sign(),
         ranges=(("k", -30.0, 30.0),)),
    Rule("sigmoid of e^x", sp.exp(x) * sigmoid(-x), sigmoid(x), "overflow"),
    Rule("log sigmoid", sp.log(sigmoid(x)), -softplus(-x), "log of an underflow"),
    Rule("one minus sigmoid", 1 - sigmoid(x), sigmoid(-x), "cancellation"),
    Rule("x log x", x * sp.log(x), lambda found: xlogy(found[x], found[x]), "0 log 0"),
    Rule("log1p", sp.log(1 + x), log1p(x), "cancellation near 0", ranges=(("x", -0.999, 1e6),)),
    Rule("expm1", sp.exp(x) - 1, expm1(x), "cancellation near 0"),
    Rule("expm1mx", expm1(x) - x, expm1mx(x), "cancellation near 0"),
    Rule("log1mexp", sp.log(-expm1(x)), log1mexp(-x), "cancellation near 0, log of an underflow", ranges=(("x", -700.0, -1e-300),)),
    Rule("log1pmx", log1p(x) - x, log1pmx(x), "cancellation near 0", ranges=(("x", -0.999, 1e6),)),
    Rule("log cosh", sp.log(sp.cosh(x)), logcosh(x), "overflow, cancellation near 0"),
    Rule("log cosh of exponentials", sp.log(sp.exp(x) / 2 + sp.exp(-x) / 2), logcosh(x), "overflow, cancellation near 0"),
    Rule("log cosh of softplus", softplus(y) - sp.log(2) + x, logcosh(x), "cancellation near 0",
         condition=lambda found: sp.expand_mul(found[y] + 2 * found[x]) == 0, given=((y, -2 * x),)),
    Rule("log of two exponentials", sp.log(sp.exp(a) + sp.exp(b)), logaddexp(a, b), "overflow"),
    Rule("share of a sum of exponentials", sp.exp(a) * sp.exp(b), sp.exp(a + b), "infinity times 0 in a softmax",
         condition=lambda found: any(part.has(Reduce, logaddexp) for part in (found[a], found[b]))),
    Rule("power of two exponentials", (sp.exp(a) + sp.exp(b))**k, sp.exp(k * logaddexp(a, b)), "overflow",
         condition=lambda found: found[k].could_extract_minus_sign(), ranges=(("k", -5.0, 5.0),)),
    Rule("share of two exponentials", sp.exp(x - logaddexp(a, b)), sigmoid(2 * x - a - b), "overflow, cancellation",
         condition=lambda found: found[x] in (found[a], found[b]), given=((x, a),)),
    Procedure("less its argument", less_its_argument, "cancellation", "smooth"),
    Procedure("entropy of a mixture", _ENTROPY_OF_A_MIXTURE.apply, "cancellation where the parts are nearly equal, overflow", "smooth",
              needs=frozenset({sp.exp, sp.log})),
    Rule("one minus tanh", 1 - sp.tanh(x), 2 * sigmoid(-2 * x), "cancellation in a tail"),
    Rule("one plus tanh", 1 + sp.tanh(x), 2 * sigmoid(2 * x), "cancellation in a tail"),
    Procedure("root of squares", root_of_squares, "overflow of a square", "smooth"),
    Rule("root of squares in units", hypotenuse(x / c, sp.S.One), hypotenuse(x, c) / c, "overflow of a quotient", domain=(c,)),
    Rule("softplus less its line", softplus(x) - x * y, (1 - y) * softplus(x) + y * softplus(-x), "cancellation where y is 1"),
)

VECTORS: tuple[Rule | Procedure, ...] = (
    Rule("inverse of a root", inverse_root(a), 1 / root(a), "a guard against 0 that is not needed", "stabilise", domain=(a,)),
    Rule("root and its inverse", inverse_root(a) * root(a)**-2, root(a)**-3, "a guard against 0 where 0 has no value", "stabilise",
         ranges=(("a", 1e-100, 1e100),)),
    Procedure("rejection", rejection, "cancellation where two vectors are nearly parallel"),
)

STABILISING: tuple[Rule | Procedure, ...] = (
    *VECTORS,
    Procedure("rejection in a norm", power_rejection, "cancellation where one component is nearly the whole vector"),
    Procedure("difference of lengths", difference_of_lengths, "cancellation where two lengths are nearly equal"),
    Procedure("difference of units", difference_of_units, "cancellation where two vectors are nearly parallel"),
    Procedure("difference of rejections", difference_of_rejections, "cancellation where two vectors are nearly parallel"),
    Procedure("one minus a cosine", one_minus_cosine, "cancellation where two vectors are nearly parallel"),
    Procedure("softmax minus one-hot", softmax_minus_one_hot, "cancellation at the target", needs=SOFTMAX),
    Procedure("softmax times complement", softmax_times_complement, "cancellation where a share is near 1", needs=SOFTMAX),
    Procedure("centred softmax", centred_softmax, "cancellation where a share is near 1", needs=SOFTMAX),
    Procedure("share of a sum", share_of_a_sum, "cancellation where one term is nearly the whole sum", needs=SOFTMAX),
    Procedure("powers of one base", powers_of_one_base, "cancellation of terms that differ by a number that the caller chooses"),
    Procedure("difference of softmaxes", difference_of_softmaxes, "cancellation where two shares are nearly equal", needs=SOFTMAX),
    Procedure("divergence of softmaxes", divergence_of_softmaxes, "cancellation where two softmaxes are nearly equal", needs=SOFTMAX),
    Procedure("cancelling terms", cancelling_terms, "terms that cancel exactly"),
    Procedure("inside a clip", inside_a_clip, "digits that a quotient and its clip lose apart", needs=frozenset({smaller, larger, step})),
    Procedure("invariant of a sum", invariant_of_a_sum, "digits that a sum and a quotient by it lose apart", needs=frozenset({"sum"})),
    Procedure("quotient less its part", quotient_less_its_part, "cancellation where the rest is a small part of the divisor"),
    Procedure("common divisor", common_divisor, "cancellation of quotients that are rounded apart"),
    Procedure("log of a share", log_of_a_share, "cancellation where a share is near 1", needs=frozenset({sp.log, "sum"})),
    Procedure("ratio less ratio of sums", ratio_less_ratio_of_sums, "cancellation where two vectors are nearly parallel",
              needs=frozenset({"sum"})),
    Procedure("quotients of complements", quotients_of_complements, "cancellation where a probability is near its label"),
    Procedure("softplus pair", softplus_pair, "cancellation near 0 where y is far outside 0 and 1", needs=frozenset({softplus})),
    Procedure("direction less its mean", direction_less_its_mean, "cancellation of products that are rounded apart"),
    Procedure("common sigmoids", common_sigmoids, "underflow of a tail before it is multiplied", needs=frozenset({sigmoid})),
    Rule("one minus a quotient", 1 - a / b, lambda found: difference(found[b], found[a]) / found[b],
         "cancellation where the quotient is near 1", "stabilise",
         condition=lambda found: not (found[a].is_number or found[b].is_number)),
    Rule("opposite sigmoids", sigmoid(x) - sigmoid(-x), sp.tanh(x / 2), "cancellation near 0", "stabilise"),
    Rule("one minus sigmoid", 1 - sigmoid(x), sigmoid(-x), "cancellation", "stabilise"),
    Rule("sigmoids at even odds", (1 - y) * sigmoid(x) - y * sigmoid(a), lambda found: Where(
            Abs(found[x]) < 1, sp.tanh(found[x] / 2) / 2 + Named("from_even_odds", sp.S.Half - found[y]),
            (1 - Named("label", found[y])) * sigmoid(found[x]) - found[y] * sigmoid(-found[x])),
         "cancellation where y is near 1/2 and x near 0", "stabilise", condition=lambda found: found[a] == -found[x], given=((a, -x),),
         offered=True),
    Rule("sigmoid minus label", sigmoid(x) - y, (1 - y) * sigmoid(x) - y * sigmoid(-x), "cancellation where y is 1", "stabilise",
         condition=lambda found: not (found[y].is_number or found[y].has(sigmoid(-found[x])))),
    Rule("expm1", sp.exp(x) - 1, expm1(x), "cancellation near 0", "stabilise"),
    Rule("expm1 and a constant", a * sp.exp(x) + b, a * expm1(x) + (a + b), "cancellation near 0", "stabilise", condition=_opposite),
    Rule("line and an exponential", x + y * sp.exp(-x), lambda found: Where(
            Abs(found[x]) < 1, Named("both", found[x] + found[y]) + found[y] * expm1(-found[x]),
            found[x] + Named("decayed", found[y] * sp.exp(-found[x]))),
         "cancellation near 0", "stabilise", ranges=(("x", -700.0, 700.0),)),
    Rule("log ratio", xlogy(y, y) - y * x, lambda found: Where(sp.Eq(found[y], 0), -found[y] * found[x],
                                                                  found[y] * (sp.log(found[y]) - found[x])),
         "cancellation where log y is near x", "stabilise", ranges=(("y", 0.0, 1e6),)),
    Rule("root less one", hypotenuse(x, sp.S.One) - 1, x**2 / (1 + hypotenuse(x, sp.S.One)), "cancellation near 0", "stabilise"),
    Rule("root less its least", hypotenuse(x, c) - c, lambda found: found[x] * _fraction(found), "cancellation near 0", "stabilise",
         domain=(c,)),
    Rule("one minus cos", 1 - sp.cos(x), 2 * sp.sin(x / 2)**2, "cancellation near 0", "stabilise"),
    Rule("slope of tanh", 1 - sp.tanh(x)**2, 4 * sigmoid(2 * x) * sigmoid(-2 * x), "cancellation in the tails", "stabilise"),
    Rule("exponential over expm1", sp.exp(x) / expm1(x)**2, -1 / (expm1(x) * expm1(-x)), "infinity over infinity", "stabilise"),
    Rule("log minus log", sp.log(a) - sp.log(b), lambda found: Where(
            sp.And(found[a] < 2 * found[b], found[b] < 2 * found[a]), log1p((found[a] - found[b]) / found[b]),
            sp.log(Named("ahead", found[a])) - sp.log(found[b])),
         "cancellation where both are near each other", "stabilise",
         condition=lambda found: _unnamed(found) and bool(found[a].is_nonnegative and found[b].is_nonnegative),
         ranges=(("a", 0.0, 1e6), ("b", 0.0, 1e6))),
    Rule("log1p minus log1p", log1p(a) - log1p(b), lambda found: Where(
            sp.And(found[a] < 1 + 2 * found[b], found[b] < 1 + 2 * found[a]), log1p((found[a] - found[b]) / (1 + found[b])),
            log1p(Named("ahead", found[a])) - log1p(found[b])),
         "cancellation where both are near each other", "stabilise", condition=_unnamed, domain=(a, b)),
    Rule("difference of squares", a**2 - b**2, (a - b) * (a + b), "cancellation, where the bases are exact", "stabilise", offered=True),
    Rule("difference of roots", sp.sqrt(a) - sp.sqrt(b),
         lambda found: Where(sp.Eq(found[a], found[b]), 0, (found[a] - found[b]) / (sp.sqrt(found[a]) + sp.sqrt(found[b]))),
         "cancellation, where the radicands are exact", "stabilise", offered=True, ranges=(("a", 0.0, 1e300), ("b", 0.0, 1e300))),
    Rule("power of a tail", sigmoid(x)**k, sp.exp(-k * softplus(-x)), "underflow of a power", "stabilise", offered=True,
         condition=lambda found: not found[k].is_number, ranges=(("x", -700.0, 700.0), ("k", -30.0, 30.0))),
    Rule("hinge slope", hinge(x, t) * step(x, t), hinge(x, t), "a product with 0 or 1", "stabilise", ranges=(("t", 0.0, 1.0),)),
)

# What looks like a rule and is none.
DISABLED: tuple[Rule, ...] = (
    Rule("log of a square", sp.log(x**2), 2 * sp.log(x), "overflow", unsound="x may be negative", counterexample=(("x", -1.0),)),
    Rule("log of any product", sp.log(a * b), sp.log(a) + sp.log(b), "overflow", unsound="both factors may be negative",
         counterexample=(("a", -1.0), ("b", -1.0))),
    Rule("root of a square", sp.sqrt(x**2, evaluate=False), x, "a root", unsound="x may be negative", counterexample=(("x", -1.0),)),
    Rule("fourth root of a square", sp.Pow(x**2, sp.Rational(1, 4), evaluate=False), sp.sqrt(x), "a square",
         unsound="x may be negative", counterexample=(("x", -1.0),)),
    Rule("root of any product", sp.sqrt(a * b), sp.sqrt(a) * sp.sqrt(b), "overflow", unsound="both factors may be negative",
         counterexample=(("a", -4.0), ("b", -1.0))),
    Rule("difference of roots, bare", sp.sqrt(a) - sp.sqrt(b), (a - b) / (sp.sqrt(a) + sp.sqrt(b)), "cancellation",
         unsound="0 / 0 where both are 0", counterexample=(("a", 0.0), ("b", 0.0))),
    Rule("x log y, bare", xlogy(x, y), x * sp.log(y), "a selection", unsound="0 log 0", counterexample=(("x", 0.0), ("y", 0.0))),
    Rule("two-term log sum exp of SymPy", sp.log(sp.exp(a) + sp.exp(b)), larger(a, b, sp.S.Half) + log1p(sp.exp(smaller(a, b, sp.S.Half))),
         "overflow", unsound="the smaller term is not taken relative to the larger", counterexample=(("a", 1.0), ("b", 1.0))),
    Rule("sigmoid minus label, clipped", sigmoid(x) - y, larger((1 - y) * sigmoid(x), -y * sigmoid(-x), sp.S.Half), "cancellation",
         unsound="both terms count where y is between 0 and 1", counterexample=(("x", 0.0), ("y", 0.25))),
)

RULES = SMOOTHING + STABILISING
EVERY = RULES + DISABLED


def asked_for(names: Collection[str]) -> tuple[str, ...]:
    """The names of rules in a definition's `rewrites`, checked. Raises DefinitionError for one that is not there, or is false."""
    known = {r.name: r for r in reversed(EVERY)}
    for name in names:
        rule = known.get(name)
        if rule is None:
            near = difflib.get_close_matches(name, known, n=3) or [r.name for r in RULES if r.offered]
            raise DefinitionError(f"rewrites names {name!r}, which is no rule", repair=f"Did you mean {' or '.join(map(repr, near))}?")
        if rule.unsound:
            raise DefinitionError(f"rewrites names {name!r}, which is false: {rule.unsound}, such as {dict(rule.counterexample)}"
                                  if isinstance(rule, Rule) else f"rewrites names {name!r}, which is false: {rule.unsound}",
                                  repair="Leave it out.")
    return tuple(names)

"""Named scalar functions: meaning, derivative, sign and sampling range of each, in one table.

An atom is opaque to SymPy, so a stable form survives; the set is closed under differentiation. The smooth atoms are what
the rules rewrite to; the kinks carry, as an argument, the value that their derivative takes at the tie, and the derivative
of a step is zero: there is no Heaviside and no DiracDelta. Each target spells every atom in its own table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import sympy as sp

from .nodes import Named, Where

Formula = Callable[..., Any]


@dataclass(frozen=True)
class Atom:
    """One scalar function.

    Attributes:
        name: what it is called in formulas and in every target.
        meaning: the function in elementary terms; the oracle and the proofs of the rules evaluate this.
        slopes: one derivative formula an argument; None where an argument is a convention and not a variable.
        sign: "positive", "nonnegative" or "" when the sign varies; "any" or "all" where it has what one or all of two arguments have.
        ranges: where each argument is sampled by the tests, as (low, high).
        stable: how the targets compute it, in words, for `losscomp show`.
        computed: how lowering computes it, in other functions; None where every target spells it itself. Its arms are analytic
            where they hold, so that a framework may differentiate them.
        by_slopes: whether a framework is given the slopes nevertheless, as what it would make of `computed` cancels.
    """

    name: str
    meaning: Formula
    slopes: tuple[Formula | None, ...]
    sign: str = ""
    ranges: tuple[tuple[float, float], ...] = ((-1e4, 1e4),)
    stable: str = ""
    computed: Formula | None = None
    by_slopes: bool = False


# The functions, by name; filled from the table below, whose formulas use them.
softplus: Any
sigmoid: Any
log1p: Any
expm1: Any
expm1mx: Any
xlogy: Any
logcosh: Any
logaddexp: Any
log1mexp: Any
log1pmx: Any
hypotenuse: Any
hypotenuse_slope: Any
log_mixture: Any
entropy_gap: Any
Sign: Any
Abs: Any
step: Any
hinge: Any
larger: Any
smaller: Any
same: Any
root: Any
inverse_root: Any
binade: Any
abs_power: Any
signed_power: Any


QUANTIFIERS: dict[str, Callable[[Iterable[Any]], bool]] = {"any": any, "all": all}


def _define(atom: Atom) -> type[sp.Function]:
    """The SymPy function of an atom."""

    def fdiff(self: Any, argindex: int = 1) -> Any:
        slope = atom.slopes[argindex - 1]
        return sp.S.Zero if slope is None else sp.sympify(slope(*self.args))

    body: dict[str, Any] = {
        "nargs": len(atom.slopes),
        "atom": atom,
        "fdiff": fdiff,
        "is_real": True,
        "_eval_evalf": lambda self, prec: None,      # mpmath knows other functions by some of these names
        "__doc__": atom.stable or atom.name,
    }
    if atom.sign in QUANTIFIERS:
        for sign in ("positive", "nonnegative"):
            known = lambda self, sign=sign: QUANTIFIERS[atom.sign](getattr(a, f"is_{sign}") for a in self.args[:2]) or None
            body[f"_eval_is_{sign}"] = known
    elif atom.sign:
        body[f"is_{atom.sign}"] = True
    return type(atom.name, (sp.Function,), body)


ONE, ZERO = sp.S.One, sp.S.Zero
SQUARES_END = sp.Integer(2) ** 60                # from here on 1 + x**2 is x**2 in every type, and below it squares are finite


def _log1pmx(x: Any) -> Any:
    """log(1 + x) - x near 0: 2 atanh(r) - x with r = x / (2 + x), whose series begins with x itself (|x| < 2/5, |r| < 1/4)."""
    r = x / (2 + x)
    series = sp.S.Zero
    for k in range(13, 0, -1):
        series = sp.Rational(2, 2 * k + 1) + r**2 * series
    return r * (r**2 * series - x)


def _log_mixture(x: Any, y: Any) -> Any:
    """log((1 - y) + y exp(x)), for y from 0 to 1."""
    less = Where(sp.Eq(y, 1), x, sp.log((1 - y) + y * sp.exp(x)))
    far = Where(sp.Eq(y, 0), 0, x + sp.log(y + (1 - y) * sp.exp(-x)))
    return Where(x < FAR, Where(y * expm1(x) < -sp.S.Half, less, log1p(y * expm1(x))), far)


def _mixed_entropy(a: Any, b: Any, y: Any) -> Any:
    """The entropy of a mixture less the mixed entropies, for logarithms of probabilities a and b: both terms are at least 0."""
    apart, back = Named("apart", a - b), Named("back", b - a)
    near = -y * sp.exp(a) * log1pmx((1 - y) * expm1(back)) - (1 - y) * sp.exp(b) * log1pmx(y * expm1(apart))
    far = -y * sp.exp(a) * log_mixture(back, 1 - y) - (1 - y) * sp.exp(b) * log_mixture(apart, y)
    return Where(Abs(apart) < 1, near, far)


FAR = sp.Integer(64)                             # from here on exp(x) may overflow, and nothing is lost without it

_smooth = (
    Atom("softplus", lambda x: sp.log(1 + sp.exp(x)), (lambda x: sigmoid(x),), "positive",
         stable="max(x, 0) + log1p(exp(-|x|))"),
    Atom("sigmoid", lambda x: 1 / (1 + sp.exp(-x)), (lambda x: sigmoid(x) * sigmoid(-x),), "positive",
         stable="e / (1 + e) or 1 / (1 + e), e = exp(-|x|)"),
    Atom("log1p", lambda x: sp.log(1 + x), (lambda x: 1 / (1 + x),), ranges=((-0.999, 1e6),)),
    Atom("expm1", lambda x: sp.exp(x) - 1, (lambda x: sp.exp(x),), ranges=((-700, 700),)),
    Atom("expm1mx", lambda x: sp.exp(x) - 1 - x, (lambda x: expm1(x),), "nonnegative", ((-700, 700),),
         stable="a series near 0, expm1(x) - x elsewhere"),
    Atom("xlogy", lambda x, y: Where(sp.Eq(x, 0), 0, x * sp.log(y)), (lambda x, y: sp.log(y), lambda x, y: x / y),
         ranges=((0, 1e4), (1e-300, 1e4)), stable="x log(y), 0 where x is 0"),
    Atom("logcosh", lambda x: sp.log(sp.cosh(x)), (lambda x: sp.tanh(x),), "nonnegative",
         stable="log1p(2 sinh(x / 2)**2) near 0, |x| + log1p(exp(-2|x|)) - log(2) elsewhere",
         computed=lambda x: Where(Abs(x) < 1, log1p(expm1(x)**2 * sp.exp(-x) / 2), Abs(x) + log1p(sp.exp(-2 * Abs(x))) - sp.log(2))),
    Atom("logaddexp", lambda a, b: sp.log(sp.exp(a) + sp.exp(b)), (lambda a, b: sigmoid(a - b), lambda a, b: sigmoid(b - a)),
         ranges=((-1e4, 1e4), (-1e4, 1e4)), stable="the larger + log1p(exp(-|a - b|))",
         computed=lambda a, b: Where(a > b, a + log1p(sp.exp(b - a)), b + log1p(sp.exp(a - b)))),
    Atom("log1mexp", lambda x: sp.log(1 - sp.exp(-x)), (lambda x: 1 / expm1(x),), ranges=((1e-300, 700),),
         stable="log(-expm1(-x)) below log(2), log1p(-exp(-x)) above",
         computed=lambda x: Where(x < sp.Rational(7, 10), sp.log(-expm1(-x)), log1p(-sp.exp(-x)))),
    Atom("log1pmx", lambda x: sp.log(1 + x) - x, (lambda x: -x / (1 + x),), ranges=((-0.999, 1e6),),
         stable="a series near 0, log1p(x) - x elsewhere",
         computed=lambda x: Where(Abs(x) < sp.Rational(2, 5), _log1pmx(x), log1p(x) - x)),
    Atom("hypotenuse", lambda x, c: sp.sqrt(c**2 + x**2), (lambda x, c: hypotenuse_slope(x, c), None), "positive",
         ((-1e300, 1e300), (1e-3, 1e3)), stable="c sqrt(1 + (x / c)**2), |x| where that is the same",
         computed=lambda x, c: Where(Abs(x) < SQUARES_END * c, c * sp.sqrt(1 + (Named("error", x) / c)**2), Abs(x))),
    Atom("hypotenuse_slope", lambda x, c: x / sp.sqrt(c**2 + x**2), (lambda x, c: (c / hypotenuse(x, c))**2 / hypotenuse(x, c), None),
         ranges=((-1e300, 1e300), (1e-3, 1e3)), stable="x / sqrt(c**2 + x**2)", computed=lambda x, c: Named("slope", x / hypotenuse(x, c))),
    Atom("log_mixture", lambda x, y: sp.log(1 + y * (sp.exp(x) - 1)), (lambda x, y: y * sp.exp(-log_mixture(-x, 1 - y)), None),
         ranges=((-700, 700), (1e-3, 0.999)), stable="log1p(y expm1(x)), or the logarithm of (1 - y) + y exp(x) where that is far from 1",
         computed=_log_mixture),
    Atom("entropy_gap", lambda a, b, y: y * sp.exp(a) * a + (1 - y) * sp.exp(b) * b - (y * sp.exp(a) + (1 - y) * sp.exp(b)) * sp.log(
            y * sp.exp(a) + (1 - y) * sp.exp(b)),
         (lambda a, b, y: -y * sp.exp(a) * log_mixture(b - a, 1 - y), lambda a, b, y: -(1 - y) * sp.exp(b) * log_mixture(a - b, y), None),
         "nonnegative", ((-300, 300), (-300, 300), (1e-3, 0.999)), computed=_mixed_entropy, by_slopes=True,
         stable="-y exp(a) log1pmx((1 - y) expm1(b - a)) - (1 - y) exp(b) log1pmx(y expm1(a - b))"),
)

_kinks = (
    Atom("Sign", lambda x: Where(x > 0, 1, Where(x < 0, -1, 0)), (lambda x: 0,)),
    Atom("Abs", lambda x: Where(x < 0, -x, x), (lambda x: Sign(x),), "nonnegative"),
    Atom("step", lambda x, tie: Where(x > 0, 1, Where(x < 0, 0, tie)), (lambda x, tie: 0, None), "nonnegative"),
    Atom("hinge", lambda x, tie: Where(x < 0, 0, x), (lambda x, tie: step(x, tie), None), "nonnegative"),
    Atom("larger", lambda a, b, tie: Where(a < b, b, a),
         (lambda a, b, tie: step(a - b, tie), lambda a, b, tie: step(b - a, 1 - tie), None), "any"),
    Atom("smaller", lambda a, b, tie: Where(a > b, b, a),
         (lambda a, b, tie: step(b - a, tie), lambda a, b, tie: step(a - b, 1 - tie), None), "all"),
    Atom("same", lambda a, b: Where(sp.Eq(a, b), 1, 0), (lambda a, b: 0, lambda a, b: 0), "nonnegative"),
    Atom("root", lambda x: sp.sqrt(x), (lambda x: inverse_root(x) / 2,), "nonnegative", ((0, 1e30),),
         stable="sqrt(x); its derivative is 0 at 0"),
    Atom("inverse_root", lambda x: Where(sp.Eq(x, 0), 0, 1 / sp.sqrt(x)), (lambda x: -inverse_root(x) ** 3 / 2,),
         "nonnegative", ((0, 1e30),), stable="1 / sqrt(x), 0 where x is 0"),
    Atom("binade", lambda x: Where(sp.And(x > 0, x < sp.oo), 2 ** sp.floor(sp.log(x, 2)), 1), (lambda x: 0,), "positive", ((0, 1e30),),
         stable="the power of two at or below x; 1 where x is 0 or infinite"),
    Atom("abs_power", lambda x, p: Where(sp.Eq(x, 0), 0, Where(x < 0, -x, x) ** p),
         (lambda x, p: p * signed_power(x, p - 1), None), "nonnegative", ((-1e3, 1e3), (0.25, 4)),
         stable="|x|**p, 0 where x is 0, and so is its derivative"),
    Atom("signed_power", lambda x, p: Where(sp.Eq(x, 0), 0, Where(x > 0, 1, -1) * Where(x < 0, -x, x) ** p),
         (lambda x, p: p * abs_power(x, p - 1), None), "", ((-1e3, 1e3), (0.25, 4)),
         stable="sign(x) |x|**p, 0 where x is 0"),
)

ATOMS: dict[str, Atom] = {atom.name: atom for atom in _smooth + _kinks}
SMOOTH: frozenset[str] = frozenset(atom.name for atom in _smooth)
FUNCTIONS: dict[str, type[sp.Function]] = {name: _define(atom) for name, atom in ATOMS.items()}

softplus, sigmoid, log1p = FUNCTIONS["softplus"], FUNCTIONS["sigmoid"], FUNCTIONS["log1p"]
expm1, expm1mx, xlogy = FUNCTIONS["expm1"], FUNCTIONS["expm1mx"], FUNCTIONS["xlogy"]
logcosh, logaddexp, log1mexp = FUNCTIONS["logcosh"], FUNCTIONS["logaddexp"], FUNCTIONS["log1mexp"]
log1pmx, hypotenuse, hypotenuse_slope = FUNCTIONS["log1pmx"], FUNCTIONS["hypotenuse"], FUNCTIONS["hypotenuse_slope"]
log_mixture, entropy_gap = FUNCTIONS["log_mixture"], FUNCTIONS["entropy_gap"]
Sign, Abs, step, hinge = FUNCTIONS["Sign"], FUNCTIONS["Abs"], FUNCTIONS["step"], FUNCTIONS["hinge"]
larger, smaller, same = FUNCTIONS["larger"], FUNCTIONS["smaller"], FUNCTIONS["same"]
root, inverse_root = FUNCTIONS["root"], FUNCTIONS["inverse_root"]
binade, abs_power = FUNCTIONS["binade"], FUNCTIONS["abs_power"]
signed_power = FUNCTIONS["signed_power"]


def meaning(node: sp.Function) -> sp.Expr:
    """An atom applied to its arguments, in elementary terms."""
    return sp.sympify(ATOMS[type(node).__name__].meaning(*node.args))


def is_atom(node: sp.Basic) -> bool:
    """Is this one of our functions?"""
    return FUNCTIONS.get(type(node).__name__) is type(node)


def expand_atoms(expr: sp.Expr) -> sp.Expr:
    """The expression in elementary functions and selections only: what the proofs look at."""
    return expr.replace(is_atom, meaning, simultaneous=False)       # else an atom that looks like one already replaced is kept


def number(expr: sp.Expr) -> sp.Float | None:
    """The value of a formula of constants alone, to 40 digits; None where it is not finite, or where it is made of more than constants.

    SymPy does not know the sign of an atom of constants, so ask this.
    """
    if not expr.is_number:
        return None
    value = expand_atoms(expr).evalf(40)
    return sp.Float(value, 40) if (value.is_Float or value.is_Rational) and value.is_finite else None

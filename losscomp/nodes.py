"""The SymPy side of the language: reads of tensors, deltas, reductions with binders, named and declared sub-expressions.

Leaves carry a frozen record instead of SymPy arguments, so that two definitions may use one name for different things.
The batch is implicit here: a formula is about one sample. `lower` makes the batch a loop like any other.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import sympy as sp

_serial = itertools.count()


@dataclass(frozen=True)
class Domain:
    """The values that an input may take: an interval, open where `open_low` says so."""

    low: float | None = None
    high: float | None = None
    open_low: bool = False

    @property
    def bounded(self) -> bool:
        return self.low is not None or self.high is not None

    @property
    def interval(self) -> tuple[float, float, bool]:
        """Low, high, and whether low itself is out."""
        return (-math.inf if self.low is None else self.low, math.inf if self.high is None else self.high, self.open_low)

    def words(self) -> str:
        """The interval as an error message says it."""
        if self.low is not None and self.high is not None:
            return f"between {self.low:g} and {self.high:g}"
        if self.low is not None:
            return f"{'greater than' if self.open_low else 'at least'} {self.low:g}"
        return f"at most {self.high:g}" if self.high is not None else "any number"


def key_of(record: Any) -> str:
    """All that makes a record what it is, as text: SymPy sorts and compares by this."""
    def spell(value: Any) -> str:
        if isinstance(value, Leaf):
            return str(value.key)
        return f"({', '.join(map(spell, value))})" if isinstance(value, tuple) else str(value)

    return ", ".join(f"{record.order:06d}" if f.name == "order" else spell(getattr(record, f.name)) for f in fields(record))


class Leaf(sp.AtomicExpr):
    """An atom of a formula, equal to another when their records are equal."""

    is_commutative = True
    is_real = True
    record: Any
    key: str

    def __new__(cls, record: Any) -> Any:
        self = super().__new__(cls)
        self.record, self.key = record, key_of(record)
        return self

    def _hashable_content(self) -> tuple[Any, ...]:
        return (self.key,)

    def __getnewargs__(self) -> tuple[Any, ...]:
        return (self.record,)

    @property
    def name(self) -> str:
        return str(self.record.name)

    def _sympystr(self, printer: Any) -> str:
        return self.name

    _latex = _sympystr


@dataclass(frozen=True)
class AxisRecord:
    name: str
    position: int = -1
    extent: Any = None                    # how many positions a sample has, where that is a formula in lengths and other axes
    size: Any = None                      # the length in arrays, where that is a formula in another axis
    vector: bool = False                  # see language.axis


class Axis(Leaf):
    """A named axis; used in a formula it stands for its own size."""

    is_integer = True

    def _eval_is_positive(self) -> bool | None:
        return True if self.record.extent is None else None

    def _eval_is_nonnegative(self) -> bool:
        return True

    def index(self) -> Index:
        """A fresh position along this axis."""
        return Index(IndexRecord(self, f"i{next(_serial):09d}"))

    @property
    def size(self) -> Axis:
        """The number of positions, to be used in a formula."""
        return self


@dataclass(frozen=True)
class IndexRecord:
    axis: Axis
    label: str

    @property
    def name(self) -> str:
        return f"{self.axis.name}.{self.label}"


class Index(Leaf):
    """A position along an axis."""

    is_integer = True
    is_nonnegative = True

    @property
    def axis(self) -> Axis:
        axis: Axis = self.record.axis
        return axis


@dataclass(frozen=True)
class TensorRecord:
    """What a definition says of a tensor. `order` is when it was declared, which settles the order of arguments."""

    name: str
    axes: tuple[Axis, ...] = ()
    integer: bool = False
    per_sample: bool = True
    default: float | None = None          # the value where an optional tensor is absent
    fixed: bool = False                   # no gradient unless the caller asks for one
    domain: Domain = Domain()
    into: Axis | None = None              # an index tensor: the axis that its values point into
    ignore: str | None = None             # the parameter whose value marks a sample to be left out
    shape: str = "mutual"                 # how it joins the common shape; see language.tensor
    measures: Axis | None = None          # a length: the axis of which it says how much belongs to the sample
    length: str | None = None             # a ragged tensor: the length that says how much of its last axis is the sample's
    packed: bool = False                  # a ragged tensor that the caller may also give end to end, without padding
    state: bool = False                   # a table that a definition computes, cell by cell
    until: int | None = None              # a set of labels, given as positions up to the first of these; see language.labels
    order: int = 0


class Tensor(sp.Atom):
    """A tensor argument of a loss; `Load(tensor, i, j)` is an element of it."""

    record: TensorRecord
    key: str

    def __new__(cls, record: TensorRecord) -> Any:
        self = super().__new__(cls)
        self.record, self.key = record, key_of(record)
        return self

    def _hashable_content(self) -> tuple[Any, ...]:
        return (self.key,)

    @property
    def name(self) -> str:
        return self.record.name

    def _sympystr(self, printer: Any) -> str:
        return self.name


@dataclass(frozen=True)
class ParamRecord:
    """What a definition says of a scalar parameter."""

    name: str
    default: Any
    domain: Domain = Domain()
    special: tuple[Any, ...] = ()         # values that change the loop's body: each is compiled on its own
    only_special: bool = False            # no value but the special ones
    integer: bool = False
    into: Axis | None = None              # an integer that points into an axis
    reduction: str = ""                   # 1 where the caller's reduction is this word, else 0: no argument of the signature
    order: int = 0

    @property
    def is_option(self) -> bool:
        """Is this a yes or no that is settled at build time?"""
        return self.only_special and sp.true in self.special


class Param(Leaf):
    """A scalar that the caller chooses at run time, or, for its special values, at build time."""

    def _eval_is_integer(self) -> bool | None:
        return True if self.record.integer else None

    def _eval_is_positive(self) -> bool | None:
        domain = self.record.domain
        return True if domain.low is not None and (domain.low > 0 or (domain.low == 0 and domain.open_low)) else None

    def _eval_is_nonnegative(self) -> bool | None:
        domain = self.record.domain
        return True if domain.low is not None and domain.low >= 0 else None


class Chosen(sp.logic.boolalg.Boolean):
    """True in the variant that is compiled for this value of a parameter; settled by `specialise`."""

    is_Atom = True

    def __new__(cls, param: Param, value: Any) -> Any:
        self = super().__new__(cls)
        self.param, self.value = param, value
        return self

    def _hashable_content(self) -> tuple[Any, ...]:
        return (self.param, str(self.value))

    def _sympystr(self, printer: Any) -> str:
        return f"{self.param.name} is {self.value}"

    def sort_key(self, order: Any = None) -> Any:
        return self.class_key(), (1, (str(self),)), sp.S.One.sort_key(), sp.S.One

    def __invert__(self) -> Any:
        return sp.Not(self, evaluate=False)


class Node(sp.Expr):
    """A node of ours, which SymPy treats as an opaque real number."""

    is_commutative = True
    is_real = True


class Load(Node):
    """tensor[i, j, ...]; an index may be an integer expression, which makes it a gather."""

    @property
    def tensor(self) -> Tensor:
        return self.args[0]

    @property
    def index(self) -> tuple[sp.Expr, ...]:
        return self.args[1:]

    def _eval_is_integer(self) -> bool | None:
        return True if self.tensor.record.integer else None

    def _eval_is_positive(self) -> bool | None:
        domain = self.tensor.record.domain
        return True if domain.low is not None and (domain.low > 0 or (domain.low == 0 and domain.open_low)) else None

    def _eval_is_nonnegative(self) -> bool | None:
        domain = self.tensor.record.domain
        return True if domain.low is not None and domain.low >= 0 else None

    def _sympystr(self, printer: Any) -> str:
        if not self.index:
            return self.tensor.name
        return f"{self.tensor.name}[{', '.join(map(printer._print, self.index))}]"

    _latex = _sympystr


class Delta(Node):
    """1 where two integer expressions agree, else 0."""

    is_integer = True
    is_nonnegative = True

    def __new__(cls, a: sp.Expr, b: sp.Expr) -> Any:
        if a == b:
            return sp.S.One
        return super().__new__(cls, *sorted((a, b), key=sp.default_sort_key))


class Where(Node):
    """a where the condition holds, else b: a selection, never a product, so the arm not taken may be anything."""

    def __new__(cls, condition: Any, a: Any, b: Any) -> Any:
        condition, a, b = sp.sympify(condition), sp.sympify(a), sp.sympify(b)
        if condition is sp.true or a == b:
            return a
        if condition is sp.false:
            return b
        return super().__new__(cls, condition, a, b)

    @property
    def condition(self) -> Any:
        return self.args[0]

    def _eval_is_integer(self) -> bool | None:
        return True if all(arm.is_integer for arm in self.args[1:]) else None

    def _eval_is_nonnegative(self) -> bool | None:
        return True if all(arm.is_nonnegative for arm in self.args[1:]) else None

    def _eval_is_positive(self) -> bool | None:
        return True if all(arm.is_positive for arm in self.args[1:]) else None


REDUCTIONS = ("sum", "max", "logsumexp")


class Reduce(Node):
    """`op` over all values of a bound index. The bound index is named by depth: equal up to renaming means equal."""

    def __new__(cls, op: Any, body: Any, bound: Index) -> Any:
        op, body = str(op), sp.sympify(body)
        if bound not in free_indices(body):
            return {"sum": bound.axis * body, "max": body, "logsumexp": body + sp.log(bound.axis)}[op]
        height = 1 + height_of(body)
        while (canonical := Index(IndexRecord(bound.axis, f"#{height}"))) != bound and canonical in free_indices(body):
            height += 1          # an outer index stands free in the body: do not capture it
        return super().__new__(cls, sp.Symbol(op), substitute(body, {bound: canonical}), canonical)

    @property
    def op(self) -> str:
        return str(self.args[0].name)

    @property
    def body(self) -> sp.Expr:
        return self.args[1]

    @property
    def bound(self) -> Index:
        bound: Index = self.args[2]
        return bound

    def _xreplace(self, rule: Mapping[Any, Any]) -> tuple[Any, bool]:
        """Replace, but never the bound index, and never so that an outer index is captured."""
        if self in rule:
            return rule[self], True
        rule = {old: new for old, new in rule.items() if old != self.bound}
        if not rule:
            return self, False
        body, bound = self.body, self.bound
        if any(bound in free_indices(new) for new in rule.values()):
            fresh = bound.axis.index()
            body, bound = body.xreplace({bound: fresh}), fresh
        new, changed = body._xreplace(rule)
        return (Reduce(self.op, new, bound), True) if changed else (self, False)

    def _eval_is_positive(self) -> bool | None:
        return self.body.is_positive if self.op in ("sum", "max") else None

    def _eval_is_nonnegative(self) -> bool | None:
        return self.body.is_nonnegative if self.op in ("sum", "max") else None

    def _sympystr(self, printer: Any) -> str:
        return f"{self.op}[{self.bound.name}]({printer._print(self.body)})"


class LogAddExp(Node):
    """log(exp(a) + exp(b) + ...) of a few terms, each of which may be -oo; -oo where all of them are."""

    is_real = None                        # type: ignore[assignment]  # it may be infinite, so that a formula can ask
    is_extended_real = True

    def __new__(cls, *terms: Any) -> Any:
        live = [t for t in map(sp.sympify, terms) if t is not sp.S.NegativeInfinity]
        if len(live) < 2:
            return live[0] if live else sp.S.NegativeInfinity
        return super().__new__(cls, *sorted(live, key=sp.default_sort_key))

    def _sympystr(self, printer: Any) -> str:
        return f"logaddexp({', '.join(map(printer._print, self.args))})"


class Share(Node):
    """exp(term - whole): what a term is of a log-sum-exp, at most 1; 0 where the term is -oo, whatever the whole is."""

    is_nonnegative = True

    def _sympystr(self, printer: Any) -> str:
        return f"share({', '.join(map(printer._print, self.args))})"


class Named(Node):
    """A sub-expression with the author's name: kept whole by SymPy and by differentiation, named in the emitted code."""

    def __new__(cls, name: Any, body: Any) -> Any:
        body = sp.sympify(body)
        return body if body.is_Atom else super().__new__(cls, sp.Symbol(str(name)), body)

    @property
    def label(self) -> str:
        return str(self.args[0].name)

    @property
    def body(self) -> sp.Expr:
        return self.args[1]

    def _eval_is_positive(self) -> bool | None:
        return self.body.is_positive

    def _eval_is_nonnegative(self) -> bool | None:
        return self.body.is_nonnegative

    def _sympystr(self, printer: Any) -> str:
        return f"{self.label}"


class Rejection(Node):
    """What is left of a vector y when its part along x is taken away: y[i] - x[i] (sum of x y) / square.

    The arguments are y[i], x[i], the sum of x y, and square, which is the sum of x**2 and perhaps a constant. It is a node of its
    own because it cancels where y is nearly along x: lowering computes it from what x and y do not share.
    """

    @property
    def meaning(self) -> sp.Expr:
        """The same as a formula."""
        y, x, dot, square = self.args
        return y - x * dot / square

    def _sympystr(self, printer: Any) -> str:
        return f"rejection({', '.join(map(printer._print, self.args))})"


class Eliminated(Node):
    """a b - c d, rounded once."""

    @property
    def meaning(self) -> sp.Expr:
        """The same as a formula."""
        a, b, c, d = self.args
        return a * b - c * d


def root_of(product: sp.Expr) -> sp.Expr | None:
    """The expression of which this is the square, if its factors are squares."""
    roots = []
    for factor in sp.Mul.make_args(product):
        base, exponent = factor.as_base_exp()
        if factor.is_Rational and factor > 0 and sp.sqrt(factor).is_Rational:
            roots.append(sp.sqrt(factor))
        elif exponent.is_Integer and exponent > 0 and exponent % 2 == 0:
            roots.append(base ** (exponent / 2))
        else:
            return None
    return sp.Mul(*roots)


def sum_of_squares(expr: sp.Expr) -> tuple[sp.Expr, Index, sp.Expr] | None:
    """For the sum of x[i]**2 over i, and perhaps a constant: x[i], i and the constant."""
    sums = [t for t in sp.Add.make_args(expr) if isinstance(t, Reduce) and t.op == "sum"]
    if len(sums) != 1 or not (expr - sums[0]).is_nonnegative:
        return None
    root = root_of(sums[0].body)
    return None if root is None else (root, sums[0].bound, expr - sums[0])


def place_of(expr: sp.Expr, x: sp.Expr, bound: Index) -> Index | None:
    """The free index at which x[bound] is this expression, if there is one."""
    return next((j for j in sorted(free_indices(expr), key=str) if substitute(x, {bound: j}) == expr), None)


class Stated(Node):
    """A value whose derivatives by some reads are stated: args are the value, then pairs of a read and a slope."""

    @property
    def body(self) -> sp.Expr:
        return self.args[0]

    @property
    def slopes(self) -> tuple[tuple[Load, sp.Expr], ...]:
        return tuple(zip(self.args[1::2], self.args[2::2], strict=True))


class StopGradient(Node):
    """A value that derivatives take as a constant."""

    @property
    def body(self) -> sp.Expr:
        return self.args[0]


class Rounded(StopGradient):
    """A constant as the type that is computed in has it: the nearest number of that type."""


class StraightThrough(Node):
    """The value of the first argument, the derivative of the second."""

    @property
    def body(self) -> sp.Expr:
        return self.args[0]

    @property
    def through(self) -> sp.Expr:
        return self.args[1]


@lru_cache(maxsize=100_000)
def height_of(expr: sp.Basic) -> int:
    """How deep reductions stand within each other."""
    return int(expr.bound.record.label[1:]) if isinstance(expr, Reduce) else max(map(height_of, expr.args), default=0)


@lru_cache(maxsize=100_000)
def free_indices(expr: sp.Basic) -> frozenset[Index]:
    """The indices that an expression depends on; bound ones taken out."""
    if isinstance(expr, Index):
        return frozenset({expr})
    inside: frozenset[Index] = frozenset().union(*map(free_indices, expr.args)) if expr.args else frozenset()
    return inside - {expr.bound} if isinstance(expr, Reduce) else inside


def substitute(expr: Any, rule: Mapping[Any, Any]) -> Any:
    """`expr` with every key replaced; binders are respected."""
    return expr.xreplace(dict(rule)) if rule else expr


def leaves(expr: sp.Basic, kind: type) -> list[Any]:
    """Every node of a kind in the expression, once, in a stable order."""
    return sorted(expr.atoms(kind), key=sp.default_sort_key)


def tensors(expr: sp.Basic) -> list[Tensor]:
    """Every tensor that the expression reads, those in indices too, in the order of declaration."""
    found = {load.tensor for load in expr.atoms(Load)}
    return sorted(found, key=lambda t: (t.record.order, t.name))


def params(expr: sp.Basic) -> list[Param]:
    """Every parameter in the expression, in the order of declaration; those of unsettled choices too."""
    found = set(expr.atoms(Param)) | {c.param for c in expr.atoms(Chosen)}
    return sorted(found, key=lambda p: (p.record.order, p.name))


def outermost(expr: sp.Basic, kinds: tuple[type, ...]) -> list[Any]:
    """The outermost nodes of some kinds, each once, in a stable order."""
    found: set[Any] = set()

    def walk(node: sp.Basic) -> None:
        if isinstance(node, kinds):
            found.add(node)
        else:
            for arg in node.args:
                walk(arg)

    walk(expr)
    return sorted(found, key=sp.default_sort_key)


def postorder(expr: sp.Basic) -> Iterator[sp.Basic]:
    """Every node, children first."""
    return sp.postorder_traversal(expr)

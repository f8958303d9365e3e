"""Formulas as closures: what SymPy holds becomes a function of a point, once, and is evaluated at many."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from functools import reduce as fold
from typing import Any, Protocol

import sympy as sp
from flint import arb, fmpq

from .. import nodes
from ..nodes import Load
from ..recurrence import Table
from .balls import INF, ONE, ZERO, order
from .functions import CONSTANTS, EXP, FUNCTIONS, REDUCTIONS, RELATIONS, log_add_exp, raised
from .jets import Number, jet, parts, plus, product, still, times, total
from .results import OracleError

Cell = tuple[int, ...]
Moves = Mapping[tuple[str, Cell], arb]


class Arguments(Protocol):
    """What formulas read."""

    @property
    def cells(self) -> Mapping[tuple[str, Cell], arb]:
        """Every cell of the given tensors, by name and position."""

    @property
    def absent(self) -> Mapping[str, arb]:
        """The optional tensors that were left out."""

    @property
    def scalars(self) -> Mapping[str, arb]:
        """The parameters."""

    def size(self, axis: nodes.Axis) -> int:
        """The number of positions along an axis."""

    def table(self, tensor: nodes.Tensor) -> Table:
        """What the cells of a table are."""


@dataclass
class Point:
    """Where a formula is evaluated: a sample, and the rates of the cells that move along e1 and e2."""

    problem: Arguments
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
            return table_code(expr, frozen) if expr.tensor.record.state else read(expr, frozen)
        case nodes.Index():
            place = position(expr)
            return lambda point: arb(place(point))
        case nodes.Axis():
            return (lambda point: arb(point.problem.size(expr))) if expr.record.extent is None else inner(expr.record.extent)
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
        case nodes.LogAddExp():
            terms = list(map(inner, expr.args))
            return lambda point: log_add_exp([term(point) for term in terms])
        case sp.core.numbers.Infinity() | sp.core.numbers.NegativeInfinity():
            end = INF if expr is sp.oo else -INF
            return lambda point: end
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
        raise OracleError(f"{type(expr).__name__} has no exact meaning: {expr}", repair="Give it one in losscomp/oracle/functions.py.")
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


def table_code(load: Load, frozen: Frozen) -> Code:
    """A cell of a table: what the definition says of it, found when it is first read; or what lies before the first."""
    index = tuple(map(position, load.index))

    def value(point: Point) -> Number:
        cell = tuple(place(point) for place in index)
        table = point.problem.table(load.tensor)
        if min(cell) < 0:
            outside = dict(table.start).get(cell, table.outside)
            return code(outside)(point)
        known = (table.name, frozen, cell)
        if known not in point.known:
            before = dict(point.places)
            point.places.update(zip((i.key for i in table.indices), cell, strict=True))
            point.known[known] = code(table.expr, frozen)(point)
            point.places.clear()
            point.places.update(before)
        return point.known[known]

    return value


def reduction_code(expr: nodes.Reduce, body: Code) -> Code:
    """A reduction, done once for each place of the indices around it."""
    join, key, axis = REDUCTIONS[expr.op], expr.bound.key, expr.bound.axis
    size = position(axis)
    around = sorted(i.key for i in nodes.free_indices(expr))
    token = object()

    def value(point: Point) -> Number:
        places = point.places
        known = (token, *(places[i] for i in around))
        if known not in point.known:
            outer, terms = places.get(key), []
            for places[key] in range(size(point)):
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

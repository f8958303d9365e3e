"""A formula evaluated in floating point as it stands, operation by operation: what a definition gives without any care.

Nothing is rewritten, shifted or reordered, and atoms are what they mean. `losscomp suggest` measures with it what rules gain.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce as fold
from math import erf
from typing import Any

import numpy as np
import sympy as sp

from . import atoms, nodes
from .errors import LoweringError

Places = Mapping[nodes.Index, int]

FUNCTIONS: dict[type, Callable[..., Any]] = {
    sp.exp: np.exp, sp.log: np.log, sp.tanh: np.tanh, sp.sin: np.sin, sp.cos: np.cos, sp.sinh: np.sinh, sp.cosh: np.cosh,
    sp.atan: np.arctan, sp.erf: lambda x: np.vectorize(erf, otypes=[x.dtype])(x), sp.Mod: np.mod, sp.floor: np.floor,
    sp.StrictLessThan: np.less, sp.LessThan: np.less_equal, sp.StrictGreaterThan: np.greater, sp.GreaterThan: np.greater_equal,
    sp.Equality: np.equal, sp.Unequality: np.not_equal, sp.Not: np.logical_not,
    atoms.Abs: np.abs, atoms.Sign: np.sign, atoms.root: np.sqrt,
    atoms.binade: lambda x: np.where((x > 0) & (x < np.inf), np.ldexp(x.dtype.type(0.5), np.frexp(x)[1]), x.dtype.type(1)),
}
JOINED: dict[type, Callable[[Any, Any], Any]] = {sp.And: np.logical_and, sp.Or: np.logical_or, sp.Add: np.add, sp.Mul: np.multiply}
TRANSPARENT = (nodes.Named, nodes.Stated, nodes.StopGradient, nodes.StraightThrough)


class Plain:
    """One set of inputs in one type.

    Args:
        tensors: arrays in the layout of kernels, scales and directions among them.
        params: scalars.
        sizes: the length of each axis, by name.
        count: the number of samples.
    """

    def __init__(self, tensors: Mapping[str, np.ndarray], params: Mapping[str, Any], sizes: Mapping[str, int], count: int,
                 dtype: str) -> None:
        self.tensors, self.params, self.sizes, self.count = tensors, params, sizes, count
        self.real = np.dtype(dtype).type
        self.done: dict[Any, Any] = {}

    def result(self, expr: sp.Expr, index: tuple[nodes.Index, ...]) -> np.ndarray:
        """A result with axes: of shape (count, *lengths of the axes of the index)."""
        lengths = tuple(self.sizes[i.axis.name] for i in index)
        out = np.empty((self.count, *lengths), self.real)
        with np.errstate(all="ignore"):
            for cell in np.ndindex(*lengths):
                out[(slice(None), *cell)] = self(expr, dict(zip(index, cell, strict=True)))
        return out

    def __call__(self, expr: sp.Basic, places: Places) -> Any:
        """The value for each sample, or one for all. Raises LoweringError for a function that has no numbers here."""
        key = (expr, tuple(sorted((i.key, places[i]) for i in nodes.free_indices(expr))))
        if key not in self.done:
            self.done[key] = self.compute(expr, places)
        return self.done[key]

    def compute(self, expr: sp.Basic, places: Places) -> Any:
        inner: Callable[[Any], Any] = lambda part: self(part, places)
        match expr:
            case nodes.Index():
                return places[expr]
            case nodes.Axis():
                return self.real(self.sizes[expr.name])
            case nodes.Param():
                value = self.params[expr.name]
                return value if expr.record.integer else self.real(value)
            case sp.Number():
                return self.real(float(expr)) if not expr.is_Integer or abs(expr) > 2**31 else self.real(int(expr))
            case sp.NumberSymbol():
                return self.real(float(expr))
            case sp.logic.boolalg.BooleanAtom():
                return bool(expr)
            case nodes.Load():
                return self.load(expr, places)
            case nodes.Delta(args=(a, b)):
                return np.where(np.equal(inner(a), inner(b)), self.real(1), self.real(0))
            case nodes.Where(args=(condition, a, b)):
                return np.where(inner(condition), inner(a), inner(b))
            case nodes.Reduce():
                terms = [self(expr.body, {**places, expr.bound: k}) for k in range(self.sizes[expr.bound.axis.name])]
                if expr.op == "logsumexp":
                    return np.log(fold(np.add, map(np.exp, terms)))
                return fold(np.add if expr.op == "sum" else np.maximum, terms)
            case nodes.Rejection() | nodes.Eliminated():
                return inner(expr.meaning)
            case sp.Pow() if not isinstance(expr, sp.exp):
                return self.power(inner(expr.base), expr.exp, places)
        if isinstance(expr, TRANSPARENT):
            return inner(expr.body)
        if type(expr) in JOINED:
            return fold(JOINED[type(expr)], map(inner, expr.args))
        if type(expr) in FUNCTIONS:
            return FUNCTIONS[type(expr)](*map(inner, expr.args))
        if atoms.is_atom(expr):
            return inner(atoms.meaning(expr))
        raise LoweringError(f"{type(expr).__name__} has no plain meaning: {expr}", repair="Give it one in losscomp/plain.py.")

    def load(self, expr: nodes.Load, places: Places) -> Any:
        """A read; a gather where a position depends on the sample."""
        array, record = self.tensors[expr.tensor.name], expr.tensor.record
        index = tuple(np.asarray(self(i, places)).astype(np.int64) for i in expr.index)
        return array[(np.arange(self.count), *index)] if record.per_sample else array[index] if index else array

    def power(self, base: Any, exponent: sp.Expr, places: Places) -> Any:
        """base ** exponent, where small ones are what a person would write."""
        if exponent.is_Integer and 0 < abs(exponent) <= 4:
            whole = fold(np.multiply, [base] * abs(int(exponent)))
            return whole if exponent > 0 else self.real(1) / whole
        if abs(exponent) == sp.S.Half:
            return np.sqrt(base) if exponent.is_positive else self.real(1) / np.sqrt(base)
        return np.power(base, self(exponent, places))

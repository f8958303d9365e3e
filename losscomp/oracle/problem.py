"""A loss over a batch: one definition with its arguments, what it amounts to, and how that moves with the inputs."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import sympy as sp
from flint import arb, ctx

from .. import nodes
from ..check import Checked
from ..recurrence import Table
from .balls import ZERO, mul, recip
from .formulas import Cell, Moves, Point, code
from .functions import INVERSE, sign
from .jets import Number, parts, product, still, summed
from .results import OracleError, settle


@dataclass(frozen=True)
class Problem:
    """One loss with its arguments, as balls."""

    form: Checked
    batch: int
    cells: Mapping[tuple[str, Cell], arb]
    absent: Mapping[str, arb]                                           # optional tensors that were left out
    sizes: Mapping[nodes.Axis, int]
    scalars: Mapping[str, arb]
    reduction: str
    upstream: Sequence[arb]                                             # one a sample
    directions: Moves
    real: Any = np.float64                                              # the type that the arrays are of
    known: dict[tuple[Any, ...], Number] = field(default_factory=dict)

    def size(self, axis: nodes.Axis) -> int:
        """The number of positions along an axis."""
        if axis not in self.sizes:
            raise OracleError(f"no given tensor has the axis {axis.name!r}", repair="Pass one that has it.")
        return self.sizes[axis]

    def table(self, tensor: nodes.Tensor) -> Table:
        """What the cells of a table are."""
        return next(t for t in self.form.tables if t.tensor == tensor)

    def sample(self, formula: sp.Expr, n: int, first: Moves, second: Moves) -> Number:
        """A formula at one sample. What moves along no single cell is kept: a total needs it again and again."""
        if first:
            return code(formula)(Point(self, n, first, second))
        key = (formula, n, bool(second), ctx.prec)
        if key not in self.known:
            self.known[key] = code(formula)(Point(self, n, first, second))
        return self.known[key]

    def over(self, formula: sp.Expr, touched: Collection[int], first: Moves, second: Moves) -> Number:
        """The sum of a formula over the batch; `touched` are the samples that read what moves along e1."""
        key = ("all", formula, bool(second), ctx.prec)
        if not first and key in self.known:
            return self.known[key]
        rest = second if second is not first else {}                    # where e1 and e2 are one cell, the others rest
        result = summed(self.sample(formula, n, *((first, second) if n in touched else ({}, rest))) for n in range(self.batch))
        if not first:
            self.known[key] = result
        return result

    def loss(self, touched: Collection[int], first: Moves, second: Moves) -> Number:
        """The reduced loss times upstream, as far as it moves along e1."""
        some = [self.sample(self.form.value, n, first, second) for n in touched]
        if self.reduction == "none":
            return summed(product(x, self.upstream[n]) for n, x in zip(touched, some, strict=True))
        scale, above = self.upstream[0], summed(some)
        if self.reduction == "mean":
            moving = {name for name, _ in (*first, *second)}
            if moving.isdisjoint(t.name for t in nodes.tensors(self.form.weight)):
                scale = mul(scale, recip(still(self.over(self.form.weight, (), {}, {}))))
            else:                                                       # the quotient rule, which needs all samples
                above = product(self.over(self.form.value, touched, first, second),
                                INVERSE(self.over(self.form.weight, touched, first, second)))
        elif self.reduction == "batchmean":
            scale = mul(scale, recip(arb(self.batch)))
        return product(above, scale)

    def values(self) -> list[tuple[float, float]]:
        """The loss, of each sample or reduced."""
        if self.reduction == "none":
            return [self.alone(n) for n in range(self.batch)]

        def reduced() -> list[arb]:
            above = still(self.over(self.form.value, (), {}, {}))
            below = {"mean": still(self.over(self.form.weight, (), {}, {})), "batchmean": arb(self.batch)}
            return [above if self.reduction == "sum" else mul(above, recip(below[self.reduction]))]

        return settle(reduced)

    def alone(self, n: int) -> tuple[float, float]:
        """The loss of one sample."""
        return settle(lambda: [still(self.sample(self.form.value, n, {}, {}))])[0]

    def derivatives(self, touched: Collection[int], first: Moves, second: Moves) -> list[tuple[float, float]]:
        """The derivative along e1, and its derivative along e2."""
        def moves() -> list[arb]:
            loss = parts(self.loss(touched, first, second))
            return [ZERO if part is None else part for part in (loss.b, loss.d)]

        results = settle(moves)
        infinite = [key for key, x in self.cells.items() if not x.is_finite() and not x.is_nan()]
        if not infinite or not any(math.isnan(high) for high, _ in results):
            return results
        if any(math.isnan(self.alone(n)[0]) for n in touched):
            return results
        return self.limits(infinite, touched, first, second, results)

    def limits(self, infinite: list[tuple[str, Cell]], touched: Collection[int], first: Moves, second: Moves,
               results: list[tuple[float, float]]) -> list[tuple[float, float]]:
        """`results` with limits for NaN, where these are the same for several ways to go to infinity."""
        count = len(infinite)
        trials = []
        for speeds in ([1] * count, range(1, count + 1), range(count + 1, 1, -1)):
            far = {key: sign(self.cells[key]) * s * arb(2) ** 2400 for key, s in zip(infinite, speeds, strict=True)}
            trial = replace(self, cells={**self.cells, **far}, known={})
            try:
                trials.append(trial.derivatives(touched, first, second))
            except OracleError:
                return results
        agreed = [(a[0], 0.0) if a[0] == b[0] == c[0] else (math.nan, 0.0) for a, b, c in zip(*trials, strict=True)]
        return [limit if math.isnan(result[0]) else result for result, limit in zip(results, agreed, strict=True)]

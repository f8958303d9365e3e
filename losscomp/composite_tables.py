"""The composite of a loss that is a system of tables: each table for all samples at once, with a loop only over what is serial.

What lies behind a sample's own extents is computed too, and may be anything. So nothing is read there: a read by a cell, or by a
term of a reduction, that a sample does not have is 0 and has no derivative, and neither has what is computed from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import reduce as fold

import sympy as sp

from . import ir, nodes
from .composite import WHAT, CompositeLowering, names_of, results_of, signature_of
from .errors import LosscompError
from .inside import surely_inside
from .ir import Const, Load, Node, Op, Reduce, Size, Var
from .lower import ZERO, Env, op, parameter, real, where
from .nodes import Axis, AxisRecord, Index, Tensor
from .pipeline import Compiled
from .recurrence import Table, extent, pads_of, schedule_of
from .schedule import Scheduler, Task
from .sweeps import bind, most

NOTHING = {"sum": ZERO, "max": Const(-1, 0), "logsumexp": Const(-1, 0)}            # what a term counts that a sample does not have


@dataclass(frozen=True)
class Rows:
    """A table that has at most one serial index.

    Attributes:
        table: what a cell is. pads: how deep cells lie before the first one. serial: the place of the serial index, if there is one.
        exists: the conditions that a cell is one of the sample's. framed: cells that are none are what lies outside.
    """

    table: Table
    pads: tuple[int, ...]
    serial: int | None
    exists: tuple[sp.Basic, ...]
    framed: bool = False


def belongs(position: sp.Expr, size: sp.Expr, axis: Axis) -> tuple[sp.Basic, ...]:
    """The condition that a position is below a sample's own extent, where samples have one."""
    return () if axis.record.extent is None else (sp.StrictLessThan(position, size),)


def rows_of(tables: Sequence[Table], *exprs: sp.Expr) -> tuple[list[Rows], tuple[sp.Expr, ...]]:
    """The tables row by row, or diagonal by diagonal; and expressions that read these."""
    pads = pads_of(tables, sp.Tuple(*(t.expr for t in tables), *exprs))
    axes: dict[tuple[object, ...], Axis] = {}
    moved: dict[Tensor, Callable[..., Load]] = {}
    rows: list[Rows] = []
    for table in tables:
        steps = schedule_of(table)
        if steps.count(0) or len(steps) < 2:
            serial = next((k for k, p in enumerate(steps) if p), None)
            exists = tuple(c for i in table.indices for c in belongs(i, extent(i), i.axis))
            rows.append(Rows(table, pads[table.tensor], serial, exists))
            continue
        made = diagonals(table, pads[table.tensor], steps, axes)
        rows.append(made)
        moved[table.tensor] = along(made.table.tensor, steps)
    back = lambda e: e.replace(lambda n: isinstance(n, nodes.Load) and n.tensor in moved, lambda n: moved[n.tensor](*n.index))
    return [replace(r, table=replace(r.table, expr=back(r.table.expr))) for r in rows], tuple(map(back, exprs))


def along(tensor: Tensor, steps: tuple[int, ...]) -> Callable[..., sp.Expr]:
    """Where cell (i, j) lies, when the first index is its diagonal and the second its place there."""
    lane = 0 if steps[1] == 1 else 1
    return lambda *cell: nodes.Load(tensor, sp.expand(steps[0] * cell[0] + steps[1] * cell[1]), cell[lane])


def diagonals(table: Table, pads: tuple[int, ...], steps: tuple[int, ...], axes: dict[tuple[object, ...], Axis]) -> Rows:
    """A table whose cells (i, j) with the same p i + q j can be computed at once, with these as its rows."""
    lane = 0 if steps[1] == 1 else 1
    other, (p, q) = 1 - lane, steps
    ends = [extent(i) for i in table.indices]
    key = (steps, *(i.axis for i in table.indices))
    count = p * (ends[0] - 1) + q * (ends[1] - 1) + 1
    axis = axes.setdefault(key, Axis(AxisRecord(f"diagonals_{len(axes) + 1}" if axes else "diagonals", extent=count)))
    d, i = axis.index(), table.indices[lane]
    far = d - steps[lane] * i
    tensor = Tensor(replace(table.tensor.record, axes=(axis, i.axis)))
    place = lambda cell: (p * cell[0] + q * cell[1], cell[lane])
    start = tuple((place(cell), value) for cell, value in table.start)
    exists = (*belongs(i, ends[lane], i.axis), sp.GreaterThan(far, 0), sp.StrictLessThan(far, ends[other]))
    expr = nodes.substitute(table.expr, {table.indices[other]: far})
    return Rows(Table(tensor, (d, i), expr, table.outside, start), (p * pads[0] + q * pads[1], pads[lane]), 0, exists, True)


class TablesLowering(CompositeLowering):
    """Lowering that reads nothing where a sample has nothing: `scope` is the condition that it has what is being lowered."""

    def __init__(self, names: dict[sp.Expr, str], pads: dict[str, tuple[int, ...]]) -> None:
        super().__init__(names)
        self.pads = pads
        self.scope: Node | None = None
        self.scopes: dict[object, dict[object, Node]] = {}               # what has been lowered, by scope and serial variable
        self.serial: Var | None = None                                   # the variable of the loop over rows, a number in there

    @contextmanager
    def within(self, conditions: Sequence[sp.Basic], env: Env) -> Iterator[Node | None]:
        """Everything that is lowered inside is read only where the conditions hold too. They are given as a node."""
        outer, known = self.scope, self.done
        tests = [self(c, env) for c in conditions]
        test = self.called("exists", fold(lambda a, b: op("and", a, b), tests)) if tests else None
        if test is not None:
            self.scope = test if outer is None else self.called("exists", op("and", outer, test))
        self.done = self.scopes.setdefault((self.scope, self.serial), {})
        yield test
        self.scope, self.done = outer, known

    def is_number(self, node: Node) -> bool:
        return not any(isinstance(n, Load) or (isinstance(n, Var) and n is not self.serial) for n in ir.walk(node))

    def lower(self, expr: sp.Basic, env: Env) -> Node:
        if isinstance(expr, Axis) and expr.record.extent is not None:
            return self(expr.record.extent, env)
        if isinstance(expr, nodes.Param):
            return parameter(expr)
        return super().lower(expr, env)

    def load(self, expr: nodes.Load, env: Env) -> Node:
        node, record = super().load(expr, env), expr.tensor.record
        if self.scope is None or (record.integer and not expr.index):
            return node
        assert isinstance(node, Load)
        earlier = any(ir.shift(i)[1] < 0 for i in node.index)
        return self.called(f"{record.name}_{'before' if earlier else 'here'}", where(self.scope, node, ZERO))

    def cell(self, record: nodes.TensorRecord, index: tuple[sp.Expr, ...], env: Env) -> tuple[Node, ...]:
        if record.state:
            return tuple(self.in_table(i, axis, pad, env) for i, axis, pad in zip(index, record.axes, self.pads[record.name], strict=True))
        return tuple(self.in_input(i, axis, env) for i, axis in zip(index, record.axes, strict=True))

    def in_input(self, i: sp.Expr, axis: Axis, env: Env) -> Node:
        """A position along an input."""
        whole = isinstance(i, Index) and i.axis.record.extent is not None and most(i.axis) in (axis, axis.record.size)
        node = self.position(i, env)
        return node if whole or surely_inside(i, axis) else Op("inside", (node, Size(axis.name)))

    def in_table(self, i: sp.Expr, axis: Axis, pad: int, env: Env) -> Node:
        """A position along a table, or its first where there is none to read; at a fixed distance from a position along the same axis
        it lies in the table in any case."""
        node = self.position(i, env)
        var, _ = ir.shift(node)
        known = isinstance(node, Const) or (isinstance(var, Var) and var.axis == axis.name)
        return node if known or self.scope is None else where(self.scope, node, Const(-pad))

    def reduction(self, expr: nodes.Reduce, env: Env) -> Node:
        bound = expr.bound
        var = next(v for k in range(9) if (v := Var(bound.axis.name, k)) not in env.values())
        env = {**env, bound: var}
        with self.within(belongs(bound, extent(bound), bound.axis), env) as exists:
            body = self(expr.body, env)
        if exists is not None:
            body = where(exists, real(body), NOTHING[expr.op])
        if expr.op == "sum":
            return self.summed(var, body)
        return Reduce("log_sum_exp" if expr.op == "logsumexp" else expr.op, var, real(body))

    def log_sum_exp(self, lse: nodes.Reduce, env: Env) -> tuple[Node, Node]:
        """Whole: a term of it may be -oo, and the whole of it too."""
        return self(lse, env), ZERO


def frame(r: Rows, lowering: TablesLowering, env: Env) -> Node:
    """What is in a cell that is none of the sample's."""
    node = lowering(r.table.outside, env)
    for cell, value in r.table.start:
        if min(cell) >= 0:
            here = [op("eq", env[i], Const(c)) for i, c in zip(r.table.indices, cell, strict=True)]
            node = where(op("and", *here), lowering(value, env), node)
    return node


def composite_of_tables(compiled: Compiled) -> ir.Kernel:
    """The loss of a sample, and its denominator where that is not 1, of one variant. Raises LosscompError."""
    try:
        return lowered(compiled)
    except LosscompError as error:
        raise error.at(compiled.form.loss.path or compiled.form.loss.name) from None


def lowered(compiled: Compiled) -> ir.Kernel:
    """The kernel: its tables in order, then the results."""
    form, s, results = compiled.smooth, signature_of(compiled.smooth), results_of(compiled.smooth)
    rows, exprs = rows_of(form.tables, *results.values())
    lowering = TablesLowering(names_of(compiled), {r.table.name: r.pads for r in rows})
    read = sp.Tuple(*exprs, *(e for r in rows for e in (r.table.expr, *r.table.indices)))
    ragged = [i.axis for r in rows for i in r.table.indices] + sorted((i.axis for i in read.atoms(Index)), key=lambda a: a.key)
    axes = [a for a in dict.fromkeys(ragged) if a.record.extent is not None]
    extents = tuple(ir.Extent(a.name, lowering(a.record.extent, {}), lowering(most(a), {})) for a in axes)
    tables = tuple(ir.Table(r.table.name, tuple(i.axis.name for i in r.table.indices), r.pads, r.table.tensor.record.integer,
                            lowering(r.table.outside, {}), tuple((cell, lowering(x, {})) for cell, x in r.table.start)) for r in rows)
    names = frozenset({a.name for a in s.inputs + s.outputs} | {p.name for p in s.params} | {t.name for t in tables})
    taken = ir.taken_names(names, s.axes + tuple(e.axis for e in extents))
    scheduler = Scheduler(False, lowering.hints, taken | {f"{t.name}_rows" for t in tables})
    body: list[ir.Statement] = []
    for r in rows:
        body += [ir.Section(r.table.name), *filled(r, lowering, scheduler)]
    stores = [ir.Store(name, (ir.SAMPLE,), lowering(expr, {})) for name, expr in zip(results, exprs, strict=True)]
    tasks = [Task(store, (), store.value) for store in stores]
    body += [ir.Section("the loss"), *scheduler.block(tasks, frozenset({ir.SAMPLE}))]
    whole = ir.Loop(ir.SAMPLE, (), tuple(body))
    return ir.check_scheduled(ir.Kernel("value", WHAT, s.inputs, s.params, s.outputs, s.axes, (whole,), (), extents, tables), False)


def filled(r: Rows, lowering: TablesLowering, scheduler: Scheduler) -> tuple[ir.Statement, ...]:
    """The loops of one table, that over rows innermost: what rows share stands before it."""
    env: dict[Index, Var] = {}
    cell = tuple(bind(i, env) for i in r.table.indices)
    serial = None if r.serial is None else cell[r.serial]
    lowering.serial = serial
    with lowering.within(r.exists, env) as exists:
        node = lowering.filling(r.table.tensor.record, r.table.expr, env)
    if not r.table.tensor.record.integer:
        node = real(node)
    if r.framed and exists is not None:
        node = where(exists, node, frame(r, lowering, env))
    lowering.serial = None
    lowering.called(f"{r.table.name}_row" if r.serial is not None else f"{r.table.name}_cells", node)
    loops = (*(v for v in cell if v is not serial), *([] if serial is None else [serial]))
    task = Task(ir.Store(r.table.name, cell, node), loops, node)
    return tuple(in_order(s, serial) for s in scheduler.block([task], frozenset({ir.SAMPLE})))


def in_order(s: ir.Statement, serial: Var | None) -> ir.Statement:
    """The statement, with the loop over rows serial."""
    if not isinstance(s, ir.Loop):
        return s
    return replace(s, body=tuple(in_order(inner, serial) for inner in s.body), serial=s.var is serial)

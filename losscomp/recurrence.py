"""Losses that are systems of tables: from a definition to programs, and from programs to programs that compute derivatives.

A program is a list of sweeps. A sweep does some actions at every cell of a table, along the order of the cells or against it; an
action stores an expression, or pushes it: adds it to a cell, once for each position of its binders. The adjoint of a program goes
through its sweeps backwards: a cell whose adjoint is complete pushes it to all that the cell has read. The tangent goes along with
a program, step by step. Values, gradients, directional derivatives and Hessian-vector products (the tangent of the adjoint) are
made of these two, for any system of tables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import sympy as sp

from . import nodes
from .atoms import same
from .differentiate import OPAQUE, derive, total
from .errors import CheckError
from .nodes import Index, Load, LogAddExp, Named, Reduce, Share, Tensor, TensorRecord, Where

Expr: TypeAlias = sp.Expr
# The order of the cells: (p, q) where cell (i, j) can be computed at step p i + q j, all cells of a step at once.
HYPERPLANES: dict[int, tuple[tuple[int, ...], ...]] = {1: ((1,),), 2: ((1, 0), (0, 1), (1, 1), (2, 1), (1, 2))}


@dataclass(frozen=True)
class Table:
    """A table of a system: what a cell is, at its indices, and what lies before the first."""

    tensor: Tensor
    indices: tuple[Index, ...]
    expr: Expr
    outside: Expr
    start: tuple[tuple[tuple[int, ...], Expr], ...] = ()

    @property
    def name(self) -> str:
        return self.tensor.name


@dataclass(frozen=True)
class Action:
    """target[index] = expr, or += expr for every position of the binders. `alone`: in a loop of its own."""

    target: Tensor
    index: tuple[Expr, ...]
    expr: Expr
    adds: bool = False
    binders: tuple[Index, ...] = ()
    alone: bool = False


@dataclass(frozen=True)
class Sweep:
    """The actions at every cell, in an order that `schedule` describes (() where the cells do not depend on each other)."""

    indices: tuple[Index, ...]
    actions: tuple[Action, ...]
    schedule: tuple[int, ...] = ()
    reverse: bool = False
    about: str = ""


@dataclass(frozen=True)
class Cells:
    """The memory of a table: the axes that it has, how deep cells lie before the first one, and what is in them at first."""

    tensor: Tensor
    pads: tuple[int, ...]
    outside: Expr
    start: tuple[tuple[tuple[int, ...], Expr], ...] = ()
    cleared: bool = False                 # its cells are added to: they are 0 at first


@dataclass(frozen=True)
class Program:
    """Sweeps in order, and the memory that they work in. `results` are arrays of the caller that are added to."""

    sweeps: tuple[Sweep, ...]
    cells: tuple[Cells, ...]
    cleared: tuple[Tensor, ...] = ()

    @property
    def exprs(self) -> sp.Tuple:
        """Everything that the program reads."""
        return sp.Tuple(*(e for s in self.sweeps for a in s.actions for e in (a.expr, *a.index)))


@dataclass(frozen=True)
class System:
    """The tables of a loss, in order, each after those that it reads; and the log-sum-exps in them, which are kept as tables too.

    Attributes:
        kept: for each table, the log-sum-exps in its expression and the cell where each is kept.
    """

    tables: tuple[Table, ...]
    kept: Mapping[str, Mapping[Expr, Load]] = field(default_factory=dict)


# What a system must satisfy

def offsets(table: Table) -> list[tuple[int | None, ...]]:
    """For each read of its own cells, how far back it lies along each index; None where it is a whole row. Raises CheckError."""
    found = []
    for load in sorted(table.expr.atoms(Load), key=str):
        if load.tensor == table.tensor:
            back = [sp.expand(i - e) for i, e in zip(table.indices, load.index, strict=True)]
            found.append(tuple(int(b) if b.is_Integer else None for b in back))
    return found


def schedule_of(table: Table) -> tuple[int, ...]:
    """The smallest steps (p, q) at which p i + q j is later for a cell than for every cell that it reads (Lamport's hyperplane)."""
    back = offsets(table)
    if not back:
        return ()
    for steps in HYPERPLANES.get(len(table.indices), ()):
        if all(all(b is not None or p == 0 for p, b in zip(steps, gap, strict=True))
               and sum(p * b for p, b in zip(steps, gap, strict=True) if b is not None) >= 1 for gap in back):
            return steps
    reads = ", ".join(str(load) for load in sorted(table.expr.atoms(Load), key=str) if load.tensor == table.tensor)
    raise CheckError(f"the cells of the table {table.name!r} cannot be put in order: a cell reads {reads}",
                     repair="A cell may read cells that are earlier along the first index, or earlier along the second in the same "
                            "row; tables have one or two indices.")


def extent(index: Index) -> Expr:
    """How many positions an index has, for one sample."""
    axis = index.axis
    return axis if axis.record.extent is None else axis.record.extent


def pads_of(tables: Sequence[Table], exprs: sp.Basic) -> dict[Tensor, tuple[int, ...]]:
    """How far before its first cell each table is read. Raises CheckError where it is read behind its last."""
    by = {t.tensor: t for t in tables}
    pads = {t.tensor: [0] * len(t.indices) for t in tables}
    for load in sorted(exprs.atoms(Load), key=str):
        if load.tensor not in by:
            continue
        for k, (e, own) in enumerate(zip(load.index, by[load.tensor].indices, strict=True)):
            low = lowest(e)
            if low is None or not surely_below(e, extent(own)):
                raise CheckError(f"{load} may lie outside of the table {load.tensor.name!r}, behind its last cell",
                                 repair=f"Index {k} must be below {extent(own)} for every sample.")
            pads[load.tensor][k] = max(pads[load.tensor][k], -low)
    for t in tables:
        for cell, _ in t.start:
            pads[t.tensor] = [max(p, -c) for p, c in zip(pads[t.tensor], cell, strict=True)]
    return {tensor: tuple(p) for tensor, p in pads.items()}


def atoms_of(e: Expr) -> list[Expr]:
    """The indices, lengths and sizes in an index expression."""
    inside = list(e.atoms(Load))
    return [*inside, *(i for i in e.atoms(Index) if not any(i in load.atoms(Index) for load in inside)), *e.atoms(nodes.Axis)]


def lowest(e: Expr) -> int | None:
    """The least value of an index expression, if that is known: all that it is made of is at least 0."""
    parts = atoms_of(e)
    plain = {p: sp.Dummy(integer=True, nonnegative=True) for p in parts}
    at = sp.expand(e.xreplace(plain))
    if not at.is_polynomial(*plain.values()) or any(not at.coeff(d).is_nonnegative for d in plain.values()):
        return None
    least = at.subs(dict.fromkeys(plain.values(), 0))
    return int(least) if least.is_Integer else None


def surely_below(e: Expr, size: Expr) -> bool:
    """Is an index expression below a size, whatever the lengths are?"""
    indices = sorted((i for i in e.atoms(Index)), key=str)
    most = e.xreplace({i: extent(i) - 1 for i in indices})
    gap = sp.expand(size - 1 - most)
    plain = {p: sp.Dummy(integer=True, nonnegative=True) for p in atoms_of(gap)}
    return bool(gap.xreplace(plain).is_nonnegative)


def keep_logs(tables: Sequence[Table], names: Mapping[Expr, str], taken: set[str]) -> System:
    """The system with every log-sum-exp that a recurrence contains kept in a table: its terms' shares in it are then one exponential."""
    out: list[Table] = []
    kept: dict[str, dict[Expr, Load]] = {}
    for table in tables:
        cells: dict[Expr, Load] = {}
        if not table.tensor.record.integer:
            logs = [e for e in nodes.outermost(table.expr, (LogAddExp, Reduce)) if not isinstance(e, Reduce) or e.op == "logsumexp"]
            for e in logs:
                if e == table.expr:
                    cells[e] = Load(table.tensor, *table.indices)
                    continue
                name = names.get(e) or f"{table.name}_total"
                while name in taken:
                    name += "_2"
                taken.add(name)
                tensor = Tensor(replace(table.tensor.record, name=name))
                cells[e] = Load(tensor, *table.indices)
                out.append(Table(tensor, table.indices, e, sp.S.Zero))
        kept[table.name] = cells
        out.append(table)
    return System(tuple(out), kept)


# The derivation

@dataclass(frozen=True)
class Path:
    """How an expression depends on a read: the binders under which it reads it, its derivative, and the selections on the way."""

    load: Load
    binders: tuple[Index, ...]
    weight: Expr
    masks: tuple[tuple[Where, bool], ...] = ()

    def times(self, outer: Expr) -> Path:
        return replace(self, weight=outer * self.weight)

    def within(self, seed: Expr) -> Expr:
        """seed * weight where every selection on the way chose this read, else 0."""
        chosen = {part: part.args[1 if holds else 2] for part, holds in self.masks}
        value = seed * self.weight.xreplace(chosen)
        for part, holds in reversed(self.masks):
            value = Where(part.condition, value, 0) if holds else Where(part.condition, 0, value)
        return value


def paths(expr: Expr, at: Callable[[Expr], Expr] = lambda e: e) -> Iterator[Path]:
    """Every read that an expression depends on, with the derivative by it. `at` says where a log-sum-exp is kept."""
    parts = nodes.outermost(expr, OPAQUE)
    names = {part: sp.Dummy(f"frozen{k}", real=True, positive=part.is_positive) for k, part in enumerate(parts)}
    thaw = {name: part for part, name in names.items()}
    frozen = nodes.substitute(expr, names)
    for part in parts:
        outer = nodes.substitute(frozen.diff(names[part]), thaw)
        if outer != 0:
            yield from (path.times(outer) for path in paths_of(part, at))


def paths_of(part: Expr, at: Callable[[Expr], Expr]) -> Iterator[Path]:
    """The reads of an opaque part."""
    match part:
        case Load():
            if not part.tensor.record.integer:
                yield Path(part, (), sp.S.One)
        case nodes.Delta() | nodes.StopGradient():
            return
        case Named():
            yield from paths(part.body, at)
        case nodes.StraightThrough():
            yield from paths(part.through, at)
        case Where():
            for holds in (True, False):
                for path in paths(part.args[1 if holds else 2], at):
                    yield replace(path, masks=((part, holds), *path.masks))
        case nodes.Stated():
            stated = dict(part.slopes)
            yield from (Path(load, (), slope) for load, slope in stated.items())
            yield from (path for path in paths(part.body, at) if path.load not in stated)
        case LogAddExp():
            for term in part.args:
                yield from (path.times(Share(term, at(part))) for path in paths(term, at))
        case Share(args=(term, whole)):
            yield from (path.times(part) for path in paths(term, at))
            yield from (path.times(-part) for path in paths(whole, at))
        case Reduce():
            bound = part.bound.axis.index()
            body = nodes.substitute(part.body, {part.bound: bound})
            if part.op == "logsumexp":
                weight: Expr = Share(body, at(part))
            else:
                weight = sp.S.One if part.op == "sum" else same(body, part) / total(same(body, part), bound)
            for path in paths(body, at):
                yield replace(path.times(weight), binders=(bound, *path.binders))
        case nodes.Rejection():
            yield from paths(part.meaning, at)
        case _:
            raise CheckError(f"{type(part).__name__} has no derivative: {part}")


def adjoint_of(tensor: Tensor) -> Tensor:
    """Where the adjoint of a table, or the gradient by an input, is added up."""
    record = tensor.record
    if record.state:
        return Tensor(replace(record, name=f"{record.name}_adjoint"))
    return Tensor(TensorRecord(f"grad_{record.name}", record.axes, per_sample=record.per_sample))


def rate_of(tensor: Tensor) -> Tensor:
    """Where the rate of change of a table or of a result is kept."""
    record = tensor.record
    if record.name.startswith("grad_"):
        return Tensor(replace(record, name=f"hvp_{record.name.removeprefix('grad_')}"))
    return Tensor(replace(record, name=f"{record.name}_rate"))


def forward(system: System) -> list[Sweep]:
    """A sweep for each table, with the log-sum-exps that are kept beside it."""
    sweeps = []
    own: list[Action] = []
    for table in system.tables:
        cells = {e: cell for e, cell in system.kept.get(table.name, {}).items() if cell.tensor != table.tensor}
        own.append(Action(table.tensor, table.indices, nodes.substitute(table.expr, cells)))
        if table.name in system.kept:
            sweeps.append(Sweep(table.indices, tuple(own), schedule_of(table), about=table.name))
            own = []
    return sweeps


def pushes(seed: Expr, expr: Expr, kept: Mapping[Expr, Load], moving: set[Tensor]) -> tuple[Action, ...]:
    """seed times the derivative of an expression, pushed to what it reads: equal targets in one push."""
    found: dict[tuple[Tensor, tuple[Expr, ...]], Expr] = {}
    bound: list[Action] = []
    for path in paths(expr, lambda e: kept.get(e, e)):
        if path.load.tensor not in moving:
            continue
        target, value = adjoint_of(path.load.tensor), path.within(seed)
        if path.binders:
            bound.append(Action(target, path.load.index, value, True, path.binders))
        else:
            key = (target, path.load.index)
            found[key] = joined(found.get(key, sp.S.Zero), value)
    return (*(Action(target, index, value, True) for (target, index), value in found.items() if value != 0), *bound)


def joined(a: Expr, b: Expr) -> Expr:
    """a + b; what two selections by one condition choose is added in their arms."""
    if isinstance(a, Where) and isinstance(b, Where) and a.condition == b.condition:
        return sp.sympify(Where(a.condition, joined(a.args[1], b.args[1]), joined(a.args[2], b.args[2])))
    return a + b


def adjoint(system: System, objective: Expr, wrt: Sequence[Tensor]) -> list[Sweep]:
    """The sweeps that follow the forward ones: from the derivative of the objective back to the inputs."""
    moving = moved_by(system, wrt)
    sweeps = [Sweep((), pushes(sp.S.One, objective, {}, moving), about="the loss")]
    for table in reversed(system.tables):
        if table.tensor in moving and table.name in system.kept:
            seed = Load(adjoint_of(table.tensor), *table.indices)
            actions = pushes(seed, table.expr, system.kept[table.name], moving)
            sweeps.append(Sweep(table.indices, actions, schedule_of(table), True, table.name))
    return [s for s in sweeps if s.actions]


def moved_by(system: System, wrt: Sequence[Tensor]) -> set[Tensor]:
    """What moves when some inputs do: these and every table that reads what moves."""
    moving = set(wrt)
    for table in system.tables:
        if not table.tensor.record.integer and any(load.tensor in moving for load in table.expr.atoms(Load)):
            moving.add(table.tensor)
    return moving


def tangent(sweeps: Sequence[Sweep], directions: Mapping[Tensor, Tensor]) -> tuple[list[Sweep], dict[Tensor, Tensor]]:
    """The sweeps, each action followed by its rate of change; and the rate of each tensor that moves.

    What moves is found first: a push may read what a later push of the same sweep moves.
    """
    moving = dict(directions)
    while True:
        before, out = len(moving), []
        for sweep in sweeps:
            actions: list[Action] = []
            for action in sweep.actions:
                actions.append(action)
                rate = sp.S.Zero if action.target.record.integer else rate_by(action, moving)
                if rate != 0:
                    moving.setdefault(action.target, rate_of(action.target))
                    actions.append(replace(action, target=moving[action.target], expr=rate))
            out.append(replace(sweep, actions=tuple(actions)))
        if len(moving) == before:
            return out, moving


def rate_by(action: Action, moving: Mapping[Tensor, Tensor]) -> Expr:
    """The rate of change of an action's expression. A log-sum-exp that is stored is read back."""
    rate = derive(action.expr, lambda load: Load(moving[load.tensor], *load.index) if load.tensor in moving else sp.S.Zero)
    if action.adds or not isinstance(action.expr, LogAddExp | Reduce):
        return rate
    cell = Load(action.target, *action.index)
    rate = rate.xreplace({action.expr: cell})
    is_share: Callable[[Expr], bool] = lambda e: isinstance(e, sp.exp) and -cell in sp.Add.make_args(e.args[0])
    return rate.replace(is_share, lambda e: Share(e.args[0] + cell, cell))


def needed(sweeps: Sequence[Sweep], results: set[Tensor]) -> list[Sweep]:
    """The sweeps without the actions whose targets nobody reads."""
    while True:
        read = {load.tensor for s in sweeps for a in s.actions for e in (a.expr, *a.index) for load in e.atoms(Load)}
        kept = [replace(s, actions=tuple(a for a in s.actions if a.target in read or a.target in results)) for s in sweeps]
        if kept == list(sweeps):
            return [s for s in kept if s.actions]
        sweeps = kept


def program(system: System, sweeps: Sequence[Sweep], results: set[Tensor]) -> Program:
    """The sweeps with the memory that they need: adjoints and rates lie as their tables do."""
    sweeps = needed(sweeps, results)
    exprs = sp.Tuple(*(t.expr for t in system.tables), *(e for s in sweeps for a in s.actions for e in (a.expr, *a.index)))
    pads = pads_of(system.tables, exprs)
    cells = []
    used = {t for s in sweeps for a in s.actions for t in (a.target, *(load.tensor for load in a.expr.atoms(Load)))}
    added = {a.target for s in sweeps for a in s.actions if a.adds}
    for table in system.tables:
        family = [table.tensor, rate_of(table.tensor), adjoint_of(table.tensor), rate_of(adjoint_of(table.tensor))]
        cells += [Cells(t, pads[table.tensor], table.outside if t == table.tensor else sp.S.Zero,
                        table.start if t == table.tensor else (), t in added) for t in family if t in used]
    return Program(tuple(sweeps), tuple(cells), tuple(sorted((t for t in added if not t.record.state), key=str)))

"""The programs of recurrent losses as formulas of kernels, and from there to loop nests.

Each action of a sweep has a loop of its own over the cells that do not depend on each other: what a cell reads of its own row is
then complete, and pushes of neighbours never meet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import reduce

import sympy as sp

from . import ir, nodes
from .check import Checked
from .differentiate import derive
from .errors import CheckError
from .ir import Extent, Fill, Loop, Node, Section, Statement, Store, Var, Vouch, Wave, free
from .lower import Lowering
from .nodes import Axis, Index, Load, Tensor, TensorRecord
from .recurrence import Action, Program, Sweep, System, adjoint, forward, keep_logs, program, rate_of, tangent
from .schedule import Scheduler, Task


def system_of(form: Checked, taken: Iterable[str]) -> System:
    """The tables of a form, log-sum-exps kept."""
    return keep_logs(form.tables, form.names, set(taken))


def result_tensor(name: str, *, per_sample: bool = True) -> Tensor:
    """A result that is one number a sample, or one for all, as a program stores it."""
    return Tensor(TensorRecord(name, per_sample=per_sample))


def stored(values: Iterable[tuple[str, sp.Expr, bool]]) -> Sweep:
    """The last sweep forward: results that are one number a sample."""
    return Sweep((), tuple(Action(result_tensor(name, per_sample=each), (), expr) for name, expr, each in values), about="the results")


def value_program(system: System, results: Sequence[tuple[str, sp.Expr, bool]]) -> Program:
    """The value, and totals."""
    return program(system, [*forward(system), stored(results)], names_of(results))


def gradient_program(system: System, results: Sequence[tuple[str, sp.Expr, bool]], objective: sp.Expr, wrt: Sequence[Tensor]) -> Program:
    """The value, totals, and the gradients of the objective."""
    first, *back = adjoint(system, objective, wrt)
    last = stored(results)
    both = replace(last, actions=(*last.actions, *first.actions), about="the results, and what moves them")
    return program(system, [*forward(system), both, *back], names_of(results) | gradients([first, *back]))


def rate_program(system: System, results: Sequence[tuple[str, sp.Expr, bool]], ways: dict[Tensor, Tensor]) -> Program:
    """The rates of some expressions along directions."""
    sweeps, moving = tangent(forward(system), ways)
    derived = [(name, rate(expr, moving), each) for name, expr, each in results]
    return program(system, [*sweeps, stored(derived)], names_of(results))


def product_program(system: System, objective: sp.Expr, wrt: Sequence[Tensor], ways: dict[Tensor, Tensor]) -> Program:
    """The Hessian times directions: the tangent of the adjoint."""
    back = adjoint(system, objective, wrt)
    sweeps, _ = tangent([*forward(system), *back], ways)
    return program(system, sweeps, {rate_of(t) for t in gradients(back)})


def rate(expr: sp.Expr, moving: dict[Tensor, Tensor]) -> sp.Expr:
    """The rate of change of an expression."""
    return derive(expr, lambda load: Load(moving[load.tensor], *load.index) if load.tensor in moving else sp.S.Zero)


def names_of(results: Iterable[tuple[str, sp.Expr, bool]]) -> set[Tensor]:
    return {result_tensor(name, per_sample=each) for name, _, each in results}


def gradients(sweeps: Iterable[Sweep]) -> set[Tensor]:
    """The results that an adjoint pushes to."""
    return {a.target for s in sweeps for a in s.actions if not a.target.record.state}


# To loop nests

def extents_of(exprs: sp.Tuple, p: Program) -> list[Axis]:
    """The axes of a program whose length is a sample's own, in a fixed order."""
    axes = {r.bound.axis for r in exprs.atoms(nodes.Reduce)} | {i.axis for i in exprs.atoms(Index)} | set(exprs.atoms(Axis))
    axes |= {i.axis for s in p.sweeps for i in s.indices} | {a for c in p.cells for a in c.tensor.record.axes}
    return sorted((a for a in axes if a.record.extent is not None), key=lambda a: a.name)


def most(axis: Axis) -> sp.Expr:
    """How long an axis is at most: every length as long as it may be."""
    extent: sp.Expr = axis.record.extent
    lengths = {load: load.tensor.record.measures for load in extent.atoms(Load)}
    return nodes.substitute(extent, lengths)


def loop_nest(name: str, what: str, s: ir.Signature, p: Program, axes: Sequence[Axis], lowering: Lowering) -> ir.Kernel:
    """Lower and schedule a program."""
    extents = tuple(Extent(a.name, lowering(a.record.extent, {}), lowering(most(a), {})) for a in axes)
    lowering.done |= {(a.record.extent, ()): ir.Size(a.name) for a in axes if isinstance(a.record.extent, Load)}
    tables = tuple(ir.Table(c.tensor.name, tuple(a.name for a in c.tensor.record.axes), c.pads, c.tensor.record.integer,
                            lowering(c.outside, {}) if any(c.pads) or c.cleared else None,
                            tuple((cell, lowering(x, {})) for cell, x in c.start)) for c in p.cells)
    given = {a.name for a in s.inputs + s.outputs} | {x.name for x in s.params}
    for t in tables:
        if t.name in given:
            raise CheckError(f"the derivative needs a table of its own named {t.name!r}, and something else has this name",
                             repair="Rename the table of the definition, or the input, that this name is made of.")
    names = given | {t.name for t in tables}
    every = s.axes + tuple(e.axis for e in extents)
    taken = ir.taken_names(frozenset(names), every)
    derived = set(ir.derived_names(s.inputs + s.outputs, taken, tables).values())
    scheduler = Scheduler(False, lowering.hints, taken | derived, {t.name for t in tables})
    cleared = [a.name for a in s.outputs if a.per_sample and a.name in {t.name for t in p.cleared}]
    body: list[Statement] = [Fill(name) for name in (*(t.name for t in tables if t.outside is not None), *cleared)]
    if body:
        body.insert(0, Section("What lies before the first cells, and what is added to"))
    for sweep in p.sweeps:
        known = set(lowering.logs)
        statements = nest(sweep, lowering, scheduler)
        body += [*vouch([log for log in lowering.logs if log not in known], scheduler), *statements]
    kernel = ir.Kernel(name, what, s.inputs, s.params, s.outputs, s.axes, (Loop(ir.SAMPLE, (), tuple(body)),), (), extents, tables)
    return ir.check_scheduled(kernel, False)


def nest(sweep: Sweep, lowering: Lowering, scheduler: Scheduler) -> list[Statement]:
    """The loops of one sweep."""
    env: dict[Index, Var] = {}
    for i in sweep.indices:
        bind(i, env)
    v = [env[i] for i in sweep.indices]
    serial = [x for x, p in zip(v, sweep.schedule, strict=False) if p]
    lanes = tuple(x for x in v if x not in serial)
    wave = len(serial) == 2
    bound = frozenset({ir.SAMPLE, *serial})
    inside: list[Statement] = []
    for group in groups(sweep.actions, pushed=bool(lanes)):
        inside += scheduler.block([task(action, dict(env), lanes, lowering) for action in group], bound)
    title = Section(f"{sweep.about}{', backwards' if sweep.reverse else ''}")
    if wave:
        return [title, Wave((serial[0], serial[1]), (sweep.schedule[0], sweep.schedule[1]), tuple(inside), sweep.reverse)]
    return [title, Loop(serial[0], (), tuple(inside), True, sweep.reverse)] if serial else [title, *inside]


def vouch(logs: list[Node], scheduler: Scheduler) -> list[Statement]:
    """What results ask of the logarithms that they are made of, before there is a result."""
    if not logs:
        return []
    every = reduce(lambda a, b: ir.Op("and", (a, b)), logs)
    asked = scheduler.block([Task(Store("", (), every), (), every)], frozenset({ir.SAMPLE}))
    return [Section("whether all digits are there"), *(Vouch(s.value) if isinstance(s, Store) else s for s in asked)]


def groups(actions: Iterable[Action], pushed: bool = True) -> list[list[Action]]:
    """The actions in order; those in one group do not read what another of it writes, and, where cells may be `pushed` to from several
    lanes, write different tables. What two tables hold of one expression is computed at once."""
    found: list[list[Action]] = []
    read: set[Tensor] = set()
    written: set[Tensor] = set()
    for action in actions:
        reads = {load.tensor for e in (action.expr, *action.index) for load in e.atoms(Load)}
        met = reads & written or action.target in read | reads or (pushed and action.target in written)
        last = found[-1][-1] if found else action
        same = not action.adds and action.index == last.index and action.expr.args and action.expr.args == last.expr.args
        if not found or (met and not same) or action.alone or last.alone:
            found.append([])
            read, written = set(), set()
        found[-1].append(action)
        read |= reads
        written.add(action.target)
    return found


def bind(index: Index, env: dict[Index, Var]) -> Var:
    """A loop variable for an index, another than those in use."""
    env[index] = next(v for k in range(9) if (v := Var(index.axis.name, k)) not in env.values())
    return env[index]


def task(action: Action, env: dict[Index, Var], lanes: tuple[Var, ...], lowering: Lowering) -> Task:
    """One action at every cell of the lanes; what the target does not tell apart is summed first."""
    loops = (*lanes, *(bind(i, env) for i in action.binders))
    record = action.target.record
    index = lowering.cell(record, action.index, env)
    value = lowering.filling(record, sp.sympify(action.expr), env)
    told = frozenset(v for i in index for v in free(i))
    for v in reversed(loops):
        if action.adds and v not in told:
            value = lowering.summed(v, value)
    kept = tuple(v for v in loops if not action.adds or v in told)
    place: tuple[Node, ...] = index if record.state else ((ir.SAMPLE,) * record.per_sample) + index
    return Task(Store(record.name, place, value, action.adds or not record.per_sample), kept, value)


def stabilised(p: Program, change: Callable[[sp.Expr, str], sp.Expr]) -> Program:
    """The program with every action's expression changed by a function of it and of its target's name."""
    return replace(p, sweeps=tuple(replace(s, actions=tuple(replace(a, expr=change(a.expr, a.target.name)) for a in s.actions))
                                   for s in p.sweeps))

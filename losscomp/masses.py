"""Recurrences of log-sum-exps in exponentials: a table that is read in log-sum-exps is kept as what its cells are the logarithms of.

A mass is a number with an exponent of its own: part 2^power, where the power is an integer, however large. So a mass is never too
small or too large to be held; log-sum-exps become sums, additions in logarithms become products, and the share of a term is a
ratio. What a target needs for a cell is then a few multiplications and no exponential and no logarithm.

Which tables are masses follows from how they are read: as terms of log-sum-exps and of shares, always with one factor, and of each
other. Elsewhere only results may read them, as logarithms. A logarithm near 0 has lost digits that sums of logarithms keep; so
results say which logarithms they read (`Vouch`), and where one is too near to 0, or no number, a sample is computed again, in logarithms.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import reduce as fold
from typing import TypeAlias

import sympy as sp

from . import nodes
from .ir import Const, Node, Op, Reduce, Var, unused
from .lower import ONE, ZERO, Env, Lowering, op, real, where
from .nodes import Index, Load, LogAddExp, Named, Share, Tensor, Where
from .recurrence import Action, Cells, Program, Sweep

Expr: TypeAlias = sp.Expr
NOTHING = Const(-1, 0)                           # the power of the mass 0


class Held(nodes.Node):
    """The logarithm of a mass that lies in two cells: its part, and its power."""


class Part(nodes.Node):
    """The part of the mass of a logarithm."""


class Power(nodes.Node):
    """The power of the mass of a logarithm."""


class Ratio(nodes.Node):
    """A number divided by the part of a mass; 0 where the mass is 0."""


class Raised(nodes.Node):
    """The part of the mass of a term, in units of the power of that of a log-sum-exp."""


def is_sum(e: sp.Basic) -> bool:
    """Is this a log-sum-exp?"""
    return isinstance(e, LogAddExp) or (isinstance(e, nodes.Reduce) and e.op == "logsumexp")


def terms(e: Expr) -> Iterator[Expr]:
    """The terms that a mass is a sum of, as sums of logarithms."""
    match e:
        case Named():
            yield from terms(e.body)
        case Where(args=(_, a, b)):
            yield from terms(a)
            yield from terms(b)
        case nodes.Reduce() if is_sum(e):
            yield from terms(e.body)
        case LogAddExp():
            for term in e.args:
                yield from terms(term)
        case sp.Add():
            yield e
            for part in e.args:
                if part.has(LogAddExp, nodes.Reduce, Where):
                    yield from terms(part)
        case _:
            yield e


# Which tables are masses

def factors_of(p: Program) -> dict[Tensor, Expr]:
    """What the cells of a table are multiplied by wherever log-sum-exps and shares read them; tables read with several are left out."""
    found: dict[Tensor, set[Expr]] = {}
    for action in (a for s in p.sweeps for a in s.actions):
        if is_sum(action.expr) and not action.adds and action.target.record.state:
            found.setdefault(action.target, set()).add(sp.S.One)
        for e in action.expr.atoms(LogAddExp, nodes.Reduce, Share):
            for part in (t for arg in (e.args if isinstance(e, Share) else (e,) if is_sum(e) else ()) for t in terms(arg)):
                for term in sp.Add.make_args(part):
                    factor, load = term.as_independent(Load, as_Add=False)
                    if isinstance(load, Load) and load.tensor.record.state and not load.tensor.record.integer:
                        found.setdefault(load.tensor, set()).add(factor)
    return {tensor: factors.pop() for tensor, factors in found.items() if len(factors) == 1}


def misplaced(e: sp.Basic) -> set[Expr]:
    """The masses that a number is made of in another way than as terms of sums and shares."""
    if isinstance(e, Held):
        return {e}
    if is_sum(e) and e.has(Held):
        return outside_of_sums(e)
    if isinstance(e, Share) and e.args[1].has(Held):
        return outside_of_sums(e.args[0]) | outside_of_sums(e.args[1])
    return {held for arg in e.args for held in misplaced(arg)}


def outside_of_sums(e: Expr) -> set[Expr]:
    """The same for a logarithm whose mass is asked for."""
    match e:
        case Held():
            return set()
        case Named():
            return outside_of_sums(e.body)
        case Where(args=(condition, a, b)):
            return misplaced(condition) | outside_of_sums(a) | outside_of_sums(b)
        case nodes.Reduce() if is_sum(e):
            return outside_of_sums(e.body)
        case LogAddExp() | sp.Add():
            return {held for arg in e.args for held in outside_of_sums(arg)}
    return misplaced(e)


def has_mass(factor: Expr, value: Expr) -> tuple[Expr, Expr] | None:
    """The mass of what stands in a cell at first: nothing, or 1; None for other numbers."""
    match factor * value:
        case sp.core.numbers.NegativeInfinity():
            return sp.S.Zero, -sp.oo
        case sp.core.numbers.Zero():
            return sp.S.One, sp.S.Zero
    return None


def in_masses(p: Program) -> Program | None:
    """The program with the tables that can be masses kept as masses; None where no recurrence is among them."""
    recurrent = {a.target for s in p.sweeps if s.schedule for a in s.actions if not a.adds}
    cells = {c.tensor: c for c in p.cells}
    taken = {t.name for t in cells} | {t.name for t in nodes.tensors(p.exprs)}
    chosen = {t: f for t, f in factors_of(p).items()
              if all(has_mass(f, v) for v in ([cells[t].outside] if any(cells[t].pads) else []) + [v for _, v in cells[t].start])}
    while chosen:
        held = {t: (named(t, "part", set(taken), t.record.axes), named(t, "power", set(taken), t.record.axes)) for t in chosen}
        owner = {part: t for t, (part, _) in held.items()}
        changed = rewritten(p, chosen, held)
        wrong = {owner[h.args[0].tensor] for s in changed for a in s.actions if s.indices
                 for h in (outside_of_sums(a.expr.args[0]) if isinstance(a.expr, Part | Power) else misplaced(a.expr))}
        if not wrong:
            break
        chosen = {t: f for t, f in chosen.items() if t not in wrong}
    if not any(t in recurrent for t in chosen):
        return None
    prepared = Prepared(changed, taken | {t.name for both in held.values() for t in both})
    both = [c for old in p.cells for c in (pair(old, chosen[old.tensor], *held[old.tensor]) if old.tensor in held else (old,))]
    return replace(p, sweeps=tuple(prepared.sweeps), cells=(*both, *prepared.cells))


def named(tensor: Tensor, what: str, taken: set[str], axes: tuple[nodes.Axis, ...]) -> Tensor:
    """A table that goes with another one; its name is taken then."""
    name = unused(f"{tensor.name}_{what}", taken)
    taken.add(name)
    return Tensor(replace(tensor.record, name=name, axes=axes))


def pair(old: Cells, factor: Expr, part: Tensor, power: Tensor) -> tuple[Cells, Cells]:
    """The memory of a table that is kept as masses."""
    both = [has_mass(factor, v) or (sp.S.Zero, sp.S.Zero) for v in (old.outside, *(v for _, v in old.start))]
    return tuple(replace(old, tensor=tensor, outside=both[0][k], start=tuple((cell, mass[k]) for (cell, _), mass in
                         zip(old.start, both[1:], strict=True))) for k, tensor in enumerate((part, power)))  # type: ignore[return-value]


def with_reads(e: sp.Basic, rule: Mapping[Expr, Expr]) -> sp.Basic:
    """The expression with other reads, those at bound indices too: what comes has the indices of what goes."""
    if e in rule:
        return rule[e]
    if not e.args or not rule:
        return e
    return e.func(*((e.op, with_reads(e.body, rule), e.bound) if isinstance(e, nodes.Reduce) else (with_reads(a, rule) for a in e.args)))


def rewritten(p: Program, chosen: Mapping[Tensor, Expr], held: Mapping[Tensor, tuple[Tensor, Tensor]]) -> list[Sweep]:
    """The sweeps with reads of masses, and with two stores of each."""
    read = lambda e: with_reads(e, {load: Held(*(Load(t, *load.index) for t in held[load.tensor])) / chosen[load.tensor]
                                    for load in e.atoms(Load) if load.tensor in chosen})
    sweeps = []
    for s in p.sweeps:
        actions: list[Action] = []
        for a in s.actions:
            if a.target in chosen:
                logarithm = sp.expand_mul(chosen[a.target] * read(a.expr))
                part, power = held[a.target]
                actions += [replace(a, target=part, expr=Part(logarithm)), replace(a, target=power, expr=Power(logarithm))]
            else:
                actions.append(replace(a, expr=read(a.expr)))
        sweeps.append(replace(s, actions=tuple(actions)))
    return sweeps


# What is computed once

class Prepared:
    """A program's sweeps with more tables for what would otherwise be computed again and again, or in loops that are no vectors'."""

    def __init__(self, sweeps: Sequence[Sweep], taken: set[str]) -> None:
        self.taken = taken
        self.cells: list[Cells] = []
        self.arrays: dict[Tensor, Held] = {}                             # the masses of whole arrays
        self.first: list[Sweep] = []
        self.sweeps: list[Sweep] = []
        for sweep in sweeps:
            self.sweeps += self.steps(self.ratios(self.constants(sweep)))
        self.sweeps = [*self.first, *self.sweeps]

    def table(self, base: Tensor, what: str, indices: tuple[Index, ...]) -> Load:
        """A cell of a new table."""
        tensor = named(base, what, self.taken, tuple(i.axis for i in indices))
        self.cells.append(Cells(tensor, (0,) * len(indices), sp.S.Zero))
        return Load(tensor, *indices)

    def masses(self, logarithm: Expr, base: Tensor, what: str, indices: tuple[Index, ...], about: str) -> tuple[Held, Sweep]:
        """New tables with the masses of a logarithm, and the sweep that fills them."""
        cells = [self.table(base, what + kind.__name__.lower(), indices) for kind in (Part, Power)]
        actions = tuple(Action(cell.tensor, indices, kind(logarithm)) for cell, kind in zip(cells, (Part, Power), strict=True))
        return Held(*cells), Sweep(indices, actions, about=about)

    def constants(self, s: Sweep) -> Sweep:
        """Arrays that are terms of sums, the same in each step of a recurrence: their masses come first."""
        serial = {i for i, moves in zip(s.indices, s.schedule, strict=False) if moves}
        rule: dict[Expr, Expr] = {}
        for load in {load for a in s.actions for load in added_arrays(a.expr)} if serial else ():
            if serial.isdisjoint(load.index):
                rule[load] = with_indices(self.array(load.tensor), load.index)
        return replace(s, actions=tuple(replace(a, expr=with_reads(a.expr, rule)) for a in s.actions))

    def array(self, tensor: Tensor) -> Held:
        """The tables with the masses of an array."""
        if tensor not in self.arrays:
            indices = tuple(axis.index() for axis in tensor.record.axes)
            base = Tensor(replace(tensor.record, state=True, per_sample=True))
            self.arrays[tensor], sweep = self.masses(Load(tensor, *indices), base, "", indices, f"the exponentials of {tensor.name}")
            self.first.append(sweep)
        return self.arrays[tensor]

    def ratios(self, s: Sweep) -> Sweep:
        """A cell's adjoint is divided once by the mass that the cell is a sum of, before the shares of it are pushed."""
        known: dict[tuple[Expr, Expr], Load] = {}
        found: list[Action] = []
        actions = []
        for a in s.actions:
            rule: dict[Expr, Expr] = {}
            for product in a.expr.atoms(sp.Mul) if s.reverse and a.adds else ():
                shares = [f for f in product.args if isinstance(f, Share) and isinstance(f.args[1], Held)]
                seeds = [f for f in product.args if isinstance(f, Load) and f.index == s.indices]
                if len(shares) != 1 or len(seeds) != 1 or shares[0].args[1].args[0].index != s.indices:
                    continue
                term, whole = shares[0].args
                pair = seeds[0], whole
                if pair not in known:
                    known[pair] = self.table(base_of(whole.args[0].tensor), "ratio", lanes_of(s))
                    found.append(Action(known[pair].tensor, lanes_of(s), Ratio(*pair), alone=True))
                rest = [f for f in product.args if f not in (shares[0], seeds[0])]
                rule[product] = sp.Mul(known[pair], Raised(term, whole), *rest)
            actions.append(replace(a, expr=nodes.substitute(a.expr, rule)))
        return replace(s, actions=(*found, *actions))

    def steps(self, s: Sweep) -> list[Sweep]:
        """What a step of a recurrence adds to a logarithm comes first: for a row in a loop that only gathers; all of it where cells go
        along diagonals, and no loop of their sweep is a vector's."""
        before: list[Sweep] = []
        actions: list[Action] = []
        known: dict[Expr, Expr] = {}
        rows = lanes_of(s) != s.indices
        for a in s.actions:
            rest = added(a.expr) if s.schedule and isinstance(a.expr, Part | Power) and a.expr.has(Held) else sp.S.Zero
            if any(not rows or not isinstance(i, Index) for load in rest.atoms(Load) for i in load.index):
                if rest not in known and rows:
                    known[rest] = self.table(base_of(a.target), "step", lanes_of(s))
                    actions.append(Action(known[rest].tensor, lanes_of(s), rest, alone=True))
                elif rest not in known:
                    known[rest], sweep = self.masses(rest, base_of(a.target), "step_", s.indices, f"what {base_of(a.target).name} adds")
                    before.append(sweep)
                a = replace(a, expr=a.expr.func(a.expr.args[0] - rest + known[rest]))
            actions.append(a)
        return [*before, replace(s, actions=tuple(actions))]


def lanes_of(s: Sweep) -> tuple[Index, ...]:
    """The indices of a sweep along which cells do not depend on each other, or all where there are no such."""
    return tuple(i for i, moves in zip(s.indices, s.schedule, strict=False) if not moves) or s.indices


def added(e: Expr) -> Expr:
    """What stands beside the masses in a sum of logarithms."""
    return sp.Add(*(t for t in sp.Add.make_args(e.args[0]) if not t.has(Held)))


def added_arrays(e: Expr) -> set[Load]:
    """The arrays that are terms of the log-sum-exps and shares in an expression, at indices."""
    sums = [arg for x in e.atoms(LogAddExp, nodes.Reduce, Share) if x.has(Held) for arg in x.args if isinstance(arg, sp.Expr)]
    found = {term for arg in sums for one in terms(arg) for term in sp.Add.make_args(one)}
    return {t for t in found if isinstance(t, Load) and t.index and not t.tensor.record.state and not t.tensor.record.integer
            and all(isinstance(i, Index) for i in t.index)}


def with_indices(held: Held, index: tuple[Expr, ...]) -> Held:
    """The same tables in another cell."""
    return Held(*(Load(cell.tensor, *index) for cell in held.args))


def base_of(part: Tensor) -> Tensor:
    """The table that a part or a power goes with, by its name."""
    return Tensor(replace(part.record, name=part.name.rpartition("_")[0]))


# Lowering

Mass: TypeAlias = tuple[Node, Node]


class MassLowering(Lowering):
    """SymPy to the intermediate form where some logarithms are held as masses."""

    def __init__(self, names: Mapping[sp.Expr, str] | None = None) -> None:
        super().__init__(names)
        self.found: dict[tuple[Expr, tuple[tuple[Index, Var], ...]], Mass] = {}

    def lower(self, expr: sp.Basic, env: Env) -> Node:
        match expr:
            case Part(args=(e,)):
                return self.mass(e, env)[0]
            case Power(args=(e,)):
                return self.mass(e, env)[1]
            case Ratio(args=(seed, whole)):
                part = self.mass(whole, env)[0]
                return where(op("eq", part, ZERO), ZERO, op("div", self(seed, env), part))
            case Raised(args=(term, whole)):
                part, power = self.mass(term, env)
                return raised(part, op("sub", power, self.mass(whole, env)[1]))
            case Share(args=(term, whole)) if whole.has(Held):
                (part, power), (of, scale) = self.mass(term, env), self.mass(whole, env)
                share = raised(op("div", part, of), op("sub", power, scale))
                return where(op("eq", part, ZERO), ZERO, share)
            case Held():
                return self.log(expr, env)
            case sp.Add() if (together := self.together(expr)) is not None:
                return self(together, env)
            case sp.Add():
                node = super().lower(expr, env)
                for log in [self(t, env) for a in expr.args for t in (a, -a) if isinstance(t, Held) or (is_sum(t) and t.has(Held))]:
                    self.vouched(node, log)
                return node
        if is_sum(expr) and expr.has(Held):
            return self.log(expr, env)
        return super().lower(expr, env)

    @staticmethod
    def together(e: sp.Add) -> Expr | None:
        """A sum with the logarithms of several masses as that of their product, which may be far from 0 where one of them is not."""
        for sign in (1, -1):
            logs = [t for t in e.args if isinstance(sign * t, Held)]
            if len(logs) > 1:
                part = sp.Mul(*((sign * t).args[0] for t in logs))
                power = sp.Add(*((sign * t).args[1] for t in logs))
                return sp.Add(sign * Held(part, power), *(t for t in e.args if t not in logs))
        return None

    def log(self, e: Expr, env: Env) -> Node:
        """The logarithm of a mass."""
        node = self.called("logarithm", Op("scaled_log", self.mass(e, env)))
        self.vouched(node, node)
        return node

    def vouched(self, value: Node, log: Node) -> None:
        """A result is made of this value, which is a logarithm and what is added to it."""
        self.logs[Op("vouched", (value, log))] = None

    def log_sum_exp(self, lse: nodes.Reduce, env: Env) -> tuple[Node, Node]:
        return (self(lse, env), ZERO) if lse.has(Held) else super().log_sum_exp(lse, env)

    def mass(self, e: Expr, env: Env) -> Mass:
        """The mass of a logarithm: its part and its power."""
        key = e, tuple(sorted(((i, env[i]) for i in nodes.free_indices(e)), key=str))
        if key not in self.found:
            self.found[key] = self.find(e, env)
        return self.found[key]

    def find(self, e: Expr, env: Env) -> Mass:
        match e:
            case Held(args=(part, power)):
                return self(part, env), self(power, env)
            case Named():
                return self.mass(e.body, env)
            case sp.core.numbers.NegativeInfinity():
                return ZERO, NOTHING
            case sp.core.numbers.Zero():
                return ONE, ZERO
            case Where(args=(condition, a, b)):
                chosen, other = self.mass(a, env), self.mass(b, env)
                parts = [where(self(condition, env), x, y) for x, y in zip(chosen, other, strict=True)]
                return parts[0], parts[1]
            case LogAddExp():
                return self.sum([self.mass(term, env) for term in e.args])
            case nodes.Reduce() if is_sum(e):
                return self.sum_over(e, env)
            case sp.Add():
                held = [t for t in e.args if t.has(Held)]
                rest = sp.Add(*(t for t in e.args if not t.has(Held)))
                factors = [self.mass(t, env) for t in ([rest] if rest != 0 else []) + held] if held else []
                if factors:
                    return fold(lambda a, b: (op("mul", a[0], b[0]), op("add", a[1], b[1])), factors)
        x = real(self(e, env))
        return Op("scaled_exp", (x,)), Op("scaled_power", (x,))

    def sum(self, masses: list[Mass]) -> Mass:
        """The sum of some masses, in units of the largest power."""
        top = self.called("top", fold(lambda a, b: Op("larger", (a, b)), (power for _, power in masses)))
        total = fold(lambda a, b: op("add", a, b), (raised(part, op("sub", power, top)) for part, power in masses))
        return self.unit(self.called("total", total), top)

    def sum_over(self, e: nodes.Reduce, env: Env) -> Mass:
        """The same over all positions of an index."""
        taken = {env[i] for i in nodes.free_indices(e)}
        var = next(v for k in range(9) if (v := Var(e.bound.axis.name, k)) not in taken)
        part, power = self.mass(e.body, {**env, e.bound: var})
        top = self.called("top", Reduce("max", var, power))
        return self.unit(self.called("total", Reduce("sum", var, raised(part, op("sub", power, top)))), top)

    @staticmethod
    def unit(total: Node, top: Node) -> Mass:
        """A mass whose part is from 1 to 2."""
        return Op("significand", (total,)), op("add", top, Op("exponent_of", (total,)))


def raised(x: Node, power: Node) -> Node:
    """x 2^power."""
    return Op("times_power", (x, power))



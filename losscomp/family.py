"""Kernels that share one text: the value alone, with some gradients, with all; and the variants of a loss.

A target that compiles its text need not write a kernel out for each of them. A family is one kernel with every result and with
flags, conditions that are settled where a member is compiled; what a member does not want is then dead code. Formulas are joined
node by node: what is the same is written once, and what differs is a selection by a flag.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sympy as sp

from . import ir
from .check import spell_setting
from .errors import LosscompError, LoweringError
from .ir import Const, Family, Flag, Member, Node, Op, Reduce, Signature, Store
from .lower import op
from .pipeline import Compiled, Formula, axes_of, check_limits, kernel, lowered, mass_kernel, rank, scheduled, signature, timed

STEMS = {"value": "value_and_grad", "weight": "value_and_grad"}
ALL = "_all"
HURRIED = "value"                 # how the names of the programs begin that are worth a form in masses
LOOP, ROOM = 4, 3                 # what a reduction counts in operations; how many must be saved to take a formula apart


@dataclass(frozen=True)
class Question:
    """A choice that tells members apart: the answers in order, and the flag of each but the last."""

    about: str
    answers: tuple[Any, ...]
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Case:
    """A formula of a family with its answers."""

    compiled: Compiled
    formula: Formula
    answers: tuple[Any, ...]


def families(group: Sequence[Compiled]) -> list[Family]:
    """The families of one form, from its variants. Raises LosscompError."""
    stems = dict.fromkeys(stem(f.name) for c in group for f in c.stable)
    try:
        if group[0].form.tables:
            return [alone(c, f) for c in group for f in c.stable]
        return [family(group, name) for name in stems]
    except LosscompError as error:
        raise error.at(group[0].form.loss.path or group[0].form.loss.name) from None


def alone(compiled: Compiled, formula: Formula) -> Family:
    """A family of one kernel: that of a program."""
    name = formula.name + compiled.mark + compiled.form.suffix
    scaled = mass_kernel(compiled, formula) if formula.name.startswith(HURRIED) else None
    return Family(name, kernel(compiled, formula, False), (Member(name, formula.name, signature(compiled, formula), ()),),
                  scaled and replace(scaled, name=name))


def stem(name: str) -> str:
    """The name of the family that a formula belongs to, from the formula's own."""
    name = name.removesuffix(ALL)
    return STEMS.get(name, name)


def family(group: Sequence[Compiled], name: str) -> Family:
    """One family: lower every formula, join them, schedule the whole."""
    found = [(c, f) for c in group for f in c.stable if stem(f.name) == name]
    signatures = [signature(c, f) for c, f in found]
    whole = union(signatures, group[0])
    check_limits(name, whole)
    names = frozenset(a.name for a in whole.inputs + whole.outputs) | {p.name for p in whole.params}
    asked = questions(group, [f for _, f in found], ir.taken_names(names, whole.axes))
    cases = [Case(c, f, (*(v for _, v in c.form.settings), f.name.endswith(ALL))[:len(asked)]) for c, f in found]
    hints: dict[Node, str] = {}
    stores: dict[str, list[tuple[tuple[Any, ...], Store]]] = {}
    for case in cases:
        made, lowering = lowered(case.compiled, case.formula)
        for node, hint in lowering.hints.items():
            hints.setdefault(node, hint)
        for store in made:
            stores.setdefault(store.tensor, []).append((case.answers, store))
    seconds = group[0].seconds
    with timed(seconds, "schedule"):
        join = Joiner(hints)
        joined = [join.stores(stores[a.name], asked) for a in whole.outputs]
        used = {n.name for s in joined for n in ir.walk(s.value) if isinstance(n, Flag)}
        flags = tuple(flag for q in asked for flag in q.flags if flag in used)
        what = next(f.what for _, f in found if f.name == name)
        kernel = scheduled(name, what, whole, joined, hints, False, flags)
    members = tuple(Member(case.formula.name + case.compiled.mark + case.compiled.form.suffix, case.formula.name, s,
                           answers(case, asked, flags)) for case, s in zip(cases, signatures, strict=True))
    return Family(name + group[0].mark, kernel, members)


def union(signatures: Sequence[Signature], compiled: Compiled) -> Signature:
    """Every argument of some kernels, in an order that is each one's own. Raises LoweringError."""
    form = compiled.form
    inputs = sorted(dict.fromkeys(a for s in signatures for a in s.inputs), key=lambda a: rank(a.name, form))
    params = dict.fromkeys(p for s in signatures for p in s.params)
    places = [p.name for p in form.params]
    longest = sorted(signatures, key=lambda s: -len(s.outputs))
    outputs = tuple(dict.fromkeys(a for s in longest for a in s.outputs))
    axes = axes_of([*inputs, *outputs], sorted({axis for s in signatures for axis in s.axes}))
    whole = Signature(tuple(inputs), tuple(sorted(params, key=lambda p: places.index(p.name))), outputs, axes)
    for s in signatures:
        for mine, every in ((s.inputs, whole.inputs), (s.params, whole.params), (s.outputs, whole.outputs)):
            if [x for x in every if x in mine] != list(mine):
                raise LoweringError(f"the kernels of a family do not have their arguments in one order: {mine} and {every}")
    return whole


def questions(group: Sequence[Compiled], formulas: Iterable[Formula], taken: Iterable[str]) -> list[Question]:
    """What tells the formulas of a family apart: the settings of their variants, and whether they are about all inputs."""
    form, names = group[0].form, set(taken)

    def flag(name: str) -> str:
        names.add(found := ir.unused(name, names))
        return found

    out = []
    for name, _ in form.settings:
        values = list(dict.fromkeys(value for c in group for n, value in c.form.settings if n == name))
        out.append(Question(name, tuple(values), tuple(
            flag(name if value == sp.true else f"{name}_is_{spell_setting(value)}") for value in values[:-1])))
    several = len({f.name.endswith(ALL) for f in formulas}) > 1
    return [*out, Question("all", (True, False), (flag("all"),))] if several else out


def answers(case: Case, asked: Sequence[Question], flags: Sequence[str]) -> tuple[bool, ...]:
    """Whether each flag holds in a case."""
    holds = {flag: answer == mine for q, mine in zip(asked, case.answers, strict=True)
             for flag, answer in zip(q.flags, q.answers, strict=False)}
    return tuple(holds[flag] for flag in flags)


class Joiner:
    """Joins the formulas of one result into one; `hints` names nodes, and is added to."""

    def __init__(self, hints: dict[Node, str]) -> None:
        self.hints = hints
        self.done: dict[tuple[Flag, Node, Node], Node] = {}

    def stores(self, cases: Sequence[tuple[tuple[Any, ...], Store]], asked: Sequence[Question]) -> Store:
        """The store of one result in all cases."""
        first = cases[0][1]
        return Store(first.tensor, first.index, self.select([(a, s.value) for a, s in cases], asked, 0), first.adds)

    def select(self, cases: Sequence[tuple[tuple[Any, ...], Node]], asked: Sequence[Question], k: int) -> Node:
        """The node of all cases, from the k-th question on; a case that there is not may be anything."""
        if len({id(node) for _, node in cases}) == 1:
            return cases[0][1]
        question = asked[k]
        result: Node | None = None
        for place, answer in reversed(list(enumerate(question.answers))):
            mine = [case for case in cases if case[0][k] == answer]
            if mine:
                node = self.select(mine, asked, k + 1)
                result = node if result is None else self(Flag(question.flags[place]), node, result)
        assert result is not None
        return result

    def __call__(self, flag: Flag, a: Node, b: Node) -> Node:
        """a where the flag holds, else b: as one selection, or as an operation on selections where that is shorter."""
        if a is b:
            return a
        key = (flag, a, b)
        if key not in self.done:
            whole = selection(flag, a, b)
            apart = self.apart(flag, a, b)
            node = whole if apart is None or size(apart) + ROOM >= size(whole) else apart
            mine, other = self.hints.get(a), self.hints.get(b)
            if mine == other and mine is not None:
                self.hints.setdefault(node, mine)
            self.done[key] = node
        return self.done[key]

    def apart(self, flag: Flag, a: Node, b: Node) -> Node | None:
        """The same operation on what the flag selects of each argument."""
        match a, b:
            case Op(name, these), Op(other, those) if name == other and len(these) == len(those):
                if name == "where" and these[0] is not those[0] and (ir.settled(these[0]) or ir.settled(those[0])):
                    return None
                args = [self(flag, x, y) for x, y in zip(these, those, strict=True)]
                if ir.kind_of(a) == "real":                              # two integer constants are at home among reals, a choice is not
                    args = [op("real", x) if ir.kind_of(x) == "int" and isinstance(y, Const) and isinstance(z, Const)
                            and not isinstance(x, Const) else x for x, y, z in zip(args, these, those, strict=True)]
                return Op(name, tuple(args))
            case Reduce(name, var, body), Reduce(other, same, rest) if name == other and var is same:
                return Reduce(name, var, self(flag, body, rest))
        return None


def selection(flag: Flag, a: Node, b: Node) -> Node:
    """a where the flag holds, else b."""
    if isinstance(b, Op) and b.name == "where" and b.args[1] is a and ir.settled(b.args[0]):
        return Op("where", (Op("or", (flag, b.args[0])), a, b.args[2]))
    return Op("where", (flag, a, b))


def size(node: Node) -> int:
    """How long the text of a node is, what is used twice written once."""
    seen: set[Node] = set()

    def visit(n: Node) -> int:
        if n in seen:
            return 0
        seen.add(n)
        return sum(map(visit, n.children)) + (LOOP if isinstance(n, Reduce) else isinstance(n, Op))

    return visit(node)


__all__ = ["Family", "Member", "families"]

"""What the loop nest of a kernel tells that its formulas do not: what is computed twice, and what is surely not larger.

Loops over a row that depend on each other each compute their parts again. What costs much is kept in the row of a result instead:
the earlier loop stores it where the result will be, and the last loop reads it there before it stores the result. Members of a
family whose flags differ keep different things, each what it needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from .ir import (
    SAMPLE,
    Accumulate,
    Flag,
    Kernel,
    Let,
    Load,
    Loop,
    Member,
    Node,
    Op,
    Ref,
    Statement,
    Store,
    Var,
    Wanted,
    kind_of,
    settled,
    values,
    walk,
)
from .schedule import CHEAP, rebuild

# About what operations count; those that are not here are functions. What is worth a store and a read.
COST = {**dict.fromkeys(CHEAP | {"where", "eq", "ne", "lt", "le", "gt", "ge", "and", "or", "not", "integer", "larger", "smaller"}, 1),
        "div": 6, "sqrt": 6, "cross": 8}
FUNCTION, WORTH = 20, 12


@dataclass(frozen=True)
class Case:
    """Members with the same flags: what holds, and the results that they have."""

    flags: Mapping[str, bool]
    results: frozenset[str]


def refined(kernel: Kernel, members: Sequence[Member]) -> Kernel:
    """The kernel with what its loops know put to use. For targets whose results are arrays of the numbers they compute in."""
    cases = []
    for flags in dict.fromkeys(m.flags for m in members):
        results = frozenset(a.name for m in members if m.flags == flags for a in m.signature.outputs)
        cases.append(Case(dict(zip(kernel.flags, flags, strict=True)), results))
    return replace(kernel, body=below(Keeper(kernel, cases)(kernel.body)))


def names_for(body: tuple[Statement, ...], case: Case, known: Iterable[str]) -> frozenset[str]:
    """The names from which the results of a case are computed, where some are known."""
    made: dict[str, list[Node]] = {}
    for s in values(body):
        name = s.tensor if isinstance(s, Store) else s.start.name if isinstance(s, Accumulate) else s.name
        made.setdefault(name, []).append(s.value)
    seen: set[Node] = set()
    found, known = set(case.results), frozenset(known)
    ahead = [value for name in case.results for value in made.get(name, ())]
    while ahead:
        node = ahead.pop()
        if node in seen:
            continue
        seen.add(node)
        match node:
            case Ref(name):
                found.add(name)
                ahead += made.get(name, ()) if name not in known else ()
            case Op("where", (chosen, a, b)) if settled(chosen):
                ahead.append(a if holds(chosen, case.flags) else b)
            case _:
                ahead += node.children
    return frozenset(found)


def holds(condition: Node, flags: Mapping[str, bool]) -> bool:
    """Whether a settled condition is true."""
    return flags[condition.name] if isinstance(condition, Flag) else any(holds(c, flags) for c in condition.children)


def row_results(kernel: Kernel) -> Iterator[str]:
    """The results that are rows, as long as each other."""
    return (a.name for a in kernel.outputs if a.role == "output" and a.per_sample and len(a.axes) == 1)


class Keeper:
    """Keeps what two loops of a kernel compute in results of the later one. `read`: what the last loops read, for each case."""

    def __init__(self, kernel: Kernel, cases: Sequence[Case]) -> None:
        self.body, self.cases, self.results = kernel.body, cases, frozenset(row_results(kernel))
        self.read: list[set[str]] = [set() for _ in cases]

    def __call__(self, body: tuple[Statement, ...]) -> tuple[Statement, ...]:
        out = [replace(s, body=self(s.body)) if isinstance(s, Loop) else s for s in body]
        for last in [k for k, s in enumerate(out) if isinstance(s, Loop)]:
            earlier = [k for k in range(last) if isinstance(out[k], Loop)]
            for first in earlier:
                out[first], out[last] = self.pair(out[first], out[last])
        return tuple(out)

    def pair(self, first: Statement, last: Statement) -> tuple[Loop, Loop]:
        """Two loops, the dearest things that both compute kept in the rows that the last one stores."""
        assert isinstance(first, Loop) and isinstance(last, Loop)
        if first.var is not last.var or first.serial or last.serial or any(isinstance(s, Loop) for s in (*first.body, *last.body)):
            return first, last
        place = (SAMPLE, last.var)
        stored = [s.tensor for s in last.body if isinstance(s, Store) and s.tensor in self.results and s.index == place and not s.adds]
        used = {n.tensor for s in (*first.body, *last.body) if isinstance(s, Let) for n in walk(s.value) if isinstance(n, Load)}
        chosen = self.choice(shared(first, last), [row for row in stored if row not in used])
        for (row, name, was), when in [(key, when) for key, mine in chosen.items() for when in conditions(self.cases, mine)]:
            store = Store(row, place, Ref(was, frozenset(place)), when=conjunction(when))
            there = conjunction([Wanted(row), *when])
            assert there is not None
            first = replace(first, body=tuple(part for s in first.body for part in (
                (s, store) if isinstance(s, Let) and s.name == was else (s,))))
            last = replace(last, body=tuple(
                Let(s.name, Op("where", (there, Load(row, place), s.value))) if isinstance(s, Let) and s.name == name else s
                for s in last.body))
        for (_, name, _), mine in chosen.items():
            for k in mine:
                self.read[k].add(name)
        return first, last

    def choice(self, dearest: list[tuple[str, str]], rows: list[str]) -> dict[tuple[str, str, str], list[int]]:
        """What to keep, as row, name and name in the first loop; and the cases that keep it there: each the dearest that it needs."""
        chosen: dict[tuple[str, str, str], list[int]] = {}
        for k, case in enumerate(self.cases if dearest else ()):
            read = set(self.read[k])
            for row in rows:
                live = names_for(self.body, case, read) - read
                name, was = next((x for x in dearest if x[0] in live), ("", ""))
                if name:
                    chosen.setdefault((row, name, was), []).append(k)
                    read.add(name)
        return chosen


def shared(first: Loop, last: Loop) -> list[tuple[str, str]]:
    """The names in the last loop for what is worth keeping, with those in the first, the dearest before others."""
    known = {value: name for name, value in meanings(first).items()}
    both = [(name, known[value], cost(value)) for name, value in meanings(last).items() if value in known and kind_of(value) == "real"]
    return [(name, was) for name, was, worth in sorted(both, key=lambda x: -x[2]) if worth >= WORTH]


def conditions(cases: Sequence[Case], mine: Sequence[int]) -> Iterator[list[Node]]:
    """Flags and opposites of flags that hold together in some cases and in no other, as few as say it; several where one does not do."""
    alike = [(flag, true) for flag, true in cases[mine[0]].flags.items() if all(cases[k].flags[flag] == true for k in mine)]

    def covered(literals: Sequence[tuple[str, bool]]) -> list[int]:
        return [k for k, case in enumerate(cases) if all(case.flags[flag] == true for flag, true in literals)]

    if (whole := covered(alike)) != mine:
        flag = next(flag for flag in cases[mine[0]].flags if flag not in dict(alike))
        for true in (True, False):
            yield from conditions(cases, [k for k in mine if cases[k].flags[flag] == true])
        return
    for literal in sorted(alike, key=lambda x: x[1]):                     # what does not hold goes first
        fewer = [x for x in alike if x != literal]
        if covered(fewer) == whole:
            alike = fewer
    yield [Flag(flag) if true else Op("not", (Flag(flag),)) for flag, true in alike]


def conjunction(parts: Iterable[Node]) -> Node | None:
    """One condition of some; None where there is none."""
    joined: Node | None = None
    for part in parts:
        joined = part if joined is None else Op("and", (joined, part))
    return joined


def meanings(loop: Loop) -> dict[str, Node]:
    """What the names in a loop stand for, in what is known before it."""
    found: dict[str, Node] = {}
    for s in loop.body:
        if isinstance(s, Let):
            found[s.name] = rebuild(s.value, lambda n: found.get(n.name) if isinstance(n, Ref) else None)
    return found


def cost(node: Node) -> int:
    """About how many operations a value takes."""
    return sum(COST.get(n.name, FUNCTION) for n in set(walk(node)) if isinstance(n, Op))


def below(body: tuple[Statement, ...]) -> tuple[Statement, ...]:
    """The statements, with exponentials of what an element is below the largest of its row as such."""
    largest = {(s.start.name, tensor) for loop in every_loop(body) for s in loop.body if isinstance(s, Accumulate) and s.start.op == "max"
               for tensor in plain_row(s.value, loop.var)}

    def change(node: Node) -> Node | None:
        match node:
            case Op("exp_difference", (Load(tensor, index), Ref(name))) if (name, tensor) in largest and index[0] is SAMPLE:
                return Op("exp_below", node.args)
        return None

    def visit(s: Statement) -> Statement:
        if isinstance(s, Loop):
            return replace(s, body=tuple(map(visit, s.body)))
        return replace(s, value=rebuild(s.value, change)) if isinstance(s, Let | Accumulate | Store) else s

    return tuple(map(visit, body)) if largest else body


def every_loop(body: tuple[Statement, ...]) -> Iterator[Loop]:
    """Every loop, those inside others after them."""
    for s in body:
        if isinstance(s, Loop):
            yield s
            yield from every_loop(s.body)


def plain_row(value: Node, var: Var) -> Iterator[str]:
    """The tensor of whose row a value is the element at `var`."""
    if isinstance(value, Load) and value.index == (SAMPLE, var):
        yield value.tensor

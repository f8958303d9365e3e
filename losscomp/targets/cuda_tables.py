"""CUDA for losses that are systems of tables: a team of threads goes through the rows (or diagonals) of a sample together.

All threads of a team run the serial loops, and share the cells of each row. Where one thread may touch what another has written or
read since they last met, they meet first: `Access` says what a statement touches, `safe` whether two threads can come into each
other's way. Pushes to cells that several positions may have are done by the thread that owns the cell, in the order of the positions:
there are no atomics, and the same bits each time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from .. import ir
from ..errors import TargetError
from ..ir import (
    Accumulate,
    Argument,
    Const,
    Fill,
    Kernel,
    Let,
    Load,
    Loop,
    Node,
    Op,
    Ref,
    Section,
    Statement,
    Store,
    Table,
    Var,
    Wave,
    free,
)
from .cuda import CudaPrinter, CudaText, four
from .tables import Layout, cell


@dataclass(frozen=True)
class Lanes:
    """Threads that take the positions of a loop, or of a diagonal of two (in steps p i + q j), in turn."""

    vars: tuple[Var, ...]
    steps: tuple[int, ...] = (1,)


@dataclass(frozen=True)
class All:
    """Every thread does the same; or where `owners`, each does what its own cells are about, at all positions."""

    owners: bool = False


LEADER = Lanes(())                                # one thread, always the same
Who = Lanes | All


@dataclass(frozen=True)
class Access:
    """What some threads touch: a cell, or any (index is None)."""

    tensor: str
    index: tuple[Node, ...] | None
    writes: bool
    by: Who


def split(index: Node) -> tuple[Node, int]:
    """A position, and a distance from it."""
    match index:
        case Const(p, 1):
            return Const(0), p
        case Op("add", (a, Const(p, 1))):
            return a, p
        case Op("sub", (a, Const(p, 1))):
            return a, -p
    return index, 0


def safe(a: Access, b: Access, uniform: frozenset[Var]) -> bool:
    """Do no two threads touch the same cell by these, one of them writing? `uniform`: variables that all threads agree about."""
    if a.tensor != b.tensor or not (a.writes or b.writes) or a.by == b.by == LEADER:
        return True
    if a.index is None or b.index is None:
        return False
    pairs = [(split(x), split(y)) for x, y in zip(a.index, b.index, strict=True)]
    gaps = [(base, i - j) for (base, i), (other, j) in pairs if base is other]
    if any(gap and free(base) <= uniform and not any(isinstance(n, Load) for n in ir.walk(base)) for base, gap in gaps):
        return True
    if a.by != b.by or not isinstance(a.by, Lanes):
        return False
    found = [[gap for base, gap in gaps if base is v] for v in a.by.vars]
    if any(0 in mine for mine in found):
        return True                                                     # distinct positions, distinct cells: the same thread
    return len(found) == 2 and all(found) and sum(p * mine[0] for p, mine in zip(a.by.steps, found, strict=True)) != 0


def is_scattered(s: Store, lanes: tuple[Var, ...]) -> bool:
    """May two positions of the lanes push to one cell?"""
    return s.adds and not any(split(i)[0] in lanes for i in s.index)


def pruned(body: Iterable[Statement], keep: Callable[[Store], bool], needed: set[str]) -> tuple[Statement, ...]:
    """Some of the stores, with all that these, and the names that are `needed`, depend on."""
    out: list[Statement] = []
    for s in reversed(list(body)):
        match s:
            case Store() if keep(s):
                needed |= names_in((s.value, *s.index))
            case Let(name, value) if name in needed:
                needed |= names_in((value,))
            case Accumulate(start, value) if start.name in needed:
                needed |= names_in((value,))
            case Loop(var, starts, inside, serial, reverse):
                mine = pruned(inside, keep, needed)
                if not mine:
                    continue
                s = Loop(var, tuple(start for start in starts if start.name in needed), mine, serial, reverse)
            case _:
                continue
        out.append(s)
    return tuple(reversed(out))


def names_in(nodes: Iterable[Node]) -> set[str]:
    """The names that some nodes use."""
    return {n.name for node in nodes for n in ir.walk(node) if isinstance(n, Ref)}


def names_used(s: Statement) -> set[str]:
    return names_in(n for v in ir.values((s,)) for n in (v.value, *(v.index if isinstance(v, Store) else ())))


def names_made(s: Statement) -> set[str]:
    return {x.name for x in ir.statements((s,)) if isinstance(x, Let)} | {x.name for y in ir.statements((s,)) if isinstance(y, Loop)
                                                                        for x in y.starts}


def pieces(body: tuple[Statement, ...]) -> list[tuple[Statement, ...]]:
    """Statements that need each other's names stand together, in the order that they had."""
    out: list[tuple[Statement, ...]] = []
    begin = 0
    for k in range(1, len(body) + 1):
        made = {name for s in body[begin:k] for name in names_made(s)}
        if not any(made & names_used(s) for s in body[k:]):
            out.append(body[begin:k])
            begin = k
    return out


class TablesPrinter(CudaPrinter):
    """Reads cells of tables. An index was checked before: what is read behind a sample's length is not used, and points inside."""

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel)
        self.tables = {t.name: t for t in kernel.tables}

    def load(self, node: Load) -> str:
        if node.tensor in self.tables:
            return cell(self, self.tables[node.tensor], node.index)
        argument = self.arguments[node.tensor]
        if argument.integer and argument.axes and argument.into and not argument.ignore:
            return f"inside({node.tensor}({', '.join(self(i) for i in node.index[argument.per_sample:])}), {argument.into})"
        return super().load(node)

    def call(self, name: str, args: tuple[Node, ...], outer: int) -> str:
        """An index that is inside already is not moved there twice."""
        if name == "inside" and (text := self(args[0])).startswith("inside(") and text.endswith(f", {self(args[1])})"):
            return text
        return super().call(name, args, outer)


class TablesText(Layout, CudaText):
    """What the template asks of a kernel with tables."""

    p: TablesPrinter
    printer: ClassVar[type[CudaPrinter]] = TablesPrinter
    real: ClassVar[str] = "double"
    row: ClassVar[str] = "wide_row<{0}>"

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel)
        self.pointwise = False
        self.made = {s.name: s.value for s in self.every if isinstance(s, Let)}
        filled = {s.tensor for s in self.every if isinstance(s, Fill)}
        self.summed = [a for a in kernel.outputs if a.name in filled]
        self.open = frozenset({ir.SAMPLE})                              # the variables that all threads agree about
        self.pending: list[Access] = []                                 # what was touched since the threads last met
        self.owner: tuple[Var, ...] = ()                                # the variables of a loop that owners go through

    # What the body touches

    @property
    def measured(self) -> set[str]:
        named = super().measured | {axis for t in self.kernel.tables for axis in t.axes}
        waves = {v.axis for s in self.every if isinstance(s, Wave) for v in s.vars}
        return (named | waves | {axis for a in self.summed for axis in a.axes}) & set(self.kernel.axes)

    def checks(self, a: Argument) -> bool:
        return super().checks(a) or a.measures is not None

    def bounds(self, a: Argument) -> tuple[str | None, ...]:
        return (*a.axes, a.into, a.measures)

    def matters(self, a: Argument) -> bool:
        return a.name in self.read or self.checks(a)

    @property
    def looped(self) -> int:
        return (1 << len(self.kernel.axes)) - 1

    @property
    def summed_bits(self) -> str:
        """A bit for each output that a sample adds to."""
        return f"{sum(1 << self.place[a.name] for a in self.summed):#x}"

    @property
    def lanes(self) -> str:
        """How many cells at once do not depend on each other, at most, in the sizes of the axes."""
        inner = [s for outer in self.every if isinstance(outer, Loop) and outer.serial for s in outer.body if isinstance(s, Loop)]
        axes = [s.var.axis for s in inner or self.loops] + [s.vars[0].axis for s in self.every if isinstance(s, Wave)]
        most = {e.axis: self.p(e.most) for e in self.kernel.extents}
        terms = list(dict.fromkeys(most.get(axis, axis) for axis in axes)) or ["1"]
        text = terms[-1]
        for term in reversed(terms[:-1]):
            text = f"longer({term}, {text})"
        return text

    def sized(self, text: str) -> str:
        """The line that names the lengths of the axes that a text is said in."""
        used = [f"{axis} = sizes[{k}]" for k, axis in enumerate(self.kernel.axes) if re.search(rf"\b{axis}\b", text)]
        return f"const int64_t {', '.join(used)};" if used else "(void)sizes;"

    def accesses(self, body: Iterable[Statement], by: Who) -> list[Access]:
        """What some statements touch that is written in a kernel."""
        found = []
        for s in ir.values(tuple(body)):
            parts = (s.value, *(s.index if isinstance(s, Store) else ()))
            found += [Access(n.tensor, n.index, False, by) for part in parts for n in ir.walk(part)
                      if isinstance(n, Load) and n.tensor in self.p.tables]
            if isinstance(s, Store) and (s.tensor in self.p.tables or self.p.arguments[s.tensor].role == "output"):
                found.append(Access(s.tensor, self.within(s), True, by))
        return found

    def within(self, s: Store) -> tuple[Node, ...]:
        """The index of a store, within a sample."""
        return s.index[1:] if s.tensor in self.p.arguments and self.p.arguments[s.tensor].per_sample else s.index

    # Arguments

    def checked(self, a: Argument, text: str) -> str:
        return f'check_length({text}, {a.measures}, "{a.name}")' if a.measures else super().checked(a, text)

    def check(self, a: Argument, depth: int) -> None:
        """Refuse what an input may not have; what lies behind a sample's length may be anything."""
        if a.integer and not a.axes:
            return
        names = [self.p.var(Var(axis)) for axis in a.axes]
        ends = [*a.axes[:-1], a.length or a.axes[-1]] if a.axes else []
        for k, (name, end) in enumerate(zip(names, ends, strict=True)):
            first, by = ("0", "1") if k else ("team.lane", "team.size")
            self.say(depth + k, f"for (int64_t {name} = {first}; {name} < {end}; {name} += {by})")
        text = f"{a.name}({', '.join(names)})" if names else a.name
        self.say(depth + len(names), f"{super().checked(a, text)};" if a.integer else self.check_of(a, text))

    @property
    def order(self) -> Sequence[Argument]:
        """Numbers first: lengths say what of a row is checked."""
        return sorted(self.kernel.inputs, key=lambda a: len(a.axes))

    def memory(self, depth: int) -> None:
        """How long this sample's axes are, and where its tables lie: at the first cell, with those before it ahead."""
        for e in self.kernel.extents:
            self.say(depth, f"const int64_t {e.axis} = {self.p(e.size)};")
        if self.kernel.tables or self.summed:
            self.say(depth, "double *room = run.about.tables + team.first * run.about.room;")
        for t in self.kernel.tables:
            self.say(depth, self.lengths(t))
            begin = f"room{self.ahead(t, '+')}"
            text = f"int64_t *const {t.name} = (int64_t *)({begin})" if t.integer else f"double *const {t.name} = {begin}"
            self.say(depth, f"{text}; room += {self.p.derived[t.name, 'cells']};")
        for a in self.summed:
            k = self.place[a.name]
            self.say(depth, f"const summed_row<Storage> {a.name}(run, {k}, here.of[{k}], room, {', '.join(four(a.axes))});")

    def output(self, a: Argument, depth: int) -> None:
        if a not in self.summed:
            super().output(a, depth)

    # The body

    def samples(self, s: Loop, depth: int) -> None:
        n = self.p.var(s.var)
        if self.shared:
            self.say(depth, "team.meet();")
        self.say(depth, f"for (int64_t {n} = team.first; {n} < run.about.samples; {n} += team.count) {{")
        self.say(depth + 1, f"const sample_place<{len(self.kernel.arguments)}> here(run, {n});")
        self.rows(depth + 1)
        self.memory(depth + 1)
        self.team(s.body, depth + 1)
        if self.summed:
            self.say(0, "")
            self.meet(depth + 1)
            for a in self.summed:
                self.say(depth + 1, f"{a.name}.close(team);")
        self.meet(depth + 1)
        self.say(depth, "}")

    def meet(self, depth: int) -> None:
        """All threads wait for each other."""
        self.say(depth, "team.meet();")
        self.pending = []

    def touch(self, found: list[Access], depth: int) -> None:
        """Meet, if threads could come into each other's way by what comes next. Raises TargetError where they could within it."""
        for k, a in enumerate(found):
            for b in found[k:]:
                if not safe(a, b, self.open) and not (a.writes and b.writes and a.by == All(True)):
                    raise TargetError(f"in the kernel {self.kernel.name} threads that share a loop would touch one cell of {a.tensor}")
        if not all(safe(a, b, self.open) for a in self.pending for b in found):
            self.meet(depth)
        self.pending += [a for a in found if a not in self.pending]

    def team(self, body: tuple[Statement, ...], depth: int) -> None:
        """Statements that all threads of a team come to together."""
        for s in body:
            match s:
                case Section(text):
                    self.say(0, "")
                    self.say(depth, f"/* {text[:1].upper() + text[1:]}. */")
                case Fill(name) if name in self.p.tables:
                    self.fill(self.p.tables[name], depth)
                case Fill(name):
                    self.touch([Access(name, None, True, LEADER)], depth)
                    self.say(depth, f"{name}.clear(team);")
                case Wave():
                    self.wave(s, depth)
                case Loop() if s.serial:
                    self.serial(s, depth)
                case Loop():
                    self.shared_loop(s, depth)
                case Store():
                    self.touch(self.accesses([s], LEADER), depth)
                    self.block((s,), depth)
                case _:
                    self.touch(self.accesses([s], All()), depth)
                    self.block((s,), depth)

    def fill(self, t: Table, depth: int) -> None:
        """What a table holds at first."""
        assert t.outside is not None
        kind = "int64_t" if t.integer else "double"
        first, cells = f"{t.name}{self.ahead(t, '-')}", self.p.derived[t.name, "cells"]
        self.say(depth, f"fill<{kind}>({first}, {cells}, {self.p(t.outside)}, team);")
        starts = self.starts(t)
        if starts:
            self.meet(depth)
            for line in starts:
                self.say(depth, f"if (team.leads) {line}")
        self.pending.append(Access(t.name, None, True, All()))

    def serial(self, s: Loop, depth: int) -> None:
        """A loop that all threads go through; after a row they meet."""
        i, axis = self.p.var(s.var), s.var.axis
        if self.pending:
            self.meet(depth)
        back, on = f"{i} = {axis} - 1; {i} >= 0; --{i}", f"{i} = 0; {i} < {axis}; ++{i}"
        self.say(depth, f"for (int64_t {back if s.reverse else on}) {{")
        self.open |= {s.var}
        self.team(s.body, depth + 1)
        self.open -= {s.var}
        if self.pending:
            self.meet(depth + 1)
        self.say(depth, "}")

    def shared_loop(self, s: Loop, depth: int) -> None:
        """A loop whose positions the threads share, then one for what they push to cells that positions have in common."""
        scattered = lambda x: is_scattered(x, (s.var,)) and self.p.arguments.get(x.tensor, Argument("")).role != "total"
        alone = pruned(s.body, lambda x: not scattered(x), {start.name for start in s.starts})
        if alone:
            self.touch(self.accesses(alone, Lanes((s.var,))), depth)
            super().loop(Loop(s.var, s.starts, alone), depth, True)
        if owned := pruned(s.body, scattered, set()):
            self.touch(self.accesses(owned, All(True)), depth)
            i = self.p.var(s.var)
            self.owned(owned, (s.var,), f"for (int64_t {i} = 0; {i} < {s.var.axis}; ++{i}) {{", [], depth)

    def owned(self, body: tuple[Statement, ...], lanes: tuple[Var, ...], head: str, first: list[str], depth: int) -> None:
        """A loop that each thread goes through for the cells that it owns."""
        wanted = self.wanted(body)
        self.say(depth, f"if ({wanted}) {head}" if wanted else head)
        for line in first:
            self.say(depth + 1, line)
        self.owner = lanes
        self.block(body, depth + 1, False)
        self.owner = ()
        self.say(depth, "}")

    def wave(self, s: Wave, depth: int) -> None:
        """Diagonal by diagonal; on each, one of the two positions follows from the other."""
        (a, b), (by, one) = (s.vars, s.steps) if s.steps[1] == 1 else (s.vars[::-1], s.steps[::-1])
        if one != 1:
            raise TargetError(f"CUDA has no loop for the steps {s.steps} in the kernel {self.kernel.name}")
        if self.pending:
            self.meet(depth)
        i, j = self.p.var(a), self.p.var(b)
        count = f"diagonals({a.axis}, {b.axis}, {by})"
        self.say(depth, f"for (int64_t nth = {count} - 1; nth >= 0; --nth) {{" if s.reverse else
                 f"for (int64_t nth = 0; nth < {count}; ++nth) {{")
        self.say(depth + 1, f"const int64_t first = first_on(nth, {b.axis}, {by}), end = end_on(nth, {a.axis}, {by});")
        other = f"const int64_t {j} = nth - {f'{by} * ' if by > 1 else ''}{i};"
        lanes = Lanes(s.vars, s.steps)
        scattered = lambda x: is_scattered(x, s.vars)
        waiting: list[Statement] = []

        def share() -> None:
            """The statements that wait, at the cells of the diagonal."""
            if not waiting:
                return
            self.touch(self.accesses(waiting, lanes), depth + 1)
            self.say(depth + 1, f"for (int64_t {i} = first + team.lane; {i} < end; {i} += team.size) {{")
            self.say(depth + 2, other)
            self.block(waiting, depth + 2, False)
            self.say(depth + 1, "}")
            waiting.clear()

        for piece in pieces(s.body):
            alone, owned = pruned(piece, lambda x: not scattered(x), set()), pruned(piece, scattered, set())
            mine = self.accesses(alone, lanes)
            if not all(safe(x, y, self.open) for x in self.accesses(waiting, lanes) for y in mine):
                share()
            waiting += alone
            if owned:
                share()
                self.touch(self.accesses(owned, All(True)), depth + 1)
                self.owned(owned, s.vars, f"for (int64_t {i} = first; {i} < end; ++{i}) {{", [other], depth + 1)
        share()
        self.meet(depth + 1)
        self.say(depth, "}")

    def wanted(self, body: tuple[Statement, ...]) -> str:
        """When a loop has anything to store: always, where it stores to tables."""
        stores = {s.tensor for s in ir.statements(body) if isinstance(s, Store)}
        return "" if stores & self.p.tables.keys() else super().wanted(body)

    def store(self, s: Store, shared: bool) -> str:
        argument = self.p.arguments.get(s.tensor)
        if argument is not None and argument.role == "total":
            return super().store(s, shared)
        conditions = ["team.leads"] if shared else [f"team.owns({self.number_of(s)})"] if self.owner else []
        value, index = s.value, self.within(s)
        if argument is None:
            text = f"{cell(self.p, self.p.tables[s.tensor], index)} {'+=' if s.adds else '='} {self.p(value)};"
        else:
            if s.adds:
                value, more = self.chosen(value)
                conditions += more
            text = f"{s.tensor}.{'add' if s.adds else 'put'}({', '.join([self.p(value), *map(self.p, index)])});"
        return f"if ({' && '.join(conditions)}) {text}" if conditions else text

    def number_of(self, s: Store) -> str:
        """A number of the cell that a store pushes to, from the parts of its index that vary."""
        axes = self.p.tables[s.tensor].axes if s.tensor in self.p.tables else self.p.arguments[s.tensor].axes
        text = ""
        for i, axis in zip(self.within(s), axes, strict=True):
            if free(i) - self.open:
                text = f"({text}) * {axis} + {self.p(i, 10)}" if text else self.p(i)
        return text or "0"

    def chosen(self, value: Node) -> tuple[Node, list[str]]:
        """What is pushed, and when it is not 0: where nothing is pushed, nothing need be there to push to."""
        conditions: list[str] = []
        part, named = value, False
        while True:
            named = named or isinstance(part, Ref)                      # a name stays; what it stands for tells when it is not 0
            match self.made.get(part.name, part) if isinstance(part, Ref) else part:
                case Op("where", (condition, x, Const(0))):
                    conditions.append(self.p(condition, 3))
                case Op("where", (condition, Const(0), x)):
                    conditions.append(self.p(Op("not", (condition,)), 3))
                case _:
                    return value, conditions
            part, value = x, value if named else x


def text_of(kernel: Kernel) -> CudaText:
    """What the template asks of a kernel."""
    return TablesText(kernel) if any(isinstance(s, Section) for s in ir.statements(kernel.body)) else CudaText(kernel)

"""The intermediate form: hash-consed scalar nodes, and statements around them. SymPy has ended; targets print from this.

A kernel is about a run of samples: the batch is a loop variable like any other, the outermost. Nodes are real, integer or
boolean (`kind_of`); reductions appear as nodes before scheduling and as loops after it. `legal` says what each stage may hold.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, ClassVar, Literal

from .errors import LoweringError

Kind = Literal["real", "int", "bool"]


class _Interned(type):
    """Equal nodes are the same object, so sharing is identity and hashing is cheap."""

    _table: ClassVar[dict[tuple[Any, ...], Any]] = {}

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        node = super().__call__(*args, **kwargs)
        return _Interned._table.setdefault((cls, *(getattr(node, f.name) for f in fields(node))), node)


@dataclass(frozen=True, eq=False)
class Node(metaclass=_Interned):
    """A scalar value."""

    @property
    def children(self) -> tuple[Node, ...]:
        return ()


@dataclass(frozen=True, eq=False)
class Const(Node):
    """An exact number: a ratio of integers, or an infinity (denominator 0)."""

    numerator: int
    denominator: int = 1


@dataclass(frozen=True, eq=False)
class Number(Node):
    """An irrational constant, with 40 digits."""

    digits: str


@dataclass(frozen=True, eq=False)
class Param(Node):
    """A run-time scalar."""

    name: str
    integer: bool = False
    domain: tuple[float, float, bool] = (-math.inf, math.inf, False)
    into: str | None = None


@dataclass(frozen=True, eq=False)
class Flag(Node):
    """A condition that is settled where a kernel is compiled: which of a family it is."""

    name: str


@dataclass(frozen=True, eq=False)
class Wanted(Node):
    """Whether the caller wants a result."""

    tensor: str


@dataclass(frozen=True, eq=False)
class Size(Node):
    """The length of an axis."""

    axis: str


@dataclass(frozen=True, eq=False)
class Var(Node):
    """A loop variable over an axis; `depth` tells apart nested loops over the same axis."""

    axis: str
    depth: int = 0

    @property
    def name(self) -> str:
        return self.axis[0] + ("" if self.depth == 0 else str(self.depth))


def loop_names(axes: tuple[str, ...], taken: frozenset[str] = frozenset()) -> dict[str, str]:
    """A short name for the loop over each axis: n for the batch, else as many letters as tell it from the others."""
    names: dict[str, str] = {}
    for axis in (BATCH, *axes):
        starts = [*("n" if axis == BATCH else axis[:k] for k in range(1, len(axis))), f"{axis}_index", f"{axis}_position"]
        names.setdefault(axis, next(s for s in starts if s not in names.values() and s not in axes and s not in taken))
    return names


def unused(name: str, taken: Collection[str]) -> str:
    """The name, or where that is taken, the first of name_2, name_3, ... that is not."""
    found, k = name, 1
    while found in taken:
        k += 1
        found = f"{name}_{k}"
    return found


def taken_names(names: frozenset[str], axes: tuple[str, ...]) -> frozenset[str]:
    """The names that arguments, scalars and flags leave no more for others, with those of the axes and the loops over them."""
    loops = {name + depth for name in loop_names(axes, names).values() for depth in ("", "2", "3", "4")}
    return names | set(axes) | {BATCH} | loops


BATCH = "batch"
# What the fixed-size tables of the C library hold.
MOST_ARGUMENTS, MOST_AXES, MOST_PARAMS, MOST_DIMENSIONS = 40, 4, 8, 12
SAMPLE = Var(BATCH)


@dataclass(frozen=True, eq=False)
class Load(Node):
    """An element of a tensor. An index that is no loop variable makes it a gather."""

    tensor: str
    index: tuple[Node, ...]
    integer: bool = False

    @property
    def children(self) -> tuple[Node, ...]:
        return self.index

    @property
    def is_gather(self) -> bool:
        return not all(isinstance(i, Var) for i in self.index)


@dataclass(frozen=True, eq=False)
class Op(Node):
    """An operation on scalars; `where` selects, it does not branch."""

    name: str
    args: tuple[Node, ...]

    @property
    def children(self) -> tuple[Node, ...]:
        return self.args


@dataclass(frozen=True, eq=False)
class Reduce(Node):
    """sum or max over a loop variable; gone after scheduling."""

    op: str
    var: Var
    body: Node

    @property
    def children(self) -> tuple[Node, ...]:
        return (self.body,)


@dataclass(frozen=True, eq=False)
class Ref(Node):
    """A named value; appears only after scheduling."""

    name: str
    vary: frozenset[Var]
    kind: Kind = "real"


CONDITIONS = frozenset({"lt", "le", "gt", "ge", "eq", "ne", "and", "or", "not"})
ARITHMETIC = frozenset({"add", "sub", "mul", "neg"})


@cache
def kind_of(node: Node) -> Kind:
    """The type of a node. An integer constant counts as an integer, and joins reals freely."""
    match node:
        case Const(_, q):
            return "int" if q == 1 else "real"
        case Size() | Var():
            return "int"
        case Param(_, integer) | Load(_, _, integer):
            return "int" if integer else "real"
        case Ref():
            return node.kind
        case Flag() | Wanted():
            return "bool"
        case Op(name, args):
            if name in CONDITIONS:
                return "bool"
            if name in ARITHMETIC or name == "where":
                kinds = {kind_of(a) for a in (args[1:] if name == "where" else args)}
                return "real" if "real" in kinds else "int"
            return "int" if name in ("integer", "remainder", "floor_divide", "inside") else "real"
    return "real"


def settled(node: Node) -> bool:
    """Is this a condition on flags alone?"""
    return isinstance(node, Flag) or (isinstance(node, Op) and node.name == "or" and all(map(settled, node.args)))


@cache
def free(node: Node) -> frozenset[Var]:
    """The loop variables that a node depends on."""
    if isinstance(node, Var):
        return frozenset({node})
    if isinstance(node, Ref):
        return node.vary
    inside: frozenset[Var] = frozenset().union(*map(free, node.children)) if node.children else frozenset()
    return inside - {node.var} if isinstance(node, Reduce) else inside


def shift(node: Node) -> tuple[Node, int]:
    """A position, and what is added to it."""
    match node:
        case Op("add", (a, Const(p, 1))):
            return a, p
        case Op("sub", (a, Const(p, 1))):
            return a, -p
    return node, 0


# Statements

@dataclass(frozen=True)
class Let:
    """A named value."""

    name: str
    value: Node


@dataclass(frozen=True)
class Start:
    """A row reduction that is about to be accumulated; `vary`: the loop variables that its result depends on."""

    op: str
    name: str
    over: Var
    vary: frozenset[Var]


@dataclass(frozen=True)
class Accumulate:
    """name = op(name, value), inside the loop over the reduction's variable."""

    start: Start
    value: Node


@dataclass(frozen=True)
class Store:
    """tensor[index] = value; or, where the tensor is shared by samples or is pushed to, tensor[index] += value. `when`: flags alone."""

    tensor: str
    index: tuple[Node, ...]
    value: Node
    adds: bool = False
    when: Node | None = None


@dataclass(frozen=True)
class Loop:
    """`body` for every position of `var`; `starts` are the reductions that it accumulates.

    Where `serial`, a position needs what those before it computed, or those behind it where the loop runs in `reverse`.
    """

    var: Var
    starts: tuple[Start, ...]
    body: tuple[Statement, ...]
    serial: bool = False
    reverse: bool = False


@dataclass(frozen=True)
class Wave:
    """`body` for every position of two variables, in steps p i + q j; the positions of a step do not depend on each other."""

    vars: tuple[Var, Var]
    steps: tuple[int, int]
    body: tuple[Statement, ...]
    reverse: bool = False


@dataclass(frozen=True)
class Fill:
    """Every cell of a table is what lies outside of it, but for those at the start; or every cell of a result is 0."""

    tensor: str


@dataclass(frozen=True)
class Section:
    """What the statements that follow are about."""

    text: str


@dataclass(frozen=True)
class Vouch:
    """Go on only if the logarithm of a mass has all digits; otherwise the sample is computed again, in logarithms."""

    value: Node


Statement = Let | Accumulate | Store | Loop | Wave | Fill | Section | Vouch
Role = Literal["input", "scale", "direction", "output", "total"]


@dataclass(frozen=True)
class Argument:
    """A tensor that a kernel reads or writes. `axes` are those of one sample; per_sample puts the batch before them."""

    name: str
    axes: tuple[str, ...] = ()
    role: Role = "input"
    integer: bool = False
    per_sample: bool = True
    default: float | None = None          # an input that may be left out: what it is then, everywhere
    into: str | None = None
    ignore: str | None = None             # an index: the parameter that it may equal all the same
    domain: tuple[float, float, bool] = (-math.inf, math.inf, False)      # low, high, whether low itself is out
    of: str = ""                          # the input that a gradient or a direction belongs to
    measures: str | None = None           # a length: the axis that it may not exceed
    length: str | None = None             # the input that says how much of the last axis is the sample's

    @property
    def optional(self) -> bool:
        return self.default is not None

    @property
    def shape(self) -> tuple[str, ...]:
        return ((BATCH,) if self.per_sample else ()) + self.axes


@dataclass(frozen=True)
class Table:
    """Memory of one sample: the axes, how many cells lie before the first along each, and what is in them at first.

    `outside` is None where every cell that is read has been stored.
    """

    name: str
    axes: tuple[str, ...]
    pads: tuple[int, ...]
    integer: bool
    outside: Node | None
    start: tuple[tuple[tuple[int, ...], Node], ...] = ()


@dataclass(frozen=True)
class Extent:
    """An axis whose length is a sample's own: how long it is, and at most, in the sizes of other axes."""

    axis: str
    size: Node
    most: Node


@dataclass(frozen=True)
class Kernel:
    """One emitted function: what it computes, what it reads, what it writes, and how."""

    name: str
    what: str
    inputs: tuple[Argument, ...]
    params: tuple[Param, ...]
    outputs: tuple[Argument, ...]
    axes: tuple[str, ...]
    body: tuple[Statement, ...]
    flags: tuple[str, ...] = ()
    extents: tuple[Extent, ...] = ()
    tables: tuple[Table, ...] = ()

    @property
    def every_axis(self) -> tuple[str, ...]:
        """The axes of the arguments, and those whose length is a sample's own."""
        return self.axes + tuple(e.axis for e in self.extents)

    @property
    def arguments(self) -> tuple[Argument, ...]:
        return self.inputs + self.outputs

    @property
    def names(self) -> frozenset[str]:
        """What the arguments, scalars and flags are called."""
        named = {a.name for a in self.arguments} | {p.name for p in self.params} | {t.name for t in self.tables}
        return frozenset(named | set(self.flags))

    @property
    def derived(self) -> dict[tuple[str, str], str]:
        """The names that go with the arguments: see `derived_names`."""
        return derived_names(self.arguments, taken_names(self.names, self.every_axis), self.tables)


@dataclass(frozen=True)
class Signature:
    """What a kernel reads and writes, in order."""

    inputs: tuple[Argument, ...]
    params: tuple[Param, ...]
    outputs: tuple[Argument, ...]
    axes: tuple[str, ...]


@dataclass(frozen=True)
class Member:
    """A kernel of a family: its name, and that of its formula; what it has of the family's arguments; whether each flag holds."""

    name: str
    formula: str
    signature: Signature
    flags: tuple[bool, ...]


@dataclass(frozen=True)
class Family:
    """Kernels that share a text: one kernel that has the results of all its members. `scaled`: the same in masses, if it has that form."""

    name: str
    kernel: Kernel
    members: tuple[Member, ...]
    scaled: Kernel | None = None


def derived_names(arguments: tuple[Argument, ...], taken: Collection[str],
                  tables: tuple[Table, ...] = ()) -> dict[tuple[str, str], str]:
    """What a target that loops calls the things that go with an argument: its strides by axis, and its "row", "sum", "tile", and
    whether it is "wanted"; and with a table: its strides and its "cells". None is the name of anything else."""
    found: dict[tuple[str, str], str] = {}
    for t in tables:
        for what, word in [*zip(strides_of(t.axes[:-1]), t.axes, strict=False), ("cells", "cells")]:
            found[t.name, what] = unused(f"{t.name}_{word}", {*taken, *found.values()})
    for a in arguments:
        for what, word in [*zip(strides_of(a.shape), a.shape, strict=True), *((w, w) for w in ("row", "sum", "tile", "wanted"))]:
            found[a.name, what] = unused(f"{a.name}_{word}", {*taken, *found.values()})
    return found


def strides_of(axes: tuple[str, ...]) -> list[str]:
    """What `derived_names` calls the strides along some axes; one axis may stand there twice."""
    return [f"stride {axis}" + (f" {axes[:k].count(axis) + 1}" if axis in axes[:k] else "") for k, axis in enumerate(axes)]


def statements(body: tuple[Statement, ...]) -> Iterator[Statement]:
    """Every statement, those inside loops after their loop."""
    for statement in body:
        yield statement
        if isinstance(statement, Loop | Wave):
            yield from statements(statement.body)


def values(body: tuple[Statement, ...]) -> Iterator[Let | Accumulate | Store]:
    """Every statement that computes something."""
    yield from (s for s in statements(body) if isinstance(s, Let | Accumulate | Store))


def is_shifted(index: Node, var: Var) -> bool:
    """Is this the variable, or a position at a fixed distance from it?"""
    match index:
        case Var():
            return index is var
        case Op("add" | "sub", (a, Const())):
            return a is var
    return False


def walk(node: Node) -> Iterator[Node]:
    """A node and everything below it."""
    yield node
    for child in node.children:
        yield from walk(child)


def count_operations(kernel: Kernel) -> int:
    """How many scalar operations the text of a kernel has."""
    every = [s.value for s in values(kernel.body)]
    return sum(isinstance(node, Op) and node.name not in ("real", "integer") for value in every for node in walk(value))


def check_scheduled(kernel: Kernel, arrays: bool) -> Kernel:
    """The kernel, if every name is defined before its use, once, and no reduction is left. Raises LoweringError.

    `arrays`: names outlive the loop that defines them.
    """
    known = {a.name for a in kernel.arguments} | {t.name for t in kernel.tables}

    def check(body: tuple[Statement, ...], names: set[str], bound: frozenset[Var]) -> None:
        for s in body:
            if isinstance(s, Fill | Section):
                continue
            if isinstance(s, Wave):
                check(s.body, set(names), bound | set(s.vars))
                continue
            if isinstance(s, Loop):
                if s.var in bound:
                    raise LoweringError(f"{kernel.name}: two nested loops over {s.var.name}")
                inside = names if arrays else set(names)
                check(s.body, inside, bound | {s.var})
                names |= {start.name for start in s.starts}
                continue
            for node in (n for part in (s.value, *(s.index if isinstance(s, Store) else ())) for n in walk(part)):
                if isinstance(node, Reduce):
                    raise LoweringError(f"{kernel.name}: a reduction was left unscheduled: {node.op} over {node.var.name}")
                if isinstance(node, Ref) and node.name not in names:
                    raise LoweringError(f"{kernel.name}: {node.name} is used before it is computed")
                if isinstance(node, Var) and node not in bound:
                    raise LoweringError(f"{kernel.name}: {node.name} is used outside its loop")
                if isinstance(node, Load) and node.tensor not in known:
                    raise LoweringError(f"{kernel.name}: {node.tensor} is read and is no argument")
            if isinstance(s, Let):
                if s.name in names or s.name in known:
                    raise LoweringError(f"{kernel.name}: {s.name} is defined twice")
                names.add(s.name)

    check(kernel.body, set(), frozenset())
    return kernel

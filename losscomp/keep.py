"""What the loop nest of a kernel tells that its formulas do not: what is computed twice, and what is surely not larger.

Loops over a row that depend on each other each compute their parts again. What costs much is kept in the row of a result instead:
the earlier loop stores it where the result will be, and the last loop reads it there before it stores the result.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from .ir import SAMPLE, Accumulate, Kernel, Let, Load, Loop, Node, Op, Ref, Statement, Store, Var, Wanted, walk
from .schedule import CHEAP, rebuild

# About what operations count; those that are not here are functions. What is worth a store and a read.
COST = {**dict.fromkeys(CHEAP | {"where", "eq", "ne", "lt", "le", "gt", "ge", "and", "or", "not", "integer", "larger", "smaller"}, 1),
        "div": 6, "sqrt": 6, "cross": 8}
FUNCTION, WORTH = 20, 12


def refined(kernel: Kernel) -> Kernel:
    """The kernel with what its loops know put to use. For targets whose results are arrays of the numbers they compute in."""
    return replace(kernel, body=below(keep(kernel.body, frozenset(row_results(kernel)))))


def row_results(kernel: Kernel) -> Iterator[str]:
    """The results that are rows, as long as each other."""
    return (a.name for a in kernel.outputs if a.role == "output" and a.per_sample and len(a.axes) == 1)


def keep(body: tuple[Statement, ...], results: frozenset[str]) -> tuple[Statement, ...]:
    """The statements, with what two loops compute kept in results of the later one."""
    out = [replace(s, body=keep(s.body, results)) if isinstance(s, Loop) else s for s in body]
    for last in [k for k, s in enumerate(out) if isinstance(s, Loop)]:
        earlier = [k for k in range(last) if isinstance(out[k], Loop)]
        for first in earlier:
            out[first], out[last] = kept(out[first], out[last], results)
    return tuple(out)


def kept(first: Statement, last: Statement, results: frozenset[str]) -> tuple[Loop, Loop]:
    """Two loops, the dearest things that both compute kept in the rows that the last one stores."""
    assert isinstance(first, Loop) and isinstance(last, Loop)
    place = (SAMPLE, last.var)
    rows = [s.tensor for s in last.body if isinstance(s, Store) and s.tensor in results and s.index == place and not s.adds]
    used = {n.tensor for s in (*first.body, *last.body) if isinstance(s, Let) for n in walk(s.value) if isinstance(n, Load)}
    rows = [row for row in rows if row not in used]
    if first.var is not last.var or first.serial or last.serial or any(isinstance(s, Loop) for s in (*first.body, *last.body)):
        return first, last
    known = {value: name for name, value in meanings(first).items()}
    both = [(name, known[value], cost(value)) for name, value in meanings(last).items() if value in known]
    dearest = sorted((x for x in both if x[2] >= WORTH), key=lambda x: -x[2])
    for row, (name, was, _) in zip(rows, dearest, strict=False):
        first = replace(first, body=tuple(part for s in first.body for part in (
            (s, Store(row, place, Ref(was, frozenset(place)))) if isinstance(s, Let) and s.name == was else (s,))))
        last = replace(last, body=tuple(
            Let(s.name, Op("where", (Wanted(row), Load(row, place), s.value))) if isinstance(s, Let) and s.name == name else s
            for s in last.body))
    return first, last


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

"""Scalar formulas to a loop nest: dependency levels, fused loops, hoisting and sharing. Knows no loss and no target.

The batch is the outermost loop. Where a formula has no axes of its own that is the whole nest, one pass with value and all
gradients together; otherwise each sample is a row, swept as few times as its reductions depend on each other.
"""

from __future__ import annotations

import keyword
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cache

from .ir import (
    Accumulate,
    Const,
    Let,
    Load,
    Loop,
    Node,
    Op,
    Param,
    Reduce,
    Ref,
    Size,
    Start,
    Statement,
    Store,
    Var,
    free,
    kind_of,
    settled,
)

NAMED_OPS = {"mul": "product", "add": "shifted", "sub": "difference", "div": "ratio", "neg": "minus", "where": "choice",
             "exp": "exponential", "sqrt": "square_root", "pow": "power", "exp_difference": "share", "exp_quotient": "share",
             "times_exp": "product", "times_sigmoid": "product", "cross": "crossed", "real": "number",
             "eq": "equal", "ne": "differs", "lt": "below", "gt": "above", "ge": "reaches", "le": "within"}
CHEAP = frozenset({"add", "sub", "mul", "neg", "abs", "sign", "real"})
# Names that mean something else in a target: keywords, and the functions that the emitted code calls.
TAKEN = frozenset(keyword.kwlist) | frozenset(
    """auto break case char const continue default do double else enum extern float for goto if inline int long register
    restrict return short signed sizeof static struct switch typedef union unsigned void volatile while bool true false
    sigmoid softplus log1p expm1 expm1mx xlogy sign sum max min abs fabs exp log pow sqrt tanh erf step larger smaller
    sin cos sinh cosh atan arctan remainder fmod floor ldexp frexp
    inverse_root binade abs_power signed_power exp_difference exp_quotient times_exp times_sigmoid cross
    SMALLEST LARGEST np torch stable real run dense self NULL INFINITY REAL NAME
    accumulator accumulate accumulate_tile larger_tile add exp_below lanes to_columns to_rows fill_lanes add_to_lane value_of_lane
    prefetch SHORT SIDE FOR_SIDES PREFETCH LANEWISE AT_LEVEL sum_of_tile largest_of_tile TILE LANES LEVELS BITS WIDE
    FOR_TILES INDEPENDENT PURE CONST AVX2 AVX512
    first end value_of total_of wanted INLINE main y0 y1 yn j0 j1 jn
    team here nth start stride explicit mutable constexpr nullptr asm alignas export noexcept concept requires
    signgam and or not xor bitand bitor compl new delete this class template typename namespace operator private
    protected public virtual friend using try catch throw inside room fill_reals fill_integers
    fill_edge scaled_exp scaled_power scaled_log times_power significand exponent_of vouched alone zero_if_absent""".split())


@dataclass(frozen=True)
class Task:
    """Something to emit once its remaining loops are open: a store, or the accumulation of a reduction."""

    result: Store | Reduce
    loops: tuple[Var, ...]
    value: Node


class Scheduler:
    """`arrays`: names outlive their loop (NumPy keeps whole arrays); otherwise a later loop computes again (C). `tables`: what can be
    read whatever a selection chooses; a read that only an arm needs comes first then, so that a loop has no branch."""

    def __init__(self, arrays: bool, hints: Mapping[Node, str], taken: Iterable[str], tables: Iterable[str] = ()) -> None:
        self.arrays = arrays
        self.tables = frozenset(tables)
        self.hints = hints
        self.names: dict[Node, str] = {}
        self.starts: dict[Reduce, Start] = {}
        self.taken: set[str] = set(taken) | TAKEN

    def __call__(self, stores: list[Store], outer: Var) -> tuple[Statement, ...]:
        """The loop nest of a kernel: every store stands inside the loop over `outer`."""
        tasks = [Task(s, (outer, *(v for v in s.index if isinstance(v, Var) and v != outer)), s.value) for s in stores]
        self.everywhere = self.count(tasks, frozenset())[0]
        return self.block(tasks, frozenset())

    def block(self, tasks: list[Task], bound: frozenset[Var]) -> tuple[Statement, ...]:
        """The statements for `tasks` where the variables in `bound` are fixed."""
        outside = dict(self.names)
        tasks = [Task(t.result, t.loops, self.freshen(t.value, bound)) for t in tasks]
        waiting = [n for n in self.reachable([t.value for t in tasks]) if isinstance(n, Reduce) and free(n) <= bound]
        reductions = [Task(r, (r.var,), r.body) for r in waiting]
        looped = [t for t in tasks if t.loops] + reductions
        here = [t for t in tasks if not t.loops]
        uses, inner = self.count(tasks + reductions, bound)
        levels = self.levels(looped, reductions)
        out: list[Statement] = []
        for level in sorted(set(levels.values())):
            group = [t for t in looped if levels[t] == level]
            for var in dict.fromkeys(t.loops[0] for t in group):
                fused = [t for t in group if t.loops[0] == var]
                out += self.lets([t.value for t in fused], bound, uses, inner)
                opened = [t.result for t in fused if isinstance(t.result, Reduce) and t.result.var is var]
                starts = {r: Start(r.op, self.fresh(r, "_sum", "_tile"), r.var, free(r)) for r in opened}
                self.starts |= starts
                inside = self.block([Task(t.result, t.loops[1:], t.value) for t in fused], bound | {var})
                out.append(Loop(var, tuple(starts.values()), inside))
                self.names |= {r: start.name for r, start in starts.items()}
        out += self.lets([t.value for t in here], bound, uses, inner)
        for task in here:
            value = self.resolve(task.value)
            if isinstance(task.result, Store):
                out.append(Store(task.result.tensor, task.result.index, value, task.result.adds))
            else:
                out.append(Accumulate(self.starts[task.result], value))
        if not self.arrays:
            self.names = outside
        return tuple(out)

    def levels(self, looped: list[Task], reductions: list[Task]) -> dict[Task, int]:
        """As early as dependencies allow; what no loop waits for shares the last loop over its axis. So a kernel that has only some of the
        tasks has no more loops than they need."""
        order = self.reachable([t.value for t in looped] + [t.result for t in reductions if isinstance(t.result, Reduce)])
        task_of: dict[Node, Task] = {t.result: t for t in reductions if isinstance(t.result, Reduce)}
        position = {node: k for k, node in enumerate(order)}
        reductions = sorted(reductions, key=lambda t: position[t.result])  # type: ignore[index]
        needs = {t: [task_of[r] for r in self.reachable([t.value]) if r in task_of] for t in looped}
        early: dict[Task, int] = {}
        for t in reductions + [t for t in looped if t not in reductions]:  # reductions come children first
            early[t] = 1 + max((early[n] for n in needs[t]), default=0)
        awaited = {n for found in needs.values() for n in found}
        return {t: early[t] if t in awaited else max(early[u] for u in looped if u.loops[0] == t.loops[0]) for t in looped}

    def reachable(self, roots: Iterable[Node]) -> list[Node]:
        """Every node below the roots that has no name yet, children first."""
        seen: dict[Node, None] = {}

        def visit(node: Node) -> None:
            if node not in seen and node not in self.names:
                for child in node.children:
                    visit(child)
                seen[node] = None

        for root in roots:
            visit(root)
        return list(seen)

    def count(self, tasks: list[Task], bound: frozenset[Var]) -> tuple[Counter[Node], set[Node]]:
        """How often each node is used, and which nodes are used inside a deeper loop."""
        roots = [t.value for t in tasks]
        uses, inner = Counter(roots), {t.value for t in tasks if t.loops}
        for node in self.reachable(roots):
            if not isinstance(node, Reduce):
                uses.update(node.children)
                if not free(node) <= bound:
                    inner.update(node.children)
        return uses, inner

    def lets(self, roots: list[Node], bound: frozenset[Var], uses: Counter[Node], inner: set[Node]) -> list[Statement]:
        """Names for what is shared, or invariant in a deeper loop, or named by the author."""
        out: list[Statement] = []
        order = self.reachable(roots)
        inside = set() if self.arrays else self.in_arms(order)
        first = {arm for node in order if isinstance(node, Op) and node.name == "where" for arm in node.args[1:]
                 if isinstance(arm, Load) and arm.tensor in self.tables}
        for node in order:
            worth = (isinstance(node, Op) and not settled(node)) or (isinstance(node, Load) and node.is_gather)
            shared = uses[node] > 1 or node in inner or node in first or (self.arrays and self.everywhere[node] > 1)
            if node in inside and node not in first and node not in inner and node not in roots and node not in self.hints:
                continue                                                 # a name would compute it where no arm needs it
            if worth and free(node) <= bound and (shared or node in self.hints) and not self.trivial(node):
                name = self.fresh(node)
                out.append(Let(name, self.resolve(node)))
                self.names[node] = name
        return out

    def in_arms(self, order: list[Node]) -> set[Node]:
        """The cheap nodes that only arms of selections use: a compiler shares them, and selects before it computes."""
        users: dict[Node, list[Node]] = {}
        for node in order:
            for child in dict.fromkeys(node.children):
                users.setdefault(child, []).append(node)

        def weight(node: Node, top: bool = True) -> int:
            if not isinstance(node, Op) or (not top and (node in self.hints or len(users[node]) > 1)):
                return 0
            return (1 if node.name in CHEAP else 9) + sum(weight(child, False) for child in node.children if child not in self.names)

        found: set[Node] = set()
        for node in reversed(order):
            above = users.get(node, [])
            if above and weight(node) <= 2 and all(u in found or (isinstance(u, Op) and u.name == "where" and node is not u.args[0])
                                                   for u in above):
                found.add(node)
        return found

    def trivial(self, node: Node) -> bool:
        """Is a name longer than the thing: a sign, a conversion, a position next to another?"""
        if isinstance(node, Op) and node.name in ("add", "sub", "mul") and kind_of(node) == "int" and node not in self.hints:
            return any(isinstance(a, Const) for a in node.args)
        return isinstance(node, Op) and node.name in ("neg", "real") and not isinstance(node.args[0], Op | Reduce) and (
            node not in self.hints)

    def freshen(self, node: Node, bound: frozenset[Var]) -> Node:
        """The node, with reductions renamed whose variable is already that of a loop around them."""
        if node in self.names or not reduced(node) & bound:
            return node
        if isinstance(node, Reduce) and node.var in bound:
            taken = bound | free(node.body) | reduced(node.body)
            old, var = node.var, next(v for k in range(9) if (v := Var(node.var.axis, k)) not in taken)
            node = Reduce(node.op, var, rebuild(node.body, lambda n: var if n is old else None))
        return with_children(node, lambda child: self.freshen(child, bound))

    def resolve(self, node: Node) -> Node:
        """The node with everything that has a name replaced by that name."""
        done: dict[Node, Node] = {}

        def visit(n: Node) -> Node:
            if n in self.names:
                return Ref(self.names[n], free(n), kind_of(n))
            if n not in done:
                done[n] = with_children(n, visit)
            return done[n]

        return visit(node)

    def fresh(self, node: Node, *endings: str) -> str:
        """A readable name, unique in the kernel, also with each ending."""
        hint = self.hints.get(node) or self.describe(node)
        name, k = hint, 1
        while (names := {name, *(name + ending for ending in endings)}) & self.taken:
            k += 1
            name = f"{hint}_{k}"
        self.taken |= names
        return name

    def describe(self, node: Node) -> str:
        """What a person might call a value that has no name."""
        match node:
            case _ if node in self.names:
                return self.names[node]
            case Load(tensor, index):
                gathers = [i for i in index if not isinstance(i, Var)]
                if any(isinstance(i, Op) and i.name == "sub" for i in gathers):
                    return f"{tensor}_before"
                return tensor if not gathers else f"{tensor}_at_{self.describe(gathers[0])}"
            case Param(name, _, _) | Size(name):
                return name
            case Const(p, 1) if p >= 0:
                return str(p)
            case Reduce(op, _, body):
                inside = self.describe(body)
                return f"{op}_{inside}" if len(inside) < 20 else op
            case Op("neg", (a,)):
                return f"minus_{self.describe(a)}"
            case Op("real" | "integer", (a,)):
                return self.describe(a)
            case Op(name, (a,)) if len(inside := self.describe(a)) < 20 and inside not in NAMED_OPS.values():
                return f"{name}_{inside}"
            case Op(name, _):
                return NAMED_OPS.get(name, name)
        return "value"


def rebuild(node: Node, change: Callable[[Node], Node | None]) -> Node:
    """The node with `change` applied top-down, once to each part; None means: look inside."""
    done: dict[Node, Node] = {}

    def visit(n: Node) -> Node:
        if n not in done:
            new = change(n)
            done[n] = with_children(n, visit) if new is None else new
        return done[n]

    return visit(node)


def with_children(node: Node, change: Callable[[Node], Node]) -> Node:
    """The node with each of its children changed."""
    if not node.children:
        return node

    def swap(field: object) -> object:
        if isinstance(field, Node):
            return change(field)
        return tuple(map(swap, field)) if isinstance(field, tuple) else field

    return type(node)(*(swap(getattr(node, f.name)) for f in fields(node)))


@cache
def reduced(node: Node) -> frozenset[Var]:
    """The variables of all reductions in a node."""
    inside: frozenset[Var] = frozenset().union(*map(reduced, node.children)) if node.children else frozenset()
    return inside | {node.var} if isinstance(node, Reduce) else inside


def safe_name(name: str) -> bool:
    """Is this an identifier that no target has another use for?"""
    return bool(re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name)) and name not in TAKEN and "__" not in name

"""PyTorch: a loss in ordinary differentiable operations. Any leading dimensions are the batch; behind them stands one dimension
a loop variable, so that broadcasting needs no thought."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from .. import ir
from ..ir import SAMPLE, Accumulate, Kernel, Let, Load, Loop, Node, Op, Ref, Statement, Store, Var
from .printer import CALL, Printer, decimal

ARRAYS = True
WHOLE = frozenset({"straight_through"})            # whose first argument has to be a tensor
OVER = {"sum": "torch.sum({0}, {1}, keepdim=True)", "max": "stable.max_over({0}, {1})", "log_mass": "stable.log_mass({0}, {1})",
        "log_sum_exp": "stable.log_sum_exp({0}, {1})"}


class TorchPrinter(Printer):
    """Spelling of scalar operations on tensors."""

    calls: ClassVar[dict[str, str]] = {
        **{n: f"torch.{n}({{0}})" for n in ("exp", "log", "log1p", "expm1", "sqrt", "tanh", "sin", "cos", "sinh", "cosh",
                                            "atan", "erf")},
        **{n: f"stable.{n}({{0}})" for n in ("abs", "sign", "sigmoid", "softplus", "root", "inverse_root", "expm1mx", "binade", "xlogx",
                                             "motion", "exp_motion")},
        **{n: f"stable.{n}({{0}}, {{1}})" for n in ("xlogy", "step", "hinge", "abs_power", "signed_power", "only", "unless",
                                                    "relative", "straight_through", "times_exp", "times_sigmoid")},
        **{n: f"stable.{n}({{0}}, {{1}}, {{2}})" for n in ("larger", "smaller")},
        "inside": "stable.inside({0}, {1})", "pow": "torch.pow({0}, {1})", "where": "torch.where({0}, {1}, {2})",
        "exp_difference": "torch.exp({0} - {1})", "exp_quotient": "torch.exp(({0} - {1}) / {2})",
        "stop_gradient": "{0}.detach()", "real": "{0}.to({like}.dtype)", "integer": "{0}.to(torch.int64)",
        "not": "~{0}", "and": "{0} & {1}", "or": "{0} | {1}", "remainder": "{0} % {1}", "floor_divide": "{0} // {1}",
    }
    tight: ClassVar[frozenset[str]] = frozenset({"stop_gradient", "real", "integer", "not", "and", "or", "remainder", "floor_divide",
                                            "exp_difference", "exp_quotient"})

    over: ClassVar[dict[str, str]] = OVER
    gather: ClassVar[str] = "stable.at({0}, {1})"
    size: ClassVar[str] = "{0}"
    positions: ClassVar[str] = "torch.arange({0}, device={1}.device)"

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel)
        self.slots = slots_of(kernel)
        self.like = next(a.name for a in kernel.inputs if not (a.integer or a.optional))
        self.numbers: set[str] = set()                                   # names of values that are Python numbers
        self.moved: set[str] = set()                                     # tensors whose name stands for their only view
        self.sizes: set[str] = set()                                     # what the lines read besides arguments
        self.variables: dict[Var, None] = {}
        self.serial: set[Var] = set()                                    # the variables of the loops around, which are Python's own

    def is_number(self, node: Node) -> bool:
        """Is this a Python number, and no tensor?"""
        return not any(isinstance(n, Load) or (isinstance(n, Var) and n not in self.serial) or length(n) or
                       (isinstance(n, Ref) and n.name not in self.numbers) for n in ir.walk(node))

    def each(self, tensor: str) -> bool:
        """Has each sample its own?"""
        return tensor not in self.arguments or self.arguments[tensor].per_sample

    def tensor(self, node: Node, outer: int = 0) -> str:
        """A node as a tensor."""
        return f"stable.number({self(node)}, {self.like})" if self.is_number(node) else self(node, outer)

    def __call__(self, node: Node, outer: int = 0) -> str:
        match node:
            case ir.Size(axis):
                self.sizes.add(axis)
            case Op("stated", (value, *pairs)):
                said = [f"({self.whole(x)}, {self(slope)})" for x, slope in zip(pairs[::2], pairs[1::2], strict=True)]
                return f"stable.stated({self.tensor(value)}, {', '.join(said)})"
            case Op("around", (x,)):
                return f"stable.around({self.whole(x)})"
            case Op("log_add_exp", terms):
                return f"stable.log_add_exp({', '.join(map(self.tensor, terms))})"
        return super().__call__(node, outer)

    def whole(self, node: Node) -> str:
        """A read with every dimension, also where all samples share it."""
        loads = [n for n in ir.walk(node) if isinstance(n, Load)]
        if any(self.each(n.tensor) for n in loads) or not loads:
            return self(node)
        self.sizes.add(ir.BATCH)
        return f"stable.for_each({self(node)}, {ir.BATCH}, {len(self.slots)})"

    def call(self, name: str, args: tuple[Node, ...], outer: int) -> str:
        if name == "where":
            return self.where(args, outer)
        if name == "inside":
            return self.calls[name].format(*map(self, args))             # of a number too
        if all(map(self.is_number, args)):
            match name:
                case "real" if length(Op(name, args)):                   # a length that is traced divides no tensor in vmap
                    return f"stable.number({self(args[0])}, {self.like})"
                case "real":
                    return self(args[0], outer)
                case "not":
                    return self.wrap(f"not {self(args[0], CALL)}", 4, outer)
        if name in self.tight:
            level = {"and": 8, "or": 7, "not": 30, "remainder": 20, "floor_divide": 20}.get(name, CALL)
            inner = 21 if name == "exp_quotient" else 11 if name == "exp_difference" else 9 if name in ("and", "or") else level
            return self.wrap(self.calls[name].format(*(self(a, inner) for a in args), like=self.like), level, outer)
        first, *rest = args
        if name in WHOLE or all(map(self.is_number, args)):
            return self.calls[name].format(self.tensor(first), *map(self, rest))
        return super().call(name, args, outer)

    def where(self, args: tuple[Node, ...], outer: int) -> str:
        """A selection; among numbers, and by a number, Python's own."""
        condition, a, b = args
        if self.is_number(condition):
            return self.wrap(f"{self(a, 2)} if {self(condition, 2)} else {self(b, 1)}", 1, outer)
        whole = ir.kind_of(a) == ir.kind_of(b) == "int"
        first = self(a) if whole or not (self.is_number(a) and self.is_number(b)) else self.tensor(a)
        return f"torch.where({self(condition)}, {first}, {self(b)})"

    def constant(self, p: int, q: int, outer: int) -> str:
        if q == 0:
            return "torch.inf" if p > 0 else self.wrap("-torch.inf", 15, outer)
        text = decimal(p, q)
        return self.wrap(f"{p} / {q}", 20, outer) if text is None else self.wrap(text, CALL if p > 0 else 15, outer)

    def number(self, digits: str) -> str:
        return repr(float(digits))

    def var(self, node: Var) -> str:
        self.variables[node] = None
        return super().var(node)

    def load(self, node: Load) -> str:
        view = self.view(node)
        return view if node.tensor not in self.moved else node.tensor

    def view(self, node: Load) -> str:
        """A tensor along the dimensions of the kernel; an index that is no loop variable of its own takes elements out."""
        argument = self.arguments[node.tensor]
        index = node.index[1:] if argument.per_sample else node.index
        return self.laid(node.tensor, index, argument.axes, argument.per_sample)

    def laid(self, text: str, index: tuple[Node, ...], axes: tuple[str, ...], per_sample: bool) -> str:
        """What has some axes, along the dimensions of the kernel."""
        direct = {i: place for place, i in reversed(list(enumerate(index))) if isinstance(i, Var)}
        gathered = [place for place, i in enumerate(index) if not isinstance(i, Var) or direct[i] != place]
        order = [*(direct[v] for v in self.slots if v in direct), *gathered]
        count = len(index)
        if order != list(range(count)):
            text += f".movedim({tuple(p - count for p in order)}, {tuple(k - count for k in range(count))})"
        if len(gathered) > 1:
            text += f".flatten({-len(gathered)})"
        slices = [":" if v in direct else "None" for v in self.slots] + [":"] * bool(gathered)
        if per_sample:
            text += f"[..., {', '.join(slices)}]" if "None" in slices else ""
        else:
            kept = slices[slices.index(":"):] if ":" in slices else []
            text += f"[{', '.join(kept)}]" if "None" in kept else ""
        return self.at(text, [index[k] for k in gathered], [axes[k] for k in gathered]) if gathered else text

    def at(self, text: str, index: list[Node], axes: list[str]) -> str:
        """The elements at a position in the last axes, as if they were one."""
        place = self(index[0], 20 if len(index) > 1 else 0)
        for i, axis in zip(index[1:], axes[1:], strict=True):
            self.sizes.add(axis)
            place = f"({place} * {axis} + {self(i, 11)})"
        return self.gather.format(text, place)

    def dimension(self, var: Var) -> int:
        return self.slots.index(var) - len(self.slots)


class ShardedPrinter(TorchPrinter):
    """Where each process has a part of the only axis: what runs over the axis runs over all parts."""

    over: ClassVar[dict[str, str]] = {op: f"shards.{name}({{0}}, {{1}})" for op, name in
                                      (("sum", "sum_over"), ("max", "max_over"), ("log_mass", "log_mass"))}
    gather: ClassVar[str] = "shards.at({0}, {1})"
    size: ClassVar[str] = "shards.size"
    positions: ClassVar[str] = "shards.positions({1})"


def shardable(kernel: Kernel) -> bool:
    """May the axis lie in parts: is there one, run over by one loop at a time, and gathered from at positions that all processes know?"""
    flat = list(ir.values(kernel.body))
    if kernel.tables or len(kernel.axes) != 1 or len(slots_of(kernel)) > 1:
        return False
    if any(isinstance(n, Op) and n.name == "inside" for s in flat for n in ir.walk(s.value)):
        return False                                                     # inside of what: a process knows its own part
    gathers = [n for s in flat for n in ir.walk(s.value) if isinstance(n, Load) and n.is_gather]
    return not any(isinstance(n, Var) and n != SAMPLE for g in gathers for i in g.index if not isinstance(i, Var) for n in ir.walk(i))


def length(node: Node) -> bool:
    """Is this the length of an axis as a real number?"""
    return isinstance(node, Op) and node.name == "real" and any(isinstance(n, ir.Size) for n in ir.walk(node.args[0]))


def slots_of(kernel: Kernel) -> list[Var]:
    """The dimensions that values have behind those of the batch: every loop variable that the kernel uses."""
    used = {s.var for s in ir.statements(kernel.body) if isinstance(s, Loop) and not s.serial} - {SAMPLE}
    return sorted(used, key=lambda v: (kernel.every_axis.index(v.axis), v.depth))


class TorchText:
    """What the template asks of a kernel."""

    printer_type: ClassVar[type[TorchPrinter]] = TorchPrinter
    precision: ClassVar[tuple[str, str]] = ("widened", "tensors of half precision are computed in single precision")

    def __init__(self, kernel: Kernel, defaults: Mapping[str, float | None], kinds: Mapping[str, str],
                 printer: type[TorchPrinter] | None = None) -> None:
        self.kernel = kernel
        self.defaults, self.kinds = defaults, kinds                      # of optional tensors where absent; the types of scalars
        self.p = (printer or self.printer_type)(kernel)
        self.read = list(dict.fromkeys(n for s in ir.values(kernel.body) for n in ir.walk(s.value) if isinstance(n, Load)))
        self.views = self.moves()
        self.p.moved = {name for name, _ in self.views}
        self.results: dict[str, str] = {}
        self.lines = self.block(kernel.body)

    def moves(self) -> list[tuple[str, str]]:
        """The tensors that are read in one way only, which is not the way they come."""
        ways: dict[str, list[Load]] = {}
        for load in self.read:
            ways.setdefault(load.tensor, []).append(load)
        views = [(name, self.p.view(loads[0])) for name, loads in ways.items() if len(loads) == 1 and not loads[0].is_gather]
        return [(name, view) for name, view in views if view != name]

    def block(self, body: tuple[Statement, ...]) -> list[str]:
        """The lines of some statements; loops are dimensions."""
        out: list[str] = []
        for s in body:
            match s:
                case Loop(_, _, inside):
                    out += self.block(inside)
                case Let() | Accumulate() | Store():
                    out += [line] if (line := self.line(s)) else []
        return out

    def line(self, s: Let | Accumulate | Store) -> str:
        """One statement; nothing for a result, which is returned."""
        match s:
            case Let(name, value):
                self.p.numbers |= {name} if self.p.is_number(value) else set()
                return f"{name} = {self.p(value)}"
            case Accumulate(start, value):
                return f"{start.name} = {self.p.over[start.op].format(self.p.tensor(value), self.p.dimension(start.over))}"
        self.results[s.tensor] = self.result(s)
        return ""

    def result(self, s: Store) -> str:
        """A result for each sample: the dimensions of loops, of length 1 now, go."""
        loops = len(self.p.slots)
        text = self.p.tensor(s.value, CALL if loops else 0)
        if self.covers(s.value):
            return f"{text}[..., {', '.join('0' * loops)}]" if loops else text
        self.p.sizes.add(ir.BATCH)
        return f"stable.per_sample({text}, {ir.BATCH}, {loops})"

    def covers(self, node: Node) -> bool:
        """Is a tensor in this that each sample has, and that is given?"""
        values = {s.name: s.value for s in ir.statements(self.kernel.body) if isinstance(s, Let)}
        for s in ir.statements(self.kernel.body):
            if isinstance(s, Accumulate):
                values[s.start.name] = s.value
        optional = {a.name for a in self.kernel.inputs if a.optional}
        seen: set[str] = set()
        todo = [node]
        while todo:
            for n in ir.walk(todo.pop()):
                if isinstance(n, Load) and self.p.each(n.tensor) and n.tensor not in optional:
                    return True
                if isinstance(n, Ref) and n.name not in seen:
                    seen.add(n.name)
                    todo.append(values[n.name])
        return False

    @property
    def signature(self) -> str:
        tensors = [f"{a.name}: Tensor{' | None' if a.optional else ''}" for a in self.kernel.inputs]
        return ", ".join(tensors + [f"{p.name}: {self.kinds[p.name]}" for p in self.kernel.params])

    @property
    def prologue(self) -> list[str]:
        """The lengths of axes, absent inputs, positions along axes, and tensors laid along the dimensions."""
        p, used = self.p, {load.tensor for load in self.read}
        absent = [a for a in self.kernel.inputs if a.optional and a.name in used]
        needed = p.sizes | {v.axis for v in p.variables} | {axis for a in absent for axis in a.axes}
        rooms, sources = self.rooms(needed), self.sources()
        lines = [f"{axis} = {source if axis == ir.BATCH else p.size.format(source)}" for axis, source in sources.items()
                 if axis in needed | p.sizes] + rooms
        for a in absent:
            shape = a.axes if p.size == "{0}" else [sources[axis] for axis in a.axes]
            lines.append(f"{a.name} = stable.given({', '.join([a.name, repr(self.defaults[a.name]), p.like, *shape])})")
        for v in sorted(p.variables, key=p.slots.index):
            behind = ", None" * (-p.dimension(v) - 1)
            lines.append(f"{Printer.var(p, v)} = {p.positions.format(v.axis, p.like)}" + (f"[:{behind}]" if behind else ""))
        return lines + [f"{name} = {view}" for name, view in self.views]

    def rooms(self, needed: set[str]) -> list[str]:
        """The lengths of axes that no tensor has, of those that are needed."""
        return []

    def sources(self) -> dict[str, str]:
        """Where the length of each axis, and the shape of the batch, come from."""
        found: dict[str, str] = {}
        for a in (a for a in self.kernel.inputs if not a.optional):
            if a.per_sample:
                found.setdefault(ir.BATCH, f"{a.name}.shape" + (f"[:-{len(a.axes)}]" if a.axes else ""))
            for place, axis in enumerate(a.axes):
                found.setdefault(axis, f"{a.name}.shape[{place - len(a.axes)}]")
        return found

    @property
    def returns(self) -> str:
        return ", ".join(self.results[name] for name in ("loss", "denominator") if name in self.results)

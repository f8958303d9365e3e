"""NumPy: the loop nest without its loops. Every value has one dimension a loop variable, so broadcasting needs no thought."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .. import ir
from ..ir import SAMPLE, Accumulate, Argument, Kernel, Load, Loop, Node, Op, Store, Var
from .printer import CALL, Printer, decimal

ARRAYS = True


class NumPyPrinter(Printer):
    """Spelling of scalar operations on arrays."""

    calls: ClassVar[dict[str, str]] = {
        **{n: f"np.{n}({{0}})" for n in ("exp", "log", "log1p", "expm1", "sqrt", "tanh", "abs", "sign", "sin", "cos", "sinh", "cosh")},
        **{n: f"stable.{n}({{0}})" for n in ("sigmoid", "softplus", "inverse_root", "expm1mx", "erf", "binade")},
        **{n: f"stable.{n}({{0}}, {{1}})" for n in ("xlogy", "step", "abs_power", "signed_power", "exp_difference", "times_exp",
                                                      "times_sigmoid")},
        "cross": "stable.cross({0}, {1}, {2}, {3})", "exp_quotient": "stable.exp_quotient({0}, {1}, {2})",
        "larger": "np.maximum({0}, {1})", "smaller": "np.minimum({0}, {1})", "pow": "np.power({0}, {1})",
        "atan": "np.arctan({0})", "where": "np.where({0}, {1}, {2})", "not": "~({0})",
        "and": "({0}) & ({1})", "or": "({0}) | ({1})",
        "real": "real({0})", "integer": "np.asarray({0}, np.int64)", "remainder": "{0} % {1}", "floor_divide": "{0} // {1}",
        "inside": "stable.inside({0}, {1})",
    }

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel)
        self.slots = slots_of(kernel)
        self.views = {(v.load.tensor, v.load.index): v.name for v in views(kernel, self.slots)}

    def call(self, name: str, args: tuple[Node, ...], outer: int) -> str:
        text = super().call(name, args, outer)
        return self.wrap(text, 1, outer) if name in ("and", "or", "remainder", "floor_divide") else text

    def constant(self, p: int, q: int, outer: int) -> str:
        if q == 0:
            return "np.inf" if p > 0 else "-np.inf"
        text = decimal(p, q)
        return self.wrap(f"{p} / {q}", 20, outer) if text is None else self.wrap(text, CALL if p > 0 else 15, outer)

    def number(self, digits: str) -> str:
        return repr(float(digits))

    def load(self, node: Load) -> str:
        if (node.tensor, node.index) in self.views:
            return self.views[node.tensor, node.index]
        return f"{node.tensor}[{', '.join(self(i) for i in node.index)}]"

    def axis_of(self, var: Var) -> int:
        return self.slots.index(var)


@dataclass(frozen=True)
class View:
    """A tensor laid out along the kernel's dimensions: `name = tensor[slices]`."""

    name: str
    load: Load
    slices: str


def loads(kernel: Kernel) -> list[Load]:
    """Every load of a kernel, once, in order."""
    found: dict[Load, None] = {}
    for s in ir.values(kernel.body):
        found |= {n: None for n in ir.walk(s.value) if isinstance(n, Load)}
    return list(found)


def slots_of(kernel: Kernel) -> list[Var]:
    """The dimensions that values have: the batch, then every loop variable that the kernel uses."""
    used: set[Var] = set()
    for s in ir.statements(kernel.body):
        used |= {s.var} if isinstance(s, Loop) else set(s.vars) if isinstance(s, ir.Wave) else set()
    return [SAMPLE, *sorted(used - {SAMPLE}, key=lambda v: (kernel.every_axis.index(v.axis), v.depth))]


def views(kernel: Kernel, slots: list[Var]) -> list[View]:
    """The tensors that are read at loop variables only, in an order that dimensions can follow."""
    out = []
    gathered = {load.tensor for load in loads(kernel) if not plain(load, slots)}
    plain_loads = [load for load in loads(kernel) if plain(load, slots)]
    for load in plain_loads:
        slices = ", ".join(":" if v in load.index else "None" for v in slots)
        while slices.endswith(", :"):
            slices = slices[:-3]
        shared = load.tensor in gathered or sum(other.tensor == load.tensor for other in plain_loads) > 1
        same = "None" not in slices
        loops = ir.loop_names(kernel.every_axis, kernel.names)
        suffix = "_".join(loops[v.axis] + (str(v.depth + 1) if v.depth else "") for v in load.index if isinstance(v, Var))
        name = load.tensor if same or not shared else f"{load.tensor}__{suffix}"
        out.append(View(name, load, "" if same else slices))
    return out


def plain(load: Load, slots: list[Var]) -> bool:
    """Are the indices distinct loop variables in the order of the dimensions?"""
    places = [slots.index(i) for i in load.index if isinstance(i, Var) and i in slots]
    return len(places) == len(load.index) and places == sorted(set(places))


class NumPyText:
    """What the template asks of a kernel."""

    printer_type: ClassVar[type[NumPyPrinter]] = NumPyPrinter

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.printer = self.printer_type(kernel)
        self.slots = self.printer.slots

    @property
    def signature(self) -> str:
        return ", ".join([*(a.name for a in self.kernel.inputs), *(p.name for p in self.kernel.params)])

    @property
    def sizes(self) -> list[tuple[str, str]]:
        """Where the length of each axis comes from."""
        found: dict[str, str] = {}
        for a in self.kernel.inputs:
            for place, axis in enumerate(a.shape):
                found.setdefault(axis, f"{a.name}.shape[{place}]")
        used = self.used_names()
        return [(axis, text) for axis, text in found.items() if axis in used]

    def used_names(self) -> set[str]:
        """The axes whose length the body needs."""
        named = {ir.BATCH} if any(isinstance(s, Store) for s in self.flat()) else set()
        for s in self.flat():
            named |= {n.axis for n in ir.walk(s.value) if isinstance(n, ir.Size)}
            if isinstance(s, Store):
                named |= {v.axis for v in s.index if isinstance(v, Var)}
        return named | {v.axis for v in self.index_variables()}

    @property
    def real(self) -> str | None:
        """The tensor that gives the type, if the body converts integers."""
        if not any(isinstance(n, Op) and n.name == "real" for s in self.flat() for n in ir.walk(s.value)):
            return None
        return next(a.name for a in self.kernel.inputs if not a.integer)

    @property
    def views(self) -> list[tuple[str, str, str]]:
        return [(v.name, v.load.tensor, v.slices) for v in views(self.kernel, self.slots) if v.slices]

    def index_variables(self) -> list[Var]:
        """The loop variables that appear as values, in comparisons and gathers."""
        found: dict[Var, None] = {}

        def visit(node: Node) -> None:
            if isinstance(node, Var):
                found[node] = None
            if not (isinstance(node, Load) and (node.tensor, node.index) in self.printer.views):
                for child in node.children:
                    visit(child)

        for s in self.flat():
            visit(s.value)
        return list(found)

    @property
    def indices(self) -> list[tuple[str, str, str]]:
        """Index arrays: name, axis, and how each lies along its dimension."""
        return [(self.printer.var(v), v.axis, ", ".join(":" if w is v else "None" for w in self.slots))
                for v in self.index_variables()]

    def flat(self) -> list[ir.Let | Accumulate | Store]:
        """The statements without their loops."""
        return list(ir.values(self.kernel.body))

    @property
    def lines(self) -> list[str]:
        """The lines of the function that compute."""
        return [self.line(s) for s in self.flat()]

    def line(self, s: ir.Let | Accumulate | Store) -> str:
        """One statement."""
        text = self.printer(s.value)
        if isinstance(s, ir.Let):
            return f"{s.name} = {text}"
        if isinstance(s, Accumulate):
            return f"{s.start.name} = stable.{s.start.op}_over({text}, {self.printer.axis_of(s.start.over)})"
        stored = [v for v in s.index if isinstance(v, Var)]
        keep = tuple(self.slots.index(v) for v in stored)
        shape, places = tuple_of([v.axis for v in stored]), tuple_of([str(k) for k in keep])
        if s.adds:
            return f"{s.tensor} = stable.total({text}, {ir.BATCH}, {shape}, {places})"
        return f"{s.tensor} = stable.result({text}, {shape}, {places})"

    @property
    def returns(self) -> str:
        return ", ".join(a.name for a in self.kernel.outputs)


def tuple_of(items: list[str]) -> str:
    """The items as Python writes a tuple."""
    return f"({', '.join(items)}{',' * (len(items) == 1)})"


def describe(argument: Argument) -> str:
    """An argument and its shape, for the docstring."""
    return f"{argument.name} [{', '.join(argument.shape)}]"

"""C99: the loop nest as loops. One text serves float and double; a run of samples is one call, strides in elements."""

from __future__ import annotations

import math
from typing import ClassVar

from .. import ir
from ..errors import TargetError
from ..ir import Accumulate, Argument, Kernel, Let, Load, Loop, Node, Start, Statement, Store, kind_of
from .printer import CALL, Printer, decimal

ARRAYS = False
# Outputs that the usual call, which asks for a reduced loss, does not want. The usual call wants every other output, and its
# strides are the usual ones: the compiler sees it as a function of its own.
SELDOM = ("loss", "rate")
TYPES = {"real": "REAL", "int": "int64_t", "bool": "int"}


class CPrinter(Printer):
    """Spelling of scalar operations; <tgmath.h> and the helpers of losslib_math.h choose by type."""

    calls: ClassVar[dict[str, str]] = {
        **{n: f"{n}({{0}})" for n in ("exp", "log", "log1p", "expm1", "sqrt", "tanh", "sin", "cos", "sinh", "cosh", "atan", "erf",
                                      "sigmoid", "softplus", "inverse_root", "expm1mx", "sign", "binade")},
        **{n: f"{n}({{0}}, {{1}})" for n in ("xlogy", "step", "abs_power", "signed_power", "exp_difference", "larger", "smaller", "pow",
                                               "times_exp", "times_sigmoid")},
        "cross": "cross({0}, {1}, {2}, {3})",
        "abs": "fabs({0})", "where": "{0} ? {1} : {2}", "not": "!{0}", "and": "{0} && {1}", "or": "{0} || {1}",
        "real": "(REAL){0}", "integer": "(int64_t){0}", "remainder": "{0} % {1}",
    }
    levels: ClassVar[dict[str, int]] = {"where": 1, "or": 2, "and": 3, "remainder": 20, "not": 30, "real": 30, "integer": 30}

    def call(self, name: str, args: tuple[Node, ...], outer: int) -> str:
        level = self.levels.get(name)
        if level is None:
            return super().call(name, args, outer)
        return self.wrap(self.calls[name].format(*(self(a, level + 1) for a in args)), level, outer)

    def constant(self, p: int, q: int, outer: int) -> str:
        if q == 0:
            return "INFINITY" if p > 0 else self.wrap("-INFINITY", 15, outer)
        text = decimal(p, q)
        return self.wrap(f"(REAL){p} / {q}", 20, outer) if text is None else self.wrap(f"(REAL){text}", 30, outer)

    def number(self, digits: str) -> str:
        return self.wrap(f"(REAL){digits}L", 30, CALL)

    def load(self, node: Load) -> str:
        return self.element(node.tensor, node.index)

    def element(self, tensor: str, index: tuple[Node, ...]) -> str:
        """An element of an argument: the pointer of its row, if it has axes, at the strides of the axes."""
        argument = self.arguments[tensor]
        if not argument.axes:
            return f"{tensor}[{self(index[0], 20)} * {tensor}_batch]" if argument.per_sample else f"*{tensor}"
        within = index[1:] if argument.per_sample else index
        offset = " + ".join(f"{self(i, 20)} * {tensor}_{axis}" for i, axis in zip(within, argument.axes, strict=True))
        return f"{tensor}{'_row' if argument.per_sample else ''}[{offset}]"


class CText:
    """What the template asks of a kernel."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.p = CPrinter(kernel)

    @property
    def declarations(self) -> list[str]:
        """The names that the body reads, taken from the description of the run."""
        k, out = self.kernel, []
        sizes = [f"{axis} = run->sizes[{n}]" for n, axis in enumerate(k.axes) if axis in self.measured]
        if sizes:
            out.append(f"const int64_t {', '.join(sizes)};")
        for n, argument in enumerate(k.arguments):
            if argument not in self.read:
                continue
            steps = [f"{argument.name}_{axis} = {self.step(n, argument, place)}" for place, axis in enumerate(argument.shape)]
            data = f"dense ? NULL : run->data[{n}]" if argument.name in SELDOM else f"run->data[{n}]"
            out.append(f"{self.pointer(argument)}{argument.name} = {data};")
            if steps:
                out[-1] += f" const int64_t {', '.join(steps)};"
        out += [f"const {'int64_t' if p.integer else 'REAL'} {p.name} = ({'int64_t' if p.integer else 'REAL'})run->params[{n}];"
                for n, p in enumerate(k.params)]
        return out

    @property
    def measured(self) -> set[str]:
        """The axes whose length the body needs."""
        every = list(ir.statements(self.kernel.body))
        nodes = [n for s in every if not isinstance(s, Loop) for n in ir.walk(s.value)]
        return {s.var.axis for s in every if isinstance(s, Loop)} | {n.axis for n in nodes if isinstance(n, ir.Size)}

    @property
    def read(self) -> set[Argument]:
        """The arguments whose elements the body touches."""
        names = {s.tensor for s in ir.statements(self.kernel.body) if isinstance(s, Store)}
        for s in ir.statements(self.kernel.body):
            if not isinstance(s, Loop):
                names |= {n.tensor for n in ir.walk(s.value) if isinstance(n, Load)}
        return {a for a in self.kernel.arguments if a.name in names}

    def step(self, n: int, argument: Argument, place: int) -> str:
        """A stride: the usual one where the entry point found it, so that the compiler sees a contiguous loop."""
        usual = self.usual(argument, argument.shape[place])
        stride = f"run->steps[{n}][{place}]"
        return f"dense ? {usual} : {stride}" if usual else stride

    @staticmethod
    def pointer(a: Argument) -> str:
        if a.role == "total" or (a.role == "output" and not a.per_sample):
            return "accumulator *restrict "
        kind = "int64_t" if a.integer else "REAL"
        return f"{kind} *restrict " if a.role == "output" else f"const {kind} *restrict "

    def usual(self, a: Argument, axis: str) -> str:
        """The stride that makes the innermost loop contiguous: 1, or 0 where all samples share one number."""
        if self.kernel.axes:
            return "1" if a.axes and axis == a.axes[-1] else ""
        return "0" if a.optional or a.role == "scale" else "1"

    @property
    def dense(self) -> str:
        """The condition under which every stride is the usual one."""
        tests = [f"run->steps[{n}][{place}] == {self.usual(a, axis)}" for n, a in enumerate(self.kernel.arguments)
                 for place, axis in enumerate(a.shape) if self.usual(a, axis) and a in self.read and a.name not in SELDOM]
        for n, a in enumerate(self.kernel.arguments):
            if a.role == "output" and a in self.read:
                tests.append(f"run->data[{n}] {'==' if a.name in SELDOM else '!='} NULL")
        return " && ".join(tests) or "1"

    @property
    def body(self) -> list[tuple[int, str]]:
        """The lines of the function: how deep, and what."""
        lines: list[tuple[int, str]] = []
        lines += [(0, f"accumulator {name}_sum = {{0}};") for name in self.totals]
        self.block(self.kernel.body, 0, lines)
        lines += [(0, f"add({name}, &{name}_sum);") for name in self.totals]
        return lines

    def block(self, body: tuple[Statement, ...], depth: int, lines: list[tuple[int, str]]) -> None:
        for s in body:
            if isinstance(s, Loop):
                self.loop(s, depth, lines)
            elif isinstance(s, Let):
                lines.append((depth, f"const {TYPES[kind_of(s.value)]} {s.name} = {self.p(s.value)};"))
            elif isinstance(s, Accumulate):
                lines.append((depth, self.accumulate(s.start, self.p(s.value))))
            else:
                lines.append((depth, self.store(s)))

    def loop(self, s: Loop, depth: int, lines: list[tuple[int, str]]) -> None:
        for start in s.starts:
            opening = "accumulator {0}_sum = {{0}};" if start.op == "sum" else "REAL {0} = -INFINITY;"
            lines.append((depth, opening.format(start.name)))
        i = self.p.var(s.var)
        if s.var is ir.SAMPLE and self.tiled:
            self.tiles(s, i, depth, lines)
            return
        lines.append((depth, f"for (int64_t {i} = 0; {i} < {s.var.axis}; ++{i}) {{"))
        if s.var is ir.SAMPLE:
            lines += [(depth + 1, row) for row in self.rows()]
        self.block(s.body, depth + 1, lines)
        lines.append((depth, "}"))
        lines += [(depth, f"const REAL {t.name} = value_of(&{t.name}_sum);") for t in s.starts if t.op == "sum"]

    @property
    def totals(self) -> list[str]:
        return [a.name for a in self.kernel.arguments if a.role == "total"]

    @property
    def tiled(self) -> bool:
        """Does a loop over samples alone add up totals? Then it goes tile by tile, so that the loop itself adds nothing."""
        return bool(self.totals) and not self.kernel.axes

    def tiles(self, s: Loop, i: str, depth: int, lines: list[tuple[int, str]]) -> None:
        """The loop over samples, a tile at a time: what is added up is kept in an array first."""
        lines += [(depth, "for (int64_t first = 0; first < batch; first += TILE) {"),
                  (depth + 1, "const int64_t end = first + TILE < batch ? first + TILE : batch;")]
        lines += [(depth + 1, f"REAL {name}_tile[TILE];") for name in self.totals]
        lines.append((depth + 1, f"for (int64_t {i} = first; {i} < end; ++{i}) {{"))
        self.block(s.body, depth + 2, lines)
        lines.append((depth + 1, "}"))
        lines += [(depth + 1, f"accumulate_tile(&{name}_sum, {name}_tile, end - first);") for name in self.totals]
        lines.append((depth, "}"))

    def rows(self) -> list[str]:
        """Pointers to the row of each tensor that has axes of its own."""
        n = self.p.var(ir.SAMPLE)
        return [f"{self.pointer(a).replace('restrict ', '')}{a.name}_row = {a.name} + {n} * {a.name}_batch;"
                for a in self.kernel.arguments if a.axes and a.per_sample and a in self.read]

    @staticmethod
    def accumulate(start: Start, text: str) -> str:
        if start.op == "sum":
            return f"accumulate(&{start.name}_sum, {text});"
        return f"{start.name} = larger({start.name}, {text});"

    def store(self, s: Store) -> str:
        argument, text = self.p.arguments[s.tensor], self.p(s.value)
        if argument.role == "total":
            return f"{s.tensor}_tile[{self.p.var(ir.SAMPLE)} - first] = {text};" if self.tiled else f"accumulate(&{s.tensor}_sum, {text});"
        place = self.p.element(s.tensor, s.index)
        if s.adds:
            return f"if (dense || {s.tensor}) accumulate(&{place}, {text});"
        return f"if ({s.tensor if s.tensor in SELDOM else 'dense || ' + s.tensor}) {place} = {text};"

    @property
    def argument_names(self) -> str:
        """The descriptions of the arguments, in order."""
        return ", ".join(f"&{description_of(a)}" for a in self.kernel.arguments)

    @property
    def param_names(self) -> str:
        """The descriptions of the scalars, in order."""
        return ", ".join(f"&{p.name}_param" for p in self.kernel.params) or "NULL"

    @property
    def axis_places(self) -> str:
        """Which of the loss's axes the kernel has."""
        return ", ".join(f'"{axis}"' for axis in self.kernel.axes) or "NULL"

    @property
    def operations(self) -> int:
        return ir.count_operations(self.kernel)


def description_of(a: Argument) -> str:
    """The name of an argument's description: forms of one loss may use a name for an index and for a real tensor."""
    return "_".join([a.name, *(["index"] if a.integer else []), *a.axes, "argument"])


def argument_rows(kernels: list[Kernel]) -> list[str]:
    """The description of every argument of the kernels of one loss, each once."""
    roles = {"input": "LOSSLIB_INPUT", "scale": "LOSSLIB_SCALE", "direction": "LOSSLIB_DIRECTION", "output": "LOSSLIB_OUTPUT",
             "total": "LOSSLIB_TOTAL"}
    found: dict[str, Argument] = {}
    out = []
    for a in (a for k in kernels for a in k.arguments):
        if found.setdefault(description_of(a), a) != a:
            raise TargetError(f"two arguments are called {a.name} and are not the same: {a} and {found[description_of(a)]}",
                              repair="Rename one of them in the definition.")
    for name, a in found.items():
        axes = ", ".join(f'"{x}"' for x in a.axes) or "NULL"
        text = lambda name: f'"{name}"' if name else "NULL"
        out.append(f'{name} = {{"{a.name}", {roles[a.role]}, {int(a.integer)}, {int(a.per_sample)}, {len(a.axes)}, {{{axes}}}, '
                   f'{text(a.into)}, {text(a.ignore)}, {interval(a.domain)}}};')
    return out


def param_rows(kernels: list[Kernel]) -> list[str]:
    """The description of every scalar of the kernels of one loss, each once."""
    found = {p.name: p for k in kernels for p in k.params}
    return [f'{p.name}_param = {{"{p.name}", {interval(p.domain)}}};' for p in found.values()]


def interval(domain: tuple[float, float, bool]) -> str:
    """A domain, as a table writes it."""
    low, high, open_low = domain
    return ", ".join([*(f"{'-' if x < 0 else ''}INFINITY" if math.isinf(x) else repr(x) for x in (low, high)), str(int(open_low))])

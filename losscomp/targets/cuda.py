"""CUDA: the loop nest as a kernel. One text serves every type of storage; samples, or the threads of a row, run side by side.

Without axes a kernel is pointwise: a thread computes a pack of samples. With axes each sample is a row, and a team of threads
shares the loops that stand directly inside that over samples: its lanes take positions in turn, and join what they have
accumulated. Loops inside those loops run in one thread.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar

from .. import ir
from ..errors import TargetError
from ..ir import Accumulate, Argument, Kernel, Let, Load, Loop, Param, Start, Statement, Store, kind_of
from .c import CPrinter, description_of, interval
from .printer import CALL, decimal

THREADS = 256                                    # of a block
TYPES = {"real": "real", "int": "int64_t", "bool": "bool"}
# Kernels that no other kernel serves. What is not here and not served by one of these is not emitted.
EMITTED = ("value_and_grad", "jvp", "hvp", "weight", "value")
# Pointwise kernels that are worth a second version, which handles 16 bytes at a time.
PACKED = ("value_and_grad", "value")


class CudaPrinter(CPrinter):
    """Spelling of scalar operations: CUDA's functions choose by type, those of the math header are told."""

    calls: ClassVar[dict[str, str]] = {
        **CPrinter.calls,
        **{n: f"{n}<real>({{0}})" for n in ("sigmoid", "softplus", "inverse_root", "expm1mx", "sign", "binade")},
        **{n: f"{n}<real>({{0}}, {{1}})" for n in ("xlogy", "step", "abs_power", "signed_power", "exp_difference", "larger", "smaller",
                                                     "times_exp", "times_sigmoid")},
        "cross": "cross<real>({0}, {1}, {2}, {3})", "exp_quotient": "exp_quotient<real>({0}, {1}, {2})",
        "pow": "raised<real>({0}, {1})", "real": "(real){0}",
    }

    def constant(self, p: int, q: int, outer: int) -> str:
        if q == 0:
            return "INFINITY" if p > 0 else self.wrap("-INFINITY", 15, outer)
        text = decimal(p, q)
        return self.wrap(f"(real){p} / {q}", 20, outer) if text is None else self.wrap(f"(real){text}", 30, outer)

    def number(self, digits: str) -> str:
        return self.wrap(f"(real){digits}", 30, CALL)

    def load(self, node: Load) -> str:
        """A number of the sample has the name of its argument; a row is asked for a position."""
        argument = self.arguments[node.tensor]
        if not argument.axes:
            return node.tensor
        text = f"{node.tensor}({', '.join(self(i) for i in node.index[argument.per_sample:])})"
        return checked(argument, text, self.kernel) if argument.integer else text


class CudaText:
    """What the template asks of a kernel. `loops` are those that a team shares, `joined` the reductions in them."""

    printer: ClassVar[type[CudaPrinter]] = CudaPrinter
    real: ClassVar[str] = "arithmetic<Storage>"      # what is computed in
    row: ClassVar[str] = "{0}"                       # what reads rows of reals

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.p = self.printer(kernel)
        self.every = list(ir.statements(kernel.body))
        stored = [i for s in ir.values(kernel.body) if isinstance(s, Store) for i in s.index]
        parts = [*(s.value for s in ir.values(kernel.body)), *stored, *(e.size for e in kernel.extents)]
        self.nodes = [n for part in parts for n in ir.walk(part)]
        self.place = {a.name: k for k, a in enumerate(kernel.arguments)}
        self.totals = [a.name for a in kernel.outputs if a.role == "total"]
        self.shared = [a for a in kernel.outputs if a.role == "output" and not a.per_sample]
        self.pointwise = not kernel.axes and not self.shared
        self.loops = list(team_loops(kernel.body))
        self.joined = {start for s in self.loops for start in s.starts}                    # by the threads of a team
        self.text: list[tuple[int, str]] = []

    @property
    def lines(self) -> list[tuple[int, str]]:
        """The lines of the function: how deep, and what."""
        self.text = []
        for axis in sorted(self.measured, key=self.kernel.axes.index):
            self.say(0, f"const int64_t {axis} = run.about.sizes[{self.kernel.axes.index(axis)}];")
        for k, p in enumerate(self.kernel.params):
            if self.uses(p):
                kind = "int64_t" if p.integer else "real"
                self.say(0, f"const {kind} {p.name} = ({kind})run.about.params[{k}];")
        if not self.pointwise:
            self.say(0, "team_of_threads team(run.about.team);")
        for a in self.kernel.inputs:
            if not a.per_sample and self.matters(a):
                self.input(a, f"run, {self.place[a.name]}, 0", 0)
        begin: list[str] = []
        for a in self.shared:
            place = [str(self.place[a.name]), " + ".join(begin) or "0", "team", *four(a.axes)]
            self.say(0, f"const shared_cells<real> {a.name}(run, {', '.join(place)});")
            begin.append(" * ".join(a.axes) or "1")
        self.say(0, "")
        for name in self.totals:
            self.say(0, f"accumulator<real> {name}_sum;")
        self.block(self.kernel.body, 0)
        for slot, name in enumerate(self.totals):
            self.say(0, f"close_total(run, {self.place[name]}, {slot}, {name}_sum);")
        if any(re.search(r"\breal\b", line) for _, line in self.text):
            self.text.insert(0, (0, f"using real = {self.real};"))
        return self.text

    def say(self, depth: int, line: str) -> None:
        self.text.append((depth, line))

    # What the body touches

    @property
    def read(self) -> set[str]:
        """The tensors whose elements the body reads."""
        return {n.tensor for n in self.nodes if isinstance(n, Load)}

    @property
    def measured(self) -> set[str]:
        """The axes whose length the text needs."""
        loops = {s.var.axis for s in self.every if isinstance(s, Loop)}
        sizes = {n.axis for n in self.nodes if isinstance(n, ir.Size)}
        checks = {x for a in self.kernel.inputs if self.checks(a) for x in self.bounds(a) if x}
        return (loops | sizes | checks | {axis for a in self.shared for axis in a.axes}) & set(self.kernel.axes)

    def bounds(self, a: Argument) -> tuple[str | None, ...]:
        """The axes whose length the check of an input needs."""
        return a.axes if a.axes and not a.integer else (a.into,)

    def uses(self, p: Param) -> bool:
        """Does the text need a scalar?"""
        return p in self.nodes or any(a.integer and a.ignore == p.name for a in self.kernel.inputs)

    def checks(self, a: Argument) -> bool:
        """Are there numbers that an input may not have?"""
        return a.role == "input" and (a.into is not None if a.integer else bounded(a))

    def matters(self, a: Argument) -> bool:
        return a.name in self.read or (self.checks(a) and not (a.integer and a.axes))

    @property
    def kind(self) -> str:
        """The macro that lists the versions of the kernel."""
        return "ROWS" if not self.pointwise else "PACKED" if self.kernel.name.removesuffix("_all") in PACKED else "SINGLE"

    @property
    def looped(self) -> int:
        """A bit for each axis that a team shares."""
        return sum(1 << self.kernel.axes.index(axis) for axis in {s.var.axis for s in self.loops})

    # Arguments

    def input(self, a: Argument, at: str, depth: int) -> None:
        """An input, of a sample or of all: a number, or a row that is asked for positions."""
        if a.axes:
            self.say(depth, f"const {self.row_of(a)} {a.name}({at}{otherwise(a)});")
        elif otherwise(a):
            self.say(depth, f"const real {a.name} = number_at<Storage>({at}{otherwise(a)});")
        elif a.integer:
            text = self.checked(a, f"input_row<int64_t>({at})()")
            self.say(depth, f"const int64_t {a.name} = {text};" if a.name in self.read else f"{text};")
        else:
            self.say(depth, f"const real {a.name} = input_row<Storage>({at})();")
        if self.checks(a):
            self.check(a, depth)

    def row_of(self, a: Argument) -> str:
        """The type of the elements of one sample."""
        return "input_row<int64_t>" if a.integer else self.row.format(f"{'optional' if otherwise(a) else 'input'}_row<Storage>")

    @property
    def order(self) -> Sequence[Argument]:
        """The inputs in an order in which they can be read."""
        return self.kernel.inputs

    def checked(self, a: Argument, text: str) -> str:
        return checked(a, text, self.kernel)

    def rows(self, depth: int) -> None:
        """The numbers and the rows of a sample."""
        for a in self.order:
            if a.per_sample and self.matters(a):
                k = self.place[a.name]
                self.input(a, f"run, {k}, here.of[{k}]", depth)
        for a in self.kernel.outputs:
            if a.role == "output" and a.per_sample:
                self.output(a, depth)

    def output(self, a: Argument, depth: int) -> None:
        """The row of a sample's output."""
        k = self.place[a.name]
        self.say(depth, f"const output_row<Storage> {a.name}(run, {k}, here.of[{k}]);")

    def check(self, a: Argument, depth: int) -> None:
        """Refuse what an input may not have; an index is checked where it is read."""
        if a.integer:
            return
        names = [self.p.var(ir.Var(axis)) for axis in a.axes]
        for k, (name, axis) in enumerate(zip(names, a.axes, strict=True)):
            first, by = ("0", "1") if k else ("team.lane", "team.size")
            self.say(depth + k, f"for (int64_t {name} = {first}; {name} < {axis}; {name} += {by})")
        value = f"{a.name}({', '.join(names)})" if names else a.name
        self.say(depth + len(names), self.check_of(a, value))

    @staticmethod
    def check_of(a: Argument, value: str) -> str:
        low, high, open_low = a.domain
        return f"check_value<real>({value}, {bound(low)}, {bound(high)}, {'true' if open_low else 'false'}, \"{a.name}\");"

    # The body

    def block(self, body: Iterable[Statement], depth: int, shared: bool = True) -> None:
        """`shared`: all threads of a team are here; inside the loops that they share each is alone."""
        for s in body:
            if isinstance(s, Loop):
                if s.var is ir.SAMPLE:
                    self.samples(s, depth)
                else:
                    self.loop(s, depth, shared)
            elif isinstance(s, Let):
                self.say(depth, f"const {TYPES[kind_of(s.value)]} {s.name} = {self.p(s.value)};")
            elif isinstance(s, Accumulate):
                self.say(depth, self.accumulate(s.start, self.p(s.value)))
            elif isinstance(s, Store):
                self.say(depth, self.store(s, shared))
            else:
                raise TargetError(f"CUDA has no loop nest for {type(s).__name__} in the kernel {self.kernel.name}")

    def samples(self, s: Loop, depth: int) -> None:
        count = len(self.kernel.arguments)
        if not self.pointwise:
            n = self.p.var(s.var)
            self.say(depth, f"for (int64_t {n} = team.first; {n} < run.about.samples; {n} += team.count) {{")
            self.say(depth + 1, f"const sample_place<{count}> here(run, {n});")
            self.rows(depth + 1)
            self.say(depth + 1, "")
            self.block(s.body, depth + 1)
            self.say(depth, "}")
            return
        inputs = [a for a in self.kernel.inputs if a.per_sample and self.matters(a)]
        outputs = [a for a in self.kernel.outputs if a.role == "output"]
        self.say(depth, "const int64_t start = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * WIDTH;")
        self.say(depth, "const int64_t stride = (int64_t)gridDim.x * THREADS * WIDTH;")
        self.say(depth, "for (int64_t first = start; first < run.about.samples; first += stride) {")
        self.say(depth + 1, f"const samples_at<{count}, WIDTH> here(run, first);")
        for a in inputs:
            self.say(depth + 1, f"const sample_pack<Storage, WIDTH> {a.name}_pack(run, {self.place[a.name]}, here{otherwise(a)});")
        if outputs:
            self.say(depth + 1, f"sample_pack<Storage, WIDTH> {', '.join(a.name + '_pack' for a in outputs)};")
        self.say(-1, "#pragma unroll")
        self.say(depth + 1, "for (int nth = 0; nth < WIDTH; ++nth) {")
        if inputs:
            self.say(depth + 2, f"const real {', '.join(f'{a.name} = {a.name}_pack.at[nth]' for a in inputs)};")
        for a in inputs:
            if self.checks(a):
                self.check(a, depth + 2)
        self.block(s.body, depth + 2)
        self.say(depth + 1, "}")
        for a in outputs:
            self.say(depth + 1, f"{a.name}_pack.store(run, {self.place[a.name]}, here);")
        self.say(depth, "}")

    def loop(self, s: Loop, depth: int, shared: bool) -> None:
        """A loop over an axis: its positions are shared by the team, or all for one thread. What it accumulates is joined."""
        i = self.p.var(s.var)
        for start in s.starts:
            opening = "accumulator<real> {0}_sum;" if start.op == "sum" else "real {0} = -INFINITY;"
            name = start.name if start.op == "sum" or not shared else f"{start.name}_here"
            self.say(depth, opening.format(name))
        first, by = ("team.lane", f"{i} += team.size") if shared else ("0", f"++{i}")
        wanted = "" if s.starts else self.wanted(s.body)
        condition = f"if ({wanted}) " if wanted and shared else ""
        self.say(depth, f"{condition}for (int64_t {i} = {first}; {i} < {s.var.axis}; {by}) {{")
        self.block(s.body, depth + 1, False)
        self.say(depth, "}")
        for start in s.starts:
            if start.op == "sum":
                text = f"team.total({start.name}_sum)" if shared else f"{start.name}_sum.value()"
                self.say(depth, f"const real {start.name} = {text};")
            elif shared:
                self.say(depth, f"const real {start.name} = team.largest({start.name}_here);")

    def wanted(self, body: tuple[Statement, ...]) -> str:
        """When a loop has anything to store."""
        return " || ".join(f"{name}.wanted" for name in dict.fromkeys(t.tensor for t in ir.statements(body) if isinstance(t, Store)))

    def accumulate(self, start: Start, text: str) -> str:
        if start.op == "sum":
            return f"{start.name}_sum.add({text});"
        name = f"{start.name}_here" if start in self.joined else start.name
        return f"{name} = larger<real>({name}, {text});"

    def store(self, s: Store, shared: bool) -> str:
        argument, text = self.p.arguments[s.tensor], self.p(s.value)
        if self.pointwise:
            return f"{s.tensor}_sum.add(here.has(nth) ? {text} : 0);" if argument.role == "total" else f"{s.tensor}_pack.at[nth] = {text};"
        lead = "if (team.leads) " if shared else ""
        if argument.role == "total":
            return f"{lead}{s.tensor}_sum.add({text});"
        index = [self.p(i) for i in s.index[argument.per_sample:]]
        return f"{lead}{s.tensor}.{'put' if argument.per_sample else 'add'}({', '.join([text, *index])});"

    # What the driver is told

    @property
    def argument_names(self) -> str:
        return ", ".join(f"&{description_of(a)}" for a in self.kernel.arguments)

    @property
    def param_names(self) -> str:
        return ", ".join(f"&{p.name}_param" for p in self.kernel.params) or "NULL"

    @property
    def axis_places(self) -> str:
        return ", ".join(f'"{axis}"' for axis in self.kernel.axes) or "NULL"

    @property
    def operations(self) -> int:
        return ir.count_operations(self.kernel)


def team_loops(body: Iterable[Statement]) -> Iterator[Loop]:
    """The loops whose positions a team shares: the outermost inside those that all its threads go through."""
    for s in body:
        if isinstance(s, Loop):
            yield from team_loops(s.body) if s.var is ir.SAMPLE or s.serial else (s,)


def four(axes: Sequence[str]) -> list[str]:
    """The lengths of axes, and 1 for those that there could be."""
    return [*axes, *["1"] * (ir.MOST_AXES - len(axes))]


def checked(a: Argument, text: str, kernel: Kernel) -> str:
    """An index that is not used before it is known to be one."""
    ignore = f"{a.ignore}, " if a.ignore else ""
    return f"check_index({text}, {a.into}, {ignore}\"{a.name}\")" if a.into else text


def bounded(a: Argument) -> bool:
    """Has an input a domain that is not everything?"""
    return a.domain != Argument("").domain


def bound(x: float) -> str:
    """A bound of a domain."""
    return repr(x) if abs(x) != float("inf") else f"{'-' if x < 0 else ''}INFINITY"


def otherwise(a: Argument) -> str:
    """The further arguments of what reads an input that need not be given: what it is then, and for a scale how it is stored."""
    if a.role == "scale":
        return f", (real){int(a.name == 'scale')}, run.about.wide_scale"
    default = 0.0 if a.role == "direction" else a.default
    return "" if default is None else f", (real){default!r}"


def serves(kernel: Kernel, asked: Kernel) -> bool:
    """Does a kernel compute all that another does, from what that is given?"""
    given = set(asked.inputs) | {a for a in kernel.inputs if a.role == "scale"}
    return (set(asked.outputs) <= set(kernel.outputs) and set(kernel.inputs) <= given
            and set(kernel.params) <= set(asked.params) and set(kernel.axes) <= set(asked.axes))


def spares(kernel: Kernel, asked: Kernel) -> bool:
    """Is there much that a kernel computes for nothing? Sweeps back through tables are no loops that a NULL skips."""
    return bool(kernel.tables) and not asked.name.startswith("value_and_grad")


def serving(kernels: list[Kernel]) -> list[tuple[Kernel, Kernel]]:
    """Each kernel that callers may ask for, and the one that does it: the most able of its kind, so that few are emitted."""
    kinds = [k for k in kernels if k.name.removesuffix("_all") in EMITTED]
    found = []
    for asked in kinds:
        able = [k for k in kinds if k.name.startswith("value_and_grad") and serves(k, asked) and not spares(k, asked)] or [asked]
        found.append((asked, max(able, key=lambda k: len(k.outputs))))
    return found


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
                   f'{text(a.into)}, {text(a.ignore)}, {interval(a.domain)}, {int(a.optional)}, {text(a.length)}}};')
    return out


def param_rows(kernels: list[Kernel]) -> list[str]:
    """The description of every scalar of the kernels of one loss, each once."""
    found = {p.name: p for k in kernels for p in k.params}
    into = {p.name: f'"{p.into}"' if p.into else "NULL" for p in found.values()}
    return [f'{p.name}_param = {{"{p.name}", {interval(p.domain)}, {into[p.name]}}};' for p in found.values()]

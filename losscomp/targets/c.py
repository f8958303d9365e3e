"""C99: the loop nest as loops. One text serves float and double; a run of samples is one call, strides in elements."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

from .. import ir
from ..errors import TargetError
from ..ir import Accumulate, Argument, Family, Kernel, Let, Load, Loop, Member, Node, Statement, Store, Wanted, kind_of
from ..keep import refined
from .printer import CALL, Printer, decimal

ARRAYS = False
# Outputs that the usual call, which asks for a reduced loss, does not want. The usual call wants every other output, and its
# strides are the usual ones: the compiler sees it as a function of its own.
SELDOM = ("loss", "rate")
# Kernels that are worth a function of their own for the usual call: in rows, which are long anyway, and where there are none.
USUAL = {True: ("value", "value_and_grad"),
         False: ("value", "value_and_grad", "value_and_grad_all", "hvp", "hessian_diag")}
# The functions of losslib_vector.h: what emitted code calls them, what they are called there, and their arguments.
ELEMENTARY = (
    *((name, f"vector_{name}", "x") for name in ("exp", "expm1", "log", "log1p", "tanh")),
    *((name, name, "x") for name in ("sigmoid", "softplus", "expm1mx")),
    ("exp_difference", "exp_difference", "a, b"), ("exp_below", "exp_below", "a, most"), ("exp_quotient", "exp_quotient", "a, b, unit"),
    ("times_exp", "times_exp", "factor, x"), ("times_sigmoid", "times_sigmoid", "factor, x"),
)
# What GCC takes after -O3: of its passes those that these loops gain from, as fast in two thirds of the time.
GCC_FLAGS = ("-O2", "-ftree-vectorize", "-fvect-cost-model=dynamic", "-funswitch-loops", "-fsplit-loops", "-fversion-loops-for-strides",
             "-fno-gcse", "-fira-region=one")
WIDTH = 136
TYPES = {"real": "REAL", "int": "int64_t", "bool": "int"}


class CPrinter(Printer):
    """Spelling of scalar operations; <tgmath.h> and the helpers of losslib_math.h choose by type."""

    calls: ClassVar[dict[str, str]] = {
        **{n: f"{n}({{0}})" for n in ("exp", "log", "log1p", "expm1", "sqrt", "tanh", "sin", "cos", "sinh", "cosh", "atan", "erf",
                                      "sigmoid", "softplus", "inverse_root", "expm1mx", "sign", "binade")},
        **{n: f"{n}({{0}}, {{1}})" for n in ("xlogy", "step", "abs_power", "signed_power", "exp_difference", "exp_below", "larger",
                                               "smaller", "pow", "times_exp", "times_sigmoid")},
        "cross": "cross({0}, {1}, {2}, {3})", "exp_quotient": "exp_quotient({0}, {1}, {2})",
        "abs": "fabs({0})", "where": "{0} ? {1} : {2}", "not": "!{0}", "and": "{0} && {1}", "or": "{0} || {1}",
        "real": "(REAL){0}", "integer": "(int64_t){0}", "remainder": "{0} % {1}", "floor_divide": "{0} / {1}",
        "inside": "inside({0}, {1})",
    }
    levels: ClassVar[dict[str, int]] = {"where": 1, "or": 2, "and": 3, "remainder": 20, "floor_divide": 20, "not": 30, "real": 30,
                                        "integer": 30}

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel)
        self.derived = kernel.derived

    def call(self, name: str, args: tuple[Node, ...], outer: int) -> str:
        level = self.levels.get(name)
        if level is None:
            return super().call(name, args, outer)
        first = level if name in ("and", "or") else level + 1                # a && b && c as it is
        return self.wrap(self.calls[name].format(*(self(a, level + 1 if k else first) for k, a in enumerate(args))), level, outer)

    def constant(self, p: int, q: int, outer: int) -> str:
        if q == 0:
            return "INFINITY" if p > 0 else self.wrap("-INFINITY", 15, outer)
        text = decimal(p, q)
        return self.wrap(f"(REAL){p} / {q}", 20, outer) if text is None else self.wrap(f"(REAL){text}", 30, outer)

    def number(self, digits: str) -> str:
        return self.wrap(f"(REAL){digits}L", 30, CALL)

    def load(self, node: Load) -> str:
        return self.element(node.tensor, node.index)

    def wanted(self, node: Wanted) -> str:
        return self.derived[node.tensor, "wanted"]

    def element(self, tensor: str, index: tuple[Node, ...]) -> str:
        """An element of an argument: the pointer of its row, if it has axes, at the strides of the axes."""
        argument = self.arguments[tensor]
        within = index[1:] if argument.per_sample and argument.axes else index
        axes = argument.axes or argument.shape
        strides = [self.derived[tensor, stride] for stride in ir.strides_of(axes)]
        offset = " + ".join(f"{self(i, 20)} * {stride}" for i, stride in zip(within, strides, strict=True))
        start = self.derived[tensor, "row"] if argument.axes and argument.per_sample else tensor
        return f"{start}[{offset}]" if offset else f"*{tensor}"


class CText:
    """What the template asks of a kernel."""

    printer: ClassVar[type[CPrinter]] = CPrinter
    stored = "REAL"                              # the type of the numbers in arrays

    def __init__(self, kernel: Kernel, members: Sequence[Member]) -> None:
        self.kernel, self.members = kernel, members
        self.common = [a for a in kernel.inputs if all(a in m.signature.inputs for m in members)]
        self.asked = [{a.name for a in m.signature.outputs} for m in members]
        self.serves = served(kernel.body)
        self.p = self.printer(kernel)
        self.kept: dict[str, str] = {}                                   # where a tile keeps what is added up, while a loop is written

    def derived(self, name: str, what: str) -> str:
        """What goes with an argument: its row, its sum, a stride."""
        return self.p.derived[name, what]

    @property
    def parameters(self) -> str:
        """The parameters of the function: the run, and what is settled where a member of the family is compiled."""
        flags = "".join(f", const int {flag}" for flag in self.kernel.flags)
        return f"const int64_t batch, const losslib_run *run, const int dense, const uint64_t wanted{flags}"

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
            data = f"WANTS({n}) ? run->data[{n}] : NULL" if argument.role == "total" else f"run->data[{n}]"
            steps = [f"{self.derived(argument.name, stride)} = {self.step(n, argument, place)}"
                     for place, stride in enumerate(ir.strides_of(argument.shape))]
            out.append(f"{self.pointer(argument)}{argument.name} = {data};")
            if steps:
                out[-1] += f" const int64_t {', '.join(steps)};"
            if argument.role == "output":
                out[-1] += f" const int {self.derived(argument.name, 'wanted')} = {self.asked_at(n, argument)};"
        out += [f"const {'int64_t' if p.integer else 'REAL'} {p.name} = ({'int64_t' if p.integer else 'REAL'})run->params[{n}];"
                for n, p in enumerate(k.params)]
        return out

    def asked_at(self, n: int, argument: Argument) -> str:
        """Is an output wanted? Where a sample is a row its loss is stored behind the loops: to ask there costs nothing."""
        if argument.name not in SELDOM:
            return f"WANTS({n})"
        return f"WANTS({n}) && {argument.name} != NULL" if self.kernel.axes else f"!dense && WANTS({n})"

    @property
    def measured(self) -> set[str]:
        """The axes whose length the body needs."""
        nodes = [n for s in ir.values(self.kernel.body) for n in ir.walk(s.value)]
        loops = {s.var.axis for s in ir.statements(self.kernel.body) if isinstance(s, Loop)}
        return loops | {n.axis for n in nodes if isinstance(n, ir.Size)}

    @property
    def read(self) -> set[Argument]:
        """The arguments whose elements the body touches."""
        names = {s.tensor for s in ir.statements(self.kernel.body) if isinstance(s, Store)}
        names |= {n.tensor for s in ir.values(self.kernel.body) for n in ir.walk(s.value) if isinstance(n, Load)}
        return {a for a in self.kernel.arguments if a.name in names}

    def step(self, n: int, argument: Argument, place: int) -> str:
        """A stride: the usual one where the entry point found it, so that the compiler sees a contiguous loop."""
        usual = self.usual(argument, place)
        stride = f"run->steps[{n}][{place}]"
        known = "dense" if argument in self.common or argument.role == "output" or usual == "0" else f"dense && WANTS({n})"
        return f"{known} ? {usual} : {stride}" if usual else stride

    @classmethod
    def pointer(cls, a: Argument) -> str:
        if a.role == "total" or (a.role == "output" and not a.per_sample):
            return "accumulator *restrict "
        kind = "int64_t" if a.integer else cls.stored
        return f"{kind} *restrict " if a.role == "output" else f"const {kind} *restrict "

    def usual(self, a: Argument, place: int) -> str:
        """The stride that makes the innermost loop contiguous: 1, or 0 for one number that all share. The driver knows it too."""
        if self.kernel.axes:
            return str(int(not a.optional)) if a.axes and place == len(a.shape) - 1 else ""
        return "0" if a.optional or a.role == "scale" else "1"

    @property
    def body(self) -> list[tuple[int, str]]:
        """The lines of the function: how deep, and what."""
        lines: list[tuple[int, str]] = []
        lines += declared(0, "accumulator", [f"{self.derived(name, 'sum')} = {{0}}" for name in self.totals])
        self.block(self.kernel.body, 0, lines)
        lines += [(0, f"if ({name}) add({name}, &{self.derived(name, 'sum')});") for name in self.totals]
        return lines

    @property
    def usually(self) -> bool:
        """Has one of the kernels a function of its own for the usual call?"""
        return any(m.formula in USUAL[bool(self.kernel.axes)] for m in self.members)

    def block(self, body: tuple[Statement, ...], depth: int, lines: list[tuple[int, str]]) -> None:
        for s in body:
            if isinstance(s, Loop):
                self.loop(s, depth, lines)
            elif isinstance(s, Let):
                lines.append((depth, f"const {TYPES[kind_of(s.value)]} {s.name} = {self.p(s.value)};"))
            elif isinstance(s, Accumulate):
                lines.append((depth, self.accumulate(s.start.name, s.start.op, self.p(s.value))))
            elif isinstance(s, Store):
                lines.append((depth, self.store(s)))
            else:
                raise TargetError(f"C has no loop nest for {type(s).__name__} in the kernel {self.kernel.name}")

    def loop(self, s: Loop, depth: int, lines: list[tuple[int, str]]) -> None:
        sums = [t.name for t in s.starts if t.op == "sum"]
        lines += declared(depth, "accumulator", [f"{name}_sum = {{0}}" for name in sums])
        lines += declared(depth, "REAL", [f"{t.name} = -INFINITY" for t in s.starts if t.op != "sum"])
        guard = self.guard(s)
        if tiled := self.tiled(s):
            self.tiles(s, tiled, depth, lines, guard)
        else:
            i = self.p.var(s.var)
            lines += [(depth, guard.strip())] * bool(guard)
            lines += [(depth, "INDEPENDENT")] * self.independent(s)
            lines.append((depth, f"for (int64_t {i} = 0; {i} < {s.var.axis}; ++{i}) {{"))
            if s.var is ir.SAMPLE:
                lines += [(depth + 1, row) for row in self.rows()]
            self.block(s.body, depth + 1, lines)
            lines.append((depth, "}"))
        lines += declared(depth, "const REAL", [f"{name} = value_of(&{name}_sum)" for name in sums])

    @property
    def totals(self) -> list[str]:
        return [a.name for a in self.kernel.arguments if a.role == "total"]

    def tiled(self, s: Loop) -> list[str]:
        """What a loop goes tile by tile for, so that it adds nothing itself: sums and largest values of a loop without loops inside."""
        if any(isinstance(inner, Loop) for inner in s.body):
            return []
        added = [u.tensor for u in s.body if isinstance(u, Store) and u.tensor in self.totals]
        reduced = [u.start.name for u in s.body if isinstance(u, Accumulate)]
        return added + reduced if {t.name for t in s.starts} == set(reduced) else []

    def independent(self, s: Loop) -> bool:
        """Does no pass of a loop read or add to what another writes? What it adds up, tiles keep."""
        plain = not any(isinstance(u, Loop) for u in s.body) and (bool(self.tiled(s)) or not any(isinstance(u, Accumulate) for u in s.body))
        return plain and all(s.var in u.index for u in s.body if isinstance(u, Store) and u.tensor not in self.totals)

    def tiles(self, s: Loop, tiled: list[str], depth: int, lines: list[tuple[int, str]], guard: str) -> None:
        """A loop, a tile at a time: what is added up is kept in an array first."""
        i, largest = self.p.var(s.var), {t.name for t in s.starts if t.op != "sum"}
        lines += [(depth, f"{guard}FOR_TILES(first, end, {s.var.axis}) {{"),
                  *declared(depth + 1, "REAL", [f"{self.tile(name)}[TILE]" for name in tiled]),
                  *((depth + 1, f"PREFETCH({a.name} + end, {s.var.axis} - end);") for a in self.streamed(s)),
                  *[(depth + 1, "INDEPENDENT")] * self.independent(s),
                  (depth + 1, f"for (int64_t {i} = first; {i} < end; ++{i}) {{")]
        lines += [(depth + 2, row) for row in (self.rows() if s.var is ir.SAMPLE else [])]
        given = {u.start.name: self.row(u.value, s) for u in s.body if isinstance(u, Accumulate)}
        self.kept = {name: f"{self.tile(name)}[{i} - first]" for name in tiled}
        self.block(s.body, depth + 2, lines)
        self.kept = {}
        lines.append((depth + 1, "}"))
        for name in tiled:
            done = f"{name} = larger_tile({name}, " if name in largest else f"accumulate_tile(&{self.sum(name)}, "
            tile = f"{whole[0]} == 1 ? {whole[1]} : {self.tile(name)}" if (whole := given.get(name)) else self.tile(name)
            lines.append((depth + 1, f"{done}{tile}, end - first);"))
        lines.append((depth, "}"))

    def guard(self, s: Loop) -> str:
        """The condition on a loop that one of the kernels needs nothing of: compilers do not leave out all that is in vain."""
        serves = self.serves.get(s, set())
        if self.kernel.tables or not serves or all(serves & asked for asked in self.asked):
            return ""
        return f"if ({' || '.join(self.wanted(a) for a in self.kernel.outputs if a.name in serves)}) "

    def wanted(self, a: Argument) -> str:
        """What is true where a result is wanted."""
        return a.name if a.role == "total" else self.derived(a.name, "wanted")

    def row(self, value: Node, s: Loop) -> tuple[str, str] | None:
        """The stride, and the part of the row that a tile would be a copy of."""
        if not isinstance(value, Load) or value.is_gather or value.integer or value.index[-1] is not s.var:
            return None
        a = self.p.arguments.get(value.tensor)
        if a is None or a.axes != (s.var.axis,):
            return None
        return self.derived(a.name, ir.strides_of(a.axes)[0]), f"{self.derived(a.name, 'row') if a.per_sample else a.name} + first"

    def tile(self, name: str) -> str:
        """The array of what a tile gives a sum or a largest value."""
        return self.derived(name, "tile") if name in self.p.arguments else f"{name}_tile"

    def sum(self, name: str) -> str:
        """The accumulator of a total or of a reduction."""
        return self.derived(name, "sum") if name in self.p.arguments else f"{name}_sum"

    def streamed(self, s: Loop) -> list[Argument]:
        """The inputs that a loop over samples reads one number after the other."""
        inputs = [a for a in self.common if self.usually and s.var is ir.SAMPLE and not self.kernel.axes]
        return [a for a in inputs if a in self.read and self.usual(a, 0) == "1"]

    def rows(self) -> list[str]:
        """Pointers to the row of each tensor that has axes of its own."""
        n = self.p.var(ir.SAMPLE)
        return [f"{self.pointer(a).replace('restrict ', '')}{self.derived(a.name, 'row')} = "
                f"{a.name} + {n} * {self.derived(a.name, f'stride {ir.BATCH}')};"
                for a in self.kernel.arguments if a.axes and a.per_sample and a in self.read]

    def accumulate(self, name: str, op: str, text: str) -> str:
        """Add to a sum, or to a largest value: at once, or where the tile keeps it."""
        if name in self.kept:
            return f"{self.kept[name]} = {text};"
        return f"accumulate(&{self.sum(name)}, {text});" if op == "sum" else f"{name} = larger({name}, {text});"

    def store(self, s: Store) -> str:
        argument, text = self.p.arguments[s.tensor], self.p(s.value)
        if argument.role == "total":
            return self.accumulate(s.tensor, "sum", text)
        place = self.p.element(s.tensor, s.index)
        done = f"accumulate(&{place}, {text});" if s.adds else f"{place} = {text};"
        return f"if ({self.when(s)}) {done}"

    def when(self, s: Store) -> str:
        """The condition of a store."""
        wanted = self.derived(s.tensor, "wanted")
        return wanted if s.when is None else f"{wanted} && {self.p(s.when, self.p.levels['and'])}"


def served(body: tuple[Statement, ...]) -> dict[Loop, set[str]]:
    """The results that each loop of a kernel computes, or computes something for."""
    users: dict[str, set[str]] = {}                                      # of a name: other names, and results
    for s in ir.values(body):
        into = s.tensor if isinstance(s, Store) else s.start.name if isinstance(s, Accumulate) else s.name
        for n in (n for part in (s.value, *(s.index if isinstance(s, Store) else ())) for n in ir.walk(part)):
            if isinstance(n, ir.Ref):
                users.setdefault(n.name, set()).add(into)

    def results(name: str, seen: set[str]) -> set[str]:
        if name not in seen:
            seen.add(name)
            for user in users.get(name, ()):
                results(user, seen)
        return seen

    stored = {s.tensor for s in ir.values(body) if isinstance(s, Store)}
    found = {}
    for loop in (s for s in ir.statements(body) if isinstance(s, Loop)):
        seen: set[str] = set()
        for s in ir.values(loop.body):
            results(s.tensor if isinstance(s, Store) else s.start.name if isinstance(s, Accumulate) else s.name, seen)
        found[loop] = seen & stored
    return found


class FamilyText:
    """What the template asks of a family: the text of its kernel, and the tables of its members."""

    def __init__(self, family: Family, text: type[CText] = CText) -> None:
        self.family, self.kernel = family, family.kernel if family.kernel.tables else refined(family.kernel, family.members)
        self.text = text(self.kernel, family.members)
        self.scaled = text(family.scaled, family.members) if family.scaled else None

    @property
    def scratch(self) -> str:
        """The function that says how much memory a sample needs."""
        return f"{self.family.name}_cells" if self.kernel.tables else "NULL"

    @property
    def arguments(self) -> list[str]:
        """The descriptions of the arguments, in order."""
        return [f"&{description_of(a)}" for a in self.kernel.arguments]

    @property
    def params(self) -> list[str]:
        """The descriptions of the scalars, in order."""
        return [f"&{p.name}_param" for p in self.kernel.params]

    @property
    def axes(self) -> list[str]:
        """The axes, in order."""
        return [f'"{axis}"' for axis in self.kernel.axes]

    @property
    def members(self) -> list[str]:
        """A row for each kernel: its name, the function, which of the arguments, scalars and axes it has, the flags."""
        k = self.kernel
        return [f"{self.kind(m)}({m.name}, {self.family.name}, {bits(k.arguments, m.signature.inputs + m.signature.outputs)}, "
                f"{bits(k.params, m.signature.params)}, {bits(k.axes, m.signature.axes)}, {self.settled(m)})"
                for m in self.family.members]

    def kind(self, member: Member) -> str:
        """Has the kernel a function of its own for the usual call?"""
        return "SCALED" if self.scaled else "KERNEL" if member.formula in USUAL[bool(self.kernel.axes)] else "STRIDED"

    @staticmethod
    def settled(member: Member) -> str:
        return f"WITH({', '.join(str(int(holds)) for holds in member.flags)})" if member.flags else ""


def declared(depth: int, kind: str, names: Sequence[str]) -> list[tuple[int, str]]:
    """Declarations of one type, as many to a line as it has room for; and how deep they stand."""
    lines: list[str] = []
    for name in names:
        if not lines or 4 * (depth + 1) + len(lines[-1]) + len(name) + 3 > WIDTH:
            lines.append(f"{kind} {name}")
        else:
            lines[-1] += f", {name}"
    return [(depth, f"{line};") for line in lines]


def braced(items: Sequence[str], column: int) -> str:
    """A list in braces that begins at a column, over as many lines as it needs."""
    lines = [""]
    for item in items or ["NULL"]:
        if lines[-1] and len(lines[-1]) + len(item) + column > WIDTH:
            lines.append("")
        lines[-1] += f"{item}, "
    return "{" + f"\n{' ' * (column + 1)}".join(line.rstrip() for line in lines).removesuffix(",") + "}"


def bits(every: Sequence[Any], some: Sequence[Any]) -> str:
    """Which ones: a bit each, the first lowest."""
    return f"{sum(1 << k for k, x in enumerate(every) if x in some):#x}"


def description_of(a: Argument) -> str:
    """The name of an argument's description: forms of one loss may use a name for an index and for a real tensor."""
    return "__".join([a.name, *(["index"] if a.integer else []), *a.axes]) + "_argument"


def argument_rows(kernels: Sequence[Kernel]) -> list[str]:
    """The description of every argument of the kernels of one loss, each once."""
    found: dict[str, Argument] = {}
    for a in (a for k in kernels for a in k.arguments):
        if found.setdefault(description_of(a), a) != a:
            raise TargetError(f"two arguments are called {a.name} and are not the same: {a} and {found[description_of(a)]}",
                              repair="Rename one of them in the definition.")
    return [f"{name} = {{{', '.join(described(a))}}};" for name, a in found.items()]


def described(a: Argument) -> list[str]:
    """The fields of an argument's description that are not 0."""
    fields = [f'.name = "{a.name}", .role = LOSSLIB_{a.role.upper()}']
    fields += [f".{name} = 1" for name, holds in (("integer", a.integer), ("per_sample", a.per_sample), ("optional", a.optional),
                                                  ("seldom", a.name in SELDOM)) if holds]
    if a.axes:
        axes = ", ".join(f'"{x}"' for x in a.axes)
        fields.append(f".axes = {len(a.axes)}, .axis = {{{axes}}}")
    fields += [f'.{name} = "{text}"' for name, text in (("into", a.into), ("ignore", a.ignore), ("measures", a.measures),
                                                   ("length", a.length)) if text]
    bounded = any(map(math.isfinite, a.domain[:2])) and not a.integer
    return fields + ([f".bounded = 1, .domain = {{{interval(a.domain)}}}"] if bounded else [])


def param_rows(kernels: Sequence[Kernel]) -> list[str]:
    """The description of every scalar of the kernels of one loss, each once."""
    found = {p.name: p for k in kernels for p in k.params}
    into = {p.name: f'"{p.into}"' if p.into else "NULL" for p in found.values()}
    return [f'{p.name}_param = {{"{p.name}", {{{interval(p.domain)}}}, {into[p.name]}}};' for p in found.values()]


def interval(domain: tuple[float, float, bool]) -> str:
    """A domain, as a table writes it."""
    low, high, open_low = domain
    return ", ".join([*(f"{'-' if x < 0 else ''}INFINITY" if math.isinf(x) else repr(x) for x in (low, high)), str(int(open_low))])

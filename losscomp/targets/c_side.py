"""Short rows in C: some samples side by side, so that vectors are made of as many rows.

A loop along a row of few elements has little to make vectors of. Here the loop over samples is cut into tiles and goes inside: rows
are turned into columns, what there is one of for each row becomes an array of lanes, and what comes out is turned back.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from .. import ir
from ..ir import Accumulate, Kernel, Let, Loop, Node, Statement, Store, kind_of
from .c import TYPES, USUAL, CPrinter, CText

# How many statements are compiled once more for it, in all kernels together: more would take compilers minutes.
MOST = 200


class SidePrinter(CPrinter):
    """Names that each row has one of are lanes, rows are columns."""

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel)
        self.lanes: dict[str, str] = {}                                  # what a name is called in lane {0}

    @property
    def lane(self) -> str:
        """The lane of a sample."""
        return f"{self.var(ir.SAMPLE)} - first"

    def ref(self, node: ir.Ref) -> str:
        return self.lanes.get(node.name, node.name).format(self.lane)

    def element(self, tensor: str, index: tuple[Node, ...]) -> str:
        argument = self.arguments[tensor]
        if not (argument.per_sample and argument.axes):
            return super().element(tensor, index)
        return f"{self.derived[tensor, 'side']}[{self(index[1])}][{self.lane}]"


class SideText(CText):
    """The text of a kernel, twice where rows may be short."""

    def loop(self, s: Loop, depth: int, lines: list[tuple[int, str]]) -> None:
        if s.var is ir.SAMPLE and self.usually and (side := Side(self, s)).axis:
            lines += side.lines(depth)
        super().loop(s, depth, lines)


class Side:
    """The text of one loop over samples, for rows that are short."""

    def __init__(self, text: CText, loop: Loop) -> None:
        self.text, self.p = text, SidePrinter(text.kernel)
        outputs = {name for m, names in zip(text.members, text.asked, strict=True) if m.formula in USUAL[True] for name in names}
        self.body = needed(loop.body, outputs)
        taken = set(self.p.derived.values()) | ir.taken_names(text.kernel.names, text.kernel.every_axis) | every_name(text.kernel.body)
        for a in text.kernel.arguments:
            self.p.derived[a.name, "side"] = ir.unused(f"{a.name}_side", taken)
        self.taken = taken

    @property
    def axis(self) -> str | None:
        """The axis of the rows, if samples can stand side by side, and that is not too much to compile."""
        usual = sum(m.formula in USUAL[True] for m in self.text.members)
        if usual * len(list(ir.statements(self.body))) > MOST:
            return None
        loops = [s for s in self.body if isinstance(s, Loop)]
        axes = {s.var for s in loops}
        plain = all(not s.serial and not any(isinstance(inner, Loop) for inner in s.body) for s in loops)
        stored = [s for s in ir.statements(self.body) if isinstance(s, Store)]
        touched = {s.tensor for s in stored} | {n.tensor for s in ir.values(self.body) for n in ir.walk(s.value) if isinstance(n, ir.Load)}
        arguments = [self.text.p.arguments[name] for name in sorted(touched)]
        rows = [a for a in arguments if a.per_sample and a.axes]
        if len(axes) != 1 or not plain or any(s.adds and s.tensor not in self.text.totals for s in stored):
            return None
        axis = next(iter(axes)).axis
        fits = all(a.axes == (axis,) and not a.optional and not a.integer for a in rows)
        return axis if rows and fits else None

    def lines(self, depth: int) -> list[tuple[int, str]]:
        """The loop over tiles of samples."""
        p, axis = self.p, self.axis
        self.rows = [a for a in self.text.kernel.arguments if a.axes and a.per_sample and a.name in self.touched()]
        alone = [a for a in self.text.kernel.inputs if a.per_sample and not a.axes and a.name in self.touched()]
        usual = [f"{p.derived[a.name, f'stride {ir.BATCH}']} == {int(a.role == 'input' and not a.optional)}" for a in alone]
        out = [(depth, f"if ({' && '.join(['dense', f'{axis} > 0', f'{axis} <= SHORT', *usual])}) FOR_SIDES(first, end, batch) {{")]
        inputs = [a for a in self.rows if a.role != "output"]
        results = [a for a in self.rows if a.role == "output"]
        out += [(depth + 1, f"REAL {', '.join(p.derived[a.name, 'side'] + '[SHORT][SIDE]' for a in self.rows)};")]
        stride = lambda a: p.derived[a.name, f"stride {ir.BATCH}"]
        out += [(depth + 1, f"to_columns({p.derived[a.name, 'side']}, {a.name} + first * {stride(a)}, {stride(a)}, {axis}, end - first);")
                for a in inputs]
        self.taken |= {p.derived[a.name, "side"] for a in self.rows}
        groups = list(grouped(self.body))
        for place, group in enumerate(groups):
            later = used_names(s for g in groups[place + 1:] for s in g)
            out += self.loop(group[0], depth + 1) if isinstance(group[0], Loop) else self.once(group, later, depth + 1)
        for a in results:
            back = f"to_rows({a.name} + first * {stride(a)}, {p.derived[a.name, 'side']}, {stride(a)}, {axis}, end - first);"
            out.append((depth + 1, f"if ({p.derived[a.name, 'wanted']}) {back}"))
        return [*out, (depth, "} else")]

    def touched(self) -> set[str]:
        """The tensors that the statements read or store."""
        found = {s.tensor for s in ir.statements(self.body) if isinstance(s, Store)}
        return found | {n.tensor for s in ir.values(self.body) for n in ir.walk(s.value) if isinstance(n, ir.Load)}

    def samples(self, depth: int) -> list[tuple[int, str]]:
        """The head of a loop over the samples of a tile."""
        n = self.p.var(ir.SAMPLE)
        return [(depth, "INDEPENDENT"), (depth, f"for (int64_t {n} = first; {n} < end; ++{n}) {{")]

    def loop(self, s: Loop, depth: int) -> list[tuple[int, str]]:
        """A loop along the rows: for each element, all samples."""
        p, out = self.p, []
        for start in s.starts:
            if start.op == "sum":
                out.append((depth, f"lanes {start.name}_sum = {{{{0}}, {{0}}}};"))
                p.lanes[start.name] = f"value_of_lane(&{start.name}_sum, {{0}})"
            else:
                out += [(depth, f"REAL {start.name}_tile[SIDE];"), (depth, f"fill_lanes({start.name}_tile, -INFINITY);")]
                p.lanes[start.name] = f"{start.name}_tile[{{0}}]"
        c = p.var(s.var)
        out += [(depth, f"{self.text.guard(s)}for (int64_t {c} = 0; {c} < {s.var.axis}; ++{c})"), *self.samples(depth + 1)]
        for inner in s.body:
            if isinstance(inner, Accumulate):
                lane, text = p.lanes[inner.start.name].format(p.lane), p(inner.value)
                added = f"add_to_lane(&{inner.start.name}_sum, {p.lane}, {text});"
                out.append((depth + 2, added if inner.start.op == "sum" else f"{lane} = larger({lane}, {text});"))
            elif isinstance(inner, Let):
                out.append((depth + 2, f"const {TYPES[kind_of(inner.value)]} {inner.name} = {p(inner.value)};"))
            elif isinstance(inner, Store):
                out.append((depth + 2, self.store(inner)))
        return [*out, (depth + 1, "}")]

    def store(self, s: Store) -> str:
        """The store of a result."""
        return f"if ({self.text.when(s)}) {self.p.element(s.tensor, s.index)} = {self.p(s.value)};"

    def once(self, group: Sequence[Statement], later: set[str], depth: int) -> list[tuple[int, str]]:
        """What is computed once for each sample; names that are used later are kept in lanes."""
        p, totals = self.p, self.text.totals
        kept = {s.name: ir.unused(f"{s.name}_lane", self.taken) for s in group if isinstance(s, Let) and s.name in later}
        self.taken |= set(kept.values())
        out = []
        for kind in dict.fromkeys(TYPES[kind_of(s.value)] for s in group if isinstance(s, Let) and s.name in kept):
            names = [f"{kept[s.name]}[SIDE]" for s in group if isinstance(s, Let) and s.name in kept and TYPES[kind_of(s.value)] == kind]
            out.append((depth, f"{kind} {', '.join(names)};"))
        tiles = [s.tensor for s in group if isinstance(s, Store) and s.tensor in totals]
        out += [(depth, f"REAL {', '.join(self.text.tile(name) + '[SIDE]' for name in tiles)};")] * bool(tiles)
        out += self.samples(depth)
        for s in group:
            if isinstance(s, Let):
                out.append((depth + 1, f"const {TYPES[kind_of(s.value)]} {s.name} = {p(s.value)};"))
                if s.name in kept:
                    out.append((depth + 1, f"{kept[s.name]}[{p.lane}] = {s.name};"))
            elif isinstance(s, Store) and s.tensor in totals:
                out.append((depth + 1, f"{self.text.tile(s.tensor)}[{p.lane}] = {p(s.value)};"))
            elif isinstance(s, Store):
                out.append((depth + 1, self.store(s)))
        out.append((depth, "}"))
        p.lanes |= {name: f"{lane}[{{0}}]" for name, lane in kept.items()}
        return out + [(depth, f"accumulate_tile(&{self.text.sum(name)}, {self.text.tile(name)}, end - first);") for name in tiles]


def grouped(body: Iterable[Statement]) -> Iterable[list[Statement]]:
    """The statements, those between two loops together."""
    group: list[Statement] = []
    for s in body:
        if isinstance(s, Loop):
            if group:
                yield group
            yield [s]
            group = []
        else:
            group.append(s)
    if group:
        yield group


def used_names(body: Iterable[Statement]) -> set[str]:
    """The names that statements read."""
    parts = [part for s in ir.values(tuple(body)) for part in (s.value, *(s.index if isinstance(s, Store) else ()))]
    return {n.name for part in parts for n in ir.walk(part) if isinstance(n, ir.Ref)}


def every_name(body: tuple[Statement, ...]) -> set[str]:
    """Every name that statements define."""
    starts = {start.name + end for s in ir.statements(body) if isinstance(s, Loop) for start in s.starts for end in ("", "_sum", "_tile")}
    return starts | {s.name for s in ir.statements(body) if isinstance(s, Let)}


def needed(body: tuple[Statement, ...], outputs: set[str]) -> tuple[Statement, ...]:
    """The statements without those that only other outputs need."""
    def left(part: tuple[Statement, ...], used: set[str]) -> tuple[Statement, ...]:
        out: list[Statement] = []
        for s in part:
            if isinstance(s, Loop):
                inner = left(s.body, used)
                starts = tuple(start for start in s.starts if start.name in used)
                out += [replace(s, body=inner, starts=starts)] * bool(inner)
            elif isinstance(s, Store):
                out += [s] * (s.tensor in outputs)
            elif isinstance(s, Accumulate):
                out += [s] * (s.start.name in used)
            elif isinstance(s, Let):
                out += [s] * (s.name in used)
            else:
                out.append(s)
        return tuple(out)

    while True:
        smaller = left(body, used_names(body))
        if smaller == body:
            return body
        body = smaller

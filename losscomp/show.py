"""What every stage made of one loss, as text: the definition, its variants, each rewrite with its reason, loop nests, code."""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import sympy as sp

from . import catalogue, emit, family, formula, ir, nodes
from .check import check
from .errors import BuildError
from .hierarchy import Hierarchy
from .ir import Accumulate, Let, Load, Loop, Node, Number, Op, Reduce, Statement
from .language import Definition, Overload
from .pipeline import STAGES as COMPILER_STAGES
from .pipeline import Compiled, Formula, Output, kernels, lowered, signature
from .plan import unknown_loss
from .recurrence import Program
from .rewrite import Step
from .targets.printer import CALL, Printer

STAGES = ("definition", *COMPILER_STAGES)
DEFAULT_KERNEL = "value_and_grad"
COMPOSITE = ("torch",)                           # targets whose text is the value alone
ARRAYS = {"numpy": True, "c": False, "torch": True, "cuda": False}
EMITTED = {"numpy": "src/{package}/numpy/kernels/{name}.py", "c": "src/{package}/csrc/{name}.c",
           "torch": "src/{package}/torch/composites/{name}.py", "cuda": "src/{package}/cuda/{name}.cu"}
HIERARCHY = dict.fromkeys(("numpy", "c"), "src/{package}/compositions/{name}.py") | {
    "torch": "src/{package}/torch/compositions/{name}.py"}               # no file of their own in CUDA
FUNCTIONS = {"numpy": r"^def {name}\(.*?(?=^def |\Z)", "c": r"^/\*[^\n]*\*/\n[^\n]*NAME\({name}\)\(.*?^}}$",
             "torch": r"^@[^\n]*\ndef {name}\(.*?(?=^@|\Z)",
             "cuda": r"^/\*[^\n]*\*/\ntemplate[^\n]*\n__global__[^\n]* {name}\(.*?^}}$"}
SERVED = r"\({name}_signature, \w+, \d+, (\w+)"          # in CUDA one kernel may do the work of several
WIDTH = 120


@dataclass(frozen=True)
class Row:
    """A line of the list of losses."""

    name: str
    kind: str
    options: str
    targets: str
    summary: str
    peer: str


def rows(folder: Path) -> list[Row]:
    """Every loss of a folder: its name, what a sample of it is, what a caller may choose, its targets, its first line of
    documentation, its peer."""
    return [row(name, d) for name, d in catalogue.load_all(folder).items()]


def row(name: str, definition: Definition | Hierarchy) -> Row:
    """The line of one loss."""
    if isinstance(definition, Hierarchy):
        return Row(name, f"choices by {definition.loss.name}", " ".join(a.name for a in definition.arguments), " ".join(HIERARCHY),
                   emit.summary_of(definition.doc, name), definition.like)
    forms = [check(form)[0] for form in emit.forms_of(definition)]
    optional = [t.name for form in forms for t in form.inputs if t.record.default is not None]
    functions = [form.loss.computed.function for form in forms if form.loss.computed]
    options = dict.fromkeys([*optional, *(p.name for form in forms for p in form.params if not p.record.reduction), *functions])
    kinds = dict.fromkeys("recurrence" if form.tables else kind_of(form.value, bool(form.axes)) for form in forms)
    return Row(name, ", ".join(kinds), " ".join(options) or "-", " ".join(emit.TARGETS), emit.summary_of(definition.doc, name),
               peer_of(definition))


def kind_of(value: sp.Expr, axes: bool) -> str:
    """What one sample is: a number of each tensor, rows of them, or pairs in a row."""
    sums = value.atoms(nodes.Reduce)
    nested = any(outer.bound in nodes.free_indices(inner) for outer in sums for inner in outer.body.atoms(nodes.Reduce))
    return "pairs" if nested else "rows" if axes else "pointwise"


def peer_of(definition: Definition) -> str:
    """The import path that a loss is held against."""
    return definition.like or (definition.forms[0].like if isinstance(definition, Overload) else "")


def find(name: str, folder: Path) -> Definition | Hierarchy:
    """A loss by its name. Raises LosscompError with the names that are near."""
    losses = catalogue.load_all(folder)
    if name not in losses:
        raise unknown_loss(name, losses)
    return losses[name]


def show(definition: Definition | Hierarchy, stage: str | None = None, target: str = "c", kernel: str | None = None,
         variant: str | None = None) -> Iterator[str]:
    """The lines of one stage, or of all.

    Args:
        target: whose loop nest and text.
        kernel: one kernel; by default all, and among all stages only value and gradient as loop nest and text.
        variant: part of the name of the variants to show, or "all"; by default the one of the default arguments.
    """
    stages = STAGES if stage is None else (stage,)
    if isinstance(definition, Hierarchy):
        yield from hierarchy_text(definition, stages, target)
        return
    everything = [c for group in emit.compile_definition(definition) for c in group]
    chosen = choose(everything, variant)
    for here in stages:
        if stage is None:
            yield from ("", f"== {here} ".ljust(WIDTH, "="))
        if here == "definition":
            yield from definition_text(definition)
            continue
        if here == "check":
            yield from variants_text(everything, chosen)
        if here == "emit":
            usual = "value" if target in COMPOSITE else DEFAULT_KERNEL
            yield from emitted_text(definition, target, kernel or (usual if stage is None else None), chosen)
            continue
        for compiled in chosen:
            if len(chosen) > 1:
                yield from ("", f"-- {label(compiled)}")
            yield from PRINTERS[here](compiled, View(target, kernel, stage is None))


@dataclass(frozen=True)
class View:
    """What a printer is asked for."""

    target: str
    kernel: str | None
    brief: bool

    def wants(self, about: Formula | ir.Kernel) -> bool:
        """Is this kernel to be shown? Among all stages, those for other inputs than the default ones are left out."""
        return about.name == self.kernel if self.kernel else not (self.brief and about.name.endswith("_all"))

    def wants_loops(self, about: Formula | ir.Kernel) -> bool:
        """Is the loop nest of this kernel to be shown?"""
        return about.name == (self.kernel or DEFAULT_KERNEL) if self.brief else self.wants(about)


# Variants

def label(compiled: Compiled) -> str:
    """The name of a variant."""
    return (compiled.mark + compiled.form.suffix).strip("_") or "the only variant"


def choose(everything: Sequence[Compiled], variant: str | None) -> list[Compiled]:
    """The variants to show."""
    if variant == "all":
        return list(everything)
    if variant is not None:
        found = [c for c in everything if variant in label(c)]
        if not found:
            raise BuildError(f"no variant has {variant!r} in its name",
                             repair=f"The variants: {', '.join(map(label, everything))}.")
        return found
    return [next((c for c in everything if is_default(c)), everything[0])]


def is_default(compiled: Compiled) -> bool:
    """Is this the variant of the default arguments?"""
    special = {p.name: p.record.special for p in compiled.form.params}
    defaults = {p.name: sp.sympify(p.record.default) for p in compiled.form.params}
    return all(equal(value, defaults[name]) if value is not None else not any(equal(v, defaults[name]) for v in special[name])
               for name, value in compiled.form.settings)


def equal(a: Any, b: Any) -> bool:
    """Are two settings the same? SymPy tells 1 from 1.0."""
    return bool(a == b) or (isinstance(a, sp.Expr) and isinstance(b, sp.Expr) and float(a) == float(b))


def variants_text(everything: Sequence[Compiled], chosen: Sequence[Compiled]) -> Iterator[str]:
    """Which variants there are, and which are shown."""
    if len(everything) > 1:
        yield f"{len(everything)} variants:"
        for c in everything:
            yield f"  {'*' if c in chosen else ' '} {label(c)}"
        yield "(* is shown; --variant NAME or --variant all shows others)"


# The stages

def hierarchy_text(definition: Hierarchy, stages: Sequence[str], target: str) -> Iterator[str]:
    """What a hierarchy is written as, and what is emitted for it; between the two are the stages of the loss that it is composed of."""
    for here in stages:
        yield from ("", f"== {here} ".ljust(WIDTH, "="))
        if here == "definition":
            yield from definition_text(definition)
        elif here == "emit":
            package = "losslib"
            path = HIERARCHY.get(target, HIERARCHY["numpy"]).format(package=package, name=definition.name)
            yield f"# {path}"
            yield from emit.emit_loss(definition, package, Path(definition.path.rsplit(":", 1)[0]).name).files[path].rstrip().splitlines()
        else:
            yield f"that of {definition.loss.name}: losscomp show {definition.loss.name} --stage {here}"


def definition_text(definition: Definition | Hierarchy) -> Iterator[str]:
    """The file that the author wrote."""
    path = Path(definition.path.rsplit(":", 1)[0])
    yield f"# {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}"
    yield from path.read_text().rstrip().splitlines()


def check_text(compiled: Compiled, view: View) -> Iterator[str]:
    """Inputs, parameters, and the formula of one sample."""
    form = compiled.form
    reductions = {"inputs": [describe(t.record) for t in form.inputs], "parameters": [describe(p.record) for p in form.params]}
    for title, lines in reductions.items():
        if lines:
            yield f"{title}:"
            yield from (f"  {line}" for line in lines)
    default, possible = (", ".join(t.name for t in some) for some in (form.wrt, form.differentiable))
    yield f"gradient by default: {default}; possible: {possible}"
    yield from equation("value", form.value)
    yield from equation("weight", form.weight)
    if parts := list(takewhile(lambda line: not line.startswith("loss = "), formula.formula_lines(form))):
        yield "where:"
        for part in parts:
            yield from wrapped("  ", part)


def describe(record: Any) -> str:
    """A tensor or parameter with what its declaration says."""
    said = [record.name]
    if axes := getattr(record, "axes", ()):
        said[0] += f"[{', '.join(a.name for a in axes)}]"
    if into := getattr(record, "into", None):
        said.append(f"integers, positions along {into.name}")
    if (until := getattr(record, "until", None)) is not None:
        said.append(f"a set of labels: positions along {record.axes[-1].name} up to the first {until}")
    if (default := getattr(record, "default", None)) is not None:
        said.append(f"default {default}")
    if special := getattr(record, "special", ()):
        said.append(f"variants for {', '.join(map(str, special))}")
    domain = getattr(record, "domain", None)
    if domain is not None and domain.bounded:
        said.append(domain.words())
    return ", ".join(said)


def smooth_text(compiled: Compiled, view: View) -> Iterator[str]:
    """The value in smooth atoms, and how it came to that."""
    yield from steps_text(compiled.smoothing, compiled.form.loss.rewrites)
    yield from equation("value", compiled.smooth.value)
    if not compiled.smooth.weight.is_number:
        yield from equation("weight", compiled.smooth.weight)


def differentiate_text(compiled: Compiled, view: View) -> Iterator[str]:
    """Each result of each kernel, as derived."""
    for f in filter(view.wants, compiled.formulas):
        yield f"{f.name}: {f.what}"
        yield from equations(f.outputs) if f.program is None else sweeps_text(f.program)


def stabilise_text(compiled: Compiled, view: View) -> Iterator[str]:
    """Each result that was rewritten, with the rewrites that led there; and which results stay as they were derived."""
    for f in filter(view.wants, compiled.stable):
        yield f"{f.name}: {f.what}"
        if f.program is not None:
            for (name, target), taken in compiled.stabilising.items():
                if name == f.name and taken:
                    yield f"  in {target}:"
                    yield from steps_text(taken)
            yield from sweeps_text(f.program)
            continue
        steps = {o.argument.name: compiled.stabilising.get((f.name, o.argument.name), []) for o in f.outputs}
        for output in f.outputs:
            if steps[output.argument.name]:
                yield from steps_text(steps[output.argument.name], compiled.form.loss.rewrites)
                yield from equation(output.argument.name, output.expr)
        if kept := [name for name, taken in steps.items() if not taken]:
            yield f"  as derived: {', '.join(kept)}"


def lower_text(compiled: Compiled, view: View) -> Iterator[str]:
    """The stores of each kernel; what is used twice has a name."""
    for f in compiled.stable:
        if not view.wants_loops(f):
            continue
        if f.program is not None:
            yield f"{f.name}: lowered and scheduled in one step; see --stage schedule"
            continue
        stores, _ = lowered(compiled, f)
        yield f"{f.name}:"
        s = signature(compiled, f)
        printer = NodePrinter(ir.Kernel(f.name, f.what, s.inputs, s.params, s.outputs, s.axes, ()), shared([t.value for t in stores]))
        for node, name in printer.names.items():
            yield from wrapped(f"  {name} = ", printer.inside(node))
        yield from (f"  {line}" for line in nest(stores, printer))


def schedule_text(compiled: Compiled, view: View) -> Iterator[str]:
    """The loop nest of each kernel."""
    for kernel in kernels(compiled, ARRAYS[view.target]):
        if not view.wants_loops(kernel):
            continue
        printer = NodePrinter(kernel, {})
        arrays = [f"{a.name}[{', '.join(a.shape)}]" if a.shape else a.name for a in kernel.inputs]
        yield from wrapped(f"{kernel.name}(", ", ".join([*arrays, *(p.name for p in kernel.params)]) + "):")
        yield from (f"    {line}" for line in nest(kernel.body, printer))


PRINTERS: dict[str, Callable[[Compiled, View], Iterator[str]]] = {
    "check": check_text, "smooth": smooth_text, "differentiate": differentiate_text, "stabilise": stabilise_text,
    "lower": lower_text, "schedule": schedule_text,
}


# Formulas and rewrites

def sweeps_text(program: Program) -> Iterator[str]:
    """The sweeps of a program: its loops in order, and what is stored in a cell or pushed to others."""
    name = lambda i: i.axis.name
    for sweep in program.sweeps:
        back = "reversed " if sweep.reverse else ""
        steps = " + ".join(f"{p} {name(i)}" for p, i in zip(sweep.schedule, sweep.indices, strict=False) if p)
        order = f", in the order of {back}{steps}" if steps else ""
        over = f" for each {', '.join(map(name, sweep.indices))}{order}" if sweep.indices else ""
        yield f"  {sweep.about}{over}:"
        for action in sweep.actions:
            place = f"{action.target.name}[{', '.join(formula.text(i) for i in action.index)}]" if action.index else action.target.name
            each = f" for each {', '.join(map(name, action.binders))}" if action.binders else ""
            yield from wrapped(f"    {place} {'+=' if action.adds else '='} ", formula.text(action.expr) + each)


def equation(name: str, expr: sp.Basic) -> Iterator[str]:
    """name = formula, over several lines where it is long."""
    yield from wrapped(f"  {name} = ", formula.text(sp.sympify(expr)))


def equations(outputs: Sequence[Output]) -> Iterator[str]:
    """The formula of each result; results with the same formula share a line."""
    names: dict[sp.Basic, list[str]] = {}
    for output in outputs:
        names.setdefault(output.expr, []).append(output.argument.name)
    for expr, same in names.items():
        yield from equation(", ".join(same), expr)


def wrapped(head: str, text: str) -> Iterator[str]:
    """A head and a text that may be too long for a line."""
    lead = " " * (len(head) - len(head.lstrip()))
    lines = textwrap.wrap(head.lstrip() + text, WIDTH - len(lead), subsequent_indent=" " * min(len(head) - len(lead), 24),
                          break_long_words=False, break_on_hyphens=False)
    yield from (lead + line for line in lines)


def steps_text(steps: Sequence[Step], asked: Sequence[str] = ()) -> Iterator[str]:
    """Each rewrite: the rule, what it removes, whether the definition asked for it, before and after."""
    for step in steps:
        yield f"  {step.rule}  (removes: {step.why}{', asked for by the definition' if step.rule in asked else ''})"
        yield from wrapped("       ", formula.text(step.before))
        yield from wrapped("    -> ", formula.text(step.after))


# Nodes and loop nests

class NodePrinter(Printer):
    """Scalar nodes as a person reads them; `names` are nodes that have a line of their own."""

    def __init__(self, kernel: ir.Kernel, names: dict[Node, str]) -> None:
        super().__init__(kernel)
        self.names = names

    def __call__(self, node: Node, outer: int = 0) -> str:
        return self.names[node] if node in self.names else self.inside(node, outer)

    def inside(self, node: Node, outer: int = 0) -> str:
        """The text of a node, its own name not used."""
        match node:
            case Reduce(op, var, body):
                return f"{op}_{self.var(var)}({self(body)})"
            case Op("where", (condition, a, b)):
                return self.wrap(f"{self(a, 2)} if {self(condition, 2)} else {self(b, 1)}", 1, outer)
            case Op("and" | "or" as name, (a, b)):
                return self.wrap(f"{self(a, 3)} {name} {self(b, 3)}", 2, outer)
            case Op(name, args) if name not in ("add", "sub", "mul", "div", "neg", "lt", "le", "gt", "ge", "eq", "ne"):
                return f"{name}({', '.join(map(self, args))})"
            case Number(digits):
                return digits[:8]
        return super().__call__(node, outer)

    def constant(self, p: int, q: int, outer: int) -> str:
        return self.wrap(f"{p}/{q}", 20, outer) if q else self.wrap("inf" if p > 0 else "-inf", CALL if p > 0 else 15, outer)

    def load(self, node: Load) -> str:
        return f"{node.tensor}[{', '.join(map(self, node.index))}]" if node.index else node.tensor


def shared(roots: Sequence[Node]) -> dict[Node, str]:
    """Names for the operations that are used more than once, in the order in which they can be computed."""
    uses: Counter[Node] = Counter()
    order: dict[Node, None] = {}

    def visit(node: Node) -> None:
        uses[node] += 1
        if uses[node] == 1:
            for child in node.children:
                visit(child)
            order[node] = None

    for root in roots:
        visit(root)
    worth = [n for n in order if uses[n] > 1 and isinstance(n, Op | Reduce) and not (isinstance(n, Op) and n.name == "real")]
    return {node: f"t{k}" for k, node in enumerate(worth, 1)}


def nest(body: Sequence[Statement], printer: NodePrinter, depth: int = 0) -> Iterator[str]:
    """Statements as pseudo-code."""
    indent = "    " * depth
    for s in body:
        match s:
            case ir.Section(text):
                yield f"{indent}# {text}"
            case ir.Fill(tensor):
                yield f"{indent}fill {tensor}"
            case ir.Wave((i, j), (p, q), inside, reverse):
                steps = f"{'' if p == 1 else f'{p} '}{printer.var(i)} + {'' if q == 1 else f'{q} '}{printer.var(j)}"
                cells = f"({printer.var(i)}, {printer.var(j)}) in {i.axis} x {j.axis}"
                yield f"{indent}for {cells}, in the order of {'reversed ' if reverse else ''}{steps}:"
                yield from nest(inside, printer, depth + 1)
            case Loop(var, starts, inside):
                for start in starts:
                    yield f"{indent}{start.name} = {'0' if start.op == 'sum' else '-inf'}"
                order = f"reversed({var.axis})" if s.reverse else var.axis
                yield f"{indent}for {printer.var(var)} in {order}:"
                yield from nest(inside, printer, depth + 1)
            case Let(name, value):
                yield from wrapped(f"{indent}{name} = ", printer(value))
            case Accumulate(start, value):
                sign = "+=" if start.op == "sum" else f"= {start.op} of itself and"
                yield from wrapped(f"{indent}{start.name} {sign} ", printer(value))
            case ir.Store(tensor, index, value, adds):
                place = f"{tensor}[{', '.join(map(printer, index))}]" if index else tensor
                yield from wrapped(f"{indent}{place} {'+=' if adds else '='} ", printer(value))


# Emitted text

def emitted_text(definition: Definition, target: str, kernel: str | None, chosen: Sequence[Compiled]) -> Iterator[str]:
    """The emitted file of a target, or the functions of one kernel in it."""
    package = "losslib"
    path = EMITTED[target].format(package=package, name=definition.name)
    text = emit.emit_loss(definition, package, Path(definition.path.rsplit(":", 1)[0]).name).files[path]
    yield f"# {path}"
    if kernel is None:
        yield from text.rstrip().splitlines()
        return
    functions = [kernel + c.mark + c.form.suffix if ARRAYS[target] else family.stem(kernel) + c.mark for c in chosen]
    for function in dict.fromkeys(functions):
        yield from cut(text, function, target)


def cut(text: str, function: str, target: str) -> Iterator[str]:
    """The lines of one function."""
    served = re.search(SERVED.format(name=function), text)
    pattern = FUNCTIONS[target].format(name=served[1] if served else function)
    found = re.search(pattern, text, re.MULTILINE | re.DOTALL)
    if found is None:
        raise BuildError(f"there is no kernel {function!r} in the emitted text",
                         repair="See the names with --stage emit alone.")
    yield from found.group().rstrip().splitlines()

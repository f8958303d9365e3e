"""The map: definition -> check -> smooth -> differentiate -> stabilise -> lower -> schedule -> emit.

| stage          | from                              | to                                                    |
|----------------|-----------------------------------|-------------------------------------------------------|
| check          | a Loss                            | a Checked form for each variant: value and weight     |
| smooth         | value, weight                     | the same in smooth atoms                              |
| differentiate  | the smooth value                  | an Output for each result of each kernel              |
| stabilise      | Outputs                           | Outputs, each in its accurate form                    |
| lower          | Outputs                           | stores of typed scalar nodes (ir.py)                  |
| schedule       | stores                            | a Kernel: a loop nest                                 |
| emit           | Kernels                           | text (targets/, templates/)                           |

Building and verifying are not stages of one loss: see build.py and verify.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import sympy as sp

from . import ir, nodes
from .check import Checked, check
from .differentiate import derive, directional, gradient, output_index
from .errors import CheckError, LosscompError
from .language import Loss
from .lower import Lowering, parameter
from .masses import MassLowering, in_masses
from .nodes import Delta, Load, Tensor, TensorRecord
from .recurrence import Program, moved_by
from .rewrite import Step, rewrite, rewrite_within
from .rules import SMOOTHING, STABILISING, VECTORS, asked_for
from .schedule import Scheduler
from .sweeps import (
    extents_of,
    gradient_program,
    loop_nest,
    most,
    product_program,
    rate_program,
    stabilised,
    system_of,
    value_program,
)

STAGES = ("check", "smooth", "differentiate", "stabilise", "lower", "schedule", "emit")


@dataclass(frozen=True)
class Output:
    """One result of a kernel: a formula, the indices that it is stored at, and what it is."""

    argument: ir.Argument
    expr: sp.Expr
    index: tuple[nodes.Index, ...] = ()


@dataclass(frozen=True)
class Formula:
    """What a kernel computes, before lowering. `moving` are the tensors whose gradient or direction it is about.

    Where the loss is a system of tables, `program` computes the outputs, whose own formulas then say nothing.
    """

    name: str
    what: str
    outputs: tuple[Output, ...]
    moving: tuple[Tensor, ...] = ()
    program: Program | None = None

    @property
    def exprs(self) -> sp.Tuple:
        """Everything that the kernel reads."""
        if self.program is None:
            return sp.Tuple(*(o.expr for o in self.outputs))
        exprs = self.program.exprs
        return sp.Tuple(*exprs, *(e for a in extents_of(exprs, self.program) for e in (a.record.extent, most(a))))


@dataclass
class Compiled:
    """One variant of one loss, with everything that each stage made of it."""

    form: Checked
    smooth: Checked
    smoothing: list[Step]
    formulas: list[Formula]                       # differentiated
    stable: list[Formula]                         # stabilised
    stabilising: dict[tuple[str, str], list[Step]]
    seconds: dict[str, float] = field(default_factory=dict)
    mark: str = ""                                # tells the functions of this form from those of another
    signatures: dict[str, ir.Signature] = field(default_factory=dict)      # found when first asked for, by the formula's name


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Add the time spent to a stage's account."""
    start = time.perf_counter()
    yield
    seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - start


def compile_loss(loss: Loss) -> list[Compiled]:
    """Every variant of a loss, through all stages that need no target. Raises CheckError, LoweringError."""
    seconds: dict[str, float] = {}
    with timed(seconds, "check"):
        try:
            asked_for(loss.rewrites)
        except LosscompError as error:
            raise error.at(loss.path or loss.name) from None
        forms = check(loss)
    return [compile_form(form, dict(seconds)) for form in forms]


def compile_form(form: Checked, seconds: dict[str, float] | None = None) -> Compiled:
    """One variant, through smooth, differentiate and stabilise."""
    seconds = {} if seconds is None else seconds
    wanted = form.loss.rewrites
    with timed(seconds, "smooth"):
        smooth, smoothing = smoothed(form)
    with timed(seconds, "differentiate"):
        formulas = differentiated(smooth)
    stabilising: dict[tuple[str, str], list[Step]] = {}
    stable = []
    with timed(seconds, "stabilise"):
        for formula in formulas:
            if formula.program is not None:
                stable.append(replace(formula, program=stabilised(formula.program, stabiliser(formula.name, stabilising, wanted))))
                continue
            outputs = []
            for output in formula.outputs:
                expr, steps = rewrite_within(plain(output.expr), STABILISING, wanted)
                stabilising[formula.name, output.argument.name] = steps
                outputs.append(replace(output, expr=expr))
            stable.append(replace(formula, outputs=tuple(outputs)))
    return Compiled(form, smooth, smoothing, formulas, stable, stabilising, seconds)


def stabiliser(formula: str, trace: dict[tuple[str, str], list[Step]], wanted: Any) -> Callable[[sp.Expr, str], sp.Expr]:
    """What makes one action of a program accurate, and keeps the steps under the name of its target."""
    def change(expr: sp.Expr, target: str) -> sp.Expr:
        stable, steps = rewrite_within(plain(expr), STABILISING, wanted)
        trace.setdefault((formula, target), []).extend(steps)
        return stable

    return change


def smoothed(form: Checked) -> tuple[Checked, list[Step]]:
    """One variant in smooth atoms, and the steps to it."""
    asked = form.loss.rewrites
    value, steps = rewrite(form.value, SMOOTHING, asked)
    weight, more = rewrite(form.weight, SMOOTHING, asked)
    tables = []
    for table in form.tables:
        expr, also = rewrite(table.expr, SMOOTHING, asked)
        tables.append(replace(table, expr=expr))
        more += also
    return replace(form, value=value, weight=weight, tables=tuple(tables), names=known_names(form.names)), steps + more


def known_names(names: dict[sp.Expr, str], settle: Callable[[sp.Expr], sp.Expr] | None = None) -> dict[sp.Expr, str]:
    """The author's names for sub-expressions, as those look after smoothing, below a reduction and, by default, `plain`."""
    settle = settle or plain
    found: dict[sp.Expr, str] = {}
    for expr, name in names.items():
        if isinstance(expr, nodes.Index):
            continue
        forms = [expr] if not isinstance(expr, sp.Expr) else [expr, rewrite(expr, SMOOTHING)[0]]
        for form in forms:
            loose = nodes.free_indices(form)
            bound = [{i: nodes.Index(nodes.IndexRecord(i.axis, label)) for i in loose} for label in ("#1", "#2", "out0")]
            for rule in [{}, *(bound if loose else [])]:
                found.setdefault(settle(nodes.substitute(form, rule)), name)
    return found


def plain(expr: sp.Expr) -> sp.Expr:
    """The value alone, once derivatives are taken: no statements about derivatives are left."""
    kinds = (nodes.Stated, nodes.StopGradient, nodes.StraightThrough)
    if isinstance(expr, nodes.Rounded) or not expr.has(*kinds):      # what is rounded is not to be taken apart
        return expr
    return plain(expr.args[0]) if isinstance(expr, kinds) else expr.func(*map(plain, expr.args))


def scale(name: str) -> Any:
    """The upstream derivative of a total: one number a sample, or one for all with step 0."""
    return Load(Tensor(TensorRecord(name)))


def scaled(name: str, value: sp.Expr) -> sp.Expr:
    """A scale times a value; a mask stays outside, so that what is left out is 0 whatever the scale is."""
    match value:
        case nodes.Where(args=(condition, sp.S.Zero, masked)):
            return nodes.Where(condition, 0, scaled(name, masked))
    return scale(name) * value


def direction(tensor: Tensor) -> Tensor:
    """The direction in which an input moves."""
    return Tensor(replace(tensor.record, name=f"direction_{tensor.name}", default=None, domain=nodes.Domain()))


def differentiated(form: Checked) -> list[Formula]:
    """The results of every kernel. `moving` is the default set of inputs, and, where that is smaller, all of them."""
    if form.tables:
        return recurrent(form)
    value, weight = form.value, form.weight
    counted = bool(weight.is_number)                                     # the mean divides by the count: no total to keep
    loss = Output(ir.Argument("loss", role="output"), value)
    totals = [Output(ir.Argument("total_loss", role="total", per_sample=False), value)]
    if not counted:
        totals.append(Output(ir.Argument("total_weight", role="total", per_sample=False), weight))
    formulas = [Formula("value", "the loss of each sample, and the totals", (loss, *totals))]
    if not counted:
        formulas.append(Formula("weight", "the denominator of the mean", (totals[1],)))
    sets = [("", form.wrt)] + ([("_all", form.differentiable)] if form.differentiable != form.wrt else [])
    for suffix, moving in sets:
        if not moving:
            continue
        weight_moves = any(t in moving for t in nodes.tensors(weight))
        objective = scaled("scale", value) + (scaled("scale_weight", weight) if weight_moves else 0)
        grads = {t: with_rejections(*gradient(objective, t)) for t in moving}
        formulas.append(Formula(f"value_and_grad{suffix}", "the loss, the totals, and the gradients times scale", (
            loss, *totals, *(Output(result("grad", t), g, j) for t, (g, j) in grads.items())), moving))
        ways = {t: direction(t) for t in moving}
        rates = [Output(ir.Argument("rate", role="output"), directional(value, ways)),
                 Output(ir.Argument("total_rate", role="total", per_sample=False), directional(value, ways))]
        if weight_moves:
            rates.append(Output(ir.Argument("total_weight_rate", role="total", per_sample=False), directional(weight, ways)))
        formulas.append(Formula(f"jvp{suffix}", "the derivative along the directions", tuple(rates), moving))
        if weight_moves:
            ways |= {scale(s).tensor: scale(f"{s}_rate").tensor for s in ("scale", "scale_weight")}
        products = [Output(result("hvp", t), directional(g, ways), j) for t, (g, j) in grads.items()]
        formulas.append(Formula(f"hvp{suffix}", "the Hessian times the directions, times scale", tuple(products), moving))
        if not weight_moves:
            formulas.append(Formula(f"hessian_diag{suffix}", "the diagonal of the Hessian, times scale", tuple(
                Output(result("hessian", t), diagonal(g, t, j), j) for t, (g, j) in grads.items()), moving))
    return formulas


def recurrent(form: Checked) -> list[Formula]:
    """The results of every kernel of a loss that is a system of tables. Raises CheckError."""
    taken = {t.name for t in form.inputs} | {p.name for p in form.params} | {a.name for a in form.axes} | {t.name for t in form.tables}
    system = system_of(form, taken)
    value, weight, moving = form.value, form.weight, form.differentiable
    if moved_by(system, moving) & {load.tensor for load in weight.atoms(Load)}:
        raise CheckError("mean_over of a loss with tables may not depend on a tensor that has a derivative",
                         repair="Weigh the samples by a tensor of integers or by lengths.")
    results = [("loss", value, True), ("total_loss", value, False)] + ([] if weight.is_number else [("total_weight", weight, False)])
    totals = {name: Output(ir.Argument(name, role="output" if each else "total", per_sample=each), sp.S.Zero) for name, _, each in results}
    formulas = [Formula("value", "the loss of each sample, and the totals", tuple(totals.values()), (), value_program(system, results))]
    if not weight.is_number:
        formulas.append(Formula("weight", "the denominator of the mean", (totals["total_weight"],), (),
                                value_program(system, results[2:])))
    sets = [("", form.wrt)] + ([("_all", form.differentiable)] if form.differentiable != form.wrt else [])
    for suffix, wrt in sets:
        objective = scaled("scale", value)
        outputs = (*totals.values(), *(Output(result("grad", t), sp.S.Zero) for t in wrt))
        formulas.append(Formula(f"value_and_grad{suffix}", "the loss, the totals, and the gradients times scale", outputs, wrt,
                                gradient_program(system, results, objective, wrt)))
        ways = {t: direction(t) for t in wrt}
        rates = [("rate", value, True), ("total_rate", value, False)]
        formulas.append(Formula(f"jvp{suffix}", "the derivative along the directions", tuple(
            Output(ir.Argument(name, role="output" if each else "total", per_sample=each), sp.S.Zero) for name, _, each in rates), wrt,
            rate_program(system, rates, ways)))
        formulas.append(Formula(f"hvp{suffix}", "the Hessian times the directions, times scale", tuple(
            Output(result("hvp", t), sp.S.Zero) for t in wrt), wrt, product_program(system, objective, wrt, ways)))
    return formulas


def with_rejections(grad: sp.Expr, j: tuple[nodes.Index, ...]) -> tuple[sp.Expr, tuple[nodes.Index, ...]]:
    """A gradient in which vectors less their parts along others are seen as such: second order is taken of that."""
    return rewrite(grad, VECTORS)[0], j


def diagonal(grad: sp.Expr, tensor: Tensor, j: tuple[nodes.Index, ...]) -> sp.Expr:
    """The derivative of each gradient cell by its own input cell."""
    return derive(grad, lambda load: sp.Mul(*map(Delta, load.index, j)) if load.tensor == tensor else sp.S.Zero)


def result(kind: str, tensor: Tensor) -> ir.Argument:
    """The argument that receives a result with the shape of an input."""
    record = tensor.record
    return ir.Argument(f"{kind}_{record.name}", tuple(a.name for a in record.axes), "output", per_sample=record.per_sample,
                       of=record.name)


def kernels(compiled: Compiled, arrays: bool) -> list[ir.Kernel]:
    """The loop nests of one variant, for targets that keep whole arrays or for targets that loop."""
    try:
        return [kernel(compiled, formula, arrays) for formula in compiled.stable]
    except LosscompError as error:
        raise error.at(compiled.form.loss.path or compiled.form.loss.name) from None


def kernel(compiled: Compiled, formula: Formula, arrays: bool) -> ir.Kernel:
    """Lower and schedule one formula."""
    names = signature(compiled, formula)
    if formula.program is not None:
        with timed(compiled.seconds, "schedule"):
            axes = extents_of(formula.exprs, formula.program)
            return loop_nest(formula.name, formula.what, names, formula.program, axes, Lowering(compiled.smooth.names))
    stores, lowering = lowered(compiled, formula)
    with timed(compiled.seconds, "schedule"):
        return scheduled(formula.name, formula.what, names, stores, lowering.hints, arrays)


def mass_kernel(compiled: Compiled, formula: Formula) -> ir.Kernel | None:
    """The loop nest of a program whose recurrences go in masses; None where it has no such recurrence."""
    program = formula.program and in_masses(formula.program)
    if program is None:
        return None
    with timed(compiled.seconds, "schedule"):
        axes, lowering = extents_of(formula.exprs, program), MassLowering(compiled.smooth.names)
        return loop_nest(formula.name, formula.what, signature(compiled, formula), program, axes, lowering)


def lowered(compiled: Compiled, formula: Formula) -> tuple[list[ir.Store], Lowering]:
    """The stores of one formula, and what is known of their nodes."""
    form = compiled.smooth
    lowering = Lowering({**form.names, plain(form.value): "value"})
    stores = []
    with timed(compiled.seconds, "lower"):
        for output in formula.outputs:
            axes = [i.axis.name for i in output.index]
            env = {i: ir.Var(axes[k], axes[:k].count(axes[k])) for k, i in enumerate(output.index)}
            argument = output.argument
            index = ((ir.SAMPLE,) if argument.per_sample else ()) + tuple(env[i] for i in output.index)
            stores.append(ir.Store(argument.name, index, lowering(sp.sympify(output.expr), env), not argument.per_sample))
    return stores, lowering


def signature(compiled: Compiled, formula: Formula) -> ir.Signature:
    """The signature of the kernel of one formula. Raises CheckError."""
    if formula.name not in compiled.signatures:
        try:
            compiled.signatures[formula.name] = find_signature(compiled.smooth, formula)
        except LosscompError as error:
            raise error.at(compiled.form.loss.path or compiled.form.loss.name) from None
    return compiled.signatures[formula.name]


def find_signature(form: Checked, formula: Formula) -> ir.Signature:
    """What the kernel of one formula reads and writes. Raises CheckError."""
    exprs = formula.exprs
    used = with_shapes([t for t in nodes.tensors(exprs) if not t.record.state], formula, form)
    inputs = tuple(argument_of(t, formula) for t in sorted(used, key=lambda t: rank(t.name, form)))
    outputs = tuple(o.argument for o in formula.outputs)
    ignores = {a.ignore for a in inputs}                                 # checked with the index, whether the body needs them or not
    params = tuple(parameter(p) for p in form.params if p.name in ignores or p in nodes.params(exprs))
    own = sorted(a.name for a in exprs.atoms(nodes.Axis) if a.record.extent is None)
    found = ir.Signature(inputs, params, outputs, axes_of(inputs + outputs, own))
    check_limits(formula.name, found)
    return found


def axes_of(arguments: Iterable[ir.Argument], more: Iterable[str]) -> tuple[str, ...]:
    """The axes of arguments in the order of first use, then others."""
    return tuple(dict.fromkeys([*(a for arg in arguments for a in (*arg.axes, arg.into, arg.measures) if a), *more]))


def scheduled(name: str, what: str, signature: ir.Signature, stores: list[ir.Store], hints: Mapping[ir.Node, str], arrays: bool,
              flags: tuple[str, ...] = ()) -> ir.Kernel:
    """The loop nest of some stores."""
    s = signature
    names = frozenset({a.name for a in s.inputs + s.outputs} | {p.name for p in s.params} | set(flags))
    taken = ir.taken_names(names, s.axes)
    derived = set() if arrays else set(ir.derived_names(s.inputs + s.outputs, taken).values())
    body = Scheduler(arrays, hints, taken | derived)(stores, ir.SAMPLE)
    return ir.check_scheduled(ir.Kernel(name, what, s.inputs, s.params, s.outputs, s.axes, body, flags), arrays)


def check_limits(name: str, s: ir.Signature) -> None:
    """A kernel may have only so many arguments. Raises CheckError."""
    for what, count, limit in (("arrays", len(s.inputs + s.outputs), ir.MOST_ARGUMENTS), ("axes", len(s.axes), ir.MOST_AXES),
                               ("scalar parameters", len(s.params), ir.MOST_PARAMS)):
        if count > limit:
            raise CheckError(f"the kernel {name} would have {count} {what}, and may have {limit}",
                             repair="Put tensors of one shape into one tensor with an axis, or split the loss.")


def with_shapes(used: list[Tensor], formula: Formula, form: Checked) -> list[Tensor]:
    """The tensors that a kernel reads, and those that it needs to know the lengths of its outputs."""
    exprs = formula.exprs
    axes = exprs.atoms(nodes.Axis) | {r.bound.axis for r in exprs.atoms(nodes.Reduce)}
    axes |= {t.record.measures for t in used if t.record.measures} | {p.record.into for p in nodes.params(exprs) if p.record.into}
    wanted = {ir.BATCH} | {axis for o in formula.outputs for axis in o.argument.axes} | {a.name for a in axes if a.record.extent is None}
    used = [*used, *(t for t in form.inputs if t.name in {u.record.length for u in used} and t not in used)]
    shape = lambda t: ([ir.BATCH] if t.record.per_sample else []) + [a.name for a in t.record.axes]
    for axis in sorted(wanted):
        if not any(axis in shape(t) for t in used):
            used = [*used, next(t for t in form.inputs if axis in shape(t))]
    return used


def rank(name: str, form: Checked) -> tuple[int, int, str]:
    """Inputs in the order of declaration, then scales, then directions."""
    names = [t.name for t in form.inputs]
    if name in names:
        return 0, names.index(name), name
    return (2, 0, name) if name.startswith("direction_") else (1, 0, name)


def argument_of(tensor: Tensor, formula: Formula) -> ir.Argument:
    """What the kernel's signature says of a tensor."""
    record = tensor.record
    moved = {f"direction_{t.name}": t.name for t in formula.moving}
    role: ir.Role = "direction" if tensor.name in moved else "scale" if tensor.name.startswith("scale") else "input"
    return ir.Argument(record.name, tuple(a.name for a in record.axes), role, record.integer, record.per_sample,
                       record.default, record.into.name if record.into else None, record.ignore,
                       record.domain.interval, moved.get(tensor.name, ""), record.measures.name if record.measures else None,
                       record.length)


__all__ = ["Checked", "Compiled", "Formula", "Output", "compile_form", "compile_loss", "kernels", "output_index"]

"""The check stage: what a definition must satisfy, and its variants with every build-time choice settled."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from typing import Any

import sympy as sp

from . import atoms, nodes
from .errors import CheckError, LosscompError
from .inside import points_into
from .language import INSTEAD, Loss
from .lower import DIRECT, RELATIONS
from .nodes import Axis, Chosen, Index, Load, Param, ParamRecord, Tensor, Where
from .recurrence import Table, pads_of, schedule_of
from .schedule import safe_name

RESERVED = frozenset({"loss", "scale", "scale_weight", "rate", "total_loss", "total_weight", "total_rate", "batch", "count",
                      "value", "reduction", "size_average", "reduce", "out", "wrt", "upstream", "direction", "items",
                      "variant"})
PREFIXES = ("direction_", "grad_", "hvp_", "hessian_", "scale_", "total_", "losslib")
LEGACY = ("size_average", "reduce")
STRUCTURE = (Load, nodes.Delta, nodes.Where, nodes.Reduce, nodes.LogAddExp, sp.floor, nodes.Named, nodes.Stated, nodes.StopGradient,
             nodes.StraightThrough, nodes.Leaf, Chosen, Tensor, sp.Add, sp.Mul, sp.Pow, sp.exp, sp.Number, sp.NumberSymbol,
             sp.logic.boolalg.BooleanAtom, *RELATIONS)


@dataclass(frozen=True)
class Checked:
    """One variant of a loss: the settings of its build-time choices, and its formulas with those settled.

    Attributes:
        loss: the definition.
        settings: the special value of each parameter that has some, or None for the general case.
        value, weight: the formula of one sample, and what it adds to the denominator of the mean.
        inputs, params: every tensor and scalar of the signature, whether this variant uses it or not.
        tables: the tables that the value reads, each after those that it reads itself.
        names: what the emitted code calls a sub-expression.
        wrt: the inputs that have a gradient by default; differentiable: all that have one.
    """

    loss: Loss
    settings: tuple[tuple[str, Any], ...]
    value: sp.Expr
    weight: sp.Expr
    inputs: tuple[Tensor, ...]
    params: tuple[Param, ...]
    wrt: tuple[Tensor, ...]
    differentiable: tuple[Tensor, ...]
    tables: tuple[Table, ...] = ()
    names: dict[sp.Expr, str] = field(default_factory=dict, compare=False)

    @property
    def axes(self) -> tuple[Axis, ...]:
        """Every axis of the inputs, in the order of first use."""
        return tuple(dict.fromkeys(a for t in self.inputs for a in t.record.axes))

    @property
    def exprs(self) -> sp.Tuple:
        """The value, the weight and all tables."""
        return sp.Tuple(self.value, self.weight, *(t.expr for t in self.tables))

    @property
    def suffix(self) -> str:
        """What tells this variant's functions from the others': empty when there is only one."""
        return "".join(f"__{name}_{spell_setting(value)}" for name, value in self.settings)


def spell_setting(value: Any) -> str:
    """A special value, as a part of an identifier."""
    if value is None:
        return "general"
    plain = str(value).replace(".", "_").replace("-", "minus_").replace("/", "_over_")
    return {"True": "yes", "False": "no", "oo": "inf"}.get(plain, plain)


def check(loss: Loss) -> list[Checked]:
    """Every variant of a loss. Raises CheckError with the place, the names and the repair."""
    where = loss.path or loss.name
    try:
        value, weight = modern(loss.value), modern(loss.mean_over)
        tables = tuple(Table(s.tensor, s.indices, modern(cell_of(s)), s.outside, tuple(s.start.items())) for s in loss.tables)
        both = sp.Tuple(value, weight, *(t.expr for t in tables), *loss.exprs[2 + len(tables):])
        inputs = tuple(t for t in nodes.tensors(both) if not t.record.state)
        check_lengths(inputs)
        ignored = [t for t in inputs if t.record.ignore]
        extra = tuple(ignore_param(t) for t in ignored)
        params = tuple(nodes.params(both)) + extra
        check_names(loss, inputs, params)
        if isinstance(value, Load) and value.tensor.record.integer:
            raise CheckError(f"the loss is the integer tensor {value.tensor.name}", repair="A loss is a real formula.")
        check_nodes(value)
        check_nodes(weight)
        check_indices(value, "the loss")
        check_indices(weight, "mean_over")
        for table in tables:
            check_table(table, tables)
        pads_of(tables, both)
        names: dict[sp.Expr, str] = {modern(e): name for e, name in loss.names.items()}
        for tensor, param in zip(ignored, extra, strict=True):
            value, weight = leave_out(tensor, param, value, weight, names)
        differentiable = tuple(t for t in inputs if not t.record.integer)
        if not differentiable:
            raise CheckError("the formula reads no real tensor: there is nothing to differentiate",
                             repair="Declare its inputs with tensor(...).")
        check_axes(sp.Tuple(value, weight, *(t.expr for t in tables)), inputs)
        if not any(t.record.per_sample and t.record.default is None for t in inputs):
            raise CheckError("every tensor of the formula is optional or shared by all samples, so there are no samples",
                             repair="Declare at least one tensor without optional=True and per_sample=False.")
        wrt = tuple(t for t in differentiable if not t.record.fixed) or differentiable[:1]
        forms = [Checked(loss, settings, specialise(value, settings, params), specialise(weight, settings, params),
                         inputs, params, wrt, differentiable, tuple(replace(t, expr=specialise(t.expr, settings, params)) for t in tables),
                         {specialise(e, settings, params): n for e, n in names.items()}) for settings in variants(params)]
        check_signature(loss, inputs, params)
    except LosscompError as error:
        raise error.at(where) from None
    return forms


def cell_of(state: Any) -> sp.Expr:
    """What a cell of a table is. Raises CheckError where nobody said."""
    if state.expr is None:
        raise CheckError(f"the table {state.tensor.name!r} has no formula",
                         repair=f"Say what a cell is: {state.tensor.name}[{', '.join(i.axis.name for i in state.indices)}] = ...")
    expr: sp.Expr = state.expr
    return expr


def check_lengths(inputs: tuple[Tensor, ...]) -> None:
    """The lengths of ragged tensors are among the inputs."""
    for t in inputs:
        if t.record.length is not None and t.record.length not in {o.name for o in inputs}:
            raise CheckError(f"the length {t.record.length!r} of {t.name!r} is not used", repair="Use it as the extent of an axis.")


def check_table(table: Table, tables: tuple[Table, ...]) -> None:
    """A table reads tables before it, and earlier cells of itself; its formula depends on its own indices alone."""
    known = {t.tensor for t in tables[:tables.index(table) + 1]}
    for load in sorted(table.expr.atoms(Load), key=str):
        if load.tensor.record.state and load.tensor not in known:
            raise CheckError(f"the table {table.name!r} reads {load}, which is not computed before it",
                             repair="List the tables of the loss in order: tables=(first, second, ...).")
    loose = nodes.free_indices(table.expr) - set(table.indices)
    if loose:
        axis = min(loose, key=str).axis.name
        raise CheckError(f"a cell of the table {table.name!r} depends on an index of {axis!r} that is none of its own",
                         repair=f"Reduce over it, or declare the table with an index of {axis}.")
    check_nodes(table.expr)
    schedule_of(table)
    into = table.tensor.record.into
    if into is not None and not points_into(table.expr, into):
        raise CheckError(f"the table {table.name!r} points into {into.name!r}, and {short(table.expr)} may lie outside",
                         repair=f"Build it from integer tensors and parameters that are declared with into={into.name}.")


def modern(expr: sp.Expr) -> sp.Expr:
    """SymPy's own Abs and sign, whose derivative at 0 is 0 by everyone's convention, as ours."""
    return expr.replace(lambda e: isinstance(e, sp.Abs | sp.sign),
                        lambda e: (atoms.Abs if isinstance(e, sp.Abs) else atoms.Sign)(e.args[0]))


def ignore_param(tensor: Tensor) -> Param:
    """The parameter that says which label to leave out."""
    return Param(ParamRecord(str(tensor.record.ignore), -100, integer=True, order=tensor.record.order))


def leave_out(tensor: Tensor, param: Param, value: sp.Expr, weight: sp.Expr,
              names: dict[sp.Expr, str]) -> tuple[sp.Expr, sp.Expr]:
    """Samples whose label is to be ignored: the label is made a safe index first, then value and weight are masked."""
    label = Load(tensor)
    ignored = sp.Eq(label, param)
    safe = Where(ignored, 0, label)
    known = {nodes.substitute(e, {label: safe}): name for e, name in names.items()}
    names.clear()
    names |= known | {ignored: "ignored", safe: f"safe_{tensor.name}"}
    mask = [Where(ignored, 0, nodes.substitute(e, {label: safe})) for e in (value, weight)]
    return mask[0], mask[1]


def variants(params: tuple[Param, ...]) -> list[tuple[tuple[str, Any], ...]]:
    """Every combination of special values; the general case, where a parameter has one, comes last."""
    special = [p for p in params if p.record.special]
    choices = [[(p.name, v) for v in p.record.special] + ([] if p.record.only_special else [(p.name, None)]) for p in special]
    return [tuple(c) for c in itertools.product(*choices)]


def specialise(expr: sp.Expr, settings: tuple[tuple[str, Any], ...], params: tuple[Param, ...]) -> sp.Expr:
    """The expression with every build-time choice settled."""
    rule: dict[Any, Any] = {}
    for name, value in settings:
        param = next(p for p in params if p.name == name)
        rule |= {Chosen(param, v): sp.true if v == value else sp.false for v in param.record.special}
    settled = nodes.substitute(expr, rule)
    numbers = {p: value for name, value in settings for p in params
               if p.name == name and value is not None and not isinstance(value, sp.logic.boolalg.BooleanAtom)}
    return nodes.substitute(settled, numbers)


def check_names(loss: Loss, inputs: tuple[Tensor, ...], params: tuple[Param, ...]) -> None:
    """Names must be identifiers that no target has another use for, and stand for one thing each."""
    axes = dict.fromkeys(a for t in inputs for a in t.record.axes)
    axes |= dict.fromkeys(i.axis for s in loss.tables for i in s.indices)
    things = [(t.name, "tensor") for t in inputs] + [(p.name, "parameter") for p in params] + [(a.name, "axis") for a in axes]
    things += [(s.tensor.name, "table") for s in loss.tables]
    seen: dict[str, str] = {}
    for name, kind in ([(loss.name, "loss")] if loss.name else []) + things:
        if not safe_name(name):
            raise CheckError(f"the {kind} name {name!r} is no plain identifier, or is a keyword or function of a target",
                             repair=f"Rename it, for example to {name.strip('_') or 'x'}_value.")
        if kind != "loss" and not name.startswith("reduction_is_") and (name in RESERVED or name.startswith(PREFIXES)):
            raise CheckError(f"the {kind} name {name!r} is used by the emitted code", repair="Choose another name.")
        if name in seen and kind != "loss" and seen[name] != "loss":
            raise CheckError(f"{name!r} names a {seen[name]} and a {kind}", repair="Give each its own name.")
        seen[name] = kind


def check_nodes(expr: sp.Expr) -> None:
    """Nothing but the language: no foreign symbols, no kinks without a convention, no functions without an atom."""
    for node in nodes.postorder(expr):
        if type(node) in INSTEAD or isinstance(node, tuple(INSTEAD)):
            instead = next(text for kind, text in INSTEAD.items() if isinstance(node, kind))
            raise CheckError(f"SymPy's {type(node).__name__} in {short(node)} does not say what its derivative is where it has a "
                             f"kink, or has no form in the targets", repair=f"Use {instead}.")
        if isinstance(node, sp.Symbol) and not in_label(node, expr):
            raise CheckError(f"the symbol {node.name!r} is no declared input",
                             repair=f"Declare it: {node.name} = tensor({node.name!r}) or param({node.name!r}, default=...).")
        if isinstance(node, sp.Function) and not (isinstance(node, sp.exp | sp.floor) or atoms.is_atom(node) or type(node) in DIRECT):
            raise CheckError(f"the function {type(node).__name__} in {short(node)} is not in the language",
                             repair=f"Known: exp, {', '.join(sorted(t.__name__ for t in DIRECT))}; more in losscomp/atoms.py.")


def in_label(symbol: sp.Symbol, expr: sp.Expr) -> bool:
    """Is this symbol the name or the operation of one of our nodes?"""
    return any(node.args and node.args[0] == symbol for node in expr.atoms(nodes.Reduce, nodes.Named))


def check_indices(expr: sp.Expr, what: str) -> None:
    """Every index is bound by a reduction."""
    loose = sorted(nodes.free_indices(expr), key=str)
    if loose:
        axis = loose[0].axis.name
        raise CheckError(f"{what} depends on an index of the axis {axis!r}, so it is no number a sample",
                         repair=f"Reduce over it: Sum(..., index), MaxOver or LogSumExp, with the index made by {axis}.index().")


def check_axes(exprs: sp.Tuple, inputs: tuple[Tensor, ...]) -> None:
    """The length of every axis is known from a tensor that must be given."""
    used = {a.name for a in exprs.atoms(Axis)} | {r.bound.axis.name for r in exprs.atoms(nodes.Reduce)}
    used |= {t.record.into.name for t in inputs if t.record.into} | {a.name for t in inputs for a in t.record.axes}
    known = {a.name for t in inputs if t.record.default is None for a in t.record.axes}
    extents = {a.name for a in exprs.atoms(Axis) | {r.bound.axis for r in exprs.atoms(nodes.Reduce)} if a.record.extent is not None}
    for name in sorted(used - known - extents):
        raise CheckError(f"the length of the axis {name!r} is not known: no tensor that must be given has it",
                         repair=f"Read a tensor that has the axis {name!r} and is not optional.")


def check_signature(loss: Loss, inputs: tuple[Tensor, ...], params: tuple[Param, ...]) -> None:
    """A written signature names every argument once."""
    if not loss.signature:
        return
    words = loss.signature.replace("*", "").split()
    expected = {t.name for t in inputs} | {p.name for p in params if not p.record.reduction} | {"reduction"}
    expected |= {loss.computed.function} if loss.computed else set()
    missing, unknown = sorted(expected - set(words)), sorted(set(words) - expected - set(LEGACY))
    if missing or unknown or len(words) != len(set(words)):
        raise CheckError(f"signature={loss.signature!r} does not fit: missing {missing}, unknown {unknown}",
                         repair=f"Name each of {sorted(expected)} once, and {LEGACY[0]}, {LEGACY[1]} where the peer has them.")


def short(node: Any, limit: int = 60) -> str:
    """An expression that fits into a message."""
    text = str(node)
    return text if len(text) <= limit else text[:limit - 3] + "..."


__all__ = ["Checked", "Index", "check"]

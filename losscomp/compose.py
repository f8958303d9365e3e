"""A hierarchy as Python text: its tree of choices with sizes that callers give, and what is asked of the loss that it is composed of."""

from __future__ import annotations

import builtins
import keyword
from collections.abc import Iterator, Mapping
from typing import Any

import sympy as sp
from sympy.printing.precedence import PRECEDENCE

from . import nodes
from .catalogue import forms_of
from .errors import CheckError
from .formula import TextPrinter
from .hierarchy import Choice, Classes, Each, Hierarchy
from .language import LogSumExp, Loss
from .nodes import Index, Load, Param, Tensor
from .pipeline import plain
from .reuse import reused
from .rewrite import rewrite
from .rules import SMOOTHING

INDENT = "    "
RESERVED = frozenset({"self", "input", "target", "parameters", "wrt", "upstream", "reduction", "device", "dtype", "outcome", "forward",
                      "training", "shapes", "value_and_grad", "grad", "state", "grad_within", "finish", "spec", "log_prob", "predict",
                      "reset_parameters", "choices", "Choice", "Layers"})


class SizePrinter(TextPrinter):
    """Prints formulas of sizes as Python: an index by the name of its axis, a number of pieces as a length."""

    def __init__(self, cuts: Mapping[nodes.Axis, str]) -> None:
        super().__init__({})
        self.cuts = cuts

    def __call__(self, expr: sp.Basic) -> str:
        """The text of a formula."""
        return str(self.doprint(expr))

    def _print_Index(self, e: Index) -> str:
        return e.axis.name

    def _print_Axis(self, e: nodes.Axis) -> str:
        return f"len({self.cuts[e]})" if e in self.cuts else e.name

    def _print_floor(self, e: sp.Expr) -> str:
        above, below = sp.fraction(e.args[0])
        return f"int({self.parenthesize(above, PRECEDENCE['Mul'])} // {self.parenthesize(below, PRECEDENCE['Pow'], strict=True)})"


def printer_of(hierarchy: Hierarchy) -> SizePrinter:
    """What prints the sizes of a hierarchy."""
    return SizePrinter({a.record.axes[0]: a.name for a in hierarchy.arguments if isinstance(a, Tensor)})


def python_name(name: str) -> bool:
    """May an argument, an attribute or layers be called so? Names of emitted code and of Python's own are taken."""
    return name.isidentifier() and not (keyword.iskeyword(name) or hasattr(builtins, name) or name.startswith("_") or name in RESERVED)


def check_hierarchy(hierarchy: Hierarchy) -> None:
    """Names are safe in Python and used once, and indices are bound. Raises CheckError."""
    printer = printer_of(hierarchy)
    arguments, taken = [a.name for a in hierarchy.arguments], set()
    for name in [*arguments, *hierarchy.attributes, *names_of_layers(hierarchy.choice)]:
        if not python_name(name):
            raise CheckError(f"{name!r} is no name for an argument, an attribute or layers", repair="Choose another.")
        if name in taken:
            raise CheckError(f"{name!r} is the name of two things", repair="Give arguments, attributes and layers names of their own.")
        taken.add(name)

    def visit(choice: Choice, bound: frozenset[Index]) -> None:
        for expr in (*choice.layers.widths, *(e for o in choice.outcomes if isinstance(o, Classes) for e in (o.first, o.end))):
            loose = expr.atoms(Index) - bound
            if loose:
                raise CheckError(f"the choice by {choice.layers.name!r} has {printer(expr)}, and stands in no each(...) over "
                                 f"{loose.pop().axis.name}", repair="Put it into one: each(index, Choice(...)).")
        for outcome in choice.outcomes:
            if isinstance(outcome, Each):
                name = outcome.index.axis.name
                if not python_name(name) or name in arguments or name in {i.axis.name for i in bound}:
                    raise CheckError(f"the axis of each(...) may not be called {name!r}", repair="Choose another name for it.")
                visit(outcome.choice, bound | {outcome.index})
            elif isinstance(outcome, Choice):
                visit(outcome, bound)

    visit(hierarchy.choice, frozenset())
    if len(hierarchy.forward.split()) != 2:
        raise CheckError(f"forward={hierarchy.forward!r} does not name two tensors", repair='Such as forward="input target".')


def names_of_layers(choice: Choice) -> Iterator[str]:
    """The names of all layers."""
    yield choice.layers.name
    for outcome in choice.outcomes:
        if not isinstance(outcome, Classes):
            yield from names_of_layers(outcome.choice if isinstance(outcome, Each) else outcome)


def row_loss(hierarchy: Hierarchy) -> tuple[str, str, str]:
    """The name of the loss of an outcome, of its scores and of its index. Raises CheckError.

    It must be LogSumExp(scores) - scores[outcome], its other arguments left out: then it is -log of a probability, and the one of all
    outcomes follows from that of one.
    """
    definition = hierarchy.loss
    found = [names for form in forms_of(definition) if (names := scores_and_index(form))]
    if len(found) != 1:
        raise CheckError(f"{definition.name} is not -log of the softmax of some scores at an index, as the loss of a choice must be",
                         repair="Name one that is, such as a cross-entropy: loss=base(FILE).NAME.")
    return definition.name, *found[0]


def scores_and_index(form: Loss) -> tuple[str, str] | None:
    """The names of scores and index, if a loss is -log of the softmax of the first at the second."""
    tensors = [t for t in nodes.tensors(form.exprs) if t.record.default is None]
    if len(tensors) != 2 or sorted(t.record.integer for t in tensors) != [False, True] or form.tables:
        return None
    scores, label = sorted(tensors, key=lambda t: t.record.integer)
    if len(scores.record.axes) != 1 or label.record.axes or label.record.into != scores.record.axes[0]:
        return None
    at, every = (scores.record.axes[0].index() for _ in range(2))
    usual: dict[str, Any] = {t.name: t.record.default for t in nodes.tensors(form.value) if t.record.default is not None}
    usual |= {p.name: p.record.default for p in nodes.params(form.value)}
    told = reused(form.value, **{label.name: at}, **usual)
    wanted = LogSumExp(Load(scores, every), every) - Load(scores, at)
    return (scores.name, label.name) if sp.expand(smooth(told) - smooth(wanted)) == 0 else None


def smooth(expr: sp.Expr) -> sp.Expr:
    """A formula in smooth atoms, without names."""
    bare = expr.replace(lambda e: isinstance(e, nodes.Named), lambda e: e.body)
    return plain(rewrite(bare, SMOOTHING)[0])


def choice_lines(choice: Choice, printer: SizePrinter, indices: tuple[Index, ...] = (), depth: int = 1) -> Iterator[str]:
    """The tree as a Python expression, a line each."""
    name = "".join([choice.layers.name, *(f".{{{printer(i)}}}" for i in indices)])
    widths = ", ".join(map(printer, choice.layers.widths)) + ("," if len(choice.layers.widths) == 1 else "")
    spelled = f'"{name}"' if not indices else f'f"{name}"'
    here, inner = INDENT * depth, INDENT * (depth + 1)
    yield f"{here}Choice("
    bias = f", bias={printer(sp.sympify(choice.layers.bias))}" if choice.layers.bias is not False else ""
    yield f"{inner}Layers({spelled}, ({widths}){bias}),"
    for outcome in choice.outcomes:
        match outcome:
            case Classes(first, end):
                yield f"{inner}range({printer(first)}, {printer(end)}),"
            case Each(index, each):
                yield f"{inner}*("
                yield from choice_lines(each, printer, (*indices, index), depth + 2)
                yield f"{inner}{INDENT}for {printer(index)} in range({printer(index.axis.record.extent)})"
                yield f"{inner}),"
            case Choice():
                yield from (*(lines := list(choice_lines(outcome, printer, indices, depth + 1)))[:-1], f"{lines[-1]},")
    yield f"{here})"


def argument_kinds(hierarchy: Hierarchy) -> list[dict[str, Any]]:
    """What is said of each argument: its kind ("size", "cuts", "option" or "number"), its type, what it is checked against."""
    out = []
    for a in hierarchy.arguments:
        if isinstance(a, Tensor):
            end = a.record.axes[0].record.size.name
            out.append({"name": a.name, "kind": "cuts", "type": "Sequence[int]", "of": end,
                        "doc": f"where the range from 0 to {end} is cut into pieces: integers in increasing order, between the two."})
        elif a.record.default is None:
            out.append({"name": a.name, "kind": "size", "type": "int", "doc": "an integer, at least 1."})
        else:
            out.append(scalar(a))
    return out


def scalar(p: Param) -> dict[str, Any]:
    """A parameter with a default."""
    if p.record.is_option:
        return {"name": p.name, "kind": "option", "type": "bool", "default": bool(p.record.default), "doc": "an option."}
    said = f"a number{', ' + p.record.domain.words() if p.record.domain.bounded else ''}."
    return {"name": p.name, "kind": "number", "type": "float", "default": float(p.record.default), "doc": said, "param": p}


def hierarchy_values(hierarchy: Hierarchy) -> dict[str, Any]:
    """What the files of a hierarchy are written from. Raises CheckError."""
    check_hierarchy(hierarchy)
    printer = printer_of(hierarchy)
    loss, scores, label = row_loss(hierarchy)
    arguments = argument_kinds(hierarchy)
    return {
        "loss": loss, "scores": scores, "label": label, "arguments": arguments,
        "signature": ", ".join(f"{a['name']}: {a['type']}" + (f" = {a['default']!r}" if "default" in a else "") for a in arguments),
        "passed": ", ".join(a["name"] for a in arguments),
        "tree": list(choice_lines(hierarchy.choice, printer)),
        "forward": hierarchy.forward.split(),
        "attributes": {name: printer(sp.sympify(expr)) for name, expr in hierarchy.attributes.items()},
        "notes": hierarchy.notes, "like": hierarchy.like,
    }

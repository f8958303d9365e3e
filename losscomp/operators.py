"""The torch operators of each loss: their schemas, and the table that the binding works from. Text and numbers only."""

from __future__ import annotations

import math
from typing import Any

import sympy as sp

from .check import Checked, spell_setting
from .nodes import Param, Tensor
from .pipeline import Compiled

KINDS = {"bool": "OPTION", "int": "INTEGER", "float": "NUMBER"}


def operators_of(name: str, order: list[str], compiled: list[list[Compiled]], forms: list[dict[str, Any]]) -> dict[str, Any]:
    """What the tables of the binding say of a loss.

    Args:
        order: the names of its tensors and scalars in the order of the signature.
        compiled: every variant of every form.
        forms: the records that the emitted Form is written from.
    """
    tensors = {t.name: t for group in compiled for t in group[0].form.inputs}
    scalars = {p.name: p for group in compiled for p in group[0].form.params}
    inputs = [tensors[n] for n in order if n in tensors]
    params = [scalars[n] for n in order if n in scalars]
    return {
        "schemas": schemas(name, inputs, params),
        "inputs": [{"name": t.name, "optional": truth(t.record.default is not None), "otherwise": repr(float(t.record.default or 0.0))}
                   for t in inputs],
        "params": [{"name": p.name, "kind": KINDS[kind_of(p)]} for p in params],
        "variants": max(math.prod(len(c) for c in choices_of(group[0].form)) for group in compiled),
        "forms": [form_row(group, record, inputs, params) for group, record in zip(compiled, forms, strict=True)],
    }


def kind_of(p: Param) -> str:
    """The type of a scalar, as Python and a schema have it."""
    return "bool" if p.record.is_option else "int" if p.record.integer else "float"


def schemas(name: str, inputs: list[Tensor], params: list[Param]) -> list[str]:
    """The operators of a loss: public, raw, fused, gradient (public and raw), derivative of the gradient."""
    tensors = [f"Tensor{'' if t.record.default is None else '?'} {t.name}" for t in inputs]
    scalars = ["int reduction", *(f"{kind_of(p)} {p.name}" for p in params)]
    value = ", ".join(tensors + scalars)
    grad = ", ".join(["Tensor upstream", *tensors, *scalars, "int wrt"])
    hvp = ", ".join(["Tensor upstream", "Tensor[] ways", "int moving", *tensors, *scalars, "int wrt"])
    return [f"{name}({value}) -> Tensor", f"_{name}({value}) -> Tensor", f"_{name}_fused({value}, int wrt) -> Tensor[]",
            f"{name}_grad({grad}) -> Tensor[]", f"_{name}_grad({grad}) -> Tensor[]", f"_{name}_hvp({hvp}) -> Tensor[]"]


def choices_of(form: Checked) -> list[list[Any]]:
    """For each parameter whose value chooses the kernel: its special values, and None for all others."""
    found = []
    for name, _ in form.settings:
        record = next(p for p in form.params if p.name == name).record
        found.append([*record.special, *([] if record.only_special else [None])])
    return found


def form_row(group: list[Compiled], record: dict[str, Any], inputs: list[Tensor], params: list[Param]) -> dict[str, Any]:
    """A form, as the table has it."""
    form = group[0].form
    axes = [a.name for a in form.axes]
    own = {t.name: t for t in form.inputs}
    bits = lambda names: sum(1 << k for k, t in enumerate(inputs) if t.name in names)
    reads = record["weight_reads"]
    return {
        "mark": record["mark"], "axes": axes,
        "shapes": [shape_row(own.get(t.name), axes) for t in inputs],
        "choices": [choice_row(name, values, params) for (name, _), values in zip(form.settings, choices_of(form), strict=True)],
        "usual": bits(record["wrt"]), "differentiable": bits(record["differentiable"]), "weight_reads": bits(reads or ()),
        "weigh": "COUNTED" if reads is None else "MEASURED" if record["weight_alone"] is None else "WEIGHED",
        "alone": repr(float(record["weight_alone"] or 0.0)),
    }


def shape_row(t: Tensor | None, axes: list[str]) -> str:
    """An input in one form, as C++ has it."""
    if t is None:
        return "{}"
    places = ", ".join(str(axes.index(a.name)) for a in t.record.axes)
    return f"{{true, {truth(t.record.per_sample)}, {truth(t.record.integer)}, {len(t.record.axes)}, {{{places}}}}}"


def choice_row(name: str, values: list[Any], params: list[Param]) -> str:
    """A choice, as C++ has it."""
    place = next(k for k, p in enumerate(params) if p.name == name)
    settled = ", ".join(number(v) for v in values if v is not None)
    suffixes = ", ".join(f'"__{name}_{spell_setting(v)}"' for v in values)
    return f"{{{place}, {len(values)}, {int(None in values)}, {{{settled}}}, {{{suffixes}}}}}"


def number(value: Any) -> str:
    """A special value as C++ has it."""
    if value in (sp.true, sp.false):
        return str(int(value == sp.true))
    return "INFINITY" if value == sp.oo else repr(float(value))


def truth(value: Any) -> str:
    """A truth value as C++ has it."""
    return "true" if value else "false"

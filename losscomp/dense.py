"""The typed functions of the C header: for each loss one over dense arrays. What the templates need to know to write them."""

from __future__ import annotations

from typing import Any

import sympy as sp

from . import nodes
from .check import Checked, spell_setting
from .pipeline import Compiled


def dense_functions(compiled: list[list[Compiled]]) -> list[dict[str, Any]]:
    """One record a form, of text and numbers only. A form whose denominator is not simple has none: kernels serve it."""
    return [record(group) for group in compiled if simple(group)]


def simple(group: list[Compiled]) -> bool:
    """Is the denominator of the mean the same number for all samples, or data that has no gradient by default?"""
    weights = [sp.sympify(c.form.weight) for c in group]
    if any(w.is_number for w in weights):
        return len(set(weights)) == 1
    return not any(t in c.form.wrt for c, w in zip(group, weights, strict=True) for t in nodes.tensors(w))


def record(group: list[Compiled]) -> dict[str, Any]:
    """What one function takes, and how it finds its kernel."""
    form = group[0].form
    return {
        "mark": group[0].mark,
        "axes": [a.name for a in form.axes],
        "inputs": [{"name": t.name, "axes": [a.name for a in t.record.axes], "integer": bool(t.record.integer),
                    "into": t.record.into.name if t.record.into else None, "per_sample": t.record.per_sample,
                    "measures": t.record.measures.name if t.record.measures else None, "default": t.record.default} for t in form.inputs],
        "params": [{"name": p.name, "kind": "int" if p.record.is_option else "int64_t" if p.record.integer else "double"}
                   for p in form.params if not p.record.reduction],
        "variant": [suffix(form, name) for name, _ in form.settings],
        "gradients": [t.name for t in form.wrt if t.record.per_sample],
        "weight": float(form.weight) if form.weight.is_number else None,
        "reductions": [name for name in form.loss.reductions if name != "none"],
        "items": items(form),
    }


def items(form: Checked) -> list[str]:
    """What each name stands for, as rows of a table in C: axes, inputs, scalars, gradients."""
    rows = [(a.name, "NULL", f"(double){a.name}") for a in form.axes]
    rows += [(t.name, t.name, "NAN" if t.record.default is None else repr(float(t.record.default))) for t in form.inputs]
    asked = {p.name: f"(double)(reduction == LOSSLIB_{p.record.reduction.upper()})" for p in form.params if p.record.reduction}
    rows += [(p.name, "NULL", asked.get(p.name, f"(double){p.name}")) for p in form.params]
    rows += [(f"grad_{t.name}", f"grad_{t.name}", "0") for t in form.wrt if t.record.per_sample]
    return [f'{{"{name}", {data}, {number}}}' for name, data, number in rows] + ["{NULL, NULL, 0}"]


def suffix(form: Checked, name: str) -> str:
    """A C expression for the part of a kernel's name that the value of a parameter decides."""
    param = next(p for p in form.params if p.name == name)
    text = "" if param.record.is_option else f'"__{name}_{spell_setting(None)}"'
    for value in reversed(param.record.special):
        word = f'"__{name}_{spell_setting(value)}"'
        text = f"{test(name, value)} ? {word} : {text}" if text else word
    return text


def test(name: str, value: Any) -> str:
    """A C condition: is the parameter this special value?"""
    if value in (sp.true, sp.false):
        return name if value == sp.true else f"!{name}"
    return f"{name} == {'INFINITY' if value == sp.oo else repr(float(value))}"

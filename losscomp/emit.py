"""The emit stage: from compiled losses to the text of every file of a library."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import sympy as sp

from . import formula, ir, nodes
from .catalogue import module_name
from .check import LEGACY, Checked
from .compiler import STAMP
from .compose import hierarchy_values
from .composite import composite
from .composite_tables import composite_of_tables
from .dense import dense_functions
from .errors import BuildError
from .family import families
from .hierarchy import Hierarchy
from .language import BATCH, COUNT, REDUCTIONS, TOTAL, WEIGHT, Computed, Definition, Loss, Overload
from .nodes import Param, Tensor
from .operators import kind_of, operators_of
from .pipeline import Compiled, compile_loss, kernels, signature
from .render import render
from .targets import c as c_target
from .targets import c_side, c_tables, cuda_tables, numpy_tables, torch_tables
from .targets import cuda as cuda_target
from .targets import numpy as numpy_target
from .targets import torch as torch_target

Files = dict[str, str]
TARGETS = ("numpy", "c", "torch", "cuda")
OF_SCORES = ("scores", "minimum", "links", "boosting", "optimize")         # losses as functions of scores, for other packages
TORCH_SOURCES = ("operators.h", "tensor.h", "request.h", "register.h", "direct.h", "schemas.cpp", "binding.cpp", "cuda.cpp", "quick.cpp")


@dataclass
class Emitted:
    """What one loss gives: its files, and what the files about all losses need to know of it."""

    name: str
    class_name: str
    files: Files
    kernel_names: list[str]
    summary: str
    aliases: list[str] = field(default_factory=list)            # other names of the class form
    framework: str = ""                                         # whose form of another loss this is: the first word of its name
    dense: list[dict[str, Any]] = field(default_factory=list)   # the typed functions of the C header
    operators: dict[str, Any] = field(default_factory=dict)     # the torch operators
    composed_of: str = ""                                       # the loss that a hierarchy is composed of: it has no kernels


def forms_of(definition: Definition) -> tuple[Loss, ...]:
    """The formulas of a definition."""
    return definition.forms if isinstance(definition, Overload) else (definition,)


def compile_definition(definition: Definition) -> list[list[Compiled]]:
    """Every variant of every form."""
    forms = [compile_loss(form) for form in forms_of(definition)]
    if len(forms) > 1:
        tag_forms(forms)
    return forms


def tag_forms(forms: list[list[Compiled]]) -> None:
    """Where a loss has several forms, functions are told apart by the tensors that are an index in one and real in another."""
    kinds = [{t.name: "index" if t.record.integer else "real" for t in group[0].form.inputs} for group in forms]
    for group, mine in zip(forms, kinds, strict=True):
        differ = [name for name, kind in mine.items() if any(other.get(name, kind) != kind for other in kinds)]
        for compiled in group:
            compiled.mark = "".join(f"__{name}_{mine[name]}" for name in differ)


def emit_loss(definition: Definition | Hierarchy, package: str, source: str, targets: Collection[str] = TARGETS) -> Emitted:
    """The files of one loss, for some targets."""
    if isinstance(definition, Hierarchy):
        return emit_hierarchy(definition, package, source, targets)
    compiled = compile_definition(definition)
    name, src, files = definition.name, f"src/{package}", {}
    lines = [line for group in compiled for line in formula.formula_lines(group[0].form)]
    common = {"package": package, "prefix": package, "name": name, "source": source, "summary": summary_of(definition.doc, name),
              "formula": "\n".join(lines), "shapes": shapes(compiled)}
    flat = [c for group in compiled for c in group]
    values = class_values(definition, compiled, lines)
    files[f"{src}/losses/{name}.py"] = render("library/package/losses.py.jinja", package=package, source=source, **values)
    kernel_names: list[str] = []
    if "numpy" in targets:
        files[f"{src}/numpy/kernels/{name}.py"] = emit_numpy(flat, common)
    if not {"c", "torch"}.isdisjoint(targets):
        files[f"{src}/csrc/{name}.c"], kernel_names = emit_c(compiled, common)
    if "torch" in targets:
        files[f"{src}/torch/losses/{name}.py"] = render("torch/loss.py.jinja", package=package, source=source, **values)
        files[f"{src}/torch/composites/{name}.py"] = emit_composite(flat, common)
    if "cuda" in targets:
        files[f"{src}/cuda/{name}.cu"] = emit_cuda(flat, common)
    operators = operators_of(name, values["order"], compiled, values["forms"])
    framework = name.partition("_")[0] if forms_of(definition)[0].dialect_of else ""
    return Emitted(name, module_name(definition), files, kernel_names, common["summary"], values["aliases"], framework,
                   dense_functions(compiled), operators)


def emit_hierarchy(definition: Hierarchy, package: str, source: str, targets: Collection[str] = TARGETS) -> Emitted:
    """The files of a loss that is composed of another: its tree and its classes."""
    name, class_name = definition.name, module_name(definition)
    values = hierarchy_values(definition)
    for argument in values["arguments"]:
        if argument["kind"] == "number":
            argument["record"] = parameter_record(argument.pop("param"))
    kinds = {a["kind"] for a in values["arguments"]}
    checks = [f"check_{kind}" for kind in ("cuts", "size") if kind in kinds]
    values |= {"package": package, "source": source, "name": name, "class_name": class_name, "doc": documented(definition.doc),
               "tree": "\n".join(values["tree"]).strip(), "imports": ", ".join(["Choice", "Layers", *checks]),
               "numbers": "number" in kinds, "cut": "cuts" in kinds}
    files = {f"src/{package}/compositions/{name}.py": render("library/package/composition.py.jinja", **values)}
    if "torch" in targets:
        files[f"src/{package}/torch/compositions/{name}.py"] = render("torch/composition.py.jinja", **values)
    return Emitted(name, class_name, files, [], summary_of(definition.doc, name), composed_of=values["loss"])


def documented(doc: str) -> str:
    """The docstring of a class."""
    return "\n".join(line.rstrip() for line in textwrap.indent(doc.strip(), "    ").splitlines()).strip()


def emit_numpy(compiled: list[Compiled], common: Mapping[str, Any]) -> str:
    """The NumPy file of one loss: a function for each kernel."""
    variants = [{"suffix": c.mark + c.form.suffix, "words": words(c.form),
                 "kernels": [(numpy_tables.TablesText if k.tables else numpy_target.NumPyText)(k)
                             for k in kernels(c, numpy_target.ARRAYS)]} for c in compiled]
    return render("numpy/loss.py.jinja", variants=variants, **common)


def emit_c(compiled: list[list[Compiled]], common: Mapping[str, Any]) -> tuple[str, list[str]]:
    """The C file of one loss: a function for each family of kernels; and the names of the kernels."""
    texts = [c_target.FamilyText(f, c_tables.TablesText if f.kernel.tables else c_side.SideText)
             for group in compiled for f in families(group)]
    told = [t.kernel for t in texts]
    text = render("c/loss.c.jinja", families=texts, scaled=any(t.scaled for t in texts), braced=c_target.braced,
                  argument_rows=c_target.argument_rows(told), param_rows=c_target.param_rows(told),
                  rows=[row for t in texts for row in t.members], **common)
    return text, [m.name for t in texts for m in t.family.members]


def emit_composite(variants: list[Compiled], common: Mapping[str, Any]) -> str:
    """The file of a loss for PyTorch to differentiate: one function a variant."""
    def text(c: Compiled, kernel: ir.Kernel, *printer: type[torch_target.TorchPrinter]) -> torch_target.TorchText:
        defaults, kinds = {t.name: t.record.default for t in c.form.inputs}, {p.name: kind_of(p) for p in c.form.params}
        return (torch_tables.TablesText if c.form.tables else torch_target.TorchText)(kernel, defaults, kinds, *printer)

    return render("torch/composite.py.jinja", **common, variants=[
        {"suffix": c.mark + c.form.suffix, "words": words(c.form), "text": text(c, kernel),
         "weight": None if c.form.weight == 1 else text(c, composite(c, ("denominator",))),
         "sharded": text(c, kernel, torch_target.ShardedPrinter) if torch_target.shardable(kernel) else None}
        for c in variants for kernel in [composite_of_tables(c) if c.form.tables else composite(c)]])


def emit_cuda(compiled: list[Compiled], common: Mapping[str, Any]) -> str:
    """The CUDA file of one loss: the kernels that others are served by, and what is found under every name."""
    variants, told = [], []
    for c in compiled:
        pairs = cuda_target.serving(kernels(c, False))
        texts = {k.name: cuda_tables.text_of(k) for pair in pairs for k in pair}
        served = [(given.name, texts[done.name]) for given, done in pairs]
        variants.append({"suffix": c.mark + c.form.suffix, "words": words(c.form), "served": served,
                         "kernels": list(dict.fromkeys(text for _, text in served)), "signatures": list(texts.values())})
        told += [text.kernel for text in texts.values()]
    return render("cuda/loss.cu.jinja", variants=variants, argument_rows=cuda_target.argument_rows(told),
                  param_rows=cuda_target.param_rows(told), **common)


def summary_of(doc: str, name: str) -> str:
    """The first line of a docstring."""
    return (doc.strip().splitlines() or [name])[0]


def words(form: Checked) -> str:
    """The settings of a variant, as a person says them."""
    said = [f"{name} is {'none of the special values' if value is None else value}" for name, value in form.settings]
    return f", where {' and '.join(said)}" if said else ""


def shapes(compiled: list[list[Compiled]]) -> str:
    """The arrays of a loss and their shapes."""
    found: dict[str, str] = {}
    for group in compiled:
        for t in group[0].form.inputs:
            shape = (["batch"] if t.record.per_sample else []) + [a.name for a in t.record.axes]
            found.setdefault(t.name, f"{t.name} [{', '.join(shape)}]")
    return ", ".join(found.values())


# The class of a loss

def signature_words(definition: Definition, forms: list[Checked]) -> list[str]:
    """The names of the arguments, in order."""
    if definition.signature:
        return definition.signature.split()
    tensors = {t.name: t for f in forms for t in f.inputs}
    scalars = {p.name: p for f in forms for p in f.params if not p.record.reduction}
    required = [t for t in tensors.values() if t.record.default is None]
    optional = [t for t in tensors.values() if t.record.default is not None]
    return [t.name for t in required] + [t.name for t in optional] + ["reduction"] + list(scalars)


def class_values(definition: Definition, compiled: list[list[Compiled]], lines: list[str]) -> dict[str, Any]:
    """What the classes that users call are written from: signature, documentation, and the record of the loss."""
    forms = [group[0].form for group in compiled]
    order = signature_words(definition, forms)
    tensors = {t.name: t for f in forms for t in f.inputs}
    scalars = {p.name: p for f in forms for p in f.params if not p.record.reduction}
    reductions = forms[0].loss.reductions
    required = [n for n in order if n in tensors and tensors[n].record.default is None]
    loss = forms[0].loss
    functions = [loss.computed.function] if loss.computed else []
    declared = {n: n if n == "*" else declare(n, tensors, scalars, functions, loss.default) for n in order}
    rest = [declared[n] for n in order if n not in required and n != "*"]
    legacy = "legacy_reduction(size_average, reduce, reduction)" if LEGACY[0] in order else "reduction"
    ordered_tensors = [n for n in order if n in tensors]
    ordered_scalars = [n for n in order if n in scalars]
    pack = f"({tuple_text(ordered_tensors)}), ({tuple_text(ordered_scalars)}), {legacy}"
    return {
        "name": definition.name, "class_name": module_name(definition), "order": order, "reductions": reductions,
        "words": dict(forms[0].loss.words),
        "tensors": ordered_tensors, "scalars": ordered_scalars, "quoted": quoted, "doc": documented(definition.doc), "formula": lines,
        "summary": summary_of(definition.doc, definition.name), "forms": [form_record(group) for group in compiled],
        "arguments": [argument_doc(n, tensors, scalars, reductions, loss.computed) for n in order if n not in (*LEGACY, "*")],
        "other": other_loss(loss, order, ordered_tensors, ordered_scalars, legacy), "aliases": list(loss.aliases),
        "star": "" if "*" in order else ", *",
        "notes": definition.notes or forms[0].loss.notes, "like": definition.like or forms[0].loss.like,
        "signature": ", ".join(declared[n] for n in order), "required": ", ".join(declared[n] for n in required), "rest": ", ".join(rest),
        "pack": pack, **module_values(definition, order, declared, required, tensors, functions),
    }


def other_loss(loss: Loss, order: list[str], tensors: list[str], scalars: list[str], reduction: str) -> dict[str, Any] | None:
    """Where the caller may give a function: how the loss of what it computes is found, and the arguments of that."""
    computed = loss.computed
    if computed is None:
        return None
    only = {name: f" if {option} else None" for name, option in computed.when.items()}
    values = {name: f"{computed.function}({', '.join(of.split())}){only.get(name, '')}" for name, of in computed.tensors.items()}
    return {"function": computed.function, "loss": computed.loss, "tensors": tuple_text(tensors),
            "passed": ", ".join(n if n in tensors else f"{n}={n}" for n in order if n != "*"),
            "arguments": values | {name: name for name in scalars} | {"reduction": reduction}}


def module_values(definition: Definition, order: list[str], declared: Mapping[str, str], required: list[str],
                  tensors: Mapping[str, Tensor], functions: list[str]) -> dict[str, Any]:
    """What the module form is written from: its arguments are those of the function but for the tensors of each call."""
    words = definition.module_signature.split() or [n for n in order if n not in required]
    kept = [n for n in words if n not in ("*", "reduction", *LEGACY)]
    legacy = LEGACY[0] in words
    called = definition.forward.split() or required
    loss = forms_of(definition)[0]
    chosen = f"reduction: str = {loss.module_default or loss.default!r}"
    return {
        "module_forward": ", ".join(f"{n}: Any" for n in called),
        "module_signature": ", ".join({**declared, "reduction": chosen}.get(n, n) for n in words),
        "module_passed": ", ".join(f"{n}={n}" for n in words if n != "*"),
        "module_reduction": f"legacy_reduction({', '.join(LEGACY)}, reduction)" if legacy else "reduction",
        "module_functions": [n for n in kept if n in functions],
        "module_scalars": [n for n in kept if n not in tensors and n not in functions], "module_buffers": [n for n in kept if n in tensors],
        "module_call": ", ".join([*called, *(f"{n}=self.{n}" for n in kept), "reduction=self.reduction"]),
    }


def declare(name: str, tensors: Mapping[str, Tensor], scalars: Mapping[str, Param], functions: list[str], usual: str) -> str:
    """An argument in the signature."""
    if name in functions:
        return f"{name}: Any = None"
    if name in tensors:
        return f"{name}: Any" + ("" if tensors[name].record.default is None else " = None")
    if name in scalars:
        default = scalars[name].record.default
        return f"{name}: {'bool' if isinstance(default, bool) else kind_of(scalars[name])} = {number(default)}"
    return f"{name}: str = {usual!r}" if name == "reduction" else f"{name}: bool | None = None"


def argument_doc(name: str, tensors: Mapping[str, Tensor], scalars: Mapping[str, Param], reductions: Iterable[str],
                 computed: Computed | None) -> str:
    """What the docstring says of an argument."""
    if computed and name == computed.function:
        return f"{name}: a function of two arrays, or None. With one, this is {computed.loss} of what it computes, gradients too."
    if name == "reduction":
        return f"reduction: one of {', '.join(reductions)}."
    if name in tensors:
        record = tensors[name].record
        shape = (["batch"] if record.per_sample else []) + [a.name for a in record.axes]
        said = f"{name}: [{', '.join(shape)}]"
        at = [a for a in record.axes if a.record.position != -1 and record.per_sample]
        said += f", {at[0].name} at dimension {at[0].record.position}" if at else ""
        said += f", integers: positions along {record.into.name}" if record.into else ""
        said += ", integers: labels that are compared with each other" if compared(record) else ""
        said += f", integers: how much of {record.measures.name} belongs to each sample" if record.measures else ""
        said += f"; what lies behind {record.length} may be anything" if record.length else ""
        said += "; or all samples end to end" if record.packed else ""
        said += f"; samples where it equals {record.ignore} are left out" if record.ignore else ""
        said += f", integers: positions along {record.axes[-1].name} up to the first {record.until}" if record.until is not None else ""
        said += f"; {record.domain.words()}" if record.domain.bounded and not record.integer else ""
        return said + ("; optional." if record.default is not None else ".")
    record = scalars[name].record
    if record.only_special and not record.is_option:
        return f"{name}: {' or '.join(map(str, record.special))}."
    return f"{name}: {'an option' if record.is_option else 'a number' if not record.integer else 'an integer'}" + (
        f", {record.domain.words()}." if record.domain.bounded else ".")


def compared(record: nodes.TensorRecord) -> bool:
    """Does a tensor hold integers that formulas only compare?"""
    return record.integer and record.into is None and record.measures is None and record.until is None


def form_record(group: list[Compiled]) -> dict[str, Any]:
    """What the Form of the emitted class says."""
    form, mark = group[0].form, group[0].mark
    reads = tuple(t.name for t in nodes.tensors(sp.Tuple(*(c.form.weight for c in group))))
    counted = all(c.form.weight == 1 for c in group)
    alone = {weight_alone(c.form) for c in group}
    return {
        "inputs": [input_record(t) for t in form.inputs],
        "parameters": [parameter_record(p) for p in form.params],
        "axes": {a.name: a.record.position for a in form.axes}, "vectors": [a.name for a in form.axes if a.record.vector],
        "ties": {a.name: tie_of(a) for a in form.axes if a.record.size is not None},
        "wrt": [t.name for t in form.wrt], "differentiable": [t.name for t in form.differentiable],
        "weight_reads": None if counted else reads,
        "weight_alone": alone.pop() if len(alone) == 1 else None,
        "same_ndim": form.loss.same_ndim,
        "kernels": [(c.form.suffix, kernel_records(c)) for c in group],
        "mark": mark,
    }


def tie_of(axis: nodes.Axis) -> tuple[str, int]:
    """The axis that another one's length depends on, and by how much it is longer."""
    (other,) = axis.record.size.atoms(nodes.Axis)
    return other.name, int(axis.record.size - other)


def weight_alone(form: Checked) -> float | None:
    """What a sample adds to the denominator when the optional inputs are left out, if that is a number."""
    optional = [load for load in form.weight.atoms(nodes.Load) if load.tensor.record.default is not None]
    rule = {load: sp.Float(load.tensor.record.default) for load in optional}
    weight = nodes.substitute(form.weight, rule)
    return float(weight) if weight.is_number else None


def kernel_records(c: Compiled) -> list[tuple[str, list[str], list[str], list[str]]]:
    """The names of what each kernel reads and writes."""
    signatures = [(f.name, signature(c, f)) for f in c.stable]
    return [(name, [a.name for a in s.inputs], [p.name for p in s.params], [a.name for a in s.outputs]) for name, s in signatures]


def input_record(t: Tensor) -> str:
    """An Input, as Python text."""
    r = t.record
    low, high, open_low = r.domain.interval
    parts = [repr(r.name)]
    parts += [f"axes=({tuple_text([repr(a.name) for a in r.axes])})"] if r.axes else []
    parts += [] if r.per_sample else ["per_sample=False"]
    parts += ["index=True"] if r.integer else []
    parts += [f"{name}={value!r}" for name, value in (("into", r.into and r.into.name), ("measures", r.measures and r.measures.name),
                                                       ("length", r.length)) if value]
    parts += ["packed=True"] if r.packed else []
    parts += [f"ignore={r.ignore!r}"] if r.ignore else []
    parts += [f"into={r.axes[-1].name!r}", f"until={r.until}"] if r.until is not None else []
    parts += [f"default={r.default!r}"] if r.default is not None else []
    parts += [f"shape={r.shape!r}"] if r.shape != "mutual" else []
    return f"Input({', '.join(parts + ([] if r.integer else bounds(low, high, open_low)))})"


def bounds(low: float, high: float, open_low: bool) -> list[str]:
    """The keywords of a domain that is not everything."""
    parts = [("low", low, -math.inf), ("high", high, math.inf), ("open_low", open_low, False)]
    return [f"{name}={value!r}" for name, value, usual in parts if value != usual]


def parameter_record(p: Param) -> str:
    """A Parameter, as Python text."""
    from .check import spell_setting

    r = p.record
    parts = [repr(r.name), number(r.default), *bounds(*r.domain.interval)]
    parts += ["integer=True"] if r.integer else []
    if r.special:
        pairs = [f"({number(v)}, '__{r.name}_{spell_setting(v)}')" for v in r.special]
        parts.append(f"special=({tuple_text(pairs)})")
    parts += ["option=True"] if r.is_option else ["only=True"] if r.only_special else []
    parts += [f"into={r.into.name!r}"] if r.into else []
    parts += [f"reduction={r.reduction!r}"] if r.reduction else []
    return f"Parameter({', '.join(parts)})"


def number(value: Any) -> str:
    """A value as Python text."""
    if value in (sp.true, sp.false) or isinstance(value, bool):
        return str(bool(value))
    if value == sp.oo:
        return "math.inf"
    value = int(value) if isinstance(value, int | sp.Integer) else float(value)
    return repr(value)


def quoted(names: Iterable[str]) -> str:
    """The inside of a tuple of strings."""
    return tuple_text([f'"{n}"' for n in names])


def tuple_text(items: list[str]) -> str:
    """The inside of a tuple."""
    return ", ".join(items) + ("," if len(items) == 1 else "")


# The files about all losses

def reduction_records(text: Callable[[sp.Expr], str] = str) -> list[dict[str, str]]:
    """The reductions with their derivatives, as Python text or that of another language."""
    total_rate, weight_rate = sp.symbols("total_rate weight_rate", real=True)
    out = []
    for r in REDUCTIONS.values():
        if r.formula is None:
            continue
        by_total, by_weight = r.formula.diff(TOTAL), r.formula.diff(WEIGHT)
        rate = lambda e: e.diff(TOTAL) * total_rate + e.diff(WEIGHT) * weight_rate
        found = {"value": r.formula, "by_total": by_total, "by_weight": by_weight, "by_total_rate": rate(by_total),
                 "by_weight_rate": rate(by_weight), "rate": rate(r.formula)}
        out.append({"name": r.name, **{name: text(expr) for name, expr in found.items()}})
    assert COUNT not in BATCH.free_symbols
    return out


def emit_library(emitted: list[Emitted], package: str, version: str) -> Files:
    """The files of a library that are not about one loss. Raises LosscompError."""
    every = [{"name": e.name, "class_name": e.class_name, "kernels": e.kernel_names, "summary": e.summary, "dense": e.dense,
              "aliases": e.aliases, "folder": "compositions" if e.composed_of else "losses"} for e in emitted]
    composed, emitted = [e for e in emitted if e.composed_of], [e for e in emitted if not e.composed_of]
    check_composed(composed, emitted)
    losses = [loss for loss in every if loss["folder"] == "losses"]
    values: dict[str, Any] = {"package": package, "losses": losses, "every": every, "reductions": reduction_records(), "version": version,
                              "axes": ir.MOST_AXES, "dims": ir.MOST_DIMENSIONS, "quoted": quoted, "braced": c_target.braced,
                              "elementary": c_target.ELEMENTARY, "gcc_flags": c_target.GCC_FLAGS, "stamp": STAMP}
    src = f"src/{package}"
    plan = {
        f"{src}/errors.py": "library/package/errors.py.jinja",
        f"{src}/spec.py": "library/package/spec.py.jinja",
        f"{src}/reductions.py": "library/package/reductions.py.jinja",
        f"{src}/arrays.py": "library/package/arrays.py.jinja",
        f"{src}/state.py": "library/package/state.py.jinja",
        f"{src}/runtime.py": "library/package/runtime.py.jinja",
        **{f"{src}/{name}.py": f"library/package/{name}.py.jinja" for name in OF_SCORES},
        f"{src}/__init__.py": "library/package/init.py.jinja",
        f"{src}/py.typed": "library/package/py.typed.jinja",
        f"{src}/losses/__init__.py": "library/package/losses_init.py.jinja",
        f"{src}/numpy/kernels/__init__.py": "numpy/kernels_init.py.jinja",
        f"{src}/numpy/_math.py": "numpy/math.py.jinja",
        f"{src}/numpy/_backend.py": "numpy/backend.py.jinja",
        f"{src}/torch/_math.py": "torch/math.py.jinja",
        f"{src}/torch/composites/__init__.py": "torch/composites_init.py.jinja",
        f"{src}/c/_backend.py": "c/backend.py.jinja",
        f"{src}/c/_build.py": "c/build.py.jinja",
        f"{src}/csrc/{package}.c": "c/library.c.jinja",
        f"{src}/csrc/{package}_dense.c": "c/dense.c.jinja",
        f"{src}/csrc/{package}_sums.c": "c/sums.c.jinja",
        f"{src}/csrc/{package}_internal.h": "c/internal.h.jinja",
        f"{src}/csrc/{package}_polynomials.h": "c/polynomials.h.jinja",
        f"{src}/csrc/{package}_vector.h": "c/vector.h.jinja",
        f"{src}/csrc/{package}_math.h": "c/math.h.jinja",
        f"{src}/csrc/{package}_float.h": "c/float.h.jinja",
        f"{src}/csrc/{package}_double.h": "c/double.h.jinja",
        f"{src}/csrc/{package}_wide.h": "c/wide.h.jinja",
        f"{src}/csrc/{package}_scaled.h": "c/scaled.h.jinja",
        f"{src}/include/{package}.h": "c/library.h.jinja",
        f"{src}/torch/__init__.py": "torch/init.py.jinja",
        f"{src}/torch/losses/__init__.py": "torch/losses_init.py.jinja",
        f"{src}/torch/_compat.py": "torch/compat.py.jinja",
        f"{src}/torch/_state.py": "torch/state.py.jinja",
        f"{src}/torch/distributed.py": "torch/distributed.py.jinja",
        f"{src}/torch/_load.py": "torch/load.py.jinja",
        f"{src}/torch/_build.py": "torch/build.py.jinja",
        f"{src}/torch/csrc/shim.h": "torch/shim.h.jinja",
        "pyproject.toml": "library/pyproject.toml.jinja",
        "setup.py": "library/setup.py.jinja",
        "README.md": "library/README.md.jinja",
        "CMakeLists.txt": "library/CMakeLists.txt.jinja",
    }
    if composed:
        plan |= {f"{src}/choices.py": "library/package/choices.py.jinja", f"{src}/hierarchy.py": "library/package/hierarchy.py.jinja",
                 f"{src}/compositions/__init__.py": "library/package/compositions_init.py.jinja",
                 f"{src}/torch/_hierarchy.py": "torch/hierarchy.py.jinja",
                 f"{src}/torch/compositions/__init__.py": "library/package/compositions_init.py.jinja"}
    files = {path: render(template, **values) for path, template in plan.items()}
    most = max((len(e.operators["inputs"]) for e in emitted), default=1)
    values |= {"reductions": reduction_records(sp.ccode), "formulas": reduction_records(), "most_inputs": most,
               "losses": [{**loss, "operators": e.operators} for loss, e in zip(losses, emitted, strict=True)]}
    files |= {f"{src}/torch/csrc/{name}": render(f"torch/{name}.jinja", **values) for name in TORCH_SOURCES}
    files[f"{src}/torch/_runtime.py"] = render("torch/runtime.py.jinja", **values)
    cuda = {f"{package}_cuda.h": "library.h", f"{package}_math.cuh": "math.cuh", f"{package}_device.cuh": "device.cuh",
            f"{package}_launch.cuh": "launch.cuh", f"{package}_cuda.cu": "library.cu"}
    values |= {"reductions": reduction_records(sp.ccode), "threads": cuda_target.THREADS}
    files |= {f"{src}/cuda/{path}": render(f"cuda/{template}.jinja", **values) for path, template in cuda.items()}
    for target, title in (("numpy", "NumPy"), ("c", "the compiled C library")):
        files[f"{src}/{target}/__init__.py"] = render("library/package/target_init.py.jinja", target=target, title=title, **values)
    return files | dialect_files(emitted, src, package)


def check_composed(composed: list[Emitted], losses: list[Emitted]) -> None:
    """What a loss is composed of is in the library too. Raises LosscompError."""
    names = [e.name for e in losses]
    for e in composed:
        if e.composed_of not in names:
            raise BuildError(f"{e.name} is composed of {e.composed_of}, which is not among the losses of this library",
                             repair=f"Put the definition of {e.composed_of} among the others.")


def dialect_files(emitted: list[Emitted], src: str, package: str) -> Files:
    """A module for each other framework, on each target, with its losses under the names that they have there."""
    files = {}
    for framework in sorted({e.framework for e in emitted} - {""}):
        own = [e for e in emitted if e.framework == framework]
        names = [(e.name.removeprefix(f"{framework}_"), e.name) for e in own]
        classes = [(e.class_name.removeprefix(framework.capitalize()), e.class_name) for e in own]
        for target in ("numpy", "c", "torch"):
            files[f"{src}/{target}/{framework}.py"] = render(
                "library/package/dialect.py.jinja", package=package, target=target, framework=framework,
                names=names + (classes if target == "torch" else []))
    return files

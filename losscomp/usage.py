"""How a loss is called on each target: signatures, and examples with numbers that can be copied and run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .catalogue import module_name
from .check import LEGACY, Checked
from .curves import Line
from .dense import dense_functions
from .emit import argument_doc, declare, forms_of, signature_words, tag_forms
from .language import Definition
from .nodes import tensors
from .pipeline import Compiled
from .sampling import as_given

MANY = 24                                        # numbers that an example writes out
AT = (0.5, 0.25)                                 # where the example is on the range of the plot, and where its second sample


@dataclass(frozen=True)
class Argument:
    """One argument of the signature: its default as text, or none."""

    name: str
    shape: str
    default: str
    what: str


@dataclass(frozen=True)
class Usage:
    """One target: how it is imported, its signatures, a whole example, and what the example prints."""

    target: str
    title: str
    signatures: list[str]
    example: str
    language: str
    note: str = ""


def arguments(definition: Definition, forms: Sequence[Checked]) -> list[Argument]:
    """Every argument, in order."""
    inputs = {t.name: t for f in forms for t in f.inputs}
    scalars = {p.name: p for f in forms for p in f.params if not p.record.reduction}
    loss = forms[0].loss
    functions = [loss.computed.function] if loss.computed else []
    found = []
    for name in signature_words(definition, list(forms)):
        if name in (*LEGACY, "*"):
            continue
        said = argument_doc(name, inputs, scalars, loss.reductions, loss.computed).partition(": ")[2]
        shape = ""
        if name in inputs:
            shape, _, said = said.rstrip(".").partition("]")
            shape, said = shape + "]", said.lstrip(",; ")
            said = said.removesuffix("; optional").removesuffix("optional")
            said = f"or {said.removeprefix('or ')}" if said.startswith("or ") else said
        declared = declare(name, inputs, scalars, functions, loss.default)
        default = declared.partition(" = ")[2]
        if len(forms) > 1 and name in inputs and len({f_kind(f, name) for f in forms}) > 1:
            each = [argument_doc(name, {t.name: t for t in f.inputs}, {}, (), None) for f in forms]
            shapes = dict.fromkeys(text.partition(": ")[2].rstrip(".") for text in each)
            shape, said = "", "; or ".join(shapes)
        found.append(Argument(name, shape, default, said.rstrip(".")))
    return found


def f_kind(form: Checked, name: str) -> bool:
    """Is the input an integer in this form?"""
    return any(t.name == name and t.record.integer for t in form.inputs)


def signature(definition: Definition, forms: Sequence[Checked], words: Sequence[str] = ()) -> str:
    """The arguments as Python has them, without types and without those that PyTorch deprecates."""
    inputs = {t.name: t for f in forms for t in f.inputs}
    scalars = {p.name: p for f in forms for p in f.params if not p.record.reduction}
    loss = forms[0].loss
    functions = [loss.computed.function] if loss.computed else []
    found = []
    for name in words or signature_words(definition, list(forms)):
        if name == "*":
            found.append(name)
        elif name not in LEGACY:
            declared = declare(name, inputs, scalars, functions, (loss.module_default or loss.default) if words else loss.default)
            left, _, right = declared.partition(" = ")
            found.append(left.partition(":")[0] + (f"={right}" if right else ""))
    return ", ".join(found)


def literal(array: np.ndarray, kind: str) -> str:
    """An array as Python text."""
    if array.size > MANY:
        return f"rng.normal(size={array.shape}).astype(np.float32)" if kind == "numpy" else f"torch.randn{array.shape}"
    numbers = str(np.round(array.astype(np.float64), 4).tolist()) if array.dtype.kind == "f" else str(array.tolist())
    if kind == "torch":
        return f"torch.tensor({numbers})"
    return f"np.array({numbers}, dtype=np.float32)" if array.dtype.kind == "f" else f"np.array({numbers})"


def sample(line: Line, low: float, high: float) -> dict[str, np.ndarray]:
    """Two samples on a line, or one where they are large; arrays as callers pass them, of the inputs that must be given."""
    at = [round(low + t * (high - low), 2) + 0.0 for t in (AT if all(a.size <= MANY // 2 for a in line.tensors.values()) else AT[:1])]
    arrays = as_given(line.form, line.inputs(np.array(at), "float32").tensors)
    return {t.name: arrays[t.name] for t in line.form.inputs if t.record.default is None}


def in_order(definition: Definition, line: Line, given: Mapping[str, np.ndarray]) -> list[str]:
    """The names of what is given in the order of the arguments."""
    return [n for n in signature_words(definition, [line.form]) if n in given]


def python_usage(definition: Definition, forms: Sequence[Checked], line: Line, span: tuple[float, float], package: str) -> list[Usage]:
    """NumPy, C from Python, and PyTorch."""
    name, given = definition.name, sample(line, *span)
    order = in_order(definition, line, given)
    said = signature(definition, forms)
    call = ", ".join(order)
    wrt = [t.name for t in line.form.wrt]
    random = ["rng = np.random.default_rng(0)"] if any(given[n].size > MANY for n in order) else []
    arrays = "\n".join([*random, *(f"{n} = {literal(given[n], 'numpy')}" for n in order)])
    methods = [f"L.{name}({said})", f"L.{name}.value_and_grad({said}, wrt=None)", f"L.{name}.grad(...)",
               f"L.{name}.jvp(..., direction)", f"L.{name}.hvp(..., direction)", f"L.{name}.hessian_diag(...)"]
    if line.form.tables or any(t in line.form.wrt for t in loads_of_weight(line.form)):
        methods.pop()
    text = f"import numpy as np\nimport {package}.{{}} as L\n\n{arrays}\n\n"
    text += f"value, grads = L.{name}.value_and_grad({call})\nprint(value, grads.{wrt[0]})\n"
    leaves = "\n".join(f"{n} = {literal(given[n], 'torch')}" for n in order)
    leaf = f"{wrt[0]}.requires_grad_()"
    torch_text = f"import torch\nimport {package}.torch as T\n\n{leaves}\n{leaf}\n\nloss = T.{name}({call})\n"
    torch_text += f"{'loss.sum()' if forms[0].loss.default == 'none' else 'loss'}.backward()\nprint(loss, {wrt[0]}.grad)\n"
    required = [n for n in signature_words(definition, list(forms)) if n in order]
    words = definition.module_signature.split() or [n for n in signature_words(definition, list(forms)) if n not in required]
    module = f"T.{module_name(definition)}({signature(definition, forms, words)})"
    return [Usage("numpy", "NumPy", methods, text.format("numpy"), "python"),
            Usage("c", "C from Python", methods, text.format("c"), "python",
                  "The same functions as in NumPy, compiled; arrays of any strides."),
            Usage("torch", "PyTorch", [f"T.{name}({said})", module], torch_text, "python",
                  "Autograd to any order, forward mode, torch.func, torch.compile.")]


def loads_of_weight(form: Checked) -> list[Any]:
    """The tensors that the denominator of the mean reads."""
    return tensors(form.weight)


def c_usage(definition: Definition, compiled: Sequence[Compiled], line: Line, span: tuple[float, float], package: str) -> list[Usage]:
    """C and CUDA."""
    groups = [[c] for c in compiled]
    if len(groups) > 1:
        tag_forms(groups)
    records = dense_functions(groups)
    prefix, upper = package, package.upper()
    found = []
    if records:
        prototypes = [prototype(r, f"{prefix}_{definition.name}{r['mark']}_f32", upper) for r in records]
        note = "Also _f64, with double in the place of float. NULL leaves an optional input or a gradient out."
        found.append(Usage("csource", "C", prototypes, c_example(definition, records[0], line, span, prefix), "c", note))
    kernel = f"{definition.name}.value_and_grad"
    text = (f"/* {package}_cuda.h; see docs/cuda.md for the description of a call. */\n"
            f'const {prefix}_kernel *kernel = {prefix}_cuda_find("{kernel}", {upper}_FLOAT32);\n'
            f"{prefix}_call call = {{0}};                  /* shape, sizes, device pointers, strides, scalars */\n"
            f"int status = {prefix}_cuda_compute(kernel, &call, {upper}_FLOAT32, workspace, stream);\n")
    found.append(Usage("cuda", "CUDA", [f'{prefix}_cuda_find("{kernel}", type)'], text, "c",
                       "Kernels behind a C interface; PyTorch calls them for tensors on a GPU once they are compiled."))
    return found


def prototype(record: Mapping[str, Any], function: str, upper: str) -> str:
    """The typed function over dense arrays, for float."""
    parts = [["int64_t batch", *(f"int64_t {a}" for a in record["axes"])],
             [f"const {'int64_t' if i['integer'] else 'float'} *{i['name']}" for i in record["inputs"]],
             [*(f"{p['kind']} {p['name']}" for p in record["params"]), f"{upper.lower()}_reduction reduction"],
             ["float *loss", *(f"float *grad_{g}" for g in record["gradients"])]]
    return f"int {function}(\n    " + ",\n    ".join(", ".join(p) for p in parts) + ");"


def c_example(definition: Definition, record: Mapping[str, Any], line: Line, span: tuple[float, float], prefix: str) -> str:
    """A whole program around one call."""
    inputs = line.inputs(np.array([round(span[0] + AT[0] * (span[1] - span[0]), 2) + 0.0]), "float32")
    declared, call = [], ["1", *(str(size_of(line, a)) for a in record["axes"])]
    for i in record["inputs"]:
        array = inputs.tensors[i["name"]]
        if i["default"] is not None:
            call.append("NULL")
            continue
        kind = "int64_t" if i["integer"] else "float"
        cells = ", ".join(str(int(x)) if i["integer"] else f"{float(x):.4g}f" if "." in f"{float(x):.4g}" or "e" in f"{float(x):.4g}" else
                          f"{float(x):.4g}.0f" for x in array.ravel())
        declared.append(f"    const {kind} {i['name']}[] = {{{cells}}};")
        call.append(i["name"])
    call += [spell(line.params.get(p["name"], 0), p["kind"]) for p in record["params"]]
    call += [f"{prefix.upper()}_{(record['reductions'] or ['sum'])[0].upper()}", "&loss"]
    results = ["loss"]
    for g in record["gradients"]:
        results.append(f"grad_{g}[{inputs.tensors[g].size}]")
        call.append(f"grad_{g}")
    function = f"{prefix}_{definition.name}{record['mark']}_f32"
    return (f'#include <stdio.h>\n#include "{prefix}.h"\n\nint main(void) {{\n' + "\n".join(declared) +
            f"\n    float {', '.join(results)};\n\n"
            f"    int status = {function}(\n        {', '.join(call)});\n"
            f'    printf("%.9g %.9g\\n", loss, grad_{record["gradients"][0]}[0]);\n    return status;\n}}\n')


def size_of(line: Line, axis: str) -> int:
    """The length of an axis in a sample."""
    for t in line.form.inputs:
        for k, a in enumerate(t.record.axes):
            if a.name == axis:
                return int(line.tensors[t.name].shape[k + t.record.per_sample])
    return 0


def spell(value: Any, kind: str) -> str:
    """A scalar in C."""
    return repr(float(value)) if kind == "double" else str(int(value))


__all__ = ["Argument", "Usage", "arguments", "c_usage", "forms_of", "python_usage", "sample"]

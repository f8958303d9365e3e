"""`losscomp check`: definitions through the compiler, nothing built. What is wrong has a file, a line and a repair."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import sympy as sp

from . import catalogue
from .check import Checked, check, check_nodes, modern
from .emit import emit_loss, forms_of
from .errors import LosscompError
from .formula import formula_lines
from .hierarchy import Hierarchy
from .language import Definition
from .pipeline import compile_form, kernels
from .show import kind_of

SECONDS = 0.8           # of work: about what a person waits for without looking away


@dataclass(frozen=True)
class Report:
    """What the compiler made of one loss: lines about it, its variants, and how many of them were derived."""

    name: str
    lines: tuple[str, ...]
    variants: int
    derived: int
    kernels: int


def check_all(path: Path, whole: bool) -> Iterator[Report | LosscompError]:
    """Each loss of a file or folder, or what is wrong with a file. The variants of all are checked; they are derived and lowered one after
    the other until the time is up, or all if that is asked for."""
    start = time.process_time()
    for file in catalogue.definition_files(path):
        try:
            definitions = catalogue.load_file(file)
        except LosscompError as error:
            yield error
            continue
        for definition in definitions:
            try:
                yield (composed(definition) if isinstance(definition, Hierarchy) else
                       report(definition, None if whole else start + SECONDS))
            except LosscompError as error:
                yield narrowed(error.at(definition.path), file)


def report(definition: Definition, end: float | None) -> Report:
    """One loss through the compiler. Raises LosscompError."""
    groups = [check(form) for form in forms_of(definition)]
    variants = [form for group in groups for form in group]
    derived = count = 0
    for form in variants:
        if derived and end is not None and time.process_time() > end:
            break
        compiled = compile_form(form)
        count += len(kernels(compiled, False))
        derived += 1
    lines = [line for group in groups for line in (about(group[0]), *(f"    {text}" for text in formula_lines(group[0])))]
    return Report(definition.name, tuple(lines), len(variants), derived, count)


def composed(definition: Hierarchy) -> Report:
    """A loss that has no formula of its own: its text is made, as a build would. Raises LosscompError."""
    emit_loss(definition, "checked", definition.path)
    return Report(definition.name, (f"a tree of choices, each a {definition.loss.name} of scores",), 1, 1, 0)


def about(form: Checked) -> str:
    """What a sample is, and what there are derivatives by."""
    kind = "recurrence" if form.tables else kind_of(form.value, bool(form.axes))
    usual, rest = [t.name for t in form.wrt], [t.name for t in form.differentiable if t not in form.wrt]
    return f"{kind}; gradient by {', '.join(usual)}" + (f", on request by {', '.join(rest)}" if rest else "")


def narrowed(error: LosscompError, file: Path) -> LosscompError:
    """The same error at the line of the first variable of the file that it is in."""
    tree, variables = catalogue.execute(file)
    lines = catalogue.assignments(tree)
    for name in sorted(lines, key=lambda name: lines[name]):
        value = variables.get(name)
        if isinstance(value, sp.Expr):
            try:
                check_nodes(modern(value))
            except LosscompError as other:
                if other.what == error.what:
                    error.where = f"{file}:{lines[name]}"
                    break
    return error

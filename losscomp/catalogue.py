"""Finding and loading definitions, the package's and the user's.

A definition file is a Python module. Every variable of it that holds a Loss, an Overload or a Hierarchy is a loss of that name; names and
files that begin with "_" are the author's own.
"""

from __future__ import annotations

import ast
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import sympy as sp

from .errors import DefinitionError, LosscompError
from .hierarchy import Cuts, Hierarchy
from .language import Definition, Loss, Overload, TensorRef, restart_order
from .nodes import Index, Leaf, Load, Param, Tensor, params, tensors
from .plan import unknown_loss
from .render import data_folder
from .reuse import running
from .schedule import safe_name

SKELETON = 'Name a formula:\n    from losscomp.language import Loss, tensor\n    my_loss = Loss(tensor("x") ** 2)'


def builtin_definitions() -> Path:
    """The folder of the package's own definitions."""
    return data_folder("definitions")


def module_name(definition: Definition | Hierarchy) -> str:
    """The name of the class form: the author's, or the loss's name in CamelCase."""
    return definition.module or "".join(part[:1].upper() + part[1:] for part in definition.name.split("_"))


def load(folder: Path | str) -> dict[str, Definition]:
    """Every loss of a folder and of the folders below it that is a formula, by name, in order of the names."""
    return {name: d for name, d in load_all(folder).items() if isinstance(d, Definition)}


def load_all(folder: Path | str) -> dict[str, Definition | Hierarchy]:
    """Every loss of a folder and of the folders below it, those composed of others too."""
    found: dict[str, Definition | Hierarchy] = {}
    for path in definition_files(Path(folder)):
        for definition in load_file(path):
            if definition.name in found:
                raise DefinitionError(
                    f"there are two losses named {definition.name!r}: here and in {found[definition.name].path}",
                    where=definition.path, repair="Rename one of them.")
            found[definition.name] = definition
    if not found:
        raise DefinitionError("no definition in this folder", where=str(folder),
                              repair=f"Add a file such as my_loss.py to it. {SKELETON}")
    return dict(sorted(found.items()))


def pick(names: Sequence[str], folder: Path | str) -> dict[str, Definition]:
    """The losses of these names; all that are formulas, where none is named. Raises LosscompError."""
    everything = load_all(folder)
    found = {}
    for name in names or [n for n, d in everything.items() if isinstance(d, Definition)]:
        if name not in everything:
            raise unknown_loss(name, everything)
        definition = everything[name]
        if isinstance(definition, Hierarchy):
            raise LosscompError(f"{name} has no formula of its own: it is composed of {definition.loss.name}",
                                repair=f"Ask the same of {definition.loss.name}.")
        found[name] = definition
    return found


def definition_files(folder: Path) -> Iterator[Path]:
    """The definition files of a folder, in order; a file stands for itself."""
    if not folder.exists():
        raise LosscompError("there is no such file or folder", where=str(folder),
                            repair="Name a definition file or a folder of them.")
    if folder.is_file():
        yield folder
        return
    for path in sorted(folder.rglob("*.py")):
        if not any(part.startswith(("_", ".")) for part in path.relative_to(folder).parts):
            yield path


def load_file(path: Path | str) -> list[Definition | Hierarchy]:
    """The losses of one file, in the order in which it defines them."""
    path = Path(path)
    if not path.is_file():
        raise LosscompError("there is no such file", where=str(path), repair="Name a definition file, such as my_loss.py.")
    tree, variables = execute(path)
    lines = assignments(tree)
    place = {name: f"{path}:{lines[name]}" if name in lines else str(path) for name in variables}
    losses = {name: value for name, value in variables.items()
              if isinstance(value, Definition | Hierarchy) and not name.startswith("_") and value.path in ("", str(path))}
    if not losses:
        raise DefinitionError("no loss in this file", where=str(path), repair=SKELETON)
    check_all_used(variables, losses, place)
    names = readable(variables, losses)
    doc = ast.get_docstring(tree) or ""
    return [named_by_file(value, name, doc, place[name], names) for name, value in losses.items()]


def execute(path: Path) -> tuple[ast.Module, dict[str, Any]]:
    """Run a definition file as a module: its syntax tree, and its variables."""
    try:
        tree = ast.parse(path.read_bytes(), filename=str(path))
        code = compile(tree, str(path), "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:    # ValueError: a null byte
        line, text = (error.lineno, error.text) if isinstance(error, SyntaxError) else (None, None)
        raise DefinitionError(f"this is not Python: {getattr(error, 'msg', error)}", where=f"{path}:{line or 1}",
                              repair=f"Mend: {text.strip()}" if text else "Mend the syntax of the file.") from error
    variables: dict[str, Any] = {"__name__": path.stem, "__file__": str(path)}
    try:
        restart_order()
        with running(path, lambda other: execute(other)[1]):
            exec(code, variables)
    except LosscompError as error:
        raise error.at(f"{path}:{line_of(error, path)}") from None
    except Exception as error:
        raise DefinitionError(f"{type(error).__name__}: {error}", where=f"{path}:{line_of(error, path)}",
                              repair="The file is run as a Python module; mend that line.") from error
    for name, value in variables.items():
        if isinstance(value, Definition) and not value.path:
            value.name, value.path = name, str(path)         # a hierarchy may be composed of it, in this file or another
    return tree, variables


def line_of(error: BaseException, path: Path) -> int:
    """The innermost line of the file that an error passed through."""
    lines = [frame.lineno or 1 for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return lines[-1] if lines else 1


def assignments(tree: ast.Module) -> dict[str, int]:
    """The line of the last assignment to each variable of a module."""
    stores = (node for statement in tree.body if not isinstance(statement, ast.FunctionDef | ast.ClassDef)
              for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))
    return {node.id: node.lineno for node in stores}


def forms_of(definition: Definition) -> tuple[Loss, ...]:
    """The formulas of a definition."""
    return definition.forms if isinstance(definition, Overload) else (definition,)


def check_all_used(variables: dict[str, Any], losses: dict[str, Definition | Hierarchy], place: dict[str, str]) -> None:
    """Every input that a variable of the file declares is read by a loss of the file: else it is a slip of the pen."""
    forms = [form for loss in losses.values() for form in ([loss] if isinstance(loss, Hierarchy) else forms_of(loss))]
    formulas = sp.Tuple(*(form.exprs for form in forms))
    used = {*tensors(formulas), *params(formulas)}
    for name, value in variables.items():
        declared = declared_input(value)
        if declared is not None and declared not in used and not name.startswith("_"):
            raise DefinitionError(f"{declared.name!r} is declared and used by no loss of this file", where=place[name],
                                  repair="Use it in the formula, or delete the line.")


def declared_input(value: Any) -> Tensor | Param | None:
    """The input that a variable declares, if it declares one."""
    if isinstance(value, TensorRef | Cuts):
        return value.tensor
    if isinstance(value, Load) and not value.index:
        return value.tensor
    return value if isinstance(value, Param) else None


def readable(variables: dict[str, Any], losses: dict[str, Definition | Hierarchy]) -> dict[sp.Expr, str]:
    """What the author called each sub-expression. An expression with two names keeps the first."""
    names: dict[sp.Expr, str] = {}
    for name, value in variables.items():
        if isinstance(value, Index) or (isinstance(value, sp.Expr) and not isinstance(value, Leaf | Load) and not value.is_number
                                        and safe_name(name)):
            names.setdefault(value, name)
    return {value: name for value, name in names.items() if name not in losses}


def named_by_file(definition: Definition | Hierarchy, name: str, doc: str, path: str,
                  names: dict[sp.Expr, str]) -> Definition | Hierarchy:
    """The definition with all that the file says of it."""
    if isinstance(definition, Hierarchy):
        return definition.called(name, doc=doc, path=path)
    if isinstance(definition, Overload):
        forms = tuple(form.called(name, doc=doc, path=path, names=names) for form in definition.forms)
        return replace(definition, forms=forms, name=name, doc=doc, path=path)
    return definition.called(name, doc=definition.doc or doc, path=path, names=names)

"""Formulas of other definition files: read for their parts, or taken over with other things in the place of their inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import sympy as sp

from .errors import DefinitionError
from .nodes import Axis, Chosen, Index, IndexRecord, Load, Param, Reduce, Stated, Where, params, substitute, tensors
from .render import definition_named

Reader = Callable[[Path], Mapping[str, Any]]
_readers: list[tuple[Path, Reader]] = []            # the definition file that is run, and what runs another


@contextmanager
def running(path: Path, reader: Reader) -> Iterator[None]:
    """While a definition file is run: what it may refer to."""
    _readers.append((path, reader))
    try:
        yield
    finally:
        _readers.pop()


def base(name: str) -> SimpleNamespace:
    """All that another definition file says, by the names of its variables.

    Args:
        name: its path, such as "regression/my_loss.py", from the folder of the file that asks or from losscomp's own definitions.
    """
    if not _readers:
        raise DefinitionError(f"base({name!r}) outside a definition file", repair="Use it in a file of the catalogue.")
    path, reader = _readers[-1]
    file = definition_named(name, path)
    if file is None:
        raise DefinitionError(f"there is no definition file {name!r}",
                              repair=f"Name one by its path from {path.parent}, or one of losscomp's own.")
    if any(file.resolve() == other.resolve() for other, _ in _readers):
        raise DefinitionError(f"{name!r} refers to itself", repair="Put the common part into a file of its own.")
    return SimpleNamespace(**reader(file))


def reused(formula: Any, axes: Mapping[Axis, Axis] | None = None, **given: Any) -> sp.Expr:
    """A formula with other things in the place of its inputs.

    Args:
        formula: an expression; a Loss stands for its formula.
        axes: axes to take in the place of others.
        given: for each input, by its name, an expression of this file; for a tensor with axes, a function of its indices. What is not
            given stays.
    """
    swap = dict(axes or {})

    def visit(node: Any) -> Any:
        match node:
            case Load():
                place = tuple(map(visit, node.index))
                if node.tensor.name not in given:
                    return Load(node.tensor, *place)
                other = given[node.tensor.name]
                return sp.sympify(other(*place) if place and callable(other) else other)
            case Param():
                return sp.sympify(given.get(node.name, node))
            case Chosen():
                return chosen(node, given.get(node.param.name, node.param))
            case Axis():
                return swap.get(node, node)
            case Index():
                return Index(IndexRecord(swap.get(node.axis, node.axis), node.record.label))
            case Reduce():
                index = swap.get(node.bound.axis, node.bound.axis).index()
                return Reduce(node.op, visit(substitute(node.body, {node.bound: index})), index)
            case Stated():
                body, *pairs = map(visit, node.args)
                if not all(isinstance(read, Load) for read in pairs[::2]):
                    raise DefinitionError(f"the formula states slopes by {', '.join(str(r) for r, _ in node.slopes)}, for which it is "
                                          f"given formulas", repair="Reuse a formula whose derivatives are its own.")
                return Stated(body, *pairs)
            case Where():
                return Where(*map(visit, node.args))
        return node.func(*map(visit, node.args)) if node.args else node

    expr = sp.sympify(getattr(formula, "value", formula))
    unknown = set(given) - {t.name for t in tensors(expr)} - {p.name for p in params(expr)}
    if unknown:
        raise DefinitionError(f"the formula has no input {sorted(unknown)[0]!r}", repair="Name inputs of the formula that is reused.")
    return sp.sympify(visit(expr))


def chosen(node: Chosen, value: Any) -> Any:
    """A build-time choice: of another parameter, or settled."""
    if isinstance(value, Param):
        return Chosen(value, node.value)
    return sp.true if sp.sympify(value) == node.value else sp.false

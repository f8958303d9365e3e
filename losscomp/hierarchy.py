"""What authors say of losses over classes that are reached by choices, each among the outcomes of scores that layers compute.

    log p(class) = the sum of log p(outcome | choice) over the choices that lead to the class

An outcome of a choice is a class, or another choice. What a choice costs is a loss of the catalogue; a hierarchy has no formula of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import sympy as sp

from .errors import DefinitionError
from .nodes import Axis, Index, Load, Param, Tensor, params, tensors


@dataclass(frozen=True)
class Layers:
    """Linear layers, one after the other, whose last one gives a score for each outcome. See `layers`."""

    name: str
    widths: tuple[sp.Expr, ...]
    bias: Any


@dataclass(frozen=True)
class Classes:
    """Classes from `first` to before `end`, each an outcome. See `classes`."""

    first: sp.Expr
    end: sp.Expr


@dataclass(frozen=True)
class Each:
    """An outcome for each position of an index: the choice that follows it. See `each`."""

    index: Index
    choice: Choice


@dataclass(frozen=True)
class Choice:
    """A choice: the layers that compute its scores, and its outcomes in the order of their classes."""

    layers: Layers
    outcomes: tuple[Classes | Each | Choice, ...]

    def __init__(self, layers: Layers, *outcomes: Classes | Each | Choice) -> None:
        object.__setattr__(self, "layers", layers)
        object.__setattr__(self, "outcomes", outcomes)
        if not outcomes:
            raise DefinitionError(f"the choice by {layers.name!r} has no outcome",
                                  repair="Say what it is among: Choice(layers, classes(first, end), each(i, Choice(...))).")

    @property
    def exprs(self) -> Iterator[sp.Basic]:
        """Every formula in it."""
        yield from (*self.layers.widths, sp.sympify(self.layers.bias))
        for outcome in self.outcomes:
            match outcome:
                case Classes(first, end):
                    yield from (first, end)
                case Each(index, choice):
                    yield index.axis.record.extent
                    yield from choice.exprs
                case Choice():
                    yield from outcome.exprs


def layers(name: str, *widths: Any, bias: Any = False) -> Layers:
    """Linear layers, one after the other.

    Args:
        name: that of their parameters: NAME.weight for one layer, NAME.0.weight and so on for several. Inside of `each` the position
            comes behind it: NAME.0.1.weight.
        widths: how many numbers each layer takes; the last one gives as many as the choice has outcomes.
        bias: whether each of them adds one; an option.
    """
    if not widths:
        raise DefinitionError(f"layers({name!r}) says no width", repair=f"Say how many numbers they take: layers({name!r}, in_features).")
    return Layers(name, tuple(map(sp.sympify, widths)), bias)


def classes(first: Any, end: Any) -> Classes:
    """Outcomes that are classes, from `first` to before `end`."""
    return Classes(sp.sympify(first), sp.sympify(end))


def each(index: Index, choice: Choice) -> Each:
    """An outcome for each position of an index of an axis with an extent; which choice follows it is said with the index."""
    if not isinstance(index, Index) or index.axis.record.extent is None:
        raise DefinitionError(f"each({index}, ...) needs an index of an axis whose extent is known",
                              repair="Make one with axis(name, extent=...).index().")
    return Each(index, choice)


class Cuts:
    """Where a range is cut into pieces; `cuts[k]` is where the k-th piece ends, `cuts.count` is how many there are. See `language.cuts`."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    @property
    def count(self) -> Axis:
        """The number of pieces."""
        return self.tensor.record.axes[0]

    def __getitem__(self, position: Any) -> Load:
        return Load(self.tensor, sp.sympify(position))


@dataclass
class Hierarchy:
    """A loss over classes that are reached by choices.

    Attributes:
        choice: the first choice.
        loss: what an outcome costs: another definition, of scores and an index, that is -log of a softmax. Take it with `base`.
        forward: what the module form calls its two tensors.
        attributes: what the module form says of itself besides its arguments: formulas by their names.
        module, like, notes: as a Loss has them.
        name, doc, path: filled in by the catalogue.
    """

    choice: Choice
    loss: Any
    module: str = ""
    forward: str = "input target"
    like: str = ""
    attributes: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    name: str = ""
    doc: str = ""
    path: str = ""

    @property
    def exprs(self) -> sp.Tuple:
        """Every formula of the definition, and the ends of the ranges that are cut."""
        read = sp.Tuple(*self.choice.exprs, *map(sp.sympify, self.attributes.values()))
        return sp.Tuple(*read, *(t.record.axes[0].record.size for t in tensors(read)))

    @property
    def arguments(self) -> list[Tensor | Param]:
        """What says how large all is, in the order of declaration."""
        return sorted([*tensors(self.exprs), *params(self.exprs)], key=lambda a: a.record.order)

    def called(self, name: str, **fields: Any) -> Hierarchy:
        """The same under a name."""
        return replace(self, name=name, **fields)

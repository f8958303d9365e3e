"""Which integers are positions along an axis: what a definition says, and what is sure whatever the caller passes.

Values of integer tensors are checked when they are passed, but for those behind the length of a ragged tensor; and what lies outside of a
table may be any number. Where a position is not sure, lowering moves it to the next one that there is.
"""

from collections.abc import Iterator

import sympy as sp

from . import nodes
from .nodes import Axis


def chosen(index: sp.Expr) -> Iterator[sp.Expr]:
    """What an integer may be: each of the values that its conditions choose from."""
    match index:
        case nodes.Where(args=(_, a, b)):
            yield from chosen(a)
            yield from chosen(b)
        case nodes.Named():
            yield from chosen(index.body)
        case _:
            yield index


def points_into(index: sp.Expr, axis: Axis) -> bool:
    """Is an integer declared to be a position along an axis?"""
    return all(part.axis == axis if isinstance(part, nodes.Index) else
               (isinstance(part, nodes.Load) and part.tensor.record.into == axis) or
               (isinstance(part, nodes.Param) and part.record.into == axis) for part in chosen(index))


def surely_inside(index: sp.Expr, axis: Axis) -> bool:
    """Is an integer a position along an axis, whatever the caller passes?"""
    return all(surely(part, axis) for part in chosen(index))


def surely(part: sp.Expr, axis: Axis) -> bool:
    """The same of one that is not chosen by a condition."""
    match part:
        case nodes.Index():
            extent = part.axis.record.extent
            return part.axis == axis or (isinstance(extent, nodes.Load) and extent.tensor.record.measures == axis)
        case nodes.Load():
            return part.tensor.record.into == axis and (is_own_cell(part) if part.tensor.record.state else surely_live(part))
        case nodes.Param():
            return part.record.into == axis
    return part == sp.S.Zero


def is_own_cell(load: nodes.Load) -> bool:
    """Does a read of a table stay where cells have been stored? At an offset it may be what lies outside."""
    return all(isinstance(i, nodes.Index) and i.axis == axis for i, axis in zip(load.index, load.tensor.record.axes, strict=True))


def surely_live(load: nodes.Load) -> bool:
    """Does a read of a ragged tensor stay in front of the length? What lies behind has not been checked."""
    length = load.tensor.record.length
    if length is None:
        return True
    extent = load.index[-1].axis.record.extent if isinstance(load.index[-1], nodes.Index) else None
    return isinstance(extent, nodes.Load) and extent.tensor.name == length

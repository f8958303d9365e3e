"""The question that is asked: arguments checked and made exact, and every derivative of them that is wanted."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import sympy as sp
from flint import arb, ctx

from .. import nodes
from ..check import Checked
from ..nodes import Tensor
from .balls import ONE
from .formulas import Cell
from .problem import Problem
from .results import Exact, OracleError, Truth, pack

DEPTH = 20_000                                # a cell of a table asks for earlier cells, one within the other


def exact(form: Checked, tensors: Mapping[str, Any], params: Mapping[str, Any] = {}, *, reduction: str = "mean",
          upstream: Any = 1.0, wrt: Sequence[str] | None = None, directions: Mapping[str, Any] | None = None,
          diagonal: bool = False) -> Truth:
    """The exact value of a loss, its gradient, and second order where asked for.

    Args:
        form: one variant of a definition; see `select`.
        tensors: arrays by name, of floats or integers, whose exact values count: (N, *axes) for what each sample has, (*axes)
            for what samples share; sets of labels as users give them. An optional tensor may be absent.
        params: scalars by name; the default of the definition where absent.
        reduction: "none", "sum", "mean" or "batchmean".
        upstream: what the loss is multiplied by before derivatives are taken: a number, or (N,) numbers for "none".
        wrt: the inputs to differentiate by; by default all given ones that can be.
        directions: by name, the rates at which inputs move together, in the shapes of the inputs; absent ones rest.
        diagonal: whether to give `hessian_diag`.

    Raises OracleError for arguments that do not fit, and where the highest precision leaves a result open.
    """
    before, depth = ctx.prec, sys.getrecursionlimit()
    sys.setrecursionlimit(max(depth, DEPTH))
    try:
        problem = pose(form, tensors, params, reduction, upstream, directions or {})
        names = [t.name for t in form.differentiable if t.name in tensors] if wrt is None else list(wrt)
        for name in names:
            if name not in tensors or name not in {t.name for t in form.differentiable}:
                raise OracleError(f"there is no derivative by {name!r}", repair="Name given inputs of real numbers.")
        value = pack(problem.values(), (problem.batch,) if reduction == "none" else ())
        grad: dict[str, Exact] = {}
        hvp: dict[str, Exact] = {}
        hessian_diag: dict[str, Exact] = {}
        for name in names:
            shape = np.shape(tensors[name])
            shared = not next(t for t in form.inputs if t.name == name).record.per_sample
            rows = []
            for cell in np.ndindex(*shape):
                touched = range(problem.batch) if shared else cell[:1]
                first = {(name, cell): ONE}
                along = problem.derivatives(touched, first, problem.directions)
                rows.append(along + (problem.derivatives(touched, first, first)[1:] if diagonal else []))
            columns = [pack([row[k] for row in rows], shape) for k in range(2 + diagonal)]
            grad[name] = columns[0]
            if directions is not None:
                hvp[name] = columns[1]
            if diagonal:
                hessian_diag[name] = columns[2]
        return Truth(value, grad, hvp, hessian_diag)
    finally:
        ctx.prec = before
        sys.setrecursionlimit(depth)


def select(forms: Sequence[Checked], params: Mapping[str, Any]) -> Checked:
    """The variant that is compiled for these values of the parameters: the most special one that they match.

    Raises OracleError where an option has a value that it cannot have.
    """
    def agrees(form: Checked) -> bool:
        defaults = {p.name: p.record.default for p in form.params}
        return all(v is None or matches(params.get(name, defaults[name]), v) for name, v in form.settings)

    fitting = [form for form in forms if agrees(form)]
    if not fitting:
        raise OracleError(f"no variant fits {dict(params)}", repair="Pass True or False for an option.")
    return max(fitting, key=lambda form: sum(value is not None for _, value in form.settings))


def matches(given: Any, special: Any) -> bool:
    """Is this value of a parameter that special value?"""
    if isinstance(special, sp.logic.boolalg.BooleanAtom):
        return bool(given) == bool(special)
    return float(given) == float(special)


def pose(form: Checked, tensors: Mapping[str, Any], params: Mapping[str, Any], reduction: str, upstream: Any,
         directions: Mapping[str, Any]) -> Problem:
    """The arguments as balls, checked against the definition."""
    if reduction not in ("none", "sum", "mean", "batchmean"):
        raise OracleError(f"reduction={reduction!r}", repair="Use none, sum, mean or batchmean.")
    arrays: dict[str, np.ndarray] = {}
    absent: dict[str, arb] = {}
    sizes: dict[Any, int] = {}
    for tensor in form.inputs:
        if tensor.name in tensors:
            arrays[tensor.name] = np.asarray(tensors[tensor.name])
            measure(tensor, arrays[tensor.name], sizes)
            if tensor.record.until is not None:
                arrays[tensor.name] = counted(arrays[tensor.name], tensor.record.until)
        elif tensor.record.default is not None:
            absent[tensor.name] = arb(float(tensor.record.default))
        else:
            raise OracleError(f"{tensor.name} is missing", repair="Pass every tensor that is not optional.")
    batch = sizes.pop("batch", 1)
    for name, direction in directions.items():
        if name not in arrays or np.shape(direction) != arrays[name].shape or name not in {t.name for t in form.differentiable}:
            raise OracleError(f"there is no real input of the name and shape of the direction {name!r}",
                              repair="Pass one number for each cell.")
    scales = np.broadcast_to(np.asarray(upstream, dtype=np.float64), (max(batch, 1),) if np.ndim(upstream) == 0 else (batch,))
    if np.ndim(upstream) and reduction != "none":
        raise OracleError(f"upstream has the shape {np.shape(upstream)}", repair="Pass one number for a reduced loss.")
    rates = balls(directions)
    read_params = nodes.params(form.exprs)
    params = {**params, **{p.name: float(p.record.reduction == reduction) for p in read_params if p.record.reduction}}
    return Problem(
        form, batch, balls(arrays), absent, sizes,
        {p.name: arb(float(params.get(p.name, p.record.default))) for p in read_params},
        reduction, [arb(float(s)) for s in scales], {key: rate for key, rate in rates.items() if not rate.is_zero()},
        np.float32 if {a.dtype for a in arrays.values() if a.dtype.kind == "f"} == {np.dtype(np.float32)} else np.float64)


def counted(labels: np.ndarray, until: int) -> np.ndarray:
    """How often each position is among the labels of a sample, which end at the first `until`."""
    found = np.zeros_like(labels)
    for sample in np.ndindex(labels.shape[:-1]):
        for label in labels[sample]:
            if label == until:
                break
            found[(*sample, label)] += 1
    return found


def measure(tensor: Tensor, array: np.ndarray, sizes: dict[Any, int]) -> None:
    """Note the sizes of the batch and of the axes, and hold later tensors to them."""
    axes = (("batch",) if tensor.record.per_sample else ()) + tensor.record.axes
    if array.ndim != len(axes) or any(sizes.setdefault(a, n) != n for a, n in zip(axes, array.shape, strict=True)):
        raise OracleError(f"{tensor.name} has the shape {array.shape}, and its axes are ({', '.join(map(str, axes))})",
                          repair="Pass arrays in the layout of the kernels, none of them broadcast.")


def balls(arrays: Mapping[str, Any]) -> dict[tuple[str, Cell], arb]:
    """Every cell of some arrays, exactly."""
    return {(name, cell): arb(x.item()) for name, array in arrays.items() for cell, x in np.ndenumerate(np.asarray(array))}

"""Inputs to try a definition at: ordinary numbers, the whole exponent range, saturation, ties. Respects domains and indices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import sympy as sp

from .check import Checked
from .nodes import Axis, Load, Tensor

STRATA = ("normal", "wide", "saturated", "ties")
# Where exponentials, logarithms and sums of probabilities reach the end of a format.
EDGES = (0.0, 1.0, 2.0, 16.0, 17.5, 20.0, 36.5, 37.5, 87.0, 88.5, 89.0, 103.5, 104.5, 708.0, 709.5, 745.0, 746.0, 1000.0)
EXPONENTS = {np.dtype(np.float32): 126, np.dtype(np.float64): 1022}


def samples(form: Checked, stratum: str, count: int, dtype: Any, seed: int = 0, sizes: Mapping[str, int] | None = None) -> dict[str, Any]:
    """Arrays for every input that must be given, and for the optional ones, in the layout of kernels; sets of labels as users give them.

    Args:
        stratum: one of STRATA.
        count: the number of samples.
        sizes: the length of each axis; 4 where it is not said.
    """
    rng = np.random.default_rng([seed, STRATA.index(stratum)])
    lengths = {a.name: (sizes or {}).get(a.name, 4) for a in form.axes}
    for a in form.axes:
        if a.record.size is not None:
            (other,) = a.record.size.atoms(Axis)
            lengths[a.name] = lengths[other.name] + int(a.record.size - other)
    found: dict[str, Any] = {}
    for tensor in form.inputs:
        record = tensor.record
        shape = ((count,) if record.per_sample else ()) + tuple(lengths[a.name] for a in record.axes)
        if record.measures is not None:
            found[record.name] = some_of(rng, form, tensor, lengths[record.measures.name], shape)
            continue
        if record.integer:
            into = record.into or record.axes[-1]
            found[record.name] = rng.integers(0, lengths[into.name], shape)
            if record.until is not None:
                found[record.name][rng.random(shape) < 0.4] = record.until
            continue
        choices = compared_with(form, tensor)
        values = rng.choice(choices, shape) if choices else into_domain(tensor, draw(rng, stratum, shape, np.dtype(dtype)), rng, stratum)
        if stratum == "ties" and not choices and record.per_sample:
            values = tie(rng, values, found, tensor)
        if record.domain.open_low and record.domain.low is not None:
            values = np.where(values == record.domain.low, values + 1e-30, values)
        found[record.name] = values.astype(dtype)
    return found


def some_of(rng: np.random.Generator, form: Checked, tensor: Tensor, size: int, shape: tuple[int, ...]) -> np.ndarray:
    """How much of an axis belongs to each sample: often all of it; less of labels that have to fit into another axis."""
    others = [t for t in form.inputs if t.record.measures is not None and t != tensor]
    if others and any(t.record.length == tensor.name for t in form.inputs):
        return rng.integers(0, size // 2 + 1, shape)
    return np.where(rng.random(shape) < 0.7, size, rng.integers(0, size + 1, shape))


def draw(rng: np.random.Generator, stratum: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    """Real numbers of any sign."""
    if stratum == "wide":
        most = EXPONENTS[dtype]
        size = np.exp2(rng.uniform(-most, most, shape) * rng.choice([1.0, 0.25, 0.03], shape))
        return size * rng.choice([-1.0, 1.0], shape)
    if stratum == "saturated":
        return rng.choice(EDGES, shape) * rng.choice([-1.0, 1.0], shape) * rng.choice([1.0, 1.0 - 2.0**-20, 1.0 + 2.0**-20], shape)
    return rng.normal(size=shape) * rng.choice([0.1, 1.0, 3.0], shape)


def into_domain(tensor: Tensor, values: np.ndarray, rng: np.random.Generator, stratum: str) -> np.ndarray:
    """The numbers moved into the domain of an input, with its ends among them."""
    domain = tensor.record.domain
    if domain.low is not None and domain.high is not None:
        span = domain.high - domain.low
        small = np.minimum(np.abs(values), 1.0) if stratum == "wide" else 1 / (1 + np.exp(-np.clip(values, -700, 700)))
        inside = domain.low + span * np.where(rng.random(values.shape) < 0.5, small, 1 - small)
        ends = rng.choice([domain.low, domain.high], values.shape)
        return np.where(rng.random(values.shape) < (0.1 if stratum == "normal" else 0.3), ends, np.clip(inside, domain.low, domain.high))
    if domain.low is not None:
        return domain.low + np.abs(values)
    return domain.high - np.abs(values) if domain.high is not None else values


def tie(rng: np.random.Generator, values: np.ndarray, found: Mapping[str, Any], tensor: Tensor) -> np.ndarray:
    """Numbers that equal those of an earlier input of the same shape, or nearly."""
    partner = next((a for a in found.values() if a.shape == values.shape and a.dtype.kind == "f"), None)
    if partner is None:
        return np.where(rng.random(values.shape) < 0.5, np.round(values), values)
    near = partner * rng.choice([1.0, 1.0 + 2.0**-22, 1.0 - 2.0**-23, 1.0 + 2.0**-50], values.shape)
    return into_domain(tensor, np.where(rng.random(values.shape) < 0.7, near, values), rng, "ties")


def compared_with(form: Checked, tensor: Tensor) -> list[float]:
    """The numbers that a definition compares a tensor with: labels such as 1 and -1; with one number, that and the next whole one."""
    exprs = form.exprs
    found: set[float] = set()
    for relation in exprs.atoms(sp.Equality, sp.Unequality):
        loads = [a for a in relation.args if isinstance(a, Load) and a.tensor == tensor]
        numbers = [a for a in relation.args if a.is_number]
        found |= {float(n) for n in numbers} if loads else set()
    return sorted(found if len(found) > 1 else {n + k for n in found for k in (0, 1)})


def parameters(form: Checked) -> dict[str, Any]:
    """A value for each parameter that the variant stands for: the special one, or an ordinary one that is not special."""
    settings = dict(form.settings)
    found: dict[str, Any] = {}
    for param in form.params:
        record = param.record
        if record.reduction:
            continue
        special = settings.get(param.name)
        if special is not None:
            found[param.name] = bool(special) if isinstance(special, sp.logic.boolalg.BooleanAtom) else float(special)
        elif record.integer:
            found[param.name] = record.default
        elif record.special and sp.sympify(record.default) in [sp.Float(float(s)) for s in record.special]:
            found[param.name] = 0.25 if record.domain.high is not None else 3.0
        else:
            found[param.name] = float(record.default)
    return found


def as_given(form: Checked, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Arrays in the layout of kernels, by the name of the input, as callers pass them: axes that stand before the batch are moved there."""
    return {name: moved(form, name, array) for name, array in arrays.items()}


def moved(form: Checked, name: str, array: Any) -> Any:
    """One array with the batch and an axis that stands before it exchanged: the way there, and back."""
    tensor = next(t for t in form.inputs if t.name == name)
    if not tensor.record.per_sample or not any(a.record.position == 0 for a in tensor.record.axes):
        return array
    return np.ascontiguousarray(np.moveaxis(array, 0, 1))


def nudged(form: Checked, tensors: Mapping[str, Any], turn: int) -> dict[str, Any]:
    """The inputs, each moved to a next number of its type; indices, labels and the ends of domains stay."""
    found = dict(tensors)
    for tensor in form.inputs:
        values = found.get(tensor.name)
        if values is not None and not tensor.record.integer and not compared_with(form, tensor):
            low, high, _ = tensor.record.domain.interval
            moved = np.clip(neighbours(values, turn), low, high).astype(values.dtype)
            found[tensor.name] = np.where((values == low) | (values == high), values, moved)
    return found


def neighbours(values: np.ndarray, turn: int) -> np.ndarray:
    """Each number moved to the next one, away from 0 or towards it; another `turn` moves others away.

    Numbers of equal size move alike, so that what is tied stays tied. Zeros and infinities stay.
    """
    size = np.abs(values)
    mixed = np.ascontiguousarray(size).view(np.uint32 if size.dtype == np.float32 else np.uint64).astype(np.uint64)
    for factor in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB):
        mixed = (mixed + np.uint64(turn + 1)) * np.uint64(factor)
        mixed ^= mixed >> np.uint64(29)
    away = (mixed & np.uint64(1)).astype(bool)
    with np.errstate(over="ignore"):
        moved = np.copysign(np.nextafter(size, np.where(away, np.inf, 0).astype(size.dtype)), values)
    return np.where((values == 0) | ~np.isfinite(moved) | (moved == 0), values, moved)

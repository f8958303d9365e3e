"""What a loss does while one number of one input moves and all else stands still: value, gradient, curvature, and their errors.

For a pointwise loss that is the loss itself as a curve; of a row it is one coordinate, the others being fixed. What is fixed is
chosen so that something happens: simple numbers first, then samples as the tests draw them. Parameters and labels that change
the picture give further curves.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from flint import ctx

from .check import Checked, check
from .emit import forms_of, signature_words
from .errors import LosscompError
from .language import Definition
from .nodes import Param, Tensor
from .oracle import Exact, OracleError, select, ulp_error
from .oracle.balls import ONE
from .oracle.evaluate import DEPTH, pose
from .oracle.results import pack
from .sampling import compared_with, nudged, samples
from .verify import PEER, TURNS, Inputs, evaluations

RESULTS = ("value", "gradient", "hessian")
POINTS = 201
MAGNITUDES = 121
LEAST, MOST_POWER = -6, 4                        # the powers of ten that errors are shown over
GAP = 0.05                                       # of each side of that axis, between 0 and the least power
SEEDS = 6
REACH = 4.0                                      # how far a plot goes where an input has no end
VISIBLE = 0.02                                   # of the height of a plot: less is no other curve
SIZES = 3                                        # the length of an axis
MOST = 6                                         # numbers of a fixed row that are written out
Curve = dict[str, np.ndarray]


@dataclass(frozen=True)
class Line:
    """Where a plot goes: the number `cell` of the input `moving` takes each position; a sample of the rest stands still."""

    definition: Definition
    form: Checked
    moving: Tensor
    cell: tuple[int, ...]
    tensors: Mapping[str, np.ndarray]            # one sample, in float64 and integers, in the layout of kernels
    params: Mapping[str, Any]

    @property
    def name(self) -> str:
        """What moves, as a person writes it."""
        return f"{self.moving.name}[{', '.join(map(str, self.cell))}]" if self.cell else self.moving.name

    @property
    def place(self) -> tuple[int, ...]:
        """The cell in an array of one sample."""
        return (0, *self.cell)

    @property
    def cells(self) -> Any:
        """The cell in an array of many samples."""
        return (slice(None), *self.cell)

    def inputs(self, positions: np.ndarray, dtype: str) -> Inputs:
        """A sample for each position."""
        count = len(positions)
        arrays = {}
        for tensor in self.form.inputs:
            given = self.tensors[tensor.name]
            array = np.repeat(given, count, axis=0) if tensor.record.per_sample else given.copy()
            arrays[tensor.name] = array if tensor.record.integer or tensor.record.measures else array.astype(dtype)
        arrays[self.moving.name][self.cells] = positions
        return Inputs(arrays, self.params, dtype)

    def fixed(self) -> Iterator[tuple[str, str]]:
        """What stands still, in words; optional inputs that have no effect are left out."""
        for tensor in self.form.inputs:
            record, array = tensor.record, self.tensors[tensor.name]
            if (record.default is not None and np.all(array == record.default)) or (tensor == self.moving and not self.cell):
                continue
            cells = [f"{x + 0.0:.4g}" for x in array.ravel()]
            if tensor == self.moving:
                cells[int(np.ravel_multi_index(self.place, array.shape))] = "·"
            many = f"{' × '.join(map(str, array.shape[1:] if record.per_sample else array.shape))} drawn numbers"
            yield record.name, cells[0] if not record.axes else f"({', '.join(cells)})" if len(cells) <= MOST else many
        ignore = {t.record.ignore for t in self.form.inputs}
        for name, value in self.params.items():
            if name not in ignore:
                yield name, spell(value)


def spell(value: Any) -> str:
    """A number or an option."""
    return f"{float(value):.6g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(bool(value))


# Choosing

def line_of(definition: Definition, module: Any, moving: str | None = None, given: Mapping[str, float] = {}) -> Line:
    """A line on which something happens. Raises LosscompError.

    Args:
        module: what computes the loss, such as the emitted NumPy code.
        moving: the input to move along, or one number of it, as in "input[0]"; by default the first that has a gradient.
        given: numbers for parameters, labels and other inputs, by name.
    """
    errors: list[LosscompError] = []
    for loss in forms_of(definition):
        try:
            return line_in(definition, check(loss), module, moving, given)
        except LosscompError as error:
            errors.append(error)
    raise errors[0]


def line_in(definition: Definition, forms: Sequence[Checked], module: Any, moving: str | None, given: Mapping[str, float]) -> Line:
    """A line of one form of a loss. Raises LosscompError."""
    form = forms[0]
    known = {t.name: t for t in form.inputs} | {p.name: p for p in form.params if not p.record.reduction}
    for name in given:
        if name not in known:
            raise LosscompError(f"{definition.name} has no input or parameter {name!r}", repair=f"It has {', '.join(known)}.")
    params = {p.name: setting(p, given[p.name]) if p.name in given else p.record.default for p in form.params if not p.record.reduction}
    form = select(forms, params)
    tensor, cell = moving_input(form, moving)
    if tensor.name in given:
        raise LosscompError(f"{tensor.name} moves, so it has no value", repair="Leave it out, or move along another input.")
    found: Line | None = None
    for tensors in candidates(form, tensor, {n: v for n, v in given.items() if isinstance(known[n], Tensor)}):
        line = Line(definition, form, tensor, cell, tensors, params)
        values = value_at(line, np.linspace(*span(line), 9), module)
        finite = np.isfinite(values)
        if finite.sum() >= 6 and np.ptp(values[finite]) > 1e-3:
            return line
        found = found or line
    if found is None:
        raise LosscompError(f"{definition.name} has no sample to plot", repair="Give its inputs with --param.")
    return found


def moving_input(form: Checked, wanted: str | None) -> tuple[Tensor, tuple[int, ...]]:
    """The input that moves, and the cell of it. Raises LosscompError."""
    possible = [t for t in form.differentiable if t.record.per_sample]
    name, bracket, rest = (wanted or "").partition("[")
    tensor = next((t for t in possible if t.name == name), None)
    if wanted is None:
        tensor = next((t for t in form.wrt if t.record.per_sample), possible[0] if possible else None)
    if tensor is None:
        other = {t.name: "integers" if t.record.integer else "numbers that all samples share" for t in form.inputs}
        why = f"{name} holds {other[name]}" if name in other else f"there is no input {name!r}"
        raise LosscompError(f"{why}: a plot moves along one real number of a sample",
                            repair=f"Move along {' or '.join(t.name for t in possible) or 'another input'} with --input.")
    depth = len(tensor.record.axes)
    cell = (0,) * depth
    if bracket:
        words = rest.removesuffix("]").split(",")
        if len(words) != depth or not all(w.strip().isdecimal() for w in words):
            raise LosscompError(f"{wanted!r} is no number of {tensor.name}",
                                repair=f"Its axes are ({', '.join(a.name for a in tensor.record.axes)}): name a position along each.")
        cell = tuple(int(w) for w in words)
        if any(k >= lengths(form)[a.name] for k, a in zip(cell, tensor.record.axes, strict=True)):
            raise LosscompError(f"{wanted!r} is beyond the sample, whose axes have lengths {lengths(form)}",
                                repair="Name a position below those.")
    return tensor, cell


def setting(param: Param, value: float) -> Any:
    """The value of a parameter, in its type. Raises LosscompError."""
    record = param.record
    if record.is_option or isinstance(record.default, bool):
        return bool(value)
    low, high, out = record.domain.interval
    if not low <= value <= high or (out and value == low):
        raise LosscompError(f"{param.name} is {record.domain.words()}, and was given {value:g}", repair="Choose another value.")
    if record.only_special and float(value) not in [float(s) for s in record.special]:
        raise LosscompError(f"{param.name} is one of {', '.join(map(str, record.special))}, and was given {value:g}",
                            repair="Choose one of those.")
    return int(value) if record.integer else float(value)


def lengths(form: Checked) -> dict[str, int]:
    """How long the axes of a sample are."""
    return {a.name: SIZES + 1 if form.tables else SIZES for a in form.axes}


def choices(form: Checked, tensor: Tensor, first: bool) -> list[float]:
    """Simple numbers for an input of one number a sample, in the order in which they are tried; the first input may be 0."""
    if labels := compared_with(form, tensor):
        return sorted(labels, reverse=True)
    if tensor.record.default is not None:
        return [tensor.record.default]
    domain = tensor.record.domain
    ends = (domain.low is not None, domain.high is not None)
    usual = {(True, True): [0.5, 1.0, 0.0], (True, False): [1.0, 0.5]}.get(ends, [0.0, 1.0] if first else [1.0, 0.0])
    return [x for x in usual if within(tensor, x)]


def within(tensor: Tensor, value: float) -> bool:
    """Is a number in the domain of an input?"""
    low, high, out = tensor.record.domain.interval
    return bool(low <= value <= high) and not (out and value == low)


def candidates(form: Checked, moving: Tensor, given: Mapping[str, float]) -> Iterator[dict[str, np.ndarray]]:
    """Samples of what stands still: simple numbers first, then drawn ones."""
    single = [t for t in form.inputs if not t.record.axes and not t.record.integer and t.record.measures is None and t.record.per_sample
              and t != moving and t.name not in given]
    order = signature_words(form.loss, [form])
    single.sort(key=lambda t: order.index(t.name))
    options = [choices(form, t, k == 0) for k, t in enumerate(single)]
    others = [t for t in form.inputs if t != moving]
    rows = any(t.record.axes or t.record.integer for t in form.inputs)
    for seed in range(SEEDS if rows else 1):
        drawn = samples(form, "normal", 1, "float64", seed, lengths(form))
        for numbers in itertools.product(*options):
            found = dict(drawn)
            if seed == 0 and not form.tables:
                found |= {t.name: simple(t, others.index(t) if t != moving else None, drawn[t.name]) for t in form.inputs}
            found |= {t.name: np.round(drawn[t.name], 1) for t in form.differentiable if (seed or form.tables) and inside(t, drawn[t.name])}
            found |= {t.name: np.full(drawn[t.name].shape, t.record.default) for t in form.inputs if t.record.default is not None}
            found |= {t.name: np.full(drawn[t.name].shape, x) for t, x in zip(single, numbers, strict=True)}
            yield found | {name: filled(form, name, drawn[name], x) for name, x in given.items()}


def simple(tensor: Tensor, place: int | None, drawn: np.ndarray) -> np.ndarray:
    """Simple numbers in the place of drawn ones: label 0; in rows a 1 at some place, in that which moves halves of halves."""
    record = tensor.record
    if record.into is not None and not record.axes:
        return np.zeros_like(drawn)
    if record.integer or record.measures is not None or len(record.axes) != 1:
        return drawn
    size = drawn.shape[-1]
    row = 0.5 ** np.arange(size) if place is None else np.eye(size)[place % size]
    made = np.broadcast_to(row, drawn.shape).copy()
    return made if inside(tensor, made) else drawn


def inside(tensor: Tensor, array: np.ndarray) -> bool:
    """Are the numbers in the domain of an input, once rounded?"""
    return all(within(tensor, round(float(x), 1)) for x in array.ravel())


def filled(form: Checked, name: str, like: np.ndarray, value: float) -> np.ndarray:
    """An input that is one number everywhere. Raises LosscompError."""
    tensor = next(t for t in form.inputs if t.name == name)
    record = tensor.record
    top = None if not (record.integer or record.measures) else lengths(form)[(record.measures or record.into or record.axes[-1]).name]
    if not within(tensor, value) or (top is not None and not (value == int(value) and 0 <= value < top + bool(record.measures))):
        what = record.domain.words() if top is None else f"a whole number from 0 to {top - (not record.measures)}"
        raise LosscompError(f"{name} is {what} here, and was given {value:g}", repair="Choose another value.")
    return np.full(like.shape, value, like.dtype)


def span(line: Line, given: tuple[float, float] | None = None) -> tuple[float, float]:
    """The range of a plot. Raises LosscompError for one that is not in the domain."""
    domain = line.moving.record.domain
    if given is not None:
        low, high = given
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise LosscompError(f"the range {low:g} {high:g} is empty", repair="Give the lower end first: --range -3 3.")
        if not (within(line.moving, low) and within(line.moving, high)):
            raise LosscompError(f"{line.moving.name} is {domain.words()}: the range {low:g} {high:g} leaves that",
                                repair="Choose one inside.")
        return low, high
    low, high, _ = domain.interval
    if math.isfinite(low) and math.isfinite(high):
        return low, high
    if math.isfinite(low):
        return low + (REACH / 100 if domain.open_low else 0), low + REACH
    return (high - REACH, high) if math.isfinite(high) else (-REACH, REACH)


def where_it_moves(line: Line, module: Any) -> tuple[float, float]:
    """The default range, or the part of it in which the loss does anything, where that is a small part."""
    low, high = span(line)
    xs = np.linspace(low, high, 161)
    slopes = curve(line, xs, "float64", {"": module})[""]["gradient"]
    moves = np.flatnonzero((slopes != 0) | ~np.isfinite(slopes))
    if not moves.size or xs[moves[-1]] - xs[moves[0]] > 0.5 * (high - low):
        return low, high
    first, last = xs[max(moves[0] - 1, 0)], xs[min(moves[-1] + 1, 160)]
    margin = (last - first) / 10
    return max(low, float(np.floor((first - margin) * 10) / 10)), min(high, float(np.ceil((last + margin) * 10) / 10))


# Curves

def curve(line: Line, positions: np.ndarray, dtype: str, modules: Mapping[str, Any]) -> dict[str, Curve]:
    """Value, gradient and second derivative along a line, by each module that has the loss, and by PyTorch where it has it."""
    inputs = line.inputs(positions, dtype)
    along = np.zeros_like(inputs.tensors[line.moving.name])
    along[line.cells] = 1
    wrt = [line.moving.name]
    found = {}
    with np.errstate(all="ignore"):
        for name, (value, grads, products) in evaluations(line.definition, line.form, inputs.tensors, inputs.settled, {wrt[0]: along}, wrt,
                                                          modules):
            found[name] = {"value": np.asarray(value), "gradient": np.asarray(grads[0])[line.cells],
                           "hessian": np.asarray(products[0])[line.cells]}
    return found


def value_at(line: Line, positions: np.ndarray, module: Any) -> np.ndarray:
    """The value alone, by one module."""
    return np.asarray(curve(line, positions, "float64", {"": module})[""]["value"])


@dataclass(frozen=True)
class Family:
    """Curves of one loss on one range, told apart by the values of one parameter or input; `by` is empty where there is one curve."""

    by: str
    labels: tuple[str, ...]
    lines: tuple[Line, ...]
    positions: np.ndarray
    curves: tuple[Curve, ...]


def family(definition: Definition, module: Any, moving: str | None = None, by: str = "", values: Sequence[float] = (),
           ends: tuple[float, float] | None = None, given: Mapping[str, float] = {}) -> Family:
    """Curves for some values of a parameter or input. Raises LosscompError."""
    lines = [line_of(definition, module, moving, {**given, by: v} if by else given) for v in values or (0.0,)]
    if by:                                                               # all else is as for the first
        lines = [replace(lines[0], form=other.form, params=other.params,
                         tensors={**lines[0].tensors, **({by: other.tensors[by]} if by in other.tensors else {})}) for other in lines]
    low, high = span(lines[0], ends) if ends else where_it_moves(lines[0], module)
    positions = np.linspace(low, high, POINTS // 2 if lines[0].form.tables else POINTS)
    curves = tuple(curve(line, positions, "float64", {"": module})[""] for line in lines)
    labels = tuple(spell(line.params.get(by, v)) for line, v in zip(lines, values, strict=True)) if by else ("",)
    return Family(by, labels, tuple(lines), positions, curves)


def families(definition: Definition, module: Any, most: int = 2, moving: str | None = None, ends: tuple[float, float] | None = None,
             given: Mapping[str, float] = {}) -> list[Family]:
    """The pictures that say most of a loss: for each of a few parameters and inputs whose value can be seen, curves for some values.

    Raises LosscompError.
    """
    base = line_of(definition, module, moving, given)
    found = []
    for by, values in variations(base):
        if by in given:
            continue
        with suppress(LosscompError):
            one = family(definition, module, moving, by, values, ends, given)
            seen = visible(one)
            if len(seen) > 1:
                found.append(replace(one, labels=tuple(one.labels[k] for k in seen), lines=tuple(one.lines[k] for k in seen),
                                     curves=tuple(one.curves[k] for k in seen)))
        if len(found) == most:
            break
    return found or [family(definition, module, moving, ends=ends, given=given)]


def variations(line: Line) -> Iterator[tuple[str, tuple[float, ...]]]:
    """Values to compare, of parameters and then of inputs: those of the base line first."""
    options = []
    for param in line.form.params:
        record = param.record
        if record.reduction or record.into is not None or any(t.record.ignore == param.name for t in line.form.inputs):
            continue
        now = line.params[param.name]
        base = float(now)
        if record.only_special or isinstance(record.default, bool):
            values = (0.0, 1.0) if isinstance(record.default, bool) else tuple(map(float, record.special))
            options.append((param.name, tuple(sorted(filter(math.isfinite, values), key=lambda v: v != base))))
            continue
        spread = (base, base / 2, base * 2) if base else (0.0, 0.2, 0.5)
        low, high, out = record.domain.interval
        yield param.name, tuple(v for v in spread if low <= v <= high and not (out and v == low))
    for tensor in line.form.inputs:
        record = tensor.record
        if tensor == line.moving or record.default is not None or not record.per_sample or record.axes or record.measures:
            continue
        now = float(line.tensors[tensor.name].ravel()[0])
        if record.into is not None:
            yield tensor.name, (now, *[float(k) for k in range(lengths(line.form)[record.into.name]) if k != now][:1])
        elif labels := compared_with(line.form, tensor):
            yield tensor.name, tuple(sorted(labels, key=lambda v: v != now))
        elif record.domain.low is not None:
            yield tensor.name, tuple(v for v in (now, now / 2, now * 2, 1 - now) if within(tensor, v))[:3]
        else:
            yield tensor.name, (now, 0.5, 1.0) if now == 0 else (now, now / 2, -now)
    yield from options


def visible(one: Family) -> list[int]:
    """The curves that can be told from those before them."""
    heights = [np.concatenate([c["value"], c["gradient"]]) for c in one.curves]
    finite = np.concatenate([h[np.isfinite(h)] for h in heights] or [np.zeros(1)])
    tall = float(np.ptp(finite)) if finite.size else 0.0
    kept: list[int] = []
    for k, h in enumerate(heights):
        if np.isfinite(h).mean() > 0.3 and all(differ(h, heights[j], tall) for j in kept):
            kept.append(k)
    return kept


def differ(a: np.ndarray, b: np.ndarray, tall: float) -> bool:
    """Are two curves apart somewhere?"""
    both = np.isfinite(a) & np.isfinite(b)
    return not both.any() or bool(np.max(np.abs(a - b)[both]) > VISIBLE * tall)


# Errors

@dataclass(frozen=True)
class Errors:
    """Errors in ULP along a line over many magnitudes, of each implementation; NaN where the exact answer is no finite number.

    Attributes:
        along, ticks: where each position stands on an axis from 0 to 1, and the labels of that axis.
        found: the errors of value and gradient, by implementation.
        moved: by how many ULP the exact answer moves when each input moves to a next number of its type.
    """

    line: Line
    inputs: Inputs
    truth: Mapping[str, Exact]
    along: np.ndarray
    ticks: list[tuple[float, str]]
    found: dict[str, Curve] = field(default_factory=dict)
    moved: Curve = field(default_factory=dict)

    def add(self, name: str, computed: Mapping[str, np.ndarray]) -> None:
        """Measure what an implementation computed."""
        self.found[name] = {r: error(computed[r], self.truth[r], self.inputs.dtype) for r in RESULTS[:2]}


def scale_of(line: Line, zoomed: bool, count: int) -> tuple[np.ndarray, np.ndarray, list[tuple[float, str]]]:
    """Positions over the magnitudes of an input, where they stand on an axis from 0 to 1, and labels of that axis."""
    low, high, _ = line.moving.record.domain.interval
    if (math.isfinite(low) and math.isfinite(high)) or zoomed:
        low, high = (low, high) if math.isfinite(low) and math.isfinite(high) else (0.0, 1.0)
        half = count // 2
        near = 10.0 ** np.linspace(-8, math.log10(0.5), half)
        far = 10.0 ** np.linspace(-7, math.log10(0.5), half)
        places = np.linspace(0, 0.5, half)
        ends = [(0.0, f"{low:g} + 10⁻⁸"), (0.25, ""), (0.5, f"{(low + high) / 2:g}"), (1.0, f"{high:g} − 10⁻⁷")]
        return (low + (high - low) * np.concatenate([near, 1 - far[-2::-1]]), np.concatenate([places, 1 - places[-2::-1]]), ends)
    powers = np.linspace(LEAST, MOST_POWER, count if math.isfinite(low) else count // 2)
    sizes = 10.0 ** (powers + 0.0173)                                    # beside round numbers, which are too easy
    part = lambda p: (p - LEAST) / (MOST_POWER - LEAST)
    labels = [(-4, "10⁻⁴"), (0, "1"), (4, "10⁴")]
    if math.isfinite(low):
        return low + sizes, part(powers), [(part(p), t if low == 0 else f"{low:g} + {t}") for p, t in labels]
    side = lambda p: 0.5 * (GAP + (1 - GAP) * part(p))
    ticks = [(0.5 - side(p), "−" + t) for p, t in reversed(labels)] + [(0.5, "0")] + [(0.5 + side(p), t) for p, t in labels]
    return np.concatenate([-sizes[::-1], [0.0], sizes]), np.concatenate([0.5 - side(powers[::-1]), [0.5], 0.5 + side(powers)]), ticks


def truth_along(line: Line, inputs: Inputs) -> dict[str, Exact]:
    """Exact value, gradient and second derivative at each position; NaN where the oracle has no answer."""
    settled = inputs.settled
    found: list[list[tuple[float, float]]] = []
    count = len(inputs.tensors[line.moving.name])
    for n in range(count):
        one = {t.name: inputs.tensors[t.name][n:n + 1] if t.record.per_sample else inputs.tensors[t.name] for t in line.form.inputs}
        try:
            found.append(exact_at(line, one, settled))
        except OracleError:
            found.append([(math.nan, 0.0)] * 3)
    return {name: pack([row[k] for row in found], (count,)) for k, name in enumerate(RESULTS)}


def exact_at(line: Line, tensors: Mapping[str, np.ndarray], params: Mapping[str, Any]) -> list[tuple[float, float]]:
    """Exact value, gradient and second derivative of one sample. Raises OracleError."""
    before, depth = ctx.prec, sys.getrecursionlimit()
    sys.setrecursionlimit(max(depth, DEPTH))
    try:
        problem = pose(line.form, tensors, params, "none", 1.0, {})
        cell = {(line.moving.name, line.place): ONE}
        return [*problem.values(), *problem.derivatives(range(1), cell, cell)]
    finally:
        ctx.prec = before
        sys.setrecursionlimit(depth)


def errors_along(line: Line, modules: Mapping[str, Any], zoomed: bool = False, dtype: str = "float32") -> Errors:
    """The errors of some implementations, and of PyTorch, against exact arithmetic along a line."""
    positions, along, ticks = scale_of(line, zoomed, MAGNITUDES // 2 if line.form.tables else MAGNITUDES)
    inputs = line.inputs(positions, dtype)
    truth = truth_along(line, inputs)
    result = Errors(line, inputs, truth, along, ticks)
    for name, computed in curve(line, positions, dtype, modules).items():
        result.add(name, computed)
    for turn in range(TURNS):
        near = truth_along(line, replace(inputs, tensors=nudged(line.form, inputs.tensors, turn)))
        for r in RESULTS[:2]:
            shift = error(near[r].high, truth[r], dtype)
            result.moved[r] = np.fmax(result.moved.get(r, 0), shift)
    return result


def error(computed: np.ndarray, truth: Exact, dtype: str) -> np.ndarray:
    """Errors in ULP, where the exact answer is a finite number of the type."""
    with np.errstate(all="ignore"):
        known = np.isfinite(truth.high) & (np.abs(truth.high) <= np.finfo(dtype).max)
        return np.where(known, ulp_error(computed, truth, np.dtype(dtype)), np.nan)


__all__ = ["PEER", "RESULTS", "Errors", "Family", "Line", "errors_along", "families", "family", "line_of"]

"""Where, and by how much, a loss differs from another: a dialect from its base, one row for each difference that it states.

Both formulas are evaluated in exact arithmetic at the same inputs, so that rounding has no part in what is shown; ULP are units of the
spacing of the type at the larger number. A sample counts for the differences that hold there, together; those at which none holds have a
row of their own: zeros, if the statements are complete. Where the base is no number, its inputs are outside of its domain, and left out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from . import catalogue
from .check import Checked, check, specialise
from .errors import LosscompError
from .language import Definition, Difference, Loss, Overload
from .nodes import substitute
from .oracle import Exact, OracleError, exact
from .oracle.evaluate import pose, select
from .oracle.jets import still
from .sampling import compared_with, parameters, samples

TYPES = ("float32", "float64")
KINDS = {"normal": "ordinary", "ties": "ordinary", "saturated": "extreme"}     # how samples are drawn, and what the table calls it
COUNT = 8
ELSEWHERE = "elsewhere"
EQUAL = 2.0**-40                                # relative differences below this are those of the oracle's own results


@dataclass
class Gap:
    """The largest difference of one result: absolute, in ULP of the type, and the inputs of the sample where it is."""

    absolute: float = 0.0
    ulp: float = 0.0
    at: str = ""


@dataclass
class Row:
    """One stated difference in one type: where it holds (`points` samples), value and gradient differ by so much at most.

    Attributes:
        inputs: "ordinary" numbers and labels, or "extreme" ones, where exponentials and logarithms saturate.
    """

    name: str
    inputs: str
    dtype: str
    points: int = 0
    value: Gap = field(default_factory=Gap)
    grad: Gap = field(default_factory=Gap)


Rows = dict[tuple[str, str, str], Row]


def compared(one: Definition, other: Definition) -> Loss:
    """The first loss, with the formula of the second in its terms as `plain`. Raises LosscompError where that is not known."""
    for loss, base in ((one, other), (other, one)):
        if isinstance(loss, Loss) and loss.plain is not None and loss.dialect_of == base.name:
            return loss
    repair = "Compare a dialect with the loss that it is a dialect of, or two losses whose arguments have the same names."
    if isinstance(one, Overload) or isinstance(other, Overload):
        raise LosscompError(f"{one.name} and {other.name} are not forms of one loss", repair=repair)
    mine = {t.name: t for t in check(one)[0].inputs}
    theirs = check(other)[0].inputs
    if not {t.name for t in theirs} <= set(mine):
        raise LosscompError(f"{one.name} and {other.name} have arguments of other names", repair=repair)
    rule = {t: mine[t.name] for t in theirs}
    return replace(one, plain=substitute(other.value, rule), plain_mean_over=substitute(other.mean_over, rule))


def compare(loss: Loss) -> list[Row]:
    """The rows of a loss that has a `plain` formula."""
    plain = check(replace(loss, value=loss.plain, mean_over=loss.plain_mean_over, signature="", names={}))
    found: Rows = {}
    for form in check(loss):
        for params in settings(form):
            base = select(plain, params)
            for dtype in TYPES:
                for kind, inputs in KINDS.items():
                    for tensors in batches(form, dtype, kind):
                        measure(found, inputs, loss, form, base, tensors, params, dtype)
    order = {d.name: k for k, d in enumerate(loss.differences)}
    place = lambda r: (r.name == ELSEWHERE, r.name.count("+"), order.get(r.name, 0), r.name, r.dtype, r.inputs != "ordinary")
    return sorted((r for r in found.values() if r.points), key=place)


def settings(form: Checked) -> Iterator[dict[str, Any]]:
    """Values of the parameters: those of the variant, and with each that has two ends a tenth of the way between them."""
    usual = parameters(form)
    yield usual
    settled = dict(form.settings)
    for p in form.params:
        low, high = p.record.domain.low, p.record.domain.high
        if low is not None and high is not None and settled.get(p.name) is None and usual[p.name] == low:
            yield {**usual, p.name: low + (high - low) / 10}


def batches(form: Checked, dtype: str, kind: str) -> Iterator[dict[str, np.ndarray]]:
    """Inputs: as sampled; with labels that are 0 and 1, one 1 in a row; with predictions that are probabilities, some 0 and 1."""
    drawn = samples(form, kind, COUNT, dtype)
    rng = np.random.default_rng(3)
    labels, shares = dict(drawn), {}
    for t in form.inputs:
        values = drawn[t.name]
        if t.record.default is not None:
            shares[t.name] = rng.choice([0.0, 0.5, 1.0, 2.5], values.shape).astype(dtype)
            continue
        if t.record.integer or compared_with(form, t):
            continue
        if t.record.fixed and t.record.axes:
            labels[t.name] = np.eye(values.shape[-1], dtype=dtype)[rng.integers(0, values.shape[-1], values.shape[:-1])]
        elif t.record.fixed:
            labels[t.name] = rng.integers(0, 2, values.shape).astype(dtype)
        elif not t.record.domain.bounded:
            p = 1 / (1 + np.exp(-np.clip(values.astype(np.float64), -30, 30)))
            shares[t.name] = (p / p.sum(-1, keepdims=True) if t.record.axes and kind == "ties" else p).astype(dtype)
    mixed = {n: (v + np.roll(v, 1, -1)) / 2 for n, v in labels.items() if v is not drawn[n] and v.ndim > 1}
    yield from (drawn, labels, {**labels, **shares}, {**drawn, **shares}, {**labels, **mixed, **shares})


def measure(found: Rows, inputs: str, loss: Loss, form: Checked, base: Checked, tensors: Mapping[str, np.ndarray],
            params: Mapping[str, Any], dtype: str) -> None:
    """Add the differences at some inputs to the rows."""
    given = {t.name: tensors[t.name] for t in form.inputs}
    params = {k: np.dtype(dtype).type(v).item() if isinstance(v, float) else v for k, v in params.items()}
    held = {d.name: holds(d, form, given, params) for d in loss.differences}

    def row(names: Iterable[str]) -> Row:
        name = " + ".join(names) or ELSEWHERE
        return found.setdefault((name, inputs, dtype), Row(name, inputs, dtype))

    each = [d.name for d in loss.differences if not d.mean]
    for n in range(COUNT):
        one = {t.name: given[t.name][n:n + 1] if t.record.per_sample else given[t.name] for t in form.inputs}
        note(row(name for name in each if held[name][n]), one, form, base, params, "none")
    for d in loss.differences:
        if d.mean:
            note(row(name for name in (*each, d.name) if held[name].any()), given, form, base, params, "mean")


def holds(difference: Difference, form: Checked, tensors: Mapping[str, np.ndarray], params: Mapping[str, Any]) -> np.ndarray:
    """At which samples a stated difference is there."""
    problem = pose(form, tensors, params, "none", 1.0, {})
    formula = specialise(difference.indicator, form.settings, form.params)
    problem = replace(problem, scalars={**problem.scalars, **pose_scalars(form, params)})
    return np.array([bool(still(problem.sample(formula, n, {}, {})) > 0) for n in range(problem.batch)])


def pose_scalars(form: Checked, params: Mapping[str, Any]) -> dict[str, Any]:
    """Every parameter as a ball."""
    from flint import arb

    return {p.name: arb(float(params[p.name])) for p in form.params}


def note(row: Row, tensors: Mapping[str, np.ndarray], form: Checked, base: Checked, params: Mapping[str, Any], reduction: str) -> None:
    """Evaluate both formulas and widen the gaps of a row."""
    theirs = {t.name: tensors[t.name] for t in base.inputs}
    wrt = [t.name for t in form.wrt if t.name in theirs]
    try:
        mine = exact(form, tensors, params, reduction=reduction, wrt=wrt)
        plain = exact(base, theirs, params, reduction=reduction, wrt=wrt)
    except OracleError:                                          # no precision settles it
        return
    if np.isnan(plain.value.high).any():
        return
    at = ", ".join(f"{k}={spell(v)}" for k, v in tensors.items()) + "".join(f", {k}={v:.7g}" for k, v in params.items())
    row.points += 1
    widen(row.value, mine.value, plain.value, row.dtype, at)
    for n in wrt:
        widen(row.grad, mine.grad[n], plain.grad[n], row.dtype, at)


def spell(array: np.ndarray) -> str:
    """Some numbers in one line; a batch of one without its brackets."""
    text = np.array2string(array[0] if array.shape[:1] == (1,) else array, separator=", ", threshold=6, edgeitems=2)
    return " ".join(text.split())


def widen(gap: Gap, mine: Exact, plain: Exact, dtype: str, at: str) -> None:
    """Take the largest difference of two results into a gap. NaN against a number is infinitely far."""
    kind = np.finfo(dtype)
    a, b = np.atleast_1d(mine.high), np.atleast_1d(plain.high)
    with np.errstate(all="ignore"):
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        off = np.where(same, 0, np.abs((a - b) + (np.atleast_1d(mine.low) - np.atleast_1d(plain.low))))
        off = np.where(np.isnan(off), np.inf, off)
        off = np.where(off <= EQUAL * np.abs(b), 0, off)
        unit = np.spacing(np.clip(np.fmax(np.abs(a), np.abs(b)), 0, float(kind.max)).astype(dtype)).astype(np.float64)
        ulps = np.where(off == 0, 0, off / np.where(np.isnan(unit), 1, unit))
    if off.max(initial=0.0) > gap.absolute:
        gap.absolute, gap.at = float(off.max()), at
    gap.ulp = max(gap.ulp, float(ulps.max(initial=0.0)))


def table(rows: list[Row], differences: Iterable[Difference]) -> list[str]:
    """The rows as text; what the differences are; and the inputs where float32 numbers differ most."""
    wide = max(len(r.name) for r in rows)
    lines = [f"{'difference':{wide}}  {'inputs':9} {'type':8}{'samples':>8}{'value':>11}{'ULP':>11}{'gradient':>11}{'ULP':>11}"]
    for r in rows:
        numbers = "".join(f"{x:11.3g}" for x in (r.value.absolute, r.value.ulp, r.grad.absolute, r.grad.ulp))
        lines.append(f"{r.name:{wide}}  {r.inputs:9} {r.dtype:8}{r.points:8}{numbers}")
    lines += ["", *(f"{d.name}: {d.what}" for d in differences), f"{ELSEWHERE}: none of these holds"]
    for r in rows:
        if r.dtype == TYPES[0]:
            lines += [f"{r.name}, {r.inputs}: the {result} differs most at {gap.at}"
                      for result, gap in (("value", r.value), ("gradient", r.grad)) if gap.at]
    return lines


def main(args: argparse.Namespace) -> int:
    """`losscomp compare`: 0 where the stated differences are all, 1 where value or gradient differ elsewhere."""
    folder = args.defs or catalogue.builtin_definitions()
    catalogue.pick([args.loss] if args.other is None else [args.loss, args.other], folder)
    definitions = catalogue.load(folder)
    one = definitions[args.loss]
    base = args.other or getattr(one, "dialect_of", "")
    if base not in definitions:
        raise LosscompError(f"{one.name} is no dialect", repair="Name a second loss to compare it with.")
    other = definitions[base]
    loss = compared(one, other)
    rows = compare(loss)
    for definition in (one, other):
        first = definition.forms[0] if isinstance(definition, Overload) else definition
        print(f"{definition.name}({', '.join((definition.signature or first.signature).split())}), reduction={first.default!r}")
    print("", *table(rows, loss.differences), sep="\n")
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    return int(bool(loss.differences) and any(r.name == ELSEWHERE and max(r.value.ulp, r.grad.ulp) > 0 for r in rows))

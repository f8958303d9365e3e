"""How well the targets of a built library agree with exact arithmetic, with each other and with PyTorch.

Every variant of every loss is evaluated on sampled inputs, without reduction, and each result is held against the oracle's:
in ULP of the result's type, and in relative error. A result is lost where the truth is an ordinary number and the relative
error exceeds 1e-2, or the result is no number at all.

A result is at a root where the question itself is ill-conditioned: the truth moves by more than ROOT units in the last place
when every input, the direction of a product too, moves to a next number of its type. The full run finds these results with the
oracle, and says how large the error is elsewhere.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from . import catalogue, certificates
from .check import Checked, check
from .emit import forms_of
from .errors import BuildError
from .language import Definition
from .oracle import Exact, OracleError, Truth, exact, ulp_error
from .sampling import STRATA, as_given, moved, neighbours, nudged, parameters, samples

TYPES = ("float32", "float64")
TARGETS = ("numpy", "c", "torch")
PEER = "PyTorch"                                 # the column of the loss that ours is like
QUICK = ("normal",)                              # the strata of the agreement table that a build prints
SKIPPED = 1e-2                                   # the relative error from which a result is lost
ROOT = 4.0                                       # by how many ULP the truth moves, with inputs that move by one, at a root
FEW = 6                                          # samples of losses with tables, whose exact derivatives take long
TURNS = 4                                        # ways to move the inputs: up for some, down for others


@dataclass
class Row:
    """The agreement of one result of one loss on one target, over all variants.

    Attributes:
        output: "value", "grad" or "hvp".
        points: how many numbers were compared.
        typical, worst: the median and the largest error in ULP; over the strata without roots in `typical`'s case.
        relative: the largest error relative to the largest magnitude in the same sample.
        lost: results with a relative error above 1e-2, or that are no number, where the truth is an ordinary number.
        off_roots: the largest error in ULP of results that are at no root; None where roots were not looked for.
        beyond: the largest error anywhere, in units of how far the truth moves with its inputs, or of an ULP where that is less.
        at_roots, lost_off_roots: how many results are at roots, and how many of the others are lost.
        example: where the worst lost result was, if any.
    """

    loss: str
    output: str
    dtype: str
    target: str
    points: int = 0
    typical: float = 0.0
    worst: float = 0.0
    relative: float = 0.0
    lost: int = 0
    example: str = ""
    off_roots: float | None = None
    beyond: float | None = None
    at_roots: int = 0
    lost_off_roots: int = 0
    errors: list[float] = field(default_factory=list, repr=False)


def targets_of(folder: Path) -> dict[str, Any]:
    """The targets of a built library, by name. Raises BuildError."""
    src = folder / "src"
    packages = sorted(p.parent.name for p in src.glob("*/runtime.py"))
    if not packages:
        raise BuildError(f"{folder} holds no library", repair="Build one: losscomp build")
    sys.path.insert(0, str(src))
    found: dict[str, Any] = {}
    for target in TARGETS:
        try:
            found[target] = importlib.import_module(f"{packages[0]}.{target}")
        except ImportError as error:
            print(f"not checked: the target {target}: {error}", file=sys.stderr)
    return found


def verify(definitions: Mapping[str, Definition], targets: Mapping[str, Any], quick: bool = False) -> list[Row]:
    """The agreement of every loss."""
    rows: list[Row] = []
    for definition in definitions.values():
        rows += verify_loss(definition, targets, quick, QUICK if quick else STRATA, roots=not quick)
    return rows


def verify_loss(definition: Definition, targets: Mapping[str, Any], quick: bool = False, strata: Iterable[str] = STRATA,
                roots: bool = False) -> list[Row]:
    """The agreement of one loss: value, gradients and Hessian-vector products by the inputs that have a gradient by default."""
    found: dict[tuple[str, str, str], Row] = {}
    for form in (f for loss in forms_of(definition) for f in check(loss)):
        params = parameters(form)
        for dtype in TYPES:
            for stratum in strata:
                tensors = samples(form, stratum, 6 if quick else FEW if form.tables else 40, dtype)
                try:
                    compare(found, definition, form, tensors, params, dtype, stratum, targets, roots)
                except OracleError:                                      # some sample spans too many exponents: one by one, without it
                    for one in single_samples(form, tensors):
                        with suppress(OracleError):
                            compare(found, definition, form, one, params, dtype, stratum, targets, roots)
    for row in found.values():
        row.typical = float(np.median(row.errors)) if row.errors else 0.0
    return list(found.values())


def single_samples(form: Checked, tensors: Mapping[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
    """The same inputs, a sample at a time."""
    count = next(len(tensors[t.name]) for t in form.inputs if t.record.per_sample)
    for n in range(count):
        yield {name: array[n:n + 1] if form_has(form, name) else array for name, array in tensors.items()}


def compare(found: dict[tuple[str, str, str], Row], definition: Definition, form: Checked, tensors: Mapping[str, np.ndarray],
            params: Mapping[str, Any], dtype: str, stratum: str, targets: Mapping[str, Any], roots: bool) -> None:
    """Add the errors at some inputs to the rows of a loss."""
    for result in measured(definition, form, Inputs(tensors, params, dtype), targets, roots):
        row = found.setdefault((result.output, dtype, result.target), Row(definition.name, result.output, dtype, result.target))
        account(row, result.computed, result.truth, dtype, stratum, form, tensors, result.moved)


@dataclass(frozen=True)
class Inputs:
    """Arguments of a loss in one type, with the directions of products."""

    tensors: Mapping[str, np.ndarray]
    params: Mapping[str, Any]
    dtype: str

    @property
    def settled(self) -> dict[str, Any]:
        """The parameters, rounded to the type."""
        return {k: np.dtype(self.dtype).type(v).item() if isinstance(v, float) else v for k, v in self.params.items()}

    def directions(self, wrt: list[str]) -> dict[str, np.ndarray]:
        """The rates at which inputs move."""
        rng = np.random.default_rng(1)
        return {n: rng.normal(size=self.tensors[n].shape).astype(self.dtype) for n in wrt}


@dataclass(frozen=True)
class Result:
    """What one target computed, and what it should have; `by` is the input that a derivative is by."""

    target: str
    output: str
    by: str
    computed: np.ndarray
    truth: Exact
    moved: np.ndarray | None


def measured(definition: Definition, form: Checked, inputs: Inputs, targets: Mapping[str, Any], roots: bool) -> Iterator[Result]:
    """Every result of every target at some inputs, with the truth. Raises OracleError."""
    wrt = [t.name for t in form.wrt]
    settled, directions = inputs.settled, inputs.directions(wrt)
    ask = lambda given, ways: exact(form, given, settled, reduction="none", wrt=wrt, directions=ways)
    truth = ask(inputs.tensors, directions)
    moved = None
    if roots:
        nearby = [(nudged(form, inputs.tensors, k), {n: neighbours(d, k) for n, d in directions.items()}) for k in range(TURNS)]
        moved = moves(truth, nearby, ask, wrt, inputs.dtype)
    by = ["", *(n for n in wrt for _ in range(2))]
    for target, results in evaluations(definition, form, inputs.tensors, settled, directions, wrt, targets):
        for k, (output, computed, expected) in enumerate(pairs(results, truth, wrt)):
            yield Result(target, output, by[k], np.asarray(computed), expected, moved[k] if moved else None)


def moves(truth: Truth, nearby: list[tuple[Any, Any]], ask: Callable[[Any, Any], Truth], wrt: list[str], dtype: str) -> list[np.ndarray]:
    """For each result, by how many ULP the truth differs at the nearby inputs; where the oracle has no answer, infinitely many."""
    whole = lambda t: [np.atleast_1d(e.high) + 0j + 1j * np.atleast_1d(e.low) for e in exact_results(t, wrt)]
    here, kind = whole(truth), np.finfo(dtype)
    found = [np.zeros(e.shape) for e in here]
    for given in nearby:
        try:
            there = whole(ask(*given))
        except OracleError:
            return [np.full(e.shape, np.inf) for e in here]
        with np.errstate(all="ignore"):
            for k, (a, b) in enumerate(zip(here, there, strict=True)):
                off = np.abs((a.real - b.real) + (a.imag - b.imag))
                unit = np.abs(np.spacing(np.clip(a.real, -float(kind.max), float(kind.max)).astype(dtype))).astype(np.float64)
                found[k] = np.fmax(found[k], np.where(np.isfinite(b.real), off / unit, np.inf))
    return found


def exact_results(truth: Truth, wrt: list[str]) -> list[Exact]:
    """The parts of a truth in the order of `pairs`."""
    return [truth.value, *(e for n in wrt for e in (truth.grad[n], truth.hvp[n]))]


def evaluations(definition: Definition, form: Checked, tensors: Mapping[str, np.ndarray], params: Mapping[str, Any],
                directions: Mapping[str, np.ndarray], wrt: list[str], targets: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What each target, and PyTorch where it has the loss, computes: value, gradients, Hessian-vector products."""
    arguments = {**as_given(form, tensors), **params}
    directions = as_given(form, directions)
    back = lambda value, grads, products: (value, *(tuple(moved(form, n, a) for n, a in zip(wrt, found, strict=True))
                                                    for found in (grads, products)))
    for name, module in targets.items():
        f = getattr(module, definition.name)
        if name == "torch":
            yield name, back(*by_autograd(f, arguments, directions, wrt))
            continue
        value, grads = f.value_and_grad(**arguments, reduction="none", wrt=wrt)
        products = f.hvp(direction=dict(directions), **arguments, reduction="none", wrt=wrt)
        yield name, back(value, grads, products)
    peer = peer_of(definition)
    if peer is not None:
        with suppress(RuntimeError, ValueError, TypeError, NotImplementedError):          # it may refuse
            yield PEER, back(*by_autograd(peer, arguments, directions, wrt))


def peer_of(definition: Definition) -> Callable[..., Any] | None:
    """The function of PyTorch that a loss is like; None where there is none, or no PyTorch."""
    like = definition.like or forms_of(definition)[0].like
    module, _, name = like.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name) if like.startswith("torch.") else None
    except ImportError:
        return None


def by_autograd(function: Callable[..., Any], arguments: Mapping[str, Any], directions: Mapping[str, np.ndarray], wrt: list[str]) -> Any:
    """The loss of each sample by a function on tensors, gradients and Hessian-vector products by PyTorch's autograd."""
    import torch

    given = {k: torch.from_numpy(np.array(v)) if isinstance(v, np.ndarray) else v for k, v in arguments.items()}
    for n in wrt:
        given[n].requires_grad_()
    value = function(**given, reduction="none")
    inputs = [given[n] for n in wrt]
    grads = torch.autograd.grad(value.sum(), inputs, create_graph=True, allow_unused=True)
    along = [(g * torch.from_numpy(directions[n])).sum() for g, n in zip(grads, wrt, strict=True) if g is not None and g.requires_grad]
    products = torch.autograd.grad(torch.stack(along).sum(), inputs, allow_unused=True) if along else [None] * len(wrt)
    zero = [np.zeros(arguments[n].shape) for n in wrt]
    plain = lambda arrays: tuple(z if a is None else (a + 0).detach().numpy(force=True) for a, z in zip(arrays, zero, strict=True))
    return value.detach().numpy(), plain(grads), plain(products)


def pairs(results: Any, truth: Truth, wrt: list[str]) -> Iterator[tuple[str, np.ndarray, Exact]]:
    """Each result with the truth."""
    value, grads, products = results
    yield "value", value, truth.value
    for n, g, h in zip(wrt, grads, products, strict=True):
        yield "grad", g, truth.grad[n]
        yield "hvp", h, truth.hvp[n]


def account(row: Row, computed: np.ndarray, truth: Exact, dtype: str, stratum: str, form: Checked,
            tensors: Mapping[str, np.ndarray], moved: np.ndarray | None = None) -> None:
    """Add the errors of one array to a row."""
    kind = np.finfo(dtype)
    with np.errstate(all="ignore"):
        ulps = np.atleast_1d(ulp_error(computed, truth, np.dtype(dtype)))
        high, computed = np.atleast_1d(truth.high), np.atleast_1d(computed)
        ordinary = np.isfinite(high) & (np.abs(high) >= kind.tiny) & (np.abs(high) <= kind.max)
        off = np.abs(computed.astype(np.float64) - high)
        own = off / np.abs(high)
        lost = ordinary & ~(own <= SKIPPED)
        axes = tuple(range(1, high.ndim))
        largest = np.max(np.abs(np.where(np.isfinite(high), high, 0)), axis=axes, keepdims=True) if axes else np.abs(high)
        relative = np.where(ordinary & np.isfinite(computed), off / np.maximum(largest, kind.tiny), 0)
    row.points += int(ulps.size)
    row.lost += int(lost.sum())
    if lost.any() and not row.example:
        place = tuple(int(k) for k in np.argwhere(lost)[0])
        at = {name: array[place[0]].tolist() if form_has(form, name) else array.tolist() for name, array in tensors.items()}
        row.example = f"{stratum}{list(place)}: {computed[place]!r} and not {high[place]!r} at {at} {dict(form.settings)}"
    seen = ulps[ordinary & np.isfinite(ulps)]
    if seen.size:
        row.worst = max(row.worst, float(seen.max()))
        row.relative = max(row.relative, float(relative.max()))
        row.errors += [float(u) for u in seen]
    if moved is not None:
        root = moved > ROOT
        away, units = ulps[ordinary & ~root], ulps[ordinary] / np.maximum(moved[ordinary], 1)
        row.at_roots += int((ordinary & root).sum())
        row.lost_off_roots += int((lost & ~root).sum())
        row.off_roots = max([row.off_roots or 0.0, *(float(u) for u in away if np.isfinite(u))])
        row.beyond = max([row.beyond or 0.0, *(float(u) for u in units if np.isfinite(u))])


def form_has(form: Checked, name: str) -> bool:
    """Has each sample its own values of this input?"""
    return any(t.name == name and t.record.per_sample for t in form.inputs)


def table(rows: list[Row]) -> str:
    """The rows as text: one line a loss, result and type; a column a target."""
    names = list(dict.fromkeys(r.target for r in rows))
    cells = {(r.loss, r.output, r.dtype, r.target): r for r in rows}
    keys = list(dict.fromkeys((r.loss, r.output, r.dtype) for r in rows))
    wide = max([len(r.loss) for r in rows] + [4])
    roots = any(r.off_roots is not None for r in rows)
    lines = [f"error in ULP: median / {'largest off roots / ' if roots else ''}largest (results lost); against exact arithmetic", "",
             f"{'loss':{wide}}  {'result':6}  {'type':7}  " + "".join(f"{n:>38}" for n in names)]
    for loss, output, dtype in keys:
        line = f"{loss:{wide}}  {output:6}  {dtype:7}  "
        for name in names:
            row = cells.get((loss, output, dtype, name))
            line += f"{spell(row):>38}"
        lines.append(line)
    return "\n".join(lines)


def spell(row: Row | None) -> str:
    """One cell of the table."""
    if row is None:
        return "-"
    off = "" if row.off_roots is None else f"{row.off_roots:.3g} / "
    return f"{row.typical:.2g} / {off}{row.worst:.3g}" + (f" ({row.lost} of {row.points} lost)" if row.lost else "")


def chosen(args: argparse.Namespace) -> dict[str, Definition]:
    """The definitions that a command names, or all. Raises LosscompError."""
    return catalogue.pick(args.losses, args.defs or catalogue.builtin_definitions())


def main(args: argparse.Namespace) -> int:
    """`losscomp verify`: 0 where every target of ours keeps every result, 1 where one loses some."""
    definitions = chosen(args)
    rows = verify(definitions, targets_of(args.lib), args.quick)
    print(table(rows))
    if args.json:
        text = json.dumps([{k: v for k, v in asdict(r).items() if k != "errors"} for r in rows], indent=1)
        part = args.json.with_name(args.json.name + ".part")
        part.write_text(text + "\n")
        part.replace(args.json)
    for line in certificates.outdated(args.lib):
        print(f"certificate: {line}: losscomp verify --certify", file=sys.stderr)
    bad = [r for r in rows if r.lost and r.target != PEER]
    for r in bad:
        print(f"lost: {r.loss} {r.output} {r.dtype} on {r.target}: {r.example}", file=sys.stderr)
    return 1 if bad else 0

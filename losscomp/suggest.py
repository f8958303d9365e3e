"""`losscomp suggest`: which rules fired on a definition, what they gained, which others would help, and what may still lose digits.

The naive formula is the definition and its own derivatives in floating point as they stand (plain.py); it is held, like the emitted
NumPy code, against exact arithmetic on the strata of `losscomp verify`.
"""

from __future__ import annotations

import importlib
import itertools
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import sympy as sp

from . import __version__, emit, formula
from .certificates import brief
from .check import Checked
from .conditioning import warnings_of
from .errors import LosscompError
from .language import Definition, Overload
from .oracle import OracleError, ulp_error
from .pipeline import Compiled, differentiated, plain
from .plain import Plain
from .rewrite import Step
from .rules import RULES
from .sampling import STRATA, parameters, samples
from .show import choose, label
from .verify import ROOT, SKIPPED, TYPES, Inputs, Result, measured

POINTS = 40
NAIVE, EMITTED = "naive", "emitted"
_serial = itertools.count()
Key = tuple[str, str, str]                       # result, by, type


@dataclass
class Error:
    """The errors of one result: in ULP, off the roots and anywhere, and how many are lost, or no number where the truth is one."""

    ulps: list[np.ndarray]
    anywhere: float = 0.0
    lost: int = 0
    lost_off_roots: int = 0

    @property
    def most(self) -> float:
        return max((float(u.max()) for u in self.ulps if u.size), default=0.0)

    @property
    def p999(self) -> float:
        every = np.concatenate(self.ulps) if self.ulps else np.zeros(0)
        return float(np.quantile(every, 0.999, method="higher")) if every.size else 0.0

    def __str__(self) -> str:
        return f"{brief(self.most)} / {brief(self.p999)} / {brief(self.anywhere)}" + (f", {self.lost} lost" if self.lost else "")

    def better_than(self, other: Error) -> bool:
        """Are fewer results lost, or is the largest error off the roots less than half, or that anywhere?"""
        if self.lost != other.lost:
            return self.lost < other.lost
        return self.most < other.most / 2 or (self.most <= other.most and self.anywhere < other.anywhere / 2)


Errors = dict[tuple[Key, str], Error]


def module_of(definition: Definition) -> Any:
    """The emitted NumPy code of a definition, imported from a folder that is gone afterwards."""
    package = f"losscomp_suggested_{next(_serial)}"
    made = emit.emit_loss(definition, package, Path(definition.path).name, ("numpy",))
    with tempfile.TemporaryDirectory() as folder:
        for path, text in {**emit.emit_library([made], package, __version__), **made.files}.items():
            (Path(folder) / path).parent.mkdir(parents=True, exist_ok=True)
            (Path(folder) / path).write_text(text)
        sys.path.insert(0, str(Path(folder) / "src"))
        try:
            importlib.invalidate_caches()
            module = importlib.import_module(f"{package}.numpy")
            getattr(module, definition.name)                             # kernels are imported when they are first asked for
            importlib.import_module(f"{package}.numpy.kernels.{definition.name}")
            return module
        finally:
            sys.path.remove(str(Path(folder) / "src"))


def naive_results(form: Checked, inputs: Inputs) -> dict[tuple[str, str], np.ndarray]:
    """Value, gradients and Hessian-vector products of the definition as it stands."""
    wrt = [t.name for t in form.wrt]
    count = next(len(inputs.tensors[t.name]) for t in form.inputs if t.record.per_sample)
    directions = {f"direction_{n}": d for n, d in inputs.directions(wrt).items()}
    ones = {name: np.ones(count, inputs.dtype) for name in ("scale", "scale_weight")}
    rest = {name: np.zeros(count, inputs.dtype) for name in ("scale_rate", "scale_weight_rate")}
    sizes = {a.name: inputs.tensors[t.name].shape[k + t.record.per_sample] for t in form.inputs for k, a in enumerate(t.record.axes)}
    evaluate = Plain({**inputs.tensors, **directions, **ones, **rest}, inputs.settled, sizes, count, inputs.dtype)
    found: dict[tuple[str, str], np.ndarray] = {}
    for f in naive_formulas(form):
        for output in f.outputs:
            kind, _, name = output.argument.name.partition("_")
            if output.argument.name == "loss":
                found["value", ""] = evaluate.result(plain(output.expr), ())
            elif kind in ("grad", "hvp"):
                array = evaluate.result(plain(output.expr), output.index)
                shared = not next(t for t in form.wrt if t.name == name).record.per_sample
                found[kind, name] = array.sum(axis=0) if shared else array
    return found


def naive_formulas(form: Checked) -> list[Any]:
    """The value and gradient, and the second order, of an unrewritten variant."""
    return [f for f in differentiated(form) if f.name in ("value_and_grad", "hvp")]


def measure(definition: Definition, form: Checked, naive: bool = True, strata: Sequence[str] = STRATA, module: Any = None) -> Errors:
    """The errors of the emitted code, and of the naive formula, on some strata in both types."""
    found: Errors = {}
    module = module or module_of(definition)
    for dtype in TYPES:
        for stratum in strata:
            inputs = Inputs(samples(form, stratum, POINTS, dtype), parameters(form), dtype)
            for some in [inputs, *singles(form, inputs, POINTS)]:
                with suppress(OracleError):
                    results = list(measured(replace_like(definition), form, some, {EMITTED: module}, roots=True))
                    own = naive_results(form, some) if naive else {}
                    for r in results:
                        account(found, r, dtype, r.computed, EMITTED)
                        if naive:
                            account(found, r, dtype, own[r.output, r.by], NAIVE)
                    if some is inputs:
                        break
    return found


def singles(form: Checked, inputs: Inputs, count: int) -> Iterator[Inputs]:
    """The samples one by one, for a batch that holds one that spans too many exponents for the oracle."""
    for n in range(count):
        yield replace(inputs, tensors={t.name: inputs.tensors[t.name][n:n + 1] if t.record.per_sample else inputs.tensors[t.name]
                                       for t in form.inputs})


def replace_like(definition: Definition) -> Definition:
    """Without its peer, which is not asked here."""
    if isinstance(definition, Overload):
        return Overload(*(replace(f, like="") for f in definition.forms), name=definition.name, path=definition.path)
    return replace(definition, like="")


def account(found: Errors, result: Result, dtype: str, computed: np.ndarray, what: str) -> None:
    """Add the errors of one array."""
    kind = np.finfo(dtype)
    high = np.atleast_1d(result.truth.high)
    computed = np.atleast_1d(computed)
    error = found.setdefault(((result.output, result.by, dtype), what), Error([]))
    with np.errstate(all="ignore"):
        ulps = np.atleast_1d(ulp_error(computed, result.truth, np.dtype(dtype)))
        finite = np.isfinite(high) & (np.abs(high) <= kind.max)
        ordinary = finite & (np.abs(high) >= kind.tiny)
        lost = ordinary & ~(np.abs(computed.astype(np.float64) - high) <= SKIPPED * np.abs(high))
    lost |= finite & ~np.isfinite(computed)
    root = np.atleast_1d(np.zeros(1) if result.moved is None else result.moved) > ROOT
    error.lost += int(lost.sum())
    error.lost_off_roots += int((lost & ~root).sum())
    error.ulps.append(ulps[ordinary & ~lost & ~root])
    error.anywhere = max([error.anywhere, *ulps[ordinary & ~lost].tolist()])


# Other rules

@dataclass(frozen=True)
class Offer:
    """A rule that is offered and matches: what it does to the errors."""

    name: str
    steps: tuple[Step, ...]
    before: Errors
    after: Errors

    def gains(self) -> Iterator[tuple[Key, Error, Error]]:
        """The results that it makes better."""
        yield from ((key, self.before[key, w], error) for (key, w), error in self.after.items() if error.better_than(self.before[key, w]))

    def losses(self) -> Iterator[tuple[Key, Error, Error]]:
        """The results that it makes worse."""
        yield from ((key, self.before[key, w], error) for (key, w), error in self.after.items() if self.before[key, w].better_than(error))


def asking(definition: Definition, name: str) -> Definition:
    """The definition with one more rule asked for."""
    add: Any = lambda loss: replace(loss, rewrites=(*loss.rewrites, name))
    if isinstance(definition, Overload):
        fields = ("like", "module", "module_signature", "forward", "signature", "notes", "name", "doc", "path")
        return Overload(*map(add, definition.forms), **{f: getattr(definition, f) for f in fields})
    return add(definition)


def trace(compiled: Compiled) -> list[tuple[str, Step]]:
    """Every rewrite, with the result that it was made in: first the value, into smooth atoms, then each result of the usual kernels."""
    found = [("smooth", step) for step in compiled.smoothing]
    for (kernel, argument), steps in compiled.stabilising.items():
        if kernel in ("value_and_grad", "hvp") and not argument.startswith("total_"):
            found += [(argument.replace("_", " by ", 1) if argument != "loss" else "value", step) for step in steps]
    return found


def offers(definition: Definition, compiled: Compiled, before: Errors) -> Iterator[Offer]:
    """The offered rules that match and were not asked for."""
    for rule in RULES:
        if not rule.offered or rule.name in compiled.form.loss.rewrites:
            continue
        with suppress(LosscompError):
            other = asking(definition, rule.name)
            made = next(c for c in everything(other) if label(c) == label(compiled))
            steps = tuple(step for _, step in trace(made) if step.rule == rule.name)
            if steps:
                yield Offer(rule.name, steps, before, measure(other, made.form, naive=False))


def everything(definition: Definition) -> list[Compiled]:
    """Every variant of every form."""
    return [c for group in emit.compile_definition(definition) for c in group]


# Text

def suggest(definition: Definition, variant: str | None = None) -> Iterator[str]:
    """The lines of the report of one loss: of the variant of the default arguments, or of those with `variant` in their name."""
    chosen = choose(everything(definition), variant)
    for compiled in chosen:
        if len(chosen) > 1:
            yield from ("", f"-- {label(compiled)}")
        yield from report(definition, compiled)


def report(definition: Definition, compiled: Compiled) -> Iterator[str]:
    """The report of one variant."""
    form = compiled.form
    steps = trace(compiled)
    yield "rules that fired, in order:" if steps else "no rule fired"
    for (place, rule, why), some in itertools.groupby(steps, key=lambda s: (s[0], s[1].rule, s[1].why)):
        step = next(iter(some))[1]
        asked = ", asked for by the definition" if rule in form.loss.rewrites else ""
        yield f"  {place}: {rule}  (removes: {why}{asked})"
        yield f"      {short(step.before)}  ->  {short(step.after)}"
    fired = {step.rule for _, step in steps}
    for name in form.loss.rewrites:
        if name not in fired:
            yield f"  {name}: asked for by the definition, and matches nothing"
    if form.tables:
        yield f"what a system of tables loses as it is written is not measured; losscomp verify {definition.name} measures what is emitted"
        return
    errors = measure(definition, form)
    yield "error in ULP, largest off the roots / 99.9 percentile there / largest, and lost results; against exact arithmetic:"
    yield f"  {'result':22}  {'type':7}  {'as it is written':>34}  {'as it is emitted':>34}"
    for key in dict.fromkeys(k for k, _ in errors):
        output, by, dtype = key
        name = f"{output} by {by}" if by else output
        yield f"  {name:22}  {dtype:7}  {errors[key, NAIVE]!s:>34}  {errors[key, EMITTED]!s:>34}"
    yield from other_rules(list(offers(definition, compiled, errors)))
    yield from leftovers(compiled)


def other_rules(found: Sequence[Offer]) -> Iterator[str]:
    """What the rules that were not taken would do."""
    for offer in found:
        gains, losses = list(offer.gains()), list(offer.losses())
        yield (f'would help: {offer.name}; take it with rewrites=("{offer.name}",)' if gains and not losses else
               f"would help and hurt: {offer.name}" if gains else f"matches and does not help: {offer.name}")
        yield f"      {short(offer.steps[0].before)}  ->  {short(offer.steps[0].after)}"
        for (output, by, dtype), before, after in gains + losses:
            yield f"      {output}{' by ' + by if by else ''}, {dtype}: {before}  ->  {after}"


def leftovers(compiled: Compiled) -> Iterator[str]:
    """What the static pass flags in the value and gradients as they are emitted."""
    results = next((f for f in compiled.stable if f.name == "value_and_grad"), compiled.stable[0])
    seen: dict[str, str] = {}
    for output in results.outputs:
        for warning in warnings_of(compiled.form, output.expr):
            name = output.argument.name.replace("_", " by ", 1) if output.argument.name != "loss" else "value"
            if not name.startswith("total"):
                seen.setdefault(f"{short(warning.part)}: {warning.why}", name)
    written = warnings_of(compiled.form, plain(compiled.form.value))
    yield f"operations that may lose digits, by intervals over the domains: {len(written)} as it is written, {len(seen)} as it is emitted"
    for text, name in seen.items():
        yield f"  {name}: {text}"


def short(expr: sp.Basic, most: int = 90) -> str:
    """An expression in one line of limited length."""
    text = formula.text(expr)
    return text if len(text) <= most else text[:most - 3] + "..."

"""Measuring certificates, and asking the emitted code again at their worst inputs."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from . import catalogue, certificates
from .cache import digest
from .certificates import Case, Certificate, Row, hexadecimal, number, packed, unpacked
from .check import Checked, check
from .emit import forms_of
from .language import Definition
from .oracle import Exact, OracleError, select, ulp_error
from .plan import cores
from .sampling import STRATA, parameters, samples
from .verify import PEER, ROOT, SKIPPED, TYPES, Inputs, Result, chosen, evaluations, form_has, measured, single_samples, targets_of

POINTS = 40                                      # samples of each variant, stratum and type
Key = tuple[str, str, str, str]                  # output, by, type, target


@dataclass
class Measure:
    """What is gathered of one row."""

    points: int = 0
    at_roots: int = 0
    lost: int = 0
    lost_at_roots: int = 0
    nonfinite: int = 0
    by_motion: float = 0.0
    errors: list[np.ndarray] = field(default_factory=list)
    most: float = -1.0
    worst: Case | None = None
    lost_case: Case | None = None


def certificate(definition: Definition, targets: Mapping[str, Any], package: Path | None = None) -> Certificate:
    """Measure one loss: every variant, stratum and type, each target, and PyTorch at the same inputs."""
    found: dict[Key, Measure] = {}
    for form in (f for loss in forms_of(definition) for f in check(loss)):
        params = parameters(form)
        for dtype in TYPES:
            for stratum in STRATA:
                tensors = samples(form, stratum, POINTS, dtype)
                try:
                    gather(found, definition, form, Inputs(tensors, params, dtype), stratum, targets)
                except OracleError:                                      # some sample spans too many exponents: one by one, without it
                    for one in single_samples(form, tensors):
                        with suppress(OracleError):
                            gather(found, definition, form, Inputs(one, params, dtype), stratum, targets)
    cases: dict[str, Case] = {}

    def place(case: Case | None) -> int:
        """The number of a case; equal ones are kept once."""
        return -1 if case is None else list(cases).index(key) if cases.setdefault(key := repr(case), case) else -1

    rows = [Row(*key, m.points, m.at_roots, upwards(max(m.most, 0.0)), upwards(percentile(m.errors)), upwards(m.by_motion), m.lost,
                m.lost_at_roots, m.nonfinite, place(m.worst), place(m.lost_case)) for key, m in found.items()]
    emitted = certificates.emitted_digest(package, definition.name) if package else ""
    return Certificate(definition.name, definition_digest(definition), emitted, rows, list(cases.values()))


def definition_digest(definition: Definition) -> str:
    """The digest of the file of a definition."""
    return digest(Path(definition.path.rsplit(":", 1)[0]).read_bytes())[:16]


def upwards(value: float) -> float:
    """Three digits, rounded up, so that a certificate never promises more than was measured."""
    if not math.isfinite(value) or value == 0:
        return value
    unit = 10.0 ** (math.floor(math.log10(value)) - 2)
    return float(f"{math.ceil(value / unit - 1e-9) * unit:.3g}")


def percentile(errors: list[np.ndarray]) -> float:
    """The 99.9 percentile of all errors."""
    every = np.concatenate(errors) if errors else np.zeros(0)
    return float(np.quantile(every, 0.999, method="higher")) if every.size else 0.0


def gather(found: dict[Key, Measure], definition: Definition, form: Checked, inputs: Inputs, stratum: str,
           targets: Mapping[str, Any]) -> None:
    """Add what is measured at some inputs to the rows of a loss."""
    kind = np.finfo(inputs.dtype)
    for result in measured(definition, form, inputs, targets, roots=True):
        m = found.setdefault((result.output, result.by, inputs.dtype, result.target), Measure())
        high, computed = (np.atleast_1d(a) for a in (result.truth.high, result.computed))
        with np.errstate(all="ignore"):
            ulps = np.atleast_1d(ulp_error(computed, result.truth, np.dtype(inputs.dtype)))
            finite = np.isfinite(high) & (np.abs(high) <= kind.max)
            ordinary = finite & (np.abs(high) >= kind.tiny)
            lost = ordinary & ~(np.abs(computed.astype(np.float64) - high) <= SKIPPED * np.abs(high))
        broken = finite & ~np.isfinite(computed)
        lost |= broken
        moved = np.atleast_1d(np.zeros(1) if result.moved is None else result.moved)
        root = moved > ROOT
        m.points += int(finite.sum())
        m.at_roots += int((finite & root).sum())
        m.lost += int((lost & ~root).sum())
        m.lost_at_roots += int((lost & root).sum())
        m.nonfinite += int(broken.sum())
        kept = ordinary & ~lost
        m.by_motion = max([m.by_motion, *(ulps[kept] / np.maximum(moved[kept], 1)).tolist()])
        away = np.where(kept & ~root, ulps, -1.0)
        m.errors.append(ulps[kept & ~root])
        if away.size and away.max() > m.most:
            m.most = float(away.max())
            m.worst = case_of(form, inputs, stratum, result, np.unravel_index(int(away.argmax()), away.shape))
        if lost.any() and m.lost_case is None:
            m.lost_case = case_of(form, inputs, stratum, result, np.unravel_index(int(lost.argmax()), lost.shape))


def case_of(form: Checked, inputs: Inputs, stratum: str, result: Result, cell: tuple[Any, ...]) -> Case:
    """One number of a result with the sample that it comes from; the whole batch where samples share what it is by."""
    alone = not result.by or form_has(form, result.by)
    directions = inputs.directions([t.name for t in form.wrt])
    n = int(cell[0]) if alone else 0
    one = lambda name, array: packed(array[n:n + 1] if alone and form_has(form, name) else array)
    place = [0, *map(int, cell[1:])] if alone else list(map(int, cell))
    high, low = (float(np.atleast_1d(part)[cell]) for part in (result.truth.high, result.truth.low))
    return Case(result.output, result.by, inputs.dtype, stratum, {k: hexadecimal(v) for k, v in inputs.settled.items()},
                {k: one(k, v) for k, v in inputs.tensors.items()}, {k: one(k, v) for k, v in directions.items()}, place,
                [high.hex(), low.hex()])


# Asking again

@dataclass(frozen=True)
class Replayed:
    """What a target gives at a case now: its error in ULP, and what the certificate allows it; None where the result was lost."""

    target: str
    case: Case
    error: float
    allowed: float | None

    @property
    def holds(self) -> bool:
        return self.allowed is None or self.error <= self.allowed

    def __str__(self) -> str:
        by = f" by {self.case.by}" if self.case.by else ""
        return (f"{self.target}, {self.case.output}{by}, {self.case.dtype}: {self.error:.3g} ULP and not {self.allowed:.3g} at "
                f"{self.case.tensors} {self.case.params}")


def replay(definition: Definition, found: Certificate, targets: Mapping[str, Any], like: Mapping[str, str] = {}) -> Iterator[Replayed]:
    """Every case of a certificate on some targets, against the exact answer that it holds.

    Args:
        like: for a target that was not certified, the one whose rows it is held to.
    """
    lost = {row.lost_case for row in found.rows}
    rows = {(r.output, r.by, r.dtype, r.target): r for r in found.rows}
    for question in dict.fromkeys(case.question for case in found.cases):
        some = [(k, case) for k, case in enumerate(found.cases) if case.question == question]
        for name, outputs in answers(definition, some[0][1], targets):
            for k, case in some:
                row = rows.get((case.output, case.by, case.dtype, like.get(name, name)))
                computed = np.atleast_1d(outputs[case.output, case.by])
                cell = tuple(case.cell)
                truth = Exact(*(np.array(float.fromhex(part)) for part in case.truth))
                error = float(ulp_error(computed[cell], truth, np.dtype(case.dtype)))
                bound = None if row is None or (k in lost and row.worst != k) else row.most + certificates.ALLOWED
                yield Replayed(name, case, error, bound)


def answers(definition: Definition, case: Case, targets: Mapping[str, Any]) -> Iterator[tuple[str, dict[tuple[str, str], Any]]]:
    """What each target computes at the inputs of a case, by result."""
    form, tensors, directions, params = arguments(definition, case)
    wrt = list(directions)
    for name, (value, grads, products) in evaluations(definition, form, tensors, params, directions, wrt, targets):
        if name != PEER:
            yield name, {("value", ""): value, **{("grad", n): g for n, g in zip(wrt, grads, strict=True)},
                         **{("hvp", n): h for n, h in zip(wrt, products, strict=True)}}


def arguments(definition: Definition, case: Case) -> tuple[Checked, dict[str, np.ndarray], dict[str, np.ndarray], dict[str, Any]]:
    """The variant that a case is about, and its arguments."""
    params = {k: number(v) for k, v in case.params.items()}
    tensors, directions = ({k: unpacked(v, case.dtype) for k, v in group.items()} for group in (case.tensors, case.directions))
    kinds = {k: v.dtype.kind == "i" for k, v in tensors.items()}
    forms = next(some for some in variants(definition) if {t.name: t.record.integer for t in some[0].inputs} == kinds)
    return select(forms, params), tensors, directions, params


def variants(definition: Definition) -> list[list[Checked]]:
    """The variants of each form of a definition."""
    return [check(loss) for loss in forms_of(definition)]


# The command

@cache
def library_at(folder: Path) -> dict[str, Any]:
    """The targets of a library, once a process."""
    with suppress(ImportError):
        import torch

        torch.set_num_threads(1)
    return targets_of(folder)


def certify_one(folder: Path, defs: Path, name: str) -> Certificate:
    """Measure one loss, in a process of its own."""
    return certificate(catalogue.load(defs)[name], library_at(folder), certificates.package_of(folder))


def main(args: argparse.Namespace) -> int:
    """`losscomp verify --certify`: measure, write a file for each loss and a page; 0, whatever was measured."""
    defs, library = args.defs or catalogue.builtin_definitions(), args.lib
    names = list(chosen(args))
    folder = library / certificates.FOLDER
    certificates.package_of(library)
    folder.mkdir(exist_ok=True)
    with ProcessPoolExecutor(min(args.jobs or cores(), len(names))) as pool:
        waiting = {name: pool.submit(certify_one, library, defs, name) for name in names}
        for name, job in waiting.items():
            write(folder / f"{name}.json", certificates.text(job.result()))
            print(f"{name}: certified", file=sys.stderr, flush=True)
    every = sorted(path.stem for path in folder.glob("*.json"))
    if not args.losses:
        for name in set(every) - set(names):
            (folder / f"{name}.json").unlink()
    found = [c for name in every if (c := certificates.read(library, name)) is not None]
    write(folder / certificates.PAGE, certificates.page(found))
    for c in (c for c in found if c.loss in names):
        print(f"\n{c.loss}")
        for line in certificates.lines(c):
            print(line)
    return 0


def write(path: Path, text: str) -> None:
    """Put a file in its place as a whole."""
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    part.replace(path)

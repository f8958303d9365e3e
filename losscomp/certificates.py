"""Certificates: what was measured of the accuracy of each emitted loss, kept beside the library, one small file a loss.

A certificate says, for each result, type and target, how far the emitted code was from exact arithmetic over all strata of
inputs, and at which input it was worst, in exact hexadecimal numbers with the exact answer. Imports no SymPy.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cache import digest, digest_file
from .errors import BuildError

if TYPE_CHECKING:
    import numpy as np

FOLDER = "certificates"
PAGE = "README.md"
# What one loss is, in a library: digests of these files tell whether a certificate speaks of the code that is there.
OWN = ("numpy/kernels/{name}.py", "csrc/{name}.c", "torch/composites/{name}.py")
COMMON = ("numpy/_math.py", "csrc/*_math.h", "torch/_math.py")
ALLOWED = 1.0                                    # ULP by which another machine's elementary functions may round otherwise


@dataclass(frozen=True)
class Row:
    """One result in one type on one target, over all variants and strata.

    Attributes:
        output, by: "value", "grad" or "hvp", and by which input.
        target: "numpy", "c", "torch", or PyTorch, whose own loss is measured at the same inputs.
        points, at_roots: how many numbers were compared, and how many of them are at roots.
        most, p999: the largest error and its 99.9 percentile in ULP, off the roots, of results that are not lost and whose truth is an
            ordinary number.
        by_motion: the largest error anywhere, in units of how far the truth moves with its inputs, or of an ULP where that is less.
        lost, lost_at_roots: results with a relative error above 1e-2, off the roots and at them.
        nonfinite: results that are no finite number where the truth is one; these are lost too.
        worst: which case has the largest error off the roots; lost_case: which one is lost, or -1.
    """

    output: str
    by: str
    dtype: str
    target: str
    points: int
    at_roots: int
    most: float
    p999: float
    by_motion: float
    lost: int
    lost_at_roots: int
    nonfinite: int
    worst: int = -1
    lost_case: int = -1


@dataclass(frozen=True)
class Case:
    """One number of one result at exact inputs: a single sample, where that gives the result.

    Attributes:
        params, tensors, directions: the arguments; a tensor is its shape and its cells.
        cell: which number of the result.
        truth: the exact answer, as the nearest float64 and what is left over, from the oracle.
    """

    output: str
    by: str
    dtype: str
    stratum: str
    params: dict[str, Any]
    tensors: dict[str, Any]
    directions: dict[str, Any]
    cell: list[int]
    truth: list[str]

    @property
    def question(self) -> str:
        """The inputs alone, as text: cases with the same ones can be evaluated together."""
        return json.dumps([self.dtype, self.params, self.tensors, self.directions], sort_keys=True)


@dataclass(frozen=True)
class Certificate:
    """All that is certified of one loss; `definition` and `emitted` are digests of what was measured."""

    loss: str
    definition: str
    emitted: str
    rows: list[Row] = field(default_factory=list)
    cases: list[Case] = field(default_factory=list)


def hexadecimal(value: Any) -> Any:
    """A number so that it comes back as it was: reals as hexadecimal text, integers and booleans as they are."""
    value = value.item() if hasattr(value, "item") else value
    return value.hex() if isinstance(value, float) else value


def number(value: Any) -> Any:
    """What `hexadecimal` made, as a number."""
    return float.fromhex(value) if isinstance(value, str) else value


def packed(array: np.ndarray) -> dict[str, Any]:
    """An array as JSON."""
    return {"shape": list(array.shape), "cells": [hexadecimal(x) for x in array.ravel()]}


def unpacked(stored: dict[str, Any], dtype: str) -> np.ndarray:
    import numpy as np  # a build that finds nothing to do needs none

    """The array that `packed` stored; reals in a type."""
    cells = [number(x) for x in stored["cells"]]
    whole = bool(stored["cells"]) and not any(isinstance(x, str) for x in stored["cells"])
    return np.array(cells, dtype=np.int64 if whole else dtype).reshape(stored["shape"])


def text(certificate: Certificate) -> str:
    """The file of a certificate: a line for each row and case."""
    heads = {"loss": certificate.loss, "definition": certificate.definition, "emitted": certificate.emitted}
    lines = [f" {json.dumps(k)}: {json.dumps(v)}," for k, v in heads.items()]
    groups = []
    for name in ("rows", "cases"):
        items = ",\n".join("  " + json.dumps(asdict(item), sort_keys=True) for item in getattr(certificate, name))
        groups.append(f' "{name}": [\n{items}\n ]')
    return "{\n" + "\n".join(lines) + "\n" + ",\n".join(groups) + "\n}\n"


def read(library: Path, name: str) -> Certificate | None:
    """The certificate of a loss, or None where there is none. Raises BuildError for a file that is something else."""
    path = library / FOLDER / f"{name}.json"
    try:
        found = json.loads(path.read_text())
        rows = [Row(**row) for row in found["rows"]]
        return Certificate(**{**found, "rows": rows, "cases": [Case(**case) for case in found["cases"]]})
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise BuildError(f"{path} is no certificate: {error}", repair="Remove it, and measure anew: losscomp verify --certify") from None


def package_of(library: Path) -> Path:
    """The folder of the package of a library. Raises BuildError."""
    found = sorted(p.parent for p in (library / "src").glob("*/runtime.py"))
    if not found:
        raise BuildError(f"{library} holds no library", repair="Build one: losscomp build")
    return found[0]


def emitted_digest(package: Path, name: str) -> str:
    """The digest of the emitted code of a loss and of what it computes with."""
    own = [package / path.format(name=name) for path in OWN]
    shared = [path for pattern in COMMON for path in sorted(package.glob(pattern))]
    return digest(*(f"{path.name} {digest_file(path)}" for path in own + shared))[:16]


def losses(package: Path) -> list[str]:
    """The losses of a library."""
    return sorted(path.stem for path in (package / "losses").glob("*.py") if not path.stem.startswith("_"))


def outdated(library: Path) -> Iterator[str]:
    """A line for each loss of a library whose certificate is not there, or speaks of other code; nothing where none was ever made."""
    if not (library / FOLDER).is_dir():
        return
    package = package_of(library)
    names = losses(package)
    for name in names:
        certificate = read(library, name)
        if certificate is None:
            yield f"{name}: there is no certificate"
        elif certificate.emitted != emitted_digest(package, name):
            yield f"{name}: the certificate speaks of other code"
    for path in sorted((library / FOLDER).glob("*.json")):
        if path.stem not in names:
            yield f"{path.stem}: a certificate without a loss"


def brief(value: float) -> str:
    """An error in ULP."""
    return f"{value:.2f}" if value < 100 else f"{value:.2g}"


def cell(row: Row | None) -> str:
    """One target's column: largest error, 99.9 percentile, lost results."""
    if row is None:
        return "-"
    lost = f", {row.lost + row.lost_at_roots} lost" if row.lost + row.lost_at_roots else ""
    return f"{brief(row.most)} / {brief(row.p999)}{lost}"


def lines(certificate: Certificate) -> Iterator[str]:
    """A certificate as a table for a terminal."""
    targets = list(dict.fromkeys(r.target for r in certificate.rows))
    known = {(r.output, r.by, r.dtype, r.target): r for r in certificate.rows}
    yield "error in ULP off the roots, largest / 99.9 percentile, and all lost results; against exact arithmetic"
    table = [["result", "type", *targets]]
    for output, by, dtype in dict.fromkeys((r.output, r.by, r.dtype) for r in certificate.rows):
        table.append([f"{output} by {by}" if by else output, dtype, *(cell(known.get((output, by, dtype, t))) for t in targets)])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for name, dtype, *cells in table:
        yield "  ".join([f"{name:{widths[0]}}", f"{dtype:{widths[1]}}", *(f"{c:>{w}}" for c, w in zip(cells, widths[2:], strict=True))])
    for r in certificate.rows:
        if r.worst >= 0 and r.target == "c" and r.output != "hvp":
            case = certificate.cases[r.worst]
            at = ", ".join(f"{n}={[hexadecimal(x) for x in v['cells']]}" for n, v in case.tensors.items())
            yield f"  worst of C, {r.output}{' by ' + r.by if r.by else ''}, {r.dtype}: {brief(r.most)} ULP at {at}"


def page(found: list[Certificate]) -> str:
    """All certificates as one page of Markdown, beside the figures of PyTorch."""
    columns = ("numpy", "c", "torch", "PyTorch")
    out = ["# Certificates", "",
           "Measured by `losscomp verify --certify` against exact arithmetic, over all variants and strata of inputs: the largest",
           "error and its 99.9 percentile in ULP off the roots, and how many results are lost, at roots too: a relative error above 1e-2,",
           "or no number where the truth is finite. PyTorch is its own loss at the same inputs. The files beside this page have the worst.",
           "",
           f"| loss | result | type | {' | '.join(columns)} |", "|" + "---|" * (3 + len(columns))]
    for certificate in found:
        known = {(r.output, r.by, r.dtype, r.target): r for r in certificate.rows}
        for output, by, dtype in dict.fromkeys((r.output, r.by, r.dtype) for r in certificate.rows):
            cells = [cell(known.get((output, by, dtype, t))) for t in columns]
            out.append(f"| {certificate.loss} | {output}{' by ' + by if by else ''} | {dtype} | {' | '.join(cells)} |")
    return "\n".join(out) + "\n"


__all__ = ["ALLOWED", "Case", "Certificate", "Row", "emitted_digest", "lines", "outdated", "page", "read", "text"]

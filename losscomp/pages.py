"""What the page of a loss says: everything that its template shows, from the definition, the library and the certificate."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from . import certificates, curves, emit, svg
from .article import Article, articles
from .catalogue import module_name
from .certificates import Certificate, brief
from .curves import PEER, Family, Line
from .emit import forms_of, summary_of
from .errors import BuildError, LosscompError
from .language import Definition
from .oracle import OracleError
from .pipeline import Compiled
from .render import html
from .show import EMITTED, kind_of, peer_of
from .suggest import module_of, naive_results
from .usage import Argument, Usage, arguments, c_usage, python_usage
from .verify import targets_of

AS_WRITTEN = "as written"
OURS = "ours"
FRAMEWORKS = {"torch": "PyTorch", "torchvision": "PyTorch", "torchaudio": "PyTorch", "keras": "Keras", "tensorflow": "TensorFlow"}
TITLES = {"numpy": "NumPy", "c": "C", "torch": "PyTorch", "cuda": "CUDA"}
RESULTS = {"value": "loss", "grad": "gradient", "hvp": "Hessian-vector product"}
LANGUAGES = {".py": "Python", ".c": "C", ".cu": "CUDA"}
PALE = 100.0                                     # an error from which a cell of the table is marked


@dataclass(frozen=True)
class Library:
    """The built library: its modules by target, the folder of its package; or nothing."""

    folder: Path | None = None
    package: str = "losslib"
    modules: Mapping[str, Any] = field(default_factory=dict)

    def has(self, name: str) -> bool:
        """Is this loss in it?"""
        return self.folder is not None and bool(self.modules) and (self.folder / "src" / self.package / "losses" / f"{name}.py").is_file()


@cache
def library_at(folder: Path) -> Library:
    """The library of a folder, once a process; nothing where there is none."""
    try:
        package = certificates.package_of(folder).name
    except BuildError:
        return Library()
    with suppress(ImportError):
        import torch

        torch.set_num_threads(1)
    return Library(folder, package, targets_of(folder))


@dataclass(frozen=True)
class Card:
    """What the start page says of a loss."""

    name: str
    summary: str
    family: str
    kind: str
    peer: str
    framework: str
    targets: tuple[str, ...]
    sketch: str
    ours: str
    ours_bad: bool
    theirs: str
    theirs_bad: bool
    words: str
    dialect: bool


@dataclass
class Cell:
    """One figure of the table of accuracy."""

    text: str
    lost: str = ""
    bad: bool = False


@dataclass
class Picture:
    """A family of curves as panels, with its key and what stands still."""

    panels: list[str]
    by: str
    keys: list[str]
    fixed: list[tuple[str, str]]
    along: str


@dataclass
class ErrorPicture:
    """The errors over the range, for value and gradient."""

    panels: list[str]
    shown: list[tuple[str, str]]
    fixed: list[tuple[str, str]]
    along: str
    peer_missing: str


@dataclass
class Page:
    """A page of one loss."""

    card: Card
    module: str
    doc: list[tuple[str, str]]
    articles: list[Article]
    arguments: list[Argument]
    pictures: list[Picture]
    errors: ErrorPicture | None
    no_plot: str
    accuracy: dict[str, Any] | None
    usages: list[Usage]
    notes: tuple[str, ...]
    differences: list[tuple[str, str]]
    base: str
    dialects: list[str]
    source: str
    source_path: str
    codes: list[dict[str, str]]
    files: dict[str, str] = field(default_factory=dict)


def family_of(definition: Definition) -> str:
    """The folder that a definition stands in."""
    return Path(definition.path.rsplit(":", 1)[0]).parent.name


def framework_of(peer: str) -> str:
    """Whose loss a peer is."""
    root = peer.partition(".")[0]
    return FRAMEWORKS.get(root, root)


# The page

def page_of(definition: Definition, library: Library, others: Mapping[str, Definition]) -> Page:
    """Everything that the page of a loss shows."""
    name = definition.name
    own, texts = library_for(definition, library)
    both = articles(definition)
    written, compiled = [a for a, _ in both], [c for _, c in both]
    peer = peer_of(definition)
    certificate = certificates.read(library.folder, name) if library.folder else None
    pictures: list[Picture] = []
    errors, sketch, usages, no_plot = None, "", [], ""
    try:
        families = curves.families(definition, own.modules["numpy"])
        pictures = [picture(f, f"{name}-{k}") for k, f in enumerate(families)]
        sketch = svg.sketch(families[0].curves[0]["value"][::4])
        line, span = families[0].lines[0], (float(families[0].positions[0]), float(families[0].positions[-1]))
        usages = python_usage(definition, [c.form for c in compiled], line, span, own.package)
        usages += c_usage(definition, compiled, line, span, own.package)
        errors = error_picture(line, own, span, framework_of(peer) == FRAMEWORKS["torch"] and bool(peer))
    except LosscompError as error:
        no_plot = error.what
    loss = forms_of(definition)[0]
    figures = accuracy(certificate, own)
    path = Path(definition.path.rsplit(":", 1)[0])
    codes, files = code_pages(name, texts)
    dialects = sorted(n for n, d in others.items() if forms_of(d)[0].dialect_of == name)
    return Page(
        card=card(definition, compiled, certificate, sketch, own), module=module_name(definition), doc=paragraphs(definition.doc),
        articles=written, arguments=arguments(definition, [c.form for c in compiled]), pictures=pictures, errors=errors, no_plot=no_plot,
        accuracy=figures, usages=usages, notes=tuple(definition.notes or loss.notes),
        differences=[(d.name, d.what) for d in loss.differences],
        base=loss.dialect_of if loss.dialect_of in others else "", dialects=dialects, source=path.read_text(),
        source_path="/".join(path.parts[-2:]), codes=codes, files=files)


def paragraphs(doc: str) -> list[tuple[str, str]]:
    """A docstring without its first line: its paragraphs, and what is indented as it is."""
    blocks = re.split(r"\n\s*\n", "\n".join(doc.strip().splitlines()[1:]).strip("\n"))
    kinds = ["as it is" if all(line.startswith("    ") for line in b.splitlines()) else "text" for b in blocks]
    return [(k, textwrap.dedent(b) if k == "as it is" else " ".join(b.split())) for k, b in zip(kinds, blocks, strict=True) if b.strip()]


def library_for(definition: Definition, library: Library) -> tuple[Library, dict[str, str]]:
    """The library, or, where that has not this loss, the NumPy code that is emitted for it here; and the emitted files by target."""
    name = definition.name
    if library.has(name) and library.folder is not None:
        texts = {}
        for target, pattern in EMITTED.items():
            path = library.folder / pattern.format(package=library.package, name=name)
            if path.is_file():
                texts[target] = path.read_text()
        return library, texts
    made = emit.emit_loss(definition, library.package, Path(definition.path.rsplit(":", 1)[0]).name)
    paths = {target: pattern.format(package=library.package, name=name) for target, pattern in EMITTED.items()}
    module = module_of(definition)
    return Library(None, library.package, {"numpy": module}), {t: made.files[p] for t, p in paths.items() if p in made.files}


# Pictures

def picture(family: Family, name: str) -> Picture:
    """Value and gradient of a family of curves."""
    fixed = [(n, v) for n, v in family.lines[0].fixed() if n != family.by]
    return Picture([svg.plot(family, what, name) for what in ("value", "gradient")], family.by, list(family.labels) if family.by else [],
                   fixed, family.lines[0].name)


def error_picture(line: Line, library: Library, span: tuple[float, float], has_peer: bool) -> ErrorPicture:
    """Our errors and PyTorch's over the magnitudes of an input, and those of the formula as it stands."""
    ours = "c" if "c" in library.modules else "numpy"
    zoomed = bool(np.isclose(span[0], 0, atol=0.21) and np.isclose(span[1], 1, atol=0.21))
    found = curves.errors_along(line, {OURS: library.modules[ours]}, zoomed)
    if not line.form.tables:
        with suppress(OracleError, LosscompError):
            plain = naive_results(line.form, found.inputs)
            found.add(AS_WRITTEN, {"value": plain["value", ""], "gradient": plain["grad", line.moving.name][line.cells]})
    order = (AS_WRITTEN, PEER, OURS)
    shown = [(kind, text) for kind, who, text in (("ours", OURS, f"losscomp ({TITLES[ours]})"), ("peer", PEER, "PyTorch"),
                                                  ("plain", AS_WRITTEN, "the formula as it is written, in NumPy")) if who in found.found]
    missing = "" if PEER in found.found else "PyTorch has no such loss to compare with." if not has_peer else (
        "PyTorch's own curve is not here: its function does not take these arguments." if find_spec("torch") else
        "PyTorch's own curve is not here: PyTorch was not installed when this page was made.")
    return ErrorPicture([svg.errors(found, what, order, line.definition.name) for what in ("value", "gradient")], shown,
                        list(line.fixed()), line.name, missing)


# Accuracy

def accuracy(certificate: Certificate | None, library: Library) -> dict[str, Any] | None:
    """The table of a certificate."""
    if certificate is None:
        return None
    targets = [t for t in ("numpy", "c", "torch", PEER) if any(r.target == t for r in certificate.rows)]
    known = {(r.output, r.by, r.dtype, r.target): r for r in certificate.rows}
    rows = []
    for output, by, dtype in dict.fromkeys((r.output, r.by, r.dtype) for r in certificate.rows):
        cells = [figure(known.get((output, by, dtype, t))) for t in targets]
        rows.append({"result": RESULTS.get(output, output), "by": by, "dtype": dtype, "cells": cells})
    stale = library.folder is not None and certificate.emitted != certificates.emitted_digest(
        certificates.package_of(library.folder), certificate.loss)
    columns = [{"numpy": "NumPy", "c": "C", "torch": "torch target", PEER: "PyTorch itself"}[t] for t in targets]
    return {"columns": columns, "rows": rows, "stale": stale, "peer": targets[-1] == PEER if targets else False,
            "points": max((r.points for r in certificate.rows), default=0)}


def figure(row: certificates.Row | None) -> Cell:
    """One figure: the largest error, and what is lost."""
    if row is None:
        return Cell("-")
    lost = row.lost + row.lost_at_roots
    return Cell(ulps(row.most), f"{lost} lost" if lost else "", bool(lost) or row.most >= PALE)


def ulps(value: float) -> str:
    """An error as a person reads it: large ones as powers of ten."""
    if value < PALE:
        return brief(value)
    digits, _, power = f"{value:.1e}".partition("e")
    return f"{digits.removesuffix('.0')}·10" + str(int(power)).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))


def card(definition: Definition, compiled: Sequence[Compiled], certificate: Certificate | None, sketch: str, library: Library) -> Card:
    """What the start page says of a loss."""
    form = compiled[0].form
    peer = peer_of(definition)
    kind = "recurrence" if form.tables else kind_of(form.value, bool(form.axes))
    targets = tuple(t for t in TITLES if library.folder is None or (library.folder / EMITTED[t].format(
        package=library.package, name=definition.name)).is_file())
    ours, ours_bad = worst(certificate, "c")
    theirs, bad = worst(certificate, PEER)
    options = " ".join(p.name for c in compiled for p in c.form.params)
    said = [definition.name, definition.name.replace("_", " "), module_name(definition), peer, definition.doc, kind, options]
    words = " ".join(dict.fromkeys(re.findall(r"[a-z0-9_.]+", " ".join(said).lower())))
    return Card(definition.name, plain_summary(summary_of(definition.doc, definition.name)), family_of(definition), kind, peer,
                framework_of(peer), targets, sketch, ours, ours_bad, theirs, bad, words, bool(form.loss.dialect_of))


def plain_summary(text: str) -> str:
    """A first line without the peer that it ends with."""
    path = r"(?:[a-z]\w*\.)+\w+"
    return re.sub(rf"\s*\({path}\)\.?$", ".", re.sub(rf";\s*{path}\)", ")", text))


def worst(certificate: Certificate | None, target: str) -> tuple[str, bool]:
    """The largest error of value and gradient in float32 away from roots, or the results lost there; and whether that is bad."""
    rows = [r for r in certificate.rows if r.target == target and r.dtype == "float32" and r.output != "hvp"] if certificate else []
    if not rows:
        return "", False
    lost, away, most = sum(r.lost for r in rows), sum(r.points - r.at_roots for r in rows), max(r.most for r in rows)
    return f"{ulps(most)} ULP" + (f", {lost} of {away} lost" if lost else ""), bool(lost) or most >= PALE


# Code

def code_pages(name: str, texts: Mapping[str, str]) -> tuple[list[dict[str, str]], dict[str, str]]:
    """For each target a page that shows the emitted file."""
    links, files = [], {}
    for target, text in texts.items():
        shown = EMITTED[target].format(package="losslib", name=name)
        path = f"code/{name}-{target}.html"
        lines = text.rstrip("\n").split("\n")
        files[path] = html("docs/code.html.jinja", title=f"{name}, {TITLES[target]}", name=name, target=TITLES[target], file=shown,
                           lines=lines, root="../", code=highlighted(text, Path(shown).suffix))
        links.append({"title": TITLES[target], "href": f"../{path}", "file": Path(shown).name, "lines": str(len(lines))})
    return links, files


PYTHON_TOKENS = (r'(?P<c>#[^\n]*)|(?P<s>"""(?:.|\n)*?"""|"[^"\n]*"|\'[^\'\n]*\')'
                 r"|(?P<k>\b(?:def|return|if|else|elif|for|in|while|import|from|as|not|and|or|None|True|False|class|lambda|with)\b)")
C_TOKENS = (r"(?P<c>/\*(?:.|\n)*?\*/|//[^\n]*|^\#[^\n]*)|(?P<s>\"[^\"\n]*\")"
            r"|(?P<k>\b(?:static|const|int|float|double|void|if|else|for|while|return|struct|enum|typedef|int64_t|size_t|restrict|"
            r"template|typename|bool|inline|__global__|__device__)\b)")


def highlighted(text: str, suffix: str) -> str:
    """A program as HTML, its comments, texts and keywords told apart."""
    parts, at = [], 0
    for token in re.finditer(PYTHON_TOKENS if suffix == ".py" else C_TOKENS, text, re.MULTILINE):
        kind = f'<span class="{token.lastgroup}">{escape(token.group(), quote=False)}</span>'
        parts += [escape(text[at:token.start()], quote=False), kind]
        at = token.end()
    return "".join([*parts, escape(text[at:], quote=False)])

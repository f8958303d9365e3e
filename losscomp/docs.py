"""`losscomp docs`: a folder of HTML pages about losses, which needs no network; the old one is replaced as a whole."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

from . import catalogue
from .errors import BuildError, LosscompError
from .language import Definition
from .pages import TITLES, Card, Page, highlighted, library_at, page_of
from .plan import cores, unknown_loss
from .render import html

START = "index.html"
MARK = '<meta name="generator" content="losscomp '
SECTIONS: tuple[tuple[str, str, Callable[[Page], Any]], ...] = (
    ("formula", "Formula", lambda p: True),
    ("derivatives", "Derivatives", lambda p: True),
    ("plots", "Plots", lambda p: p.pictures or p.no_plot),
    ("errors", "Digits", lambda p: p.errors),
    ("accuracy", "Certificate", lambda p: p.accuracy),
    ("rewrites", "Rewrites", lambda p: True),
    ("arguments", "Arguments", lambda p: True),
    ("use", "Use", lambda p: p.usages),
    ("notes", "Notes", lambda p: p.notes or p.differences),
    ("code", "Code", lambda p: True),
)
SUFFIXES = {"python": ".py", "c": ".c"}


def write_site(out: Path, made: Iterator[tuple[Card, dict[str, str]]]) -> None:
    """Write pages as a whole. Raises BuildError for a folder that holds something else."""
    refuse_other(out)
    part = out.with_name(f"{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        cards = []
        for card, files in made:
            cards.append(card)
            write(part, files)
        write(part, {START: start(cards), "site.css": html("docs/site.css.jinja"), "site.js": html("docs/site.js.jinja")})
        if out.exists():
            shutil.rmtree(out)
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def refuse_other(out: Path) -> None:
    """Only a folder of such pages is replaced. Raises BuildError."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        first = out / START
        if not (first.is_file() and MARK in first.read_text()):
            raise BuildError(f"{out} holds something that losscomp docs has not made", repair="Name another folder with --out.")


def write(folder: Path, files: Mapping[str, str]) -> None:
    for path, text in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)


def start(cards: Sequence[Card]) -> str:
    """The start page: the cards by family, and what they can be filtered by."""
    families = sorted({c.family for c in cards}, key=lambda f: (all(c.dialect for c in cards if c.family == f), f))
    groups = [(f, [c for c in cards if c.family == f]) for f in families]
    count: Callable[[Iterable[str]], list[tuple[str, int]]] = lambda values: sorted(Counter(values).items())
    filters = [
        {"key": "family", "title": "family", "choices": [{"value": v, "title": v, "count": n} for v, n in count(c.family for c in cards)]},
        {"key": "target", "title": "target", "choices": [{"value": t, "title": TITLES[t], "count": n} for t in TITLES
                                                         if (n := sum(t in c.targets for c in cards))]},
        {"key": "framework", "title": "peer", "choices": [{"value": v or "none", "title": v or "none", "count": n}
                                                          for v, n in count(c.framework for c in cards)]},
    ]
    return html("docs/index.html.jinja", root="", cards=cards, groups=groups, filters=filters)


def render_page(page: Page) -> dict[str, str]:
    """The files of one loss."""
    words = {"".join(w.parts): w for a in page.articles for w in a.words}
    text = html("docs/loss.html.jinja", root="../", page=page, words=list(words.values()),
                sections=[(key, title) for key, title, wanted in SECTIONS if wanted(page)],
                highlight=lambda code, language: highlighted(code, SUFFIXES[language]))
    return {f"losses/{page.card.name}.html": text, **page.files}


# The command

@cache
def definitions_at(folder: Path) -> dict[str, Definition]:
    return catalogue.load(folder)


def one(folder: Path, defs: Path, name: str, names: tuple[str, ...]) -> tuple[Card, dict[str, str]]:
    """The files of one loss, in a process of its own."""
    definitions = definitions_at(defs)
    page = page_of(definitions[name], library_at(folder), {n: definitions[n] for n in names})
    return page.card, render_page(page)


def main(args: argparse.Namespace) -> int:
    """`losscomp docs`: 0, or an error."""
    defs = args.definitions or catalogue.builtin_definitions()
    definitions = catalogue.load(defs)
    for name in args.only:
        if name not in definitions:
            raise unknown_loss(name, definitions)
    names = tuple(sorted(set(args.only))) or tuple(definitions)
    refuse_other(args.out)
    watched = sys.stderr.isatty()

    def pages() -> Iterator[tuple[Card, dict[str, str]]]:
        jobs = min(args.jobs or cores(), len(names))
        with ProcessPoolExecutor(jobs) if jobs > 1 else nullcontext() as pool:
            arguments = [(args.lib, defs, name, names) for name in names]
            waiting = [pool.submit(one, *some) for some in arguments] if pool else None
            for k, name in enumerate(names):
                try:
                    yield waiting[k].result() if waiting else one(*arguments[k])
                except LosscompError as error:
                    raise error.at(name) from None
                if watched:
                    print(f"  {k + 1}/{len(names)} {name}", file=sys.stderr, flush=True)

    write_site(args.out, pages())
    print(f"{len(names)} {'page' if len(names) == 1 else 'pages'}: open {args.out / START}")
    return 0

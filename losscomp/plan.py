"""What a build is asked for, and what goes into it: the definition files, the name, the targets. Imports no SymPy."""

from __future__ import annotations

import difflib
import json
import keyword
import os
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from . import place
from .cache import compiler_digest, digest, walk
from .errors import BuildError, LosscompError
from .render import data_folder, definition_named

MANIFEST = ".losscomp.json"
STATE = f"{place.STATE}/state.json"
DEFAULT_NAME = "losslib"
# The files that only one target needs; the others go with every target.
OWNED: dict[str, tuple[str, ...]] = {
    "numpy": ("src/{name}/numpy/",),
    "c": ("src/{name}/c/", "src/{name}/csrc/", "src/{name}/include/", "CMakeLists.txt", "setup.py"),
    "torch": ("src/{name}/torch/", "src/{name}/csrc/", "src/{name}/include/", "src/{name}/c/_build.py", "src/{name}/cuda/{name}_cuda.h",
              "setup.py"),
    "cuda": ("src/{name}/cuda/",),
}
TARGETS = tuple(OWNED)
# Packages that a library imports: a library of that name would hide them from itself.
IMPORTED = frozenset({"numpy", "cffi", "torch", "setuptools", "losscomp"})


@dataclass(frozen=True)
class Options:
    """What is asked for. `definitions`: None is those of losscomp; `name`: None keeps that of the library that is in `out`;
    `jobs`: 0 is one for each core; `cuda`: compile the CUDA kernels too, which takes minutes."""

    definitions: Path | None = None
    out: Path = Path("generated")
    name: str | None = None
    targets: tuple[str, ...] = TARGETS
    only: tuple[str, ...] = ()
    jobs: int = 0
    compile: bool = True
    cuda: bool = False


@dataclass(frozen=True)
class Source:
    """A definition file: where it is, its path inside the folder of definitions, and its content."""

    path: Path
    label: str
    data: bytes


@dataclass(frozen=True)
class Plan:
    """A build before it starts. `helpers` is the digest of the author's own files among the definitions."""

    out: Path
    name: str
    targets: tuple[str, ...]
    sources: tuple[Source, ...]
    helpers: str
    jobs: int

    @cached_property
    def losscomp(self) -> str:
        """The digest of losscomp itself."""
        return compiler_digest(data_folder("templates"))

    @cached_property
    def inputs(self) -> str:
        """The digest of all that the files of the library depend on."""
        sources = [part for s in self.sources for part in [s.label, s.data, *bases(s.path, s.data)]]
        return digest(self.losscomp, self.name, " ".join(self.targets), self.helpers, *sources)

    def key(self, source: Source) -> str:
        """The digest of all that the text of one definition file depends on."""
        return digest(self.losscomp, self.name, " ".join(self.targets), self.helpers, source.label, source.data,
                      *bases(source.path, source.data))

    def wants(self, path: str) -> bool:
        """Does a file of the library belong to one of the targets, or to all?"""
        owners = {target for target, places in OWNED.items() for p in places if path.startswith(p.format(name=self.name))}
        return not owners or not owners.isdisjoint(self.targets)


def bases(path: Path, data: bytes) -> list[str | bytes]:
    """What the definition files hold that a definition file takes formulas from, and those that these do."""
    return [text for _, text in base_files(path, data)]


def base_files(path: Path, data: bytes, known: frozenset[Path] = frozenset()) -> list[tuple[Path, bytes]]:
    """The definition files that a definition file takes formulas from, each before those that it does itself, and what they hold."""
    files = [definition_named(name.decode(), path) for name in re.findall(rb"""\bbase\(\s*["']([^"']+)["']""", data)]
    texts = [(file, file.read_bytes()) for file in files if file is not None and file.resolve() not in known]
    return [found for file, text in texts for found in [(file, text), *base_files(file, text, known | {file.resolve()})]]


def make_plan(options: Options) -> Plan:
    """Find the definitions and settle the name. Raises BuildError."""
    out = options.out
    if out.exists() and not out.is_dir():
        raise BuildError(f"{out} is a file", repair="Name a folder with --out.")
    manifest = read_json(out / MANIFEST)
    name = options.name or manifest.get("name") or DEFAULT_NAME
    check_name(name)
    targets = tuple(t for t in TARGETS if t in (manifest.get("targets", TARGETS) if options.only else options.targets))
    sources, helpers = find_sources(options.definitions or data_folder("definitions"), out)
    return Plan(out, name, targets, sources, helpers, options.jobs or cores())


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_name(name: str) -> None:
    """The name of a library is imported by Python and is a prefix in C. Raises BuildError."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
        why = "is no identifier: letters, digits and underscores, beginning with a letter"
    elif keyword.iskeyword(name) or keyword.issoftkeyword(name):
        why = "is a keyword of Python"
    elif name in sys.stdlib_module_names:
        why = "is a module of Python's standard library, which it would hide"
    elif name in IMPORTED:
        why = "is a package that the library itself imports"
    else:
        return
    raise BuildError(f"the name {name!r} {why}", repair="Choose another with --name, such as my_losses.")


def find_sources(folder: Path, out: Path) -> tuple[tuple[Source, ...], str]:
    """The definition files of a folder in order, and the digest of the author's own ("_..."). A library inside is left out."""
    if not folder.exists():
        raise BuildError(f"there is no file or folder {str(folder)!r}",
                         repair="Name a folder of definitions, or leave it out for those of losscomp.")
    if folder.is_file():
        return (Source(folder, folder.name, folder.read_bytes()),), ""
    if out.resolve() == folder.resolve():
        raise BuildError(f"the library would lie among its definitions, in {str(out)!r}",
                         repair="Choose another folder with --out.")
    inside = out.resolve() if out.resolve().is_relative_to(folder.resolve()) else None
    found: list[Source] = []
    helpers: list[Source] = []
    for path in walk(folder, "*.py", frozenset({"__pycache__"})):
        if inside is None or not path.resolve().is_relative_to(inside):
            label = path.relative_to(folder)
            own = any(part.startswith("_") for part in label.parts)
            (helpers if own else found).append(Source(path, label.as_posix(), path.read_bytes()))
    if not found:
        raise BuildError(f"there is no definition in {str(folder)!r}",
                         repair=f"Make one: losscomp new my_loss --folder {folder}")
    return tuple(found), digest(*(part for s in helpers for part in (s.label, s.data)))


def unknown_loss(name: str, known: Iterable[str]) -> LosscompError:
    """The error for a loss that is not there, with the names that it may have been meant to be."""
    names = sorted(set(known))
    near = difflib.get_close_matches(name, names, n=3)
    return LosscompError(f"there is no loss {name!r}",
                         repair=f"Did you mean {' or '.join(near)}?" if near else "`losscomp list` shows all.")


def read_json(path: Path) -> dict[str, Any]:
    """An object of a JSON file; an empty one where there is no such file, or another kind of content."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def to_json(value: Any) -> bytes:
    """JSON that is the same for the same value, one item a line."""
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()

"""A loss as functions at once, as a notebook wants it: emitted, and imported from memory.

Nothing is written but, for the C target, object files and the linked library in the cache folder.
"""

from __future__ import annotations

import importlib
import re
import sys
import tempfile
from collections.abc import Sequence
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from importlib.util import spec_from_file_location, spec_from_loader
from pathlib import Path
from types import CodeType
from typing import Any

from . import __version__, compiler, emit
from .cache import Store, digest, digest_tree
from .catalogue import named_by_file
from .errors import BuildError
from .language import Definition
from .plan import cores

NAME = "losscomp_live"          # of every such library in C; in Python each has a number behind it
TARGETS = ("numpy", "c")


class Memory(MetaPathFinder, InspectLoader):
    """Finds the modules of libraries that lie nowhere, and their binaries in the cache folder."""

    def __init__(self) -> None:
        self.packages: dict[str, str] = {}                       # by the digest of all texts
        self.texts: dict[str, tuple[str, bool]] = {}             # by the name of the module; is it a package?
        self.binaries: dict[str, Path] = {}

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: Any = None) -> ModuleSpec | None:
        """Where a module is, if it is one of ours."""
        if fullname in self.binaries:
            place = str(self.binaries[fullname])
            return spec_from_file_location(fullname, place, loader=ExtensionFileLoader(fullname, place))
        if fullname in self.texts:
            return spec_from_loader(fullname, self, origin="losscomp", is_package=self.texts[fullname][1])
        return None

    def get_source(self, fullname: str) -> str:
        """The text of a module."""
        return self.texts[fullname][0]

    def get_code(self, fullname: str) -> CodeType:
        """A module, with a name for tracebacks."""
        return compile(self.get_source(fullname), f"<{fullname}>", "exec", dont_inherit=True)

    def is_package(self, fullname: str) -> bool:
        """Does a module have others inside?"""
        return self.texts[fullname][1]

    def add(self, files: dict[str, str], binary: Path | None) -> str:
        """Take a library in; the name of its package."""
        key = digest_tree({path: text.encode() for path, text in files.items()})
        if key not in self.packages:
            package = self.packages[key] = f"{NAME}_{len(self.packages) + 1}"
            for path, text in files.items():
                parts = Path(path).with_suffix("").parts[2:]     # without src/NAME
                module = ".".join([package, *(part for part in parts if part != "__init__")])
                self.texts[module] = re.sub(rf"\b{NAME}\b", package, text), "__init__" in parts
            if binary is not None:
                self.binaries[f"{package}.c._native"] = binary
        return self.packages[key]


MEMORY = Memory()


def compile_now(definition: Definition, target: str, name: str) -> Any:
    """A loss as the object that a library would have: call it, or its `value_and_grad` and so on. Raises LosscompError."""
    if target not in TARGETS:
        raise BuildError(f"a loss cannot be compiled at once for {target!r}",
                         repair=f"Choose {' or '.join(TARGETS)}; `losscomp build` makes libraries for the other targets.")
    if target == "c" and (lacking := compiler.missing()):
        raise BuildError(f"the C target cannot be compiled: {lacking}", repair="Mend that, or take target='numpy'.")
    if not definition.name:
        named = named_by_file(definition, name, "", "", {})
        assert isinstance(named, Definition)
        definition = named
    emitted = [emit.emit_loss(definition, NAME, "a notebook", (target,))]
    files = emitted[0].files | emit.emit_library(emitted, NAME, __version__)
    root = f"src/{NAME}/"
    wanted = {path: text for path, text in files.items() if path.endswith(".py") and path.startswith(root)
              and not path.startswith((f"{root}torch/", f"{root}{'c' if target == 'numpy' else 'numpy'}/"))}
    package = MEMORY.add(wanted, library(files) if target == "c" else None)
    if MEMORY not in sys.meta_path:
        sys.meta_path.append(MEMORY)
    return getattr(importlib.import_module(f"{package}.{target}"), definition.name)


def library(files: dict[str, str]) -> Path:
    """The compiled C library of some files, in the cache folder. Raises BuildError."""
    found = compiler.find()
    assert found is not None
    sources = {path: text.encode() for path, text in files.items() if path.startswith((
        f"src/{NAME}/csrc/", f"src/{NAME}/include/", f"src/{NAME}/c/_build.py"))}
    store, key = Store("live"), digest(digest_tree(sources), found.identity, sys.version)
    if store.get(key) is None:
        with tempfile.TemporaryDirectory() as work:
            for path, data in sources.items():
                Path(work, path).parent.mkdir(parents=True, exist_ok=True)
                Path(work, path).write_bytes(data)
            binary = compiler.compile_library(compiler.Job(found, Path(work).resolve(), NAME, cores(), lambda text: None))
            store.put(key, binary.path.read_bytes())
    if not store.path(key).exists():
        raise BuildError(f"the cache folder cannot be written: {store.folder}", repair="Name another in LOSSCOMP_CACHE.")
    return store.path(key)

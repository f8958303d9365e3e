"""The binaries of a library: what each is made from, what that needs, and where it goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from . import compiler
from .compiler import Binary, Job


@dataclass(frozen=True)
class Part:
    """A binary of one target.

    Attributes:
        path: where it goes. sources: the files that it is made from, by the beginning of their paths.
        missing: what this machine lacks for it; empty if nothing.
        make: makes it.
    """

    target: str
    path: str
    sources: tuple[str, ...]
    missing: Callable[[], str]
    make: Callable[[Job], Binary]


KERNELS = ("src/{name}/csrc/", "src/{name}/include/", "src/{name}/c/_build.py")
PARTS: tuple[Part, ...] = (
    Part("c", "src/{name}/c/_native.abi3.so", KERNELS, compiler.missing, compiler.compile_library),
    Part("torch", "src/{name}/torch/_operators.so", (*KERNELS, "src/{name}/torch/csrc/", "src/{name}/torch/_build.py"),
         compiler.missing_torch, compiler.compile_operators),
)

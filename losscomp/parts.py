"""The binaries of a library: what each is made from, what that needs, and where it goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from . import compiler, nvcc
from .compiler import Binary, Job


@dataclass(frozen=True)
class Part:
    """A binary of one target.

    Attributes:
        path: where it goes. sources: the files that it is made from, by the beginning of their paths.
        missing: what this machine lacks for it; empty if nothing.
        identity: what it depends on besides its sources: the compiler.
        make: makes it. demanded: it takes long, and is made only where it is asked for.
        spare: the target works without it: nothing is said where it is not made, and a word where it does not compile.
    """

    target: str
    path: str
    sources: tuple[str, ...]
    missing: Callable[[], str]
    identity: Callable[[], str]
    make: Callable[[Job], Binary]
    demanded: bool = False
    spare: bool = False

    @property
    def name(self) -> str:
        """What the state of a build knows it by: a target has one binary that it needs."""
        return f"{self.target}, spare" if self.spare else self.target

    def place(self, package: str) -> str:
        """Where it goes, in the library of a package."""
        return self.path.format(name=package, stamp=compiler.torch_stamp())



def c_identity() -> str:
    """The C compiler, and what it is asked to do."""
    found = compiler.find()
    return found.identity if found else ""


def cuda_identity() -> str:
    """The CUDA compiler."""
    found = nvcc.find()
    return found.identity if found else ""


def quick_identity() -> str:
    """The compiler, and the torch and the Python that the binary fits."""
    return f"{c_identity()} {compiler.torch_stamp()}"


def missing_cuda() -> str:
    """What the CUDA kernels lack on this machine; nvcc needs a compiler for the host."""
    return nvcc.missing() or ("" if compiler.find() else f"there is no C compiler. Get one: {compiler.how_to_get()}.")


def make_cuda(job: Job) -> Binary:
    """The CUDA kernels and their launchers."""
    found = nvcc.find()
    assert found is not None
    return nvcc.compile_library(found, job.work / job.root / "cuda", job.work / "cuda", "_cuda.so", job.jobs, job.say)


KERNELS = ("src/{name}/csrc/", "src/{name}/include/", "src/{name}/c/_build.py")
OPERATORS = (*KERNELS, "src/{name}/torch/csrc/", "src/{name}/torch/_build.py", "src/{name}/cuda/{name}_cuda.h")
QUICK = ("src/{name}/torch/csrc/quick.cpp", "src/{name}/torch/csrc/direct.h", "src/{name}/torch/_build.py")
PARTS: tuple[Part, ...] = (
    Part("c", "src/{name}/c/_native.abi3.so", KERNELS, compiler.missing, c_identity, compiler.compile_library),
    Part("torch", "src/{name}/torch/_operators.so", OPERATORS, compiler.missing_torch, c_identity, compiler.compile_operators),
    Part("torch", "src/{name}/torch/_quick.{stamp}.so", QUICK, compiler.missing_quick, quick_identity, compiler.compile_quick, spare=True),
    Part("cuda", "src/{name}/cuda/_cuda.so", ("src/{name}/cuda/",), missing_cuda, cuda_identity, make_cuda, demanded=True),
)

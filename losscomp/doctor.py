"""`losscomp doctor`: what is on this machine, what that enables, and the one command that gets what is missing."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from . import compiler, nvcc
from .errors import LosscompError


@dataclass(frozen=True)
class Finding:
    """One thing: what was found (empty: nothing), what it is for, how to get it, and whether losscomp needs it at all."""

    name: str
    found: str
    enables: str
    get: str
    needed: bool = False


def examine() -> list[Finding]:
    """Everything that losscomp can use. Nothing is imported that is slow to import."""
    return [
        Finding("python", platform.python_version(), "everything", "install Python 3.11 or newer", True),
        package("sympy", "deriving losses", True),
        package("jinja2", "emitting code", True),
        package("filelock", "building", True),
        package("numpy", "the numpy target", True),
        package("cffi", "the c target from Python", True),
        package("python-flint", "exact checks (losscomp verify)", True),
        Finding("C compiler", quietly(c_compiler), "the c target", compiler.how_to_get()),
        Finding("OpenMP", quietly(openmp), "the c target on several threads", "a C compiler that has -fopenmp, such as gcc"),
        Finding("Python.h", python_header(), "the c target from Python", compiler.HOW_TO_GET_HEADERS),
        program("cmake", "the library in C and C++ projects", "pip install cmake"),
        program("pkg-config", "the library in projects without CMake", "apt-get install pkg-config"),
        package("torch", "the torch target, and comparison with torch (losscomp verify)", get="pip install 'losscomp[torch]'"),
        Finding("nvcc", quietly(cuda_compiler), "the CUDA kernels, of C and of torch on GPUs (losscomp build --cuda)", nvcc.HOW_TO_GET),
        Finding("torch's CUDA", torch_cuda(), "the torch target on GPUs", "a build of torch with CUDA (pytorch.org)"),
        Finding("GPU", quietly(gpu), "running the CUDA kernels", "a machine with a GPU of NVIDIA and its driver"),
    ]


def package(name: str, enables: str, needed: bool = False, get: str = "") -> Finding:
    """A Python package."""
    try:
        found = version(name)
    except PackageNotFoundError:
        found = ""
    return Finding(name, found, enables, get or f"pip install {name}", needed)


def program(name: str, enables: str, get: str) -> Finding:
    """A program, with what it says of its version."""
    path = shutil.which(name)
    if path is None:
        return Finding(name, "", enables, get)
    try:
        done = subprocess.run([path, "--version"], check=False, capture_output=True, text=True, timeout=20)
        said = done.stdout.strip().splitlines()
    except (OSError, subprocess.TimeoutExpired):
        said = []
    return Finding(name, " ".join((said or [path])[0].split()), enables, get)


def c_compiler() -> str:
    """The C compiler, and what it says it is."""
    found = compiler.find()
    return f"{' '.join(found.command)}: {found.version}" if found else ""


def cuda_compiler() -> str:
    """The CUDA compiler, and what it says it is."""
    found = nvcc.find()
    return f"{found.path}: {found.version}" if found else ""


def torch_cuda() -> str:
    """The CUDA half of PyTorch, where PyTorch has one; torch is not imported for that."""
    spec = find_spec("torch")
    places = [Path(place, "lib") for place in (spec.submodule_search_locations or ())] if spec else []
    return next((str(path) for place in places for path in place.glob("*torch_cuda.*")), "")


def gpu() -> str:
    """The first GPU, as its driver names it."""
    path = shutil.which("nvidia-smi")
    done = subprocess.run([path, "-L"], check=False, capture_output=True, text=True, timeout=20) if path else None
    return (done.stdout.splitlines() or [""])[0].partition(" (UUID")[0] if done and done.returncode == 0 else ""


def python_header() -> str:
    """Where Python.h is."""
    path = compiler.python_header()
    return str(path) if path.exists() else ""


def openmp() -> str:
    """How many threads OpenMP would have."""
    found = compiler.find()
    return f"{' '.join(found.openmp())}, {os.cpu_count()} cores" if found and found.openmp() else ""


def quietly(ask: Callable[[], str]) -> str:
    """An answer, or nothing where asking fails."""
    try:
        return ask()
    except (LosscompError, OSError, subprocess.TimeoutExpired):
        return ""

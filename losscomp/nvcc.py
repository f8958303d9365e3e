"""The CUDA compiler: finding it, compiling the emitted .cu files into object files, linking the launchers as a shared library."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .cache import Store, digest
from .compiler import Binary, call
from .errors import BuildError

# -fmad=false: a product and a sum are rounded each, as in the C target, which is what was verified.
FLAGS = ("-std=c++17", "-O3", "-fmad=false", "--compress-mode=size", "-Xcompiler", "-fPIC",
         "-Werror", "all-warnings", "-Xptxas", "-warn-spills")
ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
PLACES = ("/usr/local/cuda/bin",)
HOW_TO_GET = "install the CUDA toolkit of NVIDIA, 12.8 or newer (developer.nvidia.com/cuda-downloads), or set NVCC"


@dataclass(frozen=True)
class Nvcc:
    """A CUDA compiler: where it is, and what it says it is."""

    path: str
    version: str

    @property
    def identity(self) -> str:
        """What an object file depends on besides its text and its flags."""
        return digest(self.path, self.version, os.environ.get("NVCC_APPEND_FLAGS", ""), os.environ.get("NVCC_PREPEND_FLAGS", ""))


def find() -> Nvcc | None:
    """The CUDA compiler that NVCC names, or the one on the path or in its usual place; None where there is none."""
    chosen = os.environ.get("NVCC", "")
    path = shutil.which(chosen or "nvcc") or next((found for place in PLACES if (found := shutil.which("nvcc", path=place))), None)
    if path is None or (chosen and shutil.which(chosen) is None):
        if chosen:
            raise BuildError(f"NVCC is {chosen!r}, and there is no such program", repair="Mend NVCC, or unset it.")
        return None
    return Nvcc(path, version_of(path))


@cache
def version_of(path: str) -> str:
    """What the compiler says it is."""
    said = subprocess.run([path, "--version"], check=False, capture_output=True, text=True)
    if said.returncode:
        raise BuildError(f"{path} --version failed: {said.stderr.strip()}", repair="Name the nvcc of a CUDA toolkit in NVCC.")
    return next((line for line in said.stdout.splitlines() if "release" in line), path)


def missing() -> str:
    """What compiling for GPUs lacks on this machine and how to get it; empty if it lacks nothing."""
    return "" if find() else f"there is no nvcc. Get it: {HOW_TO_GET}."


def compile_library(nvcc: Nvcc, folder: Path, out: Path, name: str, jobs: int, say: Callable[[str], None],
                    architectures: Sequence[str] = ARCHITECTURES) -> Binary:
    """Compile every .cu file of `folder` and link them as `out`/`name`. Raises BuildError.

    Object files come from the cache where the preprocessed text, the flags and the compiler are the same.
    """
    out.mkdir(parents=True, exist_ok=True)
    sources = sorted(folder.glob("*.cu"), key=lambda path: -path.stat().st_size)

    def one(source: Path) -> bool:
        return compile_object(nvcc, source, out / f"{source.stem}.o", architectures, say)

    with ThreadPoolExecutor(jobs) as pool:
        fresh = list(pool.map(one, sources))
    objects = [f"{source.stem}.o" for source in sorted(sources)]
    call([nvcc.path, "-shared", *objects, "-o", name], out, "link the CUDA library")
    compiled = tuple(sorted(source.stem for source, new in zip(sources, fresh, strict=True) if new))
    return Binary(out / name, compiled, len(sources) - len(compiled))


def compile_object(nvcc: Nvcc, source: Path, target: Path, architectures: Sequence[str], say: Callable[[str], None]) -> bool:
    """Make the object file of one source: from the cache, else by the compiler (then True). Paths are relative to the sources.

    The key is every file that the source may include: preprocessing takes as long as a small kernel.
    """
    flags = [*FLAGS, *(f"-gencode=arch={a.replace('sm', 'compute')},code={a}" for a in architectures)]
    texts = [path.read_bytes() for path in [source, *sorted(source.parent.glob("*.*h")), *sorted(source.parent.glob("*.h"))]]
    store, key = Store("objects"), digest(nvcc.identity, *flags, source.name, *texts)
    if (known := store.get(key)) is not None:
        target.write_bytes(known)
        return False
    start = time.perf_counter()
    call([nvcc.path, *flags, "-c", source.name, "-o", str(target.resolve())], source.parent, f"compile {source.name}")
    say(f"compiled {source.name} for {shlex.join(architectures)} ({time.perf_counter() - start:.1f} s)")
    store.put(key, target.read_bytes())
    return True

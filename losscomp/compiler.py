"""The C compiler: finding it, compiling the emitted C into object files in parallel, linking the extension module."""

from __future__ import annotations

import io
import json
import os
import platform
import runpy
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .cache import Store, digest
from .errors import BuildError

NAMES = ("cc", "gcc", "clang")
OPENMP = ("-fopenmp",)
HOW_TO_GET = {
    "Linux": "apt-get install gcc libc6-dev (Debian, Ubuntu), dnf install gcc (Fedora), or set CC",
    "Darwin": "xcode-select --install, or set CC",
}
HOW_TO_GET_HEADERS = "apt-get install python3-dev (Debian, Ubuntu) or dnf install python3-devel (Fedora)"


@dataclass(frozen=True)
class Compiler:
    """A C compiler: how to call it, and what it says it is."""

    command: tuple[str, ...]
    version: str

    @property
    def identity(self) -> str:
        """What an object file depends on besides its text: the compiler, the flags of the environment, the machine."""
        flags = [os.environ.get(name, "") for name in ("CFLAGS", "LDFLAGS")]
        return digest(*self.command, self.version, *flags, platform.system(), platform.machine())

    def openmp(self) -> tuple[str, ...]:
        """The flags that switch OpenMP on, or none; found by a trial, once for each compiler."""
        store, key = Store("compilers"), digest("openmp", self.identity)
        if (known := store.get(key)) is not None:
            return tuple(json.loads(known))
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "trial.c")
            source.write_text("#include <omp.h>\nint threads(void) { return omp_get_max_threads(); }\n")
            command = [*self.command, *OPENMP, "-fPIC", "-shared", str(source), "-o", str(Path(folder, "trial.so"))]
            flags = OPENMP if subprocess.run(command, check=False, capture_output=True).returncode == 0 else ()
        store.put(key, json.dumps(flags).encode())
        return flags


@dataclass(frozen=True)
class Binary:
    """A linked extension module: where it lies, and which object files had to be compiled for it."""

    path: Path
    compiled: tuple[str, ...]
    reused: int


def find() -> Compiler | None:
    """The C compiler that CC names, or the first of cc, gcc and clang; None where there is none."""
    chosen = shlex.split(os.environ.get("CC", ""))
    if chosen and shutil.which(chosen[0]) is None:
        raise BuildError(f"CC is {os.environ['CC']!r}, and there is no such program", repair="Mend CC, or unset it.")
    command = chosen or [name for name in NAMES if shutil.which(name)][:1]
    if not command:
        return None
    path = str(shutil.which(command[0]))
    return Compiler((path, *command[1:]), version_of(path, tuple(command[1:])))


@cache
def version_of(path: str, arguments: tuple[str, ...]) -> str:
    """What a compiler says it is."""
    asked = subprocess.run([path, *arguments, "--version"], check=False, capture_output=True, text=True)
    if asked.returncode:
        raise BuildError(f"{shlex.join([path, *arguments])} --version failed: {asked.stderr.strip()}",
                         repair="Name a C compiler in CC.")
    return (asked.stdout.splitlines() or [path])[0]


def how_to_get() -> str:
    """The command that gets a C compiler."""
    return HOW_TO_GET.get(platform.system(), "install one, or set CC")


def python_header() -> Path:
    """Where Python.h has to be for the extension module to compile."""
    return Path(sysconfig.get_paths()["include"], "Python.h")


def missing() -> str:
    """What the C target lacks on this machine and how to get it; empty if it lacks nothing."""
    system = platform.system()
    if system == "Windows":
        return "on Windows `pip install` compiles the C target, `losscomp build` does not."
    if find() is None:
        return f"there is no C compiler. Get one: {how_to_get()}."
    if not python_header().exists():
        return f"Python.h is missing. Get it: {HOW_TO_GET_HEADERS}."
    return ""


def compile_library(compiler: Compiler, work: Path, package: str, jobs: int, say: Callable[[str], None]) -> Binary:
    """Compile and link the extension module of a library whose sources lie in `work`. Raises BuildError.

    The flags and the binding are those of the emitted c/_build.py, so that pip compiles the same. Paths are relative to `work`
    throughout: object files do not depend on where it is.
    """
    work, root = work.resolve(), Path("src", package)
    recipe = runpy.run_path(str(work / root / "c" / "_build.py"), run_name="_build")
    with redirect_stdout(io.StringIO()):                                    # cffi would say that it writes a file
        recipe["binding"]().emit_c_code(str(work / root / "c" / "_native.c"))
    environment = shlex.split(os.environ.get("CFLAGS", ""))
    flags = [*recipe["FLAGS"], *compiler.openmp(), "-fPIC", "-I", str(root / "include"), "-I", str(root / "csrc"), *environment]
    python = [*flags, "-I", str(python_header().parent)]
    sources = [(root / "c" / "_native.c", python)]
    sources += [(Path(s).relative_to(work), flags) for s in recipe["sources"]()]
    sources.sort(key=lambda job: -(work / job[0]).stat().st_size)           # the longest first: nobody waits for it at the end

    def one(job: tuple[Path, list[str]]) -> bool:
        return compile_object(compiler, work, job[0], job[1], say)

    with ThreadPoolExecutor(jobs) as pool:
        fresh = list(pool.map(one, sources))
    objects = [str(source.with_suffix(".o")) for source, _ in sorted(sources)]
    target = root / "c" / "_native.abi3.so"
    undefined = ["-undefined", "dynamic_lookup"] if platform.system() == "Darwin" else []
    call([*compiler.command, "-shared", *undefined, *objects, "-o", str(target), *compiler.openmp(), *environment,
          *shlex.split(os.environ.get("LDFLAGS", "")), "-lm"], work, "link the library")
    compiled = tuple(sorted(source.stem for (source, _), new in zip(sources, fresh, strict=True) if new))
    return Binary(work / target, compiled, len(sources) - len(compiled))


def compile_object(compiler: Compiler, work: Path, source: Path, flags: list[str], say: Callable[[str], None]) -> bool:
    """Make the object file of one source: from the cache, else by the compiler (then True).

    The key is the preprocessed text: a change in a comment, or in a header that this file does not use, costs nothing.
    """
    text = call([*compiler.command, *flags, "-E", "-P", str(source)], work, f"preprocess {source.name}")
    store, key = Store("objects"), digest(compiler.identity, *flags, text)
    target = work / source.with_suffix(".o")
    if (known := store.get(key)) is not None:
        target.write_bytes(known)
        return False
    start = time.perf_counter()
    output = str(source.with_suffix(".o"))
    call([*compiler.command, *flags, "-c", str(source), "-o", output], work, f"compile {source.name}")
    say(f"compiled {source.name} ({time.perf_counter() - start:.1f} s)")
    store.put(key, target.read_bytes())
    return True


def call(command: list[str], work: Path, what: str) -> bytes:
    """Run the compiler; what it printed. Raises BuildError with what it complained about."""
    done = subprocess.run(command, check=False, cwd=work, capture_output=True)
    if done.returncode:
        words = done.stderr.decode(errors="replace").strip() or f"exit status {done.returncode}"
        raise BuildError(f"cannot {what}: {command[0]} said\n{words}",
                         repair="`losscomp doctor` says what this machine lacks; if nothing, this is a defect of losscomp.")
    return done.stdout

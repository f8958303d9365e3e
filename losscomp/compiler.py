"""The C compiler: finding it, compiling the emitted C and C++ into object files in parallel, linking the binaries."""

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
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .cache import Store, digest
from .errors import BuildError

NAMES = ("cc", "gcc", "clang")
OPENMP = ("-fopenmp",)
STAMP = "torch-{version}-{commit}.{abi}"
HOW_TO_GET = {
    "Linux": "apt-get install gcc libc6-dev (Debian, Ubuntu), dnf install gcc (Fedora), or set CC",
    "Darwin": "xcode-select --install, or set CC",
}
HOW_TO_GET_CPLUSPLUS = "apt-get install g++ (Debian, Ubuntu) or dnf install gcc-c++ (Fedora)"
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
        """The flags that switch OpenMP on, or none."""
        return OPENMP if self.can("trial.c", "#include <omp.h>\nint threads(void) { return omp_get_max_threads(); }\n", OPENMP) else ()

    def taken(self, flags: Sequence[str]) -> tuple[str, ...]:
        """The flags, if it takes them without a warning, or none."""
        return tuple(flags) if self.can("trial.c", "int trial(void) { return 0; }\n", (*flags, "-Werror")) else ()

    def cplusplus(self) -> bool:
        """Does it compile C++ too?"""
        return self.can("trial.cpp", "#include <string>\nstd::string word() { return std::string(3, 'a'); }\n", ("-std=c++17", "-lstdc++"))

    def can(self, name: str, text: str, flags: tuple[str, ...]) -> bool:
        """Does a trial compile and link? Asked once for each compiler."""
        store, key = Store("compilers"), digest(name, text, *flags, self.identity)
        if (known := store.get(key)) is not None:
            return bool(json.loads(known))
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, name)
            source.write_text(text)
            command = [*self.command, "-fPIC", "-shared", str(source), "-o", str(Path(folder, "trial.so")), *flags]
            answer = subprocess.run(command, check=False, capture_output=True).returncode == 0
        store.put(key, json.dumps(answer).encode())
        return answer


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


def missing_torch() -> str:
    """What the torch target lacks on this machine and how to get it; empty if it lacks nothing."""
    if find_spec("torch") is None:
        return "PyTorch is not installed. Get it: pip install 'torch>=2.10'."
    if platform.system() == "Windows":
        return "on Windows `pip install` compiles the torch target, `losscomp build` does not."
    found = find()
    if found is None:
        return f"there is no C compiler. Get one: {how_to_get()}."
    return "" if found.cplusplus() else f"the compiler {found.command[0]} compiles no C++. Get that part: {HOW_TO_GET_CPLUSPLUS}."


def torch_folder() -> Path | None:
    """Where PyTorch is installed; it is not imported for that."""
    spec = find_spec("torch")
    return Path(spec.origin).parent if spec is not None and spec.origin else None


@cache
def torch_stamp() -> str:
    """What names a binary that fits this PyTorch and this Python alone, as an emitted library asks for it; empty without PyTorch."""
    folder = torch_folder()
    if folder is None or not (folder / "version.py").exists():
        return ""
    known = runpy.run_path(str(folder / "version.py"))
    commit = (known.get("git_version") or "none")[:8]
    return STAMP.format(version=known["__version__"], commit=commit, abi=sysconfig.get_config_var("SOABI"))


def missing_quick() -> str:
    """Why the usual call of the torch target is not compiled past Python; empty if it can be. LOSSCOMP_QUICK=0 leaves it out."""
    if os.environ.get("LOSSCOMP_QUICK") == "0":
        return "LOSSCOMP_QUICK is 0"
    if platform.system() != "Linux" or sysconfig.get_config_var("Py_GIL_DISABLED"):
        return "it was tried on Linux only, with Python's lock"
    folder = torch_folder()
    if not torch_stamp() or folder is None or not (folder / "include" / "torch" / "csrc" / "autograd" / "function.h").exists():
        return "PyTorch or its headers are missing"
    return missing_torch() or ("" if python_header().exists() else f"Python.h is missing. Get it: {HOW_TO_GET_HEADERS}.")


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


@dataclass(frozen=True)
class Job:
    """Where and how a binary is made: the folder with the sources, the name of the library, and how many files at a time."""

    compiler: Compiler
    work: Path
    package: str
    jobs: int
    say: Callable[[str], None]

    @property
    def root(self) -> Path:
        """The package, relative to `work`: object files do not depend on where that is."""
        return Path("src", self.package)

    def recipe(self, path: str) -> dict[str, Any]:
        """What an emitted build file defines: pip compiles by the same."""
        return runpy.run_path(str(self.work / self.root / path), run_name="_build")


def compile_library(job: Job) -> Binary:
    """The extension module of the C target. Raises BuildError."""
    recipe = job.recipe("c/_build.py")
    with redirect_stdout(io.StringIO()):                                    # cffi would say that it writes a file
        recipe["binding"]().emit_c_code(str(job.work / job.root / "c" / "_native.c"))
    flags = c_flags(job)
    python = [*flags, "-I", str(python_header().parent)]
    sources = [(job.root / "c" / "_native.c", python), *c_sources(job)]
    undefined = ["-undefined", "dynamic_lookup"] if platform.system() == "Darwin" else []
    return link(job, sources, job.root / "c" / "_native.abi3.so", [*undefined, "-lm"])


def compile_operators(job: Job) -> Binary:
    """The operators of the torch target, with the kernels of the C library inside. Raises BuildError."""
    recipe = job.recipe("torch/_build.py")
    here = job.root / "torch" / "csrc"
    flags = [*recipe["FLAGS"], "-fPIC", "-I", str(job.root / "include"), "-I", str(here), "-I", str(job.root / "cuda"),
             *shlex.split(os.environ.get("CXXFLAGS", ""))]
    extra = ["-lm", "-lstdc++"]
    if platform.system() == "Linux":                                        # a stand-in gives the linker the name of torch's library
        (job.work / here / "stub.c").write_text(recipe["stub"]())
        call([*job.compiler.command, "-shared", "-fPIC", "-w", "-Wl,-soname,libtorch_cpu.so", str(here / "stub.c"), "-o",
              str(here / "libtorch_cpu.so")], job.work, "link the stand-in for torch")
        extra = ["-L", str(here), "-Wl,-z,defs", "-Wl,--no-as-needed", "-ltorch_cpu", "-ldl", *extra]
    elif platform.system() == "Darwin":
        extra = ["-undefined", "dynamic_lookup", "-lc++"]
    return link(job, [*((here / name, flags) for name in recipe["SOURCES"]), *c_sources(job)], job.root / "torch" / "_operators.so", extra)


def compile_quick(job: Job) -> Binary:
    """What makes the usual call of the torch target past Python. Raises BuildError."""
    recipe = job.recipe("torch/_build.py")
    folder = torch_folder()
    assert folder is not None
    includes = [*(folder / path for path in recipe["QUICK_INCLUDES"]), python_header().parent]
    flags = [*recipe["QUICK_FLAGS"], "-fPIC", *(f"-I{path}" for path in includes), *shlex.split(os.environ.get("CXXFLAGS", ""))]
    extra = ["-L", str(folder / "lib"), *(f"-l{name}" for name in recipe["QUICK_LIBRARIES"]), "-lstdc++"]
    return link(job, [(job.root / "torch" / "csrc" / recipe["QUICK"], flags)], job.root / "torch" / f"_quick.{torch_stamp()}.so", extra)


def c_flags(job: Job) -> list[str]:
    """How the files of the C library are compiled."""
    recipe = job.recipe("c/_build.py")
    return [*recipe["FLAGS"], *job.compiler.taken(recipe["GCC_FLAGS"]), *job.compiler.openmp(), "-fPIC",
            "-I", str(job.root / "include"), "-I", str(job.root / "csrc"), *shlex.split(os.environ.get("CFLAGS", ""))]


def c_sources(job: Job) -> list[tuple[Path, list[str]]]:
    """The files of the C library, and how each is compiled."""
    flags = c_flags(job)
    return [(Path(s).relative_to(job.work), flags) for s in job.recipe("c/_build.py")["sources"]()]


def link(job: Job, sources: list[tuple[Path, list[str]]], target: Path, extra: list[str]) -> Binary:
    """Compile what the cache does not have, and link all of it."""
    sources = sorted(sources, key=lambda source: -(job.work / source[0]).stat().st_size)    # nobody waits for a long one at the end

    def one(source: tuple[Path, list[str]]) -> bool:
        return compile_object(job.compiler, job.work, source[0], source[1], job.say)

    with ThreadPoolExecutor(job.jobs) as pool:
        fresh = list(pool.map(one, sources))
    objects = [str(source.with_suffix(".o")) for source, _ in sorted(sources)]
    flags = [*job.compiler.openmp(), *shlex.split(os.environ.get("CFLAGS", "")), *shlex.split(os.environ.get("LDFLAGS", ""))]
    call([*job.compiler.command, "-shared", *objects, "-o", str(target), *flags, *extra], job.work, f"link {target.name}")
    compiled = tuple(sorted(source.stem for (source, _), new in zip(sources, fresh, strict=True) if new))
    return Binary(job.work / target, compiled, len(sources) - len(compiled))


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

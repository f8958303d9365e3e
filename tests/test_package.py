"""What is made is used without losscomp: installed with pip, from CMake, through pkg-config. And losscomp itself installs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from losscomp import __version__, compiler
from losscomp.build import build
from losscomp.plan import Options

ROOT = Path(__file__).resolve().parent.parent
CONSUMERS = ROOT / "tests" / "consumers"
OTHER = '''"""Twice the Huber loss."""
from losscomp.language import Abs, Loss, Piecewise, tensor

input, target = tensor("input"), tensor("target", fixed=True)
error = input - target
double_huber = Loss(2 * Piecewise((error**2 / 2, Abs(error) < 1), (Abs(error) - 0.5, True)))
'''


def lacks(*programs: str) -> str:
    """Which of these programs this machine does not have."""
    return ", ".join(program for program in programs if shutil.which(program) is None)


needs_compiler = pytest.mark.skipif(bool(compiler.missing()), reason=f"the C target is NOT TESTED: {compiler.missing()}")
no_cmake = lacks("cmake", "c++")
needs_cmake = pytest.mark.skipif(bool(no_cmake), reason=f"the CMake package is NOT TESTED: no {no_cmake}")
needs_pkg_config = pytest.mark.skipif(bool(lacks("pkg-config")), reason="the pkg-config file is NOT TESTED: no pkg-config")


def run(*command: str | Path, cwd: Path | None = None, **environment: str) -> str:
    """What a command prints; it must succeed."""
    done = subprocess.run(list(map(str, command)), check=False, cwd=cwd, text=True, capture_output=True, timeout=300,
                          env={**os.environ, **environment})
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The sources of a library of two losses."""
    folder = tmp_path_factory.mktemp("package")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOSSCOMP_CACHE", str(folder / "cache"))
        patch.setenv("LOSSCOMP_QUICK", "0")
        (folder / "defs").mkdir()
        for path in ("regression/huber_loss.py", "classification/nll_loss.py"):
            shutil.copy(ROOT / "definitions" / path, folder / "defs")
        build(Options(folder / "defs", folder / "losslib", "losslib", compile=False))
        (folder / "double_huber.py").write_text(OTHER)
        build(Options(folder / "double_huber.py", folder / "other", "other", compile=False))
        yield folder / "losslib"


# C and C++

def programs(folder: Path, *settings: str) -> None:
    """Configure, build and run both consumers."""
    run("cmake", "-S", CONSUMERS, "-B", folder, *settings)
    run("cmake", "--build", folder, "--parallel", "2")
    assert "WRONG" not in run(folder / "in_c")
    assert run(folder / "in_cpp").startswith("0 2.625 0.5 1 ")


@needs_cmake
def test_add_subdirectory(library: Path, tmp_path: Path) -> None:
    programs(tmp_path / "build", f"-DSOURCE={library}")


@needs_cmake
def test_two_libraries_in_one_program(library: Path, tmp_path: Path) -> None:
    programs(tmp_path / "build", f"-DSOURCE={library}", f"-DOTHER={library.parent / 'other'}")
    assert "of the other library         5.25" in run(tmp_path / "build" / "in_c")


@needs_cmake
@pytest.mark.parametrize("shared", ["OFF", "ON"])
def test_find_package_and_pkg_config(library: Path, tmp_path: Path, shared: str) -> None:
    made, prefix = tmp_path / "made", tmp_path / "prefix"
    run("cmake", "-S", library, "-B", made, f"-DBUILD_SHARED_LIBS={shared}", f"-DCMAKE_INSTALL_PREFIX={prefix}",
        "-DCMAKE_INSTALL_LIBDIR=lib")
    run("cmake", "--build", made, "--parallel", "2")
    run("cmake", "--install", made)
    shutil.rmtree(made)
    programs(tmp_path / "build", f"-DCMAKE_PREFIX_PATH={prefix}")
    if not lacks("pkg-config"):
        with_pkg_config(prefix, tmp_path / "program")


def with_pkg_config(prefix: Path, program: Path) -> None:
    """Compile and run the C consumer with the flags of pkg-config."""
    flags = run("pkg-config", "--cflags", "--libs", "losslib", PKG_CONFIG_PATH=str(prefix / "lib" / "pkgconfig")).split()
    found = compiler.find()
    assert found is not None
    run(*found.command, "-std=c99", "-Wall", "-Werror", CONSUMERS / "huber.c", "-o", program, *flags)
    assert "WRONG" not in run(program, LD_LIBRARY_PATH=str(prefix / "lib"), DYLD_LIBRARY_PATH=str(prefix / "lib"))


@needs_pkg_config
def test_pkg_config_is_tested_above() -> None:
    """This one is here to be skipped, loudly, where pkg-config is missing."""


@needs_compiler
@pytest.mark.parametrize("standard", ["-std=c99", "-std=c17"])
def test_the_sources_compile_without_a_warning(library: Path, tmp_path: Path, standard: str) -> None:
    found = compiler.find()
    assert found is not None
    package = library / "src" / "losslib"
    for source in sorted((package / "csrc").glob("*.c")):
        run(*found.command, standard, "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only", "-I", package / "include",
            "-I", package / "csrc", source)


# Python

USE = """
import importlib.util, numpy as np, losslib, losslib.numpy
assert importlib.util.find_spec("losscomp") is None
x, y = np.array([0.5, 3.0]), np.zeros(2)
try:
    import losslib.c
    targets = [losslib.numpy, losslib.c]
except ImportError as error:
    print(error)
    targets = [losslib.numpy]
for L in targets:
    value, grads = L.huber_loss.value_and_grad(x, y)
    print(L.__name__, float(value), grads.input.tolist())
"""
PAPER = "{} 1.3125 [0.25, 0.5]\n"


def fresh(folder: Path) -> Path:
    """Python in a new environment; it sees the packages of this one but for those installed as editable, as losscomp is."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    run(python, "-m", "pip", "uninstall", "--quiet", "--yes", "setuptools")       # Python 3.11 brings an old one
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    site.joinpath("others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


@needs_compiler
def test_pip_installs_the_library(library: Path, tmp_path: Path) -> None:
    python = fresh(tmp_path / "venv")
    shutil.copytree(library, tmp_path / "copy")
    install = ["-m", "pip", "install", "--quiet", "--no-build-isolation", "--no-deps", "--no-index", tmp_path / "copy"]
    run(python, *install)
    assert run(python, "-c", USE, cwd=tmp_path) == PAPER.format("losslib.numpy") + PAPER.format("losslib.c")
    wheel = Path(sysconfig.get_path("platlib", vars={"platbase": str(tmp_path / "venv")})).glob("losslib-*/WHEEL")
    assert "Tag: cp311-abi3-" in next(wheel).read_text()


def test_pip_installs_the_numpy_target_without_a_compiler(library: Path, tmp_path: Path) -> None:
    python = fresh(tmp_path / "venv")
    shutil.copytree(library, tmp_path / "copy")
    run(python, "-m", "pip", "install", "--quiet", "--no-build-isolation", "--no-deps", "--no-index", tmp_path / "copy",
        LOSSLIB_C="0", CC="false")
    said = run(python, "-c", USE, cwd=tmp_path)
    assert "the C library of losslib is not compiled" in said and said.endswith(PAPER.format("losslib.numpy"))


@needs_compiler
def test_pip_installs_the_library_with_all_that_it_needs(library: Path, tmp_path: Path) -> None:
    """As a user does it: what the library needs comes from the package registry."""
    venv.create(tmp_path / "venv", with_pip=True)
    shutil.copytree(library, tmp_path / "copy")
    python = tmp_path / "venv" / "bin" / "python"
    trial = [python, "-m", "pip", "install", "--quiet", "--retries", "0", "cffi"]
    if subprocess.run(trial, check=False, capture_output=True).returncode:
        pytest.skip("the declared dependencies of a library are NOT TESTED: pip reaches no registry")
    run(python, "-m", "pip", "install", "--quiet", tmp_path / "copy")
    assert run(python, "-c", USE, cwd=tmp_path) == PAPER.format("losslib.numpy") + PAPER.format("losslib.c")


def test_losscomp_builds_from_its_wheel(tmp_path: Path) -> None:
    """Definitions and templates travel inside: an installed losscomp emits what a checkout does."""
    source = tmp_path / "source"
    source.mkdir()
    for part in ("losscomp", "definitions", "templates"):
        shutil.copytree(ROOT / part, source / part, ignore=shutil.ignore_patterns("__pycache__"))
    for part in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / part, source)
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps", "--no-index", "--wheel-dir",
        tmp_path, source)
    with zipfile.ZipFile(next(tmp_path.glob("losscomp-*.whl"))) as wheel:
        names = set(wheel.namelist())
        wheel.extractall(tmp_path / "site")
    for part in ("definitions", "templates"):
        inside = {f"losscomp/{part}/{p.relative_to(ROOT / part).as_posix()}" for p in (ROOT / part).rglob("*")
                  if p.is_file() and "__pycache__" not in p.parts}
        assert inside <= names
    environment = {"PYTHONPATH": str(tmp_path / "site"), "LOSSCOMP_CACHE": str(tmp_path / "cache"), "LOSSCOMP_QUICK": "0"}
    where = run(sys.executable, "-c", "import losscomp; print(losscomp.__file__)", cwd=tmp_path, **environment).strip()
    assert where.startswith(str(tmp_path / "site"))
    definition = Path("losscomp", "definitions", "regression", "huber_loss.py")
    run(sys.executable, "-m", "losscomp", "build", tmp_path / "site" / definition, "--out", "out", "--no-compile", cwd=tmp_path,
        **environment)
    build(Options(ROOT / "definitions" / "regression" / "huber_loss.py", tmp_path / "expected", "losslib", compile=False))
    assert (tmp_path / "out" / ".losscomp.json").read_bytes() == (tmp_path / "expected" / ".losscomp.json").read_bytes()
    assert "huber_loss" in run(sys.executable, "-m", "losscomp", "list", cwd=tmp_path, **environment)


def test_one_version() -> None:
    """The changes and the citation speak of the version that the package has."""
    assert re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)[1] == __version__  # type: ignore[index]
    assert re.search(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1] == __version__  # type: ignore[index]

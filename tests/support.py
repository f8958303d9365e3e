"""What tests share: a library compiled from definitions at hand, without the build step's caches."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from losscomp import emit

COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def write_library(losses: list[Any], folder: Path, name: str) -> Path:
    """Emit a library; the folder that holds its package."""
    return write_emitted([emit.emit_loss(loss, name, "test") for loss in losses], folder, name)


def write_emitted(emitted: list[emit.Emitted], folder: Path, name: str) -> Path:
    """Write a library whose losses are emitted; the folder that holds its package."""
    files: dict[str, str] = {}
    for e in emitted:
        files |= e.files
    files |= emit.emit_library(emitted, name, "0.0.0")
    for path, text in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    return folder / "src"


def copy_library(folder: Path) -> Path:
    """The library that the other tests load, its text alone; the folder that holds the package."""
    package = importlib.util.find_spec("losslib")
    assert package and package.origin
    shutil.copytree(Path(package.origin).parent, folder / "losslib", ignore=shutil.ignore_patterns("*.so", "*.o", "__pycache__"))
    return folder


def compile_library(src: Path, name: str, flags: list[str]) -> None:
    """Compile the C target of an emitted library in place."""
    package = src / name
    include = [f"-I{package / 'include'}", f"-I{package / 'csrc'}", f"-I{sysconfig.get_paths()['include']}"]
    spec = importlib.util.spec_from_file_location("binding", package / "c" / "_build.py")
    assert spec and spec.loader and COMPILER
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    binding = package / "csrc" / "_native.c"
    module.binding().emit_c_code(str(binding))

    def compile_one(source: Path) -> str:
        out = source.with_suffix(".o")
        extra = ["-DPy_LIMITED_API=0x030b0000"] if source == binding else ["-std=c99"]
        done = subprocess.run([COMPILER, *extra, "-fPIC", "-ffp-contract=off", *flags, *include, "-c", str(source), "-o", str(out)],
                              capture_output=True, text=True)
        assert done.returncode == 0, f"{source.name} does not compile:\n{done.stderr[:3000]}"
        return str(out)

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, sorted((package / "csrc").glob("*.c"))))
    subprocess.run([COMPILER, "-shared", *flags, *objects, "-o", str(package / "c" / "_native.abi3.so"), "-lm"], check=True,
                   capture_output=True, text=True)


def library(losses: list[Any], folder: Path, name: str, optimise: str = "-O1") -> dict[str, Any]:
    """The targets of a library made from definitions: {"numpy": module, "c": module}."""
    return load_library(write_library(losses, folder, name), name, optimise)


def load_library(src: Path, name: str, optimise: str = "-O1", compiled: bool = False) -> dict[str, Any]:
    """The targets of a library that is written; and compiled already?"""
    if COMPILER and not compiled:
        compile_library(src, name, [optimise, "-DLOSSLIB_PLAIN"])
    sys.path.insert(0, str(src))
    try:
        importlib.invalidate_caches()
        return {t: importlib.import_module(f"{name}.{t}") for t in ("numpy", "c") if t == "numpy" or COMPILER}
    finally:
        sys.path.remove(str(src))

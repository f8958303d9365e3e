"""The emitted CUDA kernels on a CPU: compiled by g++ with cuda/shim.h in front, called like any target of the library."""

from __future__ import annotations

import importlib
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cffi
import numpy as np

from losscomp.cache import Store, digest

HERE = Path(__file__).parent
SHIM = HERE / "cuda" / "shim.h"
GXX = shutil.which("g++")
# -fno-gnu-unique: each library has fibers of its own, and none of a library that is unloaded by now.
FLAGS = ["-std=c++17", "-ffp-contract=off", "-fPIC", "-fno-gnu-unique", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas",
         "-Wno-unused-function", "-x", "c++", "-include", str(SHIM)]
THREADS = 64                                     # of a block: two warps, so that blocks join, and fibers stay few
TYPES = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 3}
CDEF = """
typedef struct losslib_kernel losslib_kernel;
typedef struct losslib_call {
    int ndim; int64_t shape[12]; int64_t sizes[4]; void *data[40]; int64_t strides[40][12]; int64_t axis_strides[40][4];
    double params[8]; int threads; int bad;
} losslib_call;
typedef struct losslib_totals {
    const double *total, *weight, *total_rate, *weight_rate; double denominator, count, batch;
} losslib_totals;
typedef struct losslib_finished { void *value, *rate, *scale, *scale_weight, *scale_rate, *scale_weight_rate; } losslib_finished;
const losslib_kernel *NAME_cuda_find(const char *name, int type);
const char *NAME_cuda_argument_name(const losslib_kernel *kernel, int k);
const char *NAME_cuda_axis_name(const losslib_kernel *kernel, int k);
size_t NAME_cuda_workspace(const losslib_kernel *kernel, const losslib_call *call);
int NAME_cuda_compute(const losslib_kernel *kernel, const losslib_call *call, int scale_type, void *workspace, void *stream);
int NAME_cuda_finish(int reduction, int type, const losslib_totals *totals, const void *upstream, const losslib_finished *out,
                     void *stream);
void shim_schedule(int schedule, int seed);
"""
GUARD = 64


def compile_shim(folder: Path, out: Path, flags: Sequence[str] = ("-O0",), only: Sequence[str] = (), cached: bool = True) -> Path:
    """Compile the .cu files of a library; the shared library. `only`: the names of losses, where the driver is told of no others."""
    out.mkdir(parents=True, exist_ok=True)
    sources = sorted(folder.glob("*.cu"))
    if only:
        sources = [s for s in sources if s.stem in only or s.stem.endswith("_cuda")]
    common = digest(SHIM.read_bytes(), *(p.read_bytes() for p in sorted(folder.glob("*.*h"))), *flags, *FLAGS[1:-1])

    def one(source: Path) -> str:
        target, store = out / f"{source.stem}.o", Store("objects")
        key = digest(common, source.read_bytes())
        known = store.get(key) if cached else None
        if known is not None:
            target.write_bytes(known)
            return str(target)
        command = [str(GXX), *FLAGS, f"-DLOSSLIB_THREADS={THREADS}", *flags, "-c", str(source), "-o", str(target)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, f"{source.name} does not compile:\n{done.stderr[:3000]}"
        if cached:
            store.put(key, target.read_bytes())
        return str(target)

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(one, sources))
    made = out / "_shim.so"
    sanitizers = [f for f in flags if f.startswith("-fsanitize")]
    subprocess.run([str(GXX), "-shared", *sanitizers, *objects, "-o", str(made)], check=True, capture_output=True, text=True)
    return made


STREAM = 0x5eed                                  # what the stand-in for torch's CUDA library gives as the current stream
STAND_IN = f"int aoti_torch_get_current_cuda_stream(int index, void **stream) {{ (void)index; *stream = (void *){STREAM}; return 0; }}"


def compile_binding(library: Path, out: Path, name: str, change: tuple[str, str] | None = None, flags: Sequence[str] = ("-O0",)) -> Path:
    """The Python files of an emitted library under another name, with the torch operators for a GPU, for CPU tensors; their folder.

    Beside it is what stands for torch's CUDA library. `change`: a text of cuda.cpp, and what is put in its place.
    """
    torch = Path(importlib.import_module("torch").__file__ or "").parent / "lib"
    package = out / "src" / name
    for path in library.rglob("*.py"):
        target = package / path.relative_to(library)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(path.read_text().replace(library.name, name))
    text = (library / "torch" / "csrc" / "cuda.cpp").read_text()
    assert change is None or change[0] in text, "the fault has no place any more"
    (out / "cuda.cpp").write_text(text.replace(*change) if change else text)
    (out / "stand_in.c").write_text(STAND_IN)
    here = library / "torch" / "csrc"
    include = ["-I", str(here), "-I", str(library / "include"), "-I", str(library / "cuda")]
    common = [str(GXX), "-shared", "-fPIC", "-Wall", "-Wextra", "-Wno-unused-function", *flags]
    for command in (
        [*common, "-x", "c", str(out / "stand_in.c"), "-Wl,-soname,libtorch_cuda.so", "-o", str(out / "libtorch_cuda.so")],
        [*common, "-Werror", "-std=c++17", "-fvisibility=hidden", f'-DLOSSLIB_NAMESPACE="{name}"', '-DLOSSLIB_CUDA_KEY="CPU"', *include,
         str(here / "schemas.cpp"), str(out / "cuda.cpp"), "-o", str(package / "torch" / "_operators.so"), "-L", str(torch),
         "-Wl,--no-as-needed", "-ltorch_cpu", "-ldl", "-Wl,-z,defs", "-Wl,--unresolved-symbols=ignore-in-shared-libs"],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, f"{name} does not compile:\n{done.stderr[:3000]}"
    return out / "src"


def partial_library(source: Path, folder: Path, names: Sequence[str]) -> Path:
    """The sources of some losses, with a driver that knows of no others."""
    folder.mkdir(parents=True)
    for path in source.iterdir():
        if path.stem in names or path.suffix in (".h", ".cuh"):
            shutil.copy(path, folder)
    driver = (source / "losslib_cuda.cu").read_text()
    gone = [p.stem for p in source.glob("*.cu") if p.stem not in (*names, "losslib_cuda")]
    named = {f'extern "C" const losslib_kernel losslib_kernels_of_{name}[];' for name in gone}
    named |= {f"    losslib_kernels_of_{name}," for name in gone}
    (folder / "losslib_cuda.cu").write_text("\n".join(line for line in driver.splitlines() if line not in named) + "\n")
    return folder


def narrow(array: np.ndarray, storage: str) -> np.ndarray:
    """Real numbers as a type stores them; bfloat16 as 16 bits. What is stored so already stays where it is, layout and all."""
    if array.dtype == storage:
        return array
    whole = tuple(slice(0, 1) if s == 0 and n else slice(None) for s, n in zip(array.strides, array.shape, strict=True))
    core = array[whole]
    if storage == "bfloat16":
        bits = core.astype(np.float32).view(np.uint32) if core.flags.c_contiguous else np.array(core, np.float32, order="K").view(np.uint32)
        rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
        made = np.where(np.isnan(core), np.uint16(0x7FFF), rounded)
    else:
        made = core.astype(storage, order="K")
    return np.broadcast_to(made, array.shape)


def widen(array: np.ndarray, storage: str) -> np.ndarray:
    """What was stored, in the type of arithmetic."""
    if storage == "bfloat16":
        return (array.astype(np.uint32) << 16).view(np.float32).reshape(array.shape)
    return array.astype(np.float32) if storage == "float16" else array


class Refused(Exception):
    """A call returned a status."""


class ShimBackend:
    """Runs kernels as the backends of the library do. `storage`: what float32 arrays are stored as; `team`: the threads of a row."""

    name = "cuda on a CPU"
    checks_values = True                         # the kernels do
    plans = False

    def __init__(self, path: Path, package: str = "losslib", storage: str = "float32") -> None:
        self.ffi = cffi.FFI()
        self.ffi.cdef(CDEF.replace("NAME", package))
        self.lib = self.ffi.dlopen(str(path))
        self.package, self.storage = package, storage
        self.team = 0
        self.wide_scale = False
        self.used: set[str] = set()                      # the kernels that were run

    def function(self, name: str) -> Any:
        return getattr(self.lib, f"{self.package}_cuda_{name}")

    def schedule(self, schedule: int, seed: int = 0) -> None:
        """0 forward, 1 backward, 2 random."""
        self.lib.shim_schedule(schedule, seed)

    def run(self, loss: str, kernel: str, form: Any, problem: Any, extra: Mapping[str, np.ndarray], params: Mapping[str, Any],
            want: frozenset[str], out: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Compute the outputs in `want`, and every total."""
        storage = "float64" if problem.dtype == np.float64 else self.storage
        stored = np.dtype(np.uint16 if storage == "bfloat16" else storage)
        found = self.function("find")(f"{loss}.{kernel}".encode(), TYPES[storage])
        assert found != self.ffi.NULL, f"there is no {loss}.{kernel}"
        self.used.add(f"{loss}.{kernel}")
        call = self.ffi.new("losslib_call *")
        batch, kept = problem.batch, []
        call.ndim, call.threads = len(batch), self.team
        call.shape[0:len(batch)] = batch
        for k, axis in enumerate(self.names("axis_name", found)):
            call.sizes[k] = problem.sizes[axis]
        for k, name in enumerate(form.params):
            call.params[k] = params[name]
        order = list(self.names("argument_name", found))
        assert order == [*form.inputs, *form.outputs, *form.params]
        inputs = {i.name: i for i in problem.form.inputs}

        def point(k: int, array: np.ndarray, depth: int) -> None:
            kept.append(array)
            call.data[k] = self.ffi.cast("void *", array.__array_interface__["data"][0]) if array.size else self.ffi.NULL
            for d, stride in enumerate(array.strides):
                if d < depth:
                    call.strides[k][d] = stride // array.itemsize
                else:
                    call.axis_strides[k][d - depth] = stride // array.itemsize

        for k, name in enumerate(form.inputs):
            i = inputs.get(name.removeprefix("direction_"))
            per_sample = i is None or i.per_sample
            array = extra[name] if name in extra else problem.arrays[name]
            full = (batch if per_sample else ()) + (() if i is None else tuple(problem.sizes[a] for a in i.axes))
            if array is None:
                assert i is not None
                array = np.broadcast_to(problem.dtype.type(i.default), full)
            array = np.broadcast_to(array, full)
            if array.dtype.kind == "f" and not (self.wide_scale and name.startswith("scale")):
                array = narrow(array, storage)
            point(k, array, len(batch) if per_sample else 0)
        results: dict[str, np.ndarray] = {}
        for k, name in enumerate(form.outputs, len(form.inputs)):
            i = inputs.get(name.partition("_")[2])
            if name.startswith("total_"):
                results[name] = np.full((), np.nan)
                point(k, results[name], 0)
            elif name in want and i is not None and not i.per_sample:
                results[name] = np.full(tuple(problem.sizes[a] for a in i.axes), np.nan)
                point(k, results[name], 0)
            elif name in want:
                shape = batch + (() if i is None else tuple(problem.sizes[a] for a in i.axes))
                results[name] = np.full(shape, 0x7FFF if storage == "bfloat16" else np.nan, stored)
                point(k, results[name], len(batch))
        self.compute(found, call, 0 if self.wide_scale and storage != "float64" else TYPES[storage])
        return {name: widen(array, storage) if array.dtype == stored and not name.startswith("total_") else array.astype(
            np.float64 if name.startswith("total_") else problem.dtype) for name, array in results.items()}

    def names(self, function: str, kernel: Any) -> Any:
        """What the library calls things, until there are no more."""
        for k in range(99):
            name = self.function(function)(kernel, k)
            if name == self.ffi.NULL:
                return
            yield self.ffi.string(name).decode()

    def compute(self, kernel: Any, call: Any, scale_type: int) -> None:
        """With a workspace of noise, and behind it what must stay as it is."""
        size = self.function("workspace")(kernel, call)
        room = np.full(size + GUARD, 0xFF, np.uint8)
        status = self.function("compute")(kernel, call, scale_type, self.ffi.from_buffer(room) if size else self.ffi.NULL, self.ffi.NULL)
        if status:
            raise Refused(status)
        assert (room[size:] == 0xFF).all(), "a kernel writes behind its workspace"


def losses(backend: ShimBackend, package: str = "losslib") -> dict[str, Any]:
    """The functions of a library on this backend."""
    classes: dict[str, str] = importlib.import_module(f"{package}.numpy")._CLASSES
    return {name: getattr(importlib.import_module(f"{package}.losses.{name}"), word)(backend) for name, word in classes.items()}

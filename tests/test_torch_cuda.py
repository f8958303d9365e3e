"""The torch operators on a GPU without a GPU: the same binding, serving CPU tensors in a namespace of its own, over the CUDA kernels as
cuda/shim.h runs them. From the functions that users call through autograd, dispatcher, binding and launches to the kernels.

What this cannot see: the current device and stream of a real GPU, its allocator, and what the tests of the kernels cannot see.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from filelock import FileLock
from shim import GXX, STREAM, compile_binding, compile_shim
from test_cuda import FOLDER, needs_gxx, partial_library

torch = pytest.importorskip("torch", reason="the operators on a GPU are NOT TESTED: PyTorch is not installed")

import torch.nn.functional as F  # noqa: E402
from torchcases import DTYPES, REDUCTIONS, cases, disagreements, promote, results  # noqa: E402

LIBRARY = FOLDER.parent
BINDING = LIBRARY / "torch" / "csrc" / "cuda.cpp"
CASES = cases()
pytestmark = needs_gxx


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """losslib.torch under another name, whose operators serve CPU tensors as those of a GPU."""
    out = tmp_path_factory.mktemp("device")
    with FileLock(out.parent.parent / "shim.lock"):
        kernels = compile_shim(FOLDER, out)
    return load(out, kernels, "shimlib")


def load(out: Path, kernels: Path, name: str, change: tuple[str, str] | None = None, flags: Sequence[str] = ("-O0",)) -> Any:
    """The torch module of a library whose binding is compiled for the shim, and the library of the kernels as `.kernels`."""
    src = compile_binding(LIBRARY, out, name, change, flags)
    sys.path.insert(0, str(src))
    try:
        made = importlib.import_module(f"{name}.torch")
    finally:
        sys.path.remove(str(src))
    ctypes.CDLL(str(out / "libtorch_cuda.so"))
    attach = ctypes.CDLL(str(src / name / "torch" / "_operators.so")).losslib_torch_cuda
    attach.restype = ctypes.c_char_p
    assert attach(str(kernels).encode()) == b""
    runtime = importlib.import_module(f"{name}.torch._runtime")
    runtime.WIDENED, runtime.KEPT = (), ()               # as on a GPU
    made.runtime, made.kernels = runtime, ctypes.CDLL(str(kernels))
    made.kernels.shim_stream.restype = ctypes.c_void_p
    return made


@pytest.fixture
def no_composite(device: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The same, where only kernels may answer."""
    monkeypatch.setattr(device.runtime, "composite", None)
    return device


def wrong(device: Any, name: str, dtype: torch.dtype, reductions: tuple[str, ...] = REDUCTIONS) -> list[str]:
    """How a case differs from PyTorch in float64."""
    if name == "shared":
        return [said for reduction in reductions for said in shared(device, dtype, reduction)]
    case = CASES[name]
    found = []
    for reduction in reductions:
        truth = results(getattr(F, case.loss), case, reduction, torch.float64)
        mine = results(getattr(device, case.loss), case, reduction, dtype)
        found += [f"{reduction}, {said}" for said in disagreements(mine, truth, dtype)]
    return found


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_agrees_with_pytorch(name: str, dtype: torch.dtype, no_composite: Any) -> None:
    """Value, gradients, and second derivatives through double backward, with every reduction, in every type."""
    before = no_composite.kernels.shim_launches()
    assert not wrong(no_composite, name, dtype)
    assert no_composite.kernels.shim_launches() > before


def test_everything_goes_into_the_current_stream(device: Any) -> None:
    x = torch.randn(3000, requires_grad=True)                # several blocks: a launch that adds them up, one that finishes
    for step in (lambda: device.mse_loss(x, x + 1), lambda: device.mse_loss(x, x + 1).backward(),
                 lambda: device.cross_entropy.hvp(torch.randn(4, 3), torch.zeros(4, dtype=torch.int64), torch.randn(4, 3))):
        before = device.kernels.shim_launches()
        step()
        assert device.kernels.shim_launches() > before and device.kernels.shim_stream() == STREAM


def test_how_many_launches_a_call_takes(no_composite: Any) -> None:
    """Those that docs/cuda.md speaks of: the kernel, one that adds up what blocks leave, one that finishes the reduction."""
    def launches(f: Any) -> int:
        before = no_composite.kernels.shim_launches()
        f()
        return int(no_composite.kernels.shim_launches() - before)

    gather = promote(CASES["a gather"], torch.float32)
    for count, forward, backward in ((100, 2, 2), (3000, 3, 2)):
        x = torch.randn(count, requires_grad=True)
        value: list[Any] = []
        assert launches(lambda x=x, value=value: value.append(no_composite.mse_loss(x, x.detach() + 1))) == forward
        assert launches(value[0].backward) == backward
    assert launches(lambda: value.append(no_composite.nll_loss(**gather))) == 2 and launches(value[-1].backward) == 3


def test_gradients_of_float16_are_rounded_once(no_composite: Any) -> None:
    """A gradient of 1e-8 is 0 in float16; times the 65536 of loss scaling it is not, if it is multiplied before it is rounded."""
    x, y = (torch.rand(4000, generator=torch.Generator().manual_seed(k)).half() for k in range(2))
    x.requires_grad_()
    for scale in (1.0, 65536.0 / 4):
        mine, = torch.autograd.grad(no_composite.mse_loss(x, y), x, torch.tensor(scale).half())
        truth = 2 * (x.detach().double() - y.double()) / 4000 * scale
        torch.testing.assert_close(mine.double(), truth, rtol=2.0**-10, atol=2.0**-25)
    assert mine.dtype == torch.float16 and (mine != 0).sum() > 3990


@pytest.mark.parametrize("name", ["rows", "a variance", "vectors"])
def test_past_the_autograd_engine(name: str, no_composite: Any) -> None:
    """value_and_grad, grad and hvp give what autograd gives."""
    case = CASES[name]
    given, f = promote(case, torch.float64), getattr(no_composite, case.loss)
    truth = getattr(F, case.loss)(**given, **case.more)
    gradients = torch.autograd.grad(truth, [given[n] for n in case.moving], create_graph=True)
    ways = {n: torch.ones_like(given[n]) / 4 for n in case.moving}
    products = torch.autograd.grad(gradients, [given[n] for n in case.moving], list(ways.values()))
    plain = {n: t.detach() for n, t in given.items()}
    value, found = f.value_and_grad(**plain, **case.more, wrt=tuple(case.moving))
    close = lambda mine, theirs: torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-14)
    close(value, truth.detach())
    for mine in (found, f.grad(**plain, **case.more, wrt=tuple(case.moving))):
        close(tuple(mine), tuple(g.detach() for g in gradients))
    close(tuple(f.hvp(**plain, **case.more, direction=ways)), tuple(products))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_by_what_samples_share(dtype: torch.dtype, reduction: str, no_composite: Any) -> None:
    assert not shared(no_composite, dtype, reduction)


def shared(device: Any, dtype: torch.dtype, reduction: str) -> list[str]:
    """What is wrong with derivatives by weights of classes, which PyTorch has none by: autograd of the formula, written out, has."""
    x, weight = CASES["rows"].tensors["input"].to(dtype), CASES["rows"].tensors["weight"].to(dtype).clone().requires_grad_()
    target = CASES["rows"].tensors["target"]
    value = device.cross_entropy(x, target, weight, reduction=reduction)
    upstream = torch.ones_like(value) / 4
    mine, = torch.autograd.grad(value, weight, upstream, retain_graph=True)
    first, = torch.autograd.grad(value, weight, upstream, create_graph=True)
    second, = torch.autograd.grad(first, weight, torch.ones_like(weight) / 2)
    w = weight.detach().double().requires_grad_()
    kept, at = target != -100, target.clamp(min=0)
    losses = torch.where(kept, -torch.log_softmax(x.double(), 1).gather(1, at[:, None])[:, 0] * w[at], 0)
    total = losses if reduction == "none" else losses.sum() if reduction == "sum" else losses.sum() / w[target[kept]].sum()
    truth, = torch.autograd.grad(total, w, upstream.double(), create_graph=True)
    curve = torch.zeros_like(w) if reduction != "mean" else torch.autograd.grad(truth, w, torch.ones_like(w) / 2)[0]
    return list(disagreements({"gradient": mine, "again": first.detach(), "second": second},
                              {"gradient": truth.detach(), "again": truth.detach(), "second": curve}, dtype))


def test_compiled_and_traced(no_composite: Any) -> None:
    """A graph without breaks gives the same bits; the operators are what torch.library asks of operators."""
    case = CASES["rows"]
    given = promote(case, torch.float16)

    def step(x: Any) -> Any:
        return no_composite.cross_entropy(x * 1, given["target"], given["weight"])

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    seen = [(f(given["input"]), *torch.autograd.grad(f(given["input"]), given["input"])) for f in (step, compiled)]
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True)) and seen[0][0].dtype == torch.float16
    x = torch.randn(3, 4, requires_grad=True)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(torch.ops.shimlib.huber_loss.default, (x, torch.randn(3, 4), None, 1, 1.0), test_utils=checks)


# What is refused

x, y = torch.arange(6.0).reshape(2, 3), torch.ones(2, 3)
zeros = torch.zeros(2, dtype=torch.int64)
BAD_CALLS = {
    "another shape": (lambda op: op.huber_loss(x, y[:, :2], None, 1, 1.0), "target does not have the shape"),
    "a type of its own": (lambda op: op.huber_loss(x, y.half(), None, 1, 1.0), "target does not have the shape or the type"),
    "a short weight": (lambda op: op.cross_entropy(x, zeros, y[0, :2], 1, -100, 0.0), "not have the shape"),
    "integers": (lambda op: op.huber_loss(x.int(), y.int(), None, 1, 1.0), "float32, float64, float16 and bfloat16"),
    "a bad scalar": (lambda op: op.huber_loss(x, y, None, 1, -1.0), "a scalar outside its domain"),
    "no classes": (lambda op: op.cross_entropy(x[:, :0], zeros, None, 1, -100, 0.0), "an index out of range"),
    "no such reduction": (lambda op: op.huber_loss(x, y, None, 9, 1.0), "no such reduction"),
    "upstream of another shape": (lambda op: op.huber_loss_grad(x[0], x, y, None, 1, 1.0, 1), "upstream gradient"),
    "upstream of another type": (lambda op: op.huber_loss_grad(x.sum().double(), x, y, None, 1, 1.0, 1), "upstream gradient"),
    "a direction too few": (lambda op: op._huber_loss_hvp(x.sum(), [], 1, x, y, None, 1, 1.0, 1), "a direction for each"),
    "a direction of another shape": (lambda op: op._huber_loss_hvp(x.sum(), [x[0]], 1, x, y, None, 1, 1.0, 1), "input does not have"),
    "what has no gradient": (lambda op: op._huber_loss_fused(x, y, None, 1, 1.0, 4), "no derivative by weight"),
    "too many dimensions": (lambda op: op.huber_loss(x.reshape([1] * 12 + [6]), y.reshape([1] * 12 + [6]), None, 1, 1.0), "dimensions"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_operators_refuse_what_would_be_read_out_of_bounds(name: str, device: Any) -> None:
    """Called as a compiled graph calls them; nothing is launched."""
    assert device.huber_loss(x, y) and device.cross_entropy(x, zeros)
    call, words = BAD_CALLS[name]
    before = device.kernels.shim_launches()
    with pytest.raises(RuntimeError, match=words):
        call(torch.ops.shimlib)
    assert device.kernels.shim_launches() == before


def test_a_bad_scalar_is_explained(device: Any) -> None:
    for dtype in DTYPES:
        with pytest.raises(ValueError, match="delta"):
            device.huber_loss(x.to(dtype), y.to(dtype), delta=-1.0)


@pytest.mark.parametrize("bad", [-1, 3, 2**40])
def test_an_index_out_of_range_ends_the_launch(bad: int, device: Any, capfd: pytest.CaptureFixture[str]) -> None:
    """The kernel prints what is wrong; on a GPU the error comes with this call or a later one, as that of an assertion of PyTorch."""
    with pytest.raises(RuntimeError, match=r"CUDA error, perhaps of an earlier call: unspecified launch failure"):
        device.cross_entropy(x, torch.tensor([0, bad]))
    assert f"target: the index {bad} is outside [0, 3)" in capfd.readouterr().out
    assert device.cross_entropy(x, zeros)


# The binary

def undefined(path: Path) -> dict[str, str]:
    """The symbols that a shared library looks for elsewhere, and how: U must be there, w may be missing."""
    said = subprocess.run([str(shutil.which("nm")), "-D", "--undefined-only", str(path)], capture_output=True, text=True, check=True).stdout
    return {line.split()[-1].partition("@")[0]: line.split()[-2] for line in said.splitlines()}


@pytest.mark.skipif(not (shutil.which("nm") and shutil.which("ldd")),
                    reason="NOT CHECKED: what the binding is linked with; there is no nm or ldd")
def test_one_binary_for_every_torch() -> None:
    """What the binding needs of torch is in libtorch_cpu and declared in shim.h; nothing of CUDA and nothing weak; no symbol is missing."""
    binary = LIBRARY / "torch" / "_operators.so"
    torchs = Path(torch.__file__).parent / "lib"
    declared = set(re.findall(r"\b((?:aoti_)?torch_\w+)\(", (LIBRARY / "torch/csrc/shim.h").read_text()))
    looked_for = undefined(binary)
    of_torch = {name: kind for name, kind in looked_for.items() if "torch" in name}
    assert of_torch.keys() == declared and set(of_torch.values()) == {"U"}
    assert not [name for name in looked_for if re.match(r"_*(cuda|cu[A-Z]|nv)", name)]
    weak = {name for name, kind in looked_for.items() if kind in "wv"}
    assert weak <= {"__gmon_start__", "_ITM_deregisterTMCloneTable", "_ITM_registerTMCloneTable", "__cxa_finalize",
                    "__cxa_thread_atexit_impl", "__pthread_key_create", "pthread_create"}
    said = subprocess.run(["ldd", "-r", str(binary)], capture_output=True, text=True, env={**os.environ, "LD_LIBRARY_PATH": str(torchs)})
    assert "libtorch_cpu.so => " in said.stdout
    assert "undefined symbol" not in said.stdout + said.stderr and "not found" not in said.stdout


def test_the_binding_asks_for_what_the_kernels_export(device: Any) -> None:
    """Every name that is looked up at run time: in the header of the kernels, in their library, and in torch's own headers."""
    names = set(re.findall(r'take\(\w+, "(\w+)"', BINDING.read_text()))
    header = (FOLDER / "losslib_cuda.h").read_text()
    of_torch = {name for name in names if "torch" in name}
    assert of_torch == {"aoti_torch_get_current_cuda_stream"} and len(names) == 8
    for name in names - of_torch:
        assert re.search(rf"\b{name}\(", header) and getattr(device.kernels, name)


def test_the_stream_is_asked_for_as_torch_declares_it(tmp_path: Path) -> None:
    source = tmp_path / "trial.cpp"
    include = Path(torch.__file__).parent / "include"
    for returns, fits in (("StreamOfDevice", True), ("int32_t (*)(int64_t, void **)", False)):
        source.write_text('#include <type_traits>\n#include <torch/csrc/inductor/aoti_torch/c/shim.h>\n#include "shim.h"\n'
                          f"static_assert(std::is_same_v<decltype(&aoti_torch_get_current_cuda_stream), {returns}>);\n")
        done = subprocess.run([str(GXX), "-std=c++17", "-fsyntax-only", "-DUSE_CUDA", "-I", str(include), "-I", str(BINDING.parent),
                               str(source)], capture_output=True, text=True)
        assert (done.returncode == 0) == fits, done.stderr


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, T: Any) -> None:
    """By the function that users ask, and by the binding where a tensor comes all the same."""
    loader = importlib.import_module("losslib.torch._load")
    for version, made, words in ((None, False, "built without CUDA"), ("13.0", False, "run `losscomp build --cuda`"), ("13.0", True, "")):
        loader.cuda_missing.cache_clear()
        monkeypatch.setattr(torch.version, "cuda", version)
        monkeypatch.setattr(loader, "CUDA", tmp_path / "_cuda.so")
        if made:
            (tmp_path / "_cuda.so").write_text("")
        assert words in T.cuda_missing() and bool(words) == bool(T.cuda_missing())
    loader.cuda_missing.cache_clear()
    for name, path, words in (("none", "no_such.so", "not compiled"), ("broken", str(BINDING), "do not load"),
                              ("another", str(tmp_path / "empty.so"), "lack the function losslib_cuda_find")):
        if name == "another":
            subprocess.run([str(GXX), "-shared", "-x", "c++", os.devnull, "-o", path], check=True)
        program = (f"import ctypes, torch\nf = ctypes.CDLL({str(LIBRARY / 'torch/_operators.so')!r}).losslib_torch_cuda\n"
                   f"f.restype = ctypes.c_char_p\nprint(f({path!r}.encode()).decode())")
        said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
        assert words in said, said


def test_which_tensors_the_kernels_serve(monkeypatch: pytest.MonkeyPatch, T: Any) -> None:
    """Of one GPU, if the kernels are there; of the CPU; of no other device, and of no two."""
    runtime = importlib.import_module("losslib.torch._runtime")
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True):
        gpu, other, cpu, xpu = (torch.empty(3, device=d) for d in ("cuda:0", "cuda:1", "cpu", "xpu"))
    for missing in ("", "a reason"):
        monkeypatch.setattr(runtime, "CUDA_MISSING", missing)
        assert runtime.has_kernels((cpu, None)) and runtime.has_kernels((gpu, None, gpu)) == (missing == "")
        assert not any(runtime.has_kernels(t) for t in ((gpu, other), (gpu, cpu), (cpu, gpu), (xpu,)))


# Faults that are put into the binding must be seen

FAULTS = {
    "a denominator that is not measured": ("a gather", "reduction_ != MEAN || form_->weigh == COUNTED", "true || form_->weigh == COUNTED"),
    "another denominator": ("rows", "if (!counted_ && !have(WEIGHT_CELL)) run", "if (!counted_) (void)"),
    "no upstream": ("pointwise", "upstream_ = &upstream;", "(void)upstream;"),
    "scales of another type": ("pointwise", "reduction_ == NONE || type_ == LOSSLIB_FLOAT64", "type_ == LOSSLIB_FLOAT64"),
    "no rates": ("shared", "scaled_ = true, rated_ = rates;", "scaled_ = true, rated_ = false;"),
    "cells of each other": ("shared", "cell(SCALE_CELLS + part - UPSTREAM)", "cell(SCALE_CELLS)"),
    "the first direction": ("a variance", "way_of(*ways_, moving_, i)", "way_of(*ways_, moving_, 0)"),
    "no direction": ("vectors", "if (moving_ >> i & 1) point(call, k, way_of", "if (false) point(call, k, way_of"),
    "no value": ("pointwise", "out.value = result.write();", ""),
    "a gradient that is not rounded": ("shared", 'ok(aoti_torch_copy_(rounded[k]->get(), wide[k].get(), 1), "round a gradient")', "{}"),
    "no room": ("several blocks", "bytes > 0)", "bytes > 99999999)"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_in_the_binding_are_seen(fault: str, tmp_path: Path, device: Any) -> None:
    name, *change = FAULTS[fault]
    spoilt = load(tmp_path, Path(device.kernels._name), f"shimlib_{list(FAULTS).index(fault)}", (change[0], change[1]))
    assert not any(wrong(device, name, dtype) for dtype in (torch.float32, torch.float16))
    try:
        said = [w for dtype in (torch.float32, torch.float16) for w in wrong(spoilt, name, dtype)]
    except RuntimeError as error:
        said = [str(error)]
    assert said, "nobody sees this fault"


# Sanitizers

PROGRAM = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[1:4]
import torch
from test_torch_cuda import load, wrong
device = load(Path(sys.argv[4]), Path(sys.argv[5]), "shimlib", flags=sys.argv[6].split())
found = [w for name in sys.argv[7:] for dtype in (torch.float32, torch.float16) for w in wrong(device, name, dtype)]
print("found", found)
"""
SANITIZED = {"huber_loss": ("pointwise", "transposed"), "nll_loss": ("a gather", "a plain gather"),
             "cosine_embedding_loss": ("vectors",), "cross_entropy": ("shared", "classes first"), "mse_loss": ("several blocks", "nothing")}


def test_nothing_is_read_or_written_out_of_bounds(tmp_path: Path) -> None:
    """Binding and kernels under AddressSanitizer and UndefinedBehaviorSanitizer."""
    runtime = subprocess.run([str(GXX), "-print-file-name=libasan.so"], capture_output=True, text=True).stdout.strip()
    if not Path(runtime).is_absolute():
        pytest.skip("NOT CHECKED: the binding of the CUDA kernels under sanitizers; this compiler has no libasan.so")
    flags = ["-O0", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    kernels = compile_shim(partial_library(FOLDER, tmp_path / "kernels", tuple(SANITIZED)), tmp_path / "out", flags)
    environment = {**os.environ, "LD_PRELOAD": runtime, "ASAN_OPTIONS": "detect_leaks=0", "PYTHONMALLOC": "malloc"}
    names = [name for group in SANITIZED.values() for name in group]
    places = [str(p) for p in (ROOT, ROOT / "tests", LIBRARY.parent, tmp_path / "out", kernels)]
    done = subprocess.run([sys.executable, "-c", PROGRAM, *places, " ".join(flags), *names], capture_output=True, text=True,
                          env=environment)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "found []", done.stdout[-2000:] + done.stderr[-4000:]

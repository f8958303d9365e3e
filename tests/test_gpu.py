"""The torch operators on a GPU: `make gpu`. Where there is none, every test here is skipped, and its reason says what nobody checked."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import ROOT

torch = pytest.importorskip("torch", reason="the operators on a GPU are NOT TESTED: PyTorch is not installed")

import torch.nn.functional as F  # noqa: E402
from torchcases import DTYPES, REDUCTIONS, cases, disagreements, promote, results  # noqa: E402

CASES = cases()
NOT_CHECKED = "NOT CHECKED on a GPU: results of the CUDA kernels, streams, graphs, torch.compile, what an index out of range does"
pytestmark = pytest.mark.gpu


@pytest.fixture
def gpu(T: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """losslib.torch, on a machine where it serves a GPU, and where only kernels may answer."""
    if not torch.cuda.is_available():
        pytest.skip(f"{NOT_CHECKED}; there is no GPU that PyTorch could use")
    if T.cuda_missing():
        pytest.skip(f"{NOT_CHECKED}; {T.cuda_missing()}")
    monkeypatch.setattr(importlib.import_module("losslib.torch._runtime"), "composite", None)
    yield T
    torch.cuda.synchronize()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_agrees_with_pytorch(name: str, dtype: torch.dtype, gpu: Any) -> None:
    """Value, gradients and second derivatives, against PyTorch in float64 on the CPU."""
    case = CASES[name]
    for reduction in REDUCTIONS:
        truth = results(getattr(F, case.loss), case, reduction, torch.float64)
        mine = results(getattr(gpu, case.loss), case, reduction, dtype, "cuda")
        assert not list(disagreements(mine, truth, dtype)), reduction
        again = results(getattr(gpu, case.loss), case, reduction, dtype, "cuda")
        assert all(torch.equal(a.nan_to_num(), again[k].nan_to_num()) for k, a in mine.items()), "not the same bits twice"


@pytest.mark.parametrize("name", ["pointwise", "several blocks", "rows", "a gather", "vectors"])
def test_nothing_waits_for_the_gpu(name: str, gpu: Any) -> None:
    """Forward, backward and double backward are captured in a graph, which no synchronisation may be part of; its replay is right."""
    case = CASES[name]
    f = getattr(gpu, case.loss)
    expected = results(f, case, "mean", torch.float32, "cuda")
    given = promote(case, torch.float32, "cuda")
    inputs, upstream = [given[n] for n in case.moving], torch.full((), 0.25, device="cuda")

    def step() -> list[Any]:
        value = f(**given, **case.more)
        gradients = torch.autograd.grad(value, inputs, upstream, create_graph=True)
        return [value, *gradients, *torch.autograd.grad(gradients, inputs, [torch.ones_like(g) for g in gradients], allow_unused=True)]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = step()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(kept[0], expected["value"])
    for n, mine in zip(case.moving, kept[1:], strict=False):
        assert torch.equal(mine, expected[f"gradient by {n}"])


def test_the_current_stream_is_used(gpu: Any) -> None:
    """What a side stream writes late is what a loss on that stream reads."""
    x, y = torch.zeros(1 << 20, device="cuda"), torch.ones(1 << 20, device="cuda")
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(200_000_000)
        x.add_(2)
        value = gpu.mse_loss(x, y)
    side.synchronize()
    assert value.item() == 1


def test_more_elements_than_32_bits_count(gpu: Any) -> None:
    count = 2**31 + 24
    if torch.cuda.mem_get_info()[0] < 4 * count:
        pytest.skip("NOT CHECKED on a GPU: arrays of more than 2**31 elements; this one has too little memory")
    x = torch.zeros(count, dtype=torch.float16, device="cuda")
    x[-1] = 3
    value, (slope,) = gpu.mse_loss.value_and_grad(x, x.new_zeros(1).expand(count), reduction="sum", wrt="input")
    assert value.item() == 9 and slope[-1].item() == 6 and slope[:-1].abs().max().item() == 0


def test_another_gpu_than_the_current_one(gpu: Any) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("NOT CHECKED on a GPU: tensors on another GPU than the current one; there is only one")
    x, y = torch.ones(3, device="cuda:1"), torch.zeros(3, device="cuda:1", requires_grad=True)
    value = gpu.mse_loss(x, y)
    value.backward()
    assert value.device.index == 1 and value.item() == 1 and torch.cuda.current_device() == 0 and y.grad is not None
    with pytest.raises(RuntimeError, match="device"):
        torch.ops.losslib._mse_loss(x, y.detach().to("cuda:0"), None, 1)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_by_inductor(dynamic: bool, gpu: Any) -> None:
    labels = torch.zeros(8, dtype=torch.int64, device="cuda")

    def step(x: Any, n: Any) -> Any:
        return gpu.cross_entropy(x * 2, n, label_smoothing=0.125)

    compiled = torch.compile(step, fullgraph=True, dynamic=dynamic)
    for rows in (8, 5):
        x = torch.randn(rows, 11, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        seen = [(f(x, labels[:rows]), *torch.autograd.grad(f(x, labels[:rows]), x)) for f in (step, compiled)]
        for mine, theirs in zip(*seen, strict=True):
            torch.testing.assert_close(mine, theirs)


def test_an_index_out_of_range_is_an_error(gpu: Any) -> None:
    """In a process of its own: its GPU is lost with it."""
    program = (f"import sys; sys.path.insert(0, {str(ROOT / 'generated' / 'src')!r})\nimport torch, losslib.torch as T\n"
               "T.cross_entropy(torch.zeros(2, 3, device='cuda'), torch.tensor([0, 3], device='cuda'))\n"
               "torch.cuda.synchronize()\nprint('taken')")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode != 0 and "taken" not in done.stdout and "target: the index 3 is outside [0, 3)" in done.stdout


@pytest.mark.parametrize("on_gpu", [False, True])
def test_the_benchmark_runs(on_gpu: bool, request: pytest.FixtureRequest) -> None:
    """On the CPU to see that it does; what it says of a GPU is for `make gpu`."""
    if on_gpu:
        request.getfixturevalue("gpu")
    command = [sys.executable, str(ROOT / "tests/cuda/bench.py"), "--device", "cuda" if on_gpu else "cpu", "--elements", "1000", "--eager"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("huber_loss") == 2 * len(DTYPES) and "copy" in done.stdout

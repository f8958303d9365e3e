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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from shim import GXX, compile_binding, compile_shim
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


def load(out: Path, kernels: Path, name: str, change: tuple[str, str] | None = None) -> Any:
    """The torch module of a library whose binding is compiled for the shim, and the library of the kernels as `.kernels`."""
    src = compile_binding(LIBRARY, out, name, change)
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

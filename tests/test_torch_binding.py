"""The binding between PyTorch and the C kernels: its declarations, its checks, and what it offers past the autograd engine."""

from __future__ import annotations

import importlib
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import COMPILER

torch = pytest.importorskip("torch", reason="the binding to PyTorch is NOT TESTED: PyTorch is not installed")

LIBRARY = Path(__file__).resolve().parent.parent / "generated/src/losslib"
SHIM = LIBRARY / "torch/csrc/shim.h"
FIRST = "0x020a000000000000"                                 # torch 2.10, the oldest that is supported


def compiles(text: str, folder: Path) -> str:
    """What the compiler has to say against a C++ file beside torch's headers."""
    source = folder / "trial.cpp"
    source.write_text(text)
    include = Path(torch.__file__).parent / "include"
    done = subprocess.run([str(COMPILER), "-std=c++17", "-fsyntax-only", f"-DTORCH_TARGET_VERSION={FIRST}", "-I", str(include), "-I",
                           str(SHIM.parent), str(source)], capture_output=True, text=True)
    return done.stderr if done.returncode else ""


TORCHS_OWN = "#include <torch/csrc/inductor/aoti_torch/c/shim.h>\n#include <torch/csrc/stable/c/shim.h>\n"


@pytest.mark.skipif(COMPILER is None, reason="the declarations for torch are NOT TESTED: there is no compiler")
def test_declarations_are_those_of_torch(tmp_path: Path) -> None:
    """Both declare the same functions, or C++ would see overloads of functions with C linkage, which it refuses."""
    assert not compiles(TORCHS_OWN + '#include "shim.h"\n', tmp_path)
    wrong = SHIM.read_text().replace("int64_t *dim)", "int32_t *dim)")
    assert wrong != SHIM.read_text()
    (tmp_path / "wrong.h").write_text(wrong)
    assert "conflicting" in compiles(TORCHS_OWN + f'#include "{tmp_path / "wrong.h"}"\n', tmp_path)


@pytest.mark.skipif(COMPILER is None, reason="the functions of the oldest torch are NOT TESTED: there is no compiler")
def test_every_function_is_in_the_oldest_torch(tmp_path: Path) -> None:
    names = sorted(set(re.findall(r"\b((?:aoti_)?torch_\w+)\(", SHIM.read_text())))
    assert len(names) > 20
    used = "".join(f"    (void)&{name};\n" for name in names)
    assert not compiles(f"{TORCHS_OWN}void use() {{\n{used}}}\n", tmp_path)


def test_private_names_do_what_they_are_for(T: Any) -> None:
    compat = importlib.import_module("losslib.torch._compat")
    assert not (compat.transforms_active() or compat.autocast_active() or compat.dual_level())
    seen = []
    torch.func.grad(lambda x: (seen.append(compat.transforms_active()), x)[1])(torch.ones(()))
    with torch.autograd.forward_ad.dual_level():
        assert compat.dual_level()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert compat.autocast_active()

    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            return x * 2

        @staticmethod
        def backward(ctx: Any, upstream: Any) -> Any:
            return upstream * 2

    leaf = torch.ones((), requires_grad=True)
    compat.direct(Double)(leaf).backward()
    assert leaf.grad == 2

    class Own(torch.Tensor):
        pass

    assert seen == [True] and compat.any_override((torch.ones(1).as_subclass(Own),)) and not compat.any_override((torch.ones(1), None))


x, y = torch.arange(6.0).reshape(2, 3), torch.ones(2, 3)
BAD_CALLS = {
    "another shape": (lambda op: op.huber_loss(x, y[:, :2], None, 1, 1.0), "target does not have the shape"),
    "not expanded": (lambda op: op.huber_loss(x, y[:1], None, 1, 1.0), "target does not have the shape"),
    "a type of its own": (lambda op: op.huber_loss(x, y.double(), None, 1, 1.0), "target does not have the shape or the type"),
    "a short weight": (lambda op: op.cross_entropy(x, torch.zeros(2, dtype=torch.int64), y[0, :2], 1, -100, 0.0), "not have the shape"),
    "half precision": (lambda op: op.huber_loss(x.half(), y.half(), None, 1, 1.0), "float32 and float64"),
    "an index too large": (lambda op: op.cross_entropy(x, torch.full((2,), 3), None, 1, -100, 0.0), "index out of range in target"),
    "a bad scalar": (lambda op: op.huber_loss(x, y, None, 1, -1.0), "outside its domain in delta"),
    "no such reduction": (lambda op: op.huber_loss(x, y, None, 9, 1.0), "no such reduction"),
    "upstream of another shape": (lambda op: op.huber_loss_grad(x[0], x, y, None, 1, 1.0, 1), "upstream gradient"),
    "a direction too few": (lambda op: op._huber_loss_hvp(x.sum(), [], 1, x, y, None, 1, 1.0, 1), "a direction for each"),
    "a direction of another shape": (lambda op: op._huber_loss_hvp(x.sum(), [x[0]], 1, x, y, None, 1, 1.0, 1), "input does not have"),
    "what has no gradient": (lambda op: op._huber_loss_fused(x, y, None, 1, 1.0, 4), "no derivative by weight"),
    "too many dimensions": (lambda op: op.huber_loss(x.reshape([1] * 12 + [6]), y.reshape([1] * 12 + [6]), None, 1, 1.0), "dimensions"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_operators_refuse_what_would_be_read_out_of_bounds(name: str, T: Any) -> None:
    """Called as a compiled graph calls them, without the checks of the functions before them."""
    assert T.huber_loss(x, y) and T.cross_entropy(x, torch.zeros(2, dtype=torch.int64))
    call, words = BAD_CALLS[name]
    with pytest.raises(RuntimeError, match=words):
        call(torch.ops.losslib)


def test_past_the_autograd_engine(T: Any, targets: dict[str, Any]) -> None:
    """value_and_grad, grad and hvp give what the NumPy target gives, in the shapes of the arguments."""
    rng = np.random.default_rng(0)
    logits, labels, weight = rng.normal(size=(4, 3, 5)), rng.integers(0, 3, (4, 5)), rng.uniform(0.5, 2, 3)
    way = rng.normal(size=logits.shape)
    L = targets["numpy"].cross_entropy
    to = torch.from_numpy
    for reduction in ("none", "mean", "sum"):
        value, grads = T.cross_entropy.value_and_grad(to(logits), to(labels), to(weight), reduction=reduction, wrt=("weight", "input"))
        wanted, slopes = L.value_and_grad(logits, labels, weight=weight, reduction=reduction, wrt=("weight", "input"))
        assert not value.requires_grad and grads._fields == ("weight", "input")
        np.testing.assert_allclose(value, wanted, rtol=1e-14)
        np.testing.assert_allclose(grads.input, slopes.input, rtol=1e-13, atol=1e-18)
        np.testing.assert_allclose(grads.weight, slopes.weight, rtol=1e-13, atol=1e-16)
        product = T.cross_entropy.hvp(to(logits), to(labels), to(way), weight=to(weight), reduction=reduction).input
        np.testing.assert_allclose(product, L.hvp(logits, labels, way, weight=weight, reduction=reduction).input, rtol=1e-12, atol=1e-16)
    x, var = rng.normal(size=(4, 3)), rng.uniform(0.5, 2, 4)
    grads = T.gaussian_nll_loss.grad(to(x), to(x[:1] + 1), to(var), wrt=("target", "var"))
    slopes = targets["numpy"].gaussian_nll_loss.grad(x, x[:1] + 1, var, wrt=("target", "var"))
    for ours, theirs in zip(grads, slopes, strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=1e-13)


def test_results_do_not_depend_on_threads(T: Any) -> None:
    x, y = torch.randn(300_000), torch.randn(300_000)
    before = torch.get_num_threads()
    try:
        found = set()
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.add((T.huber_loss(x, y).item(), T.huber_loss.grad(x, y).input.numpy().tobytes()))
    finally:
        torch.set_num_threads(before)
    assert len(found) == 1


def test_a_direction_of_another_shape_is_an_error(T: Any) -> None:
    with pytest.raises(ValueError, match=r"direction of input has the shape \(3,\), input has \(2, 3\)"):
        T.huber_loss.hvp(x, y, torch.ones(3))
    with pytest.raises(ValueError, match="no derivative by 'delta'"):
        T.huber_loss.grad(x, y, wrt="delta")


def test_the_composite_gives_what_kernels_give(T: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of tensors that are not on the CPU, taken by some that are: no kernel is called, and the results are the same."""
    runtime = importlib.import_module("losslib.torch._runtime")
    x, y, v = (torch.randn(3, 4, dtype=torch.float64) for _ in range(3))
    var = torch.rand(3, dtype=torch.float64) + 0.5
    for reduction in ("none", "mean", "sum"):
        def results(reduction: str = reduction) -> list[torch.Tensor]:
            value, grads = T.gaussian_nll_loss.value_and_grad(x, y, var, reduction=reduction, wrt=("var", "input"))
            products = T.gaussian_nll_loss.hvp(x, y, var, {"input": v}, reduction=reduction)
            return [T.gaussian_nll_loss(x, y, var, reduction=reduction), value, *grads, *products]

        kernels = results()
        with monkeypatch.context() as patch:
            patch.setattr(runtime, "has_kernels", lambda tensors: False)
            for operator in ("_raw", "_fused", "_public", "_products"):
                patch.setattr(T.gaussian_nll_loss, operator, None)
            T.gaussian_nll_loss._known.clear()
            torch.testing.assert_close(results(), kernels, rtol=1e-13, atol=1e-15)
    assert runtime.has_kernels((x, None)) and runtime.has_kernels((x.to("meta"),))


def test_tensors_that_outlive_a_transform(T: Any) -> None:
    """What a function leaks out of torch.func.grad is a wrapper that nothing stands behind any more; losses take it as torch's do."""
    leaked: list[torch.Tensor] = []
    torch.func.grad(lambda x: (leaked.append(x), x.sum())[1])(torch.arange(3.0, dtype=torch.float64))
    for loss in (T.mse_loss, torch.nn.functional.mse_loss):
        for _ in range(2):                                       # with a layout that is new, and one that is known
            w = torch.ones(3, dtype=torch.float64, requires_grad=True)
            value = loss(leaked[0], w)
            value.backward()
            assert value.item() == pytest.approx(2 / 3) and w.grad is not None
            torch.testing.assert_close(w.grad, torch.tensor([2.0, 0.0, -2.0], dtype=torch.float64) / 3)

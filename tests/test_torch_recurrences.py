"""Systems of tables in PyTorch: what autograd, its transforms and torch.compile make of them; the class forms; ways to pass lengths."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from losscomp import catalogue
from losscomp.catalogue import forms_of, module_name
from losscomp.check import Checked, check
from losscomp.sampling import as_given, samples

DEFINITIONS = {name: d for name, d in catalogue.load(catalogue.builtin_definitions()).items() if forms_of(d)[0].tables}


def call_of(loss: str, dtype: torch.dtype = torch.float64) -> tuple[Checked, dict[str, Tensor]]:
    """Three samples, the first of which has all of its sequence."""
    (form,) = check(forms_of(DEFINITIONS[loss])[0])
    given = samples(form, "normal", 3, "float64", seed=7)
    for t in form.inputs:
        alone = sum(o.record.measures is not None for o in form.inputs) == 1
        if t.record.measures is not None and (alone or not any(o.record.length == t.name for o in form.inputs)):
            given[t.name][0] = next(s for o in form.inputs for a, s in zip(o.record.axes, given[o.name].shape[1:], strict=True)
                                    if a == t.record.measures and o.record.per_sample)
    tensors = {k: torch.from_numpy(v.copy()) for k, v in as_given(form, given).items()}
    return form, {k: v.to(dtype) if v.is_floating_point() else v for k, v in tensors.items()}


def bound(T: Any, loss: str, reduction: str = "mean") -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    """The loss as a function of its real tensors, by the derivative of its value; and these tensors."""
    form, tensors = call_of(loss)
    names = [t.name for t in form.differentiable]
    exact = {"normalized": False} if any(p.name == "normalized" for p in form.params) else {}

    def f(*moving: Tensor) -> Tensor:
        value = getattr(T, loss)(**{**tensors, **dict(zip(names, moving, strict=True))}, **exact, reduction=reduction)
        assert isinstance(value, Tensor)
        return value

    return f, tuple(tensors[n].clone().requires_grad_() for n in names)


@pytest.mark.parametrize("loss", DEFINITIONS)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_gradients_of_gradients(T: Any, loss: str, reduction: str) -> None:
    f, inputs = bound(T, loss, reduction)
    assert torch.autograd.gradcheck(f, inputs)
    assert torch.autograd.gradgradcheck(f, inputs)


@pytest.mark.parametrize("loss", DEFINITIONS)
def test_forward_mode_and_transforms(T: Any, loss: str) -> None:
    f, inputs = bound(T, loss)
    inputs = tuple(x.detach() for x in inputs)
    ways = tuple(torch.linspace(-1, 1, x.numel(), dtype=x.dtype).reshape(x.shape) for x in inputs)
    grads = torch.autograd.grad(f(*(x.requires_grad_() for x in inputs)), inputs)
    inputs = tuple(x.detach() for x in inputs)
    along = sum((g * w).sum() for g, w in zip(grads, ways, strict=True))
    value, rate = torch.func.jvp(f, inputs, ways)
    torch.testing.assert_close(value, f(*inputs))
    torch.testing.assert_close(rate, along)
    torch.testing.assert_close(torch.func.grad(f, argnums=tuple(range(len(inputs))))(*inputs), grads)
    with torch.autograd.forward_ad.dual_level():
        dual = f(*(torch.autograd.forward_ad.make_dual(x, w) for x, w in zip(inputs, ways, strict=True)))
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(dual).tangent, along)
    several = tuple(torch.stack([x, 2 * x]) for x in inputs)
    torch.testing.assert_close(torch.vmap(f)(*several), torch.stack([f(*inputs), f(*(2 * x for x in inputs))]))
    first = lambda x: f(x, *inputs[1:])
    hessian = torch.func.hessian(first)(inputs[0]).reshape(inputs[0].numel(), -1)
    torch.testing.assert_close(hessian, hessian.T, rtol=1e-9, atol=1e-11)
    x = inputs[0].requires_grad_()
    (grad,) = torch.autograd.grad(first(x), x, create_graph=True)
    (product,) = torch.autograd.grad((grad * ways[0]).sum(), x)
    torch.testing.assert_close(hessian @ ways[0].flatten(), product.flatten(), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("loss", DEFINITIONS)
def test_compiled_without_a_break(T: Any, loss: str) -> None:
    torch.compiler.reset()
    f, inputs = bound(T, loss)
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(f(*inputs), inputs)
    torch.testing.assert_close(compiled(*inputs), f(*inputs))
    torch.testing.assert_close(torch.autograd.grad(compiled(*inputs), inputs), expected)


@pytest.mark.parametrize("loss", DEFINITIONS)
def test_half_precision_is_rounded_once(T: Any, loss: str) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        form, tensors = call_of(loss, dtype)
        wide = {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}
        value = getattr(T, loss)(**tensors)
        assert value.dtype == dtype
        torch.testing.assert_close(value, getattr(T, loss)(**wide).to(dtype))
        x = tensors[form.wrt[0].name].requires_grad_()
        (grad,) = torch.autograd.grad(getattr(T, loss)(**tensors), x)
        assert grad.dtype == dtype and grad.shape == x.shape


@pytest.mark.parametrize("loss", DEFINITIONS)
def test_the_class_form(T: Any, loss: str) -> None:
    tensors = call_of(loss)[1]
    module = getattr(T, module_name(DEFINITIONS[loss]))()
    torch.testing.assert_close(module(**tensors), getattr(T, loss)(**tensors))
    assert module.state_dict() == {}


def test_ctc_as_pytorch_has_it(T: Any) -> None:
    """Lengths as tensors, tuples and lists; targets padded and end to end; one sample without a batch."""
    torch.manual_seed(0)
    log_probs = torch.randn(9, 3, 5, dtype=torch.float64).log_softmax(-1)
    padded = torch.tensor([[1, 2, 2, 4], [3, 0, 0, 0], [4, 1, 0, 0]])
    packed, frames, count = torch.tensor([1, 2, 2, 4, 3, 4, 1]), [9, 4, 7], [4, 1, 2]
    theirs, ours = torch.nn.functional.ctc_loss, T.ctc_loss
    for targets in (padded, packed):
        for a, b in ((torch.tensor(frames), torch.tensor(count)), (tuple(frames), tuple(count))):
            for reduction in ("none", "mean", "sum"):
                x, y = log_probs.clone().requires_grad_(), log_probs.clone().requires_grad_()
                torch.testing.assert_close(ours(x, targets, a, b, reduction=reduction), theirs(y, targets, a, b, reduction=reduction))
                ours(x, targets, a, b, reduction=reduction).sum().backward()
                theirs(y, targets, a, b, reduction=reduction).sum().backward()
                torch.testing.assert_close(x.grad, y.grad)
    alone = (log_probs[:, 0], padded[0], torch.tensor(9), torch.tensor(4))
    torch.testing.assert_close(ours(*alone), theirs(*alone))
    torch.testing.assert_close(T.CTCLoss(blank=4, zero_infinity=True)(log_probs, packed % 4, frames, count),
                               torch.nn.CTCLoss(blank=4, zero_infinity=True)(log_probs, packed % 4, tuple(frames), tuple(count)))


def test_a_shared_input_gets_the_sum_of_all_samples(T: Any) -> None:
    form, tensors = call_of("crf_nll")
    shared = next(t.name for t in form.wrt if not t.record.per_sample)
    tensors[shared].requires_grad_()
    T.crf_nll(**tensors, reduction="sum").backward()
    parts = []
    for n in range(3):
        one = {k: v if k == shared else v[n:n + 1] for k, v in tensors.items()}
        parts.append(torch.autograd.grad(T.crf_nll(**one, reduction="sum"), tensors[shared])[0])
    torch.testing.assert_close(tensors[shared].grad, sum(parts))

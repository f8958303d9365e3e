"""Calls of losses of every kind, for the tests of kernels on a device: inputs, and what PyTorch's own functions say in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

REDUCTIONS = ("none", "mean", "sum")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Case:
    """Tensors in float64 that every type holds exactly, further arguments, and by which tensors there are gradients."""

    loss: str
    tensors: dict[str, Tensor]
    moving: Sequence[str]
    more: dict[str, Any] = field(default_factory=dict)
    twice: bool = True                                   # is there a second derivative to compare with?


def some(*shape: int, low: float = -2.0, high: float = 2.0, seed: int = 0) -> Tensor:
    """Random multiples of 1/32."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(*shape, generator=generator, dtype=torch.float64) * (high - low) * 32).round() / 32 + low


def labels(*shape: int, below: int, ignored: bool = True) -> Tensor:
    found = torch.randint(below, shape, generator=torch.Generator().manual_seed(5))
    if ignored:
        found.view(-1)[1] = -100
    return found


def cases() -> dict[str, Case]:
    """Pointwise losses, rows, gathers, vectors; with weights, broadcasting, odd layouts, several blocks, and nothing at all."""
    x, y, w, up = some(6, 5), some(6, 5, seed=1), some(6, 5, low=0.5, seed=2), lambda *shape: some(*shape, low=0.25, high=1, seed=3)
    sign = torch.tensor([1.0, -1, 1, 1, -1, -1], dtype=torch.float64)
    image = some(2, 4, 3, 3)
    wide = {"input": some(6, 5, low=0.25, high=0.75), "target": some(6, 5, low=0, high=1, seed=1)}
    return {
        "pointwise": Case("huber_loss", {"input": x, "target": y}, ("input", "target")),
        "transposed": Case("huber_loss", {"input": some(5, 6).t(), "target": y}, ("input", "target")),
        "gaps": Case("smooth_l1_loss", {"input": some(12, 5)[::2], "target": y}, ("input", "target"), {"beta": 0.5}),
        "one for all": Case("mse_loss", {"input": x, "target": y[:1].expand(6, 5)}, ("input",)),
        "several blocks": Case("mse_loss", {"input": some(71, 67), "target": some(71, 67, seed=1)}, ("input",)),
        "nothing": Case("mse_loss", {"input": some(0, 5), "target": some(0, 5)}, ("input", "target"), twice=False),
        "a number": Case("soft_margin_loss", {"input": some(1)[0], "target": torch.ones((), dtype=torch.float64)}, ("input",)),
        "weights and shared weights": Case("binary_cross_entropy_with_logits",
                                           {"input": x, "target": up(6, 5), "weight": w, "pos_weight": w[0]}, ("input",)),
        "a domain": Case("binary_cross_entropy", wide, ("input",), twice=False),       # PyTorch's second derivative is off by 1e-11
        "a variance": Case("gaussian_nll_loss", {"input": x, "target": y, "var": w}, ("input", "target", "var"), {"full": True}),
        "a gather": Case("nll_loss", {"input": x, "target": labels(6, below=5), "weight": w[0]}, ("input",)),
        "a plain gather": Case("nll_loss", {"input": x, "target": labels(6, below=5)}, ("input",)),
        "rows": Case("cross_entropy", {"input": x, "target": labels(6, below=5), "weight": w[0]}, ("input",), {"label_smoothing": 0.25}),
        "plain rows": Case("cross_entropy", {"input": some(40, 33), "target": labels(40, below=33)}, ("input",)),
        "classes first": Case("cross_entropy", {"input": image, "target": labels(2, 3, 3, below=4)}, ("input",)),
        "probabilities": Case("cross_entropy", {"input": x, "target": up(6, 5)}, ("input", "target")),
        "vectors": Case("cosine_embedding_loss", {"input1": x, "input2": y, "target": sign}, ("input1", "input2"), {"margin": 0.25}),
        "three vectors": Case("triplet_margin_loss", {"anchor": x, "positive": y, "negative": w}, ("anchor", "positive", "negative")),
        "label sets": Case("multilabel_soft_margin_loss", {"input": x, "target": (y > 0).double(), "weight": w[0]}, ("input",)),
    }


def promote(case: Case, dtype: torch.dtype, device: str = "cpu", moving: bool = True) -> dict[str, Any]:
    """The tensors in a type, on a device; layouts stay."""
    made = {}
    for name, t in case.tensors.items():
        new = torch.empty_strided(t.shape, t.stride(), dtype=dtype if t.is_floating_point() else t.dtype, device=device)
        made[name] = (t.to(new.dtype).to(device) if 0 in t.stride() else new.copy_(t)).requires_grad_(moving and name in case.moving)
    return made


def results(f: Callable[..., Tensor], case: Case, reduction: str, dtype: torch.dtype, device: str = "cpu") -> dict[str, Tensor]:
    """The loss, gradients times an upstream gradient, and, as double backward gives them, second derivatives by inputs and upstream."""
    given = promote(case, dtype, device)
    value = f(**given, **case.more, reduction=reduction)
    inputs = [given[name] for name in case.moving]
    upstream = ((torch.arange(value.numel(), dtype=torch.float64) % 5 + 1) / 4).reshape(value.shape).to(dtype).to(device)
    found = {"value": value}
    plain = torch.autograd.grad(value, inputs, upstream, retain_graph=True)
    found |= {f"gradient by {name}": g for name, g in zip(case.moving, plain, strict=True)}
    if case.twice:
        upstream.requires_grad_()
        gradients = torch.autograd.grad(value, inputs, upstream, create_graph=True)
        ways = [(((torch.arange(g.numel(), dtype=torch.float64) + 2 * k) % 7 - 3) / 4).reshape(g.shape).to(dtype).to(device)
                for k, g in enumerate(gradients)]
        seconds = torch.autograd.grad(gradients, [*inputs, upstream], ways, allow_unused=True)
        names = [f"second by {name}" for name in (*case.moving, "upstream")]
        likes = [*inputs, upstream]
        found |= {name: torch.zeros_like(like) if s is None else s for name, s, like in zip(names, seconds, likes, strict=True)}
    return {name: t.detach() for name, t in found.items()}


def disagreements(mine: dict[str, Tensor], truth: dict[str, Tensor], dtype: torch.dtype, ulp: float = 16) -> Iterator[str]:
    """Where results differ by more than some units in the last place of the largest of their kind, or are of another type or shape."""
    sizes: dict[str, float] = {}
    for name, b in truth.items():
        kind = name.partition(" ")[0]
        sizes[kind] = max([sizes.get(kind, float(torch.finfo(dtype).tiny)), *b.abs().nan_to_num().flatten().tolist()])
    for name, b in truth.items():
        a = mine[name]
        if a.dtype != dtype or a.shape != b.shape:
            yield f"{name} is {a.dtype} {tuple(a.shape)}, not {dtype} {tuple(b.shape)}"
            continue
        a = a.cpu().double()
        near = ulp * torch.finfo(dtype).eps * sizes[name.partition(" ")[0]]
        if name == "second by upstream" and b.ndim == 0:                # a sum of all gradients times directions, which may cancel
            near = ulp * torch.finfo(dtype).eps * sum(float(g.abs().sum()) for n, g in truth.items() if n.startswith("gradient"))
        wrong = ~(((a - b).abs() <= near) | (a.isnan() & b.isnan()) | (a == b))
        if wrong.any():
            yield f"{name}: {a[wrong][0].item()!r}, not {b[wrong][0].item()!r} ({int(wrong.sum())} of {wrong.numel()})"

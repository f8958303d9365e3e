"""How long losses take on a GPU: ours, PyTorch's, torch.compile of PyTorch's, and a copy of the tensors that they have to move.

    python tests/cuda/bench.py [--device cuda] [--elements 16777216] [--eager] [LOSS ...]

Microseconds, the median of 30 calls, each after 256 MB of other data went through the caches. `copy` takes the bytes that the call must
read and write, once, at the rate of a plain copy of a tensor: no kernel is faster. --eager leaves torch.compile out.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

sys.path.insert(0, os.environ.get("LOSSLIB_SRC") or str(Path(__file__).resolve().parent.parent.parent / "generated" / "src"))
import losslib.torch as T

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
CLASSES = (10, 1000, 128_000)
REPEATS = 30


def losses(elements: int, dtype: torch.dtype, device: str) -> dict[str, tuple[str, list[Any]]]:
    """Calls by what is printed of them: the name of the loss, and its tensors; gradients are by the first."""
    real = lambda *shape: torch.randn(*shape, device=device, dtype=dtype)
    found: dict[str, tuple[str, list[Any]]] = {name: (name, [real(elements), real(elements)]) for name in ("mse_loss", "huber_loss")}
    found["binary_cross_entropy_with_logits"] = ("binary_cross_entropy_with_logits", [real(elements), real(elements).sigmoid()])
    for classes in (c for c in CLASSES if c <= elements):
        rows = elements // classes
        labels = torch.randint(classes, (rows,), device=device)
        found[f"cross_entropy {rows} x {classes}"] = ("cross_entropy", [real(rows, classes), labels])
    return found


def microseconds(step: Callable[[], Any], device: str) -> float:
    """The median time of a call."""
    flush = torch.empty(1 << 26 if device == "cuda" else 1, dtype=torch.float32, device=device)
    for _ in range(3):
        step()
    times = []
    for _ in range(REPEATS):
        flush.zero_()
        if device == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            step()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) * 1e3)
        else:
            begin = time.perf_counter()
            step()
            times.append((time.perf_counter() - begin) * 1e6)
    return statistics.median(times)


def both(f: Callable[..., Any], tensors: list[Any]) -> Callable[[], Any]:
    """Forward and backward."""
    leaf = tensors[0].detach().requires_grad_()
    return lambda: torch.autograd.grad(f(leaf, *tensors[1:]), leaf)


def main() -> None:
    """Print the table."""
    words = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    words.add_argument("losses", nargs="*")
    words.add_argument("--device", default="cuda")
    words.add_argument("--elements", type=int, default=1 << 24)
    words.add_argument("--eager", action="store_true")
    args = words.parse_args()
    where = torch.cuda.get_device_name() if args.device == "cuda" else args.device
    print(f"torch {torch.__version__} on {where}, {args.elements} elements; {T.cuda_missing() or 'the CUDA kernels are there'}")
    print(f"{'loss':44} {'type':9} {'what':9} {'ours':>10} {'PyTorch':>10} {'compiled':>10} {'copy':>10}")
    for dtype in DTYPES:
        for title, (name, tensors) in losses(args.elements, dtype, args.device).items():
            if args.losses and name not in args.losses:
                continue
            ours, theirs = getattr(T, name), getattr(F, name)
            compiled = None if args.eager else torch.compile(theirs, dynamic=False)
            room = torch.empty_like(tensors[0])
            rate = microseconds(lambda to=room, x=tensors[0]: to.copy_(x), args.device) / (2 * room.nbytes)
            reads = sum(t.nbytes for t in tensors)
            for what, moved, step in (("forward", reads, lambda f, t: lambda: f(*t)), ("and back", 2 * reads + tensors[0].nbytes, both)):
                times = [microseconds(step(f, tensors), args.device) if f else float("nan") for f in (ours, theirs, compiled)]
                print(f"{title:44} {str(dtype)[6:]:9} {what:9} {times[0]:10.1f} {times[1]:10.1f} {times[2]:10.1f} {moved * rate:10.1f}")


if __name__ == "__main__":
    main()

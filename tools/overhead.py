"""What a call of each loss of `losslib.torch` costs beside PyTorch's own function, where arrays are too small to matter.

    python tools/overhead.py [LOSS ...]

Both in turns, in short blocks, in one process with one thread. A time is the least of those of all blocks: other work on the machine only
adds. A ratio is that of the least times, and behind it the median of the ratios of blocks that follow each other.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from losscomp import catalogue
from losscomp.bench import arrays_of
from losscomp.verify import peer_of, targets_of

CALLS = 40                                                       # in a block


def timed(run: Callable[[], object]) -> float:
    """Microseconds a call, in one block."""
    start = time.perf_counter()
    for _ in range(CALLS):
        run()
    return (time.perf_counter() - start) / CALLS * 1e6


def compare(ours: Callable[[], object], theirs: Callable[[], object], rounds: int) -> list[str]:
    """Microseconds of PyTorch's, of ours, and the ratios."""
    pairs = [(timed(theirs), timed(ours)) for _ in range(rounds + 3)][3:]
    first, second = min(a for a, _ in pairs), min(b for _, b in pairs)
    return [f"{first:.1f}", f"{second:.1f}", f"{second / first:.2f} ({median(b / a for a, b in pairs):.2f})"]


def work(function: Any, tensors: list[Any], moving: list[Any], reduction: str, kind: str) -> Callable[[], object]:
    """A call: the loss alone, or with the gradients of `moving`."""
    if kind == "forward":
        return lambda: function(*tensors, reduction=reduction)
    if kind == "backward":
        def step() -> None:
            for t in moving:
                t.grad = None
            function(*tensors, reduction=reduction).backward()
        return step
    if reduction == "none":
        ones = torch.ones_like(function(*tensors, reduction=reduction))
        return lambda: torch.autograd.grad(function(*tensors, reduction=reduction), moving, ones)
    return lambda: torch.autograd.grad(function(*tensors, reduction=reduction), moving)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("losses", nargs="*")
    parser.add_argument("--lib", type=Path, default=Path("generated"))
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--columns", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=60)
    args = parser.parse_args()
    torch.set_num_threads(1)
    library = targets_of(args.lib)["torch"]
    kinds = [(r, k) for r in ("mean", "none") for k in ("forward", "gradient")] + [("mean", "backward")]
    print("| loss | " + " | ".join(f"{r}, {k}: PyTorch | ours | ratio" for r, k in kinds) + " |")
    print("|---" * (1 + 3 * len(kinds)) + "|")
    gc.disable()
    warnings.simplefilter("ignore")                              # PyTorch's kl_div warns of its mean
    for name, definition in catalogue.load(catalogue.builtin_definitions()).items():
        peer = peer_of(definition)
        if peer is None or (args.losses and name not in args.losses):
            continue
        try:
            arrays, wrt = arrays_of(definition, args.samples * args.columns, args.columns, "float32")
            arrays = {k: np.ascontiguousarray(a[:args.samples]) if a.shape and a.shape[0] == args.samples * args.columns else a
                      for k, a in arrays.items()}
            still = [torch.from_numpy(a) for a in arrays.values()]
            first = next(n for n in wrt if n in arrays)
            moved = [t.clone().requires_grad_(n == first) for n, t in zip(arrays, still, strict=True)]
            cells = []
            for reduction, kind in kinds:
                tensors = still if kind == "forward" else moved
                moving = [t for t in tensors if t.requires_grad]
                cells += compare(*(work(f, tensors, moving, reduction, kind) for f in (getattr(library, name), peer)), args.rounds)
        except Exception as error:
            print(f"| {name} | not measured: {type(error).__name__}: {error}", flush=True)
            continue
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()

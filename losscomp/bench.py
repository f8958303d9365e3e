"""`losscomp bench`: value and gradient of each loss beside PyTorch's, and beside what moving its arrays through memory takes.

Everything is measured in turns within one run, and the least of several times counts: other work on the machine only adds. What
compares from machine to machine is the ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import catalogue
from .check import check
from .emit import forms_of
from .errors import LosscompError
from .language import Definition
from .sampling import samples
from .verify import peer_of, targets_of

COPIED = 1 << 26                                 # bytes of the copy that says how fast memory is: more than most caches hold


@dataclass
class Row:
    """How long one loss takes, in seconds; `memory` is what a copy of as many bytes takes as its arrays have."""

    loss: str
    shape: str
    ours: float
    memory: float
    eager: float | None = None
    compiled: float | None = None


def arrays_of(definition: Definition, size: int, columns: int, dtype: str) -> tuple[dict[str, np.ndarray], list[str]]:
    """Ordinary inputs for the arguments that must be given, `size` numbers in the largest, and the names of those with gradients."""
    form = check(forms_of(definition)[0])[0]
    count = max(1, size // columns ** len(form.axes))
    every = samples(form, "normal", count, dtype, sizes={a.name: columns for a in form.axes})
    return {t.name: every[t.name] for t in form.inputs if t.record.default is None}, [t.name for t in form.wrt]


def by_autograd(peer: Callable[..., Any], arrays: Mapping[str, np.ndarray], wrt: list[str]) -> Callable[[], object]:
    """Value and gradients by the peer."""
    import torch

    tensors = {name: torch.from_numpy(a).requires_grad_(name in wrt) for name, a in arrays.items()}
    leaves = [tensors[name] for name in wrt if name in tensors]
    return lambda: torch.autograd.grad(peer(**tensors), leaves)


def least(runs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The shortest time of each, taken in turns; the first turn is not counted."""
    found = dict.fromkeys(runs, float("inf"))
    for turn in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if turn:
                found[name] = min(found[name], time.perf_counter() - start)
    return found


def measure(definition: Definition, target: Any, args: argparse.Namespace) -> Row:
    """One loss."""
    arrays, wrt = arrays_of(definition, args.size, args.columns, args.dtype)
    wrt = [name for name in wrt if name in arrays]
    source = np.ones(COPIED // 8)
    into = np.empty_like(source)
    loss = getattr(target, definition.name)
    runs: dict[str, Callable[[], object]] = {"ours": lambda: loss.value_and_grad(**arrays), "memory": lambda: np.copyto(into, source)}
    peer = peer_of(definition)
    if peer is not None:
        import torch

        torch.set_num_threads(args.threads)
        runs["eager"] = by_autograd(peer, arrays, wrt)
        if args.compile:
            runs["compiled"] = by_autograd(torch.compile(peer), arrays, wrt)
    found = least(runs, args.rounds)
    moved = sum(a.nbytes for a in arrays.values()) + sum(arrays[name].nbytes for name in wrt)
    found["memory"] *= moved / (2 * COPIED)
    largest = max(arrays.values(), key=lambda a: a.size)
    return Row(definition.name, " x ".join(map(str, largest.shape)), **found)


def table(rows: list[Row]) -> str:
    """The times as ratios."""
    def ratio(part: float, whole: float | None) -> str:
        return f"{part / whole:.2f}" if whole else "-"

    lines = ["| loss | shape | ms | of eager | of compiled | memory's share |", "|---|---|---|---|---|---|"]
    lines += [f"| {r.loss} | {r.shape} | {r.ours * 1e3:.2f} | {ratio(r.ours, r.eager)} | {ratio(r.ours, r.compiled)} "
              f"| {ratio(r.memory, r.ours)} |" for r in rows]
    return "\n".join(lines)


def main(args: argparse.Namespace) -> int:
    """`losscomp bench`: prints a table, and writes JSON where that is asked for."""
    definitions = catalogue.pick(args.losses, args.defs or catalogue.builtin_definitions())
    os.environ["LOSSLIB_NUM_THREADS"] = str(args.threads)                # read when the library is imported
    target = targets_of(args.lib).get("c")
    if target is None:
        raise LosscompError(f"{args.lib} has no compiled C target to measure", repair="Build it: losscomp build. losscomp doctor says what "
                            "it needs.")
    rows = [measure(definitions[name], target, args) for name in definitions]
    print(table(rows))
    if args.json:
        Path(args.json).write_text(json.dumps({"threads": args.threads, "dtype": args.dtype, "rounds": args.rounds,
                                               "losses": [asdict(r) for r in rows]}, indent=1) + "\n")
    return 0

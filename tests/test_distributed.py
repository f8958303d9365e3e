"""Parts of a batch merged, on every target; and losses over several processes (gloo on the CPU) against the whole in one process."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from losscomp import catalogue, check, show

EXACT = {"rtol": 1e-12, "atol": 1e-14}


def of_classes(rng: np.random.Generator) -> tuple[Any, Any, Any]:
    """Logits, labels of which some are left out, very unevenly over the batch, and weights of classes."""
    labels = rng.integers(0, 5, 12)
    labels[[0, 1, 2, 7]] = -100
    return rng.normal(size=(12, 5)), labels, rng.uniform(0.1, 3, 5)


# Parts of a batch: each is merged from the parts 0:3, where all labels are left out, 3:4 and 4:12

PARTS = (slice(0, 3), slice(3, 4), slice(4, 12))


def test_merged_parts(library: Any, rng: np.random.Generator) -> None:
    """Value and gradients of each reduction; the denominators of the parts differ. PyTorch says what is right."""
    x, labels, weight = of_classes(rng)
    loss = library.cross_entropy
    merged = sum(loss.state(x[p], labels[p], weight) for p in PARTS)
    assert (merged.count, merged.batch) == (12, 12) and merged.weight == pytest.approx(weight[labels[labels >= 0]].sum(), rel=1e-15)
    for reduction in ("mean", "sum"):
        given = torch.tensor(x, requires_grad=True)
        expected = F.cross_entropy(given, torch.tensor(labels), torch.tensor(weight), reduction=reduction)
        expected.backward()
        assert loss.finish(merged, reduction) == pytest.approx(expected.item(), rel=1e-14)
        parts = [loss.grad_within(merged, x[p], labels[p], weight, reduction=reduction).input for p in PARTS]
        np.testing.assert_allclose(np.concatenate(parts), given.grad, **EXACT)


def test_a_weight_that_moves_the_denominator(library: Any, rng: np.random.Generator) -> None:
    """The quotient rule needs the totals of the whole: the gradients of a shared input by the parts add up to that by the whole."""
    x, labels, weight = of_classes(rng)
    loss = library.nll_loss
    merged = sum(loss.state(x[p], labels[p], weight) for p in PARTS)
    parts = [loss.grad_within(merged, x[p], labels[p], weight, wrt=("weight",)).weight for p in PARTS]
    given = torch.tensor(weight, requires_grad=True)
    kept = torch.tensor(labels[labels >= 0])
    chosen = -torch.tensor(x[labels >= 0]).gather(1, kept[:, None])[:, 0]
    ((given[kept] * chosen).sum() / given[kept].sum()).backward()
    np.testing.assert_allclose(sum(parts), given.grad, rtol=1e-11, atol=1e-13)


def test_batchmean(library: Any, rng: np.random.Generator) -> None:
    x, t = rng.normal(size=(12, 3)), rng.uniform(0.1, 1, (12, 3))
    merged = sum(library.kl_div.state(x[p], t[p]) for p in PARTS)
    expected = F.kl_div(torch.tensor(x), torch.tensor(t), reduction="batchmean").item()
    assert library.kl_div.finish(merged, "batchmean") == pytest.approx(expected, rel=1e-14)


def test_what_cannot_be_merged_or_finished(library: Any, T: Any) -> None:
    a, b = library.l1_loss.state(np.zeros(2), np.ones(2)), library.mse_loss.state(np.zeros(2), np.ones(2))
    with pytest.raises(ValueError, match="cannot be merged with 'mse_loss'"):
        _ = a + b
    with pytest.raises(ValueError, match="is no state of this loss"):
        library.l1_loss.finish(b)
    with pytest.raises(ValueError, match="none finishes no state"):
        library.l1_loss.finish(a, "none")
    with pytest.raises(ValueError, match=r"int.* is no state"):
        T.l1_loss.finish(3)
    with pytest.raises(ValueError, match="cannot be merged with 'mse_loss'"):
        T.l1_loss.state(torch.zeros(2), torch.ones(2)).within(b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("passes", [1, 2])
def test_micro_batches_in_pytorch(passes: int, dtype: torch.dtype, T: Any, rng: np.random.Generator) -> None:
    """One pass keeps the graph of all parts; two passes find the totals first, and then go through one part at a time."""
    x, labels, weight = map(torch.tensor, of_classes(rng))
    x, weight = x.to(dtype), weight.to(dtype)
    whole, ours = x.clone().requires_grad_(), x.clone().requires_grad_()
    expected = F.cross_entropy(whole, labels, weight, label_smoothing=0.1)
    expected.backward()
    part = lambda p: T.cross_entropy.state(ours[p], labels[p], weight, label_smoothing=0.1)
    tolerance: dict[str, float] = {"rtol": 1e-12, "atol": 1e-14} if dtype == torch.float64 else {"rtol": 3e-6, "atol": 1e-8}
    if passes == 1:
        value = T.cross_entropy.finish(sum(map(part, PARTS)))
        value.backward()
    else:
        with torch.no_grad():
            merged = sum(map(part, PARTS))
        for p in PARTS:
            value = T.cross_entropy.finish(part(p).within(merged))
            value.backward()
            torch.testing.assert_close(value, expected, check_dtype=False, **tolerance)
    torch.testing.assert_close(value, expected, check_dtype=False, **tolerance)
    torch.testing.assert_close(ours.grad, whole.grad, **tolerance)


# Several processes

def in_processes(count: int, work: Callable[..., Iterator[str]], folder: Path) -> str:
    """Run `work(T, rank, count, folder)` in each of several processes; what they found wrong."""
    torch.multiprocessing.spawn(process, (count, work, str(folder)), nprocs=count)
    return "\n".join((folder / f"{rank}.txt").read_text() for rank in range(count)).strip()


def process(rank: int, count: int, work: Callable[..., Iterator[str]], folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=count, timeout=timedelta(seconds=120))
    try:
        found = list(work(importlib.import_module("losslib.torch"), rank, count, Path(folder)))
    finally:
        dist.destroy_process_group()
    (Path(folder) / f"{rank}.txt").write_text("\n".join(found))


def off(what: str, found: Tensor, expected: Tensor) -> Iterator[str]:
    """A line, where two tensors differ."""
    try:
        torch.testing.assert_close(found, expected, equal_nan=True, rtol=1e-10, atol=1e-12)
    except AssertionError as error:
        yield f"{what}: {' '.join(str(error).split())[:300]}"


def samples_in_parts(T: Any, rank: int, count: int, folder: Path) -> Iterator[str]:
    """Each process has some rows: value, gradients by inputs and by shared parameters are those of all rows, by PyTorch."""
    x, labels, weight = map(torch.tensor, of_classes(np.random.default_rng(0)))
    bounds = {2: [0, 3, 12], 3: [0, 3, 4, 12]}[count]                   # process 0 has nothing but labels that are left out
    mine = slice(bounds[rank], bounds[rank + 1])
    model = torch.tensor(np.random.default_rng(1).normal(size=(5, 5)), requires_grad=True)
    whole = model.detach().clone().requires_grad_()
    for smoothing in (0.0, 0.1):
        expected = F.cross_entropy(x @ whole, labels, weight, label_smoothing=smoothing)
        expected.backward()
        value = T.cross_entropy.finish(T.cross_entropy.state(x[mine] @ model, labels[mine], weight, label_smoothing=smoothing).all_reduce())
        value.backward()
        dist.all_reduce(model.grad)
        yield from off(f"value, {smoothing}", value, expected)
        yield from off(f"gradient, {smoothing}", model.grad, whole.grad)
        model.grad = whole.grad = None


def hierarchy_in_parts(T: Any, rank: int, count: int, folder: Path) -> Iterator[str]:
    """The same for a loss over classes that are reached by choices, with the parameters of its layers; one process has one sample."""
    made = []
    for home in (torch.nn, T):
        torch.manual_seed(0)
        made.append(home.AdaptiveLogSoftmaxWithLoss(8, 20, [3, 9], dtype=torch.float64))
    theirs, ours = made
    x, labels = torch.randn(12, 8, dtype=torch.float64), torch.randint(0, 20, (12,))
    bounds = {2: [0, 1, 12], 3: [0, 1, 5, 12]}[count]
    mine = slice(bounds[rank], bounds[rank + 1])
    expected = theirs(x, labels).loss
    expected.backward()
    value = T.adaptive_log_softmax_with_loss.finish(ours.state(x[mine], labels[mine]).all_reduce())
    value.backward()
    yield from off("value", value, expected)
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        grad = torch.zeros_like(a) if a.grad is None else a.grad
        dist.all_reduce(grad)
        yield from off(f"gradient by {name}", grad, torch.zeros_like(b) if b.grad is None else b.grad)


def axis_in_parts(T: Any, rank: int, count: int, folder: Path) -> Iterator[str]:
    """Every loss with one axis, each process having a part of it, against the whole in this process."""
    from losslib.torch.distributed import sharded

    for bounds in {2: [[0, 1, 4]], 3: [[0, 2, 3, 4], [0, 0, 3, 4]]}[count]:
        mine = slice(bounds[rank], bounds[rank + 1])
        for call in torch.load(folder / "calls.pt"):
            for reduction in ("mean", "none"):
                yield from one_in_parts(getattr(T, call["loss"]), sharded(getattr(T, call["loss"])), call, mine, reduction)


def one_in_parts(plain: Any, function: Any, call: dict[str, Any], mine: slice, reduction: str) -> Iterator[str]:
    whole = {n: t.clone() for n, t in call["tensors"].items()}
    places = call["places"]
    part = lambda n, t: t if places[n] is None else t[(slice(None),) * places[n] + (mine,)]
    local = {n: part(n, t).clone() for n, t in whole.items()}
    expected, theirs = value_and_gradients(plain, whole, call, reduction)
    value, ours = value_and_gradients(function, local, call, reduction)
    yield from off(f"{call['id']} {reduction}", value, expected)
    for n, a, b in zip(call["smooth"], ours, theirs, strict=True):
        if places[n] is None:                                           # a share of each process
            dist.all_reduce(a)
        yield from off(f"{call['id']} {reduction}: gradient by {n}", a, part(n, b))


def value_and_gradients(function: Any, tensors: dict[str, Tensor], call: dict[str, Any], reduction: str) -> tuple[Tensor, list[Tensor]]:
    """The loss, and the gradients of its sum; 0 by what it does not depend on."""
    leaves = [tensors[n].requires_grad_() for n in call["smooth"]]
    value = function(**tensors, **call["params"], reduction=reduction)
    found = torch.autograd.grad(value.sum(), leaves, allow_unused=True) if leaves and value.requires_grad else [None] * len(leaves)
    return value.detach(), [torch.zeros_like(x) if g is None else g.clone() for x, g in zip(leaves, found, strict=True)]


def calls_in_parts(T: Any) -> list[dict[str, Any]]:
    """The calls of losses whose axis may lie in parts, as plain data, with the dimension of each tensor that is the axis."""
    from peercases import CALLS, DEFINITIONS

    found = []
    for call in CALLS:
        if not any(f.startswith("sharded") for f in vars(getattr(T, call.loss)._composites)):
            continue
        places: dict[str, int | None] = dict.fromkeys(call.tensors)
        for form in catalogue.forms_of(DEFINITIONS[call.loss]):
            for t in check.check(form)[0].inputs:
                if t.name in call.tensors and t.record.axes and t.record.integer != call.tensors[t.name].is_floating_point():
                    ndim, position = call.tensors[t.name].ndim, t.record.axes[0].record.position
                    places[t.name] = 0 if not t.record.per_sample else ndim - 1 if position < 0 else min(position, ndim - 1)
        found.append({"id": call.id, "loss": call.loss, "tensors": call.tensors, "params": call.params, "places": places,
                      "smooth": [n for n in call.smooth if n in call.tensors]})
    return found


def bad_calls(T: Any, rank: int, count: int, folder: Path) -> Iterator[str]:
    from losslib.torch.distributed import sharded

    loss = sharded(T.cross_entropy)
    x = torch.zeros(2, 3)
    for expected, call in (("positions 0 to", lambda: loss(x, torch.tensor([0, 3 * count]))),
                           ("use autograd", lambda: loss.value_and_grad(x, torch.tensor([0, 1]))),
                           ("no axis", lambda: sharded(T.mse_loss))):
        try:
            call()
            yield f"nothing was wrong, and {expected!r} was expected"
        except ValueError as error:
            if expected not in str(error):
                yield f"{error}, and {expected!r} was expected"


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="NOT CHECKED: no torch.distributed with gloo; "
                    "nothing over processes")
@pytest.mark.parametrize("work", [samples_in_parts, hierarchy_in_parts, axis_in_parts, bad_calls])
@pytest.mark.parametrize("count", [2, 3])
def test_processes(work: Callable[..., Iterator[str]], count: int, tmp_path: Path, T: Any) -> None:
    if work is axis_in_parts:
        torch.save(calls_in_parts(T), tmp_path / "calls.pt")
    assert not in_processes(count, work, tmp_path)


def test_every_loss_with_an_axis_may_lie_in_parts(T: Any) -> None:
    definitions = catalogue.load(catalogue.builtin_definitions())
    with_axis = {n for n, d in definitions.items() if all(len(check.check(f)[0].axes) == 1 and show.kind_of(f.value, True) != "pairs"
                                                          for f in catalogue.forms_of(d))}
    assert {call["loss"] for call in calls_in_parts(T)} == with_axis >= {"cross_entropy", "cosine_embedding_loss"}


def test_the_check_sees_what_is_wrong() -> None:
    assert list(off("x", torch.ones(2), torch.ones(2))) == []
    assert list(off("x", torch.ones(2), torch.ones(2) + 1e-6)) and list(off("x", torch.ones(2), torch.full((2,), torch.nan)))

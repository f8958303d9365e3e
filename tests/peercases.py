"""Calls with which the torch target is held against PyTorch: made from the definitions, so that no loss can be forgotten."""

from __future__ import annotations

import importlib
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._decomp import decomposition_table
from torch.nn._reduction import get_enum

from losscomp import catalogue, check, sampling
from losscomp.check import Checked
from losscomp.language import Definition, Overload
from losscomp.nodes import StraightThrough, TensorRecord

PEER = "torch.nn.functional."
DEFINITIONS: dict[str, Definition] = catalogue.load(catalogue.builtin_definitions())
LIKE_TORCH: dict[str, Definition] = {name: d for name, d in DEFINITIONS.items() if d.like.startswith(PEER)}
BATCH, SIZE = 3, 4


def peer_of(loss: str) -> Callable[..., Tensor] | None:
    """PyTorch's own function for a loss of ours, if it has one."""
    like = DEFINITIONS[loss].like
    if not like.startswith("torch."):
        return None
    module, _, name = like.rpartition(".")
    return getattr(importlib.import_module(module), name)


def multi_margin_loss(*args: Any, reduction: str = "mean", **kwargs: Any) -> Tensor:
    """PyTorch's second implementation, of ordinary operations."""
    return decomposition_table[torch.ops.aten.multi_margin_loss.default](*args, reduction=get_enum(reduction), **kwargs)  # type: ignore[no-any-return]


def multilabel_margin_loss(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """In ordinary operations; PyTorch's own second implementation of 2.13 counts what stands behind the first -1."""
    given = ((target == -1).cumsum(-1) == 0)[..., None]
    place = target.where(target >= 0, 0)
    others = ~(given & (place[..., None] == torch.arange(input.shape[-1]))).any(-2, keepdim=True)
    short = (1 - input.gather(-1, place)[..., None] + input[..., None, :]).clamp_min(0)
    value = short.where(given & others, 0).sum((-1, -2)) / input.shape[-1]
    return value if reduction == "none" else value.mean() if reduction == "mean" else value.sum()


# Where PyTorch's own function lacks second derivatives: one that has them.
STAND_INS: dict[str, Callable[..., Tensor]] = {f.__name__: f for f in (multi_margin_loss, multilabel_margin_loss)}
NO_SECOND = ("ctc_loss", *STAND_INS)


def modules() -> dict[str, str]:
    """The class form of each loss that PyTorch has as a class too: {loss: class}."""
    named = {name: catalogue.module_name(d) for name, d in LIKE_TORCH.items()}
    return {name: module for name, module in named.items() if hasattr(torch.nn, module)}


@dataclass(frozen=True)
class Call:
    """One way to call a loss.

    Attributes:
        tensors: its tensors by name, in float64.
        params: its scalars.
        smooth: the real tensors; labels that the formula compares with numbers are not among them.
        shared: the tensors that all samples share.
        plain: whether every parameter has its default, and every optional tensor is left out.
    """

    loss: str
    id: str
    tensors: dict[str, Tensor]
    params: dict[str, Any]
    smooth: tuple[str, ...]
    shared: frozenset[str]
    plain: bool

    def bound(self, function: Callable[..., Any], names: Sequence[str], reduction: str = "mean") -> Callable[..., Any]:
        """The loss as a function of the named tensors alone."""
        rest = {k: v for k, v in self.tensors.items() if k not in names}
        return lambda *given: function(**dict(zip(names, given, strict=True)), **rest, **self.params, reduction=reduction)

    def leaves(self, names: Sequence[str], grad: bool = True) -> list[Tensor]:
        """Copies of the named tensors, to be differentiated by."""
        return [self.tensors[k].clone().requires_grad_(grad) for k in names]

    def map(self, change: Callable[[Tensor], Tensor]) -> Call:
        """The same call with each real tensor changed."""
        return replace(self, tensors={k: change(v) if v.is_floating_point() else v for k, v in self.tensors.items()})

    def to(self, dtype: torch.dtype) -> Call:
        """The same call in another type."""
        return self.map(lambda v: v.to(dtype))

    def value(self, function: Callable[..., Any], reduction: str = "mean") -> Any:
        return function(**self.tensors, **self.params, reduction=reduction)

    def directions(self, names: Sequence[str]) -> tuple[Tensor, ...]:
        """A fixed tangent for each of the named tensors."""
        rng = np.random.default_rng(5)
        return tuple(torch.tensor(rng.normal(size=tuple(self.tensors[k].shape)), dtype=self.tensors[k].dtype) for k in names)


def drawn(form: Checked, rng: np.random.Generator, positive: bool, batch: tuple[int, ...], tail: tuple[int, ...]) -> dict[str, Tensor]:
    """Ordinary numbers for every tensor, inside its domain and away from its ends.

    Args:
        tail: dimensions behind an axis that stands at dimension 1.
    """
    found: dict[str, Tensor] = {}
    front = any(a.record.position == 1 for a in form.axes)
    for tensor in form.inputs:
        record = tensor.record
        behind = tail if record.per_sample and front else ()
        shape = (batch if record.per_sample else ()) + (SIZE,) * len(record.axes) + behind
        domain, labels = record.domain, sampling.compared_with(form, tensor)
        if record.integer:
            found[record.name] = torch.tensor(rng.integers(0, SIZE, shape))
            if record.until is not None:
                found[record.name][torch.tensor(rng.random(shape) < 0.4)] = record.until
        elif labels:
            found[record.name] = torch.tensor(rng.choice(labels, shape))
        elif domain.low is not None and domain.high is not None:
            found[record.name] = torch.tensor(rng.uniform(domain.low + 0.1, domain.high - 0.1, shape))
        elif domain.high is not None:
            found[record.name] = torch.tensor(domain.high - rng.uniform(0.3, 2.5, shape))
        elif positive or domain.bounded or record.default is not None:
            found[record.name] = torch.tensor((domain.low or 0.0) + rng.uniform(0.3, 2.5, shape))
        else:
            found[record.name] = torch.tensor(rng.normal(size=shape))
    return found


def calls_of(loss: str, batch: tuple[int, ...] | None = None, tail: tuple[int, ...] = ()) -> Iterator[Call]:
    """Every variant of a loss with all its tensors, and the default one without the optional ones."""
    definition = DEFINITIONS[loss]
    for number, loss_form in enumerate(catalogue.forms_of(definition)):
        word = f"-form{number}" if isinstance(definition, Overload) else ""
        for form in check.check(loss_form):
            params = sampling.parameters(form)
            default = all(params[p.name] == p.record.default for p in form.params)
            rng = np.random.default_rng(zlib.crc32(f"{loss}{form.suffix}".encode()))
            shape = batch or ((BATCH,) if form.axes else (BATCH, SIZE))
            tensors = drawn(form, rng, not default or peer_of(loss) is None, shape, tail)
            if default and not finite(loss, tensors, params):
                tensors = drawn(form, rng, True, shape, tail)
            smooth = tuple(t.name for t in form.differentiable if not sampling.compared_with(form, t))
            shared = frozenset(t.name for t in form.inputs if not t.record.per_sample)
            optional = {t.name for t in form.inputs if t.record.default is not None}
            call = Call(loss, f"{loss}{word}{form.suffix}", tensors, params, smooth, shared, False)
            if optional:
                yield replace(call, id=call.id + "-weighted")
            if default:
                rest = {k: v for k, v in tensors.items() if k not in optional}
                yield replace(call, tensors=rest, smooth=tuple(k for k in smooth if k in rest), plain=True)
            elif not optional:
                yield call


def finite(loss: str, tensors: dict[str, Tensor], params: dict[str, Any]) -> bool:
    """Whether the loss is a number at these inputs, by its peer."""
    peer = peer_of(loss)
    try:
        return peer is not None and bool(torch.isfinite(peer(**tensors, **params, reduction="none")).all())
    except RuntimeError:
        return False


with warnings.catch_warnings():
    warnings.simplefilter("ignore")             # PyTorch warns of what some losses are about to change
    # Systems of tables have calls of their own, in test_torch_recurrences.py; another framework's form of a loss is called once.
    CALLS: tuple[Call, ...] = tuple(call for loss, d in DEFINITIONS.items() if not catalogue.forms_of(d)[0].tables
                                    for call in calls_of(loss) if call.plain or not catalogue.forms_of(d)[0].dialect_of)
PLAIN: tuple[Call, ...] = tuple(call for call in CALLS if call.plain)


def ids(calls: Sequence[Call]) -> list[str]:
    return [call.id for call in calls]


@cache
def theirs(call_id: str) -> tuple[str, ...]:
    """The tensors of a call by which PyTorch differentiates too."""
    call = next(c for c in CALLS if c.id == call_id)
    peer = peer_of(call.loss)
    found = []
    for name in call.smooth if peer else ():
        x, = call.leaves([name])
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torch.autograd.grad(call.bound(peer, [name])(x), x)
        except RuntimeError:
            continue
        found.append(name)
    return tuple(found)


def records(loss: str) -> list[TensorRecord]:
    """What the definition of a loss says of each of its tensors."""
    return [t.record for form in catalogue.forms_of(DEFINITIONS[loss]) for t in check.check(form)[0].inputs]


def formula_has_axes(loss: str) -> bool:
    """Whether a loss reduces over an axis of its tensors."""
    return any(record.axes for record in records(loss))


def broadcasts(loss: str) -> bool:
    """Whether all tensors of a loss broadcast with one another."""
    return all(not record.axes and record.shape in ("mutual", "expand") for record in records(loss))


def gradients(value: Tensor, leaves: Sequence[Tensor], upstream: Tensor | None = None, graph: bool = False) -> list[Tensor]:
    """Gradients, with 0 for what the value does not depend on."""
    if not leaves or not value.requires_grad:
        return [torch.zeros_like(x) for x in leaves]
    found = torch.autograd.grad(value, leaves, upstream, create_graph=graph, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, found, strict=True)]


def cotangent(like: Tensor, seed: int = 0) -> Tensor:
    """A fixed tensor of a given shape and type."""
    rng = np.random.default_rng(seed)
    return torch.tensor(rng.normal(size=tuple(like.shape)), dtype=like.dtype)


def problem(found: Any, expected: Any, **tolerance: float) -> str:
    """How two tensors differ, or nothing."""
    try:
        torch.testing.assert_close(found, expected, equal_nan=True, **tolerance)
    except AssertionError as error:
        return " ".join(str(error).split())[:300]
    return ""


# Which calls a test runs on

# Losses whose gradient as a whole is stated, and is not that of the value: numerical derivatives say nothing of it (see test_dialects.py).
STATED = frozenset(name for name, d in DEFINITIONS.items() if any(isinstance(f.value, StraightThrough) for f in catalogue.forms_of(d)))
NATURAL = tuple(c for c in CALLS if c.loss not in STATED)
WITH_PEER = tuple(c for c in CALLS if peer_of(c.loss))
SMOOTH = tuple(c for c in WITH_PEER if theirs(c.id))
PLAIN_SMOOTH = tuple(c for c in SMOOTH if c.plain)
each_call = pytest.mark.parametrize("call", CALLS, ids=ids(CALLS))
each_natural = pytest.mark.parametrize("call", NATURAL, ids=ids(NATURAL))
each_with_peer = pytest.mark.parametrize("call", WITH_PEER, ids=ids(WITH_PEER))
each_smooth = pytest.mark.parametrize("call", SMOOTH, ids=ids(SMOOTH))
each_plain = pytest.mark.parametrize("call", PLAIN_SMOOTH, ids=ids(PLAIN_SMOOTH))
REDUCED = ("mean", "none")
EXACT = {"rtol": 1e-9, "atol": 1e-10}


def pair(T: Any, call: Call, names: Sequence[str], reduction: str = "mean") -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Our loss and PyTorch's as functions of the named tensors."""
    peer = STAND_INS.get(call.loss) or peer_of(call.loss)
    assert peer is not None
    return call.bound(getattr(T, call.loss), names, reduction), call.bound(peer, names, reduction)


def same(found: Any, expected: Any, **tolerance: float) -> None:
    assert not (wrong := problem(found, expected, **(tolerance or EXACT))), wrong


def plain_gradients(function: Callable[..., Any], leaves: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Value and gradients by plain autograd along a fixed cotangent."""
    leaves = [x.detach().clone().requires_grad_() for x in leaves]
    value = function(*leaves)
    return value.detach(), gradients(value, leaves, cotangent(value).to(value.dtype))


def plain_hessian_product(function: Callable[..., Any], leaves: Sequence[Tensor], along: Sequence[Tensor]) -> list[Tensor]:
    """The Hessian times a direction, by reverse over reverse."""
    leaves = [x.detach().clone().requires_grad_() for x in leaves]
    first = gradients(function(*leaves), leaves, graph=True)
    slope = sum((g * v).sum() for g, v in zip(first, along, strict=True))
    return gradients(slope, leaves) if isinstance(slope, Tensor) else [torch.zeros_like(x) for x in leaves]

"""Every combination of what a loss lets its caller choose: optional tensors, ignored labels, options, special values, reductions, types.

The losses are found from the definitions. Expected values are PyTorch's own, in float64 at the same numbers; where it has no such loss
or refuses, the oracle's.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import sympy as sp
import torch
from peercases import DEFINITIONS, drawn, peer_of

from losscomp import check
from losscomp.catalogue import forms_of
from losscomp.check import Checked
from losscomp.oracle import exact, select

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::RuntimeWarning")

BATCH = 3
TOLERANCE = {"float32": 3e-5, "float64": 1e-11}


def plain(value: Any) -> Any:
    """A special value as a caller writes it."""
    return bool(value) if isinstance(value, sp.logic.boolalg.BooleanAtom) else float(value)


def choices(form: Checked) -> dict[str, list[Any]]:
    """What each scalar may be: its special values and one that is none; every other scalar has its default."""
    found: dict[str, list[Any]] = {}
    for p in form.params:
        record = p.record
        special = [plain(v) for v in record.special]
        low, high = max(0.0, record.domain.interval[0]), min(2.0, record.domain.interval[1])
        other = 0.3 if high > 1 > low else low + 0.3 * (high - low)
        found[p.name] = special + ([] if record.only_special else [other]) if special else [record.default]
    return found


def combinations(form: Checked) -> Iterator[tuple[dict[str, Any], dict[str, Any], str]]:
    """Tensors in float64, scalars, and words for a message."""
    every = drawn(form, np.random.default_rng(3), True, (BATCH,), ())
    optional = [t.name for t in form.inputs if t.record.default is not None]
    ignored = [t for t in form.inputs if t.record.ignore]
    table = choices(form)
    for count in range(len(optional) + 1):
        for left_out in itertools.combinations(optional, count):
            for masked in range(BATCH + 1) if ignored else (0,):
                for values in itertools.product(*table.values()):
                    tensors = {k: v.numpy().copy() for k, v in every.items() if k not in left_out}
                    params = dict(zip(table, values, strict=True))
                    for t in ignored:
                        tensors[t.name][:masked] = params[t.record.ignore]
                    yield tensors, params, f"without {left_out}, {masked} ignored, {params}"


def lets_choose(form: Checked) -> int:
    """In how many things a caller has a choice."""
    return sum(t.record.default is not None or t.record.ignore is not None for t in form.inputs) + len(form.settings)


FORMS = {f"{name}-{k}": (name, check.check(form)) for name, d in DEFINITIONS.items() for k, form in enumerate(forms_of(d))}
FORMS = {key: (name, forms) for key, (name, forms) in FORMS.items() if lets_choose(forms[0]) > 1}


def expected(name: str, forms: list[Checked], tensors: dict[str, Any], held: dict[str, Any], params: dict[str, Any], reduction: str,
             wrt: list[str]) -> Any:
    """Value and gradients."""
    peer = peer_of(name)
    if peer is not None:
        given = {k: torch.tensor(v, requires_grad=k in wrt) for k, v in tensors.items()}
        try:
            value = peer(**given, **params, reduction=reduction)
            grads = torch.autograd.grad(value.sum(), [given[k] for k in wrt], allow_unused=True)
            return value.detach().numpy(), arrays(grads, [tensors[k] for k in wrt])
        except (TypeError, ValueError, RuntimeError):
            pass
    truth = exact(select(forms, params), held, params, reduction=reduction, upstream=1.0, wrt=wrt)
    return truth.value.high, [truth.grad[k].high for k in wrt]


def arrays(grads: Any, like: list[Any]) -> list[np.ndarray]:
    """Gradients as arrays, 0 by what the loss does not depend on."""
    return [np.zeros(x.shape) if g is None else g.numpy() for g, x in zip(grads, like, strict=True)]


def test_there_are_such_losses() -> None:
    assert {name for name, _ in FORMS.values()} >= {"cross_entropy", "nll_loss", "triplet_margin_loss"}


@pytest.mark.parametrize("key", FORMS)
def test_every_combination(key: str, targets: dict[str, Any], T: Any) -> None:
    name, forms = FORMS[key]
    wrt = [t.name for t in forms[0].wrt]
    reductions = [r for r in forms[0].loss.reductions if r != "batchmean"]
    wrong, count = [], 0
    for (tensors, params, words), dtype, reduction in itertools.product(combinations(forms[0]), TOLERANCE, reductions):
        held = {k: v.astype(dtype) if v.dtype.kind == "f" else v for k, v in tensors.items()}
        exactly = {k: v.astype(np.float64) if v.dtype.kind == "f" else v for k, v in held.items()}
        value, grads = expected(name, forms, exactly, held, params, reduction, wrt)
        found = {t: getattr(module, name).value_and_grad(**held, **params, reduction=reduction, wrt=wrt) for t, module in targets.items()}
        leaves = {k: torch.tensor(v, requires_grad=k in wrt) for k, v in held.items()}
        mine = getattr(T, name)(**leaves, **params, reduction=reduction)
        slopes = torch.autograd.grad(mine.sum(), [leaves[k] for k in wrt], allow_unused=True)
        found["torch"] = mine.detach().numpy(), arrays(slopes, [held[k] for k in wrt])
        for target, (v, gs) in found.items():
            for what, a, b in (("value", v, value), *zip([f"gradient by {k}" for k in wrt], gs, grads, strict=True)):
                count += 1
                if np.shape(a) != np.shape(b) or not np.allclose(a, b, TOLERANCE[dtype], TOLERANCE[dtype], equal_nan=True):
                    both = f"{np.asarray(a).tolist()}, not {np.asarray(b).tolist()}"
                    wrong.append(f"{what} on {target}, {dtype}, {reduction}, {words}: {both}")
    assert not wrong, "\n".join([f"{len(wrong)} of {count}:", *wrong[:8]])

"""losslib.numpy behind autograd, in the place of losslib.torch: what the compiler derived, for value, gradient and second order."""

from __future__ import annotations

import importlib
import types
from typing import Any

import numpy as np
import torch


def function(loss: str) -> Any:
    library = importlib.import_module("losslib.numpy")
    ours = getattr(library, loss)

    class Slope(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, names: Any, how: Any, upstream: Any, *tensors: Any) -> Any:
            ctx.names, ctx.how = names, how
            ctx.save_for_backward(upstream, *tensors)
            given = {k: v.detach().numpy() for k, v in zip(names, tensors, strict=True)}
            wrt = tuple(k for k, v in zip(names, tensors, strict=True) if v.is_floating_point())
            _, grads = ours.value_and_grad(**given, **how, wrt=wrt, upstream=upstream.numpy())
            return tuple(torch.tensor(np.asarray(getattr(grads, k))) for k in wrt)

        @staticmethod
        def backward(ctx: Any, *directions: Any) -> Any:
            upstream, *tensors = ctx.saved_tensors
            given = {k: v.detach().numpy() for k, v in zip(ctx.names, tensors, strict=True)}
            wrt = tuple(k for k, v in zip(ctx.names, tensors, strict=True) if v.is_floating_point())
            along = {k: d.numpy() for k, d in zip(wrt, directions, strict=True)}
            seconds = ours.hvp(**given, **ctx.how, direction=along, wrt=wrt, upstream=upstream.numpy())
            rate = ours.jvp(**given, **ctx.how, direction=along, wrt=wrt)
            found = {k: torch.tensor(np.asarray(getattr(seconds, k))) for k in wrt}
            return (None, None, torch.tensor(np.asarray(rate)), *(found.get(k) for k in ctx.names))

    class Value(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, names: Any, how: Any, *tensors: Any) -> Any:
            ctx.names, ctx.how = names, how
            ctx.save_for_backward(*tensors)
            given = {k: v.detach().numpy() for k, v in zip(names, tensors, strict=True)}
            return torch.tensor(np.asarray(ours(**given, **how)))

        @staticmethod
        def backward(ctx: Any, upstream: Any) -> Any:
            tensors = ctx.saved_tensors
            grads = iter(Slope.apply(ctx.names, ctx.how, upstream, *tensors))
            return (None, None, *(next(grads) if v.is_floating_point() else None for v in tensors))

    import inspect
    signature = inspect.signature(ours.__call__ if not inspect.isfunction(ours) else ours)

    def call(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        tensors = {k: v for k, v in given.items() if isinstance(v, torch.Tensor)}
        how = {k: v for k, v in given.items() if k not in tensors and v is not None}
        return Value.apply(tuple(tensors), how, *tensors.values())

    return call


def fill(T: types.ModuleType) -> None:
    import inspect

    from peercases import DEFINITIONS, modules

    for loss in DEFINITIONS:
        setattr(T, loss, function(loss))
    for loss, name in modules().items():
        base, call = getattr(torch.nn, name), getattr(T, loss)

        def forward(self: Any, *tensors: Any, call: Any = call, base: Any = base) -> Any:
            own = [p for p in inspect.signature(base).parameters if p not in ("size_average", "reduce")]
            return call(*tensors, **{k: getattr(self, k) for k in own if getattr(self, k) is not None})

        setattr(T, name, type(name, (base,), {"forward": forward}))

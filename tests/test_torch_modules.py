"""The torch target as users call it: signatures, reductions, deprecated arguments, the class forms. PyTorch's are the model."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peercases import DEFINITIONS, LIKE_TORCH, PLAIN_SMOOTH, WITH_PEER, Call, each_plain, ids, modules, peer_of, same
from torch import Tensor

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


# Arguments

WORDS = ("none", "mean", "sum", "batchmean", "elementwise_mean", "MEAN", "", "foo")


@pytest.mark.parametrize("word", WORDS)
@each_plain
def test_reduction_words(call: Call, word: str, T: Any) -> None:
    """What PyTorch takes is taken, and what it refuses is refused with its exception; elementwise_mean is the mean everywhere."""
    peer, function = peer_of(call.loss), getattr(T, call.loss)
    try:
        expected = call.value(peer, word)
    except Exception as error:
        if word == "elementwise_mean":
            return
        with pytest.raises(type(error)):
            call.value(function, word)
        return
    same(call.value(function, word), expected)


LEGACY = [(a, b) for a in (None, False, True) for b in (None, False, True)]
legacy = pytest.mark.parametrize(("size_average", "reduce"), LEGACY)
OLD = tuple(c for c in PLAIN_SMOOTH if "size_average" in inspect.signature(peer_of(c.loss)).parameters)


def warned(function: Callable[[], Any]) -> tuple[Any, list[type[Warning]]]:
    """The result, and the kinds of the warnings about these arguments."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = function()
    return result, [w.category for w in caught if "size_average" in str(w.message)]


@legacy
@pytest.mark.parametrize("call", OLD, ids=ids(OLD))
def test_legacy_arguments(call: Call, size_average: bool | None, reduce: bool | None, T: Any) -> None:
    """The deprecated arguments win over reduction, with a warning."""
    peer, function = peer_of(call.loss), getattr(T, call.loss)
    how: dict[str, Any] = {**call.tensors, **call.params, "size_average": size_average, "reduce": reduce, "reduction": "sum"}
    found, ours = warned(lambda: function(**how))
    expected, others = warned(lambda: peer(**how))
    same(found, expected)
    assert ours == others


@legacy
@pytest.mark.parametrize("loss", modules())
def test_legacy_arguments_of_modules(loss: str, size_average: bool | None, reduce: bool | None, T: Any) -> None:
    name = modules()[loss]
    if "size_average" not in inspect.signature(getattr(torch.nn, name)).parameters:
        pytest.skip("NOT CHECKED: deprecated arguments, which this class of PyTorch never had")
    made, ours = warned(lambda: getattr(T, name)(size_average=size_average, reduce=reduce, reduction="sum"))
    expected, others = warned(lambda: getattr(torch.nn, name)(size_average=size_average, reduce=reduce, reduction="sum"))
    assert made.reduction == expected.reduction
    assert ours == others


def parameters(signature: inspect.Signature) -> list[tuple[str, Any]]:
    return [(p.name, p.default) for p in signature.parameters.values()]


def same_signature(ours: Any, theirs: Any) -> None:
    """Names, order and defaults; what may be given by position there may be so here."""
    mine, other = inspect.signature(ours), inspect.signature(theirs)
    assert parameters(mine)[:len(parameters(other))] == parameters(other)      # ours may take more, behind
    for p in other.parameters.values():
        if p.kind is not p.KEYWORD_ONLY:
            assert mine.parameters[p.name].kind is p.kind, p.name


@pytest.mark.parametrize("loss", LIKE_TORCH)
def test_signatures(loss: str, T: Any) -> None:
    same_signature(getattr(T, loss), peer_of(loss))


@pytest.mark.parametrize("loss", modules())
def test_signatures_of_modules(loss: str, T: Any) -> None:
    name = modules()[loss]
    same_signature(getattr(T, name), getattr(torch.nn, name))
    same_signature(getattr(T, name).forward, getattr(torch.nn, name).forward)


def test_positional_arguments(T: Any) -> None:
    """By position, in PyTorch's order, with every optional argument."""
    for call in PLAIN_SMOOTH:
        peer, function = peer_of(call.loss), getattr(T, call.loss)
        args = []
        for p in inspect.signature(peer).parameters.values():
            if p.kind is not p.KEYWORD_ONLY:
                args.append(call.tensors[p.name] if p.name in call.tensors else call.params.get(p.name, p.default))
        same(function(*args), peer(*args))


# Modules

def constructed(call: Call, namespace: Any) -> Any:
    """The class form of a call: what its constructor takes goes there."""
    maker = getattr(namespace, modules()[call.loss])
    names = inspect.signature(getattr(torch.nn, modules()[call.loss])).parameters
    return maker(**{k: v for k, v in {**call.tensors, **call.params}.items() if k in names})


def forwarded(call: Call, module: Any) -> Any:
    """The call of the class form."""
    names = inspect.signature(getattr(torch.nn, modules()[call.loss])).parameters
    return module(*[v for k, v in call.tensors.items() if k not in names])


def fits_module(call: Call) -> bool:
    """Whether every tensor of a call goes to the constructor or to forward, and the class has every parameter."""
    if call.loss not in modules():
        return False
    cls = getattr(torch.nn, modules()[call.loss])
    taken = set(inspect.signature(cls).parameters)
    forward = [p for p in inspect.signature(cls.forward).parameters if p != "self"]
    return set(call.params) <= taken and len([k for k in call.tensors if k not in taken]) == len(forward)


MODULES = tuple(c for c in WITH_PEER if fits_module(c))
each_module = pytest.mark.parametrize("call", MODULES, ids=ids(MODULES))


def test_every_loss_has_a_module_call() -> None:
    assert {c.loss for c in MODULES} == {loss for loss in modules() if not getattr(DEFINITIONS[loss], "tables", ())}


@each_module
def test_module(call: Call, T: Any) -> None:
    """Like PyTorch's class: value, state, attributes, text."""
    made, other = constructed(call, T), constructed(call, torch.nn)
    assert isinstance(made, torch.nn.Module)
    same(forwarded(call, made), forwarded(call, other))
    assert list(made.state_dict()) == list(other.state_dict())
    assert [k for k, _ in made.named_buffers()] == [k for k, _ in other.named_buffers()]
    assert not list(made.parameters())
    for k, v in made.state_dict().items():
        same(v, other.state_dict()[k])
    made_by_peer = [k for k in vars(other)["_modules"] if getattr(made, k) is None]      # a default that ours computes itself
    for k in inspect.signature(type(other)).parameters:
        if hasattr(other, k) and k not in made_by_peer:
            mine, value = getattr(made, k), getattr(other, k)
            assert (mine is value) or (mine == value if not isinstance(value, Tensor) else torch.equal(mine, value)), k
    assert made_by_peer or repr(made) == repr(other)
    assert type(made).__name__ == type(other).__name__


@each_module
def test_module_copies(call: Call, T: Any) -> None:
    """deepcopy, pickle, torch.save, a loaded state."""
    made = constructed(call, T)
    expected = forwarded(call, constructed(call, torch.nn))
    stream = io.BytesIO()
    torch.save(made, stream)
    stream.seek(0)
    for other in (copy.deepcopy(made), copy.copy(made), pickle.loads(pickle.dumps(made)), torch.load(stream, weights_only=False)):
        same(forwarded(call, other), expected)
    other = copy.deepcopy(made)
    for buffer in other.buffers():
        buffer.mul_(3)
    assert all(not torch.equal(a, b) for a, b in zip(other.buffers(), made.buffers(), strict=True))
    other.load_state_dict(made.state_dict())
    same(forwarded(call, other), expected)


@each_module
def test_module_moves(call: Call, T: Any) -> None:
    """.to(dtype), .to("meta"), .half().float(): buffers go along."""
    narrow = call.to(torch.float32)
    made, other = constructed(call, T).to(torch.float32), constructed(call, torch.nn).to(torch.float32)
    value = forwarded(narrow, made)
    assert value.dtype is torch.float32
    same(value.double(), forwarded(narrow, other).double(), rtol=2e-6, atol=2e-6)
    assert all(b.dtype is torch.float32 for b in made.buffers())
    assert all(b.device.type == "meta" for b in constructed(call, T).to("meta").buffers())


@each_module
def test_module_in_a_model(call: Call, T: Any) -> None:
    """As a part of another module it is found, compiled and in eval mode the same."""
    model = torch.nn.ModuleDict({"loss": constructed(call, T)})
    assert list(model.state_dict()) == [f"loss.{k}" for k in constructed(call, torch.nn).state_dict()]
    same(forwarded(call, model.eval()["loss"]), forwarded(call, constructed(call, torch.nn)))


@pytest.mark.parametrize("loss", sorted({c.loss for c in MODULES}))
def test_bad_reduction_of_a_module(loss: str, T: Any) -> None:
    """Noticed by the call, not by the constructor, as in PyTorch."""
    name = modules()[loss]
    made = getattr(T, name)(reduction="foo")
    call = next(c for c in MODULES if c.loss == loss and c.plain)
    with pytest.raises(ValueError):
        forwarded(call, made)


def test_everything_is_there(T: Any) -> None:
    """Every definition has its function; every class of PyTorch its class."""
    assert [n for n in DEFINITIONS if not callable(getattr(T, n, None))] == []
    assert [m for m in modules().values() if not isinstance(getattr(T, m, None), type)] == []

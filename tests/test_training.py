"""A small model trained on scanned digits: with our losses and with PyTorch's, from the same seed, the same curve."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

EPOCHS, BATCH = 5, 128
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Task:
    """What is learnt from the digits.

    Attributes:
        outputs: how many numbers the model gives for an image.
        targets: made of the digits, of 64-bit integers.
        make: the loss, of a namespace with PyTorch's classes.
    """

    outputs: int
    targets: Callable[[Tensor], Tensor]
    make: Callable[[Any, torch.dtype], Loss]


def rare_digits(dtype: torch.dtype) -> Tensor:
    """A weight for each digit."""
    return torch.linspace(0.5, 2.0, 10, dtype=dtype)


TASKS: dict[str, Task] = {
    "cross-entropy": Task(10, lambda d: d, lambda m, dtype: m.CrossEntropyLoss()),
    "cross-entropy-weighted-smoothed": Task(
        10, lambda d: d, lambda m, dtype: m.CrossEntropyLoss(weight=rare_digits(dtype), label_smoothing=0.1)),
    "binary-of-each-digit": Task(
        10, lambda d: torch.nn.functional.one_hot(d, 10), lambda m, dtype: m.BCEWithLogitsLoss(pos_weight=rare_digits(dtype))),
    "huber-of-the-digit": Task(1, lambda d: d[:, None], lambda m, dtype: m.HuberLoss(delta=0.5)),
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The model is too small for more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def digits() -> tuple[Tensor, Tensor]:
    """1797 images of 8 x 8 pixels between 0 and 1, and which digit each shows."""
    from sklearn.datasets import load_digits

    found = load_digits()
    return torch.tensor(found.data / 16), torch.tensor(found.target)


def train(task: Task, namespace: Any, dtype: torch.dtype, wrap: Callable[[Loss], Loss] = lambda loss: loss) -> tuple[Tensor, Tensor]:
    """The loss at every step, and all parameters at the end."""
    torch.manual_seed(0)
    images, labels = digits()
    images, targets = images.to(dtype), task.targets(labels)
    if task.targets(labels[:1]).shape != labels[:1].shape:
        targets = targets.to(dtype)
    model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, task.outputs)).to(dtype)
    loss = wrap(task.make(namespace, dtype))
    optimiser = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    curve = []
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(images)).split(BATCH):
            optimiser.zero_grad()
            value = loss(model(images[rows]), targets[rows])
            value.backward()
            optimiser.step()
            curve.append(value.detach())
    return torch.stack(curve), torch.cat([p.detach().flatten() for p in model.parameters()])


@cache
def peer(name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return train(TASKS[name], torch.nn, dtype)


# Sums over a batch are rounded in another order: gradients agree to about 1e-7 in float32 and 1e-16 in float64, and training lets
# that grow some hundredfold in 75 steps.
TOLERANCE = {torch.float32: {"rtol": 5e-5, "atol": 5e-5}, torch.float64: {"rtol": 1e-12, "atol": 1e-12}}
each_task = pytest.mark.parametrize("name", TASKS)
each_type = pytest.mark.parametrize("dtype", TOLERANCE, ids=["f32", "f64"])


@each_type
@each_task
def test_same_curve(name: str, dtype: torch.dtype, T: Any) -> None:
    curve, parameters = train(TASKS[name], T, dtype)
    expected, trained = peer(name, dtype)
    torch.testing.assert_close(curve, expected, **TOLERANCE[dtype])
    torch.testing.assert_close(parameters, trained, **TOLERANCE[dtype])


@each_task
def test_it_learns(name: str, T: Any) -> None:
    """The last steps are better than the first by far: the curve is that of training, not of noise."""
    curve, _ = train(TASKS[name], T, torch.float32)
    assert curve[-10:].mean() < 0.5 * curve[:3].mean()


@each_task
def test_compiled(name: str, T: Any) -> None:
    """The same with the loss compiled."""
    torch._dynamo.reset()
    curve, _ = train(TASKS[name], T, torch.float64, lambda loss: torch.compile(loss, backend="aot_eager", fullgraph=True))
    torch.testing.assert_close(curve, peer(name, torch.float64)[0], **TOLERANCE[torch.float64])


def test_micro_batches(T: Any) -> None:
    """Sums over parts of a batch, divided by its size, give the gradients of the whole."""
    torch.manual_seed(0)
    images, labels = digits()
    images, labels = images[:512], labels[:512]
    model = torch.nn.Linear(64, 10).double()
    for k in range(0, 512, 100):
        (T.CrossEntropyLoss(reduction="sum", label_smoothing=0.1)(model(images[k:k + 100]), labels[k:k + 100]) / 512).backward()
    parts = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    torch.nn.CrossEntropyLoss(label_smoothing=0.1)(model(images), labels).backward()
    torch.testing.assert_close(parts, [p.grad for p in model.parameters()], rtol=1e-10, atol=1e-12)


@each_type
@each_task
def test_a_fault_is_seen(name: str, dtype: torch.dtype) -> None:
    """A loss that is off by one part in a thousand in its gradient, and not in its value, gives another curve."""
    def off(loss: Loss) -> Loss:
        def wrong(input: Tensor, target: Tensor) -> Tensor:
            return loss(input + 1e-3 * (input - input.detach()) * (torch.arange(input.shape[1]) - 0.5), target)
        return wrong

    curve, _ = train(TASKS[name], torch.nn, dtype, off)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(curve, peer(name, dtype)[0], **TOLERANCE[dtype])

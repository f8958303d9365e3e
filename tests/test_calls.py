"""Calls that are wrong: each target raises the same error with the same message, which names what is wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

A, B = np.ones((2, 3)), np.ones((3, 4))
X, T = np.zeros((2, 3)), np.array([0, 1])
ONE = np.ones(3)

# Loss, arguments, built-in error that it also is, and parts of the message.
BAD: list[tuple[str, tuple[Any, ...], dict[str, Any], tuple[type[Exception], ...], tuple[str, ...]]] = [
    ("mse_loss", (A, B), {}, (ValueError, RuntimeError), ("input (2, 3)", "target (3, 4)")),
    ("l1_loss", (A, A), {"weight": ONE}, (ValueError, RuntimeError), ("weight (3,)", "input (2, 3)")),
    ("binary_cross_entropy", (A, ONE), {}, (ValueError,), ("target (3,)", "input (2, 3)")),
    ("binary_cross_entropy_with_logits", (A, ONE), {}, (ValueError,), ("target (3,)", "input (2, 3)")),
    ("binary_cross_entropy_with_logits", (ONE, ONE), {"weight": A}, (RuntimeError,), ("weight (2, 3)", "input (3,)")),
    ("binary_cross_entropy_with_logits", (ONE, ONE), {"pos_weight": A}, (RuntimeError,), ("pos_weight (2, 3)", "input (3,)")),
    ("soft_margin_loss", (ONE, A), {}, (RuntimeError,), ("target (2, 3)", "input (3,)")),
    ("gaussian_nll_loss", (A, A, np.ones((1, 1))), {}, (ValueError,), ("var (1, 1)", "input (2, 3)")),
    ("gaussian_nll_loss", (A, A, ONE), {}, (ValueError,), ("var (3,)", "input (2, 3)")),
    ("margin_ranking_loss", (A, ONE, A), {}, (RuntimeError,), ("same number of dimensions", "input1 (2, 3)", "input2 (3,)")),
    ("triplet_margin_loss", (A, A, ONE), {}, (RuntimeError,), ("anchor (2, 3)", "negative (3,)")),
    ("triplet_margin_loss", (A, A, np.ones((2, 4))), {}, (RuntimeError,), ("(2, 3)", "negative (2, 4)")),
    ("cross_entropy", (X, np.array([0, 1, 2])), {}, (ValueError,), ("target (3,)", "input (2, 3)")),
    ("cross_entropy", (X, T, np.ones(4)), {}, (RuntimeError,), ("weight (4,)", "input (2, 3)")),
    ("cross_entropy", (np.zeros((2, 3, 4)), np.zeros((2, 5), int)), {}, (RuntimeError,), ("target (2, 5)", "input (2, 3, 4)")),
    ("cross_entropy", (np.float64(1), np.array(0)), {}, (ValueError,), ("input", "()")),
    ("nll_loss", (np.zeros((2, 2)), np.zeros((2, 2), int)), {}, (RuntimeError,), ("target (2, 2)", "input (2, 2)")),
    ("cosine_embedding_loss", (A, A, A), {}, (RuntimeError,), ("target (2, 3)", "(2, 3)")),
    # Types
    ("mse_loss", (A.astype(complex), A), {}, (TypeError, RuntimeError), ("input has the type complex128",)),
    ("mse_loss", (A, A.astype(np.float16)), {}, (TypeError,), ("target has the type float16", "astype")),
    ("mse_loss", (A, A.astype(str)), {}, (TypeError,), ("target has the type",)),
    ("nll_loss", (X, np.array([True, False])), {}, (TypeError, RuntimeError), ("target", "integers", "bool")),
    ("nll_loss", (X, np.array([0.0, 1.0])), {}, (TypeError, RuntimeError), ("target", "integers", "float64")),
    # Indices
    ("nll_loss", (X, np.array([0, 3])), {}, (IndexError, ValueError), ("target[1] is 3", "0 to 2")),
    ("nll_loss", (X, np.array([-1, 0])), {}, (IndexError,), ("target[0] is -1", "ignore_index=-100")),
    ("cross_entropy", (X, np.array([0, 10**12])), {}, (IndexError,), ("target[1] is 1000000000000", "0 to 2")),
    ("cross_entropy", (X, np.array([0, -100])), {"ignore_index": 1}, (IndexError,), ("target[1] is -100", "ignore_index=1")),
    ("cross_entropy", (np.zeros((1, 2, 3, 1)), np.array([[[0], [1], [2]]])), {}, (IndexError,), ("target[0, 2, 0] is 2",)),
    ("cross_entropy", (np.zeros(3), np.array(7)), {}, (IndexError,), ("target is 7",)),
    # Values
    ("binary_cross_entropy", (1.5 * A, A), {}, (ValueError, RuntimeError), ("input[0, 0] is 1.5", "between 0 and 1")),
    ("binary_cross_entropy", (A, -0.5 * A), {}, (RuntimeError,), ("target[0, 0] is -0.5", "between 0 and 1")),
    ("gaussian_nll_loss", (A, A, -A), {}, (ValueError,), ("var[0, 0] is -1.0", "at least 0")),
    # Parameters
    ("huber_loss", (A, A), {"delta": -1}, (ValueError, RuntimeError), ("delta must be greater than 0", "got -1")),
    ("huber_loss", (A, A), {"delta": 0}, (RuntimeError,), ("delta must be greater than 0", "got 0")),
    ("huber_loss", (A, A), {"delta": "big"}, (TypeError,), ("delta is a number", "'big'")),
    ("smooth_l1_loss", (A, A), {"beta": -1.0}, (RuntimeError,), ("beta must be at least 0",)),
    ("cross_entropy", (X, T), {"label_smoothing": 1.5}, (RuntimeError,), ("label_smoothing must be between 0 and 1", "got 1.5")),
    ("cross_entropy", (X, T), {"label_smoothing": -0.1}, (RuntimeError,), ("label_smoothing must be between 0 and 1",)),
    ("cross_entropy", (X, X), {"ignore_index": 1}, (ValueError,), ("ignore_index=1", "does not apply")),
    ("triplet_margin_loss", (A, A, A), {"margin": 0.0}, (ValueError,), ("margin must be greater than 0", "got 0.0")),
    ("triplet_margin_loss", (A, A, A), {"p": -1.0}, (ValueError,), ("p must be at least 0",)),
    ("triplet_margin_loss", (A, A, A), {"swap": 1}, (TypeError,), ("swap is True or False",)),
    ("nll_loss", (A, np.array([0, 1])), {"ignore_index": -100.5}, (TypeError,), ("ignore_index is an integer", "-100.5")),
    # Reductions, and arguments
    ("mse_loss", (A, A), {"reduction": "foo"}, (ValueError,), ("foo is not a valid value for reduction", "none, mean, sum")),
    ("mse_loss", (A, A), {"reduction": "batchmean"}, (ValueError,), ("batchmean",)),
    ("kl_div", (A, A), {"reduction": "median"}, (ValueError,), ("none, mean, sum, batchmean",)),
    ("mse_loss", (A, None), {}, (TypeError, ValueError), ("target is missing",)),
    ("mse_loss", (A,), {}, (TypeError,), ("target",)),
    ("mse_loss", (A, A), {"out": np.empty((2, 3))}, (ValueError,), ("out=", "reduction='none'")),
    ("mse_loss", (A, A), {"reduction": "none", "out": np.empty(3)}, (ValueError,), ("out has the shape (3,)", "(2, 3)")),
    ("mse_loss", (A, A), {"reduction": "none", "out": np.empty((2, 3), "f4")}, (TypeError,), ("out", "float64")),
    ("mse_loss", (A, A), {"reduction": "none", "out": [0.0]}, (TypeError,), ("out", "writeable array")),
    ("mse_loss", (A, A), {"reduction": "none", "out": np.broadcast_to(0.0, (2, 3))}, (TypeError,), ("writeable",)),
]


def refusal(call: Any, kinds: tuple[type[Exception], ...], parts: tuple[str, ...]) -> str:
    """The message of the error that a call raises."""
    with pytest.raises(kinds[0]) as caught:
        call()
    for kind in kinds:
        assert isinstance(caught.value, kind)
    message = str(caught.value)
    for part in parts:
        assert part in message
    return message


def refused(targets: dict[str, Any], call: Any, kinds: tuple[type[Exception], ...], parts: tuple[str, ...]) -> None:
    """Every target refuses, with one message."""
    messages = {name: refusal(lambda library=library: call(library), kinds, parts) for name, library in targets.items()}
    assert len(set(messages.values())) == 1, messages


@pytest.mark.parametrize(("loss", "arrays", "how", "kinds", "parts"), BAD, ids=[f"{b[0]}-{i}" for i, b in enumerate(BAD)])
def test_bad_calls(loss: str, arrays: Any, how: Any, kinds: Any, parts: Any, targets: dict[str, Any]) -> None:
    refused(targets, lambda library: getattr(library, loss)(*arrays, **how), kinds, parts)
    if "out" not in how:
        refused(targets, lambda library: getattr(library, loss).value_and_grad(*arrays, **how), kinds, parts)


METHODS: list[tuple[str, tuple[Any, ...], dict[str, Any], tuple[type[Exception], ...], tuple[str, ...]]] = [
    ("grad", (A, A), {"wrt": "nothing"}, (TypeError, ValueError), ("no derivative by 'nothing'", "input", "weight")),
    ("grad", (A, A), {"wrt": "weight"}, (TypeError, ValueError), ("'weight'", "left out")),
    ("grad", (A, A), {"upstream": ONE}, (ValueError,), ("upstream (3,)", "one number")),
    ("grad", (A, A), {"upstream": np.ones((3, 2)), "reduction": "none"}, (ValueError,), ("upstream (3, 2)", "(2, 3)")),
    ("grad", (A, A), {"out": {"input": np.empty(3)}}, (ValueError,), ("out['input'] has the shape (3,)", "(2, 3)")),
    ("grad", (A, A), {"out": {"input": np.empty((2, 3), "f4")}}, (TypeError,), ("out['input']", "float64")),
    ("grad", (A, A), {"out": {"target": np.empty((2, 3))}}, (ValueError,), ("'target'", "not among")),
    ("hvp", (A, A, ONE), {}, (ValueError,), ("direction of input has the shape (3,)", "(2, 3)")),
    ("jvp", (A, A, ONE), {}, (ValueError,), ("direction of input has the shape (3,)", "(2, 3)")),
    ("jvp", (A, A, {"nothing": A}), {}, (TypeError, ValueError), ("'nothing'",)),
    ("jvp", (A, A), {}, (TypeError,), ("direction",)),
    ("hessian_diag", (ONE, A), {}, (ValueError,), ("input (3,)", "Expand")),
]


@pytest.mark.parametrize(("method", "arrays", "how", "kinds", "parts"), METHODS, ids=[f"{m[0]}-{i}" for i, m in enumerate(METHODS)])
def test_bad_methods(method: str, arrays: Any, how: Any, kinds: Any, parts: Any, targets: dict[str, Any]) -> None:
    refused(targets, lambda library: getattr(library.mse_loss, method)(*arrays, **how), kinds, parts)


def test_errors_have_one_base(library: Any) -> None:
    for call in (lambda: library.mse_loss(A, B), lambda: library.nll_loss(X, np.array([0, 9])),
                 lambda: library.mse_loss(A, A, reduction="foo"), lambda: library.mse_loss(A, 1j * A)):
        with pytest.raises(library.LossError):
            call()


@pytest.mark.parametrize("loss", ["nll_loss", "cross_entropy"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_indices_of_strided_batches(loss: str, dtype: Any, targets: dict[str, Any], rng: np.random.Generator) -> None:
    """Classes at dimension 1 give the batch gaps in memory, and labels are wider than float32: neither misleads C."""
    for trial in range(40):
        shape = tuple(rng.integers(1, 8, 3))
        x, t = rng.normal(size=shape).astype(dtype), rng.integers(0, shape[1], (shape[0], shape[2]))
        t[rng.random(t.shape) < 0.1] = -100
        found = [getattr(library, loss)(x, t, reduction="none") for library in targets.values()]
        np.testing.assert_allclose(found[0], found[1], rtol=2e-5, atol=1e-6, err_msg=str(trial))


def test_bad_index_far_into_a_big_batch(targets: dict[str, Any], rng: np.random.Generator) -> None:
    """Threads that find it together agree on the first; and nothing was read out of bounds."""
    x, t = np.zeros((50_000, 4)), rng.integers(0, 4, 50_000)
    t[[31_234, 49_999]] = 2**40, -7
    refused(targets, lambda library: library.cross_entropy(x, t), (IndexError,), ("target[31234] is 1099511627776",))


# Buffers of the caller

@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_out_is_used(dtype: Any, library: Any, rng: np.random.Generator) -> None:
    x, t = rng.normal(size=(2, 4, 3)).astype(dtype)
    out = np.full((4, 3), 9, dtype)
    found = library.mse_loss(x, t, reduction="none", out=out)
    assert found is out or np.shares_memory(found, out)
    np.testing.assert_array_equal(out, library.mse_loss(x, t, reduction="none"))
    for buffer in (np.empty((4, 3), dtype), np.empty((3, 4), dtype).T, np.empty((8, 6), dtype)[::2, ::-2]):
        buffer[...] = 9
        result = library.mse_loss.grad(x, t, out={"input": buffer})
        assert result.input is buffer or np.shares_memory(result.input, buffer)
        np.testing.assert_array_equal(buffer, library.mse_loss.grad(x, t)[0])
    plain = library.mse_loss(x, t, reduction="none")
    strided = np.full((8, 3), 9, dtype)
    library.mse_loss(x, t, reduction="none", out=strided[::2])
    np.testing.assert_array_equal(strided[::2], plain)
    np.testing.assert_array_equal(strided[1::2], 9)


@pytest.mark.parametrize("classes", [5, 100])
def test_out_is_an_input(classes: int, library: Any, rng: np.random.Generator) -> None:
    """Kernels may keep what they need again where a result will be."""
    x, t = rng.normal(size=(70, classes)), rng.integers(0, classes, 70)
    a, b = rng.normal(size=(2, 70, classes))
    given = [("cross_entropy", (x, t), "input", x), ("cosine_embedding_loss", (a, b, np.ones(70)), "input1", a)]
    for loss, arrays, name, buffer in given:
        plain = getattr(getattr(library, loss).grad(*arrays, wrt=name), name).copy()
        found = getattr(library, loss).grad(*arrays, wrt=name, out={name: buffer})
        assert getattr(found, name) is buffer
        np.testing.assert_array_equal(buffer, plain)


def test_out_of_classes(library: Any, rng: np.random.Generator) -> None:
    """Where kernels have the classes last, and the caller has them in the middle."""
    x, t = rng.normal(size=(3, 4, 2)), rng.integers(0, 4, (3, 2))
    buffer = np.empty((3, 4, 2))
    result = library.cross_entropy.grad(x, t, out={"input": buffer})
    assert np.shares_memory(result.input, buffer)
    np.testing.assert_allclose(buffer, library.cross_entropy.grad(x, t)[0], rtol=1e-15)


def test_out_of_a_broadcast_input(library: Any, rng: np.random.Generator) -> None:
    x, t, buffer = rng.normal(size=3), rng.normal(size=(4, 3)), np.empty(3)
    result = library.mse_loss.grad(x, t, reduction="sum", out={"input": buffer})
    assert np.shares_memory(result.input, buffer)
    np.testing.assert_allclose(buffer, (2 * (x - t)).sum(0), rtol=1e-14)


def test_inputs_are_left_alone(library: Any, rng: np.random.Generator) -> None:
    x, t = rng.normal(size=(2, 4, 3))
    kept = x.copy(), t.copy()
    x.flags.writeable = t.flags.writeable = False
    library.mse_loss.value_and_grad(x, t)
    np.testing.assert_array_equal((x, t), kept)

"""Other frameworks' forms of the losses: the numbers that those frameworks' own tests state, and what each dialect says of its base."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from losscomp import catalogue, compare, plan
from losscomp.errors import DefinitionError, LosscompError
from losscomp.language import Loss

CASES: dict[int, Any] = {c["id"]: c for c in json.loads((Path(__file__).parent / "peer-cases.json").read_text())}
DEFINITIONS = catalogue.load(catalogue.builtin_definitions())
DIALECTS = {name: d for name, d in DEFINITIONS.items() if isinstance(d, Loss) and d.dialect_of}

# What each case calls: the loss, its arguments as the case names them, in our order, and what is passed by name.
CALLS: dict[int, tuple[str, str, dict[str, Any]]] = {
    26: ("tf1_softmax_cross_entropy", "target logits", {}),
    27: ("tf1_softmax_cross_entropy", "target logits row_weight", {"reduction": "sum_by_nonzero_weights"}),
    28: ("tf1_softmax_cross_entropy", "target logits", {"label_smoothing": 0.1}),
    29: ("tf1_sigmoid_cross_entropy", "target logits", {}),
    30: ("tf_sigmoid_cross_entropy_with_logits", "target logits", {}),
    31: ("tf1_sigmoid_cross_entropy", "target logits weight", {"reduction": "sum_by_nonzero_weights"}),
    32: ("tf1_sigmoid_cross_entropy", "target logits", {"label_smoothing": 0.1}),
    33: ("tf1_hinge_loss", "target logits", {}),
    34: ("tf1_hinge_loss", "target logits", {}),
    35: ("tf1_huber_loss", "target pred", {"delta": 1.0}),
    36: ("tf1_huber_loss", "target pred", {"delta": 0.5}),
    37: ("tf1_absolute_difference", "target pred", {}),
    38: ("tf1_absolute_difference", "target pred weight", {}),
    39: ("tf1_mean_squared_error", "target pred weight", {}),
    44: ("keras_mean_squared_error", "target pred row_weight", {"reduction": "sum_over_batch_size"}),
    46: ("keras_mean_squared_logarithmic_error", "target pred", {"reduction": "sum_over_batch_size"}),
    47: ("keras_hinge", "target pred", {}),
    48: ("keras_squared_hinge", "target pred", {}),
    50: ("keras_binary_crossentropy", "target pred", {"reduction": "sum_over_batch_size"}),
    51: ("keras_binary_crossentropy", "target pred", {"reduction": "sum_over_batch_size"}),
    52: ("keras_binary_crossentropy", "target logits", {"from_logits": True}),
    53: ("keras_binary_crossentropy", "target logits", {"from_logits": True, "label_smoothing": 0.1, "reduction": "sum_over_batch_size"}),
    54: ("keras_categorical_crossentropy", "target_index pred", {"reduction": "sum_over_batch_size"}),
    55: ("keras_sparse_categorical_crossentropy", "target logits", {"from_logits": True}),
    56: ("keras_sparse_categorical_crossentropy", "target logits", {"from_logits": True, "ignore_class": -1}),
}
GRADIENTS = {41: ("target logits", True), 42: ("target logits", False)}
# Losses that the dialects have no base for.
ABSENT = {40: "mean_pairwise_squared_error", 45: "mape", 49: "categorical_hinge", 57: "binary_focal", 58: "binary_focal",
          59: "categorical_focal",
          60: "ctc", 61: "dice", 62: "dice", 63: "tversky", 64: "tversky", 65: "circle", 66: "generalized_cross_entropy",
          **dict.fromkeys(range(67, 77), "iou_loss"), 87: "multilabel_margin"}


def arguments(case: Any, names: str) -> list[np.ndarray]:
    """The arrays of a case; a label that is one of several classes as Keras's own test gives it, one-hot."""
    dtype = np.dtype(case["params"].get("dtype", "float64"))
    found = []
    for name in names.split():
        values = np.array(case["inputs"][name])
        if name == "target_index":
            values = np.eye(3)[values]
        label = values.dtype.kind == "i" and name == "target" and values.ndim < np.ndim(case["inputs"].get("logits", 0))
        found.append(values if label else values.astype(dtype))
    return found


def test_every_case_is_tested() -> None:
    """No case of the file is left out without a name for what is missing."""
    assert set(CASES) == {*CALLS, *GRADIENTS, *ABSENT}
    for number, loss in ABSENT.items():
        assert loss in CASES[number]["loss"].replace("giou", "iou").replace("diou", "iou").replace("ciou", "iou").replace(" ", "_")


@pytest.mark.parametrize("number", CALLS)
def test_peers_numbers(number: int, library: Any) -> None:
    case, (loss, names, options) = CASES[number], CALLS[number]
    found = getattr(library, loss)(*arguments(case, names), **options)
    np.testing.assert_allclose(found, case["expected"], rtol=0, atol=case["tol"])


@pytest.mark.parametrize("number", CALLS)
def test_peers_numbers_in_pytorch(number: int, T: Any) -> None:
    torch = importlib.import_module("torch")
    case, (loss, names, options) = CASES[number], CALLS[number]
    found = getattr(T, loss)(*map(torch.from_numpy, arguments(case, names)), **options)
    np.testing.assert_allclose(found.numpy(), case["expected"], rtol=0, atol=case["tol"])


@pytest.mark.parametrize("number", GRADIENTS)
def test_peers_gradients(number: int, library: Any, T: Any) -> None:
    """The gradient is softmax - labels, also where labels do not add up to 1; PyTorch's form has another there."""
    case, (names, has_value) = CASES[number], GRADIENTS[number]
    expected = case["expected"]
    labels, logits = arguments(case, names)
    value, grads = library.tf_softmax_cross_entropy_with_logits.value_and_grad(labels, logits)
    np.testing.assert_allclose(grads.logits, expected["grad_logits"] if has_value else expected, rtol=0, atol=case["tol"])
    if has_value:
        np.testing.assert_allclose(value, expected["value"], rtol=0, atol=case["tol"])
    torch = importlib.import_module("torch")
    x = torch.tensor(logits, requires_grad=True)
    T.tf_softmax_cross_entropy_with_logits(torch.tensor(labels), x).sum().backward()
    np.testing.assert_allclose(x.grad, grads.logits, rtol=1e-12, atol=1e-15)
    ours = library.cross_entropy.grad(logits, labels, reduction="sum").input
    assert (number == 42) == (np.abs(ours - grads.logits).max() > 0.1)


def test_swapped_arguments_as_an_article_prints_them(library: Any) -> None:
    """An article's Keras example: labels where probabilities belong, in float32, whose upper bound is 1 - 2**-23."""
    entry = next(e for e in json.loads((Path(__file__).parent / "articles.json").read_text()) if e["id"] == "S19")
    logits, labels = (np.array(entry["inputs"][k], np.float32) for k in ("logits", "labels"))
    np.testing.assert_allclose(library.keras_binary_crossentropy(logits, labels), entry["printed"], rtol=1e-6)


def test_the_gradient_of_a_clip(library: Any) -> None:
    """Inside the bounds and at them it passes, outside it is 0: tf.clip_by_value."""
    bounds = 1e-7, 1 - 1e-7
    p = np.array([[bounds[0], np.nextafter(bounds[0], 0), bounds[1], np.nextafter(bounds[1], 2), 0.0, 1.0]])
    t = np.array([[1.0, 1, 0, 0, 1, 0]])
    grad = library.keras_binary_crossentropy.grad(t, p).y_pred
    np.testing.assert_allclose(grad, [[-1e7 / 6, 0, 1 / (1 - bounds[1]) / 6, 0, 0, 0]], rtol=1e-9)


def test_words_and_defaults(library: Any, T: Any) -> None:
    t, p = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[0.25, 0.5], [0.5, 0.125]])
    rows = library.keras_binary_crossentropy(t, p)                  # as the function of Keras: a number for each row
    assert rows.shape == (2,)
    for word in ("mean", "sum_over_batch_size"):
        assert library.keras_binary_crossentropy(t, p, reduction=word) == pytest.approx(rows.mean(), rel=1e-15)
    with pytest.raises(ValueError, match="sum_over_batch_size"):
        library.keras_binary_crossentropy(t, p, reduction="average")
    torch = importlib.import_module("torch")
    t, p = map(torch.from_numpy, (t, p))
    assert float(T.KerasBinaryCrossentropy()(t, p)) == pytest.approx(rows.mean(), rel=1e-15)      # as the class of Keras
    assert T.KerasBinaryCrossentropy(reduction="none")(t, p).shape == (2,)


def test_each_framework_has_a_module(T: Any) -> None:
    for target in ("numpy", "c", "torch"):
        library = importlib.import_module(f"losslib.{target}")
        for name in DIALECTS:
            framework, _, short = name.partition("_")
            module = importlib.import_module(f"losslib.{target}.{framework}")
            assert getattr(module, short) is getattr(library, name) and short in dir(module)
    assert importlib.import_module("losslib.torch.keras").BinaryCrossentropy is T.KerasBinaryCrossentropy
    with pytest.raises(AttributeError, match="binary_crossentropy"):
        _ = importlib.import_module("losslib.numpy.keras").no_such_loss


# Differences from the base

@pytest.mark.parametrize("name", DIALECTS)
def test_stated_differences_are_all_and_are_there(name: str) -> None:
    """Where no stated difference holds, value and gradient are those of the base, exactly; where one holds, something differs."""
    loss = DIALECTS[name]
    assert loss.dialect_of in DEFINITIONS
    rows = compare.compare(loss)
    elsewhere = [r for r in rows if r.name == compare.ELSEWHERE]
    assert all(r.value.ulp == r.grad.ulp == 0 for r in elsewhere)
    for difference in loss.differences:
        own = [r for r in rows if difference.name in r.name.split(" + ")]
        assert max(max(r.value.ulp, r.grad.ulp) for r in own) > 1, f"{difference.name} is not seen"


def test_a_difference_that_is_not_stated_is_seen() -> None:
    loss = DIALECTS["keras_binary_crossentropy"]
    rows = compare.compare(replace(loss, differences=loss.differences[1:]))
    assert max(r.value.ulp for r in rows if r.name == compare.ELSEWHERE) > 1e3


def test_two_losses_with_the_same_arguments() -> None:
    """smooth_l1_loss with beta = 1 is huber_loss with delta = 1; a dialect of one loss is none of another."""
    same = compare.compare(compare.compared(DEFINITIONS["huber_loss"], DEFINITIONS["mse_loss"]))
    assert {r.name for r in same} == {compare.ELSEWHERE} and max(r.value.ulp for r in same) > 1
    with pytest.raises(LosscompError, match="other names"):
        compare.compared(DEFINITIONS["huber_loss"], DEFINITIONS["tf_sigmoid_cross_entropy_with_logits"])


# Definitions that take formulas from others

PART = 'from losscomp.language import Loss, tensor\nx = tensor("x")\n_half = x / 2\npart = Loss(x**2)\n'


def written(folder: Path, text: str, part: str = PART) -> Path:
    (folder / "part.py").write_text(part)
    (folder / "whole.py").write_text(f"from losscomp.language import Loss, base, reused, tensor\n{text}\n")
    return folder


def test_a_formula_is_taken_over(tmp_path: Path) -> None:
    written(tmp_path, 'p = base("part.py")\ny = tensor("y")\nwhole = Loss(reused(p.part, x=1 - y))')
    found = catalogue.load(tmp_path)
    assert list(found) == ["part", "whole"] and str(found["whole"].value) == "(1 - y)**2"


@pytest.mark.parametrize(("text", "message"), [
    ('whole = Loss(base("none.py").part)', "no definition file 'none.py'"),
    ('whole = Loss(base("whole.py").part)', "refers to itself"),
    ('p = base("part.py")\nwhole = Loss(reused(p.part, z=1))', "no input 'z'"),
])
def test_what_cannot_be_taken_over(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DefinitionError, match=message):
        catalogue.load(written(tmp_path, text))


def test_a_change_of_the_base_renews_the_dialect(tmp_path: Path) -> None:
    """The cache of emitted texts, and the library's own record, see the files that a definition takes formulas from."""
    defs = tmp_path / "defs"
    defs.mkdir()

    def keys(part: str) -> tuple[str, str, str]:
        made = plan.make_plan(plan.Options(written(defs, 'whole = Loss(base("part.py")._half)', part), tmp_path / "out"))
        return (*(made.key(s) for s in made.sources), made.inputs)

    before, after = keys(PART), keys(PART.replace("x / 2", "x / 3"))
    assert before == keys(PART)
    assert all(a != b for a, b in zip(before, after, strict=True))



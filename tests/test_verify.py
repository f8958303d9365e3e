"""Every loss of the built library against exact arithmetic, and `losscomp verify`, which says how it went."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from losscomp import catalogue, emit, sampling, verify
from losscomp.check import check
from losscomp.errors import BuildError, LosscompError
from losscomp.language import Loss, tensor
from losscomp.oracle import exact

ROOT = Path(__file__).resolve().parent.parent
LOSSES = catalogue.load(catalogue.builtin_definitions())
# Losses that lose no result on any stratum, by docs/accuracy.md; those with tables lose none among ordinary numbers.
KEPT = [name for name, *lost in re.findall(r"^\| (\w+) \| (\d+) \| (\d+) \|", (ROOT / "docs/accuracy.md").read_text(), re.MULTILINE)
        if lost == ["0", "0"]]
TABLES = [name for name, d in LOSSES.items() if any(form.tables for form in emit.forms_of(d))]
# The largest medians of their derivatives in float64, on ordinary numbers and ties, by docs/accuracy.md: the logarithms of sums of paths
# carry their own rounding into derivatives. float32 is computed in float64.
MEDIANS = {name: (float(grad), float(hvp)) for name, grad, hvp in re.findall(
    r"^\| (\w+) \| ([\d.]+) / ([\d.]+) \|", (ROOT / "docs/accuracy.md").read_text(), re.MULTILINE)}


@pytest.fixture(scope="module")
def targets(targets: dict[str, Any], T: Any) -> dict[str, Any]:
    """The targets that verify looks at, with that for PyTorch."""
    return {**targets, "torch": T}


def arguments(**given: Any) -> argparse.Namespace:
    return argparse.Namespace(**{"losses": [], "json": None, "lib": ROOT / "generated", "quick": True, "defs": None, **given})


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in TABLES])
def test_no_result_is_lost_and_most_are_within_two_units(name: str, targets: Any) -> None:
    rows = verify.verify_loss(LOSSES[name], targets, strata=verify.STRATA)
    ours = [r for r in rows if r.target != verify.PEER]
    assert {r.target for r in ours} == {"numpy", "c", "torch"} and all(r.points >= 40 for r in ours)
    assert [f"{r.output} {r.dtype} {r.target}: {r.example}" for r in ours if r.lost] == []
    assert [f"{r.output} {r.dtype} {r.target}: {r.typical}" for r in ours if r.typical > 2] == []


@pytest.mark.parametrize("name", TABLES)
def test_tables_lose_no_result_off_the_roots_but_over_the_whole_exponent_range(name: str, targets: Any) -> None:
    """The stratum "wide" is NOT CHECKED: numbers of 1e30 beside those of 1 leave nothing of the differences that derivatives are of."""
    ordinary = [r for r in verify.verify_loss(LOSSES[name], targets, strata=("normal", "ties")) if r.target != verify.PEER]
    ends = verify.verify_loss(LOSSES[name], {k: targets[k] for k in ("numpy", "c")}, strata=("saturated",), roots=True)
    ends = [r for r in ends if r.target != verify.PEER]
    assert {r.target for r in ordinary} == {"numpy", "c", "torch"} and {r.target for r in ends} == {"numpy", "c"}
    assert all(r.points >= verify.FEW and r.at_roots < r.points for r in ordinary + ends)
    assert [f"{r.output} {r.dtype} {r.target}: {r.example}" for r in ordinary if r.lost] == []
    assert [f"{r.output} {r.dtype} {r.target}: {r.example}" for r in ends if r.lost_off_roots] == []
    grad, hvp = MEDIANS[name]
    bounds = {"value": 2.0, "grad": max(grad, 2), "hvp": max(hvp, 2)}
    above = [r for r in ordinary if r.typical > (bounds[r.output] if r.dtype == "float64" else 2)]
    assert [f"{r.output} {r.dtype} {r.target}: {r.typical}" for r in above] == []


def test_what_the_page_on_accuracy_says_is_of_all_losses() -> None:
    assert set(LOSSES) - set(KEPT) == set(TABLES) == set(MEDIANS) and set(KEPT) <= set(LOSSES)


@pytest.mark.parametrize("name", ["huber_loss", "soft_margin_loss", "cosine_embedding_loss"])
def test_off_the_roots_double_precision_is_within_ten_units(name: str, targets: Any) -> None:
    rows = [r for r in verify.verify_loss(LOSSES[name], targets, roots=True) if r.target != verify.PEER and r.dtype == "float64"]
    assert rows and all(r.off_roots is not None and r.off_roots <= 10 for r in rows)
    assert all(r.at_roots < r.points / 2 and r.lost_off_roots == 0 for r in rows)


def test_a_root_is_told_from_a_defect() -> None:
    """x - y of neighbours is at a root; x y is not, and neither is x - y of numbers that are far apart."""
    x, y = tensor("x"), tensor("y")
    inputs = {"x": np.array([1.0, 3.0, 1e300]), "y": np.array([1.0 + 2.0**-50, -7.0, 1.0])}
    for formula, expected in ((x - y, [True, False, False]), (x * y, [False, False, False])):
        form = check(Loss(formula, name="probe", doc="A probe."))[0]
        ask = lambda tensors, ways, form=form: exact(form, tensors, {}, reduction="none", wrt=[], directions=None)
        nearby = [(sampling.nudged(form, inputs, turn), {}) for turn in range(verify.TURNS)]
        moved = verify.moves(ask(inputs, {}), nearby, ask, [], "float64")[0]
        assert (moved > verify.ROOT).tolist() == expected


@pytest.mark.parametrize("turn", range(verify.TURNS))
@pytest.mark.parametrize("kind", verify.TYPES)
def test_neighbours_are_next_to_their_numbers(kind: str, turn: int) -> None:
    last = np.finfo(kind)
    ends = [0.0, np.inf, float(last.max), float(last.tiny), float(last.smallest_subnormal), 1.0, 1.0 - float(last.epsneg)]
    numbers = np.array([*ends, *np.random.default_rng(turn).normal(size=50) * 10.0 ** np.arange(-25, 25)], dtype=kind)
    values = np.concatenate([numbers, -numbers])
    moved = sampling.neighbours(values, turn)
    assert moved.dtype == kind and np.array_equal(moved[:len(numbers)], -moved[len(numbers):])      # ties of size stay ties
    with np.errstate(over="ignore"):
        up, down = (np.nextafter(values, np.array(side, dtype=kind)) for side in (np.inf, -np.inf))
    assert np.all((moved == up) | (moved == down) | (moved == values))
    inner = np.arange(len(values)) % len(numbers) >= 5
    assert np.all(moved[inner] != values[inner]) and 0.2 < np.mean(moved[7:57] > values[7:57]) < 0.8


def test_a_wrong_target_is_seen(targets: Any) -> None:
    class Off:
        def value_and_grad(self, *args: Any, **kwargs: Any) -> Any:
            value, grads = targets["numpy"].huber_loss.value_and_grad(*args, **kwargs)
            return value, grads._replace(input=-grads.input)

        def hvp(self, *args: Any, **kwargs: Any) -> Any:
            return targets["numpy"].huber_loss.hvp(*args, **kwargs)

    rows = verify.verify_loss(LOSSES["huber_loss"], {"off": SimpleNamespace(huber_loss=Off())}, strata=("normal",))
    lost = {r.output: r.lost for r in rows if r.target == "off"}
    assert lost["grad"] > 0 == lost["value"] + lost["hvp"]


def test_the_command_prints_a_table_and_writes_json(tmp_path: Path, capsys: Any) -> None:
    assert verify.main(arguments(losses=["mse_loss", "kl_div"], json=tmp_path / "table.json")) == 0
    text, rows = capsys.readouterr().out, json.loads((tmp_path / "table.json").read_text())
    assert "mse_loss" in text and "kl_div" in text and "huber" not in text
    assert {r["loss"] for r in rows} == {"mse_loss", "kl_div"} and all(np.isfinite(r["worst"]) for r in rows)


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="holds no library"):
        verify.main(arguments(lib=tmp_path))
    with pytest.raises(LosscompError, match="no loss 'nothing'"):
        verify.main(arguments(losses=["nothing"]))

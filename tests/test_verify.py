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

from losscomp import catalogue, verify
from losscomp.errors import BuildError, LosscompError

ROOT = Path(__file__).resolve().parent.parent
LOSSES = catalogue.load(catalogue.builtin_definitions())
# Losses that lose no result on any stratum, by docs/accuracy.md; the others lose none among ordinary numbers.
KEPT = [name for name, *lost in re.findall(r"^\| (\w+) \| (\d+) \| (\d+) \|", (ROOT / "docs/accuracy.md").read_text(), re.MULTILINE)
        if lost == ["0", "0"]]


def arguments(**given: Any) -> argparse.Namespace:
    return argparse.Namespace(**{"losses": [], "json": None, "lib": ROOT / "generated", "quick": True, "defs": None, **given})


@pytest.mark.parametrize("name", LOSSES)
def test_no_result_is_lost_and_most_are_within_two_units(name: str, targets: Any) -> None:
    rows = verify.verify_loss(LOSSES[name], targets, strata=verify.STRATA if name in KEPT else verify.QUICK)
    ours = [r for r in rows if r.target != "torch"]
    assert {r.target for r in ours} == {"numpy", "c"} and all(r.points >= 40 for r in ours)
    assert [f"{r.output} {r.dtype} {r.target}: {r.example}" for r in ours if r.lost] == []
    assert [f"{r.output} {r.dtype} {r.target}: {r.typical}" for r in ours if r.typical > 2] == []


def test_at_least_ten_losses_lose_nothing_anywhere() -> None:
    assert len(KEPT) >= 10 and set(KEPT) <= set(LOSSES)


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

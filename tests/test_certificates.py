"""Certificates: the worst inputs of every loss, asked again of the emitted code; their truth is the oracle's; and the command."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from shim import GXX, ShimBackend, compile_shim, partial_library
from shim import losses as on_cuda

from losscomp import catalogue, certificates, certify
from losscomp.certificates import Certificate
from losscomp.cli import main
from losscomp.errors import BuildError
from losscomp.oracle import exact

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = ROOT / "generated"
LOSSES = catalogue.load(catalogue.builtin_definitions())
QUICK = ("huber_loss", "soft_margin_loss")       # whose CUDA kernels compile in seconds


def certificate(name: str) -> Certificate:
    """The certificate that is kept; one about another definition would hold the code to a wrong truth."""
    found = certificates.read(LIBRARY, name)
    if found is None:
        pytest.skip(f"the worst inputs of {name} are NOT TESTED: there is no certificate; run `make certificates`")
    assert found.definition == certify.definition_digest(LOSSES[name]), f"{name} was defined anew: run `make certificates`"
    return found


def broken(name: str, targets: dict[str, Any], like: dict[str, str] | None = None) -> list[str]:
    """What a certificate promises and these targets do not hold."""
    found = list(certify.replay(LOSSES[name], certificate(name), targets, like or {}))
    assert Counter(r.target for r in found) == dict.fromkeys(targets, len(certificate(name).cases))
    assert any(r.allowed is not None for r in found)
    return [str(r) for r in found if not r.holds]


@pytest.mark.parametrize("name", LOSSES)
def test_the_worst_inputs_are_no_worse_than_certified(name: str, targets: dict[str, Any], T: Any) -> None:
    assert broken(name, {**targets, "torch": T}) == []


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in LOSSES])
def test_the_worst_inputs_on_cuda_are_no_worse_than_those_of_c(name: str, tmp_path: Path) -> None:
    if GXX is None:
        pytest.skip("the worst inputs are NOT TESTED on CUDA kernels: there is no g++")
    certificate(name)
    sources = partial_library(LIBRARY / "src/losslib/cuda", tmp_path / "src", (name,))
    backend = ShimBackend(compile_shim(sources, tmp_path / "out"))
    assert broken(name, {"cuda": SimpleNamespace(**{name: on_cuda(backend)[name]})}, {"cuda": "c"}) == []


@pytest.mark.parametrize("name", LOSSES)
def test_the_truth_of_a_certificate_is_the_oracles(name: str) -> None:
    found = certificate(name)
    for case in found.cases[::4]:
        form, tensors, directions, params = certify.arguments(LOSSES[name], case)
        answer = exact(form, tensors, params, reduction="none", wrt=list(directions), directions=directions)
        part = {"value": lambda a=answer: a.value, "grad": lambda a=answer, c=case: a.grad[c.by],
                "hvp": lambda a=answer, c=case: a.hvp[c.by]}[case.output]()
        high, low = (float(np.atleast_1d(e)[tuple(case.cell)]) for e in (part.high, part.low))
        assert [high, low] == [float.fromhex(x) for x in case.truth]


@pytest.mark.parametrize("name", LOSSES)
def test_every_result_is_certified_on_every_target(name: str) -> None:
    rows = {(r.output, r.by, r.dtype, r.target): r for r in certificate(name).rows}
    results = {key[:3] for key in rows}
    assert {o for o, _, _ in results} == {"value", "grad", "hvp"} and {d for _, _, d in results} == {"float32", "float64"}
    assert sum(r.points for r in rows.values()) >= 1000                       # few of one: a shared input, a value that is seldom a number
    for result in results:
        ours = [rows[*result, target] for target in ("numpy", "c", "torch")]
        assert all(r.points >= 10 and r.p999 <= r.most and r.lost >= 0 for r in ours)
        assert result[0] != "value" or all(r.worst >= 0 for r in ours)         # a derivative may be 0 everywhere


# A measurement of our own, of one small loss

@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library with one certificate, measured now."""
    folder = tmp_path_factory.mktemp("certified")
    (folder / "src").symlink_to(LIBRARY / "src")
    assert certify.main(arguments(folder)) == 0
    return folder


def arguments(folder: Path) -> argparse.Namespace:
    return argparse.Namespace(losses=["l1_loss"], lib=folder, defs=None, jobs=1)


def test_a_certificate_is_the_same_each_time(small: Path, targets: dict[str, Any], T: Any, capsys: pytest.CaptureFixture[str]) -> None:
    before = (small / "certificates/l1_loss.json").read_text()
    assert certify.main(arguments(small)) == 0
    assert (small / "certificates/l1_loss.json").read_text() == before
    assert "l1_loss" in capsys.readouterr().out
    found = certificates.read(small, "l1_loss")
    assert found is not None and certificates.text(found) == before and json.loads(before)["loss"] == "l1_loss"
    assert "| l1_loss | grad by input | float64 |" in (small / "certificates/README.md").read_text()
    assert not any(line.startswith("l1_loss:") for line in certificates.outdated(small))


def test_a_regression_is_seen(small: Path, targets: dict[str, Any]) -> None:
    """The same results four units in the last place off are more than the certificate allows; as they are, they are not."""
    class Off:
        def value_and_grad(self, *args: Any, **kwargs: Any) -> Any:
            value, grads = targets["c"].l1_loss.value_and_grad(*args, **kwargs)
            return value + 4 * np.spacing(value), grads

        def hvp(self, *args: Any, **kwargs: Any) -> Any:
            return targets["c"].l1_loss.hvp(*args, **kwargs)

    found = certificates.read(small, "l1_loss")
    assert found is not None
    replayed = {name: list(certify.replay(LOSSES["l1_loss"], found, {name: module}, {"off": "c"}))
                for name, module in (("c", targets["c"]), ("off", SimpleNamespace(l1_loss=Off())))}
    assert all(r.holds for r in replayed["c"])
    assert {r.case.output for r in replayed["off"] if not r.holds} == {"value"}


def test_what_is_not_certified_is_said(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = list(certificates.outdated(small))
    assert "huber_loss: there is no certificate" in lines and len(lines) == len(LOSSES) - 1
    found = certificates.read(small, "l1_loss")
    assert found is not None
    path = small / "certificates/l1_loss.json"
    kept = path.read_text()
    path.write_text(certificates.text(replace(found, emitted="0" * 16)))
    assert "l1_loss: the certificate speaks of other code" in certificates.outdated(small)
    assert list(certificates.outdated(small / "src")) == []                     # where none was ever made, none is asked for
    path.write_text("{}")
    with pytest.raises(BuildError, match="is no certificate"):
        certificates.read(small, "l1_loss")
    path.write_text(kept)
    assert main(["show", "l1_loss", "--lib", str(small)]) == 0
    assert "== certificate ==" in capsys.readouterr().out


def test_numbers_come_back_as_they_were() -> None:
    for array in (np.array([0.1, -np.inf, 5e-324, -0.0]), np.array([[1, 2]]), np.float32([[0.1], [3e38]])):
        back = certificates.unpacked(json.loads(json.dumps(certificates.packed(array))), str(array.dtype))
        assert back.shape == array.shape and back.dtype == array.dtype and back.tobytes() == array.tobytes()
    for value in (0.0, 1.0, 1.001, 2.999999, 123456.0, 1e-9):
        assert value <= certify.upwards(value) <= value * 1.011

"""Naive definitions get stable code: no result is lost but where the question itself is ill-conditioned, and most are good to an ULP."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from naive import NAIVE
from support import COMPILER, library

from losscomp import suggest
from losscomp.check import check
from losscomp.oracle import OracleError
from losscomp.sampling import STRATA, parameters, samples
from losscomp.suggest import Errors
from losscomp.verify import TYPES, Inputs, measured

POINTS = 12
TARGETS = ("numpy", "c") if COMPILER else ("numpy",)
# What is not repaired, and why: the results off the roots that are lost, and those beyond the limit in ULP.
LEFT: dict[str, str] = {
    "cauchy": "value grad", "geman_mcclure": "value",                    # a square that is not under a root overflows
    "itakura_saito": "value grad",               # needs a series about 1, and a difference of reciprocals
}
LIMIT = 40.0


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All of them, compiled."""
    return library(list(NAIVE.values()), tmp_path_factory.mktemp("naive"), "naivelib", "-O0")


def errors(name: str, targets: dict[str, Any]) -> Errors:
    """The errors of every result, by target, over all strata."""
    found: Errors = {}
    form = check(NAIVE[name])[0]
    for dtype in TYPES:
        for stratum in STRATA:
            inputs = Inputs(samples(form, stratum, POINTS, dtype), parameters(form), dtype)
            for some in [inputs, *suggest.singles(form, inputs, POINTS)]:
                try:
                    for r in list(measured(NAIVE[name], form, some, targets, roots=True)):
                        suggest.account(found, r, dtype, r.computed, r.target)
                except OracleError:
                    continue
                if some is inputs:
                    break
    return found


@pytest.mark.parametrize("name", NAIVE)
def test_no_result_is_lost(name: str, targets: dict[str, Any]) -> None:
    if not COMPILER:
        pytest.skip("naive definitions are NOT TESTED in C: there is no C compiler")
    found = {key: e for key, e in errors(name, targets).items() if key[0][0] not in LEFT.get(name, "").split()}
    assert {target for _, target in found} == set(TARGETS)
    assert {key: f"{e.lost_off_roots} lost" for key, e in found.items() if e.lost_off_roots} == {}
    assert {key: e.most for key, e in found.items() if e.most > LIMIT} == {}
    assert all(np.median(np.concatenate(e.ulps)) <= 1.5 for e in found.values() if sum(u.size for u in e.ulps))


def test_as_they_are_written_they_lose_results(targets: dict[str, Any]) -> None:
    """Else they would prove nothing."""
    bad, some = 0, ("softplus", "logits", "cross_entropy", "log_cosh", "pseudo_huber", "occupancy", "two_exponentials", "bump")
    for name in some:
        form = check(NAIVE[name])[0]
        inputs = Inputs(samples(form, "saturated", POINTS, "float32"), parameters(form), "float32")
        own = suggest.naive_results(form, inputs)
        found: Errors = {}
        for r in measured(NAIVE[name], form, inputs, {"numpy": targets["numpy"]}, roots=True):
            suggest.account(found, r, "float32", own[r.output, r.by], "plain")
        bad += any(e.lost_off_roots for e in found.values())
    assert bad >= len(some) - 2

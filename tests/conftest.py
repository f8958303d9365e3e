"""What tests of the generated library share: where it lies, and its targets.

LOSSLIB_SRC names the folder that holds the package, if it is not generated/src.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
for folder in (Path(__file__).parent, ROOT, Path(os.environ.get("LOSSLIB_SRC") or ROOT / "generated" / "src")):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

TARGETS = ("numpy", "c")


@pytest.fixture(scope="session")
def targets() -> dict[str, Any]:
    """The targets of the library by name. One that is missing is a failure: tests would otherwise pass without it."""
    try:
        return {name: importlib.import_module(f"losslib.{name}") for name in TARGETS}
    except ImportError as error:
        pytest.fail(f"The library is not built ({error}): run `make`.", pytrace=False)


@pytest.fixture(params=TARGETS)
def library(request: pytest.FixtureRequest, targets: dict[str, Any]) -> Any:
    """One target; a test that asks for it runs on each."""
    return targets[request.param]


@pytest.fixture
def rng() -> np.random.Generator:
    """The same random numbers in every run."""
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def T() -> Any:
    """The torch target. That it is missing is a failure, as for the others."""
    try:
        return importlib.import_module("losslib.torch")
    except ImportError as error:
        pytest.fail(f"The torch target is not built ({error}): run `make`.", pytrace=False)

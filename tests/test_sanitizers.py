"""The emitted C under AddressSanitizer and UndefinedBehaviorSanitizer: every loss, odd strides, bad indices, empty batches."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import COMPILER, compile_library, copy_library

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = """
import sys
import numpy as np
sys.path[:0] = [sys.argv[1], sys.argv[2]]
import losslib.c as L
from losslib.errors import LossError
from losscomp import catalogue
from losscomp.check import check
from losscomp.emit import forms_of
from losscomp.sampling import as_given, parameters, samples
calls = 0
for name, definition in catalogue.load(catalogue.builtin_definitions()).items():
    f = getattr(L, name)
    for form in (v for loss in forms_of(definition) for v in check(loss)):
        for count in (0, 1, 5):
            for dtype in ("float32", "float64"):
                given = samples(form, "normal", count, dtype)
                given = as_given(form, given)
                odd = {k: a if a.ndim < 2 else np.asfortranarray(a) for k, a in given.items()}
                arguments = {**odd, **parameters(form)}
                wrt = [t.name for t in form.differentiable]
                for reduction in ("none", "mean", "sum"):
                    f(**arguments, reduction=reduction)
                    f.value_and_grad(**arguments, reduction=reduction, wrt=wrt)
                    f.hvp(direction={k: given[k] for k in wrt}, **arguments, reduction=reduction, wrt=wrt)
                    calls += 3
        for t in (t for t in form.inputs if t.record.into or t.record.measures):
            for bad in (-1, 5 if t.record.measures else 4, 2**40, -2**62):
                given = samples(form, "normal", 3, "float32")
                for length in (o.name for o in form.inputs if o.record.measures):
                    given[length][-1] = 4
                given[t.name][-1] = bad
                try:
                    f(**as_given(form, given), **parameters(form))
                except LossError:
                    calls += 1
                else:
                    raise SystemExit(f"{name} took the index {bad}")
print("calls", calls)
"""


@pytest.mark.skipif(COMPILER is None, reason="NOT CHECKED under sanitizers: there is no C compiler")
def test_nothing_is_read_or_written_out_of_bounds(tmp_path: Path) -> None:
    runtime = subprocess.run([str(COMPILER), "-print-file-name=libasan.so"], capture_output=True, text=True).stdout.strip()
    if not Path(runtime).is_absolute() or shutil.which("cc") is None:
        pytest.skip("NOT CHECKED under sanitizers: this compiler has no libasan.so")
    src = copy_library(tmp_path)
    compile_library(src, "losslib", ["-O0", "-DLOSSLIB_PLAIN", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"])
    environment = {**os.environ, "LD_PRELOAD": runtime, "ASAN_OPTIONS": "detect_leaks=0", "PYTHONMALLOC": "malloc"}
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(src), str(ROOT)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    assert int(done.stdout.split()[-1]) > 1000

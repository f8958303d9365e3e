"""`losscomp build --watch`: again after each change of a definition."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from .cache import walk
from .plan import base_files

PAUSE = 0.25            # seconds between two looks


def watch(definitions: Path, again: Callable[[], None], wait: Callable[[float], None] = time.sleep) -> None:
    """Call `again` at once and after each change of the definitions, until somebody interrupts."""
    seen = None
    while True:
        now = stamps(definitions)
        if now != seen:
            seen = now
            again()
        wait(PAUSE)


def stamps(definitions: Path) -> dict[str, tuple[int, int]]:
    """When each definition file was written, and how long it is; those that they take formulas from too."""
    files = list(walk(definitions, "*.py", frozenset({"__pycache__"}))) if definitions.is_dir() else [definitions]
    found: dict[str, tuple[int, int]] = {}
    for file in files:
        try:
            for path in (file, *(base for base, _ in base_files(file, file.read_bytes()))):
                status = path.stat()
                found[str(path)] = status.st_mtime_ns, status.st_size
        except OSError:                                  # an editor is putting another file in its place
            continue
    return found

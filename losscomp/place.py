"""Putting a finished library in its place: one build at a time, all or nothing.

Next to the library stands the folder `.losscomp`, which git ignores: the lock, what is being made, and the journal. Once the
journal is written a build has happened: whoever comes next carries out what is left of it. Before that, nothing has changed.
"""

from __future__ import annotations

import json
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from filelock import FileLock, Timeout

from .cache import digest_file

STATE = ".losscomp"


def state(out: Path) -> Path:
    """The folder of what is not part of the library."""
    return out / STATE


def checkpoint(name: str) -> None:
    """Called between the steps of a commit; tests put a crash in its place."""


@contextmanager
def locked(out: Path, say: Callable[[str], None]) -> Iterator[None]:
    """One build at a time into `out`; whoever waits says so. A first build that fails leaves no folder behind."""
    fresh = not out.exists()
    folder = state(out)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"another build into {out} is at work: waiting for it")
        lock.acquire()
    try:
        (folder / ".gitignore").write_text("*\n")
        recover(out)
        yield
    finally:
        with suppress(OSError):
            shutil.rmtree(folder / "work", ignore_errors=True)
            if fresh and set(out.iterdir()) == {folder}:
                shutil.rmtree(folder)
                out.rmdir()
        lock.release()


@contextmanager
def undisturbed() -> Iterator[None]:
    """Let SIGINT and SIGTERM wait until the end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[int] = []

    def later(number: int, frame: FrameType | None) -> None:
        waiting.append(number)

    before = {number: signal.signal(number, later) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in dict.fromkeys(map(signal.Signals, waiting)):
            signal.raise_signal(number)


def commit(out: Path, files: Mapping[str, bytes], remove: Mapping[str, str]) -> None:
    """Write `files` and remove what is in `remove`, each only if its content still has the digest that is given with it."""
    folder = state(out)
    stage = folder / "stage"
    shutil.rmtree(stage, ignore_errors=True)
    try:
        for path, data in files.items():
            place = stage / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)
        checkpoint("staged")
        journal = folder / "journal.tmp"
        journal.write_text(json.dumps({"move": list(files), "remove": dict(remove)}))
    except OSError:
        shutil.rmtree(stage, ignore_errors=True)
        raise
    with undisturbed():
        journal.replace(folder / "journal.json")
        checkpoint("journal")
        recover(out)


def recover(out: Path) -> None:
    """Carry out what the journal says is left to do; without a journal, drop what an interrupted build had staged."""
    folder = state(out)
    journal = folder / "journal.json"
    stage = folder / "stage"
    if journal.exists():
        plan = json.loads(journal.read_text())
        for path in plan["move"]:
            if (stage / path).exists():             # else it is in its place already
                (out / path).parent.mkdir(parents=True, exist_ok=True)
                (stage / path).replace(out / path)
                checkpoint(f"moved {path}")
        for path, expected in plan["remove"].items():
            if digest_file(out / path) == expected:
                (out / path).unlink()
                remove_empty(out, (out / path).parent)
        checkpoint("placed")
        journal.unlink()
    shutil.rmtree(stage, ignore_errors=True)
    shutil.rmtree(folder / "work", ignore_errors=True)


def remove_empty(out: Path, folder: Path) -> None:
    """Remove the folders that a removed file leaves empty, and Python's cache of them."""
    while folder != out:
        cached = folder / "__pycache__"
        if set(folder.iterdir()) <= {cached}:
            shutil.rmtree(cached, ignore_errors=True)
        with suppress(OSError):
            folder.rmdir()
        if folder.exists():
            return
        folder = folder.parent

"""Content digests, and the cache folder of the user. Nothing here imports SymPy: a build with nothing to do stays quick."""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path

LIMIT = 512 * 2**20     # bytes that the cache folder keeps
KINDS = ("emitted", "objects", "compilers", "live")
# Modules and packages that people talk to, or that look at what was built: they have no part in what is emitted.
NOT_EMITTING = frozenset({"__main__", "cli", "show", "doctor", "scaffold", "oracle", "verify", "bench", "compare", "certificates",
                          "certify", "plain", "conditioning", "suggest", "checking", "watch", "live", "latex"})


def digest(*parts: str | bytes) -> str:
    """One digest of several texts; ("ab", "c") and ("a", "bc") differ."""
    found = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        found.update(len(data).to_bytes(8, "little"))
        found.update(data)
    return found.hexdigest()


def digest_file(path: Path) -> str | None:
    """The digest of a file's content, or None where there is no such file."""
    try:
        return digest(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None


def digest_tree(texts: Mapping[str, bytes]) -> str:
    """The digest of files and their names."""
    return digest(*(part for name, data in sorted(texts.items()) for part in (name, data)))


def walk(folder: Path, pattern: str, skip: frozenset[str] = frozenset()) -> Iterator[Path]:
    """The files of a folder and those below it, in order; hidden ones and `skip`ped folders are left out."""
    for path in sorted(folder.rglob(pattern)):
        inside = path.relative_to(folder).parts
        if not any(part.startswith(".") or part in skip for part in inside) and path.is_file():
            yield path


@cache
def compiler_digest(templates: Path) -> str:
    """What decides, besides the definitions, what is emitted: losscomp's sources, its templates, the versions under it."""
    here = Path(__file__).resolve().parent
    modules = walk(here, "*.py", frozenset({"definitions", "templates", "__pycache__"}))
    sources = {f"source/{p.relative_to(here).as_posix()}": p.read_bytes() for p in modules
               if p.relative_to(here).with_suffix("").parts[0] not in NOT_EMITTING}
    texts = {f"template/{p.relative_to(templates).as_posix()}": p.read_bytes() for p in walk(templates, "*")}
    versions = [f"{name} {version(name)}" for name in ("sympy", "jinja2", "cffi")]
    return digest(digest_tree(sources | texts), *versions, f"python {sys.version_info[0]}.{sys.version_info[1]}")


def cache_folder() -> Path:
    """Where losscomp keeps what it can make again: LOSSCOMP_CACHE, or the user's cache folder."""
    if chosen := os.environ.get("LOSSCOMP_CACHE"):
        return Path(chosen).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "losscomp"


class Store:
    """One kind of thing in the cache folder, by key. A cache that cannot be written is an empty cache."""

    def __init__(self, kind: str) -> None:
        assert kind in KINDS        # prune() touches nothing else
        self.folder = cache_folder() / kind

    def path(self, key: str) -> Path:
        """Where the thing of a key lies, if it is there."""
        return self.folder / key[:2] / key[2:]

    def get(self, key: str) -> bytes | None:
        """The thing of a key, or None."""
        path = self.path(key)
        try:
            data = path.read_bytes()
        except OSError:
            return None
        with suppress(OSError):
            os.utime(path)          # young again: prune() takes the oldest
        return data

    def put(self, key: str, data: bytes) -> None:
        """Keep a thing; others see all of it or nothing."""
        path = self.path(key)
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(data)
                Path(temporary).replace(path)
            except OSError:
                Path(temporary).unlink()
                raise


def prune(limit: int = LIMIT) -> None:
    """Drop the oldest things of the cache folder until it fits."""
    entries = []
    for path in (path for kind in KINDS for path in (cache_folder() / kind).rglob("*")):
        with suppress(OSError):
            if path.is_file():
                status = path.stat()
                entries.append((status.st_mtime, status.st_size, path))
    total = sum(size for _, size, _ in entries)
    for _, size, path in sorted(entries):
        if total <= limit:
            break
        with suppress(OSError):
            path.unlink()
            total -= size

"""Errors of the compiler: each says what is wrong, where, and how to mend it."""

from __future__ import annotations


class LosscompError(Exception):
    """What is wrong, where, and the repair.

    Args:
        what: the fact, with names and values.
        where: the definition (file and line, or the name of the loss), when known.
        repair: what the reader can do about it.
    """

    stage = "losscomp"

    def __init__(self, what: str, *, where: str = "", repair: str = "") -> None:
        self.what, self.where, self.repair = what, where, repair
        super().__init__(what)

    def __str__(self) -> str:
        head = f"{self.where}: {self.stage}: {self.what}" if self.where else f"{self.stage}: {self.what}"
        return f"{head}\n  {self.repair}" if self.repair else head

    def at(self, where: str) -> LosscompError:
        """The same error, placed; an error that already has a place keeps it."""
        if not self.where:
            self.where = where
        return self


class DefinitionError(LosscompError):
    """A definition that the language does not allow."""

    stage = "definition"


class CheckError(LosscompError):
    """A definition that is well formed but cannot be compiled as it stands."""

    stage = "check"


class LoweringError(LosscompError):
    """A formula for which the intermediate form has no spelling."""

    stage = "lower"


class TargetError(LosscompError):
    """An operation that a target cannot spell."""

    stage = "emit"


class BuildError(LosscompError):
    """A compiler, a lock or a file that did not do its part."""

    stage = "build"
